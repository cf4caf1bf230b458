"""What requests are told apart by: the client, a field, a cookie. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from greensock.http.wire.headers import Headers
from greensock.http.wire.syntax import is_token

__all__ = ["KeyOf", "cookies_named", "key_of"]

#: Gives the key of a request: ``(client's address, fields)``; None if it has none.
KeyOf: TypeAlias = Callable[[str, Headers], "bytes | None"]


def cookies_named(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of the cookies of that name, in order; names are told apart by case (RFC 6265 section 5.4).

    Quotes around a value belong to it.
    """
    sent = headers.get_raw(b"cookie")
    if sent is None or name not in sent:
        return []
    found = []
    for pair in sent.split(b";"):
        key, equals, value = pair.partition(b"=")
        if equals and key.strip(b" \t") == name:
            found.append(value.strip(b" \t"))
    return found


def _of_client(client: str, headers: Headers) -> bytes | None:
    return client.encode("utf-8", "surrogateescape")


def _of_field(name: bytes) -> KeyOf:
    return lambda client, headers: headers.get_raw(name) or None


def _of_cookie(name: bytes) -> KeyOf:
    def find(client: str, headers: Headers) -> bytes | None:
        found = cookies_named(headers, name)
        return found[0] or None if found else None

    return find


def key_of(spec: str) -> KeyOf:
    """Return what finds the key of a request; ``spec`` is ``client``, ``header:NAME`` or ``cookie:NAME``.

    An empty value is none. Of repeated fields the key is all of them, of repeated cookies the first.

    Raises:
        ValueError: it is nothing of these.
    """
    kind, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if kind == "client" and not colon:
        return _of_client
    raw = name.encode("utf-8", "replace")
    if kind in ("header", "cookie") and is_token(raw):
        return _of_field(raw.lower()) if kind == "header" else _of_cookie(raw)
    raise ValueError(f"hash_key={spec!r}: client, header:NAME or cookie:NAME expected")
