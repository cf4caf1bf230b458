"""Which connection a request gets, and which are closed. It decides; others connect, close, wait and wake.

Nothing here does I/O or knows the time: a method is told it (``now``, in seconds of one clock that never goes back) and
returns what is to be done. A *slot* is the right to have one connection to an origin. A request holds one from ``ask``
(or from being woken) until ``give_back``; an idle connection holds one, too. Invariants, for each origin:

- Slots held by requests and by idle connections are at most ``max_connections``, idle ones at most ``max_idle``, and
  those of all origins together at most ``max_idle_total``.
- A request waits only while every slot is held by another request. So no request overtakes another: a slot that is
  given back goes to the one that has waited longest.
- Idle connections are taken last in first out: the warmest first, so that what is not needed grows old. The oldest
  goes first.
- A connection is *spent* when it is ``max_age`` old or served ``max_requests``: it is given back as gone. So
  connections to an old address of a name end even under steady load, and what a server leaks for each connection is
  bounded.
- An origin with no slot in use is forgotten.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Generic, TypeVar

__all__ = ["Action", "Decision", "Grant", "PoolState", "PoolStatistics"]

C = TypeVar("C", bound=Hashable)
W = TypeVar("W", bound=Hashable)


class Action(enum.Enum):
    """What a request is to do that asked for a connection."""

    #: Use the connection of the decision, after a look whether it still stands.
    REUSE = "reuse"
    #: Make one: a slot is held for it.
    CONNECT = "connect"
    #: Wait until woken with a grant.
    WAIT = "wait"
    #: Fail: too many wait already. Nothing is held.
    REFUSE = "refuse"


@dataclasses.dataclass(frozen=True, slots=True)
class Grant(Generic[C, W]):
    """Who is to be woken, and the connection it gets; None: it is to make one. Either way it holds a slot."""

    #: What was given to ``ask``.
    waiter: W
    #: The connection, fresh from the request before.
    connection: C | None


@dataclasses.dataclass(slots=True)
class Decision(Generic[C, W]):
    """What is to be done, in no particular order."""

    #: What the request is to do.
    action: Action = Action.CONNECT
    #: What it is to use.
    connection: C | None = None
    #: Connections to close: they are the pool's no more.
    close: list[C] = dataclasses.field(default_factory=list)
    #: Who is to be woken.
    wake: list[Grant[C, W]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot, of one origin or of all."""

    #: Slots held by requests.
    used: int
    #: Connections that wait for a request.
    idle: int
    #: Requests that wait for a connection.
    waiting: int


class _Site(Generic[C, W]):
    """What is known of one origin."""

    __slots__ = ("idle", "used", "waiters")

    def __init__(self) -> None:
        self.used = 0
        self.idle: list[C] = []  # the oldest first
        self.waiters: deque[W] = deque()


