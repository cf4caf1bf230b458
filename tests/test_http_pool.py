"""The pool's decisions, without clock or socket; where URLs lead; the deadlines."""

from __future__ import annotations

from collections import deque
from math import inf
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from greensock.http import BodyTimeout, HeadTimeout, PoolStatistics, Timeouts, TotalTimeout
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.origin import Origin, origin_at, parse_url
from greensock.pool_state import Action, PoolState


def pool(**options):
    return PoolState(**{"max_connections": 2, "max_idle": 2, "max_waiting": 2, "idle_timeout": 10.0, **options})


def test_connect_reuse_wait_refuse():
    mine = pool()
    assert mine.ask("o", "a", 0).action is Action.CONNECT
    assert mine.ask("o", "b", 0).action is Action.CONNECT
    assert mine.ask("o", "c", 0).action is Action.WAIT
    assert mine.ask("o", "d", 0).action is Action.WAIT
    assert mine.ask("o", "e", 0).action is Action.REFUSE
    assert mine.ask("other", "f", 0).action is Action.CONNECT
    assert mine.statistics("o") == PoolStatistics(used=2, idle=0, waiting=2)
    assert mine.statistics() == PoolStatistics(used=3, idle=0, waiting=2)
    assert mine.statistics("unknown") == PoolStatistics(0, 0, 0)


def test_who_waits_longest_gets_the_connection_that_comes_back():
    mine = pool(max_connections=1)
    mine.ask("o", "a", 0)
    mine.ask("o", "b", 0)
    mine.ask("o", "c", 0)
    ((granted,), closed) = (mine.give_back("o", 7, 1).wake, [])
    assert (granted.waiter, granted.connection) == ("b", 7)
    (granted,) = mine.give_back("o", None, 1).wake
    assert (granted.waiter, granted.connection) == ("c", None)
    assert closed == []
    assert mine.give_back("o", 8, 1).wake == []
    assert mine.statistics("o") == PoolStatistics(used=0, idle=1, waiting=0)


def test_nobody_overtakes_who_waits():
    mine = pool(max_connections=1)
    mine.ask("o", "a", 0)
    mine.ask("o", "b", 0)
    mine.give_back("o", 1, 0)
    assert mine.ask("o", "late", 0).action is Action.WAIT
    assert mine.statistics("o").used == 1


def test_last_in_first_out():
    mine = pool(max_connections=3, max_idle=3)
    for name in "abc":
        mine.ask("o", name, 0)
    for number in 1, 2, 3:
        mine.give_back("o", number, number)
    assert [mine.ask("o", "x", 4).connection for _ in range(3)] == [3, 2, 1]
    assert mine.ask("o", "x", 4).action is Action.WAIT


@pytest.mark.parametrize(
    ("age", "requests", "spent"),
    [(0, 0, False), (59.9, 9, False), (60, 1, True), (61, 1, True), (0, 10, True), (0, 11, True)],
)
def test_spent_by_age_or_by_requests(age, requests, spent):
    mine = pool(max_age=60.0, max_requests=10)
    assert mine.is_spent(100.0, requests, 100.0 + age) is spent
    mine.ask("o", "a", 100.0)
    assert mine.put("o", 1, 100.0 + age, 100.0, requests) is not spent
    assert not pool().is_spent(100.0, requests, 100.0 + age)


@pytest.mark.parametrize(
    ("idle", "age", "after"), [(10.0, 60.0, 10.0), (10.0, 3.0, 3.0), (None, 3.0, 3.0), (None, None, None)]
)
def test_none_waits_longer_than_it_may_live(idle, age, after):
    mine = pool(idle_timeout=idle, max_age=age)
    mine.ask("o", "a", 0)
    mine.give_back("o", 1, 100)
    assert mine.next_expiry() == (None if after is None else 100 + after)


