"""The ordinary exchange does what the classes do: both are given the same, and all that can be seen is compared.

Seen is what reached the server, byte for byte; what reached the client; the records; and what is counted: by the proxy,
of the server's health, in its pool, by the guard. What differs by nature is left out: times, ids, and the proxy's mark.
"""

from __future__ import annotations

import gc
import re
import socket
import struct
import tracemalloc
from dataclasses import dataclass, field, replace
from typing import Any

import gevent
import pytest
from conftest import PATIENCE, read_exactly, wait_until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from proxies import Recorded, gateway_to
from scripts import Script, scripted

from greensock.core.poller import get_poller
from greensock.http import Limits, Response
from greensock.http.client.connection_pool import ClientConnection
from greensock.proxy import FieldEdits, Forwarding, GuardOptions, HealthOptions, ProxyTimeouts, Record, Route
from greensock.proxy.request_relay import RequestRelay
from greensock.proxy.upstream.servers import UpstreamServer

WARM = b"POST /warm HTTP/1.1\r\nHost: warm\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: now\r\n\r\nok"

#: Seconds between the pieces of an answer, so that they are read one by one.
PAUSE = 0.002
#: Of a record, what is not compared.
TIMES = ("started", "duration", "connect_time", "head_time", "upstream_time", "request_id")

_mark = re.compile(rb"\([0-9a-f]{8}\)")
_date = re.compile(rb"Date: [A-Z][a-z]{2}, [^\r]*")


class Classes(Recorded):
    """A proxy for which nothing is ordinary: one of its seams is overridden."""

    def serve_request(self, request: Any, keep: bool) -> bool:
        return super().serve_request(request, keep)


@dataclass
class Scene:
    """What a client and a server do, on connections that have served a request before."""

    request: bytes
    answer: bytes
    #: Where answer and request are cut into pieces.
    cut: int = 0
    request_cut: int = 0
    #: What the server does behind its answer, or in its place: ``keeps``, ``closes``, ``resets``.
    server: str = "keeps"
    #: What the client does when the server has the request: ``stays``, ``leaves``, ``ends`` (its half). ``stopped``:
    #: the proxy is stopped then.
    client: str = "stays"
    #: Whether the kept connection is gone when the request comes.
    stale: bool = False
    #: Whether the record of the request is waited for: a timeout of the proxy's ends it.
    waits: bool = False
    #: What goes before, so that a connection is kept.
    warm: bytes = b"GET /warm HTTP/1.1\r\nHost: warm\r\n\r\n"
    #: Of the proxy, of its gateway, and of the route.
    proxy: dict[str, Any] = field(default_factory=dict)
    gateway: dict[str, Any] = field(default_factory=dict)
    route: dict[str, Any] = field(default_factory=dict)


