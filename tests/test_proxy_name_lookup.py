"""Where names of servers lead: asked of a name server that is real, small, and told what to say."""

from __future__ import annotations

import logging
import socket
import threading

import gevent
import pytest
from conftest import wait_until
from gevent.event import Event
from proxies import Origin, gateway_to

from greensock.http import HTTPClient
from greensock.proxy import ReverseProxy, ServerOptions, UpstreamOptions
from greensock.proxy.options import name_server
from greensock.proxy.upstream import name_lookup, steward
from greensock.proxy.upstream.name_lookup import AFTER_FAILURE, EMPTY_FOR, LookupFailed, NameLookup, look_up
from greensock.proxy.upstream.server_specs import is_looked_up, specs_of

dns = pytest.importorskip("dns", reason="dnspython is not installed")

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class NameServer:
    """Says what ``records`` has for a name and a kind: lines of a zone; without any that there is none. ``failing``
    ones are answered SERVFAIL."""

    def __init__(self):
        self.records = {}
        self.ttl = 300
        self.failing = set()
        self.asked = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            data, peer = self._socket.recvfrom(4096)
            if data == b"stop":
                return
            self._socket.sendto(self.answer(dns.message.from_wire(data)).to_wire(), peer)

    def answer(self, query):
        answer = dns.message.make_response(query)
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        lines = self.records.get((name.rstrip("."), kind), [])
        if name.rstrip(".") in self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif lines:
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *lines))
        elif not any(known == name.rstrip(".") for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def stop(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"stop", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def names():
    server = NameServer()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("url", "is_it"),
    [
        ("http://app.internal:81", True),
        ("https://app.internal", True),
        ("http://localhost:81", False),
        ("http://app.localhost", False),
        ("http://127.0.0.1:81", False),
        ("http://[::1]:81", False),
        ("unix:/run/app.sock", False),
    ],
)
def test_what_is_looked_up(url, is_it):
    assert is_looked_up(ServerOptions(url)) is is_it


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("10.0.0.2", ("10.0.0.2", 53)),
        ("10.0.0.2:5353", ("10.0.0.2", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]:5353", ("::1", 5353)),
        ("[::1]", ("::1", 53)),
        ("name", None),
        ("10.0.0.2:", None),
        ("10.0.0.2:65536", None),
        ("10.0.0.2:0", None),
        (5, None),
    ],
)
def test_how_a_name_server_is_written(text, place):
    assert name_server(text) == place


def test_what_may_not_be(monkeypatch):
    server = ServerOptions("http://a")
    with pytest.raises(ValueError, match=r"^name_servers=\('a',\): a tuple of addresses"):
        UpstreamOptions("site", (server,), name_servers=("a",))
    with pytest.raises(ValueError, match=r"^resolve_every=0: "):
        UpstreamOptions("site", (server,), resolve_every=0)
    monkeypatch.setattr("greensock.proxy.options.has_dns", lambda: False)
    with pytest.raises(ValueError, match=r"^srv=True: dnspython expected to be there: pip install greensock\[dns\]$"):
        ServerOptions("http://a", srv=True)
    with pytest.raises(ValueError, match=r"^url='http://_http\._tcp\.a': dnspython expected"):
        ServerOptions("http://_http._tcp.a")
    with pytest.raises(ValueError, match=r"^name_servers="):
        UpstreamOptions("site", (server,), name_servers=("::1",))


def test_what_names_lead_to(names):
    names.records = {
        ("app", "A"): ["10.0.0.2", "10.0.0.1"],
        ("app", "AAAA"): ["fd00::1"],
        ("new", "AAAA"): ["fd00::1"],
        ("empty", "TXT"): ["nothing"],
        ("_http._tcp.app", "SRV"): ["20 0 81 app.", "10 5 80 new.", "10 0 80 app.", "10 1 80 gone."],
        ("_http._tcp.no", "SRV"): ["0 0 0 ."],
    }
    names.failing = {"ill"}

    def found(url, **options):
        return look_up(ServerOptions(url, **options), [names.address])[0]

    assert found("http://app:80") == [("10.0.0.1", 80, 1, False), ("10.0.0.2", 80, 1, False)]
    assert found("http://new:80") == [("fd00::1", 80, 1, False)]
    assert found("http://empty") == found("http://nowhere") == found("http://_http._tcp.no") == []
    services = [
        ("10.0.0.1", 80, 1, False),
        ("10.0.0.1", 81, 1, True),
        ("10.0.0.2", 80, 1, False),
        ("10.0.0.2", 81, 1, True),
        ("fd00::1", 80, 5, False),
    ]
    assert found("http://_http._tcp.app") == services
    assert ("_http._tcp.app.", "A") not in names.asked
    assert found("http://app", srv=True) == []
    assert ("app.", "SRV") in names.asked
    with pytest.raises(LookupFailed):
        found("http://ill")


@pytest.mark.parametrize("ttl", [7, 300])
def test_an_answer_holds_for_its_ttl(names, ttl):
    names.records, names.ttl = {("app", "A"): ["10.0.0.1"]}, ttl
    _, seconds = look_up(ServerOptions("http://app"), [names.address])
    assert ttl - 2 < seconds <= ttl


def test_without_dns_the_system_is_asked(monkeypatch):
    monkeypatch.setattr(name_lookup, "has_dns", lambda: False)
    places = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("10.0.0.1", 0))]
    said = [places, places[:1], socket.gaierror(socket.EAI_NONAME, "no"), socket.gaierror(socket.EAI_AGAIN, "not now")]

    def getaddrinfo(*_):
        found = said.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(name_lookup, "getaddrinfo", getaddrinfo)
    app = ServerOptions("http://app:81")
    assert look_up(app) == ([("10.0.0.1", 81, 1, False)], None)
    assert look_up(app) == ([("::1", 81, 1, False)], None)
    assert look_up(app) == ([], None)
    with pytest.raises(LookupFailed, match="not now"):
        look_up(app)


