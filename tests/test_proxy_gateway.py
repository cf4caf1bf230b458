"""What the listeners of a proxy share: what it is made of, its deadlines, and what starts and ends with them."""

from __future__ import annotations

import dataclasses
import logging
from math import inf

import pytest
from conftest import wait_until
from proxies import Origin, gateway_to

from greensock.http import HTTPServer, Limits, Timeouts
from greensock.proxy import (
    ErrorPage,
    ErrorPages,
    Forwarding,
    Gateway,
    GuardOptions,
    HealthOptions,
    ListenOptions,
    ProxyTimeouts,
    Route,
    ServerOptions,
    StaticAnswer,
    StickyCookie,
    UpstreamOptions,
)
from greensock.proxy.gateway import FOREVER

APP = UpstreamOptions("app", (ServerOptions("http://127.0.0.1:1"),))


def test_what_it_is_made_of():
    gateway = Gateway([APP], [Route("app")])
    assert list(gateway.upstreams) == ["app"]
    assert gateway.routes.routes == (Route("app"),)
    assert (gateway.timeouts, gateway.limits, gateway.guard, gateway.log) == (ProxyTimeouts(), Limits(), None, None)
    assert not gateway.trusts_somebody
    assert len(gateway.error_pages) == 0
    assert Gateway([APP], [], forwarding=Forwarding(trusted=("::1",))).trusts_somebody
    assert Gateway([APP], [], guard=GuardOptions(max_connections=7)).guard.options.max_connections == 7
    pages = ErrorPages({404: ErrorPage(b"nothing")})
    assert Gateway([APP], [], error_pages=pages).error_pages is pages


def test_an_upstream_has_its_health_and_its_cookie():
    cookie = StickyCookie("node", b"0123456789abcdef")
    other = dataclasses.replace(APP, name="other")
    gateway = Gateway([(APP, HealthOptions(max_fails=9), cookie), other], [])
    assert gateway.upstreams["app"].all[0].health.options.max_fails == 9
    assert gateway.upstreams["app"].sticky is not None
    assert gateway.upstreams["other"].all[0].health.options == HealthOptions()
    assert gateway.upstreams["other"].sticky is None


def test_limits_of_requests_and_of_answers_are_apart():
    gateway = gateway_to("http://127.0.0.1:1", limits=Limits(max_head=100), answer_limits=Limits(max_head=200))
    assert gateway.server_options()["limits"].max_head == 100
    assert gateway.upstreams["site"].all[0].pool._limits.max_head == 200
    assert gateway_to("http://127.0.0.1:1", limits=Limits(max_body=1)).answer_limits == Limits()


@pytest.mark.parametrize(
    ("upstreams", "routes", "text"),
    [
        ([APP, APP], [], r"^name='app': each upstream once expected$"),
        ([APP], [Route("ap")], r"^action='ap': one of app upstreams expected$"),
        ([], [Route("app")], r"^action='app': one of no upstreams expected$"),
    ],
)
def test_what_does_not_go_together(upstreams, routes, text):
    with pytest.raises(ValueError, match=text):
        Gateway(upstreams, routes)


def test_each_gateway_has_a_mark_of_its_own():
    marks = {Gateway([APP], []).forwarder._mark for _ in range(20)}
    assert len(marks) == 20


# -- deadlines


def test_what_the_listeners_are_told():
    timeouts = ProxyTimeouts(
        request_header=1, request_body=2, min_body_rate=3, keep_alive=4, send=5, linger=6, drain=7, upstream_send=99
    )
    listen = ListenOptions(backlog=8, max_workers=9)
    assert Gateway([APP], [], timeouts=timeouts, listen=listen).server_options() == {
        "head_timeout": 1,
        "body_timeout": 2,
        "min_body_rate": 3,
        "idle_timeout": 4,
        "send_timeout": 5,
        "linger_timeout": 6,
        "stop_timeout": 7,
        "limits": Limits(),
        "backlog": 8,
        "max_workers": 9,
        "max_connections": None,
    }
    none = ProxyTimeouts(request_header=None, request_body=None, keep_alive=None, send=None)
    options = Gateway([APP], [], timeouts=none).server_options()
    assert (options["head_timeout"], options["body_timeout"]) == (FOREVER, FOREVER)
    assert (options["idle_timeout"], options["send_timeout"]) == (None, None)
    HTTPServer(("127.0.0.1", 0), **options)


def test_each_deadline_has_its_timeout():
    timeouts = ProxyTimeouts(queue=1, connect=2, upstream_send=3, upstream_head=4, upstream_idle=5, send=99)
    deadlines = Gateway([APP], [], timeouts=timeouts).deadlines_of(None)
    assert deadlines.timeouts == Timeouts(queue=1, connect=2, send=3, head=4, body=5, total=None)
    assert deadlines.total_due == inf


def test_deadlines_without_a_total_are_made_once():
    gateway = Gateway([APP], [])
    own = Route("app", timeouts=ProxyTimeouts(upstream_head=7))
    assert gateway.deadlines_of(None) is gateway.deadlines_of(Route("app"))
    assert gateway.deadlines_of(own) is gateway.deadlines_of(own)
    assert gateway.deadlines_of(own).timeouts.head == 7
    assert gateway.deadlines_of(None).timeouts.head == 60


