"""What the clients of a server may do (``ClientLimits``)."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import gevent
import pytest
from conftest import PATIENCE, read_exactly, wait_until
from served import Echo, Recorder

from greensock import POSTPONE, ClientLimits, Connection, DropReason, Lines, Server, State
from greensock.core.limiter import LEAST_TURN, SLICE, _Sent
from greensock.core.syscalls import has_input
from greensock.limits import client_limits
from greensock.limits.access_lists import MOST_BYTES, AccessLists, BadNetworks, read_networks

#: Some moment of a clock that never goes back.
NOW = 1_000_000.0


def limited(server):
    return dict(server.statistics().limited)


def is_served(sock, data=b"x"):
    """Whether what is sent comes back; False if the connection was closed."""
    try:
        sock.sendall(data)
        return read_exactly(sock, len(data)) == data
    except (ConnectionError, AssertionError):
        return False


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_connections", [0, -1, 1.0, True]),
        ("connection_rate", [0, "x", float("nan"), float("inf"), True]),
        ("connection_burst", [0, None]),
        ("byte_rate", [0, -1.0]),
        ("byte_burst", [0, None]),
        ("message_rate", [0]),
        ("message_burst", [None, True, 1.0]),
        ("min_receive_rate", [-1, None, True]),
        ("receive_grace", [0, None]),
        ("evict_idle", [-1, "x", False]),
        ("allow", ["unix", ("x",)]),
        ("deny", [["10.0.0.0/8"]]),
        ("allow_file", ["", 5]),
        ("deny_file", [b"a"]),
        ("exempt", [("x",)]),
        ("ipv6_prefix", [0, 129, None]),
    ],
)
def test_options_are_checked(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}=.* expected$"):
            ClientLimits(**{name: value})


def test_options_at_their_limits():
    least = ClientLimits(max_connections=1, connection_rate=0.01, connection_burst=1, evict_idle=0, ipv6_prefix=1)
    assert least.min_receive_rate == 0
    assert ClientLimits(ipv6_prefix=128, evict_idle=0.5, allow=(), deny_file=None, byte_rate=None).evict_idle == 0.5


@pytest.mark.parametrize(
    ("limits", "options", "words"),
    [
        (ClientLimits(message_rate=1), {}, "message_rate=1: a framer expected"),
        (ClientLimits(byte_rate=1), {"handle": print}, "byte_rate, .*: upcalls expected"),
        (ClientLimits(min_receive_rate=1), {"handle": print}, "min_receive_rate, .*: upcalls expected"),
        (ClientLimits(evict_idle=0), {"handle": print}, "evict_idle: upcalls expected"),
        (ClientLimits(evict_idle=1), {"max_connections": None}, "evict_idle=1: max_connections"),
        (ClientLimits(deny_file="/no/such/file"), {}, "/no/such/file: No such file or directory"),
        ({"max_connections": 1}, {}, "client_limits=.*: ClientLimits"),
    ],
)
def test_what_a_server_cannot_have(limits, options, words):
    with pytest.raises(ValueError, match=words):
        Server(0, client_limits=limits, **options)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ClientLimits(max_connections=3), "client-connections"),
        (ClientLimits(connection_rate=0.001, connection_burst=3), "connection-rate"),
        (ClientLimits(deny=("::1",)), None),
        (ClientLimits(deny=("127.0.0.0/8",), allow=("127.0.0.1",)), None),
        (ClientLimits(max_connections=1, connection_rate=0.001, exempt=("127.0.0.1",)), None),
    ],
)
def test_who_may_connect(serve, connect, monkeypatch, limits, reason):
    monkeypatch.setattr(client_limits, "MAX_CLIENTS", 1)  # its row is the first of all
    server = serve(Echo, client_limits=limits)
    found = [is_served(connect(server)) for _ in range(6)]
    assert found == ([True] * 3 + [False] * 3 if reason else [True] * 6)
    assert limited(server) == ({reason: 3} if reason else {})
    assert server.statistics().accepted == sum(found)


def test_who_may_not_connect_at_all(serve, connect, tmp_path):
    for listener, network in ((("127.0.0.1", 0), "127.0.0.0/8"), (str(tmp_path / "socket"), "unix")):
        server = serve(Echo, listener, client_limits=ClientLimits(deny=(network,)))
        assert not is_served(connect(server))
        assert limited(server) == {"denied": 1}
        assert not server.names(), "no upcall is made"


def test_connections_that_end_make_room(serve, connect):
    server = serve(Echo, client_limits=ClientLimits(max_connections=2))
    for _ in range(3):
        socks = [connect(server) for _ in range(2)]
        assert all(map(is_served, socks))
        assert not is_served(connect(server))
        for sock in socks:
            sock.close()
        wait_until(lambda: not server.connections_alive)
    # Those of a server that stops, too, and starts anew.
    assert is_served(connect(server))
    server.stop(0)
    server.start()
    assert all(is_served(connect(server)) for _ in range(2))


def test_a_connection_that_cannot_be_served_is_counted_out(serve, connect, caplog):
    fails = [True]

    class Failing(Connection):
        def __init__(self, *arguments):
            if fails:
                raise RuntimeError("on purpose")
            super().__init__(*arguments)

    class Fragile(Echo):
        connection_class = Failing

    limits = [ClientLimits(max_connections=1, exempt=who) for who in ((), ("127.0.0.1",))]
    one, free = (serve(Fragile, client_limits=each) for each in limits)
    for server in (one, free):
        assert [is_served(connect(server)) for _ in range(3)] == [False] * 3
    fails.clear()
    for server in (one, free):
        assert is_served(connect(server))
        assert limited(server) == {}


def test_who_sends_too_much_is_held_back(serve, connect):
    """And not refused: TCP holds it back, others are served meanwhile, and no worker waits."""
    rate, size = 400_000, 300_000
    server = serve(Recorder, client_limits=ClientLimits(byte_rate=rate, byte_burst=100_000))
    sock, other = connect(server), connect(server)
    began = time.monotonic()
    job = gevent.spawn(sock.sendall, b"x" * size)
    wait_until(lambda: limited(server))
    assert server.statistics().workers_busy == 0
    other.sendall(b"y")
    wait_until(lambda: b"y" in server.received())
    wait_until(lambda: server.statistics().bytes_received == size + 1)
    job.get(timeout=PATIENCE)
    assert time.monotonic() - began > (size - 240_000) / rate, "but for the burst, and one turn"
    assert limited(server)["bytes"] > 0
    # Who is held back and leaves is dropped all the same, and so is who is held back when the server stops.
    sock.sendall(b"x" * 200_000)
    wait_until(lambda: limited(server)["bytes"] > 1)
    sock.close()
    server.stop(0)
    assert server.names().count("drop") == 2


def test_messages_a_second(serve, connect):
    server = serve(Echo, framer=Lines(100), client_limits=ClientLimits(message_rate=50, message_burst=10))
    sock = connect(server)
    began = time.monotonic()
    for _ in range(30):
        sock.sendall(b"a\n")
        assert read_exactly(sock, 1) == b"a"
    assert time.monotonic() - began > 15 / 50
    assert limited(server)["messages"] > 0


def test_many_messages_that_come_at_once(serve, connect):
    """Hardly more than the burst are given, though one read has them all; the others come later."""
    limits = ClientLimits(message_rate=200, message_burst=5)
    server = serve(Recorder, framer=Lines(100), client_limits=limits)
    sock = connect(server)
    sock.sendall(b"a\n" * 60)
    began = time.monotonic()
    wait_until(lambda: limited(server))
    assert 5 <= server.statistics().messages <= 5 + 32 + 200 * (time.monotonic() - began)
    wait_until(lambda: server.statistics().messages == 60)
    assert time.monotonic() - began > (60 - 5 - 32) / 200
    assert server.received() == b"a" * 60


def test_who_sends_too_slowly_is_dropped(serve, connect):
    """Byte by byte, inside a message; who rests between two is left alone."""
    limits = ClientLimits(min_receive_rate=1000, receive_grace=0.2)
    server = serve(Echo, framer=Lines(10_000), client_limits=limits)
    slow, resting = connect(server), connect(server)
    resting.sendall(b"a\n")
    pause = 0.02
    with gevent.Timeout(PATIENCE):
        while not server.drops():
            try:
                slow.sendall(b"x")
            except OSError:
                break
            gevent.sleep(pause)
    wait_until(server.drops)
    assert server.drops() == [DropReason.SLOW_SENDER]
    assert limited(server) == {"slow-sender": 1}
    assert read_exactly(resting, 1) == b"a"


def test_who_rests_the_longest_makes_room(serve, connect):
    server = serve(Echo, max_connections=3, client_limits=ClientLimits(evict_idle=0))
    socks = []
    for _ in range(3):
        socks.append(connect(server))
        assert is_served(socks[-1])
    assert is_served(socks[0])
    for number in range(3):
        new = connect(server)
        assert is_served(new)
        assert limited(server) == {"evicted": number + 1}
        socks.append(new)
    assert set(server.drops()) == {DropReason.EVICTED}
    assert server.statistics().accepted == 6
    # Who has not rested for long enough stays, and who comes waits.
    patient = serve(Echo, max_connections=1, client_limits=ClientLimits(evict_idle=60))
    first, second = connect(patient), connect(patient)
    for _ in range(3):
        assert is_served(first)
    assert limited(patient) == {}
    first.close()
    assert is_served(second)
    assert patient._limiter.permits() == 1, "nobody waits now, and so the acceptor waits for who comes"


def test_nobody_makes_room_where_there_is_some(serve, connect):
    """A worker that has more than its share lets the others go first, and is not full."""
    server = serve(Echo, max_connections=3, client_limits=ClientLimits(evict_idle=0))
    first = connect(server)
    assert is_served(first)
    server.accept_permits = lambda: 0
    second = connect(server)
    wait_until(lambda: has_input(server.listeners[0].fileno()))
    assert server._limiter.permits() == 0
    assert is_served(first)
    del server.accept_permits
    server.welcome_connections()
    assert is_served(second)
    assert limited(server) == {}


# -- what it decides, without a server that serves


class Seen:
    """A connection as the limiter sees it: open, idle, and with nothing to send."""

    def __init__(self, since=0.0, received=0, sent=0, held=0):
        self._state, self._idle, self._out = State.OPEN, True, None
        self.bytes_received, self.bytes_sent, self._held = received, sent, held
        self._idle_moved, self._idle_since = received + sent, since
        self.reason = None

    def held_bytes(self):
        return self._held

    def is_at_rest(self):
        return not self._held

    def _abort(self, reason):
        self._state, self.reason = State.CLOSED, reason


def limiter_of(**limits):
    return Server(0, framer=Lines(), max_connections=2, client_limits=ClientLimits(**limits))._limiter


@pytest.mark.parametrize(
    ("looks", "is_dropped"),
    [
        ([(0, 10), (4.9, 10)], False),
        ([(0, 10), (5, 10)], True),
        ([(0, 10), (5, 59)], True),
        ([(0, 10), (5, 60)], False),
        ([(0, 10), (5, 60), (10, 109)], True),
        ([(0, 10), (3, "whole"), (6, 10), (10.9, 10)], False),
        ([(0, 10), (3, "whole"), (6, 10), (11, 10)], True),
        ([(0, 10), (3, "rests"), (6, 10), (10.9, 10)], False),
        ([(0, 10), (5, "busy"), (5, "closed"), (5, "free")], False),
    ],
)
def test_who_is_too_slow(looks, is_dropped):
    """10 bytes a second from 5 seconds on: what came when it was looked at, or what became of it."""
    limiter, conn = limiter_of(min_receive_rate=10, receive_grace=5), Seen(held=1)
    limiter._sent[conn] = sent = _Sent(None, False)
    limiter._on_recv = lambda conn, data: None
    for now, came in looks:
        if came == "whole":
            limiter._count_message(conn, b"")
            continue
        conn._idle, conn._held, sent.is_free = came != "busy", came != "rests", came == "free"
        conn._state = State.CLOSING if came == "closed" else State.OPEN
        conn.bytes_received = came if type(came) is int else conn.bytes_received
        limiter._look_at_part(conn, NOW + now)
    assert conn.reason is (DropReason.SLOW_SENDER if is_dropped else None)
    assert limiter.limited == ({"slow-sender": 1} if is_dropped else {})


def test_a_part_that_is_put_back_is_no_message():
    limiter, conn = limiter_of(min_receive_rate=10, receive_grace=5), Seen(held=1)
    limiter._sent[conn] = _Sent(None, False)
    limiter._on_recv = lambda conn, data: POSTPONE
    limiter._look_at_part(conn, NOW)
    assert limiter._count_message(conn, b"") is POSTPONE
    limiter._look_at_part(conn, NOW + 5)
    assert conn.reason is DropReason.SLOW_SENDER


def test_who_makes_room(monkeypatch):
    monkeypatch.setattr("greensock.core.limiter.monotonic", lambda: NOW + 100)
    limiter = limiter_of(evict_idle=60)
    old, older, oldest, young, just = (Seen(NOW + since, received=5) for since in (20, 10, 0, 41, 40))
    busy, partial, sending, gone = (Seen(NOW) for _ in range(4))
    busy._idle, partial._held, sending._out, gone._state = False, 1, [b"x"], State.CLOSING
    for conn in (old, busy, older, partial, oldest, sending, young, gone, just):
        limiter._sent[conn] = _Sent(None, False)
    assert limiter.make_room()
    assert oldest.reason is DropReason.EVICTED
    older.bytes_sent += 1  # who was found to have rested has done something since
    old._idle = False
    assert limiter.make_room()
    assert just.reason is DropReason.EVICTED
    assert not limiter.make_room(), "it has not rested for long enough"
    old._idle = True
    assert limiter.make_room()
    assert old.reason is DropReason.EVICTED
    assert not limiter.make_room()
    assert limiter.limited == {"evicted": 3}
    assert not limiter_of(max_connections=1).make_room()


def test_all_are_looked_at_in_slices():
    """And one that ends meanwhile does no harm."""
    limiter = limiter_of(min_receive_rate=10, receive_grace=5, evict_idle=60)
    calls, closed = [], []
    timer = SimpleNamespace(stop=lambda: closed.append("stop"), close=lambda: closed.append("close"))
    limiter._server = SimpleNamespace(_poller=SimpleNamespace(call_soon=calls.append))
    conns = [Seen(received=number, held=number % 2) for number in range(2 * SLICE + 3)]
    for conn in conns:
        limiter._sent[conn] = _Sent(None, False)
        conn._idle_moved = -1
    limiter._sweep_timer = timer
    limiter._begin_sweep()
    assert closed == ["stop", "close"]
    slices = 0
    while calls:
        calls.pop()()
        slices += 1
        limiter._sent.pop(conns[-1], None)
        looked_at = [bool(sent.part_since or conn._idle_moved >= 0) for conn, sent in limiter._sent.items()]
        assert sum(looked_at) == min(slices * SLICE, len(conns) - 1)
    assert slices == 3
    assert [bool(sent.part_since) for sent in limiter._sent.values()] == [bool(conn._held) for conn in conns[:-1]]
    limiter._sweep()  # which had been ordered before the server stopped
    assert not calls


@pytest.mark.parametrize(
    ("rate", "burst", "most"), [(100, 1 << 20, LEAST_TURN), (40_000, 1 << 20, 10_000), (1e9, 5000, 5000)]
)
def test_what_a_turn_may_read(serve, rate, burst, most):
    server = serve(Echo, client_limits=ClientLimits(byte_rate=rate, byte_burst=burst))
    assert (server.turn_budget, server.recv_size) == (most, most)


def test_what_is_owed(monkeypatch):
    """Bytes, messages, and who has none of these limits; the longer of both holds."""
    monkeypatch.setattr("greensock.core.limiter.monotonic", lambda: NOW)
    limits = {"byte_rate": 100, "byte_burst": 50, "message_rate": 10, "message_burst": 2, "exempt": ("unix",)}
    limiter, conn, free = limiter_of(**limits), Seen(), Seen()
    sent = limiter._sent[conn] = _Sent(None, False)
    limiter._sent[free] = _Sent(None, True)
    passed, limiter._ready, limiter._is_started = [], lambda conn: passed.append(conn), True
    limiter._on_recv = lambda conn, data: data
    limiter._timer = limiter  # none is needed
    server = limiter._server
    server._draining, server._poller = False, SimpleNamespace(until=5.0)
    try:
        for each in (conn, free, Seen()):
            each.bytes_received = 49
            limiter.ready(each)
        assert len(passed) == 3
        assert not limiter.limited
        for each in (conn, free):
            each.bytes_received += 100
            limiter.ready(each)
        assert passed[3:] == [free]
        assert list(limiter._held) == [conn]
        assert limiter.limited == {"bytes": 1}
        assert sent.resume_at == pytest.approx(NOW + 0.99, abs=1e-6)
        limiter._held.clear()
        limiter.ready(conn)
        assert limiter.limited == {"bytes": 1}, "it is the same time that it is held back"
        assert limiter._count_message(free, b"x") == b"x"
        assert server._poller.until == 5.0
        for _ in range(20):
            assert limiter._count_message(conn, b"x") == limiter._count_message(free, b"x") == b"x"
        assert limiter.limited == {"bytes": 1}
        assert sent.resume_at == pytest.approx(NOW + 1.8, abs=1e-6), "18 messages"
        assert server._poller.until == 0.0, "the turn ends"
        server._draining = True  # nobody is held back then
        limiter._held.clear()
        limiter.ready(conn)
        assert passed[4:] == [conn]
    finally:
        limiter._held.clear()
        server._draining, limiter._timer, limiter._is_started = False, None, False


def test_who_is_let_go(monkeypatch):
    """Whose time has come, or who has ended; all, when the server drains. The timer ends with the last."""
    now, passed, done = [NOW], [], []
    monkeypatch.setattr("greensock.core.limiter.monotonic", lambda: now[0])
    limiter, (one, two, three, ended) = limiter_of(byte_rate=1), (Seen() for _ in range(4))
    limiter._ready = passed.append
    limiter._timer = SimpleNamespace(stop=lambda: None, close=lambda: done.append("timer"))
    limiter._server = SimpleNamespace(draining=False, _poller=SimpleNamespace(schedule=lambda: done.append("poller")))
    for conn, seconds in ((one, 1), (two, 2), (three, 3), (ended, 4)):
        limiter._held[conn] = _Sent(None, False)
        limiter._held[conn].resume_at = NOW + seconds
    for moment, who in ((0, []), (1, [one]), (1.5, [ended]), (1.9, []), (2, [two])):
        now[0], ended._state = NOW + moment, State.CLOSING if moment == 1.5 else State.OPEN
        passed.clear()
        done.clear()
        limiter._look_at_held()
        assert passed == who
        assert done == ["poller"] * len(who)
    limiter._server.draining = True
    limiter._look_at_held()
    assert passed == [two, three]
    assert done == ["poller", "poller", "timer"]
    assert limiter._timer is None


def test_who_is_the_same_client():
    limiter = limiter_of(connection_rate=1, ipv6_prefix=48, exempt=("192.0.2.9", "2001:db8:9::/48"))

    def names(*clients):
        seats = [limiter._make_seat(client) for client in clients]
        return [seat and seat.name.split()[1] for seat in seats]

    assert names("192.0.2.1", "2001:db8:1:2::3", "2001:db8:1:ff::") == ["192.0.2.1", *["2001:db8:1::/48"] * 2]
    assert names("", "192.0.2.9", "2001:db8:9::1") == [None] * 3
    assert limiter._make_seat("192.0.2.1").name.startswith("greensock.core.server.Server ")
    assert limiter_of(min_receive_rate=1)._make_seat("192.0.2.1") is None, "nothing is counted"


# -- lists in files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.0/8\n10.0.0.1/8\n", "line 2: network '10.0.0.1/8'"),
        ("# a comment\n\n  ::1  # us\nhello\n", "line 4: network 'hello'"),
        ("\xff\xfe", "line 1: network"),
        ("#" * (MOST_BYTES + 1), f"at most {MOST_BYTES} bytes expected"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_not_right(tmp_path, text, words):
    path = tmp_path / "networks"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadNetworks, match=words):
        read_networks(str(path))


def test_files_are_read_anew_and_a_broken_one_changes_nothing(tmp_path, caplog):
    path = tmp_path / "networks"
    path.write_text("10.0.0.0/8 # all of them\n2001:db8::/32\n")
    lists = AccessLists(deny=("192.0.2.1",), deny_file=str(path))

    def denied(*clients):
        return [lists.denies(each) for each in clients]

    def rewritten(text):
        new = tmp_path / "new"
        new.write_text(text)
        os.replace(new, path)
        lists.look()

    assert denied("10.1.2.3", "2001:db8::5", "192.0.2.1", "192.0.2.2") == [True, True, True, False]
    lists.look()
    assert not caplog.records, "nothing has changed"
    rewritten("192.0.2.2\n")
    assert denied("10.1.2.3", "192.0.2.1", "192.0.2.2") == [False, True, True]
    rewritten("192.0.2.3\nwhat\n")
    lists.look()
    path.unlink()
    lists.look()
    assert denied("192.0.2.2", "192.0.2.3") == [True, False]
    rewritten("")
    assert denied("192.0.2.1", "192.0.2.2") == [True, False]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "ERROR", "WARNING"]
    assert f"{path}: line 2: network 'what'" in caplog.text


def test_a_list_that_is_broken_when_a_worker_begins(tmp_path, caplog):
    """It goes on with what was read before, in the process that it was forked from."""
    path = tmp_path / "networks"
    path.write_bytes(b"#" * (MOST_BYTES - 11) + b"\n192.0.2.1\n")
    assert len(read_networks(str(path))) == 1
    path.write_text("what\n")
    lists = AccessLists(deny_file=str(path))
    assert lists.denies("192.0.2.1")
    lists.look()
    assert len(caplog.records) == 1, "it is said once"
    with pytest.raises(BadNetworks):
        AccessLists(allow_file=str(tmp_path / "another"))


def test_who_has_files_looks_at_them_until_all_have_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("greensock.limits.access_lists.LOOK_EVERY", 0.001)
    path = tmp_path / "networks"
    path.touch()
    without, lists = AccessLists(deny=("unix",)), AccessLists(allow_file=str(path))
    assert (without.is_empty, lists.is_empty, AccessLists(deny_file=str(path)).is_empty) == (False, True, False)
    for each in (without, lists):
        each.start()
        each.start()
    assert without._job is None
    job = lists._job
    lists.stop()
    looked = []
    monkeypatch.setattr(lists, "look", lambda read: looked.append(read(str(path))))
    wait_until(lambda: len(looked) > 1)
    assert not job.dead
    lists.stop()
    wait_until(lambda: job.dead)
    lists.stop()
    lists.start()
    assert lists._job is not job
    lists.stop()


def test_files_are_looked_at_while_a_server_serves(serve, connect, tmp_path, monkeypatch):
    monkeypatch.setattr("greensock.limits.access_lists.LOOK_EVERY", 0.01)
    path = tmp_path / "networks"
    path.write_text("")
    server = serve(Echo, client_limits=ClientLimits(deny_file=str(path)))
    assert is_served(connect(server))
    path.write_text("127.0.0.1\n")
    wait_until(lambda: not is_served(connect(server)))
