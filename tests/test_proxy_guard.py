"""Limits for each client address, and bans."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.proxy import Guard, GuardOptions, GuardStatistics
from greensock.proxy.guard import LOOKED_AT, MAX_HOST, MAX_USED, SharedBlocks, table_of
from greensock.shared_pages import SharedPages

ONE, OTHER = "192.0.2.1", "192.0.2.2"
NOW = 1_000_000.0


def guard(**options) -> Guard:
    return Guard(GuardOptions(**options))


def ask(guard: Guard, now: float = NOW, client: str = ONE, method: str = "GET", host: bytes = b"example.org"):
    """Return None, or the reason, the status and the seconds."""
    refusal = guard.request(client, now, method, host)
    return refusal and (refusal.reason, refusal.status, refusal.retry_after)


def join(guard: Guard, now: float = NOW, client: str = ONE):
    refusal = guard.connection(client, now)
    return refusal and (refusal.reason, refusal.status, refusal.retry_after)


# -- options


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("request_rate", [0, -1, True, inf, nan, "5"]),
        ("request_burst", [0, -1, None, 1.5, True]),
        ("connection_rate", [0, "x"]),
        ("connection_burst", [0, None]),
        ("max_connections", [0, -1, 1.0]),
        ("methods", [{"GET"}, ("GET",), frozenset(), frozenset({"A B"}), frozenset({1}), frozenset({"É"}), "GET"]),
        ("hosts", [(), [], "example.org", ("",), ("*.",), ("*",), ("a:80",), ("a b",), ("a.*",), (1,), ("é",)]),
        ("ban_errors", [0, -1, 1.5]),
        ("ban_statuses", [{400}, frozenset({99}), frozenset({1000}), frozenset({"400"}), None]),
        ("ban_window", [0, None, inf]),
        ("ban_time", [0, -1]),
        ("exempt", ["unix", ["unix"], ("x",)]),
        ("allow", ["unix", ("x",)]),
        ("deny", [["10.0.0.0/8"], ("10.0.0.1/8",)]),
        ("allow_file", ["", 5]),
        ("deny_file", ["a\0b"]),
        ("storage", ["http://a", "redis://", "redis://a:x", "unix:", 5, ""]),
        ("max_clients", [0, None]),
        ("ipv6_prefix", [0, 129, None]),
    ],
)
def test_options_are_checked(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}=.* expected$"):
            GuardOptions(**{name: value})


def test_options_at_their_limits():
    statuses = frozenset({100, 999})
    assert GuardOptions(ban_statuses=statuses, ipv6_prefix=1, max_clients=1).ban_statuses == statuses
    assert GuardOptions(ban_statuses=frozenset(), ipv6_prefix=128).ipv6_prefix == 128


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 414, 421, 431])
def test_what_is_held_against_a_client(status):
    found = guard(ban_errors=1)
    found.answered(ONE, NOW, status)
    assert found.is_banned(ONE, NOW)


def test_without_limits_all_is_taken_and_nothing_kept():
    found = guard()
    for _ in range(1000):
        assert join(found) is ask(found, host=b"\xff") is None
        found.answered(ONE, NOW, 404)
    found.closed(ONE)
    assert not found.is_banned(ONE, NOW)
    assert found.statistics(NOW) == GuardStatistics(0, 0, 0, {})


# -- rates


@pytest.mark.parametrize("burst", [1, 2, 50])
@pytest.mark.parametrize("rate", [0.01, 1, 3, 7.7, 1000])
@pytest.mark.parametrize("start", [0.0, 0.3, 1e7 + 0.1])
@pytest.mark.parametrize("call", [ask, join])
def test_burst_and_rate(call, burst, rate, start):
    kind = "request" if call is ask else "connection"
    found = guard(**{f"{kind}_rate": rate, f"{kind}_burst": burst})
    assert [call(found, start) for _ in range(burst)] == [None] * burst
    reason, status, seconds = call(found, start)
    assert (reason, status) == (f"{kind}-rate", 429)
    assert seconds >= 1
    assert seconds - 1 <= 1 / rate <= seconds + 0.1
    assert call(found, start, OTHER) is None, "others have limits of their own"
    # A refusal costs nothing: one interval later there is room for one, and not for two.
    later = start + 1.001 / rate
    assert call(found, later) is None
    assert call(found, later) is not None
    # After a long time the burst is whole again, and no larger.
    much_later = start + (burst + 5) / rate
    assert [call(found, much_later) for _ in range(burst)] == [None] * burst
    assert call(found, much_later) is not None
    assert found.statistics(much_later).refused == {f"{kind}-rate": 3}


def test_who_waits_as_long_as_told_is_taken():
    found = guard(request_rate=0.25, request_burst=3)
    for _ in range(3):
        assert ask(found) is None
    _, _, seconds = ask(found, NOW + 0.5)
    assert seconds == 4
    assert ask(found, NOW + 0.5 + seconds) is None


@given(
    st.floats(0.1, 1000),
    st.integers(1, 20),
    st.lists(st.floats(0, 3), max_size=60),
)
def test_never_more_than_burst_and_rate(rate, burst, pauses):
    found, now, taken = guard(request_rate=rate, request_burst=burst), 0.0, []
    for pause in pauses:
        now += pause / rate
        if ask(found, now) is None:
            taken.append(now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - start) * rate + 0.1


# -- connections at a time


@pytest.mark.parametrize("most", [1, 2, 7])
def test_connections_at_a_time(most):
    found = guard(max_connections=most)
    for _ in range(3):
        assert [join(found) for _ in range(most)] == [None] * most
        assert join(found) == ("client-connections", 429, 1)
        assert join(found, client=OTHER) is None
        found.closed(OTHER)
        for _ in range(most):
            found.closed(ONE)
    found.closed(ONE)  # once too often
    found.closed("192.0.2.99")
    assert [join(found) for _ in range(most)] == [None] * most
    assert join(found) is not None


def test_a_refused_connection_is_not_counted():
    found = guard(max_connections=2, connection_rate=1, connection_burst=1)
    assert join(found, NOW) is None
    assert join(found, NOW) == ("connection-rate", 429, 1)
    assert join(found, NOW + 1) is None
    # Nor does one too many spend what the rate allows.
    assert join(found, NOW + 5) == ("client-connections", 429, 1)
    found.closed(ONE)
    assert join(found, NOW + 5) is None


# -- methods and hosts


def test_methods():
    found = guard(methods=frozenset({"POST", "GET"}))
    assert ask(found) is ask(found, method="POST") is None
    refusal = found.request(ONE, NOW, "DELETE", b"a")
    assert (refusal.status, refusal.reason, refusal.allow, refusal.retry_after) == (405, "method", "GET, POST", None)
    assert ask(found, method="get") == ("method", 405, None)
    assert repr(refusal) == "<Refusal 405 method>"


@pytest.mark.parametrize(
    ("hosts", "host", "is_served"),
    [
        (("example.org",), b"example.org", True),
        (("example.org",), b"EXAMPLE.org:8080", True),
        (("Example.org",), b"example.org.", True),
        (("example.org.",), b"example.org", True),
        (("example.org",), b"www.example.org", False),
        (("example.org",), b"example.org..", False),
        (("example.org",), b"notexample.org", False),
        (("example.org",), b"example.org.evil", False),
        (("example.org",), b"example.org:80:80", False),
        (("example.org",), b"", False),
        (("example.org",), b"\xff", False),
        (("*.example.org",), b"a.example.org", True),
        (("*.example.org",), b"b.A.example.org:1", True),
        (("*.example.org",), b"example.org", False),
        (("*.example.org",), b"aexample.org", False),
        (("*.example.org",), b"*.example.org", False),
        (("a", "[::1]", "127.0.0.1"), b"[::1]:80", True),
        (("a", "[::1]", "127.0.0.1"), b"127.0.0.1", True),
        (("a", "[::1]", "127.0.0.1"), b"127.0.0.2", False),
        (("a" * MAX_HOST,), b"a" * MAX_HOST, True),
        (("a" * (MAX_HOST + 1),), b"a" * (MAX_HOST + 1), False),
    ],
)
def test_hosts(hosts, host, is_served):
    for _ in range(2):
        assert ask(guard(hosts=hosts), host=host) == (None if is_served else ("host", 421, None))


@given(st.binary(max_size=300))
def test_any_host_may_come(host):
    assert ask(guard(hosts=("*.example.org", "a")), host=host) in (None, ("host", 421, None))


# -- bans


@pytest.mark.parametrize("errors", [1, 2, 10])
def test_ban(errors):
    found = guard(ban_errors=errors, ban_window=10, ban_time=30)
    for number in range(errors):
        assert not found.is_banned(ONE, NOW)
        assert ask(found) is join(found) is None
        for status in (200, 304, 429, 500, 503):
            found.answered(ONE, NOW, status)
        found.answered(ONE, NOW + (9.9 if number else 0), 404)
    end = NOW + (39.9 if errors > 1 else 30)
    assert found.is_banned(ONE, NOW)
    assert not found.is_banned(OTHER, NOW)
    assert ask(found, end - 2.5) == join(found, end - 2.5) == ("banned", 429, 3)
    assert ask(found, client=OTHER) is None
    found.answered(ONE, end - 1, 404)  # which is not held against it once more
    assert ask(found, end) is join(found, end) is None
    assert not found.is_banned(ONE, end)
    assert found.statistics(end).bans == 1
    for _ in range(errors):
        assert not found.is_banned(ONE, end)
        found.answered(ONE, end, 404)
    assert found.is_banned(ONE, end)


def test_errors_are_forgotten_when_their_time_is_over():
    found = guard(ban_errors=2, ban_window=10)
    for number in range(5):
        found.answered(ONE, NOW + 10 * number, 404)
    assert not found.is_banned(ONE, NOW + 40)
    found.answered(ONE, NOW + 49.9, 404)
    assert found.is_banned(ONE, NOW + 49.9)


def test_which_statuses_count():
    found = guard(ban_errors=1, ban_statuses=frozenset({418}))
    found.answered(ONE, NOW, 404)
    assert not found.is_banned(ONE, NOW)
    found.answered(ONE, NOW, 418)
    assert found.is_banned(ONE, NOW)


# -- who a client is


@pytest.mark.parametrize(
    ("options", "first", "second", "is_same"),
    [
        ({}, "192.0.2.1", "192.0.2.2", False),
        ({}, "192.0.2.1", "::ffff:192.0.2.1", True),
        ({}, "2001:db8::1", "2001:db8::ffff:1", True),
        ({}, "2001:db8::1", "2001:db8:0:1::1", False),
        ({"ipv6_prefix": 48}, "2001:db8::1", "2001:db8:0:1::1", True),
        ({"ipv6_prefix": 128}, "2001:db8::1", "2001:db8::2", False),
    ],
)
def test_who_is_the_same_client(options, first, second, is_same):
    found = guard(request_rate=1, request_burst=1, max_connections=1, **options)
    assert ask(found, client=first) is join(found, client=first) is None
    assert (ask(found, client=second) is not None) == (join(found, client=second) is not None) == is_same
    assert found.statistics(NOW).clients == 2 - is_same


@pytest.mark.parametrize("client", ["", "/run/x.sock", "10.1.2.3", "2001:db8::7"])
def test_who_has_no_limits(client):
    found = guard(
        request_rate=1,
        request_burst=1,
        connection_rate=1,
        connection_burst=1,
        max_connections=1,
        ban_errors=1,
        exempt=("10.0.0.0/8", "2001:db8::7"),
        methods=frozenset({"GET"}),
    )
    for _ in range(3):
        assert ask(found, client=client) is join(found, client=client) is None
        found.answered(client, NOW, 404)
    assert ask(found, client=client, method="PUT") is not None
    assert not found.is_banned(client, NOW)
    found.closed(client)
    assert found.statistics(NOW).clients == 0


# -- the table


@pytest.mark.parametrize("most", [1, 2, LOOKED_AT, LOOKED_AT + 1, 100])
def test_the_table_is_bounded(most):
    found = guard(request_rate=1, max_connections=1, ban_errors=1, max_clients=most)
    for number in range(3 * most):
        client = f"10.0.{number // 250}.{number % 250}"
        assert ask(found, client=client) is join(found, client=client) is None
        found.answered(client, NOW, 404)
        assert found.statistics(NOW).clients == min(number + 1, most)
    assert found.statistics(NOW).forgotten == 2 * most


def test_those_whose_time_is_over_are_not_counted():
    found = guard(request_rate=1, request_burst=1, ban_errors=1, max_connections=1)
    for number in range(100):
        assert ask(found, NOW, f"10.0.0.{number}") is None
    found.answered("10.0.0.1", NOW, 404)
    assert join(found, NOW, "10.0.0.2") is None
    assert found.statistics(NOW).clients == 100
    assert found.statistics(NOW + 1).clients == 2, "a ban, and a connection"
    found.closed("10.0.0.2")
    assert found.statistics(NOW + 1).clients == 1
    assert found.statistics(NOW + 1000) == GuardStatistics(0, 1, 0, {})


def test_those_whose_time_is_over_make_room_for_others():
    """The table is hardly larger than what there is to be known, and nobody is forgotten."""
    found = guard(request_rate=1, request_burst=1, max_clients=60)
    for number in range(2000):
        assert ask(found, NOW + number / 50, f"10.{number // 250}.0.{number % 250}") is None
    assert found.statistics(NOW + 40).forgotten == 0, "50 come in the second for which each must be known"


def test_what_is_worth_least_is_forgotten_first():
    found = guard(request_rate=1, request_burst=1, max_connections=1, ban_errors=1, max_clients=4)
    assert ask(found, NOW, "10.0.0.1") is None  # nothing to be known of it from NOW + 1 on
    found.answered("10.0.0.2", NOW, 404)
    assert join(found, NOW, "10.0.0.3") is None
    assert ask(found, NOW + 1, "10.0.0.4") is None
    assert ask(found, NOW + 1, "10.0.0.5") is None  # in the place of 1
    assert found.statistics(NOW + 1).forgotten == 0
    assert ask(found, NOW + 1, "10.0.0.6") is None  # of 4
    assert ask(found, NOW + 1, "10.0.0.4") is None  # of 5
    assert found.statistics(NOW + 1).forgotten == 2
    found.answered("10.0.0.4", NOW + 1, 404)
    found.answered("10.0.0.6", NOW + 1, 404)
    assert ask(found, NOW + 1, "10.0.0.7") is None  # of the first ban
    assert found.statistics(NOW + 1).forgotten == 3
    assert not found.is_banned("10.0.0.2", NOW + 1)
    assert found.is_banned("10.0.0.4", NOW + 1)
    assert found.is_banned("10.0.0.6", NOW + 1)
    assert join(found, NOW + 1, "10.0.0.3") == ("client-connections", 429, 1)


def test_all_are_looked_at_in_turn():
    """Some that must be kept at the front do not hide an idle one behind them."""
    found = guard(request_rate=1, ban_errors=1, max_clients=3 * LOOKED_AT)
    for number in range(2 * LOOKED_AT):
        found.answered(f"10.0.0.{number}", NOW, 404)
    for number in range(LOOKED_AT):
        assert ask(found, NOW, f"10.0.1.{number}") is None
    assert ask(found, NOW + 10, "10.0.2.0") is None
    assert found.statistics(NOW).forgotten <= 1
    assert ask(found, NOW + 10, "10.0.2.1") is None
    assert ask(found, NOW + 10, "10.0.2.2") is None
    assert found.statistics(NOW).forgotten <= 2


# -- who may come, and what is shared


@pytest.mark.parametrize(
    ("options", "client", "is_denied"),
    [
        ({"deny": ("192.0.2.0/24",)}, ONE, True),
        ({"deny": ("192.0.2.0/24",)}, "198.51.100.1", False),
        ({"deny": ("192.0.2.0/24",), "allow": (ONE,)}, ONE, False),
        ({"deny": ("192.0.2.0/24",), "allow": (ONE,)}, OTHER, True),
        ({"deny": ("0.0.0.0/0", "::/0", "unix"), "allow": ("2001:db8::/32",)}, "2001:db8::1", False),
        ({"deny": ("0.0.0.0/0", "::/0", "unix"), "allow": ("2001:db8::/32",)}, "::1", True),
        ({"deny": ("0.0.0.0/0", "::/0", "unix")}, "", True),
        ({"allow": (ONE,)}, OTHER, False),
    ],
)
def test_who_may_come(options, client, is_denied):
    found = guard(**options)
    for _ in range(2):
        assert join(found, client=client) == ask(found, client=client) == (("denied", 403, None) if is_denied else None)


def test_what_is_known_is_shared():
    """Two workers of one proxy, and a third that is made later; then the first is killed."""
    pages = SharedPages(8)
    options = GuardOptions(request_rate=1, request_burst=3, max_connections=2, max_uploads=1, ban_errors=3)
    workers = [Guard(options, "", SharedBlocks(pages.block, 8, slot)) for slot in range(3)]
    one, other, third = workers
    assert [ask(each) for each in workers] == [None] * 3
    assert [ask(each)[0] for each in workers] == ["request-rate"] * 3
    assert ask(other, client=OTHER) is None
    assert join(one) is join(other) is None
    assert [join(each)[0] for each in workers] == ["client-connections"] * 3
    assert one.upload(ONE, NOW) is None
    assert third.upload(ONE, NOW).reason == "client-uploads"
    table_of(options, "", SharedBlocks(pages.block, 8, -1)).clear_column(0)  # the master, when the first is gone
    assert join(third) is third.upload(ONE, NOW) is None
    assert join(other)[0] == "client-connections"
    other.closed(ONE)
    assert join(third) is None
    for each in workers:
        each.answered(OTHER, NOW, 404)
    assert [each.is_banned(OTHER, NOW) for each in workers] == [True] * 3
    assert [ask(each, client=OTHER)[0] for each in workers] == ["banned"] * 3
    # With other options it begins anew, and so it does for another route.
    assert ask(Guard(GuardOptions(request_rate=2), "", SharedBlocks(pages.block, 8))) is None
    assert ask(Guard(options, "other", SharedBlocks(pages.block, 8))) is None


def test_what_was_used_is_told_once_and_what_is_heard_is_kept():
    here, there = (guard(request_rate=1, request_burst=4, connection_rate=1) for _ in range(2))
    for each in (here, there):
        assert each.take_used() == []
        each.share_used()
    assert ask(here) is ask(here) is join(here) is ask(here, client=OTHER) is None
    used = {each.key: each for each in here.take_used()}
    assert {key: each.count for key, each in used.items()} == {
        f"request::{ONE}": 2,
        f"connection::{ONE}": 1,
        f"request::{OTHER}": 1,
    }
    assert here.take_used() == []
    used[f"request::{ONE}"].raise_to(3.5, NOW)  # others had some, too
    assert ask(here)[0] == "request-rate"
    assert ask(here, client=OTHER) is None
    assert ask(here, NOW + 1) is None
    # Refused ones cost nothing, and what too many clients use is not noted.
    assert {each.key: each.count for each in here.take_used()} == {f"request::{ONE}": 1, f"request::{OTHER}": 1}
    for number in range(MAX_USED + 10):
        assert ask(there, client=f"10.0.{number // 250}.{number % 250}") is None
    assert len(there.take_used()) == MAX_USED
