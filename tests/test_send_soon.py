"""``send_soon``: what is sent within one pass of the loop goes out together at its end."""

from __future__ import annotations

import os
import socket
import time

import gevent
import pytest
from conftest import PATIENCE, read_exactly, wait_until
from pairs import connected, drain, let_engine_look, read_exactly_fast, reset, tcp_pair, wrap
from served import Recorder
from tls_peers import accepted

from greensock import ConnectionLost, DropReason, State
from greensock.core import poller as poller_module
from greensock.core.poller import get_poller
from greensock.core.syscalls import has_input


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A machine that stands still for a moment changes nothing."""
    get_poller()._uncorked_until = get_poller()._gap_at = 0.0
    monkeypatch.setattr(poller_module, "CORK_SECONDS", PATIENCE)
    monkeypatch.setattr(poller_module, "CORK_GAP", PATIENCE)


@pytest.fixture
def tcp():
    yield from connected("tcp")


@pytest.fixture
def other():
    """A second one."""
    yield from connected("tcp")


def within_a_pass(call):
    """Have ``call()`` made within a pass of the engine; return when that is over."""
    done = []

    def step():
        try:
            call()
        except BaseException as error:
            done.append(error)

    get_poller().call_soon(step)
    let_engine_look()
    wait_until(lambda: not get_poller()._active)
    if done:
        raise done[0]


def there(sock):
    """What came so far."""
    return sock.recv(1000, socket.MSG_PEEK) if has_input(sock.fileno()) else b""


def test_it_goes_out_at_the_end_of_the_pass(tcp):
    conn, peer = tcp
    seen = []

    def call():
        conn.send_soon(b"first")
        seen.append((there(peer), conn.bytes_sent))

    within_a_pass(call)
    assert seen == [(b"", 5)]
    assert read_exactly(peer, 5) == b"first"
    assert conn.bytes_sent == 5
    assert conn._clear


def test_pieces_of_one_connection_are_one_write(tcp):
    conn, peer = tcp
    waiting = get_poller()._corked

    def call():
        for piece in b"one ", b"two ", b"three ":
            conn.send_soon(piece)
        assert waiting == {conn: b"one two three "}
        assert there(peer) == b""
        conn.send_soon(bytes(poller_module.CORK_BYTES))  # a copy of that costs more than a write
        assert there(peer) == b"one two three " + bytes(1000 - 14)
        conn.send_soon(b"end")

    within_a_pass(call)
    assert conn.bytes_sent == 14 + poller_module.CORK_BYTES + 3
    assert (
        read_exactly_fast(peer, conn.bytes_sent).strip(b"\0")
        == b"one two three " + bytes(poller_module.CORK_BYTES) + b"end"
    )


def test_outside_of_a_pass_it_goes_out_at_once(tcp):
    conn, peer = tcp
    conn.send_soon(b"now")
    assert there(peer) == b"now"


SENDS = {
    "send": lambda conn: conn.send(b" second"),
    "send_soon": lambda conn: conn.send_soon(b" second"),
    "send_nowait": lambda conn: conn.send_nowait(b" second"),
    "a list": lambda conn: conn.send([b" sec", b"ond"]),
    "shutdown_write": lambda conn: conn.shutdown_write(),
    "close": lambda conn: conn.close(),
    "send and close": lambda conn: conn.send(b" second", close=True),
    "fileno": lambda conn: (conn.fileno(), conn.send(b" second")),
}


@pytest.mark.parametrize("then", SENDS)
def test_what_comes_behind_it_arrives_behind_it(tcp, then):
    conn, peer = tcp

    def call():
        conn.send_soon(b"first")
        SENDS[then](conn)

    within_a_pass(call)
    expected = b"first" if then in ("shutdown_write", "close") else b"first second"
    assert read_exactly(peer, len(expected)) == expected
    if then in ("shutdown_write", "close", "send and close"):
        assert peer.recv(1) == b""
    assert conn.bytes_sent == len(expected)


@pytest.fixture(params=["1.2", "1.3"])
def sealed(request):
    """A connection over TLS."""
    with accepted(request.param) as pair:
        yield pair


@pytest.mark.parametrize("then", SENDS)
def test_over_tls_it_is_encrypted_at_the_end_of_the_pass(sealed, then):
    conn, peer = sealed
    seen = []

    def call():
        conn.send_soon(b"first")
        seen.append(has_input(peer.sock.fileno()))
        SENDS[then](conn)

    within_a_pass(call)
    assert seen == [False]
    expected = b"first" if then in ("shutdown_write", "close") else b"first second"
    assert peer.read_exactly(len(expected)) == expected
    if then in ("shutdown_write", "close", "send and close"):
        assert peer.recv(1) == b""
    assert conn.bytes_sent == len(expected)


def test_over_tls_what_the_peer_does_not_take_is_sent_by_the_engine(sealed):
    conn, peer = sealed
    size = 8_000_000
    within_a_pass(lambda: conn.send_soon(bytes(size)))
    assert 0 < conn.bytes_sent < size
    assert len(peer.read_exactly(size)) == size
    wait_until(lambda: conn._is_way_clear())
    assert conn.bytes_sent == size


def test_abort_throws_it_away(tcp):
    conn, peer = tcp

    def call():
        conn.send_soon(b"never")
        conn.abort()
        assert not get_poller()._corked, "it would hold the connection"

    within_a_pass(call)
    assert drain(peer) == 0
    assert conn.bytes_sent == 0


def test_what_is_shown_has_sent_it(tcp):
    """Others may make the descriptor a blocking one from then on."""
    conn, peer = tcp
    seen = []

    def call():
        conn.send_soon(b"first")
        conn.fileno()
        seen.append(there(peer))

    within_a_pass(call)
    assert seen == [b"first"]


def test_a_pass_that_is_cut_short_sends_it_in_the_next(tcp, capsys):
    conn, peer = tcp

    def call():
        conn.send_soon(b"first")
        raise RuntimeError("out of nowhere")

    get_poller().call_soon(call)
    assert read_exactly(peer, 5) == b"first"
    assert "out of nowhere" in capsys.readouterr().err


def test_many_go_out_in_the_order_of_the_calls():
    pairs = [tcp_pair() for _ in range(3)]
    conns = [wrap(ours) for ours, _ in pairs]
    waiting = []

    def call():
        for conn in conns:
            conn.send_soon(b"x")
        waiting.extend(get_poller()._corked)

    within_a_pass(call)
    assert waiting == conns
    for conn, (_, theirs) in zip(conns, pairs, strict=True):
        assert read_exactly(theirs, 1) == b"x"
        theirs.close()
        conn.abort()


def test_it_does_not_wait_for_what_takes_long(tcp, other, monkeypatch):
    (conn, peer), (other, other_peer) = tcp, other
    monkeypatch.setattr(poller_module, "CORK_SECONDS", 0.0)
    seen = []

    def call():
        conn.send_soon(b"first")
        other.send_soon(b"later")
        seen.append((there(peer), there(other_peer)))

    within_a_pass(call)
    assert seen == [(b"first", b"")]
    assert read_exactly(other_peer, 5) == b"later"


def test_it_does_not_wait_for_who_computes_for_long(tcp, other, monkeypatch):
    """It waits twice, and then for twenty times as long nothing does."""
    (conn, peer), (other, other_peer) = tcp, other
    monkeypatch.setattr(poller_module, "CORK_GAP", 0.01)
    took = 0.05
    seen = []

    def compute(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    def call():
        conn.send_soon(b"first")
        compute(took)
        other.send_soon(b"later")
        seen.append((there(peer), there(other_peer)))

    def call_again():
        conn.send_soon(b", second")
        seen.append(there(peer))

    within_a_pass(call)
    within_a_pass(call_again)  # it waits: once is no rule
    within_a_pass(call)
    within_a_pass(call_again)
    assert seen == [
        (b"first", b"later"),
        b"first",
        (b"first, secondfirst", b"laterlater"),
        b"first, secondfirst, second",
    ]
    compute(get_poller()._uncorked_until - time.monotonic())
    within_a_pass(call_again)
    assert seen[4:] == [b"first, secondfirst, second"]
    assert read_exactly(peer, 34) == b"first, secondfirst, second, second"


def test_what_the_peer_does_not_take_is_sent_by_the_engine(tcp):
    conn, peer = tcp
    size = 8_000_000
    within_a_pass(lambda: conn.send_soon(bytes(size)))
    assert 0 < conn.bytes_sent < size
    assert conn._kept == conn._queued == size - conn.bytes_sent
    assert len(read_exactly_fast(peer, size)) == size
    wait_until(lambda: conn._clear)
    assert conn.bytes_sent == size


def test_who_takes_nothing_is_dropped(tcp):
    conn, _ = tcp
    conn.send_timeout = 0.1
    within_a_pass(lambda: conn.send_soon(bytes(8_000_000)))
    conn.wait_closed(PATIENCE)
    assert conn.drop_reason is DropReason.SEND_TIMEOUT


def test_where_the_way_is_not_clear_it_is_send(tcp):
    conn, peer = tcp
    conn.max_send_queue = 8_000_000
    conn.send_nowait(bytes(8_000_000))
    sending = gevent.spawn(within_a_turn, conn)
    assert len(read_exactly_fast(peer, 8_000_003)) == 8_000_003
    sending.get(timeout=PATIENCE)


def within_a_turn(conn):
    conn.send_soon(b"end", PATIENCE)


def test_a_peer_that_has_gone_is_noticed(tcp):
    """Who receives is told, as by a send that fails."""
    conn, peer = tcp
    receiving = gevent.spawn(conn.recv)
    gevent.sleep(0)
    reset(peer)
    wait_until(lambda: conn.state is not State.OPEN)
    with pytest.raises(ConnectionLost):
        conn.send_soon(b"x")
    with pytest.raises(ConnectionLost):
        receiving.get(timeout=PATIENCE)


def test_a_peer_that_goes_before_the_end_of_the_pass(tcp):
    conn, peer = tcp
    told = []

    def call():
        conn.notify_disconnect(lambda: told.append(1))
        conn.send_soon(b"x")
        reset(peer)

    within_a_pass(call)
    wait_until(lambda: conn.state is State.CLOSED)
    assert conn.drop_reason is DropReason.LOST
    assert conn.bytes_sent == 0
    assert told == [1]
    assert not get_poller()._corked


def test_who_sends_behind_it_to_a_peer_that_has_gone_is_told(tcp):
    conn, peer = tcp

    def call():
        conn.send_soon(b"first")
        reset(peer)
        with pytest.raises(ConnectionLost):
            conn.send_nowait(b"second")

    within_a_pass(call)
    assert (conn.state, conn._out, conn.bytes_sent) == (State.CLOSED, None, 0)


@pytest.mark.parametrize("calls", [1, 2])
def test_from_an_upcall(serve, connect, calls):
    class Soon(Recorder):
        def connection_recv(self, conn, data):
            for _ in range(calls):
                conn.send_soon(data)

    server = serve(Soon)
    socks = [connect(server) for _ in range(20)]
    for _ in range(3):
        for sock in socks:
            sock.sendall(b"ping")
        for sock in socks:
            assert read_exactly(sock, 4 * calls) == b"ping" * calls


def test_in_a_child_it_is_the_parents_to_send(serve, connect):
    """As what is queued is: both would send it."""

    class Forks(Recorder):
        def connection_recv(self, conn, data):
            other.send_soon(b"other")
            conn.send_soon(b"mine ")
            pid = os.fork()
            if not pid:
                try:
                    conn.send(b"child")
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)

    server = serve(Forks)
    ours, theirs = tcp_pair()
    other = wrap(ours)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_exactly(sock, 10) == b"mine child"
    assert read_exactly(theirs, 5) == b"other"
    assert there(theirs) == there(sock) == b""
    theirs.close()
    other.abort()


@pytest.mark.parametrize("when", ["before", "in the pass"])
def test_what_is_sent_soon_while_it_drains(serve, connect, when):
    """A connection at rest is closed at once then, but not before what it was to send is out."""

    class Stops(Recorder):
        def connection_recv(self, conn, data):
            conn.send_soon(b"answer")
            if when == "in the pass":
                self._draining, self._draining_since = True, time.monotonic()  # as ``stop`` does, before it looks
                self.end_resting({})

    server = serve(Stops)
    sock = connect(server)
    wait_until(lambda: server.statistics().active)
    (conn,) = server.connections
    if when == "before":
        server._draining, server._draining_since = True, time.monotonic()
    sock.sendall(b"x")
    assert read_exactly(sock, 6) == b"answer"
    wait_until(lambda: conn.bytes_sent == 6)