def test_the_one_that_is_idle_the_longest():
    mine = pool(max_connections=3, max_idle=3)
    assert (mine.drop_oldest(), mine.idle_since()) == (None, None)
    for origin in "one", "other":
        mine.ask(origin, "a", 0)
    mine.give_back("other", 1, 5)
    mine.give_back("one", 2, 6)
    assert (mine.idle_since(), mine.drop_oldest()) == (5, 1)
    assert (mine.idle_since(), mine.drop_oldest(), mine.origins) == (6, 2, 0)


def test_in_place_of_a_stale_one_comes_the_newest_and_what_is_too_old_goes():
    mine = pool(max_connections=4, max_idle=4)
    for name in "abcd":
        mine.ask("o", name, 0)
    for number, now in ((1, 0), (2, 11), (3, 12)):
        mine.give_back("o", number, now)
    decision = mine.replace("o", 15)  # the fourth request's was stale
    assert (decision.close, decision.action, decision.connection) == ([1], Action.REUSE, 3)
    assert mine.replace("o", 15).connection == 2
    assert mine.replace("o", 15).action is Action.CONNECT
    assert mine.slots == mine.statistics().used == 1


def test_slots_are_what_is_used_and_what_is_idle():
    mine = pool(max_connections=3, max_idle=3)
    for name in "abc":
        mine.ask("o", name, 0)
    mine.give_back("o", 1, 0)
    assert (mine.slots, mine.statistics().used, mine.statistics().idle) == (3, 2, 1)


def test_one_more_than_may_be_idle_in_all_is_not_put_back():
    mine = pool(max_connections=3, max_idle=3, max_idle_total=1)
    for origin in "one", "other":
        mine.ask(origin, "a", 0)
    assert mine.put("one", 1, 0)
    assert not mine.put("other", 2, 0)


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_idle_ones_are_bounded_and_the_oldest_goes(most):
    mine = pool(max_connections=9, max_idle=most)
    for _ in range(most + 1):
        mine.ask("o", "a", 0)
    for number in range(most):
        assert mine.give_back("o", number, number).close == []
    assert mine.give_back("o", most, most).close == [0]
    assert mine.statistics("o") == PoolStatistics(used=0, idle=most, waiting=0)


def test_idle_ones_of_all_origins_are_bounded():
    mine = pool(max_idle_total=2)
    for origin in "xyz":
        mine.ask(origin, "a", 0)
    assert mine.give_back("x", 1, 1).close == []
    assert mine.give_back("y", 2, 2).close == []
    assert mine.give_back("z", 3, 3).close == [1]
    assert mine.origins == 2


def test_idle_ones_grow_old():
    mine = pool()
    assert mine.next_expiry() is None
    mine.ask("o", "a", 0)
    mine.ask("o", "b", 0)
    mine.give_back("o", 1, 5)
    mine.give_back("o", 2, 6)
    assert mine.next_expiry() == 15
    assert mine.expire(14.9) == []
    assert mine.expire(15) == [1]
    assert mine.next_expiry() == 16
    decision = mine.ask("o", "c", 16)
    assert (decision.action, decision.close) == (Action.CONNECT, [2])
    assert mine.next_expiry() is None


def test_idle_ones_that_never_grow_old():
    mine = pool(idle_timeout=None)
    mine.ask("o", "a", 0)
    mine.give_back("o", 1, 0)
    assert mine.next_expiry() is None
    assert mine.expire(1e9) == []
    assert mine.drop_idle() == [1]
    assert mine.origins == 0


def test_a_stale_one_is_replaced_in_its_slot():
    mine = pool()
    mine.ask("o", "a", 0)
    mine.ask("o", "b", 0)
    mine.give_back("o", 1, 0)
    mine.give_back("o", 2, 0)
    assert mine.ask("o", "c", 0).connection == 2
    assert mine.replace("o", 0).connection == 1
    assert mine.replace("o", 0).action is Action.CONNECT
    assert mine.statistics("o") == PoolStatistics(used=1, idle=0, waiting=0)


