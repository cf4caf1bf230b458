"""A request on its way: whether another server may be asked (RFC 9110 section 9.2.2), who is blamed, what is let go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from greensock import ConnectFailed, ConnectionLost
from greensock.http import (
    BadRequest,
    BadResponse,
    ConnectTimeout,
    HeadTimeout,
    Limits,
    QueueFull,
    QueueTimeout,
    Reason,
    SendTimeout,
    TotalTimeout,
)
from greensock.http.client.payload import NOTHING, payload_in_memory, payload_in_pieces
from greensock.http.wire.headers import Headers
from greensock.proxy import HealthOptions, Route, ServerOptions, UpstreamOptions
from greensock.proxy.failure import Failure, UpcallFailed, failure_of
from greensock.proxy.relay import COUNTED, NO_UPLOAD, STREAMED, BodyWait
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


# -- a relay by itself, between a client and a server that only write down what is done to them


class Clock:
    """Time that stands still."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("greensock.proxy.relay.monotonic", made)
    return made


class Noted:
    """Writes down what is called, with its arguments. What is called returns what was set for it."""

    def __init__(self, **fields):
        self.calls = []
        self.__dict__.update(fields)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))

    def names(self):
        return [name for name, *_ in self.calls]


def relay_between(conn=None, proxy=None, length=None, received=0, is_ended=False, fields=(), **known):
    """Return a relay of a request, of which this is known."""
    request = SimpleNamespace(
        connection=conn or Noted(drop_reason=None),
        body=SimpleNamespace(received=received, is_ended=is_ended),
        head=SimpleNamespace(content_length=length, version="1.1", headers=Headers(fields), method="GET"),
        headers=Headers(fields),
    )
    relay = RequestRelay(proxy or Noted(), request, True, "192.0.2.1")
    relay.spell = 7
    for name, value in known.items():
        setattr(relay, name, value)
    return relay


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
        relay = relay_between(conn, length=length, received=received, is_ended=is_ended, waiter=waiter)
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
        relay = relay_between(fields=fields)
        relay.request.head.version = version
        assert relay.passes_trailers is wants


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
