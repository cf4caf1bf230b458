"""The servers behind a proxy of several processes: one checks and all know, and what one is told holds in all."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys

import gevent
from arbiters import PROGRAMS, arbiter
from conftest import PATIENCE, wait_until
from gevent.event import Event
from proxies import Origin
from served import once

from greensock.cli import main

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


def workers(master, count=2, which=0, path="/worker"):
    """Return a kept connection to each worker, by its process."""
    found = {}

    def look():
        conn = http.client.HTTPConnection(*master.addresses[which], timeout=PATIENCE)
        pid = told(conn, path)["pid"]
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


OPERATED = """
listen = ["127.0.0.1:0"]
[operations]
address = "127.0.0.1:0"
token = "a-token-of-32-characters-in-all."
[log]
path = "none"
[server]
max_connections = {most}
[upstreams.site]
{servers} = ["{url}"]
"""
GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"


class Held(Origin):
    """Answers ``/held`` when it is told to."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.go_on = Event()

    def handle_request(self, request):
        answer = super().handle_request(request)
        if request.path == "/held":
            self.go_on.wait(PATIENCE)
        return answer


class Client:
    """Asks once, and stays until it is told to go, or the proxy goes."""

    def __init__(self, master):
        self.sock = master.connect()
        self.is_answered = self.is_over = False
        self.greenlet = gevent.spawn(self._run)

    def _run(self):
        with contextlib.suppress(OSError):
            self.sock.sendall(GET)
            self.is_answered = bool(self.sock.recv(1000))
            while self.sock.recv(1000):
                pass
        self.is_over = True

    def leave(self):
        self.greenlet.kill()
        self.sock.close()
        self.is_over = True


def test_operators_reloads_and_room_for_clients(serve, tmp_path, monkeypatch, capsys):
    """By the command line: servers added and removed in both workers; what comes of a reload; and how many clients both
    have together, also when one of them is killed."""
    monkeypatch.chdir(tmp_path.parent)  # which is put back: reload goes elsewhere
    one, other = serve(Held), serve(Held)
    names = ["{}:{}".format(*each.address) for each in (one, other)]
    path, token = tmp_path / "proxy.toml", tmp_path / "token"
    path.write_text(OPERATED.format(most=100, servers="servers", url=one.url))
    token.write_text("a-token-of-32-characters-in-all.")
    command = [sys.executable, "-m", "greensock", "proxy", "--config", str(path), "--workers=2", "--pid", "pid"]
    with arbiter(tmp_path, command=command) as master:
        there = workers(master, which=1, path="/connections")
        to = ["--operations", "{}:{}".format(*master.addresses[1]), "--token-file", str(token)]

        def do(job, *arguments, status=0):
            assert main(["proxy", job, *arguments, *to]) == status, capsys.readouterr()
            return "".join(capsys.readouterr())

        def all_have(*wanted):
            for conn in there.values():
                (group,) = told(conn, "/status.json")["upstreams"]
                if [each["name"] for each in group["servers"]] != list(wanted):
                    return False
            return True

        assert do("add", "site", other.url, "--weight", "2") == f"{names[1]} of site is a server\n"
        wait_until(lambda: all_have(*names))
        assert f"site  {names[1]}  up  weight 2  0 in hand\n" in do("servers")
        assert "409: server=" in do("add", "site", other.url, status=1)
        assert "400: weight=0: " in do("add", "site", other.url, "--weight", "0", status=2)
        assert f"404: server='x': one of {', '.join(sorted(names))} expected" in do("remove", "site", "x", status=2)
        # One that is removed answers what it was asked, and gets nothing more.
        do("remove", "site", names[0])
        wait_until(lambda: all_have(names[1]))
        with contextlib.closing(master.kept()) as conn:
            conn.request("GET", "/held")
            wait_until(lambda: other.seen)
            do("add", "site", one.url)
            assert do("remove", "site", other.url) == f"{other.url} of site is no server any more\n"
            wait_until(lambda: all_have(names[0]))
            assert [master.ask("/page").status for _ in range(4)] == [200] * 4
            other.go_on.set()
            assert conn.getresponse().read() == b"GET /held "
        assert [[each[1] for each in origin.seen] for origin in (one, other)] == [[b"/page"] * 4, [b"/held"]]

        # A new configuration: new processes, and what was set at run time stays. A wrong one: nothing.
        do("add", "site", other.url)
        more = ["--pid", str(tmp_path / "pid")]
        path.write_text(OPERATED.format(most=4, servers="servers", url=one.url))
        assert do("reload", *more) == "the configuration was read anew: 2 new processes serve\n"
        old = there
        there = workers(master, which=1, path="/connections")
        assert not there.keys() & old.keys()
        wait_until(lambda: all_have(*names))
        path.write_text(OPERATED.format(most=4, servers="server", url=one.url))
        said = do("reload", *more, status=2)
        assert f'{path}:11: [upstreams.site] server = ["{one.url}"]: no such key: servers?\n' in said
        assert f"nothing was sent: process {master.process.pid} goes on with what it has" in said
        path.write_text(OPERATED.format(most=4, servers="servers", url=one.url))
        serving = [
            each["pid"]
            for each in told(next(iter(there.values())), "/status.json")["workers"]
            if each["state"] == "serving"
        ]
        assert sorted(serving) == sorted(there)

        # Four clients in both workers together; who comes then waits for one to leave, or for a worker to be killed.
        def had(pid):
            return told(there[pid], "/connections")["connections"]

        clients = [Client(master) for _ in range(10)]
        for left in range(2):
            wait_until(lambda left=left: sum(client.is_answered for client in clients) >= 4 + left)
            assert sum(map(had, there)) == 4
            next(client for client in clients if client.is_answered and not client.is_over).leave()
        wait_until(lambda: sum(client.is_answered for client in clients) == 6)
        killed = max(there, key=had)
        count = had(killed)
        assert count >= 2
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: sum(client.is_answered for client in clients) >= 6 + count)
        for client in clients:
            client.leave()
        for conn in (*old.values(), *there.values()):
            conn.close()
        assert master.stop() == 0
