"""The exceptions: whose fault, which built-in, and what they carry."""

from __future__ import annotations

import errno
import inspect

import pytest

import greensock
from greensock import errors
from greensock.errors import (
    CertificateRefused,
    ConnectFailed,
    ConnectionBusy,
    ConnectionClosed,
    ConnectionLost,
    ConnectionTruncated,
    DropReason,
    GreensockError,
    HandshakeFailed,
    IncompleteMessage,
    LimitExceeded,
    MessageTooLong,
    OperationTimeout,
    ProtocolError,
    Undeliverable,
    WouldBlock,
)

# exception, the built-in that it is too, what becomes of a connection whose upcall it leaves
TABLE = [
    (GreensockError, Exception, DropReason.ERROR),
    (ConnectionClosed, ConnectionError, DropReason.CLOSED),
    (ConnectionLost, ConnectionError, DropReason.LOST),
    (ConnectFailed, ConnectionError, DropReason.ERROR),
    (HandshakeFailed, ConnectionError, DropReason.HANDSHAKE),
    (CertificateRefused, ConnectionError, DropReason.HANDSHAKE),
    (ConnectionTruncated, ConnectionError, DropReason.TRUNCATED),
    (Undeliverable, ConnectionError, DropReason.LOST),
    (IncompleteMessage, EOFError, DropReason.INCOMPLETE),
    (ProtocolError, ValueError, DropReason.PROTOCOL),
    (LimitExceeded, Exception, DropReason.ERROR),
    (MessageTooLong, ValueError, DropReason.TOO_LONG),
    (WouldBlock, BlockingIOError, DropReason.SLOW_READER),
    (OperationTimeout, TimeoutError, DropReason.RECV_TIMEOUT),
    (ConnectionBusy, RuntimeError, DropReason.ERROR),
]


def test_the_table_is_complete():
    found = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert found == {kind for kind, _, _ in TABLE}


@pytest.mark.parametrize(("kind", "builtin", "reason"), TABLE)
def test_each_is_its_builtin_and_says_what_becomes_of_the_connection(kind, builtin, reason):
    connection = object()
    error = kind("what happened", connection)
    assert isinstance(error, GreensockError)
    assert isinstance(error, builtin)
    assert str(error) == "what happened"
    assert error.connection is connection
    assert error.drop_reason is reason
    assert kind("without").connection is None
    assert getattr(greensock, kind.__name__) is kind


@pytest.mark.parametrize("kind", [kind for kind, builtin, _ in TABLE if builtin is not Exception])
def test_the_doc_table_names_each_with_its_builtin(kind):
    row = next(line for line in errors.__doc__.splitlines() if f":class:`{kind.__name__}`" in line)
    builtin = next(builtin for found, builtin, _ in TABLE if found is kind)
    assert f"``{builtin.__name__}``" in row


def test_what_each_carries():
    assert ConnectionClosed("x", None, DropReason.IDLE_TIMEOUT).reason is DropReason.IDLE_TIMEOUT
    incomplete = IncompleteMessage("x", None, b"par", 8)
    assert (incomplete.partial, incomplete.expected) == (b"par", 8)
    assert ProtocolError("x", status=400).status == 400
    for kind in (LimitExceeded, MessageTooLong, WouldBlock):
        error = kind("x", None, "max_size", 10)
        assert (error.limit, error.value) == ("max_size", 10)


def test_a_timeout_says_of_what():
    error = OperationTimeout("x", None, "send", 1.5, 10)
    assert (error.operation, error.seconds, error.sent, error.errno) == ("send", 1.5, 10, errno.ETIMEDOUT)
    assert error.drop_reason is DropReason.SEND_TIMEOUT
    assert OperationTimeout("x", None, "recv", 1.5).drop_reason is DropReason.RECV_TIMEOUT
    assert OperationTimeout("x", None, "connect", 1.5).drop_reason is DropReason.ERROR  # not the served peer's


def test_every_drop_reason_is_told_apart():
    values = [reason.value for reason in DropReason]
    assert len(set(values)) == len(values)
    assert all(value and not value.endswith(".") for value in values)
