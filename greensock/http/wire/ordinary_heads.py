"""Heads that are ordinary, read in one go: for the flat paths of the servers. Pure.

A head is *ordinary* if it is plain (see ``plain_heads``) and whole, with all of its body and nothing behind that; and
if its fields ask for nothing but to keep or to close the connection. Peers say the same lines again and again, so what
a line means is judged once and looked up then. What is not ordinary is for the parsers, which are the reference:
whatever is taken here, they take in the same sense (test_proxy_ordinary).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from greensock.http.wire.body_length import MAX_LENGTH_DIGITS
from greensock.http.wire.limits import Limits
from greensock.http.wire.plain_heads import (
    MAX_LINE,
    MAX_LINES,
    Pair,
    lex_plain_line,
    may_be_secret,
    plain_methods,
)
from greensock.http.wire.response_parser import parts_of_status_line
from greensock.http.wire.scan import cut_lines, cut_request
from greensock.http.wire.target import is_sound
from greensock.http.wire.writer import phrase_of

__all__ = [
    "CLOSE",
    "DATE",
    "LENGTH",
    "OrdinaryLines",
    "for_answers",
    "for_requests",
    "read_answer",
    "read_request",
    "status_of",
]

#: What a line says that is looked at: Host, Content-Length, Connection: close, Date.
HOST, LENGTH, CLOSE, DATE = range(4)

#: What a line means. Bytes: what goes out for it, with CRLF; empty if nothing does. A pair: which of these it is, and
#: the value, as bytes or as a number. None: it asks for a closer look.
Judged: TypeAlias = "bytes | tuple[int, Any] | None"

_Passes: TypeAlias = Callable[[bytes], bool]

#: Methods of ordinary requests. (OPTIONS may be a question to the proxy itself.)
_methods = {name: method for name, method in plain_methods.items() if method != "OPTIONS"}


class OrdinaryLines(dict[bytes, Judged]):
    """A line of a head to what it means. Bounded, and it keeps nothing that may be a secret, as ``plain_heads``."""

    __slots__ = ("_judge",)

    def __init__(self, judge: Callable[[Pair, bytes, bytes], Judged]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, line: bytes) -> Judged:
        found = lex_plain_line(line)
        if found is None:
            return None
        pair, name, value, is_special = found
        judged = None if is_special and name not in (b"connection", b"keep-alive") else self._judge(pair, name, value)
        if len(line) <= MAX_LINE and not may_be_secret(name):
            if len(self) >= MAX_LINES:
                self.clear()
            self[line] = judged
        return judged


def for_requests(passes: _Passes) -> OrdinaryLines:
    """Return the lines of requests; ``passes`` says by its name whether a field is passed on."""

    def judge(pair: Pair, name: bytes, value: bytes) -> Judged:
        if name == b"host":
            return (HOST, value) if is_sound(value) else None
        return _judge(pair, name, value, passes)

    return OrdinaryLines(judge)


def for_answers(passes: _Passes) -> OrdinaryLines:
    """Return the lines of answers; ``passes`` as for requests."""

    def judge(pair: Pair, name: bytes, value: bytes) -> Judged:
        if name == b"date":
            return DATE, b"%b: %b\r\n" % pair
        return _judge(pair, name, value, passes)

    return OrdinaryLines(judge)


def _judge(pair: Pair, name: bytes, value: bytes, passes: _Passes) -> Judged:
    if name == b"content-length":
        return (LENGTH, int(value)) if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS else None
    if name == b"connection":
        said = value.lower()
        if said == b"close":
            return CLOSE, b""
        return b"" if said == b"keep-alive" else None
    if name == b"close":
        return None  # ``Connection: close`` may name it
    return b"%b: %b\r\n" % pair if passes(pair[0]) else b""


def read_request(
    data: bytes, limits: Limits, judged: OrdinaryLines
) -> tuple[str, bytes, bytes, list[bytes], list[bytes], int, int, bool] | None:
    """Return what an ordinary request says; None if ``data`` is anything else.

    It is its method, its target, its Host, the lines of its fields, those that go out for them, where its body begins,
    how long that is, and whether the client's connection goes on.
    """
    end = data.find(b"\r\n\r\n") + 4
    if not 4 < end <= limits.max_head:
        return None
    cut = cut_request(data, end - 4, limits.max_target)
    if cut is None:
        return None
    methods = _methods
    method, target, lines = methods.get(cut[0]), cut[1], cut[2]
    if method is None or len(lines) > limits.max_fields:
        return None
    host, length, keep = b"", 0, True
    pieces: list[bytes] = []
    for line in lines:
        piece = judged[line]
        if type(piece) is bytes:
            pieces.append(piece)
            continue
        if piece is None:
            return None
        kind: int = piece[0]
        value: Any = piece[1]
        if kind == HOST and not host:
            host = value
        elif kind == LENGTH and not length and value:
            length = value
        elif kind == CLOSE:
            keep = False
        else:  # Host twice, Content-Length twice, or a length of 0
            return None
    if not host or len(data) - end != length or (limits.max_body is not None and length > limits.max_body):
        return None
    return method, target, host, lines, pieces, end, length, keep


def read_answer(
    data: bytes, limits: Limits, judged: OrdinaryLines, method: str
) -> tuple[int, list[bytes], bool, int, int, int, bool] | None:
    """Return what an ordinary answer to a ``method`` says; None if ``data`` is anything else.

    It is its status, the lines that go out for its own, whether there is a Date among them, its Content-Length (-1:
    nothing is to be said), how long its body is, where that begins, and whether the server's connection goes on.
    """
    end = data.find(b"\r\n\r\n") + 4
    if not 4 < end <= limits.max_head:
        return None
    lines = cut_lines(data, end - 4)
    found = status_of(lines[0])
    if found is None or len(lines) - 1 > limits.max_fields:
        return None
    status: int = found[0]
    dated, length, reusable = False, -1, True
    pieces: list[bytes] = [found[1]]
    del lines[0]
    for line in lines:
        piece = judged[line]
        if type(piece) is bytes:
            pieces.append(piece)
            continue
        if piece is None:
            return None
        kind: int = piece[0]
        value: Any = piece[1]
        if kind == DATE:
            dated = True
            pieces.append(value)
        elif kind == LENGTH and length < 0:
            length = value
        elif kind == CLOSE:
            reusable = False
        else:
            return None
    body = length
    if method == "HEAD" or status == 204 or status == 304:
        body = 0
        if status == 204:
            length = -1  # must not be there, and would say nothing (RFC 9110 section 8.6)
    if len(data) - end != body or (limits.max_body is not None and body > limits.max_body):
        return None  # more is to come, its end is that of the connection, or more came than that
    return status, pieces, dated, length, body, end, reusable


@lru_cache(maxsize=256)  # a server says the same few
def status_of(line: bytes) -> tuple[int, bytes] | None:
    """Return the status in a status line of HTTP/1.1, and the line that goes out for it; None: look closer."""
    parts = parts_of_status_line(line)
    if parts is None or parts[0] != "1.1" or parts[1] < 200:
        return None
    _, status, phrase = parts
    return status, b"HTTP/1.1 %d %b\r\n" % (status, phrase or phrase_of(status))
