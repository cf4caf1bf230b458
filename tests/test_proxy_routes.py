"""Which route a request takes."""

from __future__ import annotations

import posixpath
import sys
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from greensock.http import Headers
from greensock.proxy import ProxyTimeouts, Redirect, Route, StaticAnswer
from greensock.proxy.routes import CACHE_SIZE, MAX_AUTHORITY, MAX_CACHED, BadPath, Routes

NONE = Headers()

ROUTES = Routes(
    [
        Route("site"),
        Route("api", path="/api"),
        Route("api-v2", path="/api/v2/"),
        Route("api-get", path="/api/v2", methods=frozenset({"GET", "HEAD"})),
        Route("robots", path="/robots.txt", exact=True),
        Route("dir", path="/dir/", exact=True),
        Route("café", path="/café au lait"),
        Route("com", hosts=("example.com",)),
        Route("com-api", hosts=("example.com", "EXAMPLE.net"), path="/api"),
        Route("below", hosts=("*.example.com",)),
        Route("below-deep", hosts=("*.deep.example.com",)),
        Route("six", hosts=("[::1]",)),
    ]
)


def find(routes: Routes, authority: bytes, target: bytes, method: str = "POST", headers: Headers = NONE) -> object:
    """Ask twice: what is remembered must be the same."""
    route = routes.find(method, authority, target, headers)
    assert routes.find(method, authority, target, headers) is route
    return route.action if route else None


@pytest.mark.parametrize(
    ("authority", "target", "action"),
    [
        (b"a", b"/", "site"),
        (b"", b"/", "site"),
        (b"a", b"*", "site"),
        (b"a", b"/api", "api"),
        (b"a", b"/api/", "api"),
        (b"a", b"/api/x", "api"),
        (b"a", b"/api?x=/../..", "api"),
        (b"a", b"/apix", "site"),
        (b"a", b"/ap", "site"),
        (b"a", b"/API", "site"),
        (b"a", b"/api/v2", "api-v2"),
        (b"a", b"/api/v2/x", "api-v2"),
        (b"a", b"/api/v20", "api"),
        # as a server behind may read it
        (b"a", b"//api", "api"),
        (b"a", b"/%61pi/x", "api"),
        (b"a", b"/./api/./x", "api"),
        (b"a", b"/x/../api", "api"),
        (b"a", b"/api/..", "site"),
        (b"a", b"/api/../", "site"),
        (b"a", b"/x/%2e%2E/api", "api"),
        (b"a", b"/api/%252e%252e/x", "api"),
        (b"a", b"/%2561pi", "site"),
        (b"a", b"/.well-known/x", "site"),
        (b"a", b"/api/...", "api"),
        (b"a", b"/api;x=1", "site"),
        (b"a", b"/caf%c3%a9%20au%20lait/x", "café"),
        (b"a", b"/caf%E9", "site"),
        # exact
        (b"a", b"/robots.txt", "robots"),
        (b"a", b"/robots.txt?", "robots"),
        (b"a", b"/robots.txt/", "site"),
        (b"a", b"/robots.txt/x", "site"),
        (b"a", b"/dir/", "dir"),
        (b"a", b"/dir/x/..", "dir"),
        (b"a", b"/dir", "site"),
        # an absolute target
        (b"a", b"http://a/api/x", "api"),
        (b"a", b"HTTP://a", "site"),
        (b"a", b"http://a?x=/api", "site"),
        # hosts
        (b"example.com", b"/", "com"),
        (b"EXAMPLE.com:8080", b"/", "com"),
        (b"example.com.", b"/x", "com"),
        (b"example.com", b"/api", "com-api"),
        (b"example.net", b"/api", "com-api"),
        (b"example.net", b"/", "site"),
        (b"example.com", b"/api/v2", "com-api"),
        (b"a.example.com", b"/api", "below"),
        (b"a.b.example.com", b"/", "below"),
        (b"a.deep.example.com", b"/", "below-deep"),
        (b"deep.example.com", b"/", "below"),
        (b".example.com", b"/", "site"),
        (b"xexample.com", b"/", "site"),
        (b"[::1]:80", b"/", "six"),
        (b"[::1]", b"/", "six"),
        (b"x" * MAX_AUTHORITY + b".example.com", b"/", "site"),
    ],
)
def test_which_is_found(authority, target, action):
    assert find(ROUTES, authority, target) == action


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b"/%00", "nul"),
        (b"/a/%00b", "nul"),
        (b"/\\", "backslash"),
        (b"/a%5Cb", "backslash"),
        (b"/a%5cb", "backslash"),
        (b"/%", "bad-escape"),
        (b"/%4", "bad-escape"),
        (b"/%4g", "bad-escape"),
        (b"/..", "above-root"),
        (b"/../api", "above-root"),
        (b"/api/../../x", "above-root"),
        (b"/%2e./x", "above-root"),
        (b"/a//../api", "dots-and-empty-segment"),
        (b"/a/../b//", "dots-and-empty-segment"),
        (b"/a/..;/api", "dots-and-parameter"),
        (b"/.;x/api", "dots-and-parameter"),
        (b"/api%2Fx", "encoded-slash"),
        (b"/x%2fy", "encoded-slash"),
        (b"http://a/..", "above-root"),
    ],
)
def test_what_can_be_read_in_more_than_one_way(target, reason):
    for _ in range(2):
        with pytest.raises(BadPath, match=reason) as caught:
            ROUTES.find("GET", b"a", target, NONE)
        assert (caught.value.reason, caught.value.status) == (reason, 400)


