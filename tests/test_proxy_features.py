"""The parts of the proxy at work together: limits, PROXY protocol, sticky cookies, checks, pages, the log."""

from __future__ import annotations

import contextlib
import re
import socket
from time import monotonic

import pytest
from conftest import read_all, wait_until
from proxies import Origin, Recorded, fields_of, gateway_to, gateways
from scripts import OK, scripted

from greensock.http import HTTPError, HTTPServer, Response
from greensock.proxy import (
    AccessLog,
    ErrorPage,
    ErrorPages,
    FieldEdits,
    Forwarding,
    GuardOptions,
    HealthOptions,
    ProxyTimeouts,
    Redirect,
    ReverseProxy,
    Route,
    ServerOptions,
    StaticAnswer,
    StickyCookie,
    parse_proxy_header,
    relay,
    write_proxy_header,
)
from greensock.proxy.failure import Failure

CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + CLOSE
LOCAL = Forwarding(trusted=("127.0.0.1",))


@pytest.fixture
def proxied(serve):
    """Start a proxy before servers: ``proxied(url, ...)`` gives it and what asks it."""
    with gateways() as gateway:

        def start(*urls, kind=Recorded, server_options=None, **options):
            proxy = serve(kind, gateway=gateway(*urls, **options), **(server_options or {}))

            def ask(data=GET):
                with socket.create_connection(proxy.address) as sock:
                    sock.sendall(data)
                    return read_all(sock)

            return proxy, ask

        yield start


@pytest.fixture
def origin(serve):
    return serve(Origin)


def statuses(answers):
    return [int(re.match(rb"HTTP/1.1 (\d+)", answer)[1]) if answer else 0 for answer in answers]


# -- limits


def test_requests_beyond_the_rate(proxied, origin):
    proxy, ask = proxied(origin.url, guard=GuardOptions(request_rate=0.01, request_burst=2))
    answers = [ask() for _ in range(4)]
    assert statuses(answers) == [200, 200, 429, 429]
    assert b"\r\nRetry-After: " in answers[2]
    assert len(origin.seen) == 2
    assert [record.reason for record in proxy.records] == ["", "", "request-rate", "request-rate"]


def test_connections_beyond_their_number(proxied, origin):
    proxy, ask = proxied(origin.url, guard=GuardOptions(max_connections=1))
    with socket.create_connection(proxy.address) as sock:
        wait_until(lambda: proxy.statistics().active)
        answer = ask()
        assert statuses([answer]) == [429]
        assert b"Retry-After: 1\r\n" in answer
        sock.sendall(GET)
        assert statuses([read_all(sock)]) == [200]
    wait_until(lambda: not proxy.statistics().active)
    assert statuses([ask()]) == [200], "and it is counted out"


def test_connections_beyond_their_rate(proxied, origin):
    _, ask = proxied(origin.url, guard=GuardOptions(connection_rate=0.01, connection_burst=2))
    assert statuses([ask() for _ in range(3)]) == [200, 200, 429]


def test_methods_and_hosts(proxied, origin):
    guard = GuardOptions(methods=frozenset({"GET"}), hosts=("a", "*.b"))
    _, ask = proxied(origin.url, guard=guard)
    answer = ask(b"PUT / HTTP/1.1\r\nContent-Length: 0\r\n" + CLOSE)
    assert statuses([answer]) == [405]
    assert b"Allow: GET\r\n" in answer
    found = [ask(b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host) for host in (b"a:80", b"x.b", b"c")]
    assert statuses(found) == [200, 200, 421]


def test_who_may_not_come(proxied, origin):
    for deny, allow, status in (("127.0.0.0/8", (), 403), ("127.0.0.0/8", ("127.0.0.1",), 200), ("::/0", (), 200)):
        _, ask = proxied(origin.url, guard=GuardOptions(deny=(deny,), allow=allow))
        assert statuses([ask()]) == [status]
    _, ask = proxied(origin.url, forwarding=LOCAL, guard=GuardOptions(deny=("192.0.2.1",)))
    named = b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.%d\r\n" + CLOSE
    assert statuses([ask(named % 1), ask(named % 2), ask()]) == [403, 200, 200]


