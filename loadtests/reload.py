"""A server that is reloaded while requests come at a fixed rate: what they notice, and how many are lost."""

from __future__ import annotations

import os
import signal
import time
from statistics import median

from loadtests import http_load, workers
from loadtests.measure import Values
from loadtests.measure_http import failures
from loadtests.peers.http_common import SMALL
from loadtests.process import CORES, Group

__all__ = ["measured"]

#: Connections on which the requests go.
CONNECTIONS = 64
#: Seconds from the beginning of a window to its reload, and between two looks whether the old workers are gone.
LATER, LOOK = 0.05, 0.05


def measured(name: str, *, processes: int, rate: float, reloads: int, window: float, warmup: float) -> Values:
    """Latency in windows of so many seconds, of which every second one has a reload, by SIGHUP.

    A request is lost if it was written, and the connection closed before there was an answer. A connection that is
    closed at rest, or told to be, is opened anew.
    """
    took: list[float] = []
    with workers.started(name, processes) as (server, _):

        def reload() -> None:
            begun = time.monotonic() + warmup
            for number in range(reloads):
                at = begun + (2 * number + 1) * window
                time.sleep(max(0.0, at + LATER - time.monotonic()))
                took.append(handed_over(server, processes, at + window))

        load = http_load.run(
            *(server.address, "/small", SMALL),
            cores=CORES,
            connections=CONNECTIONS,
            rate=rate,
            seconds=2 * reloads * window,
            warmup=warmup,
            slice_seconds=window,
            meanwhile=reload,
        )
    quiet, reloaded = ([each["p99_us"] for each in load.slices[first::2]] for first in (0, 1))
    lost = load.failures["closed"]
    return {
        "messages": load.answered,
        "offered": rate,
        "reloads": len(took),
        "handed_over": sum(each < window for each in took),
        "handover_seconds": median(took),
        "opened_anew": load.opened_anew,
        "lost": lost,
        "quiet_p99_us": median(quiet) if quiet else None,
        "reloaded_p99_us": median(reloaded) if reloaded else None,
        "worst_p99_us": max(reloaded, default=None),
        "added_p99_ms": (median(reloaded) - median(quiet)) / 1e3 if quiet and reloaded else None,
        "latency": dict(load.latency),
        "slices": [dict(each) for each in load.slices],
        **failures({kind: count for kind, count in load.failures.items() if kind != "closed"}),
    }


def handed_over(server: Group, processes: int, due: float) -> float:
    """Reload, and return the seconds until other workers had taken the places of all; to the end of the window at most.

    nginx tells its old workers at once, greensock's when the new ones serve.
    """
    old, began = set(workers.workers_of(server)), time.monotonic()
    os.kill(server.pid, signal.SIGHUP)
    while time.monotonic() < due:
        time.sleep(LOOK)
        there = set(workers.workers_of(server))
        if len(there) >= processes and not there & old:
            return time.monotonic() - began
    return due - began + LATER
