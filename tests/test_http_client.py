"""The HTTP client over real connections: to our server, to servers of others, and to hostile ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import re
import shutil
import subprocess
import sys
import warnings

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from http_clients import IDLE_ONE, LONG, NOTHING, Site, answering, client, endless, pieces, raw, site  # noqa: F401  # fixtures
from http_messages import plain_fields
from pairs import drain
from scripts import OK

from greensock import LimitExceeded, ProtocolError
from greensock.http import (
    FileBody,
    Headers,
    HTTPClient,
    HTTPServer,
    Response,
)

# -- what one asks for


def test_get_and_keep(site, client):
    mine = client()
    for reused in False, True, True:
        answer = mine.get(site.url + "/")
        assert (answer.status, answer.read_all()) == (200, f"GET 127.0.0.1:{site.server_port}".encode())
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.is_reused is reused
        assert answer.is_ended
        assert mine.statistics(site.url) == IDLE_ONE
    assert site.statistics().accepted == 1


def test_the_methods(site, client):
    mine = client()
    assert mine.put(site.url + "/echo", b"x").read_all() == b"x"
    assert mine.delete(site.url + "/").read_all().startswith(b"DELETE ")
    assert mine.request("OPTIONS", site.url, target=b"*").status == 404
    assert mine.get(site.url + "/nowhere").status == 404


def test_what_has_no_body(site, client):
    mine = client()
    head = mine.head(site.url + "/")
    length = len(f"HEAD 127.0.0.1:{site.server_port}")
    assert (head.status, head.head.content_length, head.read_all()) == (200, length, b"")
    assert mine.get(site.url + "/empty").status == 204
    assert mine.get(site.url + "/unmodified").status == 304
    assert site.statistics().accepted == 1
    assert mine.statistics() == IDLE_ONE


@pytest.mark.parametrize(
    ("make", "fields", "framed", "expected"),
    [
        (lambda: None, {}, "0", b""),
        (lambda: b"", {}, "0", b""),
        (lambda: b"bytes", {}, "5", b"bytes"),
        (lambda: "t\u00e4xt", {}, "5", "t\u00e4xt".encode()),
        (lambda: memoryview(b"view"), {}, "4", b"view"),
        (lambda: LONG, {}, str(len(LONG)), LONG),
        (pieces, {}, "chunked", b"onetwo"),
        (pieces, {"Content-Length": "6"}, "6", b"onetwo"),
        (lambda: io.BytesIO(b"in memory"), {}, "chunked", b"in memory"),
        (lambda: io.BytesIO(b"in memory"), {"Content-Length": "9"}, "9", b"in memory"),
        (lambda: [LONG], {}, "chunked", LONG),
        (list, {}, "chunked", b""),
    ],
)
@pytest.mark.parametrize("expect_continue", [False, True])
def test_bodies(site, client, make, fields, framed, expected, expect_continue):
    mine = client()
    answer = mine.post(site.url + "/echo", make(), headers=fields, expect_continue=expect_continue)
    assert answer.read_all(1 << 24) == expected
    assert answer.headers["x-framing"] == framed
    assert mine.statistics() == IDLE_ONE


@pytest.mark.parametrize("size", [0, 1, 20_000, 3_000_000])
def test_a_file_is_sent_from_its_position_and_stays_as_it_is(site, client, tmp_path, size):
    path = tmp_path / "file"
    data = random.Random(1).randbytes(size + 5)
    path.write_bytes(data)
    mine = client()
    with path.open("rb") as file:
        file.seek(5)
        answer = mine.post(site.url + "/echo", file)
        assert answer.read_all(1 << 24) == data[5:]
        assert answer.headers["x-framing"] == str(size)
        assert file.tell() == 5
    body = FileBody(path.open("rb"), 2, 3)
    assert mine.post(site.url + "/echo", body).read_all() == data[2:5]
    assert body.file.closed
    assert mine.statistics() == IDLE_ONE


def test_trailers_go_both_ways(site, client, raw):
    mine = client()
    body, sums = [b"x", b"y"], []
    answer = mine.post(site.url + "/trailers", body, trailers=lambda: sums.append(1) or Headers([("Sum", "2")]))
    assert answer.read_all() == b"b'xy' [['Sum', '2']]"
    assert sums == [1]
    server = raw(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nSum: 1\r\n\r\n"))
    answer = mine.get(server.url)
    assert answer.read_all() == b"x"
    assert plain_fields(answer.trailers) == [["Sum", "1"]]


def test_a_long_answer_streams_in_bounded_memory(site, client):
    mine = client()
    with mine.get(site.url + "/stream?64") as answer:
        size = 0
        for piece in answer:
            assert 0 < len(piece) <= 65536
            assert answer.parser.pending <= 65536
            size += len(piece)
    assert size == answer.received == 64 * 65536
    assert answer.read() == b""
    assert mine.statistics() == IDLE_ONE


def test_read_gives_at_most_what_is_asked_for(site, client):
    mine = client()
    answer = mine.get(site.url + "/stream?1")
    data = b""
    while piece := answer.read(1000):
        assert len(piece) <= 1000
        data += piece
    assert data == LONG[:65536]
    with pytest.raises(ValueError, match="max_bytes=0"):
        answer.read(0)


@pytest.mark.parametrize("path", ["/stream?1", "/sized?65536", "/sized?65536&slow"])
@pytest.mark.parametrize(("most", "fits"), [(65535, False), (65536, True), (65537, True)])
def test_read_all_is_bounded(site, client, path, most, fits):
    mine = client()
    answer = mine.get(site.url + path)
    if fits:
        assert len(answer.read_all(most)) == 65536
        return
    with pytest.raises(LimitExceeded, match=f"max_bytes={most}") as caught:
        answer.read_all(most)
    assert (caught.value.limit, caught.value.value) == ("max_bytes", most)
    assert not isinstance(caught.value, ProtocolError), "the server broke no rule"
    assert answer.is_ended
    assert mine.statistics().used == 0


def test_read_all_does_not_begin_what_is_too_long(raw, client):
    mine = client()

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        drain(sock)

    answer = mine.get(raw(script).url)
    assert answer.read(2) == b"ab"
    with pytest.raises(LimitExceeded):
        answer.read_all(7)
    assert mine.statistics() == NOTHING
    answer = mine.get(raw(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")).url)
    assert answer.read(2) == b"ab"
    assert answer.read_all(1) == b"c"


def test_an_answer_of_which_a_program_wants_less_blames_nobody(site, client, serve, connect, caplog):
    class Asking(HTTPServer):
        def handle_request(self, request):
            return Response(client().get(site.url + "/stream?1").read_all(100))

    server = serve(Asking)
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", read_all(sock)) == [b"500"], "as for any failure of the program"
    assert server.statistics().errors == 1
    assert "LimitExceeded: a body of more than max_bytes=100 bytes" in caplog.text


def test_closing_early_gives_the_connection_up(site, client):
    mine = client()
    with mine.get(site.url + "/stream?1000") as answer:
        answer.read(10)
        assert mine.statistics().used == 1
    assert answer.is_ended
    assert mine.statistics() == NOTHING
    answer.close()
    assert answer.read() == b""
    assert mine.get(site.url + "/").status == 200
    assert site.statistics().accepted == 2


def test_an_answer_that_is_forgotten_warns_and_gives_the_connection_up(site, client):
    mine = client()
    answer = mine.get(site.url + "/stream?1000")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del answer
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert mine.statistics() == NOTHING


# -- what goes out


def test_the_fields_that_go_out(raw, client):
    server = raw(answering(OK, OK, OK, OK))
    mine = client(user_agent="me")
    mine.get(server.url + "/a?b")
    host = f"Host: 127.0.0.1:{server.address[1]}\r\n"
    assert server.heads[-1].decode() == f"GET /a?b HTTP/1.1\r\n{host}User-Agent: me\r\n\r\n"
    given = Headers([("Host", "other"), ("User-Agent", "you"), ("X", "1"), ("Connection", "X, keep-alive")])
    mine.post(server.url, headers=given)
    assert server.heads[-1] == (
        b"POST / HTTP/1.1\r\nHost: other\r\nUser-Agent: you\r\nX: 1\r\nContent-Length: 0\r\n\r\n"
    )
    assert len(given) == 4, "the caller's own"
    mine.get(server.url, headers={"TE": "trailers", "Upgrade": "x", "Expect": "100-continue"})
    assert server.heads[-1].endswith(b"TE: trailers\r\nUpgrade: x\r\nUser-Agent: me\r\nConnection: Upgrade, TE\r\n\r\n")
    assert mine.statistics() == IDLE_ONE
    mine.get(server.url, headers={"Connection": "close"}, target=b"//%zz?")
    assert server.heads[-1].startswith(b"GET //%zz? HTTP/1.1\r\n")
    assert server.heads[-1].endswith(b"Connection: close\r\n\r\n")
    assert mine.statistics() == NOTHING
    assert server.accepted == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "G T"},
        {"method": "GET\r\n"},
        {"target": b"/ HTTP/1.1\r\nX: y"},
        {"headers": {"X": "a\r\nb"}},
        {"headers": [("Host", "a"), ("Host", "b")]},
        {"body": b"x", "headers": {"Content-Length": "2"}},
        {"body": b"x", "headers": {"Content-Length": "x"}},
        {"timeout": 0},
        {"url": "wss://a/"},
    ],
)
def test_what_cannot_be_sent_is_not(raw, client, wrong):
    server = raw(answering(OK))
    mine = client()
    with pytest.raises(ValueError, match=r"."):
        mine.request(**{"method": "GET", "url": server.url, **wrong})
    assert server.accepted == 0
    assert mine.statistics() == NOTHING


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "nonsense"},
        {"method": "G T"},
        {"timeout": 0},
        {"headers": {"X": "a\r\nb"}},
        {"headers": {"Content-Length": "x"}},
    ],
)
def test_the_body_of_what_cannot_be_sent_is_closed(client, tmp_path, wrong):
    (tmp_path / "file").write_bytes(b"x")
    file = (tmp_path / "file").open("rb")
    gone = []

    class Closing(list):
        def close(self):
            gone.append(self)

    for body in FileBody(file), Closing([b"x"]):
        with pytest.raises(ValueError, match=r"."):
            client().request(**{"method": "GET", "url": "http://127.0.0.1:9/", "body": body, **wrong})
    assert file.closed
    assert len(gone) == 1
    with (tmp_path / "file").open("rb") as mine:
        with pytest.raises(ValueError, match=r"."):
            client().request(**{"method": "GET", "url": "http://127.0.0.1:9/", "body": mine, **wrong})
        assert not mine.closed


def test_a_file_that_decompresses_is_sent_decompressed(site, client, tmp_path):
    path = tmp_path / "file.gz"
    with gzip.open(path, "wb") as file:
        file.write(LONG)
    with gzip.open(path, "rb") as file:
        answer = client().post(site.url + "/echo", file)
        assert answer.read_all(1 << 24) == LONG
    assert answer.headers["x-framing"] == "chunked"


def test_a_body_of_another_kind(client):
    with pytest.raises(TypeError, match="body=int"):
        client().post("http://127.0.0.1:9/", 5)


@pytest.mark.parametrize("declared", ["5", "7"])
def test_a_body_that_is_not_as_long_as_it_says_is_cut_visibly(raw, client, declared):
    ends = []

    def script(server, sock, number):
        server.head(sock)
        try:
            while sock.recv(100):
                pass
        except ConnectionResetError:
            ends.append("reset")

    server = raw(script)
    mine = client()
    with pytest.raises(ValueError, match="Content-Length"):
        mine.post(server.url, pieces(), headers={"Content-Length": declared})
    wait_until(lambda: ends == ["reset"])
    assert mine.statistics() == NOTHING


def test_what_the_body_raises_comes_out_and_the_body_is_closed(raw, client):
    server = raw(answering(b"", then=drain))
    mine = client()
    closed = []

    def broken():
        try:
            yield b"x"
            raise RuntimeError("as it was told to")
        finally:
            closed.append(1)

    with pytest.raises(RuntimeError, match="told"):
        mine.post(server.url, broken())
    assert closed == [1]
    assert mine.statistics() == NOTHING


def test_options_are_checked():
    with pytest.raises(TypeError, match="unknown option 'max'"):
        HTTPClient(max=1)
    with pytest.raises(ValueError, match="max_connections=0: a whole number of at least 1 expected"):
        HTTPClient(max_connections=0)
    with pytest.raises(ValueError, match="timeouts=5"):
        HTTPClient(timeouts=5)


# -- servers of others


@contextlib.contextmanager
def running(command, pattern, cwd):
    """Run a server; give the match of what it says when it is ready."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said = b""
            while not (match := re.search(pattern, said)):
                piece = os.read(process.stdout.fileno(), 65536) if readable(process.stdout) else b""
                assert piece, said
                said += piece
            yield match
        finally:
            process.terminate()
            drained = gevent.spawn(process.stdout.read)
            process.wait(PATIENCE)
            drained.join()


