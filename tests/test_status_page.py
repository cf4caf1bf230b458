"""The status page in Chromium, before a fake that makes a second pass with each question."""

from __future__ import annotations

import json
import sys

import pytest
import requests
from conftest import PATIENCE
from fake_operations import FakeOperations
from peers import PROGRAMS, program, run
from served import once

#: How what a client wrote is shown: nothing of it is HTML, and what can't be seen is spelled out.
SPELLED = "GET example.org /<img src=x onerror=alert(1)>\\u{1b}[2J\\u{202e}" + "long" * 60


def test_the_files_and_what_goes_with_them(serve):
    site = serve(FakeOperations)
    base = "http://{}:{}".format(*site.address)
    for path, kind, part in (
        ("/", "html", "<main"),
        ("/page.css", "css", "prefers-color-scheme"),
        ("/page.js", "javascript", "textContent"),
    ):
        answer = requests.get(base + path, timeout=PATIENCE)
        assert answer.headers["Content-Type"] == f"text/{kind}; charset=utf-8"
        assert "default-src 'none'; script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert part in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", ""), "no asset from elsewhere"
        assert "https://" not in answer.text
        assert not {"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("} & set(
            answer.text.split()
        )
        assert "innerHTML" not in answer.text
    assert requests.get(f"{base}/page.py", timeout=PATIENCE).status_code == 404


@once
def test_in_a_browser(serve, tmp_path):
    program("chromium")
    pytest.importorskip("playwright")
    site = serve(FakeOperations)
    url = "http://{}:{}/".format(*site.address)
    seen = json.loads(run(sys.executable, str(PROGRAMS / "status_browser.py"), url, program("chromium"), str(tmp_path)))
    assert "error" not in seen, seen
    assert seen["troubles"] == []
    assert seen["tiles"] == [
        "Requests/s 100 4 in hand", "Connections 300 3.0 new/s", "Half answered in 2.0 ms p50", "9 of 10 in 4.4 ms p90",
        "99 of 100 in 5.0 ms p99",
        "5xx/s 1.0 " + seen["tiles"][5].split(maxsplit=2)[2], "Sent/s 1.5 MB", "Received/s 20 kB",
    ]  # fmt: skip
    assert [row[:4] for row in seen["servers"]] == [
        ["127.0.0.1:9000", "web", "\u25cf up for 1 h 0 min", "\u2013"],
        ["127.0.0.1:9001", "web", "\u25cf up for 1 h 0 min", "\u2013"],
        ["127.0.0.1:9002", "web", "\u2715 down for 2 min", "3 checks failed: connect-refused"],
    ]
    assert [row[4:] for row in seen["servers"]][1:] == [
        ["50.0", "0", "2", "7", "1", "Drain"],
        ["0", "1.0", "2", "7", "1", "Drain"],
    ]
    assert [row[1] for row in seen["statuses"]] == ["0", "95.0", "3.0", "1.0", "1.0"]
    assert [row[:2] for row in seen["refused"]] == [["request-rate", "2.0"]]
    assert [row[1:] for row in seen["loop"]] == [["0.50 ms", "0.99 ms"], ["1.5 ms", "2.0 ms"], ["15 ms", "20 ms"]]
    assert [[*row[:2], *row[3:]] for row in seen["workers"]] == [
        [str(pid), "serving", "50.0", "2", "25 %", "42 MB"] for pid in (4711, 4712)
    ]
    assert [row[1:5] for row in seen["failed"]] == [
        ["502", "connect-refused", "GET example.org /cart", "4.0 ms"], ["504", "head-timeout", SPELLED, "60.0 s"],
    ]  # fmt: skip
    assert [row[3] for row in seen["slowest"]] == ["GET example.org /report?year=2026", SPELLED]
    assert seen["pictures"] == 0
    assert seen["poor"] == {"light": [], "dark": []}
    assert seen["wide"] == {"360": 360, "320": 320, "1280": 1280}
    assert seen["labels"].startswith('"Requests/s'), "on a phone each value has the name of its column"
    assert site.orders == [("drain", "127.0.0.1:9000"), ("ready", "127.0.0.1:9000")]
    assert seen["kept"] == [0, 1, 0]
    assert seen["focus"] == "Put back 127.0.0.1:9000 of web"
    assert "the last one that is up" in seen["asked"]
    assert seen["anew"] == "\u2013 4 in hand"
    assert seen["unseen"] == 0, "who is not looked at does not ask"
    name = "greensock proxy"
    assert seen["away"] == [[f"\u2715 {word}", f"{word} \u2013 {name}"] for word in ("no answer", "not understood")]
    assert seen["back"] == ["\u25cf serving", name]
