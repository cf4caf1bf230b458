"""The framers: however a stream is split, the messages are the same, and so is the error."""

from __future__ import annotations

import random
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greensock import Delimited, FixedSize, Framer, LengthPrefixed, Lines, MessageTooLong
from greensock.errors import DropReason

# framer, stream, messages, what is left pending (None: the stream ends in MessageTooLong)
CASES = [
    (Lines(), b"", [], 0),
    (Lines(), b"\n", [b""], 0),
    (Lines(), b"\r\n", [b""], 0),
    (Lines(), b"\n\n\n", [b"", b"", b""], 0),
    (Lines(), b"first\r\nsecond\nthi", [b"first", b"second"], 3),
    (Lines(), b"a\rb\n", [b"a\rb"], 0),
    (Lines(), b"a\r\r\n", [b"a\r"], 0),
    (Lines(), b"a\r", [], 2),
    (Lines(), b"\0\xff\n", [b"\0\xff"], 0),
    (Lines(1), b"a\n\nb\n", [b"a", b"", b"b"], 0),
    (Lines(3), b"abc\nde\r\nf", [b"abc", b"de"], 1),
    (Lines(3), b"abc\nabcd\nab\n", [b"abc"], None),
    (Lines(3), b"abc\r\n", [], None),
    (Lines(3), b"ab\nabcdefgh", [b"ab"], None),
    (Delimited(b"\0"), b"a\0\0bc\0d", [b"a", b"", b"bc"], 1),
    (Delimited(b"\r\n"), b"a\nb\rc\r\n\r\n", [b"a\nb\rc", b""], 0),
    (Delimited(b"\r\n"), b"a\r\r\nb", [b"a\r"], 1),
    (Delimited(b"aa"), b"aaa", [b""], 1),
    (Delimited(b"aab"), b"aaab", [b"a"], 0),
    (Delimited(b"abab"), b"xababab", [b"x"], 2),
    (Delimited(b"\r\n", 3), b"abc\r\nabc\r", [b"abc"], 4),
    (Delimited(b"\r\n", 3), b"abc\rd\r\n", [], None),
    (Delimited(b"END", 1), b"aENDabEND", [b"a"], None),
    (FixedSize(1), b"abc", [b"a", b"b", b"c"], 0),
    (FixedSize(4), b"abcdefgh", [b"abcd", b"efgh"], 0),
    (FixedSize(4), b"abcdefg", [b"abcd"], 3),
    (FixedSize(64), b"x" * 63, [], 63),
    (LengthPrefixed(1), b"\0\1a\2bc\3de", [b"", b"a", b"bc"], 3),
    (LengthPrefixed(2), b"\0\1a\0", [b"a"], 1),
    (LengthPrefixed(2, "little"), b"\1\0a\0\0", [b"a", b""], 0),
    (LengthPrefixed(3), b"\0\0\2ab", [b"ab"], 0),
    (LengthPrefixed(4), b"\0\0\0\1a\0\0\0\1", [b"a"], 4),
    (LengthPrefixed(8), b"\0\0\0\0\0\0\0\2ab\0", [b"ab"], 1),
    (LengthPrefixed(8, "little"), b"\2\0\0\0\0\0\0\0ab", [b"ab"], 0),
    (LengthPrefixed(1, max_size=2), b"\2ab\3", [b"ab"], None),
    (LengthPrefixed(4, max_size=2), b"\0\0\0\2ab\xff\xff\xff\xff", [b"ab"], None),
    (LengthPrefixed(8, max_size=2), b"\xff" * 8, [], None),
]


def drain(decoder):
    messages = []
    while (message := decoder.next_message()) is not None:
        assert type(message) is bytes
        messages.append(message)
    return messages


def decode(framer: Framer, pieces):
    """Return the messages, and what is pending or the text of the error."""
    decoder, messages = framer.decoder(), []
    for piece in pieces:
        decoder.feed(piece)
        try:
            while (message := decoder.next_message()) is not None:
                messages.append(message)
        except MessageTooLong as error:
            with pytest.raises(MessageTooLong, match=r"longer than max_size"):  # and again if asked again
                decoder.next_message()
            return messages, str(error)
    return messages, decoder.pending


def split(data: bytes, cuts) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in pairwise(places)]


def split_at_random(data: bytes, chance: random.Random) -> list[bytes]:
    return split(data, chance.sample(range(len(data)), chance.randint(0, len(data)))) if data else []


