"""Which fields a proxy passes on (RFC 9110 section 7.6.1)."""

from __future__ import annotations

from greensock.http.wire.headers import Headers

__all__ = ["HOP_BY_HOP", "end_to_end", "end_to_end_trailers", "fields_of_the_hop"]

#: Dropped whether ``Connection`` names them or not.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

#: What no proxy keeps: unlike Proxy-Authorization, which may be for the next one (RFC 9110 section 11.7.2).
_ALWAYS_DROPPED = HOP_BY_HOP - {b"proxy-authorization"}

#: Never dropped because ``Connection`` names them: a client could have fields dropped that the next server relies on.
END_TO_END = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"forwarded",
        b"host",
        b"set-cookie",
        b"via",
        b"x-real-ip",
    }
)

#: What Connection says most often. It names no field that is not dropped anyhow.
_USUAL = frozenset({b"keep-alive", b"close", b"upgrade", b"keep-alive, upgrade", b"te", b"te, close"})
_NONE: frozenset[bytes] = frozenset()


def end_to_end(headers: Headers, keep: frozenset[bytes] = frozenset()) -> Headers:
    """Return the fields to pass on: those of a request or of an answer.

    Dropped are ``Connection``, the fields it names, and the fields that always belong to one hop. A name in
    ``Connection`` that belongs to the message (Host, Content-Length, Cookie, X-Forwarded-* and their like) is ignored.
    Call it before adding fields of your own, so that the peer can't have those dropped.

    ``keep`` are lower-case names to keep all the same: ``upgrade`` for a tunnel, ``trailer`` where trailers are passed
    on, ``proxy-authorization`` for a proxy that does not use it. ``Connection`` itself can't be kept: write it anew.
    """
    drop = HOP_BY_HOP
    if named := fields_of_the_hop(headers):
        drop = drop | named
    if keep:
        drop = drop - keep | {b"connection"}
    return Headers.of_raw([pair for pair in headers.raw if pair[0].lower() not in drop])


def fields_of_the_hop(headers: Headers) -> frozenset[bytes]:
    """Return the lower-case names to drop because ``Connection`` names them, besides those that are always dropped."""
    value = headers.get_raw(b"connection")
    if value is None or value.lower() in _USUAL:
        return _NONE
    named = headers.tokens(b"connection")
    return frozenset(name for name in named if name not in _ALWAYS_DROPPED and not _belongs_to_the_message(name))


def end_to_end_trailers(trailers: Headers, head: Headers) -> Headers:
    """Return the trailers to pass on; ``head`` are the fields of the message's head, which may name some of them."""
    named = head.tokens(b"connection") + trailers.tokens(b"connection")
    drop = HOP_BY_HOP.union(name for name in named if not _belongs_to_the_message(name))
    return Headers.of_raw([pair for pair in trailers.raw if pair[0].lower() not in drop])


def _belongs_to_the_message(name: bytes) -> bool:
    return name in END_TO_END or name.startswith(b"x-forwarded-")
