"""The corpus of hostile and odd requests through a proxy: what reached the server behind it.

A request that is refused at its head never gets there, not even as a connection. One that is refused in its body, which
may be on its way by then, never gets there whole. Any other gets there exactly once, in order, framed anew. The bytes
that came are read by parsers that are not greensock's (see ``wire``).
"""

from __future__ import annotations

import random
import re
import socket
from typing import Any

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from http_messages import cases
from proxies import Recorded, gateway_to
from wire import Message, Recorder, finals_by_h11, requests_by_h11, take_finals, take_request

REQUESTS = cases("requests")

GOOD = b"GET /good HTTP/1.1\r\nHost: good\r\n\r\n"
BEHIND = b"GET /behind HTTP/1.1\r\nHost: behind\r\n\r\n"

#: RFC 9110 section 7.6.1, and what was always meant to be of it.
OF_THE_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
#: What is written anew, and what a client of which nothing is known may not claim.
NOT_FROM_CLIENTS = {b"host", b"content-length", b"expect", b"proxy", b"forwarded", b"x-real-ip"}
#: What never passes as a trailer.
CREDENTIALS = {b"proxy-authorization"}
#: What Connection can't name away.
PROTECTED = {
    *(b"host", b"content-length", b"content-type", b"cookie", b"authorization", b"cache-control", b"via"),
}


def splits(data: bytes) -> list[list[bytes]]:
    """Return the ways to send the bytes: whole, one by one if they are few, split at random."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    places = sorted(chance.sample(range(1, len(data)), min(6, len(data) - 1))) if len(data) > 1 else []
    ways = [[data], [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]]
    if len(data) < 300:
        ways.append([data[place : place + 1] for place in range(len(data))])
    return ways


class Due:
    """What has to come of a file: at the client, and at the server behind."""

    def __init__(self, data: bytes, expected: dict[str, Any]) -> None:
        #: The methods of the requests that get an answer, and its status.
        self.methods: list[str] = []
        self.statuses: list[int] = []
        #: The requests that arrive, as the client wrote them.
        self.requests: list[Message] = []
        #: Whether a request is refused only when its body was looked at.
        self.in_body = False
        #: Whether the client's end of input is part of it.
        self.eof = expected.get("refused") == "incomplete"
        open_, whole = True, True
        for event in expected.get("events", []):
            if not open_:
                break
            if "method" in event:
                whole, method, keeps = False, event["method"], _keeps(event)
                if method == "CONNECT":
                    self.goes_on = False
                    self.methods, self.statuses = [method], [405]
                    return
            elif "end" in event:
                found = take_request(data, lenient=True)
                assert found is not None
                request, data = found
                assert request.method == method
                self.requests.append(request)
                self.methods.append(method)
                self.statuses.append(200)
                whole, open_ = True, keeps
        #: Whether a request behind these gets an answer.
        self.goes_on = open_ and whole and "refused" not in expected
        if "refused" in expected and open_:
            self.in_body = not whole
            self.methods.append("GET" if whole else method)
            self.statuses.append(expected["status"])


def _keeps(event: dict[str, Any]) -> bool:
    said = ", ".join(value.lower() for name, value in event.get("headers", []) if name.lower() == "connection")
    return "keep-alive" in said if event.get("version") == "1.0" else "close" not in said


def forwarded(request: Message, server: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return request line and fields that are to arrive, given what the client wrote."""
    method, target, version = request.line.split(b" ")
    host = (request.all(b"host") or [b""])[0]
    if absolute := re.fullmatch(rb"https?://([^/?]*)(.*)", target, re.IGNORECASE):
        host, target = absolute.groups()
        if not target.startswith(b"/"):
            target = b"*" if method == b"OPTIONS" and not target else b"/" + target
    named = {name.lower() for name in _elements(request, b"connection")}
    fields = [(b"Host", host or server.encode())]
    fields += [pair for pair in request.fields if _passes(pair[0].lower(), named)]
    fields += [(b"X-Forwarded-For", b"127.0.0.1"), (b"X-Forwarded-Proto", b"http")]
    fields.append((b"Via", version.removeprefix(b"HTTP/") + b" greensock (*)"))
    if host:
        fields.append((b"X-Forwarded-Host", host))
    options = []
    announced = [name for name in _elements(request, b"trailer") if b" " not in name]
    announced = [name for name in announced if _passes(name.lower(), named | CREDENTIALS)]
    if announced and request.framing == "chunked":
        fields.append((b"Trailer", b", ".join(announced)))
    offered = b", ".join(request.all(b"upgrade"))
    if offered and b"upgrade" in named and version == b"HTTP/1.1":
        fields.append((b"Upgrade", offered))
        options.append(b"Upgrade")
    if b"trailers" in [name.lower() for name in _elements(request, b"te")] and version == b"HTTP/1.1":
        fields.append((b"TE", b"trailers"))
        options.append(b"TE")
    if options:
        fields.append((b"Connection", b", ".join(options)))
    if request.framing == "chunked":
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif request.body or method in (b"POST", b"PUT", b"PATCH"):
        fields.append((b"Content-Length", b"%d" % len(request.body)))
    return b"%b %b HTTP/1.1" % (method, target), fields


