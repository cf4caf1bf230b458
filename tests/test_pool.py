"""``ConnectionPool``: what is kept and lent, who waits, and that no slot is lost."""

from __future__ import annotations

import random
import socket
from collections import Counter

import gevent
import pytest
from conftest import PATIENCE, PAUSE, wait_until
from test_client import full_backlog, open_descriptors

from greensock import (
    ConnectFailed,
    ConnectionClosed,
    ConnectionPool,
    LimitExceeded,
    OperationTimeout,
    PooledConnection,
    PoolStatistics,
    Server,
    SocketConnection,
    State,
)
from greensock.core.poller import get_poller


class Talker(Server):
    """Answers in capitals; does what it is told with the connection."""

    def connection_recv(self, conn, data):
        if data == b"leave":
            conn.close()
        else:
            conn.send(data.upper())


@pytest.fixture
def talker(serve):
    return serve(Talker)


def pooled(**options):
    return ConnectionPool(**options)


def talk(conn):
    conn.send(b"word")
    assert conn.read_exactly(4, timeout=PATIENCE) == b"WORD"
    return conn


def test_a_connection_is_lent_again_after_a_look_whether_it_is_silent(talker):
    with pooled() as pool:
        with pool.lease(talker.address, timeout=PATIENCE) as conn:
            talk(conn)
        assert pool.statistics() == pool.statistics(talker.address) == PoolStatistics(used=0, idle=1, waiting=0)
        with pool.lease(talker.address) as again:
            assert again is conn
            assert (again.requests, again.state) == (2, State.OPEN)
            again.send(b"nobody asks for the answer")
        wait_until(again.has_input)  # bytes count as much as an end
        lease = pool.lease(talker.address)
        assert not lease.is_reused
        assert again.state is not State.OPEN
        with lease as third:
            talk(third).send(b"leave")
        wait_until(third.has_input)
        with pool.lease(talker.address) as fourth:
            assert fourth is not third
            talk(fourth)
        assert pool.statistics().used == 0
    assert fourth.state is not State.OPEN
    with pytest.raises(ConnectionClosed, match="the pool is closed"):
        pool.lease(talker.address)


def test_it_retires_by_use_age_and_idleness(talker):
    made = []

    def lend(pool):
        with pool.lease(talker.address, timeout=PATIENCE) as conn:
            made.append(talk(conn))
        return conn

    with pooled(max_requests=2) as pool:
        assert [lend(pool) is made[0] for _ in range(3)] == [True, True, False]
    with pooled(max_age=60.0) as pool:
        old = lend(pool)
        with pool.lease(talker.address) as conn:
            conn.made -= 61.0
        assert conn is old
        assert (old.state is State.OPEN, pool.statistics().idle) == (False, 0)
    with pooled(idle_timeout=PAUSE) as pool:
        idle = lend(pool)
        wait_until(lambda: idle.state is not State.OPEN)
        assert pool.statistics() == PoolStatistics(0, 0, 0)
    with pooled(max_idle=1) as pool:
        leases = [pool.lease(talker.address) for _ in range(3)]
        for lease in leases:
            lease.end(True)
        assert pool.statistics().idle == 1
    wait_until(lambda: talker.connections_alive == 0)


def test_first_come_first_served_and_so_many_and_no_more(talker):
    got = []

    def use(number):
        with pool.lease(talker.address, timeout=PATIENCE) as conn:
            got.append(number)
            talk(conn)

    with pooled(max_connections=1, max_waiting=3) as pool:
        lease = pool.lease(talker.address)
        users = []
        for number in range(3):
            users.append(gevent.spawn(use, number))
            wait_until(lambda: pool.statistics().waiting == len(users))
        with pytest.raises(LimitExceeded) as full:
            pool.lease(talker.address)
        assert (full.value.limit, full.value.value) == ("max_waiting", 3)
        lease.end(True)
        gevent.joinall(users, raise_error=True, timeout=PATIENCE)
        assert got == [0, 1, 2]
        assert talker.statistics().accepted == 1
        held = pool.lease(talker.address)
        with pytest.raises(OperationTimeout, match=f"became free within {PAUSE} s") as late:
            pool.lease(talker.address, timeout=PAUSE)
        assert late.value.operation == "lease"
        waits = gevent.spawn(pool.lease, talker.address)
        wait_until(lambda: pool.statistics().waiting)
        pool.close()
        with pytest.raises(ConnectionClosed, match="was closed"):
            waits.get(timeout=PATIENCE)
        held.end(True)
    wait_until(lambda: talker.connections_alive == 0)


