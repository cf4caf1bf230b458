"""The WSGI server: PEP 3333, what it has in common with pywsgi, and two frameworks, all over real connections."""

from __future__ import annotations

import array
import io
import itertools
import json
import logging
import re
import socket
import stat
import sys
import tempfile
import time
import zlib
from wsgiref.validate import validator

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from gevent import pywsgi
from gevent.pool import Pool

from greensock import Connection, ConnectionLost
from greensock.http import HTTPServer, Limits, WSGIServer
from greensock.http.server import response_writer

TEXT = [("Content-Type", "text/plain")]


class Site:
    """A started server of one application, and what it logged."""

    def __init__(self, server, connect, errors):
        self.server = server
        self.connect = lambda: connect(server)
        self.errors = errors

    def ask(self, text, body=b"", *, sock=None):
        """Send one request and return everything until the end, without its Date; a head in lines of LF."""
        sock = sock or self.connect()
        sock.sendall(text.replace("\n", "\r\n").encode("latin-1") + body)
        return Answer(read_all(sock))

    def get(self, path="/", fields="", method="GET"):
        return self.ask(f"{method} {path} HTTP/1.1\nHost: a\nConnection: close\n{fields}\n")

    def post(self, path="/", body=b"", fields=""):
        return self.ask(
            f"POST {path} HTTP/1.1\nHost: a\nConnection: close\nContent-Length: {len(body)}\n{fields}\n", body
        )


class Answer:
    """What came back."""

    def __init__(self, data):
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.line, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(self.line.split()[1])
        self.fields = dict(field.split(": ", 1) for field in fields)
        self.date = self.fields.pop("Date", None)
        assert len(self.fields) == len(fields) - (self.date is not None), fields


def head_of(sock):
    """Read a head and nothing behind it."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += read_exactly(sock, 1)
    return Answer(data)


@pytest.fixture
def site(serve, connect):
    """``site(application, **options)`` serves it; what it logs is in ``errors``."""

    def make(application=None, kind=WSGIServer, **options):
        errors = io.StringIO()
        options = {"log": None, "error_log": errors, **options}
        return Site(serve(kind, application=application, **options), connect, errors)

    return make


def answers(body, status="200 OK", fields=TEXT):
    def application(environ, start_response):
        start_response(status, list(fields))
        return body() if callable(body) else body

    return application


class Closing:
    """An iterable that counts how often it was closed."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = 0

    def __iter__(self):
        return iter(self.pieces)

    def close(self):
        self.closed += 1


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
    assert {key: value for key, value in mine.items() if key not in own | {"wsgi.file_wrapper"}} == {
        key: value for key, value in others.items() if key not in own
    }
    assert own <= set(mine)
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


READS = {
    "read": lambda stream: [stream.read()],
    "read(-1)": lambda stream: [stream.read(-1)],
    "read(4)": lambda stream: list(iter(lambda: stream.read(4), b"")),
    "read(1)": lambda stream: list(iter(lambda: stream.read(1), b"")),
    "read(0)": lambda stream: [stream.read(0), stream.read(100_000)],
    "readline": lambda stream: list(iter(stream.readline, b"")),
    "readline(3)": lambda stream: list(iter(lambda: stream.readline(3), b"")),
    "readlines": lambda stream: stream.readlines(),
    "readlines(1)": lambda stream: [*stream.readlines(1), *stream.readlines()],
    "iteration": list,
}
BODIES = [b"", b"x", b"one\ntwo\n\nthree", bytes(range(256)) * 300]


def chunked(body, size):
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked"])
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

    here = site(application)
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

    here = site(application, limits=Limits(max_body=100))
    for path, expected in (("/", status), ("/mine", 422)):
        sock = here.connect()
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode() + body)
        sock.shutdown(socket.SHUT_WR)
        answer = Answer(read_all(sock))
        assert answer.status == expected
        assert answer.fields["Connection"] == "close"
    assert len(raised) == 2
    assert "Traceback" not in here.errors.getvalue()


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