class Player:
    """A server that plays a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen: list[bytes] = []
        self.warm: list[socket.socket] = []
        self.busy = 0
        self.may_answer = gevent.event.Event()
        self.script = Script(self._play)

    def _play(self, sock: socket.socket, number: int) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = sock.recv(65536)
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?im)^content-length: (\d+)\r?$", head)
            body = b""
            if length:
                while len(data) < int(length[1]):
                    if not (piece := sock.recv(65536)):
                        return
                    data += piece
                body, data = data[: int(length[1])], data[int(length[1]) :]
            elif re.search(rb"(?im)^transfer-encoding:", head):
                while b"0\r\n\r\n" not in data:
                    if not (piece := sock.recv(65536)):
                        return
                    data += piece
                body, _, data = data.partition(b"0\r\n\r\n")
            self.seen.append(_mark.sub(b"", head.replace(self.script.url[7:].encode(), b"server")) + b"\r\n\r\n" + body)
            if b" /warm " in head or b" /last " in head:
                sock.sendall(OK)
                self.warm.append(sock)
                continue
            assert self.may_answer.wait(PATIENCE)
            answer, cut = self.scene.answer, self.scene.cut
            sock.sendall(answer[:cut])
            if cut:
                self.busy += 1
                gevent.sleep(PAUSE)
                self.busy -= 1
            sock.sendall(answer[cut:])
            if self.scene.server == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.scene.server != "keeps":
                return


def seen_of(kind: type[Recorded], scene: Scene) -> dict[str, Any]:
    """Play a scene before a proxy of that kind, and return all that can be seen of it."""
    player = Player(scene)
    rest = [Route("site", name="rest")] if scene.route else []
    gateway = gateway_to(player.script.url, routes=[Route("site", **scene.route), *rest], **scene.gateway)
    proxy = kind(("127.0.0.1", 0), gateway=gateway, stop_timeout=0.2, **scene.proxy)
    proxy.start()
    try:
        got = _act(player, proxy, scene)
        player.script.close()
        wait_until(lambda: not proxy.connections)
        (server,) = gateway.upstreams["site"].all
        wait_until(lambda: not server.used)
        statistics = proxy.statistics()
        return {
            "server saw": player.seen,
            "connections made": player.script.accepted,
            "client got": got,
            "records": [_of(record, server.name) for record in proxy.records],
            "statuses": dict(proxy.answers_by_status),
            "refused": dict(proxy.refused),
            "failures": dict(proxy.failures),
            "requests": (statistics.requests, statistics.errors, proxy.retries),
            "health": replace(server.health.statistics(), ejected_until=None),
            "asked": (server.requests, server.used, server.held),
            "pool": server.pool.state.statistics(),
            "guard": gateway.guard.statistics(0.0) if gateway.guard is not None else None,
            "guards": [each.statistics(0.0) for each in gateway.route_guards()],
        }
    finally:
        proxy.stop()
        for upstream in gateway.upstreams.values():
            upstream.close()
        player.script.close()


def settle(player: Player) -> None:
    """Wait until nobody has anything to do: all of them, and the kernel's loopback, live in this thread."""
    while True:
        for _ in range(5):
            gevent.idle()
        if not player.busy:
            return
        gevent.sleep(PAUSE)