def _elements(request: Message, name: bytes) -> list[bytes]:
    return [part for value in request.all(name) for element in value.split(b",") if (part := element.strip(b" \t"))]


def _passes(name: bytes, named: set[bytes]) -> bool:
    if b"_" in name or name in OF_THE_HOP or name in NOT_FROM_CLIENTS or name.startswith(b"x-forwarded-"):
        return False
    return name not in named or name in PROTECTED


def passing_trailers(request: Message) -> list[tuple[bytes, bytes]]:
    """Return the trailers that are to arrive."""
    named = b",".join([*request.all(b"connection"), *(v for n, v in request.trailers if n.lower() == b"connection")])
    tokens = {name.strip(b" \t").lower() for name in named.split(b",")} | CREDENTIALS
    return [pair for pair in request.trailers if _passes(pair[0].lower(), tokens)]


@pytest.fixture
def behind(serve):
    """Start a proxy before a server that takes notes: ``behind()`` gives both."""
    gateways, recorders = [], []

    def start():
        recorders.append(Recorder())
        gateways.append(gateway_to(recorders[-1].url))
        return serve(Recorded, gateway=gateways[-1]), recorders[-1]

    yield start
    for gateway in gateways:
        for upstream in gateway.upstreams.values():
            upstream.close()
            assert all(not server.used for server in upstream.all), "a request was not counted out"
    for recorder in recorders:
        recorder.close()


def hear(sock, answer, methods):
    """Read until as many answers are there, or until the end."""
    while len(take_finals(answer, methods, ended=False)[0]) < len(methods):
        piece = sock.recv(65536)
        if not piece:
            break
        answer += piece
    return answer


def play(proxy, pieces, due, before):
    """Send good requests and the pieces; return everything that comes: the answers, and then until the end."""
    with socket.create_connection(proxy.address, PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        if due.eof and before:
            sock.sendall(GOOD * before)
            answer = hear(sock, answer, ["GET"] * before)  # whoever ends its input before has left
        elif before:
            pieces = [GOOD * before + pieces[0], *pieces[1:]]
        try:
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) > 1:
                    gevent.sleep(0)  # the proxy looks at each by itself
            if not due.eof:
                answer = hear(sock, answer, ["GET"] * before + due.methods)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused already
        return answer + read_all(sock)


def check_answers(answer, methods, statuses):
    """Check that these answers came, and nothing else, in the eyes of both parsers."""
    finals, rest = take_finals(answer, methods, ended=True)
    assert [final.status for final in finals] == statuses
    assert not rest
    by_h11 = finals_by_h11(answer, methods, ended=True)
    assert by_h11 == [(final.status, final.body) for final in finals]
    for method, final in zip(methods, finals, strict=True):
        if final.status == 200:
            assert final.body == (b"" if method == "HEAD" else b"ok")


