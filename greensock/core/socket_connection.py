"""``SocketConnection``: a connection with the methods of a socket, which raises what a socket raises.

It is what the handlers of :class:`greensock.StreamServer` get in place of a gevent socket (a socket object and two
watchers): a bare descriptor in the engine.

Invariants:

- A failed system call raises and changes nothing else: after a reset or a broken pipe the descriptor is still there,
  and what the peer sent before can be read. (A ``Connection`` would be closed.)
- The engine watches it from its first wait on. Before that it is owned by its references alone, so that one whose
  handler never ran (killed in a pool before its start) is closed when it is collected, as sockets are.
- ``close()`` counts the files of ``makefile`` as sockets do; then it hands over to the engine, which flushes and
  lingers.

What a program could notice: ``sendall`` calls of several greenlets go out whole, one after the other; one that was cut
short (by a timeout, a kill) is finished by the engine; ``close()`` with unread input ends with FIN, not RST (but
SO_LINGER is obeyed), and so ends a duplicate in a child process too (``linger_timeout = 0`` closes as sockets do);
``MSG_DONTWAIT`` does not wait; ``isinstance(conn, socket.socket)`` is False; and a connection that has waited and is
never closed (a server with a ``do_close`` of its own) is not closed by garbage collection.
"""

from __future__ import annotations

import errno
import io
import os
import socket as _socket
import stat
import warnings
from collections.abc import Callable, Iterable
from math import inf
from types import TracebackType
from typing import Any, BinaryIO, TypeVar, cast

from gevent.event import Event
from gevent.exceptions import ConcurrentObjectUseError
from gevent.socket import socket as _GeventSocket
from greenlet import getcurrent

from greensock.core.connection import Connection
from greensock.core.lifecycle import CLOSED, INHERIT, OPEN, Timeout
from greensock.core.poller import Poller
from greensock.core.send_queue import Buffer, FileSegment, Outgoing
from greensock.core.syscalls import borrow_socket, close, read, readv, write
from greensock.core.transport import Sealing, Transport
from greensock.errors import ConnectionBusy, ConnectionClosed, DropReason, OperationTimeout

__all__ = ["SocketConnection"]

_Result = TypeVar("_Result")


