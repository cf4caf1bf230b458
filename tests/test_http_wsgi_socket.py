"""WebSockets on the WSGI server: ``environ["werkzeug.socket"]``, and the programs that stand on it."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import os
import re
import selectors
import socket
import struct
import threading
import time
import weakref
from functools import partial

import flask
import flask_sock
import flask_socketio
import gevent
import pytest
import simple_websocket
import socketio
import websockets.exceptions
import websockets.sync.client
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import reset
from proxies import Recorded, gateway_to

from greensock.http import WSGIServer

UPGRADE = (
    b"GET /?q HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % base64.b64encode(bytes(16))
)
PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Site:
    """A started server, and what it logged."""

    def __init__(self, serve, application, **options):
        self.log, self.errors = io.StringIO(), io.StringIO()
        self.server = serve(WSGIServer, application=application, log=self.log, error_log=self.errors, **options)
        self.url = f"ws://127.0.0.1:{self.server.server_port}"

    def check(self, *codes):
        """Check that all requests are over, with these statuses and without an error."""
        wait_until(lambda: self.server.statistics().active == 0)
        assert re.findall(r'HTTP/1\.1" (\d+) ', self.log.getvalue()) == [str(code) for code in codes]
        assert self.errors.getvalue() == ""
        assert self.server.statistics().errors == 0
        assert not self.server._sockets


@pytest.fixture
def site(serve):
    return lambda application, **options: Site(serve, application, **options)


def echo(environ, start_response):
    ws = simple_websocket.Server(environ)
    with contextlib.suppress(simple_websocket.ConnectionClosed):
        while True:
            ws.send(ws.receive())
    return []


def late_generator(environ, start_response):
    echo(environ, start_response)
    start_response("200 OK", [])
    yield b"nobody reads this"


def flask_echo():
    app = flask.Flask("echo")
    sock = flask_sock.Sock(app)

    @sock.route("/")
    def serve(ws):
        while True:
            ws.send(ws.receive())

    return app


APPLICATIONS = {"simple-websocket": lambda: echo, "generator": lambda: late_generator, "flask-sock": flask_echo}


@pytest.fixture(params=APPLICATIONS)
def application(request):
    return APPLICATIONS[request.param]()


MESSAGES = ["text", "\N{SNOWMAN}", b"\x00\xff", "", b"", "x" * 300_000, os.urandom(300_000)]


def test_messages_of_both_kinds(site, application):
    here = site(application)
    with websockets.sync.client.connect(here.url, max_size=None) as ws:
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(PATIENCE) == message
        ws.send(["a", "b", "c"])  # fragments
        assert ws.recv(PATIENCE) == "abc"
        assert ws.ping().wait(PATIENCE)
    here.check(101)
    assert here.server.statistics().statuses == {101: 1}


def test_the_client_of_simple_websocket(site, application):
    here = site(application)
    ws = simple_websocket.Client(here.url + "/")
    for message in MESSAGES:
        ws.send(message)
        assert ws.receive(PATIENCE) == message
    ws.close()
    here.check(101)


def test_many_at_once(site, application):
    here = site(application)

    def talk(number):
        with websockets.sync.client.connect(here.url) as ws:
            for message in (f"{number}.{turn}" for turn in range(20)):
                ws.send(message)
                assert ws.recv(PATIENCE) == message

    talks = [gevent.spawn(talk, number) for number in range(20)]
    gevent.joinall(talks, PATIENCE, raise_error=True)
    here.check(*[101] * 20)


def test_the_closing_handshake_that_the_client_begins(site):
    seen = []

    def application(environ, start_response):
        ws = simple_websocket.Server(environ)
        try:
            ws.receive()
        except simple_websocket.ConnectionClosed as closed:
            seen.append((int(closed.reason), closed.message))
        return []

    here = site(application)
    with websockets.sync.client.connect(here.url) as ws:
        ws.close(4000, "enough")
        assert ws.close_code == 4000
    here.check(101)
    assert seen == [(4000, "enough")]


def test_the_closing_handshake_that_the_server_begins(site):
    def application(environ, start_response):
        ws = simple_websocket.Server(environ)
        ws.send("first")
        ws.close(4001, "bye")
        return []

    here = site(application)
    with websockets.sync.client.connect(here.url) as ws:
        assert ws.recv(PATIENCE) == "first"
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            ws.recv(PATIENCE)
        assert (ws.close_code, ws.close_reason) == (4001, "bye")
    here.check(101)


def handshaken(here):
    """Return a socket on which the handshake is over."""
    sock = socket.create_connection(("127.0.0.1", here.server.server_port))
    sock.settimeout(PATIENCE)
    sock.sendall(UPGRADE)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


def frame(data, opcode=1):
    """Return a frame of a client, masked with zeros."""
    return bytes([0x80 | opcode, 0x80 | len(data)]) + bytes(4) + data


@pytest.mark.parametrize("how", ["reset", "close", "half"])
def test_a_client_that_vanishes(site, application, how):
    here = site(application)
    sock = handshaken(here)
    sock.sendall(frame(b"ping") + frame(b"half of one")[:5])
    assert read_exactly(sock, 6) == b"\x81\x04ping"
    if how == "half":
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    elif how == "reset":
        reset(sock)
    sock.close()
    here.check(101)


def test_a_client_that_does_not_wait_for_the_answer(site, application):
    here = site(application)
    with socket.create_connection(("127.0.0.1", here.server.server_port)) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(UPGRADE + frame(b"early"))
        data = b""
        while not data.endswith(b"\r\n\r\n\x81\x05early"):
            data += read_exactly(sock, 1)
        sock.sendall(frame(struct.pack("!H", 1000), 8))
        assert read_all(sock) == b"\x88\x02\x03\xe8"
    here.check(101)


def test_no_limit_of_http_cuts_it(site, application):
    here = site(application, idle_timeout=0.1, body_timeout=0.1, send_timeout=0.1, head_timeout=0.1, recv_timeout=0.1)
    with websockets.sync.client.connect(here.url) as ws:
        began = time.monotonic()
        for number in range(3):
            wait_until(lambda: time.monotonic() - began > (number + 1) * 0.25)  # noqa: B023
            ws.send("still there?")
            assert ws.recv(PATIENCE) == "still there?"
    here.check(101)


@pytest.mark.parametrize("how", ["stop", "drain", "abort"])
def test_a_server_that_stops_ends_it(site, application, how):
    here = site(application, stop_timeout=PATIENCE)
    with websockets.sync.client.connect(here.url) as ws, handshaken(here) as sock:
        ws.send("x")
        assert ws.recv(PATIENCE) == "x"
        began = time.monotonic()
        getattr(here.server, how)()
        assert time.monotonic() - began < PATIENCE / 2
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert read_all(sock) == b""
    assert here.errors.getvalue() == ""


def test_one_that_is_taken_while_the_server_drains_ends(site):
    go = Event()
    begun = []

    def application(environ, start_response):
        begun.append(environ)
        go.wait()
        return echo(environ, start_response)

    here = site(application)
    with socket.create_connection(("127.0.0.1", here.server.server_port)) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(UPGRADE)
        wait_until(lambda: begun)
        draining = gevent.spawn(here.server.drain, PATIENCE)
        wait_until(lambda: here.server.draining)
        go.set()
        assert read_all(sock).startswith(b"HTTP/1.1 101 ")
        assert draining.get(timeout=PATIENCE)


def test_through_the_proxy(site, serve, application):
    here = site(application)
    gateway = gateway_to(f"http://127.0.0.1:{here.server.server_port}")
    proxy = serve(Recorded, gateway=gateway)
    with websockets.sync.client.connect(f"ws://127.0.0.1:{proxy.server_port}", max_size=None) as ws:
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(PATIENCE) == message
    here.check(101)
    wait_until(lambda: proxy.records)
    assert proxy.records[0].status == 101
    gateway.upstreams["site"].close()


def test_nothing_is_left_to_the_collector(site, connect):
    alive = weakref.WeakSet()

    def application(environ, start_response):
        sock = environ["werkzeug.socket"]
        alive.add(sock)
        if environ["QUERY_STRING"] == "q":
            sock.sendall(b"taken")
        start_response("200 OK", [("Content-Length", "0")])
        return []

    here = site(application)
    gc.disable()
    try:
        with connect(here.server) as sock:
            sock.sendall(UPGRADE.replace(b"?q", b"?") + UPGRADE)
            assert read_all(sock).endswith(b"taken")
        wait_until(lambda: here.server.statistics().active == 0)
        wait_until(lambda: not alive)
    finally:
        gc.enable()


# -- pings of the server, for which simple-websocket waits on a selector


def pinging(environ, start_response, interval=0.05):
    ws = simple_websocket.Server(environ, ping_interval=interval)
    with contextlib.suppress(simple_websocket.ConnectionClosed):
        while True:
            ws.send(ws.receive())
    return []


def test_pings_are_answered(site):
    here = site(partial(pinging, interval=0.5))  # in which a busy machine answers, too
    with handshaken(here) as sock:
        for number in range(3):
            assert read_exactly(sock, 2) == b"\x89\x00"
            sock.sendall(frame(b"", 10) + frame(b"%d" % number))
            assert read_exactly(sock, 3) == b"\x81\x01%d" % number
    here.check(101)


def test_who_does_not_answer_a_ping_is_cut(site):
    here = site(pinging)
    with handshaken(here) as sock:
        assert read_all(sock).startswith(b"\x89\x00\x88")
    here.check(101)


@pytest.mark.parametrize("how", ["stop", "abort"])
def test_a_selector_does_not_outlive_the_server_for_long(site, how):
    ended = Event()

    class Thread(threading.Thread):
        def run(self):
            try:
                super().run()
            finally:
                ended.set()

    def application(environ, start_response):
        ws = simple_websocket.Server(environ, ping_interval=1000, thread_class=Thread)
        with contextlib.suppress(simple_websocket.ConnectionClosed):
            ws.receive()
        return []

    here = site(application)
    with handshaken(here):
        gevent.sleep(0)
        getattr(here.server, how)()
        assert ended.wait(PATIENCE)


# -- Socket.IO

#: Seconds between two pings; a thread of the server's ends no sooner.
PING = 0.2


def plain_socketio(mode):
    server = socketio.Server(async_mode=mode, ping_interval=PING)
    server.on("shout", lambda sid, data: data * 2)
    return socketio.WSGIApp(server), server


def of_flask(mode):
    app = flask.Flask("chat")
    wrapper = flask_socketio.SocketIO(app, async_mode=mode, ping_interval=PING)
    wrapper.on_event("shout", lambda data: data * 2)
    return app, wrapper.server


@pytest.mark.parametrize("mode", ["threading", "gevent"])
@pytest.mark.parametrize("make", [plain_socketio, of_flask])
@pytest.mark.parametrize("transports", [["websocket"], ["polling", "websocket"]])
def test_socketio(site, mode, make, transports):
    app, server = make(mode)
    here = site(app, stop_timeout=PATIENCE)
    with socketio.SimpleClient() as client:
        client.connect(f"http://127.0.0.1:{here.server.server_port}", transports=transports, wait_timeout=PATIENCE)
        wait_until(lambda: client.client.eio.transport() == "websocket")
        assert client.call("shout", "ab", timeout=PATIENCE) == "abab"
        assert client.call("shout", b"\x00" * 70_000, timeout=PATIENCE) == b"\x00" * 140_000
    here.server.stop()
    server.shutdown()
    assert " 101 " in here.log.getvalue()
    assert here.errors.getvalue() == ""


# -- requests that are not taken


def test_only_a_request_that_asks_for_an_upgrade_is_offered_a_socket(site, connect):
    seen = []

    def application(environ, start_response):
        seen.append("werkzeug.socket" in environ)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    here = site(application)
    sock = connect(here.server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE)
    sock.sendall(UPGRADE.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"))
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
    sock.sendall(PLAIN)
    assert read_all(sock).count(b"HTTP/1.1 200 OK") == 5
    assert seen == [False, True, False, False, False]
    sock.close()
    here.check(200, 200, 200, 200, 200)


def test_a_socket_that_was_not_taken_expires_with_its_request(site, connect):
    offered = []

    def application(environ, start_response):
        offered.append(environ.get("werkzeug.socket"))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    here = site(application)
    sock = connect(here.server)
    sock.sendall(UPGRADE)
    wait_until(lambda: here.log.getvalue())
    assert offered[0].fileno() == -1
    for use in (lambda: offered[0].send(b"x"), lambda: offered[0].recv(1), offered[0].makefile):
        with pytest.raises(OSError, match="Bad file descriptor"):
            use()
    offered[0].close()
    sock.sendall(PLAIN)
    assert read_all(sock).count(b"HTTP/1.1 200 OK") == 2


# -- the socket itself


def taken(site, use, **options):
    """Serve one request by ``use(sock)``; return the site, and what it returned or raised."""
    outcome = gevent.event.AsyncResult()

    def application(environ, start_response):
        try:
            outcome.set(use(environ["werkzeug.socket"]))
        except BaseException as error:
            outcome.set_exception(error)
        return []

    here = site(application, **options)
    sock = socket.create_connection(("127.0.0.1", here.server.server_port))
    sock.settimeout(PATIENCE)
    sock.sendall(UPGRADE)
    return here, sock, outcome


def fill(sock):
    while True:
        sock.send(bytes(1 << 20))


def test_it_sends_and_receives_as_a_socket_does(site):
    def use(sock):
        sock.sendall(b"hello")
        got = [sock.recv(2, socket.MSG_PEEK), sock.recv(2), sock.recv(100, socket.MSG_DONTWAIT), sock.recv(0)]
        buffer = bytearray(10)
        sock.send(bytearray(b"more?"))
        got.append((sock.recv_into(buffer, 4), bytes(buffer)))
        assert sock.send(memoryview(b"abcd")[1:]) == 3
        with sock.makefile("rwb") as file:
            file.write(b"line?\n")
            file.flush()
            got.append(file.readline())
        sock.shutdown(socket.SHUT_WR)
        got.append(sock.recv(1))
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")
        return got

    here, client, outcome = taken(site, use)
    with client:
        assert read_exactly(client, 5) == b"hello"
        client.sendall(b"abcd")
        assert read_exactly(client, 5) == b"more?"
        client.sendall(b"efgh")
        assert read_exactly(client, 9) == b"bcdline?\n"
        client.sendall(b"a line\n")
        assert read_all(client) == b""
        client.shutdown(socket.SHUT_WR)
        got = outcome.get(timeout=PATIENCE)
    assert got == [b"ab", b"ab", b"cd", b"", (4, b"efgh" + bytes(6)), b"a line\n", b""]
    here.check(101)


def test_its_timeouts_are_those_of_a_socket(site):
    def use(sock):
        assert sock.gettimeout() is None
        assert sock.getblocking()
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.recv(1)
        with pytest.raises(TimeoutError, match="timed out"):
            fill(sock)
        sock.setblocking(False)
        assert (sock.timeout, sock.getblocking()) == (0.0, False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        with pytest.raises(BlockingIOError):
            fill(sock)
        with pytest.raises(ValueError, match="out of range"):
            sock.settimeout(-1)
        return True

    _, client, outcome = taken(site, use, linger_timeout=0)
    with client:
        assert outcome.get(timeout=PATIENCE)


def test_it_can_be_waited_for(site):
    def use(sock):
        ready = Event()
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            assert selector.select(0) == []
            sock.send(b"go")
            assert len(selector.select(PATIENCE)) == 1
            ready.set()
        with sock.dup() as other:
            assert other.recv(4, socket.MSG_PEEK) == b"ping"
        return sock.recv(4)

    here, client, outcome = taken(site, use)
    with client:
        assert read_exactly(client, 2) == b"go"
        client.sendall(b"ping")
        assert outcome.get(timeout=PATIENCE) == b"ping"
    here.check(101)


@pytest.mark.parametrize("how", ["returns", "is killed"])
def test_it_ends_with_the_request_though_somebody_waits_on_its_descriptor(site, how):
    held, woken, begun = [], [], Event()

    def wait(sock):
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            begun.set()
            woken.append(len(selector.select(PATIENCE)))

    def application(environ, start_response):
        sock = environ["werkzeug.socket"]
        held.append(sock)
        sock.send(b"mine")
        waiting.append(gevent.spawn(wait, sock))
        begun.wait()
        if how == "is killed":
            raise gevent.GreenletExit
        return []

    waiting = []
    here = site(application)
    with socket.create_connection(("127.0.0.1", here.server.server_port)) as client:
        client.settimeout(PATIENCE)
        client.sendall(UPGRADE)
        assert read_all(client) == b"mine", "the client sees the end"
    waiting[0].get(timeout=PATIENCE)
    assert woken == [1]
    wait_until(lambda: not here.server._sockets)
    with pytest.raises(OSError, match="Bad file descriptor"):
        held[0].recv(1)
    held[0].close()


def test_what_was_sent_is_out_before_it_ends(site):
    content, sizes = b"x" * (1 << 20), []

    def use(sock):
        shown.append(sock)
        sock.fileno()
        sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                sizes.append(sock.send(content))

    shown = []
    here, client, outcome = taken(site, use)
    with client:
        outcome.get(timeout=PATIENCE)
        wait_until(lambda: here.log.getvalue())
        assert here.server._sockets, "abort finds it"
        assert len(read_all(client)) == sum(sizes) > 1 << 20
    here.check(101)
    shown[0].close()


def test_what_it_says_of_itself(site):
    def use(sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        option = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        said = sock.family, sock.type, sock.proto, sock.getsockname(), sock.getpeername(), option, repr(sock)
        assert not sock.is_taken
        with sock:
            sock.send(b"x")
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.recv(1)
        return said

    here, client, outcome = taken(site, use)
    with client:
        family, kind, proto, name, peer, option, text = outcome.get(timeout=PATIENCE)
        assert (family, kind, proto, option) == (socket.AF_INET, socket.SOCK_STREAM, 0, 0)
        assert (name, peer) == (here.server.address, client.getsockname())
        assert text.startswith("<ConnectionSocket of <HTTPConnection ")
        assert read_all(client) == b"x"
    here.check(101)


def test_what_it_does_not_know(site):
    def use(sock):
        for call in (lambda: sock.recv(1, socket.MSG_OOB), lambda: sock.send(b"x", socket.MSG_OOB)):
            with pytest.raises(OSError, match="not supported"):
                call()
        reader = gevent.spawn(sock.recv, 1)
        gevent.sleep(0)
        with pytest.raises(OSError, match="busy"):
            sock.recv(1)
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.get(timeout=PATIENCE)
        return True

    _, client, outcome = taken(site, use)
    with client:
        assert outcome.get(timeout=PATIENCE)


def test_a_reset_is_a_reset(site):
    go = Event()

    def use(sock):
        sock.send(b"x")
        go.wait()
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        with pytest.raises(ConnectionError):
            sock.send(b"x")
        return True

    here, client, outcome = taken(site, use)
    assert read_exactly(client, 1) == b"x"
    reset(client)
    go.set()
    assert outcome.get(timeout=PATIENCE)
    here.check(101)


@pytest.mark.parametrize("error", [ConnectionError, StopIteration, KeyError, gevent.Timeout])
def test_what_an_application_raises_that_took_the_socket(site, error):
    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(b"mine")
        raise error

    here = site(application)
    with socket.create_connection(("127.0.0.1", here.server.server_port)) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(UPGRADE + PLAIN)
        assert read_all(sock) == b"mine", "no answer of the server's"
    if error in (ConnectionError, StopIteration):
        here.check(101)
    else:
        wait_until(lambda: here.errors.getvalue())
        assert f"{error.__name__}" in here.errors.getvalue()
        assert here.server.statistics().errors == 1


def test_it_is_told_when_it_is_over(site):
    told = []

    class Telling(WSGIServer):
        def request_done(self, request, response, sent):
            told.append((request.target, response.status, sent))

    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(b"mine")
        start_response("200 OK", [])
        return [b"not sent"]

    server = Telling(("127.0.0.1", 0), application, log=None)
    with server, socket.create_connection(server_address := server.address) as sock:
        assert server_address
        sock.settimeout(PATIENCE)
        sock.sendall(UPGRADE)
        assert read_all(sock) == b"mine"
        wait_until(lambda: told)
    assert told == [(b"/?q", 101, 4)]


def test_an_application_that_is_killed(site):
    begun = Event()

    def application(environ, start_response):
        environ["werkzeug.socket"].sendall(b"mine")
        begun.set()
        Event().wait()

    here = site(application)
    with socket.create_connection(("127.0.0.1", here.server.server_port)) as sock:
        sock.sendall(UPGRADE)
        assert begun.wait(PATIENCE)
        here.server.abort()
    assert not here.server._sockets
