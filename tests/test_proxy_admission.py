"""Who may pass: passwords in a file, and another server that is asked first."""

from __future__ import annotations

import base64
import os
import re
import threading

import bcrypt
import gevent
import pytest
from conftest import read_all, wait_until
from proxies import closed_port, fields_of
from proxy_peers import (  # noqa: F401  # fixtures
    dial,
    health_of,
    origin,
    proxied,
    record_of,
)
from scripts import OK, scripted

from greensock.proxy import BasicAuth, ForwardAuth, Forwarding, GuardOptions, Route, StaticAnswer
from greensock.proxy import passwords as module
from greensock.proxy.passwords import PasswordFile, TooManyChecks, read_passwords

CLOSE = b"Host: a:80\r\nConnection: close\r\n\r\n"
#: The cheapest that bcrypt has.
COST = 4


def line(name, password, prefix=b"2b"):
    return name.encode() + b":" + bcrypt.hashpw(password, bcrypt.gensalt(COST, prefix)) + b"\n"


@pytest.fixture(autouse=True, scope="module")
def threads():
    """Those that check passwords stay, as those that look up names do."""
    gevent.get_hub().threadpool.apply(int)


@pytest.fixture(scope="module")
def lines():
    first = line("ada", b"secret").replace(b"$2b$", b"$2y$")
    return first + line("bob", b"l" * 72) + line("z\u00e9", "p\u00e4ss".encode())


@pytest.fixture
def file(tmp_path, lines):
    path = tmp_path / "htpasswd"
    path.write_bytes(b"# who\n\n" + lines)
    return path


def basic(name, password):
    return b"Authorization: Basic %b\r\n" % base64.b64encode(name.encode() + b":" + password)


def ask(dial, proxy, fields=b"", target=b"/", method=b"GET", body=b""):
    return read_all(dial(proxy, b"%b %b HTTP/1.1\r\n%b%b%b" % (method, target, fields, CLOSE, body)))


def status_of(answer):
    return int(answer[9:12])


# -- passwords


def test_who_is_right(file):
    found = PasswordFile(str(file))
    table = [
        ("ada", b"secret", True),
        ("ada", b"Secret", False),
        ("ada", b"", False),
        ("Ada", b"secret", False),
        ("nobody", b"secret", False),
        ("", b"", False),
        ("bob", b"l" * 72, True),
        ("bob", b"l" * 80, True),  # as htpasswd cuts it
        ("bob", b"l" * 71, False),
        ("z\u00e9", "p\u00e4ss".encode(), True),
        ("ada", b"sec\0ret", False),
    ]
    for name, password, is_right in table * 2:
        assert found.is_right(name.encode(), password) is is_right, (name, password)


def test_what_was_right_is_remembered_and_what_was_wrong_is_not(file, monkeypatch):
    checks, check = [], bcrypt.checkpw
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(bcrypt, "checkpw", lambda *given: checks.append(threading.get_ident()) or check(*given))
    found = PasswordFile(str(file))
    for _ in range(3):
        assert found.is_right(b"ada", b"secret")
        assert not found.is_right(b"ada", b"wrong")
        assert not found.is_right(b"nobody", b"secret"), "and it costs the same"
    assert len(checks) == 1 + 3 + 3
    assert threading.get_ident() not in checks, "the hub is not held"
    file.write_bytes(line("ada", b"other"))
    os.utime(file, (1, 1))
    assert not found.is_right(b"ada", b"secret")
    assert found.is_right(b"ada", b"other")
    many = [gevent.spawn(found.is_right, b"ada", b"more") for _ in range(9)]
    before = len(checks)
    assert [job.get() for job in many] == [False] * 9
    assert len(checks) == before + 1, "the same at the same time is one check"
    file.write_bytes(b"nonsense")
    assert found.is_right(b"ada", b"other"), "that of before goes on"
    file.write_bytes(b"")
    assert not found.is_right(b"ada", b"other")


