"""``connect_datagram``: a socket of datagrams with one peer, in the blocking style.

Nothing goes over the network when it is made. The kernel lets only what the peer sends reach it, and tells of what ICMP
says to what was sent: the next call raises it, and the socket stays usable.
"""

from __future__ import annotations

import os
import socket as _socket
from collections.abc import Mapping
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import gevent
from gevent.monkey import get_original
from gevent.socket import getaddrinfo

from greensock.address import port_number, split_address
from greensock.core.datagrams import DatagramSocket
from greensock.core.lifecycle import INHERIT, Timeout
from greensock.core.poller import TIMED_OUT, Poller, get_poller
from greensock.datagram_rules import DATAGRAM_OPTIONS
from greensock.errors import ConnectFailed, ConnectionBusy, ConnectionClosed, OperationTimeout
from greensock.server_options import Rule
from greensock.stats import DatagramStatistics

__all__ = ["DatagramConnection", "connect_datagram"]

#: What each option of ``connect_datagram`` may be.
_RULES: Mapping[str, Rule] = {
    "timeout": Rule.seconds(zero=False).or_none(),
    "recv_timeout": Rule.seconds(zero=False).or_none(),
    **{name: DATAGRAM_OPTIONS[name] for name in ("send_timeout", "recv_size", "recv_buffer", "max_send_queue")},
}

_Mine = TypeVar("_Mine", bound="DatagramConnection")


class DatagramConnection(DatagramSocket):
    """A socket of datagrams with one peer; :func:`connect_datagram` makes it. It owns no greenlet.

    One greenlet at a time may receive, any number may send. Closed by ``close``, or at the end of ``with``.
    """

    def __init__(self, poller: Poller, sock: _socket.socket, size: int, peer: Any) -> None:
        super().__init__(poller, sock, size, True, peer)
        #: Default ``timeout`` of ``recv``, in seconds; None: none. That of ``send`` is ``send_timeout``.
        self.recv_timeout: float | None = None
        self._deadline = inf
        self._path: str | None = None

    @property
    def address(self) -> Any:
        """The peer's address."""
        return self._peer

    @property
    def local_address(self) -> Any:
        """Our own address, to which the peer answers; None once it is closed."""
        return self._sock.getsockname() if self._fd >= 0 else None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._fd

    def recv(self, *, timeout: Timeout = INHERIT) -> bytes:
        """Return the next datagram; blocks until there is one. ``b""`` is one that is empty, and no end: there is none.

        Raises:
            OperationTimeout: none came within ``timeout`` seconds (default ``recv_timeout``).
            Undeliverable: an earlier datagram did not reach the peer: its host, or the network, said so.
            MessageTooLong: one came that is longer than ``recv_size``. It is gone.
            ConnectionBusy: another greenlet receives.
            ConnectionClosed: it is closed, or is while this waits.
        """
        seconds: Any = self.recv_timeout if timeout is INHERIT else timeout
        deadline = inf if seconds is None else monotonic() + seconds
        if self._reader is not None:
            raise ConnectionBusy("another greenlet receives already", self)
        while not self._batch:
            if self._fd < 0:
                raise ConnectionClosed("the socket is closed", self)
            if not self._fetch():
                if monotonic() >= deadline:
                    raise OperationTimeout(f"no datagram came within {seconds} s", self, "recv", seconds)
                self._wait_until(deadline)
        data, _ = self._batch.pop()
        if type(data) is not bytes:
            raise self._too_long() if data is None else data
        self._received += 1
        self._bytes_received += len(data)
        return data

    def _wait_until(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._armed:
            self._poller.arm(self, deadline)
        try:
            self._wait_readable()
        finally:
            self._deadline = inf

    def _on_deadline(self, now: float) -> float:
        super()._on_deadline(now)  # what waits to be sent
        if now >= self._deadline and self._reader is not None:
            self._reader.switch(TIMED_OUT)
        return min(self._deadline, self._armed)

    def send(self, data: Any, *, timeout: Timeout = INHERIT, segment_size: int | None = None) -> int:
        """Send a datagram to the peer; return how many bytes that were. As ``DatagramServer.send_to``.

        Raises:
            Undeliverable: an earlier datagram, or this one, did not reach the peer. This one was not sent.
            OperationTimeout: there was no room within ``timeout`` seconds (default ``send_timeout``).
            ConnectionClosed: it is closed, or was while this waited.
            ValueError: the data is longer than a datagram can be.
        """
        limit: Any = self.send_timeout if timeout is INHERIT else timeout
        if segment_size is not None:
            return self._send_cut(data, None, segment_size, limit)
        count: int = self._send_to(data, None, limit)
        return count

    def send_nowait(self, data: Any) -> bool:
        """Send a datagram without ever waiting. What finds no room is kept, up to ``max_send_queue`` bytes.

        False: that was full, and the datagram was dropped, and counted.

        Raises:
            Undeliverable, ConnectionClosed, ValueError: as ``send`` does.
        """
        kept: bool = self._send_nowait(data, None)
        return kept

    def statistics(self) -> DatagramStatistics:
        """Return a snapshot of the counters."""
        return self._counted()

    def close(self) -> None:
        """Close it: what waits to be sent is dropped, and who waits raises ``ConnectionClosed``. Twice is harmless."""
        if self._fd < 0:
            return
        super().close()
        path, self._path = self._path, None
        if path is not None:
            try:
                os.unlink(path)
            except OSError:
                pass  # somebody else has removed it
        if self._reader is not None:
            self._poller.call_soon(self._wake_reader)

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.switch()

    def __enter__(self: _Mine) -> _Mine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DatagramConnection to {self._peer!r}{'' if self._fd >= 0 else ' closed'}>"


def connect_datagram(
    address: Any,
    *,
    timeout: float | None = None,
    local_address: Any = None,
    recv_timeout: float | None = None,
    send_timeout: float | None = None,
    recv_size: int = 65536,
    recv_buffer: int | None = None,
    max_send_queue: int = 1 << 20,
) -> DatagramConnection:
    """Make a socket of datagrams with one peer: ``(host, port)``, ``"host:port"`` or the path of a Unix socket.

    A name is looked up, by gevent's resolver, for ``timeout`` seconds at the most, and its first address taken: UDP
    does not tell which of them answers. ``local_address`` is ours: ``(host, port)``, or the path of a Unix socket,
    whose file ``close`` removes, or an abstract name. None: what leads to the peer; of a Unix socket a name of the
    kernel's choice, for without one the peer can't answer.

    The other options are those of ``DatagramServer``, and ``recv_timeout`` (seconds) is the default of ``recv``.

    Raises:
        ValueError: an address or an option is not allowed.
        ConnectFailed: there is no such name or no way there; of a Unix socket: nobody is there.
        OperationTimeout: the name was not looked up in time.
        OSError: ``local_address`` cannot be had.
    """
    given = {
        "timeout": timeout, "recv_timeout": recv_timeout, "send_timeout": send_timeout, "recv_size": recv_size,
        "recv_buffer": recv_buffer, "max_send_queue": max_send_queue,
    }  # fmt: skip
    for name, rule in _RULES.items():
        rule.check(name, given[name])
    family, peer = _peer_of(address, timeout)
    sock: _socket.socket = get_original("socket", "socket")(family, _socket.SOCK_DGRAM)
    path = None
    try:
        sock.setblocking(False)
        if recv_buffer is not None:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, min(recv_buffer, 1 << 30))
        if local_address is not None:
            own = local_address if family == _socket.AF_UNIX else _own_address(family, local_address)
            sock.bind(own)
            path = own if isinstance(own, str) and not own.startswith("\0") else None
        elif family == _socket.AF_UNIX:
            sock.bind("")  # the kernel chooses (unix(7), autobind)
        try:
            sock.connect(peer)
        except OSError as error:
            raise ConnectFailed(f"cannot send to {address!r}: {error.strerror}", address=address) from error
        conn = DatagramConnection(get_poller(), sock, recv_size, peer)
        conn.recv_timeout, conn.send_timeout, conn.max_send_queue = recv_timeout, send_timeout, max_send_queue
        conn._watch()
    except BaseException:
        sock.close()
        if path is not None:
            os.unlink(path)
        raise
    conn._path = os.path.abspath(path) if path is not None else None
    return conn


