"""The experiments: which cases, which servers, how often.

Each is a plan, that is, data; ``bench`` runs it. Rivals are interleaved: within a round a case is measured on
every server before the next case is, and the order of the servers rotates from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loadtests import (
    http_experiments,
    locust_experiments,
    measure,
    tls_experiments,
    udp_experiments,
    websocket_experiments,
    workers_experiments,
)
from loadtests.generator import Failed
from loadtests.measure import Values
from loadtests.peers.common import MESSAGE
from loadtests.plan import Case, Plan, Scale
from loadtests.process import StartError
from loadtests.servers import TCP

__all__ = ["APART", "PLANS"]

#: Those of the table of targets; the others leave the streams on uvloop out.
FIGURES_SERVERS = (
    "greensock_upcalls",
    "greensock_blocking",
    "gevent_streamserver",
    "uvloop_protocol",
    "uvloop_streams",
    "epoll",
)
SERVERS = tuple(name for name in TCP if name != "uvloop_streams")
#: A greenlet, task or coroutine of each waits in a receive; greensock's upcalls are made to by mode ``held``.
BLOCKED = ("greensock_blocking", "gevent_streamserver", "asyncio_streams", "uvloop_streams", "trio_streams")
#: The bare loop has nothing that could block.
SLOW_SERVERS = tuple(name for name in SERVERS if name != "epoll")

COUNTS = (32, 128, 512, 1024, 2048, 8192, 19000)
AT_A_TIME = (1, 64, 512, 2000)
#: The descriptors of a process end at 20,000 on many machines.
MOST = 19000
#: Servers that accept a connection or fifty per pass over all that are ready take more than a minute: not waited for.
RAMP_SECONDS = 5.0


def case(
    kind: str,
    connections: int,
    scale: Scale,
    mode: str,
    measured: Callable[..., Values],
    servers: tuple[str, ...] = SERVERS,
    estimate: float = 0.0,
    **options: Any,
) -> Case:
    """Return a case of ``connections``, or of few if quick; ``options`` are those of ``measured``."""
    count = scale.count(connections)
    return Case(
        f"{kind} {connections}",
        {"mode": mode, "connections": count},
        partial(measured, connections=count, **options),
        servers,
        estimate or scale.estimate(connections),
    )


def echo_case(connections: int, scale: Scale, servers: tuple[str, ...] = SERVERS) -> Case:
    return case("echo", connections, scale, "pingpong", measure.pingpong, servers, **scale.timed(connections))


def flood_case(connections: int, scale: Scale) -> Case:
    total = 20_000 if scale.quick else 200_000
    estimate = 0.3 + scale.count(connections) / 11_000
    return case("flood", connections, scale, "flood", measure.flood, estimate=estimate, total=total, recv=64)


def shortlived_case(connections: int, scale: Scale, servers: tuple[str, ...] = SERVERS) -> Case:
    return case("shortlived", connections, scale, "shortlived", measure.shortlived, servers, **scale.timed(connections))


def memory_case(
    kind: str, connections: int, scale: Scale, servers: tuple[str, ...] = SERVERS, mode: str = "echo"
) -> Case:
    return case(f"{kind} memory", connections, scale, "idle", measure.memory, servers, 0.8, serve=mode)


def figures(scale: Scale) -> Plan:
    """The table of targets."""
    servers = FIGURES_SERVERS
    cases = (
        echo_case(64, scale, servers),
        echo_case(1000, scale, servers),
        shortlived_case(64, scale, servers),
        memory_case("idle", 15000, scale, servers),
        echo_case(15000, scale, servers),
    )
    return Plan("figures", "The figures aimed at", cases, scale.rounds, {"size": 64})


def compiled(scale: Scale) -> Plan:
    """greensock's engine compiled and in Python, and its rivals."""
    upcalls = ("greensock_upcalls", "greensock_upcalls_pure", "uvloop_protocol", "epoll")
    all_of_them = (*upcalls, "greensock_blocking", "greensock_blocking_pure", "gevent_streamserver")
    cases = (
        *(echo_case(count, scale, all_of_them) for count in scale.counts((64, 1000, 15000))),
        *(shortlived_case(count, scale, upcalls) for count in (64, 1)),
        replace(flood_case(64, scale), servers=upcalls),
        memory_case("idle", 15000, scale, upcalls[:3]),
        *http_experiments.small_cases(
            scale,
            (
                *("http_server", "http_server_pure", "wsgi_server", "wsgi_server_pure"),
                *("http_uvicorn", "http_nginx", "http_pywsgi"),
            ),
            ("proxy_greensock", "proxy_greensock_pure", "proxy_nginx", "proxy_aiohttp"),
        ),
    )
    rounds = scale.rounds if scale.quick else max(7, scale.rounds)
    return Plan("compiled", "The engine compiled, and in Python", cases, rounds, {"size": 64})


