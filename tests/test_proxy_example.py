"""The reverse proxy as a program: its tour, its flags, its configuration, what it says of a wrong one."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE
from proxies import Origin

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-W", "error", "-m", "examples.reverse_proxy"]


def run(*arguments):
    """Run it to its end; return exit status, output, errors."""
    done = subprocess.run([*PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def running(*arguments):
    """Start it; give the process and the port it listens on."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*PROGRAM, *arguments], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0]
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1:"), line + process.stderr.read()
            yield process, int(line.rpartition(":")[2])
        finally:
            if process.poll() is None:
                process.kill()


def test_the_tour():
    status, output, _ = run("--once", "--listen", "127.0.0.1:0")
    assert status == 0, output
    assert "FAILED" not in output
    for text in ("a page ", "a WebSocket", "405, Allow: ", "the server that was down answers again"):
        assert text in output
    assert re.search(r'"GET /echo HTTP/1.1" 101 .* upstream="127.0.0.1:\d+" us="101"', output)
    assert re.search(r'upstream="127.0.0.1:\d+, 127.0.0.1:\d+" us="-, 200"', output), "the second try is logged"


def test_before_a_server(serve, tmp_path):
    origin = serve(Origin)
    log = tmp_path / "access.log"
    with running("--listen", "127.0.0.1:0", "--upstream", origin.url, "--log", str(log)) as (process, port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("GET", "/x?y=1")
        assert client.getresponse().read() == b"GET /x?y=1 "
        client.close()
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "", "")
    assert '"GET /x?y=1 HTTP/1.1" 200 ' in log.read_text()


def test_with_a_file(serve, tmp_path):
    origin = serve(Origin)
    path = tmp_path / "proxy.toml"
    path.write_text(
        f'listen = ["127.0.0.1:0"]\n[upstreams.app]\nservers = ["{origin.url}"]\n'
        '[[routes]]\npath = "/old"\nredirect = { location = "/new", status = 301 }\n'
        '[[routes]]\nupstream = "app"\nrequest_fields = { set = { X-From = "{client}" } }\n'
    )
    assert run("--check", "--config", str(path)) == (0, "the configuration is sound\n", "")
    with running("--config", str(path)) as (_, port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for target, status in (("/old", 301), ("/x", 200)):
            client.request("GET", target)
            answer = client.getresponse()
            answer.read()
            assert answer.status == status
        client.close()
    assert (b"X-From", b"127.0.0.1") in origin.seen[0][2]


def test_a_wrong_file(tmp_path):
    path = tmp_path / "proxy.toml"
    path.write_text('lissten = "x"\n[timeouts]\nconnect = -1\n[upstreams.app]\nservers = ["ftp://a"]\n')
    status, output, errors = run("--check", "--config", str(path))
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 3
    assert f'{path}: lissten = "x": no such key: listen?' in errors
    assert f'{path}: [timeouts] connect = -1: seconds, more than 0, or "none" expected' in errors
    assert f'{path}: [upstreams.app] servers no. 1 url = "ftp://a": ' in errors


@pytest.mark.parametrize(
    "arguments", [["--config", "x", "--upstream", "y"], ["--config", "/nowhere.toml"], ["--upstream", "nonsense"]]
)
def test_wrong_flags(arguments):
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert "expected" in errors or "don't go with it" in errors
