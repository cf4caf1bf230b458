"""Logs what holds the hub: the stack of an upcall that lets nobody else run, once for each time.

A thread of its own looks at when the hub was last at work (``Sampler.seen_at``). It is a real one, as a greenlet could
not run while the hub is held; it sleeps nearly always, and takes no lock of the servers'. While C code holds the
interpreter's lock it cannot look either: then there is no line, and what the workers' deadline is for.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any

from gevent.monkey import get_original

from greensock.log_limit import LogLimit

__all__ = ["HubWatchdog"]

log = logging.getLogger("greensock.server")

#: Frames of a stack that are logged, the innermost ones.
MOST_FRAMES = 30
#: Lines of stacks that may be logged at once, and a second in the long run.
BURST, RATE = 5, 1 / 60


class HubWatchdog:
    """Watches the hub of the thread that starts it.

    ``seen_at`` returns when that hub was at work last, which it is every ``interval`` seconds if nobody holds it;
    longer than ``threshold`` seconds is too long.
    """

    def __init__(self, seen_at: Callable[[], float], interval: float, threshold: float) -> None:
        self._seen_at = seen_at
        self._interval = interval
        self._threshold = threshold
        self._limit = LogLimit(BURST, RATE)
        self._end: Any = None
        #: How often the hub was held for too long.
        self.holds = 0

    def start(self) -> None:
        """Begin to watch."""
        # Not the names of today: they may be patched, and would give a greenlet.
        self._end = get_original("_thread", "allocate_lock")()
        self._end.acquire()
        watched = get_original("_thread", "get_ident")()
        get_original("_thread", "start_new_thread")(self._watch, (self._end, watched))

    def stop(self) -> None:
        """Watch no more."""
        end, self._end = self._end, None
        if end is not None:
            end.release()

    def _watch(self, end: Any, watched: int) -> None:
        """Look again and again, until the lock can be had. In the thread."""
        pause = max(self._threshold / 2, self._interval)
        told_of, looked_at = 0.0, monotonic()
        while not end.acquire(True, pause):
            now, before = monotonic(), looked_at
            looked_at, seen_at = now, self._seen_at()
            held = now - seen_at - self._interval
            # Where this thread itself did not run for long, the process was stopped, or the machine is too busy.
            if held < self._threshold or seen_at == told_of or now - before > pause + self._threshold:
                continue
            if self._look(watched, held, now):
                told_of = seen_at

    def _look(self, watched: int, held: float, now: float) -> bool:
        """Return whether somebody holds the hub, after telling who. The frame is not kept: it has what it works on."""
        frame = sys._current_frames().get(watched)
        if frame is None or _is_hub(frame):
            return False
        self.holds += 1
        left_out = self._limit.left_out(now)
        if left_out >= 0:
            self._tell(frame, held, left_out)
        return True

    def _tell(self, frame: FrameType, held: float, left_out: int) -> None:
        more = f"; {left_out} times before were not logged" if left_out else ""
        frames = traceback.format_list(traceback.extract_stack(frame)[-MOST_FRAMES:])
        log.warning(
            "an upcall has held the hub for %.2f s, and nobody else could run%s; it is here:\n%s",
            *(held, more, "".join(frames).rstrip()),
        )


def _is_hub(frame: FrameType) -> bool:
    """Whether it is the hub itself that runs there, and waits for the kernel: then nobody holds it."""
    module = frame.f_globals.get("__name__", "")
    return module == "gevent.hub" and frame.f_code.co_name == "run"
