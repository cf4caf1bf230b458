"""The HTTP server: bodies of requests, expectations, refusals, programs that fail, stopping, and what it holds."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from contextlib import suppress

import gevent
import pytest
from conftest import PATIENCE, PAUSE, greenlets, read_all, read_exactly, wait_until
from gevent.event import Event
from http_serving import CLOSE, GET, LARGE, LAST, Any, Site, answering, ask, site, statuses  # noqa: F401  # fixtures
from pairs import reset

from greensock import ConnectionLost
from greensock.http import HTTPServer, HTTPStatistics, Limits, RequestParser, Response
from greensock.http.server import http_server

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
    caplog.set_level(logging.INFO, "greensock.server")
    site[1].sendall((head + pieces).replace("\n", "\r\n").encode())
    wait_until(lambda: site[0].statistics().bytes_received)
    site[1].shutdown(socket.SHUT_WR)
    assert statuses(read_all(site[1]).decode()) == [status]
    assert site[0].refused == {reason: 1}
    assert caplog.text.count("refused a request") == 1
    assert site[0].statistics().errors == 0


def test_a_body_that_does_not_come_is_408(serve, connect, caplog):
    caplog.set_level(logging.INFO, "greensock.server")
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


def test_trailers_of_an_answer(answering, connect):
    """They go to who says that it takes them; those that are known before the head are announced."""

    def answer(request):
        def pieces():
            yield b"one"
            request.add_trailers({"X-Sum": "1"})

        with pytest.raises(ValueError, match="can't be a trailer"):
            request.add_trailers({"Content-Length": "1"})
        said = request.add_trailers([("X-First", "0")])
        return Response(pieces(), headers={"X-Said": str(said)})

    server, sock = answering(answer)
    found = ask(sock, "GET / HTTP/1.1\nTE: trailers\n" + CLOSE)
    assert "\nX-Said: True\n" in found
    assert "\nTrailer: X-First\n" in found
    assert found.endswith("\n\n3\none\n0\nX-First: 0\nX-Sum: 1\n\n")
    found = ask(connect(server), "GET / HTTP/1.1\n" + CLOSE)
    assert "\nX-Said: False\n" in found
    assert "Trailer" not in found
    assert found.endswith("\n\n3\none\n0\n\n")


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
    caplog.set_level(logging.INFO, "greensock.server")

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
    limit = 0.2
    server = serve(Site, head_timeout=limit)
    sock = connect(server)
    started = time.monotonic()
    with suppress(OSError):
        for byte in b"GET /hello HTTP/1.1\r\nHost: " + b"a" * 1000:
            sock.sendall(bytes([byte]))
            gevent.sleep(limit / 20)
            if server.refused:
                break
    assert time.monotonic() - started < 2
    assert server.refused == {"head-timeout": 1}


def test_a_head_that_became_whole_has_no_deadline(serve, connect):
    limit = 0.1
    server = serve(Site, head_timeout=limit)
    sock = connect(server)
    for _ in range(3):
        sock.sendall(b"GET /hello HTTP/1.1\r\n")
        wait_until(lambda: server.head_watch)
        sock.sendall(b"Host: a\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert not server.head_watch
    gevent.sleep(1.5 * limit)
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
    wait_until(lambda: server.statistics().accepted == 3 and server.head_watch and server.requests_taken)
    stopping = gevent.spawn(server.stop, PATIENCE)
    assert read_all(idle) == b""
    half.sendall(b"st: a\r\n\r\n")
    wait_until(lambda: server.statistics().requests == 2)
    go.set()
    for sock, path, asked in (busy, "/busy", 2), (half, "/half", 1):
        answer = read_all(sock).decode()
        assert statuses(answer) == asked * [200]  # what was pipelined, too
        assert answer.count("Connection: close\r\n") == 1
        assert answer.endswith(path)
    for sock in busy, idle, half:
        sock.close()
    stopping.join(PATIENCE)
    assert not server.started


def test_stopping_under_load_cuts_nobody_off(answering, connect):
    """Every request whose answer was begun is answered whole; the others see a close, never a part."""
    server, unused = answering(lambda request: gevent.sleep(PAUSE) or Response(b"x" * 1000))
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
    request = GET.replace("\n", "\r\n").encode()
    for sock in socks:
        sock.sendall(request[:-1])  # what comes at once needs none
    wait_until(lambda: sum(conn.head_parser is not None for conn in server.connections) == 100)
    for sock in socks:
        sock.sendall(request[-1:])
    wait_until(lambda: server.statistics().workers_busy >= 100)
    barrier.set()
    for sock in socks:
        assert sock.recv(1000)
    wait_until(lambda: server.statistics().workers_busy == 0)
    assert all(conn.head_parser is conn.parser_in_use is None for conn in server.connections)
    assert parsers() - before == len(server._spare) == http_server.MAX_SPARE


def test_a_request_that_comes_at_once_needs_no_parser(serve, connect):
    class Counting(HTTPServer):
        def handle_request(self, request):
            return Response(b"%d" % (parsers() - before))

    before = parsers()
    sock = connect(serve(Counting))
    for end in ("", "Connection: close\n"):
        sock.sendall(GET.replace("\n\n", f"\n{end}\n").replace("\n", "\r\n").encode())
        assert sock.recv(1000).endswith(b"\r\n\r\n0")


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
