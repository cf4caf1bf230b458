"""How a connection ends: close, abort, loss, and the states between."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import termios
import time

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, PAUSE, blocked, read_all, read_exactly, wait_until
from pairs import connected, let_engine_look, read_all_fast, reset, tcp_pair, wrap
from served import passes

from greensock import Connection, ConnectionClosed, ConnectionLost, DropReason, OperationTimeout, State
from greensock.core.lifecycle import LINGER_BYTES, TRANSITIONS
from greensock.core.poller import get_poller
from greensock.core.syscalls import EVENT_HANGUP


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
    conn.wait_closed(PATIENCE)
    with pytest.raises(ConnectionClosed):
        conn.recv()


def test_a_close_goes_on_when_the_reader_has_left(pair):
    conn, peer = pair
    conn.linger_timeout = 60
    reading = gevent.spawn(conn.recv)
    gevent.sleep(0)
    conn.close()
    with pytest.raises(ConnectionClosed):
        reading.get(timeout=PATIENCE)
    assert peer.recv(1) == b""
    peer.close()
    conn.wait_closed(PATIENCE)


def test_a_wake_up_that_comes_too_late_reaches_nobody(pair, capsys):
    """Between the order and the wake-up the greenlet was killed."""
    conn, _ = pair
    sending, reading = gevent.spawn(conn.send, b"x" * 10_000_000), gevent.spawn(conn.recv)
    gevent.sleep(0)
    for greenlet in (sending, reading):
        greenlet.kill(block=False)
    conn._wake_sender(conn._out[0])
    conn._wake_reader()
    let_engine_look()
    assert sending.ready()
    assert reading.ready()
    assert capsys.readouterr().err == ""


def test_who_was_woken_by_the_end_is_left_in_peace_from_then_on(pair):
    """An abort orders two wake-ups: the sender that the first one reached waits for something else by the second."""
    conn, _ = pair
    gate = gevent.event.Event()

    def send():
        with pytest.raises(ConnectionClosed):
            conn.send(bytes(10_000_000))
        return gate.wait()

    sending = gevent.spawn(send)
    wait_until(lambda: conn._out)
    conn.abort()
    let_engine_look()
    gate.set()
    assert sending.get(timeout=PATIENCE) is True


def test_close_lingers_no_longer_than_linger_timeout(pair):
    conn, peer = pair
    conn.linger_timeout = 0.05
    conn.close()
    assert conn.state is State.CLOSING
    conn.wait_closed(PATIENCE)
    assert conn.fileno() == -1
    assert peer.recv(1) == b""


def test_close_drains_within_bounds():
    ours, theirs = tcp_pair()
    conn = wrap(ours, linger=60)
    conn.close()

    def flood():
        while True:
            theirs.sendall(b"x" * 100_000)
            gevent.sleep(0)

    with pytest.raises(ConnectionError):
        flood()
    conn.wait_closed(PATIENCE)
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
    wait_until(lambda: conn._reader is not None and conn.statistics().bytes_queued)
    reset(theirs)
    for greenlet in (reading, sending):
        with pytest.raises(ConnectionLost) as caught:
            greenlet.get(timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, OSError)
    assert conn.drop_reason is DropReason.LOST
    assert conn.fileno() == -1


def test_wait_disconnect(pair):
    conn, peer = pair
    with pytest.raises(OperationTimeout, match="still there") as caught:
        conn.wait_disconnect(0.01)
    assert (caught.value.operation, caught.value.connection) == ("wait_disconnect", conn)
    peer.sendall(b"unread")
    with pytest.raises(OperationTimeout, match="still there") as caught:
        conn.wait_disconnect(0.01)
    assert (caught.value.operation, caught.value.connection) == ("wait_disconnect", conn)
    waiting = gevent.spawn(conn.wait_disconnect, PATIENCE)
    gevent.sleep(0)
    peer.close()
    waiting.get(timeout=PATIENCE)
    assert conn.recv() == b"unread"


@pytest.mark.parametrize("end", ["peer closes", "peer shuts down", "close", "abort"])
def test_notify_disconnect(pair, end):
    conn, peer = pair
    told = []
    assert conn.notify_disconnect(lambda: told.append("first"))
    assert conn.notify_disconnect(lambda: told.append(end))  # takes the place of the first
    peer.sendall(b"unread")
    let_engine_look()
    assert not told
    if end == "peer closes":
        peer.close()
    elif end == "peer shuts down":
        peer.shutdown(socket.SHUT_WR)
    else:
        getattr(conn, end)()
    wait_until(lambda: told)
    conn.abort()
    let_engine_look()
    assert told == [end]  # once
    assert not conn.notify_disconnect(lambda: told.append("late"))


def test_notify_disconnect_tells_what_has_happened_before(pair):
    conn, peer = pair
    peer.shutdown(socket.SHUT_WR)
    conn.wait_disconnect(PATIENCE)
    told = []
    assert not conn.notify_disconnect(lambda: told.append(1))
    assert conn.notify_disconnect(None)
    conn.abort()
    assert not told


def test_notify_disconnect_can_be_taken_back(pair):
    conn, _ = pair
    told = []
    conn.notify_disconnect(lambda: told.append(1))
    conn.notify_disconnect(None)
    conn.abort()
    let_engine_look()
    assert not told


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
    conn.wait_closed(PATIENCE)
    assert conn.state is State.CLOSED
    assert conn.fileno() == -1


@pytest.mark.parametrize("end", ["close", "abort"])
def test_who_has_a_duplicate_is_told_when_the_descriptor_is_closed(end):
    told = []

    class Duplicated(Connection):
        is_duplicated = True

        def descriptor_closed(self):
            told.append(self.fileno())

    ours, theirs = tcp_pair()
    conn = wrap(ours, kind=Duplicated)
    getattr(conn, end)()
    theirs.close()
    conn.wait_closed(PATIENCE)
    assert told == [-1]


@pytest.mark.parametrize("end", ["close", "abort"])
def test_who_waits_for_the_end_is_told_when_the_program_ends_it(pair, end):
    conn, _ = pair
    conn.linger_timeout, told = 60, []  # not by its end
    assert conn.notify_disconnect(lambda: told.append(conn.state))
    waiting = gevent.spawn(conn.wait_disconnect)
    assert blocked(waiting)
    getattr(conn, end)()
    assert len(told) == 1
    waiting.get(timeout=PATIENCE)


def test_a_close_lingers_for_five_seconds_unless_told_otherwise():
    ours, theirs = socket.socketpair()
    conn = Connection(get_poller(), ours.detach(), socket.AF_UNIX, "peer")
    assert conn.linger_timeout == 5.0
    theirs.close()
    conn.abort()


#: A server in a process without standard input, so that a connection of it has the number 0.
NUMBER_0 = """
from gevent import monkey
monkey.patch_all()
import os, socket, time
from greensock import Lines, OperationTimeout, Server

