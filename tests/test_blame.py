"""Whose fault it is that an upcall ended with an error: the peer's own, or the program's."""

from __future__ import annotations

import io

import gevent
import pytest
from conftest import read_all, read_exactly, wait_until
from proxies import Recorded, gateway_to
from scripts import scripted

from greensock import (
    ConnectFailed,
    Connection,
    ConnectionClosed,
    DropReason,
    Framer,
    IncompleteMessage,
    Lines,
    LogLimit,
    OperationTimeout,
    ProtocolError,
    Server,
    StreamServer,
    WouldBlock,
    connect,
)
from greensock.http import BadRequest, HTTPClient, HTTPServer, QueueFull, RequestParser, Response, Timeouts, WSGIServer
from greensock.http.errors import BadResponse, PhaseTimeout
from greensock.proxy import HealthOptions


class Relaying(Server):
    """Does what ``job`` says when data comes, and notes how connections ended."""

    def __init__(self, *arguments, job, **options):
        super().__init__(*arguments, **options)
        self.job = job
        self.ended = []
        self.told = []

    def connection_recv(self, conn, data):
        self.job(conn)

    def connection_error(self, conn, exc):
        self.told.append(exc)

    def connection_drop(self, conn):
        self.ended.append(conn.drop_reason)


class Blocking(Relaying):
    """The same in the blocking style."""

    def handle(self, conn):
        conn.recv()
        self.job(conn)


@pytest.fixture
def backend():
    """Start a server that ``serve``s as it is told: ``backend(function)`` gives its address."""
    started = []

    def start(function):
        server = StreamServer(("127.0.0.1", 0), function)
        server.start()
        started.append(server)
        return server.address

    yield start
    for server in started:
        server.stop()


def garbage(sock, address):
    sock.recv(1000)
    sock.sendall(b"BANANA\r\n\r\n")


def silence(sock, address):
    sock.recv(1000)
    sock.recv(1000)


def client_of(address):
    return f"http://127.0.0.1:{address[1]}/"


def ask_garbage(backend):
    address, client = backend(garbage), HTTPClient()
    return lambda conn: client.get(client_of(address)), BadResponse


def ask_a_closed_client(backend):
    client = HTTPClient()
    client.close()
    return lambda conn: client.get("http://127.0.0.1:9/"), ConnectionClosed


def ask_too_late(backend):
    address, client = backend(silence), HTTPClient(timeouts=Timeouts(head=0.05))
    return lambda conn: client.get(client_of(address)), PhaseTimeout


def ask_behind_a_full_queue(backend):
    address, client = backend(silence), HTTPClient(max_connections=1, max_waiting=0)

    def job(conn):
        first = gevent.spawn(client.get, client_of(address))
        wait_until(lambda: client.statistics().used)
        try:
            client.get(client_of(address))
        finally:
            first.kill()

    return job, QueueFull


def connect_to_nobody(backend):
    return lambda conn: connect(("127.0.0.1", 1), timeout=5), ConnectFailed


def read_another_too_late(backend):
    address = backend(silence)

    def job(conn):
        with connect(address) as other:
            other.recv(timeout=0.01)

    return job, OperationTimeout


def use_another_that_is_closed(backend):
    address = backend(silence)

    def job(conn):
        other = connect(address)
        other.close()
        other.send(b"x")

    return job, ConnectionClosed


def overfill_another(backend):
    address = backend(silence)

    def job(conn):
        with connect(address) as other:
            other.max_send_queue = 0
            for _ in range(1000):
                other.send_nowait(bytes(1 << 20))

    return job, WouldBlock


def read_half_of_another(backend):
    address = backend(lambda sock, address: sock.sendall(b"half"))

    def job(conn):
        with connect(address) as other:
            other.read_exactly(10, timeout=5)

    return job, IncompleteMessage


def parse_with_a_parser_of_its_own(backend):
    def job(conn):
        parser = RequestParser()
        parser.feed(b"\x00")
        parser.next_event()

    return job, BadRequest


JOBS = [
    ask_garbage,
    ask_a_closed_client,
    ask_too_late,
    ask_behind_a_full_queue,
    connect_to_nobody,
    read_another_too_late,
    use_another_that_is_closed,
    overfill_another,
    read_half_of_another,
    parse_with_a_parser_of_its_own,
]


@pytest.mark.parametrize("kind", [Relaying, Blocking])
@pytest.mark.parametrize("make", JOBS)
def test_what_was_raised_for_another_is_the_programs_failure(serve, connect, backend, caplog, kind, make):
    job, error = make(backend)
    server = serve(kind, job=job)
    sock = connect(server)
    sock.sendall(b"x")
    assert read_all(sock) == b""
    wait_until(lambda: server.ended)
    assert server.ended == [DropReason.ERROR]
    assert [type(told) for told in server.told] == [error] or isinstance(server.told[0], error)
    assert server.statistics().errors == 1
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("make", JOBS)
def test_an_application_that_lets_it_out_is_answered_500(serve, connect, backend, caplog, make):
    job, _ = make(backend)

    class Site(HTTPServer):
        def handle_request(self, request):
            job(request.connection)
            return Response(b"")

    server = serve(Site)
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert read_all(sock).startswith(b"HTTP/1.1 500 ")
    assert server.statistics().errors == 1
    assert not server.statistics().refused
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("make", JOBS)
def test_a_body_that_breaks_for_such_a_reason(serve, connect, backend, caplog, make):
    """Behind the head it is too late for 500; and nobody was refused."""
    job, _ = make(backend)

    class Site(HTTPServer):
        def handle_request(self, request):
            def pieces():
                yield b"begun"
                job(request.connection)

            return Response(pieces())

    server = serve(Site)
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: server.statistics().dropped)
    statistics = server.statistics()
    assert sum(statistics.dropped.values()) == 1
    assert statistics.errors == 1
    assert not statistics.refused
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("make", JOBS)
def test_a_wsgi_application_that_lets_it_out_is_answered_500(serve, connect, backend, make):
    job, _ = make(backend)
    told = io.StringIO()

    def application(environ, start_response):
        job(None)

    server = serve(WSGIServer, application=application, log=None, error_log=told)
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert read_all(sock).startswith(b"HTTP/1.1 500 ")
    assert server.statistics().errors == 1
    assert not server.statistics().refused
    assert told.getvalue().count("Traceback") >= 1