# -- answers


@pytest.mark.parametrize(
    ("body", "fields", "framing", "sent"),
    [
        ([], TEXT, "0", b""),
        ((), TEXT, "0", b""),
        ([b""], TEXT, "0", b""),
        ([b"one"], TEXT, "3", b"one"),
        ([b"one", b"two"], TEXT, "6", b"onetwo"),
        ([bytearray(b"one"), memoryview(b"two")], TEXT, "6", b"onetwo"),
        ([b"x" * 100_000], TEXT, "100000", b"x" * 100_000),
        ({b"one": 1}, TEXT, "3", b"one"),
        (lambda: iter([b"one", b"", b"two"]), TEXT, None, b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"),
        (lambda: iter([b"", b"x" * 20_000]), TEXT, None, b"4e20\r\n" + b"x" * 20_000 + b"\r\n0\r\n\r\n"),
        (lambda: iter([]), TEXT, None, b"0\r\n\r\n"),
        (lambda: iter([b"one", b"two"]), [("Content-Length", "6")], "6", b"onetwo"),
        (lambda: iter([b"one", b"two", b"three"]), [("content-length", "5")], "5", b"onetw"),
        ([b"one", b"two"], [("Content-Length", "4")], "4", b"onet"),
        ([b"onetwo"], [("Content-Length", "4")], "4", b"onet"),
        (lambda: iter([b"onetwo", b"three"]), [("Content-Length", "4")], "4", b"onet"),
    ],
)
def test_framing(site, body, fields, framing, sent):
    here = site(answers(body, fields=fields))
    answer = here.get()
    assert answer.fields.get("Content-Length") == framing
    assert answer.fields.get("Transfer-Encoding") == (None if framing else "chunked")
    assert answer.body == sent
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.date)
    old = here.ask("GET / HTTP/1.0\n\n")
    assert "Transfer-Encoding" not in old.fields
    assert old.fields["Connection"] == "close"
    asked = here.connect()
    asked.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    if framing is None:
        assert Answer(read_all(asked)).fields["Connection"] == "close"  # its end is the end of the body
    else:
        assert head_of(asked).fields["Connection"] == "keep-alive"
    assert ("cut off" in here.errors.getvalue()) == (framing in ("4", "5"))


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
@pytest.mark.parametrize(
    ("body", "declared", "of_200"),
    [
        ([b"one"], None, "3"),
        ([b"one"], "3", "3"),
        ([], "3", "3"),
        ([], None, None),
        (lambda: itertools.repeat(b"endless"), None, None),
        (lambda: iter([b"one"]), "3", "3"),
    ],
)
def test_head_204_and_304_have_no_body(site, status, body, declared, of_200):
    fields = [*TEXT, ("Content-Length", declared)] if declared else TEXT
    here = site(answers(body, status, fields))
    sock = here.connect()
    method = "HEAD" if status == "200 OK" else "GET"
    sock.sendall(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    answer = head_of(sock)
    assert "Transfer-Encoding" not in answer.fields
    expected = {"200 OK": of_200, "204 No Content": None, "304 Not Modified": declared}
    assert answer.fields.get("Content-Length") == expected[status]
    again = here.ask(f"{method} / HTTP/1.1\nHost: a\nConnection: close\n\n", sock=sock)
    assert (again.status, again.body) == (answer.status, b"")


def test_kept_closed_and_pipelined(site):
    here = site(answers([b"x"]))
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3 + b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    data = b""
    while data.count(b"\r\n\r\nx") < 4:
        data += sock.recv(65536)
    assert data.count(b"Connection: keep-alive") == 1
    assert here.server.statistics().accepted == 1
    closing = site(answers([b"x"], fields=[("Connection", "close")]))
    assert closing.ask("GET / HTTP/1.1\nHost: a\n\n").fields["Connection"] == "close"
    keeping = site(answers([b"x"], fields=[("Connection", "keep-alive")]))
    assert keeping.get().fields["Connection"] == "close"


def test_own_date_and_repeated_fields(site):
    sock = site(answers([b"x"], fields=[("Date", "then"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])).connect()
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    head = read_all(sock).split(b"\r\n")
    assert [line for line in head if line.startswith((b"Date", b"Set"))] == [
        b"Date: then",
        b"Set-Cookie: a=1",
        b"Set-Cookie: b=2",
    ]


def test_a_piece_is_out_before_the_next_is_asked_for(site):
    go_on = gevent.event.Event()

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"first"
        assert go_on.wait(PATIENCE)
        yield b"second"

    sock = site(application).connect()
    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    data = b""
    while not data.endswith(b"first"):
        data += read_exactly(sock, 1)
    go_on.set()
    assert read_all(sock) == b"second"


def test_a_subclass_may_be_the_application(site):
    class Own(WSGIServer):
        def application(self, environ, start_response):
            start_response("200 OK", TEXT)
            return [b"own"]

    assert site(None, Own).get().body == b"own"


def test_refused_methods_do_not_reach_it(site):
    assert site(answers([b"no"])).get(method="TRACE").status == 405


# -- files


@pytest.fixture
def sent_files(monkeypatch):
    """The calls of ``send_file``."""
    calls = []
    real = Connection.send_file

    def spy(self, *arguments, **options):
        calls.append(arguments[1:])
        return real(self, *arguments, **options)

    monkeypatch.setattr(Connection, "send_file", spy)
    return calls


DATA = bytes(range(256)) * 1000


@pytest.mark.parametrize("kind", ["plain", "unbuffered", "temporary", "memory", "declared", "moved"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_file_wrapper(site, tmp_path, sent_files, kind, method):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    files = []

    def application(environ, start_response):
        if kind == "memory":
            file = io.BytesIO(DATA)
        elif kind == "temporary":
            file = tempfile.TemporaryFile()  # noqa: SIM115  # the server closes it
            file.write(DATA)
            file.seek(0)
        else:
            file = open(path, "rb", buffering=0 if kind == "unbuffered" else -1)  # noqa: SIM115
        files.append(file)
        if kind == "moved":
            file.read(1000)
        start_response("200 OK", [("Content-Length", "5000")] if kind == "declared" else TEXT)
        return environ["wsgi.file_wrapper"](file, 4096)

    answer = site(application).get(method=method)
    expected = {"moved": DATA[1000:], "declared": DATA[:5000]}.get(kind, DATA)
    wait_until(lambda: files[0].closed)
    if method == "HEAD":
        assert answer.body == b""
    elif kind == "memory":
        assert answer.fields["Transfer-Encoding"] == "chunked"
        assert DATA[:4096] in answer.body
    else:
        assert answer.body == expected
    if kind != "memory":
        assert answer.fields["Content-Length"] == str(len(expected))
    start = 1000 if kind == "moved" else 0
    assert sent_files == ([] if kind == "memory" or method == "HEAD" else [(start, len(expected))])


def test_a_decompressing_file_is_read(site, tmp_path, sent_files):
    import gzip

    path = tmp_path / "file.gz"
    with gzip.open(path, "wb") as file:
        file.write(DATA)

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(DATA)))])
        return environ["wsgi.file_wrapper"](io.BufferedReader(gzip.open(path)))

    assert zlib.crc32(site(application).get().body) == zlib.crc32(DATA)
    assert not sent_files


