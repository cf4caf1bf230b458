"""What is looked at a few times a second: how late the hub is, how long turns are waited for, how long upcalls take."""

from __future__ import annotations

import logging
import sys
import time
import weakref

import gevent
import pytest
from conftest import wait_until
from gevent.monkey import get_original
from served import Echo

from greensock import Lines, Server
from greensock.core.sampling import INTERVAL, Sampler, is_in_turn
from greensock.operations.hub_watchdog import HubWatchdog, _is_hub

#: Seconds for which the hub is held, and those after which that is too long.
HELD, TOO_LONG = 0.4, 0.1

busy = get_original("time", "sleep")


class Found:
    """What a sampler finds."""

    def __init__(self):
        self.late, self.waited, self.took = [], [], []
        self.sampler = Sampler(self.late.append, self.waited.append, self.took.append)


@pytest.fixture
def found():
    one = Found()
    one.sampler.start()
    yield one
    one.sampler.stop()


def echoed(sock, answer=b"hello\n"):
    sock.sendall(b"hello\n")
    while answer:
        answer = answer[len(sock.recv(100)) :]


@pytest.mark.parametrize(("framer", "answer"), [(None, b"hello\n"), (Lines(), b"hello")])
def test_a_server_of_upcalls(serve, connect, found, framer, answer):
    server = serve(Echo, framer=framer)
    found.sampler.follow([server])
    sock = connect(server)

    def ask():
        echoed(sock, answer)
        return len(found.took) >= 3 and len(found.waited) >= 3 and len(found.late) >= 3

    wait_until(ask)
    assert all(0 <= seconds < 5 for seconds in (*found.late, *found.waited, *found.took))
    # One upcall is timed of each look, and no more: all others are made as ever.
    assert len(found.took) <= len(found.late)
    assert len(server.names()) > 3
    found.sampler.stop()
    assert server._on_recv == server.connection_recv
    before = len(found.took)
    echoed(sock, answer)
    assert len(found.took) == before
    assert server.statistics().accepted == 1


def test_it_looks_no_more_often_than_it_says(found):
    began, looks = time.monotonic(), 4
    wait_until(lambda: len(found.late) >= looks)
    assert time.monotonic() - began > (looks - 1) * INTERVAL


def test_a_server_in_the_blocking_style(serve, connect, found):
    """Its one turn is as long as the connection lives, and is not timed; how long turns are waited for is."""
    server = serve(Server, handle=lambda conn: conn.send(conn.recv()), max_workers=1)
    found.sampler.follow([server])
    wait_until(lambda: found.waited)
    sock = connect(server)
    wait_until(lambda: server.statistics().workers_busy)
    count = len(found.waited)
    wait_until(lambda: len(found.late) > 6)
    assert len(found.waited) <= count + 1  # the only worker is blocked
    echoed(sock)
    wait_until(lambda: len(found.waited) > count)
    assert not found.took


def test_a_server_that_stops_and_starts_again(serve, connect, found):
    server = serve(Echo)
    found.sampler.follow([server])
    wait_until(lambda: found.waited)
    server.stop(0)
    count = len(found.late)
    wait_until(lambda: len(found.late) > count + 2)
    server.start()
    count = len(found.waited)
    echoed(connect(server))
    wait_until(lambda: len(found.waited) > count + 1)


def test_whom_it_looks_at(serve, found):
    one, other = serve(Echo), serve(Echo)
    found.sampler.follow([one])
    found.sampler.start()  # it has begun
    timed = wait_until(lambda: type(one._on_recv).__name__ == "_TimedUpcall" and one._on_recv)
    found.sampler.follow([one, other])
    wait_until(lambda: type(other._on_recv).__name__ == "_TimedUpcall")
    assert one._on_recv is timed, "it is looked at as before"
    found.sampler.follow([other])
    assert one._on_recv == one.connection_recv
    assert one._probe is None
    assert type(other._on_recv).__name__ == "_TimedUpcall"
    count = len(found.waited)
    wait_until(lambda: len(found.waited) > count + 1)
    assert one._on_recv == one.connection_recv


def test_an_upcall_that_fails_is_timed_too(serve, connect, found):
    def fail(conn, data):
        raise RuntimeError("it fails")

    server = serve(Server, connection_recv=fail)
    found.sampler.follow([server])
    wait_until(lambda: type(server._on_recv).__name__ == "_TimedUpcall")
    sock = connect(server)
    sock.sendall(b"x")
    assert sock.recv(1) == b""
    assert len(found.took) == 1
    assert server.statistics().errors == 1


