"""The acceptor: one greenlet per listener that takes connections out of the kernel's queue.

It owns the listening socket. Woken by the listener, it takes what is there, at most ``max_accept`` at a time, and hands
each connection to the server; while ``max_connections`` are alive it waits, and the kernel's backlog holds the rest.

What accept() may fail with, and what is done (accept(2); libev's and libuv's documents tell of the same choices):

- EAGAIN: nothing is there; wait.
- ECONNABORTED, EINTR, EPROTO and the network errors that Linux passes on from the new socket: that connection is gone;
  go on.
- EMFILE, ENFILE, ENOBUFS, ENOMEM: pause, with back-off, and leave the connections in the backlog, where nothing is
  lost. A reserve descriptor is given up for the while, so that the rest of the program has one left to log or to
  answer with; that it can be had back is the sign that descriptors have come back. One log line in ten seconds.
- anything else is a bug or a listener that somebody closed: logged loudly, and accepting stops.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from greensock.core.poller import Endpoint, get_poller
from greensock.core.syscalls import BorrowedSocket, accept, close

__all__ = ["Acceptor"]

log = logging.getLogger("greensock.server")

_GONE = frozenset(
    {errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN}
    | {errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM}
)
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Seconds to pause when descriptors are used up: the first time, and at the most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
#: Seconds between two log lines about it.
LOG_EVERY = 10.0


class Acceptor:
    """Accepts on one listening socket, which it owns, and calls ``accepted(fd, address)`` for each connection; the
    address is packed (see ``syscalls``).

    ``may_accept()`` says how many more are welcome now; call ``more_welcome()`` when it may have risen.
    """

    def __init__(
        self,
        listener: socket.socket,
        accepted: Callable[[int, Any], None],
        may_accept: Callable[[], float],
        max_accept: int,
    ) -> None:
        #: How often accepting had to pause because descriptors or memory were used up.
        self.pauses = 0
        self.listener = listener
        self._accepted = accepted
        self._may_accept = may_accept
        self._max_accept = max_accept
        self._welcome = Event()
        self._reserve: int | None = None
        self._pid = 0
        self._pause = SHORTEST_PAUSE
        self._logged = -LOG_EVERY
        self._greenlet: gevent.Greenlet[[], None] | None = None
        listener.setblocking(False)
        self._take: Callable[[BorrowedSocket, int], tuple[int, Any] | None] = accept
        self._raw = BorrowedSocket(listener.family, listener.type, listener.proto, listener.fileno())

    def start(self) -> None:
        """Begin to accept."""
        if self._greenlet is None:
            self._take_reserve()
            self._pid = os.getpid()
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = f"acceptor of {self.listener.getsockname()!r}"

    def stop(self) -> None:
        """Stop accepting; the listener stays open."""
        # Taken first: the kill blocks, and meanwhile ``start()`` may make a new one, which is not to be lost. The
        # acceptor's own greenlet may call this, and cannot wait for its own end.
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=greenlet is not gevent.getcurrent())
        self._give_up_reserve()

    def close(self) -> None:
        """Stop accepting and close the listener."""
        self.stop()
        self._raw.detach()
        self.listener.close()

    def more_welcome(self) -> None:
        """Look again how many connections are welcome."""
        self._welcome.set()

    def _run(self) -> None:
        if os.getpid() != self._pid:
            return  # forked before the loop ran: this is the child's copy, and the connections are the parent's
        poller = get_poller()
        endpoint = Endpoint(poller, self._raw.fileno())
        may_accept, most = self._may_accept, self._max_accept
        try:
            poller.register(endpoint)
            while True:
                # Edge-triggered, as everything: the flag stays set until a drain has found the queue empty.
                while not endpoint._readable:
                    endpoint._wait_readable()
                # Cleared before the question and not after it: a connection that ends in between sets it, and the wait
                # returns at once. Asked once a round: an answer may depend on how often that was
                # (test_a_worker_with_more_than_its_share_lets_others_go_first).
                self._welcome.clear()
                if (permits := may_accept()) < 1:
                    self._welcome.wait()
                    continue
                if self._drain(int(min(permits, most))):
                    gevent.sleep(0)  # more may be there: after those that are
                else:
                    endpoint._readable = False
                poller.has_newcomers = True
        # Not BaseException: GreenletExit is how ``stop()`` ends it.
        except Exception:
            log.exception("accepting on %r failed and has stopped", self.listener)
        finally:
            # The listener stays open and may be accepted on again, by us or by another process that has it: its events
            # are no longer for this endpoint.
            poller.forget(endpoint, still_open=True)
            if self._greenlet is gevent.getcurrent():
                self._greenlet = None  # so that start() begins anew

    def _drain(self, limit: int) -> bool:
        """Accept up to ``limit`` connections; False if the queue was found empty."""
        take, listener, accepted = self._take, self._raw, self._accepted
        fd = listener.fileno()
        for _ in range(limit):
            try:
                found = take(listener, fd)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._wait_for_descriptors(error)
                    return True  # meanwhile other acceptors may have taken what ``limit`` counted
                if error.errno not in _GONE:
                    raise
                continue  # more may be behind it (test_one_that_is_gone_hides_none_behind_it)
            if found is None:
                self._pause = SHORTEST_PAUSE
                return False
            accepted(*found)
        self._pause = SHORTEST_PAUSE
        return True

    def _wait_for_descriptors(self, error: OSError) -> None:
        # The reserve is what the log line, or an answer that opens a file, can be made with.
        self._give_up_reserve()
        now = monotonic()
        if now - self._logged >= LOG_EVERY:
            self._logged = now
            log.error("cannot accept: %s; connections wait in the backlog", error.strerror)
        while True:
            self.pauses += 1
            gevent.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            if self._take_reserve():
                return

    def _take_reserve(self) -> bool:
        if self._reserve is None:
            try:
                self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def _give_up_reserve(self) -> None:
        if self._reserve is not None:
            close(self._reserve)
            self._reserve = None
