"""Servers of bytes, each with a script."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from conftest import PATIENCE
from gevent.pool import Group

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Script:
    """A server of bytes: each connection goes through ``script(sock, number)`` in a greenlet of its own."""

    def __init__(self, script: Callable[[socket.socket, int], Any]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = self._listener.getsockname()
        self.url = "http://{}:{}".format(*self.address)
        self.accepted = 0
        self.heads: list[bytes] = []
        self._socks: list[socket.socket] = []
        self.group = Group()
        self.accepting = self.group.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self.accepted += 1
            self._socks.append(sock)
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.group.spawn(self._serve, sock, self.accepted)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                self._script(sock, number)
        finally:
            sock.close()

    def head(self, sock: socket.socket) -> bytes:
        """Read the head of a request, byte by byte; empty at the end of input."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = sock.recv(1)
            if not piece:
                return b""
            data += piece
        self.heads.append(data)
        return data

    def close(self) -> None:
        self.group.kill()
        self._listener.close()
        for sock in self._socks:  # of those, too, that were killed before they began
            sock.close()


@contextlib.contextmanager
def scripted(script: Callable[..., Any]) -> Iterator[Script]:
    """Serve with ``script(server, sock, number)``."""
    server = Script(lambda sock, number: script(server, sock, number))
    try:
        yield server
    finally:
        server.close()
