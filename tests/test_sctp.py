"""SCTP: messages and streams, what does not go with it, and what is said where the kernel has none.

What needs the kernel's SCTP runs by ``make test-sctp`` where this kernel has none; bytes over it are in the conformance
suite.
"""

from __future__ import annotations

import os
import socket
import struct

import gevent
import pytest
from conftest import PATIENCE, wait_until
from pairs import reset
from served import Recorder
from tls_peers import IPPROTO_SCTP, has_sctp, peer_socket, server_tls

from greensock import (
    POSTPONE,
    ConnectFailed,
    ConnectionLost,
    DropReason,
    LimitExceeded,
    Lines,
    OperationTimeout,
    SCTPConnection,
    SCTPMessage,
    SCTPMessages,
    Server,
    connect,
)
from greensock.core.sctp import HEAD, explain_sctp, head_of

#: Seconds that a peer does not read.
WHILE = 0.05

needs_sctp = pytest.mark.skipif(not has_sctp(), reason="this kernel has no SCTP (make test-sctp runs it in another)")


class Echo(Recorder):
    protocol = "sctp"
    connection_class = SCTPConnection

    def connection_recv(self, conn, data):
        super().connection_recv(conn, data)
        if data == b"wait":
            return POSTPONE
        if isinstance(data, SCTPMessage):
            conn.send_message(data, stream=data.stream, ppid=data.ppid, unordered=data.is_unordered)
        else:
            conn.send(data)
        return None


class Dialling(Recorder):
    protocol = "sctp"
    connection_class = SCTPConnection


def dial(server, **options):
    return connect(server.address, protocol="sctp", connection_class=SCTPConnection, timeout=PATIENCE, **options)


# -- without a kernel


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"protocol": "udp"}, "protocol='udp': 'tcp' or 'sctp'"),
        ({"protocol": "sctp", "tls": server_tls()}, "protocol='sctp': no tls"),
        ({"connection_class": SCTPConnection}, "connection_class=SCTPConnection: protocol='sctp'"),
    ],
)
def test_what_does_not_go_together(options, text):
    if "connection_class" in options:
        kind = type("Mine", (Server,), {"connection_class": options.pop("connection_class")})
    else:
        kind = Server
    with pytest.raises(ValueError, match=text):
        kind(("127.0.0.1", 0), **options)
    with pytest.raises(ValueError, match="framer="):
        Echo(("127.0.0.1", 0), framer=Lines())
    for given in ({"protocol": "sctp", "tls": True}, {"protocol": "udp"}, {"connection_class": SCTPConnection}):
        with pytest.raises(ValueError, match=r"expected"):
            connect(("127.0.0.1", 1), **given)
    with pytest.raises(ValueError, match=r"\(host, port\) expected"):
        connect("/tmp/x", protocol="sctp")
    with pytest.raises(ValueError, match=r"\(host, port\) expected"):
        Server("/tmp/x", protocol="sctp").start()


@pytest.mark.skipif(has_sctp(), reason="this kernel has SCTP")
def test_a_kernel_without_it():
    with pytest.raises(OSError, match="this kernel has no SCTP: its module sctp expected"):
        Server(("127.0.0.1", 0), protocol="sctp").start()
    with pytest.raises(ConnectFailed, match="this kernel has no SCTP: its module sctp expected"):
        connect(("127.0.0.1", 9), protocol="sctp")


def test_what_the_system_says():
    assert "hmac, md5 and sha1" in str(explain_sctp(OSError(38, "Function not implemented")))
    other = OSError(98, "Address in use")
    assert explain_sctp(other) is other


def test_the_decoder_in_pieces_of_any_size():
    data = b"".join(head_of(text, stream, 7, False) + text for stream, text in ((1, b"one"), (65535, b"x" * 5000)))
    for size in (1, 3, HEAD.size, 1000, len(data)):
        decoder, found = SCTPMessages(5000).decoder(), []
        for at in range(0, len(data), size):
            decoder.feed(data[at : at + size])
            while (message := decoder.next_message()) is not None:
                found.append(message)
        assert [(bytes(each), each.stream, each.ppid) for each in found] == [
            (b"one", 1, 7),
            (b"x" * 5000, 65535, 7),
        ]
        assert decoder.pending == 0
    decoder = SCTPMessages(4999).decoder()
    decoder.feed(data)
    assert decoder.next_message() == b"one"
    with pytest.raises(LimitExceeded, match="max_size=4999"):
        decoder.next_message()
    assert SCTPMessages(10).encode(b"ab") == head_of(b"ab", 0, 0, False) + b"ab"


# -- messages


@needs_sctp
def test_messages_on_several_streams(serve):
    server = serve(Echo)
    with dial(server) as conn:
        sent = [(os.urandom(size), stream, size) for stream, size in enumerate([1, 1000, 65536, 65537, 200_000, 5])]
        sending = gevent.spawn(lambda: [conn.send_message(d, stream=s, ppid=p, timeout=PATIENCE) for d, s, p in sent])
        got = [conn.recv_message(timeout=PATIENCE) for _ in sent]
        assert sending.get(timeout=PATIENCE) == [len(data) for data, _, _ in sent]
        assert sorted((bytes(each), each.stream, each.ppid) for each in got) == sorted(sent)
        assert conn.send([b"in ", bytearray(b"pieces")]) == 9
        assert conn.recv(timeout=PATIENCE) == b"in pieces"
        conn.send_nowait(b"kept")
        conn.send_soon(b"soon")
        conn.send_message(b"any", unordered=True)
        found = [conn.recv_message(timeout=PATIENCE) for _ in range(3)]
        assert sorted(found) == [b"any", b"kept", b"soon"]
        assert [each.is_unordered for each in found if each == b"any"] == [True]
        with pytest.raises(OperationTimeout):
            conn.recv(timeout=0.01)
        conn.close()
        conn.wait_closed(PATIENCE)
    wait_until(lambda: server.drops() == [DropReason.PEER_CLOSED])
    assert [what for name, what in server.calls if name == "recv"] == [d for d, _, _ in sent] + [
        b"in pieces",
        *found,
    ]
    assert server.statistics().messages == len(sent) + 4


