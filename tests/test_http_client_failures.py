"""What goes wrong for the HTTP client: stale connections, timeouts, hostile servers; and that nothing leaks."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import time

import gevent
import pytest
from conftest import PATIENCE, PAUSE, read_exactly, wait_until
from gevent.event import Event
from http_clients import IDLE_ONE, LONG, NOTHING, Site, answering, client, raw, site  # noqa: F401  # fixtures
from pairs import drain, let_engine_look, reset
from scripts import OK

from greensock import ConnectFailed, ConnectionClosed, ConnectionLost, GreensockError
from greensock.core.poller import get_poller
from greensock.http import (
    BadResponse,
    BodyTimeout,
    ConnectTimeout,
    HeadTimeout,
    HTTPClient,
    Limits,
    Phase,
    PhaseTimeout,
    PoolStatistics,
    QueueFull,
    QueueTimeout,
    Reason,
    SendTimeout,
    Timeouts,
    TotalTimeout,
)
from greensock.http.client.connection_pool import ClientConnection

# -- stale connections, and the one free retry


def closing_after(count, *, how="fin"):
    """A script that answers so many requests on each connection and then closes at once."""

    def script(server, sock, number):
        for _ in range(count):
            if not server.head(sock):
                return
            sock.sendall(OK)
        if how == "reset":
            reset(sock)

    return script


def wait_stale(mine):
    """Wait until the client's idle connections are closed by the server."""
    idle = list(mine._pool.state._ages)
    assert idle
    wait_until(lambda: not any(conn.is_quiet() for conn in idle))


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_stale_connection_is_noticed_before_use(raw, client, how):
    server = raw(closing_after(1, how=how))
    mine = client()
    for count in 1, 2, 3:
        answer = mine.post(server.url, b"x" * 0)  # not idempotent: nothing else could save it
        assert (answer.read_all(), answer.is_reused) == (b"ok", False)
        wait_stale(mine)
        assert server.accepted == count


def test_bytes_that_nobody_asked_for_are_nobodys_answer(raw, client):
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    ready = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(OK)
        if number == 1:
            ready.wait()
            sock.sendall(poison)
        drain(sock)

    server = raw(script)
    mine = client()
    assert mine.get(server.url).read_all() == b"ok"
    ready.set()
    wait_stale(mine)
    assert mine.get(server.url).read_all() == b"ok"
    assert server.accepted == 2


def dying(how, count=1):
    """A script whose first connection answers some requests and dies with the next; later ones live."""

    def script(server, sock, number):
        answered = 0
        while server.head(sock):
            if number == 1 and answered == count:
                return reset(sock) if how == "reset" else sock.sendall(how)
            sock.sendall(OK)
            answered += 1
        return None

    return script


@pytest.mark.parametrize("how", ["reset", b"", b"\0", b"<html>", b"rest of it" + OK, b"HTTP/2.0 200 OK\r\n\r\n"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "POST", "PATCH", "X"])
def test_one_free_retry_for_what_may_be_repeated(raw, client, method, how):
    server = raw(dying(how))
    mine = client()
    mine.get(server.url).read_all()
    if method in ("POST", "PATCH", "X"):
        with pytest.raises((ConnectionLost, BadResponse)):
            mine.request(method, server.url)
        assert (server.accepted, len(server.heads)) == (1, 2)
        assert mine.statistics() == NOTHING
    else:
        answer = mine.request(method, server.url)
        assert (answer.status, answer.is_reused) == (200, False)
        answer.close()
        assert (server.accepted, len(server.heads)) == (2, 3)


EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"


@pytest.mark.parametrize("how", [b"H", EARLY, EARLY + b"<html>", OK[:-1], b"HTTP/1.1 200 OK\r\nX : \0\r\n\r\n"])
def test_no_retry_once_something_was_heard(raw, client, how):
    server = raw(dying(how))
    mine = client()
    mine.get(server.url).read_all()
    with pytest.raises(BadResponse):
        mine.get(server.url).read_all()
    assert server.accepted == 1


def test_no_retry_on_a_fresh_connection_nor_twice(raw, client):
    def script(server, sock, number):
        server.head(sock)
        if number == 2:
            sock.sendall(OK)
            server.head(sock)

    server = raw(script)
    mine = client()
    with pytest.raises(BadResponse, match="without an answer"):
        mine.get(server.url)
    assert server.accepted == 1
    mine.get(server.url).read_all()
    with pytest.raises(BadResponse, match="without an answer"):
        mine.get(server.url)
    assert server.accepted == 3


