"""Takes messages of 64 bytes, does a little work on each, and says at its end how many a second, as a line of JSON."""

from gevent import monkey

monkey.patch_all()

import json
import sys
from collections import Counter
from dataclasses import fields
from time import monotonic
from typing import Any
from zlib import crc32

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/sink.py` finds the others

from examples._main import run
from greensock import Connection, FixedSize, Server


class Sink(Server):
    framer = FixedSize(64)

    def __init__(self, listener: Any, **options: Any) -> None:
        super().__init__(listener, **options)
        #: Of the bytes of all messages, in the order in which they came.
        self.checksum = 0
        self.messages = 0
        self.opened: list[float] = []
        #: Messages by the tenth of a second of the clock.
        self.per_tenth: Counter[int] = Counter()
        self._clocked = 0

    def connection_new(self, conn: Connection) -> None:
        self.opened.append(monotonic())

    def connection_recv(self, conn: Connection, data: bytes) -> None:
        self.checksum = crc32(data, self.checksum)
        self.messages += 1

    def connection_recv_finish(self, conn: Connection) -> None:
        # One look at the clock a turn, not a message.
        self.per_tenth[int(10 * monotonic())] += self.messages - self._clocked
        self._clocked = self.messages

    def report(self) -> dict[str, Any]:
        """Return what was counted, ready for JSON."""
        statistics, tenths = self.statistics(), self.per_tenth
        return {
            "messages": self.messages,
            "best_second": max((sum(tenths[first + n] for n in range(10)) for first in list(tenths)), default=0),
            "opening_seconds": max(self.opened, default=0.0) - min(self.opened, default=0.0),
            "checksum": self.checksum,
            "statistics": {field.name: getattr(statistics, field.name) for field in fields(statistics)},
        }


if __name__ == "__main__":
    sink = run(Sink, __doc__)
    assert isinstance(sink, Sink)
    print(json.dumps(sink.report(), default=dict), flush=True)