def test_what_leaves_a_block_by_an_exception_is_lent_to_nobody(talker):
    with pooled() as pool:
        with pytest.raises(KeyError), pool.lease(talker.address) as conn:
            raise KeyError
        assert (conn.state, pool.statistics()) == (State.CLOSED, PoolStatistics(0, 0, 0))
        with pool.lease(talker.address) as conn:
            conn.close()
        assert pool.statistics() == PoolStatistics(0, 0, 0)
        lease = pool.lease(talker.address)
        mine = lease.detach()
        lease.end(True)  # only the first counts
        lease.give_up()
        assert pool.statistics() == PoolStatistics(0, 0, 0)
        talk(mine).abort()


def test_what_was_read_too_far_is_lent_to_nobody(talker):
    with pooled() as pool:
        with pool.lease(talker.address) as conn:
            conn.send(b"word")
            assert conn.read_exactly(2, timeout=PATIENCE) == b"WO"
        assert (conn.state is State.OPEN, pool.statistics().idle) == (False, 0)


def test_no_slot_is_lost_wherever_it_is_thrown_into(talker):
    """GreenletExit and Timeout, while one waits, connects, talks and gives back."""
    chance = random.Random(14)
    outcomes = Counter()
    with full_backlog(socket.AF_INET, ("127.0.0.1", 0)) as listener, pooled(max_connections=2) as pool:
        silent = listener.getsockname()
        before = open_descriptors()

        def use():
            try:
                with pool.lease(talker.address if chance.random() < 0.9 else silent) as conn:
                    for _ in range(3):
                        talk(conn)
                    gevent.sleep(0)
                outcomes["done"] += 1
            except (gevent.Timeout, ConnectFailed, OperationTimeout):
                outcomes["timeout"] += 1

        for size in (12, 2) * 15:
            users = [gevent.spawn(use) for _ in range(size)]
            gevent.sleep(chance.random() * PAUSE)
            for user in chance.sample(users, 2 * size // 3):
                user.kill(gevent.Timeout(1) if chance.random() < 0.5 else gevent.GreenletExit(), block=False)
                if chance.random() < 0.5:
                    gevent.sleep(0)
            gevent.sleep(0)
            gevent.killall(users)
            assert (pool.statistics().used, pool.statistics().waiting) == (0, 0)
        assert outcomes["timeout"], outcomes  # how many got through before depends on the machine
        leases = [pool.lease(talker.address, timeout=PATIENCE) for _ in range(2)]
        for lease in leases:
            talk(lease.connection)
            lease.end(True)
        pool.drop_idle()
        wait_until(lambda: open_descriptors() == before)
    assert not [each for each in get_poller().endpoints() if isinstance(each, PooledConnection)]


def test_what_is_not_allowed():
    for name, value in [
        ("max_connections", 0),
        ("max_idle", -1),
        ("idle_timeout", 0),
        ("max_age", "1"),
        ("max_requests", 0),
        ("tls", 3),
        ("connection_class", SocketConnection),
    ]:
        with pytest.raises(ValueError, match=f"{name}="):
            ConnectionPool(**{name: value})
    with ConnectionPool() as pool, pytest.raises(ValueError, match="expected"):
        pool.lease("nowhere")
    assert pool.statistics() == PoolStatistics(0, 0, 0)
