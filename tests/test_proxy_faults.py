"""What goes wrong, each by its name, and exactly what comes of it: at the client, in the record, at the servers.

After every test no request is counted in, no connection to a server lent, and nobody waits for one.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import drain, reset
from proxies import closed_port
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
    server_of,
    status_of,
    wait_gone,
)
from scripts import OK, scripted

from greensock.proxy import Buffering, HealthOptions, ProxyTimeouts, ServerOptions
from greensock.proxy.upstream.health import Standing


def body_of(server, sock):
    """Read the head of a request and its three bytes."""
    head = server.head(sock)
    if b"Content-Length: 3" in head:
        read_exactly(sock, 3)
    return head


# -- servers


def refuses(server, sock, number):
    raise AssertionError("nobody comes")


def resets_at_once(server, sock, number):
    reset(sock)


def resets_before_the_body(server, sock, number):
    server.head(sock)
    reset(sock)


def resets_before_the_head(server, sock, number):
    body_of(server, sock)
    reset(sock)


def closes_before_the_head(server, sock, number):
    body_of(server, sock)


def resets_within_the_head(server, sock, number):
    body_of(server, sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    reset(sock)


def closes_within_the_head(server, sock, number):
    body_of(server, sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def stalls_before_the_head(server, sock, number):
    body_of(server, sock)
    wait_gone(sock)


def stalls_within_the_head(server, sock, number):
    body_of(server, sock)
    sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Le")
    wait_gone(sock)


def says_something_else(server, sock, number):
    body_of(server, sock)
    sock.sendall(b"220 mail.example ESMTP\r\n\r\n")


def cuts(head, rest=b"", *, with_reset=False, stalls=False):
    def script(server, sock, number):
        body_of(server, sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + rest)
        if stalls:
            wait_gone(sock)
        if with_reset:
            wait_until(lambda: server.heard)
            reset(sock)

    return script


#: What the server does; the reason; what GET and POST get of it, 0 for an answer that is cut; whether GET may be, and
#: POST may be tried again.
BEFORE = {
    refuses: ("connect-failed", 502, True, True),
    resets_at_once: ("no-response", 502, True, False),
    resets_before_the_body: ("no-response", 502, True, False),
    resets_before_the_head: ("no-response", 502, True, False),
    closes_before_the_head: ("no-response", 502, True, False),
    resets_within_the_head: ("no-response", 502, True, False),
    closes_within_the_head: ("no-response", 502, True, False),
    stalls_before_the_head: ("head-timeout", 504, True, False),
    stalls_within_the_head: ("head-timeout", 504, True, False),
    says_something_else: ("bad-response", 502, False, False),
}


@contextlib.contextmanager
def faulty(script):
    """Serve by the script; nobody listens if it refuses."""
    if script is refuses:
        yield f"http://127.0.0.1:{closed_port()}"
        return
    with scripted(script) as server:
        yield server.url


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("script", BEFORE, ids=lambda script: script.__name__)
def test_a_fault_before_the_answer(proxied, dial, script, method):
    reason, status, *_ = BEFORE[script]
    with faulty(script) as url:
        proxy = proxied(url, timeouts=ProxyTimeouts(upstream_head=0.05))
        answer = read_all(dial(proxy, request(method)))
        record = record_of(proxy)
        assert re.findall(rb"HTTP/1.1 ([2-9]\d\d)", answer) == [b"%d" % status]
        assert (record.status, record.reason, record.upstream_status, record.tries) == (status, reason, "-", 1)
        assert proxy.failures == {reason: 1}
        assert health_of(proxy) == (0, 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "PATCH"])
@pytest.mark.parametrize("script", BEFORE, ids=lambda script: script.__name__)
def test_a_fault_before_the_answer_with_another_server(proxied, dial, origin, script, method):
    reason, status, repeatable, always = BEFORE[script]
    again = always or (repeatable and method in ("GET", "PUT"))
    with faulty(script) as url:
        backup = ServerOptions(origin.url, backup=True)
        proxy = proxied(url, backup, timeouts=ProxyTimeouts(upstream_head=0.05))
        answer = read_all(dial(proxy, request(method)))
        record = record_of(proxy)
        found = record.status, record.reason, record.upstream_status, record.tries, proxy.retries
        assert found == ((200, "", "-, 200", 2, 1) if again else (status, reason, "-", 1, 0))
        assert [(each[0], each[3]) for each in origin.seen] == [(method, b"abc")] * again
        assert answer.endswith(b"%b /x abc" % method.encode()) is again
        assert health_of(proxy) == (0, 1)
        assert health_of(proxy, 1) == (int(again), 0)


@pytest.mark.parametrize("options", [{"retries": 0}, {"retry_budget": 0.0, "min_retry_rate": 0.0}])
def test_no_retry_that_was_not_paid_for(proxied, dial, origin, options):
    with scripted(closes_before_the_head) as server:
        proxy = proxied(server.url, ServerOptions(origin.url, backup=True), **options)
        assert status_of(read_all(dial(proxy, request("GET")))) == 502
        assert not origin.seen
        assert proxy.gateway.upstreams["site"].budget.refused == ("retries" not in options)


AFTER = {
    "length": (LENGTH, b"", "body-incomplete"),
    "within a length": (LENGTH, b"12345", "body-incomplete"),
    "chunks": (CHUNKED, b"", "body-incomplete"),
    "within a chunk's size": (CHUNKED, b"5", "body-incomplete"),
    "within a chunk": (CHUNKED, b"5\r\n123", "body-incomplete"),
    "between chunks": (CHUNKED, b"5\r\n12345\r\n", "body-incomplete"),
    "within the last chunk": (CHUNKED, b"5\r\n12345\r\n0\r\n", "body-incomplete"),
    "within what is spliced": (SPLICED, b"x" * 1_000_000, "body-incomplete"),
}


@pytest.mark.parametrize("how", ["closes", "resets", "stalls"])
@pytest.mark.parametrize("where", AFTER)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_fault_within_the_body(proxied, dial, origin, where, how, version):
    head, rest, reason = AFTER[where]
    with scripted(cuts(head, rest, with_reset=how == "resets", stalls=how == "stalls")) as server:
        server.heard = how != "resets"
        backup = ServerOptions(origin.url, backup=True)
        proxy = proxied(server.url, backup, timeouts=ProxyTimeouts(upstream_idle=0.1))
        sock = dial(proxy, b"GET / HTTP/%b\r\nConnection: keep-alive\r\n%b" % (version.encode(), KEEP))
        read_exactly(sock, 15)
        server.heard = True
        came, was_reset = wait_gone(sock)
        assert was_reset is (version == "1.0" and head == CHUNKED), "where the end would look whole, and only there"
        assert b"\r\n0\r\n\r\n" not in came
        if head != CHUNKED and how != "resets":
            assert came.endswith(b"\r\n\r\n" + rest), "what came before is not destroyed"
        record = record_of(proxy)
        assert record.reason == ("body-timeout" if how == "stalls" else reason)
        assert (record.status, record.upstream_status, record.tries) == (200, "200", 1)
        assert health_of(proxy) == (0, 1)
        assert not origin.seen, "the head was out"


def test_a_reset_within_what_ends_with_the_connection(proxied, dial):
    with scripted(cuts(b"X: y", b"some of it", with_reset=True)) as server:
        server.heard = False
        proxy = proxied(server.url)
        sock = dial(proxy, b"GET / HTTP/1.1\r\n" + KEEP)
        assert sock.recv(17) == b"HTTP/1.1 200 OK\r\n"
        server.heard = True
        answer = read_all(sock)
        assert b"Transfer-Encoding: chunked" in answer
        assert not answer.endswith(b"0\r\n\r\n"), "which shows that it was cut off"
        assert record_of(proxy).reason == "body-incomplete"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("how", ["closes", "resets", "says more"])
def test_a_kept_connection_that_was_given_up_while_idle(proxied, dial, how, method):
    """Nothing is lost, whatever the request is: it is looked at before it is used."""
    given_up = Event()

    def script(server, sock, number):
        while body_of(server, sock):
            sock.sendall(OK)
            if number == 1:
                given_up.wait()
                if how == "says more":
                    sock.sendall(OK.replace(b"ok", b"no"))
                    wait_gone(sock)
                elif how == "resets":
                    reset(sock)
                return

    with scripted(script) as server:
        proxy = proxied(server.url)
        assert read_all(dial(proxy, request("GET"))).endswith(b"ok")
        wait_until(lambda: server_of(proxy).pool.state.statistics().idle)
        given_up.set()
        [conn] = server_of(proxy).pool.state._sites[server_of(proxy).origin].idle
        wait_until(lambda: not conn.is_quiet())
        assert read_all(dial(proxy, request(method))).endswith(b"ok")
        assert server.accepted == 2
        assert [record.reused for record in proxy.records] == [False, False]
        assert health_of(proxy) == (2, 0)


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 200), ("POST", 502), ("DELETE", 200)])
def test_a_kept_connection_that_dies_under_the_request(proxied, dial, method, status):
    def script(server, sock, number):
        while body_of(server, sock):
            if len(server.heads) == 2:
                return
            sock.sendall(OK)

    with scripted(script) as server:
        proxy = proxied(server.url)
        assert read_all(dial(proxy, request("GET"))).endswith(b"ok")
        wait_until(lambda: server_of(proxy).pool.state.statistics().idle)
        assert status_of(read_all(dial(proxy, request(method)))) == status
        assert len(server.heads) == (3 if status == 200 else 2)
        assert proxy.records[1].tries == 1, "it costs no try"
        assert health_of(proxy) == ((2, 0) if status == 200 else (1, 1))


# -- a server that is killed, and comes back


PROGRAM = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
print(flush=True)
def serve(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
        if data.endswith(b"\\r\\n\\r\\n"):
            if sys.argv[3] == "answers":
                sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nback")
            else:
                sys.stdout.write("x")
                sys.stdout.flush()
            data = b""
socks = []
while True:
    socks.append(listener.accept()[0])
    threading.Thread(target=serve, args=(socks[-1],), daemon=True).start()
"""


