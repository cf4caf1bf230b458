"""Forms: what is read of them, what is refused, and what becomes of their files."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

import pytest
import requests
from conftest import PATIENCE, read_all, wait_until
from http_serving import Any, answering, statuses  # noqa: F401  # fixtures

from greensock.http import FormLimits, Response
from greensock.http.server import forms
from greensock.http.server.spool import IN_MEMORY, Spool

KIND = "multipart/form-data; boundary=b"
URLENCODED = "application/x-www-form-urlencoded"
DATA = bytes(range(256)) * 2000


def part(head, value=b"x"):
    return b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"


END = b"--b--\r\n"
FORM = (
    part('name="a"', "é 1".encode())
    + part('name="f"; filename="../one"\r\nContent-Type: text/x', DATA)
    + part('name="a"', b"\xff")
    + part('name="f"; filename="two"', b"\r\n--a")
    + part('name="empty"; filename=""', b"")
    + END
)

LIMITS = FormLimits(max_fields=3, max_files=2, max_memory=1000, max_size=4000, max_file=500, in_memory=100)


def told(form):
    files = [(name, file.filename, file.content_type, file.size) for name, file in form.file_pairs]
    return repr((form.pairs, files))


def answer(request):
    if request.path == "/limits":
        return Response(told(request.form(LIMITS)))
    form = request.form()
    assert request.form() is form
    if request.path == "/file":
        return Response(form.files["f"].read())
    return Response(told(form))


def post(body, kind=KIND, path="/", cut=0):
    """Return a request; cut into chunks of so many bytes, or with a length."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    if not cut:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


@pytest.fixture
def ask(answering, connect):
    server, _ = answering(answer)

    def ask(data):
        sock = connect(server)
        sock.sendall(data)
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    ask.server = server
    return ask


def test_a_form_however_it_is_cut(ask):
    small = FORM.replace(DATA, b"short")
    expected = repr(
        (
            [("a", "é 1"), ("a", "\ufffd")],
            [("f", "../one", "text/x", 5), ("f", "two", "application/octet-stream", 5)],
        )
    ).encode()
    for cut in (0, 1, 2, 3, 7, len(small) - 2):  # the last one has what ends the last line in a piece of its own
        assert ask(post(small, cut=cut)) == (200, expected)
    assert ask(post(small.replace(b"--b", b"\r\n--b", 1))) == (200, expected)
    assert ask(post(FORM, path="/file")) == (200, DATA)  # on disk
    assert ask(post(END)) == (200, b"([], [])")
    assert ask(post(b"a=1&b=%C3%A9+x&a=&=", URLENCODED)) == (
        200,
        repr(([("a", "1"), ("b", "é x"), ("a", ""), ("", "")], [])).encode(),
    )
    assert ask(post(b"", URLENCODED)) == (200, b"([], [])")


FIELD, FILE = part('name="n"', b"x" * 10), part('name="f"; filename="g"', b"x" * 10)


@pytest.mark.parametrize("cut", [0, 50])
def test_what_crosses_a_limit_or_is_malformed(ask, cut):
    long = f'name="n"\r\nX-Y: {"x" * 4093}'
    for status, body, kind in (
        (200, FIELD * 3 + FILE * 2 + END, KIND),
        (413, FIELD * 4 + END, KIND),
        (413, FILE * 3 + END, KIND),
        (200, part('name="n"', b"x" * 935) + END, KIND),
        (413, part('name="n"', b"x" * 936) + END, KIND),
        (200, part('name="f"; filename="g"', b"x" * 500) + END, KIND),
        (413, part('name="f"; filename="g"', b"x" * 501) + END, KIND),
        (413, END + b"x" * 4000, KIND),
        (413, part(long) + END, KIND),
        (413, part('name="n"' + "\r\nA: b" * 8) + END, KIND),
        (400, FIELD, KIND),  # no end
        (400, FIELD + b"--b", KIND),
        (400, b"nothing of a form", KIND),
        (400, part("filename=x") + END, KIND),
        (400, b"--b\r\nA: b\r\n\r\nx\r\n" + END, KIND),
        (400, FIELD.replace(b"\r\n", b"\n") + END, KIND),
        (400, FIELD + END, "multipart/form-data"),
        (400, FIELD + END, f"multipart/form-data; boundary={'b' * 71}"),
        (415, b"{}", "application/json"),
        (415, FIELD + END, "multipart/mixed; boundary=b"),
        (200, b"a=1&b=2&c=3", URLENCODED),
        (413, b"a=1&b=2&c=3&d", URLENCODED),
        (413, b"a=" + b"x" * 999, URLENCODED),
    ):
        assert (ask(post(body, kind, "/limits", cut))[0], body[:99], kind) == (status, body[:99], kind)


def test_what_a_full_disk_did_not_take_is_let_go():
    with open("/dev/full", "w+b") as full:
        spool = Spool()
        spool.file = full
        spool.write(b"x")
        spool.close()
        assert full.closed


def nameless_files():
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(tempfile.gettempdir()) and path.endswith("(deleted)")]


def test_what_clients_send(answering, tmp_path):
    """And what becomes of the files: one descriptor for all, which is gone with the request."""
    seen = []
    before = len(nameless_files())  # those of whoever runs the tests

    def answer(request):
        form = request.form()
        one, two = form.get_files("f")
        assert len(nameless_files()) == before + 1
        with two.open() as file:
            assert file.seek(-3, os.SEEK_END) == two.size - 3
            assert file.read() == two.read()[-3:]
            assert file.seek(1) == 1
            assert file.read(2) == two.read()[1:3]
        one.save(tmp_path / request.query)
        with pytest.raises(FileExistsError):
            one.save(tmp_path / request.query)
        seen.append((dict(form), one.filename, one.size, two.read()))
        assert "x" not in form
        assert len(nameless_files()) == before + 1
        form.close() if request.query == "closed" else None
        return Response("taken")

    server, _ = answering(answer)
    url = f"http://127.0.0.1:{server.server_port}/"
    large = DATA[: IN_MEMORY + 1]
    for way in ("closed", "forgotten"):
        sent = requests.post(
            f"{url}?{way}",
            data={"a": "é", "b": ""},
            files=[("f", ('o n"e', large)), ("f", ("two", b"short"))],
            timeout=PATIENCE,
        )
        assert sent.text == "taken"
        assert (tmp_path / way).read_bytes() == large
    assert seen == [({"a": "é", "b": ""}, 'o n"e', len(large), b"short")] * 2
    wait_until(lambda: len(nameless_files()) == before)


def test_without_the_package(ask, monkeypatch, caplog):
    for instead in (None, forms):  # not there; another that has its name
        monkeypatch.setitem(sys.modules, "multipart", instead)
        assert ask(post(FIELD + END))[0] == 500
        assert "pip install greensock[forms]" in caplog.text
        caplog.clear()
    assert ask(post(b"a=1", URLENCODED))[0] == 200


@pytest.mark.parametrize("value", [-1, 1.5, True, None])
def test_limits_are_checked(value):
    with pytest.raises(ValueError, match=f"max_files={value!r}: a whole number"):
        FormLimits(max_files=value)
