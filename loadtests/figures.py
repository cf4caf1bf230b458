"""The figures that greensock aims at, and whether samples reach them. No I/O: samples in, rows out.

A ratio is taken within each round, where both servers were measured within seconds of each other, and their
median is compared with the target: the machine's drift from round to round cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from loadtests.results import Sample, by_round, spread

__all__ = [
    "COMPILED_TARGETS",
    "FLAT_TARGETS",
    "HANDSHAKES_TARGETS",
    "HELD_TARGETS",
    "HERD_TARGETS",
    "HTTP_TARGETS",
    "LOCUST_TARGETS",
    "PROXY_TARGETS",
    "RELOAD_TARGETS",
    "TARGETS",
    "TLS_TARGETS",
    "UDP_TARGETS",
    "WEBSOCKET_TARGETS",
    "Row",
    "Target",
    "assess",
]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of ``server`` in ``case``, divided by that of ``rival`` if any, is to be at most ``most``."""

    title: str
    case: str
    server: str
    value: str
    most: float
    rival: str | None = None
    #: The rival's case where it is another one.
    rival_case: str | None = None
    unit: str = "x"
    #: The figure is to be at least ``most``, not at most.
    at_least: bool = False
    #: What it is more than the rival's, and not by how many times.
    is_difference: bool = False


UPCALLS, BLOCKING = "greensock_upcalls", "greensock_blocking"
GEVENT, UVLOOP, STREAMS = "gevent_streamserver", "uvloop_protocol", "uvloop_streams"
CPU = "server_us"

TARGETS: tuple[Target, ...] = (
    Target("echo by upcalls, 64 connections, of gevent", "echo 64", UPCALLS, CPU, 0.40, GEVENT),
    Target("echo by upcalls, 1,000 connections, of gevent", "echo 1000", UPCALLS, CPU, 0.40, GEVENT),
    Target("echo by upcalls, 64 connections, of uvloop Protocol", "echo 64", UPCALLS, CPU, 1.10, UVLOOP),
    Target("echo by upcalls, 1,000 connections, of uvloop Protocol", "echo 1000", UPCALLS, CPU, 1.10, UVLOOP),
    Target("echo, blocking, 64 connections, of gevent", "echo 64", BLOCKING, CPU, 0.50, GEVENT),
    Target("echo, blocking, 1,000 connections, of gevent", "echo 1000", BLOCKING, CPU, 0.50, GEVENT),
    Target("echo, blocking, 64 connections, of uvloop streams", "echo 64", BLOCKING, CPU, 0.95, STREAMS),
    Target("echo, blocking, 1,000 connections, of uvloop streams", "echo 1000", BLOCKING, CPU, 0.95, STREAMS),
    Target("connect + echo + close, upcalls, of gevent", "shortlived 64", UPCALLS, CPU, 0.50, GEVENT),
    Target("connect + echo + close, upcalls, of uvloop Protocol", "shortlived 64", UPCALLS, CPU, 0.85, UVLOOP),
    Target("idle connection by upcalls, 15,000 of them", "idle memory 15000", UPCALLS, "kb", 0.8, unit="kB"),
    Target("echo by upcalls, 15,000 against 64", "echo 15000", UPCALLS, CPU, 1.5, UPCALLS, "echo 64"),
)

PYWSGI, UVICORN, GUNICORN = "http_pywsgi", "http_uvicorn", "http_gunicorn"
GROWTH, SPEED, ADDED = "peak_growth_mib", "mib_per_second", "added_p99_ms"
#: MiB that the peak of memory may go up by when 2 GB go through after 16 MB: constant, but for the allocator.
CONSTANT = 8.0


def body_targets(server: str, title: str) -> tuple[Target, ...]:
    """Constant memory either way."""
    return tuple(
        Target(f"{title}: memory that a 2 GB {way} adds", f"{way} 2 GB", server, GROWTH, CONSTANT, unit="MiB")
        for way in ("download", "upload")
    )


