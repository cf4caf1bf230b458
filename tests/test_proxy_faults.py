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
from proxies import OK, Origin, Recorded, gateway_to, scripted

import greensock.proxy.relay
import greensock.proxy.response_relay
from greensock.core import connector
from greensock.core.poller import get_poller
from greensock.http.client import connection_pool
from greensock.proxy import HealthOptions, ProxyTimeouts, ServerOptions
from greensock.proxy.upstream.health import Standing

CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"
KEEP = b"Host: a\r\n\r\n"
LARGE = 30_000_000


@pytest.fixture
def proxied(serve):
    """Start a proxy before servers; see ``gateway_to``."""
    gateways = []

    def start(*urls, server_options=None, **options):
        gateways.append(gateway_to(*urls, **options))
        return serve(Recorded, gateway=gateways[-1], **(server_options or {}))

    yield start
    for gateway in gateways:
        servers = gateway.upstreams["site"].all
        wait_until(lambda servers=servers: not any(held_bytes(each) for each in servers), 5)
        gateway.upstreams["site"].close()
        assert not any(each.pool.state.origins for each in servers)


def held_bytes(server):
    pool = server.pool.state.statistics()
    return server.used or pool.used or pool.waiting


@pytest.fixture
def origin(serve):
    return serve(Origin)


@pytest.fixture
def dial():
    """Connect to a proxy: ``dial(proxy, data)`` gives a socket."""
    with contextlib.ExitStack() as stack:

        def make(proxy, data=b""):
            sock = stack.enter_context(socket.create_connection(proxy.address))
            sock.settimeout(PATIENCE)
            sock.sendall(data)
            return sock

        yield make


def status_of(answer):
    return int(answer[9:12]) if answer else 0


def record_of(proxy):
    """Wait for the only record, and return it."""
    wait_until(lambda: proxy.records)
    [record] = proxy.records
    return record


def server_of(proxy, place=0):
    return proxy.gateway.upstreams["site"].all[place]


def health_of(proxy, place=0):
    found = server_of(proxy, place).health.statistics()
    return found.succeeded, found.failed


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def body_of(server, sock):
    """Read the head of a request and its three bytes."""
    head = server.head(sock)
    if b"Content-Length: 3" in head:
        read_exactly(sock, 3)
    return head


def wait_gone(sock):
    """Wait until the other side has left; return what came before, and whether it ended with a reset."""
    pieces = []
    try:
        while piece := sock.recv(65536):
            pieces.append(piece)
    except ConnectionError:
        return b"".join(pieces), True
    return b"".join(pieces), False


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


LENGTH, CHUNKED = b"Content-Length: 10", b"Transfer-Encoding: chunked"
SPLICED = b"Content-Length: %d" % LARGE

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


def request(method):
    return b"%b /x HTTP/1.1\r\nContent-Length: 3\r\n%babc" % (method.encode(), CLOSE)


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


# -- clients that leave


def leave(sock, how):
    if how == "close":
        sock.close()
    elif how == "reset":
        reset(sock)
    else:
        sock.shutdown(socket.SHUT_WR)


HOW = pytest.mark.parametrize("how", ["close", "reset", "shutdown"])


@HOW
@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_client_that_leaves_in_its_head(proxied, dial, origin, how, sent):
    proxy = proxied(origin.url)
    sock = dial(proxy, sent)
    wait_until(lambda: proxy.statistics().bytes_received == len(sent))
    leave(sock, how)
    wait_until(lambda: not proxy.statistics().active)
    assert not origin.seen
    assert server_of(proxy).requests == 0
    if how == "shutdown":
        assert status_of(read_all(sock)) == 400


@HOW
def test_a_client_that_leaves_in_a_short_body(proxied, dial, origin, how):
    proxy = proxied(origin.url)
    sock = dial(proxy, b"POST / HTTP/1.1\r\nContent-Length: 100\r\n" + KEEP + b"12345")
    wait_until(lambda: proxy.statistics().requests)
    leave(sock, how)
    record = record_of(proxy)
    assert (record.status, record.reason) == ((400, "incomplete") if how != "reset" else (499, "client-left"))
    assert (record.received, record.upstream, record.tries) == (5, "", 0)
    assert proxy.failures == ({} if how != "reset" else {"client-left": 1})
    assert server_of(proxy).requests == 0, "no server was asked"


