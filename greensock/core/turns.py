"""The turn: what a server does with a connection that is ready, in a worker.

``connection_new`` if it is new; then read and ``connection_recv`` until the socket is drained or the turn's budget is
spent; then ``connection_recv_finish``; ``connection_eof`` when the peer is done; and when the connection has ended,
``connection_drop``. Invariants:

- Upcalls of one connection never overlap: it is idle, queued, or in its turn, and only an idle one is queued.
- ``connection_drop`` runs exactly once for each connection whose ``connection_new`` ran, whatever that returned.
- While an upcall runs its connection is not read: TCP's own back-pressure holds the peer.
- No exception leaves a turn.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from socket import AF_UNIX
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import gevent
from greenlet import GreenletExit

from greensock.core.connection import Connection
from greensock.core.lifecycle import CLOSED, NEVER_STOOD, OPEN, OPENING, Lifecycle
from greensock.core.poller import Poller
from greensock.core.sctp import SCTPTransport
from greensock.core.syscalls import both_sides_are_down, close, has_input, has_unacknowledged, read
from greensock.core.transport import Sealing
from greensock.core.upcalls import DROP, HALF_OPEN, OK, POSTPONE, ConnectionT, Upcalls, Verdict
from greensock.core.workers import Turn, Workers, forget_context
from greensock.errors import DropReason, GreensockError, IncompleteMessage, MessageTooLong
from greensock.framing import Framer
from greensock.log_limit import LogLimit
from greensock.tls import TLS, server_contexts

if TYPE_CHECKING:
    import ssl

    from greensock.core.handshakes import Handshakes

__all__ = ["SERVED", "Tally", "Turns"]

log = logging.getLogger("greensock.server")

#: How many messages are cut, or small reads made, between two looks at the clock: a turn ends when the poller says so.
MESSAGES_PER_LOOK = READS_PER_LOOK = 32

#: Seconds for which a connection that always has more to be read gets turns while the server drains.
PIPELINE_SECONDS = 1.0

#: Seconds of silence after which a draining server no longer waits for a peer: for the rest of a message, for what
#: ``handle`` is to read, for its FIN.
QUIET_SECONDS = 1.0

#: The upcalls that may return POSTPONE; after the last data it means that the message stays incomplete.
MAY_POSTPONE = ("connection_recv", "connection_eof")

# How far a connection's upcalls have come: none was made; connection_new was; connection_eof was and kept it open;
# connection_error was; all were.
_NEW, SERVED, _HALF_OPEN, _ERROR_TOLD, _ALL_TOLD = range(5)
# Names of the module, as in lifecycle.py: to look up a member of an enum is slow before Python 3.12.
_PEER_CLOSED = DropReason.PEER_CLOSED


class Tally:
    """What a server counts of its connections: those that came, those that live, and what went through the others."""

    __slots__ = ("accepted", "alive", "connected", "messages", "received", "sent")

    def __init__(self) -> None:
        self.accepted = 0
        self.alive = 0
        #: Those that the server made, and that stood.
        self.connected = 0
        #: Those that framers have cut.
        self.messages = 0
        #: Bytes, both ways, of connections whose descriptor is closed.
        self.received = 0
        self.sent = 0


class Turns(Upcalls[ConnectionT]):
    """A server's dealings with its connections, from the first turn of each to its end."""

    connection_class: type[ConnectionT]
    framer: Framer | None
    recv_size: int
    recv_timeout: float | None
    send_timeout: float | None
    min_send_rate: int
    linger_timeout: float
    max_send_queue: int
    turn_budget: int
    max_postponed: int
    tls: TLS | ssl.SSLContext | None
    protocol: str
    handshake_timeout: float | None
    max_handshakes: int
    _handshakes: Handshakes | None
    #: The connections that are being made (``dialling``).
    _dials: dict[Any, Any]
    _poller: Poller
    _draining: bool
    _draining_since: float
    _tally: Tally
    _spread: float
    _spread_since: float
    error_count: int
    _failures_logged: LogLimit
    _dropped: dict[str, int]
    #: What goes through the ready queue to be looked at, and is no connection; and what is told when its turn came
    #: (``sampling``).
    _probe: Any = None
    _probed: Callable[[], object]
    #: The upcalls that were given as functions.
    _functions: frozenset[str]

    def _prepare_turns(self, poller: Poller, max_workers: int | None) -> None:
        """Bind what the turns use, once: upcalls that are not overridden cost nothing."""
        self._poller = poller
        handle = self.given_upcall("handle")
        # Chosen here, once for all turns: the two styles share no loop, so neither pays for the other.
        drain = _drain_upcalls if handle is None else _drain_handles
        self._workers = Workers(poller.hub, partial(drain, self), max_workers)
        poller.worker_pools.append(self._workers)
        self._make_ready = self._workers.ready.append
        self._on_handle = handle
        self._on_transport = self.given_upcall("transport_for")
        if self.protocol == "sctp":
            self._on_transport = SCTPTransport
        self._handshakes = None
        self._dials = {}
        if self.tls is not None:
            self._on_transport = self.transport_for
            self._handshakes = self._prepare_handshakes(poller)
        self._on_handshake_failed = self.given_upcall("handshake_failed")
        self._on_new = self.given_upcall("connection_new")
        self._on_recv = self.connection_recv
        self._on_finish = self.given_upcall("connection_recv_finish")
        self._on_eof = self.given_upcall("connection_eof")
        self._on_drop = self.given_upcall("connection_drop")

    def _prepare_handshakes(self, poller: Poller) -> Handshakes:
        # Not before somebody speaks TLS: it loads OpenSSL.
        from greensock.core.handshakes import Handshakes

        assert self.tls is not None
        return Handshakes(
            poller,
            server_contexts(self.tls),
            self.handshake_timeout,
            self.max_handshakes,
            self._begin_sealed,
            self.plaintext_answer,
            getattr(self, "take_preface", None),
        )

    def given_upcall(self, name: str) -> Callable[..., Any] | None:
        """Return an upcall that the program gave; None if it gave none, so that no empty method is called."""
        upcall: Callable[..., Any] = getattr(self, name)
        return upcall if self.overrides_upcall(name, Upcalls) else None

    def overrides_upcall(self, name: str, base: type) -> bool:
        """Whether an upcall is another than the base's: a method of a subclass, or a function that was given."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(base, name)

    def connection_ended(self) -> None:
        """Count a connection whose descriptor is closed and whose last upcall was made."""
        raise NotImplementedError

    # -- the beginning of a connection, and which there are

    def _serve(self, fd: int, family: int, address: Any) -> ConnectionT:
        conn: ConnectionT = serve(self, fd, family, address)
        return conn

    def _take_transport(self, conn: ConnectionT, fd: int) -> bool:
        """Give a new connection its transport, if it gets one; True: it speaks TLS, and its turns begin behind that."""
        if self._handshakes is None:
            assert self._on_transport is not None
            transport = self._on_transport(conn, fd)
            if transport is not None:
                conn._transport = transport
                conn._clear = False
            return False
        self._handshakes.begin(conn)
        try:
            self._poller.register(conn)
        except BaseException:
            self._handshakes.forget(conn)
            conn._idle, conn._reader = False, None
            raise
        self._tally.accepted += 1
        self._tally.alive += 1
        return True

    def _begin_sealed(self, conn: ConnectionT) -> None:
        """Have the upcalls begin of a connection whose handshake is done."""
        if self._on_new is not None or self._on_handle is not None:
            self._poller.queue(conn)
            return
        conn._stage = SERVED
        # What came behind the handshake was read with it, and no event tells of that
        # (test_data_that_comes_with_the_end_of_the_handshake).
        if conn._readable or self._draining:
            self._poller.queue(conn)

    def _begin_made(self, conn: ConnectionT) -> None:
        """Have the upcalls begin of a connection that the server made."""
        if self._on_new is not None or self._on_handle is not None:
            conn._stage = _NEW
            self._poller.queue(conn)
        elif conn._readable or self._draining:
            self._poller.queue(conn)
        else:
            conn._plain = conn._decoder is None and conn._transport is None

    def plaintext_answer(self, conn: Any, data: bytes) -> bytes:
        """Return what a peer is told that speaks no TLS to a server that does; ``data`` is what came first of it."""
        return b""

    def _mine(self) -> list[ConnectionT]:
        if not hasattr(self, "_poller"):
            return []
        mine = [
            cast(Any, endpoint)
            for endpoint in self._poller.endpoints()
            if isinstance(endpoint, Connection) and endpoint.server is self
        ]
        return [*self._dials, *mine]

    # -- turns

    def _full_turn(self, conn: ConnectionT) -> bool:
        """Give a turn to a connection that is new, framed, has a stash, or has ended; True if there is more to read."""
        # It was closed while it was queued. No upcall is due but ``connection_drop``, which ``_end`` makes if
        # ``connection_new`` was called.
        if conn._state is not OPEN:
            if conn is self._probe:
                self._probed()
            return False
        if conn._stage == _NEW:
            self._begin(conn)
            if conn._state is not OPEN:
                return False
        return self._read_turn(conn) if conn._decoder is None else _framed_turn(self, conn)

    def _rest(self, conn: ConnectionT, again: bool) -> None:
        """Let the connection wait for its next event, or for its next turn if one is due."""
        # The one place where ``_plain`` gets true again: what makes it false need not think of when that ends
        # (test_flags).
        conn._plain = conn._decoder is None and not conn._stash and not conn._eof and conn._transport is None
        # ``_readable`` once more: an event that came while the last upcall was blocked does not come again. Behind the
        # end of input the flag stays set for ever, and would keep the engine busy.
        if again or (conn._readable and not conn._eof):
            if (
                self._draining
                and monotonic() >= self._draining_since + PIPELINE_SECONDS
                and not (self._spread and self.spares(conn))
            ):
                # A peer that never stops is served for a second of the drain, and no longer
                # (test_a_flood_does_not_keep_a_server).
                conn._idle = True  # so that it gets the turn in which its end is told
                conn._close(DropReason.STOPPED)
            else:
                self._poller.requeue(conn)
        else:
            conn._idle = True
            if self._draining:
                self._end_rest(conn, was_heard=True)

    def _end_rest(self, conn: Connection, was_heard: bool = False) -> None:
        """Close a connection that waits for its peer while the server drains, unless part of a message came.

        No linger is needed once all input was read and the peer has all that was sent. Input that has come gets a last
        turn; one that ``was_heard`` gets more turns for a second, as a client that pipelines has several messages on
        their way. What is on its way to the peer gets as long to arrive as it would in a linger, and is looked at
        again.
        """
        # So that its next turn is no short one, which would end without a look at the draining.
        conn._plain = False
        if self._poller._corked:
            self._poller.uncork_for(conn)  # it is on its way like all else (test_what_is_sent_soon_while_it_drains)
        if not conn._idle or conn._out or _came_in_part(conn) or (self._spread and self.spares(conn)):
            return
        if conn._eof:
            conn._close(DropReason.STOPPED)
        elif has_input(conn._fd):
            if was_heard and monotonic() >= self._draining_since + PIPELINE_SECONDS:
                conn._close(DropReason.STOPPED)
            else:
                conn._readable = True
                self._poller.queue(conn)
        elif self._spread and was_heard:
            conn._close(DropReason.STOPPED)  # its moment has come, though it is never quiet
        elif (
            conn._family == AF_UNIX  # whose bytes are with the peer as soon as they are sent
            or not has_unacknowledged(conn._fd)
            or monotonic() >= self._draining_since + conn.linger_timeout
        ):
            conn._close_now(DropReason.STOPPED)

    def spares(self, conn: Connection) -> bool:
        """Whether a connection may rest for now, though the server drains: see ``Server.hand_over``."""
        # One of 1,024 moments within the second half, by its descriptor (a multiple of the golden ratio's).
        moment = (conn._fd * 0x9E3779B1 >> 22 & 1023) / 1024
        return monotonic() < self._spread_since + self._spread * (1 + moment) / 2

    def end_resting(self, heard: dict[Connection, tuple[int, float]]) -> None:
        """End what waits for its peer; ``heard`` holds what came from each that may wait a little, and when."""
        now = monotonic()
        for conn in self._mine():
            conn._plain = False  # so that its turn ends in _rest, which looks whether it is to go on
            if conn._fd < 0:  # it is being made
                conn._abort(DropReason.STOPPED)
                continue
            # Who is in its handshake has just come, and is to ask first
            # (test_who_shakes_hands_while_it_is_handed_over_is_served).
            if self._spread and (conn._state is OPEN or conn._state is OPENING) and self.spares(conn):
                heard.pop(conn, None)
                continue
            if conn._idle and conn._state is OPEN:
                self._end_rest(conn)
            elif conn._state is OPENING and self._is_handshake_in_vain(conn, now):
                conn._abort(DropReason.STOPPED)
            if not self._waits_in_vain(conn):
                heard.pop(conn, None)
                continue
            # It grows with each byte that comes, whether that is given out or dropped.
            mark = conn.bytes_received - conn._linger_left  # what a linger drops is counted there only
            if isinstance(conn._transport, Sealing):
                mark += conn._transport.partial
            before, since = heard.setdefault(conn, (mark, now))
            if mark != before:
                heard[conn] = mark, now
            elif now - since >= QUIET_SECONDS:
                self._give_up(conn)

    def _is_handshake_in_vain(self, conn: Any, now: float) -> bool:
        """Whether a draining server waits no longer for a handshake: it has not begun, or takes long."""
        return not conn._transport.is_begun or now >= self._draining_since + QUIET_SECONDS

    def _waits_in_vain(self, conn: Connection) -> bool:
        """Whether it may be that the peer has no more to say: inside a message, in ``handle``, or after our FIN."""
        if conn._fd < 0 or conn._out:
            return False
        if conn._state is OPEN:
            return _came_in_part(conn) if conn._idle else self._on_handle is not None and conn._reader is not None
        return conn._linger_left > 0

    def _give_up(self, conn: Connection) -> None:
        """Close a connection that waited in vain; without a linger if nothing is on its way."""
        if not has_input(conn._fd) and not (conn._family != AF_UNIX and has_unacknowledged(conn._fd)):
            # Nothing is on its way in either direction, so the linger has nothing to protect.
            conn.linger_timeout = 0.0
            if conn._state is not OPEN:
                conn._release()
        conn._close(DropReason.STOPPED)

    def _turn_raised(self, conn: ConnectionT, error: BaseException, is_read: bool) -> None:
        """End a turn in which something was raised: by its first read, if ``is_read``, or by an upcall."""
        if is_read and isinstance(error, OSError):
            try:
                self._nothing_read(conn, error)
                self._rest(conn, False)
                return
            except BaseException as failure:
                error = failure
        self._failed(conn, error)
        _end(self, conn)

    def _nothing_read(self, conn: ConnectionT, error: OSError) -> bytes:
        """Take a failed read: nothing was there after all, or the connection is broken."""
        if isinstance(error, BlockingIOError):
            conn._found_empty()
            return b""
        raise conn._lost(error) from error

    def _handle_turn(self, conn: ConnectionT) -> None:
        """Give the connection its one turn in the blocking style."""
        try:
            # It may have been closed while it waited for a worker.
            if conn._state is OPEN:
                if self._on_new is not None:
                    self._begin(conn)
                conn._stage = SERVED
                if conn._state is OPEN and self._on_handle is not None:
                    self._on_handle(conn)
                # No effect if ``handle`` closed it itself: the first reason stays.
                conn._close(DropReason.PEER_CLOSED if conn._eof else DropReason.CLOSED)
            elif conn is self._probe:
                self._probed()
        except BaseException as error:
            self._failed(conn, error)
        _end(self, conn)

    def _begin(self, conn: ConnectionT) -> None:
        # Before the upcall: if that raises, or is killed, ``connection_drop`` is due all the same
        # (test_drop_in_connection_new).
        conn._stage = SERVED
        if self._on_new is not None and self._obey(conn, self._on_new(conn), "connection_new"):
            conn._close(DropReason.REFUSED)

    def _read_turn(self, conn: ConnectionT, data: bytes = b"", verdict: Verdict | None = None) -> bool:
        """Read and call ``connection_recv`` until the socket is drained; True if the budget was spent before.

        If ``data`` is given, it was read and an upcall was made for it already, which returned ``verdict``.
        """
        size = self.recv_size
        budget, is_first = self.turn_budget, True
        heard = bool(data)
        while True:
            if data:
                heard = True
                budget -= len(data)
                if verdict is not None and self._obey(conn, verdict, "connection_recv", data):
                    conn._close(DropReason.VERDICT)
                    return False
                # Only what an upcall has seen and left counts. Fresh bytes are given to the next one in this very turn.
                if len(conn._stash) > self.max_postponed and not conn._fresh:
                    raise _postponed_too_much(conn, self.max_postponed)
            if conn._state is not OPEN or conn._eof:
                break
            # What a raw read has left over comes before the socket: it came before, and no event will tell of it again
            # (test_what_a_raw_read_got_before_its_timeout_is_given_to_the_upcall).
            if conn._fresh:
                data = conn._take(len(conn._stash))
            elif not conn._readable or budget <= 0 or not (is_first or monotonic() <= self._poller.until):
                break
            else:
                # One read is made however late it is, so that each turn gets on.
                is_first = False
                try:
                    data = read(conn._fd, size) if conn._transport is None else conn._transport.read(size)
                except OSError as error:
                    self._nothing_read(conn, error)
                    break
                if not conn._received(len(data), size):
                    break
                # What was postponed, in front of what came (test_postpone_gives_the_bytes_back_in_front).
                if conn._stash:
                    data = bytes(conn._stash) + data
                    conn._stash = b""
            verdict = self._on_recv(conn, data)
        return self._finish_turn(conn, heard)

    def _feed(self, conn: ConnectionT, decoder: Any, data: bytes) -> None:
        try:
            decoder.feed(data)
        except GreensockError as error:
            _own(error, conn)
            raise

    def _finish_turn(self, conn: ConnectionT, heard: bool, more: bool = False) -> bool:
        """Make the upcalls at the end of a turn; True if there is more to read, or ``more`` messages to give."""
        if heard and self._on_finish is not None and conn._state is OPEN:
            if self._obey(conn, self._on_finish(conn), "connection_recv_finish"):
                conn._close(DropReason.VERDICT)
        if conn._eof and conn._state is OPEN and not more:
            self._peer_is_done(conn)
            return False
        # What is ``_fresh`` has been read already, so no event would bring its turn.
        return more or conn._readable or conn._fresh

    def _peer_is_done(self, conn: ConnectionT) -> None:
        # ``connection_eof`` is made once. But each event of our own sending has the peer's FIN in its mask, and brings
        # a turn (test_half_open_survives_the_events_of_its_own_sending).
        if conn._stage == _HALF_OPEN:
            self._look_for_more_than_eof(conn)
            return
        conn._stage = _HALF_OPEN
        if self._on_eof is not None:
            verdict = self._on_eof(conn)
            if conn._state is not OPEN:
                return
            if verdict is HALF_OPEN:
                self._look_for_more_than_eof(conn)  # what came while the upcall ran comes only once
                return
            if self._obey(conn, verdict, "connection_eof"):
                conn._close(DropReason.VERDICT)
                return
        # It is not closed here: ``_failed`` does that, with the drop reason that this error stands for.
        if conn.held_bytes():
            partial = conn._postponed + bytes(conn._stash)
            partial += conn._decoder.take() if conn._decoder is not None else b""
            raise IncompleteMessage(f"the input ended {len(partial)} bytes into a message", conn, partial)
        conn._close(_PEER_CLOSED)

    def _look_for_more_than_eof(self, conn: ConnectionT) -> None:
        """Close a half-open connection that is broken: every event of our sending has the peer's FIN in its mask."""
        if both_sides_are_down(conn._fd):
            conn._probe()
            conn._close(_PEER_CLOSED)

    def _obey(self, conn: ConnectionT, verdict: object, upcall: str, data: bytes = b"") -> bool:
        """Act on a verdict; True if it is DROP."""
        if verdict is None or verdict is OK:
            return False
        if verdict is DROP:
            return True
        if verdict is not POSTPONE or upcall not in MAY_POSTPONE:
            if type(verdict) is int and upcall in self._functions:
                return False  # a function of one line returns what its last call does: ``send`` counts bytes
            allowed = "OK, None or DROP" if upcall not in MAY_POSTPONE else "OK, None, POSTPONE or DROP"
            if upcall == "connection_eof":
                allowed = "HALF_OPEN, " + allowed
            raise TypeError(f"{upcall} returned {verdict!r}: {allowed} expected")
        # An upcall that closed and returned POSTPONE: no more data will come for the bytes to wait for.
        if conn._state is not OPEN:
            return False
        if len(data) > self.max_postponed:
            raise _postponed_too_much(conn, self.max_postponed)
        if conn._decoder is not None:
            conn._postponed = data
        else:  # what raw reads left in the stash stays fresh: no upcall was given it
            conn._stash = data + conn._stash
            conn._plain = False
        return False

    # -- the end of a connection

    def _failed(self, conn: ConnectionT, error: BaseException) -> None:
        """An upcall raised, or the engine found the connection broken.

        Only what was raised for this very connection is its peer's doing. Whatever else an upcall lets out, an error of
        another connection or of one that never stood, is the program's failure.
        """
        # By the connection that the error names, and not by its kind: an upcall uses other connections too
        # (test_blame).
        reason = DropReason.ERROR
        if isinstance(error, GreensockError) and error.connection is conn:
            reason = error.drop_reason
        if reason is DropReason.ERROR and not (isinstance(error, GreenletExit) and self._draining):
            self.error_count += 1
            self.log_failure(error, "an upcall failed on %r", conn)
        # Closed before the program is told: its upcall may block, and the peer need not wait for that.
        conn._close(reason)
        if not isinstance(error, Exception) and not isinstance(error, GreenletExit | gevent.Timeout):
            # KeyboardInterrupt and SystemExit are meant for the program: the hub hands them to the main greenlet.
            hub = self._poller.hub
            hub.handle_error(conn, type(error), error, error.__traceback__)
        self._tell_error(conn, error)

    def _tell_loss(self, conn: ConnectionT, reason: DropReason) -> None:
        """Tell what the network, or OpenSSL, said of a connection that it ended."""
        if reason is DropReason.HANDSHAKE and conn._stage == _NEW:
            if self._on_handshake_failed is not None:
                self._tell(self._on_handshake_failed, conn, conn._failure)
        elif reason in NEVER_STOOD:
            self._tell_error(conn, cast(Exception, conn._failure))
        else:
            self._tell_error(conn, conn._closed_error())

    def _released(self, conn: Lifecycle) -> None:
        """The descriptor is closed."""
        if count_released(self._tally, conn):
            self.connection_ended()

    def log_failure(self, error: BaseException, text: str, *about: object) -> None:
        """Log what the program failed at, with its traceback: not more often than a disk can bear."""
        left_out = self._failures_logged.left_out(monotonic())
        if left_out > 0:
            text += f"; {left_out} failures before were not logged"
        if left_out >= 0:
            log.error(text, *about, exc_info=error)

    def _tell_error(self, conn: ConnectionT, error: BaseException) -> None:
        # At most once, and not if ``connection_new`` was never called.
        if conn._stage not in (_NEW, _ERROR_TOLD):
            conn._stage = _ERROR_TOLD
            self._tell(self.connection_error, conn, error)

    def _tell(self, upcall: Callable[..., Any], *arguments: Any) -> None:
        try:
            upcall(*arguments)
        except BaseException as error:
            self.error_count += 1
            self.log_failure(error, "%s failed", getattr(upcall, "__name__", upcall))
            if not isinstance(error, Exception) and not isinstance(error, GreenletExit | gevent.Timeout):
                self._poller.hub.handle_error(self, type(error), error, error.__traceback__)