HTTP_TARGETS: tuple[Target, ...] = (
    Target("HTTPServer, CPU for a small answer, of pywsgi", "small", "http_server", CPU, 0.35, PYWSGI),
    Target("HTTPServer, CPU for a small answer, of uvicorn", "small", "http_server", CPU, 1.0, UVICORN),
    Target("WSGIServer, CPU for a small answer, of pywsgi", "small", "wsgi_server", CPU, 0.5, PYWSGI),
    Target(
        "WSGIServer, CPU for a small answer, of gunicorn's gevent worker", "small", "wsgi_server", CPU, 1.0, GUNICORN
    ),
    *body_targets("http_server", "HTTPServer"),
    *body_targets("wsgi_server", "WSGIServer"),
    *body_targets("http_client", "HTTPClient"),
)

PROXY, NGINX, AIOHTTP = "proxy_greensock", "proxy_nginx", "proxy_aiohttp"
PROXY_TARGETS: tuple[Target, ...] = (
    Target("CPU for a small answer, of nginx", "small", PROXY, CPU, 2.5, NGINX),
    Target("CPU for a small answer, of aiohttp on uvloop", "small", PROXY, CPU, 0.25, AIOHTTP),
    Target("speed of a 256 MB download, of nginx", "download 256 MB", PROXY, SPEED, 0.5, NGINX, at_least=True),
    Target("p99 added at half the top rate", "latency at 50%", PROXY, ADDED, 2.0, unit="ms"),
    *body_targets(PROXY, "the proxy"),
)


EPOLL = "epoll"


def compiled_targets() -> tuple[Target, ...]:
    """What the compiled engine aims at; and the same of the one in Python, to be seen beside it."""
    asked = [
        *(
            Target(f"echo by upcalls, {count:,} connections, of {title}", f"echo {count}", UPCALLS, CPU, most, rival)
            for count, title, most, rival in (
                (64, "uvloop Protocol", 0.92, UVLOOP),
                (64, "bare C", 1.12, EPOLL),
                (1000, "uvloop Protocol", 0.92, UVLOOP),
                (1000, "bare C", 1.12, EPOLL),
                (15000, "uvloop Protocol", 0.95, UVLOOP),
            )
        ),
        *(
            Target(f"echo, blocking, {count:,} connections, of {title}", f"echo {count}", BLOCKING, CPU, most, rival)
            for count in (64, 1000)
            for title, most, rival in (("gevent", 0.47, GEVENT), ("uvloop Protocol", 1.20, UVLOOP))
        ),
        Target("connect + echo + close, 64 at a time, of uvloop", "shortlived 64", UPCALLS, CPU, 0.90, UVLOOP),
        Target("connect + echo + close, 64 at a time, of bare C", "shortlived 64", UPCALLS, CPU, 1.25, EPOLL),
        Target("connect + echo + close, one at a time, of uvloop", "shortlived 1", UPCALLS, CPU, 1.0, UVLOOP),
        Target("flood of 64-byte reads, of uvloop", "flood 64", UPCALLS, CPU, 0.80, UVLOOP),
        Target("memory of an idle connection", "idle memory 15000", UPCALLS, "kb", 0.45, unit="kB"),
        Target("HTTPServer, small answer, of uvicorn", "small", "http_server", CPU, 0.45, UVICORN),
        Target("HTTPServer, small answer, of nginx", "small", "http_server", CPU, 1.4, "http_nginx"),
        Target("proxy, small answer, of nginx", "proxied", PROXY, CPU, 1.6, NGINX),
        Target("proxy, small answer, of aiohttp on uvloop", "proxied", PROXY, CPU, 0.20, AIOHTTP),
        Target("proxy, a fresh connection for each, of nginx", "proxied close", PROXY, CPU, 1.8, NGINX),
    ]
    return with_pure(asked)


def with_pure(asked: Sequence[Target]) -> tuple[Target, ...]:
    """Return the targets, each with the same of the engine in Python behind it."""
    pure = (replace(each, title=each.title + "; in Python", server=f"{each.server}_pure") for each in asked)
    return tuple(target for both in zip(asked, pure, strict=True) for target in both)


COMPILED_TARGETS = compiled_targets()

