"""``greensock top``, ``greensock proxy drain`` and ``ready``: what they show and say, before a fake and a terminal."""

from __future__ import annotations

import copy
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest
from conftest import PATIENCE, wait_until
from fake_operations import HOSTILE, TOKEN, FakeOperations, status
from peers import ROOT
from served import once

from greensock.cli import main
from greensock.operations import operators_client, server_orders, top_report
from greensock.operations.operators_client import Away, OperatorsClient
from greensock.operations.status_reading import Change, read_status
from greensock.operations.top_report import harmless, report

COMMAND = [sys.executable, "-W", "error", "-m", "greensock"]


def change(first: int = 10, last: int = 20) -> Change:
    return Change(read_status(json.dumps(status(last)).encode()), read_status(json.dumps(status(first)).encode()))


# -- readings


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ((), [], "all of it: an object expected"),
        (("name",), 5, "name: 5 is not what was expected"),
        (("now",), "soon", "now: 'soon' is not"),
        (("now",), True, "now: True is not"),
        (("totals",), None, "totals: an object expected"),
        (("totals", "statuses", "2xx"), "many", "totals.statuses.2xx: 'many' is not"),
        (("totals", "failures"), None, "totals.failures: an object expected"),
        (("totals", "failures"), {"x": "y"}, "totals.failures.x: 'y' is not"),
        (("workers",), {}, "workers: a list expected"),
        (("workers", 1, "pid"), None, "workers[1].pid: None is not"),
        (("latency", "counts"), [1], "latency: one count more than bounds expected"),
        (("failed", 0, "target"), ["/"], "failed[0].target: ['/'] is not"),
        (("totals", "requests"), float("inf"), "totals.requests: inf is not"),
        (("totals", "requests"), float("nan"), "totals.requests: nan is not"),
        (("workers", 0, "memory_bytes"), 10**40, "workers[0].memory_bytes: 1000"),
    ],
)
def test_what_is_no_status_is_told(where, value, words):
    told = copy.deepcopy(status(1))
    holder = told
    for each in where[:-1]:
        holder = holder[each]
    if where:
        holder[where[-1]] = value
    with pytest.raises(ValueError, match=re.escape(words)):
        read_status(json.dumps(told if where else value).encode())


def test_what_is_missing_is_told_and_what_is_new_is_not():
    told = status(1)
    told["later"] = {"a": 1}
    read_status(json.dumps(told).encode())
    del told["workers"][0]["pid"]
    with pytest.raises(ValueError, match=r"workers\[0\].pid is missing"):
        read_status(json.dumps(told).encode())
    for data in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError, match="JSON expected"):
            read_status(data)


def test_rates_are_differences_by_the_servers_clock():
    seen = change()
    assert seen.seconds == 10.0
    assert seen.rate(lambda each: each["totals"]["requests"]) == 100.0
    assert (
        seen.count_rate("statuses", "5xx"),
        seen.count_rate("refused", "request-rate"),
        seen.count_rate("failures", "other"),
    ) == (1.0, 2.0, 0.0)
    assert seen.worker_rate(seen.now["workers"][1], "cpu_seconds") == 0.25
    web = seen.now["upstreams"][0]
    assert [seen.server_rate(web, each, "requests") for each in web["servers"]] == [50.0, 50.0, 0.0]


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ({0.001: 100}, 0.5, 0.0005),
        ({0.002: 50, 0.005: 50}, 0.5, 0.002),
        ({0.002: 50, 0.005: 50}, 0.75, 0.0035),
        ({0.002: 50, 0.005: 50}, 1.0, 0.005),
        ({9.0: 1}, 0.5, 1.0),  # above the last bound: no more is known
        ({}, 0.5, None),
    ],
)
def test_quantiles(counts, share, seconds):
    from fake_operations import histogram

    now, before = status(20), status(20)
    before["now"] -= 5
    now["latency"] = copy.deepcopy(now["latency"])
    for index, more in enumerate(histogram(counts)["counts"]):
        now["latency"]["counts"][index] += more
    found = Change(now, before).quantile("latency", share)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_nothing_is_compared_with_another_servers_figures():
    now = status(20)
    for before in (None, status(10, start=1.0), status(30), now):
        seen = Change(now, before)
        assert seen.before is None
        assert seen.rate(lambda each: each["totals"]["requests"]) is None
        assert seen.quantile("latency", 0.5) is None
        assert seen.worker_rate(now["workers"][0], "requests") is None
        assert any(line.text.startswith("requests     -/s, 4 in hand") for line in report(seen, "here"))


# -- lines


