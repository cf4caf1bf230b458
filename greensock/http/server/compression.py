"""Compression of answers, as the client takes it: gzip, br and zstd (RFC 9110 sections 8.4 and 12.5.3).

The rule of what is not compressed because it may be secret. Whoever can have a browser make requests, with text of his
own in them that comes back beside a secret, and sees how long the encrypted answers are, finds the secret out letter by
letter, as what repeats is shorter (BREACH). So the answer to a request with credentials (Cookie, Authorization, a
client's certificate) goes out as it is, and so does one that sets a cookie; unless it is a file, which has nothing of
the request in it, or the program says by ``Cache-Control: public`` that it is the same for all. ``credentialed`` of
:class:`Compression` lifts this, for a program that knows that none of its answers has both in it.
"""

from __future__ import annotations

import importlib
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from greensock.http.server.conditions import best_coding
from greensock.http.server.filters import BodyFilter, apply_filter
from greensock.http.server.request import Request
from greensock.http.server.response import FileBody, Response
from greensock.http.server.response_writer import BODILESS
from greensock.http.wire.body_length import declared_length

__all__ = ["Compression"]

#: Types besides ``text/...`` and those that end with ``+json`` or ``+xml`` that are worth it.
TYPES = frozenset(
    {"application/json", "application/javascript", "application/xml", "application/wasm", "application/x-ndjson"}
    | {"application/x-javascript", "application/manifest+json", "application/graphql", "application/yaml"}
    | {"image/bmp", "image/vnd.microsoft.icon", "image/x-icon", "font/ttf", "font/otf"}
)
#: Of a body in memory that is longer so many bytes are compressed at a time; others have their turn in between.
PIECE = 262_144
#: The window of br and zstd, as a power of two: what a stream holds grows with it.
WINDOW = 18


class Compression:
    """Which answers an ``HTTPServer`` or a ``WSGIServer`` compresses, and how: ``HTTPServer(..., compression=...)``.

    Not those of less than ``min_size`` bytes, of types that are compressed already or unknown, that have a
    Content-Encoding, ``Cache-Control: no-transform`` or a part of something (206), nor what may be secret, which is the
    answer to a request with credentials but for files and ``Cache-Control: public``: the module's text says why. What
    could go out compressed says ``Vary: Accept-Encoding``, whoever asks; what is has a weak ETag. Pieces of a body that
    streams go out at once, each compressed by itself. A stream holds up to 1 MB.

    Raises:
        ValueError: not such a number; a coding that is unknown, or whose package is not there.
    """

    def __init__(
        self,
        *,
        codings: Collection[str] | None = None,
        min_size: int = 1000,
        types: Collection[str] | None = None,
        credentialed: bool = False,
    ) -> None:
        """``codings``: those that are offered, the best first; by default zstd, br, gzip, as far as they are there.

        br needs the package ``brotli``; zstd Python 3.14 or ``backports.zstd`` (``pip install greensock[compress]``).
        ``types`` are those beside ``text/...``, ``...+json`` and ``...+xml``; by default ``TYPES``.
        """
        if not isinstance(min_size, int) or isinstance(min_size, bool) or min_size < 0:
            raise ValueError(f"min_size={min_size!r}: a whole number of at least 0 expected")
        wanted = list(CODERS) if codings is None else list(codings)
        #: The codings that are offered, the best first, and what makes their filters.
        self.coders: dict[str, Callable[[bool], BodyFilter]] = {}
        for coding in wanted:
            if coding not in CODERS:
                raise ValueError(f"codings: {coding!r}: {', '.join(CODERS)} expected")
            try:
                self.coders[coding] = CODERS[coding]()
            except ImportError as error:
                if codings is not None:
                    raise ValueError(f"codings: {coding!r}: {error} (pip install greensock[compress])") from None
        self.min_size = min_size
        self.types = TYPES if types is None else frozenset(types)
        self.credentialed = credentialed

    def is_worth_it(self, response: Response) -> bool:
        """Whether an answer is of a kind, and long enough, to be compressed."""
        headers = response.headers
        if response.status == 206 or "content-encoding" in headers or "content-range" in headers:
            return False
        if b"no-transform" in headers.tokens(b"cache-control"):
            return False
        kind = (headers.get("content-type") or "").partition(";")[0].strip().lower()
        if not (kind.startswith("text/") or kind in self.types or re.search(r"\+(json|xml)$", kind)):
            return False
        body = response.body
        if isinstance(body, FileBody):
            size: int | None = body.count
        elif isinstance(body, bytes) and body:
            size = len(body)
        else:
            size = declared_length(headers)  # of a body that streams, or of what GET would have
        return size is None or size >= self.min_size

    def may_be_secret(self, request: Request, response: Response) -> bool:
        """Whether an answer may have a secret in it beside what the request brought; to be overridden with care."""
        if self.credentialed:
            return False
        if "set-cookie" in response.headers:
            return True
        headers, tls = request.headers, request.connection.tls
        credentials = "cookie" in headers or "authorization" in headers
        if not credentials and (tls is None or tls.peer_certificate is None):
            return False
        return not (isinstance(response.body, FileBody) or b"public" in response.headers.tokens(b"cache-control"))

    def apply(self, request: Request, response: Response) -> Response:
        """Return an answer as it is to go out: the same, or a copy with other fields and perhaps another body."""
        accepted = request.headers.get("accept-encoding")
        if response.status == 304:  # its fields are those that 200 would have had (RFC 9110 section 15.4.5)
            response = _copy(response)
            add_vary(response)
            etag = response.headers.get("etag", "")
            if etag and f"W/{etag}" in (request.headers.get("if-none-match") or ""):
                response.headers.set("ETag", f"W/{etag}")
            return response
        if response.status in BODILESS or not self.is_worth_it(response) or self.may_be_secret(request, response):
            return response
        if response.body == b"" and request.method != "HEAD":
            return response
        # A program may give the same answer to many (test_an_answer_that_is_given_more_than_once).
        response = _copy(response)
        headers, body = response.headers, response.body
        add_vary(response)
        coding = best_coding(accepted, self.coders)
        if coding is None:
            return response
        headers.set("Content-Encoding", coding)
        etag = headers.get("etag")
        if etag is not None and not etag.startswith("W/"):
            headers.set("ETag", f"W/{etag}")
        if request.method == "HEAD" and not body:  # what GET would have is not known
            headers.remove("Content-Length")
            headers.remove("Accept-Ranges")
            return response
        change = self.coders[coding](not isinstance(body, bytes | FileBody))
        if isinstance(body, bytes) and len(body) > PIECE:
            response.body = _slices(body)
        apply_filter(response, change)
        return response


