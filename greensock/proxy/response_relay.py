"""The answer's way back: head and body from the server to the client, framed anew, in bounded memory.

The body goes out as it comes. A client that does not keep up is sent to from an ``AnswerBuffer``, so that its server is
free soon; where nothing may be held, or no more, the server is not read. A body that came whole with its head goes out
with it in one write, and the server's connection is free before that. One whose length is known is spliced, in the
kernel, if nobody watches it and the client keeps up.

Where an answer breaks off after its head went out, nothing may look like its end: the client's connection is closed
behind what came if Content-Length or chunks show that it was cut, else it is reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING

import gevent

from greensock import OperationTimeout, let_others_run
from greensock.http.client.connection_pool import ClientConnection
from greensock.http.errors import BadResponse, BodyTimeout, PhaseTimeout, Reason, SendTimeout, TotalTimeout
from greensock.http.server.request import NO_BODY
from greensock.http.server.response import Response
from greensock.http.server.response_writer import CLOSE, JOINED, KEEP_ALIVE, OWN_FIELDS
from greensock.http.wire.events import Data, EndOfMessage, ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.hop_by_hop import end_to_end_trailers
from greensock.http.wire.writer import LAST_CHUNK, phrase_of, write_last_chunk
from greensock.proxy.answer_buffer import AnswerBuffer, Patience
from greensock.proxy.error_lines import tell_tunnel
from greensock.proxy.failure import LONG_WAIT, Failure, UpcallFailed, client_is_gone, failure_of, has_left
from greensock.proxy.forwarded import protocols_offered
from greensock.proxy.options import Buffering
from greensock.proxy.proxy_connection import ClientBehind
from greensock.proxy.rules import NO_EDITS
from greensock.proxy.tunnel import run_tunnel

if TYPE_CHECKING:
    from greensock.http.client.exchange import Exchange
    from greensock.proxy.relay import Relay

__all__ = ["pass_answer"]

#: How many pieces of a body are taken before its head goes out.
MAX_AHEAD = 4
#: From so many bytes on, the rest of a body is spliced. (Measured: below, the pipe costs more than it saves.)
SPLICED = 262_144
#: Seconds in which the request must be out when a server switches.
LAST_PIECE_SECONDS = 1.0

#: Fields that only the proxy writes in a 101: an edit of them has no effect. It names the protocol that is spoken now.
OWN_FIELDS_OF_SWITCH = OWN_FIELDS | {b"upgrade"}

UPGRADE = b"Connection: Upgrade\r\n"  # where Upgrade is passed on (RFC 9110 section 7.8)

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
    if relay.proxy.on_filter is not None or relay.request.stream is not None:
        return _pass_as_response(relay, head, conn)
    # The server is let go before the client takes a byte: a slow client holds none
    # (test_a_slow_client_holds_no_server_for_a_short_answer).
    body = conn.parser.take_whole_body()
    if body is not None:
        relay.finish()
        return _pass_whole(relay, head, body)
    passage = _StreamedAnswer(relay, head, conn)
    if passage.is_whole:
        relay.finish()
    return passage.run()


def _pass_as_response(relay: Relay, head: ResponseHead, conn: ClientConnection) -> bool:
    """Pass on an answer as one of the program's own: to a stream, or through a filter."""
    passage = _StreamedAnswer(relay, head, conn)
    headers = _edited_headers(relay, head, False)
    for name in OWN_FIELDS:
        headers.remove(name)
    if head.content_length is not None:
        headers.set(b"Content-Length", b"%d" % head.content_length)
    pieces = passage.pieces()
    first = next(pieces, b"")  # what goes wrong before is answered
    if passage.is_whole:  # its server was let go of
        response = Response(first, head.status, headers)
    else:
        response = Response(chain([first], pieces), head.status, headers)
    return relay.proxy.send_answer(relay.request, response, relay.keep)


def _pass_whole(relay: Relay, head: ResponseHead, body: bytes) -> bool:
    """Pass on an answer that came whole, without chunks: the common case."""
    proxy, request, client, keep = relay.proxy, relay.request, relay.conn, _may_keep(relay)
    length, status = head.content_length, head.status
    if length is None and status != 204 and status != 304 and request.method != "HEAD":
        length = 0
    framing = b"Content-Length: %d\r\n\r\n" % length if length is not None else b"\r\n"
    written = _written_head(relay, head, keep) + framing
    # From here on what fails cuts the answer off, and makes no other one: its head is counted, and may be out.
    request.is_answered = True
    if request.body is not NO_BODY:
        request.body.stop_awaiting()
    if proxy.watches_responses and body:
        proxy.watch_response_body(relay, body)
    client.send(written + body if len(body) <= JOINED else [written, body])
    return _go_on(relay, keep)


