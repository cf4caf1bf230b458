"""Every example, run as a program, spoken to, and ended by SIGTERM."""

from __future__ import annotations

import ast
import http.client
import json
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import gevent
import pytest
from conftest import PATIENCE, PAUSE, read_all, read_exactly, wait_until

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: Those that take ``--bind``; the reverse proxy and the users for Locust have tests of their own.
NAMES = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py") if path.stem not in ("reverse_proxy", "locustfile"))
#: Those among them that nobody connects to.
DATAGRAMS = ("statsd", "udp_echo")


def takes_sigterm(pid: int) -> bool:
    """Whether a process has a handler by now, which it makes after it has said where it listens."""
    (caught,) = re.findall(r"(?m)^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)


class Example:
    """A running example; ``output`` is what it printed at its end."""

    def __init__(self, process: subprocess.Popen[str], address: tuple[str, int]) -> None:
        self.process = process
        self.address = address
        self.output = ""

    def stop(self) -> str:
        """End it by SIGTERM, which it takes well and without a complaint."""
        wait_until(lambda: self.process.poll() is not None or takes_sigterm(self.process.pid))
        self.process.terminate()
        self.output, errors = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, errors) == (0, "")
        return self.output

    def connect(self, kind: socket.SocketKind = socket.SOCK_STREAM, **options: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        sock.settimeout(PATIENCE)
        sock.connect(self.address)
        return sock


@contextmanager
def running(name: str, *arguments: str) -> Iterator[Example]:
    command = [sys.executable, "-W", "error", "-m", f"examples.{name}", "--bind", "127.0.0.1:0", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=EXAMPLES.parent, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0], "it did not say where it listens"
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1:"), line + process.stderr.read()
            yield Example(process, ("127.0.0.1", int(line.rpartition(":")[2])))
        finally:
            if process.poll() is None:
                process.kill()


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = sock.recv(65536)
        assert piece, f"the input ended after {data[-100:]!r}"
        data += piece
    return data


# -- all of them


@pytest.mark.parametrize("name", NAMES)
def test_shape(name):
    """Short, and patched before anything else is imported."""
    source = (EXAMPLES / f"{name}.py").read_text()
    docstring, *statements = (ast.unparse(node) for node in ast.parse(source).body)
    assert docstring
    assert statements[:2] == ["from gevent import monkey", "monkey.patch_all()"]
    assert len(source.splitlines()) <= 80
    assert f"def test_{name}" in Path(__file__).read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DATAGRAMS])
def test_sigterm_ends_it_though_a_client_stays(name):
    with running(name) as example, example.connect() as sock, example.connect() as other:
        for client in (sock, other):  # an answer, where there is one, shows that it has been accepted
            client.sendall(b"KEYS\n")
        if name != "sink":
            assert sock.recv(1)
        else:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        example.stop()


@pytest.mark.parametrize("name", NAMES)
def test_help_and_a_bad_address(name):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"examples.{name}", *arguments]
        return subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=PATIENCE)

    assert "--bind HOST:PORT" in run("--help").stdout
    bad = run("--bind", "127.0.0.1:http")
    assert bad.returncode == 2
    assert "port 'http' is not a number" in bad.stderr
    # On Python 3.10 logging and gevent may complain of each other when the interpreter ends; that comes last.
    assert "Traceback" not in bad.stderr.partition("Exception ignored in")[0]


