"""What a measurement was made on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from loadtests.peers.programs import program

__all__ = ["Bystanders", "commit", "machine", "versions"]

PACKAGES = ("greensock", "gevent", "greenlet")
#: How a program that is no module says its version: on stdout or stderr, with a number in it.
PROGRAMS = {"nginx": "-v", "haproxy": "-v", "wrk": "-v"}


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def machine() -> dict[str, str | int]:
    """Return CPU, cores, memory and kernel."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
    }


def busy_seconds() -> float:
    """CPU time that all cores have spent on anything, in ticks of a hundredth of a second."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    ticks = dict(zip(names, map(int, Path("/proc/stat").read_text().split()[1:9]), strict=True))
    return (sum(ticks.values()) - ticks["idle"] - ticks["iowait"]) / os.sysconf("SC_CLK_TCK")


class Bystanders:
    """How many cores processes other than ours, and the hypervisor's other guests, have used since it was made.

    What they take is not in the CPU time per message, but it is in every rate and every latency.
    """

    def __init__(self) -> None:
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), busy_seconds() - sum(os.times()[:4])  # of children too, once they have ended

    def cores(self) -> float:
        """Return the mean so far; call it when all children have ended."""
        began, others = self._began
        now, others_now = self._now()
        return max(0.0, others_now - others) / max(now - began, 1e-9)


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def program_version(name: str) -> str | None:
    path = program(name)
    if path is None:
        return None
    said = subprocess.run([path, PROGRAMS[name]], capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return found[0] if found else None


def versions(needed: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the versions of Python and of what is measured, modules and programs; None for what is not installed."""
    packages = dict.fromkeys([*PACKAGES, *needed])
    found = {name: program_version(name) if name in PROGRAMS else version(name) for name in packages}
    return {"python": platform.python_version(), **{name: each for name, each in found.items() if "." not in name}}


def commit() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` if files differ; None where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    here = Path(__file__).resolve().parent
    try:
        result = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
