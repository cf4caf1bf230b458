"""An answer to a client: its head, and a body that is read as it comes, decoded where that was asked for."""

from __future__ import annotations

import json
import warnings
from types import TracebackType
from typing import Any

from greensock import Connection, ConnectionClosed, LimitExceeded, OperationTimeout, let_others_run
from greensock.http.client.charset import charset_of
from greensock.http.client.connection_pool import ClientConnection, ClientLease
from greensock.http.client.content_coding import ContentDecoder, Undecodable
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.exchange import Exchange
from greensock.http.errors import BadResponse, BodyTimeout, Reason, StatusError
from greensock.http.incoming_body import MAX_IN_MEMORY, IncomingBody
from greensock.http.wire.events import Data, EndOfMessage, ResponseHead
from greensock.http.wire.response_parser import ResponseParser

__all__ = ["ClientResponse", "DecodedResponse"]

#: How many pieces of a body are taken before its head is given out.
MAX_AHEAD = 4
#: Seconds that a detached connection lingers when it is closed: as any other.
LINGER_SECONDS = 5.0
#: How long a body may be that ``content``, ``text`` and ``json`` read into memory, in bytes.
MAX_CONTENT = 1 << 24


class ClientResponse(IncomingBody):
    """An answer: its head, and a body that is read as it comes; never more than one piece of input is held.

    Read it to its end, or close it: until then it holds one of the connections to its origin. What came whole with its
    head holds none. Used with ``with``, it is closed at the end.

    Everything that reads may raise

    - ``BadResponse``: the body's framing is broken, or it ended early (the server's fault);
    - ``BodyTimeout``, ``TotalTimeout``: nothing came for too long, or all of it took too long;
    - ``ConnectionLost``: the connection broke.

    After these, and after whatever else is thrown into a wait, the connection is given up.
    """

    __slots__ = (
        "__weakref__",
        "_closes",
        "_conn",
        "_content",
        "_deadlines",
        "_exchange",
        "_lease",
        "head",
        "headers",
        "history",
        "is_reused",
        "status",
        "url",
    )

    parser: ResponseParser

    def __init__(
        self, lease: ClientLease, head: ResponseHead, exchange: Exchange, deadlines: Deadlines, closes: bool
    ) -> None:
        conn = lease.connection
        assert conn is not None
        self._lease: ClientLease | None = lease
        self._conn = conn
        self.parser = conn.parser
        self._exchange = exchange
        self._deadlines = deadlines
        self._closes = closes
        self.ended = False
        self.length = head.content_length
        self.rest = b""
        self.since = 0.0
        self.received = 0
        self.trailers = None
        #: All of the head: ``phrase``, ``version``, ``content_length``, ``is_switch`` and more.
        self.head = head
        #: 200 to 999, or 101.
        self.status = head.status
        #: The fields, :class:`Headers`.
        self.headers = head.headers
        #: Whether the connection had answered another request before.
        self.is_reused = lease.is_reused
        #: Where it came from, behind all redirections.
        self.url = ""
        #: The answers that led there, the first one first. Their bodies are gone.
        self.history: tuple[ClientResponse, ...] = ()
        self._content: bytes | None = None
        if not head.is_switch:
            self._look_ahead()

    @classmethod
    def _whole(cls, conn: ClientConnection, head: ResponseHead, body: bytes, is_reused: bool) -> ClientResponse:
        """Return an answer that has come whole, and holds no connection."""
        answer = cls.__new__(cls)
        answer._lease = None
        answer._conn = conn
        answer.ended = True
        answer.length = head.content_length
        answer.rest = body
        answer.received = len(body)
        answer.trailers = None
        answer.head = head
        answer.status = head.status
        answer.headers = head.headers
        answer.is_reused = is_reused
        answer.url = ""
        answer.history = ()
        answer._content = None
        return answer

    @property
    def is_success(self) -> bool:
        """Whether its status is 200 to 299."""
        return 200 <= self.status < 300

    def raise_for_status(self) -> ClientResponse:
        """Return it.

        Raises:
            StatusError: its status is 400 or above. The answer is in ``response``, and can still be read.
        """
        if self.status >= 400:
            raise StatusError(self)
        return self

    @property
    def content(self) -> bytes:
        """All of the body, of at most 16 MiB; it is read when this is first asked for, and kept.

        Raises:
            LimitExceeded: it is longer. ``read_all`` takes another bound.
            RuntimeError: some of it was read before.
        """
        if self._content is None:
            if self.was_read():
                raise RuntimeError("some of the body was read before: content, text and json() need all of it")
            self._content = self.read_all(MAX_CONTENT)
        return self._content

    @property
    def charset(self) -> str:
        """In what its text is written: by its byte order mark, Content-Type, what a page says of itself; or UTF-8."""
        return charset_of(self.headers.get("content-type"), self.content)

    @property
    def text(self) -> str:
        """Its ``content`` as text, by ``charset``; what is none becomes U+FFFD."""
        return self.content.decode(self.charset, "replace")

    def json(self) -> Any:
        """Return what its ``content`` says as JSON.

        Raises:
            BadResponse: it is no JSON (``reason`` is ``BODY_MALFORMED``).
        """
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise BadResponse(f"a body that is no JSON: {error}", Reason.BODY_MALFORMED, self._conn) from None

    def was_read(self) -> bool:
        """Whether some of the body was given out."""
        return self.received > len(self.rest)

    def too_long(self, max_bytes: int) -> LimitExceeded:
        self.close()
        return LimitExceeded(f"a body of more than max_bytes={max_bytes} bytes", self._conn, "max_bytes", max_bytes)

    def detach(self) -> Connection:
        """Give out the connection after a switch of protocols (``head.is_switch``); it is the caller's from then on.

        What came behind the head is read from it first. It no longer counts among the origin's connections.

        Raises:
            RuntimeError: no switch, or called before.
        """
        lease = self._lease
        if lease is None or not self.head.is_switch:
            raise RuntimeError("detach() is for an answer that switches protocols, once")
        self._lease = None
        self.ended = True
        conn = lease.detach()
        conn.linger_timeout = LINGER_SECONDS
        conn.unread(self.parser.take_rest())
        return conn

    def close(self) -> None:
        """Give up what was not read; the connection is reset then. Closing what was read to its end does nothing."""
        self.rest = b""
        self.ended = True
        lease, self._lease = self._lease, None
        if lease is not None:
            self._exchange.stop()
            lease.give_up()

    def __enter__(self) -> ClientResponse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lease", None) is not None:
            self.close()
            warnings.warn(f"{self!r} was neither read nor closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<ClientResponse {self.status} {self.headers!r}>"

    def _look_ahead(self) -> None:
        """Take the body if it came whole with its head, so that the connection is free at once."""
        if self.head.has_body and not self.parser.pending:
            return
        pieces: list[bytes | memoryview] = []
        try:
            while type(event := self.parser.next_event()) is Data:
                self.received += len(event.data)
                pieces.append(event.data)
                if len(pieces) == MAX_AHEAD:
                    return
                if not self.parser.pending and self.received != self.head.content_length:
                    return
            if type(event) is EndOfMessage:
                self.end_reached(event)
        except BadResponse:
            pass  # it will be raised again, behind what came before
        finally:
            if pieces:
                self.rest = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def feed_parser(self) -> None:
        deadlines, seconds = self._deadlines, self._deadlines.timeouts.body
        try:
            data = self._conn.hear(deadlines.within(seconds, BodyTimeout, self._conn))
        except OperationTimeout:
            raise deadlines.late(BodyTimeout, seconds, self._conn) from None
        self.parser.feed_or_end(data)

    def end_reached(self, end: EndOfMessage) -> None:
        self.ended = True
        self.trailers = end.trailers
        lease, self._lease = self._lease, None
        if lease is not None:
            self._exchange.stop()
            lease.end(self._exchange.is_sent and not self._closes and self.parser.is_reusable)

    def reading_failed(self, error: BaseException) -> None:
        self.close()
        if self._exchange.failure is not None and isinstance(error, ConnectionClosed):
            raise self._exchange.failure from None


class DecodedResponse(ClientResponse):
    """An answer whose body is read as it was before its content codings; ``headers`` are those that came.

    Besides what a :class:`ClientResponse` raises:

    - ``BadResponse``: the body is not what Content-Encoding says (``reason`` is ``CONTENT_CODING``);
    - ``LimitExceeded``: it grew to more than ``max_decoded``.
    """

    __slots__ = ("_decoder", "_given")

    _decoder: ContentDecoder
    _given: bool

    @classmethod
    def of(cls, answer: ClientResponse, decoder: ContentDecoder) -> DecodedResponse:
        """Take the place of an answer of which nothing was read."""
        decoded = cls.__new__(cls)
        for kind in (ClientResponse, IncomingBody):
            for name in kind.__slots__:
                if name != "__weakref__" and hasattr(answer, name):
                    setattr(decoded, name, getattr(answer, name))
        answer._lease = None
        decoded._decoder = decoder
        decoded._given = False
        decoded.length = None  # what it says is another's
        decoded.since = 0.0
        decoder.feed(bytes(decoded.rest))
        decoded.rest = b""
        return decoded

    @property
    def is_ended(self) -> bool:
        """Whether it was read to its end, or closed."""
        return self.ended and not self.rest and self._decoder.is_over

    def was_read(self) -> bool:
        return self._given

    def read_all(self, max_bytes: int = MAX_IN_MEMORY) -> bytes:
        """Return all of it, or all that is left.

        Raises:
            LimitExceeded: it is longer when it is decoded. No more than a piece of that was made; the answer is closed.
        """
        pieces, size = [], 0
        while piece := self.next_piece():
            size += len(piece)
            if size > max_bytes:
                raise self.too_long(max_bytes)
            pieces.append(bytes(piece))
        return b"".join(pieces)

    def next_piece(self) -> bytes | memoryview:
        """Return the next piece as it was decoded, waiting for it; empty at the end."""
        self._given = True
        if self.rest:
            piece, self.rest = self.rest, b""
            return piece
        decoder = self._decoder
        try:
            while not decoder.is_over:
                # A bomb never waits by itself.
                self.since = let_others_run(self.since)
                if made := decoder.read():
                    return made
                came = super().next_piece()
                if came:
                    decoder.feed(bytes(came))
                else:
                    decoder.finish()
        except Undecodable as error:
            self.close()
            said = self.headers.get("content-encoding")
            raise BadResponse(f"Content-Encoding: {said}: {error}", Reason.CONTENT_CODING, self._conn) from None
        except OverflowError as error:
            self.close()
            raise LimitExceeded(str(error), self._conn, "max_decoded", decoder.max_bytes or 0) from None
        except BaseException:
            self.close()
            raise
        return b""

    def close(self) -> None:
        super().close()
        self._decoder.is_over = True
