"""What holds for any bytes: events or one typed error, however they are split; what is written is read back."""

from __future__ import annotations

import h11
import httptools
from http_messages import answering, cases, play, text
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from greensock.http import (
    Headers,
    Limits,
    Reason,
    RequestParser,
    ResponseParser,
    write_chunk,
    write_last_chunk,
    write_request_head,
    write_response_head,
)

#: Requests that h11 takes and we refuse, and why we may.
STRICTER = {
    Reason.UNKNOWN_METHOD: "h11 takes any token, of any length",
    Reason.TARGET: "h11 takes any visible characters: no fragment, no other scheme, and the form must suit the method",
    Reason.HOST_MALFORMED: "h11 does not look into Host",
    Reason.HOST_MISSING: "h11 asks for Host in HTTP/1.1 alone, and not in 1.2",
    Reason.HOST_MISMATCH: "h11 does not compare Host with the target",
    Reason.VERSION: "h11 takes 2.0",
    Reason.HTTP_0_9: "h11 takes it with fields",
    Reason.BARE_LF: "h11 takes LF for CRLF (RFC 9112 section 2.2 allows it)",
    Reason.OBS_FOLD: "h11 unfolds (RFC 9112 section 5.2 allows to refuse)",
    Reason.CONTENT_LENGTH: "h11 takes 20 digits, and a list of equal lengths",
    Reason.CONTENT_LENGTH_REPEATED: "h11 merges equal lengths",
    Reason.CONTENT_LENGTH_AND_TRANSFER_ENCODING: "h11 lets Transfer-Encoding win",
    Reason.TRANSFER_ENCODING_IN_1_0: "h11 decodes it (RFC 9112 section 6.1 calls the framing faulty)",
    Reason.CONNECT_WITH_BODY: "h11 reads the body",
    Reason.CHUNK_SIZE: "h11 takes 20 digits, and white space behind them",
    Reason.CHUNK_EXTENSION: "h11 skips what follows the semicolon unseen",
    Reason.CHUNK_EXTENSIONS_TOO_LARGE: "h11 skips what follows the semicolon unseen",
    Reason.FIELD: "h11 takes control characters in values",
    Reason.FORBIDDEN_TRAILER: "h11 hands out framing fields as trailers",
    Reason.BARE_CR: "h11 looks at lines when they are whole",
    Reason.NUL: "h11 looks at lines when they are whole",
}

PIECES = st.sampled_from(
    b"\r\n \n \r \0 \t : , ; # \r\n\r\n 0 9 g \xe9 chunked gzip HTTP/1.0 0\r\n\r\n 3\r\nabc\r\n CONNECT".split(b" ")
    + b" |\r\n |Host: a\r\n|Content-Length: 3\r\n|Transfer-Encoding: chunked\r\n|Connection: close\r\n|X : y\r\n".split(
        b"|"
    )
)
REQUESTS, RESPONSES = (
    [data for _, data, _ in cases(folder) if len(data) < 600] for folder in ("requests", "responses")
)


@st.composite
def mutated(draw, sources):
    """One of the sources with a few edits."""
    data = draw(st.sampled_from(sources))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 3)))
        data = data[:start] + draw(st.one_of(PIECES, st.binary(max_size=3), st.just(b""))) + data[end:]
    return data


def cut(data, places):
    places = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


anything = st.one_of(st.binary(max_size=200), mutated(REQUESTS), mutated(RESPONSES))
places = st.lists(st.integers(0, 1000), max_size=6)


@settings(deadline=None)
@given(anything, places, st.booleans())
def test_any_bytes_as_requests(data, places, eof):
    whole = play(RequestParser(), [data], eof=eof)
    assert play(RequestParser(), cut(data, places), eof=eof) == whole
    assert play(RequestParser(), [data[place : place + 1] for place in range(len(data))], eof=eof) == whole


@settings(deadline=None)
@given(anything, places, st.booleans(), st.sampled_from(["GET", "HEAD", "CONNECT"]), st.booleans())
def test_any_bytes_as_an_answer(data, places, eof, method, upgrade):
    whole = play(answering(method, upgrade=upgrade), [data], eof=eof)
    assert play(answering(method, upgrade=upgrade), cut(data, places), eof=eof) == whole


