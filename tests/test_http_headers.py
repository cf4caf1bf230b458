"""The fields of a message, and which of them a proxy passes on."""

from __future__ import annotations

import pytest

from greensock.http import Headers, end_to_end, end_to_end_trailers


def test_order_spelling_and_duplicates_are_kept():
    headers = Headers([("Host", "a"), ("X-B", "1"), ("x-b", "2"), (b"C", b"\xe9")])
    assert list(headers) == [("Host", "a"), ("X-B", "1"), ("x-b", "2"), ("C", "é")]
    assert headers.raw == [(b"Host", b"a"), (b"X-B", b"1"), (b"x-b", b"2"), (b"C", b"\xe9")]
    assert len(headers) == 4
    assert headers


def test_names_are_found_in_any_case():
    headers = Headers([("Content-Type", "text/plain")])
    assert headers.get("content-type") == headers["CONTENT-TYPE"] == "text/plain"
    assert "Content-type" in headers
    assert b"content-type" in headers
    assert "Content" not in headers
    assert 1 not in headers
    assert headers.get("X") is None
    assert headers.get("X", "y") == "y"
    assert headers.get("Zoë") is headers.get("名") is None
    with pytest.raises(KeyError, match="X"):
        headers["X"]


def test_repeated_fields_are_joined_and_told_apart():
    headers = Headers([("Accept", "a"), ("Cookie", "b=c"), ("accept", "d, e"), ("cookie", "f=g"), ("X", "y")])
    assert headers.get("Accept") == "a, d, e"
    assert headers.get("Cookie") == "b=c; f=g"
    assert headers.get("x") == "y"
    assert headers.get("z") is None
    assert headers.get_all("ACCEPT") == ["a", "d, e"]
    assert headers.get_all("z") == []


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ([], []),
        ([""], []),
        (["close"], [b"close"]),
        (["Keep-Alive, ,\tX ,"], [b"keep-alive", b"x"]),
        (["a", "B"], [b"a", b"b"]),
    ],
)
def test_tokens(values, tokens):
    assert Headers([("Connection", value) for value in values]).tokens(b"connection") == tokens


def test_changing():
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
    assert headers.get("a") == "1, 3"
    headers.add("C", "4")
    assert headers.get("c") == "4"
    headers.set("a", "5")
    assert list(headers) == [("a", "5"), ("B", "2"), ("C", "4")]
    assert headers.get("A") == "5"
    headers.set("D", "6")
    assert headers["d"] == "6"
    assert headers.remove("b") == 1
    assert headers.remove("b") == 0
    assert "B" not in headers
    other = headers.copy()
    other.add("E", "7")
    assert "E" not in headers
    assert other != headers
    assert Headers([("X", "y")]) == Headers([("x", "y")]) != Headers([("x", "Y")])
    assert headers != [("a", "5")]


def test_white_space_around_a_value_is_no_part_of_it():
    assert Headers([("A", " \tb c\t ")]).raw == [(b"A", b"b c")]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "a\x01b", "a\x7fb", b"a\r\n", "\r\n"])
def test_no_value_splits_the_message(value):
    for add in Headers().add, Headers().set, lambda *pair: Headers([pair]):
        with pytest.raises(ValueError, match=r"'X'.*control character"):
            add("X", value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", " a", "a\0", "é", "名", "(", b"a b", b"\xe9"])
def test_no_name_splits_the_message(name):
    for add in Headers().add, Headers().set, lambda *pair: Headers([pair]):
        with pytest.raises(ValueError, match="field name"):
            add(name, "x")


def test_a_value_outside_latin_1():
    with pytest.raises(ValueError, match="Latin-1"):
        Headers([("X", "名")])


def test_headers_can_be_no_key():
    with pytest.raises(TypeError):
        hash(Headers())


# -- hop by hop


def passed_on(pairs, *keep):
    return [name for name, _ in end_to_end(Headers(pairs), frozenset(keep))]


def test_what_belongs_to_one_hop_is_dropped():
    names = ["Connection", "Keep-Alive", "Proxy-Connection", "TE", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate"]
    names += ["Proxy-Authorization", "Trailer"]
    pairs = [("Host", "a"), *((name, "x") for name in names), ("Accept", "b"), ("accept", "c")]
    assert passed_on(pairs) == ["Host", "Accept", "accept"]


def test_what_connection_names_is_dropped():
    pairs = [("X-A", "1"), ("Connection", "close, x-a"), ("x-B", "2"), ("connection", "X-B ,"), ("X-C", "3")]
    assert passed_on(pairs) == ["X-C"]
    assert passed_on([("Connection", "close"), ("Close", "1")]) == ["Close"]


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "Content-Length", "Content-Type", "Cookie", "Set-Cookie", "Authorization", "Cache-Control"),
        *("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "Via", "Date"),
    ],
)
def test_what_belongs_to_the_message_can_not_be_listed_away(name):
    assert passed_on([(name, "x"), ("Connection", f"{name}, X"), ("X", "y")]) == [name]
    trailers, head = Headers([(name, "x"), ("X", "y")]), Headers([("Connection", f"{name}, X")])
    assert [name for name, _ in end_to_end_trailers(trailers, head)] == [name]


def test_what_is_kept_all_the_same():
    pairs = [("Connection", "upgrade"), ("Upgrade", "websocket"), ("Trailer", "X"), ("TE", "trailers")]
    assert passed_on(pairs) == []
    assert passed_on(pairs, b"upgrade") == ["Upgrade"]
    assert passed_on(pairs, b"upgrade", b"trailer", b"connection") == ["Upgrade", "Trailer"]


def test_trailers_are_cleaned_too():
    trailers = Headers([("Keep-Alive", "1"), ("X", "2"), ("Y", "3"), ("Digest", "4"), ("Transfer-Encoding", "5")])
    assert list(end_to_end_trailers(trailers, Headers([("Connection", "x")]))) == [("Y", "3"), ("Digest", "4")]


def test_the_original_is_left_alone():
    headers = Headers([("Connection", "x"), ("X", "y"), ("Z", "z")])
    end_to_end(headers).add("N", "new")
    assert len(headers) == 3
