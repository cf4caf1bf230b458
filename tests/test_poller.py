"""The engine by itself: recovery, deadlines, one poller a hub; and the workers."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import subprocess
import sys
import time
import weakref

import gevent
import pytest
from conftest import PATIENCE, greenlets, read_exactly, wait_until
from pairs import connected, let_engine_look, longest_between_ticks
from served import Calls, pure_only

from greensock import Server
from greensock.core import poller as poller_module
from greensock.core.poller import Endpoint, Poller, get_poller
from greensock.core.syscalls import EVENT_READ


class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)


def test_callback_that_is_cut_short_loses_no_event(serve, connect, monkeypatch, capsys):
    """Rule 1: a signal's exception can come up anywhere in the hub."""
    server = serve(Echo)
    socks = [connect(server) for _ in range(5)]
    wait_until(lambda: server.statistics().active == 5)
    poller, times = get_poller(), []
    ready = server._workers.ready

    class Cut:
        """In the place of the queue when it is looked at."""

        def append(self, conn):
            conn._idle = True  # as if it had not been told

        def __bool__(self):
            times.append(1)
            server._workers.ready = ready
            for conn in server.connections:
                conn._ready = ready.append
            raise RuntimeError("out of nowhere")

    server._workers.ready = cut = Cut()
    for conn in server.connections:
        conn._ready = cut.append
    for sock in socks:
        sock.sendall(b"x")
    for sock in socks:
        assert read_exactly(sock, 1) == b"x"
    assert times
    assert "out of nowhere" in capsys.readouterr().err
    assert poller is get_poller()


def test_a_call_that_orders_the_next_goes_on_in_the_next_pass():
    """So what is done in many small steps leaves timers and events their turn."""
    poller, steps = get_poller(), []

    def step():
        steps.append(len(steps))
        if len(steps) < 3:
            poller.call_soon(step)

    poller.call_soon(step)
    poller._on_events()
    assert steps == [0]
    wait_until(lambda: steps == [0, 1, 2])


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_room_and_data_that_come_in_one_event(kind):
    """What waits to be sent goes first: whoever is woken to read may close the connection."""
    for conn, peer in connected(kind):
        conn.max_send_queue, queued = 1 << 24, []

        def read(conn=conn, queued=queued):
            conn.recv()
            queued.append(conn._queued)

        conn.send_nowait(bytes(8_000_000))
        reading, before = gevent.spawn(read), conn._queued
        gevent.sleep(0)
        os.write(peer.fileno(), b"x")
        received = read_what_is_there(peer)  # the hub does not run in between
        assert conn._queued == before
        reading.join(PATIENCE)
        assert queued[0] < before
        while received < 8_000_000:
            received += len(peer.recv(1 << 20))


def read_what_is_there(peer):
    received = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            received += len(os.read(peer.fileno(), 1 << 20))
    return received


@pytest.mark.parametrize("first", ["a turn that is due", "an event"])
def test_what_is_queued_for_a_turn_is_queued_once(serve, connect, first):
    """An event that comes before the turn only sets flags."""
    server = serve(Echo)
    sock = connect(server)
    (conn,) = wait_until(lambda: server.connections)
    assert conn._idle
    poller = get_poller()
    if first == "an event":
        poller._tell(conn, EVENT_READ)
    else:
        poller.queue(conn)
    poller._tell(conn, EVENT_READ)
    assert list(conn._ready.__self__) == [conn]
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def test_who_waits_for_a_worker_is_queued_once_whatever_comes(serve, connect):
    go = gevent.event.Event()

    class Slow(Server):
        max_workers = 1

        def connection_recv(self, conn, data):
            conn.send(data)
            go.wait()

    server = serve(Slow)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    sock = connect(server)
    wait_until(lambda: server.statistics().active == 2)
    for letter in b"ab":
        sock.sendall(bytes([letter]))
        (waiting,) = wait_until(lambda: list(server._workers.ready))
        let_engine_look()
        assert list(server._workers.ready) == [waiting]
    go.set()
    assert read_exactly(sock, 2) == b"ab"


def test_a_raw_greenlet_that_dies_in_a_wake_up_stops_nobody(serve, connect, capsys):
    class Blocking(Server):
        def handle(self, conn):
            reading.append(gevent.spawn_raw(read_and_fail, conn))
            gone.wait()

    def read_and_fail(conn):
        conn.recv()
        gone.set()
        raise RuntimeError("raw")

    reading, gone = [], gevent.event.Event()
    server, echo = serve(Blocking), serve(Echo)
    one, two = connect(server), connect(echo)
    wait_until(lambda: reading)
    one.sendall(b"x")
    for _ in range(3):
        two.sendall(b"x")
        assert read_exactly(two, 1) == b"x"
    assert "raw" in capsys.readouterr().err


