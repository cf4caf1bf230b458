"""How the sockets of StreamServer's handlers end: shutdown, reset, close, duplicates."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.pool
import gevent.server
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, PAUSE, blocked, read_all, read_exactly, wait_until
from pairs import Flood, let_engine_look, longest_between_ticks
from streams import CALLS, RESET, Run, certificate, error_of, fill, ours, outcome, run, trusting  # noqa: F401  # fixtures

from greensock.core import socket_connection
from greensock.stream_server import StreamServer

# -- the end


def test_half_close_by_the_peer(run: Run) -> None:
    def handle(conn: Any) -> None:
        data = b""
        while piece := conn.recv(3):
            data += piece
        conn.sendall(data[::-1])

    client, result = run(handle)
    client.sendall(b"backwards")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"sdrawkcab"
    outcome(result)


def test_half_close_by_us(run: Run) -> None:
    def handle(conn: Any) -> bytes:
        conn.sendall(b"bye")
        conn.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            conn.sendall(b"x")
        with pytest.raises(BrokenPipeError):
            conn.send(b"x")
        data: bytes = conn.recv(100)
        return data

    client, result = run(handle)
    assert read_all(client) == b"bye"
    client.sendall(b"answer")
    assert outcome(result) == b"answer"


def test_shutdown_of_reading_ends_the_input(run: Run) -> None:
    def handle(conn: Any) -> bytes:
        conn.shutdown(socket.SHUT_RD)
        conn.sendall(b"ok")
        data: bytes = conn.recv(10)
        return data

    client, result = run(handle)
    assert outcome(result) == b""
    assert read_all(client) == b"ok"


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_shutdown_wakes_a_reader(ours: Run, how: int) -> None:
    def handle(conn: Any) -> bytes:
        reader = blocked(gevent.spawn(conn.recv, 1))
        conn.shutdown(how)
        data: bytes = reader.get(timeout=PATIENCE)
        return data

    assert outcome(ours(handle)[1]) == b""


def test_shutdown_wakes_a_sender(ours: Run) -> None:
    def handle(conn: Any) -> None:
        fill(conn)
        conn.settimeout(None)
        sender = blocked(gevent.spawn(conn.sendall, bytes(1 << 20)))
        conn.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            sender.get(timeout=PATIENCE)

    client, result = ours(handle)
    outcome(result)
    client.close()


def test_a_wrong_shutdown_is_refused(run: Run) -> None:
    assert error_of(run(lambda conn: conn.shutdown(9))[1], OSError).errno == errno.EINVAL


def test_reset_while_it_receives(run: Run) -> None:
    def handle(conn: Any) -> tuple[Any, ...]:
        with pytest.raises(ConnectionResetError) as caught:
            conn.recv(1)
        fd = conn.fileno()
        with pytest.raises(BrokenPipeError):
            conn.sendall(b"x")
        with pytest.raises(OSError) as unnamed:
            conn.getpeername()
        error = caught.value
        return error.errno, error.strerror, error.__cause__, fd > 2, conn.recv(1), unnamed.value.errno

    client, result = run(handle)
    run.wait_begun()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    assert outcome(result) == (errno.ECONNRESET, os.strerror(errno.ECONNRESET), None, True, b"", errno.ENOTCONN)


def test_reset_while_it_reads_a_line(ours: Run) -> None:
    def handle(conn: Any) -> bool:
        with pytest.raises(ConnectionResetError):
            conn.read_line()
        return bool(conn.fileno() > 2)

    client, result = ours(handle)
    ours.wait_begun()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    assert outcome(result) is True


def test_a_peer_that_leaves_is_noticed_without_reading(ours: Run) -> None:
    client, result = ours(lambda conn: conn.wait_disconnect(PATIENCE))
    ours.wait_begun()
    assert not result.ready()
    client.close()
    assert outcome(result) is None


@pytest.mark.parametrize("name", ["send", "sendall", "sendmsg"])
def test_reset_while_it_sends(run: Run, name: str) -> None:
    full = gevent.event.Event()

    def handle(conn: Any) -> int:
        fill(conn)
        conn.settimeout(PATIENCE)
        data = bytes(1 << 20)
        full.set()
        with pytest.raises(ConnectionResetError):
            getattr(conn, name)([data] if name == "sendmsg" else data)
        with pytest.raises(BrokenPipeError):
            conn.send(b"x")
        return int(conn.fileno())

    client, result = run(handle)
    assert full.wait(PATIENCE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    assert outcome(result) > 2


def test_what_came_before_the_broken_pipe_can_be_read(run: Run) -> None:
    """A peer that says why it leaves, and leaves, while we send."""
    gone = gevent.event.Event()

    def send_on(conn: Any) -> None:
        while True:
            conn.sendall(b"x" * 1000)
            gevent.sleep(PAUSE)

    def handle(conn: Any) -> bytes:
        gone.wait()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_on(conn)
        data: bytes = conn.recv(100)
        return data

    client, result = run(handle)
    client.sendall(b"too large, go away")
    client.close()
    gone.set()
    assert outcome(result) == b"too large, go away"


AFTER: dict[str, Callable[[Any], Any]] = {
    **CALLS,
    "sendto": lambda conn: conn.sendto(b"x", ("127.0.0.1", 1)),
    "shutdown": lambda conn: conn.shutdown(socket.SHUT_WR),
    "getpeername": lambda conn: conn.getpeername(),
    "getsockname": lambda conn: conn.getsockname(),
    "getsockopt": lambda conn: conn.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "setsockopt": lambda conn: conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "dup": lambda conn: conn.dup(),
}


@pytest.mark.parametrize("ending", ["close", "detach"])
@pytest.mark.parametrize("waited", [False, True])
def test_after_close_it_is_a_bad_descriptor(run: Run, ending: str, waited: bool) -> None:
    def handle(conn: Any) -> Any:
        if waited:
            conn.recv(1)
        fd = getattr(conn, ending)()
        for name, call in AFTER.items():
            with pytest.raises(OSError) as caught:
                call(conn)
            assert caught.value.errno == errno.EBADF, name
        conn.close()
        with conn:
            pass
        return fd, conn.fileno(), conn.closed, conn.family, conn.type, conn.detach()

    client, result = run(handle)
    if waited:
        client.sendall(b"x")
    fd, *others = outcome(result)
    assert others == [-1, True, socket.AF_INET, socket.SOCK_STREAM, -1]
    if ending == "close":
        assert client.recv(1) == b""
    else:
        with socket.socket(fileno=fd) as sock:
            sock.sendall(b"still open")
        assert client.recv(100) == b"still open"


@pytest.mark.parametrize("name", ["recv", "recv_peek", "sendall"])
def test_close_wakes_who_is_blocked(run: Run, name: str) -> None:
    def handle(conn: Any) -> None:
        if name == "sendall":
            fill(conn)
            conn.settimeout(None)
        waiting = blocked(gevent.spawn(AFTER[name], conn))
        assert not waiting.ready()
        conn.close()
        with pytest.raises(OSError) as caught:
            waiting.get(timeout=PATIENCE)
        assert caught.value.errno == errno.EBADF

    client, result = run(handle)
    outcome(result)
    client.close()


def test_it_is_a_context_manager(run: Run) -> None:
    def handle(conn: Any) -> int:
        with conn as same:
            assert same is conn
            conn.sendall(b"inside")
        return int(conn.fileno())

    client, result = run(handle)
    assert read_all(client) == b"inside"
    assert outcome(result) == -1


def test_close_with_unread_input_does_not_destroy_the_answer(ours: Run) -> None:
    def handle(conn: Any) -> None:
        conn.recv(1)
        conn.sendall(b"answer")

    client, result = ours(handle)
    client.sendall(bytes(500_000))
    outcome(result)
    wait_until(lambda: ours.conns[0].closed)
    let_engine_look()
    assert read_all(client) == b"answer"  # gevent's socket resets here


def test_close_lingers_no_longer_than_it_is_told(ours: Run) -> None:
    class Short(StreamServer):
        linger_timeout = 0.05

    ours.kind = Short
    client, result = ours(lambda conn: conn.recv(1))
    client.sendall(b"x")
    outcome(result)
    conn = ours.conns[0]
    conn.wait_closed(PATIENCE)
    assert client.recv(1) == b""


def test_an_asked_for_reset_is_sent(run: Run) -> None:
    def handle(conn: Any) -> None:
        conn.recv(1)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    client, result = run(handle)
    client.sendall(b"x")
    outcome(result)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_dup(run: Run) -> None:
    def handle(conn: Any) -> None:
        conn.settimeout(3)
        other = conn.dup()
        conn.close()
        assert other.gettimeout() == 3
        other.sendall(other.recv(10))
        other.close()

    if run.kind is StreamServer:
        run.kind = type("Short", (StreamServer,), {"linger_timeout": 0})
    client, result = run(handle)
    client.sendall(b"twice")
    outcome(result)


FLOODED = {
    "recv": lambda conn: conn.recv(1000),
    "recv_into": lambda conn: conn.recv_into(bytearray(1000)),
    "makefile": lambda conn: conn.makefile("rb").read(10_000),
}


@pytest.mark.parametrize("name", FLOODED)
def test_a_peer_that_floods_does_not_hold_up_timers(ours: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def handle(conn: Any) -> None:
        while FLOODED[name](conn):
            pass

    flood = Flood()
    monkeypatch.setattr(socket_connection, "read", flood)
    monkeypatch.setattr(socket_connection, "readv", lambda fd, views: len(flood(fd, len(views[0]))))
    client, result = ours(handle)
    client.sendall(b"x")
    assert longest_between_ticks(result.ready) < 0.1
    outcome(result)


@pytest.mark.parametrize("unread", [False, True])
def test_a_duplicate_outlives_its_connection(run: Run, unread: bool) -> None:
    def handle(conn: Any) -> Any:
        other = conn.dup()
        if not unread:
            assert conn.recv(10) == b"hello"
        gevent.spawn(late, other)
        return None

    def late(other: Any) -> None:
        go.wait()
        with other:
            if unread:
                assert other.recv(10) == b"hello"
            other.sendall(b"from the duplicate")

    go = gevent.event.Event()
    client, result = run(handle)
    client.sendall(b"hello")
    outcome(result)
    wait_until(lambda: run.conns[0].fileno() == -1)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.settimeout(PATIENCE)
    go.set()
    assert read_all(client) == b"from the duplicate"


def test_it_can_be_upgraded_to_tls(run: Run, certificate: tuple[str, str]) -> None:
    def handle(conn: Any) -> Any:
        assert conn.recv(100) == b"STARTTLS\n"
        conn.settimeout(PATIENCE)
        conn.sendall(b"go\n")
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        with context.wrap_socket(conn, server_side=True) as secure:
            assert conn.fileno() == -1
            secure.sendall(secure.recv(100).upper())
        return conn.closed

    client, result = run(handle)
    client.sendall(b"STARTTLS\n")
    assert read_exactly(client, 3) == b"go\n"
    with trusting(certificate).wrap_socket(client, server_hostname="localhost") as secure:
        secure.sendall(b"secret")
        assert secure.recv(100) == b"SECRET"
    assert outcome(result) is True


def test_the_methods_of_a_connection_are_there_too(ours: Run) -> None:
    def handle(conn: Any) -> Any:
        lines = [conn.read_line(), conn.recv(1, socket.MSG_PEEK), conn.recv(3), conn.recvfrom(1)[0]]
        buffer = bytearray(2)
        lines += [conn.recv_into(buffer), bytes(buffer), conn.read_exactly(4)]
        conn.unread(b"back")
        lines += [conn.recv(100), conn.wait_disconnect(PATIENCE)]
        conn.send_nowait(b"answer")
        conn.shutdown_write()
        return lines

    client, result = ours(handle)
    client.sendall(b"line\nrest12last")
    client.shutdown(socket.SHUT_WR)
    assert outcome(result) == [b"line", b"r", b"res", b"t", 2, b"12", b"last", b"back", None]
    assert read_all(client) == b"answer"
