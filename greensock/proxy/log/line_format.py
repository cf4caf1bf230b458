"""A format of one's own for the access log: text with fields in braces, ``{client} "{request}" {status}``. Pure.

It is read once, and made into a function. Whatever bytes came, a line is one line, and a field is one field: in what a
client wrote quotes, backslashes, control characters and what is not ASCII are ``\\xHH``, and outside of quotes blanks,
too. What there is not is ``-``. ``{{`` and ``}}`` are braces.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from operator import attrgetter

from greensock.proxy.log.log_lines import escaped, local_time, request_line, seconds, utc_time
from greensock.proxy.log.record import Record

__all__ = ["FIELDS", "line_function"]

Getter = Callable[[Record], bytes]

_piece = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


def _said(name: str) -> Getter:
    """Return what gets a text of the record."""
    get = attrgetter(name)
    return lambda record: escaped(get(record) or b"") or b"-"


def _counted(name: str) -> Getter:
    get = attrgetter(name)
    return lambda record: b"%d" % get(record)


def _timed(name: str) -> Getter:
    get = attrgetter(name)
    return lambda record: seconds(get(record))


#: All fields, and what gets them; those of the record, and what is made of these.
FIELDS: dict[str, Getter] = {
    **{name: _said(name) for name in ("client", "peer", "user", "method", "target", "version", "host", "referer")},
    **{name: _said(name) for name in ("agent", "route", "upstream", "upstream_status", "reason", "request_id")},
    **{name: _counted(name) for name in ("status", "sent", "received", "tries", "reused")},
    **{name: _timed(name) for name in ("duration", "connect_time", "head_time", "upstream_time")},
    "request": request_line,
    "path": lambda record: escaped(record.target.partition(b"?")[0]) or b"-",
    "query": lambda record: escaped(record.target.partition(b"?")[2]) or b"-",
    "time": lambda record: local_time(int(record.started)),
    "time_utc": lambda record: utc_time(record.started).encode(),
}
#: Those that a client wrote, so that a blank may be in them.
_OF_CLIENTS = frozenset(
    {"client", "user", "method", "target", "version", "host", "referer", "agent", "request", "path", "query"}
)
#: What they are called elsewhere.
_ELSEWHERE = {
    "remote_addr": "client",
    "remote_user": "user",
    "request_method": "method",
    "request_uri": "target",
    "uri": "path",
    "args": "query",
    "http_host": "host",
    "http_referer": "referer",
    "http_user_agent": "agent",
    "user_agent": "agent",
    "bytes_sent": "sent",
    "body_bytes_sent": "sent",
    "request_length": "received",
    "request_time": "duration",
    "time_local": "time",
    "time_iso8601": "time_utc",
    "upstream_addr": "upstream",
    "upstream_connect_time": "connect_time",
    "upstream_header_time": "head_time",
    "upstream_response_time": "upstream_time",
}


def line_function(format: str) -> Callable[[Record], bytes]:
    """Return what makes a line of a record.

    Raises:
        ValueError: a field that does not exist, a brace that is alone, or more than one line.
    """
    template: list[bytes] = []
    getters: list[Getter] = []
    is_quoted = False
    if any(each < " " and each != "\t" for each in format):
        raise ValueError("one line without control characters expected")
    for match in _piece.finditer(format):
        text, name = match[0], match[1]
        if name is not None:
            if name not in FIELDS:
                raise ValueError(_unknown(name))
            get = FIELDS[name]
            template.append(b"%b")
            getters.append(get if is_quoted or name not in _OF_CLIENTS else _without_blanks(get))
        elif text in ("{", "}"):
            raise ValueError("a field in braces, or {{ and }} for braces, expected")
        else:
            text = text[0] if text in ("{{", "}}") else text
            is_quoted ^= text.count('"') % 2 == 1
            template.append(text.encode().replace(b"%", b"%%"))
    if not getters:
        raise ValueError("at least one field such as {client} expected")
    whole = b"".join(template) + b"\n"

    def line(record: Record) -> bytes:
        return whole % tuple([get(record) for get in getters])

    return line


def _unknown(name: str) -> str:
    near = _ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, FIELDS, 1)), "")
    if near:
        return f"{{{near}}} in the place of {{{name}}} expected"
    return f"{{{name}}} is no field: one of {', '.join(FIELDS)} expected"


def _without_blanks(get: Getter) -> Getter:
    return lambda record: get(record).replace(b" ", b"\\x20")
