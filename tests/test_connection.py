"""What needs both halves of a connection: splice, and looking at it."""

from __future__ import annotations

import os
import socket

import gevent
import pytest
from conftest import PATIENCE, read_exactly
from pairs import read_exactly_fast, tcp_pair, wrap

from greensock import ConnectionClosed


@pytest.mark.parametrize("count", [None, 1_000_000])
def test_splice(count):
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    content = os.urandom(2_000_000)
    left.sendall(b"head")
    assert source.read_exactly(2) == b"he"

    def feed():
        left.sendall(content)
        left.shutdown(socket.SHUT_WR)

    feeding = gevent.spawn(feed)
    moving = gevent.spawn(source.splice, target, count)
    gevent.sleep(0.001)
    after = gevent.spawn(target.send, b"after")
    total = 2_000_002 if count is None else count
    data = read_exactly_fast(right, total + 5)
    assert data == (b"ad" + content)[:total] + b"after"
    assert moving.get(timeout=PATIENCE) == total
    after.get()
    if count is not None:
        assert source.recv(10) == (b"ad" + content)[total : total + 10]
        source.abort()
        feeding.kill()
    for thing in (left, right):
        thing.close()
    source.abort()
    target.abort()


def test_splice_that_is_killed_loses_nothing_that_was_taken():
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    moving = gevent.spawn(source.splice, target)
    left.sendall(b"x" * 1000)
    assert read_exactly(right, 1000) == b"x" * 1000
    moving.kill()
    target.send(b"still here")
    assert read_exactly(right, 10) == b"still here"
    left.close()
    right.close()
    source.abort()
    target.abort()


def test_options_and_addresses():
    ours, theirs = tcp_pair()
    peer_address = theirs.getsockname()
    local = ours.getsockname()
    conn = wrap(ours)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert len(conn.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)) == 8
    assert conn.local_address == local
    assert os.fstat(conn.fileno())
    assert peer_address != local
    conn.anything = 1
    conn.abort()
    with pytest.raises(ConnectionClosed):
        conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    theirs.close()
