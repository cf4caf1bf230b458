"""What needs both halves of a connection: splice, and looking at it."""

from __future__ import annotations

import os
import socket

import gevent
import pytest
from conftest import PATIENCE, blocked, read_exactly, wait_until
from pairs import Flood, longest_between_ticks, read_all_fast, read_exactly_fast, reset, tcp_pair, wrap
from served import passes

from greensock import ConnectionClosed, ConnectionLost, OperationTimeout, State
from greensock.core.send_queue import Passage

#: Seconds in which nobody has anything to do.
REST = 0.1


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
    gevent.sleep(0)  # it has its place in the queue
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


def test_splice_that_waits_for_its_source_keeps_nobody_busy():
    """Its place in the queue is looked at when there is something to be moved; a send behind it waits."""
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    moving = gevent.spawn(source.splice, target)
    left.sendall(b"x")
    assert read_exactly(right, 1) == b"x"
    after = gevent.spawn(target.send, b"after")
    assert blocked(after)
    assert passes(REST) < 5
    left.close()
    assert read_exactly(right, 5) == b"after"
    moving.get(timeout=PATIENCE)
    after.get(timeout=PATIENCE)
    right.close()
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


# -- splice, when one side ends


class Splice:
    """Two connections, the sockets of their peers, and a greenlet that splices the first to the second."""

    def __init__(self):
        (one, self.left), (two, self.right) = tcp_pair(), tcp_pair()
        self.source, self.target = wrap(one), wrap(two, linger=60)
        self.moving = None

    def start(self, *args, **options):
        """Begin to splice; return when the greenlet waits for input."""
        self.moving = gevent.spawn(self.source.splice, self.target, *args, **options)
        wait_until(lambda: self.moving.ready() or self.source._reader is not None)
        return self.moving

    def stall(self, *args, **options):
        """Have more come than the target's peer, who reads nothing, lets through; return what comes."""
        content = os.urandom(8_000_000)
        self.feeding = gevent.spawn(self.left.sendall, content)
        self.moving = gevent.spawn(self.source.splice, self.target, *args, **options)
        wait_until(lambda: self.target.statistics().bytes_queued)
        return content

    def queued(self):
        return self.target.statistics().bytes_queued

    def end(self):
        for sock in (self.left, self.right):
            sock.close()
        self.source.abort()
        self.target.abort()
        if self.moving is not None:
            self.moving.kill()


@pytest.fixture
def splice():
    splice = Splice()
    yield splice
    splice.end()


def test_splice_ends_with_a_target_that_the_program_closes(splice):
    splice.start()
    splice.left.sendall(b"before")
    assert read_exactly(splice.right, 6) == b"before"
    wait_until(lambda: splice.source._reader is not None)
    splice.target.close()
    with pytest.raises(ConnectionClosed) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert caught.value.connection is splice.target
    assert splice.right.recv(1) == b""
    splice.right.close()
    splice.target.wait_closed(PATIENCE)  # and not after its 60 seconds
    splice.left.sendall(b"still there")
    assert splice.source.recv() == b"still there"


def test_splice_ends_with_a_target_that_its_peer_resets(splice):
    splice.start()
    reset(splice.right)
    with pytest.raises(ConnectionLost) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert caught.value.connection is splice.target
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert splice.target.state is State.CLOSED
    splice.left.sendall(b"still there")
    assert splice.source.recv() == b"still there"


def test_splice_ends_with_a_source_that_its_peer_resets(splice):
    splice.start()
    reset(splice.left)
    with pytest.raises(ConnectionLost) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert caught.value.connection is splice.source
    splice.target.send(b"usable")
    assert read_exactly(splice.right, 6) == b"usable"


def test_splice_ends_with_a_source_that_the_program_closes(splice):
    splice.start()
    splice.source.close()
    with pytest.raises(ConnectionClosed) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert caught.value.connection is splice.source
    splice.target.send(b"usable")
    assert read_exactly(splice.right, 6) == b"usable"


def test_splice_whose_source_is_closed_while_the_target_stalls(splice):
    content = splice.stall()
    splice.source.abort()
    data = b""
    while not splice.moving.ready():
        data += splice.right.recv(1 << 20)
        gevent.sleep(0)
    with pytest.raises(ConnectionClosed) as caught:
        splice.moving.get()
    assert caught.value.connection is splice.source
    splice.target.send(b"usable", close=True)
    data += read_all_fast(splice.right)
    assert len(data) > 6
    assert data == content[: len(data) - 6] + b"usable"
    splice.feeding.kill()


