"""What any worker can say of all: ``/status.json``, and whether they are ready. From the memory that they share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from greensock.core.sampling import is_in_turn
from greensock.core.server import Server
from greensock.operations.figures import figure_name
from greensock.operations.histograms import BOUNDS, histogram_names
from greensock.operations.last_requests import read_last_requests
from greensock.operations.worker_watch import ENDING, SERVING, WorkerWatch
from greensock.version import __version__

__all__ = ["CLASSES", "Totals", "connections_of", "readiness_of", "status_of", "totals_of", "upstreams_of"]

#: Classes of statuses.
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")


class Totals:
    """All figures of all workers, as of one moment."""

    __slots__ = ("counters", "gauges", "seconds", "workers")

    def __init__(self, watch: WorkerWatch) -> None:
        #: Which rows are taken, and by which process.
        self.workers = watch.pages.taken()
        self.counters: Mapping[str, float] = watch.counters.total(self.workers)
        self.seconds: Mapping[str, float] = watch.seconds.total(self.workers)
        self.gauges: Mapping[str, float] = watch.gauges.total(self.workers)

    def count(self, name: str) -> int:
        """Return a counter; 0 if nobody counted that."""
        return int(self.counters.get(figure_name(name), 0))

    def gauge(self, name: str) -> int:
        """Return a figure of now."""
        return int(self.gauges.get(figure_name(name), 0))

    def by_label(self, name: str, gauges: bool = False) -> dict[str, int]:
        """Return the counters of that name by what stands behind it."""
        values = self.gauges if gauges else self.counters
        begin = f"{name}|"
        return {key[len(begin) :]: int(value) for key, value in values.items() if key.startswith(begin)}

    def histogram(self, name: str) -> dict[str, Any]:
        """Return a histogram as ``/status.json`` has it."""
        counts = [self.count(each) for each in histogram_names(name)]
        return {"bounds": list(BOUNDS[name]), "counts": counts, "sum": self.seconds.get(name, 0.0)}


def totals_of(watch: WorkerWatch) -> Totals:
    """Return the figures of all workers: this one's own are brought up to date before."""
    watch.refresh()
    return watch.pages.read_whole(lambda: Totals(watch))


def status_of(watch: WorkerWatch, name: str) -> dict[str, Any]:
    """Return what ``/status.json`` says."""
    totals = totals_of(watch)
    begun = [slot for slot in totals.workers if watch.gauges.of(slot).get("state")]
    workers = [_worker(watch, slot, totals.workers[slot]) for slot in begun]
    statuses = totals.by_label("statuses")
    slowest, failed = read_last_requests(watch.pages, totals.workers)
    return {
        "name": name,
        "version": __version__,
        "started": watch.started_at,
        "now": time.time(),
        "is_draining": not any(worker["state"] == "serving" for worker in workers),
        "workers": workers,
        "totals": {
            **{each: totals.gauge(each) for each in ("connections", "in_hand")},
            **{each: totals.count(each) for each in ("accepted", "requests", "bytes_in", "bytes_out", "errors")},
            "statuses": {each: statuses.get(each, 0) for each in CLASSES},
            "refused": totals.by_label("refused"),
            "failures": totals.by_label("failures"),
        },
        **{each: totals.histogram(each) for each in BOUNDS},
        "upstreams": upstreams_of(watch, totals),
        "slowest": [told.as_dict() for told in slowest],
        "failed": [told.as_dict() for told in failed],
    }


def _worker(watch: WorkerWatch, slot: int, pid: int) -> dict[str, Any]:
    gauges, counters = watch.gauges.of(slot), watch.counters.of(slot)
    return {
        "pid": pid,
        "slot": slot,
        "connections": int(gauges.get("connections", 0)),
        "requests": int(counters.get("requests", 0)),
        "in_hand": int(gauges.get("in_hand", 0)),
        "cpu_seconds": watch.seconds.of(slot).get("cpu", 0.0),
        "memory_bytes": int(gauges.get("memory", 0)),
        "state": "ending" if gauges.get("state") == ENDING else "serving",
    }


def upstreams_of(watch: WorkerWatch, totals: Totals) -> list[dict[str, Any]]:
    """Return the servers behind the proxy: their health as this worker knows it, and what all workers do with them."""
    if watch.behind is None:
        return []
    found = []
    for upstream in watch.behind.upstreams():
        name, servers = upstream["name"], []
        for server in upstream["servers"]:
            key = f"{name}|{server['name']}"
            servers.append(
                {
                    **server,
                    "connections": totals.gauge(f"server_connections|{key}"),
                    "in_hand": totals.gauge(f"server_in_hand|{key}"),
                    "requests": totals.count(f"server_requests|{key}"),
                    "errors": totals.count(f"server_errors|{key}"),
                }
            )
        found.append({"name": name, "queued": totals.gauge(f"queued|{name}"), "servers": servers})
    return found


def readiness_of(watch: WorkerWatch, upstreams: str) -> tuple[bool, str]:
    """Return whether new requests are welcome, and why not.

    Some worker must serve; and of the upstreams all, any or none must have a server that is up, as ``upstreams`` says.
    """
    watch.refresh()
    taken = watch.pages.taken()
    if not any(watch.gauges.of(slot).get("state") == SERVING for slot in taken):
        return False, "draining: no worker takes new connections"
    if upstreams == "none" or watch.behind is None:
        return True, "ready"
    there = watch.behind.upstreams()
    down = [each["name"] for each in there if not any(server["state"] == "up" for server in each["servers"])]
    if down and (upstreams == "all" or len(down) == len(there)):
        return False, f"no server is up: {', '.join(down)}"
    return True, "ready" if not down else f"ready, but no server is up: {', '.join(down)}"


def connections_of(servers: Any, most: int) -> list[dict[str, Any]]:
    """Return the connections of these servers; ``most`` at the most."""
    found: list[dict[str, Any]] = []
    for server in servers:
        found += [_connection(server, conn) for conn in server.connections[: most - len(found)]]
    return found


def _connection(server: Server[Any], conn: Any) -> dict[str, Any]:
    told = conn.statistics()
    address = conn.address
    return {
        "listener": _written(server.address),
        "peer": _written(address),
        "state": conn.state.name.lower(),
        "is_in_turn": is_in_turn(conn),
        "requests": getattr(conn, "requests", None),
        "bytes_in": told.bytes_received,
        "bytes_out": told.bytes_sent,
        "bytes_held": told.bytes_held,
        "bytes_queued": told.bytes_queued,
        "is_encrypted": conn.tls is not None,
    }


def _written(address: Any) -> str:
    if isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"
    return address.decode("utf-8", "replace") if isinstance(address, bytes) else str(address)
