"""The lines of a head, each judged once: what goes out for it, or what it says to the proxy itself. Pure.

Peers say the same lines again and again, so what a line means is looked up. A line that asks for a closer look makes
its head no ordinary one: see ``ordinary_exchange``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from greensock.http.wire.body_length import MAX_LENGTH_DIGITS
from greensock.http.wire.plain_heads import MAX_LINE, MAX_LINES, Pair, lex_plain_line, may_be_secret
from greensock.http.wire.response_parser import parts_of_status_line
from greensock.http.wire.target import is_sound
from greensock.http.wire.writer import phrase_of

__all__ = ["CLOSE", "DATE", "HOST", "LENGTH", "Judged", "OrdinaryLines", "for_answers", "for_requests", "status_of"]

#: What a line says that the proxy looks at: Host, Content-Length, Connection: close, Date.
HOST, LENGTH, CLOSE, DATE = range(4)

#: What a line means. Bytes: what goes out for it, with CRLF; empty if nothing does. A pair: which of these it is, and
#: the value, as bytes or as a number. None: it asks for a closer look.
Judged: TypeAlias = "bytes | tuple[int, Any] | None"

_Passes: TypeAlias = Callable[[bytes], bool]


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


@lru_cache(maxsize=256)  # a server says the same few
def status_of(line: bytes) -> tuple[int, bytes] | None:
    """Return the status in a status line of HTTP/1.1, and the line that goes out for it; None: look closer."""
    parts = parts_of_status_line(line)
    if parts is None or parts[0] != "1.1" or parts[1] < 200:
        return None
    _, status, phrase = parts
    return status, b"HTTP/1.1 %d %b\r\n" % (status, phrase or phrase_of(status))
