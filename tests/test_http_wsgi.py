"""The WSGI server: PEP 3333, what it has in common with pywsgi, and two frameworks, all over real connections."""

from __future__ import annotations

import errno
import io
import socket
import stat
import sys
import tempfile

import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent import pywsgi
from wsgi_serving import (
    DATA,
    TEXT,
    Answer,
    answers,
    chunked,
    site,  # noqa: F401  # fixtures
)

from greensock.http import Limits, WSGIServer
from greensock.http.server.spool import IN_MEMORY

# -- the environ


SAMPLES = [
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /a%20b/%C3%A9;p=1?x=%20&y HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n",
    b"GET /?a?b HTTP/1.0\r\n\r\n",
    b"GET /%2525//x/../y HTTP/1.0\r\nHost: a\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: text/x; y=z\r\nContent-Length: 2\r\n\r\nhi",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: a=1\r\nx-y: \xe9 b \r\nX_Z: no\r\nCookie: b=2\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
]


@pytest.mark.parametrize("request_", SAMPLES)
def test_the_environ_is_pywsgis(site, request_):
    seen = []

    def application(environ, start_response):
        seen.append({key: value for key, value in environ.items() if key != "SERVER_PORT"})
        start_response("204 No Content", [])
        return []

    ours = site(application, environ={"EXTRA": "1"})
    theirs = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None, environ={"EXTRA": "1"})
    theirs.start()
    try:
        for port in (ours.server.server_port, theirs.server_port):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
                sock.sendall(request_)
                assert read_all(sock).startswith(b"HTTP/1.1 204 ")
    finally:
        theirs.stop()
    mine, others = seen
    own = {"wsgi.input", "wsgi.errors", "SERVER_SOFTWARE", "REMOTE_PORT"}
    added = {"wsgi.file_wrapper", "greensock.request"}
    assert {key: value for key, value in mine.items() if key not in own | added} == {
        key: value for key, value in others.items() if key not in own
    }
    assert own | added <= set(mine)
    assert type(mine["REMOTE_PORT"]) is str


def test_what_differs_from_pywsgis_environ(site):
    """An absolute target, and repeated fields: pywsgi has the whole target as the path, and no space at the comma."""
    seen = []

    def application(environ, start_response):
        seen.append(environ)
        start_response("204 No Content", [])
        return []

    here = site(application)
    here.ask("GET http://a/b%2Fc?d HTTP/1.1\nHost: a\nConnection: close\nAccept: x\nAccept: y\n\n")
    assert seen[0]["PATH_INFO"] == "/b/c"
    assert seen[0]["QUERY_STRING"] == "d"
    assert seen[0]["HTTP_ACCEPT"] == "x, y"
    assert seen[0]["SERVER_PORT"] == str(here.server.server_port)
    assert type(seen[0]) is dict


def test_set_environ_and_its_kin(site):
    seen = []

    def application(environ, start_response):
        seen.append(environ)
        start_response("204 No Content", [])
        return []

    class Named(WSGIServer):
        base_env = {**WSGIServer.base_env, "SERVER_SOFTWARE": "named"}

        def get_environ(self):
            return {**super().get_environ(), "MORE": "1"}

    here = site(application, Named, environ={"SERVER_NAME": "given"})
    here.get()
    here.server.set_environ({"LATER": "2"})
    here.get()
    assert (seen[0]["SERVER_NAME"], seen[0]["SERVER_SOFTWARE"], seen[0]["MORE"]) == ("given", "named", "1")
    assert seen[1]["LATER"] == "2"
    assert seen[1]["SERVER_NAME"]
    assert seen[1]["SERVER_PORT"] == str(here.server.server_port)
    assert seen[1]["wsgi.errors"] is here.errors
    assert "LATER" not in seen[0]


@pytest.mark.parametrize(("scheme", "port"), [("http", "80"), ("https", "443")])
@pytest.mark.parametrize("early", [False, True])
def test_unix_sockets(tmp_path, scheme, port, early):
    seen = []
    path = tmp_path / "s"

    def application(environ, start_response):
        seen.append(environ)
        start_response("200 OK", TEXT)
        return [b"unix"]

    environ = {"wsgi.url_scheme": scheme}
    server = WSGIServer(str(path), application, log=None, environ=environ, stop_timeout=0.2, unix_mode=0o600)
    if early:
        server.init_socket()
        assert path.exists()
    with server, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(server.address)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\nunix")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    assert (seen[0]["SERVER_NAME"], seen[0]["SERVER_PORT"]) == ("localhost", port)  # PEP 3333: never empty
    assert "REMOTE_ADDR" not in seen[0]


# -- what gevent's servers take, and this one does not


