"""A cluster of peers that gossip, each client and server at once: SET key value at one, GET key at any of them."""

from gevent import monkey

monkey.patch_all()

import sys
from typing import Any

import gevent

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/gossip.py` finds the others

from examples._main import run
from greensock import Connection, Lines, Server


class Link(Connection):
    peer = ""  # where the peer listens that it leads to


class Node(Server[Link]):
    framer, connection_class = Lines(max_size=4096), Link

    def __init__(self, listener: Any, join: str | None = None, **options: Any) -> None:
        super().__init__(listener, **options)
        self.first, self.links = join, dict[str, Link]()
        self.table: dict[str, tuple[int, str]] = {}  # how often each key was set, and its value

    def start(self) -> None:
        super().start()
        self.name = f"{self.server_host}:{self.server_port}"
        self.meet(self.first or self.name)

    def meet(self, peer: str) -> None:
        if peer not in (self.name, *self.links) and self.started and not self.draining:
            self.links[peer] = self.connect(peer, timeout=5.0)  # returns at once: the upcalls are told how it went
            self.links[peer].peer = peer

    def connection_new(self, conn: Link) -> None:
        if conn.peer:  # one that this end has made
            self.greet(conn)

    def greet(self, conn: Link) -> None:
        news = [f"NEWS {version} {key} {value}\n" for key, (version, value) in self.table.items()]
        conn.send("".join([f"HELLO {self.name}\n", *(f"PEER {peer}\n" for peer in self.links), *news]).encode())

    def connection_drop(self, conn: Link) -> None:  # also of one that could not be connected to
        if self.links.get(conn.peer) is conn:
            gevent.spawn_later(1.0, self.meet, self.links.pop(conn.peer).peer)

    def connection_recv(self, conn: Link, data: bytes) -> None:
        word, _, rest = data.decode(errors="replace").partition(" ")
        first, _, more = rest.partition(" ")
        if word == "HELLO" and not conn.peer:  # one that the peer has made
            conn.peer = rest
            self.links.setdefault(rest, conn)
            self.greet(conn)
        elif word == "PEER":
            self.meet(rest)
        elif word == "NEWS":
            self.learn(int(first), *more.split(" ", 1))
        elif word == "SET":
            self.learn(self.table.get(first, (0, ""))[0] + 1, first, more)
        elif word != "HELLO":
            conn.send(f"{self.table.get(first, (0, 'NONE'))[1] if word == 'GET' else 'GET or SET expected'}\n".encode())

    def learn(self, version: int, key: str, value: str) -> None:
        if (version, value) > self.table.get(key, (0, "")):
            self.table[key] = version, value
            self.broadcast(f"NEWS {version} {key} {value}\n".encode(), self.links.values())


if __name__ == "__main__":
    run(Node, __doc__, join="HOST:PORT of a peer")
