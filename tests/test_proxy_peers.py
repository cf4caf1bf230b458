"""The proxy as a program between real clients and real servers, none of which is ours."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import peers
import pytest
from conftest import PATIENCE, wait_until
from peers import curl, listening, program, run

LARGE = os.urandom(1 << 20) * 3
#: More than all buffers on the way together.
HUGE = LARGE * 8
TEXT = "".join(f"line {number} of a text that compresses well\n" for number in range(5000)).encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make folders for programs, with the same files in each: ``folder(name)``."""

    def make(name):
        path = tmp_path_factory.mktemp(name)
        (path / "files" / "sub").mkdir(parents=True)
        (path / "files" / "large.bin").write_bytes(LARGE)
        (path / "files" / "text.txt").write_bytes(TEXT)
        (path / "files" / "sub" / "index.html").write_bytes(b"<p>index</p>")
        return path

    return make


@pytest.fixture(scope="module")
def large(folder):
    path = folder("uploads") / "huge.bin"
    path.write_bytes(HUGE)
    return path


def heads_and_body(output: bytes) -> tuple[list[bytes], bytes]:
    """Take apart what ``curl -i`` says: the heads, of answers 1xx too, and the body."""
    heads = []
    while output.startswith(b"HTTP/1.1 "):
        head, _, output = output.partition(b"\r\n\r\n")
        heads.append(head)
        if not head.startswith((b"HTTP/1.1 1", b"HTTP/1.1 3")):
            break
    return heads, output


def fields_of(head: bytes) -> dict[str, str]:
    pairs = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return {name.lower(): value for name, value in pairs}


# -- Flask under gunicorn


@pytest.fixture(scope="module")
def flask(folder):
    routes = """
    [[routes]]
    path = "/app"
    strip_prefix = true
    upstream = "flask"
    request_fields = { set = { X-Forwarded-Prefix = "/app" } }
    """
    with (
        peers.flask(folder("flask")) as url,
        peers.proxied(
            folder("proxy"), {"flask": f'servers = ["{url}"]\nhealth = {{ max_fails = 0 }}\n'}, routes
        ) as proxy,
    ):
        yield SimpleNamespace(url=proxy.url + "/app", proxy=proxy)


@pytest.fixture
def session():
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def httpx_client():
    httpx = pytest.importorskip("httpx")
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        yield client


def test_flask_sees_the_client_and_not_its_lies(flask):
    lies = [
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "X-Real-IP: 6.6.6.6",
    ]
    lies += ["Forwarded: for=6.6.6.6", "X-Forwarded-Prefix: /evil", "X_Forwarded_For: 6.6.6.6", "Connection: X-Secret"]
    lies += ["X-Secret: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: gzip"]
    told = [argument for lie in lies for argument in ("-H", lie)]
    own = ["--interface", "127.0.0.9", "-H", "Host: site.example:81", "-H", "X-Own: a,  b", "-H", "Cookie: a=1; b=2"]
    seen = json.loads(curl(*told, *own, f"{flask.url}/seen?q=%2F+%C3%A9&q=2"))
    assert seen["client"] == "127.0.0.9"
    assert seen["url"] == "http://site.example:81/app/seen?q=/+é&q=2"
    fields = dict(seen["headers"])
    assert re.fullmatch(r"1\.1 greensock \(\w+\)", fields.pop("via"))
    assert fields.pop("user-agent").startswith("curl/")
    assert fields == {
        "host": "site.example:81",  # as ProxyFix has it
        "accept": "*/*",
        "cookie": "a=1; b=2",
        "x-own": "a,  b",
        "x-forwarded-for": "127.0.0.9",
        "x-forwarded-host": "site.example:81",
        "x-forwarded-proto": "http",
        "x-forwarded-prefix": "/app",
    }


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_flask_gets_bodies_by_curl(flask, large, method):
    arguments = ["-X", method, "--data-binary", f"@{large}", f"{flask.url}/seen"]
    for more, framing in (
        (["-H", "Expect: 100-continue"], ("content-length", str(len(HUGE)))),
        (["-H", "Transfer-Encoding: chunked", "-H", "Expect:"], ("transfer-encoding", "chunked")),
    ):
        heads, body = heads_and_body(curl("-i", *more, *arguments))
        assert [head.split()[1] for head in heads] == ([b"100", b"200"] if "chunked" not in more[1] else [b"200"])
        seen = json.loads(body)
        assert (seen["method"], seen["length"], seen["digest"]) == (method, len(HUGE), digest(HUGE))
        assert dict(seen["headers"]).get(framing[0]) == framing[1]
        assert "expect" not in dict(seen["headers"])


