"""The sending downcalls and the send queue, each over a real socket pair or TCP connection."""

from __future__ import annotations

import errno
import os
import socket
import struct
import tracemalloc

import gevent
import pytest
from conftest import PATIENCE, blocked, read_all, read_exactly, wait_until
from pairs import connected, drain, let_engine_look, read_exactly_fast, reset, tcp_pair, wrap
from served import Calls, pure_only

from greensock import ConnectionClosed, ConnectionLost, DropReason, OperationTimeout, State, WouldBlock
from greensock.core import send_queue
from greensock.core import sending as sending_module
from greensock.core.send_queue import Buffers


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    """A connection and the socket of its peer."""
    yield from connected(request.param)


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


def test_a_view_with_gaps_is_refused_and_nothing_else_happens(pair):
    conn, peer = pair
    with pytest.raises(TypeError, match="contiguous"):
        conn.send(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError, match="contiguous"):
        conn.send_nowait([b"x", memoryview(b"abcdef")[::-1]])
    conn.send(memoryview(b"abcdef")[2:4])
    assert read_exactly(peer, 2) == b"cd"


def test_send_and_close(pair):
    conn, peer = pair
    text = b"x" * 3_000_000
    conn.send(text, close=True)
    with pytest.raises(ConnectionClosed):
        conn.send(b"y")
    assert len(read_all(peer)) == len(text)
    peer.close()
    conn.wait_closed(PATIENCE)
    assert conn.drop_reason is DropReason.CLOSED


@pytest.mark.parametrize("how", ["send and close", "send_nowait"])
def test_a_buffer_that_changes_after_the_call_was_sent_as_it_was(pair, how):
    """Neither call waits until the data is out, and then the buffer is the caller's again."""
    conn, peer = pair
    conn.max_send_queue = 1 << 24
    data = bytearray(b"x" * 8_000_000)
    if how == "send_nowait":
        conn.send_nowait(data)
    else:
        conn.send(data, close=True)
    data[:] = b"y" * len(data)
    assert read_exactly_fast(peer, len(data)) == b"x" * len(data)


def test_the_rest_of_a_short_write_cannot_be_withdrawn(pair):
    """Its beginning is with the kernel: without the rest the peer would take the next send for it."""
    conn, peer = pair
    sending = gevent.spawn(conn.send, b"x" * 10_000_000)
    gevent.sleep(0)
    sending.kill()  # before the engine could push any more of it
    conn.send_nowait(b"y")
    received = read_exactly_fast(peer, 10_000_001)
    assert received == b"x" * 10_000_000 + b"y"


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
    assert data == first + b"c"
    sending.get(timeout=PATIENCE)


@pytest.mark.parametrize("thrown", [gevent.Timeout(0), gevent.GreenletExit()], ids=["Timeout", "GreenletExit"])
def test_whatever_is_thrown_into_a_send_leaves_the_stream_whole(pair, thrown):
    """Rule 8: a send of which nothing went out is withdrawn; one that has begun is finished by the engine."""
    conn, peer = pair
    begun = bytearray(b"a" * 8_000_000)
    first, second, third = (gevent.spawn(conn.send, data) for data in (begun, b"b" * 100, b"c"))
    wait_until(lambda: len(conn._out or ()) == 3)
    for greenlet in (first, second):
        greenlet.kill(thrown)
    begun[:] = b"!" * len(begun)  # its owner may use it again
    assert read_exactly_fast(peer, len(begun) + 1) == b"a" * len(begun) + b"c"
    third.get(timeout=PATIENCE)
    conn.send(b"usable")
    assert read_exactly(peer, 6) == b"usable"
    assert conn.statistics().bytes_queued == 0


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


def test_shutdown_write(pair):
    conn, peer = pair
    conn.max_send_queue = 8_000_000
    conn.send_nowait(b"x" * 8_000_000)
    queued = conn.statistics().bytes_queued
    shutting = gevent.spawn(conn.shutdown_write)
    assert blocked(shutting), "until all that was sent before is out"
    assert conn.statistics().bytes_queued == queued + 1
    assert len(read_all(peer)) == 8_000_000
    shutting.get(timeout=PATIENCE)
    peer.sendall(b"answer")
    assert conn.recv() == b"answer"
    with pytest.raises(ConnectionClosed, match="shutdown_write"):
        conn.send(b"x")
    assert conn.state is State.OPEN


