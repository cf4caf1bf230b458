"""``connect_websocket``: a WebSocket to a server, in the blocking style.

The handshake is a request like any other: connecting, deadlines and the parser are the client's (``HTTPClient``). From
the answer 101 on the connection is the WebSocket's alone. Nothing reads it but ``receive``: so pings of the server are
answered, and its close is found, while the program receives.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gevent.monkey import get_original

from greensock import TLS, GreensockError
from greensock.http.client.client_response import ClientResponse
from greensock.http.client.deadlines import Timeouts
from greensock.http.client.http_client import HTTPClient
from greensock.http.errors import BadResponse, Reason
from greensock.http.websocket.deflate import agreement_of, offer_of
from greensock.http.websocket.handshake import check_answer, request_fields
from greensock.http.websocket.keep_alive import KeepAlive
from greensock.http.websocket.websocket import WebSocket
from greensock.http.websocket.websocket_options import DEFAULT_WEBSOCKET, WebSocketOptions
from greensock.http.wire.headers import Headers

if TYPE_CHECKING:
    import ssl

__all__ = ["WebSocketRefused", "connect_websocket"]

#: Of the body of a refusal so many bytes are kept.
MAX_REFUSAL = 4096
#: The schemes of WebSocket, and what stands below each.
SCHEMES = {"ws": "http", "wss": "https", "ws+unix": "http+unix"}

_of_this_thread = get_original("_thread", "_local")()


class WebSocketRefused(GreensockError, ConnectionError):
    """The server answered the request for a WebSocket with something else.

    ``status``, ``headers`` and ``body`` (its first 4 KiB) are its answer's.
    """

    def __init__(self, message: str, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body


def connect_websocket(
    url: str,
    *,
    subprotocols: Iterable[str] = (),
    headers: Headers | Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = (),
    options: WebSocketOptions = DEFAULT_WEBSOCKET,
    timeout: float | None = 10.0,
    send_timeout: float | None = 60.0,
    address: Any = None,
    tls: TLS | ssl.SSLContext | bool = True,
) -> WebSocket:
    """Connect to ``ws://host[:port]/path?query``, ``wss://...`` or ``ws+unix://%2Fpath%2Fof.socket/path``.

    ``subprotocols`` are offered, the best first; the server's choice is ``subprotocol``. ``headers`` are sent, too
    (Origin, Cookie, Authorization). ``timeout`` is in seconds, for connecting and the server's answer; ``send_timeout``
    those in which the server must take a byte of what is sent. ``address``, as ``greensock.connect`` takes it, is where
    to connect instead; ``tls`` is how ``wss`` is spoken, as an ``HTTPClient`` takes it. Close it, or use it with
    ``with``; it belongs to the thread that made it.

    Raises:
        WebSocketRefused: the server answered something else.
        BadResponse: its answer is none to this request, or it broke the protocol.
        ConnectFailed, ConnectionLost: it could not be reached, or reset the connection.
        PhaseTimeout: it took too long.
        ValueError: what was asked for cannot be.
    """
    below = _url_below(url)
    offered = list(subprotocols)
    key = base64.b64encode(os.urandom(16))
    extensions = offer_of(options.context_takeover) if options.compress else b""
    fields = Headers(headers.items() if isinstance(headers, Mapping) else headers)
    for name, value in [(b"Upgrade", b"websocket"), *request_fields(key, offered, extensions)]:
        fields.set(name, value)
    timeouts = Timeouts(connect=timeout, send=timeout, head=timeout, body=timeout, total=timeout)
    with HTTPClient(timeouts=timeouts, tls=tls) as client:
        answer = client.get(below, headers=fields, address=address)
        try:
            if not answer.head.is_switch:
                raise _refused(url, answer)
            try:
                chosen = check_answer(answer.head, key, offered)
                said = answer.headers.get_raw(b"sec-websocket-extensions")
                if said is not None and not options.compress:
                    raise ValueError(f"the server chose extensions that were not offered: {said!r}")
                agreement = agreement_of(said, options.context_takeover, options.window_bits)
            except ValueError as error:
                raise BadResponse(f"{url}: {error}", Reason.UNEXPECTED_SWITCH) from None
            conn = answer.detach()
        finally:
            answer.close()
    conn.send_timeout = send_timeout
    kept = _keep_alive(options)
    websocket = WebSocket(conn, options, kept, agreement, is_client=True)
    websocket.subprotocol = chosen
    kept.websockets.add(websocket)
    return websocket


def _url_below(url: str) -> str:
    """Return the URL of the request that asks for the WebSocket of this one."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.lower() not in SCHEMES:
        raise ValueError(f"url={url!r}: ws://host[:port]/path or wss://host[:port]/path expected")
    return f"{SCHEMES[scheme.lower()]}:{rest}"


def _refused(url: str, answer: ClientResponse) -> WebSocketRefused:
    body = b""
    with contextlib.suppress(GreensockError):
        for piece in answer:
            body += piece
            if len(body) >= MAX_REFUSAL:
                break
    text = f"{url}: the server answered {answer.status} {answer.head.phrase.decode('latin-1')}".rstrip()
    return WebSocketRefused(text, answer.status, answer.headers, body[:MAX_REFUSAL])


class _Kept:
    """The owner of the WebSockets of this thread with the same pings: it looks after them."""

    def __init__(self, options: WebSocketOptions) -> None:
        self.websockets = KeepAlive(options.ping_interval, options.ping_timeout)
        self.on_websocket_message: Any = None  # there are no upcalls here
        self.websocket_ended = self.websockets.discard


def _keep_alive(options: WebSocketOptions) -> _Kept:
    kept: dict[Any, _Kept] | None = getattr(_of_this_thread, "kept", None)
    if kept is None:
        kept = _of_this_thread.kept = {}
    key = (options.ping_interval, options.ping_timeout)
    found = kept.get(key)
    if found is None:
        # Those that keep nothing are forgotten: a program may make up options without end.
        for other in [other for other, each in kept.items() if not each.websockets]:
            del kept[other]
        found = kept[key] = _Kept(options)
    return found
