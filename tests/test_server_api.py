"""What a server is made of and told: functions, several listeners, other threads, fan-out, types, finite defaults."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import time

import gevent
import pytest
from conftest import read_all, read_exactly, wait_until
from gevent.monkey import get_original

from greensock import (
    DROP,
    HALF_OPEN,
    OK,
    DropReason,
    OperationTimeout,
    Server,
    ServerKeywords,
    StreamServer,
    WouldBlock,
)
from greensock.http import HTTPServer, Response, WSGIServer
from greensock.http.server.http_server import HTTPServerKeywords
from greensock.http.wsgi.wsgi_server import WSGIServerKeywords
from greensock.proxy.proxy_server import ReverseProxy, ReverseProxyKeywords

get_ident = get_original("_thread", "get_ident")  # the patched one tells greenlets apart


def echo(conn, data):
    conn.send(data)


def server_of(**options):
    server = Server(("127.0.0.1", 0), **{"stop_timeout": 0.2, **options})
    server.start()
    return server


@pytest.fixture
def dial():
    """Return what connects to an address; the sockets are closed at the end."""
    made = []

    def connect(address):
        sock = socket.create_connection(address, timeout=10)
        made.append(sock)
        return sock

    yield connect
    for sock in made:
        sock.close()


# -- the end of input


@pytest.mark.parametrize(
    ("verdict", "reason"), [(None, "PEER_CLOSED"), (OK, "PEER_CLOSED"), (DROP, "VERDICT"), (HALF_OPEN, None)]
)
def test_what_connection_eof_may_say(dial, verdict, reason):
    seen = []

    def at_eof(conn):
        seen.append(conn)
        return verdict

    with server_of(connection_eof=at_eof) as server:
        sock = dial(server.address)
        sock.shutdown(socket.SHUT_WR)
        if reason is not None:
            assert read_all(sock) == b""
            wait_until(lambda: server.statistics().dropped == {reason: 1})
            return
        wait_until(lambda: seen)
        seen[0].send(b"later")
        assert read_exactly(sock, 5) == b"later"
        assert server.statistics().dropped == {}


@pytest.mark.parametrize("upcall", ["connection_new", "connection_recv", "connection_recv_finish"])
def test_half_open_from_another_upcall_is_an_error(dial, upcall, caplog):
    with server_of(**{upcall: lambda *arguments: HALF_OPEN}) as server:
        sock = dial(server.address)
        sock.sendall(b"x")
        assert read_all(sock) == b""
        wait_until(lambda: server.statistics().dropped == {"ERROR": 1})
    assert f"{upcall} returned <Verdict.HALF_OPEN: 'half-open'>: OK, None" in caplog.text


def test_a_wrong_verdict_of_connection_eof_names_half_open(dial, caplog):
    with server_of(connection_eof=lambda conn: "half open") as server:
        dial(server.address).shutdown(socket.SHUT_WR)
        wait_until(lambda: server.statistics().errors == 1)
    assert "connection_eof returned 'half open': HALF_OPEN, OK, None, POSTPONE or DROP expected" in caplog.text


# -- functions


def test_handle_as_a_function(dial):
    def serve(conn):
        while data := conn.recv():
            conn.send(data.upper())

    with server_of(handle=serve) as server:
        sock = dial(server.address)
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"HELLO"


def test_a_line_is_enough(dial):
    """``send`` returns how many bytes it sent, which is no verdict."""
    with server_of(connection_recv=lambda conn, data: conn.send(data)) as server:
        sock = dial(server.address)
        for _ in range(3):
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
        assert server.statistics().errors == 0


def test_every_upcall_as_a_function(dial):
    calls = []

    def note(name, result=None):
        def upcall(conn, *more):
            calls.append((name, *more))
            return result

        return upcall

    def failing(conn, data):
        calls.append(("recv", data))
        raise ValueError("on purpose")

    names = ("new", "recv_finish", "eof", "drop")
    with server_of(**{f"connection_{name}": note(name) for name in names}) as server:
        sock = dial(server.address)
        sock.sendall(b"x")
        wait_until(lambda: ("recv_finish",) in calls)
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: ("drop",) in calls)
    assert calls == [("new",), ("recv_finish",), ("eof",), ("drop",)]
    calls.clear()
    with server_of(connection_recv=failing, connection_error=note("error")) as server:
        dial(server.address).sendall(b"x")
        wait_until(lambda: len(calls) == 2)
    assert calls[0] == ("recv", b"x")
    assert str(calls[1][1]) == "on purpose"


@pytest.mark.parametrize("wrong", [True, "x", 1.0])
def test_a_function_s_wrong_verdict_is_told(dial, caplog, wrong):
    with server_of(connection_recv=lambda conn, data: wrong) as server:
        dial(server.address).sendall(b"x")
        wait_until(lambda: server.statistics().errors == 1)
    assert f"connection_recv returned {wrong!r}" in caplog.text


def test_a_function_overrides_the_class(dial):
    class Loud(Server):
        def connection_recv(self, conn, data):
            conn.send(b"class")

    with Loud(("127.0.0.1", 0), connection_recv=lambda conn, data: conn.send(b"function")) as server:
        sock = dial(server.address)
        sock.sendall(b"x")
        assert read_exactly(sock, 8) == b"function"


@pytest.mark.parametrize("value", [None, 5, "connection_recv"])
@pytest.mark.parametrize("name", ["handle", "connection_recv"])
def test_what_is_no_function_is_refused(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: a function expected")):
        Server(0, **{name: value})


def test_both_styles_are_refused():
    class Upcalls(Server):
        def connection_recv(self, conn, data): ...

    class Blocking(Server):
        def handle(self, conn): ...

    words = "handle and connection_recv: one of both expected"
    for make in (
        lambda: Server(0, handle=print, connection_recv=print),
        lambda: Upcalls(0, handle=print),
        lambda: Blocking(0, connection_recv=print),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_an_http_server_of_one_function(dial):
    done = []
    server = HTTPServer(
        ("127.0.0.1", 0),
        handle_request=lambda request: Response("it is " + request.path),
        request_done=lambda request, response, sent: done.append(response.status),
    )
    with server:
        sock = dial(server.address)
        sock.sendall(b"GET /here HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read_all(sock).endswith(b"it is /here")
    assert done == [200]
    with pytest.raises(TypeError, match="unknown option 'connection_recv'"):
        HTTPServer(0, connection_recv=print)


# -- several listeners


def test_one_server_on_several_listeners(dial, tmp_path):
    given = socket.create_server(("127.0.0.1", 0))
    path = str(tmp_path / "socket")
    server = Server([("127.0.0.1", 0), path, given], connection_recv=echo)
    with server:
        assert server.addresses == [server.address, path, given.getsockname()]
        assert server.address[1] == server.server_port != 0
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
        socks = [dial(server.address), peer, dial(given.getsockname())]
        for sock in socks:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        assert {conn.local_address for conn in server.connections} == set(server.addresses)
        server.stop_accepting()
        late = [dial(address) for address in (server.addresses[0], server.addresses[2])]
        for sock in late:
            sock.sendall(b"x")
        socks[0].sendall(b"y")
        assert read_exactly(socks[0], 1) == b"y"
        assert server.statistics().accepted == 3
        server.start_accepting()
        assert [read_exactly(sock, 1) for sock in late] == [b"x", b"x"]
        peer.close()
    assert not os.path.exists(path)
    for address in (server.addresses[0], server.addresses[2]):
        with pytest.raises(ConnectionRefusedError):
            dial(address)


def test_all_or_none_bind(tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    path = str(tmp_path / "socket")
    server = Server([("127.0.0.1", 0), path, taken.getsockname()], connection_recv=echo)
    with pytest.raises(OSError, match="in use"):
        server.start()
    assert not server.started
    assert not os.path.exists(path)
    assert server.address == ("127.0.0.1", 0)
    taken.close()
    with server:  # it can be tried again
        assert server.addresses[0][1] != 0
        assert os.path.exists(path)


@pytest.mark.parametrize("listener", [[], [("127.0.0.1", 0), 1.5]])
def test_lists_that_are_refused(listener):
    with pytest.raises(ValueError, match="listener="):
        Server(listener)


def test_max_connections_is_for_all_listeners(dial, caplog):
    with Server([("127.0.0.1", 0), ("127.0.0.1", 0)], connection_recv=echo, max_connections=2) as server:
        socks = [dial(address) for address in server.addresses * 2]
        for sock in socks:
            sock.sendall(b"x")
        wait_until(lambda: server.statistics().accepted == 2)
        gevent.sleep(0)
        assert len(server.connections) == 2
        for _ in range(2):
            for sock in list(socks):
                sock.setblocking(False)
                try:
                    served = sock.recv(1) == b"x"
                except BlockingIOError:
                    served = False
                if served:
                    socks.remove(sock)
                    sock.close()
            wait_until(lambda: server.statistics().accepted == 4)
    warnings = [record for record in caplog.records if "max_connections=2" in record.message]
    assert len(warnings) == 1


def test_shortage_at_one_listener_lets_no_more_in_than_are_allowed(dial):
    """While one acceptor waited for descriptors another used up what had been free."""
    with Server([("127.0.0.1", 0), ("127.0.0.1", 0)], connection_recv=echo, max_connections=2) as server:
        first, _ = server._acceptors()
        socks = []

        def fill(error):
            socks.extend(dial(server.addresses[1]) for _ in range(2))
            wait_until(lambda: server.statistics().active == 2)

        first._take = ShortOnce(first._take)
        first._wait_for_descriptors = fill
        socks.append(dial(server.addresses[0]))
        wait_until(lambda: len(socks) == 3)
        socks[1].sendall(b"x")
        assert read_exactly(socks[1], 1) == b"x"
        assert server.statistics().active == 2


class ShortOnce:
    """In the place of accept(): finds no descriptor left, once."""

    def __init__(self, real):
        self._real = real
        self._is_short = True

    def __call__(self, listener, fd):
        if self._is_short:
            self._is_short = False
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._real(listener, fd)


def test_a_wsgi_server_on_several_listeners(dial):
    def application(environ, start_response):
        start_response("200 OK", [])
        return [b"fine"]

    server = WSGIServer([("127.0.0.1", 0), ("127.0.0.1", 0)], application, log=None)
    with server:
        for address in server.addresses:
            sock = dial(address)
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_all(sock).endswith(b"fine")


# -- other threads


def test_calls_from_another_thread_under_load(dial):
    seen, here, load = [], get_ident(), [True]

    def call(number):
        gevent.sleep(0)  # it may block
        seen.append((number, get_ident()))

    with server_of(connection_recv=echo) as server:

        def pound(sock):
            while load:
                sock.sendall(b"x")
                read_exactly(sock, 1)

        clients = [gevent.spawn(pound, dial(server.address)) for _ in range(4)]

        def from_outside():
            for number in range(1000):
                server.call_soon_threadsafe(call, number)

        outside = gevent.get_hub().threadpool.spawn(from_outside)
        wait_until(lambda: len(seen) == 1000)
        load.clear()
        gevent.joinall(clients, raise_error=True)
        outside.get()
    assert seen == [(number, here) for number in range(1000)]


def test_a_call_that_fails_is_counted_and_logged(caplog):
    with server_of() as server:
        server.call_soon_threadsafe(int, "x")
        wait_until(lambda: server.statistics().errors == 1)
    assert "invalid literal" in caplog.text


def test_no_calls_when_it_is_not_started():
    server = Server(("127.0.0.1", 0))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not started"):
            server.call_soon_threadsafe(print)
        server.start()
        server.stop()


# -- fan-out


def test_broadcast(dial):
    with server_of() as server, server_of() as other:
        socks = [dial(server.address) for _ in range(3)]
        apart = dial(other.address)
        wait_until(lambda: len(server.connections) == 3 and len(other.connections) == 1)
        assert server.broadcast(b"all ") == 3
        some = server.connections[:2]
        assert server.broadcast([b"so", b"me"], some) == 2
        some[0].close()
        assert server.broadcast(b"!", iter(some)) == 1
        assert other.broadcast(b"other") == 1
        assert read_exactly(apart, 5) == b"other"
        ports = {sock.getsockname()[1]: sock for sock in socks}
        assert read_exactly(ports[some[1].address[1]], 9) == b"all some!"


def test_broadcast_drops_a_slow_reader_and_waits_for_nobody(dial):
    dropped = []
    options = {"max_send_queue": 65536, "connection_drop": lambda conn: dropped.append(conn.drop_reason)}
    with server_of(**options) as server:
        quick, _ = dial(server.address), dial(server.address)
        reader = gevent.spawn(read_all, quick)
        wait_until(lambda: len(server.connections) == 2)
        rounds = 0
        while server.broadcast(bytes(65536)) == 2:
            rounds += 1
            gevent.sleep(0)
            wait_until(lambda: min(conn.statistics().bytes_queued for conn in server.connections) == 0)
        wait_until(lambda: dropped)
        assert dropped == [DropReason.SLOW_READER]
        (left,) = server.connections
        left.close()
        assert len(reader.get(timeout=10)) == 65536 * (rounds + 1)


def test_what_no_queue_could_hold_is_the_program_s_fault(dial):
    with server_of(max_send_queue=10) as server:
        dial(server.address)
        wait_until(lambda: server.connections)
        with pytest.raises(WouldBlock):
            server.broadcast(bytes(11))
        assert len(server.connections) == 1


def test_what_no_queue_could_hold_drops_no_reader(dial):
    with server_of(max_send_queue=65536) as server:
        dial(server.address)
        wait_until(lambda: server.connections)
        (conn,) = server.connections
        while not conn.statistics().bytes_queued:
            conn.send_nowait(bytes(65536))
        with pytest.raises(WouldBlock):
            server.broadcast(bytes(65537))
        assert server.connections == [conn]


def test_a_default_timeout_of_sockets_holds_up_nobody(dial):
    """It is the program's, for sockets that it makes: an engine's call never waits."""
    socket.setdefaulttimeout(5.0)
    try:
        began = time.monotonic()
        with server_of(connection_recv=lambda conn, data: conn.send(data)) as server:
            for _ in range(3):
                sock = dial(server.address)
                sock.sendall(b"x")
                assert read_exactly(sock, 1) == b"x"
            wait_until(lambda: len(server.connections) == 3)
            conn = server.connections[0]
            with pytest.raises(OperationTimeout):
                conn.recv(timeout=0)
            conn.fileno()
            with pytest.raises(OperationTimeout):
                conn.send(bytes(20_000_000), timeout=0.1)
            assert time.monotonic() - began < 4.0
    finally:
        socket.setdefaulttimeout(None)


# -- finite defaults


def test_the_defaults_are_finite():
    for kind in (Server, HTTPServer, WSGIServer, ReverseProxy):
        limits = kind.idle_timeout, kind.recv_timeout, kind.send_timeout, kind.max_connections
        assert None not in limits, kind
    assert (Server.idle_timeout, Server.recv_timeout, Server.send_timeout) == (300.0, 300.0, 60.0)
    assert Server.max_connections == 100_000


def test_stream_server_keeps_gevent_s():
    def handle(conn, address):
        seen.append((conn.recv_timeout, conn.send_timeout, conn.gettimeout()))

    seen = []
    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        with socket.create_connection(server.address):
            wait_until(lambda: seen)
    finally:
        server.stop()
    assert seen == [(None, None, None)]


# -- types


KEYWORDS = [
    (Server, ServerKeywords),
    (HTTPServer, HTTPServerKeywords),
    (WSGIServer, WSGIServerKeywords),
    (ReverseProxy, ReverseProxyKeywords),
]


@pytest.mark.parametrize(("kind", "keywords"), KEYWORDS, ids=lambda item: getattr(item, "__name__", ""))
def test_the_typed_keywords_are_those_that_are_taken(kind, keywords):
    assert keywords.__annotations__.keys() == kind.option_rules.keys()


@pytest.mark.parametrize(("kind", "keywords"), KEYWORDS, ids=lambda item: getattr(item, "__name__", ""))
def test_the_defaults_have_the_types_of_the_keywords(kind, keywords):
    hinted = {
        name: hint for base in reversed(kind.__mro__) for name, hint in vars(base).get("__annotations__", {}).items()
    }
    for name in keywords.__annotations__:
        if not callable(getattr(kind, name)):
            declared = keywords.__annotations__[name]
            assert getattr(declared, "__forward_arg__", declared) == hinted[name], name


PROGRAM = """
from greensock import Connection, Lines, Server, Verdict
from greensock.http import HTTPServer, Response

