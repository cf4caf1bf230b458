"""gunicorn's ``proxy_protocol`` and ``proxy_allow_ips``: what is made of a header in front."""

from __future__ import annotations

import contextlib
import io
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE, read_all, wait_until
from served import once
from tls_peers import Peer, issued, peer_context, write_files

pytest.importorskip("gunicorn", reason="gunicorn is not installed")

from gunicorn.config import Config

from greensock.gunicorn.introduced_site import IntroducedSite
from greensock.gunicorn.settings import trusts
from greensock.proxy import write_proxy_header

pytestmark = once

KEYS = ("PROXY_PROTOCOL", "REMOTE_ADDR", "REMOTE_PORT", "PROXY_ADDR", "PROXY_PORT")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
FOUR, SIX = ("192.0.2.7", 5555), ("2001:db8::7", 5555)
THERE, THERE_SIX = ("192.0.2.8", 80), ("2001:db8::8", 80)
BINARY = b"\r\n\r\n\0\r\nQUIT\n"
OWN = ("127.0.0.1", None, None, None)
#: Headers, of which version they are, and what the application finds.
HEADERS = [
    (write_proxy_header(1, FOUR, THERE), "v1", ("TCP4", "192.0.2.7", "5555", "192.0.2.8", "80")),
    (write_proxy_header(1, SIX, THERE_SIX), "v1", ("TCP6", "2001:db8::7", "5555", "2001:db8::8", "80")),
    (b"PROXY UNKNOWN ffff::1 whatever\r\n", "v1", ("UNKNOWN", *OWN)),
    (write_proxy_header(2, FOUR, THERE), "v2", ("TCP4", "192.0.2.7", "5555", "192.0.2.8", "80")),
    (write_proxy_header(2, SIX, THERE_SIX), "v2", ("TCP6", "2001:db8::7", "5555", "2001:db8::8", "80")),
    (write_proxy_header(2, None, None), "v2", ("LOCAL", *OWN)),
    (write_proxy_header(2, "/a", "/b"), "v2", ("UNSPEC", *OWN)),
    (BINARY + b"\x21\x00\x00\x00", "v2", ("UNSPEC", *OWN)),
]
#: Of a peer that is allowed.
BROKEN = [
    b"PROXY TCP4 192.0.2.7 x 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.8 1 65536\r\n",
    b"PROXY " + b"x" * 200,
    BINARY + b"\x31\x11\x00\x00",
    BINARY + b"\x21\x11\x00\x04abcd",
    BINARY + b"\x21\x00\xff\xff",
]


class Log:
    """What gunicorn's logger would be told."""

    access_log_enabled = True

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.accesses: list[Any] = []

    def warning(self, text: str, *arguments: object) -> None:
        self.warnings.append(text % arguments)

    def exception(self, text: str, *arguments: object) -> None:
        pass

    def access(self, resp: Any, req: Any, environ: dict[str, Any], took: Any) -> None:
        self.accesses.append((environ["REMOTE_ADDR"], resp.status_code, req.proxy_protocol_info))


@pytest.fixture
def site(serve):
    """Start a server with these settings: ``site(proxy_protocol="auto")``; ``seen`` is what its application found."""

    def start(**settings: Any) -> Any:
        cfg = Config()
        for name, value in {"proxy_allow_ips": "127.0.0.1,10.0.0.0/8", **settings}.items():
            cfg.set(name, value)
        worker = SimpleNamespace(cfg=cfg, log=Log(), alive=True, nr=0, max_requests=1 << 60)
        seen: list[tuple[Any, ...]] = []

        def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            seen.append(tuple(environ.get(key) for key in KEYS))
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]

        def made(listener: Any, **options: Any) -> IntroducedSite:
            return IntroducedSite(listener, application, worker, io.StringIO(), "tested")

        server = serve(made, socket.create_server(("127.0.0.1", 0)))
        server.seen, server.log = seen, worker.log
        return server

    return start


