"""Clients that leave, at every point of a request through the proxy."""

from __future__ import annotations

import contextlib
import socket

import gevent
import pytest
from conftest import PATIENCE, PAUSE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import reset
from proxies import closed_port
from proxy_peers import (  # noqa: F401  # fixtures
    CHUNKED,
    CLOSE,
    KEEP,
    SPLICED,
    dial,
    health_of,
    held_bytes,
    origin,
    proxied,
    record_of,
    server_of,
    status_of,
    wait_gone,
)
from scripts import OK, scripted

from greensock.core.poller import get_poller
from greensock.http.client import connection_pool
from greensock.proxy import ServerOptions

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
    endpoints = get_poller().endpoints()
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
    seconds = 0.3

    def script(server, sock, number):
        server.head(sock)
        gevent.sleep(seconds)  # and no answer

    with scripted(script) as first:
        url = origin.url if second == "answers" else f"http://127.0.0.1:{closed_port()}"
        proxy = proxied(first.url, ServerOptions(url, backup=True))
        answer = read_all(dial(proxy, b"GET / HTTP/1.1\r\n" + CLOSE))
        record = record_of(proxy)
        assert record.tries == 2
        assert record.duration >= seconds
        if second == "answers":
            assert status_of(answer) == 200
            assert record.connect_time <= record.head_time <= record.upstream_time <= record.duration - seconds
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
                gevent.sleep(PAUSE)
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
