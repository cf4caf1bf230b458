"""The datagram server: one socket, an upcall for each datagram that comes.

It owns its socket, through the endpoint (``datagrams``), its ready queue and its workers. Between two datagrams it has
no greenlet. Nothing is queued in Python but what one read brought: while all workers are blocked, or a program
computes, the kernel's buffer holds what comes, drops what it has no room for, and counts that.
"""

from __future__ import annotations

import logging
import os
import socket as _socket
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gevent
from gevent import spawn
from gevent.event import Event
from greenlet import GreenletExit, getcurrent

from greensock.address import bind_datagrams, parse_address, remove_file
from greensock.core.datagram_calls import change_membership
from greensock.core.datagrams import DatagramSocket, drain_datagrams
from greensock.core.lifecycle import INHERIT, Timeout
from greensock.core.poller import Poller, get_poller
from greensock.core.server import KILL_SECONDS, warn_if_unpatched
from greensock.core.signals import serving
from greensock.core.workers import Workers
from greensock.datagram_rules import DATAGRAM_OPTIONS, DATAGRAM_UPCALLS, DatagramKeywords
from greensock.errors import GreensockError
from greensock.log_limit import LogLimit
from greensock.server_options import Rule, checked
from greensock.stats import DatagramStatistics

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DatagramServer"]

log = logging.getLogger("greensock.server")

#: Seconds for which a server that drains reads what the kernel holds.
LAST_SECONDS = 1.0
#: Seconds between two looks at what no event tells, while the server drains.
LOOK_SECONDS = 0.02

_Mine = TypeVar("_Mine", bound="DatagramServer")


