"""Each timeout of the proxy by its name, and whom it blames."""

from __future__ import annotations

import contextlib
import socket
import time

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import drain, reset
from proxy_peers import (  # noqa: F401  # fixtures
    CHUNKED,
    CLOSE,
    GET,
    KEEP,
    LARGE,
    LENGTH,
    LONG_POST,
    SPLICED,
    dial,
    health_of,
    held_bytes,
    origin,
    proxied,
    record_of,
    request,
    says,
    status_of,
    wait_gone,
)
from scripts import OK, scripted

import greensock.proxy.relay
import greensock.proxy.response_relay
from greensock.core import connector
from greensock.proxy import Buffering, ProxyTimeouts, ServerOptions

# -- timeouts, each by its name


#: A timeout that is waited for, and one that is not to be.
SHORT, NEVER = 0.1, 60.0


def timed(**short):
    """Return timeouts that are all too long but these."""
    names = ("request_header", "request_body", "keep_alive", "send", "queue", "connect")
    names += ("upstream_send", "upstream_head", "upstream_idle", "tunnel")
    return ProxyTimeouts(**{**dict.fromkeys(names, NEVER), "linger": 0.2, **short})


#: Nothing is held for a slow client: its server waits.
UNHELD = Buffering(0, 0)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"


UPGRADE = b"GET / HTTP/1.1\r\nUpgrade: x\r\nConnection: Upgrade\r\nHost: a\r\n\r\n"


def check_failed(proxy, sock, status, reason, blamed):
    """Check what a client gets; a status of 0 is an answer that is cut off, by a reset if the client takes nothing."""
    began = time.monotonic()
    came, was_reset = wait_gone(sock)
    assert time.monotonic() - began < PATIENCE
    if status:
        assert status_of(came) == status
    else:
        assert was_reset is (reason == "client-timeout")
        assert came.startswith(b"HTTP/1.1 200 OK\r\n")
        assert not came.endswith(b"\r\n0\r\n\r\n")
    record = record_of(proxy)
    assert record.reason == reason
    assert record.duration >= SHORT * 0.9
    assert health_of(proxy) == (0, int(blamed))


@pytest.fixture
def full():
    """A server that takes no connection: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                sock.connect(listener.getsockname())
        yield "http://{}:{}".format(*listener.getsockname())


def test_the_connect_timeout(proxied, dial, full, origin):
    proxy = proxied(full, timeouts=timed(connect=SHORT))
    check_failed(proxy, dial(proxy, request("POST")), 504, "connect-timeout", True)
    proxy = proxied(full, ServerOptions(origin.url, backup=True), timeouts=timed(connect=SHORT))
    assert status_of(read_all(dial(proxy, request("POST")))) == 200, "nothing was sent: another is asked"


def test_a_silent_server_does_not_use_up_the_total_time(proxied, dial, full, origin):
    """It is blamed, and another has the rest of the time."""
    proxy = proxied(full, ServerOptions(origin.url, backup=True), timeouts=timed(total=1.0))
    assert status_of(read_all(dial(proxy, request("POST")))) == 200
    assert (health_of(proxy), health_of(proxy, 1)) == ((0, 1), (1, 0))
    assert proxy.retries == 1


def test_a_name_whose_first_address_is_silent(proxied, dial, full, origin, monkeypatch):
    addresses = [("127.0.0.1", int(url.rpartition(":")[2])) for url in (full, origin.url)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(connector, "getaddrinfo", lambda *arguments: found)
    proxy = proxied("http://some.invalid:80", timeouts=timed(connect=1.0))
    assert status_of(read_all(dial(proxy, GET))) == 200
    assert record_of(proxy).duration < 1.0
    assert health_of(proxy) == (1, 0)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_the_head_timeout(proxied, dial, answer):
    with scripted(says(answer)) as server:
        proxy = proxied(server.url, timeouts=timed(upstream_head=SHORT))
        sock = dial(proxy, b"GET / HTTP/1.0\r\n" + CLOSE)
        check_failed(proxy, sock, 504, "head-timeout", True)


def test_interim_answers_do_not_prolong_the_head_timeout(proxied, dial):
    def script(server, sock, number):
        server.head(sock)
        for _ in range(8):
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            gevent.sleep(SHORT / 2)
        sock.sendall(OK)

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed(upstream_head=SHORT))
        check_failed(proxy, dial(proxy, b"GET / HTTP/1.0\r\n" + CLOSE), 504, "head-timeout", True)


@pytest.mark.parametrize("head", [LENGTH, CHUNKED, SPLICED, b"X: y"])
def test_the_idle_timeout(proxied, dial, head):
    with scripted(says(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")) as server:
        proxy = proxied(server.url, timeouts=timed(upstream_idle=SHORT))
        check_failed(proxy, dial(proxy, GET), 0, "body-timeout", True)


def test_the_queue_timeout(proxied, dial):
    with scripted(says(b"")) as server:
        proxy = proxied(ServerOptions(server.url, max_connections=1), timeouts=timed(queue=SHORT))
        first = dial(proxy, GET)
        wait_until(lambda: server.heads)
        check_failed(proxy, dial(proxy, GET), 503, "queue-timeout", False)
        reset(first)


def test_the_upstream_send_timeout(proxied, dial):
    go = Event()

    def script(server, sock, number):
        server.head(sock)
        go.wait(PATIENCE)

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed(upstream_send=SHORT))
        sock = dial(proxy, LONG_POST)
        sending = gevent.spawn(flood, sock)
        check_failed(proxy, sock, 504, "send-timeout", True)
        go.set()
        sending.get(timeout=PATIENCE)


def flood(sock):
    with contextlib.suppress(ConnectionError):
        while True:
            sock.sendall(bytes(65536))


@pytest.mark.parametrize("framing", [b"Content-Length: 50", b"Content-Length: 500000", b"Transfer-Encoding: chunked"])
def test_the_request_body_timeout(proxied, dial, framing):
    """A server that works for it already is left; it is not to blame."""
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        assert wait_gone(sock)[1]
        gone.set()

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed(request_body=SHORT))
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + CLOSE + b"5\r\n12345\r\n")
        check_failed(proxy, sock, 408, "client-timeout", False)
        if framing != b"Content-Length: 50":
            assert gone.wait(PATIENCE)
        else:
            assert server.accepted == 0


@pytest.mark.parametrize("head", [CHUNKED, SPLICED])
def test_the_send_timeout(proxied, dial, head):
    """A client that takes nothing is not waited for, and the server not blamed; it is left."""
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(b"ffff\r\n" + bytes(65535) + b"\r\n")
        gone.set()

    with scripted(script) as server:
        proxy = proxied(server.url, buffer=UNHELD, timeouts=timed(send=SHORT))
        sock = dial(proxy, GET)
        assert gone.wait(PATIENCE)
        check_failed(proxy, sock, 0, "client-timeout", False)


def test_a_client_that_pauses_longer_than_a_server_may(proxied, dial):
    """The server's timeout is not the client's."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + SPLICED + b"\r\n\r\n")
        sock.sendall(bytes(LARGE))
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed(upstream_idle=SHORT))
        sock = dial(proxy, GET)
        wait_until(lambda: any(conn.statistics().bytes_queued for conn in proxy.connections))
        gevent.sleep(3 * SHORT)
        assert drain(sock) > LARGE
        assert record_of(proxy).reason == ""


