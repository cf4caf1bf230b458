"""Forks: what is left to a child process, and to a program that is started."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import traceback
import warnings

import gevent
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from pairs import read_all_fast, read_exactly_fast, tcp_pair, wrap
from tls_peers import Peer, chain, issued, peer_context
from toys import (
    Echo,
    nothing,
    pair,  # noqa: F401  # fixtures
)

from greensock import (
    Server,
    StreamServer,
)
from greensock.core.acceptor import Acceptor
from greensock.core.poller import get_poller
from greensock.core.socket_connection import SocketConnection
from greensock.core.syscalls import has_input

# -- forks


#: In a process of its own: in the child of a fork the parent's greenlets go on when it blocks, and so would a test.
FORKING = """
from gevent import monkey; monkey.patch_all()
import multiprocessing, os, sys
from greensock import Lines, Server, StreamServer

kind, closes = sys.argv[1], sys.argv[2] == "closes"
fork = multiprocessing.get_context("fork")

def child(conn, first):
    send = getattr(conn, "sendall", conn.send)
    send(b"child got " + first)
    send(b", then " + conn.recv(100))
    conn.close()

def work(conn, first):
    if first == b"ping":
        getattr(conn, "sendall", conn.send)(b"pong")
        return
    process = fork.Process(target=child, args=(conn, first))
    process.start()
    if closes:
        conn.close()
    process.join()

class Upcalls(Server):
    def connection_recv(self, conn, data):
        work(conn, data)

class Handling(Server):
    def handle(self, conn):
        work(conn, conn.recv())

if kind == "StreamServer":
    server = StreamServer(("127.0.0.1", 0), lambda sock, address: work(sock, sock.recv(100)))
else:
    server = (Handling if kind == "handle" else Upcalls)(("127.0.0.1", 0), framer=Lines() if kind == "framed" else None)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("kind", ["upcalls", "framed", "handle", "StreamServer"])
@pytest.mark.parametrize("parent", ["closes", "waits"])
def test_a_process_for_each_connection(kind, parent):
    """multiprocessing's fork: the connection lives on in the child, the parent's others in the parent only."""
    command = [sys.executable, "-c", FORKING, kind, parent]
    end = b"\n" if kind == "framed" else b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = "127.0.0.1", int(process.stdout.readline())
            bystander, sock = (socket.create_connection(address, PATIENCE) for _ in range(2))
            with bystander, sock:
                sock.sendall(b"data" + end)
                assert read_exactly(sock, 14) == b"child got data"
                bystander.sendall(b"ping" + end)
                assert read_exactly(bystander, 4) == b"pong"
                [child] = children_of(process.pid)
                most = 2 if kind == "StreamServer" else 1  # the listener is gevent's
                assert len(sockets_of(child)) <= most, "peers would not see the end of what it held open"
                sock.sendall(b"more")
                assert read_exactly(sock, 11) == b", then more"
                if parent == "closes" or kind in ("handle", "StreamServer"):
                    assert read_all(sock) == b""
        finally:
            process.kill()


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def sockets_of(pid):
    """Return the connected sockets that a process has."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile: the child runs on
            what = os.readlink(f"/proc/{pid}/fd/{fd}")
            if what.startswith("socket:"):
                found.add(what)
    return found


def test_a_fork_by_hand(connect):
    """websockify's way: os.fork() in the handler, and the child serves."""

    def handle(sock, address):
        pid = os.fork()
        if not pid:
            try:
                sock.sendall(b"from the child: " + sock.recv(100))
            finally:
                os._exit(0)
        sock.close()
        os.waitpid(pid, 0)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    sock = connect(server)
    sock.sendall(b"hello")
    assert read_all(sock) == b"from the child: hello"
    server.stop()


