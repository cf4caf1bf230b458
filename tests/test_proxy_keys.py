"""What requests are told apart by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.http import Headers
from greensock.proxy import key_of
from greensock.proxy.upstream.request_keys import cookies_named


@pytest.mark.parametrize(
    ("spec", "fields", "expected"),
    [
        ("client", [], b"10.0.0.1"),
        ("client", [("Cookie", "a=b")], b"10.0.0.1"),
        ("header:X-User", [], None),
        ("header:X-User", [("x-user", "")], None),
        ("header:X-User", [("x-uSER", "Ann")], b"Ann"),
        ("header:X-User", [("X-User", "a"), ("X-User", "b")], b"a, b"),
        ("header:X-User", [("X-User", b"\xff\xfe")], b"\xff\xfe"),
        ("cookie:id", [], None),
        ("cookie:id", [("Cookie", "id=")], None),
        ("cookie:id", [("Cookie", "id")], None),
        ("cookie:id", [("Cookie", "ID=7")], None),
        ("cookie:id", [("Cookie", "xid=7; idx=8")], None),
        ("cookie:id", [("Cookie", "a=id=7")], None),
        ("cookie:id", [("Cookie", "id=7")], b"7"),
        ("cookie:id", [("Cookie", 'a=1;id = "7=8" ;b')], b'"7=8"'),
        ("cookie:id", [("Cookie", "a=1"), ("Cookie", "id=7")], b"7"),
        ("cookie:id", [("Cookie", "id=7; id=8")], b"7"),
    ],
)
def test_the_key_of_a_request(spec, fields, expected):
    assert key_of(spec)("10.0.0.1", Headers(fields)) == expected


def test_a_client_at_a_unix_socket():
    assert key_of("client")("", Headers()) == b""


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "clients",
        "client:",
        "client:x",
        "header",
        "header:",
        "header:a b",
        "cookie:",
        "cookie:a=b",
        "Header:a",
        7,
        None,
    ],
)
def test_no_such_key(spec):
    with pytest.raises(ValueError) as caught:
        key_of(spec)
    assert str(caught.value) == f"hash_key={spec!r}: client, header:NAME or cookie:NAME expected"


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_whatever_comes_as_a_cookie(values):
    headers = Headers.of_raw([(b"Cookie", value) for value in values])
    found = cookies_named(headers, b"id")
    assert len(found) <= b"; ".join(values).count(b"id")
    assert all(b";" not in value for value in found)
    key_of("cookie:id")("", headers)
