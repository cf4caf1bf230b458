"""Counts for statsd clients: NAME:VALUE|TYPE, types c, g, ms, h and s; prints what every 10 s (--interval), as JSON."""

from gevent import monkey

monkey.patch_all()

import json
import sys
from collections import defaultdict
from typing import Any

import gevent

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/statsd.py` finds the others

from examples._main import run
from greensock import DatagramServer


class Statsd(DatagramServer):
    recv_buffer = 4 << 20  # what comes while a line is printed waits there
    most_names, wrong = 100_000, 0  # anybody may send more

    def __init__(self, listener: Any, interval: str | None = None, **options: Any) -> None:
        super().__init__(listener, **options)
        self.found: dict[str, dict[str, Any]] = {}
        self.sayer = gevent.spawn(self.say_every, float(interval or 10))

    def datagram_recv(self, data: bytes, address: Any) -> None:
        for line in data.decode(errors="replace").splitlines():
            try:
                self.count(*line.split("|"))
            except (IndexError, TypeError, ValueError, ZeroDivisionError):
                self.wrong += 1

    def count(self, first: str, kind: str, *more: str) -> None:  # more: @RATE, so many of all were sent; #TAGS
        name, _, value = first.partition(":")
        key = "|".join([name, kind, *(each for each in more if each[0] == "#")])
        weight = 1 / next((float(each[1:]) for each in more if each[0] == "@"), 1.0)
        number = 0.0 if kind == "s" else float(value)
        if kind not in ("c", "g", "ms", "h", "s") or (key not in self.found and len(self.found) >= self.most_names):
            raise ValueError(key)
        entry = self.found.setdefault(key, defaultdict(float))
        entry["lines"] += weight
        if kind == "s":
            entry.setdefault("members", set()).add(value)
        elif kind == "g":
            entry["value"] = entry["value"] + number if value[0] in "+-" else number
        else:
            entry["sum"] += number * weight

    def say(self) -> None:
        lost = self.statistics().dropped_by_kernel
        print(json.dumps({"statsd": {"wrong": self.wrong, "lost": lost}, **self.found}, default=len), flush=True)
        self.found = {key: entry for key, entry in self.found.items() if "|g" in key}  # a gauge stays as it is

    def say_every(self, seconds: float) -> None:
        while True:
            gevent.sleep(seconds)
            self.say()


if __name__ == "__main__":
    run(Statsd, __doc__, interval="seconds between two lines").say()
