"""What a proxy can be told of its upstreams, its timeouts and its log."""

from __future__ import annotations

import dataclasses
import inspect
import re
from math import inf, nan

import pytest

from greensock.http.client.origin import Origin
from greensock.proxy import ListenOptions, LogOptions, ProxyTimeouts, ServerOptions, UpstreamOptions, options

SERVER = ServerOptions("http://127.0.0.1:9000")


def upstream(**given):
    return UpstreamOptions(**{"name": "app", "servers": (SERVER,), **given})


def server(**given):
    return ServerOptions(**{"url": "http://h", **given})


KINDS = {
    ProxyTimeouts: ProxyTimeouts,
    ServerOptions: server,
    UpstreamOptions: upstream,
    LogOptions: LogOptions,
    ListenOptions: ListenOptions,
}
SECONDS = [name for name in ProxyTimeouts.__dataclass_fields__ if name not in ("min_body_rate", "linger", "drain")]


@pytest.mark.parametrize("name", SECONDS)
def test_timeouts(name):
    for good in (None, 1, 0.001):
        assert getattr(ProxyTimeouts(**{name: good}), name) == good
    for bad in (0, -1, inf, nan, "1", True, [1]):
        with pytest.raises(ValueError, match=rf"^{name}=.*: seconds, more than 0, or None expected$"):
            ProxyTimeouts(**{name: bad})


def test_the_timeouts_that_are_usual():
    assert dataclasses.astuple(ProxyTimeouts()) == (10, 60, 256, 75, 60, 10, 5, 60, 60, 60, None, 300, 5, 30)


GOOD = [
    (ProxyTimeouts, "min_body_rate", [0, 1]),
    (ProxyTimeouts, "linger", [0, 0.5]),
    (ProxyTimeouts, "drain", [0, 0.5]),
    (ServerOptions, "weight", [1, 65535]),
    (ServerOptions, "max_connections", [None, 1]),
    (ServerOptions, "max_waiting", [0, 1]),
    (ServerOptions, "backup", [True, False]),
    (ServerOptions, "srv", [True, False]),
    (UpstreamOptions, "name", ["a", "A-b_c.9"]),
    (UpstreamOptions, "balance", ["round_robin", "least_connections", "two_choices", "hash"]),
    (UpstreamOptions, "hash_key", ["client", "header:X-User", "cookie:sid"]),
    (UpstreamOptions, "panic", [True, False]),
    (UpstreamOptions, "retries", [0, 9]),
    (UpstreamOptions, "retry_budget", [0, 0.5, 1]),
    (UpstreamOptions, "min_retry_rate", [0, 1.5]),
    (UpstreamOptions, "max_replay", [0, 1]),
    (UpstreamOptions, "pass_expect", [True, False]),
    (UpstreamOptions, "send_proxy_protocol", [0, 1, 2]),
    (UpstreamOptions, "max_idle", [0, 1]),
    (UpstreamOptions, "idle_timeout", [0.1, 1]),
    (UpstreamOptions, "max_age", [0.1, 1, None]),
    (ListenOptions, "max_connections", [1, None]),
    (ListenOptions, "backlog", [1]),
    (ListenOptions, "max_workers", [1]),
    (ListenOptions, "max_buffered", [0, 1]),
    (ListenOptions, "max_answer_memory", [0, 1]),
    (ListenOptions, "max_answer_files", [0, 1]),
    (UpstreamOptions, "max_requests", [1, None]),
    (UpstreamOptions, "resolve_every", [0.1, 30, None]),
    (UpstreamOptions, "name_servers", [(), ("10.0.0.2", "[::1]:5353")]),
    (LogOptions, "path", ["-", "access.log", None]),
    (LogOptions, "format", ["combined", "json"]),
    (LogOptions, "max_pending", [1, 2]),
]
BAD = [
    (ProxyTimeouts, "min_body_rate", [-1, 1.5, None, True]),
    (ProxyTimeouts, "linger", [-1, None, inf]),
    (ProxyTimeouts, "drain", [-1, None, inf]),
    (ServerOptions, "weight", [0, -1, 65536, 1.5, None]),
    (ServerOptions, "max_connections", [0, "9"]),
    (ServerOptions, "max_waiting", [-1, None]),
    (ServerOptions, "backup", [0, None]),
    (ServerOptions, "srv", [0, None]),
    (UpstreamOptions, "name", ["", "a b", "a/b", "é", None]),
    (UpstreamOptions, "servers", [(), [SERVER], ("http://h",), None]),
    (UpstreamOptions, "balance", ["Hash", "", None]),
    (UpstreamOptions, "hash_key", ["", "header:", "cookie:a b", "query:x", "client:x", None]),
    (UpstreamOptions, "panic", [0, "yes", None]),
    (UpstreamOptions, "retries", [-1, None, True]),
    (UpstreamOptions, "retry_budget", [-0.1, 1.1, nan, None, True]),
    (UpstreamOptions, "min_retry_rate", [-1, inf, nan, None]),
    (UpstreamOptions, "max_replay", [-1, None]),
    (UpstreamOptions, "pass_expect", [0, "yes", None]),
    (UpstreamOptions, "send_proxy_protocol", [3, -1, True, "1", None]),
    (UpstreamOptions, "tls", [{}, True, "ca.pem"]),
    (UpstreamOptions, "max_idle", [-1, None]),
    (UpstreamOptions, "idle_timeout", [0, None]),
    (UpstreamOptions, "max_age", [0, -1]),
    (ListenOptions, "max_connections", [0, 1.5]),
    (ListenOptions, "backlog", [0, None]),
    (ListenOptions, "max_workers", [0, None]),
    (ListenOptions, "max_buffered", [-1, None]),
    (ListenOptions, "max_answer_memory", [-1, None]),
    (ListenOptions, "max_answer_files", [-1, 1.5]),
    (UpstreamOptions, "max_requests", [0, 1.5]),
    (UpstreamOptions, "resolve_every", [0, -1, inf]),
    (UpstreamOptions, "name_servers", [["10.0.0.2"], ("a",), None]),
    (LogOptions, "path", ["", "a\0b", 1]),
    (LogOptions, "format", ["", "JSON", None, "{x}", "{client", "{client}\n"]),
    (LogOptions, "max_pending", [0, None]),
    (LogOptions, "error", ["", "none", "udp://", "udp://h:0", "syslog:", None]),
    (LogOptions, "level", ["", "INFO", "critical", None]),
    (LogOptions, "facility", ["", "local8", 3, None]),
]


