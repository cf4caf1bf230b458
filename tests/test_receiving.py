"""The receiving downcalls, each over a real socket pair or TCP connection."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from math import inf

import gevent
import pytest
from conftest import PATIENCE, wait_until
from gevent.monkey import get_original
from pairs import Flood, connected, let_engine_look, longest_between_ticks, read_all_fast
from served import Calls, pure_only

from greensock import (
    Connection,
    ConnectionBusy,
    ConnectionClosed,
    DropReason,
    IncompleteMessage,
    MessageTooLong,
    OperationTimeout,
    State,
)
from greensock.core import receiving, sending


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    """A connection and the socket of its peer."""
    yield from connected(request.param)


@pytest.fixture
def tcp():
    yield from connected("tcp")


@pytest.fixture
def unix():
    yield from connected("unix")


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


def test_counts_that_make_no_sense(pair):
    conn, peer = pair
    peer.sendall(b"ab")
    with pytest.raises(ValueError, match="count=-1"):
        conn.read_exactly(-1)
    with pytest.raises(ValueError, match="separator"):
        conn.read_until(b"")
    assert (conn.recv(1), conn.recv(1)) == (b"a", b"b")


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
    assert conn.statistics().bytes_received == 6
    assert conn.recv_into(bytearray()) == 0
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
    assert conn.read_exactly(5) is None
    assert conn.read_line() is None
    assert conn.recv() == b""


def test_what_grows_is_not_copied_for_each_piece(unix):
    conn, peer = unix
    reading, seen = gevent.spawn(conn.read_exactly, 4), []
    for size, byte in enumerate((b"a", b"b", b"c"), 1):
        peer.sendall(byte)
        wait_until(lambda size=size: len(conn._stash) == size)
        seen.append(conn._stash)
    assert seen[1] is seen[2]
    peer.sendall(b"d")
    assert reading.get(timeout=PATIENCE) == b"abcd"


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


def test_what_is_awaited_may_begin_with_its_end(pair):
    conn, peer = pair
    reading = gevent.spawn(conn.read_line)
    wait_until(lambda: conn._reader is not None)
    peer.sendall(b"\nrest\n")
    assert reading.get(timeout=PATIENCE) == b""
    assert conn.read_line() == b"rest"


def test_a_line_may_be_as_long_as_is_allowed_and_come_in_two_pieces(pair):
    conn, peer = pair
    for separator, first in ((b"\n", b"1234"), (b"--", b"1234-")):
        reading = gevent.spawn(conn.read_until, separator, 4)
        wait_until(lambda: conn._reader is not None)
        peer.sendall(first)
        wait_until(lambda first=first: conn._stash == first)
        peer.sendall(separator[-1:])
        assert reading.get(timeout=PATIENCE) == b"1234"


def test_a_separator_that_comes_in_two_pieces(pair):
    conn, peer = pair
    reading = gevent.spawn(conn.read_until, b"\r\n")
    peer.sendall(b"line\r")
    wait_until(lambda: conn.bytes_received == 5)
    peer.sendall(b"\nrest")
    assert reading.get(timeout=PATIENCE) == b"line"


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
    limit = 0.1

    def drip():
        while True:
            peer.sendall(b"x")
            gevent.sleep(limit / 5)

    dripping = gevent.spawn(drip)
    with pytest.raises(OperationTimeout), gevent.Timeout(PATIENCE):
        conn.read_exactly(1_000_000, timeout=limit)
    dripping.kill()
    assert conn.recv().strip(b"x") == b""


@pure_only
def test_what_another_took_does_not_put_off_the_deadline(pair, monkeypatch):
    """An event came, and then there was nothing: another process reads the same socket."""
    conn, peer = pair
    limit = 0.1

    def taken(fd, size):
        os.read(fd, size)
        raise BlockingIOError

    def drip():
        while True:
            peer.sendall(b"x")
            gevent.sleep(limit / 20)

    dripping = gevent.spawn(drip)
    with monkeypatch.context() as patch:
        patch.setattr(receiving, "read", taken)
        with pytest.raises(OperationTimeout), gevent.Timeout(PATIENCE):
            conn.recv(timeout=limit)
        dripping.kill()
        peer.sendall(b"x")
        with pytest.raises(OperationTimeout):
            conn.recv(timeout=0)  # it was there, but not any more
    peer.sendall(b"x")
    assert conn.recv(timeout=PATIENCE).strip(b"x") == b""


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


# -- a short read that does not mean empty


def until_told_of_urgent_data(conn):
    """Wait until the kernel tells of it, so that the next read stops at the mark and leaves the rest."""
    poll = get_original("select", "poll")()  # gevent's does not know of it
    poll.register(conn.fileno(), select.POLLPRI)
    wait_until(lambda: poll.poll(0))


READERS = {
    "recv": lambda conn, count: b"".join(conn.recv() for _ in range(2)),
    "recv of few": lambda conn, count: b"".join(conn.recv(3) for _ in range(2)),
    "recv_into": lambda conn, count: b"".join(into(conn) for _ in range(2)),
    "read_exactly": lambda conn, count: conn.read_exactly(count),
    "read_until": lambda conn, count: conn.read_until(b"f") + b"f",
}


def into(conn):
    buffer = bytearray(100)
    return bytes(buffer[: conn.recv_into(buffer)])


@pytest.fixture(params=READERS)
def reader(request):
    return READERS[request.param]


@pytest.mark.parametrize("blocked", [False, True])
def test_a_read_that_stops_at_urgent_data_goes_on_after_it(tcp, reader, blocked):
    conn, peer = tcp
    if blocked:
        reading = gevent.spawn(reader, conn, 6)
        gevent.sleep(0)
    # Nothing in between lets the engine run: it finds all of it there.
    peer.sendall(b"abc")
    peer.send(b"X", socket.MSG_OOB)
    peer.sendall(b"def")
    if not blocked:
        until_told_of_urgent_data(conn)
        reading = gevent.spawn(reader, conn, 6)
    assert reading.get(timeout=PATIENCE) == b"abcdef"
    peer.close()
    assert conn.recv() == b""


@pure_only
@pytest.mark.parametrize("reader", [Connection.recv, into])
@pytest.mark.parametrize("urgent", [False, True])
def test_one_read_for_each_short_message_and_one_more_after_urgent_data(tcp, monkeypatch, reader, urgent):
    """Rule 2, in the blocking style: a short read means empty; where it may not, it does so again once one was."""
    conn, peer = tcp
    if urgent:
        peer.send(b"X", socket.MSG_OOB)
        wait_until(lambda: conn._thorough)
    reads = Calls(receiving.read), Calls(receiving.readv)
    monkeypatch.setattr(receiving, "read", reads[0])
    monkeypatch.setattr(receiving, "readv", reads[1])
    for _ in range(10):
        reading = gevent.spawn(reader, conn)
        wait_until(lambda: conn._reader is not None)
        peer.sendall(b"abc")
        assert reading.get(timeout=PATIENCE) == b"abc"
    assert sum(each.count for each in reads) == 10 + urgent
    assert sum(each.failed for each in reads) == urgent


def test_urgent_data_that_comes_later_stops_nobody(tcp):
    conn, peer = tcp
    for number in range(3):
        peer.sendall(b"abc")
        assert conn.read_exactly(3) == b"abc"
        peer.send(b"%d" % number, socket.MSG_OOB)
        until_told_of_urgent_data(conn)
        reading = gevent.spawn(conn.read_exactly, 3)
        gevent.sleep(0)
        peer.sendall(b"def")
        assert reading.get(timeout=PATIENCE) == b"def"


def pass_descriptor(sock, data):
    """Send data together with the write end of a pipe, which the peer then alone holds; return the read end."""
    read_end, write_end = os.pipe()
    assert socket.send_fds(sock, [data], [write_end]) == len(data)
    os.close(write_end)
    return read_end


def assert_not_held(read_end):
    """The pipe's other end is open nowhere."""
    os.set_blocking(read_end, False)
    assert wait_until(lambda: is_over(read_end))
    os.close(read_end)


