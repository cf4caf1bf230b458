"""Requests as the program sees them: targets, bodies that stream, 100 and 103, a sender's rate. No sockets, no time."""

from __future__ import annotations

import pytest

from greensock import OperationTimeout
from greensock.http import BadRequest, Headers, Limits, Reason, Request, RequestBody, RequestParser
from greensock.http.server import request as request_module


class Peer:
    """In the place of a connection: gives the pieces of a body one by one, each after some seconds; then the end."""

    address = ("192.0.2.1", 1234)

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.sent = []
        self.now = 0.0

    def recv(self, max_bytes=None, timeout=None):
        seconds, piece = self.pieces.pop(0) if self.pieces else (0.0, b"")
        if timeout is not None and seconds > timeout:
            self.now += timeout
            self.pieces.insert(0, (seconds - timeout, piece))
            raise OperationTimeout(f"nothing came for {timeout} s", self, "recv", timeout)
        self.now += seconds
        return piece

    tls = None

    def send(self, data):
        self.sent.append(data)


@pytest.fixture
def take(monkeypatch):
    """Make a request of the bytes that came at once and of those that come later (all at once, or after seconds)."""

    def make(head, *pieces, timeout=60.0, min_rate=256, limits=None):
        peer = Peer(*(piece if isinstance(piece, tuple) else (0.0, piece) for piece in pieces))
        monkeypatch.setattr(request_module, "monotonic", lambda: peer.now)
        parser = RequestParser(limits or Limits())
        parser.feed(head.replace("\n", "\r\n").encode())
        event = parser.next_event()
        body = RequestBody(peer, parser, event, timeout, min_rate) if event.has_body else request_module.NO_BODY
        return Request(peer, event, body), peer

    return make


SIZED = "POST / HTTP/1.1\nHost: a\nContent-Length: %d\n\n"
CHUNKED = "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n"
AWAITED = "POST / HTTP/1.1\nHost: a\nExpect: 100-continue\nContent-Length: 3\n\n"

# -- the head


@pytest.mark.parametrize(
    ("target", "raw_path", "path", "query"),
    [
        ("/", b"/", "/", ""),
        ("/a%20b/%C3%A9?x=%20&y=?", b"/a%20b/%C3%A9", "/a b/é", "x=%20&y=?"),
        ("/%ff", b"/%ff", "/�", ""),
        ("//a/../b", b"//a/../b", "//a/../b", ""),
        ("/?/", b"/", "/", "/"),
        ("http://a/b?c", b"/b", "/b", "c"),
        ("http://a", b"/", "/", ""),
        ("http://a?x=/b", b"/", "/", "x=/b"),
        ("HTTPS://a:443/", b"/", "/", ""),
    ],
)
def test_targets(take, target, raw_path, path, query):
    host = "a:443" if target.startswith("HTTPS") else "a"
    request, _ = take(f"GET {target} HTTP/1.1\nHost: {host}\n\n")
    assert (request.raw_path, request.path, request.query) == (raw_path, path, query)
    assert request.target == target.encode()
    assert request.host == host


@pytest.mark.parametrize(("head", "raw_path"), [("OPTIONS *", b"*"), ("CONNECT a:80", b"")])
def test_targets_that_are_no_paths(take, head, raw_path):
    request, _ = take(f"{head} HTTP/1.1\nHost: a:80\n\n")
    assert (request.raw_path, request.query) == (raw_path, "")


def test_what_a_request_tells(take):
    request, _ = take("GET /x HTTP/1.0\nX-Y: 1\nx-y: 2\n\n")
    assert (request.method, request.version, request.scheme, request.host) == ("GET", "1.0", "http", "")
    assert request.headers.get_all("x-Y") == ["1", "2"]
    assert request.client_address == ("192.0.2.1", 1234)
    assert request.trailers is None
    assert repr(request) == "<Request GET b'/x' from ('192.0.2.1', 1234)>"
    request.user = "me"  # attributes of the program's own
    assert request.body.read_all() == b""
    assert request.body.is_ended