def test_checks_that_wait_have_a_bound(file, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    found = PasswordFile(str(file))
    jobs = [gevent.spawn(found.is_right, b"ada", b"%d" % number) for number in range(5)]
    gevent.joinall(jobs)
    assert sum(isinstance(job.exception, TooManyChecks) for job in jobs) == 3
    assert found.is_right(b"ada", b"secret")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"ada", "line 1: name:hash expected"),
        (b"#\n:x", "line 2: name:hash expected"),
        (b"ada:secret", "line 1: the password of 'ada' is no hash that is known: one of htpasswd -B expected (bcrypt)"),
        (b"ada:$apr1$r31$x", "line 1: the password of 'ada' is MD5: "),
        (b"ada:{SHA}x=", "line 1: the password of 'ada' is SHA-1: "),
        (b"ada:$6$x$y", "line 1: the password of 'ada' is SHA-512 of crypt: "),
        (b"ada:$2y$99$" + b"x" * 53, "line 1: the password of 'ada' is no hash that is known"),
        (b"a:$2y$05$" + b"x" * 53 + b"\na:$2y$05$" + b"x" * 53, "line 2: 'a': each name once expected"),
    ],
)
def test_a_file_that_is_not_understood(file, text, problem):
    file.write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(problem)):
        read_passwords(str(file))
    with pytest.raises(ValueError, match=rf"^file='.*': {re.escape(problem)}"):
        BasicAuth(str(file))


def test_options_of_passwords(file):
    with pytest.raises(ValueError, match=r"^file='/nowhere': a file that can be read expected \(No such file"):
        BasicAuth("/nowhere")
    for option, value in (("realm", 'a"b'), ("realm", "\u00e9"), ("user_field", "a b"), ("user_field", "Host")):
        with pytest.raises(ValueError, match=rf"^{option}=.* expected$"):
            BasicAuth(str(file), **{option: value})


def test_a_password_is_asked_for(proxied, dial, origin, file):
    auth = BasicAuth(str(file), realm="the site", user_field="X-User")
    routes = [Route("site", basic_auth=auth), Route(StaticAnswer(200, "fine"), path="/fine", basic_auth=auth)]
    proxy = proxied(origin.url, routes=routes, guard=GuardOptions(ban_errors=20))
    wrong = [
        b"",
        b"Authorization: Basic\r\n",
        b"Authorization: Basic !!\r\n",
        b"Authorization: Basic " + base64.b64encode(b"ada") + b"\r\n",
        b"Authorization: Bearer x\r\n",
        basic("ada", b"wrong"),
        basic("a\rda", b"secret"),
        basic("ada", b"secret") * 2,
    ]
    for fields in wrong:
        answer = ask(dial, proxy, fields, method=b"POST", body=b"")
        assert status_of(answer) == 401
        assert b'\r\nWWW-Authenticate: Basic realm="the site", charset="UTF-8"\r\n' in answer
    assert status_of(ask(dial, proxy, target=b"/fine")) == 401
    assert not origin.seen
    forged = b"X-User: root\r\nx-user: root\r\n"
    assert status_of(ask(dial, proxy, forged + basic("ada", b"secret"))) == 200
    assert status_of(ask(dial, proxy, basic("ada", b"secret"), b"/fine")) == 200
    fields = fields_of(origin.seen[0][2])
    assert fields["x-user"] == "ada"
    assert "authorization" not in fields
    assert proxy.records[-1].user == "ada"
    assert proxy.records[0].reason == "unauthorized"
    assert health_of(proxy) == (1, 0)


def test_a_password_that_goes_on(proxied, dial, origin, file):
    proxy = proxied(origin.url, routes=[Route("site", basic_auth=BasicAuth(str(file), pass_on=True))])
    assert status_of(ask(dial, proxy, basic("ada", b"secret"))) == 200
    assert fields_of(origin.seen[0][2])["authorization"].startswith("Basic ")


# -- another server


def judge(answer):
    def script(server, sock, number):
        while server.head(sock):
            sock.sendall(answer)

    return script