def test_flask_gets_what_curl_reads_from_a_pipe(flask):
    seen = json.loads(curl("-T", "-", f"{flask.url}/seen", input=HUGE))
    assert (seen["method"], seen["length"], seen["digest"]) == ("PUT", len(HUGE), digest(HUGE))


def test_flask_gets_what_1_0_sends(flask, large):
    seen = json.loads(curl("-0", "--data-binary", f"@{large}", f"{flask.url}/seen"))
    assert (seen["length"], seen["digest"]) == (len(HUGE), digest(HUGE))


def test_flask_sends_back_what_comes_while_it_comes(flask, large):
    output = curl(
        "-X", "POST", "-H", "Expect:", "-H", "Transfer-Encoding: chunked", "-T", str(large), f"{flask.url}/mirror"
    )
    assert digest(output) == digest(HUGE)


@pytest.mark.parametrize("chunked", [False, True])
def test_flask_refuses_a_body_that_it_does_not_read(flask, large, chunked):
    framing = ["-H", "Transfer-Encoding: chunked"] if chunked else []
    arguments = [*framing, "-H", "Expect:", "-X", "POST", "-T", str(large), f"{flask.url}/refuse"]
    for _ in range(5):
        heads, body = heads_and_body(curl("-i", *arguments))
        assert (heads[0].split()[1], body) == (b"403", b"no")


def test_flask_streams(flask, httpx_client, tmp_path):
    gate = tmp_path / "gate"
    with httpx_client.stream("GET", f"{flask.url}/gated", params={"gate": str(gate)}) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"
        gate.touch()
        assert b"".join(pieces) == b" second"
    assert answer.headers["transfer-encoding"] == "chunked"


def test_flask_answers_of_unknown_length(flask):
    numbers = b"".join(b"%d\n" % number for number in range(5000))
    heads, body = heads_and_body(curl("-i", f"{flask.url}/numbers/5000"))
    assert body == numbers
    assert fields_of(heads[0])["transfer-encoding"] == "chunked"
    heads, body = heads_and_body(curl("-i", "-0", f"{flask.url}/numbers/5000"))
    assert body == numbers
    assert "transfer-encoding" not in fields_of(heads[0])
    assert fields_of(heads[0])["connection"] == "close"


def test_flask_with_requests(flask, session):
    answer = session.get(f"{flask.url}/login", params={"user": "Zoë"}, timeout=PATIENCE)
    assert answer.text == "Zoë a b; c 1"
    assert answer.url == f"{flask.url}/home"
    assert [earlier.headers["location"] for earlier in answer.history] == [f"{flask.url}/home"]
    assert {cookie.name for cookie in session.cookies} == {"session", "plain", "other"}
    files = {"one": ("größe.bin", LARGE), "two": ("b.txt", TEXT)}
    answer = session.post(f"{flask.url}/upload", data={"field": "é"}, files=files, timeout=PATIENCE)
    assert answer.json() == {"fields": {"field": "é"}, "files": {"one": digest(LARGE), "two": digest(TEXT)}}
    answer = session.post(f"{flask.url}/seen", data=iter([TEXT, LARGE]), timeout=PATIENCE)
    assert answer.json()["digest"] == digest(TEXT + LARGE)
    for status in (201, 204, 400, 404, 410, 418, 500, 503):
        answer = session.get(f"{flask.url}/status/{status}", timeout=PATIENCE)
        assert (answer.status_code, answer.text) == (status, "" if status == 204 else f"this is {status}")
        assert flask.proxy.logged_of(f"/app/status/{status}")["reason"] == ""
    answer = session.options(f"{flask.url}/numbers/1", timeout=PATIENCE)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert session.post(f"{flask.url}/home", timeout=PATIENCE).status_code == 405