@pytest.mark.parametrize("way", ["whole", "pieces", "chunks", "write", "file"])
def test_what_is_long_is_sent_in_slices(site, tmp_path, monkeypatch, way):
    """``send_timeout`` is for each, or a long download would have to be over within it."""
    long = DATA * 4
    (tmp_path / "file").write_bytes(long)
    sizes = []
    kind = WSGIServer.connection_class
    send, send_file = kind.send, kind.send_file

    def recording_send(self, data, *more):
        sizes.append(sum(map(len, data)) if isinstance(data, list) else len(data))
        return send(self, data, *more)

    def recording_send_file(self, file, offset, count):
        sizes.append(count)
        return send_file(self, file, offset, count)

    monkeypatch.setattr(kind, "send", recording_send)
    monkeypatch.setattr(kind, "send_file", recording_send_file)

    def application(environ, start_response):
        write = start_response("200 OK", TEXT if way == "chunks" else [("Content-Length", str(len(long)))])
        if way == "file":
            return environ["wsgi.file_wrapper"](open(tmp_path / "file", "rb"))
        if way == "write":
            write(long)
            return []
        return [long] if way == "whole" else iter([long])

    answer = site(application).get()
    assert zlib.crc32(answer.body.removeprefix(b"fa000\r\n").removesuffix(b"\r\n0\r\n\r\n")) == zlib.crc32(long)
    assert 4 <= len(sizes) <= 7
    assert max(sizes) <= response_writer.SLICE + 1000


