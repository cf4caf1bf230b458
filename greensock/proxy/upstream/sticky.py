"""The cookie that keeps a client at its server. Pure.

Its value is ``<server>.<expiry>.<signature>``: what stands for the server (a hash, which tells nothing of its name or
address), seconds since 1970 in hexadecimal (0: never), and an HMAC-SHA256 of both, cut to 16 bytes. A client can't make
one, so it can't choose its server; it can give away its own.
"""

from __future__ import annotations

import dataclasses
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any

from greensock import Rule
from greensock.http.wire.headers import Headers
from greensock.http.wire.syntax import is_token
from greensock.proxy.upstream.request_keys import cookies_named

__all__ = ["Sticky", "StickyCookie"]

#: Cookies of that name that are looked at in one request.
MOST_TRIED = 4
#: Bytes of a secret, at least: as hard to guess as the signature.
LEAST_SECRET = 16
#: Seconds that a cookie may hold: 400 days, which is where browsers cut it.
LONGEST = 400 * 86400

_value = re.compile(rb"([0-9a-f]{16})\.([0-9a-f]{1,12})\.([0-9a-f]{32})").fullmatch
_attribute = re.compile(r"[\x20-\x3a\x3c-\x7e]*").fullmatch
_domain = re.compile(r"[0-9A-Za-z\-.]+").fullmatch


def _is_secret(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) >= LEAST_SECRET


_secret = f"bytes, at least {LEAST_SECRET},"
_RULES: Mapping[str, Rule] = {
    "name": Rule(
        lambda value: isinstance(value, str) and value.isascii() and bool(is_token(value.encode())),
        "a token (letters, digits, hyphens)",
    ),
    "secret": Rule(_is_secret, _secret),
    "ttl": Rule(
        lambda value: Rule.whole(1).fits(value) and value <= LONGEST, f"whole seconds from 1 to {LONGEST}"
    ).or_none(),
    "path": Rule(
        lambda value: isinstance(value, str) and value.startswith("/") and bool(_attribute(value)),
        "a path that begins with /, without ;",
    ),
    "domain": Rule(lambda value: isinstance(value, str) and bool(_domain(value)), "the name of a domain").or_none(),
    "secure": Rule.flag(),
    "same_site": Rule(lambda value: value in ("Lax", "Strict", "None"), '"Lax", "Strict" or "None"'),
    "old_secrets": Rule(
        lambda value: isinstance(value, tuple) and len(value) <= 8 and all(map(_is_secret, value)),
        f"a tuple of up to 8 secrets, each {_secret}",
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class StickyCookie:
    """How the cookie of one group of servers looks.

    An answer that sets it gets ``Cache-Control: private`` unless it has that or ``no-store``: a shared cache would give
    one client's cookie to all. What a route's ``response_fields`` say of Cache-Control has the last word.

    Raises:
        ValueError: an option is not allowed. A secret is never in the text.
    """

    #: The cookie's name.
    name: str
    #: What signs it: at least 16 random bytes. Who knows it chooses servers, no more.
    secret: bytes = dataclasses.field(repr=False)
    #: Seconds it holds, from when it was written, at most 400 days; None: until the browser is closed.
    ttl: int | None = None
    #: For which paths the client sends it.
    path: str = "/"
    #: For which domain; None: only the host that was asked.
    domain: str | None = None
    #: Whether the client sends it over TLS only.
    secure: bool = False
    #: ``Lax``, ``Strict`` or ``None``.
    same_site: str = "Lax"
    #: Secrets of before: what they signed is still read.
    old_secrets: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.fits(value):
                shown = "..." if "secret" in name else repr(value)
                raise ValueError(f"{name}={shown}: {rule.allowed} expected")
        self._check_prefix()

    def _check_prefix(self) -> None:
        """Check what browsers want of some cookies, and drop them otherwise without a word (RFC 6265bis 4.1.3)."""
        lower = self.name.lower()
        needs_tls = lower.startswith(("__secure-", "__host-")) or self.same_site == "None"
        if needs_tls and not self.secure:
            raise ValueError(f"secure={self.secure!r}: True for a cookie __Secure-, __Host- or same_site None expected")
        if lower.startswith("__host-") and (self.path != "/" or self.domain is not None):
            raise ValueError(f"name={self.name!r}: a path of / and no domain for a cookie __Host- expected")


class Sticky:
    """The cookie of a group whose servers have these names: what is written names one of them, and is read again.

    ``now`` is in seconds since 1970, as cookies outlive processes and machines: all that share a secret read each
    other's.
    """

    __slots__ = ("_attributes", "_cookie", "_ids", "_name", "_secrets", "_servers")

    def __init__(self, cookie: StickyCookie, servers: Iterable[str]) -> None:
        self._cookie = cookie
        self._name = cookie.name.encode()
        self._secrets = (cookie.secret, *cookie.old_secrets)
        self._attributes = _attributes_of(cookie)
        self._ids = {server: _id_of(cookie.secret, server) for server in servers}
        #: Each server by its identifiers in cookies: those of the secret and of the old ones.
        self._servers = {_id_of(secret, server): server for server in self._ids for secret in self._secrets}

    def read(self, headers: Headers, now: float) -> str | None:
        """Return the name of the client's server.

        None if no cookie says so that is genuine and still holds, or the server is gone. Only the first four cookies of
        the name are looked at.
        """
        for value in cookies_named(headers, self._name)[:MOST_TRIED]:
            match = _value(value)
            if match is not None and self._is_genuine(*match.groups()):
                expiry = int(match[2], 16)
                if not expiry or now < expiry:
                    return self._servers.get(match[1])
        return None

    def write(self, server: str, now: float) -> bytes:
        """Return the value of a Set-Cookie that keeps the client at that server.

        Raises:
            KeyError: it is not one of the group.
        """
        ttl = self._cookie.ttl
        signed = b"%s.%x" % (self._ids[server], 0 if ttl is None else int(now) + ttl)
        signature = self._sign(self._cookie.secret, signed).hex().encode()
        return b"%s=%s.%s%s" % (self._name, signed, signature, self._attributes)

    def _is_genuine(self, server: bytes, expiry: bytes, signature: bytes) -> bool:
        signed, given = b"%s.%s" % (server, expiry), bytes.fromhex(signature.decode())
        return any(hmac.compare_digest(self._sign(secret, signed), given) for secret in self._secrets)

    def _sign(self, secret: bytes, signed: bytes) -> bytes:
        # The name is part of it: a cookie of another group with the same secret is none of ours.
        return hmac.digest(secret, b"sticky %s %s" % (self._name, signed), "sha256")[:16]


def _id_of(secret: bytes, server: str) -> bytes:
    """Return what stands for a server: 16 hexadecimal digits, other ones with another secret."""
    return hmac.digest(secret, b"server " + server.encode("utf-8", "surrogateescape"), "sha256")[:8].hex().encode()


def _attributes_of(cookie: StickyCookie) -> bytes:
    """Return what stands behind the value."""
    parts = ["", f"Path={cookie.path}", "HttpOnly", f"SameSite={cookie.same_site}"]
    if cookie.ttl is not None:
        parts.append(f"Max-Age={cookie.ttl}")
    if cookie.domain is not None:
        parts.append(f"Domain={cookie.domain}")
    if cookie.secure:
        parts.append("Secure")
    return "; ".join(parts).encode()
