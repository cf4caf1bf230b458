"""``python -m loadtests.bench NAME...``: run experiments, print their tables, write ``results/NAME.json``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from loadtests import results, tables
from loadtests.arguments import at_least
from loadtests.experiments import APART, PLANS
from loadtests.generator import Failed
from loadtests.machine import Bystanders, commit, machine, versions
from loadtests.native import BuildError, build
from loadtests.plan import Case, Plan, Scale
from loadtests.process import GENERATOR_CORES, SERVER_CORES, StartError
from loadtests.progress import Display
from loadtests.results import Sample
from loadtests.servers import NAMES, SERVERS, missing

__all__ = ["main"]

#: A measured second is as short as this, and a round as single, with ``--quick``.
QUICK = Scale(rounds=1, seconds=0.1, warmup=0.05, quick=True)

#: Cores that other processes may use before the report says so.
QUIET = 0.1

#: Tables that an experiment ends with, by its name.
TARGETS = {
    "figures": ("targets",),
    "http": ("http-targets",),
    "proxy": ("proxy-targets",),
    "compiled": ("compiled-targets",),
    "flat": ("flat-targets",),
    "websocket": ("websocket-targets",),
    "udp": ("udp-targets",),
    "locust": ("locust-targets",),
    "tls": ("tls-targets",),
    "handshakes": ("handshakes-targets",),
    "held": ("held-targets",),
    "reload": ("reload-targets",),
    "herd": ("herd", "herd-sleeps", "herd-split", "herd-targets"),
}

#: The programs that drive servers.
SOURCES = ("generator.c", "http_load.c", "http_hold.c", "ws_load.c", "udp_load.c")

Step = tuple[int, Case, str]


def rotated(servers: Sequence[str], by: int) -> list[str]:
    by %= len(servers) or 1
    return [*servers[by:], *servers[:by]]


def steps(plan: Plan, servers: Sequence[str]) -> Iterator[Step]:
    for number in range(plan.rounds):
        for case in plan.cases:
            if case.rounds is not None and number >= case.rounds:
                continue
            for server in rotated([name for name in case.servers if name in servers], number):
                yield number, case, server


def estimated(steps: Iterable[Step]) -> float:
    return sum(case.estimate for _, case, _ in steps)


class Run:
    """One experiment under way: its steps, its samples, and how long each kind of step takes."""

    def __init__(self, plan: Plan, servers: Sequence[str], display: Display, later: float) -> None:
        self._plan = plan
        self._servers = servers
        self._display = display
        #: Seconds that the experiments after this one will take.
        self._later = later
        self._took: dict[tuple[str, str], float] = {}
        self._broken: dict[str, str] = {}
        self.samples: list[dict[str, Any]] = []

    def _left(self, ahead: Iterable[Step]) -> float:
        """Seconds to the end: what a step took before, or what was estimated as long as none of its kind was taken."""
        return self._later + sum(self._took.get((case.label, server), case.estimate) for _, case, server in ahead)

    def run(self) -> list[dict[str, Any]]:
        """Take every step; a server that does not start is left out from then on."""
        ahead = list(steps(self._plan, self._servers))
        for at, (number, case, server) in enumerate(ahead):
            if server in self._broken:
                continue
            rounds = (number + 1, self._plan.rounds)
            self._display.step(self._plan.name, rounds, case.label, server, self._left(ahead[at:]))
            self._take(number, case, server)
        return self.samples

    def _take(self, number: int, case: Case, server: str) -> None:
        began, bystanders = time.monotonic(), Bystanders()
        head = {"round": number, "case": case.label, "server": server, **case.parameters}
        try:
            sample = {**head, **case.measure(server)}
        except (StartError, Failed) as error:
            self._broken[server] = str(error)
            self._display.say(f"{server}: left out: {str(error).strip().splitlines()[-1]}")
            sample = {**head, "error": str(error), "failed": 1}
        if sample["failed"] and "error" not in sample:
            self._display.say(f"{server}, {case.label}: {sample['failed']} failed {sample['failures']}")
        took = self._took[case.label, server] = time.monotonic() - began
        self.samples.append({**sample, "took_seconds": round(took, 2), "others": round(bystanders.cores(), 3)})


def installed(names: Iterable[str], display: Display) -> list[str]:
    """Return the servers that can run here; say which can't."""
    able = []
    for name in names:
        module = missing(name)
        if module:
            display.say(f"{name}: skipped, {module} is not installed")
        else:
            able.append(name)
    return able


def of_plans(plans: Sequence[Plan], servers: Iterable[str]) -> list[str]:
    return [name for name in servers if any(taking_part(plan, [name]) for plan in plans)]


def taking_part(plan: Plan, servers: Iterable[str]) -> list[str]:
    return [name for name in servers if any(name in case.servers for case in plan.cases)]


