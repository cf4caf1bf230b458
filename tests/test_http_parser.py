"""The parsers: limits at their edges, memory, states; what a message means is in the corpus."""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref

import pytest
from http_messages import answering, play

from greensock import ProtocolError
from greensock.http import (
    END_OF_INPUT,
    NEED_DATA,
    SWITCHED,
    BadRequest,
    BadResponse,
    Data,
    EndOfMessage,
    Limits,
    Reason,
    RequestHead,
    RequestParser,
    ResponseHead,
    ResponseParser,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


def reason(parser, data):
    """Return why the bytes are refused, None if they are not; whole and byte by byte alike."""
    whole = play(parser(), [data])
    assert play(parser(), [data[place : place + 1] for place in range(len(data))]) == whole
    end = whole[1]
    return end["refused"] if isinstance(end, dict) else None


# -- limits


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_checked(field):
    least = 1 if field in ("max_target", "max_head") else 0
    for value in -1, least - 1, 1.5, "1", True, [] if field in ("max_body", "max_field") else None:
        with pytest.raises(ValueError, match=f"{field}=.*at least {least}"):
            Limits(**{field: value})
    assert getattr(Limits(**{field: least}), field) == least


@pytest.mark.parametrize("most", [1, 2, 8192])
def test_max_target(most):
    for size, refused in (most, None), (most + 1, "target-too-long"), (most + 1000, "target-too-long"):
        data = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * (size - 1))
        assert reason(lambda: RequestParser(Limits(max_target=most)), data) == refused, size


@pytest.mark.parametrize("most", [1, len(GET) - 1, len(GET), 1000])
def test_max_head(most):
    padding = max(0, most - len(GET))
    fits = GET if padding < 5 else GET[:-2] + b"X: " + b"a" * (padding - 5) + b"\r\n\r\n"
    parser = lambda: RequestParser(Limits(max_head=most))  # noqa: E731
    assert reason(parser, fits) == (None if len(fits) <= most else "head-too-large")
    assert (
        reason(parser, fits[:-4] + b"a\r\n\r\n" if padding else b"\r\n" + GET[:-4] + b"aa" * most) == "head-too-large"
    )
    assert reason(parser, b"\r\n" + fits) == (None if len(fits) <= most else "head-too-large"), "the empty line is free"


@pytest.mark.parametrize("most", [1, 30, 100])
def test_max_head_of_an_answer(most):
    head = b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n"
    for size in 30, 31, 100, 101:
        data = head % (b"a" * (size - len(head) + 2))
        assert reason(lambda: answering(limits=Limits(max_head=most)), data) == (
            None if size <= most else "head-too-large"
        )


@pytest.mark.parametrize("most", [0, 1, 2, 100])
def test_max_fields(most):
    parser = lambda: RequestParser(Limits(max_fields=most))  # noqa: E731
    for count in most, most + 1:
        data = b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * count + b"\r\n"
        assert reason(parser, data) == ("too-many-fields" if count > most else None)
        if most >= 2:
            data = CHUNKED + b"0\r\n" + b"X: y\r\n" * count + b"\r\n"
            assert reason(parser, data) == ("too-many-fields" if count > most else None)


@pytest.mark.parametrize("most", [12, 20, 100])
def test_max_field(most):
    parser = lambda: RequestParser(Limits(max_field=most))  # noqa: E731
    for size in most, most + 1:
        refused = "field-too-large" if size > most else None
        field = b"X-Long: " + b"y" * (size - 10) + b"\r\n"
        for line in b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"BREW / HTTP/1.1":
            assert reason(parser, line + b"\r\nHost: a\r\n" + field + b"\r\n") == refused, line


@pytest.mark.parametrize("most", [0, 1, 2, 300])
def test_max_body(most):
    parser = lambda: RequestParser(Limits(max_body=most))  # noqa: E731
    server = lambda: answering(limits=Limits(max_body=most))  # noqa: E731
    for size in most, most + 1:
        refused = "body-too-large" if size > most else None
        body = b"a" * size
        assert reason(parser, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body) == refused
        assert reason(parser, CHUNKED + b"1\r\na\r\n" * size + b"0\r\n\r\n") == refused
        if size:
            assert reason(parser, CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)) == refused
        assert reason(server, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body) == refused
        assert reason(server, b"HTTP/1.1 200 OK\r\n\r\n" + body) == refused
    assert BadRequest("", Reason.BODY_TOO_LARGE).status == 413
    assert reason(parser, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n") == "body-too-large", "at once"


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8192])
def test_max_trailers(most):
    parser = lambda: RequestParser(Limits(max_trailers=most))  # noqa: E731
    assert reason(parser, CHUNKED + b"0\r\n\r\n") is None
    for size in 7, 8, most, most + 1:
        if size >= 7:
            data = CHUNKED + b"0\r\nX:%b\r\n\r\n" % (b"a" * (size - 6))
            assert reason(parser, data) == ("trailers-too-large" if size > most else None)