@pytest.fixture(params=[SHORT, NEVER])
def long_wait(request, monkeypatch):
    """From when on a wait for a client is long: sooner than in these tests, or later."""
    for module in (greensock.proxy.relay, greensock.proxy.response_relay):
        monkeypatch.setattr(module, "LONG_WAIT", request.param)
    return request.param


@pytest.mark.parametrize("head", [CHUNKED + b"\r\n\r\n1c9c380", SPLICED + b"\r\n"])
def test_a_server_that_gives_up_on_a_slow_reader(proxied, dial, head, long_wait):
    """Its own timeout bites: whoever reads slowly must not have it ejected."""
    enough = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.settimeout(SHORT)
        with contextlib.suppress(TimeoutError):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + bytes(LARGE))
        assert enough.wait(PATIENCE)
        reset(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, buffer=UNHELD, timeouts=timed())
        sock = dial(proxy, GET)
        wait_until(lambda: any(conn.statistics().bytes_queued for conn in proxy.connections))
        gevent.sleep(2 * SHORT)
        enough.set()
        check_failed(proxy, sock, 0, "body-incomplete", long_wait == NEVER)


def test_a_server_that_can_send_nothing_takes_nothing(proxied, dial, long_wait):
    """It is stuck on an answer that its client does not read, so that it reads no more of the request."""

    def script(server, sock, number):
        server.head(sock)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + SPLICED + b"\r\n\r\n" + bytes(LARGE))
        given_up.set()

    def upload(sock):
        with contextlib.suppress(ConnectionError):
            sock.sendall(LONG_POST + bytes(LARGE))

    given_up = Event()
    with scripted(script) as server:
        proxy = proxied(server.url, buffer=UNHELD, timeouts=timed(upstream_send=3 * SHORT))
        sock = dial(proxy)
        sender = gevent.spawn(upload, sock)
        assert given_up.wait(PATIENCE)
        gevent.sleep(2 * SHORT)
        check_failed(proxy, sock, 0, "send-timeout", long_wait == NEVER)
        sender.join(PATIENCE)


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n\r\n"])
def test_a_server_that_gives_up_on_a_slow_upload(proxied, dial, said, with_reset, long_wait):
    enough = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(said)
        assert enough.wait(PATIENCE)
        if with_reset:
            reset(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed())
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + CHUNKED + b"\r\n" + CLOSE + b"3\r\nabc\r\n")
        wait_until(lambda: server.heads)
        gevent.sleep(2 * SHORT)
        enough.set()
        reason = "body-incomplete" if said else "no-response"
        check_failed(proxy, sock, 0 if said else 502, reason, long_wait == NEVER)


