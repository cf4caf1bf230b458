"""What is known of one request on its way through the proxy, and what it holds: a server, a connection, a record.

The way itself is in ``request_relay``; what goes to the server is written in ``upstream_request``, and what comes back
is passed on in ``response_relay``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from math import inf
from time import monotonic, time
from typing import Any, Protocol

from greensock import Waiter
from greensock.http.client.connection_pool import ClientLease
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.exchange import Exchange
from greensock.http.errors import BadRequest, Reason
from greensock.http.server.request import Request
from greensock.http.server.response import Response
from greensock.http.wire.events import ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.plain_heads import CREDENTIALS
from greensock.http.wire.syntax import is_of_connection
from greensock.http.wire.writer import LAST_CHUNK
from greensock.proxy.error_lines import tell_failed
from greensock.proxy.failure import (
    LONG_WAIT,
    Failure,
    UpcallFailed,
    client_is_gone,
    failure_of,
    has_left,
)
from greensock.proxy.forwarded import new_id
from greensock.proxy.gateway import Gateway
from greensock.proxy.log.record import Record
from greensock.proxy.prefixes import Pair, Places
from greensock.proxy.proxy_connection import ProxyConnection
from greensock.proxy.routes import Route
from greensock.proxy.rules import TLS_VARIABLES, VARIABLES, Redirect, StaticAnswer, tls_variables, variables_of
from greensock.proxy.upstream.servers import Upstream, UpstreamServer

__all__ = ["CHALLENGES", "COUNTED", "NO_UPLOAD", "PARKED", "STREAMED", "BodyWait", "ProxySeam", "Relay"]

# How the body is waited for: not at all, counted only, without a worker (parked), or by one that relays it; an enum's
# members are slow to look up before Python 3.12.
NO_UPLOAD, COUNTED, PARKED, STREAMED = range(4)
#: The statuses and fields of a challenge, by a server or by a proxy.
CHALLENGES = (401, 407)
CHALLENGE_FIELDS = (b"www-authenticate", b"proxy-authenticate")


class BodyWait:
    """How long a server had to wait for a request's body, all in all."""

    __slots__ = ("_since", "_total")

    def __init__(self) -> None:
        self._total = 0.0
        self._since = monotonic()

    def end(self) -> None:
        """Note that there is something for the server."""
        self._total += monotonic() - self._since
        self._since = inf

    def go_on(self) -> None:
        """Note that it waits for more."""
        self._since = monotonic()

    @property
    def seconds(self) -> float:
        """How long that was so far."""
        return self._total + max(0.0, monotonic() - self._since)


class ProxySeam(Protocol):
    """What a relay needs of its proxy: its upcalls, which of them there are, its counters, and how it answers."""

    gateway: Gateway
    abort_on_eof: bool
    edits_requests: bool
    edits_responses: bool
    hsts: str | None
    watches_responses: bool
    wants_records: bool
    tells_records: bool
    failures: Counter[str]
    refused: Counter[str]
    answers_by_status: defaultdict[int, int]
    retries: int
    tunnels: int
    uploads: int
    most_uploads: float

    @property
    def draining(self) -> bool: ...
    @property
    def on_filter(self) -> Callable[[Request, Response], object] | None: ...
    @property
    def allowed_methods(self) -> str: ...

    def asks_on(self, conn: Any, /) -> bool: ...

    def choose_upstream(self, relay: Any, /) -> Upstream | Response | None: ...
    def edit_request(self, relay: Any, headers: Headers, /) -> None: ...
    def edit_response(self, relay: Any, status: int, headers: Headers, /) -> None: ...
    def watch_request_body(self, relay: Any, piece: bytes, /) -> None: ...
    def watch_response_body(self, relay: Any, piece: bytes, /) -> None: ...
    def ends_of(self, relay: Any) -> tuple[Any, Any]: ...
    def park(self, relay: Any, missing: int) -> bool: ...
    def send_answer(self, request: Request, response: Response, keep: bool) -> bool: ...
    def can_discard_body(self, request: Request) -> bool: ...
    def end_exchange(self, request: Request, keep: bool) -> bool: ...
    def cut_off_answer(self, request: Request, error: BaseException) -> None: ...
    def date_line(self) -> bytes: ...
    def error_response(self, request: Request, error: BaseException) -> Response: ...
    def record_done(self, record: Record) -> None: ...


