"""Bytes of which nobody knows how many will come: in memory while they are few, then in a file without a name."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from typing import Any, BinaryIO

__all__ = ["IN_MEMORY", "Spool", "SpoolSlice"]

#: Up to so many bytes stay in memory.
IN_MEMORY = 262_144


class Spool:
    """Takes bytes, and gives them back as a file, or as slices of it. What is on disk is gone when it is closed."""

    __slots__ = ("_folder", "_in_memory", "file", "size")

    def __init__(self, in_memory: int = IN_MEMORY, folder: str | None = None) -> None:
        """``folder`` is where the file is; None: where the system has temporary ones."""
        self._in_memory = in_memory
        self._folder = folder
        #: Where they are, to be read and to be sought in.
        self.file: BinaryIO = io.BytesIO()
        #: How many there are.
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes behind those that are there.

        Raises:
            OSError: the disk is full, or there is no directory for temporary files.
        """
        self.size += len(data)
        if self.size > self._in_memory and type(self.file) is io.BytesIO:
            before = self.file.getvalue()
            self.file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # ``close`` closes it
            self.file.write(before)
        self.file.write(data)

    def read_at(self, offset: int, count: int) -> bytes:
        """Return bytes from a place on; fewer if there are no more."""
        if type(self.file) is io.BytesIO:
            with self.file.getbuffer() as view:
                return bytes(view[offset : offset + count])
        self.file.flush()
        return os.pread(self.file.fileno(), count, offset)

    def close(self) -> None:
        """Let go of them. Nothing is raised: what a full disk did not take is not needed any more."""
        with contextlib.suppress(OSError):
            self.file.close()

    def __del__(self) -> None:
        """What holds it was forgotten: by a program that did not close its form."""
        with contextlib.suppress(Exception):
            self.close()


class SpoolSlice(io.RawIOBase):
    """A part of what a spool has, as a file of its own."""

    def __init__(self, spool: Spool, offset: int, size: int) -> None:
        self._spool = spool
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Return where it is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; return how many bytes that was, 0 at the end."""
        data = self._spool.read_at(self._offset + self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
