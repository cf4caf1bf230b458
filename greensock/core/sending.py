"""Sending: the downcalls that write, and the queue of what has to wait.

Any number of greenlets send on a connection; each send goes out whole, in the order of the calls. A send that finds the
way clear goes straight to the kernel; any other becomes an entry of the queue, which the engine works off in the hub. A
wait is left by whatever is thrown into it: an entry of which nothing was sent is withdrawn, any other is finished by
the engine.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from math import inf
from socket import AF_UNIX
from time import monotonic
from typing import BinaryIO

from greenlet import getcurrent

from greensock.core.lifecycle import CLOSING, INHERIT, OPEN, OPENING, Lifecycle, Timeout
from greensock.core.pace import Pace
from greensock.core.poller import TIMED_OUT
from greensock.core.send_queue import Buffer, Buffers, FileSegment, Fin, Outgoing, Passage, as_views
from greensock.core.syscalls import write
from greensock.core.transport import Sealing
from greensock.errors import ConnectionClosed, DropReason, OperationTimeout, WouldBlock

__all__ = ["Sending"]

#: How many system calls one flush makes before others get their turn.
PUSHES = 16


class Sending(Lifecycle):
    """The sending half of a connection."""

    __slots__ = ()

    # Without keyword-only parameters: CPython's adaptive interpreter enters only such functions without a C call.
    def send(self, data: Buffer | Sequence[Buffer], close: bool = False, timeout: Timeout = INHERIT) -> int:
        """Send all of ``data``, a buffer or a list of buffers (gathered, never joined); return how many bytes that was.

        It blocks while the peer is slow: ``timeout`` seconds at the most, or without, as long as the peer takes a byte
        every ``send_timeout`` seconds and, after the first of these, ``min_send_rate`` bytes a second. Sends of several
        greenlets go out whole, in the order of the calls. ``close=True`` closes the connection once the data is out,
        without blocking for that.

        Raises:
            OperationTimeout: see there for what became of the data.
            TypeError: ``data`` is something else; nothing was sent (ours to put right).
        """
        # ``_clear`` is all that is looked at: it says that the connection is open, nothing waits in front, and the
        # kernel had room when it was asked last (test_flags). Only ``bytes`` itself: its length counts bytes, and it
        # cannot change while a part of it waits. Anything else goes the way of ``as_views``.
        if self._clear and type(data) is bytes:
            try:
                sent = write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise self._lost(error) from error
            self.bytes_sent += sent
            if sent == len(data):
                if close:
                    self.close()
                return sent  # type: ignore[no-any-return]
            # A short write means that the kernel is full, as EAGAIN does: the edge that says otherwise is still to
            # come. If a part went out, the entry begins as one that was sent in part, which a timeout cannot withdraw
            # (test_the_rest_of_a_short_write_cannot_be_withdrawn).
            size = len(data)
            views = [memoryview(data)[sent:]]
            self._stop_clear()
            entry = Buffers(views, size - sent)
            entry.sent = sent
        elif self._transport is not None and type(data) is bytes and data and self._is_way_clear():
            # As above, by the transport: without an entry of the queue if it takes all.
            try:
                sent = self._transport.write(data)
            except BlockingIOError:
                sent = 0
                self._writable = False
            except OSError as error:
                raise self._lost(error) from error
            self.bytes_sent += sent
            if sent == len(data):
                if close:
                    self.close()
                return sent
            size = len(data)
            entry = Buffers([memoryview(data)[sent:]], size - sent)
            entry.sent = sent
        else:
            views, size = as_views(data)
            self._check_open()
            if not size:
                if close:
                    self.close()
                return 0
            entry = Buffers(views, size)
        if close:
            # This call returns before the data is out, and the buffer is the caller's again
            # (test_a_buffer_that_changes_after_the_call_was_sent_as_it_was).
            entry.detach()
            self._submit(entry)
            self.close()
        else:
            self._submit(entry)
            self.await_sent(entry, timeout)
        return size

    def _is_way_clear(self) -> bool:
        """Whether a send may go straight to the transport."""
        corked = self._poller._corked
        is_open = self._state is OPEN and self._writable and not self._out and not self._fin
        return is_open and not (corked and self in corked)

    def _may_seal_later(self) -> bool:
        """Whether what is sent may wait for the end of the pass and be encrypted then."""
        # Of other transports a write may be a message, and two of them not the same as one.
        return isinstance(self._transport, Sealing) and self._is_way_clear()

    def send_soon(self, data: bytes, timeout: Timeout = INHERIT) -> None:
        """Send like ``send``, but at the end of this pass of the loop, together with what others send soon.

        Each send may wake the process at its other end; those that go out at once wake it once, and several of one
        connection are one write. That makes many short exchanges cheaper, and one of them later by up to 2 ms under
        load (``CORK_SECONDS``); where upcalls compute for long, nothing waits (``CORK_GAP``). It returns before the
        data is out: what the peer does not take then is sent by the engine, and bounded by ``send_timeout`` as what
        ``send_nowait`` keeps. Where the way is not clear it is ``send``, and blocks for ``timeout`` seconds at most.
        """
        poller = self._poller
        may_wait = self._clear or self in poller._corked or (self._transport is not None and self._may_seal_later())
        if not (may_wait and data and poller._active and type(data) is bytes):
            self.send(data, False, timeout)
        elif poller.cork(self, data):
            self._clear = False  # whoever sends now lets this go first (``_submit``)
            self.bytes_sent += len(data)  # already: who counts what an answer was does so before the pass ends
        else:
            self.send(data, False, timeout)

    def _send_corked(self, data: bytes) -> None:
        """Send what was left for the end of the pass. Must not raise."""
        transport = self._transport
        try:
            sent = write(self._fd, data) if transport is None else transport.write(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.bytes_sent -= len(data)
            self._fail(error)  # who receives is told; nobody else waits
            return
        left = len(data) - sent
        if not left:
            self._clear = transport is None and self._state is OPEN
            return
        self.bytes_sent -= left
        if transport is None or not sent:  # else the flush looks whether there is room for the rest
            self._writable = False
        entry = Buffers([memoryview(data)[sent:]], left)
        entry.sent = sent
        entry.kept = True
        self._kept += entry.left
        self._submit(entry)
        self._leave_to_engine(entry)

    def send_nowait(self, data: Buffer | Sequence[Buffer]) -> None:
        """Send without ever blocking: what the kernel does not take now is kept and sent by the engine.

        A peer that takes none of it for ``send_timeout`` seconds, or less than ``min_send_rate``, is dropped
        (SEND_TIMEOUT).

        Raises:
            WouldBlock: ``data`` and what is kept already are more than ``max_send_queue`` bytes. Nothing of ``data``
                was sent or kept.
        """
        views, size = as_views(data)
        self._check_open()
        if self._fin:
            raise self._no_more()
        if not size:
            return
        # Only what ``send_nowait`` left is counted: what a blocked ``send`` has in the queue is bounded by its greenlet
        # (test_send_nowait_is_bounded).
        if self._kept + size > self.max_send_queue:
            text = f"{size} bytes, and {self._kept} wait already: at most max_send_queue={self.max_send_queue} allowed"
            raise WouldBlock(text, self, "max_send_queue", self.max_send_queue)
        if self._kept and self._out and self._joins(self._out[-1], views, size):
            return
        # One try without the queue: most often all goes out, and nothing is copied.
        entry = Buffers(views, size)
        if self._clear:
            self._push(entry)
        if entry.left:
            # Copied, for the caller goes on and may change its buffer
            # (test_a_buffer_that_changes_after_the_call_was_sent_as_it_was).
            entry.detach()
            entry.kept = True
            self._kept += entry.left
            self._submit(entry)
            self._leave_to_engine(entry)

    def _joins(self, last: Outgoing, views: list[memoryview], size: int) -> bool:
        """Add to what ``send_nowait`` kept last; False if a new entry is to be made."""
        if not (last.kept and isinstance(last, Buffers) and last.join(views, size)):
            return False
        self._kept += size
        self._queued += size
        return True

    def send_file(
        self, file: BinaryIO | int, offset: int = 0, count: int | None = None, *, timeout: Timeout = INHERIT
    ) -> int:
        """Send ``count`` bytes (default: the rest) of a regular file from ``offset`` on, by sendfile, and return how
        many.

        The file's position neither matters nor moves. It is fewer than ``count`` if the file is shorter. The file stays
        the caller's.

        Raises:
            OSError: the file cannot be read (ours to put right). If some of it was sent, the connection is reset.
        """
        fd = file if isinstance(file, int) else file.fileno()
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset={offset!r}, count={count!r}: 0 or more expected")
        rest = max(0, os.fstat(fd).st_size - offset)
        # No duplicate of the descriptor: the caller is blocked here and holds the file. If it leaves early, ``detach``
        # makes one (test_the_rest_of_a_file_is_sent_though_the_caller_closed_it).
        entry = FileSegment(fd, offset, rest if count is None else min(count, rest))
        self._submit(entry)
        self.await_sent(entry, timeout)
        # The file is to blame, not the connection, which goes on if nothing of it was sent
        # (test_a_file_that_cannot_be_read_is_the_programs_to_put_right).
        if entry.failure is not None:
            raise entry.failure
        return entry.sent

    def shutdown_write(self, *, timeout: Timeout = INHERIT) -> None:
        """Send FIN once what was sent before is out; receiving goes on. Later sends raise ``ConnectionClosed``.

        To do so twice is harmless.
        """
        self._check_open()
        if self._fin:
            return
        # FIN takes its place in the queue, behind what was sent before. ``_fin`` is set right behind it, so that no
        # send gets in (test_shutdown_write).
        entry = Fin(self._shutdown)
        self._submit(entry)
        self._fin = True
        self._clear = False
        self.await_sent(entry, timeout)

    def _push(self, entry: Outgoing) -> None:
        """Let the entry make one system call."""
        try:
            self.bytes_sent += entry.push(self._fd, self._transport)
        except BlockingIOError:
            self._writable = False
        except OSError as error:
            raise self._lost(error) from error

    def _stop_clear(self) -> None:
        self._clear = False
        self._writable = False

    def _submit(self, entry: Outgoing) -> None:
        """Put the entry in the queue and push as far as it goes."""
        if self._poller._corked:
            self._poller.uncork_for(self)
        self._check_open()
        if self._fin:
            raise self._no_more()
        if self._out is None:
            self._out = deque()
        self._out.append(entry)
        self._queued += entry.left
        self._clear = False
        # With others in front there is nothing to do: they are being pushed, or the first of them waits for its source.
        if self._writable and len(self._out) == 1:
            self._flush()

    def _no_more(self) -> ConnectionClosed:
        return ConnectionClosed("shutdown_write was called: nothing can be sent", self, self._drop_reason)

    def await_sent(self, entry: Outgoing, timeout: Timeout, by_progress: bool = False) -> None:
        """Block until the entry is finished (a passage: nothing is on its way).

        The connection's own ``send_timeout`` begins anew with each byte that the peer takes, and so does any other that
        is ``by_progress``.
        """
        if not entry.left:
            return
        if timeout is INHERIT:
            timeout, by_progress = self.send_timeout, True
        # The time first, the waiter second: a deadline that comes due before the switch is only looked at in the hub.
        if timeout is not None and self._state is OPEN:  # the first push may have found it broken
            self._limit(entry, timeout, by_progress)
        entry.waiter = getcurrent()
        try:
            # A wake-up says only that something may have changed, so it looks again. A connection that closed ends the
            # wait, even if the engine still flushes this entry: its sender is told now
            # (test_close_wakes_blocked_downcalls).
            while entry.left and self._state is OPEN:
                if self._poller.hub.switch() is TIMED_OUT:
                    raise self._too_slow(entry, timeout or 0.0)
        except BaseException:
            # A timeout, a kill, whatever: the stream must stay whole, so what was begun is finished by the engine, and
            # only what was not begun is taken back (test_whatever_is_thrown_into_a_send_leaves_the_stream_whole).
            # Nobody waits for it from here on: a wake-up that is under way must not reach a greenlet that has gone
            # elsewhere.
            _wait_no_more(entry)
            self._withdraw(entry)
            raise
        _wait_no_more(entry)
        if entry.left:
            raise self._closed_error()

    def _too_slow(self, entry: Outgoing, seconds: float) -> OperationTimeout:
        text = f"the peer took {entry.sent} of {entry.sent + entry.left} bytes"
        if entry.pace is None:
            text += f" in {seconds} s"
        else:
            text += f", and nothing for {seconds} s or less than {self.min_send_rate} a second"
        return OperationTimeout(text, self, "send", seconds, entry.sent)

    def _limit(self, entry: Outgoing, seconds: float, by_progress: bool) -> None:
        """Have the entry come due: after so many seconds, or so many without progress."""
        now = monotonic()
        # Two kinds of limit: with a pace the deadline is the next look at what the peer took, without one it is the end
        # (test_a_steady_slow_reader_is_not_cut_off, test_an_explicit_timeout_is_for_the_whole_call).
        if by_progress and seconds:
            entry.pace = Pace(self._fd, self.bytes_sent, seconds, self.min_send_rate, now, self._family != AF_UNIX)
            entry.deadline = entry.pace.first_look()
        else:
            entry.deadline = now + seconds
        if entry.deadline < self._armed:
            self._poller.arm(self, entry.deadline)

    def _leave_to_engine(self, entry: Outgoing) -> None:
        """Bound the time of an entry that no greenlet waits for."""
        if entry.left and self.send_timeout is not None and self._state is OPEN:
            self._limit(entry, self.send_timeout, True)

    def _is_late(self, entry: Outgoing, now: float) -> bool:
        """Whether an entry that has come due is out of time; if not, it comes due again."""
        if entry.pace is None:
            return True
        # The peer can take nothing while a splice in front waits for its own source: that time does not count
        # (test_a_send_behind_a_passage_is_late_by_its_peer_alone).
        if self._out and self._out[0].stalled:
            entry.pace.begin_anew(self._fd, self.bytes_sent, now)
            entry.deadline = entry.pace.first_look()
            return False
        again = entry.pace.next_look(self._fd, self.bytes_sent, now)
        if again is None:
            return True
        entry.deadline = again
        return False

    def _withdraw(self, entry: Outgoing) -> None:
        """Take an entry out again if nothing of it was sent; else let the engine finish it."""
        if not entry.left or entry.withdrawn or self._out is None or entry not in self._out:
            return
        # Begun: the rest must follow, or the peer takes the next send for it. FIN was promised to the program by
        # ``_fin``, and a passage may have bytes in its pipe that are lost to their source.
        if entry.sent or isinstance(entry, Passage | Fin):
            try:
                entry.detach()
            except OSError as error:  # no descriptor is left to go on with: the peer must see that it was cut short
                self._fail(error)
            entry.withdrawn = True
            self._leave_to_engine(entry)
        else:
            self._out.remove(entry)
            self._queued -= entry.left
            entry.discard()
            self._sent_all()

    def _wind_up(self) -> None:
        # A copy: what is withdrawn leaves the queue, and the last one may end the connection.
        for entry in list(self._out or ()):
            if entry.waiter is not None:
                self._withdraw(entry)
            entry.finish()
        self._flush()

    def _flush(self) -> None:
        """Push the queue until the socket is full. Never raises, never blocks."""
        out = self._out
        if not out or self._fd < 0:
            return
        # In the order of the queue, and only its head: a send that would fit must not overtake one that does not
        # (test_forty_senders_each_whole). After so many calls others have their turn.
        for _ in range(PUSHES):
            entry = out[0]
            if entry.stalled or not self._writable:
                return
            # Counted by what ``left`` lost and not by what the push returned: a file that ends early loses more.
            before = entry.left
            try:
                if before:
                    self.bytes_sent += entry.push(self._fd, self._transport)
            except BlockingIOError:
                self._writable = False
                return
            except Exception as error:  # not only OSError: a view may have been released by its owner
                # An error of the connection resets it. One of what is sent is the sender's, if it is still there to
                # hear it and nothing was sent (test_a_file_that_cannot_be_read_is_the_programs_to_put_right).
                if not entry.blames(error) or entry.withdrawn:
                    self._fail(error)
                    return
                entry.failure, entry.left = error.with_traceback(None), 0
                if entry.sent:
                    self._abort(DropReason.ERROR)  # the peer must see that it was cut short; it wakes the sender
                    return
            self._queued -= before - entry.left
            if entry.kept:
                self._kept -= before - entry.left
            # Finished is not the same as nothing left: a passage keeps its place while it waits for more, and its
            # feeder is woken to get it (test_splice).
            if entry.finished:
                out.popleft()
                entry.discard()
            if not entry.left:
                self._wake_sender(entry)
            if not out:
                self._sent_all()
                return
        # No event would come: the socket has room, and says so once.
        self._poller.call_soon(self._flush)

    def _sent_all(self) -> None:
        if not self._out:
            self._out = None
            self._queued = self._kept = 0
            if self._state is OPEN:
                # Here and in ``_on_writable`` the way gets clear again, and nowhere else.
                self._clear = self._writable and not self._fin and self._transport is None
            elif self._state is CLOSING:
                self._close_further()

    def _on_writable(self) -> None:
        if self._out:
            self._flush()
        elif self._state is OPEN:
            self._clear = not self._fin and self._transport is None
        elif self._state is OPENING and self._reader is not None:
            self._reader.switch()


def _wait_no_more(entry: Outgoing) -> None:
    entry.waiter = None
    entry.deadline = inf
    entry.pace = None
