"""Servers that answer wrongly, or with what is no HTTP, behind a proxy: what the client gets.

That is the answer as it was meant, or the status that is due (502, 504), or an answer that is visibly cut; never one
that looks whole and is not. The client's connection is closed then, or in step: a second request gets its own answer.
The connection to the server is used again only if the answer ended exactly where it was to end.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from gevent.event import Event
from http_messages import cases
from pairs import reset
from proxies import Recorded, gateway_to
from scripts import OK, scripted
from wire import Message, body_so_far, finals_by_h11, take_finals, take_request

from greensock.proxy import HealthOptions, ProxyTimeouts

SECOND = b"HTTP/1.1 200 OK\r\nX-Second: yes\r\nContent-Length: 6\r\n\r\nsecond"
ASK_SECOND = b"GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

#: A server that answered wrongly is asked again here.
PATIENT = HealthOptions(max_fails=0)

#: What must not get past the proxy.
OF_THE_HOP = {"keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer", "upgrade"}


class Answer(NamedTuple):
    """What a server says, and what a proxy is to make of it."""

    data: bytes
    #: The status for the client; None: 502, as no head can be read.
    status: int | None = 200
    #: What of the body comes, at the most.
    body: bytes = b"abc"
    #: Whether the answer has an end.
    whole: bool = True
    #: Whether the connection can be used again.
    reusable: bool = True
    #: What the server does then: nothing, ``eof`` or ``reset``.
    then: str = ""
    #: The one method that it is an answer to; empty: GET and POST, and HEAD.
    method: str = ""


def of_corpus(data: bytes, expected: dict[str, Any]) -> Answer:
    """Return a file of the corpus as an answer."""
    events = expected.get("events", [])
    statuses = [event["status"] for event in events if event.get("status", 0) >= 200]
    body = "".join(event.get("body", "") for event in events).encode("latin-1")
    whole = any("end" in event for event in events)
    reusable = expected.get("reusable", "refused" not in expected and not expected.get("eof"))
    then = "eof" if expected.get("eof") else "" if whole or "refused" in expected else "reset"
    status = statuses[0] if statuses else None
    return Answer(data, status, body, whole, reusable, then, expected.get("method", ""))


CORPUS = {
    name: of_corpus(data, expected)
    for name, data, expected in cases("responses")
    if expected.get("method") != "CONNECT" and name != "switch"  # no proxy's; see below
}

HEAD = b"HTTP/1.1 200 OK\r\n"
LENGTH = HEAD + b"Content-Length: 3\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"


def bad_head(data: bytes) -> Answer:
    return Answer(data, None, reusable=False)


def bad_body(data: bytes, body: bytes = b"", then: str = "") -> Answer:
    return Answer(data, 200, body, whole=False, reusable=False, then=then)


def with_more(data: bytes, status: int = 200, body: bytes = b"abc") -> Answer:
    return Answer(data, status, body, reusable=False)


HOSTILE = {
    # the status line
    "status-000": bad_head(b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n"),
    "status-1000": bad_head(b"HTTP/1.1 1000 OK\r\nContent-Length: 0\r\n\r\n"),
    "status-letter": bad_head(b"HTTP/1.1 20x OK\r\nContent-Length: 0\r\n\r\n"),
    "status-digits-not-ascii": bad_head(b"HTTP/1.1 2\xb2\xb2 OK\r\nContent-Length: 0\r\n\r\n"),
    "status-600": Answer(b"HTTP/1.1 600 Odd\r\nContent-Length: 3\r\n\r\nabc", 600),
    "version-1.10": bad_head(b"HTTP/1.10 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "version-2": bad_head(b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n"),
    "version-0.9": bad_head(b"<html>there is no head</html>"),
    "http2-frame": bad_head(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    "tls-alert": bad_head(b"\x15\x03\x01\x00\x02\x02\x0a"),
    "garbage": bad_head(bytes(range(256)) * 8),
    "a-request": bad_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "empty-lines": bad_head(b"\r\n\r\n\r\n\r\n"),
    "endless-line": bad_head(b"HTTP/1.1 200 " + b"a" * 20_000),
    "endless-head": bad_head(HEAD + b"X: a\r\n" * 5_000),
    # its fields
    "field-of-17000-bytes": bad_head(LENGTH + b"X: " + b"a" * 17_000 + b"\r\n\r\nabc"),
    "nul-in-name": bad_head(LENGTH + b"X\x00Y: a\r\n\r\nabc"),
    "cr-ends-a-line": bad_head(HEAD + b"X: a\rContent-Length: 3\r\n\r\nabc"),
    "cr-cr-lf": bad_head(LENGTH + b"X: a\r\r\n\r\nabc"),
    "del-in-value": bad_head(LENGTH + b"X: \x7f\r\n\r\nabc"),
    "empty-name": bad_head(LENGTH + b": a\r\n\r\nabc"),
    "lf-lf": bad_head(b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc"),
    "fold-before-the-first": bad_head(HEAD + b"\tX: a\r\nContent-Length: 3\r\n\r\nabc"),
    "folded-length": Answer(HEAD + b"Content-Length:\r\n 3\r\n\r\nabc"),
    "folded-lengths": bad_head(HEAD + b"Content-Length: 3\r\n 4\r\n\r\nabc"),
    "folded-coding": Answer(HEAD + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    "folded-close": Answer(LENGTH + b"Connection:\r\n close\r\n\r\nabc", reusable=False),
    "folded-smuggling": Answer(LENGTH + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\nabc"),
    # framing
    "length-empty": bad_head(HEAD + b"Content-Length:\r\n\r\n"),
    "length-hex": bad_head(HEAD + b"Content-Length: 0x3\r\n\r\nabc"),
    "length-space": bad_head(HEAD + b"Content-Length: 3 3\r\n\r\nabc"),
    "length-underscore": bad_head(HEAD + b"Content-Length: 0_3\r\n\r\nabc"),
    "length-leading-zeros": Answer(HEAD + b"Content-Length: 0003\r\n\r\nabc"),
    "length-0-and-3": bad_head(HEAD + b"Content-Length: 0\r\nContent-Length: 3\r\n\r\nabc"),
    "length-0-and-body": with_more(HEAD + b"Content-Length: 0\r\n\r\nabc", body=b""),
    "length-18-digits": bad_body(HEAD + b"Content-Length: 999999999999999999\r\n\r\nabc", b"abc", "eof"),
    "length-short": bad_body(HEAD + b"Content-Length: 4\r\n\r\nabc", b"abc", "eof"),
    "length-short-reset": bad_body(HEAD + b"Content-Length: 4\r\n\r\nabc", b"abc", "reset"),
    "length-nothing": bad_body(LENGTH + b"\r\n", b"", "eof"),
    "coding-two-lines": bad_head(CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "coding-empty": bad_head(HEAD + b"Transfer-Encoding:\r\n\r\nabc"),
    "coding-xchunked": bad_head(HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "coding-chunked-gzip": bad_head(HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "coding-with-underscore": Answer(LENGTH + b"Transfer_Encoding: chunked\r\n\r\nabc"),
    "coding-then-length-listed-away": bad_head(CHUNKED + b"Content-Length: 3\r\nConnection: content-length\r\n\r\nabc"),
    # bodies in chunks
    "chunk-size-negative": bad_body(CHUNKED + b"\r\n-3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-hex": bad_body(CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-space": bad_body(CHUNKED + b"\r\n3 \r\nabc\r\n0\r\n\r\n"),
    "chunk-size-lf": bad_body(CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n"),
    "chunk-size-17-digits": bad_body(CHUNKED + b"\r\n00000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-16-digits": bad_body(CHUNKED + b"\r\nffffffffffffffff\r\nabc", b"abc", "eof"),
    "chunk-size-empty": bad_body(CHUNKED + b"\r\n\r\nabc\r\n0\r\n\r\n"),
    "chunk-too-long": bad_body(CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n", b"abc"),
    "chunk-too-short": bad_body(CHUNKED + b"\r\n4\r\nabc\r\n0\r\n\r\n", b"abc\r"),
    "chunk-extension-long": bad_body(CHUNKED + b"\r\n3;a=" + b"b" * 300 + b"\r\nabc\r\n0\r\n\r\n"),
    "chunks-cut-in-size": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0", b"abc", "eof"),
    "chunks-cut-in-last": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\n", b"abc", "eof"),
    "chunks-cut-before-last-lf": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r", b"abc", "eof"),
    "chunks-cut-by-reset": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n", b"abc", "reset"),
    "trailer-length": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n", b"abc"),
    "trailer-coding": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", b"abc"),
    "trailer-nul": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: \x00\r\n\r\n", b"abc"),
    "trailer-fold": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: a\r\n b\r\n\r\n", b"abc"),
    "trailers-101": bad_body(CHUNKED + b"\r\n3\r\nabc\r\n0\r\n" + b"X: a\r\n" * 101 + b"\r\n", b"abc"),
    "trailers": Answer(CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: a\r\nSet-Cookie: a=b\r\n\r\n"),
    # bodies up to the end
    "until-close": Answer(HEAD + b"\r\nabc", reusable=False, then="eof"),
    "until-close-with-keep-alive": Answer(HEAD + b"Connection: keep-alive\r\n\r\nabc", reusable=False, then="eof"),
    "until-reset": bad_body(HEAD + b"\r\nabc", b"abc", "reset"),
    "until-close-like-another": Answer(HEAD + b"\r\n" + SECOND, body=SECOND, reusable=False, then="eof"),
    # a body where there is none
    "204-with-body": with_more(b"HTTP/1.1 204 No Content\r\n\r\nabc", 204, b""),
    "204-with-chunks": with_more(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 204, b""
    ),
    "304-with-body": with_more(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc", 304, b""),
    "304-with-chunks": with_more(
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 304, b""
    ),
    "205-with-body": Answer(b"HTTP/1.1 205 Reset Content\r\nContent-Length: 3\r\n\r\nabc", 205),
    # more than one answer: the next request must not get it
    "two-answers": with_more(LENGTH + b"\r\nabc" + HEAD + b"Content-Length: 4\r\n\r\nevil"),
    "two-answers-chunked": with_more(CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n" + HEAD + b"Content-Length: 4\r\n\r\nevil"),
    "answer-and-half": with_more(LENGTH + b"\r\nabcHTTP/1.1 200 OK\r\nX-Evil: "),
    "answer-and-nul": with_more(LENGTH + b"\r\nabc\x00"),
    "answer-and-lf": with_more(LENGTH + b"\r\nabc\n"),
    "answer-and-interim": with_more(LENGTH + b"\r\nabcHTTP/1.1 103 Early Hints\r\nLink: </evil>\r\n\r\n"),
    "answer-and-switch": with_more(LENGTH + b"\r\nabcHTTP/1.1 101 Switching Protocols\r\nUpgrade: evil\r\n\r\n"),
    # answers 1xx
    "interim-unasked": Answer(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + LENGTH + b"\r\nabc"),
    "interim-102-and-199": Answer(
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Odd\r\nX: a\r\n\r\n" + LENGTH + b"\r\nabc"
    ),
    "interim-with-chunks": bad_head(
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + LENGTH + b"\r\nabc"
    ),
    "interim-with-hop-fields": Answer(
        b"HTTP/1.1 103 Early Hints\r\nConnection: close, X-One\r\nX-One: 1\r\nKeep-Alive: x\r\nUpgrade: x\r\n"
        b"Link: </a>\r\n\r\n" + LENGTH + b"\r\nabc"
    ),
    "interim-bad": bad_head(b"HTTP/1.1 103 Early Hints\r\nX: \x00\r\n\r\n" + LENGTH + b"\r\nabc"),
    "interim-endless": bad_head(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "switch-unasked": bad_head(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nraw"),
    # fields of the hop
    "connection-names-the-framing": Answer(
        LENGTH + b"Connection: content-length, transfer-encoding, date, set-cookie\r\nSet-Cookie: a=b\r\n\r\nabc"
    ),
    "connection-names-the-date": Answer(LENGTH + b"Connection: date\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\n\r\nabc"),
    "fields-of-the-hop": Answer(
        LENGTH + b"Keep-Alive: timeout=1\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nTE: trailers\r\nTrailer: X\r\n"
        b"Proxy-Authenticate: Basic\r\nConnection: X-One\r\nX-One: 1\r\n\r\nabc"
    ),
    "close-among-others": Answer(LENGTH + b"Connection: x, CLOSE\r\n\r\nabc", reusable=False),
    "close-in-the-second-line": Answer(
        LENGTH + b"Connection: keep-alive\r\nConnection: close\r\n\r\nabc", reusable=False
    ),
    "cookies": Answer(LENGTH + b"Set-Cookie: a=b; Path=/\r\nset-cookie: c=d\r\nSet-Cookie: a=b\r\n\r\nabc"),
}


def head_end(data: bytes) -> int:
    """Return where the head of the final answer ends."""
    place = 0
    while True:
        end = data.index(b"\r\n\r\n", place) + 4
        if not data.startswith(b"HTTP/1.1 1", place):
            return end
        place = end


def to_head(answer: Answer) -> Answer:
    """Return what is due if HEAD was asked."""
    if answer.status is None or answer.method == "HEAD":
        return answer
    nothing_behind = head_end(answer.data) == len(answer.data)
    closes = re.search(rb"(?i)\r\nconnection:[^\r]*close", answer.data) or b"HTTP/1.0" in answer.data[:9]
    reusable = nothing_behind and not answer.then and not closes
    if b"keep-alive" in answer.data and answer.reusable and nothing_behind:
        reusable = True
    return answer._replace(body=b"", whole=True, reusable=reusable)


#: What clients send: method, version, and all of it.
CLIENTS = {
    "get": ("GET", "1.1", b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "get-trailers": ("GET", "1.1", b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers\r\n\r\n"),
    "get-close": ("GET", "1.1", b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    "get-1.0": ("GET", "1.0", b"GET /1 HTTP/1.0\r\n\r\n"),
    "get-1.0-kept": ("GET", "1.0", b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    "head": ("HEAD", "1.1", b"HEAD /1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "post": ("POST", "1.1", b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz"),
    "post-chunked": (
        *("POST", "1.1"),
        b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n",
    ),
}


class Hostile:
    """The script of a server: ``/1`` gets what ``say`` was told, everything else a sound answer."""

    def __init__(self) -> None:
        self.say([], "")

    def say(self, pieces: list[bytes], then: str) -> None:
        """Begin anew, with this answer."""
        self.pieces = pieces
        self.then = then
        #: Set once all of it is out.
        self.said = Event()
        #: On which connection which target came.
        self.asked: list[tuple[int, bytes]] = []

    def __call__(self, server: Any, sock: socket.socket, number: int) -> None:
        for request in requests_on(sock):
            self.asked.append((number, request.target))
            if request.target != b"/1":
                sock.sendall(SECOND)
                continue
            try:
                for piece in self.pieces:
                    sock.sendall(piece)
                    gevent.sleep(0)  # the proxy looks at each by itself
            finally:
                self.said.set()
            if self.then == "reset":
                reset(sock)
            if self.then:
                return


def requests_on(sock: socket.socket) -> Iterator[Message]:
    """Go through the requests that come on a connection."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
        while found := take_request(data):
            request, data = found
            yield request


