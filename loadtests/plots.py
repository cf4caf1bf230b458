"""``python -m loadtests.plots [NAME...]``: a picture of each experiment, drawn from its results alone.

The seed's two charts have the seed's own curves (``seed_results.csv``) in a panel beside ours: other machines, other
decades, so the shapes compare and the numbers do not.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from loadtests import results
from loadtests.looks import SEED_STYLES, STYLES, Style
from loadtests.results import Sample, by_round, of, series, spread
from loadtests.servers import SERVERS

__all__ = ["PLOTS", "main"]

Content = Mapping[str, Any]
Points = Sequence[tuple[float, float]]

SEED = Path(__file__).resolve().parent / "seed_results.csv"


# -- what all charts share


def figure(content: Content, width: float, height: float) -> Figure:
    drawn = Figure(figsize=(width, height), layout="constrained", dpi=110)
    drawn.suptitle(content["title"], fontsize=14, fontweight="bold")
    return drawn


def note(content: Content, what: str) -> str:
    """Return what is drawn, and where it was measured."""
    rounds = content["scale"]["rounds"]
    many = f"{rounds} rounds" if rounds > 1 else "1 round"
    where = f"{content['machine']['cpu']}, Python {content['versions']['python']}, {content['date'][:10]}"
    return f"{many}; {what}. {where}"


def legend(drawn: Figure, content: Content, what: str, markers: bool = True) -> None:
    """Put note and servers below all panels, where they cover nothing."""
    handles = []
    for server in in_order(content["samples"]):
        style = STYLES[server]
        marker = style.marker if markers else ""
        line = Line2D([], [], color=style.colour, marker=marker, linestyle=style.line, linewidth=style.width)
        line.set_label(SERVERS[server].title)
        handles.append(line)
    below = drawn.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, title=note(content, what))
    below.get_title().set(fontsize=9, color="#555555")


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def thousands(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis with ticks at 1, 2 and 5, written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def short(count: float) -> str:
    return f"{count / 1000:.0f}k" if count >= 1000 else f"{count:.0f}"


def connections_axis(axes: Axes, counts: Iterable[float]) -> None:
    ticks = sorted(set(counts))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([short(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def in_order(samples: Iterable[Sample]) -> list[str]:
    present = {sample["server"] for sample in samples}
    return [name for name in STYLES if name in present]


def plot(axes: Axes, style: Style, points: Points, *, marker: str = "", label: str = "") -> None:
    x, y = [x for x, _ in points], [y for _, y in points]
    (line,) = axes.plot(x, y, color=style.colour, linestyle=style.line, linewidth=style.width)
    line.set_marker(marker)
    line.set_markersize(5)
    line.set_label(label)


def curve(axes: Axes, server: str, points: Sequence[tuple[float, Sequence[float]]], scale: float = 1.0) -> None:
    """Draw medians as a curve, with bars from the least to the greatest round."""
    found = [(x, *(value * scale for value in spread(values))) for x, values in points]
    style = STYLES[server]
    plot(axes, style, [(x, middle) for x, middle, _, _ in found], marker=style.marker)
    for x, _, least, greatest in found:
        axes.plot([x, x], [least, greatest], color=style.colour, marker="_", markersize=5, linewidth=1)


def curves(
    axes: Axes, content: Content, kind: str, value: str, scale: float, title: str, x: str, y: str, log: bool = False
) -> None:
    """Draw a value of all servers over the number of connections."""
    samples = content["samples"]
    dress(axes, title, x, y)
    if log:
        plain_log(axes)
    counts: set[float] = set()
    for server in in_order(samples):
        points = series(samples, kind, server, value)
        counts.update(count for count, _ in points)
        curve(axes, server, points, scale)
    connections_axis(axes, counts)
    if not log:
        axes.set_ylim(bottom=0)


def seed_curves(experiment: str) -> dict[str, list[tuple[float, float]]]:
    """Return the seed's points, by its servers."""
    found: dict[str, list[tuple[float, float]]] = {}
    with SEED.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["experiment"] == experiment:
                found.setdefault(row["series"], []).append((float(row["x"]), float(row["y"])))
    return found


