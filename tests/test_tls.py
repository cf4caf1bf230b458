"""TLS: handshakes that are slow, cut, changed or none; ends and cuts; what is told; real peers."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
import subprocess
import time

import gevent
import pytest
import trustme
from conftest import PATIENCE, PAUSE, wait_until
from pairs import drain, read_all_fast
from served import Recorder
from tls_peers import (
    ENDS,
    Peer,
    TLSEcho,
    accepted,
    authority,
    chain,
    client_tls,
    is_alive,
    issued,
    only,
    peer_context,
    server_tls,
    write_files,
)

from greensock import (
    POSTPONE,
    TLS,
    CertificateRefused,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    ConnectionTruncated,
    DropReason,
    HandshakeFailed,
    Lines,
    OperationTimeout,
    Server,
    SocketConnection,
    State,
    connect,
)

TLS_VERSIONS = ("1.2", "1.3")
#: Seconds of what is to be over soon.
SHORT = 0.1
#: Seconds for several looks of a server that drains at what rests.
LOOKS = 0.2


@pytest.fixture(params=TLS_VERSIONS)
def version(request):
    return request.param


def first_flight(version):
    """Return the first flight of a client's handshake, and the client."""
    one, other = socket.socketpair()
    peer = Peer(one, peer_context(version))
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    other.close()
    one.close()
    return peer._out.read(), peer


# -- upcalls


@pytest.mark.parametrize("framer", [None, Lines()])
def test_upcalls(serve, version, framer):
    server = serve(TLSEcho, tls=server_tls(**only(version)), framer=framer)
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    peer.sendall(b"one\ntwo\n")
    said = b"onetwo" if framer else b"one\ntwo\n"
    assert peer.read_exactly(len(said)) == said
    peer.end()
    assert peer.read_all() == b""
    peer.close()
    wait_until(lambda: server.drops() == [DropReason.PEER_CLOSED])
    assert server.names()[0] == "new"
    assert server.errors() == []
    statistics = server.statistics()
    assert (statistics.handshakes, statistics.handshakes_unfinished, statistics.errors) == (1, 0, 0)


def test_postpone_and_raw_reads(serve):
    class Asking(Server):
        tls = server_tls()

        def connection_recv(self, conn, data):
            if not data.endswith(b"!"):
                return POSTPONE
            conn.send(data + conn.read_exactly(3))
            return None

    server = serve(Asking)
    peer = Peer(socket.create_connection(server.address), peer_context())
    peer.shake()
    wait_until(lambda: server.connections)
    for piece, size in ((b"a", 1), (b"b", 2), (b"c!", 4)):
        peer.sendall(piece)
        wait_until(lambda: server.statistics().bytes_received == size)  # noqa: B023
    peer.sendall(b"123")
    assert peer.read_exactly(7) == b"abc!123"
    peer.close()


def test_a_small_read_size(serve, version):
    """More than one upcall comes of one record, and no event tells of what is left of it."""
    server = serve(TLSEcho, tls=server_tls(**only(version)), recv_size=100)
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    data = bytes(range(256)) * 100
    peer.sendall(data)
    assert peer.read_exactly(len(data)) == data
    assert max(len(what) for name, what in server.calls if name == "recv") == 100
    peer.close()


def test_a_server_that_speaks_first_and_one_that_closes_at_once(serve, version):
    class Greeting(Server):
        tls = server_tls(**only(version))

        def connection_new(self, conn):
            conn.send(b"hello", close=True)

    peer = Peer(socket.create_connection(serve(Greeting).address), peer_context(version))
    peer.shake()
    assert peer.read_all() == b"hello"
    peer.close()


def test_handle(serve, version):
    class Handling(Server):
        tls = server_tls(**only(version))

        def handle(self, conn):
            for line in conn:
                conn.send(line.upper() + b"\n")

    peer = Peer(socket.create_connection(serve(Handling).address), peer_context(version))
    peer.shake()
    peer.sendall(b"a\nb\n")
    assert peer.read_exactly(4) == b"A\nB\n"
    peer.end()
    assert peer.read_all() == b""
    peer.close()


def test_adopt(serve, version):
    server = serve(TLSEcho)
    ours, theirs = socket.socketpair()
    server.adopt(ours)
    peer = Peer(theirs, peer_context(version))
    peer.shake()
    peer.sendall(b"x")
    assert peer.read_exactly(1) == b"x"
    peer.close()


