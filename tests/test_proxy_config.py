"""A configuration: what is made of a sound one, and what is said of each that is not."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import re
import socket
from pathlib import Path

import pytest

from greensock.http import Limits
from greensock.operations.operations_options import OperationsOptions
from greensock.proxy import (
    BasicAuth,
    Buffering,
    ConfigError,
    FieldEdits,
    ForwardAuth,
    Forwarding,
    GuardOptions,
    HealthOptions,
    ListenOptions,
    ListenTLS,
    LogOptions,
    ProxyTimeouts,
    Redirect,
    Route,
    ServerOptions,
    StaticAnswer,
    StickyCookie,
    UpstreamOptions,
    UpstreamTLS,
    check_listeners,
    load_config,
    parse_config,
)
from greensock.proxy import config as config_module

SOUND = {
    "listen": ["127.0.0.1:8080", ":81", "[::1]:82", "/run/proxy.sock"],
    "proxy_protocol": True,
    "log": {"path": None, "format": "json"},
    "server": {"max_connections": 1000},
    "limits": {"max_head": 8192},
    "answer_limits": {"max_body": 1000000},
    "timeouts": {"connect": 1.0},
    "forwarding": {"trusted": ["10.0.0.0/8"], "preserve_host": False},
    "guard": {"request_rate": 10, "methods": ["GET", "POST"], "ban_statuses": [400, 404]},
    "operations": {"address": "127.0.0.1:9180", "token": "0123456789abcdef", "max_hold": 1},
    "upstreams": {
        "app": {
            "servers": ["http://127.0.0.1:9000", {"url": "unix:/run/app.sock", "weight": 2, "backup": True}],
            "balance": "least_connections",
            "health": {"path": "/ok", "interval": 1},
            "sticky": {"name": "node", "secret": "0123456789abcdef"},
        }
    },
    "routes": [
        {"path": "/static", "answer": {"status": 200, "body": "hello"}},
        {"path": "/old", "redirect": {"location": "https://{host}{target}"}},
        {"hosts": ["a.example"], "upstream": "app", "request_fields": {"set": {"X-A": "{client}"}, "remove": ["B"]}},
        {
            "upstream": "app",
            "methods": ["GET"],
            "timeouts": {"total": 5},
            "auth": {"url": "http://127.0.0.1:9100/verify", "copy": ["X-User"]},
            "buffer": {"memory": 1000},
        },
    ],
    "buffer": {"file": 1000000},
}


def changed(path, value):
    config = copy.deepcopy(SOUND)
    *way, last = path.split("/")
    place = config
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    if value is KeyError:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return config


def problems(mapping):
    with pytest.raises(ConfigError) as caught:
        parse_config(mapping, "f.toml")
    return str(caught.value).splitlines()


def test_a_sound_one():
    config = parse_config(SOUND)
    assert config.listen == (("127.0.0.1", 8080), ("", 81), ("::1", 82), "/run/proxy.sock")
    assert config.timeouts.connect == 1.0
    assert config.guard.methods == {"GET", "POST"}
    assert config.forwarding.trusted == ("10.0.0.0/8",)
    (group, health, sticky) = config.upstreams[0]
    assert [server.weight for server in group.servers] == [1, 2]
    assert (health.path, sticky.secret) == ("/ok", b"0123456789abcdef")
    assert [type(route.action) for route in config.routes] == [StaticAnswer, Redirect, str, str]
    assert config.routes[3].timeouts.total == 5
    gateway = config.gateway()
    assert gateway.log is None
    assert list(gateway.upstreams) == ["app"]


@pytest.mark.parametrize("given", [True, False])
def test_whether_a_client_that_closes_its_half_has_left(given):
    assert parse_config(SOUND).abort_on_eof is True
    assert parse_config({**SOUND, "abort_on_eof": given}).abort_on_eof is given


def test_where_it_cannot_listen(tmp_path, monkeypatch):
    """What ``--check`` finds, and nothing is listened on for it."""
    monkeypatch.setattr(config_module, "may_listen", lambda port: port != 7)
    plain = tmp_path / "file"
    plain.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "there.sock"))
        sound = ["127.0.0.1:0", ":1", "*:2", "localhost:3", f"127.0.0.1:{taken.getsockname()[1]}"]
        sound += [str(tmp_path / "new.sock"), f"unix:{tmp_path}/there.sock"]
        assert check_listeners(parse_config({**SOUND, "listen": sound})) == []
    wrong = {
        "192.0.2.1:80": "an address of this machine expected",
        "no.invalid:80": "an address of this machine expected: ",
        "127.0.0.1:7": "a port from 1024 on expected, or the right to have a lower one",
        str(plain): "a socket, or nothing, expected: something else is there",
        f"{tmp_path}/none/x.sock": "a path in a directory that is there expected",
        f"{tmp_path}/{'x' * 100}.sock": "a path of at most 107 bytes expected",
        f"{plain}/x.sock": "a path that can be listened on expected: Not a directory",
    }
    found = check_listeners(parse_config({**SOUND, "listen": list(wrong)}), "f.toml")
    assert len(found) == len(wrong)
    for problem, (address, text) in zip(map(str, found), wrong.items(), strict=True):
        assert problem.startswith("f.toml: listen = ")
        assert text in problem, address


def test_one_upstream_needs_no_route():
    config = parse_config({"upstreams": {"app": {"servers": ["http://a"]}}})
    assert [route.action for route in config.routes] == ["app"]
    assert config.listen == (("127.0.0.1", 8080),)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("listen", [], "listen = []: a list of HOST:PORT"),
        ("listen/0", "nonsense", 'listen = "nonsense": HOST:PORT'),
        ("listen/0", "a:70000", 'listen = "a:70000": HOST:PORT'),
        ("listen/0", 80, "listen = 80: HOST:PORT"),
        ("listen/1", "127.0.0.1:8080", "each address once expected"),
        ("listen/0", ":81", 'listen = ":81": each address once expected'),
        ("listen/0", "*:81", 'listen = ":81": each address once expected'),
        ("listen/0", "127.0.0.1:81", 'listen = ":81": each address once expected'),
        ("listen/0", "[::]:82", 'listen = "[::1]:82": each address once expected'),
        ("listen/0", "/run/proxy.sock", 'listen = "/run/proxy.sock": each address once expected'),
        ("listen/0", ":9000", "[upstreams.app] servers = "),
        ("listen/0", "127.0.0.1:9000", "[upstreams.app] servers = "),
        ("proxy_protocol", "yes", 'proxy_protocol = "yes": true or false expected'),
        ("listen/0", "https://a:443", 'listen = "https://a:443": tls is of a listener: '),
        ("listen/0", "http://a:80", 'listen = "http://a:80": HOST:PORT'),
        ("abort_on_eof", 1, "abort_on_eof = 1: true or false expected"),
        ("tls", {}, "tls = {}: of a listener: listen = "),
        ("metrics", True, "metrics = true: at the operators' address"),
        ("cache", {}, "cache = {}: not there yet"),
        ("nonsense", {}, "nonsense = {}: no such key: one of listen, proxy_protocol, "),
        ("timeout", {}, "timeout = {}: no such key: timeouts?"),
        ("log", [], "[log] = []: a table expected"),
        ("log/format", "xml", '[log] format = "xml": '),
        ("log/format", "{remote_addr}", '= "{remote_addr}": {client} in the place of {remote_addr} expected'),
        ("log/error", "udp://a:b", '[log] error = "udp://a:b": a path, '),
        ("log/error", "/nowhere/errors", '[log] error = "/nowhere/errors": a file in a directory that is there'),
        ("log/level", "warn", "'warning' or 'error' expected: warning?"),
        ("log/max_pending", 0, "[log] max_pending = 0: "),
        ("log/paths", "x", '[log] paths = "x": no such key: path?'),
        ("limits/max_head", 0, "[limits] max_head = 0: a whole number of at least 1 expected"),
        ("limits/max_head", "8x", '[limits] max_head = "8x": a whole number'),
        ("timeouts/connect", 0, '[timeouts] connect = 0: seconds, more than 0, or "none" expected'),
        ("timeouts/upstream_head", "1M", '[timeouts] upstream_head = "1M": seconds'),
        ("forwarding/trusted", ["10.0.0.0/33"], '[forwarding] trusted = ["10.0.0.0/33"]: a list of addresses'),
        ("forwarding/preserve_host", "a b", '[forwarding] preserve_host = "a b": true, false'),
        ("forwarding/via", "a b", '[forwarding] via = "a b": '),
        ("guard/request_rate", -1, "[guard] request_rate = -1: a number of requests"),
        ("guard/methods", [], "[guard] methods = []: a list of methods, not empty"),
        ("guard/hosts", ["a:80"], '[guard] hosts = ["a:80"]: a list of names'),
        ("guard/ban_time", 0, "[guard] ban_time = 0: seconds"),
        ("operations/address", ":82", '[operations] address = ":82": an address of its own expected'),
        ("operations", {"address": "a:9180"}, '[operations] address = "a:9180": one of this machine'),
        ("operations/token", "short", '[operations] token = "...": at least 16 letters'),
        ("operations/max_hold", 0, '[operations] max_hold = 0: seconds, more than 0, or "none" expected'),
        ("guard/deny", ["10.0.0.1/8"], '[guard] deny = ["10.0.0.1/8"]: a list of addresses'),
        ("guard/deny_file", "/nowhere", '[guard] deny_file = "/nowhere": No such file or directory: a file'),
        ("guard/storage", "http://u:secret@a", '[guard] storage = "...": redis://HOST:PORT/NUMBER'),
        ("routes/3/guard", {"request_rate": 0}, "[[routes]] no. 4 guard request_rate = 0: a number of requests"),
        ("routes/3/guard", {"hosts": ["a"]}, '[[routes]] no. 4 guard hosts = ["a"]: only in [guard]: it is for all'),
        ("routes/3/guard", {"max_connection": 1}, "[[routes]] no. 4 guard max_connection = 1: no such key"),
        ("error_pages", {"404": "/nowhere"}, '[error_pages] 404 = "/nowhere": a file that can be read expected'),
        ("upstreams/app", 1, "[upstreams.app] = 1: a table expected"),
        ("upstreams/app/servers", [], "[upstreams.app] servers = []: a list of http://HOST:PORT"),
        ("upstreams/app/servers/0", "http://a/b?c", 'servers no. 1 url = "http://a/b?c": a plain path'),
        ("upstreams/app/servers/1/weight", 0, "[upstreams.app] servers no. 2 weight = 0: a whole number from 1"),
        ("upstreams/app/servers/1/url", KeyError, "[upstreams.app] servers no. 2 url: missing"),
        ("upstreams/app/servers/1/wight", 2, "servers no. 2 wight = 2: no such key: weight?"),
        ("upstreams/app/balance", "round-robbin", "or 'hash' expected: round_robin?"),
        ("upstreams/app/hash_key", "header", '[upstreams.app] hash_key = "header": '),
        ("upstreams/app/server", "x", '[upstreams.app] server = "x": no such key: servers?'),
        ("upstreams/app/helth", {}, "[upstreams.app] helth = {}: no such key: health?"),
        ("upstreams/app/panic", "yes", '[upstreams.app] panic = "yes": true or false expected'),
        (
            "upstreams/app/servers/0",
            "a:80",
            '[upstreams.app] servers no. 1 url = "a:80": http://host[:port], https://host[:port] or unix:/path',
        ),
        ("upstreams/app/retries", -1, "[upstreams.app] retries = -1: "),
        ("upstreams/app/retry_budget", 2, "[upstreams.app] retry_budget = 2: a number from 0 to 1"),
        ("upstreams/app/send_proxy_protocol", 3, "[upstreams.app] send_proxy_protocol = 3: "),
        ("upstreams/app/health/path", "ok", '[upstreams.app.health] path = "ok": a path that begins with /'),
        ("upstreams/app/health/status", "2xx", '[upstreams.app.health] status = "2xx": statuses'),
        (
            "upstreams/app/sticky/secret",
            "short",
            '[upstreams.app.sticky] secret = "...": text, at least 16 bytes, expected',
        ),
        ("upstreams/app/sticky/name", KeyError, "[upstreams.app.sticky] name: missing"),
        ("upstreams/app/sticky/old_secrets", ["hidden"], '[upstreams.app.sticky] old_secrets = "...": a list of up to'),
        ("upstreams/app/sticky", {"secret": "hidden"}, "[upstreams.app.sticky] name: missing"),
        ("upstreams/app/servers/1/url", "http://127.0.0.1:9000", "[upstreams.app] servers: each server once expected"),
        ("upstreams/a b", {"servers": ["http://b"]}, "[upstreams.a b] name: letters, digits"),
        ("upstreams/unused", {"servers": ["http://b"]}, "[upstreams.unused]: no route leads there"),
        ("routes", {}, "[[routes]] = {}: tables, each with [[routes]] above it, expected"),
        ("routes/0", 5, "[[routes]] no. 1 = 5: a table expected"),
        ("routes/0/upstream", "app", "[[routes]] no. 1: one of upstream, answer, redirect expected"),
        ("routes/3/upstream", "ap", '[[routes]] no. 4 upstream = "ap": one of app expected: app?'),
        ("routes/0/path", "static", '[[routes]] no. 1 path = "static": a path that begins'),
        ("routes/0/answer/status", 99, "[[routes]] no. 1 answer status = 99: 200 to 599 expected"),
        ("routes/1/redirect/location", "{host}", '[[routes]] no. 2 redirect location = "{host}": '),
        ("routes/1/redirect/status", 200, "[[routes]] no. 2 redirect status = 200: one of 301"),
        ("routes/2/hosts", ["a b"], '[[routes]] no. 3 hosts = ["a b"]: a list of names'),
        ("routes/2/request_fields/set", {"Host": "x"}, "[[routes]] no. 3 request_fields set"),
        ("routes/3/timeouts/total", -5, "[[routes]] no. 4 timeouts total = -5: seconds"),
        ("routes/3/timeouts/keep_alive", 5, "[[routes]] no. 4 timeouts keep_alive = 5: only in [timeouts]"),
        ("routes/3/timeouts", {"head": 5}, "[[routes]] no. 4 timeouts head = 5: no such key: upstream_head?"),
        ("routes/3/upstreem", "app", '[[routes]] no. 4 upstreem = "app": no such key: upstream?'),
        ("routes/3/hosts", "a", "[[routes]] no. 4 hosts = \"a\": a list of names like 'example.org'"),
        ("routes/3/methods", "GET", '[[routes]] no. 4 methods = "GET": a list of methods, or "none" expected'),
        ("routes/2/request_fields/remove", "B", 'request_fields remove = "B": a list of names of fields expected'),
        ("routes/2/request_fields/set", {"X A": "x"}, "field 'X A': a token (letters, digits, hyphens) expected"),
        ("routes/3/headers", {"X-A": 1}, "[[routes]] no. 4 headers = { X-A = 1 }: names of fields"),
        ("routes/2/response_fields", {"add": {"X-A": "{nobody}"}}, "[[routes]] no. 3 response_fields add = { X-A = "),
        ("buffer/memory", -1, "[buffer] memory = -1: a whole number of at least 0 expected"),
        ("buffer", 5, "[buffer] = 5: a table expected"),
        ("routes/3/buffer/file", "x", '[[routes]] no. 4 buffer file = "x": a whole number'),
        ("routes/3/auth", {}, "[[routes]] no. 4 auth url: missing"),
        ("routes/3/auth/url", "x", '[[routes]] no. 4 auth url = "x": http'),
        ("routes/3/auth/copy", "X-User", '[[routes]] no. 4 auth copy = "X-User": a list of names of fields'),
        ("routes/3/basic_auth", {}, "[[routes]] no. 4 basic_auth file: missing"),
        ("routes/3/basic_auth", {"file": "/no"}, '[[routes]] no. 4 basic_auth file = "/no": a file that can be read'),
        ("routes/3/pattern", "(", '[[routes]] no. 4 pattern = "(": a regular expression of RE2 expected'),
        ("routes/3/rewrite", "/{match.x}", '[[routes]] no. 4 rewrite = "/{match.x}": {match.x}: a named group'),
        ("routes/3/query", {"a": 1}, "[[routes]] no. 4 query = { a = 1 }: names of fields of the query"),
        ("forwarding", {}, "proxy_protocol = true: forwarding.trusted to name who may send it expected"),
        ("log", {"path": "/nowhere/a.log"}, '[log] path = "/nowhere/a.log": a file in a directory that is there'),
        ("log", {"path": "/etc"}, '[log] path = "/etc": a file in'),
        ("error_pages", {"200": "/etc/hostname"}, '[error_pages] 200 = "/etc/hostname": a status from 400 to 599'),
        ("error_pages", {"404": "/dev/zero"}, '[error_pages] 404 = "/dev/zero": a file that can be read expected'),
        ("error_pages", {"404": 5}, "[error_pages] 404 = 5: a file that can be read expected"),
        ("error_pages", ["x"], '[error_pages] = ["x"]: a table expected'),
        ("routes/0", SOUND["routes"][3], "[[routes]] no. 4: the same as one before"),
    ],
)
def test_what_is_wrong(path, value, line):
    found = problems(changed(path, value))
    assert all(each.startswith("f.toml: ") for each in found)
    assert any(line in each for each in found), found
    assert len(found) <= 2
    assert "0123456789abcdef" not in str(found), "no secret is told"
    assert "hidden" not in str(found), "nor a wrong one"


def test_addresses_that_go_together():
    for both in (["a:80", "b:80"], ["0.0.0.0:80", "[::1]:80"], ["127.0.0.1:0", "127.0.0.1:0"], [":80", ":81"]):
        assert len(parse_config(changed("listen", both)).listen) == 2


def test_everything_in_one_go():
    config = changed("timeouts", {"connect": -1, "send": "x", "nonsense": 1})
    config["limits"] = {"max_head": 0, "max_fields": -1}
    assert len(problems(config)) == 5


@pytest.mark.parametrize(
    ("path", "value", "keys"),
    [
        ("upstreams/app/servers/1", {"weight": 0, "max_waiting": -1}, {"url", "weight", "max_waiting"}),
        ("upstreams/app/servers/1", {"url": "ftp://x", "weight": 0, "x": 1}, {"url", "weight", "x"}),
        ("upstreams/app", {"servers": ["ftp://x"], "balance": "x", "retries": -1}, {"url", "balance", "retries"}),
        ("upstreams/app", {"balance": "x", "health": {"rise": 0, "fall": 0}}, {"servers", "balance", "rise", "fall"}),
        ("upstreams/app/sticky", {"secret": "x", "ttl": 0, "path": ""}, {"name", "secret", "ttl", "path"}),
        ("routes/3", {"path": "x", "hosts": ["a b"], "timeouts": {"total": -1}}, {"", "path", "hosts", "total"}),
        ("routes/3", {"upstream": "x", "answer": {}, "retries": -1}, {"", "retries"}),
        ("routes/1/redirect", {"status": 1, "to": "/"}, {"location", "status", "to"}),
        (
            "routes/2/request_fields",
            {"set": {"a b": ""}, "add": {"Host": ""}, "remove": ["TE"]},
            {"set", "add", "remove"},
        ),
    ],
)
def test_what_is_wrong_hides_nothing(path, value, keys):
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(path, value))
    assert {problem.key for problem in caught.value.errors} == keys
    assert len(caught.value.errors) == len(keys)


def test_a_route_has_the_proxys_timeouts_but_its_own():
    config = parse_config(changed("timeouts", {"connect": 1.5, "tunnel": "none", "keep_alive": 7}))
    own = config.routes[3].timeouts
    assert own == dataclasses.replace(config.timeouts, total=5)
    assert (own.connect, own.tunnel, own.keep_alive) == (1.5, None, 7)
    assert parse_config(changed("routes/3/timeouts", {"queue": "none"})).routes[3].timeouts.queue is None


def test_none_is_a_word_only_where_a_text_would_not_be():
    config = parse_config(changed("log", {"path": "none"}))
    assert config.log.path is None
    config = parse_config(changed("upstreams/app/health/body", "none"))
    assert config.upstreams[0][1].body == "none"


def test_none_is_what_a_key_is_by_default_too():
    assert parse_config(changed("timeouts", {"total": "none"})).timeouts.total is None
    config = parse_config({**changed("routes/3/timeouts", {"total": "none"}), "timeouts": {"total": 30}})
    assert config.timeouts.total == 30
    assert config.routes[3].timeouts.total is None, "a route may lift what the proxy bounds"
    for path in ("guard/methods", "guard/hosts", "guard/max_uploads", "routes/3/methods", "routes/3/retries", "server"):
        parse_config(changed(path, {"max_connections": "none"} if path == "server" else "none"))


def test_none_is_offered_only_where_it_is_taken():
    [said] = problems(changed("upstreams/app/health/path", 5))
    assert said.endswith("path = 5: a path that begins with /, percent-encoded expected")
    [said] = problems(changed("upstreams/app/health/path", "none"))
    assert '"none" expected' not in said


def test_fields_that_a_route_asks_for():
    for key in ("headers", "cookies", "query"):
        config = parse_config(changed(f"routes/3/{key}", {"X-A": True, "X-B": "c"}))
        assert getattr(config.routes[3], key) == {"X-A": None, "X-B": "c"}


def test_what_is_held_of_answers():
    config = parse_config(SOUND)
    assert (config.buffer, config.routes[3].buffer) == (Buffering(file=1_000_000), Buffering(memory=1000))
    assert config.gateway().buffering == config.buffer
    config = parse_config({**changed("routes/3/buffer", False), "buffer": False})
    assert (bool(config.buffer), bool(config.routes[3].buffer)) == (False, False)
    assert parse_config({"upstreams": SOUND["upstreams"]}).buffer == Buffering()


def test_error_pages_say_what_they_are(tmp_path):
    pages = {}
    for status, name in {"404": "a.html", "403": "b.JSON", "5xx": "c.txt", "4xx": "d"}.items():
        (tmp_path / name).write_text(name)
        pages[status] = str(tmp_path / name)
    found = parse_config(changed("error_pages", pages)).error_pages
    assert found.page(404) == (b"a.html", "text/html; charset=utf-8")
    assert found.page(403) == (b"b.JSON", "application/json")
    assert found.page(500) == (b"c.txt", "text/plain; charset=utf-8")
    assert found.page(400) == (b"d", "text/html; charset=utf-8")


def places(config, path=""):
    inner = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in inner:
        yield f"{path}{key}"
        yield from places(value, f"{path}{key}/")


def errors_of(mapping):
    """Return what is said against it; None if it is taken."""
    try:
        parse_config(mapping)
    except ConfigError as error:
        return error.errors
    return None


JUNK = [
    0,
    -1,
    1.5,
    float("nan"),
    True,
    "",
    "x",
    "a b",
    "\0",
    "://",
    "é",
    [],
    [[]],
    [{}],
    ["a", 1],
    {},
    {"a": []},
    10**30,
]
JUNK.append(datetime.date(2020, 1, 1))


@pytest.mark.parametrize("path", [path for path in places(SOUND) if "set/" not in path and "preserve" not in path])
def test_whatever_stands_there_is_taken_or_explained(path):
    for junk in JUNK:
        found = errors_of(changed(path, junk))
        assert found is None or (found and all(problem.expected for problem in found)), junk


KINDS = {
    "log": LogOptions,
    "server": ListenOptions,
    "limits": Limits,
    "answer_limits": Limits,
    "timeouts": ProxyTimeouts,
    "forwarding": Forwarding,
    "guard": GuardOptions,
    "operations": OperationsOptions,
    "upstreams/app": UpstreamOptions,
    "upstreams/app/health": HealthOptions,
    "upstreams/app/sticky": StickyCookie,
    "upstreams/app/servers/1": ServerOptions,
    "routes/3": Route,
    "routes/3/auth": ForwardAuth,
    "routes/3/buffer": Buffering,
    "buffer": Buffering,
    "routes/0/answer": StaticAnswer,
    "routes/1/redirect": Redirect,
}
#: Fields that are no keys: they are said elsewhere, or say nothing there.
NO_KEYS = {
    *(("upstreams/app", "name"), ("routes/3", "action")),
    *(("limits", "max_interim"), ("answer_limits", "max_target"), ("answer_limits", "max_field")),
}


@pytest.mark.parametrize("path", KINDS)
def test_every_field_is_a_key_that_is_checked(path):
    for field in dataclasses.fields(KINDS[path]):
        if not field.init or (path, field.name) in NO_KEYS:
            continue
        with pytest.raises(ConfigError) as caught:
            parse_config(changed(f"{path}/{field.name}", {"a": [1]}))
        assert field.name in str(caught.value) or (path, field.name) == ("upstreams/app", "servers")
        assert f"{field.name} = {{ a = [1] }}: no such key" not in str(caught.value)
        for junk in JUNK:
            assert errors_of(changed(f"{path}/{field.name}", junk)) != [], (field.name, junk)


def test_without_upstreams():
    assert problems({}) == ["f.toml: [upstreams]: at least one [upstreams.NAME] expected"]


def test_files(tmp_path):
    for text, part in (("listen = }\n", "no TOML"), ('[upstreams.a]\nservers = ["http://b"]\n', None)):
        path = tmp_path / "f.toml"
        path.write_text(text)
        if part is None:
            assert load_config(str(path)).upstreams[0][0].name == "a"
        else:
            with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}:1: {part}.*line 1"):
                load_config(str(path))
    for where, what in ((tmp_path / "nowhere", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(where))}: {what}: a file that can be read expected$"):
            load_config(str(where))


def test_what_the_document_shows_is_sound(tmp_path):
    text = (Path(__file__).resolve().parent.parent / "docs" / "proxy.md").read_text()
    for number, shown in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)):
        path = tmp_path / f"{number}.toml"
        path.write_text(shown)
        assert len(load_config(str(path)).routes) == 5


def test_the_commented_example_has_every_key():
    path = Path(__file__).resolve().parent.parent / "examples" / "reverse_proxy.toml"
    assert load_config(str(path)).upstreams[0][0].name == "app"
    text = path.read_text()
    for kind in (
        *(LogOptions, Limits, ProxyTimeouts, Forwarding, GuardOptions, UpstreamOptions, HealthOptions, StickyCookie),
        *(ServerOptions, Route, ListenOptions, ListenTLS, OperationsOptions, Buffering),
    ):
        for field in dataclasses.fields(kind):
            if not field.init or field.name in ("action", "name" if kind is UpstreamOptions else ""):
                continue
            found = re.findall(rf"^#?{field.name} = (.*?)(?:  # .*)?$", text, re.MULTILINE)
            assert found, f"{kind.__name__}.{field.name}"
            default = field.default
            if isinstance(default, int | float | str):
                shown = str(default).lower() if isinstance(default, bool) else default
                assert any(each.strip('"') == str(shown) for each in found), f"{kind.__name__}.{field.name}: {found}"
    for kind in (StaticAnswer, Redirect, FieldEdits, UpstreamTLS, ForwardAuth, BasicAuth):
        for field in dataclasses.fields(kind):
            assert not field.init or re.search(rf"[{{ ]{field.name} = ", text), f"{kind.__name__}.{field.name}"
