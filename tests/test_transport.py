"""Transports: the descriptor that others hold too, a toy, and threads."""

from __future__ import annotations

import gc
import os
import select
import socket
import subprocess

import gevent
import pytest
from conftest import PATIENCE, descriptors, read_all, read_exactly, wait_until
from gevent.monkey import get_original
from pairs import read_all_fast, read_exactly_fast, tcp_pair, wrap
from toys import (
    Echo,
    nothing,
    pair,  # noqa: F401  # fixtures
)

from greensock import (
    Connection,
    DropReason,
    IncompleteMessage,
    Lines,
    Server,
    State,
    StreamServer,
)
from greensock.core.poller import get_poller
from greensock.core.syscalls import has_input
from greensock.core.transport import SharedDescriptor
from greensock.http import HTTPServer, Response

COMPLEMENTS = bytes(range(255, -1, -1))


class Reversing:
    """A toy transport: what goes out and what comes in is complemented, byte by byte, so that both ends need it.

    It notes what it has read, and in which order it was shut and let go of.
    """

    is_shared = False

    def __init__(self, fd):
        self._fd = fd
        self.was_read = b""
        self.ends = []

    @staticmethod
    def turned(data):
        return bytes(data).translate(COMPLEMENTS)

    def read(self, size):
        data = self.turned(os.read(self._fd, size))
        self.was_read += data
        if not data:
            self.ends.append("eof")
        return data

    def readv(self, view):
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data):
        return os.write(self._fd, self.turned(data))

    def writev(self, views):
        return self.write(b"".join(views))

    def shut(self):
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            sock.shutdown(socket.SHUT_WR)
        self.ends.append("shut")

    def close(self):
        os.fstat(self._fd)  # it is open until then
        self.ends.append("close")


def with_toy(conn):
    conn._transport = Reversing(conn._fd)
    conn._clear = False
    return conn


def as_shared(conn):
    conn.fileno()
    assert isinstance(conn._transport, SharedDescriptor)
    return conn


def turned(kind, data):
    return Reversing.turned(data) if kind is with_toy else data


KINDS = pytest.mark.parametrize("kind", [nothing, as_shared, with_toy])


# -- how one ends


def test_a_transport_is_told_that_nothing_more_is_sent(pair):
    conn, peer = pair
    toy = with_toy(conn)._transport
    conn.shutdown_write()
    assert toy.ends == ["shut"]
    assert read_all(peer) == b""
    conn.shutdown_write()
    assert toy.ends == ["shut"]


def test_what_a_closing_connection_drops_is_read_by_the_transport(pair):
    """It may be that only the transport can tell where the input ends."""
    conn, peer = pair
    toy = with_toy(conn)._transport
    peer.sendall(Reversing.turned(b"before"))
    conn.close()
    assert read_all(peer) == b""
    peer.sendall(Reversing.turned(b" and behind"))
    wait_until(lambda: toy.was_read == b"before and behind")
    assert conn.state is State.CLOSING
    peer.shutdown(socket.SHUT_WR)
    conn.wait_closed(PATIENCE)
    assert toy.ends == ["shut", "eof", "close"]


@pytest.mark.parametrize("end", ["close", "abort", "lost"])
def test_a_transport_is_let_go_of_once(pair, end):
    conn, _ = pair
    toy = with_toy(conn)._transport
    if end == "close":
        conn.linger_timeout = 0.0
    if end == "lost":
        conn._lost(ConnectionResetError())
    else:
        getattr(conn, end)()
    assert conn.state is State.CLOSED
    conn.abort()
    assert toy.ends == ["close"]


# -- every downcall, over each


