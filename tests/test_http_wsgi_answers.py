"""Answers of WSGI applications: framing, files, and how they end."""

from __future__ import annotations

import array
import io
import itertools
import re
import tempfile
import time
import zlib

import gevent
import gevent.event
import pytest
from conftest import PATIENCE, read_all, read_exactly, wait_until
from http_serving import record_sizes
from wsgi_serving import DATA, TEXT, Answer, Site, answers, sent_files, site  # noqa: F401  # fixtures

from greensock import ConnectionLost
from greensock.http import HTTPServer, WSGIServer
from greensock.http.server import response_writer


def head_of(sock):
    """Read a head and nothing behind it."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += read_exactly(sock, 1)
    return Answer(data)


class Closing:
    """An iterable that counts how often it was closed."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = 0

    def __iter__(self):
        return iter(self.pieces)

    def close(self):
        self.closed += 1


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
    monkeypatch.setattr(response_writer, "SLICE", 262_144)
    sizes = record_sizes(monkeypatch, WSGIServer.connection_class)

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
        results.append(Closing(iter(lambda: gevent.event.Event().wait(), True)))
        return results[-1]

    here = site(application, stop_timeout=0.01)
    sock = here.connect()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: results)
    here.server.stop()
    assert results[0].closed == 1
    with pytest.raises(ConnectionResetError):
        read_all(sock)
