"""The sticky cookie: what is written is read again, and nothing else is."""

from __future__ import annotations

from http.cookies import SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensock.http import Headers
from greensock.proxy import StickyCookie
from greensock.proxy.upstream.sticky import Sticky

SECRET = b"0123456789abcdef"
SERVER = "10.0.0.1:9000"
SERVERS = [SERVER, "10.0.0.2:9000", "/run/app.sock", "\udcff"]
NOW = 1_800_000_000.5
#: What a release must not change.
VALUE = b"sid=4fc018b95cd07b02.6b49d23c.0842cc191a8adc977b9f94b07e75c866"


def sticky(**options):
    return Sticky(StickyCookie(**{"name": "sid", "secret": SECRET, **options}), SERVERS)


def written(mine, server=SERVER, now=NOW):
    """Return what a client sends after it got the cookie."""
    return mine.write(server, now).partition(b";")[0]


def read(mine, *cookies, now=NOW):
    return mine.read(Headers([("Cookie", cookie) for cookie in cookies]), now)


@pytest.mark.parametrize("options", [{}, {"ttl": 60}, {"name": "__Host-x", "secure": True}, {"secret": b"x" * 1000}])
def test_what_is_written_is_read(options):
    mine = sticky(**options)
    assert read(mine, written(mine)) == SERVER
    assert read(mine, b"a=b; " + written(mine) + b"; c=d") == SERVER
    assert read(mine, b"a=b", written(mine)) == SERVER
    assert mine.read(Headers(), NOW) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, b"; Path=/; HttpOnly; SameSite=Lax"),
        ({"ttl": 60}, b"; Path=/; HttpOnly; SameSite=Lax; Max-Age=60"),
        (
            {"path": "/a", "domain": "example.org", "secure": True, "same_site": "None"},
            b"; Path=/a; HttpOnly; SameSite=None; Domain=example.org; Secure",
        ),
    ],
)
def test_the_attributes(options, expected):
    assert sticky(**options).write(SERVER, NOW).partition(b";")[2] == expected[1:]


def test_the_standard_library_can_read_it():
    (cookie,) = SimpleCookie(sticky(ttl=60).write(SERVER, NOW).decode()).values()
    assert cookie["max-age"] == "60"
    assert cookie.value.encode() == VALUE.removeprefix(b"sid=")


def test_the_value_is_the_same_in_each_release():
    assert sticky(ttl=60).write(SERVER, NOW).partition(b";")[0] == VALUE


def test_each_server_is_found_again():
    mine = sticky()
    assert [read(mine, written(mine, server)) for server in SERVERS] == SERVERS
    assert len({written(mine, server) for server in SERVERS}) == len(SERVERS)


def test_a_server_is_not_named():
    assert b"10.0" not in written(sticky())
    one, other = sticky(), sticky(secret=SECRET[::-1])
    assert written(one).split(b".")[0] != written(other).split(b".")[0]


def test_a_server_that_is_gone():
    cookie = StickyCookie("sid", SECRET)
    assert read(Sticky(cookie, SERVERS[1:]), written(Sticky(cookie, SERVERS))) is None
    assert read(Sticky(cookie, []), written(Sticky(cookie, SERVERS))) is None
    with pytest.raises(KeyError):
        Sticky(cookie, []).write(SERVER, NOW)


@pytest.mark.parametrize(
    ("after", "holds"),
    [(0, True), (59, True), (59.4, True), (59.5, False), (59.9, False), (60, False), (1e9, False), (-10, True)],
)
def test_expiry(after, holds):
    mine = sticky(ttl=60)
    assert (read(mine, written(mine), now=NOW + after) is not None) == holds


def test_without_ttl_it_never_expires():
    mine = sticky()
    assert read(mine, written(mine), now=1e12)


def test_every_change_of_the_value_is_seen():
    mine = sticky(ttl=60)
    good = written(mine)
    for place in range(len(b"sid="), len(good)):
        for byte in (good[place] ^ 1, good[place] ^ 4, ord("0"), ord("."), ord("A")):
            if byte != good[place] and byte != ord(";"):
                changed = good[:place] + bytes([byte]) + good[place + 1 :]
                assert read(mine, changed) is None, changed
    for cut in range(len(b"sid="), len(good)):
        assert read(mine, good[:cut]) is None
    assert read(mine, good + b"0") is None


