"""Values of a configuration: with units, from the environment; guesses, and names that do not resolve."""

from __future__ import annotations

import dataclasses
import inspect
import re
import socket

import pytest

from greensock.http import Limits
from greensock.operations.operations_options import OperationsOptions
from greensock.proxy import (
    Buffering,
    ConfigError,
    ForwardAuth,
    Forwarding,
    GuardOptions,
    HealthOptions,
    ListenOptions,
    ListenTLS,
    LogOptions,
    ProxyTimeouts,
    Route,
    ServerOptions,
    StickyCookie,
    UpstreamOptions,
    check_names,
    load_config,
    parse_config,
)
from greensock.proxy.config_tables import guess
from greensock.proxy.environment import expanded, settled
from greensock.proxy.units import SIZE, TIME, unit_of

LEAST = {"upstreams": {"app": {"servers": ["http://127.0.0.1:9000"]}}}


# -- units


@pytest.mark.parametrize(
    ("unit", "text", "number"),
    [
        *((TIME, text, number) for text, number in [("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h", 3600)]),
        *((TIME, text, number) for text, number in [("1d", 86400), ("1h30m", 5400), ("1.5s", 1.5), ("0s", 0)]),
        *((TIME, text, number) for text, number in [("350ms", 0.35), ("1.5m", 90), ("1000ms", 1)]),
        *((TIME, text, None) for text in ["", "30", "s", "5M", "5 m", "-5s", "1h 30m", "5min", "1,5s", "10k", "٣s"]),
        *((SIZE, text, number) for text, number in [("64k", 65536), ("10M", 10 << 20), ("1g", 1 << 30)]),
        *((SIZE, text, number) for text, number in [("1.5K", 1536), ("5B", 5), ("2MiB", 2 << 20), ("2mb", 2 << 20)]),
        *((SIZE, text, None) for text in ["", "64", "k", "10s", "10 M", "-1k", "1e3k", "0x1k", "1p"]),
    ],
)
def test_units(unit, text, number):
    found = unit.read(text)
    assert (found, type(found)) == (number, type(number))


def test_units_are_understood_wherever_there_are_sizes_and_times():
    config = parse_config(
        {
            "upstreams": {
                "app": {
                    "servers": ["http://127.0.0.1:9000"],
                    "max_replay": "64k",
                    "max_age": "1h",
                    "health": {"path": "/", "interval": "500ms"},
                    "sticky": {"name": "a", "secret": "?" * 16, "ttl": "7d"},
                }
            },
            "limits": {"max_head": "32k", "max_body": "10M"},
            "timeouts": {"connect": "250ms", "tunnel": "1h", "min_body_rate": "1k", "total": "none"},
            "server": {"max_buffered": "1G"},
            "routes": [{"upstream": "app", "timeouts": {"total": "5m"}}],
        }
    )
    group, health, sticky = config.upstreams[0]
    assert (group.max_replay, group.max_age, health.interval, sticky.ttl) == (65536, 3600, 0.5, 7 * 86400)
    assert (config.limits.max_head, config.limits.max_body) == (32768, 10 << 20)
    assert (config.timeouts.connect, config.timeouts.tunnel, config.timeouts.min_body_rate) == (0.25, 3600, 1024)
    assert (config.server.max_buffered, config.routes[0].timeouts.total) == (1 << 30, 300)


@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("timeouts", "connect", "10M", '"none" expected (a number of seconds, or a text such as "250ms", "30s"'),
        ("timeouts", "connect", "0s", "seconds, more than 0"),
        ("limits", "max_body", "30s", 'expected (a number of bytes, or a text such as "64k", "10M", "1G")'),
        ("limits", "max_body", "1.5b", "a whole number of at least 0"),
        ("limits", "max_fields", "1k", "a whole number of at least 0 expected"),
        ("guard", "request_rate", "10s", "a number of requests a second"),
    ],
)
def test_a_wrong_unit_is_told(table, key, value, words):
    with pytest.raises(ConfigError) as caught:
        parse_config({**LEAST, table: {key: value}})
    assert str(caught.value).startswith(f'[{table}] {key} = "{value}": ')
    assert words in str(caught.value)


