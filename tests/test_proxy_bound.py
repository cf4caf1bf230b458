"""Connections to servers that remember who the client is: NTLM and Negotiate (RFC 4559 section 6)."""

from __future__ import annotations

import contextlib
import re
import socket

import pytest
from conftest import PATIENCE, read_exactly, wait_until
from pairs import reset
from proxies import Recorded, gateway_to
from scripts import Script

from greensock.http import HTTPError
from greensock.proxy import FieldEdits, Forwarding, HealthOptions, ProxyTimeouts, Route, ServerOptions

_said = re.compile(rb"(?im)^(?:Proxy-)?Authorization: (\S+) ([\w=]+)").search


class Domain(Script):
    """A server that knows the user by the connection: ``ask``, then ``tell NAME``, as NTLM does."""

    def __init__(self, scheme=b"NTLM", status=401):
        self.scheme, self.status = scheme, status
        self.users: list[list[bytes]] = []  # of each connection: who asked, request by request
        self.is_deaf = False
        super().__init__(self._serve_users)

    def _serve_users(self, sock, number):
        user, seen = b"", []
        self.users.append(seen)
        field = b"WWW-Authenticate" if self.status == 401 else b"Proxy-Authenticate"
        while head := self.head(sock):
            if length := re.search(rb"Content-Length: (\d+)", head):
                read_exactly(sock, int(length[1]))
            if self.is_deaf:
                return
            said, challenge = _said(head), b""
            if said and said[2] == b"ask":
                seen.append(b"?")
                challenge = field + b": " + self.scheme + b" challenge\r\n"
            elif said and ((seen and seen[-1] == b"?") or said[2].startswith(b"whole")):
                user = said[2]
            if not user and not challenge:
                challenge = field + b': Basic realm="a, b"\r\n' + field + b": x, " + self.scheme + b"\r\n"
            if not challenge:
                seen.append(user)
            line = b"HTTP/1.1 %d No\r\n" % self.status if challenge else b"HTTP/1.1 200 OK\r\n"
            body = b"hello " + user if user and not challenge else b""
            if b"/chunked" in head:
                framing = b"Transfer-Encoding: chunked\r\n\r\n"
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
            else:
                framing = b"Content-Length: %d\r\n\r\n" % len(body)
            sock.sendall(line + challenge + framing + (b"" if head.startswith(b"HEAD") else body))


