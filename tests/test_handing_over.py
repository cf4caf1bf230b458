"""What a server does for its successor: nothing that a client has asked is lost."""

from __future__ import annotations

import socket
import time

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from proxies import gateway_to

from greensock import Server
from greensock.core.turns import QUIET_SECONDS
from greensock.http import HTTPServer, Response, WSGIServer
from greensock.proxy import ReverseProxy

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#: Seconds in which a resting connection is seen not to be closed.
A_WHILE = 0.2
SPREAD = 1.0
#: More seconds than a stop waits for the rest of a message.
LONGER = QUIET_SECONDS + 0.2


class Site(HTTPServer):
    def handle_request(self, request):
        if request.path == "/slow":
            gevent.sleep(A_WHILE)
        return Response("hello")


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


class WSGISite(WSGIServer):
    def __init__(self, listener, **options):
        super().__init__(listener, application, log=None, **options)


@pytest.fixture(params=["http", "wsgi", "proxy"])
def site(request, serve):
    """A server of each kind, which answers ``hello``."""
    if request.param == "proxy":
        origin = serve(Site)
        gateway = gateway_to("http://{}:{}".format(*origin.address))
        return serve(ReverseProxy, gateway=gateway, close_spread=SPREAD)
    return serve({"http": Site, "wsgi": WSGISite}[request.param], close_spread=SPREAD)


def ask(sock, request=GET):
    """Ask, and return the head of the answer."""
    sock.sendall(request)
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(1)
        assert piece, "the connection has ended"
        head += piece
    assert read_exactly(sock, 5) == b"hello"
    return head


def test_a_kept_connection_may_ask_once_more(site, connect):
    kept, silent, fresh = connect(site), connect(site), connect(site)
    ask(kept)
    wait_until(lambda: site.connections_alive == 3)
    handing = gevent.spawn(site.hand_over, PATIENCE)
    gevent.sleep(A_WHILE)
    assert b"\r\nConnection: close\r\n" in ask(kept)
    assert kept.recv(1) == b""
    assert b"\r\nConnection: close\r\n" in ask(fresh), "it had not asked before"
    began = time.monotonic()
    assert silent.recv(1) == b""
    assert SPREAD / 2 - A_WHILE - 0.1 < time.monotonic() - began < SPREAD + 0.2
    kept.close(), silent.close(), fresh.close()
    handing.join(PATIENCE)
    assert not site.started


def test_what_was_pipelined_is_answered(site, connect):
    sock = connect(site)
    ask(sock)
    handing = gevent.spawn(site.hand_over, PATIENCE)
    gevent.sleep(0)
    sock.sendall(3 * GET)
    answers = read_all(sock)
    assert answers.count(b"hello") == 3
    assert answers.count(b"Connection: close") == 1
    handing.join(PATIENCE)


def test_idle_connections_are_closed_here_and_there(serve):
    site = serve(Site, close_spread=SPREAD)
    socks = [socket.create_connection(site.address) for _ in range(50)]
    wait_until(lambda: site.connections_alive == 50)
    began = time.monotonic()
    moments = []

    def wait(sock):
        with sock:
            sock.settimeout(PATIENCE)
            assert sock.recv(1) == b""
            moments.append(time.monotonic() - began)

    waiting = [gevent.spawn(wait, sock) for sock in socks]
    site.hand_over(PATIENCE)
    gevent.joinall(waiting, raise_error=True)
    assert min(moments) > SPREAD / 2 - 0.01
    assert max(moments) < SPREAD + 0.2
    tenths = [sum(at <= moment < at + 0.1 for moment in moments) for at in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert sum(map(bool, tenths)) > 2, tenths  # a busy machine may stand still for one


def test_the_backlog_is_left_to_the_others(serve):
    with socket.create_server(("127.0.0.1", 0), backlog=16) as shared:
        first, second = (serve(Site, shared.dup(), close_spread=SPREAD) for _ in range(2))
        first.hand_over(PATIENCE)
        with socket.create_connection(shared.getsockname()) as sock:
            sock.settimeout(PATIENCE)
            assert b"Connection" not in ask(sock)
        assert second.started


def test_it_may_accept_until_what_rests_is_closed(serve, connect):
    site = serve(Site, close_spread=SPREAD)
    idle = connect(site)
    wait_until(lambda: site.connections_alive == 1)
    handing = gevent.spawn(site.hand_over, PATIENCE, accepting=True)
    gevent.sleep(A_WHILE)
    with connect(site) as soon:
        assert b"\r\nConnection: close\r\n" in ask(soon)
    gevent.sleep(SPREAD / 2 - 2 * A_WHILE)
    with connect(site) as late:
        gevent.sleep(2 * A_WHILE)  # when no more are accepted
        assert b"\r\nConnection: close\r\n" in ask(late)
    idle.close()
    handing.join(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", site.server_port))


def test_a_stop_meanwhile_is_a_stop(serve, connect):
    site = serve(Site, close_spread=2 * PATIENCE)
    idle = connect(site)
    wait_until(lambda: site.connections_alive == 1)
    handing = gevent.spawn(site.hand_over, 4 * PATIENCE)
    gevent.sleep(0)
    began = time.monotonic()
    site.stop()
    assert idle.recv(1) == b""
    assert time.monotonic() - began < 1
    handing.join(PATIENCE)
    assert handing.ready()


def test_without_a_spread_it_is_a_stop(serve, connect):
    site = serve(Site, close_spread=0)
    idle = connect(site)
    wait_until(lambda: site.connections_alive == 1)
    site.hand_over(PATIENCE)
    assert idle.recv(1) == b""


def test_half_a_head_gets_its_time(serve, connect):
    """Longer than a stop would give it."""
    site = serve(Site, close_spread=2 * PATIENCE)
    sock = connect(site)
    sock.sendall(GET[:20])
    wait_until(lambda: any(conn.head_parser for conn in site.connections))
    handing = gevent.spawn(site.hand_over, 4 * PATIENCE)
    gevent.sleep(LONGER)
    assert b"\r\nConnection: close\r\n" in ask(sock, GET[20:])
    sock.close()
    handing.join(PATIENCE)


def test_a_line_protocol_goes_on_until_its_moment(serve, connect):
    server = serve(Server, connection_recv=lambda conn, data: conn.send(data), close_spread=SPREAD)
    sock = connect(server)
    handing = gevent.spawn(server.hand_over, PATIENCE)
    began = time.monotonic()
    while True:
        sock.sendall(b"x")
        if not sock.recv(1):
            break
    assert SPREAD / 2 - 0.1 < time.monotonic() - began < SPREAD + 0.2
    handing.join(PATIENCE)
