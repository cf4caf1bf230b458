"""What signals do to a program that serves: each is run, signalled, and asked how it took it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import PATIENCE, wait_until

PROGRAM = """
from gevent import monkey; monkey.patch_all()
import faulthandler, gevent.event, os, signal, sys
from greensock import Server
from greensock.http import WSGIServer

PATIENCE = 30

class Slow(Server):
    def connection_recv(self, conn, data):
        say("upcall")
        gevent.event.Event().wait()

def say(*words):
    print(*words, flush=True)

def serve(server=None, run=True):
    server = server or Slow(("127.0.0.1", 0))
    server.start()
    say(server.server_port)
    if run:
        gevent.spawn(say, "ready")  # which comes when this greenlet waits: the signals are taken then
        server.serve_forever()
        say("returned")
    return server

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup starts with this one
"""


class Program:
    """A program that serves, which says its port when it does, and what happens to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def hear(self) -> str:
        return self.process.stdout.readline().rstrip("\n")

    def get_ready(self, servers: int = 1) -> list[int]:
        """Wait until it serves, and its handlers are there; return the ports."""
        heard = [self.hear() for _ in range(2 * servers)]
        assert heard.count("ready") == servers, heard
        return [int(port) for port in heard if port != "ready"]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


@contextlib.contextmanager
def running(text: str) -> Iterator[Program]:
    command = [sys.executable, "-c", PROGRAM + text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


MAIN = "serve()\nsay('goes on')"
BACKGROUND = """
gevent.spawn(serve)
try:
    gevent.sleep(PATIENCE)
except KeyboardInterrupt:
    say("interrupted")
"""
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
HARMLESS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", ENDING)
def test_in_the_main_greenlet_it_returns(number):
    with running(MAIN) as program:
        program.get_ready()
        program.send(number)
        assert program.end() == (0, "returned\ngoes on\n", "")


@pytest.mark.parametrize("number", ENDING)
def test_in_another_greenlet_the_program_sees_the_signal_when_all_has_stopped(number):
    with running(BACKGROUND) as program:
        program.get_ready()
        program.send(number)
        code, output, _ = program.end()
    if number == signal.SIGINT:
        assert (code, output) == (0, "returned\ninterrupted\n")
    else:
        assert (code, output) == (-number, "returned\n")


@pytest.mark.parametrize("program", [MAIN, BACKGROUND])
def test_what_operators_send_ends_nothing_and_is_said(program):
    with running(program) as program:
        (port,) = program.get_ready()
        for number in HARMLESS:
            program.send(number)
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"x")
                assert program.hear() == "upcall"
        program.send(signal.SIGTERM)
        program.send(signal.SIGINT)  # two of one kind may come as one
        _, _, errors = program.end()
    for number in HARMLESS:
        assert f"{number.name} is ignored; SIGTERM and SIGINT stop the server\n" in errors


OWN = {
    "signal.signal": "signal.signal(signal.{name}, lambda *a: say('own'))",
    "gevent.signal_handler": "own = gevent.signal_handler(signal.{name}, say, 'own')",
    "ignored": "signal.signal(signal.{name}, signal.SIG_IGN)",
}


@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize("number", [*ENDING, *HARMLESS])
def test_a_signal_that_is_the_programs_own_is_left_alone(number, how):
    with running(OWN[how].format(name=number.name) + "\n" + MAIN) as program:
        (port,) = program.get_ready()
        program.send(number)
        if how != "ignored":
            assert program.hear() == "own"
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"x")
            assert program.hear() == "upcall"
            for other in [other for other in ENDING if other is not number][:2]:
                program.send(other)
            code, output, errors = program.end()
    assert (code, output) == (0, "returned\ngoes on\n"), errors
    assert "ignored" not in errors


def test_what_faulthandler_listens_to_is_left_alone():
    with running("faulthandler.register(signal.SIGQUIT)\n" + MAIN) as program:
        program.get_ready()
        program.send(signal.SIGQUIT)
        wait_until(lambda: program.process.stderr.readline().startswith("Current thread"))
        program.send(signal.SIGTERM)
        assert program.end()[:2] == (0, "returned\ngoes on\n")


def test_all_are_given_back():
    text = """
addresses = [signal.getsignal(number) for number in range(1, 32)]
for _ in range(2):
    server = serve(run=False)
    gevent.spawn(server.stop)
    server.serve_forever()
    assert addresses == [signal.getsignal(number) for number in range(1, 32)]
try:
    os.kill(os.getpid(), signal.SIGINT)
    gevent.sleep(PATIENCE)
except KeyboardInterrupt:
    say("interrupted")
os.kill(os.getpid(), signal.SIGHUP)
"""
    with running(text) as program:
        program.hear(), program.hear()
        code, output, _ = program.end()
    assert (code, output) == (-signal.SIGHUP, "interrupted\n")


@pytest.mark.parametrize("set_own", ["signal.signal(15, lambda *a: tell())", "gevent.signal_handler(15, tell)"])
def test_a_handler_that_is_set_meanwhile_stays(set_own):
    text = f"""
server = serve(run=False)
told = gevent.event.Event()
def tell():
    say("own")
    told.set()
def job():
    global own
    own = {set_own}
    gevent.spawn(server.stop)
gevent.spawn(job)
server.serve_forever()
os.kill(os.getpid(), 15)
told.wait(PATIENCE)
say("ended")
"""
    with running(text) as program:
        program.hear()
        assert program.end() == (0, "own\nended\n", "")


TWO = """
others = [gevent.spawn(serve)]
{last}
say("goes on")
"""


@pytest.mark.parametrize(
    ("last", "code"), [("serve(); gevent.joinall(others)", 0), ("gevent.joinall([*others, gevent.spawn(serve)])", -15)]
)
def test_two_servers_stop_together(last, code):
    """If none is served in the main greenlet, the signal is passed on once both have stopped."""
    with running(TWO.format(last=last)) as program:
        program.get_ready(2)
        program.send(signal.SIGTERM)
        found, output, errors = program.end()
    assert found == code, errors
    assert output.count("returned\n") == 2
    assert ("goes on\n" in output) is (code == 0)


def test_of_two_servers_a_busy_one_is_waited_for_though_the_other_is_gone():
    with running(TWO.format(last="serve(); gevent.joinall(others)")) as program:
        _, busy = program.get_ready(2)  # the one in the main greenlet begins first
        with socket.create_connection(("127.0.0.1", busy)) as sock:
            sock.sendall(b"x")
            assert program.hear() == "upcall"
            program.send(signal.SIGTERM)
            assert program.hear() == "returned"
            assert "waits up to 30 s for 1 connections to end" in program.process.stderr.readline()
            program.send(signal.SIGINT)
            assert program.end() == (0, "returned\ngoes on\n", "")


def test_a_server_in_another_thread_takes_no_signals():
    text = """
job = gevent.get_hub().threadpool.spawn(serve)
job.get()
"""
    with running(text) as program:
        program.get_ready()
        program.send(signal.SIGTERM)
        assert program.end() == (-signal.SIGTERM, "", "")


def test_a_forked_child_ends_by_a_signal_as_ever():
    text = """
def fork():
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    say(os.WTERMSIG(status), server.started)
    os.kill(os.getpid(), signal.SIGTERM)
server = serve(run=False)
gevent.spawn(fork)
server.serve_forever()
say("returned")
"""
    with running(text) as program:
        program.hear()
        assert program.end() == (0, "15 True\nreturned\n", "")
