"""The HTTP client over real connections: to our server, to servers of others, and to hostile ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pool import Group
from http_messages import cases, plain_fields
from pairs import drain, reset

from greensock import ConnectFailed, ConnectionClosed, ConnectionLost, GreensockError, LimitExceeded, ProtocolError
from greensock.http import (
    BadResponse,
    BodyTimeout,
    ConnectTimeout,
    FileBody,
    Headers,
    HeadTimeout,
    HTTPClient,
    HTTPError,
    HTTPServer,
    Limits,
    Phase,
    PhaseTimeout,
    PoolStatistics,
    QueueFull,
    QueueTimeout,
    Reason,
    Response,
    SendTimeout,
    Timeouts,
    TotalTimeout,
)
from greensock.http.client import connection_pool

# A server in a thread of its own, which runs while the hub of this one does not.
allocate_lock, start_new_thread = (get_original("_thread", name) for name in ("allocate_lock", "start_new_thread"))
native_socket = get_original("socket", "socket")

LONG = b"0123456789abcdef" * 65536  # 1 MiB
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

IDLE_ONE = PoolStatistics(used=0, idle=1, waiting=0)
NOTHING = PoolStatistics(used=0, idle=0, waiting=0)


@pytest.fixture
def client() -> Iterator[Callable[..., HTTPClient]]:
    """Make clients, closed after the test."""
    clients: list[HTTPClient] = []

    def make(**options: Any) -> HTTPClient:
        clients.append(HTTPClient(**options))
        return clients[-1]

    yield make
    for each in clients:
        each.close()
        assert each.statistics() == NOTHING, "a slot was lost"


class Raw:
    """A server of bytes: each connection goes through ``script(sock, number)`` in a greenlet of its own."""

    def __init__(self, script: Callable[[socket.socket, int], Any]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = self._listener.getsockname()
        self.url = "http://{}:{}/".format(*self.address)
        self.accepted = 0
        #: The heads of the requests that came.
        self.heads: list[bytes] = []
        self.group = Group()
        self.group.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self.accepted += 1
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.group.spawn(self._serve, sock, self.accepted)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                self._script(sock, number)
        finally:
            sock.close()

    def head(self, sock: socket.socket) -> bytes:
        """Read the head of a request, byte by byte; empty at the end of input."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = sock.recv(1)
            if not piece:
                return b""
            data += piece
        self.heads.append(data)
        return data

    def close(self) -> None:
        self._listener.close()
        self.group.kill()


@pytest.fixture
def raw() -> Iterator[Callable[..., Raw]]:
    servers: list[Raw] = []

    def start(script: Callable[..., Any]) -> Raw:
        def run(sock: socket.socket, number: int) -> Any:
            return script(server, sock, number)

        server = Raw(run)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def answering(*answers: bytes, then: Callable[[socket.socket], Any] = drain) -> Callable[..., Any]:
    """A script that reads a head before each answer, and does ``then`` at the end."""

    def script(server: Raw, sock: socket.socket, number: int) -> None:
        for answer in answers:
            if not server.head(sock):
                return
            sock.sendall(answer)
        then(sock)

    return script


def _slowly(pieces):
    for piece in pieces:
        gevent.sleep(0)
        yield piece


class Site(HTTPServer):
    """What the client's own features are tried on."""

    def handle_request(self, request):
        if request.path == "/echo":
            return Response(request.body.read_all(1 << 24), headers={"X-Framing": framing(request)})
        if request.path == "/mirror":
            return Response(iter(request.body))
        if request.path == "/trailers":
            body = request.body.read_all()
            return Response(f"{body!r} {plain_fields(request.trailers)}")
        if request.path == "/stream":
            return Response(LONG[:65536] for _ in range(int(request.query)))
        if request.path == "/sized":
            size, _, slow = request.query.partition("&")
            pieces = [LONG[: int(size) - 9], LONG[:9]]
            return Response(_slowly(pieces) if slow else iter(pieces), headers={"Content-Length": size})
        if request.path == "/fields":
            return Response("\n".join(f"{name}: {value}" for name, value in request.headers))
        if request.path == "/empty":
            return Response(status=204)
        if request.path == "/unmodified":
            return Response(status=304)
        if request.path == "/slow":
            gevent.sleep(float(request.query))
            return Response("slow")
        if request.path == "/number":
            if random.random() < 0.3:
                gevent.sleep(0)
            return Response(f"number {request.query}", headers={"X-Number": request.query})
        if request.path == "/":
            return Response(f"{request.method} {request.host}")
        raise HTTPError(404)


def framing(request):
    return "chunked" if request.head.is_chunked else str(request.head.content_length)