seen = []

class Echo(Server):
    def connection_new(self, conn):
        seen.append(conn)

    def connection_recv(self, conn, data):
        try:
            conn.recv(timeout=0)
        except OperationTimeout:
            conn.send(data)

server = Echo(("127.0.0.1", 0), stop_timeout=1, max_send_queue=20_000_000)
server.start()
peer = socket.socket()
monkey.get_original("os", "close")(0)
peer.connect(server.address)
peer.sendall(b"text")
assert peer.recv(10) == b"text"
(conn,) = seen
assert conn._fd == 0, conn  # not fileno(), which has the connection treated with care
conn.send_nowait(bytes(20_000_000))
conn.linger_timeout = 20.0  # it is looked at for the first time after a quarter of that
conn.close()
assert conn._flushing is not None, "there is no end to it else"
began = time.monotonic()
got = 0
while piece := peer.recv(1 << 20):
    got += len(piece)
assert got == 20_000_000, got
assert time.monotonic() - began < 1.8, "FIN goes out behind the data, and not with the end of all"
peer.close()
conn.wait_closed(5)
assert conn.fileno() == -1
server.stop()
try:
    os.fstat(0)
except OSError:
    print("all is well")
"""


def test_a_connection_may_have_the_number_0():
    done = subprocess.run([sys.executable, "-c", NUMBER_0], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("all is well\n", "")


def test_an_end_that_is_a_strangers_is_told_to_nobody(pair):
    """The event was about whoever had the descriptor before."""
    conn, peer = pair
    told = []
    conn.notify_disconnect(lambda: told.append(1))
    waiting = gevent.spawn(conn.wait_disconnect, PATIENCE)
    gevent.sleep(0)
    get_poller()._tell(conn, EVENT_HANGUP)
    let_engine_look()
    assert not told
    assert not waiting.ready()
    peer.close()
    waiting.get(timeout=PATIENCE)
    assert told


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


def free_input(conn):
    """Return how many bytes wait to be read."""
    return struct.unpack("i", fcntl.ioctl(conn.fileno(), termios.FIONREAD, b"\0" * 4))[0]


def test_an_end_that_came_before_the_close_is_found_by_it(pair):
    """No further event tells of it: a close that waits for one lingers in vain."""
    conn, peer = pair
    conn.linger_timeout = 60
    peer.sendall(b"unread")
    peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: conn._thorough and conn._readable)
    conn.close()
    assert conn.state is State.CLOSED


@pytest.mark.parametrize(("short", "ends"), [(1, False), (0, True)])
def test_a_closing_connection_drops_so_many_bytes_and_no_more(short, ends):
    """Rule 10: at the limit and one below, with a peer that never sends FIN."""
    ours, theirs = tcp_pair()
    conn = wrap(ours, linger=60)
    conn.close()
    theirs.sendall(b"x" * (LINGER_BYTES - short))
    if ends:
        conn.wait_closed(PATIENCE)
    else:
        wait_until(lambda: not unacknowledged(theirs) and not free_input(conn))
        assert conn.state is State.CLOSING
        theirs.sendall(b"x")
        conn.wait_closed(PATIENCE)
    theirs.close()


def unacknowledged(sock):
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]


def test_a_peer_that_drips_does_not_hold_a_closing_connection(pair):
    conn, peer = pair
    conn.linger_timeout = 0.05

    def drip():
        while True:
            peer.sendall(b"x")
            gevent.sleep(PAUSE)

    dripping = gevent.spawn(drip)
    conn.close()
    conn.wait_closed(PATIENCE)
    dripping.kill()


def test_a_peer_that_reads_nothing_is_reset_after_linger_timeout():
    ours, theirs = tcp_pair()
    conn = wrap(ours, linger=0.05)
    conn.send(b"x" * 8_000_000, close=True)
    conn.wait_closed(PATIENCE)
    with pytest.raises(ConnectionResetError):  # it must see that the answer was cut short
        read_all_fast(theirs)
    theirs.close()


def test_a_peer_that_reads_slowly_gets_all_of_it(pair):
    conn, peer = pair
    conn.linger_timeout = 0.5
    pause = 0.16 * conn.linger_timeout
    conn.send(b"x" * 8_000_000, close=True)
    assert conn._flushing._is_exact == (peer.family == socket.AF_INET), "of a Unix socket the kernel counts costs"
    started = time.monotonic()
    for _ in range(8):
        read_exactly(peer, 1_000_000)
        gevent.sleep(pause)  # each step is progress, all of them take longer than linger_timeout
    assert time.monotonic() - started > conn.linger_timeout
    assert peer.recv(1) == b""
    peer.close()
    conn.wait_closed(PATIENCE)


@pytest.mark.parametrize("flushing", [False, True])
def test_what_comes_while_closing_does_not_keep_the_engine_busy(pair, flushing):
    conn, peer = pair
    conn.linger_timeout = 60
    conn.max_send_queue = 8_000_000
    if flushing:
        conn.send_nowait(b"x" * 8_000_000)
    conn.close()
    peer.sendall(b"late")
    assert passes(0.02) < 10
    read_all_fast(peer)
    peer.close()
    conn.wait_closed(PATIENCE)
