"""TLS on a connection: the transport that encrypts and decrypts, by OpenSSL, in memory.

All connections of one hub use one pair of BIOs (:class:`Bios`), through which OpenSSL gets what came and gives what is
to go out: a pair for each would take 2.5 kB more of an idle connection, and never shrinks (39 kB after one full record,
measured). So nothing here may switch to another greenlet between a feed and the drain behind it: what is fed is
decrypted at once, all of it, and what comes of it taken out at once. After any error both are emptied.

Invariants:

- What was encrypted must go out, in its order: record numbers count. What the kernel does not take of it stays
  ``pending``, and the sender is told that so many bytes less were taken (``_owed``), but for the first, so that its
  entry counts as begun and is not withdrawn (test_the_rest_of_a_short_write_cannot_be_withdrawn).
- What was decrypted and not asked for is ``_held``; a read that returns fewer bytes than it was asked for has found the
  socket empty. Where there is something behind those bytes (an end, an error) ``_thorough`` of the connection is set:
  then a short read does not mean empty.
- An end is one that the peer said (close_notify). One that it did not is :class:`ConnectionTruncated`.
- The tickets of TLS 1.3 that a server gives go out with its first bytes: alone they could meet a client that has sent
  all it had and left, and the reset would destroy what it sent (and they would cost a system call).
"""

from __future__ import annotations

import errno
import os
import socket as _socket
import ssl
from typing import TYPE_CHECKING, Any

from greensock.core.syscalls import borrow_socket, has_input, read, write
from greensock.core.transport import Sealing, SharedDescriptor
from greensock.errors import DropReason
from greensock.tls import Sessions, TLSInfo

if TYPE_CHECKING:
    from greensock.core.lifecycle import Lifecycle
    from greensock.core.poller import Poller

__all__ = ["Bios", "Encrypted", "Truncated"]

#: Bytes of a record, at the most (RFC 8446 section 5.1), and what it may take on the wire beyond that.
RECORD, ROOM = 16384, 512
#: Bytes that are read at once at the most, and encrypted before they are written.
MOST_READ, MOST_WRITTEN = 1 << 17, 1 << 16
#: Reads in a row that brought no data: tickets, key updates, parts of a record. Then others have their turn; more than
#: ``MOST_READ`` bytes of them are an attack.
MOST_EMPTY = 64
#: Bytes that may wait to be sent of what is no data: answers to key updates.
MOST_PENDING = 1 << 17


class Truncated(OSError):
    """The input ended, and the peer did not say so."""

    drop_reason = DropReason.TRUNCATED

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the input ended without close_notify")


class Bios:
    """What OpenSSL reads from and writes to, of one hub."""

    __slots__ = ("incoming", "outgoing")

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()

    def empty(self) -> None:
        """Forget what is in them: after an error they hold what nobody reads."""
        self.incoming.read()
        self.outgoing.read()

    @classmethod
    def of(cls, poller: Poller) -> Bios:
        """Return those of a hub."""
        found: Bios | None = poller.bios
        if found is None:
            found = poller.bios = cls()
        return found


