"""How long each phase of a request may take, and what is raised when one took longer."""

from __future__ import annotations

import dataclasses
from math import inf
from time import monotonic
from typing import Any

from greensock import Rule
from greensock.http.errors import PhaseTimeout, TotalTimeout

__all__ = ["Deadlines", "Timeouts"]

_allowed = Rule.seconds(zero=False).or_none()


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that the phases of a request may take; None: as long as they want.

    Each but ``expect`` has an error of its own: ``QueueTimeout`` and so on.

    Raises:
        ValueError: a value that is not seconds.
    """

    #: Waiting for a connection that others use.
    queue: float | None = 10.0
    #: Resolving the name and connecting.
    connect: float | None = 10.0
    #: Until the server has taken a piece of the request: of an iterable each, else at most 256 KiB.
    send: float | None = 30.0
    #: From the end of the request to the end of the final answer's head; answers 1xx do not prolong it.
    head: float | None = 60.0
    #: Without a byte of the answer's body, while it is being read.
    body: float | None = 60.0
    #: From the call to the last byte of the body.
    total: float | None = None
    #: For 100 Continue; then the body is sent without it (RFC 9110 section 10.1.1).
    expect: float | None = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _allowed.check(field.name, getattr(self, field.name))


class Deadlines:
    """The deadlines of one request, which begins now."""

    __slots__ = ("timeouts", "total", "total_due")

    def __init__(self, timeouts: Timeouts, total: float | None) -> None:
        #: Of the phases.
        self.timeouts = timeouts
        #: Of all of it.
        self.total = timeouts.total if total is None else total
        if self.total is not None and not _allowed.fits(self.total):
            raise ValueError(f"timeout={total!r}: {_allowed.allowed} expected")
        #: When all of it must be over.
        self.total_due = inf if self.total is None else monotonic() + self.total

    def due(self, seconds: float | None) -> float:
        """Return when a phase must be over that begins now."""
        return self.total_due if seconds is None else min(monotonic() + seconds, self.total_due)

    def within(self, seconds: float | None, kind: type[PhaseTimeout], conn: Any = None) -> float | None:
        """Return how long a phase may take that begins now; None for no bound. Raises as ``left`` does."""
        if self.total_due == inf:
            return seconds  # no look at the clock
        return self.left(self.due(seconds), kind, seconds, conn)

    def left(self, due: float, kind: type[PhaseTimeout], seconds: float | None, conn: Any = None) -> float | None:
        """Return the seconds until then, which are more than 0; None for no bound.

        Raises:
            PhaseTimeout: there are none left. (A peer that always has something to say must not stop the clock.)
        """
        if due == inf:
            return None
        left = due - monotonic()
        if left <= 0:
            raise self.late(kind, seconds, conn)
        return left

    def late(self, kind: type[PhaseTimeout], seconds: float | None, conn: Any = None) -> PhaseTimeout:
        """Return the error for a wait that timed out: the phase's, or that of the whole request."""
        if self.total is not None and (seconds is None or monotonic() >= self.total_due):
            return TotalTimeout(self.total, conn)
        return kind(seconds or 0.0, conn)
