"""The experiments with many processes: ``held``, ``reload`` and ``herd``, each a plan as those of ``experiments``."""

from __future__ import annotations

from functools import partial
from typing import Any

from loadtests import held as held_open
from loadtests import herd as herds
from loadtests import measure_http
from loadtests import reload as reloads
from loadtests.measure import Values
from loadtests.plan import Case, Plan, Scale
from loadtests.servers import GUNICORNS, HERDS, WORKERS

__all__ = ["held", "herd", "reload"]

#: Seconds that a server and what is behind it take to start and end.
STARTING = 3.0
#: Connections that are held, and the processes that have them, on either side: each may open 20,000 descriptors here.
HELD, HOLDERS = 100_000, 6
#: Requests a second meanwhile, and for how many times as long as elsewhere.
RATE, STRETCH = 2000.0, 8.0
#: Connections a second that a server takes, to say how long it will take.
OPENING = 8000
#: Of a server that is reloaded: workers, reloads, and seconds of a window with or without one.
RELOADED, RELOADS, WINDOW = 2, 7, 3.0
#: Requests a second meanwhile: what half a core of a server by itself does at least, and of a proxy.
RELOAD_RATE, PROXY_RATE = 8000.0, 4000.0
#: Those of a tiny run.
QUICK_RATE, QUICK_WINDOW, QUICK_PATTERNS = 300.0, 0.5, ("kept", "many")
#: How many workers there are, and for how many times as long each pattern is measured as elsewhere.
COUNTS, HERD_STRETCH = (1, 2, 4), 3.0
#: Rounds: these take minutes.
FEW_ROUNDS = 3


def held(scale: Scale) -> Plan:
    """100,000 connections at rest, and requests on others."""
    count, processes = scale.count(HELD), 1 if scale.quick else HOLDERS
    seconds = scale.seconds * STRETCH
    call = partial(
        held_open.measured,
        connections=count,
        processes=processes,
        rate=QUICK_RATE if scale.quick else RATE,
        seconds=scale.seconds if scale.quick else seconds,
        warmup=scale.warmup,
    )
    parameters = {"mode": "held", "connections": count, "workers": processes}
    took = STARTING + 2 * (seconds + scale.warmup) + 2 * count / OPENING
    case = Case(f"held {HELD}", parameters, call, WORKERS, took, scale.few(1))
    return Plan("held", "Connections held", (case,), scale.rounds)


def reload(scale: Scale) -> Plan:
    """Latency with and without a reload."""
    window, count = (QUICK_WINDOW, 1) if scale.quick else (WINDOW, RELOADS)

    def measured(name: str) -> Values:
        rate = PROXY_RATE if name.startswith("workers_proxy") else RELOAD_RATE
        return reloads.measured(
            name,
            processes=1 if scale.quick else RELOADED,
            rate=QUICK_RATE if scale.quick else rate,
            reloads=count,
            window=window,
            warmup=scale.warmup if scale.quick else 1.0,
        )

    parameters = {"mode": "reload", "connections": reloads.CONNECTIONS}
    case = Case("reload", parameters, measured, WORKERS, STARTING + 2 * count * window + 1.0, scale.few(1))
    return Plan("reload", "Reloads under load", (case,), scale.rounds, {"window": window})


def herd(scale: Scale) -> Plan:
    """CPU per request by workers, and how connections are spread; and gunicorn with one worker of two kinds."""
    seconds = scale.seconds if scale.quick else scale.seconds * HERD_STRETCH

    def case(count: int) -> Case:
        more: dict[str, Any] = {"settle": 0.0, "patterns": QUICK_PATTERNS} if scale.quick else {}
        call = partial(
            herds.measured,
            processes=count,
            seconds=seconds,
            warmup=scale.warmup,
            most=scale.count(herds.MANY),
            **more,
        )
        took = STARTING + herds.SETTLE + (len(herds.PATTERNS) + herds.LONGER - 1) * (seconds + scale.warmup + 0.1)
        label = f"{count} worker{'s' if count > 1 else ''}"
        parameters = {"mode": "herd", "connections": herds.FEW}
        return Case(label, parameters, call, HERDS, took, scale.few(FEW_ROUNDS))

    asked = partial(measure_http.requests, path="/small", connections=herds.FEW, seconds=seconds)
    gunicorn = Case("gunicorn", {"mode": "wrk", "connections": herds.FEW}, asked, GUNICORNS, STARTING + seconds)
    counts = COUNTS[:1] if scale.quick else COUNTS
    cases = (*map(case, counts), gunicorn)
    return Plan("herd", "Many workers", cases, scale.rounds, {"seconds": seconds})
