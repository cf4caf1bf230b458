"""Edits of fields, static answers, redirects, error pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.http import Headers
from greensock.http.wire.syntax import is_value
from greensock.proxy import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer
from greensock.proxy.rules import NO_EDITS, TLS_VARIABLES, VARIABLES, Template, tls_variables, variables_of

VALUES = variables_of("GET", b"example.org:8080", b"/a/b?c=d", scheme="https", client="192.0.2.1", request_id="f00")


def test_every_variable_has_a_value():
    assert [*VALUES, *tls_variables(None)] == list(VARIABLES)
    assert set(tls_variables(None)) == TLS_VARIABLES
    assert VALUES == {
        "authority": "example.org:8080",
        "client": "192.0.2.1",
        "host": "example.org",
        "method": "GET",
        "path": "/a/b",
        "query": "c=d",
        "request_id": "f00",
        "scheme": "https",
        "target": "/a/b?c=d",
    }


@pytest.mark.parametrize(
    ("authority", "target", "host", "path", "query"),
    [
        (b"[::1]:80", b"/", "[::1]", "/", ""),
        (b"[::1]", b"/?", "[::1]", "/", ""),
        (b"", b"*", "", "/", ""),
        (b"a:", b"http://a/x?y", "a", "/x", "y"),
        (b"a", b"http://a", "a", "/", ""),
        (b"a", b"http://a?x", "a", "/", "x"),
        (b"a", b"/x?http://b/", "a", "/x", "http://b/"),
    ],
)
def test_variables_of_odd_requests(authority, target, host, path, query):
    found = variables_of("GET", authority, target, scheme="http", client="")
    assert (found["host"], found["path"], found["query"]) == (host, path, query)


@pytest.mark.parametrize(
    ("text", "filled", "names"),
    [
        ("", "", set()),
        ("plain", "plain", set()),
        ("{client}", "192.0.2.1", {"client"}),
        ("{scheme}://{host}{path}", "https://example.org/a/b", {"scheme", "host", "path"}),
        ("{{client}}", "{client}", set()),
        ('{{"a": "{client}"}}', '{"a": "192.0.2.1"}', {"client"}),
    ],
)
def test_a_template(text, filled, names):
    template = Template(text)
    assert template.fill(VALUES) == filled
    assert template.variables == names
    assert template.text == text


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{0}", "{nobody}", "{client!r}", "{client:5}", "{client.x}", "{a{b}}"]
)
def test_no_template(text):
    with pytest.raises(ValueError, match="brace"):
        Template(text)


def test_edits_are_done_in_order():
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3"), ("C", "4")])
    edits = FieldEdits(add={"A": "5", "D": "{client}"}, set=[("B", "{method} {{}}"), ("E", "é")], remove=["a", "X"])
    assert edits.variables == {"client", "method"}
    edits.apply(headers, VALUES)
    assert list(headers) == [("B", "GET {}"), ("C", "4"), ("E", "é"), ("A", "5"), ("D", "192.0.2.1")]
    assert edits
    assert FieldEdits(remove=("a",))
    assert not NO_EDITS
    assert FieldEdits() == NO_EDITS
    assert FieldEdits(set={"a": "b"}) == FieldEdits(set=(("a", "b"),)) != NO_EDITS
    assert hash(FieldEdits(set={"a": "b"})) == hash(FieldEdits(set=(("a", "b"),)))


@given(st.text(), st.text())
def test_no_value_of_a_variable_splits_a_message(client, target):
    headers = Headers()
    FieldEdits(set={"A": "x{client}y"}, add={"B": "{target}"}).apply(headers, {"client": client, "target": target})
    assert len(headers.raw) == 2
    assert all(is_value(value) for _, value in headers.raw)


@pytest.mark.parametrize(
    "name", ["Connection", "content-length", "Host", "TE", "Transfer-Encoding", "Upgrade", "Expect"]
)
def test_edits_leave_the_framing_alone(name):
    for edits in ({"add": {name: "x"}}, {"set": {name: "x"}}, {"remove": [name]}):
        with pytest.raises(ValueError, match=f"{next(iter(edits))}: field '{name}'.* expected$"):
            FieldEdits(**edits)


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({"set": {"a b": "c"}}, "^set: field 'a b': a token"),
        ({"set": {"a": "b\r\nc"}}, "^set: a: field 'a'.*control"),
        ({"add": {"a": "{x}"}}, "^add: a: '{x}'"),
        ({"add": {"a": "名"}}, "Latin-1"),
        ({"add": {"a": 1}}, "^add=.*text expected"),
        ({"add": "abc"}, "^add='abc'"),
        ({"add": 1}, "^add=1"),
        ({"set": [("a",)]}, "^set="),
        ({"remove": "a"}, "^remove='a'"),
        ({"remove": [1]}, "^remove="),
        ({"remove": [""]}, "^remove: field '': a token"),
    ],
)
def test_edits_check_themselves(edits, text):
    with pytest.raises(ValueError, match=text):
        FieldEdits(**edits)


# -- answers


def test_a_static_answer():
    answer = StaticAnswer(503, "später", {"Retry-After": "5"})
    assert answer.content == "später".encode()
    assert list(answer.fields()) == [("Retry-After", "5"), ("Content-Type", "text/plain; charset=utf-8")]
    assert answer.fields() is not answer.fields()
    assert list(StaticAnswer(body=b"{}", headers={"content-type": "a/b"}).fields()) == [("content-type", "a/b")]
    assert list(StaticAnswer(204).fields()) == []
    assert list(StaticAnswer(body="x", content_type="a/b").fields()) == [("Content-Type", "a/b")]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"status": 199}, "status=199: 200 to 599 expected"),
        ({"status": 600}, "status=600"),
        ({"status": "200"}, "status='200'"),
        ({"status": True}, "status=True"),
        ({"body": 1}, "body=1: text expected"),
        ({"status": 204, "body": "x"}, "none expected"),
        ({"headers": {"Content-Length": "5"}}, "headers: field 'Content-Length'"),
        ({"headers": {"A": "\n"}}, "control"),
        ({"content_type": ""}, "content_type=''"),
        ({"body": "x", "content_type": "a\r\nb"}, "control"),
    ],
)
def test_a_static_answer_checks_itself(given, text):
    with pytest.raises(ValueError, match=text):
        StaticAnswer(**given)


@pytest.mark.parametrize(
    ("location", "target", "sent"),
    [
        ("https://{host}{target}", b"/a?b", b"https://example.org/a?b"),
        ("https://{authority}{target}", b"/a?b", b"https://example.org:8080/a?b"),
        ("https://www.{host}:8443/x{path}?{query}", b"/a?b", b"https://www.example.org:8443/x/a?b"),
        ("{scheme}://other.example{path}", b"/a?b", b"http://other.example/a"),
        ("https://other.example", b"/a?b", b"https://other.example"),
        ("https://other.example?from={target}", b"/a?b", b"https://other.example?from=/a?b"),
        ("/new{path}", b"/a?b", b"/new/a"),
        ("/", b"/a?b", b"/"),
        ("{target}", b"/a?b", b"/a?b"),
        # what a client can't make of it
        ("{path}", b"//evil.example/x", b"/evil.example/x"),
        ("{target}", b"///evil.example?x", b"/evil.example?x"),
        ("{path}", b"/\\evil.example", b"/evil.example"),
        ("{path}", b"http://a//evil.example", b"/evil.example"),
        ("https://good.example{path}", b"@evil.example", b"https://good.example/"),
        ("https://good.example{path}", b"/\\x", b"https://good.example/%5Cx"),
        ("https://good.example/{query}", b'/?"<\xff>\r\n', b"https://good.example/%22%3C%C3%BF%3E%0D%0A"),
        ("/caf\u00e9 au lait", b"/", b"/caf%C3%A9%20au%20lait"),
    ],
)
def test_a_redirect(location, target, sent):
    values = variables_of("GET", b"example.org:8080", target, scheme="http", client="")
    assert Redirect(location).location_for(values) == sent


@given(st.sampled_from(["{path}", "{target}", "/x{path}", "https://good.example{target}"]), st.binary())
def test_a_redirect_leads_where_it_says(location, target):
    values = variables_of("GET", b"h", target, scheme="http", client="")
    sent = Redirect(location).location_for(values)
    assert is_value(sent)
    assert b" " not in sent
    if location.startswith("https:"):
        assert sent.startswith(b"https://good.example/")
    else:
        assert sent[:1] == b"/"
        assert sent[1:2] not in (b"/", b"\\")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"location": ""}, "location=''"),
        ({"location": 1}, "location=1"),
        ({"location": "x"}, "location='x'"),
        ({"location": "//evil.example"}, "location="),
        ({"location": "/\\evil.example"}, "location="),
        ({"location": "/{path}"}, "location="),
        ({"location": "{host}"}, "location="),
        ({"location": "{query}"}, "location="),
        ({"location": "javascript:x"}, "location="),
        ({"location": "https://{path}"}, "location="),
        ({"location": "https://good.example{query}"}, "location="),
        ({"location": "https://good@{host}/"}, "location="),
        ({"location": "https:///x"}, "location="),
        ({"location": "/{nobody}x"}, "location="),
        ({"location": "/x{nobody}"}, "location='/x{nobody}': {nobody}"),
        ({"location": "/", "status": 300}, "status=300: one of 301, 302, 303, 307, 308 expected"),
        ({"location": "/", "status": 304}, "status=304"),
        ({"location": "/", "status": True}, "status=True"),
        ({"location": "/", "status": "302"}, "status='302'"),
    ],
)
def test_a_redirect_checks_itself(given, text):
    with pytest.raises(ValueError, match=text):
        Redirect(**given)


def test_error_pages():
    pages = ErrorPages({"5xx": ErrorPage(b"five"), 502: ErrorPage(b"{}", "application/json"), "404": ErrorPage(b"")})
    assert pages.page(503, "queue-full") == (b"five", "text/html; charset=utf-8")
    assert pages.page(502) == (b"{}", "application/json")
    assert pages.page(404) == (b"", "text/html; charset=utf-8")
    assert pages.page(403) == (b"403 Forbidden\n", "text/plain; charset=utf-8")
    assert ErrorPages().page(499) == (b"499 Error\n", "text/plain; charset=utf-8")
    assert len(pages) == 3


@pytest.mark.parametrize("key", ["", "3xx", "200", 399, "600", "6xx", "4XX", "40x", "4", True, None, " 404"])
def test_keys_of_error_pages(key):
    with pytest.raises(ValueError, match="400 to 599"):
        ErrorPages({key: ErrorPage(b"")})
