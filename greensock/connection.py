"""One connection: its state and the downcalls, which block only the greenlet that calls them.

A connection owns its descriptor from the moment it is made until it is CLOSED, the bytes that came and were not yet
given
out (``_stash``), and what waits to be sent (``_out``). Who may do what:

- One greenlet at a time receives; a second one gets ``ConnectionBusy``.
- Any number send; each send goes out whole, in the order of the calls. A send that finds the way clear goes straight to
  the kernel; any other becomes an entry of the queue, which the engine works off in the hub.
- A wait is left by whatever is thrown into it (``gevent.Timeout``, ``GreenletExit``) and the connection stays usable.

States and the legal transitions are in ``TRANSITIONS``. CLOSING belongs to the engine: it flushes the queue, sends FIN,
reads and drops what still comes until the peer's FIN, and closes, all without a greenlet. (Closing a socket with unread
input sends RST, which can destroy the answer that is on its way; RFC 9112 section 9.6 tells the same story.)
"""

from __future__ import annotations

import enum
import os
import socket as _socket
from collections import deque
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO

from gevent.event import Event
from greenlet import getcurrent, greenlet

from greensock.errors import (
    ConnectionBusy,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    IncompleteMessage,
    MessageTooLong,
    OperationTimeout,
    WouldBlock,
)
from greensock.outgoing import Buffer, Buffers, FileSegment, Fin, Outgoing, Pipe, as_views
from greensock.poller import TIMED_OUT, Endpoint, Poller
from greensock.stats import ConnectionStatistics
from greensock.syscalls import borrow_socket, close, peer_has_hung_up, read, readv, reset_on_close, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greensock.server import Server

__all__ = ["INHERIT", "Connection", "State", "Timeout"]


class State(enum.Enum):
    """Where a connection is in its life."""

    #: Downcalls work.
    OPEN = "open"
    #: Downcalls raise ``ConnectionClosed``; the engine flushes, sends FIN and drains.
    CLOSING = "closing"
    #: The descriptor is gone.
    CLOSED = "closed"


# A member of an enum is looked up through a descriptor before Python 3.12: 0.1 us, on the hot path.
_OPEN, _CLOSING, _CLOSED = State.OPEN, State.CLOSING, State.CLOSED

#: The legal transitions.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


class _Inherit(enum.Enum):
    INHERIT = "the connection's default"


#: The default of every ``timeout`` argument: the connection's ``recv_timeout`` or ``send_timeout``.
INHERIT = _Inherit.INHERIT
#: Seconds, None for no limit, or INHERIT.
Timeout = float | None | _Inherit

_switch = greenlet.switch

#: What a lingering close reads and drops at the most before it gives up on the peer.
LINGER_BYTES = 1 << 20
#: How many system calls one flush makes before others get their turn.
PUSHES = 16