def ask(server: Any, *pieces: bytes, source: str = "127.0.0.1") -> tuple[list[int], int]:
    """Send these one after the other; return the statuses of what came, and the port."""
    with socket.create_connection(server.address, PATIENCE, source_address=(source, 0)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                sock.sendall(piece)
        port = sock.getsockname()[1]
        answers = read_all(sock).split(b"HTTP/1.1 ")[1:]
    return [int(answer[:3]) for answer in answers], port


def in_bytes(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
def test_a_connection_that_is_introduced(site, mode):
    """For all of its requests, however it comes; of a version that is not asked for it is no HTTP."""
    server = site(proxy_protocol=mode)
    for header, version, found in HEADERS:
        for pieces in [header + GET + LAST], [header, GET, LAST], [*in_bytes(header), GET + LAST]:
            server.seen.clear()
            statuses, port = ask(server, *pieces)
            if mode not in (version, "auto"):
                assert (statuses, server.seen) == ([400], []), header
                continue
            own = tuple(str(port) if key == "REMOTE_PORT" and found[1] == OWN[0] else None for key in KEYS)
            assert statuses == [200, 200], (header, server.log.warnings)
            assert server.seen == [tuple(a or b for a, b in zip(found, own, strict=True))] * 2
    # Whoever is not introduced is served, whatever it begins with.
    for method in "GET", "PUT", "PROPFIND":
        server.seen.clear()
        assert ask(server, *in_bytes(LAST.replace(b"GET", method.encode())))[0] == [200]
        assert server.seen[0][:2] == (None, "127.0.0.1")
    assert ask(server, *in_bytes(b"\r\n" + LAST))[0] == [200]


def test_who_may_introduce_and_what_is_no_header(site):
    server = site(proxy_protocol="auto")
    server.head_timeout = 0.2
    for header, _, _ in HEADERS:
        assert ask(server, header + LAST, source="127.0.0.2")[0] == [403]
    assert ask(server, LAST, source="127.0.0.2")[0] == [200]
    assert len(server.seen) == 1
    for header in BROKEN:
        assert ask(server, header)[0] == [400], header
    assert server.refused == {"proxy-untrusted": len(HEADERS), "proxy-header": len(BROKEN)}
    said = "Invalid request from ip=127.0.0.2: 403 a PROXY header of 127.0.0.2, which is not in proxy_allow_ips"
    assert server.log.warnings.count(said) == len(HEADERS)
    assert "Invalid request from ip=127.0.0.1: 400 b'x' in the PROXY line is no IPv4 address" in server.log.warnings
    # A part of one has the time of a head; and who leaves within it is forgotten.
    assert ask(server, b"PROXY TCP4 ")[0] == [408]
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(BINARY[:5])
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    wait_until(lambda: not server.head_watch and not server.connections_alive)
    assert server.error_count == 0


def test_what_is_told_of_who_is_introduced(site):
    """The access log and the hooks; of a request that the application never sees, too."""

    def pre_request(worker, req):
        if req.path == "/last":
            raise ValueError(req.proxy_protocol_info["proxy_addr"])

    server = site(proxy_protocol="v1", pre_request=pre_request)
    assert ask(server, write_proxy_header(1, FOUR, THERE) + GET + LAST)[0] == [200, 500]
    told = {"client_addr": "192.0.2.7", "client_port": 5555, "proxy_addr": "192.0.2.8", "proxy_port": 80}
    info = {"proxy_protocol": "TCP4", **told}
    wait_until(lambda: server.log.accesses == [("192.0.2.7", 200, info), ("192.0.2.7", 500, info)])


@pytest.mark.parametrize(
    ("allowed", "address", "is_trusted"),
    [
        (["10.0.0.0/8", "::1"], "10.1.2.3", True),
        (["10.0.0.0/8", "::1"], "::1", True),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),  # as a socket of IPv6 tells it
        (["::ffff:0:0/96"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:11.1.2.3", False),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["10.0.0.0/8"], "", False),
        ([], "127.0.0.1", False),
        (["*"], "", True),
    ],
)
def test_who_is_trusted(allowed, address, is_trusted):
    assert trusts(allowed)(address) is is_trusted


def test_an_introduction_in_front_of_tls(site, tmp_path):
    write_files(tmp_path, issued("localhost"))
    tls = {"certfile": str(tmp_path / "cert.pem"), "keyfile": str(tmp_path / "key.pem")}
    server = site(proxy_protocol="auto", **tls)
    header = write_proxy_header(2, FOUR, THERE)
    client = ("TCP4", "192.0.2.7")
    for start, found in (([header], client), (in_bytes(header), client), ([], (None, OWN[0]))):
        server.seen.clear()
        with socket.create_connection(server.address, PATIENCE) as sock:
            peer = Peer(sock, peer_context())
            for piece in start:
                sock.sendall(piece)
            peer.shake()
            peer.sendall(GET + LAST)
            assert peer.read_all().count(b"HTTP/1.1 200 OK") == 2
        assert [each[:2] for each in server.seen] == [found] * 2
    with socket.create_connection(server.address, PATIENCE) as sock:  # within TLS it is none
        peer = Peer(sock, peer_context())
        peer.shake()
        peer.sendall(header + LAST)
        assert peer.read_all().startswith(b"HTTP/1.1 400 ")
    for source, start in (("127.0.0.2", header), ("127.0.0.1", BROKEN[0])):
        with socket.create_connection(server.address, PATIENCE, source_address=(source, 0)) as sock:
            sock.sendall(start)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    assert (server.refused["proxy-untrusted"], server.refused["proxy-header"]) == (1, 1)
    assert "which is not in proxy_allow_ips" in server.log.warnings[-2]