class Heard:
    """What a client heard of its request, and of a second one behind it."""

    def __init__(self, proxy: Any, request: bytes, method: str, said: Event) -> None:
        #: All that came for the first.
        self.raw = b""
        #: Whether the connection was reset.
        self.was_reset = False
        #: Whether a second request was made on the same connection.
        self.went_on = False
        with socket.create_connection(proxy.address, PATIENCE) as sock:
            sock.sendall(request)
            ended = self._read(sock, method)
            assert said.wait(PATIENCE)
            finals, rest = take_finals(self.raw, [method], ended=ended and not self.was_reset)
            self.answer = finals[0] if finals else None
            assert not rest or not finals
            by_h11 = finals_by_h11(self.raw, [method], ended=ended and not self.was_reset)
            assert by_h11 == [(final.status, final.body) for final in finals]
            if ended:
                assert finals or self.was_reset or self.raw, "closed without a word"
            else:
                assert self.answer is not None
                assert b"close" not in self.answer.all(b"connection")
                self.went_on = True
                self.second = second(sock)
        if not self.went_on:
            with socket.create_connection(proxy.address, PATIENCE) as sock:
                self.second = second(sock)

    def _read(self, sock: socket.socket, method: str) -> bool:
        """Read the answer; True if the connection ended with it."""
        try:
            while True:
                finals, _ = take_finals(self.raw, [method], ended=False)
                if finals and b"close" not in finals[0].all(b"connection"):
                    return False
                piece = sock.recv(65536)
                if not piece:
                    return True
                self.raw += piece
        except ConnectionResetError:
            self.was_reset = True
            return True