def _may_keep(relay: Relay) -> bool:
    """Whether the answer may say that the client's connection goes on."""
    request, exchange = relay.request, relay.exchange
    keep = relay.keep and (not relay.proxy.draining or relay.proxy.asks_on(relay.conn))
    # The head says it, so it is decided here; ``_go_on`` keeps to it, or closes
    # (test_an_early_answer_says_whether_the_connection_goes_on).
    if keep and request.body is not NO_BODY and not request.body.is_ended:
        if exchange is None or not exchange.is_sending:  # else what is left is still being sent to the server
            keep = relay.proxy.can_discard_body(request)
    return keep


def _go_on(relay: Relay, keep: bool) -> bool:
    """Let the client's connection go on behind an answer, or close it."""
    request = relay.request
    if request.body is NO_BODY:
        if not keep:
            relay.conn.close()
        return keep
    if keep and not request.body.is_ended:
        keep = relay.proxy.can_discard_body(request)
    return relay.proxy.end_exchange(request, keep)


def _look_ahead(relay: Relay, head: ResponseHead, conn: ClientConnection) -> tuple[bool, bytes | memoryview]:
    """Take what of the body came with the head; True if that is all of it."""
    next_event = conn.parser.next_event
    try:
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
            if len(pieces) == MAX_AHEAD:
                break
        if len(pieces) > 1:
            first = b"".join(pieces)
        if type(event) is EndOfMessage:
            relay.answer_trailers = event.trailers
            return True, first
        return False, first
    except BadResponse as error:  # nothing of it is out: a clear answer can still be given
        raise relay.blame_server(error) from None


def _written_head(relay: Relay, head: ResponseHead, keep: bool, trailers: bool = False) -> bytes:
    """Return the head for the client, without the field that says how long the body is, and the empty line.

    ``trailers`` says whether they would be passed on.
    """
    proxy, status, route = relay.proxy, head.status, relay.route
    edits = route is not None and route.response_fields is not NO_EDITS
    if edits or proxy.edits_responses or relay.sets_cookie or relay.puts_right:
        lines = _edited(relay, head, trailers)
    else:
        lines = proxy.gateway.forwarder.response_lines(head, trailers)
    option = b""
    if not keep:
        option = CLOSE
    elif relay.request.version == "1.0":
        option = KEEP_ALIVE
    if status == 426 and b"\nUpgrade: " in b"\n" + lines:
        option += UPGRADE
    date = b"" if head.headers.get_raw(b"date") is not None else proxy.date_line()
    proxy.answers_by_status[status] += 1
    line = _status_lines.get((status, head.phrase)) or _status_line(status, head.phrase)
    return b"%b%b%b%b" % (line, date, lines, option)


def _edited(relay: Relay, head: ResponseHead, trailers: bool) -> bytes:
    """Return the lines of an answer with the changes of its route and of the program."""
    headers = _edited_headers(relay, head, trailers)
    own = OWN_FIELDS_OF_SWITCH if head.is_switch else OWN_FIELDS
    return b"".join([b"%b: %b\r\n" % pair for pair in headers.raw if pair[0].lower() not in own])


def _edited_headers(relay: Relay, head: ResponseHead, trailers: bool) -> Headers:
    pairs = relay.proxy.gateway.forwarder.response_pairs(head, trailers=trailers)
    headers = Headers.of_raw(relay.put_right(pairs) if relay.puts_right else pairs)
    relay.add_cookie(headers)
    if relay.route is not None and relay.route.response_fields:
        edits = relay.route.response_fields
        edits.apply(headers, relay.variables(edits.variables))
    relay.proxy.edit_response(relay, head.status, headers)
    if relay.proxy.hsts is not None:
        headers.set(b"Strict-Transport-Security", relay.proxy.hsts)
    return headers


