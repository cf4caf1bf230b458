"""Answers that are held for clients that do not keep up, so that their servers are free."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from gevent.event import Event
from pairs import drain, read_all_fast, reset
from proxy_peers import (  # noqa: F401  # fixtures
    KEEP,
    dial,
    health_of,
    proxied,
    record_of,
    server_of,
    wait_gone,
)
from scripts import OK, scripted
from served import once

from greensock.proxy import Buffering, ListenOptions, ProxyTimeouts, Route
from greensock.proxy import answer_buffer as module

#: More than all buffers of the kernel on the way to a client that reads nothing.
MUCH = 8_000_000
BODY = os.urandom(1 << 16) * (MUCH >> 16)
OKAY = b"HTTP/1.1 200 OK\r\n"
LONG = OKAY + b"Content-Length: %d\r\n" % len(BODY)
IN_CHUNKS = OKAY + b"Transfer-Encoding: chunked\r\n"
CHUNK = 60_000
GET = b"GET / HTTP/1.1\r\n" + KEEP
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def chunked(body, last=b"0\r\n\r\n"):
    pieces = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + last


#: Heads and bodies, and what else the connection does.
FRAMINGS = {
    "length, as it is spliced": (LONG + b"\r\n", BODY, "1.1"),
    "chunks": (IN_CHUNKS + b"\r\n", chunked(BODY), "1.1"),
    "chunks with trailers": (IN_CHUNKS + b"Trailer: X-T\r\n\r\n", chunked(BODY, b"0\r\nX-T: yes\r\n\r\n"), "1.1"),
    "until it closes": (OKAY + b"\r\n", BODY, "1.1"),
    "until it closes, for 1.0": (OKAY + b"\r\n", BODY, "1.0"),
    "length, for 1.0": (LONG + b"\r\n", BODY, "1.0"),
}


def slow(proxy, data, stack):
    """Return a client that has asked, and takes very little."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.settimeout(PATIENCE)
    sock.connect(proxy.address)
    sock.sendall(data)
    return sock


