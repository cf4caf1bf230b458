"""Run the open-loop generator for HTTP (``http_load.c``), and return what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
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
    #: Connections in the place of those that were closed; with ``slice_seconds`` only.
    opened_anew: int
    #: By kind: closed, status, body, timeout.
    failures: Mapping[str, int]
    #: From the moment at which a request was due to its whole answer.
    latency: Mapping[str, float]
    #: The same of each ``slice_seconds``.
    slices: Sequence[Mapping[str, float]]

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
    slice_seconds: float | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> OpenLoad:
    """Make ``rate`` requests a second, each answer of which must be ``expected``.

    With ``slice_seconds`` a connection that is closed is opened anew, and only a request that was written and has no
    answer has failed. ``meanwhile`` is called then, when the warm-up begins.

    Raises:
        Failed: it could not run, or did not end.
    """
    host, _, port = address.rpartition(":")
    words = [host, port, path, expected.decode(), connections, rate, seconds, warmup]
    if slice_seconds is not None:
        words.append(slice_seconds)
    with launched([str(build("http_load.c")), *map(str, words)], cores) as process:
        if slice_seconds is not None and meanwhile is not None:
            assert process.stderr is not None
            if process.stderr.readline() == "began\n":
                meanwhile()
        try:
            output, errors = process.communicate(timeout=warmup + seconds + ENDING)
        except subprocess.TimeoutExpired:
            raise Failed("the open-loop generator did not end") from None
        if process.returncode != 0:
            raise Failed(errors.strip() or f"the open-loop generator ended with {process.returncode}")
    return OpenLoad(**json.loads(output))
