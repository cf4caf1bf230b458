"""What ``greensock top`` shows, as lines of text. Pure: readings in, lines out.

Names and targets are what clients wrote. Whatever of them a terminal would take for an order, or that can't be seen, is
spelled out (``\\x1b``); what is left has the width that it takes.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from greensock.operations.status_reading import Change, RequestReading

__all__ = ["Line", "clock", "harmless", "report"]

NOTHING = "-"
#: How wide a line may be where nobody says: what is written to a file.
WIDEST = 200
#: Lines that are left of a block when the window is low: its title and a row.
FEWEST = 3
#: Columns of a window in which these have a place.
LEAST_ROOM = {"CLIENT": 90, "SERVER": 110}
LATENCIES = (("latency", "latency"), ("turn_wait", "turn"), ("upcall", "upcall"), ("hub_held", "loop held"))
STYLES = {"down": "bad", "ejected": "warn", "draining": "warn", "ending": "warn"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, and what it is: a title (``head``), ``warn``, ``bad``, ``quiet``, or nothing of these."""

    text: str
    style: str = ""


def report(change: Change, where: str, width: int | None = None, height: int | None = None) -> list[Line]:
    """Return the lines; at most ``width`` columns each, and ``height`` of them, where these are given.

    Of what is too long for the window the longest blocks are shortened, and say by how much.
    """
    blocks = [_summary(change, where), _servers(change), _workers(change)]
    blocks += [_requests(name, change.now[key], width) for name, key in REQUESTS]  # type: ignore[literal-required]
    blocks = [block for block in blocks if block]
    lines = [
        line for index, block in enumerate(_fit(blocks, height)) for line in ([Line("")] if index else []) + list(block)
    ]
    return [Line(_cut(line.text, WIDEST if width is None else width), line.style) for line in lines[:height]]


REQUESTS = (("FAILED", "failed"), ("SLOWEST", "slowest"))


def _summary(change: Change, where: str) -> list[Line]:
    now, totals = change.now, change.now["totals"]
    state = "draining" if now["is_draining"] else "serving"
    workers = len(now["workers"])
    title = f"{harmless(now['name'])} {harmless(now['version'])}  {state}, up {_span(now['now'] - now['started'])}"
    title += f", {workers} worker{'s' * (workers != 1)}  {where}  {clock(now['now'])}"

    def total_rate(name: str) -> float | None:
        return change.rate(lambda each: cast(Any, each["totals"])[name])

    lines = [
        Line(title, "head"),
        Line(
            f"requests     {_rate(total_rate('requests'))}/s, {_count(totals['in_hand'])} in hand"
            f"    5xx {_rate(change.count_rate('statuses', '5xx'))}/s    failed upcalls {_count(totals['errors'])}"
        ),
        Line(
            f"connections  {_count(totals['connections'])}, {_rate(total_rate('accepted'))} new/s"
            f"    in {_bytes(total_rate('bytes_in'))}/s"
            f"    out {_bytes(total_rate('bytes_out'))}/s"
        ),
    ]
    for name, shown in LATENCIES:
        parts = [f"p{100 * share:g} {_seconds(change.quantile(name, share))}" for share in (0.5, 0.9, 0.99)]
        lines.append(Line(f"{shown:<12} {'  '.join(parts)}", "" if name == "latency" else "quiet"))
    statuses = [f"{name} {_rate(change.count_rate('statuses', name))}/s" for name in totals["statuses"]]
    lines.append(Line(f"statuses     {'  '.join(map(harmless, statuses))}"))
    for key in "refused", "failures":
        counts: dict[str, int] = cast(Any, totals).get(key, {})
        most_first = sorted(((total, reason) for reason, total in counts.items() if total), reverse=True)
        told = [
            f"{harmless(reason)} {_rate(change.count_rate(key, reason))}/s ({_count(total)})"
            for total, reason in most_first
        ]
        lines.append(Line(f"{key:<12} {'  '.join(told) or 'none so far'}", "warn" if told else ""))
    return lines


def _servers(change: Change) -> list[Line]:
    rows = []
    for upstream in change.now["upstreams"]:
        for server in upstream["servers"]:
            since = server["since"]
            cells = [
                *(upstream["name"], server["name"], server["state"]),
                NOTHING if not since else _span(change.now["now"] - since),
                _rate(change.server_rate(upstream, server, "requests")),
                _rate(change.server_rate(upstream, server, "errors")),
                *(_count(server["in_hand"]), _count(server["connections"]), f"{server['weight']:g}", server["why"]),
            ]
            rows.append((cells, STYLES.get(server["state"], "")))
    titles = "UPSTREAM", "SERVER", "STATE", "FOR", ">REQ/S", ">ERR/S", ">IN HAND", ">CONNS", ">WEIGHT", "WHY"
    lines = _table(titles, rows)
    queued = [(upstream["queued"], upstream["name"]) for upstream in change.now["upstreams"] if upstream["queued"]]
    lines += [Line(f"{_count(count)} requests wait for a server of {harmless(name)}", "warn") for count, name in queued]
    return lines


