"""WebSockets on an HTTPServer: the upcalls, the blocking style, the limits, pings, the end in every way."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import socket
import struct
import sys
import time
import weakref

import gevent
import pytest
import websockets.exceptions
import websockets.sync.client
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import reset
from websocket_wire import UPGRADE, frame, reading

from greensock import DropReason, OperationTimeout, WouldBlock
from greensock.http import HTTPError, HTTPServer, Response, WebSocket, WebSocketClosed, WebSocketOptions, WebSocketState
from greensock.http.websocket.frames import TEXT

QUIET = WebSocketOptions(ping_interval=None, close_timeout=PATIENCE)


class Site(HTTPServer):
    """Echoes what comes at /echo, beside a page, and writes down what happens."""

    def __init__(self, *arguments, **options):
        self.calls = []
        options.setdefault("websocket_options", QUIET)
        options.setdefault("linger_timeout", 0.1)
        super().__init__(*arguments, **options)

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.server_port}/echo"

    def handle_request(self, request):
        return Response(f"page {request.path}")

    def websocket_open(self, websocket, request):
        if request.path != "/echo":
            raise HTTPError(404)
        self.calls.append(("open", websocket))

    def websocket_message(self, websocket, message):
        self.calls.append(("message", message))
        if message == "fail":
            raise RuntimeError("the program fails")
        if message == "close":
            websocket.close(4001, "bye")
            return
        websocket.send(message)

    def websocket_close(self, websocket, code, reason):
        self.calls.append(("close", code, reason))

    def ends(self):
        return [call[1:] for call in self.calls if call[0] == "close"]

    def messages(self):
        return [call[1] for call in self.calls if call[0] == "message"]


def client(server, **options):
    options.setdefault("max_size", None)
    return websockets.sync.client.connect(server.url, **options)


def opened(connect, server, request=UPGRADE):
    """Return a socket on which the handshake is over, and what its answer was."""
    sock = connect(server)
    sock.sendall(request)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return sock, head


def ended(server, *ends):
    """Check how the WebSockets ended, and that nothing of them is left."""
    wait_until(lambda: server.statistics().active == 0)
    assert server.ends() == list(ends)
    assert not server._websockets


MESSAGES = ["text", "\N{SNOWMAN}", b"\x00\xff", "", b"", "x" * 125, "x" * 126, b"x" * 65536, os.urandom(300_000)]


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_of_both_kinds(serve, compression):
    server = serve(Site)
    with client(server, compression=compression) as ws:
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(PATIENCE) == message
        ws.send(["a", "b", "c"])
        assert ws.recv(PATIENCE) == "abc"
        assert ws.ping().wait(PATIENCE)
        (ours,) = server.websockets
        assert ours.is_compressed is (compression is not None)
        assert ours.client_address == ws.local_address
    ended(server, (1000, ""))
    assert server.messages() == [*MESSAGES, "abc"]
    assert server.statistics().statuses == {101: 1}


def test_beside_ordinary_requests(serve, connect):
    server = serve(Site)
    sock = connect(server)
    sock.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE + frame(0x81, b"early") * 2)
    data = b""
    while data.count(b"\x81\x05early") < 2:
        data += read_exactly(sock, 1)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"101"]
    assert b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=" in data
    sock.sendall(frame(0x88, struct.pack("!H", 1000)))
    assert read_all(sock) == b"\x88\x02\x03\xe8"
    ended(server, (1000, ""))


def test_no_connection_at_rest_holds_a_greenlet_or_more_than_a_kilobyte(serve, connect):
    server = serve(Site)
    for _ in range(3):
        sock, _ = opened(connect, server)
        sock.sendall(frame(0x81, b"x"))
        assert read_exactly(sock, 3) == b"\x81\x01x"
        sock.sendall(frame(0x01, b"x"))
    wait_until(lambda: [ws.held for ws in server.websockets] == [1, 1, 1])
    sock.sendall(frame(0x80, b"y"))
    assert read_exactly(sock, 4) == b"\x81\x02xy"
    (rested,) = [ws for ws in server.websockets if not ws.held]
    assert (rested._reader, rested._inflater, rested._deflater) == (None, None, None)
    assert server.statistics().workers_busy == 0


def test_a_subprotocol_is_chosen(serve):
    class Choosy(Site):
        def websocket_open(self, websocket, request):
            assert websocket.state is WebSocketState.CONNECTING
            assert request.offered_subprotocols == ["a.b", "c"]
            websocket.subprotocol = "c"
            websocket.accept({"X-Said": "yes"})
            websocket.send("hello")

    server = serve(Choosy)
    with client(server, subprotocols=["a.b", "c"]) as ws:
        assert ws.subprotocol == "c"
        assert ws.response.headers["X-Said"] == "yes"
        assert ws.recv(PATIENCE) == "hello"


@pytest.mark.parametrize(
    ("path", "status"), [("/no", 404), ("/response", 401), ("/raise", 500), ("/protocol", 500), ("/wrong", 500)]
)
def test_what_is_refused_is_answered(serve, caplog, path, status):
    class Refusing(Site):
        def websocket_open(self, websocket, request):
            if request.path == "/response":
                return Response("no", 401)
            if request.path == "/raise":
                raise RuntimeError("fails")
            if request.path == "/protocol":
                websocket.subprotocol = "never offered"
                return None
            if request.path == "/wrong":
                return "a string"
            return super().websocket_open(websocket, request)

    server = serve(Refusing)
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        websockets.sync.client.connect(server.url.replace("/echo", path))
    assert refused.value.response.status_code == status
    assert server.calls == []
    assert server.statistics().errors == (status == 500)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 8"), 426),
        ((b"Sec-WebSocket-Version: 13\r\n", b""), 426),
        ((b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Key: AAAA"), 400),
        ((b"AAAAAAAAAAAAAAAAAAAAAA==", b"not base64 at all !!!!!"), 400),
        ((b"Sec-WebSocket-Version", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version"), 400),
        ((b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"), 400),
        ((b"\r\n\r\n", b"\r\nOrigin: https://evil\r\n\r\n"), 403),
        ((b"\r\n\r\n", b"\r\nOrigin: https://good\r\n\r\n"), 101),
        ((b"GET", b"POST"), 200),
        ((b"HTTP/1.1", b"HTTP/1.0"), 200),
        ((b"Upgrade: websocket", b"Upgrade: other"), 200),
        ((b"Upgrade: websocket", b"Upgrade: foo, WebSocket"), 101),
        ((b"Connection: Upgrade", b"Connection: keep-alive"), 200),
        ((b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"), 101),
    ],
)
def test_handshakes(serve, connect, change, status):
    server = serve(Site, websocket_options=WebSocketOptions(origins=["https://good"]))
    sock = connect(server)
    sock.sendall(UPGRADE.replace(*change))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += read_exactly(sock, 1)
    assert int(answer.split()[1]) == status
    if status == 426:
        assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer


def test_the_blocking_style(serve):
    class Blocking(HTTPServer):
        def handle_request(self, request):
            if request.path == "/":
                return Response("page")
            with request.upgrade_websocket(["chat"], {"X-A": "b"}) as ws:
                for message in ws:
                    if message == "enough":
                        break
                    ws.send(message)
                ended.append((ws.close_code, ws.close_reason))
            return None

    ended = []
    server = serve(Blocking)
    url = f"ws://127.0.0.1:{server.server_port}/x"
    with websockets.sync.client.connect(url, subprotocols=["chat"], max_size=None) as ws:
        assert (ws.subprotocol, ws.response.headers["X-A"]) == ("chat", "b")
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(PATIENCE) == message
        ws.close(4000, "mine")
    wait_until(lambda: ended == [(4000, "mine")])
    with websockets.sync.client.connect(url) as ws:
        ws.send("enough")
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            ws.recv(PATIENCE)
        assert (ws.close_code, ws.close_reason) == (1000, "")
    wait_until(lambda: ended[1:] == [(None, "")])
    wait_until(lambda: server.statistics().active == 0)
    assert server.statistics().errors == 0
    with pytest.raises(websockets.exceptions.InvalidStatus):
        websockets.sync.client.connect(f"ws://127.0.0.1:{server.server_port}/")


def test_a_close_that_came_with_the_last_message_is_answered_at_once(serve, connect):
    class Once(HTTPServer):
        websocket_options = QUIET

        def handle_request(self, request):
            assert request.upgrade_websocket().receive() == "hi"

    server = serve(Once)
    sock = connect(server)
    sock.sendall(UPGRADE + frame(0x81, b"hi") + frame(0x88, b"\x03\xe9"))
    began = time.monotonic()
    assert read_all(sock).endswith(b"\r\n\r\n\x88\x02\x03\xe8")
    assert time.monotonic() - began < PATIENCE / 2
    assert server.statistics().errors == 0


def test_receive_with_a_time_and_what_it_raises(serve, connect):
    said = []

    def handle(request):
        ws = request.upgrade_websocket()
        with pytest.raises(OperationTimeout):
            ws.receive(timeout=0.01)
        ws.send("late")
        said.append(ws.receive(timeout=PATIENCE))
        with pytest.raises(WebSocketClosed) as closed:
            ws.receive()
        said.append((closed.value.code, closed.value.text))
        with pytest.raises(WebSocketClosed):
            ws.send("x")
        with pytest.raises(WebSocketClosed):
            ws.ping()
        assert not ws.send_nowait("x")
        with pytest.raises(RuntimeError, match="accept"):
            ws.accept()

    server = serve(HTTPServer, handle_request=handle, linger_timeout=0.1)
    sock, _ = opened(connect, server)
    assert read_exactly(sock, 6) == b"\x81\x04late"
    sock.sendall(frame(0x82, b"now") + frame(0x88, b"\x0f\xa1why"))
    assert read_all(sock) == b"\x88\x02\x0f\xa1"
    wait_until(lambda: said == [b"now", (4001, "why")])
    wait_until(lambda: server.statistics().active == 0)
    assert server.statistics().errors == 0


def test_upcalls_may_receive_by_themselves(serve, connect):
    class Names(Site):
        def websocket_open(self, websocket, request):
            websocket.send("name?")
            websocket.name = websocket.receive()

        def websocket_message(self, websocket, message):
            if message == "sum":
                message = f"{int(websocket.receive()) + int(websocket.receive())}"
            websocket.send(f"{websocket.name}: {message}")

    server = serve(Names)
    with client(server) as ws:
        assert ws.recv(PATIENCE) == "name?"
        for message in ("Ann", "hi", "sum", "1", "2", "bye"):
            ws.send(message)
        assert [ws.recv(PATIENCE) for _ in range(3)] == ["Ann: hi", "Ann: 3", "Ann: bye"]
    sock, _ = opened(connect, server)
    sock.sendall(b"".join(frame(0x81, text) for text in (b"Bob", b"sum", b"3", b"4", b"end")))
    answer = b"\x81\x05name?\x81\x06Bob: 7\x81\x08Bob: end"
    assert read_exactly(sock, len(answer)) == answer


def test_functions_instead_of_a_class(serve):
    closed = Event()
    server = serve(
        HTTPServer,
        websocket_message=lambda ws, message: ws.send(message * 2),
        websocket_close=lambda ws, code, reason: closed.set(),
    )
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.server_port}") as ws:
        ws.send("ab")
        assert ws.recv(PATIENCE) == "abab"
    assert closed.wait(PATIENCE)


# -- what breaks the protocol, or a limit


BROKEN = {
    "not masked": (frame(0x81, b"x", mask=False), 1002),
    "half UTF-8": (frame(0x81, b"\xe2\x98"), 1007),
    "half UTF-8 in parts": (frame(0x01, b"\xe2") + frame(0x80, b"x"), 1007),
    "too long": (frame(0x82, bytes(201)), 1009),
    "too long in parts": (frame(0x02, bytes(150)) + frame(0x80, bytes(51)), 1009),
    "a large control frame": (frame(0x89, bytes(126)), 1002),
    "a code that may not be sent": (frame(0x88, struct.pack("!H", 1006)), 1002),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("style", ["upcalls", "blocking"])
def test_who_breaks_the_protocol_is_told_and_dropped(serve, connect, name, style):
    data, code = BROKEN[name]
    codes = []

    class Blocking(Site):
        def websocket_open(self, websocket, request):
            for message in websocket:
                websocket.send(message)
            codes.append(websocket.close_code)

    server = serve(Site if style == "upcalls" else Blocking, websocket_options=WebSocketOptions(max_message=200))
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x81, b"good") + data + frame(0x81, b"not looked at"))
    answer = read_all(sock)
    assert answer.startswith(b"\x81\x04good\x88")
    assert struct.unpack("!H", answer[8:10]) == (code,)
    wait_until(lambda: server.statistics().active == 0)
    assert server.ends()[0][0] == code
    assert "not looked at" not in server.messages()
    assert codes == ([code] if style == "blocking" else [])
    assert server.statistics().errors == 0


def test_a_bomb_is_refused(serve):
    server = serve(Site, websocket_options=WebSocketOptions(max_message=100_000))
    with client(server) as ws:
        ws.send(bytes(100_000))
        assert ws.recv(PATIENCE) == bytes(100_000)
        ws.send(bytes(30_000_000))
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        assert ws.close_code == 1009
    assert server.messages() == [bytes(100_000)]


def test_with_context_takeover(serve):
    server = serve(Site, websocket_options=WebSocketOptions(context_takeover=True, compress_from=1, window_bits=11))
    text = "the same words again and again, or nearly: "
    with client(server) as ws:
        for number in range(5):
            before = next(iter(server.connections)).bytes_sent
            ws.send(f"{text}{number}")
            assert ws.recv(PATIENCE) == f"{text}{number}"
            sent = next(iter(server.connections)).bytes_sent - before
        assert sent < 20
        (ours,) = server.websockets
        assert ours._deflater is not None


def test_what_was_too_long_to_be_sent_is_not_referred_to(serve):
    class Boasting(Site):
        def websocket_message(self, websocket, message):
            with pytest.raises(WouldBlock):
                websocket.send_nowait(much)
            websocket.send(much[-1000:])

    server = serve(Boasting, max_send_queue=100_000, websocket_options=WebSocketOptions(context_takeover=True))
    much = os.urandom(server.max_send_queue)
    with client(server) as ws:
        ws.send("go")
        assert ws.recv(PATIENCE) == much[-1000:]


def test_a_flood_of_small_messages_leaves_others_their_turn(serve, connect):
    server = serve(Site)
    sock, _ = opened(connect, server)
    count = 20_000
    sender = gevent.spawn(sock.sendall, frame(0x81, b"x") * count)
    other, _ = opened(connect, server)
    latest = 0.0
    got = 0
    while got < 3 * count:
        began = time.monotonic()
        other.sendall(frame(0x81, b"y"))
        assert read_exactly(other, 3) == b"\x81\x01y"
        latest = max(latest, time.monotonic() - began)
        got += len(sock.recv(65536))
    sender.join(PATIENCE)
    assert got == 3 * count
    assert latest < 0.5


@pytest.mark.parametrize("what", [frame(0x00), frame(0x8A), frame(0x89)])
def test_a_flood_of_what_is_no_message_leaves_others_their_turn(serve, connect, what, monkeypatch):
    looks = []
    module = sys.modules[WebSocket.__module__]
    there = module.let_others_run
    monkeypatch.setattr(module, "let_others_run", lambda since: looks.append(since) or there(since))
    server = serve(Site)
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x01))
    flood = gevent.spawn(sock.sendall, what * 5000)
    reader = gevent.spawn(sock.recv, 65536)
    wait_until(lambda: len(looks) >= 5000)
    for job in (flood, reader):
        job.kill()


# -- failures of the program


def test_an_upcall_that_fails_is_told_as_1011(serve, caplog):
    server = serve(Site)
    with client(server) as ws:
        ws.send("fail")
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            ws.recv(PATIENCE)
        assert ws.close_code == 1011
    ended(server, (1011, ""))
    assert server.statistics().errors == 1
    assert [record for record in caplog.records if record.exc_info and "the program fails" in str(record.exc_info[1])]


def test_what_the_blocking_style_raises_is_told_as_1011(serve, caplog):
    def handle(request):
        request.upgrade_websocket()
        raise RuntimeError("the program fails")

    server = serve(HTTPServer, handle_request=handle)
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.server_port}") as ws:
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            ws.recv(PATIENCE)
        assert ws.close_code == 1011
    wait_until(lambda: server.statistics().errors == 1)
    assert server.statistics().dropped == {"ERROR": 1}


def test_wrong_arguments(serve):
    said = []

    def handle(request):
        ws = request.upgrade_websocket()
        for call, error in (
            (lambda: ws.send(5), TypeError),
            (lambda: ws.send_nowait(None), TypeError),
            (lambda: ws.close(1006), ValueError),
            (lambda: ws.close(1000, "x" * 124), ValueError),
            (lambda: ws.ping(bytes(126)), ValueError),
            (lambda: ws.send_nowait(os.urandom(2 << 20)), WouldBlock),
            (lambda: request.upgrade_websocket(), RuntimeError),
        ):
            with pytest.raises(error):
                call()
        said.append(ws.is_open)
        ws.send(bytearray(b"ab"))
        ws.send(memoryview(b"cd"))

    server = serve(HTTPServer, handle_request=handle)
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.server_port}") as ws:
        assert [ws.recv(PATIENCE), ws.recv(PATIENCE)] == [b"ab", b"cd"]
    assert said == [True]


# -- the end


def test_the_server_closes(serve):
    server = serve(Site)
    with client(server) as ws:
        ws.send("close")
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.recv(PATIENCE)
        assert (ws.close_code, ws.close_reason) == (4001, "bye")
    ended(server, (4001, "bye"))


def test_messages_behind_our_close_are_dropped(serve, connect):
    server = serve(Site)
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x81, b"close"))
    assert read_exactly(sock, 7) == b"\x88\x05\x0f\xa1bye"
    sock.sendall(frame(0x81, b"too late") + frame(0x89, b"ping"))
    sock.sendall(frame(0x88, b"\x0f\xa1"))
    assert read_all(sock) == b""
    ended(server, (4001, ""))
    assert server.messages() == ["close"]


def test_who_does_not_answer_a_close_is_dropped(serve, connect):
    server = serve(Site, websocket_options=WebSocketOptions(close_timeout=0.05), linger_timeout=0.05)
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x81, b"close"))
    assert read_all(sock) == b"\x88\x05\x0f\xa1bye"
    ended(server, (1006, ""))
    assert server.statistics().dropped == {"DEADLINE": 1}


@pytest.mark.parametrize("how", ["reset", "close", "half"])
def test_a_client_that_vanishes(serve, connect, how):
    server = serve(Site)
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x81, b"ping") + frame(0x81, b"half of one")[:5])
    assert read_exactly(sock, 6) == b"\x81\x04ping"
    if how == "half":
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    elif how == "reset":
        reset(sock)
    sock.close()
    ended(server, (1006, ""))
    assert server.statistics().errors == 0


def test_an_empty_close_is_answered_by_one(serve, connect):
    server = serve(Site)
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x88))
    assert read_all(sock) == b"\x88\x00"
    ended(server, (1005, ""))


@pytest.mark.parametrize("style", ["upcalls", "blocking"])
def test_a_server_that_drains_says_1001(serve, style):
    class Blocking(Site):
        def websocket_open(self, websocket, request):
            for message in websocket:
                websocket.send(message)

    server = serve(Site if style == "upcalls" else Blocking, stop_timeout=PATIENCE)
    with client(server) as ws, client(server) as other:
        for each in (ws, other):
            each.send("x")
            assert each.recv(PATIENCE) == "x"
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < PATIENCE / 2
        for each in (ws, other):
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                each.recv(PATIENCE)
            assert each.close_code == 1001
    assert server.ends() == [(1001, "")] * 2


def test_a_drain_waits_for_the_answer_of_a_peer_that_sends(serve, connect):
    server = serve(Site, stop_timeout=PATIENCE)
    sock, _ = opened(connect, server)
    draining = gevent.spawn(server.drain, PATIENCE)
    assert read_exactly(sock, 4) == b"\x88\x02\x03\xe9"
    sock.sendall(frame(0x81, b"on its way"))
    sock.sendall(frame(0x88, b"\x03\xe9"))
    assert read_all(sock) == b""
    assert draining.get(timeout=PATIENCE)
    assert server.ends() == [(1001, "")]


def test_none_begins_while_the_server_drains(serve, connect):
    go = Event()

    class Slow(Site):
        def handle_request(self, request):
            go.wait()
            return Response("late")

        def websocket_open(self, websocket, request):
            go.wait()

    server = serve(Slow, stop_timeout=PATIENCE)
    before, opening = connect(server), connect(server)
    before.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE)
    opening.sendall(UPGRADE)
    wait_until(lambda: server.requests_taken == 2)
    draining = gevent.spawn(server.drain, PATIENCE)
    wait_until(lambda: server.draining)
    go.set()
    assert b"Connection: close" in read_all(before)  # its second request is not looked at
    head, _, rest = read_all(opening).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert rest == b"\x88\x02\x03\xe9"
    opening.close()
    assert draining.get(timeout=PATIENCE)


def test_an_abort_ends_all(serve, connect):
    server = serve(Site)
    sock, _ = opened(connect, server)
    server.abort()
    with contextlib.suppress(ConnectionResetError):
        assert read_all(sock) == b""
    assert server.ends() == [(1006, "")]
    assert not server._websockets


def test_wait_closed_and_abort(serve, connect):
    kept = []

    class Kept(Site):
        def websocket_open(self, websocket, request):
            kept.append(websocket)

    server = serve(Kept)
    sock, _ = opened(connect, server)
    (ws,) = wait_until(lambda: kept)
    with pytest.raises(OperationTimeout):
        ws.wait_closed(0.01)
    ws.abort()
    ws.wait_closed(PATIENCE)
    with pytest.raises(OSError) as failed:
        read_all(sock)
    assert failed.value.errno == errno.ECONNRESET
    assert (ws.state, ws.close_code, ws.is_open) == (WebSocketState.CLOSED, 1006, False)
    ended(server, (1006, ""))


# -- pings


PINGING = WebSocketOptions(ping_interval=0.05, ping_timeout=0.1)


def test_who_is_silent_is_pinged_and_lives_if_it_answers(serve, connect):
    options = WebSocketOptions(ping_interval=0.05, ping_timeout=PATIENCE)
    server = serve(Site, websocket_options=options, idle_timeout=0.1)
    sock, _ = opened(connect, server)
    for _ in range(5):
        assert read_exactly(sock, 2) == b"\x89\x00"
        sock.sendall(frame(0x8A))
    sock.sendall(frame(0x81, b"x"))
    data = b""
    while not data.endswith(b"\x81\x01x"):
        data += read_exactly(sock, 1)
    assert 0 < server.websockets[0].round_trip < PATIENCE


def test_who_does_not_answer_a_ping_is_dropped(serve, connect):
    server = serve(Site, websocket_options=PINGING)
    sock, _ = opened(connect, server)
    began = time.monotonic()
    data = b""
    with contextlib.suppress(ConnectionResetError):
        data = read_all(sock)
    assert 0.1 < time.monotonic() - began < PATIENCE
    assert data.startswith(b"\x89\x00\x88") or not data
    ended(server, (1011, "no answer to a ping"))
    assert server._websockets._timer is None


def test_who_speaks_is_not_pinged(serve, connect):
    server = serve(Site, websocket_options=WebSocketOptions(ping_interval=0.2))
    sock, _ = opened(connect, server)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        sock.sendall(frame(0x81, b"x"))
        assert read_exactly(sock, 3) == b"\x81\x01x"
        gevent.sleep(0)


def test_one_timer_looks_after_all(serve, connect):
    server = serve(Site, websocket_options=WebSocketOptions(ping_interval=0.5, ping_timeout=PATIENCE))
    loop = gevent.get_hub().loop
    before = len(server._websockets), loop.activecnt
    socks = [opened(connect, server)[0] for _ in range(50)]
    assert (before[0], len(server._websockets)) == (0, 50)
    assert loop.activecnt <= before[1] + 1
    for sock in socks:
        assert read_exactly(sock, 2) == b"\x89\x00"


def test_a_program_pings_and_learns_how_long_it_took(serve, connect):
    class Pings(Site):
        def websocket_message(self, websocket, message):
            websocket.ping(b"payload")

    server = serve(Pings)
    sock, _ = opened(connect, server)
    sock.sendall(frame(0x81, b"go"))
    assert read_exactly(sock, 9) == b"\x89\x07payload"
    (ws,) = server.websockets
    assert ws.round_trip is None
    sock.sendall(frame(0x8A, b"payload"))
    wait_until(lambda: ws.round_trip is not None)


# -- slow readers


def test_a_slow_reader_is_dropped_and_nobody_waits(serve, connect):
    server = serve(Site, max_send_queue=100_000)
    slow, _ = opened(connect, server)
    with client(server) as fast:
        (first, second) = server.websockets
        until = time.monotonic() + PATIENCE
        while first.is_open:
            assert time.monotonic() < until
            server.broadcast_message("x" * 50_000)
            assert fast.recv(PATIENCE) == "x" * 50_000
        assert first.connection.drop_reason is DropReason.SLOW_READER
        assert not first.send_nowait("x")
        assert second.send_nowait("still there")
        assert fast.recv(PATIENCE) == "still there"
    ended(server, (1006, ""), (1000, ""))
    with contextlib.suppress(ConnectionResetError):
        read_all(slow)


def test_who_reads_no_pongs_is_dropped(serve, connect):
    server = serve(Site, max_send_queue=10_000)
    sock, _ = opened(connect, server)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(frame(0x89, bytes(125)) * 100)
    ended(server, (1006, ""))
    assert server.statistics().dropped == {"SLOW_READER": 1}


def test_what_is_sent_to_all_is_framed_once(serve, connect, monkeypatch):
    server = serve(Site)
    with client(server) as one, client(server) as two, client(server, compression=None) as three:
        framed = []
        made = WebSocket._frame
        monkeypatch.setattr(WebSocket, "_frame", lambda ws, message: framed.append(message) or made(ws, message))
        for message in ("short", "long" * 1000, b"\x00" * 1000):
            assert server.broadcast_message(message) == 3
            assert [ws.recv(PATIENCE) for ws in (one, two, three)] == [message] * 3
        assert len(framed) == 6
        assert server.broadcast_message("to some", server.websockets[:1]) == 1
        assert one.recv(PATIENCE) == "to some"
    wait_until(lambda: not server._websockets)
    assert server.broadcast_message("to nobody") == 0


def test_a_send_blocks_while_the_peer_is_slow(serve, connect):
    sent = []

    def handle(request):
        ws = request.upgrade_websocket()
        for _ in range(100):
            ws.send(bytes(100_000))
            sent.append(1)

    server = serve(HTTPServer, handle_request=handle, websocket_options=QUIET)
    sock, _ = opened(connect, server)
    wait_until(lambda: sent)
    count = -1
    while count != len(sent):
        count = len(sent)
        gevent.sleep(0)
    assert count < 100
    assert len(read_exactly(sock, 100 * 100_010)) == 100 * 100_010
    sock.close()
    wait_until(lambda: len(sent) == 100)


# -- nothing is left


def test_nothing_is_left_to_the_collector(serve, connect):
    alive = weakref.WeakSet()

    class Weak(Site):
        def websocket_open(self, websocket, request):
            alive.add(websocket)

    server = serve(Weak)
    gc.disable()
    try:
        for last in (frame(0x88), b"\xff\xff", frame(0x81, b"half")[:3]):
            sock, _ = opened(connect, server)
            sock.sendall(frame(0x01, b"x") + last)
            sock.close()
        wait_until(lambda: server.statistics().active == 0)
        wait_until(lambda: not alive)
    finally:
        gc.enable()


def test_the_access_log_has_it(serve):
    done = []
    server = serve(Site, request_done=lambda request, response, sent: done.append((request.path, response.status)))
    with client(server):
        assert done == [("/echo", 101)]


# -- any other protocol


def shouting(request):
    conn = request.detach(headers={"X-A": "b"})
    while line := conn.read_line():
        conn.send(line.upper() + b"\n")


ASK = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: shout/1, other\r\n\r\n"


def test_detach(serve, connect):
    server = serve(HTTPServer, handle_request=shouting)
    sock = connect(server)
    sock.sendall(ASK + b"early\n")
    data = b""
    while not data.endswith(b"EARLY\n"):
        data += read_exactly(sock, 1)
    assert data.startswith(b"HTTP/1.1 101 Switching Protocols\r\nX-A: b\r\nUpgrade: shout/1\r\nConnection: Upgrade\r\n")
    sock.sendall(b"more\n\n")
    assert read_all(sock) == b"MORE\n"
    sock.close()
    wait_until(lambda: server.statistics().active == 0)
    assert server.statistics().statuses == {101: 1}
    assert not server._detached


def test_detach_where_nothing_is_offered(serve, connect):
    server = serve(HTTPServer, handle_request=lambda request: request.detach("shout"))
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert b"\r\nUpgrade: shout\r\n" in answer


def test_detach_with_a_body(serve, connect):
    def handle(request):
        with pytest.raises(RuntimeError, match="body"):
            request.detach()
        assert request.body.read_all(10) == b"hi"
        request.detach().send(b"raw")

    server = serve(HTTPServer, handle_request=handle)
    sock = connect(server)
    sock.sendall(ASK.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"))
    assert read_all(sock).endswith(b"\r\n\r\nraw")


def test_connect_is_detached_by_200(serve, connect):
    server = serve(HTTPServer, handle_request=shouting, refused_methods=frozenset())
    sock = connect(server)
    sock.sendall(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nx\n\n")
    answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nX\n")


def test_a_drain_ends_the_input_of_what_was_detached(serve, connect):
    server = serve(HTTPServer, handle_request=shouting, stop_timeout=PATIENCE)
    sock = connect(server)
    sock.sendall(ASK + b"a\n")
    while b"A\n" not in sock.recv(1000):
        pass
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < PATIENCE / 2
    assert read_all(sock) == b""


def test_what_fails_behind_detach_is_logged(serve, connect, caplog):
    def handle(request):
        request.detach()
        raise RuntimeError("fails")

    server = serve(HTTPServer, handle_request=handle)
    sock = connect(server)
    with caplog.at_level(logging.ERROR):
        sock.sendall(ASK)
        assert read_all(sock).startswith(b"HTTP/1.1 101 ")
        wait_until(lambda: server.statistics().errors == 1)
    assert len(caplog.records) == 1


def test_the_flat_way_takes_what_the_reader_takes(serve, connect):
    """Each first byte and each length up to the bound and beyond, by itself: what comes out is what the reader says."""
    options = WebSocketOptions(max_message=50, ping_interval=None, compress=False)
    server = serve(Site, websocket_options=options)
    for first in (0x81, 0x82, 0x83, 0x01, 0x80, 0xC1, 0x91):
        for payload in (b"", b"\xe2", b"x", "\N{SNOWMAN}".encode(), b"x" * 50, b"x" * 51, b"x" * 125, b"x" * 126):
            sock, _ = opened(connect, server)
            server.calls.clear()
            sock.sendall(frame(first, payload))
            events, code, _ = reading([frame(first, payload)], options=options)
            if code is not None:
                answer = read_all(sock)
                assert struct.unpack("!H", answer[2:4]) == (code,)
                assert server.messages() == []
            elif events:
                wait_until(server.messages)
                ((kind, what),) = events
                assert [type(message) for message in server.messages()] == [str if kind == TEXT else bytes]
                assert server.messages() == [what]
            sock.close()