def test_what_is_told_of_a_connection(serve, version):
    class Telling(Server):
        tls = server_tls("localhost", alpn=["h2", "http/1.1"], **only(version))

        def connection_recv(self, conn, data):
            told.append(conn.tls)
            conn.send(data)

    told = []
    options = client_tls(alpn=["http/1.1"])
    with connect(serve(Telling).address, tls=options, server_hostname="LOCALHOST", timeout=PATIENCE) as conn:
        conn.send(b"x")
        assert conn.recv() == b"x"
        for tls in (conn.tls, *told):
            assert (tls.version, tls.alpn, tls.is_resumed) == (f"TLSv{version}", "http/1.1", False)
            assert "AES" in tls.cipher
        assert told[0].server_name == "localhost"
        assert told[0].peer_certificate is told[0].peer_certificate_der is None
        assert conn.tls.peer_certificate["subjectAltName"] == (("DNS", "localhost"),)
        assert ssl.DER_cert_to_PEM_cert(conn.tls.peer_certificate_der).strip() in chain(issued("localhost")).decode()
        conn.close()
        conn.wait_closed(PATIENCE)


def test_a_plain_connection_tells_nothing(serve):
    server = serve(Recorder)
    with connect(server.address, timeout=PATIENCE) as conn:
        assert conn.tls is None
        wait_until(lambda: server.connections)
        assert server.connections[0].tls is None
        conn.close()
        conn.wait_closed(PATIENCE)


# -- handshakes


def test_byte_by_byte(serve, version):
    """Both ways, with data right behind."""

    class Slow(socket.socket):
        def sendall(self, data):
            for index in range(len(data)):
                super().sendall(data[index : index + 1])

    server = serve(TLSEcho)
    sock = Slow()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(server.address)
    peer = Peer(sock, peer_context(version))
    peer.shake()
    peer.sendall(b"hello")
    assert peer.read_exactly(5) == b"hello"
    peer.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = gevent.spawn(connect, listener.getsockname(), tls=client_tls(), timeout=PATIENCE)
        accepted, _ = listener.accept()
    slow = Slow(fileno=accepted.detach())
    slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer = Peer(slow, peer_context(version, server=True), server=True)
    peer.shake()
    conn = connecting.get(timeout=PATIENCE)
    peer.sendall(b"hello")
    assert conn.read_exactly(5) == b"hello"
    conn.abort()
    peer.close()


def test_data_that_comes_with_the_end_of_the_handshake(serve, version):
    server = serve(TLSEcho)
    sock = socket.create_connection(server.address)
    peer = Peer(sock, peer_context(version))
    held = []
    flush, peer.flush = peer.flush, lambda: held.append(peer._out.read())
    while True:
        try:
            peer.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            flush()
            peer._in.write(sock.recv(65536))
    if version == "1.2":  # the server's last flight comes behind ours: there is nothing to send with it
        flush()
        peer.sendall(b"hello")
        flush()
        sock.sendall(b"".join(held))
    else:
        peer.tls.write(b"hello")
        flush()
    peer.flush = flush
    assert peer.read_exactly(5) == b"hello"
    peer.close()


def test_cut_at_each_byte(serve, version):
    server = serve(TLSEcho, linger_timeout=0.1)
    flight, _ = first_flight(version)
    for size in range(len(flight)):
        with socket.create_connection(server.address) as sock:
            sock.sendall(flight[:size])
    wait_until(lambda: server.statistics().handshakes_failed == {"cut": len(flight)})
    wait_until(lambda: server.failures == ["cut"] * len(flight))
    assert server.statistics().handshakes_unfinished == 0
    assert server.calls == []
    assert is_alive(server)
    assert server.statistics().errors == 0


