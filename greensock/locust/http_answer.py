"""What a request of an ``HTTPUser`` returns: what FastHttpUser's responses are to a locustfile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

from locust.event import EventHook
from locust.exception import CatchResponseError, LocustError, ResponseError

from greensock.http.client.charset import charset_of
from greensock.http.client.client_response import ClientResponse
from greensock.http.wire.headers import Headers

__all__ = ["AskedRequest", "BadStatusCode", "HTTPAnswer"]


class BadStatusCode(ConnectionError):
    """The server answered with a status that is no success; ``response`` is the answer."""

    def __init__(self, code: int, response: Any = None) -> None:
        super().__init__(code)
        self.code = code
        self.response = response

    def __repr__(self) -> str:  # Locust counts failures by this
        return f"BadStatusCode(code={self.code})"

    __str__ = __repr__


class AskedRequest(NamedTuple):
    """What was asked."""

    method: str
    url: str
    headers: dict[str, str]
    #: What was given as ``data``, or the text of ``json``.
    body: Any


class HTTPAnswer:
    """An answer, or the lack of one: ``error`` says why, ``status_code`` is 0, ``content`` and ``headers`` are None.

    With ``catch_response=True`` it is used in a ``with`` block, in which ``success()`` and ``failure(why)`` decide what
    it counts as; an exception that leaves the block is the task's, but for ``ResponseError``, which is a failure.
    """

    # Whatever else a locustfile puts on it, as ``rest`` does, has room too.
    __slots__ = (
        "__dict__",
        "_answer",
        "_entered",
        "_event",
        "_manual",
        "_takes_blocks",
        "asked",
        "content",
        "encoding",
        "error",
        "headers",
        "request_meta",
        "status_code",
    )

    js: Any
    #: Method, fields and body of the request.
    asked: tuple[str, Any, Any]

    def __init__(self, event: EventHook, meta: dict[str, Any], takes_blocks: bool) -> None:
        self._event = event
        self._takes_blocks = takes_blocks
        self._entered = False
        self._manual: bool | Exception | None = None
        self._answer: ClientResponse | None = None
        #: What Locust is told; to be changed within the block.
        self.request_meta = meta
        #: The body, decoded; None if there was no answer, or with ``stream``.
        self.content: bytes | None = None
        #: The fields, told apart without regard to case.
        self.headers: Headers | None = None
        #: 0 if there was no answer.
        self.status_code = 0
        #: Why there was none, or which status it had that is no success.
        self.error: Exception | None = None
        #: In what ``text`` is written, if it is not to be found out.
        self.encoding: str | None = None

    def came(self, answer: ClientResponse, content: bytes | None) -> None:
        """Be the answer that came."""
        self._answer = answer
        self.status_code = answer.status
        self.headers = answer.headers
        self.content = content

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    @property
    def reason(self) -> str:
        """What stands behind the status."""
        return "" if self._answer is None else self._answer.head.phrase.decode("latin-1")

    @property
    def url(self) -> str:
        """What was asked: behind redirections as in FastHttpUser the first URL. ``history`` has the others."""
        return str(self.request_meta["url"])

    @property
    def history(self) -> tuple[ClientResponse, ...]:
        """The answers that led to this one by redirection."""
        return () if self._answer is None else self._answer.history

    @property
    def request(self) -> AskedRequest:
        """What was asked."""
        method, headers, body = self.asked
        return AskedRequest(method, self.url, dict(headers or {}), body)

    @property
    def text(self) -> str | None:
        """The content as text; None if there is none."""
        if self.content is None:
            return None
        if self.encoding is None:
            said = None if self.headers is None else self.headers.get("content-type")
            self.encoding = charset_of(said, self.content)
        return self.content.decode(self.encoding, "replace")

    def json(self) -> Any:
        """Return what the content says as JSON. Raises ``ValueError`` if it is none."""
        return json.loads(self.content if self.content is not None else "")

    def iter_content(self, chunk_size: int = 1024, decode_content: bool = True) -> Iterator[bytes | str]:
        """Go through the body of an answer that was asked for with ``stream=True``, as it comes."""
        if self._answer is None:
            raise LocustError("there is no answer to iterate on")
        for piece in iter(lambda: self._read(chunk_size), b""):
            try:
                yield piece.decode() if decode_content else piece
            except UnicodeDecodeError:
                yield piece

    def iter_lines(self) -> Iterator[str]:
        """Go through the lines of such a body, as text without their ends."""
        rest = b""
        for piece in iter(lambda: self._read(65536), b""):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
        if rest:
            yield rest.decode("utf-8", "replace")

    def _read(self, size: int) -> bytes:
        assert self._answer is not None
        return self._answer.read(size)

    def close(self) -> None:
        """Give up what was not read of an answer that was asked for with ``stream=True``."""
        if self._answer is not None:
            self._answer.close()

    def raise_for_status(self) -> None:
        """Raise what made it a failure, if anything."""
        if isinstance(self._manual, Exception):
            raise self._manual
        if self.error is not None and self._manual is None:
            raise self.error

    def success(self) -> None:
        """Have it count as a success, whatever its status."""
        self._must_be_entered()
        self._manual = True

    def failure(self, exc: Exception | str) -> None:
        """Have it count as a failure, by a few words or an exception: failures are counted by what they say."""
        self._must_be_entered()
        self._manual = exc if isinstance(exc, Exception) else CatchResponseError(exc)

    def _must_be_entered(self) -> None:
        if not self._entered:
            raise LocustError("success() and failure() are for a with block, on a request with catch_response=True")

    def __enter__(self) -> HTTPAnswer:
        if not self._takes_blocks:
            raise LocustError("a with block is for a request with catch_response=True")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        manual, meta = self._manual, self.request_meta
        if manual is None:
            if error is not None:
                if not isinstance(error, ResponseError):
                    return False
                meta["exception"] = error
        else:
            meta["exception"] = None if manual is True else manual
        self._event.fire(**meta)
        return manual is None or error is None

    def __repr__(self) -> str:
        return f"<HTTPAnswer {self.status_code} {self.url}>"
