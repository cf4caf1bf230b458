"""Tables in Markdown, made from the samples of an experiment alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from loadtests.figures import Row, assess, is_of

__all__ = ["figures_table", "render", "samples_table"]

Sample = Mapping[str, Any]


def render(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with columns aligned for reading as plain text."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def number(value: float | None, unit: str = "") -> str:
    if value is None or value != value:
        return "-"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{digits}f}{' ' + unit if unit else ''}"


def spread(found: Sequence[float]) -> str:
    """Median, and least to greatest."""
    if not found:
        return "-"
    return f"{number(median(found))} ({number(min(found))}-{number(max(found))})"


def verdict(row: Row) -> str:
    return {True: "met", False: "FALLS SHORT", None: "not measured"}[row.met]


def figures_table(samples: Sequence[Sample]) -> str:
    """The targets, what was measured, and whether they are met."""
    rows = [
        (
            row.title,
            number(row.most, row.unit),
            number(row.measured, row.unit),
            f"{number(row.least)}-{number(row.greatest)}",
            verdict(row),
        )
        for row in assess(samples)
    ]
    return render(("figure", "at most", "median", "rounds", ""), rows)


def unique(samples: Iterable[Sample], name: str) -> list[str]:
    return list(dict.fromkeys(sample[name] for sample in samples))


def found(samples: Iterable[Sample], case: str, server: str, value: str) -> list[float]:
    return [sample[value] for sample in samples if is_of(sample, case, server) and sample.get(value) is not None]


#: value, heading: the columns of a table of samples, those that were measured.
COLUMNS = (
    ("rate", "per second"),
    ("server_us", "server CPU, us each"),
    ("server_load", "server's core"),
    ("generator_load", "generator's core"),
    ("kb", "kB per connection"),
    ("opened", "opened"),
    ("open_seconds", "in seconds"),
    ("p50_us", "p50, us"),
    ("p99_us", "p99, us"),
    ("p999_us", "p99.9, us"),
    ("max_us", "max, us"),
)


def flatten(samples: Iterable[Sample]) -> list[Sample]:
    """Lift the percentiles out of the latency."""
    return [{**sample, **(sample.get("latency") or {})} for sample in samples]


def failed(samples: Iterable[Sample], case: str, server: str) -> str:
    """How many exchanges failed; such a round is in no other column."""
    return str(sum(sample["failed"] for sample in samples if (sample["case"], sample["server"]) == (case, server)))


def samples_table(samples: Sequence[Sample]) -> str:
    """Every case and server: median (least-greatest) of the rounds."""
    flat = flatten(samples)
    columns = [(value, head) for value, head in COLUMNS if any(sample.get(value) is not None for sample in flat)]
    rows = [
        [
            case,
            server,
            *(spread(found(flat, case, server, value)) for value, _ in columns),
            failed(flat, case, server),
        ]
        for case in unique(flat, "case")
        for server in unique((sample for sample in flat if sample["case"] == case), "server")
    ]
    return render(["case", "server", *(head for _, head in columns), "failed"], rows)
