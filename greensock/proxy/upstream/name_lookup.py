"""Where the name of a server leads: asked again and again, by a greenlet of its own for each name.

With dnspython the answer's TTL says when to ask again. Without it, or where the process is not patched (it would stop
the hub then), the system's resolver is asked, by gevent, which tells of no TTL. That one also knows names of
/etc/hosts: so it is asked, too, about what DNS does not know.

- Of a name with addresses of IPv4 those are taken, and of IPv6 if there are no others: else a machine with both would
  be two servers, and have twice as many requests.
- SRV records (RFC 2782) say host, port and weight; those of the lowest priority are servers, the others backups. A
  weight of 0 counts as 1.
- A look-up that fails changes nothing: the servers stay. That is logged once, and once when it works again.
- So is an answer that there is no such name, or nothing of that kind, for ``EMPTY_FOR`` seconds: an empty answer is
  what a resolver says that has just started. If it is still so then, it is believed, and the servers go.
- At most ``MOST`` addresses are taken.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Any

import gevent
from gevent import monkey
from gevent.socket import getaddrinfo

from greensock.proxy.options import ServerOptions, has_dns, name_server

__all__ = ["Found", "LookupFailed", "NameLookup", "look_up", "prepare"]

log = logging.getLogger("greensock.upstream")

#: Seconds that a look-up may take.
PATIENCE = 10.0
#: Seconds between two look-ups, at the least and at the most, whatever the TTL; and after one that failed.
SHORTEST, LONGEST, AFTER_FAILURE = 1.0, 3600.0, 5.0
#: Seconds after which an empty answer is believed.
EMPTY_FOR = 60.0
#: Addresses of a name that are taken.
MOST = 256

#: A host, its port, its weight, and whether it is a backup.
Found = tuple[str, int, int, bool]


class LookupFailed(Exception):
    """Nobody said where a name leads, nor that it leads nowhere."""


def prepare() -> None:
    """Load what look-ups need: that takes a while, in which nothing else runs, so do it before anything is served."""
    if has_dns():
        import dns.resolver  # noqa: F401


def look_up(options: ServerOptions, name_servers: Sequence[str] = ()) -> tuple[list[Found], float | None]:
    """Return where the name of a server leads, in order, and for how many seconds that holds; None: nobody says.

    Blocks the greenlet. Nothing is found if there is no such name.

    Raises:
        LookupFailed: there is no answer.
    """
    address = options.origin.address
    assert isinstance(address, tuple)
    host, port = address
    found: list[Found] = []
    seconds: float | None = None
    with gevent.Timeout(PATIENCE, LookupFailed(f"no answer within {PATIENCE} s")):
        if has_dns() and (monkey.is_module_patched("socket") or name_servers or options.is_srv):
            resolver = _resolver(name_servers)
            if options.is_srv:
                found, seconds = _services(resolver, host)
                return sorted(found)[:MOST], seconds
            try:
                addresses, seconds = _addresses(resolver, host)
            except LookupFailed:
                if name_servers:
                    raise
                addresses, seconds = _by_system(host), None
            else:
                if not addresses and not name_servers:
                    addresses = _by_system(host)
        else:
            addresses = _by_system(host)
    found = [(each, port, 1, False) for each in addresses]
    return sorted(found)[:MOST], seconds


def _by_system(host: str) -> list[str]:
    try:
        places = getaddrinfo(host, None, 0, socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return []
        raise LookupFailed(str(error.strerror)) from error
    except (OSError, UnicodeError) as error:
        raise LookupFailed(str(error)) from error
    of_ipv4 = {str(place[4][0]) for place in places if place[0] == socket.AF_INET}
    return sorted(of_ipv4 or {str(place[4][0]) for place in places})


def _resolver(name_servers: Sequence[str]) -> Any:
    from dns.resolver import Resolver

    resolver = Resolver(configure=not name_servers)
    if name_servers:
        places = [place for place in map(name_server, name_servers) if place is not None]
        resolver.nameservers = [address for address, _ in places]
        resolver.nameserver_ports = dict(places)
    resolver.lifetime = PATIENCE / 2
    return resolver


def _answer(resolver: Any, name: str, kind: str) -> tuple[list[Any], float]:
    """Return the records of a name, none if there are none, and for how many seconds they hold."""
    from dns.exception import DNSException
    from dns.resolver import NXDOMAIN

    try:
        answer = resolver.resolve(name, kind, raise_on_no_answer=False, search=True)
    except NXDOMAIN:
        return [], SHORTEST
    except (DNSException, OSError, ValueError) as error:
        raise LookupFailed(str(error) or type(error).__name__) from error
    return list(answer.rrset or ()), answer.expiration - time()


def _addresses(resolver: Any, name: str) -> tuple[list[str], float]:
    records, seconds = _answer(resolver, name, "A")
    if not records:
        records, seconds = _answer(resolver, name, "AAAA")
    return sorted(each.address for each in records), seconds


def _services(resolver: Any, name: str) -> tuple[list[Found], float]:
    records, seconds = _answer(resolver, name, "SRV")
    # A target of . says that there is no such service.
    records = [each for each in records if each.target.to_text() != "."][:MOST]
    first = min((each.priority for each in records), default=0)
    known: dict[str, list[str]] = {}
    found: dict[tuple[str, int], Found] = {}
    for each in sorted(records, key=lambda record: record.priority):
        target = each.target.to_text()
        if target not in known:
            known[target], holds = _addresses(resolver, target)
            seconds = min(seconds, holds)
        for address in known[target]:
            place = (address, each.port, max(1, each.weight), each.priority > first)
            found.setdefault((address, each.port), place)
    return list(found.values()), seconds


class NameLookup:
    """Looks one name up, and tells ``on_found`` when it leads elsewhere. ``start`` it and ``stop`` it.

    ``shown`` is what the log says of it, ``every`` the seconds between two look-ups where no TTL is known, and
    ``known`` where the name led so far; None: that is not known.
    """

    def __init__(
        self,
        shown: str,
        options: ServerOptions,
        every: float,
        name_servers: Sequence[str],
        on_found: Callable[[list[Found]], object],
        known: list[Found] | None = None,
    ) -> None:
        #: What is looked up.
        self.options = options
        self._shown = shown
        self._every = every
        self._name_servers = name_servers
        self._on_found = on_found
        self._known = known
        self._empty_since: float | None = None
        self._has_failed = False
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin to look up, at once."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Look up no more."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill()

    def _run(self) -> None:
        while True:
            try:
                found, seconds = look_up(self.options, self._name_servers)
            except LookupFailed as error:
                pause = self.fail(error)
            except Exception:  # one that ends the look-ups would be worse than any of these
                log.exception("%s cannot be looked up", self._shown)
                pause = AFTER_FAILURE
            else:
                pause = self.take(found, seconds, monotonic())
            gevent.sleep(pause)

    def fail(self, error: Exception) -> float:
        """Note that a look-up failed; return the seconds to the next one."""
        if not self._has_failed:
            log.warning("%s cannot be looked up, its servers stay: %s", self._shown, error)
        self._has_failed = True
        return min(AFTER_FAILURE, self._every)

    def take(self, found: list[Found], seconds: float | None, now: float) -> float:
        """Note what was found at that time; return the seconds to the next look-up."""
        pause = self._every if seconds is None else min(max(seconds, SHORTEST), LONGEST)
        if not found:
            if self._empty_since is None:
                self._empty_since = now
                if self._known:
                    log.warning("%s leads nowhere; its servers stay for %g s", self._shown, EMPTY_FOR)
            pause = min(pause, AFTER_FAILURE)
            left = self._empty_since + EMPTY_FOR - now
            if left > 0:
                return min(pause, left)
        else:
            self._empty_since = None
        if self._has_failed:
            self._has_failed = False
            log.warning("%s can be looked up again", self._shown)
        if found != self._known:
            log.warning("%s: %s", self._shown, ", ".join(f"{each[0]}:{each[1]}" for each in found) or "no server")
            self._known = found
            self._on_found(found)
        return pause
