"""An answer, as the program gives it: a status, fields, and a body of one of several kinds."""

from __future__ import annotations

import io
import json
import mimetypes
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO
from urllib.parse import quote

from greensock.http.server.cookies import SameSite, cookie_line
from greensock.http.wire.headers import Headers
from greensock.http.wire.writer import phrase_of

__all__ = ["FileBody", "HTTPError", "Response", "is_plain"]

#: Statuses that lead elsewhere.
REDIRECTS = frozenset({301, 302, 303, 307, 308})

Fields = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


class FileBody:
    """``count`` bytes of an open file from ``offset`` on, sent by sendfile; the file is closed when that is over.

    ``count`` is what the file has if it has less.

    Raises:
        ValueError: a negative ``offset`` or ``count``; no regular file, as the length of a pipe is not known; or a
            file that decompresses: its descriptor has other bytes.
    """

    __slots__ = ("count", "file", "offset")

    def __init__(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> None:
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset={offset!r}, count={count!r}: 0 or more expected")
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not is_plain(file):
            raise ValueError(f"{file!r}: a regular file expected")
        rest = max(0, status.st_size - offset)
        #: The open file; its position neither matters nor moves.
        self.file = file
        #: Where to begin, in bytes.
        self.offset = offset
        #: How many bytes are sent.
        self.count = rest if count is None else min(count, rest)

    def read_all(self) -> bytes:
        """Return the bytes; fewer than ``count`` if the file has shrunk."""
        return os.pread(self.file.fileno(), self.count, self.offset)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def is_plain(file: Any) -> bool:
    """Whether what a file gives is what its descriptor gives: one that decompresses has a descriptor, too."""
    return isinstance(getattr(file, "raw", file), io.FileIO)


class Response:
    """An answer.

    ``body`` is ``bytes``; ``str``, sent as UTF-8; or an iterable of ``bytes``, sent as it comes: with a Content-Length
    if the fields have one, else in chunks (to a client that speaks 1.0: until close). An iterable with a ``close``
    method is closed whatever happens. If it fails before its first piece the answer becomes 500; later, or if it gives
    more or less than its Content-Length, it is cut off and the connection closes.

    Content-Length, Transfer-Encoding, Connection and Keep-Alive are the server's to write; of these are looked at: a
    Content-Length for an iterable, or beside an empty body in the answer to HEAD and in 304; and ``Connection: close``.
    Date is added if the fields have none.

    ``headers`` are copied. ``content_type`` is what Content-Type gets if the fields have none; None for no such field.

    Raises:
        ValueError: a status that is no final one (200 to 999), or a field that would split the message.
        TypeError: a body of another kind.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        body: bytes | str | FileBody | Iterable[bytes] = b"",
        status: int = 200,
        headers: Headers | Fields = (),
        *,
        content_type: str | None = None,
    ) -> None:
        if not 200 <= status <= 999:
            raise ValueError(f"status={status!r}: 200 to 999 allowed (1xx: see send_interim)")
        if isinstance(body, str):
            body = body.encode()
            content_type = content_type or "text/plain; charset=utf-8"
        elif type(body) is not bytes:
            body = _as_body(body)
        if isinstance(headers, Headers):
            headers = headers.copy()
        elif isinstance(headers, list | tuple):  # an ABC is slow to ask
            headers = Headers(headers)
        else:
            headers = Headers(headers.items() if isinstance(headers, Mapping) else headers)
        #: 200 to 999.
        self.status = status
        #: The fields.
        self.headers = headers
        #: What is sent.
        self.body = body
        if content_type is not None and "content-type" not in headers:
            headers.add("Content-Type", content_type)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Headers | Fields = ()) -> Response:
        """Return an answer whose body is ``value`` as JSON."""
        return cls(json.dumps(value).encode(), status, headers, content_type="application/json")

    @classmethod
    def file(
        cls,
        file: str | os.PathLike[str] | io.BufferedReader,
        offset: int = 0,
        count: int | None = None,
        status: int = 200,
        headers: Headers | Fields = (),
    ) -> Response:
        """Return an answer whose body is a file, or a part of it, sent by sendfile.

        ``file`` is a path, or an open binary file, which is closed afterwards. The type is told from the name. What the
        file has grown by since is not sent; if it has shrunk the answer is cut off. A part is sent as it is asked
        for: ``status`` 206 and Content-Range are the program's.

        Raises:
            OSError: it can't be opened.
            ValueError: see :class:`FileBody`.
        """
        opened = file if isinstance(file, io.BufferedReader) else open(file, "rb")  # noqa: SIM115  # the body closes it
        kind, coding = mimetypes.guess_type(str(opened.name))
        content_type = kind if kind and not coding else "application/octet-stream"
        try:
            return cls(FileBody(opened, offset, count), status, headers, content_type=content_type)
        except BaseException:
            opened.close()
            raise

    @classmethod
    def redirect(cls, location: str, status: int = 302, headers: Headers | Fields = ()) -> Response:
        """Return an answer that leads elsewhere: ``location`` is a URL, or a path with or without its host.

        302 for now and 301 for ever, where POST becomes GET; 303 after a POST; 307 and 308 keep the method. What is
        not ASCII is percent-encoded. Where ``location`` is of the client's making it may lead to any site.

        Raises:
            ValueError: another status, or white space or control characters in ``location``.
        """
        if status not in REDIRECTS:
            raise ValueError(f"status={status!r}: one of {', '.join(map(str, sorted(REDIRECTS)))} expected")
        written = quote(location, safe="!#$%&'()*+,/:;=?@[]~")
        if not location or re.search(r"[\x00-\x20\x7f\\]", location):
            raise ValueError(f"location={location!r}: no white space, control characters and backslashes expected")
        response = cls(b"", status, headers)
        response.headers.set("Location", written)
        return response

    def set_cookie(
        self,
        name: str,
        value: str,
        *,
        max_age: int | None = None,
        expires: float | None = None,
        path: str | None = "/",
        domain: str | None = None,
        secure: bool = False,
        http_only: bool = True,
        same_site: SameSite | None = "Lax",
    ) -> None:
        """Set a cookie; ``max_age`` in seconds or ``expires`` in seconds since 1970, or it ends with the session.

        Scripts of the page do not see it unless ``http_only=False``, and requests that other sites make do not have it
        but for links (``Lax``). Give ``secure=True`` wherever there is TLS.

        Raises:
            ValueError: a name or value that cannot be in a cookie, or attributes that browsers refuse together.
        """
        line = cookie_line(
            name,
            value,
            max_age=max_age,
            expires=expires,
            path=path,
            domain=domain,
            secure=secure,
            http_only=http_only,
            same_site=same_site,
        )
        self.headers.add("Set-Cookie", line)

    def delete_cookie(
        self, name: str, *, path: str | None = "/", domain: str | None = None, secure: bool = False
    ) -> None:
        """Have the client forget a cookie, which was set with the same ``path`` and ``domain``."""
        self.set_cookie(name, "", max_age=0, expires=0.0, path=path, domain=domain, secure=secure)

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.headers!r}>"


def _as_body(body: Any) -> bytes | FileBody | Iterable[bytes]:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    if not isinstance(body, FileBody) and not hasattr(body, "__iter__"):
        raise TypeError(f"body={type(body).__name__}: bytes, str, a file or an iterable of bytes expected")
    return body  # type: ignore[no-any-return]


class HTTPError(Exception):
    """Raise it in ``handle_request`` to answer with an error; ``response`` can be built on.

    ``text`` is the body, by default the status's phrase.
    """

    def __init__(self, status: int, text: str | None = None, headers: Headers | Fields = ()) -> None:
        phrase = phrase_of(status).decode()
        super().__init__(f"{status} {phrase}")
        self.response = Response(f"{text or phrase or status}\n", status, headers)