PASSES = OK.replace(b"\r\n\r\n", b"\r\nX-User: ada\r\nX-Group: a\r\nX-Group: b\r\nSet-Cookie: no=1\r\n\r\n")
REFUSES = (
    b"HTTP/1.1 302 Found\r\nContent-Length: 5\r\nLocation: https://login.example/?x\r\nSet-Cookie: a=b\r\n"
    b"Set-Cookie: c=d\r\nContent-Type: text/x\r\nKeep-Alive: x\r\nX-Accel-Buffering: no\r\n\r\nlogin"
)


def test_who_is_asked_lets_it_pass(proxied, dial, origin):
    """It is asked once for each request, on a kept connection, with what was asked and no body."""
    with scripted(judge(PASSES)) as server:
        auth = ForwardAuth(server.url + "/verify?a=b", copy=("X-User", "X-Group", "X-None"))
        proxy = proxied(origin.url, routes=[Route("site", auth=auth)])
        fields = (
            b"X-User: root\r\nX-None: forged\r\nCookie: s=t\r\nIf-None-Match: x\r\nContent-Type: text/y\r\n"
            b"X-Forwarded-Uri: /forged\r\nX-Forwarded-Method: FORGED\r\nContent-Length: 4\r\n"
        )
        for _ in range(2):
            answer = ask(dial, proxy, fields, b"/p?q=r", b"POST", b"body")
            assert status_of(answer) == 200
            assert b"no=1" not in answer
        assert server.accepted == 1
        first, *said = server.heads[0].split(b"\r\n")
        assert first == b"GET /verify?a=b HTTP/1.1"
        told = {each.partition(b": ")[0].lower(): each.partition(b": ")[2] for each in said if each}
        assert told[b"host"] == server.url.removeprefix("http://").encode()
        assert told[b"x-forwarded-method"] == b"POST"
        assert told[b"x-forwarded-uri"] == b"/p?q=r"
        assert told[b"x-forwarded-host"] == b"a:80"
        assert told[b"x-forwarded-proto"] == b"http"
        assert told[b"x-forwarded-for"] == b"127.0.0.1"
        assert told[b"cookie"] == b"s=t"
        assert not told.keys() & {b"x-user", b"x-none"}, "it may believe them"
        assert not told.keys() & {b"content-length", b"transfer-encoding", b"if-none-match", b"content-type"}
        _, _, raw, body = origin.seen[0]
        assert body == b"body"
        assert [value for name, value in raw if name.lower() == b"x-user"] == [b"ada"]
        assert [value for name, value in raw if name.lower() == b"x-group"] == [b"a", b"b"]
        assert not [name for name, _ in raw if name.lower() == b"x-none"]


def reads_all(server, sock, number):
    """Take what follows a head for one more, up to the end of the trailers; then answer."""
    server.head(sock)
    server.head(sock)
    sock.sendall(OK)


def test_no_trailer_brings_what_is_copied(proxied, dial, origin):
    with scripted(judge(PASSES)) as server, scripted(reads_all) as site:
        proxy = proxied(site.url, routes=[Route("site", auth=ForwardAuth(server.url, copy=("X-User",)))])
        body = b"3\r\nabc\r\n0\r\nX-User: root\r\nX-Other: a\r\n\r\n"
        assert status_of(ask(dial, proxy, b"Transfer-Encoding: chunked\r\n", b"/", b"POST", body)) == 200
        assert b"X-User: ada\r\n" in site.heads[0]
        assert b"X-Other: a\r\n" in site.heads[1]
        assert b"X-User" not in site.heads[1]


