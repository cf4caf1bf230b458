"""One measurement of one server: start it, drive it, return numbers, end it."""

from __future__ import annotations

from typing import Any

from loadtests import generator
from loadtests.generator import Idle, Result
from loadtests.process import GENERATOR_CORES, Peer

__all__ = ["Values", "connections", "flood", "latency", "memory", "pingpong", "shortlived"]

#: Numbers by name, ready for JSON.
Values = dict[str, Any]


def outcome(result: Result) -> Values:
    """The fields that every measurement has."""
    loaded = result.generator_cpu_ns / 1e9 / result.seconds if result.seconds else 0.0
    return {
        "messages": result.messages,
        "seconds": result.seconds,
        "rate": result.rate,
        "server_us": result.server_us if result.messages else None,
        "server_load": result.server_load,
        "generator_load": loaded,
        "failed": result.failed,
        "failures": {kind: count for kind, count in result.failures.items() if count},
        "last_error": result.last_error,
    }


def pingpong(name: str, *, connections: int, seconds: float, warmup: float, **options: Any) -> Values:
    """Messages and their echo, closed loop."""
    with Peer(name) as peer:
        result = generator.run(
            "pingpong",
            peer.address,
            cores=GENERATOR_CORES,
            connections=connections,
            seconds=seconds,
            warmup=warmup,
            pid=peer.pid,
            **options,
        )
    return outcome(result)


def flood(name: str, *, connections: int, total: int, recv: int = 64) -> Values:
    """Messages without an answer to a sink that reads ``recv`` bytes at a time, until it has read ``total``.

    A fixed number, not a fixed time, so that what is under way fits into the sockets' buffers: at 19,000
    connections anything else measures a kernel that is short of memory.
    """
    with Peer(name, "--mode", "sink", "--recv", str(recv)) as peer:
        result = generator.run(
            "flood",
            peer.address,
            cores=GENERATOR_CORES,
            connections=connections,
            messages=max(1, total // connections),
            seconds=0,
            pid=peer.pid,
        )
    return outcome(result)


def shortlived(name: str, *, connections: int, seconds: float, warmup: float) -> Values:
    """Connect, one echo, close; ``connections`` at a time. A message is one whole such exchange."""
    with Peer(name) as peer:
        result = generator.run(
            "shortlived",
            peer.address,
            cores=GENERATOR_CORES,
            connections=connections,
            seconds=seconds,
            warmup=warmup,
            pid=peer.pid,
        )
    return outcome(result)


def memory(name: str, *, connections: int, mode: str = "echo") -> Values:
    """Resident memory of the server per connection that has exchanged one message and is silent since."""
    with Peer(name, "--mode", mode) as peer:
        peer.wait_until_idle()
        before = peer.memory()
        with Idle(peer.address, cores=GENERATOR_CORES, connections=connections, messages=1) as idle:
            peer.wait_until_idle()
            after = peer.memory()
    result = idle.result
    assert result is not None
    return {
        "kb": (after.rss - before.rss) / connections / 1024,
        "private_kb": (after.private - before.private) / connections / 1024,
        "rss": after.rss,
        "rss_before": before.rss,
        "open": idle.ready,
        "failed": result.failed + connections - idle.ready,
        "failures": {kind: count for kind, count in result.failures.items() if count},
        "last_error": result.last_error,
    }


def connections(name: str, *, connections: int, pending: int, seconds: float) -> Values:
    """Connections over time while every open one exchanges messages, until all are open or the time is over."""
    with Peer(name) as peer:
        result = generator.run(
            "ramp",
            peer.address,
            cores=GENERATOR_CORES,
            connections=connections,
            pending=pending,
            seconds=seconds,
            pid=peer.pid,
        )
    return {**outcome(result), "opened": result.opened, "open_seconds": result.open_seconds, "ramp": result.ramp}


def percentiles(found: generator.Latency | None) -> Values | None:
    if found is None:
        return None
    return {
        "count": found.count,
        "p50_us": found.p50_us,
        "p99_us": found.p99_us,
        "p999_us": found.p999_us,
        "max_us": found.max_us,
        "histogram": found.histogram,
    }


def latency(
    name: str,
    *,
    connections: int,
    rate: float,
    seconds: float,
    warmup: float,
    mode: str = "echo",
    **options: Any,
) -> Values:
    """Latency at a fixed rate, from the time each message should have been sent."""
    with Peer(name, "--mode", mode) as peer:
        result = generator.run(
            "openloop",
            peer.address,
            cores=GENERATOR_CORES,
            connections=connections,
            rate=rate,
            seconds=seconds,
            warmup=warmup,
            pid=peer.pid,
            **options,
        )
    return {
        **outcome(result),
        "offered": rate,
        "latency": percentiles(result.latency),
        "marked_latency": percentiles(result.marked_latency),
    }
