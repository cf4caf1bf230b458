"""What TLS can be told, and what it tells then."""

from __future__ import annotations

import socket
import subprocess

import pytest
import trustme
from conftest import PATIENCE, wait_until
from tls_peers import (
    Peer,
    TLSEcho,
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
    TLS,
    Certificate,
    CertificateRefused,
    ConnectionLost,
    HandshakeFailed,
    Server,
    connect,
)
from greensock.core.poller import get_poller

TLS_VERSIONS = ("1.2", "1.3")


@pytest.fixture(params=TLS_VERSIONS)
def version(request):
    return request.param


def test_given_contexts(serve, version):
    context = peer_context(version, server=True)
    names = []
    context.set_servername_callback(lambda sock, name, given: names.append(name))
    server = serve(TLSEcho, tls=context)
    trusting = peer_context(version)
    for _ in range(2):
        with connect(server.address, tls=trusting, server_hostname="localhost", timeout=PATIENCE) as conn:
            conn.send(b"x")
            assert conn.recv() == b"x"
            wait_until(lambda: server.connections)
            assert server.connections[0].tls.server_name == "localhost"
            conn.close()
            conn.wait_closed(PATIENCE)
        wait_until(lambda: not server.connections)
    assert names == ["localhost"] * 2


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("one.example", "one.example"),
        ("ONE.example", "one.example"),
        ("two.example", "two.example"),
        ("a.two.example", "*.two.example"),
        ("b.a.two.example", "one.example"),
        ("special.two.example", "special.two.example"),
        ("unknown.example", "one.example"),
        (None, "one.example"),
    ],
)
def test_certificates_by_name(serve, version, asked, got):
    leaves = [issued("one.example"), issued("two.example", "*.two.example"), issued("special.two.example")]
    certificates = [Certificate(chain(leaf), leaf.private_key_pem.bytes()) for leaf in leaves]
    server = serve(TLSEcho, tls=TLS(certificates=certificates, **only(version)))
    context = peer_context()
    context.check_hostname = False
    with socket.create_connection(server.address) as sock:
        peer = Peer(sock, None)
        peer.tls = context.wrap_bio(peer._in, peer._out, server_hostname=asked)
        peer.shake()
        assert got in [name for _, name in peer.tls.getpeercert()["subjectAltName"]]
        peer.sendall(b"x")
        assert peer.read_exactly(1) == b"x"
        assert server.connections[0].tls.server_name == (asked and asked.lower())


@pytest.mark.parametrize("wanted", ["none", "optional", "required"])
def test_certificates_of_clients(serve, version, wanted):
    server = serve(
        TLSEcho,
        tls=server_tls(client_certificates=wanted, authorities=authority().cert_pem.bytes(), **only(version)),
    )
    leaf = issued("client@example.org")
    mine = {"certificate": chain(leaf), "key": leaf.private_key_pem.bytes()}
    stranger = trustme.CA().issue_cert("client@example.org")
    theirs = {"certificate": chain(stranger), "key": stranger.private_key_pem.bytes()}

    def ask(**options):
        with connect(server.address, tls=client_tls(**options), timeout=PATIENCE) as conn:
            conn.send(b"x")
            assert conn.recv() == b"x"
            wait_until(lambda: server.connections)
            found = server.connections[0].tls.peer_certificate
            conn.close()
            conn.wait_closed(PATIENCE)
        wait_until(lambda: not server.connections)
        return found

    found = ask(**mine)
    assert found["subjectAltName"] == (("email", "client@example.org"),) if wanted != "none" else found is None
    if wanted != "required":
        assert ask() is None
    else:
        # In TLS 1.3 the client hears of it behind its handshake.
        with pytest.raises((HandshakeFailed, ConnectionLost)):
            ask()
        assert server.failures == ["no_certificate"]
    if wanted != "none":
        with pytest.raises((HandshakeFailed, ConnectionLost)):
            ask(**theirs)
        assert server.failures[-1] == "unknown_issuer"


def test_sessions_are_resumed(serve, version):
    server = serve(TLSEcho)
    context = peer_context(version)
    session = None
    for turn in range(3):
        with socket.create_connection(server.address) as sock:
            peer = Peer(sock, None)
            peer.tls = context.wrap_bio(peer._in, peer._out, server_hostname="localhost", session=session)
            peer.shake()
            peer.sendall(b"x")
            assert peer.read_exactly(1) == b"x"
            session = peer.tls.session
            assert peer.tls.session_reused == (turn > 0)
            assert server.connections[0].tls.is_resumed == (turn > 0)
            peer.end()
            peer.read_all()
        wait_until(lambda: not server.connections)


def test_no_tickets(serve, version):
    server = serve(TLSEcho, tls=server_tls(session_tickets=False))
    peer = Peer(socket.create_connection(server.address), peer_context(version))
    peer.shake()
    peer.sendall(b"x")
    assert peer.read_exactly(1) == b"x"
    assert not (peer.tls.session and peer.tls.session.has_ticket)
    peer.close()


def test_the_secrets_for_debugging(tmp_path):
    with TLSEcho(("127.0.0.1", 0), tls=server_tls(keylog=str(tmp_path / "keys"))) as server:
        assert is_alive(server)
    del server  # which holds the file, and is held by what is left of a deadline
    get_poller()._deadlines.clear()
    assert "CLIENT_TRAFFIC_SECRET_0 " in (tmp_path / "keys").read_text()