def test_taking_and_putting_back_without_a_decision():
    mine = pool(max_connections=3, max_idle=2, max_idle_total=3)
    assert mine.take("o") is None
    for name in "abc":
        mine.ask("o", name, 0)
    assert mine.take("o") is None
    assert mine.put("o", 1, 5)
    assert mine.put("o", 2, 6)
    assert not mine.put("o", 3, 7), "max_idle"
    assert mine.statistics("o") == PoolStatistics(used=1, idle=2, waiting=0)
    assert mine.take("o") == 2
    assert mine.statistics("o") == PoolStatistics(used=2, idle=1, waiting=0)
    assert (mine.next_expiry(), mine.drop_oldest(), mine.drop_oldest()) == (15, 1, None)
    mine.ask("o", "d", 7)
    mine.ask("o", "e", 7)
    assert not mine.put("o", 2, 8), "one waits for it"
    assert mine.statistics("o") == PoolStatistics(used=3, idle=0, waiting=1)
    assert mine.give_back("o", 2, 8).wake[0].waiter == "e"


def test_leaving_the_queue():
    mine = pool(max_connections=1)
    mine.ask("o", "a", 0)
    mine.ask("o", "b", 0)
    mine.ask("o", "c", 0)
    assert mine.leave("o", "b")
    assert not mine.leave("o", "b")
    assert mine.give_back("o", None, 0).wake[0].waiter == "c"
    assert not mine.leave("o", "c"), "it was granted: it must give back"
    mine.give_back("o", None, 0)
    assert not mine.leave("o", "c")
    assert mine.origins == 0


def test_all_who_wait_are_sent_away():
    mine = pool(max_connections=1)
    for name in "abc":
        mine.ask("o", name, 0)
    assert mine.drop_waiters() == ["b", "c"]
    assert mine.give_back("o", 1, 0).wake == []


def test_what_was_asked_for_before_a_fork_is_closed():
    mine = pool()
    mine.ask("o", "a", 0)
    mine.ask("o", "b", 0)
    mine.give_back("o", 2, 0)
    mine.reset()
    assert (mine.next_expiry(), mine.drop_oldest()) == (None, None), "the idle ones are the parent's"
    assert not mine.put("o", 1, 0)
    assert mine.give_back("o", 1, 0).close == [1]
    assert mine.give_back("o", None, 0).close == []
    assert mine.origins == 0


