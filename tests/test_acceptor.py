"""Listeners and the acceptor: every form of them, and what is used up."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, descriptors, read_exactly, wait_until
from pairs import drain, tcp_pair
from served import Echo, Recorder, Refusing, reset

from greensock import (
    Connection,
    ConnectionClosed,
    DropReason,
    Lines,
    OperationTimeout,
    Server,
    State,
)
from greensock.core.poller import get_poller

# -- when the engine refuses


def test_adopt_that_is_refused_leaves_nothing(serve, monkeypatch):
    server = serve(Echo)
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with monkeypatch.context() as patch:
        patch.setattr(get_poller(), "_epoll", Refusing())
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            server.adopt(theirs)
    assert theirs.fileno() == -1
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
    assert ours.recv(1) == b""
    ours.close()
    assert (server.statistics().accepted, server.statistics().active) == (0, 0)
    assert server.calls == server.connections == []
    ours, theirs = socket.socketpair()
    server.adopt(theirs)
    ours.sendall(b"x")
    assert read_exactly(ours, 1) == b"x"
    ours.close()
    wait_until(server.drops)


def test_accepted_connection_that_is_refused_leaves_nothing(serve, connect, monkeypatch, caplog):
    server = serve(Echo, max_connections=1)
    first = connect(server)
    wait_until(lambda: server.calls)
    reset(first)
    wait_until(lambda: server.statistics().active == 0)
    with monkeypatch.context() as patch:
        patch.setattr(get_poller(), "_epoll", Refusing())
        assert drain(connect(server)) == 0
    statistics = server.statistics()
    assert (statistics.accepted, statistics.active, statistics.errors) == (1, 0, 1)
    assert "could not be served" in caplog.text
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


@pytest.mark.parametrize("how", ["refused", "refused, shown", "framer fails", "closed by its class"])
def test_one_that_could_not_be_served_has_no_number(serve, monkeypatch, how):
    """Whoever kept the object closes no file that has got its number since."""

    class Kept(Connection):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)
            if how == "refused, shown":
                self.fileno()
            elif how == "closed by its class":
                self.abort()
                mine.append(os.open(os.devnull, os.O_RDONLY))

    class FailingFramer(Lines):
        def decoder(self):
            raise OSError(errno.ENOSPC, "mine")

    kept, mine = [], []
    server = serve(Echo, framer=FailingFramer() if how == "framer fails" else None)
    server.connection_class = Kept
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    if how.startswith("refused"):
        monkeypatch.setattr(get_poller(), "_epoll", Refusing())
    with pytest.raises((OSError, ValueError)):
        server.adopt(theirs)
    assert drain(ours) == 0
    ours.close()
    while fd not in mine:
        mine.append(os.open(os.devnull, os.O_RDONLY))
    conn = kept.pop()
    assert conn.state is State.CLOSED
    assert conn.drop_reason is (DropReason.ABORTED if how == "closed by its class" else DropReason.ERROR)
    assert conn.fileno() == -1
    for call in (lambda: conn.send(b"x"), lambda: conn.recv(timeout=0)):
        with pytest.raises(ConnectionClosed):
            call()
    conn.close()
    conn.abort()
    for fd in mine:
        os.close(fd)  # which raises where it is closed already
    assert (server.statistics().accepted, server.statistics().active) == (0, 0)


def test_what_came_with_the_connection_is_served_in_the_pass_that_accepts_it(serve, connect):
    passes = []  # of the poller; each has an end of its own

    class Noting(Connection):
        def __init__(self, *args):
            super().__init__(*args)
            passes.append(get_poller().until)

    class Early(Server):
        connection_class = Noting

        def connection_recv(self, conn, data):
            passes.append(get_poller().until)
            conn.send(data)

    server = serve(Early)
    sock = connect(server)
    sock.sendall(b"x")  # nothing has switched to the hub so far
    assert read_exactly(sock, 1) == b"x"
    assert len(passes) == 2
    assert passes[0] == passes[1]


def fail_to_accept(server, *errors):
    """Have accept() fail so many times, then go on."""
    (acceptor,) = server._acceptors()
    take, left = acceptor._take, list(errors)

    def fail_or_take(listener, fd):
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return take(listener, fd)

    acceptor._take = fail_or_take


def test_accepting_stops_loudly_and_starts_again(serve, connect, caplog):
    """Rule 11: an error that nobody foresaw."""
    server = serve(Echo)
    fail_to_accept(server, errno.EBADF)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(lambda: "has stopped" in caplog.text)
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert server.statistics().accepted == 0
    server.start_accepting()
    assert read_exactly(sock, 1) == b"x"
    server.stop_accepting()
    server.start_accepting()
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def test_a_client_that_left_the_backlog_stops_nobody(serve, connect, caplog):
    """Rule 11: ECONNABORTED and the like: go on."""
    server = serve(Echo)
    fail_to_accept(server, errno.ECONNABORTED, errno.EPROTO, errno.EINTR)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert server.statistics().accept_pauses == 0
    assert not caplog.records


def test_one_that_is_gone_hides_none_behind_it(serve, connect):
    """No event tells of those once more: a round that took none is not an empty backlog."""
    server = serve(Echo, max_accept=1)
    fail_to_accept(server, errno.ECONNABORTED)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_accepting_pauses_while_something_is_used_up(serve, connect, caplog, error):
    """Rule 11."""
    server = serve(Echo)
    fail_to_accept(server, error, error)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert server.statistics().accept_pauses == 2
    assert len(caplog.records) == 1  # rate-limited


# -- connections that end in every way, and sockets that come in every state


def test_a_bound_socket_that_does_not_listen_yet(serve, connect, caplog):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = serve(Echo, listener)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    assert not caplog.records


@pytest.mark.parametrize("when", ["before", "draining", "after"])
def test_adopt_when_nobody_would_serve_it(serve, connect, when):
    go = gevent.event.Event()

    class Slow(Recorder):
        def connection_new(self, conn):
            super().connection_new(conn)
            go.wait()

    server = serve(Slow) if when != "before" else Slow(("127.0.0.1", 0))
    if when == "draining":
        sock = connect(server)
        wait_until(lambda: server.calls)
        draining = gevent.spawn(server.drain, PATIENCE)
        wait_until(lambda: server.draining)
    elif when == "after":
        server.stop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="not started, or is about to stop"):
            server.adopt(theirs)
        theirs.sendall(b"mine")
        assert read_exactly(ours, 4) == b"mine"
    if when == "draining":
        sock.close()
        go.set()
        assert draining.get(timeout=PATIENCE)


def echoes(path):
    """Whether the server at the path answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(b"x")
        return read_exactly(sock, 1) == b"x"


