"""The options of a server: what each may be, checked when a server is made. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from greensock.framing import Framer

__all__ = ["OPTIONS", "checked"]

Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int) -> Rule:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return fits, f"a whole number of at least {least}"


def _seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


def _or_none(rule: Rule) -> Rule:
    return (lambda value: value is None or rule[0](value)), f"{rule[1]}, or None"


_SECONDS: Rule = (_seconds, "seconds, 0 or more")
_POSITIVE: Rule = (lambda value: _seconds(value) and value > 0, "seconds, more than 0")
_FLAG: Rule = (lambda value: isinstance(value, bool), "True or False")

#: What each option may be: a test, and what to say if it fails.
OPTIONS: Mapping[str, Rule] = {
    "backlog": _whole(1),
    "max_accept": _whole(1),
    "max_connections": _or_none(_whole(1)),
    "max_workers": _or_none(_whole(1)),
    "recv_size": _whole(1),
    "turn_budget": _whole(1),
    "max_postponed": _whole(0),
    "max_send_queue": _whole(0),
    "idle_timeout": _or_none(_POSITIVE),
    "recv_timeout": _or_none(_POSITIVE),
    "send_timeout": _or_none(_POSITIVE),
    "linger_timeout": _SECONDS,
    "stop_timeout": _SECONDS,
    "reuse_port": _FLAG,
    "no_delay": _FLAG,
    "keep_alive": _FLAG,
    "framer": (lambda value: value is None or isinstance(value, Framer), "a framer (greensock.framing), or None"),
}


def checked(owner: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that were given, after checking them and the class attributes they override.

    Raises:
        TypeError: there is no such option.
        ValueError: a value is not allowed; the text names the option, the value and what is allowed.
    """
    for name in given:
        if name not in OPTIONS:
            raise TypeError(f"unknown option {name!r}: {', '.join(OPTIONS)} exist")
    for name, (fits, allowed) in OPTIONS.items():
        value = given[name] if name in given else getattr(owner, name)
        if not fits(value):
            raise ValueError(f"{name}={value!r}: {allowed} expected")
    return dict(given)