class Machine(RuleBasedStateMachine):
    """Requests come, go and give up in any order; a model says who waits, and who may have what."""

    held = Bundle("held")

    @initialize(
        most=st.integers(1, 4),
        idle=st.integers(0, 4),
        total=st.integers(0, 5),
        waiting=st.integers(0, 4),
        timeout=st.none() | st.integers(1, 5),
    )
    def begin(self, most, idle, total, waiting, timeout):
        self.limits = most, idle, total, waiting
        self.timeout = timeout
        self.pool = PoolState(
            max_connections=most, max_idle=idle, max_idle_total=total, max_waiting=waiting, idle_timeout=timeout
        )
        self.now = 0.0
        self.serial = 0
        self.open: set[int] = set()  # connections that were made and not closed
        self.users: list[tuple[str, int]] = []  # origin and connection
        self.queues: dict[str, deque[int]] = {origin: deque() for origin in "xy"}

    def new(self):
        self.serial += 1
        return self.serial

    def use(self, origin, connection):
        if connection is None:
            connection = self.new()
            self.open.add(connection)
        assert connection in self.open
        assert connection not in [used for _, used in self.users], "lent twice"
        self.users.append((origin, connection))

    def close(self, connections):
        for connection in connections:
            assert connection not in [used for _, used in self.users], "closed while it is used"
            self.open.remove(connection)

    @rule(origin=st.sampled_from("xy"), quick=st.booleans())
    def ask(self, origin, quick):
        if quick:
            there = self.pool.statistics(origin).idle > 0
            taken = self.pool.take(origin)
            assert (taken is not None) is there
            if taken is not None:
                self.use(origin, taken)
                return
        waiter = self.new()
        mine = [user for user in self.users if user[0] == origin]
        decision = self.pool.ask(origin, waiter, self.now)
        self.close(decision.close)
        assert not decision.wake
        if decision.action in (Action.REUSE, Action.CONNECT):
            assert not self.queues[origin], "somebody was overtaken"
            assert (decision.connection is not None) is (decision.action is Action.REUSE)
            self.use(origin, decision.connection)
        else:
            assert len(mine) == self.limits[0], "waits although there is room"
            if decision.action is Action.WAIT:
                self.queues[origin].append(waiter)
            else:
                assert len(self.queues[origin]) == self.limits[3]

    @rule(data=st.data(), whole=st.booleans(), quick=st.booleans())
    def give_back(self, data, whole, quick):
        if not self.users:
            return
        origin, connection = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
        if whole and quick:
            _, idle, total, _ = self.limits
            room = self.pool.statistics(origin).idle < idle and self.pool.statistics().idle < total
            put = self.pool.put(origin, connection, self.now)
            assert put is (room and not self.queues[origin])
            if put:
                return
        if not whole:
            self.open.remove(connection)
        decision = self.pool.give_back(origin, connection if whole else None, self.now)
        for grant in decision.wake:
            assert grant.waiter == self.queues[origin].popleft(), "not in the order they came"
            self.use(origin, grant.connection)
        self.close(decision.close)
        assert bool(decision.wake) or not self.queues[origin]

    @rule(data=st.data())
    def replace(self, data):
        if not self.users:
            return
        origin, connection = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
        self.open.remove(connection)
        decision = self.pool.replace(origin, self.now)
        self.close(decision.close)
        self.use(origin, decision.connection)

    @rule(origin=st.sampled_from("xy"), data=st.data())
    def leave(self, origin, data):
        queue = self.queues[origin]
        if queue:
            waiter = data.draw(st.sampled_from(list(queue)))
            queue.remove(waiter)
            assert self.pool.leave(origin, waiter)
        assert not self.pool.leave(origin, -1)

    @rule(seconds=st.integers(0, 3))
    def pass_time(self, seconds):
        self.now += seconds
        self.close(self.pool.expire(self.now))
        due = self.pool.next_expiry()
        assert due is None or self.now < due <= self.now + self.timeout

    @rule()
    def drop(self):
        self.close(self.pool.drop_idle())

    @invariant()
    def limits_hold(self):
        most, idle, total, waiting = self.limits
        for origin in "xy":
            told = self.pool.statistics(origin)
            assert told.used == len([user for user in self.users if user[0] == origin])
            assert told.used + told.idle <= most
            assert told.idle <= idle
            assert told.waiting == len(self.queues[origin]) <= waiting
            assert not told.waiting or (told.used == most and not told.idle)
        told = self.pool.statistics()
        assert told.idle <= total
        assert told.used + told.idle == self.pool.slots == len(self.open), (
            "a connection was lost, or one is kept that was closed"
        )
        assert self.pool.origins == len({origin for origin in "xy" if any(self.told(origin))})

    def told(self, origin):
        told = self.pool.statistics(origin)
        return told.used, told.idle, told.waiting


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


# -- where URLs lead


