"""Servers that do not know where they stand: prefixes that are taken off, URLs with a path, and what answers say."""

from __future__ import annotations

import re

import pytest
from conftest import read_all, wait_until
from proxies import fields_of
from proxy_peers import (  # noqa: F401  # fixtures
    dial,
    origin,
    proxied,
)
from scripts import scripted

from greensock.proxy import FieldEdits, Forwarding, Redirect, Route, ServerOptions
from greensock.proxy.prefixes import Places
from greensock.proxy.routes import BadPath, plain_target

OWN = {b"app.internal:9000", b"127.0.0.1:9000"}
ASKED = b"example.org"


def put_right(there, here, name, value):
    [(_, found)] = Places(there, here).put_right([(name, value)], OWN, ASKED)
    return found


@pytest.mark.parametrize(
    ("there", "here", "value", "found"),
    [
        # the prefix is taken off
        (b"", b"/app", b"/x?y#z", b"/app/x?y#z"),
        (b"", b"/app", b"/", b"/app/"),
        (b"", b"/app", b"x", b"x"),
        (b"", b"/app", b"../x", b"../x"),
        (b"", b"/app", b"?x", b"?x"),
        (b"", b"/app", b"", b""),
        (b"", b"/app", b"/app/x", b"/app/x"),
        (b"", b"/app", b"/app", b"/app"),
        (b"", b"/app", b"/app?x", b"/app?x"),
        (b"", b"/app", b"/apple", b"/app/apple"),
        (b"", b"/app", b"http://app.internal:9000/x", b"/app/x"),
        (b"", b"/app", b"HTTPS://APP.internal:9000", b"/app/"),
        (b"", b"/app", b"//127.0.0.1:9000?x", b"/app?x"),
        (b"", b"/app", b"http://example.org/x", b"http://example.org/app/x"),
        (b"", b"/app", b"https://example.org", b"https://example.org/app/"),
        (b"", b"/app", b"https://example.org/app/x", b"https://example.org/app/x"),
        (b"", b"/app", b"http://elsewhere/x", b"http://elsewhere/x"),
        (b"", b"/app", b"//elsewhere/x", b"//elsewhere/x"),
        (b"", b"/app", b"http://app.internal:9000@elsewhere/x", b"http://app.internal:9000@elsewhere/x"),
        (b"", b"/app", b"mailto:me", b"mailto:me"),
        # the server stands below a path
        (b"/base", b"", b"/base/x", b"/x"),
        (b"/base", b"", b"/base", b"/"),
        (b"/base", b"", b"/base?x", b"/?x"),
        (b"/base", b"", b"/based", b"/based"),
        (b"/base", b"", b"/x", b"/x"),
        (b"/base", b"", b"http://app.internal:9000/base/x", b"/x"),
        (b"/base", b"", b"http://app.internal:9000/x", b"http://app.internal:9000/x"),
        (b"/base", b"", b"/base//elsewhere/x", b"/elsewhere/x"),
        (b"/base", b"", b"/base/\\elsewhere/x", b"/elsewhere/x"),
        (b"/base", b"", b"/base/\t\\elsewhere/x", b"/elsewhere/x"),
        # both
        (b"/base", b"/app", b"/base/x", b"/app/x"),
        (b"/base", b"/app", b"/base", b"/app"),
        (b"/base", b"/app", b"/app/x", b"/app/x"),
        # neither: only its own name is not told
        (b"", b"", b"http://127.0.0.1:9000/x", b"/x"),
        (b"", b"", b"http://127.0.0.1:9000//elsewhere", b"/elsewhere"),
        (b"", b"", b"/x", b"/x"),
    ],
)
def test_where_an_answer_leads(there, here, value, found):
    assert put_right(there, here, b"Location", value) == found
    assert put_right(there, here, b"content-location", value) == found
    assert put_right(there, here, b"X-Location", value) == value
    if value and value.startswith((b"/", b"http")):
        for start, end in ((b"5; url=", b""), (b"0;URL='", b"'"), (b'1.5 , url = "', b'"')):
            assert put_right(there, here, b"Refresh", start + value + end) == start + found + end


