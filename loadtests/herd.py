"""What many workers on one listener cost: CPU of all of them per request, and how connections are spread over them.

A connection wakes all workers, and whoever comes first may take all of a burst: that is the herd, and the split. But a
worker that has less to do also finds less of it ready each time it wakes, and goes to sleep more often: that costs,
too, whatever the server. So it is measured how often they went to sleep, and, besides on all cores together with what
drives them, on one core for all workers, on which they are busy all the time, as one alone is; there also with as many
connections for each worker as one alone has.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtests import workers, wrk
from loadtests.measure import Values
from loadtests.process import CORES, GENERATOR_CORES, SERVER_CORES, Group

__all__ = ["PATTERNS", "Pattern", "measured"]

#: Connections of most patterns, and of that with many.
FEW, MANY = 64, 10_000
#: Seconds until all workers know of each other: they look once a second.
SETTLE = 1.2
#: When it is looked who has how many connections: in this part of a measurement.
MIDDLE = 0.7
#: A measurement with many connections is so many times as long: they take a while to be opened.
LONGER = 2.0


@dataclass(frozen=True, slots=True)
class Pattern:
    """How the workers are asked."""

    #: Connections at a time.
    connections: int = FEW
    #: Whether each worker adds so many.
    for_each: bool = False
    #: Whether each request has a connection of its own.
    close: bool = False
    #: Whether all workers are on one core, and what drives them on the others.
    packed: bool = False


#: By the beginning of the names of what is measured.
PATTERNS = {
    "kept": Pattern(),
    "packed": Pattern(packed=True),
    "packed_each": Pattern(packed=True, for_each=True),
    "close": Pattern(close=True),
    "many": Pattern(MANY),
}


def measured(
    name: str,
    *,
    processes: int,
    seconds: float,
    warmup: float,
    most: int,
    settle: float = SETTLE,
    patterns: Iterable[str] = tuple(PATTERNS),
) -> Values:
    """CPU of all workers per request in each pattern, with ``most`` connections at most."""
    found: Values = {}
    failures: Counter[str] = Counter()
    answered = 0
    with workers.started(name, processes) as (server, pids):
        time.sleep(settle)
        for key in patterns:
            pattern = PATTERNS[key]
            place(server, SERVER_CORES if pattern.packed else CORES)
            cores = GENERATOR_CORES if pattern.packed else CORES
            connections = min(most, pattern.connections * (processes if pattern.for_each else 1))
            url = f"http://{server.address}/small"
            wrk.run(url, cores=cores, connections=min(FEW, connections), seconds=warmup, close=pattern.close)
            cpu, (slept, _) = server.cpu_ns(), workers.switches(pids)
            long = seconds * (LONGER if connections > FEW * processes else 1.0)
            with Split(pids, long * MIDDLE) as split:
                load = wrk.run(url, cores=cores, connections=connections, seconds=long, close=pattern.close)
            cpu, slept = server.cpu_ns() - cpu, workers.switches(pids)[0] - slept
            failures.update({f"{kind}, {key}": count for kind, count in load.errors.items() if count})
            failures.update({f"none, {key}": int(not load.requests)})
            answered += load.requests
            if load.requests:
                found[f"{key}_us"] = cpu / load.requests / 1e3
                found[f"{key}_rate"] = load.requests / load.seconds
                found[f"{key}_sleeps"] = slept / load.requests
                found[f"{key}_split"] = split.counts
    failures = +failures
    return {
        "messages": answered,
        "workers": processes,
        "server_us": found.get("kept_us"),
        **found,
        "failed": failures.total(),
        "failures": dict(failures),
        "last_error": "",
    }


def place(server: Group, cores: Sequence[int]) -> None:
    """Have all processes of a server run on these cores."""
    for pid in server.pids():
        os.sched_setaffinity(pid, cores)


class Split:
    """Looks once, from a thread, how many sockets each worker has: least first."""

    def __init__(self, pids: Sequence[int], after: float) -> None:
        self.counts: list[int] = []
        self._pids = pids
        self._timer = threading.Timer(after, self._look)

    def _look(self) -> None:
        self.counts = sorted(workers.sockets(pid) for pid in self._pids)

    def __enter__(self) -> Split:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.join()