def second(sock: socket.socket) -> bytes:
    """Ask once more, and return all that comes."""
    sock.sendall(ASK_SECOND)
    return read_all(sock)


def check_second(heard: Heard) -> None:
    """Check that the second request got its own answer, and that only."""
    finals, rest = take_finals(heard.second, ["GET"], ended=True)
    assert (finals[0].status, finals[0].body, rest) == (200, b"second", b"")
    assert heard.second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert finals[0].all(b"x-second") == [b"yes"]


def check_fields(heard: Heard, version: str) -> None:
    """Check what goes for every answer that came whole."""
    answer = heard.answer
    names = {name.decode().lower() for name, _ in answer.fields}
    assert not names & OF_THE_HOP
    assert b"".join(answer.all(b"connection")) in (b"", b"close", b"keep-alive")
    assert len(answer.all(b"date")) == 1
    if version == "1.0":
        assert answer.framing != "chunked"
        assert not re.search(rb"HTTP/1\.1 1\d\d ", heard.raw)
        assert heard.went_on is (answer.all(b"connection") == [b"keep-alive"])
    assert not re.search(rb"HTTP/1\.1 (100|101) ", heard.raw), "nobody waited for it"
    for line in (b"X-One:", b"Keep-Alive:", b"Upgrade:"):
        assert line not in heard.raw, "of an interim answer"


