"""What every test gets: the leak check, and helpers to serve and to wait."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib
import functools
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from greenlet import getcurrent, greenlet
from hypothesis import settings

from greensock import Server
from greensock.core.poller import get_poller

#: Seconds that a condition may take to come true.
PATIENCE = 10.0
#: Seconds between two looks.
PAUSE = 0.001

# Ignored in what a shell starts in the background, and under nohup; and so in each program that a test starts.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

# How long an example takes depends on what else the machine does.
settings.register_profile("greensock", deadline=None)
settings.load_profile("greensock")


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return the condition's value as soon as it is true; fail the test if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain")
        gevent.sleep(PAUSE)
    return value


def blocked(job: gevent.Greenlet) -> gevent.Greenlet:
    """Return the greenlet as soon as it has begun: then it waits for something, for only there another one runs."""
    wait_until(lambda: greenlet.__bool__(job) or job.dead)
    return job


def descriptors() -> dict[str, str]:
    """Return the open descriptors and what each is."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the directory's own
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--claims", metavar="DIRECTORY", help="where processes side by side claim the files that they run")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Say that a test is done with if its file belongs to another process (side_by_side.py)."""
    place = item.config.getoption("claims")
    if place is None or _claimed(place, item.path.name):
        return None
    return True


@functools.cache
def _claimed(place: str, name: str) -> bool:
    try:
        os.close(os.open(os.path.join(place, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def pytest_collection_finish() -> None:
    """Have the collections of the leak check look only at what the tests make: 45 ms a test saved.

    Before that hypothesis is imported, as its plugin does in the end: it looks at who refers to trio's random numbers,
    which is not to be seen any more then, and warns.
    """
    with contextlib.suppress(ImportError):
        import hypothesis  # noqa: F401
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Have the collections of the leak check look at nothing that was there before the module: a third of all time."""
    gc.collect()
    gc.freeze()


def root(found: greenlet | None) -> greenlet | None:
    """Return the main greenlet of the greenlet's thread."""
    while found is not None and found.parent is not None:
        found = found.parent
    return found


def greenlets() -> list[greenlet]:
    """Return the greenlets of this thread that could still run."""
    gc.collect()
    mine = root(getcurrent())
    return [
        found for found in gc.get_objects() if isinstance(found, greenlet) and not found.dead and root(found) is mine
    ]


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Fail a test that leaves a descriptor, a greenlet, a watcher, an endpoint or a deadline behind."""
    poller, loop = get_poller(), gevent.get_hub().loop
    gevent.sleep(0)
    watchers = loop.activecnt
    before, green_before = descriptors(), {id(found) for found in greenlets()}
    yield
    deadline, pause = time.monotonic() + 5, 0.0
    while time.monotonic() < deadline:
        gc.collect()
        gevent.sleep(pause)
        pause = 0.005
        leaked = {fd: what for fd, what in descriptors().items() if before.get(fd) != what}
        green = [found for found in greenlets() if id(found) not in green_before]
        more = loop.activecnt - watchers
        if not (leaked or green or more > 0 or poller._registered or poller.worker_pools or poller._armed_count):
            return
    armed, pools = poller._armed_count, poller.worker_pools
    pytest.fail(f"left behind: {leaked} {green} {more} watchers {poller.endpoints()} {pools} {armed} deadlines")


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Start servers on port 0 of the loopback: ``serve(Class, **options)``; they are stopped after the test."""
    servers: list[Server] = []

    def start(kind: type[Server], listener: Any = ("127.0.0.1", 0), **options: Any) -> Server:
        options.setdefault("stop_timeout", 0.2)
        server = kind(listener, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop(0.05)


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    """Connect to a server: ``connect(server)`` gives a (cooperative) socket, closed after the test."""
    sockets: list[socket.socket] = []

    def make(server: Any) -> socket.socket:
        address = server.address
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        sock = socket.socket(family)
        sock.settimeout(PATIENCE)
        sockets.append(sock)
        sock.connect(address)
        return sock

    yield make
    for sock in sockets:
        sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Read until the end of input."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read exactly that many bytes."""
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the input ended after {len(data)} of {count} bytes"
        data += piece
    return data
