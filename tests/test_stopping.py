"""How servers stop: what rests is closed at once, what runs is waited for, and no longer than it runs."""

from __future__ import annotations

import socket
from time import monotonic

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from proxies import Origin, Recorded, gateway_to
from scripts import scripted
from served import pure_only

from greensock import Lines, Server
from greensock.core import turns
from greensock.core.syscalls import has_input, has_unacknowledged
from greensock.core.turns import QUIET_SECONDS
from greensock.http import HTTPServer, Response, WSGIServer

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#: Far less than a linger, or than the time that a server waits for what runs.
SOON = 2.0


class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)


class Site(HTTPServer):
    """Answers /slow when it may."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.came, self.go = Event(), Event()

    def handle_request(self, request):
        if request.path == "/slow":
            self.came.set()
            self.go.wait()
        return Response(b"done")


def wsgi(listener, **options):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "4")])
        return [b"done"]

    return WSGIServer(listener, application, log=None, **options)


def seconds_to_stop(server, timeout=None):
    began = monotonic()
    server.stop(timeout)
    return monotonic() - began


def hear_answer(sock):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    return head + read_exactly(sock, int(head.lower().partition(b"content-length: ")[2].split()[0]))


@pytest.mark.parametrize("kind", [Echo, Site, wsgi])
@pytest.mark.parametrize("is_unix", [False, True])
def test_connections_at_rest_hold_nothing_up(serve, connect, tmp_path, kind, is_unix):
    """Their clients do not close: a linger would wait for them."""
    server = serve(kind, str(tmp_path / "socket") if is_unix else ("127.0.0.1", 0), linger_timeout=60.0)
    socks = [connect(server) for _ in range(3)]
    for sock in socks[1:]:
        sock.sendall(REQUEST if kind is not Echo else b"x")
        hear_answer(sock) if kind is not Echo else read_exactly(sock, 1)
    wait_until(lambda: server.statistics().accepted == 3)
    assert seconds_to_stop(server, 60.0) < SOON
    assert [read_all(sock) for sock in socks] == [b"", b"", b""]  # by FIN
    assert server.statistics().dropped == {"STOPPED": 3}


def test_a_proxy_with_kept_connections_on_both_sides_stops_at_once(serve, connect):
    origin = serve(Origin)
    proxy = serve(Recorded, gateway=gateway_to(origin.url), linger_timeout=60.0)
    socks = [connect(proxy) for _ in range(3)]
    for sock in socks:
        sock.sendall(REQUEST)
        hear_answer(sock)
    assert seconds_to_stop(proxy, 60.0) < SOON
    assert [read_all(sock) for sock in socks] == [b"", b"", b""]


def test_what_came_before_the_stop_is_served(serve, connect):
    """It is in the kernel when the server stops: a close would answer it with a reset."""
    server = serve(Site, linger_timeout=60.0)
    sock = connect(server)
    sock.sendall(REQUEST)
    hear_answer(sock)
    (conn,) = server.connections
    sock.sendall(REQUEST)
    while not has_input(conn.fileno()):  # the engine must not run before
        pass
    stopping = gevent.spawn(server.stop, 60.0)
    answer = read_all(sock)
    assert answer.endswith(b"done")
    assert b"Connection: close" in answer
    sock.close()
    stopping.get(timeout=SOON)


def test_who_always_sends_is_closed_after_a_second(serve, connect):
    """With a linger, so that what was answered arrives."""
    server = serve(Echo, linger_timeout=60.0)
    sock = connect(server)
    sock.sendall(b"a")
    read_exactly(sock, 1)
    (conn,) = server.connections

    class Chatty(Echo):
        def connection_recv(self, conn, data):
            conn.send(data)
            sock.sendall(b"b")
            while not has_input(conn._fd):
                pass

    server._on_recv = Chatty.connection_recv.__get__(server)
    sock.sendall(b"b")
    while not has_input(conn._fd):
        pass
    stopping = gevent.spawn(server.stop, 60.0)
    assert set(read_all(sock)) == set(b"b")
    sock.close()
    stopping.get(timeout=2 * SOON)


def test_what_is_on_its_way_to_a_slow_reader_arrives(serve, connect):
    size = 250_000  # more than the little that the reader's kernel takes, less than ours keeps
    server = serve(Site, linger_timeout=60.0)
    sock = connect(server)
    server.handle_request = lambda request: Response(bytes(size))
    server.send_timeout = None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(REQUEST)
    wait_until(lambda: server.connections)
    (conn,) = server.connections
    wait_until(lambda: conn._idle and conn.bytes_sent > size)
    assert has_unacknowledged(conn.fileno())
    stopping = gevent.spawn(server.stop, 60.0)
    wait_until(lambda: server.draining)
    gevent.sleep(0)
    assert conn.fileno() >= 0
    assert len(read_all(sock)) > size
    stopping.get(timeout=SOON)


@pytest.mark.parametrize("kind", [Server, HTTPServer, WSGIServer])
def test_by_default_half_a_minute_is_waited(kind):
    assert kind.stop_timeout == 30.0


def test_a_request_that_runs_is_waited_for_and_no_longer(serve, connect):
    server = serve(Site, stop_timeout=60.0)
    sock, idle = connect(server), connect(server)
    sock.sendall(REQUEST.replace(b"/", b"/slow", 1))
    assert server.came.wait(PATIENCE)
    stopping = gevent.spawn(server.stop)
    assert read_all(idle) == b""
    assert not stopping.ready()
    server.go.set()
    assert read_all(sock).endswith(b"done")
    sock.close()
    stopping.get(timeout=SOON)


def test_an_upcall_that_ends_ends_the_waiting(serve, connect, monkeypatch):
    """Its connection goes on, and rests: nobody else would say so."""
    monkeypatch.setattr("greensock.core.server.LONGEST_LOOK", PATIENCE)
    monkeypatch.setattr("greensock.core.server.SHORTEST_LOOK", PATIENCE)
    came, go = Event(), Event()

    class Slow(Server):
        def connection_recv(self, conn, data):
            came.set()
            go.wait()

    server = serve(Slow, linger_timeout=60.0)
    sock = connect(server)
    sock.sendall(b"x")
    assert came.wait(PATIENCE)
    stopping = gevent.spawn(server.stop, 60.0)
    wait_until(lambda: server.draining)
    go.set()
    assert read_all(sock) == b""
    stopping.get(timeout=SOON)


class Blocking(Server):
    """In the blocking style."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.ended = []

    def handle(self, conn):
        try:
            while line := conn.read_line():
                gevent.sleep(1.5 * QUIET_SECONDS if line == b"work" else 0)
                conn.send(line + b"\n")
        finally:
            self.ended.append(conn)


