"""One measurement of one server: start it, drive it, return numbers, end it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loadtests import generator
from loadtests.generator import Idle, Mode, Result
from loadtests.process import GENERATOR_CORES, Peer

__all__ = ["Values", "connections", "flood", "latency", "memory", "pingpong", "shortlived"]

#: Numbers by name, ready for JSON.
Values = dict[str, Any]


def drive(name: str, mode: Mode, *serve: str, **options: Any) -> Result:
    """Run the generator against a server of its own; ``serve`` are the server's arguments."""
    with Peer(name, *serve) as peer:
        return generator.run(mode, peer.address, cores=GENERATOR_CORES, pid=peer.pid, **options)


def failures(result: Result) -> Values:
    return {
        "failed": result.failed,
        "failures": {kind: count for kind, count in result.failures.items() if count},
        "last_error": result.last_error,
    }


def outcome(result: Result) -> Values:
    """The fields that every measurement with messages has."""
    return {
        "messages": result.messages,
        "seconds": result.seconds,
        "rate": result.rate,
        "server_us": result.server_us if result.messages else None,
        "server_load": result.server_load,
        "generator_load": result.generator_load,
        **failures(result),
    }


def pingpong(name: str, *, serve: str = "echo", **options: Any) -> Values:
    """Messages and their echo, closed loop."""
    return outcome(drive(name, "pingpong", "--mode", serve, **options))


def flood(name: str, *, connections: int, total: int, recv: int = 64) -> Values:
    """Messages without an answer to a sink that reads ``recv`` bytes at a time, until it has read ``total``.

    A fixed number, not a fixed time, so that what is under way fits into the sockets' buffers: at 19,000
    connections anything else measures a kernel that is short of memory.
    """
    serve = ("--mode", "sink", "--recv", str(recv))
    each = max(1, total // connections)
    return outcome(drive(name, "flood", *serve, connections=connections, messages=each, seconds=0))


def shortlived(name: str, **options: Any) -> Values:
    """Connect, one echo, close; ``connections`` at a time. A message is one whole such exchange."""
    return outcome(drive(name, "shortlived", **options))


def connections(name: str, **options: Any) -> Values:
    """Connections over time while every open one exchanges messages, until all are open or the time is over."""
    result = drive(name, "ramp", **options)
    return {**outcome(result), "opened": result.opened, "open_seconds": result.open_seconds, "ramp": result.ramp}


def latency(name: str, *, rate: float, serve: str = "echo", **options: Any) -> Values:
    """Latency at a fixed rate, from the time each message should have been sent."""
    result = drive(name, "openloop", "--mode", serve, rate=rate, **options)
    return {
        **outcome(result),
        "offered": rate,
        "latency": result.latency and asdict(result.latency),
        "marked_latency": result.marked_latency and asdict(result.marked_latency),
    }


def memory(name: str, *, connections: int, serve: str = "echo") -> Values:
    """Resident memory of the server per connection that has exchanged one message and is silent since."""
    with Peer(name, "--mode", serve) as peer:
        peer.wait_until_idle()
        before = peer.memory()
        with Idle(peer.address, cores=GENERATOR_CORES, connections=connections, messages=1) as idle:
            peer.wait_until_idle()
            after = peer.memory()
    assert idle.result is not None
    unopened = connections - idle.ready
    found = failures(idle.result)
    return {
        "kb": (after.rss - before.rss) / connections / 1024,
        "private_kb": (after.private - before.private) / connections / 1024,
        "rss": after.rss,
        "rss_before": before.rss,
        "open": idle.ready,
        **found,
        "failed": found["failed"] + unopened,
    }
