"""One request over one connection, every byte of its answer checked; long bodies at the speed of a plain socket."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable

from loadtests.peers.http_common import BLOCK

__all__ = ["WrongAnswer", "download", "fetch", "unverified", "upload"]

#: Seconds that a step may take.
PATIENCE = 30.0
#: Bytes of a head, at most.
HEAD = 16384


class WrongAnswer(AssertionError):
    """The answer is another than the request asked for, or there was none."""


def unverified() -> ssl.SSLContext:
    """Return how TLS is spoken with a server whose certificate was made for this run."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Exchange:
    """A request that was sent, and what is read of its answer."""

    def __init__(self, address: str, head: str, body: Iterable[bytes] = (), tls: bool = False) -> None:
        host, _, port = address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), PATIENCE)
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self._sock = unverified().wrap_socket(self._sock)
            self._sock.sendall(f"{head}Host: {address}\r\n\r\n".encode())
            for piece in body:
                self._sock.sendall(piece)
            self.fields = self._read_head()
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *error: object) -> None:
        self._sock.close()

    def _read_head(self) -> dict[str, str]:
        data = b""
        while b"\r\n\r\n" not in data and len(data) < HEAD:
            piece = self._sock.recv(HEAD)
            if not piece:
                raise WrongAnswer(f"the connection was closed after {data!r}")
            data += piece
        head, _, self._rest = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        if not status.startswith("HTTP/1.1 200"):
            raise WrongAnswer(f"{status} {self._rest[:200]!r}")
        pairs = (line.partition(":") for line in lines)
        return {name.lower(): value.strip() for name, _, value in pairs}

    @property
    def length(self) -> int:
        """Bytes of the body. An answer that does not say is of no use here."""
        if not self.fields.get("content-length", "").isdecimal():
            raise WrongAnswer(f"no Content-Length: {self.fields}")
        return int(self.fields["content-length"])

    def read_into(self, buffer: memoryview) -> None:
        """Fill the buffer with what comes next of the body."""
        at = min(len(self._rest), len(buffer))
        buffer[:at] = self._rest[:at]
        self._rest = self._rest[at:]
        while at < len(buffer):
            count = self._sock.recv_into(buffer[at:], len(buffer) - at, socket.MSG_WAITALL)
            if not count:
                raise WrongAnswer("the body ended early")
            at += count

    def read_all(self) -> bytes:
        """Return the whole body."""
        body = bytearray(self.length)
        self.read_into(memoryview(body))
        return bytes(body)


def request(method: str, path: str, close: bool = False, length: int | None = None) -> str:
    """Return a head but for its Host."""
    lines = [f"{method} {path} HTTP/1.1"]
    lines += ["Connection: close"] if close else []
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "".join(f"{line}\r\n" for line in lines)


def fetch(
    address: str, path: str, expected: bytes, *, close: bool = False, body: bytes | None = None, tls: bool = False
) -> None:
    """Make a request (POST if there is a body) and compare its answer, byte by byte.

    Raises:
        WrongAnswer: it is another, or the connection stays as it should not.
        OSError: there is none.
    """
    head = request("GET" if body is None else "POST", path, close, None if body is None else len(body))
    with Exchange(address, head, () if body is None else (body,), tls) as exchange:
        found = exchange.read_all()
        if found != expected:
            raise WrongAnswer(f"{path}: {len(found)} bytes, {found[:50]!r}..., not {expected[:50]!r}...")
        if close and exchange.fields.get("connection", "").lower() != "close":
            raise WrongAnswer(f"{path}: Connection: close was not answered in kind")


def download(address: str, blocks: int) -> float:
    """Take so many blocks, compare every byte, and return the seconds from the request to the last of them."""
    began = time.monotonic()
    with Exchange(address, request("GET", f"/stream/{blocks}")) as exchange:
        if exchange.length != blocks * len(BLOCK):
            raise WrongAnswer(f"{exchange.length} bytes, not {blocks} blocks")
        buffer = bytearray(len(BLOCK))
        for number in range(blocks):
            exchange.read_into(memoryview(buffer))
            if buffer != BLOCK:
                raise WrongAnswer(f"block {number} is not as it was sent")
    return time.monotonic() - began


def upload(address: str, blocks: int) -> float:
    """Send so many blocks to where they are verified, and return the seconds until the answer."""
    began = time.monotonic()
    size = blocks * len(BLOCK)
    pieces = (BLOCK for _ in range(blocks))
    with Exchange(address, request("POST", "/verify", length=size), pieces) as exchange:
        found = exchange.read_all()
        if found != b"%d" % size:
            raise WrongAnswer(f"{size} bytes were sent, and the server says {found!r}")
    return time.monotonic() - began