def test_each_byte_changed(serve, version):
    """Whatever comes of it: nothing fails but the handshake, or nothing."""
    server = serve(TLSEcho, linger_timeout=0.1)
    flight, _ = first_flight(version)
    for index in range(len(flight)):
        changed = bytearray(flight)
        changed[index] ^= 0x55
        with socket.create_connection(server.address) as sock:
            sock.sendall(changed)
            sock.shutdown(socket.SHUT_WR)
            drain(sock)
    wait_until(lambda: sum(server.statistics().handshakes_failed.values()) == len(flight))
    assert server.statistics().handshakes_unfinished == 0
    assert set(server.failures) <= {"cut", "protocol", "plain_text", "version", "cipher", "name"}
    assert is_alive(server)
    assert server.statistics().errors == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "plain_http"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "plain_text"),
        (b"\x00" * 100, "plain_text"),
        (b"\x16\x03\x01\xff\xff" + b"x" * 70000, "protocol"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "protocol"),
    ],
)
def test_what_is_no_handshake(serve, data, reason):
    server = serve(TLSEcho)
    with socket.create_connection(server.address) as sock:
        sock.sendall(data)
        drain(sock)
    wait_until(lambda: server.failures)
    assert server.failures == [reason]
    assert server.statistics().dropped == {"HANDSHAKE": 1}
    assert server.calls == []


def test_a_name_that_is_not_ascii(serve, capfd):
    """In one piece, in many, and in records of one byte: Python tells standard error nothing of it."""
    server = serve(TLSEcho)
    flight, _ = first_flight("1.3")
    flight = flight.replace(b"localhost", b"l\xc3\xa9calhost"[:9])
    message = flight[5 : 5 + int.from_bytes(flight[3:5], "big")]
    tiny = b"".join(b"\x16\x03\x01\x00\x01" + message[at : at + 1] for at in range(len(message)))
    for sent in ([flight], [flight[:100], flight[100:]], [tiny]):
        with socket.create_connection(server.address) as sock:
            for piece in sent:
                sock.sendall(piece)
                gevent.sleep(PAUSE)
            assert read_all_fast(sock)[-2:] == b"\x02\x70"  # unrecognized_name
    wait_until(lambda: server.failures == ["name"] * 3)
    assert capfd.readouterr() == ("", "")


def test_who_says_nothing(serve):
    server = serve(TLSEcho, handshake_timeout=SHORT)
    with socket.create_connection(server.address) as sock:
        began = time.monotonic()
        assert sock.recv(1) == b""
        assert SHORT <= time.monotonic() - began < 10 * SHORT
    flight, _ = first_flight("1.3")
    with socket.create_connection(server.address) as sock:
        sock.sendall(flight)
        assert read_all_fast(sock)
    wait_until(lambda: server.failures == ["timeout"] * 2)


def test_who_comes_takes_the_place_of_the_oldest(serve):
    server = serve(TLSEcho, max_handshakes=3)
    silent = [socket.create_connection(server.address) for _ in range(5)]
    wait_until(lambda: server.failures == ["crowded_out"] * 2)
    assert [sock.recv(1) for sock in silent[:2]] == [b"", b""]
    assert is_alive(server)
    assert server.statistics().handshakes_unfinished == 2
    assert server.failures == ["crowded_out"] * 3
    for sock in silent:
        sock.close()


