"""Which connections are in the middle of a head or a body, and until when more of it must have come."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import gevent

from greensock import Connection, let_others_run

__all__ = ["DeadlineWatch"]


class DeadlineWatch(dict[Connection, float]):
    """Each connection that is waited for, and when it is late: in this order, for all wait equally long.

    One greenlet watches them all, while there are some.
    """

    def __init__(self, on_late: Callable[[Connection], None]) -> None:
        """``on_late`` is told of each that is late, and forgotten here by then; it must neither block nor raise."""
        super().__init__()
        self._on_late = on_late
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def begin(self, conn: Connection, seconds: float) -> None:
        """Watch a connection, unless it is watched already: what more comes gives it no more time."""
        self.setdefault(conn, monotonic() + seconds)
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Watch no more. Does not block."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    def _run(self) -> None:
        began = monotonic()
        try:
            while self:
                conn, deadline = next(iter(self.items()))
                left = deadline - monotonic()
                if left > 0:
                    gevent.sleep(left)
                    began = monotonic()
                    continue
                del self[conn]
                self._on_late(conn)
                began = let_others_run(began)
        finally:
            if self._greenlet is gevent.getcurrent():
                self._greenlet = None