@pytest.mark.parametrize("value", [b"5", b"", b"nonsense", b"5; x=/y"])
def test_a_refresh_that_leads_nowhere(value):
    assert put_right(b"", b"/app", b"Refresh", value) == value


@pytest.mark.parametrize(
    ("there", "here", "value", "found"),
    [
        (b"", b"/app", b"a=b", b"a=b"),
        (b"", b"/app", b"a=b; Path=/", b"a=b; Path=/app"),
        (b"", b"/app", b"a=b;path=/x; HttpOnly", b"a=b;path=/app/x; HttpOnly"),
        (b"", b"/app", b"a=b; Path=/app/x; Secure", b"a=b; Path=/app/x; Secure"),
        (b"", b"/app", b"a=b; Path=x; Path", b"a=b; Path=x; Path"),
        (b"", b"/app", b"path=/; Max-Age=1", b"path=/; Max-Age=1"),
        (b"", b"/app", b"__Host-a=b; Path=/; Secure", b"__Host-a=b; Path=/; Secure"),
        (b"", b"/app", b"a=b; Domain=app.internal; Path=/", b"a=b; Path=/app"),
        (b"", b"/app", b"a=b; domain=.APP.internal", b"a=b"),
        (b"", b"/app", b"a=b; Domain=example.org", b"a=b; Domain=example.org"),
        (b"", b"/app", b"a=b; Domain=internal", b"a=b; Domain=internal"),
        (b"/base", b"", b"a=b; Path=/", b"a=b; Path=/"),
        (b"/base", b"", b"a=b; Path=/base", b"a=b; Path=/"),
        (b"/base", b"", b"a=b; Path=/base/x", b"a=b; Path=/x"),
        (b"/base", b"/app", b"a=b; Path=/", b"a=b; Path=/app"),
        (b"/base", b"/app", b"a=b; Path=/base/", b"a=b; Path=/app"),
        (b"/base", b"/app", b"a=b; Path=/base/x", b"a=b; Path=/app/x"),
        (b"/base", b"/app", b"a=b; Path=/other", b"a=b; Path=/other"),
    ],
)
def test_for_what_a_cookie_is(there, here, value, found):
    assert put_right(there, here, b"Set-Cookie", value) == found


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"/x?y=/../z", b"/x?y=/../z"),
        (b"*", b"*"),
        (b"/a/../b", b"/b"),
        (b"/a//b", b"/a/b"),
        (b"/%61?%2e", b"/a?%2e"),
        (b"/..", None),
        (b"/%2e%2e/x", None),
        (b"/..%2fx", None),
        (b"/a/..%2f..%2fx", None),
        (b"/\\..", None),
        (b"/a%2fb", b"/a%2Fb"),
    ],
)
def test_a_target_that_stays_below(target, found):
    if found is None:
        with pytest.raises(BadPath):
            plain_target(target)
    else:
        assert plain_target(target) == found


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a", b""),
        ("http://a/", b""),
        ("http://a/base", b"/base"),
        ("http://a:1/b-c/d.e/", b"/b-c/d.e"),
        ("https://a/~x", b"/~x"),
        ("http+unix://%2Frun%2Fa.sock/base", b"/base"),
        ("unix:/run/a.sock", b""),
    ],
)
def test_a_server_below_a_path(url, base):
    assert ServerOptions(url).base == base


@pytest.mark.parametrize("url", ["http://a/?", "http://a/x?y", "http://a/x#y", "http://a//x", "http://a/../x"])
@pytest.mark.parametrize("more", ["", "/z"])
def test_a_path_that_is_not_plain(url, more):
    with pytest.raises(ValueError, match=r"^url=.*: a plain path, such as /base, expected"):
        ServerOptions(url + more)


