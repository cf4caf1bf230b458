"""One connection: the downcalls, which block only the greenlet that calls them.

Its parts, each on top of the one before: what it is and how it closes (``lifecycle``), sending, receiving. Here is what
needs both halves: moving bytes from one connection to another, the deadlines, and looking at it.
"""

from __future__ import annotations

import os
import struct
from math import inf
from socket import AF_UNIX, SO_PEERCRED, SOL_SOCKET
from typing import Any

from greensock.address import PeerCredentials
from greensock.core.lifecycle import CLOSING, FLUSH_SECONDS, INHERIT, OPEN, OPENING, Timeout
from greensock.core.poller import TIMED_OUT
from greensock.core.receiving import Receiving
from greensock.core.send_queue import Buffers, Passage
from greensock.core.syscalls import borrow_socket, has_input, unread
from greensock.core.transport import Sealing, SharedDescriptor
from greensock.errors import DropReason
from greensock.stats import ConnectionStatistics

__all__ = ["Connection"]

#: struct ucred.
_UCRED = struct.Struct("3i")


class Connection(Receiving):
    """One connection. A server makes it and hands it to the upcalls; your own attributes can be set on it.

    Reading: the end of input is ``b""`` from ``recv``, which gives bytes as they come, and None from the calls that
    read a message (``read_exactly``, ``read_until``, ``read_line``); inside a message it raises ``IncompleteMessage``.

    Every call that blocks takes ``timeout`` in seconds for the whole call, None for none. Left out, it is the
    connection's ``recv_timeout``, or ``send_timeout``, which begins anew with each byte that the peer takes.

    All downcalls raise

    - ``ConnectionClosed``: the program closed the connection before, or while the call was blocked;
    - ``ConnectionLost``: the peer reset it or the network gave up;
    - ``OperationTimeout``: the time ran out; the connection stays usable.
    """

    __slots__ = ()

    def splice(
        self,
        other: Connection,
        count: int | None = None,
        *,
        timeout: Timeout = INHERIT,
        send_timeout: Timeout = INHERIT,
    ) -> int:
        """Move what comes in here out to ``other``, in the kernel, until the end of input or ``count`` bytes.

        Neither holds a descriptor more while nothing comes. Where no pipe can be had, the bytes are copied.

        Returns how many bytes were moved. ``timeout`` bounds each wait, not the whole; ``send_timeout``, if given,
        bounds each wait for ``other``'s peer, and ``timeout`` only those for input. Other sends on ``other`` wait until
        it is over. A failure of either side raises as ``recv`` or ``send`` does on that side (``connection``).
        """
        if send_timeout is INHERIT:
            send_timeout = timeout
        self._hold_decoder()
        moved = 0
        if self._stash:
            moved = self._send_stash(other, count, send_timeout)
        if count is not None and moved >= count:
            return moved
        pipes = self._poller.pipes
        # The passage stands in the target's queue for the whole splice, so that other sends wait for their turn
        # (test_two_splices_to_one_target_go_one_after_the_other). It knows how to wake this greenlet, which waits for
        # the source when the target ends.
        passage = Passage(pipes, self._wake_reader)
        pipes.enter()
        try:
            other._submit(passage)
            while count is None or moved < count:
                pulled = self._pull(passage, other, inf if count is None else count - moved, timeout)
                if not pulled:
                    break
                # Counted when it is taken out of the source, for from there on it can only go to the target: an
                # exception below loses nothing, since the engine finishes what is on its way
                # (test_splice_that_is_killed_loses_nothing_that_was_taken).
                moved += pulled
                other._flush()
                other.await_sent(passage, send_timeout, True)
        finally:
            # However it ends: the place in the queue is given up, and the flush lets the next send have it. If bytes
            # are still on their way, the passage stays for them, with its pipe; if it has left the queue, or never got
            # in, the pipe is ours to give back.
            passage.finish()
            other._flush()
            if not other._out or passage not in other._out:
                passage.discard()
            pipes.leave()
        return moved

    def _send_stash(self, other: Connection, count: int | None, timeout: Timeout) -> int:
        """Send what is in the stash, or ``count`` bytes of it; it stays there if nothing of it goes out."""
        fresh = self._fresh
        data = self._take(len(self._stash) if count is None else count)
        entry = Buffers([memoryview(data)], len(data))
        try:
            other._submit(entry)
            other.await_sent(entry, timeout, True)
        except BaseException:
            # All or nothing: what was not begun is put back, as if it had not been taken
            # (test_splice_that_cannot_send_the_stash_leaves_it).
            if not entry.sent and self._state is OPEN:
                self._stash = data + self._stash
                self._fresh, self._plain = fresh, False
            raise
        return len(data)

    def _pull(self, passage: Passage, other: Connection, count: float, timeout: Timeout) -> int:
        """Take what is there, waiting for the first byte; 0 at the end of input."""
        deadline = inf
        while True:
            # Looked at before each wait and each read: nothing may be taken out of the source that can go nowhere.
            other._check_connected()  # its end wakes us too
            if self._readable and self._reader is None:
                size = int(min(count, 1 << 20))
                try:
                    pulled = passage.pull(self._fd, size, self._thorough, self._transport)
                except BlockingIOError:
                    self._found_empty()
                except OSError as error:
                    raise self._lost(error) from error
                else:
                    if not pulled:
                        self._end_of_input()
                    else:
                        self._poller.pause_if_late(self)
                    # The entry was submitted empty, so what it holds is counted here; the flush counts it down again
                    # (test_splice_counts_what_is_queued).
                    self.bytes_received += pulled
                    other._queued += pulled
                    return pulled
            deadline = self._await_input(timeout, deadline)

    # -- deadlines

    def _on_deadline(self, now: float) -> float:
        # The program's own deadline before all others, as it ends even a close that takes too long: it comes due twice,
        # first to close and then to reset.
        if self._due <= now:
            if self._state is OPEN:
                self._due = now + (self.linger_timeout or FLUSH_SECONDS)
                self._close(DropReason.DEADLINE)
            else:
                self._due = inf
                self._abort(DropReason.DEADLINE)
        if self._state is OPENING:
            if self._read_deadline <= now and self._reader is not None:
                self._reader.switch(TIMED_OUT)
            if self._state is OPENING:
                return min(self._read_deadline, self._due)
        if self._state is CLOSING:
            due = self._linger_due if now < self._linger_due else self._linger_is_over(now)
            return min(due, self._due) if self._state is CLOSING else inf
        # These switches run the greenlets at once, and come back when they block: each may close this connection. So
        # the state is looked at again before every further step, and a copy of the queue is gone through.
        if self._read_deadline <= now and self._reader is not None:
            self._reader.switch(TIMED_OUT)
        for entry in list(self._out or ()):
            if self._state is OPEN and entry.deadline <= now and self._is_late(entry, now):
                if entry.waiter is not None:
                    entry.waiter.switch(TIMED_OUT)
                else:
                    self._abort(DropReason.SEND_TIMEOUT)
        if self._state is not OPEN:
            return min(self._linger_due, self._due) if self._state is CLOSING else inf
        # Computed anew: there are few entries, and the greenlets that were woken may have queued others.
        nearest = min((entry.deadline for entry in self._out or ()), default=inf)
        return min(nearest, self._read_deadline, self._due)

    # -- looking at it

    @property
    def peer_address(self) -> Any:
        """The peer's end: the same as ``address``."""
        return self.address

    @property
    def local_address(self) -> Any:
        """Our end, in the form of ``address``."""
        self._check_fd()
        with borrow_socket(self._fd, self._family) as sock:
            return sock.getsockname()

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """The peer's process, user and group, of a Unix socket, which it cannot make up; None: it is another kind.

        Raises:
            ConnectionClosed, ConnectionLost: it has ended. Ask in ``connection_new``.
        """
        self._check_fd()
        if self._family != AF_UNIX:
            return None
        with borrow_socket(self._fd, self._family) as sock:
            return PeerCredentials(*_UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size)))

    def fileno(self) -> int:
        """Return the descriptor, which stays ours; -1 once it is closed.

        From then on others may hold the connection, too, so it is treated with care: no call relies on O_NONBLOCK,
        which belongs to the open file, and ``close()`` sends no FIN and waits for none: that is left to the last
        holder. The number stays open in the child of a fork, too.
        """
        # From here on others may make it a blocking one, or hold a duplicate
        # (test_who_clears_o_nonblock_blocks_nobody).
        if self._fd >= 0:
            self._share()
            if isinstance(self._transport, SharedDescriptor):
                self._transport.was_exposed = True
        return self._fd

    def duplicate(self) -> int:
        """Return a second descriptor of the connection, which is the caller's to close.

        For classes that say ``is_duplicated``; unlike ``fileno()`` it does not expose the number of the connection's
        own.

        Raises:
            OSError: no descriptor is to be had.
        """
        self._check_fd()
        self._poller.uncork_for(self)  # before whatever is sent by that one
        return os.dup(self._fd)

    def register_with(self, poll: Any, events: int) -> None:
        """Have a poll object of the standard library look at the connection, until it is closed."""
        self._check_fd()
        poll.register(self._fd, events)

    def has_input(self) -> bool:
        """Ask the kernel now whether there is something to be received: bytes, the end, or an error.

        For TLS it is looked whether that is data: what is not, such as a ticket, is taken.
        """
        if self._stash or self._fd < 0:
            return True
        transport = self._transport
        return transport.look() if isinstance(transport, Sealing) else has_input(self._fd)

    def count_unread(self) -> int | None:
        """Return how many bytes the kernel holds that were not received; None if the connection is broken or closed.

        For TLS these are what came encrypted, and what is no data counts, too.
        """
        return unread(self._fd) if self._fd >= 0 else None

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:
        """Return a socket option: a number, or ``size`` bytes if given."""
        self._check_fd()
        with borrow_socket(self._fd, self._family) as sock:
            return sock.getsockopt(level, option, size) if size else sock.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set a socket option."""
        self._check_fd()
        with borrow_socket(self._fd, self._family) as sock:
            sock.setsockopt(level, option, value)

    def statistics(self) -> ConnectionStatistics:
        """Return a snapshot of the counters of this connection."""
        return ConnectionStatistics(
            bytes_received=self.bytes_received,
            bytes_sent=self.bytes_sent,
            bytes_held=self.held_bytes(),
            bytes_queued=self._queued,
        )

    def held_bytes(self) -> int:
        """Return how many bytes came and were not given out yet: a server that drains lets such a connection go on."""
        framed = self._decoder.pending if self._decoder is not None else 0
        return len(self._stash) + len(self._postponed) + framed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self._fd} peer={self.address!r} {self._state.value}>"
