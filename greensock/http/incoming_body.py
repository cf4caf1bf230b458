"""A body that is read as it comes: that of a request in a server, that of an answer in a client.

Here is the loop that feeds a parser from a connection until a piece is there. How to wait, and what an error or the end
means, is for the subclass to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from greensock import let_others_run
from greensock.http.wire.events import SWITCHED, Data, EndOfMessage
from greensock.http.wire.headers import Headers
from greensock.http.wire.request_parser import RequestParser
from greensock.http.wire.response_parser import ResponseParser

__all__ = ["MAX_IN_MEMORY", "IncomingBody"]

#: What ``read_all`` holds in memory if it is not told otherwise, in bytes.
MAX_IN_MEMORY = 1 << 20


class IncomingBody:
    """Reads a body; never more than one piece of input is held.

    A subclass sets all attributes itself: a call of ``__init__`` here would be one more a message.
    """

    __slots__ = ("ended", "length", "parser", "received", "rest", "since", "trailers")

    # For its subclasses, which stand in other folders; programs need none of these.
    parser: RequestParser | ResponseParser
    ended: bool  # nothing more is to be asked of the parser
    length: int | None  # what Content-Length said
    rest: bytes | memoryview  # what was taken from the parser and not yet read
    since: float  # for let_others_run

    #: Bytes of the body that came so far.
    received: int
    #: The fields after a chunked body, once it was read to its end; None if there were none.
    trailers: Headers | None

    @property
    def is_ended(self) -> bool:
        """Whether it was read to its end, or closed."""
        return self.ended and not self.rest

    def read(self, max_bytes: int = 65536) -> bytes:
        """Return what is there, at most ``max_bytes`` bytes, waiting for the first; ``b""`` at the end."""
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r}: at least 1 expected")
        piece = self.next_piece()
        if len(piece) > max_bytes:
            piece, self.rest = piece[:max_bytes], memoryview(piece)[max_bytes:]
        return bytes(piece)

    def __iter__(self) -> Iterator[bytes]:
        """Go through the body, piece by piece as it comes."""
        while piece := self.read():
            yield piece

    def read_all(self, max_bytes: int = MAX_IN_MEMORY) -> bytes:
        """Return all of it, or all that is left.

        If it is longer than ``max_bytes``, and its length says so, nothing is read.

        Raises:
            BadRequest: a request's body is longer (status 413).
            LimitExceeded: an answer's is, which is nobody's fault. The answer is closed.
        """
        if self.length is not None and not self.ended:
            if self.length - self.received + len(self.rest) > max_bytes:
                raise self.too_long(max_bytes)
        if self.ended:  # what is left of it has come
            piece, self.rest = self.rest, b""
            if len(piece) > max_bytes:
                raise self.too_long(max_bytes)
            return bytes(piece)
        pieces, size = [], 0
        while piece := self.next_piece():
            size += len(piece)
            if size > max_bytes:
                raise self.too_long(max_bytes)
            pieces.append(bytes(piece))  # a view would hold all of the input that it is part of
        return b"".join(pieces)

    def next_piece(self) -> bytes | memoryview:
        """Return the next piece as it came, of any size and not copied, waiting for it; empty at the end."""
        if self.rest:
            piece, self.rest = self.rest, b""
            return piece
        if self.ended:
            return b""
        parser = self.parser
        try:
            if self.received and parser.pending:  # a body of many short chunks never waits by itself
                self.since = let_others_run(self.since)
            while not self.ended:
                event = parser.next_event()
                if type(event) is Data:
                    self.received += len(event.data)
                    return event.data
                if type(event) is EndOfMessage:
                    self.end_reached(event)
                elif event is SWITCHED:
                    break
                else:
                    self.feed_parser()
        except BaseException as error:
            self.reading_failed(error)
            raise
        return b""

    # -- for the subclass to say

    def feed_parser(self) -> None:
        """Wait for input and give it to the parser."""
        raise NotImplementedError

    def end_reached(self, end: EndOfMessage) -> None:
        """Note the end, and what came with it."""
        self.ended = True
        self.trailers = end.trailers

    def reading_failed(self, error: BaseException) -> None:
        """Take note that nothing more can be read, or raise what is to be raised instead."""
        raise NotImplementedError

    def too_long(self, max_bytes: int) -> Exception:
        """Return what to raise for a body that is longer than that."""
        raise NotImplementedError
