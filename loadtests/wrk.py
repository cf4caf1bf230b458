"""Run wrk, and return what it measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.generator import Failed

__all__ = ["Load", "run"]

SCRIPT = Path(__file__).resolve().parent / "wrk.lua"
#: Seconds after which wrk would end by itself; it is told to before.
LONGEST = 600
#: Seconds that it may take to end.
ENDING = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one run measured. An answer that was under way at its end is not in ``requests``."""

    requests: int
    seconds: float
    #: Of all answers, heads too, whole or not.
    bytes: int
    #: By kind: connect, read, write, status (400 or more), timeout.
    errors: Mapping[str, int]
    #: p50_us, p99_us, max_us: microseconds from the request to the whole answer, in a closed loop.
    latency: Mapping[str, float]
    #: CPU seconds of wrk itself.
    cpu_seconds: float

    @property
    def failed(self) -> int:
        """How many errors there were, of all kinds."""
        return sum(self.errors.values())


def parse(output: str, cpu_seconds: float) -> Load:
    for line in output.splitlines():
        if line.startswith("JSON "):
            fields: dict[str, Any] = json.loads(line.removeprefix("JSON "))
            return Load(**fields, cpu_seconds=cpu_seconds)
    raise Failed(output.strip() or "wrk said nothing")


def command(url: str, connections: int, close: bool, upload: int) -> list[str]:
    """Return wrk's command line."""
    options = ["--threads", "1", "--connections", str(connections), "--duration", f"{LONGEST}s", "--timeout", "5s"]
    if close:
        options += ["--header", "Connection: close"]
    return ["wrk", *options, "--script", str(SCRIPT), url, "--", str(upload)]


def catches_interrupt(process: subprocess.Popen[str]) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)


def wait_until_started(process: subprocess.Popen[str]) -> None:
    """Wait until wrk catches SIGINT, which it does once its threads run; or until it has ended."""
    until = time.monotonic() + ENDING
    while process.poll() is None and not catches_interrupt(process) and time.monotonic() < until:
        time.sleep(0.001)


def interrupt(process: subprocess.Popen[str]) -> str:
    """End wrk, which takes whole seconds only, and return its report; it reports just the same."""
    until = time.monotonic() + ENDING
    while time.monotonic() < until:
        process.send_signal(signal.SIGINT)  # again if it came before wrk slept
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            pass
    raise Failed("wrk did not end")


def run(
    url: str, *, cores: Sequence[int], connections: int, seconds: float, close: bool = False, upload: int = 0
) -> Load:
    """Have so many connections make one request after the other.

    With ``close`` each request has a connection of its own; with ``upload`` it has a body of so many bytes.

    Raises:
        Failed: wrk could not run, or did not end.
    """
    before = os.times()
    pipe = subprocess.PIPE
    arguments = command(url, connections, close, upload)
    with subprocess.Popen(arguments, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            os.sched_setaffinity(process.pid, cores)
            wait_until_started(process)
            time.sleep(seconds)
            output = interrupt(process)
        finally:
            if process.poll() is None:
                process.kill()
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return parse(output, spent)
