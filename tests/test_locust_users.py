"""Users for Locust: what they report, and that a locustfile of FastHttpUser's goes with HTTPUser."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import gevent
import pytest
from conftest import PATIENCE, wait_until
from gevent.server import DatagramServer
from tls_peers import server_tls

if importlib.util.find_spec("locust") is None:
    pytest.skip("needs Locust: pip install -e '.[load]'", allow_module_level=True)

from locust import FastHttpUser
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from locust.event import Events
from locust.exception import InterruptTaskSet, LocustError, RescheduleTask, ResponseError, StopTest
from test_examples import running
from test_http_session import Site

from greensock import LengthPrefixed, Lines, OperationTimeout, Server
from greensock.http import HTTPServer, Response
from greensock.locust import (
    BadStatusCode,
    ConnectionUser,
    DatagramUser,
    HTTPUser,
    WebSocketUser,
    paced_user,
)

#: FastHttpUser of Locust 2.46, the last for Python 3.10, has no such method, and follows redirects whatever it is told.
IS_LATE = hasattr(FastHttpSession, "rename_request")

ROOT = Path(__file__).resolve().parent.parent


class Run:
    """An environment that writes down what is reported."""

    def __init__(self):
        self.environment = Environment(events=Events())
        self.reported = []
        self.environment.events.request.add_listener(lambda **meta: self.reported.append(meta))
        self.users = []

    def user(self, kind, host=None, **attributes):
        if host is not None:
            attributes["host"] = host
        made = type("Mine", (kind,), {"abstract": True, **attributes})(self.environment)
        self.users.append(made)
        return made

    def told(self, *keys):
        """Return of each report so many of its keys, and forget them."""
        found = [tuple(each[key] for key in keys) for each in self.reported]
        self.reported.clear()
        return found


@pytest.fixture
def run():
    made = Run()
    yield made
    for user in made.users:
        if isinstance(user, HTTPUser):
            continue  # its connections end with it
        if isinstance(user, FastHttpUser):
            user.client.client.close()
        else:
            user.on_stop()
    made.users.clear()
    made.reported.clear()


# -- HTTPUser


def visit(user):
    """Do what locustfiles do, with whichever user; return what was seen."""
    client, seen = user.client, []
    for options in (
        {},
        {"name": "named"},
        {"params": {"q": "a b"}},
        {"headers": {"X-Mine": "y"}},
        {"auth": ("a", "b")},
    ):
        answer = client.get("/page", **options)
        found = answer.json()
        seen.append((answer.status_code, answer.ok, found["target"], found.get("x-mine"), found.get("authorization")))
    for answer in (
        client.post("/", data={"a": "1 2"}),
        client.post("/", data=b"raw"),
        client.post("/", json={"a": 1}),
        client.put("/", data="text"),
        client.patch("/", json=[1]),
        client.delete("/"),
        client.request("OPTIONS", "/", name="asked"),
    ):
        found = answer.json()
        kind = (found.get("content-type") or "").partition(";")[0]
        seen.append((found["method"], found["body"].replace(" ", ""), kind))
    assert client.head("/page").status_code == 200
    client.get("/set?a=1")
    seen.append(client.get("/page").json()["cookie"])
    for path in ("/to?status=302&url=/page", "/to?status=404&body=why", "/to?status=503", "/loop"):
        answer = client.get(path, name=path.partition("&")[0])
        seen.append((answer.status_code, answer.ok))
    seen.append(client.get("/to?status=302&url=/page", name="unfollowed", allow_redirects=False).status_code)
    with client.rename_request("group"):
        client.get("/page")
    with client.get("/to?status=404&body=why", name="expected", catch_response=True) as answer:
        seen.append((answer.status_code, answer.text, answer.content))
        answer.success()
    with client.get("/page", name="wrong", catch_response=True) as answer:
        answer.failure("as I say")
    with client.get("/page", name="raised", catch_response=True):
        raise ResponseError("why")
    with contextlib.suppress(KeyError), client.get("/page", name="not reported", catch_response=True):
        raise KeyError("the task's own")
    with user.rest("POST", "/", name="rest", json={"b": 2}) as answer:
        seen.append(answer.js["body"].replace(" ", ""))
        assert answer.js["method"] == "POST"
    with user.rest("GET", "/typed", name="no json"):
        pass
    with user.rest_("GET", "/page"):
        raise AssertionError("the body's own")
    with client.get("/page", name="lines", stream=True, catch_response=True) as answer:
        seen.append(len(b"".join(answer.iter_content(7, decode_content=False))) > 10)
    return seen


class MayFail(Site):
    def handle_request(self, request):
        self.encoded = {"body": b"no json", "type": "text/plain"}
        return super().handle_request(request)


@pytest.mark.skipif(not IS_LATE, reason="Locust 2.47 expected, to compare with")
def test_a_locustfile_changes_one_import(serve, run):
    """The same requests, the same statistics."""
    site = serve(MayFail)
    keys = ("request_type", "name", "exception", "response_length", "url")
    told = []
    for kind in (FastHttpUser, HTTPUser):
        seen = visit(run.user(kind, site.url))
        reported = []
        for method, name, failure, length, url in run.told(*keys):
            # Statuses and redirections without end have other classes of errors; bodies tell who asked.
            short = type(failure).__name__ if type(failure).__name__ == "CatchResponseError" else bool(failure)
            reported.append((method, name.partition("_=")[0], short, bool(length), url.partition("_=")[0]))
        told.append((seen, reported))
    fast, ours = told
    assert ours[0] == fast[0]
    assert ours[1] == fast[1]
    assert len(ours[1]) > 25


def test_what_is_reported(serve, run):
    user = run.user(HTTPUser, serve(Site).url)
    began = perf_counter()
    answer = user.client.get("/to?status=503&body=why", context={"a": 1})
    ((meta,)) = run.reported
    assert 0 < meta["response_time"] < (perf_counter() - began) * 1000
    assert (meta["response_length"], meta["context"], meta["response"]) == (3, {"a": 1}, answer)
    assert repr(meta["exception"]) == "BadStatusCode(code=503)"
    assert (answer.text, answer.reason, answer.request.method) == ("why", "Service Unavailable", "GET")
    with pytest.raises(BadStatusCode):
        answer.raise_for_status()
    for call in (answer.success, lambda: answer.failure("x"), answer.__enter__):
        with pytest.raises(LocustError):
            call()


def test_a_server_that_is_down(run):
    for kind, host in (
        (HTTPUser, "http://127.0.0.1:1"),
        (ConnectionUser, "127.0.0.1:1"),
        (ConnectionUser, "unix:/nowhere"),
        (WebSocketUser, "ws://127.0.0.1:1"),
        (DatagramUser, "127.0.0.1:1"),
    ):
        user = run.user(kind, host)
        for _ in range(2):
            if kind is HTTPUser:
                answer = user.client.get("/")
                assert (answer.status_code, answer.content, answer.headers, answer.text) == (0, None, None, None)
                with user.rest("GET", "/", name="/"):
                    pass
            else:
                with pytest.raises(RescheduleTask), user.exchange("never", b"x"):
                    pytest.fail("the block is not entered")
        told = run.told("name", "exception")
        assert {name for name, _ in told} <= {"/", "connect", "never"}
        assert [failure for _, failure in told if failure is not None], kind
        assert len({repr(failure) for _, failure in told if failure is not None}) <= 2, (
            "so that they are counted as one"
        )


@pytest.mark.parametrize(
    ("attributes", "error", "said"),
    [
        ({"client_pool": object()}, StopTest, "client_pool of Mine: a pool of geventhttpclient's"),
        ({"pool_manager": object()}, StopTest, "pool_manager of Mine: "),
        ({"host": None}, StopTest, "no host"),
        ({"rate": 0}, ValueError, "rate=0: tasks a second, more than 0"),
        ({"rate": 1.0, "wait_time": lambda self: 1.0}, ValueError, "rate=1.0 and wait_time"),
    ],
)
def test_what_cannot_be_had(run, attributes, error, said):
    with pytest.raises(error, match=said):
        run.user(HTTPUser, **{"host": "http://127.0.0.1:1", **attributes})
    run.users.clear()
    user = run.user(HTTPUser, "http://127.0.0.1:1")
    for name, instead in (("verify", "insecure = False"), ("proxies", "proxy_host"), ("nonsense", "no such")):
        with pytest.raises(TypeError, match=f"{name}: .*{instead}"):
            user.client.get("/", **{name: None})


def test_tls_credentials_and_timeouts(serve, run):
    site = serve(Site, tls=server_tls())
    host = site.url.replace("https://", "https://m%40e:secret@")
    found = run.user(HTTPUser, host).client.get("/page").json()
    assert (found["authorization"], found["host"]) == ("Basic bUBlOnNlY3JldA==", site.url.removeprefix("https://"))
    assert run.user(HTTPUser, site.url, insecure=False).client.get("/page").status_code == 0
    assert "CertificateRefused" in repr(run.told("exception")[-1][0])

    class Silent(HTTPServer):
        def handle_request(self, request):
            gevent.sleep(PATIENCE)
            return Response("late")

    silent = serve(Silent)
    user = run.user(HTTPUser, f"http://127.0.0.1:{silent.server_port}", network_timeout=0.05)
    assert user.client.get("/").status_code == 0
    assert user.client.get("/", timeout=0.05).status_code == 0
    ((failure,), (other,)) = run.told("exception")
    assert isinstance(failure, OperationTimeout)
    assert isinstance(other, OperationTimeout)


# -- exchanges


class Shout(Server):
    """Answers lines in capitals; ``twice`` by two, and ``bye`` by an end."""

    def handle(self, conn):
        for line in conn:
            if line == b"bye":
                return
            if line == b"stay":
                gevent.sleep(PATIENCE)
            conn.send((line.upper() + b"\n") * (2 if line == b"twice" else 1))


def test_exchanges(serve, run, tmp_path):
    for listener, options, scheme in (
        (("127.0.0.1", 0), {}, "TCP"),
        (("127.0.0.1", 0), {"tls": server_tls()}, "TLS"),
        (str(tmp_path / "socket"), {}, "Unix"),
    ):
        server = serve(Shout, listener, **options)
        place = {"TLS": "tls://127.0.0.1:{}", "TCP": "127.0.0.1:{}", "Unix": f"unix:{listener}"}[scheme]
        user = run.user(ConnectionUser, place.format(server.server_port), framer=Lines(), network_timeout=PATIENCE)
        with user.exchange("one", b"hello") as reply:
            assert (reply.message, reply.length) == (b"HELLO", 5)
        with user.exchange("two", "twice", replies=2, context={"a": 1}) as reply:
            assert reply.messages == [b"TWICE", b"TWICE"]
        with user.exchange("by hand") as exchange:
            exchange.send(b"a")
            assert exchange.receive() == b"A"
            exchange.name = "renamed"
        assert [each[:3] for each in run.told("request_type", "name", "response_length", "exception")] == [
            (scheme, "connect", 0),
            (scheme, "one", 5),
            (scheme, "two", 10),
            (scheme, "renamed", 1),
        ]
        assert server.statistics().accepted == 1


def test_exchanges_that_fail(serve, run):
    """Each is counted once, the connection is closed behind it, and the next one is made on another."""
    server = serve(Shout)
    user = run.user(ConnectionUser, f"tcp://127.0.0.1:{server.server_port}", framer=Lines(), network_timeout=PATIENCE)
    with user.exchange("checked", b"a") as reply:
        assert reply.message == b"B", "not B"
    with user.exchange("said", b"a") as reply:
        reply.failure("as I say")
    with pytest.raises(RescheduleTask), user.exchange("cut", b"bye"):
        pytest.fail("the block is not entered")
    with pytest.raises(RescheduleTask), user.exchange("late", b"stay", timeout=0.05):
        pytest.fail("the block is not entered")
    with user.exchange("within", b"a") as reply:
        reply.receive(timeout=0.05)
    with pytest.raises(gevent.GreenletExit), user.exchange("stopped", b"a"):
        raise gevent.GreenletExit
    with pytest.raises(InterruptTaskSet), user.exchange("good", b"a"):
        raise InterruptTaskSet
    with user.exchange("good", b"a"):
        pass
    told = [(name, repr(failure)) for name, failure in run.told("name", "exception") if name != "connect"]
    assert [name for name, _ in told] == ["checked", "said", "cut", "late", "within", "good", "good"]
    for (_, failure), word in zip(
        told, ("not B", "as I say", "closed", "nothing came", "Timeout", "None", "None"), strict=True
    ):
        assert word in failure or "no message" in failure
    assert server.statistics().accepted == 7


def test_without_a_framer_and_with_a_prefix(serve, run):
    class Echo(Server):
        def connection_recv(self, conn, data):
            conn.send(data)

    server = serve(Echo)
    host = f"127.0.0.1:{server.server_port}"
    for framer, whole in ((None, b"as it is"), (LengthPrefixed(2), b"framed")):
        user = run.user(ConnectionUser, host, framer=framer, network_timeout=PATIENCE)
        with user.exchange("echo", whole) as reply:
            assert reply.message == whole
    with pytest.raises(ValueError, match="host="):
        run.user(ConnectionUser, "ftp://127.0.0.1:1").stay_connected()
    assert [failure for (failure,) in run.told("exception")] == [None] * 4


def test_datagrams(run):
    came = []

    def answer(data, address):
        came.append(address)
        if data == b"lost":
            return
        if data == b"second":
            server.sendto(b"first, late", address)
        server.sendto(data, address)

    server = DatagramServer(("127.0.0.1", 0), answer)
    server.start()

    class Mine(DatagramUser):
        abstract = True

        def is_reply(self, asked, datagram):
            return asked == datagram

    user = run.user(Mine, f"udp://127.0.0.1:{server.server_port}", network_timeout=PATIENCE)
    for message in (b"first", b"second"):
        with user.exchange("echo", message) as reply:
            assert reply.messages == [message]
    with pytest.raises(RescheduleTask), user.exchange("echo", b"lost", timeout=0.05):
        pytest.fail("the block is not entered")
    with user.exchange("echo", b"third"):
        pass
    server.stop()
    told = run.told("request_type", "name", "exception")
    assert [(name, failure is None) for _, name, failure in told] == [
        ("connect", True),
        ("echo", True),
        ("echo", True),
        ("echo", False),
        ("connect", True),
        ("echo", True),
    ]
    assert {scheme for scheme, _, _ in told} == {"UDP"}
    assert "no reply within 0.05 s" in repr(told[3][2])
    assert came[0] == came[2] != came[3], "a reply that comes late goes to a port that nobody listens on"


def test_websockets(serve, run):
    class Echo(HTTPServer):
        def websocket_message(self, websocket, message):
            websocket.send(message)
            if message == "bye":
                websocket.close()

    server = serve(Echo)
    user = run.user(WebSocketUser, f"http://127.0.0.1:{server.server_port}/", path="/x", network_timeout=PATIENCE)
    for message in ("text", b"bytes", "bye"):
        with user.exchange("echo", message) as reply:
            assert reply.message == message
    with pytest.raises(RescheduleTask), user.exchange("echo", "more"):
        pytest.fail("the block is not entered")
    with user.exchange("echo", "again") as reply:
        assert reply.message == "again"
    assert [(name, failure is None) for name, failure in run.told("name", "exception")] == [
        ("connect", True),
        *[("echo", True)] * 3,
        ("echo", False),
        ("connect", True),
        ("echo", True),
    ]


# -- a rate


def test_a_rate_measures_from_when_a_request_was_due(serve, run, caplog):
    """A server that stalls once shows in all requests that it kept from going out."""
    stall = 0.3

    class Stalling(HTTPServer):
        asked = 0

        def handle_request(self, request):
            self.asked += 1
            if self.asked == 3:
                gevent.sleep(stall)
            return Response("x")

    caplog.set_level("INFO", "greensock.locust")
    paced_user._told_of.clear()
    user = run.user(HTTPUser, f"http://127.0.0.1:{serve(Stalling).server_port}", rate=100.0)
    assert "Mine: 100.0 tasks a second by each user; response times count from when a task was due" in caplog.text
    pauses = []
    for _ in range(10):
        user.client.get("/")
        pauses.append(user.wait_time())
        gevent.sleep(pauses[-1])
    times = [each for (each,) in run.told("response_time")]
    # The third took as long as the stall; the ones behind it were 10 ms less late each.
    assert times[2] >= 1000 * stall
    for place in range(3, 10):
        assert times[place] >= 1000 * stall - 10.0 * (place - 2)
    assert pauses[2:9] == [0.0] * 7
    assert user.begin_request() <= perf_counter()


def test_without_a_rate_a_request_begins_when_it_begins(run):
    user = run.user(HTTPUser, "http://127.0.0.1:1")
    before = perf_counter()
    assert user.begin_request() >= before


# -- the example


WANTED = {
    *(("GET", name) for name in ("/", "/nowhere")),
    ("POST", "upload"),
    *(("TCP", name) for name in ("connect", "SET", "GET", "DEL")),
    *(("WS", name) for name in ("connect", "say")),
    *(("UDP", name) for name in ("connect", "echo")),
}


def reported(path):
    """Return the rows of a report, by type and name; none if it is not there yet."""
    with contextlib.suppress(FileNotFoundError), path.open(newline="") as rows:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(rows) if row["Type"]}
    return {}


def test_the_locustfile_of_the_examples(tmp_path):
    """Headless, with two workers, against the examples and an echo over UDP; it is told to end when all was done."""
    echo = DatagramServer(("127.0.0.1", 0), lambda data, address: echo.sendto(data, address))
    echo.start()
    report = tmp_path / "report_stats.csv"
    with running("hello_http") as hello, running("lines") as lines, running("live_chat") as chat:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        environment = {
            **os.environ,
            "HELLO": f"http://127.0.0.1:{hello.address[1]}",
            "LINES": f"127.0.0.1:{lines.address[1]}",
            "CHAT": f"ws://127.0.0.1:{chat.address[1]}",
            "ECHO": f"127.0.0.1:{echo.server_port}",
        }
        command = [sys.executable, "-m", "locust", "-f", "examples/locustfile.py", "--headless", "--only-summary"]
        command += ["-u", "8", "-r", "8", "-t", "120s", "-s", "10", "--csv", str(tmp_path / "report")]
        command += ["--processes", "2", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--master-port", port]
        with (tmp_path / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            try:
                wait_until(lambda: reported(report).keys() >= WANTED or process.poll() is not None, 6 * PATIENCE)
                process.send_signal(signal.SIGTERM)
                process.wait(6 * PATIENCE)
            finally:
                process.kill()
            log.seek(0)
            said = log.read()
        for example in (hello, lines, chat):
            example.stop()
    echo.stop()
    assert process.returncode == 0, said
    assert "Traceback" not in said, said
    found = reported(report)
    assert found.keys() == WANTED
    assert {int(row["Failure Count"]) for row in found.values()} == {0}, said
