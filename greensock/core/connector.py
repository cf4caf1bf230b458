"""Connecting to others: ``connect`` gives a :class:`Connection` of one's own, with the same downcalls.

A name is resolved by gevent's resolver, which does not stop the hub, under the deadline of the call; a number is not.
Its addresses are then raced, as RFC 8305 ("Happy Eyeballs") says:

- They are tried in the order of the resolver (RFC 6724), but IPv6 and IPv4 in turn (section 4).
- The next attempt begins 250 ms after the one before (section 5), or sooner if the time left would not do for all of
  them, and at once if one fails. A silent address delays the others by so much, and takes no time from them.
- The first that stands wins, and the others are closed. At most ``MOST_AT_ONCE`` are under way.

One greenlet does all of it, the caller's: an attempt is a socket in the engine's epoll set. Whatever is raised, or
thrown into the wait, each attempt is closed on the way out. Both kinds of addresses are asked for in one call of the
resolver, so that who waits for one of them waits for both (unlike section 3).

A connection belongs to the caller, who has to close it. ``Server.connect`` dials the same way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _socket
from collections import deque
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
from gevent.socket import getaddrinfo

from greensock.address import port_number, split_address
from greensock.core.connection import Connection
from greensock.core.poller import Endpoint, get_poller
from greensock.core.sctp import IPPROTO_SCTP, SCTPConnection, SCTPTransport, explain_sctp, prepare_sctp, tune_sctp
from greensock.core.syscalls import RawSocket, close
from greensock.errors import ConnectFailed, DropReason, HandshakeFailed, OperationTimeout
from greensock.server_options import PROTOCOLS
from greensock.tls import TLS, client_context, handshake_error, is_tls, sessions_of

if TYPE_CHECKING:
    import ssl

    from greensock.core.encrypted import Encrypted

__all__ = ["Connecting", "connect", "interleaved", "made", "start_tls"]

_Kind = TypeVar("_Kind", bound=Connection)

#: Seconds between two attempts when the backlog of a Unix socket is full, which the kernel does not tell the end of.
UNIX_RETRY = 0.01
#: Bytes of a handshake that are read at once.
HANDSHAKE_READ = 16384
#: Seconds between the beginnings of two attempts ("Connection Attempt Delay", RFC 8305 section 5), and at the least.
ATTEMPT_DELAY, SHORTEST_DELAY = 0.25, 0.01
#: Attempts that may be under way at once; the next one takes the place of the oldest, which had four seconds by then.
MOST_AT_ONCE = 16
#: How many attempts the text of an error names.
MOST_NAMED = 8
#: What ``connect`` says of one that is under way.
_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)


def connect(
    address: Any,
    *,
    timeout: float | None = None,
    connection_class: type[_Kind] = Connection,  # type: ignore[assignment]  # mypy knows no defaults of type variables
    no_delay: bool = True,
    tls: TLS | ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    preface: bytes = b"",
    protocol: str = "tcp",
) -> _Kind:
    """Connect to ``(host, port)``, ``"host:port"``, ``"[v6]:port"`` or the path of a Unix socket, and block until then.

    (``unix:@name`` is a Unix socket with an abstract name.)

    ``host`` is a name or a numeric address. ``timeout`` is in seconds for the whole call, the resolver's time included;
    None: as long as the resolver and the kernel try. Of a name that has several addresses the first that answers is
    taken: one is given 250 ms before the next is tried, too. The connection's ``address`` is the one that answered.

    ``tls`` has it speak TLS: True trusts what the system trusts, a :class:`TLS` or an ``ssl.SSLContext`` says how.
    ``server_hostname`` is the name that is asked for and that the certificate must be for; left out, the address's. A
    dot at its end is not part of it (RFC 6066 section 3). A session of an earlier connection that was made the same way
    is gone on with, so that the handshake is a short one, unless ``session_tickets`` of its :class:`TLS` is off.

    ``protocol`` is ``"tcp"`` or ``"sctp"``; for the latter, ``connection_class=SCTPConnection`` keeps messages apart.

    ``preface`` is sent as it is before all else, a TLS handshake too: a header of the PROXY protocol, say.

    Raises:
        ConnectFailed: the name is not known, no address can be connected to, or the kernel has no SCTP; ``attempts``
            tells of each, as does the text, and ``__cause__`` is what the last one said.
        HandshakeFailed, CertificateRefused: one answered, and no TLS was agreed on (these are ConnectFailed, too).
        OperationTimeout: the time ran out (``operation`` is ``"connect"``). Nothing is left open.
        ValueError: ``address`` is none of these, or ``tls`` is not allowed.
    """
    to = Connecting.of(address, timeout, no_delay, tls, server_hostname, preface, protocol, connection_class)
    deadline = to.deadline()
    fd, family, sockaddr = to.dial(deadline)
    try:
        conn = made(connection_class, fd, family, sockaddr, protocol)
    except OSError as error:  # the engine cannot watch one more
        raise to.failed([(sockaddr, error)]) from error
    if preface:
        to.say(conn, deadline)
    if to.context is not None:
        to.secure(conn, deadline)
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
    if server_hostname:
        server_hostname = server_hostname.removesuffix(".")
    if not server_hostname and context.check_hostname:
        raise ValueError("server_hostname=None: a name expected, for the address has none")
    _secure(conn, context, server_hostname, address, timeout, inf if timeout is None else monotonic() + timeout)


@dataclass(frozen=True, slots=True)
class Connecting:
    """Where to connect to, and how: what ``connect`` was given, checked."""

    #: As it was given.
    address: Any
    #: Seconds for all of it.
    timeout: float | None
    no_delay: bool
    #: AF_UNIX and a path, or AF_UNSPEC and host and port.
    family: int
    target: Any
    #: How TLS is spoken, and for which name; None: it is not.
    context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    #: What is sent before all else.
    preface: bytes = b""
    #: ``"tcp"`` or ``"sctp"``.
    protocol: str = "tcp"

    @classmethod
    def of(
        cls,
        address: Any,
        timeout: float | None,
        no_delay: bool,
        tls: TLS | ssl.SSLContext | bool | None,
        server_hostname: str | None,
        preface: bytes = b"",
        protocol: str = "tcp",
        kind: type[Connection] = Connection,
    ) -> Connecting:
        """Check it; ``kind`` is the class of the connection.

        Raises:
            ValueError: something is not allowed.
        """
        family, target = _parse(address)
        if protocol != "tcp" or issubclass(kind, SCTPConnection):
            _check_protocol(protocol, address, family, kind, tls)
        if not tls:
            return cls(address, timeout, no_delay, family, target, None, None, preface, protocol)
        if tls is not True and not is_tls(tls):
            raise ValueError(f"tls={tls!r}: True, TLS() or an ssl.SSLContext expected")
        context = client_context(tls)
        if server_hostname is None and family != _socket.AF_UNIX:
            server_hostname = target[0].partition("%")[0]
        if server_hostname:
            server_hostname = server_hostname.removesuffix(".")
        if not server_hostname and context.check_hostname:
            raise ValueError("server_hostname=None: a name expected, for the address has none")
        return cls(address, timeout, no_delay, family, target, context, server_hostname, preface, protocol)

    def deadline(self) -> float:
        """Return until when it may take, if it begins now."""
        return inf if self.timeout is None else monotonic() + self.timeout

    def dial(self, deadline: float) -> tuple[int, int, Any]:
        """Block until a connection stands; return its descriptor, which is the caller's, its family and the address.

        Raises:
            ConnectFailed, OperationTimeout: as ``connect`` does.
        """
        if self.family == _socket.AF_UNIX:
            return self._dial_path(deadline), self.family, self.target
        found = self._resolve(deadline)
        if not found:
            raise ConnectFailed(f"{self.address!r} has no address", address=self.address)
        race = _Race(self, interleaved(found), deadline)
        try:
            winner = race.run()
            return winner.give_out(), winner.family, winner.sockaddr
        finally:
            race.end()

    def say(self, conn: Connection, deadline: float) -> None:
        """Send what goes in front of all else, or close the connection."""
        try:
            conn.send(self.preface, timeout=None if deadline == inf else max(0.0, deadline - monotonic()))
        except BaseException as error:
            conn.abort()
            if isinstance(error, OperationTimeout):
                raise self.late(f"{self.address!r} did not take the preface") from None
            if isinstance(error, OSError):
                cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
                raise self.failed([(conn.address, cause)]) from cause
            raise

    def secure(self, conn: Connection, deadline: float) -> None:
        """Agree on TLS, or close the connection."""
        assert self.context is not None
        _secure(conn, self.context, self.server_hostname, self.address, self.timeout, deadline)

    def late(self, text: str) -> OperationTimeout:
        """Return the error that says that the time is over."""
        return OperationTimeout(f"{text} within {self.timeout} s", None, "connect", self.timeout or 0.0)

    def failed(self, attempts: list[tuple[Any, OSError]]) -> ConnectFailed:
        """Return the error that says of each attempt why it failed; its cause is the last one."""
        if len(attempts) == 1:
            sockaddr, error = attempts[0]
            text = _reason(error)
            is_named = self.address == sockaddr or isinstance(sockaddr, str)
            where = repr(self.address) if is_named else f"{self.address!r} ({sockaddr[0]})"
        else:
            text, where = _told(attempts), repr(self.address)
        failed = ConnectFailed(f"cannot connect to {where}: {text}", address=self.address)
        failed.attempts = tuple(attempts)
        failed.__cause__ = attempts[-1][1]
        return failed

    def _resolve(self, deadline: float) -> list[tuple[int, Any]]:
        """Return the family and the socket address of each way to get there."""
        host, port = self.target
        for family in (_socket.AF_INET, _socket.AF_INET6):
            try:
                _socket.inet_pton(family, host)
            except OSError:
                continue
            rest = self.address[2:] if isinstance(self.address, tuple) else ()
            return [(family, (host, port, *rest))]
        late = self.late(f"{host!r} was not resolved")
        try:
            # gevent's own timeout, as the resolver is gevent's: it knows nothing of deadlines (test_a_slow_resolver).
            with gevent.Timeout(None if deadline == inf else max(0.0, deadline - monotonic()), late):
                found = getaddrinfo(host, port, 0, _socket.SOCK_STREAM)
        except OperationTimeout:
            raise
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"{host!r} cannot be resolved: {error}", address=self.address) from error
        return [(family, sockaddr) for family, _, _, _, sockaddr in found]

    def _dial_path(self, deadline: float) -> int:
        """Connect to a Unix socket, and return the descriptor."""
        try:
            sock = RawSocket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        except OSError as error:
            raise self.failed([(self.target, error)]) from error
        try:
            sock.setblocking(False)
            # One whose backlog is full does not connect in the background, and no event says when there is room
            # (test_a_full_unix_backlog).
            while (said := sock.connect_ex(self.target)) == errno.EAGAIN:
                if monotonic() >= deadline:
                    raise self.late(f"{self.address!r} did not answer")
                gevent.sleep(UNIX_RETRY)
            if said:
                raise OSError(said, os.strerror(said))
            return int(sock.detach())
        except OperationTimeout:
            raise
        except OSError as error:
            raise self.failed([(self.target, error)]) from error
        finally:
            sock.close()  # nothing, once it is detached


def interleaved(found: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Return the addresses of a name in the order in which they are tried: each once, the families in turn.

    The resolver's first address stays the first one (RFC 8305 section 4, with a First Address Family Count of 1).
    """
    first = [each for each in dict.fromkeys(found) if each[0] == found[0][0]]
    other = [each for each in dict.fromkeys(found) if each[0] != found[0][0]]
    both = min(len(first), len(other))
    in_turn = [each for pair in zip(first, other, strict=False) for each in pair]
    return in_turn + first[both:] + other[both:]


