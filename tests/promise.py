"""The promise of many processes, kept or broken under load: no request is lost while they come and go.

    python tests/promise.py --requests 1000000      # what ``make soak`` does

Clients ask all the time, on connections of their own for each request and on kept ones, some often and some seldom,
while the processes are reloaded, replaced, recycled and killed. A request is *lost* if it was written on a connection
that was open, and no answer came. A kept connection that is found closed before anything is written loses nothing: it
is opened anew. Only of a worker that is killed by SIGKILL may requests be lost, those that it had; they are counted.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import contextlib
import os
import random
import re
import select
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gevent

sys.path.insert(0, str(Path(__file__).resolve().parent))

from arbiters import Arbiter, arbiter

FRESH = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
KEPT = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#: Seconds between two requests of clients that ask often, and of those that ask seldom.
OFTEN, SELDOM = 0.01, 0.8
#: Seconds for which what goes wrong is the doing of a worker that was killed.
AFTERMATH = 1.0
#: Seconds between two looks at what is waited for.
LOOK = 0.05
#: Seconds that an answer may take.
PATIENCE = 20.0


class Lost(Exception):
    """A request that was written has no answer."""


class Load:
    """Clients that ask until they are stopped, and what became of it."""

    def __init__(self, address: tuple[str, int], fresh: int, often: int, seldom: int) -> None:
        self.address = address
        self.answered: Counter[str] = Counter()
        self.lost: list[tuple[float, str, str, int]] = []  # when, on what, how, of which worker
        self.killed: list[tuple[float, int]] = []
        self.closed_at_rest = 0
        self.slowest = 0.0
        self._goes_on = True
        self._jobs = [gevent.spawn(self._ask_fresh) for _ in range(fresh)]
        self._jobs += [gevent.spawn(self._ask_kept, "often", OFTEN) for _ in range(often)]
        self._jobs += [gevent.spawn(self._ask_kept, "seldom", SELDOM) for _ in range(seldom)]

    def stop(self) -> None:
        self._goes_on = False
        gevent.joinall(self._jobs, raise_error=True)

    def kill(self, pid: int) -> None:
        """Kill a worker by SIGKILL."""
        self.killed.append((time.monotonic(), pid))
        os.kill(pid, signal.SIGKILL)

    def broken(self) -> list[tuple[float, str, str, int]]:
        """Return what was lost though no worker was killed that had it."""
        return [each for each in self.lost if not any(self._is_of(each, *killed) for killed in self.killed)]

    @staticmethod
    def _is_of(lost: tuple[float, str, str, int], at: float, pid: int) -> bool:
        when, _, _, worker = lost
        return worker == pid or (not worker and at <= when <= at + AFTERMATH)

    def _connected(self) -> socket.socket:
        sock = socket.create_connection(self.address, timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _ask_fresh(self) -> None:
        while self._goes_on:
            try:
                with self._connected() as sock:
                    self._ask(sock, FRESH)
            except (Lost, OSError) as error:
                self.lost.append((time.monotonic(), "fresh", repr(error), 0))
            else:
                self.answered["fresh"] += 1
            gevent.sleep(random.random() * OFTEN)

    def _ask_kept(self, kind: str, pause: float) -> None:
        while self._goes_on:
            worker = 0
            with contextlib.suppress(StopIteration), self._connected() as sock:
                while self._goes_on:
                    gevent.sleep(random.random() * 2 * pause)
                    if select.select([sock], [], [], 0)[0]:
                        self.closed_at_rest += 1
                        break
                    try:
                        worker, goes_on = self._ask(sock, KEPT)
                    except (Lost, OSError) as error:
                        self.lost.append((time.monotonic(), kind, repr(error), worker))
                        break
                    self.answered[kind] += 1
                    if not goes_on:
                        break

    def _ask(self, sock: socket.socket, request: bytes) -> tuple[int, bool]:
        """Ask once; return which worker answered, and whether the connection goes on."""
        began = time.monotonic()
        sock.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                raise Lost(f"the end after {data!r}")
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise Lost(f"answered {head!r}")
        while len(body) < int(length[1]):
            piece = sock.recv(65536)
            if not piece:
                raise Lost("the end within the body")
            body += piece
        self.slowest = max(self.slowest, time.monotonic() - began)
        found = re.search(rb"X-Pid: (\d+)", head)
        return int(found[1]) if found else 0, b"Connection: close" not in head


def workers_of(master: int) -> list[int]:
    """Return the children of a process."""
    return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


def commanded(kind: str, place: Path) -> tuple[str, list[str] | None]:
    """Return the settings and the command of one of the kinds of masters."""
    if kind == "gunicorn":
        return "workers = 2\nmax_requests = 2000\nmax_requests_jitter = 500\npidfile = 'pid'\ntimeout = 10\n", None
    (place / "words").write_text("hello")
    command = [sys.executable, "-m", "greensock", "run", "served_classes:Site", "--bind", "127.0.0.1:0"]
    return "", [*command, "--workers", "2", "--pid", "pid"]


def replace(master: Arbiter) -> int:
    """Have a new master take over by USR2, and end the old one by SIGTERM; return the new one's number."""
    old = int((master.place / "pid").read_text())
    os.kill(old, signal.SIGUSR2)
    new = master.place / "pid.2"
    wait(lambda: new.exists() and len(workers_of(int(new.read_text()))) >= 2)
    number = int(new.read_text())
    gevent.sleep(AFTERMATH)  # until its workers serve
    os.kill(old, signal.SIGTERM)
    wait(lambda: (master.place / "pid").exists() and int((master.place / "pid").read_text()) == number)
    return number


