"""Files and timeouts of the sockets that StreamServer's handlers get."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import Any

import gevent
import gevent.event
import gevent.pool
import gevent.server
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, PAUSE, read_all, read_exactly, wait_until
from streams import CALLS, Run, error_of, fill, ours, outcome, run  # noqa: F401  # fixtures

# -- files


def test_makefile_of_text(run: Run) -> None:
    def handle(conn: Any) -> list[str]:
        with conn.makefile("rw", encoding="utf-8", newline="\n") as file:
            lines = [file.readline(), *file]
            file.write("grüße\n")
        return lines

    client, result = run(handle)
    client.sendall("äöü\nzwei\r\ndrei".encode())
    client.shutdown(socket.SHUT_WR)
    assert outcome(result) == ["äöü\n", "zwei\r\n", "drei"]
    assert read_all(client) == "grüße\n".encode()


def test_makefile_binary(run: Run) -> None:
    def handle(conn: Any) -> Any:
        reader, writer = conn.makefile("rb"), conn.makefile("wb")
        data = reader.read(3), reader.readline(), reader.read1(10), reader.read()
        writer.write(b"answer")
        before = writer.tell if not writer.seekable() else None
        writer.close()
        reader.close()
        return data, before is not None

    client, result = run(handle)
    client.sendall(b"abcdef\nrest")
    client.shutdown(socket.SHUT_WR)
    assert outcome(result) == ((b"abc", b"def\n", b"rest", b""), True)
    assert read_all(client) == b"answer"


def test_makefile_both_ways(run: Run) -> None:
    def handle(conn: Any) -> bytes:
        with conn.makefile("rwb") as file:
            line: bytes = file.readline()
            file.write(line.upper())
            file.flush()
        return line

    client, result = run(handle)
    client.sendall(b"line\n")
    assert read_all(client) == b"LINE\n"
    assert outcome(result) == b"line\n"


def test_makefile_unbuffered(run: Run) -> None:
    def handle(conn: Any) -> Any:
        with pytest.raises(ValueError):
            conn.makefile("r", 0)
        with pytest.raises(ValueError):
            conn.makefile("a")
        with conn.makefile("rwb", 0) as raw:
            assert raw.fileno() == conn.fileno()
            return raw.read(2), raw.write(b"xy"), raw.readable(), raw.writable()

    client, result = run(handle)
    client.sendall(b"abc")
    assert outcome(result) == (b"ab", 2, True, True)
    assert client.recv(2) == b"xy"


def test_close_waits_for_the_files(run: Run) -> None:
    def handle(conn: Any) -> Any:
        first, second = conn.makefile("rb"), conn.makefile("wb")
        fd = conn.fileno()
        conn.close()
        assert conn.closed
        assert conn.fileno() == fd
        line = first.readline()
        first.close()
        assert conn.fileno() == fd
        second.write(line)
        second.close()
        return line, conn.fileno()

    client, result = run(handle)
    client.sendall(b"line\n")
    assert read_all(client) == b"line\n"
    assert outcome(result) == (b"line\n", -1)


def test_a_file_that_outlives_its_handler(run: Run) -> None:
    client, result = run(lambda conn: conn.makefile("rwb"))
    file = outcome(result)
    wait_until(lambda: run.conns[0].closed)
    file.write(b"still here")
    file.flush()
    assert client.recv(100) == b"still here"
    file.close()
    assert client.recv(100) == b""


def test_makefile_and_timeout(run: Run) -> None:
    def handle(conn: Any) -> None:
        conn.settimeout(0.01)
        with conn.makefile("rb") as file:
            with pytest.raises(TimeoutError):
                file.read(1)
            with pytest.raises(OSError, match="timed out object"):
                file.read(1)

    outcome(run(handle)[1])


def test_makefile_does_not_block(run: Run) -> None:
    def handle(conn: Any) -> Any:
        conn.setblocking(False)
        with conn.makefile("rb", 0) as file:
            return file.read(1)

    assert outcome(run(handle)[1]) is None


# -- timeouts


def test_timeout_is_settable(run: Run) -> None:
    def handle(conn: Any) -> list[Any]:
        seen = [conn.gettimeout(), conn.timeout, conn.getblocking()]
        for call, value in ((conn.settimeout, 2), (conn.setblocking, False), (conn.setblocking, True)):
            call(value)
            seen += [conn.gettimeout(), conn.timeout, conn.getblocking()]
        return seen

    expected = [None, None, True, 2.0, 2.0, True, 0.0, 0.0, False, None, None, True]
    assert outcome(run(handle)[1]) == expected


@pytest.mark.parametrize(("value", "kind"), [(-1, ValueError), ("1", TypeError), ([], TypeError)])
def test_a_wrong_timeout_is_refused(run: Run, value: Any, kind: type[Exception]) -> None:
    error_of(run(lambda conn: conn.settimeout(value))[1], kind)


def test_the_default_timeout_is_taken(run: Run) -> None:
    socket.setdefaulttimeout(3.5)
    try:
        _, result = run(lambda conn: conn.gettimeout())
        assert outcome(result) == 3.5
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("name", CALLS)
def test_timed_out(run: Run, name: str) -> None:
    def handle(conn: Any) -> float:
        if name.startswith("send"):
            fill(conn)
        conn.settimeout(0.02)
        started = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            CALLS[name](conn)
        assert caught.value.args == ("timed out",)
        assert caught.value.errno is None
        return time.monotonic() - started

    _, result = run(handle)
    assert 0.015 < outcome(result) < 5


@pytest.mark.parametrize("name", CALLS)
def test_would_block(run: Run, name: str) -> None:
    def handle(conn: Any) -> None:
        if name.startswith("send"):
            fill(conn)
        conn.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            CALLS[name](conn)
        assert caught.value.errno == errno.EAGAIN

    outcome(run(handle)[1])


def test_without_blocking_what_is_there_is_read(run: Run) -> None:
    """Even if the engine was not told of it yet."""
    client_sent = threading.Event()

    def handle(conn: Any) -> list[bytes]:
        conn.setblocking(False)
        while not client_sent.is_set():
            gevent.sleep(PAUSE)
        return [conn.recv(1), conn.recv(9)]

    client, result = run(handle)
    client.sendall(b"abc")
    client_sent.set()
    assert outcome(result) == [b"a", b"bc"]


def test_after_a_timeout_it_is_usable(run: Run) -> None:
    def handle(conn: Any) -> bytes:
        conn.settimeout(0.01)
        with pytest.raises(TimeoutError):
            conn.recv(1)
        conn.settimeout(PATIENCE)
        conn.sendall(b"go")
        data: bytes = conn.recv(10)
        return data

    client, result = run(handle)
    read_exactly(client, 2)
    client.sendall(b"now")
    assert outcome(result) == b"now"


def test_gevent_timeout_passes_through(run: Run) -> None:
    def handle(conn: Any) -> bytes:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            conn.recv(1)
        conn.sendall(b"go")
        data: bytes = conn.recv(10)
        return data

    client, result = run(handle)
    read_exactly(client, 2)
    client.sendall(b"now")
    assert outcome(result) == b"now"


def test_a_sendall_that_was_cut_short_is_finished_by_the_engine(ours: Run) -> None:
    data, cut_short = os.urandom(1 << 20) * 12, gevent.event.Event()

    def handle(conn: Any) -> None:
        mutable = bytearray(data)
        conn.settimeout(0.02)
        with pytest.raises(TimeoutError):
            conn.sendall(mutable)
        mutable[:] = bytes(len(mutable))  # the rest is a copy
        cut_short.set()
        conn.settimeout(None)
        conn.sendall(b"more")

    client, result = ours(handle)
    assert cut_short.wait(PATIENCE)
    assert read_all(client) == data + b"more"
    outcome(result)
