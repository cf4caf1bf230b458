"""The options of a server: what is allowed, and what is said of what is not."""

from __future__ import annotations

from math import inf, nan

import pytest
from tls_peers import server_tls

from greensock import TLS, ClientLimits, Lines, Rule, Server
from greensock.server_options import OPTIONS, checked

FLAGS = {"reuse_port", "no_delay", "keep_alive"}
SECONDS = {"linger_timeout", "stop_timeout", "close_spread"}
SECONDS_OR_NONE = {"idle_timeout", "recv_timeout", "send_timeout"}
FROM_0 = {"max_postponed", "max_send_queue", "min_send_rate"}
FROM_1 = {"backlog", "max_accept", "max_handshakes", "recv_size", "turn_budget"}
FROM_1_OR_NONE = {"max_connections", "max_workers"}

ALLOWED = {
    **{name: [True, False] for name in FLAGS},
    **{name: [0, 0.5, 10] for name in SECONDS},
    **{name: [None, 0.001, 1, 1e9] for name in SECONDS_OR_NONE},
    **{name: [0, 1, 1 << 40] for name in FROM_0},
    **{name: [1, 2, 1 << 40] for name in FROM_1},
    **{name: [None, 1, 2] for name in FROM_1_OR_NONE},
    "unix_mode": [None, 0, 0o660, 0o777],
    "unix_owner": [None, "root", "root:root", ":root", (0, 0), (-1, 5)],
    "tls": [None, server_tls()],
    "handshake_timeout": [0.5, 1, 1e9],
    "framer": [None, Lines()],
    "protocol": ["tcp", "sctp"],
    "client_limits": [None, ClientLimits(max_connections=1)],
}
FORBIDDEN = {
    **{name: [0, 1, None, "yes"] for name in FLAGS},
    **{name: [-0.001, None, inf, nan, True, "1"] for name in SECONDS},
    **{name: [0, -1, inf, nan, True, "1"] for name in SECONDS_OR_NONE},
    **{name: [-1, 1.0, None, True, "1"] for name in FROM_0},
    **{name: [0, -1, 1.0, None, True, "1"] for name in FROM_1},
    **{name: [0, -1, 1.0, True, inf] for name in FROM_1_OR_NONE},
    "unix_mode": [0o1000, -1, True, "660", 6.0],
    "unix_owner": ["", ":", "no such user", "root:no such group", 0, (0,), (0, "root"), (-2, 0), (True, 0), "a\0b"],
    "tls": [True, False, "key.pem", TLS],
    "handshake_timeout": [0, -1, None, inf, nan, True, "1"],
    "framer": [Lines, b"\n", 64],
    "protocol": ["udp", None, 132, ["tcp"]],
    "client_limits": [{"max_connections": 1}, 5, ClientLimits],
}


def test_every_option_is_in_the_tables():
    assert set(ALLOWED) == set(FORBIDDEN) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_allowed(name):
    for value in ALLOWED[name]:
        assert getattr(Server(0, **{name: value}), name) is value
        assert getattr(type("Sub", (Server,), {name: value})(0), name) is value


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_not_allowed(name):
    """As a keyword and as a class attribute; the text names the option, the value, and what is allowed."""
    for value in FORBIDDEN[name]:
        for make in (lambda: Server(0, **{name: value}), lambda: type("Sub", (Server,), {name: value})(0)):  # noqa: B023
            with pytest.raises(ValueError, match=f"^{name}=") as caught:
                make()
            assert str(caught.value).startswith(f"{name}={value!r}: ")
            assert str(caught.value).endswith(f"{OPTIONS[name].allowed} expected")


def test_a_keyword_overrides_the_class():
    class Small(Server):
        recv_size = 10

    assert (Small(0).recv_size, Small(0, recv_size=20).recv_size, Small.recv_size) == (10, 20, 10)


def test_a_keyword_puts_right_what_the_class_has_wrong():
    class Wrong(Server):
        recv_size = 0

    assert Wrong(0, recv_size=1).recv_size == 1


def test_an_unknown_option_is_named_with_those_that_exist():
    with pytest.raises(TypeError, match=r"unknown option 'max_conections': .*max_connections.* exist"):
        Server(0, max_conections=1)


def test_an_attribute_that_is_no_option_cannot_be_given():
    with pytest.raises(TypeError, match="unknown option 'address'"):
        Server(0, address=("127.0.0.1", 1))


def test_checked_returns_only_what_was_given():
    assert checked(Server(0), {"recv_size": 5}) == {"recv_size": 5}
    assert checked(Server(0), {}) == {}


def test_a_subclass_adds_options_of_its_own():
    class Spoken(Server):
        language = "en"
        option_rules = {**Server.option_rules, "language": Rule.instance(str, "a language")}

    assert Spoken(0, language="fr", recv_size=1).language == "fr"
    with pytest.raises(ValueError, match="language=5: a language expected"):
        Spoken(0, language=5)
    with pytest.raises(TypeError, match="unknown option 'language'"):
        Server(0, language="en")