def test_many_handshakes_at_once_hold_nobody_up(serve):
    """A pass of the loop makes a few, and timers are hardly late."""
    server = serve(TLSEcho)
    flight, _ = first_flight("1.3")
    socks = [socket.create_connection(server.address) for _ in range(200)]
    for sock in socks:
        sock.sendall(flight)
    late = []
    while server.statistics().handshakes_unfinished < 200 or not late:
        began = time.monotonic()
        gevent.sleep(PAUSE)
        late.append(time.monotonic() - began)
    for sock in socks:
        sock.settimeout(PATIENCE)
        assert sock.recv(10)
        began = time.monotonic()
        gevent.sleep(0)
        late.append(time.monotonic() - began)
        sock.close()
    assert sorted(late)[len(late) // 2] < 0.05
    wait_until(lambda: server.failures == ["cut"] * 200)


def test_who_is_in_a_handshake_is_not_there_yet(serve):
    server = serve(TLSEcho)
    with socket.create_connection(server.address):
        wait_until(lambda: server.statistics().handshakes_unfinished)
        assert server.connections == []
        assert server.broadcast(b"x") == 0
        assert server.connections_alive == 1
        (conn,) = server._mine()
        assert conn.state is State.OPENING
        for call in (conn.recv, lambda: conn.send(b"x"), conn.shutdown_write, lambda: conn.send_nowait(b"x")):
            with pytest.raises(ConnectionClosed):
                call()


@pytest.mark.parametrize("how", ["drain", "stop", "abort"])
def test_a_server_that_ends_waits_for_no_handshake(serve, how):
    server = serve(TLSEcho)
    flight, _ = first_flight("1.3")
    with socket.create_connection(server.address), socket.create_connection(server.address) as begun:
        begun.sendall(flight)
        wait_until(lambda: server.statistics().handshakes_unfinished == 2)
        began = time.monotonic()
        if how == "drain":
            assert server.drain(5.0)
        elif how == "stop":
            server.stop(5.0)
        else:
            server.abort()
        assert time.monotonic() - began < 3
    assert server.statistics().dropped == {"STOPPED": 2}
    assert server.connections_alive == 0


def test_a_server_that_drains_finishes_what_is_asked(serve, version):
    class Slow(Server):
        tls = server_tls(**only(version))

        def connection_recv(self, conn, data):
            conn.send(data + conn.read_exactly(4))

    server = serve(Slow)
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    resting = Peer(socket.create_connection(server.address), peer_context(version))
    resting.shake()
    peer.sendall(b"half")
    wait_until(lambda: server.statistics().workers_busy)
    draining = gevent.spawn(server.drain, PATIENCE)
    assert resting.read_all() == b""  # an end that is said
    peer.sendall(b"half")
    assert peer.read_all() == b"halfhalf"
    assert draining.get(timeout=PATIENCE)
    for each in (peer, resting):
        each.close()


@pytest.mark.parametrize("is_accepting", [False, True])
def test_who_shakes_hands_while_it_is_handed_over_is_served(serve, is_accepting):
    server = serve(TLSEcho, close_spread=2.0)
    silent = socket.create_connection(server.address)
    wait_until(lambda: server.statistics().handshakes_unfinished == 1)
    leaving = gevent.spawn(server.hand_over, PATIENCE, is_accepting)
    wait_until(lambda: server.draining)
    gevent.sleep(LOOKS)
    peer = Peer(silent, peer_context("1.3"))
    peer.shake()
    peer.sendall(b"asked")
    assert peer.recv() == b"asked"
    assert peer.read_all() == b""  # in the end it is told so
    peer.close()
    leaving.get(timeout=PATIENCE)


def test_an_accepted_one_that_the_engine_cannot_watch(serve, monkeypatch):
    from served import Refusing

    server = serve(TLSEcho)
    monkeypatch.setattr(server._poller, "_epoll", Refusing())
    ours, theirs = socket.socketpair()
    with pytest.raises(OSError, match="No space"):
        server.adopt(ours)
    assert theirs.recv(1) == b""
    assert server.statistics().handshakes_unfinished == 0
    theirs.close()


# -- what connect tells


def refused_by(leaf_or_tls, tls, **options):
    """Return what connecting to a server with that certificate raises."""
    made = leaf_or_tls
    if isinstance(made, trustme.LeafCert):
        made = TLS(chain(made), made.private_key_pem.bytes())
    server = Server(("127.0.0.1", 0), tls=made, stop_timeout=0.0)
    with server:
        with pytest.raises(HandshakeFailed) as caught:
            connect(server.address, tls=tls, timeout=PATIENCE, **options)
        wait_until(lambda: sum(server.statistics().handshakes_failed.values()) or server.statistics().handshakes)
    return caught.value


def in_days(days):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: authority().issue_cert("localhost", not_before=in_days(-9), not_after=in_days(-1)), "expired"),
        (lambda: authority().issue_cert("localhost", not_before=in_days(1), not_after=in_days(9)), "not_yet_valid"),
        (lambda: issued("other.example"), "wrong_name"),
        (lambda: issued("127.0.0.2"), "wrong_name"),
        (lambda: trustme.CA().issue_cert("localhost"), "unknown_issuer"),
        (lambda: authority().create_child_ca().issue_cert("localhost"), None),
    ],
)
def test_which_certificates_are_refused(version, made, reason):
    leaf = made()
    if reason is None:  # a chain without its middle
        cut = TLS(leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes())
        error = refused_by(cut, client_tls(**only(version)), server_hostname="localhost")
        assert error.reason == "unknown_issuer"
        whole = TLS(chain(leaf), leaf.private_key_pem.bytes())
        with Server(("127.0.0.1", 0), tls=whole) as server:
            connect(server.address, tls=client_tls(), server_hostname="localhost", timeout=PATIENCE).abort()
        return
    error = refused_by(leaf, client_tls(**only(version)), server_hostname="localhost")
    assert type(error) is CertificateRefused
    assert error.reason == reason
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert "certificate is refused" in str(error)


