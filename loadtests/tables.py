"""``python -m loadtests.tables [NAME...]``: tables in Markdown, made from the results alone.

With ``--write`` they go into the documents, between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtests import results
from loadtests.figures import (
    COMPILED_TARGETS,
    FLAT_TARGETS,
    HANDSHAKES_TARGETS,
    HELD_TARGETS,
    HERD_TARGETS,
    HTTP_TARGETS,
    LOCUST_TARGETS,
    PROXY_TARGETS,
    RELOAD_TARGETS,
    TLS_TARGETS,
    UDP_TARGETS,
    WEBSOCKET_TARGETS,
    Row,
    Target,
    assess,
)
from loadtests.process import ROOT
from loadtests.results import Sample, by_round, series
from loadtests.servers import SERVERS

__all__ = ["DOCUMENTS", "TABLES", "filled", "main", "samples_table"]

#: Where tables are written between markers.
DOCUMENTS = (ROOT / "README.md", ROOT / "loadtests" / "README.md", ROOT / "loadtests" / "PROFILE.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Content = Mapping[str, Any]


# -- cells and rows


def render(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with columns aligned for reading as plain text."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def number(value: float | None, unit: str = "") -> str:
    """Return it with three digits or so; a dash where there is none."""
    if value is None or value != value:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 20 else 2
    return f"{value:,.{digits}f}{' ' + unit if unit else ''}"


def spread(found: Sequence[float]) -> str:
    """Median, and least to greatest."""
    if not found:
        return "-"
    middle, least, greatest = results.spread(found)
    return f"{number(middle)} ({number(least)}-{number(greatest)})"


def compact(found: Sequence[float], scale: float = 1.0) -> str:
    """Median, and how far the farthest round lies from it."""
    if not found:
        return "-"
    middle, least, greatest = results.spread(found)
    if not middle:
        return number(middle)
    return f"{number(middle * scale)} ±{max(greatest - middle, middle - least) / abs(middle):.0%}"


def unique(samples: Iterable[Sample], name: str) -> list[str]:
    return list(dict.fromkeys(sample[name] for sample in samples))


def in_order(samples: Iterable[Sample]) -> list[str]:
    """Return the servers that took part, always in the same order."""
    present = {sample["server"] for sample in samples}
    return [name for name in SERVERS if name in present]


def flatten(samples: Iterable[Sample]) -> list[Sample]:
    """Lift the percentiles out of the latency."""
    return [
        {
            **sample,
            **(sample.get("latency") or {}),
            **{f"marked_{name}": value for name, value in (sample.get("marked_latency") or {}).items()},
        }
        for sample in samples
    ]


def failed(samples: Iterable[Sample], server: str, case: str) -> str:
    """How many exchanges failed; a round in which any did is in no other column."""
    return str(sum(sample["failed"] for sample in samples if (sample["case"], sample["server"]) == (case, server)))


# -- the table that every experiment prints


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
    ("added_p99_ms", "p99 added, ms"),
    ("mib_per_second", "MiB/s"),
    ("peak_before_mib", "peak before, MiB"),
    ("peak_after_mib", "peak after, MiB"),
    ("marked_p50_us", "p50 of the blocking, us"),
    ("fresh_p50_us", "p50 of fresh ones, us"),
    ("fresh_p99_us", "p99 of fresh ones, us"),
    ("quiet_p50_us", "p50 in the quiet, us"),
    ("quiet_p99_us", "p99 in the quiet, us"),
    ("reloaded_p99_us", "p99 with a reload, us"),
    ("handover_seconds", "seconds of a reload"),
    ("lost", "lost"),
    ("kept_us", "64 kept, us"),
    ("packed_us", "on one core, us"),
    ("packed_each_us", "64 each there, us"),
    ("close_us", "closed, us"),
    ("many_us", "10,000, us"),
)


def samples_table(samples: Sequence[Sample]) -> str:
    """Every case and server: median (least-greatest) of the rounds."""
    flat = flatten(samples)
    columns = [(value, head) for value, head in COLUMNS if any(sample.get(value) is not None for sample in flat)]
    rows = [
        [
            case,
            server,
            *(spread([*by_round(flat, case, server, value).values()]) for value, _ in columns),
            failed(flat, server, case),
        ]
        for case in unique(flat, "case")
        for server in unique((sample for sample in flat if sample["case"] == case), "server")
    ]
    return render(["case", "server", *(head for _, head in columns), "failed"], rows)


# -- the tables of the documents


def verdict(row: Row) -> str:
    return {True: "met", False: "falls short", None: "not measured"}[row.met]


def targets_table(content: Content) -> str:
    """What was aimed at, what was measured, and whether it is met."""
    rows = [
        (
            row.title,
            number(row.most, row.unit),
            number(row.measured, row.unit),
            f"{number(row.least)}-{number(row.greatest)}",
            verdict(row),
        )
        for row in assess(content["samples"])
    ]
    return render(("figure", "at most", "median", "rounds", ""), rows)


def asked_table(targets: Sequence[Target], content: Content) -> str:
    """The same for figures that have a least value too."""
    rows = [
        (
            row.title,
            f"{'at least' if row.at_least else 'at most'} {number(row.most, row.unit)}",
            number(row.measured, row.unit),
            f"{number(row.least)}-{number(row.greatest)}",
            verdict(row),
        )
        for row in assess(content["samples"], targets)
    ]
    return render(("figure", "asked", "median", "rounds", ""), rows)


def cases_table(cases: Mapping[str, tuple[str, str]], content: Content) -> str:
    """A row a server, a column a case: ``cases`` has the title and the value of each."""
    samples = flatten(content["samples"])
    rows = [
        [
            SERVERS[server].title,
            *(compact([*by_round(samples, case, server, value).values()]) for case, (_, value) in cases.items()),
        ]
        for server in in_order(sample for sample in samples if sample["case"] in cases)
    ]
    empty = ["-"] * (len(cases) - 1)
    rows += [[SERVERS[name].title, f"no {what} here", *empty] for name, what in content.get("skipped", {}).items()]
    return render(["", *(title for title, _ in cases.values())], rows)


FIGURES_CASES = {
    "echo 64": ("echo, 64 connections, us", "server_us"),
    "echo 1000": ("echo, 1,000 connections, us", "server_us"),
    "echo 15000": ("echo, 15,000 connections, us", "server_us"),
    "shortlived 64": ("connect + echo + close, 64 at a time, us", "server_us"),
    "idle memory 15000": ("memory of an idle connection, kB", "kb"),
}
MEMORY_CASES = {
    "idle memory 10000": ("idle, kB", "kb"),
    "blocked memory 10000": ("blocked in a downcall, kB", "kb"),
}

COMPILED_CASES = {
    "echo 64": ("echo, 64 connections", "server_us"),
    "echo 1000": ("1,000", "server_us"),
    "echo 15000": ("15,000", "server_us"),
    "shortlived 64": ("connect + echo + close, 64 at a time", "server_us"),
    "shortlived 1": ("one at a time", "server_us"),
    "flood 64": ("flood, 64 bytes", "server_us"),
    "idle memory 15000": ("idle, kB", "kb"),
    "small": ("HTTP, 100 bytes", "server_us"),
    "proxied": ("proxy, 100 bytes", "server_us"),
    "proxied close": ("the same, fresh connections", "server_us"),
}

FLAT_CASES = {
    "framed 16 x 64": ("16 messages", "server_us"),
    "wsgi small": ("WSGI, 100 bytes", "server_us"),
    "wsgi upload": ("upload of 1 MB", "server_us"),
    "wsgi large": ("answer of 1 MB", "server_us"),
    "client": ("client, 100 bytes", "server_us"),
    "proxied, logging": ("proxy, logging", "server_us"),
    "proxied, edited": ("proxy, a field edited", "server_us"),
}

WEBSOCKET_CASES = {
    "echo 64": ("echo of 64 characters, 64 connections, us", "server_us"),
    "echo 1000": ("1,000 connections, us", "server_us"),
    "idle memory 2000": ("memory of one at rest, kB", "kb"),
}

UDP_CASES = {
    "udp echo 64": ("echo, 64 clients, us", "server_us"),
    "udp sink": ("sink of 1,200 bytes in bursts, us", "server_us"),
    "udp echo 1": ("echo, 1 client, us", "server_us"),
}

LOCUST_CASES = {
    "closed loop": ("CPU of a request, us", "server_us"),
}
LOCUST_COLUMNS = {
    "p50_us": "p50, us",
    "p50_error_us": "too much, us",
    "p99_us": "p99, us",
    "p99_error_us": "too much, us",
}

TLS_CASES = {
    "echo 64": ("echo, 64 connections, us", "server_us"),
    "echo 1000": ("1,000 connections, us", "server_us"),
    "handshake P-256": ("handshake, P-256, us", "server_us"),
    "handshake P-256 resumed": ("the same resumed, us", "server_us"),
    "handshake RSA-2048": ("handshake, RSA-2048, us", "server_us"),
    "download 16 KiB": ("download in 16 KiB, us/MB", "server_us"),
    "download 64 KiB": ("in 64 KiB, us/MB", "server_us"),
    "idle memory 2000": ("memory of one at rest, kB", "kb"),
}

REQUESTS = {
    "small": "100 bytes",
    "close": "100 bytes, Connection: close",
    "large": "answer of 1 MB",
    "upload": "upload of 1 MB",
}
PROXY_LATENCY = "latency at 50%"


def requests_table(value: str, content: Content) -> str:
    """A value of all kinds of requests that were made."""
    made = {sample["case"] for sample in content["samples"]}
    return cases_table({case: (title, value) for case, title in REQUESTS.items() if case in made}, content)


def columns_table(case: str, columns: Mapping[str, str], content: Content) -> str:
    """A row a server, a column a value of one case, and what failed."""
    samples = flatten(content["samples"])
    rows = [
        [
            SERVERS[server].title,
            *(compact([*by_round(samples, case, server, value).values()]) for value in columns),
            failed(samples, server, case),
        ]
        for server in in_order(sample for sample in samples if sample["case"] == case)
    ]
    return render(["", *columns.values(), "failed"], rows)


BODY_COLUMNS = {
    "mib_per_second": "MiB/s",
    "server_us": "CPU, us per MiB",
    "peak_before_mib": "peak of memory before, MiB",
    "peak_after_mib": "after, MiB",
}
SPEED_COLUMNS = {
    "mib_per_second": "MiB/s",
    "direct_mib_per_second": "without a proxy, MiB/s",
    "server_us": "CPU, us per MiB",
}
HANDSHAKES_COLUMNS = {
    "p50_us": "kept, p50, us",
    "p99_us": "p99, us",
    "fresh_p50_us": "fresh, p50, us",
    "fresh_p99_us": "p99, us ",
    "server_load": "server's core",
}
PROXIED_COLUMNS = {
    "rate": "requests/s",
    "server_us": "CPU each, us",
    "p50_us": "p50, us",
    "p99_us": "p99, us",
}
HELD_COLUMNS = {
    "opened": "held",
    "kb": "kB each",
    "open_seconds": "opened in s",
    "open_us": "CPU of opening, us",
    "quiet_p50_us": "p50 with none, us",
    "quiet_p99_us": "p99, us",
    "p50_us": "p50 with all, us",
    "p99_us": "p99, us ",
}
RELOAD_COLUMNS = {
    "offered": "requests/s",
    "quiet_p99_us": "p99 without, us",
    "reloaded_p99_us": "p99 with a reload, us",
    "worst_p99_us": "the worst, us",
    "added_p99_ms": "added, ms",
    "handover_seconds": "a reload takes, s",
    "lost": "lost",
}
#: The case that the others of the herd are compared with.
ALONE = "1 worker"
HERD_COLUMNS = {
    "kept": "64 connections",
    "packed": "64, on one core",
    "packed_each": "64 for each worker, on one core",
    "close": "64, each for one request",
    "many": "10,000",
}
CONNECTING_COLUMNS = {"rate": "a second", "server_us": "CPU each, us"}
LATENCY_COLUMNS = {
    "offered": "requests/s",
    "p50_us": "p50, us",
    "p99_us": "p99, us",
    "added_p99_ms": "p99 added, ms",
}


def herd_table(cell: Callable[[Sequence[Sample], str, str, str], str], content: Content) -> str:
    """A row a server and number of workers, a column a pattern."""
    samples = [sample for sample in content["samples"] if sample["mode"] == "herd"]
    rows = [
        [
            SERVERS[server].title,
            case,
            *(cell(samples, case, server, pattern) for pattern in HERD_COLUMNS),
            failed(samples, server, case),
        ]
        for server in in_order(samples)
        for case in unique((sample for sample in samples if sample["server"] == server), "case")
    ]
    return render(["", "", *HERD_COLUMNS.values(), "failed"], rows)


def herd_cpu(samples: Sequence[Sample], case: str, server: str, pattern: str) -> str:
    """CPU of all workers for a request, and what that is of one worker's in the same round."""
    found, alone = (by_round(samples, each, server, f"{pattern}_us") for each in (case, ALONE))
    ratios = [value / alone[at] for at, value in found.items() if alone.get(at)]
    ratio = f", {median(ratios):.2f} x" if ratios and case != ALONE else ""
    return f"{compact([*found.values()])}{ratio}"


