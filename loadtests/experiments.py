"""The experiments: which cases, which servers, how often.

Each is a plan, that is, data; ``bench`` runs it. Rivals are interleaved: within a round a case is measured on
every server before the next case is, and the order of the servers rotates from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from loadtests import measure
from loadtests.measure import Values
from loadtests.servers import NAMES

__all__ = ["PLANS", "Case", "Plan", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to measure."""

    rounds: int = 5
    #: Of each measurement.
    seconds: float = 1.0
    warmup: float = 0.3
    #: Tiny: to see that it works, not to measure.
    quick: bool = False

    def count(self, connections: int) -> int:
        """Return so many connections, or few if quick."""
        return min(connections, 200) if self.quick else connections


@dataclass(frozen=True, slots=True)
class Case:
    """One point of an experiment."""

    label: str
    #: What tells it from the other cases; goes into every sample.
    parameters: Mapping[str, Any]
    measure: Callable[[str], Values]
    servers: tuple[str, ...]
    #: Seconds that one measurement will take, until it is known.
    estimate: float = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment."""

    name: str
    title: str
    cases: tuple[Case, ...]
    rounds: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Called with the servers before the first round; returns further parameters.
    prepare: Callable[[Sequence[str]], Mapping[str, Any]] | None = None


#: Those of the table of targets; the others leave the streams on uvloop out.
FIGURES_SERVERS = (
    "greensock_upcalls",
    "greensock_blocking",
    "gevent_streamserver",
    "uvloop_protocol",
    "uvloop_streams",
    "epoll",
)
SERVERS = tuple(name for name in NAMES if name != "uvloop_streams")
#: A greenlet, task or coroutine of each waits in a receive; greensock's upcalls are made to by mode ``held``.
BLOCKED = ("greensock_blocking", "gevent_streamserver", "asyncio_streams", "uvloop_streams", "trio_streams")
#: The bare loop has nothing that could block.
SLOW_SERVERS = tuple(name for name in SERVERS if name != "epoll")

COUNTS = (32, 128, 512, 1024, 2048, 8192, 19000)
AT_A_TIME = (1, 64, 512, 2000)
#: Servers that accept a connection or fifty per pass over all that are ready take more than a minute: not waited for.
RAMP_SECONDS = 15.0


def echo_case(connections: int, scale: Scale, servers: tuple[str, ...] = SERVERS) -> Case:
    count = scale.count(connections)
    return Case(
        f"echo {connections}",
        {"mode": "pingpong", "connections": count},
        partial(measure.pingpong, connections=count, seconds=scale.seconds, warmup=scale.warmup),
        servers,
        estimate=scale.seconds + scale.warmup + 0.2,
    )


def flood_case(connections: int, scale: Scale) -> Case:
    count = scale.count(connections)
    total = 20_000 if scale.quick else 500_000
    return Case(
        f"flood {connections}",
        {"mode": "flood", "connections": count, "recv": 64},
        partial(measure.flood, connections=count, total=total),
        SERVERS,
        estimate=1.0,
    )


def shortlived_case(connections: int, scale: Scale, servers: tuple[str, ...] = SERVERS) -> Case:
    count = scale.count(connections)
    return Case(
        f"shortlived {connections}",
        {"mode": "shortlived", "connections": count},
        partial(measure.shortlived, connections=count, seconds=scale.seconds, warmup=scale.warmup),
        servers,
        estimate=scale.seconds + scale.warmup + 0.2,
    )


def memory_case(connections: int, scale: Scale, servers: tuple[str, ...] = SERVERS) -> Case:
    count = scale.count(connections)
    return Case(
        f"idle memory {connections}",
        {"mode": "idle", "connections": count},
        partial(measure.memory, connections=count),
        servers,
    )


def blocked_case(connections: int, scale: Scale, mode: str, servers: tuple[str, ...]) -> Case:
    count = scale.count(connections)
    return Case(
        f"blocked memory {connections}",
        {"mode": "idle", "connections": count},
        partial(measure.memory, connections=count, mode=mode),
        servers,
    )


def figures(scale: Scale) -> Plan:
    """The table of targets."""
    servers = FIGURES_SERVERS
    cases = (
        echo_case(64, scale, servers),
        echo_case(1000, scale, servers),
        shortlived_case(64, scale, servers),
        memory_case(15000, scale, servers),
        echo_case(15000, scale, servers),
    )
    return Plan("figures", "The figures aimed at", cases, scale.rounds, {"size": 64})


def messages(scale: Scale) -> Plan:
    """The seed's second experiment: messages/s over the number of connections, ping-pong and flood."""
    scale = replace(scale, seconds=scale.seconds / 2)
    cases = [echo_case(count, scale) for count in COUNTS] + [flood_case(count, scale) for count in COUNTS]
    return Plan("messages", "Messages over connections", tuple(cases), scale.rounds, {"size": 64})


