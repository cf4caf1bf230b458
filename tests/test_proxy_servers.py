"""The servers of an upstream: who is chosen, what is counted, the cap and the queue of each, and its connections."""

from __future__ import annotations

import logging
from collections import Counter

import gevent
import pytest
from conftest import wait_until
from scripts import scripted

from greensock import ConnectionClosed
from greensock.http import Limits, QueueFull, QueueTimeout, Timeouts
from greensock.http.client.deadlines import Deadlines
from greensock.http.wire.headers import Headers
from greensock.proxy import HealthOptions, ServerOptions, Standing, StickyCookie, UpstreamOptions
from greensock.proxy.failure import Failure
from greensock.proxy.upstream import servers
from greensock.proxy.upstream.servers import Upstream

NOTHING = Headers()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(servers, "monotonic", clock)
    return clock


def server(name="a", **options):
    return ServerOptions(f"http://{name}:80", **options)


def upstream(*options, health=None, sticky=None, **group):
    options = options or (server("a"), server("b"))
    return Upstream(
        UpstreamOptions("site", tuple(options), **group), health or HealthOptions(), Limits(), lambda: 0.5, sticky
    )


def chosen(group, count, **asked):
    """Choose so often, and count whom; each is left again."""
    found = Counter()
    for _ in range(count):
        each = group.choose(asked.get("client", "192.0.2.1"), asked.get("headers", NOTHING))
        found[each.name] += 1
        each.leave()
    return found


def eject(each):
    """Have so many requests fail that it is ejected."""
    while each.health.standing is not Standing.EJECTED:
        each.failed(Failure("no-response", 502))


# -- who


def test_in_turn_and_by_weight():
    assert chosen(upstream(), 10) == {"a:80": 5, "b:80": 5}
    assert chosen(upstream(server("a", weight=3), server("b")), 8) == {"a:80": 6, "b:80": 2}


def test_the_one_with_fewer_requests():
    group = upstream(balance="least_connections")
    first, second = group.all
    for _ in range(6):
        group.choose("", NOTHING)
        assert abs(first.used - second.used) <= 1
    second.leave()
    second.leave()
    assert [group.choose("", NOTHING) for _ in range(2)] == [second, second]


def test_by_the_clients_address_and_by_a_cookie():
    options = [server(name) for name in "abcdef"]
    by_client = upstream(*options, balance="hash")
    where = {client: chosen(by_client, 3, client=client) for client in map(str, range(20))}
    assert all(len(found) == 1 for found in where.values())
    assert len({tuple(found) for found in where.values()}) > 2
    by_cookie = upstream(*options, balance="hash", hash_key="cookie:sid")
    one = {client: chosen(by_cookie, 3, client=client, headers=Headers([("Cookie", "sid=x")])) for client in "abcdefgh"}
    assert len({tuple(found) for found in one.values()}) == 1


def test_another_one_than_was_tried():
    group = upstream()
    for each in group.all:
        assert group.choose("", NOTHING, [each]) is not each
    assert group.choose("", NOTHING, group.all) in group.all, "better the same than none"


def test_one_server_alone_is_chosen_as_long_as_it_is_up(clock):
    group = upstream(server("a"), health=HealthOptions(max_fails=1, ejection_time=5), panic=False)
    (only,) = group.all
    assert group.choose("", NOTHING) is group.choose("", NOTHING, [only]) is only
    eject(only)
    assert group.choose("", NOTHING) is None
    clock.now += 5
    assert group.choose("", NOTHING) is only, "on trial"
    assert group.choose("", NOTHING) is None, "one at a time"
    only.succeeded()
    assert group.choose("", NOTHING) is only


def test_an_ejected_server_is_left_out_and_comes_back(clock):
    group = upstream(health=HealthOptions(ejection_time=5))
    first, second = group.all
    eject(first)
    assert chosen(group, 10) == {"b:80": 10}
    clock.now += 5
    trial = [group.choose("", NOTHING) for _ in range(10)]
    assert trial.count(first) == 1
    first.succeeded()
    assert chosen(group, 10) == {"a:80": 5, "b:80": 5}
    assert second.used == 9


def test_all_are_ejected(clock):
    calm, brave = upstream(panic=False), upstream()
    for each in (*calm.all, *brave.all):
        eject(each)
    assert calm.choose("", NOTHING) is None
    assert brave.choose("", NOTHING) in brave.all
    assert all(not each.used for each in calm.all)


