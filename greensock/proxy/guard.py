"""Limits for each client address, and bans. Pure.

It owns a table of what is known of each client: when its next request and connection are due, how many connections it
has, its errors, and its ban. A rate is kept as one time, the theoretical arrival time of the generic cell rate
algorithm (ITU-T I.371): a request that comes earlier than its burst allows is refused and costs the client nothing.

Invariants:

- A client of whom nothing needs to be remembered is soon forgotten: for each client that comes, two are looked at.
- The table never holds more than ``max_clients``. A client of whom nothing needs to be remembered goes first, then one
  without a ban and without connections, then bans, then those that have connections.
- A client without an address (a Unix socket) is not limited: who it is can't be told.
"""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import islice
from math import ceil, isfinite

from greensock import Rule
from greensock.http.wire.syntax import is_authority, is_token
from greensock.proxy.networks import Networks, are_networks, network_of

__all__ = ["Guard", "GuardOptions", "GuardStatistics", "Refusal"]

#: How many clients are looked at to find one to forget, when the table is full and when it is not.
LOOKED_AT, SWEPT = 16, 2
#: How many addresses and hosts are remembered, besides the table.
MAX_ADDRESSES, MAX_HOSTS = 32768, 1024
#: Bytes of the longest ``host:port``.
MAX_HOST = 261
#: So much of a burst's spacing is forgiven: times are rounded.
ROUNDING = 0.001


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
    "max_clients": Rule.whole(1),
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
    #: Clients that something is known of, at about 400 bytes each.
    max_clients: int = 100_000
    #: Bits of an IPv6 address by which clients are told apart: one host often has a whole /64.
    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            RULES[field.name].check(field.name, getattr(self, field.name))


class Refusal:
    """Why something is refused, and what to answer."""

    __slots__ = ("allow", "reason", "retry_after", "status")

    def __init__(self, status: int, reason: str, retry_after: int | None = None, allow: str | None = None) -> None:
        #: 405, 421 or 429.
        self.status = status
        #: ``request-rate``, ``connection-rate``, ``client-connections``, ``client-uploads``, ``banned``, ``method`` or
        #: ``host``.
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


class _Client:
    """What is known of one client. Times are those of the caller's clock; what is past says nothing any more."""

    __slots__ = ("banned_until", "connection_due", "connections", "errors", "request_due", "uploads", "window_end")

    def __init__(self) -> None:
        # When the next one would be due if they came evenly.
        self.request_due = self.connection_due = 0.0
        self.connections = self.uploads = 0
        self.errors = 0
        self.window_end = self.banned_until = 0.0

    def worth(self, now: float) -> int:
        """Return how much would be lost if it were forgotten; 0 if nothing."""
        if self.connections or self.uploads:
            return 3
        if self.banned_until > now:
            return 2
        return int(max(self.request_due, self.connection_due, self.window_end) > now)


class _Rate:
    """How often something may happen."""

    __slots__ = ("interval", "tolerance")

    def __init__(self, rate: float | None, burst: int) -> None:
        # Seconds between two; 0 if there is no limit.
        self.interval = 1 / rate if rate else 0.0
        # How many seconds it may come before it is due.
        self.tolerance = (burst - 1 + ROUNDING) * self.interval


