"""The ordinary exchange, in one function: most requests are of this kind, and objects and calls are what they cost.

A request is *ordinary* if all of it came in one piece and nothing else with it; its head is plain (see
``plain_heads``), and so is each field; its route edits nothing and has no limit for all of a request; and its server is
to be told, and tells, nothing but the request and its answer. An answer is ordinary under the same conditions.

Whether a request is, is decided before anything is counted or sent: any other is left to the classes, which are the
reference (``HTTPServer``, ``RequestRelay``, ``response_relay``). Where an ordinary request meets what is not - no
connection is kept, the server is silent or says something else, somebody leaves - the classes *take over* at that
point, with what was chosen, sent and heard so far. Nothing is done twice, and every check, limit, deadline and counter
of theirs is here, too, or does not concern what is ordinary. A test feeds both the same and compares all that can be
seen (test_proxy_ordinary).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import Any, Protocol

from greensock.http.client.connection_pool import ClientConnection, ClientLease
from greensock.http.client.exchange import WITH_BODY
from greensock.http.client.payload import NOTHING, payload_in_memory
from greensock.http.server.request import NO_BODY, ReadBody, Request
from greensock.http.server.response_writer import CLOSE as CLOSE_OPTION
from greensock.http.server.response_writer import JOINED
from greensock.http.wire.events import RequestHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import Limits
from greensock.http.wire.ordinary_heads import read_answer, read_request
from greensock.http.wire.plain_heads import lex_plain_fields
from greensock.proxy.forwarded import new_id
from greensock.proxy.log.record import Record
from greensock.proxy.proxy_connection import ProxyConnection
from greensock.proxy.relay import CHALLENGES, ProxySeam
from greensock.proxy.request_relay import RequestRelay
from greensock.proxy.routes import BadPath, Route
from greensock.proxy.upstream.servers import UpstreamServer

__all__ = ["OrdinaryExchange"]

#: Statuses of answers that get a closer look: a challenge binds the connection, and 426 names protocols.
_LOOKED_AT = frozenset({*CHALLENGES, 426})

_NO_FIELDS = Headers()
#: In the place of a record where nobody is to be told more than how long requests took: none is made for most of them.
_UNTOLD = Record(0.0, "", "", "", b"", "1.1")

#: Fields of an answer that may have to be put right (see ``prefixes``).
_leads_back = re.compile(rb"\n(?:location|content-location|refresh|set-cookie):", re.IGNORECASE).search


class ServerSeam(ProxySeam, Protocol):
    """What it needs of its proxy."""

    limits: Limits
    refused_methods: frozenset[str]
    max_requests: int | None
    requests_taken: int


class OrdinaryExchange:
    """Serves on the connections of one proxy what is ordinary, and leaves the rest to its classes."""

    __slots__ = ("_otherwise", "_proxy", "_record")

    def __init__(self, proxy: ServerSeam, otherwise: Callable[[ProxyConnection, bytes], None]) -> None:
        """``otherwise`` serves what is not ordinary."""
        self._proxy = proxy
        self._otherwise = otherwise
        self._record = self._whole_record if proxy.tells_records else self._no_record

    def serve(self, conn: ProxyConnection, data: bytes) -> None:
        """Serve what came on a connection: ``connection_recv`` of the proxy."""
        proxy = self._proxy
        if conn.head_parser is not None or conn.bound is not None:
            return self._otherwise(conn, data)

        # Is it ordinary? Until that is known nothing is changed.
        gateway = proxy.gateway
        found = read_request(data, proxy.limits, gateway.forwarder.judged_of_requests)
        if found is None or found[0] in proxy.refused_methods:
            return self._otherwise(conn, data)
        method, target, host, lines, pieces, begin, length, keep = found
        route = gateway.routes.only or self._route(method, host, target, lines)
        if route is None or not route.is_ordinary:
            return self._otherwise(conn, data)
        upstream, deadlines = gateway.upstreams[route.action], gateway.deadlines_of(route)  # type: ignore[index]
        if deadlines.total is not None or not upstream.is_simple:
            return self._otherwise(conn, data)
        if length > JOINED or length > upstream.options.max_replay:
            return self._otherwise(conn, data)

        # It is, and from here on it is this request that is served.
        asked = monotonic()
        record = self._record(conn, method, target, host, lines) if proxy.wants_records else None
        conn.requests += 1
        proxy.requests_taken += 1
        if proxy.max_requests is not None and conn.requests >= proxy.max_requests:
            keep = False
        guard, peer = gateway.guard, conn.peer
        if guard is not None:
            refused = guard.request(peer, asked, method, host)
            if refused is not None:
                # Refused before there was a route; and where the connection closes, the body is not looked at.
                relay = self._relay(conn, method, target, lines, host, length if keep else 0, keep, record, asked)
                relay.run(partial(relay.refuse_client, refused))
                return None
        if route.guard is not None:
            own = gateway.guard_of(route)
            refused = own.request(peer, asked, method, host) if own is not None else None
            if refused is not None:
                relay = self._relay(conn, method, target, lines, host, length if keep else 0, keep, record, asked)
                relay.route = route
                relay.run(partial(relay.refuse_client, refused))
                return None
        upstream.budget.request(asked)
        server = upstream.choose(peer, _NO_FIELDS)
        if server is None:
            relay = self._relay(conn, method, target, lines, host, length, keep, record, asked)
            relay.route = route
            relay.run(partial(relay.fail_without_server, upstream, deadlines))
            return None
        spell, pool = server.health.spell, server.pool
        kept: ClientConnection | None = None
        sent_at: float | None = None
        heard: bytes | BaseException = b""
        written, sent_before = None, 0
        conn.has_left = False
        # Whatever is raised here, by whoever ends this greenlet, too, is for the classes, which know what it means; the
        # server, its connection and its slot are theirs then, to be left (test_what_is_raised_leaves_nothing_behind).
        try:
            # First the watch for a client that leaves, then the look at a connection: just before it is used.
            if not proxy.abort_on_eof or conn.notify_disconnect(conn.note_left):
                kept = pool.take_kept(server.origin)
            if kept is not None:
                conn.asks = kept
                kept.requests += 1
                head = gateway.forwarder.ordinary_request_lines(
                    b"".join(pieces), peer, conn.scheme, host, server.authority
                )
                verb, path = method.encode(), target
                if route.strip_prefix:
                    path = route.target_for(target)
                    if route.prefix:
                        head = gateway.forwarder.with_prefix(head, route.prefix)
                if length:
                    body = data[begin:]
                    head = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (verb, path, head, length, body)
                elif method in WITH_BODY:
                    head = b"%b %b HTTP/1.1\r\n%bContent-Length: 0\r\n\r\n" % (verb, path, head)
                else:
                    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (verb, path, head)
                sent_before = kept.bytes_sent
                kept.send_soon(head, deadlines.timeouts.send)
                sent_at = monotonic()
                heard = kept.recv(None, deadlines.timeouts.head)
                if not conn.has_left and not (route.puts_right and _leads_back(heard)):
                    written = self._written(heard, method, keep and (not proxy.draining or proxy.asks_on(conn)))
        except BaseException as error:
            heard = error
            if kept is not None and kept.bytes_sent == sent_before:
                sent_at = None  # it was gone before anything was sent, which is told late
        conn.asks = None

        if written is None or kept is None:  # its answer is not ordinary, or there is none so far
            relay = self._relay(conn, method, target, lines, host, length, keep, record, asked)
            relay.route = route
            relay.note_asked(upstream, deadlines, server, spell, asked, conn.has_left)
            payload = payload_in_memory(data[begin:]) if length else NOTHING
            # Handed over and not held here: a long answer may take its time (test_a_long_answer_holds_no_first_piece).
            relay.note_heard(ClientLease(pool, server.origin, kept) if kept is not None else None, sent_at, heard)
            heard = b""
            relay.run(partial(relay.go_on_asking, payload))
            return None

        # The server is left before the client gets its answer: it is free for others while that one reads.
        status, reusable, keep, out = written
        heard_at = monotonic()
        before, is_left = conn.bytes_sent, False
        try:
            if proxy.abort_on_eof:
                conn.notify_disconnect(None)
            if not reusable:
                kept.close()
            pool.give_back(server.origin, kept if reusable else None)
            server.succeeded(spell)
            server.leave()
            is_left = True
            proxy.answers_by_status[status] += 1
            if type(out) is bytes:
                conn.send_soon(out)
            else:
                conn.send(out)
        except BaseException as error:
            relay = self._relay(conn, method, target, lines, host, length, keep, record, asked)
            relay.route = route
            relay.note_asked(upstream, deadlines, server, spell, asked)
            relay.run(partial(relay.fail_while_answering, status, heard_at, is_left, error), before)
            return None
        if not keep:
            conn.close()
        if guard is not None:
            guard.answered(peer, monotonic(), status)
        if route.guard is not None and (own := gateway.guard_of(route)) is not None:
            own.answered(peer, monotonic(), status)
        if record is not None:
            if record is _UNTOLD:
                watch: Any = gateway.watch  # else nobody had wanted it so
                took = monotonic() - asked
                watch.latency.note(took)
                if took > watch.last_requests.floor or status >= 500:
                    self._note_last(conn, method, target, host, lines, server, status, took)
                return None
            record.received, record.route, record.request_id = length, route.name, new_id()
            record.upstream, record.upstream_status, record.tries = server.name, str(status), 1
            record.connect_time, record.reused = 0.0, True
            record.head_time = record.upstream_time = heard_at - asked
            record.status, record.sent, record.duration = status, conn.bytes_sent - before, monotonic() - asked
            proxy.record_done(record)
        return None

    def _route(self, method: str, host: bytes, target: bytes, lines: list[bytes]) -> Route | None:
        """Return the route of a request; None: there is none, or that is not for us to say."""
        routes = self._proxy.gateway.routes
        try:
            return routes.find(method, host, target, _fields(lines)[0] if routes.looks_at_fields else _NO_FIELDS)
        except BadPath:
            return None

    def _written(
        self, data: bytes, method: str, keep: bool
    ) -> tuple[int, bool, bool, bytes | list[bytes | memoryview]] | None:
        """Return what goes out for an answer that came whole, and is ordinary: None if it is not.

        It is the status, whether the server's connection may be used again, whether the client's may, and the bytes.
        """
        proxy = self._proxy
        gateway = proxy.gateway
        found = read_answer(data, gateway.answer_limits, gateway.forwarder.judged_of_answers, method)
        if found is None:
            return None
        status, pieces, dated, length, body, end, reusable = found
        if status in _LOOKED_AT:
            return None
        if not dated:
            pieces[0] += proxy.date_line()
        if not keep:
            pieces.append(CLOSE_OPTION)
        if length < 0:
            pieces.append(b"\r\n")
        else:
            pieces.append(b"Content-Length: %d\r\n\r\n" % length)
        if body > JOINED:
            return status, reusable, keep, [b"".join(pieces), memoryview(data)[end:]]
        pieces.append(data[end:])
        return status, reusable, keep, b"".join(pieces)

    def _whole_record(
        self, conn: ProxyConnection, method: str, target: bytes, host: bytes, lines: list[bytes]
    ) -> Record:
        """Return the record of a request that has just come, and was never served before."""
        record = Record(time(), conn.peer, conn.peer, method, target, "1.1")
        headers, _ = _fields(lines)
        record.host, record.referer, record.agent = host, headers.get_raw(b"referer"), headers.get_raw(b"user-agent")
        return record

    def _no_record(self, *_: object) -> Record:
        """Stand in for that where only times are asked for."""
        return _UNTOLD

    def _note_last(
        self,
        conn: ProxyConnection,
        method: str,
        target: bytes,
        host: bytes,
        lines: list[bytes],
        server: UpstreamServer,
        status: int,
        took: float,
    ) -> None:
        """Have a request kept that is one of the slowest, or failed."""
        watch = self._proxy.gateway.watch
        assert watch is not None
        record = self._whole_record(conn, method, target, host, lines)
        record.started -= took
        record.duration, record.status, record.upstream = took, status, server.name
        watch.last_requests.note(record)

    def _relay(
        self,
        conn: ProxyConnection,
        method: str,
        target: bytes,
        lines: list[bytes],
        host: bytes,
        length: int,
        keep: bool,
        record: Record | None,
        started: float,
    ) -> RequestRelay:
        """Return a request for the classes, which take it over."""
        headers, is_ordinary = _fields(lines)
        head = RequestHead(method, target, "1.1", headers, length or None, False, host, is_ordinary)
        request = Request(conn, head, ReadBody(length) if length else NO_BODY)
        relay = RequestRelay(self._proxy, request, keep, conn.peer, conn.scheme)
        if record is _UNTOLD:
            record = self._whole_record(conn, method, target, host, lines)
            record.started -= monotonic() - started
        relay.note_begun(record, started)
        return relay


def _fields(lines: list[bytes]) -> tuple[Headers, bool]:
    """Return the fields in plain lines, and whether none is special."""
    found = lex_plain_fields(lines)
    assert found is not None
    pairs, index, is_ordinary = found
    return Headers.of_raw(pairs, index), is_ordinary
