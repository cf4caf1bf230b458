"""``DatagramUser``: a user over UDP."""

from __future__ import annotations

from time import monotonic
from typing import Any, ClassVar

from gevent import socket

from greensock.locust.exchange_user import ExchangeUser

__all__ = ["DatagramUser"]

#: The largest datagram there is, in bytes.
LARGEST = 65535


class DatagramUser(ExchangeUser):
    """A user with a UDP socket of its own: ``host`` is ``host:port`` (or ``udp://host:port``).

    A datagram that does not come within ``network_timeout``, a second if nothing is said, is a failure. Behind one the
    user goes on from another port, so that a reply that comes too late is not taken for that to a later request.
    """

    abstract = True

    request_type: ClassVar[str] = "UDP"
    network_timeout: float = 1.0

    _sock: socket.socket | None = None

    def is_reply(self, asked: Any, datagram: bytes) -> bool:
        """Say whether a datagram answers what the exchange began with; what does not is left out. All do, if not."""
        return True

    def open_link(self) -> None:
        host, _, port = str(self.host).removeprefix("udp://").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"host={self.host!r}: host:port expected")
        (family, kind, number, _, address), *_ = socket.getaddrinfo(host.strip("[]"), int(port), 0, socket.SOCK_DGRAM)
        self._sock = socket.socket(family, kind, number)
        self._sock.connect(address)

    def close_link(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    @property
    def socket(self) -> socket.socket:
        """The socket itself, gevent's."""
        if self._sock is None:
            raise RuntimeError("no socket: within an exchange, or behind stay_connected(), there is one")
        return self._sock

    def send_message(self, message: Any, timeout: float | None) -> None:
        self.socket.settimeout(timeout)
        self.socket.send(message.encode() if isinstance(message, str) else message)

    def receive_message(self, timeout: float | None, asked: Any) -> bytes:
        due = None if timeout is None else monotonic() + timeout
        while True:
            left = None if due is None else due - monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no reply within {timeout} s")
            self.socket.settimeout(left)
            try:
                datagram: bytes = self.socket.recv(LARGEST)
            except TimeoutError:
                raise TimeoutError(f"no reply within {timeout} s") from None
            if self.is_reply(asked, datagram):
                return datagram
