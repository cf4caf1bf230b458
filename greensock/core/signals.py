"""What signals do while ``serve_forever`` runs, for all servers of the process.

Taken are those of ``ENDING``, which drain and then stop, and those of ``IGNORED``, which an operator may send and whose
default would kill: they are logged. A signal is left alone if anybody else has a say in it: a handler of the program's,
by ``signal.signal``, by gevent or in C, or one that was ignored when the program was started (nohup, a shell's
background job). What was taken is given back when the last ``serve_forever`` returns.

Who called ``serve_forever`` in the main greenlet sees it return; that is all the program needs to know. If all of them
ran in other greenlets, the main one was told nothing: then the signal is sent once more when all have stopped, and does
what it would have done without us (SIGTERM ends the process, SIGINT raises ``KeyboardInterrupt`` in the main greenlet).

The handlers are Python's own, not watchers of the loop: ``signal.getsignal`` shows them, a handler that the program
sets meanwhile takes their place, and a forked child gets rid of them without touching its parent's loop.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import gevent
from greenlet import getcurrent

from greensock.stats import DatagramStatistics, ServerStatistics

__all__ = ["ENDING", "IGNORED", "Served", "serving"]

log = logging.getLogger("greensock.server")

#: The first drains and then stops, the next one aborts. (SIGQUIT: nginx's word for it, in many unit files.)
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Logged, and otherwise without effect.
IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: Seconds of draining after which it is said what is waited for.
SILENT_SECONDS = 2.0


class Served(Protocol):
    """A server, as far as signals are concerned."""

    stop_timeout: float

    def stop(self) -> None:
        """Drain, then stop."""

    def abort(self) -> None:
        """Stop now."""

    def statistics(self) -> ServerStatistics | DatagramStatistics:
        """Return the counters."""


class _Serving:
    """The servers whose ``serve_forever`` runs in the main thread, and the signals that were taken for them."""

    def __init__(self) -> None:
        self._servers: list[tuple[Served, bool]] = []  # each with whether it is served in the main greenlet
        #: The signals that were taken, with what was there before.
        self.taken: dict[int, Any] = {}
        #: The signals that were blocked before a fork.
        self.held_back: set[int] = set()
        self._handler: Callable[[int, FrameType | None], None] = self._on_signal
        self._ours: int | None = None  # the address of what the system calls for Python's handlers
        self._came: int | None = None  # the first signal that ends
        self._is_main_told = False

    def enter(self, server: Served) -> None:
        """Have signals stop the server from now on. Called by the greenlet that serves it, as is ``leave``."""
        # Python runs handlers in the main thread, and only there can they be set
        # (test_a_server_in_another_thread_takes_no_signals).
        hub = gevent.get_hub()
        if not hub.main_hub:
            return  # signals are the main thread's
        self._servers.append((server, getcurrent() is hub.parent))
        if len(self._servers) == 1:
            for number in (*IGNORED, *ENDING):  # SIGINT behind one that shows what Python's handlers look like
                if self._is_free(number):
                    self.taken[number] = signal.signal(number, self._handler)
                    self._ours = _address_of_handler(number)
        if self._came is not None:
            gevent.spawn(_stop, server, self._came)  # the others are about to end

    def leave(self, server: Served) -> None:
        """Give the signals back if it was the last server; pass on the one that came, if the program was not told."""
        hub = gevent.get_hub()
        mine = server, getcurrent() is hub.parent
        if mine not in self._servers:
            return  # of another thread, or of the process that this one was forked from
        self._servers.remove(mine)
        if self._servers:
            return
        # Given back first, sent second: the signal is to find what was there before us.
        came, told = self._came, self._is_main_told
        self.forget()
        if came is not None and not told:
            hub.loop.run_callback(_send_to_itself, came)

    def forget(self) -> None:
        """Give the signals back, and know of no servers: those of a forked child are its parent's."""
        self._servers.clear()
        self._came, self._is_main_told = None, False
        taken, self.taken = self.taken, {}
        for number, before in taken.items():
            # Only where ours is still in place: a handler that was set meanwhile is the program's
            # (test_a_handler_that_is_set_meanwhile_stays).
            if signal.getsignal(number) is self._handler and _address_of_handler(number) == self._ours:
                signal.signal(number, before)

    def _is_free(self, number: int) -> bool:
        """Whether a signal does what it does by default, as far as Python and the system know."""
        handler, address = signal.getsignal(number), _address_of_handler(number)
        if handler is signal.default_int_handler:
            return address is None or self._ours is None or address == self._ours
        return handler is signal.SIG_DFL and not address

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # It comes anywhere, in the middle of whatever runs: so it only begins what others do.
        if number in IGNORED:
            gevent.spawn(_say_that_it_is_ignored, number)
            return
        is_first = self._came is None
        if is_first:
            self._came = number
            self._is_main_told = any(in_main for _, in_main in self._servers)
        for server in dict.fromkeys(server for server, _ in self._servers):  # one may be served by two greenlets
            if is_first:
                gevent.spawn(_stop, server, number)
            else:
                gevent.spawn(server.abort)


def _stop(server: Served, number: int) -> None:
    job = gevent.spawn(server.stop)
    job.join(SILENT_SECONDS)
    if not job.ready():
        log.warning(
            "%s: %r waits up to %g s for %d connections to end; once more, and it does not wait",
            _name(number), server, server.stop_timeout, server.statistics().active,
        )  # fmt: skip


def _say_that_it_is_ignored(number: int) -> None:
    log.warning("%s is ignored; %s stop the server", _name(number), " and ".join(map(_name, ENDING[:2])))


def _name(number: int) -> str:
    return signal.Signals(number).name


def _address_of_handler(number: int) -> int | None:
    """Return what the system calls for a signal: 0 for its default, 1 if it is ignored, else an address; None: unknown.

    ``signal.getsignal`` knows nothing of what others than Python set: gevent's watchers, faulthandler.
    """
    try:
        getsig = ctypes.pythonapi.PyOS_getsig
    except AttributeError:  # not CPython
        return None
    getsig.restype, getsig.argtypes = ctypes.c_void_p, [ctypes.c_int]
    return getsig(number) or 0


def _before_fork() -> None:
    """Hold back what the child would hear with its parent's handlers, and Python then forget."""
    # A signal between the fork and ``forget`` would run the parent's handler in the child, and stop a server that is
    # none.
    if serving.taken:
        serving.held_back = signal.pthread_sigmask(signal.SIG_BLOCK, serving.taken)


def _after_fork_in_parent() -> None:
    if serving.taken:
        signal.pthread_sigmask(signal.SIG_SETMASK, serving.held_back)


def _after_fork_in_child() -> None:
    if serving.taken:
        serving.forget()
        signal.pthread_sigmask(signal.SIG_SETMASK, serving.held_back)


serving = _Serving()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _send_to_itself(number: int) -> None:
    """Send a signal to this process, and have its handler called here and now.

    Before Python 3.11 a handler is called between two instructions, of which the hub may make none for long: it waits
    in C for what comes next (test_in_another_greenlet_the_program_sees_the_signal_when_all_has_stopped).
    """
    os.kill(os.getpid(), number)
    for _ in range(2):
        pass