def test_deadlines_do_not_pile_up(serve, connect):
    """Rule 7: one heap entry a connection is valid, and void ones are thrown away."""

    class Fidget(Server):
        def handle(self, conn):
            while conn.recv(timeout=50):
                try:
                    conn.recv(timeout=0.0005)
                except TimeoutError:
                    conn.send(b"x")

    server = serve(Fidget)
    sock = connect(server)
    longest = 0
    for _ in range(300):
        sock.sendall(b"x")
        read_exactly(sock, 1)
        longest = max(longest, len(get_poller()._deadlines))
    assert longest <= 70


def test_deadlines_fire_in_order_and_not_early(serve, connect):
    fired = []

    class Waiting(Server):
        def handle(self, conn):
            seconds = conn.read_exactly(1)[0] / 100
            started = gevent.get_hub().loop.now()
            try:
                conn.recv(timeout=seconds)
            except TimeoutError:
                gevent.get_hub().loop.update_now()
                fired.append((seconds, gevent.get_hub().loop.now() - started))

    server = serve(Waiting)
    socks = [connect(server) for _ in range(5)]
    for sock, hundredths in zip(socks, (5, 1, 3, 4, 2), strict=True):
        sock.sendall(bytes([hundredths]))
    wait_until(lambda: len(fired) == 5)
    assert [seconds for seconds, _ in fired] == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert all(took >= seconds - 0.002 for seconds, took in fired)


THREADS = """
import gevent, socket, sys, threading
from greensock import Server
from greensock.core.poller import get_poller

class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)

ready, done, pollers = threading.Barrier(3), threading.Event(), []
PAUSE = 0.001

def serve():
    server = Echo(("127.0.0.1", 0))
    server.start()
    pollers.append(get_poller())
    ports.append(server.server_port)
    ready.wait()
    while not done.is_set():
        gevent.sleep(PAUSE)
    server.stop()
    get_poller().close()
    gevent.get_hub().destroy(destroy_loop=True)

ports = []
threads = [threading.Thread(target=serve) for _ in range(2)]
for thread in threads:
    thread.start()
ready.wait()
for port in ports:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
done.set()
for thread in threads:
    thread.join()
assert len({id(poller) for poller in [*pollers, get_poller()]}) == 3
"""


