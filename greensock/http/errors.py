"""What can be wrong with a message of HTTP, told apart by whose fault it is.

A client's message raises :class:`BadRequest`, a server's :class:`BadResponse`; ``reason`` says in one token what was
wrong, and ``status`` what to answer. Errors of the program itself (a field that would split the message, two lengths)
are ``ValueError`` and stand in no table.

What becomes of a request that a client makes:

===============================  =======================  ======  ==================================
whose fault                      exception                status  of greensock
===============================  =======================  ======  ==================================
the server broke the protocol    :class:`BadResponse`     502     ``ProtocolError``
the server reset, or refused     none of its own          502     ``ConnectionLost, ConnectFailed``
the server was slow              :class:`PhaseTimeout`    504     ``OperationTimeout``
-- and held all connections      :class:`QueueTimeout`    503     ``OperationTimeout``
we ask more than it can take     :class:`QueueFull`       503     ``LimitExceeded``
it answered that it failed       :class:`StatusError`             only if asked: ``raise_for_status``
its body is more than we want    none of its own                  ``LimitExceeded``
we closed the client             none of its own                  ``ConnectionClosed``
===============================  =======================  ======  ==================================

``status`` is what a gateway answers if nothing of the answer has gone out yet.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar

from greensock import GreensockError, LimitExceeded, OperationTimeout, ProtocolError

__all__ = [
    "BadMessage",
    "BadRequest",
    "BadResponse",
    "BodyTimeout",
    "ConnectTimeout",
    "HeadTimeout",
    "Phase",
    "PhaseTimeout",
    "QueueFull",
    "QueueTimeout",
    "Reason",
    "SendTimeout",
    "StatusError",
    "TotalTimeout",
]


class Reason(enum.Enum):
    """Why a message was refused; the value is a token for logs and metrics."""

    # -- the request line, the status line

    #: The first line is not ``method SP target SP version`` (RFC 9112 section 3).
    REQUEST_LINE = "request-line"
    #: A method that is too long, a known one in another spelling, or PRI (RFC 9110 section 15.6.2).
    UNKNOWN_METHOD = "unknown-method"
    #: A target that is malformed, or not of a form that goes with the method (RFC 9112 section 3.2).
    TARGET = "target"
    #: Longer than ``max_target`` (RFC 9110 section 15.5.15).
    TARGET_TOO_LONG = "target-too-long"
    #: A major version other than 1 (RFC 9110 section 15.6.6).
    VERSION = "version"
    #: A request without a version, or with 0.9.
    HTTP_0_9 = "http-0.9"
    #: The first line is not ``version SP status [SP phrase]`` (RFC 9112 section 4).
    STATUS_LINE = "status-line"

    # -- lines and fields

    #: LF without CR before it (RFC 9112 section 2.2).
    BARE_LF = "bare-lf"
    #: CR without LF after it (RFC 9112 section 2.2).
    BARE_CR = "bare-cr"
    #: A zero byte (RFC 9110 section 5.5).
    NUL = "nul"
    #: A line that is no field: its name, the colon, or a byte of its value (RFC 9112 section 5).
    FIELD = "field"
    #: A field continued on the next line (RFC 9112 section 5.2).
    OBS_FOLD = "obs-fold"
    #: More than ``max_head`` bytes (RFC 6585 section 5).
    HEAD_TOO_LARGE = "head-too-large"
    #: A field of more than ``max_field`` bytes (RFC 6585 section 5).
    FIELD_TOO_LARGE = "field-too-large"
    #: More than ``max_fields`` fields (RFC 6585 section 5).
    TOO_MANY_FIELDS = "too-many-fields"

    # -- Host

    #: HTTP/1.1 without Host (RFC 9112 section 3.2).
    HOST_MISSING = "host-missing"
    #: Host twice (RFC 9112 section 3.2).
    HOST_REPEATED = "host-repeated"
    #: A Host that is empty, or no ``name[:port]`` (RFC 9112 section 3.2).
    HOST_MALFORMED = "host-malformed"
    #: The target names another authority than Host.
    HOST_MISMATCH = "host-mismatch"

    # -- the length of the body

    #: A Content-Length that is not 1 to 18 digits (RFC 9110 section 8.6).
    CONTENT_LENGTH = "content-length"
    #: Content-Length twice, even if both say the same.
    CONTENT_LENGTH_REPEATED = "content-length-repeated"
    #: Both of them (RFC 9112 section 6.3).
    CONTENT_LENGTH_AND_TRANSFER_ENCODING = "content-length-and-transfer-encoding"
    #: A Transfer-Encoding in HTTP/1.0 (RFC 9112 section 6.1).
    TRANSFER_ENCODING_IN_1_0 = "transfer-encoding-in-1.0"
    #: A Transfer-Encoding that does not end with one ``chunked``, or is malformed (RFC 9112 section 6.3).
    TRANSFER_ENCODING = "transfer-encoding"
    #: A transfer coding besides ``chunked`` (RFC 9112 section 6.1).
    UNKNOWN_CODING = "unknown-coding"
    #: CONNECT with a body (RFC 9110 section 9.3.6).
    CONNECT_WITH_BODY = "connect-with-body"
    #: More than ``max_body`` bytes (RFC 9110 section 15.5.14).
    BODY_TOO_LARGE = "body-too-large"

    # -- chunks and trailers

    #: A chunk size that is not 1 to 16 hexadecimal digits (RFC 9112 section 7.1).
    CHUNK_SIZE = "chunk-size"
    #: A chunk extension that is malformed (RFC 9112 section 7.1.1).
    CHUNK_EXTENSION = "chunk-extension"
    #: More than ``max_chunk_extension`` bytes of them in one chunk, or ``max_chunk_excess`` more than data.
    CHUNK_EXTENSIONS_TOO_LARGE = "chunk-extensions-too-large"
    #: No CRLF where the chunk's data must end (RFC 9112 section 7.1).
    CHUNK_END = "chunk-end"
    #: A trailer that would change framing or routing (RFC 9110 section 6.5.1).
    FORBIDDEN_TRAILER = "forbidden-trailer"
    #: More than ``max_trailers`` bytes of trailers (RFC 6585 section 5).
    TRAILERS_TOO_LARGE = "trailers-too-large"

    #: A body that is not what it should be, such as no JSON.
    BODY_MALFORMED = "body-malformed"
    #: A body that is not what its Content-Encoding says (RFC 9110 section 8.4).
    CONTENT_CODING = "content-coding"

    # -- redirection

    #: A Location that cannot be followed: no URL, or one that is neither http nor https (RFC 9110 section 10.2.2).
    LOCATION = "location"
    #: More redirections than ``max_redirects`` (RFC 9110 section 15.4).
    TOO_MANY_REDIRECTS = "too-many-redirects"

    # -- the exchange

    #: The input ended inside a message (RFC 9112 section 8).
    INCOMPLETE = "incomplete"
    #: The input ended before the first byte of the answer.
    NO_RESPONSE = "no-response"
    #: Bytes came that no request asked for (RFC 9112 section 6.3, at its end).
    TRAILING_DATA = "trailing-data"
    #: More than ``max_interim`` answers 1xx.
    TOO_MANY_INTERIM = "too-many-interim"
    #: 101 though no Upgrade was sent (RFC 9110 section 7.8).
    UNEXPECTED_SWITCH = "unexpected-switch"


#: What to answer to a request, where it is not 400.
STATUSES = {
    Reason.UNKNOWN_METHOD: 501,
    Reason.TARGET_TOO_LONG: 414,
    Reason.VERSION: 505,
    Reason.HEAD_TOO_LARGE: 431,
    Reason.FIELD_TOO_LARGE: 431,
    Reason.TOO_MANY_FIELDS: 431,
    Reason.TRAILERS_TOO_LARGE: 431,
    Reason.UNKNOWN_CODING: 501,
    Reason.BODY_TOO_LARGE: 413,
}


class BadMessage(ProtocolError):
    """A message that is refused; raised as one of the next two. The connection must be closed."""

    def __init__(self, message: str, reason: Reason, connection: Any = None, status: int = 400) -> None:
        super().__init__(message, connection, status)
        self.reason = reason


class BadRequest(BadMessage):
    """The client's fault: answer ``status`` and close."""

    def __init__(self, message: str, reason: Reason, connection: Any = None) -> None:
        super().__init__(message, reason, connection, STATUSES.get(reason, 400))


