"""Every exception of greensock, told apart by whose fault it is.

==============================  ==========================================  ==========================
whose fault                     exception                                   also a built-in
==============================  ==========================================  ==========================
we closed the connection        :class:`ConnectionClosed`                   ``ConnectionError``
the peer or the network         :class:`ConnectionLost`                     ``ConnectionError``
-- from the beginning           :class:`ConnectFailed`                      ``ConnectionError``
-- in the TLS handshake         :class:`HandshakeFailed`                    ``ConnectionError``
-- by a certificate             :class:`CertificateRefused`                 ``ConnectionError``
-- by an end without a word     :class:`ConnectionTruncated`                ``ConnectionError``
-- for one datagram             :class:`Undeliverable`                      ``ConnectionError``
the peer stopped half way       :class:`IncompleteMessage`                  ``EOFError``
the peer broke the protocol     :class:`ProtocolError`                      ``ValueError``
a limit was crossed             :class:`LimitExceeded` (and the next two)
-- by a message of the peer     :class:`MessageTooLong`                     ``ValueError``
-- by what waits to be sent     :class:`WouldBlock`                         ``BlockingIOError``
time ran out                    :class:`OperationTimeout`                   ``TimeoutError``
two greenlets collided          :class:`ConnectionBusy`                     ``RuntimeError``
==============================  ==========================================  ==========================

An error that belongs to one connection carries it as ``connection``. When such an error leaves an upcall of
that very connection, it is a reason to drop it and no traceback is logged. Anything else that leaves an upcall,
an error of another connection too, is a failure of the program: counted in ``errors``, and logged with its traceback.
"""

from __future__ import annotations

import enum
import errno
from typing import Any

__all__ = [
    "CertificateRefused",
    "ConnectFailed",
    "ConnectionBusy",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionTruncated",
    "DropReason",
    "GreensockError",
    "HandshakeFailed",
    "IncompleteMessage",
    "LimitExceeded",
    "MessageTooLong",
    "OperationTimeout",
    "ProtocolError",
    "Undeliverable",
    "WouldBlock",
]


class DropReason(enum.Enum):
    """Why a connection ended: ``conn.drop_reason``, set before ``connection_drop`` runs."""

    #: The peer sent FIN and nothing of a message was left over.
    PEER_CLOSED = "the peer closed"
    #: The peer sent FIN in the middle of a message.
    INCOMPLETE = "the peer closed in the middle of a message"
    #: The connection was reset, or the network gave up.
    LOST = "the connection was lost"
    #: The TLS handshake failed, or was not done in ``handshake_timeout``: no upcall but ``handshake_failed`` was made.
    #: (Of one that the server made itself: none but ``connection_error`` and ``connection_drop``.)
    HANDSHAKE = "the TLS handshake failed"
    #: The input ended without TLS's close_notify: somebody may have cut it off.
    TRUNCATED = "the peer's input was cut off"
    #: ``Server.connect`` could not connect, for the reason that ``connection_error`` was given.
    CONNECT_FAILED = "nothing could be connected to"
    #: The program called ``close()``, sent with ``close=True``, or its ``handle`` returned.
    CLOSED = "closed by the program"
    #: The program called ``abort()``.
    ABORTED = "aborted by the program"
    #: ``connection_new`` returned ``DROP``.
    REFUSED = "refused by connection_new"
    #: Another upcall returned ``DROP``.
    VERDICT = "dropped by an upcall"
    #: An upcall raised an exception, or was killed.
    ERROR = "an upcall failed"
    #: It rested between two turns, and not a byte came or went for ``idle_timeout`` seconds.
    IDLE_TIMEOUT = "idle for too long"
    #: The time of ``set_deadline`` is over.
    DEADLINE = "its deadline is over"
    #: A receiving downcall ran out of time and the upcall did not handle it.
    RECV_TIMEOUT = "the peer sent nothing for too long"
    #: A sending downcall ran out of time and the upcall did not handle it, or what ``send_nowait`` kept did.
    SEND_TIMEOUT = "the peer read nothing for too long"
    #: A message outgrew the framer's maximum or ``max_postponed``.
    TOO_LONG = "a message was too long"
    #: ``send_nowait`` found ``max_send_queue`` bytes waiting and the upcall did not handle it.
    SLOW_READER = "the peer read too slowly"
    #: Less than ``ClientLimits.min_receive_rate`` came of a message that was there in part.
    SLOW_SENDER = "the peer sent too slowly"
    #: It had rested the longest when all of ``max_connections`` were there (``ClientLimits.evict_idle``).
    EVICTED = "it made room for another"
    #: The peer broke the rules of its protocol.
    PROTOCOL = "the peer broke the protocol"
    #: The server drained, stopped or aborted.
    STOPPED = "the server stopped"


class GreensockError(Exception):
    """The base of all; ``connection`` is the connection it belongs to, or None."""

    #: What became of the connection when this error leaves one of its upcalls.
    drop_reason = DropReason.ERROR

    def __init__(self, message: str, connection: Any = None) -> None:
        super().__init__(message)
        self.connection = connection


class ConnectionClosed(GreensockError, ConnectionError):
    """We closed it: the operation came after ``close()``, or ``close()`` came while it was blocked.

    ``reason`` is the connection's :class:`DropReason`.
    """

    drop_reason = DropReason.CLOSED

    def __init__(self, message: str, connection: Any = None, reason: DropReason | None = None) -> None:
        super().__init__(message, connection)
        self.reason = reason


