"""The system calls of the hot path, on bare descriptors.

A connection is a descriptor and no socket object: that saves 0.4 kB each, and ``os.read`` and ``os.write`` cost less
than a method of a socket. What only a socket object can do (options, shutdown, names) borrows one for a moment.
The names are bound here once, from the real modules, so that monkey-patching cannot put a cooperative version in
their place. Where the engine is compiled, ``accept``, ``read``, ``write`` and ``switch_to`` are calls of C
(``_sys.pxd``).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket as _stdlib_socket
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent.monkey import get_original
from greenlet import greenlet

__all__ = [
    "EVENT_DATA",
    "EVENT_HANGUP",
    "EVENT_INPUT",
    "EVENT_READ",
    "EVENT_UNSURE",
    "EVENT_WRITE",
    "INTEREST",
    "BorrowedSocket",
    "RawSocket",
    "accept",
    "borrow_socket",
    "both_sides_are_down",
    "close",
    "has_input",
    "has_unacknowledged",
    "new_epoll",
    "peer_has_hung_up",
    "read",
    "readv",
    "reset_on_close",
    "switch_to",
    "unpack_address",
    "unread",
    "write",
    "writev",
]

if not hasattr(os, "splice") or not hasattr(select, "EPOLLRDHUP"):
    raise ImportError("greensock needs Linux (epoll, splice); this system does not have them")

#: The C socket type, whichever module was patched.
RawSocket = get_original("_socket", "socket")


class BorrowedSocket(RawSocket):  # type: ignore[misc, valid-type]  # a variable, to mypy
    """A socket object on a descriptor that it does not own.

    When it is collected it leaves the number alone, as a RawSocket would not: that may be another file's by then. Its
    calls raise BlockingIOError at once, whatever ``socket.setdefaulttimeout`` says: with the timeout that a new socket
    object takes from there, each would wait so long, in the hub.
    """

    __slots__ = ()

    def __init__(self, family: int, kind: int, proto: int, fd: int) -> None:
        super().__init__(family, kind, proto, fd)
        if self.gettimeout():
            self.settimeout(0.0)

    def __del__(self) -> None:
        self.detach()


read = get_original("os", "read")
readv = os.readv
write = get_original("os", "write")
writev = os.writev
close = get_original("os", "close")  # gevent's lingers until the next pass of the loop

#: Switch to a greenlet, whatever its class makes of ``switch``; a hub's first looks in vain for an attribute: 0.15 us.
switch_to = greenlet.switch

#: Every connection is registered once for these, edge-triggered.
INTEREST: int = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
EVENT_INPUT: int = select.EPOLLIN
EVENT_READ: int = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
#: What is told of a connection on which data came: it can be read, and written as ever.
EVENT_DATA: int = select.EPOLLIN | select.EPOLLOUT
EVENT_WRITE: int = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
EVENT_HANGUP: int = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
#: After these a short read does not mean empty: there may be an end behind it, or it may have stopped at urgent data.
EVENT_UNSURE: int = EVENT_HANGUP | select.EPOLLPRI

_new_poll = get_original("select", "poll")
#: Make an epoll set (``select.epoll`` is taken away by monkey-patching).
new_epoll = get_original("select", "epoll")

_LINGER_NOT = struct.pack("ii", 1, 0)


def accept(listener: BorrowedSocket, fd: int) -> tuple[int, Any] | None:
    """Take one connection: its descriptor, which never blocks, and the peer's address, packed where that saves room.

    ``fd`` is the listener's number, which is all that C needs. None: there is none. Each drain ends so, and an
    exception for that would cost as much as half of a connection's life.

    Raises:
        OSError: as accept(2) does.
    """
    # The C type's ``_accept`` gives a bare descriptor, where ``socket.accept`` makes an object for each connection.
    try:
        fd, address = listener._accept()
    except BlockingIOError:
        return None
    # O_NONBLOCK is not inherited from the listener, as TCP_NODELAY and keep-alive are.
    os.set_blocking(fd, False)
    return fd, pack_address(listener.family, address)


def pack_address(family: int, address: Any) -> Any:
    """Return an address in the fewest bytes: most are never asked for, and a tuple, a text and a number are 170."""
    if family == _stdlib_socket.AF_INET:
        return _IPV4.pack(_stdlib_socket.inet_aton(address[0]), address[1])
    if family == _stdlib_socket.AF_INET6:
        return _IPV6.pack(_stdlib_socket.inet_pton(family, address[0].partition("%")[0]), *address[1:])
    return address


def unpack_address(family: int, packed: bytes) -> tuple[Any, ...]:
    """Return an address as the standard library writes it."""
    host, *rest = (_IPV4 if family == _stdlib_socket.AF_INET else _IPV6).unpack(packed)
    return (_stdlib_socket.inet_ntop(family, host), *rest)


#: Host and port, and for IPv6 flow information and scope; in the order of bytes of networks.
_IPV4, _IPV6 = struct.Struct("!4sH"), struct.Struct("!16sHII")


@contextmanager
def borrow_socket(fd: int, family: int) -> Iterator[_stdlib_socket.socket]:
    """Make a socket object for a stream descriptor, for a moment; the descriptor stays ours and open."""
    sock = RawSocket(family, _stdlib_socket.SOCK_STREAM, 0, fd)
    if sock.gettimeout():
        # Only if a default timeout is set: each call would wait for it, in the hub
        # (test_a_default_timeout_of_sockets_holds_up_nobody).
        sock.settimeout(0.0)  # as in BorrowedSocket
    try:
        yield sock
    finally:
        sock.detach()


def reset_on_close(fd: int, family: int) -> None:
    """Make the next ``close`` send RST and throw away what was not sent."""
    with borrow_socket(fd, family) as sock:
        sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_LINGER, _LINGER_NOT)


def both_sides_are_down(fd: int) -> bool:
    """Ask the kernel now whether nothing can come or go any more: both sent FIN, or the connection is broken."""
    # With no events asked for, poll tells of POLLHUP and POLLERR alone.
    poll = _new_poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def peer_has_hung_up(fd: int) -> bool:
    """Ask the kernel now whether the peer sent FIN or the connection is broken."""
    poll = _new_poll()
    poll.register(fd, select.EPOLLRDHUP)
    return bool(poll.poll(0))


def has_input(fd: int) -> bool:
    """Ask the kernel now whether there is something to be read: bytes, the peer's FIN, or an error."""
    poll = _new_poll()
    poll.register(fd, EVENT_UNSURE | EVENT_INPUT)
    return bool(poll.poll(0))


def unread(fd: int) -> int | None:
    """Return how many bytes came that were not read; None if the connection is broken."""
    poll = _new_poll()
    try:
        poll.register(fd, 0)
        return None if poll.poll(0) else int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return None


def has_unacknowledged(fd: int) -> bool:
    """Ask the kernel now whether bytes that were sent are not yet with the peer. (On a Unix socket: not yet read.)"""
    try:
        return fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)) != bytes(4)
    except OSError:
        return False  # a protocol that can't say
