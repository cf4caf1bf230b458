"""permessage-deflate (RFC 7692): what is agreed on, and both ways of it, with a bound.

Without context takeover, the default, a WebSocket holds nothing for it: one compressor serves all (a full flush behind
each message has zlib forget what it saw, so that no message refers to another's), and a decompressor lives as long as
one message. A message that grows beyond its bound is refused before it is held (``Inflater.inflate``).
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any

from gevent.monkey import get_original

from greensock.http.wire.syntax import TOKEN

__all__ = [
    "Agreement",
    "Deflater",
    "Inflater",
    "InflatesTooFar",
    "accept_offer",
    "agreement_of",
    "offer_of",
    "shared_deflater",
]

NAME = b"permessage-deflate"
#: What ends each message, and is left out (section 7.2.1).
TAIL = b"\x00\x00\xff\xff"
#: How hard it tries: 6 is zlib's, and 1 halves its time.
LEVEL = 3
#: Offers of extensions that are looked at.
MAX_OFFERS = 16

_parameter = re.compile(rb'[ \t]*(%b)[ \t]*(?:=[ \t]*(?:(%b)|"(%b)")[ \t]*)?' % (TOKEN, TOKEN, TOKEN)).fullmatch
_bits = re.compile(rb"(?:8|9|1[0-5])").fullmatch


class InflatesTooFar(Exception):
    """A message is longer than its bound when it is decompressed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """What was agreed on: for what this side sends, and for what it receives."""

    #: Whether messages that are sent may refer to earlier ones.
    sends_on: bool
    #: Whether those that come do.
    receives_on: bool
    #: How far back what is sent may refer, as a power of 2.
    send_bits: int = 15
    #: The same for what comes.
    receive_bits: int = 15


def accept_offer(field: bytes | None, takeover: bool, bits: int) -> tuple[Agreement, bytes] | None:
    """Return what a server agrees to of a client's offers, and the line that says so; None: to none of them."""
    for offer in _extensions(field):
        if offer is None or offer[0] != NAME:
            continue
        given = offer[1]
        if given.keys() - _VALUES.keys() or not all(_VALUES[name](value) for name, value in given.items()):
            continue
        answer = NAME
        sends_on = takeover and b"server_no_context_takeover" not in given
        receives_on = takeover and b"client_no_context_takeover" not in given
        answer += b"" if sends_on else b"; server_no_context_takeover"
        answer += b"" if receives_on else b"; client_no_context_takeover"
        send_bits = min(int(given.get(b"server_max_window_bits") or 15), bits)
        if send_bits < 9:
            continue  # zlib cannot
        if send_bits < 15 and b"server_max_window_bits" in given:
            answer += b"; server_max_window_bits=%d" % send_bits
        receive_bits = 15
        if b"client_max_window_bits" in given and receives_on:
            receive_bits = max(9, min(int(given[b"client_max_window_bits"] or 15), bits))
            if receive_bits < 15:
                answer += b"; client_max_window_bits=%d" % receive_bits
        return Agreement(sends_on, receives_on, send_bits, receive_bits), answer
    return None


def offer_of(takeover: bool) -> bytes:
    """Return a client's offer."""
    if takeover:
        return NAME + b"; client_max_window_bits"
    return NAME + b"; server_no_context_takeover; client_no_context_takeover"


def agreement_of(field: bytes | None, takeover: bool, bits: int) -> Agreement | None:
    """Return what a server agreed to; None: to nothing.

    Raises:
        ValueError: it agreed to what was not offered.
    """
    said = list(_extensions(field))
    if not said:
        return None
    if len(said) > 1 or said[0] is None or said[0][0] != NAME:
        raise ValueError(f"the server chose extensions that were not offered: {field!r}")
    given = said[0][1]
    allowed = {name: value for name, value in _VALUES.items() if takeover or name != b"client_max_window_bits"}
    for name, value in given.items():
        if name not in allowed or not allowed[name](value) or (name.endswith(b"_bits") and value is None):
            raise ValueError(f"the server agreed to {name.decode()}={value!r}, which was not offered")
    receives_on = b"server_no_context_takeover" not in given
    if receives_on and not takeover:
        raise ValueError("the server did not agree to server_no_context_takeover")
    sends_on = takeover and b"client_no_context_takeover" not in given
    send_bits = min(int(given.get(b"client_max_window_bits") or 15), bits)
    if send_bits < 9:
        raise ValueError("client_max_window_bits=8: 9 to 15 expected")
    return Agreement(sends_on, receives_on, send_bits, int(given.get(b"server_max_window_bits") or 15))


