"""Addresses to listen on: how they are written, and how a listening socket comes of one.

The only state is which file belongs to which socket that ``listen`` bound to a path. A file is removed only by the
process that made it, for that socket, and only if it is still the same one: not what a successor bound there, nor what
systemd or a parent gave us.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket as _socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from gevent.monkey import get_original

__all__ = [
    "PeerCredentials",
    "bind_datagrams",
    "listen",
    "owner_ids",
    "parse_address",
    "pass_on",
    "port_number",
    "remove_file",
    "split_address",
]


class PeerCredentials(NamedTuple):
    """Who is at the other end of a Unix socket, as the kernel says (unix(7), SO_PEERCRED).

    Of a peer that has connected it is what it was when it did so; of a server, when it began to listen. So the process
    may have ended since, and its number be another's.
    """

    #: The process; 0 if it is of a namespace that is hidden from this one.
    pid: int
    #: Its effective user and group; 65534 (overflowuid) for one that has no number here.
    uid: int
    gid: int


def parse_address(address: Any) -> tuple[int, Any]:
    """Return the family and the socket address of ``(host, port)``, ``"host:port"``, ``"[v6]:port"``, a port or a path.

    A string with a ``/``, one that begins with ``unix:``, or a path object is a Unix socket. ``unix:@name`` is one with
    an abstract name (unix(7)), which is no file; so are text and bytes that begin with NUL, as the kernel writes it. An
    empty host or ``*`` is every address; so is a port alone. Of a name that has several addresses it is the first IPv4
    one, if there is any: ``localhost`` is 127.0.0.1, as with gevent, whatever the system's list of hosts begins with.

    Raises:
        ValueError: it is none of these.
    """
    found = split_address(address)
    if found is None and isinstance(address, str | int):
        found = _socket.AF_UNSPEC, ("", address)
    if found is None:
        raise ValueError(f"listener={address!r}: (host, port), 'host:port', a port, a path or a bound socket expected")
    family, target = found
    return found if family == _socket.AF_UNIX else _resolve(target[0], target[1], address)


def split_address(address: Any) -> tuple[int, Any] | None:
    """Return AF_UNIX and a path, or AF_UNSPEC and host and port, neither of them checked; None if it is neither."""
    if isinstance(address, os.PathLike):
        return _socket.AF_UNIX, os.fspath(address)
    if isinstance(address, bytes) and address.startswith(b"\0"):
        return _socket.AF_UNIX, address
    if isinstance(address, str) and address.startswith(("unix:", "\0")):
        path = address.removeprefix("unix:")
        return _socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path
    if isinstance(address, str) and "/" in address:
        return _socket.AF_UNIX, address
    if isinstance(address, str) and ":" in address:
        host, _, port = address.rpartition(":")
        return _socket.AF_UNSPEC, (host.removeprefix("[").removesuffix("]"), port)
    if isinstance(address, tuple) and len(address) in (2, 4) and isinstance(address[0], str):
        return _socket.AF_UNSPEC, (address[0], address[1])
    return None


def port_number(port: Any) -> int:
    """Return a port as a number; -1 if it is none from 0 to 65535."""
    if isinstance(port, bool):
        return -1
    try:
        number = int(port)
    except (TypeError, ValueError):
        return -1
    return number if 0 <= number <= 65535 else -1


def _resolve(host: str, port: Any, address: Any) -> tuple[int, Any]:
    number = port_number(port)
    if number < 0:
        raise ValueError(f"listener={address!r}: port {port!r} is not a number from 0 to 65535")
    if host in ("", "*"):
        has_ipv6 = os.path.exists("/proc/net/if_inet6")
        return (_socket.AF_INET6, ("::", number)) if has_ipv6 else (_socket.AF_INET, ("0.0.0.0", number))
    try:
        found = _socket.getaddrinfo(host, number, type=_socket.SOCK_STREAM, flags=_socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"listener={address!r}: host {host!r} is not an address of this machine: {error}") from error
    family, _, _, _, sockaddr = min(found, key=lambda one: one[0] != _socket.AF_INET)  # the first of the least
    return family, sockaddr


def owner_ids(owner: Any) -> tuple[int, int] | None:
    """Return the numbers of ``"user"``, ``"user:group"``, ``":group"`` or ``(uid, gid)``; None if it is none of these.

    -1 leaves the user or the group as it is.
    """
    if isinstance(owner, tuple):
        fits = len(owner) == 2 and all(type(number) is int and number >= -1 for number in owner)
        return owner if fits else None
    if not isinstance(owner, str) or not owner.strip(":"):
        return None
    user, _, group = owner.partition(":")
    try:
        return (pwd.getpwnam(user).pw_uid if user else -1), (grp.getgrnam(group).gr_gid if group else -1)
    except (KeyError, ValueError):
        return None


def listen(
    family: int,
    address: Any,
    backlog: int,
    reuse_port: bool = False,
    *,
    unix_mode: int | None = None,
    unix_owner: Any = None,
    protocol: int = 0,
    prepare: Callable[[_socket.socket], object] | None = None,
) -> _socket.socket:
    """Make a listening socket of the standard library's real kind. Before you close it, ``remove_file``.

    ``unix_mode`` and ``unix_owner`` (see ``owner_ids``) are what the file of a Unix socket gets before anybody can
    connect: until then the kernel refuses every connection. ``protocol`` is one of IPPROTO_*, 0 for the usual one, and
    ``prepare(sock)`` is called before it listens.

    Raises:
        OSError: the system said no; the address is named in it.
    """
    sock: _socket.socket = get_original("socket", "socket")(family, _socket.SOCK_STREAM, protocol)
    try:
        if prepare is not None:
            prepare(sock)
        if family == _socket.AF_UNIX:
            _remove_stale(address)
        else:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        if family == _socket.AF_UNIX:
            _take_file(sock, address, unix_mode, unix_owner)
        sock.listen(backlog)
    except OSError as error:
        remove_file(sock)
        sock.close()
        if error.errno is None:  # a path that is too long
            raise type(error)(f"{error}: {address!r}") from error
        raise type(error)(error.errno, f"{error.strerror}: {address!r}") from error
    except BaseException:
        remove_file(sock)
        sock.close()
        raise
    return sock


def bind_datagrams(
    family: int,
    address: Any,
    reuse_port: bool = False,
    *,
    unix_mode: int | None = None,
    unix_owner: Any = None,
) -> _socket.socket:
    """Make a socket of the standard library's real kind that gets what is sent to the address, as ``listen`` does.

    Raises:
        OSError: the system said no; the address is named in it.
    """
    sock: _socket.socket = get_original("socket", "socket")(family, _socket.SOCK_DGRAM)
    try:
        if family == _socket.AF_UNIX:
            _remove_stale(address, _socket.SOCK_DGRAM)
        elif reuse_port:
            # Not SO_REUSEADDR, with which the last one that binds would take everything away from the others, unseen.
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        if family == _socket.AF_UNIX:
            _take_file(sock, address, unix_mode, unix_owner)
    except BaseException as error:
        remove_file(sock)
        sock.close()
        if isinstance(error, OSError):
            if error.errno is None:  # a path that is too long
                raise type(error)(f"{error}: {address!r}") from error
            raise type(error)(error.errno, f"{error.strerror}: {address!r}") from error
        raise
    return sock


def remove_file(sock: _socket.socket) -> None:
    """Remove the file of a Unix socket that ``listen`` bound in this process, if it is still that one.

    To be called while the socket is open: as long as it is, no other file can get the number of its own.
    """
    file = _files.pop(sock, None)
    if file is not None and file.pid == os.getpid() and file.is_there():
        try:
            os.unlink(file.path)
        except OSError:
            pass  # it was removed meanwhile, or its folder may not be written any more


def pass_on(sock: _socket.socket) -> _socket.socket:
    """Return a listening socket once more; the file of a Unix socket is the new one's to remove."""
    copy = sock.dup()
    file = _files.pop(sock, None)
    if file is not None:
        _files[copy] = file
    return copy


