"""What the workers of a proxy know together of the servers: the table, rows, caps, queues, news. In one process."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import signal

import gevent
import pytest
from conftest import wait_until
from proxies import gateway_to
from scripts import scripted

from greensock.pool_quota import QuotaState
from greensock.pool_state import Action
from greensock.proxy import HealthOptions, ServerOptions, Standing, UpstreamOptions
from greensock.proxy.failure import Failure
from greensock.proxy.upstream import shared_servers, shared_table, steward
from greensock.proxy.upstream.health import Health
from greensock.proxy.upstream.retry_budget import RetryBudget
from greensock.proxy.upstream.server_cap import ServerCap
from greensock.proxy.upstream.server_specs import given_servers
from greensock.proxy.upstream.shared_servers import ASKED, SILENT, SLOTS, WAITING, SharedServers, WorkersView
from greensock.proxy.upstream.shared_table import SharedTable, TableFull
from greensock.shared_pages import SharedPages

FAILED = Failure("no-response", 502, text="it hung up")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("servers", "steward"):
        monkeypatch.setattr(f"greensock.proxy.upstream.{module}.monotonic", clock)
    return clock


# -- the table


def test_the_table_is_read_as_it_was_written():
    table = SharedTable(bytearray(208), is_alone=True)
    assert table.read() == (0, {})
    for count in range(1, 5):
        assert table.update(lambda document, count=count: document.update(count=count))
        assert (table.generation, table.read()) == (count, (count, {"count": count}))
    assert table.update(lambda document: False)
    assert table.generation == 4, "nothing was to be written"


def test_a_table_that_is_full_stays_as_it_was():
    table = SharedTable(bytearray(108), is_alone=True)
    table.update(lambda document: document.update(a=1))
    with pytest.raises(TableFull, match="at most 42 expected"):
        table.update(lambda document: document.update(a="x" * 100))
    assert table.read() == (1, {"a": 1})


def test_a_writer_that_is_killed_halfway_changes_nothing(monkeypatch):
    memory = bytearray(208)
    table = SharedTable(memory, is_alone=True)
    table.update(lambda document: document.update(a=1))
    before = bytes(memory)
    table.update(lambda document: document.update(a=2))
    for count in range(8, len(memory)):
        half_written = bytearray(before)
        half_written[8:count] = memory[8:count]  # all but the number of how often it was written
        assert SharedTable(half_written, is_alone=True).read() == (1, {"a": 1})
    # Who is overtaken reads again, but not for ever.
    memory[8:] = bytes(len(memory) - 8)
    with pytest.raises(TimeoutError):
        table.read()


def test_one_process_writes_at_a_time(monkeypatch):
    """A lock ends with the process that has it, however that ends."""
    monkeypatch.setattr(shared_table, "WRITE_TRIES", 3)
    table = SharedTable(SharedPages(2).block("table", 208), is_alone=False)
    ready, write = os.pipe()
    child = os.fork()
    if not child:

        def hold(document):
            os.write(write, b".")
            signal.pause()

        table.update(hold)
        os._exit(1)
    try:
        os.read(ready, 1)
        assert not table.update(lambda document: document.update(a=1))
        assert not table.update(lambda document: document.update(a=1), pause=gevent.sleep)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(write)
    assert table.update(lambda document: document.update(a=1))
    assert table.read() == (1, {"a": 1})


# -- rows


def views(count=3):
    shared = SharedServers(SharedPages(count))
    return shared, [WorkersView(shared, slot) for slot in range(count)]


@pytest.mark.parametrize(
    ("beats", "editions", "leader"),
    [
        ((10, 10, 10), (1, 1, 1), 0),
        ((0, 10, 10), (1, 1, 1), 1),
        ((10 - SILENT, 10, 10), (1, 1, 1), 1),
        ((10 - SILENT + 0.1, 10, 10), (1, 1, 1), 0),
        ((10, 10, 10), (1, 2, 2), 1),
        ((10, 10 - SILENT, 10), (1, 2, 1), 0),
        ((10, 10, 10), (2, 1, 3), 2),
    ],
)
def test_who_leads(beats, editions, leader):
    """The lowest row that shows life, among those of the newest configuration."""
    _, (one, two, three) = views()
    for view, beat, edition in zip((one, two, three), beats, editions, strict=True):
        view._edition = edition
        view.beat(beat)
    assert [view.leads(10.0) for view in (one, two, three)] == [slot == leader for slot in range(3)]


def test_what_others_count():
    _, (one, two, three) = views()
    for view, count in ((one, 3), (two, 4), (three, 5)):
        view.add(7, ASKED, count)
        view.add_total(7, 1, count)
        view.beat(100.0)
    assert [view.of_others(7, ASKED) for view in (one, two, three)] == [9, 8, 7]
    two.add(7, WAITING, 1)
    two.add(7, SLOTS, 1)
    assert [one.has_needier(7, slots, 100.0) for slots in (0, 1, 2)] == [False, False, True]
    assert not two.has_needier(7, 2, 100.0), "itself"
    assert not one.has_needier(7, 2, 100.0 + SILENT), "nobody waits for one that shows no life"
    assert one.total(7, 1) == 12


def test_a_place_is_given_again_when_nobody_counts_there():
    _, (one, two, _) = views()
    document = {}
    assert one.give_places(document, ["a", "b"])
    assert not one.give_places(document, ["a"])
    assert document["places"] == {"a": [0, 0, 0], "b": [1, 0, 0]}
    two.add(0, ASKED, 1)
    two.add_total(0, 0, 9)
    del document["places"]["a"]
    one.give_places(document, ["c"])
    two.add(0, ASKED, -1)
    one.give_places(document, ["d"])
    assert document["places"] == {"b": [1, 0, 0], "c": [2, 0, 0], "d": [0, 9, 0]}
    assert one.give_places(document, [str(number) for number in range(2000)])
    assert not one.give_places(document, ["one too many"])
    assert len(document["places"]) == shared_servers.PLACES


# -- how many at once


class Worker:
    """A worker that asks for slots of one server."""

    def __init__(self, shared, slot, most, max_waiting=1000, clock=lambda: 100.0):
        self.view = WorkersView(shared, slot)
        self.view.beat(100.0)
        self.cap = ServerCap(most, clock)
        self.cap.attach(self.view, 5)
        self.state = QuotaState(self.cap, max_connections=most, max_waiting=max_waiting)
        self.held = []
        self.waiting = []
        self.made = 0

    def ask(self):
        """Ask as a pool does: for what is kept, then for any."""
        self.cap.ask(1)
        conn = self.state.take("origin")
        if conn is not None:
            self.held.append(conn)
            return Action.REUSE
        waiter = object()
        decision = self.state.ask("origin", waiter, 0.0)
        if decision.action is Action.WAIT:
            self.waiting.append(waiter)
        elif decision.action is Action.REFUSE:
            self.cap.ask(-1)
        else:
            self.held.append(decision.connection or self.new())
        return decision.action

    def new(self):
        self.made += 1
        return self.view.slot, self.made

    def take_grants(self, decision):
        for grant in decision.wake:
            self.waiting.remove(grant.waiter)
            self.held.append(grant.connection or self.new())

    def finish(self, is_kept=True):
        conn = self.held.pop(0)
        self.cap.ask(-1)
        if not (is_kept and self.state.put("origin", conn, 0.0)):
            self.take_grants(self.state.give_back("origin", conn if is_kept else None, 0.0))

    def look(self):
        while self.waiting and self.cap.take():
            self.take_grants(self.state.admit("origin"))

    def leave(self):
        waiter = self.waiting.pop()
        self.cap.ask(-1)
        assert self.state.leave("origin", waiter)


@pytest.mark.parametrize("slots", [(0, 1), (0, 0)])
def test_a_cap_is_that_of_all_workers(slots):
    """And of two gateways in one of them, of which a new configuration has replaced one."""
    shared = SharedServers(SharedPages(2))
    one, other = (Worker(shared, slot, most=3, max_waiting=2) for slot in slots)
    asked = [one.ask(), one.ask(), other.ask()]
    assert asked == [Action.CONNECT] * 3
    assert one.cap.is_full()
    assert other.cap.is_full()
    assert [other.ask(), one.ask(), other.ask()] == [Action.WAIT, Action.WAIT, Action.REFUSE]
    assert one.cap.is_shared
    assert other.cap.is_shared, "so who waits looks again and again"
    one.finish()
    assert (len(one.held), len(one.waiting)) == (2, 0), "it has waited in the same worker as the slot came free"
    one.finish()
    other.look()
    assert (len(one.held), len(other.held)) == (1, 2)
    assert other.ask() is Action.WAIT
    other.leave()
    if slots == (0, 1):
        # What a worker had that was killed is there for the others, as soon as the master has seen it.
        shared.counts.clear(0)
    else:
        one.finish()
    assert other.ask() is Action.CONNECT


@pytest.mark.parametrize("slots", [(0, 1), (0, 0)])
def test_a_worker_with_more_slots_gives_way(slots):
    shared = SharedServers(SharedPages(2))
    one, other = (Worker(shared, slot, most=4) for slot in slots)
    assert [one.ask() for _ in range(4)] == [Action.CONNECT] * 4
    assert [one.ask() for _ in range(50)] == [Action.WAIT] * 50
    assert [other.ask() for _ in range(50)] == [Action.WAIT] * 50
    for _ in range(8):
        one.finish()
        one.look()
        other.look()
    assert (len(one.held), len(other.held)) == (2, 2)


def test_nobody_gives_way_to_a_worker_that_shows_no_life():
    shared = SharedServers(SharedPages(2))
    now = 100.0
    one, other = (Worker(shared, slot, most=2, clock=lambda: now) for slot in range(2))
    assert [one.ask(), one.ask(), other.ask()] == [Action.CONNECT, Action.CONNECT, Action.WAIT]
    one.finish()
    assert one.ask() is Action.WAIT, "the slot is the other's, who has not looked yet"
    one.look()
    assert len(one.held) == 1
    now += SILENT
    one.look()
    assert (len(one.held), one.waiting) == (2, [])


@pytest.mark.parametrize("seed", range(10))
def test_at_random_no_slot_is_lost_and_none_is_too_many(seed):
    draw = random.Random(seed)
    most = draw.randint(1, 6)
    shared = SharedServers(SharedPages(3))
    workers = [Worker(shared, slot, most, max_waiting=20) for slot in ((0, 1, 2), (0, 0, 1))[seed % 2]]
    for _ in range(600):
        each = draw.choice(workers)
        todo = [each.ask, each.look]
        todo += [each.finish, lambda each=each: each.finish(False)] * bool(each.held)
        todo += [each.leave] * bool(each.waiting)
        draw.choice(todo)()
        assert sum(len(worker.held) for worker in workers) <= most
        assert sum(len(worker.waiting) for worker in workers) <= 20
        for worker in workers:
            assert (worker.cap.slots, worker.cap.waiting) == (len(worker.held), len(worker.waiting))
            assert worker.cap.asked == len(worker.held) + len(worker.waiting)
    # Whoever waits gets its turn, with a look now and then.
    for _ in range(200):
        for worker in draw.sample(workers, 3):
            if worker.held:
                worker.finish()
            worker.look()
    assert [(worker.waiting, worker.held) for worker in workers] == [([], [])] * 3
    assert not any(any(shared.counts.row(slot)) for slot in range(3))


def test_a_budget_of_retries_is_that_of_all_workers():
    told = []
    budget = RetryBudget(0.1, 0)
    budget.others = lambda: (60, 5)
    budget.on_retry = lambda: told.append(budget.counts(0.0))
    for _ in range(40):
        budget.request(0.0)
    assert [budget.may_retry(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert told == [(40, count) for count in range(1, 6)]
    assert budget.counts(100.0) == (0, 0)


# -- health


def test_what_others_found_is_taken_over_and_not_counted_twice():
    health = Health(HealthOptions(ejection_time=5))
    assert health.take_ejection(110.0, 5.0, 1)
    assert (health.standing, health.ejected_until, health.changes) == (Standing.EJECTED, 110.0, 0)
    assert not health.take_ejection(108.0, 5.0, 1)
    assert health.ejected_until == 110.0
    assert health.statistics().ejections == 1
    # A request that was sent before says nothing, one on trial does; the next ejection is the second, not the third.
    assert not health.succeeded(111.0, 0)
    assert health.may_try(111.0)
    assert health.failed(111.0, True, health.spell)
    assert health.sentence() == (121.0, 10.0, 2)
    assert health.changes == 1
    assert health.take_rise(122.0)
    assert (health.standing, health.changes, health.take_rise(122.0)) == (Standing.UP, 1, False)


def test_what_the_checks_of_another_found():
    health = Health(HealthOptions(path="/", fall=3, rise=2))
    assert not health.take_check(1.0, False)
    assert [health.check_failed(1.0) for _ in range(3)] == [False, False, True], "it was on probation no more"
    assert health.take_check(2.0, False)
    assert health.take_check(2.0, True)
    assert not health.take_check(2.0, True)
    assert not health.take_ejection(50.0, 5.0, 1), "it is down, which goes before"
    assert [health.check_passed(3.0), health.check_passed(3.0)] == [False, True]
    assert health.standing is Standing.UP


# -- workers


@pytest.fixture
def workers(clock):
    """Make gateways that are those of several workers; ``beat()`` has each beat once."""
    made = []

    class Workers:
        pages = SharedPages(8)
        shared = SharedServers(pages)

        def make(self, *urls, count=2, **options):
            for _ in range(count):
                gateway = gateway_to(*urls, resolve_every=None, **options)
                gateway.join(self.shared, self.pages.take())
                made.append(gateway)
            self.beat()
            return made[-count:]

        def beat(self, times=1):
            for _ in range(times):
                for gateway in made:
                    gateway._steward.beat(clock.now)

        def kill(self, gateway):
            made.remove(gateway)
            gateway.stop_checks()
            self.pages.give_back(gateway._steward.view.slot)

    yield Workers()
    for gateway in made:
        gateway.stop_checks()
    made.clear()
    Workers.shared = None  # pytest keeps what it was given, and with that the descriptor of a lock


def states(*gateways):
    return [[each.state for each in gateway.upstreams["site"].status()] for gateway in gateways]


def test_what_an_operator_wants_holds_in_all(workers):
    one, other = workers.make("http://a", "http://b")
    one.set_server("site", "a:80", "drain")
    assert states(one, other) == [["draining", "up"], ["up", "up"]]
    workers.beat()
    assert states(one, other) == [["draining", "up"]] * 2
    group = other.upstreams["site"]
    assert {group.choose("", None).name for _ in range(4)} == {"b:80"}
    other.set_server("site", "b:80", "down")
    workers.beat()
    assert one.upstreams["site"].choose("", None) is None
    (later,) = workers.make("http://b", "http://a", count=1)
    assert states(later) == [["down", "draining"]], "who comes later stands alike"
    for name in ("a:80", "b:80"):
        later.set_server("site", name, "ready")
    workers.beat()
    assert states(one, other, later) == [["up", "up"]] * 3
    assert sorted(one.upstreams["site"].choose("", None).name for _ in range(2)) == ["a:80", "b:80"]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (("set_server", "site", "c:80", "drain"), LookupError, "^server='c:80': one of a:80, b:80 expected$"),
        (("set_server", "sit", "a:80", "drain"), LookupError, "^upstream='sit': one of site expected$"),
        (("set_server", "site", "a:80", "up"), ValueError, "^state='up': 'ready', 'drain', 'down' expected$"),
        (("add_server", "site", "http://a:80"), ValueError, "^server='a:80': each server once expected$"),
        (("add_server", "site", "ftp://a"), ValueError, "^url='ftp://a': "),
        (("add_server", "site", "unix:/\ud800"), ValueError, "^url=.*: http://host"),
        (("add_server", "sit", "http://c"), LookupError, "^upstream='sit': one of site expected$"),
        (("remove_server", "site", "c:80"), LookupError, "^server='c:80': one of a:80, b:80 expected$"),
    ],
)
def test_what_an_operator_may_not_want(workers, call, error, text):
    one, other = workers.make("http://a", "http://b")
    name, *arguments = call
    with pytest.raises(error, match=text):
        getattr(one, name)(*arguments)
    workers.beat()
    assert states(one, other) == [["up", "up"]] * 2


def test_servers_come_and_go_at_run_time(workers):
    one, other = workers.make("http://a", "http://b")
    kept = other.upstreams["site"].all[1]
    one.add_server("site", ServerOptions("http://c", weight=3, max_connections=2))
    one.remove_server("site", "a:80")
    workers.beat()
    for gateway in (one, other):
        group = gateway.upstreams["site"]
        assert [(each.name, each.weight, each.index) for each in group.all] == [("b:80", 1, 0), ("c:80", 3, 1)]
    assert other.upstreams["site"].all[0] is kept, "those that stay are not touched"
    # Two at once in all workers, though it came while they ran.
    third = [gateway.upstreams["site"].all[1] for gateway in (one, other)]
    for each in third:
        each.enter()
    assert [each.pool.state.ask(each.origin, object(), 0.0).action for each in third] == [Action.CONNECT] * 2
    assert all(each.is_full for each in third if each.look(0.0) is None)
    one.remove_server("site", "b:80")
    one.remove_server("site", "c:80")
    workers.beat()
    assert [gateway.upstreams["site"].all for gateway in (one, other)] == [[], []]
    assert all(each.is_gone for each in third)
    one.add_server("site", "http://a")
    assert [each.name for each in one.upstreams["site"].all] == ["a:80"]


def test_no_more_servers_are_added_than_there_is_room_for(workers, monkeypatch):
    """So who adds and never removes leaves room in the table for health, and for what operators want."""
    monkeypatch.setattr(steward, "MOST_ADDED", 2)
    one, other = workers.make("http://a")
    one.add_server("site", "http://b")
    one.add_server("site", "http://c")
    workers.beat()
    with pytest.raises(TableFull, match=r"^2 servers were added at run time, and not removed: no more expected$"):
        other.add_server("site", "http://d")
    other.remove_server("site", "b:80")
    workers.beat()
    one.add_server("site", "http://d")
    assert [each.name for each in one.upstreams["site"].all] == ["a:80", "c:80", "d:80"]


@pytest.mark.parametrize(
    ("added", "removed", "weights"),
    [
        ([], [], {"a:80": 2, "b:80": 3}),
        (["c"], [], {"a:80": 2, "b:80": 3, "c:80": 1}),
        (["a"], [], {"a:80": 2, "b:80": 3}),  # the file has it now, too: that says how it is
        ([], ["a"], {"b:80": 3}),
        (["a"], ["a"], {"a:80": 1, "b:80": 3}),  # removed, and added otherwise than the file has it
        ([], ["a", "b", "x"], {}),
    ],
)
def test_what_is_set_at_run_time_and_the_file(added, removed, weights):
    group = UpstreamOptions("site", (ServerOptions("http://a", weight=2), ServerOptions("http://b", weight=3)))
    document = {
        "added": {"site": {f"{name}:80": {"url": f"http://{name}"} for name in added}, "other": {"z:80": {}}},
        "removed": {"site": {f"{name}:80": True for name in removed}},
    }
    assert {name: each.weight for name, each in given_servers(group, document).items()} == weights


def test_an_ejection_is_known_to_all_and_so_is_its_end(workers, clock, caplog):
    one, other = workers.make("http://a", "http://b", health=HealthOptions(max_fails=2, ejection_time=5))
    first, same = (gateway.upstreams["site"].all[0] for gateway in (one, other))
    with caplog.at_level(logging.WARNING, "greensock.upstream"):
        for _ in range(2):
            first.failed(FAILED)
        workers.beat(2)
        assert states(one, other) == [["ejected", "up"]] * 2
        assert (same.health.ejected_until, same.status("").why) == (clock.now + 5, "it hung up")
        clock.now += 5
        assert same.health.may_try(clock.now)
        same.failed(FAILED, same.health.spell)
        workers.beat(2)
        assert first.health.ejected_until == same.health.ejected_until == clock.now + 10
        clock.now += 10
        assert first.health.may_try(clock.now)
        first.succeeded(first.health.spell)
        workers.beat(2)
        assert states(one, other) == [["up", "up"]] * 2
    assert [each.getMessage() for each in caplog.records] == [
        "site: a:80 is ejected for 5.0 s: it hung up",
        "site: a:80 is ejected for 10.0 s: it hung up",
        "site: a:80 is up again",
    ], "who takes it over says nothing"
    (later,) = workers.make("http://a", count=1, health=HealthOptions(max_fails=3))
    assert states(later) == [["up"]]


def test_a_server_that_comes_back_fails_anew_for_all(workers, clock):
    one, other = workers.make("http://a", health=HealthOptions(max_fails=1))
    for _ in range(2):
        one.add_server("site", "http://b")
        workers.beat(2)
        assert states(one, other) == [["up", "up"]] * 2
        one.upstreams["site"].all[1].failed(FAILED)
        workers.beat(2)
        assert states(one, other) == [["up", "ejected"]] * 2
        one.remove_server("site", "b:80")
        workers.beat(2)
        assert states(one, other) == [["up"]] * 2
        assert not any(key == "site/b:80" for _, key in other._steward._turns), "nothing is kept of what is gone"


def test_an_operator_means_a_name_or_one_of_its_addresses(workers):
    one, other = workers.make("http://a", "http://b")
    found = {"site/a:80": [["10.0.0.1", 80, 1, False], ["10.0.0.2", 80, 1, False]]}
    for gateway in (one, other):
        for group in gateway.upstreams.values():
            group.options = dataclasses.replace(group.options, resolve_every=3600)
    one._steward.view.table.update(lambda document: document.update(found=found))
    workers.beat()
    for server, state, stand in (
        ("a:80", "drain", ["draining", "draining", "up"]),
        ("10.0.0.1:80", "ready", ["up", "draining", "up"]),
        ("10.0.0.1:80", "drain", ["draining", "draining", "up"]),
        ("10.0.0.2:80", "down", ["draining", "down", "up"]),
        ("a:80", "ready", ["up", "up", "up"]),
    ):
        one.set_server("site", server, state)
        workers.beat()
        assert states(one, other) == [stand] * 2, (server, state)
    assert one._steward.view.table.read()[1]["admin"] == {}


def test_other_rules_are_other_health(workers):
    (one,) = workers.make("http://a", count=1, health=HealthOptions(max_fails=1))
    one.upstreams["site"].all[0].failed(FAILED)
    workers.beat()
    alike, other = (workers.make("http://a", count=1, health=HealthOptions(max_fails=most))[0] for most in (1, 2))
    assert states(one, alike, other) == [["ejected"], ["ejected"], ["up"]]


def test_one_worker_checks(workers, clock):
    rules = HealthOptions(path="/", fall=1, rise=1, interval=3600, timeout=1)
    one, other = workers.make("http://127.0.0.1:1", health=rules)
    workers.beat()
    assert [len(gateway._checkers) for gateway in (one, other)] == [1, 0]
    (checker,) = one._checkers.values()
    assert not checker.check()
    workers.beat(2)
    assert states(one, other) == [["down"]] * 2
    status = other.upstreams["site"].status()[0]
    assert "refused" in status.why
    assert status.since > 0
    workers.kill(one)
    workers.beat()
    (checker,) = other._checkers.values()
    # A new configuration: its workers check, though their rows are higher.
    workers.shared.edition += 1
    (newer,) = workers.make("http://127.0.0.1:1", count=1, health=rules)
    assert newer._steward.view.slot == 0, "the row is free again"
    (newest,) = workers.make("http://127.0.0.1:1", count=1, health=rules)
    workers.beat()
    assert [len(gateway._checkers) for gateway in (other, newer, newest)] == [0, 1, 0]
    assert states(newer, newest) == [["down"]] * 2


def test_what_is_counted_is_the_sum_over_all_workers(workers):
    one, other = workers.make("http://a", ServerOptions("http://b", max_connections=10))
    for gateway, count in ((one, 1), (other, 2)):
        for server in gateway.upstreams["site"].all:
            for _ in range(count):
                server.enter()
            server.failed(FAILED)
    workers.beat()
    for gateway in (one, other):
        for each in gateway.upstreams["site"].status():
            assert (each.used, each.requests, each.errors, each.connections, each.waiting) == (3, 3, 2, 0, 0)
    one.upstreams["site"].all[1].leave()
    assert other.upstreams["site"].status()[1].used == 2, "at once, where there is a cap"
    for each in one.upstreams["site"].all[:1]:
        each.leave()
    workers.beat()
    workers.kill(other)
    workers.beat()
    for each in one.upstreams["site"].status():
        assert (each.used, each.requests, each.errors) == (0, 3, 2), "what is gone is gone, what was counted stays"


def test_a_table_without_room_is_told_of_once(workers, clock, caplog, monkeypatch):
    monkeypatch.setattr(shared_servers, "PLACES", 2)
    with caplog.at_level(logging.WARNING, "greensock.upstream"):
        one, other = workers.make("http://a", "http://b", "http://c")
        workers.beat(3)
    told = [each.getMessage() for each in caplog.records]
    assert told == ["2 servers are counted for each worker alone: site/c:80 and others find no place"] * 2
    one.set_server("site", "c:80", "drain")
    workers.beat()
    assert states(other) == [["up", "up", "draining"]]


def test_a_slot_that_comes_free_elsewhere_is_found():
    """By real pools, of two workers in one process."""

    def silent(script, sock, number):
        sock.recv(1)

    with scripted(silent) as script:
        shared = SharedServers(SharedPages(2))
        gateways = [gateway_to(ServerOptions(script.url, max_connections=1)) for _ in range(2)]
        for slot, gateway in enumerate(gateways):
            gateway.join(shared, slot)
            gateway.enter("listener")
        one, other = (gateway.upstreams["site"].all[0] for gateway in gateways)
        deadlines = gateways[0].deadlines_of(None)
        first = one.lease(deadlines)
        waiter = gevent.spawn(other.lease, deadlines)
        wait_until(lambda: one.status("").waiting == 1)
        assert other.status("").used == 0
        first.end(True)
        second = waiter.get()
        assert second.connection is not None
        again = gevent.spawn(one.lease, deadlines)
        wait_until(lambda: other.status("").waiting == 1)
        second.end(True)
        again.get().end(True)
        wait_until(lambda: one.pool._looking is None and other.pool._looking is None)
        for gateway in gateways:
            gateway.leave("listener")
            gateway.upstreams["site"].close()


def test_a_cap_holds_while_a_configuration_that_was_replaced_still_answers():
    """In one process (``--single``): both gateways have the same row."""

    def silent(script, sock, number):
        sock.recv(1)

    with scripted(silent) as script:
        before, after = (gateway_to(ServerOptions(script.url, max_connections=1)) for _ in range(2))
        before.enter("old")
        old, new = (gateway.upstreams["site"].all[0] for gateway in (before, after))
        deadlines = before.deadlines_of(None)
        first = old.lease(deadlines)
        after.inherit(before)
        after.enter("new")
        waiter = gevent.spawn(new.lease, deadlines)
        wait_until(lambda: new.status("").waiting == 1)
        assert new.pool.state.slots == 0
        first.end(True)
        second = waiter.get()
        # A kept connection asks once more by the old one.
        again = gevent.spawn(old.lease, deadlines)
        wait_until(lambda: old.pool.state.statistics(old.origin).waiting == 1)
        second.end(True)
        again.get().end(True)
        wait_until(lambda: old.pool._looking is None and new.pool._looking is None)
        for gateway, listener in ((before, "old"), (after, "new")):
            gateway.leave(listener)
            gateway.upstreams["site"].close()