@pytest.fixture
def site(serve):
    server = serve(Site)
    server.url = f"http://127.0.0.1:{server.server_port}"
    return server


# -- what one asks for


def test_get_and_keep(site, client):
    mine = client()
    for reused in False, True, True:
        answer = mine.get(site.url + "/")
        assert (answer.status, answer.read_all()) == (200, f"GET 127.0.0.1:{site.server_port}".encode())
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.is_reused is reused
        assert answer.is_ended
        assert mine.statistics(site.url) == IDLE_ONE
    assert site.statistics().accepted == 1


def test_the_methods(site, client):
    mine = client()
    assert mine.put(site.url + "/echo", b"x").read_all() == b"x"
    assert mine.delete(site.url + "/").read_all().startswith(b"DELETE ")
    assert mine.request("OPTIONS", site.url, target=b"*").status == 404
    assert mine.get(site.url + "/nowhere").status == 404


def test_what_has_no_body(site, client):
    mine = client()
    head = mine.head(site.url + "/")
    length = len(f"HEAD 127.0.0.1:{site.server_port}")
    assert (head.status, head.head.content_length, head.read_all()) == (200, length, b"")
    assert mine.get(site.url + "/empty").status == 204
    assert mine.get(site.url + "/unmodified").status == 304
    assert site.statistics().accepted == 1
    assert mine.statistics() == IDLE_ONE


def pieces():
    yield b"one"
    yield b""
    yield bytearray(b"two")


@pytest.mark.parametrize(
    ("make", "fields", "framed", "expected"),
    [
        (lambda: None, {}, "0", b""),
        (lambda: b"", {}, "0", b""),
        (lambda: b"bytes", {}, "5", b"bytes"),
        (lambda: "t\u00e4xt", {}, "5", "t\u00e4xt".encode()),
        (lambda: memoryview(b"view"), {}, "4", b"view"),
        (lambda: LONG, {}, str(len(LONG)), LONG),
        (pieces, {}, "chunked", b"onetwo"),
        (pieces, {"Content-Length": "6"}, "6", b"onetwo"),
        (lambda: io.BytesIO(b"in memory"), {}, "chunked", b"in memory"),
        (lambda: io.BytesIO(b"in memory"), {"Content-Length": "9"}, "9", b"in memory"),
        (lambda: [LONG], {}, "chunked", LONG),
        (list, {}, "chunked", b""),
    ],
)
@pytest.mark.parametrize("expect_continue", [False, True])
def test_bodies(site, client, make, fields, framed, expected, expect_continue):
    mine = client()
    answer = mine.post(site.url + "/echo", make(), headers=fields, expect_continue=expect_continue)
    assert answer.read_all(1 << 24) == expected
    assert answer.headers["x-framing"] == framed
    assert mine.statistics() == IDLE_ONE


@pytest.mark.parametrize("size", [0, 1, 20_000, 3_000_000])
def test_a_file_is_sent_from_its_position_and_stays_as_it_is(site, client, tmp_path, size):
    path = tmp_path / "file"
    data = random.Random(1).randbytes(size + 5)
    path.write_bytes(data)
    mine = client()
    with path.open("rb") as file:
        file.seek(5)
        answer = mine.post(site.url + "/echo", file)
        assert answer.read_all(1 << 24) == data[5:]
        assert answer.headers["x-framing"] == str(size)
        assert file.tell() == 5
    body = FileBody(path.open("rb"), 2, 3)
    assert mine.post(site.url + "/echo", body).read_all() == data[2:5]
    assert body.file.closed
    assert mine.statistics() == IDLE_ONE