@contextlib.contextmanager
def process(host, how):
    """Serve in a process: ``answers`` or ``holds``."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, host, "8000", how], stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout.readline() == b"\n"
            yield started
        finally:
            started.kill()


def test_a_server_killed_with_200_requests_in_flight_and_back(proxied, dial, origin):
    pid = os.getpid()  # an address of our own: no outgoing connection takes the port while nobody listens
    host = f"127.{160 + pid // 62500 % 64}.{1 + pid // 250 % 250}.{1 + pid % 250}"
    health = HealthOptions(max_fails=3, ejection_time=0.2)
    timeouts = ProxyTimeouts(upstream_head=PATIENCE)
    backup = ServerOptions(origin.url, backup=True)
    proxy = proxied(f"http://{host}:8000", backup, health=health, timeouts=timeouts, min_retry_rate=100.0)
    first = server_of(proxy)
    with process(host, "holds") as victim:
        socks = [dial(proxy, b"%b /%d HTTP/1.1\r\n" % (b"GET" if n % 2 else b"POST", n) + CLOSE) for n in range(200)]
        wait_until(lambda: first.used == 200 and first.pool.state.statistics().used == 200)
        assert victim.stdout.read(200) == b"x" * 200
        victim.kill()
        victim.wait()
        answers = [read_all(sock) for sock in socks]
    assert [status_of(answer) for answer in answers] == [502, 200] * 100
    assert all(answer.endswith(b"GET /%d " % n) for n, answer in enumerate(answers) if n % 2)
    assert sorted(int(target[1:]) for _, target, _, _ in origin.seen) == list(range(1, 200, 2)), "each once"
    assert proxy.failures == {"no-response": 100}
    assert proxy.retries == 100
    assert (first.used, first.pool.state.origins, health_of(proxy)) == (0, 0, (0, 200))
    assert first.health.standing is Standing.EJECTED
    with process(host, "answers"):
        wait_until(lambda: read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE)).endswith(b"back"))
        assert first.health.standing is Standing.UP
        assert all(read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE)).endswith(b"back") for _ in range(5))
        assert first.pool.state.statistics().idle == 1


# -- slow ones


def memory():
    """Return the bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_slow_client_before_a_fast_server(proxied, dial, framing):
    """The server is stopped, little is held, others are served; and then all of it arrives."""
    piece = bytes(range(256)) * 256
    count = LARGE // len(piece)

    def script(server, sock, number):
        while head := server.head(sock):
            if b"GET /large " not in head:
                sock.sendall(OK)
                continue
            length = b"Content-Length: %d" % (count * len(piece))
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + (length if framing == "length" else CHUNKED) + b"\r\n\r\n")
            for _ in range(count):
                sock.sendall(piece if framing == "length" else b"10000\r\n" + piece + b"\r\n")
                server.sent += len(piece)
            if framing == "chunks":
                sock.sendall(b"0\r\n\r\n")

    with scripted(script) as server:
        server.sent = 0
        proxy = proxied(server.url, buffer=Buffering(0, 0))
        before = memory()
        slow = []
        for _ in range(4):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.settimeout(PATIENCE)
            sock.connect(proxy.address)
            sock.sendall(b"GET /large HTTP/1.1\r\n" + CLOSE)
            slow.append(sock)
        wait_until(lambda: _is_stopped(server))
        assert server.sent < 4 * LARGE / 2, "what the kernel holds, no more"
        assert memory() - before < 16e6
        for _ in range(20):
            assert read_all(dial(proxy, b"GET /small HTTP/1.1\r\n" + CLOSE)).endswith(b"ok")
        readers = [gevent.spawn(drain, sock) for sock in slow]
        sizes = [reader.get(timeout=6 * PATIENCE) for reader in readers]
        assert all(count * len(piece) < size < count * len(piece) * 1.02 for size in sizes)
        for sock in slow:
            sock.close()
        wait_until(lambda: len(proxy.records) == 24)
        assert {record.reason for record in proxy.records} == {""}


