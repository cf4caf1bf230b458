"""What follows 101: bytes both ways, moved in the kernel, until both sides are done or nothing moves for too long.

One way runs in the greenlet of the client's turn, which also watches for silence, the other in one of its own. Whatever
goes wrong in either, both connections are reset at once and both ways end: nothing is left half dead.
"""

from __future__ import annotations

from time import monotonic

import gevent
from greenlet import GreenletExit

from greensock import Connection, ConnectionClosed, ConnectionLost, DropReason, OperationTimeout

__all__ = ["CLIENT_LEFT", "SERVER_LEFT", "STOPPED", "TIMED_OUT", "run_tunnel"]

#: Why a tunnel ended, if it was not that both sides were done: for the log.
TIMED_OUT, CLIENT_LEFT, SERVER_LEFT, STOPPED = "tunnel-timeout", "client-left", "server-left", "stopped"

#: So often within its timeout a tunnel is looked at: silence is noticed at most so much of it late.
LOOKS = 4


class _Tunnel:
    """Two connections, and when something last moved between them."""

    __slots__ = ("_client", "_mark", "_since", "_timeout", "error", "reason", "upstream")

    def __init__(self, client: Connection, upstream: Connection, timeout: float | None) -> None:
        self._client = client
        self.upstream = upstream
        self._timeout = timeout
        self._mark = -1
        self._since = 0.0
        #: Why it ended, as far as is known.
        self.reason: str | None = None
        #: What went wrong that should not.
        self.error: BaseException | None = None
        self.is_silent()

    @property
    def pause(self) -> float | None:
        """Seconds between two looks; None: it may be silent for ever."""
        return None if self._timeout is None else self._timeout / LOOKS

    def is_silent(self) -> bool:
        """Look; return whether nothing has moved either way for as long as it may."""
        mark, now = self._client.bytes_received + self.upstream.bytes_received, monotonic()
        if mark != self._mark:
            self._mark, self._since = mark, now
        return self._timeout is not None and now - self._since >= self._timeout

    def run(self) -> str:
        """Move bytes both ways until both sides have ended; return why that is, empty if both were done."""
        there = gevent.spawn(self._move, self._client, self.upstream, None)
        try:
            self._move(self.upstream, self._client, self.pause)
            while not there.ready():  # the server is done, the client is not
                there.join(self.pause)
                if not there.ready() and self.is_silent():
                    self._end(TIMED_OUT)
        finally:
            there.kill()
        if self.error is not None:
            raise self.error
        return self.reason or ""

    def _move(self, source: Connection, target: Connection, pause: float | None) -> None:
        """Move bytes one way until the source ends, then tell the target so; look for silence at every ``pause``."""
        try:
            while True:
                try:
                    source.splice(target, timeout=pause, send_timeout=self._timeout)
                    break
                except OperationTimeout as error:
                    # Silence one way is normal while bytes move the other way; a side that takes nothing is not.
                    if error.connection is not source or self.is_silent():
                        raise
            target.shutdown_write(timeout=self._timeout)
        except OperationTimeout:
            self._end(TIMED_OUT)
        except (ConnectionClosed, ConnectionLost) as error:
            self._end(self._reason_of(error))
        except GreenletExit:
            raise
        except BaseException as error:
            self.error = self.error or error
            self._end("internal-error")

    def _reason_of(self, error: ConnectionClosed | ConnectionLost) -> str:
        conn = error.connection
        if conn.drop_reason is DropReason.STOPPED:
            return STOPPED
        return SERVER_LEFT if conn is self.upstream else CLIENT_LEFT

    def _end(self, reason: str) -> None:
        """Reset both; the first reason is the one that counts."""
        if self.reason is None:
            self.reason = reason
        self._client.abort()
        self.upstream.abort()


def run_tunnel(client: Connection, upstream: Connection, timeout: float | None) -> str:
    """Join two connections until both have ended; each end is passed on as soon as it comes (half-close).

    ``timeout`` is in seconds without a byte either way, and None for no bound; it is noticed at most a quarter late.
    Return why it ended: empty if both sides were done, else one of the words above. Both connections are the caller's
    to close; they were reset if it was cut short. What should not happen is raised, after that.
    """
    return _Tunnel(client, upstream, timeout).run()
