"""Sections of lines: a head that is not plain, or trailers; found whole, then lexed by httptools (llhttp).

The end of a section is searched for here and its size checked before a byte of it is lexed: the lexer has no limits. A
section is lexed in one call, so that the lexer keeps no state between calls and its spans come whole.

What is refused must not depend on how the bytes were split. So whatever can be refused before the section is whole is
decided by :func:`early_refusal` alone, from the place where it shows, and that verdict goes before any other.
"""

from __future__ import annotations

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from greensock.http.errors import BadMessage, Reason
from greensock.http.wire.inbox import Inbox

__all__ = ["LexedFields", "early_refusal", "end_of_section", "lex_trailers", "reason_of", "tidy"]

_violation = re.compile(rb"\x00|(?<!\r)\n|\r(?=[^\n])").search
_VIOLATIONS = {
    0: (Reason.NUL, "a zero byte"),
    10: (Reason.BARE_LF, "LF without CR"),
    13: (Reason.BARE_CR, "CR without LF"),
}
_fold = re.compile(rb"\r\n[ \t]").search
_trailing_space = re.compile(rb"(?<=[^\s])[ \t]+(?=\r\n)").sub

_REASONS = (
    ("Transfer-Encoding can't be present", Reason.CONTENT_LENGTH_AND_TRANSFER_ENCODING),
    ("Content-Length can't be present", Reason.CONTENT_LENGTH_AND_TRANSFER_ENCODING),
    ("Duplicate Content-Length", Reason.CONTENT_LENGTH_REPEATED),
    ("Content-Length", Reason.CONTENT_LENGTH),
    ("Transfer-Encoding", Reason.TRANSFER_ENCODING),
)


class LexedFields:
    """What the lexer found in one section. Its callbacks only record: an exception in one would come out distorted."""

    __slots__ = ("fields", "phrase", "target")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the last section."""
        self.fields: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.phrase = b""

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the target."""
        self.target += piece

    def on_status(self, piece: bytes) -> None:
        """Take a piece of the reason phrase."""
        self.phrase += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field."""
        self.fields.append((name, value))


def end_of_section(inbox: Inbox) -> int:
    """Return where the lines end, behind the empty line; -1 if that has not come."""
    data, start = inbox.data, inbox.start
    scanned = inbox.scanned
    end = data.find(b"\r\n\r\n", start + scanned - 3 if scanned > 3 else start)
    return end if end < 0 else end + 4


def early_refusal(
    inbox: Inbox, end: int, most: int, too_large: Reason, first_line_most: int | None = None
) -> BadMessage | None:
    """Return why the lines in ``data[start:end]``, perhaps cut short, can't become a section; None if they still may.

    ``most`` is the longest section, ``first_line_most`` the longest first line, in bytes. If
    several reasons apply, the one that shows earliest in the input is returned.
    """
    data, start = inbox.data, inbox.start
    stop, refusal = end, None
    if first_line_most is not None:
        line_stop = start + first_line_most + 2
        if end >= line_stop and data.find(b"\r\n", start, line_stop) < 0:
            stop, refusal = line_stop, _overlong_line(data[start:line_stop], first_line_most)
    if end > start + most and (refusal is None or start + most + 1 < stop):
        stop, refusal = start + most, BadMessage(f"more than {most} bytes", too_large)
    match = _violation(data, max(start, start + inbox.scanned - 1), stop)
    if match is not None:
        reason, text = _VIOLATIONS[data[match.start()]]
        return BadMessage(f"{text}, {match.start() - start} bytes from the start", reason)
    return refusal


def _overlong_line(line: bytes, most: int) -> BadMessage:
    if b" " not in line[:64]:
        return BadMessage(f"the request line begins with {line[:64]!r}", Reason.REQUEST_LINE)
    return BadMessage(f"a request line of more than {most} bytes", Reason.TARGET_TOO_LONG)


def reason_of(error: HttpParserError, section: bytes) -> Reason:
    """Return the reason that the lexer's words stand for; ``section`` is what it was given, from the first line on."""
    fold = _fold(section)
    if fold is not None:
        return Reason.OBS_FOLD if fold.start() > section.find(b"\r\n") else Reason.FIELD
    text = str(error)
    return next((reason for part, reason in _REASONS if part in text), Reason.FIELD)


def tidy(section: bytes) -> bytes:
    """Return the section without white space at the end of its fields, which the lexer would leave in the values.

    It is no part of them (RFC 9112 section 5). A first line, and a line of nothing but white space, stay as they are.
    """
    if section.find(b" \r\n") < 0 and section.find(b"\t\r\n") < 0:  # ``in`` takes twice as long
        return section
    first, crlf, rest = section.partition(b"\r\n")
    return first + crlf + _trailing_space(b"", rest)


def lex_trailers(section: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields of a trailer section, given with the empty line that ends it.

    Raises:
        BadMessage: a line of it is no field.
    """
    record = LexedFields()
    section = tidy(b"GET / HTTP/1.1\r\n" + section)
    try:
        HttpRequestParser(record).feed_data(section)
    except HttpParserUpgrade:
        pass  # a trailer can't upgrade
    except HttpParserError as error:
        raise BadMessage(f"trailers: {error}", reason_of(error, section)) from None
    return record.fields