def test_a_handle_that_waits_for_its_peer_is_not_waited_for_long(serve, connect):
    server = serve(Blocking, linger_timeout=60.0)
    idle, busy = connect(server), connect(server)
    busy.sendall(b"work\n")
    idle.sendall(b"x\n")
    assert read_exactly(idle, 2) == b"x\n"
    began = monotonic()
    stopping = gevent.spawn(server.stop, 60.0)
    assert read_all(idle) == b""
    assert monotonic() - began >= QUIET_SECONDS
    idle.close()
    assert read_all(busy) == b"work\n"
    busy.close()
    stopping.get(timeout=PATIENCE)
    assert len(server.ended) == 2
    assert server.statistics().errors == 0


class Framed(Echo):
    framer = Lines()


@pytest.mark.parametrize("kind", [Blocking, Framed])
def test_a_message_is_waited_for_as_long_as_it_comes(serve, connect, kind):
    server = serve(kind, linger_timeout=60.0)
    silent, sock = connect(server), connect(server)
    for each in (silent, sock):
        each.sendall(b"half")
    wait_until(lambda: [conn.statistics().bytes_held for conn in server.connections] == [4, 4])
    stopping = gevent.spawn(server.stop, 60.0)
    for _ in range(8):
        gevent.sleep(QUIET_SECONDS / 4)
        sock.sendall(b".")
    assert read_all(silent) == b""
    assert len(server.connections) == 1
    sock.sendall(b"\n")
    assert read_exactly(sock, 12).startswith(b"half........")
    sock.close()
    stopping.get(timeout=PATIENCE)


