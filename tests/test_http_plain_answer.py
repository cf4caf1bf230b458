"""The HTTP client's short way: calls that are kept written, and answers that come whole and are not parsed."""

from __future__ import annotations

import gevent
import pytest
from http_clients import NOTHING, client, raw, site  # noqa: F401  # fixtures
from http_messages import answering, cases, plain

from greensock import LimitExceeded
from greensock.http import HeadTimeout, HTTPClient, Limits, Timeouts
from greensock.http.client import http_client
from greensock.http.wire.response_parser import plain_answer

PLAIN = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello"
OTHERS = (
    PLAIN,
    b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 5\r\n\r\nhello",
)


def check(data, method, limits=None):
    """Whether it is taken; then the parser takes it in the same sense, and the connection can be kept."""
    limits = limits or Limits()
    found = plain_answer(data, method, limits)
    if found is None:
        return False
    head, body = found
    parser = answering(method, limits=limits)
    parser.feed(data)
    expected = parser.next_event()
    assert plain(head) == plain(expected)
    assert [
        getattr(head, name) for name in ("content_length", "has_body", "is_chunked", "is_switch", "keep_alive")
    ] == [getattr(expected, name) for name in ("content_length", "has_body", "is_chunked", "is_switch", "keep_alive")]
    assert parser.take_whole_body() == body
    assert parser.is_reusable
    return True


def test_what_is_taken_is_what_the_parser_takes():
    found = [name for name, data, expected in cases("responses") if check(data, expected.get("method", "GET"))]
    assert len(found) > 6
    assert [check(data, "GET") for data in OTHERS] == [True, True] + [False] * 8
    assert not check(PLAIN, "HEAD")
    assert not check(PLAIN, "CONNECT")


def test_a_byte_changed_left_out_or_put_in():
    taken = 0
    for place in range(len(PLAIN)):
        for byte in b"\x00\t\n\r :;,05Aa\x7f\xff":
            taken += check(PLAIN[:place] + bytes([byte]) + PLAIN[place + 1 :], "GET")
            taken += check(PLAIN[:place] + bytes([byte]) + PLAIN[place:], "GET")
        taken += check(PLAIN[:place] + PLAIN[place + 1 :], "GET")
    assert taken > 100


@pytest.mark.parametrize("limits", [Limits(max_head=40), Limits(max_fields=2), Limits(max_body=4)], ids=repr)
def test_the_limits_hold(limits):
    assert check(PLAIN, "GET", Limits(max_head=len(PLAIN) - 5, max_fields=3, max_body=5))
    assert not check(PLAIN, "GET", limits)


def test_an_ordinary_call_needs_no_exchange(site, client, monkeypatch):
    mine = client()
    monkeypatch.setattr(http_client, "Exchange", None)
    for _ in range(3):
        with mine.get(site.url + "/") as answer:
            assert answer.status == 200
            assert answer.read(3) == b"GET"
            assert answer.read_all().startswith(b" 127")
            assert answer.read_all() == b""
    assert mine.post(site.url + "/echo", b"body", headers={"X": "y"}).read_all() == b"body"
    answer = mine.get(site.url + "/")
    with pytest.raises(LimitExceeded, match="max_bytes=3"):
        answer.read_all(3)
    assert answer.is_ended


def test_calls_are_kept_written_and_not_without_bound(site, client, monkeypatch):
    monkeypatch.setattr(http_client, "MAX_WRITTEN", 3)
    mine = client()
    for number in (1, 2, 1, 3, 4, 1):
        assert mine.get(f"{site.url}/?{number}").status == 200
        assert len(mine._written) <= 3
    assert mine.head(f"{site.url}/?1").read_all() == b""
    with pytest.raises(ValueError, match="scheme 'gopher'"):
        mine.get("gopher://host/")
    with pytest.raises(ValueError, match="method"):
        mine.request("G T", site.url)


def test_a_timeout_that_is_set_later_counts(raw, client):
    def script(server, sock, number):
        sock.recv(100)
        gevent.sleep(server.patience)

    mine = client()
    server = raw(script)
    server.patience = 10
    mine.timeouts = Timeouts(head=0.05)
    with pytest.raises(HeadTimeout):
        mine.get(server.url)
    assert mine.statistics() == NOTHING


def test_calls_of_many_greenlets_get_an_answer_each(site):
    """What they send within a pass of the loop goes out at its end: each must find its own answer."""
    with HTTPClient(max_connections=8) as mine:

        def ask(number):
            return [mine.get(f"{site.url}/?{number}").read_all() for _ in range(20)]

        found = [job.get(timeout=20) for job in [gevent.spawn(ask, number) for number in range(16)]]
    assert found == [[b"GET 127.0.0.1:%d" % site.server_port] * 20] * 16
