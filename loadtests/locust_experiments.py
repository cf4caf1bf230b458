"""The experiment with Locust's users for HTTP: its plan, as those of ``experiments``, and its measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import Any

from loadtests import http_load
from loadtests.generator import Failed, launched
from loadtests.measure import Values
from loadtests.measure_http import failures, origin_name
from loadtests.peers.http_common import SMALL
from loadtests.plan import Case, Plan, Scale
from loadtests.process import GENERATOR_CORES, SERVER_CORES, Group, environment
from loadtests.servers import LOCUST

__all__ = ["locust"]

#: Users at the same time.
USERS = 32
#: Requests a second that all of them begin in the case with a rate: what the slowest of them can.
RATE = 500.0
#: Seconds of a measurement, of those of the other experiments.
STRETCH = 2.0
#: Seconds that Locust and what it asks take to start and end.
STARTING = 2.2
#: Seconds that Locust may take.
PATIENCE = 60.0


def asked_by(name: str, address: str, seconds: float, rate: float | None = None) -> dict[str, Any]:
    """Run Locust with users of a kind, on the core where servers are measured."""
    kind = name.removeprefix("locust_")
    command = [sys.executable, "-m", "loadtests.peers.locust_users", kind, address]
    command += ["--users", str(USERS), "--seconds", str(seconds)]
    if rate is not None:
        command += ["--rate", str(rate)]
    with launched(command, SERVER_CORES, environment(name)) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("Locust did not end") from None
    if process.returncode != 0 or not output.strip():
        raise Failed(errors.strip() or f"Locust ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def sample(found: dict[str, Any]) -> Values:
    count = found["asked"]
    return {
        "messages": count,
        "seconds": found["seconds"],
        "rate": count / found["seconds"],
        "server_us": found["cpu"] * 1e6 / count if count else None,
        **failures({"wrong": found["wrong"], "none": int(not count)}),
    }


def closed(name: str, *, seconds: float) -> Values:
    """Users that ask again at once: requests a second of one core, CPU time for each."""
    with Group(origin_name(), cores=GENERATOR_CORES) as origin:
        return sample(asked_by(name, origin.address, seconds))


def at_a_rate(name: str, *, rate: float, seconds: float, warmup: float) -> Values:
    """The same rate by users and by the generator in C: by how much the users' latencies are off."""
    with Group(origin_name(), cores=GENERATOR_CORES) as origin:
        true = http_load.run(
            origin.address,
            "/small",
            SMALL,
            cores=SERVER_CORES,
            connections=USERS,
            rate=rate,
            seconds=seconds,
            warmup=warmup,
        )
        found = asked_by(name, origin.address, seconds, rate)
    told = found["latency"]
    return {
        **sample(found),
        "offered": rate,
        "latency": told,
        "direct_latency": dict(true.latency),
        **{f"{share}_error_us": told[f"{share}_us"] - true.latency[f"{share}_us"] for share in ("p50", "p99") if told},
    }


def locust(scale: Scale) -> Plan:
    """Users without a pause, and at a rate."""
    seconds = scale.seconds * STRETCH
    cases = (
        Case(
            "closed loop",
            {"mode": "closed", "connections": USERS},
            partial(closed, seconds=seconds),
            LOCUST,
            seconds + STARTING,
            rounds=3,
        ),
        Case(
            "at a rate",
            {"mode": "rate", "connections": USERS, "rate": RATE},
            partial(at_a_rate, rate=RATE, seconds=seconds, warmup=scale.warmup),
            LOCUST,
            2 * seconds + STARTING,
            rounds=1,
        ),
    )
    return Plan("locust", "Users for Locust", cases, scale.rounds, {"seconds": seconds, "rate": RATE})
