"""Plain heads: what is taken without the lexer is what the lexer would have taken; the memory is bounded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import PATIENCE
from http_messages import answering, cases, play
from hypothesis import given, settings
from hypothesis import strategies as st

from greensock.http import Limits, RequestParser, ResponseParser
from greensock.http.wire.plain_heads import (
    MAX_LINE,
    MAX_LINES,
    _known,
    lex_plain_fields,
    plain_methods,
    read_plain_head,
)
from greensock.http.wire.scan import cut_request, plain_target


class LexedRequests(RequestParser):
    """A parser that has every head lexed."""

    __slots__ = ()

    def _lex_plain(self, head):
        return None


class LexedResponses(ResponseParser):
    __slots__ = ()

    def _lex_plain(self, head):
        return None


#: Of each property; the suite has twice as many, as it runs over both engines.
EXAMPLES = 700

BROWSER = (
    b"GET /a?b=c HTTP/1.1\r\nHost: example.org\r\nUser-Agent: x/1.0 (y; z) \xe9\r\nAccept:*/*\r\nEmpty:\r\n"
    b"Cookie: a=b; c=d\r\nConnection: keep-alive\r\nX-Tab:\ta\tb\r\nContent-Length: 3\r\n\r\nabc"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 3\r\n"
    b"Connection: keep-alive\r\n\r\nabc"
)
SOURCES = {
    "requests": [BROWSER] * 20 + [data for _, data, _ in cases("requests") if len(data) < 600],
    "responses": [ANSWER] * 20 + [data for _, data, _ in cases("responses") if len(data) < 600],
}
PIECES = [b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\x7f", b"\x1f", b"\xff", b"#", b"%", b"HTTP/1.0"]
PIECES += [b"A: b\r\n", b" x\r\n", b"Host: b\r\n", b"Content-Length: 3\r\n", b"content-length:3\r\n"]
PIECES += [b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n"]


@st.composite
def heads(draw, kind):
    """One of the sources with a few pieces put in, or bytes taken out; most remain plain."""
    data = draw(st.sampled_from(SOURCES[kind]))
    for _ in range(draw(st.integers(0, 3))):
        lines = [place + 2 for place in range(len(data)) if data.startswith(b"\r\n", place)]
        place = draw(st.sampled_from(lines) if lines and draw(st.booleans()) else st.integers(0, len(data)))
        data = data[:place] + draw(st.sampled_from(PIECES)) + data[place + draw(st.integers(0, 2)) :]
    return data


@settings(deadline=None, max_examples=EXAMPLES)
@given(heads("requests"))
def test_a_request_is_what_the_lexer_says(data):
    assert play(RequestParser(), [data], eof=True) == play(LexedRequests(), [data], eof=True)


@settings(deadline=None, max_examples=EXAMPLES)
@given(heads("responses"), st.sampled_from(["GET", "HEAD", "CONNECT"]))
def test_an_answer_is_what_the_lexer_says(data, method):
    found = []
    for kind in ResponseParser, LexedResponses:
        parser = kind()
        parser.expect(method, upgrade=True)
        found.append((play(parser, [data], eof=True), parser.is_reusable))
    assert found[0] == found[1]


@pytest.mark.parametrize("byte", range(256))
def test_each_byte_in_each_place(byte):
    for template in (b"GE%bT / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"):
        data = template % bytes([byte])
        assert play(RequestParser(), [data]) == play(LexedRequests(), [data]), data
    for template in (b"A%b: b", b"A: %b", b"A: b%bc", b"A:%bc", b"A: c%b", b"%bA: c"):
        data = b"GET / HTTP/1.1\r\nHost: a\r\n" + template % bytes([byte]) + b"\r\n\r\n"
        assert play(RequestParser(), [data]) == play(LexedRequests(), [data]), data
        data = b"HTTP/1.1 200 OK\r\n" + template % bytes([byte]) + b"\r\nContent-Length: 0\r\n\r\n"
        pair = (play(answering(), [data]), play_lexed(data))
        assert pair[0] == pair[1], data


def play_lexed(data):
    parser = LexedResponses()
    parser.expect("GET")
    return play(parser, [data])


def test_most_requests_are_plain():
    parser = RequestParser()
    assert parser._lex_plain(BROWSER[: BROWSER.find(b"\r\n\r\n") + 4]) is not None
    for name in plain_methods:
        assert parser._lex_plain(name + b" / HTTP/1.1\r\nHost: a\r\n\r\n") is not None
    assert plain_target(b"/~me/%2f;p=1,2/@:!$&'()*+=?q/?")
    assert answering()._lex_plain(ANSWER.partition(b"\r\n\r\n")[0]) is not None


def test_limits_hold_for_plain_heads():
    given = {"max_fields": 2, "max_target": 10, "max_field": 30, "max_body": 2, "max_head": 100}
    for limits in [Limits(**{name: most}) for name, most in given.items()]:
        for data in BROWSER, b"GET /0123456789 HTTP/1.1\r\nHost: a\r\n\r\n":
            assert play(RequestParser(limits), [data]) == play(LexedRequests(limits), [data])


def test_the_memory_is_bounded():
    for number in range(2 * MAX_LINES + 10):
        assert lex_plain_fields([b"X-%d: y" % number]) == ([(b"X-%d" % number, b"y")], {b"x-%d" % number: b"y"}, True)
        assert len(_known) <= MAX_LINES
    lex_plain_fields([b"X: " + b"y" * MAX_LINE])
    assert max(map(len, _known)) <= MAX_LINE
    _known.clear()


def test_secrets_are_not_kept():
    lines = [b"Cookie: a=b", b"Set-Cookie: a=b", b"Authorization: Basic eA==", b"Proxy-Authorization: x"]
    lines += [b"X-Api-Key: x", b"X-Auth-Token: x", b"X-Secret: x", b"X-Password: x", b"broken"]
    _known.clear()
    assert lex_plain_fields(lines) is None
    assert not _known


#: Bytes whose last one is the last of a page, behind which nothing may be read: made of a real one's head and its tail.
AT_THE_EDGE = """
import ctypes, mmap, sys
from greensock.http.wire.plain_heads import read_plain_head
page = mmap.PAGESIZE
libc = ctypes.CDLL(None)
room = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
for data in (b"abc", b"GET / HTTP/1.1", b"GET / HTTP/1.1\\r", b"GET / HTTP/1.1\\r\\n", b"GET / HTTP/1.1\\r\\nA: b\\r"):
    size = sys.getsizeof(data)
    place = start + page - size
    ctypes.memmove(place, id(data), size)
    there = ctypes.cast(place, ctypes.py_object).value
    for end in range(-1, len(data) + 1):
        read_plain_head(there, end, 100)
    del there
"""


def test_nothing_is_read_behind_a_head():
    """Three bytes without an end are asked for, too: what ends before their first (HTTPServer.connection_recv)."""
    subprocess.run([sys.executable, "-c", AT_THE_EDGE], check=True, timeout=PATIENCE)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                b"GET",
                b"PUT",
                b" ",
                b"/",
                b"/a?b",
                b" HTTP/1.1",
                b"HTTP/1.0",
                b"\r\n",
                b"\r",
                b"\n",
                b"A: b",
                b"",
                b"\xff",
            ]
        ),
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_a_head_is_cut_as_it_is_written(pieces, max_target):
    """What is compiled cuts heads in C."""
    data = b"".join(pieces)
    for end in range(len(data) + 1):
        cut = cut_request(data, end, max_target)
        fields = lex_plain_fields(cut[2]) if cut is not None and cut[0] in plain_methods else None
        expected = None if fields is None else (plain_methods[cut[0]], cut[1], *fields)
        assert read_plain_head(data, end, max_target) == expected