def test_a_route_has_limits_of_its_own(proxied, origin):
    """Besides those of all, by the ordinary exchange and by the classes, and for its own answers, too."""
    few = GuardOptions(request_rate=0.001, request_burst=2, ban_errors=3, ban_time=100)
    routes = [
        Route("site", name="all"),
        Route("site", path="/few", guard=few),
        Route("site", path="/edited", guard=few, request_fields=FieldEdits(remove=("X",))),
        Route(StaticAnswer(200), path="/here", guard=few),
        Route("site", path="/status", guard=GuardOptions(ban_errors=2)),
    ]
    proxy, ask = proxied(origin.url, routes=routes, guard=GuardOptions(request_rate=0.001, request_burst=15))

    def found(path, times):
        return statuses(ask(b"GET %b HTTP/1.1\r\n" % path + CLOSE) for _ in range(times))

    assert [found(path, 3) for path in (b"/few", b"/edited", b"/here")] == [[200, 200, 429]] * 3
    assert found(b"/status/404", 3) == [404, 404, 429]
    assert found(b"/", 4) == [200, 200, 200, 429], "which is the limit of all"
    assert proxy.refused == {"request-rate": 4, "banned": 1}
    # A gateway that takes its place knows what was used, on routes too, unless a limit has changed.
    routes[0], routes[3] = Route("site", name="other"), Route(StaticAnswer(200), path="/here", guard=GuardOptions())
    new = gateway_to(origin.url, routes=routes)
    new.inherit(proxy.gateway)
    asked = [
        new.guard_of(route) and new.guard_of(route).request("127.0.0.1", monotonic(), "GET", b"a") for route in routes
    ]
    assert [each and each.reason for each in asked] == [None, "request-rate", "request-rate", None, "banned"]


def test_a_client_that_collects_errors_is_banned(proxied, origin):
    _, ask = proxied(origin.url, guard=GuardOptions(ban_errors=3))
    assert statuses([ask(b"GET /status/404 HTTP/1.1\r\n" + CLOSE), ask(b"nonsense\r\n\r\n"), ask()]) == [404, 400, 200]
    assert statuses([ask(b"TRACE / HTTP/1.1\r\n" + CLOSE), ask()]) == [405, 429]


def test_a_trusted_peer_does_not_pay_for_its_clients(proxied, origin):
    guard = GuardOptions(connection_rate=0.01, connection_burst=1, max_connections=1, ban_errors=2)
    proxy, ask = proxied(origin.url, guard=guard, forwarding=LOCAL)
    theirs = b"X-Forwarded-For: 192.0.2.1\r\n"
    bad = [b"nonsense\r\n\r\n"] * 3 + [b"TRACE / HTTP/1.1\r\n" + theirs + CLOSE] * 2
    with socket.create_connection(proxy.address):
        assert statuses(map(ask, bad)) == [400, 400, 400, 405, 405]
        assert statuses([ask(b"GET / HTTP/1.1\r\n" + theirs + CLOSE), ask()]) == [429, 200], "who did it is banned"


def test_a_refused_request_is_recorded(proxied, origin):
    proxy, ask = proxied(origin.url, forwarding=LOCAL)
    fields = b"X-Forwarded-For: 192.0.2.1\r\nUser-Agent: me\r\nReferer: /x\r\n"
    answers = [
        ask(b"TRACE / HTTP/1.1\r\n" + fields + CLOSE),
        ask(b"GET / HTTP/1.1\r\nExpect: more\r\n" + fields + CLOSE),
        ask(b"nonsense\r\n\r\n"),
    ]
    assert [record.sent for record in proxy.records] == [len(answer) for answer in answers]
    assert [record.status for record in proxy.records] == statuses(answers) == [405, 417, 400]
    assert [record.reason for record in proxy.records] == ["method", "expectation", "request-line"]
    for record in proxy.records[:2]:
        assert (record.client, record.peer, record.host) == ("192.0.2.1", "127.0.0.1", b"a")
        assert (record.agent, record.referer, record.target) == (b"me", b"/x", b"/")