def test_a_report():
    found = report(change(), "127.0.0.1:9180", 120)
    styles = {line.text.partition(" ")[0]: line.style for line in found}
    assert [styles[name] for name in ("latency", "turn", "upcall", "refused")] == ["", "quiet", "quiet", "warn"]
    lines = [line.text for line in found]
    assert lines[0].startswith("greensock proxy 0.1.0  serving, up 1 h 0 min, 2 workers  127.0.0.1:9180  ")
    text = "\n".join(lines)
    for part in (
        "requests     100/s, 4 in hand    5xx 1.0/s    failed upcalls 20",
        "connections  300, 3.0 new/s    in 20 kB/s    out 1.5 MB/s",
        "latency      p50 2 ms  p90 4.45 ms  p99 5 ms",
        "statuses     1xx 0/s  2xx 95.0/s  3xx 3.0/s  4xx 1.0/s  5xx 1.0/s",
        "refused      request-rate 2.0/s (40)",
        "web       127.0.0.1:9002  down   2 min          0    1.0        2      7       1  3 checks failed: connect",
        "  4711  serving    150   50.0        2  25.0 %   42 MB",
    ):
        assert part in text, text
    assert max(map(len, lines)) == 120
    assert HOSTILE not in text
    assert "example.org/<img src=x onerror=alert(1)>" in text.replace("\n", "") or ">" in text
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("height", [1, 5, 12, 18, 25, 100])
def test_a_report_has_the_height_of_the_window(height):
    told = status(20)
    told["workers"] *= 30
    lines = [line.text for line in report(Change(told, None), "here", 80, height)]
    whole = [line.text for line in report(Change(told, None), "here", 80)]
    assert len(lines) == min(height, len(whole))
    assert lines[0] == whole[0]
    if 25 <= height < len(whole):
        assert re.search(r"and \d+ more", "\n".join(lines))
        assert "connect-refused" in "\n".join(lines), "long lists make room for short ones"


def test_what_a_terminal_would_obey_is_spelled_out():
    assert harmless("\x1b[2Jäß\u202e\x07\r\n\x9b\udc80\u4e2d") == "\\x1b[2Jäß\\u202e\\x07\\r\\n\\x9b\\udc80\u4e2d"
    told = status(20)
    told["failed"][0]["target"] = "/\u4e2d" * 200
    wide = next(line.text for line in report(Change(told, None), "here", 120) if "\u4e2d" in line.text)
    assert len(wide) + wide.count("\u4e2d") in (119, 120), "columns are counted, not letters"


@pytest.mark.parametrize(
    ("call", "written"),
    [
        (top_report._rate, {None: "-", 0: "0", 0.05: "0.05", 0.1: "0.1", 12.34: "12.3", 100: "100", 12345: "12,345"}),
        (top_report._bytes, {None: "-", 0: "0 B", 999: "999 B", 1000: "1 kB", 99_900: "99.9 kB", 100_000: "100 kB"}),
        (top_report._bytes, {1e6: "1 MB", 2.5e9: "2.5 GB", 5e12: "5.0 TB", 7e15: "7,000.0 TB"}),
        (top_report._seconds, {None: "-", 0.00005: "50 us", 0.0001: "0.1 ms", 0.9994: "999 ms", 0.9995: "1.00 s"}),
        (top_report._span, {-5: "0 s", 59.9: "59 s", 60: "1 min", 3599: "59 min", 3600: "1 h 0 min"}),
        (top_report._span, {86399: "23 h 59 min", 86400: "1 d 0 h", 2 * 86400 + 3 * 3600: "2 d 3 h"}),
        (top_report.clock, {1e300: "-", -1e300: "-"}),
        (lambda text: top_report._cut(text, 3), {"abc": "abc", "abcd": "ab>", "a\u4e2d": "a\u4e2d", "a\u4e2dd": "a>"}),
        (lambda text: top_report._cut(text, 2), {"e\u0301x": "e\u0301x", "e\u0301xy": "e\u0301>", "": ""}),
    ],
)
def test_how_figures_are_written(call, written):
    assert {value: call(value) for value in written} == written


# -- the client


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://a:1", "speaks no https"),
        ("a", "a port expected"),
        ("a:x", "a:x"),
        ("a:99999", "a:99999"),
        ("http://", "HOST:PORT"),
        ("http://a:1/?x", "HOST:PORT"),
        ("http://me@a:1", "HOST:PORT"),
        ("unix:", "the path of a Unix socket expected"),
        ("[::1", "[::1"),
    ],
)
def test_wrong_addresses(address, words, capsys):
    assert main(["top", address]) == 2
    assert words in capsys.readouterr().err


