"""Answers as the program gives them. No sockets."""

from __future__ import annotations

import json
import os

import pytest

from greensock.http import FileBody, Headers, HTTPError, Response


def fields(response):
    return dict(response.headers)


@pytest.mark.parametrize(
    ("body", "sent", "kind"),
    [
        (b"x", b"x", None),
        (b"", b"", None),
        ("é", "é".encode(), "text/plain; charset=utf-8"),
        (bytearray(b"x"), b"x", None),
        (memoryview(b"xyz")[1:], b"yz", None),
        (type("Bytes", (bytes,), {})(b"x"), b"x", None),
    ],
)
def test_bodies(body, sent, kind):
    response = Response(body)
    assert (response.status, response.body, response.headers.get("content-type")) == (200, sent, kind)
    assert type(response.body) is bytes


def test_an_iterable_is_kept_as_it_is():
    pieces = [b"a", b"b"]
    assert Response(pieces).body is pieces


@pytest.mark.parametrize("body", [None, 1, object()])
def test_other_bodies_are_refused(body):
    with pytest.raises(TypeError, match="bytes, str, a file or an iterable"):
        Response(body)


@pytest.mark.parametrize("status", [0, 100, 101, 103, 199, 1000])
def test_only_final_statuses(status):
    with pytest.raises(ValueError, match="200 to 999"):
        Response(b"", status)


@pytest.mark.parametrize("given", [{"X": "1"}, [("X", "1")], [(b"X", b"1")], Headers([("X", "1")])])
def test_fields_in_every_form(given):
    assert fields(Response(b"", headers=given)) == {"X": "1"}


def test_the_fields_of_the_program_stay_its_own():
    common = Headers([("X", "1")])
    response = Response("text", headers=common)
    response.headers.add("Y", "2")
    assert fields(response) == {"X": "1", "Content-Type": "text/plain; charset=utf-8", "Y": "2"}
    assert len(common) == 1


def test_the_type_is_the_programs_if_it_gives_one():
    assert fields(Response("<p>", headers={"content-type": "text/html"})) == {"content-type": "text/html"}
    assert fields(Response("<p>", content_type="text/html")) == {"Content-Type": "text/html"}


def test_no_field_splits_the_answer():
    with pytest.raises(ValueError, match="control character"):
        Response(b"", headers={"X": "a\r\nSet-Cookie: b"})


def test_json():
    response = Response.json({"é": [1, None]}, 201, {"X": "1"})
    assert json.loads(response.body) == {"é": [1, None]}
    assert (response.status, fields(response)) == (201, {"X": "1", "Content-Type": "application/json"})


# -- files


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "a.txt"
    found.write_bytes(b"0123456789")
    return found


@pytest.mark.parametrize(
    ("offset", "count", "sent"),
    [(0, None, b"0123456789"), (0, 0, b""), (3, 4, b"3456"), (8, 4, b"89"), (10, None, b""), (11, 1, b"")],
)
def test_a_file_or_a_part_of_it(path, offset, count, sent):
    response = Response.file(path, offset, count)
    assert response.headers["content-type"] == "text/plain"
    assert response.body.count == len(sent)
    assert response.body.read_all() == sent
    response.body.close()
    assert response.body.file.closed


def test_an_open_file_is_taken_over(path):
    with open(path, "rb") as file:
        response = Response.file(file)
        assert response.body.file is file


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.html", "text/html"), ("a.gz", "application/octet-stream"), ("a.tar.gz", "application/octet-stream")],
)
def test_the_type_is_told_from_the_name(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"x")
    response = Response.file(tmp_path / name)
    assert response.headers["content-type"] == kind
    response.body.close()


@pytest.mark.parametrize(("offset", "count", "status"), [(-1, None, 200), (0, -1, 200), (0, None, 100)])
def test_a_file_that_is_not_sent_is_closed(path, offset, count, status):
    with pytest.raises(ValueError, match=r"expected|allowed"):
        Response.file(path, offset, count, status)


def test_a_pipe_is_no_file():
    read, write = os.pipe()
    with open(read, "rb") as file, open(write, "wb"), pytest.raises(ValueError, match="a regular file"):
        FileBody(file)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Response.file(tmp_path / "none")


# -- errors


def test_an_error_has_an_answer():
    error = HTTPError(404)
    assert (str(error), error.response.status, error.response.body) == ("404 Not Found", 404, b"Not Found\n")
    error = HTTPError(429, "slowly", {"Retry-After": "1"})
    assert (error.response.body, error.response.headers["retry-after"]) == (b"slowly\n", "1")
    assert HTTPError(599).response.body == b"599\n"
    assert "404" in repr(HTTPError(404).response)


# -- redirects and cookies


@pytest.mark.parametrize(
    ("location", "written"),
    [
        ("/a?b=c#d", "/a?b=c#d"),
        ("https://h.example/%C3%BC", "https://h.example/%C3%BC"),
        ("/größe", "/gr%C3%B6%C3%9Fe"),
        ('/"<>', "/%22%3C%3E"),
    ],
)
def test_a_redirect(location, written):
    response = Response.redirect(location)
    assert (response.status, response.body, fields(response)) == (302, b"", {"Location": written})


@pytest.mark.parametrize(
    ("location", "status"),
    [("", 302), ("/a b", 302), ("/a\r\nX: y", 302), ("/\\evil.example", 302), ("/", 200), ("/", 304)],
)
def test_redirects_that_cannot_be(location, status):
    with pytest.raises(ValueError, match="expected"):
        Response.redirect(location, status)


def test_a_cookie():
    response = Response()
    response.set_cookie("a", "1")
    response.set_cookie(
        "__Host-b", "x", max_age=60, expires=0, secure=True, http_only=False, same_site="None", path="/", domain=None
    )
    response.set_cookie("c", "", path=None, domain="h.example", same_site=None)
    response.delete_cookie("d")
    assert response.headers.get_all("set-cookie") == [
        "a=1; Path=/; HttpOnly; SameSite=Lax",
        "__Host-b=x; Path=/; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Secure; SameSite=None",
        "c=; Domain=h.example; HttpOnly",
        "d=; Path=/; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly; SameSite=Lax",
    ]


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("a b", "x", {}),
        ("", "x", {}),
        ("a", "x; y", {}),
        ("a", 'x"', {}),
        ("a", "ü", {}),
        ("a", "x\n", {}),
        ("a", "x", {"path": "/;x"}),
        ("a", "x", {"domain": "h\nx"}),
        ("a", "x", {"same_site": "Strictly"}),
        ("a", "x", {"same_site": "None"}),
        ("__Secure-a", "x", {}),
        ("__Host-a", "x", {"secure": True, "path": "/x"}),
        ("__host-a", "x", {"secure": True, "domain": "h.example"}),
    ],
)
def test_cookies_that_cannot_be(name, value, options):
    response = Response()
    with pytest.raises(ValueError, match=r"expected|refuse"):
        response.set_cookie(name, value, **options)
    assert len(response.headers) == 0