def _is_flag(value: bytes | None) -> bool:
    return value is None


def _is_bits(value: bytes | None) -> bool:
    return value is not None and _bits(value) is not None


def _may_be_bits(value: bytes | None) -> bool:
    return value is None or _is_bits(value)


#: The parameters, and what each may be (section 7.1).
_VALUES: dict[bytes, Callable[[bytes | None], bool]] = {
    b"server_no_context_takeover": _is_flag,
    b"client_no_context_takeover": _is_flag,
    b"server_max_window_bits": _is_bits,
    b"client_max_window_bits": _may_be_bits,
}


def _extensions(field: bytes | None) -> list[tuple[bytes, dict[bytes, bytes | None]] | None]:
    """Take a Sec-WebSocket-Extensions apart; None in the place of what is malformed, or says something twice."""
    found: list[tuple[bytes, dict[bytes, bytes | None]] | None] = []
    for each in (field or b"").split(b",")[:MAX_OFFERS]:
        if not each.strip():
            continue
        name, *parameters = each.split(b";")
        given: dict[bytes, bytes | None] = {}
        for parameter in parameters:
            match = _parameter(parameter)
            if match is None or match.group(1) in given:
                given = {b"": None}
                break
            given[match.group(1)] = match.group(2) or match.group(3)
        found.append(None if b"" in given else (name.strip(b" \t"), given))
    return found


class Deflater:
    """Compresses messages: each by itself, or, ``on``, each with those before it."""

    __slots__ = ("_compressor", "_flush")

    def __init__(self, bits: int, on: bool) -> None:
        self._compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -bits)
        self._flush = zlib.Z_SYNC_FLUSH if on else zlib.Z_FULL_FLUSH

    def deflate(self, data: bytes) -> bytes:
        """Return a message, which is not empty, compressed. It does not switch to another greenlet."""
        made = self._compressor.compress(data) + self._compressor.flush(self._flush)
        return made.removesuffix(TAIL)


def shared_deflater(bits: int) -> Deflater:
    """Return the compressor of this thread for all messages that refer to no others."""
    found: dict[int, Deflater] | None = getattr(_of_this_thread, "deflaters", None)
    if found is None:
        found = _of_this_thread.deflaters = {}
    if bits not in found:
        found[bits] = Deflater(bits, on=False)
    return found[bits]


# zlib lets other threads run within a call, so that two of them must not share one; the greenlets of one may.
_of_this_thread = get_original("_thread", "_local")()


class Inflater:
    """Decompresses messages, frame by frame."""

    __slots__ = ("_bits", "_decompressor", "_on")

    def __init__(self, bits: int = 15, on: bool = False) -> None:
        self._bits = bits
        self._on = on
        self._decompressor: Any = None

    def inflate(self, data: bytes, is_last: bool, room: int) -> bytes:
        """Return what the payload of a frame comes to, at most ``room`` bytes.

        Raises:
            InflatesTooFar: it is more than that. No more than a byte beyond was made.
            zlib.error: it is not what deflate makes.
        """
        if self._decompressor is None:
            self._decompressor = zlib.decompressobj(-self._bits)
        made = self._some(data, room)
        if is_last:
            made += self._some(TAIL, room - len(made))
            # A last block ends the stream, and the next message begins another (section 7.2.3.4).
            if not self._on or self._decompressor.eof:
                self._decompressor = None
        return made

    def _some(self, data: bytes, room: int) -> bytes:
        decompressor = self._decompressor
        if decompressor.eof:
            if data == TAIL or not data:
                return b""
            raise zlib.error("bytes behind the last block")
        made: bytes = decompressor.decompress(data, room + 1)
        if len(made) > room or decompressor.unconsumed_tail:
            raise InflatesTooFar
        if decompressor.unused_data not in (b"", b"\x00", TAIL):  # a last block is filled up with a zero byte
            raise zlib.error("bytes behind the last block")
        return made
