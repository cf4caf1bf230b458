"""Limits that hold for all workers of a server, and, by a real Redis that goes and comes back, for all machines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time

import gevent
import pytest
from arbiters import arbiter
from conftest import PATIENCE, wait_until
from peers import program, started
from proxies import Origin
from served import once

from greensock.limits import redis_share
from greensock.limits.redis_share import RedisShare, Used, has_redis, is_storage
from greensock.proxy import Guard, GuardOptions, parse_config
from greensock.proxy.proxy_program import CannotStart, ProxyProgram
from greensock.shared_pages import SharedPages
from greensock.sources import ProxySource, Refused

pytestmark = once
needs_redis = pytest.mark.skipif(not has_redis(), reason="the package redis is not installed")

CLIENT = "192.0.2.1"
#: What the rate of the tests allows.
RATE, BURST = 200, 20
#: Seconds for which is asked as fast as can be.
LONG, SHORT = 0.5, 0.2


@contextlib.contextmanager
def redis(place):
    """A Redis, on a Unix socket in ``place``: its process."""
    path = place / "redis.sock"
    command = [program("redis-server"), "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    with started(command, place, "ready to accept connections") as (process, _, _):
        yield process


def machine(url, period=0.1, **options):
    """Return the guard of one machine, and what shares its rates with the others."""
    guard = Guard(GuardOptions(**{"request_rate": RATE, "request_burst": BURST} | options))
    return guard, RedisShare(url, [guard], period)


def ask(guard, client=CLIENT):
    """Return 1 if a client may ask, else 0."""
    return guard.request(client, time.monotonic(), "GET", b"a") is None


def hammer(guards, seconds, shares=()):
    """Ask all of them as often as can be, until Redis was told some times, too; return how many were taken, by each,
    and how long it took."""
    taken, began, told = [0] * len(guards), time.monotonic(), [share.told + 4 for share in shares]
    while (took := time.monotonic() - began) < seconds or any(
        share.told < least for share, least in zip(shares, told, strict=True)
    ):
        for number, guard in enumerate(guards):
            taken[number] += ask(guard)
        gevent.sleep(0)
    return taken, took


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("redis://localhost", True),
        ("redis://:secret@[::1]:6379/3", True),
        ("rediss://a.example:1/0", True),
        ("unix:///run/redis.sock", True),
        ("unix://", False),
        ("redis://", False),
        ("redis://a:port", False),
        ("memcached://a", False),
        ("", False),
        (None, False),
    ],
)
def test_what_a_storage_is(url, is_one):
    assert is_storage(url) == is_one


@needs_redis
def test_a_rate_holds_for_two_machines_and_for_each_while_redis_is_away(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(redis_share, "TIMEOUT", PATIENCE)  # it is late where a machine has much to do, and not away
    with contextlib.ExitStack() as stack:
        url = f"unix://{tmp_path}/redis.sock"
        machines = [machine(url) for _ in range(2)]
        guards = [guard for guard, _ in machines]
        shares = [share for _, share in machines]
        with redis(tmp_path) as process:
            for share in shares:
                share.start()
                stack.callback(share.stop)
            taken, took = hammer(guards, LONG, shares)
            # Once a burst each, and what is under way while it is told.
            assert 0.3 * RATE * took < sum(taken) < 1.3 * RATE * took + 2 * BURST
            assert not any(share.failed for share in shares)
            process.kill()
            wait_until(lambda: sum(map(ask, guards)) >= 0 and all(share.is_away for share in shares))
            taken, took = hammer(guards, SHORT)
            assert all(0.3 * RATE * took < each < 1.3 * RATE * took + 2 * BURST for each in taken), "each by itself"
        with redis(tmp_path):  # with nothing in it
            wait_until(lambda: not any(share.is_away for share in shares))
            taken, took = hammer(guards, LONG, shares)
            assert 0.3 * RATE * took < sum(taken) < 1.3 * RATE * took + 2 * BURST
            stack.close()  # before it is away once more
    said = [record.getMessage() for record in caplog.records if record.name == "greensock.server"]
    counts = [len([each for each in said if words in each]) for words in ("is away", "is back")]
    assert counts == [2, 2], "each says so once"


@needs_redis
def test_what_is_in_redis_is_bounded_and_goes(tmp_path):
    """What was written there by others, or by hand, does no harm, and nothing stays."""
    import redis as package

    url = f"unix://{tmp_path}/redis.sock"
    with redis(tmp_path):
        guard, share = machine(url, period=0.01, request_rate=100, request_burst=2)
        other, other_share = machine(url, period=0.01, request_rate=100, request_burst=2)
        client = package.Redis.from_url(url)
        for key, value in (("1", b"garbage"), ("2", b"1e300"), ("3", b"nan"), ("4", b"-inf"), ("5", b"")):
            client.set(f"greensock:request::192.0.0.{key}", value)
        client.lpush("greensock:request::192.0.0.6", "of another kind")
        share.start()
        other_share.start()
        try:
            for number in range(300):
                assert ask(guard, f"192.0.{number // 250}.{number % 250}")
            wait_until(lambda: share.told >= 3)
            assert not share.failed
            assert client.dbsize() <= 300
            assert ask(other, "192.0.0.1")
            wait_until(lambda: client.dbsize() == 0)
        finally:
            share.stop()
            other_share.stop()
            client.close()


class Told:
    """In the place of a Redis: what it was told, and whether it was away then."""

    def __init__(self):
        self.fails, self.counts = True, []

    def eval(self, script, count, *rest):
        self.counts.append([int(number) for number in rest[count:-1:3]])
        if self.fails:
            raise ConnectionError("on purpose")
        return [b"5"] * count

    def close(self):
        pass


@needs_redis
def test_what_was_used_while_it_was_away_is_not_told(monkeypatch, caplog):
    """Each machine has allowed it by itself: what was too much together would have to be waited off."""
    monkeypatch.setattr(redis_share, "SHORTEST_PAUSE", 0.001)
    heard = []

    class Busy:
        def share_used(self):
            pass

        def take_used(self):
            return [Used("a", 7, 0.1, 1.0, lambda ahead, now: heard.append(ahead))]

    share = RedisShare("redis://:secret@a.example:1/0", [Busy()], 0.001)
    share._client = told = Told()
    share.start()
    try:
        wait_until(lambda: share.failed >= 3)
        assert told.counts == [[7], *[[0]] * (len(told.counts) - 1)]
        assert not heard
        told.counts.clear()
        told.fails = False
        wait_until(lambda: share.told >= 3)
        assert told.counts[:3] == [[0], [7], [7]]
        assert set(heard) == {5.0}
        assert not share.is_away
    finally:
        share.stop()
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" is ")[0] for text in said] == ["Redis at redis://a.example:1/0"] * 2


@needs_redis
def test_one_that_is_silent_is_given_up(tmp_path, monkeypatch, caplog):
    """And it is tried again later and later."""
    monkeypatch.setattr(redis_share, "TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "redis.sock"))
        silent.listen()
        guard, share = machine(f"unix://{tmp_path}/redis.sock", 0.001)
        share.start()
        try:
            assert ask(guard)
            wait_until(lambda: share.is_away)
        finally:
            share.stop()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "imeout" in said
    wait_until(lambda: share._client is None)
    share.is_away, pauses = False, [0.001]
    for _ in range(7):
        pauses.append(share._note_away(OSError("x"), pauses[-1]))
    assert pauses[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_without_the_package_it_is_said(monkeypatch):
    monkeypatch.setattr("greensock.limits.redis_share.has_redis", lambda: False)
    with pytest.raises(ValueError, match=r"pip install greensock\[redis\]"):
        RedisShare("redis://localhost", [])


# -- processes


def proxied(place, origin, guard, *arguments):
    """``greensock proxy`` with two workers."""
    path = place / "proxy.toml"
    path.write_text(
        f'listen = "127.0.0.1:0"\n[upstreams.a]\nservers = ["{origin.url}"]\n[timeouts]\ndrain = 1\n{guard}\n'
        '[[routes]]\nupstream = "a"\n[[routes]]\npath = "/few"\nupstream = "a"\n'
        "guard = { request_rate = 0.001, request_burst = 2 }\n"
    )
    command = [sys.executable, "-m", "greensock", "proxy", "--config", str(path), "--workers=2", *arguments]
    return arbiter(place, "", command=command)


def test_a_table_without_memory_is_refused(monkeypatch):
    """At a reload all stays as it was."""
    least = {"listen": ["127.0.0.1:0"], "upstreams": {"app": {"servers": ["http://127.0.0.1:9000"]}}}
    config = parse_config(least)
    larger = parse_config({**least, "guard": {"request_rate": 1}})

    def full(*arguments):
        raise OSError(12, "Cannot allocate memory")

    pages, source = SharedPages(2), ProxySource(config, lambda: larger)
    source.share(pages)
    monkeypatch.setattr(pages, "block", full)
    with pytest.raises(Refused, match="guard: memory for max_clients expected: Cannot allocate memory"):
        source.read()
    assert source.config is config
    program = ProxyProgram(config, lambda: larger)
    program.start()
    try:
        before = program.gateway
        monkeypatch.setattr("greensock.limits.client_table.mmap.mmap", full)
        assert not program.reload()
        assert program.gateway is before
    finally:
        program.stop()
    with pytest.raises(CannotStart, match="memory for max_clients"):
        ProxyProgram(larger).start()


def kept_by(master):
    """Return a connection on which a request was answered; None if there are too many for now."""
    sock = master.connect()
    sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    if b" 200 " in sock.recv(4096):
        return sock
    sock.close()
    return None


def test_limits_hold_for_all_workers(serve, tmp_path):
    """Requests, a route's too, and connections; a reload keeps them."""
    origin = serve(Origin)
    guard = "[guard]\nrequest_rate = 0.001\nrequest_burst = 40\nmax_connections = 6\n"
    with proxied(tmp_path, origin, guard) as master:
        wait_until(lambda: len(re.findall("Booting worker", master.log())) == 2)
        assert [master.ask("/few").status for _ in range(4)] == [200, 200, 429, 429]
        kept = []
        try:
            for _ in range(6):
                kept.append(wait_until(lambda: kept_by(master)))
            wait_until(lambda: master.ask().status == 429)  # a seventh connection
        finally:
            for sock in kept:
                sock.close()
        wait_until(lambda: master.ask().status == 200)
        master.send(signal.SIGHUP)
        wait_until(lambda: len(re.findall("Booting worker", master.log())) == 4)
        assert master.ask("/few").status == 429, "the reload keeps what was used"
        statuses = [master.ask().status for _ in range(40)]
        assert statuses.count(200) < 35
        assert statuses[-1] == 429
        assert master.stop() == 0


def test_the_limits_of_a_server_hold_for_all_workers(tmp_path):
    command = [sys.executable, "-m", "greensock", "run", "served_classes:Limited", "--bind", "127.0.0.1:0"]

    def greeted(master):
        """Return a connection and who serves it; None if there are too many for now."""
        sock = master.connect()
        pid = sock.recv(10)
        if pid:
            return sock, int(pid)
        sock.close()
        return None

    with arbiter(tmp_path, "", command=[*command, "--workers=2"]) as master, contextlib.ExitStack() as stack:
        found = [wait_until(lambda: greeted(master)) for _ in range(3)]
        for sock, _ in found:
            stack.callback(sock.close)
        assert [greeted(master) for _ in range(3)] == [None] * 3
        for pid in {pid for _, pid in found}:
            os.kill(pid, signal.SIGKILL)
        sock, _ = wait_until(lambda: greeted(master))
        sock.close()
