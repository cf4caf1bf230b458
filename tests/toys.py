"""Transports for tests."""

from __future__ import annotations

import pytest
from pairs import connected

from greensock import (
    POSTPONE,
    Server,
)


def nothing(conn):
    return conn


class Echo(Server):
    def __init__(self, *arguments, cover, **options):
        super().__init__(*arguments, **options)
        self.cover = cover
        self.said = []

    def connection_new(self, conn):
        self.cover(conn)

    def connection_recv(self, conn, data):
        self.said.append(data)
        if data.startswith(b"wait") and not data.endswith(b"!"):
            return POSTPONE
        conn.send(data)
        return None


@pytest.fixture(params=["unix", "tcp"])
def pair(request):
    yield from connected(request.param)
