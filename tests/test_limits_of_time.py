"""What bounds the time of a connection: at rest, in a downcall, in the engine's hands, and of the whole."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import time

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from pairs import connected, drain, read_all_fast, reset, tcp_pair, wrap

from greensock import (
    HALF_OPEN,
    Connection,
    ConnectionClosed,
    DropReason,
    Lines,
    OperationTimeout,
    Server,
    State,
)
from greensock.core import idle as idle_module
from greensock.core.idle import IdleSweep
from greensock.core.pace import Pace, unsent
from greensock.core.poller import get_poller
from greensock.http import HTTPServer, Response, WSGIServer

pytestmark = pytest.mark.alone


class Recording(Server):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.ended = []

    def connection_drop(self, conn):
        self.ended.append(conn.drop_reason)


# -- at rest


class Resting(Recording):
    def connection_recv(self, conn, data):
        conn.send(data)


def test_who_rests_is_dropped_and_who_does_not_is_kept(serve, connect):
    limit = 0.2
    server = serve(Resting, idle_timeout=limit)
    silent, busy = connect(server), connect(server)
    while not server.ended:
        busy.sendall(b"x")
        assert read_exactly(busy, 1) == b"x"
        gevent.sleep(limit / 10)
    assert read_all(silent) == b""
    assert server.ended == [DropReason.IDLE_TIMEOUT]
    assert read_all(busy) == b""


def test_the_limit_is_kept_within_an_eighth(serve, connect):
    server = serve(Resting, idle_timeout=0.8)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    began = time.monotonic()
    assert read_all(sock) == b""
    assert 0.8 <= time.monotonic() - began < 1.2, "an eighth to notice it, and what a busy machine adds"


@pytest.mark.parametrize(
    "kind", ["blocked in recv", "blocked elsewhere", "blocked in send", "spliced", "in handle", "in a queue", "in new"]
)
def test_no_upcall_is_cut_short_by_it(serve, connect, kind):
    """Each phase has a limit of its own: what is not at rest is none of the idle limit's."""
    go = gevent.event.Event()

    def work(conn):
        match kind:
            case "blocked in recv" | "in handle" | "in new":
                conn.recv(timeout=PATIENCE)
            case "blocked in send":
                conn.send(bytes(20_000_000), timeout=PATIENCE)
            case "spliced":
                other, theirs = tcp_pair()
                target = wrap(other)
                conn.splice(target, 4)
                target.abort()
                theirs.close()
            case _:
                go.wait(PATIENCE)
        conn.send(b"done")

    class Working(Recording):
        def connection_new(self, conn):
            if kind == "in new":
                work(conn)

        def connection_recv(self, conn, data):
            work(conn)
            return

    class Handling(Recording):
        def handle(self, conn):
            work(conn)

    limit = 0.1
    kind_of_server = Handling if kind == "in handle" else Working
    server = serve(kind_of_server, idle_timeout=limit, recv_timeout=None, send_timeout=None)
    sock = connect(server)
    if kind not in ("in handle", "in new"):
        sock.sendall(b"go on")
    gevent.sleep(3 * limit)
    assert server.ended == []
    go.set()
    if kind == "blocked in send":
        reading = gevent.spawn(read_all_fast, sock)
        assert reading.get(timeout=PATIENCE).endswith(b"done")
    else:
        sock.sendall(b"more")
        assert read_exactly(sock, 4) == b"done"
    wait_until(lambda: server.ended)
    assert server.ended == [DropReason.IDLE_TIMEOUT if kind != "in handle" else DropReason.CLOSED]


@pytest.mark.parametrize("what", ["half open", "framed in part", "postponed"])
def test_rest_of_every_kind(serve, connect, what):
    class Half(Recording):
        def connection_eof(self, conn):
            return HALF_OPEN if what == "half open" else None

    server = serve(Half, idle_timeout=0.1, framer=Lines() if what == "framed in part" else None)
    sock = connect(server)
    if what == "half open":
        sock.shutdown(socket.SHUT_WR)
    else:
        sock.sendall(b"part")
    assert read_all(sock) == b""
    wait_until(lambda: server.ended)
    assert server.ended == [DropReason.IDLE_TIMEOUT]


