"""What a server calls, in which order, and what comes of each verdict."""

from __future__ import annotations

import gc
import os
import socket
import time
import weakref

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from pairs import let_engine_look, read_all_fast
from served import Echo, Recorder, passes, reset

from greensock import (
    DROP,
    HALF_OPEN,
    OK,
    POSTPONE,
    Connection,
    ConnectionLost,
    DropReason,
    FixedSize,
    IncompleteMessage,
    Lines,
    MessageTooLong,
    Server,
)
from greensock.core import syscalls


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


def test_messages_that_are_there_come_before_the_end(serve, connect):
    """A raw read has found the end, and put back more messages than one turn has time for."""
    got = []

    class Slow(Server):
        framer = Lines()

        def connection_recv(self, conn, data):
            got.append(data)
            if len(got) == 1:
                rest = b""
                while more := conn.recv():
                    rest += more
                conn.unread(rest)
            end = time.monotonic() + 0.002
            while time.monotonic() < end:
                pass

        def connection_eof(self, conn):
            got.append("eof")

    sock = connect(serve(Slow))
    sock.sendall(b"x\n" * 50)
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    assert got == [b"x"] * 50 + ["eof"]


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
            self.calls.append(("eof", conn))
            gevent.spawn(self.answer, conn)
            return HALF_OPEN

        def answer(self, conn):
            for _ in range(3):
                conn.send(b"x" * 10_000_000)  # it has to wait for room, whose events tell of the peer's FIN, too
                gevent.sleep(0)
            conn.close()

    server = serve(Late)
    sock = connect(server)
    sock.shutdown(socket.SHUT_WR)
    assert len(read_all_fast(sock)) == 30_000_000
    wait_until(server.drops)
    assert server.drops() == [DropReason.CLOSED]
    assert server.names().count("eof") == 1


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


def test_a_connection_class_that_is_no_whole_one(serve):
    """Its fields would be anything, and its descriptor the program's standard input."""

    class Hollow(Connection):
        def __init__(self, *args):
            pass

    server = serve(Echo)
    server.connection_class = Hollow
    ours, theirs = socket.socketpair()
    with pytest.raises(TypeError, match=r"^Hollow.__init__ does not call Connection.__init__$"):
        server.adopt(theirs)
    assert ours.recv(1) == b""
    ours.close()


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


@pytest.mark.parametrize("framer", [None, Lines()])
def test_reset_is_a_reason_and_no_traceback(serve, connect, caplog, framer):
    server = serve(Echo, framer=framer)
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
def test_any_upcall_that_raises_leaves_the_server_alive(serve, connect, caplog, capsys, upcall):
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
    assert capsys.readouterr().err == "", "gevent's hub was told, too"


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


class Open(Connection):
    """A connection with room for what a test notes."""


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


class Announced(Server):
    """Each line says in which way the raw bytes behind it are to be read."""

    connection_class = Open
    framer = Lines()

    def connection_new(self, conn):
        conn.raw = []

    def connection_recv(self, conn, line):
        match line:
            case b"recv":
                conn.raw.append(conn.recv())
            case b"few":
                conn.raw.append(conn.recv(3))
            case b"into":
                buffer = bytearray(4)
                conn.raw.append(bytes(buffer[: conn.recv_into(buffer)]))
            case b"exactly":
                conn.raw.append(conn.read_exactly(4))
            case b"until":
                conn.raw.append(conn.read_until(b"."))
            case _:
                conn.raw.append([line])


@pytest.mark.parametrize(
    ("way", "raw", "then"),
    [
        (b"recv", b"abc.\nd\n", []),
        (b"few", b"abc", [[b"."], [b"d"]]),
        (b"into", b"abc.", [[b""], [b"d"]]),
        (b"exactly", b"abc.", [[b""], [b"d"]]),
        (b"until", b"abc", [[b""], [b"d"]]),
    ],
)
def test_a_raw_read_begins_where_the_last_message_ended(serve, connect, way, raw, then):
    """What the framer holds already comes first."""
    server = serve(Announced)
    sock = connect(server)
    sock.sendall(way + b"\nabc.\nd\n")
    wait_until(lambda: server.connections and len(server.connections[0].raw) == 1 + len(then))
    assert server.connections[0].raw == [raw, *then]


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
