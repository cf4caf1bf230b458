"""Frames and messages of WebSocket as bytes: a table after the Autobahn suite's, each case whole and in pieces."""

from __future__ import annotations

import os
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websocket_wire import LIMITS, PACKED, PLAIN, frame, reading
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from greensock.http import WebSocketOptions
from greensock.http.websocket.deflate import (
    Agreement,
    Deflater,
    Inflater,
    InflatesTooFar,
    accept_offer,
    agreement_of,
    offer_of,
    shared_deflater,
)
from greensock.http.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameReader,
    close_payload,
    write_frame,
)


def deflated(data: bytes) -> bytes:
    return shared_deflater(15).deflate(data)


#: Compressed with a last block, where a message has most often none (RFC 7692 section 7.2.3.4).
_deflater = zlib.compressobj(9, wbits=-15)
FINAL = _deflater.compress(b"final") + _deflater.flush()

SNOW = "\N{SNOWMAN}\U0001f600".encode()
LONG = bytes(range(256)) * 300

#: The numbers of the Autobahn suite's chapters: framing, pings, reserved bits, opcodes, fragments, UTF-8, closes,
#: limits, compression. Bytes, what comes out, and the code it is closed with, if it is.
CASES: dict[str, tuple[bool, bytes, list[tuple[int, object]], int | None]] = {
    "1.1.1 an empty text": (PLAIN, frame(0x81), [(TEXT, "")], None),
    "1.1.2 125 bytes": (PLAIN, frame(0x81, b"*" * 125), [(TEXT, "*" * 125)], None),
    "1.1.3 126 bytes": (PLAIN, frame(0x81, b"*" * 126), [(TEXT, "*" * 126)], None),
    "1.1.6 65,535 bytes": (PLAIN, frame(0x81, b"*" * 65535), [(TEXT, "*" * 65535)], None),
    "1.1.7 65,536 bytes": (PLAIN, frame(0x82, b"*" * 65536), [(BINARY, b"*" * 65536)], None),
    "1.2.1 empty bytes": (PLAIN, frame(0x82), [(BINARY, b"")], None),
    "1.2.8 all bytes": (PLAIN, frame(0x82, LONG), [(BINARY, LONG)], None),
    "1.3.1 126 in the long form": (PLAIN, frame(0x82, b"*" * 126, b"\x7f" + (126).to_bytes(8, "big")), [], 1002),
    "1.3.2 5 in the middle form": (PLAIN, frame(0x82, b"*" * 5, b"\x7e\x00\x05"), [], 1002),
    "1.3.3 a length of 64 bits": (PLAIN, frame(0x82, b"", b"\x7f" + b"\xff" * 8), [], 1002),
    "1.3.4 not masked": (PLAIN, frame(0x81, b"x", mask=False), [], 1002),
    "2.1 a ping": (PLAIN, frame(0x89), [(PING, b"")], None),
    "2.4 a ping of 125 bytes": (PLAIN, frame(0x89, b"\xfe" * 125), [(PING, b"\xfe" * 125)], None),
    "2.5 a ping of 126 bytes": (PLAIN, frame(0x89, b"\xfe" * 126), [], 1002),
    "2.7 a pong that nobody asked for": (PLAIN, frame(0x8A, b"x"), [(PONG, b"x")], None),
    "3.1 RSV3": (PLAIN, frame(0x91, b"x"), [], 1002),
    "3.2 a message, then RSV2": (PLAIN, frame(0x81, b"x") + frame(0xA1, b"x"), [(TEXT, "x")], 1002),
    "3.4 RSV1 without compression": (PLAIN, frame(0xC1, b"x"), [], 1002),
    "3.6 a ping with RSV1": (PACKED, frame(0xC9, b"x"), [], 1002),
    **{
        f"4.1 opcode {kind}": (PLAIN, frame(0x80 | kind, b"x"), [], 1002)
        for kind in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "5.1 a ping in two": (PLAIN, frame(0x09, b"x") + frame(0x80, b"x"), [], 1002),
    "5.3 a text in two": (PLAIN, frame(0x01, b"ab") + frame(0x80, b"c"), [(TEXT, "abc")], None),
    "5.6 a ping between": (
        PLAIN,
        frame(0x01, b"ab") + frame(0x89, b"p") + frame(0x80, b"c"),
        [(PING, b"p"), (TEXT, "abc")],
        None,
    ),
    "5.9 the rest of nothing": (PLAIN, frame(0x80, b"x"), [], 1002),
    "5.12 the beginning of a rest": (PLAIN, frame(0x00, b"x"), [], 1002),
    "5.18 a text within a text": (PLAIN, frame(0x01, b"x") + frame(0x81, b"y"), [], 1002),
    "5.20 a rest behind the end": (
        PLAIN,
        frame(0x01, b"x") + frame(0x80, b"y") + frame(0x80, b"z"),
        [(TEXT, "xy")],
        1002,
    ),
    "6.1.3 empty parts": (PLAIN, frame(0x01) + frame(0x00) + frame(0x80), [(TEXT, "")], None),
    "6.1 an empty part first": (PLAIN, frame(0x02) + frame(0x80, b"x"), [(BINARY, b"x")], None),
    "6.2.1 UTF-8": (PLAIN, frame(0x81, SNOW), [(TEXT, SNOW.decode())], None),
    "6.2.3 a letter in four frames": (
        PLAIN,
        frame(0x01, SNOW[:1]) + frame(0x00, SNOW[1:2]) + frame(0x00, SNOW[2:5]) + frame(0x80, SNOW[5:]),
        [(TEXT, SNOW.decode())],
        None,
    ),
    "6.3.1 a surrogate": (PLAIN, frame(0x81, b"\xed\xa0\x80"), [], 1007),
    "6.4.1 wrong from the first frame on": (PLAIN, frame(0x01, b"\xff") + frame(0x89), [], 1007),
    "6.6 half a letter": (PLAIN, frame(0x81, b"\xe2\x98"), [], 1007),
    "6.6 half a letter in the last frame": (PLAIN, frame(0x01, b"a") + frame(0x80, b"\xe2\x98"), [], 1007),
    "6.21 no character": (PLAIN, frame(0x81, b"\xef\xbf\xbf"), [(TEXT, "\uffff")], None),
    "7.1 a close": (PLAIN, frame(0x88, b"\x03\xe8bye"), [(CLOSE, (1000, "bye"))], None),
    "7.3.1 a close without a code": (PLAIN, frame(0x88), [(CLOSE, (1005, ""))], None),
    "7.3.2 half a code": (PLAIN, frame(0x88, b"\x03"), [], 1002),
    "7.3.5 123 bytes of reason": (PLAIN, frame(0x88, b"\x03\xe8" + b"*" * 123), [(CLOSE, (1000, "*" * 123))], None),
    "7.3.6 124 bytes of reason": (PLAIN, frame(0x88, b"\x03\xe8" + b"*" * 124), [], 1002),
    "7.5.1 a reason that is no UTF-8": (PLAIN, frame(0x88, b"\x03\xe8\xff"), [], 1007),
    **{
        f"7.7 code {code}": (PLAIN, frame(0x88, code.to_bytes(2, "big")), [(CLOSE, (code, ""))], None)
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
    },
    **{
        f"7.9 code {code}": (PLAIN, frame(0x88, code.to_bytes(2, "big")), [], 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "9.1 at the limit of a frame": (PLAIN, frame(0x82, b"x" * 78_000), [(BINARY, b"x" * 78_000)], None),
    "9.1 beyond the limit of a frame": (PLAIN, frame(0x82, b"x" * 78_001)[:14], [], 1009),
    "9.3 at the limit of a message": (
        PLAIN,
        frame(0x02, b"x" * 50_000) + frame(0x80, b"y" * 30_000),
        [(BINARY, b"x" * 50_000 + b"y" * 30_000)],
        None,
    ),
    "9.3 beyond the limit of a message": (PLAIN, frame(0x02, b"x" * 50_000) + frame(0x80, b"y" * 30_001), [], 1009),
    "12 compressed": (PACKED, frame(0xC1, deflated(b"abc" * 99)), [(TEXT, "abc" * 99)], None),
    "12 not compressed": (PACKED, frame(0x81, b"abc"), [(TEXT, "abc")], None),
    "12 one after the other": (
        PACKED,
        frame(0xC2, deflated(LONG)) + frame(0xC2, deflated(LONG)),
        [(BINARY, LONG), (BINARY, LONG)],
        None,
    ),
    "12 compressed in three": (
        PACKED,
        frame(0x41, deflated(SNOW * 50)[:7])
        + frame(0x00, deflated(SNOW * 50)[7:9])
        + frame(0x80, deflated(SNOW * 50)[9:]),
        [(TEXT, (SNOW * 50).decode())],
        None,
    ),
    "12 at the limit": (PACKED, frame(0xC2, deflated(bytes(80_000))), [(BINARY, bytes(80_000))], None),
    "12 beyond the limit": (PACKED, frame(0xC2, deflated(bytes(80_001))), [], 1009),
    "12 a bomb": (PACKED, frame(0xC2, deflated(bytes(50_000_000))), [], 1009),
    "12 a bomb in parts": (
        PACKED,
        frame(0x42, deflated(bytes(70_000))[:40]) + frame(0x00, deflated(bytes(50_000_000))),
        [],
        1009,
    ),
    "12 no deflate": (PACKED, frame(0xC2, b"\xff\xff\xff"), [], 1007),
    "12 no UTF-8 in it": (PACKED, frame(0xC1, deflated(b"\xff" * 9)), [], 1007),
    "12 RSV1 in a later frame": (PACKED, frame(0x41, b"x") + frame(0xC0, b"y"), [], 1002),
    "12 an empty message": (PACKED, frame(0xC1, b"\x00"), [(TEXT, "")], None),
    "12 a last block": (
        PACKED,
        frame(0xC1, FINAL + b"\x00") + frame(0xC1, deflated(b"next")),
        [(TEXT, "final"), (TEXT, "next")],
        None,
    ),
}


def one_by_one(data):
    return [data[at : at + 1] for at in range(len(data))]


def at_random(data):
    chance = random.Random(len(data))
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(5))
    return [piece for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if (piece := data[begin:end])]


@pytest.mark.parametrize("name", CASES)
def test_autobahn(name):
    packed, data, events, code = CASES[name]
    assert reading([data], packed) == (events, code, code is None)
    assert reading(at_random(data), packed) == (events, code, code is None)
    if len(data) < 2000:
        assert reading(one_by_one(data), packed) == (events, code, code is None)
    if code is None:
        more = frame(0x81, b"more")
        assert reading([data + more], packed) == ([*events, (TEXT, "more")], None, True)


def test_what_is_refused_is_refused_before_it_has_come():
    for data, code in ((b"\x89\xfe", 1002), (b"\x82\xff" + (78_001).to_bytes(8, "big"), 1009), (b"\x83\x80", 1002)):
        assert reading(one_by_one(data))[1] == code


def test_a_reader_holds_no_more_than_came():
    reader = FrameReader(LIMITS, True, None)
    data = frame(0x02, b"x" * 1000) + frame(0x80, b"y" * 1000)
    for number, piece in enumerate(one_by_one(data)):
        reader.feed(piece)
        assert reader.next_event() in (None, (CONTINUATION, None)) or number == len(data) - 1
        assert reader.held <= number + 1
    assert (reader.held, reader.is_at_rest) == (0, True)


def test_what_a_client_reads_is_not_masked():
    assert reading([frame(0x81, b"x", mask=False)], is_masked=False) == ([(TEXT, "x")], None, True)
    assert reading([frame(0x81, b"x")], is_masked=False)[1] == 1002


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70_000])
@pytest.mark.parametrize("mask", [True, False])
def test_what_is_written_is_read(size, mask):
    payload = os.urandom(size)
    data = write_frame(0x82, payload, mask)
    assert reading([data], is_masked=mask) == ([(BINARY, payload)], None, True)
    assert len(data) - size == 2 + 4 * mask + (0 if size < 126 else 2 if size < 65536 else 8)


