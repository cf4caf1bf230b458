"""Who asks: Basic and Bearer credentials, and to whom they may be shown."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from greensock.http.client.origin import Origin

__all__ = ["Auth", "Bearer", "authorization_of", "basic", "is_auth", "may_be_shown"]


@dataclasses.dataclass(frozen=True, slots=True)
class Bearer:
    """A token that is sent as ``Authorization: Bearer TOKEN`` (RFC 6750)."""

    #: Letters, digits and ``-._~+/=``.
    token: str

    def __post_init__(self) -> None:
        if not isinstance(self.token, str) or not self.token.isascii() or not self.token.isprintable():
            raise ValueError("token: printable ASCII expected")

    def __repr__(self) -> str:  # tokens do not belong into logs
        return "Bearer(...)"


#: What says who asks: name and password (Basic), or a token.
Auth = tuple[str, str] | Bearer


def is_auth(value: Any) -> bool:
    """Whether it is what ``auth`` may be."""
    if isinstance(value, Bearer):
        return True
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) for each in value)


def basic(name: str, password: str) -> bytes:
    """Return what Authorization, or Proxy-Authorization, says for a name and a password (RFC 7617), in UTF-8.

    Raises:
        ValueError: the name has a colon.
    """
    if ":" in name:
        raise ValueError(f"auth: a name without a colon expected, not {name!r}")
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


def authorization_of(auth: Auth) -> bytes:
    """Return the value of Authorization."""
    if not is_auth(auth):
        raise ValueError("auth: (name, password), or Bearer(token) expected")
    return f"Bearer {auth.token}".encode() if isinstance(auth, Bearer) else basic(*auth)


def may_be_shown(theirs: Origin, to: Origin) -> bool:
    """Whether credentials that were meant for one origin may be shown to another, to which that one redirected.

    Only to itself, or to the same name by TLS, both at their usual ports.
    """
    if theirs == to:
        return True
    if theirs.scheme != "http" or to.scheme != "https" or isinstance(theirs.address, str):
        return False
    return (theirs.address[1], to.address) == (80, (theirs.address[0], 443))