class SocketConnection(Connection):
    """A connection with the methods, the semantics and the errors of a gevent socket.

    The methods that a socket does not have are those of :class:`Connection`.
    """

    __slots__ = ("_closed", "_io_refs", "_watched", "proto")

    def __init__(self, poller: Poller, fd: int, family: int, address: Any, *, proto: int = 0) -> None:
        super().__init__(poller, fd, family, address)
        self.proto = proto
        self._closed = False
        self._io_refs = 0
        self._watched = False
        self.recv_timeout = self.send_timeout = _socket.getdefaulttimeout()

    def __del__(self) -> None:
        # One that is watched is referred to by the poller, so it is collected only with that.
        if self._fd < 0 or self._watched:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            close(self._give_up_descriptor())

    # -- receiving

    def recv(self, bufsize: int, flags: int = 0) -> bytes:  # type: ignore[override]  # the signature of a socket
        """Return what is there, at most ``bufsize`` bytes, waiting for the first; ``b""`` is the end of input."""
        if flags or bufsize < 1 or self._stash or self._transport is not None:
            return self._recv_rarely(bufsize, flags)
        deadline = inf
        while True:
            if self._readable and self._reader is None:
                try:
                    data: bytes = read(self._fd, bufsize)
                except BlockingIOError:
                    self._found_empty()
                # An error passes as it is and changes nothing: what came before a reset can still be read
                # (test_what_came_before_the_broken_pipe_can_be_read).
                else:
                    self._took(len(data), bufsize)
                    return data
            deadline = self._await_input(INHERIT, deadline)

    def recv_into(  # type: ignore[override]
        self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0
    ) -> int:
        """Fill ``buffer`` (or its first ``nbytes`` bytes) with what is there and return how many bytes that was."""
        view = memoryview(buffer).cast("B")
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        if nbytes > len(view):
            raise ValueError("buffer too small for requested bytes")
        if nbytes:
            view = view[:nbytes]
        if flags or self._stash or not view or self._transport is not None:
            data = self._recv_rarely(len(view), flags)
            view[: len(data)] = data
            return len(data)
        deadline = inf
        while True:
            if self._readable and self._reader is None:
                try:
                    return self._took(readv(self._fd, [view]), len(view))
                except BlockingIOError:
                    self._found_empty()
            deadline = self._await_input(INHERIT, deadline)

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Any]:
        """Receive as ``recv`` does; the address is what the kernel says of a stream: nothing."""
        if self._stash or bufsize < 1:
            return self._recv_rarely(bufsize, flags), None
        data, address = self._ask(lambda sock, careful: sock.recvfrom(bufsize, flags | careful), flags)
        self._count(len(data), flags)
        return data, address

    def recvfrom_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive as ``recv_into`` does; the address is None."""
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> tuple[bytes, list[Any], int, Any]:
        """Receive data and ancillary data."""
        if self._stash:
            return self._recv_rarely(bufsize, flags), [], 0, None
        message = self._ask(lambda sock, careful: sock.recvmsg(bufsize, ancbufsize, flags | careful), flags)
        self._count(len(message[0]), flags)
        return message

    def recvmsg_into(
        self, buffers: Iterable[bytearray | memoryview], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, Any]:
        """Receive data into the buffers, and ancillary data."""
        views = list(buffers)
        if self._stash and views:
            return self.recv_into(views[0], 0, flags), [], 0, None
        message = self._ask(lambda sock, careful: sock.recvmsg_into(views, ancbufsize, flags | careful), flags)
        self._count(message[0], flags)
        return message

    def _recv_rarely(self, bufsize: int, flags: int) -> bytes:
        """Receive with flags, nothing, or from what ``unread`` and the like left."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        self._check_open()
        if not bufsize:
            return b""
        if self._stash:
            return bytes(self._stash[:bufsize]) if flags & _socket.MSG_PEEK else self._take(bufsize)
        if isinstance(self._transport, Sealing):
            return self._recv_sealed(bufsize, flags)
        data = self._ask(lambda sock, careful: sock.recv(bufsize, flags | careful), flags)
        self._count(len(data), flags)
        return data

    def _recv_sealed(self, bufsize: int, flags: int) -> bytes:
        """Receive over TLS: with flags, as over gevent's SSL sockets, nothing can be."""
        self._refuse_sealed(flags)
        assert self._transport is not None
        deadline = inf
        while True:
            if self._readable and self._reader is None:
                try:
                    data = self._transport.read(bufsize)
                except BlockingIOError:
                    self._found_empty()
                else:
                    self._took(len(data), bufsize)
                    return data
            deadline = self._await_input(INHERIT, deadline)

    def _refuse_sealed(self, flags: int = 1) -> None:
        """Refuse what would go past TLS, in the clear."""
        if flags and isinstance(self._transport, Sealing):
            raise OSError(errno.EOPNOTSUPP, f"{os.strerror(errno.EOPNOTSUPP)}: over TLS")

    def _ask(self, call: Callable[[_socket.socket, int], _Result], flags: int) -> _Result:
        """Make a receiving call of a socket object, blocking until it does not say EAGAIN."""
        self._refuse_sealed()
        deadline = inf
        while True:
            try:
                with self._borrow() as sock:
                    return call(sock, self._careful)
            except BlockingIOError:
                if flags & _socket.MSG_DONTWAIT:
                    raise
                self._found_empty()
            deadline = self._await_input(INHERIT, deadline)

    @property
    def _careful(self) -> int:
        """The flag by which a call does not wait on a descriptor that others may have made a blocking one."""
        return _socket.MSG_DONTWAIT if self._transport is not None else 0

    def _count(self, received: int, flags: int) -> None:
        if not flags & _socket.MSG_PEEK:
            self.bytes_received += received

    def _await_input(self, timeout: Timeout, deadline: float) -> float:
        # The first wait is when the engine begins to watch. Many a handler never waits: it finds its request in the
        # socket, and is spared the registration.
        self._watch()
        if getcurrent() is self._poller.hub and self._has_input():
            self._readable = True  # a handler in the hub may not block, but may read what has already come
            return deadline
        try:
            return super()._await_input(timeout, deadline)
        except OperationTimeout:
            # The same words as a socket's: not to be there at once is EAGAIN, not to come in time is a timeout
            # (test_timed_out, test_would_block).
            if (self.recv_timeout if timeout is INHERIT else timeout) == 0:
                raise _would_block() from None
            raise TimeoutError("timed out") from None
        except ConnectionBusy:
            raise ConcurrentObjectUseError(f"{self!r} is already being read by another greenlet") from None

    def _has_input(self) -> bool:
        """Ask the kernel, which may raise what became of the connection."""
        if isinstance(self._transport, Sealing):
            return self._transport.look()
        try:
            with self._borrow() as sock:
                sock.recv(1, _socket.MSG_PEEK | self._careful)
        except BlockingIOError:
            return False
        return True

    # -- sending

    def send(self, data: Buffer, flags: int = 0) -> int:  # type: ignore[override]  # the signature of a socket
        """Send what the kernel takes of ``data``, waiting until it takes some; return how many bytes that was."""
        # Not ``_clear``: that is kept by the engine's events, which an unwatched connection does not get.
        if not flags and not self._out and self._state is OPEN and self._transport is None:
            try:
                sent: int = write(self._fd, data)
            except BlockingIOError:
                pass
            else:
                self.bytes_sent += sent
                return sent
        if isinstance(self._transport, Sealing):
            self.sendall(data, flags)  # a part that is encrypted cannot be taken back
            return memoryview(data).nbytes
        return self._transmit(lambda fd: self._write(fd, data, flags), flags)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send all of ``data``. After an error there is no telling how much was sent, but see the module's text."""
        view = memoryview(data).cast("B")
        size, sent = len(view), 0
        waits = self.send_timeout != 0 and not flags & _socket.MSG_DONTWAIT
        self._check_open()
        # Behind others it goes to the queue at once (test_sendalls_of_many_greenlets_go_out_whole).
        while sent < size and not self._out:
            try:
                moved = self._write(self._fd, view[sent:] if sent else view, flags)
            except BlockingIOError:
                self._writable = False
                if not waits:
                    raise
                break
            self.bytes_sent += moved
            sent += moved
        if sent == size:
            return
        if not waits:
            raise _would_block()
        # The rest is finished by the engine even if this call is cut short, so that other sends do not land in the
        # middle of it (test_a_sendall_that_was_cut_short_is_finished_by_the_engine).
        entry = _Whole(view[sent:], lambda fd, rest: self._write(fd, rest, flags))
        entry.sent = sent
        self._pass(entry)

    def sendto(self, data: Buffer, *flags_and_address: Any) -> int:
        """Send as ``send`` does; the address is the kernel's to judge."""
        self._refuse_sealed()
        flags = flags_and_address[0] if len(flags_and_address) > 1 else 0

        def call(fd: int) -> int:
            with borrow_socket(fd, self._family) as sock:
                return sock.sendto(data, flags | self._careful, *flags_and_address[-1:])

        return self._transmit(call, flags)

    def sendmsg(
        self, buffers: Iterable[Buffer], ancdata: Iterable[Any] = (), flags: int = 0, address: Any = None
    ) -> int:
        """Send gathered buffers and ancillary data; return how many bytes of the buffers the kernel took."""
        self._refuse_sealed()
        views, ancillary = list(buffers), list(ancdata)

        def call(fd: int) -> int:
            with borrow_socket(fd, self._family) as sock:
                return sock.sendmsg(views, ancillary, flags | self._careful, address)

        return self._transmit(call, flags)

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Send a file from ``offset`` (0: from its position) to its end or for ``count`` bytes; return how many.

        The position moves behind what was sent. A plain file goes through the kernel's sendfile, any other through its
        own ``read``.
        """
        self._check_sendfile_params(file, offset, count)
        raw = file.raw if type(file) is io.BufferedReader else file
        if type(raw) is not io.FileIO or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            send_all: Any = _GeventSocket._sendfile_use_send  # type: ignore[attr-defined]
            return int(send_all(cast(Any, self), file, offset, count))
        if self.send_timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        self._check_open()
        start = offset or file.tell()
        rest = max(0, os.fstat(raw.fileno()).st_size - start)
        entry = _ToldFile(raw.fileno(), start, rest if count is None else min(count, rest))
        try:
            self._pass(entry)
        finally:
            if entry.sent:
                file.seek(start + entry.sent)
        return entry.sent

    def _check_sendfile_params(self, file: Any, offset: int, count: int | None) -> None:
        _GeventSocket._check_sendfile_params(cast(Any, self), file, offset, count)  # type: ignore[attr-defined]

    def _write(self, fd: int, data: Buffer, flags: int) -> int:
        if isinstance(self._transport, Sealing):
            self._refuse_sealed(flags)
            return self._transport.write(memoryview(data))
        flags |= self._careful
        if flags:
            with borrow_socket(fd, self._family) as sock:
                return sock.send(data, flags)
        sent: int = write(fd, data)
        return sent

    def _transmit(self, call: Callable[[int], int], flags: int) -> int:
        """Make one sending system call, when those before it are through and the socket has room."""
        self._check_open()
        waits = self.send_timeout != 0 and not flags & _socket.MSG_DONTWAIT
        if not self._out:
            try:
                sent = call(self._fd)
            except BlockingIOError:
                self._writable = False
                if not waits:
                    raise
            else:
                self.bytes_sent += sent
                return sent
        elif not waits:
            raise _would_block()
        # In the queue like everything else, so that it neither overtakes a send that waits nor lands in the middle of
        # one (test_a_send_waits_for_the_sends_before_it).
        entry = _Once(call)
        self._pass(entry)
        return entry.sent

    def _pass(self, entry: _Told) -> None:
        """Put the entry in the queue, block until it is through, and raise what it met."""
        try:
            self._submit(entry)
            self.await_sent(entry, self.send_timeout)  # of the whole call, as with sockets
        except OperationTimeout:
            raise TimeoutError("timed out") from None
        except ConnectionClosed:  # shutdown_write() was called, and waits in the queue
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        # Raised by the sender and not where it came up: that was in the hub.
        error, entry.error = entry.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # no cycle of the error and this frame

    # -- timeouts

    def settimeout(self, value: float | None) -> None:
        """Let calls that block raise ``TimeoutError`` after so many seconds; 0: never block; None: wait for ever."""
        if value is not None:
            if not hasattr(value, "__float__"):
                raise TypeError("a float is required", value, type(value))
            value = float(value)
            if value < 0.0:
                raise ValueError("Timeout value out of range")
        self.recv_timeout = self.send_timeout = value

    def gettimeout(self) -> float | None:
        """Return what ``settimeout`` was given."""
        return self.recv_timeout

    timeout = property(gettimeout, settimeout, doc="What ``settimeout`` was given.")

    def setblocking(self, flag: bool) -> None:
        """Set the timeout to None or to 0."""
        self.recv_timeout = self.send_timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """Return whether calls may block."""
        return self.recv_timeout != 0

    # -- closing

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
        make: Any = _GeventSocket.makefile
        return make(self, mode, buffering, encoding=encoding, errors=errors, newline=newline)

    def _decref_socketios(self) -> None:
        """Be told by a file of ``makefile`` that it was closed."""
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close, when the last file of ``makefile`` is closed; the engine flushes and lingers, so it never blocks."""
        # With a file of ``makefile`` still open it is closed in name only; the last file to close comes here again
        # (test_close_waits_for_the_files).
        self._closed = True
        if self._io_refs > 0 or self._state is not OPEN:
            return
        # A linger waits for the peer's FIN, and only a watched connection hears of it.
        if self.linger_timeout and not self._eof:
            try:
                self._watch()
            except OSError:
                self.linger_timeout = 0.0  # the kernel has no room to watch it: close without lingering
        super().close()

    @property
    def closed(self) -> bool:
        """Whether ``close()`` or ``detach()`` was called."""
        return self._closed or self._state is not OPEN

    def detach(self) -> int:
        """Give the descriptor (non-blocking) to the caller; this object is closed then."""
        self._closed = True
        if self._state is not OPEN:
            return -1
        # Out of the epoll set by name: the descriptor lives on, and its events with it. Then it is given up before the
        # state changes, so that nothing of that closes it.
        if self._watched:
            self._poller.forget(self, still_open=True)
        self._poller.disarm(self)
        fd = self._give_up_descriptor()
        self._leave_open(CLOSED, DropReason.CLOSED)
        for entry in self._out or ():
            entry.discard()
        self._out = None
        for event in (self._events or {}).values():
            event.set()
        return fd

    def shutdown(self, how: int) -> None:
        """Shut down one half or both, at once. Who is blocked gets the end of input or ``BrokenPipeError``."""
        self._check_open()
        if how != _socket.SHUT_RD and isinstance(self._transport, Sealing):
            self._transport.end()
        with self._borrow() as sock:
            sock.shutdown(how)

    def __enter__(self) -> SocketConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._closed:
            self.close()

    # -- looking at it

    @property
    def family(self) -> int:
        """The address family."""
        try:
            return _socket.AddressFamily(self._family)
        except ValueError:
            return self._family

    @property
    def type(self) -> _socket.SocketKind:
        """SOCK_STREAM."""
        return _socket.SOCK_STREAM

    def fileno(self) -> int:
        """Return the descriptor, which stays ours; -1 once it is closed. See :meth:`Connection.fileno`."""
        return super().fileno() if self._state is OPEN else -1

    def getsockname(self) -> Any:
        """Return our address."""
        with self._borrow() as sock:
            return sock.getsockname()

    def getpeername(self) -> Any:
        """Return the peer's address."""
        with self._borrow() as sock:
            return sock.getpeername()

    def setsockopt(self, level: int, option: int, value: int | bytes | None, optlen: int | None = None) -> None:
        """Set a socket option."""
        with self._borrow() as sock:
            if optlen is None:
                sock.setsockopt(level, option, cast(Any, value))
            else:
                sock.setsockopt(level, option, cast(None, value), optlen)
            if level == _socket.SOL_SOCKET and option == _socket.SO_LINGER:
                # ``l_onoff`` is set: the kernel lingers or resets, as the program wishes
                # (test_an_asked_for_reset_is_sent).
                if sock.getsockopt(level, option, 8)[:4] != bytes(4):
                    self.linger_timeout = 0.0  # what close() does is then the kernel's to do

    def dup(self) -> _GeventSocket:
        """Return a gevent socket on a duplicate of the descriptor. ``close()`` sends no FIN then, as with sockets."""
        self._check_open()
        self._share()
        sock = _GeventSocket(self.family, self.type, self.proto, fileno=os.dup(self._fd))
        sock.settimeout(self.gettimeout())
        return sock

    def get_inheritable(self) -> bool:
        """Return whether child processes inherit the descriptor."""
        return os.get_inheritable(self._fd)

    def set_inheritable(self, inheritable: bool) -> None:
        """Set whether child processes inherit the descriptor: then others may hold it, as with ``fileno``."""
        if inheritable:
            self._check_open()
            self._share()
        os.set_inheritable(self._fd, inheritable)

    # -- the engine's side

    def _survive_fork(self) -> None:
        # The child watches it anew, with an engine of its own, from its first wait on.
        super()._survive_fork()
        self._watched = False

    def _enter_child(self) -> None:
        """Be watched from the first wait on, as ever."""

    def _leave_to_engine(self, entry: Outgoing) -> None:
        """Have the engine finish it however long it takes: ``settimeout`` is for calls."""

    def _watch(self) -> None:
        """Have the engine watch it from now on."""
        if not self._watched:
            self._check_open()
            self._poller.register(self)
            self._watched = True

    def _submit(self, entry: Outgoing) -> None:
        self._watch()
        super()._submit(entry)

    def _event(self, name: str) -> Event:
        if self._state is OPEN:
            self._watch()
        return super()._event(name)

    def _borrow(self) -> Any:
        self._check_open()
        return borrow_socket(self._fd, self._family)

    def _check_fd(self) -> None:
        self._check_open()

    def _closed_error(self) -> OSError:  # type: ignore[override]  # what a socket raises
        number = errno.EBADF if self._failure is None else getattr(self._failure, "errno", None) or errno.EBADF
        return OSError(number, os.strerror(number))

    def _lost(self, error: OSError) -> OSError:  # type: ignore[override]
        """Translate for the methods of ``Connection``; unlike there, the descriptor stays."""
        return self._closed_error() if self._state is not OPEN else OSError(error.errno, error.strerror)


