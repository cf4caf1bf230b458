"""The engine, compiled and not: one product. That each runs is what the whole suite shows, over both."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import PATIENCE, read_exactly, wait_until

from greensock import Connection, Server, compiled
from greensock.core import lifecycle, poller, receiving, sending, turns, workers

ROOT = Path(__file__).resolve().parent.parent
TYPED = sorted(path for path in (ROOT / "greensock").rglob("*.pxd") if path.with_suffix(".py").exists())
only_compiled = pytest.mark.skipif(not compiled, reason="the engine is not compiled here")


def run(code: str, pure: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GREENSOCK_PURE": pure, **more}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


# -- which one runs


def test_the_environment_chooses():
    tell = "import greensock; print(greensock.compiled)"
    assert run(tell, "1").stdout == "False\n"
    assert run(tell, "0").stdout in ("True\n", "False\n")
    if compiled:
        assert run(tell, "0").stdout == "True\n"
    refused = run(tell, "yes")
    assert refused.returncode == 1
    assert "ImportError: GREENSOCK_PURE='yes' in the environment: 0 or 1 expected" in refused.stderr


def test_all_of_it_or_nothing():
    """Half of an engine would read fields that the other half does not have."""
    for module in (lifecycle, poller, receiving, sending, turns, workers):
        assert module.__file__.endswith(".py") is not compiled


@only_compiled
@pytest.mark.parametrize("typed", TYPED, ids=lambda path: path.stem)
def test_what_is_compiled_is_what_is_written(typed):
    """``make`` does it; who calls pytest alone is told here that it tests what was written before."""
    (made,) = (typed.parent / "_compiled").glob(f"{typed.stem}.*{sys.version_info[0]}{sys.version_info[1]}-*.so")
    for source in (typed, typed.with_suffix(".py")):
        assert made.stat().st_mtime >= source.stat().st_mtime, f"{source} was changed: make .venv/compiled"


@pytest.mark.skipif(shutil.which("gcc") is None or not find_spec("Cython"), reason="there is no compiler here")
def test_with_a_compiler_it_is_compiled():
    """Else half of the suite would not be run, and nobody be told."""
    assert run("import greensock; print(greensock.compiled)", "0").stdout == "True\n"


def test_without_a_compiler_it_says_so_and_runs(tmp_path):
    pytest.importorskip("setuptools")
    ours = f"*{sysconfig.get_config_var('EXT_SUFFIX')}"
    for name in ("greensock", "setup.py", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    if compiled:
        assert list(tmp_path.rglob(ours)), "which must not be left: they are of another build"
    environment = {**os.environ, "CC": "/none", "GREENSOCK_PURE": "0"}
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    assert "greensock: the engine is not compiled, and runs in Python: " in built.stdout
    assert not list(tmp_path.rglob(ours))
    tell = [sys.executable, "-c", "import greensock; print(greensock.compiled, greensock.__file__)"]
    told = subprocess.run(tell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60).stdout
    assert told == f"False {tmp_path / 'greensock' / '__init__.py'}\n"


# -- what a program sees of it


def test_it_is_called_in_the_same_way():
    """The names and the defaults of what is public, and where it is written."""
    tell = (
        "import inspect, json, greensock\n"
        "kind = greensock.Connection\n"
        "print(json.dumps({name: [str(inspect.signature(getattr(kind, name))), inspect.getdoc(getattr(kind, name))]\n"
        "    for name in dir(kind) if name[0] != '_' and callable(getattr(kind, name))}))"
    )
    ours, pure = (json.loads(run(tell, each).stdout) for each in ("0", "1"))
    assert ours.keys() == pure.keys()

    def plain(text: str) -> str:  # the names of types, which the compiled one leaves out
        return re.sub(r": [^,)=]+(?=[,)=])| ?-> .*$| ", "", re.sub(r"\[[^][]*\]|\[[^][]*\[[^][]*\][^][]*\]", "", text))

    for name, (signature, doc) in pure.items():
        assert plain(ours[name][0]) == plain(signature), name
        assert ours[name][1] == doc, name


class Named(Connection):
    __slots__ = ("name",)

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.name = "mine"

    def send(self, data, *more, **options):
        return super().send(data.upper(), *more, **options)

    def recv(self, *arguments, **options):
        return super().recv(*arguments, **options) + b"!"


def test_a_class_of_ones_own(serve, connect):
    """Attributes with and without ``__slots__``, weak references, methods in the place of ours."""
    seen = []

    class Calls(Server):
        connection_class = Named

        def connection_recv(self, conn, data):
            conn.color = "red"
            seen.append((conn.name, weakref.ref(conn)() is conn, vars(conn)))
            conn.send(data)
            conn.send(conn.recv())

    sock = connect(serve(Calls))
    sock.sendall(b"a")
    assert read_exactly(sock, 1) == b"A"
    sock.sendall(b"b")
    assert read_exactly(sock, 2) == b"B!"
    assert seen == [("mine", True, {"color": "red"})]


@only_compiled
def test_nothing_of_ours_overrides_what_is_called_in_c():
    """A method that the .pxd says is C's alone is called without a look at the class."""
    hidden = {
        name for path in TYPED for name in re.findall(r"^    cdef [^(=\n]*?(\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert "_recv" in hidden
    owners = {Connection, *Connection.__mro__, poller.Poller}
    kinds, found = list(owners), []
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__() if kind is not object else []
        if kind not in owners:
            found += [f"{kind.__name__}.{name}" for name in hidden & vars(kind).keys()]
    assert not found


# -- finding out what it does


def test_a_traceback_names_the_lines_of_the_engine_too(serve, connect, caplog):
    class Fails(Server):
        def connection_recv(self, conn, data):
            raise RuntimeError("from the upcall")

    server = serve(Fails)
    connect(server).sendall(b"x")
    wait_until(lambda: server.statistics().errors)
    (record,) = [each for each in caplog.records if each.exc_info]
    text = record.exc_text or ""
    lines = re.findall(r'File "(.*?)", line (\d+), in (\S+)', text)
    (file, number, _), *_ = [each for each in lines if each[0].endswith("turns.py")]
    source = Path(file) if Path(file).is_absolute() else ROOT / file
    assert source == ROOT / "greensock" / "core" / "turns.py"
    assert "on_recv(conn, data)" in source.read_text().splitlines()[int(number) - 1]
    assert "on_recv(conn, data)" in text
    assert inspect.getsourcefile(Fails) in text


@only_compiled
def test_a_traceback_has_the_text_of_the_lines_from_anywhere(tmp_path):
    code = (
        "import greensock, traceback\n"
        "from greensock.core.poller import get_poller\n"
        "try:\n"
        "    get_poller().register(None)\n"
        "except Exception:\n"
        "    traceback.print_exc()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GREENSOCK_PURE": "0"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    ).stderr
    assert 'File "greensock/core/poller.py", line' in told
    assert "self._epoll.register(endpoint._fd, interest)" in told


DEBUGGED = """
from gevent import monkey; monkey.patch_all()
import socket
from greensock import Server

class Stops(Server):
    def connection_recv(self, conn, data):
        number = len(data)
        breakpoint()
        conn.send(data)

server = Stops(("127.0.0.1", 0))
server.start()
sock = socket.create_connection(server.address)
sock.sendall(b"abc")
print("got", sock.recv(3))
server.stop(0)
"""


def test_pdb_in_an_upcall():
    commands = "p number\np conn.bytes_received\nup\nc\n"
    environment = {**os.environ, "PYTHONBREAKPOINT": "pdb.set_trace"}
    told = subprocess.run(
        [sys.executable, "-c", DEBUGGED],
        cwd=ROOT,
        env=environment,
        input=commands,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
    )
    assert told.stdout.count("(Pdb) 3") == 2, told.stdout + told.stderr
    assert "got b'abc'" in told.stdout