def _act(player: Player, proxy: Recorded, scene: Scene) -> bytes:
    with socket.create_connection(proxy.address, timeout=PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(scene.warm)
        assert _there(sock, player).endswith(b"ok")
        if scene.stale:
            player.warm[0].shutdown(socket.SHUT_RDWR)
            settle(player)
        if scene.client == "stays":
            player.may_answer.set()
        try:
            for piece in (scene.request[: scene.request_cut], scene.request[scene.request_cut :]):
                sock.sendall(piece)
                settle(player)
            if scene.waits:
                wait_until(lambda: len(proxy.records) > 1)
            if scene.client == "stopped":
                proxy.stop(0.01)
                player.may_answer.set()
                return _there(sock, player)
            if scene.client == "leaves":
                sock.close()
                settle(player)
                player.may_answer.set()
                settle(player)
                return b""
            if scene.client == "ends":
                sock.shutdown(socket.SHUT_WR)
                settle(player)
                player.may_answer.set()
                settle(player)
                return _there(sock, player)
            got = _there(sock, player)
            sock.sendall(LAST)
        except ConnectionError:
            return _there(sock, player)
        return got + _there(sock, player)


def _there(sock: socket.socket, player: Player) -> bytes:
    """Return what has come on a socket once everybody is at rest."""
    settle(player)
    data = b""
    sock.setblocking(False)
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except BlockingIOError:
        pass
    except ConnectionError:
        data += b"(reset)"
    else:
        data += b"(end)"
    sock.settimeout(PATIENCE)
    return _date.sub(b"Date: then", _mark.sub(b"", data))


def _of(record: Record, server: str) -> dict[str, Any]:
    found = {name: getattr(record, name) for name in Record.__slots__ if name not in TIMES}
    found["upstream"] = record.upstream.replace(server, "server")
    return found | {name: getattr(record, name) is None for name in TIMES}


def compare(scene: Scene) -> dict[str, Any]:
    ordinary, classes = seen_of(Recorded, scene), seen_of(Classes, scene)
    for what, value in classes.items():
        assert ordinary[what] == value, what
    return classes


# -- one thing at a time

GET = b"GET /a?b=c HTTP/1.1\r\nHost: a:80\r\nUser-Agent: test\r\nCookie: d=e\r\nX-Real-IP: 1.2.3.4\r\n\r\n"
HEAD = b"HEAD" + GET[3:]
CLOSING = GET.replace(b"Cookie: d=e", b"Connection: close")
POST = b"POST" + GET[3:-2] + b"Content-Length: 4\r\n\r\nbody"
ANSWER = b"HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 5\r\nSet-Cookie: f=g\r\nset-cookie: h=i\r\n\r\nhello"
DATED = ANSWER.replace(b"Server", b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nServer")
EMPTY = b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n\r\n"
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"l" * 40_000
FAILED = b"HTTP/1.1 503\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"

ORDINARY = [
    Scene(GET, ANSWER),
    Scene(GET, DATED),
    Scene(GET, EMPTY),
    Scene(GET, LARGE),
    Scene(GET, FAILED, server="closes"),
    Scene(CLOSING, ANSWER),
    Scene(HEAD, ANSWER[:-5]),
    Scene(POST, ANSWER),
    Scene(POST, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
    Scene(b"DELETE" + GET[3:], ANSWER),
    Scene(b"PATCH" + GET[3:], ANSWER),
    Scene(GET, ANSWER, proxy={"max_requests": 2}),
    Scene(GET, ANSWER, proxy={"abort_on_eof": False}),
    Scene(GET, ANSWER, gateway={"forwarding": Forwarding(preserve_host=False)}),
    Scene(GET, ANSWER, gateway={"forwarding": Forwarding(preserve_host="own", via="", x_forwarded=False)}),
    Scene(GET, ANSWER, gateway={"guard": GuardOptions(ban_errors=2, ban_statuses=frozenset({200}))}),
    Scene(GET, ANSWER, gateway={"max_requests": 2}),
    Scene(GET, ANSWER, route={"path": "/a", "strip_prefix": True, "rewrite_answers": False, "name": "its"}),
    Scene(GET, LARGE, route={"path": "/a", "strip_prefix": True, "name": "its"}),
    Scene(GET, LARGE, route={"query": {"b": "c"}, "name": "its"}),
    Scene(GET, LARGE, route={"cookies": {"d": None}, "pattern": "/(?P<it>a)", "name": "its"}),
    Scene(GET, ANSWER, route={"headers": {"cookie": "d=e"}, "name": "its"}),
]


@pytest.mark.parametrize("scene", ORDINARY, ids=range(len(ORDINARY)))
def test_what_is_ordinary(scene, monkeypatch):
    """The classes have nothing to do with it, and there is an answer."""
    seen = compare(scene)
    assert scene.answer[9:12] in seen["client got"]
    left, run = [], RequestRelay.run

    def watched(relay: RequestRelay, *more: Any) -> bool:
        left.append(relay.request.target)
        return run(relay, *more)

    monkeypatch.setattr(RequestRelay, "run", watched)
    seen_of(Recorded, scene)
    assert left in ([b"/warm"], [b"/warm", b"/last"])  # for which a connection may have to be made


SILENT = {"timeouts": ProxyTimeouts(upstream_head=0.05)}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
ONE_FAILURE = {"health": HealthOptions(max_fails=1), "panic": False}
HANDED_OVER = {
    "nothing was kept": Scene(GET, ANSWER, stale=True),
    "nothing was kept for a POST": Scene(POST, ANSWER, stale=True),
    "it closes without a word": Scene(GET, b"", server="closes"),
    "it resets without a word": Scene(GET, b"", server="resets"),
    "it closes without a word to a POST": Scene(POST, b"", server="closes"),
    "it resets without a word to a POST": Scene(POST, b"", server="resets"),
    "it closes within the head": Scene(GET, ANSWER[:30], server="closes"),
    "it closes within the body": Scene(GET, ANSWER[:-2], server="closes"),
    "it resets within the body": Scene(GET, ANSWER[:-2], server="resets"),
    "its head comes in parts": Scene(GET, ANSWER, cut=20),
    "its body comes in parts": Scene(GET, ANSWER, cut=len(ANSWER) - 3),
    "it says more": Scene(GET, ANSWER + b"more"),
    "it says more than HEAD wants": Scene(HEAD, ANSWER),
    "it speaks in chunks": Scene(GET, CHUNKED),
    "it speaks until it closes": Scene(GET, b"HTTP/1.1 200 OK\r\n\r\nall", server="closes"),
    "it speaks 1.0": Scene(GET, ANSWER.replace(b"1.1", b"1.0")),
    "it says something before": Scene(GET, b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + ANSWER),
    "it says only something before": Scene(GET, b"HTTP/1.1 103 Hints\r\n\r\n", server="closes"),
    "it switches": Scene(GET, b"HTTP/1.1 101 Now\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
    "it challenges": Scene(
        GET, ANSWER.replace(b"200 Fine", b"401 Who").replace(b"Server: x", b"WWW-Authenticate: NTLM")
    ),
    "its field is repeated": Scene(GET, ANSWER.replace(b"Server: x", b"Content-Length: 5")),
    "it says nonsense": Scene(GET, b"SSH-2.0-OpenSSH\r\n\r\n"),
    "it is silent": Scene(GET, b"", gateway=SILENT, waits=True),
    "it is silent, which is not to be repeated": Scene(POST, b"", gateway=SILENT, waits=True),
    "it fails, and no other is there": Scene(GET, b"", server="closes", gateway=ONE_FAILURE),
    "the client leaves": Scene(GET, ANSWER, client="leaves"),
    "the client ends": Scene(GET, ANSWER, client="ends"),
    "the client leaves, for which nobody watches": Scene(GET, ANSWER, client="leaves", proxy={"abort_on_eof": False}),
    "the client ends, for which nobody watches": Scene(GET, ANSWER, client="ends", proxy={"abort_on_eof": False}),
    "the client leaves before the rest": Scene(GET, ANSWER, client="leaves", cut=len(ANSWER) - 3),
    "the proxy stops": Scene(GET, ANSWER, client="stopped"),
    "the guard says no": Scene(GET, ANSWER, gateway={"guard": GuardOptions(methods=frozenset({"POST"}))}, warm=WARM),
    "the guard says no, and its route has a name": Scene(
        GET, ANSWER, gateway={"guard": GuardOptions(methods=frozenset({"POST"}))}, warm=WARM, route={"name": "its"}
    ),
    "the guard says no to a body behind which the connection closes": Scene(
        POST.replace(b"Cookie: d=e", b"Connection: close"),
        ANSWER,
        gateway={"guard": GuardOptions(methods=frozenset({"GET"}))},
    ),
    "there are too many": Scene(GET, ANSWER, gateway={"guard": GuardOptions(request_rate=0.001, request_burst=2)}),
    "its route says no": Scene(GET, ANSWER, route={"guard": GuardOptions(methods=frozenset({"POST"}))}, warm=WARM),
    "there are too many on its route": Scene(
        GET, ANSWER, route={"guard": GuardOptions(request_rate=0.001, request_burst=2), "name": "its"}
    ),
    "its route takes it to a path that is none": Scene(GET.replace(b"/a", b"/%00"), ANSWER, route={"path": "/a"}),
    "it is too large": Scene(GET, LARGE, gateway={"answer_limits": Limits(max_body=39_999)}),
    "its head is too large": Scene(GET, ANSWER, gateway={"answer_limits": Limits(max_head=60)}),
    "it has too many fields": Scene(GET, ANSWER, gateway={"answer_limits": Limits(max_fields=3)}),
    "the request has too many fields": Scene(GET, ANSWER, gateway={"limits": Limits(max_fields=3)}),
    "the target is too long": Scene(GET, ANSWER, gateway={"limits": Limits(max_target=5)}),
    "the request's head is too large": Scene(GET, ANSWER, gateway={"limits": Limits(max_head=60)}),
    "the request is too large": Scene(POST, ANSWER, gateway={"limits": Limits(max_body=3)}),
    "the method is refused": Scene(GET, ANSWER, proxy={"refused_methods": frozenset({"GET"})}, warm=WARM),
    "all of it has a limit": Scene(GET, ANSWER, gateway={"timeouts": ProxyTimeouts(total=5.0)}),
    "it is edited": Scene(GET, ANSWER, route={"request_fields": FieldEdits(set=[("X-Edited", "yes")])}),
    "its answer is edited": Scene(GET, ANSWER, route={"response_fields": FieldEdits(set=[("X-Edited", "yes")])}),
    "its answer leads back": Scene(GET, ANSWER, route={"path": "/a", "strip_prefix": True}),
    "it is rewritten": Scene(GET, ANSWER, route={"pattern": "/(?P<it>.*)", "rewrite": "/{match.it}"}),
    "its answer is put right": Scene(GET, ANSWER, route={"rewrite_answers": True}),
    "it asks with something else in the query": Scene(GET, ANSWER, route={"query": {"b": "x"}}, warm=WARM),
    "it is pipelined": Scene(GET + GET, ANSWER),
}


@pytest.mark.parametrize("name", HANDED_OVER)
def test_what_is_handed_over(name):
    compare(HANDED_OVER[name])


class Once:
    """In the place of a method: raises at its call of that number, counted for each proxy anew."""

    def __init__(self, method: Any, number: int, error: BaseException) -> None:
        self.method, self.number, self.error, self.calls = method, number, error, 0

    def __get__(self, instance: Any, owner: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.number:
                get_poller().uncork()  # what was sent is out by then, as it is where something is thrown into a wait
                raise self.error
            return self.method(instance, *arguments)

        return call


@pytest.mark.parametrize("error", [RuntimeError("raised"), gevent.GreenletExit(), gevent.Timeout(1)], ids=repr)
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (UpstreamServer, "succeeded", 2),  # a handler of the log may fail there, or be killed while it waits
        (ClientConnection, "is_quiet", 1),
        (ClientConnection, "send_soon", 2),
        (ClientConnection, "recv", 2),
        (Recorded, "date_line", 2),
    ],
)
def test_what_is_raised_leaves_nothing_behind(monkeypatch, owner, name, number, error):
    """No slot, no connection and no place at the server; and it ends as it does with the classes."""
    scene, seen = Scene(GET, ANSWER), []
    for kind in (Recorded, Classes):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Once(getattr(owner, name), number, error))
            seen.append(seen_of(kind, scene))
    ordinary, classes = seen
    assert not classes["pool"].used
    assert ordinary == classes


def test_an_upcall_may_be_set_until_the_start(connect):
    """A gate that is set as an attribute is no less a gate."""
    player = Player(Scene(GET, ANSWER))
    proxy = Recorded(("127.0.0.1", 0), gateway=gateway_to(player.script.url), stop_timeout=0.2)
    proxy.choose_upstream = lambda relay: Response(b"denied", 403)
    proxy.start()
    try:
        sock = connect(proxy)
        for _ in range(2):
            sock.sendall(GET)
            assert _there(sock, player).startswith(b"HTTP/1.1 403 ")
    finally:
        proxy.stop()
        player.script.close()


def test_a_long_answer_holds_no_first_piece(connect):
    """While it goes on, nothing of what came first is kept: neither by the ordinary way nor where that was left."""
    first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf000\r\n" + bytes(0xF000) + b"\r\n"
    count = 10

    def play(script: Script, sock: socket.socket, number: int) -> None:
        while head := script.head(sock):
            sock.sendall(OK if b" /warm " in head else first)

    with scripted(play) as script:
        gateway = gateway_to(script.url)
        proxy = Recorded(("127.0.0.1", 0), gateway=gateway, stop_timeout=0.2)
        proxy.start()
        try:
            socks = [connect(proxy) for _ in range(count)]
            for sock in socks:
                sock.sendall(WARM.replace(b"POST", b"GET"))
            for sock in socks:
                sock.recv(1000)
            wait_until(lambda: len(proxy.records) == count)
            tracemalloc.start()
            for sock in socks:
                sock.sendall(GET)
                read_exactly(sock, 0xF000)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert held / count < 25_000
        finally:
            tracemalloc.stop()
            for sock in socks:
                sock.close()
            proxy.stop()
            for upstream in gateway.upstreams.values():
                upstream.close()


# -- whatever may come

methods = st.sampled_from([b"GET", b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"get", b"BREW", b"TRACE"])
targets = st.sampled_from(
    [b"/", b"/a/b?c=d", b"/%2e%2e/a", b"/a//b", b"*", b"http://a/x", b"a", b"/\xc3\xa4", b"/x#y", b"/" + b"l" * 300]
)
versions = st.sampled_from([b"HTTP/1.1"] * 9 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"])
request_lines = st.lists(
    st.sampled_from(
        [
            *(b"User-Agent: curl/8", b"Accept: */*", b"accept-encoding:gzip", b"Cookie: a=b", b"COOKIE: c=d"),
            *(b"Referer: http://a/", b"X-Forwarded-For: 10.0.0.1", b"X-Real-IP: 1.2.3.4", b"Forwarded: for=x"),
            *(b"X_User: a", b"X_Forwarded_For: a", b"Proxy: evil", b"Close: mine", b"Keep-Alive: timeout=5"),
            *(b"Connection: keep-alive", b"Connection: Keep-Alive", b"Connection: close", b"Connection: close, X-A"),
            *(b"Connection: X-A", b"X-A: 1", b"Upgrade: websocket", b"TE: trailers", b"Expect: 100-continue"),
            *(b"Via: 1.1 other", b"Via: 1.1 greensock (00000000)", b"Authorization: Basic eA==", b"Range: bytes=0-1"),
            *(b"Authorization: NTLM abc", b"Proxy-Authorization: Basic eA==", b"Max-Forwards: 0", b"Empty:"),
            *(b"Host: other", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Trailer: X-T", b"X:  spaces \t "),
            *(b"Bad Name: a", b"NoColon", b" folded", b"X-Ctl: a\x01b", b"X-High: \xff", b"X-Long: " + b"y" * 400),
        ]
    ),
    max_size=5,
)
hosts = st.sampled_from(
    [[b"Host: a"]] * 8 + [[], [b"Host: a", b"Host: a"], [b"host:A:80"], [b"Host: "], [b"Host: a b"]]
)
bodies = st.sampled_from([(b"", None)] * 4 + [(b"abc", 3), (b"abc", 2), (b"ab", 3), (b"b" * 20_000, 20_000), (b"", 0)])


@st.composite
def requests(draw: Any) -> bytes:
    body, length = draw(bodies)
    lines = draw(hosts) + draw(request_lines)
    if length is not None:
        lines.insert(draw(st.integers(0, len(lines))), b"Content-Length: %d" % length)
    first = b" ".join([draw(methods), draw(targets), draw(versions)])
    return b"\r\n".join([first, *lines, b"", b""]) + body


statuses = st.sampled_from(
    [b"HTTP/1.1 200 OK"] * 6
    + [b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 404", b"HTTP/1.1 500 ", b"HTTP/1.1 299 Odd"]
    + [b"HTTP/1.0 200 OK", b"HTTP/1.2 200 OK", b"HTTP/1.1 401 Who", b"HTTP/1.1 426 Up", b"HTTP/1.1 100 Continue"]
    + [
        b"HTTP/1.1 099 Low",
        b"HTTP/1.1 20 Short",
        b"HTTP/2 200",
        b"SSH-2.0",
        b"HTTP/1.1 101 Switching",
        b"HTTP/1.1 205 R",
    ]
)
answer_lines = st.lists(
    st.sampled_from(
        [
            *(b"Server: nginx", b"Content-Type: text/html", b"Set-Cookie: a=b", b"set-cookie: c=d", b"ETag: x"),
            *(b"Date: Mon, 01 Jan 2024 00:00:00 GMT", b"date:x", b"Connection: keep-alive", b"Connection: close"),
            *(b"Connection: X-A", b"X-A: 1", b"Close: mine", b"Keep-Alive: timeout=5", b"Via: 1.1 b", b"Trailer: X-T"),
            *(b"WWW-Authenticate: NTLM", b"Upgrade: h2c", b"Transfer-Encoding: chunked", b"X : space", b"NoColon"),
            *(b"X_Under: a", b"X-High: \xff", b"X-Long: " + b"y" * 400, b" folded", b"Proxy-Authenticate: Basic"),
        ]
    ),
    max_size=5,
)
answer_bodies = st.sampled_from(
    [(b"hello", 5)] * 6
    + [(b"", None), (b"hello", None), (b"hello", 4), (b"hell", 5), (b"", 0), (b"z" * 20_000, 20_000), (b"", 7)]
)


@st.composite
def answers(draw: Any) -> bytes:
    body, length = draw(answer_bodies)
    lines = draw(answer_lines)
    if length is not None:
        lines.insert(draw(st.integers(0, len(lines))), b"Content-Length: %d" % length)
    return b"\r\n".join([draw(statuses), *lines, b"", b""]) + body


proxies = st.sampled_from(
    [{}] * 4 + [{"max_requests": 2}, {"abort_on_eof": False}, {"refused_methods": frozenset({"PUT"})}]
)
gateways = st.sampled_from(
    [{}] * 6
    + [
        {"forwarding": Forwarding(preserve_host=False)},
        {"forwarding": Forwarding(preserve_host="own:8000", via="", x_forwarded=False)},
        {"forwarding": Forwarding(allow_underscores=True, proxy_authorization=False)},
        {"guard": GuardOptions(hosts=("a", "warm", "last"), methods=frozenset({"GET", "POST"}))},
        {"guard": GuardOptions(ban_errors=1, ban_statuses=frozenset({404, 500}))},
        {"limits": Limits(max_head=250, max_fields=4, max_target=100, max_body=100)},
        {"answer_limits": Limits(max_head=120, max_fields=3, max_body=10)},
        {"max_replay": 2, "max_requests": 2},
        {"timeouts": ProxyTimeouts(total=5.0)},
    ]
)
routes = st.sampled_from([{}] * 6 + [{"path": "/a", "strip_prefix": True}, {"methods": frozenset({"GET"})}])


@settings(
    max_examples=250,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
@given(
    request=requests(),
    answer=answers(),
    cut=st.sampled_from([0] * 5 + [10, 40]),
    request_cut=st.sampled_from([0] * 5 + [20]),
    server=st.sampled_from(["keeps", "keeps", "closes", "resets"]),
    client=st.sampled_from([*["stays"] * 5, "leaves", "ends"]),
    stale=st.sampled_from([False, False, False, True]),
    proxy=proxies,
    gateway=gateways,
    route=routes,
)
def test_both_do_the_same(request, answer, **more):
    compare(Scene(request, answer, **more))