FORKING_OVER_TLS = """
from gevent import monkey; monkey.patch_all()
import os, sys
from greensock import TLS, Server

who = sys.argv[1]

class Forking(Server):
    tls = TLS("both.pem")

    def handle(self, conn):
        asked = conn.recv()
        pid = os.fork()
        if bool(pid) == (who == "parent"):
            conn.send(b"from the " + who.encode() + b": " + asked)
            conn.send(b", " + conn.recv())
        conn.close()
        conn.wait_closed(30)
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

server = Forking(("127.0.0.1", 0))
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("who", ["child", "parent"])
def test_a_fork_over_tls(who, tmp_path):
    """One of the two goes on with the connection, and says its end; the other's close tells the peer nothing."""
    leaf = issued("localhost")
    (tmp_path / "both.pem").write_bytes(leaf.private_key_pem.bytes() + chain(leaf))
    command = [sys.executable, "-c", FORKING_OVER_TLS, who]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            address = "127.0.0.1", int(process.stdout.readline())
            for version in ("1.2", "1.3"):
                peer = Peer(socket.create_connection(address, PATIENCE), peer_context(version))
                peer.shake()
                peer.sendall(b"hello")
                said = b"from the " + who.encode() + b": hello"
                assert peer.read_exactly(len(said)) == said
                peer.sendall(b"more")
                assert peer.read_all() == b", more", "and then close_notify: nothing was cut"
                peer.close()
        finally:
            process.kill()


FORKING_APPLICATION = """
from gevent import monkey; monkey.patch_all()
import os, time
from greensock.http import WSGIServer

PATIENCE = 30

def application(environ, start_response):
    pid = os.fork()
    if not pid:
        time.sleep(PATIENCE)
        os._exit(0)
    start_response("200 OK", [])
    return [b"%d" % pid, b"!"]

server = WSGIServer(("127.0.0.1", 0), application, log=None)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


def in_a_child(work):
    """Run it in the child of a fork; raise what it raised there."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_whose_number_was_shown_is_open_in_the_child(pair):
    """Whoever forks, and in whichever greenlet. The connection object is dead there: its greenlets are the parent's."""

    def work():
        os.write(fd, b"from the child")
        assert conn._fd == -1
        assert not is_open(other_fd)

    conn, peer = pair
    ours, theirs = tcp_pair()
    other = wrap(ours)
    fd, other_fd = conn.fileno(), other._fd
    in_a_child(work)
    assert read_exactly(peer, 14) == b"from the child"
    other.abort()
    theirs.close()


@pytest.mark.parametrize("is_meant_for_it", [False, True])
def test_a_listener_in_the_child(serve, is_meant_for_it):
    """One that is inheritable is for a child to have: it may be about to execute a successor."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(is_meant_for_it)
    serve(Echo, listener, cover=nothing)
    wait_until(lambda: get_poller()._by_fd[listener.fileno()])
    in_a_child(lambda: check_is_a_socket(listener.fileno(), is_meant_for_it))


def check_is_a_socket(fd, expected):
    assert stat.S_ISSOCK(os.fstat(fd).st_mode) is expected


def test_a_number_that_the_child_uses_anew():
    """It was closed when the child began, and so is not closed again when the child forgets the connection."""

    def work():
        mine = {os.open(os.devnull, os.O_RDONLY) for _ in range(30)}
        assert fd in mine
        known.clear()
        gc.collect()
        assert all(map(is_open, mine))

    ours, theirs = tcp_pair()
    known = [wrap(ours)]
    known[0]._share()  # as by a fork in its turn
    fd = known[0]._fd
    in_a_child(work)
    known[0].abort()
    theirs.close()


@pytest.fixture
def opened_by_warnings(monkeypatch):
    """The log files of a program that opens one for each warning."""
    found = []

    def show(*arguments, **options):
        found.append(os.open(os.devnull, os.O_RDONLY))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        yield found
    for fd in found:
        os.close(fd)


def test_a_shown_one_that_is_collected_is_closed_once(opened_by_warnings):
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    conn = SocketConnection(get_poller(), ours.detach(), socket.AF_INET, "")
    conn.fileno()
    del conn
    gc.collect()
    assert list(map(is_open, opened_by_warnings)) == [True]
    theirs.close()


def test_a_listener_that_is_collected_is_closed_once(opened_by_warnings):
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = Acceptor(listener, print, lambda: 1, 1)
    del acceptor, listener
    gc.collect()
    assert list(map(is_open, opened_by_warnings)) == [True]


AT_THE_LIMIT = """
from gevent import monkey; monkey.patch_all()
import os, resource
from greensock import Server

resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

def kinds():
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in range(60) if os.path.exists(f"/proc/self/fd/{fd}")]

