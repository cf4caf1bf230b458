"""The engine: one epoll set per hub, the wake-ups that come out of it, and the deadlines.

The poller owns a private epoll set, nested in the hub's own loop (an epoll descriptor can itself be polled), one libev
watcher on it, and one libev timer. Everything that waits for the network is an :class:`Endpoint` in that set,
registered once, edge-triggered. For each event the poller

- wakes what waits on the endpoint (a greenlet blocked in a downcall, or the engine's own closing procedure),
- or, if the endpoint is idle, puts it on the ready queue of its server, whose workers then give it a turn,
- or else (one of its upcalls is running) only notes it in the endpoint's flags.

Invariants:

- One poller per hub, so per thread; made anew after a fork. (The child shares the parent's epoll set: it must neither
  harvest it nor change it.)
- All waking happens in the hub, in the poller's callbacks. They never raise: libev would stop the watcher.
- Between ``epoll_wait`` and the handling of an event user code may run, and may close the descriptor or have it reused.
  So an event is looked up when its time has come, and a spurious one is harmless: a greenlet that it wakes looks again.
- A greenlet that always finds input never has to wait, so it would hold the hub. It looks at the clock instead, and
  is put off to the next pass once that is later than ``until``. All greenlets that were put off share one slice of a
  pass, however many they are: so a pass is short, and timers are hardly late.
- The watcher runs only while there is an endpoint, so that a program with nothing to wait for ends as it would without.
"""

from __future__ import annotations

import heapq
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from math import inf
from time import monotonic
from typing import Any, ClassVar, Protocol

from gevent.hub import Hub, get_hub
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet

from greensock.core.pipes import Pipes
from greensock.core.syscalls import (
    EVENT_DATA,
    EVENT_HANGUP,
    EVENT_INPUT,
    EVENT_READ,
    EVENT_UNSURE,
    EVENT_WRITE,
    INTEREST,
    new_epoll,
)
from greensock.core.workers import Workers

__all__ = ["TIMED_OUT", "Endpoint", "Poller", "Switchable", "all_pollers", "compiled", "get_poller"]

#: Whether the engine runs compiled.
compiled = not __file__.endswith(".py")

#: How many events one ``epoll_wait`` fetches. The hub's other work gets its chance after so many.
MAX_EVENTS = 256

#: Seconds after which a greenlet that never has to wait is put off. All that were put off share so many seconds of a
#: pass.
SLICE_SECONDS = 0.005
#: Seconds that each of those may go on, in turn: with a slice each, a hundred of them would hold a pass for ever.
SHARE_SECONDS = 0.001

#: Seconds that what ``send_soon`` was given may wait for more in a pass.
CORK_SECONDS = 0.002
#: Bytes of one connection that wait together.
CORK_BYTES = 16384
#: Seconds between two of those after which nothing waits for more, if that happened twice, and for how many times as
#: long.
CORK_GAP, CORK_PAUSE = 0.0005, 20

#: What a wait returns when its time ran out.
TIMED_OUT = object()
#: Seconds after which an endpoint whose deadline raised is looked at again.
RETRY_SECONDS = 1.0

#: Every poller that has not been closed.
all_pollers: weakref.WeakSet[Poller] = weakref.WeakSet()


class Switchable(Protocol):
    """What can be woken: a greenlet, or an object of the engine with the same method."""

    def switch(self, *value: Any) -> Any:
        """Wake it, in the hub."""