@pytest.mark.parametrize("way", ["pieces", "write"])
def test_long_answers_leave_others_their_turn(serve, connect, way):
    """To a client that is never too slow, so that nothing of the answer waits by itself; for a second of our CPU."""
    others, turns = [], []

    class Endless(HTTPServer.connection_class):
        def send(self, data, close=False, timeout=None):
            if others or time.thread_time() > end:
                turns.append(len(others))
                raise ConnectionLost("that is enough")

    class Server(WSGIServer):
        connection_class = Endless

        def application(self, environ, start_response):
            write = start_response("200 OK", TEXT)
            while way == "write":
                write(b"x")
            return itertools.repeat(b"x")

    server = serve(Server, log=None, error_log=None)
    end = time.thread_time() + 1.0
    connect(server).sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: server.statistics().requests)
    others.append("had their turn")
    wait_until(lambda: turns)
    assert turns == [1]


@pytest.mark.parametrize("fields", [TEXT, [("Content-Length", "4")]])
def test_a_piece_is_as_long_as_it_has_bytes(site, fields):
    pieces = [memoryview(array.array("H", [0x6161])), bytearray(b"bb")]
    body = site(answers(lambda: iter(pieces), fields=fields)).get().body
    assert body == (b"aabb" if fields is not TEXT else b"2\r\naa\r\n2\r\nbb\r\n0\r\n\r\n")


def test_a_file_that_is_shorter_than_declared(site, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "200")])
        return environ["wsgi.file_wrapper"](open(path, "rb"))

    here = site(application)
    answer = here.get()
    assert (answer.fields["Content-Length"], answer.body) == ("200", b"x" * 100)
    wait_until(lambda: "ended after 100 bytes" in here.errors.getvalue())


# -- the end, whatever it is


def raising(*pieces):
    yield from pieces
    raise LookupError("on purpose")


@pytest.mark.parametrize(
    ("pieces", "fields", "method", "outcome"),
    [
        (lambda: [b"a", b"b"], TEXT, "GET", 200),
        (lambda: [b"a", b"b"], TEXT, "HEAD", 200),
        (lambda: [b"a", b"b"], [("Content-Length", "1")], "GET", 200),
        (lambda: [b"a", b"b"], [("Content-Length", "3")], "GET", None),
        (lambda: raising(), TEXT, "GET", 500),
        (lambda: raising(b""), TEXT, "GET", 500),
        (lambda: raising(b"a"), TEXT, "GET", None),
        (lambda: ["text"], TEXT, "GET", 500),
        (lambda: [b"a", "text"], TEXT, "GET", None),
        (lambda: raising(b"a"), TEXT, "HEAD", 200),
    ],
)
def test_the_iterable_is_closed(site, pieces, fields, method, outcome):
    results = []

    def application(environ, start_response):
        start_response("200 OK", fields)
        results.append(Closing(pieces()))
        return results[-1]

    here = site(application)
    if outcome is None:  # it shows that it was cut off
        body = here.get(method=method).body
        assert body in (b"ab", b"1\r\na\r\n")
    else:
        assert here.get(method=method).status == outcome
    wait_until(lambda: results[0].closed)
    gevent.sleep(0)
    assert results[0].closed == 1
    assert here.server.statistics().errors == (outcome != 200)


