"""The documents tell the truth: the README's program runs, what it names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import PATIENCE, read_exactly

from greensock import Connection, Server
from greensock.options import OPTIONS

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_program_in_the_readme_runs(connect):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace('("127.0.0.1", 5000)).serve_forever()', '("127.0.0.1", 0))')
    name = re.search(r"class (\w+)\(Server\)", program).group(1)
    program = program.replace(f"\n{name}(", f"\nserver = {name}(")
    program += "\nserver.start(); print(server.server_port, flush=True); server.serve_forever()\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:

            class Address:
                address = ("127.0.0.1", int(process.stdout.readline()))

            sock = connect(Address)
            assert read_exactly(sock, 6) == b"name? "
            sock.sendall(b"bob\n")
            sock.sendall(b"hello")
            assert read_exactly(sock, 10) == b"bob: HELLO"
            sock.close()  # or the program would wait for it
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


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
