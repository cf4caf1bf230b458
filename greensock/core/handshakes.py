"""TLS handshakes of a server: in the hub, without a worker or a greenlet.

A connection that was accepted is OPENING until its handshake is done; then it gets its first turn like any other. Its
:class:`Handshake` sits in the place of its reader, so that each event of its descriptor brings a step: what came is
given to OpenSSL, and what OpenSSL says is sent. One that says nothing costs no memory of OpenSSL's. Bounds, for a
handshake in full takes 0.3 ms of the hub's time and more:

- ``STEPS`` of them are made in one pass; the others wait for the next one, behind what else there is to do.
- One has ``handshake_timeout`` seconds in all, and ``MOST_BYTES``.
- At most ``max_handshakes`` are unfinished. Who comes then takes the place of the oldest: that has had its time, where
  to refuse those who come would leave the server to those who keep silent.

What fails is counted by its reason, and told by ``handshake_failed``.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from greensock.core.encrypted import Encrypted
from greensock.core.lifecycle import CLOSED, OPEN, OPENING
from greensock.core.poller import TIMED_OUT, Poller
from greensock.errors import DropReason, HandshakeFailed
from greensock.tls import handshake_error

if TYPE_CHECKING:
    import ssl

__all__ = ["Handshakes"]

log = logging.getLogger("greensock.server")

#: Steps that one pass of the loop makes at the most, of which each may take 0.3 ms (an RSA key of 4096 bits: 4).
STEPS = 4
#: Bytes that are read at once, and in all, of a handshake: certificates of clients are the longest part.
READ, MOST_BYTES = 16384, 1 << 17
#: What a record begins with that is part of a handshake (RFC 8446 section 5.1).
HANDSHAKE_RECORD = 0x16
#: Bytes that the first message of a handshake may have, with its records.
MOST_HELLO = 18432
#: The alert of that name, fatal, as a record (RFC 8446 section 6).
UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
#: How plain HTTP begins.
METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI ")


class Handshakes:
    """The handshakes of one server."""

    def __init__(
        self,
        poller: Poller,
        context: Callable[[], ssl.SSLContext],
        timeout: float | None,
        most: int,
        begun: Callable[[Any], None],
        answer_to: Callable[[Any, bytes], bytes],
        take_preface: Callable[[Any, bytes], int | None] | None,
    ) -> None:
        """``begun(conn)`` is called for each that succeeds. ``answer_to(conn, data)`` is what one is told that speaks
        no TLS. ``take_preface(conn, data)`` says how many bytes in front of the handshake are not TLS, None: more must
        come first; it may raise ``ValueError``."""
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.context = context
        self.begun = begun
        self.answer_to = answer_to
        self.take_preface = take_preface
        self.poller = poller
        self._timeout = timeout
        self._most = most
        self._unfinished: OrderedDict[Any, Handshake] = OrderedDict()
        self._waiting: deque[Handshake] = deque()
        self._pass = -1.0
        self._steps = 0

    def __len__(self) -> int:
        """How many are unfinished."""
        return len(self._unfinished)

    def begin(self, conn: Any) -> None:
        """Begin with a connection that was accepted, before the engine watches it."""
        if len(self._unfinished) >= self._most:
            oldest = next(iter(self._unfinished.values()))
            oldest.fail(f"{self._most} others are not done either: at most max_handshakes allowed", "crowded_out")
        transport = Encrypted(conn)
        conn._transport = transport
        conn._clear = False
        conn._state = OPENING
        conn._idle = True  # so that it gets a turn in which its end is told
        conn._reader = self._unfinished[conn] = Handshake(self, conn, transport)
        if self._timeout is not None:
            conn._read_deadline = due = monotonic() + self._timeout
            self.poller.arm(conn, due)

    def forget(self, conn: Any) -> None:
        """Be told that one is over."""
        self._unfinished.pop(conn, None)

    def look(self, handshake: Handshake) -> None:
        """Have it make a step, in this pass or in the next one."""
        if self._pass != self.poller.until:
            self._pass, self._steps = self.poller.until, 0
        if self._steps >= STEPS or self._waiting:
            self.queue(handshake)
        else:
            self._steps += 1
            handshake.step()

    def queue(self, handshake: Handshake) -> None:
        """Have it make a step behind all that wait."""
        if not handshake.waits:
            handshake.waits = True
            self._waiting.append(handshake)
            if len(self._waiting) == 1:
                self.poller.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._pass, self._steps = self.poller.until, STEPS
        waiting = self._waiting
        try:
            for _ in range(min(STEPS, len(waiting))):
                handshake = waiting.popleft()
                handshake.waits = False
                handshake.step()
        finally:
            if waiting:
                self.poller.call_soon(self._go_on)


class Handshake:
    """One that is not done, in the place of its connection's reader."""

    __slots__ = ("_conn", "_has_started", "_needed", "_of", "_read", "_start", "_transport", "waits")

    def __init__(self, of: Handshakes, conn: Any, transport: Encrypted) -> None:
        self._of = of
        self._conn = conn
        self._transport = transport
        self._read = 0
        self._start = b""  # what is in front of the handshake, and its first message, as far as they came
        self._needed = 0  # how many bytes of that message must be there before it is looked at again
        self._has_started = of.take_preface is None  # what is in front is taken off
        #: Whether a step of it is due.
        self.waits = False

    def switch(self, *value: Any) -> None:
        """Take a step, or note that its time is over. In the hub; does not raise."""
        if self._conn._state is not OPENING:
            self._of.failed["stopped"] += 1
            self._leave()
        elif value and value[0] is TIMED_OUT:
            self.fail("it took too long: handshake_timeout is over", "timeout")
        else:
            self._of.look(self)

    def step(self) -> None:
        """Read what came and answer it."""
        conn, transport = self._conn, self._transport
        if conn is None or conn._state is not OPENING:
            return
        try:
            if transport.pending:
                transport.flush()
            data = transport.read_raw(READ)
        except BlockingIOError:
            conn._found_empty()
            return
        except OSError as error:
            self._fail(HandshakeFailed(f"the TLS handshake failed: {error.strerror}", conn, reason="cut"), error)
            return
        if len(data) < READ and not conn._thorough:
            conn._readable = False
        if not data:
            conn._eof = True
            self.fail("the peer left", "cut")
            return
        self._read += len(data)
        if self._read > MOST_BYTES:
            self.fail(f"more than {MOST_BYTES} bytes came", "protocol")
            return
        if not transport.is_begun:
            found = self._begin(data)
            if found is None:
                if conn._readable and conn._state is OPENING:
                    self._of.queue(self)  # an end may have come with what is not whole yet, and is told once
                return
            data = found
        try:
            done = transport.shake(data)
        except OSError as error:
            self._fail(handshake_error(error, conn), error)
            return
        if done:
            self._leave()
            self._of.done += 1
            conn._state = OPEN
            if transport.has_held:
                conn._readable = True
            self._of.begun(conn)
        elif conn._readable:
            self._of.queue(self)

    def _begin(self, data: bytes) -> bytes | None:
        """Take what stands in front of the handshake, and look whether it is one; None: it is not, or not yet."""
        conn, of = self._conn, self._of
        data = self._start + data
        if not self._has_started:
            assert of.take_preface is not None
            try:
                size = of.take_preface(conn, data)
            except ValueError as error:
                self.fail(str(error), "protocol")
                return None
            if size is None:
                self._start = data
                return None
            self._has_started = True
            data, self._start = data[size:], b""
        if not data:
            return None
        if data[0] != HANDSHAKE_RECORD:
            is_http = data.startswith(METHODS)
            self._transport.say_plainly(of.answer_to(conn, data))
            self.fail(
                f"the peer speaks plain {'HTTP' if is_http else 'text'}", "plain_http" if is_http else "plain_text"
            )
            return None
        # Looked at before OpenSSL does: of a name that is not ASCII Python tells standard error, for each such client
        # (test_a_name_that_is_not_ascii).
        if len(data) < self._needed:
            self._start = data
            return None
        name, self._needed = asked_name(data)
        if self._needed > len(data):
            if self._needed > MOST_HELLO:
                self.fail(f"its first message has more than {MOST_HELLO} bytes", "protocol")
            self._start = data
            return None
        if not name.isascii():
            self._transport.say_plainly(UNRECOGNIZED_NAME)
            self.fail(f"it asks for the name {name!r}", "name")
            return None
        self._start = b""
        try:
            self._transport.begin(of.context(), True)
        except (OSError, ValueError) as error:
            self._fail(handshake_error(error, conn), error)
            return None
        return data

    def fail(self, why: str, reason: str) -> None:
        """End it and its connection."""
        self._fail(HandshakeFailed(f"the TLS handshake failed: {why}", self._conn, reason=reason), None)

    def _fail(self, failed: HandshakeFailed, error: OSError | ValueError | None) -> None:
        conn = self._conn
        self._of.failed[failed.reason] += 1
        log.debug("%s (%s) from %s", failed, failed.reason, conn.address)
        failed.__cause__ = error and error.with_traceback(None)
        self._leave()
        self._transport.give_up()
        conn._failure = failed
        if failed.reason in ("timeout", "crowded_out", "cut"):
            # Nothing was said that could be lost on its way.
            conn._leave_open(CLOSED, DropReason.HANDSHAKE)
            conn._release()
        else:
            conn._state = OPEN
            conn._close(DropReason.HANDSHAKE)

    def _leave(self) -> None:
        conn = self._conn
        self._of.forget(conn)
        if conn._reader is self:
            conn._reader = None
            conn._read_deadline = inf


def asked_name(data: bytes) -> tuple[bytes, int]:
    """Return the name that the ClientHello in these records asks for, and how many bytes it takes to know.

    If that is more than are there, it is not whole; what is no ClientHello asks for nothing, and OpenSSL says what is
    wrong with it. (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3.)
    """
    message, at = b"", 0
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big"):
        if len(data) < at + 5:
            return b"", at + 5
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at] != HANDSHAKE_RECORD or not size or (message and message[0] != 1):
            return b"", 0
        if len(data) < at + 5 + size:
            return b"", at + 5 + size
        message += data[at + 5 : at + 5 + size]
        at += 5 + size
    if message[0] != 1:
        return b"", 0
    at = 4 + 2 + 32
    for width in (1, 2, 1):  # session, cipher suites, compression
        at += width + int.from_bytes(message[at : at + width], "big")
    end = at + 2 + int.from_bytes(message[at : at + 2], "big")
    at += 2
    while at + 4 <= min(end, len(message)):
        size = int.from_bytes(message[at + 2 : at + 4], "big")
        if message[at : at + 2] == b"\0\0":
            return message[at + 9 : at + 9 + int.from_bytes(message[at + 7 : at + 9], "big")], 0
        at += 4 + size
    return b"", 0
