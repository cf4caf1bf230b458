"""A request as the program sees it: the head, and a body that streams.

A body is read from the connection only when the program reads it. Its sender is held to two bounds: ``timeout`` seconds
without a byte, and a rate. The rate is kept as credit in seconds: waiting uses it up, bytes earn it, and it never
exceeds ``timeout``, so that a fast beginning does not pay for an endless end. Only waiting counts, not what the program
does between two reads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from time import monotonic
from typing import Any
from urllib.parse import unquote

from greensock import Connection, OperationTimeout
from greensock.http.errors import BadRequest, Reason
from greensock.http.incoming_body import IncomingBody
from greensock.http.server.cookies import parse_cookies
from greensock.http.server.forms import DEFAULT_FORM, Form, FormLimits, read_form
from greensock.http.server.query_fields import MAX_QUERY_FIELDS, QueryFields
from greensock.http.server.stream import ResponseStream
from greensock.http.websocket.handshake import offered_subprotocols
from greensock.http.websocket.websocket import WebSocket
from greensock.http.websocket.websocket_options import WebSocketOptions
from greensock.http.wire.events import RequestHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.request_parser import RequestParser
from greensock.http.wire.target import origin_form
from greensock.http.wire.writer import LAST_CHUNK, write_last_chunk, write_response_head

__all__ = ["NO_BODY", "ReadBody", "Request", "RequestBody"]

#: Seconds of waiting for a body that are not held against its sender's rate.
RATE_GRACE = 10.0

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody(IncomingBody):
    """The body of a request, read as it comes; never more than one piece of input is held.

    ``100 Continue`` goes out when the body is first read, if the client waits for it and has sent nothing of the body;
    never once the answer has begun. Everything that reads may raise

    - ``BadRequest``: the body's framing is broken, it ended early or it is longer than a limit (the client's fault);
    - ``OperationTimeout``: nothing came for ``timeout`` seconds, or less than ``min_rate`` bytes a second;
    - ``ConnectionLost``: the client went away.

    Left to itself, each of them becomes the right answer, and the connection is closed.
    """

    __slots__ = (
        "_broken",
        "_conn",
        "_credit",
        "_due",
        "_expects",
        "_min_rate",
        "_timeout",
        "most",
    )

    def __init__(
        self, conn: Connection, parser: RequestParser, head: RequestHead, timeout: float | None, min_rate: float
    ) -> None:
        self._conn = conn
        self.parser = parser
        self._timeout = timeout
        self._min_rate = min_rate
        self._credit = RATE_GRACE
        self.length = head.content_length
        self._expects = head.expects_continue
        self.ended = False
        self._broken = False
        self._due: float | None = None  # while it is dropped: when that must be over
        self.since = 0.0
        #: Bytes that are read from the connection at once, at the most; None: as many as it reads of itself.
        self.most: int | None = None
        self.rest = b""
        self.received = 0
        self.trailers = None

    @property
    def is_awaited(self) -> bool:
        """Whether the client still waits for 100 before it sends the body."""
        return self._expects and not self.received and not self.ended

    @property
    def is_broken(self) -> bool:
        """Whether its end can't be found any more, so that no request can follow."""
        return self._broken

    def discard(self, max_bytes: int, seconds: float) -> bool:
        """Read and drop what is left, within these bounds; True if that was all (RFC 9112 section 9.3)."""
        self.rest = b""
        if self.ended:
            return True
        self._due = monotonic() + seconds
        left = max_bytes
        try:
            while not self.ended:
                if left < 0:
                    return False
                left -= len(self.next_piece())
        except OperationTimeout:
            return False
        finally:
            self._due = None
        return True

    def invite(self) -> None:
        """Send 100 Continue, if the client waits for it and has sent nothing of the body."""
        awaited, self._expects = self.is_awaited, False
        if awaited and not self.parser.pending:  # nothing came, not even half a chunk's size
            self._conn.send(CONTINUE)

    def came(self, count: int, waited: float) -> None:
        """Hold the sender to its rate: so many bytes came while none were read, after so many seconds.

        Raises:
            OperationTimeout: it is too slow.
        """
        if self._min_rate:
            self._keep_rate(waited, count)

    def stop_awaiting(self) -> None:
        """Send no 100 from now on: the answer has begun."""
        self._expects = False

    # -- how the loop waits, and what becomes of it

    def too_long(self, max_bytes: int) -> BadRequest:
        return BadRequest(f"a body of more than {max_bytes} bytes", Reason.BODY_TOO_LARGE, self._conn)

    def feed_parser(self) -> None:
        if self._expects:
            self.invite()
        began = monotonic()
        data = self._conn.recv(self.most, timeout=self._timeout if self._due is None else max(0.0, self._due - began))
        self.parser.feed_or_end(data)
        if data and self._min_rate:
            self._keep_rate(monotonic() - began, len(data))

    def reading_failed(self, error: BaseException) -> None:
        if isinstance(error, BadRequest):
            self._broken = True
            error.connection = self._conn

    def _keep_rate(self, waited: float, came: int) -> None:
        credit = self._credit + came / self._min_rate - waited
        if credit < 0:
            text = f"the body comes at less than {self._min_rate} bytes a second"
            raise OperationTimeout(text, self._conn, "recv", waited)
        self._credit = min(credit, max(RATE_GRACE, self._timeout or 0.0))


