"""Where a URL leads: the server to connect to, and what to ask it (RFC 9110 section 4.2)."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any
from urllib.parse import unquote

from greensock.http.wire.syntax import is_authority, is_target

__all__ = ["Destination", "Origin", "origin_at", "parse_url"]

_url = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^#]*)(?:#.*)?", re.DOTALL).fullmatch
_beyond_ascii = re.compile(r"[^\x00-\x7f]+").sub

#: The schemes there are, and their ports; ``http+unix`` has the path of the socket, percent-encoded, for a host.
DEFAULT_PORTS = {"http": 80, "https": 443, "http+unix": 0, "https+unix": 0}


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """What connections are kept for: the scheme and the address, as ``greensock.connect`` takes it."""

    #: ``http`` or ``https``.
    scheme: str
    #: ``(host, port)``, or the path of a Unix socket.
    address: tuple[str, int] | str
    #: The name of its certificate where that is not the address's.
    other_name: str | None = None
    _hash: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.scheme, self.address, self.other_name)))

    def __hash__(self) -> int:  # it is the key of a pool: three look-ups a request, 0.3 us less each
        return self._hash

    @property
    def name(self) -> str:
        """The name that its certificate must be for."""
        return self.other_name or ("localhost" if isinstance(self.address, str) else self.address[0])

    def __str__(self) -> str:
        if isinstance(self.address, str):
            return self.address
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """What a URL says."""

    #: Where to connect.
    origin: Origin
    #: What to ask for: path and query.
    target: bytes
    #: What Host says.
    authority: bytes


@functools.lru_cache(maxsize=1024)  # a program asks for the same few; a gateway passes a base
def parse_url(url: str) -> Destination:
    """Take ``http://host[:port]/path?query`` (or ``https://``) or ``http+unix://%2Fpath%2Fof.socket/path?query`` apart.

    What is not ASCII is percent-encoded as UTF-8; a name of other letters is written as IDNA wants it. The rest of path
    and query stays as it is, byte for byte. A fragment is left out.

    Raises:
        ValueError: it is none of these: the text says what is wrong with it.
    """
    match = _url(url)
    if match is None:
        raise ValueError(f"url={url!r}: http://host[:port]/path expected")
    scheme, authority, rest = match.group(1).lower(), match.group(2), match.group(3)
    if scheme not in DEFAULT_PORTS:
        raise ValueError(f"url={url!r}: scheme {scheme!r}: http, https or http+unix expected")
    if "@" in authority:
        raise ValueError(f"url={url!r}: a user or password in it is not sent: give an Authorization field")
    target = _target(rest, url)
    if scheme.endswith("+unix"):
        path = unquote(authority)
        if not path:
            raise ValueError(f"url={url!r}: the path of a socket, percent-encoded, expected before the first /")
        return Destination(Origin(scheme.removesuffix("+unix"), path), target, b"localhost")
    host, port = _host_and_port(authority, url, DEFAULT_PORTS[scheme])
    written = f"[{host}]" if ":" in host else host
    shown = written if port == DEFAULT_PORTS[scheme] else f"{written}:{port}"
    return Destination(Origin(scheme, (host, port)), target, shown.encode())


def origin_at(address: Any, meant: Origin | None = None) -> Origin:
    """Return the origin of an address, as ``greensock.connect`` takes it, where another was ``meant`` by the URL."""
    place = address if isinstance(address, tuple) else str(address)
    if meant is None or meant.scheme == "http":
        return Origin("http", place)
    # The certificate is to be that of the name in the URL, so a connection that was made for another is no good.
    return Origin(meant.scheme, place, meant.name)


def _target(rest: str, url: str) -> bytes:
    if not rest.startswith("/"):
        rest = "/" + rest
    target = _beyond_ascii(_percent_encoded, rest).encode()
    if not is_target(target):
        raise ValueError(f"url={url!r}: white space and control characters must be percent-encoded")
    return target


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))


def _host_and_port(authority: str, url: str, default: int) -> tuple[str, int]:
    try:
        raw = authority.encode("ascii" if authority.isascii() else "idna")
    except UnicodeError as error:
        raise ValueError(f"url={url!r}: host {authority!r}: {error}") from None
    match = is_authority(raw)
    port = int(match.group(2) or default) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError(f"url={url!r}: {authority!r}: a host, and a port from 1 to 65535 if any, expected")
    return match.group(1).decode().strip("[]").lower(), port