def test_a_client_that_leaves_closes_the_iterable(site):
    results = []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        results.append(Closing(itertools.repeat(b"x" * 10_000)))
        return results[-1]

    here = site(application)
    with here.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_exactly(sock, 100_000)
        assert not results[0].closed
    wait_until(lambda: results[0].closed)
    assert results[0].closed == 1
    assert here.errors.getvalue() == ""  # nobody's fault
    assert here.server.statistics().errors == 0


def test_a_client_that_does_not_read_closes_the_iterable(site):
    results = []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        results.append(Closing(itertools.repeat(b"x" * 100_000)))
        return results[-1]

    here = site(application, send_timeout=0.1)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: results and results[0].closed)
    with pytest.raises(ConnectionResetError):
        read_all(sock)


def test_an_error_in_close_does_not_spoil_the_answer(site):
    class Bad(Closing):
        def close(self):
            raise LookupError("in close")

    here = site(answers(lambda: Bad([b"x"])))
    assert here.ask("GET / HTTP/1.1\nHost: a\n\n").body == b"1\r\nx\r\n0\r\n\r\n"
    wait_until(lambda: "LookupError: in close" in here.errors.getvalue())


@pytest.mark.parametrize("error", [LookupError("here"), gevent.Timeout(5), None])
def test_an_application_that_fails(site, error):
    def application(environ, start_response):
        if error is not None:
            raise error
        return [b"start_response was not called"]

    here = site(application)
    answer = here.get()
    assert (answer.line, answer.fields["Connection"]) == ("HTTP/1.1 500 Internal Server Error", "close")
    assert here.errors.getvalue().count("Traceback") == 1
    assert "<Request GET b'/' from" in here.errors.getvalue()
    assert here.get().status == 500


def test_an_application_that_ends_its_greenlet_is_cut_short(site):
    def application(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"x" * 100
        raise gevent.GreenletExit

    with pytest.raises(ConnectionResetError):
        site(application).ask("GET / HTTP/1.0\n\n")


def test_stopping_ends_an_application_that_does_not(site):
    results = []

    def application(environ, start_response):
        start_response("200 OK", TEXT)
        results.append(Closing(iter(lambda: gevent.sleep(60), 0)))
        return results[-1]

    here = site(application, stop_timeout=0.01)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: results)
    here.server.stop()
    assert results[0].closed == 1
    with pytest.raises(ConnectionResetError):
        read_all(sock)


# -- logs


def test_the_access_log_is_pywsgis(site):
    log = io.StringIO()
    here = site(answers([b"hello"]), log=log)
    sock = here.connect()
    sock.sendall(b"GET /a?b HTTP/1.0\r\n\r\n")
    size = len(read_all(sock))
    wait_until(log.getvalue)
    pattern = r'127\.0\.0\.1 - - \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "GET /a\?b HTTP/1\.0" 200 (\d+) \d+\.\d{6}\n'
    assert re.fullmatch(pattern, log.getvalue()).group(1) == str(size)


def test_failures_are_in_the_access_log(site):
    log = io.StringIO()
    here = site(None, log=log)
    here.get()
    wait_until(log.getvalue)
    assert ' HTTP/1.1" 500 ' in log.getvalue()


def test_a_logger_may_be_the_log(site, caplog):
    caplog.set_level(logging.INFO)
    here = site(lambda environ, start_response: 1 / 0, log=logging.getLogger("w.a"), error_log=logging.getLogger("w.e"))
    here.get()
    wait_until(lambda: len(caplog.records) == 2)
    errors, access = caplog.records
    assert (errors.name, errors.levelname, access.name, access.levelname) == ("w.e", "ERROR", "w.a", "INFO")
    assert "ZeroDivisionError" in errors.message
    assert " 500 " in access.message
    assert not access.message.endswith("\n")


