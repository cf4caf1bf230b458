"""What many workers on one listener cost: the herd that a connection wakes, and how connections are spread.

    python -m loadtests.herd                      # 1, 2 and 4 workers, 64 and 10,000 connections, three rounds; and nginx
    python -m loadtests.herd --max-accept 1 128   # with so many accepts at a wake-up

Each line: CPU of all workers per request in microseconds, in relation to that of one worker in the same round, and how
many connections each worker had in the middle of the run. wrk drives it, on what cores there are: on a machine with few
of them more workers than cores measure the herd, and not what they could serve.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from greensock.http import HTTPServer, Request, Response
from loadtests.process import Group

__all__ = ["Site"]

#: Seconds of a run, and of the one before it that nobody measures.
SECONDS, WARM_UP = 3, 1
#: Seconds until all workers know of each other.
SETTLE = 2.5
#: Seconds for the workers to begin.
PATIENCE = 20.0
BODY = b"x" * 100


class Site(HTTPServer):
    """Answers 100 bytes."""

    def handle_request(self, request: Request) -> Response:
        return Response(BODY)


def cpu(pids: list[int]) -> float:
    """Return the seconds of CPU that processes took."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def sockets(pid: int) -> int:
    """Return how many sockets a process has."""
    return sum(
        os.readlink(each).startswith("socket:") for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()
    )


def wrk(url: str, connections: int, seconds: int, close: bool) -> subprocess.Popen[str]:
    """Start wrk."""
    fields = ["-H", "Connection: close"] if close else []
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", *fields, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def started(workers: int, max_accept: int) -> Iterator[tuple[str, list[int]]]:
    """Have greensock's workers serve; give the address of a small answer, and their processes."""
    command = [sys.executable, "-m", "greensock", "run", "loadtests.herd:Site", "--bind", "127.0.0.1:0"]
    command += ["--workers", str(workers), "-o", f"max_accept={max_accept}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as master:
        assert master.stderr is not None
        port = 0
        while not port:
            found = re.search(r"Listening at: http://127.0.0.1:(\d+)", master.stderr.readline())
            port = int(found[1]) if found else 0
        pids = children(master.pid, workers)
        time.sleep(SETTLE)  # they look once a second who else is there
        try:
            yield f"http://127.0.0.1:{port}/", pids
        finally:
            master.terminate()


@contextmanager
def nginx_started(workers: int, max_accept: int) -> Iterator[tuple[str, list[int]]]:
    """The same of nginx."""
    everywhere = sorted(os.sched_getaffinity(0))
    with Group("http_nginx", cores=everywhere, environment={**os.environ, "GREENSOCK_WORKERS": str(workers)}) as master:
        yield f"http://{master.address}/small", children(master.pid, workers)


def children(pid: int, count: int) -> list[int]:
    """Return the children of a process once there are so many."""
    place = Path(f"/proc/{pid}/task/{pid}/children")
    due = time.monotonic() + PATIENCE
    while len(pids := [int(each) for each in place.read_text().split()]) < count and time.monotonic() < due:
        time.sleep(0.05)
    return pids


def measured(server: str, workers: int, connections: int, close: bool, max_accept: int) -> tuple[float, list[int]]:
    """Return the CPU per request in microseconds, and how many sockets each worker had."""
    with SERVERS[server](workers, max_accept) as (url, pids):
        wrk(url, min(connections, 64), WARM_UP, close).communicate()
        before, running = cpu(pids), wrk(url, connections, SECONDS, close)
        time.sleep(SECONDS * 0.7)
        spread = sorted(sockets(pid) for pid in pids)
        output, _ = running.communicate()
        used = cpu(pids) - before
    requests = re.search(r"(\d+) requests in", output)
    assert requests is not None, output
    return used / int(requests[1]) * 1e6, spread


SERVERS = {"greensock": started, "nginx": nginx_started}


def main() -> None:
    """Measure, and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="*", choices=SERVERS, default=["greensock", "nginx"])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--connections", type=int, nargs="*", default=[64, 10_000])
    parser.add_argument("--max-accept", type=int, nargs="*", default=[Site.max_accept])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cases = [(count, False) for count in options.connections] + [(min(options.connections), True)]
    for max_accept in options.max_accept:
        for connections, close in cases:
            found: dict[tuple[str, int], list[float]] = {}
            spreads: dict[tuple[str, int], list[int]] = {}
            every = [(server, workers) for server in options.servers for workers in options.workers]
            for _ in range(options.rounds):
                for each in every:
                    spent, spreads[each] = measured(*each, connections, close, max_accept)
                    found.setdefault(each, []).append(spent)
            for server, workers in every:
                alone = found[server, options.workers[0]]
                ratio = median(one / of_one for one, of_one in zip(found[server, workers], alone, strict=True))
                print(
                    f"{connections:>6} connections{', each for one request' if close else ''}, {server}, {workers} "
                    f"workers, max_accept={max_accept}: {median(found[server, workers]):.1f} us, {ratio:.2f} x, "
                    f"sockets {spreads[server, workers]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
