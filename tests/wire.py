"""What is on the wire, read by two parsers that are not greensock's: a strict one, below, and h11.

The strict one takes only what the proxy is to write: one space behind a colon, no white space elsewhere, chunks without
extensions, one framing. ``lenient`` lets it read what a client may write besides.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import h11
from scripts import Script

#: What a server answers that is asked something else than HEAD.
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OK_TO_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

Fields = list[tuple[bytes, bytes]]

_field = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):(?: ([\x21-\x7e\x80-\xff\t ]*))?", re.DOTALL).fullmatch
_lenient_field = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\x21-\x7e\x80-\xff\t ]*)", re.DOTALL).fullmatch
_request_line = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e]+ HTTP/1\.[01]").fullmatch
_status_line = re.compile(rb"HTTP/1\.1 ([1-9][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)").fullmatch


class Malformed(Exception):
    """Not what HTTP looks like."""


class Message(NamedTuple):
    """A request or an answer, whole."""

    line: bytes
    fields: Fields
    body: bytes
    trailers: Fields
    #: length, chunked, close or none.
    framing: str

    @property
    def method(self) -> str:
        return self.line.partition(b" ")[0].decode()

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.line[9:12])

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of the fields of that (lower-case) name."""
        return [value for key, value in self.fields if key.lower() == name]


def take_request(data: bytes, *, lenient: bool = False) -> tuple[Message, bytes] | None:
    """Return the first request and what follows it; None: it is not whole."""
    if lenient:
        data = data.removeprefix(b"\r\n")
    found = _head(data, lenient)
    if found is None:
        return None
    line, fields, rest = found
    if lenient:
        line = re.sub(rb"HTTP/1\.[2-9]$", b"HTTP/1.1", line)
    if not _request_line(line):
        raise Malformed(line)
    return _with_body(line, fields, rest, _framing(fields) or "none", lenient, ended=False)


def take_answer(data: bytes, method: str, *, ended: bool) -> tuple[Message, bytes] | None:
    """Return the first answer, interim ones included, and what follows it; None: it is not whole."""
    found = _head(data, lenient=False)
    if found is None:
        return None
    line, fields, rest = found
    match = _status_line(line)
    if not match:
        raise Malformed(line)
    status = int(match.group(1))
    framing = _framing(fields) or "close"
    if status < 200 or status == 204:
        if framing != "close":
            raise Malformed(f"a body of {status}")
        framing = "none"
    elif status == 304 or method == "HEAD":
        framing = "none"
    return _with_body(line, fields, rest, framing, False, ended)


def take_finals(data: bytes, methods: Sequence[str], *, ended: bool) -> tuple[list[Message], bytes]:
    """Return the final answers to requests with these methods, as far as they are whole, and the rest."""
    finals: list[Message] = []
    for method in methods:
        while True:
            found = take_answer(data, method, ended=ended)
            if found is None:
                return finals, data
            answer, data = found
            if answer.status >= 200:
                finals.append(answer)
                break
    return finals, data


def body_so_far(data: bytes) -> bytes:
    """Return what is there of the body of an answer that was cut."""
    found = _head(data, lenient=False)
    if found is None:
        return b""
    _, fields, rest = found
    return _chunks(rest, lenient=False)[0] if _framing(fields) == "chunked" else rest


def _head(data: bytes, lenient: bool) -> tuple[bytes, Fields, bytes] | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *lines = head.split(b"\r\n")
    return line, _fields(lines, lenient), rest


def _fields(lines: list[bytes], lenient: bool) -> Fields:
    fields = []
    for line in lines:
        match = (_lenient_field if lenient else _field)(line)
        if not match:
            raise Malformed(line)
        name, value = match.group(1), match.group(2) or b""
        if not lenient and value != value.strip(b" \t"):
            raise Malformed(line)
        fields.append((name, value.strip(b" \t")))
    return fields


def _framing(fields: Fields) -> str | None:
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise Malformed(f"framed twice: {lengths} {codings}")
    if lengths:
        if not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
            raise Malformed(lengths[0])
        return "length"
    if codings:
        if codings != [b"chunked"]:
            raise Malformed(codings[0])
        return "chunked"
    return None


