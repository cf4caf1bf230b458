"""``connect_websocket``: against greensock's server, websockets', aiohttp's, and servers that do it wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import gevent
import pytest
from conftest import PATIENCE, read_exactly, wait_until
from tls_peers import client_tls, server_tls
from websocket_wire import frame

from greensock import ConnectFailed, ConnectionLost, OperationTimeout
from greensock.http import (
    BadResponse,
    HTTPError,
    HTTPServer,
    WebSocketClosed,
    WebSocketOptions,
    WebSocketRefused,
    connect_websocket,
)
from greensock.http.websocket.handshake import accept_key

MESSAGES = ["text", "\N{SNOWMAN}", b"\x00\xff", "", b"", "x" * 126, b"x" * 65536, os.urandom(300_000)]
EVERY_KIND = [
    WebSocketOptions(),
    WebSocketOptions(compress=False),
    WebSocketOptions(context_takeover=True, compress_from=1),
]


class Echo(HTTPServer):
    def __init__(self, *arguments, **options):
        self.ends = []
        super().__init__(*arguments, **options)

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.server_port}/"

    def websocket_open(self, websocket, request):
        if request.path == "/no":
            raise HTTPError(403, "not you")
        if "b" in request.offered_subprotocols:
            websocket.subprotocol = "b"
        if request.headers.get("x-say"):
            websocket.send(request.headers["x-say"])

    def websocket_message(self, websocket, message):
        if message == "close":
            websocket.close(4001, "enough")
        elif message == "abort":
            websocket.abort()
        else:
            websocket.send(message)

    def websocket_close(self, websocket, code, reason):
        self.ends.append((code, reason))


@pytest.mark.parametrize("options", EVERY_KIND)
def test_an_echo(serve, options):
    server = serve(Echo, websocket_options=options)
    with connect_websocket(server.url, options=options) as ws:
        assert ws.is_compressed is options.compress
        for message in MESSAGES:
            ws.send(message)
            assert ws.receive(timeout=PATIENCE) == message
    assert ws.close_code == 1000
    wait_until(lambda: server.ends == [(1000, "")])


def test_what_is_asked_for(serve):
    server = serve(Echo)
    with connect_websocket(server.url, subprotocols=["a", "b"], headers={"X-Say": "hello"}) as ws:
        assert ws.subprotocol == "b"
        assert ws.receive(timeout=PATIENCE) == "hello"
    with connect_websocket("ws://nowhere.invalid/", address=("127.0.0.1", server.server_port)) as ws:
        assert ws.subprotocol is None


def test_over_a_unix_socket(serve, tmp_path):
    path = str(tmp_path / "echo.sock")
    serve(Echo, listener=path)
    with connect_websocket(f"ws+unix://{path.replace('/', '%2F')}/") as ws:
        ws.send("x")
        assert ws.receive(timeout=PATIENCE) == "x"


def test_what_it_says_of_who_refuses(serve):
    server = serve(Echo)
    with pytest.raises(WebSocketRefused) as refused:
        connect_websocket(server.url + "no")
    assert (refused.value.status, refused.value.body) == (403, b"not you\n")
    assert refused.value.headers["content-length"] == "8"
    plain = serve(HTTPServer)
    with pytest.raises(WebSocketRefused) as refused:
        connect_websocket(f"ws://127.0.0.1:{plain.server_port}/")
    assert refused.value.status == 404


def test_over_tls(serve):
    server = serve(Echo, tls=server_tls("localhost", "127.0.0.1"))
    url = f"wss://127.0.0.1:{server.server_port}/"
    with connect_websocket(url, tls=client_tls()) as websocket:
        for message in MESSAGES:
            websocket.send(message)
            assert websocket.receive(timeout=PATIENCE) == message
    with pytest.raises(ConnectFailed, match="certificate is refused"):
        connect_websocket(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("wss://u:p@a/", "user"),
        ("http://a/", "ws://host"),
        ("a", "ws://host"),
        ("ws://", "host"),
        ("ws://u:p@a/", "user"),
    ],
)
def test_urls_that_cannot_be(url, said):
    with pytest.raises(ValueError, match=said):
        connect_websocket(url)


def test_who_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed):
        connect_websocket(f"ws://127.0.0.1:{port}/")


def test_the_server_closes(serve):
    server = serve(Echo)
    with connect_websocket(server.url) as ws:
        ws.send("close")
        assert list(ws) == []
        assert (ws.close_code, ws.close_reason) == (4001, "enough")
        with pytest.raises(WebSocketClosed) as closed:
            ws.send("more")
        assert (closed.value.code, closed.value.text) == (4001, "enough")
    wait_until(lambda: server.ends == [(4001, "")])


def test_the_server_vanishes(serve):
    server = serve(Echo)
    with connect_websocket(server.url) as ws:
        ws.send("abort")
        with pytest.raises(WebSocketClosed) as closed:
            ws.receive()
        assert closed.value.code == 1006
        assert isinstance(closed.value.__cause__, ConnectionLost)


def test_a_close_while_another_greenlet_receives(serve):
    server = serve(Echo)
    ws = connect_websocket(server.url)
    reader = gevent.spawn(list, ws)
    ws.send("x")
    wait_until(lambda: ws._is_received)
    ws.close(4002)
    assert reader.get(timeout=PATIENCE) == ["x"]
    ws.wait_closed(PATIENCE)
    wait_until(lambda: server.ends == [(4002, "")])


def test_receive_behind_our_close_waits_for_the_servers(serve):
    server = serve(Echo)
    ws = connect_websocket(server.url)
    ws.send("never received")
    ws.close(4003)
    assert list(ws) == []
    assert ws.close_code == 4003


def test_a_close_whose_greenlet_was_killed(serve):
    """Whoever receives goes on in its place."""
    server = serve(Echo)
    websocket = connect_websocket(server.url)
    websocket.close()
    websocket._finisher.kill()
    with pytest.raises(WebSocketClosed) as caught:
        websocket.receive()
    assert caught.value.code == 1000


def test_a_receive_that_is_late_or_killed_leaves_it_usable(serve):
    server = serve(Echo)
    with connect_websocket(server.url) as ws:
        with pytest.raises(OperationTimeout):
            ws.receive(timeout=0.01)
        with gevent.Timeout(0.01, False):
            ws.receive()
        ws.send("x")
        assert ws.receive(timeout=PATIENCE) == "x"


@pytest.mark.parametrize("pings", ["client", "server"])
def test_pings_either_way(serve, pings):
    lively, quiet = WebSocketOptions(ping_interval=0.05, ping_timeout=0.2), WebSocketOptions(ping_interval=None)
    server = serve(Echo, websocket_options=lively if pings == "server" else quiet)
    with connect_websocket(server.url, options=quiet if pings == "server" else lively) as ws:
        with pytest.raises(OperationTimeout):
            ws.receive(timeout=0.4)
        assert ws.is_open
        (other,) = server.websockets
        assert ((ws.round_trip is None), (other.round_trip is None)) == (pings == "server", pings == "client")


# -- servers that do it wrong


def answered(answer, *, url="ws://127.0.0.1:{}/", **options):
    """Connect to a server that answers so; ``{accept}`` is what is due."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            sock, _ = listener.accept()
            with sock:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += read_exactly(sock, 1)
                key = next(line[19:] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
                sock.sendall(answer.replace(b"{accept}", accept_key(key)))
                sock.settimeout(PATIENCE)
                try:
                    while sock.recv(1000):
                        pass
                except OSError:
                    pass

        server = gevent.spawn(serve)
        try:
            return connect_websocket(url.format(listener.getsockname()[1]), **options)
        except BaseException:
            server.join(PATIENCE)
            raise


GOOD = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n%b\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        GOOD.replace(b"{accept}", b"AAAA") % b"",
        GOOD.replace(b"Upgrade: websocket", b"Upgrade: other") % b"",
        GOOD % b"Sec-WebSocket-Protocol: never\r\n",
        GOOD % b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
        GOOD % b"Sec-WebSocket-Extensions: other\r\n",
        b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"what is this?\r\n\r\n",
    ],
)
def test_answers_that_are_none(answer):
    with pytest.raises(BadResponse):
        answered(answer)


