"""What follows 101: bytes both ways, moved in the kernel, until both sides are done or nothing moves for too long."""

from __future__ import annotations

import gevent

from greensock import Connection, ConnectionClosed, ConnectionLost, OperationTimeout

__all__ = ["run_tunnel"]


class _Way:
    """One direction."""

    __slots__ = ("_source", "_target", "_timeout", "is_late")

    def __init__(self, source: Connection, target: Connection, timeout: float | None) -> None:
        self._source = source
        self._target = target
        self._timeout = timeout
        #: Whether it was given up because nothing moved.
        self.is_late = False

    def run(self) -> None:
        """Move bytes until the source ends; then tell the target so. If anything breaks, both are reset."""
        try:
            self._move()
            self._target.shutdown_write()
        except (ConnectionClosed, ConnectionLost, OperationTimeout) as error:
            self.is_late = isinstance(error, OperationTimeout)
            self._source.abort()
            self._target.abort()

    def _move(self) -> None:
        source, target, timeout = self._source, self._target, self._timeout
        while True:
            mark = _moved(source, target)
            try:
                source.splice(target, timeout=timeout)
                return
            except OperationTimeout as error:
                # Silence one way is normal while bytes move the other way; a side that takes nothing is not.
                if error.connection is not source or _moved(source, target) == mark:
                    raise


def _moved(one: Connection, other: Connection) -> int:
    return one.bytes_received + other.bytes_received


def run_tunnel(client: Connection, upstream: Connection, timeout: float | None) -> bool:
    """Join two connections until both have ended; each end is passed on as soon as it comes (half-close).

    ``timeout`` is in seconds without a byte either way, and None for no bound; it is noticed at the latest when twice
    that has passed. Return False if it ended for that, or as somebody took nothing for so long. Both connections are
    the caller's to close.
    """
    ways = _Way(client, upstream, timeout), _Way(upstream, client, timeout)
    there = gevent.spawn(ways[0].run)
    try:
        ways[1].run()
        there.join()
    finally:
        there.kill()
    return not any(way.is_late for way in ways)
