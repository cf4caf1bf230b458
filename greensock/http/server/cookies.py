"""Cookies (RFC 6265bis): what a client sends, and the field that sets one. Pure."""

from __future__ import annotations

import re
from typing import Literal

from greensock.http.wire.syntax import is_token
from greensock.http.wire.writer import format_date

__all__ = ["SameSite", "cookie_line", "parse_cookies"]

#: When a cookie goes along with a request that another site has made.
SameSite = Literal["Lax", "Strict", "None"]

#: What may be in a value (section 4.1.1): visible ASCII without quotes, comma, semicolon and backslash.
_is_value = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*").fullmatch
_is_attribute = re.compile(r"[\x20-\x3a\x3c-\x7e]*").fullmatch


def parse_cookies(field: str | None) -> dict[str, str]:
    """Return the cookies of a Cookie field by name; of several of one name the first, which is the most specific.

    Quotes around a value are dropped. What is no pair is left out.
    """
    found: dict[str, str] = {}
    for part in (field or "").split(";"):
        name, is_pair, value = part.partition("=")
        name, value = name.strip(" \t"), value.strip(" \t")
        if not is_pair or not name:
            continue
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        found.setdefault(name, value)
    return found


def cookie_line(
    name: str,
    value: str,
    *,
    max_age: int | None,
    expires: float | None,
    path: str | None,
    domain: str | None,
    secure: bool,
    http_only: bool,
    same_site: SameSite | None,
) -> str:
    """Return the value of Set-Cookie.

    Raises:
        ValueError: a name or value that cannot be in a cookie, or attributes that browsers refuse together.
    """
    if not is_token(name.encode("latin-1", "replace")):
        raise ValueError(f"name={name!r}: a token expected (letters, digits, hyphens)")
    if not _is_value(value):
        raise ValueError(f"value={value!r}: visible ASCII without quotes, commas, semicolons and backslashes expected")
    if same_site not in (None, "Lax", "Strict", "None"):
        raise ValueError(f"same_site={same_site!r}: 'Lax', 'Strict', 'None' or None expected")
    if same_site == "None" and not secure:
        raise ValueError("same_site='None': only with secure=True, or browsers refuse the cookie")
    prefix = name.lower()
    if prefix.startswith(("__secure-", "__host-")) and not secure:
        raise ValueError(f"name={name!r}: only with secure=True, or browsers refuse the cookie")
    if prefix.startswith("__host-") and (domain is not None or path != "/"):
        raise ValueError(f"name={name!r}: only with path='/' and no domain, or browsers refuse the cookie")
    parts = [f"{name}={value}"]
    for word, given in (("Path", path), ("Domain", domain)):
        if given is not None:
            if not _is_attribute(given):
                raise ValueError(f"{word.lower()}={given!r}: ASCII without control characters and semicolons expected")
            parts.append(f"{word}={given}")
    if max_age is not None:
        parts.append(f"Max-Age={int(max_age)}")
    if expires is not None:
        parts.append(f"Expires={format_date(expires).decode()}")
    parts += ["Secure"] if secure else []
    parts += ["HttpOnly"] if http_only else []
    parts += [f"SameSite={same_site}"] if same_site else []
    return "; ".join(parts)
