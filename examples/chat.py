"""A chat: every line goes to everybody. Who reads too slowly is dropped, so that nobody else waits."""

from gevent import monkey

monkey.patch_all()

import sys
from itertools import count
from typing import Any

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/chat.py` finds the others

from examples._main import run
from greensock import Connection, Lines, Server


class Chat(Server):
    framer = Lines(max_size=1024)
    max_send_queue = 65536

    def __init__(self, listener: Any, **options: Any) -> None:
        super().__init__(listener, **options)
        self.names: dict[Connection, str] = {}
        self._numbers = count(1)

    def connection_new(self, conn: Connection) -> None:
        self.names[conn] = f"guest{next(self._numbers)}"
        self.tell(f"* {self.names[conn]} is here")

    def connection_recv(self, conn: Connection, data: bytes) -> None:
        self.tell(f"{self.names[conn]}: {data.decode(errors='replace')}")

    def connection_drop(self, conn: Connection) -> None:
        self.tell(f"* {self.names.pop(conn)} has left")

    def tell(self, text: str) -> None:
        """Send a line to all who are here; who reads too slowly is dropped, and nobody waits."""
        self.broadcast(text.encode() + b"\n", self.names)


if __name__ == "__main__":
    run(Chat, __doc__)
