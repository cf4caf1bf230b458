"""What the clients of a server may do, and what the processes of one server share of it."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isfinite

from greensock.limits.access_lists import is_path
from greensock.limits.client_table import ClientTable
from greensock.limits.networks import are_networks

__all__ = ["ClientLimits", "SharedPlace", "shared_place", "table_of_clients"]

#: How many clients are remembered.
MAX_CLIENTS = 100_000


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _or_none(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or fits(value)


_NETWORKS = (are_networks, "a tuple of addresses, address/bits or unix")
_FILE = (_or_none(is_path), "the path of a file, or None")

#: What each field may be, and the words for that.
_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "max_connections": (_or_none(_is_count), "a whole number of at least 1, or None"),
    "connection_rate": (_or_none(_is_rate), "a number of connections a second, more than 0, or None"),
    "connection_burst": (_is_count, "a whole number of at least 1"),
    "byte_rate": (_or_none(_is_rate), "a number of bytes a second, more than 0, or None"),
    "byte_burst": (_is_count, "a whole number of at least 1"),
    "message_rate": (_or_none(_is_rate), "a number of messages a second, more than 0, or None"),
    "message_burst": (_is_count, "a whole number of at least 1"),
    "min_receive_rate": (lambda value: value == 0 or _is_rate(value), "a number of bytes a second, 0 or more"),
    "receive_grace": (_is_rate, "seconds, more than 0"),
    "evict_idle": (
        _or_none(lambda value: (value == 0 and type(value) is not bool) or _is_rate(value)),
        "seconds, 0 or more, or None",
    ),
    "allow": _NETWORKS,
    "deny": _NETWORKS,
    "allow_file": _FILE,
    "deny_file": _FILE,
    "exempt": _NETWORKS,
    "ipv6_prefix": (lambda value: _is_count(value) and 1 <= int(str(value)) <= 128, "a whole number from 1 to 128"),
}


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What each client of a server may do: ``Server(..., client_limits=ClientLimits(max_connections=10))``.

    A client is an IPv4 address, or an IPv6 network of ``ipv6_prefix`` bits; who comes by a Unix socket is known by no
    address, and only ``allow`` and ``deny`` (as ``unix``), the rates of one connection and ``evict_idle`` hold for it.
    A connection that is refused is closed as soon as it is accepted, and no upcall is made. None: no such limit. What
    is refused is counted by reason: ``statistics().limited``.

    Raises:
        ValueError: a field is not what it may be; the text names it.
    """

    #: Connections at a time. Counted as ``client-connections``.
    max_connections: int | None = None
    #: New connections a second, in the long run, and how many may come at once. Counted as ``connection-rate``.
    connection_rate: float | None = None
    connection_burst: int = 20
    #: Bytes a second that one connection may send to us, in the long run, and how many at once. What is above that is
    #: not refused: it is not read, so that TCP holds the peer back. Looked at between turns: what an upcall receives by
    #: itself comes as fast as it is read, and is paid for before the next turn. Counted as ``bytes``, each time.
    byte_rate: float | None = None
    byte_burst: int = 1 << 20
    #: Messages a second, as the ``framer`` cuts them, and how many at once; else as with bytes. Counted as
    #: ``messages``.
    message_rate: float | None = None
    message_burst: int = 100
    #: Bytes a second that must come while a message is there in part (``framer``, ``POSTPONE``), from ``receive_grace``
    #: seconds after its beginning on; who is slower is dropped, with SLOW_SENDER. 0: any. (For slow readers there is
    #: ``min_send_rate``.) Counted as ``slow-sender``.
    min_receive_rate: float = 0
    receive_grace: float = 5.0
    #: Where ``max_connections`` of the server are there, the connection that has rested the longest makes room for who
    #: comes, if that is so many seconds at least; it is dropped with EVICTED. None: who comes waits. Counted as
    #: ``evicted``.
    evict_idle: float | None = None
    #: Networks whose clients may connect, whatever ``deny`` says.
    allow: tuple[str, ...] = ()
    #: Networks whose clients may not. To let in only who is in ``allow``, deny ``0.0.0.0/0``, ``::/0`` and ``unix``.
    #: Counted as ``denied``.
    deny: tuple[str, ...] = ()
    #: Files with more of both, a network a line, which are read anew within two seconds when they change.
    allow_file: str | None = None
    deny_file: str | None = None
    #: Networks whose clients have none of the limits above but ``deny`` and ``evict_idle``.
    exempt: tuple[str, ...] = ()
    #: Bits of an IPv6 address by which clients are told apart: one host often has a whole /64.
    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            fits, allowed = _RULES[field.name]
            if not fits(value):
                raise ValueError(f"{field.name}={value!r}: {allowed} expected")


class SharedPlace:
    """Where the servers of this process have what they share with other processes: nowhere, unless the one who made the
    processes says so, before servers are made.
    """

    def __init__(self) -> None:
        #: Returns memory of so many bytes; None: there is none that is shared.
        self.block: Callable[[int], mmap.mmap] | None = None
        #: How many processes there may be, and which of them this one is.
        self.columns, self.column = 1, 0


#: This process's.
shared_place = SharedPlace()


def table_of_clients() -> ClientTable:
    """Return a table of what the clients of servers use: one for all processes, if there are several."""
    if shared_place.block is None:
        return ClientTable(MAX_CLIENTS, 1, 1)
    return ClientTable(MAX_CLIENTS, 1, 1, shared_place.columns, shared_place.column, shared_place.block)
