"""Figures with names, in memory that all workers share: each writes its own, anybody reads the sums.

A *board* has rows of numbers (``shared_pages``), of which each column has a name. What is counted is not known when the
memory is made - a server behind the proxy may be found later, and so a reason why something was refused -, so a column
gets its name from the first who needs it. Names are never taken back; when there is no column left, what has none is
not counted, and the log says so once.

A name that is too long for its column ends with a hash of all of it: so every worker calls it the same, and two that
begin alike are two (``figure_name``).

A name is written under a lock of the kernel, which a worker that is killed does not hold any more; it happens once for
each name. Nobody waits for it: what could not be named now is, the next time. Numbers are written without.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Literal
from weakref import WeakKeyDictionary, finalize

from greensock.core.syscalls import close
from greensock.shared_pages import SharedPages

__all__ = ["Board", "figure_name"]

log = logging.getLogger("greensock.server")

#: Names there is room for, and bytes of each, of which one is its length.
COLUMNS, NAME_BYTES = 2048, 200
#: Bytes of the hash that a long name ends with.
HASH_BYTES = 8

_count = struct.Struct("q")


def figure_name(name: str) -> str:
    """Return what a board calls a figure: what is too long for a column is cut, and ends with a hash of it all."""
    if 4 * len(name) < NAME_BYTES:
        return name
    data = name.encode("utf-8", "surrogateescape")
    if len(data) < NAME_BYTES:
        return name
    end = "~" + blake2b(data, digest_size=HASH_BYTES).hexdigest()
    return data[: NAME_BYTES - 1 - len(end)].decode("utf-8", "ignore") + end


class Board:
    """Numbers with names: ``"q"`` whole ones, ``"d"`` floats. Made in the master; see ``SharedPages.numbers``.

    With the same pages and name it is the same memory.
    """

    def __init__(
        self,
        pages: SharedPages,
        name: str,
        typecode: Literal["q", "d"] = "q",
        is_kept: bool = False,
        columns: int = COLUMNS,
    ) -> None:
        self._pages = pages
        self._numbers = pages.numbers(name, columns, typecode, is_kept)
        # First how many names there are, then the names.
        self._block = pages.block(f"{name}: names", _count.size + columns * NAME_BYTES)
        self._lock = _lock_of(pages)
        self._columns: dict[str, int] = {}
        self._is_full = False

    def write(self, slot: int, values: Mapping[str, float]) -> None:
        """Set numbers of a worker; called in that worker alone."""
        row, columns = self._numbers.row(slot), self._columns
        is_whole, is_kept = self._numbers.typecode == "q", self._numbers.is_kept
        for name, value in values.items():
            column = columns.get(name)
            if column is None:
                name = figure_name(name)
                column = columns[name] if name in columns else self._claim(name)
            if column >= 0:
                number = int(value) if is_whole else value
                if is_kept and number < row[column]:
                    continue  # somebody began anew, which others are not to see
                row[column] = number

    def of(self, slot: int) -> dict[str, float]:
        """Return the numbers of one worker by their names; those that were never set are 0."""
        self._learn()
        row = self._numbers.row(slot)
        return {name: row[column] for name, column in self._columns.items()}

    def total(self, slots: Iterable[int]) -> dict[str, float]:
        """Return the sums over these workers, and over those that are gone if the board keeps what they counted."""
        self._learn()
        count = len(self._columns)
        rows = [self._numbers.row(slot)[:count] for slot in (*slots, -1)]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        return {name: sums[column] for name, column in self._columns.items()}

    def _claim(self, name: str) -> int:
        """Return the column of a name, which gets one if it has none; -1: it has none for now."""
        if not self._try_lock():
            return -1
        try:
            self._learn_all()
            if name in self._columns:
                return self._columns[name]
            count = len(self._columns)
            if count >= self._numbers.width:
                self._say_full(name)
                return -1
            data = name.encode("utf-8", "surrogateescape")
            begin = _count.size + count * NAME_BYTES
            self._block[begin : begin + 1 + len(data)] = bytes([len(data)]) + data
            _count.pack_into(self._block, 0, count + 1)
            self._columns[name] = count
            return count
        finally:
            self._unlock()

    def _learn(self) -> None:
        """Learn the names that others have given meanwhile."""
        (count,) = _count.unpack_from(self._block)
        if count > len(self._columns) and self._try_lock():
            try:
                self._learn_all()
            finally:
                self._unlock()

    def _learn_all(self) -> None:
        (count,) = _count.unpack_from(self._block)
        for column in range(len(self._columns), count):
            begin = _count.size + column * NAME_BYTES
            length = self._block[begin]
            name = bytes(self._block[begin + 1 : begin + 1 + length]).decode("utf-8", "surrogateescape")
            self._columns[name] = column

    def _say_full(self, name: str) -> None:
        if not self._is_full:
            self._is_full = True
            log.warning("%d figures are counted, and no more: %s is not", self._numbers.width, name)

    def _try_lock(self) -> bool:
        if self._lock < 0:
            return True
        # Of the process, not of the open file: each worker has its own, and it ends with the worker.
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _unlock(self) -> None:
        if self._lock >= 0:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)


#: The files whose locks names are given under, one for all boards of the same pages.
_locks: WeakKeyDictionary[SharedPages, int] = WeakKeyDictionary()


def _lock_of(pages: SharedPages) -> int:
    if pages.slots == 1:
        return -1  # there is nobody else
    lock = _locks.get(pages)
    if lock is None:
        lock = _locks[pages] = os.memfd_create("greensock figures")
        finalize(pages, close, lock)
    return lock
