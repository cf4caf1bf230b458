"""What is our own limit or shortage is blamed on no server; and how a group comes back after an outage."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections import Counter

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from gevent.event import Event
from proxies import Origin, Recorded, gateway_to
from proxy_peers import health_of, proxied, status_of  # noqa: F401  # fixtures
from scripts import OK, Script, scripted

import greensock.core.connector
from greensock.http import Limits
from greensock.proxy import HealthOptions, ListenOptions, Standing
from greensock.proxy.gateway import KEPT_BACK
from greensock.proxy.upstream.health_checks import Checker

GET = b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def ask(proxy, target=b"/"):
    with socket.create_connection(proxy.address) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(GET % target)
        return read_all(sock)


def servers_of(proxy):
    return proxy.gateway.upstreams["site"].all


# -- limits


@pytest.mark.parametrize("target", [b"/large/100000", b"/chunked"])
def test_the_limit_of_requests_is_none_of_answers(proxied, serve, target):
    origin = serve(Origin)
    proxy = proxied(origin.url, limits=Limits(max_body=10))
    for _ in range(4):
        assert status_of(ask(proxy, target)) == 200
    assert health_of(proxy) == (4, 0)
    with socket.create_connection(proxy.address) as sock:
        sock.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n")
        assert status_of(read_all(sock)) == 413


def large_head(server, sock, number):
    server.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000 + b"\r\nContent-Length: 0\r\n\r\n")


def large_body(server, sock, number):
    server.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000)


def large_chunks(server, sock, number):
    server.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2328\r\n" + b"x" * 9000 + b"\r\n0\r\n\r\n")


def says_chunks(chunk, times=1):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * times + b"0\r\n\r\n")

    return script


long_extension = says_chunks(b"5;x=" + b"y" * 300 + b"\r\nhello\r\n")
many_extensions = says_chunks(b"1;x=" + b"y" * 80 + b"\r\nx\r\n", 2)


def many_interim(server, sock, number):
    server.head(sock)
    sock.sendall(b"HTTP/1.1 103 Early\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "script", [large_head, large_body, large_chunks, long_extension, many_extensions, many_interim]
)
def test_a_limit_of_answers_ejects_nobody(proxied, script):
    limits = Limits(max_head=8000, max_body=8000, max_interim=2, max_chunk_excess=100)
    with scripted(script) as server:
        proxy = proxied(server.url, answer_limits=limits, health=HealthOptions(max_fails=1))
        assert [ask(proxy).count(b"HTTP/1.1 502") for _ in range(3)] == [1] * 3
        assert health_of(proxy) == (0, 0)
        assert servers_of(proxy)[0].health.is_clear
        assert proxy.failures == {"answer-too-large": 3}


# -- shortages


class Short:
    """Has the way to the servers fail as the system would."""

    def __init__(self, monkeypatch, number, condition=lambda: True, only=None):
        self.number: int | None = number
        short = self

        class Sock(greensock.core.connector.RawSocket):
            def connect_ex(self, address):
                if short.number is not None and condition() and only in (None, address):
                    return short.number
                return super().connect_ex(address)

        monkeypatch.setattr(greensock.core.connector, "RawSocket", Sock)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EADDRNOTAVAIL, "out-of-ports"),
        (errno.EAGAIN, "out-of-ports"),
        (errno.EMFILE, "out-of-descriptors"),
        (errno.ENFILE, "out-of-descriptors"),
        (errno.ENOBUFS, "out-of-memory"),
        (errno.ENOMEM, "out-of-memory"),
    ],
)
def test_a_shortage_is_503_and_blames_nobody(proxied, serve, monkeypatch, caplog, number, reason):
    origin = serve(Origin)
    proxy = proxied(origin.url, health=HealthOptions(max_fails=1))
    short = Short(monkeypatch, number)
    for _ in range(5):
        answer = ask(proxy)
        assert (status_of(answer), b"\r\nRetry-After: 1\r\n" in answer) == (503, True)
    assert [record.reason for record in proxy.records] == [reason] * 5
    assert health_of(proxy) == (0, 0)
    assert servers_of(proxy)[0].health.is_clear
    said = [each for each in caplog.records if each.name == "greensock.upstream"]
    assert len(said) == 1, "not a line for each"
    assert os.strerror(number) in said[0].getMessage()
    short.number = None
    assert status_of(ask(proxy)) == 200


def test_ports_are_short_for_one_server_only(proxied, serve, monkeypatch):
    one, other = serve(Origin), serve(Origin)
    Short(monkeypatch, errno.EADDRNOTAVAIL, only=one.address)
    proxy = proxied(one.url, other.url)
    assert [status_of(ask(proxy)) for _ in range(4)] == [200] * 4
    assert (len(other.seen), health_of(proxy)) == (4, (0, 0))


def test_a_shortage_is_no_failed_check(serve, monkeypatch, caplog):
    origin = serve(Origin)
    gateway = gateway_to(origin.url, health=HealthOptions(path="/", fall=1))
    server = gateway.upstreams["site"].all[0]
    checker = Checker(origin.address, server.health.options, server.health, gateway._client_for(0, None))
    short = Short(monkeypatch, errno.EMFILE)
    assert not checker.check()
    assert (server.health.standing, server.health.statistics().checks_failed) == (Standing.UP, 0)
    short.number = None
    assert checker.check()
    gateway._client_for(0, None).close()


def test_what_is_idle_makes_room(proxied, serve, monkeypatch):
    """A kept connection to one server is worth less than the request for another."""
    first, second = serve(Origin), serve(Origin)
    proxy = proxied(first.url, second.url, retries=0)
    assert status_of(ask(proxy)) == 200
    idle = servers_of(proxy)[0].pool.state
    assert idle.statistics().idle == 1
    Short(monkeypatch, errno.EMFILE, lambda: idle.statistics().idle)
    assert status_of(ask(proxy)) == 200
    assert (len(first.seen), len(second.seen), idle.statistics().idle) == (1, 1, 0)
    assert health_of(proxy, 0) == health_of(proxy, 1) == (1, 0)


# -- descriptors

PROXY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
from gevent import monkey
monkey.patch_all()
import gevent
from greensock.proxy import parse_config, ReverseProxy
config = parse_config({"listen": ["127.0.0.1:0"], "upstreams": {"site": {"servers": sys.argv[3:]}},
                       "server": eval(sys.argv[2])})
gateway = config.gateway()
proxy = ReverseProxy(config.listen[0], gateway)
proxy.start()
print(proxy.server_port, gateway.most_clients, flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.readline)
servers = [each.health.statistics() for each in gateway.upstreams["site"].all]
print(sum(each.failed for each in servers), sum(each.ejections for each in servers), dict(proxy.failures))
proxy.abort()
"""


