"""As much of WebSocket (RFC 6455) as an echo needs: the handshake's key, and whole frames of bytes. No I/O."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable

__all__ = ["BINARY", "CLOSE", "accept_key", "frame", "read_frame"]

#: Kinds of frames.
BINARY = 2
CLOSE = 8
#: What the handshake's answer is made with (section 1.3).
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: Bytes of a frame, at most.
LONGEST = 65535


def accept_key(key: str) -> str:
    """Return Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def masked(data: bytes, mask: bytes) -> bytes:
    """Mask, or take the mask off."""
    whole = mask * (len(data) // 4 + 1)
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole[: len(data)], "big")).to_bytes(len(data), "big")


def frame(kind: int, data: bytes, mask: bool) -> bytes:
    """Return a whole message in one frame; a client masks it, a server does not.

    Raises:
        ValueError: more than 65,535 bytes.
    """
    if len(data) > LONGEST:
        raise ValueError(f"{len(data)} bytes: at most {LONGEST} expected")
    long = len(data) > 125
    head = bytes([0x80 | kind, (0x80 if mask else 0) | (126 if long else len(data))])
    head += len(data).to_bytes(2, "big") if long else b""
    if not mask:
        return head + data
    key = os.urandom(4)
    return head + key + masked(data, key)


def read_frame(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Return kind and data of the next frame; ``read`` gives exactly so many bytes, or raises.

    Raises:
        ValueError: a frame that is not whole in itself, or too long.
    """
    first, second = read(2)
    length = second & 0x7F
    if first & 0xF0 != 0x80 or length == 127:
        raise ValueError(f"a frame that begins with {first:#x}, {second:#x}")
    if length == 126:
        length = int.from_bytes(read(2), "big")
    key = read(4) if second & 0x80 else b""
    data = read(length)
    return first & 0x0F, masked(data, key) if key else data