class _Race(Endpoint):
    """The attempts of one call. It is an endpoint for its deadline's sake; it has no descriptor."""

    __slots__ = ("_deadline", "_failures", "_next", "_running", "_to", "_waiting")

    def __init__(self, to: Connecting, addresses: list[tuple[int, Any]], deadline: float) -> None:
        super().__init__(get_poller(), -1)
        self._to = to
        self._waiting = deque(addresses)
        self._deadline = deadline
        self._running: list[_Attempt] = []
        self._failures: list[tuple[Any, OSError]] = []
        self._next = 0.0  # when the next attempt is due; 0: now

    def run(self) -> _Attempt:
        """Block until one of them stands, and return it."""
        while True:
            while self._waiting and (not self._running or monotonic() >= self._next):
                if (attempt := self._begin()) is not None:
                    return attempt
            for attempt in list(self._running):
                if attempt.stands:
                    return attempt
                if attempt.failure is not None:
                    self._lose(attempt, attempt.failure)
            if not self._running and not self._waiting:
                raise self._to.failed(self._failures)
            if self._waiting and not self._next:
                continue
            if monotonic() >= self._deadline:
                raise self._late()
            due = min(self._deadline, self._next if self._waiting else inf)
            if due < self._armed:
                self._poller.arm(self, due)
            self._wait_readable()  # until an attempt has ended, or the time has come

    def _begin(self) -> _Attempt | None:
        """Begin with the next address; return the attempt if it stands at once."""
        if len(self._running) >= MOST_AT_ONCE:
            self._lose(self._running[0], OSError(errno.ETIMEDOUT, "no answer so far"))
        attempt = _Attempt(self, *self._waiting.popleft())
        self._running.append(attempt)
        try:
            attempt.begin(self._to.no_delay)
        except OSError as error:
            self._lose(attempt, error)
            return None
        now, others = monotonic(), len(self._waiting)
        # Each of those that are left gets its chance within the time, be it a short one.
        self._next = now + min(ATTEMPT_DELAY, max(SHORTEST_DELAY, (self._deadline - now) / (others + 1)))
        return attempt if attempt.stands else None

    def _lose(self, attempt: _Attempt, error: OSError) -> None:
        """Give up on an attempt; the next one is due at once."""
        attempt.end()
        self._running.remove(attempt)
        error = explain_sctp(error) if self._to.protocol == "sctp" else error
        self._failures.append((attempt.sockaddr, error))
        self._next = 0.0

    def _late(self) -> OperationTimeout:
        late = self._to.late(f"{self._to.address!r} did not answer")
        silent = [(attempt.sockaddr, TimeoutError(errno.ETIMEDOUT, "no answer")) for attempt in self._running]
        left = [(sockaddr, TimeoutError(errno.ETIMEDOUT, "not tried")) for _, sockaddr in self._waiting]
        attempts = [*self._failures, *silent, *left]
        if len(attempts) > 1:
            late.args = (f"{late}: {_told(attempts)}",)
        return late

    def end(self) -> None:
        """Close what has not won. Does not block."""
        for attempt in self._running:
            attempt.end()
        self._running.clear()
        if self._armed != inf:
            self._poller.disarm(self)
            # The void entry stays with the poller for a while, and would keep the context, and what that keeps
            # (test_they_are_bounded_and_go_with_their_context).
            del self._to

    def wake(self) -> None:
        """Have the greenlet look that waits. In the hub."""
        if self._reader is not None:
            self._reader.switch()

    def _on_deadline(self, now: float) -> float:
        self.wake()
        return inf


