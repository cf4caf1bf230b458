"""Histograms: how many took how long. Pure.

To note one costs 0.2 us: what others are to see of it is written once a second (``worker_watch``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

__all__ = ["BOUNDS", "Histogram", "histogram_names"]

_LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

#: What is measured, and the bounds of its buckets in seconds.
BOUNDS: Mapping[str, tuple[float, ...]] = {
    "latency": _LONG,
    "turn_wait": _SHORT,
    "upcall": (*_SHORT, 5.0, 30.0),
    "hub_held": _SHORT,
}


class Histogram:
    """Counts what is at most each of the bounds, and more than the one before it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        #: In seconds, growing.
        self.bounds = bounds
        #: One more than bounds: the last is of what exceeds them all.
        self.counts = [0] * (len(bounds) + 1)
        #: All that was noted, in seconds.
        self.sum = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


def histogram_names(name: str) -> list[str]:
    """Return what the figures of a histogram are called, one for each of its counts."""
    return [f"{name} {index}" for index in range(len(BOUNDS[name]) + 1)]