class Fronting(Recorded):
    """Does what ``job`` says in one of its upcalls."""

    def __init__(self, *arguments, job, **options):
        super().__init__(*arguments, **options)
        self.job = job


class InEditRequest(Fronting):
    def edit_request(self, relay, headers):
        self.job(relay.conn)


class InEditResponse(Fronting):
    def edit_response(self, relay, status, headers):
        self.job(relay.conn)


class InWatchRequest(Fronting):
    def watch_request_body(self, relay, piece):
        self.job(relay.conn)


class InWatchResponse(Fronting):
    def watch_response_body(self, relay, piece):
        self.job(relay.conn)


@pytest.mark.parametrize("kind", [InEditRequest, InEditResponse, InWatchRequest, InWatchResponse])
@pytest.mark.parametrize("make", JOBS)
def test_what_an_upcall_of_the_proxy_raises_blames_no_server(serve, connect, backend, caplog, kind, make):
    job, _ = make(backend)
    with scripted(answer_in_two) as origin:
        # A body that is passed on as it comes is watched by the greenlet that sends it.
        gateway = gateway_to(origin.url, max_replay=0, health=HealthOptions(max_fails=1))
        proxy = serve(kind, gateway=gateway, job=job)
        sock = connect(proxy)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        answer = read_all(sock)
        wait_until(lambda: proxy.records)
    (record,) = proxy.records
    assert record.reason == "internal-error"
    assert kind is InWatchResponse or answer.startswith(b"HTTP/1.1 500 ")
    assert proxy.statistics().errors == 1
    assert not proxy.failures
    assert not proxy.gateway.upstreams["site"].all[0].health.is_ejected
    assert len([entry for entry in caplog.records if entry.exc_info]) == 1


def answer_in_two(server, sock, number):
    server.head(sock)
    read_exactly(sock, 2)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
    sock.sendall(b"lf")
    read_all(sock)


def own_timeout(conn):
    conn.recv(timeout=0.01)


def own_close(conn):
    conn.close()
    conn.recv()


def own_protocol(conn):
    raise ProtocolError("not like this", conn)


def own_queue(conn):
    conn.max_send_queue = 0
    while True:
        conn.send_nowait(bytes(1 << 20))


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (own_timeout, DropReason.RECV_TIMEOUT),
        (own_close, DropReason.CLOSED),
        (own_protocol, DropReason.PROTOCOL),
        (own_queue, DropReason.SLOW_READER),
    ],
)
def test_what_was_raised_for_the_connection_itself_is_a_reason(serve, connect, caplog, job, reason):
    server = serve(Relaying, job=job)
    sock = connect(server)
    sock.sendall(b"x")
    wait_until(lambda: server.ended)
    assert server.ended == [reason]
    assert server.statistics().errors == 0
    assert not [record for record in caplog.records if record.exc_info]


class Picky(Framer):
    """Raises for bytes it does not like, as a program's own framer would: without a connection."""

    def __init__(self, where):
        super().__init__(100)
        self.where = where

    def decoder(self):
        framer, decoder = self, Lines(100).decoder()

        class Decoder(type(decoder)):
            def feed(self, data):
                if framer.where == "feed" and b"bad" in data:
                    raise ProtocolError("bad bytes")
                super().feed(data)

            def next_message(self):
                message = super().next_message()
                if message == b"bad":
                    raise ProtocolError("a bad message")
                return message

        return Decoder(Lines(100))


@pytest.mark.parametrize(
    ("framer", "data", "reason"),
    [
        (Lines(10), b"x" * 11, DropReason.TOO_LONG),
        (Picky("feed"), b"bad\n", DropReason.PROTOCOL),
        (Picky("next"), b"good\nbad\n", DropReason.PROTOCOL),
    ],
)
def test_a_peer_that_breaks_a_framers_rules_is_no_failure(serve, connect, caplog, framer, data, reason):
    server = serve(Relaying, job=lambda conn: None, framer=framer)
    sock = connect(server)
    sock.sendall(data)
    wait_until(lambda: server.ended)
    assert server.ended == [reason]
    assert isinstance(server.told[0].connection, Connection), "the engine says whose bytes they were"
    assert server.statistics().errors == 0
    assert not [record for record in caplog.records if record.exc_info]


def test_failures_do_not_fill_a_disk(serve, connect, caplog):
    """A stranger who finds what makes an upcall fail gets so many tracebacks, and all are counted."""
    server = serve(Relaying, job=lambda conn: 1 / 0)
    server._failures_logged = LogLimit(3, 0.0)
    for _ in range(10):
        sock = connect(server)
        sock.sendall(b"x")
        assert read_all(sock) == b""
    assert server.statistics().errors == 10
    assert len([record for record in caplog.records if record.exc_info]) == 3
    server._failures_logged._left = 1.0
    sock = connect(server)
    sock.sendall(b"x")
    assert read_all(sock) == b""
    assert "; 7 failures before were not logged" in caplog.text