def test_splice_whose_target_is_closed_while_it_stalls(splice):
    content = splice.stall()
    splice.target.close()
    with pytest.raises(ConnectionClosed) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert caught.value.connection is splice.target
    data = read_all_fast(splice.right)  # what was taken is delivered, then comes FIN
    assert data
    assert content.startswith(data)
    splice.right.close()
    splice.target.wait_closed(PATIENCE)
    splice.feeding.kill()


def test_splice_whose_target_is_reset_while_it_stalls(splice):
    splice.stall()
    reset(splice.right)
    with pytest.raises(ConnectionLost) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert caught.value.connection is splice.target
    splice.feeding.kill()


def test_splice_that_times_out_on_a_stalled_target_keeps_the_stream_whole(splice):
    content = splice.stall(timeout=0.02)
    waiting = gevent.spawn(splice.target.send, b"after")
    with pytest.raises(OperationTimeout) as caught:
        splice.moving.get(timeout=PATIENCE)
    assert (caught.value.operation, caught.value.connection) == ("send", splice.target)
    assert splice.queued() > len(b"after")
    assert not waiting.ready()
    taken = splice.source.bytes_received
    data = read_exactly_fast(splice.right, taken + 5)
    assert data == content[:taken] + b"after"
    waiting.get(timeout=PATIENCE)
    assert splice.queued() == 0
    # Both are usable, and splice goes on where it was.
    again = gevent.spawn(splice.source.splice, splice.target, len(content) - taken)
    assert read_exactly_fast(splice.right, len(content) - taken) == content[taken:]
    assert again.get(timeout=PATIENCE) == len(content) - taken
    assert splice.queued() == 0


def test_splice_that_times_out_for_want_of_input(splice):
    with pytest.raises(OperationTimeout) as caught:
        splice.source.splice(splice.target, timeout=0.01)
    assert (caught.value.operation, caught.value.connection) == ("recv", splice.source)
    splice.target.send(b"usable")
    assert read_exactly(splice.right, 6) == b"usable"


def test_splice_waits_for_its_target_as_long_as_it_is_told(splice):
    limit = 0.02
    content = splice.stall(8_000_000, timeout=limit, send_timeout=PATIENCE)
    gevent.sleep(3 * limit)  # longer than for input
    assert read_exactly_fast(splice.right, len(content)) == content
    assert splice.moving.get(timeout=PATIENCE) == len(content)


def test_splice_counts_what_is_queued(splice):
    content = splice.stall()
    # Never more than what was taken and has not gone out.
    assert 0 < splice.queued() <= splice.source.bytes_received - splice.target.bytes_sent
    splice.target.max_send_queue = 10
    splice.target.send_nowait(b"0123456789")
    assert splice.queued() == splice.source.bytes_received - splice.target.bytes_sent + 10
    data = read_exactly_fast(splice.right, len(content))
    assert data == content[: len(data)]
    wait_until(lambda: splice.queued() == 10)  # behind the pipe, which still has its place
    splice.left.shutdown(socket.SHUT_WR)
    assert splice.moving.get(timeout=PATIENCE) == len(content)
    assert read_exactly(splice.right, 10) == b"0123456789"
    assert splice.queued() == 0


@pytest.mark.parametrize("stash", [b"", b"head"])
def test_splice_to_a_target_that_sent_fin(splice, stash):
    splice.target.shutdown_write()
    if stash:
        splice.source.unread(stash)
    for _ in range(3):
        with pytest.raises(ConnectionClosed, match="shutdown_write") as caught:
            splice.source.splice(splice.target)
        assert caught.value.connection is splice.target
        splice.source.unread(b"x")
    assert splice.right.recv(1) == b""
    splice.right.sendall(b"answer")
    assert splice.target.recv() == b"answer"


def test_splice_to_a_target_that_is_closed(splice):
    splice.target.abort()
    with pytest.raises(ConnectionClosed) as caught:
        splice.source.splice(splice.target)
    assert caught.value.connection is splice.target


def test_splice_reaches_a_peer_that_sent_fin(splice):
    splice.start()
    splice.right.shutdown(socket.SHUT_WR)
    assert splice.target.recv() == b""
    content = os.urandom(3_000_000)
    splice.feeding = gevent.spawn(splice.left.sendall, content)
    assert read_exactly_fast(splice.right, len(content)) == content
    splice.left.shutdown(socket.SHUT_WR)
    assert splice.moving.get(timeout=PATIENCE) == len(content)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_splice_takes_the_stash_first_and_no_more_than_count(splice, count):
    splice.left.sendall(b"xhead")
    assert splice.source.read_exactly(1) == b"x"
    splice.left.sendall(b"body")
    assert splice.source.splice(splice.target, count) == count
    assert splice.source.recv(100, timeout=0) == (b"head"[count:] or b"headbody"[count:])
    splice.target.send(b"!")
    assert read_exactly(splice.right, count + 1) == b"headb"[:count] + b"!"


