"""The experiments with HTTP: servers, and proxies. Each is a plan, as those of ``experiments``."""

from __future__ import annotations

from functools import partial
from typing import Any

from loadtests import measure_http
from loadtests.measure_http import Proxied
from loadtests.peers.http_common import BLOCK
from loadtests.plan import Case, Plan, Scale
from loadtests.process import PURE
from loadtests.servers import HTTP, PROXIES

__all__ = ["flat_cases", "http", "proxy", "small_cases"]

#: Connections that wrk keeps busy; with bodies of 1 MB fewer, so that what is under way at the end weighs little.
CONNECTIONS = 64
LARGE_CONNECTIONS = 16
#: Greenlets that ask at the same time, in a client.
ASKING = 32
#: Seconds of a measurement, of those of the other experiments.
STRETCH = 1.55
#: Seconds that a server, and what it needs, takes to start and end.
STARTING = 0.9
PROXY_STARTING = 1.4

SERVERS = tuple(name for name in HTTP if name != "http_client")
#: HAProxy has no answer of 1 MB, and it and nginx nothing that reads an upload and counts it.
LARGE_SERVERS = tuple(name for name in SERVERS if name != "http_haproxy")
UPLOAD_SERVERS = tuple(name for name in LARGE_SERVERS if name != "http_nginx")
OURS = ("http_server", "wsgi_server", "http_client")


def gigabytes(scale: Scale) -> int:
    """Return the blocks of 2 GB, or of 64 MB if quick."""
    return 64 if scale.quick else 2048


def body_cases(scale: Scale, measured: Any, servers: tuple[str, ...]) -> list[Case]:
    """2 GB either way, once."""
    return [
        Case(
            f"{way} 2 GB",
            {"mode": "body", "way": way},
            partial(measured, way=way, blocks=gigabytes(scale)),
            servers,
            6.0,
            rounds=1,
        )
        for way in ("download", "upload")
    ]


def http(scale: Scale) -> Plan:
    """Servers, driven by wrk."""
    seconds = scale.seconds * STRETCH

    def case(label: str, servers: tuple[str, ...], connections: int = CONNECTIONS, **options: Any) -> Case:
        measured = partial(measure_http.requests, connections=connections, seconds=seconds, **options)
        parameters = {"mode": "wrk", "connections": connections}
        return Case(label, parameters, measured, servers, seconds + STARTING)

    cases = (
        case("small", SERVERS, path="/small"),
        case("large", LARGE_SERVERS, LARGE_CONNECTIONS, path="/large"),
        case("upload", UPLOAD_SERVERS, LARGE_CONNECTIONS, path="/upload", upload=len(BLOCK)),
        case("close", SERVERS, path="/small", close=True),
        *body_cases(scale, measure_http.bodies, OURS),
    )
    return Plan("http", "HTTP servers", cases, scale.rounds, {"seconds": seconds})


def small_cases(scale: Scale, servers: tuple[str, ...], proxies: tuple[str, ...]) -> tuple[Case, ...]:
    """Small answers by servers, and through proxies: over kept connections, and over a fresh one for each."""
    seconds = scale.seconds * STRETCH
    served = partial(measure_http.requests, connections=CONNECTIONS, seconds=seconds, path="/small")
    through = Proxied(CONNECTIONS, seconds).requests
    shared = {"mode": "wrk", "connections": CONNECTIONS}
    return (
        Case("small", shared, served, servers, seconds + STARTING),
        Case("proxied", shared, partial(through, path="/small"), proxies, seconds + PROXY_STARTING),
        Case("proxied close", shared, partial(through, path="/small", close=True), proxies, seconds + PROXY_STARTING),
    )


def flat_cases(scale: Scale) -> tuple[Case, ...]:
    """WSGI servers, clients, proxies with an access log, and proxies that edit a field of each request."""
    seconds = scale.seconds * STRETCH
    shared = {"mode": "wrk", "connections": CONNECTIONS}

    def both(*names: str) -> tuple[str, ...]:
        return (*names, names[0] + PURE)

    def served(label: str, servers: tuple[str, ...], connections: int, **options: Any) -> Case:
        measured = partial(measure_http.requests, connections=connections, seconds=seconds, **options)
        parameters = {"mode": "wrk", "connections": connections}
        return Case(label, parameters, measured, servers, seconds + STARTING)

    def proxied(label: str, *servers: str, **options: Any) -> Case:
        measured = partial(Proxied(CONNECTIONS, seconds).requests, path="/small", **options)
        return Case(label, shared, measured, both(*servers), seconds + PROXY_STARTING)

    wsgi = both("wsgi_server", "wsgi_granian", "wsgi_bjoern", "http_pywsgi", "http_uvicorn")
    clients = both("client_greensock", "client_geventhttpclient", "client_useragent")
    asked = partial(measure_http.client_requests, connections=ASKING, seconds=seconds)
    return (
        served("wsgi small", wsgi, CONNECTIONS, path="/small"),
        served("wsgi upload", wsgi, LARGE_CONNECTIONS, path="/upload", upload=len(BLOCK)),
        served("wsgi large", wsgi, LARGE_CONNECTIONS, path="/large"),
        Case("client", {"mode": "client", "connections": ASKING}, asked, clients, seconds + STARTING),
        proxied("proxied, logging", "proxy_greensock_log", "proxy_nginx_log"),
        proxied("proxied, edited", "proxy_greensock_edit", "proxy_nginx_lua", "proxy_nginx"),
    )


def proxy(scale: Scale) -> Plan:
    """Reverse proxies, driven by wrk and at a fixed rate."""
    seconds = scale.seconds * STRETCH
    measured = Proxied(CONNECTIONS, seconds)

    def case(label: str, estimate: float, measure: Any, connections: int = CONNECTIONS, **options: Any) -> Case:
        parameters = {"mode": label.split()[0], "connections": connections}
        return Case(label, parameters, partial(measure, **options), PROXIES, estimate + PROXY_STARTING)

    uploads = partial(measured.requests, connections=LARGE_CONNECTIONS, path="/upload", upload=len(BLOCK))
    cases = (
        case("small", seconds, measured.requests, path="/small"),
        case("upload", seconds, uploads, LARGE_CONNECTIONS),
        case("close", seconds, measured.requests, path="/small", close=True),
        case("latency at 50%", 2 * (seconds + scale.warmup), measured.latency, share=0.5, warmup=scale.warmup),
        case("download 256 MB", 1.0, measured.download, 1, blocks=16 if scale.quick else 256),
        *body_cases(scale, measured.bodies, PROXIES),
    )
    return Plan("proxy", "Reverse proxies", cases, scale.rounds, {"seconds": seconds, "share": 0.5})
