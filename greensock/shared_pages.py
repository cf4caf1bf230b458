"""Memory that the processes of one server share: rows of numbers, one for each worker, and blocks of bytes.

Made in the master before the first fork, so that every worker has it; in a server of one process there is one row.

- A worker writes into its own row alone, without a lock: eight bytes at a time, which no other process sees half
  written. Anybody may read all rows.
- What is gone with its worker (connections, requests in hand) is zero again when the master has seen the worker's end,
  SIGKILL included. What is counted up for ever (``is_kept``) goes into one more row then, so that a sum never falls.
- What a master that takes this one's place (USR2) has is its own: it begins empty.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

__all__ = ["Numbers", "SharedPages"]

#: How many workers there is room for, old ones that still end included.
SLOTS = 1024
#: How often it is read anew because a worker is being counted out.
MOST_READINGS = 1000

Read = TypeVar("Read")


class Numbers:
    """Rows of numbers of eight bytes: ``"q"`` whole ones, ``"d"`` floats. Made by :meth:`SharedPages.numbers`."""

    def __init__(self, slots: int, width: int, typecode: Literal["q", "d"], is_kept: bool) -> None:
        #: Numbers in a row.
        self.width = width
        self.typecode = typecode
        #: Whether what a worker has counted stays when it is gone.
        self.is_kept = is_kept
        self._page = mmap.mmap(-1, max(1, (slots + 1) * width * 8))
        whole = memoryview(self._page)[: (slots + 1) * width * 8].cast(typecode)
        self._rows: list[Any] = [whole[first : first + width] for first in range(0, len(whole), width)]

    def row(self, slot: int) -> Any:
        """Return the row of a worker, a memoryview, to be written by nobody else.

        -1: what is kept of those that are gone.
        """
        return self._rows[slot]

    def total(self) -> list[float]:
        """Return the sums over all workers, column by column; those that are gone included, if they are kept."""
        return [sum(column) for column in zip(*self._rows, strict=True)]

    def clear(self, slot: int) -> None:
        """Count a worker out that is gone. In the master."""
        row, kept = self._rows[slot], self._rows[-1]
        for index, value in enumerate(row):
            if self.is_kept:
                kept[index] += value
            row[index] = 0


class SharedPages:
    """What is shared, by name; and which worker has which row.

    :meth:`numbers` and :meth:`block` are called before the fork. What is there already under that name, as large, is
    what is returned: a configuration that is read anew goes on with it.
    """

    def __init__(self, slots: int = SLOTS) -> None:
        #: How many rows there are for workers.
        self.slots = slots
        #: Which process has which row; 0: nobody.
        self.pids = self.numbers_of(1)
        self._taken: set[int] = set()
        self._numbers: dict[tuple[str, int, str, bool], Numbers] = {}
        self._blocks: dict[tuple[str, int], mmap.mmap] = {}
        self._clearing: dict[str, Callable[[int], None]] = {}
        # Odd while a worker is counted out, which takes some steps: what is read then may be counted twice, or not.
        self._steps = self.numbers_of(1).row(0)

    def numbers_of(self, width: int, typecode: Literal["q", "d"] = "q", is_kept: bool = False) -> Numbers:
        """Return rows that have no name."""
        return Numbers(self.slots, width, typecode, is_kept)

    def numbers(self, name: str, width: int, typecode: Literal["q", "d"] = "q", is_kept: bool = False) -> Numbers:
        """Return rows of ``width`` numbers for all workers."""
        key = (name, width, typecode, is_kept)
        if key not in self._numbers:
            self._numbers[key] = self.numbers_of(width, typecode, is_kept)
        return self._numbers[key]

    def block(self, name: str, size: int) -> mmap.mmap:
        """Return bytes that all workers may write to: zeros at first."""
        key = (name, size)
        if key not in self._blocks:
            self._blocks[key] = mmap.mmap(-1, size)
        return self._blocks[key]

    def on_gone(self, name: str, clear: Callable[[int], None]) -> None:
        """Have ``clear`` called with the row of each worker that is gone: it takes away what that left in a block."""
        self._clearing[name] = clear

    def forget(self, begins: str, but: Collection[str] = ()) -> None:
        """Let go of the blocks whose name ``begins`` so, ``but`` for some; who was forked before still has them."""
        self._blocks = {key: block for key, block in self._blocks.items() if _is_kept(key[0], begins, but)}
        self._clearing = {name: clear for name, clear in self._clearing.items() if _is_kept(name, begins, but)}

    @property
    def has_room(self) -> bool:
        """Whether there is a row for one more worker."""
        return len(self._taken) < self.slots

    @property
    def held(self) -> frozenset[int]:
        """Which rows were taken, and not given back. In the master."""
        return frozenset(self._taken)

    def take(self) -> int:
        """Return a row that nobody has. In the master.

        Raises:
            RuntimeError: there are as many workers as rows.
        """
        for slot in range(self.slots):
            if slot not in self._taken:
                self._taken.add(slot)
                return slot
        raise RuntimeError(f"{self.slots} workers, and one more: at most {self.slots} expected")

    def enter(self, slot: int) -> None:
        """Say that this process has the row. In the worker."""
        self.pids.row(slot)[0] = os.getpid()

    def give_back(self, slot: int) -> None:
        """Count out the worker that had the row, and is gone. In the master."""
        self._steps[0] += 1
        self.pids.clear(slot)
        for each in self._numbers.values():
            each.clear(slot)
        for clear in self._clearing.values():
            clear(slot)
        self._steps[0] += 1
        self._taken.discard(slot)

    def taken(self) -> dict[int, int]:
        """Return which rows workers have, and their processes."""
        found = {slot: self.pids.row(slot)[0] for slot in range(self.slots)}
        return {slot: pid for slot, pid in found.items() if pid}

    def read_whole(self, read: Callable[[], Read]) -> Read:
        """Return what ``read`` reads of all rows, at a moment at which no worker is being counted out.

        So a sum over what is kept never falls. (A master that was killed within that leaves things as they are: then
        what was read last is returned.)
        """
        for _ in range(MOST_READINGS):
            before = self._steps[0]
            found = read()
            if before == self._steps[0] and not before & 1:
                break
        return found


def _is_kept(name: str, begins: str, but: Collection[str]) -> bool:
    return not name.startswith(begins) or name in but
