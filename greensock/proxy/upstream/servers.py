"""The servers of an upstream: which of them a request gets, and the connections to them.

A server is *entered* before it is asked and *left* when its answer has ended, whatever became of it; between the two
the request counts as one of its own. Each server has a pool of connections, and a queue, of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from time import monotonic

from greensock import Patient
from greensock.http.client.connection_pool import ClientLease, ClientPool
from greensock.http.client.deadlines import Deadlines
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import Limits
from greensock.proxy.failure import Failure
from greensock.proxy.options import ServerOptions, UpstreamOptions
from greensock.proxy.upstream.balance import balancer_of
from greensock.proxy.upstream.health import Health, HealthOptions, HealthStatistics, Standing
from greensock.proxy.upstream.request_keys import key_of
from greensock.proxy.upstream.retry_budget import RetryBudget
from greensock.proxy.upstream.sticky import Sticky, StickyCookie

__all__ = ["ServerStatus", "Upstream", "UpstreamServer", "drop_oldest"]

log = logging.getLogger("greensock.upstream")

#: What is said of a server that is ejected while no other is up.
STILL_ASKED = ", and asked all the same, as no other is up"

#: Seconds between two lines on the same shortage.
LOG_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A snapshot of one server."""

    #: Its upstream, and its name there: the address.
    upstream: str
    name: str
    #: What is known of its health.
    health: HealthStatistics
    #: Requests that it is answering, or that wait for it.
    used: int
    #: Connections that are kept for the next request.
    idle: int
    #: Requests that wait for a connection.
    waiting: int
    #: Requests that it was asked since the start.
    requests: int


