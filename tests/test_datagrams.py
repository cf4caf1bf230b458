"""The datagram server and ``connect_datagram``, over UDP of both families and Unix sockets."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import gevent
import pytest
from conftest import PATIENCE, blocked, descriptors, wait_until
from gevent.event import Event

from greensock import (
    ConnectFailed,
    ConnectionBusy,
    ConnectionClosed,
    DatagramServer,
    DatagramStatistics,
    MessageTooLong,
    OperationTimeout,
    Undeliverable,
    connect_datagram,
)
from greensock.core import datagram_calls, datagrams
from greensock.core.poller import compiled, get_poller

ROOT = Path(__file__).resolve().parent.parent
#: Seconds in which something does not happen.
MOMENT = 0.05


class Echo(DatagramServer):
    """Writes down what comes and sends it back; "wait" waits for ``gate``, "fail" fails."""

    def __init__(self, *args, **options):
        self.came, self.troubles, self.gate = [], [], Event()
        options.setdefault("stop_timeout", 0.2)
        super().__init__(*args, **options)

    def datagram_recv(self, data, address):
        self.came.append((data, address))
        if data == b"wait":
            self.gate.wait()
        if data == b"fail":
            raise LookupError("on purpose")
        if address is not None:
            self.send_to(data, address)

    def datagram_error(self, exc, address):
        self.troubles.append((exc, address))


KINDS = ("127.0.0.1:0", "[::1]:0", "unix", "abstract")


def listener(kind, tmp_path):
    return {"unix": str(tmp_path / "s"), "abstract": f"unix:\0greensock-{os.getpid()}"}.get(kind, kind)


def to(server, **options):
    """Connect to a server."""
    address = server.address
    if isinstance(address, bytes):
        address = "unix:" + os.fsdecode(address)
    return connect_datagram(address, **{"recv_timeout": PATIENCE, **options})


@pytest.fixture(params=KINDS)
def echo(request, tmp_path):
    with Echo(listener(request.param, tmp_path), recv_size=3000) as server:
        yield server


# -- of every kind


def test_what_is_sent_comes_whole_and_from_whom(echo):
    sizes = [0, 1, 1199, 3000]
    with to(echo) as conn:
        for size in sizes:
            assert conn.send(bytes([size % 251]) * size) == size
            assert conn.recv() == bytes([size % 251]) * size
        assert {address for _, address in echo.came} == {conn.local_address}
        assert conn.send([b"a", b"bc"]) == 3
        assert conn.recv() == b"abc"
        found, mine = echo.statistics(), conn.statistics()
        assert (found.received, found.sent, found.bytes_received) == (5, 5, sum(sizes) + 3)
        assert (mine.received, mine.sent, mine.bytes_sent) == (5, 5, sum(sizes) + 3)
    assert conn.closed
    assert conn.local_address is None
    assert found.dropped_by_kernel == 0


def test_one_that_is_too_long_is_told_and_not_cut(echo):
    with to(echo, recv_size=3001) as conn:
        conn.send(b"x" * 3001)
        conn.send(b"y")
        assert conn.recv() == b"y"
        ((error, address),) = echo.troubles
        assert isinstance(error, MessageTooLong)
        assert (error.limit, error.value, address) == ("recv_size", 3000, conn.local_address)
        echo.send_to(b"z" * 3002, conn.local_address)
        with pytest.raises(MessageTooLong, match="recv_size=3001"):
            conn.recv()
    assert echo.statistics().too_long == 1
    assert conn.statistics().too_long == 1


def test_an_upcall_that_blocks_holds_up_no_other(echo):
    with to(echo) as conn:
        for _ in range(3):
            conn.send(b"wait")
        conn.send(b"x")
        assert conn.recv() == b"x"
        found = echo.statistics()
        assert found.workers_busy == found.active == 3
        echo.gate.set()
        assert [conn.recv() for _ in range(3)] == [b"wait"] * 3
        wait_until(lambda: not echo.statistics().workers_busy)
    assert get_poller().endpoints() == [echo._endpoint]  # an idle server owns nothing else


def test_many_in_one_send(echo):
    """Cut by the kernel where it can, by us where it can't."""
    with to(echo) as conn:
        data = os.urandom(70_500)
        assert conn.send(data, segment_size=1000) == len(data)
        assert b"".join(conn.recv() for _ in range(71)) == data
        assert [len(came) for came, _ in echo.came] == [1000] * 70 + [500]
        assert conn.statistics().sent == 71
        echo.came.clear()
        assert echo.send_to(memoryview(data)[:2500], conn.local_address, segment_size=3000) == 2500
        assert conn.recv() == data[:2500]
    assert echo.statistics().sent == 72


