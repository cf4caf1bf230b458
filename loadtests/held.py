"""Many connections held open at once: memory of each, and what requests on others notice of them.

Clients are processes of ``http_hold.c`` that connect from addresses of their own, 127.0.1.1 and so on, so that there
are ports enough. Each connection makes one request, and rests; meanwhile ``http_load.c`` asks on others at a fixed
rate. In the end each that was held is asked once more, and closed, and it is counted what the server still has.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from loadtests import http_load, workers
from loadtests.generator import Failed, launched
from loadtests.http_load import OpenLoad
from loadtests.measure import Values
from loadtests.native import build
from loadtests.peers.http_common import SMALL
from loadtests.process import CORES

__all__ = ["Holding", "check_descriptors", "measured"]

#: Connections of a client that are being opened, at a time: all of them together fit into the backlog.
PENDING = 128
#: Descriptors that a client needs besides those of its connections, and a worker at least.
SPARE = 64
#: Connections over which requests go on.
ASKING = 64
#: Seconds that all clients together may take to ask on all connections.
PATIENCE = 300.0
#: Seconds until a server has closed what its clients have, and between two looks.
CLOSING, LOOK = 20.0, 0.1


def check_descriptors(connections: int, processes: int, limit: int) -> None:
    """Raise :class:`Failed` if so many processes that may open ``limit`` descriptors can't hold the connections."""
    needed = math.ceil(connections / processes) + SPARE
    if needed > limit:
        raise Failed(
            f"{connections} connections in {processes} processes: {needed} descriptors for each expected, and it may "
            f"open {limit} (ulimit -n, as a hard limit)"
        )


class Holding:
    """Client processes that hold connections; what they started is ended with the block, whatever happens in it."""

    def __init__(self, address: str, connections: int, processes: int, cores: Sequence[int] = CORES) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._shares = [connections // processes + (at < connections % processes) for at in range(processes)]
        self._cores = cores
        #: Requests that were answered: the first of each connection, and the last.
        self.answered = 0
        #: What failed so far, by kind.
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> Holding:
        self._stack = ExitStack()
        self._clients: list[subprocess.Popen[str]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self) -> float:
        """Open all, and return the seconds until each had its answer."""
        began = time.monotonic()
        for at, share in enumerate(self._shares):
            words = [self._host, self._port, f"127.0.{at + 1}.1", "/small", SMALL.decode(), str(share), str(PENDING)]
            client = launched([str(build("http_hold.c")), *words], self._cores)
            self._clients.append(self._stack.enter_context(client))
        for each in self._clients:
            assert each.stdout is not None
            self._note(each, each.stdout.readline())
        return time.monotonic() - began

    def close(self) -> None:
        """Ask on all once more, and close them."""
        self.failures.clear()  # each client's last word has those of the first, too
        for each in self._clients:
            assert each.stdin is not None
            each.stdin.close()
            each.stdin = None
        for each in self._clients:
            try:
                output, _ = each.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise Failed("a client that holds connections did not end") from None
            self._note(each, output)

    def _note(self, client: subprocess.Popen[str], line: str) -> None:
        if not line:
            _, errors = client.communicate()
            raise Failed(errors.strip() or f"a client that holds connections ended with {client.returncode}")
        found = json.loads(line)
        self.answered += found["answered"]
        self.failures.update({kind: count for kind, count in found["failures"].items() if count})


def measured(name: str, *, connections: int, processes: int, rate: float, seconds: float, warmup: float) -> Values:
    """Memory of a connection at rest in so many workers, and the latency of requests with none and with all of them.

    There are as many clients as workers.

    Raises:
        Failed: the system lets a process open too few descriptors; the text says how many it should.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY:
        check_descriptors(connections, processes, limit)
    with workers.started(name, processes) as (server, pids):

        def ask() -> OpenLoad:
            return http_load.run(
                *(server.address, "/small", SMALL),
                cores=CORES,
                connections=ASKING,
                rate=rate,
                seconds=seconds,
                warmup=warmup,
            )

        quiet = ask()
        server.wait_until_idle()
        memory, cpu = workers.pss(pids), server.cpu_ns()
        with Holding(server.address, connections, processes) as holding:
            open_seconds = holding.open()
            spent = server.cpu_ns() - cpu
            server.wait_until_idle()
            held, grown = workers.connected(server.address), workers.pss(pids) - memory
            busy = ask()
            holding.close()
        left = left_open(server.address)
        is_whole = workers.workers_of(server) == pids
    failures: Counter[str] = Counter(holding.failures)
    failures.update({f"{kind}, none held": count for kind, count in quiet.failures.items() if count})
    failures.update({f"{kind}, all held": count for kind, count in busy.failures.items() if count})
    failures.update({"not held": max(0, connections - held), "left open": left, "a worker ended": int(not is_whole)})
    failures = +failures
    return {
        "messages": holding.answered + quiet.answered + busy.answered,
        "opened": held,
        "open_seconds": open_seconds,
        "open_us": spent / connections / 1e3,
        "kb": grown / connections / 1024,
        "offered": rate,
        "quiet_p50_us": quiet.latency["p50_us"],
        "quiet_p99_us": quiet.latency["p99_us"],
        "latency": dict(busy.latency),
        "failed": failures.total(),
        "failures": dict(failures),
        "last_error": "",
    }


def left_open(address: str) -> int:
    """Return how many connections the server has that its clients have closed, when it had time to close them."""
    due = time.monotonic() + CLOSING
    while (left := workers.connected(address)) and time.monotonic() < due:
        time.sleep(LOOK)
    return left