def check(server: Any, hostile: Hostile, heard: Heard, answer: Answer, version: str, *, at_once: bool) -> None:
    """Check what a client heard of an answer."""
    found = heard.answer
    lost = answer.then == "reset" and found is not None and found.status == 502  # the reset overtook it
    if answer.whole and answer.status is not None and not lost:
        assert found is not None
        assert (found.status, found.body) == (answer.status, answer.body)
    elif found is not None:
        assert found.status == 502
        assert b"HTTP/1.1 200" not in heard.raw
    else:
        assert answer.then or not at_once, "there was time to say 502"
        assert answer.status is not None, "there was no head to pass on"
        head = heard.raw.partition(b"\r\n\r\n")[0].lower()
        shows = b"\r\ncontent-length:" in head or b"\r\ntransfer-encoding:" in head
        assert heard.was_reset is not shows, "the end must be seen to be none, and what came not be destroyed"
        assert answer.body.startswith(body_so_far(heard.raw))
    if found is not None:
        check_fields(heard, version)
    check_second(heard)
    (first, _), *_, (last, target) = hostile.asked
    assert [each for _, each in hostile.asked] == [b"/1", b"/2"], "each was asked for once"
    assert target == b"/2"
    assert (first == last) is (answer.reusable and answer.status is not None)