def fork(conn):
    spare = []
    try:
        while True: spare.append(os.open("/dev/null", os.O_RDONLY))
    except OSError: pass
    pid = os.fork()
    for fd in spare: os.closerange(fd, fd + 1)
    if pid:
        os.waitpid(pid, 0)
        conn.close()
        return
    try:
        found = kinds()
        sockets = sum("socket:" in each for each in found)
        conn.send(f"{sockets} sockets, {found.count('anon_inode:[eventpoll]')} epoll sets; ".encode())
        conn.send(b"and " + conn.recv(timeout=10))
    finally:
        os._exit(0)

class Forking(Server):
    def connection_recv(self, conn, data):
        if data == b"fork": fork(conn)
        else: conn.send(data)

server = Forking(("127.0.0.1", 0)); server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("others", [0, 3])
def test_a_fork_when_all_descriptors_are_used_up(others):
    """The child is left as clean as ever, and its connection works."""
    command = [sys.executable, "-c", AT_THE_LIMIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = "127.0.0.1", int(process.stdout.readline())
            with contextlib.ExitStack() as stack:
                for _ in range(others):
                    other = stack.enter_context(socket.create_connection(address, PATIENCE))
                    other.sendall(b"hello")
                    assert read_exactly(other, 5) == b"hello"
                sock = stack.enter_context(socket.create_connection(address, PATIENCE))
                sock.sendall(b"fork")
                assert read_exactly(sock, 25) == b"1 sockets, 1 epoll sets; "
                sock.sendall(b"more")
                assert read_all(sock) == b"and more"
        finally:
            process.kill()
        assert process.stderr.read() == ""


# -- other programs: a fork that becomes one shares nothing and loses nothing


def run_by_gevent(command, fd):
    return subprocess.call(command, pass_fds=[fd])


def spawn_it(command, fd):
    os.set_inheritable(fd, True)
    return os.spawnv(os.P_WAIT, command[0], command)


RUNS = pytest.mark.parametrize("run", [run_by_gevent, spawn_it])


IS_A_SOCKET = "import os, stat, sys; sys.exit(not stat.S_ISSOCK(os.fstat({}).st_mode))"


@RUNS
def test_a_program_gets_the_listener(serve, run):
    """An upgrade: a server hands its listener to its successor while it serves."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = serve(Echo, listener, cover=nothing)
    wait_until(lambda: get_poller()._by_fd[listener.fileno()])
    assert run([sys.executable, "-c", IS_A_SOCKET.format(listener.fileno())], listener.fileno()) == 0
    assert server.started


@RUNS
def test_a_program_gets_a_connection_from_another_greenlet(serve, connect, run):
    """Whichever greenlet starts it: what ``fileno()`` said holds in the program."""

    class Showing(Server):
        def connection_recv(self, conn, data):
            command = [sys.executable, "-c", f"import os; os.write({conn.fileno()}, b'from the program')"]
            codes.append(gevent.spawn(run, command, conn._fd).get(timeout=PATIENCE))
            conn.close()

    codes = []
    sock = connect(serve(Showing))
    sock.sendall(b"x")
    assert read_all(sock) == b"from the program"
    assert codes == [0]


@RUNS
def test_a_program_that_has_nothing_to_do_with_the_connection(serve, connect, run):
    """It is not shared for that: its answer arrives though there is input that nobody read, and so does FIN."""

    class Running(Server):
        def connection_recv(self, conn, data):
            with open(os.devnull) as file:
                codes.append(run(["/bin/true"], file.fileno()))
            conn.send(b"!")
            wait_until(lambda: has_input(conn._fd))
            conn.send(bytes(300_000), close=True)
            closing.append(conn)

    codes, closing = [], []
    sock = connect(serve(Running))
    sock.sendall(b"request")
    assert read_exactly(sock, 1) == b"!"
    sock.sendall(b"more")
    wait_until(lambda: closing)
    assert closing[0]._transport is None
    assert len(read_all_fast(sock)) == 300_000
    assert codes == [0]


def test_a_program_that_inherits_the_connection(connect):
    """``close_fds=False`` and a number that nobody asked ``fileno`` for, but made inheritable."""

    def handle(sock, address):
        sock.set_inheritable(True)
        said.append(sock._is_shared())
        sock.set_inheritable(False)
        sock.close()

    said = []
    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    assert read_all(connect(server)) == b""
    assert said == [True]
    server.stop()


def test_the_standard_librarys_own_with_a_preexec_fn():
    """It calls the hooks of a fork, too. (To be had only where nothing is patched.)"""
    done = subprocess.run([sys.executable, "-c", UNPATCHED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


UNPATCHED = f"""
import os, socket, subprocess, sys
import gevent
from greensock import Server
listener = socket.create_server(("127.0.0.1", 0))
with Server(listener) as server:
    while not server._poller._registered: gevent.sleep(0)
    command = [sys.executable, "-c", {IS_A_SOCKET!r}.format(listener.fileno())]
    print(subprocess.call(command, pass_fds=[listener.fileno()], preexec_fn=os.getpid) == 0)
"""


def test_a_fork_before_the_program_starts_is_one_like_any_other():
    """``preexec_fn`` may fork: what is forked there goes on, and has nothing of the parent's."""
    command = [sys.executable, "-c", FORKING_BEFORE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("the watchdog holds 0 connections\n", "")


FORKING_BEFORE = """
from gevent import monkey; monkey.patch_all()
import os, subprocess
from greensock import connect, Server
server = Server(("127.0.0.1", 0), connection_recv=print); server.start()
conn = connect(server.address)
_of_conn = conn._fd

def start_watchdog():
    pid = os.fork()
    if not pid:
        try:
            os.fstat(_of_conn)
        except OSError:
            print("the watchdog holds 0 connections", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

assert subprocess.call(["/bin/true"], preexec_fn=start_watchdog) == 0
"""


CHILD_RUNS_ON = """
from gevent import monkey; monkey.patch_all()
import gevent, os, sys
from greensock import Server, connect
from greensock.http import HTTPServer, HTTPClient, Response

A_WHILE = 0.05

class Site(HTTPServer):
    def handle_request(self, request): return Response(b"x")

class Forking(Server):
    def connection_recv(self, conn, data):
        pid = os.fork()
        if not pid:
            try:
                gevent.sleep(A_WHILE)
                with Site(("127.0.0.1", 0)) as site, HTTPClient() as client:
                    with client.get(f"http://127.0.0.1:{site.server_port}/") as answer:
                        assert answer.read_all() == b"x"
                conn.send(b"a server of its own answered the child")
                gevent.sleep(A_WHILE)
                os._exit(7)
            except BaseException:
                import traceback; traceback.print_exc()
                os._exit(1)
        conn.close()
        print("child ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

server = Forking(("127.0.0.1", 0)); server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("loop", ["libev-cext", "libuv-cffi"])
def test_a_child_runs_on_with_an_engine_of_its_own(loop):
    """It sleeps, serves and asks: its event loop has what was its parent's, and must not fall over that."""
    environment = {**os.environ, "GEVENT_LOOP": loop}
    if subprocess.run([sys.executable, "-c", "import gevent; gevent.get_hub().loop"], env=environment).returncode:
        pytest.skip(f"gevent has no {loop} here")
    command = [sys.executable, "-c", CHILD_RUNS_ON]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), PATIENCE) as sock:
                sock.sendall(b"x")
                assert read_all(sock) == b"a server of its own answered the child"
                assert process.stdout.readline() == "child ended with 7\n"
        finally:
            process.kill()