@pytest.mark.parametrize("most", [0, 1, 2, 256])
def test_max_chunk_extension(most):
    parser = lambda: RequestParser(Limits(max_chunk_extension=most))  # noqa: E731
    for digits in b"3", b"0000000000000003":
        assert reason(parser, CHUNKED + digits + b"\r\nabc\r\n0\r\n\r\n") is None
        for size in 2, 3, most, most + 1:
            if size >= 2:
                data = CHUNKED + b"%b;%b\r\nabc\r\n0\r\n\r\n" % (digits, b"a" * (size - 1))
                assert reason(parser, data) == ("chunk-extensions-too-large" if size > most else None)


@pytest.mark.parametrize("most", [0, 1, 10])
def test_max_chunk_excess(most):
    """Each chunk of one byte here has an extension of three: two more bytes of nothing."""
    parser = lambda: RequestParser(Limits(max_chunk_excess=most))  # noqa: E731
    for count in range(9):
        data = CHUNKED + b"1;ab\r\nx\r\n" * count + b"0\r\n\r\n"
        assert reason(parser, data) == ("chunk-extensions-too-large" if 2 * count > most else None)
    assert reason(parser, CHUNKED + b"8;abcdefg\r\n12345678\r\n" * 9 + b"0\r\n\r\n") is None


@pytest.mark.parametrize("size", [1, 2, 255, 4095])
def test_short_chunks_that_are_there_make_one_event(size):
    parser = RequestParser()
    count = 16384 // size if size > 64 else 256
    parser.feed(CHUNKED + (b"%x\r\n%b\r\n" % (size, b"a" * size)) * count + b"1;ab\r\nb\r\n0\r\n\r\n")
    assert type(parser.next_event()) is RequestHead
    pieces = []
    while type(event := parser.next_event()) is Data:
        pieces.append(event.data)
    assert type(event) is EndOfMessage
    assert b"".join(pieces) == b"a" * size * count + b"b"
    assert len(pieces) <= 3


@pytest.mark.parametrize("most", [0, 1, 9, 10, 11])
def test_max_body_of_short_chunks(most):
    parser = lambda: RequestParser(Limits(max_body=most))  # noqa: E731
    data = CHUNKED + b"1\r\na\r\n" * 10 + b"0\r\n\r\n"
    assert reason(parser, data) == ("body-too-large" if most < 10 else None)


@pytest.mark.parametrize("most", [0, 1, 10])
def test_max_interim(most):
    for count in most, most + 1:
        data = b"HTTP/1.1 103 Early Hints\r\n\r\n" * count + OK
        assert reason(lambda: answering(limits=Limits(max_interim=most)), data) == (
            "too-many-interim" if count > most else None
        )


# -- memory and pace


def test_a_parser_never_runs_ahead():
    parser = RequestParser()
    parser.feed(GET * 3)
    assert isinstance(parser.next_event(), RequestHead)
    assert parser.pending == 2 * len(GET)
    assert isinstance(parser.next_event(), EndOfMessage)
    assert parser.pending == 2 * len(GET)
    assert parser.take_rest() == GET * 2
    assert parser.next_event() is NEED_DATA


def test_data_are_not_copied():
    parser = RequestParser()
    parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
    parser.next_event()
    whole = b"a" * 100_000
    parser.feed(whole)
    assert parser.next_event().data is whole
    parser.feed(whole + GET)
    rest = parser.next_event().data
    assert isinstance(rest, memoryview)
    assert rest.obj is not None
    assert len(rest) == 100_000
    assert isinstance(parser.next_event(), EndOfMessage)
    assert isinstance(parser.next_event(), RequestHead)


def test_what_was_taken_is_let_go():
    big = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000
    parser = RequestParser()
    before = sys.getrefcount(big)
    parser.feed(big + b"GET / HT")
    while parser.next_event() is not NEED_DATA:
        pass
    assert parser.pending == 8
    assert len(parser._inbox.data) == 8, "a short rest holds no long buffer"
    parser.feed(b"TP/1.1\r\nHost: a\r\n\r\n" + big)
    while parser.next_event() is not NEED_DATA:
        pass
    assert parser._inbox.data == b""
    parser = answering()
    parser.feed(OK)
    while parser.next_event() is not NEED_DATA:
        pass
    assert parser._inbox.data == b""
    assert sys.getrefcount(big) == before


@pytest.mark.parametrize(
    "data", [GET, CHUNKED + b"0\r\nX: y\r\n\r\n", b"GET\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"]
)
def test_parsers_are_no_garbage_of_cycles(data):
    """Or each connection would wait for the collector."""

    class Watched(RequestParser):
        __slots__ = ("__weakref__",)

    gc.disable()
    try:
        parser = Watched()
        play(parser, [data])
        watch = weakref.ref(parser)
        del parser
        assert watch() is None
    finally:
        gc.enable()