@contextlib.contextmanager
def process(limit, server, *urls):
    """Start a proxy that may open so many descriptors; yields it, its port, and how many clients it may have."""
    arguments = [sys.executable, "-c", PROXY, str(limit), repr(server), *urls]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            port, most = started.stdout.readline().split()
            yield started, int(port), most
        finally:
            started.kill()


@pytest.mark.parametrize(
    ("server", "fewest", "greatest"), [({}, 50, 128), ({"max_workers": 10}, 128, 200)], ids=["usual", "few at a time"]
)
def test_clients_that_are_more_than_descriptors(server, fewest, greatest, serve):
    """They wait in the backlog; whoever is accepted has a way to a server, or gets it when a worker is free."""
    origins = serve(Origin), serve(Origin)
    with process(256, server, *(each.url for each in origins)) as (started, port, most):
        assert fewest < int(most) < greatest
        answers = Counter()

        def client():
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.settimeout(60)
                sock.sendall(GET % b"/")
                answers[status_of(read_all(sock))] += 1

        gevent.joinall([gevent.spawn(client) for _ in range(1000)], raise_error=True)
        started.stdin.write("\n")
        started.stdin.flush()
        assert started.stdout.read().split("\n")[0] == "0 0 {}"
    assert answers == {200: 1000}