@pytest.mark.parametrize(("framer", "stream", "messages", "pending"), CASES)
def test_cases(framer, stream, messages, pending):
    """Each whole, byte by byte, and split at random."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    at_random = [split_at_random(stream, chance) for _ in range(20)]
    for pieces in [[stream], split(stream, range(len(stream))), *at_random]:
        found, rest = decode(framer, pieces)
        assert found == messages, pieces
        assert isinstance(rest, str) if pending is None else rest == pending, pieces


def streams(framer: Framer):
    """Streams that are likely to be near the framer's edges."""
    if isinstance(framer, LengthPrefixed):
        bodies = st.binary(max_size=min(framer.max_size + 1, 5, 256**framer.width - 1))
        parts = bodies.map(lambda body: len(body).to_bytes(framer.width, framer.byteorder) + body)
        return st.lists(st.one_of(parts, parts, st.binary(max_size=3)), max_size=8).map(b"".join)
    if isinstance(framer, Delimited):
        letters = [framer.delimiter, framer.delimiter[:1], b"\r", b"a", b"bc"]
        return st.lists(st.sampled_from(letters), max_size=20).map(b"".join)
    return st.binary(max_size=200)


@given(st.data())
def test_any_split_gives_the_same_messages_and_the_same_error(data):
    framer = data.draw(st.sampled_from([case[0] for case in CASES]), label="framer")
    stream = data.draw(streams(framer), label="stream")
    cuts = data.draw(st.lists(st.integers(0, max(0, len(stream) - 1))), label="cuts")
    whole = decode(framer, [stream])
    assert decode(framer, split(stream, cuts)) == whole
    assert decode(framer, split(stream, range(len(stream)))) == whole


ROUND_TRIP = [
    Lines(),
    Lines(8),
    Delimited(b"\0"),
    Delimited(b"\r\n"),
    Delimited(b"aa"),
    Delimited(b"aba", 9),
    FixedSize(1),
    FixedSize(8),
    *(LengthPrefixed(width, order) for width in range(1, 9) for order in ("big", "little")),
    LengthPrefixed(2, max_size=4),
]


@given(
    framer=st.sampled_from(ROUND_TRIP),
    messages=st.lists(st.one_of(st.binary(max_size=12), st.text("ab\r\n\0", max_size=9).map(str.encode)), max_size=9),
    cuts=st.lists(st.integers(0, 100)),
)
@example(framer=Delimited(b"aa"), messages=[b"a", b"b"], cuts=[])
@example(framer=Lines(), messages=[b"\r", b"x"], cuts=[])
def test_what_can_be_encoded_comes_out_again(framer, messages, cuts):
    sent, stream = [], b""
    for message in messages:
        try:
            stream += framer.encode(message)
        except ValueError:
            continue
        sent.append(message)
    assert decode(framer, split(stream, cuts)) == (sent, 0)


@pytest.mark.parametrize(
    ("framer", "message", "text"),
    [
        (Lines(), b"a\nb", "holds the delimiter"),
        (Lines(), b"a\r", "ends with CR"),
        (Lines(3), b"abcd", "max_size=3"),
        (Delimited(b"\r\n"), b"a\r\n", "holds the delimiter"),
        (Delimited(b"aa"), b"a", "holds the delimiter"),
        (FixedSize(4), b"abc", "exactly size=4"),
        (FixedSize(4), b"abcde", "exactly size=4"),
        (LengthPrefixed(1), b"x" * 256, "max_size=255"),
        (LengthPrefixed(2, max_size=5), b"x" * 6, "max_size=5"),
    ],
)
def test_encode_refuses_what_could_not_be_read(framer, message, text):
    with pytest.raises(ValueError, match=text):
        framer.encode(message)


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("kind", ["lines", "delimited", "prefixed"])
def test_limit(kind, limit):
    framer = {
        "lines": Lines(limit),
        "delimited": Delimited(b"END", limit),
        "prefixed": LengthPrefixed(2, max_size=limit),
    }[kind]
    larger = {"lines": Lines(), "delimited": Delimited(b"END"), "prefixed": LengthPrefixed(2)}[kind]
    for length in (0, 1, limit - 1, limit):
        message = b"x" * length
        assert decode(framer, [framer.encode(message) * 3]) == ([message] * 3, 0)
    stream = framer.encode(b"before") if limit >= 6 else framer.encode(b"b")
    found, rest = decode(framer, [stream + larger.encode(b"x" * (limit + 1)) + stream])
    assert found == [b"before" if limit >= 6 else b"b"]
    assert f"max_size={limit} " in rest


def test_the_error_names_the_limit_and_whose_fault_it_is():
    decoder = LengthPrefixed(2, max_size=5).decoder()
    decoder.feed(b"\1\0")
    with pytest.raises(MessageTooLong, match="256 bytes is longer than max_size=5") as caught:
        decoder.next_message()
    assert (caught.value.limit, caught.value.value, caught.value.connection) == ("max_size", 5, None)
    assert caught.value.drop_reason is DropReason.TOO_LONG


