"""HTTP over TLS: servers, WSGI, the client; real peers."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess

import gevent
import pytest
import requests
from conftest import PATIENCE, wait_until
from gevent import pywsgi
from tls_peers import Peer, authority, chain, client_tls, issued, only, peer_context, server_tls

from greensock import TLS, CertificateRefused, ConnectionTruncated, HandshakeFailed
from greensock.http import HTTPClient, HTTPServer, Response, WSGIServer

BODY = os.urandom(1 << 20) * 3


class Site(HTTPServer):
    def __init__(self, *arguments, **options):
        options.setdefault("tls", server_tls(alpn=["http/1.1"]))
        super().__init__(*arguments, **options)
        self.file = None

    def handle_request(self, request):
        assert request.is_secure == (self.tls is not None)
        if request.path == "/big":
            return Response(BODY)
        if request.path == "/file":
            return Response(self.file.open("rb"))
        told = f"{request.scheme} {request.connection.tls.server_name} "
        return Response(told.encode() + request.body.read_all(1 << 24))


@pytest.fixture
def site(serve, tmp_path):
    server = serve(Site)
    server.file = tmp_path / "file"
    server.file.write_bytes(BODY)
    return server


@pytest.fixture
def client():
    with HTTPClient(tls=client_tls()) as found:
        yield found


@pytest.fixture
def files(tmp_path):
    leaf = issued("localhost", "127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(chain(leaf))
    (tmp_path / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    return tmp_path


def base(server):
    return f"https://localhost:{server.server_port}"


def test_the_client_and_the_server(site, client):
    for _ in range(3):
        answer = client.post(base(site) + "/", b"body")
        assert answer.read_all() == b"https localhost body"
    assert answer.is_reused
    assert client.get(base(site) + "/big").read_all(1 << 24) == BODY
    assert client.get(base(site) + "/file").read_all(1 << 24) == BODY
    sent = client.post(base(site) + "/", (BODY[at : at + 70_000] for at in range(0, len(BODY), 70_000)))
    assert sent.read_all(1 << 24) == b"https localhost " + BODY
    assert site.statistics().accepted == 1


def test_kept_connections_stand_though_tickets_come(serve, client):
    """They come behind the first answer, unasked, and are nobody's answer."""
    server = serve(Site, tls=server_tls(**only("1.3")))
    for _ in range(5):
        assert client.get(base(server) + "/").read_all() == b"https localhost "
        gevent.sleep(0)
    assert server.statistics().accepted == 1


def test_a_kept_connection_that_ended_is_replaced(serve, client):
    server = serve(Site, idle_timeout=0.05, linger_timeout=0.05)
    for count in (1, 2, 3):
        assert client.get(base(server) + "/").read_all() == b"https localhost "
        wait_until(lambda: not server.connections_alive)
        assert server.statistics().accepted == count


@pytest.mark.parametrize(
    ("tls", "host", "reason"),
    [(True, "localhost", "unknown_issuer"), (None, "127.0.0.2", "wrong_name")],
)
def test_who_is_not_trusted(serve, tls, host, reason):
    server = serve(Site, ("0.0.0.0", 0))
    with HTTPClient(tls=tls or client_tls()) as client, pytest.raises(CertificateRefused) as caught:
        client.get(f"https://{host}:{server.server_port}/")
    assert caught.value.reason == reason
    with HTTPClient(tls=TLS(verify=False)) as client:
        assert client.get(f"https://{host}:{server.server_port}/").status == 200
        client.close_idle()


def test_another_address_than_the_urls(site, client):
    """The certificate must be for the name in the URL, and a connection is kept for that name."""
    answer = client.get("https://localhost/", address=site.address)
    assert answer.read_all() == b"https localhost "
    with pytest.raises(CertificateRefused):
        client.get("https://other.example/", address=site.address)


def test_a_plain_server(serve, client):
    class Plain(HTTPServer):
        def handle_request(self, request):
            return Response(request.scheme)

    server = serve(Plain)
    with pytest.raises(HandshakeFailed) as caught:
        client.get(base(server) + "/")
    assert caught.value.reason == "plain_text"
    assert client.get(f"http://localhost:{server.server_port}/").read_all() == b"http"