class UpstreamServer:
    """One server."""

    __slots__ = (
        "authority",
        "base",
        "health",
        "held",
        "index",
        "is_ejected",
        "is_full",
        "is_up",
        "max_connections",
        "name",
        "origin",
        "pool",
        "raw_name",
        "requests",
        "send_proxy_protocol",
        "upstream",
        "used",
        "weight",
    )

    def __init__(
        self, index: int, options: ServerOptions, upstream: Upstream, health: HealthOptions, limits: Limits
    ) -> None:
        group = upstream.options
        #: The group that it belongs to.
        self.upstream = upstream
        #: Its place in the group.
        self.index = index
        #: Where it is.
        self.origin = options.origin
        #: Its address as text.
        self.name = str(options.origin)
        self.raw_name = self.name.encode("utf-8", "surrogateescape")
        #: What Host says if the client's is not kept.
        self.authority = options.authority
        #: The path below which it answers, without a slash at its end; empty: the root.
        self.base = options.base
        #: Its part of the requests.
        self.weight = options.weight
        #: How many requests it gets at once.
        self.max_connections = options.max_connections or sys.maxsize
        #: The PROXY protocol's version that it is spoken to with; 0: none.
        self.send_proxy_protocol = group.send_proxy_protocol
        #: What is known of its health.
        self.health = Health(health)
        #: Requests in flight, and those that wait for it.
        self.used = 0
        #: Connections that clients have for themselves, at rest.
        self.held = 0
        #: Requests that it was asked so far.
        self.requests = 0
        # As of the last look: see Candidate.
        self.is_up = True
        self.is_ejected = False
        self.is_full = False
        tls = group.tls
        #: The connections to it.
        self.pool = ClientPool(
            limits,
            make_room=upstream.make_room,
            is_full=upstream.is_full,
            tls=True if tls is None else tls.made,
            server_hostname=None if tls is None else tls.server_name,
            max_connections=self.max_connections,
            max_idle=group.max_idle,
            max_idle_total=group.max_idle,
            max_waiting=options.max_waiting,
            idle_timeout=group.idle_timeout,
            max_age=group.max_age,
            max_requests=group.max_requests,
        )

    def share(self, now: float) -> float:
        """Return how much of its weight counts: see :class:`Health`."""
        health = self.health
        return 1.0 if health.is_clear else health.share(now)

    def look(self, now: float) -> None:
        """Bring up to date what a balancer looks at."""
        health = self.health
        self.is_up = health.is_clear or health.is_up(now)
        self.is_ejected = not health.is_clear and health.is_ejected

    def enter(self) -> None:
        """Count a request."""
        self.requests += 1
        self.used += 1
        self.is_full = self.used + self.held >= self.max_connections

    def leave(self) -> None:
        """Count a request out."""
        self.used -= 1
        self.is_full = self.used + self.held >= self.max_connections

    def hold(self, more: int) -> None:
        """Count connections that clients have for themselves while they rest, or count them out."""
        self.held += more
        self.is_full = self.used + self.held >= self.max_connections

    def failed(self, failure: Failure, spell: int = -1) -> None:
        """Note that a request failed, and log it if the server is ejected with that, or if it is a shortage of ours.

        ``spell`` is that of its health when it was asked, here as below: see :class:`Health`.
        """
        now = monotonic()
        if not failure.blames_server:
            self.abandoned(spell)
            if failure.is_shortage:
                self.upstream.note_shortage(self, failure, now)
        elif self.health.failed(now, self.health.is_clear or self.upstream.has_up(self), spell):
            seconds = (self.health.ejected_until or now) - now
            still = "" if self.upstream.has_up(self) or not self.upstream.options.panic else STILL_ASKED
            log.warning("%s: %s is ejected for %.1f s%s: %s", self.upstream.name, self.name, seconds, still, failure)

    def abandoned(self, spell: int = -1) -> None:
        """Note that a request ended, and nothing is known of the server: the client left, say."""
        if not self.health.is_clear:
            self.health.abandoned(monotonic(), spell)

    def succeeded(self, spell: int = -1) -> None:
        """Note that a request was answered."""
        if self.health.succeeded(monotonic(), spell):
            log.warning("%s: %s is up again", self.upstream.name, self.name)
            self.rose()

    def rose(self) -> None:
        """Have the others tried at once, if it is the first of them that is up again."""
        upstream = self.upstream
        alike = upstream.backups if self in upstream.backups else upstream.servers
        if not any(each.health.standing is Standing.UP for each in alike if each is not self):
            now = monotonic()
            for each in alike:
                each.health.end_ejection(now)

    def on_check_changed(self, is_up: bool) -> None:
        """Note what checks found."""
        if is_up:
            self.rose()

    def lease(self, deadlines: Deadlines, patient: Patient | None = None, preface: bytes = b"") -> ClientLease:
        """Lease a connection; see :meth:`ClientPool.lease_for`."""
        return self.pool.lease_for(self.origin, deadlines, patient, preface)

    def status(self, upstream: str) -> ServerStatus:
        """Return a snapshot."""
        pool = self.pool.state.statistics(self.origin)
        return ServerStatus(
            upstream, self.name, self.health.statistics(), self.used, pool.idle, pool.waiting, self.requests
        )