def test_a_file_that_becomes_shorter_while_it_is_sent(pair, tmp_path):
    conn, peer = pair
    path = tmp_path / "file"
    path.write_bytes(bytes(30_000_000))
    with path.open("rb") as file:
        sending = gevent.spawn(conn.send_file, file)
        assert blocked(sending)
        os.truncate(path, conn.bytes_sent + 10)
        draining = gevent.spawn(drain, peer)
        assert sending.get(timeout=PATIENCE) == conn.bytes_sent < 30_000_000
    conn.close()
    assert draining.get(timeout=PATIENCE) == conn.bytes_sent


@pytest.mark.parametrize("data", [b"", bytearray(), [], [b"", b""]], ids=repr)
def test_nothing_is_sent_on_an_open_connection_only(pair, data):
    conn, _ = pair
    assert conn.send(data) == 0
    conn.send_nowait(data)
    assert conn.bytes_sent == 0
    conn.close()
    for call in (conn.send, conn.send_nowait):
        with pytest.raises(ConnectionClosed):
            call(data)


def test_nothing_else_is_sent_on_a_closed_connection(pair, tmp_path):
    conn, _ = pair
    conn.close()
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with path.open("rb") as file, pytest.raises(ConnectionClosed):
        conn.send_file(file)
    with pytest.raises(ConnectionClosed):
        conn.shutdown_write()


@pytest.mark.parametrize("how", ["send", "send_nowait", "send_file"])
def test_who_sends_to_a_peer_that_has_reset_is_told_so(pair, tmp_path, how):
    conn, peer = pair
    path = tmp_path / "file"
    path.write_bytes(b"text")
    reset(peer)  # the engine had no time to see it
    with path.open("rb") as file, pytest.raises(ConnectionLost):
        getattr(conn, how)(file if how == "send_file" else b"text")
    assert conn.drop_reason is DropReason.LOST


def test_behind_a_queue_that_was_sent_the_way_is_clear_again(pair):
    """And nothing is left of the queue: an idle connection has none."""
    conn, peer = pair
    sending = gevent.spawn(conn.send, bytes(8_000_000))
    assert blocked(sending)
    assert not conn._clear
    read_exactly_fast(peer, 8_000_000)
    sending.get(timeout=PATIENCE)
    wait_until(lambda: conn._clear)
    assert conn._out is None


def test_what_joins_what_is_kept_goes_behind_all_of_it(pair):
    conn, peer = pair
    conn.max_send_queue = 9_000_000
    conn.send_nowait(bytes(8_000_000))
    conn.send_nowait([b"one", b"two", b"three"])
    conn.send_nowait(b"four")
    conn.send_nowait(b"five")
    assert len(conn._out) == 2
    conn.close()
    assert read_all(peer)[8_000_000:] == b"onetwothreefourfive"


@pure_only
@pytest.mark.parametrize(
    ("data", "calls"),
    [
        (b"abc", ["write"]),
        ([b"abc"], ["write"]),
        ([b"a", b"b", b"c"], ["writev"]),
        ([b"x"] * 1500, ["writev", "writev"]),  # IOV_MAX is 1,024
    ],
    ids=["one", "a list of one", "a list", "a long list"],
)
@pytest.mark.parametrize("how", ["send", "send_nowait"])
def test_a_list_goes_out_in_one_system_call(pair, monkeypatch, data, calls, how):
    conn, peer = pair
    made = []

    def noted(name, call):
        return lambda *arguments: made.append(name) or call(*arguments)

    monkeypatch.setattr(sending_module, "write", noted("write", sending_module.write))
    monkeypatch.setattr(send_queue, "write", noted("write", send_queue.write))
    monkeypatch.setattr(send_queue, "writev", noted("writev", send_queue.writev))
    getattr(conn, how)(data)
    assert made == calls
    assert read_exactly(peer, conn.bytes_sent) == b"".join(data if isinstance(data, list) else [data])


