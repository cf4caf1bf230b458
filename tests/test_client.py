"""``connect``: every way to write an address, every way to fail, and nothing left open."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from functools import partial

import gevent
import pytest
from conftest import PATIENCE, PAUSE, read_all, wait_until
from pairs import let_engine_look

from greensock import (
    ConnectFailed,
    Connection,
    ConnectionClosed,
    OperationTimeout,
    Server,
    SocketConnection,
    State,
    connect,
)
from greensock.core import connector
from greensock.core.poller import get_poller
from greensock.core.syscalls import EVENT_DATA


class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)


def exchange(conn):
    conn.send(b"ping")
    assert conn.read_exactly(4, timeout=PATIENCE) == b"ping"
    conn.abort()


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "write",
    [
        lambda port: ("127.0.0.1", port),
        lambda port: f"127.0.0.1:{port}",
        lambda port: f"localhost:{port}",
        lambda port: ("localhost", str(port)),
    ],
)
def test_addresses(serve, write):
    server = serve(Echo)
    conn = connect(write(server.server_port), timeout=PATIENCE)
    assert conn.address[:2] == ("127.0.0.1", server.server_port)
    assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert conn.server is None
    exchange(conn)


def test_ipv6(serve):
    server = serve(Echo, ("::1", 0))
    exchange(connect(f"[::1]:{server.server_port}", timeout=PATIENCE))
    exchange(connect(("::1", server.server_port), timeout=PATIENCE))


@pytest.mark.parametrize("write", [str, lambda path: f"unix:{path}", lambda path: path])
def test_unix_socket(serve, tmp_path, write):
    path = tmp_path / "socket"
    serve(Echo, str(path))
    conn = connect(write(path), timeout=PATIENCE)
    assert conn.address == str(path)
    exchange(conn)


def test_the_class_of_the_connection_and_nagle(serve):
    class Mine(Connection):
        pass

    conn = connect(serve(Echo).address, connection_class=Mine, no_delay=False)
    assert type(conn) is Mine
    assert not conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    exchange(conn)


@pytest.mark.parametrize(
    "address", ["", "nowhere", ":80", "host:", "host:0", "host:65536", "host:x", ("", 80), 80, None]
)
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="expected"):
        connect(address)


def test_refused():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    before = open_descriptors()
    with pytest.raises(ConnectFailed, match="refused") as caught:
        connect(address, timeout=PATIENCE)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert caught.value.address == address
    assert open_descriptors() == before
    assert not get_poller().endpoints()


def test_no_such_unix_socket(tmp_path):
    with pytest.raises(ConnectFailed, match="No such file") as caught:
        connect(tmp_path / "none")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_no_such_name(monkeypatch):
    def fail(*arguments):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(connector, "getaddrinfo", fail)
    with pytest.raises(ConnectFailed, match=r"'nowhere\.invalid' cannot be resolved") as caught:
        connect("nowhere.invalid:80")
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_the_next_address_is_tried(serve, monkeypatch):
    server = serve(Echo)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        refuses = sock.getsockname()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (refuses, server.address)]
    monkeypatch.setattr(connector, "getaddrinfo", lambda *arguments: found)
    exchange(connect("both.invalid:80"))
    found.pop()
    with pytest.raises(ConnectFailed, match="refused"):
        connect("both.invalid:80")


def test_a_slow_resolver(monkeypatch):
    monkeypatch.setattr(connector, "getaddrinfo", lambda *arguments: gevent.sleep(PATIENCE))
    with pytest.raises(OperationTimeout, match="not resolved within") as caught:
        connect("slow.invalid:80", timeout=0.02)
    assert (caught.value.operation, caught.value.seconds) == ("connect", 0.02)


@contextlib.contextmanager
def full_backlog(family, address):
    """A listener whose queue has no room left, so that who connects has to wait."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen(0)
        while True:
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            said = filler.connect_ex(listener.getsockname())
            if said == errno.EAGAIN or (said == errno.EINPROGRESS and not stood(filler)):
                break
        yield listener


def stood(sock):
    deadline = gevent.Timeout(0.1, False)
    with deadline:
        gevent.socket.wait_write(sock.fileno())
        return True
    return False


