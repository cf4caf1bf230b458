"""The parser of requests: what a server reads."""

from __future__ import annotations

import re

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from greensock.http.errors import BadMessage, BadRequest, Reason
from greensock.http.wire.body_length import framing_of
from greensock.http.wire.body_parser import ChunkedReader, LengthReader
from greensock.http.wire.events import (
    END_OF_INPUT,
    END_OF_MESSAGE,
    NEED_DATA,
    SWITCHED,
    Data,
    EndOfMessage,
    RequestHead,
    Signal,
)
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import DEFAULT_LIMITS, Limits
from greensock.http.wire.lines import early_refusal, end_of_section, reason_of, tidy
from greensock.http.wire.message_parser import BODY, END, HEAD, RAW, MessageParser
from greensock.http.wire.plain_heads import plain_methods, read_plain_head
from greensock.http.wire.syntax import TOKEN
from greensock.http.wire.target import authority_of, check_host, is_sound

__all__ = ["RequestParser", "plain_request_head"]

#: Bytes of a request line besides its target, more than any method and version take.
LINE_REST = 64
#: The longest method, in bytes. (RFC 9112 section 3 wants 501 for one that is longer than any that is known.)
MAX_METHOD = 32
#: Methods whose names are theirs in any spelling. Methods are case-sensitive (RFC 9110 section 9.1), but some servers
#: do not know that: ``head`` or ``connect`` would be framed in one way there and in another here. ``PRI`` is what
#: HTTP/2 begins with, and no request (RFC 9113 section 3.4).
RESERVED = frozenset({*plain_methods, b"CONNECT", b"TRACE", b"PRI"})

_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_request_line = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % TOKEN).fullmatch
_request_line_0_9 = re.compile(rb"%b [\x21-\x7e]+" % TOKEN).fullmatch