def draw_seed(axes: Axes, experiment: str, place: Literal["lower right", "upper right"], scale: float = 1.0) -> None:
    """Draw the seed's curves with a legend of their own."""
    for name, points in seed_curves(experiment).items():
        label, style = SEED_STYLES[name]
        plot(axes, style, [(x, y * scale) for x, y in points], marker=style.marker, label=label)
    axes.legend(loc=place, fontsize=9, frameon=False)
    axes.set_ylim(bottom=0)


# -- a chart an experiment


def draw_ramp(axes: Axes, server: str, ramps: Sequence[Sample]) -> None:
    """Draw every round thin, and thick the one in the middle by how fast it opened how many."""
    style = STYLES[server]
    ranked = sorted(ramps, key=lambda sample: (sample["open_seconds"], -sample["opened"]))
    middle = ranked[len(ranked) // 2]
    for sample in ranked:
        drawn = style if sample is middle else replace(style, width=0.5)
        plot(axes, drawn, [(0.0, 0.0), *sample["ramp"]])


def connections(content: Content) -> Figure:
    """The seed's first chart."""
    samples = content["samples"]
    drawn = figure(content, 12.5, 6)
    ours, seeds = drawn.subplots(1, 2, sharey=True)
    servers = in_order(samples)
    for server in servers:
        ramps = [sample for sample in samples if sample["server"] == server and not sample["failed"]]
        if ramps:
            draw_ramp(ours, server, ramps)
    dress(ours, "here", "seconds", "connections open and exchanging messages")
    dress(seeds, "the seed's", "seconds", "")
    draw_seed(seeds, "connections_over_time_s", "lower right")
    for axes in (ours, seeds):
        axes.set_xlim(left=0)
    thousands(ours)
    legend(drawn, content, "each of them thin, the median one thick", markers=False)
    return drawn


#: Where the chart of what is left of the rate ends, in %.
MOST_LEFT = 150
MEDIANS = "medians, lines from the least to the greatest"


def messages(content: Content) -> Figure:
    """The seed's second chart, what it cost, and the same with answers."""
    drawn = figure(content, 14, 9)
    (flood, seeds, flood_cpu), (echo, left, echo_cpu) = drawn.subplots(2, 3)
    x, cost = "connections (logarithmic)", "server CPU per message, us (logarithmic)"
    curves(flood, content, "flood", "rate", 1e-6, "flood, read 64 bytes at a time", x, "million messages/s")
    dress(seeds, "flood: the seed's", x, "million messages/s")
    draw_seed(seeds, "messages_per_s_by_connections", "upper right", 1e-6)
    connections_axis(
        seeds, (count for points in seed_curves("messages_per_s_by_connections").values() for count, _ in points)
    )
    seeds.set_ylim(top=5)  # room for the legend
    curves(flood_cpu, content, "flood", "server_us", 1, "flood: what it costs", x, cost, log=True)
    curves(echo, content, "echo", "rate", 1e-3, "ping-pong: a message and its echo", x, "thousand messages/s")
    curves(echo_cpu, content, "echo", "server_us", 1, "ping-pong: what it costs", x, cost, log=True)
    draw_left(left, content, x)
    legend(drawn, content, MEDIANS)
    return drawn


def draw_left(axes: Axes, content: Content, x: str) -> None:
    """Draw what is left of the rate when connections become many: the seed's claim is that it stays."""
    samples = content["samples"]
    dress(axes, "ping-pong: what is left", x, "% of the rate at the fewest connections")
    counts: set[float] = set()
    for server in in_order(samples):
        points = series(samples, "echo", server, "rate")
        counts.update(count for count, _ in points)
        medians = [(count, spread(values)[0]) for count, values in points]
        shares = [(count, 100 * middle / medians[0][1]) for count, middle in medians]
        inside = [point for point in shares if point[1] <= MOST_LEFT]
        plot(axes, STYLES[server], inside, marker=STYLES[server].marker)
        outside = ", ".join(f"{share:.0f} % at {count:,.0f}" for count, share in shares if share > MOST_LEFT)
        if outside:
            axes.text(
                0.5,
                0.97,
                f"off the chart: {SERVERS[server].title}, {outside}",
                ha="center",
                va="top",
                size="small",
                color=STYLES[server].colour,
                transform=axes.transAxes,
            )
    connections_axis(axes, counts)
    axes.set_ylim(0, MOST_LEFT)


def shortlived(content: Content) -> Figure:
    """Short-lived connections: how many, and what each costs."""
    drawn = figure(content, 12.5, 6)
    rate, cpu = drawn.subplots(1, 2)
    x = "connections at a time (logarithmic)"
    curves(rate, content, "shortlived", "rate", 1e-3, "connect + echo + close", x, "thousand connections/s")
    cost = "server CPU per connection, us (logarithmic)"
    curves(cpu, content, "shortlived", "server_us", 1, "what each costs", x, cost, log=True)
    legend(drawn, content, MEDIANS)
    return drawn


def short_number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def bars(axes: Axes, servers: Sequence[str], found: Mapping[str, Sequence[float]]) -> None:
    """Draw a bar a server from the top down, with its number at its end."""
    measured = [(place, server, spread(found[server])) for place, server in enumerate(servers) if found[server]]
    reach = max((greatest for _, _, (_, _, greatest) in measured), default=1.0)
    for place, server, (middle, least, greatest) in measured:
        axes.barh(place, middle, color=STYLES[server].colour, height=0.7)
        axes.plot([least, greatest], [place, place], color="#555555", linewidth=1.2)
        axes.text(max(middle, greatest) + reach * 0.02, place, short_number(middle), va="center", fontsize=9)
    axes.set_xlim(0, reach * 1.22)
    axes.set_yticks(range(len(servers)), [SERVERS[server].title for server in servers])
    axes.set_ylim(len(servers) - 0.4, -0.6)


#: Title, axis, value and scale of a panel of bars, by its case.
Panels = Mapping[str, tuple[str, str, str]]


def draw_panels(row: Sequence[Axes], content: Content, panels: Panels, scale: float = 1.0) -> None:
    """Draw a panel a case, with a bar for each server that takes part in any of them."""
    samples = latencies_lifted(content["samples"])
    cases = {sample["case"] for sample in samples if sample["case"] in panels}
    servers = in_order(sample for sample in samples if sample["case"] in cases)
    for axes, (case, (title, x, value)) in zip(row, panels.items(), strict=False):
        dress(axes, title, x, "")
        found = {
            server: [each * scale for each in by_round(samples, case, server, value).values()] for server in servers
        }
        bars(axes, servers, found)
        axes.grid(False, axis="y")


def latencies_lifted(samples: Iterable[Sample]) -> list[Sample]:
    return [{**sample, **(sample.get("latency") or {})} for sample in samples]


def bar_panels(content: Content, panels: Panels, height: float) -> Figure:
    """Draw a row of panels: ``panels`` has title, axis and value of each."""
    drawn = figure(content, 3.0 * len(panels) + 2, height)
    draw_panels(drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0], content, panels)
    drawn.supxlabel(note(content, MEDIANS), fontsize=9, color="#555555")
    return drawn


