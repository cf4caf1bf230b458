"""Framers: cut a stream of bytes into messages, without any I/O.

A *framer* (:class:`Lines`, :class:`Delimited`, :class:`FixedSize`, :class:`LengthPrefixed`) is a small immutable
description that a server shares among its connections. ``framer.decoder()`` makes the state of one connection:

    decoder = Lines(max_size=1024).decoder()
    decoder.feed(b"first\\r\\nsecond\\nthi")
    decoder.next_message()      # b"first"
    decoder.next_message()      # b"second"
    decoder.next_message()      # None: not enough yet
    decoder.pending             # 3

However the stream is split into pieces, the messages are the same. A message that is longer than ``max_size`` raises
:class:`~greensock.errors.MessageTooLong` as soon as that is certain, and after the messages before it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from greensock.errors import MessageTooLong

__all__ = ["Decoder", "Delimited", "FixedSize", "Framer", "LengthPrefixed", "Lines"]


class Framer:
    """The base of all framers: how the messages of a stream are told apart."""

    #: The longest message, in bytes, without its delimiter or prefix.
    max_size: int

    __slots__ = ("max_size",)

    def __init__(self, max_size: int) -> None:
        self.max_size = _at_least_1("max_size", max_size)

    def decoder(self) -> Decoder:
        """Make the decoder of one stream."""
        raise NotImplementedError

    def encode(self, message: bytes) -> bytes:
        """Return the message as it goes over the wire.

        Raises:
            ValueError: the framer cannot carry this message (ours to put right).
        """
        raise NotImplementedError

    def _fits(self, message: bytes) -> None:
        if len(message) > self.max_size:
            raise ValueError(f"message of {len(message)} bytes: at most max_size={self.max_size} allowed")


class Delimited(Framer):
    """Messages that end with ``delimiter``, which is not part of the message."""

    __slots__ = ("delimiter",)

    def __init__(self, delimiter: bytes, max_size: int = 65536) -> None:
        super().__init__(max_size)
        if not isinstance(delimiter, bytes) or not delimiter:
            raise ValueError(f"delimiter={delimiter!r}: at least one byte expected")
        self.delimiter = delimiter

    def decoder(self) -> Decoder:
        return _DelimitedDecoder(self)

    def encode(self, message: bytes) -> bytes:
        self._fits(message)
        if self.delimiter in message + self.delimiter[:-1]:
            raise ValueError(f"message {message[:40]!r} holds the delimiter {self.delimiter!r}")
        return message + self.delimiter


class Lines(Delimited):
    """Lines that end with LF or CRLF; the message is the line without its end.

    ``max_size`` counts a CR before the LF too.
    """

    __slots__ = ()

    def __init__(self, max_size: int = 65536) -> None:
        super().__init__(b"\n", max_size)

    def decoder(self) -> Decoder:
        return _LinesDecoder(self)

    def encode(self, message: bytes) -> bytes:
        if message.endswith(b"\r"):
            raise ValueError(f"message {message[-40:]!r} ends with CR, which would be read as the line's end")
        return super().encode(message)


class FixedSize(Framer):
    """Messages of exactly ``size`` bytes."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def decoder(self) -> Decoder:
        return _FixedSizeDecoder(self)

    def encode(self, message: bytes) -> bytes:
        if len(message) != self.size:
            raise ValueError(f"message of {len(message)} bytes: exactly size={self.size} expected")
        return message


class LengthPrefixed(Framer):
    """Messages after a length of 1 to 8 bytes, which does not count itself."""

    #: The longest message that a prefix of this many bytes can tell.
    LARGEST: ClassVar[dict[int, int]] = {width: int.from_bytes(b"\xff" * width, "big") for width in range(1, 9)}

    __slots__ = ("byteorder", "width")

    def __init__(self, width: int = 4, byteorder: Literal["big", "little"] = "big", max_size: int = 1 << 20) -> None:
        if width not in self.LARGEST:
            raise ValueError(f"width={width!r}: 1 to 8 bytes allowed")
        if byteorder not in ("big", "little"):
            raise ValueError(f"byteorder={byteorder!r}: 'big' or 'little' allowed")
        super().__init__(max_size)
        self.max_size = min(self.max_size, self.LARGEST[width])
        self.width = width
        self.byteorder: Literal["big", "little"] = byteorder

    def decoder(self) -> Decoder:
        return _LengthPrefixedDecoder(self)

    def encode(self, message: bytes) -> bytes:
        self._fits(message)
        return len(message).to_bytes(self.width, self.byteorder) + message


