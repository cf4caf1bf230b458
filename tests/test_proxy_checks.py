"""Active health checks, of real servers and of hostile ones."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from statistics import mean

import gevent
import pytest
from conftest import PATIENCE, wait_until
from gevent.event import Event
from gevent.pool import Group

from greensock.http import HTTPClient, HTTPServer, Response
from greensock.proxy import HealthOptions, Standing
from greensock.proxy.upstream import health_checks
from greensock.proxy.upstream.health import Health
from greensock.proxy.upstream.health_checks import FIRST_WITHIN, JITTER, LEAST_PAUSE, MAX_BODY, Checker, pause_before


class Site(HTTPServer):
    """Answers with what the test put there."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.answer = lambda: Response("all is well")
        self.seen = []

    def handle_request(self, request):
        self.seen.append((request.head.target.decode(), {name.lower(): value for name, value in request.headers}))
        return self.answer()


@pytest.fixture
def site(serve):
    return serve(Site)


@pytest.fixture
def checker():
    """Make checkers: ``checker(address, **health options)``; they are stopped after the test."""
    made = []
    with HTTPClient(user_agent="greensock") as client:

        def make(address, *, name="", on_change=None, **options):
            given = HealthOptions(**{"path": "/health", "interval": 0.02, "timeout": PATIENCE, "fall": 1, **options})
            mine = Checker(address, given, Health(given), client, name=name, on_change=on_change)
            mine.health, mine.client = mine._health, client
            made.append(mine)
            return mine

        yield make
        for each in made:
            each.stop()
        assert client.statistics().used == 0
        assert client.statistics().idle == 0, "a fresh connection each time"


@contextlib.contextmanager
def raw_server(script):
    """Serve each connection with ``script(sock)``; give the address."""
    listener, group = socket.create_server(("127.0.0.1", 0)), Group()

    def serve(sock):
        with sock, contextlib.suppress(OSError):
            sock.settimeout(PATIENCE)
            while not sock.recv(65536).endswith(b"\r\n\r\n"):
                pass
            script(sock)

    def accept():
        while True:
            group.spawn(serve, listener.accept()[0])

    group.spawn(accept)
    try:
        yield listener.getsockname()
    finally:
        listener.close()
        group.kill()


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "greensock.upstream"]


# -- what is asked


@pytest.mark.parametrize(
    ("options", "path", "host"),
    [({}, "/health", None), ({"path": "/a%20b?c=d", "host": "Example.org:81"}, "/a%20b?c=d", "Example.org:81")],
)
def test_what_a_check_asks(site, checker, options, path, host):
    assert checker(site.address, **options).check()
    ((asked, fields),) = site.seen
    assert asked == path
    assert fields == {
        "host": host or f"127.0.0.1:{site.server_port}",
        "connection": "close",
        "accept-encoding": "identity",
        "user-agent": "greensock",
    }


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (("example.org", 80), "example.org"),
        (("example.org", 8080), "example.org:8080"),
        (("::80", 80), "[::80]"),
        (("::1", 81, 0, 0), "[::1]:81"),
        ("example.org:80", "example.org"),
        ("[::1]:8080", "[::1]:8080"),
        ("/run/app.sock", "localhost"),
        ("unix:app.sock", "localhost"),
    ],
)
def test_host(checker, address, host):
    assert ("Host", host) in checker(address)._headers


def test_a_unix_socket(serve, checker, tmp_path):
    site = serve(Site, str(tmp_path / "app.sock"))
    assert checker(site.address).check()
    assert site.seen[0][1]["host"] == "localhost"


# -- what passes


