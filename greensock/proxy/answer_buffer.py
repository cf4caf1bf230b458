"""What came of an answer and its client has not taken yet: in memory, then in a file without a name.

A server that serves one request at a time must not wait for a slow reader. So while a client takes what comes, nothing
is held; once it is behind (``Patience``), a greenlet of its own sends to it what is held here, and the server is read
on. What is held goes out in the order it came:

    what the engine sends already -> memory -> the file -> what the disk did not take

- Once there is a file, all that follows goes there, until everything was taken; then the file is closed, and what comes
  goes straight to the client again. A file is never written where it was read: what sendfile was given may still be on
  its way.
- What does not fit is not taken (``hold`` says so): the server is read no further then, as if nothing were held. Nor is
  anything that the bounds of all answers together do not allow (``BufferRoom``).
- A disk that is full costs no byte: what it did not take stays in memory, and nothing more is taken.
- Writing to the file may block the process for as long as the disk does, as nginx's does without threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, BinaryIO

import gevent
from gevent.event import Event
from greenlet import GreenletExit

__all__ = ["AnswerBuffer", "BufferRoom", "Patience"]

log = logging.getLogger("greensock.upstream")

#: Seconds that a server may wait for a client in any case.
GRACE = 0.02
#: Bytes a second at which a client keeps up, whatever its server could do.
KEEPS_UP = 50e6
#: Seconds that one wait may take while a long body stays in the kernel, which costs a third less than to hold it: what
#: the kernel has for a client that takes 10 MB a second or more has room again by then.
IN_KERNEL = 0.1
#: Bytes of a file that are sent at a time.
FILE_PIECE = 1 << 20
#: Seconds between two lines on a disk that takes nothing.
LOG_EVERY = 60.0


class Patience:
    """How long a server may still wait for a client that takes its answer.

    It is ``GRACE`` seconds, and as long as the client needs at ``KEEPS_UP`` bytes a second: a fast reader, who is late
    by a moment now and then, costs no greenlet and no copy. While a body stays ``in_kernel`` it is ``IN_KERNEL``
    seconds each time.
    """

    __slots__ = ("_conn", "_held_up", "_in_kernel", "_sent")

    def __init__(self, conn: Any, in_kernel: bool = False) -> None:
        self._in_kernel = in_kernel
        self._conn = conn
        self._held_up = conn.held_up
        self._sent = conn.bytes_sent

    def left(self) -> float:
        """Return the seconds that are left; 0.0 if there are none."""
        if self._in_kernel:
            return IN_KERNEL
        conn = self._conn
        earned: float = (conn.bytes_sent - self._sent) / KEEPS_UP
        waited: float = conn.held_up - self._held_up
        return max(0.0, GRACE + earned - waited)


class BufferRoom:
    """What all answers together may hold."""

    __slots__ = ("_warned", "disk", "files", "memory", "most_disk", "most_files", "most_memory")

    def __init__(self, most_memory: int, most_disk: int, most_files: Callable[[], int]) -> None:
        #: Bytes in memory, and how many these may be.
        self.memory = 0
        self.most_memory = most_memory
        #: Bytes in files.
        self.disk = 0
        self.most_disk = most_disk
        #: How many files there are; each is a descriptor.
        self.files = 0
        self.most_files = most_files
        self._warned = -LOG_EVERY

    def memory_left(self) -> int:
        """Return how many more bytes may be in memory."""
        return max(0, self.most_memory - self.memory)

    def disk_left(self) -> int:
        """Return how many more bytes may be in files."""
        return max(0, self.most_disk - self.disk)

    def open_file(self) -> BinaryIO | None:
        """Return a new file without a name; None if there may be no more of them, or none can be made."""
        if self.files >= self.most_files() or not self.disk_left():
            return None
        try:
            made = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # the buffer closes it
        except OSError as error:
            self.warn(error)
            return None
        self.files += 1
        return made

    def warn(self, error: OSError) -> None:
        """Log that answers can't be held on disk: once a minute, as each of them would fail then."""
        now = monotonic()
        if now - self._warned >= LOG_EVERY:
            self._warned = now
            log.error("answers are not held in files, and servers wait for slow readers: %s", error)


