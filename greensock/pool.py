"""Connections that are kept for the next one who wants one: ``ConnectionPool``.

``HTTPClient`` and the proxy stand on it, too, with connections and deadlines of their own. Who wants a connection holds
a :class:`Lease` while it holds a slot of the pool; a lease ends once, whatever happens (``GreenletExit`` or a
``Timeout`` at any point), and with it the slot goes back. Which connection one gets, who waits and what is closed is
decided in ``pool_state``; here it is done. Idle connections are closed by a timer of the hub's, so that they cost no
greenlet; it runs only while there are some. All of it belongs to one hub: a pool is used in the thread it was first
used in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from gevent import get_hub
from gevent.event import Event
from gevent.monkey import get_original

from greensock.core.connection import Connection
from greensock.core.connector import connect
from greensock.core.lifecycle import State
from greensock.errors import ConnectFailed, ConnectionClosed, LimitExceeded, OperationTimeout
from greensock.pool_quota import Quota, QuotaState
from greensock.pool_state import Action, Decision, PoolState, PoolStatistics
from greensock.server_options import Rule
from greensock.tls import TLS, is_tls

if TYPE_CHECKING:
    import ssl

__all__ = ["ConnectionPool", "Lease", "Patient", "PooledConnection", "Waiter"]

_new_poll = get_original("select", "poll")
#: The process, or the system, may open no more.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_READABLE: int = select.POLLIN | select.POLLRDHUP

_all_pools: weakref.WeakSet[ConnectionPool[Any]] = weakref.WeakSet()


class PooledConnection(Connection):
    """A connection of a pool. Derive from it for a class of your own."""

    __slots__ = ("_poll", "holds_more", "made", "requests")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: How many requests, or other uses, it served.
        self.requests = 0
        #: When it was made, in seconds of ``monotonic``.
        self.made = 0.0
        #: Whether it holds what ``let_go`` is to give back when a lease of it ends.
        self.holds_more = False
        self._poll: Any = None

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

    def let_go(self) -> None:
        """Give back what it holds beside its descriptor. Does not block."""


PooledT = TypeVar("PooledT", bound=PooledConnection)


class Waiter:
    """Somebody who may have to wait for a slot."""

    __slots__ = ("connection", "event", "granted", "has_given_up")

    def __init__(self) -> None:
        self.event: Event | None = None  # made when it has to
        self.granted = False
        self.has_given_up = False
        self.connection: Any = None

    def give_up(self) -> None:
        """Give up the wait for a slot. Does not block."""
        self.has_given_up = True
        _wake(self)


class Patient(Protocol):
    """Who leases for a client; that may leave meanwhile, and the wait ends then."""

    #: The wait for a slot, as long as it lasts.
    waiter: Waiter | None


class Lease(Generic[PooledT]):
    """A slot, and the connection in it. ``end`` and ``give_up`` end it; only the first of them counts.

    Used with ``with`` it gives the connection, which goes back at the end of the block; if that is left by an
    exception it is reset, as nobody knows what is still to come on it.
    """

    __slots__ = ("connection", "is_reused", "key", "pool")

    def __init__(self, pool: ConnectionPool[PooledT], key: Any, kept: PooledT | None = None) -> None:
        #: The pool; None once the slot was given back.
        self.pool: ConnectionPool[PooledT] | None = pool
        #: Where the connection leads.
        self.key = key
        #: What is leased; None while it is being made.
        self.connection: PooledT | None = kept
        #: Whether another request was made on it before.
        self.is_reused = kept is not None

    def end(self, reusable: bool) -> None:
        """Give the slot back, with the connection if it may be used again; else that is closed.

        It may not be if anything of the last use is still to come on it, or was read and not taken.
        """
        # Taken out first: whoever ends it again finds nothing, so a slot goes back once.
        pool, self.pool = self.pool, None
        if pool is None:
            return
        conn, self.connection = self.connection, None
        if conn is not None and conn.holds_more:
            conn.let_go()
        if conn is not None and not reusable:
            conn.close()
            conn = None
        pool.give_back(self.key, conn)

    def is_quiet(self) -> bool:
        """Whether the connection stands, as far as can be known."""
        return self.connection is not None and self.connection.is_quiet()

    def is_spent(self) -> bool:
        """Whether the connection is too old for a further request, or has served as many as it may."""
        conn, pool = self.connection, self.pool
        return conn is not None and pool is not None and pool.state.is_spent(conn.made, conn.requests, monotonic())

    def give_up(self) -> None:
        """Reset the connection and give the slot back."""
        if self.connection is not None and self.pool is not None:
            self.connection.abort()
        self.end(False)

    def detach(self) -> PooledT:
        """Give the slot back and the connection out, which is the caller's from then on."""
        conn, self.connection = self.connection, None
        if conn is None:
            raise RuntimeError("the connection was given back before")
        conn.let_go()
        self.end(False)
        return conn

    def renew(self, terms: Any) -> PooledT:
        """Put a fresh connection in the place of one that died. ``terms`` are those of the pool's ``dial``."""
        if self.pool is None:
            raise RuntimeError("the slot was given back before")
        if self.connection is not None:
            self.connection.abort()
            self.connection.let_go()
            self.connection = None
        self.is_reused = False
        self.connection = self.pool.make(self.key, terms)
        return self.connection

    def __enter__(self) -> PooledT:
        if self.connection is None:
            raise RuntimeError("the connection was given back before")
        return self.connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        conn = self.connection
        if error is None:
            # What came behind the last thing that was read is nobody's, though the kernel has it no more
            # (test_what_was_read_too_far_is_lent_to_nobody).
            self.end(conn is not None and conn.state is State.OPEN and not conn.held_bytes())
        else:
            self.give_up()