def herd_sleeps(samples: Sequence[Sample], case: str, server: str, pattern: str) -> str:
    """How many requests a worker served between two times that it slept."""
    found = by_round(samples, case, server, f"{pattern}_sleeps")
    return number(median([1 / max(each, 1e-6) for each in found.values()])) if found else "-"


def herd_split(samples: Sequence[Sample], case: str, server: str, pattern: str) -> str:
    """How many sockets the workers had that had the least and the most, in the last round."""
    counts = [sample.get(f"{pattern}_split") for sample in results.of(samples, case, server)]
    return f"{counts[-1][0]:,}-{counts[-1][-1]:,}" if counts and counts[-1] else "-"


def series_table(kind: str, value: str, scale: float, content: Content) -> str:
    """A row a server, a column a number of connections."""
    samples = content["samples"]
    found = {server: dict(series(samples, kind, server, value)) for server in in_order(samples)}
    counts = sorted({count for points in found.values() for count in points})
    rows = [
        [SERVERS[server].title, *(compact(points.get(count, []), scale) for count in counts)]
        for server, points in found.items()
        if points
    ]
    return render(["connections", *(f"{count:,}" for count in counts)], rows)


def percentiles_table(kind: str, content: Content) -> str:
    """Latency in milliseconds: the median of the rounds for each percentile."""
    flat = [sample for sample in flatten(content["samples"]) if sample["case"].startswith(kind)]
    values = {"p50_us": "p50", "p99_us": "p99", "p999_us": "p99.9", "max_us": "max"}
    if any(sample.get("marked_p50_us") for sample in flat):
        values["marked_p50_us"] = "p50 of the blocking"
    rows = []
    for case in unique(flat, "case"):
        for server in in_order(sample for sample in flat if sample["case"] == case):
            each = {value: [*by_round(flat, case, server, value).values()] for value in values}
            cells = [compact(found, 1e-3) for found in each.values()]
            rows.append([case.split()[-1], SERVERS[server].title, *cells, failed(flat, server, case)])
    return render(["load", "", *(f"{head}, ms" for head in values.values()), "failed"], rows)


