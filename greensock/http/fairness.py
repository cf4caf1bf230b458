"""Lets others run in the middle of what may never have to wait by itself: pipelined requests, long answers."""

from __future__ import annotations

from time import monotonic

import gevent

__all__ = ["TURN_SECONDS", "let_others_run"]

#: Seconds after which others get their turn.
TURN_SECONDS = 0.005


def let_others_run(since: float) -> float:
    """Let others run if this has gone on for a turn; return since when it goes on. 0.0: it begins now."""
    now = monotonic()
    if not since or now - since < TURN_SECONDS:
        return since or now
    hub = gevent.get_hub()
    # Not sleep(0): gevent runs up to 50 of those before it looks at its descriptors.
    timer = hub.loop.timer(0.0)
    try:
        hub.wait(timer)
    finally:
        timer.close()
    return monotonic()
