"""How a connection ends: close, abort, loss, and the states between."""

from __future__ import annotations

import os
import socket
import struct

import gevent
import pytest
from conftest import PATIENCE, read_all
from pairs import connected, read_all_fast, tcp_pair, wrap

from greensock import Connection, ConnectionClosed, ConnectionLost, DropReason, OperationTimeout, State
from greensock.lifecycle import TRANSITIONS
from greensock.poller import get_poller


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    """A connection and the socket of its peer."""
    yield from connected(request.param)


def test_close_wakes_blocked_downcalls(pair):
    """Rule 8."""
    conn, peer = pair
    reading = gevent.spawn(conn.recv)
    first, second = gevent.spawn(conn.send, b"x" * 10_000_000), gevent.spawn(conn.send, b"y")
    gevent.sleep(0)
    conn.close()
    conn.close()
    for greenlet in (reading, first, second):
        with pytest.raises(ConnectionClosed):
            greenlet.get(timeout=PATIENCE)
    # What was begun is finished, what was not begun is withdrawn.
    assert read_all_fast(peer) == b"x" * 10_000_000
    peer.close()
    assert conn.wait_closed(PATIENCE)
    with pytest.raises(ConnectionClosed):
        conn.recv()


def test_close_lingers_no_longer_than_linger_timeout(pair):
    conn, peer = pair
    conn.linger_timeout = 0.05
    conn.close()
    assert conn.state is State.CLOSING
    assert conn.wait_closed(PATIENCE)
    assert conn.fileno() == -1
    assert peer.recv(1) == b""


def test_close_drains_within_bounds():
    ours, theirs = tcp_pair()
    conn = wrap(ours, linger=5)
    conn.close()

    def flood():
        while True:
            theirs.sendall(b"x" * 100_000)
            gevent.sleep(0)

    with pytest.raises(ConnectionError):
        flood()
    assert conn.wait_closed(PATIENCE)
    theirs.close()


def test_abort_sends_reset():
    ours, theirs = tcp_pair()
    conn = wrap(ours)
    conn.send(b"x")
    conn.abort()
    conn.abort()
    assert conn.state is State.CLOSED
    with pytest.raises(ConnectionResetError):
        read_all(theirs)
    theirs.close()


def test_lost_connection():
    ours, theirs = tcp_pair()
    conn = wrap(ours)
    reading, sending = gevent.spawn(conn.recv), gevent.spawn(conn.send, b"x" * 50_000_000)
    gevent.sleep(0.01)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    for greenlet in (reading, sending):
        with pytest.raises(ConnectionLost) as caught:
            greenlet.get(timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, OSError)
    assert conn.drop_reason is DropReason.LOST
    assert conn.fileno() == -1


def test_wait_disconnect(pair):
    conn, peer = pair
    assert conn.wait_disconnect(0.01) is False
    peer.sendall(b"unread")
    assert conn.wait_disconnect(0.01) is False
    waiting = gevent.spawn(conn.wait_disconnect, PATIENCE)
    gevent.sleep(0)
    peer.close()
    assert waiting.get() is True
    assert conn.recv() == b"unread"


@pytest.mark.parametrize("linger", [0, 0.05])
@pytest.mark.parametrize("end", ["close", "abort", "lost"])
def test_states_change_as_the_table_says(end, linger):
    class Watched(Connection):
        __slots__ = ("seen",)

        def __setattr__(self, name, value):
            if name == "_state" and hasattr(self, "_state") and value is not self._state:
                assert value in TRANSITIONS[self._state]
            super().__setattr__(name, value)

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    conn = Watched(get_poller(), ours.detach(), socket.AF_UNIX, "peer")
    conn.linger_timeout = linger
    get_poller().register(conn)
    if end == "lost":
        theirs.close()
        with pytest.raises(ConnectionLost):
            conn.send(b"x")
    else:
        getattr(conn, end)()
    conn.close()
    conn.abort()
    theirs.close()
    assert conn.wait_closed(PATIENCE)
    assert conn.state is State.CLOSED


def test_a_stranger_with_the_same_descriptor_gets_a_harmless_event(pair):
    """Rule 3: an event for a descriptor that was closed and reused."""
    conn, peer = pair
    poller = get_poller()
    poller._tell(conn, 0x2000 | 0x10 | 0x1)  # RDHUP, HUP and IN that were meant for another
    with pytest.raises(OperationTimeout):
        conn.recv(timeout=0.01)
    peer.sendall(b"x")
    assert conn.recv() == b"x"


def test_after_a_fork_the_child_has_a_poller_of_its_own(pair):
    """Rule 12."""
    conn, peer = pair
    before = get_poller()
    child = gevent.os.fork()
    if not child:
        status = 1
        try:
            status = 0 if get_poller() is not before and conn.fileno() == -1 else 2
        finally:
            os._exit(status)
    assert gevent.os.waitpid(child, 0)[1] == 0
    peer.sendall(b"x")
    assert conn.recv() == b"x"
