"""Compression of answers: what is compressed, what is not, and what the fields say of it."""

from __future__ import annotations

import gzip
import importlib
import os
import sys
import zlib

import brotli
import gevent
import pytest
from conftest import read_all, read_exactly
from http_serving import answering  # noqa: F401  # fixture
from wsgi_serving import TEXT, answers, site  # noqa: F401  # fixture

from greensock.http import Compression, HTTPError, Response, send_file
from greensock.http.server.conditions import best_coding

zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

UNDONE = {"gzip": gzip.decompress, "br": brotli.decompress, "zstd": zstd.decompress, None: bytes}
LONG = b"a line like any other\n" * 200
HUGE = os.urandom(300_000).hex().encode()


@pytest.mark.parametrize(
    ("field", "best"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("GZIP;q=0.5, br ; q=0.4", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, br;q=0.9", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.1", "br"),
        ("gzip;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=2, br;q=x", None),
        ("compress, deflate", None),
    ],
)
def test_which_coding_is_best(field, best):
    assert best_coding(field, ["zstd", "br", "gzip"]) == best


def undone(head, body):
    """Return a body without its chunks and its coding."""
    if "transfer-encoding" in head:
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
        body = whole
    return UNDONE[head.get("content-encoding")](body)


@pytest.fixture
def ask(answering, connect, tmp_path):
    """Ask a server that answers with what the test said."""
    (tmp_path / "file.txt").write_bytes(LONG)

    def answer(request):
        made = request.connection.server.made
        return made(request) if callable(made) else made

    server, _ = answering(answer, compression=Compression())

    def ask(made, fields="Accept-Encoding: gzip\r\n", method="GET"):
        server.made = made
        sock = connect(server)
        sock.sendall(f"{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n".encode())
        data, _, body = read_all(sock).partition(b"\r\n\r\n")
        line, *lines = data.decode().split("\r\n")
        head = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if "content-length" in head and method != "HEAD" and "304" not in line:
            assert int(head["content-length"]) == len(body)
        return int(line.split()[1]), head, body

    ask.file = tmp_path / "file.txt"
    return ask


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_every_kind_of_body(ask, coding):
    fields = f"Accept-Encoding: {coding}\r\n"
    for made, whole in (
        (Response(LONG.decode()), LONG),
        (Response(HUGE, content_type="text/plain"), HUGE),
        (Response(iter([LONG, LONG]), content_type="application/problem+json"), LONG * 2),
        (Response(iter([LONG]), 404, {"Content-Length": str(len(LONG))}, content_type="text/html"), LONG),
        (lambda request: send_file(request, ask.file), LONG),
    ):
        status, head, body = ask(made, fields)
        assert (head["content-encoding"], head["vary"], status) == (coding, "Accept-Encoding", status)
        assert undone(head, body) == whole
        assert len(body) < len(whole)
        assert "accept-ranges" not in head
        assert head.get("etag", "W/").startswith("W/")


SECRET = "Accept-Encoding: gzip\r\nCookie: a=b\r\n"


def test_what_goes_out_as_it_is(ask):
    """Small, compressed already, a part, or perhaps secret. Only what could be compressed says Vary."""

    def made(body=LONG, status=200, kind="text/plain", **fields):
        fields = {name.replace("_", "-"): value for name, value in fields.items()}
        return lambda request: Response(body, status, fields, content_type=kind)

    def file(request):
        return send_file(request, ask.file)

    takes = "Accept-Encoding: gzip\r\n"
    for answer, fields, coded, varies in (
        (made(), takes, True, True),
        (made(), "", False, True),
        (made(), "Accept-Encoding: identity\r\n", False, True),
        (made(), "Accept-Encoding: gzip;q=0\r\n", False, True),
        (made(LONG[:999]), takes, False, False),
        (made(LONG[:1000]), takes, True, True),
        (made(b""), takes, False, False),
        (made(iter([LONG[:999]]), Content_Length="999"), takes, False, False),
        (made(kind="image/png"), takes, False, False),
        (made(kind=None), takes, False, False),
        (made(Content_Encoding="br"), takes, False, False),
        (made(Cache_Control="private, no-transform"), takes, False, False),
        (file, takes + "Range: bytes=0-1999\r\n", False, False),
        (made(), SECRET, False, False),
        (made(), takes + "Authorization: Basic YTpi\r\n", False, False),
        (made(Set_Cookie="a=b"), takes, False, False),
        (made(Set_Cookie="a=b", Cache_Control="public"), SECRET, False, False),
        (made(Cache_Control="public, max-age=5"), SECRET, True, True),
        (file, SECRET, True, True),
        (made(Vary="Accept-Encoding, X"), takes, True, False),
        (made(Vary="X"), takes, True, True),
    ):
        status, head, body = ask(answer, fields)
        said = head.get("vary", "")
        about = (answer, fields, status, head)
        assert ("content-encoding" in head and head["content-encoding"] != "br") == coded, about
        assert said.endswith("Accept-Encoding") == varies, about
        assert not coded or undone(head, body) in (LONG, LONG[:1000]), about


