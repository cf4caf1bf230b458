"""Connecting to others: ``connect`` gives a :class:`Connection` of one's own, with the same downcalls.

A name is resolved by gevent's resolver, which does not stop the hub. Its addresses are tried one after the other, in
the order of the resolver: each gets a share of the time left, the last all of it, so that a silent one leaves time for
the others. A connection belongs to the caller, who has to close it.
"""

from __future__ import annotations

import errno
import os
import socket as _socket
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
from gevent.socket import getaddrinfo

from greensock.address import port_number, split_address
from greensock.core.connection import Connection
from greensock.core.poller import get_poller
from greensock.core.send_queue import Outgoing
from greensock.core.syscalls import RawSocket, borrow_socket, close
from greensock.core.transport import Transport
from greensock.errors import ConnectFailed, DropReason, HandshakeFailed, OperationTimeout
from greensock.tls import TLS, client_context, handshake_error, is_tls

if TYPE_CHECKING:
    import ssl

    from greensock.core.encrypted import Encrypted

__all__ = ["connect", "start_tls"]

_Kind = TypeVar("_Kind", bound=Connection)

#: Seconds between two attempts when the backlog of a Unix socket is full, which the kernel does not tell the end of.
UNIX_RETRY = 0.01
#: Bytes of a handshake that are read at once.
HANDSHAKE_READ = 16384
#: Seconds that an address of several gets at the most: enough for SYN and three repetitions (Linux: after 1, 3, 7 s).
#: The last one gets what is left. And at the least, but not more than half of what is left (RFC 8305 section 5).
MAX_SHARE, MIN_SHARE = 10.0, 0.25


def connect(
    address: Any,
    *,
    timeout: float | None = None,
    connection_class: type[_Kind] = Connection,  # type: ignore[assignment]  # mypy knows no defaults of type variables
    no_delay: bool = True,
    tls: TLS | ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
) -> _Kind:
    """Connect to ``(host, port)``, ``"host:port"``, ``"[v6]:port"`` or the path of a Unix socket, and block until then.

    ``host`` is a name or a numeric address. ``timeout`` is in seconds for the whole call, the resolver's time included,
    and shared by the addresses of a name; None for none, but an address with others behind it gets 10 s. The
    connection's ``address`` is the one that answered.

    ``tls`` has it speak TLS: True trusts what the system trusts, a :class:`TLS` or an ``ssl.SSLContext`` says how.
    ``server_hostname`` is the name that is asked for and that the certificate must be for; left out, the address's.

    Raises:
        ConnectFailed: the name is not known, or no address answered; ``__cause__`` is what the last one said.
        HandshakeFailed, CertificateRefused: one answered, and no TLS was agreed on (these are ConnectFailed, too).
        OperationTimeout: the time ran out (``operation`` is ``"connect"``). Nothing is left open.
        ValueError: ``address`` is none of these, or ``tls`` is not allowed.
    """
    deadline = inf if timeout is None else monotonic() + timeout
    family, target = _parse(address)
    context = None
    if tls:
        if tls is not True and not is_tls(tls):
            raise ValueError(f"tls={tls!r}: True, TLS() or an ssl.SSLContext expected")
        context = client_context(tls)
        if server_hostname is None and family != _socket.AF_UNIX:
            server_hostname = target[0].partition("%")[0]
        if not server_hostname and context.check_hostname:
            raise ValueError("server_hostname=None: a name expected, for the address has none")
    conn = _connect(address, family, target, timeout, deadline, connection_class, no_delay)
    if context is not None:
        _secure(conn, context, server_hostname, address, timeout, deadline)
    return conn


def start_tls(
    conn: Connection,
    tls: TLS | ssl.SSLContext | bool = True,
    *,
    server_hostname: str | None = None,
    timeout: float | None = None,
) -> None:
    """Go over to TLS on a connection that ``connect`` made, and block until then.

    For protocols that begin in plain text: after STARTTLS, or a proxy's answer to CONNECT. All that came has to be read
    before: what a third party slipped in behind it would be taken for the peer's, and is refused. ``tls`` is as
    ``connect`` takes it, ``server_hostname`` the name that the certificate must be for; left out, the address's.

    Raises:
        HandshakeFailed, CertificateRefused: no TLS was agreed on; the connection is closed.
        OperationTimeout: it took longer than ``timeout`` seconds; the connection is reset.
        ValueError: ``tls`` is not allowed, the connection speaks it already, or something that came was not read.
    """
    if not tls or (tls is not True and not is_tls(tls)):
        raise ValueError(f"tls={tls!r}: True, TLS() or an ssl.SSLContext expected")
    if conn.tls is not None:
        raise ValueError("conn: a connection without TLS expected")
    if conn._stash:
        raise ValueError(f"conn: {len(conn._stash)} bytes came in plain text and were not read")
    context = client_context(tls)
    address = conn.address
    if server_hostname is None and isinstance(address, tuple):
        server_hostname = address[0].partition("%")[0]
    if not server_hostname and context.check_hostname:
        raise ValueError("server_hostname=None: a name expected, for the address has none")
    _secure(conn, context, server_hostname, address, timeout, inf if timeout is None else monotonic() + timeout)


