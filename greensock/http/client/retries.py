"""When a request is made again. No I/O."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from greensock import ConnectFailed, ConnectionLost, HandshakeFailed, Rule
from greensock.http.client.exchange import IDEMPOTENT
from greensock.http.errors import BadResponse, ConnectTimeout, HeadTimeout, Reason

__all__ = ["Retries"]


@dataclasses.dataclass(frozen=True, slots=True)
class Retries:
    """How often, and when, a request is made again.

    What never reached a server (no connection) is tried again whatever it is; all else only if its method is idempotent
    (RFC 9110 section 9.2.2) and its body can be sent once more. Between two tries there is a pause, which doubles
    each time and is drawn by chance between its half and its whole, so that many clients do not come back at once.
    ``timeouts.total`` bounds all of it.

    Raises:
        ValueError: a value that is not allowed.
    """

    #: How often at the most, after the first try.
    total: int = 3
    #: The statuses that are asked again; 429 and 503 as late as their Retry-After says.
    statuses: Collection[int] = (429, 502, 503, 504)
    #: Seconds of the first pause. 0: none.
    pause: float = 0.1
    #: Seconds of a pause, at the most. An answer whose Retry-After says longer is returned.
    max_pause: float = 10.0

    def __post_init__(self) -> None:
        Rule.whole(0).check("total", self.total)
        Rule.seconds().check("pause", self.pause)
        Rule.seconds().check("max_pause", self.max_pause)
        if not all(isinstance(each, int) and 400 <= each <= 599 for each in self.statuses):
            raise ValueError(f"statuses={self.statuses!r}: statuses from 400 to 599 expected")

    def pause_before(self, number: int) -> float:
        """Return the seconds before the try of that number, 1 for the first that is one again."""
        pause = min(self.pause * 2.0 ** min(number - 1, 32), self.max_pause)
        return pause * random.uniform(0.5, 1.0)

    def pause_after_error(self, error: Exception, method: str, replayable: bool, tried: int) -> float | None:
        """Return the seconds to wait after what was raised; None: it is not tried again."""
        if tried >= self.total or not replayable:
            return None
        if isinstance(error, HandshakeFailed):
            return None  # it would be the same again
        if not isinstance(error, ConnectFailed | ConnectTimeout):
            if method not in IDEMPOTENT:
                return None
            cut = isinstance(error, BadResponse) and error.reason in (Reason.NO_RESPONSE, Reason.INCOMPLETE)
            if not cut and not isinstance(error, ConnectionLost | HeadTimeout):
                return None
        return self.pause_before(tried + 1)

    def pause_after_answer(
        self, status: int, retry_after: str | None, method: str, replayable: bool, tried: int
    ) -> float | None:
        """Return the seconds to wait after an answer of that status; None: it is the answer."""
        if tried >= self.total or status not in self.statuses or method not in IDEMPOTENT or not replayable:
            return None
        asked = seconds_of(retry_after) if retry_after is not None and status in (429, 503) else None
        if asked is not None:
            return asked if asked <= self.max_pause else None
        return self.pause_before(tried + 1)


def seconds_of(retry_after: str) -> float | None:
    """Return the seconds that a Retry-After says, by a number or a date; None: it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
