"""Bodies: how much of the input belongs to a message, and its data without the framing (RFC 9112 sections 6.3 and 7.1).

The chunked coding is decoded here and not by httptools, which would have to be given bounded lines (so that they would
be found here anyway) and copies every piece.
"""

from __future__ import annotations

import enum
import re

from greensock.http.errors import BadMessage, Reason
from greensock.http.wire.events import NEED_DATA, Data, EndOfMessage, Signal
from greensock.http.wire.headers import Headers
from greensock.http.wire.inbox import Inbox
from greensock.http.wire.limits import Limits
from greensock.http.wire.lines import early_refusal, end_of_section, lex_trailers
from greensock.http.wire.syntax import TOKEN

__all__ = ["BodyReader", "ChunkedReader", "LengthReader", "UntilCloseReader"]

#: Hexadecimal digits of a chunk size: as many as 64 bits have.
MAX_SIZE_DIGITS = 16
#: Short chunks that are there already make one event, so many of them (for 0.7 us each) or so many bytes at the most.
MAX_JOINED, MAX_JOINED_BYTES = 256, 16384

#: Trailers that would change where the message ends or where it goes.
FORBIDDEN_TRAILERS = frozenset({b"content-length", b"host", b"transfer-encoding"})

_size = re.compile(rb"[0-9A-Fa-f]{1,%d}(?![0-9A-Fa-f])" % MAX_SIZE_DIGITS).match
#: Between the data of two short chunks. A last chunk, extensions and whatever is wrong are read step by step.
_between = re.compile(rb"\r\n([1-9A-Fa-f][0-9A-Fa-f]{0,2})\r\n").match
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
#: No white space before the first ``;``, though the grammar has it: recipients differ on what follows the size.
_EXTENSION = rb";[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?(?:[ \t]+(?=;))?" % (TOKEN, TOKEN, _QUOTED)
_extensions = re.compile(rb"(?:%b)+" % _EXTENSION).fullmatch


class BodyReader:
    """Reads one body."""

    __slots__ = ()

    def read(self, inbox: Inbox) -> Data | EndOfMessage | Signal:
        """Return the next event of the body, ``NEED_DATA`` when the input holds no more of it.

        Raises:
            BadMessage: the framing is broken, or a limit was crossed.
        """
        raise NotImplementedError


