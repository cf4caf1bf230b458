"""The operators' address: what it tells of a proxy and of a server, and whom."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from arbiters import PROGRAMS, ROOT, Answered, arbiter
from conftest import PATIENCE, read_all, wait_until
from prometheus_client.parser import text_string_to_metric_families
from proxies import Origin, closed_port, gateway_to
from served import Echo, once

from greensock.operations.exposition import COUNTERS, GAUGES, HISTOGRAMS, NOW_OF_SERVERS, OF_SERVERS
from greensock.operations.last_requests import read_last_requests
from greensock.operations.operations_options import OperationsOptions
from greensock.operations.operations_server import OperationsServer
from greensock.operations.worker_watch import WorkerWatch
from greensock.proxy import CannotStart, ProxyProgram, ReverseProxy, parse_config
from greensock.proxy.failure import Failure
from greensock.proxy.proxy_figures import ProxyFigures
from greensock.proxy.upstream.shared_table import TableFull
from greensock.shared_pages import SharedPages

TOKEN = "a-token-of-32-characters-in-all."
BEARER = f"Authorization: Bearer {TOKEN}\r\n"


def ask(address, path, fields="", method="GET", body=b"", host="127.0.0.1", version="1.1"):
    """Ask once, on a connection of its own."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        named = f"Host: {host}" if host else "X: y"
        head = f"{method} {path} HTTP/{version}\r\n{named}\r\nConnection: close\r\n{fields}"
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        sock.sendall(f"{head}{length}\r\n".encode() + body)
        return Answered(read_all(sock))


def status_of(address):
    return json.loads(ask(address, "/status.json").body)


def reached(address):
    """Return the status though a worker may end while it answers."""
    found = []

    def ask_once():
        try:
            found.append(status_of(address))
        except (OSError, ValueError):
            return False
        return True

    wait_until(ask_once)
    return found[-1]


def metrics_of(address, fields=""):
    """Return the samples as Prometheus' own parser reads them: by name, with labels behind it where there are some."""
    answer = ask(address, "/metrics", fields)
    assert answer.status == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[f"{sample.name} {labels}".strip()] = sample.value
    return found


@pytest.fixture
def program():
    """``program(servers, **operations)``: a proxy in this process, with an operators' address."""
    made = []

    def start(*urls, operations=None, more=None, read=None):
        told = {
            "listen": ["127.0.0.1:0"],
            "upstreams": {"app": {"servers": list(urls), "retries": 0}},
            "operations": {"address": "127.0.0.1:0", "token": TOKEN, **(operations or {})},
            **(more or {}),
        }
        made.append(ProxyProgram(parse_config(told), read))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        for proxy in each.proxies:
            proxy.close_spread = 0.0
        each.stop()


def operators(program):
    return program._operators.server.address


def test_what_is_told_of_a_proxy(serve, program, tmp_path):
    origin = serve(Origin)
    proxy = program(origin.url, f"http://127.0.0.1:{closed_port()}")
    front, back = proxy.proxies[0].address, operators(proxy)
    answers = [ask(front, "/plain", host="example.org").status for _ in range(6)]
    answers.append(ask(front, "/status/500").status)
    ask(front, "/no\x01", host="a")  # which is refused before it is a request
    wanted = {
        "2xx": sum(200 <= each < 300 for each in answers),
        "5xx": sum(each >= 500 for each in answers),
    }
    assert wanted["5xx"] > 1  # of the server that is not there
    status = wait_until(lambda: (told := status_of(back))["totals"]["requests"] >= 7 and told)
    totals = status["totals"]
    assert {name: totals["statuses"][name] for name in wanted} == wanted
    assert sum(totals["refused"].values()) == 1
    assert totals["failures"]["connect-failed"] == wanted["5xx"] - 1
    assert totals["bytes_in"] > 7 * 50
    assert totals["bytes_out"] > 7 * 50
    assert sum(status["latency"]["counts"]) == 7
    assert status["latency"]["sum"] > 0
    (worker,) = status["workers"]
    assert (worker["pid"], worker["slot"], worker["state"]) == (os.getpid(), 0, "serving")
    assert worker["memory_bytes"] > 1 << 20
    assert worker["cpu_seconds"] > 0
    assert not status["is_draining"]
    assert status["started"] <= status["now"]
    (upstream,) = status["upstreams"]
    first, second = upstream["servers"]
    assert (first["name"], first["state"], first["why"], first["weight"]) == (origin.url[7:], "up", "", 1)
    assert (first["requests"] + second["requests"], first["errors"]) == (7, 0)
    assert second["errors"] == wanted["5xx"] - 1
    slowest, failed = status["slowest"], status["failed"]
    assert {each["target"] for each in slowest} >= {"/plain", "/status/500"}
    assert slowest[0]["seconds"] == max(each["seconds"] for each in slowest)
    assert len(failed) == wanted["5xx"]
    told = next(each for each in failed if each["reason"] == "connect-failed")
    assert (told["host"], told["method"], told["client"], told["status"]) == ("example.org", "GET", "127.0.0.1", 502)
    found = metrics_of(back)
    assert found["greensock_requests_total"] == 7
    assert found["greensock_responses_total 5xx"] == wanted["5xx"]
    assert found["greensock_request_duration_seconds_count"] == 7
    assert found["greensock_request_duration_seconds_bucket +Inf"] == 7
    assert found["greensock_workers serving"] == 1
    assert found[f"greensock_upstream_errors_total {second['name']},app"] == second["errors"]
    assert found["greensock_proxy_failures_total connect-failed"] == wanted["5xx"] - 1


