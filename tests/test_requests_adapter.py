"""``RequestsAdapter``: what programs do with a session of requests, beside requests' own adapter."""

from __future__ import annotations

import gzip
import io
import pickle
import threading

import gevent
import pytest
from conftest import PATIENCE
from test_http_session import Proxy, Site, squeezed
from tls_peers import authority, issued, server_tls

requests = pytest.importorskip("requests")

from greensock import Server
from greensock.http import HTTPServer, RequestsAdapter, Response, Retries
from greensock.http.client.http_client import ClientKeywords
from greensock.http.client.requests_adapter import REFUSED, AdapterKeywords


@pytest.fixture
def mounted():
    """Make sessions, with our adapter or requests' own; the machine's environment is not looked at."""
    made = []

    def make(adapter=None, **options):
        session = requests.Session()
        session.trust_env = False
        made.append(session)
        ours = RequestsAdapter(**options) if adapter is None else adapter
        session.mount("http://", ours)
        session.mount("https://", ours)
        return session

    yield make
    for session in made:
        session.close()


def seen(response):
    """Return what a program sees of an answer that depends on the request and the server alone."""
    return (
        response.status_code,
        response.reason,
        response.url,
        response.encoding,
        {name: value for name, value in response.headers.items() if name.lower() not in ("date", "content-length")},
        [each.status_code for each in response.history],
        dict(response.cookies),
        len(response.content) > 0,
    )


REQUESTS = [
    ("GET", "/page?a=b%20c", {}),
    ("GET", "/page", {"params": {"q": ["a b", 2]}, "headers": {"X-Mine": "y"}, "auth": ("me", "s\u00e4cret")}),
    ("HEAD", "/page", {}),
    ("POST", "/page", {"data": {"a": "1"}}),
    ("POST", "/page", {"json": {"a": 1}}),
    ("POST", "/page", {"data": b"x" * 200_000}),
    ("POST", "/page", {"data": "t\u00e4xt"}),
    ("PUT", "/page", {"files": {"file": ("a.txt", b"content")}, "data": {"b": "2"}}),
    ("DELETE", "/page", {}),
    ("OPTIONS", "/page", {}),
    ("PATCH", "/page", {"data": ""}),
    ("GET", "/to?status=302&url=/page", {}),
    ("POST", "/to?status=303&url=/page", {"data": b"x"}),
    ("PUT", "/to?status=307&url=/page", {"data": b"again"}),
    ("GET", "/to?status=404&body=why", {}),
    ("GET", "/set?a=1&b=2", {}),
    ("GET", "/encoded", {}),
    ("GET", "/typed", {}),
]


@pytest.mark.parametrize(("method", "path", "options"), REQUESTS)
def test_as_with_its_own_adapter(serve, mounted, method, path, options):
    site = serve(Site)
    site.encoded = {"coding": "gzip", "body": squeezed("gzip", b"text " * 1000), "type": "text/plain; charset=koi8-r"}
    if path == "/typed":
        site.encoded["body"] = "\u0416".encode("koi8-r")
    found = []
    for session in (mounted(requests.adapters.HTTPAdapter()), mounted()):
        response = session.request(method, site.url + path, timeout=PATIENCE, **options)
        body = response.text
        told = response.json() if body.startswith("{") else {}
        for name in ("content-type", "connection", "accept"):  # a boundary by chance, and what frames a message
            told.pop(name, None)
        if told.get("content-length") == "0":  # of methods that need none we send none
            told.pop("content-length")
        if "files" in options:
            told.pop("body")
        found.append((seen(response), told or body))
    assert found[1] == found[0]


def test_bodies_that_stream(serve, mounted, tmp_path):
    session, site = mounted(), serve(Site)
    (tmp_path / "file").write_bytes(b"f" * 100_000)
    with (tmp_path / "file").open("rb") as file:
        for body, sent in (
            (file, "f" * 100_000),
            (io.BytesIO(b"memory"), "memory"),
            ((piece for piece in (b"one", "two")), "onetwo"),
        ):
            assert session.post(f"{site.url}/", data=body, timeout=PATIENCE).json()["body"] == sent
            again = f"{site.url}/to?status=307&url=/here"
            if hasattr(body, "seek"):
                body.seek(0)
                assert session.post(again, data=body, timeout=PATIENCE).json()["body"] == sent
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    site.encoded = {"coding": "gzip", "body": gzip.compress(text)}
    with session.get(f"{site.url}/encoded", stream=True) as response:
        assert next(response.iter_content(5)) == text[:5]
        assert response.raw.tell() > 0
    assert b"\n".join(session.get(f"{site.url}/encoded", stream=True).iter_lines()) + b"\n" == text
    raw = session.get(f"{site.url}/encoded", stream=True).raw
    assert raw.read(10) + raw.read() == site.encoded["body"]
    assert raw.read(decode_content=True) == b""
    raw.close()
    assert site.statistics().accepted <= 3, "connections are kept, but for one of which not all was read"


