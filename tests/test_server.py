"""The upcalls, verdicts and life of a server, over real sockets."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import gc
import logging
import os
import socket
import stat
import struct
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from itertools import pairwise

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, descriptors, read_all, read_exactly, wait_until
from gevent.monkey import get_original
from pairs import drain, let_engine_look, tcp_pair

from greensock import (
    DROP,
    HALF_OPEN,
    OK,
    POSTPONE,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    FixedSize,
    IncompleteMessage,
    Lines,
    MessageTooLong,
    OperationTimeout,
    Server,
    State,
)
from greensock.core import syscalls
from greensock.core.poller import get_poller


class Recorder(Server):
    """Writes down every upcall."""

    def __init__(self, *args, **options):
        self.calls = []
        super().__init__(*args, **options)

    def connection_new(self, conn):
        self.calls.append(("new", conn))

    def connection_recv(self, conn, data):
        self.calls.append(("recv", data))

    def connection_recv_finish(self, conn):
        self.calls.append(("finish", conn))

    def connection_error(self, conn, exc):
        self.calls.append(("error", exc))

    def connection_drop(self, conn):
        self.calls.append(("drop", conn.drop_reason))

    def names(self):
        return [name for name, _ in self.calls]

    def drops(self):
        return [what for name, what in self.calls if name == "drop"]

    def errors(self):
        return [what for name, what in self.calls if name == "error"]

    def received(self):
        return b"".join(what for name, what in self.calls if name == "recv")


class Echo(Recorder):
    def connection_recv(self, conn, data):
        super().connection_recv(conn, data)
        conn.send(data)


def reset(sock):
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_echo_and_order_of_upcalls(serve, connect):
    server = serve(Echo)
    sock = connect(server)
    sock.sendall(b"hello")
    assert read_exactly(sock, 5) == b"hello"
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    wait_until(server.drops)
    assert server.names() == ["new", "recv", "finish", "drop"]
    assert server.drops() == [DropReason.PEER_CLOSED]
    statistics = server.statistics()
    assert (statistics.accepted, statistics.active, statistics.bytes_received, statistics.bytes_sent) == (1, 0, 5, 5)
    assert dict(statistics.dropped) == {"PEER_CLOSED": 1}


@pytest.mark.parametrize("listener", ["127.0.0.1:0", ("localhost", 0), ("::1", 0), "[::1]:0", 0, "unix"])
def test_every_form_of_listener(serve, connect, tmp_path, listener):
    path = str(tmp_path / "socket")
    server = serve(Echo, path if listener == "unix" else listener)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert (server.server_port is None) == (listener == "unix")
    sock.close()
    server.stop()
    assert not os.path.exists(path)


def test_bound_socket_is_taken_over(serve, connect):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = serve(Echo, listener)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    sock.close()
    server.stop()
    assert listener.fileno() == -1


def test_connection_new_may_send_and_read(serve, connect):
    class Greeter(Recorder):
        def connection_new(self, conn):
            conn.send(b"name? ")
            conn.name = conn.read_line()

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            conn.send([conn.name, b": ", data])

    server = serve(Greeter)
    sock = connect(server)
    sock.sendall(b"bob\r\nfirst")  # what follows the line must not be lost
    assert read_exactly(sock, 6 + 10) == b"name? bob: first"
    assert server.received() == b"first"


def test_drop_in_connection_new(serve, connect):
    class Refuser(Recorder):
        def connection_new(self, conn):
            super().connection_new(conn)
            return DROP

    server = serve(Refuser)
    assert read_all(connect(server)) == b""
    wait_until(server.drops)
    assert server.drops() == [DropReason.REFUSED]
    assert "recv" not in server.names()


def test_drop_after_an_answer_with_unread_input(serve, connect):
    """Rule 10: closing with unread input must not destroy the answer."""

    class Dropper(Recorder):
        recv_size = 10

        def connection_recv(self, conn, data):
            conn.send(b"answer")
            return DROP

    server = serve(Dropper)
    for _ in range(20):
        sock = connect(server)
        sock.sendall(b"x" * 100_000)
        assert read_all(sock) == b"answer"
        sock.close()
    wait_until(lambda: len(server.drops()) == 20)
    assert set(server.drops()) == {DropReason.VERDICT}


def test_postpone_gives_the_bytes_back_in_front(serve, connect):
    class Whole(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if not data.endswith(b"\n"):
                return POSTPONE
            conn.send(data.upper())
            return OK

    server = serve(Whole)
    sock = connect(server)
    for count, piece in enumerate((b"ab", b"cd", b"e\n"), 1):
        sock.sendall(piece)
        wait_until(lambda count=count: [name for name, _ in server.calls].count("recv") == count)
    assert read_exactly(sock, 6) == b"ABCDE\n"
    assert [what for name, what in server.calls if name == "recv"] == [b"ab", b"abcd", b"abcde\n"]
    sock.sendall(b"f\n")
    assert read_exactly(sock, 2) == b"F\n"


def test_unread_tail_comes_back_with_the_next_data(serve, connect):
    class Lined(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            *lines, rest = data.split(b"\n")
            for line in lines:
                conn.send(b"<%s>" % line)
            conn.unread(rest)

    server = serve(Lined)
    sock = connect(server)
    sock.sendall(b"one\ntw")
    assert read_exactly(sock, 5) == b"<one>"
    sock.sendall(b"o\n")
    assert read_exactly(sock, 5) == b"<two>"
    assert [what for name, what in server.calls if name == "recv"] == [b"one\ntw", b"two\n"]


@pytest.mark.parametrize("extra", [0, 1])
def test_max_postponed(serve, connect, extra):
    class Never(Recorder):
        max_postponed = 1000

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            return POSTPONE

    server = serve(Never)
    sock = connect(server)
    sock.sendall(b"x" * (1000 + extra))
    wait_until(lambda: server.calls and sum(len(w) for n, w in server.calls if n == "recv") >= 1000)
    if extra:
        wait_until(server.drops)
        assert server.drops() == [DropReason.TOO_LONG]
        (error,) = server.errors()
        assert isinstance(error, MessageTooLong)
        assert (error.limit, error.value, error.connection is not None) == ("max_postponed", 1000, True)
    else:
        sock.shutdown(socket.SHUT_WR)
        wait_until(server.drops)
        assert server.drops() == [DropReason.INCOMPLETE]


def test_framer_gives_whole_messages(serve, connect):
    class Lined(Recorder):
        framer = Lines(max_size=100)

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            conn.send(data[::-1] + b"\n")

    server = serve(Lined)
    sock = connect(server)
    for byte in b"abc\r\n":
        sock.sendall(bytes([byte]))
    sock.sendall(b"def\nghi\n" + b"j\n" * 100)
    assert read_exactly(sock, 12 + 200) == b"cba\nfed\nihg\n" + b"j\n" * 100
    assert server.statistics().messages == 103


def test_framer_limit_and_incomplete_end(serve, connect):
    server = serve(Recorder, framer=Lines(max_size=10))
    sock = connect(server)
    sock.sendall(b"fits\n" + b"x" * 12)
    wait_until(server.drops)
    assert server.drops() == [DropReason.TOO_LONG]
    assert server.received() == b"fits"
    sock = connect(server)
    sock.sendall(b"half")
    sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(server.drops()) == 2)
    assert server.drops()[1] is DropReason.INCOMPLETE
    assert isinstance(server.errors()[1], IncompleteMessage)


def test_no_framed_message_after_drop(serve, connect):
    class Picky(Recorder):
        framer = Lines()

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            return DROP if len(self.calls) > 32 else OK

    server = serve(Picky)
    sock = connect(server)
    sock.sendall(b"x\n" * 100)
    wait_until(server.drops)
    assert server.names().count("recv") == 32


def test_long_framed_turn_goes_on_later_and_finishes(serve, connect):
    class Slow(Recorder):
        framer = Lines()

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"slow":
                deadline = time.monotonic() + 0.02
                while time.monotonic() < deadline:
                    pass

    server = serve(Slow)
    sock = connect(server)
    sock.sendall(b"x\n" * 29 + b"slow\n" + b"x\n" * 7 + b"half")  # looks at the clock after 2, 4, 8, 16 and 32
    sock.shutdown(socket.SHUT_WR)
    wait_until(server.drops)
    assert server.names().count("recv") == 37
    assert server.names().count("finish") == 2
    (error,) = server.errors()
    assert error.partial == b"half"


def test_raw_read_inside_a_framed_stream(serve, connect):
    class HeadAndBody(Recorder):
        framer = Lines()

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data.startswith(b"body "):
                conn.send(b"[%s]" % conn.read_exactly(int(data[5:])))

    server = serve(HeadAndBody)
    sock = connect(server)
    sock.sendall(b"body 4\n\n\n\n\nnext\nbody 2\n")
    sock.sendall(b"zz")
    assert read_exactly(sock, 6 + 4) == b"[\n\n\n\n][zz]"
    assert [what for name, what in server.calls if name == "recv"] == [b"body 4", b"next", b"body 2"]


READ_RAW = {
    "recv": lambda conn: conn.recv(4),
    "recv_into": lambda conn: bytes(into[: conn.recv_into(into)]) if (into := bytearray(4)) else b"",
    "read_exactly": lambda conn: conn.read_exactly(4),
    "read_until": lambda conn: conn.read_until(b";") + b";",
}


@pytest.mark.parametrize("read", READ_RAW.values(), ids=READ_RAW)
def test_every_raw_read_begins_with_what_the_framer_holds(serve, connect, read):
    class HeadAndBody(Recorder):
        framer = Lines()

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"head":
                conn.send(b"[%s]" % read(conn))

    server = serve(HeadAndBody)
    sock = connect(server)
    sock.sendall(b"head\nabc;next\n")
    assert read_exactly(sock, 6) == b"[abc;]"
    wait_until(lambda: len(server.names()) > 3)
    assert [what for name, what in server.calls if name == "recv"] == [b"head", b"next"]


def test_what_a_raw_read_got_before_its_timeout_is_given_to_the_upcall(serve, connect):
    class Impatient(Recorder):
        def connection_new(self, conn):
            with pytest.raises(TimeoutError):
                conn.read_exactly(10, timeout=0.05)

    server = serve(Impatient)
    sock = connect(server)
    sock.sendall(b"few")
    assert wait_until(server.received) == b"few"  # though nothing more comes


def test_half_close_kept_open_by_half_open(serve, connect):
    class Late(Recorder):
        def connection_eof(self, conn):
            gevent.spawn(self.answer, conn)
            return HALF_OPEN

        def answer(self, conn):
            conn.send(b"late answer")
            conn.close()

    server = serve(Late)
    sock = connect(server)
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b"late answer"
    wait_until(server.drops)
    assert server.drops() == [DropReason.CLOSED]
    assert server.received() == b"question"


def test_half_open_survives_the_events_of_its_own_sending(serve, connect):
    class Late(Recorder):
        def connection_eof(self, conn):
            gevent.spawn(self.answer, conn)
            return HALF_OPEN

        def answer(self, conn):
            for _ in range(30):
                conn.send(b"x" * 100_000)
                gevent.sleep(0)
            conn.close()

    server = serve(Late)
    sock = connect(server)
    sock.shutdown(socket.SHUT_WR)
    assert len(read_all(sock)) == 3_000_000
    wait_until(server.drops)
    assert server.drops() == [DropReason.CLOSED]


def test_half_open_that_is_reset(serve, connect):
    class Half(Recorder):
        def connection_eof(self, conn):
            self.calls.append(("eof", conn))
            return HALF_OPEN

    server = serve(Half)
    sock = connect(server)
    sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: "eof" in server.names())
    reset(sock)
    wait_until(server.drops)
    assert server.names() == ["new", "eof", "error", "drop"]
    assert server.drops() == [DropReason.LOST]


def test_a_loss_that_the_upcall_handled_is_told_too(serve, connect):
    class Handles(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            try:
                conn.recv()
            except ConnectionLost:
                self.calls.append(("caught", conn))

    server = serve(Handles)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(server.received)
    reset(sock)
    wait_until(server.drops)
    assert server.names() == ["new", "recv", "caught", "error", "drop"]


def test_a_connection_class_that_fails_does_not_end_the_accepting(serve, connect, caplog):
    class Broken(Connection):
        def __init__(self, *args):
            super().__init__(*args)
            if not server.statistics().errors:
                raise RuntimeError("mine")

    server = serve(Echo, ("127.0.0.1", 0))
    server.connection_class = Broken
    sock = connect(server)
    with pytest.raises((ConnectionResetError, AssertionError)):
        read_exactly(sock, 1)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def test_eof_default_and_none_close(serve, connect):
    class Silent(Recorder):
        def connection_eof(self, conn):
            self.calls.append(("eof", conn))

    server = serve(Silent)
    sock = connect(server)
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    wait_until(server.drops)
    assert server.names() == ["new", "eof", "drop"]


def test_reset_is_a_reason_and_no_traceback(serve, connect, caplog):
    server = serve(Echo)
    sock = connect(server)
    wait_until(lambda: server.calls)
    reset(sock)
    wait_until(server.drops)
    assert server.drops() == [DropReason.LOST]
    (error,) = server.errors()
    assert isinstance(error, ConnectionLost)
    assert isinstance(error.__cause__, ConnectionResetError)
    assert not [record for record in caplog.records if record.exc_info]


def test_reset_while_an_upcall_is_blocked(serve, connect, caplog):
    go = gevent.event.Event()

    class Slow(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            go.wait()
            conn.send(b"too late")
            conn.send(b"too late")

    server = serve(Slow)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(server.received)
    reset(sock)
    wait_until(lambda: syscalls.peer_has_hung_up(server.connections[0].fileno()))
    go.set()
    wait_until(server.drops)
    assert server.drops() == [DropReason.LOST]
    assert not [record for record in caplog.records if record.exc_info]


def test_an_upcall_that_raises_is_logged_once_and_dropped(serve, connect, caplog, capsys):
    class Broken(Recorder):
        def connection_recv(self, conn, data):
            raise RuntimeError("my fault")

    server = serve(Broken)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_all(sock) == b""
    wait_until(server.drops)
    assert server.drops() == [DropReason.ERROR]
    assert [str(error) for error in server.errors()] == ["my fault"]
    assert server.statistics().errors == 1
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert capsys.readouterr().err == "", "gevent's hub was told, too"


@pytest.mark.parametrize("upcall", ["connection_new", "connection_drop", "connection_error", "connection_recv_finish"])
def test_any_upcall_that_raises_leaves_the_server_alive(serve, connect, caplog, upcall):
    server = Echo(("127.0.0.1", 0))

    def broken(*args):
        raise RuntimeError(upcall)

    setattr(server, upcall, broken)
    with server:
        for _ in range(3):
            sock = connect(server)
            sock.sendall(b"x")
            if upcall == "connection_error":
                reset(sock)
            else:
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
        wait_until(lambda: server.statistics().active == 0)
        assert server.statistics().accepted == 3
    if upcall != "connection_error":
        assert server.statistics().errors == 3


def test_a_wrong_verdict_is_told(serve, connect, caplog):
    class Wrong(Recorder):
        def connection_recv(self, conn, data):
            return 5

    server = serve(Wrong)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(server.drops)
    (error,) = server.errors()
    assert "connection_recv returned 5: OK, None, POSTPONE or DROP expected" in str(error)


def test_gevent_timeout_in_an_upcall_leaves_the_connection_usable(serve, connect):
    class Patient(Recorder):
        def connection_recv(self, conn, data):
            with gevent.Timeout(0.01, False):
                conn.recv()
            conn.send(b"still here")

    server = serve(Patient)
    sock = connect(server)
    for _ in range(3):
        sock.sendall(b"x")
        assert read_exactly(sock, 10) == b"still here"


def test_an_upcall_killed_by_gevent_is_dropped(serve, connect, caplog):
    class Victim(Recorder):
        def connection_recv(self, conn, data):
            self.greenlet = gevent.getcurrent()
            gevent.sleep(PATIENCE)

    server = serve(Victim)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(lambda: hasattr(server, "greenlet"))
    gevent.kill(server.greenlet)
    assert read_all(sock) == b""
    wait_until(server.drops)
    assert server.drops() == [DropReason.ERROR]
    sock = connect(server)  # the worker is still fit for work
    wait_until(lambda: server.names().count("new") == 2)


def test_idle_timeout(serve, connect):
    server = serve(Echo, idle_timeout=0.1)
    silent, busy = connect(server), connect(server)
    for _ in range(10):
        busy.sendall(b"x")
        assert read_exactly(busy, 1) == b"x"
        gevent.sleep(0.03)
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
    wait_until(lambda: len(server._crew.ready) == 1)  # it was noticed
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
            gevent.sleep(0.005)
            self.inside -= 1

    server = serve(Slow)
    sock = connect(server)
    for _ in range(20):
        sock.sendall(b"x" * 10)
        gevent.sleep(0.001)
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
    import contextvars

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


def test_adopt(serve):
    server = serve(Echo)
    ours, theirs = socket.socketpair()
    conn = server.adopt(theirs)
    assert theirs.fileno() == -1
    ours.sendall(b"x")
    assert read_exactly(ours, 1) == b"x"
    assert conn in server.connections
    ours.close()
    wait_until(server.drops)
    with pytest.raises(ValueError, match="connected"), socket.socket() as sock:
        server.adopt(sock)


def test_connection_class_and_attributes(serve, connect):
    class Mine(Connection):
        __slots__ = ("seen",)

    class Own(Recorder):
        connection_class = Mine

        def connection_new(self, conn):
            conn.seen = 0
            conn.anything = "goes"

        def connection_recv(self, conn, data):
            conn.seen += 1
            conn.send(b"%d%s" % (conn.seen, conn.anything.encode()))

    server = serve(Own)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 5) == b"1goes"


def test_drain_closes_idle_and_waits_for_the_busy(serve, connect):
    go = gevent.event.Event()

    class Slow(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            go.wait()
            conn.send(b"done")

    server = serve(Slow)
    idle, busy = connect(server), connect(server)
    busy.sendall(b"x")
    wait_until(server.received)
    assert server.drain(0.05) is False
    assert read_all(idle) == b""
    idle.close()  # or it would linger
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    go.set()
    draining = gevent.spawn(server.drain, PATIENCE)
    assert read_all(busy) == b"done"
    busy.close()
    assert draining.get() is True
    assert server.drops() == [DropReason.STOPPED, DropReason.STOPPED]


def test_stop_ends_upcalls_that_block_anywhere(serve, connect, caplog):
    class Stuck(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"recv":
                conn.recv()
            else:
                gevent.sleep(PATIENCE)

    server = serve(Stuck)
    first, second = connect(server), connect(server)
    first.sendall(b"recv")
    second.sendall(b"sleep")
    wait_until(lambda: len(server.received()) == 9)
    server.stop(0.01)
    assert not server.started
    assert server.drops() == [DropReason.STOPPED, DropReason.STOPPED]
    assert server.statistics().active == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_stop_from_inside_an_upcall(serve, connect):
    class Quitter(Recorder):
        def connection_recv(self, conn, data):
            self.stop(0.01)
            self.calls.append(("stopped", None))

    server = serve(Quitter)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(server.drops)
    assert server.names() == ["new", "stopped", "drop"]


def test_abort_from_inside_an_upcall_with_others_alive(serve, connect):
    class Quitter(Recorder):
        def connection_recv(self, conn, data):
            self.abort()
            self.calls.append(("stopped", None))

    server = serve(Quitter)
    sock, _idle = connect(server), connect(server)
    wait_until(lambda: server.statistics().accepted == 2)
    sock.sendall(b"x")
    wait_until(lambda: len(server.drops()) == 2)
    assert "stopped" in server.names()
    assert not server.started


def test_a_drop_upcall_that_blocks_is_counted_once(serve, connect):
    class Slow(Recorder):
        def connection_recv(self, conn, data):
            return DROP

        def connection_drop(self, conn):
            super().connection_drop(conn)
            conn.wait_closed(PATIENCE)

    server = serve(Slow)
    for _ in range(3):
        sock = connect(server)
        sock.sendall(b"x")
        assert read_all(sock) == b""
        sock.close()
    wait_until(lambda: server.statistics().active == 0)
    assert len(server.drops()) == 3
    connect(server)
    wait_until(lambda: server.statistics().active == 1)


def test_close_and_abort_after_a_timeout_do_not_spin(serve, connect):
    class Impatient(Recorder):
        linger_timeout = 0.05

        def handle(self, conn):
            try:
                conn.recv(timeout=0.02)
            except TimeoutError:
                conn.close()
                conn.abort()

    server = serve(Impatient)
    connect(server)
    wait_until(server.drops)
    gevent.sleep(0.1)
    assert server.statistics().active == 0


def test_stop_under_load_drops_each_connection_exactly_once(serve, connect):
    class Busy(Recorder):
        def connection_recv(self, conn, data):
            conn.send(data)
            gevent.sleep(0)

    server = serve(Busy)

    def load():
        while True:
            try:
                with socket.create_connection(server.address, timeout=PATIENCE) as sock:
                    for _ in range(3):
                        sock.sendall(b"x")
                        if not sock.recv(1):
                            return
            except ConnectionError:
                return

    clients = [gevent.spawn(load) for _ in range(50)]
    wait_until(lambda: server.statistics().accepted > 500)
    server.stop(0.05)
    gevent.joinall(clients, timeout=PATIENCE, raise_error=True)
    assert all(client.dead for client in clients)
    assert server.names().count("new") == server.names().count("drop")
    assert len({id(what) for name, what in server.calls if name == "new"}) <= server.names().count("new")
    assert server.statistics().active == 0


def test_start_again_after_stop(serve, connect):
    server = serve(Echo)
    server.stop()
    server.start()
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def test_stop_accepting_and_start_accepting(serve, connect):
    server = serve(Echo)
    server.stop_accepting()
    sock = connect(server)
    sock.sendall(b"x")
    other = serve(Echo)
    late = connect(other)
    late.sendall(b"x")
    assert read_exactly(late, 1) == b"x"  # which came after and was served
    assert server.statistics().accepted == 0
    server.start_accepting()
    assert read_exactly(sock, 1) == b"x"


def test_ten_thousand_connections_opened_and_reset_at_once(serve):
    server = serve(Echo)
    for _ in range(20):
        socks = [socket.create_connection(server.address) for _ in range(500)]
        for sock in socks:
            reset(sock)
    with socket.create_connection(server.address, timeout=30) as last:  # behind all of them
        last.sendall(b"x")
        assert read_exactly(last, 1) == b"x"
    wait_until(lambda: server.statistics().active == 0, 30)
    assert server.statistics().accepted >= 9_000
    assert server.names().count("new") == server.names().count("drop") == server.statistics().accepted


def test_reused_descriptor_while_the_upcall_is_blocked_under_load(serve):
    """Rule 3: a client goes away, and its descriptor is reused, while its upcall is blocked."""

    class Slow(Recorder):
        def connection_recv(self, conn, data):
            conn.mine = data
            gevent.sleep(0.001)
            try:
                conn.send(conn.mine)
            except (ConnectionLost, ConnectionClosed):
                return DROP

    server = serve(Slow)

    def client(number):
        for turn in range(20):
            with socket.create_connection(server.address, timeout=PATIENCE) as sock:
                text = b"%d/%d" % (number, turn)
                sock.sendall(text)
                if (number + turn) % 3 == 0:
                    reset(sock)
                else:
                    assert read_exactly(sock, len(text)) == text

    clients = [gevent.spawn(client, number) for number in range(40)]
    gevent.joinall(clients, raise_error=True)
    wait_until(lambda: server.statistics().active == 0)
    assert server.names().count("new") == server.names().count("drop")
    assert server.statistics().errors == 0


EXHAUSTED = """
from gevent import monkey; monkey.patch_all()
import gevent, os, resource, socket, sys, time
from greensock import Server
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)
server = Echo(("127.0.0.1", 0)); server.start()
clients = [socket.socket() for _ in range(20)]
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(3):
    os.close(taken.pop())
