"""How connections are spread over the workers: one that has more than its share lets the others go first.

All workers are woken by a new connection, and whoever comes first would take all of a burst: of 64 connections one of
four workers had 60 (``python -m loadtests.bench herd``). So each writes into a page of shared memory how many it
has, and one that has clearly more than the mean waits ``HOLD`` seconds before it takes more. It takes some then,
whatever the others have: they may be busy, and no connection waits long for that. Nobody waits for a lock, and a worker
that is killed is left out when its process is seen to be gone, a second later.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import gevent

from greensock import Server

__all__ = ["FairShare", "Shares"]

#: How many workers the page has room for; what is more is not told of.
SLOTS = 256
#: Connections that are taken before it is looked again.
BATCH = 4
#: How much more than the mean is too much: a part of it, and some connections.
EXCESS, SLACK = 1.125, 2
#: Seconds for which the others go first.
HOLD = 0.002


class Shares:
    """The page: for each slot a process and how many connections it has. Made in the master, before the fork."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, SLOTS * 8)
        whole = memoryview(self._page).cast("i")
        #: The processes; 0: nobody.
        self.pids = whole[:SLOTS]
        #: Their connections.
        self.counts = whole[SLOTS:]

    def alive(self) -> list[int]:
        """Return the slots of the processes that are there, and clear those of others."""
        found = []
        for slot, pid in enumerate(self.pids):
            if pid and _is_there(pid):
                found.append(slot)
            elif pid:
                self.pids[slot] = 0
        return found


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class FairShare:
    """One worker's part in it. ``enter`` before its servers start, ``look`` once a second, ``leave`` when it ends."""

    def __init__(self, shares: Shares, age: int) -> None:
        self._shares = shares
        self._slot = age % SLOTS
        self._others: list[int] = []
        self._has_waited = False
        self._servers: Sequence[Server[Any]] = ()

    def enter(self, servers: Sequence[Server[Any]]) -> None:
        """Have these servers take their share, and no more."""
        self._servers = servers
        self._shares.counts[self._slot] = 0
        self._shares.pids[self._slot] = os.getpid()
        for server in servers:
            server.accept_permits = self._permits(server, server.accept_permits)  # type: ignore[method-assign]
        self.look()

    def look(self) -> None:
        """See who else is there."""
        self._others = [slot for slot in self._shares.alive() if slot != self._slot]
        self._shares.counts[self._slot] = self._count()

    def leave(self) -> None:
        """Take no share any more."""
        self._shares.pids[self._slot] = 0
        self._others = []

    def _count(self) -> int:
        return sum(server.connections_alive for server in self._servers)

    def _permits(self, server: Server[Any], allowed_by_server: Callable[[], float]) -> Callable[[], float]:
        def accept_permits() -> float:
            allowed = allowed_by_server()
            others, counts = self._others, self._shares.counts
            if not others or allowed < 1:
                return allowed
            counts[self._slot] = mine = self._count()
            if self._has_waited:
                self._has_waited = False
            elif mine > EXCESS * (mine + sum([counts[slot] for slot in others])) / (len(others) + 1) + SLACK:
                self._has_waited = True
                gevent.spawn_later(HOLD, server.welcome_connections)
                return 0
            return min(allowed, BATCH)

        return accept_permits
