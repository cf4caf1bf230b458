"""One measurement of one server of datagrams: start it, drive it with ``udp_load.c``, return numbers, end it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from loadtests.generator import Failed, launched
from loadtests.measure import Values
from loadtests.native import build
from loadtests.process import GENERATOR_CORES, Peer

__all__ = ["SOURCE", "datagrams", "drive"]

SOURCE = "udp_load.c"
#: Seconds that the load may take longer than its measurement.
ENDING = 20.0


def drive(peer: Peer, mode: str, sockets: int, seconds: float, warmup: float, most: int = 0) -> dict[str, Any]:
    """Drive a server and return what the load says of it; with ``most`` it ends after so many datagrams.

    Raises:
        Failed: it could not run, or did not end.
    """
    host, _, port = peer.address.rpartition(":")
    words = [host, port, mode, sockets, seconds, warmup, peer.pid, *([most] if most else [])]
    with launched([str(build(SOURCE)), *map(str, words)], GENERATOR_CORES) as process:
        try:
            output, errors = process.communicate(timeout=seconds + warmup + ENDING)
        except subprocess.TimeoutExpired:
            raise Failed("the load did not end") from None
    if process.returncode:
        raise Failed(errors.strip() or f"the load ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return found


def datagrams(name: str, *, mode: str, sockets: int, seconds: float, warmup: float) -> Values:
    """Datagrams and their echo on so many sockets, or bursts to a sink."""
    with Peer(name, "--mode", mode) as peer:
        found = drive(peer, mode, sockets, seconds, warmup)
    count, took = found["datagrams"], found["seconds"]
    return {
        "messages": count,
        "seconds": took,
        "rate": count / took,
        "server_us": found["server_seconds"] / count * 1e6 if count else None,
        "server_load": found["server_seconds"] / took,
        "generator_load": found["own_seconds"] / took,
        "failed": found["lost"],
        "failures": {"lost": found["lost"]} if found["lost"] else {},
        "last_error": "",
    }