def test_a_certificate_that_signs_itself():
    program = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    program += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "-", "-out", "-"]
    made = subprocess.run(program, capture_output=True, check=True).stdout
    assert refused_by(TLS(made), client_tls(), server_hostname="localhost").reason == "self_signed"
    with Server(("127.0.0.1", 0), tls=TLS(made)) as server:
        own = TLS(authorities=re.search(rb"-----BEGIN CERT.*", made, re.DOTALL)[0])
        connect(server.address, tls=own, server_hostname="localhost", timeout=PATIENCE).abort()
        connect(server.address, tls=TLS(verify=False), timeout=PATIENCE).abort()
        with pytest.raises(CertificateRefused):
            connect(server.address, tls=True, server_hostname="localhost", timeout=PATIENCE)


def test_nothing_in_common():
    one, other = server_tls(**only("1.2")), client_tls(**only("1.3"))
    assert refused_by(one, other).reason == "version"
    one = server_tls(**only("1.2"), ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    other = client_tls(**only("1.2"), ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    assert refused_by(one, other).reason == "cipher"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "cut"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "plain_text"), (b"\x15\x03\x03\x00\x02\x02\x28", "cipher")],
)
def test_a_server_that_speaks_something_else(answer, reason):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = gevent.spawn(connect, listener.getsockname(), tls=client_tls(), timeout=PATIENCE)
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(HandshakeFailed) as caught:
                connecting.get(timeout=PATIENCE)
    assert caught.value.reason == reason
    assert caught.value.address == listener.getsockname() if listener.fileno() >= 0 else True


def test_a_server_that_says_nothing_has_the_time_of_the_call():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(OperationTimeout) as caught:
        connect(listener.getsockname(), tls=True, timeout=SHORT)
    assert caught.value.operation == "connect"


def test_killed_in_the_handshake():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = gevent.spawn(connect, listener.getsockname(), tls=client_tls())
        sock, _ = listener.accept()
        with sock:
            assert sock.recv(65536)
            connecting.kill()
            assert connecting.dead


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tls": "yes"}, "tls='yes': "),
        ({"tls": 5}, "tls=5: "),
        ({"tls": True, "server_hostname": ""}, "server_hostname"),
        ({"tls": True, "server_hostname": "." * 300}, "server_hostname"),
    ],
)
def test_what_connect_does_not_take(options, text, serve):
    with pytest.raises(ValueError, match=text):
        connect(serve(TLSEcho).address, timeout=PATIENCE, **options)


# -- ends and cuts


@pytest.fixture(params=ENDS)
def pair(request, version):
    with ENDS[request.param](version) as found:
        yield found


def test_a_cut_is_no_end(pair):
    conn, peer = pair
    peer.sendall(b"what came")
    peer.cut()
    assert conn.read_exactly(9) == b"what came"
    with pytest.raises(ConnectionTruncated) as caught:
        conn.recv()
    assert caught.value.drop_reason is conn.drop_reason is DropReason.TRUNCATED
    with pytest.raises(ConnectionTruncated):
        conn.send(b"x")


def test_a_cut_within_a_message_is_no_incomplete_one(pair):
    conn, peer = pair
    peer.sendall(b"what")
    peer.cut()
    with pytest.raises(ConnectionTruncated):
        conn.read_exactly(9)


def test_an_end_that_is_said_without_fin(pair):
    """With data in front of it, in one segment: no event tells of the end behind them."""
    conn, peer = pair
    flush, peer.flush = peer.flush, lambda: None
    peer.sendall(b"last")
    peer.flush = flush
    peer.say_end()
    assert conn.recv() == b"last"
    assert conn.recv(timeout=PATIENCE) == b""


def test_a_record_in_many_pieces(pair, monkeypatch):
    monkeypatch.setattr("greensock.core.encrypted.MOST_EMPTY", 4)
    conn, peer = pair
    peer.sendall(b"x" * 16384)
    peer.end()
    assert conn.recv(1, timeout=PATIENCE) == b"x"  # by reads that are short of the record
    assert conn.read_exactly(16383, timeout=PATIENCE) == b"x" * 16383
    assert conn.recv(timeout=PATIENCE) == b""