def test_a_message_without_an_end_is_refused_before_it_has_come():
    """What is held is bounded by the limit, not by what the peer sends."""
    for framer, byte in ((Lines(100), b"x"), (Delimited(b"\r\n", 100), b"\r")):
        decoder = framer.decoder()
        for _ in range(100 + len(framer.delimiter) - 1):
            decoder.feed(byte)
            assert decoder.next_message() is None
        decoder.feed(byte)
        with pytest.raises(MessageTooLong):
            decoder.next_message()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Lines(0), "max_size=0: a whole number of at least 1"),
        (lambda: Lines(-1), "max_size=-1"),
        (lambda: Lines(True), "max_size=True"),
        (lambda: Lines(1.5), "max_size=1.5"),
        (lambda: Delimited(b""), "delimiter=b''"),
        (lambda: Delimited("x"), "delimiter='x'"),
        (lambda: FixedSize(0), "size=0"),
        (lambda: LengthPrefixed(0), "width=0: 1 to 8"),
        (lambda: LengthPrefixed(9), "width=9: 1 to 8"),
        (lambda: LengthPrefixed(4, "middle"), "byteorder='middle'"),
        (lambda: LengthPrefixed(4, max_size=0), "max_size=0"),
    ],
)
def test_a_framer_that_cannot_be(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_prefix_bounds_the_maximum():
    assert [LengthPrefixed(width, max_size=1 << 70).max_size for width in (1, 2, 8)] == [255, 65535, 2**64 - 1]


def test_take_gives_out_what_is_pending():
    for framer, stream in ((Lines(), b"a\nrest"), (FixedSize(1), b"arest"), (LengthPrefixed(1), b"\1arest")):
        decoder = framer.decoder()
        decoder.feed(stream)
        assert decoder.next_message() == b"a"
        assert (decoder.take(), decoder.pending, decoder.take()) == (b"rest", 0, b"")
        decoder.feed(framer.encode(b"b"))
        assert drain(decoder) == [b"b"]


def test_a_decoder_searches_anew_after_take():
    decoder = Lines().decoder()
    decoder.feed(b"a long tail without an end")
    assert drain(decoder) == []
    decoder.take()
    decoder.feed(b"x\ny\n")
    assert drain(decoder) == [b"x", b"y"]


def test_a_whole_message_is_not_copied():
    decoder, data = FixedSize(64).decoder(), b"x" * 64
    decoder.feed(data)
    assert decoder.next_message() is data


def held(decoder) -> int:
    """Bytes of memory behind a decoder's buffer."""
    return sys.getsizeof(decoder._buffer)


@pytest.mark.parametrize("framer", [Lines(), Delimited(b"\r\n"), FixedSize(100), LengthPrefixed(2)])
@pytest.mark.parametrize("pieces", [1, 1000])
def test_a_short_tail_does_not_hold_a_long_buffer(framer, pieces):
    decoder = framer.decoder()
    message = framer.encode(b"x" * 100)
    stream = message * 10_000 + message[:3]
    size = len(stream) // pieces
    for at in range(0, len(stream), size):
        decoder.feed(stream[at : at + size])
        drain(decoder)
    assert decoder.pending == 3
    assert held(decoder) < 1000


def seconds(framer: Framer, stream: bytes, size: int) -> float:
    """Return the least CPU time of three runs over the stream in pieces of that size."""
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    taken = []
    for _ in range(3):
        decoder, began = framer.decoder(), time.process_time()
        for piece in pieces:
            decoder.feed(piece)
            drain(decoder)
        taken.append(time.process_time() - began)
    return min(taken)


BIG = 1 << 30


@pytest.mark.alone
@pytest.mark.parametrize(
    ("framer", "unit", "size"),
    [
        (Lines(BIG), b"x", 16),  # one long message in small pieces
        (Delimited(b"\r\n", BIG), b"\r", 16),
        (FixedSize(BIG), b"x", 16),
        (LengthPrefixed(1, max_size=BIG), b"\1x", BIG),  # many short messages in one piece
        (Lines(BIG), b"x\n", BIG),
        (FixedSize(2), b"x", BIG),
        (Lines(BIG), b"abc\n", 3),
    ],
)
def test_time_is_not_quadratic(framer, unit, size):
    """Eight times the stream takes about eight times as long; with quadratic time it would be sixty-four."""
    short, long = unit * (50_000 // len(unit)), unit * (400_000 // len(unit))
    assert seconds(framer, long, size) < 24 * max(seconds(framer, short, size), 0.001)