def test_flask_with_httpx(flask, httpx_client):
    def pieces():
        for start in range(0, len(LARGE), 100_000):
            yield LARGE[start : start + 100_000]

    with httpx_client.stream("POST", f"{flask.url}/seen", content=pieces()) as answer:
        assert json.loads(b"".join(answer.iter_bytes()))["digest"] == digest(LARGE)
    answer = httpx_client.get(f"{flask.url}/self")
    text = (peers.PROGRAMS / "flask_app.py").read_bytes()
    assert (answer.content, answer.headers["content-length"]) == (text, str(len(text)))
    for validator in (
        {"If-None-Match": answer.headers["etag"]},
        {"If-Modified-Since": answer.headers["last-modified"]},
    ):
        again = httpx_client.get(f"{flask.url}/self", headers=validator)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    part = httpx_client.get(f"{flask.url}/self", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, text[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(text)}"
    head = httpx_client.head(f"{flask.url}/self")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(text)))


def test_flask_breaks_off(flask, httpx_client):
    httpx = pytest.importorskip("httpx")
    for more in ([], ["-0"]):
        curl(*more, f"{flask.url}/break-off?curl", status=(18, 56))  # in part, or a reset
    with pytest.raises(httpx.TransportError), httpx_client.stream("GET", f"{flask.url}/break-off?httpx") as answer:
        answer.read()
    for target in ("curl", "httpx"):
        assert flask.proxy.logged_of(f"/app/break-off?{target}")["reason"] == "body-incomplete"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_worker_dies(flask, session, method):
    answer = session.request(method, f"{flask.url}/die?{method}", data="x", timeout=PATIENCE)
    assert answer.status_code == 502
    assert flask.proxy.logged_of(f"/app/die?{method}")["reason"] == "no-response"
    assert session.get(f"{flask.url}/home", timeout=PATIENCE).status_code == 200


@pytest.fixture
def short_path():
    """Give a folder where the path of a Unix socket is not too long."""
    with tempfile.TemporaryDirectory(prefix="peers") as path:
        yield path


def test_flask_behind_a_unix_socket(folder, short_path, large):
    with (
        peers.flask(folder("flask"), bind=f"unix:{short_path}/app", worker="gthread") as where,
        peers.proxied(folder("proxy"), {"flask": f"unix:{where.removeprefix('unix:')}"}) as proxy,
    ):
        for number in range(3):
            arguments = ["--interface", "127.0.0.9", "--data-binary", f"@{large}", f"{proxy.url}/seen?{number}"]
            seen = json.loads(curl(*arguments))
            assert (seen["client"], seen["digest"]) == ("127.0.0.9", digest(HUGE))
            assert seen["url"] == f"{proxy.url}/seen?{number}"


# -- nginx


@pytest.fixture(scope="module")
def nginx(folder):
    routes = """
    [[routes]]
    upstream = "nginx"
    [[routes]]
    path = "/introduced/1"
    upstream = "v1"
    [[routes]]
    path = "/introduced/2"
    upstream = "v2"
    """
    with contextlib.ExitStack() as stack:
        path = folder("nginx")
        (path / "files" / "huge.bin").write_bytes(HUGE)
        url, introduced = stack.enter_context(peers.nginx(path))
        v1, v2 = (f'servers = ["{introduced}"]\nsend_proxy_protocol = {version}\n' for version in (1, 2))
        yield stack.enter_context(peers.proxied(folder("proxy"), {"nginx": url, "v1": v1, "v2": v2}, routes))


def test_files_of_nginx(nginx):
    heads, body = heads_and_body(curl("-i", f"{nginx.url}/large.bin"))
    fields = fields_of(heads[0])
    assert digest(body) == digest(LARGE)
    assert (fields["content-length"], fields["content-type"]) == (str(len(LARGE)), "application/octet-stream")
    assert fields["server"].startswith("nginx")
    assert "connection" not in fields
    assert "transfer-encoding" not in fields
    heads, body = heads_and_body(curl("-I", f"{nginx.url}/large.bin"))
    assert (body, fields_of(heads[0]) | {"date": ""}) == (b"", fields | {"date": ""})
    for validator in (f"If-None-Match: {fields['etag']}", f"If-Modified-Since: {fields['last-modified']}"):
        heads, body = heads_and_body(curl("-i", "-H", validator, f"{nginx.url}/large.bin"))
        assert (heads[0].split()[1], body, fields_of(heads[0])["etag"]) == (b"304", b"", fields["etag"])
    heads, body = heads_and_body(curl("-i", "-H", 'If-Match: "no"', f"{nginx.url}/large.bin"))
    assert heads[0].split()[1] == b"412"