class _StreamedAnswer:
    """One answer on its way to the client. While the client takes nothing, one piece of input is held, or a buffer."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_client",
        "_conn",
        "_first",
        "_head",
        "_held_up",
        "_keep",
        "_left",
        "_relay",
        "is_whole",
    )

    def __init__(self, relay: Relay, head: ResponseHead, conn: ClientConnection) -> None:
        self._relay = relay
        self._head = head
        self._conn = conn
        self._client = relay.conn
        self._held_up = relay.conn.held_up  # by what was sent before
        self.is_whole, self._first = _look_ahead(relay, head, conn)
        self._keep = relay.keep
        self._chunked = False
        self._left: int | None = None  # bytes of the body that are still to come
        self._buffer: AnswerBuffer | None = None  # what the client is behind with

    def run(self) -> bool:
        relay, request = self._relay, self._relay.request
        framing = self._framing()
        self._keep = self._keep and _may_keep(relay)
        trailers = self._chunked and relay.passes_trailers
        written = _written_head(relay, self._head, self._keep, trailers) + framing
        request.is_answered = True
        request.body.stop_awaiting()
        if self.is_whole:
            self._send_whole(written)
        else:
            self._send_as_it_comes(written)
        return _go_on(relay, self._keep)

    def _framing(self) -> bytes:
        """Return the field that says how long the body is, and the empty line (RFC 9112 section 6.3)."""
        length = self._head.content_length
        if length is not None:
            self._left = length
            return b"Content-Length: %d\r\n\r\n" % length
        if self._relay.request.version == "1.1":
            if self.is_whole and not self._relay.answer_trailers:
                return b"Content-Length: %d\r\n\r\n" % len(self._first)
            self._chunked = True
            return b"Transfer-Encoding: chunked\r\n\r\n"
        # To 1.0 the end of the connection is the end of the body: only a reset can show that it was cut.
        self._keep = self._relay.request.shows_cut = False
        return b"\r\n"

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
        """Send head and body, the latter as it comes; the server is let go when it has said all."""
        relay, client = self._relay, self._client
        if self._may_buffer(self._most()):
            client.patience = Patience(client)
        try:
            try:
                self._pass([written, *self._watched(self._take_first())])
                self._pass_body()
            except BaseException as error:
                broken = self._broken(error)
                self._deliver(broken)
                raise broken from None
            relay.finish()
            if self._buffer is not None:
                self._await_client(self._buffer)
        finally:
            if client.patience is not None:
                client.patience = None
            if self._buffer is not None:
                self._buffer.close()

    # -- a client that is behind

    def _most(self) -> Buffering:
        """Return how much may be held of it."""
        route = self._relay.route
        if route is not None and route.buffer is not None:
            return route.buffer
        return self._relay.proxy.gateway.buffering

    def _may_buffer(self, most: Buffering) -> bool:
        """Whether anything is held for a client that is behind.

        Not of a stream of events, nor where the server does not want it, nor of what is known to be longer than what
        may be held: its server would not be free before the client has taken nearly all of it.
        """
        head = self._head
        if not most or (head.content_length or 0) - len(self._first) > most.total:
            return False
        if (head.headers.get_raw(b"x-accel-buffering") or b"").strip().lower() == b"no":
            return False
        kind = head.headers.get_raw(b"content-type") or b""
        return kind.partition(b";")[0].strip().lower() != b"text/event-stream"

    def _pass(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send pieces, or hold them for a client that is behind."""
        buffer, client = self._buffer, self._client
        if buffer is not None:
            if buffer.failure is not None:
                raise buffer.failure
            if buffer.is_holding:
                if buffer.hold(pieces):
                    return
                self._await_room(buffer)
        try:
            client.send(pieces)
        except ClientBehind as behind:
            self._fall_behind(behind, pieces)

    def _fall_behind(self, behind: ClientBehind, pieces: Sequence[bytes | memoryview]) -> None:
        """Hold what comes from now on; ``pieces`` are what was being sent."""
        client, buffer = self._client, self._buffer
        if buffer is None:
            most, room = self._most(), self._relay.proxy.gateway.buffer_room
            buffer = self._buffer = AnswerBuffer(client, most.memory, most.file, room, self._relay._abort_server)
        if behind.is_begun:
            buffer.begin(behind.entry)
        elif buffer.hold(pieces):
            buffer.begin()
        else:  # there is no room for any of it: the server waits
            patience, client.patience = client.patience, None
            try:
                client.send(pieces)
            finally:
                client.patience = patience

    def _await_room(self, buffer: AnswerBuffer) -> None:
        """Have the server wait until the client has taken all that is held."""
        began = monotonic()
        try:
            self._await(buffer)
        finally:
            self._client.held_up += monotonic() - began

    def _await(self, buffer: AnswerBuffer) -> None:
        deadlines, conn = self._relay.deadlines, self._conn
        left = deadlines.left(deadlines.total_due, TotalTimeout, deadlines.total, conn)
        if not buffer.wait(left):
            raise TotalTimeout(deadlines.total or 0.0, conn)

    def _await_client(self, buffer: AnswerBuffer) -> None:
        """Wait until the client has all of it. Its server is free: it is not to blame for anything any more."""
        try:
            self._await(buffer)
        except PhaseTimeout as late:
            raise failure_of(late, in_body=True) or late from None

    def _deliver(self, broken: BaseException) -> None:
        """Have what came of an answer that broke off go out before it is cut. Its server is left first."""
        buffer = self._buffer
        if buffer is None or not isinstance(broken, Failure) or broken.is_untold:
            return
        self._relay._leave_unjudged()
        with suppress(Exception):  # the answer has failed as it is
            self._await(buffer)

    def _take_first(self) -> bytes | memoryview:
        """Give out what came with the head: it must not be held as long as the answer takes."""
        # Taken out of ``self`` for that (test_a_reader_that_stalls_holds_one_piece).
        first, self._first = self._first, b""
        if self._left is not None:
            self._left -= len(first)
        return first

    def _pass_body(self) -> None:
        relay = self._relay
        left, exchange = self._left, relay.exchange
        assert exchange is not None
        # While the request still goes out, a reset may end the answer, and would spill what is in the pipe
        # (test_only_what_nobody_can_reset_is_spliced).
        may_splice = exchange.is_sent and not relay.proxy.watches_responses
        is_held = self._buffer is not None and self._buffer.is_holding
        if left is not None and left >= SPLICED and may_splice and not is_held:
            if self._client.patience is not None:
                self._client.patience = Patience(self._client, in_kernel=True)
            self._splice(left)
        began = 0.0
        for piece in self._further():
            if relay.proxy.watches_responses:
                self._watch(piece)
            self._pass(self._framed(piece))
            del piece  # not to be held while the next one is waited for
            began = let_others_run(began)
        if self._chunked:
            self._pass([self._last_chunk(relay.answer_trailers)])

    def _further(self) -> Iterator[bytes | memoryview]:
        """Go through what is yet to come of the body.

        A loop of its own, and not that of ``IncomingBody``: others must be let run after each piece that was sent, and
        not only where more is there already; and how long the server may be silent depends on the request.
        """
        next_event, silence = self._conn.parser.next_event, self._relay.deadlines.timeouts.body
        while True:
            event = next_event()
            if type(event) is Data:
                yield event.data
            elif type(event) is EndOfMessage:
                self._relay.answer_trailers = event.trailers
                return
            else:
                silence = self._hear(silence)

    def _hear(self, silence: float | None) -> float | None:
        """Take what comes of the body within so many seconds; return how long the server may be silent then."""
        conn, deadlines = self._conn, self._relay.deadlines
        seconds, exchange = deadlines.timeouts.body, self._relay.exchange
        assert exchange is not None
        try:
            data = conn.hear(deadlines.within(silence, BodyTimeout, conn))
        except OperationTimeout:
            return self._further_silence(exchange, seconds)
        conn.parser.feed_or_end(data)
        return seconds

    def pieces(self) -> Iterator[bytes]:
        """Go through the body as it comes, and let go of the server behind it."""
        relay = self._relay
        try:
            if self.is_whole:
                relay.finish()
            if piece := bytes(self._take_first()):
                self._watch(piece)
                yield piece
            if not self.is_whole:
                for data in self._further():
                    self._watch(data)
                    yield bytes(data)
                relay.finish()
        # Closed before its end, by who sends the answer: nobody is to blame for that here.
        except GeneratorExit:
            raise
        except BaseException as error:
            raise self._broken(error) from None

    def _further_silence(self, exchange: Exchange, seconds: float | None) -> float:
        """Return how much longer the server may be silent: its time begins when it has the whole request."""
        late = self._relay.deadlines.late(BodyTimeout, seconds, self._conn)
        if isinstance(late, BodyTimeout) and seconds is not None:
            if exchange.is_sending:
                return seconds
            if exchange.is_sent and exchange.waited < seconds:
                return seconds - exchange.waited
        raise late from None

    def _splice(self, count: int) -> None:
        """Move the rest of a body of known length from socket to socket."""
        deadlines, conn, client = self._relay.deadlines, self._conn, self._client
        seconds = deadlines.timeouts.body
        total = deadlines.left(deadlines.total_due, TotalTimeout, deadlines.total, conn)
        late = TotalTimeout(deadlines.total or 0.0, conn)
        before = conn.bytes_received
        try:
            # The limits of a splice are for each wait, and a trickle would keep to them for ever
            # (test_a_spliced_body_ends_with_the_total_time).
            with gevent.Timeout(total, late):
                moved = conn.splice(client, count, timeout=seconds, send_timeout=client.send_timeout)
        except ClientBehind as behind:  # the engine sends what is on its way; the rest is read, and held
            moved = conn.bytes_received - before
            client.patience = Patience(client)
            self._fall_behind(behind, ())
        except OperationTimeout as error:
            # The server was silent. If the client took nothing, the error is of its connection and is let through: the
            # server is not to blame (test_a_client_that_takes_nothing_of_a_spliced_body).
            if error is not late and error.connection is conn:
                raise BodyTimeout(seconds or 0.0, conn) from None
            raise
        conn.parser.skip_body(moved)

    def _watched(self, piece: bytes | memoryview) -> list[bytes | memoryview]:
        """Return a piece as it goes out, after the program had a look at it."""
        self._watch(piece)
        return self._framed(piece)

    def _watch(self, piece: bytes | memoryview) -> None:
        relay = self._relay
        if relay.proxy.watches_responses and len(piece):
            try:
                relay.proxy.watch_response_body(relay, bytes(piece))
            except Exception as error:
                raise UpcallFailed(error) from error

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
        # In this order. A client that leaves has the server's connection reset, and a body that fails resets it too:
        # the error that is seen then is only what follows, and the server is not to blame
        # (test_a_client_that_leaves_in_the_answer).
        if relay.has_client_left():
            return client_is_gone(self._client)
        if relay.cut is not None:
            return relay.cut
        if self._buffer is not None and self._buffer.failure is not None:
            error = self._buffer.failure  # which ended the wait for the server
        elif relay.exchange is not None and relay.exchange.failure is not None:
            error = relay.exchange.failure
        if isinstance(error, UpcallFailed):
            return error
        if getattr(error, "connection", None) is self._client:
            return error
        failure = failure_of(error, in_body=True)
        if failure is not None and relay.server is not None:
            failure.blames_server = failure.blames_server and not self._was_client_awaited(error)
            relay.server.failed(failure, relay.spell)
        return failure or error

    def _was_client_awaited(self, error: BaseException) -> bool:
        """Whether the server has left, or takes no more of the request, after it waited long for the client."""
        if self._client.held_up - self._held_up >= LONG_WAIT:
            return has_left(error) or isinstance(error, SendTimeout)
        return has_left(error) and self._relay.was_body_awaited()