TIGHT = st.builds(
    Limits,
    max_target=st.integers(1, 20),
    max_head=st.integers(1, 120),
    max_fields=st.integers(0, 3),
    max_body=st.one_of(st.none(), st.integers(0, 8)),
    max_trailers=st.integers(0, 20),
    max_chunk_extension=st.integers(0, 6),
    max_chunk_excess=st.integers(0, 6),
    max_interim=st.integers(0, 2),
)


@settings(deadline=None)
@given(anything, places, st.booleans(), TIGHT)
def test_tight_limits_do_not_depend_on_the_split(data, places, eof, limits):
    for make in (lambda: RequestParser(limits)), (lambda: answering(limits=limits)):
        whole = play(make(), [data], eof=eof)
        assert play(make(), cut(data, places), eof=eof) == whole
        assert play(make(), [data[place : place + 1] for place in range(len(data))], eof=eof) == whole


# -- h11


def by_h11(data):
    """Return the first request as h11 reads it: method, target, fields, body, trailers (None: unfinished); or None."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=65536)
    connection.receive_data(data)
    head, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None
        if isinstance(event, h11.Request):
            head = [text(event.method), text(event.target), pairs(event.headers.raw_items())]
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return [*head, text(body), pairs(event.headers.raw_items())]
        else:
            return None if head is None else [*head, text(body), None]


def pairs(raw):
    return [[text(name).lower(), text(value)] for name, value in raw]


def by_us(data):
    """Return the same of ours, or the reason of the refusal."""
    events, end = play(RequestParser(), [data])
    ended = next((place for place, event in enumerate(events) if "end" in event), None)
    if ended is None and isinstance(end, dict):
        return Reason(end["refused"])
    if not events:
        return None
    head, rest = events[0], events[1 : len(events) if ended is None else ended]
    fields = [[name.lower(), value] for name, value in head["headers"]]
    trailers = None if ended is None else [[name.lower(), value] for name, value in events[ended]["end"] or []]
    return [head["method"], head["target"], fields, "".join(event["body"] for event in rest), trailers]


def with_framing_of_h11(message):
    """h11 tells Content-Length and Transfer-Encoding in its own spelling, and Expect in the client's."""
    framing = ("content-length", "transfer-encoding")
    message[2] = [[name, value.lower() if name in framing else value] for name, value in message[2]]
    return message


@settings(deadline=None)
@given(st.one_of(mutated(REQUESTS), st.sampled_from(REQUESTS)))
def test_against_h11(data):
    """Where h11 takes a request, ours is the same or refused for a listed reason; where it refuses, so do we."""
    theirs, ours = by_h11(data), by_us(data)
    if theirs is None:
        assert ours is None or isinstance(ours, Reason) or data.startswith(b"\r\n"), "h11 takes no empty line before"
    elif isinstance(ours, Reason):
        assert ours in STRICTER
    elif ours is not None and ours[0] == "CONNECT":
        assert ours[:3] == theirs[:3]  # h11 sees no body there either, but waits for the answer
    else:
        assert ours is not None
        assert with_framing_of_h11(ours) == with_framing_of_h11(theirs)


# -- llhttp, whose decoding of chunks is not used

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = [
    data[len(CHUNKED) :]
    for name, data, _ in cases("requests")
    if name.startswith("chunked") and data.startswith(CHUNKED)
]


class Recorder:
    def __init__(self):
        self.body, self.fields, self.ends = b"", [], 0

    def on_header(self, name, value):
        if not self.ends:
            self.fields.append([text(name), text(value).rstrip(" \t")])

    def on_body(self, piece):
        if not self.ends:
            self.body += piece

    def on_message_complete(self):
        self.ends += 1


def by_llhttp(data):
    """Return body and trailers of the first request as llhttp reads them, None if it refuses or wants more."""
    recorder = Recorder()
    try:
        httptools.HttpRequestParser(recorder).feed_data(data)
    except httptools.HttpParserError:
        pass  # perhaps behind the first
    return (text(recorder.body), recorder.fields[2:]) if recorder.ends else None


