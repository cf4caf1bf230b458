"""TLS with the programs of others: HAProxy and nginx on either side, GnuTLS, aiohttp, Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import peers
import pytest
from conftest import PATIENCE, wait_until
from peers import listening, program, run, started
from tls_peers import TLSEcho, authority, client_tls, issued, only, server_tls, write_files

from greensock import Lines
from greensock.http import HTTPClient, HTTPServer, Response

BODY = os.urandom(1 << 20) * 2


class Site(HTTPServer):
    """Sends back what it gets, with the name that it was asked for by, and whether the session goes on with another."""

    def handle_request(self, request):
        found = request.connection.tls
        self.resumed.append(found.is_resumed)
        return Response(f"{found.version} {found.server_name} ".encode() + request.body.read_all(1 << 24))


@pytest.fixture
def files(tmp_path):
    """Certificate and key, also in one file, and the authority."""
    write_files(tmp_path, issued("localhost", "127.0.0.1"))
    (tmp_path / "both.pem").write_bytes((tmp_path / "cert.pem").read_bytes() + (tmp_path / "key.pem").read_bytes())
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    return tmp_path


@pytest.fixture
def site(serve):
    made = serve(Site, tls=server_tls(alpn=["http/1.1"]))
    made.resumed = []
    return made


@pytest.fixture
def client():
    with HTTPClient(tls=client_tls(alpn=["http/1.1"])) as found:
        yield found


HAPROXY = """
frontend plain
    bind fd@{plain}
    default_backend site
frontend secure
    bind fd@{secure} ssl crt both.pem alpn h2,http/1.1
    default_backend site
backend site
    http-reuse never
    server one 127.0.0.1:{port} ssl verify required ca-file ca.pem sni str(localhost) verifyhost localhost alpn http/1.1
"""


@contextlib.contextmanager
def haproxy(files, port):
    with listening() as plain, listening() as secure:
        text = HAPROXY.format(plain=plain.fileno(), secure=secure.fileno(), port=port)
        with peers.haproxy(files, text, plain.fileno(), secure.fileno()):
            yield plain.getsockname()[1], secure.getsockname()[1]


NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn; {user}
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi; client_max_body_size 0; ssl_certificate cert.pem;
    ssl_certificate_key key.pem; proxy_ssl_trusted_certificate ca.pem; proxy_ssl_verify on; proxy_ssl_server_name on;
    proxy_ssl_name localhost; proxy_ssl_protocols TLSv1.2 TLSv1.3;
    server {{ listen 127.0.0.1:{plain}; location / {{ proxy_pass https://127.0.0.1:{port}; }} }}
    server {{ listen 127.0.0.1:{secure} ssl; location / {{ proxy_pass https://127.0.0.1:{port}; }} }}
}}
"""


@contextlib.contextmanager
def nginx(files, port):
    user = "user root;" if os.geteuid() == 0 else ""
    with listening() as plain, listening() as secure:
        ports = plain.getsockname()[1], secure.getsockname()[1]
        text = NGINX.format(user=user, plain=ports[0], secure=ports[1], port=port)
        (files / "nginx.conf").write_text(text)
        command = [program("nginx"), "-e", "stderr", "-p", str(files), "-c", str(files / "nginx.conf")]
        fds = plain.fileno(), secure.fileno()
        with started(command, files, "using inherited", fds=fds, NGINX="".join(f"{fd};" for fd in fds)):
            yield ports


@pytest.mark.parametrize("peer", [haproxy, nginx])
def test_a_proxy_of_others_between_our_client_and_our_server(site, client, files, peer):
    """Both speak TLS with it, the client with its server's end and the server with its client's."""
    with peer(files, site.server_port) as (plain, secure):
        for url in (f"http://localhost:{plain}/", f"https://localhost:{secure}/"):
            for body in (b"short", b"short", BODY):
                answer = client.post(url, body)
                assert (answer.status, answer.read_all(1 << 24)) == (200, b"TLSv1.3 localhost " + body)
        client.close_idle()
    assert any(site.resumed), "tickets of ours are taken up by it"
    assert site.statistics().handshakes_failed == {}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_gnutls(serve, files, version):
    """Handshake, data, and a second connection that goes on with the session of the first (``--resume``).

    Not in TLS 1.3, where the first one leaves before it got the ticket, which goes out with the first data.
    """
    server = serve(TLSEcho, tls=server_tls(**only(version)), framer=Lines())
    port = ["--port", str(server.server_port)]
    said = run("gnutls-cli", "--x509cafile", str(files / "ca.pem"), *port, "localhost", input=b"hello\n" * 3)
    assert b"Status: The certificate is trusted" in said
    assert said.endswith(b"hello" * 3) or b"hello" * 3 in said
    said = run("gnutls-cli", "--resume", "--x509cafile", str(files / "ca.pem"), *port, "localhost", input=b"again\n")
    assert (b"This is a resumed session" in said) == (version == "1.2")
    wait_until(lambda: not server.connections_alive)
    assert server.statistics().handshakes_failed == {}
    refused = subprocess.run(
        [program("gnutls-cli"), "--x509cafile", "/dev/null", *port, "localhost"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert refused.returncode, "nobody vouches for the certificate"


AIOHTTP = """
import asyncio, ssl, sys
import aiohttp
from aiohttp import web

async def answer(request):
    return web.Response(body=b"aiohttp " + await request.read())

async def main(url, place):
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(place + "/cert.pem", place + "/key.pem")
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=theirs)
    await site.start()
    ours = ssl.create_default_context(cafile=place + "/ca.pem")
    async with aiohttp.ClientSession() as session:
        for body in (b"body", b"body", b"x" * 2_000_000):
            async with session.post(url, data=body, ssl=ours) as found:
                assert (await found.read()).endswith(b" localhost " + body)
    print("port", site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def test_aiohttp(site, client, files):
    """As a client of ours, and then as a server of our client."""
    pytest.importorskip("aiohttp")
    command = [sys.executable, "-c", AIOHTTP, f"https://localhost:{site.server_port}/", str(files)]
    with started(command, files, r"port (\d+)") as (_, _, port):
        assert site.statistics().accepted == 1
        for body in (b"body", b"body", BODY):
            assert client.post(f"https://localhost:{port}/", body).read_all(1 << 24) == b"aiohttp " + body
        client.close_idle()
    assert site.statistics().handshakes_failed == {}


def test_chromium_opens_what_make_run_offers_for_a_first_try(tmp_path):
    """It refuses the certificate that nobody vouches for; told to go on it gets the page, and a WebSocket over TLS."""
    pytest.importorskip("playwright")
    pytest.importorskip("cryptography")
    chromium = program("chromium")
    command = [sys.executable, "-m", "examples.reverse_proxy", "--listen", "127.0.0.1:0", "--tls-self-signed"]
    with started(command, tmp_path, r"listening on 127.0.0.1:(\d+)", PYTHONPATH=str(peers.ROOT)) as (_, _, port):
        script = str(peers.PROGRAMS / "tls_browser.py")
        seen = json.loads(run(sys.executable, script, f"https://localhost:{port}/", chromium))
    assert "ERR_CERT_AUTHORITY_INVALID" in seen["refused"]
    assert seen["heading"] == "It works"
    assert seen["answer"] == "hello through the proxy"
    assert seen["protocol"] == "https:"
    assert seen["downloaded"] == 1 << 20