def _status_line(status: int, phrase: bytes) -> bytes:
    """Return the status line, and remember it: a server says the same few."""
    line = b"HTTP/1.1 %d %b\r\n" % (status, phrase or phrase_of(status))
    if len(_status_lines) < 256:
        _status_lines[status, phrase] = line
    return line


def _switch(relay: Relay, head: ResponseHead) -> bool:
    """Pass on 101, and then whatever comes, both ways."""
    client = relay.conn
    # Only to what the client offered: it would take the bytes of anything else for something else
    # (test_a_switch_to_what_was_not_offered).
    taken = head.headers.tokens(b"upgrade")
    if not taken or not set(taken) <= set(protocols_offered(relay.request.head)):
        error = BadResponse(f"101 to {b', '.join(taken)!r}, which was not offered", Reason.UNEXPECTED_SWITCH)
        raise relay.blame_server(error)
    # The client speaks HTTP until its request is out (RFC 9110 section 7.8). Who sends it may be behind its last piece,
    # and have paused there (test_a_switch_while_who_sends_the_body_pauses).
    if not (relay.exchange is None or relay.exchange.join(LAST_PIECE_SECONDS)) or not relay.request.body.is_ended:
        error = BadResponse("101 before the request was there whole", Reason.UNEXPECTED_SWITCH)
        # Many servers look for no body of such a request: a client that keeps it back could have them ejected
        # (test_a_switch_before_the_request_is_whole).
        raise relay.blame_server(error, is_sure=False)
    lines = _edited(relay, head, trailers=False)
    upgrade = b", ".join(head.headers.all_raw(b"upgrade"))
    line = _status_line(head.status, head.phrase)
    relay.request.is_answered = True
    relay.proxy.answers_by_status[head.status] += 1
    client.send(b"%b%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (line, lines, upgrade))
    lease = relay.take_lease()  # its slot is held as long as the tunnel: it is one of the server's connections
    upstream = lease.connection
    assert upstream is not None
    try:
        upstream.unread(upstream.parser.take_rest())
        client.unread(relay.client_rest())
        if relay.server is not None:
            relay.server.succeeded(relay.spell)
        relay.proxy.tunnels += 1
        began = monotonic()
        reason = run_tunnel(client, upstream, relay.proxy.gateway.tunnel_timeout(relay.route))
        tell_tunnel(relay, reason, monotonic() - began)
        if relay.record is not None:
            relay.record.reason = reason
    # Whatever ends it, or keeps it from beginning (test_a_tunnel_that_can_not_begin).
    finally:
        lease.end(False)
        client.close()
        relay.left()
        relay.note_end()
    return False
