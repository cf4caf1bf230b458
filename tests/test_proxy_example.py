"""The reverse proxy as a program: its tour, its flags, its configuration, what it says of a wrong one."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from gevent.event import Event
from proxies import Origin

from greensock import TLS
from greensock.core.turns import QUIET_SECONDS
from greensock.http import HTTPClient

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
    status, output, _ = run("--once", "--listen", "127.0.0.1:0", "--log", "-")
    assert status == 0, output
    assert "in a browser" not in output, "it has ended"
    assert "FAILED" not in output
    for text in ("a page ", "a WebSocket", "405, Allow: ", "the server that was down answers again"):
        assert text in output
    assert re.search(r'"GET /echo HTTP/1.1" 101 .* upstream="127.0.0.1:\d+" us="101"', output)
    assert re.search(r'upstream="127.0.0.1:\d+, 127.0.0.1:\d+" us="-, 200"', output), "the second try is logged"


def test_after_the_tour_it_serves_and_says_so():
    with running("--listen", "127.0.0.1:0") as (process, port):
        said = [process.stdout.readline() for _ in range(10)]
        assert said[-1] == f"It serves now: open http://127.0.0.1:{port}/ in a browser. Ctrl-C ends it.\n"
        assert not any("HTTP/1.1" in line for line in said), "the log does not bury the tour"
        assert get(("127.0.0.1", port), target="/", end=b"</script>\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_a_certificate_that_is_made_for_a_try(tmp_path):
    with running("--listen", "127.0.0.1:0", "--tls-self-signed") as (process, port):
        said = [process.stdout.readline() for _ in range(10)]
        assert said[-1] == f"It serves now: open https://127.0.0.1:{port}/ in a browser. Ctrl-C ends it.\n"
        with HTTPClient(tls=TLS(verify=False)) as client:
            assert b"It works" in client.get(f"https://localhost:{port}/").read_all()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_it_runs_by_its_path(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "reverse_proxy.py"), "--check", "--upstream", "http://a"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the configuration is sound\n", "")


def test_standard_output_that_is_closed():
    command = ["sh", "-c", 'exec "$0" "$@" >&-', *PROGRAM, "--listen", "127.0.0.1:0", "--upstream", "http://a"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "the log: target='-': standard output is closed: a path expected\n")


@pytest.mark.parametrize("is_logged", [True, False])
def test_signals_that_operators_send_end_nothing(serve, tmp_path, is_logged):
    origin = serve(Origin)
    log = str(tmp_path / "access.log") if is_logged else "none"
    with running("--listen", "127.0.0.1:0", "--upstream", origin.url, "--log", log) as (process, port):
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
            assert get(("127.0.0.1", port))
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "SIGHUP" in errors
    assert ("there is no log to be opened anew" in errors) is not is_logged


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
    foreign = tmp_path / "foreign.toml"
    foreign.write_text(path.read_text().replace("127.0.0.1:0", "192.0.2.1:80"))
    wrong = f'{foreign}:1: listen = "192.0.2.1:80": an address of this machine expected\n'
    assert run("--check", "--config", str(foreign)) == (2, "", wrong)
    with running("--config", str(path)) as (_, port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for target, status in (("/old", 301), ("/x", 200)):
            client.request("GET", target)
            answer = client.getresponse()
            answer.read()
            assert answer.status == status
        client.close()
    assert (b"X-From", b"127.0.0.1") in origin.seen[0][2]


def test_requests_end_before_it_stops(serve):
    came, go = Event(), Event()

    class Slow(Origin):
        def handle_request(self, request):
            came.set()
            go.wait()
            return super().handle_request(request)

    origin = serve(Slow)
    options = ["--upstream", origin.url, "--log", "none", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
    with running(*options) as (process, port):
        ports = port, int(process.stdout.readline().rpartition(":")[2])
        jobs = []
        for each in ports:
            came.clear()
            jobs.append(gevent.spawn(get, ("127.0.0.1", each)))
            assert came.wait(PATIENCE)
        process.terminate()
        wait_until(lambda: not any(map(is_listening, ports)))
        assert process.poll() is None
        gevent.sleep(1.2 * QUIET_SECONDS)  # longer than a server that is no proxy waits
        go.set()
        assert all(job.get() for job in jobs)
        assert process.wait(PATIENCE) == 0


def is_listening(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def open_files(pid):
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(fd))
    return found


def test_the_log_is_opened_anew(serve, tmp_path):
    origin = serve(Origin)
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with running("--listen", "127.0.0.1:0", "--upstream", origin.url, "--log", str(log)) as (process, port):
        assert get(("127.0.0.1", port))
        wait_until(lambda: log.exists() and log.read_bytes().endswith(b"\n"))
        log.rename(old)
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: str(old) not in open_files(process.pid))
        assert get(("127.0.0.1", port))
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert [path.read_text().count('"GET /x HTTP/1.1" 200') for path in (old, log)] == [1, 1]


def test_a_log_that_takes_nothing_stops_nobody(serve, tmp_path):
    origin = serve(Origin)
    with running("--listen", "127.0.0.1:0", "--upstream", origin.url, "--log", "/dev/full") as (process, port):
        assert all(get(("127.0.0.1", port)) for _ in range(3))
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (0, "")
    assert errors.rstrip().endswith("access log /dev/full: No space left on device; lines lost so far: 3")


def test_a_wrong_file(tmp_path):
    path = tmp_path / "proxy.toml"
    path.write_text('lissten = "x"\n[timeouts]\nconnect = -1\n[upstreams.app]\nservers = ["ftp://a"]\n')
    status, output, errors = run("--check", "--config", str(path))
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 3
    assert f'{path}:1: lissten = "x": no such key: listen?' in errors
    assert f'{path}:3: [timeouts] connect = -1: seconds, more than 0, or "none" expected' in errors
    assert f'{path}:5: [upstreams.app] servers no. 1 url = "ftp://a": ' in errors


def get(address, family=socket.AF_INET, target="/x", end=b"GET /x "):
    with socket.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target.encode())
        return read_all(sock).endswith(end)


def test_where_it_listens(serve, tmp_path):
    origin = serve(Origin)
    path = str(tmp_path / "proxy.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    has_ipv6 = os.path.exists("/proc/net/if_inet6")
    listen = [":0", "[::1]:0" if has_ipv6 else "127.0.0.1:0", "127.0.0.1:0", path]
    options = [part for address in listen for part in ("--listen", address)]
    pipe = subprocess.PIPE
    command = [*PROGRAM, "--upstream", origin.url, *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        said = [process.stdout.readline().removeprefix("listening on ").strip() for _ in listen]
        every, six, four, last = said
        port = int(every.rpartition(":")[2])
        assert get(("127.0.0.1", port))
        if has_ipv6:
            assert every == f"[::]:{port}"
            assert get(("::1", port), socket.AF_INET6)
            assert get(("::1", int(six.removeprefix("[::1]:"))), socket.AF_INET6)
        assert get(("127.0.0.1", int(four.removeprefix("127.0.0.1:"))))
        assert last == path
        assert get(path, socket.AF_UNIX)
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    clients = [line.split()[0] for line in output.splitlines()]
    assert clients == (["127.0.0.1", "::1", "::1", "127.0.0.1", "-"] if has_ipv6 else ["127.0.0.1"] * 2 + ["-"])
    assert not os.path.exists(path)


@pytest.mark.parametrize("address", ["192.0.2.1:1", "no.invalid:1", "/nowhere/proxy.sock"])
def test_where_it_cannot_listen(address):
    status, output, errors = run("--upstream", "http://127.0.0.1:1", "--listen", address)
    assert (status, output) == (1, "")
    assert errors.startswith(f"cannot listen on {address}: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "x", "--upstream", "y"],
        ["--config", "x", "--log", "y"],
        ["--config", "/nowhere.toml"],
        ["--upstream", "nonsense"],
        ["--check"],
    ],
)
def test_wrong_flags(arguments):
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert "expected" in errors or "wants a --config" in errors or "don't go with it" in errors