def test_messages_that_come_with_the_answer():
    ws = answered((GOOD % b"") + b"\x81\x05early\x82\x01x")
    assert [ws.receive(timeout=PATIENCE), ws.receive(timeout=PATIENCE)] == ["early", b"x"]
    ws.abort()


@pytest.mark.parametrize(
    ("data", "code"), [(frame(0x81, b"masked"), 1002), (b"\x81\x02\xc3\x28", 1007), (b"\x83\x00", 1002)]
)
def test_a_server_that_breaks_the_protocol(data, code):
    ws = answered((GOOD % b"") + data)
    with pytest.raises(WebSocketClosed) as closed:
        ws.receive(timeout=PATIENCE)
    assert closed.value.code == code


def test_a_message_that_is_too_long():
    ws = answered((GOOD % b"") + b"\x82\x65" + bytes(101), options=WebSocketOptions(max_message=100))
    with pytest.raises(WebSocketClosed) as closed:
        ws.receive(timeout=PATIENCE)
    assert closed.value.code == 1009


def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(OperationTimeout):
        connect_websocket(f"ws://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.05)


def test_who_does_not_answer_our_close_is_left():
    ws = answered(GOOD % b"", options=WebSocketOptions(close_timeout=0.05))
    ws.close()
    ws.wait_closed(PATIENCE)
    assert ws.close_code == 1006


# -- other people's servers


WEBSOCKETS = """
    import asyncio
    from websockets.asyncio.server import serve

    async def echo(ws):
        async for message in ws:
            await ws.send(message)

    async def main():
        async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
            print("listening on 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""
AIOHTTP = """
    import asyncio
    from aiohttp import WSMsgType, web

    async def echo(request):
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        async for message in ws:
            if message.type == WSMsgType.TEXT:
                await ws.send_str(message.data)
            else:
                await ws.send_bytes(message.data)
        return ws

    async def main():
        app = web.Application()
        app.router.add_get("/", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print("listening on 127.0.0.1:%d" % site._server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize("program", [WEBSOCKETS, AIOHTTP], ids=["websockets", "aiohttp"])
def test_other_peoples_servers(program):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().removeprefix("listening on ").strip()
        for options in EVERY_KIND:
            with connect_websocket(f"ws://{address}/", options=options) as ws:
                assert ws.is_compressed is options.compress
                for message in MESSAGES:
                    ws.send(message)
                    assert ws.receive(timeout=PATIENCE) == message
            assert ws.close_code == 1000
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def test_aiohttps_client(serve):
    """In a process of its own: its loop waits for nobody here."""
    program = """
        import asyncio, sys
        import aiohttp

        async def main():
            async with aiohttp.ClientSession() as session:
                for compress in (0, 15):
                    async with session.ws_connect(sys.argv[1], compress=compress) as ws:
                        for size in (0, 1, 125, 126, 65536, 300_000):
                            await ws.send_str("x" * size)
                            assert await ws.receive_str() == "x" * size
                            await ws.send_bytes(b"y" * size)
                            assert await ws.receive_bytes() == b"y" * size
                        await ws.ping()
                    assert ws.close_code == 1000, ws.close_code

        asyncio.run(main())
    """
    server = serve(Echo)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), server.url])
    try:
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        process.kill()
    wait_until(lambda: server.ends == [(1000, "")] * 2)
