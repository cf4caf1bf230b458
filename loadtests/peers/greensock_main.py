"""What the two greensock peers have in common: a class of server by mode, told how much to read at a time."""

from __future__ import annotations

from collections.abc import Mapping

from greensock import Server
from loadtests.peers import common

__all__ = ["run"]


def run(kinds: Mapping[str, type[Server]]) -> None:
    """Serve with the class of the mode asked for until SIGTERM."""
    options = common.options()
    sock = common.listener(options)
    server = kinds[options.mode](sock, recv_size=options.recv)
    server.start()
    common.announce(sock)
    server.serve_forever()
