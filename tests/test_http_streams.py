"""The place for what is to come: a toy filter (a compression) and a toy second stream on one connection (HTTP/2)."""

from __future__ import annotations

import gevent
import pytest
from conftest import read_all, read_exactly, wait_until
from proxies import Origin, Recorded, gateways
from scripts import scripted

from greensock import Lines
from greensock.http import HTTPError, HTTPServer, RequestParser, Response, WSGIServer
from greensock.http.server.request import NO_BODY, Request

LONG = b"some words " * 30_000


class Upper:
    """A filter: upper case, in pieces of its own, and a mark at the end."""

    def __init__(self):
        self.held = b""

    def filter(self, piece):
        data = self.held + piece.upper()
        self.held = data[len(data) // 8 * 8 :]
        return data[: len(data) // 8 * 8]

    def finish(self):
        return self.held + b"."


def upper(request, response):
    if "plain" in request.target.decode():
        return None
    response.headers.set("Vary", "Accept-Encoding")
    return Upper()


class Pieces:
    """A body in pieces, which says when it is closed."""

    def __init__(self, pieces, closed):
        self.pieces, self.closed = pieces, closed

    def __iter__(self):
        return iter(self.pieces)

    def close(self):
        self.closed.append(True)


class Site(HTTPServer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.file = None
        self.closed = []

    def handle_request(self, request):
        match request.path.removeprefix("/plain"):
            case "/file":
                return Response.file(self.file)
            case "/pieces":
                return Response(Pieces([b"one ", b"", b"two"], self.closed))
            case "/sized":
                return Response(Pieces([b"one ", b"two"], self.closed), headers={"Content-Length": "7"})
            case "/fails":
                return Response(Pieces(fails_after(b"one "), self.closed))
            case "/fails/first":
                return Response(Pieces(fails_after(), self.closed))
            case "/none":
                return Response(b"", 204)
            case "/refused":
                raise HTTPError(403, "not for yo")
            case _:
                return Response(b"hello world")


def fails_after(*pieces):
    yield from pieces
    raise RuntimeError("the program fails")


def application(server):
    """The same site as a WSGI application."""

    def run(environ, start_response):
        path = environ["PATH_INFO"].removeprefix("/plain")
        if path == "/fails/first":
            raise RuntimeError("the program fails")
        if path == "/refused":
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"not for yo\n"]
        if path == "/none":
            start_response("204 No Content", [])
            return []
        size = [("Content-Length", "7")] if path == "/sized" else []
        write = start_response("200 OK", [("Content-Type", "text/plain"), *size])
        match path:
            case "/file":
                return environ["wsgi.file_wrapper"](open(server.file, "rb"))
            case "/pieces":
                write(b"one ")
                return Pieces([b"", b"two"], server.closed)
            case "/sized":
                return Pieces([b"one ", b"two"], server.closed)
            case "/fails":
                return Pieces(fails_after(b"one "), server.closed)
        return [b"hello world"]

    return run


@pytest.fixture(params=["http", "wsgi"])
def site(request, serve, tmp_path):
    """A site of either kind, with a file."""

    def start(*, http=Site, wsgi=WSGIServer, **options):
        if request.param == "http":
            server = serve(http, **options)
        else:
            server = serve(wsgi, application=lambda *given: run(*given), log=None, error_log=None, **options)
            server.closed = []
            run = application(server)
        path = tmp_path / "file.txt"
        path.write_bytes(LONG)
        server.file = str(path)
        return server

    return start


BODIES = {"/": b"hello world", "/file": LONG, "/pieces": b"one two", "/sized": b"one two", "/refused": b"not for yo\n"}


def ask(sock, path, method="GET"):
    """Send a request; return status, fields and body, with chunks put together."""
    sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
    body = b""
    if method == "HEAD" or " 204 " in head.decode():
        pass
    elif "Content-Length" in fields:
        body = read_exactly(sock, int(fields["Content-Length"]))
    else:
        while size := int(read_line(sock), 16):
            body += read_exactly(sock, size)
            assert read_exactly(sock, 2) == b"\r\n"
        assert read_exactly(sock, 2) == b"\r\n"
    return int(head[9:12]), fields, body


def read_line(sock):
    line = b""
    while not line.endswith(b"\r\n"):
        line += read_exactly(sock, 1)
    return line


@pytest.mark.parametrize("path", BODIES)
def test_a_filter(site, connect, path):
    sock = connect(site(filter_for=upper))
    for _ in range(2):  # the connection goes on
        status, fields, body = ask(sock, path)
        assert body == BODIES[path].upper() + b"."
        assert status == (403 if path == "/refused" else 200)
        assert fields["Vary"] == "Accept-Encoding"
    status, fields, body = ask(sock, "/plain" + path)
    assert body == BODIES[path]
    assert "Vary" not in fields


def test_a_filter_closes_what_it_filters(site, connect):
    server = site(filter_for=upper)
    sock = connect(server)
    ask(sock, "/pieces")
    wait_until(lambda: server.closed == [True])


def test_a_filter_has_nothing_to_do_where_there_is_no_body(site, connect):
    sock = connect(site(filter_for=upper))
    status, fields, _ = ask(sock, "/none")
    assert status == 204
    assert "Vary" not in fields
    status, fields, _ = ask(sock, "/", "HEAD")
    assert "Vary" in fields
    assert ask(sock, "/")[2] == b"HELLO WORLD."


def test_a_filtered_answer_that_breaks_off_is_seen_to_be_cut(site, connect):
    sock = connect(site(filter_for=upper))
    sock.sendall(b"GET /fails HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not read_all(sock).endswith(b"0\r\n\r\n")


# -- a second stream


class Stream:
    """One of several answers on a connection: each step of it is a line that begins with its number."""

    def __init__(self, conn, number):
        self.conn, self.number = conn, number

    def say(self, what):
        self.conn.send(b"%d %b\n" % (self.number, what))

    def begin(self, status, fields, length):
        names = {name.lower() for name, _ in fields}
        assert not names & {b"connection", b"transfer-encoding", b"keep-alive"}
        assert (b"content-length" in names) == (length is not None)
        assert b"date" in names
        self.say(b"begin %d %b" % (status, b"?" if length is None else b"%d" % length))

    def write(self, piece):
        self.say(b"write %d" % len(piece))

    def end(self):
        self.say(b"end")

    def reset(self):
        self.say(b"reset")


def many(kind):
    """Return a server of that kind to which each line is a request: its number and its path."""

    class Many(kind):
        framer = Lines()

        def connection_recv(self, conn, data):
            number, path = data.split()
            parser = RequestParser()
            parser.feed(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            request = Request(conn, parser.next_event(), NO_BODY)
            request.stream = Stream(conn, int(number))
            gevent.spawn(self.serve, request)

        def serve(self, request):
            try:
                assert self.serve_request(request, True)
            except RuntimeError:
                pass  # told by a reset

    return Many


STEPS = {
    "/": ["begin 200 11", "write 11", "end"],
    "/none": ["begin 204 ?", "end"],
    "/refused": ["begin 403 11", "write 11", "end"],
    "/sized": ["begin 200 7", "write 4", "write 3", "end"],
    "/pieces": ["begin 200 ?", "write 4", "write 3", "end"],
    "/fails": ["begin 200 ?", "write 4", "reset"],
}


def test_many_answers_on_one_connection(site, connect):
    server = site(http=many(Site), wsgi=many(WSGIServer))
    sock = connect(server)
    for number, path in enumerate(STEPS):
        sock.sendall(f"{number} {path}\n".encode())
    said = {number: [] for number in range(len(STEPS))}
    while not all(steps and steps[-1] in ("end", "reset") for steps in said.values()):
        number, _, step = read_until(sock).decode().partition(" ")
        said[int(number)].append(step)
    assert list(said.values()) == list(STEPS.values())
    assert server.answers_by_status[200] == 4


def read_until(sock):
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(sock, 1)
    return line[:-1]


def test_a_long_file_goes_to_a_stream_in_pieces(site, connect):
    sock = connect(site(http=many(Site), wsgi=many(WSGIServer)))
    sock.sendall(b"7 /file\n")
    steps = []
    while not steps or steps[-1] != "7 end":
        steps.append(read_until(sock).decode())
    assert sum(int(step.split()[2]) for step in steps if "write" in step) == len(LONG)
    assert len(steps) > 4


def test_what_fails_before_its_first_piece_is_500_on_a_stream_too(site, connect):
    sock = connect(site(http=many(Site), wsgi=many(WSGIServer)))
    sock.sendall(b"1 /fails/first\n")
    assert read_until(sock).startswith(b"1 begin 500 ")


def test_a_filter_before_a_stream(site, connect):
    sock = connect(site(http=many(Site), wsgi=many(WSGIServer), filter_for=upper))
    sock.sendall(b"1 /\n")
    assert [read_until(sock) for _ in range(3)] == [b"1 begin 200 12", b"1 write 12", b"1 end"]


# -- the same through the proxy


@pytest.fixture
def proxied(serve):
    """Start a proxy of a kind before an origin: ``proxied(kind, **options)``."""
    with gateways() as gateway:
        yield lambda kind=Recorded, urls=(), **options: serve(
            kind, gateway=gateway(*(urls or [serve(Origin).url])), **options
        )


def test_a_filter_of_the_proxy(proxied, connect):
    seen = []
    proxy = proxied(filter_for=upper, watch_response_body=lambda relay, piece: seen.append(piece))
    sock = connect(proxy)
    for path, body in (("/x", b"GET /x "), ("/chunked", b"onetwothree"), ("/large/400000", b"x" * 400_000)):
        seen.clear()
        status, fields, answer = ask(sock, path)
        assert status == 200
        assert answer == body.upper() + b"."
        assert fields["Vary"] == "Accept-Encoding"
        assert b"".join(seen) == body, "the program sees what the server said"
    assert ask(sock, "/plain")[2] == b"GET /plain "
    assert ask(sock, "/x", "HEAD")[0] == 200
    assert ask(sock, "/status/204")[0] == 204
    wait_until(lambda: len(proxy.records) == 6)
    assert {record.reason for record in proxy.records} == {""}
    assert proxy.gateway.upstreams["site"].all[0].pool.state.statistics().idle == 1


def test_a_filtered_answer_whose_server_breaks_off(proxied, connect):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this much")

    with scripted(script) as server:
        proxy = proxied(urls=[server.url], filter_for=upper)
        sock = connect(proxy)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not read_all(sock).endswith(b"0\r\n\r\n")
        wait_until(lambda: proxy.records)
        assert proxy.records[0].reason == "body-incomplete"


def test_a_filter_before_a_server_that_says_nothing(proxied, connect):
    def script(server, sock, number):
        server.head(sock)

    with scripted(script) as server:
        proxy = proxied(urls=[server.url], filter_for=upper)
        status, _, _ = ask(connect(proxy), "/plain")
        assert status == 502
        assert proxy.failures["no-response"] == 1


def test_many_answers_of_servers_on_one_connection(proxied, connect):
    proxy = proxied(many(Recorded))
    sock = connect(proxy)
    paths = ["/x", "/chunked", "/large/400000", "/status/204", "/status/500"]
    for number, path in enumerate(paths):
        sock.sendall(f"{number} {path}\n".encode())
    said = {number: [] for number in range(len(paths))}
    while not all(steps and steps[-1] in ("end", "reset") for steps in said.values()):
        number, _, step = read_until(sock).decode().partition(" ")
        said[int(number)].append(step)
    assert [steps[0] for steps in said.values()] == [
        "begin 200 7",
        "begin 200 11",
        "begin 200 400000",
        "begin 204 ?",
        "begin 500 0",
    ]
    sizes = [sum(int(step.split()[1]) for step in steps if "write" in step) for steps in said.values()]
    assert sizes == [7, 11, 400_000, 0, 0]
    assert {steps[-1] for steps in said.values()} == {"end"}
    wait_until(lambda: len(proxy.records) == len(paths))