def _connect(
    address: Any,
    family: int,
    target: Any,
    timeout: float | None,
    deadline: float,
    connection_class: type[_Kind],
    no_delay: bool,
) -> _Kind:
    """Connect without TLS."""
    if family == _socket.AF_UNIX:
        return _attempt(connection_class, family, target, address, timeout, deadline, no_delay)
    failure: ConnectFailed | None = None
    found = _resolve(target, address, timeout, deadline)
    for others, (family, sockaddr) in zip(reversed(range(len(found))), found, strict=True):
        # A share of what is left: what one address did not use, the next ones have
        # (test_silent_addresses_leave_time_for_the_next).
        due = _share(deadline, others)
        try:
            return _attempt(connection_class, family, sockaddr, address, timeout, due, no_delay)
        except ConnectFailed as error:
            failure = error
        except OperationTimeout:
            if not others:
                raise
    raise failure or ConnectFailed(f"{address!r} has no address", address=address)


def _secure(
    conn: Connection,
    context: ssl.SSLContext,
    server_hostname: str | None,
    address: Any,
    timeout: float | None,
    deadline: float,
) -> None:
    """Agree on TLS, or close the connection."""
    from greensock.core.encrypted import Encrypted

    transport = Encrypted(conn)
    try:
        transport.begin(context, False, server_hostname)
        conn._transport = transport
        conn._clear = False
        data = b""
        while not transport.shake(data):
            data = _hear(conn, transport, deadline)
            if not data:
                conn._eof = True
                raise HandshakeFailed(f"the TLS handshake with {address!r} failed: it left", None, address, "cut")
    except BaseException as error:
        transport.give_up()
        if isinstance(error, TimeoutError):
            conn.abort()
            text = f"{address!r} did not finish its TLS handshake within {timeout} s"
            raise OperationTimeout(text, None, "connect", timeout or 0.0) from None
        if isinstance(error, OSError | ValueError):
            conn._close(DropReason.HANDSHAKE)  # with a linger, so that the peer hears why
            raise _not_agreed(error, address) from error
        conn.abort()
        raise
    if transport.has_held:
        conn._readable = True


def _hear(conn: Connection, transport: Encrypted, deadline: float) -> bytes:
    """Return what comes next of a handshake; ``b""``: the end."""
    while True:
        if conn._readable:
            try:
                data = transport.read_raw(HANDSHAKE_READ)
            except BlockingIOError:
                conn._found_empty()
            else:
                if data and len(data) < HANDSHAKE_READ and not conn._thorough:
                    conn._readable = False
                return data
        left = None if deadline == inf else deadline - monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        conn._await_input(left, deadline)


def _not_agreed(error: OSError | ValueError, address: Any) -> Exception:
    if isinstance(error, HandshakeFailed):
        return error
    if not isinstance(error, OSError):  # what the certificate is refused by is both
        return ValueError(f"server_hostname: {error}")
    if getattr(error, "reason", None) is None and getattr(error, "verify_code", None) is None:
        error = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = "cut" if isinstance(error, ConnectionError) else "protocol"
        text = f"the TLS handshake with {address!r} failed: {error.strerror or error}"
        return HandshakeFailed(text, None, address, reason)
    return handshake_error(error, None, address)


def _parse(address: Any) -> tuple[int, Any]:
    """Return AF_UNIX and the path, or AF_UNSPEC and host and port."""
    found = split_address(address)
    if found is None:
        raise ValueError(f"address={address!r}: (host, port), 'host:port' or a path expected")
    family, target = found
    if family == _socket.AF_UNIX:
        return found
    host, port = target[0], port_number(target[1])
    if port < 1 or not host:
        raise ValueError(f"address={address!r}: a host, and a port from 1 to 65535 expected")
    return family, (host, port)


