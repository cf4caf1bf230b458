"""Routes for small services: which function answers a method and a path.

A path is compared segment by segment, each percent-decoded by itself, so that ``%2F`` is no border. (werkzeug's
routing, which knows much more, took 33 us a request for 32 routes where this took 6 to 20, the last of them most.)
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from greensock.http.server.request import Request
from greensock.http.server.response import HTTPError, Response

__all__ = ["RouteTable"]

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


def whole_number(text: str) -> int:
    """Return a number of 1 to 18 digits.

    Raises:
        ValueError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError("1 to 18 digits expected")
    return int(text)


#: What a segment may be, beside ``str`` and ``path``; each raises ValueError for what it is not.
CONVERTERS: Mapping[str, Callable[[str], Any]] = {"int": whole_number, "uuid": uuid.UUID}


class RouteTable:
    """A table of methods and paths, called with a request: ``HTTPServer(listener, handle_request=routes)``.

    ``<name>`` in a path is a segment, which the function gets by that name; ``<int:name>`` and ``<uuid:name>`` must be
    such, ``<path:name>`` is all the rest, slashes and all. A segment is never empty. What is written out goes before
    what is not, and then what was added first. ``/a`` and ``/a/`` are two paths.

    There is 404 for a path that nothing is for, 405 with Allow for another method. HEAD is answered by what is for GET,
    OPTIONS, if nothing is for it, with 204 and Allow.

    ``converters`` are more of them, by name: functions of the segment, decoded, that raise ValueError if it is none.
    """

    def __init__(self, converters: Mapping[str, Callable[[str], Any]] | None = None) -> None:
        self._converters = {**CONVERTERS, **(converters or {})}
        self._written: dict[tuple[str, ...], _Methods] = {}
        self._others: list[_Pattern] = []

    def route(self, path: str, methods: Collection[str] = ("GET",)) -> Callable[[HandlerT], HandlerT]:
        """Return what adds a function to the table: ``@routes.route("/users/<int:user>", ["GET", "PUT"])``.

        Raises:
            ValueError: a path that does not begin with a slash, or has a part that is not understood; methods that
                are none, or are there already.
        """
        if isinstance(methods, str) or not methods or not all(each.isupper() for each in methods):
            raise ValueError(f"methods={methods!r}: a list of methods expected, such as ['GET']")
        pattern = self._pattern(path)

        def add(function: HandlerT) -> HandlerT:
            table = self._table_of(pattern)
            for method in methods:
                if method in table:
                    raise ValueError(f"{method} {path}: it is there already")
                table[method] = function
            return function

        return add

    def get(self, path: str) -> Callable[[HandlerT], HandlerT]:
        """Return what adds a function for GET, and so for HEAD: ``@routes.get("/")``."""
        return self.route(path)

    def post(self, path: str) -> Callable[[HandlerT], HandlerT]:
        """Return what adds a function for POST."""
        return self.route(path, ("POST",))

    def __call__(self, request: Request) -> Response | None:
        """Answer a request by what it is for.

        Raises:
            HTTPError: 404, 405. Let it through.
        """
        method, raw = request.method, request.raw_path
        if raw == b"*":  # of the server as a whole (RFC 9110 section 9.3.7)
            return Response(status=204)
        if not raw:  # CONNECT
            raise HTTPError(404)
        path = tuple(unquote(each) for each in raw.decode("latin-1").split("/")[1:])
        allowed: set[str] = set()
        found = self._written.get(path)
        if found is not None:
            function = found.get(method) or (found.get("GET") if method == "HEAD" else None)
            if function is not None:
                answer: Response | None = function(request)
                return answer
            allowed.update(found)
        for pattern in self._others:
            if pattern.first is not None and pattern.first != path[0]:
                continue
            values = pattern.match(path)
            if values is None:
                continue
            found = pattern.methods
            function = found.get(method) or (found.get("GET") if method == "HEAD" else None)
            if function is not None:
                answer = function(request, **values)
                return answer
            allowed.update(found)
        if not allowed:
            raise HTTPError(404)
        allowed.add("OPTIONS")
        if "GET" in allowed:
            allowed.add("HEAD")
        fields = {"Allow": ", ".join(sorted(allowed))}
        if method == "OPTIONS":
            return Response(status=204, headers=fields)
        raise HTTPError(405, headers=fields)

    def _pattern(self, path: str) -> _Pattern:
        if not path.startswith("/"):
            raise ValueError(f"path={path!r}: a slash at its beginning expected")
        parts: list[str | _Part] = []
        segments = path.split("/")[1:]
        for number, segment in enumerate(segments):
            if "<" not in segment and ">" not in segment:
                parts.append(segment)
                continue
            kind, colon, name = segment[1:-1].rpartition(":")
            kind = kind if colon else "str"
            if not (segment.startswith("<") and segment.endswith(">") and name.isidentifier()):
                raise ValueError(f"path={path!r}: <name> or <kind:name> expected, not {segment!r}")
            if kind not in self._converters and kind not in ("str", "path"):
                known = ", ".join(sorted(["str", "path", *self._converters]))
                raise ValueError(f"path={path!r}: {kind!r} is none of {known}")
            if kind == "path" and number < len(segments) - 1:
                raise ValueError(f"path={path!r}: nothing can stand behind {segment!r}")
            if any(part.name == name for part in parts if not isinstance(part, str)):
                raise ValueError(f"path={path!r}: {name!r} twice")
            parts.append(_Part(name, self._converters.get(kind), kind == "path"))
        return _Pattern(parts)

    def _table_of(self, pattern: _Pattern) -> _Methods:
        """Return the functions that are for a path by their methods."""
        written = tuple(part for part in pattern.parts if isinstance(part, str))
        if len(written) == len(pattern.parts):
            return self._written.setdefault(written, {})
        for each in self._others:
            if each.parts == pattern.parts:
                return each.methods
        self._others.append(pattern)
        return pattern.methods


_Methods = dict[str, Callable[..., Any]]


class _Part:
    """A segment that is not written out."""

    __slots__ = ("convert", "is_rest", "name")

    def __init__(self, name: str, convert: Callable[[str], Any] | None, is_rest: bool) -> None:
        self.name = name
        self.convert = convert
        self.is_rest = is_rest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Part):
            return NotImplemented
        return (self.name, self.convert, self.is_rest) == (other.name, other.convert, other.is_rest)

    __hash__ = None  # type: ignore[assignment]


class _Pattern:
    """A path that is not all written out."""

    __slots__ = ("first", "methods", "parts")

    def __init__(self, parts: list[str | _Part]) -> None:
        self.parts = parts
        #: The first segment, if it is written out: most paths differ there.
        self.first = parts[0] if isinstance(parts[0], str) else None
        self.methods: _Methods = {}

    def match(self, path: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the values of what is not written out; None if it is another path."""
        parts, last = self.parts, self.parts[-1]
        values: dict[str, Any] = {}
        if len(path) != len(parts) and (isinstance(last, str) or not last.is_rest or len(path) < len(parts)):
            return None
        for number, part in enumerate(parts):
            text = path[number]
            if isinstance(part, str):
                if text != part:
                    return None
                continue
            if part.is_rest:
                text = "/".join(path[number:])
            if not text:
                return None
            if part.convert is None:
                values[part.name] = text
                continue
            try:
                values[part.name] = part.convert(text)
            except ValueError:
                return None
        return values
