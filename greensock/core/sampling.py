"""Looks at servers a few times a second: how late the hub is, how long a turn is waited for, how long an upcall takes.

Nothing on the way of a connection measures anything. Every ``INTERVAL`` seconds a timer fires in the hub, and

- it tells how late it fired: for so long the hub was held by others, and whoever became ready then had to wait, too;
- a connection that is none goes through each server's ready queue, and tells when its turn came;
- the next call of ``connection_recv`` is timed, and none behind it.

So what is told is what somebody would see who looks at random moments: how often something happens shows in how often
it is met, and what holds the hub for long is never missed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from socket import AF_INET
from time import monotonic
from typing import Any

from gevent import get_hub

from greensock.core.connection import Connection
from greensock.core.lifecycle import CLOSED
from greensock.core.turns import Turns

__all__ = ["INTERVAL", "Sampler", "is_in_turn"]

#: Seconds between two looks: all of them together cost 0.3 % of a core, of a machine that is busy otherwise.
INTERVAL = 0.05

Note = Callable[[float], object]


class Sampler:
    """Looks at the servers of this thread; what it finds is given to three functions, in seconds.

    ``note_late`` is told how late the hub was, ``note_wait`` how long a turn was waited for, ``note_upcall`` how long a
    call of ``connection_recv`` took, with all that it waited for. They are called in the hub, or in an upcall's
    greenlet, and must not raise.
    """

    def __init__(self, note_late: Note, note_wait: Note, note_upcall: Note) -> None:
        #: When the hub was seen at work last, in seconds of ``time.monotonic``. Any thread may read it.
        self.seen_at = monotonic()
        self._note_late = note_late
        self._note_wait = note_wait
        self._note_upcall = note_upcall
        self._samples: dict[Turns[Any], _Sample] = {}
        self._hub: Any = None
        self._timer: Any = None
        self._due = 0.0
        self._pid = 0

    def follow(self, servers: Iterable[Turns[Any]]) -> None:
        """Look at these servers from now on, and at no others."""
        before = self._samples
        self._samples = {
            each: before[each] if each in before else _Sample(each, self._note_wait, self._note_upcall)
            for each in servers
        }
        for server, sample in before.items():
            if server not in self._samples:
                sample.end()

    def start(self) -> None:
        """Begin to look, in the hub of the calling thread. It keeps no program alive."""
        if self._timer is not None:
            return
        self._hub = get_hub()
        self._timer = self._hub.loop.timer(INTERVAL, INTERVAL, ref=False)
        self.seen_at = monotonic()
        self._pid = os.getpid()
        self._set()

    def stop(self) -> None:
        """Look no more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()
        self.follow(())

    def _set(self) -> None:
        self._due = monotonic() + INTERVAL
        # Not ``start``, which goes on with what is left of its time, and that is nothing
        # (test_it_looks_no_more_often_than_it_says). And the loop's own time may be as old as its pass.
        self._timer.again(self._look, update=True)

    def _look(self) -> None:
        if os.getpid() != self._pid:
            self.stop()  # the child of a fork goes on with the loop, but the servers are its parent's
            return
        try:
            now = self.seen_at = monotonic()
            self._note_late(max(0.0, now - self._due))
            for server, sample in self._samples.items():
                if server.started:  # type: ignore[attr-defined]  # all of them are servers
                    sample.take(now)
        except BaseException as error:  # libev would stop the timer
            self._hub.handle_error(self, type(error), error, error.__traceback__)
        finally:
            if self._timer is not None:
                self._set()


class _Sample:
    """What is looked at of one server."""

    def __init__(self, server: Turns[Any], note_wait: Note, note_upcall: Note) -> None:
        self._server = server
        self._note_wait = note_wait
        self._note_upcall = note_upcall
        self._probe: Connection | None = None
        self._queued_in: Any = None  # the workers in whose queue it stands
        self._since = 0.0
        self._timed: _TimedUpcall | None = None

    def take(self, now: float) -> None:
        """Have a turn waited for, and an upcall timed, if the ones of before are through."""
        server = self._server
        workers = server._workers
        if self._queued_in is not workers:
            if self._probe is None or self._probe._poller is not server._poller:
                self._probe = _made_probe(server)
            server._probe = self._probe
            server._probed = self._turn_came
            self._queued_in, self._since = workers, now
            workers.ready.append(self._probe)
            server._poller.schedule()
        if server._on_handle is None and (self._timed is None or server._on_recv is not self._timed):
            self._timed = _TimedUpcall(server, self._note_upcall)
            server._on_recv = self._timed

    def _turn_came(self) -> None:
        self._queued_in = None
        self._note_wait(monotonic() - self._since)

    def end(self) -> None:
        """Leave nothing behind; what stands in a queue is harmless."""
        self._server._probe = None
        if self._timed is not None:
            self._timed.give_up()


def _made_probe(server: Turns[Any]) -> Connection:
    """Return a connection that is closed and of which all was told: its turn does nothing."""
    probe = Connection(server._poller, -1, AF_INET, None, None)
    probe._state = CLOSED
    probe._ended = True
    return probe


class _TimedUpcall:
    """Stands in for ``connection_recv`` until it was called once."""

    __slots__ = ("_note", "_on_recv", "_server")

    def __init__(self, server: Turns[Any], note: Note) -> None:
        self._server = server
        self._on_recv = server._on_recv
        self._note: Note | None = note

    def __call__(self, conn: Any, data: bytes) -> Any:
        note = self._note
        if note is None:  # a worker took this along for all that was ready
            return self._on_recv(conn, data)
        self.give_up()
        began = monotonic()
        try:
            return self._on_recv(conn, data)
        finally:
            note(monotonic() - began)

    def give_up(self) -> None:
        """Time nothing any more."""
        self._note = None
        if self._server._on_recv is self:
            self._server._on_recv = self._on_recv


def is_in_turn(conn: Connection) -> bool:
    """Whether a turn of the connection is due or runs, or an upcall of it is blocked."""
    return not conn._idle