def test_head_conditions_and_errors(ask):
    def tagged(request):
        return Response(LONG, headers={"ETag": '"x"'}, content_type="text/plain")

    _, got, body = ask(tagged)
    _, head, nothing = ask(tagged, method="HEAD")
    assert (got.pop("date"), head.pop("date"), nothing)[2] == b""
    assert got == head
    assert int(head["content-length"]) == len(body)
    _, head, _ = ask(
        lambda request: Response(headers={"Content-Length": "5000"}, content_type="text/html"), method="HEAD"
    )
    assert (head["content-encoding"], "content-length" in head) == ("gzip", False)
    etag = ask(lambda request: send_file(request, ask.file))[1]["etag"]
    status, head, _ = ask(
        lambda request: send_file(request, ask.file), f"Accept-Encoding: gzip\r\nIf-None-Match: {etag}\r\n"
    )
    assert (status, head["etag"], head["vary"]) == (304, etag, "Accept-Encoding")
    # A range of what was compressed cannot be had: the whole comes.
    fields = f"Accept-Encoding: gzip\r\nRange: bytes=0-9\r\nIf-Range: {etag}\r\n"
    assert ask(lambda request: send_file(request, ask.file), fields)[0] == 200

    def fails(request):
        raise HTTPError(404, LONG.decode())

    status, head, body = ask(fails)
    assert (status, head["content-encoding"], undone(head, body)) == (404, "gzip", LONG + b"\n")


def test_an_answer_that_is_given_more_than_once(ask):
    made = Response(LONG, headers={"ETag": '"x"'}, content_type="text/plain")
    for fields, coding in (("Accept-Encoding: gzip\r\n", "gzip"), ("", None), ("Accept-Encoding: br\r\n", "br")):
        _, head, body = ask(made, fields)
        assert (head.get("content-encoding"), undone(head, body)) == (coding, LONG)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_pieces_of_a_stream_arrive_at_once(answering, coding):
    """Each is there before the next one is made."""
    go_on = []

    def pieces():
        yield b"one"
        while not go_on:
            gevent.sleep(0)
        yield b"two"

    _, sock = answering(
        lambda request: Response(pieces(), content_type="text/event-stream"), compression=Compression(codings=[coding])
    )
    sock.sendall(f"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept-Encoding: {coding}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    coder = {
        "gzip": lambda: zlib.decompressobj(31).decompress,
        "br": lambda: brotli.Decompressor().process,
        "zstd": lambda: zstd.ZstdDecompressor().decompress,
    }[coding]()
    found = b""

    def next_chunk():
        size = b""
        while not size.endswith(b"\r\n"):
            size += read_exactly(sock, 1)
        return read_exactly(sock, int(size, 16) + 2)[:-2]

    while found != b"one":
        found += coder(next_chunk())
    go_on.append(True)
    while found != b"onetwo":
        found += coder(next_chunk())


def test_a_wsgi_application(site):
    here = site(answers([LONG], fields=[*TEXT, ("ETag", '"x"')]), compression=Compression())
    answer = here.get(fields="Accept-Encoding: br\n")
    assert (answer.fields["Content-Encoding"], answer.fields["ETag"]) == ("br", 'W/"x"')
    assert brotli.decompress(answer.body) == LONG
    assert here.get(fields="Accept-Encoding: br\nCookie: a=b\n").body == LONG
    assert here.get().fields["Vary"] == "Accept-Encoding"


def test_what_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "brotli", None)
    assert list(Compression().coders) == ["zstd", "gzip"]
    with pytest.raises(ValueError, match=r"codings: 'br'.*pip install greensock\[compress\]"):
        Compression(codings=["br"])
    with pytest.raises(ValueError, match="codings: 'deflate': zstd, br, gzip expected"):
        Compression(codings=["deflate"])
    with pytest.raises(ValueError, match="min_size=-1"):
        Compression(min_size=-1)
    assert list(Compression(codings=["gzip", "zstd"]).coders) == ["gzip", "zstd"]
