"""The HTTP server over real connections."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import time
from contextlib import suppress
from itertools import count

import gevent
import pytest
from conftest import PATIENCE, greenlets, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import reset

from greensock import ConnectionLost
from greensock.http import HTTPError, HTTPServer, HTTPStatistics, Limits, RequestParser, Response
from greensock.http.server import http_server, response_writer


class Site(HTTPServer):
    head_timeout = 5.0

    def handle_request(self, request):
        if request.path == "/echo":
            return Response(request.body.read_all(100_000))
        if request.path == "/unread":
            return Response("not read")
        if request.path == "/pieces":
            return Response(iter([b"one", b"", b"two"]))
        if request.path == "/sized":
            return Response(iter([b"one", b"two"]), headers={"Content-Length": request.query})
        if request.path == "/empty":
            return Response(status=204)
        if request.path == "/fails":
            raise RuntimeError("as it was told to")
        if request.path == "/hello":
            return Response(f"hello from {request.host}", headers={"X-Query": request.query})
        raise HTTPError(404)


def ask(sock, text, *, close=True):
    """Send a request and return everything that comes until the end, without its Date."""
    sock.sendall(text.replace("\n", "\r\n").encode() if isinstance(text, str) else text)
    answer = read_all(sock)
    assert re.search(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", answer)
    return re.sub(rb"Date: [^\r]*\r\n", b"", answer).decode("latin-1").replace("\r\n", "\n")


CLOSE = "Host: a\nConnection: close\n\n"


@pytest.fixture
def site(serve, connect):
    server = serve(Site)
    return server, connect(server)


def test_a_request_and_its_answer(site):
    assert ask(site[1], f"GET /hello?x=1 HTTP/1.1\n{CLOSE}") == (
        "HTTP/1.1 200 OK\nX-Query: x=1\nContent-Type: text/plain; charset=utf-8\n"
        "Connection: close\nContent-Length: 12\n\nhello from a"
    )


def test_kept_and_pipelined(site):
    answer = ask(
        site[1],
        "GET /hello HTTP/1.1\nHost: b\n\nPOST /echo HTTP/1.1\nHost: a\nContent-Length: 3\n\nxyz"
        f"GET / HTTP/1.1\n{CLOSE}",
    )
    assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["200", "200", "404"]
    assert "hello from b" in answer
    assert "\n\nxyz" in answer
    assert site[0].statistics().accepted == 1


def test_1_0_closes_unless_asked(site, connect):
    assert "Connection: close" in ask(site[1], "GET /hello HTTP/1.0\n\n")
    answer = ask(connect(site[0]), "GET /hello HTTP/1.0\nConnection: keep-alive\n\nGET /pieces HTTP/1.0\n\n")
    assert "Connection: keep-alive" in answer
    assert answer.endswith("Connection: close\n\nonetwo")
    answer = ask(connect(site[0]), "GET /pieces HTTP/1.0\nConnection: keep-alive\n\n")
    assert answer.endswith("Connection: close\n\nonetwo"), "only the close tells where it ends"


def test_head_204_and_pieces(site):
    answer = ask(
        site[1], f"HEAD /hello HTTP/1.1\nHost: a\n\nGET /empty HTTP/1.1\nHost: a\n\nGET /pieces HTTP/1.1\n{CLOSE}"
    )
    first, second, third = answer.split("HTTP/1.1 ")[1:]
    assert "Content-Length: 12" in first
    assert first.endswith("\n\n")
    assert second == "204 No Content\n\n"
    assert third.endswith("Transfer-Encoding: chunked\n\n3\none\n3\ntwo\n0\n\n")


@pytest.mark.parametrize("declared", [5, 7])
def test_a_body_that_is_not_as_long_as_it_says(site, caplog, declared):
    head, _, body = ask(site[1], f"GET /sized?{declared} HTTP/1.1\n{CLOSE}").partition("\n\n")
    assert f"Content-Length: {declared}" in head
    assert "onetwo".startswith(body)
    assert len(body) < declared, "it shows that it was cut off"
    wait_until(lambda: "Content-Length" in caplog.text)


def test_a_sized_body_of_pieces(site):
    assert ask(site[1], f"GET /sized?6 HTTP/1.1\n{CLOSE}").endswith("Content-Length: 6\n\nonetwo")


@pytest.mark.parametrize("version", ["1.1", "1.2", "1.9"])
@pytest.mark.parametrize("method", ["BREW", "VERSION-CONTROL", "get-all", "DESCRIBE"])
def test_any_token_is_a_method_and_what_it_means_is_for_the_program(serve, connect, method, version):
    class Any(HTTPServer):
        def handle_request(self, request):
            return Response(f"{request.method} {request.version} {request.body.read_all()!r}")

    sock = connect(serve(Any))
    body = f"{method} / HTTP/{version}\nHost: a\nTransfer-Encoding: chunked\n\n1\nx\n0\n\n"
    answer = ask(sock, body + f"{method} / HTTP/{version}\n{CLOSE}")
    assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["200", "200"]
    assert f"{method} 1.1 b'x'HTTP" in answer
    assert answer.endswith(f"{method} 1.1 b''")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET / HTTP/1.1\n\n", 400),
        ("GET / HTTP/2.0\nHost: a\n\n", 505),
        ("PRI * HTTP/1.1\nHost: a\n\n", 501),
        ("head / HTTP/1.1\nHost: a\n\n", 501),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 1\nTransfer-Encoding: chunked\n\n", 400),
        ("GET /" + "x" * 9000 + " HTTP/1.1\nHost: a\n\n", 414),
        ("GET / HTTP/1.1\nHost: a\n" + "A: b\n" * 101 + "\n", 431),
        ("CONNECT a:80 HTTP/1.1\nHost: a:80\n\n", 405),
        ("TRACE / HTTP/1.1\nHost: a\n\n", 405),
        ("POST /echo HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\nZZ\n", 400),
        ("POST /echo HTTP/1.1\nHost: a\nContent-Length: 100001\n\n" + "x" * 100_001, 413),
    ],
)
def test_refusals_have_their_status_and_close(site, request_, status):
    answer = ask(site[1], request_)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "Connection: close" in answer
    assert len(re.findall(r"HTTP/1\.1 \d", answer)) == 1


def test_an_unread_body_is_dropped_if_it_is_short(site, connect):
    answer = ask(
        site[1], f"POST /unread HTTP/1.1\nHost: a\nContent-Length: 60000\n\n{'x' * 60000}GET /hello HTTP/1.1\n{CLOSE}"
    )
    assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["200", "200"]
    answer = ask(connect(site[0]), f"POST /unread HTTP/1.1\nHost: a\nContent-Length: 900000\n\n{'x' * 900000}")
    assert "Connection: close" in answer


def test_100_continue_goes_out_when_the_body_is_read(site, connect):
    site[1].sendall(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    )
    assert site[1].recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert ask(site[1], "hi").endswith("\n\nhi")
    answer = ask(connect(site[0]), "POST /unread HTTP/1.1\nHost: a\nExpect: 100-continue\nContent-Length: 2\n\n")
    assert answer.startswith("HTTP/1.1 200")
    assert "Connection: close" in answer


def test_what_fails_is_500_and_logged_once(site, caplog):
    assert ask(site[1], f"GET /fails HTTP/1.1\n{CLOSE}").startswith("HTTP/1.1 500 ")
    assert caplog.text.count("RuntimeError: as it was told to") == 1
    assert site[0].statistics().errors == 1


def test_a_slow_head_is_408_and_others_go_on(serve, connect):
    server = serve(Site, head_timeout=0.05)
    slow = connect(server)
    slow.sendall(b"GET /hello HT")
    assert ask(connect(server), f"GET /hello HTTP/1.1\n{CLOSE}").startswith("HTTP/1.1 200")
    assert read_all(slow).startswith(b"HTTP/1.1 408 ")
    assert server.refused == {"head-timeout": 1}


# -- who may go on


def statuses(answer):
    return [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3})", answer)]


GET = "GET /hello HTTP/1.1\nHost: a\n\n"
LAST = f"GET /hello HTTP/1.1\n{CLOSE}"


class Any(HTTPServer):
    """Answers with what the test says: ``server.answer(request)``."""

    answer = staticmethod(lambda request: Response(b"x"))

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.done = []

    def handle_request(self, request):
        return self.answer(request)

    def request_done(self, request, response, sent):
        self.done.append((response.status, sent))


@pytest.fixture
def answering(serve, connect):
    """Serve what a function answers: ``answering(function, **options)`` gives the server and a client."""

    def start(answer, **options):
        server = serve(Any, **options)
        server.answer = answer
        return server, connect(server)

    return start


@pytest.mark.parametrize("close", ["close", "Close", "foo, close", "close, keep-alive"])
def test_the_program_may_close(answering, close):
    server, sock = answering(lambda request: Response(b"x", headers={"Connection": close}))
    assert ask(sock, GET * 3) == "HTTP/1.1 200 OK\nConnection: close\nContent-Length: 1\n\nx"
    assert server.statistics().requests == 1


def test_the_fields_of_framing_are_the_servers(answering):
    headers = {"Connection": "upgrade", "Keep-Alive": "timeout=9", "Transfer-Encoding": "gzip", "Content-Length": "9"}
    _, sock = answering(lambda request: Response(b"x", headers=headers))
    assert ask(sock, LAST) == "HTTP/1.1 200 OK\nConnection: close\nContent-Length: 1\n\nx"


def test_the_date_may_be_the_programs(answering):
    _, sock = answering(lambda request: Response(b"", headers={"date": "Thu, 01 Jan 1970 00:00:00 GMT"}))
    sock.sendall(LAST.replace("\n", "\r\n").encode())
    assert read_all(sock).lower().count(b"date:") == 1


@pytest.mark.parametrize("most", [1, 2])
def test_a_connection_makes_no_more_than_max_requests(answering, most):
    server, sock = answering(lambda request: Response(b"x"), max_requests=most)
    answer = ask(sock, GET * 3)
    assert statuses(answer) == [200] * most
    assert answer.count("Connection: close") == 1
    assert server.statistics().requests == most


def test_what_comes_behind_a_close_is_not_answered(site):
    assert statuses(ask(site[1], LAST + GET)) == [200]


def test_an_error_of_the_program_keeps_the_connection(site):
    assert statuses(ask(site[1], f"GET /none HTTP/1.1\nHost: a\n\n{LAST}")) == [404, 200]


def test_a_client_that_closes_its_half_gets_its_answers(site):
    site[1].sendall((GET * 2).replace("\n", "\r\n").encode())
    site[1].shutdown(socket.SHUT_WR)
    assert statuses(read_all(site[1]).decode()) == [200, 200]


def test_empty_lines_between_requests(site):
    first = "POST /echo HTTP/1.1\nHost: a\nContent-Length: 1\n\nx"
    site[1].sendall(first.replace("\n", "\r\n").encode())
    assert b"\r\n\r\nx" in site[1].recv(1000)
    assert statuses(ask(site[1], f"\n{first}\n{LAST}")) == [200, 200]


def test_no_second_empty_line_however_it_comes(site):
    site[1].sendall(b"\r\n")
    wait_until(lambda: site[0].statistics().bytes_received == 2)
    assert not site[0].head_watch, "an empty line is no head that could be late"
    assert statuses(ask(site[1], "\n" + LAST)) == [400]


def test_the_date_is_of_this_second(answering, monkeypatch):
    now = [784111777.9]
    monkeypatch.setattr(response_writer, "time", lambda: now[0])
    _, sock = answering(lambda request: Response(b"", headers={} if request.path == "/" else {"Keep-Alive": "1"}))
    for second, path in (37, "/"), (38, "/"), (39, "/other"), (40, "/"), (41, "/other"):
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert f"\r\nDate: Sun, 06 Nov 1994 08:49:{second} GMT\r\n".encode() in sock.recv(1000)
        now[0] += 1


# -- statuses and methods without a body


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    ("response", "head"),
    [
        (lambda: Response(b"text"), "Content-Length: 4"),
        (lambda: Response(b"", headers={"Content-Length": "9"}), "Content-Length: 9"),
        (lambda: Response(b""), None),
        (lambda: Response([b"text"], headers={"Content-Length": "4"}), "Content-Length: 4"),
        (lambda: Response([b"text"]), None),
        (lambda: Response.file(__file__, 0, 7), "Content-Length: 7"),
        (lambda: Response.file(__file__, 0, 0), "Content-Length: 0"),
    ],
)
def test_head(answering, version, response, head):
    _, sock = answering(lambda request: response())
    answer = ask(sock, f"HEAD / HTTP/{version}\nHost: a\nConnection: keep-alive\n\n{LAST.replace('GET', 'HEAD')}")
    for one in answer.split("HTTP/1.1 200 OK")[1:]:
        assert one.endswith("\n\n")
        assert one.count("\n\n") == 1
        assert head is None or head in one
        assert "Content-Length" in one or head is None
    assert statuses(answer) == [200, 200]


@pytest.mark.parametrize("body", [b"", b"text", [b"text"], "file"])
@pytest.mark.parametrize(("status", "length"), [(204, None), (304, "4"), (205, "0")])
def test_statuses_without_a_body(answering, status, length, body):
    def answer(request):
        if request.path == "/hello":
            return Response(b"x")
        return Response.file(__file__, 0, 4, status) if body == "file" else Response(body, status)

    _, sock = answering(answer)
    first, second = ask(sock, f"GET / HTTP/1.1\nHost: a\n\n{LAST}").split("HTTP/1.1 ")[1:]
    assert first.startswith(f"{status} ")
    assert first.endswith("\n\n")
    assert first.count("\n\n") == 1
    if status != 304:
        assert ("Content-Length: " in first) == (length is not None)
        assert "Transfer-Encoding" not in first
    if length is not None and (status == 205 or body not in (b"", [b"text"])):
        assert f"Content-Length: {length}\n" in first
    assert second.startswith("200 ")


# -- bodies of answers


class Pieces:
    """An iterable that counts how often it is closed, and fails where it is told to."""

    def __init__(self, *pieces, close_fails=False):
        self.pieces = pieces
        self.closed = 0
        self.close_fails = close_fails

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece() if callable(piece) else piece

    def close(self):
        self.closed += 1
        if self.close_fails:
            raise RuntimeError("close failed")


LARGE = bytes(range(256)) * 4096  # 1 MiB


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 262_144, 262_145, 524_288, 1 << 20])
def test_bodies_of_every_size_arrive_whole(answering, tmp_path, size):
    (tmp_path / "file").write_bytes(LARGE[:size])

    def answer(request):
        if request.path == "/bytes":
            return Response(LARGE[:size])
        if request.path == "/file":
            return Response.file(tmp_path / "file")
        sized = {"Content-Length": str(size)} if request.path == "/sized" else ()
        return Response(Pieces(LARGE[: size // 3], bytearray(LARGE[size // 3 : size])), headers=sized)

    _, sock = answering(answer)
    for path in "/bytes", "/file", "/sized":
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert b"Content-Length: %d\r\n" % size in head
        assert read_exactly(sock, size) == LARGE[:size]
    sock.sendall(b"GET /until-close HTTP/1.0\r\n\r\n")
    head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert b"Length" not in head
    assert b"Encoding" not in head
    assert body == LARGE[:size]


def test_a_large_piece_is_one_chunk(answering):
    _, sock = answering(lambda request: Response(iter([b"a", LARGE, b"b"])))
    answer = ask(sock, LAST.encode().replace(b"\n", b"\r\n"))
    assert len(answer) > len(LARGE)
    assert answer.partition("\n\n")[2].startswith("1\na\n100000\n")
    assert answer.endswith("\n1\nb\n0\n\n")


@pytest.mark.parametrize("pieces", [[], [b""], [b"", bytearray(), b""]])
def test_no_pieces(answering, pieces):
    _, sock = answering(lambda request: Response(iter(pieces)))
    assert ask(sock, LAST).endswith("Transfer-Encoding: chunked\n\n0\n\n")


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (RuntimeError("as it was told to"), 500),
        (gevent.Timeout(None), 500),
        ("text", 500),
        (HTTPError(404), 404),
        (lambda: 1 / 0, 500),
    ],
)
def test_what_fails_before_its_first_piece_is_answered(answering, caplog, first, status):
    body = Pieces(b"", first, b"x")
    server, sock = answering(lambda request: Response(body))
    answer = ask(sock, GET)
    assert statuses(answer) == [status]
    assert "Connection: close" in answer
    assert body.closed == 1
    assert (server.statistics().errors, len(caplog.records)) == ((1, 1) if status == 500 else (0, 0))
    assert [told for told, _ in server.done] == [status]


@pytest.mark.parametrize("length", ["x", "-1", "1, 1", ""])
def test_a_length_that_is_none_is_500(answering, length):
    body = Pieces(b"x")
    _, sock = answering(lambda request: Response(body, headers={"Content-Length": length}))
    assert statuses(ask(sock, GET)) == [500]
    assert body.closed == 1


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("second", [RuntimeError("as it was told to"), "text", lambda: 1 / 0, HTTPError(404)])
def test_what_fails_within_its_body_is_seen_to_be_cut(answering, caplog, second, version):
    body = Pieces(b"one", second)
    server, sock = answering(lambda request: Response(body))
    if version == "1.1":
        assert ask(sock, "GET / HTTP/1.1\nHost: a\n\n").endswith("\n\n3\none\n"), "no last chunk"
    else:  # its end would look whole
        with pytest.raises(ConnectionResetError):
            ask(sock, "GET / HTTP/1.0\nHost: a\n\n")
    wait_until(lambda: server.statistics().errors)
    assert body.closed == 1
    assert server.done[0][0] == 200
    assert len(caplog.records) == 1


def test_a_body_whose_close_fails_was_sent_all_the_same(answering, caplog):
    body = Pieces(b"x", close_fails=True)
    server, sock = answering(lambda request: Response(body) if request.path == "/" else Response(b"x"))
    assert statuses(ask(sock, f"GET / HTTP/1.1\nHost: a\n\n{LAST}")) == [200, 200]
    assert body.closed == 1
    assert server.statistics().errors == 1
    assert "could not be closed" in caplog.text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304])
def test_bodies_are_closed_once(answering, method, status):
    body = Pieces(b"x")
    _, sock = answering(lambda request: Response(body, status))
    assert statuses(ask(sock, f"{method} / HTTP/1.1\n{CLOSE}")) == [status]
    assert body.closed == 1


def test_a_body_is_closed_if_its_client_leaves(answering):
    body = Pieces(*[LARGE] * 100)
    server, sock = answering(lambda request: Response(body))
    sock.sendall(GET.replace("\n", "\r\n").encode())
    sock.recv(1)
    reset(sock)
    wait_until(lambda: body.closed)
    assert server.statistics().errors == 0


def test_a_body_is_closed_if_its_client_does_not_read(answering):
    body = Pieces(*[LARGE] * 100)
    server, sock = answering(lambda request: Response(body), send_timeout=0.05)
    sock.sendall(GET.replace("\n", "\r\n").encode())
    wait_until(lambda: body.closed)
    with pytest.raises(ConnectionResetError):
        read_all(sock)
    assert server.statistics().errors == 0


@pytest.mark.parametrize("path", ["/bytes", "/pieces", "/chunks", "/file"])
def test_what_is_long_is_sent_in_slices(answering, tmp_path, monkeypatch, path):
    """``send_timeout`` is for each, or a long download would have to be over within it."""
    (tmp_path / "file").write_bytes(LARGE)
    sizes = []
    kind = HTTPServer.connection_class
    send, send_file = kind.send, kind.send_file

    def recording_send(self, data, *more):
        sizes.append(sum(map(len, data)) if isinstance(data, list) else len(data))
        return send(self, data, *more)

    def recording_send_file(self, file, offset, count):
        sizes.append(count)
        return send_file(self, file, offset, count)

    monkeypatch.setattr(kind, "send", recording_send)
    monkeypatch.setattr(kind, "send_file", recording_send_file)

    def answer(request):
        if path == "/file":
            return Response.file(tmp_path / "file")
        return Response(LARGE if path == "/bytes" else [LARGE], headers={"Content-Length": str(len(LARGE))})

    _, sock = answering(answer)
    sock.sendall(f"GET {path} HTTP/1.1\r\n{CLOSE}".replace("\n", "\r\n").replace("\r\r", "\r").encode())
    assert len(read_all(sock)) > len(LARGE)
    assert 4 <= len(sizes) <= 6
    assert max(sizes) <= response_writer.SLICE + 1000


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("size", [65536, 2_000_000])
def test_what_was_sent_of_an_answer_that_breaks_off_arrives(answering, declared, size):
    """Though its reader is slow: a reset would destroy what both systems hold, and then some."""
    headers = {"Content-Length": str(10 * size)} if declared else {}
    server, _ = answering(lambda request: Response(Pieces(b"x" * size, RuntimeError("enough")), headers=headers))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(PATIENCE)
        sock.connect(server.address)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server.statistics().errors)
        assert read_all(sock).count(b"x") >= size


def test_earlier_answers_of_a_pipeline_arrive_whole(answering):
    bodies = [b"y" * 400_000, Pieces(b"one", RuntimeError("enough"))]
    server, _ = answering(lambda request: Response(bodies.pop(0)))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(PATIENCE)
        sock.connect(server.address)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        answer = read_all(sock)
    assert answer.count(b"y") == 400_000
    assert answer.endswith(b"3\r\none\r\n")


def test_a_file_that_shrinks_is_cut_off(answering, tmp_path, caplog):
    path = tmp_path / "file"

    def answer(request):
        path.write_bytes(LARGE)
        response = Response.file(path)
        os.truncate(path, int(request.query))
        return response

    server, sock = answering(answer)
    head, _, body = ask(sock, "GET /?300000 HTTP/1.1\nHost: a\n\n").partition("\n\n")
    assert f"Content-Length: {len(LARGE)}" in head
    assert len(body) == 300_000
    wait_until(lambda: server.statistics().errors)
    assert "has shrunk" in caplog.text


def test_a_short_file_that_has_shrunk_is_500(answering, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    def answer(request):
        response = Response.file(path)
        os.truncate(path, 5)
        return response

    assert statuses(ask(answering(answer)[1], GET)) == [500]


def test_a_file_that_grows_is_sent_as_it_was(answering, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    def answer(request):
        response = Response.file(path, 5)
        path.write_bytes(b"0123456789abc")
        return response

    assert ask(answering(answer)[1], LAST).endswith("Content-Length: 5\n\n56789")


@pytest.mark.parametrize("way", ["pieces", "bytes", "file"])
def test_long_answers_leave_others_their_turn(serve, connect, monkeypatch, tmp_path, way):
    """To a client that is never too slow, so that nothing of the answer waits by itself; for a second of our CPU."""
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    others, turns = [], []

    def look():
        if others or time.thread_time() > end:
            turns.append(len(others))
            raise ConnectionLost("that is enough")

    class Connection(HTTPServer.connection_class):
        def send(self, data, close=False, timeout=None):
            look()

        def send_file(self, file, offset, count):
            look()
            return count

    class Long(HTTPServer):
        connection_class = Connection

        def handle_request(self, request):
            if way == "bytes":
                return Response(LARGE)
            return Response.file(path) if way == "file" else Response(b"x" for _ in count())

    server = serve(Long)
    monkeypatch.setattr(response_writer, "SLICE", 1)
    end = time.thread_time() + 1.0
    sock = connect(server)
    sock.sendall(GET.replace("\n", "\r\n").encode())
    wait_until(lambda: server.statistics().requests)
    others.append("had their turn")
    wait_until(lambda: turns)
    assert turns == [1]


def test_a_flood_of_pipelined_requests_leaves_others_their_turn(answering, connect):
    """64 KiB of requests of 1 ms of CPU each come in one read: the other client is answered among them."""
    served = []

    def answer(request):
        served.append(request.path)
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        return Response(b"")

    server, flood = answering(answer)
    other = connect(server)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    flood.sendall(request * (65536 // len(request)))
    wait_until(lambda: served)
    other.sendall(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: "/other" in served)
    assert served.index("/other") < 1000
    reset(flood)


# -- bodies of requests


def post(path, length, body="", fields=""):
    return f"POST {path} HTTP/1.1\nHost: a\n{fields}Content-Length: {length}\n\n{body}"


@pytest.mark.parametrize(
    ("head", "pieces", "status", "reason"),
    [
        (post("/echo", 3), "ab", 400, "incomplete"),
        ("POST /echo HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n", "3\nabc", 400, "incomplete"),
        ("POST /echo HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n", "1", 400, "incomplete"),
        ("GET /hello HTTP/1.1\nHo", "", 400, "incomplete"),
    ],
)
def test_input_that_ends_within_a_request(site, caplog, head, pieces, status, reason):
    caplog.set_level(logging.INFO, "greensock.core.server")
    site[1].sendall((head + pieces).replace("\n", "\r\n").encode())
    wait_until(lambda: site[0].statistics().bytes_received)
    site[1].shutdown(socket.SHUT_WR)
    assert statuses(read_all(site[1]).decode()) == [status]
    assert site[0].refused == {reason: 1}
    assert caplog.text.count("refused a request") == 1
    assert site[0].statistics().errors == 0


def test_a_body_that_does_not_come_is_408(serve, connect, caplog):
    caplog.set_level(logging.INFO, "greensock.core.server")
    server = serve(Site, body_timeout=0.05)
    answer = ask(connect(server), post("/echo", 3, "ab"))
    assert statuses(answer) == [408]
    assert "Connection: close" in answer
    assert server.refused == {"body-timeout": 1}
    assert caplog.text.count("refused a request") == 1


def test_an_unread_body_that_does_not_come_is_not_waited_for(site, monkeypatch):
    monkeypatch.setattr(http_server, "DISCARD_SECONDS", 0.05)
    assert statuses(ask(site[1], post("/unread", 3, "ab"))) == [200]


def test_an_unread_body_that_comes_in_drops_is_not_waited_for(site, monkeypatch):
    """Nor if nothing but framing comes."""
    monkeypatch.setattr(http_server, "DISCARD_SECONDS", 0.2)
    sock = site[1]
    sock.settimeout(0.05)
    sock.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;")
    began, data = time.monotonic(), b"x"
    while data:
        assert time.monotonic() - began < 2
        sock.sendall(b"x")
        with suppress(TimeoutError):
            data = sock.recv(1000)


def test_an_unread_body_that_is_broken_is_refused_after_its_answer(site):
    text = "POST /unread HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\nZZ\n"
    assert statuses(ask(site[1], text)) == [200]
    assert site[0].refused == {"chunk-size": 1}


def test_a_broken_body_that_the_program_forgives_closes(answering):
    def answer(request):
        with suppress(ValueError):
            request.body.read_all()
        return Response(b"never mind")

    answer_ = ask(answering(answer)[1], "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\nZZ\n" + GET)
    assert statuses(answer_) == [200]
    assert "Connection: close" in answer_


@pytest.mark.parametrize("size", [65536, 65537])
def test_how_much_is_dropped(site, size):
    answer = ask(site[1], post("/unread", size, "x" * size) + LAST)
    assert statuses(answer) == ([200, 200] if size == 65536 else [200])


def test_only_what_is_left_of_a_body_counts(answering):
    def most(request):
        left = request.head.content_length or 0
        while left > 10:
            left -= len(request.body.read(left - 10))
        return Response(b"x")

    assert statuses(ask(answering(most)[1], post("/", 99_999, "x" * 99_999) + LAST)) == [200, 200]


def test_an_endless_unread_body_ends_the_connection(site):
    site[1].sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with pytest.raises(OSError):  # noqa: PT012
        while True:
            site[1].sendall(chunk)
    assert site[0].statistics().bytes_received < 8 << 20


def test_a_body_streams_back(answering):
    _, sock = answering(lambda request: Response(iter(request.body), headers={"Content-Length": "4"}))
    sock.sendall(post("/", 4, "ab", "Connection: close\n").replace("\n", "\r\n").encode())
    assert sock.recv(1000).endswith(b"\r\n\r\nab")
    sock.sendall(b"cd")
    assert read_all(sock) == b"cd"


def test_a_body_that_breaks_while_it_streams_back_is_counted(answering):
    server, sock = answering(lambda request: Response(request.body))
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    while not sock.recv(1000).endswith(b"abc\r\n"):
        pass
    sock.sendall(b"zzz\r\n")
    assert read_all(sock) == b"", "no last chunk"
    assert server.refused == {"chunk-size": 1}


def test_trailers(answering):
    def answer(request):
        request.body.read_all()
        return Response(request.trailers.get("x"))

    text = f"POST / HTTP/1.1\nTransfer-Encoding: chunked\n{CLOSE}1\na\n0\nX: y\n\n"
    assert ask(answering(answer)[1], text).endswith("\n\ny")


# -- 100, 103 and other expectations

AWAITED = "Expect: 100-continue\n"


def test_no_100_within_an_answer(answering):
    def pieces(request):
        yield b"first "
        yield request.body.read_all()

    _, sock = answering(lambda request: Response(pieces(request)))
    sock.sendall(post("/", 2, fields=AWAITED).replace("\n", "\r\n").encode())
    assert sock.recv(1000).endswith(b"first \r\n")
    assert statuses(ask_rest := ask_more(sock, "hi")) == []
    assert "hi" in ask_rest


def ask_more(sock, text):
    sock.sendall(text.encode())
    return read_all(sock).decode()


def test_100_before_an_answer_that_streams(answering):
    _, sock = answering(lambda request: Response(iter(request.body)))
    sock.sendall(post("/", 2, fields=AWAITED).replace("\n", "\r\n").encode())
    assert read_exactly(sock, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert statuses(ask_more(sock, "hi")) == [200]


def test_early_hints(answering):
    def answer(request):
        request.send_interim(103, {"Link": "</a>"})
        return Response(b"x")

    server, sock = answering(answer)
    assert ask(sock, LAST).startswith("HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\n")
    assert server.statistics().statuses == {200: 1}


@pytest.mark.parametrize(
    ("version", "expect", "status"),
    [
        ("1.1", "the impossible", 417),
        ("1.1", "100-continue, more", 417),
        ("1.0", "the impossible", 200),
        ("1.1", "100-Continue", 200),
        ("1.1", "", 200),
    ],
)
def test_expectations(site, version, expect, status):
    answer = ask(site[1], f"GET /hello HTTP/{version}\nExpect: {expect}\n{CLOSE}")
    assert statuses(answer) == [status]
    assert site[0].refused == ({"expectation": 1} if status == 417 else {})


def test_methods_that_are_refused(serve, connect):
    server = serve(Site, refused_methods=frozenset({"TRACE", "DELETE"}))
    answer = ask(connect(server), "DELETE / HTTP/1.1\nHost: a\n\n")
    assert "Allow: GET, HEAD, POST, PUT, PATCH, OPTIONS, CONNECT\n" in answer
    assert statuses(answer) == [405]
    assert server.refused == {"method": 1}


def test_behind_connect_nothing_is_http_and_no_other_connection_suffers(serve, connect):
    server = serve(Site, refused_methods=frozenset())
    answer = ask(connect(server), "CONNECT a:80 HTTP/1.1\nHost: a:80\n\nGET /hello HTTP/1.1\nHost: a\n\n")
    assert statuses(answer) == [404]
    assert "Connection: close\n" in answer
    assert statuses(ask(connect(server), f"GET /hello HTTP/1.1\n{CLOSE}")) == [200]


# -- refusals


def test_a_refusal_arrives_while_the_client_still_sends(site):
    """512 KiB follow what is refused."""
    text = "POST /echo HTTP/1.1\nContent-Length: 524288\n\n" + "x" * 524_288
    answer = ask(site[1], text)
    assert statuses(answer) == [400]
    assert site[0].refused == {"host-missing": 1}


def test_requests_before_a_refused_one_are_answered_first(site):
    assert statuses(ask(site[1], GET + "GET / HTTP/1.1\n\n" + GET)) == [200, 400]


def test_a_refusal_says_why_and_the_program_may_say_it_its_way(serve, connect, caplog):
    caplog.set_level(logging.INFO, "greensock.core.server")

    class Polite(Site):
        def request_refused(self, conn, refusal):
            if self.stop_timeout == 0.3:
                raise RuntimeError("as it was told to")
            return Response([b"x"] if self.stop_timeout == 0.4 else b"sorry", 400, {"X": "y"})

    assert ask(connect(serve(Site)), "GET / HTTP/1.1\n\n").endswith("\n\nHTTP/1.1 without Host\n")
    answer = ask(connect(serve(Polite)), "GET / HTTP/1.1\n\n")
    assert answer == "HTTP/1.1 400 Bad Request\nX: y\nConnection: close\nContent-Length: 5\n\nsorry"
    assert ask(connect(serve(Polite, stop_timeout=0.4)), "GET / HTTP/1.1\n\n").endswith("Content-Length: 0\n\n")
    assert caplog.text.count("(host-missing)") == 3
    failing = serve(Polite, stop_timeout=0.3)
    sock = connect(failing)
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert read_all(sock) == b""
    assert failing.statistics().errors == 1


def test_a_slow_head_whose_client_has_left_does_not_stop_the_watch(serve, connect, monkeypatch):
    server = serve(Site, head_timeout=0.05)
    kind = HTTPServer.connection_class
    real = kind.send

    def send(self, data, close=False, timeout=None):
        if close and not lost:
            lost.append(self)
            raise ConnectionLost("it has left", self)
        real(self, data, close)

    lost = []
    monkeypatch.setattr(kind, "send", send)
    first, second = connect(server), connect(server)
    first.sendall(b"GET")
    second.sendall(b"GET")
    assert statuses(read_all(second).decode()) == [408] or statuses(read_all(first).decode()) == [408]
    assert len(lost) == 1
    third = connect(server)
    third.sendall(b"GET")
    assert statuses(read_all(third).decode()) == [408]
    lost[0].abort()


@pytest.mark.parametrize("error", [RuntimeError, gevent.Timeout])
def test_a_program_that_fails_to_refuse_does_not_stop_the_watch(serve, connect, caplog, error):
    class Failing(Site):
        def request_refused(self, conn, refusal):
            raise error

    server = serve(Failing, head_timeout=0.05)
    for _ in range(2):
        sock = connect(server)
        sock.sendall(b"GET")
        assert read_all(sock) == b""
    assert caplog.text.count("the answer to a refused request") == 2


def test_a_watch_that_was_killed_begins_anew(serve, connect):
    server = serve(Site, head_timeout=0.2)
    socks = [connect(server), connect(server)]
    socks[0].sendall(b"GET")
    wait_until(lambda: server.head_watch)
    server.head_watch._greenlet.kill()
    socks[1].sendall(b"GET")
    assert [statuses(read_all(sock).decode()) for sock in socks] == [[408], [408]]


def test_a_head_that_comes_slowly_has_one_deadline(serve, connect):
    """Bytes do not put it off."""
    server = serve(Site, head_timeout=0.2)
    sock = connect(server)
    started = time.monotonic()
    with suppress(OSError):
        for byte in b"GET /hello HTTP/1.1\r\nHost: " + b"a" * 1000:
            sock.sendall(bytes([byte]))
            gevent.sleep(0.01)
            if server.refused:
                break
    assert time.monotonic() - started < 2
    assert server.refused == {"head-timeout": 1}


def test_a_head_that_became_whole_has_no_deadline(serve, connect):
    server = serve(Site, head_timeout=0.1)
    sock = connect(server)
    for _ in range(3):
        sock.sendall(b"GET /hello HTTP/1.1\r\n")
        wait_until(lambda: server.head_watch)
        sock.sendall(b"Host: a\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert not server.head_watch
    gevent.sleep(0.15)
    assert statuses(ask(sock, LAST)) == [200]
    assert not server.refused


# -- what the program does wrong, and clients that leave


def test_request_done_hears_of_every_answer(answering, caplog):
    server, sock = answering(lambda request: Response(b"x" * 100))
    answer = ask(sock, GET + LAST)
    assert [status for status, _ in server.done] == [200, 200]
    assert sum(sent for _, sent in server.done) == server.statistics().bytes_sent > len(answer)

    def fail(request, response, sent):
        raise RuntimeError("as it was told to")

    server.on_done = fail
    server.refused.clear()


def test_a_request_done_that_fails_changes_nothing(serve, connect, caplog):
    class Failing(Site):
        def request_done(self, request, response, sent):
            raise RuntimeError("as it was told to")

    server = serve(Failing)
    assert statuses(ask(connect(server), GET + LAST)) == [200, 200]
    assert server.statistics().errors == 2
    assert caplog.text.count("request_done failed") == 2


@pytest.mark.parametrize("wrong", [None, "text", b"bytes", 200])
def test_no_response_is_500(answering, caplog, wrong):
    assert statuses(ask(answering(lambda request: wrong)[1], LAST)) == [500]
    assert "a Response expected" in caplog.text


def test_a_timeout_of_the_program_is_500(answering, caplog):
    def answer(request):
        with gevent.Timeout(0.01):
            gevent.sleep(PATIENCE)

    assert statuses(ask(answering(answer)[1], LAST)) == [500]


def test_an_error_of_another_connection_is_500(answering, caplog):
    def answer(request):
        raise ConnectionLost("not this one")

    assert statuses(ask(answering(answer)[1], LAST)) == [500]


def test_a_client_that_does_not_read_what_the_program_sends_is_not_408(answering, caplog):
    server, sock = answering(lambda request: request.connection.send(LARGE * 20, timeout=0.05))
    sock.sendall(GET.replace("\n", "\r\n").encode())
    wait_until(lambda: server.statistics().dropped)
    assert server.statistics().dropped == {"SEND_TIMEOUT": 1}
    assert not server.refused
    assert not caplog.records
    reset(sock)


def test_a_program_may_end_the_connection_itself(answering):
    def answer(request):
        request.connection.send(b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\nmine", close=True)
        return Response(b"lost")

    server, sock = answering(answer)
    assert ask(sock, LAST).endswith("\n\nmine")
    assert server.statistics().errors == 0


@pytest.mark.parametrize("hard", [True, False], ids=["reset", "fin"])
@pytest.mark.parametrize(
    "sent",
    ["", "GET /he", "GET /hello HTTP/1.1\nHost: a\n", post("/echo", 3), post("/echo", 3, "a"), GET * 100],
    ids=["nothing", "line", "head", "behind-head", "body", "answers"],
)
def test_a_client_may_leave_whenever_it_likes(site, connect, caplog, sent, hard):
    server, sock = site
    sock.sendall(sent.replace("\n", "\r\n").encode())
    wait_until(lambda: server.statistics().bytes_received == len(sent.replace("\n", "\r\n")))
    reset(sock) if hard else sock.close()
    wait_until(lambda: not server.statistics().active)
    assert not caplog.records
    assert server.statistics().errors == 0
    assert not server.head_watch
    assert statuses(ask(connect(server), LAST)) == [200]


def test_a_client_that_leaves_while_it_is_answered(answering, caplog):
    def answer(request):
        request.wait_disconnect(PATIENCE)
        return Response(LARGE)

    server, sock = answering(answer)
    sock.sendall(GET.replace("\n", "\r\n").encode())
    wait_until(lambda: server.statistics().requests)
    reset(sock)
    wait_until(lambda: not server.statistics().active)
    assert not caplog.records


# -- stopping


def test_a_server_that_drains_says_good_bye_and_cuts_nobody_off(answering, connect):
    go = Event()

    def answer(request):
        go.wait(PATIENCE)
        return Response(request.path)

    server, busy = answering(answer)
    idle, half = connect(server), connect(server)
    busy.sendall(b"GET /busy HTTP/1.1\r\nHost: a\r\n\r\nGET /busy HTTP/1.1\r\nHost: a\r\n\r\n")
    half.sendall(b"GET /half HTTP/1.1\r\nHo")
    wait_until(lambda: server.statistics().accepted == 3 and server.head_watch and server._requests)
    stopping = gevent.spawn(server.stop, PATIENCE)
    assert read_all(idle) == b""
    half.sendall(b"st: a\r\n\r\n")
    wait_until(lambda: server.statistics().requests == 2)
    go.set()
    for sock, path in (busy, "/busy"), (half, "/half"):
        answer = read_all(sock).decode()
        assert statuses(answer) == [200]
        assert "Connection: close\r\n" in answer
        assert answer.endswith(path)
    for sock in busy, idle, half:
        sock.close()
    stopping.join(PATIENCE)
    assert not server.started


def test_stopping_under_load_cuts_nobody_off(answering, connect):
    """Every request whose answer was begun is answered whole; the others see a close, never a part."""
    server, unused = answering(lambda request: gevent.sleep(0.001) or Response(b"x" * 1000))
    unused.close()
    torn, whole = [], []

    def client():
        sock = connect(server)
        with suppress(ConnectionError), sock:
            while True:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = b""
                while not answer.endswith(b"x" * 1000):
                    piece = sock.recv(65536)
                    if not piece:
                        torn.extend([answer] if answer else [])
                        return
                    answer += piece
                whole.append(answer)

    clients = [gevent.spawn(client) for _ in range(50)]
    wait_until(lambda: len(whole) > 500)
    server.stop(PATIENCE)
    gevent.joinall(clients, PATIENCE)
    assert not torn
    assert server.statistics().requests <= len(whole) + 50


# -- what it holds and counts


def test_statistics(site):
    ask(site[1], GET + f"GET /none HTTP/1.1\n{CLOSE}")
    found = site[0].statistics()
    assert isinstance(found, HTTPStatistics)
    assert (found.accepted, found.requests, found.statuses, found.refused) == (1, 2, {200: 1, 404: 1}, {})
    with pytest.raises(AttributeError):
        found.requests = 0


def parsers():
    gc.collect()
    return sum(type(found) is RequestParser for found in gc.get_objects())


def test_idle_connections_hold_no_parser_and_few_are_kept(serve, connect):
    barrier, before = Event(), parsers()

    class Blocking(HTTPServer):
        def handle_request(self, request):
            barrier.wait(PATIENCE)
            return Response(b"x")

    server = serve(Blocking)
    socks = [connect(server) for _ in range(100)]
    for sock in socks:
        sock.sendall(GET.replace("\n", "\r\n").encode())
    wait_until(lambda: server.statistics().workers_busy >= 100)
    barrier.set()
    for sock in socks:
        assert sock.recv(1000)
    wait_until(lambda: server.statistics().workers_busy == 0)
    assert all(conn.head_parser is conn.parser_in_use is None for conn in server.connections)
    assert parsers() - before == len(server._spare) == http_server.MAX_SPARE


@pytest.mark.parametrize("ending", ["refused", "answered", "failed"])
def test_a_connection_that_closes_holds_no_parser(serve, connect, ending):
    class Keeping(HTTPServer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.kept = []

        def connection_new(self, conn):
            self.kept.append(conn)

        def handle_request(self, request):
            if ending == "failed":
                request.connection.abort()
            return Response(b"x")

    before, server = parsers(), serve(Keeping)
    sock = connect(server)
    sock.sendall((b"GET / HTTP/1.1\r\n" + CLOSE.replace("\n", "\r\n").encode()) if ending != "refused" else b"\0")
    with suppress(ConnectionError):
        read_all(sock)
    sock.close()
    wait_until(lambda: not server.connections)
    assert len(server.kept) == 1
    assert parsers() - before <= len(server._spare)


COUNT = 2000


def test_slow_heads_and_silent_clients_hold_no_greenlet(serve, connect):
    server = serve(Site, head_timeout=PATIENCE)
    before = len(greenlets())
    slow = [connect(server) for _ in range(COUNT)]
    for number, sock in enumerate(slow):
        if number % 2:
            sock.sendall(b"GET /hello HTTP/1.1\r\nHost: ")
    wait_until(lambda: len(server.head_watch) == COUNT // 2)
    assert len(greenlets()) <= before + 5, "one that watches the heads, and the workers"
    assert statuses(ask(connect(server), LAST)) == [200]
    assert server.statistics().workers <= 3
    assert server.statistics().active >= COUNT
    server.abort()


def test_slow_bodies_leave_the_others_alone(serve, connect):
    server = serve(Site)
    slow = [connect(server) for _ in range(COUNT)]
    for sock in slow:
        sock.sendall(post("/echo", 100, "x").replace("\n", "\r\n").encode())
    wait_until(lambda: server.statistics().workers_busy >= COUNT)
    assert statuses(ask(connect(server), LAST)) == [200]
    assert server.statistics().workers_busy >= COUNT
    server.abort()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MANY = 200 << 20


def test_a_large_upload_and_download_in_constant_memory(serve, connect, tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(MANY)

    class Large(HTTPServer):
        def handle_request(self, request):
            if request.method == "POST":
                return Response(str(sum(map(len, request.body))))
            if request.path == "/file":
                return Response.file(path)
            return Response((LARGE for _ in range(MANY >> 20)), headers={"Content-Length": str(MANY)})

    server = serve(Large)
    sock = connect(server)
    before = resident()
    sock.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {MANY}\r\n\r\n".encode())
    for _ in range(MANY >> 20):
        sock.sendall(LARGE)
    assert sock.recv(1000).endswith(b"%d" % MANY)
    piece = bytearray(1 << 18)
    for target in "/file", "/pieces":
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        left = MANY
        while left:
            left -= sock.recv_into(piece, min(left, len(piece)))
    assert resident() - before < 16 << 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_timeout", 0), ("body_timeout", None), ("min_body_rate", -1), ("max_requests", 0), ("limits", 5)],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        Site(("127.0.0.1", 0), **{name: value})
    with pytest.raises(TypeError, match="max_fields"):
        Site(("127.0.0.1", 0), max_fields=5)


def test_limits_are_the_parsers(serve, connect):
    server = serve(Site, limits=Limits(max_body=3))
    assert statuses(ask(connect(server), post("/echo", 4, "abcd"))) == [413]
    assert statuses(ask(connect(server), post("/echo", 3, "abc", "Connection: close\n"))) == [200]
    assert server.refused == {"body-too-large": 1}


def test_a_client_that_looks_late_gets_the_refusal(site):
    server, sock = site
    sock.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(128):
        sock.sendall(bytes(65536))  # 8 MiB, and only then
    assert read_all(sock).endswith(b"\r\n\r\nnot read")
    assert server.statistics().statuses == {200: 1}