def test_what_upcalls_raise_is_logged_counted_and_told(echo, caplog):
    with to(echo) as conn, caplog.at_level(logging.ERROR):
        conn.send(b"fail")
        conn.send(b"x")
        assert conn.recv() == b"x"
        ((error, address),) = echo.troubles
    assert isinstance(error, LookupError)
    assert address == echo.came[0][1]
    (line,) = caplog.records
    assert line.name == "greensock.server"
    assert line.exc_info[1] is error
    assert echo.statistics().errors == 1


def test_a_unix_datagram_may_be_longer_than_any_of_udp(tmp_path):
    with Echo(str(tmp_path / "s"), recv_size=150_000) as server, to(server, recv_size=200_000) as conn:
        for size in (150_000, 100_000):
            data = os.urandom(size)
            conn.send(data)
            assert conn.recv() == data
        conn.send(bytes(150_001))
        wait_until(lambda: server.troubles)
        with pytest.raises(ValueError, match="data of 10000000 bytes: no more than the socket's send buffer"):
            conn.send(bytes(10_000_000))


def test_a_unix_peer_without_a_name_is_told_from_the_last_one(tmp_path):
    """Of its address the kernel writes nothing: what was there before is none."""
    nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with Echo("127.0.0.1:0") as other, Echo(str(tmp_path / "s")) as server, to(other) as conn, nameless:
        conn.send(b"a")
        conn.recv()
        nameless.sendto(b"b", server.address)
        wait_until(lambda: server.came)
        assert server.came == [(b"b", None)]


# -- in turns, in bounds


@pytest.mark.parametrize("options", [{}, {"coalesce": False}, {"recv_size": 100_000}])
def test_every_datagram_of_a_burst_comes_once(options):
    """Cut by the sender's kernel and put together by ours, or not; more than one read can take."""
    with Echo("127.0.0.1:0", recv_buffer=1 << 20, **options) as server, to(server) as conn:
        sent = [b"%04d" % number * 25 for number in range(900)]
        for at in range(0, 900, 60):
            conn.send(b"".join(sent[at : at + 60]), segment_size=100)
            assert [conn.recv() for _ in range(60)] == sent[at : at + 60]
        assert [data for data, _ in server.came] == sent


@pytest.mark.parametrize("options", [{}, {"coalesce": False}])
def test_of_what_came_together_only_what_is_too_long_is_left_out(options):
    with Echo("127.0.0.1:0", recv_size=99, **options) as server, to(server) as conn:
        conn.send(bytes(1050), segment_size=100)
        conn.send(bytes(1080), segment_size=99)
        assert [len(conn.recv()) for _ in range(12)] == [50] + [99] * 10 + [90]
        assert server.statistics().too_long == len(server.troubles) == 10


def test_a_flood_leaves_others_their_turn():
    """Upcalls take longer than a turn may; a timer is not late by all of them."""
    turns = []

    class Slow(DatagramServer):
        def datagram_recv(self, data, address):
            turns.append(pauses[0])
            end = time.monotonic() + 0.003
            while time.monotonic() < end:
                pass

    pauses = [0]
    with Slow("127.0.0.1:0") as server, to(server) as conn:
        conn.send(b"x" * 60, segment_size=1)
        while len(turns) < 60:
            pauses[0] += 1
            gevent.sleep(0)
    assert len(set(turns)) > 10


def test_while_all_workers_are_blocked_the_kernel_holds_and_drops_what_comes():
    with Echo("127.0.0.1:0", max_workers=2, recv_buffer=1) as server, to(server) as conn:
        conn.send(b"wait")
        conn.send(b"wait")
        wait_until(lambda: server.statistics().workers_busy == 2)
        for number in range(1000):
            conn.send(b"%d" % number)
        dropped = server.statistics().dropped_by_kernel
        assert 0 < dropped < 1000
        server.gate.set()
        assert server.statistics().workers == 2
        wait_until(lambda: len(server.came) == 1002 - dropped)
    assert server.statistics().dropped_by_kernel == dropped