for client in clients:
    client.connect(server.address)
before = time.process_time()
gevent.sleep(0.3)
used = time.process_time() - before
assert server.statistics().accept_pauses > 1, server.statistics()
assert used < 0.1, used
for fd in taken:
    os.close(fd)
for client in clients:
    client.settimeout(10)
    client.sendall(b"x")
    assert client.recv(1) == b"x"
assert server.statistics().accepted == 20
print("recovered", file=sys.stderr)
"""


def test_descriptors_used_up_and_back():
    """Rule 11: no spinning, nothing lost, and it recovers by itself; one line in the log."""
    done = subprocess.run([sys.executable, "-c", EXHAUSTED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "recovered" in done.stderr
    assert done.stderr.count("cannot accept") == 1, done.stderr


SIGNALLED = """
from gevent import monkey; monkey.patch_all()
import gevent, sys
from greensock import Server
class Slow(Server):
    stop_timeout = float(sys.argv[1])
    def connection_recv(self, conn, data):
        print("upcall", flush=True)
        gevent.sleep(60)
server = Slow(("127.0.0.1", 0)); server.start()
print(server.server_port, flush=True)
server.serve_forever()
print("stopped", flush=True)
"""


@pytest.mark.parametrize(("stop_timeout", "signals"), [("0.1", 1), ("60", 2)])
def test_signals_drain_then_stop_and_a_second_aborts(stop_timeout, signals):
    import signal

    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, stop_timeout], stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"x")
            assert process.stdout.readline() == "upcall\n"
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                # The listener is closed before the draining begins: then the second signal is a second one.
                wait_until(lambda: not listens(port))
                process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "stopped\n"
        assert process.wait(PATIENCE) == 0


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was closed as this came
        return False
    return True


def test_idle_connection_holds_no_greenlet(serve, connect):
    from conftest import greenlets

    server = serve(Echo)
    first = connect(server)
    first.sendall(b"x")
    read_exactly(first, 1)
    before = len(greenlets())
    socks = [connect(server) for _ in range(100)]
    for sock in socks:
        sock.sendall(b"x")
    for sock in socks:
        read_exactly(sock, 1)
    assert len(greenlets()) == before


def test_fixed_size_framer_flood(serve, connect):
    server = serve(Recorder, framer=FixedSize(64))
    sock = connect(server)
    messages = [bytes([number % 256]) * 64 for number in range(5000)]
    sock.sendall(b"".join(messages))
    wait_until(lambda: server.statistics().messages == 5000)
    assert [what for name, what in server.calls if name == "recv"] == messages


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backlog": 0}, "backlog=0: a whole number of at least 1 expected"),
        ({"idle_timeout": -1}, "idle_timeout=-1"),
        ({"framer": "lines"}, "framer='lines'"),
        ({"max_workers": True}, "max_workers=True"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        Server(("127.0.0.1", 0), **options)
    with pytest.raises(TypeError, match="unknown option 'bcklog'"):
        Server(("127.0.0.1", 0), bcklog=5)


# -- POSTPONE and raw reads


class Halves(Echo):
    """Reads a line raw when told to, and postpones what does not end with a full stop."""

    def connection_recv(self, conn, data):
        Recorder.connection_recv(self, conn, data)
        if data.startswith(b"line\n"):
            conn.line = conn.read_line()
            if not hasattr(conn, "postponed"):
                conn.postponed = True
                return POSTPONE
        elif not data.endswith(b"."):
            return POSTPONE
        conn.send(b"<%s>" % data)
        return None


def recv_calls(server):
    return [what for name, what in server.calls if name == "recv"]


def test_postpone_does_not_hold_back_what_a_raw_read_left(serve, connect):
    server = serve(Halves, recv_size=5)
    sock = connect(server)
    sock.sendall(b"line\nab\nc.")
    # Nothing more is sent: the tail of the raw read comes at once, behind what was postponed.
    wait_until(lambda: len(recv_calls(server)) >= 2)
    assert recv_calls(server)[:2] == [b"line\n", b"line\nc."]
    wait_until(lambda: server.connections[0]._reader is not None)
    sock.sendall(b"d\n")
    assert read_exactly(sock, 9) == b"<line\nc.>"


def test_postpone_without_a_raw_read_waits_for_more(serve, connect):
    server = serve(Halves)
    other = connect(server)
    sock = connect(server)
    sock.sendall(b"ab")
    wait_until(lambda: server.received() == b"ab")
    for _ in range(20):  # the engine goes round; the postponed bytes do not
        other.sendall(b".")
        assert read_exactly(other, 3) == b"<.>"
    assert recv_calls(server).count(b"ab") == 1
    sock.sendall(b".")
    assert read_exactly(sock, 5) == b"<ab.>"


def test_unread_by_itself_waits_for_more_and_behind_a_raw_read_does_not(serve, connect):
    class Unreads(Recorder):
        recv_size = 5

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"raw: ":
                conn.line = conn.read_line()
                conn.unread(b"[")
            elif not data.endswith(b"]"):
                conn.unread(data)

    server = serve(Unreads)
    sock = connect(server)
    sock.sendall(b"raw: \nx")
    wait_until(lambda: len(recv_calls(server)) == 2)
    assert recv_calls(server)[1] == b"[x"
    sock.sendall(b"y]")
    wait_until(lambda: len(recv_calls(server)) == 3)
    assert recv_calls(server)[2] == b"[xy]"


@pytest.mark.parametrize("way", ["POSTPONE", "unread", "framed"])
@pytest.mark.parametrize(("limit", "extra"), [(0, 1), (1, 0), (1, 1), (1000, 0), (1000, 1)])
def test_max_postponed_whichever_way(serve, connect, way, limit, extra):
    class Never(Recorder):
        framer = FixedSize(limit + extra) if way == "framed" else None

        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"other":
                conn.send(data)
                return OK
            if way != "unread":
                return POSTPONE
            conn.unread(data)
            return OK

    server = serve(Never, max_postponed=limit)
    sock, other = connect(server), connect(server)
    sock.sendall(b"x" * (limit + extra))
    if extra:
        wait_until(server.drops)
        assert server.drops() == [DropReason.TOO_LONG]
        (error,) = server.errors()
        assert (error.limit, error.value) == ("max_postponed", limit)
    else:
        wait_until(lambda: server.received() == b"x" * limit)
        wait_until(lambda: sum(conn.statistics().bytes_held for conn in server.connections) == limit)
    if way != "framed":  # the others go on
        other.sendall(b"other")
        assert read_exactly(other, 5) == b"other"
    if not extra:
        assert not server.drops()


# -- urgent data and passed descriptors, in upcalls


@pytest.mark.parametrize("framed", [False, True])
def test_urgent_data_stops_no_upcall(serve, connect, framed):
    server = serve(Recorder, framer=FixedSize(1) if framed else None)
    sock = connect(server)
    for number in range(3):
        sock.sendall(b"abc")
        sock.send(b"X", socket.MSG_OOB)
        sock.sendall(b"def")
        wait_until(lambda number=number: server.received() == b"abcdef" * (number + 1))
    sock.shutdown(socket.SHUT_WR)
    wait_until(server.drops)
    assert server.drops() == [DropReason.PEER_CLOSED]


@pytest.mark.parametrize("framed", [False, True])
def test_passed_descriptors_stop_no_upcall_and_are_closed(serve, connect, tmp_path, framed):
    server = serve(Recorder, str(tmp_path / "socket"), framer=FixedSize(1) if framed else None)
    sock = connect(server)
    for number in range(3):
        read_end, write_end = os.pipe()
        socket.send_fds(sock, [b"abc"], [write_end])
        os.close(write_end)
        sock.sendall(b"def")
        wait_until(lambda number=number: server.received() == b"abcdef" * (number + 1))
        assert os.read(read_end, 1) == b""  # its other end is held nowhere
        os.close(read_end)
    sock.shutdown(socket.SHUT_WR)
    wait_until(server.drops)
    assert server.drops() == [DropReason.PEER_CLOSED]


# -- when the engine refuses


def refuse(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_adopt_that_is_refused_leaves_nothing(serve, monkeypatch):
    server = serve(Echo)
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with monkeypatch.context() as patch:
        patch.setattr(get_poller(), "register", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            server.adopt(theirs)
    assert theirs.fileno() == -1
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
    assert ours.recv(1) == b""
    ours.close()
    assert (server.statistics().accepted, server.statistics().active) == (0, 0)
    assert server.calls == server.connections == []
    ours, theirs = socket.socketpair()
    server.adopt(theirs)
    ours.sendall(b"x")
    assert read_exactly(ours, 1) == b"x"
    ours.close()
    wait_until(server.drops)


def test_accepted_connection_that_is_refused_leaves_nothing(serve, connect, monkeypatch, caplog):
    server = serve(Echo, max_connections=1)
    first = connect(server)
    wait_until(lambda: server.calls)
    reset(first)
    wait_until(lambda: server.statistics().active == 0)
    with monkeypatch.context() as patch:
        patch.setattr(get_poller(), "register", refuse)
        assert drain(connect(server)) == 0
    statistics = server.statistics()
    assert (statistics.accepted, statistics.active, statistics.errors) == (1, 0, 1)
    assert "could not be served" in caplog.text
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


@pytest.mark.parametrize("how", ["refused", "refused, shown", "framer fails", "closed by its class"])
def test_one_that_could_not_be_served_has_no_number(serve, monkeypatch, how):
    """Whoever kept the object closes no file that has got its number since."""

    class Kept(Connection):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)
            if how == "refused, shown":
                self.fileno()
            elif how == "closed by its class":
                self.abort()
                mine.append(os.open(os.devnull, os.O_RDONLY))

    class FailingFramer(Lines):
        def decoder(self):
            raise OSError(errno.ENOSPC, "mine")

    kept, mine = [], []
    server = serve(Echo, framer=FailingFramer() if how == "framer fails" else None)
    server.connection_class = Kept
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    if how.startswith("refused"):
        monkeypatch.setattr(get_poller(), "register", refuse)
    with pytest.raises((OSError, ValueError)):
        server.adopt(theirs)
    assert drain(ours) == 0
    ours.close()
    while fd not in mine:
        mine.append(os.open(os.devnull, os.O_RDONLY))
    conn = kept.pop()
    assert conn.state is State.CLOSED
    assert conn.fileno() == -1
    for call in (lambda: conn.send(b"x"), lambda: conn.recv(timeout=0)):
        with pytest.raises(ConnectionClosed):
            call()
    conn.close()
    conn.abort()
    for fd in mine:
        os.close(fd)  # which raises where it is closed already
    assert (server.statistics().accepted, server.statistics().active) == (0, 0)


class FailingListener:
    """In the acceptor's place of the real one: accept() fails so many times, then goes on."""

    def __init__(self, real, *errors):
        self._real = real
        self._errors = list(errors)
        self.fileno = real.fileno
        self.detach = real.detach

    def _accept(self):
        if self._errors:
            number = self._errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._real._accept()