class Relay:
    """One request on its way. The upcalls of a proxy are given it."""

    __slots__ = (
        "_asked",
        "_client_left",
        "_heard",
        "_is_tied",
        "_lease",
        "_left",
        "_noted",
        "_request_id",
        "_started",
        "_upload",
        "_wanted",
        "_was_bound",
        "admitted",
        "answer_trailers",
        "asked_for",
        "body_wait",
        "client",
        "conn",
        "cut",
        "deadlines",
        "exchange",
        "head",
        "keep",
        "peer",
        "proxy",
        "record",
        "request",
        "route",
        "scheme",
        "server",
        "spell",
        "status",
        "tries",
        "upstream",
        "waiter",
    )

    def __init__(self, proxy: ProxySeam, request: Request, keep: bool, peer: str, scheme: str = "http") -> None:
        #: The proxy it goes through.
        self.proxy = proxy
        #: What the client asks for.
        self.request = request
        #: The client's connection.
        self.conn: ProxyConnection = request.connection  # type: ignore[assignment]  # the proxy makes no other
        #: The address of the client, as far as it can be trusted; empty for a Unix socket.
        self.client = peer
        #: What the client speaks: ``http``, or what a trusted peer says.
        self.scheme = scheme
        #: The route it takes; None: none was found, or asked for.
        self.route: Route | None = None
        #: The group of servers it goes to.
        self.upstream: Upstream | None = None
        #: The server that was asked last.
        self.server: UpstreamServer | None = None
        #: The spell of its health that it was asked in; set with it.
        self.spell: int
        #: The head of the answer, once it is there.
        self.head: ResponseHead | None = None
        #: What the access log will say; None if there is no log.
        self.record: Record | None = None
        #: The fields behind the answer's body, if that came whole with its head.
        self.answer_trailers: Headers | None = None
        #: Why the client's body will not become whole, if that was seen while it was not being read.
        self.cut: BadRequest | None = None
        #: What it got to show for it that it may pass; None: nobody was asked.
        self.admitted: Any = None  # an ``Admitted``: see there
        #: The target that servers are asked for, but for the path of their URL, if that was written anew.
        self.asked_for: bytes | None = None
        #: What was answered; 0: nothing so far.
        self.status = 0
        #: How many servers were asked.
        self.tries = 0
        #: Whether the client's connection may go on.
        self.keep = keep
        #: How long its phases may take.
        self.deadlines: Deadlines
        #: The exchange with the server.
        self.exchange: Exchange | None = None
        #: How long a server waited for the body, if that is passed on as it comes.
        self.body_wait: BodyWait | None = None
        #: The address of who connected, or what its PROXY header said.
        self.peer = peer
        #: The wait for a connection to the server, while that has none free.
        self.waiter: Waiter | None = None
        self._request_id = ""  # made when something asks for it
        self._lease: ClientLease | None = None
        self._left = True  # the server
        self._client_left = False
        self._heard: tuple[float | None, bytes | BaseException] = (None, b"")  # of a server, before it took over
        self._is_tied = False  # to its connections, by its credentials
        self._was_bound = False  # the connection to the server, when the request came
        self._wanted: UpstreamServer | None = None  # the server that the sticky cookie names
        self._started = 0.0
        self._asked = 0.0  # when the server was chosen
        self._noted = 0  # how many of the servers that were asked the record names
        self._upload = NO_UPLOAD

    # -- what it asks for, and who asks

    def look_at_credentials(self, headers: Headers) -> None:
        """Note whether these fields may authenticate the connection to the server, and not only the request."""
        if any(is_of_connection(headers.get_raw(name) or b"") for name in CREDENTIALS):
            self._is_tied = True

    @property
    def passes_trailers(self) -> bool:
        """Whether the client wants to have what follows a body in chunks (RFC 9110 section 10.1.4)."""
        head = self.request.head
        return head.version == "1.1" and b"trailers" in head.headers.tokens(b"te")

    @property
    def sets_cookie(self) -> bool:
        """Whether the answer gets a cookie that leads back to the server."""
        return self.upstream is not None and self.upstream.sticky is not None

    def add_cookie(self, headers: Headers) -> None:
        """Have the client come back to the server that answered, if it is to and did not say so itself."""
        if self.upstream is None or self.upstream.sticky is None or self.server is None or self.server.is_gone:
            return
        if self._wanted is not self.server:
            headers.add(b"Set-Cookie", self.upstream.cookie_of(self.server, time()))
            if not _is_private(headers):  # a shared cache would lead all its clients to one server
                headers.add(b"Cache-Control", b"private")

    @property
    def puts_right(self) -> bool:
        """Whether what the answer says of the server's own places is put right."""
        route, server = self.route, self.server
        if route is None or route.rewrite_answers is None:
            return (route is not None and route.puts_right) or (server is not None and server.base != b"")
        return route.rewrite_answers

    def put_right(self, pairs: list[Pair]) -> list[Pair]:
        """Return the fields of an answer with what they say of the server's own places put right."""
        server = self.server
        assert server is not None
        here = self.route.prefix if self.route is not None else b""
        own = {server.authority, self.proxy.gateway.forwarder.named_host or server.authority}
        return Places(server.base, here).put_right(pairs, own, self.request.head.authority)

    def has_client_left(self) -> bool:
        """Whether the client left while the server worked."""
        return self._client_left

    def client_rest(self) -> bytes:
        """Return what the client sent behind its request: bytes of another protocol."""
        parser = getattr(self.conn, "parser_in_use", None)
        return parser.take_rest() if parser is not None else b""

    def follow(self, route: Route) -> Upstream | Response:
        """Take a route: return its upstream, or what it answers itself."""
        self.route = route
        action = route.action
        if type(action) is str:
            return self.proxy.gateway.upstreams[action]
        if isinstance(action, Redirect):
            location = action.location_for(self.variables(action.variables))
            return Response(b"", action.status, [(b"Location", location)])
        assert isinstance(action, StaticAnswer)
        return Response(action.content, action.status, action.fields())

    @property
    def request_id(self) -> str:
        """The request's id: what a trusted peer said in X-Request-Id, or 32 hexadecimal digits of our own.

        The same whenever it is asked for; made by the first who asks.
        """
        if not self._request_id:
            self._request_id = self.proxy.gateway.forwarder.request_id_of(self.peer, self.request.headers) or new_id()
        return self._request_id

    def variables(self, wanted: Collection[str] = VARIABLES) -> dict[str, str]:
        """Return what the variables in edits and redirects stand for; an id is made only if it is ``wanted``."""
        head = self.request.head
        request_id = self.request_id if "request_id" in wanted else ""
        found = variables_of(
            head.method, head.authority, head.target, scheme=self.scheme, client=self.client, request_id=request_id
        )
        if not TLS_VARIABLES.isdisjoint(wanted):
            found.update(tls_variables(self.conn.tls))
        if self.route is not None and self.route.matcher is not None:
            found.update(self.route.groups_of(head.target))
        return found

    # -- to the server

    def end_upload(self) -> None:
        """Note that the body is no longer waited for."""
        if self._upload is not NO_UPLOAD:
            self._end_upload()

    def _end_upload(self) -> None:
        proxy, upload = self.proxy, self._upload
        self._upload = NO_UPLOAD
        if upload is STREAMED:
            proxy.uploads -= 1
        if proxy.gateway.is_guarded:
            for guard in proxy.gateway.guards_for(self.route):
                guard.upload_ended(self.client)

    # -- when it does not go well

    def on_client_left(self) -> None:
        """The client left while the server works. In the hub."""
        self._client_left = True
        self._abort_server()

    def _abort_server(self) -> None:
        if self.waiter is not None:
            self.waiter.give_up()
        if self._lease is not None and self._lease.connection is not None:
            self._lease.connection.abort()

    def on_hangup_in_body(self) -> None:
        """The client closed its side, or broke off, while a piece of its body waits for the server. In the hub.

        A client that has said all, and waits, may close its side; one of whose body the rest is not there, may not.
        """
        body, there = self.request.body, self.conn.count_unread()
        if there is None:
            self.on_client_left()
            return
        there += self.conn.parser_in_use.pending if self.conn.parser_in_use is not None else 0
        length = self.request.head.content_length
        left = len(LAST_CHUNK) if length is None else length - body.received
        if not body.is_ended and there < left:
            self.cut = BadRequest("the input ended inside a body", Reason.INCOMPLETE, self.conn)
            self._abort_server()

    def _failure_of(self, error: Exception) -> Failure:
        """Return what an error of an attempt means; raise it again if it is not the server's."""
        if self._client_left:
            return client_is_gone(self.conn)
        if self.cut is not None:
            raise self.cut
        if isinstance(error, Failure):
            return error
        if isinstance(error, UpcallFailed):
            raise error
        if getattr(error, "connection", None) is self.conn:
            raise error  # the client's: its body is bad, late or broken off
        failure = failure_of(error)
        if failure is None:
            raise error  # the program's
        if failure.reason == "total-timeout" and self.exchange is not None:
            # If it had the request for most of the time: else a client with a slow body could have it ejected.
            failure.blames_server = self.exchange.waited >= (self.deadlines.total or 0.0) / 2
        if failure.blames_server and has_left(error) and self.was_body_awaited():
            failure.blames_server = False
        return failure

    def was_body_awaited(self) -> bool:
        """Whether the server waited long for the client's body, and longer than it had the request since."""
        wait, exchange = self.body_wait, self.exchange
        return wait is not None and exchange is not None and wait.seconds >= max(LONG_WAIT, exchange.waited)

    def error_answer(self, status: int, reason: str, retry_after: int | None = None, error: str = "") -> Response:
        """Return the page for an error; ``error`` is what Proxy-Status calls it, if that is sent."""
        body, content_type = self.proxy.gateway.error_pages.page(status, reason)
        answer = Response(body, status, content_type=content_type)
        if retry_after is not None:
            answer.headers.add(b"Retry-After", b"%d" % retry_after)
        if error and (told := self.proxy.gateway.forwarder.proxy_status(error)) is not None:
            answer.headers.add(b"Proxy-Status", told)
        return answer

    def blame_server(self, error: Exception, is_sure: bool = True) -> Failure:
        """Return the failure that an error of the server's is, which is counted against it if that ``is_sure``."""
        failure = self._failure_of(error)
        failure.blames_server = failure.blames_server and is_sure
        assert self.server is not None
        self.server.failed(failure, self.spell)
        tell_failed(self, failure)
        return failure

    # -- leaving

    def finish(self) -> None:
        """Let go of a server whose answer is whole: the connection to it is free for the next request."""
        exchange, server, lease = self.exchange, self.server, self._lease
        assert exchange is not None
        assert server is not None
        if exchange.is_sending:
            exchange.stop_and_wait()
        self.conn.notify_disconnect(None)
        self._lease = None
        if lease is not None:
            reusable = exchange.is_sent and exchange.connection.parser.is_reusable
            if reusable and (self._is_tied or self._was_bound or self.status in CHALLENGES) and self._must_bind():
                exchange.connection.has_challenged = self.status in CHALLENGES
                self.conn.bind(server, lease, self.client)
            else:
                lease.end(reusable and not server.send_proxy_protocol)
        server.succeeded(self.spell)
        self._left = True
        server.leave()
        if self.record is not None:
            self.record.upstream_time = monotonic() - self._asked

    def _must_bind(self) -> bool:
        """Whether the connection to the server may remember the client."""
        if self._is_tied or self._was_bound:
            return True
        assert self.head is not None
        headers = self.head.headers
        return any(is_of_connection(value) for name in CHALLENGE_FIELDS for value in headers.all_raw(name))

    def take_lease(self) -> ClientLease:
        """Take the connection to the server out, for a tunnel."""
        self.conn.notify_disconnect(None)
        lease, self._lease = self._lease, None
        assert lease is not None
        return lease

    def _leave(self) -> None:
        """Let go of a server, whatever state it is in."""
        self.conn.notify_disconnect(None)
        lease, self._lease = self._lease, None
        if lease is not None and self.exchange is None and self._is_unused(lease):
            assert self.server is not None
            if self._was_bound:
                self.conn.bind(self.server, lease, self.client)
            else:
                lease.end(True)
        elif lease is not None:
            lease.give_up()
            if self.exchange is not None:
                self.exchange.stop_and_wait()
        self.left()

    def _is_unused(self, lease: ClientLease) -> bool:
        """Whether nothing was sent on a connection, and it stands: the client left before, or the program refused."""
        assert self.server is not None
        return lease.is_quiet() and (lease.is_reused or not self.server.send_proxy_protocol)

    def _leave_unjudged(self) -> None:
        """Let go of a server without a verdict on it, if it was not left before."""
        if not self._left:
            self._leave()
            assert self.server is not None
            self.server.abandoned(self.spell)

    def left(self) -> None:
        """Count the request out of its server."""
        if not self._left:
            self._left = True
            assert self.server is not None
            self.server.leave()

    # -- the record

    def note_head(self, status: int) -> None:
        """Note what the server answered, and when."""
        self.status = status
        if self.record is not None:
            self.record.head_time = monotonic() - self._asked
            self._note_attempt(str(status))

    def note_end(self) -> None:
        """Note when the server's answer was whole."""
        if self.record is not None:
            self.record.upstream_time = monotonic() - self._asked

    def _note_attempt(self, status: str) -> None:
        record, server = self.record, self.server
        if record is None or server is None:
            return
        record.upstream += f", {server.name}" if record.upstream else server.name
        record.upstream_status += f", {status}" if record.upstream_status else status
        self._noted = self.tries


def _is_private(headers: Headers) -> bool:
    """Whether no shared cache may keep an answer (RFC 9111 section 5.2.2); with names of fields it may."""
    return not {b"private", b"no-store"}.isdisjoint(headers.tokens(b"cache-control"))
