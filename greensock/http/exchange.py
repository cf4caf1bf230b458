"""One request on a connection, and the head of its answer.

A short request goes out in one write, and only then the answer is looked for. While a long one goes out a greenlet
listens, because the answer may come first (RFC 9112 section 9.3: it is then usually a refusal): sending stops, be it in
the middle of a wait, and the answer is the result; the connection ends with it. The body's own code always runs in the
greenlet that made the request.

A server that refuses a body often closes at once, and its reset overtakes us: the next send fails although the answer
is there. So a second descriptor is kept while a long body goes out, through which what had come before the reset is
read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event

from greensock import ConnectionLost, GreensockError, OperationTimeout
from greensock.http.deadlines import Deadlines
from greensock.http.errors import BadResponse, HeadTimeout, Reason, SendTimeout
from greensock.http.events import ResponseHead
from greensock.http.headers import Headers
from greensock.http.links import ClientConnection
from greensock.http.payload import Payload, Segment
from greensock.http.writer import write_chunk, write_last_chunk, write_request_head

__all__ = ["Call", "Exchange", "Interim", "Trailers"]

#: Up to so many bytes a body goes out with its head, in one write and without listening meanwhile.
JOINED = 16384
#: After so many bytes others get their turn.
BREATH = 1 << 20
#: How much is read of an answer that came before a reset.
SALVAGED = 1 << 20

#: What may be told of answers 1xx.
Interim = Callable[[ResponseHead], object]
#: The fields behind a body in chunks, or what returns them once the body is out.
Trailers = Headers | Callable[[], Headers | None] | None

#: Methods that may be repeated (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
#: Methods of which a server expects a body, and so a Content-Length of 0 (RFC 9110 section 8.6).
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Call:
    """A request, ready to be written, maybe more than once."""

    __slots__ = ("closes", "expects", "head", "interim", "is_upgrade", "method", "payload", "trailers")

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
        #: What follows a body in chunks.
        self.trailers = trailers
        #: Who is told of answers 1xx.
        self.interim = interim

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be made again if nothing was heard of it (RFC 9110 section 9.2.2)."""
        return self.method in IDEMPOTENT and self.payload.is_replayable and not self.is_upgrade


class _Answered(BaseException):
    """Thrown into a send that waits when there is no more need of it. Never leaves this module."""


