"""The cookies of a client, in a jar of the standard library's ``http.cookiejar``.

It is what requests and httpx keep theirs in, so that programs can share one, and ``MozillaCookieJar`` saves it to a
file. What it lacks is a bound: here a site has at most 180 cookies and all together 3,000 (what browsers keep; RFC 6265
section 6.1 asks for 50 and 3,000), of at most 4,096 bytes each.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Mapping
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy, request_host  # type: ignore[attr-defined]

from greensock.http.wire.headers import Headers

__all__ = ["CookieStore", "new_jar", "written_cookies"]

MAX_TOTAL = 3000
MAX_OF_SITE = 180
MAX_COOKIE = 4096


class _Fields:
    """The fields of an answer, as the jar asks for them."""

    def __init__(self, headers: Headers) -> None:
        self._set = [
            value.decode("utf-8", "replace") for value in headers.all_raw(b"set-cookie") if len(value) <= MAX_COOKIE
        ]

    def info(self) -> _Fields:
        return self

    def get_all(self, name: str, default: list[str]) -> list[str]:
        return self._set if name.lower() == "set-cookie" else default


class _Policy(DefaultCookiePolicy):
    """Refuses what the standard library's would take: a domain above an address, or above names without a dot."""

    def set_ok_domain(self, cookie: Cookie, request: urllib.request.Request) -> bool:
        if cookie.domain_specified:
            host, domain = request_host(request).strip("[]"), cookie.domain.lstrip(".").strip("[]")
            if domain != host and ("." not in domain or _is_address(host)):
                return False
        return super().set_ok_domain(cookie, request)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def new_jar() -> CookieJar:
    """Return a jar that takes no cookie for all of ``.co.uk`` and the like, nor for a part of an address.

    There is no list of public suffixes in it: a site below ``github.io`` can set cookies for the others.
    """
    return CookieJar(_Policy(strict_domain=True))


class CookieStore:
    """Takes cookies from answers and gives them to requests."""

    def __init__(self, jar: CookieJar) -> None:
        #: Where they are kept.
        self.jar = jar

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return next(iter(self.jar), None) is None

    def field_for(self, url: str) -> str | None:
        """Return what Cookie says in a request for the URL; None if nothing."""
        request = urllib.request.Request(_as_http(url))
        self.jar.add_cookie_header(request)
        return request.get_header("Cookie")

    def take(self, headers: Headers, url: str) -> None:
        """Keep what an answer from the URL sets."""
        if headers.get_raw(b"set-cookie") is None:
            return
        self.jar.extract_cookies(_Fields(headers), urllib.request.Request(_as_http(url)))  # type: ignore[arg-type]
        cookies = list(self.jar)
        if len(cookies) > MAX_OF_SITE:
            self._make_room(cookies)

    def _make_room(self, cookies: list[Cookie]) -> None:
        """Drop the oldest ones of those sites that have too many, and of all."""
        sites: dict[str, list[Cookie]] = {}
        for each in cookies:
            sites.setdefault(each.domain, []).append(each)
        for mine in sites.values():
            for each in mine[:-MAX_OF_SITE]:
                self.jar.clear(each.domain, each.path, each.name)
        for each in list(self.jar)[:-MAX_TOTAL]:
            self.jar.clear(each.domain, each.path, each.name)


def _as_http(url: str) -> str:
    """Return the URL as the jar can read it: a Unix socket has a name of its own."""
    scheme, _, rest = url.partition("://")
    if not scheme.lower().endswith("+unix"):
        return url
    place, slash, path = rest.partition("/")
    return f"{scheme[:-5].lower()}://s{place.encode().hex()}.unix{slash}{path}"


def written_cookies(cookies: Mapping[str, str]) -> str:
    """Return what Cookie says for names and values.

    Raises:
        ValueError: one that cannot be written so.
    """
    for name, value in cookies.items():
        if not name or set(f"{name}{value}") & set(";\r\n\0") or "=" in name:
            raise ValueError(f"cookies: {name!r}={value!r}: a name, and a value without ';', expected")
    return "; ".join(f"{name}={value}" for name, value in cookies.items())