@KINDS
def test_reading(pair, kind):
    conn, peer = pair
    kind(conn)
    text = b"first line\nsecond\nexactly" + b"x" * 100_000 + b"end"
    feeding = gevent.spawn(peer.sendall, turned(kind, text))
    assert conn.read_line() == b"first line"
    assert conn.read_until(b"\n") == b"second"
    assert conn.read_exactly(7) == b"exactly"
    buffer = bytearray(10)
    assert conn.recv_into(buffer) == 10
    assert conn.read_exactly(99_990) == b"x" * 99_990
    assert conn.recv(100) in (b"e", b"en", b"end")
    feeding.get(timeout=PATIENCE)
    peer.shutdown(socket.SHUT_WR)
    while conn.recv():
        pass
    assert conn.read_exactly(1) is None


@KINDS
def test_an_end_within_a_message(pair, kind):
    conn, peer = pair
    kind(conn)
    peer.sendall(turned(kind, b"par"))
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(IncompleteMessage) as caught:
        conn.read_exactly(4)
    assert caught.value.partial == b"par"


@KINDS
@pytest.mark.parametrize("how", ["send", "list", "nowait", "file"])
def test_sending_more_than_fits(pair, kind, how, tmp_path):
    conn, peer = pair
    kind(conn)
    data = os.urandom(1 << 20) * 8
    conn.max_send_queue = len(data)
    reading = gevent.spawn(read_exactly_fast, peer, len(data))
    match how:
        case "send":
            assert conn.send(data) == len(data)
        case "list":
            assert conn.send([data[:5], bytearray(data[5:1000]), memoryview(data)[1000:]]) == len(data)
        case "nowait":
            conn.send_nowait(data)
        case "file":
            (tmp_path / "file").write_bytes(data)
            with (tmp_path / "file").open("rb") as file:
                assert conn.send_file(file) == len(data)
    assert reading.get(timeout=30) == turned(kind, data)
    assert conn.statistics().bytes_sent == len(data)


def test_a_list_is_one_write_of_a_transport(pair):
    """It may make a message of each write. (That of the toy joins what is in a list.)"""
    conn, peer = pair
    toy, made = with_toy(conn)._transport, []
    for name in ("write", "writev"):
        call = getattr(toy, name)
        setattr(toy, name, lambda data, name=name, call=call: made.append(name) or call(data))
    conn.send([b"a", b"b"])
    conn.send([b"c"])
    conn.send_nowait(b"d")
    assert made == ["writev", "write", "write", "write"]
    assert read_exactly(peer, 4) == Reversing.turned(b"abcd")


@KINDS
def test_shutdown_and_half_close(pair, kind):
    conn, peer = pair
    kind(conn)
    conn.send(b"bye")
    conn.shutdown_write()
    assert read_all(peer) == turned(kind, b"bye")
    peer.sendall(turned(kind, b"still there"))
    assert conn.read_exactly(11) == b"still there"


@pytest.mark.parametrize("source_kind", [nothing, as_shared, with_toy])
@pytest.mark.parametrize("target_kind", [nothing, as_shared, with_toy])
def test_splice(source_kind, target_kind):
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = source_kind(wrap(one)), target_kind(wrap(two))
    data = os.urandom(1 << 20) * 6
    moving = gevent.spawn(source.splice, target)
    feeding = gevent.spawn(left.sendall, turned(source_kind, data))
    wait_until(lambda: target.statistics().bytes_queued or moving.ready())
    assert read_exactly_fast(right, len(data)) == turned(target_kind, data)
    feeding.get(timeout=PATIENCE)
    left.shutdown(socket.SHUT_WR)
    assert moving.get(timeout=PATIENCE) == len(data)
    for sock in (left, right):
        sock.close()
    for conn in (source, target):
        conn.abort()


def test_what_is_in_a_pipe_when_the_target_is_shown():
    (one, left), (two, right) = tcp_pair(), tcp_pair()
    source, target = wrap(one), wrap(two)
    data = os.urandom(1 << 20) * 12
    moving = gevent.spawn(source.splice, target)
    feeding = gevent.spawn(left.sendall, data)
    wait_until(lambda: target.statistics().bytes_queued)
    target.fileno()
    assert read_exactly_fast(right, len(data)) == data
    feeding.get(timeout=PATIENCE)
    moving.kill()
    for sock in (left, right):
        sock.close()
    for conn in (source, target):
        conn.abort()


