"""Lines of the access log: what a record looks like. No state, no I/O; whatever bytes came, a line is one line."""

from __future__ import annotations

import functools
import json
import re
import time
from typing import Any

from greensock.proxy.log.record import Record

__all__ = ["combined_line", "json_line"]

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
        request = b"%b %b HTTP/%b" % (_escaped(record.method), _escaped(record.target), _escaped(record.version))
    else:
        request = _escaped(record.target) or b"-"
    return (
        b'%b - %b [%b] "%b" %d %d "%b" "%b" rt=%.6f upstream="%b" us="%b" uct=%b uht=%b urt=%b'
        b' reason=%b route="%b" id=%b\n'
    ) % (
        _word(record.client),
        _word(record.user or ""),
        _local_time(int(record.started)),
        request,
        record.status,
        record.sent,
        _escaped(record.referer or b"-"),
        _escaped(record.agent or b"-"),
        record.duration,
        _escaped(record.upstream or "-"),
        _escaped(record.upstream_status or "-"),
        _seconds(record.connect_time),
        _seconds(record.head_time),
        _seconds(record.upstream_time),
        _word(record.reason),
        _escaped(record.route or "-"),
        _word(record.request_id),
    )


def _escaped(text: bytes | str) -> bytes:
    raw = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    return raw.decode("latin-1").translate(_as_hex).encode("latin-1") if _odd(raw) else raw


def _word(text: str) -> bytes:
    return _escaped(text.replace(" ", "_")) or b"-"


def _seconds(value: float | None) -> bytes:
    return b"-" if value is None else b"%.6f" % value


@functools.lru_cache(maxsize=8)  # most lines of a batch are of one second
def _local_time(seconds: int) -> bytes:
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


@functools.lru_cache(maxsize=8)
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
