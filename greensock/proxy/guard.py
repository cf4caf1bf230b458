"""Limits for each client address, and bans.

It owns a table of what is known of each client: when its next request and connection are due, how many connections it
has, its errors, and its ban. The table may be in memory that all workers of a proxy share: then its limits hold for the
whole proxy (``ClientTable`` says how exactly). Pure, but for that memory.

Invariants:

- The table never grows. A client of whom nothing needs to be remembered goes first, then one without a ban and without
  connections, then bans, then those that have connections.
- A client without an address (a Unix socket) is not limited: who it is can't be told.
- What a client has used is noted for other machines (``take_used``) only where somebody fetches it.
"""

from __future__ import annotations

import functools
import mmap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from math import ceil, isfinite

from greensock import Rule
from greensock.http.wire.syntax import is_authority, is_token
from greensock.limits.access_lists import AccessLists, is_path
from greensock.limits.client_table import WAYS, ClientTable, OwnCounts, Rate, Seat
from greensock.limits.networks import Networks, are_networks, network_of
from greensock.limits.redis_share import Used, is_storage

__all__ = [
    "GUARDS",
    "Guard",
    "GuardOptions",
    "GuardStatistics",
    "Refusal",
    "SharedBlocks",
    "table_name",
    "table_of",
]

#: How many clients are looked at to find one to forget.
LOOKED_AT = WAYS
#: How many addresses and hosts are remembered, besides the table.
MAX_ADDRESSES, MAX_HOSTS = 32768, 1024
#: Up to how many clients a table may be made for: memory that is mapped is mapped whole.
MOST_CLIENTS = 10_000_000
#: Bytes of the longest ``host:port``.
MAX_HOST = 261
#: Clients of which is noted what they have used, until that is fetched: 100 ms, mostly.
MAX_USED = 4096
#: The times of a row: when the next request and connection are due, until when its ban lasts and its errors count; and
#: how many these are.
REQUEST, CONNECTION, BAN, WINDOW, ERRORS = range(5)
#: What the names of all memory begin with that guards share.
GUARDS = "guard "
#: A time that is so many times further ahead than what is ever written is not believed.
TWICE = 2.0


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0


def _is_pattern(value: object) -> bool:
    if not isinstance(value, str) or not value.isascii():
        return False
    name = value.removeprefix("*.").encode()
    match = is_authority(name)
    return match is not None and match.group(1) == name


def _are_methods(value: object) -> bool:
    if not isinstance(value, frozenset) or not value:
        return False
    return all(isinstance(name, str) and name.isascii() and is_token(name.encode()) for name in value)


def _are_statuses(value: object) -> bool:
    return isinstance(value, frozenset) and all(isinstance(status, int) and 100 <= status <= 999 for status in value)


