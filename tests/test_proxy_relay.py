"""A request on its way: whether another server may be asked (RFC 9110 section 9.2.2), who is blamed, what is let go."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from greenlet import GreenletExit
from relays import Clock, Noted, relay_between

from greensock import ConnectFailed, ConnectionLost, DropReason, OperationTimeout
from greensock.http import (
    BadRequest,
    BadResponse,
    ConnectTimeout,
    HeadTimeout,
    HTTPError,
    Limits,
    QueueFull,
    QueueTimeout,
    Reason,
    SendTimeout,
    TotalTimeout,
)
from greensock.http.client.payload import NOTHING, payload_in_memory, payload_in_pieces
from greensock.http.wire.headers import Headers
from greensock.proxy import (
    HealthOptions,
    Redirect,
    Route,
    ServerOptions,
    StaticAnswer,
    UpstreamOptions,
    request_relay,
)
from greensock.proxy.failure import Failure, UpcallFailed, failure_of
from greensock.proxy.guard import Refusal
from greensock.proxy.relay import COUNTED, NO_UPLOAD, PARKED, STREAMED, BodyWait
from greensock.proxy.request_relay import RequestRelay
from greensock.proxy.upstream.servers import Upstream

KEPT = payload_in_memory(b"body")
STREAM = payload_in_pieces(iter([b"body"]), None)

NOTHING_SENT = [ConnectFailed(""), ConnectTimeout(1), QueueFull("")]
NO_ANSWER = [ConnectionLost(""), BadResponse("", Reason.NO_RESPONSE), SendTimeout(1), HeadTimeout(1)]
HOPELESS = [QueueTimeout(1), TotalTimeout(1), BadResponse("", Reason.STATUS_LINE), Failure("no-server", 503)]
IDEMPOTENT = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]
OTHERS = ["POST", "PATCH"]


def upstream(servers=3, **options):
    made = tuple(ServerOptions(f"http://127.0.0.1:{port}") for port in range(1, servers + 1))
    return Upstream(UpstreamOptions("site", made, **options), HealthOptions(), Limits(), lambda: 0.5)


def may_retry(error, method="GET", payload=NOTHING, *, fields=(), received=0, tries=1, group=None, route=None):
    request = SimpleNamespace(
        connection=None, method=method, headers=Headers(fields), body=SimpleNamespace(received=received)
    )
    relay = RequestRelay(SimpleNamespace(), request, True, "192.0.2.1")
    relay.route = route
    failure = error if isinstance(error, Failure) else failure_of(error)
    return relay._may_retry(failure, payload, group or upstream(), tries)


@pytest.mark.parametrize("error", NOTHING_SENT, ids=repr)
@pytest.mark.parametrize("method", IDEMPOTENT + OTHERS)
def test_nothing_was_sent(error, method):
    assert may_retry(error, method)
    assert may_retry(error, method, KEPT, received=4)
    assert may_retry(error, method, STREAM)
    assert not may_retry(error, method, STREAM, received=1), "part of the body is gone"
    assert may_retry(error, method, fields=[("Upgrade", "websocket")])


@pytest.mark.parametrize("error", NO_ANSWER, ids=repr)
@pytest.mark.parametrize("method", IDEMPOTENT + OTHERS)
def test_something_was_sent(error, method):
    harmless = method in IDEMPOTENT
    assert may_retry(error, method) is harmless
    assert may_retry(error, method, KEPT, received=4) is harmless
    assert not may_retry(error, method, STREAM, received=4), "it can't be sent again"
    assert not may_retry(error, method, fields=[("Upgrade", "websocket")]), "who knows what it begins"


@pytest.mark.parametrize("error", HOPELESS, ids=repr)
@pytest.mark.parametrize("method", IDEMPOTENT + OTHERS)
def test_it_makes_no_sense(error, method):
    assert not may_retry(error, method)


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_so_many_retries(retries):
    group = upstream(retries=retries)
    assert [may_retry(ConnectFailed(""), tries=tries, group=group) for tries in (1, 2, 3)] == [
        tries <= retries for tries in (1, 2, 3)
    ]
    route = Route("site", retries=1)
    assert may_retry(ConnectFailed(""), tries=1, group=group, route=route), "the route's own go first"
    assert not may_retry(ConnectFailed(""), tries=2, group=group, route=route)
    assert not may_retry(ConnectFailed(""), tries=1, group=upstream(), route=Route("site", retries=0))


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_no_more_often_than_there_are_servers(servers):
    group = upstream(servers, retries=9)
    assert [may_retry(ConnectFailed(""), tries=tries, group=group) for tries in (1, 2, 3)] == [
        tries < servers for tries in (1, 2, 3)
    ]


def test_within_the_budget(monkeypatch):
    monkeypatch.setattr("greensock.proxy.request_relay.monotonic", lambda: 100.0)
    group = upstream(retry_budget=0.2, min_retry_rate=0)
    for _ in range(10):
        group.budget.request(100.0)
    assert [may_retry(ConnectFailed(""), group=group) for _ in range(3)] == [True, True, False]
    assert not may_retry(HeadTimeout(1), "POST", group=group)
    assert (group.budget.retries, group.budget.refused) == (2, 1), "what may not be asked again costs nothing"


# -- a relay by itself


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("greensock.proxy.relay.monotonic", made)
    return made


def test_how_long_a_server_waited_for_a_body(clock):
    wait = BodyWait()
    clock.now += 2
    assert wait.seconds == 2
    wait.end()
    clock.now += 5
    assert wait.seconds == 2
    wait.go_on()
    clock.now += 1
    assert wait.seconds == 3
    wait.end()
    assert wait.seconds == 3


def test_what_an_error_of_an_attempt_means():
    relay, mine = relay_between(), Failure("queue-full", 503)
    assert relay._failure_of(mine) is mine
    of_client = ConnectionLost("the client's", relay.conn)
    for error in (UpcallFailed(ValueError()), ValueError("the program's"), of_client):
        with pytest.raises(type(error)) as caught:
            relay._failure_of(error)
        assert caught.value is error
    failure = relay._failure_of(HeadTimeout(1))
    assert (failure.reason, failure.blames_server) == ("head-timeout", True)
    relay.cut = BadRequest("cut", Reason.INCOMPLETE)
    with pytest.raises(BadRequest, match="cut"):
        relay._failure_of(mine)
    relay._client_left = True
    assert relay._failure_of(mine).reason == "client-left"


def test_when_a_server_is_blamed_for_the_total_time():
    """If it had the request for half of it."""
    for waited, blamed in ((None, False), (4.9, False), (5.0, True)):
        exchange = None if waited is None else SimpleNamespace(waited=waited)
        relay = relay_between(deadlines=SimpleNamespace(total=10.0), exchange=exchange)
        assert relay._failure_of(TotalTimeout(10.0)).blames_server is blamed


def test_when_a_server_that_left_is_blamed():
    """Not if it waited for the body for long, and longer than it had the request since."""
    cases = [(None, 0.0, True), (0.9, 0.0, True), (1.0, 0.0, False), (3.0, 3.1, True), (3.0, 3.0, False)]
    for body_wait, waited, blamed in cases:
        relay = relay_between(exchange=SimpleNamespace(waited=waited))
        relay.body_wait = None if body_wait is None else SimpleNamespace(seconds=body_wait)
        for error in (ConnectionLost(""), BadResponse("", Reason.NO_RESPONSE)):
            assert relay._failure_of(error).blames_server is blamed
        assert relay._failure_of(HeadTimeout(1)).blames_server
    relay.exchange = None
    assert relay._failure_of(ConnectionLost("")).blames_server


def test_a_failure_is_counted_against_the_server_if_it_is_sure(monkeypatch):
    told = []
    monkeypatch.setattr("greensock.proxy.relay.tell_failed", lambda relay, failure: told.append(failure))
    for is_sure in (True, False):
        relay = relay_between(server=Noted())
        failure = relay.blame_server(HeadTimeout(1), is_sure)
        assert failure.blames_server is is_sure
        assert relay.server.calls == [("failed", failure, 7)]
        assert told.pop() is failure
    closed = Failure("closed", 502, blames_server=False)
    assert not relay.blame_server(closed).blames_server, "it is not blamed for being sure"


def test_an_upload_is_counted_out_once():
    for upload, uploads, guards in ((NO_UPLOAD, 5, 0), (COUNTED, 5, 2), (STREAMED, 4, 2)):
        both = [Noted(), Noted()]
        gateway = SimpleNamespace(is_guarded=True, guards_for=lambda route, both=both: both)
        relay = relay_between(proxy=SimpleNamespace(uploads=5, gateway=gateway), _upload=upload)
        for _ in range(2):
            relay.end_upload()
        assert relay.proxy.uploads == uploads
        assert [call for guard in both for call in guard.calls] == [("upload_ended", "192.0.2.1")] * guards
        assert relay._upload is NO_UPLOAD


def test_a_client_that_closes_its_side_has_said_all_or_is_cut():
    """By the bytes of the body that are there: unread, and read but not parsed."""
    cases = [
        # unread, parsed no further, the body's length, of which came, whether it has ended, what comes of it
        (None, 0, 10, 10, True, "left"),
        (5, 0, 10, 4, False, "cut"),
        (5, None, 10, 4, False, "cut"),
        (6, None, 10, 4, False, "fine"),
        (5, 1, 10, 4, False, "fine"),
        (4, 0, None, 4, False, "cut"),
        (5, 0, None, 4, False, "fine"),  # a last chunk is five bytes
        (0, 0, 10, 10, True, "fine"),
        (0, 0, None, 4, True, "fine"),
    ]
    for unread, pending, length, received, is_ended, outcome in cases:
        parser = None if pending is None else SimpleNamespace(pending=pending)
        conn = Noted(parser_in_use=parser, count_unread=lambda unread=unread: unread)
        upstream, waiter = Noted(), Noted()
        body = Noted(received=received, is_ended=is_ended)
        relay = relay_between(conn, length=length, body=body, waiter=waiter)
        relay._lease = SimpleNamespace(connection=upstream)
        relay.on_hangup_in_body()
        found = "left" if relay.has_client_left() else "cut" if relay.cut is not None else "fine"
        assert found == outcome, (unread, pending, length, received, is_ended)
        assert (upstream.names(), waiter.names()) == (([], []) if found == "fine" else (["abort"], ["give_up"]))
    relay = relay_between(_lease=SimpleNamespace(connection=None))
    relay.on_client_left()  # before there is a connection to the server
    assert relay.has_client_left()
    relay_between().on_client_left()


NTLM = Headers([("WWW-Authenticate", "Basic"), ("WWW-Authenticate", "NTLM")])


@pytest.mark.parametrize("has_record", [False, True])
def test_whose_the_connection_is_when_the_answer_is_whole(clock, has_record):
    """The pool's, if it can be used again; the client's, if it may remember it."""
    plain, ended = Headers([("WWW-Authenticate", "Basic")]), ("end", True)
    cases = [
        # sent whole, may be used again, who has to be introduced, what it is bound by, status, fields, what comes of it
        (True, True, False, "", 200, plain, ended),
        (False, True, False, "", 200, plain, ("end", False)),
        (True, False, False, "", 200, plain, ("end", False)),
        (True, True, True, "", 200, plain, ("end", False)),
        (True, True, False, "", 401, plain, ended),
        (True, True, False, "", 200, NTLM, ended),
        (True, True, False, "", 401, NTLM, ("bind", True)),
        (True, True, False, "", 407, NTLM, ("bind", True)),
        (True, False, False, "", 401, NTLM, ("end", False)),
        (True, True, False, "_is_tied", 200, plain, ("bind", False)),
        (True, True, False, "_was_bound", 200, plain, ("bind", False)),
        (True, True, False, "_was_bound", 401, plain, ("bind", True)),
        (False, True, False, "_was_bound", 200, plain, ("end", False)),
    ]
    for is_sent, is_reusable, introduces, bound_by, status, fields, outcome in cases:
        parser = SimpleNamespace(is_reusable=is_reusable)
        upstream_conn = SimpleNamespace(parser=parser, has_challenged=None)
        exchange = Noted(is_sent=is_sent, is_sending=not is_sent, connection=upstream_conn)
        server, lease = Noted(send_proxy_protocol=introduces), Noted()
        relay = relay_between(exchange=exchange, server=server, status=status, _lease=lease, _left=False, _asked=98.0)
        relay.head = SimpleNamespace(headers=fields)
        relay.record = SimpleNamespace(upstream_time=None) if has_record else None
        if bound_by:
            setattr(relay, bound_by, True)
        relay.finish()
        if outcome[0] == "bind":
            assert relay.conn.calls == [("notify_disconnect", None), ("bind", server, lease, "192.0.2.1")]
            assert (lease.calls, upstream_conn.has_challenged) == ([], outcome[1])
        else:
            assert (relay.conn.calls, lease.calls) == ([("notify_disconnect", None)], [outcome])
        assert server.calls == [("succeeded", 7), ("leave",)]
        assert exchange.names() == ([] if is_sent else ["stop_and_wait"])
        assert (relay._lease, relay._left) == (None, True)
        if has_record:
            assert relay.record.upstream_time == 2.0
        relay.left()
        assert server.names() == ["succeeded", "leave"], "it is left once"


def test_a_server_is_left_without_a_verdict():
    for is_quiet, is_reused, introduces, was_bound, has_exchange, outcome in [
        (True, False, False, False, False, ("end", True)),
        (True, True, True, False, False, ("end", True)),
        (True, False, True, False, False, ("give_up",)),  # it was introduced to nobody
        (False, True, False, False, False, ("give_up",)),
        (True, True, False, True, False, ("bind",)),
        (True, True, False, False, True, ("give_up",)),  # something was sent
    ]:
        lease = Noted(is_quiet=lambda is_quiet=is_quiet: is_quiet, is_reused=is_reused)
        server, exchange = Noted(send_proxy_protocol=introduces), Noted() if has_exchange else None
        relay = relay_between(server=server, exchange=exchange, _lease=lease, _left=False, _was_bound=was_bound)
        relay._leave_unjudged()
        relay._leave_unjudged()
        bound = [call[:1] for call in relay.conn.calls if call[0] == "bind"]
        assert lease.calls + bound == [outcome]
        assert server.calls == [("leave",), ("abandoned", 7)]
        assert exchange is None or exchange.names() == ["stop_and_wait"]
        assert relay.conn.calls[0] == ("notify_disconnect", None)
        assert relay._lease is None
    server = Noted()
    relay_between(server=server, _left=False)._leave_unjudged()  # before there was a connection
    assert server.names() == ["leave", "abandoned"]


def test_a_tunnel_has_its_connection_for_itself():
    lease = Noted()
    relay = relay_between(_lease=lease)
    assert relay.take_lease() is lease
    assert (relay._lease, relay.conn.calls) == (None, [("notify_disconnect", None)])


def test_what_the_record_says_of_the_servers(clock):
    record = SimpleNamespace(upstream="", upstream_status="", head_time=None, upstream_time=None)
    relay = relay_between(record=record, server=SimpleNamespace(name="a"), tries=1, _asked=97.0)
    relay._note_attempt("-")
    relay.server, relay.tries = SimpleNamespace(name="b"), 2
    relay.note_head(200)
    clock.now += 1
    relay.note_end()
    assert (record.upstream, record.upstream_status, relay._noted) == ("a, b", "-, 200", 2)
    assert (relay.status, record.head_time, record.upstream_time) == (200, 3.0, 4.0)
    relay = relay_between(server=SimpleNamespace(name="a"))
    relay.note_head(404)
    relay._note_attempt("-")
    relay.note_end()
    assert relay.status == 404, "where nobody reads records, there is none"


def test_whose_credentials_are_of_the_connection():
    for fields, is_tied in (
        ([], False),
        ([("Authorization", "Basic eA==")], False),
        ([("Authorization", "Negotiate eA==")], True),
        ([("Proxy-Authorization", "NTLM eA==")], True),
    ):
        relay = relay_between()
        relay.look_at_credentials(Headers(fields))
        assert relay._is_tied is is_tied


def test_who_wants_trailers():
    for version, fields, wants in (
        ("1.1", [("TE", "gzip, trailers")], True),
        ("1.1", [("TE", "gzip")], False),
        ("1.1", [], False),
        ("1.0", [("TE", "trailers")], False),
    ):
        assert relay_between(version=version, fields=fields).passes_trailers is wants


def test_whose_answers_are_put_right():
    for said, by_route, base, puts in (
        (None, False, b"", False),
        (None, True, b"", True),
        (None, False, b"/app", True),
        (False, True, b"/app", False),
        (True, False, b"", True),
    ):
        relay = relay_between(server=SimpleNamespace(base=base))
        relay.route = SimpleNamespace(rewrite_answers=said, puts_right=by_route)
        assert relay.puts_right is puts
    relay.route = None
    assert not relay.puts_right
    relay.server = SimpleNamespace(base=b"/app")
    assert relay.puts_right
    assert not relay_between().puts_right


def test_who_gets_a_cookie():
    """Who does not come back by the one of the server that answered; and no cache may share it."""
    for sticky, wanted, is_gone, cached, added in (
        (None, False, False, "", []),
        ("c", True, False, "", []),
        ("c", False, True, "", []),
        ("c", False, False, "", ["cookie", "private"]),
        ("c", False, False, "public, max-age=3", ["cookie", "private"]),
        ("c", False, False, "no-store", ["cookie"]),
        ("c", False, False, "max-age=3, private", ["cookie"]),
    ):
        server = SimpleNamespace(is_gone=is_gone)
        upstream = SimpleNamespace(sticky=sticky, cookie_of=lambda server, now: b"cookie")
        relay = relay_between(server=server, upstream=upstream, _wanted=server if wanted else None)
        assert relay.sets_cookie is (sticky is not None)
        headers = Headers([("Cache-Control", cached)] if cached else [])
        relay.add_cookie(headers)
        assert [value.decode() for _, value in headers.raw[bool(cached) :]] == added
    headers = Headers()
    for relay in (relay_between(), relay_between(upstream=upstream)):
        relay.add_cookie(headers)
    assert not headers.raw
    assert not relay_between().sets_cookie


# -- a request on its way, by itself


class Answering(RequestRelay):
    """Notes what it would answer."""

    def error_answer(self, status, reason, retry_after=None, error=""):
        return SimpleNamespace(status=status, told=(reason, retry_after, error), headers=Headers())

    def _answer(self, answer, keep):
        self.status, self.answered = answer.status, answer
        return keep


def test_all_guards_count_an_upload_or_none():
    for refusing in (None, 0, 1, 2):
        guards = [Noted(), Noted(), Noted()]
        for number, guard in enumerate(guards):
            guard.upload = lambda *_, no=number == refusing: "no" if no else None
        gateway = SimpleNamespace(guards_for=lambda route, guards=guards: guards)
        relay = relay_between(proxy=Noted(gateway=gateway))
        assert relay._take_upload() == (None if refusing is None else "no")
        assert [guard.calls for guard in guards] == [
            [("upload_ended", "192.0.2.1")] if refusing is not None and number < refusing else [] for number in range(3)
        ]


def test_what_servers_are_asked_for():
    def route(rewrite):
        return SimpleNamespace(rewrite=rewrite, target_for=lambda target: b"/new" + target if rewrite else target)

    for target, has_base, made_by, asked_for in (
        (b"/a//../b", False, None, None),
        (b"/a", False, route(None), None),
        (b"/a//../b", False, route("x"), b"/new/a//../b"),
        (b"/a", True, None, b"/a"),
        (b"/a", True, route("x"), b"/new/a"),
        (b"/a/../b", True, None, b"/b"),
        (b"http://host/c?d", True, None, b"/c?d"),
        (b"*", True, None, b"*"),
    ):
        relay = relay_between(target=target, route=made_by)
        relay._write_target(SimpleNamespace(has_base=has_base))
        assert relay.asked_for == asked_for


def test_how_a_client_is_told_that_it_failed(monkeypatch):
    cut_off = []
    monkeypatch.setattr("greensock.proxy.request_relay.tell_cut_off", cut_off.append)
    group = SimpleNamespace(retry_after=lambda: 9)
    for failure, upstream, is_answered, keep, calls, told in (
        (Failure("head-timeout", 504), group, False, True, [], ("head-timeout", None, "connection_read_timeout")),
        (Failure("no-server", 503), group, False, True, [], ("no-server", 9, "destination_unavailable")),
        (Failure("no-server", 503), None, False, True, [], ("no-server", 1, "destination_unavailable")),
        (Failure("body-timeout", 504), group, True, False, ["cut_off_answer"], None),
        (Failure("client-left", 499), group, False, False, ["abort"], None),
        (Failure("client-left", 499), group, True, False, ["abort"], None),
        (Failure("stopped", 503), group, False, False, ["abort"], None),
    ):
        proxy, record = Noted(failures=Counter()), SimpleNamespace(reason="")
        for has_record in (True, False):
            relay = relay_between(proxy=proxy, kind=Answering, upstream=upstream, server=Noted(), _left=False)
            relay.record, relay.request.is_answered = record if has_record else None, is_answered
            assert relay._fail(failure) is keep
            assert relay.server.names() == ["leave", "abandoned"]
            assert proxy.names() + relay.conn.names()[1:] == calls
            assert (relay.answered.told if told else None) == told
            assert relay.status == (0 if is_answered and not failure.is_untold else failure.status)
            assert cut_off == ([relay] if failure.reason == "stopped" else [])
            cut_off.clear()
            proxy.calls.clear()
        assert (proxy.failures, record.reason) == ({failure.reason: 2}, failure.reason)


def test_who_is_to_blame_for_what_is_raised():
    conn = Noted(drop_reason=None, bytes_sent=0)

    def of_client(error):
        error.connection = conn
        return error

    other = SimpleNamespace(status=500)
    for error, answer, reason, status, keep in (
        (HTTPError(422), SimpleNamespace(status=422), "denied", 422, True),
        (HTTPError(500), other, "denied", 500, True),
        (ValueError("the program's"), other, "internal-error", 500, False),
        (OperationTimeout("another's", Noted(), "recv", 1.0), other, "internal-error", 500, False),
        (BadRequest("", Reason.INCOMPLETE, conn), SimpleNamespace(status=400), "incomplete", 400, False),
        (of_client(OperationTimeout("", conn, "recv", 1.0)), SimpleNamespace(status=408), "client-timeout", 408, False),
        (of_client(ConnectionLost("")), SimpleNamespace(status=400), "client-left", 400, False),
    ):
        for is_answered in (False, True):
            proxy = Noted(failures=Counter(), error_response=lambda request, error, answer=answer: answer)
            relay = relay_between(conn, proxy, kind=Answering, server=Noted(), _left=False)
            relay.record, relay.request.is_answered = SimpleNamespace(reason=""), is_answered
            if is_answered:
                with pytest.raises(type(error)):
                    relay._blame(error)
                assert proxy.calls == [("cut_off_answer", relay.request, error)]
                assert relay.status == (499 if reason == "client-left" else 0)
            else:
                assert relay._blame(error) is keep
                assert relay.status == status
                own = reason == "internal-error"
                assert (relay.answered is answer) is not own
                assert not own or relay.answered.told == ("internal-error", None, "proxy_internal_error")
            assert relay.record.reason == reason
            assert proxy.failures == ({"client-left": 1} if reason == "client-left" else {})
            assert relay.server.names() == ["leave", "abandoned"]
    conn.drop_reason = DropReason.STOPPED
    for error in (GreenletExit(), of_client(ConnectionLost(""))):
        relay = relay_between(conn, proxy=Noted(failures=Counter(), gateway=Noted()), kind=Answering)
        relay._failed = []
        relay._fail = relay._failed.append
        with pytest.raises(type(error)):
            relay._blame(error)
        assert [failure.reason for failure in relay._failed] == ["stopped"]


def test_when_a_kept_connection_is_tried_anew():
    """If it was kept, the client is there, and nothing says that the request was begun."""
    for left, is_reused, may_repeat, leaves, introduces, has_record, again in (
        (False, True, True, False, True, True, True),
        (False, True, True, False, False, False, True),
        (True, True, True, False, False, True, False),
        (False, False, True, False, False, True, False),
        (False, True, False, False, False, True, False),
        (False, True, True, True, False, True, False),
    ):
        fresh, introduced, noted = Noted(), [], []
        lease = SimpleNamespace(is_reused=is_reused)
        relay = relay_between(kind=Answering, deadlines=SimpleNamespace(), server=Noted(send_proxy_protocol=introduces))

        def renew(deadlines, relay=relay, leaves=leaves, fresh=fresh):
            relay._client_left = leaves
            return fresh

        lease.renew = renew
        relay._client_left = left
        relay.record = Noted() if has_record else None
        relay._note_connected = noted.append
        exchange = SimpleNamespace(may_repeat=lambda error, may_repeat=may_repeat: may_repeat)
        with pytest.MonkeyPatch.context() as patch:
            made = SimpleNamespace(run=lambda: "the answer")
            patch.setattr(request_relay, "introduce", lambda *given, introduced=introduced: introduced.append(given))
            patch.setattr(request_relay, "Exchange", lambda call, conn, deadlines, made=made: made)
            if again:
                assert relay._ask_again(ConnectionLost(""), exchange, lease, None) == "the answer"
                assert relay.exchange is made
            else:
                with pytest.raises(ConnectionLost):
                    relay._ask_again(ConnectionLost(""), exchange, lease, None)
        assert introduced == ([(relay, fresh, True)] if introduces else [])
        assert noted == ([lease] if again and has_record else [])


def test_what_is_bound_is_used_for_its_client_until_it_is_spent():
    for has_conn, challenged, is_spent, is_out, used in (
        (True, False, False, False, True),
        (True, False, True, False, False),
        (True, False, False, True, False),
        (True, True, True, False, True),
        (True, True, False, True, True),
        (False, False, True, False, False),
        (False, False, False, False, True),
    ):
        connection = SimpleNamespace(has_challenged=challenged) if has_conn else None
        lease = Noted(connection=connection, is_spent=lambda is_spent=is_spent: is_spent, is_reused=False)
        server = Noted(is_out=is_out)
        conn = Noted(take_bound=lambda upstream, client, found=(server, lease): found)
        relay = relay_between(conn)
        assert relay._take_bound(None) is (server if used else None)
        assert lease.calls == ([] if used else [("end", False)])
        assert server.names() == (["enter"] if used else [])
        noted = (lease, True, True) if used else (None, False, False)
        assert (relay._lease, relay._was_bound, lease.is_reused) == noted
    assert relay_between(Noted(take_bound=lambda upstream, client: None))._take_bound(None) is None


@pytest.fixture
def later(monkeypatch, clock):
    """The clock of both modules."""
    monkeypatch.setattr("greensock.proxy.request_relay.monotonic", clock)
    return clock


def test_what_the_record_says_of_the_request(later):
    proxy = Noted()
    relay = relay_between(
        proxy=proxy,
        target=b"/x",
        fields=[("User-Agent", "me"), ("Referer", "there")],
        body=Noted(received=5),
        route=SimpleNamespace(name="site"),
        server=SimpleNamespace(name="s"),
        _request_id="id",
        _asked=99.0,
    )
    relay._begin_record()
    record = relay.record
    assert (record.method, record.target, record.host, record.agent, record.referer) == (
        "GET",
        b"/x",
        b"a",
        b"me",
        b"there",
    )
    relay._note_connected(SimpleNamespace(is_reused=False))
    assert (record.connect_time, record.reused) == (1.0, False)
    relay._note_connected(SimpleNamespace(is_reused=True))
    assert (record.connect_time, record.reused) == (0.0, True)
    later.now += 1
    relay._begin_attempt(record)
    assert (record.connect_time, record.reused, relay._asked) == (None, False, 101.0)
    relay.tries, relay.status = 1, 499
    later.now += 2
    relay._end_record(record, 77)
    assert (record.status, record.duration, record.sent, record.received, record.tries) == (499, 3.0, 77, 5, 1)
    assert (record.upstream, record.upstream_status, record.request_id, record.route) == ("s", "-", "id", "site")
    relay.route = None
    relay._end_record(record, 77)
    assert (record.upstream, proxy.calls) == ("s", [("record_done", record)] * 2), "an attempt is noted once"


def test_what_is_noted_of_an_answer_that_could_not_be_sent():
    for is_left, has_record in ((True, True), (False, True), (False, False)):
        record = SimpleNamespace(upstream="", upstream_status="", upstream_time=None) if has_record else None
        relay = relay_between(record=record, server=SimpleNamespace(name="s"), tries=1, _asked=90.0)
        with pytest.raises(KeyError):
            relay.fail_while_answering(200, 92.0, is_left, KeyError())
        assert (relay._left, relay.request.is_answered, relay.status) == (is_left, is_left, 200)
        if record is not None:
            assert (record.connect_time, record.reused, record.head_time) == (0.0, True, 2.0)
            assert (record.upstream_time, record.upstream) == (2.0 if is_left else None, "s")


def test_what_is_done_at_the_end_whatever_happened(later):
    failure, upcall = Failure("no-route", 404), UpcallFailed(KeyError())
    for raised in (None, failure, upcall, ValueError(), GreenletExit()):
        told, guard = [], Noted()
        gateway = SimpleNamespace(is_guarded=True, guards_for=lambda route, guard=guard: [guard])
        proxy = Noted(wants_records=True, gateway=gateway, uploads=1)
        relay = relay_between(proxy=proxy, kind=Answering, server=Noted(), _left=False, _upload=STREAMED, exchange="x")
        relay.conn.bytes_sent, relay._request_id = 50, "id"
        relay._fail = lambda failure, told=told: told.append(("fail", failure)) or False
        relay._blame = lambda error, told=told: told.append(("blame", error)) or False

        def step(relay=relay, raised=raised):
            relay.conn.bytes_sent += 7
            relay.status = 200
            if raised is not None:
                raise raised
            return True

        assert relay.run(step) is (raised is None)
        if raised is None:
            assert told == []
        else:
            blamed = upcall.error if raised is upcall else raised
            assert told == [("fail" if raised is failure else "blame", blamed)]
        assert (proxy.uploads, relay.exchange, relay.server.names()) == (0, None, ["leave", "abandoned"])
        assert guard.calls == [("upload_ended", "192.0.2.1"), ("answered", "192.0.2.1", 100.0, 200)]
        [(_, record)] = proxy.calls
        assert (record.sent, record.status) == (7, 200)
        assert relay.run(lambda: True, 10) is True
        assert proxy.calls[1:] == [("record_done", record)], "no record is begun twice"
        assert record.sent == 47


def test_a_request_that_waits_for_its_body_is_not_over():
    proxy = Noted(wants_records=False, gateway=SimpleNamespace(is_guarded=True))
    relay = relay_between(proxy=proxy, server=Noted(), _left=False, exchange="x")

    def step():
        relay._upload = PARKED
        return False

    assert relay.run(step) is False
    assert (relay.server.calls, relay.exchange, relay.record, proxy.calls) == ([], "x", None, [])


def test_who_holds_a_body_and_who_passes_it_on(monkeypatch):
    """One that is short is held, and waited for without a worker; any other is relayed as it comes."""
    monkeypatch.setattr("greensock.proxy.request_relay.payload_of_short", lambda relay: "held")
    monkeypatch.setattr("greensock.proxy.request_relay.payload_as_it_comes", lambda relay: "relayed")
    for length, there, expects, is_awaited, may_wait, may_hold, parks, outcome in (
        (100, 100, False, False, True, True, True, "held"),
        (101, 101, False, False, True, True, True, "relayed"),
        (None, 100, False, False, True, True, True, "relayed"),
        (100, 99, False, False, True, True, True, 1),
        (100, None, False, False, True, True, True, 1),
        (100, 40, False, False, True, True, True, 60),
        (100, 99, False, False, True, True, False, "relayed"),
        (100, 99, False, False, False, True, True, "held"),
        (100, 100, False, False, False, False, True, "relayed"),
        (100, 100, True, True, True, True, True, "relayed"),
        (100, 100, True, False, True, True, True, "held"),
        (100, 100, False, True, True, True, True, "held"),
    ):
        parked = []
        proxy = Noted(gateway=SimpleNamespace(is_guarded=False), uploads=5, most_uploads=6)
        proxy.park = lambda relay, missing, parked=parked, parks=parks: parked.append(missing) or parks
        parser = None if there is None else SimpleNamespace(pending=there)
        body = Noted(is_awaited=is_awaited, received=0)
        relay = relay_between(Noted(parser_in_use=parser), proxy, kind=Answering, length=length, body=body)
        relay._forward = lambda upstream, payload: payload
        upstream = SimpleNamespace(options=SimpleNamespace(max_replay=100, pass_expect=expects))
        found = relay._forward_body(upstream, may_wait, may_hold)
        if isinstance(outcome, int):
            assert (found, parked, relay._upload, proxy.uploads) == (False, [outcome], PARKED, 5)
        else:
            assert found == outcome
            assert relay._upload == (STREAMED if outcome == "relayed" else NO_UPLOAD)
            assert proxy.uploads == (6 if outcome == "relayed" else 5)
    proxy.most_uploads = 5
    with pytest.raises(Failure, match="too-many-uploads") as caught:
        relay_between(Noted(parser_in_use=None), proxy)._forward_body(upstream)
    assert caught.value.status == 503
    guard = Noted(upload=lambda client, now: Refusal(429, "client-uploads", 3))
    proxy = Noted(gateway=SimpleNamespace(is_guarded=True, guards_for=lambda route: [guard]), refused=Counter())
    relay = relay_between(Noted(parser_in_use=None), proxy, kind=Answering, record=SimpleNamespace(reason=""))
    assert relay._forward_body(upstream) is False
    assert (relay.keep, relay.status, relay._upload) == (False, 429, NO_UPLOAD)
    assert (proxy.refused, relay.record.reason) == ({"client-uploads": 1}, "client-uploads")
    assert relay.answered.told == ("client-uploads", 3, "http_request_denied")
    assert not relay.answered.headers.raw
    assert relay._refuse_for(Refusal(405, "method", allow="GET")).headers.raw == [(b"Allow", b"GET")]


def test_which_server_is_chosen():
    server, bound = SimpleNamespace(health=SimpleNamespace(spell=3)), SimpleNamespace(health=SimpleNamespace(spell=4))
    for sticky, is_bound, may_take, chosen, found in (
        (None, False, False, server, server),
        (None, True, True, None, bound),
        (None, True, False, server, server),
        ("c", False, False, server, server),
        (None, False, False, None, None),
    ):
        asked = []
        upstream = SimpleNamespace(
            sticky=sticky,
            server_of_cookie=lambda headers, now: "wanted",
            choose=lambda *arguments, asked=asked, chosen=chosen: asked.append(arguments) or chosen,
        )
        relay = relay_between(Noted(bound="x" if is_bound else None), kind=Answering)
        relay._take_bound = lambda upstream, may_take=may_take: bound if may_take else None
        if found is None:
            with pytest.raises(Failure, match="no-server") as caught:
                relay._choose(upstream, ())
            assert caught.value.status == 503
            assert (relay.server, relay.tries, relay._left) == (None, 0, True)
        else:
            assert relay._choose(upstream, ["tried"]) is found
            assert (relay.server, relay.spell, relay.tries, relay._left) == (found, found.health.spell, 1, False)
        wanted = "wanted" if sticky else None
        assert relay._wanted == wanted
        tried = () if found is None else ["tried"]
        assert asked == ([] if found is bound else [("192.0.2.1", relay.request.headers, tried, wanted)])


def test_one_server_after_the_other_is_asked():
    first, second, third = Failure("first", 502), Failure("second", 502), Failure("third", 502)
    for may, left, answers, raised, tries in (
        ([False], [], [], first, 0),
        ([True], [], [], first, 0),  # no other is up
        ([True], ["b"], [None], None, 1),
        ([True, True], ["b", "c"], [second, None], None, 2),
        ([True, False], ["b"], [second], second, 1),
        ([True, True], ["b"], [second], second, 1),
        ([True, True, False], ["b", "c"], [second, third], third, 2),
    ):
        done, may, left, answers = [], iter(may), list(left), iter(answers)
        proxy = Noted(retries=0)
        relay = relay_between(proxy=proxy, kind=Answering, server="a", record="record")
        relay._note_attempt = lambda status, done=done: done.append(("noted", status))
        relay._leave = lambda done=done: done.append("left")
        relay._begin_attempt = lambda record, done=done: done.append(("begun", record))

        def may_retry(failure, payload, upstream, tries, may=may, done=done):
            done.append((failure.reason, payload, upstream, tries))
            return next(may)

        def choose(upstream, tried, relay=relay, left=left, done=done):
            if not left:
                raise Failure("no-server", 503)
            relay.server = left.pop(0)
            done.append(tuple(tried))
            return relay.server

        relay._may_retry, relay._choose = may_retry, choose
        relay._ask = lambda server, payload, answers=answers: next(answers)
        if raised is None:
            relay._ask_others(first, "group", "body")
        else:
            with pytest.raises(Failure) as caught:
                relay._ask_others(first, "group", "body")
            assert caught.value is raised
        assert proxy.retries == tries
        assert done[:3] == [("noted", "-"), "left", ("first", "body", "group", 1)]
        assert done.count(("begun", "record")) == tries
        asked = [each for each in done if isinstance(each, tuple) and each[0] == "a"]
        assert asked == [("a",), ("a", "b")][:tries]


def test_an_exchange_that_began_elsewhere_goes_on(monkeypatch):
    """By what was heard of its server: nothing, something, or what ended it."""
    monkeypatch.setattr("greensock.proxy.request_relay.pass_answer", lambda relay: "passed")
    failure, lost, ended = Failure("first", 502), ConnectionLost(""), GreenletExit()
    for lease, heard, does, fails in (
        ("lease", b"HTTP/1.1 ", ("heard", "server", "body", "lease"), False),
        ("lease", lost, ("heard", "server", "body", "lease"), True),
        (None, lost, ("blamed", lost), True),
        (None, b"", ("asked", "server", "body"), False),
        (None, b"", ("asked", "server", "body"), True),
        (None, ended, None, False),
    ):
        done, found = [], failure if fails else None
        relay = relay_between(kind=Answering, server="server", upstream="group")
        relay.note_heard(lease, 1.0, heard)
        relay._hear = lambda *arguments, done=done, found=found: done.append(("heard", *arguments)) or found
        relay.blame_server = lambda error, done=done, found=found: done.append(("blamed", error)) or found
        relay._ask = lambda *arguments, done=done, found=found: done.append(("asked", *arguments)) or found
        relay._ask_others = lambda *arguments, done=done: done.append(arguments)
        if does is None:
            with pytest.raises(GreenletExit):
                relay.go_on_asking("body")
            assert done == []
        else:
            assert relay.go_on_asking("body") == "passed"
            assert done == [does, *([(failure, "group", "body")] if fails else [])]


def test_what_was_begun_elsewhere_is_heard_to_its_head(monkeypatch):
    """And a client that has left meanwhile ends it, if the proxy is to look."""
    made = SimpleNamespace(go_on=lambda sent_at, heard: (sent_at, heard))
    monkeypatch.setattr(request_relay, "Exchange", lambda call, conn, deadlines: made)
    monkeypatch.setattr(request_relay, "call_for", lambda relay, server, payload: "call")
    for left, aborts, is_there, looks, has_record in (
        (False, True, True, True, True),
        (False, True, False, True, False),
        (False, False, False, False, False),
        (True, True, True, False, True),
    ):
        noted, upstream = [], Noted()
        conn = Noted(notify_disconnect=lambda callback, is_there=is_there: noted.append(callback) or is_there)  # noqa: B023
        relay = relay_between(conn, Noted(abort_on_eof=aborts), kind=Answering, deadlines=None, _client_left=left)
        relay.record, connected = "record" if has_record else None, []
        relay._note_connected = connected.append
        lease = SimpleNamespace(connection=upstream, is_reused=True)
        relay.note_heard(lease, 1.0, b"heard")
        assert relay._hear("server", "body", lease) is None
        assert (relay.head, relay.exchange) == ((1.0, b"heard"), made)
        assert noted == ([relay.on_client_left] if looks else [])
        assert relay.has_client_left() is (left or (looks and not is_there))
        assert upstream.names() == (["abort"] if looks and not is_there else [])
        assert connected == ([lease] if has_record else [])
        assert relay._heard == (None, b""), "nothing of an answer is held while the rest of it comes"
    lost, blamed = ConnectionLost(""), []
    relay.blame_server = lambda error: blamed.append(error) or "failure"
    relay.note_heard(lease, None, GreenletExit())
    with pytest.raises(GreenletExit):
        relay._hear("server", "body", lease)
    relay._client_left = True
    made.go_on = lambda sent_at, heard: (_ for _ in ()).throw(lost)
    relay.note_heard(lease, 1.0, lost)
    assert relay._hear("server", "body", lease) == "failure"
    assert blamed == [lost]


# -- what it answers itself


def test_the_page_for_an_error():
    pages = SimpleNamespace(page=lambda status, reason: (b"%d %b" % (status, reason.encode()), "text/x"))
    for retry_after, error, told, fields in (
        (None, "", b"proxy", []),
        (5, "", b"proxy", [(b"Retry-After", b"5")]),
        (0, "", b"proxy", [(b"Retry-After", b"0")]),
        (None, "dns_error", b"proxy; error=dns_error", [(b"Proxy-Status", b"proxy; error=dns_error")]),
        (None, "dns_error", None, []),
    ):
        forwarder = SimpleNamespace(proxy_status=lambda error, told=told: told)
        gateway = SimpleNamespace(error_pages=pages, forwarder=forwarder)
        answer = relay_between(proxy=Noted(gateway=gateway)).error_answer(503, "why", retry_after, error)
        assert (answer.status, answer.body) == (503, b"503 why")
        assert [pair for pair in answer.headers.raw if pair[0] != b"Content-Type"] == fields


def test_an_id_is_made_once():
    for said in ("from a trusted peer", ""):
        asked = []
        forwarder = SimpleNamespace(request_id_of=lambda *given, asked=asked, said=said: asked.append(given) or said)
        relay = relay_between(proxy=Noted(gateway=SimpleNamespace(forwarder=forwarder)), fields=[("A", "b")])
        assert relay.request_id == relay.request_id
        assert relay.request_id == said or (not said and len(relay.request_id) == 32)
        assert asked == [("192.0.2.1", relay.request.headers)]


def test_what_variables_stand_for():
    matcher = SimpleNamespace()
    for route, wanted, has_id, has_tls, groups in (
        (None, ("host",), False, False, {}),
        (None, ("request_id",), True, False, {}),
        (None, ("tls_version",), False, True, {}),
        (SimpleNamespace(matcher=None), ("host",), False, False, {}),
        (SimpleNamespace(matcher=matcher, groups_of=lambda target: {"name": "x"}), (), False, False, {"name": "x"}),
    ):
        relay = relay_between(Noted(tls=None), target=b"/a?b", route=route, _request_id="id", scheme="https")
        found = relay.variables(wanted)
        assert (found["method"], found["path"], found["query"], found["client"], found["scheme"]) == (
            "GET",
            "/a",
            "b",
            "192.0.2.1",
            "https",
        )
        assert found["request_id"] == ("id" if has_id else "")
        assert ("tls_version" in found) is has_tls
        assert {name: found[name] for name in found if name == "name"} == groups


def test_where_a_route_leads():
    upstream = object()
    relay = relay_between(proxy=Noted(gateway=SimpleNamespace(upstreams={"site": upstream})), kind=Answering)
    assert relay.follow(Route("site")) is upstream
    assert relay.route.action == "site"
    redirected = relay.follow(Route(Redirect("https://b{path}", 308)))
    assert (redirected.status, redirected.headers.raw) == (308, [(b"Location", b"https://b/")])
    static = relay.follow(Route(StaticAnswer(410, "text")))
    assert (static.status, static.body) == (410, b"text")


def test_what_is_put_right_is_of_the_server_that_answered():
    forwarder = SimpleNamespace(named_host=None)
    proxy = Noted(gateway=SimpleNamespace(forwarder=forwarder))
    pairs = [(b"Location", b"/app/x"), (b"Location", b"http://s:1/app/x"), (b"Location", b"http://n/app/x")]
    pairs.append((b"A", b"/app/x"))
    for prefix, named, expected in (
        (None, None, [b"/x", b"/x", b"http://n/app/x", b"/app/x"]),
        (b"/here", None, [b"/here/x", b"/here/x", b"http://n/app/x", b"/app/x"]),
        (None, b"n", [b"/x", b"/x", b"/x", b"/app/x"]),
    ):
        forwarder.named_host = named
        relay = relay_between(proxy=proxy, server=SimpleNamespace(base=b"/app", authority=b"s:1"))
        relay.route = None if prefix is None else SimpleNamespace(prefix=prefix)
        assert [value for _, value in relay.put_right(pairs)] == expected


def test_what_a_client_sent_behind_its_request():
    assert relay_between(Noted(parser_in_use=None)).client_rest() == b""
    assert relay_between(Noted(parser_in_use=SimpleNamespace(take_rest=lambda: b"x"))).client_rest() == b"x"
