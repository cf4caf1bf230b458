"""How addresses are written, and the listening sockets that come of them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat

import pytest

from greensock.address import listen, owner_ids, parse_address, remove_file

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
        ("unix:@name", (socket.AF_UNIX, "\0name")),
        ("unix:./@name", (socket.AF_UNIX, "./@name")),
        ("\0name", (socket.AF_UNIX, "\0name")),
        (b"\0name", (socket.AF_UNIX, b"\0name")),
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


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ("6 4", (socket.AF_INET, ("127.0.0.1", 80))),
        ("6 4 4b", (socket.AF_INET, ("127.0.0.1", 80))),
        ("4b 6", (socket.AF_INET, ("127.0.0.2", 80))),
        ("6", (socket.AF_INET6, ("::1", 80, 0, 0))),
    ],
)
def test_a_name_is_its_first_ipv4_address(monkeypatch, found, taken):
    infos = {
        "4": (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)),
        "4b": (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 80)),
        "6": (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0)),
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [infos[name] for name in found.split()])
    assert parse_address(("localhost", 80)) == parse_address("localhost:80") == taken


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


def fill(path):
    """Fill the backlog of a listener; return what is connected."""
    clients = contextlib.ExitStack()
    while True:
        client = clients.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        if client.connect_ex(path) == errno.EAGAIN:
            return clients


def test_a_path_whose_owner_has_no_room_for_one_more_is_in_use(tmp_path):
    path = str(tmp_path / "server.sock")
    with listen(socket.AF_UNIX, path, 0), fill(path):
        with pytest.raises(OSError, match=rf"in use: '{path}'"):
            listen(socket.AF_UNIX, path, 5)
        assert os.path.exists(path)


def test_an_error_without_a_number_has_words(tmp_path):
    path = str(tmp_path / ("x" * 200))
    with pytest.raises(OSError, match=rf"path too long: '{path}'") as caught:
        listen(socket.AF_UNIX, path, 5)
    assert "None" not in str(caught.value)


def test_a_file_is_removed_only_while_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with listen(socket.AF_UNIX, "./server.sock", 5) as sock:
        monkeypatch.chdir("/")
        remove_file(sock)
        assert not os.listdir(tmp_path)
        remove_file(sock)
    path = str(tmp_path / "server.sock")
    with listen(socket.AF_UNIX, path, 5) as old, listen(socket.AF_UNIX, path + ".new", 5) as new:
        os.rename(path + ".new", path)
        remove_file(old)
        assert os.path.exists(path)
        remove_file(new)  # it has another name now
        assert os.path.exists(path)


def test_a_file_that_somebody_else_bound_or_removed_is_nobodys(tmp_path):
    path = str(tmp_path / "server.sock")
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        remove_file(given)
        assert os.path.exists(path)
    with listen(socket.AF_UNIX, path, 5) as sock:
        os.unlink(path)
        remove_file(sock)


def test_a_forked_child_leaves_the_file_alone(tmp_path):
    path = str(tmp_path / "server.sock")
    with listen(socket.AF_UNIX, path, 5) as sock:
        child = os.fork()
        if not child:
            remove_file(sock)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.exists(path)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_the_mode_of_the_file(tmp_path, mode):
    path = str(tmp_path / "server.sock")
    before = os.umask(0o077)
    try:
        with listen(socket.AF_UNIX, path, 5, unix_mode=mode):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
    finally:
        os.umask(before)


def test_nobody_can_connect_before_the_file_has_its_mode(tmp_path, monkeypatch):
    path = str(tmp_path / "server.sock")
    seen = []

    def look(*arguments, **options):
        with socket.socket(socket.AF_UNIX) as client:
            seen.append(client.connect_ex(path))

    monkeypatch.setattr(os, "chmod", look)
    monkeypatch.setattr(os, "chown", look)
    with listen(socket.AF_UNIX, path, 5, unix_mode=0o600, unix_owner=(0, 0)):
        assert seen == [errno.ECONNREFUSED, errno.ECONNREFUSED]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_the_owner_of_the_file(tmp_path):
    path = str(tmp_path / "server.sock")
    with listen(socket.AF_UNIX, path, 5, unix_mode=0o660, unix_owner=(1234, 2345)):
        found = os.stat(path)
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o660)


def test_an_owner_that_may_not_be_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = str(tmp_path / "server.sock")
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PermissionError, match=rf"not permitted: '{path}'"):
        listen(socket.AF_UNIX, path, 5, unix_owner="root")
    with pytest.raises(OSError, match="there is no 'no such user' here"):
        listen(socket.AF_UNIX, path, 5, unix_owner="no such user")
    assert not os.path.exists(path)


def test_who_an_owner_is():
    assert owner_ids("root") == (0, -1)
    assert owner_ids("root:root") == (0, 0)
    assert owner_ids(":root") == (-1, 0)
    assert owner_ids((5, -1)) == (5, -1)
    assert owner_ids("nobody here") is owner_ids("root:nobody here") is owner_ids(("root", 0)) is None
