"""What becomes of one call of a WSGI application: ``start_response``, ``write``, and the answer's way out (PEP 3333).

::

    start_response --> head and body at once: a list, a file
              `------> head and first piece --> pieces --> end

Nothing goes out before the first byte of a body that is not empty, ``write``, or the end. From then on the head is
settled: its framing, and whether the connection goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from greensock import let_others_run
from greensock.http.server.http_server import HTTPServer
from greensock.http.server.request import Request
from greensock.http.server.response import Response
from greensock.http.server.response_writer import CLOSE, JOINED, KEEP_ALIVE
from greensock.http.wire.syntax import is_token, is_value
from greensock.http.wire.writer import phrase_of
from greensock.http.wsgi.wsgi_input import FileWrapper, RawInput, plain_file
from greensock.http.wsgi.wsgi_socket import ConnectionSocket
from greensock.http.wsgi.wsgi_websocket import WSGIWebSocket

__all__ = ["Answer", "GatheredAnswer"]

#: Fields that PEP 3333 leaves to the server ("Other HTTP Features"); Connection is looked at.
HOP_BY_HOP = frozenset(
    {"keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "trailers", "transfer-encoding"}
    | {"upgrade", "proxy-connection"}
)


class Answer:
    """What becomes of one call of the application."""

    __slots__ = (
        "chunked",
        "code",
        "complaint",
        "input",
        "is_begun",
        "is_bodiless",
        "is_finished",
        "is_over",
        "keep",
        "left",
        "length",
        "lines",
        "request",
        "server",
        "since",
        "socket",
        "traits",
        "websocket",
    )

    def __init__(self, server: HTTPServer, request: Request, keep: bool) -> None:
        self.server = server
        self.request = request
        #: Whether the connection goes on after it.
        self.keep = keep
        self.code = 0
        #: The status line and the fields, each with its CRLF; None until ``start_response``.
        self.lines: list[bytes] | None = None
        #: What the fields say of the server's own: see ``_field``.
        self.traits = 0
        #: The Content-Length given, in bytes, and how much of it is still to come.
        self.length: int | None = None
        self.left: int | None = None
        self.chunked = False
        self.is_bodiless = False
        #: ``wsgi.input`` without its buffer; None if there is no body.
        self.input: RawInput | None = None
        #: What a request that asks for an upgrade is offered, and one that asks for a WebSocket; None for all others.
        self.socket: ConnectionSocket | None = None
        self.websocket: WSGIWebSocket | None = None
        #: Since when pieces go out without others having had their turn; 0.0: since the next.
        self.since = 0.0
        #: What is wrong with an answer that went out.
        self.complaint = ""
        #: Whether a byte of it may be out; whether all of it is; whether the server is done with it.
        self.is_begun = self.is_finished = self.is_over = False

    def start_response(self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None) -> Any:
        """Take status and fields, nothing of which goes out yet; return ``write``."""
        if exc_info:
            try:
                if self.is_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle of the traceback and this frame
        elif self.lines is not None:
            raise AssertionError("start_response was called before, and exc_info is not given (PEP 3333)")
        code, line = _status(status)
        lines, traits, length = [line], 0, None
        for name, value in headers:
            prefix, trait = _field(name)
            try:
                raw = value.encode("latin-1")
            except (AttributeError, UnicodeEncodeError):
                raise UnicodeError("field value: a str of Latin-1 characters expected", name, value) from None
            if not is_value(raw):
                raise ValueError(f"{_what_is_wrong(value)} in header value", name, value)
            if trait:
                traits |= trait
                if trait == _LENGTH:
                    length = _content_length(value, length)
                    continue
                if trait == _CONNECTION:
                    traits |= _CLOSES if "close" in value.lower() else 0
                    continue
            lines.append(b"%b%b\r\n" % (prefix, raw))
        self.code, self.lines, self.traits = code, lines, traits
        self.length = self.left = length
        self.is_bodiless = code == 304 or code == 204 or self.request.method == "HEAD"
        return self.write

    def send_hints(self, headers: Iterable[tuple[str, str]]) -> None:
        """``wsgi.early_hints``: send 103 before the answer (RFC 8297); nothing once that has begun, or to HTTP/1.0."""
        if not self.request.is_answered:
            self.request.send_interim(103, headers)

    def write(self, data: bytes) -> None:
        """Send a piece of the body, and the head before the first."""
        if self.is_over:
            raise AssertionError("write was called when the answer was over")
        if self.left is not None and len(data) > self.left and not self.is_bodiless:
            raise ValueError(f"the body is longer than its Content-Length, {self.length}")
        self._send_piece(data)

    def send_all(self, result: Any) -> None:
        """Send what the application returned, to its end."""
        if not self.is_begun:
            if type(result) is FileWrapper and self._send_file(result.filelike):
                return
            if hasattr(result, "__len__") and len(result) < 2 and not isinstance(result, list | tuple):
                result = list(result)
            if isinstance(result, list | tuple) and self._send_whole(result):
                return
        for piece in result:
            if piece:
                if self.left is not None and len(piece) > self.left and not self.is_bodiless:
                    self._truncate(piece)
                    break
                self._send_piece(piece)
                if self.is_bodiless:
                    break  # the rest would go nowhere
        self._finish()

    @property
    def has_left(self) -> bool:
        """Whether the application took the connection, or its WebSocket: then nothing else can be sent."""
        if self.socket is None:
            return False
        return self.socket.is_taken or (self.websocket is not None and self.websocket.is_taken)

    def as_response(self) -> Response:
        """Return what was answered, for ``request_done``; its body is gone."""
        if self.has_left:
            response = Response()
            response.status = self.code
            return response
        fields = [line.rstrip(b"\r\n").partition(b": ") for line in (self.lines or [])[1:]]
        return Response(b"", self.code or 500, [(name, value) for name, _, value in fields if name])

    # -- the ways out

    def _send_whole(self, pieces: list[bytes] | tuple[bytes, ...]) -> bool:
        """Send head and body at once; False if their lengths do not agree."""
        data = pieces[0] if len(pieces) == 1 and type(pieces[0]) is bytes else b"".join(pieces)
        size = len(data)
        declared = self.length
        if declared is not None and declared != size and not (self.request.method == "HEAD" or self.code in (204, 304)):
            return False
        head = self._begin(size)
        conn = self.request.connection
        if self.is_bodiless or not size:
            conn.send(head)
        elif size <= JOINED:
            conn.send_soon(head + data)
        else:
            self.server.send_piece(self.request, head, data)
        self.is_finished = True
        return True

    def _send_piece(self, data: bytes) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a piece of the body is {type(data).__name__}: bytes expected")
        head = b"" if self.is_begun else self._begin(None)
        if self.is_bodiless or not data:
            if head:
                self.request.connection.send(head)
            return
        data = bytes(data)  # a memoryview's length may be another than that in bytes
        if self.left is not None:
            self.left -= len(data)
        self.server.send_piece(self.request, head, data, self.chunked)
        self.since = let_others_run(self.since)

    def _truncate(self, piece: bytes) -> None:
        """Send what the Content-Length has room for; PEP 3333 wants no more to be asked for."""
        self._send_piece(piece[: self.left])
        self.complaint = f"the body is longer than its Content-Length, {self.length}: cut off"

    def _send_file(self, file: Any) -> bool:
        """Send a file from its position on by sendfile; False if it is none that has a descriptor of its own."""
        found = plain_file(file)
        if found is None:
            return False
        descriptor, offset, rest = found
        count = rest if self.length is None else min(rest, self.length)
        conn = self.request.connection
        conn.send(self._begin(count))
        if not self.is_bodiless:
            sent = self.server.send_file_range(conn, descriptor, offset, count)
            if sent < (count if self.left is None else self.left):
                raise OSError(f"{file!r} ended after {sent} bytes")
        self.is_finished = True
        return True

    def _finish(self) -> None:
        head = b"" if self.is_begun else self._begin(None)
        last = self.request.last_chunk() if self.chunked else b""
        if head or last:
            self.request.connection.send(head + last)
        if self.left and not self.is_bodiless:
            raise ValueError(f"the body ended {self.left} bytes before its Content-Length, {self.length}")
        self.is_finished = True

    def _begin(self, size: int | None) -> bytes:
        """Return the head: from here on the answer is begun, and goes out with that framing.

        ``size`` is the body's in bytes, None if that is not known.
        """
        lines, request, server, code, length = self.lines, self.request, self.server, self.code, self.length
        if self.has_left:
            raise ConnectionAbortedError("the application took the socket: nothing else can be sent")
        if lines is None:
            raise AssertionError("the application did not call start_response")
        keep = self.keep and not self.traits & _CLOSES
        keep = keep and (not server.draining or server.asks_on(request.connection))
        if keep and self.input is not None and not request.body.is_ended:
            keep = not self.input.is_broken and server.can_discard_body(request)
        if length is None and code != 304 and (size or request.method != "HEAD"):
            length = size  # else what GET would have is not known
        framing = b"\r\n"
        if code == 204:
            pass
        elif length is not None:
            framing = b"Content-Length: %d\r\n\r\n" % length
        elif self.is_bodiless:
            pass
        elif request.version == "1.1":
            self.chunked = True
            framing = request.announced_trailers() + b"Transfer-Encoding: chunked\r\n\r\n"
        else:
            keep = request.shows_cut = False
        if not self.traits & _DATE:
            lines.append(server.date_line())
        if not keep:
            lines.append(CLOSE)
        elif request.version == "1.0":
            lines.append(KEEP_ALIVE)
        lines.append(framing)
        self.keep = keep
        self.is_begun = request.is_answered = True
        request.body.stop_awaiting()
        server.answers_by_status[code] += 1
        return b"".join(lines)


class GatheredAnswer(Answer):
    """The answer of an application that is not written as it comes, but made into a :class:`Response`."""

    __slots__ = ("_early", "_result")

    def __init__(self, server: HTTPServer, request: Request, keep: bool) -> None:
        super().__init__(server, request, keep)
        self._early: list[bytes] = []
        self._result: Any = ()

    def gather(self, result: Any) -> Response:
        """Return the answer; its first piece is there, as an application may call ``start_response`` only then."""
        self._result = result
        pieces = iter(result)
        first = next(pieces, b"")
        if self.lines is None:
            raise AssertionError("the application did not call start_response")
        response = self.as_response()
        if self.length is not None:
            response.headers.set(b"Content-Length", b"%d" % self.length)
        elif isinstance(result, list | tuple) and len(result) < 2 and not self._early:
            response.body = first
            return response
        response.body = _Gathered(self, chain(self._early, [first], pieces))
        return response

    def close(self) -> None:
        """Let go of what the application returned."""
        result, self._result = self._result, ()
        close = getattr(result, "close", None)
        if close is not None:
            close()

    def _send_piece(self, data: bytes) -> None:
        self._early.append(bytes(data))  # by ``write``: before all that is returned


class _Gathered:
    """The pieces of an application's answer, closed as PEP 3333 wants it."""

    __slots__ = ("_answer", "_pieces")

    def __init__(self, answer: GatheredAnswer, pieces: Iterator[bytes]) -> None:
        self._answer = answer
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self._answer.close()


