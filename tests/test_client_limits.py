"""What the clients of a server may do (``ClientLimits``)."""

from __future__ import annotations

import os
import time

import gevent
import pytest
from conftest import PATIENCE, read_exactly, wait_until
from served import Echo, Recorder

from greensock import ClientLimits, Connection, DropReason, Lines, Server
from greensock.limits.access_lists import MOST_BYTES, AccessLists, BadNetworks, read_networks


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
        ("connection_rate", [0, "x", float("nan")]),
        ("connection_burst", [0, None]),
        ("byte_rate", [0, -1.0]),
        ("byte_burst", [0, None]),
        ("message_rate", [0]),
        ("message_burst", [None]),
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


@pytest.mark.parametrize(
    ("limits", "options", "words"),
    [
        (ClientLimits(message_rate=1), {}, "message_rate=1: a framer expected"),
        (ClientLimits(byte_rate=1), {"handle": print}, "byte_rate, message_rate: upcalls expected"),
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
def test_who_may_connect(serve, connect, limits, reason):
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

    server = serve(Fragile, client_limits=ClientLimits(max_connections=1))
    assert [is_served(connect(server)) for _ in range(3)] == [False] * 3
    fails.clear()
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


def test_files_are_looked_at_while_a_server_serves(serve, connect, tmp_path, monkeypatch):
    monkeypatch.setattr("greensock.limits.access_lists.LOOK_EVERY", 0.01)
    path = tmp_path / "networks"
    path.write_text("")
    server = serve(Echo, client_limits=ClientLimits(deny_file=str(path)))
    assert is_served(connect(server))
    path.write_text("127.0.0.1\n")
    wait_until(lambda: not is_served(connect(server)))