def body_of(answer):
    """Return head, body without its chunks, and trailers."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return head, rest, b""
    pieces = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return head, b"".join(pieces), rest.removesuffix(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]


def room_of(proxy):
    room = proxy.gateway.buffer_room
    return room.memory, room.disk, room.files


@pytest.fixture
def stack():
    with contextlib.ExitStack() as made:
        yield made


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_slow_reader_holds_no_server(proxied, stack, framing):
    """The server has said all, and answers another, while the client has read nothing; then it reads the same bytes."""
    head, body, version = FRAMINGS[framing]
    free = Event()

    def script(server, sock, number):
        while asked := server.head(sock):
            if b"/last" in asked:
                sock.sendall(OK)
                continue
            sock.sendall(head + body)
            free.set()
            if b"Length" not in head and b"chunked" not in head:
                return

    with scripted(script) as server:
        proxy = proxied(server.url)
        asks = b"GET / HTTP/%b\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n" % version.encode()
        sock = slow(proxy, asks, stack)
        assert free.wait(PATIENCE)
        wait_until(lambda: not server_of(proxy).used)
        assert room_of(proxy)[1] > 0, "it is in a file"
        if version == "1.1":
            sock.sendall(LAST)
        came = read_all_fast(sock)
        if version == "1.1":
            assert came.endswith(b"ok")
            came, _, _ = came.rpartition(b"HTTP/1.1 200 OK\r\n")
        _, data, trailers = body_of(came)
        assert data == BODY
        assert trailers == (b"X-T: yes\r\n" if "trailers" in framing else b"")
        wait_until(lambda: room_of(proxy) == (0, 0, 0))
        record = proxy.records[0]
        assert (record.reason, record.sent) == ("", len(came))
        assert record.upstream_time < record.duration
        assert health_of(proxy)[1] == 0


@pytest.mark.parametrize(
    ("buffer", "listen"),
    [
        (Buffering(65536, 0), ListenOptions()),
        (Buffering(0, 1_000_000), ListenOptions()),
        (Buffering(65536, 1_000_000), ListenOptions()),
        (Buffering(), ListenOptions(max_answer_memory=10_000, max_answer_files=1_000_000)),
        (Buffering(), ListenOptions(max_answer_memory=0, max_answer_files=0)),
    ],
)
def test_what_is_held_has_bounds(proxied, stack, buffer, listen):
    """Beyond them the server waits, as if nothing were held; nothing is lost and the order stays."""

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(IN_CHUNKS + b"\r\n" + chunked(BODY))
        wait_gone(sock)

    most_memory = min(buffer.memory, listen.max_answer_memory)
    most_disk = min(buffer.file, listen.max_answer_files)
    with scripted(script) as server:
        proxy = proxied(server.url, buffer=buffer, listen=listen)
        sock = slow(proxy, GET.replace(KEEP, b"Host: a\r\nConnection: close\r\n\r\n"), stack)
        (room, most) = proxy.gateway.buffer_room, most_memory + most_disk
        wait_until(lambda: room.memory + room.disk > most - 130_000 if most else proxy.connections)
        pieces, size, seen = [], 0, []
        while piece := sock.recv(1 << 18):
            pieces.append(piece)
            size += len(piece)
            seen.append(room_of(proxy))
        assert body_of(b"".join(pieces))[1] == BODY
        assert max(memory for memory, _, _ in seen) <= most_memory
        assert max(disk for _, disk, _ in seen) <= most_disk
        wait_until(lambda: room_of(proxy) == (0, 0, 0))


@pytest.mark.parametrize(
    ("field", "route", "length"),
    [
        (b"Content-Type: text/event-stream; charset=utf-8\r\n", {}, None),
        (b"X-Accel-Buffering: no\r\n", {}, None),
        (b"X-Accel-Buffering: no\r\n", {}, len(BODY)),
        (b"X-A: b\r\n", {"buffer": Buffering(0, 0)}, None),
        (b"X-A: b\r\n", {"buffer": Buffering(65536, 1_000_000)}, len(BODY)),
    ],
    ids=["events", "the server says no", "the server says no of a long one", "the route says no", "it is too long"],
)
def test_what_is_not_held(proxied, stack, field, route, length):
    def script(server, sock, number):
        server.head(sock)
        head = LONG if length else IN_CHUNKS
        sock.sendall(head + field + b"\r\n" + (BODY if length else chunked(BODY)))
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, routes=[Route("site", **route)])
        sock = slow(proxy, GET.replace(KEEP, b"Host: a\r\nConnection: close\r\n\r\n"), stack)
        wait_until(lambda: any(conn.held_up or conn.statistics().bytes_queued for conn in proxy.connections))
        assert room_of(proxy) == (0, 0, 0)
        assert server_of(proxy).used == 1, "it waits"
        head, body, _ = body_of(read_all_fast(sock))
        assert body == BODY
        assert b"X-Accel" not in head
        assert (b"text/event-stream" in head) is (b"event" in field)
        assert not any(conn.patience for conn in proxy.connections)


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_server_that_breaks_off(proxied, stack, how):
    """What came of the answer is delivered, and its cut is seen; the server is blamed, and free before."""
    cut = chunked(BODY, b"")[:-1000]

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(IN_CHUNKS + b"\r\n" + cut)
        wait_until(lambda: room_of(proxy)[1] > 0)
        if how == "resets":
            reset(sock)

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = slow(proxy, GET, stack)
        wait_until(lambda: health_of(proxy) == (0, 1))
        wait_until(lambda: not server_of(proxy).used)
        came = read_all_fast(sock)
        assert not came.endswith(b"0\r\n\r\n")
        if how == "closes":  # else what the kernel had is gone
            assert len(came) > len(BODY) - CHUNK - 2000
        assert record_of(proxy).reason == "body-incomplete"
        assert room_of(proxy) == (0, 0, 0)


@pytest.mark.parametrize("how", ["leaves", "resets", "takes nothing"])
def test_a_client_that_gives_up(proxied, stack, how):
    """The server is left, it is not blamed, and nothing is held any more."""
    gone = Event()

    def script(server, sock, number):
        server.head(sock)
        with contextlib.suppress(ConnectionError):
            sock.sendall(IN_CHUNKS + b"\r\n" + chunked(BODY, b""))
        wait_gone(sock)
        gone.set()

    timeouts = ProxyTimeouts(send=0.2 if how == "takes nothing" else 60.0)
    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=timeouts)
        sock = slow(proxy, GET, stack)
        wait_until(lambda: room_of(proxy)[1] > 0)
        if how == "leaves":
            sock.close()
        elif how == "resets":
            reset(sock)
        assert gone.wait(PATIENCE)
        record = record_of(proxy)
        assert record.reason == ("client-timeout" if how == "takes nothing" else "client-left")
        assert (health_of(proxy), room_of(proxy)) == ((0, 0), (0, 0, 0))


def test_the_total_time_ends_it(proxied, stack):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(LONG + b"\r\n" + BODY)
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url, timeouts=ProxyTimeouts(total=0.5))
        sock = slow(proxy, GET, stack)
        record = record_of(proxy)
        assert (record.reason, health_of(proxy)) == ("total-timeout", (1, 0))
        assert drain(sock) < len(BODY)
        assert room_of(proxy) == (0, 0, 0)


def test_a_worker_that_is_killed_leaves_nothing(proxied, stack):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(LONG + b"\r\n" + BODY)
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url)
        slow(proxy, GET, stack)
        wait_until(lambda: room_of(proxy)[1] > 0)
        proxy.stop(0)
        wait_until(lambda: room_of(proxy) == (0, 0, 0))


@pytest.mark.parametrize("fails", ["the file can't be made", "the disk is full at once", "the disk is full later"])
def test_a_disk_that_takes_nothing(proxied, stack, monkeypatch, caplog, fails):
    """Not a byte is lost: the server waits then, and one line says so."""
    write, written = os.pwrite, 0

    def pwrite(fd, data, offset):
        nonlocal written
        if fails == "the disk is full at once" or written > 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += len(data)
        return write(fd, data[:50_000], offset)

    def no_file(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    if fails == "the file can't be made":
        monkeypatch.setattr(module.tempfile, "TemporaryFile", no_file)
    else:
        monkeypatch.setattr(module.os, "pwrite", pwrite)

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(IN_CHUNKS + b"\r\n" + chunked(BODY))
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = slow(proxy, GET.replace(KEEP, b"Host: a\r\nConnection: close\r\n\r\n"), stack)
        wait_until(lambda: caplog.records)
        assert body_of(read_all_fast(sock))[1] == BODY
        assert len(caplog.records) == 1
        assert "servers wait for slow readers" in caplog.text
        wait_until(lambda: room_of(proxy) == (0, 0, 0))


def test_a_client_that_reads_again_is_sent_to_as_before(proxied, stack):
    """What was held is gone, and what comes then is not held."""
    go = Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(IN_CHUNKS + b"\r\n" + chunked(BODY, b""))
        assert go.wait(PATIENCE)
        sock.sendall(b"5\r\nhello\r\n0\r\n\r\n")
        wait_gone(sock)

    with scripted(script) as server:
        proxy = proxied(server.url)
        sock = slow(proxy, GET.replace(KEEP, b"Host: a\r\nConnection: close\r\n\r\n"), stack)
        wait_until(lambda: room_of(proxy)[1] > 3_000_000)
        reader = gevent.spawn(read_all_fast, sock)
        wait_until(lambda: room_of(proxy) == (0, 0, 0))
        wait_until(lambda: not any(conn.is_buffered for conn in proxy.connections))
        go.set()
        assert body_of(reader.get(timeout=PATIENCE))[1] == BODY + b"hello"


SITE = """
import sys, time
from wsgiref.simple_server import WSGIRequestHandler, make_server