@pytest.mark.parametrize(
    ("answer", "options", "reason"),
    [
        (lambda: Response("x"), {}, ""),
        (lambda: Response(status=204), {}, ""),
        (lambda: Response("x", status=302), {}, ""),
        (lambda: Response("x", status=404), {}, "it answered 404"),
        (lambda: Response("x", status=404), {"status": "200,404"}, ""),
        (lambda: Response("x", status=500), {}, "it answered 500"),
        (lambda: Response("all is well"), {"body": "is well"}, ""),
        (lambda: Response("größer"), {"body": "öß"}, ""),
        (lambda: Response("nothing is well"), {"body": "all"}, "'all' is not in the 15 bytes read of its body"),
        (lambda: Response(b"x" * (MAX_BODY - 3) + b"all"), {"body": "all"}, ""),
        (
            lambda: Response(b"x" * (MAX_BODY - 2) + b"all"),
            {"body": "all"},
            "'all' is not in the 65536 bytes read of its body",
        ),
        (lambda: Response(iter([b"al", b"l"] * 10)), {"body": "all"}, ""),
        (lambda: Response(b"x" * 4096 for _ in range(10**6)), {}, ""),
        (
            lambda: Response(b"x" * 4096 for _ in range(10**6)),
            {"body": "all"},
            "'all' is not in the 65536 bytes read of its body",
        ),
    ],
)
def test_what_passes(site, checker, answer, options, reason):
    site.answer = answer
    mine = checker(site.address, **options)
    assert mine.check() is (not reason)
    assert mine.reason == reason
    assert mine.health.is_up(time.monotonic()) is (not reason)