WSGI = "wsgi_server"
FLAT_TARGETS = with_pure(
    [
        Target("sixteen messages with a framer, of uvloop", "framed 16 x 64", UPCALLS, CPU, 0.50, UVLOOP),
        Target("WSGIServer, small answer, of granian", "wsgi small", WSGI, CPU, 0.80, "wsgi_granian"),
        Target("WSGIServer, small answer, of bjoern", "wsgi small", WSGI, CPU, 1.5, "wsgi_bjoern"),
        *(
            Target(f"WSGIServer, {way} of 1 MB, of {rival.partition('_')[2]}", f"wsgi {case}", WSGI, CPU, 1.0, rival)
            for case, way in (("upload", "upload"), ("large", "answer"))
            for rival in (PYWSGI, UVICORN)
        ),
        Target("HTTPClient, of geventhttpclient's", "client", "client_greensock", CPU, 0.65, "client_geventhttpclient"),
        Target("HTTPClient, of its UserAgent", "client", "client_greensock", CPU, 0.45, "client_useragent"),
        Target(
            "proxy with an access log, of nginx with one", "proxied, logging", f"{PROXY}_log", CPU, 1.6, f"{NGINX}_log"
        ),
        Target("proxy that edits, of nginx with Lua", "proxied, edited", f"{PROXY}_edit", CPU, 0.7, f"{NGINX}_lua"),
    ]
)

WEBSOCKETS = "websocket_websockets"
WEBSOCKET_TARGETS: tuple[Target, ...] = (
    *(
        Target(
            f"{title}, {count:,} connections, of websockets on uvloop", f"echo {count}", server, CPU, most, WEBSOCKETS
        )
        for title, server, most in (
            ("echo by upcalls", "websocket_upcalls", 0.35),
            ("echo, blocking", "websocket_blocking", 0.45),
            ("echo by wsgi.websocket", "websocket_wsgi", 0.45),
        )
        for count in (64, 1000)
    ),
    Target("memory of one at rest, by upcalls", "idle memory 2000", "websocket_upcalls", "kb", 5.0, unit="kB"),
)

UDP = "udp_greensock"
UDP_TARGETS: tuple[Target, ...] = (
    Target("UDP echo, 64 clients, of gevent", "udp echo 64", UDP, CPU, 0.30, "udp_gevent"),
    Target("UDP echo, 64 clients, of uvloop", "udp echo 64", UDP, CPU, 1.05, "udp_uvloop"),
    Target("a sink of 1,200-byte datagrams in bursts, of uvloop", "udp sink", UDP, CPU, 0.45, "udp_uvloop"),
)

LOCUST_TARGETS: tuple[Target, ...] = (
    Target(
        "HTTPUser, CPU of a request, of FastHttpUser's", "closed loop", "locust_greensock", CPU, 0.5, "locust_fasthttp"
    ),
)


TLS, TLS_UVLOOP, TLS_GEVENT, TLS_C = "tls_greensock", "tls_uvloop", "tls_gevent", "tls_epoll"
TLS_TARGETS: tuple[Target, ...] = (
    *(
        Target(f"echo, {count:,} connections, of {title}", f"echo {count}", TLS, CPU, most, rival)
        for count, of_c in ((64, 1.15), (1000, 1.20))
        for title, rival, most in (
            ("gevent", TLS_GEVENT, 0.60),
            ("uvloop Protocol", TLS_UVLOOP, 1.05),
            ("C", TLS_C, of_c),
        )
    ),
    *(
        Target(f"{case}, of {title}", case, TLS, CPU, most, rival)
        for case in ("handshake P-256", "handshake P-256 resumed", "handshake RSA-2048")
        for title, rival, most in (("uvloop Protocol", TLS_UVLOOP, 0.95), ("C", TLS_C, 1.15))
    ),
    Target("idle connection", "idle memory 2000", TLS, "kb", 16.0, unit="kB"),
    *(
        Target(f"download, writes of {size}, of uvloop Protocol", f"download {size}", TLS, CPU, 1.0, TLS_UVLOOP)
        for size in ("16 KiB", "64 KiB")
    ),
    Target(
        *("HTTPS request on a kept connection through the proxy, more than HTTP", "proxied", "proxy_greensock_tls"),
        *(CPU, 6.0, "proxy_greensock"),
        unit="us",
        is_difference=True,
    ),
    Target(
        *("connect + exchange + close as a client, of gevent.socket", "connecting", "connecting_greensock"),
        *(CPU, 0.50, "connecting_gevent"),
    ),
)
SITE, TLS_NGINX = "tls_site", "tls_nginx"
#: What others may wait longer in a flood, of what they wait in the quiet; no issue sets it.
SLOWED = 2.0
HANDSHAKES_TARGETS: tuple[Target, ...] = tuple(
    Target(f"{title} in a flood, of the same in the quiet, {which}", "flooded", server, value, SLOWED, server, "quiet")
    for which, server in (("greensock", SITE), ("nginx", TLS_NGINX))
    for title, value in (
        ("an answer on a kept connection, p50", "p50_us"),
        ("an answer on a kept connection, p99", "p99_us"),
        ("a fresh connection and its answer, p50", "fresh_p50_us"),
        ("a fresh connection and its answer, p99", "fresh_p99_us"),
    )
)

