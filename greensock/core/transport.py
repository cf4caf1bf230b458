"""Transports: what a connection reads from and writes to in the place of its bare descriptor.

Most connections have none, and the hot path knows nothing of them: a connection with a transport is never ``_plain``
and never ``_clear``, which is what the hot path looks at. A transport has few methods, each of which makes at most one
system call and never blocks; what it cannot do is done by reading and writing (``splice``, ``send_file``).

That a short read means empty is what ``_received``, ``_took`` and ``_recv`` in ``receiving.py`` rely on: they clear
``_readable``, and with it clear nothing is read before an event. What looks without a transport is ``has_input`` in
``turns.py``, ``_look_now`` in ``receiving.py``, ``peer_has_hung_up`` in ``lifecycle.py`` and ``unread`` in
``connection.py``.
"""

from __future__ import annotations

import socket as _socket
from typing import Any, Protocol

from greensock.core.syscalls import BorrowedSocket

__all__ = ["Sealing", "SharedDescriptor", "Transport"]


class Transport(Protocol):
    """What a connection needs of it; ``Server.transport_for`` gives a new connection one.

    What only looks asks the descriptor and not the transport: whether input waits where a server drains, what
    ``timeout=0`` finds, whether the peer has left (``wait_disconnect``, ``notify_disconnect``), whether a kept
    connection of a client is quiet, ``count_unread``. For a transport that reads ahead, or whose peer sends what is no
    data, these would have to ask it.
    """

    #: Whether another process may hold the connection, too: then we must not end it for that one (no FIN, no reset).
    is_shared: bool

    def read(self, size: int) -> bytes:
        """Return what is there, at most ``size`` bytes; ``b""`` at the end of input.

        Fewer than ``size`` say that nothing more is there now: the engine reads again only after the next event of the
        descriptor. A transport that holds more must return it, or what it holds stays with it until the peer sends
        again, and the connection stalls.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the connection is broken.
        """

    def readv(self, view: memoryview) -> int:
        """Fill ``view`` with what is there; return how many bytes. Fewer say, and it raises, what ``read`` does."""

    def write(self, data: bytes | memoryview) -> int:
        """Send what is taken of ``data`` now; return how many bytes.

        Raises:
            BlockingIOError: nothing is taken.
            OSError: the connection is broken.
        """

    def writev(self, views: list[memoryview]) -> int:
        """Send what is taken of the buffers now. Raises as ``write`` does."""

    def shut(self) -> None:
        """Tell the peer that nothing more will be sent."""

    def close(self) -> None:
        """Let go of the descriptor, which is about to be closed."""


class SharedDescriptor:
    """A descriptor that others may hold, too: a child process, or code that got the number from ``fileno()``.

    O_NONBLOCK belongs to the open file and not to the descriptor: a process that clears it (a shell does, on its
    standard input) would have our next call block the hub. So each call says for itself that it must not wait.
    """

    __slots__ = ("_sock", "is_shared", "was_exposed")

    def __init__(self, fd: int, family: int) -> None:
        # Borrowed: the descriptor stays the connection's to close, and a collected socket object must not close it.
        self._sock = BorrowedSocket(family, _socket.SOCK_STREAM, 0, fd)
        self.is_shared = True
        #: Whether ``fileno()`` has exposed the number: then it is not closed behind the program's back, in a forked
        #: child either.
        self.was_exposed = False

    def read(self, size: int) -> bytes:
        """Return what is there."""
        data: bytes = self._sock.recv(size, _socket.MSG_DONTWAIT)
        return data

    def readv(self, view: memoryview) -> int:
        """Fill ``view`` with what is there."""
        count: int = self._sock.recv_into(view, 0, _socket.MSG_DONTWAIT)
        return count

    def write(self, data: bytes | memoryview) -> int:
        """Send what is taken now."""
        count: int = self._sock.send(data, _socket.MSG_DONTWAIT)
        return count

    def writev(self, views: list[memoryview]) -> int:
        """Send what is taken of the buffers now."""
        count: int = self._sock.sendmsg(views, [], _socket.MSG_DONTWAIT)
        return count

    def shut(self) -> None:
        """Send FIN, for all who hold the connection."""
        self._sock.shutdown(_socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the descriptor, and leave it open."""
        self._sock.detach()


class Sealing:
    """A transport that encrypts, as the engine knows it: what was written to it may still be with it."""

    __slots__ = ("info", "is_shared", "partial", "pending")

    def __init__(self) -> None:
        self.is_shared = False
        #: What it still has to send of what it took.
        self.pending = b""
        #: Bytes that came since the last data: part of a record, or what is no data.
        self.partial = 0
        #: What ``conn.tls`` tells.
        self.info: Any = None

    def read(self, size: int) -> bytes:
        """As a transport does."""
        raise NotImplementedError

    def write(self, data: bytes | memoryview) -> int:
        """As a transport does."""
        raise NotImplementedError

    def flush(self) -> None:
        """Send what is pending.

        Raises:
            BlockingIOError: not all of it was taken.
            OSError: the connection is broken.
        """
        raise NotImplementedError

    def end(self) -> None:
        """Tell the peer that nothing more will be sent, but leave the descriptor as it is; raises as ``flush``."""
        raise NotImplementedError

    def expose(self) -> None:
        """Be told that others have the number of the descriptor."""

    def fork(self) -> None:
        """Be told that the process forks, and both go on with a copy of this."""

    def look(self) -> bool:
        """Ask the kernel now whether there is something to be read: bytes, the end, or an error."""
        raise NotImplementedError
