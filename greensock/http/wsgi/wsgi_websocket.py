"""``environ["wsgi.websocket"]``: the WebSocket of a request that asks for one, as gevent-websocket gave it.

Its handshake is answered with the first call that sends or receives. Until then the request is like any other, and may
be answered with what the application likes; or by ``environ["werkzeug.socket"]``, which stands beside it. From then on
the application's answer counts for nothing, and the WebSocket is closed when it returns.

What differs from gevent-websocket: messages, frames and what they inflate to are bounded (``websocket_options``); pings
keep it alive; permessage-deflate is agreed on; a drain closes it with 1001, which ``receive`` finds as any close.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from greensock.http.websocket.frames import BINARY, CLOSE, FIN, PING, PONG, TEXT, write_frame
from greensock.http.websocket.websocket import WebSocket, WebSocketClosed

__all__ = ["WSGIWebSocket"]

ALREADY_CLOSED, DEAD = "Connection is already closed", "Socket is dead"


class WSGIWebSocket:
    """A WebSocket with the methods of gevent-websocket's.

    Where that raises ``WebSocketError`` this raises :class:`WebSocketClosed`, which is the same to a program that has
    imported gevent-websocket: an error of both classes.
    """

    __slots__ = ("_is_told", "_make", "_websocket", "environ")

    OPCODE_CONTINUATION: ClassVar = 0
    OPCODE_TEXT: ClassVar = TEXT
    OPCODE_BINARY: ClassVar = BINARY
    OPCODE_CLOSE: ClassVar = CLOSE
    OPCODE_PING: ClassVar = PING
    OPCODE_PONG: ClassVar = PONG

    def __init__(self, environ: dict[str, Any], make: Callable[[], WebSocket]) -> None:
        """``make`` is called once, with the first use."""
        #: The environ of the request, until that is over.
        self.environ = environ
        self._make: Callable[[], WebSocket] | None = make
        self._websocket: WebSocket | None = None
        self._is_told = False

    @property
    def websocket(self) -> WebSocket:
        """What it stands on, :class:`greensock.http.WebSocket`: with ``ping``, ``send_nowait`` and more.

        To ask for it begins with it: set ``websocket.subprotocol``, if the client wants one, before all else.
        """
        if self._websocket is None:
            make, self._make = self._make, None
            if make is None:
                raise _failed(ALREADY_CLOSED, WebSocketClosed(ALREADY_CLOSED, None, 1006, ""))
            self._websocket = make()
        return self._websocket

    @property
    def is_taken(self) -> bool:
        """Whether the application has begun to use it, so that no other answer can be sent."""
        return self._websocket is not None and self._websocket.state.value != "connecting"

    @property
    def taken(self) -> WebSocket | None:
        """What it stands on, if that was asked for."""
        return self._websocket

    def expire(self) -> None:
        """Be of no more use: the request is over."""
        self._make = None  # which leads back here, as the environ does
        self.environ = {}

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return not self.websocket.is_open if self._websocket is not None else self._make is None

    def receive(self) -> str | bytearray | None:
        """Return the next message, waiting for it; None if it was closed meanwhile.

        Raises:
            WebSocketClosed: it was closed before.
        """
        try:
            message = self.websocket.receive()
        except WebSocketClosed as error:
            if self._is_told:
                raise _failed(ALREADY_CLOSED, error) from error
            self._is_told = True
            return None
        return message if type(message) is str else bytearray(message)  # type: ignore[arg-type]

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Send a message: as text if it is ``str``, unless ``binary`` says otherwise.

        Raises:
            WebSocketClosed: it is closed, or the client has gone.
        """
        if binary is None:
            binary = not isinstance(message, str)
        self.send_frame(message, BINARY if binary else TEXT)

    def send_frame(self, message: Any, opcode: int) -> None:
        """Send a message, a ping or a pong, by its opcode.

        Raises:
            WebSocketClosed: it is closed, or the client has gone.
            ValueError: another opcode.
        """
        websocket = self.websocket
        try:
            if opcode == TEXT:
                websocket.send(message if isinstance(message, str) else _decoded(message))
            elif opcode == BINARY:
                websocket.send(message.encode() if isinstance(message, str) else bytes(message))
            elif opcode in (PING, PONG):
                payload = message.encode() if isinstance(message, str) else bytes(message or b"")
                if opcode == PING:
                    websocket.ping(payload)
                elif not websocket.push(write_frame(FIN | PONG, payload[:125], False)):
                    raise WebSocketClosed(ALREADY_CLOSED, websocket.connection, websocket.close_code or 1006, "")
            else:
                raise ValueError(f"opcode={opcode!r}: text, binary, ping or pong expected; see close()")
        except WebSocketClosed as error:
            raise _failed(ALREADY_CLOSED if error.__cause__ is None else DEAD, error) from error

    def close(self, code: int = 1000, message: str | bytes | None = b"") -> None:
        """Close it; never blocks."""
        if self.closed:
            return
        reason = message.decode("utf-8", "replace") if isinstance(message, bytes) else message or ""
        self.websocket.close(code, reason)
        self._is_told = True

    @property
    def origin(self) -> str | None:
        """What Origin says."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """What the client offers as subprotocols."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """``13``."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str | None:
        """The path of the request."""
        return self.environ.get("PATH_INFO")

    def __repr__(self) -> str:
        return f"<WSGIWebSocket of {self._websocket!r}>"


def _decoded(message: Any) -> str:
    return bytes(message).decode() if isinstance(message, bytes | bytearray | memoryview) else str(message or "")


def _failed(text: str, error: WebSocketClosed) -> WebSocketClosed:
    """Return the error for a call that comes too late; of gevent-websocket's class, too, if the program knows that."""
    theirs = sys.modules.get("geventwebsocket.exceptions")
    kind = WebSocketClosed if theirs is None else _kind_of(theirs.WebSocketError)
    return kind(text, error.connection, error.code, error.text)


@functools.cache
def _kind_of(theirs: type[BaseException]) -> type[WebSocketClosed]:
    return type("WebSocketError", (WebSocketClosed, theirs), {})