def test_other_kinds_of_bytes():
    for kind in bytearray, memoryview:
        parser = RequestParser()
        source = bytearray(GET)
        parser.feed(kind(source))
        source[:4] = b"XXXX"
        assert parser.next_event().method == "GET"


def test_feeding_nothing_changes_nothing():
    parser = RequestParser()
    for piece in GET[:5], b"", GET[5:], b"":
        parser.feed(piece)
    assert isinstance(parser.next_event(), RequestHead)


# -- errors


def test_a_refused_request_says_why():
    parser = RequestParser()
    parser.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(BadRequest, match="without Host") as caught:
        parser.next_event()
    assert isinstance(caught.value, ProtocolError)
    assert (caught.value.status, caught.value.reason) == (400, Reason.HOST_MISSING)
    assert caught.value.__cause__ is None
    parser.feed(GET)
    with pytest.raises(BadRequest, match="without Host") as again:
        parser.next_event()
    assert again.value.reason is Reason.HOST_MISSING
    assert caught.value.connection is None


def test_a_refused_answer_is_a_502():
    parser = answering()
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
    for call in parser.next_event, parser.next_event, lambda: parser.expect("GET"):
        with pytest.raises(BadResponse) as caught:
            call()
        assert (caught.value.status, caught.value.reason) == (502, Reason.CONTENT_LENGTH)
    assert not parser.is_reusable


# -- answers, one after the other


def test_the_exchange_of_a_reused_connection():
    parser = ResponseParser()
    assert parser.is_reusable
    assert parser.next_event() is NEED_DATA
    for method, answer, body in ("GET", OK, b"abc"), ("HEAD", OK[:-3], b""), ("PUT", OK, b"abc"):
        parser.expect(method)
        assert not parser.is_reusable
        parser.feed(answer)
        head = parser.next_event()
        assert isinstance(head, ResponseHead)
        assert head.content_length == 3
        if body:
            data = parser.next_event()
            assert isinstance(data, Data)
            assert data.data == body
        assert not parser.is_reusable
        assert isinstance(parser.next_event(), EndOfMessage)
        assert parser.is_reusable
    parser.feed_eof()
    assert not parser.is_reusable
    assert parser.next_event() is END_OF_INPUT


def test_what_recv_returned_is_fed_and_nothing_is_the_end():
    parser = RequestParser()
    parser.feed_or_end(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert parser.next_event() is NEED_DATA
    parser.feed_or_end(b"\r\n")
    assert isinstance(parser.next_event(), RequestHead)
    assert isinstance(parser.next_event(), EndOfMessage)
    parser.feed_or_end(b"")
    assert parser.next_event() is END_OF_INPUT


def test_bytes_before_the_request_poison_the_connection():
    parser = ResponseParser()
    parser.feed(OK)
    assert not parser.is_reusable
    with pytest.raises(BadResponse) as caught:
        parser.expect("GET")
    assert caught.value.reason is Reason.TRAILING_DATA


def test_expecting_at_the_wrong_time_is_the_programs_fault():
    parser = answering()
    with pytest.raises(RuntimeError, match="before the end"):
        parser.expect("GET")
    parser.feed(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    parser.next_event()
    parser.next_event()
    with pytest.raises(RuntimeError, match="the last that could come"):
        parser.expect("GET")


def test_what_follows_a_switch_is_raw():
    parser = answering(upgrade=True)
    parser.feed(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: y\r\n\r\nraw")
    assert parser.next_event().is_switch
    assert parser.next_event() is parser.next_event() is SWITCHED
    parser.feed(b" more")
    assert parser.take_rest() == b"raw more"
    assert parser.take_rest() == b""
    assert parser.pending == 0
    assert not parser.is_reusable


def test_an_upgrade_that_the_server_accepts():
    parser = RequestParser()
    parser.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: Y/1, z\r\n\r\nraw")
    assert parser.next_event().upgrade == [b"y/1", b"z"]
    assert isinstance(parser.next_event(), EndOfMessage)
    assert parser.take_rest() == b"raw"


def test_what_events_look_like():
    parser, server = RequestParser(), answering()
    parser.feed(CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\n\r\n")
    told = [repr(parser.next_event()) for _ in range(4)]
    assert told[0].startswith("<RequestHead POST b'/' 1.1 Headers([(b'Host', b'a')")
    assert told[1:] == ["<Data 3 bytes>", "<EndOfMessage Headers([(b'X', b'y')])>", "<Signal.NEED_DATA: 'need-data'>"]
    server.feed(OK)
    assert repr(server.next_event()).startswith("<ResponseHead 200 b'OK' 1.1 Headers([")