# -- bodies


def test_no_more_than_was_asked_for_and_all_of_it(take):
    request, _ = take(SIZED % 10 + "01", b"2345678", b"9")
    assert request.body.read(1) == b"0"
    assert request.body.read(3) == b"1"
    assert request.body.read(3) == b"234"
    assert not request.body.is_ended
    assert request.body.received == 9
    assert b"".join(request.body) == b"56789"
    assert request.body.is_ended
    assert request.body.read() == b""


def test_pieces_as_they_came_behind_what_was_read_of_one(take):
    request, _ = take(SIZED % 10 + "01", b"2345678", b"9")
    assert request.body.read(1) == b"0"
    assert [bytes(piece) for piece in iter(request.body.next_piece, b"")] == [b"1", b"2345678", b"9"]
    assert request.body.is_ended


def test_a_body_that_has_begun_is_not_awaited(take):
    request, peer = take(AWAITED + "a", b"bc")
    assert request.body.is_awaited
    assert request.body.read() == b"a"
    assert not request.body.is_awaited
    request.body.invite()
    assert request.body.read() == b"bc"
    assert not peer.sent
    with pytest.raises(ValueError, match="max_bytes=0"):
        request.body.read(0)


def test_chunks_and_trailers(take):
    request, _ = take(CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\nX: y\r\n", b"\r\n")
    assert request.trailers is None
    assert request.body.read_all() == b"abcde"
    assert request.trailers == Headers([("X", "y")])


@pytest.mark.parametrize(("most", "fits"), [(0, False), (2, False), (3, True), (4, True)])
@pytest.mark.parametrize("head", [SIZED % 3, CHUNKED])
def test_read_all_is_bounded(take, head, most, fits):
    request, peer = take(head, b"abc" if head != CHUNKED else b"3\r\nabc\r\n0\r\n\r\n")
    if fits:
        assert request.body.read_all(most) == b"abc"
        return
    with pytest.raises(BadRequest) as refused:
        request.body.read_all(most)
    assert (refused.value.status, refused.value.connection) == (413, peer)
    assert bool(peer.pieces) == (head != CHUNKED), "nothing is read of a body that says that it is too long"


def test_read_all_counts_only_what_is_left(take):
    request, _ = take(SIZED % 6 + "abcd", b"ef")
    assert request.body.read(3) == b"abc"
    assert request.body.read_all(3) == b"def"


@pytest.mark.parametrize(
    ("head", "pieces", "reason"),
    [
        (SIZED % 3, [b"ab"], Reason.INCOMPLETE),
        (CHUNKED, [b"3\r\nabc"], Reason.INCOMPLETE),
        (CHUNKED, [b"Z\r\n"], Reason.CHUNK_SIZE),
    ],
)
def test_a_body_that_breaks(take, head, pieces, reason):
    request, peer = take(head, *pieces)
    for _ in range(2):  # and stays broken
        with pytest.raises(BadRequest) as refused:
            request.body.read_all()
        assert (refused.value.reason, refused.value.connection) == (reason, peer)
    assert request.body.is_broken
    assert not request.body.is_ended


def test_a_body_over_the_limit_of_the_parser(take):
    request, _ = take(CHUNKED, b"5\r\nabcde\r\n", limits=Limits(max_body=4))
    with pytest.raises(BadRequest) as refused:
        request.body.read()
    assert refused.value.status == 413


# -- 100 Continue


def test_100_goes_out_once_when_the_body_is_first_read(take):
    request, peer = take(AWAITED, b"a", b"bc")
    assert request.body.is_awaited
    assert not peer.sent
    assert request.body.read() == b"a"
    assert not request.body.is_awaited
    assert request.body.read_all() == b"bc"
    assert peer.sent == [b"HTTP/1.1 100 Continue\r\n\r\n"]


@pytest.mark.parametrize("came", ["a", "abc"])
def test_no_100_if_the_body_has_come(take, came):
    request, peer = take(AWAITED + came, b"abc"[len(came) :])
    assert request.body.read_all() == b"abc"
    assert peer.sent == []


def test_no_100_if_half_a_chunk_size_has_come(take):
    head = "POST / HTTP/1.1\nHost: a\nExpect: 100-continue\nTransfer-Encoding: chunked\n\n3"
    request, peer = take(head, b"\r\nabc\r\n0\r\n\r\n")
    assert request.body.read_all() == b"abc"
    assert peer.sent == []


def test_no_100_to_1_0_nor_for_a_body_that_is_too_long_nor_after_the_answer(take):
    request, peer = take(AWAITED.replace("1.1", "1.0"), b"abc")
    assert request.body.read_all() == b"abc"
    request, other = take(AWAITED, b"abc")
    with pytest.raises(BadRequest):
        request.body.read_all(2)
    request, third = take(AWAITED, b"abc")
    request.body.stop_awaiting()
    assert request.body.read_all() == b"abc"
    assert peer.sent == other.sent == third.sent == []


# -- interim answers


def test_interim_answers(take):
    request, peer = take("GET / HTTP/1.1\nHost: a\n\n")
    assert request.send_interim(103, {"Link": "</a.css>; rel=preload"})
    assert request.send_interim(103, [("Link", "</b.css>; rel=preload")])
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </%b.css>; rel=preload\r\n\r\n"
    assert peer.sent == [hint % b"a", hint % b"b"]
    for status in (99, 101, 200):
        with pytest.raises(ValueError, match="102 to 199"):
            request.send_interim(status)
    with pytest.raises(ValueError, match="control character"):
        request.send_interim(103, {"Link": "a\r\n\r\nHTTP/1.1 200 OK"})
    request.is_answered = True
    with pytest.raises(RuntimeError, match="after the final one"):
        request.send_interim(103)
    assert len(peer.sent) == 2


def test_1_0_gets_no_interim_answer(take):
    request, peer = take("GET / HTTP/1.0\n\n")
    assert not request.send_interim(103)
    assert not peer.sent


def test_100_by_the_program_is_not_sent_again(take):
    request, peer = take(AWAITED, b"abc")
    assert request.send_interim(100)
    assert request.body.read_all() == b"abc"
    assert peer.sent == [b"HTTP/1.1 100 Continue\r\n\r\n"]


# -- time


def test_a_body_may_pause_but_not_for_long(take):
    request, _ = take(SIZED % 90000 + "x" * 50000, (59.9, b"x" * 30000), (60.1, b"x" * 10000))
    assert len(request.body.read()) == 50000
    assert len(request.body.read()) == 30000
    with pytest.raises(OperationTimeout, match=r"60\.0 s"):
        request.body.read()
    assert len(request.body.read()) == 10000, "the program may go on all the same"


@pytest.mark.parametrize(("rate", "passes"), [(257, True), (256, True), (255, False)])
def test_a_body_must_come_at_a_rate(take, rate, passes):
    """A body of two minutes, a piece every second, with the 10 s of grace used up at the beginning."""
    request, _ = take(SIZED % (121 * rate), (11.0, b"x" * rate), *[(1.0, b"x" * rate)] * 120)
    if passes:
        assert len(request.body.read_all()) == 121 * rate
        return
    with pytest.raises(OperationTimeout, match="less than 256 bytes a second"):
        request.body.read_all()


def test_a_fast_beginning_does_not_pay_for_an_endless_end(take):
    request, peer = take(SIZED % 10_000_000, b"x" * 9_000_000, *[(5.0, b"x")] * 1000)
    with pytest.raises(OperationTimeout):
        request.body.read_all(10_000_000)
    assert 60 <= peer.now <= 70


def test_a_slow_program_is_not_held_against_the_sender(take):
    request, peer = take(SIZED % 100, *[(0.5, b"x")] * 100, min_rate=2)
    while request.body.read():
        peer.now += 1000.0
    assert request.body.is_ended


def test_no_rate(take):
    request, _ = take(SIZED % 20, *[(59.0, b"x")] * 20, min_rate=0)
    assert len(request.body.read_all()) == 20


# -- what is not read


@pytest.mark.parametrize(("most", "dropped"), [(0, False), (99, False), (100, True), (101, True)])
def test_a_bounded_rest_is_dropped(take, most, dropped):
    request, _ = take(SIZED % 100 + "x" * 50, *[b"x"] * 50)
    assert request.body.discard(most, 1.0) is dropped


def test_what_was_read_by_half_is_dropped_too(take):
    request, _ = take(SIZED % 100 + "x" * 100)
    assert request.body.read(10) == b"x" * 10
    assert request.body.discard(0, 1.0)
    assert request.body.is_ended


def test_a_rest_that_takes_too_long_is_not_waited_for(take):
    request, peer = take(SIZED % 100, *[(0.4, b"x")] * 100)
    assert not request.body.discard(1000, 1.0)
    assert peer.now == pytest.approx(1.0)


# -- what the head and the body say, taken apart


def test_the_fields_of_the_query(take):
    request, _ = take("GET /a?page=2&tag=x&tag=y&empty=&w=%C3%BC+%FF HTTP/1.1\nHost: a\n\n")
    found = request.query_fields
    assert dict(found) == {"page": "2", "tag": "x", "empty": "", "w": "ü \ufffd"}
    assert found.get_all("tag") == ["x", "y"]
    assert found.get("none", "default") == "default"
    assert len(found) == 4
    assert found.pairs[0] == ("page", "2")
    assert "none" not in found
    assert dict(take("GET /a HTTP/1.1\nHost: a\n\n")[0].query_fields) == {}


def test_a_query_of_too_many_fields(take):
    request, peer = take(f"GET /?{'&'.join('a' * 1000)} HTTP/1.1\nHost: a\n\n")
    assert len(request.query_fields.pairs) == 1000
    request, peer = take(f"GET /?{'&'.join('a' * 1001)} HTTP/1.1\nHost: a\n\n")
    with pytest.raises(BadRequest) as refused:
        request.query_fields  # noqa: B018
    assert (refused.value.status, refused.value.connection) == (400, peer)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("a=1; b=2", {"a": "1", "b": "2"}),
        ('a="quoted"; a=second', {"a": "quoted"}),
        ("a=b=c;;no pair; =x; d=", {"a": "b=c", "d": ""}),
        ('a="', {"a": '"'}),
    ],
)
def test_cookies(take, field, found):
    request, _ = take(f"GET / HTTP/1.1\nHost: a\nCookie: {field}\n\n")
    assert request.cookies == found