@pytest.mark.parametrize(
    ("wanted", "part"),
    [("0-0", slice(1)), ("100-199999", slice(100, 200_000)), ("-5", slice(-5, None)), ("5-", slice(5, None))],
)
def test_ranges_of_nginx(nginx, wanted, part):
    heads, body = heads_and_body(curl("-i", "-r", wanted, f"{nginx.url}/large.bin"))
    fields = fields_of(heads[0])
    right = LARGE[part]
    assert (heads[0].split()[1], digest(body), fields["content-length"]) == (b"206", digest(right), str(len(right)))
    assert fields["content-range"].endswith(f"/{len(LARGE)}")


def test_odd_ranges_of_nginx(nginx):
    heads, body = heads_and_body(curl("-i", "-r", "0-9,20-29", f"{nginx.url}/large.bin"))
    boundary = fields_of(heads[0])["content-type"].partition("boundary=")[2].encode()
    parts = [part.partition(b"\r\n\r\n")[2][:-2] for part in body.split(b"--" + boundary)[1:-1]]
    assert parts == [LARGE[:10], LARGE[20:30]]
    heads, _ = heads_and_body(curl("-i", "-r", "9999999-", f"{nginx.url}/large.bin"))
    assert (heads[0].split()[1], fields_of(heads[0])["content-range"]) == (b"416", f"bytes */{len(LARGE)}")
    head = curl("-I", "-C", "100", f"{nginx.url}/large.bin")  # goes on with a download that was broken off
    assert fields_of(head[:-4])["content-length"] == str(len(LARGE) - 100)


def test_gzip_and_chunks_of_nginx(nginx):
    heads, body = heads_and_body(curl("-i", "--compressed", f"{nginx.url}/gzip/text.txt"))
    fields = fields_of(heads[0])
    assert (body, fields["content-encoding"]) == (TEXT, "gzip")
    assert ("transfer-encoding" in fields) ^ ("content-length" in fields)
    heads, body = heads_and_body(curl("-i", "-H", "Accept-Encoding: gzip", "-0", f"{nginx.url}/gzip/text.txt"))
    assert gzip.decompress(body) == TEXT
    assert "transfer-encoding" not in fields_of(heads[0])
    heads, body = heads_and_body(curl("-i", f"{nginx.url}/gzip/text.txt"))
    assert (body, fields_of(heads[0])["content-length"]) == (TEXT, str(len(TEXT)))
    heads, body = heads_and_body(curl("-i", f"{nginx.url}/chunked/large.bin"))
    assert (digest(body), fields_of(heads[0])["transfer-encoding"]) == (digest(LARGE), "chunked")


def test_other_answers_of_nginx(nginx, large):
    for path, status in (("/teapot", b"418"), ("/missing", b"404"), ("/sub", b"301"), ("/sub/", b"200")):
        heads, body = heads_and_body(curl("-i", nginx.url + path))
        assert heads[0].split()[1] == status
        assert int(fields_of(heads[0])["content-length"]) == len(body) > 0
    assert curl("-L", f"{nginx.url}/sub") == b"<p>index</p>"
    assert curl("-H", "X-Forwarded-For: 1.2.3.4", "-H", "Host: a:1", f"{nginx.url}/seen") == b"127.0.0.1 a:1 127.0.0.1 "
    heads, _ = heads_and_body(curl("-i", "-X", "POST", "-d", "x", f"{nginx.url}/large.bin"))
    assert heads[0].split()[1] == b"405"
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{nginx.url}/hang-up") == b"502"
    for framing in ([], ["-H", "Transfer-Encoding: chunked"]):
        for expect in ("Expect:", "Expect: 100-continue"):
            arguments = ["-X", "POST", "-T", str(large), *framing, "-H", expect, f"{nginx.url}/small-bodies"]
            heads, _ = heads_and_body(curl("-i", *arguments))
            assert heads[-1].split()[1] == b"413"


