"""One request on a connection, and the head of its answer.

A short request goes out in one write, and only then the answer is looked for. A long one is sent by a greenlet of its
own while the caller's listens, because the answer may come first. What happens then depends on it: a refusal or
redirection (300 and above) means that the server does not want the rest, and sending stops (RFC 9112 section 9.3); any
other answer may be made of what we send, so both go on until the answer ends, and with it the sending.

A server that refuses a body often closes at once, and its reset overtakes us: a send fails although the answer is
there, or in part. So a second descriptor is kept, through which what had come before the reset is read.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from greenlet import GreenletExit

from greensock import ConnectionClosed, ConnectionLost, OperationTimeout, let_others_run
from greensock.http.client.connection_pool import ClientConnection
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.payload import Payload, Segment
from greensock.http.errors import BadResponse, HeadTimeout, Reason, SendTimeout
from greensock.http.wire.events import ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.writer import write_chunk, write_last_chunk, write_request_head

__all__ = ["IDEMPOTENT", "WITH_BODY", "Call", "Exchange", "Interim", "Trailers"]

#: Up to so many bytes a body goes out with its head, in one write and without listening meanwhile.
JOINED = 16384
#: The callback for interim answers (1xx).
Interim = Callable[[ResponseHead], object]
#: The fields behind a body in chunks, or what returns them once the body is out.
Trailers = Headers | Callable[[], Headers | None] | None

#: Methods that may be repeated (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
#: Methods of which a server expects a body, and so a Content-Length of 0 (RFC 9110 section 8.6).
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Call:
    """A request, ready to be written, maybe more than once."""

    __slots__ = ("closes", "expects", "head", "interim", "is_upgrade", "method", "payload", "short", "trailers")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        payload: Payload,
        trailers: Trailers,
        interim: Interim | None,
    ) -> None:
        """``headers`` are those given, with Host; what belongs to the connection is written anew."""
        options = []
        self.closes = b"close" in headers.tokens(b"connection")
        self.is_upgrade = headers.get_raw(b"upgrade") is not None
        length = payload.length
        has_body = length is None or length > 0
        self.expects = has_body and b"100-continue" in headers.tokens(b"expect")
        if self.closes:
            options.append(b"close")
        if self.is_upgrade:
            options.append(b"Upgrade")
        if headers.get_raw(b"te") is not None:
            options.append(b"TE")
        if options or headers.get_raw(b"connection") is not None:
            headers = headers.copy()
            headers.remove(b"connection")
            if options:
                headers.add(b"Connection", b", ".join(options))
        if not has_body:
            if headers.get_raw(b"expect") is not None:
                headers = headers.copy()
                headers.remove(b"expect")
            length = 0 if method in WITH_BODY else None
        #: GET, POST, ...
        self.method = method
        chunked = has_body and length is None
        #: The head as bytes.
        self.head = write_request_head(method, target, headers, content_length=length, chunked=chunked)
        #: What follows it.
        self.payload = payload
        #: All of it, if it goes out in one write; else empty.
        self.short = b""
        if not has_body:
            self.short = self.head
        elif not self.expects and length is not None and length <= JOINED and len(payload.data) == length:
            self.short = self.head + payload.data
        #: What follows a body in chunks.
        self.trailers = trailers
        #: The callback for interim answers (1xx), if any.
        self.interim = interim

    @classmethod
    def written(
        cls,
        method: str,
        head: bytes,
        payload: Payload,
        trailers: Trailers = None,
        interim: Interim | None = None,
        is_upgrade: bool = False,
    ) -> Call:
        """Return a call whose head was written by a gateway, framing included. Asks it for 100, ``expects`` is set."""
        call = cls.__new__(cls)
        call.method = method
        call.head = head
        call.payload = payload
        call.short = b""
        call.trailers = trailers
        call.interim = interim
        call.is_upgrade = is_upgrade
        call.closes = call.expects = False
        return call

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be made again if nothing was heard of it (RFC 9110 section 9.2.2)."""
        return self.method in IDEMPOTENT and self.payload.is_replayable and not self.is_upgrade


