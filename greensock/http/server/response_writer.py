"""How an answer goes out: its head, its framing, and its body of whichever kind, with what the request allows.

A short body goes out with its head in one write. A long one goes out in parts, and others get their turn in between.
Once the head is out, what is raised here means that the answer was cut short: the caller closes behind what is out if
the framing shows that (``shows_cut``), else it resets the connection, so that the client does not take what came for
the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from time import monotonic, time
from typing import Any, BinaryIO

from greensock import Connection, ConnectionT, Server, let_others_run
from greensock.http.server.filters import pieces_of
from greensock.http.server.request import Request
from greensock.http.server.response import FileBody, Response
from greensock.http.server.stream import ResponseStream
from greensock.http.wire.body_length import declared_length
from greensock.http.wire.headers import Headers
from greensock.http.wire.writer import format_date, write_chunk, write_response_head

__all__ = ["BODILESS", "CLOSE", "JOINED", "KEEP_ALIVE", "OWN_FIELDS", "AnsweringServer"]

#: Up to so many bytes a body, or a piece of it, is joined with what goes around it: one copy is cheaper than gathering.
JOINED = 16384
#: Of a longer one so many bytes are sent at a time; others have their turn in between.
SLICE = 1 << 20
#: Statuses of answers that have no body (RFC 9110 sections 15.3.5, 15.3.6, 15.4.5).
BODILESS = frozenset({204, 205, 304})
#: Fields of an answer that are the server's to write.
OWN_FIELDS = frozenset({b"content-length", b"transfer-encoding", b"connection", b"keep-alive"})
#: Fields of an answer that ask for something, or stand in the place of the server's.
LOOKED_AT = OWN_FIELDS | {b"date"}

#: The field of an answer after which the connection is closed.
CLOSE = b"Connection: close\r\n"
#: The field of one after which it stays open, for a client that speaks 1.0.
KEEP_ALIVE = b"Connection: keep-alive\r\n"


class AnsweringServer(Server[ConnectionT]):
    """The base of :class:`HTTPServer` that knows how to write answers, and counts them by status."""

    def __init__(self, listener: Any, **options: Any) -> None:
        super().__init__(listener, **options)
        # No Counter: as that overrides __delitem__, each += of it goes through Python.
        self.answers_by_status: defaultdict[int, int] = defaultdict(int)
        self._second = 0
        self._date = b""
        self._starts: dict[int, bytes] = {}

    def _send(self, request: Request, response: Response, keep: bool) -> bool:
        """Write head and body; return whether the connection may go on."""
        conn, body = request.connection, response.body
        bodiless = request.method == "HEAD" or response.status in BODILESS
        plain = True
        for name, _ in response.headers.raw:
            if name.lower() in LOOKED_AT:
                plain = False
                keep = keep and b"close" not in response.headers.tokens(b"connection")
                break
        if not isinstance(body, bytes):
            send = self._send_file if isinstance(body, FileBody) else self._send_pieces
            return send(request, response, keep, bodiless)
        length: int | None = len(body)
        if bodiless and not body:  # made for HEAD: what GET would have is in the fields, or not known
            length = declared_length(response.headers)
        option = b"" if keep and request.version == "1.1" else _connection_option(request.version, keep)
        head = self.written_head(response, length, False, option, plain)
        request.is_answered = True
        if bodiless:
            conn.send(head)
        elif len(body) <= JOINED:
            conn.send_soon(head + body)
        else:
            self.send_piece(request, head, body)
        return keep

    def _stream_answer(self, request: Request, response: Response, stream: ResponseStream) -> Iterator[int]:
        """Write an answer to a stream; go through the bytes of body that each step has sent."""
        body, status = response.body, response.status
        bodiless = request.method == "HEAD" or status in BODILESS
        length: int | None
        if isinstance(body, bytes):
            length = len(body) if body or not bodiless else declared_length(response.headers)
            pieces = iter([body] if body else [])
        else:
            length = body.count if isinstance(body, FileBody) else declared_length(response.headers)
            pieces = iter(()) if bodiless else _pieces(pieces_of(body), length)
        first = next(pieces, None)  # if this fails it is not too late for another answer
        fields = [pair for pair in response.headers.raw if pair[0].lower() not in OWN_FIELDS]
        if response.headers.get_raw(b"date") is None:
            fields.append((b"Date", self.date_line()[6:-2]))
        if length is not None and status not in (204, 304):
            fields.append((b"Content-Length", b"%d" % length))
        self.answers_by_status[status] += 1
        request.is_answered = True
        stream.begin(status, fields, length)
        if first is not None and not bodiless:
            stream.write(first)
            yield len(first)
            began = monotonic()
            for piece in pieces:
                stream.write(piece)
                yield len(piece)
                began = let_others_run(began)
        stream.end()

    def _send_file(self, request: Request, response: Response, keep: bool, bodiless: bool) -> bool:
        """Write a file."""
        conn, body = request.connection, response.body
        assert isinstance(body, FileBody)
        data = body.read_all() if body.count <= JOINED and not bodiless else b""
        if data and len(data) < body.count:
            raise _has_shrunk(body)
        head = self.written_head(response, body.count, False, _connection_option(request.version, keep))
        request.is_answered = True
        conn.send(head + data)
        if bodiless or data:
            return keep
        if self.send_file_range(conn, body.file, body.offset, body.count) < body.count:
            raise _has_shrunk(body)
        return keep

    def send_file_range(self, conn: Connection, file: BinaryIO | int, offset: int, count: int) -> int:
        """Write a part of a file; return how many bytes of it there were."""
        sent, began = 0, monotonic()
        while sent < count:
            most = min(SLICE, count - sent)
            done = conn.send_file(file, offset + sent, most)
            sent += done
            if done < most:
                break
            began = let_others_run(began)
        return sent

    def _send_pieces(self, request: Request, response: Response, keep: bool, bodiless: bool) -> bool:
        """Write a body that comes piece by piece; of the first, nothing is sent before it is there."""
        conn, body = request.connection, response.body
        assert not isinstance(body, bytes | FileBody)
        length = declared_length(response.headers)
        chunked = length is None and request.version == "1.1"
        request.shows_cut = chunked or length is not None or bodiless
        keep = keep and request.shows_cut
        option = _connection_option(request.version, keep)
        pieces = iter(()) if bodiless else _pieces(body, length)
        first = next(pieces, None)  # if this fails it is not too late for an answer
        if chunked:
            option += request.announced_trailers()
        head = self.written_head(response, length, chunked, option)
        request.is_answered = True
        request.body.stop_awaiting()
        if first is None:
            conn.send(head + request.last_chunk() if chunked and not bodiless else head)
            return keep
        self.send_piece(request, head, first, chunked)
        began = monotonic()
        for piece in pieces:
            self.send_piece(request, b"", piece, chunked)
            began = let_others_run(began)
        if chunked:
            conn.send(request.last_chunk())
        return keep

    def send_piece(self, request: Request, head: bytes, piece: bytes, chunked: bool = False) -> None:
        """Write a piece of a body behind ``head``, which may be empty: in one go if it is short."""
        conn = request.connection
        if len(piece) <= JOINED:
            conn.send(b"%b%x\r\n%b\r\n" % (head, len(piece), piece) if chunked else head + piece)
            return
        size, _, end = write_chunk(piece) if chunked else (b"", piece, b"")
        view = memoryview(piece)
        conn.send([head, size, view[:SLICE]])
        began = monotonic()
        for start in range(SLICE, len(piece), SLICE):
            conn.send(view[start : start + SLICE])
            began = let_others_run(began)
        if end:
            conn.send(end)

    def written_head(
        self, response: Response, length: int | None, chunked: bool, option: bytes, plain: bool = False
    ) -> bytes:
        """Return the head of a final answer; ``plain`` says that none of its fields are LOOKED_AT."""
        date = self.date_line()
        headers, status = response.headers, response.status
        self.answers_by_status[status] += 1
        start = self._starts.get(status) or self._start(status)
        if plain and length is not None and status not in BODILESS:  # the common case: nothing is left to be checked
            lines = b"".join([b"%b: %b\r\n" % pair for pair in headers.raw])
            return b"%b%b%bContent-Length: %d\r\n\r\n" % (start, lines, option, length)
        if status == 204:
            length, chunked = None, False
        elif status == 205:  # no body, and yet its length must be told (RFC 9110 section 15.3.6)
            length, chunked = 0, False
        extra = option if headers.get_raw(b"date") is not None else date + option
        return write_response_head(status, headers, content_length=length, chunked=chunked, own=OWN_FIELDS, extra=extra)

    def _start(self, status: int) -> bytes:
        """Return the status line and Date, which are the same for a second."""
        start = write_response_head(status, Headers(), extra=self._date).removesuffix(b"\r\n")
        self._starts[status] = start
        return start

    def date_line(self) -> bytes:
        """Return the Date of this second, as a line."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._date = b"Date: %b\r\n" % format_date(second)
            self._starts.clear()
        return self._date


def _connection_option(version: str, keep: bool) -> bytes:
    """Return what the answer says of the connection (RFC 9112 section 9.3)."""
    if keep:
        return b"" if version == "1.1" else KEEP_ALIVE
    return CLOSE


def _pieces(body: Iterable[bytes], length: int | None) -> Iterator[bytes]:
    """Go through the pieces that have bytes in them.

    Raises:
        TypeError: a piece of another kind.
        ValueError: they are more or less than ``length`` bytes in all.
    """
    sent = 0
    for piece in body:
        if type(piece) is not bytes:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"a piece of a body is {type(piece).__name__}: bytes expected")
            piece = bytes(piece)
        if piece:
            sent += len(piece)
            if length is not None and sent > length:
                raise ValueError(f"the body is longer than its Content-Length, {length}")
            yield piece
    if length is not None and sent < length:
        raise ValueError(f"the body has {sent} bytes, its Content-Length says {length}")


def _has_shrunk(body: FileBody) -> OSError:
    return OSError(f"{body.file!r} has shrunk since its answer was made")
