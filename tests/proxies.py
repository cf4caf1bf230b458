"""Proxies and the servers behind them, for the tests of the proxy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from conftest import PATIENCE
from gevent.pool import Group

from greensock.http import HTTPServer, Response
from greensock.proxy import Gateway, HealthOptions, Record, ReverseProxy, Route, ServerOptions, UpstreamOptions

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Recorded(ReverseProxy):
    """A proxy that keeps its records."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.records: list[Record] = []

    def request_recorded(self, record: Record) -> None:
        self.records.append(record)


class Origin(HTTPServer):
    """Answers with what it was asked, and keeps the requests that came: method, target, fields, body."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[tuple[str, bytes, list[tuple[bytes, bytes]], bytes]] = []

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def handle_request(self, request: Any) -> Response:
        body = request.body.read_all(1 << 26)
        self.seen.append((request.method, request.target, list(request.headers.raw), body))
        if request.path.startswith("/status/"):
            return Response(b"", int(request.path[8:]))
        if request.path.startswith("/chunked"):
            return Response(iter([b"one", b"two", b"three"]))
        if request.path.startswith("/large/"):
            return Response(b"x" * int(request.path[7:]))
        return Response(b"%b %b %b" % (request.method.encode(), request.target, body))


class Script:
    """A server of bytes: each connection goes through ``script(sock, number)`` in a greenlet of its own."""

    def __init__(self, script: Callable[[socket.socket, int], Any]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = self._listener.getsockname()
        self.url = "http://{}:{}".format(*self.address)
        self.accepted = 0
        self.heads: list[bytes] = []
        self.group = Group()
        self.accepting = self.group.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self.accepted += 1
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.group.spawn(self._serve, sock, self.accepted)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                self._script(sock, number)
        finally:
            sock.close()

    def head(self, sock: socket.socket) -> bytes:
        """Read the head of a request, byte by byte; empty at the end of input."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = sock.recv(1)
            if not piece:
                return b""
            data += piece
        self.heads.append(data)
        return data

    def close(self) -> None:
        self.group.kill()
        self._listener.close()


@contextlib.contextmanager
def scripted(script: Callable[..., Any]) -> Iterator[Script]:
    """Serve with ``script(server, sock, number)``."""
    server = Script(lambda sock, number: script(server, sock, number))
    try:
        yield server
    finally:
        server.close()


def gateway_to(*urls: str | ServerOptions, health: HealthOptions | None = None, **options: Any) -> Gateway:
    """Return a gateway to one group of servers. Options are those of ``UpstreamOptions`` and of ``Gateway``."""
    own = {name: options.pop(name) for name in list(options) if name in UpstreamOptions.__dataclass_fields__}
    servers = tuple(url if isinstance(url, ServerOptions) else ServerOptions(url) for url in urls)
    group = UpstreamOptions("site", servers, **own)
    routes = options.pop("routes", [Route("site")])
    return Gateway([(group, health or HealthOptions(), options.pop("sticky", None))], routes, **options)


def fields_of(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return fields as text, names in lower case."""
    return {name.decode().lower(): value.decode("latin-1") for name, value in raw}