@pytest.mark.parametrize("had_longer", [False, True])
def test_a_server_that_closes_behind_a_slow_upload(proxied, dial, monkeypatch, had_longer):
    """It is blamed if it had the whole request for longer than it waited for that."""
    monkeypatch.setattr(greensock.proxy.relay, "LONG_WAIT", SHORT)

    def script(server, sock, number):
        server.head(sock)
        read_exactly(sock, len(b"3\r\nabc\r\n0\r\n\r\n"))
        if had_longer:
            gevent.sleep(time.monotonic() - began + SHORT)

    began = time.monotonic()
    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed())
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + CHUNKED + b"\r\n" + CLOSE + b"3\r\nabc\r\n")
        wait_until(lambda: server.heads)
        gevent.sleep(3 * SHORT)
        sock.sendall(b"0\r\n\r\n")
        check_failed(proxy, sock, 502, "no-response", had_longer)


@pytest.mark.parametrize("answers", [True, False])
def test_an_early_head_before_a_slow_upload(proxied, dial, answers):
    """The time for the answer's body begins when the server has the whole request."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n\r\n")
        read_exactly(sock, len(b"1\r\nx\r\n" * 5 + b"0\r\n\r\n"))
        if answers:
            gevent.sleep(1.4 * SHORT)
            sock.sendall(b"2\r\nok\r\n0\r\n\r\n")
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed(upstream_idle=4 * SHORT))
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + CHUNKED + b"\r\n" + CLOSE)
        for _ in range(5):
            gevent.sleep(2.2 * SHORT)
            sock.sendall(b"1\r\nx\r\n")
        sock.sendall(b"0\r\n\r\n")
        if answers:
            assert read_all(sock).endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            assert record_of(proxy).reason == ""
        else:
            check_failed(proxy, sock, 0, "body-timeout", True)
            assert record_of(proxy).duration >= 14 * SHORT


def drips(head):
    """Return a script: an answer that comes byte by byte, and without an end."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(b"1\r\nx\r\n")
                gevent.sleep(SHORT / 10)

    return script


@pytest.mark.parametrize(
    ("script", "status"), [(says(b""), 504), (drips(LENGTH + b"0000"), 0), (drips(CHUNKED), 0), (drips(SPLICED), 0)]
)
def test_the_total_timeout(proxied, dial, script, status):
    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timed(total=SHORT))
        check_failed(proxy, dial(proxy, GET), status, "total-timeout", status == 504)


def test_the_total_timeout_of_who_waits(proxied, dial):
    """No server is to blame for what it was not asked."""
    with scripted(says(b"")) as server:
        proxy = proxied(ServerOptions(server.url, max_connections=1), timeouts=timed())
        first = dial(proxy, GET)
        wait_until(lambda: server.heads)
        proxy.gateway.timeouts = timed(total=SHORT)
        proxy.gateway._usual = proxy.gateway._deadlines_for(proxy.gateway.timeouts)
        check_failed(proxy, dial(proxy, GET), 504, "total-timeout", False)
        reset(first)


def test_the_total_timeout_of_a_slow_upload(proxied, dial):
    """A client can't have a server ejected that waits for it."""
    with scripted(says(b"")) as server:
        proxy = proxied(server.url, timeouts=timed(total=SHORT))
        check_failed(proxy, dial(proxy, LONG_POST + b"12345"), 504, "total-timeout", False)


def test_the_header_timeout(proxied, dial, origin):
    proxy = proxied(origin.url, timeouts=timed(request_header=SHORT))
    assert status_of(read_all(dial(proxy, b"GET / HTTP/1.1\r\nHo"))) == 408
    assert record_of(proxy).reason == "head-timeout"


def test_the_keep_alive_timeout(proxied, dial, origin):
    proxy = proxied(origin.url, timeouts=timed(keep_alive=SHORT))
    assert read_all(dial(proxy, b"GET /x HTTP/1.1\r\n" + KEEP)).endswith(b"GET /x "), "and then the end"


@pytest.mark.parametrize("talks", [False, True])
def test_the_tunnel_timeout(proxied, dial, talks):
    with scripted(says(SWITCH + b"hello")) as server:
        proxy = proxied(server.url, timeouts=timed(tunnel=SHORT, total=SHORT / 2 if talks else None))
        sock = dial(proxy, UPGRADE)
        began = time.monotonic()
        while talks and time.monotonic() - began < 4 * SHORT:
            sock.sendall(b"x")
            gevent.sleep(SHORT / 20)
        came, was_reset = wait_gone(sock)
        assert came.endswith(b"\r\n\r\nhello")
        assert was_reset
        assert record_of(proxy).duration > SHORT * (4 if talks else 1)
