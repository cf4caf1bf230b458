"""The turn, and the rules of the engine: no read in vain, budgets, back-pressure, nobody held up."""

from __future__ import annotations

import contextvars
import os
import socket
import sys
import time
from contextlib import suppress
from itertools import pairwise

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, PAUSE, read_all, read_exactly, wait_until
from pairs import let_engine_look
from served import Calls, Echo, Recorder, Refusing, passes, pure_only, reset

from greensock import (
    DROP,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    FixedSize,
    Lines,
    Server,
)
from greensock.core import poller as poller_module
from greensock.core import syscalls
from greensock.core.poller import get_poller
from greensock.core.turns import READS_PER_LOOK

# -- the rules of the engine


@pure_only
@pytest.mark.parametrize("style", ["upcalls", "framed", "handle"])
def test_one_read_for_each_short_message_and_none_in_vain(serve, connect, monkeypatch, style):
    """Rule 2: a short read means empty, and nothing is tried before it is announced."""

    class Blocking(Recorder):
        def handle(self, conn):
            while data := conn.recv():
                conn.send(data)

    class Sink(Echo):
        def connection_recv(self, conn, data):
            conn.send(data)

    server = serve(Blocking if style == "handle" else Sink, framer=FixedSize(4) if style == "framed" else None)
    sock = connect(server)
    sock.sendall(b"ping")
    read_exactly(sock, 4)
    reads = Calls(syscalls.read)
    for name, module in list(sys.modules.items()):
        if name.startswith("greensock.") and getattr(module, "read", None) is syscalls.read and module is not syscalls:
            monkeypatch.setattr(module, "read", reads)
    server._workers._parked.clear()  # a worker that has begun keeps the name it had; the next one is new
    for _ in range(10):
        sock.sendall(b"ping")
        assert read_exactly(sock, 4) == b"ping"
    assert (reads.count, reads.failed) == (10, 0)


def test_what_an_upcall_has_not_read_does_not_keep_the_engine_busy(serve, connect):
    """Rules 2 and 4: registered edge-triggered; a busy connection is not read."""
    go = gevent.event.Event()

    class Slow(Recorder):
        recv_size = 10

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            go.wait()

    server = serve(Slow)
    sock = connect(server)
    sock.sendall(b"x" * 1000)
    wait_until(server.received)
    sock.sendall(b"x" * 1000)
    assert passes(0.02) < 5
    assert server.received() == b"x" * 10
    assert server.connections[0].statistics().bytes_received == 10
    go.set()
    wait_until(lambda: len(server.received()) == 2000)


def test_what_comes_while_an_upcall_is_blocked_gets_the_next_one(serve, connect):
    """Its event found a busy connection and only set a flag: no other one will come."""
    got, gate = [], gevent.event.Event()

    class Blocking(Server):
        def connection_recv(self, conn, data):
            got.append(data)
            gate.wait()

    server = serve(Blocking)
    sock = connect(server)
    sock.sendall(b"first")
    wait_until(lambda: got)
    (conn,) = server.connections
    sock.sendall(b"second")
    wait_until(lambda: conn._readable and syscalls.has_input(conn._fd))
    let_engine_look()  # its event is fetched by then
    gate.set()
    wait_until(lambda: got == [b"first", b"second"])