class Odd(Server):
    """Answers oddly, each path in its way."""

    def handle(self, conn):
        while (head := conn.read_until(b"\r\n\r\n")) is not None:
            path = head.split()[1]
            if path == b"/silent":
                gevent.sleep(PATIENCE)
            elif path == b"/cut":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx", close=True)
                return
            elif path == b"/chunk":
                conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
            elif path == b"/head":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Le", close=True)
                return
            elif path == b"/nothing":
                return
            elif path == b"/lengths":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")
            elif path == b"/coding":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Encoding: gzip\r\n\r\nno gzip")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/silent", "ReadTimeout"),
        ("/cut", "ChunkedEncodingError"),
        ("/chunk", "ChunkedEncodingError"),
        ("/head", "ChunkedEncodingError"),
        ("/nothing", "ConnectionError"),
        ("/lengths", "InvalidHeader"),
        ("/coding", "ContentDecodingError"),
    ],
)
def test_what_goes_wrong_is_requests_own(serve, mounted, path, kind):
    server = serve(Odd)
    patience = 0.1 if path == "/silent" else PATIENCE
    with pytest.raises(getattr(requests.exceptions, kind)):
        mounted().get(f"http://127.0.0.1:{server.server_port}{path}", timeout=(PATIENCE, patience))


@pytest.mark.parametrize(
    ("url", "options", "kind"),
    [
        ("http://127.0.0.1:1/", {}, "ConnectionError"),
        ("http://127.0.0.1:1/", {"headers": {"X": "a\r\nb"}}, "InvalidHeader"),
        ("http://127.0.0.1:1/", {"proxies": {"http": "http://127.0.0.1:1"}}, "ProxyError"),
        ("http://127.0.0.1:1/", {"proxies": {"http": "socks4://127.0.0.1:1"}}, "InvalidSchema"),
        ("http://127.0.0.1:1/", {"proxies": {"http": "http:///x"}}, "InvalidProxyURL"),
    ],
)
def test_what_cannot_be_asked(mounted, url, options, kind):
    with pytest.raises(getattr(requests.exceptions, kind)):
        mounted().get(url, **options)


def test_timeouts_that_are_none(mounted):
    for timeout, said in (("foo", "must be an int, float or None"), ((1, 2, 3), "connect, read"), (0, "less than or")):
        with pytest.raises(ValueError, match=said):
            mounted().get("http://127.0.0.1:1/", timeout=timeout)
    with pytest.raises(TypeError, match="proxies: that is for requests to say"):
        RequestsAdapter(proxies="environment")
    with pytest.raises(ValueError, match="max_idle=-1"):
        RequestsAdapter(max_idle=-1)


def test_tls(serve, mounted, tmp_path):
    site = serve(Site, tls=server_tls())
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    session = mounted()
    with pytest.raises(requests.exceptions.SSLError):
        session.get(f"{site.url}/")
    assert session.get(f"{site.url}/", verify=False).json()["target"] == "/"
    assert session.get(f"{site.url}/", verify=str(tmp_path / "ca.pem")).json()["target"] == "/"
    for options, said in (({"verify": "/nowhere"}, "CA certificate bundle"), ({"cert": "/nowhere"}, "TLS certificate")):
        with pytest.raises(OSError, match=f"Could not find .*{said}"):
            session.get(f"{site.url}/", **options)
    leaf = issued("somebody")
    (tmp_path / "mine.pem").write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    known = serve(Site, tls=server_tls(authorities=authority().cert_pem.bytes(), client_certificates="required"))
    options = {"verify": str(tmp_path / "ca.pem"), "cert": str(tmp_path / "mine.pem")}
    assert session.get(f"{known.url}/", **options).json()["target"] == "/"


def test_proxies(serve, mounted):
    proxy, site = serve(Proxy), serve(Site, tls=server_tls())
    session = mounted()
    session.proxies = {"all": f"http://me:pw@127.0.0.1:{proxy.server_port}"}
    assert session.get("http://nowhere.invalid/page").text == "through the proxy to http://nowhere.invalid/page"
    assert session.get(f"{site.url}/page", verify=False).json()["target"] == "/page"
    assert all("Proxy-Authorization: Basic bWU6cHc=" in lines for lines in proxy.asked)
    assert [lines[0].split()[0] for lines in proxy.asked] == ["GET", "CONNECT"]


def test_retries_pickles_and_threads(serve, mounted):
    site = serve(Site)
    policy = Retries(3, pause=0.0)
    assert mounted(max_retries=policy).get(f"{site.url}/flaky?times=3").status_code == 200
    assert mounted(max_retries=3).get(f"{site.url}/flaky?times=9").status_code == 503, "a number is for connecting"
    odd = serve(Odd)
    for path, kind in (("silent", requests.ReadTimeout), ("nothing", requests.ConnectionError)):
        before = odd.statistics().accepted
        with pytest.raises(kind):
            mounted(max_retries=2).get(f"http://127.0.0.1:{odd.server_port}/{path}", timeout=(PATIENCE, 0.3))
        assert odd.statistics().accepted == before + 1, "what was sent is not sent again"
    copied = pickle.loads(pickle.dumps(RequestsAdapter(pool_maxsize=5, max_retries=policy)))
    assert copied.max_retries == policy
    session = mounted(copied)
    assert session.get(f"{site.url}/page").json()["target"] == "/page"
    found = []
    real = threading.Thread(target=lambda: found.append(session.get(f"{site.url}/page").status_code))
    real.start()
    real.join()
    assert found == [200]


def test_what_came_is_read_as_it_comes(serve, mounted):
    """Lines of a stream that does not end are there when they are sent."""

    class Streaming(HTTPServer):
        def handle_request(self, request):
            def lines():
                yield b"first\n"
                gevent.sleep(PATIENCE)

            return Response(lines())

    server = serve(Streaming)
    with mounted().get(f"http://127.0.0.1:{server.server_port}/", stream=True) as response:
        assert next(response.iter_lines(chunk_size=1)) == b"first"


def test_its_keywords_are_those_of_a_client_that_requests_does_not_decide():
    assert {*AdapterKeywords.__annotations__, *REFUSED} == {*ClientKeywords.__annotations__}
