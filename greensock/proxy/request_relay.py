"""One request on its way through the proxy: to a server, to another one if that fails, and the answer back.

What holds for every request:

- It gets one answer, or its connection is reset; and no server is asked twice for it while another is up, but for one
  free try on a fresh connection when a kept one turns out to be dead.
- Nothing is sent twice that may not be: see ``failure`` for what is.
- Whatever happens, the server is left, the connection to it given back or reset, and the body let go.
- A connection to a server that may remember who the client is (NTLM, Negotiate: RFC 4559 section 6) is *bound* to the
  client's connection from then on: it is used for further requests of this client alone, and ends with its connection.
  Of the clients of a trusted peer, which may share a connection, each is known by its address. Before that it ends when
  it is spent or checks found its server to be down, but not within a handshake; the client is asked anew then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from time import monotonic, time

from greenlet import GreenletExit

from greensock import Connection, DropReason
from greensock.http.client.connection_pool import ClientLease
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.exchange import IDEMPOTENT, Call, Exchange
from greensock.http.client.payload import NOTHING, Payload
from greensock.http.errors import BadRequest
from greensock.http.server.request import NO_BODY
from greensock.http.server.response import HTTPError, Response
from greensock.http.wire.events import ResponseHead
from greensock.http.wire.target import origin_form
from greensock.proxy.admission import admit
from greensock.proxy.error_lines import tell_cut_off
from greensock.proxy.failure import CLIENT_LEFT, DENIED, Again, Failure, UpcallFailed, client_is_gone
from greensock.proxy.guard import Guard, Refusal
from greensock.proxy.log.record import Record
from greensock.proxy.relay import COUNTED, NO_UPLOAD, PARKED, STREAMED, Relay
from greensock.proxy.response_relay import pass_answer
from greensock.proxy.routes import BadPath, plain_target
from greensock.proxy.upstream.servers import Upstream, UpstreamServer
from greensock.proxy.upstream_request import (
    call_for,
    introduce,
    payload_as_it_comes,
    payload_of_short,
    preface_for,
)

__all__ = ["RequestRelay"]


class RequestRelay(Relay):
    """A request on its way: who answers it is decided, servers are asked, and the answer is passed on."""

    __slots__ = ()

    # -- all of it

    def run(self, step: Callable[[], bool] | None = None, before: int | None = None) -> bool:
        """Answer the request; True if the client's connection goes on. ``step`` is done in place of all that.

        ``before`` is how many bytes had gone to the client before the answer, if that is not what is known now.
        """
        proxy = self.proxy
        before = self.conn.bytes_sent if before is None else before
        if proxy.wants_records and self.record is None:
            self._begin_record()
        try:
            if step is not None:
                return step()
            choice = self._decide()
            if isinstance(choice, Upstream):
                self.upstream = choice
                self.deadlines = proxy.gateway.deadlines_of(self.route)
                if self.request.body is NO_BODY:
                    return self._forward(choice, NOTHING)
                return self._forward_body(choice)
            return self._answer(choice, self.keep)
        except Failure as failure:
            return self._fail(failure)
        except UpcallFailed as failed:
            return self._blame(failed.error)
        except BaseException as error:
            return self._blame(error)
        finally:
            # A parked request is not over: ``go_on`` or ``abandon`` will run this once more.
            if self._upload is not PARKED:
                # Whatever was raised, and wherever: a server that was on trial is free for another request.
                if not self._left:
                    self._leave_unjudged()
                if self._upload is not NO_UPLOAD:
                    self._end_upload()
                # It leads back here, and what holds itself is left to the garbage collector
                # (test_requests_leave_nothing_to_the_garbage_collector).
                self.exchange = None
                if proxy.gateway.is_guarded:
                    for guard in proxy.gateway.guards_for(self.route):
                        guard.answered(self.client, monotonic(), self.status)
                if self.record is not None:
                    self._end_record(self.record, self.conn.bytes_sent - before)

    def go_on(self, failed: Exception | None, may_hold: bool) -> bool:
        """Go on as the body is there, or will not come, or can't be held; True if the client's connection goes on.

        ``failed`` is what is the matter with it.
        """
        self._end_upload()
        return self.run(partial(self._go_on, failed, may_hold))

    def _go_on(self, failed: Exception | None, may_hold: bool) -> bool:
        if failed is not None:
            raise failed
        assert self.upstream is not None
        return self._forward_body(self.upstream, may_wait=False, may_hold=may_hold)

    def abandon(self, status: int, reason: str, answer: Callable[[], object] | None = None) -> None:
        """Note that it is over, as its body did not come; ``answer`` tells the client so. Does not block."""
        self._end_upload()
        self.run(partial(self._abandon, status, reason, answer))

    def _abandon(self, status: int, reason: str, answer: Callable[[], object] | None) -> bool:
        if answer is not None:
            answer()
        self.status = status
        if self.record is not None:
            self.record.reason = reason
        return False

    def _decide(self) -> Upstream | Response:
        """Return who is to answer the request: servers, or the proxy itself."""
        proxy, request = self.proxy, self.request
        gateway, head = proxy.gateway, request.head
        headers = head.headers
        # First of all who asks: the guard counts for the client, not for the trusted peer that passes it on
        # (test_a_trusted_peer_does_not_pay_for_its_clients).
        if gateway.trusts_somebody:
            self.client = gateway.forwarder.client_of(self.peer, headers)
            self.scheme = gateway.forwarder.scheme_of(self.peer, headers, self.scheme)
            if self.record is not None:
                self.record.client = self.client
        if gateway.guard is not None:
            refused = gateway.guard.request(self.client, monotonic(), head.method, head.authority)
            if refused is not None:
                return self._refuse_for(refused)
        if not head.is_ordinary:
            if headers.get_raw(b"via") is not None and gateway.forwarder.is_loop(headers):
                raise Failure("loop", 508)
            self.look_at_credentials(headers)
        if head.method == "OPTIONS" and headers.get_raw(b"max-forwards") == b"0":
            return Response(b"", 204, [(b"Allow", proxy.allowed_methods)])  # we are asked (RFC 9110 section 7.6.2)
        try:
            choice = proxy.choose_upstream(self)
            if isinstance(choice, Upstream):
                self._write_target(choice)
        except BadPath as error:
            self.keep = False
            raise Failure(error.reason, error.status) from None
        if isinstance(choice, Upstream | Response):
            refused = self._refused_by_route() if gateway.is_guarded else None
            if refused is not None:
                return self._refuse_for(refused)
            if self.route is not None and self.route.is_guarded:
                denied = admit(self, self.route)
                if denied is not None:
                    return denied
            return choice
        if choice is None:
            raise Failure("no-route", 404)
        raise TypeError(f"choose_upstream returned {choice!r}: an Upstream, a Response or None expected")

    def _refused_by_route(self) -> Refusal | None:
        """Return why the guard of the route says no, if it does."""
        guard, head = self.proxy.gateway.guard_of(self.route), self.request.head
        return None if guard is None else guard.request(self.client, monotonic(), head.method, head.authority)

    def _write_target(self, upstream: Upstream) -> None:
        """Write anew what is asked for, where servers stand below a path, or the route says what it is."""
        route, head = self.route, self.request.head
        if not upstream.has_base and (route is None or route.rewrite is None):
            return
        target = head.target if head.target.startswith(b"/") else origin_form(head.method, head.target)
        if route is not None:
            target = route.target_for(target)
        self.asked_for = plain_target(target) if upstream.has_base else target

    # -- to the server

    def _forward_body(self, upstream: Upstream, may_wait: bool = True, may_hold: bool = True) -> bool:
        """Have a server answer a request with a body, which is there, is waited for, or is relayed as it comes.

        A short one is waited for without a worker, and without a server, if it may be held.
        """
        length, proxy = self.request.head.content_length, self.proxy
        parser = self.conn.parser_in_use
        missing = 1 if length is None or parser is None else length - parser.pending
        is_short = length is not None and length <= upstream.options.max_replay
        if upstream.options.pass_expect and self.request.body.is_awaited:
            is_short = False  # it is the server that asks for it
        if is_short and may_hold and (missing <= 0 or not may_wait):
            return self._forward(upstream, payload_of_short(self))
        if proxy.gateway.is_guarded and (refused := self._take_upload()) is not None:
            self.keep = False  # no worker waits for what is left of the body
            return self._answer(self._refuse_for(refused), self.keep)
        # The guard has counted it: from here on ``run`` counts it out, whatever happens.
        self._upload = COUNTED
        if is_short and may_hold and proxy.park(self, missing):
            self._upload = PARKED
            return False
        self._upload = STREAMED
        # A worker waits for each of these, and some are kept for requests without a body
        # (test_workers_are_left_for_others).
        proxy.uploads += 1
        if proxy.uploads > proxy.most_uploads:
            self.keep = False
            raise Failure("too-many-uploads", 503)
        return self._forward(upstream, payload_as_it_comes(self))

    def _take_upload(self) -> Refusal | None:
        """Have the guards count a body that is to be waited for: all of them, or the first that says no is returned."""
        taken: list[Guard] = []
        for guard in self.proxy.gateway.guards_for(self.route):
            refused = guard.upload(self.client, monotonic())
            if refused is not None:
                for each in taken:
                    each.upload_ended(self.client)
                return refused
            taken.append(guard)
        return None

    def _forward(self, upstream: Upstream, payload: Payload) -> bool:
        """Have a server answer, and pass that on."""
        self._asked = now = monotonic()
        upstream.budget.request(now)
        failure = self._ask(self._choose(upstream, ()), payload)
        if failure is not None:
            self._ask_others(failure, upstream, payload)
        return pass_answer(self)

    def _ask_others(self, failure: Failure, upstream: Upstream, payload: Payload) -> None:
        """Ask one server after the other until one answers, or raise the last failure."""
        tried: list[UpstreamServer] = []
        while True:
            assert self.server is not None
            tried.append(self.server)
            self._note_attempt("-")
            self._leave()
            if not self._may_retry(failure, payload, upstream, len(tried)):
                raise failure
            try:
                server = self._choose(upstream, tried)
            except Failure:
                # It says more than that no other is up (test_what_failed_is_said_though_no_other_is_left).
                raise failure from None
            self.proxy.retries += 1
            if self.record is not None:
                self._begin_attempt(self.record)
            found = self._ask(server, payload)
            if found is None:
                return
            failure = found

    def _choose(self, upstream: Upstream, tried: Collection[UpstreamServer]) -> UpstreamServer:
        headers = self.request.headers
        if upstream.sticky is not None:
            self._wanted = upstream.server_of_cookie(headers, time())
        server = None
        if self.conn.bound is not None:
            server = self._take_bound(upstream)
        if server is None:
            server = upstream.choose(self.client, headers, tried, self._wanted)
        if server is None:
            raise Failure("no-server", 503)
        self.server = server
        # What becomes of the request counts in this spell of its health only.
        self.spell = server.health.spell
        self._left = False
        self.tries += 1
        return server

    def _take_bound(self, upstream: Upstream) -> UpstreamServer | None:
        """Take up what is bound to the client's connection; None if nothing is, or it is to end."""
        found = self.conn.take_bound(upstream, self.client)
        if found is None:
            return None
        server, lease = found
        # Within a handshake it stays, however old it is: the client's next message is for this connection alone
        # (test_it_ends_when_others_would).
        within_handshake = lease.connection is not None and lease.connection.has_challenged
        if not within_handshake and (lease.is_spent() or server.is_out):
            lease.end(False)
            return None
        self._lease = lease
        lease.is_reused = self._was_bound = True
        server.enter()
        return server

    def _ask(self, server: UpstreamServer, payload: Payload) -> Failure | None:
        """Send the request and wait for the head of the answer; return what went wrong, if it was not the client."""
        conn, body, deadlines = self.conn, self.request.body, self.deadlines
        self.exchange = None
        try:
            # First what may block, if the program edits: a connection is looked at just before it is used
            # (test_an_answer_that_comes_while_a_request_is_edited).
            call = call_for(self, server, payload)
            # A client that leaves is noticed while it waits for a connection, and while the server works. Where more of
            # its body is to come, it may not even close its side (test_a_client_that_leaves_while_it_queues); one that
            # has said all may (test_a_client_that_said_all_may_close_its_side_while_it_queues).
            if body is NO_BODY or body.is_ended:
                if self.proxy.abort_on_eof and not conn.notify_disconnect(self.on_client_left):
                    self._client_left = True
                    raise client_is_gone(conn)
            elif not conn.notify_disconnect(self.on_hangup_in_body):
                self.on_hangup_in_body()
                if self._client_left or self.cut is not None:
                    raise client_is_gone(conn)
            if self._lease is None:
                self._lease = server.lease(deadlines, self, preface_for(self, server))
            elif not self._lease.is_quiet():
                # Bound, and closed by the server meanwhile: the client authenticates anew
                # (test_the_server_closes_it_between_requests).
                self._lease.renew(deadlines)
            lease = self._lease
            upstream_conn = lease.connection
            assert upstream_conn is not None
            if self._client_left or self.cut is not None:
                # It left while there was no connection to reset: nothing was sent on this one, and others may have it
                # (test_a_client_that_leaves_while_the_proxy_connects).
                raise client_is_gone(conn)
            # Once on each connection, in front of its first request (test_a_proxy_header_is_said_to_each_connection).
            if server.send_proxy_protocol and not lease.is_reused:
                introduce(self, upstream_conn, server.send_proxy_protocol)
            if self.record is not None:
                self._note_connected(lease)
            if body is not NO_BODY and not body.is_ended:
                conn.notify_disconnect(None)  # from here on it is read
            self.exchange = exchange = Exchange(call, upstream_conn, deadlines)
            self._await_head(exchange.run, lease, call)
        except Exception as error:
            return self.blame_server(error)
        return None

    def _await_head(self, run: Callable[[], ResponseHead], lease: ClientLease, call: Call) -> None:
        """Wait for the head of the answer: ``run`` does it, on the exchange that there is."""
        exchange = self.exchange
        assert exchange is not None
        try:
            self.head = run()
        except Exception as error:
            self.head = self._ask_again(error, exchange, lease, call)

    def _ask_again(self, error: Exception, exchange: Exchange, lease: ClientLease, call: Call) -> ResponseHead:
        """Ask once more on a fresh connection if a kept one died without a word; else raise."""
        # A second attempt on a fresh connection, which is free: the kept one had most likely gone before
        # (test_a_second_try_on_a_fresh_connection).
        if self._client_left or not lease.is_reused or not exchange.may_repeat(error):
            raise error
        upstream_conn = lease.renew(self.deadlines)
        assert self.server is not None
        if self.server.send_proxy_protocol:
            introduce(self, upstream_conn, self.server.send_proxy_protocol)
        if self._client_left:
            # Meanwhile: there was no connection to reset (test_a_client_that_leaves_while_the_proxy_connects_anew).
            raise error
        if self.record is not None:
            self._note_connected(lease)
        self.exchange = Exchange(call, upstream_conn, self.deadlines)
        return self.exchange.run()

    # -- what began as an ordinary exchange (see there)

    def note_begun(self, record: Record | None, started: float) -> None:
        """Note when its head was there, and the record that was begun then."""
        self.record, self._started = record, started

    def note_asked(
        self,
        upstream: Upstream,
        deadlines: Deadlines,
        server: UpstreamServer,
        spell: int,
        asked: float,
        has_client_left: bool = False,
    ) -> None:
        """Note which server was chosen, in which spell of its health, and when."""
        self.upstream, self.deadlines, self.server, self.spell = upstream, deadlines, server, spell
        self.tries, self._asked, self._left, self._client_left = 1, asked, False, has_client_left

    def refuse_client(self, refused: Refusal) -> bool:
        """Answer a client that asks too much."""
        return self._answer(self._refuse_for(refused), self.keep)

    def fail_without_server(self, upstream: Upstream, deadlines: Deadlines) -> bool:
        """Answer that no server is up."""
        self.upstream, self.deadlines = upstream, deadlines
        raise Failure("no-server", 503)

    def fail_while_answering(self, status: int, heard_at: float, is_left: bool, error: BaseException) -> bool:
        """Note what became of a request whose answer was there and could not be sent.

        ``is_left`` says whether its server was left before that; then bytes of the answer may be out.
        """
        self._left = self.request.is_answered = is_left
        self.note_head(status)
        if self.record is not None:
            self.record.connect_time, self.record.reused = 0.0, True
            self.record.head_time = heard_at - self._asked
            if is_left:
                self.record.upstream_time = self.record.head_time
        raise error

    def note_heard(self, lease: ClientLease | None, sent_at: float | None, heard: bytes | BaseException) -> None:
        """Note what came of a first server: the connection that the request was sent on; None: it was not.

        ``sent_at`` is when it was out whole; None: it is not. ``heard`` is what was received then, or was raised.
        """
        self._lease, self._heard = lease, (sent_at, heard)

    def go_on_asking(self, payload: Payload) -> bool:
        """Go on with the server that was chosen, and pass its answer on, or another's."""
        server, upstream = self.server, self.upstream
        assert server is not None
        assert upstream is not None
        failure: Failure | None
        if self._lease is not None:
            failure = self._hear(server, payload, self._lease)
        elif isinstance(self._heard[1], Exception):
            failure = self.blame_server(self._heard[1])
        else:
            _raise_if_ended(self._heard[1])
            failure = self._ask(server, payload)
        if failure is not None:
            self._ask_others(failure, upstream, payload)
        return pass_answer(self)

    def _hear(self, server: UpstreamServer, payload: Payload, lease: ClientLease) -> Failure | None:
        conn, upstream_conn = self.conn, lease.connection
        assert upstream_conn is not None
        if self.record is not None:
            self._note_connected(lease)
        # Taken out, so that nothing of an answer is held while the rest of it comes.
        (sent_at, heard), self._heard = self._heard, (None, b"")
        try:
            call = call_for(self, server, payload)
            self.exchange = exchange = Exchange(call, upstream_conn, self.deadlines)
            _raise_if_ended(heard)
            if not self._client_left and self.proxy.abort_on_eof and not conn.notify_disconnect(self.on_client_left):
                self.on_client_left()
            self._await_head(partial(exchange.go_on, sent_at, heard), lease, call)
        except Exception as error:
            return self.blame_server(error)
        return None

    # -- when it does not go well

    def _may_retry(self, failure: Failure, payload: Payload, upstream: Upstream, tries: int) -> bool:
        """Whether another server may be asked (RFC 9110 section 9.2.2)."""
        if failure.again is Again.NEVER:
            return False
        if self._is_tied and (self._was_bound or failure.again is not Again.ALWAYS):
            return False  # its credentials reply to a challenge of that server
        if failure.again is Again.REPEATABLE:
            method = self.request.method
            is_upgrade = self.request.headers.get_raw(b"upgrade") is not None
            if method not in IDEMPOTENT or not payload.is_replayable or is_upgrade:
                return False
        # The server got nothing, but what was read of a body that is passed on as it comes is gone
        # (test_nothing_was_sent).
        elif not payload.is_replayable and self.request.body.received:
            return False
        retries = upstream.options.retries
        if self.route is not None and self.route.retries is not None:
            retries = self.route.retries
        # The budget is asked last, as the answer uses it up (test_within_the_budget).
        return tries <= retries and tries < len(upstream.all) and upstream.budget.may_retry(monotonic())

    def _fail(self, failure: Failure) -> bool:
        """Answer that it failed."""
        self._leave_unjudged()  # before the rest of the body is dropped, which a greenlet may still be sending
        self.proxy.failures[failure.reason] += 1
        if self.record is not None:
            self.record.reason = failure.reason
        if failure.is_untold or self.request.is_answered:
            if failure.is_untold:
                self.status = failure.status
                if failure.reason == "stopped":
                    tell_cut_off(self)
                self.conn.abort()
            else:
                self.proxy.cut_off_answer(self.request, failure)
            return False
        retry_after = None
        if failure.status == 503:
            retry_after = self.upstream.retry_after() if self.upstream is not None else 1
        answer = self.error_answer(failure.status, failure.reason, retry_after, failure.error)
        return self._answer(answer, self.keep)

    def _answer(self, answer: Response, keep: bool) -> bool:
        """Send an answer of the proxy's own."""
        self.status = answer.status
        return self.proxy.send_answer(self.request, answer, keep)

    def _refuse_for(self, refused: Refusal) -> Response:
        """Return the answer to a client that asks too much."""
        reason = refused.reason
        self.proxy.refused[reason] += 1
        if self.record is not None:
            self.record.reason = reason
        answer = self.error_answer(refused.status, reason, refused.retry_after, DENIED)
        if refused.allow is not None:
            answer.headers.add(b"Allow", refused.allow)
        return answer

    def _blame(self, error: BaseException) -> bool:
        """Answer what the client or the program is to blame for; raise it again if there is no answer to give."""
        mine = isinstance(error, GreenletExit) or getattr(error, "connection", None) is self.conn
        if mine and self.conn.drop_reason is DropReason.STOPPED:
            self._fail(client_is_gone(self.conn))
            raise error
        self._leave_unjudged()
        proxy, request = self.proxy, self.request
        reason = _token_of(error, self.conn)
        if self.record is not None:
            self.record.reason = reason
        if reason == "client-left":
            self.status = CLIENT_LEFT
            proxy.failures[reason] += 1
        if request.is_answered:
            proxy.cut_off_answer(request, error)
            raise error
        answer = proxy.error_response(request, error)
        if answer.status == 500 and not isinstance(error, HTTPError):
            answer = self.error_answer(500, "internal-error", error="proxy_internal_error")
        return self._answer(answer, self.keep and isinstance(error, HTTPError))

    # -- the record

    def _begin_record(self) -> None:
        head = self.request.head
        self._started = monotonic()
        self.record = record = Record(time(), self.client, self.peer, head.method, head.target, head.version)
        headers = head.headers
        record.host = head.authority
        record.referer = headers.get_raw(b"referer")
        record.agent = headers.get_raw(b"user-agent")

    def _begin_attempt(self, record: Record) -> None:
        """Forget the times of the server that was asked before."""
        self._asked = monotonic()
        record.connect_time, record.reused = None, False

    def _note_connected(self, lease: ClientLease) -> None:
        assert self.record is not None
        self.record.connect_time = 0.0 if lease.is_reused else monotonic() - self._asked
        self.record.reused = lease.is_reused

    def _end_record(self, record: Record, sent: int) -> None:
        record.status = self.status
        record.duration = monotonic() - self._started
        record.sent = sent
        record.received = self.request.body.received
        if self._noted < self.tries:  # the client broke off, or the program failed, before it answered
            self._note_attempt("-")
        record.tries = self.tries
        record.request_id = self.request_id
        if self.route is not None:
            record.route = self.route.name
        self.proxy.record_done(record)


def _raise_if_ended(heard: bytes | BaseException) -> None:
    """Raise what ends this greenlet, or the program: nobody's fault, and not to be answered by another try."""
    if isinstance(heard, BaseException) and not isinstance(heard, Exception):
        raise heard


def _token_of(error: BaseException, conn: Connection) -> str:
    """Return one word for the log."""
    if isinstance(error, HTTPError):
        return "denied"  # an upcall wanted it so
    if getattr(error, "connection", None) is not conn:
        return "internal-error"
    if isinstance(error, BadRequest):
        return error.reason.value
    return "client-timeout" if isinstance(error, TimeoutError) else "client-left"
