"""One measurement of one HTTP server, client or proxy: start it, check an answer, drive it, return numbers, end it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loadtests import http_load, measure_tls, transfer, wrk
from loadtests.generator import Failed, launched
from loadtests.measure import Values
from loadtests.peers.http_common import BLOCK, SMALL
from loadtests.process import GENERATOR_CORES, PURE, SERVER_CORES, Group, Peer, environment
from loadtests.servers import missing
from loadtests.wrk import Load

__all__ = ["Proxied", "bodies", "client_bodies", "client_requests", "connecting", "requests"]

#: Blocks (1 MiB) that go through before memory is measured for the first time.
WARMUP_BLOCKS = 16
MIB = 2**20
#: Seconds that a client may take for its bodies.
PATIENCE = 120.0
#: One answer as each kind of request should have it.
EXPECTED = {"/small": SMALL, "/large": BLOCK}


def failures(found: dict[str, int], error: str = "") -> Values:
    kept = {kind: count for kind, count in found.items() if count}
    return {"failed": sum(kept.values()), "failures": kept, "last_error": error}


def wrong(error: Exception) -> Values:
    """Return the sample of a measurement that was not made, as an answer was not right."""
    return {"messages": 0, **failures({"wrong answer": 1}, str(error))}


def outcome(load: Load, cpu_ns: int, least: int) -> Values:
    """Return what wrk measured; each answer has ``least`` bytes or more."""
    short = load.requests > 0 and load.bytes < load.requests * least
    return {
        "messages": load.requests,
        "seconds": load.seconds,
        "rate": load.requests / load.seconds,
        "server_us": cpu_ns / load.requests / 1e3 if load.requests else None,
        "server_load": cpu_ns / 1e9 / load.seconds,
        "generator_load": load.cpu_seconds / load.seconds,
        "latency": dict(load.latency),
        **failures({**load.errors, "short": int(short), "none": int(not load.requests)}),
    }


def drive(
    server: Group,
    path: str,
    *,
    connections: int,
    seconds: float,
    close: bool = False,
    upload: int = 0,
    tls: bool = False,
) -> Values:
    """Check one answer of the server, then have wrk at it."""
    expected = b"%d" % upload if upload else EXPECTED[path]
    try:
        transfer.fetch(server.address, path, expected, close=close, body=b"u" * upload if upload else None, tls=tls)
    except (transfer.WrongAnswer, OSError) as error:
        return wrong(error)
    before = server.cpu_ns()
    load = wrk.run(
        f"http{'s' * tls}://{server.address}{path}",
        cores=GENERATOR_CORES,
        connections=connections,
        seconds=seconds,
        close=close,
        upload=upload,
    )
    return outcome(load, server.cpu_ns() - before, len(expected))


def requests(name: str, *, path: str, **options: Any) -> Values:
    """Requests in a closed loop: rate, CPU of the server for each, latency."""
    with Group(name) as server:
        return drive(server, path, **options)


def transferred(server: Group, way: str, blocks: int) -> Values:
    """Send many blocks through, and return the speed and how far the peak of memory went up."""
    move = transfer.download if way == "download" else transfer.upload
    try:
        move(server.address, WARMUP_BLOCKS)
        server.forget_peak()
        before, cpu = server.peak(), server.cpu_ns()
        seconds = move(server.address, blocks)
        spent, after = server.cpu_ns() - cpu, server.peak()
    except (transfer.WrongAnswer, OSError) as error:
        return wrong(error)
    return {**moved(blocks, seconds, before, after), "server_us": spent / blocks / 1e3}


def moved(blocks: int, seconds: float, before: int, after: int) -> Values:
    return {
        "messages": 1,
        "blocks": blocks,
        "mib_per_second": blocks * len(BLOCK) / MIB / seconds,
        "peak_before_mib": before / MIB,
        "peak_after_mib": after / MIB,
        "peak_growth_mib": (after - before) / MIB,
        **failures({}),
    }


def bodies(name: str, *, way: str, blocks: int) -> Values:
    """One long body to or from a server; its peak of memory before and after."""
    if name == "http_client":
        return client_bodies(way=way, blocks=blocks)
    with Group(name) as server:
        return transferred(server, way, blocks)


def client_requests(name: str, *, connections: int, seconds: float) -> Values:
    """Requests of a client, in a closed loop at nginx: its CPU time for each."""
    kind = name.removesuffix(PURE).removeprefix("client_")
    with Group(origin_name(), cores=GENERATOR_CORES) as origin:
        return of_client(name, ["client_small", kind, origin.address], connections, seconds)


def connecting(name: str, *, connections: int, seconds: float) -> Values:
    """Connections that a client makes, exchanges 64 bytes on and closes, at the echo in C: its CPU time for each."""
    with Peer("epoll", "--mode", "echo", cores=GENERATOR_CORES) as echo:
        return of_client(name, ["connecting", name.removeprefix("connecting_"), echo.address], connections, seconds)


def of_client(name: str, words: list[str], connections: int, seconds: float) -> Values:
    """Run a client of ``loadtests/peers``, and return what it says."""
    command = [sys.executable, "-m", f"loadtests.peers.{words[0]}", *words[1:]]
    arguments = [*command, "--connections", str(connections), "--seconds", str(seconds)]
    with launched(arguments, SERVER_CORES, environment(name)) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed("the client did not end") from None
    if process.returncode != 0:
        raise Failed(errors.strip() or f"the client ended with {process.returncode}")
    found = json.loads(output)
    return {
        "messages": found["asked"],
        "seconds": found["seconds"],
        "rate": found["asked"] / found["seconds"],
        "server_us": found["cpu"] * 1e6 / found["asked"] if found["asked"] else None,
        **failures({"wrong": found["wrong"]}),
    }


def client_bodies(*, way: str, blocks: int) -> Values:
    """The same for greensock's HTTPClient, at greensock's HTTPServer."""
    command = [sys.executable, "-m", "loadtests.peers.http_client", way]
    with Group("http_server", cores=GENERATOR_CORES) as origin:
        arguments = [*command, origin.address, "--warmup", str(WARMUP_BLOCKS), "--blocks", str(blocks)]
        with launched(arguments, SERVER_CORES) as process:
            try:
                output, errors = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise Failed("the client did not end") from None
    if process.returncode != 0:
        raise Failed(errors.strip() or f"the client ended with {process.returncode}")
    found = json.loads(output)
    if not found["right"]:
        return wrong(transfer.WrongAnswer(f"{way}: not the bytes that were sent"))
    return moved(blocks, found["seconds"], found["before"], found["after"])


# -- proxies


def origin_name() -> str:
    """Return the fastest origin that is installed."""
    return "http_server" if missing("http_nginx") else "http_nginx"


def proxy(name: str, upstream: str, log: str = "none") -> Group:
    """Return the proxy, not yet started, that forwards to the upstream; ``log`` is where greensock's logs to."""
    if name.removesuffix(PURE) in ("proxy_greensock", "proxy_greensock_log", "proxy_greensock_tls"):
        command = [sys.executable, "-m", "examples.reverse_proxy", *["--tls-self-signed"] * is_tls(name)]
        return Group(name, "--upstream", f"http://{upstream}", "--log", log, command=command, bind="--listen")
    more = {**environment(name), **measure_tls.named_files()} if is_tls(name) else None
    return Group(name, "--upstream", upstream, environment=more)