def test_a_child_of_an_application_keeps_no_client_from_its_end():
    """It does not answer the request: so the connection, whose end says where the answer ends, is not its."""
    with subprocess.Popen([sys.executable, "-c", FORKING_APPLICATION], stdout=subprocess.PIPE, text=True) as process:
        try:
            with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), PATIENCE) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = read_all(sock)
                assert answer.endswith(b"!")
                os.kill(int(answer.rpartition(b"\r\n\r\n")[2][:-1]), signal.SIGKILL)
        finally:
            process.kill()


def test_what_was_queued_is_the_parents_to_send(serve, connect):
    class Queueing(Server):
        max_send_queue = 1 << 24

        def connection_recv(self, conn, data):
            conn.send_nowait(bytes(8_000_000))
            pid = os.fork()
            if not pid:
                conn.close()
                conn.wait_closed(PATIENCE)
                os._exit(0)
            os.waitpid(pid, 0)
            conn.send(b"the parent's")

    server = serve(Queueing)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly_fast(sock, 8_000_012) == bytes(8_000_000) + b"the parent's"
    assert server.statistics().active == 1


QUIET_CHILD = """
from gevent import monkey; monkey.patch_all()
import gevent, os, socket, sys, time
from greensock import Server
from greensock.http import HTTPClient, HTTPServer, Response
{server}
print(server.server_port, flush=True)
client = HTTPClient(idle_timeout=0.2)
reader, writer = os.pipe()
A_MOMENT, PATIENCE = 0.001, 20
pid = os.fork()
if not pid:
    time.sleep(A_MOMENT)
    os.write(writer, b"x")  # its loop has turned
    time.sleep(PATIENCE)
    os._exit(0)
os.close(writer)
assert os.read(reader, 1) == b"x"
for _ in range(3):
    with client.get(f"http://127.0.0.1:{{server.server_port}}/") as answer: assert answer.status == 200
    pid2 = os.fork()
    if not pid2: os._exit(0)
    os.waitpid(pid2, 0)
print("answered", flush=True)
os.kill(pid, 9)
"""