def _is_stopped(server, a_while=0.1):
    before = server.sent
    gevent.sleep(a_while)
    return before and server.sent == before


def test_a_slow_client_holds_no_server_for_a_short_answer(proxied, dial):
    """What came whole with its head is the proxy's to deliver."""
    body = bytes(50_000)

    def script(server, sock, number):
        while server.head(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with scripted(script) as server:
        proxy = proxied(ServerOptions(server.url, max_connections=1, max_waiting=0))
        slow = dial(proxy, (b"GET / HTTP/1.1\r\n" + KEEP) * 400)
        wait_until(lambda: any(conn.statistics().bytes_queued for conn in proxy.connections))
        wait_until(lambda: not server_of(proxy).used)
        assert status_of(read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE))) == 200
        reset(slow)


def test_a_slow_server_before_a_fast_client(proxied, dial):
    """What the server says arrives at once, however little it is."""
    heard = [Event() for _ in range(5)]

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for each in heard:
            sock.sendall(b"1\r\nx\r\n")
            assert each.wait(PATIENCE)
        sock.sendall(b"0\r\n\r\n")

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE)
        data = b""
        for count, each in enumerate(heard, 1):
            while data.count(b"1\r\nx\r\n") < count:
                data += sock.recv(65536)
            each.set()
        assert read_all(sock) == b"0\r\n\r\n"


