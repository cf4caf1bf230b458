"""What a client sends behind the head: the kinds of bodies, and whether they can be sent twice."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from greensock.http.server.response import FileBody, is_plain
from greensock.http.wire.body_length import declared_length
from greensock.http.wire.headers import Headers

__all__ = ["NOTHING", "Body", "Payload", "Segment", "let_go", "payload_in_memory", "payload_in_pieces", "payload_of"]

#: How long a piece of bytes or of a file is at the most: ``Timeouts.send`` is for each.
PIECE = 1 << 18

#: What may be given as a body.
Body = bytes | bytearray | memoryview | str | FileBody | BinaryIO | Iterable[bytes] | None


class Segment(NamedTuple):
    """A part of a file."""

    #: The file, which is open.
    file: BinaryIO
    #: Where it begins.
    offset: int
    #: How many bytes it has.
    size: int


class Payload:
    """No body; the base of the others."""

    __slots__ = ()

    #: All of it, if it is in memory.
    data = b""
    #: Whether it can be sent again from its beginning.
    is_replayable = True

    @property
    def length(self) -> int | None:
        """How many bytes it has; None if only its end will tell: then it goes out in chunks."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes | memoryview | Segment]:
        """Go through it; no piece is empty."""
        view = memoryview(self.data)
        return (view[start : start + PIECE] for start in range(0, len(view), PIECE))

    def close(self) -> None:
        """Let go of it, sent or not."""


class _Bytes(Payload):
    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _FilePayload(Payload):
    """A file of which we know where it begins and ends; sent by sendfile."""

    __slots__ = ("_body", "_owned")

    def __init__(self, body: FileBody, owned: bool) -> None:
        self._body = body
        self._owned = owned

    @property
    def length(self) -> int:
        return self._body.count

    def pieces(self) -> Iterator[bytes | memoryview | Segment]:
        body = self._body
        end = body.offset + body.count
        for start in range(body.offset, end, PIECE):
            yield Segment(body.file, start, min(PIECE, end - start))

    def close(self) -> None:
        if self._owned:
            self._body.close()


class _Pieces(Payload):
    """What an iterable gives, once."""

    __slots__ = ("_iterable", "_length", "_owned")

    is_replayable = False

    def __init__(self, iterable: Iterable[bytes], length: int | None, owned: bool) -> None:
        self._iterable = iterable
        self._length = length
        self._owned = owned

    @property
    def length(self) -> int | None:
        return self._length

    def pieces(self) -> Iterator[bytes | memoryview | Segment]:
        length, sent = self._length, 0
        for piece in self._iterable:
            if not isinstance(piece, bytes | bytearray):
                raise TypeError(f"a body of {type(piece).__name__}: an iterable of bytes expected")
            sent += len(piece)
            if length is not None and sent > length:
                raise ValueError(f"the body is longer than its Content-Length, {length}")
            if piece:
                yield bytes(piece)
        if length is not None and sent < length:
            raise ValueError(f"the body has {sent} bytes, its Content-Length says {length}")

    def close(self) -> None:
        close = getattr(self._iterable, "close", None)
        if self._owned and close is not None:
            close()


#: What is sent behind a head without a body.
NOTHING = Payload()


def payload_in_pieces(pieces: Iterable[bytes], length: int | None) -> Payload:
    """Return what a gateway passes on as it comes, ``length`` bytes if that is known; it is not closed afterwards."""
    return _Pieces(pieces, length, owned=False)


def payload_in_memory(data: bytes) -> Payload:
    """Return a payload that is there."""
    return _Bytes(data)


def payload_of(body: Body, headers: Headers) -> Payload:
    """Return what is to be sent; of ``headers`` a Content-Length is looked at if the body does not know its own.

    Raises:
        TypeError: a body of another kind.
        ValueError: a Content-Length that is none, or that is not the body's.
    """
    if body is None:
        return NOTHING
    declared = declared_length(headers)
    payload = _payload_of(body, declared)
    if declared is not None and payload.length != declared:
        raise ValueError(f"Content-Length: {declared}: the body has {payload.length} bytes")
    return payload


def let_go(body: Body) -> None:
    """Close what was to be a body and became none, unless it is its owner's to close."""
    if isinstance(body, FileBody) or not hasattr(body, "read"):
        close = getattr(body, "close", None)
        if close is not None:
            close()


def _payload_of(body: Any, declared: int | None) -> Payload:
    if isinstance(body, str):
        return _Bytes(body.encode())
    if isinstance(body, bytes | bytearray | memoryview):
        return _Bytes(bytes(body))
    if isinstance(body, FileBody):
        return _FilePayload(body, owned=True)
    if hasattr(body, "read"):
        if _is_regular(body):
            return _FilePayload(FileBody(body, body.tell()), owned=False)
        return _Pieces(iter(lambda: body.read(65536), b""), declared, owned=False)
    if hasattr(body, "__iter__"):
        return _Pieces(body, declared, owned=True)
    raise TypeError(f"body={type(body).__name__}: bytes, str, a binary file or an iterable of bytes expected")


def _is_regular(file: Any) -> bool:
    try:
        return is_plain(file) and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (AttributeError, io.UnsupportedOperation):
        return False