def _workers(change: Change) -> list[Line]:
    rows = []
    for worker in change.now["workers"]:
        cpu = change.worker_rate(worker, "cpu_seconds")
        cells = [
            *(str(worker["pid"]), worker["state"], _count(worker["connections"])),
            _rate(change.worker_rate(worker, "requests")),
            _count(worker["in_hand"]),
            NOTHING if cpu is None else f"{100 * cpu:.1f} %",
            _bytes(worker["memory_bytes"]),
        ]
        rows.append((cells, STYLES.get(worker["state"], "")))
    return _table((">WORKER", "STATE", ">CONNS", ">REQ/S", ">IN HAND", ">CPU", ">MEMORY"), rows)


def _requests(title: str, requests: Iterable[RequestReading], width: int | None) -> list[Line]:
    """Return them; where there is little room a target is worth more than who asked, and whom."""
    room = WIDEST if width is None else width
    rows = []
    for each in requests:
        status = each["status"]
        cells = [
            *(clock(each["at"]), _seconds(each["seconds"]), NOTHING if status is None else str(status), each["reason"]),
            *(each["client"], each["server"], each["method"], f"{each['host'] or ''}{each['target'] or ''}"),
        ]
        rows.append((cells, "bad" if status is not None and status >= 500 else ""))
    titles = (title, ">TOOK", "STATUS", "REASON", "CLIENT", "SERVER", "METHOD", "TARGET")
    kept = [index for index, name in enumerate(titles) if room >= LEAST_ROOM.get(name, 0)]
    return _table(
        [titles[index] for index in kept], [([cells[index] for index in kept], style) for cells, style in rows]
    )


def _table(titles: Sequence[str], rows: Iterable[tuple[Sequence[Any], str]]) -> list[Line]:
    """Return a title line and the rows, each column as wide as it must be; ``>`` before a title: to the right."""
    shown = [([harmless(cell) if cell else NOTHING for cell in cells], style) for cells, style in rows]
    if not shown:
        return []
    names = [title.removeprefix(">") for title in titles]
    widths = [max(map(_width, column)) for column in zip(names, *(cells for cells, _ in shown), strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            " " * (width - _width(cell)) + cell if title.startswith(">") else cell + " " * (width - _width(cell))
            for cell, width, title in zip(cells, widths, titles, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return [Line(line(names), "head"), *(Line(line(cells), style) for cells, style in shown)]


def _fit(blocks: list[list[Line]], height: int | None) -> list[list[Line]]:
    """Shorten the longest blocks until all, with an empty line between two, fit into the height.

    Those of requests, the last ones, come before servers and workers; the first one stays.
    """
    if height is None:
        return blocks
    lengths = [len(block) for block in blocks]
    for first in (max(1, len(blocks) - len(REQUESTS)), 1):
        while sum(lengths) + len(blocks) - 1 > height:
            longest = max(range(first, len(blocks)), key=lengths.__getitem__, default=0)
            if lengths[longest] <= FEWEST or not longest:
                break  # in the end what is below is cut off
            lengths[longest] -= 1
    return [
        block if length == len(block) else [*block[: length - 1], Line(f"and {len(block) - length + 1} more", "quiet")]
        for block, length in zip(blocks, lengths, strict=True)
    ]


# -- text


def harmless(text: object) -> str:
    """Return a text of which no character does anything to a terminal, or can't be seen."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode("ascii")
        for each in str(text)
    )


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_columns, text))


def _cut(text: str, width: int) -> str:
    """Return as much of a text as goes into that many columns; a ``>`` says that there is more."""
    if _width(text) <= width:
        return text
    kept, used = [], 1
    for each in text:
        used += _columns(each)
        if used > width:
            break
        kept.append(each)
    return "".join(kept) + ">"


def clock(at: float) -> str:
    """Return the time of day here; of one that no calendar has, a dash."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return NOTHING


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value < 0.0001:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:.2f} s"


def _span(seconds: float) -> str:
    left = max(0, int(seconds))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min"
    if left < 86400:
        return f"{left // 3600} h {left % 3600 // 60} min"
    return f"{left // 86400} d {left % 86400 // 3600} h"
