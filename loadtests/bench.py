"""``python -m loadtests.bench NAME...``: run experiments, print their tables, write ``results/NAME.json``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from loadtests import tables
from loadtests.experiments import PLANS, Case, Plan, Scale
from loadtests.generator import Failed
from loadtests.machine import Bystanders, commit, machine, versions
from loadtests.process import GENERATOR_CORES, SERVER_CORES, StartError
from loadtests.progress import Display
from loadtests.servers import NAMES, missing

__all__ = ["main"]

RESULTS = Path(__file__).resolve().parent / "results"

#: A measured second is as short as this, and a round as single, with ``--quick``.
QUICK = Scale(rounds=1, seconds=0.1, warmup=0.05, quick=True)

#: Cores that other processes may use before the report says so.
QUIET = 0.1

Sample = dict[str, Any]
Step = tuple[int, Case, str]


def rotated(servers: Sequence[str], by: int) -> list[str]:
    by %= len(servers) or 1
    return [*servers[by:], *servers[:by]]


class Run:
    """One experiment under way: its steps, its samples, and how long each kind of step takes."""

    def __init__(self, plan: Plan, servers: Sequence[str], display: Display) -> None:
        self._plan = plan
        self._servers = servers
        self._display = display
        self._took: dict[tuple[str, str], float] = {}
        self._broken: dict[str, str] = {}
        self.samples: list[Sample] = []

    def steps(self) -> Iterator[Step]:
        for number in range(self._plan.rounds):
            for case in self._plan.cases:
                for server in rotated([name for name in case.servers if name in self._servers], number):
                    yield number, case, server

    def _left(self, steps: Iterable[Step]) -> float:
        return sum(self._took.get((case.label, server), case.estimate) for _, case, server in steps)

    def run(self) -> list[Sample]:
        """Take every step; a server that does not start is left out from then on."""
        steps = list(self.steps())
        for at, (number, case, server) in enumerate(steps):
            if server in self._broken:
                continue
            rounds = (number + 1, self._plan.rounds)
            self._display.step(self._plan.name, rounds, case.label, server, self._left(steps[at:]))
            self._take(number, case, server)
        return self.samples

    def _take(self, number: int, case: Case, server: str) -> None:
        began, bystanders = time.monotonic(), Bystanders()
        head: Sample = {"round": number, "case": case.label, "server": server, **case.parameters}
        try:
            sample = {**head, **case.measure(server)}
        except (StartError, Failed) as error:
            self._broken[server] = str(error)
            self._display.say(f"{server}: left out: {str(error).strip().splitlines()[-1]}")
            sample = {**head, "error": str(error), "failed": 1}
        if sample["failed"] and "error" not in sample:
            self._display.say(f"{server}, {case.label}: {sample['failed']} failed {sample['failures']}")
        self._took[case.label, server] = time.monotonic() - began
        self.samples.append({**sample, "others": round(bystanders.cores(), 3)})


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


def taking_part(plan: Plan, servers: Iterable[str]) -> list[str]:
    return [name for name in servers if any(name in case.servers for case in plan.cases)]


def document(plan: Plan, scale: Scale, samples: list[Sample], seconds: float) -> dict[str, Any]:
    """Return what goes into the results file."""
    return {
        "experiment": plan.name,
        "title": plan.title,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took_seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "cores": {"server": list(SERVER_CORES), "generator": list(GENERATOR_CORES)},
        "scale": asdict(scale),
        "parameters": dict(plan.parameters),
        "samples": samples,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a line for each sample, so that two results can be compared line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = ",\n".join("  " + json.dumps(sample) for sample in content["samples"])
    head = json.dumps({**content, "samples": []}, indent=1)
    path.write_text(head.replace('"samples": []', '"samples": [\n' + samples + "\n ]") + "\n")


def warn_of_bystanders(samples: list[Sample]) -> None:
    others = median(sample["others"] for sample in samples)
    if others > QUIET:
        print(f"\nThe machine was not ours alone: others used {others:.2f} cores (median). Rates and latencies suffer.")


def report(plan: Plan, samples: list[Sample]) -> None:
    print(f"\n## {plan.title}\n")
    print(tables.samples_table(samples))
    if plan.name == "figures":
        print("\n" + tables.figures_table(samples))
    if samples:
        warn_of_bystanders(samples)


def experiment(name: str, scale: Scale, servers: Sequence[str], output: Path, display: Display) -> int:
    """Run one experiment to its file and return how many exchanges failed."""
    plan = PLANS[name](scale)
    began = time.monotonic()
    if plan.prepare:
        display.say(f"{name}: calibrating")
        plan = replace(plan, parameters={**plan.parameters, **plan.prepare(taking_part(plan, servers))})
    samples = Run(plan, servers, display).run()
    display.close()
    write(output / f"{name}.json", document(plan, scale, samples, time.monotonic() - began))
    report(plan, samples)
    return sum(sample["failed"] for sample in samples)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*PLANS, "all"], metavar="NAME", help=", ".join([*PLANS, "all"]))
    quick = os.environ.get("QUICK", "") not in ("", "0")
    parser.add_argument("--quick", action="store_true", default=quick, help="tiny: shows that it works (QUICK=1)")
    parser.add_argument("--rounds", type=int, help="how often to measure everything")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--servers", help=f"only these, by commas: {', '.join(NAMES)}")
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
        sys.exit(f"no such server: {', '.join(sorted(unknown))}")
    return servers


def main(given: Sequence[str] | None = None) -> int:
    """Run the experiments named on the command line; return 1 if an exchange failed anywhere."""
    options = arguments(given)
    scale = chosen_scale(options)
    display = Display()
    servers = installed(chosen_servers(options), display)
    output = options.output or (RESULTS / "quick" if options.quick else RESULTS)
    os.sched_setaffinity(0, GENERATOR_CORES)  # nothing of ours on the server's core
    names = list(PLANS) if "all" in options.names else options.names
    failed = sum(experiment(name, scale, servers, output, display) for name in names)
    if failed:
        print(f"\n{failed} exchanges failed: see the results")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