def test_with_a_log_and_where_nobody_may_ask(serve, program, tmp_path):
    origin = serve(Origin)
    log = tmp_path / "access"
    proxy = program(origin.url, more={"log": {"path": str(log)}})
    back = operators(proxy)
    for path in ("/", "/chunked", "/status/503"):
        ask(proxy.proxies[0].address, path)
    status = wait_until(lambda: (told := status_of(back))["totals"]["requests"] == 3 and told)
    assert sum(status["latency"]["counts"]) == 3
    assert [(each["target"], each["status"], each["server"]) for each in status["failed"]] == [
        ("/status/503", 503, origin.url[7:])
    ]
    told = {"listen": ["127.0.0.1:0"], "upstreams": {"app": {"servers": [origin.url]}}}
    plain = ProxyProgram(parse_config(told))
    plain.start()
    assert plain.gateway.watch is None
    assert not plain.proxies[0].wants_records
    plain.stop()


class Classes(ReverseProxy):
    """A proxy for which nothing is ordinary: one of its seams is overridden."""

    def serve_request(self, request, keep):
        return super().serve_request(request, keep)


def test_the_ordinary_exchange_tells_what_the_classes_do(serve):
    origin, told = serve(Origin), []
    for kind in (ReverseProxy, Classes):
        pages = SharedPages(1)
        WorkerWatch.share(pages)
        gateway = gateway_to(origin.url, retries=0)
        gateway.watch = watch = WorkerWatch(pages, 0, None)
        proxy = serve(kind, gateway=gateway)
        for path in ("/plain", "/status/503", "/chunked", "/large/100000", "/plain", "/status/404"):
            ask(proxy.address, path, host="example.org")
        ask(proxy.address, "/post", method="POST", body=b"some")
        wait_until(lambda: sum(watch.latency.counts) == 7)  # noqa: B023
        watch.last_requests.write(0.0)
        lists = read_last_requests(pages, [0])
        assert all(0 < each.seconds < PATIENCE and each.at > 1e9 for found in lists for each in found)
        told.append([sorted(map(repr, (replace(each, at=0.0, seconds=0.0) for each in found))) for found in lists])
        gateway.upstreams["site"].close()
    assert told[0] == told[1]
    assert (len(told[0][0]), len(told[0][1])) == (7, 1)


