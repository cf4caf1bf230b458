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
from time import monotonic, time
from typing import Any

from greensock import Patient
from greensock.http.client.connection_pool import ClientLease, ClientPool
from greensock.http.client.deadlines import Deadlines
from greensock.http.wire.headers import Headers
from greensock.http.wire.limits import Limits
from greensock.proxy.failure import Failure
from greensock.proxy.options import UpstreamOptions
from greensock.proxy.upstream.balance import balancer_of
from greensock.proxy.upstream.health import Health, HealthOptions, HealthStatistics, Standing
from greensock.proxy.upstream.request_keys import key_of
from greensock.proxy.upstream.retry_budget import RetryBudget
from greensock.proxy.upstream.server_cap import CappedPool, ServerCap
from greensock.proxy.upstream.server_specs import ServerSpec, specs_of
from greensock.proxy.upstream.shared_servers import (
    ASKED,
    CONNECTIONS,
    ERRORS,
    REQUESTS,
    SLOTS,
    WAITING,
    WorkersView,
)
from greensock.proxy.upstream.sticky import Sticky, StickyCookie

__all__ = ["ADMIN_STATES", "ServerStatus", "Upstream", "UpstreamServer", "drop_oldest"]

log = logging.getLogger("greensock.upstream")

#: What is said of a server that is ejected while no other is up.
STILL_ASKED = ", and asked all the same, as no other is up"