def _with_body(
    line: bytes, fields: Fields, rest: bytes, framing: str, lenient: bool, ended: bool
) -> tuple[Message, bytes] | None:
    if framing == "none":
        return Message(line, fields, b"", [], framing), rest
    if framing == "close":
        return (Message(line, fields, rest, [], framing), b"") if ended else None
    if framing == "length":
        length = next(int(value) for name, value in fields if name.lower() == b"content-length")
        if len(rest) < length:
            return None
        return Message(line, fields, rest[:length], [], framing), rest[length:]
    body, behind = _chunks(rest, lenient)
    if behind is None:
        return None
    trailers, end, behind = (b"\r\n" + behind).partition(b"\r\n\r\n")
    if not end:
        return None
    lines = trailers.split(b"\r\n")[1:]
    return Message(line, fields, body, _fields(lines, lenient), framing), behind


def _chunks(data: bytes, lenient: bool) -> tuple[bytes, bytes | None]:
    """Return the data of the chunks that are whole, and what follows the last one; None: that did not come."""
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return body, None
        size = re.fullmatch(rb"([0-9A-Fa-f]+)(;.*)?", line, re.DOTALL)
        if not size or (size.group(2) and not lenient):
            raise Malformed(line)
        count = int(size.group(1), 16)
        if not count:
            return body, data
        if len(data) < count + 2:
            return body, None
        if data[count : count + 2] != b"\r\n":
            raise Malformed(data[: count + 2])
        body += data[:count]
        data = data[count + 2 :]


# -- h11's opinion


def requests_by_h11(data: bytes) -> list[tuple[str, bytes, Fields, bytes, Fields]]:
    """Return method, target, fields, body and trailers of the requests in the bytes; the last one may be cut."""
    found: list[tuple[str, bytes, Fields, bytes, Fields]] = []
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    conn.receive_data(data)
    head, body = None, b""
    while True:
        event = conn.next_event()
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            trailers = list(event.headers.raw_items())
            found.append((head.method.decode(), head.target, list(head.headers.raw_items()), body, trailers))
            conn.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            conn.send(h11.EndOfMessage())
            conn.start_next_cycle()
        else:
            return found


def finals_by_h11(data: bytes, methods: Sequence[str], *, ended: bool) -> list[tuple[int, bytes]]:
    """Return status and body of the final answers that h11 takes for whole."""
    found: list[tuple[int, bytes]] = []
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    conn.receive_data(data)
    if ended:
        conn.receive_data(b"")
    for method in methods:
        conn.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        conn.send(h11.EndOfMessage())
        status, body = 0, b""
        while True:
            try:
                event = conn.next_event()
            except h11.RemoteProtocolError:
                return found
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((status, body))
                break
            elif not isinstance(event, h11.InformationalResponse):
                return found
        if conn.our_state is not h11.DONE or conn.their_state is not h11.DONE:
            return found
        conn.start_next_cycle()
    return found


# -- a server that takes notes


class Recorder(Script):
    """A server that keeps every byte that came, and answers each request once it is whole."""

    def __init__(self) -> None:
        super().__init__(self._record)
        #: How many connections are open.
        self.open = 0
        self.forget()

    def forget(self) -> None:
        """Begin a new page."""
        #: What came on each connection.
        self.raw: list[bytearray] = []
        #: The requests that came whole.
        self.arrived: list[Message] = []
        #: What was no request.
        self.malformed: list[Malformed] = []

    def _record(self, sock: socket.socket, number: int) -> None:
        raw, data = bytearray(), b""
        self.raw.append(raw)
        self.open += 1
        try:
            while piece := sock.recv(65536):
                raw += piece
                data += piece
                while found := take_request(data):
                    request, data = found
                    self.arrived.append(request)
                    sock.sendall(OK_TO_HEAD if request.method == "HEAD" else OK)
        except Malformed as error:
            self.malformed.append(error)
        finally:
            self.open -= 1
