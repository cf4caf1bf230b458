"""The life of a connection: its fields, its states, how it closes, and what is raised when it is over.

A connection owns its descriptor from the moment it is made until it is CLOSED. States and the legal transitions are in
``TRANSITIONS``. OPENING is the TLS handshake of one that was accepted (``handshakes.py``), or the making of one of the
server's own, which has no descriptor then (``dialling.py``). CLOSING belongs to the
engine: it flushes what waits to be sent, sends FIN, reads and drops what still comes until the peer's FIN, and closes,
all without a greenlet. (Closing a socket with unread input sends RST, which can destroy the answer that is on its way;
RFC 9112 section 9.6 tells the same story.) A greenlet that is blocked in a receiving downcall when its connection
closes is woken first, and the engine takes the reader's place after it.

Beside its state a connection has flags. Each says one thing, and may be set only where its right column allows; between
two steps of the engine all of that holds (``test_flags`` walks through all of them):

================  ==========================================  ==========================================================
flag              set means                                   only while
================  ==========================================  ==========================================================
``_plain``        a turn is one read and one upcall           OPEN, begun; no framer, stash, ``_eof`` or transport
``_clear``        a send may go straight to the kernel        OPEN, ``_writable``; no queue, ``_fin`` or transport
``_readable``     a read may find something                   (always; ignored once it is closed)
``_writable``     a write may find room                       (always; ignored once it is closed)
``_thorough``     a short read does not mean empty            (always)
``_idle``         it waits for its next turn                  it has a server
``_eof``          the peer's FIN was read                     not ``_plain``
``_fin``          our FIN is sent, or is in the queue         not ``_clear``
``_fresh``        the stash holds what no upcall has seen     OPEN, with a stash
``_stash``        bytes were read and not yet given out       OPEN, not ``_plain``
``_out``          something waits to be sent                  not CLOSED, not ``_clear``; then ``_queued`` counts it
``_kept``         ``send_nowait`` left some of that           ``_out``, and no more than ``_queued``
``_reader``       a greenlet receives, or the engine drains   a greenlet: until it has left; else OPENING, CLOSING
``_flushing``     a closing connection still sends            CLOSING, with ``_out``
``_linger_left``  a closing connection drops what comes       not OPEN, no ``_out``, no ``_flushing``
``_ended``        its last upcall was made, or is being made  not OPEN
``_transport``    it is not the bare descriptor that is used  not ``_plain``, not ``_clear``
``_fd``           0 or more: the descriptor is ours           not CLOSED
================  ==========================================  ==========================================================
"""

from __future__ import annotations

import enum
import errno
import os
import socket as _socket
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeVar, cast

from gevent.event import Event

from greensock.core.forks import ChildsPoller
from greensock.core.pace import Pace
from greensock.core.poller import Endpoint, Poller
from greensock.core.send_queue import Outgoing, Residue
from greensock.core.syscalls import (
    borrow_socket,
    both_sides_are_down,
    close,
    peer_has_hung_up,
    read,
    reset_on_close,
    unpack_address,
)
from greensock.core.transport import Sealing, SharedDescriptor, Transport
from greensock.errors import ConnectionClosed, ConnectionLost, ConnectionTruncated, DropReason, OperationTimeout
from greensock.tls import TLSInfo

__all__ = [
    "CLOSED",
    "CLOSING",
    "FLUSH_SECONDS",
    "INHERIT",
    "NEVER_STOOD",
    "OPEN",
    "OPENING",
    "TRANSITIONS",
    "Lifecycle",
    "Owner",
    "State",
    "Timeout",
]


class State(enum.Enum):
    """Where a connection is in its life."""

    #: TLS is being agreed on, or ``Server.connect`` still connects: no upcall was made, and downcalls raise
    #: ``ConnectionClosed``.
    OPENING = "opening"
    #: Downcalls work.
    OPEN = "open"
    #: Downcalls raise ``ConnectionClosed``; the engine flushes, sends FIN and drains.
    CLOSING = "closing"
    #: The descriptor is gone.
    CLOSED = "closed"