class DatagramServer:
    """A UDP server, or one of Unix datagrams. Subclass it and override the upcalls, or give functions for them.

    ``listener`` is ``(host, port)``, ``"host:port"``, a port, the path of a Unix socket (an abstract name is
    ``"unix:\\0name"``), or a bound datagram socket, which the server then owns and closes when it stops. It is one
    address: what is sent to a peer leaves from there. A host with several addresses that peers talk to has a server
    for each; with ``"0.0.0.0"`` or ``"::"`` the kernel chooses which of them answers come from.

    Every option is a class attribute and a keyword. An upcall may be given as a keyword, too: a function that gets the
    arguments without the server.

    Each datagram has its upcall in one of the workers that are kept for them, and an upcall may block: the others,
    of the same peer too, have theirs meanwhile. They begin in the order in which they came.

    Raises:
        ValueError: the listener or an option is not allowed; the text says which, its value, and what is allowed.
        TypeError: no such option.
    """

    #: How many upcalls may be blocked at the same time; more datagrams wait in the kernel. None: no bound.
    max_workers: int | None = 10_000
    #: Bytes of the longest datagram that is taken; ``datagram_error`` is told of one that is longer.
    recv_size: int = 65536
    #: Bytes that the kernel may hold of what came (SO_RCVBUF; it takes twice as much, with what datagrams cost it, and
    #: no more than net.core.rmem_max). None: what it gives by itself, mostly some 200 kB.
    recv_buffer: int | None = None
    #: Bytes that the kernel may hold of what is sent (SO_SNDBUF). None: what it gives by itself.
    send_buffer: int | None = None
    #: Bytes that ``send_nowait`` may hold; a datagram counts for at least 64.
    max_send_queue: int = 1 << 20
    #: Seconds that ``send_to`` waits for room if it is given no ``timeout``, and that ``send_nowait`` keeps a datagram
    #: that finds none. None: for ever.
    send_timeout: float | None = 60.0
    #: Seconds that ``stop`` waits, at the most, for upcalls that run and for what waits to be sent.
    stop_timeout: float = 30.0
    #: Whether several sockets may be bound to the port (SO_REUSEPORT); the kernel has each peer stay at one of them.
    reuse_port: bool = False
    #: Whether it may send to broadcast addresses (SO_BROADCAST).
    allow_broadcast: bool = False
    #: Whether the kernel may hand over together what came together from one peer (UDP_GRO, Linux 5.0): each datagram
    #: has its upcall all the same, for less.
    coalesce: bool = True
    #: The rights of a Unix socket's file, such as 0o660, when ``start`` makes it. None: what the umask leaves of 0o777.
    unix_mode: int | None = None
    #: Whose that file is: ``"user"``, ``"user:group"``, ``":group"`` or ``(uid, gid)``. None: the process's.
    unix_owner: str | tuple[int, int] | None = None
    #: What each keyword may be. A subclass with options of its own adds theirs.
    option_rules: ClassVar[Mapping[str, Rule]] = {**DATAGRAM_OPTIONS, **DATAGRAM_UPCALLS}

    def __init__(self, listener: Any, **options: Unpack[DatagramKeywords]) -> None:
        for name, value in checked(self, options, self.option_rules).items():
            setattr(self, name, value)
        self._given: _socket.socket | None = None
        if hasattr(listener, "getsockname"):
            if listener.type != _socket.SOCK_DGRAM:
                raise ValueError(f"listener={listener!r}: a datagram socket expected")
            self._given = listener
            self._family, self._address = listener.family, listener.getsockname()
        else:
            self._family, self._address = parse_address(listener)
        self._endpoint: DatagramSocket | None = None
        self._workers: Workers | None = None
        self._draining = False
        self._changed = Event()
        self._stopped = Event()
        self._stopped.set()
        self._pid = os.getpid()
        #: Upcalls that raised something they should not have.
        self.error_count = 0
        self._failures_logged = LogLimit()
        self._on_recv: Callable[[bytes, Any], object] = self.datagram_recv

    # -- upcalls

    def datagram_recv(self, data: bytes, address: Any) -> object:
        """A datagram came: all of it, and from whom. What is returned has no meaning.

        ``address`` is ``(host, port)`` for IPv4, four items for IPv6, the path or abstract name (bytes) of a Unix
        socket; None if that has none, and can't be answered.
        """

    def datagram_error(self, exc: Exception, address: Any) -> object:
        """Something became of a datagram that should not have; ``address`` is whom it came from, or was sent to.

        ``exc`` is :class:`~greensock.MessageTooLong` if it came and was longer than ``recv_size``,
        :class:`~greensock.Undeliverable` if it was sent and the peer's host or the network said that it did not arrive
        (known only where this upcall is given), or what an upcall raised.
        """

    # -- life

    @property
    def started(self) -> bool:
        """Whether the server was started and has not stopped. A forked child's copy never is: it is the parent's."""
        return not self._stopped.is_set() and self._pid == os.getpid()

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        return self._draining

    @property
    def address(self) -> Any:
        """Where it gets datagrams: the address as given until it is started, then the real one."""
        return self._address

    @property
    def family(self) -> int:
        """The address family."""
        found: int = self._family
        return found

    @property
    def server_host(self) -> str | None:
        """The address of its host; None for a Unix socket."""
        return self._address[0] if isinstance(self._address, tuple) else None

    @property
    def server_port(self) -> int | None:
        """Its port; None for a Unix socket."""
        return self._address[1] if isinstance(self._address, tuple) else None

    @property
    def socket(self) -> _socket.socket | None:
        """The socket, for options of it; None while the server is not started. It never blocks."""
        return self._endpoint._sock if self._endpoint is not None and self._endpoint._fd >= 0 else None

    def start(self) -> None:
        """Bind if need be, and begin to serve. Returns at once; the serving happens while the program blocks elsewhere.

        Raises:
            OSError: the address cannot be had; it is named in it.
        """
        if self.started:
            return
        sock = self._given
        if sock is None:
            mode, owner = self.unix_mode, self.unix_owner
            sock = bind_datagrams(self._family, self._address, self.reuse_port, unix_mode=mode, unix_owner=owner)
        try:
            endpoint = self._prepared(get_poller(), sock)
            endpoint._watch()
        except BaseException:
            if self._given is None:
                remove_file(sock)
                sock.close()
            raise
        self._given = None
        self._endpoint = endpoint
        self._address = sock.getsockname()
        self._pid = os.getpid()
        self._draining = False
        self._stopped.clear()
        warn_if_unpatched()

    def _prepared(self, poller: Poller, sock: _socket.socket) -> DatagramSocket:
        """Return the endpoint of a bound socket, which is not watched yet."""
        for option, size in ((_socket.SO_RCVBUF, self.recv_buffer), (_socket.SO_SNDBUF, self.send_buffer)):
            if size is not None:
                sock.setsockopt(_socket.SOL_SOCKET, option, min(size, 1 << 30))
        if self.allow_broadcast:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_BROADCAST, 1)
        endpoint = DatagramSocket(poller, sock, self.recv_size, self.coalesce)
        endpoint.max_send_queue = self.max_send_queue
        endpoint.send_timeout = self.send_timeout
        if getattr(self.datagram_error, "__func__", None) is not DatagramServer.datagram_error:
            endpoint._watch_errors()
        self._on_recv = self.datagram_recv
        self._workers = Workers(poller.hub, partial(drain_datagrams, self), self.max_workers)
        poller.worker_pools.append(self._workers)
        endpoint._ready = self._workers.ready.append
        endpoint._idle = True
        return endpoint

    def drain(self, timeout: float | None = None) -> bool:
        """Take what has come by now, and let the upcalls end; True if all did within ``timeout`` seconds.

        What comes later is no longer taken. The socket is open until the server stops, and can be sent from.
        """
        self._check_thread("drain")
        endpoint, workers = self._endpoint, self._workers
        if not self.started or endpoint is None or workers is None:
            return True
        if not self._draining:
            self._draining = True
            endpoint._reads_until = monotonic() + LAST_SECONDS
            if endpoint._idle:  # an event may be on its way
                endpoint._readable = True
                endpoint._poller.queue(endpoint)
        deadline = inf if timeout is None else monotonic() + timeout
        while self._workers is workers and self.started:
            if endpoint._idle and not endpoint._queue and workers.busy <= self._own():
                return True
            left = deadline - monotonic()
            if left <= 0:
                return False
            self._changed.clear()
            self._changed.wait(min(left, LOOK_SECONDS))
        return True

    def stop(self, timeout: float | None = None) -> None:
        """Drain for at most ``timeout`` seconds (default ``stop_timeout``), then end what is left."""
        if self.started:
            workers = self._workers
            self.drain(self.stop_timeout if timeout is None else timeout)
            if self._workers is not workers:
                return  # it was stopped meanwhile, and lives anew
        self.abort()

    def abort(self) -> None:
        """Stop now: close the socket and end every upcall with ``GreenletExit``.

        Waits up to a second for the upcalls to end. What waits to be sent is dropped.
        """
        self._check_thread("abort")
        if self._given is not None:
            self._given.close()
            self._given = None
        endpoint, workers = self._endpoint, self._workers
        if not self.started or endpoint is None or workers is None:
            return
        self._draining = True
        remove_file(endpoint._sock)
        endpoint.close()
        workers.ready.clear()
        poller = endpoint._poller
        deadline = monotonic() + KILL_SECONDS
        poller.call_soon(partial(workers.kill, GreenletExit("the server was aborted"), getcurrent()))
        try:
            # Once more around: those that are to be killed are, when this has waited for the first time.
            gevent.sleep(0)
            while workers.busy > self._own() and (left := deadline - monotonic()) > 0:
                self._changed.clear()
                self._changed.wait(min(left, LOOK_SECONDS))
            if workers.busy > self._own():
                log.error("%d upcalls did not end when they were killed", workers.busy - self._own())
        finally:
            poller.call_soon(partial(workers.dismiss, partial(poller.discard_workers, workers)))
            self._stopped.set()

    def serve_forever(self) -> None:
        """Start, and block until the server stops. Signals do what they do to a ``Server``."""
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

    # -- downcalls

    def send_to(self, data: Any, address: Any, *, timeout: Timeout = INHERIT, segment_size: int | None = None) -> int:
        """Send a datagram; return how many bytes that were. Blocks only while the kernel has no room for it.

        ``data`` is bytes, or a list of such, which are joined. ``address`` is as ``datagram_recv`` gets it; the host is
        in numbers, as to look up a name would take time. With ``segment_size`` the data is many datagrams, each so
        long but the last one, which the kernel cuts at a fraction of their cost (UDP_SEGMENT), or we do.

        That it returns says that the kernel took it. UDP promises nothing.

        Raises:
            Undeliverable: the system knows of no way to the peer; of a Unix socket: nobody is there.
            OperationTimeout: there was no room within ``timeout`` seconds (default ``send_timeout``).
            ConnectionClosed: the server is not started, or stopped meanwhile.
            ValueError: the address is none, or the data is longer than a datagram can be.
        """
        endpoint = self._endpoint
        if endpoint is None:
            raise ValueError("send_to: the server is not started")
        limit: Any = self.send_timeout if timeout is INHERIT else timeout
        if segment_size is not None:
            return endpoint._send_cut(data, address, segment_size, limit)
        count: int = endpoint._send_to(data, address, limit)
        return count

    def send_nowait(self, data: Any, address: Any) -> bool:
        """Send a datagram without ever waiting. What finds no room is kept, up to ``max_send_queue`` bytes.

        False: that was full, and the datagram was dropped, and counted.

        Raises:
            Undeliverable, ConnectionClosed, ValueError: as ``send_to`` does.
        """
        if self._endpoint is None:
            raise ValueError("send_nowait: the server is not started")
        kept: bool = self._endpoint._send_nowait(data, address)
        return kept

    def join_group(self, group: str, interface: str | int | None = None) -> None:
        """Get what is sent to a multicast group, too, until the server stops.

        ``interface`` is the name or number of a network interface or, for IPv4, its address; None: the kernel's choice.

        Raises:
            ValueError: it is no multicast group of the server's family, or no such interface, or it is not started.
            OSError: the kernel refused (ENODEV: no interface leads there; EADDRINUSE: it is joined already).
        """
        self._change_membership(group, interface, True)

    def leave_group(self, group: str, interface: str | int | None = None) -> None:
        """Take back ``join_group``."""
        self._change_membership(group, interface, False)

    def _change_membership(self, group: str, interface: str | int | None, joins: bool) -> None:
        if not self.started or self._endpoint is None:
            raise ValueError("multicast groups: the server is not started")
        if self._family == _socket.AF_UNIX:
            raise ValueError(f"group={group!r}: a Unix socket is in no group")
        change_membership(self._endpoint._raw, group, interface, joins)

    def call_soon_threadsafe(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have ``call`` called in a greenlet of its own in the server's thread, where it may block. From any thread.

        What it raises is logged and counted as a failed upcall.

        Raises:
            RuntimeError: the server is not started.
        """
        if not self.started or self._endpoint is None:
            raise RuntimeError("call_soon_threadsafe: the server is not started")
        self._endpoint._poller.hub.loop.run_callback_threadsafe(spawn, self._tell, call, *arguments)

    def statistics(self) -> DatagramStatistics:
        """Return a snapshot of what was counted since the last start."""
        workers = self._workers
        if self._endpoint is None or workers is None:
            return DatagramStatistics(*(0,) * len(DatagramStatistics.__dataclass_fields__))
        return self._endpoint._counted(workers.count, workers.busy, self.error_count)

    # -- in detail

    def _check_thread(self, call: str) -> None:
        if self.started and self._endpoint is not None and get_poller() is not self._endpoint._poller:
            raise RuntimeError(f"{call}: the server was started in another thread")

    def _own(self) -> int:
        """1 if this is called in one of our own upcalls, which can't end before."""
        return 1 if self._workers is not None and getcurrent() in self._workers else 0

    def _upcall_raised(self, error: BaseException, address: Any) -> None:
        """Take what an upcall let out. Only what this server's own sends raised is the network's doing."""
        is_ours = isinstance(error, GreensockError) and error.connection is self._endpoint
        if not is_ours and not (isinstance(error, GreenletExit) and self._draining):
            self.error_count += 1
            self._log_failure(error, "an upcall failed on a datagram from %r", address)
        if not isinstance(error, Exception) and not isinstance(error, GreenletExit | gevent.Timeout):
            hub = gevent.get_hub()
            hub.handle_error(self, type(error), error, error.__traceback__)
        if self._draining and isinstance(error, GreenletExit):
            return
        if is_ours:
            address = getattr(error, "address", address)
        self._tell_trouble(error, address)

    def _tell_trouble(self, error: BaseException, address: Any) -> None:
        self._tell(self.datagram_error, error, address)

    def _tell(self, upcall: Callable[..., Any], *arguments: Any) -> None:
        try:
            upcall(*arguments)
        except BaseException as error:
            if isinstance(error, GreenletExit) and self._draining:
                return
            self.error_count += 1
            self._log_failure(error, "%s failed", getattr(upcall, "__name__", upcall))
            if not isinstance(error, Exception) and not isinstance(error, GreenletExit | gevent.Timeout):
                gevent.get_hub().handle_error(self, type(error), error, error.__traceback__)

    def _log_failure(self, error: BaseException, text: str, *about: object) -> None:
        left_out = self._failures_logged.left_out(monotonic())
        if left_out > 0:
            text += f"; {left_out} failures before were not logged"
        if left_out >= 0:
            log.error(text, *about, exc_info=error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self._address!r} {'started' if self.started else 'stopped'}>"
