"""What is written goes over the wire as said, and nothing in it splits a message."""

from __future__ import annotations

import pytest

from greensock.http import (
    Headers,
    format_date,
    phrase_of,
    write_chunk,
    write_last_chunk,
    write_request_head,
    write_response_head,
)

HOST = Headers([("Host", "a")])


def test_request_head():
    assert write_request_head("GET", b"/x?y", HOST) == b"GET /x?y HTTP/1.1\r\nHost: a\r\n\r\n"
    assert (
        write_request_head("POST", b"/", HOST, content_length=3)
        == b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
    )
    assert write_request_head("PUT", b"/", HOST, chunked=True).endswith(b"\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_response_head():
    headers = Headers([("X", "y"), ("Z", "")])
    assert write_response_head(200, headers) == b"HTTP/1.1 200 OK\r\nX: y\r\nZ: \r\n\r\n"
    assert write_response_head(404, Headers(), content_length=0) == (
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    )
    assert write_response_head(799, Headers()) == b"HTTP/1.1 799 \r\n\r\n"
    assert write_response_head(200, Headers(), phrase=b"Fine \xe9") == b"HTTP/1.1 200 Fine \xe9\r\n\r\n"
    assert write_response_head(100, Headers()) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert write_response_head(304, Headers(), content_length=3).endswith(b"\r\nContent-Length: 3\r\n\r\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, b""),
        ({"content_length": 3}, b"Content-Length: 3\r\n"),
        ({"chunked": True}, b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_framing_is_made_anew(arguments, line):
    copied = Headers([("content-length", "99"), ("Host", "a"), ("Transfer-encoding", "gzip"), ("CONTENT-LENGTH", "7")])
    assert write_request_head("POST", b"/", copied, **arguments) == b"POST / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n"
    assert write_response_head(200, copied, **arguments) == b"HTTP/1.1 200 OK\r\nHost: a\r\n" + line + b"\r\n"


def test_one_framing_at_most():
    for arguments in {"content_length": 3, "chunked": True}, {"content_length": -1}:
        with pytest.raises(ValueError, match="content_length"):
            write_response_head(200, HOST, **arguments)
        with pytest.raises(ValueError, match="content_length"):
            write_request_head("POST", b"/", HOST, **arguments)


@pytest.mark.parametrize("status", [100, 101, 199, 204])
def test_no_length_where_there_is_no_body(status):
    for arguments in {"content_length": 0}, {"chunked": True}:
        with pytest.raises(ValueError, match=str(status)):
            write_response_head(status, Headers(), **arguments)


@pytest.mark.parametrize("method", ["", "GET ", "GET /x HTTP/1.1\r\nX: y\r\n\r\nGET", "G\0", "GÉT", "名"])
def test_no_method_splits_the_message(method):
    with pytest.raises(ValueError, match="method"):
        write_request_head(method, b"/", HOST)


@pytest.mark.parametrize("target", [b"", b"/a b", b"/ HTTP/1.1\r\nX: y", b"/\r", b"/\0", b"/\xe9", b"/a#b", b"/\x7f"])
def test_no_target_splits_the_message(target):
    with pytest.raises(ValueError, match="target"):
        write_request_head("GET", target, HOST)


@pytest.mark.parametrize("headers", [Headers(), Headers([("Host", "a"), ("host", "b")])])
def test_exactly_one_host(headers):
    with pytest.raises(ValueError, match="Host"):
        write_request_head("GET", b"/", headers)


@pytest.mark.parametrize("status", [-1, 0, 99, 1000])
def test_a_status_has_three_digits(status):
    with pytest.raises(ValueError, match="100 to 999"):
        write_response_head(status, Headers())


@pytest.mark.parametrize("phrase", [b"a\r\nb", b"\n", b"\0", b"\x7f"])
def test_no_phrase_splits_the_message(phrase):
    with pytest.raises(ValueError, match="phrase"):
        write_response_head(200, Headers(), phrase=phrase)


def test_chunks():
    data = b"x" * 26
    assert write_chunk(data) == [b"1a\r\n", data, b"\r\n"]
    assert write_chunk(data)[1] is data
    assert b"".join(write_chunk(memoryview(b"abc"))) == b"3\r\nabc\r\n"
    assert write_chunk(b"") == [], "an empty chunk would end the body"


def test_the_last_chunk():
    assert write_last_chunk() == write_last_chunk(Headers()) == b"0\r\n\r\n"
    assert write_last_chunk(Headers([("X", "y")])) == b"0\r\nX: y\r\n\r\n"
    for name in "Host", "content-length", "Transfer-Encoding", "Trailer", "Connection":
        with pytest.raises(ValueError, match=name):
            write_last_chunk(Headers([(name, "1")]))


def test_date():
    assert format_date(784111777.9) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert format_date(0) == b"Thu, 01 Jan 1970 00:00:00 GMT"


def test_phrases():
    assert phrase_of(418) == b""
    assert phrase_of(413) == b"Content Too Large"