def test_addresses(serve, tmp_path):
    path = str(tmp_path / "operators")
    for listener, written in (
        (("127.0.0.1", 0), None),
        (path, path),
        (path, f"unix:{path}"),
        ("unix:@operators", None),
    ):
        site = serve(FakeOperations, listener)
        address = written or (
            f"unix:@{'operators'}" if isinstance(site.address, str | bytes) else f"127.0.0.1:{site.address[1]}"
        )
        assert OperatorsClient(address).status()["name"] == "greensock proxy"
        if not written and isinstance(site.address, tuple):
            for other in (f"http://{address}/", f":{site.address[1]}", str(site.address[1])):
                assert OperatorsClient(other).status()["name"] == "greensock proxy"
        site.stop(0)


def test_who_does_not_answer_is_away(serve, monkeypatch):
    monkeypatch.setattr(operators_client, "MOST", 200)
    site = serve(FakeOperations)
    client = OperatorsClient(f"127.0.0.1:{site.address[1]}", timeout=PATIENCE)
    for instead, words in (
        ((404, b""), "it answers 404"),
        ((200, b"{}"), "not understood: name is missing"),
        ((200, b"<html>"), "not understood: JSON expected"),
        ((401, b'{"error": "a token"}'), "it answers 401: a token"),
        ((403, b'["error"]'), "it answers 403: it does not say why"),
        ((421, b"[" * 200), "it answers 421: it does not say why"),
        ((200, b"x" * 201), "more than 200 bytes"),
    ):
        site.instead = instead
        with pytest.raises(Away, match=words):
            client.status()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Away, match=r"silent for 0\.05 s"):
            OperatorsClient(address, timeout=0.05).status()
    with pytest.raises(Away, match="refused"):
        OperatorsClient(address).status()


# -- the commands


def orders(site, *arguments, token=TOKEN, folder=None):
    (folder / "token").write_text(f"{token}\n")
    address = f"127.0.0.1:{site.address[1]}"
    return main(["proxy", *arguments, "--operations", address, "--token-file", str(folder / "token")])


def test_a_server_is_drained_and_put_back(serve, tmp_path, capsys):
    site = serve(FakeOperations)
    for arguments, expected, words in (
        (["drain", "127.0.0.1:9000"], 0, "127.0.0.1:9000 of web gets no new requests\n"),
        (["ready", "http://127.0.0.1:9000", "--upstream", "web"], 0, "gets requests again\n"),
        (
            ["drain", "127.0.0.1:9005"],
            2,
            "there is no server 127.0.0.1:9005; there is web: 127.0.0.1:9000, web: 127.0.0.1:9001",
        ),
        (["drain", "127.0.0.1:9000", "--upstream", "api"], 2, "no server 127.0.0.1:9000 of api"),
        (["drain", "127.0.0.1:9001", "--wait", "0.3"], 1, "has 2 in hand after 0.3 s"),
        (["drain", "127.0.0.1:9001", "--wait", "-1"], 2, "--wait=-1: a number of seconds"),
    ):
        assert orders(site, *arguments, folder=tmp_path) == expected
        assert words in "".join(capsys.readouterr())
    assert site.orders == [("drain", "127.0.0.1:9000"), ("ready", "127.0.0.1:9000"), ("drain", "127.0.0.1:9001")]


def test_what_is_waited_for(monkeypatch):
    """Until all workers know of it, and nothing is in hand; or until time is over."""
    monkeypatch.setattr(server_orders, "LOOK_EVERY", 0.001)
    told = []

    class Answers:
        def status(self):
            state, count = told.pop(0) if len(told) > 1 else told[0]
            servers = [{"name": name, "state": state, "in_hand": count} for name in ("http://a:1/", "b:1")]
            return {"upstreams": [{"name": name, "servers": servers} for name in ("one", "two", "three")]}

    def left(seconds, server="a:1", upstreams=("one", "three")):
        return server_orders.wait_until_idle(Answers(), server, list(upstreams), seconds)

    told[:] = ("up", 0), ("draining", 2), ("draining", 0), ("draining", 7)
    assert left(PATIENCE) == 0
    assert told == [("draining", 7)]
    assert left(0.01) == 14
    assert left(0) == 14
    told[:] = [("up", 0)]
    assert left(0.01) == 0
    assert left(PATIENCE, upstreams=()) == left(PATIENCE, server="c:1") == 0


