"""What a parser tells: the events."""

from __future__ import annotations

import enum

from greensock.http.wire.headers import Headers

__all__ = [
    "END_OF_INPUT",
    "END_OF_MESSAGE",
    "NEED_DATA",
    "SWITCHED",
    "Data",
    "EndOfMessage",
    "RequestHead",
    "ResponseHead",
    "Signal",
]


class Signal(enum.Enum):
    """What ``next_event`` returns when it has no event."""

    #: Nothing more can be said before more bytes are fed.
    NEED_DATA = "need-data"
    #: The peer closed between two messages: there will be no more.
    END_OF_INPUT = "end-of-input"
    #: What follows is not HTTP (after CONNECT, 101): ``take_rest`` gives it out.
    SWITCHED = "switched"


NEED_DATA = Signal.NEED_DATA
END_OF_INPUT = Signal.END_OF_INPUT
SWITCHED = Signal.SWITCHED


class _Head:
    """What the heads of requests and answers have in common."""

    __slots__ = ("content_length", "headers", "is_chunked", "is_ordinary", "version")

    #: "1.1" or "1.0".
    version: str
    #: The fields.
    headers: Headers
    #: What Content-Length says, in bytes; None if there is none.
    content_length: int | None
    #: Whether the body comes in chunks.
    is_chunked: bool
    #: Whether it is known to be HTTP/1.1, to keep its connection, and to have no field that is for this hop, nor Expect
    #: or Via, nor credentials that count for the connection. False says nothing.
    is_ordinary: bool

    @property
    def keep_alive(self) -> bool:
        """Whether the sender means to go on with this connection (RFC 9112 section 9.3)."""
        if self.is_ordinary:
            return True
        said = self.headers.get_raw(b"connection")
        if said is None:
            return self.version == "1.1"
        if said == b"keep-alive" or said == b"close":
            return said == b"keep-alive"
        options = self.headers.tokens(b"connection")
        if not options:
            return self.version == "1.1"
        if b"close" in options:
            return False
        return self.version == "1.1" or b"keep-alive" in options

    @property
    def upgrade(self) -> list[bytes]:
        """The protocols offered, lower-case; none in 1.0, or if ``Connection`` names no Upgrade."""
        if self.version == "1.0" or b"upgrade" not in self.headers.tokens(b"connection"):
            return []
        return self.headers.tokens(b"upgrade")


class RequestHead(_Head):
    """A request without its body, which follows as ``Data`` and ``EndOfMessage``.

    Of ``content_length`` and ``is_chunked`` at most one is set; without either there is no body.
    """

    __slots__ = ("authority", "method", "target")

    def __init__(
        self,
        method: str,
        target: bytes,
        version: str,
        headers: Headers,
        content_length: int | None,
        is_chunked: bool,
        authority: bytes,
        is_ordinary: bool = False,
    ) -> None:
        self.is_ordinary = is_ordinary
        self.method = method
        #: As it came, byte for byte.
        self.target = target
        self.version = version
        self.headers = headers
        self.content_length = content_length
        self.is_chunked = is_chunked
        #: ``host[:port]`` that the request is for: of the target if it has one, else of Host; empty in 1.0 without.
        self.authority = authority

    @property
    def has_body(self) -> bool:
        """Whether data may follow."""
        return self.is_chunked or bool(self.content_length)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends the body (RFC 9110 section 10.1.1)."""
        return self.version == "1.1" and self.has_body and b"100-continue" in self.headers.tokens(b"expect")

    def __repr__(self) -> str:
        return f"<RequestHead {self.method} {self.target!r} {self.version} {self.headers!r}>"


class ResponseHead(_Head):
    """An answer without its body, which follows as ``Data`` and ``EndOfMessage``.

    After an interim answer (1xx) comes another head at once, without ``EndOfMessage``; after a switch of protocols
    ``SWITCHED``. ``content_length`` may be set although no body follows: on the answer to HEAD, and 304.
    """

    __slots__ = ("has_body", "is_switch", "phrase", "status")

    def __init__(
        self,
        status: int,
        phrase: bytes,
        version: str,
        headers: Headers,
        content_length: int | None,
        is_chunked: bool,
        has_body: bool,
        is_switch: bool,
        is_ordinary: bool = False,
    ) -> None:
        self.is_ordinary = is_ordinary
        self.status = status
        #: The reason phrase, often empty.
        self.phrase = phrase
        self.version = version
        self.headers = headers
        self.content_length = content_length
        self.is_chunked = is_chunked
        #: Whether data may follow (RFC 9112 section 6.3).
        self.has_body = has_body
        #: Whether another protocol follows: 101, and 2xx to CONNECT.
        self.is_switch = is_switch

    @property
    def is_interim(self) -> bool:
        """Whether another head follows: 1xx except 101."""
        return self.status < 200 and not self.is_switch

    @property
    def is_until_close(self) -> bool:
        """Whether the body ends with the connection."""
        return self.has_body and not self.is_chunked and self.content_length is None

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.phrase!r} {self.version} {self.headers!r}>"


class Data:
    """A piece of a body, without chunk framing.

    ``data`` is ``bytes``, or a ``memoryview`` of what was fed where a copy would cost more: ``bytes(data)`` makes one.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<Data {len(self.data)} bytes>"


class EndOfMessage:
    """The message is whole. ``trailers`` are the fields after the last chunk, None if there were none.

    They are never merged into the head (RFC 9110 section 6.5.1).
    """

    __slots__ = ("trailers",)

    def __init__(self, trailers: Headers | None = None) -> None:
        self.trailers = trailers

    def __repr__(self) -> str:
        return f"<EndOfMessage {self.trailers!r}>"


#: The end of a message without trailers.
END_OF_MESSAGE = EndOfMessage()
