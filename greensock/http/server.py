"""The HTTP/1.1 server: one request after the other on each connection, each answered by ``handle_request``.

It is written in upcalls: a connection that waits for its next request holds no greenlet and no parser, one that waits
for the rest of a head no greenlet; from the head on, the request's worker may block in ``handle_request``. Pipelined
requests are answered in order: the parser does not look at a request before the one in front of it is answered.
Invariants:

- Every request whose head was taken gets exactly one final answer, or its connection is closed.
- A refusal is counted and logged once. After it, and wherever the next request's beginning is in doubt, the connection
  closes, with a linger, so that the answer arrives (RFC 9112 section 9.6).
- An answer that cannot be finished ends with a reset, never with what looks like its end. Until its head is out, what
  goes wrong still becomes an answer with an error status.
- Whatever becomes of an answer, its body is closed.
- A connection that always has more to be read or written lets the others have their turn every ``TURN_SECONDS``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from time import monotonic, time
from typing import Any, ClassVar

import gevent

from greensock import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    OperationTimeout,
    Rule,
    Server,
    ServerStatistics,
    State,
)
from greensock.http.errors import BadRequest
from greensock.http.events import RequestHead
from greensock.http.headers import Headers
from greensock.http.limits import Limits
from greensock.http.request import NO_BODY, Request, RequestBody
from greensock.http.request_parser import RequestParser
from greensock.http.response import FileBody, HTTPError, Response
from greensock.http.stats import HTTPStatistics
from greensock.http.writer import LAST_CHUNK, format_date, write_chunk, write_response_head

__all__ = ["HTTPConnection", "HTTPServer"]

log = logging.getLogger("greensock.server")

#: Up to so many bytes a body, or a piece of it, is joined with what goes around it: one copy is cheaper than gathering.
JOINED = 16384
#: Of a longer one so many bytes are sent at a time, and ``send_timeout`` is for each of them.
SLICE = 262_144
#: An unread body is read and dropped if it is no longer than so many bytes, and comes within so many seconds.
DISCARD_BYTES, DISCARD_SECONDS = 65536, 1.0
#: Seconds after which others get their turn: pipelined requests and long answers may never have to wait by themselves.
TURN_SECONDS = 0.005
#: How many parsers wait for their next connection. Each may hold as much as was read last, ``recv_size``. One is in use
#: for each request that is being answered, so one in all if ``handle_request`` does not block.
MAX_SPARE = 64
#: Statuses of answers that have no body (RFC 9110 sections 15.3.5, 15.3.6, 15.4.5).
BODILESS = frozenset({204, 205, 304})
#: Fields of an answer that are the server's to write.
OWN_FIELDS = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive"})
#: Fields of an answer that ask for something, or stand in the place of the server's.
LOOKED_AT = OWN_FIELDS | {b"date"}
#: What 405 says is allowed, unless it is refused.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"  # to a client that speaks 1.0


class HTTPConnection(Connection):
    """A connection that speaks HTTP."""

    __slots__ = ("_parser", "requests")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parser: RequestParser | None = None  # while it holds part of a head
        #: How many requests came so far.
        self.requests = 0

    def _held(self) -> int:
        """Count part of a head as held: a server that drains lets such a connection go on."""
        parser = self._parser
        return super()._held() + (parser.pending if parser is not None else 0)


class HTTPServer(Server):
    """An HTTP/1.1 server: subclass it and override ``handle_request``, which may block.

    Options are those of :class:`Server` and the ones below. A request that breaks the protocol or crosses a limit is
    refused: answered with the status that is due, counted in ``refused``, logged (level INFO), and its connection is
    closed.
    """

    #: Seconds that a kept connection may wait for its next request.
    idle_timeout: float | None = 75.0
    #: Seconds in which a head must be whole, from its first byte on.
    head_timeout: float = 10.0
    #: Seconds that may pass without a byte of a body that is being read.
    body_timeout: float = 60.0
    #: Bytes a second that a body must come with, after the first 10 s of waiting for it. 0: no such bound.
    min_body_rate: int = 256
    #: Seconds that a client may take to read 256 KiB of an answer, or a piece of it if that is shorter.
    send_timeout: float | None = 60.0
    #: Requests that one connection may make. None: no bound.
    max_requests: int | None = None
    #: How large the parts of a request may be.
    limits: Limits = Limits()
    #: Methods that get 405.
    refused_methods: frozenset[str] = frozenset({"CONNECT", "TRACE"})

    connection_class: ClassVar[type[Connection]] = HTTPConnection
    option_rules: ClassVar[Mapping[str, Rule]] = {
        **Server.option_rules,
        "head_timeout": Rule.seconds(zero=False),
        "body_timeout": Rule.seconds(zero=False),
        "min_body_rate": Rule.whole(0),
        "max_requests": Rule.whole(1).or_none(),
        "limits": Rule.instance(Limits, "Limits"),
        "refused_methods": Rule.instance(frozenset, "a frozenset of methods"),
    }

    def __init__(self, listener: Any, **options: Any) -> None:
        super().__init__(listener, **options)
        #: How many requests were refused, by reason (see :class:`HTTPStatistics`).
        self.refused: Counter[str] = Counter()
        self._requests = 0
        self._statuses: Counter[int] = Counter()
        self._spare: list[RequestParser] = []
        # Connections with part of a head, and until when it must be whole: in this order, for all wait equally long.
        self._heads: dict[HTTPConnection, float] = {}
        self._watch: gevent.Greenlet[[], None] | None = None
        self._on_done = self.request_done if type(self).request_done is not HTTPServer.request_done else None
        self._second = 0
        self._date = b""
        self._starts: dict[int, bytes] = {}

    # -- what to override

    def handle_request(self, request: Request) -> Response:
        """Answer a request. May block; other connections go on.

        Raise :class:`HTTPError` for an error. What the request's body raises may be let through: it becomes 400, 408 or
        413. Any other exception is logged with its traceback and becomes 500.
        """
        raise HTTPError(404)

    def request_done(self, request: Request, response: Response, sent: int) -> None:
        """An answer is out, or was cut short; ``sent`` are the bytes that were given to the kernel. For access logs."""

    def request_refused(self, conn: Connection, refusal: BadRequest | HTTPError) -> Response:
        """Return the answer to a request that is refused; the connection is closed after it.

        The body must be bytes or text. What ``refusal`` says may quote what the client sent.
        """
        if isinstance(refusal, HTTPError):
            return refusal.response
        return Response(f"{refusal}\n", refusal.status or 400)

    def statistics(self) -> HTTPStatistics:
        """Return a snapshot of the counters."""
        base = super().statistics()
        return HTTPStatistics(
            **{field.name: getattr(base, field.name) for field in fields(ServerStatistics)},
            requests=self._requests,
            refused=dict(self.refused),
            statuses=dict(self._statuses),
        )

    # -- upcalls

    def connection_recv(self, conn: HTTPConnection, data: bytes) -> None:  # type: ignore[override]
        """Feed the parser, and answer the requests that are whole."""
        parser = conn._parser
        if parser is None:
            parser = self._spare.pop() if self._spare else RequestParser(self.limits)
        else:
            conn._parser = None
        parser.feed(data)
        try:
            self._take_requests(conn, parser)
        except BadRequest as refusal:
            if refusal.connection is not None:
                raise  # not the parser's
            self._refuse(conn, refusal, refusal.reason.value)

    def connection_eof(self, conn: HTTPConnection) -> None:  # type: ignore[override]
        """Refuse the head of which only a part came: the client may have closed its sending half only."""
        parser = conn._parser
        if parser is None:
            return
        parser.feed_eof()
        try:
            parser.next_event()
        except BadRequest as refusal:
            self._refuse(conn, refusal, refusal.reason.value)

    def connection_drop(self, conn: Connection) -> None:
        """Forget a head that will not become whole."""
        if self._heads:
            self._heads.pop(conn, None)  # type: ignore[call-overload]

    def abort(self) -> None:
        """Stop now; see :meth:`Server.abort`."""
        super().abort()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.kill(block=False)

    # -- heads

    def _take_requests(self, conn: HTTPConnection, parser: RequestParser) -> None:
        """Answer the requests that are whole, and keep the parser if it holds part of one more."""
        began = 0.0
        while type(event := parser.next_event()) is RequestHead:
            if self._heads:
                self._heads.pop(conn, None)
            if not self._exchange(conn, parser, event):
                return
            if not parser.pending:
                if len(self._spare) < MAX_SPARE:
                    self._spare.append(parser)
                return
            began = _let_others_run(began)
            if conn.state is not State.OPEN:
                return
        conn._parser = parser
        if parser.pending:  # else only an empty line came, which may come once before a request
            self._await_head(conn)

    def _await_head(self, conn: HTTPConnection) -> None:
        self._heads.setdefault(conn, monotonic() + self.head_timeout)
        if self._watch is None:
            self._watch = gevent.spawn(self._watch_heads)

    def _watch_heads(self) -> None:
        """End the connections whose heads take too long."""
        began = monotonic()
        while self._heads:
            conn, deadline = next(iter(self._heads.items()))
            left = deadline - monotonic()
            if left > 0:
                gevent.sleep(left)
                began = monotonic()
                continue
            del self._heads[conn]
            if conn.state is State.OPEN:
                late = HTTPError(408, f"the head of a request took more than {self.head_timeout} s")
                self._refuse(conn, late, "head-timeout")
            began = _let_others_run(began)
        self._watch = None

    # -- refusals

    def _refuse(self, conn: HTTPConnection, refusal: BadRequest | HTTPError, reason: str) -> None:
        """Answer a request that never became one, without blocking, and close. Never raises."""
        try:
            response = self._refusal(conn, refusal, reason)
            body = response.body
            if not isinstance(body, bytes):
                _close(body)
                body = b""
            conn.send(self._head(response, len(body), False, CLOSE) + body, close=True)
        except (ConnectionClosed, ConnectionLost):
            pass  # it has left: there is nobody to tell
        except Exception:
            self._failed_program("the answer to a refused request of %r failed", conn)
            conn.close()

    def _refusal(self, conn: Connection, refusal: BadRequest | HTTPError, reason: str) -> Response:
        """Count and log a refusal; return the answer."""
        self.refused[reason] += 1
        log.info("refused a request from %s: %s (%s)", conn.address, refusal, reason)
        return self.request_refused(conn, refusal)

    def _failed_program(self, text: str, *about: object) -> None:
        """Count and log what the program failed at."""
        self._errors += 1
        log.exception(text, *about)

    # -- one request and its answer

    def _exchange(self, conn: HTTPConnection, parser: RequestParser, head: RequestHead) -> bool:
        """Answer one request; True if the connection goes on."""
        conn.requests += 1
        self._requests += 1
        if head.is_chunked or head.content_length:
            body = RequestBody(conn, parser, head, self.body_timeout, self.min_body_rate)
        else:
            body = NO_BODY
            parser.next_event()  # its end
        request = Request(conn, head, body)
        fields = head.headers
        keep = head.version == "1.1" if fields.get_raw(b"connection") is None else head.keep_alive
        if self.max_requests is not None and conn.requests >= self.max_requests:
            keep = False
        refused = None
        if head.method in self.refused_methods or fields.get_raw(b"expect") is not None:
            refused = self._refusal_of(conn, head)
        if refused is not None:
            return self._answer(request, refused, False)
        return self._respond(request, keep)

    def _respond(self, request: Request, keep: bool) -> bool:
        """Have the program answer, and send that; True if the connection goes on. The seam of other interfaces."""
        try:
            response = self.handle_request(request)
            if not isinstance(response, Response):
                raise TypeError(f"handle_request returned {response!r}: a Response expected")
        except BaseException as error:
            response = self._error_response(request, error)
            keep = keep and isinstance(error, HTTPError)
        return self._answer(request, response, keep)

    def _refusal_of(self, conn: Connection, head: RequestHead) -> Response | None:
        """Return the answer to a request that is sound and yet not for the program."""
        if head.method in self.refused_methods:
            allowed = ", ".join(method for method in METHODS if method not in self.refused_methods)
            return self._refusal(conn, HTTPError(405, headers=[("Allow", allowed)]), "method")
        expected = head.headers.tokens(b"expect")
        if head.version == "1.0" or set(expected) <= {b"100-continue"}:
            return None  # RFC 9110 section 10.1.1
        return self._refusal(conn, HTTPError(417), "expectation")

    def _error_response(self, request: Request, error: BaseException) -> Response:
        """Return the answer to what ``handle_request`` raised, or raise it again if there is none to give."""
        conn = request.connection
        if isinstance(error, HTTPError):
            return error.response
        if getattr(error, "connection", None) is conn:
            if isinstance(error, BadRequest):
                return self._refusal(conn, error, error.reason.value)
            if isinstance(error, OperationTimeout) and error.operation == "recv":
                return self._refusal(conn, HTTPError(408, str(error)), "body-timeout")
            if isinstance(error, ConnectionLost | ConnectionClosed | OperationTimeout):
                raise error
        if not isinstance(error, Exception | gevent.Timeout):
            raise error  # killed
        self._errors += 1
        log.error("%r failed", request, exc_info=error)
        return HTTPError(500).response

    def _answer(self, request: Request, response: Response, keep: bool) -> bool:
        """Send the answer; True if the connection goes on."""
        conn, body = request.connection, request.body
        if body is not NO_BODY and not body.is_ended:
            keep = keep and self._can_discard(request)
        keep = keep and not self._draining
        before = conn.bytes_sent
        try:
            keep = self._send(request, response, keep)
        except BaseException as error:
            response, keep = self._send_error(request, response, error), False
        finally:
            if self._on_done is not None or type(response.body) is not bytes:
                self._finish(request, response, conn.bytes_sent - before)
        return self._end_exchange(request, keep)

    def _end_exchange(self, request: Request, keep: bool) -> bool:
        """Drop what is left of the body, or close; True if the connection goes on."""
        body = request.body
        if keep and body is not NO_BODY and not body.is_ended:
            keep = self._discard(request)
        if not keep:
            request.connection.close()
        return keep

    def _send_error(self, request: Request, failed: Response, error: BaseException) -> Response:
        """Answer with an error in the place of an answer whose sending failed, and return it; or reset and raise."""
        conn = request.connection
        try:
            if request.is_answered:
                raise error
            response = self._error_response(request, error)
            self._send(request, response, False)
        except BaseException:
            if conn.state is State.OPEN:
                conn.abort()  # whoever reads must see that it was cut short
            raise
        self._close_body(request, failed)
        return response

    def _finish(self, request: Request, response: Response, sent: int) -> None:
        """Let go of the answer, and tell the program."""
        if type(response.body) is not bytes:
            self._close_body(request, response)
        if self._on_done is not None:
            try:
                self._on_done(request, response, sent)
            except Exception:
                self._failed_program("request_done failed for %r", request)

    def _close_body(self, request: Request, response: Response) -> None:
        try:
            _close(response.body)
        except Exception:
            self._failed_program("the body of the answer to %r could not be closed", request)

    def _can_discard(self, request: Request) -> bool:
        """Whether what is left of the body is surely little enough to be read and dropped."""
        body = request.body
        if body.is_awaited or body.is_broken:
            return False  # the client may send it or not; there is no end to be found
        length = request.head.content_length
        return length is None or length - body.received <= DISCARD_BYTES

    def _discard(self, request: Request) -> bool:
        """Drop what is left of the body after the answer; False if that is too much."""
        try:
            return request.body.discard(DISCARD_BYTES, DISCARD_SECONDS)
        except BadRequest as refusal:  # an answer was given: there is nothing more to say to the client
            self._refusal(request.connection, refusal, refusal.reason.value)
            return False

    # -- writing

    def _send(self, request: Request, response: Response, keep: bool) -> bool:
        """Write head and body; return whether the connection may go on."""
        conn, body = request.connection, response.body
        bodiless = request.method == "HEAD" or response.status in BODILESS
        plain = True
        for name, _ in response.headers.raw:
            if name.lower() in LOOKED_AT:
                plain = False
                keep = keep and b"close" not in response.headers.tokens(b"connection")
                break
        if not isinstance(body, bytes):
            send = self._send_file if isinstance(body, FileBody) else self._send_pieces
            return send(request, response, keep, bodiless)
        length: int | None = len(body)
        if bodiless and not body:  # made for HEAD: what GET would have is in the fields, or not known
            length = _declared_length(response.headers)
        option = b"" if keep and request.version == "1.1" else _connection_option(request.version, keep)
        head = self._head(response, length, False, option, plain)
        request.is_answered = True
        if bodiless:
            conn.send(head)
        elif len(body) <= JOINED:
            conn.send(head + body)
        else:
            self._send_piece(request, head, body)
        return keep

    def _send_file(self, request: Request, response: Response, keep: bool, bodiless: bool) -> bool:
        """Write a file."""
        conn, body = request.connection, response.body
        assert isinstance(body, FileBody)
        data = body.read_all() if body.count <= JOINED and not bodiless else b""
        if data and len(data) < body.count:
            raise _has_shrunk(body)
        head = self._head(response, body.count, False, _connection_option(request.version, keep))
        request.is_answered = True
        conn.send(head + data)
        if bodiless or data:
            return keep
        sent, began = 0, monotonic()
        while sent < body.count:
            count = min(SLICE, body.count - sent)
            if conn.send_file(body.file, body.offset + sent, count) < count:
                raise _has_shrunk(body)
            sent += count
            began = _let_others_run(began)
        return keep

    def _send_pieces(self, request: Request, response: Response, keep: bool, bodiless: bool) -> bool:
        """Write a body that comes piece by piece; of the first, nothing is sent before it is there."""
        conn, body = request.connection, response.body
        assert not isinstance(body, bytes | FileBody)
        length = _declared_length(response.headers)
        chunked = length is None and request.version == "1.1"
        keep = keep and (chunked or length is not None or bodiless)
        option = _connection_option(request.version, keep)
        pieces = iter(()) if bodiless else _pieces(body, length)
        first = next(pieces, None)  # if this fails it is not too late for an answer
        head = self._head(response, length, chunked, option)
        request.is_answered = True
        request.body.stop_awaiting()
        if first is None:
            conn.send(head + LAST_CHUNK if chunked and not bodiless else head)
            return keep
        self._send_piece(request, head, first, chunked)
        began = monotonic()
        for piece in pieces:
            self._send_piece(request, b"", piece, chunked)
            began = _let_others_run(began)
        if chunked:
            conn.send(LAST_CHUNK)
        return keep

    def _send_piece(self, request: Request, head: bytes, piece: bytes, chunked: bool = False) -> None:
        """Write a piece of a body behind ``head``, which may be empty: in one go if it is short."""
        conn = request.connection
        if len(piece) <= JOINED:
            conn.send(b"%b%x\r\n%b\r\n" % (head, len(piece), piece) if chunked else head + piece)
            return
        size, _, end = write_chunk(piece) if chunked else (b"", piece, b"")
        view = memoryview(piece)
        conn.send([head, size, view[:SLICE]])
        began = monotonic()
        for start in range(SLICE, len(piece), SLICE):
            conn.send(view[start : start + SLICE])
            began = _let_others_run(began)
        if end:
            conn.send(end)

    def _head(self, response: Response, length: int | None, chunked: bool, option: bytes, plain: bool = False) -> bytes:
        """Return the head of a final answer; ``plain`` says that none of its fields are LOOKED_AT."""
        date = self._date_line()
        headers, status = response.headers, response.status
        self._statuses[status] += 1
        start = self._starts.get(status) or self._start(status)
        if plain and length is not None and status not in BODILESS:  # the common case: nothing is left to be checked
            lines = b"".join([b"%b: %b\r\n" % pair for pair in headers.raw])
            return b"%b%b%bContent-Length: %d\r\n\r\n" % (start, lines, option, length)
        if status == 204:
            length, chunked = None, False
        elif status == 205:  # no body, and yet its length must be told (RFC 9110 section 15.3.6)
            length, chunked = 0, False
        extra = option if headers.get_raw(b"date") is not None else date + option
        return write_response_head(status, headers, content_length=length, chunked=chunked, own=OWN_FIELDS, extra=extra)

    def _start(self, status: int) -> bytes:
        """Return the status line and Date, which are the same for a second."""
        start = write_response_head(status, Headers(), extra=self._date).removesuffix(b"\r\n")
        self._starts[status] = start
        return start

    def _date_line(self) -> bytes:
        """Return the Date of this second, as a line."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._date = b"Date: %b\r\n" % format_date(second)
            self._starts.clear()
        return self._date


