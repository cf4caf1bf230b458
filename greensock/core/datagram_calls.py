"""The system calls of datagrams, on sockets that never block.

As in ``syscalls``, none is cooperative, whatever was patched. Where the engine is compiled, ``receive_datagrams`` and
``send_datagram`` are calls of C (``_datagrams.pxd``), which take many datagrams at once and make no socket address anew
for a peer that is known.

Linux: udp(7), ip(7), unix(7). What UDP_GRO puts together are datagrams of one peer that are equally long but for the
last one; UDP_SEGMENT cuts one send into such.
"""

from __future__ import annotations

import errno
import socket as _socket
import struct
from collections.abc import Iterable
from typing import Any

from greensock.core.syscalls import BorrowedSocket

__all__ = [
    "MOST_BYTES",
    "OF_THE_NETWORK",
    "READS_AT_ONCE",
    "can_segment",
    "change_membership",
    "check_place",
    "kernel_drops",
    "receive_datagrams",
    "send_datagram",
    "send_segments",
    "take_errors",
    "tell_errors",
    "unite",
]

#: What ``receive_datagrams`` reads at the most before it returns: fewer datagrams than that, and there were no more.
READS_AT_ONCE = 1
#: Bytes of a UDP datagram over IPv4 without options (RFC 768, RFC 791: 65,535 with both heads).
MOST_BYTES = 65507

#: Datagrams that one send may be cut into (older kernels: 64, newer ones 128).
MOST_SEGMENTS = 64
#: Errors that are read at once: others may have a turn before the rest.
MOST_ERRORS = 64

_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_SO_MEMINFO, _MEMINFO_DROPS = 55, 8
_number = struct.Struct("i")
_short = struct.Struct("H")
#: struct sock_extended_err: the error, and who says so.
_error = struct.Struct("=IBBBBII")
_GRO_ROOM = _socket.CMSG_SPACE(_number.size)
_ERROR_ROOM = 512
#: Bytes of what UDP_GRO puts together, at the most.
_COALESCED = 65536

#: What ICMP, or the way to the peer, can say of what was sent.
OF_THE_NETWORK = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENONET}
    | {errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ECONNRESET, errno.EMSGSIZE}
    | {errno.ENOENT, errno.EADDRNOTAVAIL, errno.EPIPE}
)

#: What came, None if that was longer than ``size``; and from whom.
Received = tuple[Any, Any]


def receive_datagrams(sock: BorrowedSocket, fd: int, size: int, has_gro: bool) -> list[Received] | None:
    """Take what came, the last first, each of ``size`` bytes at the most; None: there is nothing.

    ``fd`` is the number of ``sock``, which is all that C needs. ``has_gro`` says that the kernel may put some together.

    Raises:
        OSError: as recvfrom(2) does; that may be about a datagram that was sent.
    """
    try:
        if not has_gro:
            # One byte more: what fills that was longer.
            data, address = sock.recvfrom(size + 1)
            return [(data if len(data) <= size else None, address)]
        # Of all that was put together there has to be room, however short each datagram is to be.
        data, extras, _, address = sock.recvmsg(_COALESCED, _GRO_ROOM)
    except BlockingIOError:
        return None
    each = _number.unpack(extras[0][2])[0] if extras else len(data)
    if each > size:
        # The last one may be shorter, and is taken (test_of_what_came_together_only_what_is_too_long_is_left_out).
        return [(data[at:] if len(data) - at <= size else None, address) for at in range(0, len(data), each)][::-1]
    if not extras:
        return [(data, address)]
    return [(data[at : at + each], address) for at in range(0, len(data), each)][::-1]


def send_datagram(sock: BorrowedSocket, fd: int, family: int, data: Any, address: Any) -> int:
    """Send one datagram, to the peer that the socket is connected to if ``address`` is None; return its length.

    Raises:
        ValueError: the address is none. A host has to be in numbers: to look up a name would hold up everybody.
        OSError: as sendto(2) does.
    """
    if address is None:
        sent: int = sock.send(data)
    else:
        check_place(family, address)
        sent = sock.sendto(data, address)
    return sent


def check_place(family: int, address: Any) -> None:
    """Raise ValueError if it is no address of that family."""
    if family == _socket.AF_UNIX:
        if not isinstance(address, str | bytes) or not address:
            raise ValueError(f"address={address!r}: the path of a socket, or an abstract name, expected")
        return
    try:
        _socket.inet_pton(family, address[0])
        if not (isinstance(address, tuple) and 0 <= address[1] <= 65535):
            raise ValueError
    except (OSError, TypeError, ValueError, IndexError, KeyError):
        raise ValueError(f"address={address!r}: (host, port) expected, the host in numbers") from None