class BadResponse(BadMessage):
    """The server's fault: close the connection to it; a gateway answers ``status``, which is 502."""

    def __init__(self, message: str, reason: Reason, connection: Any = None) -> None:
        super().__init__(message, reason, connection, 502)


class Phase(enum.Enum):
    """What a request was doing when its time ran out; the value is a token for logs and metrics."""

    #: Waiting for a connection that others use.
    QUEUE = "queue"
    #: Resolving the name and connecting.
    CONNECT = "connect"
    #: Waiting for the server to take a piece of the request.
    SEND = "send"
    #: Waiting for the head of the final answer, once the request was out.
    HEAD = "head"
    #: Waiting for more of the answer's body.
    BODY = "body"
    #: All of it, from the call to the last byte of the body.
    TOTAL = "total"


class PhaseTimeout(OperationTimeout):
    """A request took too long; raised as one of the next six. Its connection was given up.

    ``phase`` says what it was doing, ``seconds`` how long it was allowed to; ``status`` is what a gateway answers.
    """

    phase: ClassVar[Phase]
    _did: ClassVar[str]
    status = 504

    def __init__(self, seconds: float, connection: Any = None) -> None:
        super().__init__(f"{self._did} {seconds} s", connection, self.phase.value, seconds)


class QueueTimeout(PhaseTimeout):
    """Every connection that the origin may have was in use all the time."""

    phase = Phase.QUEUE
    _did = "no connection became free within"
    status = 503


class ConnectTimeout(PhaseTimeout):
    """The server could not be reached in time. Nothing was sent."""

    phase = Phase.CONNECT
    _did = "not connected within"


class SendTimeout(PhaseTimeout):
    """The server did not take a piece of the request."""

    phase = Phase.SEND
    _did = "the server took nothing for"


class HeadTimeout(PhaseTimeout):
    """The head of the final answer was not there in time."""

    phase = Phase.HEAD
    _did = "no answer within"


class BodyTimeout(PhaseTimeout):
    """Nothing more came of an answer's body."""

    phase = Phase.BODY
    _did = "nothing more of the answer came for"


class TotalTimeout(PhaseTimeout):
    """The request and its answer took too long, whatever they were doing."""

    phase = Phase.TOTAL
    _did = "request and answer took more than"


class QueueFull(LimitExceeded):
    """As many requests wait for a connection to the origin as may. ``status`` is what a gateway answers."""

    status = 503


class StatusError(GreensockError):
    """The server answered with a status of 400 or above; ``ClientResponse.raise_for_status`` raises it.

    ``status`` is that, ``url`` what was asked, and ``response`` the answer, which may still have to be read or closed.
    """

    def __init__(self, response: Any) -> None:
        phrase = response.head.phrase.decode("latin-1")
        super().__init__(f"{response.url}: the server answered {response.status} {phrase}".rstrip())
        self.response = response
        self.status: int = response.status
        self.url: str = response.url