def fail_to_accept(server, *errors):
    (acceptor,) = server._acceptors()
    acceptor._raw = FailingListener(acceptor._raw, *errors)


def test_accepting_stops_loudly_and_starts_again(serve, connect, caplog):
    """Rule 11: an error that nobody foresaw."""
    server = serve(Echo)
    fail_to_accept(server, errno.EBADF)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(lambda: "has stopped" in caplog.text)
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert server.statistics().accepted == 0
    server.start_accepting()
    assert read_exactly(sock, 1) == b"x"
    server.stop_accepting()
    server.start_accepting()
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def test_a_client_that_left_the_backlog_stops_nobody(serve, connect, caplog):
    """Rule 11: ECONNABORTED and the like: go on."""
    server = serve(Echo)
    fail_to_accept(server, errno.ECONNABORTED, errno.EPROTO, errno.EINTR)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert server.statistics().accept_pauses == 0
    assert not caplog.records


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_accepting_pauses_while_something_is_used_up(serve, connect, caplog, error):
    """Rule 11."""
    server = serve(Echo)
    fail_to_accept(server, error, error)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert server.statistics().accept_pauses == 2
    assert len(caplog.records) == 1  # rate-limited


# -- the rules of the engine


class Calls:
    """Counts what is called through it."""

    def __init__(self, call):
        self._call = call
        self.count = 0
        self.failed = 0

    def __call__(self, *args, **options):
        self.count += 1
        try:
            return self._call(*args, **options)
        except OSError:
            self.failed += 1
            raise


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
    server._crew._parked.clear()  # a worker that has begun keeps the name it had; the next one is new
    for _ in range(10):
        sock.sendall(b"ping")
        assert read_exactly(sock, 4) == b"ping"
    assert (reads.count, reads.failed) == (10, 0)


