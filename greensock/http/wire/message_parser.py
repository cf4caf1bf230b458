"""The parsers: bytes in, events out.

::

    parser = RequestParser()
    parser.feed(data)
    while (event := parser.next_event()) is not NEED_DATA:
        ...

A parser owns the bytes that were fed and not yet taken. It does no I/O and knows no clock.

- It never runs ahead: a message's bytes are looked at when the event before has been taken. What was fed beyond stays
  as it is, and who feeds only after ``NEED_DATA`` holds no more than one piece of input (back-pressure).
- However the input is split, the events are the same (``Data`` in other pieces), and so is the error.
- Heads that are plain are lexed in ``plain_heads``; all others, and trailers, by httptools (llhttp), each in one call.
  What that leaves out is checked here and beside: sizes before a byte is lexed, then the first line against what was
  found in it, Host, framing.
- A parser that has raised raises the same error ever after. Where the next message would begin can't be known then.

::

    HEAD --> BODY --> HEAD ...     of a server's parser; without a body HEAD --> END --> HEAD
      `----> RAW                   after CONNECT

    IDLE --> HEAD --> BODY --> IDLE ...     of a client's parser, which is told when to expect an answer
               `----> RAW                   after an answer that switches protocols
"""

from __future__ import annotations

import enum
from typing import ClassVar

from greensock.http.errors import BadMessage, BadRequest, BadResponse, Reason
from greensock.http.wire.body_parser import BodyReader
from greensock.http.wire.events import NEED_DATA, Data, EndOfMessage, Signal
from greensock.http.wire.inbox import Inbox
from greensock.http.wire.limits import DEFAULT_LIMITS, Limits
from greensock.http.wire.lines import LexedFields

__all__ = ["BODY", "END", "HEAD", "IDLE", "RAW", "MessageParser", "ParserState"]

_NO_BODY = BodyReader()


class ParserState(enum.Enum):
    """Where a parser is in its input."""

    #: Before a head, or within one.
    HEAD = enum.auto()
    #: Within a body.
    BODY = enum.auto()
    #: Behind a head that has no body; its end is yet to be told.
    END = enum.auto()
    #: Behind an exchange; the next one is yet to be announced (answers only).
    IDLE = enum.auto()
    #: What follows is not HTTP.
    RAW = enum.auto()


# A member looked up in its class costs three times as much as a global.
HEAD, BODY, END, IDLE, RAW = ParserState


class MessageParser:
    """What both parsers have in common: input, bodies, errors."""

    __slots__ = ("_body", "_broken", "_inbox", "_limits", "_record", "_state")

    _error_class: ClassVar[type[BadRequest] | type[BadResponse]]

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._inbox = Inbox()
        self._record = LexedFields()
        self._state = HEAD
        self._body = _NO_BODY
        # The words and not the error: its traceback would hold the frames that it passed, which hold the parser.
        self._broken: tuple[str, Reason] | None = None

    @property
    def pending(self) -> int:
        """How many bytes are held that no event has been made of. Feed no more while that is much."""
        inbox = self._inbox
        return len(inbox.data) - inbox.start

    def feed(self, data: bytes) -> None:
        """Add bytes that came; they are held, not copied."""
        self._inbox.feed(data if type(data) is bytes else bytes(data))

    def feed_eof(self) -> None:
        """Tell that no more bytes will come."""
        self._inbox.ended = True

    def feed_or_end(self, data: bytes) -> None:
        """Add what a connection's ``recv`` returned: bytes that came, or none at the end of input."""
        if data:
            self._inbox.feed(data)
        else:
            self._inbox.ended = True

    def head_start(self, most: int) -> bytes:
        """Return up to ``most`` bytes of the head that is being read, or that was refused: for a log."""
        inbox = self._inbox
        return inbox.data[inbox.start : inbox.start + most] if self._state is HEAD else b""

    def take_rest(self) -> bytes:
        """Give out what is pending as raw bytes, for a connection that switches protocols."""
        inbox = self._inbox
        rest = inbox.data[inbox.start :]
        inbox.start, inbox.scanned = len(inbox.data), 0
        return rest

    def _next_of_body(self) -> Data | EndOfMessage | Signal:
        inbox = self._inbox
        event = self._body.read(inbox)
        if event is NEED_DATA:
            inbox.compact()
            if inbox.ended:
                raise BadMessage("the input ended inside a body", Reason.INCOMPLETE)
        elif type(event) is EndOfMessage:
            self._body = _NO_BODY
            self._end_message()
        return event

    def _end_message(self) -> None:
        raise NotImplementedError

    def _break(self, refusal: BadMessage) -> BadRequest | BadResponse:
        self._broken = (str(refusal), refusal.reason)
        return self._error_class(*self._broken)

    def _checked_fields(self) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
        """Return what was lexed, and an index by lower-case name."""
        fields, self._record.fields = self._record.fields, []
        if len(fields) > self._limits.max_fields:
            raise BadMessage(f"more than max_fields={self._limits.max_fields} fields", Reason.TOO_MANY_FIELDS)
        return fields, {name.lower(): value for name, value in fields}
