"""Users that can be given a rate, and whose requests are then measured from when they should have gone out.

A user of Locust waits, asks, and waits again. If the server stalls for ten seconds, it asks once in that time and
reports one slow request, where a thousand of independent clients would all have been slow: the stall is left out of the
figures just because it was one (coordinated omission). With a ``rate`` the times at which tasks begin stand fixed, as
they do for wrk2: one that is late because the one before it took long counts from its own time on.
"""

from __future__ import annotations

import logging
from time import perf_counter, time
from typing import Any

from locust import User
from locust.env import Environment

from greensock import Rule

__all__ = ["PacedUser"]

_logger = logging.getLogger("greensock.locust")
#: The classes of which the log has it that they are measured so.
_told_of: set[str] = set()
_rate = Rule(lambda value: Rule.seconds(zero=False).fits(value), "tasks a second, more than 0").or_none()


class PacedUser(User):
    """What all users here have in common."""

    abstract = True

    #: Tasks that each user begins a second, in the place of ``wait_time``. The first request of each is measured from
    #: the time at which its task was due, so that a server that stalls shows in the figures of all that had to wait. A
    #: user that cannot keep up does not wait at all, and its latencies grow. None: ``wait_time`` says, as ever.
    rate: float | None = None

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._due: float | None = None  # when the task should have begun; None once that was used
        self._next: float | None = None
        _rate.check("rate", self.rate)
        if self.rate is not None:
            if type(self).wait_time is not User.wait_time:
                raise ValueError(f"rate={self.rate!r} and wait_time of {type(self).__name__}: one of them expected")
            self.wait_time = self._until_due  # type: ignore[method-assign]
            if type(self).__name__ not in _told_of:
                _told_of.add(type(self).__name__)
                _logger.info(
                    "%s: %s tasks a second by each user; response times count from when a task was due",
                    type(self).__name__,
                    self.rate,
                )

    def _until_due(self) -> float:
        """Return the seconds until the next task is due, and have its first request count from then on."""
        assert self.rate is not None
        now = perf_counter()
        self._next = self._due = (now if self._next is None else self._next) + 1 / self.rate
        return max(0.0, self._due - now)

    def begin_request(self) -> float:
        """Return when a request began that goes out now, by ``perf_counter``: with a ``rate`` when it was due."""
        now = perf_counter()
        if self.rate is None:
            return now
        due, self._due = self._due, None
        if due is None:
            if self._next is None:
                self._next = now  # the first of all
            return now
        return min(due, now)

    def report_request(
        self,
        request_type: str,
        name: str,
        began: float,
        length: int,
        failure: BaseException | None = None,
        ended: float | None = None,
        context: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Tell Locust of a request: when it began and ended, by ``perf_counter``, and how many bytes came back."""
        now = perf_counter()
        self.environment.events.request.fire(
            request_type=request_type,
            name=name,
            response_time=((now if ended is None else ended) - began) * 1000,
            response_length=length,
            exception=failure,
            context={**self.context(), **(context or {})},
            start_time=time() - (now - began),
            **more,
        )