def is_over(read_end):
    try:
        return os.read(read_end, 1) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize("blocked", [False, True])
def test_a_read_that_stops_at_passed_descriptors_goes_on_after_them(unix, reader, blocked):
    conn, peer = unix
    if blocked:
        reading = gevent.spawn(reader, conn, 6)
        gevent.sleep(0)
    passed = pass_descriptor(peer, b"abc")
    peer.sendall(b"def")
    if not blocked:
        let_engine_look()
        reading = gevent.spawn(reader, conn, 6)
    assert reading.get(timeout=PATIENCE) == b"abcdef"
    assert_not_held(passed)
    peer.close()
    assert conn.recv() == b""


# -- a connection that closes gives out nothing more

FLUSH = b"x" * 8_000_000
RECEIVE = {
    "recv": lambda conn: conn.recv(),
    "recv of few": lambda conn: conn.recv(3),
    "recv at once": lambda conn: conn.recv(timeout=0),
    "recv_into": into,
    "read_exactly": lambda conn: conn.read_exactly(2),
    "read_until": lambda conn: conn.read_until(b"\n"),
    "read_line": lambda conn: conn.read_line(),
    "iteration": lambda conn: next(iter(conn)),
}


@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
@pytest.mark.parametrize("before", [b"", b"one\ntwo\nthree\n"], ids=["no stash", "a stash"])
def test_what_comes_while_a_closing_connection_flushes_is_dropped(pair, receive, before):
    conn, peer = pair
    if before:
        peer.sendall(before)
        assert conn.read_line() == b"one"
        assert conn.statistics().bytes_held
    conn.max_send_queue = len(FLUSH)
    conn.send_nowait(FLUSH)
    conn.close()
    assert conn.statistics().bytes_queued  # the peer reads nothing: it cannot finish
    assert conn.statistics().bytes_held == 0
    peer.sendall(b"late\nlate\n")
    for _ in range(2):
        with pytest.raises(ConnectionClosed) as caught:
            receive(conn)
        assert caught.value.connection is conn
        let_engine_look()
    assert conn.state is State.CLOSING
    assert len(read_all_fast(peer)) == len(FLUSH)
    peer.close()
    conn.wait_closed(PATIENCE)


