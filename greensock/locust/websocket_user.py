"""``WebSocketUser``: a user with a WebSocket."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from greensock import TLS
from greensock.http.client.websocket_client import connect_websocket
from greensock.http.websocket.websocket import WebSocket
from greensock.http.websocket.websocket_options import WebSocketOptions
from greensock.locust.exchange_user import ExchangeUser

__all__ = ["WebSocketUser"]


class WebSocketUser(ExchangeUser):
    """A user with a WebSocket to ``host``, ``ws://host:port`` or ``wss://`` (``http://``, ``https://`` mean the same).

    Messages are ``str`` or ``bytes``. Pings of the server are answered while the user receives.
    """

    abstract = True

    request_type: ClassVar[str] = "WS"
    #: What is asked for at the host.
    path: str = "/"
    #: What is offered, the best first.
    subprotocols: Sequence[str] = ()
    #: Fields of the request: Origin, Cookie, Authorization.
    headers: Mapping[str, str] | None = None
    #: Limits, pings and compression.
    websocket_options: WebSocketOptions | None = None
    #: How TLS is spoken, in the place of ``insecure``.
    tls: TLS | ssl.SSLContext | bool | None = None
    #: Whether certificates are not verified.
    insecure: bool = True

    _unverified: ClassVar[ssl.SSLContext | None] = None
    _websocket: WebSocket | None = None

    @property
    def websocket(self) -> WebSocket:
        """The WebSocket itself."""
        if self._websocket is None:
            raise RuntimeError("not connected: within an exchange, or behind stay_connected(), there is a WebSocket")
        return self._websocket

    def open_link(self) -> None:
        scheme, colon, rest = str(self.host).partition("://")
        if not colon:
            scheme, rest = "ws", scheme
        scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
        tls = self.tls
        if tls is None:
            tls = self._trusting() if self.insecure and scheme == "wss" else True
        self._websocket = connect_websocket(
            f"{scheme}://{rest.rstrip('/')}{self.path}",
            subprotocols=self.subprotocols,
            headers=self.headers or {},
            options=self.websocket_options or WebSocketOptions(),
            timeout=self.connection_timeout,
            send_timeout=self.network_timeout,
            tls=tls,
        )

    def close_link(self) -> None:
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            websocket.close()

    def send_message(self, message: Any, timeout: float | None) -> None:
        self.websocket.send(message)

    def receive_message(self, timeout: float | None, asked: Any) -> str | bytes:
        return self.websocket.receive(timeout=timeout)

    @classmethod
    def _trusting(cls) -> ssl.SSLContext:
        if WebSocketUser._unverified is None:  # one for all users
            WebSocketUser._unverified = context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return WebSocketUser._unverified
