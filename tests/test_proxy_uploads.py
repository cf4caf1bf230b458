"""Bodies that come slowly: who waits for them, what is held meanwhile, and what others get."""

from __future__ import annotations

import contextlib
import socket
from time import monotonic

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import reset
from proxies import Origin, Recorded, gateway_to
from proxy_peers import CLOSE, KEEP, dial, status_of  # noqa: F401  # fixtures
from scripts import scripted

from greensock.proxy import Forwarding, Guard, GuardOptions, ListenOptions, ProxyTimeouts, Route
from greensock.proxy.proxy_server import MAX_PIECES

#: Seconds in which an answer comes.
PAUSE = 0.1


def post(length, rest=KEEP):
    return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n" % length + rest


@pytest.fixture
def start(serve):
    """Start a proxy before an origin; nothing may be held when it is over."""
    with contextlib.ExitStack() as stack:

        def make(*urls, server_options=None, **options):
            gateway = gateway_to(*(urls or [serve(Origin).url]), **options)
            proxy = serve(Recorded, gateway=gateway, **(server_options or {}))
            stack.callback(gateway.upstreams["site"].close)
            stack.callback(check, proxy)
            return proxy

        yield make


def check(proxy):
    wait_until(lambda: not proxy.gateway.buffered and not proxy.uploads and not proxy._bodies)
    guard = proxy.gateway.guard
    assert guard is None or not guard.uploads


def waiting(proxy):
    return [conn for conn in proxy.connections if conn.upload is not None]


def requests_of(proxy):
    return proxy.gateway.upstreams["site"].all[0].requests


# -- short ones


@pytest.mark.parametrize("size", [1, 3, 100, 4096])
def test_a_body_in_pieces_of(start, dial, size):
    proxy = start()
    body = bytes(range(256)) * 16
    sock = dial(proxy, post(len(body), CLOSE))
    wait_until(lambda: waiting(proxy))
    sent = 0
    while sent < len(body):
        assert (proxy.statistics().workers_busy, requests_of(proxy)) == (0, 0)
        sock.sendall(body[sent : sent + size])
        sent += size
        wait_until(lambda sent=sent: requests_of(proxy) if sent >= len(body) else proxy.gateway.buffered == sent)
    assert read_all(sock).endswith(b"POST / " + body)
    [record] = proxy.records
    assert (record.status, record.received, record.reason) == (200, len(body), "")


def test_what_is_behind_it(start, dial):
    proxy = start()
    sock = dial(proxy, post(3))
    wait_until(lambda: waiting(proxy))
    sock.sendall(b"ab")
    wait_until(lambda: proxy.gateway.buffered == 2)
    sock.sendall(b"cGET /2 HTTP/1.1\r\n" + KEEP + post(2))
    wait_until(lambda: requests_of(proxy) == 2 and waiting(proxy))
    sock.sendall(b"xyGET /3 HTTP/1.1\r\n")
    wait_until(lambda: requests_of(proxy) == 3)
    sock.sendall(CLOSE)
    answer = read_all(sock)
    places = [answer.index(each) for each in (b"POST / abc", b"GET /2 ", b"POST / xy", b"GET /3 ")]
    assert places == sorted(places)
    assert answer.count(b"200 OK") == 4


def test_what_was_there_with_the_head_needs_no_wait(start, dial):
    proxy = start()
    assert read_all(dial(proxy, post(3, CLOSE) + b"abc")).endswith(b"POST / abc")
    sock = dial(proxy, post(4, CLOSE) + b"ab")
    wait_until(lambda: waiting(proxy))
    assert proxy.gateway.buffered == 2, "what came with the head is held, too"
    sock.sendall(b"cd")
    assert read_all(sock).endswith(b"POST / abcd")