def test_who_may_ask_for_what(serve, program, tmp_path):
    origin = serve(Origin)
    back = operators(program(origin.url, operations={"names": ["ops.example.org"]}))
    others = ("Sec-Fetch-Site: cross-site\r\n", "Sec-Fetch-Site: same-site\r\n")
    name = origin.url[7:]
    order = json.dumps({"upstream": "app", "server": name}).encode()
    cases = [
        # method, path, Host, fields, body: status, and a part of the answer
        ("GET", "/", "127.0.0.1:1", "", b"", 200, "<!doctype html>"),
        ("GET", "/page.js", "localhost", "", b"", 200, ""),
        ("GET", "/page.css", "LOCALHOST.:80", "", b"", 200, ""),
        ("GET", "/healthz", "[::1]:9", "", b"", 200, "ok\n"),
        ("GET", "/readyz", "10.1.2.3", "", b"", 200, "ready\n"),
        ("HEAD", "/status.json", "ops.example.org:8", "", b"", 200, ""),
        ("GET", "/nothing", "127.0.0.1", "", b"", 404, '{"error": "no such page"}'),
        ("GET", "/../page.html", "127.0.0.1", "", b"", 404, "no such page"),
        ("POST", "/metrics", "127.0.0.1", "", b"", 405, "GET expected"),
        ("GET", "/drain", "127.0.0.1", BEARER, b"", 405, "POST expected"),
        # A name that somebody else may lead here.
        ("GET", "/status.json", "evil.example.org", "", b"", 421, "is none of this address"),
        ("GET", "/", "127.0.0.1.evil.example.org", "", b"", 421, ""),
        ("GET", "/", "ops.example.org.evil", "", b"", 421, ""),
        ("GET", "/healthz", "", "", b"", 400, ""),
        *(("GET", "/metrics", "127.0.0.1", site, b"", 403, "another site") for site in others),
        ("GET", "/", "127.0.0.1", others[0], b"", 200, ""),
        ("POST", "/drain", "127.0.0.1", others[0] + BEARER, order, 403, "another site"),
        # What changes something, or shows code.
        ("POST", "/drain", "127.0.0.1", "", order, 401, "Bearer TOKEN expected"),
        ("POST", "/ready", "127.0.0.1", "Authorization: Bearer wrong\r\n", order, 401, ""),
        ("POST", "/ready", "127.0.0.1", f"Authorization: Basic {basic(TOKEN)}\r\n", order, 401, ""),
        ("GET", "/stacks", "127.0.0.1", "", b"", 401, ""),
        ("GET", "/stacks", "127.0.0.1", BEARER, b"", 200, "in handle_request"),
        ("POST", "/drain", "127.0.0.1", BEARER, b"", 400, '"upstream\\" and'),
        ("POST", "/drain", "127.0.0.1", BEARER, b"[" * 3000, 400, "a JSON object"),
        ("POST", "/drain", "127.0.0.1", BEARER, b'{"upstream": "app", "server": 7}', 400, "a JSON object"),
        ("POST", "/drain", "127.0.0.1", BEARER, b"x" * 5000, 413, ""),
        ("POST", "/drain", "127.0.0.1", BEARER, b'{"upstream": "b", "server": ""}', 404, '"error"'),
        ("POST", "/drain", "127.0.0.1", BEARER, b'{"upstream": "app", "server": "x"}', 404, '"error"'),
        ("GET", "/servers", "127.0.0.1", BEARER, b"", 405, "POST or DELETE expected"),
        ("POST", "/servers", "127.0.0.1", others[1] + BEARER, order, 403, "another site"),
        ("POST", "/servers", "127.0.0.1", "", order, 401, "Bearer TOKEN expected"),
        ("DELETE", "/servers", "127.0.0.1", "", order, 401, "Bearer TOKEN expected"),
        ("DELETE", "/servers", "127.0.0.1", others[1] + BEARER, order, 403, "another site"),
        ("DELETE", "/drain", "127.0.0.1", BEARER, order, 405, "POST expected"),
    ]
    for method, path, host, fields, body, status, text in cases:
        answer = ask(back, path, fields, method, body, host)
        assert answer.status == status, (method, path, host, answer.text)
        assert text in answer.text, (method, path, host, answer.text)
        assert b"access-control" not in answer.head.lower()
        assert b"nosniff" in answer.head
    assert ask(back, "/healthz", host="", version="1.0").status == 200
    page = ask(back, "/").head
    assert b"default-src 'none'" in page
    assert b"frame-ancestors 'none'" in page
    assert b"application/openmetrics-text" in ask(back, "/metrics", "Accept: application/openmetrics-text\r\n").head


def basic(token):
    return base64.b64encode(f"anybody:{token}".encode()).decode()


