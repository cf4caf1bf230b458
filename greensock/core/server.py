"""The server: its options, and start, drain, stop.

A server owns its listener (through the acceptor), its ready queue and its workers. What it calls is in ``upcalls``,
what it does with a connection that is ready in ``turns``. It counts a connection as alive from accept until its
descriptor is closed and ``connection_drop`` has returned.
"""

from __future__ import annotations

import logging
import os
import socket as _socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from gevent import spawn
from gevent.event import Event
from gevent.monkey import is_module_patched
from greenlet import GreenletExit, getcurrent

from greensock.address import listen, parse_address, pass_on, remove_file
from greensock.core.acceptor import Acceptor
from greensock.core.connection import Connection
from greensock.core.connector import Connecting
from greensock.core.dialling import Dial
from greensock.core.idle import IdleSweep
from greensock.core.lifecycle import OPEN
from greensock.core.limiter import Limiter
from greensock.core.poller import get_poller
from greensock.core.sctp import (
    IPPROTO_SCTP,
    MOST_MESSAGE,
    SCTPConnection,
    SCTPMessages,
    explain_sctp,
    prepare_sctp,
    tune_sctp,
)
from greensock.core.send_queue import Buffer, as_views
from greensock.core.signals import serving
from greensock.core.syscalls import unpack_address
from greensock.core.turns import Tally, Turns
from greensock.core.upcalls import ConnectionT
from greensock.errors import DropReason, LimitExceeded, WouldBlock
from greensock.framing import Framer
from greensock.limits.client_limits import ClientLimits
from greensock.log_limit import LogLimit
from greensock.server_options import OPTIONS, UPCALLS, Rule, ServerKeywords, checked
from greensock.stats import ServerStatistics
from greensock.tls import TLS, server_contexts

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Unpack

__all__ = ["KILL_SECONDS", "Server", "warn_if_unpatched"]

log = logging.getLogger("greensock.server")


#: Seconds that a worker may take to end after it was killed by ``stop``.
KILL_SECONDS = 1.0
#: Seconds between two log lines that say that ``max_connections`` is reached.
LOG_EVERY = 10.0
#: The upcalls that a server with ``handle`` does not make.
UNHANDLED = ("connection_recv", "connection_recv_finish", "connection_eof")
#: Seconds between two looks at connections that wait, while the server drains: doubled each time.
SHORTEST_LOOK, LONGEST_LOOK = 0.005, 0.1

_Mine = TypeVar("_Mine", bound="Server[Any]")


@dataclass(slots=True)
class _Place:
    """Where a server listens: the family, the address as given and then the real one, and what listens there now."""

    family: int
    address: Any
    listener: _socket.socket | None = None
    acceptor: Acceptor | None = None


