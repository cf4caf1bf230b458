"""Asks a server's operators' address: what it says of itself, and to drain, put back, add or remove a server.

Plain blocking sockets of the standard library: the commands that use it serve nobody, and have no hub.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from greensock.operations.status_reading import StatusReading, read_status

__all__ = ["Away", "OperatorsClient", "RefusedThere"]

#: Bytes of an answer that are read at the most.
MOST = 16 * 1024 * 1024


class Away(Exception):
    """There is no answer, or none of a greensock's; the text says what is there instead."""


class RefusedThere(Exception):
    """The server did not do what it was asked to; the text says why."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        #: What it answered: 401 and 403 are about the token, 400 and 404 about what was named.
        self.status = status


class OperatorsClient:
    """The operators' address of a server: ``HOST:PORT``, ``PORT``, ``http://HOST:PORT/PATH``, ``unix:PATH`` or a path.

    Each question has a connection of its own: nothing is held meanwhile, and a server that comes back is found.

    Raises:
        ValueError: it is none of these.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 5.0) -> None:
        #: As it was given.
        self.address = address
        #: What is shown to who asks for it; None: nothing.
        self.token = token
        #: Seconds that the other end may be silent.
        self.timeout = timeout
        self._path: str | None = None
        self._host, self._port, self._base = "localhost", 0, ""
        if address.startswith(("unix:", "/", "./", "../")):
            path = address.removeprefix("unix:")
            if not path.strip("@"):
                raise ValueError(f"{address!r}: the path of a Unix socket expected")
            self._path = "\0" + path[1:] if path.startswith("@") else path
            return
        try:
            prefix = "" if "://" in address else "http://:" if address.isdigit() else "http://"
            url = urlsplit(prefix + address)
            host, port = url.hostname, url.port
        except ValueError as error:
            raise ValueError(f"{address!r}: {error}") from error
        if url.scheme != "http":
            raise ValueError(f"{address!r}: http:// or a path expected: the operators' address speaks no {url.scheme}")
        if url.username is not None or url.query or url.fragment or (host is None and port is None):
            raise ValueError(f"{address!r}: HOST:PORT, http://HOST:PORT or the path of a Unix socket expected")
        if port is None and prefix:
            raise ValueError(f"{address!r}: a port expected, as in {address}:9180; a path begins with / or unix:")
        self._host, self._port = host or "127.0.0.1", 80 if port is None else port
        self._base = url.path.rstrip("/")

    def status(self) -> StatusReading:
        """Return what the server says of itself.

        Raises:
            Away: it says nothing, or nothing that is understood.
        """
        status, data = self._ask("GET", "/status.json")
        if status in (401, 403, 421):
            raise Away(f"it answers {status}: {_why(data)}")
        if status != 200:
            raise Away(f"it answers {status}: is it the operators' address of a greensock?")
        try:
            return read_status(data)
        except ValueError as error:
            raise Away(f"what it answers is not understood: {error}") from error

    def set_server(self, what: str, upstream: str, server: str) -> None:
        """Have a server drained (``drain``) or put back (``ready``), in all workers.

        Raises:
            Away: there is no answer.
            RefusedThere: it was not done.
        """
        self._order("POST", f"/{what}", upstream, server)

    def add_server(self, upstream: str, url: str, **options: Any) -> str:
        """Have a further server in all workers; return the name under which it can be removed.

        ``options`` are as in ``[upstreams.NAME] servers``. Raises as :meth:`set_server` does.
        """
        data = self._order("POST", "/servers", upstream, url, **options)
        try:
            return str(json.loads(data)["server"])
        except (ValueError, RecursionError, KeyError, TypeError):
            return url  # it is added, whatever it says

    def remove_server(self, upstream: str, server: str) -> None:
        """Have a server no more, in all workers. Raises as :meth:`set_server` does."""
        self._order("DELETE", "/servers", upstream, server)

    def _order(self, method: str, path: str, upstream: str, server: str, **more: Any) -> bytes:
        body = json.dumps({"upstream": upstream, "server": server, **more}).encode()
        status, data = self._ask(method, path, body)
        if not 200 <= status < 300:
            raise RefusedThere(f"{status}: {_why(data)}", status)
        return data

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        fields = {} if body is None else {"Content-Type": "application/json"}
        if self.token is not None:
            fields["Authorization"] = f"Bearer {self.token}"
        connection: http.client.HTTPConnection
        if self._path is not None:
            connection = _UnixConnection(self._path, self.timeout)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self.timeout)
        try:
            connection.request(method, self._base + path, body, fields)
            answer = connection.getresponse()
            data = answer.read(MOST + 1)
        except TimeoutError as error:
            raise Away(f"it is silent for {self.timeout:g} s") from error
        except OSError as error:
            raise Away(error.strerror or str(error)) from error
        except http.client.HTTPException as error:
            raise Away(f"what it answers is no HTTP: {type(error).__name__} {error}") from error
        finally:
            connection.close()
        if len(data) > MOST:
            raise Away(f"it answers with more than {MOST} bytes")
        return answer.status, data


def _why(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return "it does not say why"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._socket_path = path
        self._patience = timeout

    def connect(self) -> None:
        """Connect to the path."""
        sock: Any = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._patience)
            sock.connect(self._socket_path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
