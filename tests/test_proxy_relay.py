"""Whether another server may be asked for a request: the table of RFC 9110 section 9.2.2, and what bounds it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from greensock import ConnectFailed, ConnectionLost
from greensock.http import (
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
from greensock.proxy.failure import Failure, failure_of
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
