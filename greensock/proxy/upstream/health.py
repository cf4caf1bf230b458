"""What is known of one server's health: from the requests it gets, and from checks. Pure.

States and what leads from one to the next:

======== ================================= ========
from     because                           to
======== ================================= ========
UP       too many failed requests          EJECTED
EJECTED  its time is over: one request     TRYING
TRYING   that request succeeded            UP
TRYING   that request failed               EJECTED
TRYING   that request ended unjudged       EJECTED
any      ``fall`` checks failed            DOWN
DOWN     ``rise`` checks passed            UP
======== ================================= ========

- Each further ejection lasts twice as long, but not while the whole group is out: what is the matter then is seldom
  the server. As long as a server stays up, that is halved again, once for every stretch as long as its last ejection
  (at least ``fail_window``).
- When a whole group was out and its first server comes back, the ejections of the others are over: each gets its
  request on trial, so that the first does not carry the load of all alone.
- A server comes back slowly: for ``slow_start`` seconds its share grows from 0.1 to 1. The first start is not slow.
- A passed check does not end an ejection, which failed requests had caused: checks undo only what checks have done.
- A server starts as up, on probation: if its very first check fails it is down at once, as with HAProxy.
- Reports of requests that were sent before the server was last taken out change nothing: not while it is out, not while
  another request is on trial, nor when it is back (their timeouts may come sixty seconds later). Each request notes the
  *spell* of service that it was sent in, by which its report is judged.
- What another process of the same proxy found is taken over as it is (``take_ejection``, ``take_rise``,
  ``take_check``), and not counted once more: an ejection grows no longer by being told of. What comes of own requests
  is for the others to know; ``changes`` counts that. Each process has a request of its own on trial, and the first that
  succeeds brings the server back for all.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections import deque
from collections.abc import Mapping
from math import inf
from typing import Any

from greensock import Rule
from greensock.http.wire.syntax import is_authority, is_target

__all__ = ["Health", "HealthOptions", "HealthStatistics", "Standing"]

#: What a server in its slow start gets at least, of its weight: Envoy's default.
LEAST_SHARE = 0.1
#: Seconds after which the request on trial is no longer waited for: another may be one.
TRIAL_SECONDS = 30.0
#: Failures that are remembered of a server, at the most.
MOST_FAILS = 1000
#: How often an ejection is doubled, at the most.
MOST_DOUBLED = 64

_status_range = re.compile(r"\s*([1-9]\d\d)\s*(?:-\s*([1-9]\d\d)\s*)?").fullmatch


@functools.lru_cache(maxsize=256)
def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Take ``200-299,404`` apart; empty if it is nothing of that kind."""
    found = []
    for part in text.split(","):
        match = _status_range(part)
        if match is None:
            return ()
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if not 200 <= first <= last <= 999:
            return ()
        found.append((first, last))
    return tuple(found)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and value.isascii() and bool(is_target(value.encode()))