def test_other_manners_of_curl(nginx):
    host = nginx.url.removeprefix("http://")
    assert curl("--proxy", nginx.url, "--noproxy", "", "http://a.example/seen") == b"127.0.0.1 a.example 127.0.0.1 "
    heads, body = heads_and_body(curl("-i", "--http2", f"{nginx.url}/seen"))  # it offers h2c
    assert (heads[0].split()[:2], body) == ([b"HTTP/1.1", b"200"], f"127.0.0.1 {host} 127.0.0.1 ".encode())
    curl("--http2-prior-knowledge", f"{nginx.url}/seen", status=(16, 52, 56, 92, 1))  # what it gets is no HTTP/2
    heads, _ = heads_and_body(curl("-i", "-X", "OPTIONS", "--request-target", "*", nginx.url))
    assert (heads[0].split()[1], fields_of(heads[0])["server"][:5]) == (b"400", "nginx"), "which does not know it"
    for method, status in (("TRACE", b"405"), ("get", b"501"), ("BREW", b"405"), ("PROPFIND", b"405")):
        heads, _ = heads_and_body(curl("-i", "-X", method, f"{nginx.url}/text.txt"))
        assert heads[0].split()[1] == status
        reached = "server" in fields_of(heads[0])
        assert reached is (method in ("BREW", "PROPFIND")), "the others did not get as far as nginx"
    curl("--proxy", nginx.url, "--noproxy", "", "--proxytunnel", "http://a.example/", status=56)  # CONNECT is refused
    large_head = ["-H", f"X-Large: {'x' * 7000}", "-H", f"X-Too: {'y' * 7000}"]
    assert curl(*large_head, f"{nginx.url}/seen").startswith(b"127.0.0.1 ")
    heads, _ = heads_and_body(curl("-i", *large_head, "-H", f"X-Much: {'z' * 7000}", f"{nginx.url}/seen"))
    assert heads[0].split()[1] == b"431"


def test_connections_are_kept(nginx):
    names = ("connection", "text.txt", "teapot", "missing", "gzip/text.txt", "sub/")
    output = curl("-w", "\n%{num_connects} %{http_code}\n", *[f"{nginx.url}/{name}?kept" for name in names] * 10)
    assert len(re.findall(rb"^1 \d+$", output, re.MULTILINE)) == 1, "one connection by the client"
    assert len(re.findall(rb"^0 \d+$", output, re.MULTILINE)) == 59
    assert output.count(TEXT) == 20
    assert len(set(re.findall(rb"^(\d+)\n\n", output, re.MULTILINE))) == 1, "one connection to the server"
    lines = wait_until(lambda: len(lines := nginx.logged_like(r".*\?kept")) == 60 and lines)
    assert all(line["reused"] for line in lines[1:])


def test_many_at_once_with_curl(nginx, tmp_path):
    config = tmp_path / "curlrc"
    config.write_text("".join(f'url = "{nginx.url}/large.bin?{n}"\noutput = "{tmp_path}/{n}"\n' for n in range(30)))
    curl("--parallel", "--parallel-max", "10", "--config", str(config))
    assert {digest((tmp_path / str(number)).read_bytes()) for number in range(30)} == {digest(LARGE)}


@pytest.mark.parametrize(("path", "fewest"), [("/seen", 1000), ("/text.txt", 100), ("/gzip/text.txt", 100)])
def test_wrk(nginx, path, fewest):
    output = run("wrk", "-t1", "-c32", "-d1s", "-H", "Accept-Encoding: gzip", f"{nginx.url}{path}?wrk").decode()
    asked = int(re.search(r"(\d+) requests in", output).group(1))
    assert asked > fewest
    assert "Non-2xx" not in output
    assert "Socket errors" not in output
    lines = wait_until(lambda: len(lines := nginx.logged_like(rf"{path}\?wrk")) >= asked and lines)
    assert {(line["status"], line["reason"]) for line in lines} <= {(200, ""), (499, "client-left")}
    assert sum(line["reason"] != "" for line in lines) <= 32, "those that wrk did not wait for"
    assert sum(not line["reused"] for line in lines) <= 64, "connections to the server were kept"


@pytest.mark.parametrize("path", ["/brief", "/five"])
def test_wrk_before_a_server_that_keeps_no_connection_for_long(nginx, path):
    """It closes just when a request is on its way: that is made again, unseen by the client."""
    output = run("wrk", "-t1", "-c4", "-d1s", nginx.url + path).decode()
    assert int(re.search(r"(\d+) requests in", output).group(1)) > 100
    assert "Non-2xx" not in output
    assert "Socket errors" not in output


def test_a_client_that_vanishes(nginx):
    before = nginx.descriptors()["socket"]
    arguments = ["-q", "-sS", "--noproxy", "*", "--limit-rate", "100k", "-o", os.devnull]
    with subprocess.Popen([program("curl"), *arguments, f"{nginx.url}/huge.bin?vanish"]) as process:
        wait_until(lambda: nginx.descriptors()["socket"] >= before + 2 or nginx.descriptors()["pipe"])
        process.kill()
    line = nginx.logged_of("/huge.bin?vanish")
    assert (line["status"], line["reason"]) == (499, "client-left")
    assert line["sent"] < len(HUGE)