def _let_others_run(since: float) -> float:
    """Let others run if this has gone on for a turn; return since when it goes on. 0.0: it begins now."""
    now = monotonic()
    if not since or now - since < TURN_SECONDS:
        return since or now
    hub = gevent.get_hub()
    # Not sleep(0): gevent runs up to 50 of those before it looks at its descriptors.
    timer = hub.loop.timer(0.0)
    try:
        hub.wait(timer)
    finally:
        timer.close()
    return monotonic()


def _connection_option(version: str, keep: bool) -> bytes:
    """Return what the answer says of the connection (RFC 9112 section 9.3)."""
    if keep:
        return b"" if version == "1.1" else KEEP_ALIVE
    return CLOSE


def _declared_length(headers: Headers) -> int | None:
    """Return the Content-Length that the program gave.

    Raises:
        ValueError: it is none.
    """
    value = headers.get_raw(b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise ValueError(f"Content-Length: {value!r}: a number of bytes expected")
    return int(value)


def _pieces(body: Iterable[bytes], length: int | None) -> Iterator[bytes]:
    """Go through the pieces that have bytes in them.

    Raises:
        TypeError: a piece of another kind.
        ValueError: they are more or less than ``length`` bytes in all.
    """
    sent = 0
    for piece in body:
        if type(piece) is not bytes:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"a piece of a body is {type(piece).__name__}: bytes expected")
            piece = bytes(piece)
        if piece:
            sent += len(piece)
            if length is not None and sent > length:
                raise ValueError(f"the body is longer than its Content-Length, {length}")
            yield piece
    if length is not None and sent < length:
        raise ValueError(f"the body has {sent} bytes, its Content-Length says {length}")


def _close(body: object) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _has_shrunk(body: FileBody) -> OSError:
    return OSError(f"{body.file!r} has shrunk since its answer was made")