def _is_host(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and bool(is_authority(value.encode()))


def _is_ratio(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode("utf-8", "replace")) <= 1024


def _is_count(value: Any) -> bool:
    return Rule.whole(0).fits(value) and value <= MOST_FAILS


_RULES: Mapping[str, Rule] = {
    "max_fails": Rule(_is_count, f"a whole number from 0 to {MOST_FAILS}"),
    "fail_window": Rule.seconds(zero=False),
    "fail_ratio": Rule(_is_ratio, "a number from 0 to 1"),
    "ejection_time": Rule.seconds(zero=False),
    "max_ejection": Rule.seconds(zero=False),
    "slow_start": Rule.seconds(),
    "path": Rule(_is_path, "a path that begins with /, percent-encoded").or_none(),
    "interval": Rule.seconds(zero=False),
    "timeout": Rule.seconds(zero=False),
    "rise": Rule.whole(1),
    "fall": Rule.whole(1),
    "status": Rule(
        lambda value: isinstance(value, str) and bool(_ranges(value)), 'statuses from 200 to 999, as "200-299,404"'
    ),
    "body": Rule(_is_text, "a text of 1 to 1024 bytes").or_none(),
    "host": Rule(_is_host, "a host, and a port if any").or_none(),
}


@dataclasses.dataclass(frozen=True, slots=True)
class HealthOptions:
    """When a server is given no more requests, and when it is again.

    Raises:
        ValueError: an option is not allowed; the text says which, its value, and what is allowed.
    """

    #: Failed requests within ``fail_window`` that eject a server; 0: none ever do. At most 1000.
    max_fails: int = 3
    #: Seconds.
    fail_window: float = 10.0
    #: What part of the requests these failures must be as well: a busy server is not ejected for a stray few. 0: any.
    fail_ratio: float = 0.1
    #: Seconds that the first ejection lasts; each further one twice as long.
    ejection_time: float = 5.0
    #: Seconds that an ejection lasts at the most.
    max_ejection: float = 300.0
    #: Seconds in which the requests to a server that came back grow to its full share. 0: at once.
    slow_start: float = 0.0
    #: What a check asks for; None: there are no checks.
    path: str | None = None
    #: Seconds from one check to the next.
    interval: float = 5.0
    #: Seconds that a check may take, all in all.
    timeout: float = 2.0
    #: Checks in a row that must pass for a server to be up again.
    rise: int = 2
    #: Checks in a row that must fail for it to be down.
    fall: int = 3
    #: The statuses that pass, separated by commas: numbers and ranges.
    status: str = "200-399"
    #: What must be in the first 64 KiB of the answer's body; None: anything.
    body: str | None = None
    #: What Host says in a check; None: the server's own name.
    host: str | None = None

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            rule.check(name, getattr(self, name))
        if self.max_ejection < self.ejection_time:
            allowed = f"at least ejection_time, which is {self.ejection_time!r},"
            raise ValueError(f"max_ejection={self.max_ejection!r}: {allowed} expected")

    def accepts(self, status: int) -> bool:
        """Return whether a check passes with that status."""
        return any(first <= status <= last for first, last in _ranges(self.status))


class Standing(enum.Enum):
    """How a server stands."""

    #: It gets requests.
    UP = "up"
    #: Requests failed; it gets none for a time, and then one on trial.
    EJECTED = "ejected"
    #: One request is on trial.
    TRYING = "trying"
    #: Checks failed.
    DOWN = "down"


@dataclasses.dataclass(frozen=True, slots=True)
class HealthStatistics:
    """A snapshot of what is known of one server."""

    #: How it stands.
    standing: Standing
    #: Requests that succeeded and failed, since the server is known.
    succeeded: int
    failed: int
    #: How often it was ejected.
    ejections: int
    #: Until when, if it is, by the clock of the caller; else None.
    ejected_until: float | None
    #: Checks that passed and failed.
    checks_passed: int
    checks_failed: int


class Health:
    """The health of one server. ``now`` is in seconds of a clock that never goes back.

    For each request: ``may_try`` before it and a look at ``spell`` behind that, then one of ``succeeded``, ``failed``,
    ``abandoned``, with that spell (-1: of now).
    """

    __slots__ = (
        "_checks_failed",
        "_checks_passed",
        "_ejections",
        "_failed",
        "_fails",
        "_in_row",
        "_last_ejection",
        "_penalty",
        "_ratio",
        "_succeeded",
        "_trial_until",
        "_until",
        "_up_since",
        "changes",
        "is_clear",
        "options",
        "spell",
        "standing",
    )

    def __init__(self, options: HealthOptions) -> None:
        #: What it was made with.
        self.options = options
        #: How it stands.
        self.standing = Standing.UP
        #: Whether it is up and has its full share, and only a report can change that: nothing else need be asked then.
        self.is_clear = True
        #: How often it was taken out: what was sent before that tells nothing of how it is now.
        self.spell = 0
        #: How often own requests changed how it stands, by an ejection or its end.
        self.changes = 0
        self._succeeded = self._failed = self._ejections = self._checks_passed = self._checks_failed = 0
        # Of the last failures: the time, and how many requests had succeeded before.
        self._fails: deque[tuple[float, int]] = deque(maxlen=max(options.max_fails, 1))
        self._penalty = 0  # how often the next ejection is doubled
        self._last_ejection = 0.0  # how long it was
        self._until = -inf
        self._trial_until = -inf
        self._up_since = -inf
        # Checks in a row that say the opposite of how it stands. One failure more is enough at the very start.
        self._in_row = options.fall - 1

    # -- what is asked

    def is_up(self, now: float) -> bool:
        """Return whether a request may go there: it is up, or ejected, its time over and no request on trial."""
        standing = self.standing
        if standing is Standing.UP:
            return True
        if standing is Standing.EJECTED:
            return now >= self._until
        return standing is Standing.TRYING and now >= self._trial_until and now >= self._until

    @property
    def is_ejected(self) -> bool:
        """Whether only failed requests speak against it, no check."""
        return self.standing is Standing.EJECTED or self.standing is Standing.TRYING

    @property
    def ejected_until(self) -> float | None:
        """When its ejection is over, a time that may have passed if no request came since; None: it is not ejected."""
        return self._until if self.is_ejected else None

    def share(self, now: float) -> float:
        """Return how much of its weight counts, from 0.1 in the beginning of a slow start to 1."""
        if self.is_clear or self.standing is not Standing.UP:
            return 1.0  # full weight, or a server on trial would wait long for its request
        passed = (now - self._up_since) / self.options.slow_start
        if passed < 1.0:
            return max(passed, LEAST_SHARE)
        self.is_clear = True
        return 1.0

    @property
    def failures(self) -> int:
        """How many requests failed so far, and it was the server's fault."""
        return self._failed

    def statistics(self) -> HealthStatistics:
        """Return a snapshot."""
        return HealthStatistics(
            standing=self.standing,
            succeeded=self._succeeded,
            failed=self._failed,
            ejections=self._ejections,
            ejected_until=self.ejected_until,
            checks_passed=self._checks_passed,
            checks_failed=self._checks_failed,
        )

    # -- what requests report

    def may_try(self, now: float, panic: bool = False) -> bool:
        """Return whether a request may be sent now; if the server is ejected, it is the one on trial.

        With ``panic``, as no other server is left, an ejected one may always be tried, before its time too.
        """
        if self.is_clear:
            return True
        if not self.is_up(now) and (not panic or self.standing is Standing.DOWN):
            return False
        if self.standing is not Standing.UP:
            self.standing = Standing.TRYING
            self._trial_until = now + TRIAL_SECONDS
        return True

    def succeeded(self, now: float, spell: int = -1) -> bool:
        """Note that a request was answered; return whether the server is up again with that."""
        self._succeeded += 1
        if self.standing is not Standing.TRYING or self._is_old(spell):
            return False
        self._rise(now)
        self.changes += 1
        return True

    def failed(self, now: float, others_up: bool = True, spell: int = -1) -> bool:
        """Note that a request failed, and it was the server's fault; return whether it is ejected with that.

        ``others_up`` says whether another server of its group is up.
        """
        self._failed += 1
        if self._is_old(spell):
            return False
        if self.standing is Standing.TRYING:
            if self._trial_until - TRIAL_SECONDS < self._until:  # tried before its time: no reason to make it longer
                self.standing = Standing.EJECTED
                return False
            self._eject(now, longer=others_up)
            return True
        if self.standing is not Standing.UP or not self.options.max_fails:
            return False
        self._fails.append((now, self._succeeded))
        if not self._has_failed_too_often(now):
            return False
        self._eject(now)
        return True

    def end_ejection(self, now: float) -> None:
        """Let the next request be on trial, if it is ejected: others of its group are up again."""
        if self.is_ejected:
            self._until = min(self._until, now)

    def abandoned(self, now: float, spell: int = -1) -> None:
        """Note that a request ended and nothing is known of the server: the client left, say."""
        if self.standing is Standing.TRYING and not self._is_old(spell):
            self.standing = Standing.EJECTED

    # -- what checks report

    def check_passed(self, now: float) -> bool:
        """Note that a check passed; return whether the server is up with that."""
        self._checks_passed += 1
        if self.standing is not Standing.DOWN:
            self._in_row = 0
            return False
        self._in_row += 1
        if self._in_row < self.options.rise:
            return False
        self._in_row = 0
        self._rise(now)
        return True

    def check_failed(self, now: float) -> bool:
        """Note that a check failed; return whether the server is down with that."""
        self._checks_failed += 1
        if self.standing is Standing.DOWN:
            self._in_row = 0
            return False
        self._in_row += 1
        if self._in_row < self.options.fall:
            return False
        self._in_row = 0
        self._go_down()
        return True

    # -- what other processes found

    def sentence(self) -> tuple[float | None, float, int]:
        """Return what others are to take over: until when it is ejected, None if it is not; for how many seconds in
        all; and how often the next ejection is doubled."""
        return self.ejected_until, self._last_ejection, self._penalty

    def take_ejection(self, until: float, seconds: float, penalty: int) -> bool:
        """Stand as ejected, as another process has it; return whether it was not. What checks found goes before."""
        if self.standing is Standing.DOWN:
            return False
        was_up = self.standing is Standing.UP
        self._until = until if was_up else max(self._until, until)
        self._last_ejection = max(self._last_ejection, seconds) if not was_up else seconds
        self._penalty = max(self._penalty, min(penalty, MOST_DOUBLED))
        self._ejections += was_up
        self.spell += 1
        self.standing = Standing.EJECTED
        self.is_clear = False
        return was_up

    def take_rise(self, now: float) -> bool:
        """Be up again, if it is ejected: a request of another process succeeded. Return whether it was ejected."""
        if not self.is_ejected:
            return False
        self._rise(now)
        return True

    def take_check(self, now: float, is_down: bool) -> bool:
        """Stand as the checks of another process have it; return whether that is a change."""
        self._in_row = 0  # it is known: no probation
        if is_down is (self.standing is Standing.DOWN):
            return False
        if is_down:
            self._go_down()
        else:
            self._rise(now)
        return True

    # -- what follows

    def _is_old(self, spell: int) -> bool:
        return spell not in (-1, self.spell)

    def _has_failed_too_often(self, now: float) -> bool:
        fails = self._fails
        if len(fails) < self.options.max_fails:
            return False
        since, succeeded = fails[0]
        good = self._succeeded - succeeded
        return now - since <= self.options.fail_window and len(fails) >= self.options.fail_ratio * (len(fails) + good)

    def _go_down(self) -> None:
        self.standing = Standing.DOWN
        self.spell += 1
        self.is_clear = False

    def _rise(self, now: float) -> None:
        self.standing = Standing.UP
        self._up_since = now
        self._fails.clear()
        self.is_clear = not self.options.slow_start

    def _eject(self, now: float, longer: bool = True) -> None:
        options = self.options
        if self.standing is Standing.UP:  # it has been up for a while: that much is forgiven
            stretch = max(self._last_ejection, options.fail_window)
            self._penalty = max(0, self._penalty - int(min((now - self._up_since) / stretch, 1e6)))
        seconds = (
            min(options.ejection_time * 2.0**self._penalty, options.max_ejection) if longer else self._last_ejection
        )
        if longer and seconds < options.max_ejection:
            self._penalty = min(self._penalty + 1, MOST_DOUBLED)
        self._last_ejection = seconds
        self._until = now + seconds
        self._ejections += 1
        self.changes += 1
        self.spell += 1
        self.standing = Standing.EJECTED
        self.is_clear = False
