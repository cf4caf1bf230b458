"""The reverse proxy: an HTTP server whose answers come from other servers.

It is written on the seams of :class:`HTTPServer`, which reads, refuses and answers; what is behind the listeners is in
:class:`Gateway`. Override the upcalls below to decide for yourself; those that are not overridden cost nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, ClassVar

from greensock import Connection
from greensock.http.events import RequestHead
from greensock.http.headers import Headers
from greensock.http.proxy.gateway import Gateway
from greensock.http.proxy.record import Record
from greensock.http.proxy.relay import Relay
from greensock.http.proxy.servers import Upstream
from greensock.http.request import Request
from greensock.http.request_parser import RequestParser
from greensock.http.response import Response
from greensock.http.server import HTTPConnection, HTTPServer

__all__ = ["ProxyConnection", "ReverseProxy"]

log = logging.getLogger("greensock.upstream")


class ProxyConnection(HTTPConnection):
    """A client's connection."""

    __slots__ = ("parser_in_use", "peer")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: The address of who connected, or what its PROXY header said; empty for a Unix socket.
        self.peer: str = self.address[0] if self.address else ""
        #: What a request that asks for another protocol came through.
        self.parser_in_use: RequestParser | None = None


class ReverseProxy(HTTPServer):
    """A reverse proxy."""

    #: Whether a client that closes its sending half while a server works for it has left. (nginx thinks so, too.)
    abort_on_eof: bool = True

    connection_class: ClassVar[type[Connection]] = ProxyConnection

    def __init__(self, listener: Any, gateway: Gateway, **options: Any) -> None:
        super().__init__(listener, **options)
        #: What is behind.
        self.gateway = gateway
        #: How many requests failed, by reason (see ``failure``).
        self.failures: Counter[str] = Counter()
        #: How many times another server was asked for a request.
        self.retries = 0
        #: How many connections were switched to another protocol.
        self.tunnels = 0
        mine, base = type(self), ReverseProxy
        self.edits_requests = mine.edit_request is not base.edit_request
        self.edits_responses = mine.edit_response is not base.edit_response
        self.watches_responses = mine.watch_response_body is not base.watch_response_body
        self.wants_records = mine.request_recorded is not base.request_recorded

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
        """A request is over, and this is what is known of it."""

    # -- the seams of HTTPServer

    def _exchange(self, conn: HTTPConnection, parser: RequestParser, head: RequestHead) -> bool:
        if head.headers.get_raw(b"upgrade") is not None:
            assert isinstance(conn, ProxyConnection)
            conn.parser_in_use = parser
        return super()._exchange(conn, parser, head)

    def _respond(self, request: Request, keep: bool) -> bool:
        conn = request.connection
        return Relay(self, request, keep, conn.peer).run()  # type: ignore[attr-defined]

    def _record_done(self, relay: Relay, record: Record) -> None:
        try:
            self.request_recorded(record)
        except Exception:
            self._failed_program("request_recorded failed")