def test_no_cookies(take):
    assert take("GET / HTTP/1.1\nHost: a\n\n")[0].cookies == {}


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("GET /a%20b?c=d", "http://h.example:81/a%20b?c=d"),
        ("GET http://h.example:81/x", "http://h.example:81/x"),
        ("OPTIONS *", "http://h.example:81"),
    ],
)
def test_its_url(take, line, url):
    request, _ = take(f"{line} HTTP/1.1\nHost: h.example:81\n\n")
    assert request.url == url
    assert not request.is_secure


def test_a_body_as_json(take):
    head = "POST / HTTP/1.1\nHost: a\nContent-Length: {}\n\n"
    assert take(head.format(10), b'{"a": [1', b"]}")[0].json() == {"a": [1]}
    for body in (b"{", b"\xff", b"", b"[" * 100_000):
        request, peer = take(head.format(len(body)), body)
        with pytest.raises(BadRequest, match="no JSON") as refused:
            request.json()
        assert (refused.value.status, refused.value.reason, refused.value.connection) == (
            400,
            Reason.BODY_MALFORMED,
            peer,
        )
    request, _ = take(head.format(10), b'{"a": [1]}')
    with pytest.raises(BadRequest) as refused:
        request.json(max_bytes=9)
    assert refused.value.status == 413
