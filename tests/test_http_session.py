"""What a client does beyond one request: redirections, cookies, credentials, codings, forms, proxies, retries."""

from __future__ import annotations

import gzip
import http.cookiejar
import io
import json
import zlib
from collections import Counter

import gevent
import pytest
from conftest import PATIENCE
from tls_peers import client_tls, server_tls

import greensock
from greensock import ConnectFailed, LimitExceeded, Server, start_tls
from greensock.http import (
    BadResponse,
    Bearer,
    ConnectTimeout,
    FileBody,
    Headers,
    HTTPClient,
    HTTPServer,
    HTTPSession,
    Reason,
    Response,
    Retries,
    StatusError,
    TotalTimeout,
)
from greensock.http.client.sent_forms import Multipart

brotli = pytest.importorskip("brotli")


class Site(HTTPServer):
    """Tells what it was asked, redirects, sets cookies, encodes, and fails now and then."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = Counter()
        self.encoded = {}

    @property
    def url(self):
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.server_port}"

    def handle_request(self, request):
        self.asked[request.path] += 1
        query = request.query_fields
        if request.path == "/to":
            request.body.read_all()
            headers = {"Location": query["url"]} if query.get("url") else {}
            return Response(query.get("body", ""), int(query["status"]), headers=headers)
        if request.path == "/loop":
            return Response(status=302, headers={"Location": "/loop"})
        if request.path == "/set":
            response = Response("set")
            for name, value in request.query_fields.items():
                response.headers.add("Set-Cookie", f"{name}={value}; Path=/")
            return response
        if request.path == "/encoded":
            return Response(self.encoded["body"], headers={"Content-Encoding": self.encoded["coding"]})
        if request.path == "/typed":
            return Response(self.encoded["body"], headers={"Content-Type": self.encoded["type"]})
        if request.path == "/flaky" and self.asked["/flaky"] < int(query["times"]):
            request.body.read_all()
            return Response("not yet", int(query.get("status", 503)), headers={"Retry-After": query.get("after", "0")})
        said = {name.lower(): value for name, value in request.headers}
        body = request.body.read_all(10_000_000).decode("latin-1")
        return Response.json({"method": request.method, "target": request.target.decode(), "body": body, **said})


@pytest.fixture
def site(serve):
    return serve(Site)


@pytest.fixture
def session():
    """Make sessions, which are closed after the test; the environment of the machine is not looked at."""
    made = []

    def make(**options):
        made.append(HTTPSession(**{"proxies": None, "timeouts": greensock.http.Timeouts(total=PATIENCE), **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


# -- redirections


@pytest.mark.parametrize(
    ("method", "status", "then", "body"),
    [
        ("GET", 301, "GET", ""),
        ("POST", 301, "GET", ""),
        ("POST", 302, "GET", ""),
        ("PUT", 302, "PUT", "sent"),
        ("POST", 303, "GET", ""),
        ("PUT", 303, "GET", ""),
        ("POST", 307, "POST", "sent"),
        ("PATCH", 308, "PATCH", "sent"),
    ],
)
def test_the_method_behind_a_redirection(site, session, method, status, then, body):
    sent = None if method == "GET" else b"sent"
    answer = session().request(method, f"{site.url}/to?status={status}&url=/here?a=b%26", body=sent)
    found = answer.json()
    assert (found["method"], found["body"], found["target"]) == (then, body, "/here?a=b&")
    assert ("content-length" in found) is bool(body)
    assert answer.url == f"{site.url}/here?a=b&"
    assert [(each.status, each.is_ended) for each in answer.history] == [(status, True)]


def test_head_stays_head(site, session):
    answer = session().head(f"{site.url}/to?status=303&url=/here")
    assert (answer.status, answer.read_all()) == (200, b"")
    assert site.asked == {"/to": 1, "/here": 1}


def test_what_is_not_followed(site, session):
    mine = session()
    plain = HTTPClient()
    to = f"{site.url}/to?status=302&url=/here"
    for answer in (
        plain.get(to),
        plain.request("GET", to, timeout=PATIENCE),
        mine.get(to, max_redirects=0),
        mine.get(f"{site.url}/to?status=302"),
        mine.get(f"{site.url}/to?status=304&url=/here"),
        mine.post(f"{site.url}/to?status=307&url=/here", (piece for piece in [b"once"])),
    ):
        assert (answer.status, answer.history) in {(302, ()), (304, ()), (307, ())}
        answer.close()
    assert site.asked["/here"] == 0
    assert plain.get(to, max_redirects=1).json()["method"] == "GET"
    plain.close()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/loop", Reason.TOO_MANY_REDIRECTS),
        ("ftp://127.0.0.1/", Reason.LOCATION),
        ("file:///etc/passwd", Reason.LOCATION),
        ("http%2Bunix://%252Frun%252Fdocker.sock/", Reason.LOCATION),
        ("http://user:password@127.0.0.1/", Reason.LOCATION),
        ("http://127.0.0.1:99999/", Reason.LOCATION),
    ],
)
def test_where_a_server_cannot_lead(site, session, location, reason):
    with pytest.raises(BadResponse) as caught:
        session(max_redirects=3).get(f"{site.url}/to?status=302&url={location}")
    assert caught.value.reason is reason
    assert site.asked["/loop"] in (0, 3)


def test_credentials_stay_at_their_origin(serve, site, session):
    other = serve(Site)
    given = {"Authorization": "Basic x", "Cookie": "a=b", "X-Mine": "yes", "Host": "one.example"}
    shown = ("authorization", "cookie")
    for options in (
        {"headers": given},
        {"headers": {"X-Mine": "yes"}, "auth": ("me", "secret"), "cookies": {"a": "b"}},
    ):
        found = session().get(f"{site.url}/to?status=307&url=/here", **options).json()
        assert all(name in found for name in shown)
        found = session().get(f"{site.url}/to?status=307&url={other.url}/here", **options).json()
        assert not any(name in found for name in shown)
        assert (found["x-mine"], found["host"]) == ("yes", other.url.removeprefix("http://"))
        back = f"{other.url}/to?status=307%26url={site.url}/here"
        found = session().get(f"{site.url}/to?status=307&url={back}", **options).json()
        assert not any(name in found for name in shown), "and do not come back"
    for options in ({"auth": ("me", "secret")}, {"headers": {**given, "Authorization": "Basic x"}}):
        mine = session(**options)
        assert "authorization" in mine.get(f"{site.url}/to?status=307&url=/here").json()
        found = mine.get(f"{site.url}/to?status=307&url={other.url}/here").json()
        assert not any(name in found for name in shown)
        assert found["host"] == other.url.removeprefix("http://")
    assert mine.get(f"{site.url}/here").json()["host"] == "one.example", "once, and the program's own"


def test_a_file_is_sent_once_more(site, session, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    for make in (lambda file: file, FileBody):
        with (tmp_path / "file").open("rb") as file:
            body = make(file)
            found = session().post(f"{site.url}/to?status=307&url=/here", body).json()
            assert found["body"] == "x" * 100_000
            assert file.closed is (make is FileBody)


def test_the_total_time_is_for_all_of_it(site, session):
    mine = session(timeouts=greensock.http.Timeouts(total=0.3), max_redirects=1_000_000)
    with pytest.raises(TotalTimeout):
        mine.get(f"{site.url}/loop")


def test_a_redirection_on_a_unix_socket_stays_on_it(serve, session, tmp_path):
    path = str(tmp_path / "socket")
    server = serve(Site, path)
    at = "http+unix://" + path.replace("/", "%2F")
    answer = session().get(f"{at}/to?status=302&url=../here", headers={"Cookie": "a=b"})
    assert (answer.json()["target"], answer.url, answer.json()["cookie"]) == ("/here", f"{at}/here", "a=b")
    assert server.asked["/here"] == 1


# -- cookies


def test_cookies(serve, site, session):
    mine, other = session(), serve(Site)
    assert "cookie" not in mine.get(f"{site.url}/").json()
    mine.get(f"{site.url}/set?a=1&b=2").close()
    assert mine.get(f"{site.url}/").json()["cookie"] == "a=1; b=2"
    assert mine.get(f"{site.url}/", cookies={"c": "3"}).json()["cookie"] == "a=1; b=2; c=3"
    assert mine.get(f"{site.url}/", headers={"Cookie": "own"}).json()["cookie"] == "own"
    assert mine.get(f"{site.url}/to?status=302&url=/set?c%3D3").status == 200
    assert "c=3" in mine.get(f"{site.url}/").json()["cookie"]
    assert "cookie" not in mine.get(f"{other.url.replace('127.0.0.1', 'localhost')}/").json()
    jar = http.cookiejar.CookieJar()
    session(cookies=jar).get(f"{site.url}/set?d=4").close()
    assert [(each.name, each.value) for each in jar] == [("d", "4")]
    assert HTTPClient.cookies is False
    with pytest.raises(ValueError, match="without ';'"):
        mine.get(f"{site.url}/", cookies={"c": "3; d=4"})


def test_a_cookie_of_the_clients_own_fields_is_the_only_one(site, session):
    mine = session(headers={"Cookie": "own"})
    mine.get(f"{site.url}/set?a=1").close()
    assert len(mine.cookies) == 1
    assert mine.get(f"{site.url}/", cookies={"b": "2"}).json()["cookie"] == "own"


@pytest.mark.parametrize(
    ("url", "domain", "is_kept"),
    [
        ("http://a.example.org/", "example.org", True),
        ("http://a.example.org/", "org", False),
        ("http://a.co.uk/", "co.uk", False),
        ("http://a.shop.co.uk/", "shop.co.uk", True),
        ("http://127.0.0.1/", "0.0.1", False),
        ("http://127.0.0.1/", "127.0.0.1", True),
        ("http://printer/", "local", False),
    ],
)
def test_for_which_domains_a_site_sets_cookies(session, url, domain, is_kept):
    from greensock.http.client.cookie_store import CookieStore

    store = CookieStore(session().cookies)
    store.take(Headers([("Set-Cookie", f"a=1; Domain={domain}")]), url)
    assert (store.field_for(url) == "a=1", store.is_empty) == (is_kept, not is_kept)


def test_cookies_are_bounded(site, session):
    mine = session()
    for start in range(0, 400, 40):
        query = "&".join(f"c{number}=x" for number in range(start, start + 40))
        mine.get(f"{site.url}/set?{query}").close()
    assert len(mine.cookies) == 180
    assert "c399" in {each.name for each in mine.cookies}
    mine.get(f"{site.url}/set?long={'x' * 5000}").close()
    assert "long" not in {each.name for each in mine.cookies}


# -- what is sent


@pytest.mark.parametrize(
    ("options", "body", "kind"),
    [
        ({"json": {"a": [1, None, "\u00e4"]}}, '{"a":[1,null,"\u00e4"]}', "application/json"),
        ({"json": []}, "[]", "application/json"),
        ({"json": 1, "headers": {"content-type": "application/x"}}, "1", "application/x"),
        ({"data": {"a": "1 2", "b": ["x", "y"], "c": None, "d": True}}, "a=1+2&b=x&b=y&d=true", "FORM"),
        ({"data": [("a", 1), ("a", "\u00e4")]}, "a=1&a=%C3%A4", "FORM"),
        ({"data": "a=1"}, "a=1", "FORM"),
        ({"data": b"bytes"}, "bytes", None),
        ({"data": io.BytesIO(b"file")}, "file", None),
        ({"data": [b"one", b"two"]}, "onetwo", None),
        ({"body": b"body"}, "body", None),
    ],
)
def test_what_is_sent(site, session, options, body, kind):
    found = session().request("POST", f"{site.url}/", **options).json()
    assert found["body"].encode("latin-1").decode() == body
    assert found.get("content-type") == (kind if kind != "FORM" else "application/x-www-form-urlencoded")


def test_a_form_with_files(site, session, tmp_path):
    (tmp_path / "report.txt").write_bytes(b"x" * 300_000)
    with (tmp_path / "report.txt").open("rb") as file:
        file.seek(100_000)
        files = {"report": file, 'odd"\r\nname': ("a.png", b"png"), "last": ("b", "text", "text/odd")}
        url = f"{site.url}/to?status=307&url=/here"
        found = session().post(url, data={"field": ["1", "2"]}, files=files).json()
        assert file.tell() == 100_000
    boundary = found["content-type"].removeprefix("multipart/form-data; boundary=")
    assert int(found["content-length"]) == len(found["body"])
    parts = found["body"].split(f"--{boundary}")
    assert (parts[0], parts[-1]) == ("", "--\r\n")
    assert [part.partition("\r\n\r\n")[0].split("\r\n")[1:] for part in parts[1:-1]] == [
        ['Content-Disposition: form-data; name="field"'],
        ['Content-Disposition: form-data; name="field"'],
        ['Content-Disposition: form-data; name="report"; filename="report.txt"', "Content-Type: text/plain"],
        ['Content-Disposition: form-data; name="odd%22%0D%0Aname"; filename="a.png"', "Content-Type: image/png"],
        ['Content-Disposition: form-data; name="last"; filename="b"', "Content-Type: text/odd"],
    ]
    assert [len(part.partition("\r\n\r\n")[2]) - 2 for part in parts[1:-1]] == [1, 1, 200_000, 3, 4]
    endless = session().post(f"{site.url}/", files={"a": ("a", (each for each in [b"1", b"2"]))}).json()
    assert (endless["transfer-encoding"], "\r\n\r\n12\r\n--" in endless["body"]) == ("chunked", True)


def test_a_file_that_shrinks_in_a_form_of_chunks(tmp_path):
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(1000))
    with path.open("rb") as file:
        form = Multipart((), {"file": file, "more": iter([b"of no length"])})
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="has shrunk"):
            list(form.pieces())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json": 1, "body": b"x"}, "body and json together"),
        ({"json": 1, "data": "x"}, "json and data and files together"),
        ({"json": float("nan")}, "not JSON compliant"),
        ({"data": {"a": 1}, "files": {"a": io.StringIO("x")}}, "binary mode"),
        ({"params": 5}, "params=int: a mapping"),
        ({"auth": "me"}, "auth: "),
        ({"auth": ("a:b", "c")}, "without a colon"),
        ({"max_redirects": -1}, "max_redirects=-1: a whole number"),
        ({"retries": -1}, "retries=-1: Retries"),
    ],
)
def test_what_cannot_be_sent(site, session, options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        session().request("POST", f"{site.url}/", **options)


def test_queries_bases_fields_and_credentials(site, session):
    mine = session(base_url=f"{site.url}/api/", headers={"X-Mine": "a", "User-Agent": "me"}, auth=("m\u00fc", "secret"))
    found = mine.get("/users?x=1#part", params={"q": ["a b", 2], "n": None}).json()
    assert (found["target"], found["x-mine"], found["user-agent"]) == ("/api/users?x=1&q=a+b&q=2", "a", "me")
    assert found["authorization"] == "Basic bcO8OnNlY3JldA=="
    assert mine.get("users", headers={"x-mine": "b"}, auth=Bearer("abc.def")).json()["x-mine"] == "b"
    assert mine.get("users", auth=Bearer("abc.def")).json()["authorization"] == "Bearer abc.def"
    assert mine.get("users", headers={"Authorization": "own"}).json()["authorization"] == "own"
    assert mine.get("").json()["target"] == "/api/"
    assert mine.get("?x=1").json()["target"] == "/api/?x=1"
    elsewhere = mine.get(site.url.replace("127.0.0.1", "localhost") + "/x").json()
    assert (elsewhere["target"], "authorization" in elsewhere) == ("/x", False), "the base's credentials are for it"
    assert session(auth=("a", "b")).get(f"{site.url}/").json()["authorization"] == "Basic YTpi"
    with pytest.raises(ValueError, match="printable"):
        Bearer("a\r\nX: y")


# -- what comes back


def squeezed(coding, data):
    for each in coding.split(", "):
        if each in ("gzip", "x-gzip"):
            data = gzip.compress(data, mtime=0)
        elif each == "deflate":
            data = zlib.compress(data)
        elif each == "raw":
            coder = zlib.compressobj(wbits=-15)
            data = coder.compress(data) + coder.flush()
        elif each == "br":
            data = brotli.compress(data, quality=1)
    return data


CODINGS = ["gzip", "x-gzip", "deflate", "br", "gzip, br", "identity, deflate"]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pieces", [False, True])
def test_codings_are_undone(site, session, coding, pieces):
    text = bytes(range(256)) * 2000 + b"the end"
    site.encoded = {"coding": coding, "body": squeezed(coding, text)}
    mine = session()
    if pieces:
        site.encoded["body"] = [site.encoded["body"][at : at + 7] for at in range(0, len(site.encoded["body"]), 7)]
    answer = mine.get(f"{site.url}/encoded")
    assert answer.headers["content-encoding"] == coding
    assert answer.read(10) == text[:10]
    assert b"".join(answer) == text[10:]
    assert (answer.is_ended, answer.read()) == (True, b"")
    assert mine.get(f"{site.url}/encoded").content == text
    plain = HTTPClient()
    whole = b"".join(site.encoded["body"]) if pieces else site.encoded["body"]
    assert plain.get(f"{site.url}/encoded").read_all() == whole
    plain.close()


def test_codings_at_their_edges(site, session):
    mine = session()
    for coding, body, expected in [
        ("gzip", gzip.compress(b"one") + gzip.compress(b"two"), b"onetwo"),
        ("gzip", gzip.compress(b"one") + b"\0" * 100, b"one"),
        ("deflate", squeezed("raw", b"without a frame"), b"without a frame"),
        ("gzip", b"", b""),
        ("br", b"", b""),
        ("zopfli", b"as it is", b"as it is"),
        ("gzip, zopfli", b"as it is", b"as it is"),
    ]:
        site.encoded = {"coding": coding, "body": body}
        assert mine.get(f"{site.url}/encoded").read_all() == expected, coding
    site.encoded = {"coding": "gzip", "body": b"no gzip"}
    assert mine.head(f"{site.url}/encoded").read_all() == b""
    said = mine.get(f"{site.url}/").json()["accept-encoding"].split(", ")
    assert {"gzip", "deflate", "br"} <= set(said) <= {"gzip", "deflate", "br", "zstd"}
    assert "accept-encoding" not in mine.get(f"{site.url}/", headers={"Range": "bytes=1-"}).json()
    assert mine.get(f"{site.url}/", headers={"Accept-Encoding": "identity"}).json()["accept-encoding"] == "identity"


def test_zstd(site, session):
    zstd = pytest.importorskip("backports.zstd")
    text = bytes(range(256)) * 2000
    site.encoded = {"coding": "zstd", "body": zstd.compress(text) + zstd.compress(b"more")}
    assert session().get(f"{site.url}/encoded").content == text + b"more"
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.checksum_flag: 1}
    coder = zstd.ZstdCompressor(options=options)
    site.encoded["body"] = coder.compress(text) + coder.flush()
    with pytest.raises(BadResponse):
        session().get(f"{site.url}/encoded").read_all()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, br"])
@pytest.mark.parametrize("body", ["cut", "broken"])
def test_what_is_not_what_it_says(site, session, coding, body):
    whole = squeezed(coding, bytes(range(256)) * 20)
    site.encoded = {"coding": coding, "body": whole[:-5] if body == "cut" else b"\xff" * 100 + whole}
    with pytest.raises(BadResponse) as caught:
        session().get(f"{site.url}/encoded").read_all()
    assert caught.value.reason is Reason.CONTENT_CODING


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, gzip"])
def test_a_bomb_is_refused(site, session, coding):
    """10 MB out of some bytes, or as much as there would be: no more than a piece of that is made."""
    site.encoded = {"coding": coding, "body": squeezed(coding, bytes(10_000_000))}
    mine = session(max_decoded=2_000_000)
    for read in (lambda answer: answer.content, lambda answer: answer.read_all(1 << 26), lambda answer: list(answer)):
        with pytest.raises(LimitExceeded) as caught:
            read(mine.get(f"{site.url}/encoded"))
        assert caught.value.limit == "max_decoded"
    answer = mine.get(f"{site.url}/encoded")
    with pytest.raises(LimitExceeded) as caught:
        answer.read_all()
    assert (caught.value.limit, caught.value.value) == ("max_bytes", 1 << 20)


def test_a_bomb_between_two_codings(site, session):
    """Empty members without end, squeezed: nothing comes of them, so that no bound of the whole is ever met."""
    site.encoded = {"coding": "gzip, gzip", "body": gzip.compress(gzip.compress(b"", mtime=0) * 100_000, mtime=0)}
    with pytest.raises(LimitExceeded, match="came between its codings"):
        session().get(f"{site.url}/encoded").read_all()


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/plain", "gr\u00fcn".encode(), "gr\u00fcn"),
        ("text/plain; charset=iso-8859-1", "gr\u00fcn".encode("latin-1"), "gr\u00fcn"),
        ('text/plain; Charset="KOI8-R"', "\u0416".encode("koi8-r"), "\u0416"),
        ("text/plain; charset=latin-1", "\ufeffgr\u00fcn".encode("utf-16-le"), "gr\u00fcn"),
        ("text/plain; charset=base64", b"YQ==", "YQ=="),
        ("text/plain; charset=no-such", b"a", "a"),
        ("text/html", b"<meta charset=cp1251>\xc6", "<meta charset=cp1251>\u0416"),
        ("text/xml", b'<?xml version="1.0" encoding="koi8-r"?>\xf6', '<?xml version="1.0" encoding="koi8-r"?>\u0416'),
        ("text/html", b"<meta charset=utf-16>a", "<meta charset=utf-16>a"),
        ("text/plain", b"a\xff", "a\ufffd"),
    ],
)
def test_text(site, session, kind, body, text):
    site.encoded = {"type": kind, "body": body}
    answer = session().get(f"{site.url}/typed")
    assert (answer.text, answer.text, answer.content) == (text, text, body)


def test_json_and_statuses(site, session):
    mine = session()
    site.encoded = {"type": "application/json", "body": b"[1, 2"}
    with pytest.raises(BadResponse, match="no JSON"):
        mine.get(f"{site.url}/typed").json()
    site.encoded["body"] = b"[1, 2]"
    answer = mine.get(f"{site.url}/typed").raise_for_status()
    assert (answer.json(), answer.is_success) == ([1, 2], True)
    half = mine.get(f"{site.url}/typed")
    half.read(1)
    with pytest.raises(RuntimeError, match="read before"):
        half.json()
    for status in (400, 503):
        with pytest.raises(StatusError, match=f"/to.*the server answered {status}") as caught:
            mine.get(f"{site.url}/to?status={status}&body=why").raise_for_status()
        assert (caught.value.status, caught.value.response.text) == (status, "why")
    assert mine.get(f"{site.url}/to?status=302").raise_for_status().is_success is False


# -- retries


def test_retries(site, session):
    mine = session(retries=Retries(3, pause=0.001))
    assert mine.get(f"{site.url}/flaky?times=3").json()["method"] == "GET"
    assert site.asked["/flaky"] == 3
    site.asked.clear()
    assert mine.put(f"{site.url}/flaky?times=2", b"once more").json()["body"] == "once more"
    for options in (
        {"retries": 0},
        {"retries": Retries(1, statuses=(502,))},
        {"body": iter([b"x"])},
        {"method": "POST"},
    ):
        site.asked.clear()
        method = options.pop("method", "PUT")
        answer = mine.request(method, f"{site.url}/flaky?times=9", **options)
        assert (answer.status, site.asked["/flaky"]) == (503, 1)
        answer.close()
    site.asked.clear()
    assert mine.get(f"{site.url}/flaky?times=9&after=3600").status == 503, "longer than max_pause"
    for no_date in ("Mon, 01 Jan 99999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 -99999999999999999999"):
        site.asked.clear()
        assert mine.get(f"{site.url}/flaky", params={"times": 2, "after": no_date}).status == 200
    site.asked["/flaky"] = 1
    assert mine.get(f"{site.url}/flaky?times=9&status=502").status == 502
    assert site.asked["/flaky"] == 5


def test_retries_of_what_never_got_there(session, serve):
    """Whatever the method is; and its time is bounded."""
    site = serve(Site)
    address = site.address
    site.stop(0)
    mine = session(retries=Retries(50, pause=0.01, max_pause=0.05))
    later = gevent.spawn_later(0.1, serve, Site, address)
    assert mine.post(f"http://127.0.0.1:{address[1]}/", b"body").json()["body"] == "body"
    later.get()
    dead = session(retries=Retries(1000, pause=10.0))
    with pytest.raises(ConnectFailed):
        dead.get("http://127.0.0.1:1/", timeout=0.2)


@pytest.mark.parametrize("said", [{"total": -1}, {"statuses": (200,)}, {"pause": -1.0}, {"max_pause": None}])
def test_policies_that_are_none(said):
    with pytest.raises(ValueError, match=f"{next(iter(said))}="):
        Retries(**said)


# -- proxies


class Proxy(Server):
    """Passes requests on: those with a whole URL, and tunnels. Writes down what it was asked."""

    refuses = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = []

    def handle(self, conn):
        while (head := conn.read_until(b"\r\n\r\n")) is not None:
            lines = head.decode().split("\r\n")
            self.asked.append(lines)
            method, target, _ = lines[0].split()
            if self.refuses:
                conn.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                continue
            if method == "CONNECT":
                with greensock.connect(target, timeout=PATIENCE) as other:
                    conn.send(b"HTTP/1.1 200 Established\r\nX-More: yes\r\n\r\n")
                    back = gevent.spawn(other.splice, conn)
                    conn.splice(other)
                    back.kill()
                return
            answer = f"through the proxy to {target}".encode()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


@pytest.fixture
def proxy(serve):
    return serve(Proxy)


def test_a_proxy_for_http(proxy, site, session):
    at = f"http://me:s%40cret@127.0.0.1:{proxy.server_port}"
    mine = session(proxies={"http": at, "no": "127.0.0.1, .example.org"})
    for _ in range(2):
        assert (
            mine.get("http://nowhere.invalid/page?x=1").text == "through the proxy to http://nowhere.invalid/page?x=1"
        )
    assert (
        mine.get("http://other.invalid:81/", headers={"X": "y"}).text == "through the proxy to http://other.invalid:81/"
    )
    assert mine.get(f"{site.url}/").json()["target"] == "/"
    assert proxy.statistics().accepted == 1
    assert {"Host: nowhere.invalid", "Proxy-Authorization: Basic bWU6c0BjcmV0"} <= set(proxy.asked[0])


def test_a_tunnel_for_https(serve, proxy, session):
    site = serve(Site, tls=server_tls())
    at = f"me:pw@127.0.0.1:{proxy.server_port}"
    mine = session(proxies={"all": at}, tls=client_tls())
    for _ in range(2):
        answer = mine.post(f"{site.url}/page", json={"a": 1}).json()
        assert (answer["target"], answer["body"], "proxy-authorization" in answer) == ("/page", '{"a":1}', False)
    assert [lines[0] for lines in proxy.asked] == [f"CONNECT 127.0.0.1:{site.server_port} HTTP/1.1"]
    assert "Proxy-Authorization: Basic bWU6cHc=" in proxy.asked[0]
    direct = mine.get("https://127.0.0.1:1/page", address=site.address)
    assert (direct.json()["target"], len(proxy.asked)) == ("/page", 1), "where the program says"
    proxy.refuses = True
    mine.close_idle()
    with pytest.raises(ConnectFailed, match=r"the proxy .* refused .*: 407 Proxy Authentication Required"):
        mine.get(f"{site.url}/page")
    with pytest.raises(ConnectFailed), session(proxies={"https": "127.0.0.1:1"}) as dead:
        dead.get(f"{site.url}/")


class Socks(Server):
    """A proxy of SOCKS 5; ``says`` is what it answers to a wish to connect."""

    says = 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = []

    def handle(self, conn):
        methods = conn.read_exactly(conn.read_exactly(2)[1])
        conn.send(b"\x05\x02" if 2 in methods else b"\x05\x00")
        if 2 in methods:
            name = conn.read_exactly(conn.read_exactly(2)[1])
            password = conn.read_exactly(conn.read_exactly(1)[0])
            conn.send(b"\x01\x00" if (name, password) == (b"me", b"s@cret") else b"\x01\x01")
        kind = conn.read_exactly(4)[3]
        length = {1: 4, 4: 16}.get(kind) or conn.read_exactly(1)[0]
        host, port = conn.read_exactly(length), int.from_bytes(conn.read_exactly(2), "big")
        self.asked.append((kind, host))
        conn.send(b"\x05%c\x00\x03\x04name\x00\x50" % self.says)
        if not self.says:
            with greensock.connect(("127.0.0.1", port), timeout=PATIENCE) as other:
                back = gevent.spawn(other.splice, conn)
                conn.splice(other)
                back.kill()


def test_socks(serve, session, site):
    proxy = serve(Socks)
    at = f"me:s%40cret@127.0.0.1:{proxy.server_port}"
    secure = serve(Site, tls=server_tls())
    for kind, name, seen in (
        ("socks5h", "localhost", (3, b"localhost")),
        ("socks5h", "127.0.0.1", (1, bytes([127, 0, 0, 1]))),
        ("socks5", "127.0.0.1", (1, bytes([127, 0, 0, 1]))),
    ):
        mine = session(proxies={"all": f"{kind}://{at}"}, tls=client_tls())
        for url in (site.url, secure.url):
            assert mine.get(f"{url}/page".replace("127.0.0.1", name)).json()["target"] == "/page"
        assert proxy.asked == [seen] * 2
        proxy.asked.clear()
    for credentials, says, words in (
        ("me:wrong@", 0, "name or password are wrong"),
        ("", 5, "connection refused"),
        ("", 99, "refused .*: 99"),
    ):
        proxy.says = says
        with pytest.raises(ConnectFailed, match=words):
            session(proxies={"http": f"socks5://{credentials}127.0.0.1:{proxy.server_port}"}).get(site.url)


class HostileProxy(Server):
    """Says ``said`` to whatever it hears, again and again if ``says_again``."""

    said, says_again = b"", False

    def handle(self, conn):
        conn.read_until(b"\r\n\r\n")
        conn.send(self.said)
        while self.says_again:
            gevent.sleep(INTERIM_PAUSE)
            conn.send(self.said)
        conn.read_until(b"\r\n\r\n")


INTERIM_PAUSE = 0.02


def test_what_a_hostile_proxy_says(serve, session):
    """Interim answers without end meet the time to connect; what comes behind its answer is not the server's."""
    proxy = serve(HostileProxy)
    at = {"all": f"127.0.0.1:{proxy.server_port}"}
    mine = session(proxies=at, timeouts=greensock.http.Timeouts(connect=0.3, total=None))
    proxy.said, proxy.says_again = b"HTTP/1.1 103 Wait\r\n\r\n", True
    with gevent.Timeout(PATIENCE), pytest.raises(ConnectTimeout):
        mine.get("https://nowhere.invalid/")
    proxy.said, proxy.says_again = b"HTTP/1.1 200 Established\r\n\r\nand more", False
    with pytest.raises(ConnectFailed, match="said more than its answer"):
        session(proxies=at).get("https://nowhere.invalid/")
    socks = serve(Socks)
    with pytest.raises(ConnectFailed, match="a name of more than 255 bytes"):
        session(proxies={"all": f"socks5h://127.0.0.1:{socks.server_port}"}).get(f"http://{'a.' * 200}invalid/")
    assert mine.statistics().used == 0