class Endpoint:
    """What the engine knows of one registered descriptor.

    ``_readable`` and ``_writable`` say that the last attempt did not find the socket empty or full. ``_thorough`` says
    that a short read does not mean empty: the peer's FIN, an error or urgent data was announced. ``_idle`` says that an
    event must have ``_ready`` called with it, which queues it for a turn; it is False while a turn is due or running,
    and for ever where there are no upcalls.
    """

    __slots__ = ("_armed", "_fd", "_idle", "_poller", "_readable", "_reader", "_ready", "_thorough", "_writable")

    def __init__(self, poller: Poller, fd: int) -> None:
        self._poller = poller
        self._fd = fd
        self._ready: Any = None
        self._readable = False
        self._writable = True
        self._thorough = False
        self._idle = False
        self._reader: Switchable | None = None
        self._armed = inf

    def _on_writable(self) -> None:
        """React to an endpoint that was full and no longer is (or is broken). In the hub; must not raise."""

    def _on_hangup(self) -> None:
        """React to the announcement of FIN or an error, which may be repeated. In the hub; must not raise."""

    def _on_deadline(self, now: float) -> float:
        """Do what is due and return when to look again, in seconds of ``time.monotonic``. In the hub."""
        return inf

    #: Whether it lives on in the child of a fork that happened in its turn.
    survives_fork: ClassVar[bool] = False

    def _share(self) -> None:
        """Be told that others may hold the descriptor from now on, too."""

    def _divide(self) -> None:
        """Be told that the process forks, and that both go on with it."""
        self._share()

    def _survive_fork(self) -> None:
        """Live on in the child of a fork that happened in its turn."""

    def _leave_to_parent(self) -> int:
        """Let go of the descriptor in the child of a fork: it is the parent's.

        Returns the descriptor if it is still open though the child is to know nothing of it: an object of the program's
        will close it. Else -1.
        """
        fd, self._fd = self._fd, -1
        return -1 if os.get_inheritable(fd) else fd  # who made it inheritable wants a child to have it

    def _enter_child(self) -> None:
        """Be watched by the child's engine, which is the endpoint's poller by now."""
        self._poller.register(self)

    def _wait_readable(self) -> None:
        """Block the calling greenlet until the endpoint may be readable. It may return early."""
        # Whatever is thrown into the wait leaves through ``finally``: an event that is still to come finds no reader,
        # and only sets the flag.
        self._reader = getcurrent()
        try:
            self._poller.hub.switch()
        finally:
            self._reader = None


class _Pause:
    """A greenlet that was put off."""

    __slots__ = ("waiter",)

    def __init__(self, waiter: greenlet) -> None:
        self.waiter: greenlet | None = waiter

    def __call__(self) -> None:
        if self.waiter is not None:
            self.waiter.switch()