def is_tls(name: str) -> bool:
    """Whether a proxy speaks TLS with its clients."""
    return name.endswith("_tls")


class Proxied:
    """Measurements of proxies, each with an origin of its own on the load's core.

    Owns the top rate of each proxy: the greatest found so far.
    """

    def __init__(self, connections: int, seconds: float) -> None:
        self._connections = connections
        self._seconds = seconds
        self._top: dict[str, float] = {}

    @contextmanager
    def _started(self, name: str, origin: str | None = None, *serve: str) -> Iterator[tuple[Group, Group]]:
        with (
            tempfile.TemporaryDirectory() as directory,
            Group(origin or origin_name(), *serve, cores=GENERATOR_CORES) as upstream,
            proxy(name, upstream.address, f"{directory}/log" if name.endswith("_log") else "none") as server,
        ):
            yield server, upstream

    def requests(self, name: str, *, path: str, upload: int = 0, close: bool = False, connections: int = 0) -> Values:
        """Requests in a closed loop through the proxy."""
        many = connections or self._connections
        origin = "http_server" if upload else None  # nginx answers an upload before it has read it, or not at all
        with self._started(name, origin) as (server, _):
            found = drive(
                server, path, connections=many, seconds=self._seconds, upload=upload, close=close, tls=is_tls(name)
            )
        if path == "/small" and not close and not found["failed"]:
            self._top[name] = max(found["rate"], self._top.get(name, 0.0))
        return found

    def download(self, name: str, *, blocks: int) -> Values:
        """One long body through the proxy from an origin that sends it from a file."""
        with self._started(name, None, "--long", str(blocks)) as (server, upstream):
            try:
                direct = transfer.download(upstream.address, blocks)
                transfer.fetch(server.address, "/large", BLOCK)
                before = server.cpu_ns()
                seconds = transfer.download(server.address, blocks)
            except (transfer.WrongAnswer, OSError) as error:
                return wrong(error)
            spent = server.cpu_ns() - before
        return {
            "messages": 1,
            "blocks": blocks,
            "mib_per_second": blocks * len(BLOCK) / MIB / seconds,
            "direct_mib_per_second": blocks * len(BLOCK) / MIB / direct,
            "server_us": spent / blocks / 1e3,
            **failures({}),
        }

    def bodies(self, name: str, *, way: str, blocks: int) -> Values:
        """A very long body through the proxy either way; the proxy's peak of memory before and after."""
        with self._started(name, "http_server") as (server, _):
            return transferred(server, way, blocks)

    def latency(self, name: str, *, share: float, warmup: float) -> Values:
        """Latency at a share of the proxy's own top rate, and at the same rate without the proxy."""
        if name not in self._top:
            self.requests(name, path="/small")
        rate = self._top.get(name, 1000.0) * share
        with self._started(name) as (server, upstream):
            measured: dict[str, http_load.OpenLoad] = {}
            for way, address in {"direct": upstream.address, "proxied": server.address}.items():
                measured[way] = http_load.run(
                    address,
                    "/small",
                    SMALL,
                    cores=GENERATOR_CORES,
                    connections=self._connections,
                    rate=rate,
                    seconds=self._seconds,
                    warmup=warmup,
                )
        direct, proxied = measured["direct"], measured["proxied"]
        kinds = {f"{way} {kind}": count for way, each in measured.items() for kind, count in each.failures.items()}
        return {
            "messages": proxied.answered,
            "offered": rate,
            "latency": dict(proxied.latency),
            "direct_latency": dict(direct.latency),
            "added_p99_ms": (proxied.latency["p99_us"] - direct.latency["p99_us"]) / 1e3,
            **failures(kinds),
        }
