"""The receiving downcalls, each over a real socket pair or TCP connection."""

from __future__ import annotations

import socket
import time

import gevent
import pytest
from conftest import PATIENCE
from pairs import connected

from greensock import ConnectionBusy, IncompleteMessage, MessageTooLong, OperationTimeout


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    """A connection and the socket of its peer."""
    yield from connected(request.param)


def test_recv(pair):
    conn, peer = pair
    peer.sendall(b"hello")
    assert conn.recv(3) == b"hel"
    assert conn.recv() == b"lo"
    reading = gevent.spawn(conn.recv)
    gevent.sleep(0)
    peer.sendall(b"more")
    assert reading.get(timeout=PATIENCE) == b"more"
    peer.close()
    assert conn.recv() == conn.recv() == b""
    with pytest.raises(ValueError, match="max_bytes"):
        conn.recv(0)


def test_recv_into(pair):
    conn, peer = pair
    buffer = bytearray(4)
    peer.sendall(b"abcdef")
    assert conn.recv_into(buffer) == 4
    assert buffer == b"abcd"
    conn.unread(b"X")
    assert conn.recv_into(memoryview(buffer)[1:]) == 1
    assert buffer == b"aXcd"
    assert conn.recv_into(buffer) == 2
    peer.close()
    assert conn.recv_into(buffer) == 0


def test_read_exactly_across_pieces(pair):
    conn, peer = pair
    reading = gevent.spawn(conn.read_exactly, 10)
    for byte in b"0123456789ab":
        peer.sendall(bytes([byte]))
        gevent.sleep(0)
    assert reading.get(timeout=PATIENCE) == b"0123456789"
    assert conn.read_exactly(0) == b""
    peer.close()
    with pytest.raises(IncompleteMessage) as caught:
        conn.read_exactly(5)
    assert (caught.value.partial, caught.value.expected) == (b"ab", 5)
    assert conn.read_exactly(5) == b""


def test_read_until_and_limits(pair):
    conn, peer = pair
    peer.sendall(b"a--b-c--" + b"12345--" + b"123456--")
    assert conn.read_until(b"--", 5) == b"a"
    assert conn.read_until(b"--", 5) == b"b-c"
    assert conn.read_until(b"--", 5) == b"12345"
    with pytest.raises(MessageTooLong) as caught:
        conn.read_until(b"--", 5)
    assert (caught.value.limit, caught.value.value) == ("max_bytes", 5)
    assert conn.read_until(b"--", 6) == b"123456"
    peer.sendall(b"x" * 7)
    with pytest.raises(MessageTooLong):
        conn.read_until(b"--", 5)
    assert conn.recv() == b"x" * 7
    peer.sendall(b"half")
    peer.close()
    with pytest.raises(IncompleteMessage):
        conn.read_until(b"--")
    assert conn.read_until(b"--") is None


def test_lines(pair):
    conn, peer = pair
    peer.sendall(b"one\r\ntwo\n\nfour\n")
    peer.shutdown(socket.SHUT_WR)
    assert conn.read_line() == b"one"
    assert list(conn) == [b"two", b"", b"four"]
    assert conn.read_line() is None


def test_many_lines_do_not_take_quadratic_time(pair):
    conn, peer = pair
    writing = gevent.spawn(peer.sendall, b"x\n" * 200_000)
    started = time.process_time()
    for _ in range(200_000):
        assert conn.read_line() == b"x"
    assert time.process_time() - started < 5
    writing.get()


def test_unread(pair):
    conn, peer = pair
    peer.sendall(b"rest")
    conn.unread(b"b")
    conn.unread(b"a")
    assert conn.statistics().bytes_held == 2
    assert conn.recv() == b"ab"
    assert conn.recv() == b"rest"


def test_timeouts_leave_the_connection_usable(pair):
    conn, peer = pair
    for timeout in (0, 0.01):
        with pytest.raises(OperationTimeout) as caught:
            conn.recv(timeout=timeout)
        assert (caught.value.operation, caught.value.seconds) == ("recv", timeout)
    conn.recv_timeout = 0.01
    with pytest.raises(TimeoutError):
        conn.recv()
    with pytest.raises(OperationTimeout):
        conn.read_exactly(1)
    peer.sendall(b"x")
    assert conn.recv(timeout=0) == b"x"


def test_timeout_is_for_the_whole_call(pair):
    conn, peer = pair

    def drip():
        while True:
            peer.sendall(b"x")
            gevent.sleep(0.02)

    dripping = gevent.spawn(drip)
    with pytest.raises(OperationTimeout):
        conn.read_exactly(1_000_000, timeout=0.1)
    dripping.kill()
    assert conn.recv().strip(b"x") == b""


def test_gevent_timeout_and_kill_pass_through(pair):
    conn, peer = pair
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        conn.recv()
    reading = gevent.spawn(conn.recv)
    gevent.sleep(0)
    reading.kill()
    peer.sendall(b"x")
    assert conn.recv() == b"x"


def test_two_readers_collide(pair):
    """Rule 8."""
    conn, peer = pair
    first = gevent.spawn(conn.recv)
    gevent.sleep(0)
    with pytest.raises(ConnectionBusy):
        conn.recv()
    peer.sendall(b"x")
    assert first.get(timeout=PATIENCE) == b"x"
