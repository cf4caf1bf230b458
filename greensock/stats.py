"""Frozen snapshots of what servers and connections counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ConnectionStatistics", "ServerStatistics"]


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """What one connection counted, in bytes."""

    bytes_received: int
    bytes_sent: int
    #: Came, and not yet given to the program.
    bytes_held: int
    #: Sent by the program, and not yet taken by the kernel.
    bytes_queued: int


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What one server counted since it was made."""

    #: Connections that were accepted or adopted.
    accepted: int
    #: Connections that ``connect`` made, and that stood.
    connected: int
    #: Connections whose descriptor is open or whose upcalls have not ended.
    active: int
    #: Connections that ended, by the name of the :class:`~greensock.errors.DropReason`.
    dropped: Mapping[str, int]
    #: Upcalls that raised something they should not have.
    errors: int
    #: Times that accepting had to pause because descriptors or memory were used up.
    accept_pauses: int
    bytes_received: int
    bytes_sent: int
    #: Messages that the framer cut; 0 without a framer.
    messages: int
    #: Worker greenlets: all of them, and those that are running or blocked.
    workers: int
    workers_busy: int
    #: TLS handshakes that are done, that are not, and that failed, by the ``reason`` of
    #: :class:`~greensock.errors.HandshakeFailed`.
    handshakes: int
    handshakes_unfinished: int
    handshakes_failed: Mapping[str, int]
