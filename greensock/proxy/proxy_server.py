"""The reverse proxy: an HTTP server whose answers come from other servers.

It is written on the seams of :class:`HTTPServer`, which reads, refuses and answers; what is behind the listeners is in
:class:`Gateway`. Override the upcalls below to decide for yourself; those that are not overridden cost nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, ClassVar

import gevent

from greensock import (
    DROP,
    POSTPONE,
    TLS,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    OperationTimeout,
    Rule,
    State,
    Verdict,
)
from greensock.http.errors import BadRequest
from greensock.http.server.deadline_watch import DeadlineWatch
from greensock.http.server.filters import BodyFilter
from greensock.http.server.http_server import HTTP_OPTIONS, HTTPConnection, HTTPServer, HTTPServerSettings
from greensock.http.server.request import Request
from greensock.http.server.response import HTTPError, Response
from greensock.http.server.response_writer import CLOSE
from greensock.http.wire.events import RequestHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.request_parser import RequestParser
from greensock.proxy.failure import Failure, client_is_gone
from greensock.proxy.gateway import Gateway
from greensock.proxy.guard import Guard
from greensock.proxy.log.record import MAX_DESCRIBED, Record
from greensock.proxy.ordinary_exchange import OrdinaryExchange
from greensock.proxy.proxy_connection import ProxyConnection
from greensock.proxy.proxy_protocol import BadProxyHeader, ProxyHeader, parse_proxy_header
from greensock.proxy.relay import Relay
from greensock.proxy.request_relay import RequestRelay
from greensock.proxy.routes import Route
from greensock.proxy.rules import Redirect
from greensock.proxy.upstream.servers import Upstream

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ReverseProxy", "ReverseProxyKeywords"]

log = logging.getLogger("greensock.upstream")

#: Seconds between two warnings of connections that were refused for the same reason.
WARN_EVERY = 60.0
#: How many pieces of a body are held one by one: more are joined, as each costs 40 bytes besides its own.
MAX_PIECES = 16


#: What a program may override that the ordinary exchange does without: then all goes by the classes.
SEAMS = (
    *("choose_upstream", "edit_request", "edit_response", "watch_request_body", "watch_response_body", "filter_for"),
    *("serve_request", "take_requests", "take_awaited_body", "refusal_of", "send_answer", "end_exchange", "date_line"),
)


#: Where those who issue certificates look for the proof that a host is ours (RFC 8555 section 8.3): without TLS.
ACME = b"/.well-known/acme-challenge/"


class Upload:
    """A short body, and what came of it so far."""

    __slots__ = ("count", "held", "missing", "overdue", "parser", "pieces", "relay", "since")

    def __init__(self, relay: RequestRelay, parser: RequestParser, missing: int) -> None:
        #: Whose it is.
        self.relay = relay
        #: What it will go through.
        self.parser = parser
        #: Bytes that were not there when the wait began.
        self.missing = missing
        #: What came of them, and how much that is.
        self.pieces: list[bytes] = []
        self.count = 0
        #: How much is held in all, with what the parser had when the wait began.
        self.held = parser.pending
        #: When the last of it came.
        self.since = monotonic()
        #: What ends the wait when all of the request took too long; None if it may take any time.
        self.overdue: gevent.Greenlet[..., None] | None = None

    def note_received(self) -> None:
        """Note in the request how much of its body came: it will not be read."""
        self.relay.request.body.received = self.held


class ReverseProxyKeywords(HTTPServerSettings, total=False):
    """The options of a reverse proxy, and its upcalls as functions that get the arguments without the proxy."""

    proxy_protocol: bool
    abort_on_eof: bool
    hsts: str | None
    redirect_to_https: int | None
    choose_upstream: Callable[[Relay], Upstream | Response | None]
    edit_request: Callable[[Relay, Headers], object]
    edit_response: Callable[[Relay, int, Headers], object]
    watch_request_body: Callable[[Relay, bytes], object]
    watch_response_body: Callable[[Relay, bytes], object]
    filter_for: Callable[[Request, Response], BodyFilter | None]
    request_recorded: Callable[[Record], object]


class ReverseProxy(HTTPServer[ProxyConnection]):
    """A reverse proxy. Subclass it and override upcalls, or give functions for them.

    A short body that comes slowly is waited for without a worker; longer ones are passed on as they come, and may hold
    three workers of four at the most, so that others get theirs.
    """

    #: Whether connections begin with a PROXY header, version 1 or 2. Only trusted peers may connect then
    #: (``Forwarding.trusted``).
    proxy_protocol: bool = False
    #: What Strict-Transport-Security says in answers over TLS, such as ``"max-age=31536000"`` (RFC 6797); None: no such
    #: field.
    hsts: str | None = None
    #: The port of https to which requests are redirected, but for those of ``/.well-known/acme-challenge/``; None: they
    #: are served.
    redirect_to_https: int | None = None
    #: Whether a client that closes its sending half while a server works for it has left. (nginx thinks so, too.)
    abort_on_eof: bool = True

    connection_class: type[ProxyConnection] = ProxyConnection
    option_rules: ClassVar[Mapping[str, Rule]] = {
        **HTTP_OPTIONS,
        "proxy_protocol": Rule.flag(),
        "abort_on_eof": Rule.flag(),
        "hsts": Rule.instance(str, "text such as 'max-age=31536000'").or_none(),
        "redirect_to_https": Rule(lambda value: type(value) is int and 0 < value < 65536, "a port").or_none(),
        "choose_upstream": Rule.function(),
        "edit_request": Rule.function(),
        "edit_response": Rule.function(),
        "watch_request_body": Rule.function(),
        "watch_response_body": Rule.function(),
        "filter_for": Rule.function(),
        "request_recorded": Rule.function(),
    }

    def __init__(self, listener: Any, gateway: Gateway, **options: Unpack[ReverseProxyKeywords]) -> None:
        given: dict[str, Any] = {**gateway.server_options(), **options}
        super().__init__(listener, **given)
        #: What is behind.
        self.gateway = gateway
        #: How many requests failed, by reason (see ``failure``).
        self.failures: Counter[str] = Counter()
        #: How many times another server was asked for a request.
        self.retries = 0
        #: How many connections were switched to another protocol.
        self.tunnels = 0
        #: Bodies that workers wait for, or pass on, and how many these may be.
        self.uploads = 0
        self.most_uploads = inf if self.max_workers is None else max(1, self.max_workers * 3 // 4)
        self._bodies = DeadlineWatch(self._refuse_late_body)
        self._warnings_due: dict[str, float] = {}
        self.edits_requests = self.edits_responses = self.watches_responses = False
        self.wants_records = self.tells_records = False  # records at all; and all that is known in each of them
        if self.hsts is not None and self.tls is None:
            raise ValueError(f"hsts={self.hsts!r}: tls expected beside it")
        self._chooser: Any = None  # the program's ``choose_upstream``, where something is looked at before
        self._https: Route | None = None  # what leads there
        if self.redirect_to_https is not None:
            port = "" if self.redirect_to_https == 443 else f":{self.redirect_to_https}"
            self._https = Route(Redirect(f"https://{{host}}{port}{{target}}", 308), name="https")
        self._own_recv: Any = None  # in the place of ``connection_recv``, if the program has none

    def look_at_upcalls(self) -> None:
        """Look which upcalls the program has, and whether it needs the classes for every request."""
        super().look_at_upcalls()
        base, gateway = ReverseProxy, self.gateway
        several = isinstance(self.tls, TLS) and len(self.tls.certificates) > 1
        if (several or self._https is not None) and self._chooser is None:
            self._chooser = self.choose_upstream
            self.choose_upstream = self._choose_by_scheme  # type: ignore[method-assign]
        if self._own_recv is not None and self.__dict__.get("connection_recv") == self._own_recv:
            del self.__dict__["connection_recv"]  # of an earlier start
        self._own_recv = None
        self.tells_records = gateway.log is not None or self.overrides_upcall("request_recorded", base)
        self.wants_records = self.tells_records or gateway.watch is not None
        if gateway.watch is not None:
            self.record_done = self._watch_record  # type: ignore[method-assign]
        plain_start = not self.proxy_protocol or self.tls is not None  # the header of TLS's is taken before
        if plain_start and not self.overrides_upcall("connection_recv", base):
            self._own_recv = super().connection_recv  # one call less
            if (
                self.hsts is None
                and gateway.forwarder.is_simple
                and not any(self.overrides_upcall(name, base) for name in SEAMS)
            ):
                self._own_recv = OrdinaryExchange(self, super().connection_recv).serve
            self.connection_recv = self._own_recv  # type: ignore[method-assign]
        if self.hsts is not None:
            self.written_head = self._head_with_hsts  # type: ignore[method-assign]
        self.edits_requests = self.overrides_upcall("edit_request", base)
        self.edits_responses = self.hsts is not None or self.overrides_upcall("edit_response", base)
        self.watches_responses = self.overrides_upcall("watch_response_body", base)

    # -- what to override

    def choose_upstream(self, relay: Relay) -> Upstream | Response | None:
        """Return who answers a request: an upstream, or an answer of your own. None: 404.

        By default what the routes say: an upstream of ``self.gateway.upstreams``, or the route's own answer.
        """
        head = relay.request.head
        route = self.gateway.routes.find(head.method, head.authority, head.target, head.headers)
        return relay.follow(route) if route is not None else None

    def edit_request(self, relay: Relay, headers: Headers) -> None:
        """Change the fields that go to ``relay.server``. Called for each server that is asked."""

    def edit_response(self, relay: Relay, status: int, headers: Headers) -> None:
        """Change the fields of an answer that go to the client."""

    def watch_request_body(self, relay: Relay, piece: bytes) -> None:
        """See a piece of a request's body go by. Raise :class:`HTTPError` to refuse it."""

    def watch_response_body(self, relay: Relay, piece: bytes) -> None:
        """See a piece of an answer's body go by. To override it is to give up that long bodies stay in the kernel."""

    def request_recorded(self, record: Record) -> None:
        """A request is over, and this is what is known of it. It must not block: the hub may call it."""

    # -- starting, stopping

    def start(self) -> None:
        """Accept connections, and check the servers if that is asked for."""
        super().start()
        self.gateway.enter(self)

    def abort(self) -> None:
        """Stop now; with the last listener the checks stop, and idle connections to servers are closed."""
        try:
            super().abort()
        finally:
            self._bodies.stop()
            self.gateway.leave(self)

    # -- how many

    def accept_permits(self) -> float:
        return min(super().accept_permits(), self.gateway.room())

    def connection_ended(self) -> None:
        super().connection_ended()
        self.gateway.connection_ended()

    # -- the seams of HTTPServer

    def connection_new(self, conn: ProxyConnection) -> Verdict | None:
        """Refuse a client that has too many connections, or opens them too fast."""
        guard = self.gateway.guard
        if self.tls is not None:
            conn.scheme = "https"
            if guard is not None:
                self._admit(conn, guard)
        elif self.proxy_protocol:
            if conn.peer not in self.gateway.forwarder.trusted:
                self._warn("proxy-untrusted", conn, "it may not connect: its PROXY header is not trusted")
                return DROP
            conn.awaits_header = True
            self.head_watch.begin(conn, self.head_timeout)
        elif guard is not None:
            self._admit(conn, guard)
        return None

    def connection_recv(self, conn: ProxyConnection, data: bytes) -> Verdict | None:  # type: ignore[override]
        """Take the PROXY header off, if there is to be one; then serve."""
        if conn.awaits_header:
            return self._take_header(conn, data)
        super().connection_recv(conn, data)
        return None

    def _take_header(self, conn: ProxyConnection, data: bytes) -> Verdict | None:
        """Note what the PROXY header says, and serve what follows it."""
        try:
            found = parse_proxy_header(data)
        except BadProxyHeader as error:
            self._warn("proxy-header", conn, error)
            return DROP
        if found is None:
            return POSTPONE
        header, length = found
        conn.awaits_header = False
        self.head_watch.pop(conn, None)
        _note_header(conn, header)
        if self.gateway.guard is not None:
            self._admit(conn, self.gateway.guard)
        if length < len(data) and conn.state is State.OPEN:
            super().connection_recv(conn, data[length:])
        return None

    def take_preface(self, conn: ProxyConnection, data: bytes) -> int | None:
        """Take the PROXY header off that stands in front of a TLS handshake; None: it is not whole."""
        if not self.proxy_protocol:
            return 0
        if conn.peer not in self.gateway.forwarder.trusted and not conn.awaits_header:
            self._warn("proxy-untrusted", conn, "it may not connect: its PROXY header is not trusted")
            raise ValueError("its PROXY header is not trusted")
        try:
            found = parse_proxy_header(data)
        except BadProxyHeader as error:
            self._warn("proxy-header", conn, error)
            raise ValueError(f"no PROXY header: {error}") from None
        if found is None:
            return None
        _note_header(conn, found[0])
        return found[1]

    def _choose_by_scheme(self, relay: Relay) -> Upstream | Response | None:
        """Send to https who came without it, and away who asks for a name of another certificate."""
        head = relay.request.head
        if self._https is not None and not head.target.startswith(ACME):
            if not head.authority:
                return relay.error_answer(400, "no-host")
            return relay.follow(self._https)
        tls = relay.conn.tls
        if tls is not None and isinstance(self.tls, TLS):
            name = head.authority.decode("latin-1").rpartition("@")[2].partition(":")[0].lower()
            if name and not self.tls.has_name(name, tls.server_name):
                self.failures["misdirected"] += 1
                return relay.error_answer(421, "misdirected")  # RFC 9110 section 15.5.20
        chosen: Upstream | Response | None = self._chooser(relay)
        return chosen

    # -- short bodies that come slowly

    def park(self, relay: RequestRelay, missing: int) -> bool:
        """Wait without a worker for the rest of a short body; False if too much is held already."""
        gateway, conn = self.gateway, relay.conn
        parser = conn.parser_in_use
        assert parser is not None
        most, buffered = gateway.listen.max_buffered, gateway.buffered
        if buffered >= most or buffered + parser.pending > most:
            return False
        relay.request.body.invite()
        conn.upload = Upload(relay, parser, missing)
        gateway.buffered += conn.upload.held
        due = relay.deadlines.total_due
        if due != inf:  # not in ``_bodies``, where all wait equally long
            conn.upload.overdue = gevent.spawn_later(max(0.0, due - monotonic()), self._refuse_overdue, conn)
        conn.head_parser = parser  # so that what comes is not taken for a request
        self._bodies.begin(conn, self.body_timeout)
        return True

    def take_awaited_body(self, conn: HTTPConnection, data: bytes) -> bool:
        assert isinstance(conn, ProxyConnection)
        upload, gateway = conn.upload, self.gateway
        if upload is None:
            return False
        now, failed = monotonic(), None
        if len(upload.pieces) == MAX_PIECES:
            upload.pieces = [b"".join(upload.pieces)]
        upload.pieces.append(data)
        upload.count += len(data)
        upload.held += len(data)
        gateway.buffered += len(data)
        try:
            upload.relay.request.body.came(len(data), now - upload.since)
        except OperationTimeout as error:
            failed = error
        upload.since = now
        is_whole = upload.count >= upload.missing
        may_hold = is_whole or gateway.buffered <= gateway.listen.max_buffered
        if failed is None and not is_whole and may_hold:
            conn.head_parser = upload.parser
            self._bodies.pop(conn, None)  # its time begins anew, behind that of all others
            self._bodies.begin(conn, self.body_timeout)
        else:
            self._go_on_with(conn, failed, may_hold)
        return True

    def _go_on_with(self, conn: ProxyConnection, failed: Exception | None = None, may_hold: bool = True) -> None:
        """Answer the request whose body was waited for, and then those behind it."""
        upload = self._end_wait(conn)
        if failed is not None:
            upload.note_received()
        parser = conn.parser_in_use = upload.parser
        parser.feed(b"".join(upload.pieces))
        try:
            goes_on = upload.relay.go_on(failed, may_hold)
        finally:
            conn.parser_in_use = None
        if goes_on and parser.pending and conn.state is State.OPEN:
            self.take_requests(conn, parser)

    def _end_wait(self, conn: ProxyConnection) -> Upload:
        upload: Upload = conn.upload
        conn.upload = conn.head_parser = None
        self.gateway.buffered -= upload.held
        if upload.overdue is not None:
            upload.overdue.kill(block=False)
        self._bodies.pop(conn, None)
        return upload

    def _refuse_late_body(self, conn: Connection) -> None:
        assert isinstance(conn, ProxyConnection)
        if conn.upload is None:
            return
        if conn.state is State.OPEN:
            late = HTTPError(408, f"nothing of a body came for {self.body_timeout} s")
            self._abandon(conn, 408, "client-timeout", partial(super().refuse_request, conn, late, "body-timeout"))
        else:
            self._lose_upload(conn)

    def _refuse_overdue(self, conn: ProxyConnection) -> None:
        upload = conn.upload
        assert upload is not None
        upload.overdue = None  # which runs this
        if conn.state is State.OPEN:
            self.failures["total-timeout"] += 1
            self._abandon(conn, 504, "total-timeout", partial(self._tell_overdue, upload.relay))
        else:
            self._lose_upload(conn)

    def _tell_overdue(self, relay: Relay) -> None:
        """Answer that all of a request took too long, without blocking, and close: its body is not there."""
        answer = relay.error_answer(504, "total-timeout", error=Failure("total-timeout", 504).error)
        assert isinstance(answer.body, bytes)
        with suppress(ConnectionClosed, ConnectionLost):  # the client has left: no answer can reach it
            relay.conn.send(self.written_head(answer, len(answer.body), False, CLOSE) + answer.body, close=True)

    def _abandon(
        self, conn: ProxyConnection, status: int, reason: str, answer: Callable[[], object] | None = None
    ) -> None:
        """End a request whose body is waited for no longer; ``answer`` tells the client so."""
        upload = self._end_wait(conn)
        upload.note_received()
        upload.relay.abandon(status, reason, answer)

    def _lose_upload(self, conn: ProxyConnection) -> None:
        """End a request whose client is gone before its body was there."""
        gone = client_is_gone(conn)
        self.failures[gone.reason] += 1
        self._abandon(conn, gone.status, gone.reason)

    def connection_eof(self, conn: ProxyConnection) -> None:
        """Answer what was half received; the client may have closed its sending half only."""
        if conn.upload is not None:
            self._go_on_with(conn)
        else:
            super().connection_eof(conn)

    def _warn(self, reason: str, conn: ProxyConnection, what: object) -> None:
        """Count a connection that is refused, and log it: once a minute, as any client can cause that."""
        self.refused[reason] += 1
        now = monotonic()
        if now >= self._warnings_due.get(reason, 0.0):
            self._warnings_due[reason] = now + WARN_EVERY
            log.warning("%s: %s", conn.peer or "a Unix socket", what)

    def connection_drop(self, conn: ProxyConnection) -> None:
        """Count a connection out."""
        super().connection_drop(conn)
        if conn.is_counted and self.gateway.guard is not None:
            self.gateway.guard.closed(conn.peer)
        if conn.bound is not None:
            conn.drop_bound()
        if conn.upload is not None:
            self._lose_upload(conn)

    def _admit(self, conn: ProxyConnection, guard: Guard) -> None:
        """Count a client's connection, or answer that it may have no more."""
        if self._is_trusted(conn):
            return
        refused = guard.connection(conn.peer, monotonic())
        if refused is None:
            conn.is_counted = True
            return
        headers = [] if refused.retry_after is None else [("Retry-After", str(refused.retry_after))]
        self.refuse_request(conn, HTTPError(refused.status, headers=headers), refused.reason)

    def ends_of(self, relay: Relay) -> tuple[Any, Any]:
        """Return the addresses of the client and of where it connected to, for the PROXY protocol; None: no such."""
        conn = relay.conn
        assert isinstance(conn, ProxyConnection)
        if conn.ends is not None:
            return conn.ends
        if not relay.client or not isinstance(conn.local_address, tuple):
            return None, None
        port = conn.address[1] if relay.client == conn.peer else 0
        return (relay.client, port), conn.local_address[:2]

    def refuse_request(self, conn: Connection, refusal: BadRequest | HTTPError, reason: str) -> None:
        before = conn.bytes_sent
        super().refuse_request(conn, refusal, reason)
        self._record_refusal(conn, refusal, reason, conn.bytes_sent - before)

    def refusal_of(self, conn: Connection, head: RequestHead) -> Response | None:
        answer = super().refusal_of(conn, head)
        if answer is not None:
            assert isinstance(conn, ProxyConnection)
            gateway, headers = self.gateway, head.headers
            client = gateway.forwarder.client_of(conn.peer, headers) if gateway.trusts_somebody else conn.peer
            if gateway.guard is not None:
                gateway.guard.answered(client, monotonic(), answer.status)
            if self.wants_records:
                conn.refusal = record = Record(time(), client, conn.peer, head.method, head.target, head.version)
                record.status, record.reason = answer.status, "method" if answer.status == 405 else "expectation"
                record.host = head.authority
                record.referer, record.agent = headers.get_raw(b"referer"), headers.get_raw(b"user-agent")
        return answer

    def _head_with_hsts(
        self, response: Response, length: int | None, chunked: bool, option: bytes, plain: bool = False
    ) -> bytes:
        """Stand in for ``written_head`` where answers say that this host is to be asked by https."""
        assert self.hsts is not None
        response.headers.set(b"Strict-Transport-Security", self.hsts)
        return super().written_head(response, length, chunked, option, plain)

    def send_answer(self, request: Request, response: Response, keep: bool) -> bool:
        before = request.connection.bytes_sent
        try:
            return super().send_answer(request, response, keep)
        finally:
            conn = request.connection
            assert isinstance(conn, ProxyConnection)
            if conn.refusal is not None:
                record, conn.refusal = conn.refusal, None
                record.sent = conn.bytes_sent - before
                self.record_done(record)

    def request_refused(self, conn: Connection, refusal: BadRequest | HTTPError) -> Response:
        """Return the answer to a request that is refused: with the page for its status, if there is one."""
        answer = super().request_refused(conn, refusal)
        page = self.gateway.error_pages.find(answer.status)
        if page is not None:
            answer.body = page.body
            answer.headers.set(b"Content-Type", page.content_type)
        return answer

    def _record_refusal(self, conn: Connection, refusal: BadRequest | HTTPError, reason: str, sent: int) -> None:
        """Have what never became a request counted by the guard and the log."""
        assert isinstance(conn, ProxyConnection)
        status = refusal.response.status if isinstance(refusal, HTTPError) else refusal.status or 400
        guard = self.gateway.guard
        if guard is not None and not self._is_trusted(conn):
            guard.answered(conn.peer, monotonic(), status)
        if self.wants_records:
            record = Record(time(), conn.peer, conn.peer, "", b"", "1.1")
            record.status, record.reason, record.sent = status, reason, sent
            if conn.head_parser is not None:
                record.describe(conn.head_parser.head_start(MAX_DESCRIBED))
            self.record_done(record)

    def _is_trusted(self, conn: ProxyConnection) -> bool:
        """Whether a connection is a trusted peer's: it carries many clients, so no limit of one client is for it."""
        return self.gateway.trusts_somebody and conn.peer in self.gateway.forwarder.trusted

    def serve_request(self, request: Request, keep: bool) -> bool:
        conn = request.connection
        return RequestRelay(self, request, keep, conn.peer, conn.scheme).run()  # type: ignore[attr-defined]

    def record_done(self, record: Record) -> None:
        """Log a request that is over, and tell the program."""
        if self.gateway.log is not None:
            self.gateway.log.write(record)
        try:
            self.request_recorded(record)
        except Exception:
            self.log_program_failure("request_recorded failed")

    def _watch_record(self, record: Record) -> None:
        """Stand in for ``record_done`` where operators may ask."""
        assert self.gateway.watch is not None
        self.gateway.watch.note_record(record)
        ReverseProxy.record_done(self, record)


def _note_header(conn: ProxyConnection, header: ProxyHeader) -> None:
    """Note what a PROXY header says."""
    if not header.is_local and header.source is not None:
        conn.peer = header.source[0] if isinstance(header.source, tuple) else ""
        conn.ends = header.source, header.destination
        if header.is_tls:
            conn.scheme = "https"