class PoolState(Generic[C, W]):
    """The connections to all origins. ``C`` are connections, ``W`` waiters: hashable, and never looked into.

    ``idle_timeout`` and ``max_age`` are in seconds; None: idle connections never grow old, none ever does. With
    ``max_requests`` None a connection serves any number.
    """

    def __init__(
        self,
        *,
        max_connections: int = 64,
        max_idle: int = 64,
        max_idle_total: int = 256,
        max_waiting: int = 1024,
        idle_timeout: float | None = 30.0,
        max_age: float | None = None,
        max_requests: int | None = None,
    ) -> None:
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._max_idle_total = max_idle_total
        #: How many may wait for a connection to one origin.
        self.max_waiting = max_waiting
        # ``max_age`` bounds the idle time too: so the age stays below twice ``max_age``, without a look at each.
        self._idle_timeout = min(inf if idle_timeout is None else idle_timeout, inf if max_age is None else max_age)
        self._max_age = inf if max_age is None else max_age
        self._max_requests = inf if max_requests is None else max_requests
        self._sites: dict[Hashable, _Site[C, W]] = {}
        self._ages: dict[C, tuple[Hashable, float]] = {}  # of every idle connection: the oldest first

    def take(self, origin: Hashable) -> C | None:
        """Take an idle connection with its slot if there is one: ``ask`` for the common case, in a third of the time.

        It may have grown too old since ``expire`` was last called.
        """
        site = self._sites.get(origin)
        if site is None or not site.idle:
            return None
        site.used += 1
        connection = site.idle.pop()
        del self._ages[connection]
        return connection

    def put(self, origin: Hashable, connection: C, now: float, made: float = inf, requests: int = 0) -> bool:
        """Give back a slot with its connection if nothing else follows from that; if False, ``give_back`` it.

        ``made`` and ``requests`` are what ``is_spent`` goes by.
        """
        if requests >= self._max_requests or now - made >= self._max_age:
            return False
        site = self._sites.get(origin)
        if (
            site is None
            or not site.used
            or site.waiters
            or len(site.idle) >= self._max_idle
            or len(self._ages) >= self._max_idle_total
        ):
            return False
        site.used -= 1
        site.idle.append(connection)
        self._ages[connection] = (origin, now)
        return True

    def is_spent(self, made: float, requests: int, now: float) -> bool:
        """Return whether a connection that was made then, and served so many, is to be closed and not given back."""
        return requests >= self._max_requests or now - made >= self._max_age

    def ask(self, origin: Hashable, waiter: W, now: float) -> Decision[C, W]:
        """Ask for a connection to ``origin``; ``waiter`` is whom to wake if there is none."""
        decision: Decision[C, W] = Decision(close=self.expire(now) if self._ages else [])
        site = self._sites.get(origin)
        if site is None:
            site = self._sites[origin] = _Site()
        if site.idle:
            site.used += 1
            decision.action, decision.connection = Action.REUSE, self._take_idle(site, -1)
        elif site.used < self._max_connections:
            site.used += 1
        elif len(site.waiters) < self.max_waiting:
            site.waiters.append(waiter)
            decision.action = Action.WAIT
        else:
            decision.action = Action.REFUSE
        return decision

    def replace(self, origin: Hashable, now: float) -> Decision[C, W]:
        """Decide for a request whose connection turned out to be stale: another idle one, or a new one.

        It keeps its slot. The stale one is the caller's to close.
        """
        decision: Decision[C, W] = Decision(close=self.expire(now) if self._ages else [])
        site = self._sites[origin]
        if site.idle:
            decision.action, decision.connection = Action.REUSE, self._take_idle(site, -1)
        return decision

    def enqueue(self, origin: Hashable, waiter: W) -> Decision[C, W]:
        """Have a request wait though there may be slots: a further limit, of the caller's, says so. See ``admit``."""
        decision: Decision[C, W] = Decision(Action.REFUSE)
        site = self._sites.get(origin)
        if site is None:
            site = self._sites[origin] = _Site()
        if len(site.waiters) < self.max_waiting:
            site.waiters.append(waiter)
            decision.action = Action.WAIT
        return decision

    def admit(self, origin: Hashable) -> Decision[C, W]:
        """Give a slot to the one that has waited longest, if anybody waits: see ``enqueue``."""
        decision: Decision[C, W] = Decision()
        site = self._sites.get(origin)
        if site is not None and site.waiters:
            site.used += 1
            connection = self._take_idle(site, -1) if site.idle else None
            decision.wake.append(Grant(site.waiters.popleft(), connection))
        return decision

    def give_back(self, origin: Hashable, connection: C | None, now: float, passes_on: bool = True) -> Decision[C, W]:
        """Give back a slot: with the connection if it may be used again, with None if it is gone.

        Without ``passes_on`` nobody who waits gets it.
        """
        site = self._sites.get(origin)
        decision: Decision[C, W] = Decision()
        if site is None or not site.used:  # asked for before ``reset``
            decision.close = [connection] if connection is not None else []
            return decision
        if site.waiters and passes_on:
            decision.wake.append(Grant(site.waiters.popleft(), connection))
            return decision
        site.used -= 1
        if connection is not None:
            site.idle.append(connection)
            self._ages[connection] = (origin, now)
            if len(site.idle) > self._max_idle:
                decision.close.append(self._take_idle(site, 0))
            elif len(self._ages) > self._max_idle_total:
                decision.close.append(self._take_oldest())
        self._forget(origin, site)
        return decision

    def leave(self, origin: Hashable, waiter: W) -> bool:
        """Wait no longer; False if the waiter was granted a slot before, which it must give back."""
        site = self._sites.get(origin)
        if site is None or waiter not in site.waiters:
            return False
        site.waiters.remove(waiter)
        return True

    def expire(self, now: float) -> list[C]:
        """Return the idle connections that are too old: they are to be closed."""
        expired: list[C] = []
        while (due := self.next_expiry()) is not None and due <= now:
            expired.append(self._take_oldest())
        return expired

    def next_expiry(self) -> float | None:
        """Return when ``expire`` has something to do next; None: not as things are."""
        if self._idle_timeout == inf or not self._ages:
            return None
        _, since = next(iter(self._ages.values()))
        return since + self._idle_timeout

    def drop_oldest(self) -> C | None:
        """Return the connection that has been idle the longest: it is to be closed; None if there is none."""
        return self._take_oldest() if self._ages else None

    def idle_since(self) -> float | None:
        """Return since when the one that ``drop_oldest`` returns is idle; None: there is none."""
        return next(iter(self._ages.values()))[1] if self._ages else None

    def drop_idle(self) -> list[C]:
        """Return all idle connections: they are to be closed."""
        dropped: list[C] = []
        while self._ages:
            dropped.append(self._take_oldest())
        return dropped

    def retire(self) -> list[C]:
        """Keep no connection from now on; return those that are idle: they are to be closed."""
        self._max_idle = 0
        return self.drop_idle()

    def drop_waiters(self) -> list[W]:
        """Return all who wait, the longest first: they are to be told that there will be nothing."""
        dropped = [waiter for site in self._sites.values() for waiter in site.waiters]
        for site in self._sites.values():
            site.waiters.clear()
        return dropped

    def reset(self) -> None:
        """Forget everything: after a fork the connections are the parent's."""
        self._sites.clear()
        self._ages.clear()

    def statistics(self, origin: Hashable | None = None) -> PoolStatistics:
        """Return a snapshot of one origin; without, of all."""
        sites = [self._sites.get(origin, _Site())] if origin is not None else list(self._sites.values())
        return PoolStatistics(
            used=sum(site.used for site in sites),
            idle=sum(len(site.idle) for site in sites),
            waiting=sum(len(site.waiters) for site in sites),
        )

    @property
    def slots(self) -> int:
        """How many slots are held, by requests and by idle connections."""
        return len(self._ages) + sum(site.used for site in self._sites.values())

    @property
    def origins(self) -> int:
        """Of how many origins something is kept."""
        return len(self._sites)

    def _take_idle(self, site: _Site[C, W], place: int) -> C:
        connection = site.idle.pop(place)
        del self._ages[connection]
        return connection

    def _take_oldest(self) -> C:
        connection, (origin, _) = next(iter(self._ages.items()))
        site = self._sites[origin]
        self._take_idle(site, 0)  # the oldest of all is the oldest of its origin
        self._forget(origin, site)
        return connection

    def _forget(self, origin: Hashable, site: _Site[C, W]) -> None:
        if not (site.used or site.idle or site.waiters):
            self._sites.pop(origin, None)