class Client:
    """A connection to the proxy."""

    def __init__(self, proxy):
        self.sock = socket.create_connection(proxy.address)
        self.sock.settimeout(PATIENCE)
        self.file = self.sock.makefile("rb")

    def ask(self, said=b"", method=b"GET", target=b"/", body=b"", field=b"Authorization", more=()):
        lines = [method + b" " + target + b" HTTP/1.1", b"Host: a", *more]
        if said:
            lines.append(field + b": " + said)
        if body:
            lines.append(b"Content-Length: %d" % len(body))
        self.sock.sendall(b"\r\n".join([*lines, b"", b""]) + body)
        return self.answer(method)

    def answer(self, method=b"GET"):
        status, length, chunked = int(self.file.readline()[9:12]), 0, False
        while (line := self.file.readline()) != b"\r\n":
            assert line
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
            chunked = chunked or b"chunked" in line
        body = b""
        if chunked:
            while size := int(self.file.readline(), 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
        elif method != b"HEAD":
            body = self.file.read(length)
        return status, body

    def close(self):
        self.file.close()
        self.sock.close()


@pytest.fixture
def start(serve):
    """Start a proxy before servers; nothing may be lent when it is over."""
    with contextlib.ExitStack() as stack:

        def make(*domains, urls=None, kind=Recorded, **options):
            for domain in domains:
                stack.callback(domain.close)
            urls = urls or [domain.url for domain in domains]
            gateway = gateway_to(*urls, **options)
            proxy = serve(kind, gateway=gateway)
            stack.callback(gateway.upstreams["site"].close)
            stack.callback(lambda: wait_until(lambda: not held_of(proxy)))
            return proxy

        yield make


def held_of(proxy):
    servers = proxy.gateway.upstreams["site"].all
    return sum(each.held + each.used + each.pool.state.statistics().used for each in servers)


def idle_of(proxy):
    return sum(each.pool.state.statistics().idle for each in proxy.gateway.upstreams["site"].all)


@pytest.fixture
def dial():
    with contextlib.ExitStack() as stack:

        def make(proxy):
            client = Client(proxy)
            stack.callback(client.close)
            return client

        yield make


SCHEMES = pytest.mark.parametrize("scheme", [b"NTLM", b"Negotiate", b"ntlm", b"NeGoTiAtE", b"Nego2"])


@SCHEMES
@pytest.mark.parametrize(("status", "field"), [(401, b"Authorization"), (407, b"Proxy-Authorization")])
def test_two_clients_in_turn(start, dial, scheme, status, field):
    domain = Domain(scheme, status)
    proxy = start(domain)
    first, second = dial(proxy), dial(proxy)
    assert (first.ask(), second.ask()) == ((status, b""), (status, b""))
    if status == 407:
        return  # what the client answers is for the proxy: whether it is passed on is an option
    for name, client in ((b"first", first), (b"second", second)):
        assert client.ask(scheme + b" ask") == (status, b"")
        assert client.ask(scheme + b" " + name) == (200, b"hello " + name)
    for _ in range(3):
        assert first.ask() == (200, b"hello first")
        assert second.ask(target=b"/chunked") == (200, b"hello second")
        assert first.ask(method=b"HEAD")[0] == 200
        assert second.ask(method=b"POST", body=b"x" * 100_000) == (200, b"hello second")
    assert dial(proxy).ask() == (status, b"")
    assert len(domain.users) == 3
    assert idle_of(proxy) == 0
    assert held_of(proxy) == 6, "three slots, three at rest"


def test_who_says_all_at_once(start, dial):
    """As Kerberos does: there was no challenge before."""
    domain = Domain(b"Negotiate")
    proxy = start(domain)
    first = dial(proxy)
    assert first.ask(b"Negotiate whole1") == (200, b"hello whole1")
    assert dial(proxy).ask() == (401, b"")
    assert first.ask() == (200, b"hello whole1")


@pytest.mark.parametrize("said", [b"Basic dXNlcjpwYXNz", b"Bearer negotiate", b'Digest username="ntlm"'])
def test_other_credentials_bind_nothing(start, dial, said):
    domain = Domain()
    domain.scheme = b"Basic"
    proxy = start(domain)
    assert dial(proxy).ask(said) == (401, b"")
    wait_until(lambda: idle_of(proxy) == 1)
    assert held_of(proxy) == 0


@pytest.mark.parametrize("how", ["close", "reset", "shutdown"])
def test_it_ends_with_the_client(start, dial, how):
    domain = Domain()
    proxy = start(domain)
    client = dial(proxy)
    client.ask(b"NTLM ask")
    client.ask(b"NTLM me")
    assert held_of(proxy) == 2
    if how == "close":
        client.close()
    elif how == "reset":
        client.file.close()
        reset(client.sock)
    else:
        client.sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: held_of(proxy) == 0)
    assert idle_of(proxy) == 0
    assert dial(proxy).ask() == (401, b"")


def test_it_ends_with_the_proxy(start, dial):
    proxy = start(Domain())
    client = dial(proxy)
    client.ask(b"NTLM ask")
    proxy.abort()
    assert held_of(proxy) == 0