@pytest.mark.parametrize("kind", ["uploads", "downloads"])
def test_what_slow_clients_take_beyond_two_descriptors(kind):
    """A slow upload has a second descriptor to its server, a download that nobody reads a pipe: but not all of them."""
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + bytes(8_000_000)
    there, asked, counts = Event(), [], []

    def script(server, sock, number):
        head = server.head(sock)
        if head.startswith(b"POST"):
            while sock.recv(1000):
                pass
        elif head.startswith(b"GET /large"):
            sock.sendall(large)
        else:
            asked.append(number)
            if len(asked) == 20:
                counts.append(count())
                there.set()
            there.wait(PATIENCE)
            sock.sendall(OK)

    def ask_as(sock):
        sock.sendall(GET % b"/")
        return status_of(read_all(sock))

    slow = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
    if kind == "uploads":
        slow = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    with (
        scripted(script) as server,
        process(300, {}, server.url) as (started, port, most),
        contextlib.ExitStack() as end,
    ):

        def count():
            return len(os.listdir(f"/proc/{started.pid}/fd"))

        def dial():
            sock = end.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.settimeout(PATIENCE)
            return sock

        others = [dial() for _ in range(20)]
        for _ in range(int(most) - 20):
            dial().sendall(slow)
        wait_until(lambda: server.accepted == int(most) - 20)
        every = 0.01
        while len(counts) < 30 or counts[-30] != counts[-1]:  # until all are stuck
            counts.append(count())
            gevent.sleep(every)
        jobs = [gevent.spawn(ask_as, sock) for sock in others]
        assert [job.get(timeout=PATIENCE) for job in jobs] == [200] * 20
        assert counts[-1] <= 300 - KEPT_BACK


def test_a_cap_on_connections(serve):
    origin = serve(Origin)
    with process(256, {"max_connections": 2, "backlog": 7}, origin.url) as (_, port, most):
        assert most == "2"
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
            for sock in socks:
                sock.settimeout(PATIENCE)
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            for sock in socks[:2]:
                assert status_of(sock.recv(1000)) == 200
            third = gevent.spawn(socks[2].recv, 1000)
            assert not third.join(0.1)
            assert not third.ready(), "it waits in the backlog"
            socks[0].close()
            assert status_of(third.get(timeout=PATIENCE)) == 200


def test_a_cap_is_one_for_all_listeners(serve):
    origin = serve(Origin)
    gateway = gateway_to(origin.url, listen=ListenOptions(max_connections=2))
    proxies = [serve(Recorded, gateway=gateway) for _ in range(2)]
    assert gateway.most_clients == 2
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(socket.create_connection(proxies[n].address)) for n in (0, 1, 1))
        wait_until(lambda: gateway.room() == 0)
        third.settimeout(PATIENCE)
        third.sendall(GET % b"/")
        first.close()
        assert status_of(read_all(third)) == 200
        assert second.fileno() > 0


def test_more_connections_than_descriptors_are_not_promised(serve, caplog):
    origin = serve(Origin)
    gateway = gateway_to(origin.url, listen=ListenOptions(max_connections=10**9))
    serve(Recorded, gateway=gateway)
    assert gateway.most_clients < 10**9
    [said] = [each.getMessage() for each in caplog.records if each.name == "greensock.server"]
    assert said.startswith("max_connections=1000000000: ")


# -- outages


class Flaky(Script):
    """A server that can be made to hang up."""

    def __init__(self):
        self.is_out = False
        self.answered = 0
        super().__init__(self._answer)

    def _answer(self, sock, number):
        while not self.is_out and self.head(sock):
            if not self.is_out:
                self.answered += 1
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_all_come_back_after_an_outage_of_all(proxied):
    """The first that answered got all requests for as long as the others' ejections had been doubled to."""
    with contextlib.ExitStack() as stack:
        flaky = [Flaky() for _ in range(3)]
        for each in flaky:
            stack.callback(each.close)
            each.is_out = True
        health = HealthOptions(max_fails=1, ejection_time=0.05)
        proxy = proxied(*(each.url for each in flaky), health=health)
        wait_until(lambda: ask(proxy) and min(each.health.statistics().ejections for each in servers_of(proxy)) > 8)
        for each in flaky:
            each.is_out = False
        assert status_of(ask(proxy)) == 200
        assert [status_of(ask(proxy)) for _ in range(30)] == [200] * 30
        assert min(each.answered for each in flaky) >= 8
        assert all(each.health.standing is Standing.UP for each in servers_of(proxy))
