"""What one worker counts for the operators: once a second it writes to memory that all workers share.

What servers count anyway is looked at, and nothing is counted twice: between two looks this costs nothing, and a
figure may be a second old. A look goes through all connections (0.1 us each), so that with many there is more time
between two of them: they take 0.5 % of a core at the most.

Figures are called as in ``METRICS`` (``exposition``); what has labels has them behind its name, with ``|`` between.
"""

from __future__ import annotations

import os
import resource
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from gevent import get_hub

from greensock.core.sampling import INTERVAL, Sampler
from greensock.core.server import Server
from greensock.http.server.http_stats import HTTPStatistics
from greensock.operations.figures import Board, figure_name
from greensock.operations.histograms import BOUNDS, Histogram, histogram_names
from greensock.operations.hub_watchdog import HubWatchdog
from greensock.operations.last_requests import LastRequests, ToldRecord
from greensock.shared_pages import SharedPages
from greensock.stats import ServerStatistics

__all__ = ["ENDING", "SERVING", "Behind", "Conflict", "WorkerWatch"]

#: How a worker is: a figure called ``state``.
SERVING, ENDING = 1, 2
#: Seconds between two looks, at the least.
BEAT = 1.0
#: Seconds for which what was written is good enough for who asks.
FRESH = 0.2
#: How many times as long as a look took the next one is waited for.
PAUSE = 200

_started = struct.Struct("d")


class Conflict(Exception):
    """What operators want does not go with what is there; the text says with what. Nothing has changed."""


class Behind(Protocol):
    """What is behind the servers, if they are a proxy's: its own figures, and the servers that it asks."""

    def counters(self) -> Mapping[str, int]:
        """Return figures that only grow."""

    def gauges(self) -> Mapping[str, int]:
        """Return figures of now."""

    def upstreams(self) -> list[dict[str, Any]]:
        """Return each upstream, ``name`` and ``servers``, of which each has ``name``, ``state``, ``why``, ``since`` and
        ``weight``.
        """

    def leave(self) -> None:
        """Take note that others have taken its place, and count on with what it knew."""

    def set_server(self, upstream: str, server: str, what: str) -> None:
        """Have a server drained, or put back: ``what`` is ``"drain"`` or ``"ready"``.

        Raises:
            LookupError: there is none of that name; the text says which.
            OSError: the other workers can't be told now (``TimeoutError``), or not at all.
        """

    def add_server(self, upstream: str, url: str, options: Mapping[str, Any]) -> str:
        """Have a further server, in all workers; return what it is called.

        Raises:
            LookupError: there is no such upstream.
            ValueError: the URL (``server`` in the text) or an option is not allowed; the text says which, and what is.
            Conflict: it is there already, or there is no room for one more.
            OSError: the other workers can't be told now.
        """

    def remove_server(self, upstream: str, server: str) -> None:
        """Have a server no more, in all workers: what it is asked now it answers. Its URL will do, too.

        Raises:
            LookupError: there is none of that name; the text says which.
            Conflict: there is no room to say so.
            OSError: the other workers can't be told now.
        """


class _Group:
    """Servers that began together, and what is behind them."""

    def __init__(self, servers: Sequence[Server[Any]], behind: Behind | None) -> None:
        self.servers = servers
        self.behind = behind

    @property
    def is_over(self) -> bool:
        return not any(server.started for server in self.servers)

    def add(self, counters: Counter[str], gauges: Counter[str]) -> None:
        """Add what they have counted, and how they are now: one look at each."""
        for server in self.servers:
            told = server.statistics()
            _count(counters, told)
            gauges["connections"] += told.active
            gauges["in_hand"] += told.workers_busy
            gauges["greenlets"] += told.workers
            gauges["handshakes_unfinished"] += told.handshakes_unfinished
        if self.behind is not None:
            counters.update(self.behind.counters())
            gauges.update(self.behind.gauges())