@pytest.mark.parametrize("options", [{"secret": SECRET[::-1]}, {"name": "other"}])
def test_what_others_wrote_is_not_read(options):
    value = written(sticky(**options)).partition(b"=")[2]
    mine = sticky()
    assert read(mine, b"sid=" + value) is None


def test_the_genuine_one_of_several():
    mine = sticky()
    forged = b"sid=" + b"0" * 16 + b".0." + b"0" * 32
    assert read(mine, b"; ".join([forged] * 3 + [written(mine)])) == SERVER
    assert read(mine, b"; ".join([forged] * 4 + [written(mine)])) is None, "only so many are looked at"


def test_old_secrets():
    before, other = sticky(), sticky(secret=b"another secret ..")
    mine = sticky(secret=b"a fresh secret ...", old_secrets=(b"another secret ..", SECRET))
    assert read(mine, written(before)) == SERVER
    assert read(mine, written(other)) == SERVER
    assert read(before, written(mine)) is None


def test_the_secret_is_not_shown():
    assert "0123" not in repr(StickyCookie("sid", SECRET, old_secrets=(SECRET,)))
    for options in ({"secret": b"0123"}, {"old_secrets": (b"0123",)}):
        with pytest.raises(ValueError) as caught:
            sticky(**options)
        assert "0123" not in str(caught.value)


@given(st.binary(max_size=80))
def test_whatever_comes(value):
    headers = Headers.of_raw([(b"Cookie", b"sid=" + value)])
    assert sticky().read(headers, NOW) is None


@given(st.from_regex(rb"[0-9a-f]{16}\.[0-9a-f]{1,14}\.[0-9a-f]{32}", fullmatch=True))
def test_whatever_comes_in_the_right_form(value):
    assert read(sticky(), b"sid=" + value) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": ""}, "name='': a token (letters, digits, hyphens) expected"),
        ({"name": "a b"}, "name='a b': a token (letters, digits, hyphens) expected"),
        ({"name": "a=b"}, "name='a=b': a token (letters, digits, hyphens) expected"),
        ({"secret": b"x" * 15}, "secret=...: bytes, at least 16, expected"),
        ({"secret": "x" * 16}, "secret=...: bytes, at least 16, expected"),
        ({"ttl": 0}, "ttl=0: whole seconds from 1 to 34560000, or None expected"),
        ({"ttl": 34560001}, "ttl=34560001: whole seconds from 1 to 34560000, or None expected"),
        ({"ttl": 1.5}, "ttl=1.5: whole seconds from 1 to 34560000, or None expected"),
        ({"path": "x"}, "path='x': a path that begins with /, without ; expected"),
        ({"path": "/;x"}, "path='/;x': a path that begins with /, without ; expected"),
        ({"path": "/\r\n"}, "path='/\\r\\n': a path that begins with /, without ; expected"),
        ({"domain": "a;b"}, "domain='a;b': the name of a domain, or None expected"),
        ({"domain": ""}, "domain='': the name of a domain, or None expected"),
        ({"secure": 1}, "secure=1: True or False expected"),
        ({"same_site": "lax"}, 'same_site=\'lax\': "Lax", "Strict" or "None" expected'),
        ({"same_site": "None"}, "secure=False: True for a cookie __Secure-, __Host- or same_site None expected"),
        ({"name": "__Secure-a"}, "secure=False: True for a cookie __Secure-, __Host- or same_site None expected"),
        (
            {"name": "__Host-a", "secure": True, "path": "/a"},
            "name='__Host-a': a path of / and no domain for a cookie __Host- expected",
        ),
        (
            {"old_secrets": (SECRET,) * 9},
            "old_secrets=...: a tuple of up to 8 secrets, each bytes, at least 16, expected",
        ),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError) as caught:
        sticky(**options)
    assert str(caught.value) == text


def test_options_at_their_limits():
    sticky(secret=b"x" * 16, ttl=1, old_secrets=(SECRET,) * 8)
    sticky(ttl=34560000)