RULES: Mapping[str, Rule] = {
    "request_rate": Rule(_is_rate, "a number of requests a second, more than 0").or_none(),
    "request_burst": Rule.whole(1),
    "connection_rate": Rule(_is_rate, "a number of connections a second, more than 0").or_none(),
    "connection_burst": Rule.whole(1),
    "max_connections": Rule.whole(1).or_none(),
    "max_uploads": Rule.whole(1).or_none(),
    "methods": Rule(_are_methods, "a frozenset of methods, not empty").or_none(),
    "hosts": Rule(
        lambda value: isinstance(value, tuple) and len(value) > 0 and all(map(_is_pattern, value)),
        "a tuple of names or *.names without a port, not empty",
    ).or_none(),
    "ban_errors": Rule.whole(1).or_none(),
    "ban_statuses": Rule(_are_statuses, "a frozenset of statuses"),
    "ban_window": Rule.seconds(zero=False),
    "ban_time": Rule.seconds(zero=False),
    "exempt": Rule(are_networks, "a tuple of addresses, address/bits or unix"),
    "allow": Rule(are_networks, "a tuple of addresses, address/bits or unix"),
    "deny": Rule(are_networks, "a tuple of addresses, address/bits or unix"),
    "allow_file": Rule(is_path, "the path of a file").or_none(),
    "deny_file": Rule(is_path, "the path of a file").or_none(),
    "storage": Rule(is_storage, "redis://HOST:PORT/NUMBER, rediss:// or unix://PATH").or_none(),
    "max_clients": Rule(
        lambda value: Rule.whole(1).fits(value) and value <= MOST_CLIENTS, f"a whole number from 1 to {MOST_CLIENTS}"
    ),
    "ipv6_prefix": Rule(
        lambda value: Rule.whole(1).fits(value) and value <= 128, "a whole number of bits from 1 to 128"
    ),
}


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What a client may do. None: no such limit. A client is an IPv4 address, or an IPv6 network of ``ipv6_prefix``.

    Behind a trusted peer (``Forwarding.trusted``) it is the address that the peer names; the peer's own connections are
    not limited.

    Raises:
        ValueError: a field is not what it may be; the text names it.
    """

    #: Requests a second, in the long run.
    request_rate: float | None = None
    #: Requests that may come at once.
    request_burst: int = 50
    #: New connections a second, in the long run.
    connection_rate: float | None = None
    #: Connections that may come at once.
    connection_burst: int = 20
    #: Connections at a time.
    max_connections: int | None = None
    #: Bodies at a time that are waited for or passed on as they come: those that come slowly, or are long.
    max_uploads: int | None = None
    #: Methods that are allowed.
    methods: frozenset[str] | None = None
    #: Names that requests may be for, on any port; ``*.example.org`` is every name below it, but not itself.
    hosts: tuple[str, ...] | None = None
    #: A client that gets so many answers with one of ``ban_statuses`` within ``ban_window`` is banned.
    ban_errors: int | None = None
    #: What counts as an error of the client. Neither 429, which a busy client gets, nor 5xx, which is not its fault.
    ban_statuses: frozenset[int] = frozenset({400, 401, 403, 404, 405, 408, 413, 414, 421, 431})
    #: Seconds, from the first of these answers on.
    ban_window: float = 60.0
    #: Seconds that a ban lasts.
    ban_time: float = 300.0
    #: Networks whose clients have none of the limits above but ``methods`` and ``hosts``.
    exempt: tuple[str, ...] = ()
    #: Networks whose clients may come, whatever ``deny`` says.
    allow: tuple[str, ...] = ()
    #: Networks whose clients get 403. To let in only who is in ``allow``, deny ``0.0.0.0/0``, ``::/0`` and ``unix``.
    deny: tuple[str, ...] = ()
    #: Files with more of both, a network a line, which are read anew within two seconds when they change.
    allow_file: str | None = None
    deny_file: str | None = None
    #: A Redis (``redis://HOST:PORT/NUMBER``) by which the rates hold for all proxies that have the same; None: for
    #: this one alone.
    storage: str | None = field(default=None, repr=False)
    #: Clients that something is known of, 10,000,000 at the most, at about 120 bytes each; where many processes share
    #: that, 260 more for each of ``max_connections`` and ``max_uploads``.
    max_clients: int = 100_000
    #: Bits of an IPv6 address by which clients are told apart: one host often has a whole /64.
    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        for each in fields(self):
            RULES[each.name].check(each.name, getattr(self, each.name))


class Refusal:
    """Why something is refused, and what to answer."""

    __slots__ = ("allow", "reason", "retry_after", "status")

    def __init__(self, status: int, reason: str, retry_after: int | None = None, allow: str | None = None) -> None:
        #: 403, 405, 421 or 429.
        self.status = status
        #: ``request-rate``, ``connection-rate``, ``client-connections``, ``client-uploads``, ``banned``, ``denied``,
        #: ``method`` or ``host``.
        self.reason = reason
        #: Seconds, at least 1, for Retry-After; None if it should not be sent.
        self.retry_after = retry_after
        #: What Allow says, with 405.
        self.allow = allow

    def __repr__(self) -> str:
        return f"<Refusal {self.status} {self.reason}>"


@dataclass(frozen=True, slots=True)
class GuardStatistics:
    """What a guard counted."""

    #: Clients that something is known of now.
    clients: int
    #: Bans that were pronounced.
    bans: int
    #: Clients that were forgotten although something was known of them, as the table was full.
    forgotten: int
    #: How many requests and connections were refused, by reason.
    refused: Mapping[str, int]


class SharedBlocks:
    """Where the tables of guards are that several processes share: a function that returns memory by name and size, how
    many processes there may be, and which of them this one is.
    """

    __slots__ = ("block", "column", "columns")

    def __init__(self, block: Callable[[str, int], mmap.mmap], columns: int = 1, column: int = 0) -> None:
        self.block = block
        self.columns = columns
        self.column = column


class Guard:
    """Says who may connect and ask. ``now`` is in seconds of one clock that never goes back: ``time.monotonic``, where
    processes share it.

    Tell it of every connection and its end, of every request, and of every answer, its own refusals included.
    ``client`` is an address as text. ``scope`` is what it guards: the route's name, or nothing for all of a proxy.

    Raises:
        ValueError: a file of ``allow_file`` or ``deny_file`` is not right.
    """

    def __init__(self, options: GuardOptions, scope: str = "", shared: SharedBlocks | None = None) -> None:
        #: What it was made with.
        self.options = options
        #: What it guards.
        self.scope = scope
        self._requests = Rate(options.request_rate, options.request_burst)
        self._connections = Rate(options.connection_rate, options.connection_burst)
        self._exempt = Networks(options.exempt)
        self._hosts = frozenset(name.lower().removesuffix(".") for name in options.hosts or ())
        self._is_served = functools.lru_cache(MAX_HOSTS)(self._look_up_host)
        #: Who may come at all. Whoever serves starts and stops it, as it may have files to look at.
        self.lists = AccessLists(options.allow, options.deny, options.allow_file, options.deny_file)
        self._has_lists = not self.lists.is_empty
        self._limits_requests = options.request_rate is not None or options.ban_errors is not None
        self._limits_connections = (
            options.connection_rate is not None or options.max_connections is not None or options.ban_errors is not None
        )
        self._refused: Counter[str] = Counter()
        self._bans = 0
        self._used: dict[tuple[str, Seat], int] | None = None
        self._table = table = table_of(options, scope, shared)
        self._request_dues, self._connection_dues, self._ban_ends, self._window_ends, self._errors = table.times
        self._connected = OwnCounts(table, 0)
        self._uploading = OwnCounts(table, len(table.counts) - 1)
        self._seat = functools.lru_cache(min(options.max_clients, MAX_ADDRESSES))(self._make_seat)

    # -- what clients do

    def connection(self, client: str, now: float) -> Refusal | None:
        """Take a new connection, and count it until :meth:`closed`; or return why not, which is not counted."""
        if self._has_lists and self.lists.denies(client):
            return self._refuse("denied", status=403)
        if not self._limits_connections or (seat := self._seat(client)) is None:
            return None
        options, place = self.options, self._table.find(seat)
        if place >= 0 and options.ban_errors is not None and (left := self._ban_left(place, now)) > 0:
            return self._refuse("banned", left)
        most, interval = options.max_connections, self._connections.interval
        if place < 0 and (most is not None or interval):
            place = self._add(seat, now)
        if most is not None and self._connected.total(seat, place) >= most:
            return self._refuse("client-connections", 1)
        if interval:
            wait = self._connections.take(self._connection_dues, place, now)
            if wait > 0:
                return self._refuse("connection-rate", wait)
            if self._used is not None:
                self._note_used("connection", seat)
        if most is not None:
            self._connected.add(seat, place)
        return None

    def closed(self, client: str) -> None:
        """Count out a connection, now ended, that :meth:`connection` had admitted."""
        if self.options.max_connections is not None and (seat := self._seat(client)) is not None:
            self._connected.remove(seat)

    def request(self, client: str, now: float, method: str, host: bytes) -> Refusal | None:
        """Take a request; or return why not, which does not count as one. ``host`` is its authority."""
        options = self.options
        if options.hosts is not None and not (len(host) <= MAX_HOST and self._is_served(host)):
            return self._refuse("host", status=421)
        if options.methods is not None and method not in options.methods:
            return self._refuse("method", status=405)
        if self._has_lists and self.lists.denies(client):
            return self._refuse("denied", status=403)
        if not self._limits_requests or (seat := self._seat(client)) is None:
            return None
        place = self._table.find(seat)
        if place >= 0 and options.ban_errors is not None and (left := self._ban_left(place, now)) > 0:
            return self._refuse("banned", left)
        if self._requests.interval:
            if place < 0:
                place = self._add(seat, now)
            wait = self._requests.take(self._request_dues, place, now)
            if wait > 0:
                return self._refuse("request-rate", wait)
            if self._used is not None:
                self._note_used("request", seat)
        return None

    def upload(self, client: str, now: float) -> Refusal | None:
        """Take a body that is to be waited for, and count it until :meth:`upload_ended`; or return why not."""
        most = self.options.max_uploads
        if most is None or (seat := self._seat(client)) is None:
            return None
        place = self._table.find(seat)
        if place < 0:
            place = self._add(seat, now)
        if self._uploading.total(seat, place) >= most:
            return self._refuse("client-uploads", 1)
        self._uploading.add(seat, place)
        return None

    def upload_ended(self, client: str) -> None:
        """Take note that a body is waited for no more that :meth:`upload` had taken."""
        if self.options.max_uploads is not None and (seat := self._seat(client)) is not None:
            self._uploading.remove(seat)

    def answered(self, client: str, now: float, status: int) -> None:
        """Take note of an answer: a client that collects errors is banned."""
        options = self.options
        most = options.ban_errors
        if most is None or status not in options.ban_statuses or (seat := self._seat(client)) is None:
            return
        place = self._table.find(seat)
        if place < 0:
            place = self._add(seat, now)
        if self._ban_left(place, now) > 0:
            return  # an answer that was under way
        end, errors = self._window_ends[place], self._errors[place]
        if not (now < end <= now + TWICE * options.ban_window and 0 <= errors < most):
            self._window_ends[place], errors = now + options.ban_window, 0.0
        self._errors[place] = errors + 1
        if errors + 1 >= most:
            self._ban_ends[place], self._window_ends[place] = now + options.ban_time, 0.0
            self._bans += 1

    def is_banned(self, client: str, now: float) -> bool:
        """Whether all that this client asks for is refused now."""
        if self.options.ban_errors is None or (seat := self._seat(client)) is None:
            return False
        place = self._table.find(seat)
        return place >= 0 and self._ban_left(place, now) > 0

    # -- what was counted

    @property
    def refused(self) -> Mapping[str, int]:
        """How many requests and connections this process refused, by reason."""
        return self._refused

    @property
    def uploads(self) -> int:
        """How many bodies are waited for in this process."""
        return sum(self._uploading.own.values())

    def statistics(self, now: float) -> GuardStatistics:
        """Return what was counted so far: clients in all processes, the rest by this one. It goes through the whole
        table: some 50 ms where ``max_clients`` is 100,000."""
        table = self._table
        times = (self._request_dues, self._connection_dues, self._ban_ends, self._window_ends)
        untils = map(max, *(each.tolist() for each in times))
        clients = 0
        for place, (tag, until) in enumerate(zip(table.tags.tolist(), untils, strict=True)):
            if tag and (until > now or (table.counts and table.is_counted(place))):
                clients += 1
        return GuardStatistics(clients, self._bans, table.forgotten, dict(self._refused))

    # -- other machines

    def share_used(self) -> None:
        """Note from now on what clients use, for :meth:`take_used`."""
        if self._used is None:
            self._used = {}

    def take_used(self) -> list[Used]:
        """Return what clients have used since it was asked last."""
        if not self._used:
            return []
        used, self._used = self._used, {}
        found = []
        for (kind, seat), count in used.items():
            rate = self._requests if kind == "request" else self._connections
            dues = self._request_dues if kind == "request" else self._connection_dues
            key = ":".join((kind, self.scope, seat.name))
            found.append(Used(key, count, rate.interval, rate.horizon, partial(self._raise, rate, dues, seat)))
        return found

    def _raise(self, rate: Rate, dues: memoryview[float], seat: Seat, ahead: float, now: float) -> None:
        """Take note of what a client has used in all: its next one is due so many seconds ahead."""
        place = self._table.find(seat)
        if place >= 0:
            rate.raise_to(dues, place, now + ahead, now)

    def _note_used(self, kind: str, seat: Seat) -> None:
        used = self._used
        assert used is not None
        key = kind, seat
        if key in used:
            used[key] += 1
        elif len(used) < MAX_USED:
            used[key] = 1

    # -- the table

    def _refuse(self, reason: str, seconds: float | None = None, status: int = 429) -> Refusal:
        self._refused[reason] += 1
        retry_after = None if seconds is None else max(1, ceil(seconds))
        allow = ", ".join(sorted(self.options.methods or ())) if status == 405 else None
        return Refusal(status, reason, retry_after, allow)

    def _make_seat(self, client: str) -> Seat | None:
        """Return where a client is known; None if it is not limited."""
        name = "" if client in self._exempt else network_of(client, self.options.ipv6_prefix)
        return self._table.seat(name) if name else None

    def _look_up_host(self, host: bytes) -> bool:
        match = is_authority(host.lower())
        if match is None:
            return False
        name = match.group(1).decode().removesuffix(".")
        return not self._hosts.isdisjoint((name, *_patterns_above(name)))

    def _add(self, seat: Seat, now: float) -> int:
        return self._table.add(seat, partial(self._worth, now))

    def _ban_left(self, place: int, now: float) -> float:
        """Return how many seconds a ban lasts; 0 if there is none."""
        left: float = self._ban_ends[place] - now
        return left if 0 < left <= TWICE * self.options.ban_time else 0.0

    def _worth(self, now: float, place: int) -> tuple[int, float]:
        """Return how much would be lost with a row, 0 if nothing, and until when that is so."""
        if self._table.is_counted(place):
            return 3, now
        if (left := self._ban_left(place, now)) > 0:
            return 2, now + left
        until = max(self._request_dues[place], self._connection_dues[place], self._window_ends[place])
        return int(until > now), until


def table_of(options: GuardOptions, scope: str, shared: SharedBlocks | None) -> ClientTable:
    """Return the table of a guard: in memory that is shared, or of this process alone."""
    counts = (options.max_connections is not None) + (options.max_uploads is not None)
    if not counts and options.request_rate is options.connection_rate is options.ban_errors is None:
        return ClientTable(1, ERRORS + 1)  # nothing is ever noted
    if shared is None:
        return ClientTable(options.max_clients, ERRORS + 1, counts)
    block = partial(shared.block, table_name(options, scope))
    return ClientTable(options.max_clients, ERRORS + 1, counts, shared.columns, shared.column, block)


def table_name(options: GuardOptions, scope: str) -> str:
    """Return what the memory of a guard is called: with other options it is another, and begins empty."""
    return f"{GUARDS}{scope} {options!r}"


def _patterns_above(name: str) -> list[str]:
    labels = name.split(".")
    return ["*." + ".".join(labels[place:]) for place in range(1, len(labels))]
