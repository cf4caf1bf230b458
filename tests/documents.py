"""Programs of the documents, run as they stand there."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import PATIENCE


@contextmanager
def running(program: str) -> Iterator[tuple[str, int]]:
    """Run a program that ends with a server's ``serve_forever()`` on a free port; give its address."""
    start = re.search(r"(\w+)\(\(\"127.0.0.1\", \d+\)(.*)\)\.serve_forever\(\)\n$", program)
    program = program[: start.start()]
    program += f"server = {start[1]}(('127.0.0.1', 0){start[2]})\n"
    program += "server.start(); print(server.server_port, flush=True); server.serve_forever()\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield "127.0.0.1", int(process.stdout.readline())
        finally:
            process.terminate()
        expected = -signal.SIGTERM if start[1] == "StreamServer" else 0  # gevent's knows no signals
        assert process.wait(PATIENCE) == expected