def serve(turns: Turns[Any], fd: int, family: int, address: Any) -> Any:
    """Make a connection of a descriptor, which is its own from then on, and have it watched and served."""
    tally, poller = turns._tally, turns._poller
    framer, on_transport = turns.framer, turns._on_transport
    conn = None
    try:
        # The owner of the descriptor closes it: this function until the object stands, from then on the connection.
        conn = turns.connection_class(poller, fd, family, address, turns)
        if conn._state is None:
            raise TypeError  # as below
        conn._ready = turns._make_ready
        if framer is not None:
            conn._decoder = framer.decoder()
        if on_transport is not None and turns._take_transport(conn, fd):
            return conn
        # Last, so that whatever fails before it leaves nothing in the epoll set.
        poller.register(conn)
    except BaseException:
        if conn is None or getattr(conn, "_state", None) is None:  # the class failed
            close(fd)
            if conn is not None:
                raise TypeError(f"{type(conn).__name__}.__init__ does not call Connection.__init__") from None
        else:  # it may be kept by the program, and must not have a number that is another file's soon
            if conn._state is OPEN:
                conn._leave_open(CLOSED, DropReason.ERROR)
            conn._release()
        raise
    tally.accepted += 1
    tally.alive += 1
    # With nothing to be called for a new connection it needs no turn yet: its first event gives it one, and one that
    # never says a word costs no worker.
    if turns._on_new is None and turns._on_handle is None:
        conn._stage = SERVED
        conn._plain = conn._decoder is None and conn._transport is None
        conn._idle = True
    else:
        poller.queue(conn)
    return conn