def passes(seconds):
    """Return how often the engine's callback ran in that time."""
    poller = get_poller()
    poller._run_calls = calls = Calls(poller._run_calls)
    gevent.sleep(seconds)
    del poller._run_calls
    return calls.count


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
    assert server.received() == b"last words" * 5


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
    server = serve(Echo, idle_timeout=0.5)
    sock = connect(server)
    started = last = time.monotonic()
    while last - started < 0.6:
        last = time.monotonic()  # before it: however late this is noted, the server was not idle earlier
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        gevent.sleep(0.02)
    assert read_all(sock) == b""
    assert time.monotonic() - last > 0.4
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
                gevent.sleep(0.001)  # a timer

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
        patch.setattr(get_poller(), "register", refuse)
        server = serve(Echo)
        wait_until(lambda: "has stopped" in caplog.text, 1)
    sock = connect(server)
    sock.settimeout(1.0)
    sock.sendall(b"x")
    server.start_accepting()
    assert read_exactly(sock, 1) == b"x"


# -- several that stop it, and where from


def silent(caplog, capsys):
    """Whether nothing was told of a failure, be it in the log or by gevent."""
    return not [record for record in caplog.records if record.exc_info] and not capsys.readouterr().err


@pytest.mark.parametrize("how", ["abort", "stop"])
def test_two_upcalls_that_stop_it_at_once(serve, connect, caplog, capsys, how):
    class Quitter(Recorder):
        stop_timeout = 0.05

        def connection_recv(self, conn, data):
            getattr(self, how)()

    server = serve(Quitter)
    serving = gevent.spawn(server.serve_forever)
    socks = [connect(server), connect(server)]
    wait_until(lambda: server.statistics().active == 2)
    for sock in socks:
        sock.sendall(b"x")
    serving.get(timeout=PATIENCE)
    wait_until(lambda: len(server.drops()) == 2)
    assert not server.started
    assert server.statistics().active == 0
    assert silent(caplog, capsys)


