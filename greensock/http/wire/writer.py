"""The writer: heads, chunks and trailers as bytes.

Framing is made anew from the arguments: exactly one Content-Length, or ``Transfer-Encoding: chunked``, or neither.
Those two fields among the headers are left out, so that what another message was framed with can't be passed on.
Nothing can be written that splits a message: ``Headers`` takes no such field, and the rest is checked here.
"""

from __future__ import annotations

import email.utils

from greensock.http.wire.headers import Headers
from greensock.http.wire.syntax import is_target, is_token, is_value

__all__ = [
    "LAST_CHUNK",
    "format_date",
    "phrase_of",
    "write_chunk",
    "write_last_chunk",
    "write_request_head",
    "write_response_head",
]

#: What ends a chunked body without trailers.
LAST_CHUNK = b"0\r\n\r\n"

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_NEVER_TRAILERS = _FRAMING | {b"host", b"trailer", b"connection"}

#: RFC 9110 section 15, and the RFCs that the registry names for the others.
_PHRASES = {
    100: b"Continue",
    101: b"Switching Protocols",
    102: b"Processing",
    103: b"Early Hints",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    203: b"Non-Authoritative Information",
    204: b"No Content",
    205: b"Reset Content",
    206: b"Partial Content",
    207: b"Multi-Status",
    208: b"Already Reported",
    226: b"IM Used",
    300: b"Multiple Choices",
    301: b"Moved Permanently",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    305: b"Use Proxy",
    307: b"Temporary Redirect",
    308: b"Permanent Redirect",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    406: b"Not Acceptable",
    407: b"Proxy Authentication Required",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    411: b"Length Required",
    412: b"Precondition Failed",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    416: b"Range Not Satisfiable",
    417: b"Expectation Failed",
    421: b"Misdirected Request",
    422: b"Unprocessable Content",
    423: b"Locked",
    424: b"Failed Dependency",
    425: b"Too Early",
    426: b"Upgrade Required",
    428: b"Precondition Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    451: b"Unavailable For Legal Reasons",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    506: b"Variant Also Negotiates",
    507: b"Insufficient Storage",
    508: b"Loop Detected",
    511: b"Network Authentication Required",
}
_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase) for status, phrase in _PHRASES.items()}


def phrase_of(status: int) -> bytes:
    """Return the reason phrase of a status, empty if it is not registered."""
    return _PHRASES.get(status, b"")


def format_date(seconds: float) -> bytes:
    """Return a time, in seconds since 1970, as ``Date`` wants it (RFC 9110 section 5.6.7)."""
    return email.utils.formatdate(int(seconds), usegmt=True).encode()


def write_request_head(
    method: str,
    target: bytes,
    headers: Headers,
    *,
    content_length: int | None = None,
    chunked: bool = False,
) -> bytes:
    """Return the head of an HTTP/1.1 request. Without a length it has no body.

    Raises:
        ValueError: a method or target that would split the message, not exactly one Host, or two framings.
    """
    line = method.encode("latin-1", "replace")
    if not is_token(line):
        raise ValueError(f"method {method!r}: a token expected")
    if not is_target(target):
        raise ValueError(f"target {target!r}: visible ASCII characters without # expected")
    if len(headers.all_raw(b"host")) != 1:
        raise ValueError("headers: exactly one Host expected")
    return b"".join((line, b" ", target, b" HTTP/1.1\r\n", *_lines(headers), _framing(content_length, chunked)))


def write_response_head(
    status: int,
    headers: Headers,
    *,
    phrase: bytes | None = None,
    content_length: int | None = None,
    chunked: bool = False,
    own: frozenset[bytes] = _FRAMING,
    extra: bytes = b"",
) -> bytes:
    """Return the head of an HTTP/1.1 answer. Without a length the body, if it may have one, ends with the connection.

    On answers to HEAD and on 304 the length is that of the body which is not sent. To an HTTP/1.0 client nothing may be
    sent in chunks: the caller's to see to (RFC 9112 section 6.1). Fields whose lower-case names are ``own`` are left
    out; ``extra`` are lines of the caller's own, which are not checked.

    Raises:
        ValueError: a status that is not 100 to 999, a phrase that would split the message, two framings, or a length on
            1xx or 204.
    """
    line = _STATUS_LINES.get(status) if phrase is None else None
    if line is None:
        if not 100 <= status <= 999:
            raise ValueError(f"status={status!r}: 100 to 999 allowed")
        phrase = phrase_of(status) if phrase is None else phrase
        if not is_value(phrase):
            raise ValueError(f"phrase {phrase!r}: no control characters allowed")
        line = b"HTTP/1.1 %d %b\r\n" % (status, phrase)
    if (status < 200 or status == 204) and (chunked or content_length is not None):
        raise ValueError(f"status {status} has no body, and so no length (RFC 9110 section 8.6)")
    return b"".join((line, *_lines(headers, own), extra, _framing(content_length, chunked)))


def write_chunk(data: bytes | memoryview) -> list[bytes | memoryview]:
    """Return a chunk as pieces to be sent together; the data are not copied. No data give no chunk, which would end it.

    ``data`` as a ``memoryview`` must be of single bytes.
    """
    return [b"%x\r\n" % len(data), data, b"\r\n"] if len(data) else []


def write_last_chunk(trailers: Headers | None = None) -> bytes:
    """Return what ends a chunked body.

    Raises:
        ValueError: a trailer that would change framing or routing (RFC 9110 section 6.5.1).
    """
    if not trailers:
        return LAST_CHUNK
    for name, _ in trailers.raw:
        if name.lower() in _NEVER_TRAILERS:
            raise ValueError(f"{name.decode()} can't be a trailer")
    return b"".join((b"0\r\n", *_lines(trailers), b"\r\n"))


def _lines(headers: Headers, without: frozenset[bytes] = _FRAMING) -> list[bytes]:
    return [b"%b: %b\r\n" % pair for pair in headers.raw if pair[0].lower() not in without]


def _framing(content_length: int | None, chunked: bool) -> bytes:
    if content_length is None:
        return b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"
    if chunked:
        raise ValueError("content_length and chunked: at most one of them can be given")
    if content_length < 0:
        raise ValueError(f"content_length={content_length!r}: a whole number of at least 0 expected")
    return b"Content-Length: %d\r\n\r\n" % content_length