def test_default_and_no_log(capsys):
    quiet = WSGIServer(0, log=None, error_log=None)
    assert quiet.environ["wsgi.errors"] is quiet.error_log
    for stream in (quiet.log, quiet.error_log):
        stream.write("x")
        stream.writelines(["x"])
        stream.flush()
    loud = WSGIServer(0)
    assert loud.log is loud.error_log is sys.stderr
    assert capsys.readouterr() == ("", "")


def test_a_log_that_fails_does_not_fail_the_request(site, caplog):
    log = io.StringIO()
    log.close()
    assert site(answers([b"x"]), log=log).get().body == b"x"
    wait_until(lambda: "cannot write to" in caplog.text)


def test_refusals_are_not_in_the_error_log(site):
    here = site(answers([b"x"]))
    assert here.ask("GET / HTTP/1.1\n\n").status == 400
    assert here.server.refused == {"host-missing": 1}
    assert here.errors.getvalue() == ""


# -- arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"certfile": "x"}, "certfile: WSGIServer speaks no TLS yet"),
        ({"ssl_context": object()}, "ssl_context: WSGIServer speaks no TLS yet"),
        ({"handler_class": pywsgi.WSGIHandler}, "handler_class="),
        ({"spawn": print}, "spawn="),
        ({"spawn": True}, "spawn="),
        ({"spawn": 0}, "max_connections=0"),
        ({"log": "stderr"}, "log='stderr'"),
        ({"backlog": 0}, "backlog=0"),
    ],
)
def test_arguments_that_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        WSGIServer(("127.0.0.1", 0), **options)


def test_arguments_that_are_taken():
    with pytest.raises(TypeError, match="handle=print: there are no handlers"):
        WSGIServer(0, handle=print)
    application = answers([])
    server = WSGIServer(0, application, 7, Pool(5), None, None, None, {"A": "b"}, keyfile=None, head_timeout=3.0)
    assert isinstance(server, HTTPServer)
    assert server.application is application
    assert (server.backlog, server.max_connections, server.head_timeout, server.environ["A"]) == (7, 5, 3.0, "b")
    assert WSGIServer(0, spawn=3).max_connections == 3
    assert [WSGIServer(0, spawn=one).max_connections for one in (Pool(), "raw", gevent.spawn)] == [100_000] * 3
    assert WSGIServer(0, environ={"wsgi.multiprocess": True}).max_accept == 1


def test_a_listener_may_be_gevents_socket(site, connect):
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    server = WSGIServer(listener, answers([b"x"]), log=None, stop_timeout=0.2)
    with server:
        assert Site(server, connect, None).get().body == b"x"
        server.close()
        with pytest.raises(ConnectionRefusedError):
            connect(server)


def test_init_socket_listens_and_start_serves(connect):
    server = WSGIServer(("127.0.0.1", 0), answers([b"x"]), log=None, stop_timeout=0.2)
    assert server.socket is None
    server.init_socket()
    assert server.environ["SERVER_PORT"] == str(server.server_port) != "0"
    assert server.socket.getsockname() == server.address
    early = connect(server)
    assert not server.started
    with server:
        assert Site(server, connect, None).ask("GET / HTTP/1.0\n\n", sock=early).body == b"x"
    assert server.socket is None


def test_no_request_comes_before_the_name_is_known(site, monkeypatch):
    seen = []

    class Slow(WSGIServer):
        def update_environ(self):
            with socket.create_connection(self.address, PATIENCE) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                gevent.sleep(0.05)
                assert not seen
            super().update_environ()

    def application(environ, start_response):
        seen.append(environ["SERVER_NAME"])
        start_response("204 No Content", [])
        return []

    site(application, Slow)
    wait_until(lambda: seen)