class WorkerWatch:
    """Writes what the servers of this process count, and measures what they don't.

    Made in the worker, after :meth:`share` was called in the master.
    """

    def __init__(self, pages: SharedPages, slot: int, max_hold: float | None) -> None:
        self.pages = pages
        self.slot = slot
        #: What only grows; whole numbers, and seconds.
        self.counters, self.seconds, self.gauges = self._boards(pages)
        #: How long requests took, which is noted by the proxy.
        self.latency = Histogram(BOUNDS["latency"])
        #: How long a ready connection waited for its turn, an upcall took, and the hub was late (``Sampler``).
        self.turn_wait = Histogram(BOUNDS["turn_wait"])
        self.upcall = Histogram(BOUNDS["upcall"])
        self.hub_held = Histogram(BOUNDS["hub_held"])
        #: The slowest and the failed.
        self.last_requests = LastRequests(pages, slot)
        self.last_requests.forget()
        self._groups: list[_Group] = []
        self._gone: Counter[str] = Counter()  # what was counted by groups that are over
        self._names = {name: histogram_names(name) for name in BOUNDS}
        self._sampler = Sampler(self.hub_held.note, self.turn_wait.note, self.upcall.note)
        self._max_hold = max_hold
        self._watchdog: HubWatchdog | None = None
        self._holds = 0  # that watchdogs have seen which were stopped
        self._timer: Any = None
        self._written_at = 0.0
        self._pid = os.getpid()

    @staticmethod
    def _boards(pages: SharedPages) -> tuple[Board, Board, Board]:
        return (
            Board(pages, "operations: counters", "q", is_kept=True),
            Board(pages, "operations: seconds", "d", is_kept=True, columns=16),
            Board(pages, "operations: gauges", "q"),
        )

    @classmethod
    def share(cls, pages: SharedPages) -> None:
        """Make the memory; called in the master before the first fork. What is there already stays."""
        cls._boards(pages)
        LastRequests(pages, 0)
        block = pages.block("operations: started", _started.size)
        if not _started.unpack_from(block)[0]:
            _started.pack_into(block, 0, time.time())

    @property
    def started_at(self) -> float:
        """When the master began, in seconds since 1970."""
        return float(_started.unpack_from(self.pages.block("operations: started", _started.size))[0])

    # -- whom it watches

    def follow(self, servers: Iterable[Server[Any]], behind: Behind | None = None) -> None:
        """Watch these from now on; those of before as long as they end."""
        if self.behind is not None:
            self.behind.leave()
        self._groups.append(_Group(list(servers), behind))
        if self._timer is not None:
            self._sampler.follow(self.servers)

    @property
    def servers(self) -> Sequence[Server[Any]]:
        """The servers that it watches: those that serve."""
        return self._groups[-1].servers if self._groups else ()

    @property
    def behind(self) -> Behind | None:
        """What is behind them."""
        return self._groups[-1].behind if self._groups else None

    @property
    def max_hold(self) -> float | None:
        """Seconds that an upcall may hold the hub before its stack is logged; None: any."""
        return self._max_hold

    @max_hold.setter
    def max_hold(self, seconds: float | None) -> None:
        if seconds != self._max_hold:
            self._max_hold = seconds
            if self._timer is not None:
                self._stop_watchdog()
                self._start_watchdog()

    def _start_watchdog(self) -> None:
        if self._max_hold is not None:
            self._watchdog = HubWatchdog(lambda: self._sampler.seen_at, INTERVAL, self._max_hold)
            self._watchdog.start()

    def _stop_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stop()
            self._holds += watchdog.holds

    # -- what the proxy tells

    def note_record(self, record: ToldRecord) -> None:
        """Note a request of which all is known. A tunnel is none any more; what was refused at once took no time."""
        if record.status == 101:
            return
        if record.duration:
            self.latency.note(record.duration)
        self.last_requests.note(record)

    # -- life

    def start(self) -> None:
        """Begin to watch, in the hub of the calling thread."""
        if self._timer is not None:
            return
        self._timer = get_hub().loop.timer(BEAT, ref=False)
        self._sampler.follow(self.servers)
        self._sampler.start()
        self._start_watchdog()
        self._beat()

    def stop(self) -> None:
        """Write a last time, and watch no more."""
        timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.stop()
        timer.close()
        self._stop_watchdog()
        self._sampler.stop()
        self.write()

    def _beat(self) -> None:
        began = time.monotonic()
        try:
            self.write()
        except BaseException as error:  # libev would stop the timer
            get_hub().handle_error(self, type(error), error, error.__traceback__)
        finally:
            if self._timer is not None:
                pause = max(BEAT, PAUSE * (time.monotonic() - began))
                timer, self._timer = self._timer, get_hub().loop.timer(pause, ref=False)
                timer.stop()
                timer.close()
                self._timer.start(self._beat, update=True)

    def refresh(self) -> None:
        """Write all figures, if that was not done just before."""
        if time.monotonic() - self._written_at > FRESH:
            self.write()

    def write(self) -> None:
        """Write all figures as they are now."""
        if os.getpid() != self._pid:
            return  # the child of a fork goes on with the loop, but the row is its parent's
        self._written_at = time.monotonic()
        for group in self._groups[:-1]:
            if group.is_over:
                group.add(self._gone, Counter())
                self._groups.remove(group)
        counters, gauges = Counter(self._gone), Counter[str]()
        for group in self._groups:
            group.add(counters, gauges)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = {"cpu": usage.ru_utime + usage.ru_stime}
        for name, names in self._names.items():
            histogram: Histogram = getattr(self, name)
            counters.update(dict(zip(names, histogram.counts, strict=True)))
            seconds[name] = histogram.sum
        counters["hub_holds"] = self._holds + (self._watchdog.holds if self._watchdog is not None else 0)
        self.counters.write(self.slot, counters)
        self.seconds.write(self.slot, seconds)
        serves = any(server.started and not server.draining for server in self.servers)
        gauges["state"] = SERVING if serves else ENDING
        gauges["memory"] = _memory_bytes()
        # All that there may be, so that what is over is 0 again.
        now = {figure_name(name): value for name, value in gauges.items()}
        self.gauges.write(self.slot, dict.fromkeys(self.gauges.of(self.slot), 0) | now)
        self.last_requests.write(time.monotonic())


def _count(found: Counter[str], told: ServerStatistics) -> None:
    """Add what a server counted."""
    found["accepted"] += told.accepted
    found["connected"] += told.connected
    found["bytes_in"] += told.bytes_received
    found["bytes_out"] += told.bytes_sent
    found["errors"] += told.errors
    found["accept_pauses"] += told.accept_pauses
    found["messages"] += told.messages
    found["handshakes"] += told.handshakes
    for reason, count in told.dropped.items():
        found[f"dropped|{reason.lower()}"] += count
    for reason, count in told.handshakes_failed.items():
        found[f"handshakes_failed|{reason}"] += count
    for reason, count in told.limited.items():  # of client_limits
        found[f"refused|{reason}"] += count
    if isinstance(told, HTTPStatistics):
        found["requests"] += told.requests
        for status, count in told.statuses.items():
            found[f"statuses|{status // 100}xx"] += count
        for reason, count in told.refused.items():
            found[f"refused|{reason}"] += count


def _memory_bytes() -> int:
    """Return how much memory of this process is resident."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