def test_context_variables_are_fresh_for_each_datagram():
    from contextvars import ContextVar

    seen, mark = [], ContextVar("mark", default=0)

    class Marks(DatagramServer):
        def datagram_recv(self, data, address):
            seen.append(mark.get())
            mark.set(1)

    with Marks("127.0.0.1:0") as server, to(server) as conn:
        conn.send(b"abc", segment_size=1)
        wait_until(lambda: len(seen) == 3)
    assert seen == [0, 0, 0]


# -- sending where there is no room: a Unix socket whose reader does not read


@pytest.fixture
def deaf(tmp_path):
    """A socket that nobody reads, and how many datagrams it holds."""
    path = str(tmp_path / "deaf")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(PATIENCE)
        yield path, sock


@pytest.mark.parametrize("style", ["server", "connection"])
def test_a_send_waits_for_room(deaf, style, tmp_path):
    path, sock = deaf
    with Echo(str(tmp_path / "s")) as server, connect_datagram(path) as conn:

        def send(data, **options):
            return server.send_to(data, path, **options) if style == "server" else conn.send(data, **options)

        held = 0

        def fill():
            nonlocal held
            while True:
                send(b"%d" % held, timeout=MOMENT)
                held += 1

        with pytest.raises(OperationTimeout, match=r"no room to send within 0\.0\d* s") as caught:
            fill()
        assert (caught.value.operation, caught.value.seconds) == ("send", MOMENT)
        job = blocked(gevent.spawn(send, b"last"))
        assert sock.recv(9) == b"0"
        assert job.get(timeout=PATIENCE) == 4
        assert [sock.recv(9) for _ in range(held)][-1] == b"last"
        # Cut by us, as the kernel cuts no Unix datagrams; all of it waits for room.
        job = gevent.spawn(send, b"ab" * 3 * held, segment_size=2)
        assert [sock.recv(9) for _ in range(3 * held)] == [b"ab"] * 3 * held
        assert job.get(timeout=PATIENCE) == 6 * held


@pytest.mark.parametrize("style", ["server", "connection"])
def test_send_nowait_keeps_so_much_and_drops_the_rest(deaf, style, tmp_path):
    path, sock = deaf
    with Echo(str(tmp_path / "s"), max_send_queue=640) as server, connect_datagram(path, max_send_queue=640) as conn:
        sender = server if style == "server" else conn
        arguments = (path,) if style == "server" else ()
        sent = 0
        while sender.send_nowait(b"%d" % sent, *arguments):
            sent += 1
        assert sender.statistics().bytes_queued == 640  # ten of them, each counts for 64
        assert sender.statistics().dropped_unsent == 1
        assert [sock.recv(9) for _ in range(sent)] == [b"%d" % number for number in range(sent)]
        wait_until(lambda: not sender.statistics().bytes_queued)
        assert sender.statistics().sent == sent
        assert sender.send_nowait([b"a", b"b"], *arguments)
        assert sock.recv(9) == b"ab"


def test_what_is_kept_for_too_long_is_dropped(deaf, tmp_path):
    path, _ = deaf
    with Echo(str(tmp_path / "s"), send_timeout=MOMENT) as server:
        while not server.statistics().bytes_queued:
            assert server.send_nowait(b"x", path)
        wait_until(lambda: not server.statistics().bytes_queued)
        assert server.statistics().dropped_unsent == 1
        with pytest.raises(OperationTimeout):
            server.send_to(b"x", path)


def test_without_room_in_our_own_buffer_a_send_waits_for_an_event(monkeypatch):
    """UDP over the loopback is never full: what the kernel would say of another network is said here in its place."""
    if compiled:
        pytest.skip("compiled it is a call of C")
    full = [3]

    def send(*arguments):
        if full[0]:
            full[0] -= 1
            raise BlockingIOError(errno.EAGAIN, "full")
        return datagram_calls.send_datagram(*arguments)

    monkeypatch.setattr(datagrams, "send_datagram", send)
    with Echo("127.0.0.1:0") as server, to(server) as conn:
        assert conn.send(b"a", timeout=PATIENCE) == 1
        full[0] = 1
        assert conn.send_nowait(b"b")
        assert conn.send(b"c", timeout=PATIENCE) == 1  # behind what waits
        assert [conn.recv() for _ in range(3)] == [b"a", b"b", b"c"]