@pytest.mark.parametrize("how", ["abort", "stop", "drain"])
def test_two_greenlets_that_stop_it_at_once(serve, connect, caplog, capsys, how):
    server = serve(Echo)
    sock = connect(server)
    wait_until(lambda: server.statistics().active == 1)
    stopping = [gevent.spawn(getattr(server, how)) for _ in range(2)]
    wait_until(lambda: server.draining)
    sock.close()
    gevent.joinall(stopping, timeout=PATIENCE, raise_error=True)
    assert all(greenlet.dead for greenlet in stopping)
    assert server.drops() == [DropReason.STOPPED]
    assert silent(caplog, capsys)


def test_an_abort_that_is_cut_short_has_stopped_it(serve, connect, caplog, capsys):
    class Stubborn(Recorder):
        def handle(self, conn):
            self.calls.append(("handle", conn))
            while not go.is_set():
                with suppress(gevent.GreenletExit):
                    go.wait()

    go = gevent.event.Event()
    server = serve(Stubborn)
    serving = gevent.spawn(server.serve_forever)
    connect(server)
    wait_until(lambda: "handle" in server.names())
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        server.abort()
    assert not server.started
    serving.get(timeout=PATIENCE)
    go.set()
    wait_until(server.drops)
    assert server.drops() == [DropReason.STOPPED]
    assert silent(caplog, capsys)