def test_it_costs_no_connection_a_timer_or_a_deadline(serve, connect):
    server = serve(Resting, idle_timeout=60.0)
    socks = [connect(server) for _ in range(50)]
    for sock in socks:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
    assert get_poller()._armed_count == 0


def test_the_sweep_goes_in_slices(serve, connect, monkeypatch):
    """However many connections there are, others get their turn in between; and nobody is forgotten."""
    monkeypatch.setattr(idle_module, "SLICE", 7)
    server = serve(Resting, idle_timeout=0.2)
    socks = [connect(server) for _ in range(50)]
    wait_until(lambda: server.statistics().active == 50)
    slices = []
    look = IdleSweep._sweep
    monkeypatch.setattr(IdleSweep, "_sweep", lambda sweep: (slices.append(sweep), look(sweep))[1])
    for sock in socks:
        assert read_all(sock) == b""
    wait_until(lambda: len(server.ended) == 50)
    assert set(server.ended) == {DropReason.IDLE_TIMEOUT}
    assert len(slices) > 7


def test_servers_of_one_hub_have_each_their_own(serve, connect):
    short, none, long = (serve(Resting, idle_timeout=seconds) for seconds in (0.1, None, 60.0))
    socks = [connect(server) for server in (short, none, long)]
    assert read_all(socks[0]) == b""
    assert read_all(connect(short)) == b"", "so all had been there for twice as long"
    assert (short.ended, none.ended, long.ended) == (2 * [DropReason.IDLE_TIMEOUT], [], [])


def test_a_stopped_server_sweeps_no_more(serve, connect):
    server = serve(Resting, idle_timeout=0.08)
    sweep = server._sweep
    server.stop(0)
    assert sweep._timer is None
    server.start()
    assert server._sweep is not sweep
    assert read_all(connect(server)) == b"", "and one that is started again does"


def test_a_program_with_nothing_to_do_ends():
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import gevent; from greensock import Server\n"
        "server = Server(('127.0.0.1', 0), idle_timeout=60.0); server.start(); server.stop_accepting()\n"
        "gevent.wait(timeout=20); print('ended')\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ended\n"
    assert time.monotonic() - began < 10, "the sweep's timer keeps nobody"


# -- what a peer takes


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    yield from connected(request.param)


#: What a slow reader takes at a time: on the loopback its system tells the sender of no less than 64 KiB at a time.
SIP, PAUSE = 20_000, 0.02


def sip(sock, size, pause, seconds):
    """Read so many bytes at a time, for so many seconds; return how many came."""
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        count += len(sock.recv(size))
        gevent.sleep(pause)
    return count


def test_a_steady_slow_reader_is_not_cut_off(pair):
    """It never pauses as long as ``send_timeout``, though the socket is not writable for longer than that."""
    conn, peer = pair
    conn.send_timeout, conn.min_send_rate = 0.5, 256
    sending = gevent.spawn(conn.send, bytes(16_000_000))
    assert sip(peer, SIP, PAUSE, 1.5) > 0
    assert not sending.ready(), "what is sent is more than it read"
    conn.abort()
    with pytest.raises(ConnectionClosed):
        sending.get(timeout=PATIENCE)


def test_who_takes_nothing_is_cut_off_in_time(pair):
    conn, _ = pair
    conn.send_timeout = 0.4
    began = time.monotonic()
    with pytest.raises(OperationTimeout, match=r"and nothing for 0\.4 s") as caught:
        conn.send(bytes(16_000_000))
    assert 0.4 <= time.monotonic() - began < 0.9
    assert caught.value.connection is conn


def test_who_stops_is_cut_off_a_quarter_late_at_most(pair):
    conn, peer = pair
    conn.send_timeout, conn.min_send_rate = 0.4, 0
    sending = gevent.spawn(conn.send, bytes(16_000_000))
    sip(peer, SIP, PAUSE, 0.6)
    began = time.monotonic()
    with pytest.raises(OperationTimeout):
        sending.get(timeout=PATIENCE)
    assert time.monotonic() - began < 0.8