def test_trailers_go_both_ways(site, client, raw):
    mine = client()
    body, sums = [b"x", b"y"], []
    answer = mine.post(site.url + "/trailers", body, trailers=lambda: sums.append(1) or Headers([("Sum", "2")]))
    assert answer.read_all() == b"b'xy' [['Sum', '2']]"
    assert sums == [1]
    server = raw(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nSum: 1\r\n\r\n"))
    answer = mine.get(server.url)
    assert answer.read_all() == b"x"
    assert plain_fields(answer.trailers) == [["Sum", "1"]]


def test_a_long_answer_streams_in_bounded_memory(site, client):
    mine = client()
    with mine.get(site.url + "/stream?64") as answer:
        size = 0
        for piece in answer:
            assert 0 < len(piece) <= 65536
            assert answer._parser.pending <= 65536
            size += len(piece)
    assert size == answer.received == 64 * 65536
    assert answer.read() == b""
    assert mine.statistics() == IDLE_ONE


def test_read_gives_at_most_what_is_asked_for(site, client):
    mine = client()
    answer = mine.get(site.url + "/stream?1")
    data = b""
    while piece := answer.read(1000):
        assert len(piece) <= 1000
        data += piece
    assert data == LONG[:65536]
    with pytest.raises(ValueError, match="max_bytes=0"):
        answer.read(0)


@pytest.mark.parametrize("path", ["/stream?1", "/sized?65536", "/sized?65536&slow"])
@pytest.mark.parametrize(("most", "fits"), [(65535, False), (65536, True), (65537, True)])
def test_read_all_is_bounded(site, client, path, most, fits):
    mine = client()
    answer = mine.get(site.url + path)
    if fits:
        assert len(answer.read_all(most)) == 65536
        return
    with pytest.raises(LimitExceeded, match=f"max_bytes={most}") as caught:
        answer.read_all(most)
    assert (caught.value.limit, caught.value.value) == ("max_bytes", most)
    assert not isinstance(caught.value, ProtocolError), "the server broke no rule"
    assert answer.is_ended
    assert mine.statistics().used == 0


def test_read_all_does_not_begin_what_is_too_long(raw, client):
    mine = client()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        drain(sock)

    answer = mine.get(raw(script).url)
    assert answer.read(2) == b"ab"
    with pytest.raises(LimitExceeded):
        answer.read_all(7)
    assert mine.statistics() == NOTHING
    answer = mine.get(raw(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")).url)
    assert answer.read(2) == b"ab"
    assert answer.read_all(1) == b"c"


def test_an_answer_of_which_a_program_wants_less_blames_nobody(site, client, serve, connect, caplog):
    class Asking(HTTPServer):
        def handle_request(self, request):
            return Response(client().get(site.url + "/stream?1").read_all(100))

    server = serve(Asking)
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", read_all(sock)) == [b"500"], "as for any failure of the program"
    assert server.statistics().errors == 1
    assert "LimitExceeded: a body of more than max_bytes=100 bytes" in caplog.text


def test_closing_early_gives_the_connection_up(site, client):
    mine = client()
    with mine.get(site.url + "/stream?1000") as answer:
        answer.read(10)
        assert mine.statistics().used == 1
    assert answer.is_ended
    assert mine.statistics() == NOTHING
    answer.close()
    assert answer.read() == b""
    assert mine.get(site.url + "/").status == 200
    assert site.statistics().accepted == 2


def test_an_answer_that_is_forgotten_warns_and_gives_the_connection_up(site, client):
    mine = client()
    answer = mine.get(site.url + "/stream?1000")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del answer
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert mine.statistics() == NOTHING


# -- what goes out


def test_the_fields_that_go_out(raw, client):
    server = raw(answering(OK, OK, OK, OK))
    mine = client(user_agent="me")
    mine.get(server.url + "a?b")
    host = f"Host: 127.0.0.1:{server.address[1]}\r\n"
    assert server.heads[-1].decode() == f"GET /a?b HTTP/1.1\r\n{host}User-Agent: me\r\n\r\n"
    given = Headers([("Host", "other"), ("User-Agent", "you"), ("X", "1"), ("Connection", "X, keep-alive")])
    mine.post(server.url, headers=given)
    assert server.heads[-1] == (
        b"POST / HTTP/1.1\r\nHost: other\r\nUser-Agent: you\r\nX: 1\r\nContent-Length: 0\r\n\r\n"
    )
    assert len(given) == 4, "the caller's own"
    mine.get(server.url, headers={"TE": "trailers", "Upgrade": "x", "Expect": "100-continue"})
    assert server.heads[-1].endswith(b"TE: trailers\r\nUpgrade: x\r\nUser-Agent: me\r\nConnection: Upgrade, TE\r\n\r\n")
    assert mine.statistics() == IDLE_ONE
    mine.get(server.url, headers={"Connection": "close"}, target=b"//%zz?")
    assert server.heads[-1].startswith(b"GET //%zz? HTTP/1.1\r\n")
    assert server.heads[-1].endswith(b"Connection: close\r\n\r\n")
    assert mine.statistics() == NOTHING
    assert server.accepted == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "G T"},
        {"method": "GET\r\n"},
        {"target": b"/ HTTP/1.1\r\nX: y"},
        {"headers": {"X": "a\r\nb"}},
        {"headers": [("Host", "a"), ("Host", "b")]},
        {"body": b"x", "headers": {"Content-Length": "2"}},
        {"body": b"x", "headers": {"Content-Length": "x"}},
        {"timeout": 0},
        {"url": "https://a/"},
    ],
)
def test_what_cannot_be_sent_is_not(raw, client, wrong):
    server = raw(answering(OK))
    mine = client()
    with pytest.raises(ValueError, match=r"."):
        mine.request(**{"method": "GET", "url": server.url, **wrong})
    assert server.accepted == 0
    assert mine.statistics() == NOTHING


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "nonsense"},
        {"method": "G T"},
        {"timeout": 0},
        {"headers": {"X": "a\r\nb"}},
        {"headers": {"Content-Length": "x"}},
    ],
)
def test_the_body_of_what_cannot_be_sent_is_closed(client, tmp_path, wrong):
    (tmp_path / "file").write_bytes(b"x")
    file = (tmp_path / "file").open("rb")
    gone = []

    class Closing(list):
        def close(self):
            gone.append(self)

    for body in FileBody(file), Closing([b"x"]):
        with pytest.raises(ValueError, match=r"."):
            client().request(**{"method": "GET", "url": "http://127.0.0.1:9/", "body": body, **wrong})
    assert file.closed
    assert len(gone) == 1
    with (tmp_path / "file").open("rb") as mine:
        with pytest.raises(ValueError, match=r"."):
            client().request(**{"method": "GET", "url": "http://127.0.0.1:9/", "body": mine, **wrong})
        assert not mine.closed