def _resolve(target: tuple[str, int], address: Any, timeout: float | None, deadline: float) -> list[tuple[int, Any]]:
    """Return the family and the socket address of each way to get there."""
    host, port = target
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (*target, *address[2:]) if isinstance(address, tuple) else target)]
    late = OperationTimeout(f"{host!r} was not resolved within {timeout} s", None, "connect", timeout or 0.0)
    try:
        # gevent's own timeout, as the resolver is gevent's: it knows nothing of deadlines (test_a_slow_resolver).
        with gevent.Timeout(None if deadline == inf else max(0.0, deadline - monotonic()), late):
            found = getaddrinfo(host, port, 0, _socket.SOCK_STREAM)
    except OperationTimeout:
        raise
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(f"{host!r} cannot be resolved: {error}", address=address) from error
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _share(deadline: float, others: int) -> float:
    """Return until when an address may take, behind which ``others`` are to be tried."""
    if not others:
        return deadline
    now = monotonic()
    left = max(0.0, deadline - now)
    return now + min(MAX_SHARE, max(left / (others + 1), min(MIN_SHARE, left / 2)))


def _attempt(
    kind: type[_Kind], family: int, sockaddr: Any, address: Any, timeout: float | None, deadline: float, no_delay: bool
) -> _Kind:
    """Connect to one address."""
    late = OperationTimeout(f"{address!r} did not answer within {timeout} s", None, "connect", timeout or 0.0)
    try:
        conn = _begin(kind, family, sockaddr, deadline, late, no_delay)
    except OperationTimeout:
        raise
    except OSError as error:
        raise _failed(address, sockaddr, error) from error
    entry = _Established(family)
    try:
        # A socket that connects can be written to as soon as it stands or has failed: that event brings the turn of the
        # entry, which asks the kernel what became of it. Until then nothing else gets in front of it.
        conn._writable = False  # until the kernel says that it stands
        conn._submit(entry)
        conn.await_sent(entry, None if deadline == inf else max(0.0, deadline - monotonic()))
    # Its text says ``send``; the caller asked for a connection.
    except OperationTimeout:
        conn.abort()
        raise late from None
    except OSError as error:  # ConnectionLost, or what a SocketConnection raises in its place
        cause = error.__cause__ or error
        raise _failed(address, sockaddr, cause) from cause
    # Killed, or a timeout of the caller's: no one else would close the connection (test_killed_while_it_connects).
    except BaseException:
        conn.abort()
        raise
    return conn


def _begin(
    kind: type[_Kind], family: int, sockaddr: Any, deadline: float, late: OperationTimeout, no_delay: bool
) -> _Kind:
    """Start the kernel connecting and have the engine watch it."""
    sock = RawSocket(family, _socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != _socket.AF_UNIX:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, no_delay)
        # A Unix socket whose backlog is full does not connect in the background, and no event says when there is room
        # (test_a_full_unix_backlog).
        while (said := sock.connect_ex(sockaddr)) == errno.EAGAIN and family == _socket.AF_UNIX:
            if monotonic() >= deadline:
                raise late
            gevent.sleep(UNIX_RETRY)
        if said not in (0, errno.EINPROGRESS):
            raise OSError(said, os.strerror(said))
    except BaseException:
        sock.close()
        raise
    # No object owns the descriptor for these few lines, so whichever fails closes it.
    fd = sock.detach()
    try:
        conn = kind(get_poller(), fd, family, sockaddr)
    except BaseException:
        close(fd)
        raise
    try:
        conn._watch()
    except BaseException:
        conn.abort()
        raise
    return conn


def _failed(address: Any, sockaddr: Any, error: BaseException) -> ConnectFailed:
    reason = getattr(error, "strerror", None) or str(error)
    where = repr(address) if address == sockaddr or isinstance(sockaddr, str) else f"{address!r} ({sockaddr[0]})"
    return ConnectFailed(f"cannot connect to {where}: {reason}", address=address)


class _Established(Outgoing):
    """The first entry of the send queue: its turn comes when the connection stands or has failed."""

    __slots__ = ("_family",)

    def __init__(self, family: int) -> None:
        super().__init__(1)
        self._family = family

    def push(self, fd: int, transport: Transport | None = None) -> int:
        with borrow_socket(fd, self._family) as sock:
            error = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            # SO_ERROR is 0 for a socket that still connects, too: only one that stands has a peer
            # (test_an_event_of_whoever_had_the_descriptor_before_connects_nothing).
            if error:
                raise OSError(error, os.strerror(error))
            try:
                sock.getpeername()
            except OSError:  # ENOTCONN: the event was for the previous owner of the descriptor
                raise BlockingIOError from None
        self.left = 0
        return 0
