"""Answers of a server that does not know where it stands: what leads back to it is put right. Pure.

A server answers below *there* (the path of its URL; empty: the root) what clients ask for below *here* (the path that
the route takes off; empty: the root). What an answer says of its own places is of the server's paths, and it may be of
the server's name:

- Location, Content-Location and the URL in Refresh: a path below *there* becomes the same below *here*. A URL with the
  server's own authority becomes a path; with the client's, its path is put right and the rest stays. Whatever leads
  elsewhere, or is relative to what was asked for, stays as it is.
- Set-Cookie: Path likewise; a Path above *there*, as ``/`` is, becomes *here*. A Domain that is the server's name goes,
  and with it the cookie is the host's that was asked. ``__Host-`` cookies stay as they are: browsers want ``/`` there.

What begins with *here* already, while the server stands at the root, is of a server that knows (X-Forwarded-Prefix,
say) and stays. Nothing that comes out begins with two slashes: it would lead to another host.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = ["Pair", "Places"]

Pair = tuple[bytes, bytes]

REFERENCES = frozenset({b"location", b"content-location"})
#: All fields that are looked at.
LOOKED_AT = REFERENCES | {b"refresh", b"set-cookie"}

_with_authority = re.compile(rb"(?:https?:)?//([^/?#\\]*)", re.IGNORECASE).match
_refresh = re.compile(rb"([0-9.]+[ \t]*[;,][ \t]*url[ \t]*=[ \t]*)(['\"]?)([^'\"]*)(.*)", re.IGNORECASE).fullmatch
_end_of_path = re.compile(rb"[?#]").search
# With tabs between, which browsers leave out (URL Standard, "basic URL parser").
_slashes = re.compile(rb"[/\\]\t*[/\\]").match


class Places:
    """Where a server stands for itself, and where for its clients."""

    __slots__ = ("_here", "_there")

    def __init__(self, there: bytes, here: bytes) -> None:
        """Both are paths without a slash at their end, as they are written in a URL; empty: the root."""
        self._there = there
        self._here = here

    def put_right(self, pairs: list[Pair], own: Iterable[bytes], asked: bytes) -> list[Pair]:
        """Return the fields of an answer with what leads back to the server put right.

        ``own`` are the authorities that the server may take for its own, ``asked`` is the client's; with a port or not.
        """
        known, asked = {each.lower() for each in own}, asked.lower()
        found = []
        for pair in pairs:
            name = pair[0].lower()
            if name in LOOKED_AT:
                if name == b"set-cookie":
                    pair = pair[0], self._cookie(pair[1], {_name_of(each) for each in known}, _name_of(asked))
                elif name == b"refresh":
                    pair = pair[0], self._refresh(pair[1], known, asked)
                else:
                    pair = pair[0], self.reference(pair[1], known, asked)
            found.append(pair)
        return found

    def reference(self, value: bytes, own: Collection[bytes], asked: bytes) -> bytes:
        """Return a reference for the client to follow. ``own`` and ``asked`` are in lower case."""
        match = _with_authority(value)
        if match is not None:
            authority, rest = match[1].lower(), value[match.end() :]
            if authority == asked:
                mapped = self._path(rest or b"/")
                return value if mapped is None else match[0] + mapped
            if authority in own:
                mapped = self._path(rest or b"/")
                return value if mapped is None else mapped
            return value
        if not value.startswith(b"/"):
            return value
        mapped = self._path(value)
        return value if mapped is None else mapped

    def _path(self, path: bytes) -> bytes | None:
        """Return a path of the server's, with query and fragment, as the client's; None: it is not below *there*."""
        there, here = self._there, self._here
        end = _end_of_path(path)
        bare = path if end is None else path[: end.start()]
        if not _is_below(bare, there):
            return None
        if here and not there and bare and _is_below(bare, here):
            return path
        rest = path[len(there) :]
        if not here and not rest.startswith(b"/"):
            rest = b"/" + rest
        if rest[:1] not in (b"", b"/", b"?", b"#"):
            rest = b"/" + rest
        mapped = here + rest
        return b"/" + mapped.lstrip(b"/\\\t") if _slashes(mapped) else mapped

    def _refresh(self, value: bytes, own: Collection[bytes], asked: bytes) -> bytes:
        match = _refresh(value)
        if match is None:
            return value
        return match[1] + match[2] + self.reference(match[3].strip(), own, asked) + match[4]

    def _cookie(self, value: bytes, own: Collection[bytes], asked: bytes) -> bytes:
        first, *attributes = value.split(b";")
        name = first.partition(b"=")[0].strip().lower()
        if name.startswith(b"__host-"):
            return value
        parts = [first]
        for attribute in attributes:
            key, mark, said = attribute.partition(b"=")
            word, said = key.strip().lower(), said.strip()
            if word == b"path" and mark:
                attribute = b"%b=%b" % (key, self._path_of_cookie(said))
            elif word == b"domain":
                domain = said.lower().removeprefix(b".")
                if domain in own and domain != asked:
                    continue
            parts.append(attribute)
        return b";".join(parts)

    def _path_of_cookie(self, path: bytes) -> bytes:
        there, here = self._there, self._here
        if not path.startswith(b"/"):
            return path
        if there and _is_below(there, path.rstrip(b"/")):  # above it, or the same
            return here or b"/"
        if not _is_below(path, there) or (here and not there and _is_below(path, here)):
            return path
        rest = path[len(there) :]
        return here + (rest if rest != b"/" or not here else b"") or b"/"


def _is_below(path: bytes, base: bytes) -> bool:
    """Whether a path is a base, or below it."""
    return path.startswith(base) and (len(path) == len(base) or not base or path[len(base)] == 0x2F)


def _name_of(authority: bytes) -> bytes:
    """Return an authority without its port."""
    return re.sub(rb":[0-9]*$", b"", authority)