class Encrypted(Sealing):
    """A connection's TLS, from before its handshake on."""

    __slots__ = (
        "_at",
        "_bios",
        "_conn",
        "_failure",
        "_fd",
        "_held",
        "_late",
        "_object",
        "_over",
        "_owed",
        "_quiet_since",
        "_said",
        "_sessions",
        "_shared",
        "_simple",
        "_speaker",
    )

    def __init__(self, conn: Lifecycle) -> None:
        super().__init__()
        self._conn: Any = conn
        self._fd = conn._fd
        self._bios = Bios.of(conn._poller)
        self._object: Any = None  # an ssl.SSLObject, and what it calls: that saves a call of Python for each of ours
        self._speaker: Any = None
        self._simple = False  # established; nothing is held, over, broken or shared: the common case of a read
        self._held = b""
        self._at = 0
        self._late = b""  # tickets, which go out with the first data
        self._owed = 0  # bytes that are encrypted, and for which the sender was not told yet that they were taken
        self._over = False  # the peer said that nothing more comes
        self._said = False  # we did
        self._failure: Exception | None = None
        self._shared: SharedDescriptor | None = None
        self._quiet_since = -1  # the bytes that were sent when the process forked
        self._sessions: Sessions | None = None  # where a client's session is kept

    # -- the handshake

    @property
    def is_begun(self) -> bool:
        """Whether the handshake has begun."""
        return self._object is not None

    def begin(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        server_hostname: str | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        """Make what speaks TLS; a client goes on with one of the sessions, and adds its own.

        Raises:
            ValueError: ``server_hostname`` is none.
        """
        bios, session = self._bios, None if sessions is None else sessions.take()
        self._object = context.wrap_bio(bios.incoming, bios.outgoing, server_side, server_hostname, session)
        self._sessions = sessions
        self._speaker = getattr(self._object, "_sslobj", self._object)

    def shake(self, data: bytes) -> bool:
        """Go on with the handshake, with what came; True: it is done, and the connection can be used.

        Raises:
            ssl.SSLError: it failed; the peer was told why, as far as that was possible at once.
            OSError: the connection is broken.
        """
        bios, found = self._bios, self._object
        if data:
            bios.incoming.write(data)
        try:
            found.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except BaseException:
            self._send_last()
            raise
        out = bios.outgoing.read()
        if done:
            self.info = TLSInfo(found, getattr(found, "greensock_name", None) or found.server_hostname)
            if out and found.server_side and found.version() == "TLSv1.3":
                self._late, out = out, b""
        if out:
            self.pending += out
            self._flush_softly()
        if done and bios.incoming.pending:
            # What came behind it, all of it.
            self._held = self._decrypt(b"")
        if done:
            if self._sessions is not None and (found.version() == "TLSv1.2" or self._held):
                self._keep_session()
            # Where a session is to be kept, the first read goes the long way: the ticket comes with it.
            self._simple = not self.has_held and self._shared is None and self._sessions is None
        return done

    def _keep_session(self) -> None:
        """Keep the session for the next connection to the same place."""
        sessions, self._sessions = self._sessions, None
        if sessions is not None and sessions.are_to_have(bool(self._object.session_reused)):
            sessions.keep(self._object.session)

    @property
    def has_held(self) -> bool:
        """Whether something was decrypted, or found, that nobody has asked for yet."""
        return bool(self._held) or self._over or self._failure is not None

    def give_up(self) -> None:
        """Speak no TLS any more: what comes is dropped."""
        self._object = self._speaker = None
        self._simple = False
        self._said = True

    def say_plainly(self, data: bytes) -> None:
        """Send something as it is, as far as the kernel takes it: to a peer that speaks no TLS."""
        try:
            self._write(data)
        except OSError:
            pass

    def serve(self, conn: Lifecycle) -> None:
        """Be the transport of another connection, which has the descriptor from now on."""
        self._conn = conn

    # -- receiving

    def read(self, size: int) -> bytes:
        """Return what is there."""
        data: bytes = b""
        if self._simple:
            want = size + ROOM if size < MOST_READ else MOST_READ
            raw = read(self._fd, want)
            if not raw:
                raise Truncated
            data = self._decrypt(raw)
            if self._over:
                self._simple = False
                if data:
                    self._conn._thorough = True
            elif self._failure is None and (not data or len(raw) == want):
                data = self._receive(size, data)
        elif self._held:
            return self._read_held(size)
        else:
            data = self._receive(size, data)
        if len(data) <= size:
            return data
        self._held, self._at = data, size
        self._simple = False
        return data[:size]

    def readv(self, view: memoryview) -> int:
        """Fill ``view`` with what is there."""
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _read_held(self, size: int) -> bytes:
        held, end = self._held, self._at + size
        if end < len(held):
            data, self._at = held[self._at : end], end
            return data
        data = held[self._at :] if self._at else held
        self._held, self._at = b"", 0
        self._simple = self._failure is None and not self._over and self._shared is None
        if len(data) == size:
            return data
        # Fewer would say that nothing more is there: so the kernel is asked.
        try:
            more = self._receive(size - len(data), b"")
        except BlockingIOError:
            return data
        except OSError as error:
            self._break(error)
            more = b""
        if not more:
            self._conn._thorough = True
            return data
        data += more
        if len(data) > size:
            self._held, self._at = data, size
            self._simple = False
            data = data[:size]
        return data

    def _break(self, error: Exception) -> None:
        """Have the next read raise, and see to it that there is one."""
        self._failure = error.with_traceback(None)
        self._simple = False
        self._conn._thorough = True

    def _receive(self, size: int, data: bytes) -> bytes:
        """Return what came, decrypted, behind ``data``: of one read or of as many as bring ``size`` bytes, or more."""
        if self._failure is not None:
            raise self._failure
        if self._over or self._object is None:
            return b"" if self._over else self.read_raw(size)
        want, count = size + ROOM if size < MOST_READ else MOST_READ, 0
        for _ in range(MOST_EMPTY):
            try:
                raw = self.read_raw(want)
                if not raw:
                    raise Truncated
                count += len(raw)
                piece = self._decrypt(raw)
            except BlockingIOError:
                if data:
                    return data
                raise
            except OSError as error:
                if not data:
                    raise
                self._break(error)
                return data
            if piece:
                if self._sessions is not None:
                    self._keep_session()
                    self._simple = self._failure is None and not self._over and self._shared is None
                data = data + piece if data else piece
            if self._over:
                self._simple = False
                if data:
                    self._conn._thorough = True
                return data
            # A short read has emptied the socket. Without data it is not taken for that: the kernel is asked once more.
            if data and (len(raw) < want or len(data) >= size):
                return data
        if data:
            self._conn._thorough = True
            return data
        if count > MOST_READ:
            raise OSError(errno.EPROTO, "too much came that is no data")
        # A record that comes in many pieces: others have their turn, and then the rest is read
        # (test_a_record_in_many_pieces).
        self._conn._poller.call_soon(self._tell_again)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def read_raw(self, size: int) -> bytes:
        """Return what came, as it is."""
        shared = self._shared
        return read(self._fd, size) if shared is None else shared.read(size)

    def _decrypt(self, raw: bytes) -> bytes:
        """Feed what came, and return all that can be read of it now."""
        bios, found = self._bios, self._speaker
        incoming = bios.incoming
        if raw:
            incoming.write(raw)
        data: bytes = b""
        try:
            data = found.read(RECORD)
            if self.partial:
                self.partial = 0
            if data and (incoming.pending or found.pending()):
                pieces = [data]
                try:
                    while incoming.pending or found.pending():
                        data = found.read(RECORD)
                        if not data:
                            break
                        pieces.append(data)
                    else:
                        data = b"".join(pieces)
                except ssl.SSLWantReadError:
                    data = b"".join(pieces)
                    self.partial = 1
                except ssl.SSLZeroReturnError:
                    data = b""
                except OSError as error:
                    # What is in front of what is broken is sound, and given out first.
                    self._send_last()
                    self._break(error)
                    return b"".join(pieces)
                if not data:
                    self._over = True
                    data = b"".join(pieces)
            elif not data:
                self._over = True
        except ssl.SSLWantReadError:
            self.partial += len(raw)
        except ssl.SSLZeroReturnError:  # in place of b"" where we have said our end, too
            self._over = True
        except OSError:
            self._send_last()
            raise
        if self._over:
            incoming.read()  # behind its end nothing counts
        if bios.outgoing.pending:
            self._answer()
        return data

    def _answer(self) -> None:
        """Send what OpenSSL has to say of what it read."""
        self.pending += self._late + self._bios.outgoing.read()
        self._late = b""
        if len(self.pending) > MOST_PENDING:
            raise OSError(errno.EPROTO, "the peer takes no answers to what is no data")
        self._flush_softly()

    def _send_last(self) -> None:
        """Send the alert that tells the peer what was wrong, if the kernel takes it now, and empty the pair."""
        bios = self._bios
        bios.incoming.read()
        out = self.pending + self._late + bios.outgoing.read()
        self.pending = self._late = b""
        self._said = True
        if out:
            self.say_plainly(out)

    def look(self) -> bool:
        """Ask whether there is something to be read; what came that is no data, such as tickets, is taken."""
        if self.has_held:
            return True
        if not has_input(self._fd):
            return False
        try:
            self._held = self._receive(1, b"")
        except BlockingIOError:
            return False
        except OSError as error:
            self._break(error)
        self._simple = False
        conn = self._conn
        conn._readable = conn._thorough = True
        if conn._reader is not None or conn._idle:
            # The event that is on its way tells of nothing to be read any more
            # (test_a_look_takes_nothing_from_who_receives).
            conn._poller.call_soon(self._tell_again)
        return True

    def _tell_again(self) -> None:
        """Have the engine look for input as if an event had just come."""
        conn = self._conn
        if conn is not None and conn._fd >= 0:
            conn._thorough = True
            conn._poller._resume(conn)

    # -- sending

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt and send what is taken now; without data, what was taken before and not told."""
        if self.pending:
            moved = self._flush_some()
            if self.pending:
                told = min(moved, self._owed - 1)
                if told < 1:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                self._owed -= told
                return told
        if self._owed:
            owed, self._owed = self._owed, 0
            return owed
        if not data:
            return 0
        bios, found = self._bios, self._speaker
        if found is None:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        try:
            count = found.write(data if len(data) <= RECORD else memoryview(data)[:RECORD])
            if count == RECORD and len(data) > RECORD:
                view = memoryview(data)[:MOST_WRITTEN]
                while count < len(view):
                    count += found.write(view[count : count + RECORD])
        except BaseException:
            bios.empty()
            raise
        out = bios.outgoing.read()
        if self._late:
            out, self._late = self._late + out, b""
        try:
            sent = self._write(out)
        except BlockingIOError:
            sent = 0
        if sent == len(out):
            return count  # type: ignore[no-any-return]
        self.pending = out[sent:]
        if count == 1:
            self._conn._poller.call_soon(self._conn._keep_rest)
            return 1
        self._owed = min(count - 1, len(self.pending))
        return count - self._owed  # type: ignore[no-any-return]

    def writev(self, views: list[memoryview]) -> int:
        """Encrypt and send what is taken of the buffers now: short ones in one record."""
        some, size = [], 0
        for view in views:
            some.append(view)
            size += len(view)
            if size >= MOST_WRITTEN:
                break
        return self.write(b"".join(some)[:MOST_WRITTEN])

    def _write(self, data: bytes) -> int:
        shared = self._shared
        return write(self._fd, data) if shared is None else shared.write(data)

    def _flush_some(self) -> int:
        """Send what is taken of what is pending; return how many bytes."""
        try:
            moved = self._write(self.pending)
        except BlockingIOError:
            return 0
        self.pending = self.pending[moved:]
        return moved

    def flush(self) -> None:
        if self.pending:
            self._flush_some()
            if self.pending:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _flush_softly(self) -> None:
        """Send what is pending; the engine goes on with what the kernel does not take."""
        try:
            self.flush()
        except BlockingIOError:
            self._conn._poller.call_soon(self._conn._keep_rest)

    # -- the end

    def end(self) -> None:
        if not self._said:
            # Once a process has forked only one of both may say it: who went on to send.
            if self._quiet_since == self._conn.bytes_sent:
                return
            self._said = True
            try:
                self._object.unwrap()
            except OSError:  # most often SSLWantReadError: the peer has not said it yet
                pass
            self._bios.incoming.read()
            self.pending += self._late + self._bios.outgoing.read()
            self._late = b""
        self.flush()

    def shut(self) -> None:
        """Say that nothing more will be sent, by close_notify and by FIN."""
        self.end()
        with borrow_socket(self._fd, self._conn._family) as sock:
            sock.shutdown(_socket.SHUT_WR)

    def expose(self) -> None:
        if self._shared is None:
            self._shared = SharedDescriptor(self._fd, self._conn._family)
            self._simple = False

    def fork(self) -> None:
        self.is_shared = True
        self._quiet_since = self._conn.bytes_sent

    def close(self) -> None:
        """Let go of the descriptor."""
        self._conn = None  # which refers to this
        if self._sessions is not None and self.info is not None and self._failure is None:
            self._keep_session()
        if self.info is not None:
            self.info.settle()
        self._object = self._speaker = None
        self._simple = False
        self._held = self.pending = self._late = b""
        if self._shared is not None:
            self._shared.close()