def test_when_it_is_looked_up_again_and_what_is_believed(caplog):
    told = []
    one, two = ("10.0.0.1", 80, 1, False), ("10.0.0.2", 80, 1, False)
    lookup = NameLookup("site: app:80", ServerOptions("http://app"), 30.0, (), told.append)
    with caplog.at_level(logging.WARNING, "greensock.upstream"):
        assert lookup.take([one], None, 0.0) == 30
        assert lookup.take([one], 0.2, 0.0) == 1
        assert lookup.take([one], 1e9, 0.0) == 3600
        assert lookup.take([one, two], 60, 0.0) == 60
        assert [lookup.fail(LookupFailed("no answer")) for _ in range(3)] == [AFTER_FAILURE] * 3
        assert lookup.take([one, two], 60, 0.0) == 60
        assert lookup.take([], 60, 100.0) == AFTER_FAILURE
        assert lookup.take([], 60, 98.0 + EMPTY_FOR) == 2
        assert lookup.take([one], 60, 100.0 + EMPTY_FOR) == 60
        assert lookup.take([], 60, 200.0) == AFTER_FAILURE
        assert told == [[one], [one, two], [one]]
        assert lookup.take([], 60, 200.0 + EMPTY_FOR) == AFTER_FAILURE
        assert told[3:] == [[]]
        assert lookup.take([], 60, 300.0 + EMPTY_FOR) == AFTER_FAILURE
    assert [each.getMessage() for each in caplog.records] == [
        "site: app:80: 10.0.0.1:80",
        "site: app:80: 10.0.0.1:80, 10.0.0.2:80",
        "site: app:80 cannot be looked up, its servers stay: no answer",
        "site: app:80 can be looked up again",
        "site: app:80 leads nowhere; its servers stay for 60 s",
        "site: app:80: 10.0.0.1:80",
        "site: app:80 leads nowhere; its servers stay for 60 s",
        "site: app:80: no server",
    ]


def test_which_servers_a_group_is_to_have():
    servers = (ServerOptions("https://app", weight=2, max_connections=5), ServerOptions("http://127.0.0.1:1"))
    group = UpstreamOptions("site", servers)
    found = {"site/app:443": [["10.0.0.1", 443, 3, False], ["127.0.0.1", 1, 1, True]], "other/app:443": []}
    document = {"found": found, "removed": {"site": {"127.0.0.1:1": True}}}
    first, second = specs_of(group, document)
    assert (first.name, first.weight, first.is_backup, first.given) == ("10.0.0.1:443", 6, False, "app:443")
    assert (first.origin.scheme, first.origin.name, first.authority) == ("https", "app", b"app")
    assert (second.name, second.is_backup) == ("127.0.0.1:1", True)
    assert [each.name for each in specs_of(group, {})] == ["app:443", "127.0.0.1:1"]
    # Each address once, of whoever has it first.
    assert len(specs_of(group, {"found": found})) == 2
    unasked = UpstreamOptions("site", servers, resolve_every=None)
    assert [each.name for each in specs_of(unasked, {"found": found})] == ["app:443", "127.0.0.1:1"]


def test_servers_come_and_go_with_the_answers(serve, names, monkeypatch):
    """What a server that goes is asked is answered, and its connection ends with that; the other is not touched."""
    monkeypatch.setattr(name_lookup, "SHORTEST", 0.05)
    monkeypatch.setattr(steward, "BEAT", 0.02)
    let_go = Event()

    class Slow(Origin):
        def handle_request(self, request):
            if request.path == "/slow":
                let_go.wait()
            return super().handle_request(request)

    first = serve(Slow)
    port = first.address[1]
    second = serve(Origin, ("127.0.0.2", port))
    names.records, names.ttl = {("app.test", "A"): ["127.0.0.1"]}, 0
    gateway = gateway_to(f"http://app.test:{port}", name_servers=(names.address,))
    proxy = serve(ReverseProxy, ("127.0.0.1", 0), gateway=gateway)
    group = gateway.upstreams["site"]
    url = "http://{}:{}".format(*proxy.address)

    def servers():
        return [each.name for each in group.all]

    wait_until(lambda: servers() == [f"127.0.0.1:{port}"])
    (gone,) = group.all
    with HTTPClient() as client:
        slow = gevent.spawn(client.get, url + "/slow")
        wait_until(lambda: gone.used)
        names.records = {("app.test", "A"): ["127.0.0.2"]}
        wait_until(lambda: servers() == [f"127.0.0.2:{port}"])
        assert client.get(url + "/now").status == 200
        assert [each[1] for each in second.seen] == [b"/now"]
        assert dict(second.seen[0][2])[b"Host"] == url.removeprefix("http://").encode()
        assert (gone.used, gone.status("").connections) == (1, 1)
        let_go.set()
        assert slow.get().status == 200
        wait_until(lambda: not gone.pool.state.slots)
        # Nobody answers for a while: the servers stay.
        names.failing = {"app.test"}
        asked = len(names.asked)
        wait_until(lambda: len(names.asked) > asked)
        assert client.get(url + "/still").status == 200
    assert servers() == [f"127.0.0.2:{port}"]
    # The name that was given stands for all addresses that it leads to.
    gateway.set_server("site", f"app.test:{port}", "drain")
    assert [each.state for each in group.status()] == ["draining"]
