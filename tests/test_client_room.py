"""How many connections clients have in all workers of a proxy together: ``[server] max_connections``."""

from __future__ import annotations

import logging
import os
import random

import pytest
from conftest import wait_until
from proxies import Origin, gateway_to

from greensock.proxy import ListenOptions, ProxyProgram, parse_config
from greensock.proxy.client_room import ROUND, ClientRoom
from greensock.proxy.upstream.shared_servers import SharedServers, WorkersView
from greensock.shared_pages import SharedPages


class Worker:
    """A worker that accepts: ``granted`` are those that its acceptor may take and has not taken yet."""

    def __init__(self, shared, slot, most):
        self.there = self.granted = self.welcomed = 0
        self.view = WorkersView(shared, slot)
        self.room = ClientRoom(most, self.view, lambda: self.there, self.welcome)

    def welcome(self):
        self.welcomed += 1

    def ask(self):
        self.granted = self.room.permits()
        return self.granted

    def accept(self, count=None):
        self.there += self.granted if count is None else count
        self.granted = 0
        self.room.settle()

    def end(self):
        self.there -= 1
        self.room.settle()


@pytest.fixture
def workers():
    made = []

    def make(most, slots=(0, 1)):
        shared = SharedServers(SharedPages(3))
        made.extend(Worker(shared, slot, most) for slot in slots)
        return shared, made

    yield make
    for each in made:
        each.room.close()
    assert not made or made[0].view.clients() == 0
    made.clear()  # pytest keeps what it was given, and with that the descriptor of a lock


# Rows of their own, or the same one: of a gateway that a new configuration has replaced in its process.
@pytest.mark.parametrize("slots", [(0, 1), (0, 0)])
@pytest.mark.parametrize(
    ("most", "there", "permits"),
    [
        (1, (0, 0), 1),
        (1, (0, 1), 0),
        (1, (1, 0), 0),
        (2, (0, 1), 1),
        (5, (1, 1), 3),
        (5, (9, 9), 0),  # a new configuration allows fewer
        (1000, (0, 1), ROUND),
    ],
)
def test_how_many_more_are_welcome(workers, slots, most, there, permits):
    _, (one, other) = workers(most, slots)
    for each, count in zip((one, other), there, strict=True):
        each.accept(count)
    assert one.ask() == permits
    assert one.view.clients() == sum(there) + permits, "they count before they are there"
    assert other.ask() == min(ROUND, max(0, most - sum(there) - permits))


def test_what_was_not_taken_is_counted_out_when_the_pass_is_over(workers):
    _, (one, other) = workers(3)
    assert one.ask() == 3
    one.there = 1
    assert other.ask() == 0
    wait_until(lambda: other.view.clients() == 1)
    assert other.ask() == 2


def test_who_finds_no_room_looks_again(workers, caplog):
    """And says so, once; not if all are its own, whose end it is told of."""
    shared, (one, other) = workers(2)
    with caplog.at_level(logging.WARNING, "greensock.server"):
        one.accept(2)
        assert [one.ask(), one.ask()] == [0, 0]
        assert one.room._looking is None
        assert [other.ask(), other.ask()] == [0, 0]
        wait_until(lambda: other.welcomed == 1)
        assert other.ask() == 0
        one.end()
        wait_until(lambda: other.welcomed == 2)
        assert other.ask() == 1
        other.accept()
    said = "max_connections=2 are there; more wait in the backlog"
    assert [each.getMessage() for each in caplog.records] == [said] * 2, "each worker once"
    # What a worker had that was killed is there for the others, as soon as the master has seen it.
    shared.clients.clear(0)
    one.room._told = one.there = 0
    assert other.ask() == 1


def test_two_that_count_at_the_same_moment(workers):
    """Both may find less than there is; neither finds more."""
    _, (one, other) = workers(4)
    read, view = one.view.clients, one.view

    def overtaken():  # after what one counts, and before it looks
        view.clients = read
        other.room._tell(3)
        return read()

    view.clients = lambda: setattr(view, "clients", overtaken) or read()
    assert one.ask() == 1
    assert read() == 4


@pytest.mark.parametrize("seed", range(6))
def test_at_random_none_is_too_many(workers, seed):
    draw = random.Random(seed)
    most = draw.randint(1, 40)
    _, made = workers(most, ((0, 1, 2), (0, 0, 1))[seed % 2])
    for _ in range(400):
        each = draw.choice(made)
        if each.granted:
            each.accept(draw.randint(0, each.granted))
        elif each.there and draw.random() < 0.4:
            each.end()
        else:
            each.ask()
        assert sum(worker.there + worker.granted for worker in made) <= most
    for each in made:
        each.accept()
    # All of it can be had by one of them, in the end.
    for each in made[1:]:
        while each.there:
            each.end()
    while made[0].ask():
        made[0].accept()
    assert made[0].there == most


def test_a_child_counts_nothing(workers):
    _, (one, other) = workers(3)
    one.accept(2)
    child = os.fork()
    if not child:
        one.there = 0
        one.room.settle()
        one.room.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert other.view.clients() == 2


def test_who_does_not_bound_them_counts_nothing(serve):
    origin = serve(Origin)
    for listen, is_counted in ((None, False), (ListenOptions(max_connections=2), True)):
        gateway = gateway_to(origin.url, listen=listen)
        gateway.enter(Listener())
        assert (gateway._client_room is not None) is is_counted
        assert (gateway.room() <= 2) is is_counted
        gateway.leave(*gateway._listeners)
        assert gateway._client_room is None


def test_who_has_left_is_counted_out_at_once():
    """And not only when that worker is asked again."""
    shared = SharedServers(SharedPages(2))
    one, other = (gateway_to("http://127.0.0.1:1", listen=ListenOptions(max_connections=1)) for _ in range(2))
    listener = Listener()
    for slot, (gateway, each) in enumerate(((one, listener), (other, Listener()))):
        gateway.join(shared, slot)
        gateway.enter(each)
    listener.connections_alive = 1
    assert [one.room(), other.room()] == [0, 0]
    listener.connections_alive = 0
    one.connection_ended()
    assert other.room() == 1
    for gateway in (one, other):
        gateway.leave(*gateway._listeners)
    assert other._steward.view.clients() == 0


class Listener:
    connections_alive = 0

    def welcome_connections(self):
        pass


def test_a_configuration_that_was_replaced_counts_until_its_last_connection_has_ended(serve, connect):
    origin = serve(Origin)
    told = {"listen": ["127.0.0.1:0"], "upstreams": {"app": {"servers": [origin.url]}}}
    config = parse_config({**told, "server": {"max_connections": 1}})
    program = ProxyProgram(config, lambda: config)
    program.start()
    try:
        before = program.proxies[0]
        held = connect(before)
        held.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert held.recv(1000).startswith(b"HTTP/1.1 200")
        before.close_spread = 0.0
        assert program.reload()
        assert program.gateway.room() == 0
        late = connect(program.proxies[0])
        late.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert late.recv(1000).startswith(b"HTTP/1.1 200"), "the old one has closed what rested"
        late.close()
        wait_until(lambda: program.gateway.room() == 1)
    finally:
        for proxy in program.proxies:
            proxy.close_spread = 0.0
        program.stop()