KINDS = (
    *(Limits, ProxyTimeouts, Forwarding, GuardOptions, UpstreamOptions, HealthOptions, StickyCookie, ServerOptions),
    *(Route, ListenOptions, ListenTLS, LogOptions, OperationsOptions, Buffering, ForwardAuth),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_and_time_takes_units(kind):
    """What its comment says is bytes, or seconds, has that unit, and nothing else has. (A new key: see ``units``.)"""
    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    for field in dataclasses.fields(kind):
        if not field.init or not re.match(r"(int|float)\b", str(field.type)):
            continue
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{field.name}: ")) - 1
        while lines[place - 1].startswith("#:"):
            place -= 1
        says = re.match(r"#: (?:What Strict-Transport-Security says.*?: )?(\w+)", lines[place])[1].lower()
        unit = unit_of(field.name, str(field.type))
        if kind is ProxyTimeouts:
            says = "bytes" if "rate" in field.name else "seconds"
        assert says not in ("bytes", "seconds") or (unit is not None and unit.name == says), field.name
        if unit is not None:
            assert says in ("bytes", "seconds"), f"{kind.__name__}.{field.name} is no {unit.name}: NO_TIMES in units?"


# -- words


@pytest.mark.parametrize(
    ("given", "meant"),
    [("round-robin", "round_robin"), ("HASH", "hash"), ("least_conections", "least_connections"), ("x", "")],
)
def test_guesses(given, meant):
    assert guess(given, ("round_robin", "least_connections", "two_choices", "hash")) == meant


def test_a_secret_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        parse_config({**LEAST, "guard": {"token": "hidden", "api_password": "hidden", "old_secrets": ["hidden"]}})
    assert str(caught.value).count('"..."') == 3
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigError, match=r'storge = "\.\.\.": no such key: storage') as caught:
        parse_config({**LEAST, "guard": {"storge": "redis://:hidden@host"}})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"[timeouts]\nkeep_alive = 1{'0' * 400}\n", "a whole number of more than 64 bits"),
        (f"[guard]\nrequest_rate = 1{'0' * 400}\n", "a whole number of more than 64 bits"),
        (f"[timeouts]\nkeep_alive = 1{'0' * 5000}\n", "no TOML"),
        (f'[timeouts]\nkeep_alive = "{"9" * 400}s"\n', "seconds, more than 0"),
        (f'[timeouts]\nkeep_alive = "{"9" * 5000}s"\n', "seconds, more than 0"),
        (f'[timeouts]\nkeep_alive = "{"9" * 400}.5ms"\n', "seconds, more than 0"),
        ("[guard]\nrequest_rate = 1\nmax_clients = 100000000000000\n", "a whole number from 1 to 10000000"),
        ("[server]\nbacklog = 9000000000000000000\n", "of 31 bits"),
        (f"x = {'{a=' * 247}1{'}' * 247}\n", "nested too deeply"),
        (f"[x{'.a' * 300}]\nb = 1\n", "nested too deeply"),
    ],
)
def test_what_is_beyond_bounds_is_told(tmp_path, text, words):
    file = tmp_path / "proxy.toml"
    file.write_text(f'{text}[upstreams.a]\nservers = ["http://127.0.0.1:1"]\n')
    with pytest.raises(ConfigError, match=words):
        load_config(str(file), {})


# -- the environment

