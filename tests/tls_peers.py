"""Certificates for tests, and a peer that speaks TLS by Python's own ``ssl``, in memory, or speaks it not."""

from __future__ import annotations

import functools
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import trustme
from conftest import PATIENCE
from gevent.event import Event
from served import Recorder

from greensock import TLS, Connection, DropReason, Server, connect

#: Of linux/sctp.h.
IPPROTO_SCTP, SCTP_NODELAY = 132, 3


def has_sctp() -> bool:
    """Whether the kernel has SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


#: What a connection may speak: nothing, a version of TLS, or SCTP (``make test-sctp`` where the kernel has none).
VERSIONS = ("plain", "1.2", "1.3", "unix", *["sctp"] * has_sctp())
#: Bytes of an SCTP message that a peer sends.
PIECE = 1 << 16


@functools.cache
def authority() -> trustme.CA:
    """Return who issues the certificates of a run."""
    return trustme.CA()


@functools.cache
def issued(*names: str, key_type: str = "ECDSA") -> trustme.LeafCert:
    """Return a certificate for the names."""
    return authority().issue_cert(*names, key_type=getattr(trustme.KeyType, key_type))


def chain(leaf: trustme.LeafCert) -> bytes:
    """Return a certificate with its chain, in PEM."""
    return b"".join(part.bytes() for part in leaf.cert_chain_pems)


def server_tls(*names: str, **options: Any) -> TLS:
    """Return the TLS of a server that has such a certificate."""
    leaf = issued(*(names or ("localhost", "127.0.0.1")))
    return TLS(chain(leaf), leaf.private_key_pem.bytes(), **options)


def client_tls(**options: Any) -> TLS:
    """Return the TLS of a client that trusts those."""
    return TLS(authorities=authority().cert_pem.bytes(), **options)


def only(version: str) -> dict[str, str]:
    """Return the options that leave one version."""
    return {"minimum_version": version, "maximum_version": version}


def peer_context(version: str | None = None, *, server: bool = False) -> ssl.SSLContext:
    """Return Python's own context for the other end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if server:
        issued("localhost", "127.0.0.1").configure_cert(context)
    else:
        authority().configure_trust(context)
    if version in ("1.2", "1.3"):
        number = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
        context.minimum_version = context.maximum_version = number
    return context


