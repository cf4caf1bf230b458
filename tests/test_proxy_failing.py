"""What goes wrong between the proxy and its servers or clients, and what is answered then."""

from __future__ import annotations

import re
import socket

import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import reset
from proxies import closed_port
from proxy_requests import CLOSE, ask, origin, proxied  # noqa: F401  # fixtures
from scripts import OK, scripted

from greensock.proxy import (
    ProxyTimeouts,
    ServerOptions,
    combined_line,
)

# -- what goes wrong


def test_nobody_answers(proxied):
    proxy, sock = proxied(f"http://127.0.0.1:{closed_port()}")
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    sock.sendall(f"POST / HTTP/1.1\nContent-Length: 3\n{CLOSE}abc".replace("\n", "\r\n").encode())
    answer = read_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"502", b"502"]
    assert [record.reason for record in proxy.records] == ["connect-failed"] * 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_server_is_asked_if_nothing_was_sent(proxied, origin, method):
    proxy, _ = proxied(f"http://127.0.0.1:{closed_port()}", origin.url)
    for _ in range(4):
        with socket.create_connection(proxy.address) as sock:
            assert ask(sock, f"{method} / HTTP/1.1\nContent-Length: 3\n{CLOSE}", b"abc")[0] == 200
    assert proxy.retries == 2
    assert ", " in proxy.records[0].upstream or ", " in proxy.records[1].upstream


def hangs_up(when):
    def script(server, sock, number):
        if when == "at once":
            reset(sock)
        server.head(sock)
        if when == "after the head":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        elif when == "in the head":
            sock.sendall(b"HTTP/1.1 200 OK\r\nConte")
        elif when == "in the body":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        elif when == "in a chunk":
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123")
        elif when == "between chunks":
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")

    return script


@pytest.mark.parametrize("when", ["at once", "before the head", "in the head"])
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 200), ("POST", 502), ("PATCH", 502)])
def test_a_server_that_hangs_up_before_its_head(proxied, origin, when, method, status):
    with scripted(hangs_up(when)) as server:
        proxy, sock = proxied(server.url, ServerOptions(origin.url, backup=True))
        assert ask(sock, f"{method} / HTTP/1.1\nContent-Length: 3\n{CLOSE}", b"abc")[0] == status
        assert len(origin.seen) == (status == 200)
        assert server.accepted == 1
        if status != 200:
            assert proxy.records[0].reason == "no-response"


@pytest.mark.parametrize("when", ["after the head", "in the body", "in a chunk", "between chunks"])
def test_a_server_that_hangs_up_after_its_head(proxied, when):
    with scripted(hangs_up(when)) as server:
        proxy, sock = proxied(server.url)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not read_all(sock).endswith(b"\r\n0\r\n\r\n")
        wait_until(lambda: proxy.records)
        assert proxy.records[0].reason == "body-incomplete"


def test_a_kept_connection_that_died(proxied):
    def script(server, sock, number):
        if server.head(sock):
            sock.sendall(OK)
            if number == 1 and server.head(sock):
                return  # without an answer
            server.head(sock)

    with scripted(script) as server:
        proxy, sock = proxied(server.url)
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
        read_exactly(sock, 1)
        wait_until(lambda: proxy.gateway.upstreams["site"].all[0].status("").idle)
        assert ask(sock, f"GET /2 HTTP/1.1\n{CLOSE}")[1].endswith(b"ok")
        assert [head[:6] for head in server.heads] == [b"GET /1", b"GET /2", b"GET /2"]
        assert proxy.retries == 0


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok", 502),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200),
    ],
)
def test_hostile_answers(proxied, answer, status):
    def script(server, sock, number):
        while server.head(sock):
            sock.sendall(answer)

    with scripted(script) as server:
        _proxy, sock = proxied(server.url)
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
        _, answer = ask(sock, f"GET /2 HTTP/1.1\n{CLOSE}")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"%d" % status] * 2
        assert b"evil" not in answer
        assert server.accepted == 2, "such a connection is not used again"


