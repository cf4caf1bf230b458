"""What the peers of datagrams have in common: a bound socket with the same buffer, and where it is."""

from __future__ import annotations

import socket

from loadtests.peers import common

__all__ = ["LONG", "bound"]

#: Bytes that the kernel may hold of what came; it grants what the machine allows.
BUFFER = 1 << 20
#: In mode ``sink`` what is shorter is a question: how many came?
LONG = 2


def bound(chosen: common.Options) -> socket.socket:
    """Return a bound, non-blocking socket of datagrams."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    sock.bind((chosen.host, chosen.port))
    sock.setblocking(False)
    return sock