class _Attempt(Endpoint):
    """One address, and the socket that connects to it."""

    __slots__ = ("_is_sctp", "_race", "_sock", "failure", "family", "sockaddr", "stands")

    _sock: Any

    def __init__(self, race: _Race, family: int, sockaddr: Any) -> None:
        super().__init__(race._poller, -1)
        self._race = race
        self._is_sctp = race._to.protocol == "sctp"
        self._sock = None
        self.family = family
        self.sockaddr = sockaddr
        #: Whether it is connected.
        self.stands = False
        #: Why it will not be.
        self.failure: OSError | None = None

    def begin(self, no_delay: bool) -> None:
        """Have the kernel connect. It may stand, or have failed, when this returns.

        Raises:
            OSError: it failed before it began.
        """
        self._sock = sock = RawSocket(self.family, _socket.SOCK_STREAM, IPPROTO_SCTP if self._is_sctp else 0)
        sock.setblocking(False)
        if self._is_sctp:
            prepare_sctp(sock)
            tune_sctp(sock, no_delay)
        else:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, no_delay)
        # Not asked once more at once, though on this machine it stands by then: who makes many in a loop would let
        # nobody else run.
        self._note(sock.connect_ex(self.sockaddr))
        if self.stands or self.failure is not None:
            return
        self._fd = sock.fileno()
        self._writable = False  # so that the event is told to ``_on_writable``
        self._poller.register(self)

    def _look(self) -> None:
        """Ask the kernel what became of it: connect(2), which began it, says how it went when it is called again.

        It says EALREADY as long as it is under way: an event may have been for whoever had the descriptor before
        (test_an_event_of_whoever_had_the_descriptor_before_connects_nothing). Of SCTP it would begin anew what has
        failed; there the socket has an error then, and no peer before it stands.
        """
        if not self._is_sctp:
            self._note(self._sock.connect_ex(self.sockaddr))
        elif said := self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self._note(said)
        else:
            with contextlib.suppress(OSError):  # ENOTCONN
                self._sock.getpeername()
                self.stands = True

    def _note(self, said: int) -> None:
        """Take note of what connect(2) said."""
        if said in (0, errno.EISCONN):
            self.stands = True
        elif said not in _UNDER_WAY:
            self.failure = OSError(said, os.strerror(said))

    def _on_writable(self) -> None:
        try:
            self._look()
        except Exception as error:  # nothing may be raised here, and the greenlet is to know
            self.failure = OSError(errno.EIO, str(error))
        if self.stands or self.failure is not None:
            self._race.wake()
        else:
            self._writable = False

    def give_out(self) -> int:
        """Return the descriptor, which is the caller's from then on."""
        self._forget(still_open=True)
        return int(self._sock.detach())

    def end(self) -> None:
        """Close it, unless it was given out."""
        self._forget()
        if self._sock is not None:
            self._sock.close()

    def _forget(self, still_open: bool = False) -> None:
        if self._fd >= 0:
            self._poller.forget(self, still_open)
            self._fd = -1

    def _leave_to_parent(self) -> int:
        self._fd = -1
        self._sock.close()
        return -1


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _told(attempts: list[tuple[Any, Any]]) -> str:
    """Say of each attempt why it failed."""
    texts = [f"{sockaddr[0]}: {_reason(error)}" for sockaddr, error in attempts[:MOST_NAMED]]
    if len(attempts) > MOST_NAMED:
        texts.append(f"and {len(attempts) - MOST_NAMED} others")
    return "; ".join(texts)