def figures(content: Content) -> Figure:
    """The operations that targets are set for."""
    cost, value = "server CPU each, us", "server_us"
    panels = {
        "echo 64": ("echo\n64 connections", cost, value),
        "echo 1000": ("echo\n1,000 connections", cost, value),
        "echo 15000": ("echo\n15,000 connections", cost, value),
        "shortlived 64": ("connect + echo + close\n64 at a time", cost, value),
        "idle memory 15000": ("an idle connection\n15,000 of them", "memory each, kB", "kb"),
    }
    return bar_panels(content, panels, 4.2)


def memory(content: Content) -> Figure:
    """A connection that is idle, and one that is blocked."""
    panels = {
        "idle memory 10000": ("idle", "memory per connection, kB", "kb"),
        "blocked memory 10000": ("blocked in a downcall", "memory per connection, kB", "kb"),
    }
    return bar_panels(content, panels, 4.8)


def http(content: Content) -> Figure:
    """What a request costs, and how many there are."""
    drawn = figure(content, 15, 8)
    costs, rates = drawn.subplots(2, 4, sharey=True, squeeze=False)
    titles = {
        "small": "an answer of 100 bytes",
        "close": "100 bytes, Connection: close",
        "large": "an answer of 1 MB",
        "upload": "an upload of 1 MB",
    }
    draw_panels(costs, content, {case: (title, "server CPU each, us", "server_us") for case, title in titles.items()})
    thousands = {case: (title, "thousand requests/s", "rate") for case, title in titles.items()}
    draw_panels(rates, content, thousands, 1e-3)
    drawn.supxlabel(note(content, MEDIANS), fontsize=9, color="#555555")
    return drawn


