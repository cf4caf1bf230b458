"""``python -m loadtests.load [lines] [http]``: Locust's users for a minute each; the job of ``make load``.

``lines`` are users of the ``lines`` example, ``http`` those of the reverse proxy, with an origin behind it. Starts the
servers on free ports of the loopback, runs Locust without its web interface, writes its HTML and CSV reports, and ends
the servers. Exit status 1 if a single request failed, none was made, or a server did not end well; 2 if the run could
not be made.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests import results
from loadtests.arguments import at_least
from loadtests.measure_http import proxy
from loadtests.process import GENERATOR_CORES, ROOT, Peer, StartError
from loadtests.servers import PROXIES, missing

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
#: By what is run.
LOCUSTFILES = {"lines": HERE / "locustfile_tcp.py", "http": HERE / "locustfile_http.py"}
#: Seconds that users have to finish what they are at.
STOP = 10


def command(name: str, address: str, options: argparse.Namespace) -> list[str]:
    """Return Locust's command line."""
    report = options.output / name / "report"
    settings: dict[str, object] = {
        "--locustfile": LOCUSTFILES[name],
        "--host": f"http://{address}" if name == "http" else address,
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
    # A user all of whose tasks are left out by their tags cannot be made, so the others are named.
    users = ["ProxyUser"] if name == "http" and options.exclude == "websocket" else []
    return [sys.executable, "-m", "locust", "--headless", "--only-summary", *words, *users]


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


def problems(status: int, servers: Sequence[Peer], requests: int, failures: int) -> list[str]:
    """Return what went wrong: nothing, if all is well. The servers are ended, the first one first."""
    found = {
        f"{failures:,} of {requests:,} requests failed": failures > 0,
        "not one request was made": requests == 0,
        f"Locust ended with {status}": status not in (0, 1) or (status == 1 and not failures),
    }
    for server in servers:
        alive = server.returncode is None
        server.stop()
        found |= {
            f"{server.name} ended before it was told to, with {server.returncode}": not alive,
            f"{server.name} ended with {server.returncode}": alive
            and server.returncode not in GOOD.get(server.name, (0,)),
            f"{server.name} complained: {server.errors()}": bool(server.errors()),
        }
    return [text for text, wrong in found.items() if wrong]


@contextmanager
def lines(options: argparse.Namespace) -> Iterator[list[Peer]]:
    """Start the server of lines."""
    with Peer("the server", command=[sys.executable, "-m", options.server]) as server:
        yield [server]


@contextmanager
def http(options: argparse.Namespace) -> Iterator[list[Peer]]:
    """Start the proxy, which the users talk to, and what is behind it."""
    module = missing(options.proxy)
    if module:
        raise StartError(f"{options.proxy} can't be started: there is no {module}")
    command = [sys.executable, "-m", "loadtests.load_origin"]
    with (
        Peer("the origin", command=command, cores=GENERATOR_CORES) as origin,
        proxy(options.proxy, origin.address) as server,
    ):
        server.name = "the proxy" if options.proxy == "proxy_greensock" else options.proxy
        yield [server, origin]


#: How servers that are not ours may end: HAProxy does not catch SIGTERM.
GOOD = {"proxy_haproxy": (0, -signal.SIGTERM)}
#: The servers of each run: the one that users talk to is the first.
STARTED = {"lines": lines, "http": http}


def run(name: str, options: argparse.Namespace) -> bool:
    """Return whether all went well."""
    output = options.output / name
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob("report*"):
        stale.unlink()
    with STARTED[name](options) as servers:
        address = servers[0].address
        print(f"{name}: {options.users} users for {options.seconds} s at {address}", flush=True)
        status = subprocess.run(command(name, address, options), cwd=ROOT).returncode
        requests, failures = counted(output)
        wrong = problems(status, servers, requests, failures)
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{requests:,} requests, {failures:,} failed; the reports are in {output}", flush=True)
    return not wrong


def main(given: Sequence[str] | None = None) -> int:
    """Run it and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__)
    number = at_least(1, int)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(STARTED)}; default: all")
    parser.add_argument("--seconds", type=number, default=60, help="default: %(default)s")
    parser.add_argument("--users", type=number, default=100, help="default: %(default)s")
    parser.add_argument("--processes", type=number, default=1, help="of Locust; default: %(default)s")
    parser.add_argument("--server", default="examples.lines", metavar="MODULE", help="of lines; default: %(default)s")
    parser.add_argument("--proxy", default="proxy_greensock", choices=PROXIES, help="of http; default: %(default)s")
    parser.add_argument("--exclude", choices=["websocket"], help="users to leave out, of http")
    parser.add_argument("--output", type=Path, default=results.RESULTS / "load", metavar="DIRECTORY")
    options = parser.parse_args(given)
    unknown = set(options.names) - set(STARTED)
    if unknown:
        parser.error(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(STARTED)}")
    if importlib.util.find_spec("locust") is None:
        print("Locust is not installed: pip install -e '.[load]'")
        return 2
    try:
        right = [run(name, options) for name in options.names or STARTED]
    except StartError as error:
        print(error)
        return 2
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
