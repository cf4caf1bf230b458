"""Answers that the HTTP client gets: the corpus, 1xx, other protocols, and answers before the request's end."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import gevent
import pytest
from conftest import PATIENCE, read_exactly, wait_until
from gevent.event import Event
from gevent.monkey import get_original
from http_clients import IDLE_ONE, LONG, NOTHING, Site, answering, client, endless, raw, site  # noqa: F401  # fixtures
from http_messages import cases, plain_fields
from pairs import drain, let_engine_look
from scripts import OK

from greensock import ConnectionLost
from greensock.http import (
    BadResponse,
    BodyTimeout,
    HeadTimeout,
    Reason,
    Timeouts,
)
from greensock.http.client import connection_pool

# A server in a thread of its own, which runs while the hub of this one does not.
allocate_lock, start_new_thread = (get_original("_thread", name) for name in ("allocate_lock", "start_new_thread"))


native_socket = get_original("socket", "socket")


# -- the corpus


RESPONSES = cases("responses")


#: One of each kind, byte by byte.
SAMPLE = [
    case
    for case in RESPONSES
    if "trailing" not in str(case[2]) and len(case[1]) < 300 and (case[0][0] in "3cehisu" or case[0] == "length")
]


def play(raw, client, data, expected, send):
    """Play an answer to a client; check what it makes of it."""

    def script(server, sock, number):
        if not server.head(sock):
            return
        if number == 1:
            send(sock, data)
            if expected.get("eof"):
                sock.shutdown(socket.SHUT_WR)
        else:
            sock.sendall(OK)
        drain(sock)

    server = raw(script)
    mine = client(timeouts=Timeouts(body=0.2), user_agent=None)
    method = expected.get("method", "GET")
    options: dict[str, Any] = {"target": b"a:80"} if method == "CONNECT" else {}
    if expected.get("upgrade"):
        options["headers"] = {"Upgrade": "websocket"}
    events = expected.get("events", [])
    interim = []
    wanted = [event for event in events if "status" in event]
    final = next((event for event in wanted if event["status"] >= 200 or event.get("is_switch")), None)
    refused = expected.get("refused")
    options["on_interim"] = lambda head: interim.append(head.status)

    if final is None:
        with pytest.raises(BadResponse) as caught:
            mine.request(method, server.url, **options)
        assert (caught.value.reason.value, caught.value.status) == (refused, 502)
        assert mine.statistics() == NOTHING
    else:
        answer = mine.request(method, server.url, **options)
        assert answer.status == final["status"]
        if "headers" in final:
            assert plain_fields(answer.headers) == final["headers"]
        check_body(mine, answer, expected, events)
    assert interim == [event["status"] for event in wanted if event is not final]
    if expected.get("reusable"):
        assert mine.statistics() == IDLE_ONE
    elif expected.get("reusable") is False or refused:
        assert mine.get(server.url).read_all() == b"ok"
        assert server.accepted == 2, "a connection was used again that did not end exactly"


def check_body(mine, answer, expected, events):
    refused = expected.get("refused")
    if expected.get("ends") == "switched":
        conn = answer.detach()
        assert mine.statistics() == NOTHING
        rest = expected["rest"].encode("latin-1")
        assert conn.read_exactly(len(rest), timeout=PATIENCE) == rest
        conn.close()
        return
    body = "".join(event.get("body", "") for event in events).encode("latin-1")
    ended = any("end" in event for event in events)
    got = b""
    kind = contextlib.nullcontext() if ended else pytest.raises(BadResponse if refused else BodyTimeout)
    with kind as caught:
        for piece in answer:
            got += piece
    if refused and not ended:
        assert caught.value.reason.value == refused
    assert got == body
    if ended:
        trailers = next(event["end"] for event in events if "end" in event)
        assert plain_fields(answer.trailers) == trailers


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*case[1:], id=case[0]) for case in RESPONSES])
def test_every_answer_of_the_corpus(raw, client, data, expected):
    play(raw, client, data, expected, socket.socket.sendall)


def send_byte_by_byte(sock, data):
    with contextlib.suppress(ConnectionError):  # it may be refused before its end
        for place in range(len(data)):
            sock.sendall(data[place : place + 1])
            gevent.sleep(0)


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*case[1:], id=case[0]) for case in SAMPLE])
def test_answers_byte_by_byte(raw, client, data, expected):
    play(raw, client, data, expected, send_byte_by_byte)


def test_the_sample_is_one():
    assert 25 < len(SAMPLE) < len(RESPONSES)


# -- answers 1xx, and other protocols


def test_interim_answers_are_told(raw, client):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    server = raw(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK))
    told = []
    answer = client().get(server.url, on_interim=told.append)
    assert [(head.status, head.headers.get("link")) for head in told] == [(100, None), (103, "</x>")]
    assert answer.read_all() == b"ok"


def test_what_the_hook_raises_comes_out(raw, client):
    server = raw(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK))
    mine = client()
    with pytest.raises(ZeroDivisionError):
        mine.get(server.url, on_interim=lambda head: 1 // 0)
    assert mine.statistics() == NOTHING


def test_a_flood_of_interim_answers_is_refused(raw, client):
    def flood(server, sock, number):
        server.head(sock)
        while True:
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3)
            gevent.sleep(0)

    with pytest.raises(BadResponse) as caught:
        client().get(raw(flood).url)
    assert caught.value.reason is Reason.TOO_MANY_INTERIM


def test_interim_answers_do_not_prolong_the_wait(raw, client):
    limit = 0.2

    def trickle(server, sock, number):
        server.head(sock)
        for _ in range(9):
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            gevent.sleep(limit / 4)
        drain(sock)

    began = time.monotonic()
    with pytest.raises(HeadTimeout):
        client(timeouts=Timeouts(head=limit)).get(raw(trickle).url)
    assert time.monotonic() - began < 0.6  # each of them anew: at least 0.65


def test_100_is_waited_for_and_the_body_sent_then(raw, client):
    seen = []

    def script(server, sock, number):
        server.head(sock)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(PATIENCE)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        seen.append(read_exactly(sock, 4))
        sock.sendall(OK)
        drain(sock)

    server = raw(script)
    mine = client(timeouts=Timeouts(expect=PATIENCE))
    assert mine.put(server.url, b"body", expect_continue=True).read_all() == b"ok"
    assert seen == [b"body"]
    assert b"Expect: 100-continue\r\n" in server.heads[0]
    assert mine.statistics() == IDLE_ONE


def test_100_is_not_waited_for_long(raw, client):
    def script(server, sock, number):
        server.head(sock)
        assert read_exactly(sock, 4) == b"body"
        sock.sendall(OK)
        drain(sock)

    mine = client(timeouts=Timeouts(expect=0.05))
    assert mine.put(raw(script).url, b"body", expect_continue=True).read_all() == b"ok"
    assert mine.statistics() == IDLE_ONE


def test_a_refusal_instead_of_100_spares_the_body(raw, client):
    rest = []

    def script(server, sock, number):
        server.head(sock)
        sock.sendall(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        rest.append(drain(sock))

    mine = client()
    assert mine.put(raw(script).url, b"body", expect_continue=True).status == 417
    assert mine.statistics() == NOTHING, "the server still waits for a body"
    wait_until(lambda: rest == [0])


def test_another_protocol(raw, client):
    def script(server, sock, number):
        assert b"Connection: Upgrade" in server.head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst ")
        while data := sock.recv(100):
            sock.sendall(data)

    mine = client()
    answer = mine.get(raw(script).url, headers={"Upgrade": "echo"})
    assert (answer.status, answer.head.is_switch, answer.read()) == (101, True, b"")
    assert mine.statistics().used == 1
    conn = answer.detach()
    conn.send(b"second")
    assert conn.read_exactly(12, timeout=PATIENCE) == b"first second"
    assert mine.statistics() == NOTHING
    with pytest.raises(RuntimeError, match="once"):
        answer.detach()
    conn.close()


def test_an_answer_that_switches_nothing_cannot_be_detached(site, client):
    with pytest.raises(RuntimeError, match="switches protocols"):
        client().get(site.url + "/", headers={"Upgrade": "x"}).detach()


# -- the answer before the end of the request


REFUSAL = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"


def early(how):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(REFUSAL)
        if how == "resets":
            sock.close()  # with unread input: the kernel sends RST
        elif how == "stops reading":
            server.stop.wait()
        elif how == "reads on":
            drain(sock)

    return script


@pytest.mark.parametrize("how", ["resets", "stops reading", "reads on"])
@pytest.mark.parametrize("kind", ["pieces", "bytes", "file", "sized"])
def test_an_early_answer_ends_the_request(raw, client, tmp_path, how, kind):
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 1 << 30)
    server = raw(early(how))
    server.stop = Event()
    mine = client(timeouts=Timeouts(send=PATIENCE))
    for _ in range(20 if how == "resets" else 1):
        with path.open("rb") as file:
            body: Any = {"pieces": endless([]), "bytes": bytes(1 << 26), "file": file, "sized": endless([])}[kind]
            answer = mine.put(server.url, body, headers={"Content-Length": str(1 << 40)} if kind == "sized" else {})
        assert (answer.status, answer.read_all()) == (413, b"big")
        assert mine.statistics() == NOTHING
    server.stop.set()


def test_second_descriptors_are_a_share_of_all(raw, client, monkeypatch):
    """An upload that goes on for long has one for what a reset would lose; beyond their share the others do without."""
    monkeypatch.setattr(connection_pool, "share_of_descriptors", lambda: 2)
    go_on, started, mine = Event(), [], client()

    def script(server, sock, number):
        server.head(sock)
        started.append(number)
        while b"\r\n0\r\n\r\n" not in sock.recv(1000):
            pass
        sock.sendall(OK)

    def body():
        yield b"first"
        go_on.wait()
        yield b"last"

    server = raw(script)
    uploads = [gevent.spawn(lambda: mine.put(server.url, body()).read_all()) for _ in range(4)]
    wait_until(lambda: len(started) == 4)
    assert len(connection_pool._with_spare) == 2
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, b"%d" % len(connection_pool._with_spare))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"0", "in the child they are copies, which would keep the connections open"
    os.close(reader)
    os.close(writer)
    go_on.set()
    assert [upload.get(timeout=PATIENCE) for upload in uploads] == [b"ok"] * 4
    assert not connection_pool._with_spare


def test_an_early_answer_is_noticed_between_pieces(raw, client):
    server = raw(early("reads on"))
    asked = Event()

    def body():
        yield b"x"
        asked.wait()
        yield b"y"
        pytest.fail("more was asked for although the answer is there")

    mine = client()
    gevent.spawn_later(0.05, asked.set)
    answer = mine.put(server.url, body())
    assert (answer.status, answer.read_all()) == (413, b"big")


def test_no_piece_goes_out_before_a_refusal_that_is_there_was_looked_at(client):
    """Pieces that are made without letting others run: the hub has had no time to see the answer."""
    made, refused, ended = [], allocate_lock(), allocate_lock()
    refused.acquire()
    ended.acquire()

    def body():
        made.append(1)
        yield b"first"
        assert refused.acquire(timeout=PATIENCE)
        while True:
            made.append(1)
            yield b"more"

    def refuse(listener):
        with native_socket(fileno=listener._accept()[0]) as sock:
            data = b""
            while b"first" not in data:
                data += sock.recv(1000)
            sock.sendall(REFUSAL)
            refused.release()
            while sock.recv(65536):
                pass
        ended.release()

    with native_socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start_new_thread(refuse, (listener,))
        answer = client().put("http://{}:{}/".format(*listener.getsockname()), body())
        assert (answer.status, answer.read_all()) == (413, b"big")
        answer.close()
        wait_until(lambda: ended.acquire(blocking=False))
    assert len(made) == 2


def test_a_server_that_closes_while_the_request_goes_out(raw, client):
    def script(server, sock, number):
        server.head(sock)
        sock.recv(1000)

    mine = client()
    with pytest.raises((ConnectionLost, BadResponse)) as caught:
        mine.post(raw(script).url, endless([]))
    assert not isinstance(caught.value, BadResponse) or caught.value.reason is Reason.NO_RESPONSE
    assert mine.statistics() == NOTHING


def test_an_answer_made_of_the_request_while_it_goes_out(site, client):
    """More than all buffers on the way hold: with either side waiting for the other it would stand still."""
    mine = client(timeouts=Timeouts(send=PATIENCE, body=PATIENCE))
    closed = []

    def body():
        try:
            for _ in range(20):
                yield LONG
        finally:
            closed.append(1)

    with mine.post(site.url + "/mirror", body()) as answer:
        assert mine.statistics().used == 1
        assert sum(map(len, answer)) == 20 * len(LONG)
    assert closed == [1]
    assert mine.statistics() == IDLE_ONE


def never_whole(piece, closed):
    """A body of which only one piece comes in time; ``closed`` is set when it is closed."""
    try:
        yield piece
        gevent.sleep(PATIENCE)
    finally:
        closed.set()


@pytest.mark.parametrize("how", ["close", "forget", "read"])
def test_giving_up_an_answer_ends_the_sending(site, client, how):
    mine = client()
    closed = Event()
    answer = mine.post(site.url + "/mirror", never_whole(b"x" * 100_000, closed), timeouts=Timeouts(body=0.05))
    if how == "close":
        answer.close()
    elif how == "read":
        with pytest.raises(BodyTimeout):
            answer.read_all()
    else:
        with pytest.warns(ResourceWarning):
            del answer
    assert closed.wait(1)
    assert mine.statistics() == NOTHING


def test_a_body_that_fails_behind_the_head_of_the_answer(site, client):
    mine = client()
    asked = Event()

    def body():
        yield b"x"
        asked.wait()
        raise ZeroDivisionError

    answer = mine.post(site.url + "/mirror", body())
    assert answer.read() == b"x"
    asked.set()
    with pytest.raises(ZeroDivisionError):
        answer.read()
    assert mine.statistics() == NOTHING


def test_a_whole_answer_ends_the_sending(raw, client):
    """Nobody reads on whatever the status is."""
    mine = client()
    sent: list[int] = []
    answer = mine.put(raw(early_with(OK)).url, endless(sent))
    assert answer.read_all() == b"ok"
    assert answer.is_ended
    wait_until(lambda: mine.statistics() == NOTHING)
    let_engine_look()
    count = len(sent)
    let_engine_look()
    assert len(sent) == count


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 302 Found\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 413 Content Too Large\r\n\r\n"]
)
def test_a_refusal_ends_the_sending_before_its_own_end(raw, client, head):
    mine = client()
    closed = Event()
    answer = mine.put(raw(early_with(head)).url, never_whole(b"x", closed))
    assert closed.is_set()
    assert not answer.is_ended
    answer.close()


def test_a_whole_answer_does_not_wait_for_the_body(raw, client):
    mine = client()
    closed = Event()
    assert mine.put(raw(early_with(OK)).url, never_whole(b"x", closed)).read_all() == b"ok"
    assert closed.wait(1)
    assert mine.statistics() == NOTHING


def early_with(answer):
    def script(server, sock, number):
        server.head(sock)
        sock.sendall(answer)
        drain(sock)

    return script
