"""Real clients against the HTTP server."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings

import pytest
from conftest import PATIENCE

from greensock.http import HTTPServer, Response

LARGE = bytes(range(256)) * 4096  # 1 MiB


class Site(HTTPServer):
    def handle_request(self, request):
        if request.method in ("POST", "PUT"):
            size = sum(map(len, request.body))
            return Response.json({"size": size, "chunked": request.head.is_chunked}, headers={"X-Y": "z"})
        if request.path == "/pieces":
            return Response(LARGE[place : place + 100_000] for place in range(0, len(LARGE), 100_000))
        if request.path == "/large":
            return Response(LARGE)
        if request.path == "/hints":
            request.send_interim(103, {"Link": "</style.css>; rel=preload"})
        return Response(f"hello {request.query}", status=204 if request.path == "/empty" else 200)


@pytest.fixture
def site(serve):
    server = serve(Site)
    return server, f"http://127.0.0.1:{server.server_port}"


def pieces():
    for _ in range(10):
        yield b"x" * 1000


def run(program, *arguments):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (a package of Debian)")
    done = subprocess.run([path, *arguments], capture_output=True, timeout=PATIENCE, check=True)
    return done.stdout


def test_curl(site, tmp_path):
    server, url = site
    out = run("curl", "-sS", "-i", f"{url}/?x", f"{url}/hints", f"{url}/empty").decode()
    assert re.findall(r"HTTP/1.1 (\d+)", out) == ["200", "103", "200", "204"]
    assert server.statistics().accepted == 1, "the connection was kept"
    assert run("curl", "-sS", f"{url}/pieces") == run("curl", "-sS", "-0", f"{url}/pieces") == LARGE
    path = tmp_path / "upload"
    path.write_bytes(LARGE * 2)
    for more in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
        out = run("curl", "-sS", "-v", "--stderr", "-", "-T", str(path), *more, url).decode()
        assert f'"size": {len(LARGE) * 2}' in out
        assert ("100 Continue" in out) == ("Expect: 100-continue" in out)
    assert run("curl", "-sS", "-I", f"{url}/large").decode().count(f"Content-Length: {len(LARGE)}") == 1
    assert not server.refused


def test_requests(site):
    requests = pytest.importorskip("requests")
    server, url = site
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(url + "/a%20b?x=1", timeout=PATIENCE)
        assert (answer.status_code, answer.text) == (200, "hello x=1")
        assert session.post(url, data=pieces(), timeout=PATIENCE).json() == {"size": 10000, "chunked": True}
        assert session.put(url, data=LARGE, timeout=PATIENCE).json() == {"size": len(LARGE), "chunked": False}
        assert session.head(url + "/large", timeout=PATIENCE).headers["content-length"] == str(len(LARGE))
        assert session.get(url + "/pieces", timeout=PATIENCE).content == LARGE
        assert session.get(url + "/empty", timeout=PATIENCE).status_code == 204
    assert server.statistics().accepted == 1


def test_httpx(site):
    httpx = pytest.importorskip("httpx")
    server, url = site
    with httpx.Client(trust_env=False, timeout=PATIENCE) as session:
        assert session.get(url + "/?x=1").text == "hello x=1"
        assert session.get(url + "/hints").status_code == 200
        assert session.post(url, content=pieces()).json() == {"size": 10000, "chunked": True}
        assert session.put(url, content=LARGE).headers["x-y"] == "z"
        with session.stream("GET", url + "/pieces") as answer:
            assert b"".join(answer.iter_bytes()) == LARGE
    assert server.statistics().accepted == 1


def test_geventhttpclient(site):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = pytest.importorskip("geventhttpclient")
    server, url = site
    session = client.HTTPClient.from_url(url, concurrency=1, connection_timeout=PATIENCE, network_timeout=PATIENCE)
    try:
        for _ in range(3):
            answer = session.get("/?x=1")
            assert (answer.status_code, bytes(answer.read())) == (200, b"hello x=1")
        assert bytes(session.get("/pieces").read()) == LARGE
        assert b'"size": 1048576' in bytes(session.post("/", body=LARGE).read())
    finally:
        session.close()
    assert server.statistics().accepted == 1


def test_wrk(site):
    server, url = site
    out = run("wrk", "-t1", "-c64", "-d1s", url + "/").decode()
    assert int(re.search(r"(\d+) requests in", out).group(1)) > 100
    assert "Non-2xx" not in out
    assert "Socket errors" not in out
    assert server.statistics().accepted <= 65, "the connections were kept"
