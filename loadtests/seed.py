"""``python -m loadtests.seed``: the workload of the seed's experiments, on the sink example; the job of ``make run``.

The sink (``examples/sink.py``) runs in a process of its own, on a core of its own where there are two. The traffic
generator opens the connections, floods them with messages of 64 bytes, and closes each when the sink has read it all.
Then what the sink counted is held against what was sent: exit status 1 if anything differs, or anything failed;
2 if the run could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from loadtests import generator
from loadtests.arguments import at_least
from loadtests.generator import Failed, Progress, Result
from loadtests.native import BuildError, build
from loadtests.process import GENERATOR_CORES, Peer, StartError
from loadtests.process import ROOT as ROOT
from loadtests.progress import Display

__all__ = ["main"]

SIZE = 64
#: Seconds that the sink may take to start, and to stop.
PATIENCE = 20.0

Report = Mapping[str, Any]


def report_of(sink: Peer) -> Report:
    """End the sink by SIGTERM and return what it reports.

    Raises:
        StartError: it reported nothing.
    """
    try:
        report: Report = json.loads(sink.stop(PATIENCE))
    except ValueError:
        text = f"{sink.name} ended with {sink.returncode} and without a report: {sink.errors()}"
        raise StartError(text) from None
    return report


def drive(sink: Peer, options: argparse.Namespace, display: Display) -> Result:
    """Send all messages over all connections, and say how it goes."""
    total = options.connections * options.messages

    def show(progress: Progress) -> None:
        done = f"{progress['messages']:>13,.0f} of {total:,} messages sent"
        display.say(f"{progress['seconds']:6.1f} s  {progress['connections']:>6,.0f} connections  {done}")

    return generator.run(
        "flood",
        sink.address,
        cores=GENERATOR_CORES,
        on_progress=show,
        connections=options.connections,
        messages=options.messages,
        threads=min(options.threads, options.connections),
        size=SIZE,
        seconds=0,
        deadline=options.deadline,
        pid=sink.pid,
    )


def differences(connections: int, messages: int, result: Result, report: Report) -> list[str]:
    """Return what differs between what was meant to be sent, was sent, and was received: empty if all is well."""
    total, counted = connections * messages, report["statistics"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.failures.items() if count)
    expected: dict[str, tuple[object, object]] = {
        "failures of the generator": (
            f"{result.failed} ({kinds}; {result.last_error})" if result.failed else 0,
            0,
        ),
        "connections opened": (result.opened, connections),
        "messages sent": (result.total_messages, total),
        "messages the sink counted": (report["messages"], total),
        "messages in the server's statistics": (counted["messages"], total),
        "bytes in the server's statistics": (counted["bytes_received"], total * SIZE),
        "connections accepted": (counted["accepted"], connections),
        "connections still alive": (counted["active"], 0),
        "connections by why they ended": (counted["dropped"], {"PEER_CLOSED": connections}),
        "upcalls that failed": (counted["errors"], 0),
    }
    return [f"{what}: {found}, not {right}" for what, (found, right) in expected.items() if found != right]


def table(result: Result, report: Report) -> str:
    """Return the figures, a line each."""
    counted = report["statistics"]
    opening = report["opening_seconds"]
    rows = {
        # What took less has no whole second.
        **({"messages/s, best second": f"{report['best_second']:,}"} if result.seconds >= 1 else {}),
        "messages/s, mean": f"{result.rate:,.0f}",
        "connections/s": f"{counted['accepted'] / opening:,.0f}" if opening else "-",
        "server's CPU per message": f"{result.server_us:.2f} us",
        "server's core in use": f"{100 * result.server_load:.0f} %",
        "messages": f"{counted['messages']:,} in {result.seconds:.2f} s",
        "bytes": f"{counted['bytes_received']:,}",
        "connections": f"{counted['accepted']:,} accepted, {counted['active']:,} left, ended: "
        + (", ".join(f"{count:,} {reason}" for reason, count in counted["dropped"].items()) or "none"),
        "upcalls that failed": f"{counted['errors']:,}",
        "workers": f"{counted['workers']:,}",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.seed", description=__doc__)
    positive = at_least(1, int)
    parser.add_argument("--connections", type=positive, default=16 * 64, help="default: %(default)s")
    parser.add_argument("--messages", type=positive, default=4096, help="on each connection; default: %(default)s")
    parser.add_argument("--threads", type=positive, default=16, help="of the generator; default: %(default)s")
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds to give up after; default: %(default)s")
    parser.add_argument("--server", default="examples.sink", metavar="MODULE", help="the sink; default: %(default)s")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the workload, print its figures, and return the exit status."""
    options = arguments(given)
    display = Display(sys.stderr)
    began = time.monotonic()
    display.say(f"{options.connections:,} connections, {options.messages:,} messages of {SIZE} bytes on each")
    try:
        build("generator.c")  # not while the sink waits
        command = [sys.executable, "-m", options.server]
        with Peer("the sink", command=command, timeout=PATIENCE) as sink:
            result = drive(sink, options, display)
            report = report_of(sink)
    except (BuildError, Failed, StartError) as error:
        print(error)
        return 2
    print(table(result, report))
    wrong = differences(options.connections, options.messages, result, report)
    for line in wrong:
        print(f"WRONG: {line}")
    print("something is wrong" if wrong else f"every message arrived, in {time.monotonic() - began:.1f} s in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