def test_whom_a_client_trusts_is_taken_up_anew(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("greensock.tls.RELOAD_SECONDS", 0.0)
    server, path = serve(TLSEcho), tmp_path / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    tls = TLS(authorities=path)

    def connected():
        connect(server.address, tls=tls, server_hostname="localhost", timeout=PATIENCE).abort()

    with pytest.raises(CertificateRefused):
        connected()
    authority().cert_pem.write_to_path(str(path))
    connected()
    path.write_bytes(b"broken")
    connected()  # as before


def test_certificates_are_taken_up_anew(serve, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("greensock.tls.RELOAD_SECONDS", 0.0)
    caplog.set_level("INFO", "greensock.server")
    write_files(tmp_path, authority().issue_cert("localhost", common_name="old"))
    tls = TLS(str(tmp_path / "cert.pem"), tmp_path / "key.pem")
    server = serve(TLSEcho, tls=tls)

    def name():
        conn = connect(server.address, tls=client_tls(), server_hostname="localhost", timeout=PATIENCE)
        return conn, dict(pair for (pair,) in conn.tls.peer_certificate["subject"])["commonName"]

    standing, common_name = name()
    assert common_name == "old"
    write_files(tmp_path, authority().issue_cert("localhost", common_name="new"))
    again, common_name = name()
    assert common_name == "new"
    assert "taken up anew" in caplog.text
    (tmp_path / "key.pem").write_bytes(issued("localhost").private_key_pem.bytes())
    conn, common_name = name()
    assert common_name == "new"
    conn.abort()
    conn, _ = name()
    conn.abort()
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]  # once for each change
    assert "the key is not that of" in caplog.text
    for conn in (standing, again):
        conn.send(b"still here")
        assert conn.read_exactly(10) == b"still here"
        conn.abort()
    (tmp_path / "key.pem").unlink()
    assert is_alive_by_name(server)


def is_alive_by_name(server):
    with connect(server.address, tls=client_tls(), server_hostname="localhost", timeout=PATIENCE) as conn:
        conn.send(b"x")
        return conn.recv() == b"x"


def options_of(place):
    """Return options of TLS and what is said of each."""
    leaf, other = issued("localhost"), issued("other.example")
    cert, key = chain(leaf), leaf.private_key_pem.bytes()
    (place / "empty").write_text("")
    (place / "cert").write_bytes(cert)
    encrypted = subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:secret"], input=key, capture_output=True, check=True
    ).stdout
    missing = str(place / "missing")
    return [
        ({"certificate": missing}, f"certificate='{missing}': No such file"),
        ({"certificate": str(place)}, f"certificate='{place}': Is a directory"),
        ({"certificate": str(place / "cert"), "key": missing}, f"key='{missing}': No such file"),
        ({"certificate": str(place / "empty"), "key": key}, "a certificate in PEM expected"),
        ({"certificate": str(place / "cert"), "key": str(place / "empty")}, "a private key in PEM expected"),
        ({"certificate": str(place / "cert")}, "a private key in PEM expected"),
        ({"certificate": cert, "key": other.private_key_pem.bytes()}, "key=(text): the key is not that of"),
        ({"certificate": cert, "key": encrypted}, "key=(text): is encrypted, and no password is given"),
        ({"certificate": cert, "key": encrypted, "password": "wrong"}, "the password is not the right one"),
        ({"key": key}, "certificate=None: "),
        ({"certificates": ["cert.pem"]}, "certificates: a Certificate expected, not 'cert.pem'"),
        ({"minimum_version": "1.1"}, "minimum_version='1.1': '1.2', '1.3' expected"),
        ({"maximum_version": 1.3}, "maximum_version=1.3: "),
        ({"minimum_version": "1.3", "maximum_version": "1.2"}, "maximum_version='1.2': "),
        ({"ciphers": "none such", "certificate": cert, "key": key}, "ciphers='none such': "),
        ({"alpn": [""]}, "alpn=('',): "),
        ({"authorities": missing}, f"authorities='{missing}': No such file"),
        ({"authorities": key}, "authorities=(text): certificates in PEM expected"),
        ({"client_certificates": "yes"}, "client_certificates='yes': 'none', 'optional', 'required' expected"),
        ({"client_certificates": "required"}, "authorities expected"),
        ({"verify": 1}, "verify=1: True or False expected"),
        ({"keylog": missing + "/x", "certificate": cert, "key": key}, f"keylog='{missing}/x': No such file"),
    ]


def test_options_that_are_not_allowed(tmp_path):
    for options, text in options_of(tmp_path):
        with pytest.raises(ValueError) as caught:
            TLS(**options)
        assert text in str(caught.value), options


def test_a_server_needs_a_certificate_and_one_way_to_its_bytes():
    with pytest.raises(ValueError, match="tls: a certificate and its key expected"):
        Server(0, tls=TLS())

    class Both(Server):
        def transport_for(self, conn, fd):
            return None

    with pytest.raises(ValueError, match="tls and transport_for: one of both"):
        Both(0, tls=server_tls())


def test_an_encrypted_key(serve):
    leaf = issued("localhost", "127.0.0.1")
    encrypted = subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:secret"],
        input=leaf.private_key_pem.bytes(),
        capture_output=True,
        check=True,
    ).stdout
    assert is_alive(serve(TLSEcho, tls=TLS(chain(leaf), encrypted, password="secret")))
    assert "secret" not in repr(Certificate("a", "b", "secret"))
