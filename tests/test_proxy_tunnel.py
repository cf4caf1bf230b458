"""A tunnel between two connections, without a proxy around it."""

from __future__ import annotations

import contextlib
import socket
import time

import gevent
import pytest
from conftest import PATIENCE, PAUSE, read_all, read_exactly, wait_until
from gevent.event import Event
from pairs import connected, drain, read_all_fast, reset
from proxies import Recorded, gateway_to
from scripts import scripted

from greensock import Connection, State
from greensock.proxy import ProxyTimeouts
from greensock.proxy.proxy_connection import ProxyConnection
from greensock.proxy.tunnel import run_tunnel

#: Both ways of a tunnel: who speaks, who listens.
WAYS = pytest.mark.parametrize("way", ["there", "back"])


class Mine(Connection):
    """In whose place tests can put things: a compiled class takes none."""


class Tunnel:
    """A tunnel, and the sockets of both peers: ``here`` is the one that the test's way begins at."""

    def __init__(self, client, upstream, way):
        self.conns = client[0], upstream[0]
        self.here, self.there = (client[1], upstream[1]) if way == "there" else (upstream[1], client[1])
        self.first, self.second = self.conns if way == "there" else self.conns[::-1]
        self.task = None

    def start(self, timeout=PATIENCE):
        self.task = gevent.spawn(run_tunnel, *self.conns, timeout)

    def is_over(self):
        return self.task.ready()


@pytest.fixture(params=["tcp", "unix"])
def tunnel(request, way):
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(contextlib.contextmanager(connected)(request.param, Mine)) for _ in range(2)]
        made = Tunnel(*ends, way)
        yield made
        if made.task is not None:
            made.task.kill()


def is_reset(sock):
    """Whether the next that comes is a reset, or what a Unix socket has in its place: the end."""
    try:
        return sock.recv(1) == b"" and sock.family == socket.AF_UNIX
    except ConnectionResetError:
        return True


@WAYS
def test_half_close(tunnel):
    tunnel.start()
    tunnel.here.sendall(b"a question")
    tunnel.here.shutdown(socket.SHUT_WR)
    assert read_all(tunnel.there) == b"a question"
    gevent.sleep(0)
    assert not tunnel.is_over()
    tunnel.there.sendall(b"an answer")
    assert read_exactly(tunnel.here, 9) == b"an answer"
    tunnel.there.sendall(b", and more")
    tunnel.there.close()
    assert read_all(tunnel.here) == b", and more"
    tunnel.task.get(timeout=PATIENCE)
    assert [conn.state for conn in tunnel.conns] == [State.OPEN] * 2, "they are the caller's to close"


@WAYS
def test_both_ways_at_once_and_more_than_fits(tunnel):
    tunnel.start()
    data = bytes(range(256)) * 8192
    senders = [gevent.spawn(sock.sendall, data) for sock in (tunnel.here, tunnel.there)]
    readers = [gevent.spawn(read_all_fast, sock) for sock in (tunnel.here, tunnel.there)]
    gevent.joinall(senders, timeout=PATIENCE, raise_error=True)
    for sock in (tunnel.here, tunnel.there):
        sock.shutdown(socket.SHUT_WR)
    assert [reader.get(timeout=PATIENCE) == data for reader in readers] == [True, True]
    tunnel.task.get(timeout=PATIENCE)


@WAYS
def test_what_was_read_before_goes_first(tunnel):
    tunnel.first.unread(b"early, ")
    tunnel.here.sendall(b"late")
    tunnel.here.shutdown(socket.SHUT_WR)
    tunnel.start()
    assert read_all(tunnel.there) == b"early, late"


@WAYS
def test_what_was_read_before_goes_without_anything_behind_it(tunnel):
    tunnel.first.unread(b"early")
    tunnel.second.unread(b"too")
    tunnel.start()
    assert read_exactly(tunnel.there, 5) == b"early"
    assert read_exactly(tunnel.here, 3) == b"too"


@WAYS
def test_silence(tunnel):
    began = time.monotonic()
    tunnel.start(0.1)
    wait_until(tunnel.is_over)
    assert time.monotonic() - began >= 0.1
    assert is_reset(tunnel.here)
    assert is_reset(tunnel.there)
    assert tunnel.task.successful()