class RequestParser(MessageParser):
    """Parses the requests of one connection.

    Every error is :class:`BadRequest`, with the status to answer.
    """

    __slots__ = ("_after_blank",)

    _error_class = BadRequest

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._after_blank = False

    def next_event(self) -> RequestHead | Data | EndOfMessage | Signal:
        """Return the next event, or a signal when there is none.

        ``END_OF_INPUT`` once the client has closed between two requests; ``SWITCHED`` after a CONNECT. After an
        Upgrade that you accept, call :meth:`take_rest` at the request's end; else go on as if there had been none.

        Raises:
            BadRequest: answer its status and close. It is raised again if called again.
        """
        if self._broken is not None:
            raise BadRequest(*self._broken)
        state = self._state
        try:
            if state is HEAD:
                return self._next_head()
            if state is END:
                self._state = HEAD
                return END_OF_MESSAGE
            if state is BODY:
                return self._next_of_body()
            return SWITCHED
        except BadMessage as refusal:
            raise self._break(refusal) from None

    def _end_message(self) -> None:
        self._state = HEAD

    def _next_head(self) -> RequestHead | Signal:
        inbox = self._inbox
        if not self._after_blank and inbox.data.startswith(b"\r\n", inbox.start):
            # One is forgiven (RFC 9112 section 2.2): old clients send it after the body of a POST.
            inbox.start += 2
            inbox.scanned = 0
            self._after_blank = True
        data, start, limits = inbox.data, inbox.start, self._limits
        end = end_of_section(inbox) if start < len(data) else -1
        if end < 0:
            return self._wait()
        event = self._lex_plain(data[start:end]) if end - start <= limits.max_head else None
        if event is not None:
            inbox.start, inbox.scanned = end, 0
            self._after_blank = False
            return event
        line = data[start : data.find(b"\r\n", start)]
        if end - start > limits.max_head or len(line) > limits.max_target + LINE_REST:
            raise self._early_refusal(end) or BadMessage("a large head", Reason.HEAD_TOO_LARGE)
        head = data if start == 0 and end == len(data) else data[start:end]
        event = self._lex(head, line)
        inbox.start, inbox.scanned = end, 0
        self._after_blank = False
        return event

    def _wait(self) -> Signal:
        inbox = self._inbox
        length = len(inbox.data) - inbox.start
        if not length:
            inbox.release()
            return END_OF_INPUT if inbox.ended else NEED_DATA
        pending_blank = not self._after_blank and length == 1 and inbox.data.endswith(b"\r")
        if not pending_blank and (refusal := self._early_refusal(len(inbox.data))):
            raise refusal
        inbox.scanned = length
        inbox.compact()
        if not inbox.ended:
            return NEED_DATA
        if not pending_blank:
            raise BadMessage("the input ended inside a head", Reason.INCOMPLETE)
        return END_OF_INPUT

    def _early_refusal(self, end: int) -> BadMessage | None:
        inbox, limits = self._inbox, self._limits
        if inbox.data[inbox.start] not in _TOKEN_BYTES:
            begin = inbox.data[inbox.start : inbox.start + 1]
            return BadMessage(f"a request begins with {begin!r}", Reason.REQUEST_LINE)
        return early_refusal(inbox, end, limits.max_head, Reason.HEAD_TOO_LARGE, limits.max_target + LINE_REST)

    def _lex_plain(self, head: bytes) -> RequestHead | None:
        """Return the head if all of it is plain and sound, None if the lexer is to look at it. Never raises."""
        event = plain_request_head(head, self._limits)
        if event is not None:
            if event.content_length is None and not event.is_chunked:
                self._state = END
                return event
            try:
                self._go_on(event, event.method.encode())
            except BadMessage:
                return None
        return event

    def _lex(self, head: bytes, line: bytes) -> RequestHead:
        record, said = self._record, b""
        try:
            method = self._feed_lexer(head)
        except HttpParserError as error:
            reworded = self._reworded(line)
            if reworded is None:
                raise self._refusal(error, head, line) from None
            said, new_line = reworded
            try:
                method = self._feed_lexer(new_line + head[len(line) :])
            except HttpParserError as second:
                raise self._refusal(second, head, line) from None
            line = new_line
        target = record.target
        record.target = b""
        version = "1.1"
        if line != b"%b %b HTTP/1.1" % (method, target):
            if line != b"%b %b HTTP/1.0" % (method, target):
                raise self._refusal(None, head, line)
            version = "1.0"
        if target.find(b"#") >= 0 or len(target) > self._limits.max_target:
            raise self._refusal_of_target(target)
        fields, index = self._checked_fields()
        most = self._limits.max_field
        if most is not None and _longest(fields) > most:
            raise BadMessage(f"a field of more than max_field={most} bytes", Reason.FIELD_TOO_LARGE)
        host = index.get(b"host")
        if host is not None:
            if len(index) != len(fields) and sum(name.lower() == b"host" for name, _ in fields) > 1:
                raise BadMessage("Host more than once", Reason.HOST_REPEATED)
            check_host(host)
        elif version == "1.1":
            raise BadMessage("HTTP/1.1 without Host", Reason.HOST_MISSING)
        method = said or method
        length, is_chunked = None, False
        if b"content-length" in index or b"transfer-encoding" in index:
            length, is_chunked = framing_of(fields, index, version)
        authority = host or b""
        if not target.startswith(b"/") or method == b"CONNECT":
            authority = authority_of(method, target, host)
        event = RequestHead(
            method.decode(), target, version, Headers.of_raw(fields, index), length, is_chunked, authority
        )
        self._go_on(event, method)
        return event

    def _feed_lexer(self, head: bytes) -> bytes:
        """Have a head lexed, and return its method."""
        self._record.clear()
        # One lexer a head, for 0.2 us: it has ideas of its own about bodies, close and Upgrade, which must not matter.
        lexer = HttpRequestParser(self._record)
        try:
            lexer.feed_data(tidy(head))
        except HttpParserUpgrade:
            pass  # whether it is taken up is not decided here
        return lexer.get_method()

    def _reworded(self, line: bytes) -> tuple[bytes, bytes] | None:
        """Return the method of a request line and a line that the lexer takes in its place; None: it can't be sound.

        The lexer knows a fixed set of methods, but any token may be one: whether it has a meaning is for the origin
        server to say, not for a proxy. And a minor version that is higher than ours is taken as ours (RFC 9110 section
        2.5).
        """
        match = _request_line(line)
        if match is None or match.group(3) != b"1":
            return None
        method, target, _, minor = match.groups()
        upper = method.upper()
        if len(method) > MAX_METHOD or upper == b"PRI" or (upper in RESERVED and upper != method):
            return None
        stand_in = method if upper in RESERVED else b"GET"
        reworded = b"%b %b HTTP/1.%b" % (stand_in, target, b"0" if minor == b"0" else b"1")
        return (method, reworded) if reworded != line else None

    def _go_on(self, head: RequestHead, method: bytes) -> None:
        most = self._limits.max_body
        if method == b"CONNECT":
            if head.has_body:
                raise BadMessage("CONNECT with a body", Reason.CONNECT_WITH_BODY)
            self._state = RAW
        elif head.is_chunked:
            self._body = ChunkedReader(self._limits)
            self._state = BODY
        elif head.content_length:
            if most is not None and head.content_length > most:
                raise BadMessage(f"a body of more than max_body={most} bytes", Reason.BODY_TOO_LARGE)
            self._body = LengthReader(head.content_length)
            self._state = BODY
        else:
            self._state = END

    def _refusal(self, error: HttpParserError | None, head: bytes, line: bytes) -> BadMessage:
        """Return what is wrong with a whole head that the lexer refused, or that it took for another than it is."""
        inbox = self._inbox
        early = self._early_refusal(end_of_section(inbox))
        if early is not None:
            return early
        match = _request_line(line)
        if match is None:
            if _request_line_0_9(line):
                return BadMessage("a request without a version", Reason.HTTP_0_9)
            return BadMessage(f"the request line {line[:80]!r}", Reason.REQUEST_LINE)
        method, target, major, minor = match.groups()
        if major != b"1":
            reason = Reason.HTTP_0_9 if (major, minor) == (b"0", b"9") else Reason.VERSION
            return BadMessage(f"HTTP/{major.decode()}.{minor.decode()}: only 1.1 and 1.0 are spoken here", reason)
        if isinstance(error, HttpParserInvalidMethodError) or method == b"PRI":
            return BadMessage(f"the method {method[:40]!r} is not known", Reason.UNKNOWN_METHOD)
        if isinstance(error, HttpParserInvalidURLError) or error is None:
            return self._refusal_of_target(target)
        return BadMessage(f"fields: {error}", reason_of(error, head))

    def _refusal_of_target(self, target: bytes) -> BadMessage:
        most = self._limits.max_target
        if len(target) > most:
            return BadMessage(f"a target of more than max_target={most} bytes", Reason.TARGET_TOO_LONG)
        return BadMessage(f"the target {target[:80]!r}", Reason.TARGET)


