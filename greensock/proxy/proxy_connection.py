"""A client's connection to the proxy: who is at its other end, and what is kept for that client."""

from __future__ import annotations

from time import monotonic
from typing import Any

from greensock import Connection, OperationTimeout
from greensock.http.client.connection_pool import ClientLease
from greensock.http.server.http_server import HTTPConnection
from greensock.limits.networks import canonical_address
from greensock.proxy.answer_buffer import Patience
from greensock.proxy.log.record import Record
from greensock.proxy.upstream.servers import Upstream, UpstreamServer

__all__ = ["ClientBehind", "ProxyConnection"]


class ClientBehind(Exception):
    """A client does not keep up with its answer, and the server has waited for it long enough.

    ``entry`` is what was being sent. If it ``is_begun`` the engine goes on with it, else nothing of it was sent.
    """

    def __init__(self, entry: Any) -> None:
        super().__init__("the client is behind")
        #: What was being sent.
        self.entry = entry

    @property
    def is_begun(self) -> bool:
        """Whether the engine goes on with it."""
        return bool(self.entry.withdrawn)


class ProxyConnection(HTTPConnection):
    """A client's connection."""

    __slots__ = (
        "asks",
        "awaits_header",
        "bound",
        "ends",
        "has_left",
        "held_up",
        "is_counted",
        "peer",
        "refusal",
        "scheme",
        "upload",
    )

    #: How long sends may wait for it before :class:`ClientBehind` is raised; None: as long as they may.
    patience: Patience | None = None  # no slot, as most connections never have one
    #: Whether what is sent waits without a server waiting for that.
    is_buffered: bool = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: The address of who connected, or what its PROXY header said; empty for a Unix socket.
        self.peer: str = self.address[0] if self.address else ""
        if ":" in self.peer:  # a dual-stack socket tells IPv4 addresses as mapped IPv6 ones
            self.peer = canonical_address(self.peer)
        #: Whether its PROXY header is yet to come.
        self.awaits_header = False
        #: What that said of both ends.
        self.ends: tuple[Any, Any] | None = None
        #: What the client speaks: ``http``, or ``https`` where its PROXY header said so.
        self.scheme = "http"
        #: Whether the guard counts it.
        self.is_counted = False
        #: The record of a request that is being refused.
        self.refusal: Record | None = None
        #: Connections to servers that are one client's alone, by their groups, and that client's address; None if there
        #: never were any.
        self.bound: dict[Upstream, tuple[UpstreamServer, ClientLease, str]] | None = None
        #: What came of a body that is waited for without a worker.
        self.upload: Any = None  # an ``Upload``: see there
        #: The connection to a server whose answer it waits for, in an ordinary exchange; and whether it has left there.
        self.asks: Connection | None = None
        self.has_left = False
        #: Seconds that sends have waited for it to take what they had.
        self.held_up = 0.0

    def await_sent(self, entry: Any, timeout: Any, by_progress: bool = False) -> None:
        if entry.left:
            if self.is_buffered:
                super().await_sent(entry, timeout, by_progress)
                return
            began = monotonic()
            try:
                left = None if self.patience is None else self.patience.left()
                if left is None or (self.send_timeout is not None and self.send_timeout <= left):
                    super().await_sent(entry, timeout, by_progress)
                else:
                    self._await_patiently(entry, left)
            finally:
                self.held_up += monotonic() - began

    def _await_patiently(self, entry: Any, seconds: float) -> None:
        try:
            super().await_sent(entry, seconds)
        except OperationTimeout as error:
            # A part of it may be out: then the engine sends the rest, and what follows goes behind it.
            if error.connection is not self:
                raise
            raise ClientBehind(entry) from None

    def note_left(self) -> None:
        """End the wait for an answer that nobody wants any more: the client has left. In the hub."""
        self.has_left = True
        if self.asks is not None:
            self.asks.abort()

    def held_bytes(self) -> int:
        """Count a body that is waited for as held: a server that drains lets its connection go on."""
        return super().held_bytes() + (self.upload is not None)

    def is_at_rest(self) -> bool:
        return self.upload is None and not self.awaits_header and super().is_at_rest()

    def bind(self, server: UpstreamServer, lease: ClientLease, client: str) -> None:
        """Keep a connection to a server for what else this client asks here; it holds its slot."""
        if self.bound is None:
            self.bound = {}
        self.bound[server.upstream] = server, lease, client
        server.hold(1)

    def take_bound(self, upstream: Upstream, client: str | None) -> tuple[UpstreamServer, ClientLease] | None:
        """Take out what was kept of a group; None if nothing is.

        What was kept for another client is closed: a trusted peer may bring the requests of many on one connection.
        """
        found = self.bound.pop(upstream, None) if self.bound is not None else None
        if found is None:
            return None
        server, lease, owner = found
        server.hold(-1)
        if owner != client:
            lease.end(False)
            return None
        return server, lease

    def drop_bound(self) -> None:
        """Close the kept connections: no other client may get them."""
        for upstream in list(self.bound or ()):
            self.take_bound(upstream, None)
