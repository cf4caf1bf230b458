"""Handlers and their clients, for the tests of StreamServer."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import gevent.pool
import gevent.server
import gevent.socket
import gevent.ssl
import pytest
from conftest import PATIENCE, wait_until

from greensock.stream_server import StreamServer

RESET = struct.pack("ii", 1, 0)
#: Seconds in which the kernel has moved to the peer what it can.
SETTLED = 0.02


class Run:
    """A server whose handlers report what they return or raise, and a client for each."""

    def __init__(self, kind: type[gevent.server.StreamServer]) -> None:
        self.kind = kind
        self.servers: list[Any] = []
        self.clients: list[socket.socket] = []
        self.conns: list[Any] = []

    def server(self, handle: Callable[..., Any], listener: Any = ("127.0.0.1", 0), **options: Any) -> Any:
        def handler(conn: Any, address: Any) -> None:
            self.conns.append(conn)
            try:
                self.outcome.set(handle(conn))
            except BaseException as error:
                self.outcome.set_exception(error)

        self.outcome: Any = gevent.event.AsyncResult()
        server = self.kind(listener, handler, **options)
        self.servers.append(server)
        server.start()
        return server

    def client(self, server: Any = None) -> socket.socket:
        address = (server or self.servers[-1]).address
        client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        client.settimeout(PATIENCE)
        self.clients.append(client)
        client.connect(address)
        return client

    def __call__(self, handle: Callable[..., Any], **options: Any) -> tuple[socket.socket, Any]:
        """Serve one client: return its socket and the handler's outcome, to ``get``."""
        self.server(handle, **options)
        return self.client(), self.outcome

    def wait_begun(self) -> None:
        """Wait until a handler has begun; it runs to where it blocks before anybody else does."""
        wait_until(lambda: self.conns)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.stop(1)
        self.conns.clear()


def outcome(result: Any) -> Any:
    return result.get(timeout=PATIENCE)


def error_of(result: Any, kind: type[BaseException]) -> Any:
    with pytest.raises(kind) as caught:
        outcome(result)
    return caught.value


def fill(conn: Any) -> int:
    """Send until the peer's and our buffers are full to the last byte; return how many bytes went."""
    timeout = conn.gettimeout()
    conn.setblocking(False)
    total = before = 0
    while True:
        for size in (65536, 1024, 1):
            try:
                while True:
                    total += conn.send(bytes(size))
            except BlockingIOError:
                pass
        if total == before:
            conn.settimeout(timeout)
            return total
        before = total
        gevent.sleep(SETTLED)


CALLS: dict[str, Callable[[Any], Any]] = {
    "recv": lambda conn: conn.recv(1),
    "recv_into": lambda conn: conn.recv_into(bytearray(1)),
    "recv_peek": lambda conn: conn.recv(1, socket.MSG_PEEK),
    "recvfrom": lambda conn: conn.recvfrom(1),
    "recvmsg": lambda conn: conn.recvmsg(1),
    "send": lambda conn: conn.send(b"x"),
    "sendall": lambda conn: conn.sendall(b"x" * 100),
    "sendmsg": lambda conn: conn.sendmsg([b"x"]),
}


def trusting(certificate: tuple[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture(params=[gevent.server.StreamServer, StreamServer], ids=["gevent", "greensock"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    runner = Run(request.param)
    yield runner
    runner.close()


@pytest.fixture
def ours() -> Iterator[Run]:
    runner = Run(StreamServer)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key
