"""Addresses to listen on: how they are written, and how a listening socket comes of one. No state."""

from __future__ import annotations

import os
import socket as _socket
import stat
from typing import Any

from gevent.monkey import get_original

__all__ = ["listen", "parse_address", "port_number", "split_address"]


def parse_address(address: Any) -> tuple[int, Any]:
    """Return the family and the socket address of ``(host, port)``, ``"host:port"``, ``"[v6]:port"``, a port or a path.

    A string with a ``/``, one that begins with ``unix:``, or a path object is a Unix socket. An empty host or ``*`` is
    every address; so is a port alone.

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
    if isinstance(address, str) and address.startswith("unix:"):
        return _socket.AF_UNIX, address.removeprefix("unix:")
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
    family, _, _, _, sockaddr = found[0]
    return family, sockaddr


def listen(family: int, address: Any, backlog: int, reuse_port: bool = False) -> _socket.socket:
    """Make a listening socket of the standard library's real kind.

    Raises:
        OSError: the system said no; the address is named in it.
    """
    sock: _socket.socket = get_original("socket", "socket")(family, _socket.SOCK_STREAM)
    try:
        if family == _socket.AF_UNIX:
            _remove_stale(address)
        else:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise type(error)(error.errno, f"{error.strerror}: {address!r}") from error
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file that a server left behind; one that is served stays."""
    if os.fsencode(path)[:1] == b"\0":
        return  # an abstract name ends with its socket
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        probe = get_original("socket", "socket")(_socket.AF_UNIX)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        finally:
            probe.close()
    except FileNotFoundError:
        pass