class Exchange:
    """Makes one call on a connection. It resets that if sending fails, but neither closes it nor gives it back."""

    __slots__ = (
        "_begun",
        "_call",
        "_closes",
        "_conn",
        "_deadlines",
        "_heard",
        "_interim",
        "_sender",
        "_sent_at",
        "_understood",
        "failure",
        "head",
        "is_heard",
        "is_sent",
    )

    def __init__(self, call: Call, conn: ClientConnection, deadlines: Deadlines) -> None:
        self._call = call
        self._conn = conn
        self._deadlines = deadlines
        self._interim: list[ResponseHead] = []
        self._sender: gevent.Greenlet[..., None] | None = None
        self._begun = False
        self._closes = False
        self._heard: Event | None = None  # while a long body goes out: set whenever something came
        self._sent_at: float | None = None
        self._understood = False  # whether a head came, be it an interim one
        #: What went wrong while a body was sent.
        self.failure: BaseException | None = None
        #: The head of the final answer, once it is there.
        self.head: ResponseHead | None = None
        #: Whether the request went out whole.
        self.is_sent = False
        #: Whether anything came back.
        self.is_heard = False

    def may_repeat(self, error: BaseException) -> bool:
        """Whether the call may be made again on a fresh connection.

        The server may have closed the kept one before the request came; or what came is no answer at all, but what was
        left of an earlier one, or what the server says before it closes.
        """
        if not self._call.is_repeatable:
            return False
        # Asked before ``is_heard``: what is no status line is no answer to this request
        # (test_one_free_retry_for_what_may_be_repeated), unless a head came in front of it
        # (test_no_retry_once_something_was_heard).
        if isinstance(error, BadResponse) and error.reason is Reason.STATUS_LINE:
            return not self._understood
        if self.is_heard:
            return False
        if isinstance(error, BadResponse):
            return error.reason is Reason.NO_RESPONSE
        return isinstance(error, ConnectionLost)

    @property
    def connection(self) -> ClientConnection:
        """The connection to the server."""
        return self._conn

    @property
    def waited(self) -> float:
        """Seconds since the request went out whole; 0.0 before."""
        return monotonic() - self._sent_at if self._sent_at is not None else 0.0

    @property
    def is_sending(self) -> bool:
        """Whether a body is still going out."""
        return self._sender is not None and not self._sender.dead

    def run(self) -> ResponseHead:
        """Send the request and return the head of the final answer; the body may still go out then.

        Raises:
            PhaseTimeout: of sending, of the head, or of all.
            BadResponse, ConnectionLost: the server's fault.
        """
        call, conn = self._call, self._conn
        conn.requests += 1
        conn.parser.expect(call.method, upgrade=call.is_upgrade)
        if call.short:
            return self._run_short(call.short)
        payload = call.payload
        length = payload.length
        if length == 0:
            return self._run_short(call.head)
        if call.expects:
            self._send_short(call.head)
            # Only the head is out. If the final answer comes in place of 100, the server still waits for the body, and
            # the connection cannot be used again (test_a_refusal_instead_of_100_spares_the_body).
            self.is_sent = False
            self._sent_at = None
            if self._may_continue():
                return self._run_long(b"")
            return self.head or self._wait_head()
        if length is not None and length <= JOINED and len(payload.data) == length:
            return self._run_short(call.head + payload.data)
        return self._run_long(call.head)

    def _run_short(self, data: bytes) -> ResponseHead:
        """Send what goes out in one write, and take what comes first; most often that is the head.

        It is ``_hear`` and ``_take`` for that case, without their calls: no second descriptor, nobody to be told.
        """
        self._send_short(data)
        conn, deadlines = self._conn, self._deadlines
        seconds = deadlines.timeouts.head
        if deadlines.total_due != inf:
            return self._wait_head()
        try:
            data = conn.recv(None, seconds)
        except OperationTimeout:
            raise deadlines.late(HeadTimeout, seconds, conn) from None
        return self._take_first(data)

    def go_on(self, sent_at: float | None, heard: bytes | BaseException) -> ResponseHead:
        """Return the head of the final answer to a short request that somebody else has sent.

        ``sent_at`` is when it was out; None: it is not. ``heard`` is what was received then, or what was raised.
        """
        conn, deadlines = self._conn, self._deadlines
        conn.parser.expect(self._call.method, upgrade=self._call.is_upgrade)
        self._sent_at = sent_at
        self.is_sent = sent_at is not None
        if isinstance(heard, bytes):
            return self._take_first(heard)
        if isinstance(heard, OperationTimeout) and heard.connection is conn:
            kind = HeadTimeout if self.is_sent else SendTimeout
            seconds = deadlines.timeouts.head if self.is_sent else deadlines.timeouts.send
            raise deadlines.late(kind, seconds, conn) from None
        raise heard

    def _take_first(self, data: bytes) -> ResponseHead:
        """Take what came first, and return the head of the final answer, which most often is in that."""
        if data:
            self.is_heard = True
        parser = self._conn.parser
        parser.feed_or_end(data)
        head = parser.next_event()
        if type(head) is ResponseHead:
            if head.status >= 200 or head.is_switch:
                self.head = head
                return head
            self._understood = True
            self._interim.append(head)
            try:
                self._take()
            finally:
                self._tell()
        return self.head or self._wait_head()

    def stop(self) -> None:
        """Send no more. Does not block."""
        if self._sender is not None and not self._sender.dead:
            self._sender.kill(block=False)

    def stop_and_wait(self) -> None:
        """Send no more; the sender has let go of the payload when this returns."""
        if self._sender is not None:
            self._sender.kill()

    def join(self, seconds: float) -> bool:
        """Wait until the request is out whole; False if it is not by then, or never will be."""
        if self._sender is not None:
            self._sender.join(seconds)
        return self.is_sent

    def hand_over(self) -> bool:
        """Have the sender close the body when it is done; False if it is done, or never began."""
        # A greenlet that is killed before it ran never comes to its ``finally``, where the body would be closed.
        if not self.is_sending or not self._begun:
            self.stop()
            return False
        self._closes = True
        return True

    # -- hearing

    def _wait_head(self) -> ResponseHead:
        deadlines, seconds = self._deadlines, self._deadlines.timeouts.head
        while self.head is None:
            # Its time begins when the request is out, and no answer 1xx prolongs it
            # (test_interim_answers_do_not_prolong_the_wait). ``sent_at`` is taken before the wait: if the request has
            # gone out meanwhile, the time has only begun, and the wait is repeated.
            sent_at = self._sent_at
            due = deadlines.due(seconds)
            if sent_at is not None and seconds is not None:
                due = min(sent_at + seconds, deadlines.total_due)
            left = deadlines.left(due, HeadTimeout, seconds, self._conn)
            try:
                self._hear(left)
            except OperationTimeout:
                if sent_at is not None or monotonic() >= deadlines.total_due:
                    raise deadlines.late(HeadTimeout, seconds, self._conn) from None
            except BadResponse:
                self._tell()
                raise
            if self._interim:
                self._tell()
        return self.head

    def _may_continue(self) -> bool:
        """Wait for 100, but not for ever; False if the final answer came instead."""
        seconds = self._deadlines.timeouts.expect
        due = self._deadlines.due(seconds)
        while self.head is None:
            try:
                self._hear(self._deadlines.left(due, HeadTimeout, seconds, self._conn))
            except OperationTimeout:
                late = self._deadlines.late(HeadTimeout, seconds, self._conn)
                if not isinstance(late, HeadTimeout):
                    raise late from None
                return True
            told = any(head.status == 100 for head in self._interim)
            self._tell()
            if told:
                return self.head is None
        return False

    def _hear(self, timeout: float | None) -> None:
        """Take what comes next; sets ``head`` if it was in that."""
        conn = self._conn
        data = conn.hear(timeout)
        if data:
            self.is_heard = True
        conn.parser.feed_or_end(data)
        self._take()

    def _take(self) -> None:
        try:
            next_event = self._conn.parser.next_event
            while type(head := next_event()) is ResponseHead:
                self._understood = True
                if not head.is_interim:
                    self.head = head
                    return
                self._interim.append(head)
        finally:
            # The sender waits for this before its next piece, so it is told even if what came is bad.
            if self._heard is not None:
                self._heard.set()

    def _tell(self) -> None:
        interim, self._interim = self._interim, []
        if self._call.interim is not None:
            for head in interim:
                self._call.interim(head)

    # -- sending

    def _send_short(self, data: bytes) -> None:
        deadlines = self._deadlines
        seconds = deadlines.timeouts.send
        try:
            within = seconds if deadlines.total_due == inf else deadlines.within(seconds, SendTimeout, self._conn)
            self._conn.send_soon(data, within)
        except OperationTimeout:
            raise self._deadlines.late(SendTimeout, seconds, self._conn) from None
        self.is_sent = True
        self._sent_at = monotonic()

    def _run_long(self, first: bytes) -> ResponseHead:
        """Send the body, behind the head if that did not go out before, and listen meanwhile."""
        self._heard = Event()
        # Before anything is sent: a send that fails closes the connection, and what had come before the reset can only
        # be read through the second descriptor (test_an_early_answer_ends_the_request).
        self._conn.keep_spare()
        self._sender = gevent.spawn(self._send_all, first)
        try:
            head = self._wait_head()
        except BaseException as error:
            # Waited for: from here on the payload is the caller's again. A body that failed has reset the connection,
            # so that is what the caller is told (test_what_the_body_raises_comes_out_and_the_body_is_closed).
            self._sender.kill()
            if self.failure is not None and isinstance(error, ConnectionClosed):
                raise self.failure from None
            raise
        # The server does not want the rest. Sending ends here, and not only when the caller has read the answer
        # (test_a_refusal_ends_the_sending_before_its_own_end).
        if head.status >= 300:
            self._sender.kill()
        if self.is_sent:
            self._conn.drop_spare()
        return head

    def _send_all(self, first: bytes) -> None:
        """Send head and body, in a greenlet. What goes wrong is told the listener, whose wait ends."""
        self._begun = True
        try:
            self._send_pieces(first)
        except GreenletExit:
            pass
        except BaseException as error:
            # A server that went away may have answered before, and it is the listener who finds out. After any other
            # failure the server must not take the part for the whole
            # (test_a_body_that_is_not_as_long_as_it_says_is_cut_visibly), and the listener's wait must end.
            if not isinstance(error, ConnectionLost) or error.connection is not self._conn:
                self.failure = error
                self._conn.abort()
        finally:
            if self._closes:
                self._call.payload.close()

    def _send_pieces(self, first: bytes) -> None:
        payload, conn = self._call.payload, self._conn
        chunked = payload.length is None
        if first and not payload.is_replayable:
            # The head first: the next piece may be long in coming, and a server that hears nothing closes a kept one
            # (test_a_body_that_begins_late_on_a_kept_connection).
            self._push(conn.send, first)
            first = b""
        began = 0.0
        for piece in payload.pieces():
            if isinstance(piece, Segment):
                if first:
                    self._push(conn.send, first)
                self._push(self._send_segment, piece)
            else:
                buffers = write_chunk(piece) if chunked else [piece]
                self._push(conn.send, [first, *buffers] if first else buffers)
            first = b""
            began = let_others_run(began)
        if chunked:
            trailers = self._call.trailers
            last = write_last_chunk(trailers() if callable(trailers) else trailers)
            self._push(conn.send, first + last)
        self.is_sent = True
        self._sent_at = monotonic()

    def _send_segment(self, piece: Segment, timeout: float | None) -> None:
        if self._conn.send_file(piece.file, piece.offset, piece.size, timeout=timeout) < piece.size:
            raise ValueError(f"{piece.file!r} has shrunk while it was sent")

    def _push(self, send: Callable[..., object], data: Any) -> None:
        """Send a piece, after the listener has taken what is there: behind a refusal nothing more goes out."""
        conn, deadlines = self._conn, self._deadlines
        seconds = deadlines.timeouts.send
        # Pieces may be made without letting others run, so the hub has not seen what is there: the kernel is asked
        # (test_no_piece_goes_out_before_a_refusal_that_is_there_was_looked_at). Cleared right before the wait: nothing
        # can come in between.
        if self._heard is not None and self.head is None and not conn.is_quiet():
            self._heard.clear()
            self._heard.wait(deadlines.within(seconds, SendTimeout, conn))
        if self.head is not None and self.head.status >= 300:
            raise GreenletExit  # the listener would end this greenlet, but in the hub's next pass
        try:
            send(data, timeout=deadlines.within(seconds, SendTimeout, conn))
        except OperationTimeout:
            raise deadlines.late(SendTimeout, seconds, conn) from None
