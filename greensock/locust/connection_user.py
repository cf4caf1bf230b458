"""``ConnectionUser``: a user over TCP, TLS or a Unix socket, of any protocol that a framer can cut into messages."""

from __future__ import annotations

import ssl
from time import monotonic
from typing import Any, ClassVar

from greensock import TLS, Connection, Framer, OperationTimeout, connect
from greensock.locust.exchange_user import ExchangeUser

__all__ = ["ConnectionUser"]

#: What stands before the address in ``host``, and what Locust calls the requests.
SCHEMES = {"tcp": "TCP", "tls": "TLS", "unix": "Unix"}


class ConnectionUser(ExchangeUser):
    """A user with a connection; ``host`` is ``host:port``, ``tls://host:port``, ``unix:/path``."""

    abstract = True

    #: How messages are told apart, both ways. None: a message is sent as it is, and what comes is what is there.
    framer: Framer | None = None
    #: How TLS is spoken; it is if this is set, or ``host`` begins with ``tls://``.
    tls: TLS | ssl.SSLContext | bool | None = None
    #: Whether certificates are not verified, where ``tls`` does not say.
    insecure: bool = True

    _unverified: ClassVar[ssl.SSLContext | None] = None
    _conn: Connection | None = None
    _decoder: Any = None

    def open_link(self) -> None:
        scheme, address = _place(str(self.host))
        tls = self.tls
        if tls is None and scheme == "tls":
            tls = self._trusting() if self.insecure else True
        self.request_type = "TLS" if tls else SCHEMES[scheme]  # type: ignore[misc]  # what Locust shows of this user
        self._conn = connect(address, timeout=self.connection_timeout, tls=tls)
        self._decoder = self.framer.decoder() if self.framer is not None else None

    @property
    def connection(self) -> Connection:
        """The connection itself, for what a framer cannot say."""
        if self._conn is None:
            raise RuntimeError("not connected: within an exchange, or behind stay_connected(), there is a connection")
        return self._conn

    def close_link(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def send_message(self, message: Any, timeout: float | None) -> None:
        data = message.encode() if isinstance(message, str) else message
        self.connection.send(data if self.framer is None else self.framer.encode(data), timeout=timeout)

    def receive_message(self, timeout: float | None, asked: Any) -> bytes:
        conn, decoder = self.connection, self._decoder
        if decoder is None:
            data = conn.recv(timeout=timeout)
            if not data:
                raise EOFError("the server closed the connection")
            return data
        due = None if timeout is None else monotonic() + timeout
        while (message := decoder.next_message()) is None:
            left = None if due is None else due - monotonic()
            if left is not None and left <= 0:
                raise OperationTimeout(f"no message within {timeout} s", conn, "recv", timeout or 0.0)
            data = conn.recv(timeout=left)
            if not data:
                raise EOFError("the server closed the connection" + (" within a message" if decoder.pending else ""))
            decoder.feed(data)
        found: bytes = message
        return found

    @classmethod
    def _trusting(cls) -> ssl.SSLContext:
        if ConnectionUser._unverified is None:  # one for all users
            ConnectionUser._unverified = context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return ConnectionUser._unverified


def _place(host: str) -> tuple[str, str]:
    """Return the scheme of a host and the address, as ``greensock.connect`` takes it."""
    scheme, colon, rest = host.partition("://")
    if not colon:
        scheme, rest = ("unix", host.removeprefix("unix:")) if "/" in host else ("tcp", host)
    if scheme not in SCHEMES:
        raise ValueError(f"host={host!r}: host:port, tls://host:port or unix:/path expected")
    return scheme, rest
