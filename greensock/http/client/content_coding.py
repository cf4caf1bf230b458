"""Content codings undone: gzip, deflate, br and zstd, each piece by piece and bounded (RFC 9110 section 8.4.1).

A decoder never makes more than one piece of output at a time, whatever it was fed, so that a few bytes which stand for
gigabytes cost no memory; how much comes of all of them is bounded, too. No I/O. br needs the package ``brotli`` (1.2 or
newer: before that its output could not be bounded), zstd Python 3.14 or ``backports.zstd``: those that are not there
are not asked for.
"""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable
from typing import Any

__all__ = ["ContentDecoder", "Undecodable", "accepted_codings", "decoder_for"]

#: How much is made at once, in bytes.
PIECE = 1 << 16
#: How many bytes may have come between two codings while the last one gave nothing: each is smaller than what it is of,
#: but for a little. More is a bomb that ``max_bytes`` would not see, such as empty members without end.
BETWEEN = 1 << 20
#: How many codings may have been applied, one over the other.
MAX_CODINGS = 4
#: The largest window of zstd, as a power of two: 8 MiB (RFC 9659).
ZSTD_WINDOW = 23


class Undecodable(ValueError):
    """What came is not what its Content-Encoding says, or ended before its end."""


class _Stage:
    """Undoes one coding."""

    def __init__(self) -> None:
        self.held = b""  # input that was not yet taken

    def feed(self, data: bytes) -> None:
        """Take input."""
        self.held = self.held + data if self.held else data

    def read(self) -> bytes:
        """Return the next piece of output; ``b""``: more input is needed."""
        raise NotImplementedError

    def is_done(self) -> bool:
        """Whether the input may end here."""
        raise NotImplementedError


class _Zlib(_Stage):
    """gzip, of one or several members, and deflate, with zlib's frame or (as some send it) without."""

    def __init__(self, is_gzip: bool) -> None:
        super().__init__()
        self._is_gzip = is_gzip
        self._coder: Any = zlib.decompressobj(31) if is_gzip else None
        self._begun = False
        self._ended = False

    def read(self) -> bytes:
        while not self._ended:
            if self._coder is None:
                if len(self.held) < 2:
                    return b""
                framed = self.held[0] & 15 == 8 and int.from_bytes(self.held[:2], "big") % 31 == 0
                self._coder = zlib.decompressobj(zlib.MAX_WBITS if framed else -zlib.MAX_WBITS)
            self._begun = self._begun or bool(self.held)
            try:
                piece: bytes = self._coder.decompress(self.held, PIECE)
            except zlib.error as error:
                raise Undecodable(str(error)) from None
            self.held = self._coder.unconsumed_tail
            if self._coder.eof:
                self._end_member(self._coder.unused_data)
            if piece:
                return piece
            if not self.held:
                return b""
        self.held = b""  # what is behind the end means nothing
        return b""

    def _end_member(self, rest: bytes) -> None:
        if self._is_gzip and (not rest or rest.startswith(b"\x1f")):
            self._coder = zlib.decompressobj(31)
            self._begun = False
            self.held = rest
        else:
            self._ended = True
            self.held = b""

    def is_done(self) -> bool:
        return self._ended or not (self._begun or self.held)


class _Brotli(_Stage):
    def __init__(self) -> None:
        super().__init__()
        self._brotli: Any = importlib.import_module("brotli")
        self._coder = self._brotli.Decompressor()
        self._begun = False
        self._has_more = False  # more may come without more input

    def read(self) -> bytes:
        coder = self._coder
        while not coder.is_finished():
            data = b""
            if coder.can_accept_more_data():
                data, self.held = self.held, b""
            if not data and not self._has_more:
                return b""
            self._begun = True
            try:
                piece = bytes(coder.process(data, output_buffer_limit=PIECE))
            except self._brotli.error as error:
                raise Undecodable(str(error)) from None
            self._has_more = bool(piece)
            if piece:
                return piece
        self.held = b""
        return b""

    def is_done(self) -> bool:
        return not self._begun or bool(self._coder.is_finished())