def test_after_an_outage_of_all(clock):
    """A minute of it; then each has its share within a second, not after ejections that were doubled meanwhile."""
    group = upstream(server("a"), server("b"), server("c"), health=HealthOptions(ejection_time=5))

    def ask(is_out):
        each = group.choose("", NOTHING)
        each.leave()
        each.failed(Failure("connect-failed", 502)) if is_out else each.succeeded()
        clock.now += 0.02
        return each.name

    for _ in range(3000):
        ask(True)
    assert all(each.health.ejected_until - clock.now <= 5 for each in group.all)
    for _ in range(50):
        ask(False)
    assert Counter(ask(False) for _ in range(30)) == {"a:80": 10, "b:80": 10, "c:80": 10}


def test_others_are_not_tried_as_one_of_several_rises(clock):
    """Who is out while others are up is out for its own reasons."""
    group = upstream(server("a"), server("b"), server("c"), health=HealthOptions(ejection_time=5, max_fails=1))
    first, second, third = group.all
    eject(first)
    clock.now += 4
    eject(second)
    clock.now += 1
    while group.choose("", NOTHING) is not first:
        pass
    first.succeeded()
    assert second.health.ejected_until == clock.now + 4
    assert third.health.is_clear


@pytest.mark.parametrize("is_backup", [False, True])
def test_those_of_a_kind_come_back_together(clock, is_backup):
    options = [server("a"), server("b"), server("c", backup=True), server("d", backup=True)]
    group = upstream(*options, health=HealthOptions(ejection_time=5, max_fails=1))
    mine, others = (group.backups, group.servers) if is_backup else (group.servers, group.backups)
    for each in mine:
        eject(each)
    first, second = mine
    assert first.health.may_try(clock.now, panic=True)
    first.succeeded()
    assert second.health.ejected_until == clock.now
    assert all(each.health.is_clear for each in others)


def test_checks_that_pass_bring_the_others_back(clock):
    group = upstream(health=HealthOptions(max_fails=1, path="/", fall=1, rise=1))
    first, second = group.all
    first.health.check_failed(clock.now)
    eject(second)
    assert first.health.check_passed(clock.now)
    first.on_check_changed(True)
    assert second.health.is_up(clock.now)


def test_one_that_is_down_is_never_chosen(clock):
    group = upstream(health=HealthOptions(path="/", fall=1))
    for each in group.all:
        each.health.check_failed(clock.now)
    assert group.choose("", NOTHING) is None
    assert group.choose("", NOTHING, wanted=group.all[0]) is None


def test_backups(clock):
    group = upstream(server("backup", backup=True), server("a"), server("b"))
    assert [each.name for each in group.all] == ["a:80", "b:80", "backup:80"], "backups last"
    assert [each.index for each in group.all] == [0, 1, 2]
    assert ([each.name for each in group.servers], [each.name for each in group.backups]) == (
        ["a:80", "b:80"],
        ["backup:80"],
    )
    assert chosen(group, 10) == {"a:80": 5, "b:80": 5}
    eject(group.all[0])
    assert chosen(group, 10) == {"b:80": 10}
    eject(group.all[1])
    assert chosen(group, 10) == {"backup:80": 10}


def test_a_backup_is_asked_when_all_others_were_tried():
    group = upstream(server("a"), server("b", backup=True))
    first = group.choose("", NOTHING)
    assert (first.name, group.choose("", NOTHING, [first]).name) == ("a:80", "b:80")


def test_full_ones_are_left_out_as_long_as_another_has_room():
    group = upstream(server("a", max_connections=1), server("b", max_connections=2), server("c", backup=True))
    found = [group.choose("", NOTHING) for _ in range(3)]
    assert Counter(each.name for each in found) == {"a:80": 1, "b:80": 2}
    assert all(each.is_full for each in group.servers)
    assert group.choose("", NOTHING) in group.servers, "it waits rather than go to a backup"


def test_slow_start(clock):
    group = upstream(health=HealthOptions(ejection_time=5, slow_start=10))
    first = group.all[0]
    eject(first)
    clock.now += 5
    while group.choose("", NOTHING) is not first:
        pass
    first.succeeded()
    shares = []
    for passed in (0, 5, 5):
        clock.now += passed
        shares.append((first.share(clock.now), chosen(group, 330)["a:80"]))
    assert [share for share, _ in shares] == [0.1, 0.5, 1.0]
    assert [round(count, -1) for _, count in shares] == [30, 110, 160]
    assert shares[2][1] == 165
    assert group.all[1].share(clock.now) == 1.0