class Server(Turns[ConnectionT]):
    """A TCP (or Unix socket) server. Subclass it and override upcalls, or ``handle``; or give functions for them.

    ``listener`` is ``(host, port)``, ``"host:port"``, a port, the path of a Unix socket, or a bound socket, which the
    server then owns and closes when it stops. A name stands for its first IPv4 address, if it has one. The file of a
    Unix socket is removed at the end if the server made it and it is still the same one. A list of
    listeners is one server on all of them. Every option is a class attribute and a keyword.

    An upcall may be given as a keyword, too: a function that gets the arguments without the server, such as
    ``Server(listener, connection_recv=lambda conn, data: conn.send(data))``. A whole number that it returns is no
    verdict: ``send`` returns one.

    For type checkers a server is generic in the class of its connections: ``class Chat(Server[ChatConnection])`` with
    ``connection_class = ChatConnection``.

    Raises:
        ValueError: the listener or an option is not allowed; the text says which, its value, and what is allowed.
        TypeError: no such option.
    """

    #: How many connections the kernel holds that were not yet accepted.
    backlog: int = 4096
    #: How many connections are accepted in one go before those that are there get their turn.
    max_accept: int = 128
    #: How many connections may be alive, of all listeners; the rest wait in the backlog. None: as many as there are
    #: descriptors.
    max_connections: int | None = 100_000
    #: How many upcalls may be blocked at the same time; more wait for a worker. None: no bound.
    max_workers: int | None = 10_000
    #: Bytes of one read, and so the longest ``data`` of ``connection_recv`` but for what was held back before.
    recv_size: int = 65536
    #: Bytes that one turn may read before the others get theirs. (A turn also ends after 5 ms.)
    turn_budget: int = 262_144
    #: Bytes that POSTPONE, and ``unread`` in upcalls without a framer, may hold back for one connection.
    max_postponed: int = 65536
    #: Bytes that ``send_nowait`` may hold for one connection.
    max_send_queue: int = 1 << 20
    #: Seconds without a byte either way after which a connection is dropped that rests between two turns (up to an
    #: eighth late). While an upcall runs or is blocked the limit of what it does counts; in the blocking style there is
    #: no rest, and ``recv_timeout`` counts. None: never.
    idle_timeout: float | None = 300.0
    #: Default ``timeout`` of the receiving downcalls, in seconds. None: none.
    recv_timeout: float | None = 300.0
    #: Seconds in which the peer must take a byte of what is sent, if a sending downcall is given no ``timeout``. None:
    #: whenever it wants.
    send_timeout: float | None = 60.0
    #: Bytes a second that the peer must take of one send, once ``send_timeout`` has passed: who takes a byte now and
    #: then is slower. 0: any.
    min_send_rate: int = 256
    #: Seconds without progress that a closing connection may take to flush, and then to see the peer's FIN. 0: flush,
    #: and close at once.
    linger_timeout: float = 5.0
    #: Seconds that ``stop`` waits, at the most, for upcalls that run and messages that are still coming.
    stop_timeout: float = 30.0
    #: Seconds within which ``hand_over`` closes what rests: nothing in their first half, then here one and there one.
    close_spread: float = 10.0
    #: Whether several sockets may listen on the port (SO_REUSEPORT).
    reuse_port: bool = False
    #: Whether small sends go out at once (TCP_NODELAY).
    no_delay: bool = True
    #: Whether the kernel probes silent peers (SO_KEEPALIVE).
    keep_alive: bool = False
    #: The rights of a Unix socket's file, such as 0o660, when ``start`` makes it. None: what the umask leaves of 0o777.
    unix_mode: int | None = None
    #: Whose that file is: ``"user"``, ``"user:group"``, ``":group"`` or ``(uid, gid)``. None: the process's.
    unix_owner: str | tuple[int, int] | None = None
    #: How TLS is spoken: ``TLS(certificate, key)``, or any ``ssl.SSLContext`` of a server. None: it is not.
    tls: TLS | ssl.SSLContext | None = None
    #: Seconds that a TLS handshake may take.
    handshake_timeout: float = 10.0
    #: How many TLS handshakes may be unfinished; who comes then takes the place of the oldest.
    max_handshakes: int = 4096
    #: What cuts the stream into the messages that ``connection_recv`` gets. None: it gets what comes.
    framer: Framer | None = None
    #: ``"tcp"``, or ``"sctp"``: a stream of bytes all the same, or messages on several streams where
    #: ``connection_class`` is an ``SCTPConnection``. Where the kernel has none, ``start`` says what is missing.
    protocol: str = "tcp"
    #: What each client may do: ``ClientLimits(max_connections=10)``. None: whatever the limits above let it.
    client_limits: ClientLimits | None = None
    #: The class of the connections.
    connection_class: type[ConnectionT] = cast(Any, Connection)
    #: What each keyword may be. A subclass with options of its own adds theirs.
    option_rules: ClassVar[Mapping[str, Rule]] = {**OPTIONS, **UPCALLS}

    def __init__(self, listener: Any, **options: Unpack[ServerKeywords]) -> None:
        for name, value in checked(self, options, self.option_rules).items():
            setattr(self, name, value)
        self._functions = frozenset(UPCALLS.keys() & options.keys())
        self._check_style()
        if self.tls is not None:
            server_contexts(self.tls)
        if self.protocol == "sctp" or issubclass(self.connection_class, SCTPConnection):
            self._check_sctp()
        self._handshakes = None
        if isinstance(listener, list) and not listener:
            raise ValueError("listener=[]: one at least expected")
        self._places = [_place(each) for each in (listener if isinstance(listener, list) else [listener])]
        self._pauses = 0
        self._tally = Tally()
        self._is_full = False  # an acceptor waits for one to end
        self._full_logged = -LOG_EVERY
        self._dropped: dict[str, int] = {}
        self.error_count = 0
        self._failures_logged = LogLimit()
        self._draining = False
        self._draining_since = 0.0
        self._spread = 0.0
        self._spread_since = 0.0  # infinite while more connections are accepted: what has just come is to ask first
        self._pid = os.getpid()
        self._changed = Event()
        self._stopped = Event()
        self._stopped.set()
        self._sweep: IdleSweep | None = None
        self._limiter = None if self.client_limits is None else Limiter(self, self.client_limits)

    # -- life

    @property
    def started(self) -> bool:
        """Whether the server was started and has not stopped. A forked child's copy never is: it is the parent's."""
        return not self._stopped.is_set() and self._pid == os.getpid()

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop: a good time for an upcall to say good-bye."""
        return self._draining

    @property
    def addresses(self) -> list[Any]:
        """Where the server listens: the addresses as given until it is started, then the real ones."""
        return [place.address for place in self._places]

    @property
    def address(self) -> Any:
        """The first of ``addresses``."""
        return self._places[0].address

    @property
    def family(self) -> int:
        """The address family of the first listener."""
        return self._places[0].family

    @property
    def server_host(self) -> str | None:
        """The address it listens on; None for a Unix socket."""
        return self.address[0] if isinstance(self.address, tuple) else None

    @property
    def server_port(self) -> int | None:
        """The port it listens on; None for a Unix socket."""
        return self.address[1] if isinstance(self.address, tuple) else None

    @property
    def listeners(self) -> list[_socket.socket]:
        """The sockets that listen; empty before ``listen`` or ``start``, and after the end."""
        return [place.listener for place in self._places if place.listener is not None]

    @property
    def connections_alive(self) -> int:
        """How many connections have come and not yet ended."""
        return self._tally.alive

    @property
    def connections(self) -> list[ConnectionT]:
        """The connections that are alive and open, a list of your own.

        It is made by a look at each connection of the thread: 0.1 us each.
        """
        return [conn for conn in self._mine() if conn._state is OPEN]

    def start(self) -> None:
        """Bind if need be, and begin to serve. Returns at once; the serving happens while the program blocks elsewhere.

        Raises:
            OSError: an address cannot be had; it is named in it. None of the others is held then.
        """
        if self.started:
            return
        self.open_listeners()
        self._prepare_turns(get_poller(), self.max_workers)
        self._pid = os.getpid()
        self._stopped.clear()
        self._draining = False
        self._spread = 0.0
        if self.idle_timeout is not None:
            self._sweep = IdleSweep(self._poller, self, self.idle_timeout)
            self._sweep.start()
        on_accepted, permits = self._on_accepted, self.accept_permits
        if self._limiter is not None:
            self._limiter.start()
            on_accepted, permits = self._limiter.accepted, self._limiter.permits
        for place in self._places:
            assert place.listener is not None
            place.acceptor = Acceptor(
                place.listener, cast(Any, partial(on_accepted, place.family)), permits, self.max_accept
            )
        self.start_accepting()
        warn_if_unpatched()

    def stop_accepting(self) -> None:
        """Leave new connections in the kernel's backlog; ``start_accepting`` takes them up again."""
        for acceptor in self._acceptors():
            acceptor.stop()

    def start_accepting(self) -> None:
        """Accept again after ``stop_accepting``."""
        for acceptor in self._acceptors():
            acceptor.start()

    def drain(self, timeout: float | None = None) -> bool:
        """Stop accepting, close the listener, and let the connections end; True if all did within ``timeout`` seconds.

        A connection that waits for its peer with nothing half received is closed: at once if nothing is on its way,
        else as soon as what came had its turn and what was sent has arrived. One whose upcall runs may go on; so may
        one that waits for its peer inside a message, or in ``handle``, as long as it hears something every second.
        ``handle`` can look at ``draining``.
        """
        self._check_thread("drain")
        self._spread = 0.0
        return self._drain(timeout, 0.0)

    def hand_over(self, timeout: float | None = None, accepting: bool = False) -> None:
        """Stop as :meth:`stop` does, but for a successor: who has a connection may ask once more.

        What rests is not closed at once, when its peer may be about to write, but stays for half of ``close_spread``
        seconds (of ``timeout``, if that is less), and is closed within the other half, each connection at another
        moment. Meanwhile a protocol can tell its peers to go: HTTP answers with ``Connection: close``. The listener is
        closed, and its backlog left to those that have it too; with ``accepting`` that comes half of ``close_spread``
        later, and until then more are served: for a process whose successor comes only when it has ended.
        """
        self._check_thread("hand_over")
        if self.started:
            life = self._workers
            seconds = self.stop_timeout if timeout is None else timeout
            self._spread = min(self.close_spread, seconds / 2)
            self._spread_since = inf if accepting else monotonic()
            self._drain(seconds, self._spread / 2 if accepting else 0.0)
            if self._workers is not life:
                return  # it was stopped meanwhile, and lives anew
        self.abort()

    def _drain(self, timeout: float | None, accepting: float) -> bool:
        """Let the connections end; accept more of them for so many seconds. True if all did within ``timeout``."""
        if not accepting:
            self.close_listeners()
        self._begin_draining()
        if not self.started:
            return True
        # The workers stand for one life of the server: another greenlet may stop it while this one waits, and start it
        # again (test_a_stop_that_still_waits_leaves_the_next_life_alone).
        life = self._workers
        deadline = inf if timeout is None else monotonic() + timeout
        heard: dict[Connection, tuple[int, float]] = {}
        pause, look_at = SHORTEST_LOOK, 0.0
        close_at = monotonic() + accepting if accepting else inf
        while self._workers is life and self.started:  # another greenlet may stop it meanwhile, and start it again
            # Cleared before the looks, so that a connection that ends during them is not waited for in vain.
            self._changed.clear()
            if monotonic() >= look_at:
                self.end_resting(heard)
                look_at = monotonic() + pause
                pause = min(2 * pause, LONGEST_LOOK)
            now = monotonic()
            if self._tally.alive <= self._own() or now >= close_at:
                if close_at == inf:
                    return True
                self.close_listeners()  # one may have come just now
                close_at, self._spread_since = inf, monotonic()
                continue
            if now >= deadline:
                return False
            # Woken by each connection that ends. The looks are for what no event tells: the peer has what was sent.
            self._changed.wait(max(0.0, min(deadline, look_at, close_at) - now))
        return True

    def stop(self, timeout: float | None = None) -> None:
        """Drain for at most ``timeout`` seconds (default ``stop_timeout``), then abort what is left.

        Returns as soon as the last connection has ended. Every connection gets its ``connection_drop``.
        """
        if self.started:
            life = self._workers
            self.drain(self.stop_timeout if timeout is None else timeout)
            if self._workers is not life:
                return  # it was stopped meanwhile, and lives anew
        self.abort()

    def abort(self) -> None:
        """Stop now: reset every connection and end every upcall with ``GreenletExit``.

        Waits up to a second for the upcalls to end.
        """
        self._check_thread("abort")
        self.close_listeners()
        if not self.started:
            return
        self._begin_draining()
        # Connections first, upcalls second: an upcall that is hit finds its connection closed, and cannot begin
        # anything anew.
        for conn in self._mine():
            conn._abort(DropReason.STOPPED)
        poller, workers = get_poller(), self._workers
        deadline = monotonic() + KILL_SECONDS
        # In the hub, where greenlets are thrown into: this may be a worker itself, which is spared and ends when it
        # returns (test_abort_from_inside_an_upcall_with_others_alive).
        poller.call_soon(partial(workers.kill, GreenletExit("the server was aborted"), getcurrent()))
        try:
            while self._tally.alive > self._own() and (left := deadline - monotonic()) > 0:
                self._changed.clear()
                self._changed.wait(min(left, 0.1))
            if self._tally.alive > self._own():
                log.error("%d upcalls did not end when they were killed", self._tally.alive - self._own())
        finally:  # this greenlet may be killed in its wait: two upcalls that abort at once kill each other
            if self._limiter is not None:
                self._limiter.stop()
            if self._sweep is not None:
                self._sweep.stop()
                self._sweep = None
            poller.call_soon(partial(workers.dismiss, partial(poller.discard_workers, workers)))
            self._stopped.set()

    def serve_forever(self) -> None:
        """Start, and block until the server stops.

        Meanwhile SIGTERM, SIGINT and SIGQUIT drain and then stop it, and a second one aborts; SIGHUP, SIGUSR1 and
        SIGUSR2 are logged and ignored. Only signals at their default are taken, in the main thread, and given back. If
        no ``serve_forever`` ran in the main greenlet, a signal that ended them then does what it would without us.
        """
        # Signals are taken once it is started: before, a signal that comes does what it always did.
        self.start()
        serving.enter(self)
        try:
            self._stopped.wait()
        finally:
            try:
                self.stop()
            finally:
                serving.leave(self)

    def __enter__(self: _Mine) -> _Mine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def adopt(self, sock: _socket.socket) -> ConnectionT:
        """Serve a connected stream socket that you made; it is taken over, and your object is left without it.

        Raises:
            ValueError: it is not a connected stream socket, or the server is not started. It stays yours.
            TypeError: it is a TLS socket.
            OSError: the engine cannot watch one more. It is closed.
        """
        if hasattr(sock, "do_handshake"):
            raise TypeError(f"adopt({sock!r}): a plain socket expected, not a TLS one")
        if not self.started or self._draining:
            raise ValueError("adopt: the server is not started, or is about to stop")
        try:
            peer = sock.getpeername()
        except OSError as error:
            raise ValueError(f"adopt({sock!r}): a connected socket expected: {error.strerror}") from error
        if sock.type != _socket.SOCK_STREAM:
            raise ValueError(f"adopt({sock!r}): a stream socket expected")
        # All checks are made: from ``detach`` on ``_serve`` closes it if anything fails
        # (test_adopt_that_is_refused_leaves_nothing).
        sock.setblocking(False)
        family = sock.family
        return self._serve(sock.detach(), family, peer)

    def connect(
        self,
        address: Any,
        *,
        timeout: float | None = 30.0,
        tls: TLS | ssl.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        preface: bytes = b"",
    ) -> ConnectionT:
        """Connect to ``address``, and have this server's upcalls serve the connection (the seed's downcall).

        It returns at once, as what becomes of the connection is told by upcalls, and in one place: ``connection_new``
        when it stands, or ``connection_error``, with what ``greensock.connect`` would have raised, and
        ``connection_drop``. So an upcall can make many, and no slow one holds up the others. Attributes that you set on
        it are there in the first upcall. Who wants to go on only when it stands calls ``conn.wait_open()``; until then
        its state is OPENING, and what sends or receives raises ``ConnectionClosed``. ``close()`` gives it up.

        ``timeout`` is in seconds for all of it; ``tls``, ``server_hostname`` and ``preface`` are as in
        ``greensock.connect``: the server's own ``tls`` is for those who come. ``protocol`` is the server's. It counts
        among ``max_connections`` from now on. What does not stand yet is closed by a server that drains.

        Raises:
            ValueError: an argument is not allowed, or the server is not started, or is about to stop.
            LimitExceeded: ``max_connections`` are there.
        """
        to = Connecting.of(address, timeout, self.no_delay, tls, server_hostname, preface, self.protocol)
        self._check_thread("connect")
        if not self.started or self._draining:
            raise ValueError("connect: the server is not started, or is about to stop")
        most = self.max_connections
        if most is not None and self._tally.alive >= most:
            raise LimitExceeded(f"max_connections={most} are there", None, "max_connections", most)
        conn: ConnectionT = Dial(self, to).begin()
        return conn

    def broadcast(self, data: Buffer | Sequence[Buffer], connections: Iterable[ConnectionT] | None = None) -> int:
        """Send to each of ``connections`` (default: all of the server) without waiting; return how many took it.

        For one that reads too slowly ``send_nowait`` keeps up to ``max_send_queue`` bytes; it is dropped when that is
        exceeded, with SLOW_READER as its reason. One that has ended is left out.

        Raises:
            WouldBlock: ``data`` alone is more than ``max_send_queue`` bytes: no peer is to blame.
        """
        took = 0
        for conn in self.connections if connections is None else list(connections):
            try:
                conn.send_nowait(data)
            except WouldBlock:
                # No peer is at fault for what no queue could hold (test_what_no_queue_could_hold_drops_no_reader).
                if as_views(data)[1] > conn.max_send_queue:
                    raise
                conn._abort(DropReason.SLOW_READER)
            except ConnectionError:
                pass  # it has ended, or is about to
            else:
                took += 1
        return took

    def call_soon_threadsafe(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have ``call`` called in a greenlet of its own in the server's thread, where it may block. From any thread.

        What it raises is logged and counted as a failed upcall. Calls begin in the order in which they were given; a
        server that stops does not wait for them.

        Raises:
            RuntimeError: the server is not started.
        """
        if not self.started:
            raise RuntimeError("call_soon_threadsafe: the server is not started")
        self._poller.hub.loop.run_callback_threadsafe(spawn, self._tell, call, *arguments)

    def statistics(self) -> ServerStatistics:
        """Return a snapshot of the counters."""
        mine = self._mine()
        workers = getattr(self, "_workers", None)
        return ServerStatistics(
            accepted=self._tally.accepted,
            connected=self._tally.connected,
            active=self._tally.alive,
            dropped=dict(self._dropped),
            errors=self.error_count,
            accept_pauses=self._pauses + sum(acceptor.pauses for acceptor in self._acceptors()),
            bytes_received=self._tally.received + sum(conn.bytes_received for conn in mine),
            bytes_sent=self._tally.sent + sum(conn.bytes_sent for conn in mine),
            messages=self._tally.messages,
            workers=workers.count if workers is not None else 0,
            workers_busy=workers.busy if workers is not None else 0,
            handshakes=self._handshakes.done if self._handshakes is not None else 0,
            handshakes_unfinished=len(self._handshakes) if self._handshakes is not None else 0,
            handshakes_failed=dict(self._handshakes.failed) if self._handshakes is not None else {},
            limited=dict(self._limiter.limited) if self._limiter is not None else {},
        )

    # -- starting and stopping, in detail

    def _check_style(self) -> None:
        """Refuse functions of both styles, of which only one can be: ``handle`` or upcalls for what comes."""
        if self.tls is not None and self.given_upcall("transport_for") is not None:
            raise ValueError("tls and transport_for: one of both expected")
        for name in UNHANDLED:
            given = {"handle", name} & self._functions
            if given and self.given_upcall("handle") is not None and self.given_upcall(name) is not None:
                raise ValueError(f"handle and {name}: one of both expected, for handle receives by itself")

    def _check_sctp(self) -> None:
        """Refuse what does not go with SCTP, and have messages kept where the connections' class asks for that."""
        if self.protocol != "sctp":
            raise ValueError(f"connection_class={self.connection_class.__name__}: protocol='sctp' expected beside it")
        if self.tls is not None or self.given_upcall("transport_for") is not None:
            raise ValueError("protocol='sctp': no tls and no transport_for expected beside it")
        if issubclass(self.connection_class, SCTPConnection):
            if self.framer is None:
                self.framer = SCTPMessages(MOST_MESSAGE)
            elif not isinstance(self.framer, SCTPMessages):
                raise ValueError(f"framer={self.framer!r}: None or SCTPMessages() expected, as there are messages")

    def _acceptors(self) -> list[Acceptor]:
        return [place.acceptor for place in self._places if place.acceptor is not None]

    def open_listeners(self) -> None:
        """Bind where nothing does yet, and listen everywhere; on failure nothing is bound that was not before."""
        mode, owner = self.unix_mode, self.unix_owner
        made: list[_Place] = []
        try:
            for place in self._places:
                if place.listener is None:
                    family, address = place.family, place.address
                    if self.protocol == "sctp":
                        place.listener = self._listen_sctp(family, address)
                    else:
                        place.listener = listen(
                            family, address, self.backlog, self.reuse_port, unix_mode=mode, unix_owner=owner
                        )
                    made.append(place)
                elif not place.listener.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
                    place.listener.listen(self.backlog)
                self._tune(place.listener)
        # All or none, so that a failed start can be tried again (test_all_or_none_bind).
        except BaseException:
            for place in made:
                _close_listener(place)
            raise
        for place in made:
            assert place.listener is not None
            place.address = place.listener.getsockname()

    def _listen_sctp(self, family: int, address: Any) -> _socket.socket:
        if family == _socket.AF_UNIX:
            raise ValueError(f"listener={address!r}: (host, port) expected, with protocol='sctp'")
        try:
            return listen(family, address, self.backlog, self.reuse_port, protocol=IPPROTO_SCTP, prepare=prepare_sctp)
        except OSError as error:
            raise explain_sctp(error) from error

    def _tune(self, listener: _socket.socket) -> None:
        """Set what accepted sockets inherit."""
        if self.protocol == "sctp":
            tune_sctp(listener, self.no_delay)
        elif listener.family != _socket.AF_UNIX:
            listener.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, self.no_delay)
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, self.keep_alive)

    def pass_listeners(self) -> list[_socket.socket]:
        """Return the listeners once more, for a server that takes this one's place in this process.

        They are yours: give them to the other server, or close them. The file of a Unix socket goes with them, and is
        removed with the other server's end and not with this one's.
        """
        return [pass_on(listener) for listener in self.listeners]

    def close_listeners(self) -> None:
        """Close the listeners; connections go on. A later ``start`` binds anew."""
        for place in self._places:
            self._pauses += place.acceptor.pauses if place.acceptor is not None else 0
            _close_listener(place)

    def _begin_draining(self) -> None:
        if not self._draining:
            self._draining_since = monotonic()
            self._draining = True

    def _check_thread(self, call: str) -> None:
        if self.started and get_poller() is not self._poller:
            raise RuntimeError(f"{call}: the server was started in another thread")

    def _own(self) -> int:
        """1 if this is called in one of our own upcalls, whose connection cannot end before."""
        return 1 if self.started and getcurrent() in self._workers else 0

    # -- connections come and go

    def accept_permits(self) -> float:
        """Return how many more connections are welcome; asked before each round of accepting."""
        if self.max_connections is None:
            return inf
        permits = self.max_connections - self._tally.alive
        if permits < 1:
            self._is_full = True
            now = monotonic()
            if now - self._full_logged >= LOG_EVERY:
                self._full_logged = now
                log.warning("max_connections=%d are there; more wait in the backlog", self.max_connections)
        return permits

    def _on_accepted(self, family: int, fd: int, address: Any) -> ConnectionT | None:
        try:
            return self._serve(fd, family, address)
        except Exception as error:  # epoll's limit is reached, or the program's connection class failed
            self.error_count += 1
            if family != _socket.AF_UNIX:
                address = unpack_address(family, address)
            self.log_failure(error, "a connection from %r could not be served and is closed", address)
            return None

    def connection_ended(self) -> None:
        self._tally.alive -= 1
        # An event is set only for who may wait for it: this runs once for each connection.
        if self._draining:
            self._changed.set()
        if self._is_full:
            self._is_full = False
            self.welcome_connections()

    def welcome_connections(self) -> None:
        """Have the acceptors ask ``accept_permits`` again."""
        for acceptor in self._acceptors():
            acceptor.more_welcome()

    def __repr__(self) -> str:
        where = ", ".join(map(repr, self.addresses))
        return f"<{type(self).__name__} at {where} {'started' if self.started else 'stopped'}>"


def _place(listener: Any) -> _Place:
    if not hasattr(listener, "accept"):
        return _Place(*parse_address(listener))
    if hasattr(listener, "do_handshake"):
        raise TypeError(f"listener={listener!r}: a plain socket expected, not a TLS one")
    return _Place(listener.family, listener.getsockname(), listener)


def _close_listener(place: _Place) -> None:
    # Both are taken first: closing the acceptor blocks, and meanwhile another greenlet may come here too.
    acceptor, place.acceptor = place.acceptor, None
    listener, place.listener = place.listener, None
    if listener is not None:
        remove_file(listener)
    if acceptor is not None:
        acceptor.close()
    elif listener is not None:
        listener.close()


_warned = False


def warn_if_unpatched() -> None:
    """Say once what it means that the program did not patch the standard library."""
    global _warned
    if not _warned and not is_module_patched("socket"):
        _warned = True
        log.warning(
            "the standard library is not monkey-patched: greensock's own calls cooperate, but an upcall that blocks in "
            "another library stops every connection; put 'from gevent import monkey; monkey.patch_all()' first"
        )
