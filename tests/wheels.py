"""``make wheels``: build a wheel for each CPython that is here, 3.10 to 3.13, and try each where there is no compiler.

    python tests/wheels.py                    # into dist/
    python tests/wheels.py --pythons 3.12     # of that one alone

Each wheel is installed in an environment of its own, in which no compiler is found, from wheels alone; there the tests
of the engine run on what was installed, and not on this checkout. Then ``greensock[proxy]``: a proxy, its operators'
address with all that it shows, and each command. The wheels are for Linux machines with a C library
that is no older than this one's.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
#: What is run on each wheel, and what that needs.
TESTS = (
    "connection",
    "flags",
    "lifecycle",
    "poller",
    "receiving",
    "send_soon",
    "sending",
    "turns",
    "upcalls",
)
NEEDS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "trustme>=1.1")
#: Seconds that a program has to begin, to answer or to end, and between two looks whether it has begun.
STARTS_WITHIN, LOOK_EVERY = 60.0, 0.05


def interpreter(version: str) -> str | None:
    """Return a Python of that version: on the path, or one of pyenv's."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    places = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(places[-1]) if places else None


def build(python: str, place: Path) -> Path:
    """Build a wheel and return its file."""
    subprocess.run([python, "-m", "venv", place / "build"], check=True)
    pip = place / "build" / "bin" / "pip"
    environment = {**os.environ, "GREENSOCK_PURE": "0"}
    subprocess.run([pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT], check=True, env=environment)
    (wheel,) = place.glob("*.whl")
    return wheel


def test(python: str, wheel: Path, place: Path) -> None:
    """Install a wheel where there is no compiler, and run the tests of the engine on it."""
    home = place / "installed"
    subprocess.run([python, "-m", "venv", home], check=True)
    environment = {"PATH": f"{home / 'bin'}", "HOME": os.environ["HOME"], "CC": "/none"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    run = {"check": True, "env": environment, "cwd": place}
    pip = [home / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--only-binary", ":all:", wheel, *NEEDS], **run)
    own = home / "bin" / "python"
    tell = "import greensock; print(greensock.__version__, greensock.compiled, greensock.__file__)"
    told = subprocess.run([own, "-c", tell], capture_output=True, text=True, **run).stdout.split()
    assert told[1] == "True", told
    assert told[2].startswith(str(home)), told
    # Not beside the checkout: else that would be imported.
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    files = [f"tests/test_{name}.py" for name in TESTS]
    subprocess.run([own, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *files], **run)
    try_proxy(wheel, place, run)


#: A configuration that needs all that ``greensock[proxy]`` brings: google-re2 for the pattern, bcrypt for the password.
PROXY = """listen = ["127.0.0.1:0"]
[log]
path = "none"
[operations]
address = "127.0.0.1:{port}"
token = "0123456789abcdef"
[upstreams.app]
servers = ["{origin}"]
[[routes]]
path = "/secret"
upstream = "app"
basic_auth = {{ file = "htpasswd" }}
[[routes]]
pattern = "/[a-z.]*"
upstream = "app"
"""
#: Makes the file of ``basic_auth``.
HTPASSWD = "import bcrypt; print('ada:' + bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode())"
#: What operators are shown, and a word of each.
SHOWN = {
    "/": "<html",
    "/page.css": "{",
    "/page.js": "fetch",
    "/healthz": "",
    "/readyz": "",
    "/metrics": "greensock_requests_total",
    "/status.json": '"workers"',
}


def try_proxy(wheel: Path, place: Path, run: dict[str, Any]) -> None:
    """Install ``greensock[proxy]`` beside it, and be its operator: README's way in, and each command."""
    own = place / "installed" / "bin"
    pip = [own / "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    subprocess.run([*pip, f"{wheel}[proxy]"], **run)
    said = subprocess.run([own / "greensock", "--version"], capture_output=True, text=True, **run).stdout
    assert re.fullmatch(r"greensock \d+\.\d+\.\d+\S*\n", said), said
    (place / "site").mkdir()
    (place / "site" / "hello").write_text("hello")
    serving = [own / "python", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", place / "site"]
    with running(serving, place, run, r"127\.0\.0\.1 port (\d+)") as port:
        origin = f"http://127.0.0.1:{port}"
        way_in = [own / "greensock", "proxy", "--listen", "127.0.0.1:0", "--upstream", origin]
        with running(way_in, place, run, r"Listening at: (http://\S+)") as url:
            assert read(f"{url}/hello") == (200, "hello")
        with socket.create_server(("127.0.0.1", 0)) as free:
            operators = f"127.0.0.1:{free.getsockname()[1]}"
        config = place / "proxy.toml"
        config.write_text(PROXY.format(port=operators.rpartition(":")[2], origin=origin))
        hashed = subprocess.run([own / "python", "-c", HTPASSWD], capture_output=True, **run).stdout
        (place / "htpasswd").write_bytes(hashed)
        subprocess.run([own / "greensock", "check", config], **run)
        wrong = place / "wrong.toml"
        wrong.write_text(config.read_text().replace("servers", "serverz"))
        done = subprocess.run([own / "greensock", "check", wrong], **{**run, "check": False}, capture_output=True)
        assert (done.returncode, b"servers" in done.stderr) == (2, True), done
        command = [own / "greensock", "proxy", "--config", config, "--workers", "2"]
        with running(command, place, run, r"Listening at: (http://[^, ]+)") as url:
            assert read(f"{url}/hello") == (200, "hello")
            assert read(f"{url}/HELLO")[0] == 404
            assert read(f"{url}/secret")[0] == 401
            assert read(f"{url}/secret", "ada:secret")[0] == 404  # of the origin
            for target, word in SHOWN.items():
                status, body = read(f"http://{operators}{target}")
                assert (status, word in body) == (200, True), (target, status, body[:500])
            top = [own / "greensock", "top", operators, "--once", "--interval", "0.1"]
            assert b"app" in subprocess.run(top, capture_output=True, **run).stdout


@contextlib.contextmanager
def running(command: list[Any], place: Path, run: dict[str, Any], ready: str) -> Iterator[str]:
    """Start a program; give what ``ready`` finds in what it says. It is to end by SIGTERM, the proxy with 0."""
    said = place / f"said-{os.urandom(4).hex()}"
    with (
        open(said, "wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=run["env"], cwd=run["cwd"]) as process,
    ):
        try:
            due = time.monotonic() + STARTS_WITHIN
            while (found := re.search(ready, said.read_text())) is None:
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < due, said.read_text()
                time.sleep(LOOK_EVERY)
            yield found[1]
            process.terminate()
            status = process.wait(STARTS_WITHIN)
            assert status == 0 or b"http.server" in b" ".join(map(os.fsencode, command)), (status, said.read_text())
        finally:
            process.kill()


def read(url: str, user: str = "") -> tuple[int, str]:
    """Ask; return status and body."""
    fields = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=fields), timeout=STARTS_WITHIN) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", default=",".join(VERSIONS), help="versions, by commas; default: %(default)s")
    options = parser.parse_args()
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    made = 0
    for version in options.pythons.split(","):
        python = interpreter(version)
        if python is None:
            print(f"{version}: not here", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="wheel-") as place:
            wheel = build(python, Path(place))
            test(python, wheel, Path(place))
            shutil.copy(wheel, dist)
            print(f"{version}: dist/{wheel.name}", flush=True)
        made += 1
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
