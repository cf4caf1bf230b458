"""What programs give to be sent, as queries and bodies: parameters, forms, files, JSON."""

from __future__ import annotations

import io
import json
import mimetypes
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from greensock.http.client.payload import Body, Payload, Segment, payload_of
from greensock.http.wire.headers import Headers

__all__ = ["Files", "Pairs", "body_of", "form_of", "with_params"]

#: Names and values, in order or by name; a value may be a list of them, and None is left out.
Pairs = Mapping[str, Any] | Iterable[tuple[str, Any]]
#: What a file is: its content, or ``(filename, content)``, ``(filename, content, content type)``, by the field's name.
Files = Mapping[str, Any] | Iterable[tuple[str, Any]]


def _pairs(given: Any, name: str) -> list[tuple[str, Any]]:
    """Go through names and values, each value by itself."""
    items = given.items() if isinstance(given, Mapping) else given
    found = []
    try:
        for key, value in items:
            many = value if isinstance(value, list | tuple) else [value]
            found += [(key, each) for each in many if each is not None]
    except (TypeError, ValueError):
        raise TypeError(f"{name}={type(given).__name__}: a mapping, or pairs of names and values, expected") from None
    return found


def form_of(given: Pairs | str, name: str = "data") -> str:
    """Return the pairs as ``application/x-www-form-urlencoded``; text is such already."""
    if isinstance(given, str):
        return given
    return urlencode([(key, _said(value)) for key, value in _pairs(given, name)])


def _said(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def with_params(url: str, params: Pairs | str) -> str:
    """Return the URL with a query that has these, too; behind what it has."""
    query = form_of(params, "params")
    if not query:
        return url
    url, _, _ = url.partition("#")
    return f"{url}{'&' if '?' in url else '?'}{query}"


def body_of(
    headers: Headers, body: Body = None, json_value: Any = None, data: Any = None, files: Files | None = None
) -> tuple[Headers, Payload]:
    """Return what is sent, and the fields with what says what it is, unless they say that themselves.

    Raises:
        TypeError, ValueError: more than one of them was given, or something that cannot be sent.
    """
    given = [name for name, each in (("body", body), ("json", json_value)) if each is not None]
    given += ["data and files"] if data is not None or files is not None else []
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} together: one of them is the body")
    if json_value is not None:
        text = json.dumps(json_value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return _typed(headers, "application/json"), payload_of(text, headers)
    if files is not None:
        form = Multipart(data if data is not None else (), files)
        return _typed(headers, f"multipart/form-data; boundary={form.boundary}"), form
    if isinstance(data, Mapping) or (isinstance(data, list | tuple) and all(isinstance(each, tuple) for each in data)):
        return _typed(headers, "application/x-www-form-urlencoded"), payload_of(form_of(data), headers)
    if isinstance(data, str):
        return _typed(headers, "application/x-www-form-urlencoded"), payload_of(data, headers)
    return headers, payload_of(data if data is not None else body, headers)


def _typed(headers: Headers, content_type: str) -> Headers:
    if headers.get_raw(b"content-type") is not None:
        return headers
    headers = headers.copy()
    headers.add("Content-Type", content_type)
    return headers


class Multipart(Payload):
    """A form with files (RFC 7578). Files are sent from where they stand to their end, and are not read into memory.

    They neither move nor are closed. One without an end that is known is sent in chunks, and cannot be sent twice.
    """

    __slots__ = ("_parts", "boundary", "is_replayable")

    def __init__(self, fields: Any, files: Files) -> None:
        #: What stands between the parts; by chance, so that no file has it.
        self.boundary = os.urandom(16).hex()
        self.is_replayable = True
        self._parts: list[tuple[bytes, Payload]] = []
        for name, value in _pairs(fields, "data"):
            content = value if isinstance(value, bytes) else str(_said(value)).encode()
            self._add(f'name="{_quoted(name)}"', "", payload_of(content, Headers()))
        for name, file in files.items() if isinstance(files, Mapping) else files:
            filename, content, kind = _file_of(name, file)
            shown = f'name="{_quoted(name)}"'
            if filename is not None:
                shown += f'; filename="{_quoted(filename)}"'
            self._add(shown, kind, _content_of(content))

    def _add(self, shown: str, kind: str, content: Payload) -> None:
        head = f"--{self.boundary}\r\nContent-Disposition: form-data; {shown}\r\n"
        head += f"Content-Type: {kind}\r\n\r\n" if kind else "\r\n"
        self._parts.append((head.encode(), content))
        self.is_replayable = self.is_replayable and content.is_replayable

    @property
    def length(self) -> int | None:
        total = len(self.boundary) + 6
        for head, content in self._parts:
            if content.length is None:
                return None
            total += len(head) + content.length + 2
        return total

    def pieces(self) -> Iterator[bytes | memoryview | Segment]:
        chunked = self.length is None
        for head, content in self._parts:
            yield head
            for piece in content.pieces():
                if chunked and isinstance(piece, Segment):  # what goes out in chunks is bytes
                    data = os.pread(piece.file.fileno(), piece.size, piece.offset)
                    if len(data) < piece.size:
                        raise ValueError(f"{piece.file!r} has shrunk while it was sent")
                    yield data
                else:
                    yield piece
            yield b"\r\n"
        yield f"--{self.boundary}--\r\n".encode()


def _content_of(content: Any) -> Payload:
    if isinstance(content, io.BytesIO):
        content = content.getbuffer()[content.tell() :].tobytes()
    return payload_of(content, Headers())


def _file_of(name: str, file: Any) -> tuple[str | None, Any, str]:
    """Return the name, the content and the type of a file."""
    filename, content, kind = None, file, None
    if isinstance(file, tuple):
        if len(file) not in (2, 3):
            raise ValueError(f"files: {name!r}: content, (filename, content) or (filename, content, type) expected")
        filename, content = file[0], file[1]
        kind = file[2] if len(file) == 3 else None
    else:
        path = getattr(file, "name", None)
        filename = os.path.basename(path) if isinstance(path, str) else name
    if content is None or isinstance(content, io.TextIOBase):
        raise TypeError(f"files: {name!r}: bytes, str, or a file that was opened in binary mode expected")
    kind = kind or mimetypes.guess_type(filename or "")[0] or "application/octet-stream"
    if not kind.isprintable() or not kind.isascii():
        raise ValueError(f"files: {name!r}: type {kind!r}: printable ASCII expected")
    return filename, content, kind


def _quoted(name: str) -> str:
    """Return a name as HTML has it written (multipart/form-data encoding algorithm): it cannot leave its quotes."""
    return str(name).replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
