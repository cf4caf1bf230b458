"""``greensock run`` and ``greensock proxy``: what they refuse, and what they do in one process."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys

import pytest
from arbiters import PROGRAMS, ROOT, Answered
from conftest import PATIENCE, read_all
from proxies import Origin

import greensock
from greensock.cli import main

COMMAND = [sys.executable, "-W", "error", "-m", "greensock"]
#: Routes in the place of the one to the upstream.
GONE = 'path = "/never"\nupstream = "a"\n[[routes]]\nanswer = { status = 410, body = "gone" }\n'
ENVIRON = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAMS}"}


def run(*arguments, cwd=ROOT):
    """Run it to its end; return exit status, output, errors."""
    done = subprocess.run([*COMMAND, *arguments], cwd=cwd, env=ENVIRON, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "arguments are required: COMMAND"),
        (["proxy"], "--config, or an --upstream at least, expected"),
        (["proxy", "--config", "x", "--upstream", "y"], "--config says it all"),
        (["proxy", "--upstream", "http://a", "--workers", "0"], "--workers=0: at least 1 expected"),
        (["proxy", "--upstream", "http://a", "--workers", "2", "--single"], "one of both expected"),
        (["run", "a:B", "--workers", "x"], "invalid int value: 'x'"),
        (["proxy", "--upstream", "http://a", "--single", "--user", "x"], "--user, --single: one of both expected"),
        (["run", "a:B", "--single", "--timeout", "5"], "--timeout, --single: one of both expected"),
        (["proxy", "reload"], "the following arguments are required: --pid"),
        (["check"], "the following arguments are required: FILE"),
        (["run", "a:B", "--timeout=-1"], "--timeout=-1: at least 0 expected"),
        (["run", "a:B", "--drain=-1"], "--drain=-1.0: a finite number of seconds, at least 0, expected"),
        (["run", "a:B", "--drain=nan"], "--drain=nan: a finite number"),
    ],
)
def test_wrong_flags(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["proxy", "--config", "/nowhere.toml"], "/nowhere.toml: "),
        (["proxy", "--upstream", "nonsense"], "expected"),
        (["check", "/nowhere.toml"], "/nowhere.toml: No such file or directory: a file that can be read expected"),
        (["run", "nonsense"], "'nonsense': MODULE:CLASS expected"),
        (["run", "a:B", "--operations", "0.0.0.0:9180"], "--operations: address='0.0.0.0:9180': one of this machine"),
        (["run", "a:B", "-o", "x"], "--option 'x': NAME=VALUE expected"),
        (["run", "--single", "no_such_module:B"], "there is no module 'no_such_module'"),
        (["run", "--single", "greensock:NoSuchClass"], "a subclass of greensock.Server expected, not None"),
        (["run", "--single", "greensock:Server", "-o", "backlog=0"], "backlog=0: a whole number of at least 1"),
        (["run", "--single", "greensock:Server", "-o", "blacklog=5"], "unknown option 'blacklog'"),
    ],
)
def test_what_is_wrong_has_status_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("gevent.monkey.patch_all", lambda: None)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"greensock {greensock.__version__}\n"


def test_without_gunicorn(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["proxy", "--upstream", "http://a"])
    assert "pip install 'greensock[proxy]', or --single" in capsys.readouterr().err


def test_check(capsys):
    assert main(["proxy", "--check", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"]) == 0
    assert capsys.readouterr().out == "the configuration is sound\n"
    assert main(["proxy", "--check", "--upstream", "http://127.0.0.1:1", "--listen", "192.0.2.1:80"]) == 2
    assert "192.0.2.1:80" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--single"], ["--workers", "2"]])
@pytest.mark.parametrize("command", ["run", "proxy"])
def test_a_port_that_is_taken(command, more, tmp_path):
    """Nothing is half started: no pid file, and the other address is not held."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["run", "greensock:Server", "--bind", address]
        if command == "proxy":
            arguments = ["proxy", "--upstream", "http://a", "--listen", str(tmp_path / "socket"), "--listen", address]
        status, output, errors = run(*arguments, *more, "--pid", str(tmp_path / "pid"))
    assert (status, output) == (1, "")
    assert "Address already in use" in errors
    assert address in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_one_process(serve, tmp_path):
    """It serves in the process itself, reads its configuration anew, and ends with 0."""
    origin = serve(Origin)
    path = tmp_path / "proxy.toml"
    text = f'listen = ["127.0.0.1:0"]\n[log]\npath = "none"\n[upstreams.a]\nservers = ["{origin.url}"]\n[[routes]]\n'
    path.write_text(text + 'upstream = "a"\n')
    command = [*COMMAND, "proxy", "--single", "--config", str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0]
            port = int(process.stdout.readline().rpartition(":")[2])
            assert ask(port).status == 200
            kept = socket.create_connection(("127.0.0.1", port))
            kept.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert kept.recv(12) == b"HTTP/1.1 200"
            path.write_text(text + GONE)
            process.send_signal(signal.SIGHUP)
            assert select.select([process.stderr], [], [], PATIENCE)[0]
            while "was read anew" not in process.stderr.readline():
                pass
            assert ask(port).status == 410
            process.terminate()  # while the old listener still hands over
            assert process.wait(3 * PATIENCE) == 0
            kept.close()
        finally:
            process.kill()


def test_one_process_of_a_class():
    command = [*COMMAND, "run", "--single", "served_classes:Site", "--bind", "127.0.0.1:0", "-o", "idle_timeout=7.5"]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRON, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0]
            assert ask(int(process.stdout.readline().rpartition(":")[2])).body.endswith(b" 7.5")
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def ask(port):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return Answered(read_all(sock))
