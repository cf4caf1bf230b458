"""The documents tell the truth: the README's program runs, what it names exists."""

from __future__ import annotations

import gzip
import inspect
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, read_exactly
from documents import running
from proxies import Origin, fields_of
from tls_peers import chain, client_tls, issued

from greensock import Connection, Server, connect
from greensock.http import HTTPClient, WebSocketRefused, connect_websocket
from greensock.proxy import ReverseProxy, load_config
from greensock.server_options import OPTIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_program_in_the_readme_runs():
    with running(PROGRAMS[0]) as address, socket.create_connection(address, PATIENCE) as sock:
        assert read_exactly(sock, 6) == b"name? "
        sock.sendall(b"bob\n")
        sock.sendall(b"hello")
        assert read_exactly(sock, 10) == b"bob: HELLO"


def test_the_transport_of_the_readme_runs():
    complements = bytes(range(255, -1, -1))
    with running(PROGRAMS[1]) as address, socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"hello".translate(complements))
        assert read_exactly(sock, 5).translate(complements) == b"HELLO"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_the_tls_of_the_readme_runs(tmp_path):
    leaf = issued("localhost", "127.0.0.1")
    (tmp_path / "fullchain.pem").write_bytes(chain(leaf))
    (tmp_path / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    program = PROGRAMS[2].replace('TLS("', f'TLS("{tmp_path}/').replace(' "key', f' "{tmp_path}/key')
    with running(program) as address, connect(address, tls=client_tls(), timeout=PATIENCE) as conn:
        conn.send(b"hello")
        assert conn.read_exactly(5) == b"hello"
        assert conn.tls.version == "TLSv1.3"
        conn.close()
        conn.wait_closed(PATIENCE)


def test_the_hello_of_the_readme_runs():
    with running(PROGRAMS[3]) as (host, port), HTTPClient() as client:
        with client.get(f"http://{host}:{port}/") as answer:
            assert answer.read_all() == b"hello, 127.0.0.1"
        with client.post(f"http://{host}:{port}/", body=b"x" * 100_000) as answer:
            assert answer.read_all() == b'{"bytes": 100000}'


def test_the_programs_of_wsgi_and_of_the_client_run():
    with running(PROGRAMS[4]) as (host, port):
        program = PROGRAMS[5].replace("127.0.0.1:8080", f"{host}:{port}")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("200 text/plain b'hello from /'\n12 bytes, as they came\n", "")


def test_the_programs_with_websockets_run():
    with running(PROGRAMS[6]) as (host, port):
        with connect_websocket(f"ws://{host}:{port}/shout") as websocket:
            for message, shouted in (("hello", "HELLO"), (b"hello", b"HELLO")):
                websocket.send(message)
                assert websocket.receive(timeout=PATIENCE) == shouted
        with pytest.raises(WebSocketRefused), connect_websocket(f"ws://{host}:{port}/other"):
            pass
        with HTTPClient() as client, client.get(f"http://{host}:{port}/") as answer:
            assert answer.read_all() == b"a page"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    program = PROGRAMS[7].replace("8081", port)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("HELLO\n", "")


def test_the_proxy_of_the_readme_runs(serve):
    origins = [serve(Origin) for _ in range(2)]
    program = PROGRAMS[8]
    for port, origin in zip((9000, 9001), origins, strict=True):
        program = program.replace(f"http://127.0.0.1:{port}", origin.url)
    with running(program) as (host, port), HTTPClient() as client:
        base = f"http://{host}:{port}"
        assert client.get(base + "/ping").read_all() == b"pong"
        served = set()
        for _ in range(2):
            with client.get(base + "/x") as answer:
                assert answer.read_all() == b"GET /x "
                served.add(answer.headers["x-served-by"])
        assert served == {origin.url.removeprefix("http://") for origin in origins}
        with client.post(base + "/x", b"something forbidden") as answer:
            assert answer.status == 422
    seen = [seen for origin in origins for seen in origin.seen]
    assert len(seen) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", fields_of(fields)["x-request-id"]) for _, _, fields, _ in seen)


def test_the_small_service_of_its_page_runs():
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "services.md").read_text(), re.DOTALL)
    with running(program) as (host, port):
        base = f"http://{host}:{port}"
        for text in ("two", "three\n" * 1000):
            files = {"attached": ("a", b"12345")}
            sent = requests.post(f"{base}/notes", data={"text": text}, files=files, timeout=PATIENCE)
            assert (sent.status_code, sent.json()["attached"]) == (201, [5])
        assert requests.post(f"{base}/notes", data={"a": "b"}, timeout=PATIENCE).status_code == 422
        assert requests.get(f"{base}/notes/2", timeout=PATIENCE).text == "two"
        assert requests.delete(f"{base}/notes/2", timeout=PATIENCE).text == "two"
        assert requests.get(f"{base}/notes/2", timeout=PATIENCE).status_code == 404
        assert requests.put(f"{base}/notes/2", timeout=PATIENCE).headers["Allow"] == "DELETE, GET, HEAD, OPTIONS"
        page = requests.get(base, headers={"Accept-Encoding": "gzip", "Cookie": "a=b"}, timeout=PATIENCE)
        assert (page.headers["Content-Encoding"], page.text[:9]) == ("gzip", "the first")


