"""``Server.connect``: connections that a server makes, served by its own upcalls."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from functools import partial

import gevent
import pytest
import trustme
from conftest import PATIENCE, PAUSE, wait_until
from test_client import full_backlog, open_descriptors, several

from greensock import (
    ConnectFailed,
    ConnectionClosed,
    DropReason,
    LimitExceeded,
    Lines,
    OperationTimeout,
    Server,
    State,
    connect,
)
from greensock.core import connector
from greensock.core.poller import get_poller


class Noting(Server):
    """Notes what it is told, by the ``name`` of its connections."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.told = []

    def note(self, conn, *what):
        self.told.append((getattr(conn, "name", "client"), *what))

    def connection_new(self, conn):
        self.note(conn, "new")
        if hasattr(conn, "name"):
            conn.send(b"ping")

    def connection_recv(self, conn, data):
        self.note(conn, bytes(data))
        if not hasattr(conn, "name"):
            conn.send(data.upper())

    def connection_error(self, conn, exc):
        self.note(conn, "error", type(exc).__name__)

    def connection_drop(self, conn):
        self.note(conn, "drop", conn.drop_reason.name)

    def of(self, name):
        return [what[0] if len(what) == 1 else what for whose, *what in self.told if whose == name]


AUTHORITY = trustme.CA()