def test_a_byte_now_and_then_is_not_enough(pair):
    conn, peer = pair
    conn.send_timeout, conn.min_send_rate = 0.4, 256
    sending = gevent.spawn(conn.send, bytes(16_000_000))
    sipping = gevent.spawn(sip, peer, 1, 0.1, PATIENCE)
    with pytest.raises(OperationTimeout, match="less than 256 a second"):
        sending.get(timeout=PATIENCE)
    sipping.kill()


def test_an_explicit_timeout_is_for_the_whole_call(pair):
    conn, peer = pair
    conn.min_send_rate = 0
    sending = gevent.spawn(conn.send, bytes(16_000_000), timeout=0.4)
    began = time.monotonic()
    sipping = gevent.spawn(sip, peer, SIP, PAUSE, PATIENCE)
    with pytest.raises(OperationTimeout, match=r"bytes in 0\.4 s"):
        sending.get(timeout=PATIENCE)
    assert time.monotonic() - began < 0.9
    sipping.kill()


@pytest.mark.parametrize("how", ["send_file", "splice"])
def test_files_and_splices_go_by_progress_too(pair, tmp_path, how):
    conn, peer = pair
    conn.send_timeout, conn.min_send_rate = 0.4, 0
    (one, left) = tcp_pair()
    source = wrap(one)
    if how == "send_file":
        (tmp_path / "file").write_bytes(bytes(16_000_000))
        file = (tmp_path / "file").open("rb")
        sending = gevent.spawn(conn.send_file, file)
    else:
        file = None
        feeding = gevent.spawn(left.sendall, bytes(16_000_000))
        sending = gevent.spawn(source.splice, conn, timeout=PATIENCE, send_timeout=0.4)
    sip(peer, SIP, PAUSE, 1.0)
    assert not sending.ready()
    with pytest.raises(OperationTimeout):
        sending.get(timeout=PATIENCE)
    if file is not None:
        file.close()
    else:
        feeding.kill()
    source.abort()
    left.close()


def test_what_send_nowait_keeps_has_the_same_limit(serve, connect):
    """Nobody waits for it: the engine notices."""

    class Telling(Recording):
        def connection_recv(self, conn, data):
            conn.send_nowait(bytes(16_000_000))

    server = serve(Telling, max_send_queue=1 << 24, send_timeout=0.3, idle_timeout=None)
    silent, reading = connect(server), connect(server)
    for sock in (silent, reading):
        sock.sendall(b"x")
    assert len(read_exactly_fast_of(reading, 16_000_000)) == 16_000_000
    wait_until(lambda: server.ended)
    assert server.ended == [DropReason.SEND_TIMEOUT]
    with pytest.raises(ConnectionResetError):
        drain_or_raise(silent)


def read_exactly_fast_of(sock, count):
    pieces, size = [], 0
    while size < count:
        pieces.append(sock.recv(1 << 20))
        size += len(pieces[-1])
    return b"".join(pieces)


def drain_or_raise(sock):
    while sock.recv(1 << 20):
        pass


def test_nothing_can_be_sent_behind_a_fin(pair):
    conn, _ = pair
    conn.shutdown_write()
    conn.shutdown_write()  # twice is harmless
    for _ in range(3):
        with pytest.raises(ConnectionClosed, match="shutdown_write was called"):
            conn.send_nowait(bytes(conn.max_send_queue))
    assert conn.statistics().bytes_queued == 0
    assert conn._kept == 0


def test_send_says_how_much_it_sent(pair):
    conn, peer = pair
    assert conn.send(b"") == 0
    assert conn.send(b"abc") == 3
    assert conn.send([b"ab", bytearray(b"c"), memoryview(b"d")]) == 4
    reading = gevent.spawn(read_exactly_fast_of, peer, 8_000_007)
    assert conn.send(bytes(8_000_000)) == 8_000_000
    reading.get(timeout=PATIENCE)


# -- closing