def test_one_poller_a_thread():
    """Rule 12."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


LAST = """
import ctypes
from greensock.core import poller
poller.get_poller()
ctypes.pythonapi.Py_IncRef(ctypes.py_object(poller))  # so that its names are cleared, one after the other
"""


def test_the_end_of_the_program_is_silent():
    done = subprocess.run([sys.executable, "-c", LAST], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_downcall_in_the_hub_is_refused(serve, connect):
    server = serve(Echo)
    sock = connect(server)
    (conn,) = wait_until(lambda: server.connections)
    caught = []

    def in_the_hub():
        try:
            conn.recv()
        except gevent.exceptions.BlockingSwitchOutError as error:
            caught.append(error)

    gevent.get_hub().loop.run_callback(in_the_hub)
    wait_until(lambda: caught)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def burst(serve, connect):
    """Have 20 upcalls block at once, and then answer; return the server and the sockets of the clients."""
    go = gevent.event.Event()

    class Slow(Server):
        def connection_recv(self, conn, data):
            go.wait()
            conn.send(data)

    server = serve(Slow)
    socks = [connect(server) for _ in range(20)]
    for sock in socks:
        sock.sendall(b"x")
    wait_until(lambda: server.statistics().workers_busy == 20)
    go.set()
    for sock in socks:
        assert read_exactly(sock, 1) == b"x"
    return server, socks


def test_workers_are_reused_and_let_go(serve, connect):
    server, socks = burst(serve, connect)
    assert (server.statistics().workers, server.statistics().workers_busy) == (20, 0)
    for _ in range(3):
        for sock in socks:
            sock.sendall(b"x")
            read_exactly(sock, 1)
    assert server.statistics().workers == 20
    before = len(greenlets())
    server.stop()
    wait_until(lambda: len(greenlets()) <= before - 20)


class Once(Server):
    def handle(self, conn):
        conn.send(conn.recv())
        conn.recv()


@pytest.mark.parametrize("kind", [Echo, Once])
def test_a_worker_that_waits_for_work_holds_no_connection(serve, connect, kind):
    server = serve(kind, recv_timeout=None)  # with one, a void deadline would hold it for a while
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    seen = weakref.ref(server.connections[0])
    sock.close()
    wait_until(lambda: not server.statistics().active)
    gc.collect()
    assert server._workers.count == 1
    assert seen() is None


def test_only_so_many_workers_are_kept(serve, connect, monkeypatch):
    """What a burst of upcalls that block has needed is let go again."""
    monkeypatch.setattr("greensock.core.workers.MAX_PARKED", 3)
    server, _ = burst(serve, connect)
    wait_until(lambda: server.statistics().workers == 3)


def test_an_exception_that_comes_too_late_for_its_upcall(serve, connect, caplog):
    class Remember(Server):
        def connection_recv(self, conn, data):
            self.worker = gevent.getcurrent()
            conn.send(data)

    server = serve(Remember)
    sock = connect(server)
    for _ in range(3):
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        gevent.kill(server.worker)
        gevent.sleep(0)
    assert "too late" in caplog.text
    assert server.statistics().workers == 1


def test_unpatched_program_is_told_once():
    program = (
        "import logging; logging.basicConfig(); from greensock import Server\n"
        "for _ in range(2):\n    with Server(('127.0.0.1', 0)): pass\n"
        "import socket; from gevent.monkey import is_module_patched; assert not is_module_patched('socket')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stderr.count("monkey-patched") == 1


def test_events_need_an_endpoint_to_keep_the_loop_alive():
    """Neither the watcher nor a deadline that has become void keeps a program from its end."""
    poller = get_poller()
    for conn, _ in connected("tcp"):
        conn.set_deadline(60)
        assert poller._watcher.active
    assert not poller._watcher.active
    with pytest.raises(gevent.exceptions.LoopExit):
        gevent.event.Event().wait()


def test_timers_fire_in_time_beside_a_flood_of_work(serve, connect):
    """Rule 5: what is left of a turn goes through the loop, timers and all, and not through its callbacks only."""

    class Busy(Server):
        recv_size = 1000
        turn_budget = 5000
        done = 0

        def connection_recv(self, conn, data):
            end = time.thread_time() + 0.001
            while time.thread_time() < end:
                pass
            self.done += len(data)

    server = serve(Busy)
    sock = connect(server)
    sock.sendall(bytes(400_000))
    assert longest_between_ticks(lambda: server.done == 400_000) < 0.1


# -- a poller by itself, beside the hub's own


@pytest.fixture
def fresh():
    """One that has made no pass so far."""
    poller = Poller(gevent.get_hub())
    yield poller
    poller.close()


class Due(Endpoint):
    """Notes that it came due."""

    def __init__(self, poller, fired):
        super().__init__(poller, -1)
        self.fired = fired

    def _on_deadline(self, now):
        self.fired.append(self)
        return math.inf


def test_it_works_from_its_first_moment_on(fresh):
    """Before its first pass: who reads on is put off, and a call that is ordered is made."""
    called, flooded = [], Endpoint(fresh, -1)
    flooded._readable = True
    fresh.pause_if_late(flooded)
    assert not flooded._readable
    fresh.call_soon(lambda: called.append(1))
    wait_until(lambda: called)


@pytest.mark.parametrize(("seconds", "ran"), [(PATIENCE, 3), (-1.0, 1)])
def test_what_was_put_off_goes_on_until_the_time_for_that_is_over(fresh, monkeypatch, seconds, ran):
    """And at least one of them does, so that each pass gets on."""
    monkeypatch.setattr(poller_module, "SLICE_SECONDS", seconds)
    calls = []
    for number in range(3):
        fresh._go_on_later(lambda number=number: calls.append(number))
    fresh._on_events()
    assert calls == list(range(ran))
    wait_until(lambda: calls == [0, 1, 2])


def test_a_pass_that_was_ordered_before_the_end_does_nothing(capsys):
    poller, called = Poller(gevent.get_hub()), []
    poller.call_soon(lambda: called.append(1))
    poller.close()
    let_engine_look()
    poller._on_events()
    assert (called, capsys.readouterr().err) == ([], "")


def test_a_deadline_that_is_nearer_has_the_one_timer(fresh):
    first, second, now = Endpoint(fresh, -1), Endpoint(fresh, -1), time.monotonic()
    fresh.arm(first, now + 60)
    timer = fresh._timer
    fresh.arm(second, now + 30)
    assert fresh._timer_due == now + 30
    assert not timer.active, "it would go off in vain"


@pure_only
def test_each_deadline_that_comes_due_costs_one_timer(fresh):
    fresh._set_timer, fired, now = Calls(fresh._set_timer), [], time.monotonic()
    both = [Due(fresh, fired) for _ in range(2)]
    for number, endpoint in enumerate(both, 1):
        fresh.arm(endpoint, now + 0.01 * number)
    wait_until(lambda: fired == both)
    assert fresh._set_timer.count <= 2
    del fresh._set_timer


def test_void_deadlines_do_not_hold_what_is_closed(fresh):
    """Not until the next one is armed, which may never be."""
    closed = [Endpoint(fresh, -1) for _ in range(200)]
    for number, endpoint in enumerate(closed):
        fresh.arm(endpoint, time.monotonic() + 60 + number)
    assert len(fresh._deadlines) == 200
    for endpoint in closed:
        fresh.disarm(endpoint)
    assert len(fresh._deadlines) <= 64


def test_an_end_whose_event_was_lost_is_told(capsys):
    """A callback that is cut short has fetched events from the kernel that do not come again."""
    poller, told = get_poller(), []
    for conn, peer in connected("tcp"):
        conn.notify_disconnect(lambda: told.append(1))
        let_engine_look()
        peer.close()
        while not poller._epoll.poll(0):
            pass
        poller._recover(RuntimeError("cut short"))
        wait_until(lambda: told)
    assert "cut short" in capsys.readouterr().err
