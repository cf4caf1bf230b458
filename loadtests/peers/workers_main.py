"""greensock's own commands as peers: they inherit the socket as if systemd had given it.

``GREENSOCK_WORKERS`` says how many workers; it is said to nginx in the same way.
"""

from __future__ import annotations

import os
import socket
import sys

from loadtests.peers import programs

__all__ = ["inherit"]

#: The first descriptor that systemd gives (sd_listen_fds(3)).
FIRST = 3


def inherit(sock: socket.socket, directory: str, *words: str) -> None:
    """Become a command of greensock with this listener; the directory is removed when it has ended."""
    if sock.fileno() != FIRST:
        os.dup2(sock.fileno(), FIRST)
        sock.close()
        sock = socket.socket(fileno=FIRST)
    command = [sys.executable, "-m", *words, "--workers", os.environ.get("GREENSOCK_WORKERS", "1")]
    programs.become(command, directory, sock, {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})
