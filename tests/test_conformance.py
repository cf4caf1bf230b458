"""One suite for all kinds of connections: TCP, TLS 1.2 and 1.3, Unix, SCTP where there is one; accepted, connected."""

from __future__ import annotations

import os
import socket
import time

import gevent
import pytest
from conftest import PATIENCE, blocked, wait_until
from pairs import reset
from tls_peers import ENDS, VERSIONS

from greensock import (
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

#: More than the kernel's buffers of both ends hold.
MUCH = os.urandom(1 << 20) * 12
#: Seconds of waits that are to end in vain.
SHORT = 0.05


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(params=ENDS)
def end(request):
    return ENDS[request.param]


@pytest.fixture
def pair(version, end, request):
    if version == "sctp" and request.node.get_closest_marker("half_closes"):
        pytest.skip("SCTP has no half-close")
    with end(version) as found:
        yield found


@pytest.fixture
def two(version, end):
    with end(version) as first, end(version) as second:
        yield first, second


# -- receiving


def test_bytes_as_they_come(pair):
    conn, peer = pair
    peer.sendall(b"hello")
    assert conn.recv() == b"hello"
    peer.sendall(b"world")
    assert [conn.recv(1) for _ in range(5)] == [b"w", b"o", b"r", b"l", b"d"]


def test_messages(pair):
    conn, peer = pair
    peer.sendall(b"line\r\nanother\nuntil;12345")
    assert conn.read_line() == b"line"
    assert conn.read_line() == b"another"
    assert conn.read_until(b";") == b"until"
    assert conn.read_exactly(5) == b"12345"
    buffer = bytearray(4)
    peer.sendall(b"abcdef")
    assert conn.recv_into(buffer) == 4
    assert (bytes(buffer), conn.recv()) == (b"abcd", b"ef")
    conn.unread(b"again")
    assert conn.recv() == b"again"


@pytest.mark.parametrize("size", [1, 7, 16384, 16385, 65536, 1 << 20])
def test_much_in_reads_of_any_size(pair, size):
    conn, peer = pair
    data = MUCH[: min(len(MUCH), 4000 * size)]
    sending = gevent.spawn(peer.sendall, data)
    got, length = [], 0
    while length < len(data):
        piece = conn.recv(size)
        assert 0 < len(piece) <= size
        got.append(piece)
        length += len(piece)
    assert b"".join(got) == data
    sending.get(timeout=PATIENCE)


def test_much_in_tiny_pieces(pair):
    conn, peer = pair
    data = MUCH[:3000]

    def send():
        for index in range(len(data)):
            peer.sendall(data[index : index + 1])

    sending = gevent.spawn(send)
    assert conn.read_exactly(len(data)) == data
    sending.get(timeout=PATIENCE)


def test_more_than_a_message_may_have(pair):
    conn, peer = pair
    peer.sendall(b"x" * 1000)
    with pytest.raises(MessageTooLong):
        conn.read_until(b";", 100)
    assert conn.read_exactly(1000) == b"x" * 1000


# -- the end of input


def test_the_end(pair):
    conn, peer = pair
    peer.sendall(b"last")
    peer.end()
    assert conn.recv() == b"last"
    assert [conn.recv() for _ in range(3)] == [b""] * 3
    assert conn.read_line() is None


def test_the_end_within_a_message(pair):
    conn, peer = pair
    peer.sendall(b"par")
    peer.end()
    with pytest.raises(IncompleteMessage) as caught:
        conn.read_exactly(10)
    assert caught.value.partial == b"par"


@pytest.mark.half_closes
def test_the_other_half_goes_on_behind_the_peers_end(pair):
    conn, peer = pair
    peer.end()
    assert conn.recv() == b""
    assert conn.send(b"still here") == 10
    assert peer.read_exactly(10) == b"still here"
    conn.close()
    assert peer.read_all() == b""
    conn.wait_closed(PATIENCE)


@pytest.mark.half_closes
def test_our_half_close(pair):
    conn, peer = pair
    conn.send(b"bye")
    conn.shutdown_write()
    assert peer.read_all() == b"bye"
    with pytest.raises(ConnectionClosed):
        conn.send(b"x")
    peer.sendall(b"and you?")
    assert conn.read_exactly(8) == b"and you?"
    peer.end()
    assert conn.recv() == b""
    conn.close()
    conn.wait_closed(PATIENCE)


def test_close_says_the_end_behind_all_that_was_sent(pair):
    conn, peer = pair
    reading = gevent.spawn(peer.read_all)
    conn.send(MUCH[:3_000_000], close=True)
    assert reading.get(timeout=PATIENCE) == MUCH[:3_000_000]
    peer.end()
    conn.wait_closed(PATIENCE)
    assert conn.drop_reason is DropReason.CLOSED


def test_close_without_a_linger(pair):
    conn, peer = pair
    conn.linger_timeout = 0.0
    conn.send(b"bye")
    conn.close()
    assert peer.read_all() == b"bye"
    conn.wait_closed(PATIENCE)


def test_close_with_unread_input_keeps_the_answer(pair):
    conn, peer = pair
    peer.sendall(bytes(100_000))
    conn.send(b"answer")
    conn.close()
    assert peer.read_all() == b"answer"
    peer.end()
    conn.wait_closed(PATIENCE)


# -- sending


@pytest.mark.parametrize("how", ["send", "list", "bytearray", "nowait", "file"])
def test_more_than_fits(pair, how, tmp_path):
    conn, peer = pair
    data = MUCH
    conn.max_send_queue = len(data)
    reading = gevent.spawn(peer.read_exactly, len(data))
    match how:
        case "send":
            assert conn.send(data) == len(data)
        case "list":
            assert conn.send([data[:5], bytearray(data[5:1000]), memoryview(data)[1000:]]) == len(data)
        case "bytearray":
            assert conn.send(bytearray(data)) == len(data)
        case "nowait":
            conn.send_nowait(data)
        case "file":
            (tmp_path / "file").write_bytes(data)
            with (tmp_path / "file").open("rb") as file:
                assert conn.send_file(file) == len(data)
                conn.send(b"!")
                assert conn.send_file(file, 5, 10) == 10
    assert reading.get(timeout=30) == data
    if how == "file":
        assert peer.read_exactly(11) == b"!" + data[5:15]
    assert conn.statistics().bytes_queued == 0
    wait_until(lambda: conn.statistics().bytes_sent == len(data) + 11 * (how == "file"))


def test_tiny_sends(pair):
    conn, peer = pair
    reading = gevent.spawn(peer.read_exactly, 5000)
    for index in range(5000):
        conn.send(MUCH[index : index + 1])
    assert reading.get(timeout=PATIENCE) == MUCH[:5000]


def test_tiny_sends_to_who_does_not_read(pair):
    """Till nothing more is taken; what was taken arrives, though nothing is sent behind it."""
    conn, peer = pair
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    conn.max_send_queue = 0
    sent = 0
    with pytest.raises(WouldBlock):  # noqa: PT012
        for _ in range(1_000_000):
            conn.send_nowait(MUCH[sent : sent + 1])
            sent += 1
    got = peer.read_exactly(sent)
    assert got == MUCH[:sent]


def test_many_senders_each_whole(pair):
    conn, peer = pair
    sizes = [1, 100, 16384, 16385, 70_000, 200_000] * 5
    messages = [bytes([index]) * size for index, size in enumerate(sizes)]
    reading = gevent.spawn(peer.read_exactly, sum(sizes))
    gevent.joinall([gevent.spawn(conn.send, message) for message in messages], timeout=PATIENCE, raise_error=True)
    data = reading.get(timeout=PATIENCE)
    found = []
    while data:
        size = len(messages[data[0]])
        found.append(data[:size])
        data = data[size:]
    assert sorted(found) == sorted(messages)


def test_both_ways_at_once(pair):
    conn, peer = pair
    jobs = [
        gevent.spawn(conn.send, MUCH[:4_000_000]),
        gevent.spawn(peer.read_exactly, 4_000_000),
    ]
    # One after the other in one object of OpenSSL's, which no two greenlets may use.
    assert jobs[1].get(timeout=30) == MUCH[:4_000_000]
    jobs += [gevent.spawn(peer.sendall, MUCH[:4_000_000]), gevent.spawn(conn.read_exactly, 4_000_000)]
    assert jobs[3].get(timeout=30) == MUCH[:4_000_000]
    gevent.joinall(jobs, raise_error=True)


# -- time, and what is thrown into a wait


def test_nothing_comes(pair):
    conn, peer = pair
    for timeout in (0, SHORT):
        with pytest.raises(OperationTimeout) as caught:
            conn.recv(timeout=timeout)
        assert caught.value.operation == "recv"
    peer.sendall(b"x")
    wait_until(lambda: conn.count_unread())
    assert conn.recv(timeout=0) == b"x"


@pytest.mark.parametrize("thrown", ["timeout", "Timeout", "kill"])
def test_a_send_that_is_left_keeps_the_stream_whole(pair, thrown):
    conn, peer = pair
    outcome = []

    def send():
        try:
            conn.send(MUCH, timeout=SHORT if thrown == "timeout" else None)
        except OperationTimeout as error:
            outcome.append(error.sent)
        except BaseException as error:
            outcome.append(error)

    sending = gevent.spawn(send)
    wait_until(lambda: conn.statistics().bytes_queued)
    second = gevent.spawn(conn.send, b"second" * 1000, timeout=SHORT)
    with pytest.raises(OperationTimeout) as caught:
        second.get(timeout=PATIENCE)
    assert caught.value.sent == 0  # withdrawn, as nothing of it was sent
    if thrown == "Timeout":
        sending.kill(gevent.Timeout())
    elif thrown == "kill":
        sending.kill()
    sending.join(PATIENCE)
    assert len(outcome) == 1
    reading = gevent.spawn(peer.read_exactly, len(MUCH) + 5)
    conn.send(b"third")
    assert reading.get(timeout=30) == MUCH + b"third"


@pytest.mark.parametrize("thrown", [gevent.Timeout, gevent.GreenletExit])
def test_a_receive_that_is_left_loses_nothing(pair, thrown):
    conn, peer = pair
    waiting = blocked(gevent.spawn(conn.read_exactly, 6))
    peer.sendall(b"abc")
    wait_until(lambda: conn.statistics().bytes_held == 3)
    waiting.kill(thrown())
    peer.sendall(b"def")
    assert conn.read_exactly(6) == b"abcdef"


def test_two_receivers(pair):
    conn, peer = pair
    first = blocked(gevent.spawn(conn.recv))
    with pytest.raises(ConnectionBusy):
        conn.recv()
    peer.sendall(b"x")
    assert first.get(timeout=PATIENCE) == b"x"


def test_close_under_waiters(pair):
    conn, _ = pair
    receiving = blocked(gevent.spawn(conn.recv))
    sending = gevent.spawn(conn.send, MUCH)
    wait_until(lambda: conn.statistics().bytes_queued)
    conn.close()
    for job in (receiving, sending):
        with pytest.raises(ConnectionClosed):
            job.get(timeout=PATIENCE)
    with pytest.raises(ConnectionClosed):
        conn.recv()
    conn.abort()
    assert conn.state is State.CLOSED


def test_a_reset_by_the_peer(pair):
    conn, peer = pair
    if peer.sock.family == socket.AF_UNIX:
        pytest.skip("SO_LINGER resets no Unix socket")
    receiving = blocked(gevent.spawn(conn.recv))
    reset(peer.sock)
    with pytest.raises(ConnectionLost):
        receiving.get(timeout=PATIENCE)
    assert conn.state is State.CLOSED
    assert conn.drop_reason is DropReason.LOST


def test_abort(pair):
    conn, peer = pair
    conn.abort()
    with pytest.raises(OSError):  # noqa: PT012
        peer.sendall(b"x")
        peer.recv()
        peer.recv()


def test_a_deadline_of_all(pair):
    conn, _ = pair
    conn.linger_timeout = SHORT
    conn.set_deadline(SHORT)
    with pytest.raises(ConnectionClosed):
        conn.recv(timeout=PATIENCE)
    assert conn.drop_reason is DropReason.DEADLINE
    conn.wait_closed(PATIENCE)


def test_a_slow_but_steady_reader(pair):
    conn, peer = pair
    conn.send_timeout = 0.5
    sending = gevent.spawn(conn.send, MUCH[:6_000_000])
    got = 0
    while got < 6_000_000:
        got += len(peer.read_exactly(min(200_000, 6_000_000 - got)))
        gevent.sleep(SHORT)
    sending.get(timeout=PATIENCE)


def test_who_takes_nothing(pair):
    conn, _ = pair
    conn.send_timeout = 4 * SHORT
    with pytest.raises(OperationTimeout):
        conn.send(MUCH)


def test_the_peer_leaves(pair):
    conn, peer = pair
    told = []
    assert conn.notify_disconnect(lambda: told.append(True))
    waiting = blocked(gevent.spawn(conn.wait_disconnect))
    peer.end()
    waiting.get(timeout=PATIENCE)
    assert told == [True]


# -- from one to another


def test_splice(two):
    (source, giving), (target, taking) = two
    moving = gevent.spawn(source.splice, target)
    reading = gevent.spawn(taking.read_exactly, len(MUCH))
    giving.sendall(MUCH)
    giving.end()
    assert moving.get(timeout=30) == len(MUCH)
    assert reading.get(timeout=30) == MUCH
    target.send(b"behind")
    assert taking.read_exactly(6) == b"behind"


def test_a_splice_that_pauses_leaves_nothing_behind(two):
    """What waits for room is sent, though the source says nothing more."""
    (source, giving), (target, taking) = two
    target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    moving = gevent.spawn(source.splice, target)
    sending = gevent.spawn(giving.sendall, MUCH[:2_000_000])
    wait_until(lambda: target.statistics().bytes_queued)
    assert taking.read_exactly(2_000_000) == MUCH[:2_000_000]
    sending.get(timeout=PATIENCE)
    moving.kill()


def test_splice_of_so_many_bytes(two):
    (source, giving), (target, taking) = two
    giving.sendall(b"0123456789")
    assert source.splice(target, 4) == 4
    assert taking.read_exactly(4) == b"0123"
    assert source.recv() == b"456789"


def test_a_look_takes_nothing_from_who_receives(pair):
    conn, peer = pair
    receiving = gevent.spawn(conn.recv, timeout=PATIENCE)
    wait_until(lambda: conn._reader is not None)
    data = b"hello"
    if peer.tls is not None:
        peer.tls.write(data)
        data = peer._out.read()
    os.write(peer.sock.fileno(), data)  # without a pass of the hub, in which it would be received
    began = time.monotonic()
    while not conn.has_input():
        assert time.monotonic() - began < PATIENCE
    assert receiving.get(timeout=PATIENCE) == b"hello"


def test_a_file_that_shrinks_takes_nothing_from_what_is_sent_behind_it(pair, tmp_path):
    conn, peer = pair
    path = tmp_path / "file"
    path.write_bytes(b"a" * 8_000_000)
    with path.open("r+b") as file:
        first = gevent.spawn(conn.send_file, file, timeout=PATIENCE)
        wait_until(lambda: conn.bytes_sent and not conn._writable)
        file.truncate(10)
        second = gevent.spawn(conn.send, b"0123456789" * 1000, timeout=PATIENCE)
        gevent.idle()
        reading = gevent.spawn(peer.read_all)
        sent = first.get(timeout=PATIENCE)
        assert 0 < sent < 8_000_000
        assert second.get(timeout=PATIENCE) == 10_000
    conn.close()
    assert reading.get(timeout=PATIENCE)[sent:] == b"0123456789" * 1000
