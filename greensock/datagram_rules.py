"""The options of a datagram server, and of a datagram connection: what each may be. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from greensock.server_options import OPTIONS, Rule

__all__ = ["DATAGRAM_OPTIONS", "DATAGRAM_UPCALLS", "DatagramKeywords"]

#: The longest datagram that can be asked for: a Unix socket has some of 200 kB, UDP none of more than 65,527 bytes.
LONGEST = 1 << 20

#: What each option of a datagram server may be.
DATAGRAM_OPTIONS: Mapping[str, Rule] = {
    "max_workers": OPTIONS["max_workers"],
    "recv_size": Rule(
        lambda value: type(value) is int and 1 <= value <= LONGEST, f"a whole number from 1 to {LONGEST}"
    ),
    "recv_buffer": Rule.whole(1).or_none(),
    "send_buffer": Rule.whole(1).or_none(),
    "max_send_queue": OPTIONS["max_send_queue"],
    "send_timeout": OPTIONS["send_timeout"],
    "stop_timeout": OPTIONS["stop_timeout"],
    "reuse_port": Rule.flag(),
    "allow_broadcast": Rule.flag(),
    "coalesce": Rule.flag(),
    "unix_mode": OPTIONS["unix_mode"],
    "unix_owner": OPTIONS["unix_owner"],
}

#: The upcalls that may be given as functions.
DATAGRAM_UPCALLS: Mapping[str, Rule] = {
    "datagram_recv": Rule.function(),
    "datagram_error": Rule.function(),
}


class DatagramKeywords(TypedDict, total=False):
    """The options of a datagram server, and its upcalls as functions; what each means stands at ``DatagramServer``."""

    max_workers: int | None
    recv_size: int
    recv_buffer: int | None
    send_buffer: int | None
    max_send_queue: int
    send_timeout: float | None
    stop_timeout: float
    reuse_port: bool
    allow_broadcast: bool
    coalesce: bool
    unix_mode: int | None
    unix_owner: str | tuple[int, int] | None
    datagram_recv: Callable[[bytes, Any], object]
    datagram_error: Callable[[Exception, Any], object]
