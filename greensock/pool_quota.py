"""The state of a pool whose slots are shared with other processes, say. It decides; others connect, wait and wake.

A request takes a slot of the :class:`Quota` and one of the pool, and gives both back. It may have to wait though the
pool has room, and somebody has to ``admit`` it when the quota has a slot again: that is not the pool's to know.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf
from typing import Any, Protocol, TypeVar

from greensock.pool_state import Action, Decision, PoolState

__all__ = ["Quota", "QuotaState"]

C = TypeVar("C", bound=Hashable)
W = TypeVar("W", bound=Hashable)


class Quota(Protocol):
    """Slots that a pool shares with others."""

    @property
    def waiting(self) -> int:
        """How many requests of this pool wait."""

    def take(self) -> bool:
        """Take a slot; False: there is none now."""

    def give(self) -> None:
        """Give a slot back."""

    def must_yield(self) -> bool:
        """Return whether a slot that comes free here is for others, though requests wait here."""

    def wait(self, more: int) -> None:
        """Count requests that wait, or wait no longer."""

    def may_wait(self, most: int) -> bool:
        """Return whether one more may wait, if so many may in all."""

    def is_crowded(self, connections: int) -> bool:
        """Return whether there are too many connections in all, with so many of this pool."""

    def detach(self) -> None:
        """Forget everything."""


class QuotaState(PoolState[C, W]):
    """The state of a pool of one origin."""

    def __init__(self, quota: Quota, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._quota = quota

    def take(self, origin: Hashable) -> C | None:
        if self._quota.waiting or not self._quota.take():
            return None
        found = super().take(origin)
        if found is None:
            self._quota.give()
        return found

    def put(self, origin: Hashable, connection: C, now: float, made: float = inf, requests: int = 0) -> bool:
        if self._quota.is_crowded(self.slots) or not super().put(origin, connection, now, made, requests):
            return False
        self._quota.give()
        return True

    def is_spent(self, made: float, requests: int, now: float) -> bool:
        return self._quota.is_crowded(self.slots) or super().is_spent(made, requests, now)

    def ask(self, origin: Hashable, waiter: W, now: float) -> Decision[C, W]:
        if not self._quota.waiting and self._quota.take():
            return super().ask(origin, waiter, now)  # there is room here if there is room in all
        if not self._quota.may_wait(self.max_waiting):
            return Decision(Action.REFUSE)
        self._quota.wait(1)
        return self.enqueue(origin, waiter)

    def admit(self, origin: Hashable) -> Decision[C, W]:
        """Give the slot that was just taken from the quota to the one that has waited longest."""
        decision = super().admit(origin)
        if decision.wake:
            self._quota.wait(-1)
        else:
            self._quota.give()
        return decision

    def give_back(self, origin: Hashable, connection: C | None, now: float, passes_on: bool = True) -> Decision[C, W]:
        passes_on = passes_on and not (self._quota.waiting and self._quota.must_yield())
        decision = super().give_back(origin, connection, now, passes_on)
        if decision.wake:
            self._quota.wait(-1)
        else:
            self._quota.give()
        return decision

    def leave(self, origin: Hashable, waiter: W) -> bool:
        has_waited = super().leave(origin, waiter)
        if has_waited:
            self._quota.wait(-1)
        return has_waited

    def drop_waiters(self) -> list[W]:
        dropped = super().drop_waiters()
        self._quota.wait(-len(dropped))
        return dropped

    def reset(self) -> None:
        super().reset()
        self._quota.detach()
