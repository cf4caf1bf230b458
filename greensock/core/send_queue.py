"""What waits to be sent on a connection: the entries of its send queue.

The queue is strictly first in, first out, so that every send arrives whole. Each entry moves its bytes with one system
call a ``push``; the engine pushes the first entry whenever the socket has room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from greensock.core.pace import Pace
from greensock.core.pipes import Ends, Pipes
from greensock.core.poller import Switchable
from greensock.core.syscalls import close, read, write, writev
from greensock.core.transport import Sealing, Transport

__all__ = ["Buffer", "Buffers", "FileSegment", "Fin", "Outgoing", "Passage", "Residue", "as_views"]

#: The longest list of buffers that the kernel takes in one ``writev`` (IOV_MAX).
MAX_BUFFERS = 1024
#: How many bytes of a file or pipe one ``push`` moves at the most, so that one fast peer does not hold the hub.
MAX_PUSH = 1 << 20

#: Up to how many bytes of short sends are joined.
JOINED = 4096

#: How many bytes are copied at the most where no pipe can be had.
MAX_COPIED = 65536

#: What sendfile says of the file: not open for reading, no longer open, cannot be read, cannot be mapped, and so on.
OF_FILES = frozenset({errno.EBADF, errno.EINVAL, errno.EIO, errno.EOVERFLOW, errno.ESPIPE, errno.EISDIR, errno.ENXIO})

#: What can be sent: any object with the buffer protocol.
Buffer = bytes | bytearray | memoryview


class Outgoing:
    """One send: ``left`` bytes still to go, ``sent`` bytes gone, and who waits for it."""

    __slots__ = ("deadline", "failure", "kept", "left", "pace", "sent", "waiter", "withdrawn")

    def __init__(self, left: int) -> None:
        self.left = left
        self.sent = 0
        self.waiter: Switchable | None = None
        self.deadline = inf
        self.pace: Pace | None = None  # with it the deadline is the next look: see there
        self.withdrawn = False
        self.kept = False  # by send_nowait
        self.failure: Exception | None = None  # what was wrong with what was to be sent, told to the sender

    # ``finished`` and ``stalled`` are what a passage overrides: every other entry ends with its last byte.
    @property
    def finished(self) -> bool:
        """Whether nothing is left to be sent."""
        return not self.left

    @property
    def stalled(self) -> bool:
        """Whether there is nothing to push now although the entry is not finished."""
        return False

    # Called in the hub or by the sender, for the head of the queue or where there is none, and never once the
    # connection is closed. The transport is an argument and not a field, as a connection may get one while the entry
    # waits.
    def push(self, fd: int, transport: Transport | None = None) -> int:
        """Make one system call, or have the transport make one if there is one; return how many bytes it moved.

        Raises:
            BlockingIOError: the socket is full.
            OSError: the connection is broken.
        """
        raise NotImplementedError

    def blames(self, error: Exception) -> bool:
        """Whether what a push raised is about what was to be sent, and not about the connection."""
        return False

    def finish(self) -> None:
        """Come to an end, if the entry is one that waits for more: its connection closes."""

    def nudge(self) -> None:
        """Have the greenlet that feeds the entry, if there is one, look at the connection again."""

    def detach(self) -> None:
        """Stop depending on what belongs to the caller, who leaves before the end.

        Raises:
            OSError: there is no descriptor for that.
        """

    def discard(self) -> None:
        """Let go of what the entry holds."""


class Buffers(Outgoing):
    """Bytes in memory, gathered from one or more buffers and never joined."""

    __slots__ = ("_views",)

    def __init__(self, views: list[memoryview], left: int) -> None:
        super().__init__(left)
        self._views = views

    def push(self, fd: int, transport: Transport | None = None) -> int:
        # One buffer, the common case, needs no ``writev`` and no slice of the list.
        views = self._views
        if transport is None:
            moved = write(fd, views[0]) if len(views) == 1 else writev(fd, views[:MAX_BUFFERS])
        else:
            moved = transport.write(views[0]) if len(views) == 1 else transport.writev(views[:MAX_BUFFERS])
        self.left -= moved
        self.sent += moved
        # A finished entry lets go of the buffers at once: its waiter may be long in coming.
        self._views = skip(views, moved) if self.left else []
        return moved

    def join(self, views: list[memoryview], size: int) -> bool:
        """Take up a short send behind the last one, if both are short: an entry for each costs 0.7 kB. Copies."""
        # Only by ``send_nowait``, whose last entry is a copy already: what belongs to a caller is never touched
        # (test_many_short_messages_that_are_kept_take_little_memory).
        last = self._views[-1]
        if len(last) + size > JOINED:
            return False
        self._views[-1] = memoryview(b"".join([last, *views]))
        self.left += size
        return True

    def detach(self) -> None:
        # ``bytes`` cannot change; anything else is copied.
        self._views = [view if isinstance(view.obj, bytes) else memoryview(bytes(view)) for view in self._views]


class FileSegment(Outgoing):
    """``left`` bytes of an open file from ``offset`` on, moved by sendfile."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: int, offset: int, count: int) -> None:
        super().__init__(count)
        self._file = file
        self._offset = offset

    def push(self, fd: int, transport: Transport | None = None) -> int:
        if transport is None:
            moved = os.sendfile(fd, self._file, self._offset, min(self.left, MAX_PUSH))
        else:
            data = os.pread(self._file, min(self.left, MAX_COPIED), self._offset)
            # One that encrypts may have taken more than it told: that comes before the file's end
            # (test_a_file_that_shrinks_takes_nothing_from_what_is_sent_behind_it).
            moved = transport.write(data) if data or isinstance(transport, Sealing) else 0
        # The offset is our own: the file's position is neither used nor moved, so several sends may share one file.
        self._offset += moved
        self.sent += moved
        # 0 is the end of the file, which has got shorter since it was measured: the entry ends with fewer bytes, as the
        # return value of ``send_file`` tells. sendfile would say so for ever.
        self.left = self.left - moved if moved else 0
        return moved

    def blames(self, error: Exception) -> bool:
        # sendfile gives one error for two descriptors. Those of the socket (EPIPE, ECONNRESET) are none of these.
        return isinstance(error, OSError) and error.errno in OF_FILES

    # The number is the caller's to close, and then another file's
    # (test_the_rest_of_a_file_is_sent_though_the_caller_closed_it).
    def detach(self) -> None:
        self._file = os.dup(self._file)

    def discard(self) -> None:
        # Only a duplicate is ours: ``withdrawn`` is set where ``detach`` has made one.
        if self.withdrawn:
            close(self._file)


