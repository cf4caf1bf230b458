"""``make wheels``: build a wheel for each CPython that is here, 3.10 to 3.13, and try each where there is no compiler.

    python tests/wheels.py                    # into dist/
    python tests/wheels.py --pythons 3.12     # of that one alone

Each wheel is installed in an environment of its own, in which no compiler is found, from wheels alone; there the tests
of the engine run on what was installed, and not on this checkout. The wheels are for Linux machines with a C library
that is no older than this one's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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
NEEDS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")


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
