"""The connections of a client: it does what the pool decides.

A request holds a :class:`Lease` while it holds a slot of the pool; a lease ends once, whatever happens, and with it the
slot goes back. Idle connections are closed by a timer of the hub's, so that they cost no greenlet; it runs only while
there are some. All of it belongs to one hub: a client is used in the thread it was first used in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import weakref
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from gevent import get_hub
from gevent.event import Event
from gevent.monkey import get_original

from greensock import (
    TLS,
    ConnectFailed,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    OperationTimeout,
    State,
    connect,
    share_of_descriptors,
)
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.origin import Origin
from greensock.http.client.pool_state import Action, Decision, PoolState
from greensock.http.errors import ConnectTimeout, PhaseTimeout, QueueFull, QueueTimeout
from greensock.http.wire.limits import Limits
from greensock.http.wire.response_parser import ResponseParser

if TYPE_CHECKING:
    import ssl

__all__ = ["ClientConnection", "ConnectionPool", "Lease", "Patient", "Waiter"]

_new_poll = get_original("select", "poll")
_close = get_original("os", "close")  # gevent's waits for the next pass of the loop, and so would a reset
#: The process, or the system, may open no more.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_READABLE: int = select.POLLIN | select.POLLRDHUP

_all_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
_with_spare: set[ClientConnection] = set()  # those that hold a second descriptor


class ClientConnection(Connection):
    """A connection to a server."""

    __slots__ = ("_poll", "_spare", "has_challenged", "made", "parser", "requests")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.linger_timeout = 0.0  # by then the whole answer is there, or is given up
        #: What its answers go through.
        self.parser: ResponseParser
        #: How many requests it was used for.
        self.requests = 0
        #: When it was made, in seconds of ``monotonic``.
        self.made = 0.0
        #: Whether its last answer was a challenge whose reply must come on this same connection (NTLM, Negotiate).
        self.has_challenged = False
        self._poll: Any = None
        self._spare = -1

    def keep_spare(self) -> None:
        """Keep a second descriptor until the lease ends: what came before a reset can be read through it.

        A send that fails closes the first one, and servers that refuse a body often reset while their answer is on its
        way: it would be lost. None is kept where too many are already: it may never be needed.
        """
        if self.tls is not None:
            return  # it could not be decrypted
        if self._spare < 0 and len(_with_spare) < share_of_descriptors():
            with contextlib.suppress(OSError):
                self._spare = self.duplicate()
                _with_spare.add(self)

    def drop_spare(self) -> None:
        """Close the second descriptor, if there is one."""
        if self._spare >= 0:
            spare, self._spare = self._spare, -1
            _with_spare.discard(self)
            _close(spare)

    def hear(self, timeout: float | None) -> bytes:
        """Receive, from the second descriptor if the connection is lost and there is one.

        A reset is never taken for the end of input: an answer without a length would look whole.
        """
        try:
            return self.recv(timeout=timeout)
        except ConnectionLost as lost:
            if self._spare < 0:
                raise
            with contextlib.suppress(OSError):
                data = os.read(self._spare, self.recv_size)
                # EPIPE: FIN had come before the reset (test_an_answer_until_the_end_that_a_reset_ends).
                if data or getattr(lost.__cause__, "errno", None) == errno.EPIPE:
                    return data
            raise

    is_duplicated = True

    def descriptor_closed(self) -> None:
        """Close the second descriptor, too, unless it is wanted for what came before a reset."""
        if self._spare >= 0 and self.drop_reason is not DropReason.LOST:
            self.drop_spare()

    def is_quiet(self) -> bool:
        """Ask the kernel whether it stands and nothing came: neither an end nor bytes that no request asked for."""
        if self.state is not State.OPEN:
            return False
        # Bytes count as much as FIN: they would be taken for the answer to the next request
        # (test_bytes_that_nobody_asked_for_are_nobodys_answer). The kernel is asked, as the hub may not have run since
        # (test_a_stale_connection_is_noticed_before_use).
        if self._poll is None:
            if self.tls is not None:
                return not self.has_input()  # tickets may come at any time, and are nobody's answer
            self._poll = _new_poll()
            self.register_with(self._poll, _READABLE)
        return not self._poll.poll(0)


class Waiter:
    """A request that may have to wait for a slot."""

    __slots__ = ("connection", "event", "granted", "has_given_up")

    def __init__(self) -> None:
        self.event: Event | None = None  # made when it has to
        self.granted = False
        self.has_given_up = False
        self.connection: ClientConnection | None = None

    def give_up(self) -> None:
        """Give up the wait for a slot. Does not block."""
        self.has_given_up = True
        _wake(self)


class Patient(Protocol):
    """Who leases for a client; that may leave meanwhile, and the wait ends then."""

    #: The wait for a slot, as long as it lasts.
    waiter: Waiter | None


class Lease:
    """A slot, and the connection in it. ``end`` and ``give_up`` end it; only the first of them counts."""

    __slots__ = ("_origin", "_pool", "_preface", "connection", "is_reused")

    def __init__(
        self, pool: ConnectionPool, origin: Origin, kept: ClientConnection | None = None, preface: bytes = b""
    ) -> None:
        self._pool: ConnectionPool | None = pool
        self._origin = origin
        self._preface = preface
        #: What is leased; None while it is being made.
        self.connection: ClientConnection | None = kept
        #: Whether another request was made on it before.
        self.is_reused = kept is not None

    def end(self, reusable: bool) -> None:
        """Give the slot back, with the connection if it may be used again; else that is closed."""
        # Taken out first: whoever ends it again finds nothing, so a slot goes back once.
        pool, self._pool = self._pool, None
        if pool is None:
            return
        conn, self.connection = self.connection, None
        if conn is not None and conn._spare >= 0:
            conn.drop_spare()
        if conn is not None and not reusable:
            conn.close()
            conn = None
        pool.give_back(self._origin, conn)

    def is_quiet(self) -> bool:
        """Whether the connection stands, as far as can be known."""
        return self.connection is not None and self.connection.is_quiet()

    def is_spent(self) -> bool:
        """Whether the connection is too old for a further request, or has served as many as it may."""
        conn, pool = self.connection, self._pool
        return conn is not None and pool is not None and pool.state.is_spent(conn.made, conn.requests, monotonic())

    def give_up(self) -> None:
        """Reset the connection and give the slot back."""
        if self.connection is not None and self._pool is not None:
            self.connection.abort()
        self.end(False)

    def detach(self) -> ClientConnection:
        """Give the slot back and the connection out, which is the caller's from then on."""
        conn, self.connection = self.connection, None
        if conn is None:
            raise RuntimeError("the connection was given back before")
        conn.drop_spare()
        self.end(False)
        return conn

    def renew(self, deadlines: Deadlines) -> ClientConnection:
        """Put a fresh connection in the place of one that died."""
        if self._pool is None:
            raise RuntimeError("the slot was given back before")
        if self.connection is not None:
            self.connection.abort()
            self.connection.drop_spare()
            self.connection = None
        self.is_reused = False
        self.connection = self._pool.connect(self._origin, deadlines, self._preface)
        return self.connection