@pytest.fixture
def before(serve):
    """Start a proxy before a server that follows a script: ``before(script)`` gives both."""
    stack = []

    def start(script, kind=Recorded, **options):
        manager = scripted(script)
        server = manager.__enter__()
        gateway = gateway_to(server.url, health=PATIENT, **options)
        stack.append((manager, gateway))
        return serve(kind, gateway=gateway), server

    yield start
    for manager, gateway in stack:
        for upstream in gateway.upstreams.values():
            upstream.close()
            assert all(not each.used for each in upstream.all), "a request was not counted out"
        manager.__exit__(None, None, None)


def in_pieces(data: bytes) -> list[bytes]:
    """Return the bytes one by one if they are few; else in some pieces."""
    step = 1 if len(data) < 200 else len(data) // 50
    return [data[place : place + step] for place in range(0, len(data), step)]


@pytest.mark.parametrize("answer", [*CORPUS.values(), *HOSTILE.values()], ids=[*CORPUS, *HOSTILE])
def test_every_answer(before, answer):
    hostile = Hostile()
    proxy, server = before(hostile)
    for method, version, request in CLIENTS.values():
        if answer.method and answer.method != method:
            continue
        due = to_head(answer) if method == "HEAD" else answer
        for pieces in ([answer.data], in_pieces(answer.data)):
            hostile.say(pieces, answer.then)
            heard = Heard(proxy, request, method, hostile.said)
            check(server, hostile, heard, due, version, at_once=len(pieces) == 1)
            proxy.gateway.upstreams["site"].drop_idle()
    assert proxy.statistics().errors == 0