@pytest.mark.parametrize(
    ("url", "address", "target", "authority"),
    [
        ("http://a", ("a", 80), b"/", b"a"),
        ("HTTP://A.Example:80/x", ("a.example", 80), b"/x", b"a.example"),
        ("http://a:8080/x?y=z#part", ("a", 8080), b"/x?y=z", b"a:8080"),
        ("http://a?y", ("a", 80), b"/?y", b"a"),
        ("http://a#part", ("a", 80), b"/", b"a"),
        ("http://a:/", ("a", 80), b"/", b"a"),
        ("http://[::1]:8080/", ("::1", 8080), b"/", b"[::1]:8080"),
        ("http://[::1]/", ("::1", 80), b"/", b"[::1]"),
        ("http://a//x/../y/%2e%zz", ("a", 80), b"//x/../y/%2e%zz", b"a"),
        ("http://a/b\u00fccher?q=\u20ac", ("a", 80), b"/b%C3%BCcher?q=%E2%82%AC", b"a"),
        ("http://b\u00fccher.example/", ("xn--bcher-kva.example", 80), b"/", b"xn--bcher-kva.example"),
        ("http+unix://%2Frun%2Fx.sock/y?z", "/run/x.sock", b"/y?z", b"localhost"),
    ],
)
def test_urls(url, address, target, authority):
    found = parse_url(url)
    assert found.origin.address == address
    assert (found.target, found.authority) == (target, authority)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a",
        "/x",
        "//a/x",
        "http:/a",
        "http://",
        "http:///x",
        "http://:80/",
        "http://a:0/",
        "http://a:65536/",
        "http://a:x/",
        "http://a b/",
        "http://a/b c",
        "http://a/\r\nX: y",
        "http://a/\0",
        "http://a\r\n/",
        "http://user:secret@a/",
        "http://[::1/",
        "http://::1/",
        "http://a,b/",
        "http://" + "\u00fc" * 64 + "/",
        "http+unix:///x",
        "ftp://a/",
        "wss://a/",
    ],
)
def test_what_is_no_url(url):
    with pytest.raises(ValueError, match="url="):
        parse_url(url)


def test_https_has_a_port_and_a_name_of_its_own():
    found = parse_url("https://a/")
    assert (found.origin, found.authority, found.origin.name) == (Origin("https", ("a", 443)), b"a", "a")
    assert parse_url("https://a:80/").authority == b"a:80"
    assert parse_url("https+unix://%2Frun%2Fa/").origin == Origin("https", "/run/a")
    assert parse_url("http://a:443/").origin != parse_url("https://a/").origin


@given(st.text())
def test_any_text_is_a_url_or_refused(text):
    for url in text, f"http://{text}", f"http://a/{text}":
        try:
            found = parse_url(url)
        except ValueError:
            continue
        assert not set(found.target + found.authority) & set(b" \r\n\t\0#")
        assert found.target.startswith(b"/")


def test_origins_are_told_apart_and_written():
    assert str(Origin("http", ("::1", 80))) == "[::1]:80"
    assert str(Origin("http", ("a", 80))) == "a:80"
    assert str(origin_at("/x")) == "/x"
    assert origin_at(("a", 80)) == parse_url("http://a/").origin != parse_url("http://a:81/").origin


@pytest.mark.parametrize("name", ["queue", "connect", "send", "head", "body", "total", "expect"])
@pytest.mark.parametrize("value", [0, -1, "1", True, float("inf"), float("nan")])
def test_timeouts_are_seconds(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Timeouts(**{name: value})
    Timeouts(**{name: None})


def test_no_time_is_left():
    """Whoever always has something to say must not be waited for at all then: the wait would succeed."""
    deadlines = Deadlines(Timeouts(), None)
    assert deadlines.due(None) == inf
    assert deadlines.left(inf, HeadTimeout, None) is None
    assert 4 < deadlines.left(deadlines.due(5), HeadTimeout, 5) <= 5
    with pytest.raises(BodyTimeout) as caught:
        deadlines.left(monotonic(), BodyTimeout, 5)
    assert caught.value.seconds == 5


def test_the_error_says_which_time_was_over():
    deadlines = Deadlines(Timeouts(total=60), 1e-9)
    assert deadlines.due(5) == deadlines.due(None) == deadlines.total_due
    with pytest.raises(TotalTimeout) as caught:
        deadlines.left(deadlines.due(5), BodyTimeout, 5)
    assert caught.value.seconds == 1e-9
    late = Deadlines(Timeouts(total=60), None).late(HeadTimeout, 5)
    assert (type(late), late.seconds) == (HeadTimeout, 5)
