"""The load tests of HTTP: every server and proxy takes part in a tiny run; what is wrong is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st
from served import once

from greensock.http import HTTPServer, Response
from loadtests import (
    experiments,
    figures,
    generator,
    held,
    http_load,
    measure_http,
    results,
    tables,
    transfer,
    websocket,
    workers,
    wrk,
)
from loadtests.peers.http_common import BLOCK, SMALL, verify
from loadtests.plan import Scale
from loadtests.process import GENERATOR_CORES, ROOT, Group, StartError, group_of
from loadtests.servers import HTTP, PROXIES, missing

#: Seconds: each tiny run takes a minute on two idle cores.
pytestmark = [pytest.mark.timeout(600), once]

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")


def bench(name: str, output: Path, *arguments: str) -> dict:
    """Run a tiny experiment and return its results."""
    command = [sys.executable, "-W", "error", "-m", "loadtests.bench", name, "--quick", "--output", str(output)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return results.load(output, name)


@needs_wrk
@pytest.mark.parametrize(("name", "kind"), [("http", HTTP), ("proxy", PROXIES)])
def test_all_that_is_installed_takes_part(name, kind, tmp_path):
    # Long enough that slow ones end a request, too. The other cases are in the tiny run, of fewer servers.
    content = bench(name, tmp_path, "--seconds", "0.3", "--rounds", "1", "--cases", "small")
    there = {server for server in kind if missing(server) is None}
    plan = experiments.PLANS[name](Scale(rounds=1, quick=True))
    expected = {(case.label, server) for case in plan.cases for server in case.servers}
    expected = {(case, server) for case, server in expected if case == "small" and server in there}
    assert {(sample["case"], sample["server"]) for sample in content["samples"]} == expected
    assert not [sample for sample in content["samples"] if sample["failed"]]
    assert set(content["skipped"]) == set(kind) - there
    assert content["versions"]["wrk"]
    for sample in content["samples"]:
        assert sample["messages"] > 0
        assert sample.get("server_us", 1) > 0
    assert "Not measured" not in tables.table(f"{name}-cpu", tmp_path)


def test_what_is_not_installed_is_said_in_the_table():
    content = {"samples": [], "skipped": {"http_haproxy": "haproxy"}}
    table = tables.cases_table({"small": ("100 bytes", "rate"), "close": ("close", "rate")}, content)
    assert [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")] == [
        "HAProxy",
        "no haproxy here",
        "-",
    ]


# -- figures


def samples_of(case: str, **values: list[dict]) -> list[dict]:
    return [
        {"case": case, "server": server, "round": number, "failed": 0, **each}
        for server, found in values.items()
        for number, each in enumerate(found)
    ]


@pytest.mark.parametrize(("ours", "met"), [(0.34, True), (0.35, True), (0.36, False)])
def test_at_most(ours, met):
    samples = samples_of("small", http_server=[{"server_us": ours}], http_pywsgi=[{"server_us": 1.0}])
    assert figures.assess(samples, figures.HTTP_TARGETS)[0].met is met


@pytest.mark.parametrize(("ours", "met"), [(0.4, False), (0.5, True), (2.0, True)])
def test_at_least(ours, met):
    speeds = {"proxy_greensock": [{"mib_per_second": ours}], "proxy_nginx": [{"mib_per_second": 1.0}]}
    rows = figures.assess(samples_of("download 256 MB", **speeds), figures.PROXY_TARGETS)
    (row,) = [row for row in rows if row.at_least]
    assert row.met is met
    content = {"samples": samples_of("download 256 MB", **speeds)}
    assert "at least 0.50 x" in tables.asked_table(figures.PROXY_TARGETS, content)


# -- one exchange


class Odd(HTTPServer):
    """Answers what the path says."""

    def handle_request(self, request):
        kind = request.path.lstrip("/").partition("/")[0]
        if request.method == "POST":
            return Response(verify(request.body))
        changed = bytearray(BLOCK)
        changed[5000] ^= 1
        answers = {
            "small": Response(SMALL),
            "other": Response(SMALL[:-1] + b"?"),
            "short": Response(SMALL[:-1]),
            "chunks": Response(iter([SMALL])),
            "missing": Response(SMALL, status=404),
            "stream": Response(bytes(BLOCK + changed)),
        }
        return answers[kind]


@pytest.fixture
def odd(serve):
    host, port = serve(Odd).address
    return f"{host}:{port}"


def test_a_right_answer(odd):
    transfer.fetch(odd, "/small", SMALL)
    transfer.fetch(odd, "/small", SMALL, close=True)
    transfer.fetch(odd, "/verify", b"3", body=BLOCK[:3])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/other", "100 bytes"),
        ("/short", "99 bytes"),
        ("/chunks", "no Content-Length"),
        ("/missing", "HTTP/1.1 404"),
    ],
)
def test_a_wrong_answer(path, text, odd):
    with pytest.raises(transfer.WrongAnswer, match=text):
        transfer.fetch(odd, path, SMALL)


def test_a_byte_that_differs_in_a_download(odd):
    with pytest.raises(transfer.WrongAnswer, match="block 1 is not as it was sent"):
        transfer.download(odd, 2)
    with pytest.raises(transfer.WrongAnswer, match="not 3 blocks"):
        transfer.download(odd, 3)


@pytest.mark.parametrize("size", [1, 65536, len(BLOCK), len(BLOCK) + 1, 3 * len(BLOCK)])
def test_uploads_are_verified(size):
    data = BLOCK * 4

    def pieces(content: bytes) -> list[bytes]:
        return [content[at : at + size] for at in range(0, len(content), size)] if size > 1 else [content[:1]]

    right = pieces(data)
    assert verify(right) == b"%d" % sum(map(len, right))
    changed = bytearray(data)
    changed[0] ^= 1
    assert verify(pieces(bytes(changed))).startswith(b"wrong")


def test_an_upload_that_is_not_what_was_sent(odd, monkeypatch):
    monkeypatch.setattr(transfer, "BLOCK", BLOCK[1:] + BLOCK[:1])
    with pytest.raises(transfer.WrongAnswer, match="the server says b'wrong"):
        transfer.upload(odd, 1)


# -- wrk


@needs_wrk
def test_wrk_counts_what_fails(odd):
    load = wrk.run(f"http://{odd}/missing", cores=GENERATOR_CORES, connections=2, seconds=0.2)
    assert load.errors["status"] == load.failed == load.requests > 0
    assert measure_http.outcome(load, 1, 100)["failed"] == load.requests


@needs_wrk
def test_wrk_of_nobody():
    with pytest.raises(generator.Failed, match="unable to connect"):
        wrk.run("http://127.0.0.1:1/", cores=GENERATOR_CORES, connections=2, seconds=0.1)


def test_a_run_without_an_answer_is_a_failure():
    load = wrk.Load(0, 1.0, 0, {"status": 0}, {}, 0.1)
    assert measure_http.outcome(load, 1, 100)["failures"] == {"none": 1}


def test_answers_that_were_too_short_are_a_failure():
    load = wrk.Load(10, 1.0, 999, {"status": 0}, {}, 0.1)
    assert measure_http.outcome(load, 1, 100)["failures"] == {"short": 1}
    assert measure_http.outcome(load, 1, 99)["failed"] == 0


def test_wrk_that_says_nothing():
    with pytest.raises(generator.Failed, match="unable to connect"):
        wrk.parse("unable to connect\n", 0.0)


# -- the open loop


def open_loop(address: str, path: str, **options: object) -> http_load.OpenLoad:
    chosen = {"cores": GENERATOR_CORES, "connections": 4, "rate": 500.0, "seconds": 0.4, "warmup": 0.1, **options}
    return http_load.run(address, path, SMALL, **chosen)


def test_an_open_loop_sends_what_is_due(odd):
    load = open_loop(odd, "/small")
    assert load.failed == 0
    assert load.sent == load.answered == pytest.approx(250, abs=1)
    assert load.latency["count"] == pytest.approx(200, abs=1)
    assert 0 < load.latency["p50_us"] <= load.latency["p99_us"] <= load.latency["max_us"]


@pytest.mark.parametrize(
    ("path", "kind"), [("/other", "body"), ("/short", "body"), ("/chunks", "body"), ("/missing", "status")]
)
def test_an_open_loop_finds_what_is_wrong(path, kind, odd):
    load = open_loop(odd, path)
    assert load.failures[kind] == 4, "each connection is used until its first wrong answer"
    assert load.answered == 0


class Stalls(HTTPServer):
    stalled, stall = 0, 0.3

    def handle_request(self, request):
        self.stalled += 1
        if self.stalled == 50:
            time.sleep(self.stall)  # every one of them waits, whether or not it has been sent
        return Response(SMALL)


def test_an_open_loop_charges_a_stall_to_all_that_waited(serve):
    host, port = serve(Stalls).address
    load = open_loop(f"{host}:{port}", "/small", connections=1, warmup=0)
    assert load.failed == 0
    assert load.latency["max_us"] >= Stalls.stall * 1_000_000
    assert load.latency["p50_us"] >= 20_000, "three in four were due meanwhile"


def test_an_open_loop_of_nobody():
    with pytest.raises(generator.Failed, match="connect: Connection refused"):
        http_load.run("127.0.0.1:1", "/", SMALL, cores=(), connections=1, rate=1, seconds=1, warmup=0)


def address_of(server: HTTPServer) -> str:
    host, port = server.address
    return f"{host}:{port}"


class Leaves(HTTPServer):
    """Answers a request in fifty not at all, and one in ten with Connection: close."""

    max_requests = 10
    asked = 0

    def handle_request(self, request):
        self.asked += 1
        if not self.asked % 50:
            request.connection.abort()
        return Response(SMALL)


def test_an_open_loop_goes_on_with_what_is_opened_anew(serve):
    server = serve(Leaves)
    began = []
    load = open_loop(
        address_of(server), "/small", slice_seconds=0.2, meanwhile=lambda: began.append(server.connections_alive)
    )
    assert load.failures == {"closed": 5, "status": 0, "body": 0, "timeout": 0}
    assert load.sent == load.answered + 5 == pytest.approx(250, abs=1)
    assert 20 <= load.opened_anew <= 30
    assert sum(each["count"] for each in load.slices) == load.latency["count"]
    assert len(load.slices) == 2
    assert len(began) == 1


# -- connections that are held


def held_at(server: HTTPServer, connections: int) -> held.Holding:
    return held.Holding(address_of(server), connections, 2, cores=())


def test_connections_are_held_and_what_is_lost_is_counted(serve):
    server = serve(Odd)
    with held_at(server, 5) as holding:
        holding.open()
        assert (holding.answered, holding.failures) == (5, {})
        assert workers.connected(address_of(server)) == 5
        for conn in server.connections[:2]:
            conn.abort()
        holding.close()
    assert (holding.answered, holding.failures) == (8, {"lost": 2})
    wait_until(lambda: not workers.connected(address_of(server)))


class Second(HTTPServer):
    """Is right once on each connection."""

    def handle_request(self, request):
        is_first = request.connection.requests == 1
        return Response(SMALL if is_first else SMALL[:-1] + b"?")


def test_held_connections_are_asked_once_more(serve):
    with held_at(serve(Second), 3) as holding:
        holding.open()
        holding.close()
    assert (holding.answered, holding.failures) == (3, {"body": 3})


def test_who_holds_and_cannot(serve):
    with pytest.raises(generator.Failed, match="16731 descriptors for each expected, and it may open 1024"):
        held.check_descriptors(100_000, 6, 1024)
    held.check_descriptors(100_000, 6, 20_000)
    with held.Holding("127.0.0.1:1", 2, 1, cores=()) as holding:
        holding.open()
    assert holding.failures == {"connect": 2}
    with held.Holding("nowhere:1", 2, 1, cores=()) as holding, pytest.raises(generator.Failed, match="two IPv4 addr"):
        holding.open()


# -- servers of several processes


FAMILY = """
import os, signal, socket
sock = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        sum(range(10000))
print("listening on 127.0.0.1:%d" % sock.getsockname()[1], flush=True)
signal.pause()
"""


def test_cpu_and_memory_are_those_of_all_processes_and_none_is_left():
    with Group("a family", command=[sys.executable, "-c", FAMILY]) as group:
        wait_until(lambda: len(group.pids()) == 2)
        before = group.cpu_ns()
        wait_until(lambda: group.cpu_ns() - before > 20_000_000)
        assert group.peak() > 2 * 2**20
        group.forget_peak()
        pids = group.pids()
    assert group_of(Path("/proc/self")) == os.getpgrp()
    wait_until(lambda: not any(state_of(pid) for pid in pids))


def state_of(pid: int) -> str:
    """Return what the process does; nothing if it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return state.strip("ZX")


