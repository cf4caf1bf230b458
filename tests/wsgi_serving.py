"""Applications and requests, for the tests of the WSGI server."""

from __future__ import annotations

import io
from wsgiref.validate import check_environ

import pytest
from conftest import read_all

from greensock import Connection
from greensock.http import WSGIServer
from greensock.http.server.http_server import HTTPConnection

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


def answers(body, status="200 OK", fields=TEXT):
    def application(environ, start_response):
        start_response(status, list(fields))
        return body() if callable(body) else body

    return application


def chunked(body, size):
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


DATA = bytes(range(256)) * 1000


@pytest.fixture
def site(serve, connect):
    """``site(application, **options)`` serves it; what it logs is in ``errors``.

    Each environ is looked at by wsgiref's judge, which does not stand in between as ``validator`` does: that hides what
    an application returns, and many are here to break the rules. ``test_the_validator_is_content`` has it whole.
    """
    broken = []

    def make(application=None, kind=WSGIServer, **options):
        errors = io.StringIO()
        options = {"log": None, "error_log": errors, **options}
        server = serve(kind, application=application, **options)
        served = server.application

        def judged(environ, start_response):
            if environ["REQUEST_METHOD"] != "OPTIONS" or environ["PATH_INFO"] != "*":  # of which PEP 3333 says nothing
                try:
                    check_environ(environ)
                except (AssertionError, Warning) as error:
                    broken.append(error)
            return served(environ, start_response)

        if served is not None:
            server.application = judged
        return Site(server, connect, errors)

    yield make
    assert not broken


@pytest.fixture
def sent_files(monkeypatch):
    """The calls of ``send_file``."""
    calls = []
    real = Connection.send_file

    def spy(self, *arguments, **options):
        calls.append(arguments[1:])
        return real(self, *arguments, **options)

    monkeypatch.setattr(HTTPConnection, "send_file", spy)
    return calls