def test_tokens(serve, tmp_path, capsys, monkeypatch):
    site = serve(FakeOperations)
    for token, expected, words in (
        ("wrong", 1, "refuses: 401: a token is needed, and this is none"),
        ("", 2, "one token expected"),
        ("two words", 2, "one token expected"),
        ("a\r\nX-Field: b", 2, "one token expected"),
        ("ä", 2, "letters that a field can hold"),
    ):
        assert orders(site, "drain", "127.0.0.1:9000", token=token, folder=tmp_path) == expected
        assert words in capsys.readouterr().err
    arguments = ["--operations", "127.0.0.1:1", "--token-file"]
    assert main(["proxy", "drain", "a", *arguments, str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["proxy", "ready", "a", *arguments, str(tmp_path / "token")]) == 2, "its token is none"
    (tmp_path / "token").write_text(TOKEN)
    capsys.readouterr()
    assert main(["proxy", "ready", "a", *arguments, str(tmp_path / "token")]) == 1
    assert "127.0.0.1:1: Connection refused" in capsys.readouterr().err
    monkeypatch.delenv("GREENSOCK_OPERATIONS_TOKEN", raising=False)
    order = ["proxy", "drain", "127.0.0.1:9000", "--operations", f"127.0.0.1:{site.address[1]}"]
    assert main(order) == 2
    assert "--token-file, or GREENSOCK_OPERATIONS_TOKEN in the environment, expected" in capsys.readouterr().err
    assert site.orders == []
    monkeypatch.setenv("GREENSOCK_OPERATIONS_TOKEN", TOKEN)
    assert main(order) == 0


def test_once(serve, capsys):
    site = serve(FakeOperations)
    address = f"127.0.0.1:{site.address[1]}"
    assert main(["top", address, "--once", "--interval", "0.1"]) == 0
    output = capsys.readouterr().out
    assert output.isascii()
    assert "\x1b" not in output
    assert "requests     100/s, 4 in hand" in output
    assert main(["top", address, "--interval", "0.1"]) == 0, "without a terminal it is the same"
    assert "requests     100/s" in capsys.readouterr().out
    assert main(["top", address, "--interval", "0"]) == 2
    assert "--interval=0: at least 0.1 seconds" in capsys.readouterr().err
    site.instead = 503, b""
    assert main(["top", address, "--once"]) == 1
    assert f"{address}: it answers 503" in capsys.readouterr().err


class Terminal:
    """A terminal with ``greensock top`` in it."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.resize(100, 40)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*COMMAND, "top", *arguments], cwd=ROOT, stdin=self.slave, stdout=self.slave, stderr=self.slave
        )
        self.seen = ""

    def resize(self, columns: int, lines: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def screen(self) -> str:
        """Return what came since the last screen began."""
        try:
            self.seen += os.read(self.master, 1 << 20).decode()
        except BlockingIOError:
            pass
        return self.seen.rpartition("\x1b[H")[2]

    def wait_for(self, words: str) -> str:
        wait_until(lambda: words in self.screen() and self.seen.endswith("\x1b[J"))
        return self.screen()

    def ended(self) -> int:
        """Return the status with which it ends, having given the terminal back as it was."""
        wait_until(lambda: self.screen() and self.process.poll() is not None)
        self.screen()
        assert self.seen.endswith("\x1b[?7h\x1b[?25h\x1b[?1049l"), self.seen[-100:]
        assert termios.tcgetattr(self.slave) == self.before
        return self.process.returncode

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.master)
        os.close(self.slave)


@once
def test_live(serve):
    """It draws anew, when the window changes, too; says that the server is away, and that it is back; ``q`` ends it."""
    site = serve(FakeOperations)
    address = f"127.0.0.1:{site.address[1]}"
    with Terminal(address, "--interval", "0.1") as terminal, Terminal(address, "--interval", "60") as slow:
        first = terminal.wait_for("requests     100/s")
        assert "\x1b[1mgreensock proxy 0.1.0" in first
        assert "\x1b[31mweb       127.0.0.1:9002  down" in first, repr(first)
        assert "q ends, every 0.1 s" in first
        assert "\x1b[2J" not in first, "what a client wrote is no order"
        slow.wait_for("requests     -/s")
        slow.resize(40, 9)
        slow.process.send_signal(signal.SIGWINCH)  # the kernel sends it to who has it as its controlling terminal
        wait_until(lambda: slow.screen().count("\r\n") == 8 and slow.seen.endswith("\x1b[J"))
        assert max(len(re.sub(r"\x1b\[\w+", "", line)) for line in slow.screen().split("\r\n")) <= 40
        site.instead = 503, b""
        away = terminal.wait_for("NO ANSWER since ")
        assert "it answers 503: is it the operators' address of a greensock?" in away
        assert "greensock proxy 0.1.0" in away, "what was known before is still there"
        site.instead = None
        terminal.wait_for("q ends")
        os.write(terminal.master, b"xq")
        assert terminal.ended() == 0
        slow.process.terminate()
        assert slow.ended() == 128 + signal.SIGTERM