class Meddler(Recorded):
    """Looks at everything, and would like to frame the answers itself."""

    def edit_response(self, relay, status, headers):
        for name, value in ("Content-Length", "7"), ("Transfer-Encoding", "chunked"), ("Connection", "close"):
            headers.set(name, value)
        headers.set("X-Edited", "yes")

    def watch_response_body(self, relay, piece):
        assert b"evil" not in piece


@pytest.mark.parametrize("answer", [*CORPUS.values(), *HOSTILE.values()], ids=[*CORPUS, *HOSTILE])
def test_every_answer_watched_and_edited(before, answer):
    hostile = Hostile()
    proxy, server = before(hostile, Meddler)
    for name in ("get", "get-1.0", "post-chunked"):
        method, version, request = CLIENTS[name]
        if answer.method and answer.method != method:
            continue
        for pieces in ([answer.data], in_pieces(answer.data)):
            hostile.say(pieces, answer.then)
            heard = Heard(proxy, request, method, hostile.said)
            check(server, hostile, heard, answer, version, at_once=len(pieces) == 1)
            if heard.answer is not None and heard.answer.status != 502:
                assert heard.answer.all(b"x-edited") == [b"yes"]
            proxy.gateway.upstreams["site"].drop_idle()
    assert proxy.statistics().errors == 0


# -- answers at the wrong time


ASK = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"


def heard_of(proxy, request, method="GET", said=None):
    if said is None:
        said = Event()
        said.set()
    heard = Heard(proxy, request, method, said)
    check_second(heard)
    return heard


@pytest.mark.parametrize("extra", [SECOND.replace(b"second", b"poison"), b"\r\n", b"H", b"\x00"])
def test_an_answer_that_nobody_asked_for(before, extra):
    """On an idle connection: it is not used again."""
    said, asked = Event(), []

    def script(server, sock, number):
        for request in requests_on(sock):
            asked.append((number, request.target))
            sock.sendall(SECOND)
            if request.target == b"/1":
                wait_until(lambda: proxy.gateway.upstreams["site"].all[0].status("").idle)
                sock.sendall(extra)
                said.set()

    proxy, _ = before(script)
    heard = heard_of(proxy, ASK, said=said)
    assert heard.went_on
    assert asked == [(1, b"/1"), (2, b"/2")]


@pytest.mark.parametrize("twice", [False, True])
def test_a_server_that_speaks_first(before, twice):
    """What comes on a fresh connection is taken for its one request's; the real answer is nobody's then."""
    said = Event()

    def script(server, sock, number):
        if number == 1:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly" * (1 + twice))
        for _request in requests_on(sock):
            sock.sendall(SECOND)
            said.set()

    proxy, _ = before(script)
    heard = heard_of(proxy, ASK, said=said)
    assert heard.answer.body in (b"early", b"second")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:-1]])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_kept_connection_that_ends_in_an_answer(before, method, said):
    """The one free try is for a request that may be repeated, and of which nothing was heard."""
    asked = []

    def script(server, sock, number):
        for request in requests_on(sock):
            asked.append((request.method, request.target, number))
            if request.target == b"/1" and number == 1:
                sock.sendall(said)
                return
            sock.sendall(SECOND)

    proxy, _ = before(script)
    with socket.create_connection(proxy.address, PATIENCE) as sock:
        assert second(sock).endswith(b"second")
    heard = heard_of(proxy, ASK.replace(b"GET", method.encode()), method)
    again = method == "GET" and not said
    assert asked[1:-1] == [(method, b"/1", 1)] + [(method, b"/1", 2)] * again
    if said == OK[:-1]:
        assert heard.raw.endswith(b"\r\n\r\no")
        assert heard.answer is None
    else:
        assert heard.answer.status == (200 if again else 502)