def proxy(content: Content) -> Figure:
    """What a request through a proxy costs, how many there are, how much later answers come, how fast a download."""
    drawn = figure(content, 15, 7)
    first, second = drawn.subplots(2, 3, sharey=True, squeeze=False)
    cost = "proxy CPU each, us"
    panels = {
        "small": ("an answer of 100 bytes", cost, "server_us"),
        "close": ("100 bytes, Connection: close", cost, "server_us"),
        "upload": ("an upload of 1 MB", cost, "server_us"),
    }
    draw_panels(first, content, panels)
    draw_panels(second[:1], content, {"small": ("an answer of 100 bytes", "thousand requests/s", "rate")}, 1e-3)
    more = {
        "latency at 50%": ("at half the top rate of each", "p99 added, ms", "added_p99_ms"),
        "download 256 MB": ("a download of 256 MB", "MiB/s", "mib_per_second"),
    }
    draw_panels(second[1:], content, more)
    drawn.supxlabel(note(content, MEDIANS), fontsize=9, color="#555555")
    return drawn


def udp(content: Content) -> Figure:
    """What a datagram costs."""
    cost, value = "server CPU each, us", "server_us"
    panels = {
        "udp echo 64": ("echo of 64 bytes\n64 clients", cost, value),
        "udp sink": ("a sink of 1,200 bytes\nin bursts", cost, value),
        "udp echo 1": ("echo of 64 bytes\n1 client", cost, value),
    }
    return bar_panels(content, panels, 4.2)


def locust(content: Content) -> Figure:
    """What a request by Locust's users costs, how many one core makes, and by how much their latencies are off."""
    drawn = figure(content, 13, 3.6)
    first = drawn.subplots(1, 3, sharey=True, squeeze=False)[0]
    draw_panels(first[:1], content, {"closed loop": ("without a pause", "CPU of Locust each, us", "server_us")})
    draw_panels(
        first[1:2], content, {"closed loop": ("without a pause", "thousand requests/s of a core", "rate")}, 1e-3
    )
    draw_panels(first[2:], content, {"at a rate": ("500 requests/s", "p99 too high by, ms", "p99_error_us")}, 1e-3)
    drawn.supxlabel(note(content, MEDIANS), fontsize=9, color="#555555")
    return drawn