def test_an_address_that_others_reach(serve, program):
    """Who reads must show the token there, in a way that browsers ask for; unless it is for all."""
    origin = serve(Origin)
    closed = operators(program(origin.url, operations={"address": "0.0.0.0:0"}))
    opened = operators(program(origin.url, operations={"address": ":0", "allow_remote": True}))
    closed, opened = ("127.0.0.1", closed[1]), ("127.0.0.1", opened[1])
    for path in ("/", "/status.json", "/metrics", "/connections"):
        refused = ask(closed, path)
        assert refused.status == 401
        assert b'WWW-Authenticate: Basic realm="greensock"' in refused.head
        assert ask(closed, path, BEARER).status == 200
        assert ask(closed, path, f"Authorization: basic {basic(TOKEN)}\r\n").status == 200
        for wrong in (basic("x"), "%%%", "", "=" * 9):
            assert ask(closed, path, f"Authorization: Basic {wrong}\r\n").status == 401
        assert ask(opened, path).status == 200
    assert ask(closed, "/healthz").status == ask(closed, "/readyz").status == 200
    assert ask(opened, "/stacks").status == 401


def test_without_a_token_nothing_can_be_changed(serve, program, tmp_path):
    """At the path of a Unix socket, where any Host will do: no browser comes that way."""
    path = str(tmp_path / "operators")
    origin = serve(Origin)
    told = {
        "listen": ["127.0.0.1:0"],
        "upstreams": {"app": {"servers": [origin.url]}},
        "operations": {"address": path},
    }
    proxy = ProxyProgram(parse_config(told))
    proxy.start()
    try:
        assert os.stat(path).st_mode & 0o777 == 0o660
        assert ask(path, "/status.json", host="any.name").status == 200
        for method, where in (("POST", "/drain"), ("GET", "/stacks")):
            answer = ask(path, where, BEARER, method, b"{}" if method == "POST" else b"")
            assert (answer.status, "no token is configured" in answer.text) == (403, True)
    finally:
        proxy.stop()
    assert not os.path.exists(path)


def test_a_server_is_drained_by_its_gateway(serve, program):
    origin = serve(Origin)
    proxy = program(origin.url)
    orders = []
    proxy.gateway.set_server = lambda *order: orders.append(order)
    body = json.dumps({"upstream": "app", "server": origin.url[7:]}).encode()
    for path in ("/drain", "/ready"):
        answer = ask(operators(proxy), path, BEARER, "POST", body)
        assert (answer.status, answer.body) == (204, b"")
    assert orders == [("app", origin.url[7:], "drain"), ("app", origin.url[7:], "ready")]
    one = json.dumps({"upstream": "app", "server": "http://127.0.0.1:9"}).encode()
    for (path, method, name), told, full in (
        (("/drain", "POST", "set_server"), body, 503),
        (("/servers", "POST", "add_server"), one, 409),
        (("/servers", "DELETE", "remove_server"), body, 409),
    ):
        for error, status, words in (
            (TimeoutError("others write"), 503, "others write"),
            (TableFull("7 bytes"), full, "is full: 7 bytes"),
        ):

            def fails(*_, error=error):
                raise error

            setattr(proxy.gateway, name, fails)
            answer = ask(operators(proxy), path, BEARER, method, told)
            assert (answer.status, words in answer.text) == (status, True), answer.text


