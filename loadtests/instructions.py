"""``python -m loadtests.instructions SERVER...``: user-space instructions of one operation, counted by callgrind.

The server runs in valgrind, twice, with few operations and with many; the difference is what the operations take,
without the start. Exact where times are noise, and it says nothing of the kernel: for where a server spends its own
time, before and after a change (PROFILE.md). A server's name may end in ``_pure``: greensock without its compiled
engine. Needs valgrind.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from loadtests import generator, measure_udp
from loadtests.process import GENERATOR_CORES, Peer, environment, program_of

__all__ = ["count", "main"]

#: How each kind of operation is driven: the generator's mode, the server's, and the size of a read.
KINDS: dict[str, tuple[generator.Mode, tuple[str, ...]]] = {
    "echo": ("pingpong", ("--mode", "echo")),
    "flood": ("flood", ("--mode", "sink", "--recv", "64")),
    "shortlived": ("shortlived", ("--mode", "echo")),
}
#: The same of datagrams: the mode of both, and on how many sockets.
DATAGRAMS = {"udp-echo": ("echo", 16), "udp-sink": ("sink", 1)}
COLLECTED = re.compile(r"Collected : (\d+)")
#: Seconds that a server may take to start in valgrind.
STARTING = 120.0


def collected(name: str, kind: str, connections: int, messages: int, output: str) -> int:
    """Return the instructions of a server from start to end."""
    serve = ("--mode", DATAGRAMS[kind][0]) if kind in DATAGRAMS else KINDS[kind][1]
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", *program_of(name)]
    with Peer(name, *serve, command=command, timeout=STARTING, environment=environment(name)) as peer:
        if kind in DATAGRAMS:
            mode, sockets = DATAGRAMS[kind]
            measure_udp.drive(peer, mode, sockets, STARTING, 0.0, connections * messages)
        else:
            options: dict[str, Any] = {"seconds": 0, "messages": messages, "connections": connections}
            generator.run(KINDS[kind][0], peer.address, cores=GENERATOR_CORES, timeout=STARTING, **options)
        peer.stop(STARTING)
        found = COLLECTED.search(peer.errors())
    if found is None:
        raise RuntimeError(f"{name}: callgrind said nothing of what it collected")
    return int(found[1])


def count(name: str, kind: str, connections: int = 64, each: int = 200, output: str = "/dev/null") -> float:
    """Return the instructions of one operation."""
    few, many = 20, 20 + each
    more = collected(name, kind, connections, many, output) - collected(name, kind, connections, few, "/dev/null")
    return more / (connections * each)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.instructions", description=__doc__)
    parser.add_argument("servers", nargs="+", metavar="SERVER")
    parser.add_argument("--kind", choices=[*KINDS, *DATAGRAMS], default="echo")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--each", type=int, default=200, help="operations of each connection; default: %(default)s")
    parser.add_argument("--output", default="/dev/null", help="where callgrind writes its profile; %(default)s")
    options = parser.parse_args()
    for name in options.servers:
        instructions = count(name, options.kind, options.connections, options.each, options.output)
        print(f"{name:24} {options.kind:10} {instructions:10,.0f} instructions", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
