"""An answer on its way back, by itself: how it is framed, whether the connection goes on, who is to blame."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from relays import Noted, relay_between

from greensock import ConnectionLost
from greensock.http import BadRequest, BadResponse, BodyTimeout, Reason, SendTimeout, Timeouts, TotalTimeout
from greensock.http.client.deadlines import Deadlines
from greensock.http.server.request import NO_BODY
from greensock.http.wire.headers import Headers
from greensock.proxy import Buffering, response_relay
from greensock.proxy.failure import Failure, UpcallFailed
from greensock.proxy.request_relay import RequestRelay
from greensock.proxy.response_relay import MAX_AHEAD, _StreamedAnswer


def answer_to(relay, first=b"", is_whole=False, length=None, fields=(), **known):
    """Return an answer of which ``first`` came with the head."""
    made = _StreamedAnswer.__new__(_StreamedAnswer)
    made._relay, made._client, made._conn = relay, relay.conn, Noted()
    made._head = SimpleNamespace(content_length=length, headers=Headers(fields), status=200, phrase=b"OK")
    made.is_whole, made._first, made._keep = is_whole, first, relay.keep
    made._chunked, made._left, made._buffer, made._held_up = False, None, None, 0.0
    for name, value in known.items():
        setattr(made, name, value)
    return made


def proxy_that(**fields):
    given = {"draining": False, "watches_responses": False, "asks_on": lambda conn: False, **fields}
    return Noted(**given)


def test_whether_the_head_says_that_the_connection_goes_on():
    waits, ended = Noted(is_ended=False), Noted(is_ended=True)
    for wanted, draining, asks_on, body, is_sending, can_discard, keep in (
        (True, False, False, NO_BODY, None, False, True),
        (False, False, False, NO_BODY, None, False, False),
        (True, True, False, NO_BODY, None, False, False),
        (True, True, True, NO_BODY, None, False, True),
        (True, False, False, ended, False, False, True),
        (True, False, False, waits, True, False, True),  # what is left is still being sent to the server
        (True, False, False, waits, False, False, False),
        (True, False, False, waits, False, True, True),
        (True, False, False, waits, None, False, False),
        (False, False, False, waits, False, True, False),
    ):
        proxy = proxy_that(
            draining=draining,
            asks_on=lambda conn, asks_on=asks_on: asks_on,
            can_discard_body=lambda request, can_discard=can_discard: can_discard,
        )
        exchange = None if is_sending is None else SimpleNamespace(is_sending=is_sending)
        relay = relay_between(proxy=proxy, body=body, exchange=exchange, keep=wanted)
        assert response_relay._may_keep(relay) is keep


def test_what_becomes_of_the_connection_behind_an_answer():
    waits, ended = Noted(is_ended=False), Noted(is_ended=True)
    for body, keep, can_discard, goes_on, closes in (
        (NO_BODY, True, False, True, False),
        (NO_BODY, False, True, False, True),
        (ended, True, False, True, False),
        (ended, False, True, False, False),
        (waits, True, True, True, False),
        (waits, True, False, False, False),
        (waits, False, True, False, False),
    ):
        proxy = proxy_that(
            can_discard_body=lambda request, can_discard=can_discard: can_discard,
            end_exchange=lambda request, keep: keep,
        )
        relay = relay_between(proxy=proxy, body=body)
        assert response_relay._go_on(relay, keep) is goes_on
        assert relay.conn.names() == (["close"] if closes else [])


def test_how_long_the_body_is_said_to_be():
    trailers = Headers([("X", "y")])
    for length, version, is_whole, behind, said, chunked, left, keep in (
        (5, "1.1", False, None, b"Content-Length: 5\r\n\r\n", False, 5, True),
        (5, "1.0", True, None, b"Content-Length: 5\r\n\r\n", False, 5, True),
        (0, "1.1", True, None, b"Content-Length: 0\r\n\r\n", False, 0, True),
        (None, "1.1", True, None, b"Content-Length: 3\r\n\r\n", False, None, True),
        (None, "1.1", True, trailers, b"Transfer-Encoding: chunked\r\n\r\n", True, None, True),
        (None, "1.1", False, None, b"Transfer-Encoding: chunked\r\n\r\n", True, None, True),
        (None, "1.0", False, None, b"\r\n", False, None, False),
        (None, "1.0", True, None, b"\r\n", False, None, False),
    ):
        relay = relay_between(version=version, answer_trailers=behind)
        relay.request.shows_cut = True
        answer = answer_to(relay, b"abc", is_whole, length)
        assert answer._framing() == said
        assert (answer._chunked, answer._left, answer._keep, relay.request.shows_cut) == (chunked, left, keep, keep)


def test_a_body_that_came_whole_says_how_long_it_is():
    """But where there can be none: to HEAD, and of 204 and 304 (RFC 9110 section 8.6)."""
    for length, status, method, body, said in (
        (3, 200, "GET", b"abc", b"Content-Length: 3\r\n\r\nabc"),
        (None, 200, "GET", b"", b"Content-Length: 0\r\n\r\n"),
        (None, 200, "HEAD", b"", b"\r\n"),
        (9, 200, "HEAD", b"", b"Content-Length: 9\r\n\r\n"),
        (None, 204, "GET", b"", b"\r\n"),
        (None, 304, "GET", b"", b"\r\n"),
        (9, 304, "GET", b"", b"Content-Length: 9\r\n\r\n"),
    ):
        for watches in (False, True):
            proxy = proxy_that(watches_responses=watches)
            relay = relay_between(proxy=proxy, method=method, body=NO_BODY)
            head = SimpleNamespace(content_length=length, status=status)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(response_relay, "_written_head", lambda relay, head, keep: b"head ")
                assert response_relay._pass_whole(relay, head, body) is True
            assert relay.conn.calls == [("send", b"head " + said)]
            assert proxy.calls == ([("watch_response_body", relay, body)] if watches and body else [])
            assert relay.request.is_answered


def test_what_is_held_for_a_client_that_is_behind():
    for most, length, first, fields, holds in (
        (Buffering(10, 0), None, b"", [], True),
        (Buffering(0, 0), None, b"", [], False),
        (Buffering(10, 0), 10, b"", [], True),
        (Buffering(10, 0), 11, b"", [], False),
        (Buffering(10, 0), 11, b"a", [], True),
        (Buffering(10, 0), None, b"", [("X-Accel-Buffering", "NO ")], False),
        (Buffering(10, 0), None, b"", [("X-Accel-Buffering", "yes")], True),
        (Buffering(10, 0), None, b"", [("Content-Type", "text/event-stream ; charset=utf-8")], False),
        (Buffering(10, 0), None, b"", [("Content-Type", "text/html")], True),
    ):
        relay = relay_between(proxy=proxy_that(gateway=SimpleNamespace(buffering="the gateway's")))
        answer = answer_to(relay, first, length=length, fields=fields)
        assert answer._may_buffer(most) is holds
        assert answer._most() == "the gateway's"
        relay.route = SimpleNamespace(buffer=None)
        assert answer._most() == "the gateway's"
        relay.route = SimpleNamespace(buffer=most)
        assert answer._most() is most


def test_chunks_and_what_is_behind_them():
    relay = relay_between(fields=[("TE", "trailers")])
    answer = answer_to(relay, fields=[("Connection", "x-hop")])
    assert answer._framed(b"abc") == [b"abc"]
    answer._chunked = True
    assert answer._framed(bytes(17)) == [b"11\r\n", bytes(17), b"\r\n"]
    assert answer._framed(b"") == [], "it would be the end"
    trailers = Headers([("X-Sum", "1"), ("X-Hop", "2")])
    assert answer._last_chunk(None) == b"0\r\n\r\n"
    assert answer._last_chunk(trailers) == b"0\r\nX-Sum: 1\r\n\r\n"
    assert answer_to(relay_between())._last_chunk(trailers) == b"0\r\n\r\n", "who did not ask for them gets none"


def test_what_came_with_the_head_is_taken_out():
    for left, then in ((None, None), (5, 2)):
        answer = answer_to(relay_between(), b"abc", _left=left)
        assert (answer._take_first(), answer._first, answer._left) == (b"abc", b"", then)


def events_of(*events):
    left = iter(events)
    return SimpleNamespace(parser=SimpleNamespace(next_event=lambda: next(left)))


def test_what_of_the_body_came_with_the_head():
    data, end, more = response_relay.Data, response_relay.EndOfMessage, None
    for events, is_whole, first in (
        ((more,), False, b""),
        ((end("trailers"),), True, b""),
        ((data(b"a"), more), False, b"a"),
        ((data(b"a"), end("trailers")), True, b"a"),
        ((data(b"a"), data(b"b"), end("trailers")), True, b"ab"),
        ((*(data(b"x") for _ in range(MAX_AHEAD)), "is not asked for"), False, b"x" * MAX_AHEAD),
    ):
        relay = relay_between()
        conn = events_of(*events)
        assert response_relay._look_ahead(relay, None, conn) == (is_whole, first)
        assert relay.answer_trailers == ("trailers" if is_whole else None)
        assert events[-1] != "is not asked for" or conn.parser.next_event() == events[-1]


def test_how_long_a_server_may_be_silent():
    """From when it has the whole request."""
    for is_sending, is_sent, waited, total, seconds, more in (
        (True, False, 0.0, None, 3.0, 3.0),
        (False, True, 1.0, None, 3.0, 2.0),
        (False, True, 3.0, None, 3.0, BodyTimeout),
        (False, False, 0.0, None, 3.0, BodyTimeout),
        (True, False, 0.0, 1e-9, 3.0, TotalTimeout),
        (True, False, 0.0, 1e-9, None, TotalTimeout),
    ):
        answer = answer_to(relay_between(deadlines=Deadlines(Timeouts(), total)))
        exchange = SimpleNamespace(is_sending=is_sending, is_sent=is_sent, waited=waited)
        if isinstance(more, float):
            assert answer._further_silence(exchange, seconds) == more
        else:
            with pytest.raises(more):
                answer._further_silence(exchange, seconds)


def test_who_is_to_blame_for_an_answer_that_breaks_off():
    """The first of these that holds, as what comes after it may only follow from it."""
    relay = relay_between(server=Noted(), exchange=SimpleNamespace(failure=None))
    answer = answer_to(relay)
    relay.conn.held_up = 0.0
    program, lost = ValueError("the program's"), ConnectionLost("")
    assert answer._broken(program) is program
    assert relay.server.calls == []
    failure = answer._broken(lost)
    assert (failure.reason, failure.blames_server, relay.server.calls) == (
        "body-incomplete",
        True,
        [("failed", failure, 7)],
    )
    of_client = ConnectionLost("", relay.conn)
    assert answer._broken(of_client) is of_client
    upcall = UpcallFailed(program)
    assert answer._broken(upcall) is upcall
    relay.exchange.failure = SendTimeout(1)
    assert answer._broken(lost).reason == "send-timeout"
    assert answer_to(relay_between(exchange=None))._broken(lost).reason == "body-incomplete", "and nobody is told"
    answer._buffer = SimpleNamespace(failure=None)
    assert answer._broken(lost).reason == "send-timeout"
    answer._buffer.failure = of_client
    assert answer._broken(lost) is of_client
    relay.cut = BadRequest("", Reason.INCOMPLETE)
    assert answer._broken(lost) is relay.cut
    relay._client_left = True
    assert answer._broken(lost).reason == "client-left"


def test_a_server_that_waited_long_for_the_client_is_not_blamed():
    no_more = BadResponse("", Reason.INCOMPLETE)
    for held_up, awaited, error, blamed in (
        (0.9, False, no_more, True),
        (1.0, False, no_more, False),
        (1.0, False, ConnectionLost(""), False),
        (1.0, False, SendTimeout(1), False),
        (1.0, False, BodyTimeout(1), True),
        (0.0, True, no_more, False),
        (0.0, True, SendTimeout(1), True),
    ):
        wait = SimpleNamespace(seconds=5.0) if awaited else None
        relay = relay_between(server=Noted(), exchange=SimpleNamespace(failure=None, waited=0.0), body_wait=wait)
        relay.conn.held_up = 2.0 + held_up
        assert answer_to(relay, _held_up=2.0)._broken(error).blames_server is blamed


def test_what_came_before_a_break_is_delivered():
    """Not where the client is to blame, or nothing is held."""
    for buffer, broken, waits in (
        (None, Failure("body-timeout", 504), False),
        (Noted(), Failure("client-left", 499), False),
        (Noted(), ValueError(), False),
        (Noted(), Failure("body-timeout", 504), True),
    ):
        relay = relay_between(server=Noted(), deadlines=Deadlines(Timeouts(), None), _left=False)
        if buffer is not None:
            buffer.wait = lambda seconds: False  # it takes too long: that is no reason for another failure
        answer_to(relay, _buffer=buffer)._deliver(broken)
        assert relay.server.names() == (["leave", "abandoned"] if waits else [])


def test_status_lines_are_remembered_and_bounded(monkeypatch):
    monkeypatch.setattr(response_relay, "_status_lines", {})
    assert response_relay._status_line(404, b"") == b"HTTP/1.1 404 Not Found\r\n"
    assert response_relay._status_line(404, b"Gone fishing") == b"HTTP/1.1 404 Gone fishing\r\n"
    for number in range(300):
        response_relay._status_line(200, b"%d" % number)
    assert len(response_relay._status_lines) == 256
    assert response_relay._status_lines[404, b"Gone fishing"] == b"HTTP/1.1 404 Gone fishing\r\n"
    assert response_relay._status_line(200, b"299") == b"HTTP/1.1 200 299\r\n"


def test_who_waits_for_100_is_told_not_to():
    body = Noted(is_ended=True)
    relay = relay_between(proxy=proxy_that(end_exchange=lambda request, keep: keep), body=body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(response_relay, "_written_head", lambda relay, head, keep: b"head ")
        assert response_relay._pass_whole(relay, SimpleNamespace(content_length=0, status=200), b"") is True
    assert body.names() == ["stop_awaiting"]


@pytest.mark.parametrize("is_whole", [False, True])
def test_an_answer_goes_out_and_the_connection_goes_on_as_the_head_said(is_whole):
    for version, wanted, length, goes_on in (
        ("1.1", True, None, True),
        ("1.0", True, None, False),
        ("1.1", False, None, False),
        ("1.1", True, 6, True),
        ("1.0", True, 6, True),
    ):
        head, sent, body = [], [], Noted(is_ended=True)
        proxy = proxy_that(end_exchange=lambda request, keep: keep)
        relay = relay_between(proxy=proxy, version=version, keep=wanted, body=body, fields=[("TE", "trailers")])
        relay.answer_trailers = Headers([("X", "y")])
        answer = answer_to(relay, b"abc", is_whole, length)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(response_relay, "_written_head", lambda *given, head=head: head.append(given[2:]) or b"head ")
            for name in ("_send_whole", "_send_as_it_comes"):
                patch.setattr(
                    _StreamedAnswer, name, lambda self, written, name=name, sent=sent: sent.append((name, written))
                )
            assert answer.run() is goes_on
        is_chunked = version == "1.1" and length is None
        assert head == [(goes_on, is_chunked)]
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else b"\r\n"
        if length is not None:
            framing = b"Content-Length: 6\r\n\r\n"
        assert sent == [("_send_whole" if is_whole else "_send_as_it_comes", b"head " + framing)]
        assert (relay.request.is_answered, body.names()) == (True, ["stop_awaiting"])


def test_the_head_that_the_client_gets():
    for status, version, keep, dated, edits, head in (
        (200, "1.1", True, False, False, b"HTTP/1.1 200 OK\r\nDate: now\r\nA: b\r\n"),
        (200, "1.1", True, True, False, b"HTTP/1.1 200 OK\r\nA: b\r\n"),
        (200, "1.1", False, True, False, b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n"),
        (200, "1.0", True, True, False, b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: keep-alive\r\n"),
        (426, "1.1", True, True, False, b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"),
        (426, "1.1", False, True, True, b"HTTP/1.1 426 Upgrade Required\r\nC: d\r\nConnection: close\r\n"),
        (200, "1.1", True, True, True, b"HTTP/1.1 200 OK\r\nC: d\r\n"),
    ):
        lines = b"Upgrade: h2c\r\n" if status == 426 else b"A: b\r\n"
        forwarder = SimpleNamespace(
            response_lines=lambda head, trailers, lines=lines: lines,
            response_pairs=lambda head, trailers: [(b"C", b"d"), (b"content-LENGTH", b"3")],
        )
        proxy = proxy_that(
            gateway=SimpleNamespace(forwarder=forwarder),
            answers_by_status=Counter(),
            date_line=lambda: b"Date: now\r\n",
            edits_responses=edits,
            hsts=None,
        )
        relay = relay_between(proxy=proxy, version=version)
        found = SimpleNamespace(status=status, phrase=b"", headers=Headers([("Date", "x")] if dated else []))
        found.is_switch = False
        assert response_relay._written_head(relay, found, keep) == head
        assert proxy.answers_by_status == {status: 1}
        assert proxy.names() == (["edit_response"] if edits else [])


def test_what_is_edited_of_an_answer():
    edits = Noted(variables=("host",))
    for route, hsts, calls in (
        (None, None, []),
        (SimpleNamespace(response_fields=None, rewrite_answers=None, puts_right=False), None, []),
        (SimpleNamespace(response_fields=edits, rewrite_answers=None, puts_right=False), "max-age=1", ["apply"]),
    ):
        forwarder = SimpleNamespace(response_pairs=lambda head, trailers: [(b"C", b"d")])
        proxy = proxy_that(gateway=SimpleNamespace(forwarder=forwarder), hsts=hsts)
        relay = relay_between(proxy=proxy, route=route, kind=Cookies)
        relay.variables = lambda wanted: {}
        headers = response_relay._edited_headers(relay, SimpleNamespace(status=200), False)
        assert edits.names() == calls
        assert proxy.calls == [("edit_response", relay, 200, headers)]
        strict = [(b"Strict-Transport-Security", b"max-age=1")] if hsts else []
        assert headers.raw == [(b"C", b"d"), (b"Cookie-Of", b"server"), *strict]


class Cookies(RequestRelay):
    """Adds a cookie, so that one sees it."""

    def add_cookie(self, headers):
        headers.add(b"Cookie-Of", b"server")


@pytest.mark.parametrize("is_whole", [False, True])
def test_an_answer_that_passes_as_the_programs_own(monkeypatch, is_whole):
    head = SimpleNamespace(content_length=6 if is_whole else None, status=201, headers=Headers(), phrase=b"")
    monkeypatch.setattr(response_relay, "_edited_headers", lambda relay, head, trailers: Headers([("Date", "x")]))
    conn = events_of(response_relay.Data(b"one"), response_relay.Data(b"two"), response_relay.EndOfMessage())
    if not is_whole:
        conn = events_of(response_relay.Data(b"one"), None, response_relay.Data(b"two"), response_relay.EndOfMessage())
    monkeypatch.setattr(_StreamedAnswer, "_hear", lambda self, silence: silence)
    answered, finished = [], []
    relay = relay_between(
        proxy=proxy_that(send_answer=lambda request, response, keep: answered.append((response, keep)) or keep),
        kind=Cookies,
        deadlines=Deadlines(Timeouts(), None),
    )
    relay.conn.held_up = 0.0
    relay.finish = lambda: finished.append(len(answered))
    assert response_relay._pass_as_response(relay, head, conn) is True
    [(response, keep)] = answered
    assert (response.status, keep) == (201, True)
    content = response.body if is_whole else b"".join(response.body)
    assert content == b"onetwo"
    assert finished == [0 if is_whole else 1], "the server is let go of before a client takes a byte, if it may be"
    assert response.headers.get("Content-Length") == ("6" if is_whole else None)


def switching(**known):
    upstream_conn = Noted(parser=Noted(take_rest=lambda: b"rest of the server"))
    lease = Noted(connection=upstream_conn)
    gateway = SimpleNamespace(tunnel_timeout=lambda route: 9.0)
    proxy = proxy_that(gateway=gateway, answers_by_status=Counter(), tunnels=0)
    given = {"body": Noted(is_ended=True), "server": Noted(), "_lease": lease, "_left": False, **known}
    relay = relay_between(proxy=proxy, kind=Cookies, **given)
    relay.request.head.upgrade = [b"echo", b"other"]
    relay.client_rest = lambda: b"rest of the client"
    return relay, lease, upstream_conn


def test_a_tunnel_from_its_begin_to_its_end(monkeypatch):
    ran, told = [], []
    monkeypatch.setattr(response_relay, "_edited", lambda relay, head, trailers: b"A: b\r\n")
    monkeypatch.setattr(response_relay, "tell_tunnel", lambda *given: told.append(given))
    head = SimpleNamespace(status=101, phrase=b"Yes", headers=Headers([("Upgrade", "echo")]), is_switch=True)
    for fails in (False, True):

        def run_tunnel(*given, fails=fails):
            ran.append(given)
            if fails:
                raise ValueError
            return "over"

        monkeypatch.setattr(response_relay, "run_tunnel", run_tunnel)
        for has_server, exchange, record in (
            (True, None, None),
            (True, SimpleNamespace(join=lambda seconds: True), SimpleNamespace(reason="", upstream_time=None)),
            (False, None, SimpleNamespace(reason="", upstream_time=None)),
        ):
            relay, lease, upstream_conn = switching(exchange=exchange, record=record)
            server = relay.server
            if not has_server:
                relay.server, relay._left = None, True
            if fails:
                with pytest.raises(ValueError):
                    response_relay._switch(relay, head)
            else:
                assert response_relay._switch(relay, head) is False
                assert told.pop()[:2] == (relay, "over")
                assert record is None or record.reason == "over"
            assert ran.pop() == (relay.conn, upstream_conn, 9.0)
            said = b"HTTP/1.1 101 Yes\r\nA: b\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            assert [call for call in relay.conn.calls if call[0] != "notify_disconnect"] == [
                ("send", said),
                ("unread", b"rest of the client"),
                ("close",),
            ]
            assert upstream_conn.calls == [("unread", b"rest of the server")]
            assert lease.calls == [("end", False)]
            assert server.calls == ([("succeeded", 7), ("leave",)] if has_server else [])
            assert (relay.proxy.tunnels, relay.proxy.answers_by_status) == (1, {101: 1})
            assert record is None or record.upstream_time is not None
            assert relay.request.is_answered


def test_a_switch_that_is_refused():
    """To what was not offered the server is to blame; before the request is whole it may be the client."""
    for taken, offered, joins, is_ended, blamed in (
        ("", [b"echo"], None, True, True),
        ("echo", [], None, True, True),
        ("echo, more", [b"echo"], None, True, True),
        ("echo", [b"echo"], False, True, False),
        ("echo", [b"echo"], True, False, False),
        ("echo", [b"echo"], None, False, False),
    ):
        exchange = None if joins is None else SimpleNamespace(join=lambda seconds, joins=joins: joins)
        relay, lease, _ = switching(exchange=exchange, body=Noted(is_ended=is_ended))
        relay.request.head.upgrade = offered
        relay.blame_server = lambda error, is_sure=True: Failure("sure" if is_sure else "unsure", 502)
        headers = Headers([("Upgrade", taken)] if taken else [])
        with pytest.raises(Failure, match="^sure$" if blamed else "^unsure$"):
            response_relay._switch(relay, SimpleNamespace(status=101, phrase=b"", headers=headers))
        assert (relay.conn.names(), lease.calls, relay.request.is_answered) == ([], [], False)