def test_masks_are_drawn_anew():
    assert len({write_frame(0x82, bytes(8), True)[2:6] for _ in range(100)}) == 100


def test_what_may_be_said_at_the_end():
    assert close_payload(1000, "\N{SNOWMAN}") == b"\x03\xe8" + SNOW[:3]
    for code, reason in ((1005, ""), (1006, ""), (999, ""), (5000, ""), (1000, "x" * 124), ("1000", "")):
        with pytest.raises(ValueError, match="expected"):
            close_payload(code, reason)


kinds = st.sampled_from([0x01, 0x02, 0x00, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0x83, 0xC1, 0x08])
some_frames = st.lists(
    st.tuples(kinds, st.one_of(st.text(max_size=9).map(str.encode), st.binary(max_size=9))), max_size=6
)


@given(some_frames, st.integers(1, 40))
@settings(max_examples=300)
def test_as_websockets_reads_it(frames, size):
    """The same frames are refused with the same code, and the same come out; it leaves UTF-8 and parts to its user."""
    data = b"".join(frame(first, payload) for first, payload in frames)
    protocol = ServerProtocol(state=State.OPEN, max_size=LIMITS.max_message)
    protocol.receive_data(data)
    theirs, parts = [], b""
    kind = 0
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            kind, parts = (event.opcode, event.data) if event.opcode else (kind, parts + event.data)
            if event.fin:
                theirs.append((int(kind), bytes(parts)))
        elif event.opcode is Opcode.CLOSE:
            break
        else:
            theirs.append((int(event.opcode), bytes(event.data)))
    found, code, _ = reading([data[at : at + size] for at in range(0, len(data), size)])
    ours = [(kind, what.encode() if kind == TEXT else what) for kind, what in found if kind != CLOSE]
    closes = [what for kind, what in found if kind == CLOSE]
    if closes:  # what is behind it is read, and nobody's
        assert ours[: len(theirs)] == theirs
        assert protocol.close_rcvd is not None
        assert protocol.close_rcvd.code == closes[0][0]
    elif code == 1007:
        assert ours == theirs[: len(ours)]
    elif code is None:
        assert ours == theirs
        assert protocol.close_rcvd is None
    else:
        assert protocol.close_sent is not None
        if not isinstance(protocol.parser_exc, UnicodeDecodeError):  # which it looks for before it looks at the code
            assert isinstance(protocol.parser_exc, ProtocolError | PayloadTooBig)
            assert protocol.close_sent.code == code


