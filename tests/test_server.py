"""The life of a server: it starts, adopts, drains, stops and starts again."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from contextlib import suppress

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, PAUSE, read_all, read_exactly, wait_until
from gevent.monkey import get_original
from served import Echo, Recorder, reset, silent

from greensock import (
    DROP,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
)
from greensock.core.poller import get_poller


def test_adopt(serve):
    server = serve(Echo)
    ours, theirs = socket.socketpair()
    conn = server.adopt(theirs)
    assert theirs.fileno() == -1
    ours.sendall(b"x")
    assert read_exactly(ours, 1) == b"x"
    assert conn in server.connections
    ours.close()
    wait_until(server.drops)
    with pytest.raises(ValueError, match="connected"), socket.socket() as sock:
        server.adopt(sock)


def test_connection_class_and_attributes(serve, connect):
    class Mine(Connection):
        __slots__ = ("seen",)

    class Own(Recorder):
        connection_class = Mine

        def connection_new(self, conn):
            conn.seen = 0
            conn.anything = "goes"

        def connection_recv(self, conn, data):
            conn.seen += 1
            conn.send(b"%d%s" % (conn.seen, conn.anything.encode()))

    server = serve(Own)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 5) == b"1goes"


def test_drain_closes_idle_and_waits_for_the_busy(serve, connect):
    go = gevent.event.Event()

    class Slow(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            go.wait()
            conn.send(b"done")

    server = serve(Slow)
    idle, busy = connect(server), connect(server)
    busy.sendall(b"x")
    wait_until(server.received)
    assert server.drain(0.05) is False
    assert read_all(idle) == b""
    idle.close()  # or it would linger
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    go.set()
    draining = gevent.spawn(server.drain, PATIENCE)
    assert read_all(busy) == b"done"
    busy.close()
    assert draining.get() is True
    assert server.drops() == [DropReason.STOPPED, DropReason.STOPPED]


def test_stop_ends_upcalls_that_block_anywhere(serve, connect, caplog):
    class Stuck(Recorder):
        def connection_recv(self, conn, data):
            super().connection_recv(conn, data)
            if data == b"recv":
                conn.recv()
            else:
                gevent.sleep(PATIENCE)

    server = serve(Stuck)
    first, second = connect(server), connect(server)
    first.sendall(b"recv")
    second.sendall(b"sleep")
    wait_until(lambda: len(server.received()) == 9)
    server.stop(0.01)
    assert not server.started
    assert server.drops() == [DropReason.STOPPED, DropReason.STOPPED]
    assert server.statistics().active == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_stop_from_inside_an_upcall(serve, connect):
    class Quitter(Recorder):
        def connection_recv(self, conn, data):
            self.stop(0.01)
            self.calls.append(("stopped", None))

    server = serve(Quitter)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(server.drops)
    assert server.names() == ["new", "stopped", "drop"]


def test_abort_from_inside_an_upcall_with_others_alive(serve, connect):
    class Quitter(Recorder):
        def connection_recv(self, conn, data):
            self.abort()
            self.calls.append(("stopped", None))

    server = serve(Quitter)
    sock, _idle = connect(server), connect(server)
    wait_until(lambda: server.statistics().accepted == 2)
    sock.sendall(b"x")
    wait_until(lambda: len(server.drops()) == 2)
    assert "stopped" in server.names()
    assert not server.started


def test_a_drop_upcall_that_blocks_is_counted_once(serve, connect):
    class Slow(Recorder):
        def connection_recv(self, conn, data):
            return DROP

        def connection_drop(self, conn):
            super().connection_drop(conn)
            conn.wait_closed(PATIENCE)

    server = serve(Slow)
    for _ in range(3):
        sock = connect(server)
        sock.sendall(b"x")
        assert read_all(sock) == b""
        sock.close()
    wait_until(lambda: server.statistics().active == 0)
    assert len(server.drops()) == 3
    connect(server)
    wait_until(lambda: server.statistics().active == 1)


def test_close_and_abort_after_a_timeout_do_not_spin(serve, connect):
    class Impatient(Recorder):
        linger_timeout = 0.05

        def handle(self, conn):
            try:
                conn.recv(timeout=0.02)
            except TimeoutError:
                conn.close()
                conn.abort()

    server = serve(Impatient)
    connect(server)
    wait_until(server.drops)
    wait_until(lambda: server.statistics().active == 0)


def test_stop_under_load_drops_each_connection_exactly_once(serve, connect):
    class Busy(Recorder):
        def connection_recv(self, conn, data):
            conn.send(data)
            gevent.sleep(0)

    server = serve(Busy)

    def load():
        while True:
            try:
                with socket.create_connection(server.address, timeout=PATIENCE) as sock:
                    for _ in range(3):
                        sock.sendall(b"x")
                        if not sock.recv(1):
                            return
            except ConnectionError:
                return

    clients = [gevent.spawn(load) for _ in range(50)]
    wait_until(lambda: server.statistics().accepted > 500)
    server.stop(0.05)
    gevent.joinall(clients, timeout=PATIENCE, raise_error=True)
    assert all(client.dead for client in clients)
    assert server.names().count("new") == server.names().count("drop")
    assert len({id(what) for name, what in server.calls if name == "new"}) <= server.names().count("new")
    assert server.statistics().active == 0


def test_start_again_after_stop(serve, connect):
    server = serve(Echo)
    server.stop()
    server.start()
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"


def test_stop_accepting_and_start_accepting(serve, connect):
    server = serve(Echo)
    server.stop_accepting()
    sock = connect(server)
    sock.sendall(b"x")
    other = serve(Echo)
    late = connect(other)
    late.sendall(b"x")
    assert read_exactly(late, 1) == b"x"  # which came after and was served
    assert server.statistics().accepted == 0
    server.start_accepting()
    assert read_exactly(sock, 1) == b"x"


def test_ten_thousand_connections_opened_and_reset_at_once(serve):
    server = serve(Echo)
    for _ in range(20):
        socks = [socket.create_connection(server.address) for _ in range(500)]
        for sock in socks:
            reset(sock)
    with socket.create_connection(server.address, timeout=30) as last:  # behind all of them
        last.sendall(b"x")
        assert read_exactly(last, 1) == b"x"
    wait_until(lambda: server.statistics().active == 0, 30)
    assert server.statistics().accepted >= 9_000
    assert server.names().count("new") == server.names().count("drop") == server.statistics().accepted


def test_reused_descriptor_while_the_upcall_is_blocked_under_load(serve):
    """Rule 3: a client goes away, and its descriptor is reused, while its upcall is blocked."""

    class Slow(Recorder):
        def connection_recv(self, conn, data):
            conn.mine = data
            gevent.sleep(PAUSE)
            try:
                conn.send(conn.mine)
            except (ConnectionLost, ConnectionClosed):
                return DROP

    server = serve(Slow)

    def client(number):
        for turn in range(20):
            with socket.create_connection(server.address, timeout=PATIENCE) as sock:
                text = b"%d/%d" % (number, turn)
                sock.sendall(text)
                if (number + turn) % 3 == 0:
                    reset(sock)
                else:
                    assert read_exactly(sock, len(text)) == text

    clients = [gevent.spawn(client, number) for number in range(40)]
    gevent.joinall(clients, raise_error=True)
    wait_until(lambda: server.statistics().active == 0)
    assert server.names().count("new") == server.names().count("drop")
    assert server.statistics().errors == 0


EXHAUSTED = """
from gevent import monkey; monkey.patch_all()
import gevent, os, resource, socket, sys, time
from greensock import Server
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)
server = Echo(("127.0.0.1", 0)); server.start()
clients = [socket.socket() for _ in range(20)]
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(3):
    os.close(taken.pop())
