"""The idle limit of a server: one sweep over its connections, and no timer or heap entry for each.

Every eighth of the limit the sweep looks at each connection that rests between two turns, compares what it has counted
with what it had at the last look, and drops those on which nothing moved for as long as the limit says. So a message
costs nothing, a connection four references, and one is dropped up to an eighth late. What the kernel still holds for a
peer moves without being counted, so before it drops one the sweep asks the kernel, and gives it another whole limit if
the kernel holds bytes, and another number than when it was asked last. The sweep goes in slices, so that it never holds
the hub for long, whatever number there are; the timer keeps no program alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from time import monotonic
from typing import Any

from greensock.core.lifecycle import OPEN, Lifecycle
from greensock.core.pace import unsent
from greensock.core.poller import Endpoint, Poller
from greensock.errors import DropReason

__all__ = ["IdleSweep"]

#: So many looks within the limit.
LOOKS = 8
#: Connections looked at in one pass of the loop: some 0.1 ms.
SLICE = 512


class IdleSweep:
    """Drops connections of a server on which nothing came or went for ``limit`` seconds while they were at rest."""

    __slots__ = ("_limit", "_owner", "_poller", "_rest", "_timer")

    def __init__(self, poller: Poller, owner: object, limit: float) -> None:
        self._poller = poller
        self._owner = owner
        self._limit = limit
        self._rest: Iterator[Endpoint] | None = None
        self._timer: Any = None

    def start(self) -> None:
        """Begin to sweep."""
        self._arm()

    def stop(self) -> None:
        """End it."""
        self._rest = None
        self._disarm()

    def _arm(self) -> None:
        # Keeps no program alive (test_a_program_with_nothing_to_do_ends).
        self._timer = self._poller.hub.loop.timer(self._limit / LOOKS, ref=False)
        self._timer.start(self._begin, update=True)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _begin(self) -> None:
        """Take note of the connections that are there. In the hub; must not raise."""
        self._disarm()
        # As they are now: newer connections cannot be late yet, and closed ones are skipped.
        self._rest = iter(self._poller.endpoints())
        self._poller.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Look at the next slice. In the hub; must not raise."""
        rest = self._rest
        if rest is None:
            return  # stopped
        seen, failed = 0, False
        try:
            seen = self._look(islice(rest, SLICE), monotonic())
        except BaseException as error:  # a close callback raised, which it must not: go on with the rest
            failed = True
            self._poller.hub.handle_error(self, type(error), error, error.__traceback__)
        # The next slice comes in the next pass, so that timers and events have theirs in between
        # (test_the_sweep_goes_in_slices). One that raised has used up its place: the others are looked at
        # (test_a_sweep_goes_on_when_somebody_raises_in_it).
        if seen == SLICE or failed:
            self._poller.call_soon(self._sweep)
        else:
            self._rest = None
            self._arm()

    def _look(self, some: Iterator[Endpoint], now: float) -> int:
        """Look at some connections; return how many these were."""
        owner, limit, seen = self._owner, self._limit, 0
        for conn in some:
            seen += 1
            if not isinstance(conn, Lifecycle) or conn.server is not owner or conn._state is not OPEN:
                continue
            if not (conn._idle and conn.is_at_rest()):
                conn._idle_moved = -1  # a turn is due, or runs, or is blocked: other limits hold
            elif conn._idle_moved != (moved := conn.bytes_received + conn.bytes_sent):
                conn._idle_moved, conn._idle_since = moved, now
            # The system call comes last, for the few that would be dropped else
            # (test_who_still_takes_what_was_sent_is_not_idle).
            elif now - conn._idle_since >= limit and not self._still_takes(conn, now):
                conn._close(DropReason.IDLE_TIMEOUT)
        return seen

    def _still_takes(self, conn: Lifecycle, now: float) -> bool:
        """Whether the peer took some of what the kernel holds since this was asked last; asked rarely."""
        before, conn._idle_held = conn._idle_held, unsent(conn._fd)
        if not conn._idle_held or conn._idle_held == before:
            return False
        conn._idle_since = now
        return True