# -- compression


@given(st.lists(st.binary(max_size=3000), max_size=5), st.booleans())
def test_what_is_compressed_comes_back(messages, on):
    deflater, inflater = Deflater(15, on), Inflater(15, on)
    for message in messages:
        if message:
            assert inflater.inflate(deflater.deflate(message), True, len(message)) == message


def test_messages_of_one_compressor_know_nothing_of_each_other():
    deflater = Deflater(15, on=False)
    secret = os.urandom(500)
    sizes = [len(deflater.deflate(secret)) for _ in range(3)]
    assert min(sizes) > 500
    assert Inflater().inflate(deflater.deflate(secret), True, 500) == secret
    assert len(Deflater(15, on=True).deflate(secret * 2)) < 600


def test_no_more_is_made_than_may_be():
    bomb = deflated(bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InflatesTooFar):
            Inflater().inflate(bomb, True, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(bomb) < 500_000


def test_what_cannot_be_compressed_may_be_as_long():
    data = os.urandom(80_000)
    options = WebSocketOptions(max_message=80_000)
    assert len(deflated(data)) > len(data)
    assert reading([frame(0xC2, deflated(data))], PACKED, options) == ([(BINARY, data)], None, True)


P = b"permessage-deflate"
NO_CONTEXT = P + b"; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "takeover", "expected"),
    [
        (None, False, None),
        (b"", False, None),
        (b"x-webkit-deflate-frame", False, None),
        (P, False, (Agreement(False, False), NO_CONTEXT)),
        (P + b"; client_max_window_bits", False, (Agreement(False, False), NO_CONTEXT)),
        (P, True, (Agreement(True, True, 12), P)),
        (P + b"; client_max_window_bits", True, (Agreement(True, True, 12, 12), P + b"; client_max_window_bits=12")),
        (
            P + b"; server_max_window_bits=10",
            True,
            (Agreement(True, True, 10), P + b"; server_max_window_bits=10"),
        ),
        (P + b"; server_no_context_takeover", True, (Agreement(False, True, 12), P + b"; server_no_context_takeover")),
        (P + b"; server_max_window_bits=8", False, None),  # zlib cannot
        (P + b"; server_max_window_bits=8, " + P, False, (Agreement(False, False), NO_CONTEXT)),
        (
            P + b'; server_max_window_bits="10"',
            False,
            (Agreement(False, False, 10), NO_CONTEXT + b"; server_max_window_bits=10"),
        ),
        (P + b"; server_max_window_bits=16", False, None),
        (P + b"; server_max_window_bits", False, None),
        (P + b"; server_no_context_takeover=1", False, None),
        (P + b"; unknown", False, None),
        (P + b"; client_max_window_bits; client_max_window_bits", False, None),
        (P + b";;", False, None),
        (b"foo; bar=1, " + P, False, (Agreement(False, False), NO_CONTEXT)),
    ],
)
def test_what_a_server_agrees_to(offer, takeover, expected):
    assert accept_offer(offer, takeover, 12 if takeover else 15) == expected