def _copy(response: Response) -> Response:
    return Response(response.body, response.status, response.headers)


def add_vary(response: Response) -> None:
    """Have an answer say that it depends on Accept-Encoding."""
    said = response.headers.tokens(b"vary")
    if b"*" not in said and b"accept-encoding" not in said:
        response.headers.add("Vary", "Accept-Encoding")


def _slices(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


class _Compressing:
    """A filter of one compressor; ``flush`` gives out what it keeps, behind each piece, where the body is live."""

    __slots__ = ("_compress", "_finish", "_flush")

    def __init__(
        self, compress: Callable[[bytes], bytes], flush: Callable[[], bytes] | None, finish: Callable[[], bytes]
    ) -> None:
        self._compress = compress
        self._flush = flush
        self._finish = finish

    def filter(self, piece: bytes) -> bytes:
        data = self._compress(piece)
        return data if self._flush is None else data + self._flush()

    def finish(self) -> bytes:
        return self._finish()


def _gzip() -> Callable[[bool], BodyFilter]:
    def make(live: bool) -> BodyFilter:
        coder = zlib.compressobj(5, zlib.DEFLATED, 31)
        return _Compressing(coder.compress, (lambda: coder.flush(zlib.Z_SYNC_FLUSH)) if live else None, coder.flush)

    return make


def _brotli() -> Callable[[bool], BodyFilter]:
    module: Any = importlib.import_module("brotli")

    def make(live: bool) -> BodyFilter:
        coder = module.Compressor(quality=4, lgwin=WINDOW)
        return _Compressing(coder.process, coder.flush if live else None, coder.finish)

    return make


def _zstd() -> Callable[[bool], BodyFilter]:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    module: Any = importlib.import_module(name)
    parameter = module.CompressionParameter
    options = {parameter.compression_level: 3, parameter.window_log: WINDOW}

    def make(live: bool) -> BodyFilter:
        coder = module.ZstdCompressor(options=options)
        flush = (lambda: coder.flush(coder.FLUSH_BLOCK)) if live else None
        return _Compressing(coder.compress, flush, lambda: coder.flush(coder.FLUSH_FRAME))

    return make


#: What makes a filter of each coding, the best first; each raises ImportError where its package is not there.
CODERS: dict[str, Callable[[], Callable[[bool], BodyFilter]]] = {"zstd": _zstd, "br": _brotli, "gzip": _gzip}
