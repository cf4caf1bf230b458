"""Servers of the tests of the server: they write down what happens to them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from pathlib import Path

import gevent
import gevent.event
import pytest

import greensock
from greensock import (
    Server,
)
from greensock.core.poller import compiled, get_poller


class Recorder(Server):
    """Writes down every upcall."""

    def __init__(self, *args, **options):
        self.calls = []
        super().__init__(*args, **options)

    def connection_new(self, conn):
        self.calls.append(("new", conn))

    def connection_recv(self, conn, data):
        self.calls.append(("recv", data))

    def connection_recv_finish(self, conn):
        self.calls.append(("finish", conn))

    def connection_error(self, conn, exc):
        self.calls.append(("error", exc))

    def connection_drop(self, conn):
        self.calls.append(("drop", conn.drop_reason))

    def names(self):
        return [name for name, _ in self.calls]

    def drops(self):
        return [what for name, what in self.calls if name == "drop"]

    def errors(self):
        return [what for name, what in self.calls if name == "error"]

    def received(self):
        return b"".join(what for name, what in self.calls if name == "recv")


class Echo(Recorder):
    def connection_recv(self, conn, data):
        super().connection_recv(conn, data)
        conn.send(data)


def reset(sock):
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


#: For tests that put something in the place of what the compiled engine calls in C.
pure_only = pytest.mark.skipif(compiled, reason="the compiled engine calls it in C: nothing can be put in its place")
#: The same with both engines, as it is other processes that are tested: those of the compiled one, where there is one.
once = pytest.mark.skipif(
    not compiled and any((Path(greensock.__file__).parent / "core" / "_compiled").glob("*.so")),
    reason="it is run with the compiled engine",
)


class Refusing:
    """An epoll set that takes no descriptor, as if fs.epoll.max_user_watches were reached."""

    def __init__(self):
        self._epoll = get_poller()._epoll

    def register(self, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self._epoll, name)


class Calls:
    """Counts what is called through it."""

    def __init__(self, call):
        self._call = call
        self.count = 0
        self.failed = 0

    def __call__(self, *args, **options):
        self.count += 1
        try:
            return self._call(*args, **options)
        except OSError:
            self.failed += 1
            raise


def passes(seconds):
    """Return how often the engine's callback ran in that time."""
    poller = get_poller()
    poller._calls = calls = LookedAt(poller._calls)
    gevent.sleep(seconds)
    poller._calls = deque(calls)
    return calls.looks


class LookedAt(deque):
    """Counts how often its length is asked for."""

    looks = 0

    def __len__(self):
        self.looks += 1
        return super().__len__()

    def __bool__(self):
        return bool(super().__len__())


def silent(caplog, capsys):
    """Whether nothing was told of a failure, be it in the log or by gevent."""
    return not [record for record in caplog.records if record.exc_info] and not capsys.readouterr().err