def test_a_broken_record(pair):
    conn, peer = pair
    peer.sendall(b"sound")
    assert conn.recv() == b"sound"
    peer.tls.write(b"broken")
    record = bytearray(peer._out.read())
    record[-1] ^= 1
    peer.sock.sendall(record)
    with pytest.raises(ConnectionLost) as caught:
        conn.recv()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert type(caught.value) is ConnectionLost
    # The alert says so to the peer, behind the tickets that had not gone out.
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        peer.recv()


def test_what_is_sound_in_front_of_what_is_broken_is_given_out(pair):
    conn, peer = pair
    peer.tls.write(b"sound")
    sound = peer._out.read()
    peer.tls.write(b"broken")
    record = bytearray(peer._out.read())
    record[-1] ^= 1
    peer.sock.sendall(sound + record)
    assert conn.recv() == b"sound"
    with pytest.raises(ConnectionLost):
        conn.recv(timeout=PATIENCE)


def test_a_cut_is_told_the_upcalls(serve, version):
    server = serve(TLSEcho)
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    peer.sendall(b"x")
    peer.read_exactly(1)
    peer.cut()
    wait_until(lambda: server.drops() == [DropReason.TRUNCATED])
    assert [type(error) for error in server.errors()] == [ConnectionTruncated]
    peer.close()


def test_an_end_behind_data_in_one_segment_is_told_the_upcalls(serve, version):
    server = serve(TLSEcho)
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    peer.tls.write(b"last")
    peer.say_end()
    assert peer.read_all() == b"last"
    wait_until(lambda: server.drops() == [DropReason.PEER_CLOSED])
    peer.close()


def test_who_sends_and_leaves_without_reading(serve):
    """The tickets of TLS 1.3 are not sent to it before its data were read: a reset could destroy those."""
    server = serve(Recorder, tls=server_tls())
    for _ in range(20):
        peer = Peer(socket.create_connection(server.address), peer_context("1.3"))
        peer.shake()
        peer.sendall(b"x" * 1000)
        peer.end()
        peer.close()
    wait_until(lambda: server.drops() == [DropReason.PEER_CLOSED] * 20)
    assert len(server.received()) == 20_000


@pytest.mark.parametrize("comes", [True, False])
def test_a_drain_waits_for_the_rest_of_a_record(serve, version, comes):
    """A second at the most, as for a message over plain TCP of which part has come."""
    server = serve(TLSEcho, tls=server_tls(**only(version)))
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    peer.tls.write(b"x" * 1000)
    peer.tls.write(b"y" * 1000)
    data = peer._out.read()
    peer.sock.sendall(data[:-500])
    assert peer.read_exactly(1000) == b"x" * 1000
    [conn] = server.connections
    wait_until(lambda: conn._transport.partial)
    stopping = gevent.spawn(server.stop, PATIENCE)
    wait_until(lambda: server.draining)
    gevent.sleep(LOOKS)
    if comes:
        peer.sock.sendall(data[-500:])
        assert peer.read_exactly(1000) == b"y" * 1000
    assert peer.read_all() == b""
    stopping.get(timeout=PATIENCE)
    assert server.drops() == [DropReason.STOPPED]
    peer.close()


# -- real peers


