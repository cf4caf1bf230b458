"""The HTTP server over real connections."""

from __future__ import annotations

import os
import re
import socket
import time
from itertools import count

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from http_serving import CLOSE, GET, LARGE, LAST, Any, Site, answering, ask, record_sizes, site, statuses  # noqa: F401  # fixtures
from pairs import reset

from greensock import ConnectionLost
from greensock.http import HTTPError, HTTPServer, Response
from greensock.http.server import response_writer


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


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 262_144, 524_288, 1 << 20])
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
    monkeypatch.setattr(response_writer, "SLICE", 262_144)
    sizes = record_sizes(monkeypatch, HTTPServer.connection_class)

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
