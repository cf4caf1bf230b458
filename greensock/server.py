"""The server: the upcalls, the turn that makes them, and start, drain, stop.

A server owns its listener (through the acceptor), its ready queue and its workers. A connection that is ready gets a
*turn* in a worker: ``connection_new`` if it is new; then read and ``connection_recv`` until the socket is drained or
the turn's budget is spent; then ``connection_recv_finish``; ``connection_eof`` when the peer is done; and when the
connection has ended, ``connection_drop``. Invariants:

- Upcalls of one connection never overlap: it is idle, queued, or in its turn, and only an idle one is queued.
- ``connection_drop`` runs exactly once for each connection whose ``connection_new`` ran, whatever that returned.
- While an upcall runs its connection is not read: TCP's own back-pressure holds the peer.
- No exception leaves a turn.
"""

from __future__ import annotations

import enum
import logging
import socket as _socket
import sys
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, ClassVar, Final

import gevent
from gevent.event import Event
from gevent.monkey import is_module_patched
from greenlet import GreenletExit, getcurrent, greenlet

from greensock.acceptor import Acceptor
from greensock.address import listen, parse_address
from greensock.connection import Connection
from greensock.errors import DropReason, GreensockError, IncompleteMessage, MessageTooLong
from greensock.framing import Framer
from greensock.lifecycle import CLOSED, OPEN, Lifecycle
from greensock.options import checked
from greensock.poller import get_poller
from greensock.stats import ServerStatistics
from greensock.syscalls import both_sides_are_down, close, read
from greensock.workers import Workers

__all__ = ["DROP", "OK", "POSTPONE", "Server", "Verdict"]

log = logging.getLogger("greensock.server")


class Verdict(enum.Enum):
    """What an upcall says of its connection. None means OK (but see ``connection_eof``)."""

    #: Go on.
    OK = "ok"
    #: The message is not whole: give me these bytes again, in front of the next ones.
    POSTPONE = "postpone"
    #: Close the connection.
    DROP = "drop"


OK: Final = Verdict.OK
POSTPONE: Final = Verdict.POSTPONE
DROP: Final = Verdict.DROP

#: Seconds that one turn may take before the others get theirs.
TURN_SECONDS = 0.005
#: Seconds that a worker may take to end after it was killed by ``stop``.
KILL_SECONDS = 1.0
#: How many messages are cut between two looks at the clock.
MESSAGES_PER_LOOK = 32

# How far a connection's upcalls have come: none was made; connection_new was; connection_eof was and kept it open;
# connection_error was; all were.
_NEW, _SERVED, _HALF_OPEN, _ERROR_TOLD, _ALL_TOLD = range(5)
# As for the states in lifecycle.py: to look up a member of an enum is slow before Python 3.12.
_PEER_CLOSED, _LOST = DropReason.PEER_CLOSED, DropReason.LOST


