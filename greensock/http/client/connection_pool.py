"""The connections of a client: a :class:`~greensock.ConnectionPool` by origins, on the terms of a request.

Those terms are its :class:`Deadlines`: one for the wait in the queue, one to connect, and one for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent.monkey import get_original

from greensock import (
    TLS,
    ConnectionLost,
    ConnectionPool,
    DropReason,
    Lease,
    OperationTimeout,
    Patient,
    PooledConnection,
    connect,
    share_of_descriptors,
)
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.origin import Origin
from greensock.http.errors import ConnectTimeout, PhaseTimeout, QueueFull, QueueTimeout
from greensock.http.wire.limits import Limits
from greensock.http.wire.response_parser import ResponseParser

if TYPE_CHECKING:
    import ssl

__all__ = ["ClientConnection", "ClientLease", "ClientPool", "DialTerms"]

_close = get_original("os", "close")  # gevent's waits for the next pass of the loop, and so would a reset

_with_spare: set[ClientConnection] = set()  # those that hold a second descriptor


class ClientConnection(PooledConnection):
    """A connection to a server."""

    __slots__ = ("_spare", "has_challenged", "parser")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.linger_timeout = 0.0  # by then the whole answer is there, or is given up
        #: What its answers go through.
        self.parser: ResponseParser
        #: Whether its last answer was a challenge whose reply must come on this same connection (NTLM, Negotiate).
        self.has_challenged = False
        self._spare = -1

    def keep_spare(self) -> None:
        """Keep a second descriptor until the lease ends: what came before a reset can be read through it.

        A send that fails closes the first one, and servers that refuse a body often reset while their answer is on its
        way: it would be lost. None is kept where too many are already: it may never be needed.
        """
        if self.tls is not None:
            return  # it could not be decrypted
        if self._spare < 0 and len(_with_spare) < share_of_descriptors():
            with contextlib.suppress(OSError):
                self._spare = self.duplicate()
                self.holds_more = True
                _with_spare.add(self)

    def drop_spare(self) -> None:
        """Close the second descriptor, if there is one."""
        if self._spare >= 0:
            spare, self._spare = self._spare, -1
            self.holds_more = False
            _with_spare.discard(self)
            _close(spare)

    def let_go(self) -> None:
        self.drop_spare()

    def hear(self, timeout: float | None) -> bytes:
        """Receive, from the second descriptor if the connection is lost and there is one.

        A reset is never taken for the end of input: an answer without a length would look whole.
        """
        try:
            return self.recv(timeout=timeout)
        except ConnectionLost as lost:
            if self._spare < 0:
                raise
            with contextlib.suppress(OSError):
                data = os.read(self._spare, self.recv_size)
                # EPIPE: FIN had come before the reset (test_an_answer_until_the_end_that_a_reset_ends).
                if data or getattr(lost.__cause__, "errno", None) == errno.EPIPE:
                    return data
            raise

    is_duplicated = True

    def descriptor_closed(self) -> None:
        """Close the second descriptor, too, unless it is wanted for what came before a reset."""
        if self._spare >= 0 and self.drop_reason is not DropReason.LOST:
            self.drop_spare()


class DialTerms(NamedTuple):
    """On what terms a connection is made."""

    deadlines: Deadlines
    #: What it begins with, in front of TLS, in place of the pool's.
    preface: bytes


class ClientLease(Lease[ClientConnection]):
    """A slot for a connection to an origin, and the connection in it."""

    __slots__ = ("_preface",)

    #: What a fresh one begins with, in front of TLS; it has none where there is nothing.
    _preface: bytes

    def renew(self, terms: Deadlines) -> ClientConnection:
        return super().renew(DialTerms(terms, getattr(self, "_preface", b"")))


class ClientPool(ConnectionPool[ClientConnection]):
    """All connections of one client."""

    lease_class = ClientLease
    what = "the client"

    def __init__(
        self,
        limits: Limits,
        *,
        make_room: Callable[[], bool] | None = None,
        is_full: Callable[[], bool] | None = None,
        tls: TLS | ssl.SSLContext | bool = True,
        server_hostname: str | None = None,
        **sizes: Any,
    ) -> None:
        """``tls`` is how it is spoken to an origin of https, and ``server_hostname`` the name that is asked for there,
        if it is not the origin's. ``sizes`` and the others are those of :class:`ConnectionPool`."""
        super().__init__(
            connection_class=ClientConnection,
            make_room=make_room,
            is_full=is_full,
            tls=tls,
            server_hostname=server_hostname,
            **sizes,
        )
        self._limits = limits
        #: What each connection of https begins with, in front of TLS.
        self.preface = b""

    def lease_for(
        self, origin: Origin, deadlines: Deadlines, patient: Patient | None = None, preface: bytes = b""
    ) -> ClientLease:
        """Lease a connection that stands, as far as can be known; wait for it or make it if need be.

        ``preface`` is what a new one of https begins with, in front of TLS, in place of the pool's.

        Raises:
            QueueFull, QueueTimeout: there is none free.
            ConnectFailed, ConnectTimeout: there is none to be had.
            ConnectionClosed: the client was closed, or ``patient`` gave up.
        """
        conn = self.take_kept(origin)
        if conn is not None:
            lease = ClientLease(self, origin, conn)
        else:
            further = self.lease_further(origin, DialTerms(deadlines, preface), patient)
            assert isinstance(further, ClientLease)
            lease = further
        if preface:
            lease._preface = preface
        return lease

    def dial(self, key: Origin, terms: DialTerms) -> ClientConnection:
        deadlines = terms.deadlines
        seconds = deadlines.timeouts.connect
        try:
            left = deadlines.within(seconds, ConnectTimeout)
            if key.scheme == "https":
                conn = connect(
                    key.address,
                    timeout=left,
                    connection_class=ClientConnection,
                    tls=self.tls,
                    server_hostname=self.server_hostname or key.name,
                    preface=terms.preface or self.preface,
                )
            else:
                conn = connect(key.address, timeout=left, connection_class=ClientConnection)
        except PhaseTimeout:
            raise
        except OperationTimeout as error:
            raise deadlines.late(ConnectTimeout, seconds) from error
        conn.parser = ResponseParser(self._limits)
        return conn

    def patience(self, terms: DialTerms) -> float | None:
        return terms.deadlines.within(terms.deadlines.timeouts.queue, QueueTimeout)

    def too_late(self, key: Origin, terms: DialTerms) -> PhaseTimeout:
        return terms.deadlines.late(QueueTimeout, terms.deadlines.timeouts.queue)

    def too_many(self, key: Origin, most: int) -> QueueFull:
        text = f"{most} requests wait for {key} already: at most max_waiting allowed"
        return QueueFull(text, None, "max_waiting", most)


def _after_fork_in_child() -> None:
    # They are copies, which would keep the parent's connections open
    # (test_second_descriptors_are_a_share_of_all).
    for conn in list(_with_spare):
        conn.drop_spare()


os.register_at_fork(after_in_child=_after_fork_in_child)
