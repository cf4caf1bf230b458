"""A fake operators' address: it says of a proxy what was made up, a second later with each question."""

from __future__ import annotations

import hmac
from typing import Any

from greensock.http import HTTPServer, Response
from greensock.operations.status_page import PAGE_FIELDS, page_file

TOKEN = "open-sesame"
#: What a client may write: HTML, an order to a terminal, a sign that turns the order of others.
HOSTILE = "/<img src=x onerror=alert(1)>\x1b[2J\u202e" + "long" * 60
BOUNDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
START = 1_800_000_000.0


def histogram(counts: dict[float, int]) -> dict[str, Any]:
    counted = [counts.get(bound, 0) for bound in (*BOUNDS, 9.0)]
    return {"bounds": BOUNDS, "counts": counted, "sum": sum(map(float.__mul__, [*BOUNDS, 9.0], map(float, counted)))}


def server(name: str, state: str, step: int, **more: Any) -> dict[str, Any]:
    counted = {"requests": 50 * step if state == "up" else 0, "errors": 0, "connections": 7, "in_hand": 2, "weight": 1}
    return {"name": name, "state": state, "why": None, "since": START, **counted, **more}


def request(at: float, status: int, target: str, seconds: float, reason: str | None = None) -> dict[str, Any]:
    more = {"client": "198.51.100.7", "server": "127.0.0.1:9000", "reason": reason}
    return {
        "at": at,
        "method": "GET",
        "host": "example.org",
        "target": target,
        "status": status,
        "seconds": seconds,
        **more,
    }


def status(
    step: int, drained: frozenset[str] = frozenset(), start: float = START, second: int | None = None
) -> dict[str, Any]:
    """Return what is said at the ``step``-th second: a hundred requests in each, of which one takes 0.2 to 0.5 s.

    ``second`` is what the clock has come to, where the counters began anew meanwhile.
    """
    now = START + 3600 + (step if second is None else second)
    servers = [
        server("127.0.0.1:9000", "up", step),
        server("127.0.0.1:9001", "up", step),
        server("127.0.0.1:9002", "down", step, why="3 checks failed: connect-refused", since=now - 125, errors=step),
    ]
    for each in servers:
        if each["name"] in drained:
            each.update(state="draining", why="told by an operator", since=now - 1)
    return {
        "name": "greensock proxy", "version": "0.1.0", "started": start, "now": now, "is_draining": False,
        "workers": [
            {
                "pid": 4711 + slot, "slot": slot, "connections": 150, "requests": 50 * step, "in_hand": 2,
                "cpu_seconds": 0.25 * step, "memory_bytes": 42_000_000, "state": "serving",
            }
            for slot in range(2)
        ],
        "totals": {
            "connections": 300, "accepted": 3 * step, "requests": 100 * step, "in_hand": 4, "errors": step,
            "bytes_in": 20_000 * step, "bytes_out": 1_500_000 * step,
            "statuses": {"1xx": 0, "2xx": 95 * step, "3xx": 3 * step, "4xx": step, "5xx": step},
            "refused": {"request-rate": 2 * step, "connections": 0},
        },
        "latency": histogram({0.002: 50 * step, 0.005: 49 * step, 0.5: step}),
        "turn_wait": histogram({0.001: 100 * step}),
        "upcall": histogram({0.002: 100 * step}),
        "hub_held": histogram({0.02: 100 * step}),
        "upstreams": [{"name": "web", "queued": 0, "servers": servers}],
        "slowest": [request(now - 20, 200, "/report?year=2026", 0.43), request(now - 5, 200, HOSTILE, 0.31)],
        "failed": [
            request(now - 3, 502, "/cart", 0.004, "connect-refused"),
            request(now - 9, 504, HOSTILE, 60.0, "head-timeout"),
        ],
    }  # fmt: skip


class FakeOperations(HTTPServer):
    """Answers as the operators' address does; ``asked`` counts the questions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.step = self.asked = 0
        self.drained: set[str] = set()
        self.orders: list[tuple[str, str]] = []
        #: What is answered in place of a status: (status, body).
        self.instead: tuple[int, bytes] | None = None
        self.start_of_it = START
        super().__init__(*args, **options)

    def handle_request(self, request: Any) -> Response:
        if request.path == "/told":
            return self._told(request)
        if request.method == "POST":
            return self._order(request)
        if request.path == "/status.json":
            self.asked += 1
            self.step += 1
            if self.instead is not None:
                return Response(self.instead[1], self.instead[0])
            return Response.json(status(self.step, frozenset(self.drained), self.start_of_it, self.asked))
        found = page_file(request.path)
        if found is None:
            return Response.json({"error": "nothing is there"}, 404)
        return Response(found[1], headers=PAGE_FIELDS, content_type=found[0])

    def _told(self, request: Any) -> Response:
        """Do what a test in another process says, or tell it how often the status was asked for."""
        if request.method == "POST":
            told = request.json()
            if told.get("begin_anew"):
                self.step, self.start_of_it = 0, START - 3600
            if "instead" in told:
                self.instead = told["instead"] and (told["instead"][0], told["instead"][1].encode())
        return Response.json({"polls": self.asked})

    def _order(self, request: Any) -> Response:
        what, said = request.path.strip("/"), request.json()
        if not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {TOKEN}"):
            return Response.json({"error": "a token is needed, and this is none"}, 401)
        if said["server"] not in ("127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:9002"):
            return Response.json({"error": "there is no such server"}, 404)
        self.orders.append((what, said["server"]))
        (self.drained.add if what == "drain" else self.drained.discard)(said["server"])
        return Response(status=204)
