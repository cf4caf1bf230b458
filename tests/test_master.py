"""The master of many processes: reloads, workers that come and go, signals, systemd."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest
from arbiters import PROGRAMS, ROOT, arbiter
from conftest import PATIENCE, wait_until
from proxies import Origin
from served import once

from greensock.cli import main
from greensock.gunicorn import master as master_module
from greensock.gunicorn.base_worker import BEGUN
from greensock.gunicorn.master import LONGEST_PAUSE, SHORTEST_PAUSE, Master

pytestmark = once

#: Routes, of which the one to the upstream is never taken.
GONE = '[[routes]]\npath = "/never"\nupstream = "a"\n[[routes]]\nanswer = { status = 410, body = "gone" }\n'


def running(tmp_path, *arguments, where="served_classes:Site", workers=1):
    """``greensock run`` in a folder of its own."""
    command = [sys.executable, "-m", "greensock", "run", where, "--bind", "127.0.0.1:0", f"--workers={workers}"]
    return arbiter(tmp_path, "", command=[*command, *arguments])


def boots(master):
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", master.log())]


def test_a_reload_of_code(tmp_path):
    with running(tmp_path, "--pid", str(tmp_path / "pid")) as master:
        assert int((tmp_path / "pid").read_text()) == master.process.pid
        before = master.ask()
        assert before.text == "hello 75.0"
        (tmp_path / "words").write_text("new")
        master.send(signal.SIGHUP)
        wait_until(lambda: master.ask().text == "new 75.0")
        wait_until(lambda: not os.path.exists(f"/proc/{before.pid}"))
        # New code that is broken: the old one serves on, and a worker is tried again, later and later.
        (tmp_path / "words").write_text("broken")
        master.send(signal.SIGHUP)
        master.wait_for("It is tried again in 0.5 s.")
        assert master.ask().text == "new 75.0"
        (tmp_path / "words").write_text("mended")
        wait_until(lambda: master.ask().text == "mended 75.0")
        assert master.stop() == 0
        assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("no_such_module:Class", "there is no module 'no_such_module'"),
        ("served_classes:NO_CLASS", "a subclass of greensock.Server expected, not 5"),
        ("served_classes:Odd", "it wants something else"),
    ],
)
@pytest.mark.parametrize("workers", [1, 4])
def test_a_first_worker_that_cannot_begin_halts_all(tmp_path, where, words, workers):
    with running(tmp_path, "--pid", str(tmp_path / "pid"), where=where, workers=workers) as master:
        assert master.process.wait(PATIENCE) == 4
        assert words in master.log()
        assert "Traceback" not in master.log()
        assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("pid", ["taken", "nowhere/pid"])
def test_a_pid_file_that_cannot_be_had(tmp_path, pid):
    """Nothing is half started then."""
    (tmp_path / "taken").write_text(str(os.getpid()))
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "greensock", "run", "served_classes:Site", "--bind", str(path)]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{PROGRAMS}"}
    done = subprocess.run(
        [*command, "--pid", str(tmp_path / pid)], env=environ, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert str(tmp_path / pid.partition("/")[0]) in done.stderr
    assert "Traceback" not in done.stderr
    assert not path.exists()


def test_a_worker_that_is_killed_and_one_that_hangs(tmp_path):
    with running(tmp_path, "--timeout=2") as master:  # a busy machine does not hold one up for so long
        first = master.ask().pid
        os.kill(first, signal.SIGKILL)
        second = master.ask().pid
        assert second != first
        with master.connect() as sock:
            sock.sendall(b"GET /busy?60 HTTP/1.1\r\nHost: a\r\n\r\n")
            master.wait_for("hangs here")

            def is_another_there():
                with contextlib.suppress(ConnectionError):  # of the one that ends, and may answer or not
                    answer = master.ask()
                    return answer.status and answer.pid not in (first, second)

            wait_until(is_another_there)
        assert re.search(r"hangs here:\n(.*\n)*?.*in handle_request\n", master.log())


def test_a_worker_that_cannot_be_forked_is_tried_again(tmp_path):
    """A system has no room for one more process, and then it has some."""
    program = "import os, sys; from greensock.cli import main; fork = os.fork\n"
    program += "def full():\n  if os.path.exists('room'): return fork()\n  raise BlockingIOError(11, 'no room')\n"
    program += "os.fork = full; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "run", "served_classes:Site", "--bind", "127.0.0.1:0", "--workers=2"]
    (tmp_path / "room").touch()
    with arbiter(tmp_path, "", command=command) as master:
        master.wait_for("Booting worker", times=2)
        (tmp_path / "room").unlink()
        pid = master.ask().pid
        os.kill(pid, signal.SIGKILL)
        master.wait_for("A worker cannot be made: [Errno 11] no room. It is tried again in 0.5 s.")
        assert master.ask().pid != pid
        (tmp_path / "room").touch()
        master.wait_for("Booting worker", times=3)
        assert master.stop() == 0
        assert "Traceback" not in master.log()


def test_the_pause_is_short_again_once_a_worker_has_begun():
    """One that began before says nothing of why others cannot."""
    master = Master.__new__(Master)  # of which no more is looked at
    master._pause, master._has_served, master.worker_age, master._num_workers = 0.0, True, 3, 1
    master.log = SimpleNamespace(error=lambda *words: None)
    with tempfile.TemporaryFile() as file:
        file.truncate(BEGUN)
        master.WORKERS = {1: SimpleNamespace(age=1, tmp=file)}
        pauses = []
        for _ in range(10):
            master._put_off("It cannot begin.")
            master.manage_workers()
            pauses.append(master._pause)
        assert pauses[:3] == [SHORTEST_PAUSE, 2 * SHORTEST_PAUSE, 4 * SHORTEST_PAUSE]
        assert pauses[-1] == LONGEST_PAUSE
        master.WORKERS[2], master._num_workers = SimpleNamespace(age=4, tmp=file), 2
        master.manage_workers()
        master._put_off("It cannot begin.")
        assert master._pause == SHORTEST_PAUSE


def test_new_workers_start_one_after_the_other_while_old_ones_serve(monkeypatch):
    """And each of these goes when one of those has begun."""
    monkeypatch.setattr(master_module, "AT_ONCE", 2)
    master = Master.__new__(Master)  # of which no more is looked at
    master._spawn_at, master._failed_age, master._has_served, master._num_workers = 0.0, 0, True, 5
    ended = []
    master.kill_worker = lambda pid, number: ended.append(pid)
    with tempfile.TemporaryFile() as before, tempfile.TemporaryFile() as begun:
        begun.truncate(BEGUN)
        master.WORKERS = {age: SimpleNamespace(age=age, pid=age, tmp=begun, is_to_end=True) for age in range(5)}

        def spawn():
            age = len(master.WORKERS)
            master.WORKERS[age] = SimpleNamespace(age=age, pid=age, tmp=before)
            return age

        master.spawn_worker = spawn
        seen = []
        for _ in range(6):
            master.manage_workers()
            seen.append((len(master.WORKERS) - 5, len(ended)))
            starting = [worker for worker in master.WORKERS.values() if worker.tmp is before]
            for worker in starting[:1]:
                worker.tmp = begun
        assert seen == [(2, 0), (3, 1), (4, 2), (5, 3), (5, 4), (5, 5)]
        assert ended == [0, 1, 2, 3, 4]
        # Where none serves, all start at once.
        master.WORKERS.clear()
        master.manage_workers()
        assert len(master.WORKERS) == 5


def test_a_second_sigterm_hastens_the_end(tmp_path):
    with running(tmp_path) as master, master.connect() as sock:
        sock.sendall(b"GET /sleep?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert master.ask().status == 200
        master.send(signal.SIGTERM)
        master.wait_for("Handling signal: term")
        began = time.monotonic()
        assert master.stop() == 0
        assert time.monotonic() - began < 3


def test_more_and_fewer_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")  # not for this one: it listens as it was told
    with running(tmp_path) as master:
        wait_until(lambda: len(boots(master)) == 1)
        master.send(signal.SIGTTIN)
        wait_until(lambda: len(boots(master)) == 2)
        master.send(signal.SIGTTOU)
        wait_until(lambda: not os.path.exists(f"/proc/{boots(master)[0]}"))
        assert master.ask().pid == boots(master)[1]


def test_a_proxy_whose_file_changes(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # which is put back: reload goes where the proxy stands
    origin = serve(Origin)
    path, access = tmp_path / "proxy.toml", tmp_path / "access"
    errors = tmp_path / "errors"
    text = f'listen = ["127.0.0.1:0"]\n[log]\npath = "{access}"\nerror = "{errors}"\n'
    text += f'[upstreams.a]\nservers = ["{origin.url}"]\n'
    path.write_text(text + '[[routes]]\nupstream = "a"\n')
    command = [sys.executable, "-m", "greensock", "proxy", "--config", str(path)]
    with arbiter(tmp_path, command=[*command, "--pid", str(tmp_path / "pid")], logfile="errors") as master:
        wait_until(lambda: len(boots(master)) == len(os.sched_getaffinity(0)))
        assert master.ask().status == 200
        path.write_text(text + '[[routes]]\nupstream = "b"\n')
        assert main(["proxy", "reload", "--pid", str(tmp_path / "pid")]) == 2
        assert f'{path}:8: [[routes]] no. 1 upstream = "b"' in capsys.readouterr().err
        master.send(signal.SIGHUP)
        master.wait_for("the configuration stays as it was: ")
        assert f'{path}:8: [[routes]] no. 1 upstream = "b"' in master.log()
        assert master.ask().status == 200
        path.write_text(text + GONE)
        assert main(["proxy", "reload", "--pid", str(tmp_path / "pid")]) == 0
        wait_until(lambda: master.ask().status == 410)
        wait_until(lambda: access.read_text().count(" 410 ") >= 1)
        access.rename(tmp_path / "access.1")
        master.logfile = errors.rename(tmp_path / "errors.1")
        master.send(signal.SIGUSR1)
        wait_until(lambda: master.ask() and access.exists() and " 410 " in access.read_text())
        assert master.stop() == 0
    assert "Handling signal: term" in errors.read_text()
    assert "Handling signal: term" not in (tmp_path / "errors.1").read_text()


def test_a_reload_that_finds_its_address_taken_changes_nothing(tmp_path):
    """Nor for a worker that takes the place of one that died."""
    path = tmp_path / "proxy.toml"
    text = '[upstreams.a]\nservers = ["http://127.0.0.1:9"]\n'
    path.write_text('listen = ["127.0.0.1:0"]\n' + text + GONE.replace("410", "404"))
    command = [sys.executable, "-m", "greensock", "proxy", "--config", str(path), "--workers=1"]
    with arbiter(tmp_path, command=command) as master, socket.create_server(("127.0.0.1", 0)) as taken:
        assert master.ask().status == 404
        path.write_text(f'listen = ["127.0.0.1:{taken.getsockname()[1]}"]\n' + text + GONE)
        master.send(signal.SIGHUP)
        master.wait_for("the configuration stays as it was: ")
        os.kill(boots(master)[0], signal.SIGKILL)
        wait_until(lambda: len(boots(master)) == 2)
        assert master.ask().status == 404
        assert master.stop() == 0


def test_what_is_given_and_is_no_socket(tmp_path):
    """Nothing is half started then."""
    program = "import os, sys; os.dup2(os.open('/dev/null', os.O_RDONLY), 3); os.set_inheritable(3, True);"
    program += "os.environ['LISTEN_PID'] = str(os.getpid());"
    program += "os.execv(sys.executable, [sys.executable, '-m', 'greensock', 'run', 'a:B', '--pid', 'pid'])"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "LISTEN_FDS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "listening sockets expected, of those that LISTEN_FDS says are given: " in done.stderr
    assert "Socket operation on non-socket" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reload_closes_the_listener_that_is_no_more_of_those_given(tmp_path):
    """Whatever order they were given in."""
    path = tmp_path / "proxy.toml"
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        goes, stays = first.getsockname()[1], second.getsockname()[1]

        def write(*ports):
            listen = [f"127.0.0.1:{port}" for port in ports]
            path.write_text(f'listen = {listen}\n[upstreams.a]\nservers = ["http://127.0.0.1:9"]\n{GONE}')

        write(stays, goes)
        given = [first.fileno(), second.fileno()]
        program = f"import fcntl, os, sys; kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 30) for fd in {given}];"
        program += f"[os.set_inheritable(fd, False) for fd in {given}];"
        program += "[os.dup2(fd, number) for number, fd in enumerate(kept, 3)];"
        program += "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2');"
        program += f"arguments = ['-m', 'greensock', 'proxy', '--config', {str(path)!r}, '--workers=1'];"
        program += "os.execv(sys.executable, [sys.executable, *arguments])"
        with arbiter(tmp_path, command=[sys.executable, "-c", program], pass_fds=given) as master:
            assert [address[1] for address in master.addresses] == [goes, stays]
            first.close()
            second.close()
            write(stays)
            master.send(signal.SIGHUP)
            master.wait_for("the configuration was read anew")
            assert master.ask(which=1).status == 410
            with pytest.raises(ConnectionRefusedError):
                wait_until(lambda: socket.create_connection(("127.0.0.1", goes)).close())
            assert master.stop() == 0


def test_systemd(tmp_path):
    """It takes the socket that it is given, and says when it is ready, reads anew, is alive and stops."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, socket.create_server(("127.0.0.1", 0)) as given:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE)
        program = f"import os, sys; os.dup2({given.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        program += "arguments = '-m greensock run served_classes:Site --operations ./operators'.split();"
        program += "os.execv(sys.executable, [sys.executable, *arguments])"
        environ = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{PROGRAMS}",
            "LISTEN_FDS": "1",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "1000000",
        }
        with (
            open(tmp_path / "stderr", "wb") as stderr,
            subprocess.Popen(
                [sys.executable, "-c", program], cwd=tmp_path, env=environ, pass_fds=[given.fileno()], stderr=stderr
            ) as process,
        ):
            try:
                heard = ""

                def hear(words):
                    nonlocal heard
                    while words not in heard:
                        heard += notified.recv(4096).decode() + "\n"
                    heard = heard.partition(words)[2]

                hear("READY=1")
                assert (tmp_path / "operators").is_socket()  # which is opened beside the one that was given
                with socket.create_connection(given.getsockname()) as sock:
                    sock.settimeout(PATIENCE)
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert b"200 OK" in sock.recv(4096)
                hear("WATCHDOG=1")
                process.send_signal(signal.SIGHUP)
                hear("RELOADING=1\nMONOTONIC_USEC=")
                hear("READY=1")
                process.terminate()
                hear("STOPPING=1")
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