def test_the_environment(monkeypatch, proxy, site, session):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "localhost,10.0.0.0/8")
    assert HTTPSession.proxies == "environment"
    assert "through the proxy" in session(proxies="environment").get(f"{site.url}/").text
    assert session(proxies="environment").get(f"http://localhost:{site.server_port}/").json()["target"] == "/"
    plain = HTTPClient()
    assert plain.get(f"{site.url}/").json()["target"] == "/"
    plain.close()


@pytest.mark.parametrize(
    ("excepted", "host", "port", "direct"),
    [
        ("example.org", "example.org", 80, True),
        ("example.org", "www.example.org", 80, True),
        ("example.org", "notexample.org", 80, False),
        (".example.org", "www.example.org", 80, True),
        ("*.example.org", "www.example.org", 80, True),
        ("example.org:81", "example.org", 80, False),
        ("example.org:81", "example.org", 81, True),
        ("*", "a", 80, True),
        ("10.0.0.0/8", "10.2.3.4", 80, True),
        ("10.0.0.0/8", "11.2.3.4", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:81", "::1", 81, True),
        ("fe80::/10", "fe80::1", 80, True),
        ("0.0.1", "10.0.0.1", 80, False),
        ("", "a", 80, False),
    ],
)
def test_what_is_asked_directly(excepted, host, port, direct):
    from greensock.http.client.origin import Origin
    from greensock.http.client.proxy_choice import ProxyChoice

    choice = ProxyChoice({"http": "http://127.0.0.1:3128", "no": excepted})
    assert (choice.place_for(Origin("http", (host, port))) is None) is direct


@pytest.mark.parametrize(
    "given",
    [
        {"http": "socks4://a:1"},
        {"http": f"socks5://{'u' * 300}:secret@a"},
        {"ftp": "http://a:1"},
        "http://a:1",
        {"http": "http://u:secret@a:b"},
    ],
)
def test_what_is_no_proxy(given):
    with pytest.raises(ValueError, match="expected") as caught:
        HTTPClient(proxies=given)
    assert "secret" not in str(caught.value)


# -- TLS on a connection that began without


class Upgrading(Server):
    """Says something in plain text, and what was slipped in behind it."""

    def handle(self, conn):
        conn.read_line()
        conn.send(b"go ahead\nslipped in")
        conn.read_line()


def test_what_came_in_plain_text_is_not_taken_for_the_peers(serve):
    server = serve(Upgrading)
    with greensock.connect(server.address, timeout=PATIENCE) as conn:
        conn.send(b"STARTTLS\n")
        assert conn.read_line(timeout=PATIENCE) == b"go ahead"
        with pytest.raises(ValueError, match="10 bytes came in plain text"):
            start_tls(conn, timeout=PATIENCE)


def test_types_of_headers():
    client = HTTPClient(headers=Headers([("A", "b")]))
    assert json.dumps(dict(client.headers)) == '{"A": "b"}'
    client.close()