@pytest.mark.parametrize("name", NAMES)
def test_by_its_path_and_a_port_that_is_taken(name, tmp_path):
    """One line says it; by its path an example runs from any folder."""
    with socket.socket(type=socket.SOCK_DGRAM if name in DATAGRAMS else socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        if name not in DATAGRAMS:
            taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--bind", address]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    errors = done.stderr.partition("Exception ignored in")[0]  # as above
    assert re.fullmatch(r"cannot listen: .*Address already in use.*\n", errors), errors


def test_help_is_shown_as_it_is_written():
    command = [sys.executable, "-m", "examples.lines", "--help"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=PATIENCE)
    assert "\nSET key value   OK\nGET key         VALUE value, or NONE\n" in done.stdout


# -- each


def test_echo():
    with running("echo") as example, example.connect() as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        data = bytes(range(256)) * 8192
        sender = gevent.spawn(lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        assert read_all(sock) == data
        sender.get()
        example.stop()


def test_udp_echo():
    with running("udp_echo") as example, example.connect(socket.SOCK_DGRAM) as sock:
        for data in (b"hello", b"", bytes(65507)):
            sock.send(data)
            assert sock.recv(65536) == data
        example.stop()


def test_statsd():
    """Told by the client of that name, of which there are most, and by hand."""
    client = pytest.importorskip("statsd", reason="pip install -e '.[test]'")
    with running("statsd") as example, example.connect(socket.SOCK_DGRAM) as sock:
        told = client.StatsClient(*example.address, prefix="site")
        for _ in range(3):
            told.incr("visits")
        told.incr("visits", 5)
        told.decr("visits", 2)
        told.gauge("load", 7)
        told.gauge("load", -3, delta=True)
        told.timing("answer", 320)
        told.set("users", "ann")
        with told.pipeline() as several:
            several.set("users", "bob")
            several.set("users", "ann")
            several.timing("answer", 80)
        told.close()
        sock.send(b"sampled:1|c|@0.1\ntagged:2|c|#a:b\nnonsense\nx:y|c\nx:1|?\nx:1|c|@0\n\xff:1|c\nx:1|c|")
        figures = json.loads(example.stop())
    assert figures["site.visits|c"] == {"lines": 5, "sum": 6}
    assert figures["site.load|g"] == {"lines": 2, "value": 4}
    assert figures["site.answer|ms"] == {"lines": 2, "sum": 400}
    assert figures["site.users|s"] == {"lines": 3, "members": 2}
    assert figures["sampled|c"] == {"lines": 10, "sum": 10}
    assert figures["tagged|c|#a:b"] == {"lines": 1, "sum": 2}
    assert figures["\ufffd|c"] == {"lines": 1, "sum": 1}
    assert figures["statsd"] == {"wrong": 5, "lost": 0}


def test_sink():
    first, second = b"a" * 64 + b"b" * 64, bytes(range(64))
    with running("sink") as example:
        with example.connect() as sock:
            for start in range(0, len(first), 50):
                sock.sendall(first[start : start + 50])
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        with example.connect() as sock:
            sock.sendall(second + b"the beginning of another")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        report = json.loads(example.stop())
    assert report["messages"] == 3
    assert 1 <= report["best_second"] <= 3
    assert report["checksum"] == crc32(first + second)
    statistics = report["statistics"]
    assert (statistics["messages"], statistics["accepted"], statistics["active"]) == (3, 2, 0)
    assert statistics["bytes_received"] == 3 * 64 + len("the beginning of another")
    assert statistics["dropped"] == {"PEER_CLOSED": 1, "INCOMPLETE": 1}


def test_sink_says_how_many_a_second_also_of_none():
    with running("sink") as example:
        with example.connect() as sock:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        report = json.loads(example.stop())
    assert (report["messages"], report["best_second"], report["opening_seconds"]) == (0, 0, 0)


def test_lines():
    dialogue = [
        (b"GET a", b"NONE"),
        (b"KEYS", b"KEYS"),
        (b"SET a 1", b"OK"),
        (b"SET b two words ", b"OK"),
        (b"GET a", b"VALUE 1"),
        (b"GET b\r", b"VALUE two words "),
        (b"KEYS", b"KEYS a b"),
        (b"SET a ", b"OK"),
        (b"GET a", b"VALUE "),
        (b"DEL a", b"OK"),
        (b"DEL a", b"NONE"),
        (b"GET a", b"NONE"),
    ]
    nonsense = [b"", b"GET", b"GET a b", b"SET a", b"get a", b"KEYS x", b"DEL", b"QUIT now", b"\xff\0"]
    with running("lines") as example, example.connect() as sock:
        for request, answer in dialogue:
            sock.sendall(request + b"\n")
            assert read_until(sock, b"\n") == answer + b"\n", request
        for request in nonsense:
            sock.sendall(request + b"\n")
            assert read_until(sock, b"\n").startswith(b"ERROR "), request
        with example.connect() as other:  # the table is everybody's; requests may come in one piece
            other.sendall(b"GET b\nSET c 3\nQUIT\n")
            assert read_all(other) == b"VALUE two words \nOK\nBYE\n"
        sock.sendall(b"GET c\n")
        assert read_until(sock, b"\n") == b"VALUE 3\n"
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        example.stop()


def test_chat():
    with running("chat") as example, example.connect() as ann:
        assert read_until(ann, b"\n") == b"* guest1 is here\n"
        with example.connect() as bob:
            assert read_until(ann, b"\n") == read_until(bob, b"\n") == b"* guest2 is here\n"
            bob.sendall(b"hello\r\n\xff\n")
            for sock in (ann, bob):
                assert read_until(sock, "\ufffd\n".encode()) == "guest2: hello\nguest2: \ufffd\n".encode()
        assert read_until(ann, b"\n") == b"* guest2 has left\n"
        with example.connect() as rude:  # a line that never ends
            rude.sendall(b"x" * 2000)
            assert read_until(ann, b"left\n") == b"* guest3 is here\n* guest3 has left\n"
        ann.sendall(b"alone\n")
        assert read_until(ann, b"\n") == b"guest1: alone\n"
        ann.close()  # or the program would wait for it
        example.stop()


def test_gossip():
    """What one is told all know: over a peer that joined before, one that joined later, and without the one between."""

    def ask(node: Example, request: str) -> bytes:
        with node.connect() as sock:
            sock.sendall(request.encode())
            return read_until(sock, b"\n")

    def is_known(node: Example, key: str, value: bytes) -> bool:
        with gevent.Timeout(PATIENCE):
            while ask(node, f"GET {key}\n") != value + b"\n":
                gevent.sleep(PAUSE)
        return True

    with running("gossip") as first:
        join = "--join", "{}:{}".format(*first.address)
        assert ask(first, "SET early one two\nGET early\n") == b"one two\n"
        with running("gossip", *join) as second, running("gossip", *join) as third:
            assert is_known(second, "early", b"one two")
            assert is_known(third, "early", b"one two")
            assert ask(third, "SET early three\nSET late 1\nGET late\n") == b"1\n"
            assert is_known(first, "early", b"three")
            assert is_known(second, "late", b"1")
            first.stop()
            assert ask(second, "SET late 2\nGET late\n") == b"2\n"
            assert is_known(third, "late", b"2")  # they know each other by now
            second.stop()
            third.stop()


def hear(reader: BinaryIO, line: bytes, count: int) -> set[bytes]:
    """Read that many copies of the line, and return the other lines that came between them."""
    others = set()
    while count:
        found = reader.readline()
        if found == line:
            count -= 1
        else:
            others.add(found)
    return others


def test_chat_drops_a_slow_reader_and_nobody_else_waits():
    with running("chat") as example, example.connect() as ann, example.connect(SO_RCVBUF=4096) as slow:
        read_until(slow, b"* guest2 is here\n")
        with example.connect() as bob, ann.makefile("rb") as at_ann, bob.makefile("rb") as at_bob:
            read_until(bob, b"* guest3 is here\n")
            said, expected = b"x" * 1000 + b"\n", b"guest1: " + b"x" * 1000 + b"\n"
            others: set[bytes] = set()
            for _ in range(400):  # 20 MB: more than the kernel's buffers and the queue of 64 kB hold
                ann.sendall(said * 50)
                hear(at_ann, expected, 50)  # every line comes to those who read, while the slow one's queue fills
                others |= hear(at_bob, expected, 50)
                if others:
                    break
            assert others == {b"* guest2 has left\n"}
            with pytest.raises(ConnectionResetError):
                read_all(slow)
        ann.close()  # or the program would wait for it
        example.stop()


def test_hello_http():
    with running("hello_http") as example:

        def ask(path: str, body: bytes | None = None) -> tuple[int, bytes]:
            client = http.client.HTTPConnection(*example.address, timeout=PATIENCE)
            client.request("GET" if body is None else "POST", path, body)
            answer = client.getresponse()
            data = answer.read()
            client.close()
            return answer.status, data

        assert ask("/") == (200, b"hello, 127.0.0.1\n")
        assert ask("/countdown") == (200, b"3\n2\n1\n")
        assert ask("/", b"x" * 5000) == (200, b'{"bytes": 5000}')
        assert ask("/countdown", b"x") == (405, b"Method Not Allowed\n")
        assert ask("/nothing") == (404, b"Not Found\n")
        assert ask("/none") == (404, b"Not Found\n")
        example.stop()


def test_wsgi_app():
    with running("wsgi_app") as example:

        def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
            client = http.client.HTTPConnection(*example.address, timeout=PATIENCE)
            form = {"Content-Type": "application/x-www-form-urlencoded"} if method == "POST" else {}
            client.request(method, path, body, form)
            answer = client.getresponse()
            data = answer.read()
            client.close()
            return answer.status, data

        assert ask("POST", "/", b"note=first") == (201, b'{"number":1}\n')
        assert ask("POST", "/", b"note=second") == (201, b'{"number":2}\n')
        assert ask("GET", "/") == (200, b'{"notes":["first","second"],"you":"127.0.0.1"}\n')
        assert ask("GET", "/export") == (200, b"1. first\n2. second\n")
        assert ask("PUT", "/upload", b"x" * 1_000_000) == (200, b'{"bytes":1000000}\n')
        assert ask("POST", "/")[0] == 400
        example.stop()