def test_paths_are_not_looked_at_where_they_do_not_decide():
    for target in (b"/%00", b"/..", b"/a%2Fb", b"/\\"):
        assert find(Routes([Route("only")]), b"a", target) == "only"
        assert find(Routes([Route("a", hosts=("a",)), Route("other")]), b"a", target) == "a"
    mixed = Routes([Route("a", hosts=("a",)), Route("b", hosts=("b",), path="/x")])
    assert find(mixed, b"a", b"/..") == "a"
    with pytest.raises(BadPath):
        find(mixed, b"b", b"/..")


@pytest.mark.parametrize(
    ("target", "action"),
    [
        (b"/pkg/@a%2Fb", "pkg"),
        (b"/pkg/..%2Fx", None),  # leads elsewhere if that is a slash
        (b"/pkg%2Fx", None),
        (b"/x%2Fpkg", None),
        (b"/pkg/a%2Fb%2F..", "pkg"),
        (b"/pkg/a%2F..%2F..%2Fadmin", None),
        (b"/pkg/%2F..", None),
        (b"/admin%2Fx", None),
    ],
)
def test_an_encoded_slash(target, action):
    routes = Routes([Route("rest"), Route("pkg", path="/pkg", encoded_slash=True), Route("admin", path="/admin")])
    if action is None:
        with pytest.raises(BadPath):
            find(routes, b"a", target)
    else:
        assert find(routes, b"a", target) == action


def test_methods_and_fields():
    routes = Routes(
        [
            Route("get", path="/a", methods=frozenset({"GET"})),
            Route("value", path="/a", headers={"X-Kind": "b"}),
            Route("there", path="/a", headers={"x-kind": None, "X-More": None}),
            Route("rest", methods=frozenset({"PUT"})),
        ]
    )
    assert find(routes, b"", b"/a", "GET", Headers([("X-Kind", "b")])) == "get"
    assert find(routes, b"", b"/a", "POST", Headers([("x-kind", "b")])) == "value"
    assert find(routes, b"", b"/a", "POST", Headers([("X-Kind", "c"), ("X-More", "")])) == "there"
    assert find(routes, b"", b"/a", "POST", Headers([("X-Kind", "b"), ("X-Kind", "b"), ("X-More", "")])) == "there"
    assert find(routes, b"", b"/a", "PUT") == "rest"
    assert find(routes, b"", b"/a", "POST") is None
    assert find(routes, b"", b"/b", "get") is None
    assert find(Routes([]), b"", b"/") is None
    assert find(Routes([Route("a", hosts=("a",))]), b"b", b"/") is None


def test_among_equals_the_first_is_taken():
    assert find(Routes([Route("a", path="/x"), Route("b", path="/x/")]), b"", b"/x") == "a"
    assert find(Routes([Route("a", path="/x"), Route("b", path="/x", exact=True)]), b"", b"/x") == "b"
    assert find(Routes([Route("a", hosts=("h", "h")), Route("b", hosts=("h",))]), b"h", b"/x") == "a"


@pytest.mark.parametrize("length", [MAX_CACHED - 1, MAX_CACHED, MAX_CACHED + 1])
def test_what_is_remembered_is_bounded(length):
    routes = Routes([Route("a"), Route("b", path="/b")])
    for number in range(CACHE_SIZE + 10):
        target = b"/b/%06d/" % number
        assert find(routes, b"h", target + b"x" * (length - 1 - len(target))) == "b"
    info = routes._candidates.cache_info()
    assert info.currsize == (CACHE_SIZE if length <= MAX_CACHED else 0)