def test_a_name_that_cannot_be_had(serve, monkeypatch):
    def fail(_):
        raise OSError("no such name")

    monkeypatch.setattr(gevent.socket, "getfqdn", fail)
    assert serve(WSGIServer).environ["SERVER_NAME"] == "127.0.0.1"

    class Failing(WSGIServer):
        def update_environ(self):
            raise LookupError

    failing = Failing(("127.0.0.1", 0))
    with pytest.raises(LookupError):
        failing.start()
    assert not failing.started


def test_serve_forever_and_stop():
    server = WSGIServer(("127.0.0.1", 0), answers([]), log=None)
    running = gevent.spawn(server.serve_forever, stop_timeout=0.1)
    wait_until(lambda: server.started)
    server.stop()
    running.get(timeout=PATIENCE)
    assert server.stop_timeout == 0.1


def test_an_answer_while_draining_says_that_it_is_the_last(site):
    called, go_on = gevent.event.Event(), gevent.event.Event()

    def application(environ, start_response):
        called.set()
        assert go_on.wait(PATIENCE)
        start_response("200 OK", TEXT)
        return [b"x"]

    here = site(application)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert called.wait(PATIENCE)
    draining = gevent.spawn(here.server.drain, PATIENCE)
    wait_until(lambda: here.server.draining)
    go_on.set()
    answer = Answer(read_all(sock))
    assert (answer.body, answer.fields["Connection"]) == (b"x", "close")
    sock.close()
    assert draining.get(timeout=PATIENCE)


def test_request_done(site):
    done = []

    class Counting(WSGIServer):
        def request_done(self, request, response, sent):
            done.append((request.method, response.status, response.headers.get("content-type"), sent))

    here = site(answers([b"x"]), Counting)
    here.get()
    here.server.application = None
    here.get()
    wait_until(lambda: len(done) == 2)
    assert [line[:3] for line in done] == [("GET", 200, "text/plain"), ("GET", 500, "text/plain; charset=utf-8")]
    assert all(line[3] > 100 for line in done)


def test_a_request_done_that_fails_changes_nothing(site, caplog):
    class Failing(WSGIServer):
        def request_done(self, request, response, sent):
            raise RuntimeError("as it was told to")

    here = site(answers([b"x"]), Failing)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert read_all(sock).count(b"HTTP/1.1 200 OK") == 2
    assert caplog.text.count("request_done failed") == 2


# -- the judge, and the frameworks


@pytest.mark.parametrize("way", ["list", "iterator", "write", "file"])
def test_the_validator_is_content(site, tmp_path, way):
    (tmp_path / "file").write_bytes(b"validated")

    def application(environ, start_response):
        stream = environ["wsgi.input"]
        read = stream.read(3) + stream.readline() + b"".join(stream.readlines()) + b"".join(stream)
        environ["wsgi.errors"].flush()
        write = start_response("200 OK", [*TEXT, ("X-Read", str(len(read)))])
        if way == "write":
            write(b"validated")
            return []
        if way == "file":
            return environ["wsgi.file_wrapper"](open(tmp_path / "file", "rb"))
        return [b"validated"] if way == "list" else iter([b"validated"])

    here = site(validator(application))
    for answer in (here.get(), here.get("/a%20b?c"), here.post(body=b"one\ntwo\nthree"), here.get(method="HEAD")):
        assert answer.status == 200, here.errors.getvalue()
        assert answer.body == b"" or b"validated" in answer.body
    assert here.errors.getvalue() == ""