# -- what does not arrive


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_icmp_says_is_told_to_whom_it_concerns(host):
    with Echo((host, 0)) as server, Echo((host, 0)) as gone:
        nobody = gone.address
        gone.stop()
        with to(server) as other, connect_datagram(nobody[:2], recv_timeout=PATIENCE) as conn:
            # The server's upcall gets it with the address, and no send to others fails for it.
            for number in range(5):
                assert server.send_to(b"x", nobody) == 1
                assert server.send_to(b"%d" % number, other.local_address) == 1
                assert other.recv() == b"%d" % number
            wait_until(lambda: len(server.troubles) == 5)
            for error, address in server.troubles:
                assert isinstance(error, Undeliverable)
                assert isinstance(error.__cause__, ConnectionRefusedError)
                assert error.address == address == nobody
            assert server.statistics().undeliverable == 5
            assert server.statistics().errors == 0
            # A connected socket raises it, and stays usable.
            conn.send(b"x")
            with pytest.raises(Undeliverable, match="refused") as caught:
                conn.recv()
            assert caught.value.address[:2] == nobody[:2]
            conn.send(b"x")
            with pytest.raises(Undeliverable):
                wait_until(lambda: conn.send(b"y") and False)


def test_an_upcall_whose_answer_does_not_arrive_is_no_failure_of_the_program(tmp_path, caplog):
    with Echo(str(tmp_path / "s")) as server:
        path = tmp_path / "c"
        with connect_datagram(server.address, local_address=str(path)) as conn:
            blocked(gevent.spawn(conn.recv, timeout=PATIENCE))
            conn.send(b"wait")
            wait_until(lambda: server.came)
        assert not path.exists()
        server.gate.set()
        ((error, address),) = wait_until(lambda: server.troubles)
        assert isinstance(error, Undeliverable)
        assert address == str(path)
        assert not caplog.records
        with pytest.raises(ConnectFailed, match="No such file"):
            connect_datagram(str(path))