def _peer_of(address: Any, timeout: float | None) -> tuple[int, Any]:
    """Return the family and the socket address of a peer, after looking up its name."""
    found = split_address(address)
    if found is None:
        raise ValueError(f"address={address!r}: (host, port), 'host:port' or a path expected")
    family, target = found
    if family == _socket.AF_UNIX:
        return family, target
    host, port = target[0], port_number(target[1])
    if port < 1 or not host:
        raise ValueError(f"address={address!r}: a host, and a port from 1 to 65535 expected")
    late = OperationTimeout(f"{host!r} was not resolved within {timeout} s", None, "connect", timeout or 0.0)
    try:
        with gevent.Timeout(timeout, late):
            places = getaddrinfo(host, port, 0, _socket.SOCK_DGRAM)
    except OperationTimeout:
        raise
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(f"{host!r} cannot be resolved: {error}", address=address) from error
    family, _, _, _, place = places[0]
    if isinstance(address, tuple) and family == _socket.AF_INET6:
        place = (*place[:2], *(address[2:] or place[2:]))
    return family, place


def _own_address(family: int, address: Any) -> Any:
    try:
        host, port = address[:2]
        _socket.inet_pton(family, host)
        if port_number(port) < 0:
            raise ValueError
    except (OSError, TypeError, ValueError):
        kind = "IPv6" if family == _socket.AF_INET6 else "IPv4"
        raise ValueError(f"local_address={address!r}: (host, port) expected, the host an {kind} address") from None
    return address