def test_servers_are_added_and_removed(serve, program, caplog):
    """What is wrong says which field, and what was allowed; in every case nothing has changed."""
    origin, other = serve(Origin), serve(Origin)
    proxy = program(origin.url)
    back, front = operators(proxy), proxy.proxies[0].address
    names = [each.url[7:] for each in (origin, other)]

    def order(method, server, **more):
        body = json.dumps({"upstream": "app", "server": server, **more}).encode()
        return ask(back, "/servers", BEARER, method, body)

    def servers():
        return [(each["name"], each["weight"]) for each in status_of(back)["upstreams"][0]["servers"]]

    for method, server, more, status, words in (
        ("POST", other.url, {"upstream": "b"}, 404, "upstream='b': one of app expected"),
        ("POST", other.url, {"weight": 0}, 400, "weight=0: a whole number from 1 to 65535 expected"),
        ("POST", other.url, {"weight": True}, 400, "weight=True: "),
        ("POST", other.url, {"max_connections": "9"}, 400, "max_connections='9': a whole number of at least 1"),
        ("POST", other.url, {"max_waiting": float("nan")}, 400, "max_waiting=nan: a whole number"),
        ("POST", other.url, {"backup": 1}, 400, "backup=1: True or False expected"),
        (
            "POST",
            other.url,
            {"wait": 1},
            400,
            "wait: no such option: weight, max_connections, max_waiting, backup, srv",
        ),
        ("POST", other.url, {"url": "x"}, 400, "url: no such option"),
        ("POST", other.url, {"upstream": None}, 400, "both texts"),
        ("POST", "", {}, 400, "server='': http://host[:port], https://host[:port] or unix:/path expected"),
        ("POST", "ftp://a", {}, 400, "server='ftp://a': "),
        ("POST", f"{other.url}/?a", {}, 400, "a plain path, such as /base, expected"),
        ("POST", "unix:/\ud800", {}, 400, "server='unix:/"),
        ("POST", origin.url, {}, 409, f"server='{names[0]}': each server once expected"),
        ("DELETE", names[1], {}, 404, f"server='{names[1]}': one of {names[0]} expected"),
        ("DELETE", "http://[", {}, 404, "server='http://['"),
        ("DELETE", names[0], {"upstream": "b"}, 404, "upstream='b'"),
    ):
        answer = order(method, server, **more)
        assert (answer.status, words in json.loads(answer.body)["error"]) == (status, True), answer.text
    assert servers() == [(names[0], 1)]
    with caplog.at_level(logging.WARNING, "greensock"):
        added = order("POST", other.url, weight=3, max_connections=7, max_waiting=5, backup=True, srv=False)
        assert (added.status, json.loads(added.body)) == (201, {"upstream": "app", "server": names[1]})
        assert servers() == [(names[0], 1), (names[1], 3)]
        made = proxy.gateway.upstreams["app"].all[1].spec.options
        assert (made.max_connections, made.max_waiting, made.backup) == (7, 5, True)
        assert order("POST", other.url).status == 409
        assert (
            ask(back, "/drain", BEARER, "POST", json.dumps({"upstream": "app", "server": names[1]}).encode()).status
            == 204
        )
        assert [order("DELETE", server).status for server in (other.url, names[0])] == [204, 204]
        assert servers() == []
        assert ask(front, "/").status == 503
        assert order("POST", origin.url).status == 201
    assert ask(front, "/").status == 200
    said = [each.getMessage() for each in caplog.records if each.name == "greensock.upstream"]
    assert said == [
        f"app: {names[1]} is added",
        f"app: {names[1]}: set to drain by an operator",
        f"app: {names[1]} is removed",
        f"app: {names[0]} is removed",
        f"app: {names[0]} is added",
    ], "each order once"


def test_connections(serve, program, connect):
    proxy = program(serve(Origin).url)
    sock = connect(proxy.proxies[0])
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    told = json.loads(ask(operators(proxy), "/connections").body)
    (shown,) = told["shown"]
    assert (told["pid"], told["connections"]) == (os.getpid(), 1)
    assert shown["peer"] == "{}:{}".format(*sock.getsockname())
    assert (shown["state"], shown["requests"], shown["is_in_turn"], shown["is_encrypted"]) == ("open", 1, False, False)
    assert shown["bytes_in"] == 27


@pytest.mark.parametrize(("wanted", "both_down"), [("any", 503), ("all", 503), ("none", 200)])
def test_whether_it_is_ready(serve, program, wanted, both_down):
    up, down = serve(Origin).url, f"http://127.0.0.1:{closed_port()}"
    health = {"max_fails": 1, "fail_ratio": 0, "ejection_time": 60}
    upstreams = {name: {"servers": [url], "health": health} for name, url in (("a", up), ("b", down), ("c", down))}
    routes = [{"path": f"/{name}", "upstream": name} for name in upstreams]
    proxy = program(operations={"ready_upstreams": wanted}, more={"upstreams": upstreams, "routes": routes})
    back, front = operators(proxy), proxy.proxies[0].address
    assert ask(back, "/readyz").status == 200
    ask(front, "/b")
    answer = ask(back, "/readyz")
    assert answer.status == (503 if wanted == "all" else 200)
    assert ("b" in answer.text.rpartition(":")[2]) is (wanted != "none")
    state = status_of(back)["upstreams"][1]["servers"][0]
    assert state["state"] == "ejected"
    assert "Connection refused" in state["why"]
    ask(front, "/c")
    proxy.gateway.upstreams["a"].all[0].health.failed(time.monotonic())
    assert ask(back, "/readyz").status == both_down
    # A proxy that drains welcomes nobody, and says so to its end.
    for each in proxy.proxies:
        each.close_listeners()
        each._begin_draining()
    answer = wait_until(lambda: "draining" in (found := ask(back, "/readyz")).text and found)
    assert answer.status == 503
    assert ask(back, "/healthz").status == 200
    assert status_of(back)["is_draining"]