UPLOADS = {
    "length": (b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n", b"x" * 400_000),
    "chunked": (
        b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\nxxxxx\r\n" * 1000 + b"0\r\n\r\n",
    ),
}


@pytest.mark.parametrize("upload", UPLOADS.values(), ids=UPLOADS)
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nabc", 413),
        (LENGTH + b"\r\nabc", 200),
        (LENGTH + b"\r\nabc" + SECOND, 200),
        (CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n", 200),
        (CHUNKED + b"\r\nzz\r\n", 502),
        (b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 502),
        (LENGTH + b"Content-Length: 4\r\n\r\nabc", 502),
        (b"nonsense\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", 502),
    ],
)
def test_an_answer_before_the_request_is_complete(before, upload, answer, status):
    asked = []

    def script(server, sock, number):
        target = server.head(sock).split()[1]
        asked.append((number, target))
        sock.sendall(answer if target == b"/1" else SECOND)
        while sock.recv(65536):
            pass

    proxy, _ = before(script)
    head, body = upload
    with socket.create_connection(proxy.address, PATIENCE) as sock:
        sock.sendall(head + body[:10])
        raw = sock.recv(65536)  # before the rest is sent
        try:
            sock.sendall(body[10:] + ASK_SECOND)
            raw += read_all(sock)
        except ConnectionError:
            pass  # closed: there is more of the body than is worth dropping
    finals, rest = take_finals(raw, ["POST", "GET"], ended=False)
    assert finals[0].status == status
    assert [final.body for final in finals[1:]] == ([] if body is UPLOADS["length"][1] else [b"second"])
    assert not rest
    places = {target: number for number, target in asked}
    assert places[b"/1"] == 1
    assert places.get(b"/2", 2) == 2, "the first one was in the middle of a request"
    assert len(asked) <= 2
    wait_until(lambda: not proxy.statistics().active)
    assert proxy.statistics().errors == 0


