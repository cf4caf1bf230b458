"""How fast a peer takes what is sent to it, as the kernel knows it.

A deadline for sending must not depend on when the socket becomes writable: with a large buffer that is after a third
of it was taken, which a slow but steady reader may need minutes for. So when a deadline comes, the kernel is asked how
much it still holds (SIOCOUTQ); if the peer took anything since the last look, the time begins anew. What bounds a
reader that takes a byte now and then is a least rate.
"""

from __future__ import annotations

import struct
import termios
from fcntl import ioctl

__all__ = ["Pace", "unsent"]

#: So many looks within the limit: a peer that stops is noticed at most so much of it late.
LOOKS = 4

_number = struct.Struct("i").unpack
_ROOM = bytes(4)


def unsent(fd: int) -> int:
    """Return how many bytes the kernel holds that the peer has not taken (of a Unix socket: with what they cost).

    0 where it can't tell: of SCTP what it takes from us counts then, which it does as the peer takes what was before.
    """
    try:
        count: int = _number(ioctl(fd, termios.TIOCOUTQ, _ROOM))[0]
    except OSError:
        return 0
    return count


class Pace:
    """What a peer takes while it is waited for: ``timeout`` seconds without a byte, or less than ``rate`` bytes a
    second once that time is over, are too slow."""

    __slots__ = ("_began", "_held", "_is_exact", "_rate", "_since", "_taken", "_timeout", "_written")

    def __init__(self, fd: int, written: int, timeout: float, rate: int, now: float, is_exact: bool) -> None:
        """``written`` are the bytes given to the kernel so far; ``is_exact`` says that it counts bytes and no costs."""
        self._timeout = timeout
        self._rate = rate
        self._is_exact = is_exact
        self.begin_anew(fd, written, now)

    def begin_anew(self, fd: int, written: int, now: float) -> None:
        """Measure from now on."""
        self._began = self._since = now
        self._taken = 0
        self._written = written
        self._held = unsent(fd)

    def first_look(self) -> float:
        """Return when to look for the first time, in seconds of the clock that ``now`` is of."""
        return self._began + self._timeout / LOOKS

    def next_look(self, fd: int, written: int, now: float) -> float | None:
        """Look; return when to look again, None: the peer is too slow. ``written`` are bytes given to the kernel."""
        # Taken by the peer since the last look: what was written, and what the kernel holds less than then.
        held = unsent(fd)
        more = written - self._written
        taken = more + self._held - held
        if not self._is_exact:
            taken = max(taken, more)  # the kernel counts overhead too: what it holds may grow by more than was written
        self._written, self._held = written, held
        if taken > 0:
            self._taken += taken
            self._since = now
        elif now - self._since >= self._timeout:
            return None
        # Not within the first ``timeout``: a peer may be slow to begin (test_a_least_rate).
        if self._rate and now - self._began > self._timeout and self._taken < self._rate * (now - self._began):
            return None
        # The next quarter, or sooner if the limit ends before: so a peer that stops is noticed in time
        # (test_who_stops_is_cut_off_a_quarter_late_at_most).
        return min(now + self._timeout / LOOKS, self._since + self._timeout)