@pytest.mark.parametrize("version", [1, 2])
def test_nginx_is_told_the_client_by_the_proxy_protocol(nginx, version):
    told = curl("--interface", "127.0.0.8", "-w", "%{local_port}", f"{nginx.url}/introduced/{version}").decode()
    address, port, own_port = told.split()
    assert (address, port) == ("127.0.0.8", own_port)


# -- HTTP/1.0


@pytest.fixture(scope="module")
def http_server(folder):
    with peers.http_server(folder("http_server")) as url, peers.proxied(folder("proxy"), {"files": url}) as proxy:
        yield proxy


def test_http_server_of_the_standard_library(http_server, session, large):
    url = http_server.url
    answer = session.get(f"{url}/large.bin", timeout=PATIENCE)
    assert (answer.status_code, digest(answer.content)) == (200, digest(LARGE))
    assert answer.headers["server"].startswith("SimpleHTTP/")
    assert "connection" not in answer.headers
    since = {"If-Modified-Since": answer.headers["last-modified"]}
    again = session.get(f"{url}/large.bin", headers=since, timeout=PATIENCE)
    assert (again.status_code, again.content) == (304, b"")
    head = session.head(f"{url}/large.bin", timeout=PATIENCE)
    assert head.headers["content-length"] == str(len(LARGE))
    assert 'href="large.bin"' in session.get(f"{url}/", timeout=PATIENCE).text
    assert session.get(f"{url}/sub", timeout=PATIENCE).content == b"<p>index</p>"
    missing = session.get(f"{url}/missing", timeout=PATIENCE)
    assert (missing.status_code, "File not found" in missing.text) == (404, True)
    assert session.post(f"{url}/", data=b"x", timeout=PATIENCE).status_code == 501
    for framing in ([], ["-H", "Transfer-Encoding: chunked"]):
        heads, body = heads_and_body(curl("-i", "-X", "POST", "-T", str(large), "-H", "Expect:", *framing, f"{url}/"))
        assert (heads[0].split()[1], b"Unsupported method" in body) == (b"501", True)


def test_1_0_connections_to_clients_are_kept(http_server):
    output = curl("-w", "%{num_connects}", *[f"{http_server.url}/sub/"] * 5)
    assert output == b"<p>index</p>1" + b"<p>index</p>0" * 4
    assert not any(line["reused"] for line in http_server.logged())


def test_wrk_before_1_0(http_server):
    output = run("wrk", "-t1", "-c8", "-d1s", f"{http_server.url}/sub/").decode()
    assert int(re.search(r"(\d+) requests in", output).group(1)) > 50
    assert "Non-2xx" not in output
    assert "Socket errors" not in output


@pytest.fixture(scope="module")
def wsgiref(folder):
    with peers.wsgiref_server(folder("wsgiref")) as url, peers.proxied(folder("proxy"), {"wsgiref": url}) as proxy:
        yield proxy


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_bodies_until_close(wsgiref, count):
    numbers = b"".join(b"%d\n" % number for number in range(count))
    heads, body = heads_and_body(curl("-i", f"{wsgiref.url}/numbers/{count}"))
    assert body == numbers
    assert ("transfer-encoding" in fields_of(heads[0])) ^ ("content-length" in fields_of(heads[0]))
    heads, body = heads_and_body(curl("-i", "-0", f"{wsgiref.url}/numbers/{count}"))
    assert body == numbers
    assert "transfer-encoding" not in fields_of(heads[0])
    heads, body = heads_and_body(curl("-I", f"{wsgiref.url}/numbers/{count}"))
    assert body == b""
    heads, body = heads_and_body(curl("-i", "--data-binary", "@-", f"{wsgiref.url}/x", input=TEXT))
    assert (body, fields_of(heads[0])["x-digest"]) == (b"POST /x", digest(TEXT))


# -- WebSockets


@pytest.fixture(scope="module")
def websocket(folder):
    with (
        peers.websocket_server(folder("websockets")) as url,
        peers.proxied(folder("proxy"), {"websockets": url}) as proxy,
    ):
        yield proxy


