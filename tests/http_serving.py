"""Sites and requests, for the tests of the HTTP server."""

from __future__ import annotations

import re

import pytest
from conftest import read_all

from greensock.http import HTTPError, HTTPServer, Response


class Site(HTTPServer):
    head_timeout = 5.0

    def handle_request(self, request):
        if request.path == "/echo":
            return Response(request.body.read_all(100_000))
        if request.path == "/unread":
            return Response("not read")
        if request.path == "/pieces":
            return Response(iter([b"one", b"", b"two"]))
        if request.path == "/sized":
            return Response(iter([b"one", b"two"]), headers={"Content-Length": request.query})
        if request.path == "/empty":
            return Response(status=204)
        if request.path == "/fails":
            raise RuntimeError("as it was told to")
        if request.path == "/hello":
            return Response(f"hello from {request.host}", headers={"X-Query": request.query})
        raise HTTPError(404)


def ask(sock, text, *, close=True):
    """Send a request and return everything that comes until the end, without its Date."""
    sock.sendall(text.replace("\n", "\r\n").encode() if isinstance(text, str) else text)
    answer = read_all(sock)
    assert re.search(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", answer)
    return re.sub(rb"Date: [^\r]*\r\n", b"", answer).decode("latin-1").replace("\r\n", "\n")


CLOSE = "Host: a\nConnection: close\n\n"


def record_sizes(monkeypatch, kind):
    """Return a list to which a class of connections will add how much each call sends."""
    sizes = []
    send, send_file = kind.send, kind.send_file

    def recording_send(self, data, *more):
        sizes.append(sum(map(len, data)) if isinstance(data, list) else len(data))
        return send(self, data, *more)

    def recording_send_file(self, file, offset, count):
        sizes.append(count)
        return send_file(self, file, offset, count)

    monkeypatch.setattr(kind, "send", recording_send)
    monkeypatch.setattr(kind, "send_file", recording_send_file)
    return sizes


def statuses(answer):
    return [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3})", answer)]


GET = "GET /hello HTTP/1.1\nHost: a\n\n"


LAST = f"GET /hello HTTP/1.1\n{CLOSE}"


class Any(HTTPServer):
    """Answers with what the test says: ``server.answer(request)``."""

    answer = staticmethod(lambda request: Response(b"x"))

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.done = []

    def handle_request(self, request):
        return self.answer(request)

    def request_done(self, request, response, sent):
        self.done.append((response.status, sent))


LARGE = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def site(serve, connect):
    server = serve(Site)
    return server, connect(server)


@pytest.fixture
def answering(serve, connect):
    """Serve what a function answers: ``answering(function, **options)`` gives the server and a client."""

    def start(answer, **options):
        server = serve(Any, **options)
        server.answer = answer
        return server, connect(server)

    return start