def test_a_file_that_decompresses_is_sent_decompressed(site, client, tmp_path):
    path = tmp_path / "file.gz"
    with gzip.open(path, "wb") as file:
        file.write(LONG)
    with gzip.open(path, "rb") as file:
        answer = client().post(site.url + "/echo", file)
        assert answer.read_all(1 << 24) == LONG
    assert answer.headers["x-framing"] == "chunked"


def test_a_body_of_another_kind(client):
    with pytest.raises(TypeError, match="body=int"):
        client().post("http://127.0.0.1:9/", 5)


@pytest.mark.parametrize("declared", ["5", "7"])
def test_a_body_that_is_not_as_long_as_it_says_is_cut_visibly(raw, client, declared):
    ends = []

    def script(server, sock, number):
        server.head(sock)
        try:
            while sock.recv(100):
                pass
        except ConnectionResetError:
            ends.append("reset")

    server = raw(script)
    mine = client()
    with pytest.raises(ValueError, match="Content-Length"):
        mine.post(server.url, pieces(), headers={"Content-Length": declared})
    wait_until(lambda: ends == ["reset"])
    assert mine.statistics() == NOTHING


def test_what_the_body_raises_comes_out_and_the_body_is_closed(raw, client):
    server = raw(answering(b"", then=drain))
    mine = client()
    closed = []

    def broken():
        try:
            yield b"x"
            raise RuntimeError("as it was told to")
        finally:
            closed.append(1)

    with pytest.raises(RuntimeError, match="told"):
        mine.post(server.url, broken())
    assert closed == [1]
    assert mine.statistics() == NOTHING


def test_options_are_checked():
    with pytest.raises(TypeError, match="unknown option 'max'"):
        HTTPClient(max=1)
    with pytest.raises(ValueError, match="max_connections=0: a whole number of at least 1 expected"):
        HTTPClient(max_connections=0)
    with pytest.raises(ValueError, match="timeouts=5"):
        HTTPClient(timeouts=5)


# -- the corpus


RESPONSES = cases("responses")
#: One of each kind, byte by byte.
SAMPLE = [
    case
    for case in RESPONSES
    if "trailing" not in str(case[2]) and len(case[1]) < 300 and (case[0][0] in "3cehisu" or case[0] == "length")
]


def play(raw, client, data, expected, send):
    """Play an answer to a client; check what it makes of it."""

    def script(server, sock, number):
        if not server.head(sock):
            return
        if number == 1:
            send(sock, data)
            if expected.get("eof"):
                sock.shutdown(socket.SHUT_WR)
        else:
            sock.sendall(OK)
        drain(sock)

    server = raw(script)
    mine = client(timeouts=Timeouts(body=0.2), user_agent=None)
    method = expected.get("method", "GET")
    options: dict[str, Any] = {"target": b"a:80"} if method == "CONNECT" else {}
    if expected.get("upgrade"):
        options["headers"] = {"Upgrade": "websocket"}
    events = expected.get("events", [])
    interim = []
    wanted = [event for event in events if "status" in event]
    final = next((event for event in wanted if event["status"] >= 200 or event.get("is_switch")), None)
    refused = expected.get("refused")
    options["on_interim"] = lambda head: interim.append(head.status)

    if final is None:
        with pytest.raises(BadResponse) as caught:
            mine.request(method, server.url, **options)
        assert (caught.value.reason.value, caught.value.status) == (refused, 502)
        assert mine.statistics() == NOTHING
    else:
        answer = mine.request(method, server.url, **options)
        assert answer.status == final["status"]
        if "headers" in final:
            assert plain_fields(answer.headers) == final["headers"]
        check_body(mine, answer, expected, events)
    assert interim == [event["status"] for event in wanted if event is not final]
    if expected.get("reusable"):
        assert mine.statistics() == IDLE_ONE
    elif expected.get("reusable") is False or refused:
        assert mine.get(server.url).read_all() == b"ok"
        assert server.accepted == 2, "a connection was used again that did not end exactly"


