"""A worker process under gunicorn's arbiter: its heartbeat, its signals, and how it ends.

::

    init_process: patch --> signals, application --> run: start the servers --> beat until not alive --> end

The main greenlet beats and waits; the servers live in the hub beside it. A signal's handler only notes what is to be
done and wakes the main greenlet, through the pipe that gunicorn has for that. The process is patched here, after the
fork: the library never patches, and the master must not be.

==================  ==============================================================================================
SIGTERM             no longer alive: end what runs within ``graceful_timeout``, then stop
SIGINT, SIGQUIT     the same, but at once; calls ``worker_int``
SIGABRT             the master says that the heart stands still: log where, call ``worker_abort``, exit with 1
SIGUSR1             open the logs anew
the master is gone  as SIGTERM
==================  ==============================================================================================
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from time import monotonic
from types import FrameType
from typing import Any, cast

import gevent
from gevent import monkey
from gevent.hub import reinit
from gevent.select import select
from gevent.socket import socket as CooperativeSocket
from gevent.util import format_run_info
from gunicorn.workers.base import Worker as GunicornWorker

from greensock import Server
from greensock.gunicorn.shares import FairShare, Shares

__all__ = ["BEGUN", "ENDING", "HELD_BACK", "BaseWorker"]

#: What a worker tells its master by the length of the file that is its heart: that it serves, and that it ends.
BEGUN, ENDING = 1, 2
#: The signals that a worker takes, which may be held back until it can.
HELD_BACK = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)

#: Seconds between two beats of the heart, at the most.
LONGEST_BEAT = 1.0
#: Lines of stacks that are logged of a worker that hangs.
MOST_LINES = 2000


class BaseWorker(GunicornWorker):  # type: ignore[misc]
    """What the workers have in common; a subclass says what they serve (:meth:`made_servers`)."""

    servers: Sequence[Server[Any]] = ()
    #: Whether it goes on: gunicorn's word.
    alive: bool
    #: Whether it has begun: gunicorn's word.
    booted: bool
    #: Whether it ends at once.
    _is_quick = False
    #: Whether it ends because it has served enough.
    _is_recycled = False

    #: What all workers of a master write into.
    _shares: Shares | None = None

    def __init__(self, age: int, *rest: Any) -> None:
        super().__init__(age, *rest)
        if BaseWorker._shares is None:  # in the master, and so before the first fork
            BaseWorker._shares = Shares()
        self._share = FairShare(BaseWorker._shares, age)

    def made_servers(self) -> Sequence[Server[Any]]:
        """Return the servers, one for each of ``taken_sockets``; they are started here."""
        raise NotImplementedError

    def taken_sockets(self) -> list[Any]:
        """Return the listening sockets as cooperative ones, which take over the descriptors."""
        return [CooperativeSocket(each.FAMILY, each.sock.type, fileno=each.sock.detach()) for each in self.sockets]

    # -- life

    def init_process(self) -> None:
        """Patch, and go on as gunicorn does."""
        # First of all: until here a signal goes to a copy of the master's handlers, and is lost. gunicorn sets its own
        # ones later, and the master, which sends SIGTERM once, would wait for all of ``graceful_timeout``
        # (test_a_worker_that_is_told_to_end_while_it_begins).
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.signal(signal.SIGINT, self.handle_quit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        monkey.patch_all()
        reinit()
        _join_logs()
        if self.cfg.reload and self.cfg.reload_engine == "auto":
            self.cfg.set("reload_engine", "poll")  # the other one would stop the hub while it waits
        super().init_process()

    def run(self) -> None:
        """Serve until the worker is to end, and then end what runs."""
        self.booted = False  # what fails until they are started fails at the beginning
        self.servers = self.made_servers()
        if not self.cfg.reuse_port:  # else each has a queue of its own
            self._share.enter(self.servers)
        for server in self.servers:
            server.start()
        self.booted = True
        os.ftruncate(self.tmp.fileno(), BEGUN)
        while self.alive:
            self.notify()
            self._share.look()
            self._wait(self._beat())
        self._share.leave()
        self._end()

    def _beat(self) -> float:
        """Return the seconds until the next beat: ``self.timeout`` is half of what the master allows."""
        return min(LONGEST_BEAT, self.timeout / 2) if self.timeout else LONGEST_BEAT

    def notify(self) -> None:
        """Beat; and end if the master is gone."""
        super().notify()
        if self.alive and self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False

    def _wait(self, seconds: float) -> None:
        ready, _, _ = select([self.PIPE[0]], [], [], seconds)
        if ready:
            try:
                os.read(self.PIPE[0], 4096)
            except OSError:
                pass  # somebody else has taken it

    def wake(self) -> None:
        """Have the main greenlet look around."""
        try:
            os.write(self.PIPE[1], b".")
        except BlockingIOError:
            pass  # it is full of wake-ups

    def recycle(self) -> None:
        """End after what runs: ``max_requests`` were served."""
        if self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._is_recycled = True
            os.ftruncate(self.tmp.fileno(), ENDING)
            self.wake()

    def _end(self) -> None:
        """End what runs, for ``graceful_timeout`` seconds at the most, and stop; at once if it is quick."""
        due = monotonic() + self.cfg.graceful_timeout
        # A worker that is recycled has its successor only when it has ended: until what rests is closed it serves on.
        timeout, accepting = self.cfg.graceful_timeout, self._is_recycled
        ending = [gevent.spawn(server.hand_over, timeout, accepting) for server in self.servers]
        for each in ending:
            each.link(lambda _: self.wake())
        while not self._is_quick and not all(each.ready() for each in ending):
            if monotonic() > due:
                self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
                break
            self.notify()
            self._wait(max(0.0, min(self._beat(), due - monotonic())))
        if self._is_quick:
            self.cfg.worker_int(self)
        for server in self.servers:
            server.abort()

    # -- signals

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: end."""
        self.alive = False

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGQUIT, SIGINT: end at once."""
        self.alive = False
        self._is_quick = True

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """SIGABRT: say where it hangs."""
        self.alive = False
        # First what hangs, as there may be no time for the rest: the master kills it within a second.
        where = "".join(traceback.format_stack(frame)) if frame is not None else "nowhere in Python\n"
        self.log.critical("Worker (pid:%s) hangs here:\n%s", self.pid, where)
        lines: list[str] = cast(Any, format_run_info)()
        more = len(lines) - MOST_LINES
        if more > 0:
            lines[MOST_LINES:] = [f"... and {more} lines more"]
        self.log.critical("All greenlets of the worker (pid:%s):\n%s", self.pid, "\n".join(lines))
        self.cfg.worker_abort(self)
        sys.exit(1)


def _join_logs() -> None:
    """Have what the library logs written to gunicorn's error log, unless the program says where it goes."""
    ours, theirs = (logging.getLogger(name) for name in ("greensock", "gunicorn.error"))
    below = [logging.getLogger(f"{ours.name}.{name}") for name in ("server", "upstream", "access")]
    if any(each.handlers for each in (ours, *below)):
        return
    for handler in theirs.handlers:
        ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(theirs.level)
    ours.propagate = not theirs.handlers