for client in clients:
    client.connect(server.address)
watched, before = 0.3, time.process_time()
gevent.sleep(watched)
used = time.process_time() - before
assert server.statistics().accept_pauses > 1, server.statistics()
assert used < 0.1, used
for fd in taken:
    os.close(fd)
for client in clients:
    client.settimeout(10)
    client.sendall(b"x")
    assert client.recv(1) == b"x"
assert server.statistics().accepted == 20
print("recovered", file=sys.stderr)
"""


def test_descriptors_used_up_and_back():
    """Rule 11: no spinning, nothing lost, and it recovers by itself; one line in the log."""
    done = subprocess.run([sys.executable, "-c", EXHAUSTED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "recovered" in done.stderr
    assert done.stderr.count("cannot accept") == 1, done.stderr


SIGNALLED = """
from gevent import monkey; monkey.patch_all()
import gevent.event, sys
from greensock import Server
class Slow(Server):
    stop_timeout = float(sys.argv[1])
    def connection_recv(self, conn, data):
        print("upcall", flush=True)
        gevent.event.Event().wait()
server = Slow(("127.0.0.1", 0)); server.start()
print(server.server_port, flush=True)
server.serve_forever()
print("stopped", flush=True)
"""


@pytest.mark.parametrize(("stop_timeout", "signals"), [("0.1", 1), ("60", 2)])
def test_signals_drain_then_stop_and_a_second_aborts(stop_timeout, signals):
    import signal

    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, stop_timeout], stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"x")
            assert process.stdout.readline() == "upcall\n"
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                # The listener is closed before the draining begins: then the second signal is a second one.
                wait_until(lambda: not listens(port))
                process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "stopped\n"
        assert process.wait(PATIENCE) == 0


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was closed as this came
        return False
    return True


# -- several that stop it, and where from


@pytest.mark.parametrize("how", ["abort", "stop"])
def test_two_upcalls_that_stop_it_at_once(serve, connect, caplog, capsys, how):
    class Quitter(Recorder):
        stop_timeout = 0.05

        def connection_recv(self, conn, data):
            getattr(self, how)()

    server = serve(Quitter)
    serving = gevent.spawn(server.serve_forever)
    socks = [connect(server), connect(server)]
    wait_until(lambda: server.statistics().active == 2)
    for sock in socks:
        sock.sendall(b"x")
    serving.get(timeout=PATIENCE)
    wait_until(lambda: len(server.drops()) == 2)
    assert not server.started
    assert server.statistics().active == 0
    assert silent(caplog, capsys)


@pytest.mark.parametrize("how", ["abort", "stop", "drain"])
def test_two_greenlets_that_stop_it_at_once(serve, connect, caplog, capsys, how):
    server = serve(Echo)
    sock = connect(server)
    wait_until(lambda: server.statistics().active == 1)
    stopping = [gevent.spawn(getattr(server, how)) for _ in range(2)]
    wait_until(lambda: server.draining)
    sock.close()
    gevent.joinall(stopping, timeout=PATIENCE, raise_error=True)
    assert all(greenlet.dead for greenlet in stopping)
    assert server.drops() == [DropReason.STOPPED]
    assert silent(caplog, capsys)


def test_an_abort_that_is_cut_short_has_stopped_it(serve, connect, caplog, capsys):
    class Stubborn(Recorder):
        def handle(self, conn):
            self.calls.append(("handle", conn))
            while not go.is_set():
                with suppress(gevent.GreenletExit):
                    go.wait()

    go = gevent.event.Event()
    server = serve(Stubborn)
    serving = gevent.spawn(server.serve_forever)
    connect(server)
    wait_until(lambda: "handle" in server.names())
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        server.abort()
    assert not server.started
    serving.get(timeout=PATIENCE)
    go.set()
    wait_until(server.drops)
    assert server.drops() == [DropReason.STOPPED]
    assert silent(caplog, capsys)


@pytest.mark.parametrize("call", ["drain", "abort", "stop"])
def test_another_thread_may_not_stop_it(serve, connect, call):
    def elsewhere():
        try:
            outcome.append(getattr(server, call)())
        except BaseException as error:
            outcome.append(error)
        finally:
            get_poller().close()
            gevent.get_hub().destroy(destroy_loop=True)

    outcome = []
    server = serve(Echo)
    sock = connect(server)
    wait_until(lambda: server.statistics().active == 1)
    get_original("_thread", "start_new_thread")(elsewhere, ())
    (error,) = wait_until(lambda: outcome)
    assert isinstance(error, RuntimeError)
    assert str(error) == f"{'drain' if call == 'stop' else call}: the server was started in another thread"
    assert server.started
    sock.sendall(b"x")
    assert read_exactly(sock, 1) == b"x"
    late = connect(server)
    late.sendall(b"x")
    assert read_exactly(late, 1) == b"x"


FORKED = """
from gevent import monkey; monkey.patch_all()
import gevent, os, socket, sys
from greensock import Server