def check_arrived(recorder, requests):
    """Check that these requests came, each once and in order, and nothing else came whole."""
    assert not recorder.malformed
    server = recorder.url.removeprefix("http://")
    assert len(recorder.arrived) == len(requests)
    for found, request in zip(recorder.arrived, requests, strict=True):
        line, fields = forwarded(request, server)
        assert found.line == line
        assert [(name, re.sub(rb"\(\w+\)", b"(*)", value)) for name, value in found.fields] == fields
        assert found.body == request.body
        assert found.trailers == passing_trailers(request)
    by_h11 = [request for raw in recorder.raw for request in requests_by_h11(bytes(raw))]
    assert by_h11 == [
        (found.method, found.target, found.fields, found.body, found.trailers) for found in recorder.arrived
    ]


def check(proxy, recorder, pieces, due, requests, *, before=0):
    """Play the pieces and check what came of them: the answers due behind ``before`` good ones, and these requests."""
    connections = recorder.accepted
    recorder.forget()
    answer = play(proxy, pieces, due, before)
    proxy.gateway.upstreams["site"].drop_idle()
    wait_until(lambda: not recorder.open)
    check_answers(answer, ["GET"] * before + due.methods, [200] * before + due.statuses)
    if not requests and not due.in_body:
        assert recorder.accepted == connections, "nobody was asked"
        assert not any(recorder.raw)
    check_arrived(recorder, requests)


@pytest.mark.parametrize(
    ("data", "expected"), [pytest.param(data, expected, id=name) for name, data, expected in REQUESTS]
)
def test_every_file(behind, data, expected):
    due = Due(data, expected)
    proxy, recorder = behind()
    for pieces in splits(data):
        check(proxy, recorder, pieces, due, due.requests)
    good = take_request(GOOD)[0]
    check(proxy, recorder, [data], due, [good, *due.requests], before=1)
    if "refused" in expected and not due.eof:
        check(proxy, recorder, [data + BEHIND], due, due.requests)
    check(proxy, recorder, [b""], Due(b"", {}), [good], before=1)
    assert proxy.statistics().errors == 0


