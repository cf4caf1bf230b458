"""What a WSGI application is given: the keys of its environ, ``wsgi.input`` and ``wsgi.file_wrapper``."""

from __future__ import annotations

import functools
import io
import os
import stat
from collections.abc import Iterator
from typing import Any

from greensock.http.errors import BadRequest
from greensock.http.server.request import RequestBody
from greensock.http.server.spool import Spool

__all__ = ["BodyInput", "FileWrapper", "InputError", "RawInput", "environ_key", "plain_file"]

#: Bytes that are read in one go where nobody says how many.
BLOCK = 65536
#: Bytes of a read that goes past the buffer, at the least.
LONG = 16384


@functools.lru_cache(maxsize=1024)  # clients send the same few names
def environ_key(name: bytes) -> str | None:
    """Return the key that a field of a request has in the environ; None if it is left out.

    A name with ``_`` would have the key of one with ``-`` that a proxy in front has checked.
    """
    if b"_" in name:
        return None
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


class FileWrapper:
    """``wsgi.file_wrapper``: a file as an answer. A plain file is sent from its position on by sendfile.

    Werkzeug answers a range by seeking, if it can, and by reading what comes before if not.
    """

    def __init__(self, filelike: Any, block_size: int = BLOCK) -> None:
        self.filelike = filelike
        self.block_size = block_size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def seekable(self) -> bool:
        """Whether the file can seek."""
        return hasattr(self.filelike, "seekable") and bool(self.filelike.seekable())

    def seek(self, *position: int) -> None:
        """Move in the file."""
        self.filelike.seek(*position)

    def tell(self) -> int:
        """Return where in the file it is."""
        return int(self.filelike.tell())

    def close(self) -> None:
        """Close the file, if it can be."""
        close = getattr(self.filelike, "close", None)
        if close is not None:
            close()


class InputError(OSError):
    """What frameworks expect of a body that cannot be read."""

    def __init__(self, refusal: BadRequest) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class RawInput(io.RawIOBase):
    """``wsgi.input`` without its buffer."""

    #: What was read before the application was called; None: it reads as it comes.
    spool: Spool | None = None

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        #: Whether the client sent what is no body: nothing can follow it on this connection.
        self.is_broken = False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what is there; return how many bytes that was, 0 at the end."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return all of it; how much that may be is ``Limits.max_body``."""
        return b"".join(iter(functools.partial(self._read, BLOCK), b""))

    def read_first(self, most: int, folder: str | None = None) -> Spool:
        """Read all of it now; return it, to be read as a file. ``folder`` is where it is if it does not fit memory.

        Raises:
            BadRequest: it is longer than ``most`` bytes (status 413), or cannot be read.
        """
        body = self._body
        self.spool = spool = Spool(folder=folder)
        while piece := body.next_piece():
            if spool.size + len(piece) > most:
                raise body.too_long(most)
            spool.write(piece)
        spool.file.seek(0)
        return spool

    def read_past_buffer(self, size: int) -> bytes:
        """Return so many bytes, less at the end only; one piece that has them all is not copied."""
        body, pieces, left = self._body, [], size
        try:
            while left:
                body.most = min(left, BLOCK) if left >= LONG else None  # so that the next piece, too, is all of a read
                piece = self._read(left)
                if not piece:
                    break
                pieces.append(piece)
                left -= len(piece)
        finally:
            body.most = None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, most: int) -> bytes:
        try:
            return self._body.read(most)
        except BadRequest as refusal:
            self.is_broken = True
            raise InputError(refusal) from refusal


class BodyInput(io.BufferedIOBase):
    """``wsgi.input`` of a body that is read as it comes.

    Long reads take what came as it is: a buffer in between would copy all of it. With the first other call there is
    one, through which all goes from then on.
    """

    def __init__(self, raw: RawInput) -> None:
        self._raw = raw
        self._buffered: io.BufferedReader | None = None

    def _with_buffer(self) -> io.BufferedReader:
        if self._buffered is None:
            self._buffered = io.BufferedReader(self._raw)
        return self._buffered

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, less at the end only; without a size, all of it."""
        if self._buffered is None:
            if size is None or size < 0:
                return self._raw.readall()
            if size >= LONG:
                return self._raw.read_past_buffer(size)
        return self._with_buffer().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        """Return what is there, at most so many bytes."""
        return self._with_buffer().read1(size)

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer; return how many bytes that were."""
        return self._with_buffer().readinto(buffer)

    def readinto1(self, buffer: Any, /) -> int:
        """Fill the buffer with what is there; return how many bytes that were."""
        return self._with_buffer().readinto1(buffer)

    def peek(self, size: int = 0, /) -> bytes:
        """Return what comes next, and leave it there."""
        return self._with_buffer().peek(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return a line, or so much of it."""
        return self._with_buffer().readline(size)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """Return the lines that are left, or so many as have that many bytes together."""
        return self._with_buffer().readlines(-1 if hint is None else hint)

    def __next__(self) -> bytes:
        return next(self._with_buffer())


def plain_file(file: Any) -> tuple[int, int, int] | None:
    """Return descriptor, position and bytes to its end of a file on disk; None if it is another or seems empty."""
    buffered = type(file) in (io.BufferedReader, io.BufferedRandom)
    raw: Any = file.raw if buffered else file
    if type(raw) is not io.FileIO:
        return None  # a decompressing reader has a descriptor too, of other bytes
    # What a BufferedRandom has not written yet is in front of its position, and not sent.
    found = os.fstat(raw.fileno())
    offset = file.tell() if stat.S_ISREG(found.st_mode) else 0
    rest = found.st_size - offset
    return (raw.fileno(), offset, rest) if stat.S_ISREG(found.st_mode) and rest > 0 else None
