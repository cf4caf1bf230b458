"""Files and directories as answers: types, ETag, Last-Modified, conditional requests, ranges, precompressed files.

What is sent is what is open: type, length and ETag are of that, whatever becomes of the name meanwhile. Nothing outside
of a directory is sent from it, not by ``..``, an absolute path or a link, nor what begins with a dot.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from typing import BinaryIO

from greensock.http.server.conditions import (
    Unsatisfiable,
    accepted_codings,
    failed_condition,
    ranges_of,
)
from greensock.http.server.request import Request
from greensock.http.server.response import FileBody, HTTPError, Response

__all__ = ["send_directory", "send_file"]

#: Codings and the ends of the names of files in them, the best first.
PRECOMPRESSED = {"br": ".br", "zstd": ".zst", "gzip": ".gz"}
#: How much of a file one piece of several ranges is.
PIECE = 65536


def send_file(
    request: Request,
    path: str | os.PathLike[str],
    *,
    content_type: str | None = None,
    headers: Mapping[str, str] | None = None,
    precompressed: bool = False,
) -> Response:
    """Return the answer to GET or HEAD that is a file: all of it, the ranges asked for, or that it has not changed.

    ``content_type`` is told from the name, if not given. ``headers`` are further fields, such as Cache-Control. With
    ``precompressed`` the file beside it that ends with ``.br``, ``.zst`` or ``.gz`` is sent to who accepts it.

    Raises:
        HTTPError: 404, there is no such file, or none that may be read; 405, another method.
    """
    if request.method not in ("GET", "HEAD"):
        raise HTTPError(405, headers={"Allow": "GET, HEAD"})
    name = os.fspath(path)
    coding = ""
    found: BinaryIO | None = None
    if precompressed:
        accepted = accepted_codings(request.headers.get("accept-encoding"))
        for coding, end in PRECOMPRESSED.items():
            if coding in accepted and (found := _opened(name + end)) is not None:
                break
    if found is None:
        coding, found = "", _opened(name)
    if found is None:
        raise HTTPError(404)
    try:
        response = _answer(request, found, content_type or _type_of(name))
    except BaseException:
        found.close()
        raise
    if type(response.body) is bytes:
        found.close()
    for field, value in (headers or {}).items():
        response.headers.set(field, value)
    if coding:
        response.headers.set("Content-Encoding", coding)
    if precompressed:
        response.headers.add("Vary", "Accept-Encoding")
    return response


def send_directory(
    request: Request,
    root: str | os.PathLike[str],
    prefix: str = "/",
    *,
    index: str | None = "index.html",
    headers: Mapping[str, str] | None = None,
    precompressed: bool = False,
) -> Response:
    """Return the answer that is the file of a directory which the request's path names, behind ``prefix``.

    A directory within is answered with its ``index``; without a slash at the end of the path, with a redirect to that
    with one.

    Raises:
        HTTPError: as ``send_file``; 404 also for a path that leads out of ``root``, or has names that begin with a dot.
    """
    path = request.path
    if not path.startswith(prefix):
        raise HTTPError(404)
    parts = path[len(prefix) :].split("/")
    if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts) or "" in parts[:-1]:
        raise HTTPError(404)
    base = os.path.realpath(root)
    name = os.path.realpath(os.path.join(base, *parts))
    if name != base and not name.startswith(base.rstrip("/") + "/"):
        raise HTTPError(404)  # a link that leads out
    if os.path.isdir(name):
        if index is None:
            raise HTTPError(404)
        if not path.endswith("/"):
            query = request.target.partition(b"?")[1:]
            # Of one slash: with two, what follows would be a host.
            written = "/" + request.raw_path.decode("latin-1").strip("/") + "/"
            return Response.redirect(written + b"".join(query).decode("latin-1"), 301)
        name = os.path.join(name, index)
    elif path.endswith("/"):
        raise HTTPError(404)
    return send_file(request, name, headers=headers, precompressed=precompressed)


def _opened(name: str) -> BinaryIO | None:
    """Return a regular file, open; None if there is none that may be read."""
    with contextlib.suppress(OSError, ValueError):
        file = open(name, "rb", opener=_open_quickly)  # noqa: SIM115  # the answer closes it
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    return None


def _open_quickly(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block all


def _type_of(name: str) -> str:
    kind, coding = mimetypes.guess_type(name)
    if kind is None or coding:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _answer(request: Request, file: BinaryIO, content_type: str) -> Response:
    status = os.fstat(file.fileno())
    size, modified = status.st_size, int(status.st_mtime)
    etag = f'"{status.st_mtime_ns:x}-{size:x}"'
    fields = {"ETag": etag, "Last-Modified": formatdate(modified, usegmt=True), "Accept-Ranges": "bytes"}
    failed = failed_condition(request.method, request.headers, etag, modified)
    if failed is not None:
        return Response(b"", failed, fields)
    try:
        ranges = ranges_of(request.method, request.headers, size, etag, modified)
    except Unsatisfiable:
        return Response(b"", 416, {**fields, "Content-Range": f"bytes */{size}"})
    if ranges is None:
        return Response(FileBody(file), 200, fields, content_type=content_type)
    if len(ranges) == 1:
        ((begin, end),) = ranges
        fields["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return Response(FileBody(file, begin, end - begin), 206, fields, content_type=content_type)
    body = _Ranges(file, ranges, size, content_type)
    fields["Content-Length"] = str(body.length)
    return Response(body, 206, fields, content_type=f"multipart/byteranges; boundary={body.boundary}")


class _Ranges:
    """Several ranges of a file, each a part (section 14.6)."""

    def __init__(self, file: BinaryIO, ranges: list[tuple[int, int]], size: int, content_type: str) -> None:
        self._file = file
        self.boundary = secrets.token_hex(16)
        self._parts = [
            (
                f"--{self.boundary}\r\nContent-Type: {content_type}\r\n"
                f"Content-Range: bytes {begin}-{end - 1}/{size}\r\n\r\n".encode(),
                begin,
                end,
            )
            for begin, end in ranges
        ]
        self._last = f"--{self.boundary}--\r\n".encode()
        #: Bytes of all of it.
        self.length = sum(len(head) + end - begin + 2 for head, begin, end in self._parts) + len(self._last)

    def __iter__(self) -> Iterator[bytes]:
        for head, begin, end in self._parts:
            yield head
            while begin < end:
                piece = os.pread(self._file.fileno(), min(PIECE, end - begin), begin)
                if not piece:
                    raise OSError(f"{self._file!r} has shrunk since its answer was made")
                begin += len(piece)
                yield piece
            yield b"\r\n"
        yield self._last

    def close(self) -> None:
        """Close the file."""
        self._file.close()