@pytest.mark.parametrize(("length", "held"), [(100, 0), (101, 1)])
def test_a_slow_upload_holds_no_server_up_to_max_replay(proxied, dial, origin, length, held):
    proxy = proxied(ServerOptions(origin.url, max_connections=1), max_replay=100)
    slow = dial(proxy, b"POST /slow HTTP/1.1\r\nContent-Length: %d\r\n" % length + CLOSE + bytes(length - 1))
    wait_until(lambda: proxy.statistics().requests)
    if held:
        wait_until(lambda: origin.statistics().accepted)
    else:
        assert read_all(dial(proxy, b"GET /quick HTTP/1.1\r\n" + CLOSE)).endswith(b"GET /quick ")
    assert server_of(proxy).used == held
    slow.sendall(b"!")
    assert read_all(slow).endswith(b"!")


@pytest.mark.parametrize("abort_on_eof", [True, False])
def test_a_client_that_has_said_all(proxied, dial, abort_on_eof):
    """Half-close: by default it has left; else it gets its answer, and the connection ends."""
    go = Event()

    def script(server, sock, number):
        server.head(sock)
        go.wait()
        sock.sendall(OK)
        server.head(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, server_options={"abort_on_eof": abort_on_eof})
        sock = dial(proxy, b"GET / HTTP/1.1\r\n" + KEEP)
        wait_until(lambda: server.heads)
        sock.shutdown(socket.SHUT_WR)
        if abort_on_eof:
            assert wait_gone(sock)[0] == b""
            assert record_of(proxy).reason == "client-left"
        go.set()
        if not abort_on_eof:
            assert read_all(sock).endswith(b"ok")
            assert record_of(proxy).reason == ""