# -- the PROXY protocol


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("split", [False, True])
def test_proxy_protocol_in(proxied, origin, version, split):
    proxy, _ = proxied(origin.url, forwarding=LOCAL, server_options={"proxy_protocol": True})
    header = write_proxy_header(version, ("192.0.2.7", 5555), ("192.0.2.1", 80))
    with socket.create_connection(proxy.address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [header + GET] if not split else [bytes([byte]) for byte in header + GET]:
            sock.sendall(piece)
        assert statuses([read_all(sock)]) == [200]
    assert fields_of(origin.seen[0][2])["x-forwarded-for"] == "192.0.2.7"
    assert proxy.records[0].client == "192.0.2.7"


def test_tls_that_ended_before_the_proxy(proxied, origin):
    """What PROXY version 2 says of TLS reaches the application."""
    _, ask = proxied(origin.url, forwarding=LOCAL, server_options={"proxy_protocol": True})
    for said, scheme in ((b"\x01", "https"), (b"\x00", "http"), (None, "http")):
        tls = b"" if said is None else b"\x20\x00\x05" + said + bytes(4)
        header = write_proxy_header(2, ("192.0.2.7", 5555), ("192.0.2.1", 80))
        header = header[:14] + (len(header) - 16 + len(tls)).to_bytes(2, "big") + header[16:] + tls
        assert statuses([ask(header + GET)]) == [200]
        assert fields_of(origin.seen[-1][2])["x-forwarded-proto"] == scheme


def test_proxy_protocol_from_whom_is_not_trusted(proxied, origin, caplog):
    proxy, ask = proxied(origin.url, server_options={"proxy_protocol": True})
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError):
            assert ask(write_proxy_header(1, ("192.0.2.7", 5555), ("192.0.2.1", 80)) + GET) == b""
    assert not origin.seen
    assert proxy.refused["proxy-untrusted"] == 3
    assert caplog.text.count("127.0.0.1: it may not connect") == 1, "strangers don't fill the log"


def test_proxy_protocol_that_is_none(proxied, origin):
    proxy, ask = proxied(origin.url, forwarding=LOCAL, server_options={"proxy_protocol": True})
    with contextlib.suppress(ConnectionResetError):
        assert ask() == b""
    assert proxy.refused["proxy-header"] == 1
    assert not origin.seen


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol_out(proxied, version):
    headers = []

    def script(server, sock, number):
        data = b""
        while (found := parse_proxy_header(data)) is None if data else True:
            data += sock.recv(1)
        headers.append(found[0])
        if server.head(sock):
            sock.sendall(OK)
            sock.recv(1)

    with scripted(script) as server:
        proxy, ask = proxied(server.url, send_proxy_protocol=version)
        assert statuses([ask(), ask()]) == [200, 200]
        assert server.accepted == 2, "a connection is one client's"
        assert [header.source[0] for header in headers] == ["127.0.0.1"] * 2
        assert headers[0].destination == proxy.address


# -- ids

TELLS_ID = FieldEdits(set={"X-Request-Id": "{request_id}"})