@pure_only
def test_a_socket_that_is_full_is_not_tried_in_vain(pair, monkeypatch):
    """What was taken in part has shown that: a short write means full, as a short read means empty."""
    conn, peer = pair
    writes = Calls(sending_module.write)
    monkeypatch.setattr(sending_module, "write", writes)
    monkeypatch.setattr(send_queue, "write", writes)
    sending = gevent.spawn(conn.send, bytes(8_000_000))
    assert blocked(sending)
    assert (writes.count, writes.failed) == (1, 0)
    if peer.family == socket.AF_UNIX:  # in that of TCP the peer makes room even while it reads nothing
        peer.sendall(b"x")
        let_engine_look()
        assert (writes.count, writes.failed) == (1, 0), "input says nothing of room"
    read_exactly_fast(peer, 8_000_000)
    sending.get(timeout=PATIENCE)


def test_what_waits_without_a_limit_never_comes_due(pair, capsys):
    """Though its connection does, for another reason."""
    conn, peer = pair
    conn.max_send_queue = 8_000_000
    conn.send_nowait(bytes(8_000_000))
    with pytest.raises(OperationTimeout):
        conn.recv(timeout=0.01)
    let_engine_look()
    assert capsys.readouterr().err == ""
    read_exactly_fast(peer, 8_000_000)


def test_what_is_left_of_a_list():
    for count in range(7):
        left = send_queue.skip([memoryview(b"ab"), memoryview(b"c"), memoryview(b"def")], count)
        assert b"".join(left) == b"abcdef"[count:]
        assert all(left), "no empty ones"


# -- an entry that cannot be sent


def no_descriptor(fd):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_peer_sees_that_its_file_was_cut_short(tmp_path, monkeypatch):
    ours, theirs = tcp_pair()
    conn = wrap(ours)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8_000_000)
    monkeypatch.setattr(send_queue.os, "dup", no_descriptor)
    with path.open("rb") as file, pytest.raises(OperationTimeout):
        conn.send_file(file, timeout=0.02)
    with pytest.raises(ConnectionResetError):
        read_all(theirs)
    theirs.close()


def test_no_descriptor_for_the_rest_of_a_file_resets(pair, tmp_path, monkeypatch):
    conn, peer = pair
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8_000_000)

    with path.open("rb") as file:
        monkeypatch.setattr(send_queue.os, "dup", no_descriptor)
        with pytest.raises(OperationTimeout) as caught:
            conn.send_file(file, timeout=0.02)
        monkeypatch.undo()
        assert 0 < caught.value.sent < 8_000_000
        assert (conn.state, conn.drop_reason, conn.fileno()) == (State.CLOSED, DropReason.LOST, -1)
        os.fstat(file.fileno())  # the caller's, as ever
        with pytest.raises(ConnectionLost) as lost:
            conn.send(b"x")
        assert lost.value.__cause__.errno == errno.EMFILE
    assert drain(peer) < 8_000_000


def test_no_descriptor_for_the_rest_of_a_file_when_it_is_closed(pair, tmp_path, monkeypatch):
    conn, _peer = pair
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8_000_000)

    with path.open("rb") as file:
        sending = gevent.spawn(conn.send_file, file)
        behind = gevent.spawn(conn.send, b"behind")
        wait_until(lambda: len(conn._out or ()) == 2)
        monkeypatch.setattr(send_queue.os, "dup", no_descriptor)
        conn.close()
        for greenlet in (sending, behind):
            with pytest.raises(ConnectionClosed):
                greenlet.get(timeout=PATIENCE)
        os.fstat(file.fileno())
    assert conn.state is State.CLOSED


@pytest.mark.parametrize("closing", ["timeout", "close"])
def test_the_rest_of_a_file_is_sent_though_the_caller_closed_it(pair, tmp_path, closing):
    conn, peer = pair
    path = tmp_path / "file"
    content = os.urandom(8_000_000)
    path.write_bytes(content)
    with path.open("rb") as file:
        sending = gevent.spawn(conn.send_file, file, timeout=0.02 if closing == "timeout" else None)
        wait_until(lambda: conn.statistics().bytes_queued)
        if closing == "close":
            conn.close()
        with pytest.raises(OperationTimeout if closing == "timeout" else ConnectionClosed):
            sending.get(timeout=PATIENCE)
    assert read_exactly_fast(peer, len(content)) == content


