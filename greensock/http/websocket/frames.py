"""Frames and messages of WebSocket (RFC 6455 sections 5 to 7) as bytes, without I/O.

What comes is checked as soon as it can be: the two bytes that a frame begins with before its length is known, its
length before its payload is waited for, UTF-8 with each frame of a text. What is held is bounded by one message and one
frame. A frame that the peer may not send is :class:`BadFrame`, with the code to close with.
"""

from __future__ import annotations

import codecs
import os
import zlib
from typing import Any

from greensock.http.websocket.deflate import Inflater, InflatesTooFar
from greensock.http.websocket.websocket_options import WebSocketOptions

__all__ = [
    "BINARY",
    "CLOSE",
    "COMPRESSED",
    "CONTINUATION",
    "FIN",
    "PING",
    "PONG",
    "TEXT",
    "BadFrame",
    "FrameReader",
    "close_payload",
    "masked",
    "write_frame",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
#: The bit of a message's last frame, and that of a compressed message's first one.
FIN, COMPRESSED = 0x80, 0x40
MASK = 0x80

# Codes of a close (section 7.4.1) that are sent here.
PROTOCOL_ERROR, BAD_DATA, TOO_LONG = 1002, 1007, 1009
#: Codes that may be in a frame: registered ones that are not just for programs, and those of libraries and programs.
CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
#: The close frame of a peer that says no code is told as this one.
NO_CODE = 1005
#: Bytes by which a frame may be longer for being compressed: one in 3,000 (zlib's ``deflateBound``), of 64 MiB.
PACKED_EXCESS = 1 << 15
#: The longest payload of a control frame.
MAX_CONTROL = 125

_number = int.from_bytes
_new_decoder = codecs.getincrementaldecoder("utf-8")


class BadFrame(Exception):
    """The peer sent what it may not; ``code`` is what to close with."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def masked(data: bytes, key: bytes) -> bytes:
    """Mask, or take the mask off (section 5.3): a whole number each, as nothing of C but that is at hand."""
    size = len(data)
    return (_number(data, "little") ^ _number((key * (size // 4 + 1))[:size], "little")).to_bytes(size, "little")


#: The heads of short frames that are not masked, by their first byte and their length.
_SHORT_HEADS = {
    first: [bytes([first, size]) for size in range(126)]
    for first in (FIN | TEXT, FIN | BINARY, FIN | CLOSE, FIN | PING, FIN | PONG)
}


def write_frame(first: int, payload: bytes, mask: bool) -> bytes:
    """Return a frame; ``first`` is its first byte. A client's is masked, with a key that nobody can foresee."""
    size = len(payload)
    if not mask:
        if size < 126 and first in _SHORT_HEADS:
            return _SHORT_HEADS[first][size] + payload
        return _head(first, size, 0) + payload
    key = os.urandom(4)
    return _head(first, size, MASK) + key + masked(payload, key)


def _head(first: int, size: int, mask: int) -> bytes:
    if size < 126:
        return bytes([first, mask | size])
    if size < 65536:
        return bytes([first, mask | 126]) + size.to_bytes(2, "big")
    return bytes([first, mask | 127]) + size.to_bytes(8, "big")


def close_payload(code: int, reason: str = "") -> bytes:
    """Return what a close frame holds.

    Raises:
        ValueError: a code that may not be sent, or a reason of more than 123 bytes.
    """
    if code not in CODES:
        raise ValueError(f"code={code!r}: 1000 to 1003, 1007 to 1014 or 3000 to 4999 expected")
    payload = code.to_bytes(2, "big") + reason.encode()
    if len(payload) > MAX_CONTROL:
        raise ValueError(f"reason: at most {MAX_CONTROL - 2} bytes expected, not {len(payload) - 2}")
    return payload


class FrameReader:
    """Reads the frames of one peer, and puts its messages together.

    At rest, between two frames and two messages, it holds nothing and may be forgotten.
    """

    __slots__ = (
        "_at",
        "_body",
        "_data",
        "_decoder",
        "_inflater",
        "_is_masked",
        "_is_packed",
        "_kind",
        "_need",
        "_options",
    )

    def __init__(self, options: WebSocketOptions, is_masked: bool, inflater: Inflater | None) -> None:
        """``is_masked`` is what its frames have to be; ``inflater`` says that they may be compressed."""
        self._options = options
        self._is_masked = is_masked
        self._inflater = inflater
        self._data: bytes | bytearray = b""
        self._at = 0
        self._need = 2
        self._kind = 0  # of a message of which a part came
        self._body = bytearray()
        self._decoder: Any = None
        self._is_packed = False

    @property
    def is_at_rest(self) -> bool:
        """Whether it holds nothing."""
        return not self._kind and self._at == len(self._data)

    @property
    def held(self) -> int:
        """How many bytes it holds."""
        return len(self._data) - self._at + len(self._body)

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if self._at == len(self._data):
            self._data = data
        else:
            if self._at or not isinstance(self._data, bytearray):
                self._data = bytearray(memoryview(self._data)[self._at :])
            self._data += data
        self._at = 0

    def next_event(self) -> tuple[int, Any] | None:
        """Return what kind of thing came next, and what: None if more is needed.

        TEXT with a ``str``, BINARY, PING and PONG with ``bytes``, CLOSE with code and reason; CONTINUATION with None
        where it was a part of a message, so that whoever reads can let others run between two of thousands.

        Raises:
            BadFrame: it may not come; nothing behind it counts.
        """
        if len(self._data) - self._at >= self._need:
            frame = self._next_frame()
            if frame is None:
                return None
            first, payload = frame
            kind = first & 0x0F
            if kind == CLOSE:
                return CLOSE, _close_of(payload)
            if kind >= CLOSE:
                return kind, payload
            return self._take(first, kind, payload)
        return None

    def _next_frame(self) -> tuple[int, bytes] | None:
        data, at = self._data, self._at
        first, second = data[at], data[at + 1]
        size = second & 0x7F
        self._check(first, second & MASK, size)
        head = 2
        if size > 125:
            head = 4 if size == 126 else 10
            if len(data) - at < head:
                self._need = head
                return None
            size = _number(data[at + 2 : at + head], "big")
            if size < 126 or (head == 10 and not 65536 <= size < 1 << 63):
                raise BadFrame(PROTOCOL_ERROR, "a length that is not written as it should be")
        if first & 0x0F < CLOSE:
            self._check_size(size, self._is_packed or bool(first & COMPRESSED))
        key_at = at + head
        head += 4 if self._is_masked else 0
        end = at + head + size
        if len(data) < end:
            self._need = head + size
            return None
        with memoryview(data) as view:
            payload = bytes(view[at + head : end])
            key = bytes(view[key_at : key_at + 4])
        if self._is_masked and size:
            payload = masked(payload, key)
        self._at, self._need = end, 2
        if end == len(data):
            self._data, self._at = b"", 0
        return first, payload

    def _check(self, first: int, mask: int, size: int) -> None:
        """Look at the first two bytes of a frame."""
        kind = first & 0x0F
        if bool(mask) is not self._is_masked:
            raise BadFrame(
                PROTOCOL_ERROR, "a frame that is not masked" if self._is_masked else "a frame that is masked"
            )
        if kind >= CLOSE:
            if kind > PONG or first & 0x70:
                raise BadFrame(PROTOCOL_ERROR, f"a frame that begins with {first:#x}")
            if not first & FIN or size > MAX_CONTROL:
                raise BadFrame(PROTOCOL_ERROR, "a control frame in parts, or of more than 125 bytes")
            return
        # The bit of a compressed message is in its first frame only (RFC 7692 section 6.1).
        if first & 0x30 or (first & COMPRESSED and (self._inflater is None or kind == CONTINUATION)):
            raise BadFrame(PROTOCOL_ERROR, f"a frame that begins with {first:#x}")
        if kind > BINARY:
            raise BadFrame(PROTOCOL_ERROR, f"a frame of the unknown kind {kind}")
        if (kind == CONTINUATION) is not bool(self._kind):
            raise BadFrame(PROTOCOL_ERROR, "a message within another" if kind else "the rest of no message")

    def _check_size(self, size: int, is_packed: bool) -> None:
        options = self._options
        # What does not get shorter gets a little longer (test_what_cannot_be_compressed_may_be_as_long).
        if size > options.longest_frame + (PACKED_EXCESS if is_packed and options.max_frame is None else 0):
            raise BadFrame(TOO_LONG, f"a frame of more than max_frame={options.longest_frame} bytes")
        if not is_packed and len(self._body) + size > options.max_message:
            raise self._too_long()

    def _too_long(self) -> BadFrame:
        return BadFrame(TOO_LONG, f"a message of more than max_message={self._options.max_message} bytes")

    def _take(self, first: int, kind: int, payload: bytes) -> tuple[int, Any]:
        """Add a frame to its message, and return that if it is whole."""
        if kind:
            self._kind = kind
            self._is_packed = bool(first & COMPRESSED)
        is_last = bool(first & FIN)
        if self._is_packed:
            payload = self._inflated(payload, is_last)
        try:
            if is_last and not self._body and self._decoder is None:
                message: Any = str(payload, "utf-8") if self._kind == TEXT else payload
            else:
                self._body += payload
                if self._kind == TEXT:
                    if self._decoder is None:
                        self._decoder = _new_decoder()
                    self._decoder.decode(payload, is_last)
                if not is_last:
                    return CONTINUATION, None
                message = str(self._body, "utf-8") if self._kind == TEXT else bytes(self._body)
        except UnicodeDecodeError as error:
            raise BadFrame(BAD_DATA, f"a text that is no UTF-8: {error.reason}") from None
        whole = self._kind, message
        self._kind, self._decoder, self._is_packed = 0, None, False
        if self._body:
            self._body = bytearray()
        return whole

    def _inflated(self, payload: bytes, is_last: bool) -> bytes:
        assert self._inflater is not None
        try:
            return self._inflater.inflate(payload, is_last, self._options.max_message - len(self._body))
        except InflatesTooFar:
            raise self._too_long() from None
        except zlib.error as error:
            raise BadFrame(BAD_DATA, f"a message that cannot be decompressed: {error}") from None


def _close_of(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a close frame."""
    if not payload:
        return NO_CODE, ""
    code = _number(payload[:2], "big")
    if len(payload) == 1 or code not in CODES:
        raise BadFrame(PROTOCOL_ERROR, "a close without a code that may be sent")
    try:
        return code, str(payload[2:], "utf-8")
    except UnicodeDecodeError as error:
        raise BadFrame(BAD_DATA, f"the reason of a close is no UTF-8: {error.reason}") from None