@WAYS
def test_bytes_one_way_keep_it_open(tunnel):
    timeout = 0.2
    tunnel.start(timeout)
    began = last = time.monotonic()
    while time.monotonic() - began < 3 * timeout:
        with contextlib.suppress(ConnectionError):
            tunnel.here.sendall(b"x")
            if tunnel.there.recv(1) == b"x":
                last = time.monotonic()
        if tunnel.is_over():
            break
        gevent.sleep(timeout / 20)
    assert not tunnel.is_over() or time.monotonic() - last > timeout, "unless this machine stood still"
    wait_until(tunnel.is_over)
    assert is_reset(tunnel.there)


@WAYS
def test_silence_behind_a_half_close(tunnel):
    tunnel.start(0.1)
    tunnel.here.shutdown(socket.SHUT_WR)
    assert tunnel.there.recv(1) == b""
    wait_until(tunnel.is_over)
    assert is_reset(tunnel.here)


@WAYS
def test_who_takes_nothing_is_not_kept_for_what_it_says(tunnel):
    tunnel.start(0.2)
    talking = gevent.spawn(_talk, tunnel.there)
    listening = gevent.spawn(drain, tunnel.here)
    flooding = gevent.spawn(_flood, tunnel.here)
    wait_until(tunnel.is_over)
    gevent.joinall([talking, listening, flooding], timeout=PATIENCE, raise_error=True)


def _talk(sock):
    """Say something all the time, and hear nothing."""
    with contextlib.suppress(ConnectionError):
        while True:
            sock.sendall(b"x")
            gevent.sleep(PAUSE)


def _flood(sock):
    with contextlib.suppress(ConnectionError):
        while True:
            sock.sendall(bytes(65536))


@WAYS
def test_no_timeout(tunnel):
    tunnel.start(None)
    tunnel.here.sendall(b"x")
    assert read_exactly(tunnel.there, 1) == b"x"
    tunnel.here.close()
    tunnel.there.close()
    tunnel.task.get(timeout=PATIENCE)


@WAYS
def test_a_break_is_passed_on(tunnel):
    tunnel.start()
    tunnel.here.sendall(b"abc")
    assert read_exactly(tunnel.there, 3) == b"abc"
    if tunnel.here.family == socket.AF_UNIX:
        tunnel.first.abort()  # as there is no RST
    else:
        reset(tunnel.here)
    assert is_reset(tunnel.there)
    tunnel.task.get(timeout=PATIENCE)


@WAYS
def test_a_break_while_the_other_side_takes_nothing(tunnel):
    tunnel.start()
    flooding = gevent.spawn(_flood, tunnel.here)
    wait_until(lambda: tunnel.second.statistics().bytes_queued)
    tunnel.there.close()  # with much unread
    wait_until(tunnel.is_over)
    flooding.get(timeout=PATIENCE)
    assert tunnel.task.successful()


@WAYS
def test_the_end_of_both_sides_at_once(tunnel):
    for sock in (tunnel.here, tunnel.there):
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
    tunnel.start()
    assert [read_all(sock) for sock in (tunnel.here, tunnel.there)] == [b"bye"] * 2
    tunnel.task.get(timeout=PATIENCE)


@WAYS
def test_a_side_that_is_gone_before(tunnel):
    tunnel.first.abort()
    tunnel.start()
    tunnel.task.get(timeout=PATIENCE)
    assert is_reset(tunnel.there)


@WAYS
def test_killed(tunnel):
    tunnel.start()
    tunnel.here.sendall(b"x")
    assert read_exactly(tunnel.there, 1) == b"x"
    tunnel.task.kill()
    assert [conn.state for conn in tunnel.conns] == [State.OPEN] * 2
    tunnel.here.sendall(b"y")
    assert tunnel.first.recv(timeout=PATIENCE) == b"y", "nobody else reads it"


@WAYS
def test_a_break_when_one_way_has_ended(tunnel):
    tunnel.start()
    tunnel.there.shutdown(socket.SHUT_WR)
    assert tunnel.here.recv(1) == b""
    reset(tunnel.there)
    flooding = gevent.spawn(_flood, tunnel.here)
    wait_until(tunnel.is_over)
    assert [conn.state for conn in tunnel.conns] == [State.CLOSED] * 2, "nobody is there to read it"
    flooding.get(timeout=PATIENCE)