def test_pipelines(behind):
    """Files in random order and split at random: each gets there once and in order, up to the first that is bad."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    sound, last = [], []
    for _, data, expected in REQUESTS:
        due = Due(data, expected)
        (sound if due.goes_on and due.methods else last).append((data, due))
    last = [(data, due) for data, due in last if due.methods and not due.eof]
    proxy, recorder = behind()
    for _ in range(60):
        chosen = [*chance.choices(sound, k=chance.randrange(8)), chance.choice(last)]
        due = chosen[-1][1]
        all_due = Due(b"", {})
        for _, each in chosen:
            all_due.methods += each.methods
            all_due.statuses += each.statuses
            all_due.requests += each.requests
        all_due.in_body = due.in_body
        data = b"".join(data for data, _ in chosen) + BEHIND
        places = sorted(chance.sample(range(1, len(data)), chance.randrange(min(9, len(data)))))
        pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
        check(proxy, recorder, pieces, all_due, all_due.requests)


FIELDS = {
    "connection-names-a-field": ["Connection: X-One, x-two", "X-One: 1", "X-Two: 2", "X-Three: 3", "x-one: 4"],
    "connection-in-two-lines": ["Connection: X-One", "Connection: keep-alive,,X-Two", "X-One: 1", "X-Two: 2"],
    "connection-behind-what-it-names": ["X-One: 1", "connection: x-one\t, ,"],
    "connection-names-nothing": ["Connection: X-None", "X-One: 1"],
    "connection-names-the-message": [
        "Connection: Host, Content-Length, Content-Type, Cookie, Authorization, Cache-Control, Via",
        *("Content-Type: text/plain", "Cookie: a=b", "Authorization: Basic eA==", "Cache-Control: no-store"),
        "Via: 1.1 other",
    ],
    "connection-names-ours": ["Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Via, X-Real-IP"],
    "of-the-hop": [
        *("Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic eA==", "TE: trailers"),
        *("Trailer: X-One", "Proxy-Authenticate: Basic", "Upgrade: websocket", "Accept: */*"),
    ],
    "trailers-are-taken": ["Connection: x, TE", "TE: gzip;q=0.5, Trailers", "X: y"],
    "trailers-are-taken-in-a-tunnel": ["Connection: upgrade, TE", "TE: trailers", "Upgrade: websocket"],
    "trailers-announced": [
        *("Trailer: X-Sum , Connection,TE, a b,,Proxy-Authorization", "trailer: X-Named, X-Forwarded-For, Cookie"),
        *("Connection: X-Named, Cookie", "Trailer:"),
    ],
    "claims": [
        *("X-Forwarded-For: 1.2.3.4", "x-forwarded-proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 1"),
        *("Forwarded: for=1.2.3.4", "X-Real-IP: 1.2.3.4", "Proxy: http://evil", "X-Forwarded-: x"),
    ],
    "underscores": [
        *("X_Forwarded_For: 1.2.3.4", "Content_Length: 7", "Transfer_Encoding: chunked", "Host_: evil", "_: x"),
        *("X-User: me", "X_User: admin"),
    ],
    "repeated": ["X: 1", "Cookie: a=b", "x: 2", "Cookie: c=d", "X:", "X: 1"],
    "spelling": ["x-oNe:1", "X-Two: \t two  words \t", "X-Three: \x80\xff"],
}


def accepted(data):
    """Return what is due of requests that are all taken."""
    events, rest = [], data
    while rest:
        request, rest = take_request(rest, lenient=True)
        events += [{"method": request.method}, {"end": None}]
    return Due(data, {"events": events})


def as_request(lines, body, line="POST /x?y HTTP/1.1"):
    head = "\r\n".join([line, "Host: a", *lines, "", ""]).encode("latin-1")
    return head + body


LENGTH = ["Content-Length: 3"], b"abc"
CHUNKED = ["Transfer-Encoding: chunked"], b"3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize("lines", FIELDS.values(), ids=FIELDS)
def test_fields(behind, lines):
    proxy, recorder = behind()
    messages = [as_request(lines, b"", "GET /x?y HTTP/1.1")]
    messages += [as_request(lines + framing, body) for framing, body in (LENGTH, CHUNKED)]
    for data in [*messages, b"".join(messages)]:
        due = accepted(data)
        for pieces in splits(data):
            check(proxy, recorder, pieces, due, due.requests)


@pytest.mark.parametrize(
    "trailers",
    [
        ["X-One: 1", "x-one: 2", "X-Two:"],
        ["Connection: X-Three, X-One", "X-One: 1", "X-Three: 3", "X-Two: 2"],
        ["Keep-Alive: x", "TE: trailers", "Trailer: X-One", "Upgrade: x", "Proxy-Authorization: x", "X-One: 1"],
        ["X-Forwarded-For: 1.2.3.4", "Forwarded: for=1.2.3.4", "X-Real-IP: 1.2.3.4", "Proxy: http://evil", "X-One: 1"],
        ["X_One: 1", "Content_Length: 7", "X-One: 1"],
        ["Expect: 100-continue", "X-One: 1"],
    ],
)
def test_trailers(behind, trailers):
    body = "\r\n".join(["3", "abc", "0", *trailers, "", ""]).encode()
    data = as_request(["Connection: X-Two", "Transfer-Encoding: chunked"], body)
    proxy, recorder = behind()
    due = accepted(data + GOOD)
    for pieces in splits(data + GOOD):
        check(proxy, recorder, pieces, due, due.requests)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("OPTIONS", "http://a"),  # RFC 9112 section 3.2.4
        ("OPTIONS", "http://a/"),
        ("OPTIONS", "http://a?x"),
        ("OPTIONS", "*"),
        ("GET", "HTTP://a"),
        ("GET", "http://a?x/y"),
        ("GET", "http://a/http://b/c"),
        ("GET", "/http://b/c"),
        ("GET", "//b/../%2e%2e/%00;x?"),
    ],
)
def test_targets(behind, method, target):
    proxy, recorder = behind()
    due = accepted(as_request([], b"", f"{method} {target} HTTP/1.1"))
    check(proxy, recorder, [as_request([], b"", f"{method} {target} HTTP/1.1")], due, due.requests)
