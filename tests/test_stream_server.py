"""``StreamServer`` and what its handlers get: a conformance suite that gevent's own server must pass as well.

A test with the fixture ``run`` runs on ``gevent.server.StreamServer`` too; what holds of ours only uses ``ours``.
"""

from __future__ import annotations

import array
import bz2
import errno
import gc
import io
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.pool
import gevent.server
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, blocked, read_all, wait_until
from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from streams import CALLS, RESET, Run, certificate, error_of, fill, ours, outcome, run, trusting  # noqa: F401  # fixtures

from greensock.core.connection import Connection
from greensock.core.poller import get_poller
from greensock.core.socket_connection import SocketConnection
from greensock.stream_server import StreamServer

# -- what the handler gets


def test_the_handler_gets_a_connection_of_the_engine(ours: Run) -> None:
    client, result = ours(lambda conn: (type(conn), isinstance(conn, Connection), os.get_blocking(conn.fileno())))
    assert outcome(result) == (SocketConnection, True, False)
    assert client.recv(1) == b""


def test_the_address_is_the_clients() -> None:
    seen: Any = gevent.event.AsyncResult()
    with StreamServer(("127.0.0.1", 0), lambda conn, address: seen.set(address)) as server:
        server.start()
        with socket.create_connection(server.address) as client:
            assert outcome(seen) == client.getsockname()


def test_names_and_kind(run: Run) -> None:
    def handle(conn: Any) -> tuple[Any, ...]:
        return conn.getpeername(), conn.getsockname(), conn.family, conn.type, conn.proto, conn.fileno() > 2

    client, result = run(handle)
    expected = client.getsockname(), client.getpeername(), socket.AF_INET, socket.SOCK_STREAM, 0, True
    assert outcome(result) == expected


def test_options(run: Run) -> None:
    def handle(conn: Any) -> tuple[Any, ...]:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 7, 0))
        return (
            conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            struct.unpack("ll", conn.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)),
            conn.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        )

    _, result = run(handle)
    assert outcome(result) == (1, (7, 0), socket.SOCK_STREAM)


def test_a_wrong_option_is_refused(run: Run) -> None:
    _, result = run(lambda conn: conn.setsockopt(socket.SOL_SOCKET, 9999, 1))
    assert error_of(result, OSError).errno == errno.ENOPROTOOPT


def test_inheritable(run: Run) -> None:
    def handle(conn: Any) -> list[bool]:
        before = conn.get_inheritable()
        conn.set_inheritable(True)
        return [before, conn.get_inheritable()]

    assert outcome(run(handle)[1]) == [False, True]


def test_the_protocol_is_the_listeners(run: Run) -> None:
    listener = gevent.socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    _, result = run(lambda conn: conn.proto, listener=listener)
    assert outcome(result) == socket.IPPROTO_TCP


def test_what_is_no_stream_is_left_to_gevent(ours: Run, tmp_path: Path) -> None:
    listener = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "socket"))
    listener.listen(5)
    ours.server(lambda conn: [type(conn), conn.recv(10), conn.recv(10)], listener=listener)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(tmp_path / "socket"))
        client.send(b"one")
        client.send(b"two")
        assert outcome(ours.outcome) == [gevent.socket.socket, b"one", b"two"]


# -- receiving


def test_recv(run: Run) -> None:
    def handle(conn: Any) -> list[bytes]:
        return [conn.recv(3), conn.recv(100), conn.recv(100), conn.recv(100)]

    client, result = run(handle)
    client.sendall(b"abcde")
    client.shutdown(socket.SHUT_WR)
    assert outcome(result) == [b"abc", b"de", b"", b""]


def test_recv_waits(run: Run) -> None:
    client, result = run(lambda conn: conn.recv(100))
    run.wait_begun()
    assert not result.ready()
    client.sendall(b"late")
    assert outcome(result) == b"late"


def test_recv_of_nothing(run: Run) -> None:
    assert outcome(run(lambda conn: conn.recv(0))[1]) == b""


def test_recv_of_less_than_nothing(run: Run) -> None:
    error_of(run(lambda conn: conn.recv(-1))[1], ValueError)


def test_recv_peek(run: Run) -> None:
    client, result = run(lambda conn: [conn.recv(2, socket.MSG_PEEK), conn.recv(2), conn.recv(9)])
    client.sendall(b"abc")
    assert outcome(result) == [b"ab", b"ab", b"c"]


