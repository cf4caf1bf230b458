"""The pages for each kind of user tell the truth: their programs run."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, read_exactly
from documents import running

from greensock.http import HTTPClient, connect_websocket
from greensock.proxy import load_config

DOCS = Path(__file__).parent.parent / "docs"


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_a_flask_application():
    with running(programs("from_gevent.md")[0]) as (host, port), HTTPClient() as client:
        assert client.get(f"http://{host}:{port}/").read_all() == b"hello"


def test_a_handler_of_gevents():
    with running(programs("from_gevent.md")[1]) as address, socket.create_connection(address, PATIENCE) as sock:
        assert read_exactly(sock, 26) == b"hello, what is your name? "
        sock.sendall(b"bob\n")
        assert read_exactly(sock, 13) == b"goodbye, bob\n"


def test_websockets():
    simple, party, client = programs("websockets.md")
    with running(simple) as (host, port), connect_websocket(f"ws://{host}:{port}/shout") as websocket:
        websocket.send("hello")
        assert websocket.receive(timeout=PATIENCE) == "HELLO"
    with running(party) as (host, port), connect_websocket(f"ws://{host}:{port}/?name=berta") as websocket:
        program = client.replace("127.0.0.1:8080", f"{host}:{port}")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
        assert (done.stdout, done.stderr) == ("anna: hello\n", "")
        assert websocket.receive(timeout=PATIENCE) == "anna: hello"


def test_a_protocol_in_upcalls():
    with running(programs("own_protocol.md")[0]) as address, socket.create_connection(address, PATIENCE) as sock:
        for numbers, total in (((1, 2), 3), ((10,), 13)):
            sock.sendall(struct.pack(f"!I{len(numbers)}I", 4 * len(numbers), *numbers))
            assert struct.unpack("!Q", read_exactly(sock, 8)) == (total,)


def test_a_protocol_in_the_blocking_style():
    with running(programs("own_protocol.md")[1]) as address, socket.create_connection(address, PATIENCE) as sock:
        assert read_exactly(sock, 6) == b"name? "
        sock.sendall(b"bob\n42\n")
        assert read_exactly(sock, 28) == b"hello, bob\nno, it is not 42\n"[:28]


def test_a_test_of_ones_own():
    done = subprocess.run(
        [sys.executable, "-c", programs("own_protocol.md")[2]], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.stdout, done.stderr) == ("well\n", "")


@pytest.mark.parametrize("page", [path.name for path in DOCS.glob("*.md")])
def test_links_lead_somewhere(page):
    for target, fragment in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", (DOCS / page).read_text()):
        path = (DOCS / target) if target else DOCS / page
        assert path.exists(), target
        if fragment:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert fragment in names, (target, fragment)


def test_limits(tmp_path):
    (program,) = programs("limits.md")
    with running(program) as address:
        socks = [socket.create_connection(address, PATIENCE) for _ in range(4)]
        for sock in socks[:3]:
            sock.sendall(b"hello\n")
            assert read_exactly(sock, 6) == b"HELLO\n"
        assert socks[3].recv(1) == b"", "the fourth of one client"
        for sock in socks:
            sock.close()
    (table,) = re.findall(r"```toml\n(.*?)```", (DOCS / "limits.md").read_text(), re.DOTALL)
    (tmp_path / "proxy.toml").write_text(table)
    config = load_config(str(tmp_path / "proxy.toml"))
    assert (config.guard.ban_errors, config.routes[1].guard.request_burst) == (30, 5)