def test_a_body_that_is_cut_is_not_whole(client):
    """One that goes to the end of the connection: that must be said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve(end):
            peer = Peer(listener.accept()[0], peer_context(server=True), server=True)
            peer.shake()
            peer.recv()
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody")
            getattr(peer, end)()
            peer.sock.recv(100)
            peer.close()

        for end in ("end", "cut"):
            serving = gevent.spawn(serve, end)
            answer = client.get(f"https://localhost:{port}/")
            if end == "end":
                assert answer.read_all() == b"body"
            else:
                with pytest.raises(ConnectionTruncated):
                    answer.read_all()
            serving.get(timeout=PATIENCE)


@pytest.mark.parametrize("method", ["GET", "HEAD", "BREW"])
def test_plain_http_to_a_port_of_tls(site, method):
    with socket.create_connection(site.address) as sock:
        sock.sendall(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Type: text/plain" in head
    assert (b"https://" in body) == (method != "HEAD")
    wait_until(lambda: site.statistics().handshakes_failed == {"plain_http" if method != "BREW" else "plain_text": 1})
    assert site.statistics().refused == {"plain-http": 1}


# -- WSGI


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['wsgi.url_scheme']} {environ['SERVER_PORT']}".encode()]


def test_gevents_arguments(serve, client, files):
    options = {"certfile": str(files / "cert.pem"), "keyfile": str(files / "key.pem")}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options["certfile"], options["keyfile"])
    for given in (options, {"ssl_context": context}, {"tls": server_tls()}):
        server = WSGIServer(("127.0.0.1", 0), application, log=None, stop_timeout=0.2, **given)
        with server:
            port = server.server_port
            assert client.get(f"https://localhost:{port}/").read_all() == f"https {port}".encode()
            client.close_idle()
        if "ssl_context" in given:  # the context goes on with gevent's sockets, too
            same = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None, **given)
            same.start()
            assert client.get(f"https://localhost:{same.server_port}/").read_all().startswith(b"https ")
            client.close_idle()
            same.stop()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keyfile": "k"}, "certfile=None: "),
        ({"certfile": "/nowhere", "keyfile": "/nowhere"}, "certificate='/nowhere': No such file"),
        ({"ssl_context": 5}, "tls=5: "),
        ({"ssl_context": 5, "certfile": "c"}, "ssl_context, certfile: ssl_context alone"),
        ({"ssl_context": 5, "server_side": False}, "server_side=False: "),
    ],
)
def test_gevents_arguments_that_are_not_allowed(options, text):
    with pytest.raises(ValueError, match=text):
        WSGIServer(("127.0.0.1", 0), application, **options)


# -- real peers


@pytest.mark.skipif(not shutil.which("curl"), reason="without curl (a Debian package)")
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl(site, files, version):
    program = ["curl", "--silent", "--show-error", "--cacert", str(files / "ca.pem"), f"--tlsv{version}"]
    program += ["--tls-max", version, "--http1.1"]
    urls = [base(site) + "/", base(site) + "/big", base(site) + "/file"]
    done = subprocess.run([*program, *urls], capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"https localhost " + BODY + BODY
    assert site.statistics().accepted == 1
    sent = subprocess.run(
        [*program, "--data-binary", "@-", base(site) + "/"], input=BODY, capture_output=True, timeout=PATIENCE
    )
    assert sent.stdout == b"https localhost " + BODY
    refused = subprocess.run(["curl", "--silent", "--http1.1", base(site)], capture_output=True, timeout=PATIENCE)
    assert refused.returncode == 60
    wait_until(lambda: site.statistics().handshakes_failed == {"refused": 1})


def test_requests(site, files):
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(files / "ca.pem")
        for _ in range(3):
            assert session.post(base(site) + "/", data=b"body").content == b"https localhost body"
        assert session.get(base(site) + "/big").content == BODY
    assert site.statistics().accepted == 1
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(base(site))