def test_a_backlog_beside_a_socket():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TypeError, match="backlog: None expected"):
        WSGIServer(listener, answers([b""]), backlog=25)


def test_a_handler_is_refused(site):
    def handle(*arguments):
        raise AssertionError("called")

    class Handling(WSGIServer):
        def handle(self, sock, address):
            super().handle(sock, address)

    with pytest.raises(TypeError, match="there are no handlers here"):
        WSGIServer(("127.0.0.1", 0), answers([b""]), handle=handle)
    with pytest.raises(TypeError, match="there are no handlers here"):
        Handling(("127.0.0.1", 0), answers([b""]))
    server = WSGIServer(("127.0.0.1", 0), answers([b""]))
    with pytest.raises(TypeError, match="there are no handlers here"):
        server.set_handle(handle)
    server.handle = handle
    with pytest.raises(TypeError, match="there are no handlers here"):
        server.start()
    assert not server.started


# -- the body of a request


def read_in_odd_ways(stream):
    """What a file can do beside the usual ways, one behind the other."""
    into = bytearray(9)
    pieces = [next(stream, b""), stream.read1(5), stream.readline(None), bytes(into[: stream.readinto1(into)])]
    assert len(pieces[1]) <= 5
    if hasattr(stream, "peek"):
        ahead = stream.peek(1)[:1]
        pieces.append(stream.read(1))
        assert pieces[-1] == ahead
    pieces += [*stream.readlines(None), stream.read(None)]
    return [b"".join(pieces)]


READS = {
    "read": lambda stream: [stream.read()],
    "read(-1)": lambda stream: [stream.read(-1)],
    "read(4)": lambda stream: list(iter(lambda: stream.read(4), b"")),
    "read(1)": lambda stream: list(iter(lambda: stream.read(1), b"")),
    "read(0)": lambda stream: [stream.read(0), stream.read(100_000)],
    "read(20000)": lambda stream: list(iter(lambda: stream.read(20_000), b"")),
    "read(20000), others": lambda stream: [
        *(stream.read(20_000), stream.readline(), stream.read(30_000), stream.readlines(1), stream.read()),
    ],
    "readinto": lambda stream: [stream.readinto(into := bytearray(50_000)), bytes(into), stream.read()],
    "readline": lambda stream: list(iter(stream.readline, b"")),
    "readline(3)": lambda stream: list(iter(lambda: stream.readline(3), b"")),
    "readlines": lambda stream: stream.readlines(),
    "readlines(1)": lambda stream: [*stream.readlines(1), *stream.readlines()],
    "iteration": list,
    "odd ways": read_in_odd_ways,
    "read(None)": lambda stream: [stream.readable(), stream.read(None)],
}


BODIES = [b"", b"x", b"one\ntwo\n\nthree", bytes(range(256)) * 300]


@pytest.mark.parametrize("framing", ["length", "chunked", "streamed"])
@pytest.mark.parametrize("way", READS)
def test_input_reads_as_a_file_does(site, way, framing):
    found = []

    def application(environ, start_response):
        assert environ["wsgi.input_terminated"] is True
        stream = environ["wsgi.input"]
        found.append(READS[way](stream))
        assert stream.read(1) == b""
        start_response("200 OK", TEXT)
        return [b"done"]

    here = site(application, stream_chunked=framing == "streamed")
    for body in BODIES:
        if framing == "length":
            answer = here.post(body=body)
        else:
            fields = "Host: a\nConnection: close\nTransfer-Encoding: chunked\n"
            answer = here.ask(f"POST / HTTP/1.1\n{fields}\n", chunked(body, 7))
        assert answer.body == b"done", here.errors.getvalue()
        assert found.pop() == READS[way](io.BytesIO(body))


def test_input_streams(site):
    """What is there is read and answered before the rest is sent."""

    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        while piece := environ["wsgi.input"].read(5):
            write(piece.upper())
        return []

    sock = site(application).connect()
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 15\r\n\r\n")
    for _ in range(3):
        sock.sendall(b"piece")
        data = b""
        while not data.endswith(b"5\r\nPIECE\r\n"):
            data += read_exactly(sock, 1)
    assert read_all(sock) == b"0\r\n\r\n"


