"""SCTP, one-to-one style (RFC 6458 section 4): a connection like one of TCP, or one that keeps messages and streams.

The engine is the same, and works on bytes; what differs is in the transport:

- A read gives one message at the most. So ``read`` goes on until the kernel has nothing more, which is what a short
  read stands for in the engine.
- A message is sent whole or not at all, and has at most as many bytes as the socket's send buffer. As a stream of bytes
  they are cut into pieces (``PIECE``), each of them a message.
- There is no half-close: whoever has ended hears what was on its way, and can be sent nothing more.
- Nothing tells of the end of a close but a notification, which is asked for (SCTP_ASSOC_CHANGE).

Where messages are kept (:class:`SCTPConnection`) the transport gives each of them with a head in front (``HEAD``) and
takes them so; nothing of that goes over the wire.
"""

from __future__ import annotations

import errno
import os
import socket as _socket
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from greensock.core.connection import Connection
from greensock.core.lifecycle import INHERIT, Timeout
from greensock.core.send_queue import Buffer, as_views
from greensock.core.syscalls import BorrowedSocket
from greensock.errors import LimitExceeded, MessageTooLong
from greensock.framing import Framer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "IPPROTO_SCTP",
    "MOST_MESSAGE",
    "SCTPConnection",
    "SCTPMessage",
    "SCTPMessages",
    "SCTPTransport",
    "explain_sctp",
    "prepare_sctp",
    "tune_sctp",
]

#: Numbers of linux/sctp.h.
IPPROTO_SCTP = 132
SCTP_INITMSG, SCTP_NODELAY, SCTP_EVENTS = 2, 3, 11
SCTP_SNDRCV = 1
MSG_NOTIFICATION = 0x8000
SCTP_ASSOC_CHANGE = 0x8001
SCTP_COMM_LOST, SCTP_SHUTDOWN_COMP = 1, 3
#: Flags of a message.
SCTP_UNORDERED = 1

#: Streams each way that a connection asks for.
STREAMS = 16
#: Bytes of a message that a stream of bytes is cut into; and of one read.
PIECE, LEAST_PIECE = 1 << 16, 256
#: Bytes that a message may have that is received.
MOST_MESSAGE = 1 << 20
#: Room for what comes beside the bytes: stream, flags, payload protocol.
ROOM = 128

_SNDRCV = struct.Struct("=HHHxxIIIIIi")  # stream, ssn, flags, ppid, context, time to live, tsn, cumulative tsn, id
_CHANGE = struct.Struct("=HHIH")  # type, flags, length, state
_INIT = struct.Struct("=HHHH")
#: In front of each message between transport and engine: mark, stream, flags, payload protocol, bytes.
HEAD = struct.Struct("!4sHHII")
MARK = b"\x00SCT"


class SCTPMessage(bytes):
    """A message that came: its bytes, and what came with them."""

    #: The stream it came on.
    stream: int
    #: What its sender says it is ("payload protocol identifier"), 0 for nothing.
    ppid: int
    #: Whether it may have overtaken others of its stream.
    is_unordered: bool

    def __new__(cls, data: bytes, stream: int = 0, ppid: int = 0, is_unordered: bool = False) -> Self:
        """Take bytes, and what is told of them."""
        made = super().__new__(cls, data)
        made.stream, made.ppid, made.is_unordered = stream, ppid, is_unordered
        return made

    def __repr__(self) -> str:
        return f"<SCTPMessage stream={self.stream} ppid={self.ppid} {bytes(self)!r}>"


class SCTPMessages(Framer):
    """Gives the messages of an :class:`SCTPConnection` as they were sent."""

    __slots__ = ()

    def decoder(self) -> Any:
        return _MessageDecoder(self.max_size)

    def encode(self, message: bytes) -> bytes:
        if len(message) > self.max_size:
            raise ValueError(f"message of {len(message)} bytes: at most max_size={self.max_size} allowed")
        return head_of(message, 0, 0, False) + message


