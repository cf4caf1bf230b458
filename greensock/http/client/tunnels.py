"""Connections to servers through a proxy that is asked for a tunnel.

By CONNECT (RFC 9110 section 9.3.6) to servers of https, and by SOCKS 5 (RFC 1928; names and passwords RFC 1929) to all.
"""

from __future__ import annotations

import ipaddress
import re
import socket as _socket
import struct
from collections.abc import Callable
from typing import Any

import gevent
from gevent.socket import getaddrinfo

from greensock import (
    ConnectFailed,
    Connection,
    ConnectionClosed,
    IncompleteMessage,
    MessageTooLong,
    OperationTimeout,
    let_others_run,
    start_tls,
)
from greensock.http.client.connection_pool import ClientConnection, ClientPool, DialTerms
from greensock.http.client.origin import Origin
from greensock.http.client.proxy_choice import ProxyChoice, ProxyPlace
from greensock.http.errors import ConnectTimeout
from greensock.http.wire.limits import Limits

__all__ = ["TunnelPool"]

#: How long a proxy's answer may be, in bytes.
MAX_ANSWER = 16384
#: What a proxy of SOCKS says if it does not connect (RFC 1928 section 6).
SOCKS_SAYS = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}
_status = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r\n").match


class TunnelPool(ClientPool):
    """A pool whose connections to origins of https, and through SOCKS to all, go through their proxies."""

    def __init__(self, limits: Limits, proxies: ProxyChoice, tls: Any, **sizes: Any) -> None:
        super().__init__(limits, tls=tls, **sizes)
        self._proxies = proxies
        self._spoken = tls

    def dial(self, key: Origin, terms: DialTerms) -> ClientConnection:
        origin, deadlines = key, terms.deadlines
        place = self._proxies.place_for(origin)
        # A proxy of http that is asked for something of http is an origin itself.
        if place is None or (origin.scheme == "http" and not place.is_socks):
            return super().dial(origin, terms)
        if place.kind == "https":
            raise ValueError(f"a proxy of https, {place.origin}, for {origin}: TLS within TLS is not spoken")
        seconds = deadlines.timeouts.connect
        due = deadlines.due(seconds)  # of all of it: a proxy may say something now and then without end
        conn = super().dial(place.origin, terms)

        def left() -> float | None:
            return deadlines.left(due, ConnectTimeout, seconds)

        try:
            ask = _ask_socks if place.is_socks else _ask
            ask(conn, place, origin, left)
            if origin.scheme == "https":
                if conn.held_bytes():
                    raise ConnectFailed(f"the proxy {place.origin} said more than its answer", address=origin.address)
                start_tls(conn, self._spoken, server_hostname=origin.name, timeout=left())
        except OperationTimeout as error:
            conn.abort()
            raise deadlines.late(ConnectTimeout, seconds) from error
        except ConnectionClosed as error:
            conn.abort()
            raise ConnectFailed(f"the proxy {place.origin} left: {error}", address=origin.address) from error
        except BaseException:
            conn.abort()
            raise
        return conn


def _ask(conn: Connection, place: ProxyPlace, origin: Origin, left: Callable[[], float | None]) -> None:
    """Have the proxy connect to the origin."""
    target = str(origin).encode("idna" if not str(origin).isascii() else "ascii")
    fields = [b"CONNECT %b HTTP/1.1" % target, b"Host: %b" % target]
    if place.authorization is not None:
        fields.append(b"Proxy-Authorization: %b" % place.authorization)
    conn.send(b"".join(b"%b\r\n" % each for each in [*fields, b""]), timeout=left())
    began = 0.0
    while True:
        began = let_others_run(began)
        try:
            head = conn.read_until(b"\r\n\r\n", MAX_ANSWER, timeout=left())
        except (IncompleteMessage, MessageTooLong) as error:
            raise ConnectFailed(f"the proxy {place.origin} said nothing of HTTP", address=origin.address) from error
        match = _status(head + b"\r\n") if head is not None else None
        if match is None:
            raise ConnectFailed(f"the proxy {place.origin} said nothing of HTTP", address=origin.address)
        if not 100 <= int(match[1]) < 200:
            break
    if not 200 <= int(match[1]) < 300:
        said = match[1].decode() + (" " + match[2].decode("latin-1") if match[2] else "")
        raise ConnectFailed(f"the proxy {place.origin} refused {origin}: {said}", address=origin.address)


def _ask_socks(conn: Connection, place: ProxyPlace, origin: Origin, left: Callable[[], float | None]) -> None:
    """Have a proxy of SOCKS 5 connect to the origin."""

    def hear(count: int) -> bytes:
        try:
            data = conn.read_exactly(count, timeout=left())
        except IncompleteMessage:
            data = None
        if data is None:
            raise ConnectFailed(f"the proxy {place.origin} left within SOCKS", address=origin.address)
        return data

    def refused(why: str) -> ConnectFailed:
        return ConnectFailed(f"the proxy {place.origin} refused {origin}: {why}", address=origin.address)

    assert isinstance(origin.address, tuple)
    conn.send(b"\x05\x02\x00\x02" if place.credentials is not None else b"\x05\x01\x00", timeout=left())
    version, method = hear(2)
    if version != 5:
        raise refused("it does not speak SOCKS 5")
    if method == 2 and place.credentials is not None:
        name, password = place.credentials
        conn.send(b"\x01%c%b%c%b" % (len(name), name, len(password), password), timeout=left())
        if hear(2)[1] != 0:
            raise refused("name or password are wrong")
    elif method != 0:
        raise refused("it wants another authentication")
    host, port = origin.address
    if place.kind == "socks5":
        host = _resolved(host, port, origin, left())
    if len(host) > 255:
        raise refused("a name of more than 255 bytes")
    conn.send(b"\x05\x01\x00" + _socks_address(host) + struct.pack("!H", port), timeout=left())
    _, said, _, kind = hear(4)
    if said != 0:
        raise refused(SOCKS_SAYS.get(said, str(said)))
    length = {1: 4, 4: 16}.get(kind)
    hear((hear(1)[0] if length is None else length) + 2)


def _resolved(host: str, port: int, origin: Origin, timeout: float | None) -> str:
    late = OperationTimeout(f"{host!r} was not resolved within {timeout} s", None, "connect", timeout or 0.0)
    try:
        with gevent.Timeout(timeout, late):
            return str(getaddrinfo(host, port, 0, _socket.SOCK_STREAM)[0][4][0])
    except OperationTimeout:
        raise
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(f"{host!r} cannot be resolved: {error}", address=origin.address) from error


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.encode("ascii" if host.isascii() else "idna")
        return b"\x03%c%b" % (len(name), name)
    return (b"\x01" if address.version == 4 else b"\x04") + address.packed