class ConnectionLost(GreensockError, ConnectionError):
    """The peer or the network broke it; ``__cause__`` is the ``OSError``. The connection is of no more use."""

    drop_reason = DropReason.LOST


class ConnectFailed(GreensockError, ConnectionError):
    """The connection never stood: no such name, refused, no route. ``__cause__`` is what the system said.

    ``address`` is the one that ``connect`` was given. ``attempts`` are the addresses that were tried, each with its
    ``OSError``, in the order in which they failed; none where the name was not known, or one of them answered.
    """

    def __init__(self, message: str, connection: Any = None, address: Any = None) -> None:
        super().__init__(message, connection)
        self.address = address
        self.attempts: tuple[tuple[Any, OSError], ...] = ()


class HandshakeFailed(ConnectFailed):
    """No TLS was agreed on. ``__cause__`` is the ``ssl.SSLError``, if there was one.

    ``reason`` says why, in one word or two:

    - ``"plain_http"``, ``"plain_text"``: the peer speaks HTTP, or something else, without TLS;
    - ``"version"``, ``"cipher"``, ``"alpn"``, ``"name"``: nothing that both have;
    - ``"no_certificate"``: the peer gave none, and one is required;
    - ``"refused"``: the peer refused ours, or wanted one;
    - ``"cut"``: the peer left, ``"timeout"``: it took too long, ``"crowded_out"``: others came, and it was the oldest
      of ``max_handshakes``, ``"stopped"``: the server stopped;
    - ``"protocol"``: anything else;
    - those of :class:`CertificateRefused`.
    """

    drop_reason = DropReason.HANDSHAKE

    def __init__(self, message: str, connection: Any = None, address: Any = None, reason: str = "protocol") -> None:
        super().__init__(message, connection, address)
        self.reason = reason


class CertificateRefused(HandshakeFailed):
    """The peer's certificate did not convince us.

    ``reason`` is ``"expired"``, ``"not_yet_valid"``, ``"wrong_name"``, ``"self_signed"``, ``"unknown_issuer"`` (of no
    authority that is trusted, or a link of its chain is missing), ``"revoked"`` or ``"bad_certificate"``.
    """


class ConnectionTruncated(ConnectionLost):
    """The input ended without TLS's close_notify (RFC 8446 section 6.1): what came may be a part. It is of no more use.

    Peers that frame what they send, as HTTP does with Content-Length and chunks, often end so between two messages.
    """

    drop_reason = DropReason.TRUNCATED


class Undeliverable(GreensockError, ConnectionError):
    """A datagram did not reach its peer: the network or the peer's host said so (ICMP), or the system at once.

    ``address`` is whom it was sent to, ``__cause__`` the ``OSError``: ``ConnectionRefusedError`` if nobody has that
    port. The socket stays usable. That none is raised says nothing: datagrams get lost in silence, too.
    """

    drop_reason = DropReason.LOST

    def __init__(self, message: str, connection: Any = None, address: Any = None) -> None:
        super().__init__(message, connection)
        self.address = address


class IncompleteMessage(GreensockError, EOFError):
    """The input ended inside a message.

    ``partial`` holds the bytes that came of it; ``expected`` how many were asked for, None if it is not known.
    """

    drop_reason = DropReason.INCOMPLETE

    def __init__(self, message: str, connection: Any = None, partial: bytes = b"", expected: int | None = None) -> None:
        super().__init__(message, connection)
        self.partial = partial
        self.expected = expected


class ProtocolError(GreensockError, ValueError):
    """The peer broke the protocol; ``status`` is what a protocol with status codes should answer, or None."""

    drop_reason = DropReason.PROTOCOL

    def __init__(self, message: str, connection: Any = None, status: int | None = None) -> None:
        super().__init__(message, connection)
        self.status = status


class LimitExceeded(GreensockError):
    """A limit was crossed: ``limit`` is its name, ``value`` what it is set to."""

    def __init__(self, message: str, connection: Any = None, limit: str = "", value: int = 0) -> None:
        super().__init__(message, connection)
        self.limit = limit
        self.value = value


class MessageTooLong(LimitExceeded, ValueError):
    """The peer sent a message that is longer than ``value`` bytes."""

    drop_reason = DropReason.TOO_LONG


class WouldBlock(LimitExceeded, BlockingIOError):
    """``send_nowait`` would hold more than ``value`` bytes for a peer that does not read. Nothing was queued."""

    drop_reason = DropReason.SLOW_READER


class OperationTimeout(GreensockError, TimeoutError):
    """A blocking call ran out of time; the connection stays usable.

    ``operation`` is ``"recv"``, ``"send"``, ``"connect"``, ``"wait_closed"`` or ``"wait_disconnect"``, ``seconds`` what
    the call was given. After a ``send`` that timed out nothing of the data was sent if ``sent`` is 0; otherwise the
    engine goes on sending the rest, so that the stream stays whole.
    """

    def __init__(
        self, message: str, connection: Any = None, operation: str = "", seconds: float = 0.0, sent: int = 0
    ) -> None:
        super().__init__(message, connection)
        self.operation = operation
        self.seconds = seconds
        self.sent = sent
        self.errno = errno.ETIMEDOUT
        reasons = {"send": DropReason.SEND_TIMEOUT, "connect": DropReason.ERROR}
        self.drop_reason = reasons.get(operation, DropReason.RECV_TIMEOUT)  # connect: no fault of the peer we serve


class ConnectionBusy(GreensockError, RuntimeError):
    """Another greenlet is already blocked in a receiving call of this connection."""