def _came_in_part(conn: Connection) -> bool:
    """Whether a message has come in part, or a record of TLS (test_a_drain_waits_for_the_rest_of_a_record)."""
    transport = conn._transport
    return conn.held_bytes() > 0 or (isinstance(transport, Sealing) and transport.partial > 0 and not conn._eof)


def _drain_upcalls(turns: Turns[Any], ready: deque[Any], turn: Turn) -> None:
    """Give a turn to each connection that is ready, in the style of upcalls."""
    popleft, size, on_recv, on_finish = ready.popleft, turns.recv_size, turns._on_recv, turns._on_finish
    worker = turn.worker
    # Upcalls of one connection never overlap, as only an idle connection is put in ``ready``, and it is idle again
    # only at the end of its turn (test_upcalls_of_one_connection_never_overlap). An upcall that blocks takes this
    # greenlet along; another worker goes on with ``ready``: nothing is kept across an upcall but locals.
    while ready:
        is_read = False
        # Around the loop and not in it: to enter a ``try`` costs something where this is compiled.
        try:
            while ready:
                turn.conn = conn = popleft()
                if not conn._plain:
                    again = turns._full_turn(conn)
                else:  # the hot path: one short read, one upcall, nothing else to do
                    is_read = True
                    data = read(conn._fd, size)
                    is_read = False
                    count = len(data)
                    # An empty read falls through: it is the end of input. A short one has emptied the socket, so that
                    # no second one is made to hear EAGAIN; unless an end, urgent data or passed descriptors may have
                    # cut it short: ``_thorough`` (test_one_read_for_each_short_message_and_none_in_vain,
                    # test_urgent_data_stops_no_upcall).
                    if 0 < count < size and not conn._thorough:
                        # Before the upcall: what comes while that runs is told by an event, which sets it again
                        # (test_what_comes_while_an_upcall_is_blocked_gets_the_next_one).
                        conn._readable = False
                        conn.bytes_received += count
                        verdict = on_recv(conn, data)
                        # Looked at anew, as the upcall may have blocked, closed, or put bytes back, and more may have
                        # come meanwhile: that event found a busy connection and only set ``_readable``
                        # (test_what_comes_while_an_upcall_is_blocked_gets_the_next_one).
                        if verdict is None and conn._plain and not conn._readable and on_finish is None:
                            conn._idle = True
                            if worker.gr_context is not None:
                                forget_context(worker)
                            continue
                        again = turns._read_turn(conn, data, verdict)
                    else:
                        again = _long_turn(turns, conn, data)
                if conn._state is OPEN:
                    turns._rest(conn, again)
                else:
                    _end(turns, conn)
                # Context variables that an upcall set must not be seen in the next turn, which is another connection's
                # (test_context_variables_are_fresh_in_every_turn).
                if worker.gr_context is not None:
                    forget_context(worker)
        except BaseException as error:
            turns._turn_raised(turn.conn, error, is_read)
            forget_context(worker)
    turn.conn = None  # a parked worker holds no connection