def made(kind: type[_Kind], fd: int, family: int, sockaddr: Any, protocol: str = "tcp") -> _Kind:
    """Make a connection of a descriptor, and have the engine watch it."""
    # No object owns the descriptor for these few lines, so whichever fails closes it.
    try:
        conn = kind(get_poller(), fd, family, sockaddr)
    except BaseException:
        close(fd)
        raise
    try:
        conn._watch()
        if protocol == "sctp":
            conn._transport = SCTPTransport(conn, fd)
            conn._clear = False
    except BaseException:
        conn.abort()
        raise
    return conn


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

    conn._poller.uncork_for(conn)  # what was sent before goes out as it is
    transport = Encrypted(conn)
    try:
        transport.begin(context, False, server_hostname, sessions_of(context, (conn.address, server_hostname)))
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


def _check_protocol(protocol: str, address: Any, family: int, kind: type[Connection], tls: Any) -> None:
    """Refuse what does not go together."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: 'tcp' or 'sctp' expected")
    if protocol == "tcp":
        raise ValueError(f"connection_class={kind.__name__}: protocol='sctp' expected beside it")
    if family == _socket.AF_UNIX:
        raise ValueError(f"address={address!r}: (host, port) expected, with protocol='sctp'")
    if tls:
        raise ValueError("protocol='sctp': no tls expected beside it")


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