@pytest.fixture
def files(tmp_path):
    """Certificate, key and authority in files."""
    write_files(tmp_path, issued("localhost", "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    return tmp_path


def test_openssl_s_client(serve, version, files):
    server = serve(TLSEcho, framer=Lines())
    program = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.server_port}", "-quiet", "-verify_return_error"]
    program += ["-CAfile", str(files / "ca.pem"), "-verify_hostname", "localhost", f"-tls{version.replace('.', '_')}"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.read(5) == b"hello"
        process.stdin.close()
        process.terminate()
    wait_until(lambda: not server.connections_alive)


def test_renegotiation_is_refused(serve, files):
    server = serve(TLSEcho, framer=Lines(), tls=server_tls(**only("1.2")))
    program = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.server_port}", "-tls1_2"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_until(lambda: server.connections)
        process.stdin.write(b"R\n")
        process.stdin.flush()
        said = process.stdout.read()
        assert process.wait(PATIENCE) != 0
    assert b"no renegotiation" in said
    assert server.statistics().handshakes == 1


def test_openssl_s_server(version, files):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    program = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(files / "cert.pem"), "-rev"]
    program += ["-key", str(files / "key.pem"), f"-tls{version.replace('.', '_')}"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert wait_until(lambda: b"ACCEPT" in process.stdout.readline())
            with connect(("127.0.0.1", port), tls=client_tls(), server_hostname="localhost", timeout=PATIENCE) as conn:
                for line in (b"hello\n", b"x" * 3000 + b"y\n"):
                    conn.send(line)
                    assert conn.read_line() == line.strip()[::-1]
                assert conn.tls.version == f"TLSv{version}"
                conn.close()
                conn.wait_closed(PATIENCE)
        finally:
            process.terminate()


def test_pythons_own_client_in_another_process(serve, version, files):
    server = serve(TLSEcho)
    program = f"""if True:
        import socket, ssl
        context = ssl.create_default_context(cafile={str(files / "ca.pem")!r})
        context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv{version.replace(".", "_")}
        with socket.create_connection(("127.0.0.1", {server.server_port})) as plain:
            with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as sock:
                for size in (1, 1000, 100_000):
                    sock.sendall(b"x" * size)
                    got = 0
                    while got < size:
                        got += len(sock.recv(65536))
                sock.unwrap()
        print("done")
    """
    done = subprocess.run(["python3", "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("done\n", "")
    wait_until(lambda: server.drops() == [DropReason.PEER_CLOSED])


def test_a_connection_class_of_ones_own(serve):
    class Mine(Connection):
        __slots__ = ("lines",)

    class Counting(TLSEcho):
        connection_class = Mine

        def connection_recv(self, conn, data):
            conn.lines = getattr(conn, "lines", 0) + 1
            conn.send(b"%d" % conn.lines)

    server = serve(Counting)
    with connect(server.address, tls=client_tls(), connection_class=Mine, timeout=PATIENCE) as conn:
        for count in (b"1", b"2"):
            conn.send(b"x")
            assert conn.recv() == count
        assert type(conn) is Mine
        conn.abort()


def test_a_connection_with_the_methods_of_a_socket(serve, version):
    """Nothing goes past TLS, in the clear or from it."""
    server = serve(TLSEcho)
    conn = connect(server.address, tls=client_tls(**only(version)), connection_class=SocketConnection, timeout=PATIENCE)
    conn.settimeout(PATIENCE)
    data = bytes(range(256)) * 4000
    sending = gevent.spawn(conn.sendall, data)
    got = b""
    while len(got) < len(data):
        got += conn.recv(30_000)
    assert got == data
    sending.get(timeout=PATIENCE)
    assert conn.send(b"x" * 100) == 100
    buffer = bytearray(200)
    assert conn.recv_into(buffer) == 100
    assert conn.tls.version == f"TLSv{version}"
    for call in (
        lambda: conn.recv(1, socket.MSG_PEEK),
        lambda: conn.recvmsg(10),
        lambda: conn.recvfrom(10),
        lambda: conn.sendmsg([b"x"]),
        lambda: conn.sendto(b"x", None),
        lambda: conn.send(b"x", socket.MSG_OOB),
    ):
        with pytest.raises(OSError, match="over TLS"):
            call()
    conn.settimeout(SHORT)
    with pytest.raises(TimeoutError):
        conn.recv(1)
    conn.settimeout(PATIENCE)
    conn.shutdown(socket.SHUT_WR)
    assert conn.recv(1) == b""
    conn.close()
    wait_until(lambda: server.drops() == [DropReason.PEER_CLOSED])


def test_nothing_is_left_of_many_handshakes(serve):
    server = serve(TLSEcho)
    context = peer_context()
    for _ in range(50):
        peer = Peer(socket.create_connection(server.address), context)
        peer.shake()
        peer.close()
    wait_until(lambda: not server.connections_alive)
    bios = server._poller.bios
    assert (bios.incoming.pending, bios.outgoing.pending) == (0, 0)
    assert server.statistics().handshakes == 50


def test_the_toy_pair_helpers_speak_plainly():
    with accepted("plain") as (conn, peer):
        peer.sendall(b"x")
        assert conn.recv() == b"x"
