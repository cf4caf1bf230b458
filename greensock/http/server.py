"""The HTTP/1.1 server: one request after the other on each connection, each answered by ``handle_request``.

It is written in upcalls: a connection that waits for its next request, or for the rest of a head, holds no greenlet and
no parser; from the head on, the request's worker may block in ``handle_request``. Pipelined requests are answered in
order: the parser does not look at a request before the one in front of it is answered. Invariants:

- Every request whose head was taken gets exactly one final answer, or its connection is closed.
- After a refusal, and wherever the next request's beginning is in doubt, the connection closes, with a linger, so that
  the answer arrives (RFC 9112 section 9.6).
- An answer that cannot be finished ends with a reset, never with what looks like its end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
    State,
)
from greensock.http.errors import BadRequest
from greensock.http.events import RequestHead
from greensock.http.headers import Headers
from greensock.http.limits import Limits
from greensock.http.request import NO_BODY, Request, RequestBody
from greensock.http.request_parser import RequestParser
from greensock.http.response import FileBody, HTTPError, Response
from greensock.http.writer import format_date, write_chunk, write_last_chunk, write_response_head

__all__ = ["HTTPConnection", "HTTPServer"]

log = logging.getLogger("greensock.server")

#: Up to so many bytes a body is joined with its head: one copy is cheaper than gathering.
JOINED = 16384
#: An unread body is read and dropped if it is no longer than so many bytes, and comes within so many seconds.
DISCARD_BYTES, DISCARD_SECONDS = 65536, 1.0
#: How many pipelined requests are answered before others get their turn.
REQUESTS_PER_TURN = 32
#: Statuses of answers that have no body.
BODILESS = frozenset({204, 304})
#: Fields of an answer that are the server's to write.
OWN_FIELDS = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive"})

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"  # to a client that speaks 1.0


class HTTPConnection(Connection):
    """A connection that speaks HTTP."""

    __slots__ = ("_parser", "requests")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parser: RequestParser | None = None
        #: How many requests came so far.
        self.requests = 0


class HTTPServer(Server):
    """An HTTP/1.1 server: subclass it and override ``handle_request``, which may block.

    Options are those of :class:`Server` and the ones below. ``refused`` counts the requests that were refused, by
    reason.
    """

    #: Seconds that a kept connection may wait for its next request.
    idle_timeout: float | None = 75.0
    #: Seconds in which a head must be whole, from its first byte on.
    head_timeout: float = 10.0
    #: Seconds that may pass without a byte of a body that is being read.
    body_timeout: float = 60.0
    #: Bytes a second that a body must come with, after the first 10 s of waiting for it.
    min_body_rate: int = 256
    #: Seconds that a client may take to read a piece of an answer.
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
        #: How many requests were refused, by reason.
        self.refused: Counter[str] = Counter()
        self._spare: list[RequestParser] = []
        # Connections with part of a head, and until when it must be whole: in this order, for all wait equally long.
        self._heads: dict[HTTPConnection, float] = {}
        self._watch: gevent.Greenlet[[], None] | None = None
        self._on_done = self.request_done if type(self).request_done is not HTTPServer.request_done else None
        self._second = 0
        self._date = b""

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
        """Return the answer to a request that never became one; the connection is closed after it."""
        status = refusal.status if isinstance(refusal, BadRequest) else refusal.response.status
        return Response(f"{refusal}\n", status or 400)

    # -- upcalls

    def connection_recv(self, conn: HTTPConnection, data: bytes) -> None:  # type: ignore[override]
        """Feed the parser, and answer the requests that are whole."""
        parser = conn._parser
        if parser is None:
            parser = conn._parser = self._spare.pop() if self._spare else RequestParser(self.limits)
        parser.feed(data)
        try:
            self._take_requests(conn, parser)
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
        served = 0
        while True:
            event = parser.next_event()
            if type(event) is RequestHead:
                if self._heads:
                    self._heads.pop(conn, None)
                if not self._exchange(conn, parser, event):
                    return
                if not parser.pending:
                    break
                served += 1
                if served % REQUESTS_PER_TURN == 0:
                    gevent.sleep(0)
            else:
                break
        if parser.pending:
            self._await_head(conn)
        else:
            conn._parser = None
            self._spare.append(parser)

    def _await_head(self, conn: HTTPConnection) -> None:
        self._heads.setdefault(conn, monotonic() + self.head_timeout)
        if self._watch is None:
            self._watch = gevent.spawn(self._watch_heads)

    def _watch_heads(self) -> None:
        """End the connections whose heads take too long."""
        while self._heads:
            conn, deadline = next(iter(self._heads.items()))
            left = deadline - monotonic()
            if left > 0:
                gevent.sleep(left)
                continue
            del self._heads[conn]
            if conn.state is State.OPEN:
                late = HTTPError(408, f"the head of a request took more than {self.head_timeout} s")
                self._refuse(conn, late, "head-timeout")
        self._watch = None

    def _refuse(self, conn: HTTPConnection, refusal: BadRequest | HTTPError, reason: str) -> None:
        """Answer a request that never became one, without blocking, and close."""
        self.refused[reason] += 1
        log.info("refused a request from %s: %s (%s)", conn.address, refusal, reason)
        response = self.request_refused(conn, refusal)
        body = response.body if isinstance(response.body, bytes) else b""
        conn.send(self._head(response, len(body), False, CLOSE) + body, close=True)

    # -- one request and its answer

    def _exchange(self, conn: HTTPConnection, parser: RequestParser, head: RequestHead) -> bool:
        """Answer one request; True if the connection goes on."""
        conn.requests += 1
        if head.is_chunked or head.content_length:
            body = RequestBody(conn, parser, head, self.body_timeout, self.min_body_rate)
        else:
            body = NO_BODY
            parser.next_event()  # its end
        request = Request(conn, head, body)
        keep = head.keep_alive and (self.max_requests is None or conn.requests < self.max_requests)
        return self._respond(request, keep)

    def _respond(self, request: Request, keep: bool) -> bool:
        """Have the program answer, and send that; True if the connection goes on. The seam of other interfaces."""
        head = request.head
        try:
            if head.method in self.refused_methods:
                raise HTTPError(405, headers=[("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")])
            response = self.handle_request(request)
            if not isinstance(response, Response):
                raise TypeError(f"handle_request returned {response!r}: a Response expected")
        except BaseException as error:
            response = self._error_response(request, error)
            keep = keep and isinstance(error, HTTPError) and head.method not in self.refused_methods
        return self._answer(request, response, keep)

    def _error_response(self, request: Request, error: BaseException) -> Response:
        """Return the answer to what ``handle_request`` raised, or raise it again if there is none to give."""
        if isinstance(error, HTTPError):
            return error.response
        if isinstance(error, BadRequest):
            self.refused[error.reason.value] += 1
            return self.request_refused(request.connection, error)
        if isinstance(error, OperationTimeout) and error.connection is request.connection:
            self.refused["body-timeout"] += 1
            return HTTPError(408, str(error)).response
        if isinstance(error, ConnectionLost | ConnectionClosed) and error.connection is request.connection:
            raise error
        if not isinstance(error, Exception):
            raise error  # killed, or a timeout of gevent's that nobody caught
        self._errors += 1
        log.error("%r failed", request, exc_info=error)
        return HTTPError(500).response

    def _answer(self, request: Request, response: Response, keep: bool) -> bool:
        """Send the answer; True if the connection goes on."""
        conn = request.connection
        body = request.body
        if body is not NO_BODY and not body.is_ended:
            keep = keep and self._can_discard(request)
        keep = keep and not self._draining
        before = conn.bytes_sent
        try:
            keep = self._send(request, response, keep)
        except BaseException:
            conn.abort()  # whoever reads must see that it was cut short
            raise
        finally:
            if self._on_done is not None:
                self._on_done(request, response, conn.bytes_sent - before)
        return self._end_exchange(request, keep)

    def _end_exchange(self, request: Request, keep: bool) -> bool:
        """Drop what is left of the body, or close; True if the connection goes on."""
        body = request.body
        if keep and body is not NO_BODY and not body.is_ended:
            try:
                keep = body.discard(DISCARD_BYTES, DISCARD_SECONDS)
            except BadRequest:
                keep = False  # it was answered: there is nothing more to say
        if not keep:
            request.connection.close()
        return keep

    def _can_discard(self, request: Request) -> bool:
        """Whether what is left of the body is surely little enough to be read and dropped."""
        if request.body.is_awaited:
            return False  # the client may send it or not
        length = request.head.content_length
        return length is None or length - request.body.received <= DISCARD_BYTES

    def _send(self, request: Request, response: Response, keep: bool) -> bool:
        """Write head and body; return whether the connection may go on."""
        conn, body, status = request.connection, response.body, response.status
        bodiless = status in BODILESS or request.method == "HEAD"
        said = response.headers.get_raw(b"connection")
        if said is not None and b"close" in response.headers.tokens(b"connection"):
            keep = False
        option = _connection_option(request.version, keep)
        if isinstance(body, bytes):
            length: int | None = len(body)
            if bodiless and not body:  # made for HEAD: what GET would have is in the fields, or not known
                length = _declared_length(response.headers)
            head = self._head(response, length, False, option)
            if bodiless or not body:
                conn.send(head)
            elif len(body) <= JOINED:
                conn.send(head + body)
            else:
                conn.send([head, body])
            return keep
        if isinstance(body, FileBody):
            try:
                conn.send(self._head(response, body.count, False, option))
                if not bodiless and conn.send_file(body.file, body.offset, body.count) < body.count:
                    raise OSError(f"{body.file!r} has shrunk while it was sent")
            finally:
                body.close()
            return keep
        return self._send_pieces(request, response, body, keep, bodiless)

    def _send_pieces(
        self, request: Request, response: Response, body: Iterable[bytes], keep: bool, bodiless: bool
    ) -> bool:
        """Write a body that comes piece by piece."""
        conn = request.connection
        length = _declared_length(response.headers)
        chunked = length is None and request.version == "1.1"
        keep = keep and (chunked or length is not None or bodiless)
        option = _connection_option(request.version, keep)
        head: bytes | None = self._head(response, length, chunked, option)
        try:
            if not bodiless:
                for piece in _pieces(body, length):
                    framed = write_chunk(piece) if chunked else [piece]
                    conn.send([head, *framed] if head is not None else framed)
                    head = None
            last = write_last_chunk() if chunked and not bodiless else b""
            if head is not None or last:
                conn.send((head or b"") + last)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        return keep

    def _head(self, response: Response, length: int | None, chunked: bool, option: bytes) -> bytes:
        headers, status = response.headers, response.status
        if status == 204:
            length, chunked = None, False
        extra = option if headers.get_raw(b"date") is not None else self._date_line() + option
        return write_response_head(status, headers, content_length=length, chunked=chunked, own=OWN_FIELDS, extra=extra)

    def _date_line(self) -> bytes:
        now = time()
        if int(now) != self._second:
            self._second = int(now)
            self._date = b"Date: %b\r\n" % format_date(now)
        return self._date


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
        if not isinstance(piece, bytes):
            raise TypeError(f"a body of {type(piece).__name__}: an iterable of bytes expected")
        if piece:
            sent += len(piece)
            if length is not None and sent > length:
                raise ValueError(f"the body is longer than its Content-Length, {length}")
            yield piece
    if length is not None and sent < length:
        raise ValueError(f"the body has {sent} bytes, its Content-Length says {length}")