def test_it_always_is_the_same_server(start, dial):
    domains = [Domain() for _ in range(3)]
    proxy = start(*domains)
    client, other = dial(proxy), dial(proxy)
    for _ in range(3):
        assert client.ask(b"NTLM ask") == (401, b"")
        other.ask()
        assert client.ask(b"NTLM me") == (200, b"hello me")
    assert sorted(len(domain.users) for domain in domains) == [0, 1, 1]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_the_server_closes_it_between_requests(start, dial, method):
    """The client begins anew, whatever it asks: nothing was sent on the connection that had gone."""
    domain = Domain()
    proxy = start(domain)
    client = dial(proxy)
    client.ask(b"NTLM ask")
    assert client.ask(b"NTLM me") == (200, b"hello me")
    for sock in list(domain.group):
        if sock is not domain.accepting:
            sock.kill()
    assert client.ask(method=method, body=b"x" if method == b"POST" else b"") == (401, b"")
    assert client.ask(b"NTLM ask") == (401, b"")
    assert client.ask(b"NTLM me", method) == (200, b"hello me")
    assert len(domain.users) == 2


def grow_old(proxy, domain):
    """Have what is bound to a client grow older than it may be."""
    for conn in proxy.connections:
        for _, lease, _ in (conn.bound or {}).values():
            lease.connection.made -= 100.0


def go_down(proxy, domain):
    """Have a check fail."""
    server = next(each for each in proxy.gateway.upstreams["site"].all if domain.url.endswith(each.name))
    assert server.health.check_failed(0.0)


@pytest.mark.parametrize(
    ("options", "happen"),
    [
        ({"max_requests": 1}, lambda proxy, domain: None),
        ({"max_requests": 2}, lambda proxy, domain: None),
        ({"max_age": 99.0}, grow_old),
        ({"health": HealthOptions(fall=1)}, go_down),
    ],
)
@pytest.mark.parametrize("within_handshake", [False, True])
def test_it_ends_when_others_would(start, dial, options, happen, within_handshake):
    """Spent, or its server down: the client begins anew, but is not stopped halfway."""
    domains = [Domain(), Domain()]
    proxy = start(*domains, **options)
    client = dial(proxy)
    assert client.ask(b"NTLM ask") == (401, b"")
    first, other = sorted(domains, key=lambda domain: -len(domain.users))
    if within_handshake:
        happen(proxy, first)
    assert client.ask(b"NTLM me") == (200, b"hello me")
    if not within_handshake:
        happen(proxy, first)
    assert client.ask() == (401, b""), "on a fresh connection"
    assert client.ask(b"NTLM ask") == (401, b"")
    assert client.ask(b"NTLM me", b"POST", body=b"x") == (200, b"hello me")
    assert [len(domain.users) for domain in (first, other)] == [1, 1]
    assert first.users == [[b"?", b"me"]]
    wait_until(lambda: held_of(proxy) == 2)


@pytest.mark.parametrize(("said", "status", "asked"), [(b"", 401, 1), (b"NTLM me", 502, 0)])
def test_credentials_are_for_one_server_only(start, dial, said, status, asked):
    """Half way through, its answer to one server's challenge is nothing to another."""
    domains = [Domain() for _ in range(2)]
    proxy = start(*domains, health=HealthOptions(max_fails=0))
    client = dial(proxy)
    assert client.ask(b"NTLM ask") == (401, b"")
    first, other = sorted(domains, key=lambda domain: -len(domain.users))
    first.is_deaf = True
    assert client.ask(said)[0] == status
    assert len(other.users) == asked
    assert proxy.retries == asked


def test_its_slot_counts(start, dial):
    domain = Domain()
    options = ServerOptions(domain.url, max_connections=1)
    proxy = start(domain, urls=[options], timeouts=ProxyTimeouts(queue=0.05))
    client, other = dial(proxy), dial(proxy)
    client.ask(b"NTLM ask")
    assert proxy.gateway.upstreams["site"].all[0].is_full
    assert other.ask()[0] == 503
    assert client.ask(b"NTLM me") == (200, b"hello me")
    client.close()
    wait_until(lambda: held_of(proxy) == 0)
    assert other.ask()[0] == 401