def readable(stream):
    gevent.socket.wait_read(stream.fileno(), timeout=PATIENCE)
    return True


def exchange_with(mine, url, *, keeps):
    """What any server of files has to do right."""
    for _ in range(3):
        assert mine.get(url + "small").read_all() == b"small"
        with mine.get(url + "large") as answer:
            assert sum(map(len, answer)) == 3_000_000
        head = mine.head(url + "large")
        assert (head.status, head.head.content_length, head.read_all()) == (200, 3_000_000, b"")
        missing = mine.get(url + "missing")
        assert missing.status == 404
        missing.read_all()
        dated = mine.get(url + "small")
        dated.read_all()
        again = mine.get(url + "small", headers={"If-Modified-Since": dated.headers["last-modified"]})
        assert (again.status, again.read_all()) == (304, b"")
    assert mine.statistics().used == 0
    assert mine.statistics().idle == keeps


@pytest.fixture
def files(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    return tmp_path


def test_http_server_of_the_standard_library(files, client):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with running(command, rb"port (\d+)", files) as match:
        exchange_with(client(), f"http://127.0.0.1:{match.group(1).decode()}/", keeps=0)


NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr notice; {user}
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi; client_max_body_size 4m; keepalive_timeout 60;
    server {{
        listen unix:{path}; root {root};
        location /put {{ return 200 "put"; }}
        location /refuse {{ client_max_body_size 1k; proxy_pass http://unix:{path}:/; }}
    }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="nginx is not there")
def test_nginx(files, client):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    path = str(files / "socket")
    user = "user root;" if os.geteuid() == 0 else ""
    (files / "nginx.conf").write_text(NGINX.format(path=path, root=files, user=user))
    command = [nginx, "-e", "stderr", "-p", str(files), "-c", str(files / "nginx.conf")]
    with running(command, rb"start|using the", files):
        wait_until(lambda: os.path.exists(path))
        mine = client()
        url = f"http+unix://{path.replace('/', '%2F')}/"
        exchange_with(mine, url, keeps=1)
        assert mine.get("http://a/small", address=path).read_all() == b"small"
        assert mine.statistics() == IDLE_ONE
        assert mine.post(url + "put", LONG).read_all() == b"put"
        for body in endless([]), bytes(1 << 25):
            answer = mine.post(url + "refuse", body)
            assert answer.status == 413
            assert b"413" in answer.read_all()
        assert mine.post(url + "put", [LONG, LONG]).read_all() == b"put"
        assert mine.put(url + "small", b"x", expect_continue=True).status == 405


APPLICATION = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["REQUEST_METHOD"].encode(), b" ", str(len(body)).encode(), b" ", body[:5]]
"""


def test_gunicorn(tmp_path, client):
    (tmp_path / "application.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-k", "gthread", "--threads", "4"]
    command += ["--worker-tmp-dir", str(tmp_path), "application:app"]
    with running(command, rb"Listening at: http://127.0.0.1:(\d+)(?s:.*)Booting worker", tmp_path) as match:
        mine = client()
        url = f"http://127.0.0.1:{match.group(1).decode()}/"
        for _ in range(3):
            answer = mine.get(url)
            assert answer.head.is_chunked
            assert answer.read_all() == b"GET 0 "
            assert mine.post(url, LONG).read_all() == b"POST %d 01234" % len(LONG)
            assert mine.post(url, [b"01", b"234", LONG]).read_all() == b"POST %d 01234" % (len(LONG) + 5)
            assert mine.put(url, b"x" * 100, expect_continue=True).read_all() == b"PUT 100 xxxxx"
        assert mine.statistics() == IDLE_ONE
