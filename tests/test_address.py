"""How addresses are written, and the listening sockets that come of them."""

from __future__ import annotations

import os
import pathlib
import socket

import pytest

from greensock.address import listen, parse_address

HAS_IPV6 = os.path.exists("/proc/net/if_inet6")
EVERYWHERE = (socket.AF_INET6, ("::", 80)) if HAS_IPV6 else (socket.AF_INET, ("0.0.0.0", 80))


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        (("127.0.0.1", 80), (socket.AF_INET, ("127.0.0.1", 80))),
        (("127.0.0.1", "80"), (socket.AF_INET, ("127.0.0.1", 80))),
        (("127.0.0.1", 0), (socket.AF_INET, ("127.0.0.1", 0))),
        (("127.0.0.1", 65535), (socket.AF_INET, ("127.0.0.1", 65535))),
        ("127.0.0.1:80", (socket.AF_INET, ("127.0.0.1", 80))),
        ("0.0.0.0:80", (socket.AF_INET, ("0.0.0.0", 80))),
        (80, EVERYWHERE),
        ("80", EVERYWHERE),
        (":80", EVERYWHERE),
        ("*:80", EVERYWHERE),
        (("", 80), EVERYWHERE),
        (("*", 80), EVERYWHERE),
        ("/dir/server.sock", (socket.AF_UNIX, "/dir/server.sock")),
        ("./server.sock", (socket.AF_UNIX, "./server.sock")),
        ("/dir/with:colon", (socket.AF_UNIX, "/dir/with:colon")),
        ("unix:server.sock", (socket.AF_UNIX, "server.sock")),
        ("unix:/dir/server.sock", (socket.AF_UNIX, "/dir/server.sock")),
        (pathlib.Path("server.sock"), (socket.AF_UNIX, "server.sock")),
        pytest.param(
            "[::1]:80",
            (socket.AF_INET6, ("::1", 80, 0, 0)),
            marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here"),
        ),
        pytest.param(
            ("::1", 80, 0, 0),
            (socket.AF_INET6, ("::1", 80, 0, 0)),
            marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here"),
        ),
    ],
)
def test_what_an_address_may_be(address, parsed):
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (None, "a port, a path or a bound socket expected"),
        (1.5, "a port, a path or a bound socket expected"),
        (b"127.0.0.1:80", "a port, a path or a bound socket expected"),
        ((), "a port, a path or a bound socket expected"),
        (("127.0.0.1",), "a port, a path or a bound socket expected"),
        (("127.0.0.1", 80, 0), "a port, a path or a bound socket expected"),
        ((80, "127.0.0.1"), "a port, a path or a bound socket expected"),
        (-1, "port -1 is not a number from 0 to 65535"),
        (65536, "port 65536 is not a number from 0 to 65535"),
        (True, "port True is not a number from 0 to 65535"),
        ("", "port '' is not a number"),
        ("localhost", "port 'localhost' is not a number"),
        ("127.0.0.1:", "port '' is not a number"),
        ("127.0.0.1:http", "port 'http' is not a number"),
        (("127.0.0.1", None), "port None is not a number"),
        (("127.0.0.1", 65536), "port 65536 is not a number"),
    ],
)
def test_what_it_may_not_be(address, text):
    with pytest.raises(ValueError, match=text) as caught:
        parse_address(address)
    assert f"listener={address!r}" in str(caught.value)


def test_a_host_that_does_not_resolve_is_named(monkeypatch):
    def fail(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ValueError, match=r"host 'no\.such\.host' is not an address of this machine"):
        parse_address("no.such.host:80")


def test_listen_gives_a_real_socket():
    sock = listen(socket.AF_INET, ("127.0.0.1", 0), 5)
    with sock:
        assert type(sock).__module__ == "socket"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def test_a_port_is_shared_only_with_reuse_port():
    with listen(socket.AF_INET, ("127.0.0.1", 0), 5, reuse_port=True) as first:
        address = first.getsockname()
        with listen(socket.AF_INET, address, 5, reuse_port=True) as second:
            assert second.getsockname() == address
        with pytest.raises(OSError, match=rf"in use: .*{address[1]}"):
            listen(socket.AF_INET, address, 5)


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
def test_one_ipv6_address_is_that_one_only():
    with listen(socket.AF_INET6, ("::1", 0), 5) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_socket_file_that_was_left_behind_is_replaced(tmp_path):
    path = str(tmp_path / "server.sock")
    listen(socket.AF_UNIX, path, 5).close()
    assert os.path.exists(path)
    listen(socket.AF_UNIX, path, 5).close()


def test_a_socket_file_that_is_served_stays(tmp_path):
    path = str(tmp_path / "server.sock")
    with listen(socket.AF_UNIX, path, 5):
        with pytest.raises(OSError, match=rf"in use: '{path}'"):
            listen(socket.AF_UNIX, path, 5)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_file_that_is_no_socket_stays(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="precious"):
        listen(socket.AF_UNIX, str(path), 5)
    assert path.read_text() == "data"


def test_an_abstract_name_is_nobodys_file():
    name = f"\0greensock-test-{os.getpid()}"
    for _ in range(2):
        with listen(socket.AF_UNIX, name, 5) as sock:
            assert sock.getsockname() == name.encode()
            with pytest.raises(OSError, match="in use"):
                listen(socket.AF_UNIX, name, 5)
