"""gunicorn as a program, for the tests of what it starts: its masters, what they log, and requests to them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, read_all, wait_until

pytest.importorskip("gunicorn", reason="gunicorn is not installed")

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "peer_programs"
#: By its script, as ``-m gunicorn`` does not survive USR2: what is executed then is its ``__main__.py``, beside which
#: there is a folder ``http``.
GUNICORN = [sys.executable, str(Path(sys.executable).with_name("gunicorn"))]
#: What every master is told.
ALWAYS = "bind = '127.0.0.1:0'\nworker_class = 'greensock.gunicorn.Worker'\nwsgi_app = 'gunicorn_site:application'\n"
ALWAYS += f"pythonpath = {str(PROGRAMS)!r}\ncontrol_socket_disable = True\n"


class Arbiter:
    """A master that runs, in ``place``; what it says is in ``log()``."""

    def __init__(self, process: subprocess.Popen[bytes], place: Path, logfile: str) -> None:
        self.process = process
        self.place = place
        self.logfile = place / logfile

    def log(self) -> str:
        return self.logfile.read_text(errors="replace") if self.logfile.exists() else ""

    def wait_for(self, words: str, times: int = 1) -> None:
        """Wait until it has said that so often."""
        wait_until(lambda: self.log().count(words) >= times or self.process.poll() is not None)
        assert self.log().count(words) >= times, self.log()

    @property
    def addresses(self) -> list[Any]:
        """Where it listens."""
        (found,) = re.findall(r"Listening at: (.*) \(\d+\)", self.log())[-1:]
        pairs = [each.split("//")[1].rpartition(":") if "//" in each else (each,) for each in found.split(",")]
        return [(pair[0], int(pair[2])) if len(pair) == 3 else pair[0].removeprefix("unix:") for pair in pairs]

    def connect(self, which: int = 0) -> socket.socket:
        address = self.addresses[which]
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        return sock

    def ask(self, path: str = "/", fields: str = "", which: int = 0, method: str = "GET") -> Answered:
        """Ask once, on a connection of its own; the fields end with CRLF."""
        with self.connect(which) as sock:
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n".encode("latin-1"))
            return Answered(read_all(sock))

    def kept(self) -> http.client.HTTPConnection:
        """Return a connection that is kept."""
        return http.client.HTTPConnection(*self.addresses[0], timeout=PATIENCE)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it by SIGTERM, and return its status."""
        self.send(signal.SIGTERM)
        return self.process.wait(PATIENCE)


class Answered:
    """What came back."""

    def __init__(self, data: bytes) -> None:
        self.head, _, self.body = data.partition(b"\r\n\r\n")
        self.status = int(self.head.split()[1]) if self.head else 0
        self.text = self.body.decode("latin-1")

    @property
    def pid(self) -> int:
        """Of the worker that answered."""
        return int(re.search(rb"X-Pid: (\d+)", self.head)[1])  # type: ignore[index]

    @property
    def environ(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.text.splitlines() if "=" in line)


@contextlib.contextmanager
def arbiter(
    place: Path,
    settings: str = "",
    *arguments: str,
    command: list[str] | None = None,
    logfile: str = "stderr",
    pass_fds: Sequence[int] = (),
) -> Iterator[Arbiter]:
    """Start gunicorn with a configuration file that says this; end it, with all that it started."""
    place.mkdir(exist_ok=True)
    (place / "conf.py").write_text(ALWAYS + settings)
    command = command or [*GUNICORN, "-c", str(place / "conf.py"), *arguments]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAMS}"}
    with (
        open(place / "stderr", "wb") as stderr,
        open(place / "stdout", "wb") as stdout,
        subprocess.Popen(
            command, cwd=place, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, env=environ,
            start_new_session=True, pass_fds=pass_fds,
        ) as process,
    ):  # fmt: skip
        running = Arbiter(process, place, logfile)
        try:
            running.wait_for("Booting worker")
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def refused(place: Path, settings: str = "", *arguments: str) -> tuple[int, str]:
    """Start gunicorn with what it is to refuse; return its status and what it said."""
    (place / "conf.py").write_text(ALWAYS + settings)
    command = [*GUNICORN, "-c", str(place / "conf.py"), *arguments]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAMS}"}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, env=environ)
    return done.returncode, done.stdout + done.stderr