class Echo(Server):
    def connection_recv(self, conn, data):
        conn.send(data)

def talk():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"

path = sys.argv[1]
parent = os.getpid()
with Echo(path) as server, socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    talk()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.exists(path)
        talk()
    else:
        # The lowest free numbers: among them are those that the fork closed.
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
if os.getpid() != parent:
    for fd in fds:
        os.fstat(fd)
    os._exit(0)
assert not os.path.exists(path)
print("ended")
"""


def test_a_forked_child_that_leaves_the_block_takes_nothing_away(tmp_path):
    """Neither a descriptor that has become somebody else's in the child, nor the path that the parent serves."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "socket")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ended\n"


SIGNALS_GIVEN_BACK = """
from gevent import monkey; monkey.patch_all()
import gevent, os, signal, time
from greensock import Server

caught, PATIENCE = [], 10
signal.signal(signal.SIGTERM, lambda *args: caught.append(args[0]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with SIGINT ignored
for number in range(2):
    server = Server(("127.0.0.1", 0))
    gevent.spawn(server.stop)
    server.serve_forever()
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(PATIENCE)
    except KeyboardInterrupt:
        caught.append(signal.SIGINT)
assert caught == 2 * [signal.SIGTERM, signal.SIGINT], caught
print("ended")
"""


