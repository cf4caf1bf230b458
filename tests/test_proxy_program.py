"""A proxy in one process that reads its configuration anew: what goes on, what is new, what a wrong one changes."""

from __future__ import annotations

import os
import socket

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from proxies import Origin

from greensock.proxy import CannotStart, ProxyProgram, load_config

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def ask(address, request=GET):
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(request)
        return read_all(sock)


@pytest.fixture
def told(serve, tmp_path):
    """``told(text)`` writes the configuration; the program that reads it is started with the first."""
    path = tmp_path / "proxy.toml"
    made = []

    def tell(text):
        path.write_text(text)
        if not made:
            made.append(ProxyProgram(load_config(str(path)), lambda: load_config(str(path))))
            made[0].start()
        return made[0]

    yield tell
    for program in made:
        for proxy in program.proxies:
            proxy.close_spread = 0.0
        program.stop()


def config(origin, listen="127.0.0.1:0", more=""):
    return (
        f'listen = ["{listen}"]\n[log]\npath = "none"\n[timeouts]\ndrain = 5\n[upstreams.app]\n'
        f'servers = ["{origin.url}"]\n[[routes]]\nupstream = "app"\n{more}'
    )


def test_a_new_configuration_on_the_same_socket(serve, told):
    origin, other = serve(Origin), serve(Origin)
    program = told(config(origin))
    address = program.proxies[0].address
    inode = os.fstat(program.proxies[0].listeners[0].fileno()).st_ino
    assert b"200 OK" in ask(address)
    with socket.create_connection(address) as kept:
        kept.settimeout(PATIENCE)
        told(config(other))
        assert program.reload()
        assert os.fstat(program.proxies[0].listeners[0].fileno()).st_ino == inode
        assert b"200 OK" in ask(address)
        assert (len(origin.seen), len(other.seen)) == (1, 1)
        kept.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in read_all(kept), "the old one answered, once more"
        assert len(origin.seen) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('listen = ["127.0.0.1:0"]\n', "upstreams"),
        ("nonsense", "no TOML"),
        ("LISTEN", "cannot listen on 192.0.2.1:80"),
    ],
)
def test_a_wrong_one_changes_nothing(serve, told, caplog, text, words):
    origin = serve(Origin)
    program = told(config(origin))
    before = program.proxies
    told(config(origin, "192.0.2.1:80") if text == "LISTEN" else text)
    assert not program.reload()
    assert words in caplog.text
    assert "the configuration stays as it was: " in caplog.text
    assert program.proxies is before
    assert b"200 OK" in ask(before[0].address)


def test_a_unix_socket_stays_where_it_is(serve, told, tmp_path):
    origin, path = serve(Origin), str(tmp_path / "proxy.sock")
    program = told(config(origin, path))
    old = program.proxies[0]
    assert program.reload()
    wait_until(lambda: not old.started)
    assert b"200 OK" in ask(path)
    program.stop()
    assert not os.path.exists(path)


def test_bans_and_health_are_kept(serve, told):
    origin = serve(Origin)
    guard = "[guard]\nrequest_rate = 0.01\nrequest_burst = 2\n"
    program = told(config(origin, more=guard))
    address = program.proxies[0].address
    server = program.gateway.upstreams["app"].all[0]
    assert b"200 OK" in ask(address)
    assert program.reload()
    assert program.gateway.upstreams["app"].all[0] is not server
    assert program.gateway.upstreams["app"].all[0].health is server.health
    assert b"200 OK" in ask(address)
    assert b" 429 " in ask(address)
    told(config(origin, more=guard.replace("2", "3")))
    assert program.reload()
    assert b"200 OK" in ask(address), "other limits begin anew"


def test_an_address_that_goes_and_one_that_comes(serve, told):
    origin = serve(Origin)
    program = told(config(origin, '127.0.0.1:0", "127.0.0.2:0'))
    first, second = (proxy.address for proxy in program.proxies)
    told(config(origin, '127.0.0.3:0", "127.0.0.1:0'))
    assert program.reload()
    new, same = (proxy.address for proxy in program.proxies)
    assert same == first
    assert b"200 OK" in ask(new)
    assert b"200 OK" in ask(same)
    with pytest.raises(ConnectionRefusedError):
        ask(second)


def test_what_cannot_start_leaves_nothing(serve, tmp_path):
    origin = serve(Origin)
    path = tmp_path / "proxy.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path.write_text(config(origin, f'127.0.0.2:0", "127.0.0.1:{taken.getsockname()[1]}'))
        program = ProxyProgram(load_config(str(path)))
        with pytest.raises(CannotStart, match=r"cannot listen on 127\.0\.0\.1:"):
            program.start()
    assert program.proxies == []
    assert program.gateway is None
    assert not program.reload()
    gevent.sleep(0)