def test_continue_goes_out_at_the_first_read(site):
    def application(environ, start_response):
        body = environ["wsgi.input"].read()
        start_response("200 OK", TEXT)
        return [body]

    here = site(application)
    sock = here.connect()
    sock.sendall(b"PUT / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi")
    assert Answer(read_all(sock)).body == b"hi"
    sock = here.connect()
    sock.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert read_exactly(sock, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(b"hi")
    assert Answer(read_all(sock)).body == b"hi"


@pytest.mark.parametrize(
    ("framing", "body", "status"),
    [
        ("Transfer-Encoding: chunked", b"zz\r\n", 400),
        ("Transfer-Encoding: chunked", b"3\r\nabcd", 400),
        ("Transfer-Encoding: chunked", b"FF\r\n" + b"x" * 255, 413),
        ("Content-Length: 10", b"short", 400),
    ],
)
def test_a_body_that_cannot_be_read(site, framing, body, status):
    raised = []

    def application(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            if "mine" in environ["PATH_INFO"]:
                start_response("422 As I please", TEXT)
                return [b"mine"]
            raise

    here = site(application, limits=Limits(max_body=100), stream_chunked=True)
    for path, expected in (("/", status), ("/mine", 422)):
        sock = here.connect()
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode() + body)
        sock.shutdown(socket.SHUT_WR)
        answer = Answer(read_all(sock))
        assert answer.status == expected
        assert answer.fields["Connection"] == "close"
    assert len(raised) == 2
    assert "Traceback" not in here.errors.getvalue()


def test_a_chunked_upload_is_read_first_and_has_a_length(site):
    """Up to a bound, in memory and then on disk; the application is not called for what cannot be read."""
    seen = []

    def application(environ, start_response):
        length = int(environ["CONTENT_LENGTH"])
        seen.append((length, type(environ["wsgi.input"]) is io.BytesIO))
        assert "HTTP_TRANSFER_ENCODING" not in environ
        trailers = environ["greensock.request"].trailers
        start_response("200 OK", [*TEXT, ("X-Trailer", str(trailers and trailers.get("x-sum")))])
        return [environ["wsgi.input"].read(length), environ["wsgi.input"].read(1)]

    most = IN_MEMORY + 1
    here = site(application, max_chunked=most, body_timeout=PATIENCE)
    head = "POST / HTTP/1.1\nHost: a\nConnection: close\nTransfer-Encoding: chunked\n\n"
    for body in (b"", b"x", DATA[:IN_MEMORY], (DATA + DATA)[:most]):
        answer = here.ask(head, chunked(body, 7000)[:-2] + b"X-Sum: 7\r\n\r\n")
        assert (answer.status, answer.body, answer.fields["X-Trailer"]) == (200, body, "7"), here.errors.getvalue()
    assert seen == [(0, True), (1, True), (len(DATA[:IN_MEMORY]), True), (most, False)]
    for broken, status in (((DATA + DATA)[: most + 1], 413), (b"zz", 400)):
        sock = here.connect()
        data = chunked(broken, 7000) if status == 413 else broken + b"\r\n"
        sock.sendall(head.replace("\n", "\r\n").encode() + data)
        assert Answer(read_all(sock)).status == status
    sock = here.connect()
    sock.sendall(head.replace("\n\n", "\nExpect: 100-continue\n\n").replace("\n", "\r\n").encode())
    assert read_exactly(sock, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(chunked(b"late", 4))
    assert Answer(read_all(sock)).body == b"late"
    assert len(seen) == 5


def test_a_disk_that_is_full_is_500(site, monkeypatch):
    asked = []

    def fail(dir):
        asked.append(dir)
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    here = site(answers([b"x"]), spool_folder="there")
    answer = here.ask(
        "POST / HTTP/1.1\nHost: a\nConnection: close\nTransfer-Encoding: chunked\n\n",
        chunked((DATA + DATA)[: IN_MEMORY + 1], 7000),
    )
    assert answer.status == 500
    assert asked == ["there"]
    assert "no space left" in here.errors.getvalue()


def test_early_hints_and_trailers(site):
    """What a client takes that says so, and nothing for others."""
    said = []

    def application(environ, start_response):
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        request = environ["greensock.request"]
        said.append(request.add_trailers({"X-Sum": "1"}))
        write = start_response("200 OK", TEXT)
        write(b"one")
        environ["wsgi.early_hints"]([("Link", "too late")])
        request.add_trailers({"X-Late": "2"})
        return []

    here = site(application, early_hints=True)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n")
    early, _, rest = read_all(sock).partition(b"\r\n\r\n")
    assert early == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload"
    head, _, body = rest.partition(b"\r\n\r\n")
    assert b"\r\nTrailer: X-Sum\r\n" in head
    assert body == b"3\r\none\r\n0\r\nX-Sum: 1\r\nX-Late: 2\r\n\r\n"
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert read_all(sock).endswith(b"\r\n\r\n3\r\none\r\n0\r\n\r\n")
    assert here.ask("GET / HTTP/1.0\nTE: trailers\n\n").body == b"one"
    assert said == [True, False, False]


def test_a_body_that_does_not_come_is_408(site):
    def application(environ, start_response):
        environ["wsgi.input"].read()

    here = site(application, body_timeout=0.05)
    sock = here.connect()
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nshort")
    assert Answer(read_all(sock)).status == 408
    assert here.server.refused == {"body-timeout": 1}


def test_an_unread_body_does_not_become_a_request(site):
    here = site(answers([b"x"]))
    body = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    fields = f"Host: a\nContent-Length: {len(body)}\n"
    sock = here.connect()
    sock.sendall(f"POST / HTTP/1.1\n{fields}\n".replace("\n", "\r\n").encode() + body)
    assert here.get(fields="").body == b"x"
    answer = here.ask("GET / HTTP/1.1\nHost: a\nConnection: close\n\n", sock=sock)
    assert answer.body.count(b"HTTP/1.1 200") == 1  # with the one that Answer took off


# -- start_response and write


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("200 OK\r\nX: y", []), ValueError, "carriage return or newline in status"),
        (("99 Low", []), ValueError, "200 to 999"),
        (("101 Switching Protocols", []), ValueError, "200 to 999"),
        (("abc", []), ValueError, "200 to 999"),
        ((b"200 OK", []), UnicodeError, "str expected"),
        (("200 \u20ac", []), UnicodeError, "latin-1"),
        (("200 OK", [("A\r\n", "b")]), ValueError, "carriage return or newline in header name"),
        (("200 OK", [("A b", "c")]), ValueError, "not allowed in header name"),
        (("200 OK", [("A", "b\r\nC: d")]), ValueError, "carriage return or newline in header value"),
        (("200 OK", [("A", "b\0")]), ValueError, "not allowed in header value"),
        (("200 OK", [("A", b"b")]), UnicodeError, "Latin-1"),
        (("200 OK", [(b"A", "b")]), UnicodeError, "str expected"),
        (("200 OK", [("A", "\u20ac")]), UnicodeError, "Latin-1"),
        (("200 OK", [("Content-Length", "-1")]), ValueError, "one number"),
        (("200 OK", [("Content-Length", "1"), ("content-length", "1")]), ValueError, "one number"),
        *(
            (("200 OK", [(name, "x")]), ValueError, "hop-by-hop")
            for name in ("Transfer-Encoding", "upgrade", "Keep-Alive", "TE", "Trailer", "Proxy-Authenticate")
        ),
    ],
)
def test_start_response_refuses(site, arguments, kind, words):
    raised = []

    def application(environ, start_response):
        try:
            start_response(*arguments)
        except Exception as error:
            raised.append(error)
            start_response("200 After all", TEXT)
        return [b"fine"]

    assert site(application).get().line == "HTTP/1.1 200 After all"
    assert type(raised[0]) in (kind, UnicodeEncodeError)
    assert words in str(raised[0].args)


