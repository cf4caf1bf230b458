"""Run the traffic generator (``generator.c``) and return what it measured."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from loadtests.native import build

__all__ = ["Failed", "Idle", "Latency", "Mode", "Progress", "Result", "run"]

Mode = Literal["pingpong", "flood", "shortlived", "ramp", "idle", "openloop"]

#: Totals so far, by name.
Progress = dict[str, float]

#: Seconds that closing the connections of :class:`Idle` may take.
CLOSING = 60.0


class Failed(RuntimeError):
    """The generator could not run at all (its usage, descriptors, an address that does not resolve)."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds from the time a message should have been sent to the whole answer."""

    count: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    #: (upper bound in us, messages), only the buckets that have any; a bucket is 3 % wide.
    histogram: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What one run measured.

    ``messages``, ``seconds`` and the CPU times belong to the measured window; ``total_messages``, ``opened``
    and ``failures`` to the whole run, warm-up included.
    """

    mode: str
    connections: int
    size: int
    burst: int
    threads: int
    seconds: float
    messages: int
    rate: float
    total_messages: int
    opened: int
    #: Seconds until every connection was open.
    open_seconds: float
    server_cpu_ns: int
    generator_cpu_ns: int
    #: By kind: refused, reset, timeout, mismatch (wrong bytes), short (closed early), ports (used up), other.
    failures: Mapping[str, int]
    failed: int
    last_error: str
    #: Messages in each whole second.
    per_second: tuple[int, ...]
    #: (seconds, connections open), in ramp mode.
    ramp: tuple[tuple[float, int], ...]
    latency: Latency | None = None
    #: Of the connections chosen by ``mark_every``.
    marked_latency: Latency | None = None

    @property
    def best_second(self) -> float:
        """Messages in the best whole second; the mean rate of a run that is shorter."""
        return max(self.per_second, default=self.rate)

    @property
    def server_us(self) -> float:
        """CPU of the server per message, in microseconds; NaN without messages."""
        return self.server_cpu_ns / self.messages / 1e3 if self.messages else float("nan")

    @property
    def server_load(self) -> float:
        """The share of one core that the server used."""
        return self.server_cpu_ns / 1e9 / self.seconds if self.seconds else 0.0

    @property
    def generator_load(self) -> float:
        """The cores that the generator used."""
        return self.generator_cpu_ns / 1e9 / self.seconds if self.seconds else 0.0


def parse_latency(fields: Mapping[str, Any]) -> Latency:
    histogram = tuple((float(top), int(count)) for top, count in fields["histogram"])
    return Latency(**{**fields, "histogram": histogram})


def parse(text: str) -> Result:
    """Return the result that the generator printed."""
    fields: dict[str, Any] = json.loads(text)
    fields["per_second"] = tuple(fields["per_second"])
    fields["ramp"] = tuple((float(seconds), int(connections)) for seconds, connections in fields["ramp"])
    for name in ("latency", "marked_latency"):
        if name in fields:
            fields[name] = parse_latency(fields[name])
    return Result(**fields)


def command(mode: Mode, connect: str, options: Mapping[str, object]) -> list[str]:
    arguments = [str(build("generator.c")), mode, "--connect", connect]
    for name, value in options.items():
        if value is True:
            arguments.append("--" + name.replace("_", "-"))
        elif value is not None and value is not False:
            arguments += ["--" + name.replace("_", "-"), str(value)]
    return arguments


@contextmanager
def launched(
    arguments: Sequence[str], cores: Sequence[int], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A generator that is ended with the block, whatever happens in it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            if cores:
                os.sched_setaffinity(process.pid, cores)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_progress(process: subprocess.Popen[str], on_progress: Callable[[Progress], None]) -> None:
    assert process.stderr is not None
    while (line := process.stderr.readline()).startswith("{"):
        on_progress(json.loads(line))


def collect(process: subprocess.Popen[str], timeout: float | None) -> Result:
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed("the generator did not end by its deadline") from None
    if process.returncode not in (0, 1):
        raise Failed(errors.strip() or f"the generator ended with {process.returncode}")
    return parse(output)


def run(
    mode: Mode,
    connect: str,
    *,
    cores: Sequence[int] = (),
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **options: object,
) -> Result:
    """Run the generator to its end; exchanges that fail are in the result, not raised.

    ``connect`` is ``HOST:PORT`` or a path. ``options`` are the generator's own, with underscores:
    ``connections``, ``size``, ``burst``, ``seconds``, ``warmup``, ``messages``, ``rate``, ``pid``, ... (its
    usage has them all). ``on_progress`` is called once a second with the totals so far: ``seconds``,
    ``messages``, ``connections``, ``failures``.

    Raises:
        Failed: it could not run, or was still running after ``timeout`` seconds.
    """
    if on_progress:
        options["progress"] = True
    with launched(command(mode, connect, options), cores) as process:
        if on_progress:
            read_progress(process, on_progress)
        return collect(process, timeout)


class Idle:
    """Connections that are open and silent for as long as the ``with`` block runs.

    Entering waits until all are open (and have exchanged a message each, if ``messages=1``); after leaving,
    ``result`` has the outcome.
    """

    def __init__(self, connect: str, *, cores: Sequence[int] = (), **options: object) -> None:
        self._arguments = command("idle", connect, options)
        self._cores = cores
        self.result: Result | None = None
        #: Connections that were open when the block was entered.
        self.ready = 0

    def __enter__(self) -> Idle:
        self._stack = ExitStack()
        self._process = self._stack.enter_context(launched(self._arguments, self._cores))
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if not line.startswith("{"):
            self._stack.close()
            raise Failed(line.strip() or "the generator ended early")
        self.ready = int(json.loads(line)["ready"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.result = collect(self._process, CLOSING)  # closes its input, which ends it
