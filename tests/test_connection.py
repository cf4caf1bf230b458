"""The downcalls of a connection, each over a real socket pair or TCP connection."""

from __future__ import annotations

import os
import socket
import struct
import time

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until

from greensock import (
    Connection,
    ConnectionBusy,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    IncompleteMessage,
    MessageTooLong,
    OperationTimeout,
    State,
    WouldBlock,
)
from greensock.lifecycle import TRANSITIONS
from greensock.poller import get_poller


def wrap(sock, linger=0.5):
    sock.setblocking(False)
    family, fd = sock.family, sock.detach()
    conn = Connection(get_poller(), fd, family, "peer")
    conn.linger_timeout = linger
    get_poller().register(conn)
    return conn


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return server, client


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    """A connection and the socket of its peer."""
    ours, theirs = socket.socketpair() if request.param == "unix" else tcp_pair()
    theirs.settimeout(PATIENCE)
    conn = wrap(ours)
    yield conn, theirs
    theirs.close()
    conn.abort()


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


def test_forty_senders_each_whole(pair):
    conn, peer = pair
    texts = [bytes([65 + number % 26]) * 99_999 + b"\n" for number in range(40)]
    senders = [gevent.spawn(conn.send, text) for text in texts]
    data = b""
    while len(data) < 40 * 100_000:
        data += peer.recv(1 << 20)
        gevent.sleep(0)
    gevent.joinall(senders, raise_error=True)
    assert [line + b"\n" for line in data.splitlines()] == texts


def test_send_gathers_and_checks(pair):
    conn, peer = pair
    conn.send([b"a", bytearray(b"b"), memoryview(b"c"), b""])
    conn.send(())
    conn.send(b"")
    conn.send(memoryview(struct.pack("2I", 1, 2)).cast("I"))
    assert read_exactly(peer, 11) == b"abc" + struct.pack("2I", 1, 2)
    conn.send([b"x"] * 3000)
    assert read_exactly(peer, 3000) == b"x" * 3000
    with pytest.raises(TypeError, match="encode"):
        conn.send("text")
    with pytest.raises(TypeError):
        conn.send(5)


def test_send_and_close(pair):
    conn, peer = pair
    text = b"x" * 3_000_000
    conn.send(text, close=True)
    with pytest.raises(ConnectionClosed):
        conn.send(b"y")
    assert len(read_all(peer)) == len(text)
    peer.close()
    assert conn.wait_closed(PATIENCE)
    assert conn.drop_reason is DropReason.CLOSED


def test_send_timeout_withdraws_or_completes(pair):
    conn, peer = pair
    first = b"a" * 10_000_000
    with pytest.raises(OperationTimeout) as caught:
        conn.send(bytearray(first), timeout=0.02)
    assert 0 < caught.value.sent < len(first)
    with pytest.raises(OperationTimeout) as caught:
        conn.send(b"b" * 100, timeout=0.02)
    assert caught.value.sent == 0
    sending = gevent.spawn(conn.send, b"c")
    data = read_exactly_fast(peer, len(first) + 1)
    assert data.count(b"a") == len(first)
    assert data[-1:] == b"c"
    sending.get(timeout=PATIENCE)


def read_exactly_fast(sock, count):
    pieces, size = [], 0
    while size < count:
        piece = sock.recv(1 << 20)
        assert piece
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("limit", [0, 1, 1000])
def test_send_nowait_is_bounded(pair, limit):
    conn, peer = pair
    conn.max_send_queue = 1 << 20
    sent = 0
    while not conn.statistics().bytes_queued:
        conn.send_nowait(b"x" * 65536)
        sent += 65536
    queued = conn.statistics().bytes_queued
    conn.max_send_queue = queued + limit
    with pytest.raises(WouldBlock) as caught:
        conn.send_nowait(b"y" * (limit + 1))
    assert (caught.value.limit, caught.value.value) == ("max_send_queue", queued + limit)
    conn.send_nowait(b"z" * limit)
    assert conn.statistics().bytes_queued == queued + limit
    data = read_exactly_fast(peer, sent + limit)
    assert data == b"x" * sent + b"z" * limit
    wait_until(lambda: conn.statistics().bytes_queued == 0)


def test_nowait_and_blocking_sends_keep_their_order(pair):
    conn, peer = pair
    sending = gevent.spawn(conn.send, b"a" * 5_000_000)
    gevent.sleep(0)
    buffer = bytearray(b"b" * 10)
    conn.send_nowait(buffer)
    buffer[:] = b"!" * 10  # the caller may use it again
    later = gevent.spawn(conn.send, b"c")
    data = read_exactly_fast(peer, 5_000_011)
    assert data.strip(b"a") == b"b" * 10 + b"c"
    gevent.joinall([sending, later], raise_error=True)


def test_send_file(pair, tmp_path):
    conn, peer = pair
    path = tmp_path / "file"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    with path.open("rb") as file:
        sending = gevent.spawn(conn.send_file, file)
        assert read_exactly_fast(peer, len(content)) == content
        assert sending.get(timeout=PATIENCE) == len(content)
        assert conn.send_file(file, 10, 5) == 5
        assert conn.send_file(file, len(content) - 2, 100) == 2
        assert conn.send_file(file, len(content)) == 0
        assert read_exactly(peer, 7) == content[10:15] + content[-2:]
        assert file.tell() == 0


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


def test_shutdown_write(pair):
    conn, peer = pair
    conn.send_nowait(b"x" * 1_000_000)
    shutting = gevent.spawn(conn.shutdown_write)
    assert len(read_all(peer)) == 1_000_000
    shutting.get(timeout=PATIENCE)
    peer.sendall(b"answer")
    assert conn.recv() == b"answer"
    with pytest.raises(ConnectionClosed, match="shutdown_write"):
        conn.send(b"x")
    assert conn.state is State.OPEN


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


def read_all_fast(sock):
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


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
