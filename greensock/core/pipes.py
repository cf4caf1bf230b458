"""The pipes of one hub, through which bytes go from socket to socket in the kernel.

A splice has a pipe only while there are bytes in it, which is most often no longer than between two system calls: so a
few pipes do for any number of connections, and one that is silent holds none. Invariants:

- A pipe that is given back is empty.
- Spare pipes are kept only while there is a splice, and at most ``MAX_SPARE`` of them.
- There are at most as many as a share of the descriptors: each peer that reads nothing may hold one, which is two.
- If no pipe can be had, that is no error: the bytes are copied.
"""

from __future__ import annotations

import errno
import os

from greensock.core.syscalls import close
from greensock.descriptors import share_of_descriptors

__all__ = ["Ends", "Pipes"]

#: Pipes that are kept for the next splice: making and closing one costs 5 us, a splice of 64 KiB about 10.
MAX_SPARE = 8

#: What a pipe can't be had for: descriptors, memory, or pages of pipes for one user (pipe(7)).
_USED_UP = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EPERM})

#: Where to read from, and where to write to.
Ends = tuple[int, int]


class Pipes:
    """Empty pipes, taken and given back."""

    __slots__ = ("_open", "_spare", "_users")

    def __init__(self) -> None:
        self._spare: list[Ends] = []
        self._open = 0  # taken or spare
        self._users = 0

    def enter(self) -> None:
        """Begin to splice."""
        self._users += 1

    def leave(self) -> None:
        """End splicing."""
        # The last one to leave has the spare pipes closed: a program that no longer splices holds no descriptor for it
        # (test_what_is_given_back_when_nobody_splices_is_closed).
        self._users -= 1
        if not self._users:
            self.close()

    def take(self) -> Ends | None:
        """Return an empty pipe; None if no pipe can be had."""
        # The one that was given back last: its pages are the warmest.
        if self._spare:
            return self._spare.pop()
        # Asked anew each time, since the limit can be changed while the program runs
        # (test_a_share_goes_by_the_limit_as_it_is).
        if self._open >= share_of_descriptors():
            return None
        try:
            ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            # Shortage is a reason to copy, not to fail; anything else is a bug (test_none_to_be_had_is_no_error,
            # test_any_other_error_is_one).
            if error.errno in _USED_UP:
                return None
            raise
        self._open += 1
        return ends

    def give_back(self, ends: Ends) -> None:
        """Take back a pipe, which is empty."""
        # A passage may give back its pipe after its splice has left (the engine finishes what was begun): then it is
        # not kept.
        if self._users and len(self._spare) < MAX_SPARE:
            self._spare.append(ends)
        else:
            self.discard(ends)

    def discard(self, ends: Ends) -> None:
        """Close a pipe and forget what is in it."""
        self._open -= 1
        for end in ends:
            close(end)

    def close(self) -> None:
        """Close the spare ones."""
        while self._spare:
            self.discard(self._spare.pop())