OK = b"HTTP/1.1 200 OK\r\n"
#: Seconds from one piece to the next of what comes slowly.
PACE = 0.02


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda sock: None, "without"),
        (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), ""),
        (lambda sock: sock.sendall(OK), ""),
        (lambda sock: sock.sendall(OK + b"Content-Length: 5\r\n\r\nabc"), ""),
        (lambda sock: sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\nzz"), ""),
        (lambda sock: sock.sendall(OK + b"X: \x1b[2J\r\n\r\n"), ""),
        (lambda sock: sock.sendall(OK + b"X: " + b"x" * 100_000), ""),
        (lambda sock: sock.sendall(b"HTTP/1.1 103 Early\r\n\r\n" * 1000), ""),
        (lambda sock: sock.sendall(b"HTTP/1.1 101 No\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), ""),
        (lambda sock: gevent.sleep(PATIENCE), "0.2 s"),
        (lambda sock: [sock.sendall(b"HTTP/1.1 103 E\r\n\r\n") or gevent.sleep(PACE) for _ in range(99)], "0.2 s"),
        (lambda sock: (sock.sendall(OK + b"Content-Length: 9\r\n\r\n"), gevent.sleep(PATIENCE)), "0.2 s"),
        (
            lambda sock: sock.sendall(OK + b"\r\n") or [sock.sendall(b"x") or gevent.sleep(PACE) for _ in range(99)],
            "0.2 s",
        ),
    ],
)
def test_hostile_servers(checker, script, reason):
    with raw_server(script) as address:
        mine = checker(address, timeout=0.2)
        begun = time.monotonic()
        assert not mine.check()
        assert time.monotonic() - begun < 2
        assert reason in mine.reason
        assert mine.reason.isprintable()
        assert 0 < len(mine.reason) <= 200
        assert mine.health.standing is Standing.DOWN


def test_nobody_there(checker):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    mine = checker(address)
    assert not mine.check()
    assert "refused" in mine.reason


def test_a_name_that_nobody_has(checker):
    assert not checker(("no such name", 80)).check()


# -- again and again


def test_down_and_up_again(site, checker, caplog):
    changes = []
    mine = checker(site.address, name="app", rise=2, fall=3, on_change=changes.append)
    with caplog.at_level(logging.INFO):
        mine.start()
        mine.start()
        wait_until(lambda: len(site.seen) >= 3)
        assert not logged(caplog)
        site.answer = lambda: Response(status=503)
        wait_until(lambda: mine.health.standing is Standing.DOWN)
        more = len(site.seen) + 3
        wait_until(lambda: len(site.seen) >= more)
        site.answer = lambda: Response(status=200)
        wait_until(lambda: mine.health.standing is Standing.UP)
        more = len(site.seen) + 3
        wait_until(lambda: len(site.seen) >= more)
    failed = "app failed a check: it answered 503"
    assert logged(caplog) == [failed, "app is down: it answered 503", "app is up: its checks pass"]
    assert changes == [False, True]


def test_a_server_that_is_not_there_at_the_start(checker, serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    mine = checker(address, fall=3, rise=2)
    mine.start()
    wait_until(lambda: mine.health.standing is Standing.DOWN)
    assert mine.health.statistics().checks_failed == 1, "on probation at first"
    serve(Site, address)
    wait_until(lambda: mine.health.standing is Standing.UP)
    assert mine.health.statistics().checks_passed == 2


def test_one_check_at_a_time(checker):
    seen, free, interval = [], Event(), 0.001

    def script(sock):
        seen.append(sock)
        free.wait(PATIENCE)
        sock.sendall(OK + b"Content-Length: 0\r\n\r\n")

    with raw_server(script) as address:
        mine = checker(address, interval=interval)
        mine.start()
        wait_until(lambda: seen)
        gevent.sleep(50 * interval)
        assert len(seen) == 1
        free.set()
        wait_until(lambda: len(seen) > 3)


def test_without_a_path_there_are_no_checks(site, checker):
    mine = checker(site.address, path=None)
    mine.start()
    assert not mine.is_started
    mine.stop()


def test_stopped_in_any_phase(checker):
    """Before the first, waiting for an answer, between two; and started again."""
    seen = []

    def script(sock):
        seen.append(sock)
        gevent.sleep(PATIENCE)

    with raw_server(script) as address:
        mine = checker(address)
        mine.stop()
        mine.start()
        mine.stop()
        assert not mine.is_started
        mine.start()
        wait_until(lambda: seen)
        mine.stop()
        assert not mine.is_started
        assert mine.client.statistics().used == 0
        assert mine.health.statistics().checks_failed == 0, "a check that was ended says nothing"
        mine.start()
        wait_until(lambda: len(seen) == 2)


def test_stopped_by_on_change(site, checker):
    site.answer = lambda: Response(status=503)
    mine = checker(site.address, on_change=lambda is_up: mine.stop())
    mine.start()
    greenlet = mine._greenlet
    greenlet.join(PATIENCE)
    assert greenlet.successful()
    assert len(site.seen) == 1
    assert not mine.is_started


def test_on_change_that_raises(site, checker, caplog):
    site.answer = lambda: Response(status=503)

    def on_change(is_up):
        raise RuntimeError("no")

    mine = checker(site.address, name="app", on_change=on_change)
    mine.start()
    wait_until(lambda: len(site.seen) > 2)
    assert logged(caplog)[1:] == ["app: on_change failed"]


def test_a_client_that_was_closed(site, checker):
    mine = checker(site.address)
    mine.client.close()
    assert not mine.check()
    assert "closed" in mine.reason


# -- when


def test_each_pause_knows_of_the_check_before(site, checker, monkeypatch):
    asked, seconds = [], 0.02

    def pause(count, interval, took, number):
        asked.append((count, interval, took))
        return 0.0

    def answer():
        gevent.sleep(seconds)
        return Response("x")

    monkeypatch.setattr(health_checks, "pause_before", pause)
    site.answer = answer
    mine = checker(site.address, interval=7.0)
    assert (mine.reason, mine.is_started) == ("", False)
    mine.start()
    assert mine.is_started
    wait_until(lambda: len(asked) > 3)
    mine.stop()
    assert [count for count, _, _ in asked] == list(range(len(asked)))
    assert {interval for _, interval, _ in asked} == {7.0}
    assert asked[0][2] == 0.0
    assert all(seconds <= took < PATIENCE for _, _, took in asked[1:])


def test_the_first_is_soon():
    assert [pause_before(0, 5.0, 0.0, number) for number in (0.0, 0.5)] == [0.0, 0.5 * FIRST_WITHIN]
    assert pause_before(0, 0.2, 0.0, 0.5) == 0.1


def test_the_second_is_anywhere_in_the_interval():
    assert pause_before(1, 5.0, 0.0, 0.5) == 2.5
    assert pause_before(1, 5.0, 0.0, 0.0) == 5.0 * LEAST_PAUSE


def test_the_others_keep_to_the_interval():
    assert pause_before(2, 5.0, 0.0, 0.0) == pytest.approx(5.0 * (1 - JITTER))
    assert pause_before(2, 5.0, 0.0, 1.0) == pytest.approx(5.0 * (1 + JITTER))
    assert pause_before(9, 5.0, 2.0, 0.5) == pytest.approx(3.0)
    assert pause_before(9, 5.0, 7.0, 0.5) == 5.0 * LEAST_PAUSE
    numbers = [place / 1000 for place in range(1000)]
    assert mean(pause_before(2, 5.0, 0.0, number) for number in numbers) == pytest.approx(5.0, rel=0.01)