class Guard:
    """Says who may connect and ask. ``now`` is in seconds of one clock that never goes back.

    Tell it of every connection and its end, of every request, and of every answer, its own refusals included.
    ``client`` is an address as text.
    """

    def __init__(self, options: GuardOptions) -> None:
        #: What it was made with.
        self.options = options
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # in the order in which they were added or looked at
        self._requests = _Rate(options.request_rate, options.request_burst)
        self._connections = _Rate(options.connection_rate, options.connection_burst)
        self._exempt = Networks(options.exempt)
        self._hosts = frozenset(name.lower().removesuffix(".") for name in options.hosts or ())
        self._key = functools.lru_cache(min(options.max_clients, MAX_ADDRESSES))(self._make_key)
        self._is_served = functools.lru_cache(MAX_HOSTS)(self._look_up_host)
        self._limits_requests = options.request_rate is not None or options.ban_errors is not None
        self._limits_connections = (
            options.connection_rate is not None or options.max_connections is not None or options.ban_errors is not None
        )
        self._refused: Counter[str] = Counter()
        self._bans = self._forgotten = 0

    def connection(self, client: str, now: float) -> Refusal | None:
        """Take a new connection, and count it until :meth:`closed`; or return why not, which is not counted."""
        if not self._limits_connections or not (key := self._key(client)):
            return None
        known = self._clients.get(key)
        if known is not None and known.banned_until > now:
            return self._refuse("banned", known.banned_until - now)
        options = self.options
        if options.max_connections is not None:
            known = known or self._add(key, now)
            if known.connections >= options.max_connections:
                return self._refuse("client-connections", 1)
        if rate := self._connections.interval:
            known = known or self._add(key, now)
            early = known.connection_due - now
            if early > self._connections.tolerance:
                return self._refuse("connection-rate", early - self._connections.tolerance)
            known.connection_due = now + rate + max(early, 0.0)
        if options.max_connections is not None and known is not None:
            known.connections += 1
        return None

    def closed(self, client: str) -> None:
        """Count out a connection, now ended, that :meth:`connection` had admitted."""
        if self.options.max_connections is not None:
            known = self._clients.get(self._key(client))
            if known is not None and known.connections:
                known.connections -= 1

    def request(self, client: str, now: float, method: str, host: bytes) -> Refusal | None:
        """Take a request; or return why not, which does not count as one. ``host`` is its authority."""
        options = self.options
        if options.hosts is not None and not (len(host) <= MAX_HOST and self._is_served(host)):
            return self._refuse("host", status=421)
        if options.methods is not None and method not in options.methods:
            return self._refuse("method", status=405)
        if not self._limits_requests or not (key := self._key(client)):
            return None
        known = self._clients.get(key)
        if known is not None and known.banned_until > now:
            return self._refuse("banned", known.banned_until - now)
        if rate := self._requests.interval:
            known = known or self._add(key, now)
            due = known.request_due
            if due <= now:
                known.request_due = now + rate
            elif due - now > self._requests.tolerance:
                return self._refuse("request-rate", due - now - self._requests.tolerance)
            else:
                known.request_due = due + rate
        return None

    def upload(self, client: str, now: float) -> Refusal | None:
        """Take a body that is to be waited for, and count it until :meth:`upload_ended`; or return why not."""
        most = self.options.max_uploads
        if most is None or not (key := self._key(client)):
            return None
        known = self._clients.get(key) or self._add(key, now)
        if known.uploads >= most:
            return self._refuse("client-uploads", 1)
        known.uploads += 1
        return None

    def upload_ended(self, client: str) -> None:
        """Take note that a body is waited for no more that :meth:`upload` had taken."""
        if self.options.max_uploads is not None:
            known = self._clients.get(self._key(client))
            if known is not None and known.uploads:
                known.uploads -= 1

    def answered(self, client: str, now: float, status: int) -> None:
        """Take note of an answer: a client that collects errors is banned."""
        most = self.options.ban_errors
        if most is None or status not in self.options.ban_statuses or not (key := self._key(client)):
            return
        known = self._clients.get(key) or self._add(key, now)
        if known.banned_until > now:
            return  # an answer that was under way
        if known.window_end <= now:
            known.window_end, known.errors = now + self.options.ban_window, 0
        known.errors += 1
        if known.errors >= most:
            known.banned_until, known.window_end = now + self.options.ban_time, 0.0
            self._bans += 1

    def is_banned(self, client: str, now: float) -> bool:
        """Whether all that this client asks for is refused now."""
        known = self._clients.get(self._key(client))
        return known is not None and known.banned_until > now

    def statistics(self, now: float) -> GuardStatistics:
        """Return what was counted so far; it goes through the whole table."""
        for key in [key for key, known in self._clients.items() if not known.worth(now)]:
            del self._clients[key]
        return GuardStatistics(len(self._clients), self._bans, self._forgotten, dict(self._refused))

    def _refuse(self, reason: str, seconds: float | None = None, status: int = 429) -> Refusal:
        self._refused[reason] += 1
        retry_after = None if seconds is None else max(1, ceil(seconds))
        allow = ", ".join(sorted(self.options.methods or ())) if status == 405 else None
        return Refusal(status, reason, retry_after, allow)

    def _make_key(self, client: str) -> str:
        """Return what a client is known by; empty if it is not limited."""
        return "" if client in self._exempt else network_of(client, self.options.ipv6_prefix)

    def _look_up_host(self, host: bytes) -> bool:
        match = is_authority(host.lower())
        if match is None:
            return False
        name = match.group(1).decode().removesuffix(".")
        return not self._hosts.isdisjoint((name, *_patterns_above(name)))

    def _add(self, key: str, now: float) -> _Client:
        if len(self._clients) >= self.options.max_clients:
            self._forget(now)
        else:
            self._sweep(now)
        known = self._clients[key] = _Client()
        return known

    def _sweep(self, now: float) -> None:
        """Forget some clients of whom nothing needs to be remembered: more than come, until there are none."""
        clients = self._clients
        for key in list(islice(clients, SWEPT)):
            if clients[key].worth(now):
                clients.move_to_end(key)
            else:
                del clients[key]

    def _forget(self, now: float) -> None:
        """Forget the client of the least worth among those that were looked at or added the longest ago.

        What is kept goes to the end, so that the next ones are looked at then.
        """
        clients = self._clients
        looked_at = list(islice(clients, LOOKED_AT))
        worth = {key: clients[key].worth(now) for key in looked_at}
        forgotten = min(looked_at, key=worth.__getitem__)  # the first of several
        if worth[forgotten]:
            self._forgotten += 1
        else:
            del looked_at[looked_at.index(forgotten) + 1 :]
        for key in looked_at:
            clients.move_to_end(key)
        del clients[forgotten]


def _patterns_above(name: str) -> list[str]:
    labels = name.split(".")
    return ["*." + ".".join(labels[place:]) for place in range(1, len(labels))]