def test_no_retry_of_what_cannot_be_sent_again_and_of_an_upgrade(raw, client):
    for options in {"body": iter([b"x"])}, {"headers": {"Upgrade": "x"}}:
        server = raw(dying(b""))
        mine = client()
        mine.get(server.url).read_all()
        with pytest.raises((BadResponse, ConnectionLost)):
            mine.request("PUT", server.url, **options)
        assert server.accepted == 1


def test_a_body_that_can_be_sent_again_is(raw, client, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(LONG)

    def script(server, sock, number):
        if number == 1:
            server.head(sock)
            sock.sendall(OK)
            sock.recv(10)
            return
        server.head(sock)
        assert read_exactly(sock, len(LONG)) == LONG
        sock.sendall(OK)

    with path.open("rb") as file:
        for body in LONG, file:
            server = raw(script)
            mine = client()
            mine.get(server.url).read_all()
            assert mine.put(server.url, body).read_all() == b"ok"
            assert server.accepted == 2


def test_no_retry_after_a_timeout(raw, client):
    server = raw(answering(OK, b""))
    mine = client(timeouts=Timeouts(head=0.05))
    mine.get(server.url).read_all()
    with pytest.raises(HeadTimeout):
        mine.get(server.url)
    assert server.accepted == 1


# -- when time runs out


def stalls(data=b""):
    return answering(data)


FULL = Timeouts(queue=0.1, connect=0.1, send=0.1, head=0.1, body=0.1)


@pytest.mark.parametrize(
    ("script", "body", "kind"),
    [
        (stalls(), None, HeadTimeout),
        (stalls(b"HTTP/1.1 200"), None, HeadTimeout),
        (stalls(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx"), None, BodyTimeout),
        (stalls(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), None, BodyTimeout),
        (stalls(b"HTTP/1.1 200 OK\r\n\r\nx"), None, BodyTimeout),
        (lambda server, sock, number: server.stop.wait(), bytes(1 << 26), SendTimeout),
    ],
)
@pytest.mark.parametrize("in_all", [False, True])
def test_a_stall_in_each_phase(raw, client, script, body, kind, in_all):
    server = raw(script)
    server.stop = Event()
    mine = client(timeouts=Timeouts(total=0.1) if in_all else FULL)
    began = time.monotonic()
    with pytest.raises(PhaseTimeout) as caught:
        mine.put(server.url, body).read_all()
    assert 0.09 < time.monotonic() - began < 1
    assert type(caught.value) is (TotalTimeout if in_all else kind)
    assert (caught.value.seconds, caught.value.status) == (0.1, 504)
    assert caught.value.operation == caught.value.phase.value
    assert "0.1 s" in str(caught.value)
    assert mine.statistics() == NOTHING
    server.stop.set()


def test_a_trickle_does_not_stop_the_clock(raw, client):
    def trickle(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sock.sendall(b"x" * 1000)
            gevent.sleep(0)

    answer = client().get(raw(trickle).url, timeout=0.1)
    with pytest.raises(TotalTimeout):
        for _ in answer:
            pass


def full_listener():
    """A listener whose queue is full, so that nobody gets a connection; and what fills it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(listener.getsockname())
        fillers.append(sock)
    return listener, fillers


def test_connecting_takes_too_long(client):
    listener, fillers = full_listener()
    mine = client(timeouts=FULL)
    url = "http://{}:{}/".format(*listener.getsockname())
    with pytest.raises(ConnectTimeout) as caught:
        mine.get(url)
    assert (caught.value.phase, caught.value.seconds) == (Phase.CONNECT, 0.1)
    with pytest.raises(TotalTimeout):
        mine.get(url, timeout=0.05)
    assert mine.statistics() == NOTHING
    for sock in [listener, *fillers]:
        sock.close()


def test_nobody_is_there(client):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = "http://{}:{}/".format(*sock.getsockname())
    mine = client()
    body = io.BufferedReader(io.BytesIO())
    closed = []

    class Body(list):
        def close(self):
            closed.append(1)

    with pytest.raises(ConnectFailed, match="refused"):
        mine.put(url, Body([b"x"]))
    assert closed == [1]
    with pytest.raises(ConnectFailed, match="refused"):
        mine.put(url, body)
    assert not body.closed, "a file stays the caller's"
    assert mine.statistics() == NOTHING


def test_waiting_for_a_connection(site, client):
    mine = client(max_connections=1, max_waiting=1, timeouts=FULL)
    first = mine.get(site.url + "/stream?1000")
    with pytest.raises(QueueTimeout) as caught:
        mine.get(site.url + "/")
    assert (caught.value.phase, caught.value.seconds, caught.value.status) == (Phase.QUEUE, 0.1, 503)
    with pytest.raises(TotalTimeout):
        mine.get(site.url + "/", timeout=0.05)
    waiter = gevent.spawn(mine.get, site.url + "/", timeouts=Timeouts())
    wait_until(lambda: mine.statistics().waiting)
    with pytest.raises(QueueFull, match="max_waiting") as full:
        mine.get(site.url + "/")
    assert (full.value.limit, full.value.value, full.value.status) == ("max_waiting", 1, 503)
    first.close()
    assert waiter.get().status == 200
    assert mine.statistics() == IDLE_ONE


# -- hostile servers


@pytest.mark.parametrize(
    ("data", "then", "kinds"),
    [
        (b"", reset, ConnectionLost),
        (b"HTTP/1.1 200", reset, ConnectionLost),
        (b"HTTP/1.1 200 OK\r\n\r\n", reset, ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", reset, ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", lambda sock: None, BadResponse),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx", lambda sock: None, BadResponse),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", lambda sock: None, BadResponse),
    ],
)
def test_half_an_answer_is_never_a_whole_one(raw, client, data, then, kinds):
    def slowly(sock):
        let_engine_look()  # at what was sent, before a reset overtakes it
        then(sock)

    mine = client()
    with pytest.raises(kinds):
        mine.get(raw(answering(data, then=slowly)).url).read_all()
    assert mine.statistics() == NOTHING


def test_an_answer_larger_than_the_limits(raw, client):
    server = raw(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"))
    with pytest.raises(BadResponse) as caught:
        client(limits=Limits(max_body=8)).get(server.url)
    assert caught.value.reason is Reason.BODY_TOO_LARGE


# -- nothing leaks


@pytest.mark.parametrize("error", [gevent.GreenletExit, gevent.Timeout(1), KeyError("x")])
@pytest.mark.parametrize(
    ("script", "body", "has_come_so_far"),
    [
        (stalls(), None, lambda conn: conn.bytes_sent),
        (stalls(OK[:-1]), None, lambda conn: conn.bytes_received),
        (lambda server, sock, number: server.stop.wait(), bytes(1 << 26), lambda conn: conn.bytes_queued),
        (lambda server, sock, number: server.stop.wait(), [bytes(1 << 26)], lambda conn: conn.bytes_queued),
    ],
)
def test_what_is_thrown_into_a_wait_leaks_nothing(raw, client, script, body, has_come_so_far, error):
    server = raw(script)
    server.stop = Event()
    mine = client()
    caught = []

    def ask():
        try:
            mine.put(server.url, body).read_all()
        except BaseException as thrown:
            caught.append(thrown)

    asking = gevent.spawn(ask)

    def conns():
        return [conn for conn in get_poller().endpoints() if isinstance(conn, ClientConnection)]

    wait_until(lambda: server.accepted)
    wait_until(lambda: any(has_come_so_far(conn.statistics()) for conn in conns()))
    assert not asking.ready()
    asking.kill(error)
    assert isinstance(caught[0], error if isinstance(error, type) else type(error))
    assert mine.statistics() == NOTHING
    server.stop.set()
    assert mine.statistics() == NOTHING


def test_thrown_into_the_queue(site, client):
    mine = client(max_connections=1)
    first = mine.get(site.url + "/stream?1000")
    waiting = [gevent.spawn(mine.get, site.url + "/") for _ in range(3)]
    wait_until(lambda: mine.statistics().waiting == 3)
    waiting[0].kill()
    waiting[2].kill()
    assert mine.statistics().waiting == 1
    waiting[1].kill(block=False)
    first.close()  # which grants it the slot before it dies
    waiting[1].join()
    assert mine.statistics() == NOTHING
    assert mine.get(site.url + "/").status == 200


def test_closing_the_client(site, client):
    mine = client(max_connections=1)
    first = mine.get(site.url + "/stream?4")
    waiting = gevent.spawn(mine.get, site.url + "/")
    wait_until(lambda: mine.statistics().waiting)
    mine.close()
    with pytest.raises(ConnectionClosed, match="the client was closed"):
        waiting.get()
    assert len(first.read_all()) == 4 * 65536, "what is in use goes on"
    assert mine.statistics() == NOTHING
    with pytest.raises(ConnectionClosed, match="the client is closed"):
        mine.get(site.url + "/")
    with HTTPClient() as other:
        other.get(site.url + "/")
    assert other.statistics() == NOTHING


def test_idle_connections_grow_old_without_anybody_asking(site, client):
    mine = client(idle_timeout=0.05)
    mine.get(site.url + "/")
    assert mine.statistics() == IDLE_ONE
    wait_until(lambda: mine.statistics() == NOTHING)
    wait_until(lambda: site.statistics().active == 0)
    mine.get(site.url + "/")
    mine.close_idle()
    assert mine.statistics() == NOTHING


def test_the_younger_ones_grow_old_after_the_older(site, client):
    limit = 0.1
    mine = client(idle_timeout=limit)
    first = mine.get(site.url + "/stream?3")
    mine.get(site.url + "/")
    gevent.sleep(limit / 2)
    first.read_all()
    assert mine.statistics().idle == 2
    wait_until(lambda: mine.statistics().idle == 1)
    wait_until(lambda: mine.statistics() == NOTHING)


def test_a_connection_serves_so_many_requests(site, client):
    mine = client(max_requests=3)
    assert [mine.get(site.url + "/").is_reused for _ in range(7)] == [False, True, True, False, True, True, False]
    wait_until(lambda: site.statistics().active == 1)


def test_an_old_connection_is_left_under_steady_traffic(site, client):
    """Else an address that a name had once would never be left."""
    mine = client(max_age=0.05)
    wait_until(lambda: not mine.get(site.url + "/").is_reused and site.statistics().accepted > 3)
    wait_until(lambda: site.statistics().active <= 1)


def test_who_waits_gets_none_that_is_spent(site, client):
    mine = client(max_requests=1, max_connections=1)
    first = mine.get(site.url + "/stream?3")
    waiting = gevent.spawn(mine.get, site.url + "/")
    wait_until(lambda: mine.statistics().waiting)
    first.read_all()
    assert not waiting.get().is_reused


def test_another_thread_is_told_off(site, client):
    mine = client()
    mine.get(site.url + "/")
    caught = []

    def ask():
        with pytest.raises(RuntimeError, match="another thread"):
            mine.get(site.url + "/")
        caught.append(1)
        gevent.get_hub().destroy()

    gevent.get_hub().threadpool.apply(ask)
    assert caught == [1]


def test_the_child_of_a_fork_makes_its_own_connections(site, client):
    mine = client()
    mine.get(site.url + "/").read_all()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            assert mine.statistics() == NOTHING
            answer = mine.get(site.url + "/", timeout=PATIENCE)
            code = 0 if answer.status == 200 and not answer.is_reused else 2
        finally:
            os._exit(code)
    wait_until(lambda: site.statistics().accepted == 2)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert mine.statistics() == IDLE_ONE
    assert mine.get(site.url + "/").is_reused


def test_200_greenlets_share_8_connections(site, client):
    mine = client(max_connections=8)
    asked = iter(range(2000))
    most = []

    def ask():
        for number in asked:
            answer = mine.get(f"{site.url}/number?{number}")
            most.append(mine.statistics().used)
            assert answer.read_all() == b"number %d" % number
            assert answer.headers["x-number"] == str(number)

    gevent.joinall([gevent.spawn(ask) for _ in range(200)], raise_error=True)
    assert max(most) <= 8
    assert site.statistics().accepted == 8
    assert mine.statistics() == PoolStatistics(used=0, idle=8, waiting=0)


def test_killed_at_random_points(site, client):
    """Whoever lives gets his own answer."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    mine = client(max_connections=8, timeouts=Timeouts(queue=PATIENCE))
    counts = {"answered": 0, "killed": 0}

    def ask(number):
        kind = number % 4
        if kind == 0:
            answer = mine.post(site.url + "/echo", (b"%d," % number for _ in range(50)))
            assert answer.read_all() == b"%d," % number * 50
        elif kind == 1:
            with mine.get(site.url + "/stream?3") as answer:
                assert sum(map(len, answer)) == 3 * 65536
        else:
            assert mine.get(f"{site.url}/number?{number}").read_all() == b"number %d" % number
        counts["answered"] += 1

    asking = [gevent.spawn(ask, number) for number in range(600)]
    while any(not each.dead for each in asking):
        victim = chance.choice(asking)
        if not victim.dead and chance.random() < 0.5:
            error = chance.choice([gevent.GreenletExit, gevent.Timeout(1), GreensockError("thrown in")])
            with contextlib.suppress(Exception):
                gevent.kill(victim, error)
            counts["killed"] += 1
        gevent.sleep(chance.choice([0, 0, PAUSE]))
    failed = [each.exception for each in asking if each.exception is not None]
    assert not [error for error in failed if not isinstance(error, gevent.Timeout | GreensockError)]
    assert counts["answered"] > 20
    assert counts["killed"] > 20
    assert mine.statistics().used == mine.statistics().waiting == 0
    assert mine.statistics().idle <= 8
    assert mine.get(site.url + "/").status == 200
