"""The servers of the storm, a program of their own: each does to a request what its number says, and writes down what.

``python storm_site.py SEED LOG HOST:PORT:INDEX...`` serves until it is killed. All of the log's lines are a
:data:`SIGHT`: one for every request whose head a server saw. They are written before anything else is done, in one call
each, so that they outlive a kill.

What becomes of a request is drawn from the seed, its number, and how often this process has seen it. So is a restart of
a server (its listener is closed for a moment, its connections are reset) from how many requests it has seen, and a
connection that is reset unheard from how many were accepted.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import os
import random
import re
import socket
import struct
import sys
import zlib
from collections import Counter
from typing import NamedTuple

import gevent.event
from gevent.pool import Group

__all__ = ["BLOB", "BYE", "EVIL", "FAULTS", "MIRROR", "MORTAL", "SIGHT", "Answer", "answer_to"]

#: Number of the request, index of the server, place of the fault in FAULTS.
SIGHT = struct.Struct("<IBB")
#: What bodies are cut from.
BLOB = random.Random(1).randbytes(1 << 21)
#: What a tunnel does to each byte, and what it says in the end.
MIRROR = bytes(byte ^ 0x5A for byte in range(256))
BYE = b"<bye>"
#: An answer that nobody asked for, as of a request that does not exist.
EVIL = b"HTTP/1.1 200 OK\r\nX-Id: 4000000000\r\nX-Sum: 0\r\nContent-Length: 4\r\n\r\nevil"

#: Seconds of a pause at the most: before an answer, and between an answer and what ends the connection.
LONG_PAUSE, SHORT_PAUSE = 0.03, 0.001

#: What a server does, and how often out of 1000.
WEIGHTS = {
    "": 790,
    "pauses": 60,  # and answers then
    "resets before its head": 15,
    "closes before its head": 15,
    "resets within its head": 10,
    "closes within its head": 10,
    "cuts its body": 15,
    "stalls before its head": 2,
    "stalls in its body": 2,
    "says something else": 8,
    "says more": 20,  # EVIL behind its answer, in the same piece
    "closes behind its answer": 25,
    "resets behind its answer": 8,
    "answers too early": 12,  # before it read the body, and closes
    "gives hints": 8,
}
FAULTS = list(WEIGHTS)
#: The server that is killed: a body of its that runs until close would look whole.
MORTAL = 3
#: A server restarts after so many requests.
LIFE = 900
#: Seconds that it is away.
AWAY = 0.02

_head_of = re.compile(rb"(\S+) /r/(\d+) HTTP/1\.1\r\n").match
_length_of = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE).search
_chunked = re.compile(rb"\r\ntransfer-encoding: chunked\r\n", re.IGNORECASE).search
_upgrade = re.compile(rb"\r\nupgrade: mirror\r\n", re.IGNORECASE).search


class Answer(NamedTuple):
    """What the sound answer to a request is."""

    #: Where in BLOB its body is.
    start: int
    size: int
    #: ``length``, ``chunked`` or ``close``.
    framing: str

    @property
    def body(self) -> memoryview:
        """The body."""
        return memoryview(BLOB)[self.start : self.start + self.size]


def answer_to(seed: int, number: int) -> Answer:
    """Return the sound answer to a request."""
    draw = random.Random(f"{seed} answer {number}").random
    kind = draw()
    if kind < 0.05:
        size = 0
    elif kind < 0.88:
        size = int(2000 * draw())
    elif kind < 0.98:
        size = int(60_000 * draw())
    else:
        size = 250_000 + int(250_000 * draw())
    framing = draw()
    return Answer(
        int(draw() * (len(BLOB) - size)), size, "length" if framing < 0.7 else "chunked" if framing < 0.92 else "close"
    )


class Cut(Exception):
    """The proxy has left."""


class Server:
    """One server."""

    def __init__(self, seed: int, log: int, address: tuple[str, int], index: int) -> None:
        self._seed = seed
        self._log = log
        self._address = address
        self._index = index
        self._accepted = 0
        self._heads = 0
        self._seen: Counter[int] = Counter()
        self._socks: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        """Listen, and accept in a greenlet."""
        self._listener = socket.create_server(self._address, backlog=256)
        self._due = self._heads + LIFE
        gevent.spawn(self._accept, self._listener, Group())

    def _accept(self, listener: socket.socket, group: Group) -> None:
        while self._heads < self._due:
            try:
                with gevent.Timeout(0.01, False):
                    sock, _ = listener.accept()
                    self._accepted += 1
                    group.spawn(self._serve, sock, self._accepted)
            except OSError:
                break
        listener.close()
        for sock in list(self._socks):
            reset(sock)
        group.kill()
        gevent.sleep(AWAY)
        self.listen()

    def _serve(self, sock: socket.socket, number: int) -> None:
        if random.Random(f"{self._seed} connection {self._index} {number}").random() < 0.01:
            return reset(sock)
        self._socks.add(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(sock)
            while self._answer(wire):
                pass
        except (Cut, OSError):
            pass
        finally:
            self._socks.discard(sock)
            sock.close()
        return None

    def _answer(self, wire: Wire) -> bool:
        """Do what is to be done to the next request; True if the connection goes on."""
        head = wire.head()
        method, digits = _head_of(head).groups()
        number = int(digits)
        nth = self._seen[number]
        self._seen[number] += 1
        chance = random.Random(f"{self._seed} fault {number} {nth} {self._index}")
        [fault] = chance.choices(FAULTS, WEIGHTS.values())
        draw = chance.random
        os.write(self._log, SIGHT.pack(number, self._index, FAULTS.index(fault)))
        self._heads += 1
        upgrade = _upgrade(head)
        found = _length_of(head)
        length = -1 if _chunked(head) else int(found[1]) if found else 0
        answer = answer_to(self._seed, number)
        if self._index == MORTAL and answer.framing == "close":
            answer = answer._replace(framing="chunked")
        if fault == "answers too early" and length:
            wire.send(b"HTTP/1.1 403 No\r\nX-Id: %d\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly" % number)
            return False
        if "before its head" in fault and draw() < 0.5:
            return self._break_off(wire, fault)  # with the request's body unread
        digest = wire.body_sum(length)
        if fault == "pauses":
            gevent.sleep(LONG_PAUSE * draw())
        elif "before its head" in fault or fault == "says something else":
            return self._break_off(wire, fault)
        elif "within its head" in fault:
            wire.send(b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nX-Sum" % number)
            return self._break_off(wire, fault)
        elif fault == "gives hints":
            wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </%d>\r\n\r\n" % number * 3)
        if upgrade:
            return self._tunnel(wire, number, fault, draw())
        head = b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nX-Sum: %d\r\n" % (number, digest)
        head += {
            "length": b"Content-Length: %d\r\n\r\n" % answer.size,
            "chunked": b"Transfer-Encoding: chunked\r\n\r\n",
            "close": b"\r\n",
        }[answer.framing]
        body = bytes(answer.body)
        if method == b"HEAD":
            body = b""
        elif answer.framing == "chunked":
            middle = len(body) // 3
            body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:middle], body[middle:]) if each)
            body += b"0\r\n\r\n"
        if fault in ("cuts its body", "stalls in its body") and len(body) > 1:
            wire.send(head + body[: 1 + int(draw() * (len(body) - 1))])
            if fault == "stalls in its body":
                wire.wait_end()
            if answer.framing == "close" or draw() < 0.5:
                reset(wire.sock)
            return False
        if fault == "says more" and len(body) < 16384 and (answer.framing != "close" or method == b"HEAD"):
            body += EVIL
        wire.send(head + body)
        if answer.framing == "close" and method != b"HEAD":
            return False
        if "behind its answer" in fault:
            gevent.sleep(SHORT_PAUSE * draw())
            return self._break_off(wire, fault)
        return True

    def _break_off(self, wire: Wire, fault: str) -> bool:
        if fault.startswith("resets"):
            reset(wire.sock)
        elif fault.startswith("stalls"):
            wire.wait_end()
        elif fault == "says something else":
            wire.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        return False

    def _tunnel(self, wire: Wire, number: int, fault: str, part: float) -> bool:
        wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nX-Id: %d\r\nUpgrade: mirror\r\nConnection: Upgrade\r\n\r\n" % number
        )
        left = int(part * 5000) if fault == "cuts its body" else 1 << 30
        while (data := bytes(wire.buffer) or wire.sock.recv(65536)) and left > 0:
            wire.buffer.clear()
            left -= len(data)
            wire.send(data.translate(MIRROR))
        if left <= 0:
            reset(wire.sock)
        else:
            wire.send(BYE)
        return False


class Wire:
    """A connection that is read by messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait_end(self) -> None:
        while self.sock.recv(65536):
            pass

    def more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise Cut
        self.buffer += data

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def until(self, mark: bytes) -> bytes:
        start = 0
        while (end := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark))
            self.more()
        return self.take(end + len(mark))

    def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self.more()
        taken = bytes(memoryview(self.buffer)[:count])
        del self.buffer[:count]
        return taken

    def body_sum(self, length: int) -> int:
        """Read a body, -1 for one in chunks, and return its checksum."""
        if length >= 0:
            return zlib.crc32(self.take(length)) if length else 0
        digest = 0
        while size := int(self.until(b"\r\n"), 16):
            digest = zlib.crc32(self.take(size), digest)
            assert self.take(2) == b"\r\n"
        assert self.until(b"\r\n") == b"\r\n", "no trailers were sent"
        return digest


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # closed before
    sock.close()


def main(seed: str, log: str, *servers: str) -> None:
    """Serve until killed."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for each in servers:
        host, port, index = each.split(":")
        Server(int(seed), fd, (host, int(port)), int(index)).listen()
    print("ready", flush=True)
    gevent.event.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