def test_a_client_that_fails(monkeypatch):
    monkeypatch.setattr(measure_http, "PATIENCE", 20.0)
    with pytest.raises((generator.Failed, StartError)):
        measure_http.client_bodies(way="sideways", blocks=1)


# -- WebSocket


def test_the_key_of_rfc_6455():
    assert websocket.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_the_frames_of_rfc_6455():
    assert websocket.frame(1, b"Hello", mask=False) == bytes.fromhex("810548656c6c6f")
    assert websocket.masked(b"Hello", bytes.fromhex("37fa213d")) == bytes.fromhex("7f9f4d5158")


def reader(data: bytes):
    def read(count: int) -> bytes:
        nonlocal data
        taken, data = data[:count], data[count:]
        if len(taken) < count:
            raise EOFError
        return taken

    return read


@given(data=st.binary(max_size=300), mask=st.booleans(), kind=st.sampled_from([websocket.BINARY, websocket.CLOSE]))
def test_a_frame_comes_back(data, mask, kind):
    assert websocket.read_frame(reader(websocket.frame(kind, data, mask))) == (kind, data)


@pytest.mark.parametrize("size", [0, 125, 126, 65535])
def test_lengths_of_frames(size):
    assert websocket.read_frame(reader(websocket.frame(2, b"x" * size, mask=True))) == (2, b"x" * size)


def test_frames_that_are_not_taken():
    with pytest.raises(ValueError, match="65536 bytes"):
        websocket.frame(2, b"x" * 65536, mask=True)
    for head in (b"\x02\x00", b"\xc2\x00", b"\x82\x7f"):
        with pytest.raises(ValueError, match="a frame that begins with"):
            websocket.read_frame(reader(head))