def test_serve_forever_gives_the_signals_back():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS_GIVEN_BACK], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


PEERS = {
    "IPv4": (socket.AF_INET, "127.0.0.1"),
    "IPv6": (socket.AF_INET6, "::1"),
    "Unix": (socket.AF_UNIX, ""),
    "Unix, bound": (socket.AF_UNIX, "client"),
    "Unix, abstract": (socket.AF_UNIX, b"\0greensock-%d" % os.getpid()),
}


@pytest.mark.parametrize("kind", PEERS)
def test_the_address_is_what_the_standard_library_says(kind, tmp_path):
    """It is kept in few bytes, and made when it is asked for; to be set, too."""
    family, name = PEERS[kind]
    place = str(tmp_path / "server") if family == socket.AF_UNIX else (name, 0)
    seen = []

    class Asks(Recorder):
        def connection_recv(self, conn, data):
            seen.extend((conn._address, conn.address, conn.address, conn.peer_address))
            conn.address = ("somebody", 1)
            seen.append(conn.address)

    server = Asks(place)
    server.start()
    with socket.socket(family) as sock:
        if family == socket.AF_UNIX and name:
            sock.bind(str(tmp_path / name) if isinstance(name, str) else name)
        sock.connect(server.address)
        sock.sendall(b"x")
        wait_until(lambda: len(seen) == 5)
        packed, *found, changed = seen
        assert found == [sock.getsockname()] * 3
        assert changed == ("somebody", 1)
        if family != socket.AF_UNIX:
            assert len(packed) == (6 if family == socket.AF_INET else 26)
    server.stop(0)
