"""What the operators' address is told. Pure; each option checks itself."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from greensock.address import port_number, split_address
from greensock.server_options import Rule

__all__ = ["LEAST_TOKEN", "OperationsOptions"]

#: Characters that a token has at the least.
LEAST_TOKEN = 16
#: Of which upstreams a server must be up for the proxy to be ready.
READY = ("any", "all", "none")

_name = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.\-]*[A-Za-z0-9_])?").fullmatch
#: What can stand in ``Authorization: Bearer`` (RFC 6750 section 2.1).
_token = re.compile(r"[A-Za-z0-9\-._~+/]+=*").fullmatch


def _is_address(value: object) -> bool:
    """Whether it is ``HOST:PORT`` or a path."""
    if not isinstance(value, str) or "\0" in value:
        return False
    found = split_address(value)
    if found is None:
        return False
    _, target = found
    if isinstance(target, str):
        return target not in ("", "/")
    return port_number(target[1]) >= 0


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, str) and bool(_name(each)) for each in value)


RULES: Mapping[str, Rule] = {
    "address": Rule(_is_address, "HOST:PORT, [v6]:PORT or the path of a socket"),
    "token": Rule(
        lambda value: isinstance(value, str) and len(value) >= LEAST_TOKEN and bool(_token(value)),
        f"at least {LEAST_TOKEN} letters, digits and -._~+/",
    ).or_none(),
    "allow_remote": Rule.flag(),
    "names": Rule(_are_names, "a tuple of host names without a port"),
    "ready_upstreams": Rule(lambda value: value in READY, "'any', 'all' or 'none'"),
    "max_hold": Rule.seconds(zero=False).or_none(),
}


@dataclass(frozen=True, slots=True)
class OperationsOptions:
    """Where operators ask, and who may.

    Raises:
        ValueError: an option is not allowed, or the address is one that others reach, and nothing says that they may.
    """

    #: Where it listens, by itself: ``HOST:PORT``, or the path of a Unix socket, whose file is for its owner and group.
    address: str
    #: What who changes something must show (``Authorization: Bearer``), and who asks for stacks; None: nobody may.
    token: str | None = None
    #: Whether others than this machine may read what is there without the token.
    allow_remote: bool = False
    #: Names by which it is asked for, beside ``localhost`` and numeric addresses: a page of another site could use any.
    names: tuple[str, ...] = ()
    #: Of which upstreams a server must be up for ``/readyz`` to say so: ``any`` of them, ``all``, or ``none``.
    ready_upstreams: str = "any"
    #: Seconds that an upcall may hold the hub before its stack is logged; None: any.
    max_hold: float | None = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "token" and not RULES["token"].fits(value):
                raise ValueError(f"token: {RULES['token'].allowed} expected")  # its text is nobody's to read
            RULES[field.name].check(field.name, value)
        if not self.is_local and not self.allow_remote and self.token is None:
            raise ValueError(
                f"address={self.address!r}: one of this machine (127.0.0.1, a path), a token, or allow_remote=True "
                "expected: whoever reaches it could read what is there"
            )

    @property
    def place(self) -> tuple[str, int] | str:
        """Host and port, or the path."""
        found = split_address(self.address)
        assert found is not None
        _, target = found
        if isinstance(target, str):
            return target
        return ("" if target[0] == "*" else target[0], port_number(target[1]))

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches it."""
        place = self.place
        if isinstance(place, str) or place[0].lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(place[0]).is_loopback
        except ValueError:
            return False

    @property
    def needs_token(self) -> bool:
        """Whether who only reads must show the token, too."""
        return not self.is_local and not self.allow_remote

    def listen_options(self) -> dict[str, Any]:
        """Return how it listens."""
        return {"backlog": 128, "unix_mode": 0o660}
