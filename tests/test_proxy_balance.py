"""Which server a request goes to, without servers."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.proxy.upstream.balance import BALANCERS, RoundRobin, TwoChoices, balancer_of

NAMES = list(BALANCERS)
#: Where some keys go, and a number that is drawn: what a release must not change.
EVERYWHERE = [1, 1, 2, 2, 0, 0, 2, 1, 0, 2, 2, 1]
UNIFORM = 0.12298195856756033


@dataclass(eq=False)
class FakeServer:
    index: int
    weight: int = 1
    used: int = 0
    is_up: bool = True
    is_full: bool = False
    is_ejected: bool = False
    part: float = 1.0
    prefix: str = "http://10.0.0."

    @property
    def name(self):
        return f"{self.prefix}{self.index}:80"

    def share(self, now):
        return self.part

    def __repr__(self):
        return "abcdefghijklmnopqrstuvwxyz"[self.index]


def group(*weights):
    return [FakeServer(index, weight) for index, weight in enumerate(weights)]


def balancer(name, seed=1, **options):
    return balancer_of(name, random.Random(seed).random, **options)


def keys(count):
    return [b"key %d" % number for number in range(count)]


# -- who may be chosen: the same for all


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("up", "full", "ejected", "tried", "expected"),
    [
        # a, b are servers, c, d backups.
        ("", "", "", "", ""),
        ("a", "", "", "", "a"),
        ("ab", "", "", "", "ab"),
        ("abcd", "", "", "", "ab"),
        ("abcd", "a", "", "", "b"),
        ("abcd", "ab", "", "", "ab"),
        ("abcd", "", "", "a", "b"),
        ("abcd", "b", "", "a", "b"),
        ("abcd", "", "", "ab", "cd"),
        ("abcd", "c", "", "ab", "d"),
        ("abcd", "cd", "", "ab", "cd"),
        ("abcd", "", "", "abcd", "ab"),
        ("abcd", "a", "", "abcd", "b"),
        ("cd", "", "ab", "", "cd"),
        ("cd", "", "ab", "c", "d"),
        ("cd", "", "ab", "cd", "cd"),
        ("a", "", "bcd", "a", "a"),
        ("", "", "bcd", "", "bcd"),
        ("", "", "bcd", "bc", "d"),
        ("", "d", "bd", "b", "d"),
        ("", "b", "bd", "", "d"),
        ("", "", "bc", "bc", "bc"),
    ],
)
def test_who_may_be_chosen(name, up, full, ejected, tried, expected):
    servers = group(1, 2, 1, 3)
    for server in servers:
        letter = repr(server)
        server.is_up, server.is_full, server.is_ejected = letter in up, letter in full, letter in ejected
    tried = {server for server in servers if repr(server) in tried}
    mine = balancer(name)
    chosen = {mine.choose(servers[:2], key, 0.0, tried, servers[2:]) for key in keys(200)}
    assert "".join(sorted(map(repr, chosen - {None}))) == expected
    assert (None in chosen) == (not expected)


@pytest.mark.parametrize("name", NAMES)
def test_without_panic_the_ejected_are_left_alone(name):
    servers = group(1, 1)
    for server in servers:
        server.is_up, server.is_ejected = False, True
    assert balancer(name).choose(servers, b"", 0.0) in servers
    assert balancer(name, panic=False).choose(servers, b"", 0.0) is None
    assert balancer(name).choose([], b"", 0.0) is None


@pytest.mark.parametrize("name", NAMES)
def test_slow_start_counts_a_part_of_the_weight(name):
    servers = group(1, 1)
    servers[0].part = 0.25
    mine = balancer(name)
    counts = Counter(repr(mine.choose(servers, key, 0.0)) for key in keys(4000))
    assert counts["a"] == pytest.approx(800, rel=0.0 if name in ("round_robin", "least_connections") else 0.15)


@pytest.mark.parametrize("name", NAMES)
def test_a_balancer_changes_no_server(name):
    servers = group(3, 1)
    before = [vars(server).copy() for server in servers]
    balancer(name).choose(servers, None, 0.0)
    assert [vars(server) for server in servers] == before


def test_an_unknown_name():
    with pytest.raises(ValueError) as caught:
        balancer("best")
    assert str(caught.value) == "balance='best': one of round_robin, least_connections, two_choices, hash expected"


# -- round robin


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((5, 1, 1), "aabacaa"), ((1, 1, 1), "abc"), ((2, 1), "aba"), ((1,), "a"), ((3, 2), "ababa")],
)
def test_smooth_round_robin(weights, expected):
    servers, mine = group(*weights), balancer("round_robin")
    chosen = "".join(repr(mine.choose(servers, None, 0.0)) for _ in range(3 * len(expected)))
    assert chosen == 3 * expected


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 100))
def test_the_distribution_of_round_robin_is_exact(weights, skipped):
    servers, mine = group(*weights), balancer("round_robin")
    for _ in range(skipped):
        mine.choose(servers, None, 0.0)
    for _ in range(2):
        counts = Counter(mine.choose(servers, None, 0.0).index for _ in range(sum(weights)))
        assert [counts[place] for place in range(len(weights))] == weights


@given(
    st.lists(st.integers(1, 10), min_size=2, max_size=6),
    st.lists(st.sets(st.integers(0, 5), max_size=4), max_size=60),
)
def test_credits_stay_bounded_while_servers_come_and_go(weights, downs):
    servers, mine = group(*weights), balancer("round_robin")
    for down in downs:
        for server in servers:
            server.is_up = server.index not in down
        mine.choose(servers, None, 0.0)
        assert abs(sum(mine._credits)) < 1e-6
        assert all(abs(credit) <= sum(weights) * len(weights) for credit in mine._credits)
    for server in servers:
        server.is_up = True
    rounds = 50
    counts = Counter(mine.choose(servers, None, 0.0).index for _ in range(rounds * sum(weights)))
    for server in servers:
        assert abs(counts[server.index] - rounds * server.weight) <= len(weights) * sum(weights)


def test_round_robin_takes_no_key_and_no_chance():
    def never():
        raise AssertionError("no random number is needed")

    mine = RoundRobin(never)
    assert [mine.choose(group(1, 1), b"same", 0.0).index for _ in range(4)] == [0, 1, 0, 1]


# -- least connections


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 30)), min_size=1, max_size=8))
def test_least_connections_takes_the_least_for_its_weight(servers):
    servers = [FakeServer(index, weight, used) for index, (weight, used) in enumerate(servers)]
    chosen = balancer("least_connections").choose(servers, None, 0.0)
    assert chosen.used / chosen.weight == min(server.used / server.weight for server in servers)


def test_least_connections_goes_round_among_equals():
    servers, mine = group(2, 1), balancer("least_connections")
    assert "".join(repr(mine.choose(servers, None, 0.0)) for _ in range(6)) == "abaaba"


def test_least_connections_fills_by_weight():
    servers, mine = group(3, 1), balancer("least_connections")
    for _ in range(400):
        mine.choose(servers, None, 0.0).used += 1
    assert [server.used for server in servers] == [300, 100]


# -- two choices


@given(
    st.lists(st.tuples(st.integers(1, 10), st.integers(0, 30)), min_size=2, max_size=8),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
)
def test_two_choices_never_takes_the_busier_of_its_two(servers, numbers):
    servers = [FakeServer(index, weight, used) for index, (weight, used) in enumerate(servers)]
    drawn = []

    class Watched(TwoChoices):
        def _draw(self, weights):
            drawn.append(super()._draw(weights))
            return drawn[-1]

    mine = Watched(iter(numbers).__next__)
    chosen = mine.choose(servers, None, 0.0)
    one, other = drawn
    assert one != other
    assert chosen in (servers[one], servers[other])
    assert chosen.used / chosen.weight == min(servers[place].used / servers[place].weight for place in drawn)


def test_two_choices_draws_by_weight():
    servers, mine = group(1, 2, 5), balancer("two_choices")
    counts = Counter(mine.choose(servers, None, 0.0).index for _ in range(16_000))
    # All are idle, so that it is the first one drawn.
    assert [counts[place] for place in range(3)] == pytest.approx([2000, 4000, 10_000], rel=0.08)


def test_two_choices_levels():
    servers, mine = group(*[1] * 10), balancer("two_choices")
    for _ in range(10_000):
        mine.choose(servers, None, 0.0).used += 1
    assert max(server.used for server in servers) - min(server.used for server in servers) < 20


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_two_choices_at_the_ends_of_chance(number):
    servers = group(1, 10**9, 1)
    servers[0].part = servers[2].part = 0.1
    assert balancer_of("two_choices", lambda: number).choose(servers, None, 0.0) in servers


def test_two_choices_where_the_sum_was_rounded():
    """The number drawn is then as large as all the weights: the last that has any is meant."""
    mine = balancer_of("two_choices", lambda: 1.0)
    servers = [FakeServer(0, used=3), FakeServer(1, used=2), FakeServer(2, used=1)]
    assert mine.choose(servers, None, 0.0) is servers[2]
    servers[2].used = 9
    assert mine.choose(servers, None, 0.0) is servers[1]


# -- rendezvous


def where(servers, keys, mine=None):
    mine = mine or balancer("hash")
    return {key: mine.choose(servers, key, 0.0).index for key in keys}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.integers(0, 7), st.binary(max_size=20))
def test_only_the_keys_of_a_server_that_goes_move(weights, gone, salt):
    servers, some = group(*weights), [salt + key for key in keys(50)]
    gone %= len(servers)
    before = where(servers, some)
    servers[gone].is_up = False
    after = where(servers, some)
    assert {key for key in some if before[key] != after[key]} == {key for key in some if before[key] == gone}
    del servers[gone]
    assert where(servers, some) == after


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 5), st.integers(1, 3))
def test_more_weight_only_draws_keys_there(weights, heavier, more):
    servers, some = group(*weights), keys(60)
    heavier %= len(servers)
    before = where(servers, some)
    servers[heavier].weight += more
    after = where(servers, some)
    assert all(after[key] in (before[key], heavier) for key in some)


def test_keys_spread_by_weight():
    counts = Counter(where(group(1, 2, 5), keys(16_000)).values())
    assert [counts[place] for place in range(3)] == pytest.approx([2000, 4000, 10_000], rel=0.08)


def test_the_keys_of_one_that_goes_spread_by_weight():
    servers, some = group(1, 3, 4), keys(16_000)
    moved = [key for key, index in where(servers, some).items() if index == 2]
    counts = Counter(where(servers[:2], moved).values())
    assert counts[1] / counts[0] == pytest.approx(3, rel=0.15)


def test_the_order_of_servers_is_nothing_to_a_key():
    servers = group(1, 2, 3)
    assert where(servers, keys(100)) == where(servers[::-1], keys(100))


def test_without_a_key_in_turn():
    servers, mine = group(1, 1), balancer("hash")
    assert [mine.choose(servers, None, 0.0).index for _ in range(4)] == [0, 1, 0, 1]
    assert len({mine.choose(servers, b"", 0.0).index for _ in range(4)}) == 1


def test_the_hash_is_the_same_everywhere():
    """In another process, with another seed of Python's own hashes, and in the next release."""
    found = [where(group(1, 1, 2), keys(12))[key] for key in keys(12)]
    assert found == EVERYWHERE
    program = """if True:
        from greensock.proxy.upstream.balance import _uniform
        print(_uniform("http://10.0.0.0:80", b"key 0"))
    """
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert float(done.stdout) == pytest.approx(UNIFORM, abs=1e-15)