def test_no_underscore_stands_for_what_is_copied(proxied, dial, origin):
    with scripted(judge(PASSES)) as server:
        auth = ForwardAuth(server.url, copy=("X-User",), fields=("X-Wanted",))
        forwarding = Forwarding(allow_underscores=True)
        proxy = proxied(origin.url, routes=[Route("site", auth=auth)], forwarding=forwarding)
        ask(dial, proxy, b"X_User: root\r\nX-Other: a\r\nX-Wanted: b\r\n")
        assert b"x_user" not in [name.lower() for name, _ in origin.seen[0][2]]
        assert b"\r\nX-Wanted: b\r\n" in server.heads[0]
        assert b"X-Other" not in server.heads[0]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_who_is_asked_refuses(proxied, dial, origin, method):
    with scripted(judge(REFUSES)) as server:
        proxy = proxied(origin.url, routes=[Route("site", auth=ForwardAuth(server.url))])
        fields = b"Content-Length: 4\r\n" if method == b"POST" else b""
        answer = ask(dial, proxy, fields, b"/", method, b"body" if fields else b"")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 302 ")
        lines = head.split(b"\r\n")
        for field in (b"Location: https://login.example/?x", b"Set-Cookie: a=b", b"Set-Cookie: c=d"):
            assert field in lines
        assert b"Content-Type: text/x" in lines
        assert b"X-Accel" not in head
        assert b"Content-Length: 5" in head
        assert body == (b"" if method == b"HEAD" else b"login")
        assert not origin.seen
        assert record_of(proxy).reason == "auth-denied"


def stalls(server, sock, number):
    server.head(sock)
    sock.recv(1)


FAILING = {
    "nobody is there": (None, 502, "auth-failed"),
    "it speaks no HTTP": (judge(b"SSH-2.0\r\n\r\n"), 502, "auth-failed"),
    "it closes": (lambda server, sock, number: server.head(sock), 502, "auth-failed"),
    "it refuses at length": (
        judge(b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\n" + b"x" * 100),
        502,
        "auth-failed",
    ),
    "it breaks off": (
        lambda server, sock, number: server.head(sock) and sock.sendall(b"HTTP/1.1 403\r\nContent-Length: 9\r\n\r\n"),
        502,
        "auth-failed",
    ),
    "it is silent": (stalls, 504, "auth-timeout"),
}


@pytest.mark.parametrize("how", FAILING)
def test_who_can_not_be_asked_lets_nobody_pass(proxied, dial, origin, how, caplog):
    script, status, reason = FAILING[how]
    with scripted(script or stalls) as server:
        url = server.url if script else f"http://127.0.0.1:{closed_port()}"
        proxy = proxied(origin.url, routes=[Route("site", auth=ForwardAuth(url, timeout=0.2, max_body=50))])
        for _ in range(2):
            assert status_of(ask(dial, proxy)) == status
        assert not origin.seen
        assert [record.reason for record in proxy.records] == [reason] * 2
        assert proxy.failures[reason] == 2
        assert health_of(proxy) == (0, 0), "no server of the upstream is to blame"
        assert caplog.text.count("could not be asked whether requests may pass") == 1


def test_options_of_who_is_asked():
    for options, text in (
        ({"url": "nonsense"}, "^url='nonsense': http"),
        ({"url": ""}, "^url='': .* expected$"),
        ({"copy": ("a b",)}, "^copy=.* expected$"),
        ({"copy": ("Content-Length",)}, "^copy=.* expected$"),
        ({"fields": "x"}, "^fields='x': .* expected$"),
        ({"timeout": 0}, "^timeout=0: .* expected$"),
        ({"max_connections": 0}, "^max_connections=0: .* expected$"),
    ):
        with pytest.raises(ValueError, match=text):
            ForwardAuth(**{"url": "http://a", **options})


def test_both_are_asked(proxied, dial, origin, file):
    """The password first; and the server is told whose it was by us, and by nobody else."""
    with scripted(judge(PASSES)) as server:
        passwords = BasicAuth(str(file), user_field="X-Name")
        routes = [Route("site", auth=ForwardAuth(server.url, copy=("X-User",)), basic_auth=passwords)]
        proxy = proxied(origin.url, routes=routes)
        assert status_of(ask(dial, proxy)) == 401
        assert not server.heads
        assert status_of(ask(dial, proxy, b"X-Name: root\r\n" + basic("ada", b"secret"))) == 200
        wait_until(lambda: len(server.heads) == 1)
        assert re.findall(rb"X-Name: (.*)\r\n", server.heads[0]) == [b"ada"]
        assert basic("ada", b"secret") in server.heads[0]