def test_a_deadline_while_the_peer_does_not_answer():
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        before = open_descriptors()
        with pytest.raises(OperationTimeout, match=r"did not answer within 0\.05 s") as caught:
            connect(listener.getsockname(), timeout=0.05)
        assert caught.value.operation == "connect"
        assert open_descriptors() == before


def test_a_full_unix_backlog(tmp_path):
    path = str(tmp_path / "socket")
    with full_backlog(socket.AF_UNIX, path) as listener:
        with pytest.raises(OperationTimeout, match="did not answer"):
            connect(path, timeout=0.05)
        waits = gevent.spawn(connect, path, timeout=PATIENCE)
        gevent.sleep(0)
        while not waits.ready():
            accepted, _ = listener.accept()
            accepted.close()
            gevent.sleep(PAUSE)
        waits.get().abort()


def test_killed_while_it_connects():
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        before = open_descriptors()
        waits = gevent.spawn(connect, listener.getsockname())
        wait_until(lambda: get_poller().endpoints())
        waits.kill()
        assert open_descriptors() == before
        assert not get_poller().endpoints()


def test_it_does_not_stop_the_others():
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        waits = gevent.spawn(connect, listener.getsockname())
        wait_until(lambda: get_poller().endpoints())
        assert not waits.ready()
        waits.kill()


def test_an_event_of_whoever_had_the_descriptor_before_connects_nothing():
    """Rule 3."""
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        waits = gevent.spawn(connect, listener.getsockname(), timeout=PATIENCE)
        (conn,) = wait_until(lambda: list(get_poller().endpoints()))
        for _ in range(3):
            get_poller().call_soon(partial(get_poller()._tell, conn, EVENT_DATA))
            let_engine_look()
            assert not waits.ready()
        waits.kill()


def test_a_connection_like_a_socket(serve, tmp_path):
    server = serve(Echo)
    conn = connect(server.address, timeout=PATIENCE, connection_class=SocketConnection)
    conn.settimeout(PATIENCE)
    conn.sendall(b"ping")
    assert conn.recv(4) == b"ping"
    conn.close()
    before = open_descriptors()
    server.stop()
    with pytest.raises(ConnectFailed, match="refused"):
        connect(server.address, timeout=PATIENCE, connection_class=SocketConnection)
    with pytest.raises(ConnectFailed, match="No such file"):
        connect(tmp_path / "none", connection_class=SocketConnection)
    with (
        full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener,
        pytest.raises(OperationTimeout, match="did not answer"),
    ):
        connect(listener.getsockname(), timeout=0.05, connection_class=SocketConnection)
    wait_until(lambda: open_descriptors() < before)  # the server's listener, and nothing else


def test_an_abstract_unix_socket(serve):
    server = serve(Echo, f"unix:\0greensock-test-{os.getpid()}")
    exchange(connect(f"unix:\0greensock-test-{os.getpid()}", timeout=PATIENCE))
    server.stop()
    with pytest.raises(ConnectFailed, match="refused"):
        connect(f"unix:\0greensock-test-{os.getpid()}")
    server = serve(Echo, f"unix:@greensock-test-{os.getpid()}")
    assert server.address == b"\0greensock-test-%d" % os.getpid()
    exchange(connect(server.address, timeout=PATIENCE))


def test_the_credentials_of_the_peer(serve, tmp_path):
    """Both ends of a Unix socket know each other's; of another kind there are none."""
    seen = []
    here, remote = serve(Server, str(tmp_path / "socket")), serve(Server)
    here.connection_new = remote.connection_new = lambda conn: seen.append(conn.peer_credentials)
    for server in (here, remote):
        server.stop()
        server.start()
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({here.address!r}); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as other:
        wait_until(lambda: seen)
        assert seen == [(other.pid, os.getuid(), os.getgid())]
        other.stdin.close()
    conn = connect(here.address, timeout=PATIENCE)
    assert conn.peer_credentials == (os.getpid(), os.getuid(), os.getgid())
    assert (conn.peer_credentials.pid, conn.peer_credentials.uid) == (os.getpid(), os.getuid())
    plain = connect(remote.address, timeout=PATIENCE)
    assert plain.peer_credentials is None
    wait_until(lambda: seen[2:] == [None])
    for each in (conn, plain):
        each.abort()
        with pytest.raises(ConnectionClosed):
            each.peer_credentials  # noqa: B018


