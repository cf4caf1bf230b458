"""Two connections joined: bytes both ways, ends one by one, and an end when nothing moves."""

from __future__ import annotations

import socket
from time import monotonic

import gevent
import pytest
from conftest import read_all, read_exactly, wait_until
from pairs import reset, tcp_pair, wrap
from proxies import Recorded, gateway_to, scripted

from greensock import State
from greensock.http import ProxyTimeouts
from greensock.http.proxy.tunnel import run_tunnel


class Joined:
    """A tunnel; ``left`` and ``right`` are the sockets at its ends."""

    def __init__(self, timeout):
        (mine, self.left), (other, self.right) = tcp_pair(), tcp_pair()
        self.conns = wrap(mine), wrap(other)
        self.job = gevent.spawn(run_tunnel, *self.conns, timeout)

    def close(self):
        self.job.kill()
        for each in self.conns:
            each.abort()
        self.left.close()
        self.right.close()


@pytest.fixture
def joined():
    made = []

    def join(timeout=None):
        made.append(Joined(timeout))
        return made[-1]

    yield join
    for each in made:
        each.close()


SIDES = pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])


@SIDES
def test_bytes_go_both_ways_until_both_have_ended(joined, sides):
    tunnel = joined()
    first, last = (getattr(tunnel, side) for side in sides)
    first.sendall(b"there")
    assert read_exactly(last, 5) == b"there"
    last.sendall(b"and back")
    assert read_exactly(first, 8) == b"and back"
    first.shutdown(socket.SHUT_WR)
    assert read_all(last) == b""
    last.sendall(b"still " * 100_000)
    last.shutdown(socket.SHUT_WR)
    assert read_all(first) == b"still " * 100_000
    assert tunnel.job.get() is True


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_reset_reaches_the_other_side(joined, side):
    tunnel = joined()
    reset(getattr(tunnel, side))
    with pytest.raises(ConnectionResetError):
        read_all(tunnel.right if side == "left" else tunnel.left)
    assert tunnel.job.get() is True
    assert all(conn.state is State.CLOSED for conn in tunnel.conns)


def test_silence_ends_it(joined):
    tunnel, began = joined(0.05), monotonic()
    assert tunnel.job.get() is False
    assert monotonic() - began >= 0.05
    for sock in (tunnel.left, tunnel.right):
        with pytest.raises(ConnectionResetError):
            read_all(sock)


@SIDES
def test_bytes_one_way_are_no_silence(joined, sides):
    tunnel = joined(0.3)
    source, target = (getattr(tunnel, side) for side in sides)
    until = monotonic() + 0.7
    while monotonic() < until:
        source.sendall(b"x")
        assert read_exactly(target, 1) == b"x"
        gevent.sleep(0.02)
    assert not tunnel.job.ready()
    assert tunnel.job.get() is False, "and then it is silent"


def test_who_takes_nothing_ends_it(joined):
    tunnel = joined(0.1)
    with pytest.raises(ConnectionResetError):
        tunnel.left.sendall(bytes(1 << 27))
    assert tunnel.job.get() is False


def test_the_log_says_that_it_was_silent(serve):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        while data := sock.recv(65536):
            sock.sendall(data)

    with scripted(script) as server:
        gateway = gateway_to(server.url, timeouts=ProxyTimeouts(tunnel=0.1))
        proxy = serve(Recorded, gateway=gateway)
        for is_ended in (True, False):
            with socket.create_connection(proxy.address) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
                while not sock.recv(4096).endswith(b"\r\n\r\n"):
                    pass
                if is_ended:
                    sock.shutdown(socket.SHUT_WR)
                    assert read_all(sock) == b""
                else:
                    with pytest.raises(ConnectionResetError):
                        read_all(sock)
        wait_until(lambda: len(proxy.records) == 2)
        assert [(record.status, record.reason) for record in proxy.records] == [(101, ""), (101, "tunnel-timeout")]
        gateway.upstreams["site"].close()