def test_one_that_waits_for_100(start, dial):
    proxy = start()
    sock = dial(proxy, b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n" + CLOSE)
    assert read_exactly(sock, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert waiting(proxy)
    sock.sendall(b"abc")
    assert read_all(sock).endswith(b"POST / abc")


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
def test_a_client_that_leaves(start, dial, how):
    proxy = start()
    sock = dial(proxy, post(100))
    wait_until(lambda: waiting(proxy))
    sock.sendall(b"12345")
    wait_until(lambda: proxy.gateway.buffered == 5)
    if how == "shutdown":
        sock.shutdown(socket.SHUT_WR)
        assert status_of(read_all(sock)) == 400
    elif how == "close":
        sock.close()
    else:
        reset(sock)
    wait_until(lambda: proxy.records)
    [record] = proxy.records
    assert (record.status, record.reason) == ((400, "incomplete") if how != "reset" else (499, "client-left"))
    assert record.received == 5
    assert requests_of(proxy) == 0


def test_it_is_waited_for_only_so_long(start, dial):
    proxy = start(timeouts=ProxyTimeouts(request_body=0.2))
    sock = dial(proxy, post(100))
    wait_until(lambda: waiting(proxy))
    [conn] = waiting(proxy)
    due = proxy._bodies[conn]
    sock.sendall(b"x")
    wait_until(lambda: proxy.gateway.buffered)
    assert proxy._bodies[conn] > due, "each byte gives it more time"
    answer = read_all(sock)
    assert (status_of(answer), b"Connection: close" in answer) == (408, True)
    [record] = proxy.records
    assert (record.status, record.reason, record.received) == (408, "client-timeout", 1)
    assert record.duration >= 0.2
    assert record.sent == len(answer)
    assert proxy.refused == {"body-timeout": 1}
    assert requests_of(proxy) == 0


@pytest.mark.parametrize("of", ["the proxy", "a route"])
def test_all_of_the_request_may_take_only_so_long(start, dial, of):
    """Also if more of it comes now and then."""
    total = ProxyTimeouts(total=0.3)
    options = {"timeouts": total} if of == "the proxy" else {"routes": [Route("site", timeouts=total)]}
    proxy = start(forwarding=Forwarding(proxy_status=True), **options)
    sock = dial(proxy, post(1 << 16))
    wait_until(lambda: waiting(proxy))
    while waiting(proxy):
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"x")
        gevent.sleep(total.total / 30)
    answer = read_all(sock)
    assert (status_of(answer), b"\r\nConnection: close\r\n" in answer) == (504, True)
    assert b"\r\nProxy-Status: greensock; error=http_response_timeout\r\n" in answer
    [record] = proxy.records
    assert (record.status, record.reason, record.sent) == (504, "total-timeout", len(answer))
    assert record.received > 1
    assert 0.2 < record.duration < PATIENCE
    assert (proxy.failures, proxy.refused) == ({"total-timeout": 1}, {})
    assert requests_of(proxy) == 0


def test_a_body_that_comes_in_time(start, dial):
    proxy = start(timeouts=ProxyTimeouts(total=PATIENCE))
    sock = dial(proxy, post(3))
    wait_until(lambda: waiting(proxy))
    sock.sendall(b"abc" + post(3))
    assert read_exactly(sock, 15) == b"HTTP/1.1 200 OK"
    [conn] = wait_until(lambda: waiting(proxy))
    assert conn.upload.overdue
    sock.close()
    wait_until(lambda: len(proxy.records) == 2)


def test_the_limit_of_idle_connections_is_none_of_bodies(start, dial):
    proxy = start(timeouts=ProxyTimeouts(keep_alive=0.1, request_body=PATIENCE))
    sock, idle = dial(proxy, post(3, CLOSE)), dial(proxy)
    wait_until(lambda: waiting(proxy))
    assert idle.recv(1) == b"", "it was idle for too long"
    again = dial(proxy)
    assert again.recv(1) == b""
    sock.sendall(b"abc")
    assert read_all(sock).endswith(b"POST / abc")


def test_it_must_keep_its_rate(start, dial, monkeypatch):
    monkeypatch.setattr("greensock.http.server.request.RATE_GRACE", 0.0)
    proxy = start(timeouts=ProxyTimeouts(min_body_rate=1_000_000, request_body=0.001 + PATIENCE))
    sock = dial(proxy, post(100))
    [conn] = wait_until(lambda: waiting(proxy))
    wait_until(lambda: monotonic() - conn.upload.since > 0.01)
    sock.sendall(b"x")
    assert status_of(read_all(sock)) == 408
    assert [(record.reason, record.received) for record in proxy.records] == [("client-timeout", 1)]


def test_a_proxy_that_stops(start, dial):
    proxy = start()
    sock = dial(proxy, post(3))
    wait_until(lambda: waiting(proxy))
    stopping = gevent.spawn(proxy.stop, PATIENCE)
    wait_until(lambda: proxy.draining)
    sock.sendall(b"abc")
    answer = read_all(sock)
    assert answer.endswith(b"POST / abc"), "it had begun"
    assert b"Connection: close" in answer
    stopping.get(timeout=PATIENCE)


def test_a_proxy_that_is_aborted(start, dial):
    proxy = start()
    dial(proxy, post(3) + b"x")
    wait_until(lambda: waiting(proxy))
    proxy.abort()
    [record] = proxy.records
    assert (record.status, record.reason, record.received) == (503, "stopped", 1)
    assert proxy.failures == {"stopped": 1}


def test_the_times_of_a_server_begin_when_it_is_chosen(start, dial):
    """The wait for the body is none of its time."""
    proxy = start()
    sock = dial(proxy, post(2, CLOSE) + b"a")
    [conn] = wait_until(lambda: waiting(proxy))
    wait_until(lambda: monotonic() - conn.upload.since > 0.3)
    sock.sendall(b"b")
    assert read_all(sock).endswith(b"POST / ab")
    [record] = proxy.records
    assert record.connect_time <= record.head_time <= record.upstream_time <= record.duration - 0.3


# -- bounds


@pytest.mark.parametrize(("most", "first", "held"), [(0, b"", 0), (10, b"", 1), (10, b"x" * 10, 1), (10, b"x" * 11, 0)])
def test_only_so_much_is_held(start, dial, most, first, held):
    """Beyond that it is passed on as it comes."""

    def script(server, sock, number):
        server.head(sock)
        got.append(read_exactly(sock, 50))
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    got = []
    with scripted(script) as server:
        proxy = start(server.url, listen=ListenOptions(max_buffered=most))
        sock = dial(proxy, post(50, CLOSE))
        wait_until(lambda: waiting(proxy) or server.heads)
        assert bool(waiting(proxy)) is (most > 0)
        sock.sendall(first)
        if held:
            wait_until(lambda: proxy.gateway.buffered == len(first))
            assert not server.heads
        else:
            wait_until(lambda: server.heads)
            assert proxy.uploads == 1
        sock.sendall(b"y" * (50 - len(first)))
        assert read_all(sock).endswith(b"ok")
        assert got == [first + b"y" * (50 - len(first))]


@pytest.mark.parametrize(("most", "size", "held"), [(10, 10, 1), (10, 11, 0), (29, 10, 2), (30, 10, 3), (31, 10, 3)])
def test_what_came_with_the_head_is_held_too(start, dial, most, size, held):
    """Each client sends that much of its body at once: so many of the bodies are waited for."""
    proxy = start(listen=ListenOptions(max_buffered=most))
    socks = []
    for count in range(1, 5):
        socks.append(dial(proxy, post(50, CLOSE) + b"x" * size))
        wait_until(lambda count=count: len(waiting(proxy)) + proxy.uploads == count)
        assert proxy.gateway.buffered == size * min(count, held)
    assert (len(waiting(proxy)), proxy.uploads) == (held, 4 - held)
    for sock in socks:
        sock.sendall(b"y" * (50 - size))
        assert read_all(sock).endswith(b"POST / " + b"x" * size + b"y" * (50 - size))
    assert proxy.gateway.buffered == 0


def test_many_small_pieces_are_held_in_few(start, dial):
    """One by one they would hold twenty times what is counted."""
    proxy = start()
    body = bytes(range(256)) * 2
    sock = dial(proxy, post(1 + len(body), CLOSE))
    [conn] = wait_until(lambda: waiting(proxy))
    for place in range(len(body)):
        sock.sendall(body[place : place + 1])
        wait_until(lambda place=place: proxy.gateway.buffered == place + 1)
        assert len(conn.upload.pieces) <= MAX_PIECES
    sock.sendall(b"!")
    assert read_all(sock).endswith(b"POST / " + body + b"!")


def test_workers_are_left_for_others(start, dial):
    proxy = start(max_replay=10, listen=ListenOptions(max_workers=4))
    slow = [dial(proxy, post(100)) for _ in range(3)]
    wait_until(lambda: proxy.uploads == 3)
    refused = read_all(dial(proxy, post(100)))
    assert (status_of(refused), b"\r\nRetry-After: 1\r\n" in refused) == (503, True)
    assert read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE)).endswith(b"GET / ")
    sock = dial(proxy, post(5, CLOSE))
    sock.sendall(b"abcde")
    assert read_all(sock).endswith(b"POST / abcde"), "a short one needs none"
    for each in slow:
        each.sendall(bytes(100))
        assert status_of(each.recv(1000)) == 200
    wait_until(lambda: not proxy.uploads)
    assert proxy.failures == {"too-many-uploads": 1}


