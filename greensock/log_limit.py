"""A bound on the log lines that peers can cause. Pure."""

from __future__ import annotations

__all__ = ["LogLimit"]

#: Lines that may come at once, and lines a second in the long run: enough to see what goes on, too few to fill a disk.
BURST, RATE = 50, 1.0


class LogLimit:
    """Lets ``burst`` lines pass, then ``rate`` a second, and counts those that were left out (a token bucket)."""

    __slots__ = ("_burst", "_left", "_left_out", "_rate", "_since")

    def __init__(self, burst: int = BURST, rate: float = RATE) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._since = 0.0
        self._left_out = 0

    def left_out(self, now: float) -> int:
        """Return how many lines were left out since the last one that passed; -1 if this one is left out, too.

        ``now`` is in seconds of a clock that never goes back.
        """
        self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1.0:
            self._left_out += 1
            return -1
        self._left -= 1.0
        count, self._left_out = self._left_out, 0
        return count