def tls(content: Content) -> Figure:
    """What TLS costs: an echo, a handshake, a MB, a connection at rest."""
    drawn = figure(content, 15, 6)
    first, second = drawn.subplots(2, 4, sharey=True, squeeze=False)
    cost = "server CPU each, us"
    panels = {
        "echo 64": ("echo\n64 connections", cost, "server_us"),
        "echo 1000": ("echo\n1,000 connections", cost, "server_us"),
        "handshake P-256": ("handshake in full\nP-256", cost, "server_us"),
        "handshake P-256 resumed": ("resumed\nP-256", cost, "server_us"),
    }
    draw_panels(first, content, panels)
    more = {
        "handshake RSA-2048": ("handshake in full\nRSA-2048", cost, "server_us"),
        "download 16 KiB": ("download\nwrites of 16 KiB", "server CPU per MB, us", "server_us"),
        "download 64 KiB": ("download\nwrites of 64 KiB", "server CPU per MB, us", "server_us"),
        "idle memory 2000": ("a connection at rest", "memory each, kB", "kb"),
    }
    draw_panels(second, content, more)
    drawn.supxlabel(note(content, MEDIANS), fontsize=9, color="#555555")
    return drawn


def cumulated(samples: Iterable[Sample]) -> Points:
    """Return (1 / share of the messages that took longer, milliseconds) of all rounds together."""
    buckets: dict[float, int] = {}
    for sample in samples:
        for top, count in sample["latency"]["histogram"]:
            buckets[top] = buckets.get(top, 0) + count
    tops = sorted(buckets)
    whole = sum(buckets.values())
    seen = accumulate(buckets[top] for top in tops)
    return [(whole / max(whole - below, 0.5), top / 1e3) for top, below in zip(tops, seen, strict=True)]


PERCENTILES = {2: "50", 10: "90", 100: "99", 1000: "99.9", 10_000: "99.99"}


def draw_latency(axes: Axes, samples: Sequence[Sample], case: str) -> None:
    for server in in_order(samples):
        plot(axes, STYLES[server], cumulated(of(samples, case, server)))
    axes.set_xscale("log")
    axes.set_xlim(1, 10_000)
    axes.xaxis.set_major_locator(FixedLocator([*PERCENTILES]))
    axes.xaxis.set_major_formatter(FixedFormatter([*PERCENTILES.values()]))
    axes.xaxis.set_minor_locator(NullLocator())


def latency(content: Content) -> Figure:
    """Percentiles of the latency, a panel a load."""
    samples = content["samples"]
    drawn = figure(content, 13, 9.5)
    panels = drawn.subplots(2, 2, sharey=True)
    cases = list(dict.fromkeys(sample["case"] for sample in samples))
    for axes, case in zip(panels.flat, cases, strict=False):
        kind, _, share = case.split()
        title = f"at {share} of the rate that the slowest sustains"
        if kind == "disturbed":
            title += "\none connection in 100 blocks 50 ms (not drawn), one more floods"
        dress(axes, title, "% of the messages (logarithmic)", "took at most, ms (logarithmic)")
        draw_latency(axes, samples, case)
        plain_log(axes)
    legend(drawn, content, "the messages of all of them together", markers=False)
    return drawn


#: By experiment.
PLOTS: dict[str, Callable[[Content], Figure]] = {
    "figures": figures,
    "connections": connections,
    "messages": messages,
    "shortlived": shortlived,
    "memory": memory,
    "latency": latency,
    "http": http,
    "proxy": proxy,
    "udp": udp,
    "locust": locust,
    "tls": tls,
}


def main(given: Sequence[str] | None = None) -> int:
    """Draw what is named, or all that has results; return 1 if one that is named has none."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.plots", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of an experiment: {', '.join(PLOTS)}")
    parser.add_argument("--results", type=Path, default=results.directory(results.is_quick()), metavar="DIRECTORY")
    options = parser.parse_args(given)
    unknown = set(options.names) - set(PLOTS)
    if unknown:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(PLOTS)}")
    status = 0
    for name in options.names or PLOTS:
        content = results.load(options.results, name)
        if content is None:
            print(f"{name}: not measured yet: python -m loadtests.bench {name}")
            status = 1 if options.names else status
            continue
        path = options.results / f"{name}.png"
        PLOTS[name](content).savefig(path)
        print(path)
    return status


if __name__ == "__main__":
    sys.exit(main())