class Upstream:
    """A group of servers that answer the same."""

    def __init__(
        self,
        options: UpstreamOptions,
        health: HealthOptions,
        limits: Limits,
        random: Callable[[], float],
        sticky: StickyCookie | None = None,
        make_room: Callable[[], bool] | None = None,
        is_full: Callable[[], bool] | None = None,
    ) -> None:
        """``make_room`` closes an idle connection when descriptors are short; False: there is none.

        ``is_full`` says whether one more connection would take a descriptor that others are to have.
        """
        #: What it was made with.
        self.options = options
        self.name = options.name
        self._make_room = make_room
        #: Whether one more connection would take a descriptor that others are to have; None: that is not known.
        self.is_full = is_full
        self._shortages: dict[str, float] = {}  # when each was logged
        #: Its servers, backups behind the others.
        self.all: list[UpstreamServer] = [
            UpstreamServer(index, each, self, health, limits)
            for index, each in enumerate(sorted(options.servers, key=lambda each: each.backup))
        ]
        first_backup = sum(not each.backup for each in options.servers)
        self.servers: Sequence[UpstreamServer] = self.all[:first_backup]
        self.backups: Sequence[UpstreamServer] = self.all[first_backup:]
        self._balancer = balancer_of(options.balance, random, panic=options.panic)
        self._key_of = key_of(options.hash_key) if options.balance == "hash" else None
        self._only = self.all[0] if len(self.all) == 1 else None
        #: The cookie by which a client comes back to its server; None: there is none.
        self.sticky = Sticky(sticky, [server.name for server in self.all]) if sticky is not None else None
        #: Whether a request goes there without a look at its fields, and with nothing before it.
        self.is_simple = sticky is None and self._key_of is None and not options.send_proxy_protocol
        #: Whether some answer below a path of their own; then no request goes there without a closer look.
        self.has_base = any(server.base for server in self.all)
        self.is_simple = self.is_simple and not self.has_base
        #: How many retries there may be.
        self.budget = RetryBudget(options.retry_budget, options.min_retry_rate)

    def choose(
        self,
        client: str,
        headers: Headers,
        tried: Collection[UpstreamServer] = (),
        wanted: UpstreamServer | None = None,
    ) -> UpstreamServer | None:
        """Return the server for a request, which counts as asked from now on; None if there is none for it.

        ``wanted`` is the server that it should get if that is up.
        """
        if (only := self._only) is not None and only.health.is_clear:
            only.enter()
            return only
        now = monotonic()
        for each in self.all:
            each.look(now)
        server = wanted
        if server is None or not server.is_up or server in tried:
            key = self._key_of(client, headers) if self._key_of is not None else None
            server = self._balancer.choose(self.servers, key, now, tried, self.backups)
        if server is None or not server.health.may_try(now, panic=True):
            return None
        server.enter()
        return server

    def server_of_cookie(self, headers: Headers, now: float) -> UpstreamServer | None:
        """Return the server that a client's sticky cookie names; None if there is none."""
        if self.sticky is None:
            return None
        name = self.sticky.read(headers, now)
        return next((server for server in self.all if server.name == name), None)

    def cookie_of(self, server: UpstreamServer, now: float) -> bytes:
        """Return the value of the Set-Cookie that leads back to a server."""
        assert self.sticky is not None
        return self.sticky.write(server.name, now)

    def retry_after(self) -> int:
        """Return the seconds after which a request may be worth a new try: 1 or more."""
        now = monotonic()
        until = [server.health.ejected_until for server in self.all]
        soonest = min((each - now for each in until if each is not None), default=1.0)
        return max(1, min(30, ceil(soonest)))

    def has_up(self, but: UpstreamServer) -> bool:
        """Whether another server is up."""
        return any(each.health.standing is Standing.UP for each in self.all if each is not but)

    def note_shortage(self, server: UpstreamServer, failure: Failure, now: float) -> None:
        """Log that a request failed for a shortage of ours; seldom, as each request would fail then."""
        if now - self._shortages.get(failure.reason, -LOG_EVERY) >= LOG_EVERY:
            self._shortages[failure.reason] = now
            log.error("%s: requests to %s get 503, for no fault of its own: %s", self.name, server.name, failure)

    def make_room(self) -> bool:
        """Close the connection that has been idle the longest, so that there is a descriptor; False: there is none."""
        if self._make_room is not None:
            return self._make_room()
        return drop_oldest(self.all)

    def drop_idle(self) -> None:
        """Close the connections that are kept."""
        for server in self.all:
            server.pool.drop_idle()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back. No server can be asked from then on."""
        for server in self.all:
            server.pool.close()


def drop_oldest(servers: Iterable[UpstreamServer]) -> bool:
    """Close the connection that has been idle the longest; False: none is idle."""
    oldest, pool = inf, None
    for server in servers:
        since = server.pool.state.idle_since()
        if since is not None and since < oldest:
            oldest, pool = since, server.pool
    return pool is not None and pool.drop_oldest()
