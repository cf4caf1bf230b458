"""The parser of answers: what a client or a gateway reads."""

from __future__ import annotations

import functools
import re

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from greensock.http.errors import BadMessage, BadResponse, Reason
from greensock.http.wire.body_length import framing_of
from greensock.http.wire.body_parser import BodyReader, ChunkedReader, LengthReader, UntilCloseReader
from greensock.http.wire.events import (
    END_OF_INPUT,
    END_OF_MESSAGE,
    NEED_DATA,
    SWITCHED,
    Data,
    EndOfMessage,
    ResponseHead,
    Signal,
)
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import DEFAULT_LIMITS, Limits
from greensock.http.wire.lines import early_refusal, end_of_section, reason_of, tidy
from greensock.http.wire.message_parser import BODY, END, HEAD, IDLE, RAW, MessageParser
from greensock.http.wire.plain_heads import lex_plain_fields
from greensock.http.wire.syntax import TOKEN, is_value

__all__ = ["ResponseParser", "parts_of_status_line", "plain_answer"]

_status_line = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (.*))?", re.DOTALL).fullmatch
_fold = re.compile(rb"(?<![ \t])[ \t]*\r\n[ \t]+").sub
_space_before_colon = re.compile(rb"(?m)^(%b)[ \t]+(?=:)" % TOKEN).sub


@functools.lru_cache(maxsize=256)  # a server says the same few; this saves 1 us an answer
def parts_of_status_line(line: bytes) -> tuple[str, int, bytes] | None:
    """Return version, status and phrase of a status line; None: it is none."""
    match = _status_line(line)
    if match is None or not is_value(match.group(3) or b""):
        return None
    version = "1.0" if match.group(1) == b"0" else "1.1"  # a higher minor version is 1.1 to us (RFC 9110 section 2.5)
    return version, int(match.group(2)), match.group(3) or b""


def plain_answer(data: bytes, method: str, limits: Limits) -> tuple[ResponseHead, bytes] | None:
    """Return head and body of an answer to a ``method`` that came whole, with nothing behind it; None: to be parsed.

    Its head is plain, its body has a Content-Length, and its connection is kept. It never raises; whatever is taken
    here, the parser takes in the same sense (test_http_plain_answer).
    """
    end = data.find(b"\r\n\r\n")
    if not 0 < end <= limits.max_head - 4:
        return None
    lines = data[:end].split(b"\r\n")
    parts = parts_of_status_line(lines[0])
    if parts is None:
        return None
    version, status, phrase = parts
    if version != "1.1" or status < 200 or status == 204 or status == 304 or method == "HEAD" or method == "CONNECT":
        return None
    del lines[0]
    found = lex_plain_fields(lines)
    if found is None:
        return None
    fields, index, is_ordinary = found
    if not is_ordinary or len(fields) > limits.max_fields or b"content-length" not in index:
        return None
    try:
        length, _ = framing_of(fields, index, version)
    except BadMessage:
        return None
    most = limits.max_body
    if length is None or length != len(data) - end - 4 or (most is not None and length > most):
        return None
    headers = Headers.of_raw(fields, index)
    return ResponseHead(status, phrase, version, headers, length, False, length > 0, False, True), data[end + 4 :]