def check_body(mine, answer, expected, events):
    refused = expected.get("refused")
    if expected.get("ends") == "switched":
        conn = answer.detach()
        assert mine.statistics() == NOTHING
        rest = expected["rest"].encode("latin-1")
        assert conn.read_exactly(len(rest), timeout=PATIENCE) == rest
        conn.close()
        return
    body = "".join(event.get("body", "") for event in events).encode("latin-1")
    ended = any("end" in event for event in events)
    got = b""
    kind = contextlib.nullcontext() if ended else pytest.raises(BadResponse if refused else BodyTimeout)
    with kind as caught:
        for piece in answer:
            got += piece
    if refused and not ended:
        assert caught.value.reason.value == refused
    assert got == body
    if ended:
        trailers = next(event["end"] for event in events if "end" in event)
        assert plain_fields(answer.trailers) == trailers


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*case[1:], id=case[0]) for case in RESPONSES])
def test_every_answer_of_the_corpus(raw, client, data, expected):
    play(raw, client, data, expected, socket.socket.sendall)


def send_byte_by_byte(sock, data):
    with contextlib.suppress(ConnectionError):  # it may be refused before its end
        for place in range(len(data)):
            sock.sendall(data[place : place + 1])
            gevent.sleep(0)


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*case[1:], id=case[0]) for case in SAMPLE])
def test_answers_byte_by_byte(raw, client, data, expected):
    play(raw, client, data, expected, send_byte_by_byte)


def test_the_sample_is_one():
    assert 25 < len(SAMPLE) < len(RESPONSES)


# -- answers 1xx, and other protocols


def test_interim_answers_are_told(raw, client):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    server = raw(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK))
    told = []
    answer = client().get(server.url, on_interim=told.append)
    assert [(head.status, head.headers.get("link")) for head in told] == [(100, None), (103, "</x>")]
    assert answer.read_all() == b"ok"


def test_what_the_hook_raises_comes_out(raw, client):
    server = raw(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK))
    mine = client()
    with pytest.raises(ZeroDivisionError):
        mine.get(server.url, on_interim=lambda head: 1 // 0)
    assert mine.statistics() == NOTHING


def test_a_flood_of_interim_answers_is_refused(raw, client):
    def flood(server, sock, number):
        server.head(sock)
        while True:
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3)
            gevent.sleep(0)

    with pytest.raises(BadResponse) as caught:
        client().get(raw(flood).url)
    assert caught.value.reason is Reason.TOO_MANY_INTERIM


def test_interim_answers_do_not_prolong_the_wait(raw, client):
    def trickle(server, sock, number):
        server.head(sock)
        for _ in range(9):
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            gevent.sleep(0.05)
        drain(sock)

    began = time.monotonic()
    with pytest.raises(HeadTimeout):
        client(timeouts=Timeouts(head=0.2)).get(raw(trickle).url)
    assert time.monotonic() - began < 0.6  # each of them anew: at least 0.65


def test_100_is_waited_for_and_the_body_sent_then(raw, client):
    seen = []

    def script(server, sock, number):
        server.head(sock)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(PATIENCE)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        seen.append(read_exactly(sock, 4))
        sock.sendall(OK)
        drain(sock)

    server = raw(script)
    mine = client(timeouts=Timeouts(expect=PATIENCE))
    assert mine.put(server.url, b"body", expect_continue=True).read_all() == b"ok"
    assert seen == [b"body"]
    assert b"Expect: 100-continue\r\n" in server.heads[0]
    assert mine.statistics() == IDLE_ONE


def test_100_is_not_waited_for_long(raw, client):
    def script(server, sock, number):
        server.head(sock)
        assert read_exactly(sock, 4) == b"body"
        sock.sendall(OK)
        drain(sock)

    mine = client(timeouts=Timeouts(expect=0.05))
    assert mine.put(raw(script).url, b"body", expect_continue=True).read_all() == b"ok"
    assert mine.statistics() == IDLE_ONE


