"""Connections that a server makes: ``Server.connect``.

The connection is given out at once, OPENING and without a descriptor; a greenlet for each connects (``connector``), and
speaks TLS first where it is asked for. Then the connection gets its first turn, like one that was accepted. Invariants:

- It counts as alive from ``connect`` on, and gets its ``connection_drop`` whatever becomes of it. So a server that
  drains, stops or has ``max_connections`` knows of it.
- Until it stands, whoever closes it (the program, a server that stops) ends the greenlet, and with it each attempt.
- Nothing is sent or received on it before: downcalls raise ``ConnectionClosed``, and ``wait_open`` waits.

TLS is agreed on by a connection of the greenlet's own, which hands over its descriptor and its transport: so nothing
that the program does with the other one gets into the handshake. That one sends what goes in front of all else, too.
"""

from __future__ import annotations

import socket as _socket
from math import inf
from typing import TYPE_CHECKING, Any

import gevent
from greenlet import GreenletExit

from greensock.core.connection import Connection
from greensock.core.connector import Connecting, made
from greensock.core.lifecycle import CLOSED, OPEN, OPENING
from greensock.core.sctp import SCTPTransport
from greensock.core.syscalls import close
from greensock.core.turns import SERVED, Turns
from greensock.errors import ConnectFailed, DropReason, HandshakeFailed, OperationTimeout

if TYPE_CHECKING:
    from greensock.core.encrypted import Encrypted

__all__ = ["Dial"]


class Dial:
    """One that is being made, in the place of its connection's reader."""

    __slots__ = ("_conn", "_deadline", "_greenlet", "_of", "_to")

    def __init__(self, of: Turns[Any], to: Connecting) -> None:
        self._of = of
        self._to = to
        self._deadline = to.deadline()
        self._conn: Any = None
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def begin(self) -> Any:
        """Return the connection, which is being made from now on. Does not block."""
        of = self._of
        conn = of.connection_class(of._poller, -1, _socket.AF_UNSPEC, self._to.address, of)
        if conn._state is None:
            raise TypeError(f"{type(conn).__name__}.__init__ does not call Connection.__init__")
        conn._ready = of._make_ready
        conn._state = OPENING
        conn._clear = False
        conn._idle = True  # so that it gets a turn in which its end is told
        conn._stage = SERVED  # so that this end is told, though no upcall was made
        conn._reader = self
        self._conn = conn
        of._dials[conn] = self
        of._tally.alive += 1
        self._greenlet = gevent.spawn(self._run)
        return conn

    def switch(self, *value: Any) -> None:
        """Be told that the connection was closed. In the hub; does not raise."""
        conn = self._conn
        if conn._state is not OPENING:
            conn._reader = None
            assert self._greenlet is not None
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        conn = self._conn
        try:
            self._make()
        except GreenletExit:
            conn._abort(DropReason.ABORTED)  # if it is not closed; then somebody else has ended all greenlets
        except (ConnectFailed, OperationTimeout) as error:
            reason = DropReason.HANDSHAKE if isinstance(error, HandshakeFailed) else DropReason.CONNECT_FAILED
            self._fail(error, reason)
        except OSError as error:  # the engine cannot watch one more
            self._fail(self._to.failed([(self._to.address, error)]), DropReason.CONNECT_FAILED)
        except BaseException as error:
            self._of.error_count += 1
            self._of.log_failure(error, "a connection to %r could not be made", self._to.address)
            self._fail(error, DropReason.ERROR)
            if not isinstance(error, Exception | gevent.Timeout):
                raise
        finally:
            self._of._dials.pop(conn, None)

    def _make(self) -> None:
        """Connect, and have the connection served."""
        to = self._to
        fd, family, sockaddr = to.dial(self._deadline)
        transport: Any = None
        if to.context is not None or to.preface:
            inner = made(Connection, fd, family, sockaddr, to.protocol)
            if to.preface:
                to.say(inner, self._deadline)
            if to.context is not None:
                to.secure(inner, self._deadline)
            fd, transport = _take_apart(inner)
        # From here on nothing switches to another greenlet: the connection is OPENING until it has all it needs.
        conn, of = self._conn, self._of
        if conn._state is not OPENING:  # closed in this very pass of the loop
            close(fd)
            return
        conn._fd, conn._family, conn._address = fd, family, sockaddr
        conn._thorough = family == _socket.AF_UNIX
        if transport is not None:
            transport.serve(conn)
        elif of._on_transport is not None and of._handshakes is None:
            transport = of._on_transport(conn, fd)
        conn._transport = transport
        if of.framer is not None:
            conn._decoder = of.framer.decoder()
        of._poller.register(conn)
        conn._reader = None
        conn._state = OPEN
        conn._clear = transport is None
        conn._readable = to.context is not None and transport.has_held
        if to.context is not None:
            conn._keep_rest()
        of._tally.connected += 1
        conn._tell_open()
        of._begin_made(conn)

    def _fail(self, error: BaseException, reason: DropReason) -> None:
        """End a connection that does not stand, and have that told."""
        conn = self._conn
        if conn._state is not OPENING:
            return
        fd, conn._fd = conn._fd, -1
        if fd >= 0:  # the engine could not watch it, or an upcall or a class of the program's failed
            close(fd)
        conn._reader = conn._transport = None
        conn._failure = error.with_traceback(None)
        conn._abort(reason)


def _take_apart(inner: Connection) -> tuple[int, Encrypted | None]:
    """Return the descriptor and the transport of TLS, if there is one, of a connection that is used no more."""
    poller, transport = inner._poller, inner._transport
    if isinstance(transport, SCTPTransport):  # which is bound to its connection; the other one gets one of its own
        transport.close()
        transport = None
    poller.forget(inner, still_open=True)
    if inner._armed != inf:
        poller.disarm(inner)
    fd, inner._fd = inner._fd, -1
    inner._transport = inner._out = None
    inner._state = CLOSED
    return fd, transport  # type: ignore[return-value]  # it has just agreed on TLS, if it has one
