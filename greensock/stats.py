"""Frozen snapshots of what servers and connections counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ConnectionStatistics", "DatagramStatistics", "ServerStatistics"]


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
    #: What :class:`~greensock.ClientLimits` refused, held back or dropped, by reason.
    limited: Mapping[str, int] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, slots=True)
class DatagramStatistics:
    """What a datagram server, or a datagram connection, counted since it was started or made; in datagrams, if not said
    otherwise."""

    #: Those that the program was given, and those that the kernel took from it.
    received: int
    sent: int
    bytes_received: int
    bytes_sent: int
    #: Those that came and that the kernel dropped: its buffer (``recv_buffer``) was full, or a checksum was wrong.
    dropped_by_kernel: int
    #: Those that ``send_nowait`` found no room for in ``max_send_queue``, or that found none for too long.
    dropped_unsent: int
    #: Those that came and were longer than ``recv_size``.
    too_long: int
    #: Those that were sent and of which the network, or the system, said that they do not arrive.
    undeliverable: int
    #: Upcalls that raised something they should not have.
    errors: int
    #: Bytes that ``send_nowait`` holds; a datagram counts for at least 64.
    bytes_queued: int
    #: Upcalls that are running or blocked.
    active: int
    #: Worker greenlets: all of them, and those that are running or blocked.
    workers: int
    workers_busy: int