def flat(scale: Scale) -> Plan:
    """What else goes a flat path: framers, WSGI, the client, the proxy with a log and with an upcall."""
    framed = ("greensock_upcalls", "uvloop_protocol", "greensock_upcalls_pure")
    # Sixteen messages at once: the generator sends them as one of its own, and waits for all of the echo.
    options = {"serve": "framed", "size": 16 * MESSAGE, **scale.timed(64)}
    cases = (
        replace(case("framed", 64, scale, "pingpong", measure.pingpong, framed, **options), label="framed 16 x 64"),
        *http_experiments.flat_cases(scale),
    )
    rounds = scale.rounds if scale.quick else max(7, scale.rounds)
    return Plan("flat", "Flat paths", cases, rounds, {"size": MESSAGE})


def messages(scale: Scale) -> Plan:
    """The seed's second experiment: messages/s over the number of connections, ping-pong and flood."""
    scale = replace(scale, seconds=scale.seconds / 2)
    counts = scale.counts(COUNTS)
    cases = [echo_case(count, scale) for count in counts] + [flood_case(count, scale) for count in counts]
    return Plan("messages", "Messages over connections", tuple(cases), scale.rounds, {"size": 64, "recv": 64})


def shortlived(scale: Scale) -> Plan:
    """Connect, one exchange, close."""
    scale = replace(scale, seconds=scale.seconds / 2)
    cases = tuple(shortlived_case(count, scale) for count in scale.counts(AT_A_TIME))
    return Plan("shortlived", "Connect, exchange, close", cases, scale.rounds, {"size": 64})


def memory(scale: Scale) -> Plan:
    """Resident memory of a connection that is idle, and of one that is blocked in a downcall."""
    cases = (
        memory_case("idle", 10000, scale, TCP),
        memory_case("blocked", 10000, scale, ("greensock_upcalls",), "held"),
        memory_case("blocked", 10000, scale, BLOCKED),
    )
    return Plan("memory", "Memory of a connection", cases, scale.rounds)


def connections(scale: Scale) -> Plan:
    """The seed's first experiment: 19,000 connections opened while the open ones exchange messages."""
    options = {"pending": 1024, "seconds": RAMP_SECONDS}
    ramp = case("ramp", MOST, scale, "ramp", measure.connections, SERVERS, 4.5, **options)
    return Plan("connections", "Connections over time", (ramp,), scale.rounds, {**options, "size": 64})


class Offered:
    """The rate that every server is offered: a share of what the slowest of them sustains."""

    def __init__(self, connections: int, scale: Scale) -> None:
        self._connections = connections
        self._scale = scale
        self.slowest = 0.0

    def calibrate(self, servers: Sequence[str]) -> Values:
        """Measure what each server sustains; return it by server."""
        found = {name: self._sustained(name) for name in servers}
        self.slowest = min((rate for rate in found.values() if rate), default=1000.0)
        return {"sustained": found, "slowest": self.slowest}

    def _sustained(self, name: str) -> float | None:
        try:
            rate: float = measure.pingpong(name, connections=self._connections, **self._scale.timed(self._connections))[
                "rate"
            ]
        except (StartError, Failed):
            return None  # it is reported when its turn comes
        return rate

    def measure(self, name: str, *, share: float, **options: Any) -> Values:
        return measure.latency(name, rate=self.slowest * share, **self._scale.timed(self._connections), **options)


def latency_case(kind: str, share: float, offered: Offered, scale: Scale, **options: Any) -> Case:
    made = case(kind, 1000, scale, "openloop", offered.measure, share=share, **options)
    return replace(made, label=f"{kind} at {share:.0%}", parameters={**made.parameters, "share": share})


def disturbed_case(offered: Offered, scale: Scale) -> Case:
    """One connection in a hundred has an upcall that blocks 50 ms, and one further connection floods.

    At the lowest rate only: at the others the connections that block get more than they can answer.
    """
    options = {"serve": "slow", "mark_every": 100, "flooders": 1, "burst": 1000}
    return replace(latency_case("disturbed", 0.3, offered, scale, **options), servers=SLOW_SERVERS)


def latency(scale: Scale) -> Plan:
    """Latency at fixed rates, without coordinated omission."""
    offered = Offered(scale.count(1000), scale)
    cases = (
        *(latency_case("latency", share, offered, scale) for share in (0.3, 0.6, 0.9)),
        disturbed_case(offered, scale),
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
    "http": http_experiments.http,
    "proxy": http_experiments.proxy,
    "udp": udp_experiments.udp,
    "locust": locust_experiments.locust,
    "tls": tls_experiments.tls,
}
#: Those that ``all`` leaves out, and that no chart is drawn of: much of them is in the others, too.
APART: dict[str, Callable[[Scale], Plan]] = {
    "compiled": compiled,
    "flat": flat,
    "websocket": websocket_experiments.websocket,
    "handshakes": tls_experiments.handshakes,
    "held": workers_experiments.held,
    "reload": workers_experiments.reload,
    "herd": workers_experiments.herd,
}