class Peer:
    """The other end of a connection. Without a context it speaks plainly, with the same methods."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None, *, server: bool = False) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server else "localhost"
        self.tls = context.wrap_bio(self._in, self._out, server, name) if context is not None else None

    def shake(self) -> None:
        """Make the handshake."""
        self.do(lambda: self.tls.do_handshake()) if self.tls is not None else None

    def do(self, call: Callable[[], Any]) -> Any:
        """Make a call of OpenSSL's, and carry to and fro what it needs."""
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                self.flush()
                if data := self.sock.recv(65536):
                    self._in.write(data)
                else:
                    self._in.write_eof()
            finally:
                self.flush()

    def flush(self) -> None:
        if self._out.pending:
            self.sock.sendall(self._out.read())

    def sendall(self, data: bytes) -> None:
        if self.tls is None:
            # In pieces: a message of SCTP must fit into the kernel's buffer.
            for at in range(0, len(data), PIECE) if self.sock.proto == IPPROTO_SCTP else ():
                self.sock.sendall(data[at : at + PIECE])
            if self.sock.proto != IPPROTO_SCTP:
                self.sock.sendall(data)
            return
        view = memoryview(data)
        while view:
            view = view[self.do(functools.partial(self.tls.write, view[:16384])) :]

    def recv(self, size: int = 65536) -> bytes:
        """Return what is there; ``b""`` is an end that was said."""
        if self.tls is None:
            return self.sock.recv(size)
        try:
            return self.do(lambda: self.tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""

    def read_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.recv(min(65536, count - len(data)))
            assert piece, f"the input ended after {len(data)} of {count} bytes"
            data += piece
        return bytes(data)

    def read_all(self) -> bytes:
        data = bytearray()
        while piece := self.recv():
            data += piece
        return bytes(data)

    def say_end(self) -> None:
        """Say that nothing more comes, by close_notify, without FIN."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()

    def end(self) -> None:
        """Half-close."""
        if self.tls is not None:
            self.say_end()
        self.sock.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Send FIN and say nothing."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


def peer_socket(version: str) -> socket.socket:
    """Return a socket that is yet to connect or to listen."""
    if version != "sctp":
        return socket.socket(socket.AF_UNIX if version == "unix" else socket.AF_INET, socket.SOCK_STREAM)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP)
    sock.setsockopt(IPPROTO_SCTP, SCTP_NODELAY, 1)
    return sock


def place_of(version: str) -> Any:
    """Return where to listen: a port that the system chooses, or an abstract name that nobody has."""
    return f"unix:@greensock-{uuid.uuid4()}" if version == "unix" else ("127.0.0.1", 0)


class Holding(Server):
    """Gives its connections out, and keeps each open until it is told."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.came: list[Connection] = []
        self.over = Event()
        super().__init__(*arguments, **options)

    def handle(self, conn: Connection) -> None:
        self.came.append(conn)
        self.over.wait()


@contextmanager
def accepted(version: str, **options: Any) -> Iterator[tuple[Connection, Peer]]:
    """Yield a connection that a server accepted, and its peer."""
    if version == "sctp":
        options["protocol"] = "sctp"
    elif version not in ("plain", "unix"):
        options["tls"] = server_tls(**only(version))
    place = place_of(version)
    server = Holding(place, stop_timeout=0.0, **options)
    server.start()
    peer = Peer(peer_socket(version), peer_context(version) if "tls" in options else None)
    peer.sock.connect(place.replace("unix:@", "\0") if version == "unix" else server.address)
    peer.shake()
    while not server.came:
        gevent.sleep(0)
    try:
        yield server.came[0], peer
    finally:
        peer.close()
        server.over.set()
        server.stop(0.0)


@contextmanager
def connected(version: str, **options: Any) -> Iterator[tuple[Connection, Peer]]:
    """Yield a connection that ``connect`` made, and its peer."""
    if version == "sctp":
        options["protocol"] = "sctp"
    elif version not in ("plain", "unix"):
        options["tls"] = client_tls()
    place = place_of(version)
    with peer_socket(version) as listener:
        listener.bind(place.replace("unix:@", "\0") if version == "unix" else place)
        listener.listen()
        address = place if version == "unix" else listener.getsockname()
        connecting = gevent.spawn(connect, address, timeout=PATIENCE, **options)
        context = peer_context(version, server=True) if "tls" in options else None
        peer = Peer(listener.accept()[0], context, server=True)
    peer.shake()
    conn = connecting.get(timeout=PATIENCE)
    try:
        yield conn, peer
    finally:
        peer.close()
        conn.abort()


ENDS = {"accepted": accepted, "connected": connected}


def write_files(place, leaf):
    (place / "cert.pem").write_bytes(chain(leaf))
    (place / "key.pem").write_bytes(leaf.private_key_pem.bytes())


class TLSEcho(Recorder):
    def __init__(self, *arguments, **options):
        options.setdefault("tls", server_tls())
        super().__init__(*arguments, **options)
        self.failures = []

    def connection_recv(self, conn, data):
        super().connection_recv(conn, data)
        conn.send(data)

    def handshake_failed(self, conn, exc):
        assert conn.drop_reason is DropReason.HANDSHAKE
        self.failures.append(exc.reason)


def is_alive(server):
    """Whether a server serves as it should."""
    with connect(server.address, tls=client_tls(), timeout=PATIENCE) as conn:
        conn.send(b"alive?")
        assert conn.read_exactly(6, timeout=PATIENCE) == b"alive?"
        conn.close()
        conn.wait_closed(PATIENCE)
    return True