@pytest.mark.parametrize("linger", [0.0, 0.4])
def test_close_flushes_what_is_queued(linger):
    """Also if nobody is to be waited for behind it; a steady slow reader gets all."""
    for conn, peer in connected("tcp"):
        conn.linger_timeout, conn.send_timeout, conn.max_send_queue = linger, 0.4, 1 << 24
        conn.send_nowait(bytes(12_000_000))
        conn.close()
        assert conn.state is State.CLOSING
        count = sip(peer, SIP, PAUSE, 1.0)
        assert conn.state is State.CLOSING, "it takes something"
        assert count + len(read_all_fast(peer)) == 12_000_000
        if not linger:
            conn.wait_closed(PATIENCE)


@pytest.mark.parametrize("linger", [0.0, 0.3])
def test_a_flush_that_goes_nowhere_ends(linger):
    for conn, peer in connected("tcp"):
        conn.linger_timeout, conn.send_timeout, conn.max_send_queue = linger, 0.3, 1 << 24
        conn.send_nowait(bytes(12_000_000))
        began = time.monotonic()
        conn.close()
        conn.wait_closed(PATIENCE)
        assert 0.3 <= time.monotonic() - began < 0.8
        with pytest.raises(ConnectionResetError):
            drain_or_raise(peer)


def test_a_sip_now_and_then_does_not_keep_a_flush_for_ever():
    for conn, peer in connected("tcp"):
        conn.linger_timeout, conn.min_send_rate, conn.max_send_queue = 0.3, 256, 1 << 24
        conn.send_nowait(bytes(12_000_000))
        conn.close()
        sipping = gevent.spawn(sip, peer, 1, 0.05, PATIENCE)
        conn.wait_closed(3.0)
        sipping.kill()


# -- a deadline of one's own


@pytest.mark.parametrize("doing", ["rest", "recv", "send", "elsewhere"])
def test_a_deadline_of_ones_own(serve, connect, doing):
    raised, limit = [], 0.2

    class Short(Recording):
        def connection_new(self, conn):
            conn.set_deadline(limit)

        def connection_recv(self, conn, data):
            try:
                match doing:
                    case "recv":
                        conn.recv(timeout=None)
                    case "send":
                        conn.linger_timeout = 0.1
                        conn.send(bytes(20_000_000), timeout=None)
                    case "elsewhere":
                        gevent.sleep(2 * limit)
                        conn.send(b"too late")
            except ConnectionClosed as error:
                raised.append(error.reason)
                raise

    server = serve(Short)
    sock = connect(server)
    began = time.monotonic()
    sock.sendall(b"x")
    if doing == "send":  # and nobody takes it
        wait_until(lambda: server.ended)
    drain(sock)
    assert 0.15 < time.monotonic() - began < 1.5
    wait_until(lambda: server.ended)
    assert server.ended == [DropReason.DEADLINE]
    assert raised == ([] if doing == "rest" else [DropReason.DEADLINE])
    assert server.statistics().errors == 0


def test_a_deadline_can_be_moved_and_taken_back(pair):
    conn, peer = pair
    soon = 0.05
    conn.set_deadline(soon)
    conn.set_deadline(60)
    gevent.sleep(2 * soon)
    assert conn.state is State.OPEN
    conn.set_deadline(soon)
    conn.set_deadline(None)
    gevent.sleep(2 * soon)
    assert conn.state is State.OPEN
    conn.set_deadline(0)
    assert read_all(peer) == b""
    assert conn.drop_reason is DropReason.DEADLINE


def test_a_deadline_ends_a_close_that_takes_too_long():
    for conn, peer in connected("tcp"):
        conn.linger_timeout, conn.max_send_queue = 60, 1 << 24
        conn.send_nowait(bytes(12_000_000))
        conn.set_deadline(0.2)
        conn.close()
        conn.wait_closed(PATIENCE)
        assert conn.drop_reason is DropReason.CLOSED
        with pytest.raises(ConnectionResetError):
            drain_or_raise(peer)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_deadline_is_checked(pair, seconds):
    conn, _ = pair
    with pytest.raises(ValueError, match="0 or more, or None, expected"):
        conn.set_deadline(seconds)


def test_a_deadline_on_what_is_closed_is_harmless(pair):
    conn, _ = pair
    conn.abort()
    conn.set_deadline(0.01)
    assert get_poller()._armed_count == 0