class Released(Buffers):
    """Bytes whose owner takes them away before they are sent."""

    def __init__(self):
        super().__init__([memoryview(b"x" * 10)], 10)
        self._views[0].release()


def test_a_file_that_its_owner_closed_while_it_waited_resets(pair, tmp_path):
    conn, peer = pair
    ours, theirs = tcp_pair()
    other = wrap(ours)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8_000_000)
    fd = os.open(path, os.O_RDONLY)
    sending = gevent.spawn(conn.send_file, fd)
    wait_until(lambda: conn.statistics().bytes_queued)
    os.close(fd)
    draining = gevent.spawn(drain, peer)
    with pytest.raises(OSError) as caught:
        sending.get(timeout=PATIENCE)
    assert caught.value.errno == errno.EBADF  # the program's doing, and not the peer's
    assert not isinstance(caught.value, ConnectionLost)
    assert conn.drop_reason is DropReason.ERROR
    other.send(b"goes on")
    assert read_exactly(theirs, 7) == b"goes on"
    assert draining.get(timeout=PATIENCE) < 8_000_000
    theirs.close()
    other.abort()


def test_a_file_that_cannot_be_read_is_the_programs_to_put_right(pair, tmp_path):
    conn, peer = pair
    with (tmp_path / "file").open("wb") as file:
        file.write(b"unreadable" * 1000)
        file.flush()
        with pytest.raises(OSError) as caught:
            conn.send_file(file)
    assert caught.value.errno == errno.EBADF
    conn.send(b"goes on")
    conn.close()
    assert read_all(peer) == b"goes on"


@pytest.mark.parametrize("size", [1, 16, 1000])
def test_many_short_messages_that_are_kept_take_little_memory(pair, size):
    conn, peer = pair
    while not conn.statistics().bytes_queued:
        conn.send_nowait(bytes(65536))
    message, count, before = os.urandom(size), 50_000 // size, conn.statistics().bytes_queued
    tracemalloc.start()
    try:
        for _ in range(count):
            conn.send_nowait(message)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert conn.statistics().bytes_queued == before + count * size
    assert taken < 2 * 50_000
    conn.close()
    assert read_all(peer).endswith(message * count)


def test_bytes_that_went_away_while_they_waited_reset_their_connection_only(pair):
    conn, peer = pair
    ours, theirs = tcp_pair()
    other = wrap(ours)
    conn.max_send_queue = 8_000_000
    conn.send_nowait(b"x" * 8_000_000)
    conn._submit(Released())
    behind, reading = gevent.spawn(conn.send, b"behind"), gevent.spawn(other.recv)
    wait_until(lambda: len(conn._out) == 3 and other._reader is not None)
    draining = gevent.spawn(drain, peer)
    with pytest.raises(ConnectionLost) as caught:
        behind.get(timeout=PATIENCE)
    assert isinstance(caught.value.__cause__, ValueError)
    assert draining.get(timeout=PATIENCE) <= 8_000_000
    theirs.sendall(b"goes on")
    assert reading.get(timeout=PATIENCE) == b"goes on"
    theirs.close()
    other.abort()


def test_what_was_taken_makes_room_for_more_before_all_is_taken():
    """``max_send_queue`` bounds what waits now, not what ever waited."""
    for conn, peer in connected("tcp"):
        conn.max_send_queue = 16_000_000
        conn.send_nowait(bytes(16_000_000))
        while conn.statistics().bytes_queued > 4_000_000:
            assert peer.recv(1 << 20)
            gevent.sleep(0)
        assert conn.statistics().bytes_queued, "not all of it: then it would be counted anew anyway"
        conn.send_nowait(bytes(10_000_000))
        with pytest.raises(WouldBlock):
            conn.send_nowait(bytes(10_000_000))