@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
def test_a_blocked_reader_is_woken_while_the_closing_connection_flushes(pair, receive):
    conn, peer = pair
    conn.max_send_queue = len(FLUSH)
    conn.send_nowait(FLUSH)
    if receive is RECEIVE["recv at once"]:
        receive = RECEIVE["recv"]
    reading = gevent.spawn(receive, conn)
    wait_until(lambda: conn._reader is not None)
    conn.close()
    with pytest.raises(ConnectionClosed):
        reading.get(timeout=PATIENCE)
    assert conn.state is State.CLOSING
    peer.sendall(b"late")  # the engine, which took the reader's place, drops it
    assert len(read_all_fast(peer)) == len(FLUSH)
    with pytest.raises(OperationTimeout, match="not closed"):
        conn.wait_closed(0)
    peer.close()
    conn.wait_closed(PATIENCE)
    assert conn.drop_reason is DropReason.CLOSED


@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
def test_a_closed_connection_is_no_end_of_input(pair, receive):
    conn, peer = pair
    peer.close()
    assert conn.recv() == b""
    conn.close()
    with pytest.raises(ConnectionClosed):
        receive(conn)


# -- others go on


def test_a_read_that_is_refused_in_the_hub_leaves_no_deadline(pair):
    conn, peer = pair
    caught, limit = [], 0.05

    def in_the_hub():
        try:
            conn.recv(timeout=limit)
        except gevent.exceptions.BlockingSwitchOutError as error:
            caught.append(error)

    gevent.get_hub().loop.run_callback(in_the_hub)
    wait_until(lambda: caught)
    assert conn._on_deadline(time.monotonic() + PATIENCE) == inf  # or the hub would look at it for ever
    gevent.sleep(2 * limit)  # and it passes
    peer.sendall(b"x")
    assert conn.recv() == b"x"


def read_on(conn):
    with suppress(IncompleteMessage):
        while conn.read_exactly(1024):
            pass


def echo(conn):
    while data := conn.recv():
        conn.send(data)


def read_few(conn):
    while conn.recv(100):
        pass


def read_into(conn):
    buffer = bytearray(65536)
    while conn.recv_into(buffer):
        pass


def read_into_flood(flood):
    return lambda fd, views: len(flood(fd, len(views[0])))


@pure_only
@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("loop", [read_on, read_few, read_into, echo])
def test_a_peer_that_floods_a_loop_of_reads_does_not_hold_up_timers(pair, monkeypatch, loop, short):
    """Rule 5, in the blocking style: nothing in the loop ever has to wait."""
    conn, peer = pair
    peer.sendall(b"x")
    conn._thorough = bool(short)  # then a short read does not mean empty
    flood = Flood(short=short)
    monkeypatch.setattr(receiving, "read", flood)
    monkeypatch.setattr(receiving, "readv", read_into_flood(flood))
    monkeypatch.setattr(sending, "write", lambda fd, data: len(data))
    looping = gevent.spawn(loop, conn)
    assert longest_between_ticks(looping.ready) < 0.1
    looping.get()


def take_few(conn):
    while conn.recv(1):
        pass


def take_into(conn):
    buffer = bytearray(1)
    while conn.recv_into(buffer):
        pass


def take_exactly(conn):
    while conn.read_exactly(1):
        pass


def take_lines(conn):
    while conn.read_line() is not None:
        pass


@pytest.mark.parametrize("loop", [take_few, take_into, take_exactly, take_lines])
def test_a_loop_that_takes_what_is_there_does_not_hold_up_timers(pair, loop):
    """The same where nothing is read from the socket: all of it was read before."""
    conn, peer = pair
    conn.unread(b"\n" * 150_000)
    peer.shutdown(socket.SHUT_WR)
    looping = gevent.spawn(loop, conn)
    assert longest_between_ticks(looping.ready) < 0.1
    looping.get()


def read_much(conn):
    return conn.read_exactly(1 << 40, timeout=0.2)


def read_far(conn):
    return conn.read_until(b"\n", 1 << 40, timeout=0.2)


@pure_only
@pytest.mark.parametrize("loop", [read_much, read_far])
def test_a_call_ends_in_time_whatever_comes(pair, monkeypatch, loop):
    """The time is looked at where the call waits, and a peer that floods never has it wait."""
    conn, peer = pair
    conn.recv_size = 1024
    peer.sendall(b"x")
    monkeypatch.setattr(receiving, "read", lambda fd, size: bytes(size))
    looping = gevent.spawn(loop, conn)
    began = time.monotonic()
    assert longest_between_ticks(looping.ready) < 0.1
    assert time.monotonic() - began < 2.0
    with pytest.raises(OperationTimeout):
        looping.get()
    monkeypatch.undo()
    assert conn.recv(1) == b"\0"
