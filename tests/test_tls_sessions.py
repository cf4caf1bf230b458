"""Sessions that clients of TLS go on with: one for the next connection to the same place, made the same way."""

from __future__ import annotations

import gc
import ssl
import weakref

import pytest
from conftest import PATIENCE, wait_until
from tls_peers import TLSEcho, authority, client_tls, only, peer_context, server_tls

from greensock import TLS, CertificateRefused, connect
from greensock.http import HTTPClient, HTTPServer, Response
from greensock.tls import MOST_SESSIONS, Sessions


def talk(server, tls, name="localhost", **options):
    """Connect, talk, close; return whether the session went on with another."""
    with connect(server.address, tls=tls, server_hostname=name, timeout=PATIENCE, **options) as conn:
        conn.send(b"x")
        assert conn.recv(timeout=PATIENCE) == b"x"
        assert conn._transport._simple, "what is read next goes the short way"
        is_resumed = conn.tls.is_resumed
        conn.close()
        conn.wait_closed(PATIENCE)
    return is_resumed


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_the_next_connection_goes_on_with_the_session(serve, version, is_ours):
    server = serve(TLSEcho, tls=server_tls("localhost", **only(version)))
    context = client_tls() if is_ours else peer_context(version)
    assert [talk(server, context) for _ in range(4)] == [False, True, True, True]
    assert server.statistics().handshakes == 4


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_not_for_another_name_place_or_way_to_look_at_certificates(serve, version):
    """No session stands for a certificate that the connection itself would have refused."""
    server = serve(TLSEcho, tls=server_tls("localhost", "other.example", **only(version)))
    same = serve(TLSEcho, tls=server.tls)
    trusting = client_tls()
    assert not talk(server, trusting)
    assert not talk(server, trusting, "other.example")
    assert not talk(same, trusting)
    assert talk(server, trusting)
    # One context whose settings change: what it took without a look is of no use to who looks.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    assert not talk(server, context)
    assert talk(server, context)
    context.verify_mode = ssl.CERT_REQUIRED
    with pytest.raises(CertificateRefused):
        talk(server, context)
    context.check_hostname = True
    authority().configure_trust(context)
    assert not talk(server, context)
    assert talk(server, context)
    with pytest.raises(CertificateRefused):
        talk(server, context, "wrong.example")
    assert not talk(server, TLS(verify=False))
    with pytest.raises(CertificateRefused):
        talk(server, True)


def test_who_wants_none_and_who_gives_none(serve):
    server = serve(TLSEcho, tls=server_tls("localhost"))
    wants_none = client_tls(session_tickets=False)
    assert [talk(server, wants_none) for _ in range(2)] == [False, False]
    gives_none = serve(TLSEcho, tls=server_tls("localhost", session_tickets=False, **only("1.3")))
    context = client_tls()
    assert [talk(gives_none, context) for _ in range(2)] == [False, False]


def test_a_session_that_the_server_knows_no_more(serve, monkeypatch):
    """It began anew, with another key for its tickets: a handshake in full."""
    monkeypatch.setattr("greensock.tls.READ_PAUSE", 0.0)
    first = serve(TLSEcho, tls=server_tls("localhost"))
    context = client_tls()
    assert [talk(first, context) for _ in range(2)] == [False, True]
    first.stop(0.0)
    second = serve(TLSEcho, first.address, tls=server_tls("localhost"))
    assert [talk(second, context) for _ in range(2)] == [False, True]


def test_the_client_of_http_and_where_nothing_is_said(serve):
    class Site(HTTPServer):
        def handle_request(self, request):
            return Response(str(request.connection.tls.is_resumed))

    server = serve(Site, tls=server_tls("localhost"))
    with HTTPClient(tls=client_tls(), max_idle=0) as client:
        answers = [client.get(f"https://localhost:{server.server_port}/").read_all() for _ in range(3)]
        assert answers == [b"False", b"True", b"True"]
        # A dot at the end of a name is no part of what is asked for and looked at (RFC 6066 section 3): the same name.
        assert client.get("https://localhost./", address=("127.0.0.1", server.server_port)).read_all() == b"True"
    # Nothing was read, so no ticket of TLS 1.3 came: there is no session, and no harm.
    context = client_tls()
    for _ in range(2):
        connect(server.address, tls=context, server_hostname="localhost", timeout=PATIENCE).abort()
    wait_until(lambda: not server.connections_alive)


@pytest.mark.parametrize("is_leaking", [True, False])
def test_how_often_they_are_read(serve, monkeypatch, is_leaking):
    """Where each one that is read costs memory that never comes back, one stands for many; else it is used once."""
    monkeypatch.setattr("greensock.tls.IS_LEAKING", is_leaking)
    kept = []
    keep = Sessions.keep
    monkeypatch.setattr(Sessions, "keep", lambda self, session: kept.append(session) or keep(self, session))
    server, context = serve(TLSEcho, tls=server_tls("localhost")), client_tls()
    assert [talk(server, context) for _ in range(5)] == [False, True, True, True, True]
    assert len(kept) == (1 if is_leaking else 5)
    gives_none = serve(TLSEcho, tls=server_tls("localhost", session_tickets=False, **only("1.3")))
    assert [talk(gives_none, context) for _ in range(5)] == [False] * 5
    assert len(kept) == (2 if is_leaking else 10)


def test_they_are_bounded_and_go_with_their_context(serve):
    server = serve(TLSEcho, tls=server_tls("localhost", **only("1.2")))
    context = client_tls()
    talk(server, context)
    kept = context.client_context().greensock_sessions
    [[key, (session, _)]] = kept.items()
    assert Sessions(kept, key).take() is session
    for number in range(MOST_SESSIONS + 5):
        Sessions(kept, number).keep(session)
    assert len(kept) == MOST_SESSIONS
    assert key not in kept
    gone = weakref.ref(context.client_context())
    del kept, context, session
    gc.collect()
    assert gone() is None