def test_a_successor_at_the_same_path_stays(serve, tmp_path):
    path = str(tmp_path / "server.sock")
    old, _new = serve(Echo, path), serve(Echo, path + ".new")
    os.rename(path + ".new", path)
    old.stop()
    assert echoes(path)


@pytest.mark.parametrize("how", ["stop", "abort", "drain"])
def test_a_unix_socket_that_was_given_keeps_its_file(serve, tmp_path, how):
    path = str(tmp_path / "server.sock")
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        one, other = serve(Echo, given.dup()), serve(Echo, given.dup())
        getattr(one, how)()
        assert echoes(path)
        getattr(other, how)()
        assert os.path.exists(path)


@pytest.mark.parametrize("how", ["stop", "abort", "drain"])
def test_a_path_that_was_bound_here_is_removed_and_can_be_bound_again(serve, tmp_path, how):
    path = str(tmp_path / "server.sock")
    server = serve(Echo, path, unix_mode=0o600, unix_owner=(os.getuid(), os.getgid()))
    for _ in range(2):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert echoes(path)
        getattr(server, how)()
        server.stop()
        assert not os.path.exists(path)
        server.start()


def test_a_path_whose_owner_is_busy_does_not_stop_the_hub(tmp_path):
    path = str(tmp_path / "server.sock")
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(path)
        owner.listen(0)
        said = 0
        while said != errno.EAGAIN:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            said = client.connect_ex(path)
        with pytest.raises(OSError, match="in use") as caught:
            Echo(path).start()
        assert caught.value.errno == errno.EADDRINUSE
        assert os.path.exists(path)


def test_a_descriptor_is_held_in_reserve_while_connections_are_accepted(serve):
    """Rule 11: at the limit it is given up, so that the program has one left to log or to answer with."""
    held = [what for what in descriptors().values() if what == "/dev/null"]
    server = serve(Echo)
    assert len([what for what in descriptors().values() if what == "/dev/null"]) == len(held) + 1
    server.stop_accepting()
    wait_until(lambda: [what for what in descriptors().values() if what == "/dev/null"] == held)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_bytes_that_came_after_another_greenlet_read_all_have_their_upcall(serve, kind):
    """A turn is due, somebody empties the connection, and then more comes: all the turn asked for, maybe."""
    got, direct = [], []

    class Hears(Server):
        recv_size = 4096

        def connection_recv(self, conn, data):
            got.append(data)

    server, quiet = serve(Hears), serve(Server)
    ours, theirs = socket.socketpair() if kind == "unix" else tcp_pair()
    waking, waker = socket.socketpair()
    with theirs, waker:
        conn, waits_on = server.adopt(ours), quiet.adopt(waking)
        gevent.sleep(0)

        def meddle():
            waits_on.recv()
            direct.append(conn.recv(timeout=0))
            with contextlib.suppress(OperationTimeout):
                direct.append(conn.recv(timeout=0))
            theirs.send(bytes(4096))

        meddling = gevent.spawn(meddle)
        gevent.sleep(0)
        theirs.send(b"first")  # both before the hub looks again
        waker.send(b"wake")
        meddling.get(timeout=PATIENCE)
        wait_until(lambda: sum(map(len, got)) + sum(map(len, direct)) == 5 + 4096)
