"""The HTTP server over real connections."""

from __future__ import annotations

import re

import pytest
from conftest import read_all, wait_until

from greensock.http import HTTPError, HTTPServer, Response


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
    return re.sub(rb"Date: [^\r]*\r\n", b"", answer).decode().replace("\r\n", "\n")


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
def test_a_body_that_is_not_as_long_as_it_says_ends_with_a_reset(site, caplog, declared):
    with pytest.raises(ConnectionResetError):
        ask(site[1], f"GET /sized?{declared} HTTP/1.1\n{CLOSE}")
    wait_until(lambda: "Content-Length" in caplog.text)


def test_a_sized_body_of_pieces(site):
    assert ask(site[1], f"GET /sized?6 HTTP/1.1\n{CLOSE}").endswith("Content-Length: 6\n\nonetwo")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET / HTTP/1.1\n\n", 400),
        ("GET / HTTP/2.0\nHost: a\n\n", 505),
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