def test_recv_into(run: Run) -> None:
    def handle(conn: Any) -> Any:
        small, large, numbers = bytearray(2), bytearray(10), array.array("I", [0])
        got = [conn.recv_into(small), conn.recv_into(memoryview(large)[1:], 2), conn.recv_into(numbers)]
        last = conn.recv_into(large, 0, socket.MSG_PEEK), conn.recv_into(large), conn.recv_into(large)
        return got, small, large[:3], numbers.tobytes(), last

    client, result = run(handle)
    client.sendall(b"abcdefghZ")
    client.shutdown(socket.SHUT_WR)
    got, small, large, numbers, last = outcome(result)
    assert (got, small, large, numbers) == ([2, 2, 4], b"ab", b"Zcd", b"efgh")
    assert last == (1, 1, 0)


@pytest.mark.parametrize("nbytes", [-1, 4])
def test_recv_into_checks_the_size(run: Run, nbytes: int) -> None:
    error_of(run(lambda conn: conn.recv_into(bytearray(3), nbytes))[1], ValueError)


def test_recvfrom_and_friends(run: Run) -> None:
    def handle(conn: Any) -> list[Any]:
        buffer = bytearray(2)
        return [
            conn.recvfrom(1),
            conn.recvfrom_into(buffer),
            bytes(buffer),
            conn.recvmsg(1),
            conn.recvmsg_into([buffer]),
            bytes(buffer),
        ]

    client, result = run(handle)
    client.sendall(b"abcdef")
    first, into, buffer, message, message_into, last = outcome(result)
    assert (first[0], into[0], buffer, message[0], message[1], message_into[:2], last) == (
        b"a", 2, b"bc", b"d", [], (2, []), b"ef",
    )  # fmt: skip


def test_recvfrom_waits(run: Run) -> None:
    client, result = run(lambda conn: conn.recvfrom(9))
    run.wait_begun()
    client.sendall(b"late")
    assert outcome(result)[0] == b"late"