@HOW
@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
def test_a_client_that_leaves_in_a_long_body(proxied, dial, how, framing):
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        assert wait_gone(sock)[1]
        gone.set()

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + KEEP + b"5\r\n12345\r\n")
        wait_until(lambda: server.heads)
        leave(sock, how)
        assert gone.wait(PATIENCE)
        record = record_of(proxy)
        assert (record.status, record.reason) == ((400, "incomplete") if how != "reset" else (499, "client-left"))
        assert (record.upstream, record.upstream_status, record.tries) == (server_of(proxy).name, "-", 1)
        assert proxy.failures == ({} if how != "reset" else {"client-left": 1})
        assert health_of(proxy) == (0, 0), "it is not the server's fault"


@HOW
@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_a_client_that_leaves_while_the_server_does_not_read(proxied, dial, how, framing):
    """Both are let go at once, not when the server has taken nothing for upstream_send."""
    go, ended = Event(), []

    def script(server, sock, number):
        server.head(sock)
        go.wait(PATIENCE)
        ended.append(wait_gone(sock)[1])

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + KEEP)
        wait_until(lambda: server.heads)
        while not is_stuck():  # all that was sent is read, so that the end is seen
            sock.sendall(b"7530\r\n" + bytes(30000) + b"\r\n")
            wait_until(lambda: is_stuck() or proxy.connections[0].count_unread() == 0)
        leave(sock, how)
        record = record_of(proxy)
        assert record.duration < PATIENCE
        assert (record.status, record.reason) == ((400, "incomplete") if how != "reset" else (499, "client-left"))
        assert health_of(proxy) == (0, 0)
        wait_until(lambda: not proxy.statistics().active)
        go.set()
        assert wait_until(lambda: ended) == [True], "with a reset: nothing must look like the end of a request"


def is_stuck():
    """Whether a server does not take what is to be sent to it."""
    endpoints = get_poller().endpoints.values()
    return any(isinstance(each, connection_pool.ClientConnection) and each._queued for each in endpoints)


def test_a_client_that_has_said_all_while_the_server_does_not_read(proxied, dial):
    """It may close its side then; the server gets all of it."""
    go, seen = Event(), []

    def script(server, sock, number):
        server.head(sock)
        go.wait(PATIENCE)
        seen.append(read_exactly(sock, size))
        sock.sendall(OK)

    size = 40_000_000
    with scripted(script) as server:
        proxy = proxied(server.url, server_options={"abort_on_eof": False})
        sock = dial(proxy, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n" % size + KEEP)
        wait_until(lambda: server.heads)
        sending = gevent.spawn(sock.sendall, bytes(size))
        wait_until(is_stuck)
        go.set()
        sending.get(timeout=PATIENCE)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).endswith(b"ok")
        assert len(seen[0]) == size


@pytest.mark.parametrize("second", ["answers", "refuses"])
def test_the_times_of_the_last_server_alone(proxied, dial, origin, second):
    """What the one before took is none of its time."""

    def script(server, sock, number):
        server.head(sock)
        gevent.sleep(0.3)  # and no answer

    with scripted(script) as first:
        url = origin.url if second == "answers" else f"http://127.0.0.1:{closed_port()}"
        proxy = proxied(first.url, ServerOptions(url, backup=True))
        answer = read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE))
        record = record_of(proxy)
        assert record.tries == 2
        assert record.duration >= 0.3
        if second == "answers":
            assert status_of(answer) == 200
            assert record.connect_time <= record.head_time <= record.upstream_time <= record.duration - 0.3
        else:
            assert status_of(answer) == 502
            assert (record.connect_time, record.head_time, record.upstream_time) == (None, None, None)


@pytest.fixture
def gate(monkeypatch):
    """Have each connection to a server wait: ``gate.asked``, ``gate.open``."""

    class Gate:
        def __init__(self):
            self.asked, self.open = Event(), Event()

    made, really = Gate(), connection_pool.connect

    def connect(*arguments, **options):
        made.asked.set()
        made.open.wait()
        return really(*arguments, **options)

    monkeypatch.setattr(connection_pool, "connect", connect)
    return made


@HOW
def test_a_client_that_leaves_while_the_proxy_connects(proxied, dial, origin, gate, how):
    proxy = proxied(origin.url)
    sock = dial(proxy, b"GET / HTTP/1.1\r\n" + KEEP)
    assert gate.asked.wait(PATIENCE)
    leave(sock, how)
    gate.open.set()
    record = record_of(proxy)
    assert (record.status, record.reason) == (499, "client-left")
    assert not origin.seen
    assert health_of(proxy) == (0, 0)
    wait_until(lambda: server_of(proxy).pool.state.statistics().idle == 1)  # nothing was sent on it: others may have it