def answering(fields):
    def script(server, sock, number):
        while server.head(sock):
            sock.sendall(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n" + fields + b"\r\n")

    return script


LEADS = b"Location: /x\r\nSet-Cookie: a=b; Path=/\r\n"


@pytest.mark.parametrize(
    ("base", "route", "asked", "sent", "location", "path"),
    [
        ("", {"path": "/app", "strip_prefix": True}, b"/app/y?z", b"/y?z", b"/app/x", b"/app"),
        ("", {"path": "/app", "strip_prefix": True, "rewrite_answers": False}, b"/app/y", b"/y", b"/x", b"/"),
        ("/base", {}, b"/y", b"/base/y", b"/x", b"/"),
        ("/base", {}, b"*", b"*", b"/x", b"/"),
        ("/base", {"path": "/app", "strip_prefix": True}, b"/app/a/../y", b"/base/y", b"/x", b"/app"),
        ("/x", {"path": "/app", "strip_prefix": True}, b"/app", b"/x/", b"/app", b"/app"),
        ("/base", {"rewrite_answers": False}, b"http://a/y", b"/base/y", b"/x", b"/"),
    ],
)
def test_a_prefix_there_and_back(proxied, dial, base, route, asked, sent, location, path):
    with scripted(answering(LEADS)) as server:
        proxy = proxied(server.url + base, routes=[Route("site", **route)])
        method = b"OPTIONS" if asked == b"*" else b"GET"
        ask = b"%b %b HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /mine\r\n" % (method, asked)
        for number in range(2):  # the second on a kept connection, where it may be ordinary
            answer = read_all(dial(proxy, ask + b"Connection: close\r\n\r\n"))
            head = server.heads[number]
            assert head.split(b" ")[1] == sent
            told = re.findall(rb"X-Forwarded-Prefix: (.*)\r\n", head)
            assert told == ([b"/app"] if "strip_prefix" in route else []), "no stranger says so"
            assert re.search(rb"Location: (.*)\r\n", answer)[1] == location
            assert re.search(rb"Path=(.*)\r\n", answer)[1] == path


def test_what_leads_out_of_the_base_is_refused(proxied, dial, origin):
    proxy = proxied(origin.url + "/base")
    for target in (b"/../secret", b"/%2e%2e/secret", b"/a/..%2f..%2fsecret"):
        answer = read_all(dial(proxy, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert not origin.seen


@pytest.mark.parametrize(("target", "sent"), [(b"/y", b"/base/y"), (b"/../secret", None)])
def test_a_base_that_comes_while_a_body_is_waited_for(proxied, dial, origin, target, sent):
    """What was looked at when no server had a path is looked at again for one that was added meanwhile."""
    proxy = proxied("http://127.0.0.1:1")
    sock = dial(proxy, b"POST " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\na")
    wait_until(lambda: any(conn.upload for conn in proxy.connections))
    proxy.gateway.add_server("site", origin.url + "/base")
    proxy.gateway.remove_server("site", "127.0.0.1:1")
    sock.sendall(b"b")
    assert read_all(sock).startswith(b"HTTP/1.1 400 " if sent is None else b"HTTP/1.1 200 ")
    assert [asked for _, asked, *_ in origin.seen] == ([] if sent is None else [sent])


def test_the_prefix_of_a_trusted_peer_goes_in_front(proxied, dial, origin):
    routes = [Route("site", path="/app", strip_prefix=True)]
    for trusted, told in ((("127.0.0.1",), "/outer/app"), ((), "/app")):
        proxy = proxied(origin.url, routes=routes, forwarding=Forwarding(trusted=trusted))
        ask = b"GET /app/x HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /outer/\r\nConnection: close\r\n\r\n"
        read_all(dial(proxy, ask))
        assert fields_of(origin.seen[-1][2])["x-forwarded-prefix"] == told


def test_the_name_that_only_the_server_has_is_not_told(proxied, dial):
    with scripted(answering(b"Location: http://own.internal/x\r\nSet-Cookie: a=b; Domain=own.internal\r\n")) as server:
        for asked, location in ((True, b"/x"), (None, b"http://own.internal/x")):
            routes = [Route("site", rewrite_answers=asked)]
            proxy = proxied(server.url, routes=routes, forwarding=Forwarding(preserve_host="own.internal"))
            answer = read_all(dial(proxy, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
            assert re.search(rb"Location: (.*)\r\n", answer)[1] == location
            assert (b"Domain" in answer) is (asked is None)


# -- patterns

USER = r"/u/(?P<name>[a-z]+)(?P<rest>/.*)?"


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        (b"/u/ada", b"/users/ada/of"),
        (b"/u/ada/x/y?z", b"/users/ada/of/x/y?z"),
        (b"/u/%61da//x/%3f", b"/users/ada/of/x/%3F"),
        (b"/u/ada/../bob/x", b"/users/bob/of/x"),
        (b"/u/Ada", None),
        (b"/v/u/ada", None),
    ],
)
def test_a_pattern_and_what_is_asked_for(proxied, dial, origin, target, sent):
    edits = FieldEdits(set={"X-Name": "{match.name}"})
    routes = [Route("site", pattern=USER, rewrite="/users/{match.name}/of{match.rest}", request_fields=edits)]
    proxy = proxied(origin.url, routes=routes)
    answer = read_all(dial(proxy, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    if sent is None:
        assert answer.startswith(b"HTTP/1.1 404 ")
        return
    assert origin.seen[0][1] == sent
    assert fields_of(origin.seen[0][2])["x-name"] == sent.split(b"/")[2].decode()


def test_a_pattern_in_a_redirect(proxied, dial):
    routes = [
        Route(Redirect("https://new.example/{match.to}", 301), pattern="/old/(?P<to>.*)"),
        Route(Redirect("/{match.to}?q", 302), pattern="/here(?P<to>.*)"),
    ]
    proxy = proxied("http://127.0.0.1:1", routes=routes)
    for target, location in (
        (b"/old/a%20b?x", b"https://new.example/a%20b"),
        (b"/old/%0d%0aX:y", b"https://new.example/%0D%0AX:y"),
        (b"/here//elsewhere", b"/elsewhere?q"),
        (b"/here/%5celsewhere", None),
    ):
        answer = read_all(dial(proxy, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
        if location is None:
            assert answer.startswith(b"HTTP/1.1 400 ")
        else:
            assert re.search(rb"Location: (.*)\r\n", answer)[1] == location


def test_a_group_in_a_query_adds_no_field(proxied, dial, origin):
    routes = [
        Route("site", pattern="/u/(?P<id>.*)", rewrite="/of/{match.id}?id={match.id}"),
        Route(Redirect("/{match.id}?id={match.id}"), pattern="/r/(?P<id>.*)"),
    ]
    proxy = proxied(origin.url, routes=routes)
    for target in (b"/u/", b"/r/"):
        asks = b"GET " + target + b"1&a=2;b=3+4/5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = read_all(dial(proxy, asks))
    query = b"1&a=2;b=3+4/5?id=1%26a%3D2%3Bb%3D3%2B4/5"
    assert origin.seen[0][1] == b"/of/" + query
    assert re.search(rb"Location: (.*)\r\n", answer)[1] == b"/" + query


def test_groups_that_are_dots_together(proxied, dial, origin):
    routes = [Route("site", pattern="/(?P<a>.)(?P<b>.)x", rewrite="/z/{match.a}{match.b}/y")]
    proxy = proxied(origin.url, routes=routes)
    for target, status in ((b"/abx", b"200"), (b"/.bx", b"200"), (b"/..x", b"400")):
        answer = read_all(dial(proxy, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
        assert answer[9:12] == status
