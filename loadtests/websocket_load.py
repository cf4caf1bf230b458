"""Run the generator of WebSocket echoes (``ws_load.c``), and return what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loadtests.generator import Failed, launched
from loadtests.native import build

__all__ = ["SOURCE", "EchoLoad", "echo", "idle"]

SOURCE = "ws_load.c"
#: Seconds that it may take longer than its measurement.
ENDING = 40.0


@dataclass(frozen=True, slots=True)
class EchoLoad:
    """What one run measured."""

    #: Echoes that came back, each character by character.
    messages: int
    seconds: float
    #: Connections that were not opened, or on which something else came back.
    failed: int
    #: CPU seconds of the generator itself.
    cpu_seconds: float


def command(address: str, connections: int, seconds: float) -> list[str]:
    host, _, port = address.rpartition(":")
    return [str(build(SOURCE)), host, port, "/", str(connections), str(seconds)]


def echo(
    address: str, *, cores: Sequence[int], connections: int, seconds: float, on_open: Callable[[], object]
) -> EchoLoad:
    """Have so many connections send a message of 64 characters, again as soon as it is back.

    ``on_open`` is called when all are open and nothing has been counted yet.

    Raises:
        Failed: it could not run, or did not end.
    """
    with launched(command(address, connections, seconds), cores) as process:
        wait_until_ready(process)
        on_open()
        try:
            output, errors = process.communicate("\n", timeout=seconds + ENDING)
        except subprocess.TimeoutExpired:
            raise Failed("the generator did not end") from None
    if process.returncode != 0:
        raise Failed(errors.strip() or f"the generator ended with {process.returncode}")
    return EchoLoad(**json.loads(output))


@contextmanager
def idle(address: str, *, cores: Sequence[int], connections: int) -> Iterator[int]:
    """Hold so many connections, each after one echo, for as long as the block runs; give how many are open.

    Raises:
        Failed: it could not run.
    """
    with launched(command(address, connections, 0), cores) as process:
        yield wait_until_ready(process)


def wait_until_ready(process: subprocess.Popen[str]) -> int:
    """Return how many connections are open, once all are that will be."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready "):
        _, errors = process.communicate(timeout=ENDING)
        raise Failed(errors.strip() or "the generator ended early")
    return int(line.split()[1])