held = []

def app(environ, start_response):
    body = repr(held).encode() if environ["PATH_INFO"] == "/held" else b"x" * 30_000_000
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

class Handler(WSGIRequestHandler):
    def handle(self):
        began = time.monotonic()
        super().handle()
        held.append(round(time.monotonic() - began, 3))

    def log_message(self, *arguments):
        pass

with make_server("127.0.0.1", 0, app, handler_class=Handler) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


@once
def test_a_site_of_one_process_is_free_while_its_readers_are_slow(proxied, stack, dial):
    """It serves one at a time: without the buffer the first slow reader would keep all others out."""
    site = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", SITE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    )
    stack.callback(site.kill)
    port = int(site.stdout.readline())
    proxy = proxied(f"http://127.0.0.1:{port}")
    readers = [slow(proxy, GET, stack) for _ in range(2)]
    asked = dial(proxy, b"GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    held = [float(each) for each in re.findall(rb"[0-9.]+", read_all(asked).partition(b"\r\n\r\n")[2])]
    assert len(held) == 2, "they came before, and hold it no more"
    for sock in readers:
        assert drain_exactly(sock) == 30_000_000
    site.kill()


def drain_exactly(sock):
    """Read an answer of a known length, and return how long its body is."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1000)
    head, _, rest = data.partition(b"\r\n\r\n")
    length, size = int(re.search(rb"(?i)content-length: (\d+)", head)[1]), len(rest)
    while size < length:
        piece = sock.recv(1 << 20)
        assert piece
        size += len(piece)
    return size