def test_what_goes_on_when_the_configuration_is_read_anew(serve, program, tmp_path):
    """The figures; and the address, unless it is another one."""
    origin = serve(Origin)
    configs = []
    proxy = program(origin.url, read=lambda: configs.pop(0))
    told = {"listen": ["127.0.0.1:0"], "upstreams": {"app": {"servers": [origin.url]}}}
    back, path = operators(proxy), str(tmp_path / "operators")
    same = {"address": "127.0.0.1:0", "token": TOKEN[::-1], "max_hold": "none"}
    for operations, count in ((same, 1), ({"address": path}, 2), (None, 3), ({"address": path}, 3)):
        ask(proxy.proxies[0].address, "/")
        for each in proxy.proxies:
            each.close_spread = 0.0
        configs.append(parse_config({**told, **({"operations": operations} if operations else {})}))
        assert proxy.reload()
        if operations is None:
            assert not os.path.exists(path)
            continue
        where = back if operations is same else path
        wait_until(lambda: status_of(where)["totals"]["requests"] == count)  # noqa: B023
        assert sum(status_of(where)["latency"]["counts"]) == count
        if operations is same:
            assert ask(back, "/stacks", BEARER).status == 401
        else:
            with pytest.raises(ConnectionRefusedError):
                ask(back, "/healthz")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:{}".format(*taken.getsockname()[1:])
        configs.append(parse_config({**told, "operations": {"address": address}}))
        assert not proxy.reload()
        assert ask(path, "/healthz").status == 200
        with pytest.raises(CannotStart, match=f"operations: cannot listen on {address}"):
            ProxyProgram(parse_config({**told, "operations": {"address": address}})).start()


def test_a_server_of_another_kind(serve, connect):
    """Everything is there, and what it does not count is zero."""
    echo = serve(Echo)
    pages = SharedPages(1)
    pages.enter(pages.take())
    WorkerWatch.share(pages)
    watch = WorkerWatch(pages, 0, None)
    watch.follow([echo])
    options = OperationsOptions("127.0.0.1:0", token=TOKEN)
    server = serve(OperationsServer, options=options, watch=watch, name="echo")
    sock = connect(echo)
    sock.sendall(b"hello")
    assert sock.recv(100) == b"hello"
    status = wait_until(lambda: (told := status_of(server.address))["totals"]["bytes_out"] == 5 and told)
    assert (status["name"], status["upstreams"], status["totals"]["requests"]) == ("echo", [], 0)
    assert status["totals"]["accepted"] == 1
    found = metrics_of(server.address)
    assert found["greensock_connections"] == 1
    assert "greensock_upstream_up" not in found
    # A child that an upcall forks has its own copy of all, and the same memory.
    child = os.fork()
    if not child:
        echo.error_count = 7
        watch.write()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert watch.counters.of(0)["errors"] == 0
    order = b'{"upstream": "a", "server": "b"}'
    assert ask(server.address, "/drain", BEARER, "POST", order).status == 404
    sock.close()
    wait_until(lambda: metrics_of(server.address).get("greensock_connections_ended_total peer_closed") == 1)


def test_a_proxy_that_is_not_asked_about_makes_no_memory():
    proxy = ProxyProgram(parse_config({"listen": ["127.0.0.1:0"], "upstreams": {"a": {"servers": ["http://b"]}}}))
    proxy.start()
    assert proxy._operators.watch is None
    proxy.stop()


# -- processes


