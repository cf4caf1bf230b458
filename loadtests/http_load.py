"""Run the open-loop generator for HTTP (``http_load.c``), and return what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.generator import Failed, launched
from loadtests.native import build

__all__ = ["OpenLoad", "run"]

#: Seconds that it may take longer than its measurement.
ENDING = 30.0


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """What one run measured; ``latency`` has count, p50_us, p99_us, p999_us and max_us, without the warm-up."""

    sent: int
    answered: int
    #: By kind: closed, status, body, timeout.
    failures: Mapping[str, int]
    #: From the moment at which a request was due to its whole answer.
    latency: Mapping[str, float]

    @property
    def failed(self) -> int:
        """Failures of all kinds."""
        return sum(self.failures.values())


def run(
    address: str,
    path: str,
    expected: bytes,
    *,
    cores: Sequence[int],
    connections: int,
    rate: float,
    seconds: float,
    warmup: float,
) -> OpenLoad:
    """Make ``rate`` requests a second, each answer of which must be ``expected``.

    Raises:
        Failed: it could not run, or did not end.
    """
    host, _, port = address.rpartition(":")
    words = [host, port, path, expected.decode(), connections, rate, seconds, warmup]
    with launched([str(build("http_load.c")), *map(str, words)], cores) as process:
        try:
            output, errors = process.communicate(timeout=warmup + seconds + ENDING)
        except subprocess.TimeoutExpired:
            raise Failed("the open-loop generator did not end") from None
        if process.returncode != 0:
            raise Failed(errors.strip() or f"the open-loop generator ended with {process.returncode}")
    return OpenLoad(**json.loads(output))
