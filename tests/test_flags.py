"""The flags of a connection: what may go with what, after every step of many random walks."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Callable

import gevent
import pytest
from conftest import PAUSE, wait_until
from greenlet import greenlet
from pairs import reset, tcp_pair

from greensock import HALF_OPEN, POSTPONE, Connection, Lines, Server, State
from greensock.core import lifecycle
from greensock.core.turns import SERVED

OPEN, CLOSING, CLOSED = State.OPEN, State.CLOSING, State.CLOSED

#: For each flag of the table: whether it is set, and what must hold then.
RULES: dict[str, tuple[Callable[[Connection], object], Callable[[Connection], object]]] = {
    "_plain": (
        lambda conn: conn._plain,
        lambda conn: (
            conn._state is OPEN
            and conn._stage >= SERVED
            and conn._decoder is None
            and not conn._stash
            and not conn._eof
            and conn._transport is None
        ),
    ),
    "_clear": (
        lambda conn: conn._clear,
        lambda conn: (
            conn._state is OPEN and conn._writable and not conn._out and not conn._fin and conn._transport is None
        ),
    ),
    "_readable": (lambda conn: conn._readable, lambda conn: True),
    "_writable": (lambda conn: conn._writable, lambda conn: True),
    "_thorough": (lambda conn: conn._thorough, lambda conn: True),
    "_idle": (lambda conn: conn._idle, lambda conn: conn.server is not None),
    "_eof": (lambda conn: conn._eof, lambda conn: not conn._plain),
    "_fin": (lambda conn: conn._fin, lambda conn: not conn._clear),
    "_fresh": (lambda conn: conn._fresh, lambda conn: conn._state is OPEN and conn._stash),
    "_stash": (lambda conn: conn._stash, lambda conn: conn._state is OPEN and not conn._plain),
    "_out": (
        lambda conn: conn._out,
        lambda conn: (
            conn._state is not CLOSED and not conn._clear and conn._queued == sum(entry.left for entry in conn._out)
        ),
    ),
    "_kept": (lambda conn: conn._kept, lambda conn: conn._out and conn._kept <= conn._queued),
    "_reader": (
        lambda conn: conn._reader is not None,
        lambda conn: isinstance(conn._reader, greenlet) or conn._state is CLOSING,
    ),
    "_flushing": (
        lambda conn: conn._flushing is not None,
        lambda conn: conn._state is CLOSING and conn._out,
    ),
    "_linger_left": (
        lambda conn: conn._linger_left > 0,
        lambda conn: conn._state is not OPEN and not conn._out and conn._flushing is None,
    ),
    "_ended": (lambda conn: conn._ended, lambda conn: conn._state is not OPEN),
    "_transport": (lambda conn: conn._transport is not None, lambda conn: not conn._plain and not conn._clear),
    "_fd": (lambda conn: conn._fd >= 0, lambda conn: conn._state is not CLOSED),
}


def check(conn: Connection, seen: dict[str, set[bool]]) -> None:
    for flag, (is_set, holds) in RULES.items():
        value = bool(is_set(conn))
        seen[flag].add(value)
        assert not value or holds(conn), f"{flag} of {conn!r}"


def test_the_table_names_all_flags():
    table = re.findall(r"^``(_\w+)`` ", lifecycle.__doc__, re.MULTILINE)
    assert table == list(RULES)
    assert set(table) <= {slot for cls in Connection.__mro__ for slot in getattr(cls, "__slots__", ())}
    booleans = {name for name, value in vars_of(Connection).items() if isinstance(value, bool)}
    assert booleans <= set(table), "a flag without a row"


def vars_of(kind: type[Connection]) -> dict[str, object]:
    """Return what the slots of a fresh connection hold."""
    ours, theirs = tcp_pair()
    with theirs:
        conn = kind(lifecycle.Poller.__new__(lifecycle.Poller), ours.fileno(), ours.family, "peer")
        found = {
            name: getattr(conn, name)
            for cls in kind.__mro__
            for name in getattr(cls, "__slots__", ())
            if not name.startswith("__") and hasattr(conn, name)
        }
        conn._fd = -1
        ours.close()
    return found


class Walked(Server):
    """Does with each connection what its peer says, in one letter a message."""

    stop_timeout = 0.1
    linger_timeout = 0.2
    max_postponed = 1 << 20

    def connection_new(self, conn):
        conn.max_send_queue = 1 << 25

    def connection_recv(self, conn, data):
        for letter in set(data[:64].decode("latin-1")):
            match letter:
                case "a":
                    conn.send(b"answer")
                case "b":
                    conn.send_nowait(bytes(12_000_000))
                case "c":
                    conn.close()
                case "d":
                    conn.send(bytes(1000), close=True)
                case "e":
                    conn.abort()
                case "f":
                    conn.shutdown_write(timeout=0.05)
                case "g":
                    conn.unread(b"again")
                case "h":
                    conn.read_exactly(1000, timeout=0.02)
                case "i":
                    raise RuntimeError("an upcall failed")
                case "j":
                    return POSTPONE
                case "k":
                    conn.fileno()
                case "l":
                    conn.set_deadline(0.02)
                case "m":
                    gevent.sleep(PAUSE)
                case "n":
                    conn.send_nowait(bytes(12_000_000))
                    conn.close()
                case "o":  # part of what is there is read, and then it waits for something else
                    conn.unread(b"more")
                    conn.recv(1)
                    gevent.sleep(PAUSE)
        return None

    def connection_eof(self, conn):
        return HALF_OPEN if conn.bytes_received % 2 else None


#: Seconds that any timer takes: one pass of the loop, which gevent need not make for a sleep of 0.
PASS = 1e-6
LETTERS = b"abcdefghijklmnopqrst\n\n\n"


@pytest.fixture(scope="module")
def seen():
    return {flag: set() for flag in RULES}


@pytest.mark.parametrize("framer", [None, Lines()])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_flags(serve, tmp_path, framer, family, seen):
    """Peers write, read, close and reset at random; after every pass of the loop each rule holds for all."""
    chance = random.Random(f"{framer} {family}")
    listener = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket")
    server = serve(Walked, listener, framer=framer)
    known: set[Connection] = set()

    def look():
        known.update(server.connections)
        for conn in known:
            check(conn, seen)

    def look_often():
        for _ in range(5):
            gevent.sleep(PASS)
            look()

    for letter in b"abcdefghijklmno":  # each by itself, and then more
        with socket.socket(family) as sock:
            count = len(known)
            sock.connect(server.address)
            wait_until(lambda count=count: look() or len(known) > count)  # one that closes at once is seen, too
            sock.sendall(bytes([letter]) + b"\n")
            look_often()
            with contextlib.suppress(OSError):
                sock.sendall(b"..")
            look_often()
    for _ in range(60):
        with socket.socket(family) as sock:
            sock.connect(server.address)
            sock.setblocking(False)
            for _ in range(chance.randrange(1, 12)):
                step(sock, chance)
                for _ in range(chance.randrange(1, 4)):
                    gevent.sleep(0 if chance.random() < 0.9 else 3 * PAUSE)
                    look()
    server.stop(0.1)
    look()
    assert all(conn.state is CLOSED for conn in known)


def step(sock, chance):
    """Do one thing that a peer may do."""
    try:
        match chance.randrange(8):
            case 0:
                sock.recv(1 << 20)
            case 1:
                sock.shutdown(socket.SHUT_WR)
            case 2:
                reset(sock)
            case _:
                sock.send(bytes(chance.choices(LETTERS, k=chance.randrange(1, 4))))
    except OSError:
        pass


def test_the_walks_saw_each_flag_both_ways(seen):
    assert {flag: values for flag, values in seen.items() if values != {True, False}} == {}
