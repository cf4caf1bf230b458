"""Addresses as text, and networks that hold them. Pure."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

__all__ = ["Networks", "are_networks", "canonical_address", "network_of", "node_address"]

#: Characters of the longest address that is looked at, with brackets, zone and port: so the caches stay small.
MAX_TEXT = 80
#: How many addresses each cache keeps. Looking one up anew takes some microseconds.
CACHED = 4096


class Networks:
    """Networks, asked whether an address is in one of them.

    They are written ``10.0.0.0/8``, ``2001:db8::/32``, ``127.0.0.1``, ``::1``; ``unix`` stands for every peer of a Unix
    socket, whose address is the empty string. An IPv4 address that is mapped into IPv6 (``::ffff:10.0.0.1``) equals the
    IPv4 address. ``0.0.0.0/0`` holds no IPv6 address, and ``::/0`` no IPv4 address.

    Raises:
        ValueError: one of them is not written so.
    """

    __slots__ = ("_holds", "_names", "_of_version")

    def __init__(self, networks: Iterable[str] = ()) -> None:
        if isinstance(networks, str):
            raise ValueError(f"networks={networks!r}: a sequence of networks expected, not one text")
        self._names = tuple(networks)
        self._of_version = _by_length(_network(name) for name in self._names if name != "unix")
        self._holds = functools.lru_cache(CACHED)(self._look_up)

    def __contains__(self, address: object) -> bool:
        """Whether an address is in one of the networks; what is no address is in none."""
        return isinstance(address, str) and len(address) <= MAX_TEXT and self._holds(address)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Networks({list(self._names)!r})"

    def _look_up(self, text: str) -> bool:
        if not text:
            return "unix" in self._names
        address = _parse(text)
        if address is None:
            return False
        number = int(address)
        return any(number >> shift in networks for shift, networks in self._of_version.get(address.version, ()))


def _by_length(
    networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> dict[int, list[tuple[int, set[int]]]]:
    """Return networks by their version, and by how many bits an address has behind them: a few looks find any."""
    found: dict[int, dict[int, set[int]]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        found.setdefault(network.version, {}).setdefault(shift, set()).add(int(network.network_address) >> shift)
    return {version: list(lengths.items()) for version, lengths in found.items()}


def are_networks(value: object) -> bool:
    """Whether an option is a tuple of what :class:`Networks` takes."""
    try:
        return isinstance(value, tuple) and Networks(value) is not None
    except ValueError:
        return False


def canonical_address(address: str) -> str:
    """Return an address in its one right spelling: IPv6 in short and lower case, mapped IPv4 as IPv4, without a zone.

    What is no address, such as that of a Unix socket, gives the empty string.
    """
    return _canonical(address) if len(address) <= MAX_TEXT else ""


def node_address(node: bytes) -> str | None:
    """Return the address, spelled right, that an entry of X-Forwarded-For or ``for=`` of Forwarded gives; None if none.

    A port behind it is left out: ``192.0.2.1:80``, ``[2001:db8::1]:80``.
    """
    return _node(node) if len(node) <= MAX_TEXT else None


def network_of(address: str, ipv6_prefix: int) -> str:
    """Return what stands for a client: an IPv4 address itself, of an IPv6 address the network of so many bits.

    What is no address gives the empty string.
    """
    parsed = _parse(address) if len(address) <= MAX_TEXT else None
    if parsed is None:
        return ""
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.IPv6Network((int(parsed), ipv6_prefix), strict=False))


@functools.lru_cache(CACHED)
def _canonical(text: str) -> str:
    address = _parse(text)
    return "" if address is None else str(address)


@functools.lru_cache(CACHED)
def _node(node: bytes) -> str | None:
    text = node.strip(b" \t").decode("latin-1")
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in host or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    else:
        host = text
    address = _parse(host)
    return None if address is None else str(address)


def _is_port(text: str) -> bool:
    digits = text[1:]
    return text[0] == ":" and 0 < len(digits) <= 5 and digits.isascii() and digits.isdigit()


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 4:
        return address
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # which drops the zone


def _network(text: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        if not isinstance(text, str):
            raise ValueError("not a text")
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"network {text!r}: an address, address/bits or unix expected ({error})") from None
    if network.version == 6 and network.prefixlen >= 96 and (mapped := network.network_address.ipv4_mapped):
        return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network
