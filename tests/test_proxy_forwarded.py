"""Who the client is, and which fields go on to the upstream and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.http import Headers, RequestHead, ResponseHead
from greensock.http.wire.hop_by_hop import HOP_BY_HOP
from greensock.proxy import Forwarding
from greensock.proxy.forwarded import MAX_ENTRIES, MAX_NAME, MAX_NAMES, MAX_PASSES, Forwarder

CLIENT, INNER, OUTER = "192.0.2.7", "10.0.0.1", "10.0.0.2"
TRUSTING = ("10.0.0.0/8",)


def forwarder(**options) -> Forwarder:
    return Forwarder(Forwarding(**options), instance="i7")


def head_of(fields, authority=b"example.org", version="1.1", chunked=False) -> RequestHead:
    return RequestHead("GET", b"/", version, Headers(fields), None, chunked, authority)


def sent(
    fields,
    peer=CLIENT,
    client=None,
    scheme="http",
    call=None,
    version="1.1",
    authority=b"example.org",
    chunked=False,
    **options,
):
    """Return the fields that go to the upstream, after checking that lines and headers say the same."""
    proxy, head = forwarder(**options), head_of(fields, authority, version, chunked)
    client = proxy.client_of(peer, head.headers) if client is None else client
    lines = proxy.request_lines(head, peer, client, scheme, b"upstream:9000", **call or {})
    headers = proxy.request_headers(head, peer, client, scheme, b"upstream:9000", **call or {})
    assert lines == b"".join(b"%b: %b\r\n" % pair for pair in headers.raw)
    assert headers.raw[0][0] == b"Host"
    assert Headers(fields).raw == head.headers.raw
    return headers


# -- options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trusted", ["10.0.0.0/8"]),
        ("trusted", "10.0.0.0/8"),
        ("trusted", ("10.0.0.1/8",)),
        ("trusted", (7,)),
        ("preserve_host", 1),
        ("preserve_host", ""),
        ("preserve_host", "a b"),
        ("preserve_host", "a\r\nb"),
        ("preserve_host", "bücher.example"),
        ("x_forwarded", None),
        ("forwarded", 0),
        ("via", None),
        ("via", "two words"),
        ("via", "a\r\nb"),
        ("via_response", "yes"),
        ("proxy_status", "yes"),
        ("proxy_authorization", None),
        ("allow_underscores", 1),
    ],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.* expected$"):
        Forwarding(**{name: value})


@pytest.mark.parametrize("instance", ["", "a b", "ü", "(a)", None])
def test_the_instance_is_a_token(instance):
    with pytest.raises(ValueError, match="instance="):
        Forwarder(Forwarding(), instance=instance)


# -- who the client is


@pytest.mark.parametrize(
    ("peer", "fields", "client"),
    [
        (CLIENT, [], CLIENT),
        (CLIENT, [("X-Forwarded-For", "198.51.100.1")], CLIENT),
        ("::ffff:192.0.2.7", [], CLIENT),
        ("", [("X-Forwarded-For", "198.51.100.1")], ""),
        (INNER, [], INNER),
        (INNER, [("X-Forwarded-For", "")], INNER),
        (INNER, [("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        (INNER, [("x-forwarded-for", "198.51.100.1:5000")], "198.51.100.1"),
        (INNER, [("X-Forwarded-For", "6.6.6.6, 198.51.100.1")], "198.51.100.1"),
        (INNER, [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        (INNER, [("X-Forwarded-For", f"6.6.6.6,198.51.100.1 , {OUTER}")], "198.51.100.1"),
        (INNER, [("X-Forwarded-For", f"10.9.9.9, {OUTER}")], "10.9.9.9"),
        (INNER, [("X-Forwarded-For", f"6.6.6.6, unknown, {OUTER}")], OUTER),
        (INNER, [("X-Forwarded-For", f"6.6.6.6,, {OUTER}")], OUTER),
        (INNER, [("X-Forwarded-For", "6.6.6.6, <script>")], INNER),
        (INNER, [("X-Forwarded-For", "[2001:db8::1]:80")], "2001:db8::1"),
        (INNER, [("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=6.6.6.6")], "198.51.100.1"),
        (INNER, [("X-Real-IP", "6.6.6.6")], INNER),
        (INNER, [("Forwarded", "for=198.51.100.1")], "198.51.100.1"),
        (INNER, [("Forwarded", 'For="[2001:db8::1]:80";proto=http')], "2001:db8::1"),
        (INNER, [("Forwarded", f'proto=https ; for="198.51.100.1:80" , for={OUTER}')], "198.51.100.1"),
        (INNER, [("Forwarded", f"for=6.6.6.6, for=unknown, for={OUTER}")], OUTER),
        (INNER, [("Forwarded", f"for=6.6.6.6, proto=http, for={OUTER}")], OUTER),
        (INNER, [("Forwarded", "for=6.6.6.6;for=198.51.100.1")], INNER),
        # What stands in a quoted text is not an element of its own.
        (INNER, [("Forwarded", f'for={OUTER};host="a, for=6.6.6.6;b="')], INNER),
        (INNER, [("Forwarded", f'host="a;for=6.6.6.6;b=";for={OUTER}')], INNER),
        (INNER, [("Forwarded", 'for="6.6.6.6')], INNER),
        (INNER, [("Forwarded", f'x="6, for={OUTER}')], OUTER),
    ],
)
def test_client_of(peer, fields, client):
    assert forwarder(trusted=TRUSTING).client_of(peer, Headers(fields)) == client


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded"])
def test_the_walk_ends_after_so_many_entries(name):
    entry = "{}" if name == "X-Forwarded-For" else "for={}"
    for inner, client in ((MAX_ENTRIES - 1, CLIENT), (MAX_ENTRIES, OUTER)):
        value = ", ".join(entry.format(address) for address in [CLIENT, *[OUTER] * inner])
        assert forwarder(trusted=TRUSTING).client_of(INNER, Headers([(name, value)])) == client


def test_who_connects_to_a_unix_socket_may_be_trusted():
    headers = Headers([("X-Forwarded-For", CLIENT)])
    assert forwarder(trusted=("unix",)).client_of("", headers) == CLIENT


@pytest.mark.parametrize(
    ("peer", "fields", "scheme"),
    [
        (CLIENT, [("X-Forwarded-Proto", "https")], "http"),
        (INNER, [], "http"),
        (INNER, [("X-Forwarded-Proto", "https")], "https"),
        (INNER, [("X-Forwarded-Proto", "HTTPS")], "https"),
        (INNER, [("X-Forwarded-Proto", "http, https")], "https"),
        (INNER, [("X-Forwarded-Proto", "https, ftp")], "http"),
        (INNER, [("X-Forwarded-Proto", "")], "http"),
        (INNER, [("Forwarded", "for=x;proto=https")], "https"),
        (INNER, [("Forwarded", "proto=http, proto=https")], "https"),
        (INNER, [("Forwarded", "proto=wss")], "http"),
        (INNER, [("X-Forwarded-Proto", "http"), ("Forwarded", "proto=https")], "http"),
    ],
)
def test_scheme_of(peer, fields, scheme):
    assert forwarder(trusted=TRUSTING).scheme_of(peer, Headers(fields), "http") == scheme


# -- loops


@pytest.mark.parametrize(
    ("via", "is_loop"),
    [
        ([], False),
        (["1.1 greensock"], False),
        (["1.1 greensock (i8)"], False),
        (["1.1 greensock (i7)"], True),
        (["1.0 a, 1.1 greensock (i7), 1.1 b"], True),
        (["1.1 a", "1.1 greensock (i7)"], True),
        ([", ".join(["1.1 greensock (i8)"] * (MAX_PASSES - 1))], False),
        ([", ".join(["1.1 Greensock (i8)"] * MAX_PASSES)], True),
        (["1.1 greensock"] * MAX_PASSES, True),
        (["1.1 greensock2"] * MAX_PASSES, False),
        (["greensock,,,", ","], False),
    ],
)
def test_is_loop(via, is_loop):
    assert forwarder().is_loop(Headers([("Via", value) for value in via])) is is_loop


def test_what_is_sent_is_recognised_when_it_comes_back():
    proxy = forwarder()
    assert proxy.is_loop(proxy.request_headers(head_of([]), CLIENT, CLIENT, "http", b"up"))
    assert not forwarder(via="other").is_loop(Headers([("Via", "1.1 greensock")]))
    assert not forwarder(via="").is_loop(Headers([("Via", "1.1 greensock (i7)")]))


# -- what is sent to the upstream

OURS = [("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "http"), ("Via", "1.1 greensock (i7)")]
OUR_HOST = ("X-Forwarded-Host", "example.org")


def test_order_spelling_and_duplicates_are_kept():
    fields = [("Host", "example.org"), ("X-b", "1"), ("Accept", "a"), ("x-B", "2"), ("Cookie", "é")]
    assert list(sent(fields)) == [fields[0], *fields[1:], *OURS, OUR_HOST]


def test_version_1_0():
    assert list(sent([], version="1.0", authority=b"")) == [
        ("Host", "upstream:9000"),
        *OURS[:2],
        ("Via", "1.0 greensock (i7)"),
    ]


@pytest.mark.parametrize(
    ("preserve_host", "host"), [(True, "example.org"), (False, "upstream:9000"), ("fixed.example:1", "fixed.example:1")]
)
def test_host(preserve_host, host):
    fields = sent([("Host", "ignored.example"), ("X", "y")], preserve_host=preserve_host)
    assert fields.get_all("Host") == [host]
    assert fields.get_all("X-Forwarded-Host") == ["example.org"]


DROPPED = HOP_BY_HOP - {b"proxy-authorization"} | {b"content-length", b"expect", b"proxy", b"x_user"}


@pytest.mark.parametrize("name", sorted(DROPPED))
def test_what_is_not_passed_on(name):
    for spelling in (name, name.upper(), name.title()):
        assert list(sent([("A", "b"), (spelling, "c"), ("D", "e")])) == [
            ("Host", "example.org"),
            ("A", "b"),
            ("D", "e"),
            *OURS,
            OUR_HOST,
        ]


def test_credentials_for_a_proxy_are_the_next_ones():
    """RFC 9110 section 11.7.2: we have none to check."""
    fields = [("Proxy-Authorization", "Basic eA=="), ("X", "y")]
    for more in ([], [("Connection", "x")]):  # both ways of making the lines
        assert sent([*fields, *more])["Proxy-Authorization"] == "Basic eA=="
        assert "Proxy-Authorization" not in sent([*fields, *more], proxy_authorization=False)
    assert "Proxy-Authorization" not in sent([*fields, ("Connection", "proxy-authorization")])


@pytest.mark.parametrize(
    ("connection", "passed"),
    [
        ("keep-alive", ["X", "Y"]),
        ("Close", ["X", "Y"]),
        ("x", ["Y"]),
        ("close, X,y", []),
        (" Y ", ["X"]),
        (",", ["X", "Y"]),
        ("host, via, x-forwarded-for, x-forwarded-proto, x-forwarded-host, cookie, forwarded", ["X", "Y"]),
    ],
)
def test_fields_that_connection_names(connection, passed):
    fields = sent([("Connection", connection), ("X", "1"), ("Cookie", "c"), ("Y", "2")], forwarded=True)
    assert [name for name in ("X", "Y") if name in fields] == passed
    assert "Connection" not in fields
    assert fields["Cookie"] == "c"
    for ours in ("Host", "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"):
        assert len(fields.get_all(ours)) == 1


CLAIMS = [
    ("X-Forwarded-For", "6.6.6.6"),
    ("x-forwarded-proto", "https"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-User", "root"),
    ("X-FORWARDED-Prefix", "/x"),
    ("Forwarded", "for=6.6.6.6"),
    ("X-Real-IP", "6.6.6.6"),
]


@pytest.mark.parametrize("underscores", [False, True])
def test_claims_of_others_are_replaced(underscores):
    claims = [*CLAIMS, *[(name.replace("-", "_"), value) for name, value in CLAIMS], ("Content_Length", "5")]
    found = list(sent(claims, allow_underscores=underscores, trusted=TRUSTING))
    assert found == [("Host", "example.org"), *OURS, OUR_HOST]
    assert list(sent(claims, allow_underscores=underscores, x_forwarded=False, via="")) == [("Host", "example.org")]


def test_underscores_pass_if_allowed():
    assert sent([("X_User", "a")], allow_underscores=True)["X_User"] == "a"
    assert "X_User" not in sent([("X_User", "a")], peer=INNER, trusted=TRUSTING)
    assert "X_Real_IP" not in sent([("X_Real_IP", "a")], peer=INNER, trusted=TRUSTING, allow_underscores=True)


def test_claims_of_the_trusted_are_appended_to():
    fields = sent(CLAIMS, peer=INNER, scheme="https", trusted=TRUSTING)
    assert dict(fields) == {
        "Host": "example.org",
        "X-Forwarded-For": f"6.6.6.6, {INNER}",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-User": "root",
        "X-FORWARDED-Prefix": "/x",
        "Forwarded": "for=6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "Via": "1.1 greensock (i7)",
    }
    assert len(fields) == 9


def test_several_fields_of_one_claim_become_one():
    claims = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", CLIENT)]
    assert sent(claims, peer=INNER, trusted=TRUSTING).get_all("X-Forwarded-For") == [f"6.6.6.6, {CLIENT}, {INNER}"]


def test_claims_of_the_trusted_pass_untouched_where_we_add_none():
    fields = sent(CLAIMS, peer=INNER, trusted=TRUSTING, x_forwarded=False, via="")
    assert list(fields) == [("Host", "example.org"), *CLAIMS]


@pytest.mark.parametrize(
    ("peer", "claims", "chain"),
    [
        ("", [], []),
        ("", [("X-Forwarded-For", CLIENT)], [CLIENT]),
        ("", [("Forwarded", f"for={CLIENT}")], [CLIENT]),
        (INNER, [], [INNER]),
        (INNER, [("Forwarded", f"for={CLIENT}")], [f"{CLIENT}, {INNER}"]),
        ("192.0.2.8", [("X-Forwarded-For", CLIENT)], ["192.0.2.8"]),
        ("::ffff:192.0.2.8", [], ["192.0.2.8"]),
        ("2001:DB8::1", [], ["2001:db8::1"]),
        ("no\r\naddress", [], []),
    ],
)
def test_chain_of_addresses(peer, claims, chain):
    fields = sent(claims, peer=peer, trusted=("unix", *TRUSTING))
    assert fields.get_all("X-Forwarded-For") == chain


@pytest.mark.parametrize(
    ("peer", "authority", "claims", "value"),
    [
        (CLIENT, b"example.org", CLAIMS, f"for={CLIENT};host=example.org;proto=http"),
        (CLIENT, b"example.org:80", [], f'for={CLIENT};host="example.org:80";proto=http'),
        (CLIENT, b"", [], f"for={CLIENT};proto=http"),
        ("2001:db8::1", b"[::1]", [], 'for="[2001:db8::1]";host="[::1]";proto=http'),
        ("", b"a", [], "for=unknown;host=a;proto=http"),
        (
            INNER,
            b"a",
            [("Forwarded", "for=_x"), ("Forwarded", "for=_y")],
            f"for=_x, for=_y, for={INNER};host=a;proto=http",
        ),
        (INNER, b"a", [("X-Forwarded-For", "::2")], f'for="[::2]", for={INNER};host=a;proto=http'),
        (INNER, b"a", [], f"for={INNER};host=a;proto=http"),
    ],
)
def test_forwarded(peer, authority, claims, value):
    fields = sent(claims, peer=peer, authority=authority, forwarded=True, trusted=TRUSTING)
    assert fields.get_all("Forwarded") == [value]
    again = forwarder(trusted=("0.0.0.0/0", "::/0"))
    if peer == CLIENT:
        assert again.client_of(INNER, Headers([("Forwarded", value)])) == CLIENT


def test_via_is_appended():
    assert sent([("Via", "1.0 a"), ("X", "y"), ("Via", "1.1 b")]).get("Via") == "1.0 a, 1.1 b, 1.1 greensock (i7)"
    assert sent([("Via", "1.0 a")], via="")["Via"] == "1.0 a"


@pytest.mark.parametrize(
    ("offered", "passed"),
    [
        ("websocket", "websocket"),
        ("WebSocket", "WebSocket"),
        ("h2c", None),
        ("h2c, websocket", "websocket"),
        ("HTTP/2.0, TLS/1.2, H2C", None),
        ("a/1 ,\tb ", "a/1, b"),
        ("h2, websocket", "websocket"),
        ("", None),
        (None, None),
    ],
)
def test_upgrade(offered, passed):
    fields = [("Connection", "Upgrade"), ("Upgrade", offered)] if offered is not None else []
    found = sent(fields, call={"upgrade": True})
    assert found.get("Upgrade") == passed
    assert found.get("Connection") == ("Upgrade" if passed else None)
    assert "Upgrade" not in sent(fields)


def test_trailers():
    fields = [("TE", "trailers, gzip;q=0.5"), ("Trailer", "Digest"), ("Connection", "TE, x, upgrade"), ("Upgrade", "a")]
    found = sent(fields, call={"trailers": True})
    assert (found["TE"], found["Connection"], found.get("Trailer")) == ("trailers", "TE", None)
    assert sent(fields, call={"trailers": True, "upgrade": True})["Connection"] == "Upgrade, TE"
    assert not {"TE", "Trailer", "Connection"} & {name for name, _ in sent(fields)}
    found = sent(fields, chunked=True)
    assert (found.get("TE"), found["Trailer"], found.get("Connection")) == (None, "Digest", None)


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (["Digest, X-Sum"], "Digest, X-Sum"),
        ([" digest ,", "", "X-Sum"], "digest, X-Sum"),
        (["X-Forwarded-For, Forwarded, X_Sum, Expect, TE, Proxy-Authorization, X-Named, Host"], None),
        (["a b, \u00e9, "], None),
    ],
)
def test_what_is_announced_is_what_will_pass(said, passed):
    fields = [("Connection", "X-Named, close"), *(("Trailer", value) for value in said)]
    assert sent(fields, chunked=True).get("Trailer") == passed
    assert "Trailer" not in sent(fields)


def test_names_are_remembered_within_bounds():
    proxy = forwarder()
    for number in range(3 * MAX_NAMES):
        fields = [(f"X-{number}", "1"), ("X" * (MAX_NAME + 1), "2"), ("X-Forwarded-A", "3")]
        lines = proxy.request_lines(head_of(fields), CLIENT, CLIENT, "http", b"up").splitlines(keepends=True)
        assert lines[1:3] == [b"X-%d: 1\r\n" % number, b"X" * (MAX_NAME + 1) + b": 2\r\n"]
        assert len(lines) == 7
        assert len(proxy._passes_from_others) <= MAX_NAMES
    assert max(map(len, proxy._passes_from_others)) <= MAX_NAME


NAMES = st.sampled_from(
    ["A", "Connection", "TE", "Upgrade", "Via", "X-Forwarded-For", "X_Forwarded_For", "Forwarded", "X-Real-IP", "Host"]
)
VALUES = st.text(st.sampled_from('aA,;=":. []1-_/'), max_size=20) | st.sampled_from(
    ["upgrade", "a", "x-forwarded-for, via", "10.0.0.1, 10.0.0.2", "for=10.0.0.1", "websocket"]
)


@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=8),
    st.sampled_from([CLIENT, INNER, "", "::1"]),
    st.fixed_dictionaries(
        {name: st.booleans() for name in ("preserve_host", "x_forwarded", "forwarded", "allow_underscores")}
    ),
    st.fixed_dictionaries({"upgrade": st.booleans(), "trailers": st.booleans()}),
)
def test_whatever_comes_ours_is_said_once(fields, peer, options, call):
    found = sent(fields, peer=peer, trusted=TRUSTING, call=call, **options)
    assert len(found.get_all("Host")) == 1
    assert found.get_all("Via")[-1] == "1.1 greensock (i7)"
    assert len(found.get_all("Connection")) <= 1
    if peer in (CLIENT, "::1"):
        assert found.get_all("X-Forwarded-For") == ([peer] if options["x_forwarded"] else [])
        assert not found.get_all("X-Real-IP")
        assert not found.get_all("X_Forwarded_For")
        assert len(found.get_all("Forwarded")) == options["forwarded"]
    Headers(found.raw)  # nothing in it splits the message


# -- what is sent to the client


def answered(fields, trailers=False, version="1.1", **options) -> list[tuple[bytes, bytes]]:
    head = ResponseHead(200, b"OK", version, Headers(fields), None, False, True, False)
    proxy = forwarder(**options)
    pairs = proxy.response_pairs(head, trailers=trailers)
    assert proxy.response_lines(head, trailers) == b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    return pairs


def test_fields_of_an_answer():
    fields = [
        ("Date", "d"),
        ("Server", "s"),
        ("content-length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close, X-Hop, Set-Cookie, Date2"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Upgrade", "h2,h2c"),
        ("Set-Cookie", "a=b"),
        ("Set-Cookie", "c=d"),
        ("X_Y", "z"),
        ("Trailer", "Digest"),
    ]
    kept = [(b"Date", b"d"), (b"Server", b"s"), (b"Set-Cookie", b"a=b"), (b"Set-Cookie", b"c=d"), (b"X_Y", b"z")]
    assert answered(fields) == kept
    assert answered(fields, trailers=True) == [*kept, (b"Trailer", b"Digest")]
    assert answered([], trailers=True) == []
    fields = [("Connection", "X-Named"), ("Trailer", "Digest, X-Named, Content-Length"), ("trailer", "X_Sum")]
    assert answered(fields, trailers=True) == [(b"Trailer", b"Digest, X_Sum")]
    assert answered([fields[0], ("Trailer", "X-Named")], trailers=True) == []


def test_via_of_an_answer():
    assert answered([("Via", "1.1 a")], version="1.0", via_response=True) == [
        (b"Via", b"1.1 a"),
        (b"Via", b"1.0 greensock"),
    ]
    assert answered([("Via", "1.1 a")]) == [(b"Via", b"1.1 a")]
    assert answered([], via_response=True, via="") == []


@pytest.mark.parametrize(("via", "name"), [("edge", "edge"), ("", "greensock"), ("9to5", '"9to5"')])
def test_proxy_status(via, name):
    assert forwarder(via=via, proxy_status=True).proxy_status("dns_error") == f"{name}; error=dns_error".encode()
    assert forwarder(via=via).proxy_status("dns_error") is None
