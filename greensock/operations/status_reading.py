"""What ``/status.json`` says, checked, and what two of them say together: rates, and quantiles of histograms.

Pure: bytes in, numbers out. All counters only grow, but for a server that began anew; so what is told of a span of time
is the difference of two readings, by the server's own clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypedDict, cast

__all__ = [
    "Change",
    "HistogramReading",
    "RequestReading",
    "ServerReading",
    "StatusReading",
    "TotalsReading",
    "UpstreamReading",
    "WorkerReading",
    "read_status",
]


class HistogramReading(TypedDict):
    """How many took how long: ``counts[i]`` at most ``bounds[i]`` seconds, and more than the bound before that."""

    bounds: list[float]
    counts: list[int]
    sum: float


class WorkerReading(TypedDict):
    """One worker."""

    pid: int
    slot: int
    connections: int
    requests: int
    in_hand: int
    cpu_seconds: float
    memory_bytes: int
    state: str


class TotalsReading(TypedDict):
    """All workers together, those that are gone included."""

    connections: int
    accepted: int
    requests: int
    in_hand: int
    bytes_in: int
    bytes_out: int
    errors: int
    statuses: dict[str, int]
    refused: dict[str, int]


class ServerReading(TypedDict):
    """A server behind the proxy."""

    name: str
    state: str
    why: str | None
    since: float | None
    connections: int
    in_hand: int
    requests: int
    errors: int
    weight: float


class UpstreamReading(TypedDict):
    """A group of servers."""

    name: str
    queued: int
    servers: list[ServerReading]


class RequestReading(TypedDict):
    """One of the last requests."""

    at: float
    method: str | None
    host: str | None
    target: str | None
    status: int | None
    seconds: float | None
    client: str | None
    server: str | None
    reason: str | None


class StatusReading(TypedDict):
    """All of it. Times are in seconds since 1970, by the server's clock."""

    name: str
    version: str
    started: float
    now: float
    is_draining: bool
    workers: list[WorkerReading]
    totals: TotalsReading
    latency: HistogramReading
    turn_wait: HistogramReading
    upcall: HistogramReading
    hub_held: HistogramReading
    upstreams: list[UpstreamReading]
    slowest: list[RequestReading]
    failed: list[RequestReading]


#: No second, no byte and no counter is beyond.
MOST = 2.0**63

_NUMBER = (int, float)
_MAYBE_TEXT, _MAYBE_NUMBER = (str, type(None)), (int, float, type(None))
_HISTOGRAM = {"bounds": [_NUMBER], "counts": [_NUMBER], "sum": _NUMBER}
_REQUEST = {
    "at": _NUMBER,
    "status": _MAYBE_NUMBER,
    "seconds": _MAYBE_NUMBER,
    **dict.fromkeys(("method", "host", "target", "client", "server", "reason"), _MAYBE_TEXT),
}
_WORKER = {
    **dict.fromkeys(("pid", "slot", "connections", "requests", "in_hand", "cpu_seconds", "memory_bytes"), _NUMBER),
    "state": str,
}
_SERVER = {
    "name": str,
    "state": str,
    "why": _MAYBE_TEXT,
    "since": _MAYBE_NUMBER,
    **dict.fromkeys(("connections", "in_hand", "requests", "errors", "weight"), _NUMBER),
}
#: A mapping with the key ``""`` may have any keys; a list has items like its one.
_STATUS = {
    "name": str,
    "version": str,
    "started": _NUMBER,
    "now": _NUMBER,
    "is_draining": bool,
    "workers": [_WORKER],
    "totals": {
        **dict.fromkeys(("connections", "accepted", "requests", "in_hand", "bytes_in", "bytes_out"), _NUMBER),
        "errors": _NUMBER,
        "statuses": {"": _NUMBER},
        "refused": {"": _NUMBER},
    },
    **dict.fromkeys(("latency", "turn_wait", "upcall", "hub_held"), _HISTOGRAM),
    "upstreams": [{"name": str, "queued": _NUMBER, "servers": [_SERVER]}],
    "slowest": [_REQUEST],
    "failed": [_REQUEST],
}


