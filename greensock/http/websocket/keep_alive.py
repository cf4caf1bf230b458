"""Keeps WebSockets alive: those from which nothing comes are pinged, and dropped if they go on to say nothing.

One timer of the hub's looks at all of them, every quarter of the interval, in slices, so that it never holds the hub
for long. None has a timer, a greenlet or an entry of a heap of its own. Any byte counts as a sign of life, be it part
of a message. One whose upcall runs is not read meanwhile: as long as the kernel holds something of it, it is alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from time import monotonic
from typing import Any, Protocol

from gevent import get_hub

__all__ = ["KeepAlive", "Pinged"]

#: So many looks within the shorter of both times.
LOOKS = 4
#: WebSockets looked at in one pass of the loop.
SLICE = 256


class Pinged(Protocol):
    """What is kept alive. None of its methods may block or raise."""

    #: How much had come when something had last, since when nothing more has, and when it was pinged since then; 0.0:
    #: it was not.
    _heard: int
    _silent_since: float
    _pinged_at: float

    def _heard_so_far(self) -> int:
        """Return how much has come so far: a number that grows with each byte."""

    def _has_more(self) -> bool:
        """Whether the kernel holds something that was not read."""

    def _ping_silently(self) -> None:
        """Send a ping, or drop it if that cannot be."""

    def _drop_silent(self) -> None:
        """Drop it: nothing came, not even the answer to a ping."""


class KeepAlive(dict[Any, None]):
    """The WebSockets of one owner, and the timer that looks at them; it runs while there are some."""

    def __init__(self, interval: float | None, timeout: float) -> None:
        super().__init__()
        self._interval = interval
        self._timeout = timeout
        self._timer: Any = None
        self._next_slice: Any = None
        self._rest: Iterator[Pinged] | None = None

    def add(self, websocket: Any) -> None:
        """Begin with one."""
        websocket._silent_since = monotonic()
        self[websocket] = None
        if self._interval is not None and self._timer is None:
            # It keeps no program alive that waits for nothing else.
            loop = get_hub().loop
            self._timer = loop.timer(min(self._interval, self._timeout) / LOOKS, ref=False)
            self._next_slice = loop.timer(0.0, ref=False)
            self._arm()

    def discard(self, websocket: Any) -> None:
        """End with one."""
        self.pop(websocket, None)
        if not self:
            self.stop()

    def stop(self) -> None:
        """Look no more."""
        timers, self._timer, self._next_slice, self._rest = (self._timer, self._next_slice), None, None, None
        for timer in timers:
            if timer is not None:
                timer.stop()
                timer.close()

    def _arm(self) -> None:
        self._timer.start(self._look, update=True)

    def _look(self) -> None:
        """Look at the next slice. In the hub; must not raise."""
        timer = self._timer
        if timer is None:
            return
        if self._rest is None:
            self._rest = iter(list(self))
        now, rest = monotonic(), self._rest
        seen = 0
        for websocket in islice(rest, SLICE):
            seen += 1
            if websocket in self:
                self._look_at(websocket, now)
        if self._timer is not timer:
            return  # the last one has ended
        if seen == SLICE:
            self._next_slice.start(self._look)  # in another pass: events have theirs in between
        else:
            self._rest = None
            self._arm()

    def _look_at(self, websocket: Pinged, now: float) -> None:
        assert self._interval is not None
        heard = websocket._heard_so_far()
        if heard != websocket._heard:
            websocket._heard, websocket._silent_since, websocket._pinged_at = heard, now, 0.0
        elif websocket._pinged_at:
            if now - websocket._pinged_at >= self._timeout and not websocket._has_more():
                websocket._drop_silent()
        elif now - websocket._silent_since >= self._interval:
            websocket._pinged_at = now
            websocket._ping_silently()
