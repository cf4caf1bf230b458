"""``examples/live_chat``: the page in Chromium, rooms, a slow reader, thousands at rest, two machines and a Redis."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import sys
import urllib.request

import peers
import pytest
import websockets.exceptions
import websockets.sync.client
from conftest import PATIENCE, wait_until
from peers import program, run, started
from websocket_wire import UPGRADE

#: How many are at rest, and what each may take of the server's memory, in kB.
IDLE, MOST_KB = 2000, 5.0


@contextlib.contextmanager
def chat(folder, *arguments):
    """Run the example; give its process and its address."""
    folder.mkdir(exist_ok=True)
    example = str(peers.PROGRAMS.parent.parent / "examples" / "live_chat")
    command = [sys.executable, "-W", "error", example, "--bind", "127.0.0.1:0", *arguments]
    with started(command, folder, r"listening on (\S+)") as (process, says, where):
        yield process, where
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in says()


def join(where, name, room="lobby", **options):
    return websockets.sync.client.connect(f"ws://{where}/live/{room}?name={name}", **options)


def hear(ws):
    said = json.loads(ws.recv(PATIENCE))
    return said["name"], said["kind"], said["text"]


def say(ws, text):
    ws.send(json.dumps({"text": text}))


def test_rooms(tmp_path):
    with chat(tmp_path) as (_, where):
        with urllib.request.urlopen(f"http://{where}/") as page:
            assert b"new WebSocket" in page.read()
        with join(where, "Ann") as ann, join(where, "Cid", "other%20room") as cid:
            assert hear(ann) == ("Ann", "joined", "")
            assert hear(cid) == ("Cid", "joined", "")
            with join(where, "Bob") as bob:
                assert hear(ann) == hear(bob) == ("Bob", "joined", "")
                say(bob, "hello")
                assert hear(ann) == hear(bob) == ("Bob", "message", "hello")
            assert hear(ann) == ("Bob", "left", "")
            say(cid, "alone")
            assert hear(cid) == ("Cid", "message", "alone")
            for wrong in ("no JSON", "{}", "[]", '{"text": 5}'):
                with join(where, "Eve", "third") as eve:
                    hear(eve)
                    eve.send(wrong)
                    with pytest.raises(websockets.exceptions.ConnectionClosed):
                        eve.recv(PATIENCE)
                    assert eve.close_code == 1003
        for url, options, status in (
            (f"ws://{where}/live/a%2Fb", {}, 404),
            (f"ws://{where}/live/lobby", {"origin": "https://evil.example"}, 403),
            (f"ws://{where}/", {}, 404),
        ):
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
                websockets.sync.client.connect(url, **options)
            assert refused.value.response.status_code == status
        with join(where, "Dan", origin=f"http://{where}") as dan:
            hear(dan)


def test_two_people_in_a_browser(tmp_path):
    program("chromium")
    pytest.importorskip("playwright")
    with chat(tmp_path) as (_, where):
        script = str(peers.PROGRAMS / "chat_browser.py")
        seen = json.loads(run(sys.executable, script, f"http://{where}/", program("chromium"), str(tmp_path)))
    both = ["Annhello <b>Bob</b>", "Bobgrüß dich \N{SNOWMAN}"]
    assert seen == {
        "Ann": ["Ann is here", "Bob is here", *both, "Bob has left"],
        "Bob": ["Bob is here", *both],
        "extensions": "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "troubles": [],
    }


def test_a_slow_reader_is_dropped_and_nobody_waits(tmp_path):
    with chat(tmp_path) as (_, where):
        host, _, port = where.partition(":")
        with join(where, "Ann") as ann, socket.create_connection((host, int(port))) as slow:
            hear(ann)
            slow.sendall(UPGRADE.replace(b"/echo", b"/live/lobby?name=Slow"))
            assert hear(ann) == ("Slow", "joined", "")
            text = "x" * 1000
            for _ in range(20_000):
                say(ann, text)
                heard = hear(ann)
                if heard != ("Ann", "message", text):
                    break
            assert heard == ("Slow", "left", "")


def test_thousands_are_at_rest(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        process, where = stack.enter_context(chat(tmp_path))
        host, _, port = where.partition(":")

        def opened(number):
            sock = stack.enter_context(socket.create_connection((host, int(port))))
            sock.sendall(UPGRADE.replace(b"/echo", b"/live/room%d?name=x" % number))
            return sock

        def memory():
            with open(f"/proc/{process.pid}/smaps_rollup") as rollup:
                return next(int(line.split()[1]) for line in rollup if line.startswith("Rss:"))

        for number in range(100):
            opened(number)
        before = memory()
        for number in range(100, IDLE):
            last = opened(number)
        last.settimeout(PATIENCE)
        while not last.recv(4096).endswith(b'"text": ""}'):
            pass
        assert (memory() - before) / (IDLE - 100) < MOST_KB
        with join(where, "Ann") as ann:
            hear(ann)
            say(ann, "still quick")
            assert hear(ann) == ("Ann", "message", "still quick")


def reaches(probe, there):
    """Whether somebody who joins there is heard here."""
    with join(there, "Other", "probe"), contextlib.suppress(TimeoutError):
        while True:
            if json.loads(probe.recv(0.2))["name"] == "Other":
                return True
    return False


def test_several_machines_share_a_redis(tmp_path):
    """Two processes and a real Redis; what is said while that is away is heard on the own machine alone."""
    path = tmp_path / "redis.sock"
    command = [program("redis-server"), "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    url = f"unix://{path}"
    with chat(tmp_path / "one", "--redis", url) as (_, one), chat(tmp_path / "two", "--redis", url) as (_, two):
        (tmp_path / "redis").mkdir()
        with started(command, tmp_path / "redis", "ready to accept connections"):
            for here, there in ((one, two), (two, one)):  # each asks again for a Redis that was not there
                with join(here, "Probe", "probe") as probe:
                    wait_until(lambda: reaches(probe, there))  # noqa: B023
            with join(one, "Ann") as ann, join(two, "Bob") as bob:
                assert hear(ann) == ("Ann", "joined", "")
                assert hear(ann) == ("Bob", "joined", "")
                heard = hear(bob)
                assert heard == ("Bob", "joined", "") or (heard, hear(bob)) == (  # he may have been there first
                    ("Ann", "joined", ""),
                    ("Bob", "joined", ""),
                )
                for turn in range(100):
                    say(ann if turn % 2 else bob, f"{turn}")
                    name = "Ann" if turn % 2 else "Bob"
                    assert hear(ann) == hear(bob) == (name, "message", f"{turn}")
        with join(one, "Ann") as ann, join(two, "Bob") as bob:
            assert hear(ann) == ("Ann", "joined", "")
            assert hear(bob) == ("Bob", "joined", "")
            say(ann, "alone")
            assert hear(ann) == ("Ann", "message", "alone")