def test_two_splices_to_one_target_go_one_after_the_other(splice):
    ours, third = tcp_pair()
    other = wrap(ours)
    first = splice.start()
    second = gevent.spawn(other.splice, splice.target)
    wait_until(lambda: other._reader is not None)
    third.sendall(b"second")
    third.shutdown(socket.SHUT_WR)
    wait_until(lambda: other.bytes_received == 6)
    splice.left.sendall(b"first")
    assert read_exactly(splice.right, 5) == b"first"
    assert not second.ready()
    splice.left.shutdown(socket.SHUT_WR)
    assert (first.get(timeout=PATIENCE), second.get(timeout=PATIENCE)) == (5, 6)
    assert read_exactly(splice.right, 6) == b"second"
    third.close()
    other.abort()


def test_splice_to_itself_is_an_echo(splice):
    echoing = gevent.spawn(splice.source.splice, splice.source)
    content = os.urandom(1_000_000)
    splice.feeding = gevent.spawn(splice.left.sendall, content)
    assert read_exactly_fast(splice.left, len(content)) == content
    splice.left.shutdown(socket.SHUT_WR)
    assert echoing.get(timeout=PATIENCE) == len(content)


def test_splice_from_a_socket_that_passes_descriptors(splice):
    ours, theirs = socket.socketpair()
    source = wrap(ours)
    moving = gevent.spawn(source.splice, splice.target)
    read_end, write_end = os.pipe()
    socket.send_fds(theirs, [b"abc"], [write_end])
    os.close(write_end)
    theirs.sendall(b"def")
    theirs.shutdown(socket.SHUT_WR)
    assert read_exactly(splice.right, 6) == b"abcdef"
    assert moving.get(timeout=PATIENCE) == 6
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    theirs.close()
    source.abort()


@pytest.mark.parametrize("ending", ["timeout", "kill", "fin", "closed"])
def test_splice_that_cannot_send_the_stash_leaves_it(splice, ending):
    splice.source.unread(b"head")
    if ending == "fin":
        splice.target.shutdown_write()
    elif ending == "closed":
        splice.target.abort()
    else:  # the target's peer reads nothing
        splice.target.max_send_queue = 8_000_000
        splice.target.send_nowait(b"x" * 8_000_000)
    moving = gevent.spawn(splice.source.splice, splice.target, timeout=0.01 if ending == "timeout" else None)
    if ending == "kill":
        wait_until(lambda: len(splice.target._out or ()) == 2)
        moving.kill()
    else:
        with pytest.raises(OperationTimeout if ending == "timeout" else ConnectionClosed):
            moving.get(timeout=PATIENCE)
    assert splice.source.recv(timeout=0) == b"head"


def test_splice_goes_on_after_urgent_data(splice):
    splice.start()
    splice.left.sendall(b"abc")
    splice.left.send(b"X", socket.MSG_OOB)
    splice.left.sendall(b"def")
    splice.right.settimeout(1.0)
    assert read_exactly(splice.right, 6) == b"abcdef"
    splice.left.shutdown(socket.SHUT_WR)
    assert splice.moving.get(timeout=PATIENCE) == 6


def test_nothing_is_queued_on_a_connection_that_was_reset(splice):
    splice.stall()
    reset(splice.right)
    with pytest.raises(ConnectionLost):
        splice.moving.get(timeout=PATIENCE)
    assert splice.queued() == 0
    splice.feeding.kill()


def test_splice_from_a_peer_that_floods_does_not_hold_up_timers(splice, monkeypatch):
    """Rule 5: a source that is never empty, and a target that is never full."""
    flood = Flood()

    def pull(passage, fd, count, thorough, transport):
        passage.left = len(flood(fd, 4096))
        return passage.left

    def push(passage, fd, transport):
        moved, passage.left = passage.left, 0
        passage.sent += moved
        return moved

    monkeypatch.setattr(Passage, "pull", pull)
    monkeypatch.setattr(Passage, "push", push)
    moving = splice.start()
    splice.left.sendall(b"x")
    assert longest_between_ticks(moving.ready) < 0.1
    assert moving.get() > 4096