class ResponseParser(MessageParser):
    """Parses the answers on one connection to a server, one request at a time.

    Every error is :class:`BadResponse`; the connection must be closed then. :meth:`expect` goes before each answer.
    """

    __slots__ = ("_interim", "_keep_alive", "_method", "_upgrade")

    _error_class = BadResponse

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._state = IDLE
        self._keep_alive = True
        self._interim = 0
        self._method = ""
        self._upgrade = False

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: the last answer ended exactly, with nothing behind it."""
        return (
            self._state is IDLE
            and self._keep_alive
            and self._broken is None
            and not self._inbox.ended
            and not self._inbox.pending
        )

    def expect(self, method: str, *, upgrade: bool = False) -> None:
        """Tell which request the next answer belongs to; ``upgrade``, whether it asked to switch protocols.

        Raises:
            BadResponse: bytes came that no request asked for. They may be an attempt to answer this request with
                another's response.
            RuntimeError: the answer before has not ended, or the connection can't be used again.
        """
        if self._broken is not None:
            raise BadResponse(*self._broken)
        if self._state is not IDLE or not self._keep_alive:
            raise RuntimeError("expect() before the end of the last answer, or after the last that could come")
        if self._inbox.pending:
            raise self._break(BadMessage("bytes came that no request asked for", Reason.TRAILING_DATA))
        self._method, self._upgrade = method, upgrade
        self._interim = 0
        self._state = HEAD

    def next_event(self) -> ResponseHead | Data | EndOfMessage | Signal:
        """Return the next event, or a signal when there is none.

        After the end of an answer that is ``NEED_DATA``, or ``END_OF_INPUT`` once the server has closed.

        Raises:
            BadResponse: close the connection. It is raised again if called again.
        """
        if self._broken is not None:
            raise BadResponse(*self._broken)
        state = self._state
        try:
            if state is HEAD:
                return self._next_head()
            if state is BODY:
                return self._next_of_body()
            if state is END:
                self._end_message()
                return END_OF_MESSAGE
            if state is RAW:
                return SWITCHED
            if self._inbox.pending:
                raise BadMessage("bytes came behind the end of the answer", Reason.TRAILING_DATA)
            return END_OF_INPUT if self._inbox.ended else NEED_DATA
        except BadMessage as refusal:
            raise self._break(refusal) from None

    def take_whole_body(self) -> bytes | None:
        """Take what is left of the answer, and end it, if that has come and nothing else; None: go on with events.

        It is what ``next_event`` would have given in pieces, without trailers.
        """
        inbox, state = self._inbox, self._state
        if state is BODY:
            body = self._body
            if type(body) is not LengthReader or body.left != len(inbox.data) - inbox.start or self._broken is not None:
                return None
            data = inbox.data[inbox.start :]
            inbox.data, inbox.start = b"", 0
            self._state = IDLE
            return data
        if state is END:
            self._end_message()
            return b""
        return None

    def skip_body(self, count: int) -> None:
        """Tell that so many bytes of a body of known length were taken from the connection without being fed.

        Raises:
            RuntimeError: fed bytes are still pending, or no such body is being read.
        """
        body = self._body
        if self._inbox.pending or not isinstance(body, LengthReader):
            raise RuntimeError("skip_body() is for a body of known length of which nothing is pending")
        body.skip(count)

    def _end_message(self) -> None:
        self._state = IDLE
        self._inbox.release()

    def _next_head(self) -> ResponseHead | Signal:
        inbox = self._inbox
        end = end_of_section(inbox)
        if end < 0:
            if refusal := self._early_refusal(len(inbox.data)):
                raise refusal
            inbox.scanned = inbox.pending
            inbox.compact()
            if not inbox.ended:
                return NEED_DATA
            if inbox.pending:
                raise BadMessage("the input ended inside a head", Reason.INCOMPLETE)
            raise BadMessage("the server closed without an answer", Reason.NO_RESPONSE)
        if end - inbox.start > self._limits.max_head:
            raise self._early_refusal(end) or BadMessage("a large head", Reason.HEAD_TOO_LARGE)
        event = self._lex_plain(inbox.data[inbox.start : end - 4]) or self._lex(inbox.data[inbox.start : end])
        inbox.start, inbox.scanned = end, 0
        return event

    def _early_refusal(self, end: int) -> BadMessage | None:
        inbox = self._inbox
        most = self._limits.max_head
        if not b"HTTP/".startswith(inbox.data[inbox.start : inbox.start + min(5, most)]):
            return BadMessage("an answer does not begin with HTTP/", Reason.STATUS_LINE)
        return early_refusal(inbox, end, most, Reason.HEAD_TOO_LARGE)

    def _lex_plain(self, head: bytes) -> ResponseHead | None:
        """Return the head if all of it is plain, None if the lexer is to look at it."""
        lines = head.split(b"\r\n")
        parts = parts_of_status_line(lines[0])
        if parts is None or parts[1] < 200 or self._method == "CONNECT":
            return None
        del lines[0]
        found = lex_plain_fields(lines)
        if found is None:
            return None
        fields, index, is_ordinary = found
        if len(fields) > self._limits.max_fields:
            return None
        version, status, phrase = parts
        try:
            length, is_chunked = framing_of(fields, index, version)
        except BadMessage:
            return None
        is_ordinary = is_ordinary and version == "1.1"
        return self._go_on(status, phrase, version, Headers.of_raw(fields, index), length, is_chunked, is_ordinary)

    def _lex(self, head: bytes) -> ResponseHead:
        line = head[: head.find(b"\r\n")]
        parts = parts_of_status_line(line)
        if parts is None:
            refusal = BadMessage(f"the status line {line[:80]!r}", Reason.STATUS_LINE)
            raise self._early_refusal(end_of_section(self._inbox)) or refusal
        version, status, phrase = parts
        if head[7:8] > b"1":  # the lexer knows no higher minor version
            head = b"HTTP/1.1" + head[8:]
        try:
            self._feed_lexer(tidy(head))
        except HttpParserError as error:
            self._lex_mended(head, error)
        fields, index = self._checked_fields()
        length, is_chunked = None, False
        if not self._opens_tunnel(status):
            length, is_chunked = framing_of(fields, index, version)
        headers = Headers.of_raw(fields, index)
        return self._go_on(status, phrase, version, headers, length, is_chunked)

    def _opens_tunnel(self, status: int) -> bool:
        # Content-Length and Transfer-Encoding must be ignored then (RFC 9112 section 6.3).
        return self._method == "CONNECT" and 200 <= status < 300

    def _feed_lexer(self, head: bytes) -> None:
        self._record.clear()
        try:
            HttpResponseParser(self._record).feed_data(head)
        except HttpParserUpgrade:
            pass  # 101 says so itself

    def _lex_mended(self, head: bytes, error: HttpParserError) -> None:
        """Lex the head again with what a client or gateway is to put right: folds, space before a colon.

        RFC 9112 sections 5.1 and 5.2. Everything else that is wrong stays wrong.
        """
        early = self._early_refusal(end_of_section(self._inbox))
        if early is not None:
            raise early
        first, crlf, rest = head[:-4].partition(b"\r\n")
        mended = first + crlf + _space_before_colon(rb"\1", _fold(b" ", rest)) + b"\r\n\r\n"
        if rest[:1] in (b" ", b"\t") or mended == head:
            raise BadMessage(f"fields: {error}", reason_of(error, head))
        try:
            self._feed_lexer(tidy(mended))
        except HttpParserError as second:
            raise BadMessage(f"fields: {second}", reason_of(second, mended)) from None

    def _go_on(
        self,
        status: int,
        phrase: bytes,
        version: str,
        headers: Headers,
        length: int | None,
        is_chunked: bool,
        is_ordinary: bool = False,
    ) -> ResponseHead:
        is_switch = status == 101 or self._opens_tunnel(status)
        has_body = not (is_switch or status < 200 or status == 204 or status == 304 or self._method == "HEAD")
        if is_switch or status < 200 or status == 204:
            length, is_chunked = None, False  # must not be there, and would say nothing (RFC 9110 section 8.6)
        elif length == 0:
            has_body = False
        head = ResponseHead(status, phrase, version, headers, length, is_chunked, has_body, is_switch, is_ordinary)
        if is_switch:
            if status == 101 and not self._upgrade:
                raise BadMessage("101 though no Upgrade was sent", Reason.UNEXPECTED_SWITCH)
            self._keep_alive = False
            self._state = RAW
        elif status < 200:
            self._interim += 1
            if self._interim > self._limits.max_interim:
                most = self._limits.max_interim
                raise BadMessage(f"more than max_interim={most} answers 1xx", Reason.TOO_MANY_INTERIM)
        elif has_body:
            self._keep_alive = (length is not None or is_chunked) and head.keep_alive
            self._body = self._reader_of(head)
            self._state = BODY
        else:
            self._keep_alive = head.keep_alive
            self._state = END
        return head

    def _reader_of(self, head: ResponseHead) -> BodyReader:
        most, length = self._limits.max_body, head.content_length
        if length is not None:
            if most is not None and length > most:
                raise BadMessage(f"a body of more than max_body={most} bytes", Reason.BODY_TOO_LARGE)
            return LengthReader(length)
        return ChunkedReader(self._limits) if head.is_chunked else UntilCloseReader(most)
