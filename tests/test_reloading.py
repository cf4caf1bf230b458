"""``greensock proxy reload``, ``greensock check``, and pid files."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from arbiters import PROGRAMS, ROOT
from conftest import PATIENCE, wait_until
from served import once

from greensock import reloading
from greensock.cli import main
from greensock.http import HTTPServer, Response
from greensock.pid_files import PidFile, RunningProxy, running_proxy
from greensock.reloading import reload_proxy
from greensock.sources import Refused

TEXT = """\
listen = ["127.0.0.1:0"]
[log]
path = "none"
error = "errors"
[upstreams.a]
servers = ["http://127.0.0.1:9"]
[[routes]]
path = "/never"
upstream = "a"
[[routes]]
answer = { status = 200, body = "${ONLY_THE_PROXY_HAS_IT}" }
"""


@pytest.fixture
def other():
    """A process that is none of ours."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def dead():
    """The number of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_a_pid_file_is_taken_and_removed(tmp_path, other, dead):
    path = tmp_path / "pid"
    for before in (None, "", "nonsense", str(other.pid), str(dead)):
        if before is not None:
            path.write_text(before)
        pid_file = PidFile(str(path))
        pid_file.remove()
        assert path.exists() == (before is not None), "it is not this one's yet"
        pid_file.take()
        assert int(path.read_text()) == os.getpid()
        pid_file.remove()
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="No such file or directory: a pid file that can be written expected"):
        PidFile(str(tmp_path / "none" / "pid")).take()
    there = list(tmp_path.iterdir())
    with pytest.raises(Refused, match="Is a directory: a pid file that can be written expected"):
        PidFile(str(tmp_path)).take()
    assert list(tmp_path.iterdir()) == there
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*")), "nor is anything left beside it"
    pid_file.take()
    path.write_text(str(other.pid))
    pid_file.remove()
    assert path.exists(), "it is somebody else's now"


def test_pid_files_that_lead_to_no_proxy(tmp_path, other, dead, capsys):
    path = tmp_path / "pid"
    for text, status, words in (
        (None, 1, "No such file or directory: the pid file of a proxy that runs expected"),
        ("nonsense", 2, "the number of a process expected, and not 'nonsense'"),
        ("-5", 2, "the number of a process expected"),
        (str(dead), 1, f"process {dead} is gone, and has left its pid file behind"),
        (str(other.pid), 2, f"process {other.pid} is no proxy of greensock, but 'sleep 60'"),
    ):
        if text is not None:
            path.write_text(text)
        assert main(["proxy", "reload", "--pid", str(path)]) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"{path}: ")
        assert words in said.err


@once
def test_a_proxy_is_told_to_read_anew(tmp_path, monkeypatch, capsys):
    """It is checked as that proxy will read it: with its environment, and where it stands."""
    monkeypatch.chdir(tmp_path.parent)  # which is put back: reload goes elsewhere
    file, pid, errors = tmp_path / "proxy.toml", tmp_path / "pid", tmp_path / "errors"
    file.write_text(TEXT)
    pid.write_text("1")  # of a process that is another program now
    command = [sys.executable, "-m", "greensock", "proxy", "--single", "--config", "proxy.toml", "--pid", "pid"]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAMS}", "ONLY_THE_PROXY_HAS_IT": "x"}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0]
            assert int(pid.read_text()) == process.pid
            assert running_proxy(str(pid)).config == "proxy.toml"
            with pytest.raises(Refused, match=f"process {process.pid} runs, whose pid file it is"):
                PidFile(str(pid)).take()
            assert main(["proxy", "reload", "--pid", str(pid)]) == 0
            assert capsys.readouterr().out == f"sent SIGHUP to process {process.pid}: its log says what comes of it\n"
            wait_until(lambda: errors.exists() and "server: the configuration was read anew" in errors.read_text())
            file.write_text(TEXT.replace("servers", "server"))
            before = errors.read_text()
            assert main(["proxy", "reload", "--pid", str(pid)]) == 2
            said = capsys.readouterr().err
            assert f'{file}:6: [upstreams.a] server = ["http://127.0.0.1:9"]: no such key: servers?' in said
            assert f"nothing was sent: process {process.pid} goes on with what it has" in said
            errors.rename(tmp_path / "errors.1")
            process.send_signal(signal.SIGUSR1)
            wait_until(lambda: "SIGUSR1" in (tmp_path / "errors.1").read_text())
            process.send_signal(signal.SIGHUP)  # without a look
            wait_until(lambda: errors.exists() and "the configuration stays as it was: " in errors.read_text())
            assert "proxy.toml:6: [upstreams.a] server = " in errors.read_text()
            assert (tmp_path / "errors.1").read_text().startswith(before)
            file.write_text(TEXT.replace('"errors"', '"stderr"').replace("a]", "b]").replace('"a"', '"b"'))
            assert main(["proxy", "reload", "--pid", str(pid), "--config", str(file)]) == 0
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert not pid.exists()


class Operators(HTTPServer):
    """Tells which workers serve: others with each question."""

    told: list[list[int]]
    token = ""

    def handle_request(self, request):
        assert request.path == "/status.json"
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return Response(b"", 401)
        pids = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        workers = [{"pid": pid, "state": "serving"} for pid in pids] + [{"pid": 1, "state": "ending"}]
        return Response(json.dumps({"workers": workers}))


@pytest.fixture
def signalled(monkeypatch):
    """What was signalled: nobody is."""
    sent = []
    monkeypatch.setattr(reloading, "running_proxy", lambda path: RunningProxy(99, None, ".", None))
    monkeypatch.setattr(reloading.os, "kill", lambda *told: sent.append(told))
    monkeypatch.setattr(reloading, "LOOK_EVERY", 0.001)
    return sent


def test_it_waits_for_what_comes_of_it(serve, signalled, monkeypatch, tmp_path):
    server = serve(Operators)
    address = "{}:{}".format(*server.address)
    server.told = [[5, 6], [5, 6], [6, 7], [7, 8]]
    assert reload_proxy("pid", operations=address) == "the configuration was read anew: 2 new processes serve"
    assert signalled == [(99, signal.SIGHUP)]
    monkeypatch.setattr(reloading, "OUTCOME", 0.01)
    with pytest.raises(Refused, match=r"sent SIGHUP to process 99, and after 0\.01 s old processes serve on"):
        reload_proxy("pid", operations=address)
    server.told = [[99]]
    said = reload_proxy("pid", operations=address)
    assert said.startswith("sent SIGHUP to process 99: its log says what comes of it; which configuration it has can't")
    sent = len(signalled)
    path = str(tmp_path / "operators")
    for wrong, words in {"nonsense": "HOST:PORT", path: "No such file", "127.0.0.1:1": "refused"}.items():
        with pytest.raises(Refused, match=words):
            reload_proxy("pid", operations=wrong)
    assert len(signalled) == sent, "without a way to know the outcome nothing is sent"
    told, server = server, serve(Operators, path)
    monkeypatch.setattr(reloading, "OUTCOME", 30.0)
    server.told = [[1], [2]]
    assert "1 new processes" in reload_proxy("pid", operations=path)
    # The configuration may name the address.
    for place, asked in ((path, server), (told.address, told)):
        asked.told = [[3], [4]]
        config = SimpleNamespace(operations=SimpleNamespace(place=place, token=None))
        monkeypatch.setattr(reloading, "load_config", lambda *told, config=config: config)
        assert "1 new processes" in reload_proxy("pid", "proxy.toml")
    # And its token, if reading needs it; else that is in a file.
    told.token = "let-me-in"
    told.told = [[3], [4], [4], [5], [5], [6]]
    config.operations.place = told.address
    assert reload_proxy("pid", "proxy.toml") == "sent SIGHUP to process 99: its log says what comes of it"
    config.operations.token = "let-me-in"
    assert "1 new processes" in reload_proxy("pid", "proxy.toml")
    (tmp_path / "token").write_text("let-me-in\n")
    assert "1 new processes" in reload_proxy("pid", operations=address, token_file=str(tmp_path / "token"))
    with pytest.raises(Refused, match="it answered 401, and not what its workers do: a token expected"):
        reload_proxy("pid", operations=address)
    with pytest.raises(Refused, match="the file of the operators' token expected"):
        reload_proxy("pid", operations=address, token_file=str(tmp_path / "none"))
    config.operations.place = ("::1", 1)
    assert reload_proxy("pid", "proxy.toml") == "sent SIGHUP to process 99: its log says what comes of it"


def test_check(tmp_path, capsys):
    file = tmp_path / "proxy.toml"
    text = TEXT.replace("${ONLY_THE_PROXY_HAS_IT}", "x").replace("127.0.0.1:9", "no.invalid:9")
    file.write_text(text.replace("errors", str(tmp_path / "errors")))
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr()
    assert said.out == "the configuration is sound\n"
    assert said.err.startswith(f'{file}:6: warning: [upstreams.a] servers no. 1 url = "http://no.invalid:9": a name')
    file.write_text(TEXT)
    assert main(["check", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{file}:11: [[routes]] no. 2 answer body = " in said.err
    assert not (tmp_path / "errors").exists()