# A member of an enum is looked up through a descriptor before Python 3.12: 0.1 us, on the hot path.
OPENING, OPEN, CLOSING, CLOSED = State.OPENING, State.OPEN, State.CLOSING, State.CLOSED

#: Why one may end that was to be made (``Server.connect``) and never stood; ``_failure`` says more.
NEVER_STOOD = frozenset({DropReason.CONNECT_FAILED, DropReason.HANDSHAKE, DropReason.ERROR})

#: The legal transitions.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.OPENING: frozenset({State.OPEN, State.CLOSING, State.CLOSED}),
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

#: What a lingering close reads and drops at the most before it gives up on the peer. So much may be on its way before
#: the peer can know, in the buffers of both ends (Linux: 4 MiB there, 6 here). With 1 MiB, curl missed 2 % of refusals.
LINGER_BYTES = 1 << 24


#: Seconds without progress that a flush may take where neither ``linger_timeout`` nor ``send_timeout`` says how many.
FLUSH_SECONDS = 5.0

_Mine = TypeVar("_Mine", bound="Lifecycle")


class Owner(Protocol):
    """What a connection needs of the server that it belongs to: its settings, and to tell it of its end."""

    recv_size: int
    max_send_queue: int
    recv_timeout: float | None
    send_timeout: float | None
    min_send_rate: int
    linger_timeout: float

    def _released(self, conn: Lifecycle) -> None:
        """The descriptor of a connection is closed."""


