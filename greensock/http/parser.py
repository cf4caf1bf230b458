"""The parsers: bytes in, events out.

::

    parser = RequestParser()
    parser.feed(data)
    while (event := parser.next_event()) is not NEED_DATA:
        ...

A parser owns the bytes that were fed and not yet taken. It does no I/O and knows no clock.

- It never runs ahead: a message's bytes are looked at when the event before has been taken. What was fed beyond stays
  as it is, and who feeds only after ``NEED_DATA`` holds no more than one piece of input (back-pressure).
- However the input is split, the events are the same (``Data`` in other pieces), and so is the error.
- httptools (llhttp) lexes heads and trailers, each in one call. What it leaves out is checked here and beside: sizes
  before a byte is lexed, then the first line against what was found in it, Host, framing.
- A parser that has raised raises the same error ever after. Where the next message would begin can't be known then.

::

    HEAD --> BODY --> HEAD ...
      |`---> END  --> HEAD ...          without a body
      |        `----> SWITCHED          after CONNECT
      `-------------> SWITCHED          after an answer that switches protocols
"""

from __future__ import annotations

import enum
import functools
import re
from typing import ClassVar

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from greensock.http.body import BodyReader, ChunkedReader, LengthReader, UntilCloseReader
from greensock.http.errors import BadMessage, BadRequest, BadResponse, Reason
from greensock.http.events import (
    END_OF_INPUT,
    NEED_DATA,
    SWITCHED,
    Data,
    EndOfMessage,
    RequestHead,
    ResponseHead,
    Signal,
)
from greensock.http.framing import framing_of
from greensock.http.headers import Headers
from greensock.http.inbox import Inbox
from greensock.http.limits import Limits
from greensock.http.lines import Record, early_refusal, end_of_section, reason_of, tidy
from greensock.http.syntax import TOKEN, is_value
from greensock.http.target import authority_of, check_host

__all__ = ["RequestParser", "ResponseParser"]

#: Bytes of a request line besides its target, more than any method and version take.
LINE_REST = 64

_DEFAULT_LIMITS = Limits()
_NO_BODY = BodyReader()
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_request_line = re.compile(rb"%b ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % TOKEN).fullmatch
_request_line_0_9 = re.compile(rb"%b [\x21-\x7e]+" % TOKEN).fullmatch
_status_line = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (.*))?", re.DOTALL).fullmatch
_fold = re.compile(rb"(?<![ \t])[ \t]*\r\n[ \t]+").sub
_space_before_colon = re.compile(rb"(?m)^(%b)[ \t]+(?=:)" % TOKEN).sub


@functools.lru_cache(maxsize=256)  # a server says the same few; this saves 1 us an answer
def _parts_of_status_line(line: bytes) -> tuple[str, int, bytes] | None:
    match = _status_line(line)
    if match is None or not is_value(match.group(3) or b""):
        return None
    return "1." + match.group(1).decode(), int(match.group(2)), match.group(3) or b""


class _State(enum.Enum):
    #: Before a head, or within one.
    HEAD = enum.auto()
    #: Within a body.
    BODY = enum.auto()
    #: Behind a head that has no body; its end is yet to be told.
    END = enum.auto()
    #: Behind an exchange; the next one is yet to be announced (answers only).
    IDLE = enum.auto()
    #: What follows is not HTTP.
    SWITCHED = enum.auto()


# A member looked up in its class costs three times as much as a global.
_HEAD, _BODY, _END, _IDLE, _SWITCHED = _State