def send_segments(sock: BorrowedSocket, view: memoryview, size: int, address: Any) -> int:
    """Have the kernel cut so many bytes into datagrams of ``size`` each (UDP_SEGMENT); return how many bytes it took.

    Raises:
        OSError: as sendmsg(2) does.
    """
    most = max(1, min(MOST_SEGMENTS, MOST_BYTES // size)) * size
    extra = [(_socket.IPPROTO_UDP, _UDP_SEGMENT, _short.pack(size))]
    sent: int = sock.sendmsg([view[:most]], extra, 0, *(() if address is None else (address,)))
    return sent


def can_segment(sock: BorrowedSocket) -> bool:
    """Whether the kernel cuts what is sent (Linux 4.18)."""
    try:
        sock.getsockopt(_socket.IPPROTO_UDP, _UDP_SEGMENT)
    except OSError:
        return False
    return True


def unite(sock: BorrowedSocket) -> bool:
    """Have the kernel hand over together what came together; False if it can't (before Linux 5.0)."""
    try:
        sock.setsockopt(_socket.IPPROTO_UDP, _UDP_GRO, 1)
    except OSError:
        return False
    return True


def kernel_drops(sock: BorrowedSocket) -> int:
    """Return how many datagrams the kernel has dropped that came for the socket, most often as its buffer was full.

    That is the number that SO_RXQ_OVFL tells with datagrams, asked for only when it is wanted.
    """
    try:
        told = sock.getsockopt(_socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))
    except OSError:
        return 0  # before Linux 4.12
    return int.from_bytes(told[4 * _MEMINFO_DROPS :], "little" if _number.pack(1)[0] else "big")


def tell_errors(sock: BorrowedSocket) -> bool:
    """Have the kernel keep, with its address, what ICMP says of datagrams that were sent; False if it does not."""
    try:
        if sock.family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        sock.setsockopt(_socket.IPPROTO_IP, _IP_RECVERR, 1)  # of IPv4 over a socket of IPv6, too
    except OSError:
        return bool(sock.family == _socket.AF_INET6)
    return True


def take_errors(sock: BorrowedSocket) -> Iterable[tuple[int, Any]]:
    """Go through what the kernel kept, a part of it at a time: the error, and whom the datagram was sent to."""
    for _ in range(MOST_ERRORS):
        try:
            _, extras, _, address = sock.recvmsg(0, _ERROR_ROOM, _socket.MSG_ERRQUEUE)
        except OSError:
            return
        for level, kind, data in extras:
            if (level, kind) in ((_socket.IPPROTO_IP, _IP_RECVERR), (_socket.IPPROTO_IPV6, _IPV6_RECVERR)):
                yield _error.unpack_from(data)[0], address


def change_membership(sock: BorrowedSocket, group: str, interface: str | int | None, joins: bool) -> None:
    """Join a multicast group, or leave it. ``interface`` is a name, a number or, for IPv4, an address; None: any.

    Raises:
        ValueError: it is no group of the socket's family, or there is no such interface.
        OSError: the kernel refused.
    """
    family = sock.family
    try:
        packed = _socket.inet_pton(family, group)
    except (OSError, TypeError):
        packed = b"\0"
    if packed[0] != 0xFF if family == _socket.AF_INET6 else packed[0] >> 4 != 0xE:
        kind = "ff02::1" if family == _socket.AF_INET6 else "224.0.0.251"
        raise ValueError(f"group={group!r}: an address of a multicast group expected, such as {kind}")
    index, own = 0, bytes(4)
    try:
        if isinstance(interface, str) and family == _socket.AF_INET and interface[:1].isdigit():
            own = _socket.inet_pton(family, interface)
        elif interface is not None:
            index = interface if isinstance(interface, int) else _socket.if_nametoindex(interface)
    except OSError:
        raise ValueError(f"interface={interface!r}: the name or number of an interface, or its address") from None
    if family == _socket.AF_INET6:
        option = _socket.IPV6_JOIN_GROUP if joins else _socket.IPV6_LEAVE_GROUP
        sock.setsockopt(_socket.IPPROTO_IPV6, option, packed + struct.pack("@I", index))
    else:
        option = _socket.IP_ADD_MEMBERSHIP if joins else _socket.IP_DROP_MEMBERSHIP
        sock.setsockopt(_socket.IPPROTO_IP, option, packed + own + struct.pack("@i", index))