@HOW
@pytest.mark.parametrize("body", ["none", "short", "long", "chunks"])
def test_a_client_that_leaves_while_it_queues(proxied, dial, how, body):
    """It keeps no place from others, gets no connection, and ends none."""
    go = Event()

    def script(server, sock, number):
        while server.head(sock):
            go.wait()
            sock.sendall(OK)

    sent = {
        "none": KEEP,
        "short": b"Content-Length: 3\r\n" + KEEP + b"abc",
        "long": b"Content-Length: 100000\r\n" + KEEP + b"abc",
        "chunks": b"Transfer-Encoding: chunked\r\n" + KEEP + b"3\r\n",
    }[body]
    is_whole = body in ("none", "short")
    with scripted(script) as server:
        proxy = proxied(ServerOptions(server.url, max_connections=1, max_waiting=1))
        pool = server_of(proxy).pool.state
        first = dial(proxy, b"GET /1 HTTP/1.1\r\n" + CLOSE)
        wait_until(lambda: server.heads)
        sock = dial(proxy, b"POST /2 HTTP/1.1\r\n" + sent)
        wait_until(lambda: pool.statistics().waiting == 1)
        leave(sock, how)
        record = record_of(proxy)
        is_told = not is_whole and how != "reset"
        assert (record.status, record.reason) == ((400, "incomplete") if is_told else (499, "client-left"))
        assert (record.upstream, record.upstream_status, record.tries) == (server_of(proxy).name, "-", 1)
        assert (pool.statistics().waiting, server_of(proxy).used) == (0, 1)
        third = dial(proxy, b"GET /3 HTTP/1.1\r\n" + CLOSE)
        wait_until(lambda: pool.statistics().waiting == 1)
        go.set()
        assert (status_of(read_all(first)), status_of(read_all(third))) == (200, 200)
        assert (len(server.heads), server.accepted) == (2, 1)
        assert health_of(proxy) == (2, 0)


def test_a_client_that_said_all_may_close_its_side_while_it_queues(proxied, dial):
    go = Event()

    def script(server, sock, number):
        while server.head(sock):
            read_exactly(sock, 100_000 if number + len(server.heads) > 2 else 0)
            go.wait()
            sock.sendall(OK)

    with scripted(script) as server:
        one = ServerOptions(server.url, max_connections=1)
        proxy = proxied(one, server_options={"abort_on_eof": False})
        first = dial(proxy, b"GET /1 HTTP/1.1\r\n" + CLOSE)
        wait_until(lambda: server.heads)
        sock = dial(proxy, b"POST /2 HTTP/1.1\r\nContent-Length: 100000\r\n" + CLOSE + bytes(100_000))
        wait_until(lambda: server_of(proxy).pool.state.statistics().waiting == 1)
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: any(conn._has_left() for conn in proxy.connections))
        go.set()
        assert (status_of(read_all(first)), status_of(read_all(sock))) == (200, 200)


@HOW
def test_a_client_that_leaves_while_the_proxy_connects_anew(proxied, dial, gate, how):
    """A kept connection died; until another one is there, the client has gone."""

    def script(server, sock, number):
        while server.head(sock):
            if len(server.heads) == 2:
                gate.asked.clear()
                gate.open.clear()
                return
            sock.sendall(OK)

    with scripted(script) as server:
        gate.open.set()
        proxy = proxied(server.url)
        assert status_of(read_all(dial(proxy, b"GET /1 HTTP/1.1\r\n" + CLOSE))) == 200
        wait_until(lambda: server_of(proxy).pool.state.statistics().idle)
        proxy.records.clear()
        sock = dial(proxy, b"GET /2 HTTP/1.1\r\n" + KEEP)
        wait_until(lambda: len(server.heads) == 2)
        assert gate.asked.wait(PATIENCE)
        leave(sock, how)
        wait_until(lambda: all(conn._has_left() for conn in proxy.connections))
        gate.open.set()
        record = record_of(proxy)
        assert (record.status, record.reason) == (499, "client-left")
        assert len(server.heads) == 2, "it was not asked for nobody"


