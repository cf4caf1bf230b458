"""The limits of a server: of time, of memory, of connections and of workers."""

from __future__ import annotations

import contextvars

import gevent
import gevent.event
from conftest import PAUSE, read_all, read_exactly, wait_until
from served import Echo, Recorder

from greensock import (
    DropReason,
)


def test_idle_timeout(serve, connect):
    limit = 0.1
    server = serve(Echo, idle_timeout=limit)
    silent, busy = connect(server), connect(server)
    for _ in range(10):
        busy.sendall(b"x")
        assert read_exactly(busy, 1) == b"x"
        gevent.sleep(0.3 * limit)
    assert read_all(silent) == b""
    wait_until(lambda: len(server.drops()) == 1)
    assert server.drops() == [DropReason.IDLE_TIMEOUT]
    assert read_all(busy) == b""


def test_recv_timeout_in_handle_is_a_reason(serve, connect, caplog):
    class Blocking(Recorder):
        recv_timeout = 0.05

        def handle(self, conn):
            conn.recv()

    server = serve(Blocking)
    sock = connect(server)
    assert read_all(sock) == b""
    wait_until(server.drops)
    assert server.drops() == [DropReason.RECV_TIMEOUT]
    assert not [record for record in caplog.records if record.exc_info]


def test_send_timeout_and_bounded_memory(serve, connect, caplog):
    class Talker(Recorder):
        send_timeout = 0.1
        linger_timeout = 0.1

        def connection_new(self, conn):
            super().connection_new(conn)
            while True:
                conn.send(b"x" * 65536)
                assert conn.statistics().bytes_queued <= 65536

    server = serve(Talker)
    sock = connect(server)
    wait_until(server.drops)
    assert server.drops() == [DropReason.SEND_TIMEOUT]
    assert not [record for record in caplog.records if record.exc_info]
    sock.close()


def test_blocking_style(serve, connect):
    class Blocking(Recorder):
        def handle(self, conn):
            for line in conn:
                conn.send(line.upper() + b"\n")

    server = serve(Blocking)
    socks = [connect(server) for _ in range(10)]
    for sock in socks:
        sock.sendall(b"one\r\ntwo\n")
    for sock in socks:
        assert read_exactly(sock, 8) == b"ONE\nTWO\n"
        sock.close()
    wait_until(lambda: len(server.drops()) == 10)
    assert set(server.drops()) == {DropReason.PEER_CLOSED}
    assert server.names().count("new") == 10


def test_max_connections_leaves_the_rest_in_the_backlog(serve, connect):
    server = serve(Echo, max_connections=2)
    socks = [connect(server) for _ in range(4)]
    for sock in socks:
        sock.sendall(b"x")
    assert read_exactly(socks[0], 1) == read_exactly(socks[1], 1) == b"x"
    for _ in range(3):  # the engine goes round, and could have accepted
        socks[0].sendall(b"x")
        assert read_exactly(socks[0], 1) == b"x"
    assert server.statistics().accepted == 2
    socks[0].close()
    assert read_exactly(socks[2], 1) == b"x"
    socks[1].close()
    assert read_exactly(socks[3], 1) == b"x"


def test_max_workers_queues_turns_but_still_wakes_downcalls(serve, connect):
    """Rule 6: when all workers are blocked the ready queue waits, and downcalls still wake."""

    class Two(Recorder):
        max_workers = 2

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"block":
                conn.send(conn.recv())
            else:
                conn.send(data)

    server = serve(Two)
    first, second, third = connect(server), connect(server), connect(server)
    first.sendall(b"block")
    second.sendall(b"block")
    wait_until(lambda: server.received() == b"blockblock")
    third.sendall(b"third")
    wait_until(lambda: len(server._workers.ready) == 1)  # it was noticed
    assert b"third" not in server.received()
    first.sendall(b"wake")
    assert read_exactly(first, 4) == b"wake"
    assert read_exactly(third, 5) == b"third"
    assert server.statistics().workers == 2
    second.sendall(b"wake")
    assert read_exactly(second, 4) == b"wake"


def test_one_worker_serves_a_batch(serve, connect):
    server = serve(Echo)
    socks = [connect(server) for _ in range(50)]
    for _ in range(3):
        for sock in socks:
            sock.sendall(b"x")
        for sock in socks:
            read_exactly(sock, 1)
    assert server.statistics().workers == 1


def test_upcalls_of_one_connection_never_overlap(serve, connect):
    """Rule 4: an event for a busy connection only sets flags."""

    class Slow(Recorder):
        inside = 0

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            self.inside += 1
            assert self.inside == 1
            gevent.sleep(5 * PAUSE)  # so that more comes meanwhile
            self.inside -= 1

    server = serve(Slow)
    sock = connect(server)
    for _ in range(20):
        sock.sendall(b"x" * 10)
        gevent.sleep(PAUSE)
    wait_until(lambda: len(server.received()) == 200)
    assert server.statistics().errors == 0


def test_a_flood_does_not_starve_a_whisper_nor_timers(serve, connect):
    """Rule 5: a turn has a budget, and what is left over goes through the loop."""

    class Sink(Recorder):
        turn_budget = 65536

        def connection_recv(self, conn, data):
            if len(data) < 10:
                conn.send(data)

    server = serve(Sink)
    flood, whisper = connect(server), connect(server)
    flooding = gevent.spawn(lambda: [flood.sendall(b"x" * 1_000_000) for _ in range(200)])
    slowest = 0.0
    for _ in range(20):
        before = gevent.get_hub().loop.update_now() or gevent.get_hub().loop.now()
        whisper.sendall(b"hi")
        read_exactly(whisper, 2)
        gevent.get_hub().loop.update_now()
        slowest = max(slowest, gevent.get_hub().loop.now() - before)
    flooding.kill()
    assert slowest < 0.5


def test_a_flooding_turn_ends_after_its_budget(serve, connect):
    turns = []

    class Sink(Recorder):
        recv_size = 1000
        turn_budget = 5000

        def connection_recv(self, conn, data):
            turns[-1].append(len(data))

        def connection_recv_finish(self, conn):
            turns.append([])

    turns.append([])
    server = serve(Sink)
    sock = connect(server)
    server.stop_accepting()
    sock.sendall(b"x" * 60_000)
    wait_until(lambda: sum(map(sum, turns)) == 60_000)
    assert max(map(sum, turns)) <= 5000


def test_context_variables_are_fresh_in_every_turn(serve, connect):

    variable = contextvars.ContextVar("variable", default=0)

    class Counter(Recorder):
        def connection_recv(self, conn, data):
            conn.send(b"%d" % variable.get())
            variable.set(variable.get() + 1)

    server = serve(Counter)
    sock = connect(server)
    for _ in range(3):
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"0"