ENVIRON = {"HOST": "h", "PORT": "80", "EMPTY": "", "ODD": 'a"\n[x]\nb = 1', "NOT_UTF8": "\udcff"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("http://${HOST}:${PORT}/", "http://h:80/"),
        ("${NONE:-x}${EMPTY:-y}${HOST:-z}", "xyh"),
        ("${NONE:-}", ""),
        ("[${EMPTY}]", "[]"),
        ("${ODD}", 'a"\n[x]\nb = 1'),
        ("$$ $$$$ $${HOST} $a $", "$ $$ ${HOST} $a $"),
        ("$${HOST:-${HOST}}", "${HOST:-h}"),
        ("a", "a"),
    ],
)
def test_values_of_the_environment(text, value):
    found, wrong = expanded({"a": {"b": [text, 5]}}, ENVIRON)
    assert not wrong
    assert settled(found["a"]) == {"b": [value, 5]}
    assert type(settled(found["a"])["b"][0]) is str


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${NONE}", "NONE is not set in the environment: a value, or ${NONE:-default}, expected"),
        ("${a b}", "${NAME} or ${NAME:-default} expected"),
        ("x${HOST", "${NAME} or ${NAME:-default} expected"),
        ("${}", "${NAME} or ${NAME:-default} expected"),
        ("${HOST-x}", "${NAME} or ${NAME:-default} expected"),
        ("${NOT_UTF8}", "NOT_UTF8 in the environment is not UTF-8"),
        ("${NOT_UTF8:-a}", "NOT_UTF8 in the environment is not UTF-8"),
    ],
)
def test_what_cannot_be_filled_in(text, words):
    found, wrong = expanded({"a": [0, text]}, ENVIRON)
    assert found == {"a": [0, text]}
    ((path, said),) = wrong
    assert path == ("a", 1)
    assert words in said


def test_a_file_with_values_of_the_environment(tmp_path):
    file = tmp_path / "proxy.toml"
    file.write_text(
        'listen = ["${ADDRESS}"]\nabort_on_eof = "${EOF}"\n[limits]\nmax_head = "${HEAD}"\nmax_fields = "${FIELDS}"\n'
        '[timeouts]\nconnect = "${CONNECT:-2.5}"\n'
        '[upstreams.app]\nretry_budget = "${BUDGET}"\nretries = "${RETRIES:-1}"\n'
        'servers = ["http://${ODD}"]\n[guard]\nban_statuses = ["${STATUS}", 404]\n'
    )
    environ = {"ADDRESS": "127.0.0.1:0", "EOF": "false", "HEAD": "32k", "FIELDS": "50", "BUDGET": "0.5"}
    config = load_config(str(file), {**environ, "ODD": "h", "STATUS": "400"})
    assert config.listen == (("127.0.0.1", 0),)
    assert config.abort_on_eof is False
    assert (config.limits.max_head, config.limits.max_fields, config.timeouts.connect) == (32768, 50, 2.5)
    assert (config.upstreams[0][0].retry_budget, config.upstreams[0][0].retries) == (0.5, 1)
    assert config.guard.ban_statuses == {400, 404}
    assert type(config.upstreams[0][0].servers[0].url) is str
    with pytest.raises(ConfigError) as caught:
        load_config(str(file), {**environ, "ODD": 'h"]\nweight = 5\n[x', "FIELDS": "many"})
    found = [(each.line, each.key) for each in caught.value.errors]
    assert found == [(5, "max_fields"), (11, "url"), (13, "ban_statuses")]
    assert "STATUS is not set" in caught.value.errors[2].expected
    with pytest.raises(ConfigError, match=f"{file}:1: listen = .*: ADDRESS is not set in the environment"):
        load_config(str(file), {})


def test_a_number_in_a_text_is_one_only_if_it_came_from_the_environment():
    with pytest.raises(ConfigError, match='max_fields = "50": a whole number'):
        parse_config({**LEAST, "limits": {"max_fields": "50"}})


# -- names


def test_names_that_do_not_resolve_are_a_warning(tmp_path, monkeypatch):
    asked = []

    def resolved(host, *rest, **options):
        asked.append(host)
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    file = tmp_path / "proxy.toml"
    servers = '"http://gone.example:1",\n  "http://there.example:1", "http://127.0.0.1:1", "http://[::1]:1", "unix:/x"'
    file.write_text(f'[upstreams.app]\nservers = [\n  {servers},\n  "http://gone.example:2"\n]\n')
    found = check_names(load_config(str(file)), str(file))
    assert sorted(asked) == ["gone.example", "there.example"]
    text = "a name that resolves expected: Name or service not known"
    assert [str(each) for each in found] == [
        f'{file}:3: warning: [upstreams.app] servers no. 1 url = "http://gone.example:1": {text}',
        f'{file}:5: warning: [upstreams.app] servers no. 6 url = "http://gone.example:2": {text}',
    ]
