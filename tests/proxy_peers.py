"""Clients and servers that fail, for the tests of the proxy."""

from __future__ import annotations

import contextlib
import socket

import pytest
from conftest import PATIENCE, wait_until
from proxies import Origin, Recorded, gateway_to

CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"


KEEP = b"Host: a\r\n\r\n"


LARGE = 30_000_000


def held_bytes(server):
    pool = server.pool.state.statistics()
    return server.used or pool.used or pool.waiting


def status_of(answer):
    return int(answer[9:12]) if answer else 0


def record_of(proxy):
    """Wait for the only record, and return it."""
    wait_until(lambda: proxy.records)
    [record] = proxy.records
    return record


def server_of(proxy, place=0):
    return proxy.gateway.upstreams["site"].all[place]


def health_of(proxy, place=0):
    found = server_of(proxy, place).health.statistics()
    return found.succeeded, found.failed


def wait_gone(sock):
    """Wait until the other side has left; return what came before, and whether it ended with a reset."""
    pieces = []
    try:
        while piece := sock.recv(65536):
            pieces.append(piece)
    except ConnectionError:
        return b"".join(pieces), True
    return b"".join(pieces), False


LENGTH, CHUNKED = b"Content-Length: 10", b"Transfer-Encoding: chunked"


SPLICED = b"Content-Length: %d" % LARGE


def request(method):
    return b"%b /x HTTP/1.1\r\nContent-Length: 3\r\n%babc" % (method.encode(), CLOSE)


def says(answer):
    """Return a script: read the head, say that, and nothing more."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(answer)
        wait_gone(sock)

    return script


GET = b"GET / HTTP/1.1\r\n" + CLOSE


LONG_POST = b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n" + CLOSE


@pytest.fixture
def proxied(serve):
    """Start a proxy before servers; see ``gateway_to``."""
    gateways = []

    def start(*urls, server_options=None, **options):
        gateways.append(gateway_to(*urls, **options))
        return serve(Recorded, gateway=gateways[-1], **(server_options or {}))

    yield start
    for gateway in gateways:
        servers = gateway.upstreams["site"].all
        wait_until(lambda servers=servers: not any(held_bytes(each) for each in servers), 5)
        gateway.upstreams["site"].close()
        assert not any(each.pool.state.origins for each in servers)


@pytest.fixture
def origin(serve):
    return serve(Origin)


@pytest.fixture
def dial():
    """Connect to a proxy: ``dial(proxy, data)`` gives a socket."""
    with contextlib.ExitStack() as stack:

        def make(proxy, data=b""):
            sock = stack.enter_context(socket.create_connection(proxy.address))
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(data)
            return sock

        yield make
