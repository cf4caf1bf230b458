"""A connection by itself, and the plain socket of its peer."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from conftest import PATIENCE

from greensock import Connection
from greensock.core.poller import get_poller


def wrap(sock: socket.socket, linger: float = 0.5, kind: type[Connection] = Connection) -> Connection:
    """Make a connection of a socket, which it takes over."""
    sock.setblocking(False)
    family, fd = sock.family, sock.detach()
    conn = kind(get_poller(), fd, family, "peer")
    conn.linger_timeout = linger
    get_poller().register(conn)
    return conn


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the server's and the client's end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.settimeout(PATIENCE)
    return server, client


def connected(kind: str, of: type[Connection] = Connection) -> Iterator[tuple[Connection, socket.socket]]:
    """Yield a connection ("unix" or "tcp") and the socket of its peer; both are closed afterwards."""
    ours, theirs = socket.socketpair() if kind == "unix" else tcp_pair()
    theirs.settimeout(PATIENCE)
    conn = wrap(ours, kind=of)
    yield conn, theirs
    theirs.close()
    conn.abort()


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_exactly_fast(sock: socket.socket, count: int) -> bytes:
    """Read at least that many bytes, in long pieces."""
    pieces, size = [], 0
    while size < count:
        piece = sock.recv(1 << 20)
        assert piece, f"the input ended after {size} of {count} bytes"
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def read_all_fast(sock: socket.socket) -> bytes:
    """Read until the end of input, in long pieces."""
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def drain(sock):
    """Read until the end, be it FIN or RST; return how many bytes."""
    size = 0
    try:
        while piece := sock.recv(1 << 20):
            size += len(piece)
    except ConnectionResetError:
        pass
    return size


def let_engine_look() -> None:
    """Return when the engine has been told of all that happened before: by an event that came after."""
    ours, theirs = socket.socketpair()
    conn = wrap(ours)
    theirs.sendall(b"x")
    assert conn.recv() == b"x"
    theirs.close()
    conn.abort()


class Flood:
    """In the place of ``read``: a peer that always has more to say, for so many seconds of our CPU; then the end."""

    def __init__(self, seconds: float = 0.2, short: int = 0) -> None:
        self._short = short
        self._end = time.thread_time() + seconds

    def __call__(self, fd: int, size: int) -> bytes:
        return bytes(size - self._short) if time.thread_time() < self._end else b""


def longest_between_ticks(done: Callable[[], Any], every: float = 0.01) -> float:
    """Tick until it is done; return the longest that anything else ran between two ticks, in seconds of CPU.

    Of CPU, so that a busy machine makes no difference.
    """
    longest, before = 0.0, time.thread_time()
    while not done():
        gevent.sleep(every)
        now = time.thread_time()
        longest = max(longest, now - before)
        before = now
    return longest