@needs_sctp
def test_a_foreign_peer_and_the_blocking_style(serve):
    """With the kernel's own calls on the other side: what is one message there is one here, and the other way."""

    class Handling(Server[SCTPConnection]):
        protocol = "sctp"
        connection_class = SCTPConnection

        def handle(self, conn):
            for message in conn:
                conn.send_message(message + b"!", stream=message.stream + 1, ppid=message.ppid)

    server = serve(Handling)
    with peer_socket("sctp") as sock:
        sock.setsockopt(IPPROTO_SCTP, 2, struct.pack("HHHH", 16, 16, 0, 0))
        sock.setsockopt(IPPROTO_SCTP, 11, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        sock.settimeout(PATIENCE)
        sock.connect(server.address)
        for stream, text in ((0, b"a"), (3, b"b" * 3000), (9, b"c")):
            about = struct.pack("=HHHxxIIIIIi", stream, 0, 0, socket.htonl(stream + 100), 0, 0, 0, 0, 0)
            sock.sendmsg([text], [(IPPROTO_SCTP, 1, about)])
            data, beside, flags, _ = sock.recvmsg(65536, 128)
            assert (data, bool(flags & socket.MSG_EOR)) == (text + b"!", True)
            fields = struct.unpack_from("=HHHxxI", beside[0][2])
            assert (fields[0], socket.ntohl(fields[3])) == (stream + 1, stream + 100)
    wait_until(lambda: not server.connections_alive)


@needs_sctp
def test_many_messages_to_who_reads_slowly(serve):
    """Each arrives whole and in order, though the kernel has no room for most of them at first."""
    server = serve(Echo, connection_recv=lambda conn, data: [conn.send(data[:50_000]) for _ in range(100)] and None)
    with dial(server) as conn:
        data = os.urandom(50_000)
        conn.send(data)
        gevent.sleep(WHILE)
        for _ in range(100):
            assert conn.recv(timeout=PATIENCE) == data
        conn.abort()
    wait_until(lambda: server.drops() == [DropReason.LOST])


@needs_sctp
def test_nobody_listens_and_a_server_that_connects(serve):
    """A refusal is told at once, and the other address is tried; ``Server.connect`` makes messages, too."""
    server = serve(Echo)
    closed = Server(("127.0.0.1", 0), protocol="sctp")
    closed.start()
    address = closed.address
    closed.stop()
    with pytest.raises(ConnectFailed, match="refused"):
        connect(address, protocol="sctp", timeout=PATIENCE)
    with connect(("localhost", server.server_port), protocol="sctp", timeout=PATIENCE, preface=b"first") as conn:
        assert conn.recv(timeout=PATIENCE) == b"first"
    dialling = serve(Dialling)
    conn = dialling.connect(server.address, timeout=PATIENCE, preface=b"before")
    conn.wait_open(PATIENCE)
    conn.send_message(b"hello", stream=3)
    wait_until(lambda: [what for name, what in dialling.calls if name == "recv"] == [b"before", b"hello"])
    conn.close()
    wait_until(lambda: not dialling.connections_alive)


@needs_sctp
def test_what_is_no_message(serve):
    server = serve(Echo)
    with dial(server) as conn:
        most = conn.max_message
        for call, error in (
            (lambda: conn.send_message(b""), ValueError),
            (lambda: conn.send_message(b"x", stream=65536), ValueError),
            (lambda: conn.send_message(b"x", ppid=-1), ValueError),
            (lambda: conn.send_message(b"x" * (most + 1)), LimitExceeded),
            (lambda: conn.read_line(), TypeError),
            (lambda: conn.splice(conn), TypeError),
            (lambda: conn.send_file(None), TypeError),
        ):
            with pytest.raises(error):
                call()
        conn.send(b"still")
        assert conn.recv(timeout=PATIENCE) == b"still"
        with pytest.raises(ConnectionLost):
            conn.send_message(b"x", stream=1000)
    wait_until(lambda: not server.connections_alive)


@needs_sctp
def test_ends_of_many_connections(serve):
    """By close, shutdown and reset, from either side: none is left, and a close takes no linger's time."""
    server = serve(Echo, linger_timeout=PATIENCE)
    for how in ("close", "shutdown_write", "abort") * 5:
        conn = dial(server)
        conn.linger_timeout = PATIENCE
        conn.send(b"x")
        assert conn.recv(timeout=PATIENCE) == b"x"
        getattr(conn, how)()
        if how == "shutdown_write":
            assert conn.recv(timeout=PATIENCE) == b""
            conn.close()
        conn.wait_closed(PATIENCE / 2)
    wait_until(lambda: not server.connections_alive, PATIENCE / 2)
    peer = peer_socket("sctp")
    peer.connect(server.address)
    wait_until(lambda: server.connections)
    reset(peer)
    wait_until(lambda: not server.connections_alive)
