"""What an error between the proxy and a server means: reason, status, whether to ask again, whom to blame."""

from __future__ import annotations

import errno
import re
import socket

import pytest

from greensock import CertificateRefused, ConnectFailed, ConnectionClosed, ConnectionLost, HandshakeFailed
from greensock.http import (
    BadRequest,
    BadResponse,
    BodyTimeout,
    ConnectTimeout,
    HeadTimeout,
    QueueFull,
    QueueTimeout,
    Reason,
    SendTimeout,
    TotalTimeout,
)
from greensock.proxy import failure
from greensock.proxy.failure import CLIENT_LEFT, Again, Failure, failure_of


def connect_failed(cause):
    error = ConnectFailed("it did not connect")
    error.__cause__ = cause
    return error


def bad_response(reason):
    return BadResponse("it is no answer", reason)


#: The error; reason, status, whether another may be asked, whether the server is to blame, what Proxy-Status says.
TABLE = [
    (connect_failed(OSError(errno.ECONNREFUSED, "")), "connect-failed", 502, "always", 1, "connection_refused"),
    (connect_failed(OSError(errno.EHOSTUNREACH, "")), "connect-failed", 502, "always", 1, "destination_ip_unroutable"),
    (connect_failed(OSError(errno.ENETUNREACH, "")), "connect-failed", 502, "always", 1, "destination_ip_unroutable"),
    (connect_failed(socket.gaierror(-2, "")), "dns-failed", 502, "always", 1, "dns_error"),
    (connect_failed(UnicodeError()), "dns-failed", 502, "always", 1, "dns_error"),
    (connect_failed(OSError(errno.ENOENT, "")), "connect-failed", 502, "always", 1, "destination_unavailable"),
    (connect_failed(None), "connect-failed", 502, "always", 1, "destination_unavailable"),
    (connect_failed(OSError(errno.EMFILE, "")), "out-of-descriptors", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(OSError(errno.ENFILE, "")), "out-of-descriptors", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(OSError(errno.ENOSPC, "")), "out-of-descriptors", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(OSError(errno.ENOBUFS, "")), "out-of-memory", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(OSError(errno.ENOMEM, "")), "out-of-memory", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(socket.gaierror(socket.EAI_MEMORY, "")), "out-of-memory", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(OSError(errno.EADDRNOTAVAIL, "")), "out-of-ports", 503, "always", 0, "proxy_internal_error"),
    (connect_failed(BlockingIOError(errno.EAGAIN, "")), "out-of-ports", 503, "always", 0, "proxy_internal_error"),
    (HandshakeFailed("no TLS"), "tls-failed", 502, "always", 1, "tls_protocol_error"),
    (CertificateRefused("expired"), "tls-failed", 502, "always", 1, "tls_certificate_error"),
    (ConnectTimeout(1), "connect-timeout", 504, "always", 1, "connection_timeout"),
    (QueueFull("too many"), "queue-full", 503, "always", 0, "connection_limit_reached"),
    (QueueTimeout(1), "queue-timeout", 503, "never", 0, "connection_limit_reached"),
    (SendTimeout(1), "send-timeout", 504, "repeatable", 1, "connection_write_timeout"),
    (HeadTimeout(1), "head-timeout", 504, "repeatable", 1, "connection_read_timeout"),
    (BodyTimeout(1), "body-timeout", 504, "never", 1, "connection_read_timeout"),
    (TotalTimeout(1), "total-timeout", 504, "never", 0, "http_response_timeout"),
    (ConnectionLost("it was reset"), "no-response", 502, "repeatable", 1, "connection_terminated"),
    (bad_response(Reason.NO_RESPONSE), "no-response", 502, "repeatable", 1, "connection_terminated"),
    (bad_response(Reason.INCOMPLETE), "no-response", 502, "repeatable", 1, "connection_terminated"),
    (bad_response(Reason.STATUS_LINE), "bad-response", 502, "never", 1, "http_protocol_error"),
    (bad_response(Reason.CONTENT_LENGTH), "bad-response", 502, "never", 1, "http_protocol_error"),
    (bad_response(Reason.HEAD_TOO_LARGE), "answer-too-large", 502, "never", 0, "http_response_header_section_size"),
    (bad_response(Reason.TOO_MANY_FIELDS), "answer-too-large", 502, "never", 0, "http_response_header_section_size"),
    (bad_response(Reason.BODY_TOO_LARGE), "answer-too-large", 502, "never", 0, "http_response_body_size"),
    (bad_response(Reason.TRAILERS_TOO_LARGE), "answer-too-large", 502, "never", 0, "http_response_trailer_section_size"),  # noqa: E501
    (bad_response(Reason.CHUNK_EXTENSIONS_TOO_LARGE), "answer-too-large", 502, "never", 0, "http_response_transfer_coding"),  # noqa: E501
    (bad_response(Reason.TOO_MANY_INTERIM), "answer-too-large", 502, "never", 0, "http_response_incomplete"),
    (bad_response(Reason.CHUNK_EXTENSION), "bad-response", 502, "never", 1, "http_protocol_error"),
    (bad_response(Reason.UNKNOWN_CODING), "bad-response", 502, "never", 1, "http_response_transfer_coding"),
    (bad_response(Reason.TRANSFER_ENCODING), "bad-response", 502, "never", 1, "http_response_transfer_coding"),
    (bad_response(Reason.UNEXPECTED_SWITCH), "bad-response", 502, "never", 1, "http_upgrade_failed"),
    (ConnectionClosed("the client is closed"), "closed", 502, "never", 0, "destination_unavailable"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "reason", "status", "again", "blames", "told"), TABLE)
