"""What is held of an answer, in which order it goes out, and what bounds it."""

from __future__ import annotations

import errno
import os
import tempfile
from types import SimpleNamespace

import pytest
from conftest import wait_until
from gevent.event import Event

from greensock.proxy import answer_buffer as module
from greensock.proxy.answer_buffer import GRACE, IN_KERNEL, KEEPS_UP, AnswerBuffer, BufferRoom, Patience

#: Bytes that one answer may have in memory and in a file.
MEMORY, FILE = 6, 20


class Client:
    """A connection that takes what it is sent, once it may."""

    send_timeout = 5.0

    def __init__(self):
        self.got = b""
        self.is_buffered = False
        self.takes = Event()
        self.fails = None

    def await_sent(self, entry, timeout, is_held):
        self.got += entry

    def send(self, data):
        self.takes.wait()
        if self.fails is not None:
            raise self.fails
        self.got += data

    def send_file(self, fd, offset, count):
        data = os.pread(fd, count, offset)
        self.send(data)
        return len(data)


def held(room):
    return room.memory, room.disk, room.files


@pytest.fixture
def room():
    """Room for two answers in memory, and for one in a file; nothing may be left there."""
    found = BufferRoom(2 * MEMORY, 100, lambda: 1)
    yield found
    assert held(found) == (0, 0, 0)


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def buffer(room, client):
    found = AnswerBuffer(client, MEMORY, FILE, room, lambda: None)
    yield found
    found.close()
    found.close()


@pytest.fixture
def other(room, client):
    found = AnswerBuffer(client, MEMORY, FILE, room, lambda: None)
    yield found
    found.close()


def test_what_is_held_goes_out_in_the_order_it_came(buffer, room, client, monkeypatch):
    monkeypatch.setattr(module, "FILE_PIECE", 7)
    assert not buffer.is_holding
    assert buffer.hold([b"abc", memoryview(b"de")])
    assert held(room) == (5, 0, 0)
    assert buffer.hold([b"f0123456789"])
    assert held(room) == (6, 10, 1)
    assert not buffer.hold([b"x" * (FILE - 10 + 1)])
    assert held(room) == (6, 10, 1)
    assert buffer.hold([b"x" * (FILE - 10)])
    assert not buffer.hold([b"y"])
    buffer.begin(b"before ")
    assert buffer.is_holding
    assert client.is_buffered
    assert not buffer.wait(0)
    wait_until(lambda: client.got == b"before ")
    assert held(room) == (6, 20, 1), "what is in the sender's hands counts"
    assert not buffer.hold([b"y"])
    client.takes.set()
    assert buffer.wait()
    assert client.got == b"before abcdef0123456789" + b"x" * 10
    assert held(room) == (0, 0, 0)
    assert not client.is_buffered
    assert not buffer.is_holding
    # Then it begins anew, in memory.
    client.takes.clear()
    assert buffer.hold([b"again"])
    buffer.begin()
    assert not buffer.wait(0)
    assert held(room) == (5, 0, 0)
    assert buffer.hold([b"!"])
    assert held(room) == (6, 0, 0)
    client.takes.set()
    assert buffer.wait()
    assert client.got.endswith(b"xagain!")
    # And so it does with a file.
    assert buffer.hold([b"0123456789"])
    assert held(room) == (6, 4, 1)
    buffer.begin()
    assert buffer.wait()
    assert client.got.endswith(b"again!0123456789")


def test_what_all_answers_may_hold_together(buffer, other, room):
    room.most_memory = MEMORY + 2
    assert buffer.hold([b"a" * MEMORY])
    assert (room.memory_left(), room.disk_left()) == (2, 100)
    assert other.hold([b"b" * MEMORY])
    assert held(room) == (MEMORY + 2, MEMORY - 2, 1)
    assert not buffer.hold([b"c"]), "there may be one file"
    other.close()
    assert held(room) == (MEMORY, 0, 0)
    room.most_disk = 3
    assert not buffer.hold([b"c" * 4])
    assert room.files == 0
    assert buffer.hold([b"c" * 3])
    assert room.disk_left() == 0
    room.most_memory = 0
    assert room.memory_left() == 0
    assert not other.hold([b"d"])
    assert other.hold([])


@pytest.mark.parametrize("written", [0, 4])
def test_a_disk_that_is_full_costs_no_byte(buffer, room, client, monkeypatch, caplog, written):
    """It takes some bytes, or none, and then no more: these stay in memory."""
    pwrite, left = os.pwrite, [written]

    def full(fd, data, offset):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = pwrite(fd, data[: left[0]], offset)
        left[0] -= count
        return count

    monkeypatch.setattr(module.os, "pwrite", full)
    assert buffer.hold([b"memoryfile and tail"])
    assert held(room) == (MEMORY + 13 - written, written, 1)
    assert not buffer.hold([b"x"])
    room.warn(OSError("again"))
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "[Errno 28] No space left on device"
    ]
    client.takes.set()
    buffer.begin()
    assert buffer.wait()
    assert client.got == b"memoryfile and tail"


def test_a_file_that_cannot_be_made(buffer, room, monkeypatch, caplog):
    def fail(**options):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert not buffer.hold([b"a" * (MEMORY + 1)])
    assert held(room) == (0, 0, 0)
    assert buffer.hold([b"a" * MEMORY])
    assert not buffer.hold([b"a"])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("size", [1, MEMORY + 3])
def test_a_client_that_takes_no_more(room, client, size):
    told = []
    buffer = AnswerBuffer(client, MEMORY, FILE, room, lambda: told.append(buffer.is_holding))
    assert buffer.hold([b"x" * size])
    client.fails = ConnectionResetError("on purpose")
    client.takes.set()
    buffer.begin()
    with pytest.raises(ConnectionResetError):
        buffer.wait()
    assert told == [True]
    assert not buffer.is_holding
    assert not client.is_buffered
    with pytest.raises(ConnectionResetError):
        buffer.wait(0)
    buffer.close()
    assert buffer.failure is None


def test_a_file_that_was_cut_short(buffer, room, client):
    assert buffer.hold([b"x" * (MEMORY + 3)])
    os.truncate(buffer._file.fileno(), 2)
    client.takes.set()
    buffer.begin()
    with pytest.raises(OSError, match="has 2 bytes where 3 were written"):
        buffer.wait()


def test_what_is_let_go_while_it_is_sent(buffer, room, client):
    assert buffer.hold([b"x" * (MEMORY + 3)])
    buffer.begin()
    wait_until(lambda: buffer._in_hand)
    buffer.close()
    assert client.got == b""
    assert not client.is_buffered
    assert buffer.wait(0), "there is nothing to be waited for"


def test_how_long_a_server_waits():
    conn = SimpleNamespace(held_up=3.0, bytes_sent=1000)
    patience = Patience(conn)
    assert patience.left() == GRACE
    conn.held_up += GRACE / 2
    assert patience.left() == pytest.approx(GRACE / 2)
    conn.held_up += 1.0
    assert patience.left() == 0.0
    conn.bytes_sent += int(2 * KEEPS_UP)
    assert patience.left() == pytest.approx(1.0 + GRACE / 2)
    assert Patience(conn, in_kernel=True).left() == IN_KERNEL
