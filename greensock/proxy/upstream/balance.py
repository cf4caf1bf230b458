"""Which server of a group a request goes to. Pure: what is known of the servers is read, and nothing of it changed.

Of the servers these are looked at, in this order; the first that are there are chosen from:

1. those that are up and were not tried for this request;
2. backups that are up and were not tried;
3. those that are up, though they were tried;
4. if ``panic`` is on: the ejected ones, not yet tried if there are such. When no other is left, a server that failed a
   few requests is a better guess than a certain 503. What a check found to be down is never chosen.

Among these a server with a free slot goes before one that is full; if all are full, the best of them is chosen: it has
a queue. So a request queues rather than goes to a backup. During its slow start a server counts with a part of its
weight.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from math import inf, log
from typing import Protocol, TypeVar

__all__ = [
    "BALANCERS",
    "Balancer",
    "Candidate",
    "LeastConnections",
    "Rendezvous",
    "RoundRobin",
    "TwoChoices",
    "balancer_of",
]


class Candidate(Protocol):
    """A server, as a balancer sees it. All of it is as of now: the group brings it up to date before it asks."""

    @property
    def index(self) -> int:
        """Its place in the group, backups included: from 0, and of no other."""

    @property
    def name(self) -> str:
        """What it is called: the same after a restart and in other processes."""

    @property
    def weight(self) -> int:
        """Its part of the requests, beside those of the others: 1 or more."""

    @property
    def used(self) -> int:
        """Its requests in flight, and those that wait for it."""

    @property
    def is_up(self) -> bool:
        """Whether requests may go there: no check, no ejection speaks against it."""

    @property
    def is_ejected(self) -> bool:
        """Whether only failed requests speak against it, no check."""

    @property
    def is_full(self) -> bool:
        """Whether a further request would have to wait."""

    def share(self, now: float) -> float:
        """Return how much of its weight counts: more than 0, and 1 when its slow start is over."""


S = TypeVar("S", bound=Candidate)


class Balancer(ABC):
    """Chooses a server; one balancer for each group.

    ``random`` gives numbers from 0 to below 1. ``panic`` says whether ejected servers are chosen when no other is left.
    """

    def __init__(self, random: Callable[[], float], *, panic: bool = True) -> None:
        self._random = random
        self._panic = panic

    def choose(
        self,
        servers: Sequence[S],
        key: bytes | None,
        now: float,
        tried: Collection[S] = (),
        backups: Sequence[S] = (),
    ) -> S | None:
        """Return the server for a request; None if there is none for it.

        ``key`` is what requests are told apart by; only a balancer that hashes looks at it.
        """
        ready = [server for server in servers if server.is_up and not server.is_full]
        if tried or not ready:
            ready = self._ready(servers, tried, backups)
        if len(ready) > 1:
            return self._best(ready, key, now)
        return ready[0] if ready else None

    @abstractmethod
    def _best(self, ready: list[S], key: bytes | None, now: float) -> S:
        """Return the best of two servers or more."""

    def _ready(self, servers: Sequence[S], tried: Collection[S], backups: Sequence[S]) -> list[S]:
        """Return the servers to choose from, when some were tried, are down or full."""
        found = (
            [server for server in servers if server.is_up and server not in tried]
            or [server for server in backups if server.is_up and server not in tried]
            or [server for server in servers if server.is_up]
            or [server for server in backups if server.is_up]
        )
        if not found and self._panic:
            ejected = [server for servers in (servers, backups) for server in servers if server.is_ejected]
            found = [server for server in ejected if server not in tried] or ejected
        return [server for server in found if not server.is_full] or found


class RoundRobin(Balancer):
    """One after the other, by weight, and smoothly: with weights 5, 1, 1 it is a a b a c a a.

    The way of nginx: each server's credit grows by its weight, the highest is chosen and pays for all. The credits add
    up to 0.
    """

    def __init__(self, random: Callable[[], float], *, panic: bool = True) -> None:
        super().__init__(random, panic=panic)
        self._credits: list[float] = []

    def _best(self, ready: list[S], key: bytes | None, now: float) -> S:
        credits = self._credits
        total, highest, best = 0.0, 0.0, None
        for server in ready:
            weight = server.weight * server.share(now)
            try:
                credit = credits[server.index] = credits[server.index] + weight
            except IndexError:
                credits.extend([0.0] * (server.index + 1 - len(credits)))
                credit = credits[server.index] = weight
            total += weight
            if best is None or credit > highest:
                highest, best = credit, server
        assert best is not None
        credits[best.index] = highest - total
        return best


class LeastConnections(RoundRobin):
    """The one with the fewest requests for its weight; among equals in turn."""

    def _best(self, ready: list[S], key: bytes | None, now: float) -> S:
        least, equals = inf, ready
        for server in ready:
            load = server.used / (server.weight * server.share(now))
            if load < least:
                least, equals = load, [server]
            elif load == least:
                equals.append(server)
        return super()._best(equals, key, now) if len(equals) > 1 else equals[0]


class TwoChoices(Balancer):
    """Of two that are drawn by weight, the one with fewer requests for its weight.

    Nearly as good as the least loaded of all, and processes that know nothing of each other do not all choose the same
    server.
    """

    def _best(self, ready: list[S], key: bytes | None, now: float) -> S:
        weights = [server.weight * server.share(now) for server in ready]
        one = self._draw(weights)
        load = ready[one].used / weights[one]
        weights[one] = 0.0
        other = self._draw(weights)
        return ready[one if load <= ready[other].used / weights[other] else other]

    def _draw(self, weights: list[float]) -> int:
        """Return a place, each as likely as its weight; never one without weight."""
        left = self._random() * sum(weights)
        last = 0
        for place, weight in enumerate(weights):
            if weight > 0.0:
                if left < weight:
                    return place
                left -= weight
                last = place
        return last  # the rounding of the sum left something over


class Rendezvous(RoundRobin):
    """Requests with the same key to the same server, as long as it is up and has a free slot; without a key in turn.

    Highest random weight: each server draws a number for the key, and the highest gets it. So if one goes, only its
    own keys move, and to all the others by weight. The numbers are hashes of key and name, the same everywhere:
    -weight / ln(u) for u in 0 to 1, as in "Weighted Distributed Hash Tables" (Schindelhauer, Schomaker, 2005).
    """

    def _best(self, ready: list[S], key: bytes | None, now: float) -> S:
        if key is None:
            return super()._best(ready, key, now)
        highest, best = -1.0, ready[0]
        for server in ready:
            drawn = server.weight * server.share(now) / -log(_uniform(server.name, key))
            if drawn > highest:
                highest, best = drawn, server
        return best


@functools.lru_cache(maxsize=4096)
def _hash_of(name: str) -> blake2b:
    """Return the hash that has taken in the name; its length goes before it, so that no key can stand in for it."""
    raw = name.encode("utf-8", "surrogateescape")
    return blake2b(len(raw).to_bytes(4, "big") + raw, digest_size=8)


def _uniform(name: str, key: bytes) -> float:
    """Return a number between 0 and 1, never one of them."""
    hashed = _hash_of(name).copy()
    hashed.update(key)
    # 52 bits and a half: all of these numbers are floats.
    return ((int.from_bytes(hashed.digest(), "big") >> 12) + 0.5) * 2.0**-52


#: The names of the balancers.
BALANCERS: dict[str, type[Balancer]] = {
    "round_robin": RoundRobin,
    "least_connections": LeastConnections,
    "two_choices": TwoChoices,
    "hash": Rendezvous,
}


def balancer_of(name: str, random: Callable[[], float], *, panic: bool = True) -> Balancer:
    """Return a new balancer of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in BALANCERS:
        raise ValueError(f"balance={name!r}: one of {', '.join(BALANCERS)} expected")
    return BALANCERS[name](random, panic=panic)