def test_the_filter_of_the_readme_runs():
    text = b"a long text " * 1000
    with running(PROGRAMS[9]) as (host, port), HTTPClient() as client:
        with client.get(f"http://{host}:{port}/", headers={"Accept-Encoding": "gzip"}) as answer:
            body = answer.read_all()
            assert answer.headers["content-encoding"] == "gzip"
            assert len(body) < 1000
            assert gzip.decompress(body) == text
        with client.get(f"http://{host}:{port}/", headers={"Accept-Encoding": "identity"}) as answer:
            assert answer.read_all() == text
            assert answer.headers["vary"] == "Accept-Encoding"


def test_the_configuration_in_the_readme_is_true(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1].replace(":8080", "127.0.0.1:0")
    web, other, api = origins = [serve(Origin) for _ in range(3)]
    for port, origin in zip((9000, 9001, 9100), origins, strict=True):
        text = text.replace(f"http://127.0.0.1:{port}", origin.url)
    Path("proxy.toml").write_text(text.replace("127.0.0.1:9101", "127.0.0.1:1"))
    config = load_config("proxy.toml")
    gateway = config.gateway()
    proxy = serve(ReverseProxy, config.listen[0], gateway=gateway)
    base = "http://{}:{}".format(*proxy.address)
    with HTTPClient() as client:

        def get(path, **fields):
            with client.get(base + path, headers=fields) as answer:
                answer.read_all()
                return answer

        cookie = get("/x").headers["set-cookie"].partition(";")[0]
        before = [sum(seen[1] == b"/x" for seen in origin.seen) for origin in (web, other)]
        for _ in range(4):
            assert "set-cookie" not in get("/x", Cookie=cookie).headers
        after = [sum(seen[1] == b"/x" for seen in origin.seen) for origin in (web, other)]
        assert sorted(after) == [0, sum(before) + 4], "it stays at its server"
        assert get("/old").headers["location"] == "/new"
        keys = [f"Bearer {number}" for number in range(8)]
        assert {get("/api/y", Authorization=key).status for key in keys} == {200}, "the one that is down is passed over"
        assert all("x-request-id" in fields_of(seen[2]) for seen in api.seen)
        limited = next(answer for answer in (get("/x", Cookie=cookie) for _ in range(60)) if answer.status != 200)
        assert (limited.status, limited.headers["retry-after"]) == (429, "1")
    assert gateway.log.close()
    lines = [json.loads(line) for line in Path("access.log").read_text().splitlines()]
    assert lines[-1]["reason"] == "request-rate"
    for upstream in gateway.upstreams.values():
        upstream.close()


def test_what_the_readme_names_exists():
    upcalls = re.findall(r"^\| `(\w+)\((?:relay|record)", README, re.MULTILINE)
    own = inspect.getsource(ReverseProxy).partition("# -- what to override")[2].partition("# -- starting")[0]
    assert upcalls == re.findall(r"def (\w+)", own), "each in the order of the class"
    for upcall in re.findall(r"^\| `(\w+)\(conn", README, re.MULTILINE):
        assert callable(getattr(Server, upcall)), upcall
    table = README.split("| downcall |")[1].split("\n\n")[0]
    for downcall in re.findall(r"`(\w+)(?:\([^`]*)?`", table):
        assert downcall in ("max_send_queue", "WouldBlock") or hasattr(Connection, downcall), downcall
    for option in OPTIONS:
        assert f"`{option}`" in README, option
    for command in re.findall(r"make (\w+)", README):
        assert f"\n{command}:" in (Path(__file__).parent.parent / "Makefile").read_text(), command
