"""Servers of many processes: started until all of their workers serve, what these hold, who is connected to them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loadtests import transfer
from loadtests.measure_http import origin_name
from loadtests.peers.http_common import SMALL
from loadtests.process import CORES, Group, Memory, StartError, environment, group_of

__all__ = ["connected", "pss", "sockets", "started", "switches", "workers_of"]

#: Seconds for the workers to begin.
PATIENCE = 20.0
#: Seconds between two looks.
LOOK = 0.02
#: States of a connection in /proc/net/tcp: established, and closed by its client but not by the server.
OPEN = ("01", "08")


@contextmanager
def started(name: str, count: int, cores: Sequence[int] = CORES) -> Iterator[tuple[Group, list[int]]]:
    """A server with so many workers, and a server behind it if it is a proxy; yields it, and its workers' processes.

    Raises:
        StartError: it did not start, its answer is wrong, or it has not so many workers.
    """
    told = {**environment(name), "GREENSOCK_WORKERS": str(count)}
    with ExitStack() as stack:
        upstream: list[str] = []
        if name.startswith("workers_proxy"):
            upstream = ["--upstream", stack.enter_context(Group(origin_name(), cores=CORES)).address]
        server = stack.enter_context(Group(name, *upstream, cores=cores, environment=told))
        try:
            transfer.fetch(server.address, "/small", SMALL)
        except (transfer.WrongAnswer, OSError) as error:
            raise StartError(f"{name} did not serve: {error}; {server.errors()}") from error
        due = time.monotonic() + PATIENCE
        while len(pids := workers_of(server)) < count:
            if time.monotonic() > due:
                raise StartError(f"{name}: {count} workers expected, not {len(pids)}: {server.errors()}")
            time.sleep(LOOK)
        server.wait_until_idle()
        yield server, pids


def workers_of(server: Group) -> list[int]:
    """Return the children of the server's first process that are in its group: others only wait for its end."""
    place = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    return [int(pid) for pid in place.read_text().split() if group_of(Path("/proc") / pid) == server.pid]


def pss(pids: Sequence[int]) -> int:
    """Return the memory of processes in bytes, what they share counted once."""
    return sum(Memory(pid).pss for pid in pids)


def sockets(pid: int) -> int:
    """Return how many sockets a process has."""
    found = 0
    for each in os.scandir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(each.path).startswith("socket:")
        except FileNotFoundError:
            pass  # it has just been closed
    return found


def switches(pids: Sequence[int]) -> tuple[int, int]:
    """Return how often processes went to sleep, and how often another one was put in their place."""
    fields = [Path(f"/proc/{pid}/status").read_text().split() for pid in pids]
    kinds = ("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")
    slept, displaced = (sum(int(each[each.index(kind) + 1]) for each in fields) for kind in kinds)
    return slept, displaced


def connected(address: str) -> int:
    """Return how many connections at an IPv4 address and port the server has not closed, those in its backlog too."""
    host, _, port = address.rpartition(":")
    numbers = "".join(f"{int(each):02X}" for each in reversed(host.split(".")))
    local = f"{numbers}:{int(port):04X}"
    peers = set()  # the kernel may tell of one twice, if others come and go meanwhile
    with Path("/proc/net/tcp").open() as lines:
        for line in lines:
            if local in line:
                fields = line.split(maxsplit=4)
                if fields[1] == local and fields[3] in OPEN:
                    peers.add(fields[2])
    return len(peers)
