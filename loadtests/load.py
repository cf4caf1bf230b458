"""``python -m loadtests.load``: Locust's users against the ``lines`` example for a minute; the job of ``make load``.

Starts the server on a free port of the loopback, runs Locust without its web interface, writes its HTML and CSV
reports, and ends the server. Exit status 1 if a single request failed, none was made, or the server did not end well;
2 if the run could not be made.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests import results
from loadtests.arguments import at_least
from loadtests.process import ROOT, Peer, StartError

__all__ = ["main"]

LOCUSTFILE = Path(__file__).resolve().parent / "locustfile_tcp.py"
#: Seconds that users have to finish what they are at.
STOP = 10


def command(address: str, options: argparse.Namespace) -> list[str]:
    """Return Locust's command line."""
    report = options.output / "report"
    settings: dict[str, object] = {
        "--locustfile": LOCUSTFILE,
        "--host": address,
        "--users": options.users,
        "--spawn-rate": options.users / 2,
        "--run-time": f"{options.seconds}s",
        "--stop-timeout": STOP,
        "--html": f"{report}.html",
        "--csv": report,
        "--exit-code-on-error": 1,
    }
    if options.processes > 1:
        port = free_port()  # Locust's own choice, 5557 on every address, would keep a second run out
        settings |= {"--processes": options.processes, "--master-bind-host": "127.0.0.1"}
        settings |= {"--master-bind-port": port, "--master-port": port}
    words = [str(word) for setting in settings.items() for word in setting]
    return [sys.executable, "-m", "locust", "--headless", "--only-summary", *words]


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def counted(output: Path) -> tuple[int, int]:
    """Return how many requests the report has, and how many of them failed."""
    with (output / "report_stats.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["Name"] == "Aggregated":
                return int(row["Request Count"]), int(row["Failure Count"])
    return 0, 0


def problems(status: int, server: Peer, requests: int, failures: int) -> list[str]:
    """Return what went wrong: nothing, if all is well."""
    alive = server.returncode is None
    server.stop()
    found = {
        f"{failures:,} of {requests:,} requests failed": failures > 0,
        "not one request was made": requests == 0,
        f"Locust ended with {status}": status not in (0, 1) or (status == 1 and not failures),
        f"the server ended before it was told to, with {server.returncode}": not alive,
        f"the server ended with {server.returncode}": alive and server.returncode != 0,
        f"the server complained: {server.errors()}": bool(server.errors()),
    }
    return [text for text, wrong in found.items() if wrong]


def run(options: argparse.Namespace) -> int:
    options.output.mkdir(parents=True, exist_ok=True)
    for stale in options.output.glob("report*"):
        stale.unlink()
    with Peer("the server", command=[sys.executable, "-m", options.server]) as server:
        print(f"{options.users} users for {options.seconds} s at {options.server} on {server.address}", flush=True)
        status = subprocess.run(command(server.address, options), cwd=ROOT).returncode
        requests, failures = counted(options.output)
        wrong = problems(status, server, requests, failures)
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{requests:,} requests, {failures:,} failed; the reports are in {options.output}")
    return 1 if wrong else 0


def main(given: Sequence[str] | None = None) -> int:
    """Run it and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__)
    number = at_least(1, int)
    parser.add_argument("--seconds", type=number, default=60, help="default: %(default)s")
    parser.add_argument("--users", type=number, default=100, help="default: %(default)s")
    parser.add_argument("--processes", type=number, default=1, help="of Locust; default: %(default)s")
    parser.add_argument("--server", default="examples.lines", metavar="MODULE", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=results.RESULTS / "load", metavar="DIRECTORY")
    options = parser.parse_args(given)
    if importlib.util.find_spec("locust") is None:
        print("Locust is not installed: pip install -e '.[load]'")
        return 2
    try:
        return run(options)
    except StartError as error:
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