@pytest.mark.parametrize("max_replay", [10, 1000], ids=["long", "short"])
def test_a_client_has_so_many(start, dial, max_replay):
    proxy = start(max_replay=max_replay, guard=GuardOptions(max_uploads=2))
    slow = [dial(proxy, post(100)) for _ in range(2)]
    wait_until(lambda: proxy.uploads + len(waiting(proxy)) == 2)
    assert status_of(read_all(dial(proxy, post(100, CLOSE)))) == 429
    assert proxy.refused == {"client-uploads": 1}
    assert status_of(read_all(dial(proxy, post(1, CLOSE) + b"x"))) == 200, "which needs no wait"
    slow[0].sendall(bytes(100))
    assert status_of(slow[0].recv(1000)) == 200
    assert status_of(read_all(dial(proxy, post(100, CLOSE) + bytes(100)))) == 200


def test_a_route_has_so_many(start, dial):
    """Besides those of all: who is refused by one of both is not counted by the other."""
    routes = [Route("site"), Route("site", path="/few", guard=GuardOptions(max_uploads=1))]
    proxy = start(routes=routes, max_replay=10, guard=GuardOptions(max_uploads=2))
    few = post(100, CLOSE).replace(b"POST /", b"POST /few", 1)
    slow = dial(proxy, few)
    wait_until(lambda: proxy.uploads == 1)
    for _ in range(3):
        assert status_of(read_all(dial(proxy, few))) == 429
    other = dial(proxy, post(100, CLOSE))
    wait_until(lambda: proxy.uploads == 2)
    assert status_of(read_all(dial(proxy, post(100, CLOSE)))) == 429
    for sock in (slow, other):
        sock.sendall(bytes(100))
        assert status_of(read_all(sock)) == 200
    assert not any(guard.uploads for guard in (proxy.gateway.guard, *proxy.gateway.route_guards()))