# What a field says of the server's own affairs.
_LENGTH, _CONNECTION, _DATE, _CLOSES = 1, 2, 4, 8
_TRAITS = {"content-length": _LENGTH, "connection": _CONNECTION, "date": _DATE}


@functools.lru_cache(maxsize=1024)  # programs add the same few names to every answer
def _field(name: str) -> tuple[bytes, int]:
    """Return the beginning of the field's line, and what it says of the server's own affairs."""
    if not isinstance(name, str):
        raise UnicodeError("field name: a str expected", name)
    raw, lower = name.encode("latin-1"), name.lower()
    if not is_token(raw):
        raise ValueError(f"{_what_is_wrong(name)} in header name", name)
    if lower in HOP_BY_HOP:
        raise ValueError(f"{name}: hop-by-hop fields are the server's (PEP 3333)", name)
    return raw + b": ", _TRAITS.get(lower, 0)


@functools.lru_cache(maxsize=256)
def _status(status: str) -> tuple[int, bytes]:
    """Return the number, and the status line."""
    if not isinstance(status, str):
        raise UnicodeError("status: a str expected", status)
    number, _, phrase = status.partition(" ")
    raw = phrase.encode("latin-1")
    if not is_value(raw):
        raise ValueError(f"{_what_is_wrong(status)} in status", status)
    if not (number.isascii() and number.isdigit() and len(number) == 3 and int(number) >= 200):
        raise ValueError("status: a number from 200 to 999 and a phrase expected", status)
    code = int(number)
    return code, b"HTTP/1.1 %d %b\r\n" % (code, raw or phrase_of(code))


def _what_is_wrong(text: str) -> str:
    return "carriage return or newline" if "\r" in text or "\n" in text else "a character that is not allowed"


def _content_length(value: str, before: int | None) -> int:
    if before is not None or not (value.isascii() and value.isdigit()):
        raise ValueError(f"Content-Length: {value!r}: one number of bytes expected")
    return int(value)
