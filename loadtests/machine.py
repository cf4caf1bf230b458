"""What a measurement was made on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

__all__ = ["commit", "machine", "versions"]

PACKAGES = ("greensock", "gevent", "greenlet", "uvloop", "trio")


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


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of what is measured; None for what is not installed."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def commit() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` if files differ; None where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    here = Path(__file__).resolve().parent
    try:
        result = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