@KINDS
@pytest.mark.parametrize("framer", [None, Lines()])
def test_upcalls(serve, connect, kind, framer):
    server = serve(Echo, cover=kind, framer=framer)
    sock = connect(server)
    if framer is None:
        for text in (b"hello", b"wait", b" for it!"):
            sock.sendall(turned(kind, text))
            wait_until(lambda: server.said and server.said[-1].endswith(text[-1:]))  # noqa: B023
        assert read_exactly(sock, 17) == turned(kind, b"hellowait for it!")
        flood = os.urandom(1 << 20)
        reading = gevent.spawn(read_exactly_fast, sock, len(flood))
        sock.sendall(turned(kind, b"x" + flood[1:]))
        assert reading.get(timeout=PATIENCE) == turned(kind, b"x" + flood[1:])
    else:
        sock.sendall(turned(kind, b"one\ntwo\nthr"))
        sock.sendall(turned(kind, b"ee\n"))
        assert read_exactly(sock, 11) == turned(kind, b"onetwothree")
    sock.close()
    wait_until(lambda: server.statistics().dropped == {"PEER_CLOSED": 1})


class Mine(Connection):
    """A connection class of a program's own, which knows nothing of transports."""

    __slots__ = ("lines",)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lines = 0


class Over(Server):
    """Every connection is over the toy from its first byte on."""

    connection_class = Mine

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.file = None

    def transport_for(self, conn, fd):
        return Reversing(fd)

    def connection_recv(self, conn, data):
        conn.lines += 1
        match data:
            case b"file":
                conn.send_file(self.file)
            case b"splice":
                source, feeding = tcp_pair()
                inlet = wrap(source)
                with feeding:
                    feeding.sendall(b"spliced")
                    feeding.shutdown(socket.SHUT_WR)
                    inlet.splice(conn)
                inlet.abort()
            case b"read":
                conn.send(conn.read_exactly(5))
            case b"bye":
                conn.send([b"bye ", b"%d" % conn.lines], close=True)
            case _:
                conn.send(data.upper())


def test_any_connection_class_over_a_transport(serve, connect, tmp_path):
    """Upcalls, framers, raw reads, files, splices, a close with what is queued: nothing that it wrote has changed."""
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    with (tmp_path / "file").open("rb") as file:
        server = serve(Over, framer=Lines())
        server.file = file
        sock = connect(server)
        reading = gevent.spawn(read_all_fast, sock)
        sock.sendall(Reversing.turned(b"hello\nfile\nsplice\nread\n12345\nbye\n"))
        answer = Reversing.turned(reading.get(timeout=PATIENCE))
    assert answer == b"HELLO" + b"x" * 3_000_000 + b"spliced" + b"12345" + b"bye 6"
    wait_until(lambda: server.statistics().dropped == {"CLOSED": 1})
    assert server.statistics().errors == 0