def test_an_id_is_one_from_the_request_to_the_log(proxied, origin):
    proxy, ask = proxied(origin.url, routes=[Route("site", request_fields=TELLS_ID, response_fields=TELLS_ID)])
    answers = [ask(b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\n" + CLOSE) for _ in range(2)]
    ids = [fields_of(seen[2])["x-request-id"] for seen in origin.seen]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids), "nobody trusts that client"
    assert [re.search(rb"X-Request-Id: (.*)\r\n", answer)[1].decode() for answer in answers] == ids
    assert [record.request_id for record in proxy.records] == ids


@pytest.mark.parametrize("said", [b"a-1/b", b"two words", b"x" * 129])
def test_the_id_of_a_trusted_peer(proxied, origin, said):
    proxy, ask = proxied(origin.url, forwarding=LOCAL, routes=[Route("site", request_fields=TELLS_ID)])
    ask(b"GET / HTTP/1.1\r\nX-Request-Id: %b\r\n" % said + CLOSE)
    found = fields_of(origin.seen[0][2])["x-request-id"]
    assert (found == said.decode()) is (said == b"a-1/b")
    assert proxy.records[0].request_id == found


def test_an_id_that_nobody_wants_is_not_made(proxied, origin, monkeypatch):
    monkeypatch.setattr(relay, "new_id", lambda: pytest.fail("made"))
    edits = FieldEdits(set={"X-Client": "{client}"})
    routes = [Route(Redirect("/new"), path="/old"), Route("site", request_fields=edits, response_fields=edits)]
    _, ask = proxied(origin.url, kind=ReverseProxy, routes=routes)
    assert statuses([ask(), ask(b"GET /old HTTP/1.1\r\n" + CLOSE)]) == [200, 302]


def test_an_id_in_a_redirect(proxied):
    _, ask = proxied("http://127.0.0.1:1", routes=[Route(Redirect("/?id={request_id}"))])
    assert re.search(rb"Location: /\?id=[0-9a-f]{32}\r\n", ask())


# -- which server


def test_a_sticky_cookie_leads_back(proxied, serve):
    origins = [serve(Origin) for _ in range(3)]
    cookie = StickyCookie("node", b"0123456789abcdef")
    _, ask = proxied(*(each.url for each in origins), sticky=cookie)
    first = ask()
    value = re.search(rb"Set-Cookie: (node=[^;]+);", first)[1]
    for _ in range(6):
        assert b"Set-Cookie" not in ask(b"GET / HTTP/1.1\r\nCookie: %b\r\n" % value + CLOSE)
    assert sorted(len(each.seen) for each in origins) == [0, 0, 7]
    next(each for each in origins if each.seen).stop(0)
    assert b"Set-Cookie: node=" in ask(b"GET / HTTP/1.1\r\nCookie: %b\r\n" % value + CLOSE), "it is gone: another one"


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nServer: secret\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("fails", [False, True])
def test_a_switch_is_edited_and_gets_the_cookie(proxied, fails):
    edited = []

    class Edits(Recorded):
        def edit_response(self, relay, status, headers):
            edited.append(status)
            headers.add("X-Edited", "yes")
            headers.set("Upgrade", "other")
            headers.set("Connection", "close")
            if fails:
                raise HTTPError(403)

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(SWITCH)

    route = Route("site", response_fields=FieldEdits(set={"X-Set": "{method}"}, remove=("Server",)))
    cookie = StickyCookie("node", b"0123456789abcdef")
    with scripted(script) as server:
        _, ask = proxied(server.url, kind=Edits, sticky=cookie, routes=[route])
        answer = ask(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
    assert edited == [101]
    if fails:
        assert answer.startswith(b"HTTP/1.1 403 ")
        return
    line, *fields = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert line == b"HTTP/1.1 101 Switching Protocols"
    assert [field for field in fields if not field.startswith((b"Set-Cookie: node=", b"Cache-Control: "))] == [
        b"X-Set: GET",
        b"X-Edited: yes",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
    ]
    assert len(fields) == 6


def test_a_tunnel_is_one_of_its_servers_connections(proxied):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(SWITCH)
        read_all(sock)

    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    with scripted(script) as server:
        timeouts = ProxyTimeouts(queue=0.05)
        proxy, ask = proxied(ServerOptions(server.url, max_connections=1), timeouts=timeouts)
        (site,) = proxy.gateway.upstreams["site"].all
        for count in (1, 2):
            with socket.create_connection(proxy.address) as sock:
                sock.sendall(upgrade)
                assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")
                assert statuses([ask(upgrade)]) == [503]
                assert (site.is_full, site.pool.state.slots, server.accepted) == (True, 1, count)
            wait_until(lambda: not site.used)
            assert (site.is_full, site.pool.state.slots) == (False, 0)


@pytest.mark.parametrize(
    ("said", "added"),
    [
        (b"", True),
        (b"Cache-Control: public, max-age=60\r\n", True),
        (b'Cache-Control: private="X-A"\r\n', True),
        (b"Cache-Control: max-age=60, Private\r\n", False),
        (b"Cache-Control: no-store\r\n", False),
    ],
)
def test_no_shared_cache_keeps_a_sticky_cookie(proxied, said, added):
    def script(server, sock, number):
        while server.head(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nok" % said)

    with scripted(script) as server:
        _, ask = proxied(server.url, sticky=StickyCookie("node", b"0123456789abcdef"))
        answer = ask()
        assert said in answer
        assert (b"\r\nCache-Control: private\r\n" in answer) is added
        value = re.search(rb"Set-Cookie: (node=[^;]+);", answer)[1]
        assert b"Cache-Control: private\r\n" not in ask(b"GET / HTTP/1.1\r\nCookie: %b\r\n" % value + CLOSE)


def test_a_hash_keeps_a_key_at_its_server(proxied, serve):
    origins = [serve(Origin) for _ in range(3)]
    _, ask = proxied(*(each.url for each in origins), balance="hash", hash_key="header:X-User")
    for user in range(10):
        for _ in range(3):
            ask(b"GET /%d HTTP/1.1\r\nX-User: %d\r\n" % (user, user) + CLOSE)
    where = [{target for _, target, _, _ in each.seen} for each in origins]
    assert sum(map(len, where)) == 10, "each user at one server only"


def test_checks_take_a_server_out_and_in(proxied, serve):
    class Checked(HTTPServer):
        fine = True

        def handle_request(self, request):
            return Response(b"x", 200 if self.fine else 500)

    sick, well = serve(Checked), serve(Checked)
    health = HealthOptions(path="/ok", interval=0.02, timeout=1.0, rise=1, fall=1)
    proxy, ask = proxied(*("http://{}:{}".format(*each.address) for each in (sick, well)), health=health)
    servers = proxy.gateway.upstreams["site"].all
    wait_until(lambda: all(each.health.statistics().checks_passed for each in servers))
    sick.fine = False
    wait_until(lambda: not servers[0].health.is_clear)
    assert statuses([ask() for _ in range(6)]) == [200] * 6
    sick.fine = True
    wait_until(lambda: servers[0].health.is_clear)


@pytest.mark.parametrize("version", [1, 2])
def test_checks_speak_the_proxy_protocol_where_it_is_spoken(proxied, version):
    headers = []

    def script(server, sock, number):
        data = b""
        while not data or parse_proxy_header(data) is None:
            data += sock.recv(1)
        headers.append(parse_proxy_header(data)[0])
        if server.head(sock):
            sock.sendall(OK)

    with (
        scripted(script) as server,
        scripted(lambda server, sock, number: server.head(sock) and sock.sendall(OK)) as other,
    ):
        health = HealthOptions(path="/ok", interval=0.02, timeout=1.0, rise=1, fall=1)
        proxies = [
            proxied(server.url, health=health, send_proxy_protocol=version)[0],
            proxied(other.url, health=health)[0],
        ]
        for proxy in proxies:
            known = proxy.gateway.upstreams["site"].all[0].health
            wait_until(lambda known=known: known.statistics().checks_passed >= 2)
            assert known.is_clear
        assert server.heads[0].startswith(b"GET /ok HTTP/1.1\r\n")
        assert {(header.version, header.source) for header in headers} == {(version, None)}
        assert all(header.is_local is (version == 2) for header in headers)
        assert other.heads[0].startswith(b"GET /ok HTTP/1.1\r\n")


@pytest.mark.parametrize("panic", [True, False])
def test_an_ejected_server_is_asked_in_panic(proxied, panic):
    healthy = False

    def script(server, sock, number):
        server.head(sock)
        if healthy:
            sock.sendall(OK)

    with scripted(script) as server:
        _, ask = proxied(server.url, health=HealthOptions(max_fails=1), panic=panic)
        assert statuses([ask()]) == [502]
        healthy = True
        answer = ask()
        assert statuses([answer]) == [200 if panic else 503]
        assert panic or b"Retry-After: 5\r\n" in answer


def test_what_failed_is_said_though_no_other_is_left(proxied):
    health = HealthOptions(max_fails=1)
    proxy, ask = proxied("http://127.0.0.1:1", "http://127.0.0.1:2", health=health, panic=False)
    proxy.gateway.upstreams["site"].all[1].failed(Failure("no-response", 502))
    assert statuses([ask(), ask()]) == [502, 503]
    assert [record.reason for record in proxy.records] == ["connect-failed", "no-server"]
    assert (proxy.retries, proxy.records[0].tries) == (0, 1)


def test_no_server_is_up(proxied):
    health = HealthOptions(path="/ok", interval=0.02, timeout=1.0, fall=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    proxy, ask = proxied(f"http://127.0.0.1:{port}", health=health)
    wait_until(lambda: not proxy.gateway.upstreams["site"].all[0].health.is_clear)
    answer = ask()
    assert statuses([answer]) == [503]
    assert b"Retry-After: " in answer
    assert proxy.records[0].reason == "no-server"


# -- messages


class Editing(Recorded):
    """Changes fields, both ways."""

    def edit_request(self, relay, headers):
        headers.set("X-Edited", "1")

    def edit_response(self, relay, status, headers):
        headers.set("X-Edited", "1")


class KeepingTrailers(Recorded):
    """Wants none."""

    def edit_request(self, relay, headers):
        headers.remove("TE")


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kind", [Recorded, Editing])
def test_trailers_go_by_for_who_wants_them(proxied, kind, at_once):
    """And a server that asks first sends some."""

    def script(server, sock, number):
        head = server.head(sock).lower()
        takes = b"\r\nte: trailers\r\n" in head
        assert takes is (b"\r\nconnection: te\r\n" in head)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTrailer: X-Sum, Keep-Alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        if not at_once:
            wait_until(lambda: proxy.statistics().statuses.get(200, 0) == len(server.heads))
        sock.sendall(b"0\r\nX-Sum: 1\r\nKeep-Alive: x\r\n\r\n" if takes else b"0\r\n\r\n")

    with scripted(script) as server:
        proxy, ask = proxied(server.url, kind=kind)
        head, _, body = ask(b"GET / HTTP/1.1\r\nConnection: TE\r\nTE: trailers\r\n" + CLOSE).partition(b"\r\n\r\n")
        assert body.endswith(b"0\r\nX-Sum: 1\r\n\r\n")
        assert b"\r\nTrailer: X-Sum\r\n" in head
        for line in b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nTE: gzip\r\n", b"GET / HTTP/1.0\r\nTE: trailers\r\n":
            found = ask(line + CLOSE)
            assert b"ok" in found
            assert b"X-Sum" not in found
            assert b"Trailer" not in found


def test_a_program_may_want_no_trailers(proxied):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(OK)

    with scripted(script) as server:
        _, ask = proxied(server.url, kind=KeepingTrailers)
        ask(b"GET / HTTP/1.1\r\nTE: trailers\r\n" + CLOSE)
        assert b"\r\nte:" not in server.heads[0].lower()
        assert b"\r\nconnection:" not in server.heads[0].lower()


def test_trailers_of_a_request_are_announced(proxied):
    def script(server, sock, number):
        server.head(sock)
        server.head(sock)  # the last chunk and its trailers
        sock.sendall(OK)

    with scripted(script) as server:
        _, ask = proxied(server.url)
        start = b"POST / HTTP/1.1\r\nTrailer: X-Sum, Host\r\nTransfer-Encoding: chunked\r\n"
        assert b" 200 OK" in ask(start + CLOSE + b"0\r\nX-Sum: 1\r\n\r\n")
        assert b"\r\nTrailer: X-Sum\r\n" in server.heads[0]
        assert server.heads[1] == b"0\r\nX-Sum: 1\r\n\r\n"


def test_what_belongs_to_one_hop_stays_there(proxied):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: X-Secret, Set-Cookie\r\nX-Secret: 1\r\nSet-Cookie: a=b\r\n"
            b"Keep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nContent-Length: 2\r\n\r\nok"
        )

    with scripted(script) as server:
        _, ask = proxied(server.url)
        answer = ask(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine, Host\r\nX-Mine: 1\r\nX_User: root\r\n\r\n"
        )
        assert b"Set-Cookie: a=b\r\n" in answer
        for name in (b"X-Secret", b"Keep-Alive", b"Proxy-Authenticate"):
            assert name not in answer
        for name in (b"X-Mine", b"X_User"):
            assert name not in server.heads[0]
        assert b"Host: a\r\n" in server.heads[0]


def test_error_pages(proxied, origin):
    pages = ErrorPages({"5xx": ErrorPage(b"<p>sorry</p>"), "404": ErrorPage(b"nothing", "text/plain")})
    _, ask = proxied("http://127.0.0.1:1", error_pages=pages, routes=[])
    assert ask().endswith(b"\r\n\r\nnothing")
    _, ask = proxied("http://127.0.0.1:1", error_pages=pages)
    assert ask().endswith(b"\r\n\r\n<p>sorry</p>")


def test_error_pages_of_what_is_refused(proxied, origin):
    class Failing(Recorded):
        def choose_upstream(self, relay):
            if relay.request.path == "/own":
                raise HTTPError(500, "my own")
            raise RuntimeError("as it was told to")

    pages = ErrorPages({"4xx": ErrorPage(b"<p>no</p>"), "500": ErrorPage(b"<p>oh</p>")})
    _, ask = proxied(origin.url, error_pages=pages, kind=Failing)
    for bad in (b"nonsense\r\n\r\n", b"TRACE / HTTP/1.1\r\n" + CLOSE, b"GET /%b HTTP/1.1\r\n" % (b"x" * 9000) + CLOSE):
        answer = ask(bad)
        assert b"\r\nContent-Type: text/html; charset=utf-8\r\n" in answer
        assert answer.endswith(b"\r\nContent-Length: 9\r\n\r\n<p>no</p>")
    assert ask().endswith(b"\r\n\r\n<p>oh</p>")
    assert ask(b"GET /own HTTP/1.1\r\n" + CLOSE).endswith(b"\r\n\r\nmy own\n")


TELLING = Forwarding(proxy_status=True)


def test_proxy_status(proxied, origin):
    _, ask = proxied("http://127.0.0.1:1", forwarding=TELLING)
    assert b"\r\nProxy-Status: greensock; error=connection_refused\r\n" in ask()
    _, ask = proxied("http://127.0.0.1:1", forwarding=TELLING, routes=[])
    assert b"\r\nProxy-Status: greensock; error=destination_not_found\r\n" in ask()
    _, ask = proxied(origin.url, forwarding=TELLING, guard=GuardOptions(request_rate=0.01, request_burst=1))
    assert b"Proxy-Status" not in ask(b"GET /status/500 HTTP/1.1\r\n" + CLOSE), "that one is the server's"
    assert b"\r\nProxy-Status: greensock; error=http_request_denied\r\n" in ask()
    _, ask = proxied("http://127.0.0.1:1")
    assert b"Proxy-Status" not in ask(), "strangers are told nothing if nobody wants that"


def test_the_access_log(proxied, origin, tmp_path):
    log = AccessLog(str(tmp_path / "log"), "json")
    _, ask = proxied(origin.url, log=log)
    ask(b'GET /"\\x?\xff HTTP/1.1\r\n' + CLOSE)
    ask(b"GET /x HTTP/1.1\r\nUser-Agent: me\r\n" + CLOSE)
    assert log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert '"me"' in lines[1]


def test_the_total_time(proxied):
    def script(server, sock, number):
        server.head(sock)
        sock.recv(1)

    with scripted(script) as server:
        proxy, ask = proxied(server.url, timeouts=ProxyTimeouts(total=0.1))
        assert statuses([ask()]) == [504]
        assert proxy.records[0].reason == "total-timeout"


def test_the_server_sees_its_own_name_if_told_so(proxied, origin):
    _, ask = proxied(origin.url, forwarding=Forwarding(preserve_host=False))
    ask()
    fields = fields_of(origin.seen[0][2])
    assert fields["host"] == origin.url.removeprefix("http://")
    assert fields["x-forwarded-host"] == "a"


# -- upcalls


@pytest.mark.parametrize("size", [10, 20_000, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_can_be_refused_as_it_goes_by(proxied, origin, size, chunked):
    class Careful(Recorded):
        def watch_request_body(self, relay, piece):
            if b"!" in piece:
                raise HTTPError(422)

    proxy, ask = proxied(origin.url, kind=Careful)
    body = b"x" * (size - 1) + b"!"
    framing = b"Content-Length: %d\r\n" % size
    if chunked:
        framing, body = b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    answer = ask(b"POST / HTTP/1.1\r\n" + framing + CLOSE + body)
    assert statuses([answer]) == [422]
    assert [record.reason for record in proxy.records] == ["denied"]
    assert not [seen for seen in origin.seen if b"!" in seen[3]]
    assert proxy.gateway.upstreams["site"].all[0].health.statistics().failed == 0
    assert statuses([ask()]) == [200]


@pytest.mark.parametrize("size", [10, 20_000, 300_000])
def test_an_answer_is_cut_if_the_program_fails_as_it_goes_by(proxied, origin, size):
    class Failing(Recorded):
        def watch_response_body(self, relay, piece):
            raise RuntimeError("as it was told to")

    proxy, ask = proxied(origin.url, kind=Failing)
    try:
        answer = ask(b"GET /large/%d HTTP/1.1\r\n" % size + CLOSE)
    except ConnectionResetError:
        answer = b""
    assert not answer.endswith(b"x" * size), "it is not whole"
    assert proxy.gateway.upstreams["site"].all[0].health.statistics().failed == 0
    wait_until(lambda: proxy.records)
    assert proxy.records[0].reason == "internal-error"
