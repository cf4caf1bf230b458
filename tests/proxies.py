"""Proxies and the servers behind them, for the tests of the proxy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from greensock.http import HTTPServer, Response
from greensock.proxy import Gateway, HealthOptions, Record, ReverseProxy, Route, ServerOptions, UpstreamOptions


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


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def gateway_to(*urls: str | ServerOptions, health: HealthOptions | None = None, **options: Any) -> Gateway:
    """Return a gateway to one group of servers. Options are those of ``UpstreamOptions`` and of ``Gateway``."""
    own = {name: options.pop(name) for name in list(options) if name in UpstreamOptions.__dataclass_fields__}
    servers = tuple(url if isinstance(url, ServerOptions) else ServerOptions(url) for url in urls)
    group = UpstreamOptions("site", servers, **own)
    routes = options.pop("routes", [Route("site")])
    return Gateway([(group, health or HealthOptions(), options.pop("sticky", None))], routes, **options)


@contextlib.contextmanager
def gateways() -> Iterator[Callable[..., Gateway]]:
    """Make gateways as ``gateway_to`` does; at the end they are closed, and no request may be counted in."""
    made: list[Gateway] = []

    def make(*urls: str | ServerOptions, **options: Any) -> Gateway:
        made.append(gateway_to(*urls, **options))
        return made[-1]

    yield make
    for gateway in made:
        for upstream in gateway.upstreams.values():
            upstream.close()
            assert all(not server.used for server in upstream.all), "a request was not counted out"


def fields_of(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return fields as text, names in lower case."""
    return {name.decode().lower(): value.decode("latin-1") for name, value in raw}
