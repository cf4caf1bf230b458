"""The pool of parked greenlets in which a server's upcalls run.

A pool owns the ready queue of one server and the greenlets that drain it. The hub hands the queue to the greenlet that
parked last (its stack is the warmest); that greenlet gives one turn to each ready connection, one after the other, and
parks when none is left. If an upcall blocks, the greenlet switches to the hub, and the hub hands what is left of the
queue to the next one: leader and followers, with one switch a batch as long as nobody blocks.

Invariants:

- ``run`` is called in the hub only; workers are entered from the hub only.
- A worker never lets an exception out: it would land in the hub.
- At most ``limit`` workers exist. When all of them are blocked the queue waits; ``run`` is called again when one parks.
- Every turn begins with fresh context variables.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.hub import Hub
from greenlet import getcurrent, greenlet

from greensock.core.syscalls import switch_to

__all__ = ["Turn", "Workers", "forget_context"]

#: How many idle workers are kept. On CPython 3.11 and newer a new greenlet costs 18 us and a parked one 2 us to hand
#: work to, but each parked one holds 6.4 kB.
MAX_PARKED = 1024

log = logging.getLogger("greensock.server")

_GO = object()
_END = object()


class Turn:
    """Whose turn it is in one worker: ``conn``, None while it is nobody's. Noted by ``drain``, for a fork."""

    __slots__ = ("conn", "worker")

    def __init__(self, worker: greenlet) -> None:
        self.worker = worker
        self.conn: Any = None


class Workers:
    """A ready queue and the greenlets that drain it.

    ``drain(ready, turn)`` is called in a worker to work off the queue, as long as there is something in it; it must
    not raise, and has to give every item fresh context variables. ``limit`` bounds the greenlets, None for no bound.
    """

    __slots__ = ("_all", "_drain", "_ended", "_hub", "_limit", "_max_parked", "_parked", "ready")

    def __init__(self, hub: Hub, drain: Callable[[deque[Any], Turn], None], limit: int | None) -> None:
        self._hub = hub
        self._drain = drain
        self._limit = limit
        self._max_parked = MAX_PARKED
        self._ended: Callable[[], None] | None = None
        self._all: dict[greenlet, Turn] = {}
        self._parked: list[greenlet] = []
        #: What waits for a turn.
        self.ready: deque[Any] = deque()

    @property
    def count(self) -> int:
        """How many workers there are: parked, running or blocked."""
        return len(self._all)

    @property
    def busy(self) -> int:
        """How many workers are running or blocked in an upcall."""
        return len(self._all) - len(self._parked)

    @property
    def can_run(self) -> bool:
        """Whether a worker is to be had."""
        return bool(self._parked) or self._limit is None or len(self._all) < self._limit

    def run(self) -> None:
        """Drain the ready queue as far as workers can be had. Call it in the hub."""
        # Each switch comes back when that worker has nothing left to do, or is blocked in an upcall. So ``ready`` is
        # looked at again: whatever is left goes to the next worker (test_one_worker_serves_a_batch).
        ready, parked = self.ready, self._parked
        while ready:
            if parked:
                parked.pop().switch(_GO)
            elif self._limit is None or len(self._all) < self._limit:
                # Its parent is the hub: there it comes out when it ends, and so would an exception.
                worker = greenlet(self._work, self._hub)
                self._all[worker] = Turn(worker)
                worker.switch()
            # All are blocked. The queue waits until one of them is through with its upcall; waking them needs no
            # worker, since it happens in the hub (test_downcalls_wake_while_every_worker_is_blocked).
            else:
                return

    def dismiss(self, ended: Callable[[], None]) -> None:
        """Let the parked workers end now, and the others instead of parking; then call ``ended``. In the hub."""
        # First the bound, so that no worker parks behind the loop; those that are blocked end when their upcall has
        # (test_workers_are_reused_and_let_go).
        self._max_parked = 0
        while self._parked:
            self._parked.pop().switch(_END)
        self._ended = ended
        if not self._all:
            ended()

    def kill(self, error: BaseException, spare: greenlet) -> None:
        """Throw ``error`` into every worker that is blocked in an upcall, but for ``spare``. Call it in the hub."""
        # A new set, as a worker that is hit may end and leave ``_all``. Parked ones are left out: no upcall runs in
        # them. ``spare`` is the worker that ordered the kill (test_abort_from_inside_an_upcall_with_others_alive).
        for worker in self._all.keys() - self._parked:
            if worker is not spare:
                worker.throw(error)

    def __contains__(self, worker: object) -> bool:
        return worker in self._all

    def turn_of(self, worker: greenlet) -> Any:
        """Return whose turn it is in that worker; None if it is nobody's, or the worker is none of these."""
        turn = self._all.get(worker)
        return turn.conn if turn is not None else None

    def _work(self) -> None:
        me = getcurrent()
        ready, drain, turn = self.ready, self._drain, self._all[me]
        try:
            while True:
                # Drained until nothing is ready, and only then parked: no switch lies between the last look and the
                # parking, so nothing can come in between and be left lying.
                while ready:
                    drain(ready, turn)
                if len(self._parked) >= self._max_parked or self._park(me) is _END:
                    return
        finally:
            # However it ends, it no longer counts, or ``dismiss`` would wait for it for ever.
            del self._all[me]
            if self._ended is not None and not self._all:
                self._ended()

    def _park(self, me: greenlet) -> object:
        # The last in is the first out: its stack is the warmest. Not hub.switch(), which looks for an attribute of the
        # greenlet first: 0.15 us.
        self._parked.append(me)
        try:
            order: object = switch_to(self._hub)
        except BaseException as late:  # a kill or a timeout meant for an upcall that has ended
            log.warning("an exception came too late for its upcall: %r", late)
            order = None
        # ``run`` and ``dismiss`` take it off the list before they switch. Any other switch does not: a late kill, or
        # code that held on to this greenlet. It must not be found there while it runs
        # (test_an_exception_that_comes_too_late_for_its_upcall).
        if order is not _GO and order is not _END:
            self._parked.remove(me)
        return order


def forget_context(worker: greenlet) -> None:
    """Begin anew with context variables, in the running worker."""
    worker.gr_context = None