@pytest.mark.parametrize(
    ("address", "data", "said"),
    [
        (("localhost", 5), b"", r"address=\('localhost', 5\): \(host, port\) expected, the host in numbers"),
        (("127.0.0.1", 65536), b"", "address="),
        (("127.0.0.1", -1), b"", "address="),
        (("127.0.0.1",), b"", "address="),
        ("127.0.0.1:5", b"", "address="),
        (("::1", 5), b"", "address="),
        ((5, 5), b"", "address="),
        (("127.0.0.1", 5), bytes(65508), "data of 65508 bytes: no more than 65507 bytes in a datagram"),
    ],
)
def test_a_send_that_cannot_be(address, data, said):
    with Echo("127.0.0.1:0") as server:
        with pytest.raises(ValueError, match=said):
            server.send_to(data, address)
        with pytest.raises(TypeError):
            server.send_to("text", ("127.0.0.1", 5))
        with pytest.raises(Undeliverable):  # a peer whose datagram said so
            server.send_to(b"x", ("127.0.0.1", 0))
        with pytest.raises(ValueError, match="segment_size=0: a whole number"):
            server.send_to(b"x", ("127.0.0.1", 5), segment_size=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recv_size": 0}, "recv_size=0: a whole number from 1 to 1048576 expected"),
        ({"recv_size": 1 << 21}, "recv_size=2097152: a whole number"),
        ({"recv_buffer": -1}, "recv_buffer=-1: a whole number of at least 1, or None expected"),
        ({"max_workers": 0}, "max_workers=0"),
        ({"send_timeout": 0}, "send_timeout=0: seconds, more than 0, or None expected"),
        ({"coalesce": 1}, "coalesce=1: True or False expected"),
        ({"unix_mode": "rw"}, "unix_mode='rw'"),
        ({"datagram_recv": 5}, "datagram_recv=5: a function expected"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        DatagramServer("127.0.0.1:0", **options)
    with pytest.raises(TypeError, match="unknown option 'backlog': max_workers, recv_size"):
        DatagramServer("127.0.0.1:0", backlog=5)
    with socket.socket() as sock, pytest.raises(ValueError, match="a datagram socket expected"):
        DatagramServer(sock)


def test_options_of_a_connection_are_checked():
    for options, said in (
        ({"recv_timeout": 0}, "recv_timeout=0: seconds"),
        ({"recv_size": 0}, "recv_size=0"),
        ({"local_address": "127.0.0.1"}, "local_address='127.0.0.1': .host, port. expected, the host an IPv4 address"),
        ({"local_address": ("::1", 0)}, "local_address="),
    ):
        with pytest.raises(ValueError, match=said):
            connect_datagram("127.0.0.1:5", **options)
    for address in ("127.0.0.1:0", 5, ("", 5), ("127.0.0.1", 70000)):
        with pytest.raises(ValueError, match="address="):
            connect_datagram(address)
    with pytest.raises(ConnectFailed, match="cannot be resolved"):
        connect_datagram("no.such.name.invalid:5", timeout=PATIENCE)


# -- a connection


def test_a_receive_waits_and_is_left_in_each_way():
    with Echo("127.0.0.1:0") as server:
        conn = to(server, local_address=("127.0.0.1", 0))
        assert (conn.address, conn.local_address[0]) == (server.address, "127.0.0.1")
        with pytest.raises(OperationTimeout, match=r"no datagram came within 0\.0\d* s") as caught:
            conn.recv(timeout=MOMENT)
        assert (caught.value.operation, caught.value.connection) == ("recv", conn)
        job = blocked(gevent.spawn(conn.recv, timeout=None))
        with pytest.raises(ConnectionBusy):
            conn.recv()
        job.kill()
        with gevent.Timeout(MOMENT, False):
            conn.recv(timeout=None)
        with pytest.raises(OperationTimeout):  # an earlier deadline than the one that was armed
            conn.recv(timeout=MOMENT)
        conn.send(b"x")
        assert conn.recv() == b"x"
        job = blocked(gevent.spawn(conn.recv))
        conn.close()
        conn.close()
        with pytest.raises(ConnectionClosed):
            job.get(timeout=PATIENCE)
        for call in (conn.recv, lambda: conn.send(b"x"), lambda: conn.send_nowait(b"x")):
            with pytest.raises(ConnectionClosed):
                call()
        assert repr(conn).endswith("closed>")


def test_only_the_peer_is_heard():
    with Echo("127.0.0.1:0") as server, to(server) as conn:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"forged", conn.local_address)
        conn.send(b"x")
        assert conn.recv() == b"x"


# -- a server's life


def test_functions_in_place_of_a_class_and_a_socket_of_ones_own():
    came = []
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    server = DatagramServer(sock, datagram_recv=lambda data, address: came.append((data, address)))
    with server, connect_datagram(("127.0.0.1", server.server_port)) as conn:
        assert server.socket is sock
        assert server.family == socket.AF_INET6
        conn.send(b"over IPv4")
        wait_until(lambda: came)
    assert came[0][0] == b"over IPv4"
    assert came[0][1][0] == "::ffff:127.0.0.1"
    assert sock.fileno() == -1
    assert server.socket is None


def test_it_stops_and_starts_again_and_the_file_goes(tmp_path):
    path = tmp_path / "s"
    server = Echo(str(path), unix_mode=0o640)
    assert server.statistics() == DatagramStatistics(*[0] * 13)
    with pytest.raises(ValueError, match="not started"):
        server.send_to(b"x", "y")
    for _ in range(2):
        with server, to(server) as conn:
            assert path.stat().st_mode & 0o777 == 0o640
            with pytest.raises(OSError, match="in use") as caught:
                DatagramServer(str(path)).start()
            assert caught.value.errno == errno.EADDRINUSE
            conn.send(b"x")
            assert conn.recv() == b"x"
            assert "started" in repr(server)
        assert not path.exists()
        with pytest.raises(ConnectionClosed):
            server.send_to(b"x", "y")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(path))
    with server:
        assert server.started
    assert not server.started


def test_a_drain_takes_what_has_come_and_lets_upcalls_end():
    with Echo("127.0.0.1:0", stop_timeout=PATIENCE) as server, to(server) as conn:
        conn.send(b"wait")
        wait_until(lambda: server.came)
        for number in range(100):
            conn.send(b"%d" % number)
        job = gevent.spawn(server.stop)
        assert sorted(conn.recv() for _ in range(100)) == sorted(b"%d" % number for number in range(100))
        wait_until(lambda: server._endpoint._reads_until == 0.0)
        conn.send(b"late")
        with pytest.raises(OperationTimeout):
            conn.recv(timeout=MOMENT)
        assert server.draining
        server.gate.set()
        assert conn.recv() == b"wait"
        job.get(timeout=PATIENCE)
    assert len(server.came) == 101