def test_a_server_that_closes_its_half_only(proxied, dial):
    """Its answer ends with that; nothing more is sent there."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        sock.shutdown(socket.SHUT_WR)
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url)
        assert read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE)).endswith(b"9\r\nall of it\r\n0\r\n\r\n")
        assert server_of(proxy).pool.state.origins == 0


# -- several things at once


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"nonsense\r\n"])
@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_a_bad_answer_while_the_body_still_comes(proxied, dial, answer, framing):
    """The client's rest is read by one greenlet at a time: it gets its 502."""
    with scripted(says(answer)) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + KEEP + b"5\r\n12345\r\n")
        assert sock.recv(12) == b"HTTP/1.1 502"
        assert record_of(proxy).reason == "bad-response"
        assert not proxy.statistics().errors


@pytest.mark.parametrize("phase", ["in the body", "in the answer"])
def test_a_trial_that_ends_with_its_client(proxied, dial, phase):
    """A server on trial whose client left is not blocked: the next request is its trial."""

    def script(server, sock, number):
        server.head(sock)
        if number <= 3:
            return
        if number == 4:
            if phase == "in the answer":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
            wait_gone(sock)
        else:
            sock.sendall(OK)

    with scripted(script) as server:
        proxy = proxied(server.url, health=HealthOptions(max_fails=3, ejection_time=0.02, max_ejection=0.02))
        health = server_of(proxy).health
        for _ in range(3):
            assert status_of(read_all(dial(proxy, GET))) == 502
        wait_until(lambda: health.is_up(time.monotonic()))
        sock = dial(proxy, LONG_POST + b"12345" if phase == "in the body" else GET)
        wait_until(lambda: len(server.heads) == 4)
        assert health.standing is Standing.TRYING
        if phase == "in the answer":
            assert sock.recv(12)
        reset(sock)
        wait_until(lambda: len(proxy.records) == 4)
        assert health.standing is Standing.EJECTED
        assert health.is_up(time.monotonic())
        assert status_of(read_all(dial(proxy, GET))) == 200
        assert health.standing is Standing.UP


@pytest.mark.parametrize("end", ["answered", "failed", "broken off", "left"])
def test_only_who_is_on_trial_decides(proxied, dial, end):
    """Not a request that was sent before the ejection, and ends while another is on trial."""
    finish_old, finish_trial = Event(), Event()

    def script(server, sock, number):
        server.head(sock)
        if number == 1:
            if end == "broken off":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
            assert finish_old.wait(PATIENCE)
            if end == "answered":
                sock.sendall(OK)
        elif number == 3:
            assert finish_trial.wait(PATIENCE)
            sock.sendall(OK)

    with scripted(script) as server:
        proxy = proxied(server.url, health=HealthOptions(max_fails=1, ejection_time=0.02, max_ejection=0.02))
        health = server_of(proxy).health
        old = dial(proxy, GET)
        wait_until(lambda: len(server.heads) == 1)
        assert status_of(read_all(dial(proxy, GET))) == 502
        wait_until(lambda: health.is_up(time.monotonic()))
        trial = dial(proxy, GET)
        wait_until(lambda: len(server.heads) == 3)
        assert health.standing is Standing.TRYING
        if end == "left":
            reset(old)
        finish_old.set()
        wait_until(lambda: len(proxy.records) == 2)
        assert (health.standing, health.statistics().ejections) == (Standing.TRYING, 1)
        finish_trial.set()
        assert status_of(read_all(trial)) == 200
        assert health.standing is Standing.UP