@pytest.mark.parametrize(("kind", "name", "values"), GOOD, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_allowed(kind, name, values):
    for value in values:
        assert getattr(KINDS[kind](**{name: value}), name) == value


@pytest.mark.parametrize(("kind", "name", "values"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_not(kind, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"(?s)^{name}={re.escape(repr(value))}: .* expected$"):
            KINDS[kind](**{name: value})


def test_every_option_is_in_these_tables():
    for kind in KINDS:
        of_kind = {name for each, name, _ in BAD if each is kind}
        beyond = set(SECONDS) if kind is ProxyTimeouts else {"url"} if kind is ServerOptions else set()
        assert of_kind | beyond >= {field.name for field in dataclasses.fields(kind)} - {"health", "sticky"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_documented_in_place(kind):
    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    for field in dataclasses.fields(kind):
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{field.name}: "))
        assert re.match(r"#: \S.*\.", lines[place - 1]), field.name


@pytest.mark.parametrize(
    ("url", "address", "authority"),
    [
        ("http://127.0.0.1:9000", ("127.0.0.1", 9000), b"127.0.0.1:9000"),
        ("HTTP://App.Example/", ("app.example", 80), b"app.example"),
        ("http://[::1]:9000", ("::1", 9000), b"[::1]:9000"),
        ("unix:/run/app.sock", "/run/app.sock", b"localhost"),
        ("http+unix://%2Frun%2Fapp.sock", "/run/app.sock", b"localhost"),
    ],
)
def test_where_a_server_is(url, address, authority):
    found = ServerOptions(url)
    assert found.origin == Origin("http", address) or found.origin.address == address
    assert found.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "", "unix:", "unix:/a\0b", "127.0.0.1:9000", "ftp://h", "http://", "http://h:0", "http://h:65536",
        "http://h/pa%74h", "http://h/?x", "http://h?x", "http://h/?", "http://u:p@h", "http://a b", "http://*", None, 9,
    ],
)  # fmt: skip
def test_where_no_server_is(url):
    with pytest.raises(ValueError, match=r"(?s)^url=.* expected"):
        ServerOptions(url)


def test_servers_together():
    with pytest.raises(ValueError, match="each server once expected"):
        upstream(servers=(SERVER, ServerOptions("http://127.0.0.1:9000/")))
    with pytest.raises(ValueError, match="one that is no backup expected"):
        upstream(servers=(server(backup=True),))
    assert len(upstream(servers=(SERVER, server(backup=True))).servers) == 2


def test_names_that_others_use():
    assert options.BALANCE == ("round_robin", "least_connections", "two_choices", "hash")
    assert options.LOG_FORMATS == ("combined", "json")