# -- counts


def test_what_is_counted():
    group = upstream(server("a", max_connections=2))
    (only,) = group.all
    assert (only.used, only.requests, only.is_full) == (0, 0, False)
    for used, is_full in ((1, False), (2, True), (3, True)):
        group.choose("", NOTHING)
        assert (only.used, only.is_full) == (used, is_full)
    for used, is_full in ((2, True), (1, False), (0, False)):
        only.leave()
        assert (only.used, only.is_full) == (used, is_full)
    assert only.requests == 3
    status = only.status("site")
    assert (status.upstream, status.name, status.used, status.requests) == ("site", "a:80", 0, 3)
    assert (status.idle, status.waiting, status.health.standing) == (0, 0, Standing.UP)


@pytest.mark.parametrize("panic", [True, False])
def test_a_server_that_is_asked_though_it_is_ejected_is_said_to_be(clock, caplog, panic):
    group = upstream(server("a"), panic=panic, health=HealthOptions(max_fails=1, ejection_time=5))
    with caplog.at_level(logging.WARNING, "greensock.upstream"):
        group.all[0].failed(Failure("no-response", 502, text="it hung up"))
    still = ", and asked all the same, as no other is up" if panic else ""
    assert [each.getMessage() for each in caplog.records] == [f"site: a:80 is ejected for 5.0 s{still}: it hung up"]


def test_what_is_logged_and_what_is_not_its_fault(clock, caplog):
    group = upstream(health=HealthOptions(max_fails=2, ejection_time=5))
    first = group.all[0]
    innocent = Failure("queue-full", 503, blames_server=False)
    with caplog.at_level(logging.WARNING, "greensock.upstream"):
        for _ in range(5):
            first.failed(innocent)
        first.failed(Failure("no-response", 502, text="it hung up"))
        assert not caplog.records
        first.failed(Failure("no-response", 502, text="it hung up"))
        clock.now += 5
        while group.choose("", NOTHING) is not first:
            pass
        first.succeeded()
    assert [each.getMessage() for each in caplog.records] == [
        "site: a:80 is ejected for 5.0 s: it hung up",
        "site: a:80 is up again",
    ]
    assert {each.levelname for each in caplog.records} == {"WARNING"}
    statistics = first.status("site").health
    assert (statistics.failed, statistics.succeeded, statistics.ejections) == (2, 1, 1)


def test_a_trial_that_says_nothing_is_no_trial(clock):
    group = upstream(server("a"), health=HealthOptions(max_fails=1, ejection_time=5), panic=False)
    (only,) = group.all
    eject(only)
    clock.now += 5
    assert group.choose("", NOTHING) is only
    only.failed(Failure("client-left", 499, blames_server=False))
    assert group.choose("", NOTHING) is only, "the next one is on trial"


def test_retry_after(clock):
    group = upstream(health=HealthOptions(max_fails=1, ejection_time=7, max_ejection=1000))
    assert group.retry_after() == 1
    first, second = group.all
    eject(first)
    assert group.retry_after() == 7
    clock.now += 4
    eject(second)
    assert group.retry_after() == 3, "the first that may come back"
    clock.now += 0.75
    assert group.retry_after() == 3, "not before"
    clock.now += 60
    assert group.retry_after() == 1
    long = upstream(server("a"), health=HealthOptions(max_fails=1, ejection_time=500, max_ejection=1000))
    eject(long.all[0])
    assert long.retry_after() == 30


# -- the cookie


def test_a_sticky_cookie():
    group = upstream(*map(server, "abc"), sticky=StickyCookie("node", b"0123456789abcdef", ttl=60))
    for each in group.all:
        value = group.cookie_of(each, 1e9).partition(b";")[0].decode()
        fields = Headers([("Cookie", f"x=y; {value}")])
        assert group.server_of_cookie(fields, 1e9) is each
        assert group.server_of_cookie(fields, 1e9 + 61) is None
        assert group.choose("", NOTHING, wanted=each) is each
    assert group.server_of_cookie(NOTHING, 1e9) is None
    assert upstream().server_of_cookie(fields, 1e9) is None, "no cookie was asked for"


