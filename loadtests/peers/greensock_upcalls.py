"""greensock, by upcalls."""

from gevent import monkey

monkey.patch_all()

import gevent

from greensock import Connection, FixedSize, Server
from loadtests.peers import common
from loadtests.peers.greensock_main import run


class Echo(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> None:
        conn.send(data)


class Framed(Server):
    framer = FixedSize(common.MESSAGE)

    def connection_recv(self, conn: Connection, data: bytes) -> None:
        conn.send_soon(data)


class Sink(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> None:
        pass


class Slow(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> None:
        if data[0] == common.SLOW_BYTE:
            gevent.sleep(common.SLOW_SECONDS)
        conn.send(data)


class Held(Server):
    """Every upcall blocks until its connection is closed: so many workers are needed."""

    max_workers = 20_000

    def connection_recv(self, conn: Connection, data: bytes) -> None:
        conn.send(data)
        conn.recv()


if __name__ == "__main__":
    run({"echo": Echo, "framed": Framed, "sink": Sink, "slow": Slow, "held": Held})
