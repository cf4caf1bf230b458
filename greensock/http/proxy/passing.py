"""The answer's way back: head and body from the server to the client, framed anew, in bounded memory.

The body goes out as it comes; while the client does not take it, the server is not read. A body that came whole with
its head goes out with it in one write, and the server's connection is free before that. One whose length is known is
spliced, in the kernel, if nobody watches it.

Where an answer breaks off after its head went out, the client's connection is reset: nothing may look like its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from greensock import Connection, OperationTimeout
from greensock.http.errors import BadResponse, BodyTimeout, TotalTimeout
from greensock.http.events import Data, EndOfMessage, ResponseHead
from greensock.http.headers import Headers
from greensock.http.hopbyhop import end_to_end_trailers
from greensock.http.links import ClientConnection
from greensock.http.proxy.failure import CLIENT_LEFT, Failure, failure_of
from greensock.http.proxy.tunnel import run_tunnel
from greensock.http.writer import LAST_CHUNK, phrase_of, write_last_chunk

if TYPE_CHECKING:
    from greensock.http.proxy.relay import Relay

__all__ = ["OWN_FIELDS", "pass_answer"]

#: Up to so many bytes a body that came whole is joined with its head: one copy is cheaper than gathering.
JOINED = 16384
#: From so many bytes on, the rest of a body is spliced. (Measured: below, the pipe costs more than it saves.)
SPLICED = 262_144

#: Fields that only the proxy writes: an edit of them has no effect.
OWN_FIELDS = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive"})

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"  # to a client that speaks 1.0

_status_lines: dict[tuple[int, bytes], bytes] = {}


def pass_answer(relay: Relay) -> bool:
    """Pass on the answer whose head is there; True if the client's connection goes on."""
    head, exchange = relay.head, relay.exchange
    assert head is not None
    assert exchange is not None
    conn = exchange.connection
    relay.note_head(head.status)
    if head.is_switch:
        return _switch(relay, head)
    whole, first = _look_ahead(relay, head, conn)
    if whole:
        _finish_exchange(relay)
    return _Passage(relay, head, conn, first, whole).run()


def _look_ahead(relay: Relay, head: ResponseHead, conn: ClientConnection) -> tuple[bool, bytes | memoryview]:
    """Take what of the body came with the head; True if that is all of it."""
    next_event = conn.parser.next_event
    try:
        if not head.has_body:
            event = next_event()
            return True, b""
        event = next_event()
        if type(event) is not Data:
            if type(event) is EndOfMessage:
                relay.answer_trailers = event.trailers
                return True, b""
            return False, b""
        first = event.data
        pieces = [first]
        while type(event := next_event()) is Data:
            pieces.append(event.data)
        if len(pieces) > 1:
            first = b"".join(pieces)
        if type(event) is EndOfMessage:
            relay.answer_trailers = event.trailers
            return True, first
        return False, first
    except BadResponse as error:  # nothing of it is out: a clear answer can still be given
        raise relay.blame_server(error) from None


def _finish_exchange(relay: Relay) -> None:
    """Let go of a server whose answer is whole."""
    exchange, server = relay.exchange, relay.server
    assert exchange is not None
    assert server is not None
    if exchange.is_sending:
        exchange.stop_and_wait()
    relay.end_lease(exchange.is_sent and exchange.connection.parser.is_reusable)
    server.succeeded()
    relay.left()
    relay.note_end()


