"""The WSGI server of a worker where ``proxy_protocol`` is on: a connection may begin with a PROXY header.

As gunicorn has it: there may be one or not, so that the same port serves HAProxy and a health check by hand; of who is
not in ``proxy_allow_ips`` a header gets 403, and a request without one is served; a Unix socket's peers are allowed.
What a header says holds for all requests of its connection: ``REMOTE_ADDR`` and ``REMOTE_PORT`` are the client's, and
``PROXY_PROTOCOL``, ``PROXY_ADDR`` and ``PROXY_PORT`` are there. Whom to believe about https (``forwarded_allow_ips``)
goes by who connected.

Where gunicorn's is not what https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt says, that holds: with TLS the
header stands in front of the handshake; LOCAL, UNKNOWN and what has no address of TCP leave the connection's own, where
gunicorn's environ has None or its answer is 400; checksums are checked, and no header is longer than 4 kB.
"""

from __future__ import annotations

from typing import Any

from greensock import POSTPONE, State, Verdict
from greensock.gunicorn.settings import trusts
from greensock.gunicorn.wsgi_site import WSGISite, ip_of
from greensock.http.server.http_server import HTTPConnection
from greensock.http.server.request import Request
from greensock.http.server.response import HTTPError
from greensock.http.wsgi.wsgi_call import Answer
from greensock.proxy.proxy_protocol import BadProxyHeader, ProxyHeader, parse_proxy_header

__all__ = ["IntroducedConnection", "IntroducedSite"]

#: What a header begins with, for each value of ``proxy_protocol``.
LINE, BINARY = b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"
STARTS = {"v1": (LINE,), "v2": (BINARY,), "auto": (LINE, BINARY)}
#: What gunicorn calls the addresses and ports of the client, and of where it connected to.
ENDS = ("client_addr", "client_port", "proxy_addr", "proxy_port")


class HeaderRefused(Exception):
    """A header is not taken: what to answer, by which reason it is counted, and why."""

    def __init__(self, status: int, reason: str, why: object) -> None:
        super().__init__(str(why))
        self.answer = HTTPError(status)
        self.answer.args = (f"{status} {why}",)  # for the log; the client is told no more than the status
        self.reason = reason


class IntroducedConnection(HTTPConnection):
    """A connection, and what its PROXY header says."""

    __slots__ = ("begins", "introduction")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Whether nothing of it was served yet.
        self.begins = True
        #: What the header says, in gunicorn's words; None: there is none.
        self.introduction: dict[str, Any] | None = None


class IntroducedSite(WSGISite):
    """Serves an application on a socket whose connections may be introduced."""

    connection_class = IntroducedConnection

    def __init__(self, listener: Any, application: Any, worker: Any, errors: Any, software: str) -> None:
        super().__init__(listener, application, worker, errors, software)
        self._header_starts = STARTS[worker.cfg.proxy_protocol]
        self._may_introduce = trusts(worker.cfg.proxy_allow_ips)

    def connection_recv(self, conn: Any, data: bytes) -> Verdict | None:  # type: ignore[override]
        """Take the PROXY header off, if there is one; then serve."""
        if not conn.begins:
            super().connection_recv(conn, data)
            return None
        try:
            size = self._size_of_header(conn, data)
        except HeaderRefused as refused:
            self._see_begun(conn)
            self.refuse_request(conn, refused.answer, refused.reason)
            return None
        if size is None:
            self.head_watch.begin(conn, self.head_timeout)
            return POSTPONE
        self._see_begun(conn)
        if size < len(data) and conn.state is State.OPEN:
            super().connection_recv(conn, data[size:])
        return None

    def take_preface(self, conn: Any, data: bytes) -> int | None:
        """Take the PROXY header off that stands in front of a TLS handshake; None: it is not whole."""
        try:
            size = self._size_of_header(conn, data)
        except HeaderRefused as refused:
            self.refused[refused.reason] += 1
            self.worker.log.warning("Invalid request from ip=%s: %s", ip_of(conn), refused)
            raise ValueError(str(refused)) from None
        if size is not None:
            conn.begins = False
        return size

    def _see_begun(self, conn: IntroducedConnection) -> None:
        conn.begins = False
        if self.head_watch:
            self.head_watch.pop(conn, None)

    def _size_of_header(self, conn: IntroducedConnection, data: bytes) -> int | None:
        """Return how many bytes of what came first are a header, and note what it says; None: more must come.

        Raises:
            HeaderRefused: it is no header, or this peer may send none.
        """
        for start in self._header_starts:
            if data.startswith(start):
                break
            if start.startswith(data):
                return None
        else:
            return 0
        address = conn.address
        if isinstance(address, tuple) and not self._may_introduce(address[0]):
            why = f"a PROXY header of {address[0]}, which is not in proxy_allow_ips"
            raise HeaderRefused(403, "proxy-untrusted", why)
        try:
            found = parse_proxy_header(data)
        except BadProxyHeader as error:
            raise HeaderRefused(400, "proxy-header", error) from None
        if found is None:
            return None
        conn.introduction = _told(found[0])
        return found[1]

    # -- what is told of it

    def environ_of(self, answer: Answer) -> dict[str, Any]:
        environ = super().environ_of(answer)
        _introduce(answer.request, environ)
        return environ

    def small_environ(self, request: Request) -> dict[str, Any]:
        environ = super().small_environ(request)
        _introduce(request, environ)
        return environ


def _introduce(request: Request, environ: dict[str, Any]) -> None:
    said: dict[str, Any] | None = request.connection.introduction  # type: ignore[attr-defined]
    if said is None:
        return
    environ["PROXY_PROTOCOL"] = said["proxy_protocol"]
    if said["client_addr"] is not None:
        environ["REMOTE_ADDR"] = said["client_addr"]
        environ["REMOTE_PORT"] = str(said["client_port"])
        environ["PROXY_ADDR"] = said["proxy_addr"]
        environ["PROXY_PORT"] = str(said["proxy_port"])


def _told(header: ProxyHeader) -> dict[str, Any]:
    """Return what a header says as gunicorn's ``proxy_protocol_info``."""
    source, destination = header.source, header.destination
    if isinstance(source, tuple) and isinstance(destination, tuple):
        kind, ends = "TCP6" if ":" in source[0] else "TCP4", (*source, *destination)
        return dict(zip(("proxy_protocol", *ENDS), (kind, *ends), strict=True))
    kind = "LOCAL" if header.is_local else "UNKNOWN" if header.version == 1 else "UNSPEC"
    return {"proxy_protocol": kind, **dict.fromkeys(ENDS)}