@WAYS
def test_silence_is_noticed_a_quarter_late_at_most(tunnel):
    """Whichever way the last bytes went, and if it is half closed, too."""
    tunnel.start(1.0)
    for here, there in ((tunnel.here, tunnel.there), (tunnel.there, tunnel.here)):
        here.sendall(b"x")
        assert there.recv(1) == b"x"
    began = time.monotonic()
    wait_until(tunnel.is_over)
    assert 1.0 <= time.monotonic() - began < 1.75, "a quarter, and what a busy machine adds"
    assert tunnel.task.get() == "tunnel-timeout"


@WAYS
def test_whatever_is_raised_ends_both_sides_at_once(tunnel, monkeypatch):
    """A mistake of ours, say: it is told once, by whoever waits for the tunnel, and nobody is left waiting."""
    splice = Connection.splice

    def mistaken(conn, *arguments, **options):
        if conn is tunnel.first:
            raise TypeError("a mistake")
        return splice(conn, *arguments, **options)

    monkeypatch.setattr(type(tunnel.first), "splice", mistaken)
    tunnel.start(None)
    with pytest.raises(TypeError, match="a mistake"):
        tunnel.task.get(timeout=PATIENCE)
    assert is_reset(tunnel.here)
    assert is_reset(tunnel.there)


@WAYS
def test_fin_and_then_a_reset(tunnel):
    """A server's way to end a WebSocket at once. (A slot of ClientConnection hid the method that looks for this.)"""
    tunnel.start()
    tunnel.here.shutdown(socket.SHUT_WR)
    assert tunnel.there.recv(1) == b""
    if tunnel.here.family == socket.AF_UNIX:
        tunnel.here.close()
        tunnel.there.close()
    else:
        reset(tunnel.here)
    wait_until(tunnel.is_over)
    assert tunnel.task.successful()


ENDINGS = {
    "the client is done": "",
    "the client resets": "client-left",
    "the server resets": "server-left",
    "the server is done, then resets": "server-left",
    "silence": "tunnel-timeout",
    "the proxy stops": "stopped",
    "a mistake": "internal-error",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_log_says_why_it_ended(serve, monkeypatch, caplog, ending):
    """Through the proxy, where connections are of the classes that they are there."""
    servers, heard = [], Event()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        servers.append(sock)
        while data := sock.recv(65536):
            sock.sendall(data)
            if data == b"half":
                sock.shutdown(socket.SHUT_WR)
            if data in (b"half", b"reset"):
                assert heard.wait(PATIENCE)
                reset(sock)
                return

    with scripted(script) as server:
        gateway = gateway_to(
            server.url, timeouts=ProxyTimeouts(tunnel=0.2 if ending == "silence" else 60, keep_alive=0.1)
        )
        proxy = serve(Recorded, gateway=gateway)
        if ending == "a mistake":
            monkeypatch.setattr(ProxyConnection, "splice", lambda *arguments, **options: 1 / 0)
        with socket.create_connection(proxy.address) as sock:
            sock.settimeout(PATIENCE)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            match ending:
                case "the client is done":
                    sock.shutdown(socket.SHUT_WR)
                case "the client resets":
                    reset(sock)
                case "the server resets":
                    sock.sendall(b"reset")
                    assert read_exactly(sock, 5) == b"reset"
                    heard.set()
                case "the server is done, then resets":
                    sock.sendall(b"half")
                    assert read_all(sock) == b"half"
                    heard.set()
                case "the proxy stops":
                    proxy.stop(0.05)
            record = wait_until(lambda: proxy.records)[0]
            assert (record.status, record.reason) == (101, ENDINGS[ending])
            if ending != "the client resets":
                with contextlib.suppress(ConnectionResetError):
                    drain(sock)
        wait_until(lambda: not proxy.statistics().active)
        failures = [entry for entry in caplog.records if entry.exc_info]
        assert len(failures) == (1 if ending == "a mistake" else 0)
        gateway.upstreams["site"].close()