def test_start_response_twice(site):
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        try:
            raise LookupError("changed my mind")
        except LookupError:
            if "info" in environ["PATH_INFO"]:
                start_response("404 Gone", [("A", "b")], sys.exc_info())
            else:
                start_response("404 Gone", [("A", "b")])
        return [b"body"]

    here = site(application)
    answer = here.get("/info")
    assert (answer.line, answer.fields["A"]) == ("HTTP/1.1 404 Gone", "b")
    assert "Content-Type" not in answer.fields
    assert here.get("/").status == 500
    assert "AssertionError: start_response was called before" in here.errors.getvalue()


def test_exc_info_is_raised_when_the_head_is_out(site):
    def application(environ, start_response):
        write = start_response("200 OK", TEXT)
        write(b"begun")
        try:
            raise LookupError("too late")
        except LookupError:
            start_response("500 Sorry", TEXT, sys.exc_info())
        return []

    here = site(application)
    assert here.get().body == b"5\r\nbegun\r\n", "no last chunk"
    wait_until(lambda: "LookupError: too late" in here.errors.getvalue())


def test_write(site):
    def application(environ, start_response):
        size = environ["QUERY_STRING"]
        write = start_response("200 OK", [*TEXT, ("Content-Length", size)] if size else TEXT)
        write(b"one")
        write(b"")
        write(b"two")
        return [b"three"]

    here = site(application)
    assert here.get().body == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
    assert here.get("/?11").body == b"onetwothree"
    assert here.get("/?2").status == 500  # nothing was sent
    cut = here.get("/?5")
    assert (cut.fields["Content-Length"], cut.body) == ("5", b"one")
    wait_until(lambda: "longer than its Content-Length, 5" in here.errors.getvalue())


def test_write_after_the_end_is_an_error(site):
    kept = []

    def application(environ, start_response):
        kept.append(start_response("200 OK", TEXT))
        return [b"x"]

    site(application).get()
    with pytest.raises(AssertionError):
        kept[0](b"late")