def shortlived(scale: Scale) -> Plan:
    """Connect, one exchange, close."""
    scale = replace(scale, seconds=scale.seconds / 2)
    cases = tuple(shortlived_case(count, scale) for count in AT_A_TIME)
    return Plan("shortlived", "Connect, exchange, close", cases, scale.rounds, {"size": 64})


def memory(scale: Scale) -> Plan:
    """Resident memory of a connection that is idle, and of one that is blocked in a downcall."""
    cases = (
        memory_case(15000, scale),
        blocked_case(15000, scale, "held", ("greensock_upcalls",)),
        blocked_case(15000, scale, "echo", BLOCKED),
    )
    return Plan("memory", "Memory of a connection", cases, scale.rounds)


def connections(scale: Scale) -> Plan:
    """The seed's first experiment: 19,000 connections opened while the open ones exchange messages."""
    count, pending, seconds = scale.count(19000), 1024, RAMP_SECONDS
    case = Case(
        "ramp 19000",
        {"mode": "ramp", "connections": count},
        partial(measure.connections, connections=count, pending=pending, seconds=seconds),
        SERVERS,
        estimate=4.0,
    )
    return Plan("connections", "Connections over time", (case,), scale.rounds, {"pending": pending, "size": 64})


class Offered:
    """The rate that every server is offered: a share of what the slowest of them sustains."""

    def __init__(self, connections: int, scale: Scale) -> None:
        self._connections = connections
        self._scale = scale
        self.slowest = 0.0

    def calibrate(self, servers: Sequence[str]) -> Values:
        """Measure what each server sustains; return it by server."""
        scale = self._scale
        found = {
            name: measure.pingpong(name, connections=self._connections, seconds=scale.seconds / 2, warmup=scale.warmup)[
                "rate"
            ]
            for name in servers
        }
        self.slowest = min((rate for rate in found.values() if rate), default=1000.0)
        return {"sustained": found, "slowest": self.slowest}

    def measure(self, share: float, name: str, **options: Any) -> Values:
        scale = self._scale
        return measure.latency(
            name,
            connections=self._connections,
            rate=self.slowest * share,
            seconds=scale.seconds,
            warmup=scale.warmup,
            **options,
        )


def latency_case(share: float, offered: Offered, connections: int) -> Case:
    return Case(
        f"latency at {share:.0%}",
        {"mode": "openloop", "connections": connections, "share": share},
        partial(offered.measure, share),
        SERVERS,
    )


def disturbed_case(offered: Offered, connections: int) -> Case:
    """One connection in a hundred has an upcall that blocks 50 ms, and one further connection floods."""
    share = 0.3
    return Case(
        f"disturbed at {share:.0%}",
        {"mode": "openloop", "connections": connections, "share": share, "disturbed": True},
        partial(offered.measure, share, mode="slow", mark_every=100, flooders=1, burst=1000),
        SLOW_SERVERS,
    )


def latency(scale: Scale) -> Plan:
    """Latency at fixed rates, without coordinated omission."""
    count = scale.count(1000)
    offered = Offered(count, scale)
    cases = (
        *(latency_case(share, offered, count) for share in (0.3, 0.6, 0.9)),
        disturbed_case(offered, count),
    )
    return Plan("latency", "Latency", cases, scale.rounds, {"size": 64}, offered.calibrate)


#: By name.
PLANS: dict[str, Callable[[Scale], Plan]] = {
    "figures": figures,
    "connections": connections,
    "messages": messages,
    "shortlived": shortlived,
    "memory": memory,
    "latency": latency,
}
