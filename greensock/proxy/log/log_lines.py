"""Lines of the access log: what a record looks like. No state, no I/O; whatever bytes came, a line is one line."""

from __future__ import annotations

import functools
import json
import re
import time
from typing import Any

from greensock.proxy.log.record import Record

__all__ = ["combined_line", "escaped", "json_line", "local_time", "request_line", "seconds", "utc_time"]

#: How many values are known as they are written, and the longest of those that clients choose.
KNOWN, SHORT = 1024, 256

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_odd = re.compile(rb'["\\\x00-\x1f\x7f-\xff]').search
#: A table for ``str.translate``, which needs no call for each character.
_as_hex = {code: f"\\x{code:02X}" for code in (*range(32), 34, 92, *range(127, 256))}


def combined_line(record: Record) -> bytes:
    r"""Return a line of the combined format, and behind it what is known of the upstream.

    ``rt`` is the time of the whole request; ``uct``, ``uht`` and ``urt`` are those of the last server, from when it was
    chosen until it was connected, until its head and until its end. Times are in seconds; ``-`` is what there is not.
    In what a client wrote, quotes, backslashes, control characters and what is not ASCII are ``\xHH``.
    """
    if record.method:
        method = _known(record.method) if len(record.method) <= SHORT else escaped(record.method)
        request = b"%b %b HTTP/%b" % (method, escaped(record.target), _known(record.version))
    else:
        request = escaped(record.target) or b"-"
    referer, agent = record.referer or b"-", record.agent or b"-"
    head_time = seconds(record.head_time)
    is_short = record.upstream_time == record.head_time  # an answer that came in one piece
    return b'%b [%b] "%b" %d %d "%b" "%b" rt=%.6f %b uct=%b uht=%b urt=%b reason=%b route="%b" id=%b\n' % (
        _known_as(record.client, None) if record.user is None else _who(record.client, record.user),
        local_time(int(record.started)),
        request,
        record.status,
        record.sent,
        _known(referer) if len(referer) <= SHORT else escaped(referer),
        _known(agent) if len(agent) <= SHORT else escaped(agent),
        record.duration,
        _upstream(record.upstream, record.upstream_status),
        b"0.000000" if record.connect_time == 0 else seconds(record.connect_time),
        head_time,
        head_time if is_short else seconds(record.upstream_time),
        _word(record.reason) if record.reason else b"-",
        _known(record.route or "-"),
        _word(record.request_id),
    )


def request_line(record: Record) -> bytes:
    """Return the first line of a request, or what was in its place. (Above it is written out: a call less.)"""
    if record.method:
        return b"%b %b HTTP/%b" % (escaped(record.method), escaped(record.target), escaped(record.version))
    return escaped(record.target) or b"-"


def escaped(text: bytes | str) -> bytes:
    """Return a text with quotes, backslashes, control characters and what is not ASCII as ``\\xHH``."""
    raw = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    return raw.decode("latin-1").translate(_as_hex).encode("latin-1") if _odd(raw) else raw


#: What comes again and again, as it is written: each of these has at most ``SHORT`` bytes for each that came.
_known = functools.lru_cache(KNOWN)(escaped)


@functools.lru_cache(KNOWN)
def _upstream(servers: str, statuses: str) -> bytes:
    return b'upstream="%b" us="%b"' % (escaped(servers or "-"), escaped(statuses or "-"))


def _who(client: str, user: str | None) -> bytes:
    return b"%b - %b" % (_word(client), _word(user or ""))


_known_as = functools.lru_cache(KNOWN)(_who)


def _word(text: str) -> bytes:
    return escaped(text.replace(" ", "_")) or b"-"


def seconds(value: float | None) -> bytes:
    """Return a time in seconds, to the microsecond."""
    return b"-" if value is None else b"%.6f" % value


@functools.lru_cache(maxsize=8)  # most lines of a batch are of one second
def local_time(seconds: int) -> bytes:
    """Return a time in seconds since 1970 as Apache writes it."""
    now = time.localtime(seconds)
    east = now.tm_gmtoff // 60
    zone = f"{'-' if east < 0 else '+'}{abs(east) // 60:02}{abs(east) % 60:02}"
    return f"{now.tm_mday:02}/{_MONTHS[now.tm_mon - 1]}/{now.tm_year}:{time.strftime('%H:%M:%S', now)} {zone}".encode()


def json_line(record: Record) -> bytes:
    r"""Return a line of JSON in ASCII: every field of the record by its name, ``started`` as ``time`` in UTC.

    What a client wrote is read as UTF-8; a byte that is none is the text ``\xHH``.
    """
    seconds = int(record.started)
    fields: dict[str, Any] = {"time": f"{_utc(seconds)}.{int((record.started - seconds) * 1000):03}Z"}
    for name in _NAMES:
        value = getattr(record, name)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        elif isinstance(value, float):
            value = round(value, 6)
        fields[name] = value
    return _encode(fields).encode() + b"\n"


_FIRST = ("client", "method", "host", "target", "version", "status", "sent", "received", "duration")
_NAMES = (*_FIRST, *(name for name in Record.__slots__ if name not in _FIRST and name != "started"))


def utc_time(started: float) -> str:
    """Return a time in seconds since 1970 as RFC 3339 writes it, in UTC and to the millisecond."""
    whole = int(started)
    return f"{_utc(whole)}.{int((started - whole) * 1000):03}Z"


@functools.lru_cache(maxsize=8)
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