def test_uploads_without_a_clock():
    found = Guard(GuardOptions(max_uploads=1))
    assert found.upload("192.0.2.1", 0.0) is None
    refused = found.upload("192.0.2.1", 0.0)
    assert (refused.status, refused.reason, refused.retry_after) == (429, "client-uploads", 1)
    assert found.upload("192.0.2.2", 0.0) is None
    assert found.statistics(1000.0).clients == 2
    found.upload_ended("192.0.2.1")
    assert found.upload("192.0.2.1", 0.0) is None
    for _ in range(3):
        found.upload_ended("192.0.2.1")
        found.upload_ended("192.0.2.2")
    assert found.statistics(1000.0).clients == 0
    assert Guard(GuardOptions()).upload("192.0.2.1", 0.0) is None


def test_a_thousand_slow_uploads_beside_a_good_client(start, dial):
    """They hold no worker and no server: it is served as if they were not there."""
    proxy = start(listen=ListenOptions(max_workers=8))
    slow = [dial(proxy, post(65536) + b"x") for _ in range(1000)]
    wait_until(lambda: len(waiting(proxy)) == 1000)
    for each in slow:
        each.sendall(b"y")
    wait_until(lambda: proxy.gateway.buffered == 2000)
    assert proxy.statistics().workers_busy == 0
    began = monotonic()
    good = dial(proxy)
    for _ in range(100):
        good.sendall(b"GET / HTTP/1.1\r\n" + KEEP)
        assert status_of(good.recv(1000)) == 200
    assert monotonic() - began < PATIENCE
    for each in slow:
        each.close()


