"""The options of a server: what each may be, checked when a server is made. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, TypedDict

from greensock.address import owner_ids
from greensock.errors import HandshakeFailed
from greensock.framing import Framer
from greensock.limits.client_limits import ClientLimits
from greensock.tls import TLS, is_tls

if TYPE_CHECKING:
    import ssl

__all__ = ["OPTIONS", "PROTOCOLS", "UPCALLS", "Rule", "ServerKeywords", "ServerSettings", "checked"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What an option may be: a test, and the words for what passes it."""

    #: Whether a value is allowed.
    fits: Callable[[Any], bool]
    #: What is allowed, to stand before "expected".
    allowed: str

    @classmethod
    def function(cls) -> Rule:
        """Return the rule of an upcall."""
        return cls(callable, "a function")

    def check(self, name: str, value: Any) -> None:
        """Check the value that an option of that name is given.

        Raises:
            ValueError: it is not allowed; the text says its name, the value, and what is allowed.
        """
        if not self.fits(value):
            raise ValueError(f"{name}={value!r}: {self.allowed} expected")

    def or_none(self) -> Rule:
        """Return the rule that allows None too."""
        return Rule(lambda value: value is None or self.fits(value), f"{self.allowed}, or None")

    @classmethod
    def whole(cls, least: int) -> Rule:
        """Return the rule of a count, or of a number of bytes."""

        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= least

        return cls(fits, f"a whole number of at least {least}")

    @classmethod
    def seconds(cls, zero: bool = True) -> Rule:
        """Return the rule of a time; ``zero`` says whether it may be none at all."""

        def fits(value: Any) -> bool:
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            return number and (value > 0 or (zero and value == 0))

        return cls(fits, "seconds, 0 or more" if zero else "seconds, more than 0")

    @classmethod
    def flag(cls) -> Rule:
        """Return the rule of a switch."""
        return cls(lambda value: isinstance(value, bool), "True or False")

    @classmethod
    def instance(cls, kind: type, allowed: str) -> Rule:
        """Return the rule of an object of one class."""
        return cls(lambda value: isinstance(value, kind), allowed)


#: What a server may speak over IP. (A Unix socket has neither.)
PROTOCOLS = ("tcp", "sctp")

#: What each option of a server may be.
OPTIONS: Mapping[str, Rule] = {
    "backlog": Rule.whole(1),
    "max_accept": Rule.whole(1),
    "max_connections": Rule.whole(1).or_none(),
    "max_workers": Rule.whole(1).or_none(),
    "recv_size": Rule.whole(1),
    "turn_budget": Rule.whole(1),
    "max_postponed": Rule.whole(0),
    "max_send_queue": Rule.whole(0),
    "idle_timeout": Rule.seconds(zero=False).or_none(),
    "recv_timeout": Rule.seconds(zero=False).or_none(),
    "send_timeout": Rule.seconds(zero=False).or_none(),
    "min_send_rate": Rule.whole(0),
    "linger_timeout": Rule.seconds(),
    "stop_timeout": Rule.seconds(),
    "close_spread": Rule.seconds(),
    "reuse_port": Rule.flag(),
    "no_delay": Rule.flag(),
    "keep_alive": Rule.flag(),
    "unix_mode": Rule(lambda value: type(value) is int and 0 <= value <= 0o777, "a mode up to 0o777").or_none(),
    "unix_owner": Rule(
        lambda value: owner_ids(value) is not None, "'user', 'user:group' or ':group' of this system, (uid, gid)"
    ).or_none(),
    "tls": Rule(is_tls, "TLS(certificate, key), or an ssl.SSLContext").or_none(),
    "handshake_timeout": Rule.seconds(zero=False),
    "max_handshakes": Rule.whole(1),
    "framer": Rule.instance(Framer, "a framer (greensock.framing)").or_none(),
    "protocol": Rule(lambda value: value in PROTOCOLS, "'tcp' or 'sctp'"),
    "client_limits": Rule.instance(ClientLimits, "ClientLimits(...)").or_none(),
}

#: The upcalls that may be given as functions.
UPCALLS: Mapping[str, Rule] = {
    "connection_new": Rule.function(),
    "connection_recv": Rule.function(),
    "connection_recv_finish": Rule.function(),
    "connection_eof": Rule.function(),
    "connection_error": Rule.function(),
    "connection_drop": Rule.function(),
    "handle": Rule.function(),
    "handshake_failed": Rule.function(),
}


class ServerSettings(TypedDict, total=False):
    """The options of a server, as a type checker is to know them; what each means stands at ``Server``."""

    backlog: int
    max_accept: int
    max_connections: int | None
    max_workers: int | None
    recv_size: int
    turn_budget: int
    max_postponed: int
    max_send_queue: int
    idle_timeout: float | None
    recv_timeout: float | None
    send_timeout: float | None
    min_send_rate: int
    linger_timeout: float
    stop_timeout: float
    close_spread: float
    reuse_port: bool
    no_delay: bool
    keep_alive: bool
    unix_mode: int | None
    unix_owner: str | tuple[int, int] | None
    tls: TLS | ssl.SSLContext | None
    handshake_timeout: float
    max_handshakes: int
    framer: Framer | None
    protocol: str
    client_limits: ClientLimits | None


class ServerKeywords(ServerSettings, total=False):
    """Those and the upcalls, as functions that get the arguments without the server."""

    connection_new: Callable[[Any], object]
    connection_recv: Callable[[Any, Any], object]
    connection_recv_finish: Callable[[Any], object]
    connection_eof: Callable[[Any], object]
    connection_error: Callable[[Any, BaseException], object]
    connection_drop: Callable[[Any], object]
    handle: Callable[[Any], object]
    handshake_failed: Callable[[Any, HandshakeFailed], object]


def checked(owner: object, given: Mapping[str, Any], rules: Mapping[str, Rule] = OPTIONS) -> dict[str, Any]:
    """Return the keywords that were given, after checking them and the class attributes they override.

    Raises:
        TypeError: there is no such option.
        ValueError: a value is not allowed; the text names the option, the value and what is allowed.
    """
    for name in given:
        if name not in rules:
            raise TypeError(f"unknown option {name!r}: {', '.join(rules)} exist")
    for name, rule in rules.items():
        rule.check(name, given[name] if name in given else getattr(owner, name))
    return dict(given)