class ReadBody(RequestBody):
    """A body that was read before, to its end; nothing in it ever changes. ``received`` are its bytes."""

    __slots__ = ()

    def __init__(self, received: int) -> None:
        self.ended = True
        self._expects = self._broken = False
        self.length = received
        self.rest = b""
        self._timeout = None
        self.received = received
        self.trailers = None


#: The body of a request that has none: one serves all.
NO_BODY = ReadBody(0)


class Request:
    """One request. ``body`` streams; ``trailers`` are there once it was read to its end.

    Attributes of your own can be set on it.
    """

    __slots__ = (
        "__dict__",
        "body",
        "connection",
        "head",
        "headers",
        "is_answered",
        "method",
        "shows_cut",
        "target",
        "version",
    )

    #: The stream that its answer goes to; None: the connection, as HTTP/1.1.
    stream: ResponseStream | None = None
    #: What it has left HTTP for: a WebSocket, or its connection.
    switched_to: Any = None
    #: Fields that go out behind the body of its answer: see ``add_trailers``.
    trailing: Headers | None = None
    #: What ``form`` read.
    form_read: Form | None = None

    def __init__(self, conn: Connection, head: RequestHead, body: RequestBody) -> None:
        #: As the parser gave it, :class:`RequestHead`.
        self.head = head
        #: ``GET``, ``POST``, ...; in the case it came in.
        self.method = head.method
        #: What was asked for, byte for byte as it came.
        self.target = head.target
        #: ``1.1`` or ``1.0``.
        self.version = head.version
        #: The fields, :class:`Headers`.
        self.headers = head.headers
        #: The body, :class:`RequestBody`; empty if there is none.
        self.body = body
        #: The connection it came on.
        self.connection = conn
        #: Whether bytes of the final answer may be out already.
        self.is_answered = False
        #: Whether the framing of its answer shows where that was cut off: Content-Length, or chunks without a last one.
        self.shows_cut = True

    @property
    def scheme(self) -> str:
        """``https`` if it came over TLS, else ``http``."""
        return "http" if self.connection.tls is None else "https"

    @property
    def is_secure(self) -> bool:
        """Whether it came over TLS."""
        return self.connection.tls is not None

    @property
    def raw_path(self) -> bytes:
        """The target's path, not decoded; ``*`` if OPTIONS asks about the whole server, empty for CONNECT."""
        target = self.target
        if not target.startswith((b"/", b"*")):
            if self.method == "CONNECT":
                return b""
            target = origin_form(self.method, target)
        return target.partition(b"?")[0]

    @property
    def path(self) -> str:
        """The target's path, percent-decoded as UTF-8; what is none becomes U+FFFD.

        ``..``, ``//`` and ``%2F`` are as the client sent them: not safe as the name of a file.
        """
        return unquote(self.raw_path.decode("latin-1"))

    @property
    def query(self) -> str:
        """What follows the ``?``, not decoded; empty if there is none."""
        return self.target.partition(b"?")[2].decode("latin-1")

    @property
    def query_fields(self) -> QueryFields:
        """The fields of the query, decoded: ``request.query_fields.get("page", "1")``. Made anew each time.

        Raises:
            BadRequest: more than 1,000 fields. Left to itself, it becomes 400.
        """
        try:
            return QueryFields(self.query)
        except ValueError:
            text = f"a query of more than {MAX_QUERY_FIELDS} fields"
            raise BadRequest(text, Reason.TARGET, self.connection) from None

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name, as the client sent them. Made anew each time."""
        return parse_cookies(self.headers.get("cookie"))

    @property
    def url(self) -> str:
        """The URL it was asked at, ``http://host/path?query``, as the client wrote it; that is not to be trusted."""
        target = self.target
        if not target.startswith(b"/"):
            target = b"" if target == b"*" else origin_form(self.method, target)
        return f"{self.scheme}://{self.host}{target.decode('latin-1')}"

    def json(self, max_bytes: int = 1 << 20) -> Any:
        """Read the body, of at most ``max_bytes``, and return what it says as JSON.

        Raises:
            BadRequest: it is no JSON, or longer. Left to itself, it becomes 400 or 413.
            OperationTimeout, ConnectionLost: see :class:`RequestBody`.
        """
        try:
            return json.loads(self.body.read_all(max_bytes))
        except (ValueError, RecursionError) as error:
            if isinstance(error, BadRequest):
                raise
            raise BadRequest(f"a body that is no JSON: {error}", Reason.BODY_MALFORMED, self.connection) from None

    def form(self, limits: FormLimits = DEFAULT_FORM) -> Form:
        """Read the body, and return the fields and the files that it has as a form; once more, the same.

        ``application/x-www-form-urlencoded`` and ``multipart/form-data``; the latter needs ``greensock[forms]``.

        Raises:
            HTTPError: 415, it is no form. Let it through.
            BadRequest: it is malformed, or crosses a limit. Left to itself, it becomes 400 or 413.
            OperationTimeout, ConnectionLost: see :class:`RequestBody`.
        """
        if self.form_read is None:
            said = self.headers.get("content-type", "") or ""
            self.form_read = read_form(self.body, said, limits, self.connection)
        return self.form_read

    @property
    def host(self) -> str:
        """The authority it is for, ``name[:port]``: the target's, or Host's; empty in HTTP/1.0 without."""
        return self.head.authority.decode("latin-1")

    @property
    def client_address(self) -> Any:
        """The peer's socket address: ``(host, port)``."""
        return self.connection.address

    @property
    def trailers(self) -> Headers | None:
        """The fields after a chunked body, once it was read; None if there were none."""
        return self.body.trailers

    def send_interim(
        self, status: int, headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = ()
    ) -> bool:
        """Send an interim answer, such as 103 (Early Hints), before the final one; any number of them.

        False if nothing was sent: a client that speaks 1.0 knows none (RFC 9110 section 15.2).

        Raises:
            ValueError: not 100 or 102 to 199 (101 would leave HTTP).
            RuntimeError: the final answer has begun.
        """
        if not 100 <= status <= 199 or status == 101:
            raise ValueError(f"status={status!r}: 100 or 102 to 199 expected")
        if self.is_answered:
            raise RuntimeError(f"an interim answer, {status}, after the final one")
        if self.version == "1.0":
            return False
        fields = Headers(headers.items() if isinstance(headers, Mapping) else headers)
        if status == 100:
            self.body.stop_awaiting()
        self.connection.send(write_response_head(status, fields))
        return True

    def add_trailers(self, headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]) -> bool:
        """Have fields go out behind the body of the answer, if that goes out in chunks: in pieces, without a length.

        They may be added until the last piece was given. Those that are there before the head goes out are announced
        in its field Trailer. False if they would not arrive, as the client did not say that it takes them by
        ``TE: trailers`` (RFC 9110 section 6.5.1): then nothing is sent.

        Raises:
            ValueError: a field that cannot be a trailer, as it is of the framing.
        """
        fields = Headers(headers.items() if isinstance(headers, Mapping) else headers)
        write_last_chunk(fields)  # looks at the names
        if self.version == "1.0" or self.stream is not None or b"trailers" not in self.headers.tokens(b"te"):
            return False
        if self.trailing is None:
            self.trailing = fields
        else:
            for name, value in fields.raw:
                self.trailing.add(name, value)
        return True

    def announced_trailers(self) -> bytes:
        """Return the line of a head that announces what will go out behind the body; empty if nothing is known of."""
        if not self.trailing:
            return b""
        names = dict.fromkeys(name for name, _ in self.trailing.raw)
        return b"Trailer: %b\r\n" % b", ".join(names)

    def last_chunk(self) -> bytes:
        """Return what ends a body in chunks."""
        return LAST_CHUNK if self.trailing is None else write_last_chunk(self.trailing)

    @property
    def offered_subprotocols(self) -> list[str]:
        """The subprotocols that a client offers for its WebSocket, the one it likes best first."""
        return offered_subprotocols(self.headers)

    def upgrade_websocket(
        self,
        subprotocols: Collection[str] = (),
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = (),
        options: WebSocketOptions | None = None,
    ) -> WebSocket:
        """Answer with 101 and return the WebSocket, for the blocking style.

        It is closed when ``handle_request`` returns.

        Of the client's subprotocols the first one that is in ``subprotocols`` is chosen. ``headers`` are fields of the
        answer. ``options`` take the place of the server's ``websocket_options``.

        Raises:
            HTTPError: 426 or 400, the request asks for no WebSocket, or not as it should; 403, its Origin is not
                allowed; 503, the server drains. Let it through.
            RuntimeError: it was answered before.
        """
        made: WebSocket = self.connection.server.upgrade_websocket(self, subprotocols, headers, options)
        return made

    def detach(
        self,
        protocol: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = (),
    ) -> Connection:
        """Leave HTTP: answer with 101 and return the connection, which is closed when ``handle_request`` returns.

        ``protocol`` is the one that Upgrade gets, by default the first that the client offers. ``headers`` are fields
        of the answer. What came behind the request is received first. CONNECT, where it is not refused, is answered
        with 200. A server that drains ends the input.

        Raises:
            HTTPError: 426, the client does not offer it. Let it through.
            RuntimeError: the request was answered before, or its body was not read.
        """
        conn: Connection = self.connection.server.detach(self, protocol, headers)
        return conn

    def wait_disconnect(self, timeout: float | None = None) -> None:
        """Block until the client has left. For answers that take long.

        Raises:
            OperationTimeout: ``timeout`` seconds passed first.
        """
        self.connection.wait_disconnect(timeout)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target!r} from {self.client_address!r}>"