# -- what a server is asked for, and says


def body_of(sock, head):
    """Read a body as it is framed."""
    if b"\r\nContent-Length: " in head:
        return read_exactly(sock, int(head.partition(b"\r\nContent-Length: ")[2].split()[0]))
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        data += read_exactly(sock, 1)
    return b"".join(data.split(b"\r\n")[1:-3:2])


UPGRADE = b"Connection: Upgrade\r\nUpgrade: tcp\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("way", ["at once", "in parts", "chunked"])
def test_an_upgrade_with_a_body(start, dial, way):
    """As Docker's API has it: JSON, and then a stream."""

    def script(server, sock, number):
        head = server.head(sock)
        body = body_of(sock, head)
        sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + body + b"|")
        sock.sendall(read_exactly(sock, 4).upper())

    with scripted(script) as server:
        proxy = start(server.url)
        if way == "chunked":
            head, parts = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", [b"4\r\nbody\r\n", b"0\r\n\r\n"]
        else:
            head, parts = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n", [b"bo", b"dy"]
        if way == "at once":
            sock = dial(proxy, head + UPGRADE + b"".join(parts))
        else:
            sock = dial(proxy, head + UPGRADE)
            wait_until(lambda: waiting(proxy) or server.accepted)
            for part in parts:
                sock.sendall(part)
        answer = b""
        while not answer.endswith(b"|"):
            answer += read_exactly(sock, 1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert answer.endswith(b"\r\n\r\nbody|")
        sock.sendall(b"more")
        assert read_all(sock) == b"MORE"
        assert b"\r\nUpgrade: tcp\r\n" in server.heads[0]


def test_a_switch_before_the_request_is_whole(start, dial):
    """What the client still sends would be taken for the other protocol. It is none of the server's failures."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        read_all(sock)

    with scripted(script) as server:
        proxy = start(server.url, max_replay=0)
        sock = dial(proxy, b"POST / HTTP/1.1\r\nContent-Length: 4\r\n" + UPGRADE + b"bo")
        assert status_of(read_all(sock)) == 502
        assert proxy.gateway.upstreams["site"].all[0].health.statistics().failed == 0


def test_a_switch_while_who_sends_the_body_pauses(start, dial, monkeypatch):
    """Behind the last piece it may be the turn of others, and the server be quicker."""
    monkeypatch.setattr("greensock.http.client.exchange.let_others_run", lambda since: gevent.sleep(PAUSE) or since)

    def script(server, sock, number):
        body_of(sock, server.head(sock))
        sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")

    with scripted(script) as server:
        head = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n" + UPGRADE
        assert status_of(read_all(dial(start(server.url, max_replay=0), head + b"body"))) == 101


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_a_server_says_whether_it_wants_the_body(start, dial, framing):
    """The client's Expect is passed on, and 100 comes when the server has said it; or its refusal, and no 100."""
    said = Event()

    def script(server, sock, number):
        head = server.head(sock)
        assert head.count(b"\r\nExpect: 100-continue\r\n") == (b"/none" not in head)
        if b"/refused" in head:
            sock.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
            return
        if b"/none" not in head:
            assert said.wait(PATIENCE)
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = body_of(sock, head)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    body = b"3\r\nabc\r\n0\r\n\r\n" if b"chunked" in framing else b"abc"
    with scripted(script) as server:
        proxy = start(server.url, pass_expect=True, timeouts=ProxyTimeouts())
        expecting = b" HTTP/1.1\r\nExpect: 100-continue\r\n" + framing + b"\r\n"
        sock = dial(proxy, b"POST /taken" + expecting + CLOSE)
        wait_until(lambda: server.heads)
        said.set()
        assert read_exactly(sock, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock).endswith(b"\r\n\r\nabc")
        answer = read_all(dial(proxy, b"POST /refused" + expecting + KEEP))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in answer
        assert read_all(dial(proxy, b"POST /none HTTP/1.1\r\n" + framing + b"\r\n" + CLOSE + body)).endswith(b"abc")