class _MessageDecoder:
    """Takes off what the transport puts in front of each message: a decoder as those of ``framing``."""

    __slots__ = ("_at", "_came", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._came = b""
        self._at = 0

    @property
    def pending(self) -> int:
        """How many bytes are held that no message has been made of."""
        return len(self._came) - self._at

    def feed(self, data: bytes) -> None:
        """Add bytes that came."""
        self._came, self._at = self._came[self._at :] + data, 0

    def take(self) -> bytes:
        """Give out all that is pending as it came."""
        came, self._came, self._at = self._came[self._at :], b"", 0
        return came

    def next_message(self) -> SCTPMessage | None:
        """Give out the next message; None: it has not come whole."""
        came, begin = self._came, self._at + HEAD.size
        if len(came) < begin:
            return None
        _, stream, flags, ppid, size = HEAD.unpack_from(came, self._at)
        if size > self._most:
            text = f"a message of {size} bytes is longer than max_size={self._most} bytes"
            raise MessageTooLong(text, limit="max_size", value=self._most)
        end = begin + size
        if len(came) < end:
            return None
        self._at = end
        if end == len(came):
            self._came, self._at = b"", 0
        return SCTPMessage(came[begin:end], stream, ppid, bool(flags & SCTP_UNORDERED))


def head_of(data: bytes, stream: int, ppid: int, unordered: bool) -> bytes:
    """Return what the transport is to find in front of a message."""
    return HEAD.pack(MARK, stream, SCTP_UNORDERED if unordered else 0, ppid, len(data))


class SCTPTransport:
    """What a connection of SCTP reads from and writes to."""

    __slots__ = ("_conn", "_failure", "_held", "_keeps_messages", "_over", "_part", "_piece", "_sock", "is_shared")

    def __init__(self, conn: Connection, fd: int) -> None:
        # Borrowed: the descriptor stays the connection's to close.
        self._sock = BorrowedSocket(conn._family, _socket.SOCK_STREAM, IPPROTO_SCTP, fd)
        self._conn: Any = conn
        self._keeps_messages = isinstance(conn, SCTPConnection)
        self.is_shared = False
        self._held = b""  # of messages that came whole, with their heads
        self._part = b""  # of one that has not
        self._piece = PIECE
        self._over = False
        self._failure: OSError | None = None
        # What comes with each message, and what becomes of the association.
        self._sock.setsockopt(IPPROTO_SCTP, SCTP_EVENTS, bytes([self._keeps_messages, 1, 0, 0, 0, 0, 0, 0]))

    # -- receiving

    def read(self, size: int) -> bytes:
        """Return what is there."""
        pieces, left = [], size
        if self._held:
            pieces.append(self._held[:left])
            self._held = self._held[left:]
            left -= len(pieces[0])
        while left > 0:
            try:
                piece = self._next(left)
            except BlockingIOError:
                if pieces:
                    break
                raise
            except OSError as error:
                if not pieces:
                    raise
                self._failure = error.with_traceback(None)
                self._conn._thorough = True  # what is behind these bytes is to be asked for
                break
            if not piece:
                if pieces:
                    self._conn._thorough = True
                break
            if len(piece) > left:
                piece, self._held = piece[:left], piece[left:]
            pieces.append(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readv(self, view: memoryview) -> int:
        """Fill ``view`` with what is there."""
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        """Return the bytes of the next message, or the next message with its head; ``b""`` at the end."""
        if self._failure is not None:
            raise self._failure
        while not self._over:
            try:
                data, beside, flags, _ = self._sock.recvmsg(PIECE if self._keeps_messages else size, ROOM)
            except OSError as error:
                if error.errno == errno.ENOTCONN:  # both sides have ended
                    break
                raise
            if flags & MSG_NOTIFICATION:
                self._note(data)
            elif not data:
                break
            elif not self._keeps_messages:
                return data  # type: ignore[no-any-return]
            elif flags & _socket.MSG_EOR:
                whole: bytes = self._part + data
                self._part = b""
                stream = kind = ppid = 0
                for level, what, content in beside:
                    if (level, what) == (IPPROTO_SCTP, SCTP_SNDRCV):
                        stream, _, kind, ppid, *_ = _SNDRCV.unpack_from(content)
                return head_of(whole, stream, _socket.ntohl(ppid), bool(kind & SCTP_UNORDERED)) + whole
            else:
                self._part += data
                if len(self._part) > MOST_MESSAGE:
                    raise OSError(errno.EMSGSIZE, f"a message of more than {MOST_MESSAGE} bytes came")
        self._over = True
        return b""

    def _note(self, data: bytes) -> None:
        """Take note of what became of the association."""
        kind, _, _, state = _CHANGE.unpack_from(data)
        if kind == SCTP_ASSOC_CHANGE and state == SCTP_SHUTDOWN_COMP:
            self._over = True
        elif kind == SCTP_ASSOC_CHANGE and state == SCTP_COMM_LOST:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    # -- sending

    def write(self, data: bytes | memoryview) -> int:
        """Send what is taken now: a piece of a stream of bytes, or one message."""
        while not self._keeps_messages:
            try:
                return self._sock.send(memoryview(data)[: self._piece])  # type: ignore[no-any-return]
            except OSError as error:
                # More than the send buffer has, which the program has made smaller.
                if error.errno != errno.EMSGSIZE or self._piece <= LEAST_PIECE:
                    raise
                self._piece //= 2
        if not data:
            return 0
        view = memoryview(data)
        mark, stream, flags, ppid, size = HEAD.unpack_from(view) if len(view) >= HEAD.size else (b"", 0, 0, 0, 0)
        end: int = HEAD.size + size
        if mark != MARK or len(view) < end:
            raise OSError(errno.EPROTO, "bytes that are no message: send() or send_message() expected")
        about = _SNDRCV.pack(stream, 0, flags, _socket.htonl(ppid), 0, 0, 0, 0, 0)
        self._sock.sendmsg([view[HEAD.size : end]], [(IPPROTO_SCTP, SCTP_SNDRCV, about)])
        return end

    def writev(self, views: list[memoryview]) -> int:
        """Send what is taken of the buffers now."""
        some, size = [], 0
        for view in views:
            some.append(view)
            size += len(view)
            if size >= PIECE and not self._keeps_messages:
                break
        return self.write(b"".join(some))

    def shut(self) -> None:
        """End: what was sent arrives, what is on its way here is read, and then it is over."""
        self._sock.shutdown(_socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the descriptor."""
        self._conn = None  # which refers to this
        self._sock.detach()
        self._held = self._part = b""


class SCTPConnection(Connection):
    """A connection of SCTP that keeps messages apart, on several streams.

    ``Server(address, protocol="sctp", connection_class=SCTPConnection)`` gives ``connection_recv`` one whole
    :class:`SCTPMessage` after the other, ``connect(address, protocol="sctp", connection_class=SCTPConnection)`` by
    ``recv``. Each ``send`` is one message. What knows no messages (``read_line``, ``splice``) raises ``TypeError``.

    A message is at most ``max_message`` bytes (the kernel's send buffer, 212,992 by default), and never empty.
    """

    __slots__ = ()

    @property
    def max_message(self) -> int:
        """How many bytes a message may have that is sent: SO_SNDBUF."""
        return min(int(self.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF)), MOST_MESSAGE)

    def send_message(
        self,
        data: Buffer | Sequence[Buffer],
        *,
        stream: int = 0,
        ppid: int = 0,
        unordered: bool = False,
        timeout: Timeout = INHERIT,
    ) -> int:
        """Send a message on one of the streams, which do not hold each other up; return how many bytes it has.

        ``ppid`` tells the peer what it is, and means nothing to SCTP. ``unordered``: it may overtake others of its
        stream. Blocks and raises as ``send`` does.

        Raises:
            LimitExceeded: it has more than ``max_message`` bytes.
            ValueError: it is empty, or ``stream`` or ``ppid`` is no number that it may be.
            ConnectionLost: the peer does not take so many streams (EINVAL).
        """
        message = self._message(data, stream, ppid, unordered)
        super().send(message, False, timeout)
        return len(message) - HEAD.size

    def recv_message(self, *, timeout: Timeout = INHERIT) -> SCTPMessage | None:
        """Return the next message; None at the end of input. Raises as ``recv`` does."""
        head = super().read_exactly(HEAD.size, timeout=timeout)
        if head is None:
            return None
        _, stream, flags, ppid, size = HEAD.unpack(head)
        # There with its head: the transport gives both at once.
        data = super().read_exactly(size, timeout=timeout)
        return SCTPMessage(data or b"", stream, ppid, bool(flags & SCTP_UNORDERED))

    def _message(self, data: Buffer | Sequence[Buffer], stream: int, ppid: int, unordered: bool) -> bytes:
        views, size = as_views(data)
        if not size:
            raise ValueError("data: a message of at least one byte expected")
        for name, value, most in (("stream", stream, 65535), ("ppid", ppid, 2**32 - 1)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise ValueError(f"{name}={value!r}: a whole number from 0 to {most} expected")
        if size > (limit := self.max_message):
            raise LimitExceeded(f"a message of {size} bytes: at most {limit} allowed", self, "max_message", limit)
        joined = b"".join(views)
        return head_of(joined, stream, ppid, unordered) + joined

    # -- what is told of bytes elsewhere, of messages here

    def send(self, data: Buffer | Sequence[Buffer], close: bool = False, timeout: Timeout = INHERIT) -> int:
        """Send a message on stream 0; return how many bytes it has."""
        if not as_views(data)[1]:
            return super().send(b"", close, timeout)
        message = self._message(data, 0, 0, False)
        super().send(message, close, timeout)
        return len(message) - HEAD.size

    def send_soon(self, data: bytes, timeout: Timeout = INHERIT) -> None:
        """Send a message on stream 0, now."""
        self.send(data, False, timeout)

    def send_nowait(self, data: Buffer | Sequence[Buffer]) -> None:
        """Send a message on stream 0 without waiting, as of any connection."""
        super().send_nowait(self._message(data, 0, 0, False))

    def recv(self, max_bytes: int | None = None, timeout: Timeout = INHERIT) -> bytes:
        """Return the next message, whole, whatever ``max_bytes`` says; ``b""`` at the end of input."""
        return self.recv_message(timeout=timeout) or b""

    def __iter__(self) -> Iterator[bytes]:
        """Go through the messages until the end of input."""
        while (message := self.recv_message()) is not None:
            yield message

    def _no_bytes(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse what knows no messages."""
        raise TypeError("this connection keeps messages apart: send_message and recv_message expected")

    recv_into = read_exactly = read_until = read_line = unread = send_file = splice = _no_bytes


def prepare_sctp(sock: _socket.socket) -> None:
    """Ask for streams, before a socket listens or connects."""
    sock.setsockopt(IPPROTO_SCTP, SCTP_INITMSG, _INIT.pack(STREAMS, STREAMS, 0, 0))


def tune_sctp(sock: _socket.socket, no_delay: bool) -> None:
    """Set whether small messages go out at once."""
    sock.setsockopt(IPPROTO_SCTP, SCTP_NODELAY, int(no_delay))


def explain_sctp(error: OSError) -> OSError:
    """Return what the system said of SCTP, with what is missing where that is why."""
    if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
        text = "this kernel has no SCTP: its module sctp expected (CONFIG_IP_SCTP; modprobe sctp)"
        return OSError(error.errno, text)
    if error.errno == errno.ENOSYS:
        text = "SCTP has no hash for its cookies: the kernel's modules hmac, md5 and sha1 expected, loaded before sctp"
        return OSError(error.errno, text)
    return error