@dataclass(frozen=True, slots=True)
class _Terms:
    """How long one who leases is ready to wait."""

    #: Seconds in all.
    timeout: float | None
    #: When that is over.
    due: float

    def left(self) -> float | None:
        return None if self.due == inf else max(0.0, self.due - monotonic())


_Size = Rule.whole(1)
_RULES = {
    "max_connections": _Size,
    "max_idle": Rule.whole(0),
    "max_idle_total": Rule.whole(0),
    "max_waiting": Rule.whole(0),
    "idle_timeout": Rule.seconds(zero=False).or_none(),
    "max_age": Rule.seconds(zero=False).or_none(),
    "max_requests": _Size.or_none(),
    "tls": Rule(lambda value: value is True or is_tls(value), "True, TLS(), or an ssl.SSLContext").or_none(),
}


class ConnectionPool(Generic[PooledT]):
    """Connections to one place or several, bounded for each, and kept for the next one who wants one.

    ::

        pool = ConnectionPool(max_connections=8)
        with pool.lease(("cache.internal", 11211), timeout=1.0) as conn:
            conn.send(b"get x\\r\\n")
            answer = conn.read_line()

    An address, as ``greensock.connect`` takes it, stands for itself: ``"a:1"`` and ``("a", 1)`` are two. At most
    ``max_connections`` to it are leased and idle together; who comes then waits, first come first served, at most
    ``max_waiting`` of them. A connection that was kept is looked at before it is lent again: one that has ended, or on
    which something came that nobody asked for, is closed, and another takes its place. It is closed, too, when it has
    been idle for ``idle_timeout`` seconds, is ``max_age`` seconds old (so that what a name stands for by now is found),
    or was lent ``max_requests`` times; None: never. At most ``max_idle`` to one address are kept, the warmest first,
    and ``max_idle_total`` in all. ``tls`` and ``server_hostname`` are as in ``connect``.

    ``close()`` it, or use it with ``with``.

    Raises:
        ValueError: an option is not allowed; the text says which, its value, and what is allowed.
    """

    #: The class of the leases.
    lease_class: ClassVar[type[Lease[Any]]] = Lease

    def __init__(
        self,
        *,
        max_connections: int = 64,
        max_idle: int = 64,
        max_idle_total: int = 256,
        max_waiting: int = 1024,
        idle_timeout: float | None = 30.0,
        max_age: float | None = 3600.0,
        max_requests: int | None = None,
        connection_class: type[PooledT] = PooledConnection,  # type: ignore[assignment]  # as in ``connect``
        tls: TLS | ssl.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        make_room: Callable[[], bool] | None = None,
        is_full: Callable[[], bool] | None = None,
        quota: Quota | None = None,
    ) -> None:
        """``make_room`` closes what is idle here or elsewhere when descriptors are short; False: there is nothing.

        ``is_full`` says before a connection is made whether they will be. ``quota`` are slots shared with others.
        """
        sizes: dict[str, Any] = {
            "max_connections": max_connections,
            "max_idle": max_idle,
            "max_idle_total": max_idle_total,
            "max_waiting": max_waiting,
            "idle_timeout": idle_timeout,
            "max_age": max_age,
            "max_requests": max_requests,
        }
        for name, value in {**sizes, "tls": tls}.items():
            _RULES[name].check(name, value)
        if not (isinstance(connection_class, type) and issubclass(connection_class, PooledConnection)):
            raise ValueError(f"connection_class={connection_class!r}: a class derived from PooledConnection expected")
        self.connection_class = connection_class
        self.tls = tls
        self.server_hostname = server_hostname
        #: What is kept, and who waits.
        self.state: PoolState[PooledT, Waiter] = PoolState(**sizes) if quota is None else QuotaState(quota, **sizes)
        self._make_room = make_room or self.drop_oldest
        self._is_full = is_full
        #: Whether it was closed.
        self.closed = False
        self._hub: Any = None
        self._timer: Any = None
        _all_pools.add(self)

    # -- for a program

    def lease(self, address: Any, timeout: float | None = None) -> Lease[PooledT]:
        """Lease a connection to ``address`` that stands, as far as can be known; wait for it or make it if need be.

        ``timeout`` is in seconds for all of it: the wait for a slot, and to connect. None: none.

        Raises:
            LimitExceeded: ``max_waiting`` wait already.
            OperationTimeout: none became free in time (``operation`` is ``"lease"``), or answered (``"connect"``).
            ConnectFailed: none is to be had.
            ConnectionClosed: the pool was closed.
            RuntimeError: it was first used in another thread.
        """
        lease = self.lease_on(address, _Terms(timeout, inf if timeout is None else monotonic() + timeout))
        assert lease.connection is not None
        lease.connection.requests += 1
        return lease

    def statistics(self, address: Any = None) -> PoolStatistics:
        """Return a snapshot, of one address or of all: how many are leased, are idle, and wait."""
        return self.state.statistics(address)

    def __enter__(self) -> ConnectionPool[PooledT]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    # -- what a pool of another kind has in other ways

    def dial(self, key: Any, terms: Any) -> PooledT:
        """Make a connection, on the terms of one who leases."""
        return connect(
            key,
            timeout=terms.left(),
            connection_class=self.connection_class,
            tls=self.tls,
            server_hostname=self.server_hostname,
        )

    def patience(self, terms: Any) -> float | None:
        """Return how many seconds one may wait for a slot; None: any."""
        left: float | None = terms.left()
        return left

    def too_late(self, key: Any, terms: Any) -> Exception:
        """Return the error for who has waited so long."""
        text = f"no connection to {key} became free within {terms.timeout} s"
        return OperationTimeout(text, None, "lease", terms.timeout)

    def too_many(self, key: Any, most: int) -> Exception:
        """Return the error for who finds that so many wait already."""
        text = f"{most} wait for a connection to {key} already: at most max_waiting allowed"
        return LimitExceeded(text, None, "max_waiting", most)

    # -- slots

    def lease_on(self, key: Any, terms: Any, patient: Patient | None = None) -> Lease[PooledT]:
        """Lease a connection on terms of the pool's own."""
        conn = self.take_kept(key)
        if conn is not None:
            return self.lease_class(self, key, conn)
        return self.lease_further(key, terms, patient)

    def take_kept(self, key: Any) -> PooledT | None:
        """Take out a kept connection that stands, with its slot, which goes back by ``give_back``; None: ``lease``.

        Raises:
            ConnectionClosed: the pool was closed.
        """
        self._check_usable()
        conn = self.state.take(key)
        is_quiet = False
        try:
            if conn is None or (is_quiet := conn.is_quiet()):
                return conn
        finally:
            if conn is not None and not is_quiet:
                conn.close()
                self.give_back(key, None)
        return None

    def lease_further(self, key: Any, terms: Any, patient: Patient | None) -> Lease[PooledT]:
        """Lease a connection if none that is kept could be had at once."""
        waiter = Waiter()
        decision = self.state.ask(key, waiter, monotonic())
        self._carry_out(decision)
        conn = decision.connection
        if decision.action is Action.REFUSE:
            raise self.too_many(key, self.state.max_waiting)
        if decision.action is Action.WAIT:
            conn = self._wait(key, waiter, terms, patient)
        lease: Lease[PooledT] = self.lease_class(self, key)
        try:
            # The slot is kept while its connection is replaced: nobody else gets it in between
            # (test_a_stale_one_is_replaced_in_its_slot).
            while conn is not None and not conn.is_quiet():
                conn.close()
                conn = None
                decision = self.state.replace(key, monotonic())
                self._carry_out(decision)
                conn = decision.connection
            if conn is not None:
                lease.is_reused = True
                lease.connection = conn
            else:
                lease.connection = self.make(key, terms)
        except BaseException:
            # Nobody is there, the time was over, or this greenlet was killed: the slot goes back
            # (test_nobody_is_there).
            lease.give_up()
            raise
        return lease

    def make(self, key: Any, terms: Any) -> PooledT:
        """Make a connection; where descriptors are short, one that is idle gives up its own."""
        # Before they run out, if that can be foreseen, and again whenever the system says so: what is idle gives way to
        # what is asked for (test_what_is_idle_makes_room).
        if self._is_full is not None and self._is_full():
            self._make_room()
        while True:
            try:
                conn = self.dial(key, terms)
                break
            except ConnectFailed as error:
                if getattr(error.__cause__, "errno", None) not in _NO_DESCRIPTOR or not self._make_room():
                    raise
        conn.made = monotonic()
        return conn

    def give_back(self, key: Any, conn: PooledT | None) -> None:
        """Take a slot back."""
        if conn is not None and self.closed:
            conn.close()
            conn = None
        now = monotonic()
        if conn is None or not self.state.put(key, conn, now, conn.made, conn.requests):
            # A spent one is closed even if somebody waits: the slot is granted without it
            # (test_who_waits_gets_none_that_is_spent).
            if conn is not None and self.state.is_spent(conn.made, conn.requests, now):
                conn.close()
                conn = None
            self._carry_out(self.state.give_back(key, conn, now))
        if self._timer is None and conn is not None:
            self._arm()

    def admit(self, key: Any) -> None:
        """Give a slot to whoever has waited longest for one, where a further limit had him wait."""
        self._carry_out(self.state.admit(key))

    def retire(self) -> None:
        """Close idle connections, and from now on each that is given back. Who waits, or comes, still gets one."""
        for conn in self.state.retire():
            conn.close()
        self._disarm()

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
        """Close idle connections and fail those who wait; leased ones are closed when they come back."""
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
            raise ConnectionClosed(f"{self.what} is closed")
        # The state has no locks, and the timer and the events belong to one hub (test_another_thread_is_told_off).
        hub = get_hub()
        if self._hub is not hub:
            if self._hub is not None:
                raise RuntimeError(f"{self.what} was first used in another thread: one a thread is needed")
            self._hub = hub

    #: What errors call it.
    what: ClassVar[str] = "the pool"

    def _wait(self, key: Any, waiter: Waiter, terms: Any, patient: Patient | None) -> PooledT | None:
        waiter.event = Event()
        if patient is not None:
            patient.waiter = waiter
        try:
            waiter.event.wait(self.patience(terms))
            # Within the ``try``: who leaves gives back what was granted at the same moment.
            if waiter.has_given_up:
                raise ConnectionClosed("whoever waited for a connection has left")
        except BaseException:
            # Out of the queue already: a slot was granted that was never taken, and it goes on to the next
            # (test_thrown_into_the_queue). Not so if the queue was emptied by ``close``.
            if not self.state.leave(key, waiter) and waiter.granted:
                self.give_back(key, waiter.connection)
            raise
        finally:
            if patient is not None:
                patient.waiter = None
        if not waiter.granted:
            if self.closed:
                raise ConnectionClosed(f"{self.what} was closed")
            self.state.leave(key, waiter)
            raise self.too_late(key, terms)
        granted: PooledT | None = waiter.connection
        return granted

    def _carry_out(self, decision: Decision[PooledT, Waiter]) -> None:
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
        with contextlib.suppress(Exception):
            pool.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
