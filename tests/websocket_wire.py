"""Frames of WebSocket as a client writes them, right and wrong, and what greensock's reader says of them."""

from __future__ import annotations

import base64

from greensock.http import WebSocketOptions
from greensock.http.websocket.deflate import Inflater
from greensock.http.websocket.frames import CONTINUATION, BadFrame, FrameReader, masked

#: A request for a WebSocket at ``/echo``.
UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % base64.b64encode(bytes(16))
)
LIMITS = WebSocketOptions(max_message=80_000, max_frame=78_000)
#: Without the compression, and with it.
PLAIN, PACKED = False, True
KEY = b"\x01\x80\xfe\x7f"


def frame(first: int, payload: bytes = b"", length: bytes | None = None, mask: bool = True) -> bytes:
    """Return a frame as it is asked for, be it right or wrong; ``length`` is written as it stands."""
    size = len(payload)
    if length is None:
        if size < 126:
            length = bytes([size])
        elif size < 65536:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
    if not mask:
        return bytes([first]) + length + payload
    return bytes([first, length[0] | 0x80]) + length[1:] + KEY + masked(payload, KEY)


def reading(pieces, packed=PLAIN, options=LIMITS, is_masked=True, on=False):
    """Return what a reader says of the pieces: events, the code of the refusal, and whether it is at rest."""
    reader = FrameReader(options, is_masked, Inflater(on=on) if packed else None)
    found = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (event := reader.next_event()) is not None:
                if event != (CONTINUATION, None):
                    found.append(event)
    except BadFrame as bad:
        return found, bad.code, False
    return found, None, reader.is_at_rest
