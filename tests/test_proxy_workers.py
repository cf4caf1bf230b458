"""The servers behind a proxy of several processes: one checks and all know, and what one is told holds in all."""

from __future__ import annotations

import json
import os
import signal
import sys

from arbiters import PROGRAMS, arbiter
from conftest import wait_until
from proxies import Origin
from served import once

pytestmark = once

CONFIG = """
listen = ["127.0.0.1:0"]
[log]
path = "access"
[upstreams.site]
servers = ["{}", "{}"]
[upstreams.site.health]
path = "/status/204"
interval = 0.05
[[routes]]
upstream = "site"
"""


def told(conn, path="/worker"):
    conn.request("GET", path)
    return json.loads(conn.getresponse().read())


def workers(master, count=2):
    """Return a kept connection to each worker, by its process."""
    found = {}

    def look():
        conn = master.kept()
        pid = told(conn)["pid"]
        found.setdefault(pid, conn)
        if found[pid] is not conn:
            conn.close()
        return len(found) == count

    wait_until(look)
    return found


def test_one_checks_and_all_know(serve, tmp_path):
    """And another goes on when that one is killed."""
    one, other = serve(Origin), serve(Origin)
    path, names = tmp_path / "proxy.toml", ["{}:{}".format(*each.address) for each in (one, other)]
    path.write_text(CONFIG.format(one.url, other.url))
    with arbiter(tmp_path, command=[sys.executable, str(PROGRAMS / "watched_proxy.py"), str(path)]) as master:
        there = workers(master)

        def leaders():
            return [pid for pid, conn in there.items() if told(conn)["leads"]]

        wait_until(lambda: len(leaders()) == 1)
        (leader,) = leaders()
        (follower,) = there.keys() - {leader}
        before = {pid: told(conn)["checks"] for pid, conn in there.items()}
        asked = len(one.seen) + len(other.seen)
        wait_until(lambda: told(there[leader])["checks"] >= before[leader] + 10)
        assert told(there[follower])["checks"] == before[follower]
        assert len(one.seen) + len(other.seen) >= asked + 9, "one may be under way"
        # What one of them is told holds in both, at once there and soon here; and nothing is asked of that server.
        assert told(there[follower], f"/set?site,{names[0]},drain")["states"] == {names[0]: "draining", names[1]: "up"}
        wait_until(lambda: told(there[leader])["states"][names[0]] == "draining")
        one.seen.clear()
        for conn in (*there.values(), *there.values()):
            conn.request("GET", "/page")
            assert conn.getresponse().read() == b"GET /page "
        assert not [each for each in one.seen if each[1] == b"/page"]
        # Each tells what both of them counted.
        wait_until(lambda: all(told(conn)["requests"] == 4 for conn in there.values()))
        told(there[leader], f"/set?site,{names[0]},ready")
        wait_until(lambda: told(there[follower])["states"] == {names[0]: "up", names[1]: "up"})
        # A server that checks find to be down is so in the other worker, too.
        one.stop()
        wait_until(lambda: told(there[follower])["states"] == {names[0]: "down", names[1]: "up"})
        # The one that checks is killed: the other goes on, and its successor finds all as it was.
        os.kill(leader, signal.SIGKILL)
        there.pop(leader).close()
        wait_until(lambda: told(there[follower])["checks"] > before[follower])
        master.wait_for("Booting worker", 3)
        there.pop(follower).close()
        there = workers(master)
        assert {pid: told(conn)["states"][names[0]] for pid, conn in there.items()} == dict.fromkeys(there, "down")
        wait_until(lambda: len(leaders()) == 1)
        for conn in there.values():
            conn.close()
        assert master.stop() == 0
