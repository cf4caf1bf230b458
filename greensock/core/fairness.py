"""Lets others run in the middle of what may never have to wait by itself: pipelined requests, long bodies."""

from __future__ import annotations

from time import monotonic

from greensock.core.poller import get_poller

__all__ = ["let_others_run"]

#: Seconds of its own work that each does, however late it is: a pause costs a hundredth of that.
LEAST_SECONDS = 0.0002


def let_others_run(since: float) -> float:
    """Pause if it is the turn of others; return since when the caller goes on, for the next call.

    For loops that may run for long without a wait: ``since = let_others_run(since)`` in each round, beginning with 0.0.
    Cheap while it is too early. A greenlet that pauses goes on after a pass of the loop, in turn with all others that
    did.
    """
    now = monotonic()
    # Before the poller is looked up: most calls end here.
    if not since or now - since < LEAST_SECONDS:
        return since or now
    poller = get_poller()
    if now <= poller.until:
        return since
    poller.pause()
    return monotonic()
