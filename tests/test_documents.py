"""The documents tell the truth: the README's program runs, what it names exists."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import PATIENCE, read_exactly

from greensock import Connection, Server
from greensock.http import HTTPClient
from greensock.options import OPTIONS

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@contextmanager
def running(program: str) -> Iterator[tuple[str, int]]:
    """Run a program of the README on a free port; give its address."""
    start = re.search(r"(\w+)\(\(\"127.0.0.1\", \d+\)\)\.serve_forever\(\)\n$", program)
    program = program[: start.start()]
    program += f"server = {start[1]}(('127.0.0.1', 0))\n"
    program += "server.start(); print(server.server_port, flush=True); server.serve_forever()\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield "127.0.0.1", int(process.stdout.readline())
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


def test_the_first_program_in_the_readme_runs():
    with running(PROGRAMS[0]) as address, socket.create_connection(address, PATIENCE) as sock:
        assert read_exactly(sock, 6) == b"name? "
        sock.sendall(b"bob\n")
        sock.sendall(b"hello")
        assert read_exactly(sock, 10) == b"bob: HELLO"


def test_the_second_program_in_the_readme_runs():
    with running(PROGRAMS[1]) as (host, port), HTTPClient() as client:
        with client.get(f"http://{host}:{port}/") as answer:
            assert answer.read_all() == b"hello, 127.0.0.1"
        with client.post(f"http://{host}:{port}/", body=b"x" * 100_000) as answer:
            assert answer.read_all() == b'{"bytes": 100000}'


def test_the_programs_of_wsgi_and_of_the_client_run():
    with running(PROGRAMS[2]) as (host, port):
        program = PROGRAMS[3].replace("127.0.0.1:8080", f"{host}:{port}")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("200 text/plain b'hello from /'\n12 bytes, as they came\n", "")


def test_what_the_readme_names_exists():
    for upcall in re.findall(r"^\| `(\w+)\(conn", README, re.MULTILINE):
        assert callable(getattr(Server, upcall)), upcall
    table = README.split("| downcall |")[1].split("\n\n")[0]
    for downcall in re.findall(r"`(\w+)(?:\([^`]*)?`", table):
        assert downcall in ("max_send_queue", "WouldBlock") or hasattr(Connection, downcall), downcall
    for option in OPTIONS:
        assert f"`{option}`" in README, option
    for command in re.findall(r"make (\w+)", README):
        assert f"\n{command}:" in (Path(__file__).parent.parent / "Makefile").read_text(), command
