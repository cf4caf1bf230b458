"""Whether a file is sent, and what of it: conditional requests and ranges (RFC 9110 sections 13 and 14). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from greensock.http.wire.headers import Headers

__all__ = ["MAX_RANGES", "Unsatisfiable", "accepted_codings", "best_coding", "failed_condition", "ranges_of"]

#: How many ranges are sent at once; a request for more, or for more than the whole, gets the whole.
MAX_RANGES = 16

_range = re.compile(r"([0-9]{0,18})-([0-9]{0,18})").fullmatch
_weight = re.compile(r"[ \t]*q=([01](?:\.[0-9]{0,3})?)[ \t]*").fullmatch
_etag = re.compile(r'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)').match


class Unsatisfiable(Exception):
    """None of the ranges is in the file: 416."""


def failed_condition(method: str, headers: Headers, etag: str, modified: int) -> int | None:
    """Return 304 or 412 if a condition of the request says so; None: it is served (section 13.2.2).

    ``modified`` is in seconds since 1970.
    """
    reads = method in ("GET", "HEAD")
    if (wanted := headers.get("if-match")) is not None:
        if wanted.strip() != "*" and etag not in _etags(wanted):
            return 412
    elif (since := _seconds(headers.get("if-unmodified-since"))) is not None and modified > since:
        return 412
    if (known := headers.get("if-none-match")) is not None:
        if known.strip() == "*" or _weak(etag) in map(_weak, _etags(known)):
            return 304 if reads else 412
    elif reads and (since := _seconds(headers.get("if-modified-since"))) is not None and modified <= since:
        return 304
    return None


def ranges_of(method: str, headers: Headers, size: int, etag: str, modified: int) -> list[tuple[int, int]] | None:
    """Return the ranges that are asked for, each where it begins and ends; None: all of it (section 14.2).

    Raises:
        Unsatisfiable: there is none of them.
    """
    said = headers.get("range")
    if method != "GET" or said is None or not said.lower().startswith("bytes="):
        return None
    if (condition := headers.get("if-range")) is not None:
        condition = condition.strip()
        if condition.endswith('"'):
            if condition != etag:  # a weak one never holds (section 13.1.5)
                return None
        elif _seconds(condition) != modified:
            return None
    found = []
    parts = said[6:].split(",")
    if len(parts) > MAX_RANGES:
        return None
    for part in parts:
        match = _range(part.strip(" \t"))
        if match is None or not (match.group(1) or match.group(2)):
            return None  # malformed: as if it were not there
        first, last = match.groups()
        if not first:
            begin, end = max(0, size - int(last)), size
        else:
            begin, end = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < int(first):
                return None
        if begin < end:
            found.append((begin, end))
    if not found:
        raise Unsatisfiable
    if sum(end - begin for begin, end in found) > size:
        return None
    return found


def accepted_codings(field: str | None) -> set[str]:
    """Return the codings of Accept-Encoding that are not refused by ``q=0``, lower-case."""
    found = set()
    for part in (field or "").lower().split(","):
        coding, _, weight = part.partition(";")
        if not re.fullmatch(r"[ \t]*q[ \t]*=[ \t]*0(\.0{0,3})?[ \t]*", weight):
            found.add(coding.strip())
    return found


def best_coding(field: str | None, offered: Iterable[str]) -> str | None:
    """Return the coding that Accept-Encoding likes best, of those that are offered, the best first; None: none of them.

    What is malformed is as if it were not there.
    """
    if not field:
        return None
    weights: dict[str, float] = {}
    for part in field.lower().split(","):
        coding, _, rest = part.partition(";")
        match = _weight(rest) if rest else None
        if not rest or match is not None:
            weights.setdefault(coding.strip(), float(match.group(1)) if match is not None else 1.0)
    others = weights.get("*", 0.0)
    found, most = None, 0.0
    for coding in offered:
        weight = weights.get(coding, others)
        if weight > most:
            found, most = coding, weight
    return None if weights.get("identity", 0.0) > most else found


def _weak(etag: str) -> str:
    return etag.removeprefix("W/")


def _etags(field: str) -> list[str]:
    found, at = [], 0
    while (match := _etag(field[at:])) is not None:
        found.append(match.group(1))
        at += match.end()
    return found


def _seconds(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