def test_a_refusal_instead_of_100_spares_the_body(raw, client):
    rest = []

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        rest.append(drain(sock))

    mine = client()
    assert mine.put(raw(script).url, b"body", expect_continue=True).status == 417
    assert mine.statistics() == NOTHING, "the server still waits for a body"
    wait_until(lambda: rest == [0])


def test_another_protocol(raw, client):
    def script(server, sock, number):
        assert b"Connection: Upgrade" in server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst ")
        while data := sock.recv(100):
            sock.sendall(data)

    mine = client()
    answer = mine.get(raw(script).url, headers={"Upgrade": "echo"})
    assert (answer.status, answer.head.is_switch, answer.read()) == (101, True, b"")
    assert mine.statistics().used == 1
    conn = answer.detach()
    conn.send(b"second")
    assert conn.read_exactly(12, timeout=PATIENCE) == b"first second"
    assert mine.statistics() == NOTHING
    with pytest.raises(RuntimeError, match="once"):
        answer.detach()
    conn.close()


def test_an_answer_that_switches_nothing_cannot_be_detached(site, client):
    with pytest.raises(RuntimeError, match="switches protocols"):
        client().get(site.url + "/", headers={"Upgrade": "x"}).detach()


# -- the answer before the end of the request


REFUSAL = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"


def endless(sent):
    while True:
        sent.append(1)
        yield LONG[:65536]


def early(how):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(REFUSAL)
        if how == "resets":
            sock.close()  # with unread input: the kernel sends RST
        elif how == "stops reading":
            server.stop.wait()
        elif how == "reads on":
            drain(sock)

    return script


@pytest.mark.parametrize("how", ["resets", "stops reading", "reads on"])
@pytest.mark.parametrize("kind", ["pieces", "bytes", "file", "sized"])
def test_an_early_answer_ends_the_request(raw, client, tmp_path, how, kind):
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 1 << 30)
    server = raw(early(how))
    server.stop = Event()
    mine = client(timeouts=Timeouts(send=PATIENCE))
    for _ in range(20 if how == "resets" else 1):
        with path.open("rb") as file:
            body: Any = {"pieces": endless([]), "bytes": bytes(1 << 26), "file": file, "sized": endless([])}[kind]
            answer = mine.put(server.url, body, headers={"Content-Length": str(1 << 40)} if kind == "sized" else {})
        assert (answer.status, answer.read_all()) == (413, b"big")
        assert mine.statistics() == NOTHING
    server.stop.set()


def test_second_descriptors_are_a_share_of_all(raw, client, monkeypatch):
    """An upload that goes on for long has one for what a reset would lose; beyond their share the others do without."""
    monkeypatch.setattr(connection_pool, "share_of_descriptors", lambda: 2)
    go_on, started, mine = Event(), [], client()

    def script(server, sock, number):
        server.head(sock)
        started.append(number)
        while b"\r\n0\r\n\r\n" not in sock.recv(1000):
            pass
        sock.sendall(OK)

    def body():
        yield b"first"
        go_on.wait()
        yield b"last"

    server = raw(script)
    uploads = [gevent.spawn(lambda: mine.put(server.url, body()).read_all()) for _ in range(4)]
    wait_until(lambda: len(started) == 4)
    assert len(connection_pool._with_spare) == 2
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, b"%d" % len(connection_pool._with_spare))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"0", "in the child they are copies, which would keep the connections open"
    os.close(reader)
    os.close(writer)
    go_on.set()
    assert [upload.get(timeout=PATIENCE) for upload in uploads] == [b"ok"] * 4
    assert not connection_pool._with_spare


def test_an_early_answer_is_noticed_between_pieces(raw, client):
    server = raw(early("reads on"))
    asked = Event()

    def body():
        yield b"x"
        asked.wait()
        yield b"y"
        pytest.fail("more was asked for although the answer is there")

    mine = client()
    gevent.spawn_later(0.05, asked.set)
    answer = mine.put(server.url, body())
    assert (answer.status, answer.read_all()) == (413, b"big")


def test_no_piece_goes_out_before_a_refusal_that_is_there_was_looked_at(client):
    """Pieces that are made without letting others run: the hub has had no time to see the answer."""
    made, refused, ended = [], allocate_lock(), allocate_lock()
    refused.acquire()
    ended.acquire()

    def body():
        made.append(1)
        yield b"first"
        assert refused.acquire(timeout=PATIENCE)
        while True:
            made.append(1)
            yield b"more"

    def refuse(listener):
        with native_socket(fileno=listener._accept()[0]) as sock:
            data = b""
            while b"first" not in data:
                data += sock.recv(1000)
            sock.sendall(REFUSAL)
            refused.release()
            while sock.recv(65536):
                pass
        ended.release()

    with native_socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start_new_thread(refuse, (listener,))
        answer = client().put("http://{}:{}/".format(*listener.getsockname()), body())
        assert (answer.status, answer.read_all()) == (413, b"big")
        answer.close()
        wait_until(lambda: ended.acquire(blocking=False))
    assert len(made) == 2


