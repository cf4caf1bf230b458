"""``/metrics``: the figures as Prometheus reads them, written by its own client library.

Names and units are by its conventions (https://prometheus.io/docs/practices/naming/): seconds and bytes, ``_total`` for
what only grows. ``docs/metrics.md`` has them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from greensock.operations.status_report import CLASSES, Totals, totals_of, upstreams_of
from greensock.operations.worker_watch import ENDING, SERVING, WorkerWatch
from greensock.version import __version__

__all__ = ["COUNTERS", "GAUGES", "HISTOGRAMS", "NOW_OF_SERVERS", "OF_SERVERS", "Exposition"]

#: Counters: the figure, the metric's name without ``greensock_`` and ``_total``, what it is, and its label if any.
COUNTERS: tuple[tuple[str, str, str, str | None], ...] = (
    ("accepted", "connections_accepted", "Connections that were accepted.", None),
    ("connected", "connections_made", "Connections that servers made themselves, and that stood.", None),
    ("dropped", "connections_ended", "Connections that ended, by the reason.", "reason"),
    ("accept_pauses", "accept_pauses", "Times that accepting paused, as descriptors or memory were short.", None),
    ("bytes_in", "received_bytes", "Bytes that came from peers.", None),
    ("bytes_out", "sent_bytes", "Bytes that went to peers.", None),
    ("messages", "messages", "Messages that framers cut.", None),
    ("errors", "upcall_errors", "Upcalls that failed.", None),
    ("handshakes", "tls_handshakes", "TLS handshakes that are done.", None),
    ("handshakes_failed", "tls_handshakes_failed", "TLS handshakes that failed, by the reason.", "reason"),
    ("requests", "requests", "Requests whose head was whole and sound.", None),
    ("statuses", "responses", "Final answers that were begun, by the class of their status.", "class"),
    ("refused", "refused", "Requests and connections that were refused, or held back, by the reason.", "reason"),
    ("failures", "proxy_failures", "Requests that the proxy could not have answered, by the reason.", "reason"),
    ("retries", "proxy_retries", "Times that another server was asked for a request.", None),
    ("tunnels", "proxy_tunnels", "Connections that were switched to another protocol.", None),
    ("log_lines_dropped", "log_lines_dropped", "Lines of the access log that were not written: it was slow.", None),
    ("hub_holds", "hub_holds", "Times that an upcall held the hub for longer than max_hold.", None),
)
#: Gauges, likewise.
GAUGES: tuple[tuple[str, str, str], ...] = (
    ("connections", "connections", "Connections that are alive."),
    ("in_hand", "upcalls_in_hand", "Upcalls that run or are blocked: for the proxy, requests under way."),
    ("greenlets", "worker_greenlets", "Greenlets in which upcalls run, idle ones included."),
    ("handshakes_unfinished", "tls_handshakes_unfinished", "TLS handshakes that are under way."),
    ("memory", "resident_memory_bytes", "Memory of all workers that is resident; what they share counts for each."),
)
#: Histograms, likewise.
HISTOGRAMS: tuple[tuple[str, str, str], ...] = (
    ("latency", "request_duration_seconds", "From a request's head to the last byte of its answer, of the proxy."),
    ("turn_wait", "turn_wait_seconds", "How long a ready connection waited for its turn (sampled)."),
    ("upcall", "upcall_duration_seconds", "How long connection_recv took, with all it waited for (sampled)."),
    ("hub_held", "hub_held_seconds", "How late a timer of the hub fired, as others held it (sampled)."),
)
#: Of each server behind the proxy: the figure, and as above.
OF_SERVERS: tuple[tuple[str, str, str], ...] = (
    ("requests", "upstream_requests", "Requests that a server was asked."),
    ("errors", "upstream_errors", "Requests to a server that failed by its fault."),
)
NOW_OF_SERVERS: tuple[tuple[str, str, str], ...] = (
    ("connections", "upstream_connections", "Connections to a server, idle ones included."),
    ("in_hand", "upstream_requests_in_hand", "Requests that a server is answering, or that wait for it."),
    ("weight", "upstream_weight", "A server's share of the requests, against the others'."),
)
_LABELS = ("upstream", "server")
_STATES = ("up", "down", "ejected", "draining")


class Exposition(Collector):
    """Makes ``/metrics``. It is a collector of Prometheus' client library, the only one of its registry."""

    def __init__(self, watch: WorkerWatch) -> None:
        self._watch = watch
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def written(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type: OpenMetrics for who says that it takes that."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Return nothing: what there is is not looked at before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Go through all metrics, as of now."""
        watch = self._watch
        totals = totals_of(watch)
        info = InfoMetricFamily("greensock_build", "What serves.")
        info.add_metric([], {"version": __version__})
        yield info
        yield GaugeMetricFamily("greensock_start_time_seconds", "When the master began, since 1970.", watch.started_at)
        yield _workers(watch, totals)
        cpu = "CPU time of all workers, those that are gone included."
        yield CounterMetricFamily("greensock_cpu_seconds", cpu, totals.seconds.get("cpu", 0.0))
        for name, metric, text, label in COUNTERS:
            family = CounterMetricFamily(f"greensock_{metric}", text, labels=[label] if label else [])
            if label is None:
                family.add_metric([], totals.count(name))
            else:
                values = totals.by_label(name)
                values = {each: values.get(each, 0) for each in CLASSES} if name == "statuses" else values
                for value, count in sorted(values.items()):
                    family.add_metric([value], count)
            yield family
        for name, metric, text in GAUGES:
            yield GaugeMetricFamily(f"greensock_{metric}", text, totals.gauge(name))
        for name, metric, text in HISTOGRAMS:
            yield _histogram(f"greensock_{metric}", text, totals.histogram(name))
        if watch.behind is not None:
            yield from _upstreams(upstreams_of(watch, totals))


def _workers(watch: WorkerWatch, totals: Totals) -> Metric:
    states = [watch.gauges.of(slot).get("state") for slot in totals.workers]
    family = GaugeMetricFamily("greensock_workers", "Worker processes, by their state.", labels=["state"])
    family.add_metric(["serving"], states.count(SERVING))
    family.add_metric(["ending"], states.count(ENDING))
    return family


def _histogram(name: str, text: str, told: dict[str, Any]) -> Metric:
    family = HistogramMetricFamily(name, text)
    bounds = [*(f"{bound:g}" for bound in told["bounds"]), "+Inf"]
    family.add_metric([], list(zip(bounds, accumulate(told["counts"]), strict=True)), told["sum"])
    return family


def _upstreams(upstreams: list[dict[str, Any]]) -> Iterator[Metric]:
    queued = GaugeMetricFamily("greensock_upstream_queued", "Requests that wait for a server.", labels=["upstream"])
    state_text = "How a server stands: 1 for the state that it is in."
    state = GaugeMetricFamily("greensock_upstream_state", state_text, labels=[*_LABELS, "state"])
    up_text = "Whether a server gets requests."
    up = GaugeMetricFamily("greensock_upstream_up", up_text, labels=_LABELS)
    counters: dict[str, Any] = {
        name: CounterMetricFamily(f"greensock_{metric}", text, labels=_LABELS) for name, metric, text in OF_SERVERS
    }
    gauges: dict[str, Any] = {
        name: GaugeMetricFamily(f"greensock_{metric}", text, labels=_LABELS) for name, metric, text in NOW_OF_SERVERS
    }
    for upstream in upstreams:
        queued.add_metric([upstream["name"]], upstream["queued"])
        for server in upstream["servers"]:
            labels = [upstream["name"], server["name"]]
            up.add_metric(labels, float(server["state"] == "up"))
            for each in _STATES:
                state.add_metric([*labels, each], float(server["state"] == each))
            for name, family in (*counters.items(), *gauges.items()):
                family.add_metric(labels, server[name])
    yield from (queued, up, state, *counters.values(), *gauges.values())