@pytest.mark.parametrize(
    ("route", "target", "passed"),
    [
        (Route("a", path="/api"), b"/api/x?y", b"/api/x?y"),
        (Route("a", path="/api", strip_prefix=True), b"/api/x?y=/api", b"/x?y=/api"),
        (Route("a", path="/api/", strip_prefix=True), b"/api/x", b"/x"),
        (Route("a", path="/api", strip_prefix=True), b"/api", b"/"),
        (Route("a", path="/api", strip_prefix=True), b"/api?x", b"/?x"),
        (Route("a", path="/api", strip_prefix=True), b"/api/?", b"/?"),
        (Route("a", path="/api", strip_prefix=True), b"/%61pi/%20%41?%20", b"/%20A?%20"),
        (Route("a", path="/api", strip_prefix=True), b"/api/../api/x", b"/x"),
        (Route("a", path="/api", strip_prefix=True), b"/api//evil/x", b"/evil/x"),
        (Route("a", path="/api", strip_prefix=True), b"/api/%3F%23", b"/%3F%23"),
        (Route("a", path="/pkg", strip_prefix=True, encoded_slash=True), b"/pkg/@a%2fb", b"/@a%2Fb"),
        (Route("a", path="/caf\u00e9", strip_prefix=True), b"/caf%C3%A9/x", b"/x"),
        (Route("a", strip_prefix=True), b"/a//b/%20", b"/a//b/%20"),
        (Route("a", strip_prefix=True), b"/..%00", b"/..%00"),
        (Route("a", strip_prefix=True), b"*", b"*"),
    ],
)
def test_what_the_upstream_is_asked_for(route, target, passed):
    assert route.target_for(target) == passed


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("action", ""),
        ("action", None),
        ("name", "a\nb"),
        ("name", 1),
        ("hosts", "example.org"),
        ("hosts", ("example.org:80",)),
        ("hosts", ("*",)),
        ("hosts", ("*.",)),
        ("hosts", ("a.*.b",)),
        ("hosts", ("a..b",)),
        ("hosts", ("",)),
        ("hosts", (1,)),
        ("path", ""),
        ("path", "api"),
        ("path", "/a?b"),
        ("path", "/a#b"),
        ("path", "/a%2Fb"),
        ("path", "/.."),
        ("path", "/%00"),
        ("path", "/%"),
        ("path", "/\\"),
        ("path", None),
        ("exact", 1),
        ("methods", frozenset()),
        ("methods", ("GET",)),
        ("methods", frozenset({"G T"})),
        ("headers", {"a b": "c"}),
        ("headers", {"a": 1}),
        ("headers", ("a",)),
        ("encoded_slash", None),
        ("strip_prefix", "yes"),
        ("request_fields", {}),
        ("response_fields", None),
        ("timeouts", 1.0),
        ("retries", -1),
        ("retries", True),
    ],
)
def test_a_route_checks_itself(option, value):
    with pytest.raises(ValueError, match=rf"^{option}=.* expected$"):
        Route(**{"action": "up", option: value})


def test_a_route_can_be_hashed_and_compared():
    assert Route("a", headers={"b": None}) == Route("a", headers={"b": None}) != Route("a")
    assert len({Route("a", headers={"b": None}), Route("a", headers={"b": None})}) == 1
    assert Route(StaticAnswer(204), timeouts=ProxyTimeouts()) != Route(Redirect("/x"))


# -- against another way to say it

segments = st.lists(st.sampled_from(["a", "b", "ab", ".", "..", "", "%61", "%2e", "%2E%2e", "..."]), max_size=7)


@given(segments)
def test_paths_are_resolved_as_posixpath_does(parts):
    target = ("/" + "/".join(parts)).encode()
    routes = Routes([Route(path, path=path, name=path) for path in ("/", "/a", "/b", "/a/b", "/a/a")])
    try:
        found = routes.find("GET", b"", target, NONE)
    except BadPath as error:
        event(error.reason)
        return
    path = posixpath.normpath(unquote_to_bytes(target).decode()).replace("//", "/")
    fits = [each for each in ("/a/b", "/a/a", "/a", "/b") if path == each or path.startswith(each + "/")]
    assert found.name == [*fits, "/"][0]


STRIPPED = Routes([Route("a", path="/api", strip_prefix=True, encoded_slash=True), Route("rest")])


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_give_a_route_or_bad_path(authority, target):
    try:
        assert ROUTES.find("GET", authority, target, NONE) is not None
    except BadPath:
        pass


@given(st.lists(st.sampled_from([b"/api", b"/", b"%2f", b"%61", b"..", b".", b"x", b"%25", b"?", b"%20"]), max_size=8))
def test_what_is_left_of_a_path_leads_where_it_led(parts):
    target = b"/api" + b"".join(parts)
    try:
        route = STRIPPED.find("GET", b"", target, NONE)
    except BadPath:
        return
    passed = route.target_for(target)
    if route.action == "rest":
        assert passed == target
        return
    assert passed.startswith(b"/")
    again = Routes([Route("x", path="/api", encoded_slash=True), Route("y", encoded_slash=True)])
    assert again.find("GET", b"", b"/api" + passed, NONE).action == "x"