@pytest.fixture
def dial(websocket):
    """Connect over WebSocket: ``dial(path, ...)``."""
    client = pytest.importorskip("websockets.sync.client")
    with contextlib.ExitStack() as stack:

        def make(path, **options):
            sock = socket.create_connection(("127.0.0.1", websocket.port), PATIENCE)
            url = f"ws://127.0.0.1:{websocket.port}{path}"
            return stack.enter_context(client.connect(url, sock=sock, max_size=4 << 20, **options))

        yield make


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages(dial, compression):
    conn = dial("/echo", compression=compression)
    for message in ("", "text é", b"", b"\0" * 125, "x" * 126, LARGE[:65536], LARGE[: 1 << 20], "y" * (1 << 20)):
        conn.send(message)
        assert conn.recv(PATIENCE) == message
    for number in range(200):
        conn.send(str(number))
    assert [conn.recv(PATIENCE) for _ in range(200)] == [str(number) for number in range(200)]
    conn.close(4000, "done")


def test_fragments_and_pings(dial):
    conn = dial("/fragments")
    assert list(conn.recv_streaming()) == ["one ", "two ", "three", ""]
    assert b"".join(conn.recv_streaming()) == b"\0" * 100_000 + b"\1" * 100_000
    conn = dial("/echo")
    assert conn.ping().wait(PATIENCE)
    conn.send(iter(["a", "b", "c"]))
    assert conn.recv(PATIENCE) == "abc"
    assert dial("/ping").recv(PATIENCE) == "alive"


def test_subprotocols(dial):
    assert dial("/echo", subprotocols=["other", "chat.v1"]).subprotocol == "chat.v1"
    assert dial("/echo").subprotocol is None


def test_the_server_closes_first(dial, websocket):
    exceptions = pytest.importorskip("websockets.exceptions")
    with pytest.raises(exceptions.ConnectionClosed) as caught:
        dial("/close-first").recv(PATIENCE)
    assert (caught.value.rcvd.code, caught.value.rcvd.reason, caught.value.rcvd_then_sent) == (4321, "enough", True)
    assert websocket.logged_of("/close-first")["status"] == 101


def test_the_server_drops_the_connection(dial):
    exceptions = pytest.importorskip("websockets.exceptions")
    with pytest.raises(exceptions.ConnectionClosedError) as caught:
        dial("/drop").recv(PATIENCE)
    assert caught.value.rcvd is None


def ending_of(dial, path):
    """Return with which code a connection ended, as the server saw it."""

    def ending():
        return [code for name, code in json.loads(dial("/ended").recv(PATIENCE)) if name == path]

    return wait_until(ending)[0]


def test_the_client_closes_first(dial, websocket):
    dial("/echo?first").close(4001, "bye")
    assert ending_of(dial, "/echo?first") == 4001
    assert websocket.logged_of("/echo?first")["reason"] == ""


@pytest.mark.parametrize("reset", [False, True])
def test_the_client_vanishes(dial, reset):
    path = f"/echo?vanish{reset}"
    conn = dial(path)
    conn.send("x")
    conn.recv(PATIENCE)
    if reset:
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.socket.shutdown(socket.SHUT_RDWR) if not reset else conn.socket.close()
    assert ending_of(dial, path) == 1006


def test_the_server_does_not_switch(dial, websocket):
    exceptions = pytest.importorskip("websockets.exceptions")
    with pytest.raises(exceptions.InvalidStatus) as caught:
        dial("/refused")
    assert (caught.value.response.status_code, caught.value.response.body) == (403, b"not you\n")
    heads, _ = heads_and_body(curl("-i", f"{websocket.url}/echo"))
    assert (heads[0].split()[1], fields_of(heads[0])["upgrade"]) == (b"426", "websocket")


# -- HAProxy on both sides