def test_before_the_head_is_out(error, reason, status, again, blames, told):
    found = failure_of(error)
    assert (found.reason, found.status, found.again, found.error) == (reason, status, Again(again), told)
    assert found.blames_server is bool(blames)
    assert str(found) == str(error), "what the log of the upstream says"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BadResponse("", Reason.INCOMPLETE), "body-incomplete"),
        (BadResponse("", Reason.CHUNK_SIZE), "body-incomplete"),
        (BadResponse("", Reason.CHUNK_EXTENSION), "body-incomplete"),
        (ConnectionLost(""), "body-incomplete"),
        (BodyTimeout(1), "body-timeout"),
        (TotalTimeout(1), "total-timeout"),
    ],
)
def test_in_the_body_nothing_is_asked_again(error, reason):
    found = failure_of(error, in_body=True)
    assert (found.reason, found.again) == (reason, Again.NEVER)
    assert found.blames_server is (reason != "total-timeout"), "the client may have been the slow one"


def test_shortages_of_a_connection_that_stood():
    error = ConnectionLost("it could not send")
    error.__cause__ = OSError(errno.ENOBUFS, "")
    found = failure_of(error)
    assert (found.reason, found.again, found.blames_server) == ("out-of-memory", Again.REPEATABLE, False)
    assert failure_of(error, in_body=True).again is Again.NEVER
    error.__cause__ = OSError(errno.EAGAIN, "")
    assert failure_of(error).reason == "no-response"


def test_a_resolver_without_descriptors(monkeypatch):
    def used_up(*_, **__):
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(failure, "open", used_up, raising=False)
    assert failure_of(connect_failed(socket.gaierror(-2, ""))).reason == "out-of-descriptors"


@pytest.mark.parametrize(
    "reason", [Reason.BODY_TOO_LARGE, Reason.TRAILERS_TOO_LARGE, Reason.CHUNK_EXTENSIONS_TOO_LARGE]
)
def test_our_own_limits_in_the_body(reason):
    found = failure_of(bad_response(reason), in_body=True)
    assert (found.reason, found.again, found.blames_server) == ("answer-too-large", Again.NEVER, False)


@pytest.mark.parametrize(
    "error", [ValueError("x"), BadRequest("x", Reason.TARGET), KeyboardInterrupt(), OSError(errno.EMFILE, "x")]
)
def test_what_is_no_fault_of_a_server(error):
    assert failure_of(error) is None
    assert failure_of(error, in_body=True) is None


@pytest.mark.parametrize(
    ("reason", "status", "error"),
    [
        ("loop", 508, "proxy_loop_detected"),
        ("no-route", 404, "destination_not_found"),
        ("no-server", 503, "destination_unavailable"),
        ("above-root", 400, "http_request_error"),
        ("unheard-of", 500, "proxy_internal_error"),
    ],
)
def test_what_the_proxy_finds_itself(reason, status, error):
    found = Failure(reason, status)
    assert (found.again, found.error, str(found)) == (Again.NEVER, error, reason)


def test_a_client_that_leaves_is_in_no_answer():
    assert CLIENT_LEFT == 499


def test_the_table_of_the_module_is_true():
    rows = re.findall(r"^([a-z-]+) +(\d{3}|\(\w+\)) +(any request|if repeatable|no) +(\w*)", failure.__doc__, re.M)
    stated = {reason: (status, again, told) for reason, status, again, told in rows}
    words = {Again.ALWAYS: "any request", Again.REPEATABLE: "if repeatable", Again.NEVER: "no"}
    for error, reason, *_ in TABLE:
        found = failure_of(error)
        status, again, told = stated.pop(reason, (str(found.status), words[found.again], found.error))
        assert status in (str(found.status), "(cut)")
        assert again == words[found.again]
        assert status == "(cut)" or told == found.error or reason == "answer-too-large", "which has several"
    found = {"no-server", "loop", "no-route", "too-many-uploads", "auth-failed", "auth-timeout", "too-many-checks"}
    assert set(stated) == {*found, "body-incomplete", "client-left", "denied", "stopped", "tunnel-timeout"}
    for reason in found:
        assert Failure(reason, int(stated[reason][0])).error == stated[reason][2]
