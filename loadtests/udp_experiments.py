"""The experiment with datagrams: its plan, as those of ``experiments``."""

from __future__ import annotations

from functools import partial

from loadtests import measure_udp
from loadtests.plan import Case, Plan, Scale
from loadtests.servers import UDP

__all__ = ["udp"]

#: Those that are measured with one client, too: most of that is what it costs to be woken.
FEW = ("udp_greensock", "udp_gevent", "udp_uvloop", "udp_epoll")
#: Rounds: fewer than elsewhere, as all experiments are to end within half an hour.
FEW_ROUNDS = 2
#: Seconds that a server takes to start and end.
STARTING = 0.4


def udp(scale: Scale) -> Plan:
    """Echoes of 64 bytes, and bursts of 1,200-byte datagrams to a sink."""

    def measured(label: str, mode: str, sockets: int, servers: tuple[str, ...] = UDP) -> Case:
        seconds, warmup = scale.seconds, scale.warmup
        measure = partial(measure_udp.datagrams, mode=mode, sockets=sockets, seconds=seconds, warmup=warmup)
        return Case(
            label,
            {"mode": mode, "sockets": sockets},
            measure,
            servers,
            seconds + warmup + STARTING,
            scale.few(FEW_ROUNDS),
        )

    cases = (
        measured("udp echo 64", "echo", 64),
        measured("udp sink", "sink", 1),
        measured("udp echo 1", "echo", 1, FEW),
    )
    return Plan("udp", "Datagrams", cases, scale.rounds, {"size": 64, "long": 1200, "burst": 88})
