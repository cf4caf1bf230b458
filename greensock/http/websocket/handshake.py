"""What a client asks to begin a WebSocket, and what a server answers (RFC 6455 section 4), without I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable

from greensock.http.wire.events import RequestHead, ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.syntax import is_token

__all__ = [
    "VERSION",
    "BadHandshake",
    "accept_key",
    "asks_for_websocket",
    "check_answer",
    "check_request",
    "offered_subprotocols",
    "request_fields",
]

#: The one version there is.
VERSION = "13"
#: What the answer to a key is made with (section 1.3).
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: The bytes of a key.
KEY_BYTES = 16


class BadHandshake(Exception):
    """A request that cannot begin a WebSocket; ``status`` is what to answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def accept_key(key: bytes) -> bytes:
    """Return Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key + GUID).digest())


def asks_for_websocket(head: RequestHead) -> bool:
    """Whether a request asks for a WebSocket, be that right in every respect or not."""
    return head.method == "GET" and b"websocket" in head.upgrade


def check_request(head: RequestHead, origins: Collection[str] | None) -> bytes:
    """Return the key of a request that asks for a WebSocket.

    Raises:
        BadHandshake: it does not, or not as it should; or its Origin is none of ``origins``.
    """
    headers = head.headers
    if not asks_for_websocket(head):
        raise BadHandshake(426, "a WebSocket expected: Connection: Upgrade, Upgrade: websocket")
    if head.has_body:
        raise BadHandshake(400, "a request for a WebSocket with a body")
    if headers.get("sec-websocket-version") != VERSION:
        raise BadHandshake(426, f"Sec-WebSocket-Version: {VERSION} expected")
    keys = headers.all_raw(b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise BadHandshake(400, "Sec-WebSocket-Key: 16 bytes in base64 expected")
    origin = headers.get("origin")
    if origins is not None and origin is not None and origin not in origins:
        raise BadHandshake(403, f"a WebSocket from {origin[:200]!r} is not allowed")
    return keys[0]


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == KEY_BYTES
    except binascii.Error:
        return False


def offered_subprotocols(headers: Headers) -> list[str]:
    """Return what a client offers, the best first; in the spelling it has there."""
    said = headers.get("sec-websocket-protocol") or ""
    return [each for part in said.split(",") if is_token((each := part.strip(" \t")).encode("latin-1"))]


def request_fields(key: bytes, subprotocols: Iterable[str], extensions: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields with which a client asks, but for Upgrade.

    Raises:
        ValueError: a subprotocol that is no token.
    """
    offered = [name.encode("latin-1", "replace") for name in subprotocols]
    for name in offered:
        if not is_token(name):
            raise ValueError(f"subprotocol {name!r}: a token expected (letters, digits, hyphens)")
    fields = [(b"Sec-WebSocket-Version", VERSION.encode()), (b"Sec-WebSocket-Key", key)]
    if offered:
        fields.append((b"Sec-WebSocket-Protocol", b", ".join(offered)))
    if extensions:
        fields.append((b"Sec-WebSocket-Extensions", extensions))
    return fields


def check_answer(head: ResponseHead, key: bytes, subprotocols: Collection[str]) -> str | None:
    """Return the subprotocol that a server chose; None if it chose none.

    Raises:
        ValueError: its answer 101 is not what was asked for.
    """
    headers = head.headers
    if headers.tokens(b"upgrade") != [b"websocket"] or b"upgrade" not in headers.tokens(b"connection"):
        raise ValueError("an answer 101 without Upgrade: websocket")
    if headers.all_raw(b"sec-websocket-accept") != [accept_key(key)]:
        raise ValueError("an answer 101 with a wrong Sec-WebSocket-Accept: the server knows no WebSocket")
    chosen = headers.get_all("sec-websocket-protocol")
    if not chosen:
        return None
    if len(chosen) > 1 or chosen[0] not in subprotocols:
        raise ValueError(f"the server chose the subprotocol {chosen}, which was not offered")
    return chosen[0]
