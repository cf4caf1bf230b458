"""Files and directories as answers: conditions, ranges, precompressed files, and no way out."""

from __future__ import annotations

import os
import re
import socket

import pytest
from conftest import read_all

from greensock.http import Headers, HTTPClient, HTTPServer, send_directory, send_file
from greensock.http.server.conditions import MAX_RANGES, Unsatisfiable, accepted_codings, failed_condition, ranges_of

ETAG, OTHER = '"abc-1"', '"x"'
THEN, BEFORE, LATER = (
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 08:49:36 GMT",
    "Sun, 06 Nov 1994 08:49:38 GMT",
)
SECONDS = 784111777


@pytest.mark.parametrize(
    ("fields", "method", "status"),
    [
        ({}, "GET", None),
        ({"If-None-Match": ETAG}, "GET", 304),
        ({"If-None-Match": ETAG}, "HEAD", 304),
        ({"If-None-Match": ETAG}, "PUT", 412),
        ({"If-None-Match": f"W/{ETAG}"}, "GET", 304),
        ({"If-None-Match": f"{OTHER}, {ETAG}"}, "GET", 304),
        ({"If-None-Match": OTHER}, "GET", None),
        ({"If-None-Match": "*"}, "GET", 304),
        ({"If-None-Match": OTHER, "If-Modified-Since": THEN}, "GET", None),  # the second is not looked at
        ({"If-None-Match": "nonsense"}, "GET", None),
        ({"If-Modified-Since": THEN}, "GET", 304),
        ({"If-Modified-Since": LATER}, "GET", 304),
        ({"If-Modified-Since": BEFORE}, "GET", None),
        ({"If-Modified-Since": THEN}, "PUT", None),
        ({"If-Modified-Since": "nonsense"}, "GET", None),
        ({"If-Match": ETAG}, "GET", None),
        ({"If-Match": "*"}, "GET", None),
        ({"If-Match": f"W/{ETAG}"}, "GET", 412),
        ({"If-Match": OTHER}, "GET", 412),
        ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, "GET", None),
        ({"If-Unmodified-Since": BEFORE}, "GET", 412),
        ({"If-Unmodified-Since": THEN}, "GET", None),
        ({"If-Match": ETAG, "If-None-Match": ETAG}, "GET", 304),
    ],
)
def test_conditions(fields, method, status):
    assert failed_condition(method, Headers(fields.items()), ETAG, SECONDS) == status


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=2-", [(2, 10)]),
        ("bytes=-3", [(7, 10)]),
        ("bytes=-30", [(0, 10)]),
        ("bytes=5-100", [(5, 10)]),
        ("BYTES=0-1, 4-5", [(0, 2), (4, 6)]),
        ("bytes=0-1,20-30", [(0, 2)]),
        ("bytes=10-", Unsatisfiable),
        ("bytes=-0", Unsatisfiable),
        ("bytes=3-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1;2-3", None),
        ("lines=0-1", None),
        ("bytes=0-9,0-9", None),  # more than there is
        ("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges(field, found):
    headers = Headers([("Range", field)])
    if found is Unsatisfiable:
        with pytest.raises(Unsatisfiable):
            ranges_of("GET", headers, 10, ETAG, SECONDS)
    else:
        assert ranges_of("GET", headers, 10, ETAG, SECONDS) == found
        assert ranges_of("HEAD", headers, 10, ETAG, SECONDS) is None


@pytest.mark.parametrize(
    ("condition", "holds"),
    [(ETAG, True), (OTHER, False), (f"W/{ETAG}", False), (THEN, True), (BEFORE, False), (LATER, False), ("x", False)],
)
def test_if_range(condition, holds):
    headers = Headers([("Range", "bytes=0-0"), ("If-Range", condition)])
    assert ranges_of("GET", headers, 10, ETAG, SECONDS) == ([(0, 1)] if holds else None)


def test_codings():
    assert accepted_codings("gzip, BR;q=0.5, zstd;q=0, x;q=0.000") == {"gzip", "br"}
    assert accepted_codings(None) == {""}


# -- on a server


@pytest.fixture
def root(tmp_path):
    """A directory with files, and something beside it that is nobody's business."""
    place = tmp_path / "site"
    (place / "sub").mkdir(parents=True)
    (place / "a.txt").write_bytes(b"0123456789")
    (place / "page.html").write_text("<p>")
    (place / "page.html.gz").write_bytes(b"gzipped")
    (place / "page.html.br").write_bytes(b"brotli")
    (place / "data.tar.gz").write_bytes(b"x")
    (place / "sub" / "index.html").write_text("index")
    (place / ".hidden").write_text("secret")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "site-too").mkdir()
    (tmp_path / "site-too" / "x").write_text("secret")
    (place / "out").symlink_to(tmp_path / "secret.txt")
    (place / "out-dir").symlink_to(tmp_path / "site-too")
    (place / "within").symlink_to(place / "a.txt")
    os.mkfifo(place / "pipe")
    return place


