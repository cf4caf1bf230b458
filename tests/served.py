"""Servers of the tests of the server: they write down what happens to them."""

from __future__ import annotations

import errno
import os
import socket
import struct

import gevent
import gevent.event

from greensock import (
    Server,
)
from greensock.core.poller import get_poller


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


def refuse(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
    poller._run_calls = calls = Calls(poller._run_calls)
    gevent.sleep(seconds)
    del poller._run_calls
    return calls.count


def silent(caplog, capsys):
    """Whether nothing was told of a failure, be it in the log or by gevent."""
    return not [record for record in caplog.records if record.exc_info] and not capsys.readouterr().err
