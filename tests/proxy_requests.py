"""Requests through a proxy, for its tests."""

from __future__ import annotations

import socket

import pytest
from conftest import read_all
from proxies import Origin, Recorded, gateway_to


def ask(sock, text, body=b""):
    """Send a request that closes and return status and everything that comes."""
    sock.sendall(text.replace("\n", "\r\n").encode() + body)
    answer = read_all(sock)
    return int(answer[9:12]), answer


CLOSE = "Host: a\nConnection: close\n\n"


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def proxied(serve, connect):
    """Start a proxy before servers: ``proxied(url, ...)`` gives it and a socket to it."""
    gateways = []

    def start(*urls, kind=Recorded, gateway=None, server_options=None, **options):
        gateways.append(gateway or gateway_to(*urls, **options))
        proxy = serve(kind, ("127.0.0.1", 0), gateway=gateways[-1], **(server_options or {}))
        return proxy, connect(proxy)

    yield start
    for gateway in gateways:
        for upstream in gateway.upstreams.values():
            upstream.close()
            assert all(not server.used for server in upstream.all), "a request was not counted out"


@pytest.fixture
def origin(serve):
    return serve(Origin)
