"""How connections are spread over workers: the page that they share, and a burst of connections to four processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import gevent
from arbiters import arbiter
from conftest import wait_until
from served import once

from greensock import Server
from greensock.gunicorn.shares import BATCH, FairShare, Shares

WORKERS, CONNECTIONS = 4, 200


def test_a_worker_with_more_than_its_share_lets_others_go_first():
    shares = Shares()
    one, other = FairShare(shares, 1), FairShare(shares, 2)
    mine, theirs = (Server(("127.0.0.1", 0)) for _ in range(2))
    one.enter([mine])
    assert mine.accept_permits() == mine.max_connections, "alone it takes all"
    other.enter([theirs])
    one.look()
    with mine:
        assert mine.accept_permits() == BATCH
        socks = [socket.create_connection(mine.address) for _ in range(12)]
        wait_until(lambda: mine.connections_alive == 12)
        assert shares.counts[1] >= 8
        welcomed = []
        mine.welcome_connections = lambda: welcomed.append(1)
        asked = [mine.accept_permits() for _ in range(4)]  # the acceptor asked, too: whose turn it is, is open
        assert asked in ([0, BATCH, 0, BATCH], [BATCH, 0, BATCH, 0])
        wait_until(lambda: len(welcomed) == 2)
        other.leave()
        one.look()
        assert mine.accept_permits() == mine.max_connections - 12
        for sock in socks:
            sock.close()
        mine.abort()
    one.leave()
    assert not any(shares.pids)


def test_a_process_that_is_gone_is_left_out():
    shares = Shares()
    shares.pids[3] = os.getpid()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    shares.pids[4] = process.pid
    assert shares.alive() == [3]
    assert shares.pids[4] == 0


@once
def test_a_burst_is_spread(tmp_path):
    command = [sys.executable, "-m", "greensock", "run", "served_classes:Site", "--bind", "127.0.0.1:0"]
    with arbiter(tmp_path, command=[*command, "--workers", str(WORKERS)]) as master:
        pids = set()
        wait_until(lambda: pids.add(master.ask().pid) or len(pids) == WORKERS)
        gevent.sleep(LOOKED)
        before = {pid: sockets_of(pid) for pid in pids}
        socks = [master.connect() for _ in range(CONNECTIONS)]
        wait_until(lambda: sum(sockets_of(pid) - before[pid] for pid in pids) == CONNECTIONS)
        counts = [sockets_of(pid) - before[pid] for pid in pids]
        assert max(counts) < 2 * CONNECTIONS / WORKERS, counts
        for sock in socks:
            sock.close()


#: Seconds after which each worker has seen who else is there.
LOOKED = 1.2


def sockets_of(pid):
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd"))
