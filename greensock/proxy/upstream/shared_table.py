"""A small document that the workers of a proxy share: JSON in memory that all have, read by each, written by any.

- The memory has two halves, and a number before them: how often the document was written. Its last digit, in base 2,
  says which half holds. A writer fills the other half, and only then counts on. So a writer that is killed halfway
  changes nothing, and a reader finds either what was or what is.
- A reader that is so slow that two more documents were written meanwhile finds a checksum that is wrong, and reads
  again.
- One writes at a time, under a lock of the kernel's that ends with the process that has it (fcntl(2), F_SETLK). Nobody
  waits for it in the kernel, where a process that is stopped would stop all others; and whoever has it does not block.
- Who looks whether there is something new reads that number, no more. A document is for what changes seldom.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from gevent.monkey import get_original

__all__ = ["SharedTable", "TableFull"]

#: Before a half: the length and the checksum of what it holds.
_HEAD = struct.Struct("=II")
#: How often a reader tries that is overtaken by writers.
READ_TRIES = 20
#: Seconds between two tries to write, and how many there are.
PAUSE, WRITE_TRIES = 0.005, 200

_close = get_original("os", "close")


class TableFull(RuntimeError):
    """The document does not fit: it stays as it was."""


class SharedTable:
    """The document. Made before the fork, on zeros; ``is_alone`` says that there is one process only."""

    def __init__(self, memory: Any, is_alone: bool) -> None:
        self._memory = memory
        whole = memoryview(memory)
        #: How often it was written.
        self._count = whole[:8].cast("q")
        self._size = (len(memory) - 8) // 2
        self._lock = -1
        if not is_alone:
            self._lock = os.memfd_create("greensock-lock")
            weakref.finalize(self, _close, self._lock)

    @property
    def generation(self) -> int:
        """How often it was written; 0: never."""
        return self._count[0]

    def read(self) -> tuple[int, dict[str, Any]]:
        """Return the generation and the document, which is the caller's."""
        for _ in range(READ_TRIES):
            generation = self._count[0]
            if not generation:
                return 0, {}
            begin = 8 + generation % 2 * self._size
            length, checksum = _HEAD.unpack_from(self._memory, begin)
            raw = bytes(self._memory[begin + _HEAD.size : begin + _HEAD.size + min(length, self._size)])
            if raw and zlib.crc32(raw) == checksum:
                document: dict[str, Any] = json.loads(raw)
                return generation, document
        raise TimeoutError("the workers' table is written faster than it can be read")

    def update(
        self, change: Callable[[dict[str, Any]], object], pause: Callable[[float], object] | None = None
    ) -> bool:
        """Have ``change`` change the document in place; return whether that could be done, now or within a second.

        ``change`` returns False if nothing is to be written. It must not block. Without a ``pause``, which waits for so
        many seconds, it is tried once.

        Raises:
            TableFull: it has become too large.
        """
        for tries in range(1 if pause is None else WRITE_TRIES):
            if tries and pause is not None:
                pause(PAUSE)
            with self._locked() as has_lock:
                if has_lock:
                    generation, document = self.read()
                    if change(document) is not False:
                        self._write(generation, document)
                    return True
        return False

    def _write(self, generation: int, document: dict[str, Any]) -> None:
        raw = json.dumps(document, separators=(",", ":")).encode()
        if len(raw) + _HEAD.size > self._size:
            raise TableFull(f"{len(raw)} bytes: at most {self._size - _HEAD.size} expected")
        begin = 8 + (generation + 1) % 2 * self._size
        self._memory[begin + _HEAD.size : begin + _HEAD.size + len(raw)] = raw
        _HEAD.pack_into(self._memory, begin, len(raw), zlib.crc32(raw))
        self._count[0] = generation + 1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock, if it can be had now."""
        if self._lock < 0:
            yield True
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