def test_a_long_path_costs_little():
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        ROUTES.find("GET", b"a." * 4000, b"/" + b"a/./" * 2000, NONE)
        ROUTES.find("GET", b"a." * 100 + b"example.com", b"/" + b"%2e/" * 2000, NONE)
    finally:
        sys.setprofile(None)
    assert calls < 60_000


# -- conditions on cookies and the query, and patterns


@pytest.mark.parametrize(
    ("route", "target", "cookie", "fits"),
    [
        ({"query": {"v": "2"}}, b"/?v=2", b"", True),
        ({"query": {"v": "2"}}, b"/?a=b&v=%32&v=3", b"", True),
        ({"query": {"v": "2"}}, b"/?v=3&v=2", b"", False),
        ({"query": {"v": "2"}}, b"/?v", b"", False),
        ({"query": {"v": ""}}, b"/?v", b"", True),
        ({"query": {"v": None}}, b"/?v=x", b"", True),
        ({"query": {"v": None}}, b"/?w=x", b"", False),
        ({"query": {"a": "b", "c": "d"}}, b"/?a=b&c=d", b"", True),
        ({"query": {"a": "b", "c": "d"}}, b"/?a=b", b"", False),
        ({"query": {"v": "2"}}, b"/?" + b"x&" * 2000 + b"v=2", b"", False),
        ({"cookies": {"beta": "1"}}, b"/", b"a=b; beta=1", True),
        ({"cookies": {"beta": "1"}}, b"/", b'beta="1"', True),
        ({"cookies": {"beta": "1"}}, b"/", b"beta=2; beta=1", False),
        ({"cookies": {"beta": None}}, b"/", b"beta=", True),
        ({"cookies": {"beta": None}}, b"/", b"", False),
        ({"cookies": {"a": "b"}, "query": {"c": "d"}, "headers": {"cookie": "a=b"}}, b"/?c=d", b"a=b", True),
        ({"pattern": "/a+b"}, b"/aaab?x", b"", True),
        ({"pattern": "/a+b"}, b"/aaabc", b"", False),
        ({"pattern": "/a+b", "path": "/x"}, b"/aab", b"", False),
        ({"pattern": "/x/[0-9]+", "path": "/x"}, b"/x//7", b"", True),
        ({"pattern": "/caf\u00e9"}, b"/caf%C3%A9", b"", True),
    ],
)
def test_conditions(route, target, cookie, fits):
    both = [Route("it", **route), Route("rest")]
    routes = Routes(both[::-1] if "pattern" in route else both)
    headers = Headers([("Cookie", cookie)]) if cookie else NONE
    found = routes.find("GET", b"", target, headers)
    assert found.action == ("it" if fits else "rest")
    assert routes.looks_at_fields is bool(route.keys() & {"cookies", "headers"})
    assert Routes([Route("it", **route)]).only is None


def test_a_pattern_is_no_trap():
    """What takes Python's own minutes."""
    routes = Routes([Route("it", pattern="/(a+)+b"), Route("rest")])
    assert routes.find("GET", b"", b"/" + b"a" * 8000, NONE).action == "rest"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pattern": "("}, r"^pattern='\(': a regular expression of RE2 expected: .+"),
        ({"pattern": r"(.)\1"}, r"^pattern=.*: a regular expression of RE2 expected: .+"),
        ({"pattern": ""}, r"^pattern='': a regular expression, or None expected$"),
        ({"rewrite": "x"}, r"^rewrite='x': a path that begins with one '/', or None expected$"),
        ({"rewrite": "//x"}, r"^rewrite='//x': a path"),
        ({"rewrite": "/{path}"}, r"^rewrite='/\{path\}': \{path\}: only \{match.NAME\} expected"),
        ({"rewrite": "/{match.a}"}, r"^rewrite: \{match.a\}: a named group of the pattern expected \(none\)$"),
        ({"rewrite": "/x", "strip_prefix": True}, "^rewrite='/x': without strip_prefix expected$"),
        (
            {"pattern": "/(?P<b>.*)", "action": Redirect("/x/{match.a}")},
            r"^action: \{match.a\}: a named group of the pattern expected \(b\)$",
        ),
        ({"query": {"": "x"}}, "^query=.* expected$"),
        ({"cookies": {"a b": "x"}}, "^cookies=.* expected$"),
        ({"buffer": 1}, "^buffer=1: sizes of memory and file, or None expected$"),
        ({"auth": "http://a"}, "^auth='http://a': a server to be asked, or None expected$"),
        ({"rewrite_answers": "yes"}, "^rewrite_answers='yes': .* expected$"),
    ],
)
def test_what_a_route_may_not_say(options, text):
    with pytest.raises(ValueError, match=text):
        Route(**{"action": "up", **options})