def test_an_abort_ends_upcalls_and_one_of_them_may_order_it():
    ended = []

    class Ordered(Echo):
        def datagram_recv(self, data, address):
            if data == b"stop":
                self.stop(0)
                ended.append("ordered")
                return
            try:
                self.gate.wait()
            finally:
                ended.append("killed")

    with Ordered("127.0.0.1:0") as server, to(server) as conn:
        conn.send(b"a")
        conn.send(b"b")
        wait_until(lambda: server.statistics().workers_busy == 2)
        conn.send(b"stop")
        wait_until(lambda: not server.started)
    wait_until(lambda: len(ended) == 3)
    assert server.statistics().errors == 0
    assert server.troubles == []


def test_from_another_thread():
    with Echo("127.0.0.1:0") as server:
        said = []
        thread = threading.Thread(target=server.call_soon_threadsafe, args=(said.append, 5))
        thread.start()
        thread.join()
        wait_until(lambda: said)
    with pytest.raises(RuntimeError, match="not started"):
        server.call_soon_threadsafe(said.append, 6)


@pytest.mark.parametrize(("host", "group"), [("127.0.0.1", "239.255.77.7"), ("::1", "ff01::7777")])
def test_a_multicast_group(host, group):
    """The loopback has a route to groups of IPv4 only."""
    interface = "127.0.0.1" if host == "127.0.0.1" else "lo"
    with Echo(("0.0.0.0" if host == "127.0.0.1" else "::", 0)) as server:
        server.join_group(group, interface)
        with pytest.raises(OSError, match="in use"):
            server.join_group(group, interface)
        if host == "127.0.0.1":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
                sock.sendto(b"to all", (group, server.server_port))
            wait_until(lambda: server.came)
        server.leave_group(group, interface)
        for wrong in ((host, None), ("x", None), (group, "no-such-interface")):
            with pytest.raises(ValueError, match=r"group=|interface="):
                server.join_group(*wrong)
    with pytest.raises(ValueError, match="not started"):
        server.join_group(group)


def test_several_on_one_port_and_broadcast():
    with Echo("127.0.0.1:0", reuse_port=True, allow_broadcast=True) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
        with Echo(server.address, reuse_port=True) as other:
            assert other.address == server.address
        with pytest.raises(OSError, match="in use"):
            Echo(server.address).start()


PROGRAM = """if True:
    from gevent import monkey; monkey.patch_all()
    import os, sys
    from greensock import DatagramServer
    def recv(data, address):
        if data == b"fork":
            if os.fork() == 0:
                server.send_nowait  # the child's copy is no server
                sys.stdout.write(f"{server.started}\\n"); sys.stdout.flush()
                os._exit(0)
            os.wait()
        server.send_to(data, address)
    server = DatagramServer("127.0.0.1:0", datagram_recv=recv)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()
    print("ended", server.statistics().received, flush=True)
"""


def test_signals_end_it_and_a_fork_leaves_it_to_the_parent():
    with subprocess.Popen([sys.executable, "-W", "error", "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            port = int(process.stdout.readline())
            with connect_datagram(("127.0.0.1", port), recv_timeout=PATIENCE) as conn:
                for data in (b"x", b"fork", b"y"):
                    conn.send(data)
                    assert conn.recv() == data
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == b"False\nended 3\n"
            assert process.wait() == 0
        finally:
            process.kill()


def test_descriptors_that_are_passed_are_not_kept(tmp_path):
    with Echo(str(tmp_path / "s")) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(server.address)
        before = len(descriptors())
        for _ in range(5):
            socket.send_fds(sock, [b"x"], [0])
        wait_until(lambda: len(server.came) == 5)
        assert len(descriptors()) == before
        assert server.came[0] == (b"x", None)  # a socket without a name


def test_the_programs_of_the_document_run():
    shout, client = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "datagrams.md").read_text(), re.DOTALL)
    start = (
        'server = Shout("127.0.0.1:0"); server.start(); print(server.server_port, flush=True); server.serve_forever()'
    )
    shout = shout.replace('Shout(("127.0.0.1", 5000)).serve_forever()', start)
    with subprocess.Popen([sys.executable, "-c", shout], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip()
            program = client.replace("5000", port)
            done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
            assert (done.stdout, done.stderr) == ("b'HELLO'\n", "")
            with connect_datagram(("127.0.0.1", int(port)), recv_timeout=PATIENCE) as conn:
                conn.send(bytes(1001))
                assert conn.recv() == b"1,000 bytes at the most"
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "did not arrive: Connection refused" in done.stdout
