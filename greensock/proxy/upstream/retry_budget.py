"""How many requests may be sent a second time: so few that retries never become the storm. Pure."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from greensock import Rule

__all__ = ["RetryBudget"]

#: Counts are forgotten a part of the window at a time.
PARTS = 10

_seconds = Rule.seconds(zero=False)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


_RULES = {
    "ratio": Rule(_is_amount, "a number, 0 or more"),
    "least": Rule(_is_amount, "a number, 0 or more"),
    "window": _seconds,
}


class RetryBudget:
    """Retries in proportion to requests, both counted over the last ``window`` seconds.

    ``ratio`` retries for each request are allowed, and ``least`` retries a second beside, so that a group with little
    to do can retry at all: the rule, and the defaults, of Finagle and Linkerd. With 0 for both there are no retries.

    ``now`` is in seconds of a clock that never goes back.

    Raises:
        ValueError: an option is not allowed; the text says which, its value, and what is allowed.
    """

    __slots__ = (
        "_due",
        "_floor",
        "_part",
        "_place",
        "_ratio",
        "_requests",
        "_retries",
        "_sum_requests",
        "_sum_retries",
        "on_retry",
        "others",
        "refused",
        "retries",
    )

    def __init__(self, ratio: float = 0.2, least: float = 10.0, window: float = 10.0) -> None:
        for name, value in (("ratio", ratio), ("least", least), ("window", window)):
            _RULES[name].check(name, value)
        #: Retries that were allowed, since it was made.
        self.retries = 0
        #: Retries that were not.
        self.refused = 0
        self._ratio = ratio
        self._floor = least * window
        self._part = window / PARTS
        self._due = 0.0  # when the part ends that counts now
        self._place = 0  # of that part
        self._requests = [0] * PARTS
        self._retries = [0] * PARTS
        self._sum_requests = 0
        self._sum_retries = 0
        #: Returns the requests and the retries of other processes that have the same budget; None: there are none.
        self.others: Callable[[], tuple[int, int]] | None = None
        #: Called when a retry was allowed, so that they are told; None: nobody is to be told.
        self.on_retry: Callable[[], object] | None = None

    def request(self, now: float) -> None:
        """Count a request; its retries are not requests."""
        if now >= self._due:
            self._advance(now)
        self._requests[self._place] += 1
        self._sum_requests += 1

    def may_retry(self, now: float) -> bool:
        """Return whether a request may be sent once more; if so, that is counted."""
        if now >= self._due:
            self._advance(now)
        requests, retries = self._sum_requests, self._sum_retries
        if self.others is not None:
            more_requests, more_retries = self.others()
            requests, retries = requests + more_requests, retries + more_retries
        # 1e-9 makes up for the rounding of floats: a ratio of 0.1 gives 3 retries for 30 requests, not 2.
        if retries + 1 > self._ratio * requests + self._floor + 1e-9:
            self.refused += 1
            return False
        self._retries[self._place] += 1
        self._sum_retries += 1
        self.retries += 1
        if self.on_retry is not None:
            self.on_retry()
        return True

    def counts(self, now: float) -> tuple[int, int]:
        """Return the requests and the retries of the last ``window`` seconds, for others to know."""
        if now >= self._due:
            self._advance(now)
        return self._sum_requests, self._sum_retries

    def _advance(self, now: float) -> None:
        """Begin the part in which now is, and forget those that are older than the window."""
        parts = int((now - self._due) / self._part) + 1
        for _ in range(min(parts, PARTS)):
            self._place = place = (self._place + 1) % PARTS
            self._sum_requests -= self._requests[place]
            self._sum_retries -= self._retries[place]
            self._requests[place] = self._retries[place] = 0
        # Not past now for sure, if the parts are so small that the sum is rounded.
        self._due = max(self._due + parts * self._part, now)
