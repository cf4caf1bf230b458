"""A browser before the proxy, and behind it nginx with the page, Flask with the forms, and a server of WebSockets."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys

import peers
import pytest
from conftest import wait_until
from peers import program, run

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
TEXT = "a line of text\n" * 2000

ROUTES = """
[[routes]]
upstream = "page"
[[routes]]
path = "/app"
strip_prefix = true
upstream = "flask"
rewrite_answers = false  # it knows where it stands, and one of its cookies is for the whole site
request_fields = { set = { X-Forwarded-Prefix = "/app" } }
[[routes]]
path = "/ws"
strip_prefix = true
upstream = "websockets"
"""


@pytest.fixture
def site(tmp_path):
    """Start the servers, and the proxy before them."""
    program("chromium")
    pytest.importorskip("playwright")
    folders = {name: tmp_path / name for name in ("flask", "page", "websockets", "proxy")}
    for folder in folders.values():
        folder.mkdir()
    files = folders["page"] / "files"
    shutil.copytree(peers.PROGRAMS / "site", files)
    for name in ("picture.png", "favicon.ico"):
        (files / name).write_bytes(base64.b64decode(PICTURE))
    (files / "text.txt").write_text(TEXT)
    with (
        peers.nginx(folders["page"]) as (page, _),
        peers.flask(folders["flask"]) as flask,
        peers.websocket_server(folders["websockets"]) as websockets,
        peers.proxied(folders["proxy"], {"page": page, "flask": flask, "websockets": websockets}, ROUTES) as proxy,
    ):
        yield proxy


def test_a_browser(site, tmp_path):
    output = run(sys.executable, str(peers.PROGRAMS / "browser.py"), site.url, program("chromium"), str(tmp_path))
    seen = json.loads(output)
    numbers = sum(len(f"{number}\n") for number in range(5000))
    assert seen == {
        "upload": ["grün", True],
        "stream": [True, numbers],
        "events": ["one", "two", "three"],
        "atOnce": [1, len(TEXT)],
        "cookies": [True, "/app/home", "anna a b; c 1", "other=1"],
        "range": [206, TEXT[5:10]],
        "echo": ["chat.v2", "hellö", True, 4005, True],
        "color": "rgb(1, 2, 3)",
        "picture": 1,
        "download": ["x.bin", hashlib.sha256(b"x" * 300_000).hexdigest()],
        "form": {"fields": {"text": "größe"}, "files": {"file": hashlib.sha256(b"u" * 2_000_000).hexdigest()}},
        "troubles": [],
    }
    lines = wait_until(lambda: len(site.logged_like("/ws/echo")) == 3 and site.logged())
    assert [line["status"] for line in lines if line["target"] == "/"][-1] == 304, "the page was loaded again"
    lines = [line for line in lines if line["target"] != "/app/events"]  # which the page may close before its end
    assert not [line for line in lines if line["status"] not in {101, 200, 206, 302, 304}]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert not [line for line in lines if line["reason"]]