def _longest(fields: list[tuple[bytes, bytes]]) -> int:
    """Return the bytes of the longest field, with its colon, a space and CRLF."""
    return max((len(name) + len(value) + 4 for name, value in fields), default=0)


def plain_request_head(head: bytes, limits: Limits) -> RequestHead | None:
    """Return a head if all of it is plain and sound, None if the lexer is to look at it. Never raises.

    ``head`` ends with its empty line, and is as large as it may be. How large its body may be is not looked at.
    """
    found = read_plain_head(head, len(head) - 4, limits.max_target)
    if found is None:
        return None
    method, target, fields, index, is_ordinary = found
    host = index.get(b"host")
    if host is None or not is_sound(host) or len(fields) > limits.max_fields:
        return None
    if limits.max_field is not None and len(head) - 4 > limits.max_field and _longest(fields) > limits.max_field:
        return None
    if len(fields) != len(index) and sum(name.lower() == b"host" for name, _ in fields) > 1:
        return None
    length, is_chunked = None, False
    if b"content-length" in index or b"transfer-encoding" in index:
        try:
            length, is_chunked = framing_of(fields, index, "1.1")
        except BadMessage:
            return None
    return RequestHead(method, target, "1.1", Headers.of_raw(fields, index), length, is_chunked, host, is_ordinary)