def ramp_table(content: Content) -> str:
    """How many connections were open after how long."""
    samples = content["samples"]
    values = ("opened", "open_seconds", "rate", "server_us")
    rows = []
    for case in unique(samples, "case"):
        for server in in_order(samples):
            cells = [compact([*by_round(samples, case, server, value).values()]) for value in values]
            rows.append([SERVERS[server].title, *cells, failed(samples, server, case)])
    heads = ("opened", "in seconds", "messages/s meanwhile", "server CPU, us per message", "failed")
    return render(["", *heads], rows)


def about(content: Content) -> str:
    """Say when and on what it was measured."""
    machine, versions = content["machine"], content["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    rounds = 1 + max((sample["round"] for sample in content["samples"]), default=0)  # fewer, if it takes minutes
    return (
        f"Measured on {content['date'][:10]}: {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"{packages}; commit {content['commit']}, {rounds} round{'s' if rounds > 1 else ''}, "
        f"{content['took_seconds'] / 60:.1f} minutes."
    )


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a document may contain."""

    #: Its results.
    experiment: str
    make: Callable[[Content], str]


def of_series(experiment: str, kind: str, value: str, scale: float = 1.0) -> Table:
    return Table(experiment, lambda content: series_table(kind, value, scale, content))


def of_requests(experiment: str, value: str) -> Table:
    return Table(experiment, lambda content: requests_table(value, content))


def of_columns(experiment: str, case: str, columns: Mapping[str, str]) -> Table:
    return Table(experiment, lambda content: columns_table(case, columns, content))


#: By the name in the marker.
TABLES: dict[str, Table] = {
    "figures": Table("figures", lambda content: cases_table(FIGURES_CASES, content)),
    "targets": Table("figures", targets_table),
    "connections": Table("connections", ramp_table),
    "flood-rate": of_series("messages", "flood", "rate", 1e-3),
    "flood-cpu": of_series("messages", "flood", "server_us"),
    "echo-rate": of_series("messages", "echo", "rate", 1e-3),
    "echo-cpu": of_series("messages", "echo", "server_us"),
    "shortlived-rate": of_series("shortlived", "shortlived", "rate"),
    "shortlived-cpu": of_series("shortlived", "shortlived", "server_us"),
    "memory": Table("memory", lambda content: cases_table(MEMORY_CASES, content)),
    "latency": Table("latency", lambda content: percentiles_table("latency", content)),
    "disturbed": Table("latency", lambda content: percentiles_table("disturbed", content)),
    **{
        f"{name}-{title}": of_requests(name, value)
        for name in ("http", "proxy")
        for title, value in {"rate": "rate", "cpu": "server_us", "p99": "p99_us"}.items()
    },
    **{
        f"{name}-{way}": of_columns(name, f"{way} 2 GB", BODY_COLUMNS)
        for name in ("http", "proxy")
        for way in ("download", "upload")
    },
    "proxy-speed": of_columns("proxy", "download 256 MB", SPEED_COLUMNS),
    "proxy-latency": of_columns("proxy", PROXY_LATENCY, LATENCY_COLUMNS),
    "http-picture": Table("http", lambda content: "![CPU per request, and requests/s](results/http.png)"),
    "proxy-picture": Table("proxy", lambda content: "![CPU per request, rate, latency, speed](results/proxy.png)"),
    "http-targets": Table("http", lambda content: asked_table(HTTP_TARGETS, content)),
    "proxy-targets": Table("proxy", lambda content: asked_table(PROXY_TARGETS, content)),
    "compiled": Table("compiled", lambda content: cases_table(COMPILED_CASES, content)),
    "tls": Table("tls", lambda content: cases_table(TLS_CASES, content)),
    "tls-proxied": of_columns("tls", "proxied", PROXIED_COLUMNS),
    "connecting": of_columns("tls", "connecting", CONNECTING_COLUMNS),
    "tls-targets": Table("tls", lambda content: asked_table(TLS_TARGETS, content)),
    "tls-picture": Table("tls", lambda content: "![CPU of TLS](results/tls.png)"),
    "handshakes-quiet": of_columns("handshakes", "quiet", HANDSHAKES_COLUMNS),
    "handshakes-flooded": of_columns("handshakes", "flooded", HANDSHAKES_COLUMNS),
    "handshakes-targets": Table("handshakes", lambda content: asked_table(HANDSHAKES_TARGETS, content)),
    "websocket": Table("websocket", lambda content: cases_table(WEBSOCKET_CASES, content)),
    "websocket-targets": Table("websocket", lambda content: asked_table(WEBSOCKET_TARGETS, content)),
    "udp": Table("udp", lambda content: cases_table(UDP_CASES, content)),
    "udp-picture": Table("udp", lambda content: "![CPU per datagram](results/udp.png)"),
    "udp-targets": Table("udp", lambda content: asked_table(UDP_TARGETS, content)),
    "locust": Table("locust", lambda content: cases_table(LOCUST_CASES, content)),
    "locust-rate": Table(
        "locust", lambda content: cases_table({"closed loop": ("requests/s of one core", "rate")}, content)
    ),
    "locust-latency": of_columns("locust", "at a rate", LOCUST_COLUMNS),
    "locust-targets": Table("locust", lambda content: asked_table(LOCUST_TARGETS, content)),
    "locust-picture": Table(
        "locust", lambda content: "![CPU per request, requests/s, error of latencies](results/locust.png)"
    ),
    "held": of_columns("held", "held 100000", HELD_COLUMNS),
    "held-targets": Table("held", lambda content: asked_table(HELD_TARGETS, content)),
    "reload": of_columns("reload", "reload", RELOAD_COLUMNS),
    "reload-targets": Table("reload", lambda content: asked_table(RELOAD_TARGETS, content)),
    "herd": Table("herd", lambda content: herd_table(herd_cpu, content)),
    "herd-sleeps": Table("herd", lambda content: herd_table(herd_sleeps, content)),
    "herd-split": Table("herd", lambda content: herd_table(herd_split, content)),
    "herd-targets": Table("herd", lambda content: asked_table(HERD_TARGETS, content)),
    "gunicorn": of_columns("herd", "gunicorn", CONNECTING_COLUMNS),
    "compiled-targets": Table("compiled", lambda content: asked_table(COMPILED_TARGETS, content)),
    "flat": Table("flat", lambda content: cases_table(FLAT_CASES, content)),
    "flat-targets": Table("flat", lambda content: asked_table(FLAT_TARGETS, content)),
    **{
        f"{name}-about": Table(name, about)
        for name in (
            "figures",
            "connections",
            "messages",
            "shortlived",
            "memory",
            "latency",
            "http",
            "proxy",
            "compiled",
            "flat",
            "websocket",
            "udp",
            "locust",
            "tls",
            "handshakes",
            "held",
            "reload",
            "herd",
        )
    },
}


def table(name: str, path: Path) -> str:
    """Return a table, or a sentence where its experiment has no results yet."""
    content = results.load(path, TABLES[name].experiment)
    if content is None:
        return f"Not measured yet: `python -m loadtests.bench {TABLES[name].experiment}`."
    return TABLES[name].make(content)


def filled(text: str, path: Path) -> str:
    """Return a document with every table between markers made anew from the results in ``path``.

    Raises:
        ValueError: a marker names no table, or has no end.
    """

    def fill(marked: re.Match[str]) -> str:
        begin, name, end = marked.groups()
        if name not in TABLES:
            raise ValueError(f"no such table: {name}; there are {', '.join(TABLES)}")
        return f"{begin}\n{table(name, path)}\n\n{end}"

    done, count = MARKED.subn(fill, text)
    if count != text.count("<!-- table:"):
        raise ValueError("a marker is not as it should be: <!-- table: NAME --> and, below it, <!-- end --> expected")
    return done


def write(path: Path) -> None:
    for document in DOCUMENTS:
        old = document.read_text()
        new = filled(old, path)
        if new != old:
            document.write_text(new)
            print(f"{document.relative_to(ROOT)}: brought up to date")


def named(names: Sequence[str]) -> list[str]:
    """Return the tables of these names, or of the experiments of these names; all without any."""
    experiments = {table.experiment for table in TABLES.values()}
    unknown = set(names) - set(TABLES) - experiments
    if unknown:
        sys.exit(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join([*TABLES])}")
    return [name for name, table in TABLES.items() if not names or name in names or table.experiment in names]


def main(given: Sequence[str] | None = None) -> int:
    """Print tables, or bring the documents up to date."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.tables", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of a table or an experiment: {', '.join(TABLES)}")
    parser.add_argument("--write", action="store_true", help="into the documents instead")
    parser.add_argument("--results", type=Path, default=results.directory(results.is_quick()), metavar="DIRECTORY")
    options = parser.parse_args(given)
    names = named(options.names)
    if options.write:
        if results.is_quick():
            print("a tiny run: the documents stay as they are")
        else:
            write(options.results)
        return 0
    for name in names:
        print(f"{name}\n\n{table(name, options.results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