class _Told(Outgoing):
    """An entry of the send queue that keeps the error it met for its sender, and lets the connection live."""

    error: Exception | None = None

    def push(self, fd: int, transport: Transport | None = None) -> int:
        try:
            return self._push(fd, transport)
        except BlockingIOError:
            raise
        # It ends the entry and not the connection: a socket stays open after a failed send
        # (test_a_wrong_argument_behind_other_sends_is_told).
        except Exception as error:  # a TypeError too: this may be the first to look at the arguments
            self.error = error.with_traceback(None)
            self.left = 0
            return 0

    def _push(self, fd: int, transport: Transport | None) -> int:
        raise NotImplementedError


class _Once(_Told):
    """One system call. It counts as one byte left."""

    def __init__(self, call: Callable[[int], int]) -> None:
        super().__init__(1)
        self._call = call

    def _push(self, fd: int, transport: Transport | None) -> int:
        self.sent = self._call(fd)
        self.left = 0
        return self.sent


class _Whole(_Told):
    """Bytes that go out to the last one."""

    def __init__(self, view: memoryview, call: Callable[[int, memoryview], int]) -> None:
        super().__init__(len(view))
        self._view = view
        self._call = call

    def _push(self, fd: int, transport: Transport | None) -> int:
        moved = self._call(fd, self._view)
        self._view = self._view[moved:]
        self.left -= moved
        self.sent += moved
        return moved

    def detach(self) -> None:
        if not isinstance(self._view.obj, bytes):
            self._view = memoryview(bytes(self._view))


class _ToldFile(_Told, FileSegment):
    """A part of a file."""

    def _push(self, fd: int, transport: Transport | None) -> int:
        return FileSegment.push(self, fd, transport)


def _would_block() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
