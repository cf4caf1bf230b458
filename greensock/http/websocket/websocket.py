"""The WebSocket: its downcalls, and what it does with what comes.

It stands on a connection, a server's or a client's, and is used in one of two styles: a server with upcalls gives what
came to ``take``, and messages go to ``websocket_message``; or a greenlet blocks in ``receive``. States::

    CONNECTING --accept--> OPEN --close, or a drain--> CLOSING --the peer's close, its FIN, a deadline--> CLOSED
                             `-----the peer's close, its FIN, a fault of either side, a lost connection----'

Invariants:

- At rest it holds no greenlet, no reader and nothing of zlib's, and its connection no more than any.
- A short message that came by itself takes the *flat way* in ``take``: one frame, whole and alone. All else goes to
  ``FrameReader``, which takes the same in the same sense.
- Each close frame is sent once. No message is given out once either side has begun to close, nor sent.
- ``close``, ``ping`` and ``send_nowait`` never block. What is kept of theirs, and of answers to pings, is bounded by
  ``max_send_queue``: a peer beyond that is dropped.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Protocol

import gevent

from greensock import (
    Connection,
    ConnectionBusy,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    OperationTimeout,
    State,
    WouldBlock,
    let_others_run,
)
from greensock.http.websocket.deflate import Agreement, Deflater, Inflater, shared_deflater
from greensock.http.websocket.frames import (
    BINARY,
    CLOSE,
    COMPRESSED,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    BadFrame,
    FrameReader,
    close_payload,
    masked,
    write_frame,
)
from greensock.http.websocket.websocket_options import WebSocketOptions

__all__ = ["WebSocket", "WebSocketClosed", "WebSocketOwner", "WebSocketState"]

#: Up to so many bytes a frame goes out with those of others, at the end of a pass of the loop.
SOON = 16384
#: Codes of a close: an end in good order, a side that goes away, none in the frame, no frame, a failure of ours.
NORMAL, GOING_AWAY, NO_CODE, ABNORMAL, FAILED = 1000, 1001, 1005, 1006, 1011
#: The longest ping.
MAX_PING = 125

_TEXT_FRAME, _BINARY_FRAME = FIN | TEXT, FIN | BINARY
_number = int.from_bytes


class WebSocketState(enum.Enum):
    """Where a WebSocket is in its life."""

    #: The server has not accepted it yet.
    CONNECTING = "connecting"
    #: Messages go both ways.
    OPEN = "open"
    #: We have sent a close, and the peer has not answered it.
    CLOSING = "closing"
    #: It is over.
    CLOSED = "closed"


# A member of an enum is looked up through a descriptor before Python 3.12.
CONNECTING, OPEN, CLOSING, CLOSED = (
    WebSocketState.CONNECTING,
    WebSocketState.OPEN,
    WebSocketState.CLOSING,
    WebSocketState.CLOSED,
)


class WebSocketClosed(ConnectionClosed):
    """The WebSocket is closed, or its connection is lost; ``code`` and ``text`` are what the peer said, or 1006."""

    def __init__(self, message: str, connection: Any, code: int, text: str) -> None:
        super().__init__(message, connection, getattr(connection, "drop_reason", None))
        self.code = code
        self.text = text


class WebSocketOwner(Protocol):
    """What a WebSocket needs of who made it."""

    #: Called with each message in the style of upcalls.
    on_websocket_message: Callable[[Any, Any], object]

    def websocket_ended(self, websocket: WebSocket) -> None:
        """Its connection is closed, or about to be. Must neither block nor raise."""


class WebSocket:
    """One WebSocket. A server makes it and hands it to the upcalls; your own attributes can be set on it.

    Messages are ``str`` (text) or ``bytes`` (binary). What raises because it is over raises :class:`WebSocketClosed`.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_agreement",
        "_code",
        "_deflater",
        "_finisher",
        "_heard",
        "_inflater",
        "_is_client",
        "_is_received",
        "_on_accept",
        "_owner",
        "_pinged_at",
        "_reader",
        "_reason",
        "_silent_since",
        "_state",
        "connection",
        "options",
        "round_trip",
        "subprotocol",
    )

    def __init__(
        self,
        connection: Connection,
        options: WebSocketOptions,
        owner: WebSocketOwner,
        agreement: Agreement | None = None,
        accept: Callable[[WebSocket, Any], bytes] | None = None,
        is_client: bool = False,
    ) -> None:
        #: The connection it stands on.
        self.connection = connection
        #: Its limits, :class:`WebSocketOptions`.
        self.options = options
        #: What was agreed on; None: nothing. It may be chosen in ``websocket_open``, of what the client offered.
        self.subprotocol: str | None = None
        #: Seconds that the last ping took to be answered; None if none was.
        self.round_trip: float | None = None
        self._owner = owner
        self._agreement = agreement
        self._deflater: Deflater | None = None
        self._inflater: Inflater | None = None
        self._reader: FrameReader | None = None
        self._on_accept = accept
        self._state = OPEN if accept is None else CONNECTING
        self._is_client = is_client
        self._code = 0  # why it closes, as the peer said it or we failed; 0: nobody has said
        self._reason = ""
        self._is_received = False  # a greenlet waits in ``receive``
        self._finisher: gevent.Greenlet[..., None] | None = None
        self._heard = -1
        self._silent_since = self._pinged_at = 0.0

    # -- looking at it

    @property
    def state(self) -> WebSocketState:
        """CONNECTING, OPEN, CLOSING or CLOSED."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._state is OPEN and self.connection.state is State.OPEN

    @property
    def close_code(self) -> int | None:
        """What the peer closed with, 1005 if it said no code; or what we failed it with; or 1006; None: still open."""
        if self._state is not CLOSED and self.connection.state is State.OPEN:
            return None
        return self._code or ABNORMAL

    @property
    def close_reason(self) -> str:
        """The words to ``close_code``; often empty."""
        return self._reason

    @property
    def is_compressed(self) -> bool:
        """Whether permessage-deflate was agreed on."""
        return self._agreement is not None

    @property
    def client_address(self) -> Any:
        """The peer's socket address: ``(host, port)``."""
        return self.connection.address

    # -- the downcalls

    def accept(self, headers: Any = ()) -> None:
        """Answer the request now, in ``websocket_open``; ``headers`` are fields of the answer. It is open then.

        Else it is answered when ``websocket_open`` returns, or with the first message that it sends or receives.

        Raises:
            RuntimeError: it was accepted before.
            ValueError: ``subprotocol`` is none that the client offered; or a field that would split the answer.
        """
        accept = self._on_accept
        if accept is None or self._state is not CONNECTING:
            raise RuntimeError(f"accept: it is {self._state.value} already")
        rest = accept(self, headers)
        self._on_accept = None
        self._state = OPEN
        if rest:
            self._reader = self._new_reader()
            self._reader.feed(rest)

    def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """Send a message; blocks while the peer is slow, as ``Connection.send`` does.

        Raises:
            WebSocketClosed: it is closed, or the peer has gone.
            OperationTimeout: the peer took nothing for ``send_timeout`` seconds.
            TypeError: neither text nor bytes.
        """
        if self._state is not OPEN:
            self._need_open()
        # The order of two sends is that of their calls, also where one refers to the other in its compression: nothing
        # switches between here and the connection's queue.
        frame = self._frame(message)
        try:
            if len(frame) <= SOON:
                self.connection.send_soon(frame)
            else:
                self.connection.send(frame)
        except (ConnectionClosed, ConnectionLost) as error:
            raise self._closed_error() from error

    def send_nowait(self, message: str | bytes | bytearray | memoryview) -> bool:
        """Send without ever blocking; True if it is on its way, False if it has ended, or has just been dropped.

        What the peer does not take now is kept, up to ``max_send_queue`` bytes; one that reads more slowly is dropped
        (SLOW_READER), so that nobody waits for it. For the same message to many see ``HTTPServer.broadcast_message``.

        Raises:
            WouldBlock: the message alone is more than ``max_send_queue``: no peer is to blame.
            TypeError: neither text nor bytes.
        """
        if self._state is not OPEN:
            if self._state is not CONNECTING:
                return False
            self.accept()
        try:
            return self.push(self._frame(message))
        except WouldBlock:
            # The peer never gets what was compressed: what follows must not refer to it
            # (test_what_was_too_long_to_be_sent_is_not_referred_to).
            self._deflater = None
            raise

    def ping(self, data: bytes = b"") -> None:
        """Send a ping of at most 125 bytes; ``round_trip`` says how long its answer took. Never blocks.

        There is no need to: with ``ping_interval`` a silent peer is pinged anyway. A pong is read when the WebSocket
        is: not while its upcall runs, and in the blocking style only in ``receive``.

        Raises:
            WebSocketClosed: it is closed.
            ValueError: more than 125 bytes.
        """
        if len(data) > MAX_PING:
            raise ValueError(f"data: at most {MAX_PING} bytes expected, not {len(data)}")
        if self._state is not OPEN:
            self._need_open()
        self._pinged_at = monotonic()
        if not self.push(write_frame(FIN | PING, data, self._is_client)):
            raise self._closed_error()

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Begin to close; never blocks. The connection ends when the peer has answered, or ``close_timeout`` is over.

        Messages that still come are dropped. To close what is closing or closed does nothing.

        Raises:
            ValueError: a code that may not be sent (1000 to 1003, 1007 to 1014 and 3000 to 4999 may), or a reason of
                more than 123 bytes in UTF-8.
        """
        payload = close_payload(code, reason)
        if self._state is CONNECTING:
            self.accept()
        if self._state is not OPEN:
            return
        self._state = CLOSING
        if not self.push(write_frame(FIN | CLOSE, payload, self._is_client)):
            return
        self.connection.set_deadline(self.options.close_timeout)
        # A server's connection gets a turn when the answer comes; of a client's somebody has to receive it.
        if self._is_client and not self._is_received and self._finisher is None:
            self._finisher = gevent.spawn(self._finish)

    def abort(self) -> None:
        """End it at once, without a word: the peer sees a reset."""
        self._state = CLOSED
        self.connection.abort()
        self._owner.websocket_ended(self)

    def wait_closed(self, timeout: float | None = None) -> None:
        """Block until its connection is closed; somebody has to receive meanwhile (``for message in ws``, upcalls).

        Raises:
            OperationTimeout: ``timeout`` seconds passed first.
        """
        self.connection.wait_closed(timeout)

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the next message, waiting for it; for the blocking style. One greenlet at a time.

        Raises:
            WebSocketClosed: it is over, be it in good order or not.
            OperationTimeout: ``timeout`` seconds passed first; the WebSocket stays usable.
        """
        if self._state is CONNECTING:
            self.accept()
        due = None if timeout is None else monotonic() + timeout
        while True:
            message: str | bytes | None = None
            if self._reader is not None or self._state is not OPEN:
                message = self._next_message()
                if message is not None:
                    return message
            if self._finisher is not None and self._finisher is not gevent.getcurrent():
                self._finisher.join()
                self._finisher = None  # it may have been killed (test_a_close_whose_greenlet_was_killed)
                continue
            self._is_received = True
            try:
                data = self.connection.recv(timeout=None if due is None else max(0.0, due - monotonic()))
            except OperationTimeout:
                text = f"no message came for {timeout} s"
                raise OperationTimeout(text, self.connection, "recv", timeout or 0.0) from None
            except (ConnectionClosed, ConnectionLost) as error:
                self._end()
                raise self._closed_error() from error
            finally:
                self._is_received = False
            if not data:
                self.take_eof()
                continue
            if self._reader is None:
                if self._state is OPEN and (message := self._flat(data)) is not None:
                    return message
                self._reader = self._new_reader()
            self._reader.feed(data)

    def __iter__(self) -> Iterator[str | bytes]:
        """Go through the messages until it is over; ``close_code`` says how it ended."""
        while True:
            try:
                message = self.receive()
            except WebSocketClosed:
                return
            yield message

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *error: object) -> None:
        """Close it: with 1000, or with 1011 if an error comes through. A client waits for the server's answer."""
        if self._state is CONNECTING:
            return
        self.close(NORMAL if error[0] is None else FAILED)
        if self._finisher is not None:
            self._finisher.join()

    # -- what comes

    def take(self, data: bytes) -> None:
        """Take what came on the connection, and make the upcalls. In the connection's turn."""
        if self._reader is None:
            # The flat way: most often it is one short message, whole, and nothing else
            # (test_the_flat_way_takes_what_the_reader_takes).
            size = len(data) - 6
            if 0 <= size <= self.options.short and data[1] == size | 0x80:
                first = data[0]
                if first == _TEXT_FRAME or first == _BINARY_FRAME:  # noqa: SIM109  # a tuple is dearer
                    message: Any = (
                        _number(data[6:], "little") ^ _number((data[2:6] * (size // 4 + 1))[:size], "little")
                    ).to_bytes(size, "little")
                    if first == _TEXT_FRAME:
                        try:
                            message = str(message, "utf-8")
                        except UnicodeDecodeError as error:
                            self._fail(1007, f"a text that is no UTF-8: {error.reason}")
                            return
                    if self._state is OPEN:
                        try:
                            self._owner.on_websocket_message(self, message)
                        except BaseException as error:
                            self.program_failed(error)
                            raise
                    if self._reader is None:
                        return
                    data = b""  # the upcall has received by itself, and there is more
            if self._reader is None:
                self._reader = self._new_reader()
        if data:
            self._reader.feed(data)
        self.take_rest()

    def take_rest(self) -> None:
        """Make the upcalls for what has come and waits in the reader."""
        began = 0.0
        while self._reader is not None:
            message = self._next_message(raising=False)
            if message is None:
                return
            try:
                self._owner.on_websocket_message(self, message)
            except BaseException as error:
                self.program_failed(error)
                raise
            # One read may hold thousands of messages, and others get their turn among them.
            began = let_others_run(began)
            if self.connection.state is not State.OPEN:
                return

    def take_eof(self) -> None:
        """The peer has closed its side without a close frame, or behind one that was answered."""
        self._end()
        self.connection.close()

    @property
    def frame_key(self) -> int:
        """Whose frames of a message are the same, for who sends it to many; -1: its own are nobody else's."""
        agreement = self._agreement
        if agreement is None:
            return 0
        return -1 if agreement.sends_on else agreement.send_bits

    def frame_of(self, message: Any) -> bytes:
        """Return the frame in which a message goes out, which must be sent at once: compression counts on it."""
        return self._frame(message)

    @property
    def held(self) -> int:
        """How many bytes of a message came, or 1 while the peer's close is waited for: a drain waits for that."""
        if self._state is CLOSING:
            return 1
        return self._reader.held if self._reader is not None else 0

    def go_away(self) -> None:
        """Say that the server is about to stop. Does not block."""
        if self._state is OPEN:
            self.close(GOING_AWAY)

    def ended(self) -> None:
        """Its connection has ended."""
        self._end()

    def program_failed(self, error: BaseException) -> None:
        """Tell the peer that the program has raised, unless that was for its own end. The caller closes."""
        mine = getattr(error, "connection", None) is self.connection
        if not (mine and isinstance(error, ConnectionClosed | ConnectionLost)):
            self._say_failed(FAILED, "")

    def push(self, frame: bytes) -> bool:
        """Send a frame without blocking; False if it has ended, or is dropped as it reads too slowly."""
        conn = self.connection
        try:
            conn.send_nowait(frame)
        except WouldBlock:
            if len(frame) > conn.max_send_queue:
                raise
            # The server's way to drop a slow reader says why; a client's connection has no server.
            if conn.server is not None and conn.server.broadcast(frame, [conn]):
                return True
            conn.abort()
            self._end()
            return False
        except (ConnectionClosed, ConnectionLost):
            self._end()
            return False
        return True

    # -- in detail

    def _flat(self, data: bytes) -> str | bytes | None:
        """Return the message if it is short and sound, whole, and all of what came, as in ``take``; else None."""
        head = 2 if self._is_client else 6
        size = len(data) - head
        if not 0 <= size <= self.options.short or data[1] != (size if head == 2 else size | 0x80):
            return None
        first = data[0]
        if first not in (_TEXT_FRAME, _BINARY_FRAME):
            return None
        message = data[head:]
        if head == 6:
            message = masked(message, data[2:6])
        if first == _BINARY_FRAME:
            return message
        try:
            return str(message, "utf-8")
        except UnicodeDecodeError:
            return None

    def _next_message(self, raising: bool = True) -> Any:
        """Return the next message of what has come; None if there is none. Pings and closes are answered on the way.

        Raises:
            WebSocketClosed: it is over, if ``raising``.
        """
        began = 0.0
        while True:
            reader = self._reader
            if self._state is CLOSED or self.connection.state is not State.OPEN:
                self._reader = None
                self._end()
                if raising:
                    raise self._closed_error()
                return None
            if reader is None:
                return None
            try:
                event = reader.next_event()
            except BadFrame as bad:
                self._fail(bad.code, str(bad))
                continue
            if event is None:
                if reader.is_at_rest:
                    self._reader = None
                return None
            kind, what = event
            if kind in (TEXT, BINARY):
                if self._state is OPEN:
                    return what
            elif kind == CONTINUATION:
                pass
            elif kind == PING:
                if self._state is OPEN:
                    self.push(write_frame(FIN | PONG, what, self._is_client))
            elif kind == PONG:
                if self._pinged_at:
                    self.round_trip = monotonic() - self._pinged_at
                    self._pinged_at = 0.0
            else:
                self._peer_closes(*what)
            # One read may hold thousands of these, too (test_a_flood_of_what_is_no_message_leaves_others_their_turn).
            began = let_others_run(began)

    def _peer_closes(self, code: int, reason: str) -> None:
        """Answer the peer's close, or take it as the answer to ours (section 5.5.1)."""
        self._code, self._reason = code, reason
        if self._state is OPEN:
            payload = b"" if code == NO_CODE else close_payload(code)
            self._state = CLOSED
            self.push(write_frame(FIN | CLOSE, payload, self._is_client))
        self._end()
        self.connection.close()

    def _fail(self, code: int, reason: str) -> None:
        """Close at once, without waiting for the peer's answer (section 7.1.7)."""
        self._say_failed(code, reason)
        self._end()
        self.connection.close()

    def _say_failed(self, code: int, reason: str) -> None:
        if self._state is OPEN:
            self._state = CLOSED
            self._code, self._reason = code, reason
            words = reason.encode("utf-8", "replace")[: MAX_PING - 2].decode("utf-8", "ignore")
            self.push(write_frame(FIN | CLOSE, close_payload(code, words), self._is_client))

    def _end(self) -> None:
        """Note that it is over, once or more often."""
        self._state = CLOSED
        self._owner.websocket_ended(self)

    def _finish(self) -> None:
        """Receive until the peer has answered our close, in a greenlet."""
        with contextlib.suppress(WebSocketClosed, ConnectionBusy):
            while True:
                self.receive()

    def _need_open(self) -> None:
        if self._state is CONNECTING:
            self.accept()
        else:
            raise self._closed_error()

    def _closed_error(self) -> WebSocketClosed:
        code = self._code or ABNORMAL
        if self._state is CLOSING:
            text = "we have begun to close the WebSocket"
        elif not self._code:
            reason = self.connection.drop_reason
            text = f"the WebSocket ended without a close: {(reason or DropReason.PEER_CLOSED).value}"
        else:
            text = f"the WebSocket is closed: {code} {self._reason}".rstrip()
        return WebSocketClosed(text, self.connection, code, self._reason)

    def _frame(self, message: Any) -> bytes:
        """Return the frame of a message."""
        if type(message) is str:
            first, payload = _TEXT_FRAME, message.encode()
        elif type(message) is bytes:
            first, payload = _BINARY_FRAME, message
        elif isinstance(message, str):
            first, payload = _TEXT_FRAME, message.encode()
        elif isinstance(message, bytes | bytearray | memoryview):
            first, payload = _BINARY_FRAME, bytes(message)
        else:
            raise TypeError(f"a message is {type(message).__name__}: str or bytes expected")
        if self._agreement is not None and len(payload) >= self.options.compress_from:
            first |= COMPRESSED
            payload = self._compressor(self._agreement).deflate(payload)
        return write_frame(first, payload, self._is_client)

    def _compressor(self, agreement: Agreement) -> Deflater:
        if agreement.sends_on:
            if self._deflater is None:
                self._deflater = Deflater(agreement.send_bits, True)
            return self._deflater
        return shared_deflater(agreement.send_bits)

    def _new_reader(self) -> FrameReader:
        agreement = self._agreement
        inflater = self._inflater
        if agreement is not None and inflater is None:
            inflater = Inflater(agreement.receive_bits, agreement.receives_on)
            if agreement.receives_on:
                self._inflater = inflater
        return FrameReader(self.options, not self._is_client, inflater)

    # -- of KeepAlive

    def _heard_so_far(self) -> int:
        return self.connection.bytes_received

    def _has_more(self) -> bool:
        return bool(self.connection.count_unread())

    def _ping_silently(self) -> None:
        if self._state is OPEN:
            self.push(write_frame(FIN | PING, b"", self._is_client))

    def _drop_silent(self) -> None:
        self._fail(FAILED, "no answer to a ping")
        self.connection.set_deadline(0.0)

    def __repr__(self) -> str:
        return f"<WebSocket {self._state.value} of {self.connection!r}>"