def needed(servers: Iterable[str]) -> list[str]:
    """Return the modules and programs whose versions belong to the results of these servers."""
    return list(dict.fromkeys(need for name in servers for need in (*SERVERS[name].needs, *SERVERS[name].programs)))


def document(
    plan: Plan, scale: Scale, servers: Sequence[str], samples: Sequence[Sample], seconds: float
) -> dict[str, Any]:
    """Return what goes into the results file."""
    skipped = {name: missing(name) for name in taking_part(plan, NAMES)}
    return {
        "experiment": plan.name,
        "title": plan.title,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took_seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(needed(taking_part(plan, servers))),
        "commit": commit(),
        "cores": {"server": list(SERVER_CORES), "generator": list(GENERATOR_CORES)},
        "scale": asdict(scale),
        "parameters": dict(plan.parameters),
        "skipped": {name: module for name, module in skipped.items() if module},
        "samples": samples,
    }


def warn_of_bystanders(samples: Sequence[Sample]) -> None:
    others = median(sample["others"] for sample in samples)
    if others > QUIET:
        print(f"\nThe machine was not ours alone: others used {others:.2f} cores (median). Rates and latencies suffer.")


def report(content: Mapping[str, Any]) -> None:
    samples = content["samples"]
    print(f"\n## {content['title']}\n\n{tables.samples_table(samples)}")
    for table in TARGETS.get(content["experiment"], ()):
        print(f"\n{tables.TABLES[table].make(content)}")
    if samples:
        warn_of_bystanders(samples)


def choose(plan: Plan, cases: str) -> Plan:
    """Return the plan with those of its cases whose label contains the text."""
    return replace(plan, cases=tuple(case for case in plan.cases if cases in case.label))


def experiment(plan: Plan, scale: Scale, servers: Sequence[str], output: Path, display: Display, later: float) -> int:
    """Run one experiment to its file and return how many exchanges failed; ``later`` seconds of others follow."""
    began = time.monotonic()
    if plan.prepare:
        display.say(f"{plan.name}: calibrating")
        plan = replace(plan, parameters={**plan.parameters, **plan.prepare(taking_part(plan, servers))})
    samples = Run(plan, servers, display, later).run()
    display.close()
    content = document(plan, scale, servers, samples, time.monotonic() - began)
    results.write(output, content)
    report(content)
    return sum(sample["failed"] for sample in samples)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    names = [*PLANS, *APART, "all"]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", default=results.is_quick(), help="tiny: shows that it works (QUICK=1)"
    )
    parser.add_argument("--rounds", type=at_least(1, int), help="how often to measure everything")
    parser.add_argument("--seconds", type=at_least(0.01, float), help="of each measurement")
    parser.add_argument("--servers", help=f"only these, by commas: {', '.join(NAMES)}")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only those whose name contains TEXT")
    parser.add_argument("--output", type=Path, help="directory of the results")
    return parser.parse_args(given)


def chosen_scale(options: argparse.Namespace) -> Scale:
    scale = QUICK if options.quick else Scale()
    changes = {name: getattr(options, name) for name in ("rounds", "seconds") if getattr(options, name)}
    return replace(scale, **changes)


def chosen_servers(options: argparse.Namespace) -> list[str]:
    servers = options.servers.split(",") if options.servers else list(NAMES)
    unknown = set(servers) - set(NAMES)
    if unknown:
        sys.exit(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return servers


def chosen_plans(options: argparse.Namespace, scale: Scale) -> list[Plan]:
    names = list(PLANS) if "all" in options.names else dict.fromkeys(options.names)
    plans = [choose((PLANS | APART)[name](scale), options.cases) for name in names]
    for plan in plans:
        if not plan.cases:
            sys.exit(f"{plan.name}: no case with {options.cases!r} in its name")
    return plans


def main(given: Sequence[str] | None = None) -> int:
    """Run the experiments named on the command line; return 1 if an exchange failed anywhere."""
    options = arguments(given)
    scale = chosen_scale(options)
    display = Display()
    plans = chosen_plans(options, scale)
    servers = installed(of_plans(plans, chosen_servers(options)), display)
    output = options.output or results.directory(options.quick)
    os.sched_setaffinity(0, GENERATOR_CORES)  # nothing of ours on the server's core
    try:
        for source in SOURCES:  # not while a server waits, and once
            build(source)
    except BuildError as error:
        print(error)
        return 2
    failed = 0
    for at, plan in enumerate(plans):
        later = sum(estimated(steps(other, servers)) for other in plans[at + 1 :])
        failed += experiment(plan, scale, servers, output, display, later)
    if failed:
        print(f"\n{failed} exchanges failed: see the results")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
