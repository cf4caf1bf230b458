"""Receiving: the downcalls that read, and the wait for input.

One greenlet at a time receives on a connection; a second one gets ``ConnectionBusy``. What came and was not yet given
out is in ``_stash``. A wait is left by whatever is thrown into it (``gevent.Timeout``, ``GreenletExit``) and the
connection stays usable.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Iterator
from math import inf
from time import monotonic

from greenlet import getcurrent

from greensock.core.lifecycle import INHERIT, OPEN, Timeout
from greensock.core.poller import TIMED_OUT
from greensock.core.send_queue import Buffer
from greensock.core.sending import Sending
from greensock.core.syscalls import borrow_socket, read, readv, switch_to
from greensock.errors import ConnectionBusy, IncompleteMessage, MessageTooLong, OperationTimeout

__all__ = ["Receiving"]

#: How many bytes of a flood are received between two looks at the clock. (A look at each small read costs 15 % of it.)
BYTES_PER_LOOK = 16384


class Receiving(Sending):
    """The receiving half of a connection, on top of the sending one."""

    __slots__ = ()

    def recv(self, max_bytes: int | None = None, timeout: Timeout = INHERIT) -> bytes:
        """Return what is there, at most ``max_bytes`` (default ``recv_size``), waiting for the first byte.

        ``b""`` is the end of input: the peer sent FIN.
        """
        # The ordinary call goes straight to ``_recv``; all others take what is in the stash or in the decoder first.
        if self._stash or self._decoder is not None or max_bytes is not None:
            return self._recv_bounded(self.recv_size if max_bytes is None else max_bytes, timeout)
        return self._recv(self.recv_size, timeout)

    def recv_into(self, buffer: bytearray | memoryview, *, timeout: Timeout = INHERIT) -> int:
        """Fill ``buffer`` with what is there and return how many bytes that was; 0 at the end of input."""
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        self._hold_decoder()
        if self._stash:
            self._let_others_run()
        if self._stash:
            data = self._take(len(view))
            view[: len(data)] = data
            return len(data)
        # A read is made only if the flag says that an event came, so that no system call hears EAGAIN. And only if the
        # reader's place is free: in a closing connection the engine has it, and what comes is dropped
        # (test_what_comes_while_a_closing_connection_flushes_is_dropped).
        deadline = inf
        while True:
            if self._readable and self._reader is None:
                try:
                    transport = self._transport
                    count = readv(self._fd, [view]) if transport is None else transport.readv(view)
                    return self._took(count, len(view))
                except BlockingIOError:
                    self._found_empty()
                except OSError as error:
                    raise self._lost(error) from error
            deadline = self._await_input(timeout, deadline)

    def read_exactly(self, count: int, *, timeout: Timeout = INHERIT) -> bytes | None:
        """Return exactly ``count`` bytes; None if the input ended before the first of them.

        Raises:
            IncompleteMessage: the input ended after some of them (``partial``).
        """
        if count < 0:
            raise ValueError(f"count={count!r}: 0 or more expected")
        # One deadline for all waits of the call, so that a peer that drips does not put it off
        # (test_timeout_is_for_the_whole_call).
        deadline = self._deadline(timeout)
        self._hold_decoder()
        if self._stash:
            self._let_others_run()
        while len(self._stash) < count:
            if not self._fill(timeout, deadline):
                if not self._stash:
                    return None
                raise self._incomplete(count)
        return self._take(count) if count else b""

    def read_until(self, separator: bytes, max_bytes: int = 65536, *, timeout: Timeout = INHERIT) -> bytes | None:
        """Return the bytes before the next ``separator``, which is taken too; None if the input ended before.

        Raises:
            MessageTooLong: more than ``max_bytes`` came without a separator. They stay unread.
            IncompleteMessage: the input ended before the separator (``partial``).
        """
        if not separator:
            raise ValueError("separator is empty: at least one byte expected")
        deadline = self._deadline(timeout)
        self._hold_decoder()
        if self._stash:
            self._let_others_run()
        searched = 0
        while (end := self._stash.find(separator, searched)) < 0 or end > max_bytes:
            # What was searched is not searched again but for its tail, which may be the beginning of a separator
            # (test_a_separator_that_comes_in_two_pieces).
            searched = max(0, len(self._stash) - len(separator) + 1)
            if end >= 0 or searched > max_bytes:
                text = f"no {separator!r} within max_bytes={max_bytes}"
                raise MessageTooLong(text, self, "max_bytes", max_bytes)
            if not self._fill(timeout, deadline):
                if not self._stash:
                    return None
                raise self._incomplete(None)
        line = self._take(end)
        self._take(len(separator))
        return line

    def read_line(self, max_bytes: int = 65536, *, timeout: Timeout = INHERIT) -> bytes | None:
        """Return the next line without its LF or CRLF; None at the end of input. Raises as ``read_until`` does."""
        line = self.read_until(b"\n", max_bytes, timeout=timeout)
        return line[:-1] if line is not None and line.endswith(b"\r") else line

    def __iter__(self) -> Iterator[bytes]:
        """Go through the lines until the end of input."""
        while (line := self.read_line()) is not None:
            yield line

    def unread(self, data: Buffer) -> None:
        """Put bytes back in front of what is still to be received.

        In ``connection_recv``: the bytes come back in front of the next data, not before it. (What a raw read left over
        is such data.)
        """
        self._check_open()
        if not data:
            return
        # Not fresh: the caller has seen these bytes, and an upcall is not given them until more has come
        # (test_unread_tail_comes_back_with_the_next_data).
        self._stash = bytes(data) + self._stash
        self._plain = False

    def _recv(self, size: int, timeout: Timeout, deadline: float = inf) -> bytes:
        data: bytes
        while True:
            if self._readable and self._reader is None:
                try:
                    data = read(self._fd, size) if self._transport is None else self._transport.read(size)
                except BlockingIOError:
                    self._found_empty()
                except OSError as error:
                    raise self._lost(error) from error
                else:
                    # The body of ``_took``, written out: a call costs as much as the rest of it. The clock is looked at
                    # when the count passes a multiple of ``BYTES_PER_LOOK``, which needs no counter of its own.
                    count = len(data)
                    if count < size and not self._thorough:
                        self._readable = False
                    elif count and self.bytes_received % BYTES_PER_LOOK < size:
                        self._poller.pause_if_late(self)
                    if not count:
                        self._end_of_input()
                    self.bytes_received += count
                    return data
            deadline = self._await_input(timeout, deadline)

    def _recv_bounded(self, size: int, timeout: Timeout) -> bytes:
        if size < 1:
            raise ValueError(f"max_bytes={size!r}: at least 1 expected")
        self._hold_decoder()
        if self._stash:
            self._let_others_run()
        return self._take(size) if self._stash else self._recv(size, timeout)

    def _received(self, count: int, size: int) -> int:
        if count < size and not self._thorough:
            self._readable = False
        if not count:
            self._end_of_input()
        self.bytes_received += count
        return count

    def _took(self, count: int, size: int) -> int:
        """Note what a downcall has read, and have it wait before the next read if the peer floods."""
        if count < size and not self._thorough:
            self._readable = False
        elif count and self.bytes_received % BYTES_PER_LOOK < size:
            self._poller.pause_if_late(self)
        if not count:
            self._end_of_input()
        self.bytes_received += count
        return count

    def _end_of_input(self) -> None:
        # The end can be read again and again, and no further event tells of it: the flag stays set, or the next read
        # would wait for ever.
        self._eof = self._readable = True
        self._plain = False

    def _fill(self, timeout: Timeout, deadline: float) -> bool:
        """Add to the stash what is there; False at the end of input."""
        # Not if it is closed: that is no end of input, and ``_recv`` raises
        # (test_a_closed_connection_is_no_end_of_input).
        if self._eof and self._state is OPEN:
            return False
        data = self._recv(self.recv_size, timeout, deadline)
        if not data:
            return False
        if not self._stash:
            self._stash = data
        else:
            # Bytes while one piece is all there is, which is given out as it is; a bytearray as soon as it grows or
            # shrinks, so that neither copies the whole.
            if isinstance(self._stash, bytes):
                self._stash = bytearray(self._stash)
            self._stash += data
        self._fresh = True
        self._plain = False
        return True

    def _take(self, count: int) -> bytes:
        """Take up to ``count`` bytes off the stash."""
        stash = self._stash
        if count >= len(stash):
            self._stash = b""
            self._fresh = False
            return stash if type(stash) is bytes else bytes(stash)
        if isinstance(stash, bytes):
            stash = self._stash = bytearray(stash)
        # Let go of before the bytearray shrinks: one that is looked at cannot be resized.
        with memoryview(stash) as view:
            data = bytes(view[:count])
        del stash[:count]
        # What stays was not given out yet: in a turn the upcall gets it.
        self._fresh = True
        return data

    def _let_others_run(self) -> None:
        """Pause if it is time to: who takes what is there, message by message, never waits by itself."""
        # The hub itself cannot pause (test_what_is_there_can_be_read_in_the_hub).
        if monotonic() > self._poller.until and getcurrent() is not self._poller.hub:
            self._poller.pause()

    def _hold_decoder(self) -> None:
        """Move what a framer's decoder holds to the stash: raw reads come before it."""
        if self._decoder is not None and self._decoder.pending:
            self._stash = bytes(self._stash) + self._decoder.take()

    def _found_empty(self) -> None:
        """Note that a read found nothing: EAGAIN."""
        # EAGAIN is the one sure sign of an empty socket: whatever end or urgent data was announced has been read past,
        # and short reads mean empty again, which saves the read that hears EAGAIN. Never so on a Unix socket,
        # which announces nothing of descriptors that are passed.
        self._readable = False
        self._thorough = self._family == _socket.AF_UNIX

    def _await_input(self, timeout: Timeout, deadline: float) -> float:
        """Block until the socket may be readable; return the deadline, for the next wait of the same call."""
        # Closed before busy: in a closing connection the engine sits in the reader's place
        # (test_what_comes_while_a_closing_connection_flushes_is_dropped).
        if self._state is not OPEN:
            raise self._closed_error()
        if self._reader is not None:
            raise ConnectionBusy("another greenlet is receiving on this connection", self)
        if timeout is INHERIT:
            timeout = self.recv_timeout
        if timeout is not None:
            now = monotonic()
            if deadline == inf:
                deadline = now + timeout
            # A peer that floods, or another reader that took what woke us, must not carry the call past its time.
            elif deadline <= now and timeout > 0:
                raise OperationTimeout(f"not done in {timeout} s", self, "recv", timeout)
            if timeout <= 0:
                self._look_now(timeout)
                return deadline
            # Most often an entry of an earlier wait is still there and comes due before: then no heap is touched
            # (test_deadlines_that_move_cost_no_timer).
            if deadline < self._armed:
                self._poller.arm(self, deadline)
        hub = self._poller.hub
        me = getcurrent()
        # Before anything is set that a reader would have to take back
        # (test_a_read_that_is_refused_in_the_hub_leaves_no_deadline).
        if me is hub:
            hub.switch()  # raises gevent's own error for a call that would block the hub
        # From here until the switch comes back nothing may raise: ``_reader`` would stay, and with it every later read
        # would find the connection busy (test_gevent_timeout_and_kill_pass_through).
        self._reader = me
        self._read_deadline = deadline  # not before: without a reader to wake it would come due for ever
        try:
            answer = switch_to(hub)
        finally:
            self._reader = None
            self._read_deadline = inf
            # The engine takes the reader's place in a connection that closes, but only once the reader has left: so
            # the close goes on here (test_a_close_goes_on_when_the_reader_has_left).
            if self._state is not OPEN:
                self._close_further()
        if self._state is not OPEN:
            raise self._closed_error()
        # Any other answer is a wake-up: the caller's loop looks, and comes back if it was in vain.
        if answer is TIMED_OUT:
            raise OperationTimeout(f"nothing came for {timeout} s", self, "recv", timeout or 0.0)
        return deadline

    def _deadline(self, timeout: Timeout) -> float:
        seconds = self.recv_timeout if timeout is INHERIT else timeout
        return inf if seconds is None else monotonic() + seconds

    def _look_now(self, timeout: float) -> None:
        """Serve ``timeout=0``: ask the kernel, for the event may not have been fetched yet."""
        try:
            with borrow_socket(self._fd, self._family) as sock:
                sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise OperationTimeout(f"nothing came for {timeout} s", self, "recv", timeout) from None
        except OSError as error:
            raise self._lost(error) from error
        self._readable = True

    def _incomplete(self, expected: int | None) -> IncompleteMessage:
        partial = self._take(len(self._stash))
        return IncompleteMessage(f"the input ended after {len(partial)} bytes", self, partial, expected)
