"""The HTTP/1.1 server: one request after the other on each connection, each answered by ``handle_request``.

It is written in upcalls: a connection that waits for its next request holds no greenlet and no parser, one that waits
for the rest of a head no greenlet; from the head on, the request's worker may block in ``handle_request``. Pipelined
requests are answered in order: the parser does not look at a request before the one in front of it is answered.
Invariants:

- Every request whose head was taken gets exactly one final answer, or its connection is closed.
- A refusal is counted and logged once. After it, and wherever the next request's beginning is in doubt, the connection
  closes, with a linger, so that the answer arrives (RFC 9112 section 9.6).
- An answer that cannot be finished never ends with what looks like its end: where its framing shows that it was cut, it
  ends with FIN behind all that is out (a reset would destroy what is on its way), else with a reset. Until its head is
  out, what goes wrong still becomes an answer with an error status.
- Whatever becomes of an answer, its body is closed.
- A connection that always has more to be read or written lets the others have their turn every few milliseconds.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, cast

import gevent

from greensock import (
    Connection,
    ConnectionClosed,
    ConnectionLost,
    LogLimit,
    OperationTimeout,
    Rule,
    Server,
    ServerSettings,
    ServerStatistics,
    State,
    let_others_run,
)
from greensock.http.errors import BadRequest
from greensock.http.server.compression import Compression
from greensock.http.server.deadline_watch import DeadlineWatch
from greensock.http.server.filters import BodyFilter, apply_filter
from greensock.http.server.http_stats import HTTPStatistics
from greensock.http.server.request import NO_BODY, Request, RequestBody
from greensock.http.server.response import HTTPError, Response
from greensock.http.server.response_writer import BODILESS, CLOSE
from greensock.http.server.stream import ResponseStream
from greensock.http.server.switching import NO_PARSER, SwitchingServer
from greensock.http.websocket.handshake import asks_for_websocket
from greensock.http.websocket.websocket import WebSocket
from greensock.http.websocket.websocket_options import WebSocketOptions
from greensock.http.wire.events import SWITCHED, RequestHead
from greensock.http.wire.limits import Limits
from greensock.http.wire.request_parser import RequestParser, plain_request_head

__all__ = [
    "HTTP_OPTIONS",
    "HTTPConnection",
    "HTTPServer",
    "HTTPServerKeywords",
    "HTTPServerSettings",
]

log = logging.getLogger("greensock.server")

#: An unread body is read and dropped if it is no longer than so many bytes, and comes within so many seconds.
DISCARD_BYTES, DISCARD_SECONDS = 65536, 1.0
#: How many parsers wait for their next connection. Each may hold as much as was read last, ``recv_size``. One is in use
#: for each request that is being answered, so one in all if ``handle_request`` does not block.
MAX_SPARE = 64
#: What 405 says is allowed, unless it is refused.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


class HTTPConnection(Connection):
    """A connection that speaks HTTP."""

    __slots__ = ("head_parser", "parser_in_use", "requests", "taker")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.head_parser: RequestParser | None = None  # while it holds part of a head
        #: What the request that is being answered came through; None between two requests.
        self.parser_in_use: RequestParser | None = None
        #: How many requests came so far.
        self.requests = 0
        #: What takes what comes, if it is no longer HTTP.
        self.taker: WebSocket | None = None

    #: A process that an application starts does not answer the request: it would only keep the client from its end.
    survives_fork = False

    def is_at_rest(self) -> bool:
        return self.head_parser is None  # part of a head has a limit of its own

    def held_bytes(self) -> int:
        """Count part of a head as held: a server that drains lets such a connection go on."""
        parser, taker = self.head_parser, self.taker
        held = super().held_bytes() + (parser.pending if parser is not None else 0)
        return held if taker is None else held + taker.held


if TYPE_CHECKING:
    from typing_extensions import TypeVar, Unpack

    HTTPConnectionT = TypeVar("HTTPConnectionT", bound=HTTPConnection, default=HTTPConnection)
else:
    from typing import TypeVar

    HTTPConnectionT = TypeVar("HTTPConnectionT", bound=HTTPConnection)

_begins_a_request = re.compile(rb"[A-Z]{1,20} [!-~]").match

#: What each option of an HTTP server may be.
HTTP_OPTIONS: Mapping[str, Rule] = {
    **{name: Server.option_rules[name] for name in ServerSettings.__annotations__},  # without the upcalls
    "head_timeout": Rule.seconds(zero=False),
    "body_timeout": Rule.seconds(zero=False),
    "min_body_rate": Rule.whole(0),
    "max_requests": Rule.whole(1).or_none(),
    "limits": Rule.instance(Limits, "Limits"),
    "refused_methods": Rule.instance(frozenset, "a frozenset of methods"),
}


class HTTPServerSettings(ServerSettings, total=False):
    """The options of an HTTP server, as a type checker is to know them."""

    head_timeout: float
    body_timeout: float
    min_body_rate: int
    max_requests: int | None
    limits: Limits
    refused_methods: frozenset[str]


class HTTPServerKeywords(HTTPServerSettings, total=False):
    """Those and the upcalls, as functions that get the arguments without the server."""

    compression: Compression | None
    handle_request: Callable[[Request], Response | None]
    websocket_options: WebSocketOptions
    websocket_open: Callable[[WebSocket, Request], Response | None]
    websocket_message: Callable[[WebSocket, Any], object]
    websocket_close: Callable[[WebSocket, int, str], object]
    filter_for: Callable[[Request, Response], BodyFilter | None]
    request_done: Callable[[Request, Response, int], object]
    request_refused: Callable[[Any, BadRequest | HTTPError], Response]


class HTTPServer(SwitchingServer[HTTPConnectionT]):
    """An HTTP/1.1 server: subclass it and override ``handle_request``, which may block; or give a function for it.

    Options are those of :class:`Server` and the ones below. A request that breaks the protocol or crosses a limit is
    refused: answered with the status that is due, counted in ``refused``, logged (level INFO; at most 50 at once and
    one a second in the long run, and the next line says how many were left out), and its connection is closed.
    """

    #: Seconds that a kept connection may wait for its next request.
    idle_timeout: float | None = 75.0
    #: Seconds in which a head must be whole, from its first byte on.
    head_timeout: float = 10.0
    #: Seconds that may pass without a byte of a body that is being read.
    body_timeout: float = 60.0
    #: Bytes a second that a body must come with, after the first 10 s of waiting for it. 0: no such bound.
    min_body_rate: int = 256
    #: Seconds in which a client must take a byte of an answer that waits for it; then ``min_send_rate`` bounds it, too.
    send_timeout: float | None = 60.0
    #: Requests that one connection may make. None: no bound.
    max_requests: int | None = None
    #: How large the parts of a request may be.
    limits: Limits = Limits()
    #: Methods that get 405.
    refused_methods: frozenset[str] = frozenset({"CONNECT", "TRACE"})
    #: Which answers are compressed. None: none are.
    compression: Compression | None = None

    connection_class: type[HTTPConnectionT] = cast(Any, HTTPConnection)
    option_rules: ClassVar[Mapping[str, Rule]] = {
        **HTTP_OPTIONS,
        "compression": Rule.instance(Compression, "a Compression").or_none(),
        "handle_request": Rule.function(),
        "websocket_options": Rule.instance(WebSocketOptions, "WebSocketOptions"),
        "websocket_open": Rule.function(),
        "websocket_message": Rule.function(),
        "websocket_close": Rule.function(),
        "filter_for": Rule.function(),
        "request_done": Rule.function(),
        "request_refused": Rule.function(),
    }

    def __init__(self, listener: Any, **options: Unpack[HTTPServerKeywords]) -> None:
        super().__init__(listener, **options)
        #: How many requests were refused, by reason (see :class:`HTTPStatistics`).
        self.refused: Counter[str] = Counter()
        self._refusals_logged = LogLimit()
        #: How many requests came so far.
        self.requests_taken = 0
        self._spare: list[RequestParser] = []
        self.head_watch = DeadlineWatch(self._refuse_late_head)
        self._needs_no_parser = False
        #: ``request_done`` and ``filter_for`` if the program has them: see ``look_at_upcalls``.
        self.on_request_done: Callable[[Request, Response, int], object] | None = None
        self.on_filter: Callable[[Request, Response], BodyFilter | None] | None = None

    def start(self) -> None:
        """Accept connections; see :meth:`Server.start`."""
        if not self.started:
            self.look_at_upcalls()
        super().start()

    def look_at_upcalls(self) -> None:
        super().look_at_upcalls()
        self._needs_no_parser = not self.overrides_upcall("take_requests", HTTPServer)
        self.on_request_done = self.request_done if self.overrides_upcall("request_done", HTTPServer) else None
        filters = self.compression is not None or self.overrides_upcall("filter_for", HTTPServer)
        self.on_filter = self.filter_for if filters else None

    # -- what to override

    def handle_request(self, request: Request) -> Response | None:
        """Answer a request. May block; other connections go on.

        None if it has left HTTP, by ``request.upgrade_websocket()`` or ``request.detach()``.

        Raise :class:`HTTPError` for an error. What the request's body raises may be let through: it becomes 400, 408 or
        413. Any other exception is logged with its traceback and becomes 500.
        """
        raise HTTPError(404)

    def filter_for(self, request: Request, response: Response) -> BodyFilter | None:
        """Return what changes the body of an answer on its way out; None: nothing does.

        It may change the fields of ``response`` (Content-Encoding, Vary, ETag). Content-Length is written anew. Not
        called for answers that have no body by their status; by a :class:`WSGIServer` nor for those to requests for a
        WebSocket.
        """
        return None

    def request_done(self, request: Request, response: Response, sent: int) -> None:
        """An answer is out, or was cut short; ``sent`` are the bytes that were given to the kernel. For access logs."""

    def request_refused(self, conn: Connection, refusal: BadRequest | HTTPError) -> Response:
        """Return the answer to a request that is refused; the connection is closed after it.

        It must not block. The body must be bytes or text. What ``refusal`` says may quote what the client sent.
        """
        if isinstance(refusal, HTTPError):
            return refusal.response
        return Response(f"{refusal}\n", refusal.status or 400)

    def statistics(self) -> HTTPStatistics:
        """Return a snapshot of the counters."""
        base = super().statistics()
        return HTTPStatistics(
            **{field.name: getattr(base, field.name) for field in fields(ServerStatistics)},
            requests=self.requests_taken,
            refused=dict(self.refused),
            statuses=dict(self.answers_by_status),
        )

    # -- upcalls

    def connection_recv(self, conn: HTTPConnectionT, data: bytes) -> None:
        """Feed the parser, and answer the requests that are whole."""
        parser = conn.head_parser
        if parser is None:
            # Most often all of a request comes at once, and nothing else: then no parser needs to hold it
            # (test_a_request_that_comes_at_once_needs_no_parser).
            end = data.find(b"\r\n\r\n") + 4
            if end == len(data) <= self.limits.max_head and self._needs_no_parser:
                head = plain_request_head(data, self.limits)
                if head is not None and _is_all(head):
                    self._exchange(conn, None, head)
                    return
            parser = self._spare.pop() if self._spare else RequestParser(self.limits)
        elif conn.taker is not None:
            conn.taker.take(data)
            return
        else:
            # Taken off the connection while it is in use: one that waits for its next request holds none
            # (test_idle_connections_hold_no_parser_and_few_are_kept).
            conn.head_parser = None
            if self.take_awaited_body(conn, data):
                return
        parser.feed(data)
        self.take_requests(conn, parser)

    def connection_eof(self, conn: HTTPConnectionT) -> None:
        """Refuse the head of which only a part came: the client may have closed its sending half only."""
        parser = conn.head_parser
        if parser is None:
            return
        if conn.taker is not None:
            conn.taker.take_eof()
            return
        parser.feed_eof()
        try:
            parser.next_event()
        except BadRequest as refusal:
            self.refuse_request(conn, refusal, refusal.reason.value)

    def connection_drop(self, conn: HTTPConnectionT) -> None:
        """Forget a head that will not become whole."""
        if self.head_watch:
            self.head_watch.pop(conn, None)
        if conn.head_parser is NO_PARSER:
            super().connection_drop(conn)

    def abort(self) -> None:
        """Stop now; see :meth:`Server.abort`."""
        super().abort()
        self.head_watch.stop()

    # -- heads

    def take_requests(self, conn: HTTPConnection, parser: RequestParser) -> None:
        """Answer the requests that are whole, and keep the parser if it holds part of one more."""
        began = 0.0
        while True:
            try:
                event = parser.next_event()
            except BadRequest as refusal:
                conn.head_parser = parser  # the log of the refusal says what was requested
                self.refuse_request(conn, refusal, refusal.reason.value)
                conn.head_parser = None
                return
            if type(event) is not RequestHead:
                break
            # This head is whole, and the next one has a time of its own
            # (test_a_head_that_became_whole_has_no_deadline).
            if self.head_watch:
                self.head_watch.pop(conn, None)
            conn.parser_in_use = parser
            try:
                goes_on = self._exchange(conn, parser, event)
            finally:
                conn.parser_in_use = None
            # What lies behind is not looked at, and the parser is not kept for others: it may be anywhere in a message,
            # or be somebody's who waits for the rest of a body.
            if not goes_on:
                return
            if not parser.pending:
                if len(self._spare) < MAX_SPARE:
                    self._spare.append(parser)
                return
            # One read may hold thousands of requests, and others get their turn among them
            # (test_a_flood_of_pipelined_requests_leaves_others_their_turn). The connection may have ended meanwhile.
            began = let_others_run(began)
            if conn.state is not State.OPEN:
                return
        conn.head_parser = parser
        if parser.pending:  # else only an empty line came, which may come once before a request
            # More of the same head gives it no more time (test_a_head_that_comes_slowly_has_one_deadline).
            self.head_watch.begin(conn, self.head_timeout)

    def take_awaited_body(self, conn: HTTPConnection, data: bytes) -> bool:
        """Take what came of a body that is awaited without a worker; False: none is. The seam of the proxy."""
        return False

    def plaintext_answer(self, conn: Any, data: bytes) -> bytes:
        """Answer plain HTTP that comes to a port of TLS; what else comes, nothing could be told."""
        if not _begins_a_request(data):
            return b""
        answer = Response("This port speaks HTTPS, and a plain HTTP request came: use https://.\n", 400)
        body = answer.body
        assert isinstance(body, bytes)
        head = self.written_head(answer, len(body), False, CLOSE)
        self.refused["plain-http"] += 1
        return head if data.startswith(b"HEAD ") else head + body

    def _refuse_late_head(self, conn: Connection) -> None:
        if conn.state is State.OPEN:
            late = HTTPError(408, f"the head of a request took more than {self.head_timeout} s")
            self.refuse_request(conn, late, "head-timeout")

    # -- refusals

    def refuse_request(self, conn: Connection, refusal: BadRequest | HTTPError, reason: str) -> None:
        """Answer a request that never became one, without blocking, and close. Never raises."""
        try:
            response = self._refusal(conn, refusal, reason)
            body = response.body
            if not isinstance(body, bytes):
                _close(body)
                body = b""
            # It may block nobody, as the greenlet that watches all heads may come here; the close lingers, so that the
            # answer arrives though the client still sends (test_a_refusal_arrives_while_the_client_still_sends).
            conn.send(self.written_head(response, len(body), False, CLOSE) + body, close=True)
        except (ConnectionClosed, ConnectionLost):
            pass  # the client has left: no answer can reach it
        # Whatever the program raises, the watch goes on (test_a_program_that_fails_to_refuse_does_not_stop_the_watch).
        except (Exception, gevent.Timeout):
            self.log_program_failure("the answer to a refused request of %r failed", conn)
            conn.close()

    def _refusal(self, conn: Connection, refusal: BadRequest | HTTPError, reason: str) -> Response:
        """Count and log a refusal; return the answer."""
        self._note_refusal(conn, refusal, reason)
        return self.request_refused(conn, refusal)

    def _note_refusal(self, conn: Connection, refusal: BadRequest | HTTPError, reason: str) -> None:
        self.refused[reason] += 1
        if log.isEnabledFor(logging.INFO) and (left_out := self._refusals_logged.left_out(monotonic())) >= 0:
            more = f"; {left_out} more were not logged" if left_out else ""
            log.info("refused a request from %s: %s (%s)%s", conn.address, refusal, reason, more)

    def log_program_failure(self, text: str, *about: object) -> None:
        """Count and log what the program failed at: the exception that is being handled."""
        self.error_count += 1
        error = sys.exc_info()[1]
        assert error is not None
        self.log_failure(error, text, *about)

    # -- one request and its answer

    def _exchange(self, conn: HTTPConnection, parser: RequestParser | None, head: RequestHead) -> bool:
        """Answer one request; True if the connection goes on. Without a parser there is nothing behind the head."""
        conn.requests += 1
        self.requests_taken += 1
        keep = head.keep_alive
        if self.max_requests is not None and conn.requests >= self.max_requests:
            keep = False
        body: RequestBody = NO_BODY
        if parser is None:
            pass
        elif head.is_chunked or head.content_length:
            body = RequestBody(conn, parser, head, self.body_timeout, self.min_body_rate)
        # The event is taken in any case: a parser that is kept for others must be at the end of a message
        # (test_behind_connect_nothing_is_http_and_no_other_connection_suffers).
        elif parser.next_event() is SWITCHED:  # CONNECT: what follows is not HTTP; else its end
            keep = False
        request = Request(conn, head, body)
        refused = None
        may_expect = not head.is_ordinary and head.headers.get_raw(b"expect") is not None
        if may_expect or head.method in self.refused_methods:
            refused = self.refusal_of(conn, head)
        if refused is not None:
            return self.send_answer(request, refused, False)
        return self.serve_request(request, keep)

    def serve_request(self, request: Request, keep: bool) -> bool:
        """Have the program answer, and send that; True if the connection goes on. The seam of other interfaces."""
        if not request.head.is_ordinary and self.takes_websockets and asks_for_websocket(request.head):
            return self.open_websocket(request, keep)
        try:
            response = self.handle_request(request)
            if request.is_answered:
                return self.end_switch(request, None)
            if not isinstance(response, Response):
                raise TypeError(f"handle_request returned {response!r}: a Response expected")
        except BaseException as error:
            if request.is_answered:
                return self.end_switch(request, error)
            response = self.error_response(request, error)
            keep = keep and isinstance(error, HTTPError)
        return self.send_answer(request, response, keep)

    @property
    def allowed_methods(self) -> str:
        """What Allow says where a method is refused."""
        return ", ".join(method for method in METHODS if method not in self.refused_methods)

    def refusal_of(self, conn: Connection, head: RequestHead) -> Response | None:
        """Return the answer to a request that is sound and yet not for the program."""
        if head.method in self.refused_methods:
            return self._refusal(conn, HTTPError(405, headers=[("Allow", self.allowed_methods)]), "method")
        expected = head.headers.tokens(b"expect")
        if head.version == "1.0" or set(expected) <= {b"100-continue"}:
            return None  # RFC 9110 section 10.1.1
        return self._refusal(conn, HTTPError(417), "expectation")

    def error_response(self, request: Request, error: BaseException) -> Response:
        """Return the answer to what ``handle_request`` raised, or raise it again if there is none to give."""
        conn = request.connection
        if isinstance(error, HTTPError):
            return error.response
        # The client is to blame for what its own connection raised, and for nothing else
        # (test_an_error_of_another_connection_is_500): for what it sent, or did not send, but a client that does not
        # read gets no answer (test_a_client_that_does_not_read_what_the_program_sends_is_not_408).
        if getattr(error, "connection", None) is conn:
            if isinstance(error, BadRequest):
                return self._refusal(conn, error, error.reason.value)
            if isinstance(error, OperationTimeout) and error.operation == "recv":
                return self._refusal(conn, HTTPError(408, str(error)), "body-timeout")
            if isinstance(error, ConnectionLost | ConnectionClosed | OperationTimeout):
                raise error
        if not isinstance(error, Exception | gevent.Timeout):
            raise error  # killed
        self.error_count += 1
        self.log_failure(error, "%r failed", request)
        return HTTPError(500).response

    def send_answer(self, request: Request, response: Response, keep: bool) -> bool:
        """Send the answer; True if the connection goes on."""
        if self.on_filter is not None:
            response = self._filter(request, response)
        if request.stream is not None:
            return self._send_to_stream(request, response, request.stream)
        conn, body = request.connection, request.body
        # Decided before the head goes out, as that says whether the connection goes on: not if what is left of the
        # body has no end that could be found (test_a_broken_body_that_the_program_forgives_closes), or is too long.
        if body is not NO_BODY and not body.is_ended:
            keep = keep and self.can_discard_body(request)
        keep = keep and (not self.draining or self.asks_on(conn))
        before = conn.bytes_sent
        try:
            keep = self._send(request, response, keep)
        except BaseException as error:
            response, keep = self._send_error(request, response, error), False
        finally:
            if self.on_request_done is not None or type(response.body) is not bytes:
                self._finish(request, response, conn.bytes_sent - before)
        return self.end_exchange(request, keep)

    def _filter(self, request: Request, response: Response) -> Response:
        assert self.on_filter is not None
        if response.status not in BODILESS and (change := self.on_filter(request, response)) is not None:
            apply_filter(response, change)
        return response if self.compression is None else self.compression.apply(request, response)

    def _send_to_stream(self, request: Request, response: Response, stream: ResponseStream) -> bool:
        """Send the answer to a stream; True, as the connection is not this request's alone."""
        sent = 0
        try:
            for size in self._stream_answer(request, response, stream):
                sent += size
        except BaseException as error:
            if request.is_answered:
                stream.reset()
                raise
            failed, response = response, self.error_response(request, error)
            self._close_body(request, failed)
            for size in self._stream_answer(request, response, stream):
                sent += size
        finally:
            self._finish(request, response, sent)
        return True

    def asks_on(self, conn: Any) -> bool:
        """Whether more requests have come on a connection already: a server that drains answers these, too."""
        parser: RequestParser | None = conn.parser_in_use
        return parser is not None and parser.pending > 0

    def end_exchange(self, request: Request, keep: bool) -> bool:
        """Drop what is left of the body, or close; True if the connection goes on."""
        body = request.body
        if keep and body is not NO_BODY and not body.is_ended:
            keep = self._discard(request)
        if not keep:
            request.connection.close()
        return keep

    def _send_error(self, request: Request, failed: Response, error: BaseException) -> Response:
        """Answer with an error in place of an answer whose sending failed, and return that; or cut off, and raise."""
        conn = request.connection
        try:
            # Once the head is out, in part or whole, there can be no other answer
            # (test_what_fails_within_its_body_is_seen_to_be_cut); before, there must be one
            # (test_what_fails_before_its_first_piece_is_answered).
            if request.is_answered:
                if isinstance(error, BadRequest) and error.connection is conn:
                    self._note_refusal(conn, error, error.reason.value)
                raise error
            response = self.error_response(request, error)
            self._send(request, response, False)
        except BaseException:
            self.cut_off_answer(request, error)
            raise
        self._close_body(request, failed)
        return response

    def cut_off_answer(self, request: Request, error: BaseException) -> None:
        """End an answer that is out in part, so that the client sees that it was cut short."""
        conn = request.connection
        if conn.state is not State.OPEN:
            return
        # FIN where the framing shows the cut, behind all that is out, which a reset would destroy
        # (test_what_was_sent_of_an_answer_that_breaks_off_arrives). A reset where FIN would look like the end, for a
        # client that takes nothing, and when this greenlet is killed.
        takes_nothing = isinstance(error, OperationTimeout) and error.connection is conn and error.operation == "send"
        if request.shows_cut and isinstance(error, Exception | gevent.Timeout) and not takes_nothing:
            conn.close()
        else:
            conn.abort()

    def _finish(self, request: Request, response: Response, sent: int) -> None:
        """Let go of the answer, and tell the program."""
        if type(response.body) is not bytes:
            self._close_body(request, response)
        if self.on_request_done is not None:
            self.tell_request_done(request, response, sent)

    def tell_request_done(self, request: Request, response: Response, sent: int) -> None:
        """Call ``request_done``, if the program has it; what it raises is logged and counted."""
        if self.on_request_done is None:
            return
        try:
            self.request_done(request, response, sent)
        except Exception:
            self.log_program_failure("request_done failed for %r", request)

    def _close_body(self, request: Request, response: Response) -> None:
        try:
            _close(response.body)
        except Exception:
            self.log_program_failure("the body of the answer to %r could not be closed", request)

    def can_discard_body(self, request: Request) -> bool:
        """Whether what is left of the body is surely little enough to be read and dropped."""
        body = request.body
        if body.is_awaited or body.is_broken:
            return False  # the client may send it or not; there is no end to be found
        # Of a body in chunks nobody knows; what comes is dropped within the bounds of ``_discard``
        # (test_an_endless_unread_body_ends_the_connection). Else only what is left counts
        # (test_only_what_is_left_of_a_body_counts).
        length = request.head.content_length
        return length is None or length - body.received <= DISCARD_BYTES

    def _discard(self, request: Request) -> bool:
        """Drop what is left of the body after the answer; False if that is too much."""
        try:
            return request.body.discard(DISCARD_BYTES, DISCARD_SECONDS)
        except BadRequest as refusal:
            # An answer was given, so the client is told no more
            # (test_an_unread_body_that_is_broken_is_refused_after_its_answer).
            self._note_refusal(request.connection, refusal, refusal.reason.value)
            return False


def _is_all(head: RequestHead) -> bool:
    """Whether no body follows a head, and no other protocol."""
    if head.content_length or head.is_chunked:
        return False
    return head.is_ordinary or head.headers.get_raw(b"upgrade") is None


def _close(body: object) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
