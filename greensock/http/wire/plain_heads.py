"""Heads that are plain: lexed line by line, from memory where a line was seen before.

A peer says the same lines again and again: who it is, what it accepts, what it serves. So a field that was lexed once
is looked up from then on, in a tenth of the time. Only what is *plain* is taken here, by a grammar narrower than
llhttp's; for all else ``None`` is returned and llhttp decides: what it takes here, llhttp takes in the same sense, and
what must be refused is refused by llhttp, or by the checks behind it. (``tests/test_http_plain.py`` compares.)

The memory is bounded, in lines and in bytes of each, and keeps no field whose name says that it is a secret: cookies,
and what has ``auth``, ``key``, ``token``, ``secret`` or ``pass`` in it.
"""

from __future__ import annotations

import re

from greensock.http.wire.scan import cut_request
from greensock.http.wire.syntax import TOKEN, is_of_connection

__all__ = [
    "CREDENTIALS",
    "MAX_LINE",
    "MAX_LINES",
    "Pair",
    "lex_plain_fields",
    "lex_plain_line",
    "may_be_secret",
    "plain_methods",
    "read_plain_head",
]

#: How many lines are remembered, and of at most how many bytes each.
MAX_LINES, MAX_LINE = 2048, 256

#: Methods that need no second look (RFC 9110 section 9, RFC 5789).
plain_methods = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}


#: Fields that say something of the hop, or that a gateway must look at. A head without them is *ordinary*: it keeps its
#: connection, as HTTP/1.1 does, and none of its fields needs a second look.
SPECIAL = frozenset(
    {b"connection", b"expect", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"via"}
)

#: Fields with credentials: of some kinds (see ``is_of_connection``) they make their head special, too.
CREDENTIALS = frozenset({b"authorization", b"proxy-authorization"})

#: Whether a field of this lower-case name may hold a secret: it is not remembered then.
may_be_secret = re.compile(rb"cookie|auth|key|token|secret|pass").search

_VISIBLE = rb"[\x21-\x7e\x80-\xff]"
_field = re.compile(rb"(%b):[ \t]*((?:%b(?:[\t\x20-\x7e\x80-\xff]*%b)?)?)" % (TOKEN, _VISIBLE, _VISIBLE)).fullmatch

Pair = tuple[bytes, bytes]
_Found = tuple[Pair, bytes, bytes, bool]


class _KnownLines(dict[bytes, _Found | None]):
    """A line of a head to its field, the lower-case name, the value, and whether it is special; None: not plain."""

    __slots__ = ()

    def __missing__(self, line: bytes) -> _Found | None:
        match = _field(line)
        if match is None:
            return None
        name, value = match.groups()
        lower = name.lower()
        is_special = lower in SPECIAL and (lower, value) != (b"connection", b"keep-alive")
        if lower in CREDENTIALS and is_of_connection(value):
            is_special = True
        found = ((name, value), lower, value, is_special)
        if len(line) <= MAX_LINE and not may_be_secret(lower):
            if len(self) >= MAX_LINES:
                self.clear()
            self[line] = found
        return found


_known = _KnownLines()


def read_plain_head(
    data: bytes, end: int, max_target: int
) -> tuple[str, bytes, list[Pair], dict[bytes, bytes], bool] | None:
    """Return what a plain head of a request says that ends there, before its empty line: None if it is not plain.

    It is its method, its target, and what :func:`lex_plain_fields` returns.
    """
    cut = cut_request(data, end, max_target)
    if cut is None:
        return None
    methods = plain_methods
    method = methods.get(cut[0])
    if method is None:
        return None
    found = lex_plain_fields(cut[2])
    if found is None:
        return None
    return method, cut[1], found[0], found[1], found[2]


def lex_plain_fields(lines: list[bytes]) -> tuple[list[Pair], dict[bytes, bytes], bool] | None:
    """Return the fields, an index of their values by lower-case name, and whether none is special.

    None if a line is not plain.
    """
    known, pairs, index, is_ordinary = _known, [], {}, True
    for line in lines:
        found = known[line]
        if found is None:
            return None
        pairs.append(found[0])
        index[found[1]] = found[2]
        if found[3]:
            is_ordinary = False
    return pairs, index, is_ordinary


def lex_plain_line(line: bytes) -> tuple[Pair, bytes, bytes, bool] | None:
    """Return the field in a line, its lower-case name, its value, and whether it is special; None: it is not plain."""
    return _known[line]
