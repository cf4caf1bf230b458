"""Servers of bytes and of ours, for the tests of the HTTP client."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from http_messages import plain_fields
from pairs import drain
from scripts import Script, scripted

from greensock.http import (
    HTTPClient,
    HTTPError,
    HTTPServer,
    PoolStatistics,
    Response,
)

LONG = b"0123456789abcdef" * 65536  # 1 MiB


IDLE_ONE = PoolStatistics(used=0, idle=1, waiting=0)


NOTHING = PoolStatistics(used=0, idle=0, waiting=0)


def answering(*answers: bytes, then: Callable[[socket.socket], Any] = drain) -> Callable[..., Any]:
    """A script that reads a head before each answer, and does ``then`` at the end."""

    def script(server: Script, sock: socket.socket, number: int) -> None:
        for answer in answers:
            if not server.head(sock):
                return
            sock.sendall(answer)
        then(sock)

    return script


def _slowly(pieces):
    for piece in pieces:
        gevent.sleep(0)
        yield piece


class Site(HTTPServer):
    """What the client's own features are tried on."""

    def handle_request(self, request):
        if request.path == "/echo":
            return Response(request.body.read_all(1 << 24), headers={"X-Framing": framing(request)})
        if request.path == "/mirror":
            return Response(iter(request.body))
        if request.path == "/trailers":
            body = request.body.read_all()
            return Response(f"{body!r} {plain_fields(request.trailers)}")
        if request.path == "/stream":
            return Response(LONG[:65536] for _ in range(int(request.query)))
        if request.path == "/sized":
            size, _, slow = request.query.partition("&")
            pieces = [LONG[: int(size) - 9], LONG[:9]]
            return Response(_slowly(pieces) if slow else iter(pieces), headers={"Content-Length": size})
        if request.path == "/fields":
            return Response("\n".join(f"{name}: {value}" for name, value in request.headers))
        if request.path == "/empty":
            return Response(status=204)
        if request.path == "/unmodified":
            return Response(status=304)
        if request.path == "/slow":
            gevent.sleep(float(request.query))
            return Response("slow")
        if request.path == "/number":
            if random.random() < 0.3:
                gevent.sleep(0)
            return Response(f"number {request.query}", headers={"X-Number": request.query})
        if request.path == "/":
            return Response(f"{request.method} {request.host}")
        raise HTTPError(404)


def framing(request):
    return "chunked" if request.head.is_chunked else str(request.head.content_length)


def pieces():
    yield b"one"
    yield b""
    yield bytearray(b"two")


def endless(sent):
    while True:
        sent.append(1)
        yield LONG[:65536]


@pytest.fixture
def client() -> Iterator[Callable[..., HTTPClient]]:
    """Make clients, closed after the test."""
    clients: list[HTTPClient] = []

    def make(**options: Any) -> HTTPClient:
        clients.append(HTTPClient(**options))
        return clients[-1]

    yield make
    for each in clients:
        each.close()
        assert each.statistics() == NOTHING, "a slot was lost"


@pytest.fixture
def raw() -> Iterator[Callable[..., Script]]:
    """Serve with ``script(server, sock, number)``."""
    with contextlib.ExitStack() as stack:
        yield lambda script: stack.enter_context(scripted(script))


@pytest.fixture
def site(serve):
    server = serve(Site)
    server.url = f"http://127.0.0.1:{server.server_port}"
    return server