#: What an operator may want of a server: all requests; none but those of clients whose cookie leads there; none.
READY, DRAIN, DOWN = ADMIN_STATES = ("ready", "drain", "down")
#: Seconds between two lines on the same shortage.
LOG_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A snapshot of one server: its numbers are those of all workers of the proxy.

    What other workers have is known as it was a quarter of a second ago.
    """

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
    #: Those that failed, and it was its fault.
    errors: int = 0
    #: Connections to it, idle ones too.
    connections: int = 0
    #: ``up``, ``down``, ``ejected`` or ``draining``.
    state: str = "up"
    #: Why that is so; empty if it is up.
    why: str = ""
    #: Since when, in seconds since 1970; 0: since the start.
    since: float = 0.0
    #: Its part of the requests.
    weight: int = 1


class UpstreamServer:
    """One server."""

    __slots__ = (
        "_base",
        "_told",
        "_view",
        "admin",
        "admin_since",
        "authority",
        "base",
        "health",
        "held",
        "index",
        "is_ejected",
        "is_full",
        "is_gone",
        "is_up",
        "max_connections",
        "name",
        "origin",
        "place",
        "pool",
        "raw_name",
        "requests",
        "send_proxy_protocol",
        "since",
        "spec",
        "told_changes",
        "upstream",
        "used",
        "weight",
        "why",
    )

    def __init__(self, index: int, spec: ServerSpec, upstream: Upstream, health: HealthOptions, limits: Limits) -> None:
        group, options = upstream.options, spec.options
        #: What it is to be.
        self.spec = spec
        #: The group that it belongs to.
        self.upstream = upstream
        #: Its place in the group.
        self.index = index
        #: Where it is.
        self.origin = spec.origin
        #: Its address as text.
        self.name = spec.name
        self.raw_name = self.name.encode("utf-8", "surrogateescape")
        #: What Host says if the client's is not kept.
        self.authority = spec.authority
        #: The path below which it answers, without a slash at its end; empty: the root.
        self.base = spec.options.base
        #: Its part of the requests.
        self.weight = spec.weight
        #: How many requests it gets at once, from all workers of the proxy.
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
        #: What an operator wants of it, one of :data:`ADMIN_STATES`; and since when.
        self.admin = READY
        self.admin_since = 0.0
        #: Whether it is one of its group no more.
        self.is_gone = False
        #: Why it is not up, and since when it is so, or up again, in seconds since 1970.
        self.why = ""
        self.since = 0.0
        #: Its place in the rows of all workers; -1: it has none.
        self.place = -1
        #: Which change of its health others were told last.
        self.told_changes = 0
        self._view: WorkersView | None = None
        self._base = [0, 0]  # what had been counted at its place before, for another
        self._told = [0, 0, 0, 0, 0]  # what others were told last: see ``tell``
        tls = group.tls
        sizes: dict[str, Any] = {
            "max_connections": self.max_connections,
            "max_idle": group.max_idle,
            "max_idle_total": group.max_idle,
            "max_waiting": options.max_waiting,
            "idle_timeout": group.idle_timeout,
            "max_age": group.max_age,
            "max_requests": group.max_requests,
        }
        #: The connections to it.
        self.pool: ClientPool = self._new_pool(
            limits,
            make_room=upstream.make_room,
            is_full=upstream.is_full,
            tls=True if tls is None else tls.made,
            server_hostname=None if tls is None else tls.server_name,
            **sizes,
        )

    def _new_pool(self, limits: Limits, **options: Any) -> ClientPool:
        return ClientPool(limits, **options)

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
            self.why, self.since = str(failure), time()
            still = "" if self.upstream.has_up(self) or not self.upstream.options.panic else STILL_ASKED
            log.warning("%s: %s is ejected for %.1f s%s: %s", self.upstream.name, self.name, seconds, still, failure)

    def abandoned(self, spell: int = -1) -> None:
        """Note that a request ended, and nothing is known of the server: the client left, say."""
        if not self.health.is_clear:
            self.health.abandoned(monotonic(), spell)

    def succeeded(self, spell: int = -1) -> None:
        """Note that a request was answered."""
        if self.health.succeeded(monotonic(), spell):
            self.why, self.since = "", time()
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

    def on_check_changed(self, is_up: bool, why: str = "") -> None:
        """Note what checks found, and why that is so."""
        self.why, self.since = why, time()
        if is_up:
            self.rose()

    def lease(self, deadlines: Deadlines, patient: Patient | None = None, preface: bytes = b"") -> ClientLease:
        """Lease a connection; see :meth:`ClientPool.lease_for`."""
        return self.pool.lease_for(self.origin, deadlines, patient, preface)

    @property
    def is_out(self) -> bool:
        """Whether it is to get nothing more, not even what is bound to a connection: down, or no server any more."""
        return self.health.standing is Standing.DOWN or self.admin == DOWN or self.is_gone

    @property
    def state(self) -> str:
        """How it stands, in a word: ``up``, ``down``, ``ejected`` or ``draining``."""
        if self.admin == DOWN or self.health.standing is Standing.DOWN:
            return "down"
        if self.admin == DRAIN:
            return "draining"
        return "ejected" if self.health.is_ejected else "up"

    def inherit(self, old: UpstreamServer) -> None:
        """Take over what is known of its health, from the same server as it was before."""
        old.tell()
        self._told[-1] = old._told[-1]  # its failures stand in what is taken over
        self.health, self.told_changes = old.health, old.told_changes
        self.why, self.since = old.why, old.since
        self.admin, self.admin_since = old.admin, old.admin_since

    def retire(self) -> None:
        """Be no server of the group any more: what it is asked now is answered, and each connection ends with that."""
        self.is_gone = True
        self.pool.retire()
        self.withdraw()

    # -- what workers tell each other

    def attach(self, view: WorkersView, place: int, base: Sequence[int]) -> None:
        """Count for all workers from now on; ``base`` is what had been counted at that place before."""
        self._view, self.place, self._base = view, place, list(base)

    def tell(self) -> None:
        """Tell the other workers how many requests and connections it has here."""
        view, told = self._view, self._told
        if view is None:
            return
        self._told = [*self._mine(), self.requests, self.health.failures]
        for column, (now, before) in enumerate(zip(self._told, told, strict=True)):
            if now != before and column < len(_GAUGES):
                view.add(self.place, _GAUGES[column], now - before)
            elif now != before:
                view.add_total(self.place, _COUNTERS[column - len(_GAUGES)], now - before)

    def _mine(self) -> list[int]:
        """Return what ``_GAUGES`` are of this worker."""
        pool = self.pool.state
        return [self.used + self.held, self.pool.statistics().used, pool.slots]

    def withdraw(self) -> None:
        """Tell the others that it has no requests and connections here any more."""
        if self._view is not None:
            self.tell()
            for column, count in zip(_GAUGES, self._told, strict=False):
                self._view.add(self.place, column, -count)
            self._told[: len(_GAUGES)] = [0] * len(_GAUGES)
            self._view = None

    def status(self, upstream: str) -> ServerStatus:
        """Return a snapshot."""
        pool, view, place = self.pool.state.statistics(self.origin), self._view, self.place
        used, waiting, slots, connections = self.used, pool.waiting, pool.used, self.pool.state.slots
        requests, errors = self.requests, self.health.failures
        if view is not None:
            used += view.of_others(place, ASKED)
            waiting += view.of_others(place, WAITING)
            slots += view.of_others(place, SLOTS)
            connections += view.of_others(place, CONNECTIONS)
            requests += view.total(place, REQUESTS) - self._base[0] - self._told[3]
            errors += view.total(place, ERRORS) - self._base[1] - self._told[4]
        state = self.state
        why, since = self.why, self.since
        if self.admin != READY and self.health.standing is not Standing.DOWN:
            why, since = "an operator wants it so", self.admin_since
        return ServerStatus(
            *(upstream, self.name, self.health.statistics(), used, max(0, connections - slots), waiting, requests),
            errors=errors,
            connections=connections,
            state=state,
            why="" if state == "up" else why,
            since=since,
            weight=self.weight,
        )


#: What ``UpstreamServer`` tells as it is now, and what it counts.
_GAUGES = (ASKED, SLOTS, CONNECTIONS)
_COUNTERS = (REQUESTS, ERRORS)


class CappedServer(UpstreamServer):
    """One that gets so many requests at once, and no more, from all workers together."""

    __slots__ = ("cap",)

    def _new_pool(self, limits: Limits, **options: Any) -> ClientPool:
        self.cap = ServerCap(self.max_connections)
        return CappedPool(self.cap, limits, **options)

    def look(self, now: float) -> None:
        super().look(now)
        self.is_full = self.cap.is_full()

    def enter(self) -> None:
        super().enter()
        self.cap.ask(1)

    def leave(self) -> None:
        super().leave()
        self.cap.ask(-1)

    def hold(self, more: int) -> None:
        super().hold(more)
        self.cap.ask(more)

    def attach(self, view: WorkersView, place: int, base: Sequence[int]) -> None:
        super().attach(view, place, base)
        self.cap.attach(view, place)

    def _mine(self) -> list[int]:
        return [0, 0, self.pool.state.slots]  # the others are told as they change


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
        self._health, self._limits, self._random = health, limits, random
        self._cookie = sticky
        #: Its servers, backups behind the others.
        self.all: list[UpstreamServer] = []
        #: Those that are asked, and backups; without the ones that an operator took out.
        self.servers: Sequence[UpstreamServer] = ()
        self.backups: Sequence[UpstreamServer] = ()
        self._key_of = key_of(options.hash_key) if options.balance == "hash" else None
        #: The cookie by which a client comes back to its server; None: there is none.
        self.sticky: Sticky | None = None
        #: Whether a request goes there without a look at its fields, and with nothing before it.
        self.is_simple = sticky is None and self._key_of is None and not options.send_proxy_protocol
        self._is_alike = self.is_simple
        #: Whether some answer below a path of their own; then no request goes there without a closer look.
        self.has_base = False
        #: How many retries there may be.
        self.budget = RetryBudget(options.retry_budget, options.min_retry_rate)
        #: Its place in the rows of all workers, for the budget; -1: it has none.
        self.place = -1
        self._told = (0, 0)
        self._view: WorkersView | None = None
        self.arrange(specs_of(options, {}))

    # -- which servers

    def arrange(self, specs: Sequence[ServerSpec]) -> bool:
        """Have these servers from now on, and no others; return whether some came or went.

        Those that stay are not touched. One that goes answers what it was asked.
        """
        known = {each.name: each for each in self.all}
        made: list[UpstreamServer] = []
        for spec in sorted(specs, key=lambda each: each.is_backup):
            server = known.get(spec.name)
            if server is not None and server.spec.is_like(spec):
                server.spec, server.weight = spec, spec.weight
            else:
                kind = UpstreamServer if spec.options.max_connections is None else CappedServer
                fresh = kind(len(made), spec, self, self._health, self._limits)
                if server is not None:
                    fresh.inherit(server)
                server = fresh
            made.append(server)
        before, self.all = self.all, made
        gone = [each for each in before if each not in made]
        if before == made:
            self._sort()  # a weight, or who is a backup, may have changed
            return False
        for index, each in enumerate(made):
            each.index = index
        self._balancer = balancer_of(self.options.balance, self._random, panic=self.options.panic)
        if self._cookie is not None:
            self.sticky = Sticky(self._cookie, [server.name for server in made])
        self._sort()
        for each in gone:
            each.retire()
        return True

    def set_admin(self, server: UpstreamServer, state: str, since: float) -> None:
        """Have a server stand as an operator wants it, by one of :data:`ADMIN_STATES`."""
        if server.admin != state:
            server.admin, server.admin_since = state, since
            self._sort()
            if state != READY:
                server.pool.drop_idle()

    def _sort(self) -> None:
        """Find those that may be asked."""
        self.has_base = any(each.base for each in self.all)
        self.is_simple = self._is_alike and not self.has_base
        ready = [each for each in self.all if each.admin == READY]
        self.servers = [each for each in ready if not each.spec.is_backup]
        self.backups = [each for each in ready if each.spec.is_backup]
        self._only = ready[0] if len(self.all) == 1 and ready else None

    # -- what workers tell each other

    def attach(self, view: WorkersView, place: int) -> None:
        """Share the budget of retries with all workers from now on."""
        self._view, self.place = view, place
        self.budget.others = self._retries_of_others
        self.budget.on_retry = self._tell_budget

    def _retries_of_others(self) -> tuple[int, int]:
        view = self._view
        if view is None:
            return 0, 0
        return view.of_others(self.place, ASKED), view.of_others(self.place, SLOTS)

    def _tell_budget(self) -> None:
        self._tell(self.budget.counts(monotonic()))

    def _tell(self, counts: tuple[int, int]) -> None:
        if self._view is not None and counts != self._told:
            for column, now, before in zip((ASKED, SLOTS), counts, self._told, strict=True):
                self._view.add(self.place, column, now - before)
            self._told = counts

    def tell(self) -> None:
        """Tell the other workers what there is of requests, connections and retries here."""
        self._tell_budget()
        for server in self.all:
            server.tell()

    def withdraw(self) -> None:
        """Tell the others that there is nothing here any more."""
        self._tell((0, 0))
        self._view = self.budget.others = self.budget.on_retry = None
        for server in self.all:
            server.withdraw()

    def status(self) -> list[ServerStatus]:
        """Return a snapshot of each server: its numbers are those of all workers of the proxy."""
        return [server.status(self.name) for server in self.all]

    # -- requests

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
        return next((server for server in self.all if server.name == name and server.admin != DOWN), None)

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
        ready = (*self.servers, *self.backups)
        return any(each.health.standing is Standing.UP for each in ready if each is not but)

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