@dataclass(frozen=True, slots=True)
class _FileIdentity:
    """The file of a Unix socket that was bound here."""

    #: Absolute: the process may change its folder.
    path: str
    device: int
    inode: int
    #: Who bound it: a child that was forked leaves it alone.
    pid: int

    def is_there(self) -> bool:
        """Whether the path still leads to it."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


_files: WeakKeyDictionary[_socket.socket, _FileIdentity] = WeakKeyDictionary()


def _take_file(sock: _socket.socket, path: str, mode: int | None, owner: Any) -> None:
    """Note the file that was just bound, and give it its owner and its mode."""
    if _is_abstract(path):
        return
    found = os.lstat(path)
    _files[sock] = _FileIdentity(os.path.abspath(path), found.st_dev, found.st_ino, os.getpid())
    if owner is not None:
        ids = owner_ids(owner)
        if ids is None:
            raise OSError(errno.EINVAL, f"there is no {owner!r} here to own it")
        os.chown(path, *ids, follow_symlinks=False)
    if mode is not None:
        os.chmod(path, mode)


def _is_abstract(path: Any) -> bool:
    return os.fsencode(path)[:1] == b"\0"  # such a name is no file, and ends with its socket


def _remove_stale(path: str, kind: int = _socket.SOCK_STREAM) -> None:
    """Remove the socket file that a server left behind; one that is served stays. Does not block."""
    if _is_abstract(path):
        return
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        probe = get_original("socket", "socket")(_socket.AF_UNIX, kind)
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # its backlog is full: it is served
        except ConnectionRefusedError:
            os.unlink(path)
        finally:
            probe.close()
    except FileNotFoundError:
        pass
