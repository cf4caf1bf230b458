"""A request's target and its authority (RFC 9112 section 3.2, RFC 9110 section 7.2)."""

from __future__ import annotations

import functools
import re

from greensock.http.errors import BadMessage, Reason
from greensock.http.wire.syntax import is_authority

__all__ = ["authority_of", "check_host", "is_sound", "origin_form", "path_to_ask_for"]

_absolute = re.compile(rb"(https?)://([^/?]*)(?:[/?].*)?", re.IGNORECASE).fullmatch
_DEFAULT_PORTS = {b"http": 80, b"https": 443}


def authority_of(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """Return the authority that a request is for, given a target that does not begin with ``/``.

    ``host`` is its Host, already checked, or None in HTTP/1.0.

    Raises:
        BadMessage: a form that does not go with the method, or another authority than Host's.
    """
    if method == b"CONNECT":
        authority = _authority_form(target)
        if host is not None and _canonical(b"http", host)[0] != _canonical(b"http", authority)[0]:
            raise BadMessage(f"CONNECT to {target[:80]!r}, Host says {host[:80]!r}", Reason.HOST_MISMATCH)
        return authority
    if target == b"*":
        if method != b"OPTIONS":
            raise BadMessage(f"{method.decode()} *: only OPTIONS may ask this", Reason.TARGET)
        return host or b""
    match = _absolute(target)
    if match is None:
        raise BadMessage(f"the target {target[:80]!r} is neither a path nor an http URI", Reason.TARGET)
    scheme, authority = match.group(1).lower(), match.group(2)
    if not is_sound(authority):
        raise BadMessage(f"the target names no sound authority: {authority[:80]!r}", Reason.TARGET)
    # Stricter than RFC 9112 section 3.2.2, which has us ignore Host here: a proxy in front of us or a server behind us
    # may go by Host, and then one request is for two sites (another's page in a cache, a route that was not meant).
    if host is not None and _canonical(scheme, host) != _canonical(scheme, authority):
        raise BadMessage(f"the target is at {authority[:80]!r}, Host says {host[:80]!r}", Reason.HOST_MISMATCH)
    return authority


def origin_form(method: str, target: bytes) -> bytes:
    """Return path and query of a target that names its host, too (RFC 9112 sections 3.2.1 and 3.2.4)."""
    _, colon, rest = target.partition(b"://")
    if not colon:
        return target  # *
    slash, mark = rest.find(b"/"), rest.find(b"?")
    if slash < 0 or -1 < mark < slash:
        if mark < 0 and method == "OPTIONS":
            return b"*"
        return b"/" + (rest[mark:] if mark >= 0 else b"")
    return rest[slash:]


def path_to_ask_for(target: bytes) -> bytes:
    """Return path and query of any target; ``/`` where it names none: ``*``, and the authority of a CONNECT."""
    form = target if target.startswith(b"/") else origin_form("", target)
    return form if form.startswith(b"/") else b"/"


def check_host(host: bytes) -> None:
    """Check the value of a Host field.

    An empty one is what RFC 9112 section 3.2 wants from a client whose URI has no authority. An http URI always has one
    (RFC 9110 section 4.2.1), so an empty Host would only leave open which site the request is for.

    Raises:
        BadMessage: it is empty, or no ``name[:port]``.
    """
    if not is_sound(host):
        raise BadMessage(f"Host {host[:80]!r} is no name with an optional port", Reason.HOST_MALFORMED)


def _authority_form(target: bytes) -> bytes:
    match = is_authority(target)
    if match is None or not match.group(2) or not 0 < int(match.group(2)) < 65536:
        raise BadMessage(f"CONNECT {target[:80]!r}: name and port expected", Reason.TARGET)
    return target


@functools.lru_cache(maxsize=1024)  # a server is asked for the same few
def is_sound(authority: bytes) -> bool:
    """Whether it is ``name[:port]``."""
    match = is_authority(authority)
    return match is not None and int(match.group(2) or 0) < 65536


def _canonical(scheme: bytes, authority: bytes) -> tuple[bytes, int]:
    host, colon, port = authority.lower().rpartition(b":")
    if not colon or port.endswith(b"]"):
        host, port = authority.lower(), b""
    return host, int(port) if port else _DEFAULT_PORTS[scheme]