@pytest.mark.parametrize("extra", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_long_body(before, extra, missing):
    """One that is moved in the kernel: what is behind it is not its own, and what is missing is missed."""
    size = 600_000
    said, asked = Event(), []

    def script(server, sock, number):
        for request in requests_on(sock):
            asked.append(number)
            if request.target == b"/2":
                sock.sendall(SECOND)
                continue
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
            said.set()
            sock.sendall(b"x" * (size - missing))
            if missing:
                return
            sock.sendall(extra)

    if missing and extra:
        extra = b""
    proxy, _ = before(script)
    with socket.create_connection(proxy.address, PATIENCE) as sock:
        sock.sendall(ASK)
        raw = b""
        while len(raw.partition(b"\r\n\r\n")[2]) < size and (piece := sock.recv(1 << 20)):
            raw += piece
        assert raw.endswith(b"\r\n\r\n" + b"x" * (size - missing))
        assert b"Content-Length: %d\r\n" % size in raw
        if not missing:
            wait_until(lambda: not proxy.gateway.upstreams["site"].all[0].used)
            assert second(sock).endswith(b"second")
            assert asked == ([1, 2] if extra else [1, 1])


@pytest.mark.parametrize(("status", "timeout"), [(504, 0.1), (502, 10.0)])
def test_answers_1xx_without_end(before, status, timeout):
    sent = []

    def script(server, sock, number):
        for request in requests_on(sock):
            if request.target == b"/2":
                sock.sendall(SECOND)
                continue
            while True:
                sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                sent.append(1)
                gevent.sleep(timeout / 3 if status == 504 else 0)

    proxy, _ = before(script, timeouts=ProxyTimeouts(upstream_head=timeout))
    heard = heard_of(proxy, ASK)
    assert heard.answer.status == status
    assert heard.raw.count(b"HTTP/1.1 103 ") <= 10


# -- other protocols

UPGRADE = b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"


@pytest.mark.parametrize(
    ("offered", "fields"),
    [
        (b"websocket", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),
        (b"websocket", b"Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n"),
        (b"websocket", b"Upgrade: web\r\nConnection: Upgrade\r\n"),
        (b"websocket", b"Upgrade:\r\nConnection: Upgrade\r\n"),
        (b"websocket", b"Connection: Upgrade\r\n"),
        (b"websocket", b""),
        (b"h2c", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),  # was not passed on
        (b"h2c, websocket", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),
        (b"TLS/1.2", b"Upgrade: TLS/1.2\r\nConnection: Upgrade\r\n"),
    ],
)
def test_a_switch_to_what_was_not_offered(before, offered, fields):
    """RFC 9110 section 7.8: a server must not. What would follow is nothing that anybody looks at."""

    def script(server, sock, number):
        for request in requests_on(sock):
            if request.target == b"/2":
                sock.sendall(SECOND)
            else:
                sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\nraw")

    proxy, _ = before(script)
    heard = heard_of(proxy, UPGRADE % offered)
    assert heard.answer.status == 502
    assert proxy.failures == {"bad-response": 1}
    assert proxy.tunnels == 0


@pytest.mark.parametrize(
    ("offered", "taken"),
    [(b"websocket", b"websocket"), (b"websocket", b"WebSocket"), (b"a/1, b, c", b"b"), (b"h2c, a, b", b"b, a")],
)
def test_a_switch_to_what_was_offered(before, offered, taken):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Odd\r\nConnection: Upgrade, X\r\nX: y\r\nContent-Length: 3\r\n")
        sock.sendall(b"Keep-Alive: x\r\nUpgrade: " + taken + b"\r\n\r\nraw")
        assert not sock.recv(1)

    proxy, _ = before(script)
    with socket.create_connection(proxy.address, PATIENCE) as sock:
        sock.sendall(UPGRADE % offered)
        raw = b""
        while not raw.endswith(b"raw"):
            raw += sock.recv(65536)
        sock.shutdown(socket.SHUT_WR)
        raw += read_all(sock)
    head = b"HTTP/1.1 101 Odd\r\nConnection: Upgrade\r\nUpgrade: " + taken + b"\r\n\r\nraw"
    assert raw == head
    assert proxy.tunnels == 1


def test_no_switch_for_1_0(before):
    """Nor for a request with a body: their Upgrade is not passed on."""

    def script(server, sock, number):
        for request in requests_on(sock):
            assert not request.all(b"upgrade")
            if request.target == b"/2":
                sock.sendall(SECOND)
            else:
                sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nraw")

    proxy, _ = before(script)
    for request in (
        UPGRADE.replace(b"1.1", b"1.0") % b"x",
        (UPGRADE % b"x").replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"),
    ):
        assert heard_of(proxy, request, request.split()[0].decode()).answer.status == 502
    assert proxy.tunnels == 0


# -- fields


def test_what_comes_through_of_the_fields(before):
    def script(server, sock, number):
        for request in requests_on(sock):
            sock.sendall(HOSTILE["cookies"].data if request.target == b"/1" else SECOND)

    proxy, _ = before(script)
    heard = heard_of(proxy, ASK)
    assert heard.answer.all(b"set-cookie") == [b"a=b; Path=/", b"c=d", b"a=b"]


@pytest.mark.parametrize(("te", "passed"), [(b"", False), (b"Connection: TE\r\nTE: trailers\r\n", True)])
def test_trailers_come_to_who_asked_for_them(before, te, passed):
    trailers = b"X-One: 1\r\nConnection: X-Two\r\nX-Two: 2\r\nKeep-Alive: x\r\nUpgrade: h2c\r\nX-Three: 3\r\n"

    def script(server, sock, number):
        for request in requests_on(sock):
            sock.sendall(CHUNKED + b"\r\n3\r\nabc\r\n0\r\n" + trailers + b"\r\n" if request.target == b"/1" else SECOND)

    proxy, _ = before(script)
    heard = heard_of(proxy, ASK[:-2] + te + b"\r\n")
    assert heard.answer.trailers == ([(b"X-One", b"1"), (b"X-Three", b"3")] if passed else [])
    assert heard.went_on