def wait(condition: Any) -> None:
    due = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < due, "waited in vain"
        gevent.sleep(LOOK)


def play(kind: str, place: Path, requests: int, seconds: float, clients: int = 8) -> Load:
    """Have the processes of one kind come and go until so many requests were made in so many seconds at least."""
    settings, command = commanded(kind, place)
    with arbiter(place, settings, command=command) as master:
        pid = int((place / "pid").read_text())
        load = Load(master.addresses[0], clients, clients, clients)
        began = time.monotonic()
        while True:
            gevent.sleep(AFTERMATH)
            os.kill(pid, signal.SIGHUP)
            gevent.sleep(2 * AFTERMATH)
            load.kill(random.choice(workers_of(pid)))
            gevent.sleep(AFTERMATH)
            pid = replace(master)
            if sum(load.answered.values()) >= requests and time.monotonic() - began >= seconds:
                break
        load.stop()
        # The last master is not the one that was started: it is ended by its own number.
        os.kill(pid, signal.SIGTERM)
        wait(lambda: not os.path.exists(f"/proc/{pid}"))
    return load


def told(kind: str, load: Load) -> str:
    """Return a line on what became of it."""
    answered = ", ".join(f"{count:,} {name}" for name, count in sorted(load.answered.items()))
    excused = len(load.lost) - len(load.broken())
    return (
        f"{kind}: {sum(load.answered.values()):,} answered ({answered}); lost {len(load.broken())}, and {excused} of "
        f"{len(load.killed)} workers that were killed; {load.closed_at_rest} closed at rest; "
        f"the slowest took {load.slowest:.2f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of each kind at least; default: %(default)s")
    parser.add_argument("--clients", type=int, default=24, help="of each of three kinds; default: %(default)s")
    parser.add_argument("--kind", action="append", choices=["gunicorn", "greensock"], help="default: both")
    options = parser.parse_args()
    failed = False
    for kind in options.kind or ["gunicorn", "greensock"]:
        with tempfile.TemporaryDirectory() as place:
            load = play(kind, Path(place), options.requests, 0.0, options.clients)
        print(told(kind, load), flush=True)
        for each in load.broken()[:20]:
            print("  lost:", each)
        failed = failed or bool(load.broken())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