@pytest.mark.parametrize(
    ("head", "reason", "asked"),
    [
        (b"GET /a HTTP/1.1\r\nUser-Agent: me\r\nReferer: b\r\n\r\n", "host-missing", ("GET", b"/a", b"", b"me", b"b")),
        (b"GET /a HTTP/2.0\r\nHost: a.example\r\n\r\n", "version", ("GET", b"/a", b"a.example", None, None)),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "request-line", ("", b"GET /a b HTTP/1.1", b"a", None, None)),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", "host-repeated", ("GET", b"/a", b"a", None, None)),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "request-line", ("", b"\x16\x03\x01\x02\x00\x01", b"", None, None)),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n", "target-too-long", ("", b"GET /" + b"x" * 8187, b"", None, None)),
        (b"GET /late HTTP/1.1\r\nHost: a\r\n", "head-timeout", ("GET", b"/late", b"a", None, None)),
    ],
)
def test_what_was_refused_is_logged_as_far_as_it_could_be_read(proxied, head, reason, asked):
    with scripted(lambda *_: None) as server:
        proxy, sock = proxied(server.url, timeouts=ProxyTimeouts(request_header=0.2))
        sock.sendall(head)
        assert read_all(sock).startswith(b"HTTP/1.1 ")
        record = wait_until(lambda: proxy.records)[0]
        assert (record.method, record.target, record.host, record.agent, record.referer) == asked
        assert record.reason == reason
        assert combined_line(record).count(b"\n") == 1


def test_timeouts_of_the_server(proxied):
    def script(server, sock, number):
        server.head(sock)
        sock.recv(1)

    with scripted(script) as server:
        proxy, sock = proxied(server.url, timeouts=ProxyTimeouts(upstream_head=0.05))
        assert ask(sock, f"GET / HTTP/1.1\n{CLOSE}")[0] == 504
        assert proxy.records[0].reason == "head-timeout"


def test_a_body_that_stops_coming(proxied):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n1234")
        sock.recv(1)

    with scripted(script) as server:
        proxy, sock = proxied(server.url, timeouts=ProxyTimeouts(upstream_idle=0.05))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\n1234")
        wait_until(lambda: proxy.records)
        assert proxy.records[0].reason == "body-timeout"


def test_queue_and_its_timeout(proxied):
    go = Event()

    def script(server, sock, number):
        while server.head(sock):
            go.wait()
            sock.sendall(OK)

    with scripted(script) as server:
        one = ServerOptions(server.url, max_connections=1, max_waiting=1)
        proxy, _sock = proxied(one, timeouts=ProxyTimeouts(queue=0.1))
        others = [socket.create_connection(proxy.address) for _ in range(3)]
        for each in others:
            each.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            wait_until(lambda: server.heads)  # so that the first one has the server
        answers = [read_all(each) for each in others[1:]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1\r\n" in answer for answer in answers)
        assert proxy.failures == {"queue-full": 1, "queue-timeout": 1}
        go.set()
        assert read_all(others[0]).endswith(b"ok")
        for each in others:
            each.close()


# -- clients that leave


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
def test_a_client_that_leaves_while_the_server_works(proxied, how):
    heard, gone = Event(), Event()

    def script(server, sock, number):
        server.head(sock)
        heard.set()
        try:
            assert not sock.recv(1)
        except ConnectionResetError:
            pass
        gone.set()

    with scripted(script) as server:
        proxy, sock = proxied(server.url)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert heard.wait(PATIENCE)
        if how == "close":
            sock.close()
        elif how == "reset":
            reset(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
        assert gone.wait(PATIENCE)
        wait_until(lambda: proxy.records)
        assert (proxy.records[0].status, proxy.records[0].reason) == (499, "client-left")


def test_half_closed_clients_are_served_if_told_to(proxied, origin):
    _proxy, sock = proxied(origin.url, server_options={"abort_on_eof": False})
    sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock).endswith(b"GET /x ")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_leaves_in_its_body(proxied, chunked):
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        gone.set()

    with scripted(script) as server:
        proxy, sock = proxied(server.url)
        if chunked:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
        else:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n12345")
        wait_until(lambda: server.heads)
        reset(sock)
        assert gone.wait(PATIENCE)
        wait_until(lambda: proxy.records)
        assert proxy.records[0].reason == "client-left"


@pytest.mark.parametrize("length", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
def test_a_client_that_leaves_in_the_answer(proxied, length):
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
        try:
            while True:
                sock.sendall(b"10000\r\n%b\r\n" % bytes(65536) if "chunked" in length else bytes(65536))
        except OSError:
            gone.set()

    with scripted(script) as server:
        proxy, sock = proxied(server.url)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        read_exactly(sock, 100_000)
        sock.close()
        assert gone.wait(PATIENCE)
        wait_until(lambda: proxy.records)
        assert proxy.records[0].reason == "client-left"