class _Passage:
    """One answer on its way to the client."""

    __slots__ = ("_chunked", "_client", "_conn", "_first", "_head", "_keep", "_left", "_relay", "_whole")

    def __init__(
        self, relay: Relay, head: ResponseHead, conn: ClientConnection, first: bytes | memoryview, whole: bool
    ) -> None:
        self._relay = relay
        self._head = head
        self._conn = conn
        self._client: Connection = relay.conn
        self._first = first
        self._whole = whole
        self._keep = relay.keep
        self._chunked = False
        self._left: int | None = None  # bytes of the body that are still to come

    def run(self) -> bool:
        relay, request = self._relay, self._relay.request
        written = self._written_head()
        request.is_answered = True
        request.body.stop_awaiting()
        if self._whole:
            self._send_whole(written)
        else:
            self._send_as_it_comes(written)
            _finish_exchange(relay)
        if not request.body.is_ended and self._keep:
            self._keep = relay.proxy._can_discard(request)
        return relay.proxy._end_exchange(request, self._keep)

    # -- the head

    def _written_head(self) -> bytes:
        """Return the head for the client."""
        relay, head = self._relay, self._head
        proxy, status = relay.proxy, head.status
        pairs = proxy.gateway.forwarder.response_pairs(head, trailers=False)
        if proxy.edits_responses or (relay.route is not None and relay.route.response_fields) or relay.sets_cookie:
            pairs = self._edited(pairs)
        framing = self._framing()
        if self._keep and proxy.draining:
            self._keep = False
        option = b""
        if not self._keep:
            option = CLOSE
        elif relay.request.version == "1.0":
            option = KEEP_ALIVE
        date = b"" if head.headers.get_raw(b"date") is not None else proxy._date_line()
        proxy._statuses[status] += 1
        line = _status_lines.get((status, head.phrase)) or _status_line(status, head.phrase)
        lines = b"".join([b"%b: %b\r\n" % pair for pair in pairs])
        return b"%b%b%b%b%b" % (line, date, lines, option, framing)

    def _framing(self) -> bytes:
        """Return the field that says how long the body is, and the empty line (RFC 9112 section 6.3)."""
        head, request = self._head, self._relay.request
        length = head.content_length
        if length is not None:
            self._left = length
            return b"Content-Length: %d\r\n\r\n" % length
        if not head.has_body:
            if self._whole and head.status not in (204, 304) and request.method != "HEAD":
                return b"Content-Length: 0\r\n\r\n"
            return b"\r\n"
        if request.version == "1.1":
            if self._whole and not self._relay.answer_trailers:
                return b"Content-Length: %d\r\n\r\n" % len(self._first)
            self._chunked = True
            return b"Transfer-Encoding: chunked\r\n\r\n"
        self._keep = False
        return b"\r\n"

    def _edited(self, pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        relay = self._relay
        headers = Headers.of_raw(list(pairs))
        relay.add_cookie(headers)
        if relay.route is not None and relay.route.response_fields:
            relay.route.response_fields.apply(headers, relay.variables())
        relay.proxy.edit_response(relay, self._head.status, headers)
        return [pair for pair in headers.raw if pair[0].lower() not in OWN_FIELDS]

    # -- the body

    def _send_whole(self, written: bytes) -> None:
        body = self._first
        relay = self._relay
        if relay.proxy.watches_responses and body:
            relay.proxy.watch_response_body(relay, bytes(body))
        if self._chunked:
            end = self._last_chunk(relay.answer_trailers)
            self._client.send([written, *self._framed(body), end])
        elif not body:
            self._client.send(written)
        elif len(body) <= JOINED:
            self._client.send(written + body)
        else:
            self._client.send([written, body])

    def _send_as_it_comes(self, written: bytes) -> None:
        """Send head and body, the latter as it comes."""
        try:
            self._client.send([written, *self._watched(self._first)])
            self._pass_body()
        except BaseException as error:
            raise self._broken(error) from None

    def _pass_body(self) -> None:
        relay, conn, client = self._relay, self._conn, self._client
        deadlines, seconds = relay.deadlines, relay.deadlines.timeouts.body
        next_event, feed = conn.parser.next_event, conn.parser.feed
        left = self._left
        if left is not None and left - len(self._first) >= SPLICED and not relay.proxy.watches_responses:
            self._splice(left - len(self._first))
        while True:
            event = next_event()
            if type(event) is Data:
                client.send(self._watched(event.data))
            elif type(event) is EndOfMessage:
                if self._chunked:
                    client.send(self._last_chunk(event.trailers))
                return
            else:
                try:
                    data = conn.recv(timeout=deadlines.within(seconds, BodyTimeout, conn))
                except OperationTimeout:
                    raise deadlines.late(BodyTimeout, seconds, conn) from None
                if data:
                    feed(data)
                else:
                    conn.parser.feed_eof()

    def _splice(self, count: int) -> None:
        """Move the rest of a body of known length from socket to socket."""
        deadlines, conn, client = self._relay.deadlines, self._conn, self._client
        seconds = deadlines.timeouts.body
        total = deadlines.left(deadlines.total_due, TotalTimeout, deadlines.total, conn)
        late = TotalTimeout(deadlines.total or 0.0, conn)
        try:
            with gevent.Timeout(total, late):
                moved = conn.splice(client, count, timeout=seconds, send_timeout=client.send_timeout)
        except OperationTimeout as error:
            if error is not late and error.connection is conn:
                raise BodyTimeout(seconds or 0.0, conn) from None
            raise
        conn.parser.skip_body(moved)

    def _watched(self, piece: bytes | memoryview) -> list[bytes | memoryview]:
        """Return a piece as it goes out, after the program had a look at it."""
        relay = self._relay
        if relay.proxy.watches_responses and len(piece):
            relay.proxy.watch_response_body(relay, bytes(piece))
        return self._framed(piece)

    def _framed(self, piece: bytes | memoryview) -> list[bytes | memoryview]:
        if not self._chunked:
            return [piece]
        return [b"%x\r\n" % len(piece), piece, b"\r\n"] if len(piece) else []

    def _last_chunk(self, trailers: Headers | None) -> bytes:
        if trailers is None or not self._relay.passes_trailers:
            return LAST_CHUNK
        return write_last_chunk(end_to_end_trailers(trailers, self._head.headers))

    def _broken(self, error: BaseException) -> BaseException:
        """Return what to raise when the answer can't be finished."""
        relay = self._relay
        if relay.has_client_left():
            return Failure("client-left", CLIENT_LEFT, blames_server=False)
        if relay.exchange is not None and relay.exchange.failure is not None:
            error = relay.exchange.failure
        if getattr(error, "connection", None) is self._client:
            return error
        failure = failure_of(error, in_body=True)
        if failure is not None and relay.server is not None:
            relay.server.failed(failure)
        return failure or error


def _status_line(status: int, phrase: bytes) -> bytes:
    """Return the status line, and remember it: a server says the same few."""
    line = b"HTTP/1.1 %d %b\r\n" % (status, phrase or phrase_of(status))
    if len(_status_lines) < 256:
        _status_lines[status, phrase] = line
    return line


def _switch(relay: Relay, head: ResponseHead) -> bool:
    """Pass on 101, and then whatever comes, both ways."""
    client = relay.conn
    pairs = relay.proxy.gateway.forwarder.response_pairs(head, trailers=False)
    lines = b"".join([b"%b: %b\r\n" % pair for pair in pairs])
    upgrade = b", ".join(head.headers.all_raw(b"upgrade"))
    line = _status_line(head.status, head.phrase)
    relay.request.is_answered = True
    relay.proxy._statuses[head.status] += 1
    client.send(b"%b%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (line, lines, upgrade))
    upstream = relay.take_lease().detach()
    upstream.unread(upstream.parser.take_rest())
    client.unread(relay.client_rest())
    if relay.server is not None:
        relay.server.succeeded()
    relay.proxy.tunnels += 1
    try:
        run_tunnel(client, upstream, relay.proxy.gateway.tunnel_timeout(relay.route))
    finally:
        upstream.close()
        client.close()
        relay.left()
        relay.note_end()
    return False
