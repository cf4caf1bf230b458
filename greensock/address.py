"""Addresses to listen on: how they are written, and how a listening socket comes of one. No state."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any

from gevent.monkey import get_original

__all__ = ["listen", "parse_address"]

Address = tuple[str, int] | str | int | os.PathLike[str]


def parse_address(address: Any) -> tuple[int, Any]:
    """Return the family and the socket address of ``(host, port)``, ``"host:port"``, ``"[v6]:port"``, a port or a path.

    A string with a ``/``, one that begins with ``unix:``, or a path object is a Unix socket. An empty host or ``*`` is
    every address; so is a port alone.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(address, os.PathLike):
        return socket.AF_UNIX, os.fspath(address)
    if isinstance(address, str) and address.startswith("unix:"):
        return socket.AF_UNIX, address.removeprefix("unix:")
    if isinstance(address, str) and "/" in address:
        return socket.AF_UNIX, address
    if isinstance(address, str) and ":" in address:
        host, _, port = address.rpartition(":")
        return _resolve(host.removeprefix("[").removesuffix("]"), port, address)
    if isinstance(address, str | int):
        return _resolve("", address, address)
    if isinstance(address, tuple) and len(address) in (2, 4) and isinstance(address[0], str):
        return _resolve(address[0], address[1], address)
    raise ValueError(f"listener={address!r}: (host, port), 'host:port', a port, a path or a bound socket expected")


def _resolve(host: str, port: Any, address: Any) -> tuple[int, Any]:
    try:
        number = int(port)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number <= 65535 or isinstance(port, bool):
        raise ValueError(f"listener={address!r}: port {port!r} is not a number from 0 to 65535")
    if host in ("", "*"):
        has_ipv6 = os.path.exists("/proc/net/if_inet6")
        return (socket.AF_INET6, ("::", number)) if has_ipv6 else (socket.AF_INET, ("0.0.0.0", number))
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"listener={address!r}: host {host!r} is not an address of this machine: {error}") from error
    family, _, _, _, sockaddr = found[0]
    return family, sockaddr


def listen(family: int, address: Any, backlog: int, reuse_port: bool = False) -> socket.socket:
    """Make a listening socket of the standard library's real kind.

    Raises:
        OSError: the system said no; the address is named in it.
    """
    sock: socket.socket = get_original("socket", "socket")(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _remove_stale(address)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise type(error)(error.errno, f"{error.strerror}: {address!r}") from error
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file that a server left behind; one that is served stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        probe = get_original("socket", "socket")(socket.AF_UNIX)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        finally:
            probe.close()
    except FileNotFoundError:
        pass