def test_descriptors_are_passed(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = gevent.socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(5)

    def handle(conn: Any) -> Any:
        data, (fd,), _, _ = socket.recv_fds(conn, 10, 1)
        os.write(fd, b"through the pipe")
        socket.send_fds(conn, [b"back"], [fd])
        os.close(fd)
        return data, conn.family, conn.getpeername()

    client, result = run(handle, listener=listener)
    reader, writer = os.pipe()
    socket.send_fds(client, [b"take"], [writer])
    assert outcome(result) == (b"take", socket.AF_UNIX, "")
    assert os.read(reader, 100) == b"through the pipe"
    data, fds, _, _ = socket.recv_fds(client, 10, 1)
    assert data == b"back"
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_two_readers_collide(run: Run) -> None:
    tried = gevent.event.Event()

    def handle(conn: Any) -> Any:
        first = blocked(gevent.spawn(conn.recv, 1))
        try:
            with pytest.raises(ConcurrentObjectUseError):
                conn.recv(1)
        finally:
            tried.set()
            first.join()
        return first.get()

    client, result = run(handle)
    assert tried.wait(PATIENCE)
    client.sendall(b"x")
    assert outcome(result) == b"x"


def test_received_bytes_are_counted_once(ours: Run) -> None:
    def handle(conn: Any) -> int:
        conn.recv(4, socket.MSG_PEEK)
        buffer = bytearray(1)
        conn.recv(1)
        conn.recv_into(buffer)
        conn.recvfrom(1)
        conn.recvmsg(1)
        conn.recvmsg_into([buffer])
        return int(conn.statistics().bytes_received)

    client, result = ours(handle)
    client.sendall(b"abcdef")
    assert outcome(result) == 5


# -- sending


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc"), array.array("B", b"abc")])
def test_send(run: Run, data: Any) -> None:
    client, result = run(lambda conn: [conn.send(data), conn.sendall(data)])
    assert outcome(result) == [3, None]
    assert read_all(client) == b"abcabc"


def test_send_of_text_is_refused(run: Run) -> None:
    error_of(run(lambda conn: conn.send("abc"))[1], TypeError)
    error_of(run(lambda conn: conn.sendall("abc"))[1], TypeError)


def test_send_returns_what_the_kernel_took(run: Run) -> None:
    size = 32 << 20
    client, result = run(lambda conn: conn.send(bytes(size)))
    sent = outcome(result)
    assert 0 < sent < size
    assert len(read_all(client)) == sent


def test_send_waits_for_room(run: Run) -> None:
    full = gevent.event.Event()

    def handle(conn: Any) -> Any:
        filled = fill(conn)
        conn.settimeout(PATIENCE)
        full.set()
        return filled, conn.send(b"x" * 10)

    client, result = run(handle)
    assert full.wait(PATIENCE)
    assert not result.ready()
    assert len(read_all(client)) == sum(outcome(result))


def test_send_with_flags(run: Run) -> None:
    def handle(conn: Any) -> Any:
        return conn.send(b"ab", socket.MSG_MORE), conn.sendall(b"cd", socket.MSG_MORE), conn.send(b"", 0)

    client, result = run(handle)
    assert outcome(result) == (2, None, 0)
    assert read_all(client) == b"abcd"


@pytest.mark.parametrize("flags", [0, socket.MSG_NOSIGNAL])
def test_sendall_of_much(run: Run, flags: int) -> None:
    data = os.urandom(1 << 20) * 16
    client, result = run(lambda conn: conn.sendall(memoryview(data), flags))
    assert read_all(client) == data
    assert outcome(result) is None


def test_sendmsg_and_sendto(run: Run) -> None:
    client, result = run(lambda conn: [conn.sendmsg([b"ab", bytearray(b"cd")]), conn.sendto(b"e", conn.getpeername())])
    assert outcome(result) == [4, 1]
    assert read_all(client) == b"abcde"


def test_sendalls_of_many_greenlets_go_out_whole(ours: Run) -> None:
    size, many = 300_000, 20

    def handle(conn: Any) -> None:
        gevent.joinall([gevent.spawn(conn.sendall, bytes([number]) * size) for number in range(many)], raise_error=True)

    client, result = ours(handle)
    data = read_all(client)
    outcome(result)
    assert {data[at : at + size] for at in range(0, len(data), size)} == {bytes([n]) * size for n in range(many)}


def test_a_send_waits_for_the_sends_before_it(ours: Run) -> None:
    size, tried = 8 << 20, gevent.event.Event()

    def handle(conn: Any) -> Any:
        first = blocked(gevent.spawn(conn.sendall, bytes(size)))
        second, third = blocked(gevent.spawn(conn.send, b"second")), blocked(gevent.spawn(conn.sendmsg, [b"third"]))
        conn.setblocking(False)
        for call in (conn.send, conn.sendall):
            with pytest.raises(BlockingIOError):
                call(b"never")
        for greenlet in (first, second, third):
            assert not greenlet.ready()
        tried.set()
        gevent.joinall([first, second, third], raise_error=True)
        return second.get(), third.get(), conn.statistics().bytes_sent

    client, result = ours(handle)
    assert tried.wait(PATIENCE)
    assert read_all(client) == bytes(size) + b"secondthird"
    assert outcome(result) == (6, 5, size + 11)


def test_a_send_does_not_overtake_when_there_is_room_again(ours: Run) -> None:
    tried = gevent.event.Event()

    def handle(conn: Any) -> None:
        first = blocked(gevent.spawn(conn.sendall, bytes(8 << 20)))
        assert not first.ready()
        for _ in range(3):  # makes room, and no switch lets the engine use it
            assert client.recv(100_000)
        conn.setblocking(False)
        try:
            with pytest.raises(BlockingIOError):
                conn.send(b"first")
        finally:
            tried.set()
        first.get()

    client, result = ours(handle)
    assert tried.wait(PATIENCE)
    read_all(client)
    outcome(result)


@pytest.mark.parametrize("call", [lambda conn: conn.send("text"), lambda conn: conn.sendmsg(["text"])])
def test_a_wrong_argument_behind_other_sends_is_told(ours: Run, call: Callable[[Any], Any]) -> None:
    trying = gevent.event.Event()

    def handle(conn: Any) -> None:
        first = blocked(gevent.spawn(conn.sendall, bytes(8 << 20)))
        assert not first.ready()
        trying.set()
        with pytest.raises(TypeError):
            call(conn)
        first.get()

    client, result = ours(handle)
    assert trying.wait(PATIENCE)
    assert len(read_all(client)) == 8 << 20
    outcome(result)


def test_nothing_is_sent_behind_a_fin_that_waits(ours: Run) -> None:
    tried = gevent.event.Event()

    def handle(conn: Any) -> None:
        first = blocked(gevent.spawn(conn.sendall, bytes(8 << 20)))
        fin = blocked(gevent.spawn(conn.shutdown_write))
        assert not fin.ready()
        with pytest.raises(BrokenPipeError):
            conn.sendall(b"too late")
        tried.set()
        gevent.joinall([first, fin], raise_error=True)

    client, result = ours(handle)
    assert tried.wait(PATIENCE)
    assert len(read_all(client)) == 8 << 20
    outcome(result)


def test_dontwait_does_not_wait(ours: Run) -> None:
    """As in the standard library; gevent's sockets wait all the same in some of these."""

    def handle(conn: Any) -> None:
        fill(conn)
        for call in (conn.recv, conn.recvfrom):
            with pytest.raises(BlockingIOError):
                call(1, socket.MSG_DONTWAIT)
        for call in (conn.send, conn.sendall):
            with pytest.raises(BlockingIOError):
                call(b"x", socket.MSG_DONTWAIT)

    outcome(ours(handle)[1])


def test_a_failed_send_leaves_no_cycle(ours: Run) -> None:
    """Which would keep the connection and the program's frames until the collector runs."""

    def handle(conn: Any) -> Any:
        fill(conn)
        full.set()
        with pytest.raises(ConnectionResetError):
            conn.sendall(bytes(1 << 20))
        return weakref.ref(conn)

    full = gevent.event.Event()
    gc.disable()
    try:
        client, result = ours(handle)
        assert full.wait(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        found = outcome(result)
        ours.conns.clear()
        wait_until(lambda: found() is None)
    finally:
        gc.enable()


def test_sendfile_begins_at_the_position(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"head:body")

    def handle(conn: Any) -> int:
        with path.open("rb") as file:
            file.read(5)
            sent: int = conn.sendfile(file)
            return sent

    client, result = run(handle)
    assert read_all(client) == b"body"
    assert outcome(result) == 4


@pytest.mark.parametrize(("offset", "count"), [(0, None), (5, None), (5, 7), (0, 3), (90, 20), (200, None)])
def test_sendfile(run: Run, tmp_path: Path, offset: int, count: int | None) -> None:
    text = bytes(range(100))
    path = tmp_path / "file"
    path.write_bytes(text)

    def handle(conn: Any) -> tuple[int, int]:
        with path.open("rb") as file:
            return conn.sendfile(file, offset, count), file.tell()

    client, result = run(handle)
    expected = text[offset:][:count]
    sent, position = outcome(result)
    assert sent == len(expected)
    if sent:
        assert position == offset + sent
    assert read_all(client) == expected


def test_sendfile_of_much(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20) * 8)

    def handle(conn: Any) -> int:
        with path.open("rb") as file:
            sent: int = conn.sendfile(file)
            return sent

    client, result = run(handle)
    assert read_all(client) == path.read_bytes()
    assert outcome(result) == 8 << 20


def test_sendfile_of_what_is_no_plain_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file.bz2"
    path.write_bytes(bz2.compress(b"unpacked"))

    def handle(conn: Any) -> int:
        with bz2.open(path, "rb") as file:
            return conn.sendfile(io.BytesIO(b"memory ")) + conn.sendfile(file)

    client, result = run(handle)
    assert read_all(client) == b"memory unpacked"
    assert outcome(result) == 15


def test_sendfile_refuses_text_and_nonsense(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")

    def handle(conn: Any) -> None:
        with path.open() as text, pytest.raises(ValueError):
            conn.sendfile(text)
        with path.open("rb") as file, pytest.raises(ValueError):
            conn.sendfile(file, 0, -1)
        conn.setblocking(False)
        with path.open("rb") as file, pytest.raises(ValueError):
            conn.sendfile(file)

    outcome(run(handle)[1])


# -- the server


def echo(conn: Any, address: Any) -> None:
    """gevent's examples/echoserver.py, as it is."""
    conn.sendall(b"Welcome to the echo server! Type quit to exit.\r\n")
    rfileobj = conn.makefile(mode="rb")
    while True:
        line = rfileobj.readline()
        if not line:
            break
        if line.strip().lower() == b"quit":
            break
        conn.sendall(line)
    rfileobj.close()


def talk(server: Any, words: int = 20) -> None:
    with socket.create_connection(server.address, PATIENCE) as client, client.makefile("rwb") as file:
        assert file.readline().startswith(b"Welcome")
        for number in range(words):
            file.write(b"line %d\n" % number)
            file.flush()
            assert file.readline() == b"line %d\n" % number
        file.write(b"quit\n")
        file.flush()
        assert file.read() == b""


SPAWNS: dict[str, Callable[[], Any]] = {
    "default": lambda: "default",
    "pool": lambda: gevent.pool.Pool(10),
    "int": lambda: 10,
    "raw": lambda: gevent.spawn_raw,
    "greenlet": lambda: gevent.spawn,
}


@pytest.mark.parametrize("name", SPAWNS)
def test_gevents_echo_server(name: str) -> None:
    with StreamServer(("127.0.0.1", 0), echo, spawn=SPAWNS[name]()) as server:
        server.start()
        gevent.joinall([gevent.spawn(talk, server) for _ in range(30)], raise_error=True)


def test_gevents_portforwarder() -> None:
    """gevent's examples/portforwarder.py, the part that forwards."""

    def forward(source: Any, dest: Any) -> None:
        try:
            while True:
                data = source.recv(1024)
                if not data:
                    break
                dest.sendall(data)
        finally:
            source.close()
            dest.close()

    def handle(source: Any, address: Any) -> None:
        dest = gevent.socket.create_connection(upstream.address)
        forwarders = (gevent.spawn(forward, source, dest), gevent.spawn(forward, dest, source))
        gevent.joinall(forwarders)

    with StreamServer(("127.0.0.1", 0), echo) as upstream, StreamServer(("127.0.0.1", 0), handle) as server:
        upstream.start()
        server.start()
        talk(server)


def test_a_pool_bounds_the_handlers(run: Run) -> None:
    at_once = most = 0

    def handle(conn: Any) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        conn.recv(1)
        at_once -= 1

    server = run.server(handle, spawn=2)
    clients = [run.client(server) for _ in range(5)]
    for number, client in enumerate(clients):
        wait_until(lambda number=number: len(run.conns) >= min(5, number + 2))
        client.sendall(b"x")
        assert client.recv(1) == b""
    assert (len(run.conns), most) == (5, 2)


def test_stop_kills_the_handlers_of_a_pool(run: Run) -> None:
    server = run.server(lambda conn: conn.recv(1), spawn=2)
    client = run.client(server)
    wait_until(lambda: run.conns)
    server.stop(0.01)
    assert client.recv(1) == b""
    error_of(run.outcome, gevent.GreenletExit)


def test_a_handler_killed_before_its_start_leaks_nothing(run: Run) -> None:
    class Killer(gevent.pool.Pool):
        def spawn(self, *args: Any, **kwargs: Any) -> Any:
            greenlet = super().spawn(*args, **kwargs)
            greenlet.kill(block=False)
            return greenlet

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.server(lambda conn: None, spawn=Killer(10))
        client = run.client()
        wait_until(lambda: [gc.collect()] and any("unclosed" in str(w.message) for w in caught))
    assert client.recv(1) == b""
    assert not run.conns


class TestInTheHub:
    """``spawn=None``: the handler runs in the hub, and may not block."""

    def test_what_does_not_block_works(self, run: Run) -> None:
        def handle(conn: Any) -> Any:
            conn.sendall(b"hello")
            conn.setblocking(False)
            with pytest.raises(BlockingIOError):
                conn.recv(1)
            return gevent.getcurrent() is gevent.get_hub()

        client, result = run(handle, spawn=None)
        assert read_all(client) == b"hello"
        assert outcome(result) is True

    @pytest.mark.parametrize("call", ["recv", "recv_peek", "recv_into"])
    def test_what_blocks_is_refused(self, run: Run, call: str) -> None:
        client, result = run(CALLS[call], spawn=None)
        error = error_of(result, BlockingSwitchOutError)
        assert isinstance(error, AssertionError)
        assert str(error) == "Impossible to call blocking function in the event loop callback"
        assert client.recv(1) == b""

    def test_a_deadline_that_nobody_waits_for(self, ours: Run) -> None:
        limit = 0.05

        def handle(conn: Any) -> Any:
            conn.settimeout(limit)
            with pytest.raises(BlockingSwitchOutError):
                conn.recv(1)
            due = conn._on_deadline(time.monotonic() + PATIENCE)
            if due != inf:  # then the hub would look at it for ever
                conn.close()
            return conn, due

        ours.kind = type("Keeps", (StreamServer,), {"do_close": lambda *args: None})
        client, result = ours(handle, spawn=None)
        conn, due = outcome(result)
        assert due == inf
        gevent.sleep(2 * limit)  # and it passes
        client.sendall(b"x")
        assert conn.recv(1) == b"x"
        conn.close()

    def test_a_send_that_blocks_is_refused(self, run: Run) -> None:
        def handle(conn: Any) -> None:
            while True:
                conn.sendall(bytes(1 << 20))

        client, result = run(handle, spawn=None)
        error_of(result, BlockingSwitchOutError)
        client.close()

    def test_what_is_there_can_be_read(self, run: Run) -> None:
        listener = gevent.socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"early")
            _ = run.server(lambda conn: [conn.recv(2), conn.recv(9)], listener=listener, spawn=None)
            assert outcome(run.outcome) == [b"ea", b"rly"]


def test_stop_accepting_and_start_again(run: Run) -> None:
    server = run.server(lambda conn: conn.sendall(b"x"))
    assert read_all(run.client()) == b"x"
    server.stop_accepting()
    waiting = run.client()
    waiting.settimeout(0.03)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    server.start_accepting()
    waiting.settimeout(PATIENCE)
    assert read_all(waiting) == b"x"


def test_a_listener_of_the_standard_library() -> None:
    """In a process without monkey-patching."""
    program = """
import socket, sys
from greensock import StreamServer, SocketConnection
import gevent
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(); listener.setblocking(False)
def handle(conn, address):
    assert type(conn) is SocketConnection
    with conn.makefile("rw") as file:
        file.write(file.readline().upper())
server = StreamServer(listener, handle)
server.start()
from gevent import socket as cooperative
client = cooperative.create_connection(listener.getsockname())
client.sendall(b"shout" + bytes([10]))
assert client.recv(100) == b"SHOUT" + bytes([10])
server.stop()
client.close()
gevent.wait(timeout=5)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_subclass_with_handle() -> None:
    class Greeter(StreamServer):
        def handle(self, conn: Any, address: Any) -> None:
            conn.sendall(b"hi")

    with Greeter(("127.0.0.1", 0)) as server:
        server.start()
        assert isinstance(server, gevent.server.StreamServer)
        assert server.server_host == "127.0.0.1"
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            assert read_all(client) == b"hi"


def test_many_come_and_go() -> None:
    with StreamServer(("127.0.0.1", 0), lambda conn, address: conn.sendall(conn.recv(64)), spawn=200) as server:
        server.start()

        def once(number: int) -> None:
            with socket.create_connection(server.address, PATIENCE) as client:
                client.sendall(b"%d" % number)
                if number % 7 == 0:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                elif number % 5:
                    assert read_all(client) == b"%d" % number

        pool = gevent.pool.Pool(50)
        for greenlet in [pool.spawn(once, number) for number in range(1000)]:
            greenlet.get()
        wait_until(lambda: not get_poller().endpoints())


# -- SSL


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated")  # gevent's, when it is given files
@pytest.mark.parametrize("style", ["context", "files"])
def test_ssl(run: Run, certificate: tuple[str, str], style: str) -> None:
    if style == "context":
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        options: dict[str, Any] = {"ssl_context": context}
    else:
        options = {"certfile": certificate[0], "keyfile": certificate[1]}

    def handle(conn: Any) -> type:
        with conn.makefile("rwb") as file:
            file.write(file.readline().upper())
        return type(conn)

    client, result = run(handle, **options)
    with trusting(certificate).wrap_socket(client, server_hostname="localhost") as secure:
        secure.sendall(b"secret\n")
        assert secure.recv(100) == b"SECRET\n"
    assert issubclass(outcome(result), gevent.ssl.SSLSocket)


def test_a_unix_socket_that_was_given_keeps_its_file(run, tmp_path):
    path = str(tmp_path / "server.sock")
    listener = gevent.socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = run.server(lambda conn: conn.recv(4), listener)
    run.client().sendall(b"ping")
    assert outcome(run.outcome) == b"ping"
    server.stop()
    assert os.path.exists(path)
