"""Who is to answer a request, and what is found out before: the decision by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from relays import Noted, relay_between

from greensock.http import Limits, Response
from greensock.proxy import HealthOptions, ServerOptions, UpstreamOptions, request_relay
from greensock.proxy.failure import Failure
from greensock.proxy.guard import Refusal
from greensock.proxy.routes import BadPath
from greensock.proxy.upstream.servers import Upstream

GROUP = Upstream(
    UpstreamOptions("site", (ServerOptions("http://127.0.0.1:1"),)), HealthOptions(), Limits(), lambda: 0.5
)
OWN = Response(b"own")


class Deciding(request_relay.RequestRelay):
    """Notes what it refuses."""

    def _refuse_for(self, refused):
        return refused


def deciding(choice=GROUP, route=None, fields=(), guard=None, route_guard=None, method="GET", **known):
    """Return a relay before a proxy that would choose so."""
    forwarder = SimpleNamespace(
        client_of=lambda peer, headers: f"the client behind {peer}",
        scheme_of=lambda peer, headers, scheme: f"not {scheme}",
        is_loop=lambda headers: headers.get("via") == "us",
    )
    gateway = SimpleNamespace(
        forwarder=forwarder,
        trusts_somebody=known.pop("trusts_somebody", False),
        guard=guard,
        guard_of=lambda route: route_guard,
        is_guarded=guard is not None or route_guard is not None,
    )

    def choose(relay):
        if isinstance(choice, Exception):
            raise choice
        relay.route = route
        return choice

    proxy = Noted(gateway=gateway, allowed_methods="GET, HEAD", choose_upstream=choose)
    relay = relay_between(proxy=proxy, method=method, fields=fields, kind=Deciding, **known)
    relay.request.head.is_ordinary = not fields
    return relay


def guard_that(refuses):
    guard = Noted()
    answer = Refusal(429, "request-rate") if refuses else None
    guard.request = lambda *given: guard.calls.append(given[0::2]) or answer
    return guard, answer


def test_who_answers():
    for choice in (GROUP, OWN):
        assert deciding(choice)._decide() is choice
    with pytest.raises(Failure, match="no-route") as caught:
        deciding(None)._decide()
    assert caught.value.status == 404
    with pytest.raises(TypeError, match="choose_upstream returned 5"):
        deciding(5)._decide()
    bad = BadPath("bad-path")
    relay = deciding(bad)
    with pytest.raises(Failure, match="bad-path") as caught:
        relay._decide()
    assert (caught.value.status, relay.keep) == (bad.status, False)
    relay = deciding()
    relay._decide()
    assert relay.keep


def test_what_a_trusted_peer_says_comes_first():
    guard, _ = guard_that(False)
    for record in (None, SimpleNamespace(client="")):
        relay = deciding(trusts_somebody=True, guard=guard, record=record)
        assert relay._decide() is GROUP
        assert (relay.client, relay.scheme) == ("the client behind 192.0.2.1", "not http")
        assert record is None or record.client == relay.client
        assert guard.calls.pop() == (relay.client, "GET"), "the guard counts for the client"


def test_who_is_refused():
    guard, refused = guard_that(True)
    assert deciding(guard=guard)._decide() is refused
    assert deciding(guard=guard_that(False)[0])._decide() is GROUP
    for choice in (GROUP, OWN):
        route_guard, refused = guard_that(True)
        assert deciding(choice, route_guard=route_guard)._decide() is refused
        assert deciding(choice, route_guard=guard_that(False)[0])._decide() is choice
    assert deciding(guard=guard_that(False)[0], route_guard=None)._decide() is GROUP


def test_what_comes_back_is_a_loop():
    with pytest.raises(Failure, match="loop") as caught:
        deciding(fields=[("Via", "us")])._decide()
    assert caught.value.status == 508
    assert deciding(fields=[("Via", "others")])._decide() is GROUP
    relay = deciding(fields=[("Authorization", "NTLM x")])
    assert relay._decide() is GROUP
    assert relay._is_tied


def test_who_is_asked_what_is_allowed():
    """RFC 9110 section 7.6.2."""
    answer = deciding(method="OPTIONS", fields=[("Max-Forwards", "0")])._decide()
    assert (answer.status, answer.headers.raw) == (204, [(b"Allow", b"GET, HEAD")])
    for method, hops in (("OPTIONS", "1"), ("GET", "0")):
        assert deciding(method=method, fields=[("Max-Forwards", hops)])._decide() is GROUP


def test_a_route_that_is_guarded_asks_who_may_pass(monkeypatch):
    for is_guarded, said, found in ((False, "denied", GROUP), (True, "denied", "denied"), (True, None, GROUP)):
        monkeypatch.setattr(request_relay, "admit", lambda relay, route, said=said: said)
        route = SimpleNamespace(is_guarded=is_guarded, rewrite=None)
        assert deciding(route=route)._decide() is found


def test_where_servers_stand_below_a_path_the_target_is_written():
    base = Upstream(
        UpstreamOptions("site", (ServerOptions("http://127.0.0.1:1/app"),)), HealthOptions(), Limits(), lambda: 0.5
    )
    relay = deciding(base, target=b"/x/../y")
    assert relay._decide() is base
    assert relay.asked_for == b"/y"
