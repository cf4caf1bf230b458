"""Locust against the lines example and a proxy: in a process of its own, as ``make load`` runs it."""

from __future__ import annotations

import csv
import importlib.util
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from served import once

from loadtests import load
from loadtests.process import ROOT
from loadtests.servers import missing

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="needs Locust: pip install -e '.[load]'"),
    once,
]

PAGES = {"page", "page, close", "upload", "download", "download, chunks"}
TASKS = {"connect", "GET", "SET", "DEL", "KEYS", "10 at once", "nonsense", "QUIT"}

WRONG_NOW_AND_THEN = """
from gevent import monkey
monkey.patch_all()
from examples._main import run
from examples.lines import Store

class Wrong(Store):
    asked = 0

    def answer(self, line):
        self.asked += 1
        return b"VALUE of another" if self.asked == 20 else super().answer(line)

if __name__ == "__main__":
    run(Wrong, None)
"""
DIES = """
from gevent import monkey
monkey.patch_all()
import os
from examples._main import run
from examples.lines import Store

class Dies(Store):
    asked = 0

    def answer(self, line):
        self.asked += 1
        if self.asked == 50:
            os._exit(3)
        return super().answer(line)

if __name__ == "__main__":
    run(Dies, None)
"""


def run(output: Path, *arguments: object, name: str = "lines") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.load", name, "--output", str(output), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows(output: Path, name: str = "lines") -> dict[str, dict[str, str]]:
    with (output / name / "report_stats.csv").open(newline="") as lines:
        return {row["Name"]: row for row in csv.DictReader(lines)}


def errors(output: Path, name: str = "lines") -> str:
    return (output / name / "report_failures.csv").read_text()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Give the name under which a program can be run as the server."""

    def write(program: str) -> str:
        (tmp_path / "another_server.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "another_server"

    return write


def test_some_seconds(tmp_path):
    done = run(tmp_path, "--seconds", 5, "--users", 20)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path)
    assert set(found) == TASKS | {"Aggregated"}
    assert all(int(row["Failure Count"]) == 0 for row in found.values())
    assert int(found["QUIT"]["Request Count"]) >= 20, "every user takes leave at the end"
    requests = int(found["Aggregated"]["Request Count"])
    assert requests > 500
    assert f"{requests:,} requests, 0 failed" in done.stdout
    assert "<html" in (tmp_path / "lines" / "report.html").read_text()


def test_several_processes(tmp_path):
    done = run(tmp_path, "--seconds", 3, "--users", 10, "--processes", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(rows(tmp_path)["Aggregated"]["Request Count"]) > 0


@pytest.mark.alone  # in its few seconds enough is to happen
def test_a_wrong_reply_is_a_failure(tmp_path, server):
    done = run(tmp_path, "--seconds", 3, "--users", 4, "--server", server(WRONG_NOW_AND_THEN))
    assert done.returncode == 1
    assert re.search(r"^WRONG: 1 of [\d,]+ requests failed$", done.stdout, re.MULTILINE), done.stdout
    assert "was answered" in errors(tmp_path)


def test_a_server_that_does_something_else(tmp_path):
    done = run(tmp_path, "--seconds", 2, "--users", 2, "--server", "examples.echo")
    assert done.returncode == 1
    assert "WRONG: " in done.stdout
    assert re.search(r"(\w+) was answered '\1', not '\w+' as it should", errors(tmp_path)), "which it was in time for"


@pytest.mark.alone  # in its few seconds enough is to happen
def test_a_server_that_dies(tmp_path, server):
    done = run(tmp_path, "--seconds", 3, "--users", 4, "--server", server(DIES))
    assert done.returncode == 1
    assert "WRONG: the server ended before it was told to, with 3\n" in done.stdout
    assert "the server closed the connection" in errors(tmp_path)


@pytest.mark.alone  # in its few seconds enough is to happen
def test_a_server_that_is_down_is_a_failure(tmp_path):
    """Each try is one, and there is no traceback."""
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile_tcp.py", "--headless", "--only-summary"]
    command += ["-H", "127.0.0.1:1", "-u", "2", "-r", "2", "-t", "2s", "-s", "5", "--csv", str(tmp_path / "report")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'locustfile_tcp.py", line' not in done.stdout + done.stderr, "a traceback of ours"
    with (tmp_path / "report_stats.csv").open(newline="") as lines:
        found = {row["Name"]: row for row in csv.DictReader(lines)}
    assert set(found) == {"connect", "Aggregated"}
    assert int(found["connect"]["Failure Count"]) == int(found["connect"]["Request Count"]) >= 2


def test_users_that_are_stopped_while_they_connect(tmp_path):
    """The server takes none in and says nothing: the run ends within the first try, and there is no traceback."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile_tcp.py", "--headless", "--only-summary"]
        command += ["-H", f"127.0.0.1:{port}", "-u", "2", "-r", "2", "-t", "1s", "-s", "20"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "2 TCP connect: OperationTimeout(" in " ".join(done.stdout.split() + done.stderr.split())
    assert 'locustfile_tcp.py", line' not in done.stdout + done.stderr, "a traceback of ours"


def test_a_server_that_does_not_start(tmp_path):
    done = run(tmp_path, "--server", "nosuch")
    assert done.returncode == 2
    assert re.search(r"^the server did not start: .*No module named nosuch$", done.stdout, re.MULTILINE)


def needs(proxy: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(missing(proxy) is not None, reason=f"needs {missing(proxy)}")


@pytest.mark.parametrize(
    ("proxy", "tasks"),
    [
        pytest.param("proxy_greensock", PAGES | {"WebSocket", "connect"}, marks=needs("proxy_greensock")),
        pytest.param("proxy_haproxy", PAGES | {"WebSocket", "connect"}, marks=needs("proxy_haproxy")),
        pytest.param("proxy_aiohttp", PAGES, marks=needs("proxy_aiohttp")),
    ],
)
def test_users_of_a_proxy(proxy, tasks, tmp_path):
    exclude = () if "WebSocket" in tasks else ("--exclude", "websocket")
    done = run(tmp_path, "--proxy", proxy, "--seconds", 5, "--users", 20, *exclude, name="http")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path, "http")
    assert set(found) == tasks | {"Aggregated"}
    assert all(int(row["Failure Count"]) == 0 for row in found.values())
    assert f"{int(found['Aggregated']['Request Count']):,} requests, 0 failed" in done.stdout


@needs("proxy_aiohttp")
@pytest.mark.alone  # in its few seconds enough is to happen
def test_what_a_proxy_can_not_do_is_a_failure(tmp_path):
    """This one knows no WebSocket."""
    done = run(tmp_path, "--proxy", "proxy_aiohttp", "--seconds", 3, "--users", 10, name="http")
    assert done.returncode == 1
    assert "the server answered 426" in errors(tmp_path, "http")
    assert int(rows(tmp_path, "http")["page"]["Failure Count"]) == 0


def test_a_proxy_that_is_not_there(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(load, "missing", lambda name: "examples.reverse_proxy")
    assert load.main(["http", "--output", str(tmp_path)]) == 2
    assert "proxy_greensock can't be started: there is no examples.reverse_proxy" in capsys.readouterr().out


def test_a_run_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        load.main(["nosuch"])
    assert "no such run: nosuch; there are lines, http" in capsys.readouterr().err


def test_without_locust(monkeypatch, capsys):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    assert load.main([]) == 2
    assert "pip install -e '.[load]'" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--seconds", "--users", "--processes"])
def test_what_is_not_a_number_of_at_least_1(option, capsys):
    for text in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            load.main([option, text])
        assert option in capsys.readouterr().err
