"""``environ["wsgi.websocket"]``: as gevent-websocket gave it, on WSGIServer and behind the proxy."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import textwrap

import gevent
import pytest
import simple_websocket
import websockets.exceptions
import websockets.sync.client
from conftest import PATIENCE, read_all, wait_until
from gevent.event import Event
from proxies import Recorded, gateway_to
from websocket_wire import UPGRADE, frame

from greensock.http import WebSocketClosed, WebSocketOptions, WSGIServer


class Site:
    """A started server, and what it logged."""

    def __init__(self, serve, application, **options):
        self.log, self.errors = io.StringIO(), io.StringIO()
        self.server = serve(WSGIServer, application=application, log=self.log, error_log=self.errors, **options)
        self.url = f"ws://127.0.0.1:{self.server.server_port}/echo"

    def check(self, *codes):
        """Check that all requests are over, with these statuses and without an error."""
        wait_until(lambda: self.server.statistics().active == 0)
        assert re.findall(r'HTTP/1\.1" (\d+) ', self.log.getvalue()) == [str(code) for code in codes]
        assert self.errors.getvalue() == ""
        assert self.server.statistics().errors == 0
        assert not self.server._websockets


@pytest.fixture
def site(serve):
    return lambda application, **options: Site(serve, application, **options)


def echo(environ, start_response):
    ws = environ["wsgi.websocket"]
    while True:
        message = ws.receive()
        if message is None:
            return []
        ws.send(message)


def test_a_websocket_beside_a_filter(serve, connect):
    """Its bytes are frames, whatever the application returns."""

    def application(environ, start_response):
        environ["wsgi.websocket"].send("hello")
        start_response("200 OK", [])
        return [b"an answer"]

    server = serve(WSGIServer, application=application, log=None, filter_for=lambda request, response: None)
    sock = connect(server)
    sock.sendall(UPGRADE + frame(0x88, b"\x03\xe8"))
    assert read_all(sock).partition(b"\r\n\r\n")[2] == b"\x81\x05hello\x88\x02\x03\xe8"
    wait_until(lambda: server.statistics().active == 0)


MESSAGES = ["text", "\N{SNOWMAN}", b"\x00\xff", "", b"", "x" * 70_000, b"x" * 300_000]


@pytest.mark.parametrize("through", ["", "the proxy"])
def test_an_echo(site, serve, through):
    here = site(echo)
    url, gateway = here.url, None
    if through:
        gateway = gateway_to(f"http://127.0.0.1:{here.server.server_port}")
        url = f"ws://127.0.0.1:{serve(Recorded, gateway=gateway).server_port}/echo"
    with websockets.sync.client.connect(url, max_size=None) as ws:
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(PATIENCE) == message
    assert ws.close_code == 1000
    here.check(101)
    assert here.server.statistics().statuses == {101: 1}
    if gateway is not None:
        gateway.upstreams["site"].close()


def test_what_a_program_finds(site):
    seen = {}

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        seen.update(
            version=(environ["wsgi.websocket_version"], ws.version),
            origin=ws.origin,
            protocol=ws.protocol,
            path=ws.path,
            closed=ws.closed,
            opcodes=(ws.OPCODE_TEXT, ws.OPCODE_BINARY, ws.OPCODE_PING),
        )
        ws.websocket.subprotocol = "b"
        ws.send(b"12")
        ws.send("bytes", binary=True)
        ws.send(b"text", binary=False)
        ws.send_frame("", ws.OPCODE_PING)
        with pytest.raises(ValueError, match="opcode"):
            ws.send_frame("", ws.OPCODE_CLOSE)
        seen["got"] = [ws.receive(), ws.receive()]
        with pytest.raises(WebSocketClosed):
            ws.receive()
        with pytest.raises(WebSocketClosed, match="already closed"):
            ws.send("too late")
        seen["in the end"] = ws.closed
        ws.close()
        return [b"counts for nothing"]

    here = site(application)
    with websockets.sync.client.connect(here.url, subprotocols=["a", "b"], origin="http://here") as ws:
        assert [ws.recv(PATIENCE) for _ in range(3)] == [b"12", b"bytes", "text"]
        ws.send(b"bytes")
    here.check(101)
    assert seen == {
        "version": ("13", "13"),
        "origin": "http://here",
        "protocol": "a, b",
        "path": "/echo",
        "closed": False,
        "opcodes": (1, 2, 9),
        "got": [bytearray(b"bytes"), None],
        "in the end": True,
    }


def test_the_application_closes(site):
    def application(environ, start_response):
        environ["wsgi.websocket"].close(4001, b"enough")
        return []

    here = site(application)
    with websockets.sync.client.connect(here.url) as ws:
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        assert (ws.close_code, ws.close_reason) == (4001, "enough")
    here.check(101)


def test_an_application_that_fails_is_told_as_1011(site):
    def application(environ, start_response):
        environ["wsgi.websocket"].receive()
        raise RuntimeError("the program fails")

    here = site(application)
    with websockets.sync.client.connect(here.url) as ws:
        ws.send("x")
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        assert ws.close_code == 1011
    wait_until(lambda: here.server.statistics().active == 0)
    assert "the program fails" in here.errors.getvalue()
    assert here.server.statistics().errors == 1


def test_one_that_is_not_used_leaves_the_request_as_it_is(site, connect):
    kept = []

    def application(environ, start_response):
        kept.append(environ.get("wsgi.websocket"))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    here = site(application, websocket_options=WebSocketOptions(origins=["http://here"]))
    sock = connect(here.server)
    elsewhere = UPGRADE.replace(b"\r\n\r\n", b"\r\nOrigin: http://elsewhere\r\n\r\n")
    malformed = UPGRADE.replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"short")
    sock.sendall(UPGRADE + elsewhere + malformed + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert read_all(sock).count(b"HTTP/1.1 200 OK") == 4
    assert [each is not None for each in kept] == [True, False, False, False]
    with pytest.raises(WebSocketClosed):
        kept[0].send("x")
    assert kept[0].closed
    sock.close()
    here.check(200, 200, 200, 200)


def test_beside_the_socket_either_is_taken_and_not_both(site):
    def application(environ, start_response):
        if environ["QUERY_STRING"] == "simple":
            ws = simple_websocket.Server(environ)
            with pytest.raises(RuntimeError):
                environ["wsgi.websocket"].send("no")
            ws.send("simple")
        else:
            environ["wsgi.websocket"].send("other")
            with pytest.raises(OSError):
                environ["werkzeug.socket"].send(b"no")
        return []

    here = site(application)
    for query in ("simple", "other"):
        with websockets.sync.client.connect(f"{here.url}?{query}") as ws:
            assert ws.recv(PATIENCE) == query
    here.check(101, 101)


def test_a_message_that_is_too_long(site):
    here = site(echo, websocket_options=WebSocketOptions(max_message=10))
    with websockets.sync.client.connect(here.url) as ws:
        ws.send("x" * 11)
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        assert ws.close_code == 1009
    here.check(101)


def test_who_is_silent_is_pinged(site):
    here = site(echo, websocket_options=WebSocketOptions(ping_interval=0.05), idle_timeout=0.05, recv_timeout=0.05)
    with websockets.sync.client.connect(here.url) as ws:
        wait_until(lambda: here.server.websockets and here.server.websockets[0].round_trip)
        ws.send("still there")
        assert ws.recv(PATIENCE) == "still there"
    here.check(101)


@pytest.mark.parametrize("how", ["stop", "abort"])
def test_a_server_that_stops_ends_it(site, how):
    here = site(echo, stop_timeout=PATIENCE)
    with websockets.sync.client.connect(here.url) as ws:
        ws.send("x")
        assert ws.recv(PATIENCE) == "x"
        getattr(here.server, how)()
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        assert ws.close_code == (1001 if how == "stop" else 1006)
    assert here.errors.getvalue() == ""


def test_one_that_is_taken_while_the_server_drains_ends(site, connect):
    go = Event()
    begun = []

    def application(environ, start_response):
        begun.append(environ)
        go.wait()
        return echo(environ, start_response)

    here = site(application)
    sock = connect(here.server)
    sock.sendall(UPGRADE)
    wait_until(lambda: begun)
    draining = gevent.spawn(here.server.drain, PATIENCE)
    wait_until(lambda: here.server.draining)
    go.set()
    assert b"\r\n\r\n\x88\x02\x03\xe9" in sock.recv(1000) + sock.recv(1000)
    sock.sendall(frame(0x88, b"\x03\xe9"))
    assert read_all(sock) == b""
    assert draining.get(timeout=PATIENCE)


def test_an_application_in_the_style_of_gevent_websocket():
    """In a process that has imported gevent-websocket: its errors are what such a program expects."""
    pytest.importorskip("geventwebsocket")
    program = """
        from gevent import monkey
        monkey.patch_all()
        from geventwebsocket import Resource, WebSocketApplication, WebSocketError
        import websockets.sync.client
        from greensock.http import WSGIServer

        said = []

        class Echo(WebSocketApplication):
            def on_open(self):
                said.append("open")

            def on_message(self, message):
                if message is not None:
                    self.ws.send(message * 2)

            def on_close(self, reason=None):
                said.append("close")
                try:
                    self.ws.send("x")
                except WebSocketError as error:
                    said.append(str(error))

        server = WSGIServer(("127.0.0.1", 0), Resource([("/", Echo)]), log=None)
        server.start()
        with websockets.sync.client.connect(f"ws://127.0.0.1:{server.server_port}/") as ws:
            ws.send("ab")
            assert ws.recv(5) == "abab"
        server.stop()
        assert said == ["open", "close", "Connection is already closed"], said
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_that_vanishes_is_found_by_send(site, connect):
    found = []

    def application(environ, start_response):
        ws = environ["wsgi.websocket"]
        with contextlib.suppress(WebSocketClosed):
            while True:
                ws.send("x" * 1000)
        found.append(ws.closed)
        return []

    here = site(application)
    sock = connect(here.server)
    sock.sendall(UPGRADE)
    assert sock.recv(1000)
    sock.close()
    wait_until(lambda: found == [True])
    here.check(101)