def test_flask(site, tmp_path, sent_files):
    from flask import Flask, Response, redirect, request, send_file, session

    app = Flask(__name__)
    app.secret_key = "x"
    (tmp_path / "file.txt").write_bytes(DATA)

    @app.route("/form", methods=["POST"])
    def form():
        session["name"] = request.form["name"]
        return redirect("/name")

    @app.route("/name")
    def name():
        return {"name": session.get("name"), "path": request.path, "host": request.host, "args": request.args["q"]}

    @app.route("/upload", methods=["POST"])
    def upload():
        file = request.files["file"]
        return f"{file.filename} {len(file.read())}"

    @app.route("/stream")
    def stream():
        return Response((f"line {number}\n" for number in range(3)), mimetype="text/plain")

    @app.route("/file")
    def file():
        return send_file(tmp_path / "file.txt")

    @app.route("/json", methods=["POST"])
    def add():
        return {"sum": sum(request.get_json())}

    @app.route("/fail")
    def fail():
        raise LookupError("in the view")

    here = site(app)
    answer = here.post("/form", b"name=J%C3%BCrgen", "Content-Type: application/x-www-form-urlencoded\n")
    assert (answer.status, answer.fields["Location"]) == (302, "/name")
    cookie = answer.fields["Set-Cookie"].partition(";")[0]
    answer = here.get("/name?q=%C3%A9", f"Cookie: {cookie}\n")
    assert answer.body == b'{"args":"\\u00e9","host":"a","name":"J\\u00fcrgen","path":"/name"}\n'
    parts = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + DATA + b"\r\n--b--\r\n"
    assert here.post("/upload", parts, "Content-Type: multipart/form-data; boundary=b\n").body == b"f 256000"
    assert here.get("/stream").body == b"".join(b"7\r\nline %d\n\r\n" % number for number in range(3)) + b"0\r\n\r\n"
    assert here.get("/file").body == DATA
    assert sent_files == [(0, len(DATA))]
    assert here.get("/file", "Range: bytes=10-19\n").body == DATA[10:20]
    fields = "Host: a\nConnection: close\nContent-Type: application/json\nTransfer-Encoding: chunked\n"
    assert here.ask(f"POST /json HTTP/1.1\n{fields}\n", chunked(b"[1, 2, 3]", 4)).body == b'{"sum":6}\n'
    head = here.get("/name?q=1", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.fields["Content-Length"]) > 30
    assert here.get("/none").status == 404
    assert here.get("/fail").status == 500


def test_django(site, tmp_path, sent_files):
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    (tmp_path / "file.txt").write_bytes(DATA)

    def show(request, name):
        return JsonResponse({"name": name, "q": request.GET["q"], "host": request.get_host(), "path": request.path})

    def form(request):
        return HttpResponse(f"{request.POST['a']} {request.FILES['file'].size}")

    def stream(request):
        return StreamingHttpResponse(f"line {number}\n" for number in range(3))

    def file(request):
        return FileResponse(open(tmp_path / "file.txt", "rb"))

    def fail(request):
        raise LookupError("in the view")

    settings.configure(
        ALLOWED_HOSTS=["*"],
        DEBUG=False,
        LOGGING_CONFIG=None,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF=(
            path("show/<str:name>/", show),
            path("form", form),
            path("stream", stream),
            path("file", file),
            path("fail", fail),
        ),
        SECRET_KEY="x",
        USE_TZ=True,
    )
    application = get_wsgi_application()
    assert django.VERSION
    here = site(application)
    answer = here.get("/show/%C3%A9t%C3%A9/?q=%20x")
    assert json.loads(answer.body) == {"name": "été", "q": " x", "host": "a", "path": "/show/été/"}
    answer = here.get("/show/a?q=1")
    assert (answer.status, answer.fields["Location"]) == (301, "/show/a/?q=1")
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nvalue\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + DATA + b"\r\n--b--\r\n"
    )
    assert here.post("/form", parts, "Content-Type: multipart/form-data; boundary=b\n").body == b"value 256000"
    assert here.get("/stream").body == b"".join(b"7\r\nline %d\n\r\n" % number for number in range(3)) + b"0\r\n\r\n"
    assert here.get("/file").body == DATA
    assert sent_files == [(0, len(DATA))]
    head = here.get("/stream", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert here.get("/none").status == 404
    assert here.get("/fail").status == 500