def test_who_was_told_that_it_is_over_and_stays_holds_nothing_up_for_long(serve, connect):
    server = serve(Site, linger_timeout=60.0)
    sock = connect(server)
    sock.sendall(b"nonsense\n")
    assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert QUIET_SECONDS <= seconds_to_stop(server, 60.0) < QUIET_SECONDS + SOON


# -- the proxy's records of what it cut


def answered_never(server, sock, number):
    server.head(sock)
    read_all(sock)


def answered_in_part(server, sock, number):
    server.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    sock.recv(1)


@pytest.mark.parametrize(("script", "begun"), [(answered_never, b""), (answered_in_part, b"half")])
@pytest.mark.parametrize("abort_on_eof", [True, False])
def test_what_the_proxy_cuts_when_it_stops_is_no_clients_doing(serve, connect, caplog, script, begun, abort_on_eof):
    with scripted(script) as origin:
        proxy = serve(Recorded, gateway=gateway_to(origin.url), abort_on_eof=abort_on_eof)
        sock = connect(proxy)
        sock.sendall(REQUEST)
        wait_until(lambda: origin.heads)
        if begun:
            wait_until(lambda: sock.recv(4096, socket.MSG_PEEK).endswith(begun))
        proxy.stop(0.01)
        (record,) = proxy.records
        assert (record.status, record.reason) == (503, "stopped")
        assert proxy.failures == {"stopped": 1}
        assert proxy.statistics().dropped == {"STOPPED": 1}
        assert [upstream.all[0].health.is_clear for upstream in proxy.gateway.upstreams.values()] == [True]
    assert not [entry for entry in caplog.records if entry.exc_info]


def test_an_upload_that_the_proxy_cuts_when_it_stops(serve, connect):
    with scripted(answered_never) as origin:
        proxy = serve(Recorded, gateway=gateway_to(origin.url, max_replay=0))
        sock = connect(proxy)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        wait_until(lambda: origin.heads)
        proxy.stop(0.01)
        (record,) = proxy.records
        assert (record.status, record.reason) == (503, "stopped")
        assert proxy.failures == {"stopped": 1}


def test_a_stop_that_still_waits_leaves_the_next_life_alone(serve, connect):
    entered, may_end = Event(), Event()

    class Stubborn(Server):
        def connection_recv(self, conn, data):
            if data == b"stubborn":
                entered.set()
                try:
                    may_end.wait()
                except gevent.GreenletExit:
                    may_end.wait()
            conn.send(data)

    server = serve(Stubborn)
    connect(server).sendall(b"stubborn")
    entered.wait()
    stopping = gevent.spawn(server.stop, PATIENCE)
    wait_until(lambda: server.draining)
    server.abort()
    server.start()
    sock = connect(server)
    stopping.join(PATIENCE)
    assert stopping.ready()
    sock.sendall(b"hello")
    assert read_exactly(sock, 5) == b"hello"
    assert server.started
    assert not server.draining
    may_end.set()


@pytest.mark.parametrize("framer", [None, Lines()])
def test_what_a_client_pipelined_is_answered(serve, connect, framer):
    """Of several messages on their way, the first has its turn before the others come."""
    turns = Event()

    class Answers(Server):
        def connection_recv(self, conn, data):
            turns.set()
            conn.send(data if framer is None else data + b"\n")

    server = serve(Answers, framer=framer)
    sock = connect(server)
    stopping = None
    for number in range(10):
        sock.sendall(b"%d\n" % number)
        if stopping is None:
            turns.wait()
            stopping = gevent.spawn(server.stop, PATIENCE)
    data = b""
    while piece := sock.recv(100):
        data += piece
    assert data == b"".join(b"%d\n" % number for number in range(10))
    stopping.get(timeout=PATIENCE)


@pure_only
def test_a_flood_does_not_keep_a_server(serve, connect, monkeypatch):
    """A turn that always leaves more to be read is followed by the next one, and never by a rest."""

    class Hears(Server):
        def connection_recv(self, conn, data):
            pass

    server = serve(Hears, recv_size=1024)
    sock = connect(server)
    monkeypatch.setattr(turns, "read", lambda fd, size: bytes(size))
    sock.sendall(b"x")
    wait_until(lambda: server.statistics().bytes_received > 1 << 20)
    assert seconds_to_stop(server, PATIENCE) < 2 * SOON
