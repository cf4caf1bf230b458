"""Server-Sent Events, as an answer."""

from __future__ import annotations

import pytest
from conftest import wait_until
from gevent.queue import Queue

from greensock.http import HTTPClient, HTTPServer, ServerSentEvent, send_events


@pytest.mark.parametrize(
    ("event", "written"),
    [
        (ServerSentEvent("x"), b"data: x\n\n"),
        (ServerSentEvent(""), b"data: \n\n"),
        (ServerSentEvent("a\nb\r\nc\rd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (ServerSentEvent("ü", "kind", "7", 1.5), "event: kind\nid: 7\nretry: 1500\ndata: ü\n\n".encode()),
        (ServerSentEvent("x", id=""), b"id: \ndata: x\n\n"),
    ],
)
def test_an_event(event, written):
    assert event.encode() == written


@pytest.mark.parametrize("wrong", [{"event": "a\nb"}, {"id": "a\0"}, {"id": "\r"}, {"retry": -1}])
def test_events_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="expected"):
        ServerSentEvent("x", **wrong)


def test_they_go_out_as_they_come(serve, connect):
    said, ended = Queue(), []

    def events():
        try:
            yield from iter(said.get, "end")
        finally:
            ended.append(True)

    server = serve(HTTPServer, handle_request=lambda request: send_events(events()))
    with HTTPClient() as client, client.get(f"http://127.0.0.1:{server.server_port}/") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        pieces = iter(answer)
        assert next(pieces) == b": events\n\n"
        kind = ServerSentEvent("b", "kind")
        for event, written in (("a", b"data: a\n\n"), (None, b":\n\n"), (kind, b"event: kind\ndata: b\n\n")):
            said.put(event)
            assert next(pieces) == written
        said.put("end")
        assert list(pieces) == []
    assert ended == [True]
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert sock.recv(1000)
    sock.close()

    def has_ended():
        said.put(None)
        return len(ended) == 2

    wait_until(has_ended)