class Decoder:
    """The state of one stream: the bytes that came and were not yet given out.

    ``_buffer[_start:]`` is what is pending. It is the very ``bytes`` object that was fed while that is enough
    (no copy for the common case of whole messages), and a ``bytearray`` once a message came in pieces (no
    quadratic joining).
    """

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._start = 0

    @property
    def pending(self) -> int:
        """How many bytes are held that no message has been made of."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Add bytes that came."""
        if not self._buffer:
            self._buffer = data
            return
        self._compact()
        self._buffer += data

    def next_message(self) -> bytes | None:
        """Give out the next whole message, or None when more bytes are needed.

        Raises:
            MessageTooLong: the peer's next message is longer than ``max_size``. It is raised again if called again.
        """
        raise NotImplementedError

    def take(self) -> bytes:
        """Give out all that is pending as raw bytes, for a stream that stops being framed."""
        return self._cut(len(self._buffer), len(self._buffer))

    def _cut(self, end: int, resume: int) -> bytes:
        """Give out ``_buffer[_start:end]`` and go on at ``resume``."""
        buffer, start = self._buffer, self._start
        if resume < len(buffer):
            self._start = resume
        else:
            self._buffer, self._start = b"", 0
        if type(buffer) is bytes:
            return buffer[start:end]  # the same object if it is the whole of it
        return bytes(memoryview(buffer)[start:end])

    def _compact(self) -> None:
        """Let go of what was given out: a short tail must not hold a long buffer."""
        if isinstance(self._buffer, bytearray):
            del self._buffer[: self._start]
        elif self._buffer:
            self._buffer = bytearray(memoryview(self._buffer)[self._start :])
        self._start = 0


class _DelimitedDecoder(Decoder):
    __slots__ = ("_framer", "_searched")

    def __init__(self, framer: Delimited) -> None:
        super().__init__()
        self._framer = framer
        self._searched = 0  # bytes from _start on in which no delimiter begins

    def next_message(self) -> bytes | None:
        framer = self._framer
        start = self._start
        end = self._buffer.find(framer.delimiter, start + self._searched)
        if end < 0:
            unfinished = self.pending - len(framer.delimiter) + 1
            if unfinished > framer.max_size:
                raise _too_long(framer.max_size)
            self._searched = max(0, unfinished)
            self._compact()
            return None
        if end - start > framer.max_size:
            raise _too_long(framer.max_size)
        self._searched = 0
        return self._cut(end, end + len(framer.delimiter))

    def take(self) -> bytes:
        self._searched = 0
        return super().take()


class _LinesDecoder(_DelimitedDecoder):
    __slots__ = ()

    def next_message(self) -> bytes | None:
        line = super().next_message()
        return line[:-1] if line is not None and line.endswith(b"\r") else line


class _FixedSizeDecoder(Decoder):
    __slots__ = ("_size",)

    def __init__(self, framer: FixedSize) -> None:
        super().__init__()
        self._size = framer.size

    def next_message(self) -> bytes | None:
        end = self._start + self._size
        if end <= len(self._buffer):
            return self._cut(end, end)
        self._compact()
        return None


class _LengthPrefixedDecoder(Decoder):
    __slots__ = ("_framer",)

    def __init__(self, framer: LengthPrefixed) -> None:
        super().__init__()
        self._framer = framer

    def next_message(self) -> bytes | None:
        framer = self._framer
        body = self._start + framer.width
        if body > len(self._buffer):
            self._compact()
            return None
        length = int.from_bytes(self._buffer[self._start : body], framer.byteorder)
        if length > framer.max_size:
            raise _too_long(framer.max_size, length)
        if body + length > len(self._buffer):
            self._compact()
            return None
        self._start = body
        return self._cut(body + length, body + length)


def _at_least_1(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number of at least 1 expected")
    return value


def _too_long(limit: int, length: int | None = None) -> MessageTooLong:
    said = f"a message of {length} bytes" if length is not None else "a message"
    return MessageTooLong(f"{said} is longer than max_size={limit} bytes", limit="max_size", value=limit)
