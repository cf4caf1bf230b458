"""The request's way to a server: its head written anew, framing included, and its body as it comes.

A short body is there before a server is asked, so that a slow client holds none, and so that it can be sent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from greensock import Connection, OperationTimeout
from greensock.http.client.exchange import WITH_BODY, Call
from greensock.http.client.payload import Payload, payload_in_memory, payload_in_pieces
from greensock.http.errors import SendTimeout
from greensock.http.server.response_writer import OWN_FIELDS
from greensock.http.wire.events import ResponseHead
from greensock.http.wire.headers import Headers
from greensock.http.wire.target import origin_form
from greensock.http.wire.writer import write_response_head
from greensock.proxy.failure import Failure, UpcallFailed
from greensock.proxy.forwarded import protocols_offered
from greensock.proxy.proxy_protocol import write_proxy_header
from greensock.proxy.relay import BodyWait, Relay
from greensock.proxy.routes import BadPath, plain_target
from greensock.proxy.upstream.servers import UpstreamServer

__all__ = ["call_for", "introduce", "payload_as_it_comes", "payload_of_short", "preface_for"]

_max_forwards = re.compile(rb"(?im)^(Max-Forwards: )([0-9]{1,9})(?=\r$)").sub


def introduce(relay: Relay, upstream: Connection, version: int) -> None:
    """Tell a server by the PROXY protocol who the client is, unless its connection began with that."""
    if upstream.tls is not None:
        return
    header = write_proxy_header(version, *relay.proxy.ends_of(relay))
    deadlines, seconds = relay.deadlines, relay.deadlines.timeouts.send
    try:
        # The limits for sending a request hold for this too (test_a_proxy_header_that_does_not_go_out_in_time).
        upstream.send(header, timeout=deadlines.within(seconds, SendTimeout, upstream))
    except OperationTimeout:
        raise deadlines.late(SendTimeout, seconds, upstream) from None


def preface_for(relay: Relay, server: UpstreamServer) -> bytes:
    """Return what a new connection to a server begins with in front of TLS."""
    if not server.send_proxy_protocol or server.origin.scheme != "https":
        return b""
    return write_proxy_header(server.send_proxy_protocol, *relay.proxy.ends_of(relay))


def call_for(relay: Relay, server: UpstreamServer, payload: Payload) -> Call:
    """Write the head of the request to a server."""
    proxy, head, route = relay.proxy, relay.request.head, relay.route
    method, target = head.method, head.target
    upgrade = not head.is_ordinary and bool(protocols_offered(head))
    takes_trailers = not head.is_ordinary and relay.passes_trailers
    lines = proxy.gateway.forwarder.request_lines(
        head, relay.peer, relay.client, relay.scheme, server.authority, upgrade, takes_trailers
    )
    if method == "OPTIONS" and head.headers.get_raw(b"max-forwards") is not None:
        lines = _max_forwards(_one_less, lines)  # RFC 9110 section 7.6.2
    if route is not None and route.prefix:
        lines = proxy.gateway.forwarder.with_prefix(lines, route.prefix)
    if proxy.edits_requests or (route is not None and route.edits_requests):
        lines = _edited(relay, lines)
        # An edit may have taken them out: Connection names only what is there (test_edits_and_upgrades).
        there = b"\r\n" + lines.lower()  # the first of them may be any, where an edit has moved Host
        upgrade = upgrade and b"\r\nupgrade:" in there
        takes_trailers = takes_trailers and b"\r\nte:" in there
        if options := [b"Upgrade"] * upgrade + [b"TE"] * takes_trailers:
            lines += b"Connection: %b\r\n" % b", ".join(options)
    length = payload.length
    # The framing is made anew from the body that goes out, never copied (test_chunks_are_framed_anew).
    if length is None:
        framing = b"Transfer-Encoding: chunked\r\n"
    elif length or method in WITH_BODY:
        framing = b"Content-Length: %d\r\n" % length
    else:
        framing = b""
    upstream, body = relay.upstream, relay.request.body
    expects = body.is_awaited and upstream is not None and upstream.options.pass_expect
    if expects:
        framing += b"Expect: 100-continue\r\n"
    if relay.asked_for is not None:
        target = relay.asked_for
    else:
        if not target.startswith(b"/"):
            target = origin_form(method, target)
        if route is not None and route.strip_prefix:
            target = route.target_for(target)
    if server.base and target.startswith(b"/"):
        target = server.base + _below(target)
    written = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method.encode(), target, lines, framing)
    trailers = partial(_trailers, relay) if length is None else None
    call = Call.written(method, written, payload, trailers, partial(_pass_interim, relay), upgrade)
    call.expects = expects
    return call


def _below(target: bytes) -> bytes:
    """Return a target that stays below the path that is put in front of it.

    It was looked at before, but for a server that was added while the request's body was waited for.
    """
    try:
        return plain_target(target)
    except BadPath as error:
        raise Failure(error.reason, error.status, blames_server=False) from None


def payload_of_short(relay: Relay) -> Payload:
    """Return a body that was read, so that it can be sent again."""
    length = relay.request.head.content_length
    assert length is not None
    data = relay.request.body.read_all(length)
    relay.proxy.watch_request_body(relay, data)
    return payload_in_memory(data)


def payload_as_it_comes(relay: Relay) -> Payload:
    """Return a body that is passed on while it is read."""
    return payload_in_pieces(_pieces(relay), relay.request.head.content_length)


def _pieces(relay: Relay) -> Iterator[bytes]:
    conn, body, watch = relay.conn, relay.request.body, relay.proxy.watch_request_body
    wait = relay.body_wait = BodyWait()
    while piece := body.read():
        try:
            watch(relay, piece)
        except Exception as error:
            # Marked as the program's, whatever it is: it may look like an error of the server's.
            raise UpcallFailed(error) from error
        # While the server takes the piece nobody reads the client, so the engine tells if it leaves
        # (test_a_client_that_leaves_while_the_server_does_not_read).
        if not conn.notify_disconnect(relay.on_hangup_in_body):
            relay.on_hangup_in_body()
        # From here on it is the server that takes its time, and no longer the client.
        wait.end()
        yield piece  # as long as the server likes: the client is not read meanwhile
        wait.go_on()
        conn.notify_disconnect(None)
    wait.end()
    # The body is there, and a server that takes its time with the answer holds no place of an upload.
    relay.end_upload()
    # From here on the client is not read, and may leave while the server works.
    if relay.proxy.abort_on_eof and not relay.conn.notify_disconnect(relay.on_client_left):
        relay.on_client_left()


def _trailers(relay: Relay) -> Headers | None:
    """Return the fields that go out behind a body in chunks."""
    trailers = relay.request.trailers
    if trailers is None:
        return None
    passed = relay.proxy.gateway.forwarder.request_trailers(relay.request.head, trailers)
    if relay.admitted is not None:
        relay.admitted.strip(passed)
    return passed


def _edited(relay: Relay, lines: bytes) -> bytes:
    """Return the lines of a request with the changes of its route and of the program."""
    headers = Headers.of_raw([_pair(line) for line in lines.split(b"\r\n")[:-1]])
    if relay.admitted is not None:
        relay.admitted.apply(headers)
    if relay.route is not None and relay.route.request_fields:
        edits = relay.route.request_fields
        edits.apply(headers, relay.variables(edits.variables))
    try:
        relay.proxy.edit_request(relay, headers)
    except Exception as error:
        raise UpcallFailed(error) from error
    relay.look_at_credentials(headers)  # they may be of the route's or the program's making
    return b"".join([b"%b: %b\r\n" % pair for pair in headers.raw if pair[0].lower() not in OWN_FIELDS])


def _one_less(match: re.Match[bytes]) -> bytes:
    return match[1] + b"%d" % max(0, int(match[2]) - 1)


def _pair(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name, value


def _pass_interim(relay: Relay, head: ResponseHead) -> None:
    """Pass on an answer 1xx, but for 100: the client gets ours, when its body is read."""
    if head.status == 100 or relay.request.version == "1.0":
        return
    fields = relay.proxy.gateway.forwarder.response_pairs(head, trailers=False)
    relay.conn.send(write_response_head(head.status, Headers.of_raw(fields)))