def test_a_slow_reader_does_not_outlive_a_deadline(serve, connect):
    """It takes something all the time, so no limit of a close would end it."""

    class Short(Recording):
        linger_timeout = 0.3
        max_send_queue = 1 << 26

        def connection_new(self, conn):
            conn.send_nowait(bytes(60_000_000))
            conn.set_deadline(0.2)

    server = serve(Short)
    sock = connect(server)
    sipping = gevent.spawn(sip, sock, 50_000, 0.01, PATIENCE)
    wait_until(lambda: server.ended)
    assert server.ended == [DropReason.DEADLINE]
    wait_until(lambda: server.statistics().active == 0, 3.0)
    sipping.kill()


def test_who_still_takes_what_was_sent_is_not_idle(serve, connect):
    """The kernel holds it, and nothing is counted when it goes."""
    size, pace = 1_000_000, 0.01

    class Sending(Recording):
        def connection_recv(self, conn, data):
            conn.send(bytes(size))

    server = serve(Sending, idle_timeout=0.4, linger_timeout=5.0)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    with sock:
        sock.connect(server.address)
        sock.sendall(b"x")
        wait_until(lambda: server.statistics().bytes_sent == size)
        began, got = time.monotonic(), 0
        while time.monotonic() - began < 1.5:
            got += len(sock.recv(4096))
            assert not server.ended, f"after {time.monotonic() - began} s and {got} bytes"
            gevent.sleep(pace)
        wait_until(lambda: server.ended)  # it takes no more
        assert server.ended == [DropReason.IDLE_TIMEOUT]


def test_a_send_behind_a_passage_is_late_by_its_peer_alone(serve, connect):
    """A splice that waits for its source keeps its place: who waits behind it is not slow."""
    for target, peer in connected("tcp"):
        target.send_timeout = 0.1
        source, feeding = tcp_pair()
        inlet = wrap(source)
        moving = gevent.spawn(inlet.splice, target, timeout=None)
        feeding.sendall(b"first")
        assert read_exactly(peer, 5) == b"first"
        target.send_nowait(b"behind")
        gevent.sleep(3 * target.send_timeout)
        assert target.state is State.OPEN
        feeding.close()
        moving.get(timeout=PATIENCE)
        assert read_exactly(peer, 6) == b"behind"
        inlet.abort()


class Wrong(Connection):
    """The first one raises where it must not."""

    __slots__ = ("is_wrong",)

    def is_at_rest(self):
        if self.is_wrong:
            raise RuntimeError("must not raise")
        return True


def test_a_sweep_goes_on_when_somebody_raises_in_it(serve, connect, capsys):
    class Odd(Recording):
        connection_class = Wrong

        def connection_new(self, conn):
            conn.is_wrong = conn is self.connections[0]

    server = serve(Odd, idle_timeout=0.1)
    wrong, right = connect(server), connect(server)
    wait_until(lambda: server.ended)
    (left,) = server.connections
    assert "must not raise" in capsys.readouterr().err
    left.is_wrong = False
    assert read_all(wrong) == read_all(right) == b""


def test_who_raises_when_told_that_a_peer_left_harms_nobody(serve, connect, capsys):
    def wrong():
        raise RuntimeError("must not raise")

    class Telling(Recording):
        def connection_new(self, conn):
            conn.notify_disconnect(wrong)

    server = serve(Telling, idle_timeout=0.1)
    assert read_all(connect(server)) == b""
    assert server.ended == [DropReason.IDLE_TIMEOUT]
    assert "must not raise" in capsys.readouterr().err


# -- the pace by itself


def test_the_kernel_says_what_was_not_taken():
    ours, theirs = tcp_pair()
    with ours, theirs:
        assert unsent(ours.fileno()) == 0
        fill(ours)
        held = unsent(ours.fileno())
        assert held > 0
        theirs.recv(1 << 20)
        wait_until(lambda: unsent(ours.fileno()) < held or theirs.recv(1 << 20))


def fill(sock):
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(1 << 16))
    except BlockingIOError:
        return