OURS = """
class Site(HTTPServer):
    def handle_request(self, request): return Response(b"x")
server = Site(("127.0.0.1", 0)); server.start()
"""


@pytest.mark.parametrize("loop", ["libev-cext", "libuv-cffi"])
def test_a_child_that_does_nothing_leaves_the_parents_loop_alone(loop):
    """With libuv, to stop a watcher in the child takes it out of the parent's epoll set."""
    probe = [sys.executable, "-c", "import gevent; gevent.get_hub().loop"]
    environment = {**os.environ, "GEVENT_LOOP": loop}
    if subprocess.run(probe, env=environment, capture_output=True).returncode:
        pytest.skip(f"gevent has no {loop} here")
    command = [sys.executable, "-c", QUIET_CHILD.format(server=OURS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("answered\n"), done.stderr


WITHIN_A_HARVEST = """
from gevent import monkey; monkey.patch_all()
import os, socket, sys
import gevent
from greensock import Server

def say(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())

parent, first = os.getpid(), []
PASSES, A_MOMENT = 0.1, 0.001

class Handling(Server):
    def handle(self, conn):
        try:
            conn.recv()
        except OSError:
            say("woken in the child" if os.getpid() != parent else "failed")
            raise
        if not first:
            first.append(conn)
            pid = os.fork()
            if not pid:
                gevent.sleep(PASSES)  # lets the loop of the child go on where that of the parent was
                os._exit(0)
            os.waitpid(pid, 0)
        else:
            say("heard in the parent" if os.getpid() == parent else "heard in the child")

class Upcalls(Server):
    def connection_recv(self, conn, data):
        if not first:
            first.append(conn)
            pid = os.fork()
            if not pid:
                gevent.sleep(PASSES)
                os._exit(0)
            os.waitpid(pid, 0)
        else:
            say("heard in the parent" if os.getpid() == parent else "heard in the child")

    def connection_drop(self, conn):
        if os.getpid() != parent:
            say("told in the child")

server = (Handling if sys.argv[1] == "handle" else Upcalls)(("127.0.0.1", 0))
server.start()
socks = [socket.create_connection(server.address) for _ in range(3)]
while server.statistics().active < 3 or sys.argv[1] == "handle" and server.statistics().workers_busy < 3:
    gevent.sleep(A_MOMENT)
for sock in socks:
    sock.send(b"x")
    sock.shutdown(socket.SHUT_WR)
while server.statistics().active:
    gevent.sleep(A_MOMENT)
server.stop(0)
"""


@pytest.mark.parametrize("style", ["handle", "upcalls"])
def test_a_child_that_was_forked_within_a_harvest_wakes_nobody_elses_greenlet(style):
    """Both processes are in the middle of what one epoll_wait told; the child has nobody there but its own."""
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_A_HARVEST, style], capture_output=True, text=True, timeout=6 * PATIENCE
    )
    assert done.stdout.splitlines() == ["heard in the parent"] * 2, done.stderr
    assert not done.stderr