def test_back_pressure_holds_the_peer_of_a_busy_connection(serve, connect):
    """Rule 4."""
    go = gevent.event.Event()

    class Slow(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            go.wait()

    server = serve(Slow)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(server.received)
    sock.settimeout(0.05)
    sent = 1
    with suppress(TimeoutError):
        while sent < 100_000_000:
            sent += sock.send(b"x" * 65536)
    assert sent < 100_000_000
    assert server.received() == b"x"
    go.set()
    wait_until(lambda: len(server.received()) == sent)


def test_the_end_right_behind_the_data_is_seen(serve, connect):
    """Rule 2: a short read with RDHUP seen does not mean empty."""
    server = serve(Recorder)
    for number in range(1, 6):
        sock = connect(server)
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        wait_until(lambda number=number: len(server.drops()) == number)
    assert set(server.drops()) == {DropReason.PEER_CLOSED}
    assert [what for name, what in server.calls if name == "recv"] == [b"last words"] * 5, "and no upcall for the end"


def test_a_turn_ends_after_its_time(serve, connect):
    """Rule 5: the time of a turn is bounded too. (The clock may be looked at after every 32 reads only.)"""

    class Slow(Recorder):
        recv_size = 10

        def connection_recv(self, conn, data):
            deadline = time.monotonic() + 0.0005
            while time.monotonic() < deadline:
                pass
            self.calls.append(("recv", data))

    server = serve(Slow)
    flood, whisper = connect(server), connect(server)
    wait_until(lambda: server.statistics().active == 2)
    reads = []

    def look():
        reads.append(server.names().count("recv"))
        if reads[-1] < 401:
            gevent.get_hub().loop.run_callback(look)

    flood.sendall(b"f" * 4000)
    whisper.sendall(b"w")
    gevent.get_hub().loop.run_callback(look)
    wait_until(lambda: len(server.received()) == 4001)
    # The loop went round in between, and the whisper did not wait for the end of the flood.
    assert max(after - before for before, after in pairwise(reads)) <= 100
    assert server.received().index(b"w") < 1000
    assert server.names().count("finish") > 4


@pytest.mark.parametrize("framed", [False, True])
def test_a_turn_that_spent_its_budget_goes_through_the_loop(serve, connect, framed):
    """Rule 5: what is left over waits for a pass of the loop, in which timers and the others run."""

    class Sink(Recorder):
        recv_size = 1000
        turn_budget = 2000

        def connection_recv_finish(self, conn):
            self.calls.append(("finish", len(passed)))

    passed = []
    server = serve(Sink, framer=FixedSize(10) if framed else None)
    sock = connect(server)
    wait_until(lambda: server.calls)
    sock.sendall(b"x" * 40_000)

    def passing():
        passed.append(1)
        if len(server.received()) < 40_000:
            gevent.get_hub().loop.run_callback(passing)

    gevent.get_hub().loop.run_callback(passing)
    wait_until(lambda: len(server.received()) == 40_000)
    turns = [what for name, what in server.calls if name == "finish"]
    assert len(turns) >= 20
    assert len(set(turns)) > len(turns) // 2  # turns in passes of their own


@pytest.mark.parametrize(
    ("kind", "seconds", "share", "turns"),
    [
        ("plain", PATIENCE, PATIENCE, [100]),
        ("plain", -1.0, -1.0, [READS_PER_LOOK] * 3 + [100 - 3 * READS_PER_LOOK]),
        ("covered", PATIENCE, PATIENCE, [100]),
        ("covered", -1.0, -1.0, [1] * 100),
        ("covered", -1.0, PATIENCE, [1, 99]),  # what was put off has a share of its own
        ("framed", PATIENCE, PATIENCE, [100]),
    ],
)
def test_a_turn_takes_what_is_there_until_it_is_late(serve, connect, monkeypatch, kind, seconds, share, turns):
    """Rule 5: the time is looked at after so many reads, or after each where a read is dear; one is always made."""
    monkeypatch.setattr(poller_module, "SLICE_SECONDS", seconds)
    monkeypatch.setattr(poller_module, "SHARE_SECONDS", share)
    server = serve(Recorder, recv_size=10, framer=FixedSize(10) if kind == "framed" else None)
    sock = connect(server)
    (conn,) = wait_until(lambda: server.connections)
    if kind == "covered":
        conn.fileno()
    wait_until(lambda: conn._idle and conn._plain == (kind == "plain"))
    sock.sendall(bytes(1000))
    wait_until(lambda: len(server.received()) == 1000 and server.names()[-1] == "finish")
    calls = "".join("r" if name == "recv" else "." for name in server.names()[1:])
    assert [len(turn) for turn in calls.split(".") if turn] == turns


@pytest.mark.parametrize("framer", [None, FixedSize(1)])
def test_the_least_budget_gets_on(serve, connect, framer):
    class Covered(Echo):
        def connection_new(self, conn):
            conn.fileno()

    sock = connect(serve(Covered, framer=framer, turn_budget=1))
    sock.sendall(b"abc")
    assert read_exactly(sock, 3) == b"abc"


@pure_only
@pytest.mark.parametrize("timeouts", [{"idle_timeout": 60.0}, {"recv_timeout": 60.0, "send_timeout": 60.0}])
def test_deadlines_that_move_cost_no_timer(serve, connect, timeouts):
    """Rule 7: one heap and one timer a hub; a deadline that moved is looked at again when it comes due."""

    class Blocking(Recorder):
        def handle(self, conn):
            while data := conn.recv():
                conn.send(data)

    poller = get_poller()
    poller._deadlines.clear()  # void entries that earlier tests left: a timer for each that comes due
    poller._disarm()
    server = serve(Blocking if "recv_timeout" in timeouts else Echo, **timeouts)
    poller.arm, poller._set_timer = arm, set_timer = Calls(poller.arm), Calls(poller._set_timer)
    socks = [connect(server) for _ in range(20)]
    for _ in range(20):
        for sock in socks:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
    del poller.arm, poller._set_timer
    if "idle_timeout" in timeouts:  # one sweep for all
        assert (set_timer.count, arm.count) == (0, 0)
    assert set_timer.count <= 1
    assert arm.count <= 2 * len(socks)
    assert len(poller._deadlines) <= 2 * len(socks) + 64


def test_idle_timeout_of_one_that_is_busy_in_between(serve, connect):
    """Rule 7: the deadline is looked at again when it comes due, and is then where it should be."""
    limit = 0.5
    server = serve(Echo, idle_timeout=limit)
    sock = connect(server)
    started = last = time.monotonic()
    while last - started < 1.2 * limit:
        last = time.monotonic()  # before it: however late this is noted, the server was not idle earlier
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        gevent.sleep(limit / 25)
    assert read_all(sock) == b""
    assert time.monotonic() - last > 0.8 * limit
    wait_until(server.drops)
    assert server.drops() == [DropReason.IDLE_TIMEOUT]


@pytest.mark.parametrize("style", ["upcalls", "blocks", "framed", "handle", "new", "drop", "raises"])
def test_context_variables_are_fresh_whatever_the_turn_was(serve, connect, caplog, style):
    """Rule 14: one worker gives all these turns, and none sees the variables of the one before."""
    variable = contextvars.ContextVar("variable", default="fresh")
    seen = []

    def look():
        seen.append(variable.get())
        variable.set("used")

    class Looking(Recorder):
        framer = FixedSize(1) if style == "framed" else None

        def connection_new(self, conn):
            if style == "new":
                look()

        def connection_recv(self, conn, data):
            if style not in ("new", "drop"):
                look()
            if style == "blocks":
                gevent.sleep(0)
            if style == "raises":
                raise RuntimeError("mine")
            conn.send(data)
            return DROP

        def connection_drop(self, conn):
            super().connection_drop(conn)
            if style == "drop":
                look()

    class Handling(Recorder):
        def handle(self, conn):
            look()
            conn.send(conn.recv())

    server = serve(Handling if style == "handle" else Looking)
    for number in range(1, 5):
        sock = connect(server)
        sock.sendall(b"x")
        assert read_all(sock) == (b"" if style == "raises" else b"x")
        sock.close()
        wait_until(lambda number=number: len(server.drops()) == number)
    assert server.statistics().workers == 1
    assert seen == ["fresh"] * 4


def test_context_variables_are_fresh_in_the_shortest_turn(serve, connect):
    """Rule 14: one short read and one upcall that says nothing, in a server that overrides nothing else."""
    variable = contextvars.ContextVar("variable", default=0)

    class Bare(Server):
        def connection_recv(self, conn, data):
            conn.send(b"%d" % variable.get())
            variable.set(variable.get() + 1)

    server = serve(Bare)
    socks = [connect(server) for _ in range(3)]
    for _ in range(3):
        for sock in socks:
            sock.sendall(b"x")
        for sock in socks:
            assert read_exactly(sock, 1) == b"0"
    assert server.statistics().workers == 1


def send_for_ever(conn):
    while True:
        conn.send(b"x" * 65536)


def test_a_client_that_leaves_while_its_upcall_is_blocked_hands_on_its_descriptor(serve, connect):
    """Rule 3: the stranger who got the descriptor gets neither the events nor the end of the one before."""
    lost, go = [], gevent.event.Event()

    class Slow(Echo):
        def connection_recv(self, conn, data):
            if data != b"block":
                conn.send(data)
                return
            fd = conn.fileno()
            with pytest.raises(ConnectionLost):
                send_for_ever(conn)
            lost.append(fd)
            go.wait()  # the connection has ended, its upcall has not
            for downcall in (lambda: conn.send(b"for nobody"), conn.recv, conn.shutdown_write):
                with pytest.raises(ConnectionLost):
                    downcall()
            conn.close()
            conn.abort()

    server = serve(Slow)
    victim = connect(server)
    victim.sendall(b"block")
    read_exactly(victim, 1)
    reset(victim)
    (fd,) = wait_until(lambda: lost)
    stranger, theirs = sorted(socket.socketpair(), key=lambda sock: sock.fileno() == fd)
    if theirs.fileno() != fd:
        os.dup2(theirs.fileno(), fd)
        theirs.close()
        theirs = socket.socket(fileno=fd)
    assert server.adopt(theirs).fileno() == fd
    stranger.sendall(b"before")
    assert read_exactly(stranger, 6) == b"before"
    go.set()
    wait_until(server.drops)
    stranger.sendall(b"after")
    assert read_exactly(stranger, 5) == b"after"
    assert server.statistics().errors == 0
    assert server.drops() == [DropReason.LOST]
    stranger.close()


def test_the_callback_survives_a_connection_that_another_one_ended(serve, connect, capsys):
    """Rule 3: two events in one harvest; the greenlet woken by the first closes the second's connection."""

    class Pair(Recorder):
        def handle(self, conn):
            self.calls.append(("handle", conn))
            conn.recv()
            for other in self.connections:
                other.abort()

    server = serve(Pair)
    socks = [connect(server) for _ in range(4)]
    wait_until(lambda: server.names().count("handle") == 4)
    for sock in socks:
        sock.sendall(b"x")
    wait_until(lambda: len(server.drops()) == 4)
    assert server.statistics().errors == 0
    assert server.statistics().active == 0
    assert not capsys.readouterr().err  # the callback was not cut short


def test_downcalls_wake_while_every_worker_is_blocked(serve, connect):
    """Rule 6: in every kind of wait, for waking happens in the hub."""

    class One(Recorder):
        max_workers = 1

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"all":
                conn.send(conn.recv(4))  # a read
                conn.send(b"x" * 8_000_000)  # a send
                try:
                    conn.recv(timeout=0.01)  # a deadline
                except TimeoutError:
                    conn.send(b"late")
                gevent.sleep(PAUSE)  # a timer

    server = serve(One)
    sock, other = connect(server), connect(server)
    sock.sendall(b"all")
    wait_until(lambda: server.received() == b"all")
    assert server.statistics().workers_busy == 1
    other.sendall(b"other")
    sock.sendall(b"wake")
    assert read_exactly(sock, 4) == b"wake"
    assert b"other" not in server.received()
    for _ in range(8):
        read_exactly(sock, 1_000_000)
    assert read_exactly(sock, 4) == b"late"
    wait_until(lambda: b"other" in server.received())
    assert server.statistics().workers == 1


def test_an_error_of_the_network_out_of_an_upcall_is_no_traceback(serve, connect, caplog):
    """Rule 13: EPIPE and ECONNRESET are reasons for a drop; told once, counted as a drop, not as an error."""

    class Talker(Recorder):
        def connection_recv(self, conn, data):
            send_for_ever(conn)

    server = serve(Talker)
    sock = connect(server)
    sock.sendall(b"x")
    read_exactly(sock, 1)
    reset(sock)
    wait_until(server.drops)
    assert server.drops() == [DropReason.LOST]
    (error,) = server.errors()
    assert isinstance(error, ConnectionLost)
    assert isinstance(error.__cause__, OSError)
    assert server.statistics().errors == 0
    assert dict(server.statistics().dropped) == {"LOST": 1}
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("framer", [None, Lines()], ids=["plain", "framed"])
def test_an_upcall_that_closed_gets_nothing_more(serve, connect, framer):
    """Not from the stash, not from the framer, and not what comes while the answer is flushed."""
    answer = b"x" * 8_000_000

    class Closer(Recorder):
        max_send_queue = len(answer)

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            conn.unread(b"put back\n")
            conn.send_nowait(answer)
            conn.close()
            for receive in (conn.recv, conn.read_line, lambda: conn.read_exactly(1), lambda: next(iter(conn))):
                go.wait()
                try:
                    self.calls.append(("got", receive()))
                except ConnectionClosed as error:
                    self.calls.append(("closed", error.reason))

    go = gevent.event.Event()
    server = serve(Closer, framer=framer)
    sock = connect(server)
    sock.sendall(b"one\ntwo\n")
    wait_until(server.received)
    sock.sendall(b"three\n")
    assert read_exactly(sock, 1) == b"x"
    go.set()
    wait_until(server.drops)
    read_exactly(sock, len(answer) - 1)
    assert sock.recv(1) == b""
    assert server.names() == ["new", "recv", "closed", "closed", "closed", "closed", "drop"]
    assert server.drops() == [DropReason.CLOSED]


def test_an_acceptor_that_is_refused_can_be_started_again(serve, connect, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(get_poller(), "_epoll", Refusing())
        server = serve(Echo)
        wait_until(lambda: "has stopped" in caplog.text, 1)
    sock = connect(server)
    sock.settimeout(1.0)
    sock.sendall(b"x")
    server.start_accepting()
    assert read_exactly(sock, 1) == b"x"


def test_the_end_is_told_once_whatever_leads_to_it(serve, connect):
    server = serve(Recorder)
    sock = connect(server)
    (conn,) = wait_until(lambda: server.connections)
    sock.close()
    wait_until(server.drops)
    get_poller().queue(conn)
    wait_until(lambda: not server._workers.ready)
    assert server.drops() == [DropReason.PEER_CLOSED]
    statistics = server.statistics()
    assert (statistics.active, dict(statistics.dropped)) == (0, {"PEER_CLOSED": 1})