class LengthReader(BodyReader):
    """A body of so many bytes."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        #: Bytes that are still to come.
        self.left = length

    def skip(self, count: int) -> None:
        """Count bytes that went elsewhere."""
        self.left -= count

    def read(self, inbox: Inbox) -> Data | EndOfMessage | Signal:
        if not self.left:
            return EndOfMessage()
        data = inbox.take(self.left)
        if not data:
            return NEED_DATA
        self.left -= len(data)
        return Data(data)


class UntilCloseReader(BodyReader):
    """A body that ends with the input."""

    __slots__ = ("_most", "_total")

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._total = 0

    def read(self, inbox: Inbox) -> Data | EndOfMessage | Signal:
        pending = inbox.pending
        if self._most is not None and pending > self._most - self._total:
            pending = self._most - self._total
            if not pending:
                raise BadMessage(f"a body of more than max_body={self._most} bytes", Reason.BODY_TOO_LARGE)
        if not pending:
            return EndOfMessage() if inbox.ended else NEED_DATA
        self._total += pending
        return Data(inbox.take(pending))


class _Step(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILERS = enum.auto()
    DONE = enum.auto()


# A member looked up in its class costs three times as much as a global.
_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = _Step


class ChunkedReader(BodyReader):
    """A body in chunks, and its trailers.

    ::

        SIZE --> DATA --> DATA_END --> SIZE ...
          `----> TRAILERS --> DONE
    """

    __slots__ = ("_excess", "_left", "_limits", "_step", "_total", "_trailers")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._step = _SIZE
        self._left = 0  # bytes of this chunk
        self._total = 0  # bytes of the chunks until now, this one included
        self._excess = 0  # by which extensions outweigh data until now
        self._trailers: Headers | None = None

    def read(self, inbox: Inbox) -> Data | EndOfMessage | Signal:
        while True:
            step = self._step
            if step is _DATA:
                data = inbox.take(self._left)
                if not data:
                    return NEED_DATA
                self._left -= len(data)
                if not self._left:
                    self._step = _DATA_END
                    if type(data) is bytes and (between := _between(inbox.data, inbox.start)) is not None:
                        data = self._join(inbox, data, between)
                return Data(data)
            if step is _SIZE:
                advanced = self._read_size(inbox)
            elif step is _DATA_END:
                advanced = self._read_data_end(inbox)
            elif step is _TRAILERS:
                advanced = self._read_trailers(inbox)
            else:
                return EndOfMessage(self._trailers)
            if not advanced:
                return NEED_DATA

    def _join(self, inbox: Inbox, first: bytes, between: re.Match[bytes] | None) -> bytes:
        """Return the data of a chunk that ended, and of the short ones behind it that are there whole."""
        data, most = inbox.data, self._limits.max_body
        total = self._total
        left = MAX_JOINED_BYTES if most is None else min(MAX_JOINED_BYTES, most - total)
        if self._excess:
            return first
        pieces = [first]
        while between is not None and len(pieces) < MAX_JOINED:
            size, start = int(between[1], 16), between.end()
            end = start + size
            if size > left or end > len(data):
                break
            pieces.append(data[start:end])
            left -= size
            total += size
            inbox.start = end
            between = _between(data, end)
        self._total = total
        return b"".join(pieces)

    def _read_size(self, inbox: Inbox) -> bool:
        limits, data, start = self._limits, inbox.data, inbox.start
        most = MAX_SIZE_DIGITS + limits.max_chunk_extension
        end = data.find(b"\r\n", start, start + most + 2)
        if end < 0 and len(data) < start + most + 2:
            return False
        match = _size(data, start, end if end >= 0 else start + most + 2)
        if match is None:
            line = data[start:end] if end >= 0 else data[start : start + most]
            raise BadMessage(f"a chunk's size is {line[:40]!r}", Reason.CHUNK_SIZE)
        if match.end() != end:
            self._check_extensions(data[match.end() : end] if end >= 0 else None)
        size = int(match.group(), 16)
        self._count(size)
        inbox.start = end + 2
        self._left = size
        self._step = _DATA if size else _TRAILERS
        return True

    def _check_extensions(self, extensions: bytes | None) -> None:
        """Check what stands between the size and CRLF; None if that is too long."""
        limits = self._limits
        if extensions is None or len(extensions) > limits.max_chunk_extension:
            raise BadMessage(
                f"chunk extensions of more than max_chunk_extension={limits.max_chunk_extension} bytes",
                Reason.CHUNK_EXTENSIONS_TOO_LARGE,
            )
        if not _extensions(extensions):
            at_fault = Reason.CHUNK_EXTENSION if extensions.startswith(b";") else Reason.CHUNK_SIZE
            raise BadMessage(f"a chunk's size is followed by {extensions[:40]!r}", at_fault)
        self._excess += len(extensions)

    def _count(self, size: int) -> None:
        limits = self._limits
        self._total += size
        if limits.max_body is not None and self._total > limits.max_body:
            raise BadMessage(f"a body of more than max_body={limits.max_body} bytes", Reason.BODY_TOO_LARGE)
        if self._excess:
            self._excess = max(0, self._excess - size)
            if self._excess > limits.max_chunk_excess:
                raise BadMessage(
                    f"chunk extensions outweigh the data by more than max_chunk_excess={limits.max_chunk_excess} bytes",
                    Reason.CHUNK_EXTENSIONS_TOO_LARGE,
                )

    def _read_data_end(self, inbox: Inbox) -> bool:
        start = inbox.start
        found = inbox.data[start : start + 2]
        if found == b"\r\n":
            inbox.start = start + 2
            self._step = _SIZE
            return True
        if found and found != b"\r":
            raise BadMessage("a chunk's data are not followed by CRLF", Reason.CHUNK_END)
        return False

    def _read_trailers(self, inbox: Inbox) -> bool:
        data, start = inbox.data, inbox.start
        if data.startswith(b"\r\n", start):
            inbox.start = start + 2
            self._step = _DONE
            return True
        most = self._limits.max_trailers
        end = end_of_section(inbox)
        if end < 0:
            refusal = early_refusal(inbox, len(data), most, Reason.TRAILERS_TOO_LARGE)
            if refusal is not None and data[start:] != b"\r":
                raise refusal
            inbox.scanned = len(data) - start
            return False
        if end - start > most:
            refusal = early_refusal(inbox, end, most, Reason.TRAILERS_TOO_LARGE)
            raise refusal or BadMessage("large trailers", Reason.TRAILERS_TOO_LARGE)
        self._trailers = self._checked_trailers(inbox, end)
        inbox.start, inbox.scanned = end, 0
        self._step = _DONE
        return True

    def _checked_trailers(self, inbox: Inbox, end: int) -> Headers:
        try:
            fields = lex_trailers(inbox.data[inbox.start : end])
        except BadMessage as refusal:
            raise early_refusal(inbox, end, end - inbox.start, Reason.TRAILERS_TOO_LARGE) or refusal from None
        if len(fields) > self._limits.max_fields:
            raise BadMessage(f"more than max_fields={self._limits.max_fields} trailers", Reason.TOO_MANY_FIELDS)
        for name, _ in fields:
            if name.lower() in FORBIDDEN_TRAILERS:
                raise BadMessage(f"{name.decode()} among the trailers", Reason.FORBIDDEN_TRAILER)
        return Headers.of_raw(fields)
