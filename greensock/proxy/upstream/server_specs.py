"""What servers a group is to have: each that was given, or in its place the addresses that its name leads to."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from greensock.http.client.origin import Origin
from greensock.proxy.options import ServerOptions, UpstreamOptions
from greensock.proxy.upstream.shared_servers import key_of_server

__all__ = ["ServerSpec", "given_servers", "is_looked_up", "specs_of"]


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server as it is to be."""

    #: As it was given.
    options: ServerOptions
    #: The name that it was given under.
    given: str
    #: Where it is.
    origin: Origin
    #: What Host says if the client's is not kept.
    authority: bytes
    #: Its part of the requests.
    weight: int
    #: Whether it is asked only when no other is up.
    is_backup: bool

    @property
    def name(self) -> str:
        """What it is called."""
        return str(self.origin)

    def is_like(self, other: ServerSpec) -> bool:
        """Whether a server can become the other one while it runs: all but its weight and its rank are the same."""
        same = replace(self.options, weight=1, backup=False) == replace(other.options, weight=1, backup=False)
        return same and (self.origin, self.authority) == (other.origin, other.authority)


def is_looked_up(options: ServerOptions) -> bool:
    """Whether a server is given by a name that may lead to several, or elsewhere tomorrow.

    Not so is ``localhost``, which is always this machine (RFC 6761 section 6.3): both of its addresses are tried then
    for each connection, as one server.
    """
    address = options.origin.address
    if isinstance(address, str):
        return False
    host = address[0].rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def given_servers(group: UpstreamOptions, document: Mapping[str, Any]) -> dict[str, ServerOptions]:
    """Return the servers of a group by their names: those of the file, and what the table says of them.

    One that was added is as the file says, as soon as that has it, too.
    """
    given = {str(each.origin): each for each in group.servers}
    for name in document.get("removed", {}).get(group.name, ()):
        given.pop(name, None)
    for name, options in document.get("added", {}).get(group.name, {}).items():
        given.setdefault(name, ServerOptions(**options))
    return given


def specs_of(group: UpstreamOptions, document: Mapping[str, Any]) -> list[ServerSpec]:
    """Return the servers that a group is to have by the table, each name once."""
    found = document.get("found", {}) if group.resolve_every is not None else {}
    specs: dict[str, ServerSpec] = {}
    for name, options in given_servers(group, document).items():
        origin, authority = options.origin, options.authority
        places = found.get(key_of_server(group.name, name)) if is_looked_up(options) else None
        if places is None:
            made = [ServerSpec(options, name, origin, authority, options.weight, options.backup)]
        else:
            made = [
                ServerSpec(
                    options,
                    name,
                    Origin(origin.scheme, (host, port), origin.name if origin.scheme == "https" else None),
                    authority,
                    min(65535, options.weight * weight),
                    options.backup or is_backup,
                )
                for host, port, weight, is_backup in places
            ]
        for each in made:
            specs.setdefault(each.name, each)
    return list(specs.values())
