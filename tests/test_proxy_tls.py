"""The proxy and TLS: to clients, to servers, and what it tells either of the other."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time

import gevent
import pytest
from conftest import PATIENCE, wait_until
from tls_peers import Peer, authority, chain, client_tls, issued, peer_context, server_tls, write_files

from greensock import TLS, Certificate
from greensock.http import HTTPClient, HTTPServer, Response
from greensock.proxy import ConfigError, ReverseProxy, parse_config
from greensock.sources import ProxySource


class App(HTTPServer):
    """Tells what it was told."""

    def handle_request(self, request):
        told = {name.decode().lower(): value.decode() for name, value in request.headers.raw}
        told |= {"scheme": request.scheme, "body": request.body.read_all().decode()}
        if request.connection.tls is not None:
            found = request.connection.tls
            told["sni"] = found.server_name
            told["client"] = str(found.peer_certificate and found.peer_certificate["subjectAltName"])
        return Response.json(told)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with ``cert.pem``, ``key.pem`` and ``ca.pem``, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, issued("localhost", "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    return tmp_path


@pytest.fixture
def started(place):
    """Start what a configuration says: ``started(mapping)`` gives its proxies."""
    running = []

    def start(mapping):
        config = parse_config(mapping)
        gateway = config.gateway()
        made = []
        for listener in config.listeners:
            made.append(ReverseProxy(listener.address, gateway, stop_timeout=0.2, **config.proxy_options(listener)))
            made[-1].start()
        running.extend(made)
        return made

    yield start
    for proxy in running:
        proxy.stop(0.1)


@pytest.fixture
def client():
    with HTTPClient(tls=client_tls()) as found:
        yield found


LISTEN = {"address": "127.0.0.1:0", "tls": {"certificate": "cert.pem", "key": "key.pem"}}


def listen(**tls):
    return {"address": "127.0.0.1:0", "tls": {**LISTEN["tls"], **tls}}


def upstream(server, scheme="http", **tables):
    return {"app": {"servers": [f"{scheme}://localhost:{server.server_port}"], **tables}}


def told(answer):
    return json.loads(answer.read_all())


def test_https_to_the_client(serve, started, client):
    app = serve(App)
    (proxy,) = started({"listen": [LISTEN], "upstreams": upstream(app)})
    for _ in range(3):  # the second goes by the ordinary exchange
        seen = told(client.post(f"https://localhost:{proxy.server_port}/x", b"body"))
        assert (seen["x-forwarded-proto"], seen["body"], seen["scheme"]) == ("https", "body", "http")
        assert "strict-transport-security" not in seen
    assert (proxy.statistics().accepted, app.statistics().accepted) == (1, 1)
    assert proxy.statistics().handshakes == 1


def test_https_to_the_server(serve, started, client):
    app = serve(App, tls=server_tls("localhost"))
    (proxy,) = started({"listen": "127.0.0.1:0", "upstreams": upstream(app, "https", tls={"authorities": "ca.pem"})})
    for _ in range(3):
        seen = told(client.post(f"http://localhost:{proxy.server_port}/x", b"body"))
        assert (seen["x-forwarded-proto"], seen["scheme"], seen["sni"]) == ("http", "https", "localhost")
    assert app.statistics().handshakes == 1


@pytest.mark.parametrize(
    ("tls", "names", "reason"),
    [
        ({}, ("localhost",), "unknown_issuer"),
        ({"authorities": "ca.pem"}, ("other.example",), "wrong_name"),
        ({"authorities": "ca.pem", "server_name": "other.example"}, ("other.example",), None),
        ({"verify": False}, ("other.example",), None),
    ],
)
def test_whose_certificate_is_looked_at(serve, started, client, tls, names, reason):
    app = serve(App, tls=server_tls(*names))
    (proxy,) = started({"listen": "127.0.0.1:0", "upstreams": upstream(app, "https", tls=tls)})
    answer = client.get(f"http://localhost:{proxy.server_port}/")
    if reason is None:
        assert answer.status == 200
        assert told(answer)["sni"] == tls.get("server_name", "localhost")
    else:
        assert answer.status == 502
        answer.read_all()
        wait_until(lambda: "refused" in app.statistics().handshakes_failed)
        assert proxy.failures["tls-failed"]


def test_the_proxys_own_certificate(serve, started, client, place):
    leaf = issued("proxy@example.org")
    (place / "mine.pem").write_bytes(chain(leaf))
    (place / "mine.key").write_bytes(leaf.private_key_pem.bytes())
    app = serve(App, tls=server_tls(client_certificates="required", authorities=authority().cert_pem.bytes()))
    mine = {"authorities": "ca.pem", "certificate": "mine.pem", "key": "mine.key"}
    (proxy,) = started({"listen": "127.0.0.1:0", "upstreams": upstream(app, "https", tls=mine)})
    assert "proxy@example.org" in told(client.get(f"http://localhost:{proxy.server_port}/"))["client"]


def test_the_certificate_of_a_client(serve, started):
    app = serve(App)
    fields = {
        "X-Client": "{tls_client_name}",
        "X-Print": "{tls_client_sha256}",
        "X-TLS": "{tls_version} {tls_cipher} {tls_server_name}",
    }
    (proxy,) = started(
        {
            "listen": [listen(authorities="ca.pem", client_certificates="optional")],
            "upstreams": upstream(app),
            "routes": [{"upstream": "app", "request_fields": {"set": fields}}],
        }
    )
    leaf = authority().issue_cert("me@example.org", common_name="me, myself", organization_name="All")
    forged = {"X-Client": "CN=root", "X-Print": "0" * 64}
    mine = client_tls(certificate=chain(leaf), key=leaf.private_key_pem.bytes())
    for tls in (mine, client_tls()):
        with HTTPClient(tls=tls) as client:
            seen = told(client.get(f"https://localhost:{proxy.server_port}/", headers=forged))
        if tls is mine:
            assert "CN=me\\, myself" in seen["x-client"]
            assert re.fullmatch("[0-9a-f]{64}", seen["x-print"])
        else:
            assert (seen["x-client"], seen["x-print"]) == ("", "")
        assert re.fullmatch(r"TLSv1\.3 TLS_\w+ localhost", seen["x-tls"])


def test_health_checks_over_tls(serve, started, client):
    class Checked(App):
        def handle_request(self, request):
            asked.append((request.path, request.host, request.scheme))
            return super().handle_request(request)

    asked = []
    app = serve(Checked, tls=server_tls("localhost"))
    health = {"path": "/health", "interval": 0.1, "host": "app.example"}
    started(
        {"listen": "127.0.0.1:0", "upstreams": upstream(app, "https", tls={"authorities": "ca.pem"}, health=health)}
    )
    wait_until(lambda: ("/health", "app.example", "https") in asked)


def test_from_http_to_https_in_one_line_and_hsts_in_another(serve, started, client):
    app = serve(App)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        where = f"127.0.0.1:{sock.getsockname()[1]}"
    plain, secure = started(
        {
            "listen": [{"address": "127.0.0.1:0", "redirect": "https"}, {**listen(hsts=31536000), "address": where}],
            "upstreams": upstream(app),
        }
    )
    base = f"http://localhost:{plain.server_port}"
    answer = client.get(base + "/a/b?c=d")
    assert (answer.status, answer.headers["location"]) == (308, f"https://localhost:{secure.server_port}/a/b?c=d")
    assert "strict-transport-security" not in answer.headers
    answer.read_all()
    answer = client.get(base + "/.well-known/acme-challenge/token")
    assert answer.status == 200
    answer.read_all()
    for _ in range(2):
        answer = client.get(f"https://localhost:{secure.server_port}/")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        answer.read_all()
    refused = client.request("TRACE", f"https://localhost:{secure.server_port}/")
    assert refused.headers["strict-transport-security"] == "max-age=31536000"
    refused.read_all()


@pytest.mark.parametrize("port", [443, 8443])
def test_where_it_redirects_to(serve, client, port):
    gateway = parse_config({"upstreams": {"app": {"servers": ["http://localhost:1"]}}}).gateway()
    proxy = serve(_proxy_of(gateway), redirect_to_https=port)
    answer = client.get(f"http://localhost:{proxy.server_port}//evil.example/%0d", headers={"Host": "a.example:81"})
    shown = "" if port == 443 else f":{port}"
    assert answer.headers["location"] == f"https://a.example{shown}//evil.example/%0d"
    answer.read_all()


def _proxy_of(gateway):
    return lambda listener, **options: ReverseProxy(listener, gateway, **options)


def test_a_name_of_another_certificate(serve, started, place):
    """421, where one connection is used for two names of which each has its own (RFC 9110 section 7.4)."""
    app = serve(App)
    for name in ("one", "two"):
        (place / name).mkdir()
        write_files(place / name, issued(f"{name}.example", f"*.{name}.example"))
    tables = [{"certificate": f"{name}/cert.pem", "key": f"{name}/key.pem"} for name in ("one", "two")]
    (proxy,) = started({"listen": [listen(certificates=tables)], "upstreams": upstream(app)})
    context = peer_context()
    context.check_hostname = False
    with socket.create_connection(proxy.address) as sock:
        peer = Peer(sock, None)
        peer.tls = context.wrap_bio(peer._in, peer._out, server_hostname="a.one.example")
        peer.shake()
        for host, status in (
            (b"a.one.example", b"200"),
            (b"one.example:8443", b"200"),
            (b"two.example", b"421"),
            (b"A.One.Example", b"200"),
            (b"localhost", b"421"),
        ):
            peer.sendall(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            data = b""
            while b"\r\n\r\n" not in data or (b"200 OK" in data and b"}" not in data):
                data += peer.recv()
            assert data.split(b" ")[1] == status, host
    assert proxy.failures["misdirected"] == 2


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_proxy_protocol_before_tls(serve, started, is_trusted):
    app = serve(App)
    (proxy,) = started(
        {
            "listen": [LISTEN],
            "proxy_protocol": True,
            "forwarding": {"trusted": ["127.0.0.1"] if is_trusted else ["10.0.0.0/8"]},
            "upstreams": upstream(app),
        }
    )
    for split in (1, 20, 200):
        with socket.create_connection(proxy.address) as sock:
            peer = Peer(sock, peer_context())
            header = b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 443\r\n"
            sock.sendall(header[:split])
            if not is_trusted:
                assert peer.sock.recv(1) == b""
                continue
            wait_until(lambda: proxy.statistics().handshakes_unfinished)
            sock.sendall(header[split:])
            peer.shake()
            peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = peer.read_all()
        assert b'"x-forwarded-for": "192.0.2.7"' in answer
        assert b'"x-forwarded-proto": "https"' in answer
    if not is_trusted:
        assert proxy.refused["proxy-untrusted"] == 3
        wait_until(lambda: proxy.statistics().dropped == {"HANDSHAKE": 3})


@pytest.mark.parametrize("version", [1, 2])
def test_the_proxy_protocol_to_a_server_of_https(serve, started, client, version):
    """It stands in front of the handshake, for requests and for health checks, which speak for the proxy itself."""
    gateway = parse_config(
        {
            "upstreams": {"app": {"servers": [f"http://localhost:{serve(App).server_port}"]}},
            "forwarding": {"trusted": ["127.0.0.1"]},
        }
    ).gateway()
    secure = serve(_proxy_of(gateway), tls=server_tls("localhost"), proxy_protocol=True)
    tables = {"tls": {"authorities": "ca.pem"}, "send_proxy_protocol": version}
    health = {"path": "/", "interval": 0.1}
    (proxy,) = started({"listen": [LISTEN], "upstreams": upstream(secure, "https", health=health, **tables)})
    for source in ("127.0.0.5", "127.0.0.6"):
        with socket.create_connection(proxy.address, source_address=(source, 0)) as sock:
            peer = Peer(sock, peer_context())
            peer.shake()
            peer.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody")
            answer = peer.read_all()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert f'"x-forwarded-for": "{source}"'.encode() in answer
    wait_until(lambda: secure.statistics().handshakes > 4)  # those of the checks
    assert secure.statistics().handshakes_failed == {}
    assert not proxy.gateway.upstreams["app"].all[0].health.statistics().failed


def test_who_leaves_within_a_proxy_header(serve, started):
    trusted = {"trusted": ["127.0.0.1"]}
    (proxy,) = started(
        {"listen": [LISTEN], "proxy_protocol": True, "forwarding": trusted, "upstreams": upstream(serve(App))}
    )
    began = time.monotonic()
    with socket.create_connection(proxy.address) as sock:
        sock.sendall(b"PROXY")
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b""
    assert time.monotonic() - began < proxy.handshake_timeout / 2


def test_plain_http_to_a_port_of_tls(serve, started):
    (proxy,) = started({"listen": [LISTEN], "upstreams": upstream(serve(App))})
    with socket.create_connection(proxy.address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"use https://" in answer


def test_tls_to_a_plain_port(serve, started):
    (proxy,) = started({"listen": "127.0.0.1:0", "upstreams": upstream(serve(App))})
    peer = Peer(socket.create_connection(proxy.address), peer_context())
    with pytest.raises(OSError):
        peer.shake()
    peer.close()
    wait_until(lambda: proxy.refused)


def test_a_tunnel_over_tls_both_ways(serve, started):
    """101, and then bytes both ways, until one side ends."""

    class Switching(HTTPServer):
        tls = server_tls("localhost")

        def connection_recv(self, conn, data):
            if data.startswith(b"GET"):
                conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
            else:
                conn.send(data)

    app = serve(Switching)
    (proxy,) = started({"listen": [LISTEN], "upstreams": upstream(app, "https", tls={"authorities": "ca.pem"})})
    peer = Peer(socket.create_connection(proxy.address), peer_context())
    peer.shake()
    peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        head += peer.recv()
    assert b" 101 " in head
    data = bytes(range(256)) * 4000
    reading = gevent.spawn(peer.read_exactly, len(data))
    for at in range(0, len(data), 50_000):
        peer.sendall(data[at : at + 50_000])
        gevent.sleep(0)
    assert reading.get(timeout=PATIENCE) == data
    peer.end()
    assert peer.read_all() == b""
    peer.close()


# -- configurations


@pytest.mark.parametrize(
    ("listen", "text"),
    [
        ({"address": ":0", "tls": {}}, "listen no. 1 tls certificate: missing"),
        ({"address": ":0", "tls": {"certificate": "no.pem"}}, 'tls certificate = "no.pem": No such file'),
        ({"address": ":0", "tls": {**LISTEN["tls"], "minimum_version": "1.0"}}, 'minimum_version = "1.0": '),
        ({"address": ":0", "tls": {**LISTEN["tls"], "certs": []}}, "no such key: c"),
        ({"address": ":0", "tls": {**LISTEN["tls"], "hsts": "yes"}}, 'hsts = "yes": seconds, or text'),
        ({"address": ":0", "tls": {**LISTEN["tls"], "client_certificates": "required"}}, "authorities expected"),
        ({"address": ":0", "ssl": {}}, "no such key: "),
        ({"address": "a", "tls": LISTEN["tls"]}, "HOST:PORT"),
        ({"address": ":0", "redirect": "http"}, 'redirect = "http": "https" expected'),
        ({"address": ":0", "redirect": "https"}, "a listener with tls beside it expected"),
        ({}, "HOST:PORT"),
    ],
)
def test_what_listeners_are_not(place, listen, text):
    with pytest.raises(ConfigError) as caught:
        parse_config({"listen": [listen], "upstreams": {"app": {"servers": ["http://localhost:1"]}}})
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"servers": ["http://a"], "tls": {}}, "[upstreams.app] tls"),
        (
            {"servers": ["https://a"], "tls": {"authorities": "no.pem"}},
            '[upstreams.app.tls] authorities = "no.pem": No',
        ),
        ({"servers": ["https://a"], "tls": {"key": "key.pem"}}, "[upstreams.app.tls]: expected beside key"),
        ({"servers": ["https://a"], "tls": {"verify": "no"}}, '[upstreams.app.tls] verify = "no": true or false'),
    ],
)
def test_what_upstreams_are_not(place, tables, text):
    with pytest.raises(ConfigError) as caught:
        parse_config({"upstreams": {"app": tables}})
    assert text in str(caught.value)


def test_hsts_wants_tls():
    gateway = parse_config({"upstreams": {"app": {"servers": ["http://localhost:1"]}}}).gateway()
    with pytest.raises(ValueError, match="hsts='max-age=1': tls expected"):
        ReverseProxy(0, gateway, hsts="max-age=1")


def test_several_certificates_of_a_programs_own(serve, client):
    leaves = [issued("localhost", "127.0.0.1"), issued("two.example")]
    tls = TLS(certificates=[Certificate(chain(leaf), leaf.private_key_pem.bytes()) for leaf in leaves])
    app = serve(App)
    gateway = parse_config({"upstreams": upstream(app)}).gateway()
    proxy = serve(_proxy_of(gateway), tls=tls)
    assert told(client.get(f"https://localhost:{proxy.server_port}/"))["x-forwarded-proto"] == "https"


# -- real peers


def is_open(port):
    with socket.socket() as sock:
        return not sock.connect_ex(("127.0.0.1", port))


@pytest.mark.skipif(
    not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="without nginx (nginx-light of Debian)"
)
def test_nginx_is_the_server_and_curl_the_client(started, place):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    (place / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; pid {place}/pid; error_log stderr;
        events {{}}
        http {{
            access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
            fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
            server {{
                listen 127.0.0.1:{port} ssl; server_name localhost;
                ssl_certificate {place}/cert.pem; ssl_certificate_key {place}/key.pem;
                location / {{ return 200 "$scheme $ssl_server_name $http_x_forwarded_proto"; }}
            }}
        }}
        """
    )
    program = [shutil.which("nginx", path="/usr/sbin:/usr/bin"), "-e", "stderr", "-c", str(place / "nginx.conf")]
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_open(port))
            (proxy,) = started(
                {
                    "listen": [LISTEN],
                    "upstreams": {"app": {"servers": [f"https://localhost:{port}"], "tls": {"authorities": "ca.pem"}}},
                }
            )
            url = f"https://localhost:{proxy.server_port}/"
            curl = ["curl", "--silent", "--show-error", "--cacert", "ca.pem", "--http1.1", url, url]
            done = subprocess.run(curl, capture_output=True, timeout=PATIENCE)
            assert (done.stdout, done.stderr) == (b"https localhost https" * 2, b"")
        finally:
            process.terminate()


def test_sockets_that_were_inherited_in_another_order(place):
    plain, sealed, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
    ports = [each.getsockname()[1] for each in (plain, sealed)]
    config = parse_config(
        {
            "listen": [f"127.0.0.1:{ports[0]}", {**LISTEN, "address": f":{ports[1]}"}],
            "upstreams": {"app": {"servers": ["http://localhost:1"]}},
        }
    )
    proxies = ProxySource(config, None).made_servers([sealed, other, plain])
    try:
        assert [proxy.tls is not None for proxy in proxies] == [True, False, False]
    finally:
        for proxy in proxies:
            proxy.close_listeners()