@pytest.mark.parametrize(("connect", "total", "expected"), [(5, 4, 2), (5, 10, 5), (5, 11, 5), (None, 4, 2)])
def test_connecting_has_half_of_the_total_at_the_most(connect, total, expected):
    gateway = Gateway([APP], [], timeouts=ProxyTimeouts(connect=connect, total=total))
    for _ in range(2):
        assert gateway.deadlines_of(None).timeouts.connect == expected
        assert gateway.deadlines_of(None).total == total
    own = Route("app", timeouts=ProxyTimeouts(connect=connect, total=None))
    assert gateway.deadlines_of(own).timeouts.connect == connect


def test_a_total_begins_with_its_request(monkeypatch):
    now = 100.0
    monkeypatch.setattr("greensock.http.client.deadlines.monotonic", lambda: now)
    gateway = Gateway([APP], [], timeouts=ProxyTimeouts(total=5))
    own = Route("app", timeouts=ProxyTimeouts(total=50))
    for now in (100.0, 103.0, 200.0):
        assert gateway.deadlines_of(None).total_due == now + 5
        assert gateway.deadlines_of(own).total_due == now + 50
    without = Route("app", timeouts=ProxyTimeouts(total=None))
    assert gateway.deadlines_of(without).total_due == inf


def test_how_long_a_tunnel_may_be_silent():
    gateway = Gateway([APP], [], timeouts=ProxyTimeouts(tunnel=7))
    assert gateway.tunnel_timeout(None) == gateway.tunnel_timeout(Route("app")) == 7
    assert gateway.tunnel_timeout(Route("app", timeouts=ProxyTimeouts(tunnel=None))) is None
    assert gateway.tunnel_timeout(Route(StaticAnswer(), timeouts=ProxyTimeouts(tunnel=9))) == 9


# -- what starts and ends with the listeners


def test_checks_run_as_long_as_somebody_listens(serve):
    origin = serve(Origin)
    gateway = gateway_to(origin.url, health=HealthOptions(path="/ok", interval=0.01, timeout=1))
    (server,) = gateway.upstreams["site"].all

    def passed():
        return server.health.statistics().checks_passed

    gateway.leave("nobody")
    gateway.enter("one")
    gateway.enter("other")
    assert len(gateway._checkers) == 1
    wait_until(passed)
    gateway.leave("one")
    gateway.leave("one")
    before = passed()
    wait_until(lambda: passed() > before)
    gateway.leave("other")
    assert not gateway._checkers
    assert not gateway._clients
    asked = len(origin.seen)
    gateway.enter("again")
    wait_until(lambda: len(origin.seen) > asked)
    gateway.leave("again")


def test_without_a_path_nothing_is_checked(serve):
    origin = serve(Origin)
    gateway = gateway_to(origin.url)
    gateway.enter("one")
    assert not gateway._checkers
    gateway.leave("one")


def test_a_server_that_is_down_is_told_of_by_its_name(serve, caplog):
    class Sick(HTTPServer):
        def handle_request(self, request):
            raise AssertionError("checks answer 500")

    sick = serve(Sick)
    name = "{}:{}".format(*sick.address)
    gateway = gateway_to(f"http://{name}", health=HealthOptions(path="/", interval=0.01, timeout=1, fall=1))
    with caplog.at_level(logging.WARNING, "greensock.upstream"):
        gateway.enter("one")
        wait_until(lambda: not gateway.upstreams["site"].all[0].health.is_clear)
        gateway.leave("one")
    assert f"site: {name} is down: it answered 500" in [each.getMessage() for each in caplog.records]


def test_idle_connections_take_no_descriptor_that_others_are_to_have(serve):
    """Each server may have as many idle as clients asked it at once: together more than there are descriptors."""
    one, other = serve(Origin), serve(Origin)
    gateway = gateway_to(one.url, other.url)
    gateway.enter("one")
    assert 0 < gateway.most_links == gateway.most_clients < inf
    gateway.most_links = 4
    first, second = gateway.upstreams["site"].all
    deadlines = gateway.deadlines_of(None)

    def lease(server, count):
        return [server.lease(deadlines) for _ in range(count)]

    def idle():
        return first.status("").idle, second.status("").idle

    for each in lease(first, 3):
        each.end(True)
    held = lease(second, 1)
    assert idle() == (3, 0)
    held += lease(second, 2)
    assert idle() == (1, 0)
    held += lease(first, 1)
    assert idle() == (0, 0), "what is there is used"
    held += lease(second, 1)
    assert len(held) == 5, "none is idle: it may still be made"
    for each in held:
        each.end(False)
    gateway.leave("one")


def test_idle_connections_end_with_the_last_listener(serve):
    origin = serve(Origin)
    gateway = gateway_to(origin.url)
    (server,) = gateway.upstreams["site"].all
    gateway.enter("one")
    gateway.enter("other")
    server.lease(gateway.deadlines_of(None)).end(True)
    gateway.leave("one")
    assert server.status("").idle == 1
    gateway.leave("other")
    assert server.status("").idle == 0
    server.lease(gateway.deadlines_of(None)).end(False)