def test_which_connections_are_in_their_turn(serve, connect):
    server = serve(Server, connection_recv=lambda conn, data: conn.read_exactly(1) if data == b"wait" else None)
    sock = connect(server)
    sock.sendall(b"x")
    (conn,) = wait_until(lambda: server.connections)
    wait_until(lambda: conn.bytes_received == 1 and not is_in_turn(conn))
    sock.sendall(b"wait")
    wait_until(lambda: is_in_turn(conn))


def test_what_holds_the_hub_is_logged_once(found, caplog):
    watchdog = HubWatchdog(lambda: found.sampler.seen_at, 0.05, TOO_LONG)
    watchdog.start()
    try:
        with caplog.at_level(logging.WARNING, "greensock.server"):
            for _ in range(2):
                wait_until(lambda: time.monotonic() - found.sampler.seen_at < TOO_LONG)
                hold_the_hub()
                gevent.sleep(0)
            wait_until(lambda: watchdog.holds >= 2)
            wait_until(lambda: not any(each() for each in worked_on))  # the thread keeps no frame that it saw
    finally:
        watchdog.stop()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == watchdog.holds
    assert all(line.startswith("an upcall has held the hub for ") for line in lines)
    assert any("in hold_the_hub" in line for line in lines)
    wait_until(lambda: max(found.late) > HELD - 0.1)


#: What those worked on that held the hub.
worked_on = []


class Work:
    """What an upcall has in its hands."""


def hold_the_hub():
    work = Work()
    worked_on.append(weakref.ref(work))
    busy(HELD)


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([(0.05, 0.05), (0.1, 0.1), (0.15, 0.15)], []),
        ([(0.05, 0.01), (0.1, 0.01), (0.15, 0.01), (0.16, 0.16)], []),
        ([(0.05, 0.01), (0.1, 0.01), (0.17, 0.01), (0.21, 0.01), (0.25, 0.01)], [0.17]),  # once for each time
        ([(0.05, 0.01), (0.1, 0.01), (0.17, 0.01), (0.25, 0.18), (0.3, 0.18), (0.34, 0.18)], [0.17, 0.34]),
        ([(0.05, 0.05), (5.0, 0.05), (5.05, 5.02)], []),  # the process was stopped
        ([(0.05, 0.05), (5.0, 0.05), (5.05, 0.05)], [5.05]),  # and the hub is held on
        ([(0.05, 0.01), (0.1, 0.01), (0.2, 0.01), (0.25, 0.01)], [0.25]),  # the look at 0.2 saw the hub itself
    ],
)
def test_what_is_too_long(monkeypatch, looks, told):
    """At each look: when it is, and when the hub was at work last."""
    times = iter([0.0, *(now for now, _ in looks)])
    monkeypatch.setattr("greensock.operations.hub_watchdog.monotonic", lambda: next(times))
    pauses, found, left = [], [], [seen_at for _, seen_at in looks]

    class End:
        def acquire(self, blocking, pause):
            pauses.append(pause)
            return not left

    watchdog = HubWatchdog(lambda: left.pop(0), 0.05, 0.1)

    def look(watched, held, now):
        found.append(now)
        return now != 0.2

    monkeypatch.setattr(watchdog, "_look", look)
    watchdog._watch(End(), 0)
    assert [now for now in found if now != 0.2] == told
    assert pauses == [0.05] * (len(looks) + 1)


def test_how_it_is_told(caplog):
    watchdog = HubWatchdog(lambda: 0.0, 0.05, TOO_LONG)
    for left_out in (0, 3):
        watchdog._tell(sys._getframe(), 0.5, left_out)
    begin = "an upcall has held the hub for 0.50 s, and nobody else could run"
    assert [record.getMessage().partition("\n")[0] for record in caplog.records] == [
        f"{begin}; it is here:",
        f"{begin}; 3 times before were not logged; it is here:",
    ]


def test_a_hub_that_waits_is_not_held():
    """A process that was stopped, say, is seen so when it goes on."""
    assert _is_hub(gevent.get_hub().gr_frame)
    assert not _is_hub(sys._getframe())