class Server:
    """A TCP (or Unix socket) server. Subclass it and override upcalls, or ``handle``.

    ``listener`` is ``(host, port)``, ``"host:port"``, a port, the path of a Unix socket, or a bound socket, which the
    server then owns and closes when it stops. Every option is a class attribute and a keyword.

    Raises:
        ValueError: the listener or an option is not allowed; the text says which, its value, and what is allowed.
        TypeError: no such option.
    """

    #: How many connections the kernel holds that were not yet accepted.
    backlog: int = 4096
    #: How many connections are accepted in one go before those that are there get their turn.
    max_accept: int = 128
    #: How many connections may be alive; the rest wait in the backlog. None: as many as there are descriptors.
    max_connections: int | None = None
    #: How many upcalls may be blocked at the same time; more wait for a worker. None: no bound.
    max_workers: int | None = 10_000
    #: Bytes of one read, and so the longest ``data`` of ``connection_recv``.
    recv_size: int = 65536
    #: Bytes that one turn may read before the others get theirs. (A turn also ends after 5 ms.)
    turn_budget: int = 262_144
    #: Bytes that POSTPONE and ``unread`` may hold back for one connection.
    max_postponed: int = 65536
    #: Bytes that ``send_nowait`` may hold for one connection.
    max_send_queue: int = 1 << 20
    #: Seconds without a byte either way after which a waiting connection is dropped (up to an eighth late). None:
    #: never.
    idle_timeout: float | None = None
    #: Default ``timeout`` of the receiving downcalls, in seconds. None: none.
    recv_timeout: float | None = None
    #: Default ``timeout`` of the sending downcalls, in seconds. None: none.
    send_timeout: float | None = None
    #: Seconds without progress that a closing connection may take to flush and to see the peer's FIN. 0: close at once.
    linger_timeout: float = 5.0
    #: Seconds that ``stop`` lets connections end by themselves.
    stop_timeout: float = 1.0
    #: Whether several sockets may listen on the port (SO_REUSEPORT).
    reuse_port: bool = False
    #: Whether small sends go out at once (TCP_NODELAY).
    no_delay: bool = True
    #: Whether the kernel probes silent peers (SO_KEEPALIVE).
    keep_alive: bool = False
    #: What cuts the stream into the messages that ``connection_recv`` gets. None: it gets what comes.
    framer: Framer | None = None
    #: The class of the connections.
    connection_class: ClassVar[type[Connection]] = Connection

    def __init__(self, listener: Any, **options: Any) -> None:
        for name, value in checked(self, options).items():
            setattr(self, name, value)
        self._listener: _socket.socket | None = None
        #: Where the server listens: the address as given until it is started, then the real one.
        self.address: Any = None
        if hasattr(listener, "accept"):
            self._take_listener(listener)
        else:
            self.family, self.address = parse_address(listener)
        self._acceptor: Acceptor | None = None
        self._pauses = 0
        self._accepted = 0
        self._alive = 0
        self._dropped: Counter[str] = Counter()
        self._errors = 0
        self._messages = 0
        self._gone_received = 0
        self._gone_sent = 0
        self._draining = False
        self._changed = Event()
        self._stopped = Event()
        self._stopped.set()

    # -- the upcalls

    def connection_new(self, conn: Connection) -> Verdict | None:
        """A connection came (seed hook ``connection_new``). DROP closes it."""

    def connection_recv(self, conn: Connection, data: bytes) -> Verdict | None:
        """Data came, at most ``recv_size`` bytes; with a framer, one whole message (seed hook ``connection_recv``).

        POSTPONE brings ``data`` back in front of the next data.
        """

    def connection_recv_finish(self, conn: Connection) -> Verdict | None:
        """That was the last data of this turn: the time to send what was gathered."""

    def connection_eof(self, conn: Connection) -> Verdict | None:
        """The peer sent FIN: nothing more will come. OK keeps our half open; anything else, None too, closes."""

    def connection_error(self, conn: Connection, exc: BaseException) -> None:
        """The connection broke, a limit was crossed, or an upcall raised ``exc``. ``connection_drop`` follows."""

    def connection_drop(self, conn: Connection) -> None:
        """The connection has ended (seed hook ``connection_drop``); ``conn.drop_reason`` says why."""

    def handle(self, conn: Connection) -> object:
        """Serve one connection in the blocking style, in place of ``connection_recv`` and ``connection_eof``.

        The connection is closed when it returns. Overriding it chooses this style.
        """

    # -- life

    @property
    def started(self) -> bool:
        """Whether the server was started and has not stopped."""
        return not self._stopped.is_set()

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop: a good time for an upcall to say good-bye."""
        return self._draining

    @property
    def server_host(self) -> str | None:
        """The address it listens on; None for a Unix socket."""
        return self.address[0] if isinstance(self.address, tuple) else None

    @property
    def server_port(self) -> int | None:
        """The port it listens on; None for a Unix socket."""
        return self.address[1] if isinstance(self.address, tuple) else None

    @property
    def connections(self) -> list[Connection]:
        """The connections that are alive and open."""
        return [conn for conn in self._mine() if conn._state is OPEN]

    def start(self) -> None:
        """Bind if need be, and begin to serve. Returns at once; the serving happens while the program blocks elsewhere.

        Raises:
            OSError: the address cannot be had; it is named in it.
        """
        if self.started:
            return
        if self._listener is None:
            self._listener = listen(self.family, self.address, self.backlog, self.reuse_port)
            self.address = self._listener.getsockname()
        self._tune(self._listener)
        self._prepare()
        self._stopped.clear()
        self._draining = False
        self._acceptor = Acceptor(self._listener, self._on_accepted, self._permits, self.max_accept)
        self._acceptor.start()
        _warn_if_unpatched()

    def stop_accepting(self) -> None:
        """Leave new connections in the kernel's backlog; ``start_accepting`` takes them up again."""
        if self._acceptor is not None:
            self._acceptor.stop()

    def start_accepting(self) -> None:
        """Accept again after ``stop_accepting``."""
        if self._acceptor is not None:
            self._acceptor.start()

    def drain(self, timeout: float | None = None) -> bool:
        """Stop accepting, close the listener, and let the connections end; True if all did within ``timeout`` seconds.

        A connection that waits for its peer with nothing half received is closed at once (flushed and lingered). One
        whose upcall runs, or that has part of a message, may go on.
        """
        self._close_listener()
        self._draining = True
        if not self.started:
            return True
        deadline = inf if timeout is None else monotonic() + timeout
        while True:
            self._changed.clear()
            self._close_idle()
            if self._alive <= self._own():
                return True
            left = deadline - monotonic()
            if left <= 0:
                return False
            # Woken by each connection that ends; the tenth of a second is for those that went idle since.
            self._changed.wait(min(left, 0.1))

    def stop(self, timeout: float | None = None) -> None:
        """Drain for ``timeout`` seconds (default ``stop_timeout``), then abort what is left.

        Every connection gets its ``connection_drop``.
        """
        if self.started:
            self.drain(self.stop_timeout if timeout is None else timeout)
        self.abort()

    def abort(self) -> None:
        """Stop now: reset every connection and end every upcall with ``GreenletExit``.

        Waits up to a second for the upcalls to end.
        """
        self._close_listener()
        if not self.started:
            return
        self._draining = True
        for conn in self._mine():
            conn._abort(DropReason.STOPPED)
        poller, crew = get_poller(), self._crew
        deadline = monotonic() + KILL_SECONDS
        poller.call_soon(partial(crew.kill, GreenletExit("the server was aborted"), getcurrent()))
        while self._alive > self._own() and (left := deadline - monotonic()) > 0:
            self._changed.clear()
            self._changed.wait(min(left, 0.1))
        if self._alive > self._own():
            log.error("%d upcalls did not end when they were killed", self._alive - self._own())
        poller.call_soon(partial(crew.dismiss, partial(poller.discard_crew, crew)))
        self._stopped.set()

    def serve_forever(self) -> None:
        """Start, and block until the server stops. SIGINT and SIGTERM drain, then stop; a second one aborts."""
        self.start()
        watchers = self._watch_signals()
        try:
            self._stopped.wait()
        finally:
            for watcher in watchers:
                watcher.cancel()
            self.stop()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def adopt(self, sock: _socket.socket) -> Connection:
        """Serve a connected stream socket that you made; it is taken over, and your object is left without it.

        Raises:
            ValueError: it is not a connected stream socket, or the server is not started. It stays yours.
            TypeError: it is a TLS socket.
        OSError: the engine cannot watch one more. It is closed.
        """
        if hasattr(sock, "do_handshake"):
            raise TypeError(f"adopt({sock!r}): a plain socket expected, not a TLS one")
        if not self.started:
            raise ValueError("adopt: the server is not started")
        try:
            peer = sock.getpeername()
        except OSError as error:
            raise ValueError(f"adopt({sock!r}): a connected socket expected: {error.strerror}") from error
        if sock.type != _socket.SOCK_STREAM:
            raise ValueError(f"adopt({sock!r}): a stream socket expected")
        sock.setblocking(False)
        family = sock.family
        return self._serve(sock.detach(), family, peer)

    def statistics(self) -> ServerStatistics:
        """Return a snapshot of the counters."""
        mine = self._mine()
        crew = getattr(self, "_crew", None)
        return ServerStatistics(
            accepted=self._accepted,
            active=self._alive,
            dropped=dict(self._dropped),
            errors=self._errors,
            accept_pauses=self._pauses + (self._acceptor.pauses if self._acceptor is not None else 0),
            bytes_received=self._gone_received + sum(conn.bytes_received for conn in mine),
            bytes_sent=self._gone_sent + sum(conn.bytes_sent for conn in mine),
            messages=self._messages,
            workers=crew.count if crew is not None else 0,
            workers_busy=crew.busy if crew is not None else 0,
        )

    # -- starting and stopping, in detail

    def _take_listener(self, listener: Any) -> None:
        if hasattr(listener, "do_handshake"):
            raise TypeError(f"listener={listener!r}: a plain socket expected, not a TLS one")
        self._listener = listener
        self.family = listener.family
        self.address = listener.getsockname()

    def _tune(self, listener: _socket.socket) -> None:
        """Set what accepted sockets inherit."""
        if listener.family != _socket.AF_UNIX:
            listener.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, self.no_delay)
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, self.keep_alive)

    def _prepare(self) -> None:
        """Bind what the turns use, once: upcalls that are not overridden cost nothing."""
        self._poller = get_poller()
        handle = self._overridden("handle")
        drain = self._drain_upcalls if handle is None else self._drain_handles
        self._crew = Workers(self._poller.hub, drain, self.max_workers)
        self._poller.crews.append(self._crew)
        self._on_handle = handle
        self._on_new = self._overridden("connection_new")
        self._on_recv = self.connection_recv
        self._on_finish = self._overridden("connection_recv_finish")
        self._on_eof = self._overridden("connection_eof")
        self._on_drop = self._overridden("connection_drop")

    def _overridden(self, name: str) -> Callable[..., Any] | None:
        upcall: Callable[..., Any] = getattr(self, name)
        return None if getattr(upcall, "__func__", None) is getattr(Server, name) else upcall

    def _close_listener(self) -> None:
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            self._pauses += acceptor.pauses
            acceptor.close()
        elif self._listener is not None:
            self._listener.close()
        if self._listener is not None and self.family == _socket.AF_UNIX:
            _unlink(self.address)
        self._listener = None

    def _close_idle(self) -> None:
        for conn in self._mine():
            waits = conn._idle and not conn._out
            if waits and not conn._held():
                conn._close(DropReason.STOPPED)

    def _own(self) -> int:
        """1 if this is called in one of our own upcalls, whose connection cannot end before."""
        return 1 if self.started and getcurrent() in self._crew else 0

    def _watch_signals(self) -> list[Any]:
        hub = gevent.get_hub()
        if hub.threadpool is None or not hub.main_hub:
            return []
        return [gevent.signal_handler(number, self._on_signal) for number in (2, 15)]

    def _on_signal(self) -> None:
        if self._draining:
            self.abort()
        else:
            self.stop()

    def _mine(self) -> list[Connection]:
        if not hasattr(self, "_poller"):
            return []
        return [
            endpoint
            for endpoint in list(self._poller.endpoints.values())
            if isinstance(endpoint, Connection) and endpoint.server is self
        ]

    # -- connections come and go

    def _permits(self) -> float:
        return inf if self.max_connections is None else self.max_connections - self._alive

    def _on_accepted(self, fd: int, address: Any) -> None:
        try:
            self._serve(fd, self.family, address)
        except Exception:  # epoll's limit is reached, or the program's connection class failed
            self._errors += 1
            log.exception("a connection from %r could not be served and is closed", address)

    def _serve(self, fd: int, family: int, address: Any) -> Connection:
        try:
            conn = self.connection_class(self._poller, fd, family, address, self)
            conn._ready = self._crew.ready
            if self.framer is not None:
                conn._decoder = self.framer.decoder()
            self._poller.register(conn)
        except BaseException:
            close(fd)
            raise
        self._accepted += 1
        self._alive += 1
        if self.idle_timeout is not None:
            conn._idle_mark = 0
            conn._idle_since = monotonic()
            self._poller.arm(conn, conn._idle_since + self.idle_timeout / 8)
        if self._on_new is None and self._on_handle is None:
            conn._stage = _SERVED
            conn._plain = conn._decoder is None
            conn._idle = True
        else:
            self._poller.queue(conn)
        return conn

    def _released(self, conn: Lifecycle) -> None:
        """The descriptor is closed."""
        self._gone_received += conn.bytes_received
        self._gone_sent += conn.bytes_sent
        if conn._stage == _ALL_TOLD:
            self._one_less()

    def _one_less(self) -> None:
        self._alive -= 1
        if self._draining:
            self._changed.set()
        if self._acceptor is not None and self.max_connections is not None:
            self._acceptor.more_welcome()

    # -- the turn

    def _drain_upcalls(self, ready: deque[Connection], worker: greenlet) -> None:
        """Give a turn to each connection that is ready, in the style of upcalls."""
        popleft, size, on_recv, on_finish = ready.popleft, self.recv_size, self._on_recv, self._on_finish
        while ready:
            conn = popleft()
            try:
                if not conn._plain:
                    again = self._full_turn(conn)
                else:  # the hot path: one short read, one upcall, nothing else to do
                    try:
                        data = read(conn._fd, size)
                    except OSError as error:
                        data = self._nothing_read(conn, error)
                    count = len(data)
                    if 0 < count < size and not conn._thorough:
                        conn._readable = False
                        conn.bytes_received += count
                        verdict = on_recv(conn, data)
                        if verdict is None and conn._plain and not conn._readable and on_finish is None:
                            conn._idle = True
                            if worker.gr_context is not None:
                                worker.gr_context = None
                            continue
                        again = self._read_turn(conn, data, verdict)
                    else:
                        again = self._long_turn(conn, data)
                if conn._state is OPEN:
                    self._rest(conn, again)
                else:
                    self._end(conn)
            except BaseException as error:
                self._failed(conn, error)
                self._end(conn)
            if worker.gr_context is not None:
                worker.gr_context = None

    def _drain_handles(self, ready: deque[Connection], worker: greenlet) -> None:
        """Give each connection that is ready its one turn, in the blocking style."""
        while ready:
            self._handle_turn(ready.popleft())
            if worker.gr_context is not None:
                worker.gr_context = None

    def _full_turn(self, conn: Connection) -> bool:
        """Give a turn to a connection that is new, framed, has a stash, or has ended; True if there is more to read."""
        if conn._state is not OPEN:
            return False
        if conn._stage == _NEW:
            self._begin(conn)
            if conn._state is not OPEN:
                return False
        return self._read_turn(conn) if conn._decoder is None else self._framed_turn(conn)

    def _long_turn(self, conn: Connection, data: bytes) -> bool:
        """Go on after a first read that found all it asked for, nothing, the end of input, or a peer that hung up."""
        if not conn._readable:
            return False  # the read found nothing
        if data:
            conn._received(len(data), self.recv_size)
            return self._read_turn(conn, data, self._on_recv(conn, data))
        conn._eof = True
        conn._plain = False
        self._peer_is_done(conn)
        return False

    def _rest(self, conn: Connection, again: bool) -> None:
        """Let the connection wait for its next event, or for its next turn if one is due."""
        conn._plain = conn._decoder is None and not conn._stash and not conn._eof
        if again or (conn._readable and not conn._eof):
            self._poller.requeue(conn)
        else:
            conn._idle = True

    def _nothing_read(self, conn: Connection, error: OSError) -> bytes:
        """Take a failed read: nothing was there after all, or the connection is broken."""
        if isinstance(error, BlockingIOError):
            conn._found_empty()
            return b""
        raise conn._lost(error) from error

    def _handle_turn(self, conn: Connection) -> None:
        """Give the connection its one turn in the blocking style."""
        try:
            if conn._state is OPEN:
                if self._on_new is not None:
                    self._begin(conn)
                conn._stage = _SERVED
                if conn._state is OPEN and self._on_handle is not None:
                    self._on_handle(conn)
                conn._close(DropReason.PEER_CLOSED if conn._eof else DropReason.CLOSED)
        except BaseException as error:
            self._failed(conn, error)
        self._end(conn)

    def _begin(self, conn: Connection) -> None:
        conn._stage = _SERVED
        if self._on_new is not None and self._obey(conn, self._on_new(conn), "connection_new"):
            conn._close(DropReason.REFUSED)

    def _read_turn(self, conn: Connection, data: bytes = b"", verdict: Verdict | None = None) -> bool:
        """Read and call ``connection_recv`` until the socket is drained; True if the budget was spent before.

        If ``data`` is given, it was read and an upcall was made for it already, which returned ``verdict``.
        """
        size = self.recv_size
        budget, started = self.turn_budget, 0.0
        heard = bool(data)
        while True:
            if data:
                heard = True
                budget -= len(data)
                if verdict is not None and self._obey(conn, verdict, "connection_recv", data):
                    conn._close(DropReason.VERDICT)
                    return False
                if len(conn._stash) > self.max_postponed and not conn._fresh:
                    raise _postponed_too_much(conn, self.max_postponed)
            if conn._state is not OPEN or conn._eof:
                break
            if conn._fresh:
                data = conn._take(len(conn._stash))
            elif not conn._readable or budget <= 0 or (started and monotonic() - started > TURN_SECONDS):
                break
            else:
                started = started or monotonic()
                try:
                    data = read(conn._fd, size)
                except OSError as error:
                    self._nothing_read(conn, error)
                    break
                if not conn._received(len(data), size):
                    break
                if conn._stash:
                    data = bytes(conn._stash) + data
                    conn._stash = b""
            verdict = self._on_recv(conn, data)
        return self._finish_turn(conn, heard)

    def _framed_turn(self, conn: Connection) -> bool:
        """As ``_read_turn``, one ``connection_recv`` for each whole message."""
        size, budget, started = self.recv_size, self.turn_budget, monotonic()
        decoder = conn._decoder
        heard = False
        while True:
            given = self._give_messages(conn, decoder)
            heard = heard or given > 0
            late = monotonic() - started > TURN_SECONDS
            more = given == MESSAGES_PER_LOOK and conn._state is OPEN
            if more and not late:
                continue
            if more or late or budget <= 0 or conn._state is not OPEN or conn._eof or not conn._readable:
                break
            try:
                data = read(conn._fd, size)
            except OSError as error:
                self._nothing_read(conn, error)
                break
            budget -= conn._received(len(data), size)
            if data:
                decoder.feed(data)
        return self._finish_turn(conn, heard, more)

    def _give_messages(self, conn: Connection, decoder: Any) -> int:
        """Call ``connection_recv`` for up to MESSAGES_PER_LOOK messages; return for how many."""
        next_message, on_recv = decoder.next_message, self._on_recv
        for given in range(MESSAGES_PER_LOOK):
            if conn._stash:  # raw bytes were put back, or a raw read left some
                rest = bytes(conn._stash) + decoder.take()
                conn._stash = b""
                conn._fresh = False
                decoder.feed(rest)
            message = next_message()
            if message is None:
                return given
            self._messages += 1
            if conn._postponed:
                message = conn._postponed + message
                conn._postponed = b""
            verdict = on_recv(conn, message)
            if verdict is not None and self._obey(conn, verdict, "connection_recv", message):
                conn._close(DropReason.VERDICT)
            if conn._state is not OPEN:
                return given + 1
        return MESSAGES_PER_LOOK

    def _finish_turn(self, conn: Connection, heard: bool, more: bool = False) -> bool:
        """Make the upcalls at the end of a turn; True if there is more to read, or ``more`` messages to give."""
        if heard and self._on_finish is not None and conn._state is OPEN:
            if self._obey(conn, self._on_finish(conn), "connection_recv_finish"):
                conn._close(DropReason.VERDICT)
        if conn._eof and conn._state is OPEN and not more:
            self._peer_is_done(conn)
            return False
        return more or conn._readable or conn._fresh

    def _peer_is_done(self, conn: Connection) -> None:
        if conn._stage == _HALF_OPEN:
            # Any event of our sending comes with the peer's FIN in its mask: look whether this one is more than that.
            if both_sides_are_down(conn._fd):
                conn._probe()
                conn._close(_PEER_CLOSED)
            return
        conn._stage = _HALF_OPEN
        if self._on_eof is not None:
            verdict = self._on_eof(conn)
            if verdict is OK or conn._state is not OPEN:
                return
            self._obey(conn, verdict, "connection_eof")
        if conn._held():
            partial = conn._postponed + bytes(conn._stash)
            partial += conn._decoder.take() if conn._decoder is not None else b""
            raise IncompleteMessage(f"the input ended {len(partial)} bytes into a message", conn, partial)
        conn._close(_PEER_CLOSED)

    def _obey(self, conn: Connection, verdict: object, upcall: str, data: bytes = b"") -> bool:
        """Act on a verdict; True if it is DROP."""
        if verdict is None or verdict is OK:
            return False
        if verdict is DROP:
            return True
        if verdict is not POSTPONE or upcall not in ("connection_recv", "connection_eof"):
            allowed = "OK, None, POSTPONE or DROP" if upcall == "connection_recv" else "OK, None or DROP"
            raise TypeError(f"{upcall} returned {verdict!r}: {allowed} expected")
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

    def _failed(self, conn: Connection, error: BaseException) -> None:
        """An upcall raised, or the engine found the connection broken."""
        if isinstance(error, GreensockError) and error.connection in (conn, None) and error.drop_reason.name != "ERROR":
            reason = error.drop_reason
        else:
            reason = DropReason.ERROR
            if not (isinstance(error, GreenletExit) and self._draining):
                self._errors += 1
                log.error("an upcall failed on %r", conn, exc_info=error)
        conn._close(reason)
        if not isinstance(error, Exception) and not isinstance(error, GreenletExit | gevent.Timeout):
            hub = self._poller.hub
            hub.handle_error(conn, type(error), error, error.__traceback__)
        self._tell_error(conn, error)

    def _end(self, conn: Connection) -> None:
        """Make the last upcall of a connection that is not open any more."""
        if conn._ended:
            return
        conn._ended = True
        reason = conn._drop_reason or DropReason.CLOSED
        if reason is _LOST:
            self._tell_error(conn, conn._closed_error())
        self._dropped[reason._name_] += 1  # .name is a slow property before Python 3.12
        if self._on_drop is not None and conn._stage != _NEW:
            self._tell(self._on_drop, conn)
        conn._stage = _ALL_TOLD
        if conn._state is CLOSED:
            self._one_less()

    def _tell_error(self, conn: Connection, error: BaseException) -> None:
        if conn._stage not in (_NEW, _ERROR_TOLD):
            conn._stage = _ERROR_TOLD
            self._tell(self.connection_error, conn, error)

    def _tell(self, upcall: Callable[..., Any], *arguments: Any) -> None:
        try:
            upcall(*arguments)
        except BaseException as error:
            self._errors += 1
            log.exception("%s failed", getattr(upcall, "__name__", upcall))
            if not isinstance(error, Exception) and not isinstance(error, GreenletExit | gevent.Timeout):
                self._poller.hub.handle_error(self, type(error), error, error.__traceback__)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.address!r} {'started' if self.started else 'stopped'}>"


def _postponed_too_much(conn: Connection, limit: int) -> MessageTooLong:
    text = f"more than max_postponed={limit} bytes came without a whole message"
    return MessageTooLong(text, conn, "max_postponed", limit)


def _unlink(path: Any) -> None:
    import os

    try:
        os.unlink(path)
    except OSError:
        pass  # somebody removed it, or it is an abstract name


_warned = False


def _warn_if_unpatched() -> None:
    global _warned
    if not _warned and not is_module_patched("socket") and "gevent.monkey" in sys.modules:
        _warned = True
        log.warning(
            "the standard library is not monkey-patched: greensock's own calls cooperate, but an upcall that blocks in "
            "another library stops every connection; put 'from gevent import monkey; monkey.patch_all()' first"
        )
