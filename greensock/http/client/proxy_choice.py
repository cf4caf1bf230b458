"""Which proxy a client asks through: what it was told, or what the environment says."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import urllib.request
from collections.abc import Mapping
from urllib.parse import unquote

from greensock.http.client.authorization import basic
from greensock.http.client.origin import Origin, parse_url

__all__ = ["Proxies", "ProxyChoice", "ProxyPlace"]

#: ``"environment"``, or a URL for each scheme: ``http``, ``https``, ``all``; and ``no``, what is asked directly.
Proxies = Mapping[str, str] | str
#: The keys of such a mapping.
KEYS = ("http", "https", "all", "no")
#: What is spoken to a proxy.
KINDS = ("http", "https", "socks5", "socks5h")

_credentials = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)?(?:(?P<who>[^@/?#]*)@)?(?P<where>[^/?#]+)/?").fullmatch


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyPlace:
    """A proxy."""

    #: Where it listens.
    origin: Origin
    #: ``http``, ``https``, ``socks5``, or ``socks5h``: that one resolves the names itself.
    kind: str
    #: What Proxy-Authorization says to it, if anything.
    authorization: bytes | None
    #: Name and password, as SOCKS has them; None: none.
    credentials: tuple[bytes, bytes] | None

    @property
    def is_socks(self) -> bool:
        """Whether SOCKS 5 is spoken to it."""
        return self.kind.startswith("socks")

    @classmethod
    def parse(cls, name: str, url: str) -> ProxyPlace:
        """Take ``http://[name:password@]host:port``, or ``socks5://`` or ``socks5h://`` and so on, apart.

        Raises:
            ValueError: it is none; the text says which, without its password.
        """
        match = _credentials(url)
        kind = (match["scheme"] or "http://").lower().removesuffix("://") if match is not None else ""
        if match is None or kind not in KINDS:
            shown = re.sub(r"//[^@/]*@", "//...@", url)
            raise ValueError(f"proxies: {name}={shown!r}: http://[name:password@]host:port, or socks5:// expected")
        where, authorization, credentials = match["where"], None, None
        if match["who"]:
            user, _, password = (unquote(each) for each in match["who"].partition(":"))
            credentials = user.encode(), password.encode()
            if kind.startswith("socks"):
                if not all(0 < len(each) < 256 for each in credentials):
                    raise ValueError(f"proxies: {name}: a name and a password of 1 to 255 bytes expected")
            else:
                authorization = basic(user, password)
        if kind.startswith("socks") and not re.search(r":\d+$", where):
            where += ":1080"
        scheme = "https" if kind == "https" else "http"
        return cls(parse_url(f"{scheme}://{where}").origin, kind, authorization, credentials)


class ProxyChoice:
    """Says which proxy, if any, leads to an origin."""

    def __init__(self, given: Proxies) -> None:
        if isinstance(given, str) and given != "environment":
            raise ValueError(f"proxies={given!r}: 'environment', or a mapping of {', '.join(KEYS)} expected")
        # The environment's http_proxy is not believed in a CGI program, where a client can set it (httpoxy).
        said = urllib.request.getproxies_environment() if isinstance(given, str) else dict(given)
        if not isinstance(given, str) and not said.keys() <= set(KEYS):
            raise ValueError(f"proxies: {', '.join(sorted(said))}: {', '.join(KEYS)} expected")
        self._excepted = [each for each in re.split(r"[\s,]+", (said.get("no") or "").lower()) if each]
        self._places = {name: ProxyPlace.parse(name, said[name]) for name in KEYS[:3] if said.get(name)}
        self._known: dict[Origin, ProxyPlace | None] = {}

    def __bool__(self) -> bool:
        return bool(self._places)

    def place_for(self, origin: Origin) -> ProxyPlace | None:
        """Return the proxy through which the origin is asked; None: directly."""
        if origin not in self._known:
            if len(self._known) > 1024:
                self._known.clear()
            self._known[origin] = self._place_for(origin)
        return self._known[origin]

    def _place_for(self, origin: Origin) -> ProxyPlace | None:
        place = self._places.get(origin.scheme) or self._places.get("all")
        if place is None or isinstance(origin.address, str) or self._is_excepted(*origin.address):
            return None
        if origin.other_name is not None:  # the program said where to connect
            return None
        return place

    def _is_excepted(self, host: str, port: int) -> bool:
        """Whether NO_PROXY names it: a name and those below it, an address or a network, maybe with a port; ``*``."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        for each in self._excepted:
            if each == "*":
                return True
            if address is not None:
                try:
                    if address in ipaddress.ip_network(each.strip("[]"), strict=False):
                        return True
                except ValueError:
                    pass
            name, _, number = each.rpartition(":") if re.fullmatch(r"[^:]+:\d+|\[.*\]:\d+", each) else (each, "", "")
            if number and int(number) != port:
                continue
            name = name.strip("[]").lstrip("*").lstrip(".")
            if host == name or (address is None and host.endswith(f".{name}")):
                return True
        return False
