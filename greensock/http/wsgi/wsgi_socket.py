"""``environ["werkzeug.socket"]``: the connection of a request that asks for an upgrade, with the methods of a socket.

PEP 3333 has no way to another protocol, and so each server shows its socket in a way of its own; this is the one that
simple-websocket looks for first, on which Flask-Sock, Flask-SocketIO and python-socketio stand. Invariants:

- It is taken with the first call that moves bytes or shows the descriptor. Until then the request is like any other;
  from then on it is the application's: the server writes no answer, no limit of HTTP's holds (the socket's own timeout
  does), and the connection is closed when the application returns.
- The bytes go through the connection, which counts them, and whose end wakes whoever waits. ``fileno()`` shows a
  duplicate of its descriptor, so that a selector may outlive the connection. It is woken then: both halves end once
  what was sent is out, whoever still holds the descriptor. (A socket that ``dup`` made is the application's own, but it
  has the same halves.)
- A server that drains ends the input, as if the client had left: what came before can be read, and answered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

from gevent.monkey import get_original
from gevent.socket import socket as _GeventSocket

from greensock import Connection, ConnectionBusy, ConnectionClosed, ConnectionLost, OperationTimeout, State

__all__ = ["ConnectionSocket"]

_RawSocket: type[_socket.socket] = get_original("socket", "socket")
_close = get_original("os", "close")  # gevent's waits for the next pass of the loop


class ConnectionSocket:
    """A connection that speaks something else from now on. It raises what a socket raises."""

    __slots__ = ("__weakref__", "_closed", "_conn", "_fd", "_io_refs", "_on_taken", "_timeout", "is_taken")

    def __init__(self, conn: Connection, on_taken: Callable[[ConnectionSocket], object]) -> None:
        self._conn = conn
        self._on_taken: Callable[[ConnectionSocket], object] | None = on_taken
        self._timeout: float | None = None
        self._closed = False
        self._io_refs = 0
        self._fd = -1
        #: Whether the application has begun to use it.
        self.is_taken = False

    def __del__(self) -> None:
        self._close_duplicate()

    # -- moving bytes

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Return what is there, at most ``bufsize`` bytes, waiting for the first; ``b""`` is the end of input.

        The flags may be MSG_PEEK and MSG_DONTWAIT.
        """
        conn = self._take()
        if flags & ~(_socket.MSG_PEEK | _socket.MSG_DONTWAIT):
            raise _error(errno.EOPNOTSUPP)
        if bufsize < 1:
            return b""
        timeout = 0.0 if flags & _socket.MSG_DONTWAIT else self._timeout
        try:
            data = conn.recv(bufsize, timeout)
            if data and flags & _socket.MSG_PEEK:
                conn.unread(data)
            return data
        except OSError as error:
            raise self._as_socket_says(error, timeout, errno.ECONNABORTED) from error
        except ConnectionBusy as error:
            raise _error(errno.EBUSY) from error

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Fill ``buffer``, or its first ``nbytes`` bytes, with what is there; return how many bytes that was."""
        view = memoryview(buffer).cast("B")
        data = self.recv(min(nbytes or len(view), len(view)), flags)
        view[: len(data)] = data
        return len(data)

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Send all of ``data``, and return how many bytes that is."""
        conn = self._take()
        if flags & ~(_socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT):
            raise _error(errno.EOPNOTSUPP)
        timeout = 0.0 if flags & _socket.MSG_DONTWAIT else self._timeout
        try:
            if timeout == 0:
                conn.send_nowait(data)
            else:
                conn.send(data, timeout=timeout)
        except OSError as error:
            raise self._as_socket_says(error, timeout, errno.EPIPE) from error
        return memoryview(data).nbytes

    def sendall(self, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        """Send all of ``data``."""
        self.send(data, flags)

    def shutdown(self, how: int) -> None:
        """Shut down one half or both; sending once what was sent before is out."""
        conn = self._take()
        try:
            if how != _socket.SHUT_WR:
                self.end_input()
            if how != _socket.SHUT_RD:
                conn.shutdown_write(timeout=self._timeout)
        except OSError as error:
            raise self._as_socket_says(error, self._timeout, errno.ENOTCONN) from error

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Return a file on the connection, as ``socket.makefile`` does; ``close()`` waits for it to be closed."""
        self._take()
        make: Any = _GeventSocket.makefile
        return make(self, mode, buffering, encoding=encoding, errors=errors, newline=newline)

    def _decref_socketios(self) -> None:
        """Be told by a file of ``makefile`` that it was closed."""
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    # -- closing

    def close(self) -> None:
        """Close, when the last file of ``makefile`` is closed. The engine flushes and lingers: it does not block."""
        self._closed = True
        if self._io_refs > 0:
            return
        self._close_duplicate()
        if self.is_taken:
            self._conn.close()

    def __enter__(self) -> ConnectionSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def expire(self) -> None:
        """Be of no more use: the request is over."""
        self._closed = True
        self._on_taken = None  # which leads back here

    def end_input(self) -> None:
        """Have the application find the end of input: the server is about to stop."""
        with contextlib.suppress(OSError):
            self._conn.shutdown_read()

    @property
    def is_shown(self) -> bool:
        """Whether the application has a descriptor, which keeps the connection open."""
        return self._fd >= 0

    def cut(self) -> None:
        """End both halves, though the application has a descriptor; whoever waits on it wakes."""
        self._shut(self._fd, _socket.SHUT_RDWR)

    def _shut(self, fd: int, how: int) -> None:
        if fd >= 0:
            with contextlib.suppress(OSError), _RawSocket(fileno=os.dup(fd)) as sock:
                sock.shutdown(how)

    def _close_duplicate(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _close(fd)

    # -- looking at it

    def fileno(self) -> int:
        """Return a descriptor to wait on: a duplicate, which ``close`` closes. -1 once it is closed."""
        if self._closed or (self._fd < 0 and self._conn.state is not State.OPEN):
            return -1
        if self._fd < 0:
            self._fd = os.dup(self._take().fileno())
        return self._fd

    def dup(self) -> _GeventSocket:
        """Return a gevent socket on a duplicate of the descriptor."""
        sock = _GeventSocket(self.family, self.type, self.proto, fileno=os.dup(self._take().fileno()))
        sock.settimeout(self._timeout)
        return sock

    @property
    def family(self) -> int:
        """The address family."""
        return _socket.AddressFamily(int(self._conn.getsockopt(_socket.SOL_SOCKET, _socket.SO_DOMAIN)))

    @property
    def type(self) -> int:
        """SOCK_STREAM."""
        return _socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """0."""
        return 0

    def getsockname(self) -> Any:
        """Return our address."""
        self._check_open()
        return self._conn.local_address

    def getpeername(self) -> Any:
        """Return the peer's address."""
        self._check_open()
        return self._conn.address

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:
        """Return a socket option."""
        self._check_open()
        return self._conn.getsockopt(level, option, size)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set a socket option."""
        self._check_open()
        self._conn.setsockopt(level, option, value)

    def settimeout(self, value: float | None) -> None:
        """Let calls that block raise ``TimeoutError`` after so many seconds; 0: never block; None: wait for ever."""
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        """Return what ``settimeout`` was given."""
        return self._timeout

    timeout = property(gettimeout, settimeout, doc="What ``settimeout`` was given.")

    def setblocking(self, flag: bool) -> None:
        """Set the timeout to None or to 0."""
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """Return whether calls may block."""
        return self._timeout != 0

    def __repr__(self) -> str:
        return f"<ConnectionSocket of {self._conn!r}>"

    # -- in detail

    def _take(self) -> Connection:
        """Return the connection, which is the application's from now on."""
        self._check_open()
        if self._on_taken is not None:
            self.is_taken, on_taken, self._on_taken = True, self._on_taken, None
            on_taken(self)
        return self._conn

    def _check_open(self) -> None:
        if self._closed and not self._io_refs:
            raise _error(errno.EBADF)

    def _as_socket_says(self, error: OSError, timeout: float | None, gone: int) -> OSError:
        """Translate: ``gone`` is what it means here that the server has closed the connection."""
        if isinstance(error, OperationTimeout):
            return _error(errno.EAGAIN) if timeout == 0 else TimeoutError("timed out")
        if isinstance(error, ConnectionClosed):
            return _error(errno.EBADF if self._closed else gone)
        if isinstance(error, ConnectionLost):
            return _error(getattr(error.__cause__, "errno", None) or errno.ECONNRESET)
        return error


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