@pytest.mark.parametrize("call", ["drain", "abort", "stop"])
def test_another_thread_may_not_stop_it(serve, connect, call):
    def elsewhere():
        try:
            outcome.append(getattr(server, call)())
        except BaseException as error:
            outcome.append(error)
        finally:
            get_poller().close()
            gevent.get_hub().destroy(destroy_loop=True)

    outcome = []
    server = serve(Echo)
    sock = connect(server)
    wait_until(lambda: server.statistics().active == 1)
    get_original("_thread", "start_new_thread")(elsewhere, ())
    (error,) = wait_until(lambda: outcome)
    assert isinstance(error, RuntimeError)
    assert str(error) == f"{'drain' if call == 'stop' else call}: the server was started in another thread"
    assert server.started
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    late = connect(server)
    late.sendall(b"x")
    assert read_exactly(late, 1) == b"x"


FORKED = """
from gevent import monkey; monkey.patch_all()
import gevent, os, socket, sys
from greensock import Server

class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)

def talk():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"

path = sys.argv[1]
parent = os.getpid()
with Echo(path) as server, socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    talk()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.exists(path)
        talk()
    else:
        # The lowest free numbers: among them are those that the fork closed.
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
if os.getpid() != parent:
    for fd in fds:
        os.fstat(fd)
    os._exit(0)
assert not os.path.exists(path)
print("ended")
"""