class Held:
    """What the kernel is said to hold."""

    def __init__(self, monkeypatch, held):
        self.held = held
        monkeypatch.setattr("greensock.core.pace.unsent", lambda fd: self.held)


def test_looks(monkeypatch):
    kernel = Held(monkeypatch, 1000)
    pace = Pace(-1, 5000, 8.0, 0, 100.0, True)
    assert pace.first_look() == 102.0
    assert pace.next_look(-1, 5000, 102.0) == 104.0
    assert pace.next_look(-1, 5000, 104.0) == 106.0
    assert pace.next_look(-1, 5000, 106.0) == 108.0
    kernel.held = 999
    assert pace.next_look(-1, 5000, 108.0) == 110.0, "a byte, at the last moment"
    assert [pace.next_look(-1, 5000, now) for now in (110.0, 112.0, 114.0, 116.0)] == [112.0, 114.0, 116.0, None]


def test_what_is_written_meanwhile_counts(monkeypatch):
    kernel = Held(monkeypatch, 1000)
    pace = Pace(-1, 5000, 8.0, 0, 100.0, True)
    kernel.held = 1300  # 500 more were written, 200 taken
    assert pace.next_look(-1, 5500, 108.0) is not None
    assert pace.next_look(-1, 5500, 116.0) is None


def test_a_least_rate(monkeypatch):
    kernel = Held(monkeypatch, 10_000)
    pace = Pace(-1, 0, 8.0, 100, 0.0, True)
    now, looks = 0.0, 0
    while now < 8.0:
        now += 2.0
        kernel.held -= 1
        assert pace.next_look(-1, 0, now) is not None, "the first seconds are free"
        looks += 1
    kernel.held -= 1
    assert pace.next_look(-1, 0, 10.0) is None

    kernel.held = 10_000
    pace = Pace(-1, 0, 8.0, 100, 0.0, True)
    for now in range(2, 90, 2):
        kernel.held -= 200
        assert pace.next_look(-1, 0, float(now)) is not None


def test_a_byte_counts_once(monkeypatch):
    """What was written and is held now is not taken, unless the kernel counts what it costs to hold."""
    for is_exact in (True, False):
        kernel = Held(monkeypatch, 0)
        pace = Pace(-1, 0, 8.0, 100, 0.0, is_exact)
        written = 0
        for now in range(2, 40, 2):
            written += 150  # 75 a second are written, none is taken
            kernel.held += 150 if is_exact else 300
            looked = pace.next_look(-1, written, float(now))
            if looked is None:
                break
        assert (looked is None) == is_exact or now > 8
        assert now == 8 or not is_exact


def test_a_connection_of_ones_own_has_no_least_rate():
    for conn, peer in connected("tcp"):
        assert conn.min_send_rate == 0
        assert conn.peer_address == conn.address
        reset(peer)
    gc.collect()


def test_part_of_a_head_has_a_limit_of_its_own(serve, connect):
    """It is no rest between requests, however long it may take."""
    server = serve(HTTPServer, idle_timeout=0.1, head_timeout=0.6)
    sock = connect(server)
    began = time.monotonic()
    sock.sendall(b"GET / HTTP/1.1\r\n")
    assert read_all(sock).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began >= 0.6


@pytest.mark.parametrize("kind", [HTTPServer, WSGIServer])
def test_an_upload_that_pauses_is_not_idle(serve, connect, kind):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    class Site(HTTPServer):
        def handle_request(self, request):
            return Response(request.body.read_all())

    limit = 0.1
    options = {"application": app, "log": None} if kind is WSGIServer else {}
    server = serve(WSGIServer if kind is WSGIServer else Site, idle_timeout=limit, body_timeout=6 * limit, **options)
    for late in (False, True):
        sock = connect(server)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 6\r\n\r\nabc")
        gevent.sleep(3 * limit)
        if not late:
            sock.sendall(b"def")
            assert read_all(sock).endswith(b"abcdef") or kind is WSGIServer
        else:
            assert read_all(sock).startswith(b"HTTP/1.1 408 ")
    assert server.statistics().refused == {"body-timeout": 1}
