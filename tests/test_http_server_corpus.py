"""The corpus of hostile and odd requests against a live server: the status that is due, a close, and life goes on."""

from __future__ import annotations

import re
import socket

import gevent
import pytest
from conftest import PATIENCE, read_all, wait_until
from http_messages import cases

from greensock.http import HTTPServer, Response

REQUESTS = cases("requests")
GOOD = b"GET /good HTTP/1.1\r\nHost: good\r\n\r\n"


class Echo(HTTPServer):
    def handle_request(self, request):
        return Response(request.body.read_all())


def client(server):
    sock = socket.create_connection(server.address, PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def play(server, pieces):
    """Send the pieces, then FIN; return the statuses of what comes back until the server closes."""
    with client(server) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) > 1:
                    gevent.sleep(0)  # the server looks at each by itself
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused already
        answer = read_all(sock)
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def expected_statuses(expected):
    """Return the final statuses that are due, given what the parser tells of the same bytes."""
    found, open_, keeps = [], True, True
    for event in expected.get("events", []):
        if "end" in event and open_:
            found.append(200)
            open_ = open_ and keeps
        elif "method" in event:
            version = event.get("version", "1.1")
            said = {value.lower() for name, value in event.get("headers", []) if name.lower() == "connection"}
            keeps = "keep-alive" in said if version == "1.0" else not any("close" in value for value in said)
            if event["method"] in ("CONNECT", "TRACE"):
                return [405]
    if "refused" in expected and open_:
        found.append(expected["status"])
    return found


def split(data):
    return [data[place : place + 1] for place in range(len(data))]


@pytest.mark.parametrize(
    ("data", "expected"), [pytest.param(data, expected, id=name) for name, data, expected in REQUESTS]
)
def test_every_file(serve, data, expected):
    server = serve(Echo)
    due = expected_statuses(expected)
    finals = [status for status in play(server, [data]) if status >= 200]
    assert finals[: len(due)] == due
    assert set(finals[len(due) :]) <= {400}, "only that the input ended"
    if "refused" in expected:
        assert finals == due
        assert server.refused == {expected["refused"]: 1}
    if len(data) < 300:
        slowly = [status for status in play(server, split(data)) if status >= 200]
        assert slowly == finals
    behind = [status for status in play(server, [GOOD + data]) if status >= 200]
    assert behind == [200, *finals]
    assert play(server, [GOOD]) == [200], "and it still serves"
    wait_until(lambda: not server.statistics().active)
    assert server.statistics().errors == 0