def test_http_over_a_transport(serve, connect):
    class Site(HTTPServer):
        def transport_for(self, conn, fd):
            return Reversing(fd)

        def handle_request(self, request):
            return Response(request.body.read_all() * 1000)

    sock = connect(serve(Site))
    sock.sendall(Reversing.turned(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000))
    sock.sendall(Reversing.turned(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    answers = Reversing.turned(read_all_fast(sock))
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.count(b"x") == 1_000_000


def test_a_transport_is_made_for_those_only_that_want_one(serve, connect):
    class Some(Server):
        def transport_for(self, conn, fd):
            return None

        def connection_recv(self, conn, data):
            conn.send(b"%d" % conn._plain)

    sock = connect(serve(Some))
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"1"


# -- a descriptor that others hold, too


def test_a_connection_that_was_not_shown_has_none(pair):
    conn, _ = pair
    assert conn._transport is None
    assert conn._clear
    conn.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    _ = conn.local_address, repr(conn), conn.statistics()
    assert conn._transport is None


@pytest.mark.parametrize("call", ["recv", "recv_into", "send", "send_file", "splice", "close"])
def test_who_clears_o_nonblock_blocks_nobody(pair, call, tmp_path):
    """The hub would hang, and with it this test, but for the alarm of pytest-timeout."""
    conn, peer = pair
    os.set_blocking(conn.fileno(), True)
    ticks = []
    gevent.spawn_later(0.05, ticks.append, 1)
    (one, left) = tcp_pair()
    other = wrap(one)
    (tmp_path / "file").write_bytes(bytes(8_000_000))
    with (tmp_path / "file").open("rb") as file:
        work = {
            "recv": lambda: conn.recv(),
            "recv_into": lambda: conn.recv_into(bytearray(10)),
            "send": lambda: conn.send(bytes(16_000_000)),
            "send_file": lambda: [conn.send_file(file) for _ in range(3)],
            "splice": lambda: conn.splice(other),
            "close": lambda: (conn.close(), conn.wait_closed()),
        }
        job = gevent.spawn(work[call])
        wait_until(lambda: ticks)
        os.set_blocking(conn._fd, True) if conn._fd >= 0 else None
        if call == "close":
            job.get(timeout=PATIENCE)
        else:
            assert not job.ready()
            gevent.spawn(read_all_fast, peer).join(0.1) if call.startswith("send") else peer.sendall(b"x")
            wait_until(lambda: job.ready() or call in ("send", "send_file", "splice"))
        job.kill()
    left.close()
    other.abort()


def test_close_of_a_shared_one_leaves_the_connection_to_others(pair):
    """No FIN, no reset: a child goes on."""
    conn, peer = pair
    peer.sendall(b"unread")
    theirs = socket.socket(fileno=os.dup(conn.fileno()))
    for end in (conn.close, conn.abort):
        end()
        assert conn.state is State.CLOSED
        theirs.sendall(b"goes on")
        assert read_exactly(peer, 7) == b"goes on"
    assert theirs.recv(100) == b"unread"
    theirs.close()
    assert read_all(peer) == b""


def test_an_abort_of_a_shared_one_resets_nothing_for_the_others(pair):
    conn, peer = pair
    theirs = socket.socket(fileno=os.dup(conn.fileno()))
    conn.abort()
    theirs.sendall(b"bye")
    theirs.close()
    assert read_all(peer) == b"bye"


@pytest.mark.parametrize("end", ["close", "abort", "lost"])
def test_the_engine_hears_no_more_of_what_others_go_on_with(pair, end):
    """Each of their messages would wake this process, and the connection that got the number next."""
    conn, peer = pair
    theirs = socket.socket(fileno=os.dup(conn.fileno()))
    fd = conn._fd
    if end == "lost":
        conn._lost(ConnectionResetError())
    else:
        getattr(conn, end)()
    assert conn.state is State.CLOSED
    peer.sendall(b"for the child")
    while not has_input(theirs.fileno()):
        pass
    assert fd not in [number for number, _ in get_poller()._epoll.poll(0)]
    theirs.close()


def test_what_is_queued_is_flushed_before(pair):
    conn, peer = pair
    conn.max_send_queue = 1 << 24
    theirs = socket.socket(fileno=os.dup(conn.fileno()))
    conn.send_nowait(bytes(8_000_000))
    conn.close()
    assert len(read_exactly_fast(peer, 8_000_000)) == 8_000_000
    conn.wait_closed(PATIENCE)
    theirs.sendall(b"more")
    assert read_exactly(peer, 4) == b"more"
    theirs.close()


SHELL = ["sh", "-c", "read name; echo hello $name; read more; echo and $more"]


@pytest.mark.parametrize("kind", ["upcalls", "handle", "StreamServer"])
def test_a_shell_that_gets_a_connection_as_its_standard_input(serve, connect, kind):
    """inetd's way. While it runs, and behind it, the others are served."""

    def work(conn):
        subprocess.call(SHELL, stdin=conn.fileno(), stdout=conn.fileno())

    class Inetd(Server):
        def connection_recv(self, conn, data):
            if data == b"ping\n":
                conn.send(data)
            else:
                conn.send(b"go\n")
                work(conn)

    class Handling(Server):
        def handle(self, conn):
            if conn.read_line() == b"ping":
                conn.send(b"ping\n")
            else:
                conn.send(b"go\n")
                work(conn)

    def handle(sock, address):
        if sock.recv(100) == b"ping\n":
            sock.sendall(b"ping\n")
        else:
            sock.sendall(b"go\n")
            work(sock)

    if kind == "StreamServer":
        server = StreamServer(("127.0.0.1", 0), handle)
        server.start()
    else:
        server = serve(Inetd if kind == "upcalls" else Handling)
    sock = connect(server)
    sock.sendall(b"start\n")
    assert read_exactly(sock, 3) == b"go\n"
    for line, answer in ((b"world\n", b"hello world\n"), (b"more\n", b"and more\n")):
        sock.sendall(line)
        assert read_exactly(sock, len(answer)) == answer
        other = connect(server)
        other.sendall(b"ping\n")
        assert read_exactly(other, 5) == b"ping\n"
    if kind == "StreamServer":
        server.stop()


@pytest.mark.parametrize("kind", [as_shared, nothing])
def test_select_and_dup_and_fromfd(connect, kind):
    told = []

    def handle(sock, address):
        if kind is as_shared:
            sock.fileno()
        told.append(select.select([sock], [], [], PATIENCE)[0] == [sock])
        with socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as other:
            told.append(other.recv(1))
        with sock.dup() as other:
            told.append(other.recv(1))
        told.append(sock.recv(1))
        sock.sendall(b"done")

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    sock = connect(server)
    sock.sendall(b"abc")
    assert read_all(sock) == b"done"
    assert told == [True, b"a", b"b", b"c"]
    server.stop()


# -- threads


def in_a_thread(work):
    """Run it in a thread of the system, which has ended when this returns."""
    errors, done = [], []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            done.append(True)

    before = len(os.listdir("/proc/self/task"))
    get_original("_thread", "start_new_thread")(run, ())
    wait_until(lambda: done and len(os.listdir("/proc/self/task")) <= before)
    assert not errors


def use_the_engine():
    ours, theirs = tcp_pair()
    conn = wrap(ours)
    theirs.sendall(b"x")
    assert conn.recv(timeout=PATIENCE) == b"x"
    conn.abort()
    theirs.close()


def test_a_thread_that_destroys_its_hub_leaves_no_descriptor():
    def work():
        use_the_engine()
        found.append(get_poller())
        gevent.get_hub().destroy()

    found = []
    gc.collect()
    before = sum("eventpoll" in what for what in descriptors().values())
    for _ in range(10):
        in_a_thread(work)
    assert all(poller.closed for poller in found)
    assert sum("eventpoll" in what for what in descriptors().values()) <= before


def test_a_thread_that_ends_without_a_word_closes_its_poller():
    found = []
    in_a_thread(lambda: found.append(get_poller()))
    assert found[0].closed
    found[0].hub.destroy(destroy_loop=True)


def test_a_hub_that_is_made_anew_gets_a_poller_of_its_own():
    def work():
        first = get_poller()
        gevent.get_hub().destroy()
        assert first.closed
        found.append((first, get_poller()))
        gevent.get_hub().destroy()

    found = []
    in_a_thread(work)
    [(first, second)] = found
    assert first is not second
    assert first.closed
    assert second.closed


def test_the_drop_reason_of_a_shared_one(serve, connect):
    class Showing(Server):
        def connection_recv(self, conn, data):
            conn.fileno()
            conn.close()

        def connection_drop(self, conn):
            told.append(conn.drop_reason)

    told = []
    sock = connect(serve(Showing))
    sock.sendall(b"x")
    assert read_all(sock) == b""
    wait_until(lambda: told)
    assert told == [DropReason.CLOSED]