def test_a_forked_child_that_leaves_the_block_takes_nothing_away(tmp_path):
    """Neither a descriptor that has become somebody else's in the child, nor the path that the parent serves."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "socket")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ended\n"


SIGNALS_GIVEN_BACK = """
from gevent import monkey; monkey.patch_all()
import gevent, os, signal, time
from greensock import Server

caught = []
signal.signal(signal.SIGTERM, lambda *args: caught.append(args[0]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with SIGINT ignored
for number in range(2):
    server = Server(("127.0.0.1", 0))
    gevent.spawn(server.stop)
    server.serve_forever()
    gevent.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        caught.append(signal.SIGINT)
assert caught == 2 * [signal.SIGTERM, signal.SIGINT], caught
print("ended")
"""


def test_serve_forever_gives_the_signals_back():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS_GIVEN_BACK], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


# -- connections that end in every way, and sockets that come in every state


def test_half_open_that_is_reset_while_its_upcall_runs(serve, connect):
    """The event of it comes only once, and comes then."""
    go = gevent.event.Event()

    class Half(Recorder):
        def connection_eof(self, conn):
            self.calls.append(("eof", conn))
            go.wait()
            return HALF_OPEN

    server = serve(Half)
    sock = connect(server)
    sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: "eof" in server.names())
    fd = server.connections[0].fileno()
    reset(sock)
    wait_until(lambda: syscalls.both_sides_are_down(fd))
    let_engine_look()
    go.set()
    wait_until(server.drops)
    wait_until(lambda: server.statistics().active == 0)
    assert server.names() == ["new", "eof", "error", "drop"]
    assert server.drops() == [DropReason.LOST]


def test_half_open_whose_peer_closes_entirely(serve, connect, tmp_path):
    """A Unix peer says both with one event."""

    class Half(Recorder):
        def connection_eof(self, conn):
            self.calls.append(("eof", conn))
            return HALF_OPEN

    server = serve(Half, str(tmp_path / "socket"))
    sock = connect(server)
    wait_until(lambda: "new" in server.names())
    sock.close()
    wait_until(server.drops)
    wait_until(lambda: server.statistics().active == 0)
    assert server.names() == ["new", "eof", "drop"]
    assert server.drops() == [DropReason.PEER_CLOSED]


@pytest.mark.parametrize("framer", [None, Lines()], ids=["raw", "framed"])
def test_half_open_stays_so_when_its_peer_does(serve, connect, framer):
    class Half(Recorder):
        def connection_eof(self, conn):
            self.calls.append(("eof", conn))
            return HALF_OPEN

    server = serve(Half, framer=framer)
    sock = connect(server)
    sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: "eof" in server.names())
    let_engine_look()
    assert passes(0.02) < 5, "no turn is due"
    (conn,) = server.connections
    conn.send(b"still here", close=True)
    assert read_all(sock) == b"still here"
    wait_until(server.drops)
    assert server.drops() == [DropReason.CLOSED]


def test_connections_that_ended_are_not_held_until_their_idle_timeout(serve, connect):
    alive = weakref.WeakSet()

    class Remember(Recorder):
        def connection_new(self, conn):
            alive.add(conn)

        def connection_drop(self, conn):
            pass

    server = serve(Remember, idle_timeout=3600.0)
    socks = [connect(server) for _ in range(300)]
    wait_until(lambda: len(alive) == 300)
    for sock in socks:
        sock.close()
    wait_until(lambda: server.statistics().active == 0)
    gc.collect()
    assert len(alive) <= 70  # the heap may have as many void entries


@pytest.mark.parametrize("bound", [False, True])
def test_an_abstract_unix_socket(serve, bound):
    name = f"\0greensock-test-{os.getpid()}"
    listener = f"unix:{name}"
    for _ in range(2):
        if bound:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen()
        server = serve(Echo, listener)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(name)
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            assert server.server_port is None
        server.stop()
        assert not server.started
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(name)


def test_a_bound_socket_that_does_not_listen_yet(serve, connect, caplog):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = serve(Echo, listener)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert not caplog.records


@pytest.mark.parametrize("when", ["before", "draining", "after"])
def test_adopt_when_nobody_would_serve_it(serve, connect, when):
    go = gevent.event.Event()

    class Slow(Recorder):
        def connection_new(self, conn):
            super().connection_new(conn)
            go.wait()

    server = serve(Slow) if when != "before" else Slow(("127.0.0.1", 0))
    if when == "draining":
        sock = connect(server)
        wait_until(lambda: server.calls)
        draining = gevent.spawn(server.drain, PATIENCE)
        wait_until(lambda: server.draining)
    elif when == "after":
        server.stop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="not started, or is about to stop"):
            server.adopt(theirs)
        theirs.sendall(b"mine")
        assert read_exactly(ours, 4) == b"mine"
    if when == "draining":
        sock.close()
        go.set()
        assert draining.get(timeout=PATIENCE)


def echoes(path):
    """Whether the server at the path answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(b"x")
        return read_exactly(sock, 1) == b"x"


def test_a_successor_at_the_same_path_stays(serve, tmp_path):
    path = str(tmp_path / "server.sock")
    old, _new = serve(Echo, path), serve(Echo, path + ".new")
    os.rename(path + ".new", path)
    old.stop()
    assert echoes(path)


@pytest.mark.parametrize("how", ["stop", "abort", "drain"])
def test_a_unix_socket_that_was_given_keeps_its_file(serve, tmp_path, how):
    path = str(tmp_path / "server.sock")
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        one, other = serve(Echo, given.dup()), serve(Echo, given.dup())
        getattr(one, how)()
        assert echoes(path)
        getattr(other, how)()
        assert os.path.exists(path)


@pytest.mark.parametrize("how", ["stop", "abort", "drain"])
def test_a_path_that_was_bound_here_is_removed_and_can_be_bound_again(serve, tmp_path, how):
    path = str(tmp_path / "server.sock")
    server = serve(Echo, path, unix_mode=0o600, unix_owner=(os.getuid(), os.getgid()))
    for _ in range(2):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert echoes(path)
        getattr(server, how)()
        server.stop()
        assert not os.path.exists(path)
        server.start()


def test_a_path_whose_owner_is_busy_does_not_stop_the_hub(tmp_path):
    path = str(tmp_path / "server.sock")
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(path)
        owner.listen(0)
        said = 0
        while said != errno.EAGAIN:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            said = client.connect_ex(path)
        with pytest.raises(OSError, match="in use") as caught:
            Echo(path).start()
        assert caught.value.errno == errno.EADDRINUSE
        assert os.path.exists(path)


def test_a_descriptor_is_held_in_reserve_while_connections_are_accepted(serve):
    """Rule 11: at the limit it is given up, so that the program has one left to log or to answer with."""
    held = [what for what in descriptors().values() if what == "/dev/null"]
    server = serve(Echo)
    assert len([what for what in descriptors().values() if what == "/dev/null"]) == len(held) + 1
    server.stop_accepting()
    wait_until(lambda: [what for what in descriptors().values() if what == "/dev/null"] == held)


def test_only_so_many_workers_are_kept(serve, connect, monkeypatch):
    """What a burst of upcalls that block has needed is let go again."""
    monkeypatch.setattr("greensock.core.workers.MAX_PARKED", 3)
    go = gevent.event.Event()

    class Waiting(Recorder):
        def connection_recv(self, conn, data):
            go.wait()
            conn.send(data)

    server = serve(Waiting)
    socks = [connect(server) for _ in range(20)]
    for sock in socks:
        sock.sendall(b"x")
    wait_until(lambda: server.statistics().workers_busy == 20)
    go.set()
    for sock in socks:
        assert read_exactly(sock, 1) == b"x"
    wait_until(lambda: server.statistics().workers == 3)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_bytes_that_came_after_another_greenlet_read_all_have_their_upcall(serve, kind):
    """A turn is due, somebody empties the connection, and then more comes: all the turn asked for, maybe."""
    got, direct = [], []

    class Hears(Server):
        recv_size = 4096

        def connection_recv(self, conn, data):
            got.append(data)

    server, quiet = serve(Hears), serve(Server)
    ours, theirs = socket.socketpair() if kind == "unix" else tcp_pair()
    waking, waker = socket.socketpair()
    with theirs, waker:
        conn, waits_on = server.adopt(ours), quiet.adopt(waking)
        gevent.sleep(0)

        def meddle():
            waits_on.recv()
            direct.append(conn.recv(timeout=0))
            with contextlib.suppress(OperationTimeout):
                direct.append(conn.recv(timeout=0))
            theirs.send(bytes(4096))

        meddling = gevent.spawn(meddle)
        gevent.sleep(0)
        theirs.send(b"first")  # both before the hub looks again
        waker.send(b"wake")
        meddling.get(timeout=PATIENCE)
        wait_until(lambda: sum(map(len, got)) + sum(map(len, direct)) == 5 + 4096)
