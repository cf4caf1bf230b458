"""How many connections clients have at a time, in all workers of the proxy together: ``[server] max_connections``.

Each worker counts its own in its row (``shared_servers``) and adds up the rows of all; there is no lock. Before a round
of accepting, those that it may take are counted as if they were there, and the sum is looked at then: what is too much
is counted out again at once, and what was not taken behind the round. So:

- Two workers that look in the same moment may both find less room than there is, and look again. That both find some
  takes two processors that see each other's memory late, by nanoseconds: the excess is at most ``ROUND`` for each
  further worker, and nobody has seen one.
- What comes free in another worker is found within ``LOOK_EVERY``. Who finds none looks only while somebody waits in
  the backlog, and only if others have some: the end of one of its own is told to it.
- A worker that is killed is counted out by the master, as soon as that has seen its end.
- Workers of a configuration that was replaced count until their last connection has ended.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

from greensock.proxy.upstream.shared_servers import WorkersView

__all__ = ["ClientRoom"]

log = logging.getLogger("greensock.server")

#: Connections that are taken before it is looked again, at the most.
ROUND = 16
#: Seconds between two looks whether there is room again.
LOOK_EVERY = 0.01
#: Seconds between two lines that say that there is none.
LOG_EVERY = 60.0


class ClientRoom:
    """The room for clients, as one worker sees it.

    ``count`` returns how many connections this one has; ``welcome`` has its acceptors ask again.
    """

    def __init__(self, most: int, view: WorkersView, count: Callable[[], int], welcome: Callable[[], object]) -> None:
        #: How many connections there may be.
        self.most = most
        self._view = view
        self._count = count
        self._welcome = welcome
        self._told = 0  # what is counted of this one in the row
        self._settling: Any = None
        self._looking: gevent.Greenlet[..., None] | None = None
        self._logged = -LOG_EVERY
        self._pid = os.getpid()

    def permits(self) -> int:
        """Return how many more connections are welcome: they count as if they were there until this pass is over."""
        mine, view = self._count(), self._view
        self._tell(mine)
        more = min(ROUND, self.most - view.clients())
        if more > 0:
            self._tell(mine + more)
            more -= max(0, view.clients() - self.most)  # another one has counted at the same moment
        if more > 0:
            self._tell(mine + more)
            if self._settling is None:
                self._settling = gevent.get_hub().loop.run_callback(self._settle)
            return more
        self._tell(mine)
        self._say_full()
        if view.clients() > mine and self._looking is None:
            self._looking = gevent.spawn_later(LOOK_EVERY, self._look)
        return 0

    def settle(self) -> None:
        """Count those that are there, and no others."""
        self._tell(self._count())

    def close(self) -> None:
        """Count none any more: all are gone."""
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.stop()
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.kill(block=False)
        self._tell(0)

    def _settle(self) -> None:
        self._settling = None
        self.settle()

    def _look(self) -> None:
        self._looking = None
        self._welcome()

    def _tell(self, count: int) -> None:
        # A child that was forked goes on with none of them, and the row is its parent's.
        if count != self._told and os.getpid() == self._pid:
            self._view.add_clients(count - self._told)
            self._told = count

    def _say_full(self) -> None:
        now = monotonic()
        if now - self._logged >= LOG_EVERY:
            self._logged = now
            log.warning("max_connections=%d are there; more wait in the backlog", self.most)