def test_a_server_that_closes_while_the_request_goes_out(raw, client):
    def script(server, sock, number):
        server.head(sock)
        sock.recv(1000)

    mine = client()
    with pytest.raises((ConnectionLost, BadResponse)) as caught:
        mine.post(raw(script).url, endless([]))
    assert not isinstance(caught.value, BadResponse) or caught.value.reason is Reason.NO_RESPONSE
    assert mine.statistics() == NOTHING


def test_an_answer_made_of_the_request_while_it_goes_out(site, client):
    """More than all buffers on the way hold: with either side waiting for the other it would stand still."""
    mine = client(timeouts=Timeouts(send=PATIENCE, body=PATIENCE))
    closed = []

    def body():
        try:
            for _ in range(20):
                yield LONG
        finally:
            closed.append(1)

    with mine.post(site.url + "/mirror", body()) as answer:
        assert mine.statistics().used == 1
        assert sum(map(len, answer)) == 20 * len(LONG)
    assert closed == [1]
    assert mine.statistics() == IDLE_ONE


@pytest.mark.parametrize("how", ["close", "forget", "read"])
def test_giving_up_an_answer_ends_the_sending(site, client, how):
    mine = client()
    closed = Event()

    def body():
        try:
            yield b"x" * 100_000
            gevent.sleep(PATIENCE)
        finally:
            closed.set()

    answer = mine.post(site.url + "/mirror", body(), timeouts=Timeouts(body=0.05))
    if how == "close":
        answer.close()
    elif how == "read":
        with pytest.raises(BodyTimeout):
            answer.read_all()
    else:
        with pytest.warns(ResourceWarning):
            del answer
    assert closed.wait(1)
    assert mine.statistics() == NOTHING


def test_a_body_that_fails_behind_the_head_of_the_answer(site, client):
    mine = client()
    asked = Event()

    def body():
        yield b"x"
        asked.wait()
        raise ZeroDivisionError

    answer = mine.post(site.url + "/mirror", body())
    assert answer.read() == b"x"
    asked.set()
    with pytest.raises(ZeroDivisionError):
        answer.read()
    assert mine.statistics() == NOTHING


def test_a_whole_answer_ends_the_sending(raw, client):
    """Nobody reads on whatever the status is."""
    mine = client()
    sent: list[int] = []
    answer = mine.put(raw(early_with(OK)).url, endless(sent))
    assert answer.read_all() == b"ok"
    assert answer.is_ended
    wait_until(lambda: mine.statistics() == NOTHING)
    gevent.sleep(0.01)
    count = len(sent)
    gevent.sleep(0.01)
    assert len(sent) == count


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 302 Found\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 413 Content Too Large\r\n\r\n"]
)
def test_a_refusal_ends_the_sending_before_its_own_end(raw, client, head):
    mine = client()
    closed = Event()

    def body():
        try:
            yield b"x"
            gevent.sleep(PATIENCE)
        finally:
            closed.set()

    answer = mine.put(raw(early_with(head)).url, body())
    assert closed.is_set()
    assert not answer.is_ended
    answer.close()


def test_a_whole_answer_does_not_wait_for_the_body(raw, client):
    mine = client()
    closed = Event()

    def body():
        try:
            yield b"x"
            gevent.sleep(PATIENCE)
        finally:
            closed.set()

    assert mine.put(raw(early_with(OK)).url, body()).read_all() == b"ok"
    assert closed.wait(1)
    assert mine.statistics() == NOTHING


def early_with(answer):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(answer)
        drain(sock)

    return script


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
        gevent.sleep(0.01)  # lets what was sent arrive before a reset overtakes it
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
    ("script", "body"),
    [
        (stalls(), None),
        (stalls(OK[:-1]), None),
        (lambda server, sock, number: server.stop.wait(), bytes(1 << 26)),
        (lambda server, sock, number: server.stop.wait(), [bytes(1 << 26)]),
    ],
)
def test_what_is_thrown_into_a_wait_leaks_nothing(raw, client, script, body, error):
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
    wait_until(lambda: server.accepted)
    gevent.sleep(0.02)
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
    first.close()
    waiting[1].kill()  # it was granted the slot, and has not run since
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
    mine = client(idle_timeout=0.1)
    first = mine.get(site.url + "/stream?3")
    mine.get(site.url + "/")
    gevent.sleep(0.05)
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
        gevent.sleep(chance.choice([0, 0, 0.001]))
    failed = [each.exception for each in asking if each.exception is not None]
    assert not [error for error in failed if not isinstance(error, gevent.Timeout | GreensockError)]
    assert counts["answered"] > 20
    assert counts["killed"] > 20
    assert mine.statistics().used == mine.statistics().waiting == 0
    assert mine.statistics().idle <= 8
    assert mine.get(site.url + "/").status == 200