def test_the_scope_of_an_ipv6_address_is_kept(serve):
    server = serve(Echo, ("::1", 0))
    loopback = socket.if_nametoindex("lo")
    conn = connect(("::1", server.server_port, 0, loopback), timeout=PATIENCE)
    assert conn.address == ("::1", server.server_port, 0, loopback)
    exchange(conn)


@pytest.mark.parametrize("raises", [False, True])
def test_leaving_the_block_closes(serve, raises):
    server = serve(Echo)
    with contextlib.suppress(KeyError), connect(server.address, timeout=PATIENCE) as conn:
        conn.send(b"ping")
        assert conn.read_exactly(4, timeout=PATIENCE) == b"ping"
        if raises:
            raise KeyError
    assert conn.state is not State.OPEN
    conn.wait_closed(PATIENCE)
    wait_until(lambda: server.statistics().dropped == {"PEER_CLOSED": 1})


def test_a_path_that_fails_is_named_as_it_was_given(tmp_path):
    with pytest.raises(ConnectFailed) as caught:
        connect(tmp_path / "none")
    assert caught.value.address == tmp_path / "none"


def test_a_timeout_that_leaves_an_upcall_is_no_fault_of_its_peer(serve, connect):
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener:

        class Proxy(Server):
            def connection_recv(self, conn, data):
                connector.connect(listener.getsockname(), timeout=0.02)

        server = serve(Proxy)
        sock = connect(server)
        sock.sendall(b"x")
        assert read_all(sock) == b""
        wait_until(lambda: server.statistics().dropped)
        assert server.statistics().dropped == {"ERROR": 1}


# -- names with several addresses