def server_tls(*names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


def client_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


@pytest.fixture
def noting(serve):
    return serve(Noting)


def dial(server, address, name="dialled", **options):
    conn = server.connect(address, **options)
    conn.name = name
    return conn


@pytest.mark.parametrize("kind", ["tcp", "path", "abstract", "name", "tls", "framed"])
def test_upcalls_serve_what_the_server_has_connected_to(serve, tmp_path, kind):
    options = {"tls": server_tls("localhost")} if kind == "tls" else {}
    listener = {"path": str(tmp_path / "socket"), "abstract": f"unix:\0greensock-dial-{os.getpid()}"}
    other = serve(Noting, listener.get(kind, ("127.0.0.1", 0)), **options)
    server = serve(Noting, **({"framer": Lines()} if kind == "framed" else {}))
    address = listener.get(kind, other.address)
    if kind in ("name", "tls"):
        address = ("localhost", other.server_port)
    conn = dial(server, address, timeout=PATIENCE, tls=client_tls() if kind == "tls" else None)
    assert (conn.state, server.connections_alive) == (State.OPENING, 1)
    assert repr(conn).startswith("<Connection fd=-1")
    with pytest.raises(ConnectionClosed, match="does not stand yet"):
        conn.send(b"x")
    with pytest.raises(ConnectionClosed, match="does not stand yet"):
        conn.local_address  # noqa: B018
    conn.wait_open(PATIENCE)
    assert conn.state is State.OPEN
    assert conn.server is server
    assert (conn.tls is not None) == (kind == "tls")
    if kind in ("tcp", "name"):
        assert conn.address[:2] == other.address[:2]
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    if kind == "framed":
        wait_until(lambda: b"ping" in other.of("client"))
        conn.send(b"\n")
    answer = b"PING"
    wait_until(lambda: answer in server.of("dialled"))
    statistics = server.statistics()
    assert (statistics.accepted, statistics.connected, statistics.active) == (0, 1, 1)
    conn.close()
    wait_until(lambda: server.connections_alive == 0)
    assert server.of("dialled") == ["new", answer, ["drop", "CLOSED"]]
    assert server.statistics().bytes_received == len(answer) + (kind == "framed")
    wait_until(lambda: other.connections_alive == 0)


def test_what_cannot_be_connected_to_is_told_by_two_upcalls(serve, noting, tmp_path, monkeypatch):
    several(monkeypatch, ("127.0.0.1", 1), ("::1", 1))
    plain = serve(Noting)
    sealed = serve(Noting, tls=server_tls("localhost"))
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        silent = listener.getsockname()
        before = open_descriptors()
        cases = {
            "refused": ("ConnectFailed", "CONNECT_FAILED", dial(noting, "127.0.0.1:1", "refused")),
            "name": ("ConnectFailed", "CONNECT_FAILED", dial(noting, "some.invalid:1", "name")),
            "path": ("ConnectFailed", "CONNECT_FAILED", dial(noting, tmp_path / "none", "path")),
            "silent": ("OperationTimeout", "CONNECT_FAILED", dial(noting, silent, "silent", timeout=PAUSE)),
            "not tls": ("HandshakeFailed", "HANDSHAKE", dial(noting, plain.address, "not tls", tls=True)),
            "tls": ("CertificateRefused", "HANDSHAKE", dial(noting, sealed.address, "tls", tls=client_tls())),
        }
        plain.connection_recv = lambda conn, data: conn.send(b"what?\n", close=True)
        wait_until(lambda: noting.connections_alive == 0)
        for name, (error, reason, conn) in cases.items():
            assert noting.of(name) == [["error", error], ["drop", reason]], name
            assert conn.state is State.CLOSED
            for _ in range(2):
                with pytest.raises((ConnectFailed, OperationTimeout)) as caught:
                    conn.wait_open()
                assert type(caught.value).__name__ == error
            with pytest.raises(ConnectionClosed):
                conn.send(b"x")
            conn.close()
        assert noting.statistics().dropped == {"CONNECT_FAILED": 4, "HANDSHAKE": 2}
        assert noting.statistics().errors == noting.statistics().connected == 0
        wait_until(lambda: open_descriptors() == before)
    assert "127.0.0.1: Connection refused; ::1: Connection refused" in str(cases["name"][2]._failure)


@pytest.mark.parametrize("how", ["close", "abort", "deadline", "at once", "drain", "stop", "hand over", "kill"])
def test_whatever_ends_one_that_does_not_stand_leaves_nothing(serve, how):
    server = serve(Noting)
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        before = open_descriptors()
        conn = dial(server, listener.getsockname())
        waits = gevent.spawn(conn.wait_open)
        if how != "at once":
            wait_until(lambda: len(get_poller().endpoints()) == 2)
        reason = "STOPPED"
        if how in ("close", "at once"):
            conn.close()
            reason = "CLOSED"
        elif how == "abort":
            conn.abort()
            reason = "ABORTED"
        elif how == "deadline":
            conn.set_deadline(PAUSE)
            reason = "DEADLINE"
        elif how == "kill":
            server._dials[conn]._greenlet.kill()
            reason = "ABORTED"
        elif how == "drain":
            assert server.drain(PATIENCE)
        elif how == "stop":
            server.stop(0)
        else:
            server.hand_over(PATIENCE)
        wait_until(lambda: server.connections_alive == 0 and server.told)
        assert server.told == [("dialled", "drop", reason)]
        conn.wait_closed(PATIENCE)
        with pytest.raises(ConnectionClosed) as caught:
            waits.get(timeout=PATIENCE)
        assert caught.value.reason is DropReason[reason]
        wait_until(lambda: open_descriptors() <= before and not server._dials)


def test_one_that_is_closed_in_the_pass_in_which_it_stands(serve, noting, monkeypatch):
    """The greenlet is killed only then; it must not open what is closed."""
    other = serve(Noting)
    conn = dial(noting, other.address)
    real = connector.Connecting.dial

    def close_then(self, deadline):
        try:
            return real(self, deadline)
        finally:
            conn.close()

    monkeypatch.setattr(connector.Connecting, "dial", close_then)
    wait_until(lambda: noting.connections_alive == 0)
    assert noting.told == [("dialled", "drop", "CLOSED")]
    wait_until(lambda: not other.connections_alive)


def test_limits_and_what_is_not_allowed(serve):
    server = serve(Noting, max_connections=1)
    other = serve(Noting)
    conn = dial(server, other.address)
    with pytest.raises(LimitExceeded) as caught:
        server.connect(other.address)
    assert (caught.value.limit, caught.value.value) == ("max_connections", 1)
    with socket.create_connection(server.address) as sock:  # it waits in the backlog
        wait_until(lambda: conn.state is State.OPEN)
        conn.close()
        wait_until(lambda: "new" in server.of("client"))
        sock.close()
        wait_until(lambda: not server.connections_alive)
    for address, options in [("nowhere", {}), (other.address, {"tls": 3}), ("unix:/x", {"tls": True})]:
        with pytest.raises(ValueError, match="expected"):
            server.connect(address, **options)
    with pytest.raises(ValueError, match="not started"):
        Noting(("127.0.0.1", 0)).connect(other.address)


def test_the_blocking_style_and_a_relay(serve):
    """``handle`` serves both ends; a relay waits until the other end stands."""
    other = serve(Noting)

    class Relay(Server):
        def handle(self, conn):
            if hasattr(conn, "back"):
                with contextlib.suppress(ConnectionError):
                    conn.splice(conn.back)
                conn.back.close()
            else:
                ahead = self.connect(other.address, timeout=PATIENCE)
                ahead.back = conn
                ahead.wait_open()
                conn.splice(ahead)
                ahead.shutdown_write()
                ahead.wait_closed()

    relay = serve(Relay)
    with socket.create_connection(relay.address, PATIENCE) as sock:
        sock.sendall(b"through")
        assert sock.recv(16) == b"THROUGH"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(16) == b""
    wait_until(lambda: relay.connections_alive == 0)
    assert relay.statistics().errors == 0


@pytest.mark.parametrize("by", ["connect", "server"])
def test_a_preface_goes_in_front_of_all_else(serve, by):
    """In front of a TLS handshake, too: the one between takes it off, and passes on the rest."""
    preface, seen = b"PROXY UNKNOWN\r\n", []

    class Between(Server):
        def handle(self, conn):
            seen.append(conn.read_exactly(len(preface)))
            with connect(self.onward, timeout=PATIENCE) as ahead:
                back = gevent.spawn(ahead.splice, conn)
                with contextlib.suppress(ConnectionError):
                    conn.splice(ahead)
                back.kill()

    tls = {"tls": client_tls(), "server_hostname": "localhost"}
    for other, options in ((serve(Noting), {}), (serve(Noting, tls=server_tls("localhost")), tls)):
        between = serve(Between)
        between.onward = other.address
        if by == "connect":
            with connect(between.address, preface=preface, timeout=PATIENCE, **options) as conn:
                conn.send(b"ping")
                assert conn.recv(timeout=PATIENCE) == b"PING"
        else:
            server = serve(Noting)
            conn = dial(server, between.address, preface=preface, timeout=PATIENCE, **options)
            wait_until(lambda served=server: b"PING" in served.of("dialled"))
            conn.close()
        wait_until(lambda served=between: not served.connections_alive)
    assert seen == [preface] * 2


def test_data_that_comes_with_the_handshake_and_before_the_first_turn(serve):
    """Nothing of it is lost, and no upcall is made for a server that has none for a new connection."""

    class Greeting(Server):
        def connection_new(self, conn):
            conn.send(b"hello")

    got = []
    other = serve(Greeting, tls=server_tls("localhost"))
    server = serve(Server, connection_recv=lambda conn, data: got.append(bytes(data)))
    conns = [
        server.connect(("localhost", other.server_port), tls=client_tls(), timeout=PATIENCE),
        server.connect(serve(Greeting).address),
    ]
    wait_until(partial(lambda: len(got) == 2))
    assert got == [b"hello"] * 2
    for conn in conns:
        conn.abort()
    wait_until(lambda: not server.connections_alive)


def test_a_transport_of_the_programs_own_that_fails(serve, caplog):
    class Failing(Noting):
        def transport_for(self, conn, fd):
            raise KeyError("no transport")

    server, other = serve(Failing), serve(Noting)
    before = open_descriptors()
    conn = dial(server, other.address)
    wait_until(lambda: not server.connections_alive)
    assert server.told == [("dialled", "error", "KeyError"), ("dialled", "drop", "ERROR")]
    assert server.error_count == 1
    with pytest.raises(KeyError):
        conn.wait_open()
    wait_until(lambda: open_descriptors() == before)
