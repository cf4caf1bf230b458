"""What a fork does to the engine: the child lets go of what is its parent's.

The child of a fork has a copy of everything: the loop, the epoll set, which it shares with its parent, the descriptors
of all connections. Only the connection in whose turn the fork happened lives on in both; all else is the parent's, and
the child closes its copies. Not where the fork is only on the way to another program: ``exec`` does that.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any

from greenlet import getcurrent

from greensock.core.poller import Endpoint, Poller, all_pollers, get_poller
from greensock.core.syscalls import close

__all__ = ["ChildsPoller"]


class ChildsPoller:
    """In the place of the poller of a connection that lives on in the child of a fork: made when it is needed.

    Not before: the child's event loop is not its own until the fork has returned.
    """

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def __getattr__(self, name: str) -> Any:
        endpoint = self._endpoint
        endpoint._poller = poller = get_poller()
        endpoint._enter_child()
        return getattr(poller, name)


#: What the child of a fork has of its parent's loop, and must neither stop nor close: with libuv that would reach the
#: parent, which would never answer again. They are kept, for to be collected is to be closed.
_of_the_parent: list[Any] = []
_survivors: list[Endpoint] = []


#: The functions, and their modules, that fork only to become another program. ``exec`` closes there what was not handed
#: over, and until then the parent's loop does not run there. (gevent's ``Popen`` forks in Python; the standard
#: library's calls the hooks where it has a ``preexec_fn``.)
_EXECUTING = {("subprocess", "_execute_child"), ("gevent.subprocess", "_execute_child"), ("os", "_spawnvef")}


def _is_to_execute() -> bool:
    """Whether the fork that calls the hooks is one of those. (One within a ``preexec_fn`` is not.)"""
    # Frame 0 is this function, 1 the hook, 2 the code that forks.
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == "gevent.os":
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and (frame.f_globals.get("__name__"), frame.f_code.co_name) in _EXECUTING


def _before_fork() -> None:
    """Note whose turn it is: that connection lives on in the child, if there is to be one."""
    if _is_to_execute():
        return
    _survivors[:] = [endpoint for endpoint in _connections_of_this_turn() if endpoint.survives_fork]
    # Before the fork, so that both processes treat it as shared: afterwards either could send a FIN or a reset, which
    # would be for both (test_a_process_for_each_connection).
    for endpoint in _survivors:
        endpoint._divide()


def _connections_of_this_turn() -> list[Endpoint]:
    """Return the connection in whose upcall or handler the calling greenlet is, as a list of none or one.

    A handler of ``StreamServer`` is a greenlet that has it among its arguments; of a worker its server knows.
    """
    me = getcurrent()
    arguments = list(getattr(me, "args", None) or ())
    for argument in arguments:
        if isinstance(argument, tuple):
            arguments += argument
        elif isinstance(argument, Endpoint):
            return [argument]
    turns = [pool.turn_of(me) for poller in list(all_pollers) for pool in poller.worker_pools]
    return [conn for conn in turns if conn is not None]


def _after_fork_in_parent() -> None:
    _survivors.clear()


def _after_fork_in_child() -> None:
    if _is_to_execute():
        return
    # The pollers of other threads are copied too, though their threads are not: each holds descriptors of the parent's.
    failures = []
    for poller in list(all_pollers):
        poller.hub.__dict__.pop("greensock_poller", None)
        all_pollers.discard(poller)
        try:
            _abandon(poller)
        except Exception as error:
            failures.append(error)  # the others are to be abandoned all the same
    # After the parent's poller is abandoned: it still has the endpoint in its books until then.
    for endpoint in _survivors:
        endpoint._survive_fork()
    _survivors.clear()
    if failures:
        raise failures[0]


def _abandon(poller: Poller) -> None:
    """Let go of a parent's poller in the child: its connections are the parent's, and so is its loop."""
    _of_the_parent.append(poller)
    poller.is_abandoned = True
    poller._watcher.ref = False  # in memory only: the child's program may end though it is active
    # What the parent had queued would switch to copies of its greenlets, which do here what they do there, twice.
    poller._deadlines.clear()
    poller._calls.clear()
    poller._put_off.clear()
    poller._corked.clear()
    for pool in poller.worker_pools:
        pool.ready.clear()
    poller.worker_pools.clear()
    # What takes descriptors comes last: there may be none but those that are given back here.
    left_open = []
    for endpoint in poller.endpoints():
        if endpoint not in _survivors:
            with suppress(OSError):  # the program closed it itself
                left_open.append(endpoint._leave_to_parent())
    poller.forget_all()
    poller.pipes.close()
    _replace_by_silence(poller._epoll.fileno())
    # An object of the program's will close this number: something has to be there until then, or it would close
    # another's file.
    for fd in left_open:
        if fd >= 0:
            os.dup2(poller._epoll.fileno(), fd, inheritable=False)


def _replace_by_silence(fd: int) -> None:
    """Put a descriptor that is never ready, and can be watched, where the loop watches the parent's epoll set."""
    try:
        silence = os.eventfd(0)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        close(fd)  # its number is the one that can be had
        silence = os.eventfd(0)
    if silence != fd:
        os.dup2(silence, fd, inheritable=False)
        close(silence)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
