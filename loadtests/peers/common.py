"""What all peers have in common: their options and their listening socket.

The socket is the same for all: backlog 4096, TCP_NODELAY on (accepted sockets inherit it), buffers of the
kernel's choice.
"""

from __future__ import annotations

import argparse
import resource
import socket
from dataclasses import dataclass

__all__ = ["BACKLOG", "MESSAGE", "SLOW_BYTE", "SLOW_SECONDS", "Options", "announce", "listener", "options"]

BACKLOG = 4096
#: Bytes of a message in mode ``framed``.
MESSAGE = 64

#: In mode ``slow``, data that begins with this byte is answered ``SLOW_SECONDS`` late: an upcall that blocks.
SLOW_BYTE = 0xFF
SLOW_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int
    #: echo: answer with the same bytes; framed: the same, message by message; sink: read and forget; slow: echo, but
    #: see ``SLOW_BYTE``; held: echo, then block in a downcall within the upcall (only where upcalls can block).
    mode: str
    #: Bytes to read at a time, at most.
    recv: int
    #: Of TLS: PEM files. In mode ``download`` a client gets ``size`` bytes over and over once it sent something.
    cert: str = ""
    key: str = ""
    size: int = 65536


def options() -> Options:
    """Parse the command line and raise the limit of descriptors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="127.0.0.1:0", help="HOST:PORT")
    parser.add_argument("--mode", choices=("echo", "framed", "sink", "slow", "held", "download"), default="echo")
    parser.add_argument("--recv", type=int, default=65536, help="bytes to read at a time")
    parser.add_argument("--cert", default="", help="of TLS: a PEM file")
    parser.add_argument("--key", default="", help="of TLS: a PEM file")
    parser.add_argument("--size", type=int, default=65536, help="bytes of one write, in mode download")
    chosen = parser.parse_args()
    host, _, port = chosen.bind.rpartition(":")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return Options(host, int(port), chosen.mode, chosen.recv, chosen.cert, chosen.key, chosen.size)


def listener(chosen: Options) -> socket.socket:
    """Return a bound, listening, non-blocking socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind((chosen.host, chosen.port))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def announce(sock: socket.socket) -> None:
    """Say where the server listens."""
    host, port = sock.getsockname()[:2]
    print(f"listening on {host}:{port}", flush=True)
