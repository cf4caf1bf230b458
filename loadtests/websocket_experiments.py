"""The experiment with WebSockets: its plan, as those of ``experiments``."""

from __future__ import annotations

from functools import partial

from loadtests import measure_websocket
from loadtests.plan import Case, Plan, Scale
from loadtests.servers import WEBSOCKETS

__all__ = ["websocket"]

#: Seconds of a measurement, of those of the other experiments: enough for the handshakes to weigh little.
STRETCH = 3.0
#: Seconds that a server takes to start and end.
STARTING = 0.7
#: WebSockets whose memory is measured.
IDLE = 2000


def websocket(scale: Scale) -> Plan:
    """Echoes of 64 characters, and memory at rest."""
    seconds = scale.seconds * STRETCH

    def echo(connections: int) -> Case:
        count = scale.count(connections)
        measured = partial(measure_websocket.echo, connections=count, seconds=seconds)
        parameters = {"mode": "echo", "connections": count}
        return Case(f"echo {connections}", parameters, measured, WEBSOCKETS, seconds + STARTING)

    idle = scale.count(IDLE)
    cases = (
        echo(64),
        echo(1000),
        Case(
            f"idle memory {IDLE}",
            {"mode": "idle", "connections": idle},
            partial(measure_websocket.memory, connections=idle),
            WEBSOCKETS,
            STARTING + 3.0,
            rounds=1,
        ),
    )
    return Plan("websocket", "WebSockets", cases, scale.rounds, {"seconds": seconds, "size": 64})