class Exchange:
    """Makes one call on a connection. It neither closes nor gives back."""

    __slots__ = (
        "_blocked",
        "_call",
        "_conn",
        "_deadlines",
        "_failure",
        "_heard",
        "_interim",
        "_main",
        "head",
        "is_heard",
        "is_sent",
    )

    def __init__(self, call: Call, conn: ClientConnection, deadlines: Deadlines) -> None:
        self._call = call
        self._conn = conn
        self._deadlines = deadlines
        self._interim: list[ResponseHead] = []
        self._failure: GreensockError | None = None
        self._blocked = False
        self._main: Any = None
        self._heard: Event | None = None
        #: The head of the final answer, once it is there.
        self.head: ResponseHead | None = None
        #: Whether the request went out whole.
        self.is_sent = False
        #: Whether anything came back.
        self.is_heard = False

    def may_repeat(self, error: BaseException) -> bool:
        """Whether the call may be made again: the server may have closed the connection before the request came."""
        if self.is_heard or not self._call.is_repeatable:
            return False
        if isinstance(error, BadResponse):
            return error.reason is Reason.NO_RESPONSE
        return isinstance(error, ConnectionLost)

    def run(self) -> ResponseHead:
        """Send the request and return the head of the final answer.

        Raises:
            PhaseTimeout: of sending, of the head, or of all.
            BadResponse, ConnectionLost: the server's fault.
        """
        call, conn = self._call, self._conn
        conn.requests += 1
        conn.parser.expect(call.method, upgrade=call.is_upgrade)
        payload = call.payload
        length = payload.length
        if length == 0:
            self._send_short(call.head)
        elif length is not None and len(payload.data) == length and length <= JOINED and not call.expects:
            self._send_short(call.head + payload.data)
        elif not call.expects:
            self._send_long(call.head)
        else:
            self._send_short(call.head)
            self.is_sent = False
            if self._may_continue():
                self._send_long(b"")
        return self.head or self._wait_head()

    # -- hearing

    def _wait_head(self) -> ResponseHead:
        seconds = self._deadlines.timeouts.head
        due = self._deadlines.due(seconds)
        while True:
            left = self._deadlines.left(due, HeadTimeout, seconds, self._conn)
            try:
                self._hear(left)
            except OperationTimeout:
                raise self._deadlines.late(HeadTimeout, seconds, self._conn) from None
            except BadResponse:
                self._tell()
                raise
            if self._interim:
                self._tell()
            if self.head is not None:
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
        data = conn.recv(timeout=timeout)
        if data:
            self.is_heard = True
            conn.parser.feed(data)
        else:
            conn.parser.feed_eof()
        self._take()

    def _take(self) -> None:
        next_event = self._conn.parser.next_event
        while type(head := next_event()) is ResponseHead:
            if not head.is_interim:
                self.head = head
                return
            self._interim.append(head)

    def _tell(self) -> None:
        interim, self._interim = self._interim, []
        if self._call.interim is not None:
            for head in interim:
                self._call.interim(head)

    # -- sending

    def _send_short(self, data: bytes) -> None:
        seconds = self._deadlines.timeouts.send
        left = self._deadlines.left(self._deadlines.due(seconds), SendTimeout, seconds, self._conn)
        try:
            self._conn.send(data, timeout=left)
        except OperationTimeout:
            raise self._deadlines.late(SendTimeout, seconds, self._conn) from None
        self.is_sent = True

    def _send_long(self, head: bytes) -> None:
        """Send the body, with the head before it if there is one, until it is out or the answer is there."""
        self._main = getcurrent()
        self._heard = Event()
        spare = os.dup(self._conn.fileno())
        listener = gevent.spawn(self._listen)
        try:
            try:
                self._send_pieces(head)
            except ConnectionLost as error:
                if error.connection is not self._conn:
                    raise  # the body's own
                self._failure = error
            if self.head is None and isinstance(self._failure, ConnectionLost):
                self._salvage(spare)
        finally:
            os.close(spare)
            listener.kill()
        self._tell()
        if self.head is None and self._failure is not None:
            raise self._failure

    def _send_pieces(self, head: bytes) -> None:
        payload, conn = self._call.payload, self._conn
        chunked = payload.length is None
        unbroken = 0
        for piece in payload.pieces():
            if isinstance(piece, Segment):
                if (head and not self._push(conn.send, head)) or not self._push(self._send_segment, piece):
                    return
                unbroken += piece.size
            else:
                buffers = write_chunk(piece) if chunked else [piece]
                if not self._push(conn.send, [head, *buffers] if head else buffers):
                    return
                unbroken += len(piece)
            head = b""
            if unbroken >= BREATH:
                unbroken = 0
                gevent.sleep(0)
            if self._interim:
                self._tell()
        if chunked:
            trailers = self._call.trailers
            last = write_last_chunk(trailers() if callable(trailers) else trailers)
            if not self._push(conn.send, head + last):
                return
        self.is_sent = True

    def _send_segment(self, piece: Segment, timeout: float | None) -> None:
        if self._conn.send_file(piece.file, piece.offset, piece.size, timeout=timeout) < piece.size:
            raise ValueError(f"{piece.file!r} has shrunk while it was sent")

    def _push(self, send: Callable[..., object], data: Any) -> bool:
        """Send a piece; False if there is no more need of it."""
        conn, deadlines = self._conn, self._deadlines
        seconds = deadlines.timeouts.send
        if not self._answered and not conn.is_quiet():
            self._let_listen(deadlines.left(deadlines.due(seconds), SendTimeout, seconds, conn))
        if self._answered:
            return False
        left = deadlines.left(deadlines.due(seconds), SendTimeout, seconds, conn)
        self._blocked = True
        try:
            send(data, timeout=left)
        except _Answered:
            return False
        except OperationTimeout:
            raise deadlines.late(SendTimeout, seconds, conn) from None
        finally:
            self._blocked = False
        return not self._answered

    @property
    def _answered(self) -> bool:
        return self.head is not None or self._failure is not None

    # -- listening while a long body goes out

    def _let_listen(self, timeout: float | None) -> None:
        """Have the listener take what is there."""
        heard = self._heard
        if heard is not None:
            heard.clear()
            heard.wait(timeout)

    def _listen(self) -> None:
        """Read until the final answer's head or a failure, and have sending stop then."""
        try:
            while self.head is None:
                self._hear(None)
                if self._heard is not None:
                    self._heard.set()
        except GreensockError as error:
            self._failure = error
            if self._heard is not None:
                self._heard.set()
        get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        """Stop a send that waits. In the hub: so who is in a send at all is in its wait."""
        if self._blocked:
            self._blocked = False
            self._main.throw(_Answered)

    def _salvage(self, spare: int) -> None:
        """Read what had come before the connection broke."""
        left = SALVAGED
        try:
            while left > 0 and (data := os.read(spare, min(left, 65536))):
                left -= len(data)
                self.is_heard = True
                self._conn.parser.feed(data)
                if self.head is None:
                    self._take()
        except OSError:
            pass  # that was all
        except BadResponse as error:
            self._failure = error

