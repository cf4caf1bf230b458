"""Connections to servers by TLS through a proxy, which is asked for a tunnel (CONNECT, RFC 9110 section 9.3.6)."""

from __future__ import annotations

import re
from typing import Any

from greensock import (
    ConnectFailed,
    Connection,
    ConnectionClosed,
    IncompleteMessage,
    MessageTooLong,
    OperationTimeout,
    start_tls,
)
from greensock.http.client.connection_pool import ClientConnection, ConnectionPool
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.origin import Origin
from greensock.http.client.pool_state import PoolState
from greensock.http.client.proxy_choice import ProxyChoice, ProxyPlace
from greensock.http.errors import ConnectTimeout
from greensock.http.wire.limits import Limits

__all__ = ["TunnelPool"]

#: How long a proxy's answer may be, in bytes.
MAX_ANSWER = 16384
_status = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r\n").match


class TunnelPool(ConnectionPool):
    """A pool whose connections to origins of https go through their proxies."""

    def __init__(self, state: PoolState[Any, Any], limits: Limits, proxies: ProxyChoice, tls: Any) -> None:
        super().__init__(state, limits, tls=tls)
        self._proxies = proxies
        self._spoken = tls

    def connect(self, origin: Origin, deadlines: Deadlines) -> ClientConnection:
        place = self._proxies.place_for(origin) if origin.scheme == "https" else None
        if place is None:
            return super().connect(origin, deadlines)
        if place.origin.scheme == "https":
            raise ValueError(f"a proxy of https, {place.origin}, for {origin}: TLS within TLS is not spoken")
        conn = super().connect(place.origin, deadlines)
        seconds = deadlines.timeouts.connect
        try:
            self._ask(conn, place, origin, deadlines.within(seconds, ConnectTimeout))
            left = deadlines.within(seconds, ConnectTimeout)
            start_tls(conn, self._spoken, server_hostname=origin.name, timeout=left)
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

    def _ask(self, conn: Connection, place: ProxyPlace, origin: Origin, timeout: float | None) -> None:
        """Have the proxy connect to the origin."""
        target = str(origin).encode("idna" if not str(origin).isascii() else "ascii")
        fields = [b"CONNECT %b HTTP/1.1" % target, b"Host: %b" % target]
        if place.authorization is not None:
            fields.append(b"Proxy-Authorization: %b" % place.authorization)
        conn.send(b"".join(b"%b\r\n" % each for each in [*fields, b""]), timeout=timeout)
        while True:
            try:
                head = conn.read_until(b"\r\n\r\n", MAX_ANSWER, timeout=timeout)
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