@pytest.fixture
def site(serve, root):
    def handle(request):
        if request.path.startswith("/static/"):
            return send_directory(request, root, "/static/", precompressed=True, headers={"Cache-Control": "max-age=9"})
        return send_file(request, root / "a.txt", content_type="text/x-own")

    return serve(HTTPServer, handle_request=handle)


def get(site, path, method="GET", **fields):
    with HTTPClient() as client:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        with client.request(method, f"http://127.0.0.1:{site.server_port}{path}", headers=headers) as answer:
            return answer.status, answer.read_all(), dict(answer.headers)


def test_a_file(site):
    status, body, fields = get(site, "/")
    assert (status, body, fields["Content-Type"], fields["Accept-Ranges"]) == (
        200,
        b"0123456789",
        "text/x-own",
        "bytes",
    )
    assert get(site, "/", "HEAD")[:2] == (200, b"")
    assert get(site, "/", "HEAD")[2]["Content-Length"] == "10"
    for condition in ({"If_None_Match": fields["ETag"]}, {"If_Modified_Since": fields["Last-Modified"]}):
        status, body, again = get(site, "/", **condition)
        assert (status, body, again["ETag"]) == (304, b"", fields["ETag"])
    assert get(site, "/", If_Match='"other"')[0] == 412
    status, _, refused = get(site, "/", "POST")
    assert (status, refused["Allow"]) == (405, "GET, HEAD")


def test_what_changes_has_another_etag(site, root):
    before = get(site, "/")[2]["ETag"]
    (root / "a.txt").write_bytes(b"9876543210")
    os.utime(root / "a.txt", ns=(1, 1))
    status, body, fields = get(site, "/", If_None_Match=before)
    assert (status, body) == (200, b"9876543210")
    assert fields["ETag"] != before


def test_parts_of_a_file(site):
    status, body, fields = get(site, "/", Range="bytes=2-4")
    assert (status, body, fields["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    status, body, fields = get(site, "/", Range="bytes=100-")
    assert (status, body, fields["Content-Range"]) == (416, b"", "bytes */10")
    status, body, fields = get(site, "/", Range="bytes=0-1,-2")
    boundary = re.fullmatch(r"multipart/byteranges; boundary=(\w+)", fields["Content-Type"])[1].encode()
    head = b"--%b\r\nContent-Type: text/x-own\r\nContent-Range: bytes %b/10\r\n\r\n%b\r\n"
    parts = head % (boundary, b"0-1", b"01") + head % (boundary, b"8-9", b"89")
    assert (status, body) == (206, parts + b"--%b--\r\n" % boundary)
    assert fields["Content-Length"] == str(len(body))


def test_what_is_precompressed(site):
    for accepted, body, coding in (
        ("gzip, br", b"brotli", "br"),
        ("gzip", b"gzipped", "gzip"),
        ("gzip;q=0", b"<p>", None),
        ("zstd", b"<p>", None),
    ):
        status, found, fields = get(site, "/static/page.html", Accept_Encoding=accepted)
        assert (status, found, fields.get("Content-Encoding")) == (200, body, coding)
        assert (fields["Content-Type"], fields["Vary"]) == ("text/html; charset=utf-8", "Accept-Encoding")
        assert fields["Cache-Control"] == "max-age=9"
    assert get(site, "/static/data.tar.gz")[2]["Content-Type"] == "application/octet-stream"


def test_directories(site):
    status, _, fields = get(site, "/static/sub?a=b")
    assert (status, fields["Location"]) == (301, "/static/sub/?a=b")
    assert get(site, "/static/sub/")[:2] == (200, b"index")
    assert get(site, "/static/within")[:2] == (200, b"0123456789")
    for path in ("/static/", "/static/none", "/static/a.txt/", "/static/sub/index.html/"):
        assert get(site, path)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/..%2fsecret.txt",
        "/static/..%5csecret.txt",
        "/static/sub/../../secret.txt",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/out",
        "/static/out-dir/x",
        "/static/.hidden",
        "/static/a.txt%00",
        "/static/pipe",
        "/static/" + "x" * 300,
    ],
)
def test_there_is_no_way_out(site, path):
    with socket.create_connection(("127.0.0.1", site.server_port)) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
        answer = read_all(sock)
    assert re.match(rb"HTTP/1\.1 40[04] ", answer), answer
    assert b"secret" not in answer