def several(monkeypatch, *addresses, delay=PAUSE):
    """Have every name stand for these addresses; the attempts begin one after the other with that delay."""
    found = [(family_of(address), socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(connector, "getaddrinfo", lambda *arguments: found)
    monkeypatch.setattr(connector, "ATTEMPT_DELAY", delay)


def family_of(address):
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


@pytest.fixture
def silent():
    """An address that does not answer; nor does any other of this machine with its port."""
    with full_backlog(socket.AF_INET, ("0.0.0.0", 0)) as listener:
        yield "127.0.0.1", listener.getsockname()[1]


@pytest.fixture
def refusing():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()


@pytest.mark.parametrize(
    ("found", "order"),
    [
        ("", ""),
        ("6a", "6a"),
        ("6a 6b 4a 4b", "6a 4a 6b 4b"),
        ("4a 6a 6b 6c", "4a 6a 6b 6c"),
        ("6a 6b 6c 4a", "6a 4a 6b 6c"),
        ("4a 4b 4c 6a 6b", "4a 6a 4b 6b 4c"),
        ("4a 4a 6a 4a", "4a 6a"),
    ],
)
def test_families_take_turns_and_each_address_is_tried_once(found, order):
    """RFC 8305 section 4."""
    ways = [(each[0], each) for each in found.split()]
    assert " ".join(each for _, each in connector.interleaved(ways)) == order


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("timeout", [PATIENCE, None])
def test_silent_addresses_leave_time_for_the_next(serve, monkeypatch, silent, count, timeout):
    server = serve(Echo)
    several(monkeypatch, *[silent, ("127.0.0.2", silent[1]), ("127.0.0.3", silent[1])][:count], server.address)
    before = open_descriptors()
    conn = connect("some.invalid:80", timeout=timeout)
    assert conn.address == server.address
    assert [each for each in get_poller().endpoints() if not isinstance(each, Connection)][1:] == []  # the acceptor
    exchange(conn)
    wait_until(lambda: open_descriptors() <= before)


def test_an_attempt_that_fails_has_the_next_begin_at_once(serve, monkeypatch, refusing):
    server = serve(Echo)
    several(monkeypatch, ("::1", refusing[1]), refusing, server.address, delay=10 * PATIENCE)
    exchange(connect("some.invalid:80", timeout=PATIENCE))


def test_who_answers_late_can_still_be_the_first(monkeypatch, silent):
    """An attempt goes on while others are tried."""
    with full_backlog(socket.AF_INET, ("127.0.0.2", 0)) as listener:
        several(monkeypatch, silent, listener.getsockname(), ("127.0.0.3", silent[1]))
        waits = gevent.spawn(connect, "some.invalid:80", timeout=PATIENCE)
        wait_until(lambda: len(get_poller().endpoints()) == 3 or waits.ready())
        while not waits.ready():
            with contextlib.suppress(BlockingIOError):
                listener.setblocking(False)
                listener.accept()[0].close()
            gevent.sleep(PAUSE)
        conn = waits.get()
        assert conn.address == listener.getsockname()
        assert get_poller().endpoints() == [conn]
        conn.abort()


@pytest.mark.parametrize("error", [gevent.GreenletExit(), gevent.Timeout(PATIENCE), KeyError()])
def test_whatever_is_thrown_into_a_race_leaves_nothing_open(monkeypatch, silent, error):
    several(monkeypatch, silent, ("127.0.0.2", silent[1]), ("127.0.0.3", silent[1]))
    before = open_descriptors()
    caught = []

    def race():
        try:
            connect("some.invalid:80")
        except BaseException as raised:
            caught.append(raised)

    waits = gevent.spawn(race)
    wait_until(lambda: len(get_poller().endpoints()) == 3)
    waits.kill(error)
    assert caught == [error]
    assert open_descriptors() == before
    assert not get_poller().endpoints()


def test_so_many_are_under_way_and_no_more(serve, monkeypatch, silent):
    monkeypatch.setattr(connector, "MOST_AT_ONCE", 2)
    server = serve(Echo)
    several(monkeypatch, *((f"127.0.0.{last}", silent[1]) for last in range(1, 6)), server.address)
    waits = gevent.spawn(connect, "some.invalid:80", timeout=PATIENCE)
    most = 0
    while not waits.ready():
        most = max(most, len(get_poller().endpoints()))
        gevent.sleep(0)
    assert most == 3  # with the acceptor
    exchange(waits.get())


def test_an_error_names_each_attempt(monkeypatch, silent, refusing):
    several(monkeypatch, refusing, ("::1", refusing[1]), ("127.0.0.2", refusing[1]))
    with pytest.raises(ConnectFailed) as caught:
        connect("some.invalid:80", timeout=PATIENCE)
    refused = os.strerror(errno.ECONNREFUSED)
    hosts = ["127.0.0.1", "::1", "127.0.0.2"]
    each = "; ".join(f"{host}: {refused}" for host in hosts)
    assert str(caught.value) == f"cannot connect to 'some.invalid:80': {each}"
    assert [(sockaddr[0], error.errno) for sockaddr, error in caught.value.attempts] == [
        (host, errno.ECONNREFUSED) for host in hosts
    ]
    assert caught.value.__cause__ is caught.value.attempts[-1][1]
    several(monkeypatch, silent, *((f"127.0.0.{last}", refusing[1]) for last in range(1, 12)))
    with pytest.raises(OperationTimeout) as late:
        connect("some.invalid:80", timeout=5 * PAUSE)
    text = str(late.value)
    assert text.startswith(f"'some.invalid:80' did not answer within {5 * PAUSE} s: 127.0.0.1: ")
    assert text.endswith("; and 4 others")


def test_addresses_that_are_all_silent_take_the_whole_time_and_no_more(monkeypatch, silent):
    several(monkeypatch, silent, ("127.0.0.2", silent[1]), ("127.0.0.3", silent[1]), delay=1.0)
    began = time.monotonic()
    with pytest.raises(OperationTimeout, match=r"within 0\.3 s: 127\.0\.0\.1: no answer; 127\.0\.0\.2: no") as caught:
        connect("some.invalid:80", timeout=0.3)
    assert 0.29 < time.monotonic() - began < PATIENCE
    assert caught.value.operation == "connect"


def test_a_class_that_fails_and_an_engine_that_is_full_leave_nothing_open(serve):
    class Failing(Connection):
        def __init__(self, *arguments):
            raise KeyError

    class Unwatched(Connection):
        def _watch(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    server = serve(Echo)
    before = open_descriptors()
    for kind, error in ((Failing, KeyError), (Unwatched, ConnectFailed)):
        with pytest.raises(error):
            connect(server.address, timeout=PATIENCE, connection_class=kind)
    wait_until(lambda: open_descriptors() == before)