def read_status(data: bytes) -> StatusReading:
    """Return what the server says of itself. Names that are not known here are left alone.

    Raises:
        ValueError: it is none, or not one of this version; the text says where.
    """
    try:
        status = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON expected: {error}") from error
    _check(status, _STATUS, "")
    _check(status["totals"].get("failures", {}), {"": _NUMBER}, "totals.failures")  # only a proxy's has them
    for name in ("latency", "turn_wait", "upcall", "hub_held"):
        if len(status[name]["counts"]) != len(status[name]["bounds"]) + 1:
            raise ValueError(f"{name}: one count more than bounds expected")
    return cast(StatusReading, status)


def _check(value: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'all of it'}: an object expected")
        for name, inner in wanted.items():
            if name and name not in value:
                raise ValueError(f"{where}{'.' if where else ''}{name} is missing")
            for key in [name] if name else value:
                _check(value[key], inner, f"{where}{'.' if where else ''}{key}")
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise ValueError(f"{where}: a list expected")
        for index, item in enumerate(value):
            _check(item, wanted[0], f"{where}[{index}]")
    elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool) or _is_beyond(value):
        raise ValueError(f"{where}: {value!r:.60} is not what was expected")


def _is_beyond(value: Any) -> bool:
    """Whether it is a number that nothing of this can have: JSON knows infinite ones, and any length."""
    return isinstance(value, int | float) and not abs(value) < MOST


class Change:
    """What happened between two readings; without an earlier one, or of another server's, nothing can be said of it."""

    def __init__(self, now: StatusReading, before: StatusReading | None) -> None:
        #: The later one.
        self.now = now
        if before is not None and (
            before["started"] != now["started"]
            or before["now"] >= now["now"]
            or before["totals"]["requests"] > now["totals"]["requests"]
        ):
            before = None
        #: The one before it; None where there is none to compare with.
        self.before = before
        #: Seconds between them.
        self.seconds = now["now"] - before["now"] if before is not None else 0.0

    def rate(self, value: Callable[[StatusReading], float]) -> float | None:
        """Return by how much a value of the whole grew, a second."""
        return None if self.before is None else self._rate(value(self.now), value(self.before))

    def count_rate(self, group: str, name: str) -> float | None:
        """Return by how much a counter of ``statuses``, ``refused`` or ``failures`` grew, a second."""
        return self.rate(lambda status: cast(Any, status["totals"]).get(group, {}).get(name, 0))

    def worker_rate(self, worker: WorkerReading, name: str) -> float | None:
        """Return by how much a worker's counter grew, a second; None for one that is new."""
        for each in self.before["workers"] if self.before is not None else ():
            if each["pid"] == worker["pid"]:
                return self._rate(cast(Any, worker)[name], cast(Any, each)[name])
        return None

    def server_rate(self, upstream: UpstreamReading, server: ServerReading, name: str) -> float | None:
        """Return by how much a server's counter grew, a second; None for one that is new."""
        for group in self.before["upstreams"] if self.before is not None else ():
            for each in group["servers"] if group["name"] == upstream["name"] else ():
                if each["name"] == server["name"]:
                    return self._rate(cast(Any, server)[name], cast(Any, each)[name])
        return None

    def quantile(self, name: str, share: float) -> float | None:
        """Return the seconds that this share took at the most, of those that were timed meanwhile; None if none were.

        Within a bucket it is as if they were spread evenly; of what lies above the last bound that bound is returned.
        """
        if self.before is None:
            return None
        histogram: HistogramReading = cast(Any, self.now)[name]
        earlier: HistogramReading = cast(Any, self.before)[name]
        if histogram["bounds"] != earlier["bounds"]:
            return None
        counts = [max(0, count - old) for count, old in zip(histogram["counts"], earlier["counts"], strict=True)]
        rank, seen, low = share * sum(counts), 0, 0.0
        for count, high in zip(counts, [*histogram["bounds"], None], strict=True):
            if count and seen + count >= rank:
                return low if high is None else low + (high - low) * (rank - seen) / count
            seen += count
            low = high if high is not None else low
        return None

    def _rate(self, now: float, before: float) -> float:
        return max(0.0, now - before) / self.seconds