#: With many processes: the server of ``greensock run``, and the proxy.
WORKERS = (("greensock run", "workers_http"), ("greensock proxy", "workers_proxy"))
HELD_TARGETS: tuple[Target, ...] = tuple(
    Target(f"{title}: connections held at once", "held 100000", server, "opened", 100_000, unit="", at_least=True)
    for title, server in WORKERS
)
RELOAD_TARGETS: tuple[Target, ...] = tuple(
    Target(f"{title}: {what}", "reload", server, value, most, unit=unit)
    for title, server in WORKERS
    for what, value, most, unit in (
        ("p99 that a reload adds", "added_p99_ms", 20.0, "ms"),
        ("requests that reloads lose", "lost", 0.0, ""),
    )
)
HERD = "workers_http"
HERD_TARGETS: tuple[Target, ...] = (
    *(
        Target(
            f"CPU of a request, {count} workers, of one{where}", f"{count} workers", HERD, value, 1.08, HERD, "1 worker"
        )
        for where, value in (
            ("", "kept_us"),
            ("; on one core", "packed_us"),
            ("; on one core, 64 connections each", "packed_each_us"),
        )
        for count in (2, 4)
    ),
    Target(
        *("gunicorn with greensock's worker, CPU of a request, of its gevent worker", "gunicorn", "workers_gunicorn"),
        *(CPU, 0.20, GUNICORN),
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A target beside what was measured: median, least and greatest of the rounds; None: not measured."""

    title: str
    unit: str
    most: float
    measured: float | None
    least: float | None
    greatest: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.most if self.at_least else self.measured <= self.most


def ratios(samples: Sequence[Sample], target: Target) -> list[float]:
    own = by_round(samples, target.case, target.server, target.value)
    if target.rival is None:
        return list(own.values())
    rival = by_round(samples, target.rival_case or target.case, target.rival, target.value)
    pairs = [(own[number], rival[number]) for number in own if rival.get(number)]
    return [one - other if target.is_difference else one / other for one, other in pairs]


def row(target: Target, found: list[float]) -> Row:
    middle, least, greatest = spread(found) if found else (None, None, None)
    return Row(target.title, target.unit, target.most, middle, least, greatest, target.at_least)


def growth_row(samples: Sequence[Sample]) -> Row:
    """The growth from 64 to 15,000 connections is to be no worse than uvloop's: a target that is measured."""
    title = "the same growth, against uvloop Protocol's"
    own = ratios(samples, Target(title, "echo 15000", UPCALLS, CPU, 0, UPCALLS, "echo 64"))
    rival = ratios(samples, Target(title, "echo 15000", UVLOOP, CPU, 0, UVLOOP, "echo 64"))
    most = median(rival) if rival else float("nan")
    return row(Target(title, "", UPCALLS, CPU, most), own if rival else [])


def assess(samples: Sequence[Sample], targets: Sequence[Target] = TARGETS) -> list[Row]:
    """Return a row for every target, and for those of the engine its growth beside uvloop's."""
    rows = [row(target, ratios(samples, target)) for target in targets]
    return [*rows, growth_row(samples)] if targets is TARGETS else rows