def _long_turn(turns: Turns[Any], conn: Connection, data: bytes) -> bool:
    """Go on after a first read that found all it asked for, the end of input, or a peer that hung up."""
    if len(data) == turns.recv_size:
        return _flood(turns, conn, data)
    if data:
        conn._received(len(data), turns.recv_size)
        return turns._read_turn(conn, data, turns._on_recv(conn, data))
    # Nothing is held of a plain connection, so its end is never within a message, and needs none of
    # ``_peer_is_done``.
    conn._eof = True
    if turns._on_eof is None:  # nothing is held: the connection was plain
        conn._close(_PEER_CLOSED)
    else:
        conn._plain = False
        turns._peer_is_done(conn)
    return False


def _flood(turns: Turns[Any], conn: Connection, data: bytes) -> bool:
    """Read and call ``connection_recv`` while reads are full and nothing else is to be done; then go on as ever.

    With small reads this is where a flood spends its time: 0.2 us a message less than in ``_read_turn``.
    """
    # A turn ends by bytes and by time: by bytes, so that others come soon if each read is dear, and by time, if
    # each upcall is (test_a_flooding_turn_ends_after_its_budget, test_a_turn_ends_after_its_time).
    size, on_recv, poller = turns.recv_size, turns._on_recv, turns._poller
    reads, most, each = 0, max(1, turns.turn_budget // size), READS_PER_LOOK
    while len(data) == size:
        conn.bytes_received += size
        verdict = on_recv(conn, data)
        reads += 1
        if verdict is not None or not conn._plain:
            return turns._read_turn(conn, data, verdict)
        if reads == most or (not reads % each and monotonic() > poller.until):
            return turns._finish_turn(conn, True)
        try:
            data = read(conn._fd, size)
        except OSError as error:
            # The last read was full, and nothing was left behind it.
            turns._nothing_read(conn, error)
            return turns._finish_turn(conn, True)
    if conn._received(len(data), size):
        return turns._read_turn(conn, data, on_recv(conn, data))
    return turns._finish_turn(conn, True)


def _drain_handles(turns: Turns[Any], ready: deque[Any], turn: Turn) -> None:
    """Give each connection that is ready its one turn, in the blocking style."""
    worker = turn.worker
    while ready:
        turn.conn = conn = ready.popleft()
        turns._handle_turn(conn)
        if worker.gr_context is not None:
            forget_context(worker)
    turn.conn = None


def _framed_turn(turns: Turns[Any], conn: Connection) -> bool:
    """As ``Turns._read_turn``, one ``connection_recv`` for each whole message."""
    size, budget, most = turns.recv_size, turns.turn_budget, 2
    decoder, poller = conn._decoder, turns._poller
    heard = False
    while True:
        given = _give_messages(turns, conn, decoder, most)
        heard = heard or given > 0
        # ``more`` says that the decoder may hold whole messages. They are given first, in another turn if need be:
        # neither a read nor the end of input may come before them
        # (test_messages_that_are_there_come_before_the_end).
        late = monotonic() > poller.until
        more = given == most and conn._state is OPEN
        if more and not late:
            most = min(2 * most, MESSAGES_PER_LOOK)  # not at once: an upcall may take long
            continue
        if more or late or budget <= 0 or conn._state is not OPEN or conn._eof or not conn._readable:
            break
        try:
            data = read(conn._fd, size) if conn._transport is None else conn._transport.read(size)
        except OSError as error:
            turns._nothing_read(conn, error)
            break
        budget -= conn._received(len(data), size)
        if data:
            turns._feed(conn, decoder, data)
    return turns._finish_turn(conn, heard, more)


def _give_messages(turns: Turns[Any], conn: Connection, decoder: Any, most: int) -> int:
    """Call ``connection_recv`` for up to ``most`` messages; return for how many."""
    next_message, on_recv, tally = decoder.next_message, turns._on_recv, turns._tally
    for given in range(most):
        if conn._stash:  # raw bytes were put back, or a raw read left some
            rest = bytes(conn._stash) + decoder.take()
            conn._stash = b""
            conn._fresh = False
            turns._feed(conn, decoder, rest)
        try:
            message = next_message()
        except GreensockError as error:
            _own(error, conn)
            raise
        if message is None:
            return given
        tally.messages += 1
        if conn._postponed:
            message = conn._postponed + message
            conn._postponed = b""
        verdict = on_recv(conn, message)
        if verdict is not None and turns._obey(conn, verdict, "connection_recv", message):
            conn._close(DropReason.VERDICT)
        # None after the one in which it was closed, though the decoder holds more
        # (test_no_framed_message_after_drop).
        if conn._state is not OPEN:
            return given + 1
    return most


def _end(turns: Turns[Any], conn: Connection) -> None:
    """Make the last upcall of a connection that is not open any more."""
    # A guard. Whatever leads here twice, ``connection_drop`` is made once
    # (test_stop_under_load_drops_each_connection_exactly_once counts).
    if conn._ended:
        return
    # Set before the upcalls below, each of which may block and let another turn come here.
    conn._ended = True
    # The program may not know yet: an upcall can have caught what its downcall raised, and a loss that the engine
    # found was raised nowhere (test_a_loss_that_the_upcall_handled_is_told_too).
    reason = conn._drop_reason or DropReason.CLOSED
    if conn._failure is not None:
        turns._tell_loss(conn, reason)
    dropped = turns._dropped
    name = reason._name_  # .name is a slow property before Python 3.12
    dropped[name] = dropped.get(name, 0) + 1
    if turns._on_drop is not None and conn._stage != _NEW:
        turns._tell(turns._on_drop, conn)
    # Two things end a connection, in either order: its last upcall, here, and its descriptor, in ``_released``.
    # Whichever is second counts it. The stage is set behind the upcall, which may block
    # (test_a_drop_upcall_that_blocks_is_counted_once).
    conn._stage = _ALL_TOLD
    if conn._state is CLOSED:
        turns.connection_ended()


def count_released(tally: Tally, conn: Lifecycle) -> bool:
    """Count what a connection whose descriptor is closed has moved; True if its last upcall was made, too."""
    tally.received += conn.bytes_received
    tally.sent += conn.bytes_sent
    return conn._stage == _ALL_TOLD


def _own(error: GreensockError, conn: Connection) -> None:
    """Say of what a framer raised, which knows no connections, whose bytes it was given."""
    if error.connection is None:
        error.connection = conn


def _postponed_too_much(conn: Connection, limit: int) -> MessageTooLong:
    text = f"more than max_postponed={limit} bytes came without a whole message"
    return MessageTooLong(text, conn, "max_postponed", limit)