@settings(deadline=None)
@given(mutated(CHUNKS))
def test_chunks_against_llhttp(body):
    """What we decode, llhttp decodes to the same; it takes no white space among the extensions."""
    events, _ = play(RequestParser(), [CHUNKED + body])
    ended = next((place for place, event in enumerate(events) if "end" in event), None)
    if ended is None:
        return
    theirs = by_llhttp(CHUNKED + body)
    if theirs is None:
        assert b" " in body or b"\t" in body
    else:
        told = "".join(event["body"] for event in events[1:ended])
        assert theirs == (told, events[ended]["end"] or [])


# -- what is written is read back

token = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=12)
visible = "".join(map(chr, [*range(0x21, 0x7F), *range(0xA0, 0x100)]))
value = st.text(visible + " \t", max_size=30).map(lambda found: found.strip(" \t"))
RESERVED = {"host", "content-length", "transfer-encoding", "connection", "trailer", "upgrade"}
fields = st.lists(st.tuples(token.filter(lambda name: name.lower() not in RESERVED), value), max_size=8)
pieces = st.lists(st.binary(min_size=1, max_size=20), max_size=5)
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])


def body_bytes(framing, pieces, trailers):
    if framing == "chunked":
        written = [bytes(part) for piece in pieces for part in write_chunk(piece)]
        return b"".join(written) + write_last_chunk(Headers(trailers))
    return b"".join(pieces) if framing == "length" else b""


def framing_arguments(framing, pieces):
    length = sum(map(len, pieces))
    return {"length": {"content_length": length}, "chunked": {"chunked": True}, "none": {}}[framing]


def outcome(events, framing, pieces, trailers):
    """Check what follows the head."""
    body = text(b"".join(pieces)) if framing != "none" else ""
    told = "".join(event["body"] for event in events[1:] if "body" in event)
    assert told == body
    expected = [list(pair) for pair in trailers] if framing == "chunked" and trailers else None
    assert events[-1] == {"end": expected}


@settings(deadline=None)
@given(METHODS, st.text(visible[:94].replace("#", ""), max_size=40), fields, st.data())
def test_a_request_that_was_written_is_read(method, path, fields, data):
    framing = data.draw(st.sampled_from(["none", "length", "chunked"]))
    body, trailers = data.draw(pieces), data.draw(st.lists(st.tuples(token, value), max_size=3))
    assume(all(name.lower() not in RESERVED for name, _ in trailers))
    headers = Headers([("Host", "example.org"), *fields])
    head = write_request_head(method, b"/" + path.encode(), headers, **framing_arguments(framing, body))
    events, end = play(RequestParser(), [head + body_bytes(framing, body, trailers)])
    assert end == "need-data"
    assert (events[0]["method"], events[0]["target"]) == (method, "/" + path)
    assert events[0]["headers"][: len(headers)] == [list(pair) for pair in headers]
    outcome(events, framing, body, trailers)


@settings(deadline=None)
@given(st.integers(200, 999), st.none() | value, fields, st.data())
def test_an_answer_that_was_written_is_read(status, phrase, fields, data):
    assume(status not in (204, 304))
    framing = data.draw(st.sampled_from(["length", "chunked"]))
    body, trailers = data.draw(pieces), data.draw(st.lists(st.tuples(token, value), max_size=3))
    assume(all(name.lower() not in RESERVED for name, _ in trailers))
    headers = Headers(fields)
    raw_phrase = None if phrase is None else phrase.encode("latin-1")
    head = write_response_head(status, headers, phrase=raw_phrase, **framing_arguments(framing, body))
    parser = ResponseParser()
    parser.expect("GET")
    events, end = play(parser, [head + body_bytes(framing, body, trailers)])
    assert end == "need-data"
    assert parser.is_reusable
    assert events[0]["status"] == status
    assert phrase is None or events[0]["phrase"] == phrase
    assert events[0]["headers"][: len(headers)] == [list(pair) for pair in headers]
    outcome(events, framing, body, trailers)