@pytest.fixture(scope="module")
def between(folder):
    """Run the proxy between two HAProxies that speak the PROXY protocol: give it, and the URLs of those before it."""
    program("haproxy")
    with contextlib.ExitStack() as stack:
        behind, usual, first, second, third = (stack.enter_context(listening()) for _ in range(5))
        answer = 'http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst_port]"'
        seen = "%[src] %[req.hdr(x-forwarded-for)] %[req.hdr(x-forwarded-proto)]"
        stack.enter_context(
            peers.haproxy(
                folder("behind"),
                f"frontend introduced\n bind fd@{behind.fileno()} accept-proxy\n {answer}\n"
                f"frontend usual\n bind fd@{usual.fileno()}\n"
                f' http-request return status 200 content-type text/plain lf-string "{seen}"\n',
                behind.fileno(),
                usual.fileno(),
            )
        )
        there = "http://{}:{}".format(*behind.getsockname())
        upstreams = {f"v{version}": f'servers = ["{there}"]\nsend_proxy_protocol = {version}\n' for version in (1, 2)}
        upstreams["usual"] = "http://{}:{}".format(*usual.getsockname())
        routes = "".join(f'[[routes]]\nupstream = "{name}"\npath = "/{name}"\n' for name in upstreams)
        top = 'proxy_protocol = true\nforwarding = { trusted = ["127.0.0.1"] }'
        proxy = stack.enter_context(
            peers.proxied(
                folder("proxy"), upstreams, routes, top, r"(.*: a PROXY header expected\n.* may not connect: .*\n)?"
            )
        )
        front = folder("front")
        stack.enter_context(
            peers.haproxy(
                front,
                "".join(
                    f"listen {word}\n mode tcp\n bind fd@{sock.fileno()}{tls}\n"
                    f" server proxy 127.0.0.1:{proxy.port} {word}\n"
                    for word, sock, tls in (
                        ("send-proxy", first, ""),
                        ("send-proxy-v2", second, ""),
                        ("send-proxy-v2-ssl", third, f" ssl crt {certificate(front)}"),
                    )
                ),
                first.fileno(),
                second.fileno(),
                third.fileno(),
            )
        )
        urls = ["http://{}:{}".format(*sock.getsockname()) for sock in (first, second)]
        yield proxy, *urls, "https://{}:{}".format(*third.getsockname())


def certificate(directory):
    """Make a key and a certificate of our own, in one file."""
    key, made, both = (str(directory / name) for name in ("key.pem", "certificate.pem", "both.pem"))
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command = [program("openssl"), "req", *kind, "-keyout", key, "-out", made]
    subprocess.run(command, check=True, capture_output=True)
    Path(both).write_text(Path(made).read_text() + Path(key).read_text())
    return both


def test_haproxy_ends_tls_in_tcp_mode(between):
    """What PROXY version 2 says of TLS (PP2_TYPE_SSL) is believed of a trusted peer: the application is told https."""
    _, _, plain, tls = between
    assert curl("-k", "--interface", "127.0.0.6", f"{tls}/usual").decode() == "127.0.0.1 127.0.0.6 https"
    assert curl("--interface", "127.0.0.6", f"{plain}/usual").decode() == "127.0.0.1 127.0.0.6 http"


def test_the_example_of_it_is_sound(folder):
    place = folder("example")
    text = (Path(__file__).parent.parent / "examples" / "haproxy_tls.cfg").read_text()
    (place / "haproxy.cfg").write_text(text.replace("/etc/ssl/private/example.pem", certificate(place)))
    subprocess.run([program("haproxy"), "-c", "-f", str(place / "haproxy.cfg")], check=True, capture_output=True)


@pytest.mark.parametrize("back", [1, 2])
@pytest.mark.parametrize("front", [1, 2])
def test_haproxy_introduces_the_client(between, front, back):
    proxy, *urls = between
    url = f"{urls[front - 1]}/v{back}?{front}"
    told = curl("--interface", "127.0.0.7", "-w", " %{local_port} %{remote_port}", url).decode().split()
    address, port, to_port, own_port, dialled = told
    assert (address, port, to_port) == ("127.0.0.7", own_port, dialled)
    assert proxy.logged_of(f"/v{back}?{front}")["client"] == "127.0.0.7"


def test_haproxy_before_a_kept_connection(between):
    _, _, url, _ = between
    output = curl("--interface", "127.0.0.6", *[f"{url}/usual"] * 5).decode()
    assert output == "127.0.0.1 127.0.0.6 http" * 5


def test_curl_introduces_itself(between):
    proxy, *_ = between
    told = curl("--haproxy-protocol", "-w", " %{local_port}", f"{proxy.url}/v1?curl").decode().split()
    assert (told[0], told[1]) == ("127.0.0.1", told[3])
    curl(f"{proxy.url}/v1", status=(52, 56))  # an empty answer: who does not introduce itself is not served
    curl("--haproxy-protocol", "--interface", "127.0.0.5", f"{proxy.url}/v1", status=(52, 56))  # not trusted