class Lifecycle(Endpoint):
    """What receiving and sending stand on: all fields of a connection, and its way from OPEN to CLOSED."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_address",
        "_clear",
        "_decoder",
        "_drop_reason",
        "_due",
        "_ended",
        "_eof",
        "_events",
        "_failure",
        "_family",
        "_fin",
        "_flushing",
        "_fresh",
        "_idle_held",
        "_idle_moved",
        "_idle_since",
        "_kept",
        "_linger_due",
        "_linger_left",
        "_on_leave",
        "_out",
        "_plain",
        "_postponed",
        "_queued",
        "_read_deadline",
        "_stage",
        "_stash",
        "_state",
        "_transport",
        "bytes_received",
        "bytes_sent",
        "linger_timeout",
        "max_send_queue",
        "min_send_rate",
        "recv_size",
        "recv_timeout",
        "send_timeout",
        "server",
    )

    def __init__(self, poller: Poller, fd: int, family: int, address: Any, server: Owner | None = None) -> None:
        # Endpoint's fields are written out, not left to its __init__: one call less for each connection accepted.
        self._poller = poller
        self._fd = fd
        # Nothing is known of its input: the registration itself has the kernel tell what is there already. Room to
        # write is taken for granted instead, so that the first answer goes out without an event; at worst the kernel
        # says EAGAIN.
        self._readable = False
        self._writable = True
        # A Unix socket cuts a read short where descriptors were passed, and no event tells of that: there a short read
        # never means empty (test_passed_descriptors_stop_no_upcall_and_are_closed).
        self._thorough = family == _socket.AF_UNIX
        # No event makes it ready before the server says that it may have turns; one of the program's own never has any.
        self._idle = False
        self._reader = None
        self._armed = inf
        self._ready = None
        self._address = address  # bytes: packed, and not asked for so far
        #: The server that serves it, or None.
        self.server: Any = server
        self._family = family
        self._state = OPEN
        self._clear = True  # a send may go straight to the kernel
        self._transport: Transport | None = None  # with one it is never plain and never clear
        self._eof = False
        self._fin = False  # FIN was sent, or is in the queue
        self._failure: Exception | None = None
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
        self._flushing: Pace | None = None  # while a closing connection still has something to send
        self._linger_left = 0  # more than 0 while a closing connection drains
        self._drop_reason: DropReason | None = None
        self._stage = 0
        self._ended = False
        self._events: dict[str, Event] | None = None
        self._on_leave: Callable[[], object] | None = None
        self._due = inf  # of set_deadline
        self._idle_moved = -1  # bytes both ways, as of the last sweep at which some had moved, and when that was
        self._idle_held = 0  # by the kernel, when it was asked last
        self._idle_since = 0.0
        #: Bytes received and sent so far.
        self.bytes_received = 0
        self.bytes_sent = 0
        # Copied, not looked up in the server: each may be changed for one connection, and the hot path saves an
        # attribute.
        if server is None:
            self.recv_size = 65536
            self.max_send_queue = 1 << 20
            self.recv_timeout: float | None = None
            self.send_timeout: float | None = None
            self.min_send_rate = 0
            self.linger_timeout = 5.0
        else:
            self.recv_size = server.recv_size
            self.max_send_queue = server.max_send_queue
            self.recv_timeout = server.recv_timeout
            self.send_timeout = server.send_timeout
            self.min_send_rate = server.min_send_rate
            self.linger_timeout = server.linger_timeout

    @property
    def address(self) -> Any:
        """The peer: ``(host, port)`` for IPv4, four items for IPv6, ``""`` for a Unix socket. It can be set."""
        found = self._address
        if type(found) is bytes and self._family != _socket.AF_UNIX:
            found = self._address = unpack_address(self._family, found)
        return found

    @address.setter
    def address(self, address: Any) -> None:
        self._address = address

    @property
    def tls(self) -> TLSInfo | None:
        """What TLS agreed on: version, cipher, protocol, names, the peer's certificate; None: it is not spoken."""
        transport = self._transport
        return transport.info if isinstance(transport, Sealing) else None

    @property
    def state(self) -> State:
        """OPENING, OPEN, CLOSING or CLOSED."""
        return self._state

    @property
    def drop_reason(self) -> DropReason | None:
        """Why the connection ended; None while it is open."""
        return self._drop_reason

    # -- closing

    def __enter__(self: _Mine) -> _Mine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close: what was sent is flushed, then FIN, then input is dropped until the peer's FIN; never blocks.

        The engine does all this. It flushes as long as the peer takes something every ``linger_timeout`` seconds (0:
        ``send_timeout``, or 5), and then waits ``linger_timeout`` seconds for the FIN; 0: it does not wait. Downcalls
        that are blocked raise ``ConnectionClosed``; sends that have not begun are withdrawn. What was received and not
        yet read is dropped.
        Closing twice is harmless.
        """
        self._close(DropReason.CLOSED)

    def abort(self) -> None:
        """Close at once with RST; what was not sent is thrown away."""
        self._abort(DropReason.ABORTED)

    def wait_closed(self, timeout: float | None = None) -> None:
        """Block until the descriptor is closed (flushed and lingered).

        Raises:
            OperationTimeout: ``timeout`` seconds passed first.
        """
        # An event is made only for a greenlet that waits, and is set where the state changes: so the state is looked at
        # first.
        if self._state is not CLOSED and not self._event("closed").wait(timeout):
            raise OperationTimeout(f"not closed within {timeout} s", self, "wait_closed", timeout or 0.0)

    def wait_open(self, timeout: float | None = None) -> None:
        """Block until a connection that ``Server.connect`` makes stands; at once if it does.

        Raises:
            ConnectFailed, HandshakeFailed, OperationTimeout: it could not be made. The upcalls are told the same.
            ConnectionClosed: it was closed before, or has ended meanwhile.
            OperationTimeout: ``timeout`` seconds passed first; it is made all the same.
        """
        if self._state is OPENING and not self._event("open").wait(timeout):
            raise OperationTimeout(f"not open after {timeout} s", self, "wait_open", timeout or 0.0)
        if self._state is not OPEN:
            if self._failure is not None and self._drop_reason in NEVER_STOOD:
                raise self._failure
            raise self._closed_error()

    def wait_disconnect(self, timeout: float | None = None) -> None:
        """Block until the peer closed its side or the connection ended.

        Nothing is read: meant for a long answer whose reader may leave.

        Raises:
            OperationTimeout: ``timeout`` seconds passed first.
        """
        # No further edge tells what the peer did before, so that is looked at before the wait
        # (test_notify_disconnect_tells_what_has_happened_before).
        if self._state is not OPEN or self._eof or self._has_left():
            return
        if not self._event("hangup").wait(timeout):
            raise OperationTimeout(f"still there after {timeout} s", self, "wait_disconnect", timeout or 0.0)

    def set_deadline(self, seconds: float | None) -> None:
        """Have the connection dropped after so many seconds, whatever it does then; None: take that back.

        At rest, within an upcall or in a downcall, it is closed as by ``close()``, and ``drop_reason`` is DEADLINE; if
        that takes longer than ``linger_timeout`` (0: 5 s), it is reset. One that is closing by then is reset at once. A
        later call takes the place of an earlier one.

        Raises:
            ValueError: ``seconds`` is less than 0.
        """
        if seconds is None:
            self._due = inf
            return
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds!r}: 0 or more, or None, expected")
        self._due = monotonic() + seconds
        # One that is closed has no place on the heap, which would hold it until then
        # (test_a_deadline_on_what_is_closed_is_harmless). One that is armed for an earlier time looks at ``_due`` when
        # that comes.
        if self._state is not CLOSED and self._due < self._armed:
            self._poller.arm(self, self._due)

    def shutdown_read(self) -> None:
        """Take no more input: a receiving call gets what came before, and then the end."""
        self._check_open()
        with borrow_socket(self._fd, self._family) as sock:
            sock.shutdown(_socket.SHUT_RD)

    def notify_disconnect(self, callback: Callable[[], object] | None) -> bool:
        """Have ``callback`` called once when the peer closes its side or the connection ends; None: no more.

        False if that has happened before: nothing is called then. It is called in the hub or by the greenlet that
        closes, and must neither block nor raise. It costs next to nothing, where ``wait_disconnect`` takes a greenlet.
        """
        if callback is not None and (self._state is not OPEN or self._eof or self._has_left()):
            return False
        self._on_leave = callback
        return True

    def _has_left(self) -> bool:
        # An end is announced by an event that sets ``_thorough``: where none came, the system call is saved.
        return self._thorough and peer_has_hung_up(self._fd)

    def _call_on_leave(self) -> None:
        # Taken out before it is called: it may close the connection, which would call it once more
        # (test_notify_disconnect).
        callback, self._on_leave = self._on_leave, None
        if callback is not None:
            try:
                callback()
            except BaseException as error:  # it must not; but a close that stops half-way would never end
                self._poller.hub.handle_error(self, type(error), error, error.__traceback__)

    def is_at_rest(self) -> bool:
        """Whether ``idle_timeout`` applies between two turns; False while a limit of the class's own does."""
        return True

    def _watch(self) -> None:
        """Have the engine watch it from now on."""
        self._poller.register(self)

    def _event(self, name: str) -> Event:
        if self._events is None:
            self._events = {}
        return self._events.setdefault(name, Event())

    def _tell_open(self) -> None:
        if self._events is not None and "open" in self._events:
            self._events["open"].set()

    def _on_hangup(self) -> None:
        # The event may be meant for the previous owner of the descriptor, or made up by the poller after a failure, so
        # the kernel is asked before anything is reported (test_an_end_that_is_a_strangers_is_told_to_nobody). It is
        # asked only if the program wants to know, which is rare.
        if self._events is not None and "hangup" in self._events and peer_has_hung_up(self._fd):
            self._events["hangup"].set()
        if self._on_leave is not None and peer_has_hung_up(self._fd):
            self._call_on_leave()
        # A splice waits for its source, and would not hear that its target is gone
        # (test_splice_ends_with_a_target_that_its_peer_resets).
        if self._out:
            self._out[0].nudge()

    def _close(self, reason: DropReason) -> None:
        # The first reason stays: what happens to a connection that is closing already is not reported
        # (test_states_change_as_the_table_says).
        if self._state is not OPEN:
            if self._state is OPENING:
                self._abort(reason)
            return
        if self._poller._corked:
            self._poller.uncork_for(self)
            if self._state is not OPEN:
                return  # the peer was gone
        # The state first, the queue second: a sender whose entry is withdrawn is woken, and has to find the connection
        # closing. Each step may be the last one, in ``_release``: a flush that fails resets. So ``_fd`` is looked at
        # after them.
        self._leave_open(CLOSING, reason)
        if self._out:
            self._wind_up()
        self._close_further()
        if self._fd < 0:
            return
        now = monotonic()
        if self._out:
            # ``linger_timeout = 0`` means that the peer's FIN is not waited for. What was sent is flushed all the same
            # (test_close_flushes_what_is_queued), but not for ever (test_a_flush_that_goes_nowhere_ends).
            seconds = self.linger_timeout or self.send_timeout or FLUSH_SECONDS
            is_exact = self._family != _socket.AF_UNIX
            self._flushing = Pace(self._fd, self.bytes_sent, seconds, self.min_send_rate, now, is_exact)
            self._linger(self._flushing.first_look())
        else:
            self._linger(now + self.linger_timeout)

    def _close_now(self, reason: DropReason) -> None:
        """Close without a linger: nothing is queued, nobody reads, and nothing came that was not read."""
        self._leave_open(CLOSED, reason)
        if self._transport is not None:
            self._say_goodbye()
        self._release()

    def _abort(self, reason: DropReason) -> None:
        if self._state is CLOSED:
            return
        if self._state is OPENING and self._fd < 0:  # it never had one: it is still being made
            self._leave_open(CLOSED, reason)
            for event in (self._events or {}).values():
                event.set()
            self.server._released(self)
            return
        # SO_LINGER belongs to the connection and not to our descriptor: the last holder's close would send RST
        # (test_an_abort_of_a_shared_one_resets_nothing_for_the_others).
        if not self._is_shared():
            try:
                reset_on_close(self._fd, self._family)
            except OSError:
                pass  # the kernel has given it up already; closing is all that is left
        if self._state is not CLOSING:
            self._leave_open(CLOSED, reason)
        self._release()

    def _fail(self, error: Exception) -> None:
        """Reset a connection that broke, or on which the engine cannot go on sending."""
        if self._state is OPEN:
            # Without its traceback, which holds the frames that it passed, and through them this connection.
            self._failure = error.with_traceback(None)
        self._abort(DropReason.LOST)

    def _leave_open(self, state: State, reason: DropReason) -> None:
        # The state before all else: the callbacks below may come back with ``close()`` or ``abort()``, which then do
        # nothing or end what is left (test_states_change_as_the_table_says).
        self._state = state
        self._drop_reason = reason
        # The fast paths look at one flag each and not at the state. With these cleared they come to the slow ones,
        # which look and raise (test_flags).
        self._readable = self._clear = self._plain = self._fresh = False
        if self._poller._corked:  # not by ``_close``, which has sent it
            self.bytes_sent -= len(self._poller._corked.pop(self, b""))
        # The program may keep the connection for long: what came and was not read is not kept with it
        # (test_an_upcall_that_closed_gets_nothing_more).
        self._stash = b""
        self._decoder = None
        self._read_deadline = inf
        if self._events is not None and "hangup" in self._events:
            self._events["hangup"].set()
        if self._on_leave is not None:
            self._call_on_leave()
        # A blocked greenlet is woken later, by the hub, and never switched to from here: it would run in the middle of
        # the greenlet that closes (test_close_wakes_blocked_downcalls). A splice into this connection waits on another
        # one; it is woken by ``nudge`` (test_splice_ends_with_a_target_that_the_program_closes).
        if self._reader is not None:
            self._wake_reader()
        if self._out is not None:
            for entry in self._out:
                self._wake_sender(entry)
                entry.nudge()
        # One at rest gets a last turn, for ``connection_drop`` is an upcall: it may block, so it runs in a worker
        # (test_idle_timeout). One that is queued or in its turn comes to its end there.
        if self._idle:
            self._poller.queue(self)

    def _close_further(self) -> None:
        """Take the next step of closing, if its time has come: flush, FIN, drain, close."""
        # Called by each event that may have made the next step due: the close, the last byte flushed, the reader that
        # left. There is one place for a reader: a greenlet in it leaves first, and calls this again as it goes.
        reader = self._reader
        if self._fd < 0 or (reader is not None and not isinstance(reader, _Engine)):
            return  # a greenlet still has to leave its downcall
        if self._out:
            # The engine sits in the reader's place already while it flushes, so that a late read is refused and cannot
            # take what comes now (test_what_comes_while_a_closing_connection_flushes_is_dropped).
            self._reader = reader or _Engine(self)
            return
        # A close with unread input sends a reset, which destroys what is on its way to the peer. So: FIN first, then
        # read and drop until the peer's own FIN (test_drop_after_an_answer_with_unread_input). No linger where that FIN
        # has come, where no linger is wanted, or where another process holds the connection, too.
        if self._eof or not self.linger_timeout or self._is_shared():
            if self._transport is None or self._say_goodbye():
                self._release()
            return
        try:
            self._shutdown()
        except BlockingIOError:
            self._await_room(reader)
            return
        except OSError:
            self._release()  # the peer is gone: nothing to wait for
            return
        self._reader = reader or _Engine(self)
        self._linger_left = LINGER_BYTES
        if self._flushing is not None:  # all is out now: from here on it is the peer's FIN that is waited for
            self._flushing = None
            self._linger(monotonic() + self.linger_timeout)
        # At once, not with the next event: what has come was announced before, and edges come once
        # (test_an_end_that_came_before_the_close_is_found_by_it).
        self._drain()

    def _say_goodbye(self) -> bool:
        """Have a transport that encrypts tell the peer that this is the end; False: there is no room for that yet."""
        transport = self._transport
        if isinstance(transport, Sealing):
            try:
                transport.end()
            except BlockingIOError:
                if self._state is CLOSING:
                    self._await_room(self._reader)
                    return False
            except OSError:
                pass  # the peer is gone
        return True

    def _await_room(self, reader: Any) -> None:
        """Go on with a close when the kernel has room for what the transport has still to send."""
        self._writable = False
        self._keep_rest()
        self._reader = reader or _Engine(self)
        if self._flushing is None:
            seconds = self.linger_timeout or FLUSH_SECONDS
            is_exact = self._family != _socket.AF_UNIX
            self._flushing = Pace(self._fd, self.bytes_sent, seconds, self.min_send_rate, monotonic(), is_exact)
            self._linger(self._flushing.first_look())

    def _keep_rest(self) -> None:
        """Have the engine send what the transport could not, though nobody sends anything behind it."""
        transport = self._transport
        if self._fd < 0 or not isinstance(transport, Sealing) or not transport.pending:
            return
        if self._state is OPENING:
            self._writable = False  # the handshake goes on when there is room
            return
        if self._out and not self._out[0].stalled:
            return  # whoever is in front sends it
        entry = Residue(transport)
        if self._out is None:
            self._out = deque()
        self._out.appendleft(entry)
        self._queued += entry.left
        self._clear = self._writable = False
        if self._state is OPEN:
            self._leave_to_engine(entry)

    def _leave_to_engine(self, entry: Outgoing) -> None:
        """Bound the time of an entry that no greenlet waits for."""
        raise NotImplementedError

    def _drain(self) -> None:
        """Read and drop until the peer's FIN, the bound, or the lack of input."""
        try:
            # A bound on what is dropped, and one on the time in ``_linger``: a peer that sends for ever is reset in the
            # end (test_a_closing_connection_drops_so_many_bytes_and_no_more,
            # test_a_peer_that_drips_does_not_hold_a_closing_connection).
            while self._linger_left > 0:
                dropped = len(read(self._fd, 65536) if self._transport is None else self._transport.read(65536))
                if not dropped:
                    break
                self._linger_left -= dropped
        except BlockingIOError:
            return
        except OSError:
            pass  # reset by the peer: as good as closed
        self._release()

    def _linger(self, due: float) -> None:
        """See to it that the close is looked at when it is ``due``."""
        self._linger_due = due
        # An entry that comes due earlier looks at ``_linger_due`` by itself.
        if due < self._armed:
            self._poller.arm(self, due)

    def _linger_is_over(self, now: float) -> float:
        """End a close for which the time is over; return when to look again if the peer still takes what it is sent."""
        if not self._out or self._flushing is None:
            self._release()  # all is with the kernel, which goes on without us
            return inf
        # By what the peer took and not by the clock alone: a slow reader gets all of it
        # (test_a_peer_that_reads_slowly_gets_all_of_it).
        again = self._flushing.next_look(self._fd, self.bytes_sent, now)
        if again is None:
            self._abort(DropReason.CLOSED)  # the peer must see that the answer was cut short
            return inf
        self._linger_due = again
        return again

    def _release(self) -> None:
        """Close the descriptor. Readers are woken by ``_leave_open``, which comes before."""
        if self._fd < 0:
            return
        # Out of the epoll set and out of our books before the number is given back: from ``close`` on it may be another
        # file's, in another thread too (test_reused_descriptor_while_the_upcall_is_blocked_under_load).
        self._state = CLOSED
        self._clear = self._readable = False
        self._flushing = None
        # ``close`` alone takes no descriptor out of an epoll set while a duplicate is open, here or in a child: its
        # events would go on coming, under a number that is another file's
        # (test_the_engine_hears_no_more_of_what_others_go_on_with).
        transport = self._transport
        self._poller.forget(self, self.is_duplicated or (transport is not None and transport.is_shared))
        # The heap would hold the connection until its deadline (test_deadlines_do_not_pile_up).
        if self._armed != inf:
            self._poller.disarm(self)
        # Forgotten first, closed second: a double close is impossible, whatever the rest of this runs into.
        fd, self._fd = self._fd, -1
        if transport is not None:
            transport.close()
        close(fd)
        if isinstance(self._reader, _Engine):
            self._reader = None
        if self._out is not None:
            # Their waiters find ``left`` above 0 and raise. An entry may hold a pipe or a duplicate of a file: it lets
            # go of them (test_a_splice_that_is_broken_off_gives_no_bytes_to_the_next).
            for entry in self._out:
                self._wake_sender(entry)
                entry.discard()
            self._out = None
            self._queued = self._kept = 0
        if self._events is not None:
            for event in self._events.values():
                event.set()
        if self.is_duplicated:
            self.descriptor_closed()
        # Last: it may be the end of what a draining server waits for.
        if self.server is not None:
            self.server._released(self)

    #: Whether a class keeps duplicates of its descriptors: then a close alone takes none out of the epoll set.
    is_duplicated: ClassVar[bool] = False

    def descriptor_closed(self) -> None:
        """The descriptor is closed; called only if the class ``is_duplicated``. It must neither block nor raise."""

    #: Whether it lives on in the child of a fork that happened in its turn, and is shared with that then.
    survives_fork: ClassVar[bool] = True

    def _share(self) -> None:
        """Treat the descriptor as one that others may hold, too."""
        if self._poller._corked:
            self._poller.uncork_for(self)
        if self._transport is None:
            self._transport = SharedDescriptor(self._fd, self._family)
            self._plain = self._clear = False
        elif isinstance(self._transport, Sealing):
            self._transport.expose()

    def _divide(self) -> None:
        """Be told that the process forks, and that both go on with it."""
        self._share()
        if isinstance(self._transport, Sealing):
            self._transport.fork()

    def _is_shared(self) -> bool:
        return self._transport is not None and self._transport.is_shared

    def _survive_fork(self) -> None:
        """In the child of a fork that happened in its turn: live on there, with what belongs to this process alone.

        What waits to be sent is the parent's to send, and so are its other greenlets to wake.
        """
        # Both processes hold the same open connection: bytes that both sent would arrive twice
        # (test_what_was_queued_is_the_parents_to_send).
        self._out = None
        self._queued = self._kept = 0
        self._reader = None
        self._events = None
        self._on_leave = None
        # Its entry is on the heap of the parent's poller.
        self._armed = self._read_deadline = self._due = inf
        self._idle = False
        self._poller = cast(Any, ChildsPoller(self))

    def _leave_to_parent(self) -> int:
        """In the child of a fork in which it does not live on: close it, unless ``fileno()`` has exposed it."""
        was_exposed = isinstance(self._transport, SharedDescriptor) and self._transport.was_exposed
        fd = self._give_up_descriptor()
        # The program may hold the number in an object of its own, which closes it: a second close could hit another
        # file (test_whose_number_was_shown_is_open_in_the_child).
        if not was_exposed:
            close(fd)
        return -1

    def _give_up_descriptor(self) -> int:
        """Return the descriptor, which is the caller's to close from now on: neither ours nor a transport's."""
        fd, self._fd = self._fd, -1
        if self._transport is not None:
            self._transport.close()
        return fd

    def _shutdown(self) -> None:
        if self._transport is not None:
            self._transport.shut()
            return
        with borrow_socket(self._fd, self._family) as sock:
            sock.shutdown(_socket.SHUT_WR)

    def _wind_up(self) -> None:
        """Make the send queue end: withdraw what has not begun, flush the rest."""
        raise NotImplementedError

    # -- waking, always in the hub

    def _wake_reader(self) -> None:
        """Have a greenlet that receives look again."""
        self._poller.call_soon(_WakeReader(self))

    def _wake_sender(self, entry: Outgoing) -> None:
        """Have the greenlet that waits for the entry, if any, look again."""
        if entry.waiter is not None:
            self._poller.call_soon(_Wake(entry))

    # -- errors

    def _check_open(self) -> None:
        if self._state is not OPEN:
            raise self._closed_error()

    def _check_connected(self) -> None:
        """Raise if the connection is closed, or is broken and that was not noticed so far."""
        self._check_open()
        # An epoll event says that something ended, not what. The kernel knows, and most often need not be asked
        # (test_splice_ends_with_a_target_that_its_peer_resets).
        if self._thorough and both_sides_are_down(self._fd):
            self._probe()
            raise self._lost(OSError(errno.EPIPE, os.strerror(errno.EPIPE)))

    def _check_fd(self) -> None:
        if self._fd < 0:
            raise self._closed_error()

    def _closed_error(self) -> ConnectionClosed | ConnectionLost:
        reason = self._drop_reason
        if reason is DropReason.LOST:
            lost = ConnectionLost(f"the connection was lost: {self._failure}", self)
            lost.__cause__ = self._failure
            return lost
        if reason is DropReason.TRUNCATED:
            lost = ConnectionTruncated(f"the connection was cut: {self._failure}", self)
            lost.__cause__ = self._failure
            return lost
        if self._state is OPENING:
            return ConnectionClosed("the connection does not stand yet: wait_open() waits for that", self)
        return ConnectionClosed(f"the connection is closed: {reason.value if reason else 'closed'}", self, reason)

    def _lost(self, error: OSError) -> ConnectionClosed | ConnectionLost:
        """Translate what a system call said, and let go of a connection that is of no more use."""
        # The greenlet that met the error does not wait here; another one that does is woken and raises the same. If the
        # connection was closed before, the error says why it was closed, and not what this call met.
        if self._state is OPEN:
            self._failure = error.with_traceback(None)
            self._leave_open(CLOSED, getattr(error, "drop_reason", DropReason.LOST))
            self._release()
        return self._closed_error()

    def _probe(self) -> None:
        """Raise ``ConnectionLost`` if the connection ended by an error."""
        with borrow_socket(self._fd, self._family) as sock:
            # Reading it clears it: it is asked only where the answer is acted upon.
            error = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            raise self._lost(OSError(error, os.strerror(error)))


class _Engine:
    """The engine, in the place of a connection's reader from the beginning of CLOSING on."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Lifecycle) -> None:
        self._connection = connection

    def switch(self, *value: Any) -> None:
        # While it flushes, input stays in the kernel, where TCP holds the peer back
        # (test_what_comes_while_closing_does_not_keep_the_engine_busy).
        if self._connection._linger_left > 0:
            self._connection._drain()


class _Wake:
    """A wake-up of the greenlet that waits for an entry, void if it has left by then."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Outgoing) -> None:
        self._entry = entry

    def __call__(self) -> None:
        # Between the order and the wake-up a timeout or a kill may have taken the greenlet away: it may wait elsewhere
        # by now (test_a_wake_up_that_comes_too_late_reaches_nobody).
        if self._entry.waiter is not None:
            self._entry.waiter.switch()


class _WakeReader:
    """A wake-up of a greenlet that receives, void if it has left by then."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Lifecycle) -> None:
        self._connection = connection

    def __call__(self) -> None:
        # Looked up now: since the order another greenlet, or the engine, may have taken the place.
        reader = self._connection._reader
        if reader is not None and not isinstance(reader, _Engine):
            reader.switch()
