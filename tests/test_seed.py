"""The workload of ``make run``: a tiny run, and runs against sinks that misbehave."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from served import once

from loadtests import native, seed

pytestmark = once

SINK = """
from gevent import monkey
monkey.patch_all()
import json, os
from examples._main import run
from examples.sink import Sink
from greensock import DROP

class Bad(Sink):
    {method}

if __name__ == "__main__":
    sink = run(Bad, None)
    report = sink.report()
    {at_the_end}
    print(json.dumps(report, default=dict), flush=True)
"""

TAKES_ITS_TIME = """
    seconds = 1.5

    def connection_eof(self, conn):
        import gevent; gevent.sleep(self.seconds)
"""
LOSES_A_MESSAGE = """
    def connection_recv(self, conn, data):
        if self.statistics().messages != 100:
            super().connection_recv(conn, data)
"""
DROPS_A_CONNECTION = """
    def connection_recv(self, conn, data):
        super().connection_recv(conn, data)
        return DROP if self.messages == 100 else None
"""
RAISES_ONCE = """
    def connection_drop(self, conn):
        if self.statistics().dropped == {"PEER_CLOSED": 1}:
            raise RuntimeError("on purpose")
"""
DIES = """
    def connection_recv(self, conn, data):
        os._exit(3)
"""
DOES_NOT_START = """
    raise SystemExit("no sink today")
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str = "pass", at_the_end: str = "pass") -> int:
    (tmp_path / "bad_sink.py").write_text(SINK.format(method=method.strip(), at_the_end=at_the_end))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return seed.main(["--connections", "8", "--messages", "100", "--threads", "2", "--server", "bad_sink"])


def test_a_tiny_run():
    command = [sys.executable, "-m", "loadtests.seed", "--connections", "8", "--messages", "100", "--threads", "2"]
    done = subprocess.run(command, cwd=seed.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"^(\S.*?)  +(.*)$", done.stdout, flags=re.MULTILINE))
    assert figures["messages"].startswith("800 in ")
    assert figures["bytes"] == "51,200"
    assert figures["connections"] == "8 accepted, 0 left, ended: 8 PEER_CLOSED"
    assert figures["upcalls that failed"] == "0"
    for figure in ("messages/s, mean", "connections/s", "server's CPU per message"):
        assert float(figures[figure].split()[0].replace(",", "")) > 0
    assert "best second" not in done.stdout, "it took less than one"
    assert "every message arrived" in done.stdout
    assert done.stderr.startswith("8 connections, 100 messages of 64 bytes on each\n")


def test_progress_is_shown_while_it_runs(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, TAKES_ITS_TIME) == 0
    assert re.search(r"^ +\d\.\d s +8 connections +800 of 800 messages sent$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("threads", ["1", "16"])
def test_one_connection_with_one_message(threads, capsys):
    assert seed.main(["--connections", "1", "--messages", "1", "--threads", threads]) == 0
    assert "1 accepted, 0 left, ended: 1 PEER_CLOSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "at_the_end", "text"),
    [
        (LOSES_A_MESSAGE, "pass", "WRONG: messages the sink counted: 799, not 800\n"),
        (DROPS_A_CONNECTION, "pass", "WRONG: connections by why they ended: "),
        (RAISES_ONCE, "pass", "WRONG: upcalls that failed: 1, not 0\n"),
        ("pass", "report['statistics']['messages'] += 1", "WRONG: messages in the server's statistics: 801, not 800\n"),
        ("pass", "report['statistics']['active'] = 1", "WRONG: connections still alive: 1, not 0\n"),
    ],
    ids=["loses a message", "drops a connection", "raises once", "counts one too many", "keeps a connection"],
)
def test_a_sink_that_misbehaves(method, at_the_end, text, tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, method, at_the_end) == 1
    output = capsys.readouterr().out
    assert text in output
    assert "every message arrived" not in output


@pytest.mark.parametrize(
    ("method", "at_the_end", "text"),
    [
        (DOES_NOT_START, "pass", "the sink did not start: no sink today"),
        (DIES, "pass", "the sink ended with 3 and without a report"),
        ("pass", "raise SystemExit('nothing to say')", "the sink ended with 1 and without a report: nothing to say"),
    ],
    ids=["does not start", "dies", "reports nothing"],
)
def test_a_sink_without_a_report(method, at_the_end, text, tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, method, at_the_end) == 2
    assert text in capsys.readouterr().out


def test_without_a_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "BUILD", tmp_path / "build")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert seed.main(["--connections", "1"]) == 2
    assert "no C compiler: no-such-compiler" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--connections", "--messages", "--threads"])
def test_what_is_not_a_number_of_at_least_1(option, capsys):
    for text in ("0", "-1", "x"):
        with pytest.raises(SystemExit):
            seed.main([option, text])
        assert option in capsys.readouterr().err
