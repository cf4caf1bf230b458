"""Bytes of which nobody knows how many will come: in memory while they are few, then in a file without a name."""

from __future__ import annotations

import io
import tempfile
from typing import BinaryIO

__all__ = ["IN_MEMORY", "Spool"]

#: Up to so many bytes stay in memory, if nothing else is said.
IN_MEMORY = 262_144


class Spool:
    """Takes bytes, and gives them back as a file. Close it: what is on disk is gone then."""

    __slots__ = ("_in_memory", "file", "size")

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        #: Where they are, to be read and to be sought in.
        self.file: BinaryIO = io.BytesIO()
        #: How many there are.
        self.size = 0

    @property
    def is_in_memory(self) -> bool:
        """Whether none of it is on disk."""
        return type(self.file) is io.BytesIO

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes behind those that are there.

        Raises:
            OSError: the disk is full, or there is no directory for temporary files.
        """
        self.size += len(data)
        if self.size > self._in_memory and type(self.file) is io.BytesIO:
            before = self.file
            self.file = tempfile.TemporaryFile()  # noqa: SIM115  # ``close`` closes it
            self.file.write(before.getbuffer())
        self.file.write(data)

    def close(self) -> None:
        """Let go of them."""
        self.file.close()