class Poller:
    """The engine of one hub. Get it with :func:`get_poller`."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        # Every registered endpoint by its descriptor, and how many there are. A list, as the kernel gives the smallest
        # number that is free: 8 bytes each where a dictionary takes ten times that.
        self._by_fd: list[Endpoint | None] = [None] * 64
        self._registered = 0
        #: The workers of each server of this hub.
        self.worker_pools: list[Workers] = []
        #: What TLS reads from and writes to, in memory; None: nobody speaks it.
        self.bios: Any = None
        #: The pipes of splices.
        self.pipes = Pipes()
        #: The time from which on a greenlet that does not have to wait lets others run.
        self.until = 0.0
        self._epoll = new_epoll()
        self._epoll_fd = self._epoll.fileno()
        self._watcher: Any = hub.loop.io(self._epoll.fileno(), 1)
        # One timer, started again and again: to make one costs some 10 us.
        self._next_pass: Any = hub.loop.timer(0.0)
        self._calls: deque[Callable[[], object]] = deque()
        #: Whether connections were accepted in this pass.
        self.has_newcomers = False
        #: Whether it is a parent's, in the child of a fork.
        self.is_abandoned = False
        self._active = False
        self._scheduled = False
        # What ``send_soon`` left for the end of the pass; when the first and the last of it came, and until when
        # nothing is to wait.
        self._corked: dict[Any, bytes] = {}
        self._corked_since = self._corked_last = self._uncorked_until = self._gap_at = 0.0
        self._put_off: deque[Callable[[], object]] = deque()
        self._paused: set[Endpoint] = set()
        self._deadlines: list[tuple[float, int, Endpoint]] = []
        self._serial = count()
        self._timer: Any = None
        self._timer_due = inf
        self._armed_count = 0
        all_pollers.add(self)

    # -- registration

    def register(self, endpoint: Endpoint, interest: int = INTEREST) -> None:
        """Begin to watch the endpoint's descriptor.

        Raises:
            OSError: the kernel refused (``ENOSPC``: fs.epoll.max_user_watches is reached).
        """
        # The kernel first: if it refuses, nothing here has changed. It tells of what is there already as if it came
        # now, so that no edge is missed between accept and this.
        self._epoll.register(endpoint._fd, interest)
        # A watcher that runs keeps the program alive (test_events_need_an_endpoint_to_keep_the_loop_alive).
        if not self._registered:
            self._watcher.start(self._on_events)
        fd, by_fd = endpoint._fd, self._by_fd
        while fd >= len(by_fd):
            by_fd.extend([None] * len(by_fd))
        if by_fd[fd] is None:  # else the program closed one behind our back, and its number is in use again
            self._registered += 1
        by_fd[fd] = endpoint

    def forget(self, endpoint: Endpoint, still_open: bool = False) -> None:
        """Stop watching; a descriptor that is about to be closed leaves the epoll set by itself.

        Not if it is ``still_open``, here or in a child: what it tells would come as long as anybody holds it.
        """
        # The number may be another endpoint's by now, or it never was registered.
        if self.is_registered(endpoint):
            self._by_fd[endpoint._fd] = None
            self._registered -= 1
            if still_open:
                with suppress(OSError):  # the program closed it itself
                    self._epoll.unregister(endpoint._fd)
            if not self._registered:
                self._watcher.stop()

    def is_registered(self, endpoint: Endpoint) -> bool:
        """Whether it is watched."""
        fd, by_fd = endpoint._fd, self._by_fd
        return 0 <= fd < len(by_fd) and by_fd[fd] is endpoint

    def endpoints(self) -> list[Endpoint]:
        """Return what is registered now, in the order of the descriptors."""
        return [endpoint for endpoint in self._by_fd if endpoint is not None]

    def forget_all(self) -> None:
        """Forget every endpoint, as a child does with those of its parent."""
        # In place: the child may have been forked in the middle of a harvest, which goes on there with this very list
        # (test_a_child_that_was_forked_within_a_harvest_wakes_nobody_elses_greenlet).
        self._by_fd[:] = [None] * len(self._by_fd)
        self._registered = 0

    def discard_workers(self, pool: Workers) -> None:
        """Forget the workers of a server that has stopped."""
        if pool in self.worker_pools:
            self.worker_pools.remove(pool)

    @property
    def closed(self) -> bool:
        """Whether its descriptors are closed."""
        return bool(self._epoll.closed)

    def close(self) -> None:
        """Give up the epoll set and the watchers."""
        if self.is_abandoned:
            return
        self._watcher.stop()
        self._watcher.close()
        self._next_pass.close()
        self._disarm()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Give up the epoll set and the spare pipes, and leave the loop alone: it may be gone."""
        if self.is_abandoned:
            return  # the child's loop goes on watching it
        self._epoll.close()
        self.pipes.close()
        all_pollers.discard(self)

    # -- the callback

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have ``call()`` made in the hub, in the next pass of the poller. It must not raise."""
        # A queue of our own: one callback of the hub for all calls of a pass, where each ``run_callback`` costs 0.55
        # us.
        self._calls.append(call)
        self.schedule()

    def queue(self, endpoint: Endpoint) -> None:
        """Put the endpoint on its ready queue now, and see to it that the queue is looked at."""
        # Not idle from the moment when it is queued: an event that comes before its turn must not queue it a second
        # time (test_what_is_queued_for_a_turn_is_queued_once).
        endpoint._idle = False
        endpoint._ready(endpoint)
        self.schedule()

    def requeue(self, endpoint: Endpoint) -> None:
        """Give the endpoint another turn, but after a pass of the loop, so that others get theirs."""
        # It is not idle meanwhile, as if it were queued: events that come set its flags and nothing else.
        self._go_on_later(partial(endpoint._ready, endpoint))

    def pause(self) -> None:
        """Block the calling greenlet until others had their turn."""
        pause = _Pause(getcurrent())
        self._go_on_later(pause)
        try:
            self.hub.switch()
        # A pause that was left by a kill or a timeout is void, though its place in the queue is kept
        # (test_a_pause_can_be_left).
        finally:
            pause.waiter = None

    def pause_if_late(self, endpoint: Endpoint) -> None:
        """Let others run before a peer that floods is read again: it becomes readable again when its turn has come.

        Called by the greenlet that reads.
        """
        if monotonic() > self.until:
            # The flag alone makes the reader wait: its next read finds it cleared, and no path of reading looks at
            # anything else. What is in the socket was told by an edge that is gone, so ``_resume`` has to tell it again
            # (test_a_peer_that_floods_a_loop_of_reads_does_not_hold_up_timers).
            endpoint._readable = False
            if endpoint not in self._paused:  # else an event came first, and it is still to be resumed
                self._paused.add(endpoint)
                self._go_on_later(partial(self._resume, endpoint))

    def _resume(self, endpoint: Endpoint) -> None:
        # It may have been closed while it was put off, and its number be another's.
        self._paused.discard(endpoint)
        if self.is_registered(endpoint):
            self._tell(endpoint, EVENT_INPUT)

    def _go_on_later(self, call: Callable[[], object]) -> None:
        # While a pass is active nothing is scheduled: its end looks at what is left.
        self._put_off.append(call)
        if not self._active and not self._scheduled:
            self._schedule_next_pass()

    def _schedule_next_pass(self) -> None:
        self._scheduled = True
        # Not run_callback: gevent runs up to 50 of those before it looks at its timers and descriptors
        # (test_timers_fire_in_time_beside_a_flood_of_work).
        self._next_pass.start(self._on_events, update=False)

    def schedule(self) -> None:
        """See to it that the callback runs soon, if it is not running."""
        if not self._active and not self._scheduled:
            self._scheduled = True
            self.hub.loop.run_callback(self._on_events)

    def _on_events(self) -> None:
        # This pass may have been scheduled before the hub was destroyed, or by the parent of a fork.
        if self.is_abandoned or self._epoll.closed:
            return
        self._active = True
        # Cleared at the beginning: what is queued from here on is found by the end of this pass.
        self._scheduled = False
        self.until = monotonic() + SLICE_SECONDS
        # First the wake-ups that the last pass ordered, then the kernel's events, then the turns that came of both, and
        # last the greenlets that were put off: so one that floods never runs before one that waits
        # (test_timers_fire_in_time_beside_a_flood_of_work, test_a_flood_does_not_starve_a_whisper_nor_timers).
        try:
            self._run_calls()
            harvest(self)
            if self.has_newcomers:
                # What they have to say most often came by the time that they were accepted: a second look saves it a
                # pass (test_what_came_with_the_connection_is_served_in_the_pass_that_accepts_it).
                self.has_newcomers = False
                harvest(self)
            self._run_workers()
            if self._put_off:
                self._run_put_off()
            if self._corked:
                self.uncork()
        except BaseException as error:  # a signal's exception can come up anywhere
            self._recover(error)
        finally:
            self._active = False
        # What is left was made while this ran; it must not wait for an event that may never come
        # (test_a_turn_that_spent_its_budget_goes_through_the_loop).
        if self._calls or self._put_off or self._is_somebody_ready():
            self._schedule_next_pass()

    def _is_somebody_ready(self) -> bool:
        # Written out: ``any`` makes a generator, and this is looked at in each pass.
        for pool in self.worker_pools:  # noqa: SIM110
            if pool.ready and pool.can_run:
                return True
        return False

    def cork(self, conn: Any, data: bytes) -> bool:
        """Have ``conn._send_corked(data)`` called at the end of this pass, behind what waits; False: send it now."""
        now, corked = monotonic(), self._corked
        if now < self._uncorked_until:
            return False
        if not corked:
            self._corked_since = now
        elif now - self._corked_last > CORK_GAP:
            # Somebody computed for long, and what was there waited for that. If it happened not long ago, too, it is
            # not to happen again soon: so what waits in vain is a small part of the time
            # (test_it_does_not_wait_for_who_computes_for_long). Once in a while it is a thread that held the
            # interpreter, that of the access log say, and no reason to wake everybody one by one.
            pause = CORK_PAUSE * (now - self._corked_last)
            if now - self._gap_at < pause:
                self._uncorked_until = now + pause
            self._gap_at = now
            self.uncork()
            return False
        elif now - self._corked_since > CORK_SECONDS:
            self.uncork()
            self._corked_since = now
        self._corked_last = now
        waiting = corked.get(conn)
        if waiting is not None:
            if len(waiting) + len(data) > CORK_BYTES:
                return False  # a copy of much costs more than a write
            data = waiting + data
        corked[conn] = data
        return True

    def uncork(self) -> None:
        """Send what waits for the end of the pass."""
        for conn in list(self._corked):
            self.uncork_for(conn)

    def uncork_for(self, conn: Any) -> None:
        """Send now what was to wait for the end of the pass, if there is any."""
        # One that was closed meanwhile, by what an earlier one led to, is no longer there.
        data = self._corked.pop(conn, None)
        if data is not None:
            conn._send_corked(data)

    def _run_calls(self) -> None:
        # As many as there are now: a call that orders the next one (a flush in steps, a sweep in slices) goes on in
        # the next pass (test_a_call_that_orders_the_next_goes_on_in_the_next_pass).
        calls = self._calls
        for _ in range(len(calls)):
            calls.popleft()()

    def _tell(self, endpoint: Endpoint, events: int) -> None:
        # Edge-triggered: this is told once. What is not acted on now must be kept in the flags, or it is lost for ever
        # (test_the_end_right_behind_the_data_is_seen).
        if events & EVENT_UNSURE:
            endpoint._thorough = True
            if events & EVENT_HANGUP:
                endpoint._on_hangup()
        # Writers before readers: a greenlet that is woken to read may close the connection, and what waited to be sent
        # has its chance before (test_room_and_data_that_come_in_one_event).
        if not endpoint._writable and events & EVENT_WRITE:
            endpoint._writable = True
            endpoint._on_writable()
        if events & EVENT_READ:
            endpoint._readable = True
            reader = endpoint._reader
            if reader is not None:
                reader.switch()
            elif endpoint._idle:
                endpoint._idle = False
                endpoint._ready(endpoint)

    def _run_workers(self) -> None:
        # A worker that blocks in an upcall switches to the hub, that is, back into ``run``, which hands on the rest.
        for pool in self.worker_pools:
            if pool.ready:
                pool.run()

    def _run_put_off(self) -> None:
        """Let the greenlets go on that were put off before, one after the other, until the time for that is over."""
        # As many as there are now, each for its share, and all together for a slice. One that is put off again waits
        # behind all others (test_a_turn_that_spent_its_budget_goes_through_the_loop,
        # test_a_flood_leaves_others_their_turn).
        put_off, now = self._put_off, monotonic()
        end = now + SLICE_SECONDS
        for _ in range(len(put_off)):
            self.until = now + SHARE_SECONDS
            # This only puts a connection back in its ready queue: its turn belongs to the same share.
            put_off.popleft()()
            self._run_workers()
            now = monotonic()
            if now > end:
                return

    def _recover(self, error: BaseException) -> None:
        """Lose no event though the callback was cut short: tell every endpoint to look for itself."""
        # The events of this harvest are gone from the kernel's list (test_callback_that_is_cut_short_loses_no_event).
        self.call_soon(partial(self._look_again, self.endpoints()))
        self.hub.handle_error(self, type(error), error, error.__traceback__)

    def _look_again(self, suspects: list[Endpoint]) -> None:
        for endpoint in suspects:
            if self.is_registered(endpoint):
                # As if everything had happened to each: a greenlet that is woken in vain looks, finds nothing, and
                # waits on. A hang-up is among it.
                self._tell(endpoint, EVENT_READ | EVENT_WRITE)

    # -- deadlines

    def arm(self, endpoint: Endpoint, when: float) -> None:
        """See to it that ``endpoint._on_deadline`` is called at ``when`` at the latest.

        An endpoint has one valid entry on the heap, the one whose time is ``endpoint._armed``. A deadline that moves
        back leaves its entry where it is: the endpoint looks at its own deadlines when the entry comes due.
        """
        # An older entry of the endpoint stays on the heap and is void by its time: to find it there would take a search
        # (test_deadlines_that_move_cost_no_timer). How many are valid is counted, so that void ones do not pile up.
        if endpoint._armed == inf:
            self._armed_count += 1
        endpoint._armed = when
        # The serial number: endpoints cannot be compared, which the heap would do at equal times.
        heapq.heappush(self._deadlines, (when, next(self._serial), endpoint))
        self._forget_void()
        if when < self._timer_due:
            self._set_timer(when)

    def disarm(self, endpoint: Endpoint) -> None:
        """Make the endpoint's entry void."""
        if endpoint._armed != inf:
            endpoint._armed = inf
            self._armed_count -= 1
            self._forget_void()

    def _forget_void(self) -> None:
        """Let go of void entries, which hold closed connections, once they are most of the heap."""
        if len(self._deadlines) > 2 * self._armed_count + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2]._armed == entry[0]]
            heapq.heapify(self._deadlines)

    def _set_timer(self, when: float) -> None:
        self._disarm()
        self._timer_due = when
        # Without a reference: it keeps no program alive that waits for nothing else
        # (test_events_need_an_endpoint_to_keep_the_loop_alive).
        self._timer = self.hub.loop.timer(max(0.0, when - monotonic()), ref=False)
        # The loop's own time may be as old as its pass: the timer would fire early by so much, find nothing due, and
        # again.
        self._timer.start(self._on_timer, update=True)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        self._timer_due = inf

    def _on_timer(self) -> None:
        try:
            self._disarm()
            self._run_deadlines(monotonic())
        except BaseException as error:
            self.hub.handle_error(self, type(error), error, error.__traceback__)
        # Also when an endpoint has raised: without a timer no deadline of this hub would ever come due again.
        finally:
            if self._deadlines and self._deadlines[0][0] < self._timer_due:
                self._set_timer(self._deadlines[0][0])

    def _run_deadlines(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            when, _, endpoint = heapq.heappop(self._deadlines)
            if endpoint._armed != when:
                continue  # moved or disarmed since
            # Before the call, which may arm it anew, or close it.
            self.disarm(endpoint)
            try:
                again = endpoint._on_deadline(now)
            except BaseException:
                self.arm(endpoint, now + RETRY_SECONDS)  # not lost: it may have others
                raise
            # The call may have switched to a greenlet that armed the endpoint for an earlier time: that stands.
            if again < endpoint._armed:
                self.arm(endpoint, again)


def harvest(poller: Poller) -> None:
    """Fetch the events and hand each to its endpoint."""
    # With a timeout of 0: the watcher fired because something is there, and the hub must not block here. What exceeds
    # ``MAX_EVENTS`` stays in the kernel's list, and the nested set stays readable for the watcher, which is
    # level-triggered. (The compiled engine has this loop in C: ``poller.pxd``.)
    by_fd, data = poller._by_fd, EVENT_DATA
    for fd, events in poller._epoll.poll(0, MAX_EVENTS):
        endpoint = by_fd[fd]
        # An event may be about a connection that an upcall of this very loop has closed, and its number may be
        # another's by now. It is looked up only here, and one more wake-up harms nobody
        # (test_a_stranger_with_the_same_descriptor_gets_a_harmless_event).
        if endpoint is None:
            continue  # closed since
        # The hot path: data for a connection without an upcall running, or for a greenlet that waits for it. This mask
        # with ``_writable`` set means data only: a hang-up and urgent data come with another mask, and room for what
        # waits to be sent with ``_writable`` False (test_room_and_data_that_come_in_one_event).
        if events == data and endpoint._writable:
            endpoint._readable = True
            if endpoint._reader is not None:
                endpoint._reader.switch()
            elif endpoint._idle:
                endpoint._idle = False
                endpoint._ready(endpoint)
        else:
            poller._tell(endpoint, events)


def get_poller() -> Poller:
    """Return the poller of the calling thread's hub, making it if need be."""
    hub = get_hub()
    poller: Poller | None = hub.__dict__.get("greensock_poller")
    if poller is None:
        poller = hub.__dict__["greensock_poller"] = Poller(hub)
        _end_with_hub(hub, poller)
    return poller


def _end_with_hub(hub: Hub, poller: Poller) -> None:
    """Have the poller's descriptors closed when the hub is destroyed, or the thread ends: two a thread add up."""
    destroy = hub.destroy

    def destroy_both(destroy_loop: bool | None = None) -> None:
        hub.__dict__.pop("greensock_poller", None)
        if not poller.closed:
            poller.close()
        destroy(destroy_loop)

    # Two ways to an end: the hub is destroyed (test_a_hub_that_is_made_anew_gets_a_poller_of_its_own), or its thread
    # ends, and with it what is local to the thread (test_a_thread_that_ends_without_a_word_closes_its_poller).
    hub.destroy = destroy_both  # type: ignore[method-assign]
    _of_this_thread.closer = _Closer(poller)


class _Closer:
    """Closes a poller's descriptors when its thread has ended without destroying the hub."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    def __del__(self, is_the_end: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_the_end():  # the names of this module are gone then; the kernel closes them
            self._poller.close_descriptors()


_of_this_thread = get_original("_thread", "_local")()