class Fin(Outgoing):
    """The end of what is sent: ``shutdown()`` is called when its turn has come. It counts as one byte left."""

    __slots__ = ("_shutdown",)

    def __init__(self, shutdown: Callable[[], None]) -> None:
        super().__init__(1)
        self._shutdown = shutdown

    def push(self, fd: int, transport: Transport | None = None) -> int:
        # One byte left, though nothing is sent: an entry with nothing left would count as finished before its turn.
        self._shutdown()
        self.left = 0
        return 0


class Residue(Outgoing):
    """What a transport that encrypts has still to send, of what the senders have been told was taken."""

    __slots__ = ("_sealing",)

    def __init__(self, sealing: Sealing) -> None:
        super().__init__(len(sealing.pending))
        self._sealing = sealing

    def push(self, fd: int, transport: Transport | None = None) -> int:
        self._sealing.flush()
        self.left = 0
        return 0  # counted before


class Passage(Outgoing):
    """What passes from one connection to another: through a pipe, in the kernel, or by memory where none can be had.

    It keeps its place at the head of the queue, even while nothing is on its way, until ``finish`` is called. ``wake``
    has the greenlet that feeds it look again. A pipe is held only while there are bytes in it.
    """

    __slots__ = ("_copied", "_ends", "_open", "_pipes", "_wake")

    def __init__(self, pipes: Pipes, wake: Callable[[], None]) -> None:
        super().__init__(0)
        self._pipes = pipes
        self._wake = wake
        # Where the bytes are: in a pipe (``_ends``) or in memory (``_copied``), never in both; in neither while
        # ``left`` is 0.
        self._ends: Ends | None = None
        self._copied: memoryview | None = None
        self._open = True

    @property
    def finished(self) -> bool:
        return not self._open and not self.left

    @property
    def stalled(self) -> bool:
        # It waits for its source, so the queue behind it waits, too: their order would be lost otherwise.
        return self._open and not self.left

    def pull(self, fd: int, count: int, thorough: bool, transport: Transport | None = None) -> int:
        """Take up to ``count`` bytes out of the socket ``fd``; 0 at the end of input. Nothing is on its way before.

        The kernel's splice does not get past TCP's urgent data and says EAGAIN there; ``thorough`` looks for more.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the connection is broken.
        """
        # A transport has no descriptor that the kernel could splice: it encrypts, or must not rely on O_NONBLOCK.
        ends = self._pipes.take() if transport is None else None
        if ends is None:
            return self._copy(fd, count, transport)
        try:
            moved = os.splice(fd, ends[1], min(count, MAX_PUSH), flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        # Nothing was moved, so the pipe is empty. But splice says EAGAIN at urgent data too, where a read gets past it
        # (test_urgent_data_is_got_past).
        except BlockingIOError:
            self._pipes.give_back(ends)
            if not thorough:
                raise
            return self._copy(fd, count, None)
        # The source is broken; nothing was moved.
        except OSError:
            self._pipes.give_back(ends)
            raise
        except BaseException:  # raised by a handler of a signal, maybe behind the call: who knows what is in the pipe?
            self._pipes.discard(ends)
            raise
        # The passage holds the pipe as long as there is something in it, and no longer: a silent splice costs no
        # descriptor (test_a_silent_splice_holds_no_descriptor).
        if moved:
            self._ends = ends
            self.left = moved
        else:
            self._pipes.give_back(ends)
        return moved

    def _copy(self, fd: int, count: int, transport: Transport | None) -> int:
        size = min(count, MAX_COPIED)
        data = read(fd, size) if transport is None else transport.read(size)
        if data:
            self._copied = memoryview(data)
            self.left = len(data)
        return len(data)

    def push(self, fd: int, transport: Transport | None = None) -> int:
        # The target may have got a transport since these bytes were pulled: ``fileno()`` was called on it meanwhile
        # (test_a_target_that_is_shown_while_a_pipe_holds_bytes_gets_them_all).
        if transport is not None:
            moved = transport.write(self._in_memory())
            self._copied = self._in_memory()[moved:]
        elif self._ends is not None:
            moved = os.splice(self._ends[0], fd, self.left, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        else:
            assert self._copied is not None
            moved = write(fd, self._copied)
            self._copied = self._copied[moved:]
        self.left -= moved
        self.sent += moved
        if not self.left:
            self._let_go()
        return moved

    def _in_memory(self) -> memoryview:
        """Return what is on its way, out of the pipe if it is there."""
        if self._copied is None:
            assert self._ends is not None
            self._copied = memoryview(read(self._ends[0], self.left))  # a pipe gives all that it has
            ends, self._ends = self._ends, None
            self._pipes.give_back(ends)
        return self._copied

    def finish(self) -> None:
        """Give up the place in the queue as soon as nothing is on its way."""
        self._open = False

    def nudge(self) -> None:
        self._wake()

    def discard(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        # Taken first: it is called both by the last push and by ``discard``, and a pipe that is given back twice would
        # be used by two passages.
        ends, self._ends, self._copied = self._ends, None, None
        if ends is None:
            return
        # A pipe with bytes in it must not be used again: they would come out in another stream
        # (test_a_splice_that_is_broken_off_gives_no_bytes_to_the_next).
        if self.left:
            self._pipes.discard(ends)  # with what is in it
        else:
            self._pipes.give_back(ends)


def as_views(data: Any) -> tuple[list[memoryview], int]:
    """Return the buffers of ``data`` as views of bytes, the empty ones left out, and how many bytes they are.

    Raises:
        TypeError: ``data`` is neither a buffer (contiguous) nor a list or tuple of buffers.
    """
    buffers: Iterable[Any] = data if isinstance(data, list | tuple) else (data,)
    views = []
    for buffer in buffers:
        if isinstance(buffer, str):
            raise TypeError("cannot send str: encode it, or send bytes")
        # Views of single bytes, so that ``len`` counts bytes. Empty ones are left out, as a write of nothing makes no
        # progress; ``cast`` raises for a view with gaps (test_a_view_with_gaps_is_refused_and_nothing_else_happens).
        view = memoryview(buffer)
        if view.nbytes:
            views.append(view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B"))
    return views, sum(map(len, views))


def skip(views: list[memoryview], count: int) -> list[memoryview]:
    """Return the views without their first ``count`` bytes."""
    for index, view in enumerate(views):
        # A slice of the first view that is left, and the others as they are: nothing is copied.
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []
