"""The HTTP/1.1 client: blocking calls over kept connections, each way a stream.

A call takes a connection from the pool of its origin or makes one, sends the request, and returns the answer as soon as
its head is there. The body is read by the caller, piece by piece as it comes; with its last byte the connection goes
back. Invariants:

- A connection is used again only if request and answer both ended exactly and neither side said ``close``
  (RFC 9112 section 9.3). Bytes behind an answer belong to no request: the connection is closed.
- A call is repeated at the most once: if a connection that had been used before dies without a byte of an answer, or
  gives what does not begin like one, the method is idempotent, and the body can be sent again; then on a fresh one.
- Whatever is raised in a call or in reading its answer, the connection is reset and its slot is free again.

No redirects are followed, no cookies kept. A client belongs to the thread it is first used in.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from greensock import (
    TLS,
    Connection,
    ConnectionClosed,
    LimitExceeded,
    OperationTimeout,
    PoolStatistics,
    Rule,
    Server,
    __version__,
)
from greensock.http.client.connection_pool import ClientConnection, ClientLease, ClientPool
from greensock.http.client.deadlines import Deadlines, Timeouts
from greensock.http.client.exchange import Call, Exchange, Interim, Trailers
from greensock.http.client.origin import Origin, origin_at, parse_url
from greensock.http.client.payload import NOTHING, Body, let_go, payload_of
from greensock.http.errors import BadResponse, BodyTimeout
from greensock.http.incoming_body import IncomingBody
from greensock.http.wire.events import Data, EndOfMessage, ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import Limits
from greensock.http.wire.response_parser import ResponseParser, plain_answer

if TYPE_CHECKING:
    import ssl

__all__ = ["ClientResponse", "HTTPClient"]

#: How many pieces of a body are taken before its head is given out.
MAX_AHEAD = 4
#: How many calls are kept written, of those that are nothing but a method and a URL.
MAX_WRITTEN = 256
#: Seconds that a detached connection lingers when it is closed: as any other.
LINGER_SECONDS = 5.0

_Fields = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


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
        "_deadlines",
        "_exchange",
        "_lease",
        "head",
        "headers",
        "is_reused",
        "status",
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
        return answer

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


def _is_tls(value: object) -> bool:
    return value is not None and Server.option_rules["tls"].fits(value)


class HTTPClient:
    """Makes requests over kept connections, for one user.

    Some servers authenticate the connection and not each request (NTLM, Negotiate: RFC 4559 section 6): all who share a
    client share that identity. Use one client for each user where that is not wanted.

    Every option is a class attribute and a keyword. ``close()`` it, or use it with ``with``.

    Raises:
        ValueError: an option is not allowed; the text says which, its value, and what is allowed.
        TypeError: no such option.
    """

    #: Connections to one origin, used and idle. Further requests wait, first come first served.
    max_connections: int = 64
    #: Idle connections to one origin.
    max_idle: int = 64
    #: Idle connections to all origins.
    max_idle_total: int = 256
    #: Requests that may wait for a connection to one origin.
    max_waiting: int = 1024
    #: Seconds after which an idle connection is closed. None: never.
    idle_timeout: float | None = 30.0
    #: Seconds after which a connection is used for no further request: the name may lead elsewhere by then. None: any.
    max_age: float | None = 3600.0
    #: Requests that are made on one connection. None: any number.
    max_requests: int | None = 1000
    #: Seconds that the phases of a request may take.
    timeouts: Timeouts = Timeouts()
    #: How large the parts of an answer may be.
    limits: Limits = Limits()
    #: How TLS is spoken for ``https://``: ``TLS(authorities=...)``, or any ``ssl.SSLContext`` of a client. True: what
    #: the system trusts is trusted, and the certificate must be for the name in the URL.
    tls: TLS | ssl.SSLContext | bool = True
    #: What User-Agent says, if the request has none. None: no such field.
    user_agent: str | None = f"greensock/{__version__}"

    option_rules: ClassVar[Mapping[str, Rule]] = {
        "max_connections": Rule.whole(1),
        "max_idle": Rule.whole(0),
        "max_idle_total": Rule.whole(0),
        "max_waiting": Rule.whole(0),
        "idle_timeout": Rule.seconds(zero=False).or_none(),
        "max_age": Rule.seconds(zero=False).or_none(),
        "max_requests": Rule.whole(1).or_none(),
        "timeouts": Rule.instance(Timeouts, "Timeouts"),
        "limits": Rule.instance(Limits, "Limits"),
        "tls": Rule(lambda value: value is True or _is_tls(value), "True, TLS(), or an ssl.SSLContext"),
        "user_agent": Rule.instance(str, "a string").or_none(),
    }

    def __init__(self, **options: Any) -> None:
        self._take_options(options)
        agent = Headers([("User-Agent", self.user_agent)] if self.user_agent else [])
        self._agent = agent.raw
        self._pool = ClientPool(
            self.limits,
            tls=self.tls,
            max_connections=self.max_connections,
            max_idle=self.max_idle,
            max_idle_total=self.max_idle_total,
            max_waiting=self.max_waiting,
            idle_timeout=self.idle_timeout,
            max_age=self.max_age,
            max_requests=self.max_requests,
        )
        self._unbounded = Deadlines(self.timeouts, None)
        self._written: dict[tuple[str, str], tuple[Origin, Call]] = {}

    def begin_with(self, preface: bytes) -> None:
        """Have each new connection of https begin with that, in front of TLS: a header of the PROXY protocol, say."""
        self._pool.preface = preface

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Headers | _Fields = (),
        body: Body = None,
        trailers: Trailers = None,
        target: bytes | None = None,
        address: Any = None,
        expect_continue: bool = False,
        on_interim: Interim | None = None,
        timeouts: Timeouts | None = None,
        timeout: float | None = None,
    ) -> ClientResponse:
        """Make a request and return the answer, of which the head is there.

        ``url`` is ``http://host[:port]/path?query``, ``https://`` likewise, or ``http+unix://`` with the
        percent-encoded path of a socket for a host. ``target``, if given, is asked for instead of its path and query,
        byte for byte; ``address``, as ``greensock.connect`` takes it, is where to connect instead.

        ``headers`` may have a Host to be sent instead of the URL's. Content-Length, Transfer-Encoding and Connection
        are the client's to write; of these only a Content-Length for an iterable, and ``close``, are looked at.
        ``Upgrade`` asks for another protocol.

        ``body`` is bytes; ``str``, sent as UTF-8; a binary file, sent by sendfile from its position to its end (which
        neither moves nor closes it); a :class:`FileBody`, which is closed; or an iterable of bytes, sent as it comes:
        with a Content-Length if the fields have one, else in chunks, with the ``trailers`` behind it (fields, or what
        returns them). An iterable with a ``close`` method is closed whatever happens. Whatever is not bytes, and more
        than 16 KiB, is sent by a greenlet of its own. If the answer comes before the body is out, sending stops if the
        status is 300 or above, else with the end of the answer. With ``expect_continue`` the body waits for 100, for
        ``timeouts.expect`` seconds at the most.

        ``on_interim`` is called with each head 1xx. ``timeouts`` takes the place of the client's, ``timeout`` (seconds)
        that of its ``total``.

        Raises:
            PhaseTimeout: one of its kinds; the phase and the seconds are in it.
            QueueFull: too many wait for a connection.
            ConnectFailed: no server listens there, or it could not be reached. HandshakeFailed and CertificateRefused,
                which say why no TLS was agreed on, are of this kind.
            ConnectionLost: the server reset the connection.
            BadResponse: the server broke the protocol, or closed without an answer.
            ConnectionClosed: the client is closed.
            ValueError, TypeError: what was asked for cannot be sent.
        """
        deadlines = self._unbounded
        if (
            timeouts is not None
            or timeout is not None
            or deadlines.timeouts is not self.timeouts
            or deadlines.total is not None
        ):
            deadlines = self._deadlines(timeouts, timeout, body)
        if body is None and headers == () and trailers is None and target is None and address is None:
            if not expect_continue and on_interim is None and type(url) is str:
                origin, call = self._written.get((method, url)) or self._write(method, url)
                return self.perform(call, self._pool.lease_for(origin, deadlines), deadlines)
        try:
            destination = parse_url(url)
            if type(headers) is not Headers:
                headers = Headers(headers.items() if isinstance(headers, Mapping) else headers)
            payload = payload_of(body, headers)
        except BaseException:
            let_go(body)
            raise
        try:
            fields = self._fields(headers, destination.authority, expect_continue)
            call = Call(method, destination.target if target is None else target, fields, payload, trailers, on_interim)
            origin = destination.origin if address is None else origin_at(address, destination.origin)
            lease = self._pool.lease_for(origin, deadlines)
            return self.perform(call, lease, deadlines)
        except BaseException:
            payload.close()
            raise

    def _deadlines(self, timeouts: Timeouts | None, timeout: float | None, body: Body) -> Deadlines:
        try:
            return Deadlines(self.timeouts if timeouts is None else timeouts, timeout)
        except BaseException:
            let_go(body)
            raise

    def _write(self, method: str, url: str) -> tuple[Origin, Call]:
        """Write the call of a method and a URL alone, and keep it for the next time."""
        destination = parse_url(url)
        fields = self._fields(Headers(), destination.authority, False)
        written = destination.origin, Call(method, destination.target, fields, NOTHING, None, None)
        if len(self._written) >= MAX_WRITTEN:
            self._written.clear()
        self._written[method, url] = written
        return written

    def get(self, url: str, **options: Any) -> ClientResponse:
        """Make a GET request; see :meth:`request`."""
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Any) -> ClientResponse:
        """Make a HEAD request; see :meth:`request`."""
        return self.request("HEAD", url, **options)

    def post(self, url: str, body: Body = None, **options: Any) -> ClientResponse:
        """Make a POST request; see :meth:`request`."""
        return self.request("POST", url, body=body, **options)

    def put(self, url: str, body: Body = None, **options: Any) -> ClientResponse:
        """Make a PUT request; see :meth:`request`."""
        return self.request("PUT", url, body=body, **options)

    def delete(self, url: str, **options: Any) -> ClientResponse:
        """Make a DELETE request; see :meth:`request`."""
        return self.request("DELETE", url, **options)

    def statistics(self, url: str | None = None, *, address: Any = None) -> PoolStatistics:
        """Return how many connections are used and idle, and how many requests wait: to one origin, or to all."""
        origin = origin_at(address) if address is not None else parse_url(url).origin if url is not None else None
        return self._pool.state.statistics(origin)

    def close_idle(self) -> None:
        """Close the connections that are not in use."""
        for conn in self._pool.state.drop_idle():
            conn.close()

    def close(self) -> None:
        """Close: idle connections now, others with the end of their answers; who waits gets ``ConnectionClosed``."""
        self._pool.close()

    def __enter__(self) -> HTTPClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_options(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.option_rules:
                raise TypeError(f"unknown option {name!r}: {', '.join(self.option_rules)} exist")
        for name, rule in self.option_rules.items():
            rule.check(name, given[name] if name in given else getattr(self, name))
        vars(self).update(given)

    def _fields(self, headers: Headers, authority: bytes, expect_continue: bool) -> Headers:
        """Return the fields given, and those that have to be there."""
        pairs = headers.raw
        if headers.get_raw(b"host") is None:
            pairs = [(b"Host", authority), *pairs]
        if self._agent and headers.get_raw(b"user-agent") is None:
            pairs = pairs + self._agent
        if expect_continue and headers.get_raw(b"expect") is None:
            pairs = [*pairs, (b"Expect", b"100-continue")]
        return Headers.of_raw(pairs)

    def perform(self, call: Call, lease: ClientLease, deadlines: Deadlines) -> ClientResponse:
        """Make the call, again if that is allowed, and return the answer, which holds the lease."""
        try:
            conn = lease.connection
            assert conn is not None
            sent_at: float | None = None
            heard: bytes | Exception | None = None
            if call.short and deadlines.total_due == inf:
                # The ordinary call in one go: what came is looked at as a whole first, and parsed only if it is more
                # than that. What was raised is the exchange's to judge.
                conn.requests += 1
                try:
                    conn.send_soon(call.short, deadlines.timeouts.send)
                    sent_at = monotonic()
                    heard = conn.recv(None, deadlines.timeouts.head)
                    if (found := plain_answer(heard, call.method, self.limits)) is not None:
                        answer = ClientResponse._whole(conn, *found, lease.is_reused)
                        lease.end(not call.closes)
                        call.payload.close()
                        return answer
                except Exception as error:
                    heard = error
            exchange = Exchange(call, conn, deadlines)
            try:
                head = exchange.run() if heard is None else exchange.go_on(sent_at, heard)
            except Exception as error:
                if not lease.is_reused or not exchange.may_repeat(error):
                    raise
                exchange = Exchange(call, lease.renew(deadlines), deadlines)
                head = exchange.run()
            answer = ClientResponse(lease, head, exchange, deadlines, call.closes)
            if not exchange.hand_over():
                call.payload.close()
        except BaseException:
            lease.give_up()
            raise
        return answer