class _Parser:
    """What both parsers have in common: input, bodies, errors."""

    __slots__ = ("_body", "_broken", "_inbox", "_limits", "_record", "_state")

    _blame: ClassVar[type[BadRequest] | type[BadResponse]]

    def __init__(self, limits: Limits = _DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._inbox = Inbox()
        self._record = Record()
        self._state = _HEAD
        self._body = _NO_BODY
        # The words and not the error: its traceback would hold whoever caught it, and be held by it.
        self._broken: tuple[str, Reason] | None = None

    @property
    def pending(self) -> int:
        """How many bytes are held that no event has been made of. Feed no more while that is much."""
        return self._inbox.pending

    def feed(self, data: bytes) -> None:
        """Add bytes that came; they are held, not copied."""
        self._inbox.feed(data if type(data) is bytes else bytes(data))

    def feed_eof(self) -> None:
        """Tell that no more bytes will come."""
        self._inbox.ended = True

    def take_rest(self) -> bytes:
        """Give out what is pending as raw bytes, for a connection that switches protocols."""
        inbox = self._inbox
        rest = inbox.data[inbox.start :]
        inbox.start, inbox.scanned = len(inbox.data), 0
        return rest

    def _next_of_body(self) -> Data | EndOfMessage | Signal:
        inbox = self._inbox
        event = self._body.read(inbox)
        if event is NEED_DATA:
            inbox.compact()
            if inbox.ended:
                raise BadMessage("the input ended inside a body", Reason.INCOMPLETE)
        elif type(event) is EndOfMessage:
            self._body = _NO_BODY
            self._end_message()
        return event

    def _end_message(self) -> None:
        raise NotImplementedError

    def _break(self, refusal: BadMessage) -> BadRequest | BadResponse:
        self._broken = (str(refusal), refusal.reason)
        return self._blame(*self._broken)

    def _checked_fields(self) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
        """Return what was lexed, and an index by lower-case name."""
        fields, self._record.fields = self._record.fields, []
        if len(fields) > self._limits.max_fields:
            raise BadMessage(f"more than max_fields={self._limits.max_fields} fields", Reason.TOO_MANY_FIELDS)
        return fields, {name.lower(): value for name, value in fields}


class RequestParser(_Parser):
    """Parses the requests of one connection.

    Every error is :class:`BadRequest`, with the status to answer.
    """

    __slots__ = ("_after_blank",)

    _blame = BadRequest

    def __init__(self, limits: Limits = _DEFAULT_LIMITS) -> None:
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
            if state is _HEAD:
                return self._next_head()
            if state is _END:
                self._state = _HEAD
                return EndOfMessage()
            if state is _BODY:
                return self._next_of_body()
            return SWITCHED
        except BadMessage as refusal:
            raise self._break(refusal) from None

    def _end_message(self) -> None:
        self._state = _HEAD

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

    def _lex(self, head: bytes, line: bytes) -> RequestHead:
        record = self._record
        # One lexer a head, for 0.2 us: it has ideas of its own about bodies, close and Upgrade, which must not matter.
        lexer = HttpRequestParser(record)
        try:
            lexer.feed_data(tidy(head))
        except HttpParserUpgrade:
            pass  # whether it is taken up is not decided here
        except HttpParserError as error:
            raise self._refusal(error, head, line) from None
        method, target = lexer.get_method(), record.target
        record.target = b""
        version = "1.1"
        if line != b"%b %b HTTP/1.1" % (method, target):
            if line != b"%b %b HTTP/1.0" % (method, target):
                raise self._refusal(None, head, line)
            version = "1.0"
        if b"#" in target or len(target) > self._limits.max_target:
            raise self._refusal_of_target(target)
        fields, index = self._checked_fields()
        host = index.get(b"host")
        if host is not None:
            if len(index) != len(fields) and sum(name.lower() == b"host" for name, _ in fields) > 1:
                raise BadMessage("Host more than once", Reason.HOST_REPEATED)
            check_host(host)
        elif version == "1.1":
            raise BadMessage("HTTP/1.1 without Host", Reason.HOST_MISSING)
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

    def _go_on(self, head: RequestHead, method: bytes) -> None:
        most = self._limits.max_body
        if method == b"CONNECT":
            if head.has_body:
                raise BadMessage("CONNECT with a body", Reason.CONNECT_WITH_BODY)
            self._state = _SWITCHED
        elif head.is_chunked:
            self._body = ChunkedReader(self._limits)
            self._state = _BODY
        elif head.content_length:
            if most is not None and head.content_length > most:
                raise BadMessage(f"a body of more than max_body={most} bytes", Reason.BODY_TOO_LARGE)
            self._body = LengthReader(head.content_length)
            self._state = _BODY
        else:
            self._state = _END

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
        version = match.group(2) + b"." + match.group(3)
        if version not in (b"1.1", b"1.0"):
            reason = Reason.HTTP_0_9 if version == b"0.9" else Reason.VERSION
            return BadMessage(f"HTTP/{version.decode()}: only 1.1 and 1.0 are spoken here", reason)
        if isinstance(error, HttpParserInvalidMethodError):
            return BadMessage(f"the method {line.split()[0][:40]!r} is not known", Reason.UNKNOWN_METHOD)
        if isinstance(error, HttpParserInvalidURLError) or error is None:
            return self._refusal_of_target(match.group(1))
        return BadMessage(f"fields: {error}", reason_of(error, head))

    def _refusal_of_target(self, target: bytes) -> BadMessage:
        most = self._limits.max_target
        if len(target) > most:
            return BadMessage(f"a target of more than max_target={most} bytes", Reason.TARGET_TOO_LONG)
        return BadMessage(f"the target {target[:80]!r}", Reason.TARGET)


class ResponseParser(_Parser):
    """Parses the answers on one connection to a server, one request at a time.

    Every error is :class:`BadResponse`; the connection must be closed then. :meth:`expect` goes before each answer.
    """

    __slots__ = ("_interim", "_keep_alive", "_method", "_upgrade")

    _blame = BadResponse

    def __init__(self, limits: Limits = _DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._state = _IDLE
        self._keep_alive = True
        self._interim = 0
        self._method = ""
        self._upgrade = False

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: the last answer ended exactly, with nothing behind it."""
        return (
            self._state is _IDLE
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
        if self._state is not _IDLE or not self._keep_alive:
            raise RuntimeError("expect() before the end of the last answer, or after the last that could come")
        if self._inbox.pending:
            raise self._break(BadMessage("bytes came that no request asked for", Reason.TRAILING_DATA))
        self._method, self._upgrade = method, upgrade
        self._interim = 0
        self._state = _HEAD

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
            if state is _HEAD:
                return self._next_head()
            if state is _BODY:
                return self._next_of_body()
            if state is _END:
                self._end_message()
                return EndOfMessage()
            if state is _SWITCHED:
                return SWITCHED
            if self._inbox.pending:
                raise BadMessage("bytes came behind the end of the answer", Reason.TRAILING_DATA)
            return END_OF_INPUT if self._inbox.ended else NEED_DATA
        except BadMessage as refusal:
            raise self._break(refusal) from None

    def _end_message(self) -> None:
        self._state = _IDLE
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
        event = self._lex(inbox.data[inbox.start : end])
        inbox.start, inbox.scanned = end, 0
        return event

    def _early_refusal(self, end: int) -> BadMessage | None:
        inbox = self._inbox
        most = self._limits.max_head
        if not b"HTTP/".startswith(inbox.data[inbox.start : inbox.start + min(5, most)]):
            return BadMessage("an answer does not begin with HTTP/", Reason.STATUS_LINE)
        return early_refusal(inbox, end, most, Reason.HEAD_TOO_LARGE)

    def _lex(self, head: bytes) -> ResponseHead:
        line = head[: head.find(b"\r\n")]
        parts = _parts_of_status_line(line)
        if parts is None:
            refusal = BadMessage(f"the status line {line[:80]!r}", Reason.STATUS_LINE)
            raise self._early_refusal(end_of_section(self._inbox)) or refusal
        version, status, phrase = parts
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
        self, status: int, phrase: bytes, version: str, headers: Headers, length: int | None, is_chunked: bool
    ) -> ResponseHead:
        is_switch = status == 101 or self._opens_tunnel(status)
        has_body = not (is_switch or status < 200 or status in (204, 304) or self._method == "HEAD")
        if is_switch or status < 200 or status == 204:
            length, is_chunked = None, False  # must not be there, and would say nothing (RFC 9110 section 8.6)
        elif length == 0:
            has_body = False
        head = ResponseHead(status, phrase, version, headers, length, is_chunked, has_body, is_switch)
        if is_switch:
            if status == 101 and not self._upgrade:
                raise BadMessage("101 though no Upgrade was sent", Reason.UNEXPECTED_SWITCH)
            self._keep_alive = False
            self._state = _SWITCHED
        elif status < 200:
            self._interim += 1
            if self._interim > self._limits.max_interim:
                most = self._limits.max_interim
                raise BadMessage(f"more than max_interim={most} answers 1xx", Reason.TOO_MANY_INTERIM)
        else:
            self._keep_alive = head.keep_alive and not head.is_until_close
            self._state = _BODY if has_body else _END
            if has_body:
                self._body = self._reader_of(head)
        return head

    def _reader_of(self, head: ResponseHead) -> BodyReader:
        most = self._limits.max_body
        if head.is_chunked:
            return ChunkedReader(self._limits)
        if head.content_length is None:
            return UntilCloseReader(most)
        if most is not None and head.content_length > most:
            raise BadMessage(f"a body of more than max_body={most} bytes", Reason.BODY_TOO_LARGE)
        return LengthReader(head.content_length)