# -- servers of others


@contextlib.contextmanager
def running(command, pattern, cwd):
    """Run a server; give the match of what it says when it is ready."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said = b""
            while not (match := re.search(pattern, said)):
                piece = os.read(process.stdout.fileno(), 65536) if readable(process.stdout) else b""
                assert piece, said
                said += piece
            yield match
        finally:
            process.terminate()
            drained = gevent.spawn(process.stdout.read)
            process.wait(PATIENCE)
            drained.join()


def readable(stream):
    gevent.socket.wait_read(stream.fileno(), timeout=PATIENCE)
    return True


def exchange_with(mine, url, *, keeps):
    """What any server of files has to do right."""
    for _ in range(3):
        assert mine.get(url + "small").read_all() == b"small"
        with mine.get(url + "large") as answer:
            assert sum(map(len, answer)) == 3_000_000
        head = mine.head(url + "large")
        assert (head.status, head.head.content_length, head.read_all()) == (200, 3_000_000, b"")
        missing = mine.get(url + "missing")
        assert missing.status == 404
        missing.read_all()
        dated = mine.get(url + "small")
        dated.read_all()
        again = mine.get(url + "small", headers={"If-Modified-Since": dated.headers["last-modified"]})
        assert (again.status, again.read_all()) == (304, b"")
    assert mine.statistics().used == 0
    assert mine.statistics().idle == keeps


@pytest.fixture
def files(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    return tmp_path


def test_http_server_of_the_standard_library(files, client):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with running(command, rb"port (\d+)", files) as match:
        exchange_with(client(), f"http://127.0.0.1:{match.group(1).decode()}/", keeps=0)


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr notice; {user}
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi; client_max_body_size 4m; keepalive_timeout 60;
    server {{
        listen unix:{path}; root {root};
        location /put {{ return 200 "put"; }}
        location /refuse {{ client_max_body_size 1k; proxy_pass http://unix:{path}:/; }}
    }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="nginx is not there")
def test_nginx(files, client):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    path = str(files / "socket")
    user = "user root;" if os.geteuid() == 0 else ""
    (files / "nginx.conf").write_text(NGINX.format(path=path, root=files, user=user))
    command = [nginx, "-e", "stderr", "-p", str(files), "-c", str(files / "nginx.conf")]
    with running(command, rb"start|using the", files):
        wait_until(lambda: os.path.exists(path))
        mine = client()
        url = f"http+unix://{path.replace('/', '%2F')}/"
        exchange_with(mine, url, keeps=1)
        assert mine.get("http://a/small", address=path).read_all() == b"small"
        assert mine.statistics() == IDLE_ONE
        assert mine.post(url + "put", LONG).read_all() == b"put"
        for body in endless([]), bytes(1 << 25):
            answer = mine.post(url + "refuse", body)
            assert answer.status == 413
            assert b"413" in answer.read_all()
        assert mine.post(url + "put", [LONG, LONG]).read_all() == b"put"
        assert mine.put(url + "small", b"x", expect_continue=True).status == 405


APPLICATION = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["REQUEST_METHOD"].encode(), b" ", str(len(body)).encode(), b" ", body[:5]]
"""


def test_gunicorn(tmp_path, client):
    (tmp_path / "application.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-k", "gthread", "--threads", "4"]
    command += ["--worker-tmp-dir", str(tmp_path), "application:app"]
    with running(command, rb"Listening at: http://127.0.0.1:(\d+)(?s:.*)Booting worker", tmp_path) as match:
        mine = client()
        url = f"http://127.0.0.1:{match.group(1).decode()}/"
        for _ in range(3):
            answer = mine.get(url)
            assert answer.head.is_chunked
            assert answer.read_all() == b"GET 0 "
            assert mine.post(url, LONG).read_all() == b"POST %d 01234" % len(LONG)
            assert mine.post(url, [b"01", b"234", LONG]).read_all() == b"POST %d 01234" % (len(LONG) + 5)
            assert mine.put(url, b"x" * 100, expect_continue=True).read_all() == b"PUT 100 xxxxx"
        assert mine.statistics() == IDLE_ONE