class Refusing(Recorded):
    """A program that refuses a request when a server was chosen for it."""

    def edit_request(self, relay, headers):
        if relay.request.path == "/refused":
            raise HTTPError(403)


def test_a_request_that_never_went_out_ends_nothing(start, dial):
    domain = Domain()
    proxy = start(domain, kind=Refusing)
    client = dial(proxy)
    client.ask(b"NTLM ask")
    assert client.ask(b"NTLM me") == (200, b"hello me")
    assert client.ask(target=b"/refused")[0] == 403
    assert client.ask() == (200, b"hello me")


class Speaking(Recorded):
    """A program that says for its clients who they are."""

    def edit_request(self, relay, headers):
        if name := relay.request.headers.get("Cookie"):
            headers.set("Authorization", f"Negotiate whole{name}")


@pytest.mark.parametrize("whose", ["the program's", "the route's"])
def test_credentials_that_an_edit_adds(start, dial, whose):
    domain = Domain(b"Negotiate")
    if whose == "the program's":
        proxy = start(domain, kind=Speaking)
    else:
        edits = FieldEdits(set={"Authorization": "Negotiate whole1"})
        proxy = start(domain, routes=[Route("site", path="/all", request_fields=edits), Route("site")])
    client = dial(proxy)
    assert client.ask(more=[b"Cookie: 1"], target=b"/all") == (200, b"hello whole1")
    assert held_of(proxy) == 2, "one slot, one at rest"
    assert dial(proxy).ask() == (401, b"")
    assert client.ask() == (200, b"hello whole1")


def test_clients_of_a_trusted_peer(start, dial):
    """They may come on one connection: what is bound for one of them is no other's."""
    domain = Domain()
    proxy = start(domain, forwarding=Forwarding(trusted=("127.0.0.1",)))
    peer = dial(proxy)
    first, second = [b"X-Forwarded-For: 192.0.2.1"], [b"X-Forwarded-For: 192.0.2.2"]
    assert peer.ask(b"NTLM ask", more=first) == (401, b"")
    assert peer.ask(b"NTLM me", more=first) == (200, b"hello me")
    assert peer.ask(more=first) == (200, b"hello me")
    assert peer.ask(more=second) == (401, b"")
    assert peer.ask(more=first) == (401, b""), "it began anew for the other"
    assert len(domain.users) == 3
    assert held_of(proxy) == 2, "one slot, one at rest"


@pytest.mark.parametrize("version", [1, 2])
def test_a_proxy_header_is_said_to_each_connection(start, dial, version):
    """To the one, too, that takes the place of one that died under the request."""
    domain = Domain()
    plain, heads = domain.head, []

    def head(sock):
        if sock not in heads:
            heads.append(sock)
            said = read_exactly(sock, 12)
            assert said == b"PROXY TCP4 1" if version == 1 else said.startswith(b"\r\n\r\n\0\r\nQUIT")
            if version == 1:
                while read_exactly(sock, 1) != b"\n":
                    pass
            else:
                read_exactly(sock, 16)
        elif len(domain.users) == 1 and len(domain.users[0]) == 2:
            plain(sock)
            return b""  # it hangs up on the third request, without a word
        return plain(sock)

    domain.head = head
    proxy = start(domain, send_proxy_protocol=version)
    client = dial(proxy)
    client.ask(b"NTLM ask")
    assert client.ask(b"NTLM me") == (200, b"hello me")
    assert client.ask() == (401, b"")
    assert len(heads) == 2


def test_a_server_that_closes_binds_nothing(start, dial):
    domain = Domain()
    proxy = start(domain)
    domain.scheme = b"NTLM\r\nConnection: close"
    assert dial(proxy).ask() == (401, b"")
    wait_until(lambda: held_of(proxy) == 0)
    assert idle_of(proxy) == 0
