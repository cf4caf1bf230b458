"""``StreamServer`` takes the place of ``gevent.server.StreamServer`` in a program without a change.

Accepting, spawning, pools, SSL and stopping are gevent's own code. What differs is what the handler gets: not a gevent
socket but a :class:`SocketConnection`, whose module says what a program could notice. With SSL arguments the handler
gets gevent's SSL socket, as ever.
"""

from __future__ import annotations

import os
import socket as _socket
from typing import Any

from gevent.server import StreamServer as _GeventServer

from greensock.core.poller import get_poller
from greensock.core.socket_connection import SocketConnection

__all__ = ["StreamServer"]


class StreamServer(_GeventServer):
    """``gevent.server.StreamServer`` on greensock's engine: same constructor, methods, attributes and semantics.

    Its handler gets a :class:`SocketConnection`; with SSL arguments, gevent's SSL socket.
    """

    #: Seconds in which the engine flushes and lingers after a connection was closed; 0 closes at once. Default 5.
    linger_timeout = 5.0

    def do_read(self) -> Any:
        """Accept one connection; None if there is none."""
        listener: Any = self.socket
        if self.ssl_enabled or listener.type != _socket.SOCK_STREAM:
            return super().do_read()
        try:
            fd, address = listener._accept()
        except BlockingIOError:
            if not listener.timeout:
                return None
            raise
        conn = SocketConnection(get_poller(), fd, listener.family, address, proto=listener.proto)
        conn.linger_timeout = self.linger_timeout
        os.set_blocking(fd, False)
        return conn, address