class Connection(Endpoint):
    """One connection. A server makes it and hands it to the upcalls; your own attributes can be set on it.

    Reading: ``b""`` (from ``recv``, ``read_exactly``) or None (from ``read_until``, ``read_line``) is the end of input;
    the end of input inside a message raises ``IncompleteMessage``.

    Every call that blocks takes ``timeout`` in seconds for the whole call, None for none; left out, it is the
    connection's ``recv_timeout`` or ``send_timeout``.

    All downcalls raise

    - ``ConnectionClosed``: the program closed the connection before, or while the call was blocked;
    - ``ConnectionLost``: the peer reset it or the network gave up;
    - ``OperationTimeout``: the time ran out; the connection stays usable.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_clear",
        "_decoder",
        "_drop_reason",
        "_ended",
        "_eof",
        "_events",
        "_failure",
        "_family",
        "_fin",
        "_fresh",
        "_idle_mark",
        "_idle_since",
        "_kept",
        "_linger_due",
        "_linger_left",
        "_out",
        "_plain",
        "_postponed",
        "_queued",
        "_read_deadline",
        "_stage",
        "_stash",
        "_state",
        "address",
        "bytes_received",
        "bytes_sent",
        "linger_timeout",
        "max_send_queue",
        "recv_size",
        "recv_timeout",
        "send_timeout",
        "server",
    )

    def __init__(self, poller: Poller, fd: int, family: int, address: Any, server: Server | None = None) -> None:
        # Written out, not delegated: one call less for each connection accepted.
        self._poller = poller
        self._fd = fd
        self._readable = False
        self._writable = True
        self._hangup = False
        self._idle = False
        self._reader = None
        self._armed = inf
        self._ready = None
        #: The peer: ``(host, port)`` for IPv4, four items for IPv6, ``""`` for a Unix socket.
        self.address = address
        #: The server that serves it, or None.
        self.server = server
        self._family = family
        self._state = _OPEN
        self._clear = True  # a send may go straight to the kernel
        self._eof = False
        self._fin = False  # FIN was sent, or is in the queue
        self._failure: OSError | None = None
        self._stash: bytes | bytearray = b""
        self._fresh = False  # the stash holds bytes that no connection_recv was given
        self._plain = False  # open, begun, no framer, no stash, no end of input: the common case of a turn
        self._decoder: Any = None
        self._postponed = b""
        self._out: deque[Outgoing] | None = None
        self._queued = 0  # bytes of all entries, and of those among them that send_nowait left
        self._kept = 0
        self._read_deadline = inf
        self._linger_due = inf
        self._linger_left = 0
        self._drop_reason: DropReason | None = None
        self._stage = 0
        self._ended = False
        self._events: dict[str, Event] | None = None
        self._idle_mark = -1
        self._idle_since = 0.0
        #: Bytes received and sent so far.
        self.bytes_received = 0
        self.bytes_sent = 0
        if server is None:
            self.recv_size = 65536
            self.max_send_queue = 1 << 20
            self.recv_timeout: float | None = None
            self.send_timeout: float | None = None
            self.linger_timeout = 5.0
        else:
            self.recv_size = server.recv_size
            self.max_send_queue = server.max_send_queue
            self.recv_timeout = server.recv_timeout
            self.send_timeout = server.send_timeout
            self.linger_timeout = server.linger_timeout

    # -- receiving

    def recv(self, max_bytes: int | None = None, timeout: Timeout = INHERIT) -> bytes:
        """Return what is there, at most ``max_bytes`` (default ``recv_size``), waiting for the first byte.

        ``b""`` is the end of input: the peer sent FIN.
        """
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
            data = self._take(len(view))
            view[: len(data)] = data
            return len(data)
        deadline = inf
        while True:
            if self._readable and self._reader is None:
                try:
                    return self._received(readv(self._fd, [view]), len(view))
                except BlockingIOError:
                    self._readable = self._hangup = False
                except OSError as error:
                    raise self._lost(error) from error
            deadline = self._await_input(timeout, deadline)

    def read_exactly(self, count: int, *, timeout: Timeout = INHERIT) -> bytes:
        """Return exactly ``count`` bytes; ``b""`` if the input ended before the first of them.

        Raises:
            IncompleteMessage: the input ended after some of them (``partial``).
        """
        if count < 0:
            raise ValueError(f"count={count!r}: 0 or more expected")
        deadline = self._deadline(timeout, self.recv_timeout)
        self._hold_decoder()
        while len(self._stash) < count:
            if not self._fill(timeout, deadline):
                if not self._stash:
                    return b""
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
        deadline = self._deadline(timeout, self.recv_timeout)
        self._hold_decoder()
        searched = 0
        while (end := self._stash.find(separator, searched)) < 0 or end > max_bytes:
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

        In ``connection_recv``: the bytes come back in front of the next data, not before it.
        """
        if not data:
            return
        self._stash = bytes(data) + self._stash
        self._fresh = self._plain = False

    def _recv(self, size: int, timeout: Timeout, deadline: float = inf) -> bytes:
        while True:
            if self._readable and self._reader is None:
                try:
                    data: bytes = read(self._fd, size)
                except BlockingIOError:
                    self._readable = self._hangup = False
                except OSError as error:
                    raise self._lost(error) from error
                else:
                    count = len(data)
                    if count < size and not self._hangup:
                        self._readable = False
                    if not count:
                        self._end_of_input()
                    self.bytes_received += count
                    return data
            deadline = self._await_input(timeout, deadline)

    def _recv_bounded(self, size: int, timeout: Timeout) -> bytes:
        if size < 1:
            raise ValueError(f"max_bytes={size!r}: at least 1 expected")
        self._hold_decoder()
        return self._take(size) if self._stash else self._recv(size, timeout)

    def _received(self, count: int, size: int) -> int:
        if count < size and not self._hangup:
            self._readable = False
        if not count:
            self._end_of_input()
        self.bytes_received += count
        return count

    def _end_of_input(self) -> None:
        self._eof = self._readable = True
        self._plain = False

    def _fill(self, timeout: Timeout, deadline: float) -> bool:
        """Add to the stash what is there; False at the end of input."""
        if self._eof and self._state is _OPEN:
            return False
        data = self._recv(self.recv_size, timeout, deadline)
        if not data:
            return False
        if not self._stash:
            self._stash = data
        else:
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
        with memoryview(stash) as view:
            data = bytes(view[:count])
        del stash[:count]
        self._fresh = True
        self._plain = False
        return data

    def _hold_decoder(self) -> None:
        """Move what a framer's decoder holds to the stash: raw reads come before it."""
        if self._decoder is not None and self._decoder.pending:
            self._stash = bytes(self._stash) + self._decoder.take()

    def _await_input(self, timeout: Timeout, deadline: float) -> float:
        """Block until the socket may be readable; return the deadline, for the next wait of the same call."""
        if self._state is not _OPEN:
            raise self._closed_error()
        if self._reader is not None:
            raise ConnectionBusy("another greenlet is receiving on this connection", self)
        if timeout is INHERIT:
            timeout = self.recv_timeout
        if timeout is None:
            self._wait_input()
            return inf
        if deadline == inf:
            deadline = monotonic() + timeout
        if timeout <= 0 or deadline <= monotonic():
            self._look_now(timeout)
            return deadline
        self._read_deadline = deadline
        if deadline < self._armed:
            self._poller.arm(self, deadline)
        try:
            answer = self._wait_input()
        finally:
            self._read_deadline = inf
        if answer is TIMED_OUT:
            raise OperationTimeout(f"nothing came for {timeout} s", self, "recv", timeout)
        return deadline

    def _wait_input(self) -> object:
        hub = self._poller.hub
        me = getcurrent()
        if me is hub:
            hub.switch()  # raises gevent's own error for a call that would block the hub
        self._reader = me
        try:
            # Not hub.switch(), which first looks in vain for an attribute of the greenlet: 0.15 us.
            answer: object = _switch(hub)
        finally:
            if self._reader is me:
                self._reader = None
            if self._state is _CLOSING:
                self._close_further()
        if self._state is not _OPEN:
            raise self._closed_error()
        return answer

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

    # -- sending

    # Without keyword-only parameters: CPython's adaptive interpreter enters only such functions without a C call.
    def send(self, data: Buffer | Sequence[Buffer], close: bool = False, timeout: Timeout = INHERIT) -> None:
        """Send all of ``data``, a buffer or a list of buffers (gathered, never joined); block while the peer is slow.

        Sends of several greenlets go out whole, in the order of the calls. ``close=True`` closes the connection once
        the data is out, without blocking for that.

        Raises:
            OperationTimeout: see there for what became of the data.
            TypeError: ``data`` is something else; nothing was sent (ours to put right).
        """
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
                return
            views = [memoryview(data)[sent:]]
            self._stop_clear()
            entry = Buffers(views, len(data) - sent)
            entry.sent = sent
        else:
            views, size = as_views(data)
            self._check_open()
            if not size:
                if close:
                    self.close()
                return
            entry = Buffers(views, size)
        if close:
            entry.detach()
            self._submit(entry)
            self.close()
        else:
            self._submit(entry)
            self._await_sent(entry, timeout)

    def send_nowait(self, data: Buffer | Sequence[Buffer]) -> None:
        """Send without ever blocking: what the kernel does not take now is kept and sent by the engine.

        Raises:
            WouldBlock: more than ``max_send_queue`` bytes would be kept. Nothing of ``data`` was sent or kept.
        """
        views, size = as_views(data)
        self._check_open()
        if not size:
            return
        entry = Buffers(views, size)
        if self._kept + size > self.max_send_queue:
            text = f"{size} bytes, and {self._kept} wait already: at most max_send_queue={self.max_send_queue} allowed"
            raise WouldBlock(text, self, "max_send_queue", self.max_send_queue)
        if self._clear:
            self._push(entry)
        if entry.left:
            entry.detach()
            entry.kept = True
            self._kept += entry.left
            self._submit(entry)

    def send_file(
        self, file: BinaryIO | int, offset: int = 0, count: int | None = None, *, timeout: Timeout = INHERIT
    ) -> int:
        """Send ``count`` bytes (default: the rest) of a regular file from ``offset`` on, by sendfile, and return how
        many.

        The file's position neither matters nor moves. It is fewer than ``count`` if the file is shorter. The file stays
        the caller's.
        """
        self._check_open()
        fd = file if isinstance(file, int) else file.fileno()
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset={offset!r}, count={count!r}: 0 or more expected")
        rest = max(0, os.fstat(fd).st_size - offset)
        entry = FileSegment(fd, offset, rest if count is None else min(count, rest))
        self._submit(entry)
        self._await_sent(entry, timeout)
        return entry.sent

    def splice(self, other: Connection, count: int | None = None, *, timeout: Timeout = INHERIT) -> int:
        """Move what comes in here out to ``other``, in the kernel, until the end of input or ``count`` bytes.

        Returns how many bytes were moved. ``timeout`` is for each wait, not for the whole. Other sends on ``other``
        wait until it is over. A failure of either side raises as ``recv`` or ``send`` does on that side
        (``connection``).
        """
        self._hold_decoder()
        moved = 0
        if self._stash:
            data = self._take(len(self._stash) if count is None else count)
            Connection.send(other, data, timeout=timeout)
            moved = len(data)
        if count is not None and moved >= count:
            return moved
        pipe = Pipe()
        try:
            other._submit(pipe)
            while count is None or moved < count:
                pulled = self._pull(pipe, inf if count is None else count - moved, timeout)
                if not pulled:
                    break
                moved += pulled
                other._flush()
                other._await_sent(pipe, timeout)
        finally:
            pipe.finish()
            other._flush()
            if other._fd < 0:
                pipe.discard()
        return moved

    def _pull(self, pipe: Pipe, count: float, timeout: Timeout) -> int:
        deadline = inf
        while True:
            if self._readable and self._reader is None:
                try:
                    pulled = pipe.pull(self._fd, int(min(count, 1 << 20)))
                except BlockingIOError:
                    self._readable = self._hangup = False
                except OSError as error:
                    raise self._lost(error) from error
                else:
                    if not pulled:
                        self._end_of_input()
                    self.bytes_received += pulled
                    return pulled
            deadline = self._await_input(timeout, deadline)

    def _push(self, entry: Outgoing) -> None:
        """Let the entry make one system call."""
        try:
            self.bytes_sent += entry.push(self._fd)
        except BlockingIOError:
            self._writable = False
        except OSError as error:
            raise self._lost(error) from error

    def _stop_clear(self) -> None:
        self._clear = False
        self._writable = False

    def _submit(self, entry: Outgoing) -> None:
        """Put the entry in the queue and push as far as it goes."""
        self._check_open()
        if self._fin:
            raise ConnectionClosed("shutdown_write was called: nothing can be sent", self, self._drop_reason)
        if self._out is None:
            self._out = deque()
        self._out.append(entry)
        self._queued += entry.left
        self._clear = False
        if self._writable and len(self._out) == 1:
            self._flush()

    def _await_sent(self, entry: Outgoing, timeout: Timeout) -> None:
        """Block until the entry is finished (a pipe: empty)."""
        if not entry.left:
            return
        if timeout is INHERIT:
            timeout = self.send_timeout
        if timeout is not None:
            entry.deadline = monotonic() + timeout
            if entry.deadline < self._armed:
                self._poller.arm(self, entry.deadline)
        entry.waiter = getcurrent()
        try:
            while entry.left and self._state is _OPEN:
                if self._poller.hub.switch() is TIMED_OUT:
                    text = f"the peer took {entry.sent} of {entry.sent + entry.left} bytes in {timeout} s"
                    raise OperationTimeout(text, self, "send", timeout or 0.0, entry.sent)
        except BaseException:
            self._withdraw(entry)
            raise
        finally:
            entry.waiter = None
            entry.deadline = inf
        if entry.left:
            raise self._closed_error()

    def _withdraw(self, entry: Outgoing) -> None:
        """Take an entry out again if nothing of it was sent; else let the engine finish it."""
        if not entry.left or entry.withdrawn or self._out is None or entry not in self._out:
            return
        if entry.sent or isinstance(entry, Pipe | Fin):
            entry.detach()
            entry.withdrawn = True
        else:
            self._out.remove(entry)
            self._queued -= entry.left
            entry.discard()
            self._sent_all()

    def _flush(self) -> None:
        """Push the queue until the socket is full. Never raises, never blocks."""
        out = self._out
        if not out or self._fd < 0:
            return
        for _ in range(PUSHES):
            entry = out[0]
            if entry.stalled or not self._writable:
                return
            before = entry.left
            try:
                if before:
                    self.bytes_sent += entry.push(self._fd)
            except BlockingIOError:
                self._writable = False
                return
            except OSError as error:
                self._fail(error)
                return
            self._queued -= before - entry.left
            if entry.kept:
                self._kept -= before - entry.left
            if self._linger_due != inf:
                self._extend_linger()
            if entry.finished:
                out.popleft()
                entry.discard()
            if not entry.left and entry.waiter is not None:
                self._poller.call_soon(_Wake(entry))
            if not out:
                self._sent_all()
                return
        self._poller.call_soon(self._flush)

    def _sent_all(self) -> None:
        if not self._out:
            self._out = None
            self._queued = self._kept = 0
            if self._state is _OPEN:
                self._clear = self._writable and not self._fin
            elif self._state is _CLOSING:
                self._close_further()

    def _on_writable(self) -> None:
        if self._out:
            self._flush()
        elif self._state is _OPEN:
            self._clear = not self._fin

    # -- closing

    @property
    def state(self) -> State:
        """OPEN, CLOSING or CLOSED."""
        return self._state

    @property
    def drop_reason(self) -> DropReason | None:
        """Why the connection ended; None while it is open."""
        return self._drop_reason

    def shutdown_write(self, *, timeout: Timeout = INHERIT) -> None:
        """Send FIN once what was sent before is out; receiving goes on. Later sends raise ``ConnectionClosed``."""
        entry = Fin(self._shutdown)
        self._submit(entry)
        self._fin = True
        self._clear = False
        self._await_sent(entry, timeout)

    def close(self) -> None:
        """Close: what was sent is flushed, then FIN, then input is dropped until the peer's FIN; never blocks.

        The engine does all this within ``linger_timeout`` seconds; 0 closes at once. Downcalls that are blocked raise
        ``ConnectionClosed``; sends that have not begun are withdrawn. Closing twice is harmless.
        """
        self._close(DropReason.CLOSED)

    def abort(self) -> None:
        """Close at once with RST; what was not sent is thrown away."""
        self._abort(DropReason.ABORTED)

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Block until the descriptor is closed (flushed and lingered); False if ``timeout`` seconds passed first."""
        return self._state is _CLOSED or self._event("closed").wait(timeout)

    def wait_disconnect(self, timeout: float | None = None) -> bool:
        """Block until the peer closed its side or the connection ended; False if ``timeout`` seconds passed first.

        Nothing is read: meant for a long answer whose reader may leave.
        """
        if self._state is not _OPEN or self._eof or (self._hangup and peer_has_hung_up(self._fd)):
            return True
        return self._event("hangup").wait(timeout)

    def _event(self, name: str) -> Event:
        if self._events is None:
            self._events = {}
        return self._events.setdefault(name, Event())

    def _on_hangup(self) -> None:
        if self._events is not None and "hangup" in self._events and peer_has_hung_up(self._fd):
            self._events["hangup"].set()

    def _close(self, reason: DropReason) -> None:
        if self._state is not _OPEN:
            return
        self._leave_open(_CLOSING, reason)
        if self._out:
            for entry in [entry for entry in self._out if entry.waiter is not None]:
                self._withdraw(entry)
        self._close_further()
        if self._fd >= 0:
            self._extend_linger()

    def _abort(self, reason: DropReason) -> None:
        if self._state is _CLOSED:
            return
        try:
            reset_on_close(self._fd, self._family)
        except OSError:
            pass  # the kernel has given it up already; closing is all that is left
        if self._state is _OPEN:
            self._leave_open(_CLOSED, reason)
        self._release()

    def _leave_open(self, state: State, reason: DropReason) -> None:
        self._state = state
        self._drop_reason = reason
        self._readable = self._clear = self._plain = False
        self._read_deadline = inf
        if self._events is not None and "hangup" in self._events:
            self._events["hangup"].set()
        if self._reader is not None:
            self._poller.call_soon(_WakeReader(self))
        if self._out is not None:
            for entry in self._out:
                if entry.waiter is not None:
                    self._poller.call_soon(_Wake(entry))
        if self._idle:
            self._poller.queue(self)

    def _close_further(self) -> None:
        """Take the next step of closing, if its time has come: flush, FIN, drain, close."""
        if self._out or self._reader is not None or self._fd < 0:
            return
        if self._eof or not self.linger_timeout:
            self._release()
            return
        try:
            self._shutdown()
        except OSError:
            self._release()  # the peer is gone: nothing to wait for
            return
        self._linger_left = LINGER_BYTES
        self._reader = _Drain(self)
        self._drain()

    def _drain(self) -> None:
        """Read and drop until the peer's FIN, the bound, or the lack of input."""
        try:
            while (dropped := len(read(self._fd, 65536))) and self._linger_left > 0:
                self._linger_left -= dropped
        except BlockingIOError:
            return
        except OSError:
            pass  # reset by the peer: as good as closed
        self._release()

    def _extend_linger(self) -> None:
        self._linger_due = monotonic() + self.linger_timeout
        if self._linger_due < self._armed:
            self._poller.arm(self, self._linger_due)

    def _release(self) -> None:
        """Give the descriptor back. What waits is woken by whoever changed the state."""
        if self._fd < 0:
            return
        self._state = _CLOSED
        self._clear = self._readable = False
        self._poller.forget(self)
        if self._armed != inf:
            self._poller.disarm(self)
        fd, self._fd = self._fd, -1
        close(fd)
        if self._reader is not None and isinstance(self._reader, _Drain):
            self._reader = None
        if self._out is not None:
            for entry in self._out:
                if entry.waiter is not None:
                    self._poller.call_soon(_Wake(entry))
                entry.discard()
            self._out = None
        if self._events is not None:
            for event in self._events.values():
                event.set()
        if self.server is not None:
            self.server._released(self)

    def _fail(self, error: OSError) -> None:
        """The connection broke while the engine was sending."""
        if self._state is _OPEN:
            self._failure = error.with_traceback(None)
            self._leave_open(_CLOSED, DropReason.LOST)
        self._release()

    def _shutdown(self) -> None:
        with borrow_socket(self._fd, self._family) as sock:
            sock.shutdown(_socket.SHUT_WR)

    def _on_deadline(self, now: float) -> float:
        if self._state is _CLOSING:
            if now >= self._linger_due:
                if self._out:
                    self._abort(DropReason.CLOSED)  # the peer must see that the answer was cut short
                else:
                    self._release()  # all is with the kernel, which goes on without us
                return inf
            return self._linger_due
        if self._read_deadline <= now and self._reader is not None:
            self._reader.switch(TIMED_OUT)
        for entry in list(self._out or ()):
            if entry.deadline <= now and entry.waiter is not None:
                entry.waiter.switch(TIMED_OUT)
        if self._state is not _OPEN:
            return self._linger_due if self._state is _CLOSING else inf
        nearest = min((entry.deadline for entry in self._out or ()), default=inf)
        return min(nearest, self._read_deadline, self._on_idle(now))

    def _on_idle(self, now: float) -> float:
        """Drop a connection on which nothing came or went for the server's ``idle_timeout``.

        The bytes are counted anyway, so that time need not be taken for every message; in exchange activity is noticed
        every eighth of the timeout, and a connection is dropped up to that much late.
        """
        limit = self.server.idle_timeout if self.server is not None else None
        if limit is None:
            return inf
        mark = self.bytes_received + self.bytes_sent
        waiting = self._idle or self._reader is not None or any(entry.waiter for entry in self._out or ())
        if mark != self._idle_mark or not waiting:
            self._idle_mark = mark
            self._idle_since = now
        elif now - self._idle_since >= limit:
            self._close(DropReason.IDLE_TIMEOUT)
            return self._linger_due
        return min(now + limit / 8, self._idle_since + limit)

    # -- errors

    def _check_open(self) -> None:
        if self._state is not _OPEN:
            raise self._closed_error()

    def _closed_error(self) -> ConnectionClosed | ConnectionLost:
        reason = self._drop_reason
        if reason is DropReason.LOST:
            lost = ConnectionLost(f"the connection was lost: {self._failure}", self)
            lost.__cause__ = self._failure
            return lost
        return ConnectionClosed(f"the connection is closed: {reason.value if reason else 'closed'}", self, reason)

    def _lost(self, error: OSError) -> ConnectionClosed | ConnectionLost:
        """Translate what a system call said, and let go of a connection that is of no more use."""
        if self._state is not _OPEN:
            return self._closed_error()
        self._failure = error.with_traceback(None)
        self._leave_open(_CLOSED, DropReason.LOST)
        self._release()
        return self._closed_error()

    def _probe(self) -> None:
        """Raise ``ConnectionLost`` if the connection ended by an error."""
        with borrow_socket(self._fd, self._family) as sock:
            error = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            raise self._lost(OSError(error, os.strerror(error)))

    def _deadline(self, timeout: Timeout, default: float | None) -> float:
        seconds = default if timeout is INHERIT else timeout
        return inf if seconds is None else monotonic() + seconds

    # -- looking at it

    @property
    def local_address(self) -> Any:
        """Our end, in the form of ``address``."""
        self._check_fd()
        with borrow_socket(self._fd, self._family) as sock:
            return sock.getsockname()

    def fileno(self) -> int:
        """Return the descriptor, which stays ours; -1 once it is closed."""
        return self._fd

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
            bytes_held=self._held(),
            bytes_queued=self._queued,
        )

    def _held(self) -> int:
        framed = self._decoder.pending if self._decoder is not None else 0
        return len(self._stash) + len(self._postponed) + framed

    def _check_fd(self) -> None:
        if self._fd < 0:
            raise self._closed_error()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self._fd} peer={self.address!r} {self._state.value}>"


class _Drain:
    """The engine, waiting on a closing connection in a greenlet's place."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def switch(self, *value: Any) -> None:
        self._connection._drain()


class _Wake:
    """A wake-up of whoever waits for an entry, void if it has left by then."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Outgoing) -> None:
        self._entry = entry

    def __call__(self) -> None:
        if self._entry.waiter is not None:
            self._entry.waiter.switch()


class _WakeReader:
    """A wake-up of a greenlet that receives on a connection that was closed, void if it has left by then."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self) -> None:
        reader = self._connection._reader
        if reader is not None and not isinstance(reader, _Drain):
            reader.switch()
