"""What many workers on one listener cost: the herd that a connection wakes, and how connections are spread.

    python -m loadtests.herd                      # 1, 2 and 4 workers, 64 and 10,000 connections, three rounds
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
from pathlib import Path
from statistics import median

from greensock.http import HTTPServer, Request, Response

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


def wrk(port: int, connections: int, seconds: int, close: bool) -> subprocess.Popen[str]:
    """Start wrk."""
    fields = ["-H", "Connection: close"] if close else []
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", *fields, f"http://127.0.0.1:{port}/"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measured(workers: int, connections: int, close: bool, max_accept: int) -> tuple[float, list[int]]:
    """Return the CPU per request in microseconds, and how many sockets each worker had."""
    command = [sys.executable, "-m", "greensock", "run", "loadtests.herd:Site", "--bind", "127.0.0.1:0"]
    command += ["--workers", str(workers), "-o", f"max_accept={max_accept}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as master:
        assert master.stderr is not None
        port = 0
        while not port:
            found = re.search(r"Listening at: http://127.0.0.1:(\d+)", master.stderr.readline())
            port = int(found[1]) if found else 0
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
        due = time.monotonic() + PATIENCE
        while len(pids := [int(pid) for pid in children.read_text().split()]) < workers and time.monotonic() < due:
            time.sleep(0.05)
        time.sleep(SETTLE)  # they look once a second who else is there
        wrk(port, min(connections, 64), WARM_UP, close).communicate()
        before, running = cpu(pids), wrk(port, connections, SECONDS, close)
        time.sleep(SECONDS * 0.7)
        spread = sorted(sockets(pid) for pid in pids)
        output, _ = running.communicate()
        used = cpu(pids) - before
        master.terminate()
    requests = re.search(r"(\d+) requests in", output)
    assert requests is not None, output
    return used / int(requests[1]) * 1e6, spread


def main() -> None:
    """Measure, and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--connections", type=int, nargs="*", default=[64, 10_000])
    parser.add_argument("--max-accept", type=int, nargs="*", default=[Site.max_accept])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cases = [(count, False) for count in options.connections] + [(min(options.connections), True)]
    for max_accept in options.max_accept:
        for connections, close in cases:
            found: dict[int, list[float]] = {workers: [] for workers in options.workers}
            spreads: dict[int, list[int]] = {}
            for _ in range(options.rounds):
                for workers in options.workers:
                    spent, spreads[workers] = measured(workers, connections, close, max_accept)
                    found[workers].append(spent)
            for workers in options.workers:
                ratio = median(
                    one / alone for one, alone in zip(found[workers], found[options.workers[0]], strict=True)
                )
                print(
                    f"{connections:>6} connections{', each for one request' if close else ''}, {workers} workers, "
                    f"max_accept={max_accept}: {median(found[workers]):.1f} us, {ratio:.2f} x, "
                    f"sockets {spreads[workers]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
