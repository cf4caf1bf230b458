"""How many requests a server gets at once, from all workers of the proxy together.

Each worker counts in a row of its own, and adds up the rows of all (``shared_servers``); there is no lock. A slot is
taken by counting it first and looking at the sum then; if that is too much it is given back at once. So two workers
that ask in the same moment may both find no room, and look again a few milliseconds later; that both find some takes
two processors that see each other's memory late, by nanoseconds: the excess is at most one slot for each further
worker, and nobody has seen it.

- A request waits in the queue of its worker. A slot that comes free there goes to the one that has waited longest, at
  once; what comes free in other workers is found within ``LOOK_EVERY``.
- No worker keeps slots from another one: as long as requests wait in one that has fewer slots, a worker with more gives
  back what it would pass on. Its own wait a few milliseconds longer then; so all have about the same number soon.
- Rows of workers that show no life count, as their connections stand; but nobody gives way to them.
- Idle connections are beyond that number, but those that make it too many in all are not kept.
- A process may have two that count at the same place: a gateway that a new configuration has replaced still answers
  (``--single``). They are to each other as workers are.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

from greensock import Lease, Patient
from greensock.http.client.connection_pool import ClientConnection, ClientPool
from greensock.http.wire.limits import Limits
from greensock.proxy.upstream.shared_servers import ASKED, CONNECTIONS, SLOTS, WAITING, WorkersView

__all__ = ["CappedPool", "ServerCap"]

#: Seconds between two looks whether a slot has come free in another worker.
LOOK_EVERY = 0.005


class ServerCap:
    """The slots of one server, as one worker sees them."""

    __slots__ = ("_clock", "_place", "_view", "asked", "most", "slots", "waiting")

    def __init__(self, most: int, clock: Callable[[], float] = monotonic) -> None:
        #: How many there are.
        self.most = most
        #: What this worker has of them; how many requests wait for one here; both, and what clients have at rest.
        self.slots = self.waiting = self.asked = 0
        self._clock = clock
        self._view: WorkersView | None = None
        self._place = 0

    def attach(self, view: WorkersView, place: int) -> None:
        """Count for all workers from now on. A second call does nothing."""
        if self._view is not None:
            return
        self._view, self._place = view, place
        for column, count in ((ASKED, self.asked), (SLOTS, self.slots), (WAITING, self.waiting)):
            view.add(place, column, count)

    def detach(self) -> None:
        """Forget everything: after a fork what is counted is the parent's."""
        self._view = None
        self.slots = self.waiting = self.asked = 0

    @property
    def is_shared(self) -> bool:
        """Whether others have slots of the same server."""
        view = self._view
        return view is not None and (view.has_others or view.here(self._place, SLOTS) > self.slots)

    def take(self) -> bool:
        """Take a slot; False: there is none now, or another worker has the better claim."""
        view = self._view
        if view is None:
            if self.slots >= self.most:
                return False
            self.slots += 1
            return True
        self.slots += 1
        view.add(self._place, SLOTS, 1)
        total = view.of_all(self._place, SLOTS)
        # Of several that are free one may have one: only the last is for who has fewer.
        if total >= self.most and (total > self.most or self._has_needier(self.slots - 1)):
            self.slots -= 1
            view.add(self._place, SLOTS, -1)
            return False
        return True

    def give(self) -> None:
        """Give a slot back."""
        if self.slots:
            self.slots -= 1
            if self._view is not None:
                self._view.add(self._place, SLOTS, -1)

    def must_yield(self) -> bool:
        """Return whether a slot that comes free here is for another worker, though requests wait here."""
        return self._view is not None and self._has_needier(self.slots - 1)

    def _has_needier(self, slots: int) -> bool:
        """Return whether requests wait elsewhere for whom there are fewer than so many slots."""
        view, place = self._view, self._place
        assert view is not None
        if view.here(place, WAITING) > self.waiting and view.here(place, SLOTS) - self.slots < slots:
            return True  # in this process
        return view.has_needier(place, slots, self._clock())

    def wait(self, more: int) -> None:
        """Count requests that wait, or wait no longer."""
        self.waiting += more
        if self._view is not None:
            self._view.add(self._place, WAITING, more)

    def may_wait(self, most: int) -> bool:
        """Return whether one more may wait, of so many in all workers."""
        return (self.waiting if self._view is None else self._view.of_all(self._place, WAITING)) < most

    def ask(self, more: int) -> None:
        """Count requests in hand, or out."""
        self.asked += more
        if self._view is not None:
            self._view.add(self._place, ASKED, more)

    def is_full(self) -> bool:
        """Return whether a further request would have to wait."""
        return (self.asked if self._view is None else self._view.of_all(self._place, ASKED)) >= self.most

    def is_crowded(self, connections: int) -> bool:
        """Return whether there are more connections than slots, with so many of this worker's."""
        view = self._view
        return view is not None and connections + view.of_others(self._place, CONNECTIONS) > self.most


class CappedPool(ClientPool):
    """The connections to a server whose slots are shared with other processes."""

    def __init__(self, cap: ServerCap, limits: Limits, **options: Any) -> None:
        super().__init__(limits, quota=cap, **options)
        self._cap = cap
        self._looking: gevent.Greenlet[..., None] | None = None

    def lease_further(self, key: Any, terms: Any, patient: Patient | None) -> Lease[ClientConnection]:
        if self._looking is None and self._cap.is_shared:
            self._looking = gevent.spawn(self._look, key)
        return super().lease_further(key, terms, patient)

    def _look(self, key: Any) -> None:
        """Look again and again whether slots have come free in other workers, as long as somebody waits here."""
        try:
            while True:
                gevent.sleep(LOOK_EVERY)
                if not self._cap.waiting or self.closed:
                    return
                while self._cap.waiting and self._cap.take():
                    self.admit(key)
        finally:
            self._looking = None