class _Zstd(_Stage):
    """One frame, or several."""

    def __init__(self) -> None:
        super().__init__()
        self._zstd: Any = _zstd_module()
        self._options = {self._zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW}
        self._coder = self._zstd.ZstdDecompressor(options=self._options)
        self._begun = False

    def read(self) -> bytes:
        while True:
            coder = self._coder
            if coder.eof:
                self.held = coder.unused_data + self.held
                if not self.held:
                    return b""
                coder = self._coder = self._zstd.ZstdDecompressor(options=self._options)
                self._begun = False
            data, self.held = self.held, b""
            if not data and coder.needs_input:
                return b""
            self._begun = True
            try:
                piece = bytes(coder.decompress(data, PIECE))
            except self._zstd.ZstdError as error:
                raise Undecodable(str(error)) from None
            if piece:
                return piece

    def is_done(self) -> bool:
        return not self._begun or bool(self._coder.eof)


def _zstd_module() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


@functools.cache
def _stages() -> dict[bytes, Callable[[], _Stage]]:
    """Return how each coding is undone that can be here."""
    found: dict[bytes, Callable[[], _Stage]] = {
        b"gzip": functools.partial(_Zlib, True),
        b"x-gzip": functools.partial(_Zlib, True),
        b"deflate": functools.partial(_Zlib, False),
    }
    try:
        if hasattr(importlib.import_module("brotli").Decompressor, "can_accept_more_data"):
            found[b"br"] = _Brotli
    except ImportError:
        pass
    if _zstd_module() is not None:
        found[b"zstd"] = _Zstd
    return found


def accepted_codings() -> bytes:
    """Return what Accept-Encoding says: the codings that can be undone here."""
    return b", ".join(name for name in _stages() if name != b"x-gzip")


def decoder_for(codings: list[bytes], max_bytes: int | None) -> ContentDecoder | None:
    """Return what undoes the codings (in lower case, in the order in which they were applied).

    None: there are none, too many, or one that is not known: the body is to be taken as it is.
    """
    known = [name for name in codings if name != b"identity"]
    stages = _stages()
    if not known or len(known) > MAX_CODINGS or any(name not in stages for name in known):
        return None
    return ContentDecoder([stages[name]() for name in reversed(known)], max_bytes)


class ContentDecoder:
    """Undoes what codings did to a body."""

    def __init__(self, stages: list[_Stage], max_bytes: int | None) -> None:
        self._stages = stages
        #: How much may come out, in bytes; None: any number.
        self.max_bytes = max_bytes
        #: How many bytes came out.
        self.made = 0
        self._between = 0  # bytes that came of all but the last stage
        #: Whether the body was given out to its end, or given up.
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body as it came."""
        self._stages[0].feed(data)

    def read(self) -> bytes:
        """Return the next piece of the body as it was, of about 64 KiB; ``b""``: more is to be fed.

        Raises:
            Undecodable: it is not what was said.
            OverflowError: more came of it than ``max_bytes``, or of a coding below the last one than can be meant.
        """
        piece = self._read(len(self._stages) - 1)
        self.made += len(piece)
        if self.max_bytes is not None and self.made > self.max_bytes:
            raise OverflowError(f"a body that is longer than {self.max_bytes} bytes when it is decoded")
        return piece

    def _read(self, place: int) -> bytes:
        stage = self._stages[place]
        while True:
            piece = stage.read()
            if piece or not place:
                return piece
            more = self._read(place - 1)
            if not more:
                return b""
            self._between += len(more)
            if self._between > MAX_CODINGS * self.made + BETWEEN:
                raise OverflowError(f"a body of which {self._between} bytes came between its codings")
            stage.feed(more)

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Undecodable: it ended too early.
        """
        self.is_over = True
        if not all(stage.is_done() for stage in self._stages):
            raise Undecodable("it ended early")