@HOW
@pytest.mark.parametrize("body", ["none", "short", "long", "chunks"])
def test_a_client_that_leaves_before_the_answer(proxied, dial, how, body):
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        read_exactly(sock, {"none": 0, "short": 3, "long": 100_000, "chunks": 13}[body])
        server.heard = True
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        gone.set()

    sent = {
        "none": KEEP,
        "short": b"Content-Length: 3\r\n" + KEEP + b"abc",
        "long": b"Content-Length: 100000\r\n" + KEEP + bytes(100_000),
        "chunks": b"Transfer-Encoding: chunked\r\n" + KEEP + b"3\r\nabc\r\n0\r\n\r\n",
    }[body]
    with scripted(script) as server:
        server.heard = False
        proxy = proxied(server.url)
        sock = dial(proxy, b"POST / HTTP/1.1\r\n" + sent)
        wait_until(lambda: server.heard)
        leave(sock, how)
        assert gone.wait(PATIENCE)
        record = record_of(proxy)
        assert (record.status, record.reason) == (499, "client-left")
        assert health_of(proxy) == (0, 0)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framing", ["length", "chunks", "spliced", "end"])
def test_a_client_that_leaves_in_the_answer(proxied, dial, how, framing):
    head = {"length": b"Content-Length: 200000", "spliced": SPLICED, "chunks": CHUNKED, "end": b"X: y"}[framing]
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        try:
            while True:
                sock.sendall(b"3\r\nabc\r\n")
                gevent.sleep(0.001)
        except OSError:
            gone.set()

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, b"GET / HTTP/1.1\r\n" + KEEP)
        read_exactly(sock, 200)
        leave(sock, how)
        assert gone.wait(PATIENCE)
        record = record_of(proxy)
        assert (record.status, record.reason) == (499, "client-left")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_who_leaves_in_a_tunnel(proxied, dial, how, who):
    gone, go = Event(), Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        assert sock.recv(1) == b"1"
        sock.sendall(b"2")
        if who == "server":
            go.wait()
            leave(sock, how)
        else:
            wait_gone(sock)
            gone.set()

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, b"GET / HTTP/1.1\r\nUpgrade: x\r\nConnection: Upgrade\r\nHost: a\r\n\r\n1")
        head = b""
        while not head.endswith(b"\r\n\r\n2"):
            head += sock.recv(1)
        assert server_of(proxy).used == 1
        if who == "client":
            leave(sock, how)
            assert gone.wait(PATIENCE)
        else:
            go.set()
            with pytest.raises(ConnectionResetError) if how == "reset" else contextlib.nullcontext():
                assert read_all(sock) == b""
            sock.close()
        record = record_of(proxy)
        assert (record.status, record.reason) == (101, f"{who}-left" if how == "reset" else "")
        assert server_of(proxy).used == 0


@HOW
def test_a_client_that_leaves_between_requests(proxied, dial, origin, how):
    proxy = proxied(origin.url)
    sock = dial(proxy, b"GET /1 HTTP/1.1\r\n" + KEEP)
    data = b""
    while not data.endswith(b"GET /1 "):
        data += sock.recv(65536)
    leave(sock, how)
    wait_until(lambda: not proxy.statistics().active)
    assert len(proxy.records) == 1
    assert server_of(proxy).pool.state.statistics().idle == 1, "the server's connection is another's to use"


def test_a_client_that_leaves_behind_pipelined_requests(proxied, dial):
    """None is asked for nobody: the first is given up, the others never begin."""
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        wait_gone(sock)
        gone.set()

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = dial(proxy, (b"GET / HTTP/1.1\r\n" + KEEP) * 5)
        wait_until(lambda: server.heads)
        sock.close()
        assert gone.wait(PATIENCE)
        assert record_of(proxy).reason == "client-left"
        assert server.accepted == 1


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
        proxy = proxied(server.url)
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


def _is_stopped(server):
    before = server.sent
    gevent.sleep(0.1)
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


# -- timeouts, each by its name

#: A timeout that is waited for, and one that is not to be.
SHORT, NEVER = 0.1, 60.0


def timed(**short):
    """Return timeouts that are all too long but these."""
    names = ("request_header", "request_body", "keep_alive", "send", "queue", "connect")
    names += ("upstream_send", "upstream_head", "upstream_idle", "tunnel")
    return ProxyTimeouts(**{**dict.fromkeys(names, NEVER), "linger": 0.2, **short})


def says(answer):
    """Return a script: read the head, say that, and nothing more."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(answer)
        wait_gone(sock)

    return script


GET = b"GET / HTTP/1.1\r\n" + CLOSE
LONG_POST = b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n" + CLOSE
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
        proxy = proxied(server.url, timeouts=timed(send=SHORT))
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
        proxy = proxied(server.url, timeouts=timed())
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
        proxy = proxied(server.url, timeouts=timed(upstream_send=3 * SHORT))
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
                gevent.sleep(0.01)

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