@pytest.mark.parametrize(
    ("answer", "takeover", "expected"),
    [
        (None, False, None),
        (NO_CONTEXT, False, Agreement(False, False)),
        (P + b"; server_no_context_takeover", False, Agreement(False, False)),
        (P, True, Agreement(True, True)),
        (P + b"; client_max_window_bits=10; server_max_window_bits=9", True, Agreement(True, True, 10, 9)),
        (P + b"; client_no_context_takeover", True, Agreement(False, True)),
        (P, False, ValueError),
        (P + b"; client_max_window_bits=10; server_no_context_takeover", False, ValueError),
        (P + b"; client_max_window_bits", True, ValueError),
        (P + b"; unknown", True, ValueError),
        (b"other", True, ValueError),
        (P + b", " + P, True, ValueError),
    ],
)
def test_what_a_client_takes_for_an_answer(answer, takeover, expected):
    if expected is ValueError:
        with pytest.raises(ValueError, match=r"not offered|did not agree"):
            agreement_of(answer, takeover, 15)
    else:
        assert agreement_of(answer, takeover, 15) == expected


def test_an_offer_is_what_can_be_agreed_to():
    for takeover in (False, True):
        agreed = accept_offer(offer_of(takeover), takeover, 15)
        assert agreed is not None
        assert agreement_of(agreed[1], takeover, 15) == Agreement(takeover, takeover)


@pytest.mark.parametrize(
    "wrong",
    [{"max_message": -1}, {"max_frame": "x"}, {"ping_interval": 0}, {"window_bits": 8}, {"origins": "https://a"}],
)
def test_what_options_may_be(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}="):
        WebSocketOptions(**wrong)