class AnswerBuffer:
    """Holds what a client is behind with, and sends it."""

    __slots__ = (
        "_client",
        "_drained",
        "_file",
        "_held",
        "_in_hand",
        "_most_in_file",
        "_most_in_memory",
        "_on_failure",
        "_read",
        "_room",
        "_sender",
        "_tail",
        "_written",
        "failure",
    )

    def __init__(self, client: Any, memory: int, file: int, room: BufferRoom, on_failure: Callable[[], object]) -> None:
        """``client`` is a ``ProxyConnection``. ``on_failure`` is called when nothing more can be sent, by the greenlet
        that sends; it must not block."""
        self._client = client
        self._most_in_memory = memory
        self._most_in_file = file
        self._room = room
        self._on_failure = on_failure
        self._held = bytearray()
        self._in_hand = 0  # bytes of memory that the sender has taken, and that are not out yet
        self._file: BinaryIO | None = None
        self._written = self._read = 0  # of the file
        self._tail = b""  # what the disk did not take
        self._sender: gevent.Greenlet[..., None] | None = None
        self._drained = Event()
        #: Why nothing more can be sent: the client's connection broke, or took nothing for too long.
        self.failure: BaseException | None = None

    @property
    def is_holding(self) -> bool:
        """Whether something is still to be sent: what comes must go here."""
        return self._sender is not None

    def begin(self, entry: Any = None) -> None:
        """Have a greenlet send what is held from now on, behind ``entry``, which the engine sends already."""
        self._client.is_buffered = True
        self._drained.clear()
        self._sender = gevent.spawn(self._run, entry)

    def hold(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Take pieces in; False if there is no room for all of them: wait then, and send them yourself."""
        data = b"".join(pieces)
        in_memory = 0
        if self._file is None and not self._tail:
            in_memory = min(len(data), self._memory_left())
        rest = memoryview(data)[in_memory:]
        if rest and not self._may_write(len(rest)):
            return False
        if in_memory:
            self._held += memoryview(data)[:in_memory]
            self._room.memory += in_memory
        if rest:
            self._write(rest)
        return True

    def _memory_left(self) -> int:
        return max(0, min(self._most_in_memory - len(self._held) - self._in_hand, self._room.memory_left()))

    def _may_write(self, count: int) -> bool:
        if self._tail or count > self._most_in_file - self._written or count > self._room.disk_left():
            return False
        if self._file is None:
            self._file = self._room.open_file()
        return self._file is not None

    def _write(self, data: memoryview) -> None:
        assert self._file is not None
        try:
            while data:
                count = os.pwrite(self._file.fileno(), data, self._written)
                self._written += count
                self._room.disk += count
                data = data[count:]
        except OSError as error:
            self._room.warn(error)
            self._tail = bytes(data)
            self._room.memory += len(data)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all of it is out, or can't be; False if it is not within so many seconds.

        Raises what keeps it from going out.
        """
        if self._sender is not None and not self._drained.wait(seconds):
            return False
        if self.failure is not None:
            raise self.failure
        return True

    def close(self) -> None:
        """Let go of what is held, whether it is out or not. Twice is harmless."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.kill()
            self._client.is_buffered = False
        self._let_go()
        self.failure = None  # its traceback leads back here

    # -- the greenlet that sends

    def _run(self, entry: Any) -> None:
        try:
            if entry is not None:
                self._client.await_sent(entry, self._client.send_timeout, True)
            while self._send_next():
                pass
            self._let_go()
        except GreenletExit:
            return  # closed
        except BaseException as error:
            self.failure = error
            self._let_go()
            self._on_failure()
        self._sender = None
        self._client.is_buffered = False
        self._drained.set()

    def _send_next(self) -> bool:
        """Send what came first; False if nothing is held."""
        client, room = self._client, self._room
        if self._held:
            data, self._held = bytes(self._held), bytearray()
            self._in_hand = len(data)
            client.send(data)
            room.memory -= self._in_hand
            self._in_hand = 0
        elif self._file is not None and self._read < self._written:
            count = min(FILE_PIECE, self._written - self._read)
            sent = client.send_file(self._file.fileno(), self._read, count)
            self._read += sent
            if sent < count:
                raise OSError(f"a file of an answer has {sent} bytes where {count} were written")
        elif self._tail:
            client.send(self._tail)
            room.memory -= len(self._tail)
            self._tail = b""
        else:
            return False
        return True

    def _let_go(self) -> None:
        room = self._room
        room.memory -= len(self._held) + self._in_hand + len(self._tail)
        self._held, self._in_hand, self._tail = bytearray(), 0, b""
        file, self._file = self._file, None
        if file is not None:
            room.files -= 1
            room.disk -= self._written
            self._written = self._read = 0
            with contextlib.suppress(OSError):
                file.close()