@once
def test_two_workers_of_which_one_is_killed(serve, tmp_path):
    """What was counted stays, and what was there goes."""
    origin = serve(Origin)
    text = f'listen = ["127.0.0.1:0"]\n[operations]\naddress = "127.0.0.1:0"\ntoken = "{TOKEN}"\n'
    path = tmp_path / "proxy.toml"
    path.write_text(f'{text}[upstreams.a]\nservers = ["{origin.url}"]\n')
    command = [sys.executable, "-m", "greensock", "proxy", "--config", str(path), "--workers=2"]
    with arbiter(tmp_path, command=command) as master:
        back = master.addresses[1]
        wait_until(lambda: len(reached(back)["workers"]) == 2)
        kept = [master.connect() for _ in range(12)]
        for sock in kept:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")

        def counted():
            told = reached(back)
            return told["totals"]["requests"] == told["totals"]["connections"] == 12 and told

        before = wait_until(counted)
        assert sum(each["requests"] for each in before["workers"]) == 12
        assert before["upstreams"][0]["servers"][0]["requests"] == 12
        killed = max(before["workers"], key=lambda each: each["connections"])
        os.kill(killed["pid"], signal.SIGKILL)

        def replaced():
            told = reached(back)
            assert told["totals"]["requests"] >= 12
            assert sum(told["latency"]["counts"]) >= 12
            pids = [each["pid"] for each in told["workers"]]
            return len(pids) == 2 and killed["pid"] not in pids and told

        after = wait_until(replaced)
        wait_until(lambda: reached(back)["totals"]["connections"] == 12 - killed["connections"])
        assert after["upstreams"][0]["servers"][0]["requests"] == 12
        assert after["started"] == before["started"]
        assert metrics_of(back)["greensock_requests_total"] == 12
        for sock in kept:
            sock.close()


@once
def test_a_server_class_on_the_command_line(tmp_path):
    path = tmp_path / "operators"
    command = [sys.executable, "-m", "greensock", "run", "served_classes:Site", "--bind", "127.0.0.1:0", "--single"]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAMS}", "GREENSOCK_OPERATIONS_TOKEN": TOKEN}
    with subprocess.Popen(
        [*command, "--operations", str(path)], cwd=tmp_path, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def is_ready():
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # not bound yet; not listening yet
                return ask(str(path), "/readyz").status == 200

        try:
            wait_until(is_ready)
            status = status_of(str(path))
            assert status["name"] == "greensock served_classes:Site"
            assert [each["state"] for each in status["workers"]] == ["serving"]
            assert ask(str(path), "/stacks", BEARER).status == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert not path.exists()


def test_the_document_names_every_metric():
    text = (ROOT / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"^\| `(greensock_\w+)`", text, re.MULTILINE)) | {"greensock_sent_bytes_total"}
    of_all = {f"greensock_{name}" for name in ("build_info", "start_time_seconds", "workers", "cpu_seconds_total")}
    of_servers = {f"greensock_upstream_{name}" for name in ("up", "state", "queued")}
    assert named == (
        {f"greensock_{row[1]}_total" for row in (*COUNTERS, *OF_SERVERS)}
        | {f"greensock_{row[1]}" for row in (*GAUGES, *HISTOGRAMS, *NOW_OF_SERVERS)}
        | of_all
        | of_servers
    )


def test_a_server_that_comes_back_counts_on():
    """One that was removed, or that its name no longer led to, is another one when it is back: its figures go on."""
    gateway = gateway_to("http://127.0.0.1:1")
    pages = SharedPages(1)
    pages.enter(pages.take())
    WorkerWatch.share(pages)
    watch = WorkerWatch(pages, 0, None)
    watch.follow([], ProxyFigures(gateway, []))
    for requests in (3, 2, 1):
        gateway.add_server("site", "http://127.0.0.1:2")
        server = gateway.upstreams["site"].all[1]
        for _ in range(requests):
            server.enter()
            server.failed(Failure("refused", 502))
            server.leave()
        watch.write()
        gateway.remove_server("site", "127.0.0.1:2")
        watch.write()
    counted = watch.counters.of(0)
    assert counted["server_requests|site|127.0.0.1:2"] == 6
    assert counted["server_errors|site|127.0.0.1:2"] == 6
