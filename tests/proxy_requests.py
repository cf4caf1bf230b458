"""Requests through a proxy, for its tests."""

from __future__ import annotations

import pytest
from conftest import read_all
from proxies import Origin, Recorded, gateways


def ask(sock, text, body=b""):
    """Send a request that closes and return status and everything that comes."""
    sock.sendall(text.replace("\n", "\r\n").encode() + body)
    answer = read_all(sock)
    return int(answer[9:12]), answer


CLOSE = "Host: a\nConnection: close\n\n"


@pytest.fixture
def proxied(serve, connect):
    """Start a proxy before servers: ``proxied(url, ...)`` gives it and a socket to it."""
    with gateways() as gateway:

        def start(*urls, kind=Recorded, server_options=None, **options):
            proxy = serve(kind, gateway=gateway(*urls, **options), **(server_options or {}))
            return proxy, connect(proxy)

        yield start


@pytest.fixture
def origin(serve):
    return serve(Origin)