def test_the_wanted_server_is_up_and_was_not_tried(clock):
    group = upstream()
    first, second = group.all
    assert [group.choose("", NOTHING, wanted=first) for _ in range(4)] == [first] * 4
    assert group.choose("", NOTHING, [first], first) is second
    eject(first)
    assert group.choose("", NOTHING, wanted=first) is second


# -- connections


def quick(**seconds):
    return Deadlines(Timeouts(**seconds), None)


def silent(script, sock, number):
    sock.recv(1)


def test_the_cap_and_the_queue_of_a_server():
    with scripted(silent) as script:
        group = upstream(ServerOptions(script.url, max_connections=1, max_waiting=1))
        (only,) = group.all
        first = only.lease(quick())
        waiter = gevent.spawn(only.lease, quick())
        wait_until(lambda: only.status("").waiting == 1)
        with pytest.raises(QueueFull) as caught:
            only.lease(quick())
        assert (caught.value.limit, caught.value.value) == ("max_waiting", 1)
        conn = first.connection
        first.end(True)
        second = waiter.get()
        assert second.connection is conn
        assert second.is_reused
        with pytest.raises(QueueTimeout):
            only.lease(quick(queue=0.01))
        second.end(True)
        assert (script.accepted, only.status("").idle) == (1, 1)
        group.close()


class Impatient:
    """Who waits for a connection until nobody wants it any more."""

    waiter = None


@pytest.mark.parametrize("when", ["before there is one", "behind that", "as there is a slot"])
def test_who_waits_in_a_queue_may_give_up(when):
    """What is given at the same time goes back: the next one gets it."""
    with scripted(silent) as script:
        (only,) = (group := upstream(ServerOptions(script.url, max_connections=1))).all
        first, patient = only.lease(quick()), Impatient()
        waiter = gevent.spawn(only.lease, quick(), patient)
        wait_until(lambda: only.status("").waiting == 1)
        conn, given_up = first.connection, patient.waiter
        if when == "before there is one":
            given_up.give_up()
            with pytest.raises(ConnectionClosed):
                waiter.get()
            assert only.status("").waiting == 0
        first.end(when != "as there is a slot")
        given_up.give_up()
        with pytest.raises(ConnectionClosed):
            waiter.get()
        assert patient.waiter is None
        second = only.lease(quick())
        assert (second.connection is conn) is (when != "as there is a slot")
        second.end(True)
        assert (only.status("").idle, only.pool.state.statistics().used) == (1, 0)
        group.close()


def test_each_server_has_a_queue_of_its_own():
    with scripted(silent) as one, scripted(silent) as other:
        options = [ServerOptions(each.url, max_connections=1, max_waiting=0) for each in (one, other)]
        group = upstream(*options)
        leases = [each.lease(quick()) for each in group.all]
        for each in group.all:
            with pytest.raises(QueueFull):
                each.lease(quick())
        for lease in leases:
            lease.end(False)
        group.close()


@pytest.mark.parametrize("max_idle", [0, 1, 2])
def test_idle_connections(max_idle):
    with scripted(silent) as script:
        group = upstream(ServerOptions(script.url), max_idle=max_idle)
        (only,) = group.all
        for lease in [only.lease(quick()) for _ in range(3)]:
            lease.end(True)
        assert only.status("").idle == max_idle
        group.drop_idle()
        assert only.status("").idle == 0
        only.lease(quick()).end(True)
        assert only.status("").idle == min(max_idle, 1), "it goes on"
        group.close()


def test_idle_connections_grow_old():
    with scripted(silent) as script:
        group = upstream(ServerOptions(script.url), idle_timeout=0.01)
        group.all[0].lease(quick()).end(True)
        wait_until(lambda: not group.all[0].status("").idle)
        group.close()


def test_close():
    with scripted(silent) as script:
        group = upstream(ServerOptions(script.url, max_connections=1))
        (only,) = group.all
        lent = only.lease(quick())
        waiter = gevent.spawn(only.lease, quick())
        wait_until(lambda: only.status("").waiting)
        group.close()
        with pytest.raises(ConnectionClosed):
            waiter.get()
        with pytest.raises(ConnectionClosed):
            only.lease(quick())
        lent.end(True)
        assert only.status("").idle == 0