class ConnectionPool:
    """All connections of one client."""

    def __init__(
        self,
        state: PoolState[ClientConnection, Waiter],
        limits: Limits,
        make_room: Callable[[], bool] | None = None,
        is_full: Callable[[], bool] | None = None,
        tls: TLS | ssl.SSLContext | bool = True,
        server_hostname: str | None = None,
    ) -> None:
        """``make_room`` closes what is idle here or elsewhere when descriptors are short; False: there is nothing.

        ``is_full`` says before a connection is made whether they will be. ``tls`` is how it is spoken to an origin of
        https, and ``server_hostname`` the name that is asked for there, if it is not the origin's.
        """
        self._tls = tls
        self._server_hostname = server_hostname
        #: What each connection of https begins with, in front of TLS.
        self.preface = b""
        self.state = state
        self._make_room = make_room or self.drop_oldest
        self._is_full = is_full
        self.closed = False
        self._limits = limits
        self._hub: Any = None
        self._timer: Any = None
        _all_pools.add(self)

    def lease(
        self, origin: Origin, deadlines: Deadlines, patient: Patient | None = None, preface: bytes = b""
    ) -> Lease:
        """Lease a connection that stands, as far as can be known; wait for it or make it if need be.

        ``preface`` is what a new one begins with, in front of TLS.

        Raises:
            QueueFull, QueueTimeout: there is none free.
            ConnectFailed, ConnectTimeout: there is none to be had.
            ConnectionClosed: the client was closed, or ``patient`` gave up.
        """
        conn = self.take_kept(origin)
        if conn is not None:
            return Lease(self, origin, conn)
        return self._lease(origin, deadlines, patient, preface)

    def take_kept(self, origin: Origin) -> ClientConnection | None:
        """Take out a kept connection that stands, with its slot, which goes back by ``give_back``; None: ``lease``.

        Raises:
            ConnectionClosed: the client was closed.
        """
        self._check_usable()
        conn = self.state.take(origin)
        is_quiet = False
        try:
            if conn is None or (is_quiet := conn.is_quiet()):
                return conn
        finally:
            if conn is not None and not is_quiet:
                conn.close()
                self.give_back(origin, None)
        return None

    def _lease(self, origin: Origin, deadlines: Deadlines, patient: Patient | None, preface: bytes) -> Lease:
        """Lease a connection if none that is kept could be had at once."""
        waiter = Waiter()
        decision = self.state.ask(origin, waiter, monotonic())
        self._carry_out(decision)
        conn = decision.connection
        if decision.action is Action.REFUSE:
            most = self.state.max_waiting
            text = f"{most} requests wait for {origin} already: at most max_waiting allowed"
            raise QueueFull(text, None, "max_waiting", most)
        if decision.action is Action.WAIT:
            conn = self._wait(origin, waiter, deadlines, patient)
        lease = Lease(self, origin, None, preface)
        try:
            # The slot is kept while its connection is replaced: nobody else gets it in between
            # (test_a_stale_one_is_replaced_in_its_slot).
            while conn is not None and not conn.is_quiet():
                conn.close()
                conn = None
                decision = self.state.replace(origin, monotonic())
                self._carry_out(decision)
                conn = decision.connection
            if conn is not None:
                lease.is_reused = True
                lease.connection = conn
            else:
                lease.connection = self.connect(origin, deadlines, preface)
        except BaseException:
            # Nobody is there, the time was over, or this greenlet was killed: the slot goes back
            # (test_nobody_is_there).
            lease.give_up()
            raise
        return lease

    def connect(self, origin: Origin, deadlines: Deadlines, preface: bytes = b"") -> ClientConnection:
        """Make a connection; where descriptors are short, one that is idle gives up its own."""
        seconds = deadlines.timeouts.connect
        # Before they run out, if that can be foreseen, and again whenever the system says so: what is idle gives way to
        # what is asked for (test_what_is_idle_makes_room).
        if self._is_full is not None and self._is_full():
            self._make_room()
        while True:
            try:
                left = deadlines.within(seconds, ConnectTimeout)
                if origin.scheme == "https":
                    conn = connect(
                        origin.address,
                        timeout=left,
                        connection_class=ClientConnection,
                        tls=self._tls,
                        server_hostname=self._server_hostname or origin.name,
                        preface=preface or self.preface,
                    )
                else:
                    conn = connect(origin.address, timeout=left, connection_class=ClientConnection)
                break
            except PhaseTimeout:
                raise
            except OperationTimeout as error:
                raise deadlines.late(ConnectTimeout, seconds) from error
            except ConnectFailed as error:
                if getattr(error.__cause__, "errno", None) not in _NO_DESCRIPTOR or not self._make_room():
                    raise
        conn.parser = ResponseParser(self._limits)
        conn.made = monotonic()
        return conn

    def give_back(self, origin: Origin, conn: ClientConnection | None) -> None:
        """Take a slot back."""
        if conn is not None and self.closed:
            conn.close()
            conn = None
        now = monotonic()
        if conn is None or not self.state.put(origin, conn, now, conn.made, conn.requests):
            # A spent one is closed even if somebody waits: the slot is granted without it
            # (test_who_waits_gets_none_that_is_spent).
            if conn is not None and self.state.is_spent(conn.made, conn.requests, now):
                conn.close()
                conn = None
            self._carry_out(self.state.give_back(origin, conn, now))
        if self._timer is None and conn is not None:
            self._arm()

    def drop_oldest(self) -> bool:
        """Close what has been idle the longest; False: nothing is."""
        conn = self.state.drop_oldest()
        if conn is not None:
            conn.close()
        return conn is not None

    def drop_idle(self) -> None:
        """Close what is idle."""
        for conn in self.state.drop_idle():
            conn.close()
        self._disarm()

    def close(self) -> None:
        """Close idle connections and fail the requests that wait; leased ones are closed when they come back."""
        self.closed = True
        self.drop_idle()
        for waiter in self.state.drop_waiters():
            _wake(waiter)

    def forget(self) -> None:
        """Let go of a parent's connections in the child of a fork: the descriptors and the loop are the parent's."""
        self.state.reset()
        timer, self._timer = self._timer, None
        if timer is not None:
            _of_the_parent.append(timer)  # if it were collected it would be stopped, in the parent's loop

    def _check_usable(self) -> None:
        if self.closed:
            raise ConnectionClosed("the client is closed")
        # The state has no locks, and the timer and the events belong to one hub (test_another_thread_is_told_off).
        hub = get_hub()
        if self._hub is not hub:
            if self._hub is not None:
                raise RuntimeError("the client was first used in another thread: one a thread is needed")
            self._hub = hub

    def _wait(
        self, origin: Origin, waiter: Waiter, deadlines: Deadlines, patient: Patient | None
    ) -> ClientConnection | None:
        seconds = deadlines.timeouts.queue
        waiter.event = Event()
        if patient is not None:
            patient.waiter = waiter
        try:
            waiter.event.wait(deadlines.within(seconds, QueueTimeout))
            # Within the ``try``: who leaves gives back what was granted at the same moment.
            if waiter.has_given_up:
                raise ConnectionClosed("whoever waited for a connection has left")
        except BaseException:
            # Out of the queue already: a slot was granted that was never taken, and it goes on to the next
            # (test_thrown_into_the_queue). Not so if the queue was emptied by ``close``.
            if not self.state.leave(origin, waiter) and waiter.granted:
                self.give_back(origin, waiter.connection)
            raise
        finally:
            if patient is not None:
                patient.waiter = None
        if not waiter.granted:
            if self.closed:
                raise ConnectionClosed("the client was closed")
            self.state.leave(origin, waiter)
            raise deadlines.late(QueueTimeout, seconds)
        return waiter.connection

    def _carry_out(self, decision: Decision[ClientConnection, Waiter]) -> None:
        for conn in decision.close:
            conn.close()
        for grant in decision.wake:
            grant.waiter.granted = True
            grant.waiter.connection = grant.connection
            _wake(grant.waiter)

    # -- growing old

    def _arm(self) -> None:
        due = self.state.next_expiry()
        if due is None:
            return
        # Not the loop's own reference: a program with nothing else to wait for may end.
        self._timer = get_hub().loop.timer(max(0.0, due - monotonic()), ref=False)
        self._timer.start(self._on_timer, update=True)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _on_timer(self) -> None:
        self._disarm()
        for conn in self.state.expire(monotonic()):
            conn.close()
        self._arm()


def _wake(waiter: Waiter) -> None:
    if waiter.event is not None:
        waiter.event.set()


_of_the_parent: list[Any] = []


def _after_fork_in_child() -> None:
    for pool in list(_all_pools):
        pool.forget()
    # In the child they are copies, which would keep the parent's connections open
    # (test_second_descriptors_are_a_share_of_all).
    for conn in list(_with_spare):
        conn.drop_spare()


os.register_at_fork(after_in_child=_after_fork_in_child)