class Shout(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> Verdict | None:
        reveal_type(self.connections)
        return None

class Member(Connection):
    name: str = ""

class Chat(Server[Member]):
    connection_class = Member
    framer = Lines()

    def connection_recv(self, conn: Member, data: bytes) -> None:
        reveal_type(self.connections)
        self.broadcast(conn.name.encode(), self.connections)

with Chat(("127.0.0.1", 0), idle_timeout=None) as chat:
    reveal_type(chat)
Server([("127.0.0.1", 0), "unix:x.sock"], connection_recv=lambda conn, data: conn.send(data), backlog=5)
HTTPServer(0, handle_request=lambda request: Response(request.path), head_timeout=3.0)
Server(0, backlog="many")
Server(0, bcklog=5)
HTTPServer(0, connection_recv=print)
"""


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: What ``make test`` has looked at before is not looked at again.
SHARED = ("--config-file", f"{ROOT}/pyproject.toml", "--cache-dir", f"{ROOT}/.mypy_cache")


@pytest.mark.timeout(300)  # the first time it looks at the whole package
def test_what_a_type_checker_sees(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *SHARED, str(program)]
    env = {**os.environ, "MYPYPATH": ROOT}
    said = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300).stdout
    found = [line.partition(": ")[2] for line in said.splitlines()]
    notes = [line for line in found if line.startswith("note: Revealed")]
    errors = [line for line in found if line.startswith("error")]
    assert [re.sub(r"[a-z_]+\.(?=[A-Za-z])", "", note).partition(" type is ")[2] for note in notes] == [
        '"list[Connection]"',
        '"list[Member]"',
        '"Chat"',
    ]
    assert len(errors) == 3, said
    assert '"backlog"' in errors[0]
    assert '"bcklog"' in errors[1]
    assert '"connection_recv"' in errors[2]
