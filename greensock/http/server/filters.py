"""Filters: what changes the body of an answer on its way out, piece by piece, such as a compression."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Protocol

from greensock.http.server.response import FileBody, Response

__all__ = ["BodyFilter", "FilteredBody", "apply_filter", "pieces_of"]

#: How much of a file one piece is: a filter must see the bytes, so sendfile is of no use.
FILE_PIECE = 65536


class BodyFilter(Protocol):
    """Changes the body of one answer; made anew for each. It does not block."""

    def filter(self, piece: bytes) -> bytes:
        """Return what goes out for a piece; empty if more is needed before."""

    def finish(self) -> bytes:
        """Return what goes out behind the last piece."""


class FilteredBody:
    """A body that goes out through a filter: an iterable of pieces, closed as the body is."""

    __slots__ = ("_body", "_filter")

    def __init__(self, body: FileBody | Iterable[bytes], change: BodyFilter) -> None:
        self._body = body
        self._filter = change

    def __iter__(self) -> Iterator[bytes]:
        change = self._filter.filter
        for piece in pieces_of(self._body):
            if changed := change(piece):
                yield changed
        if rest := self._filter.finish():
            yield rest

    def close(self) -> None:
        """Close what is filtered."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def pieces_of(body: FileBody | Iterable[bytes]) -> Iterator[bytes]:
    """Go through a body that is not in memory, a file too.

    Raises:
        OSError: the file has shrunk.
    """
    if not isinstance(body, FileBody):
        yield from body
        return
    offset, end = body.offset, body.offset + body.count
    while offset < end:
        piece = os.pread(body.file.fileno(), min(FILE_PIECE, end - offset), offset)
        if not piece:
            raise OSError(f"{body.file!r} has shrunk since its answer was made")
        offset += len(piece)
        yield piece


def apply_filter(response: Response, change: BodyFilter) -> None:
    """Have the body of an answer go out through a filter. Its length is known only if it is in memory."""
    body = response.body
    response.headers.remove(b"Content-Length")
    response.headers.remove(b"Accept-Ranges")  # ranges of what is sent are no ranges of what was made
    response.body = change.filter(body) + change.finish() if isinstance(body, bytes) else FilteredBody(body, change)
