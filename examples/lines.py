"""A key-value store over lines, in the blocking style.

SET key value   OK
GET key         VALUE value, or NONE
DEL key         OK, or NONE
KEYS            KEYS key key ...
QUIT            BYE
"""

from gevent import monkey

monkey.patch_all()

import sys
from typing import Any

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/lines.py` finds the others

from examples._main import run
from greensock import Connection, Server


class Store(Server):
    idle_timeout = 300.0

    def __init__(self, listener: Any, **options: Any) -> None:
        super().__init__(listener, **options)
        self.table: dict[bytes, bytes] = {}

    def handle(self, conn: Connection) -> None:
        for line in conn:  # blocks this connection only, until the peer closes
            if line == b"QUIT":
                conn.send(b"BYE\n")
                return
            conn.send([self.answer(line), b"\n"])

    def answer(self, line: bytes) -> bytes:
        """Do what the line says and return the answer to it."""
        match line.split(b" ", 2):
            case [b"SET", key, value]:
                self.table[key] = value
                return b"OK"
            case [b"GET", key]:
                return b"VALUE " + self.table[key] if key in self.table else b"NONE"
            case [b"DEL", key]:
                return b"NONE" if self.table.pop(key, None) is None else b"OK"
            case [b"KEYS"]:
                return b" ".join([b"KEYS", *self.table])
        return b"ERROR one of SET key value, GET key, DEL key, KEYS, QUIT expected"


if __name__ == "__main__":
    run(Store, __doc__)
