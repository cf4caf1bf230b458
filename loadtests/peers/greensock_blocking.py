"""greensock, in the blocking style: one function per connection."""

from gevent import monkey

monkey.patch_all()

import gevent

from greensock import Connection, Server
from loadtests.peers import common
from loadtests.peers.greensock_main import run


class Blocking(Server):
    #: A connection holds a worker for as long as it is open.
    max_workers = 20_000


class Echo(Blocking):
    def handle(self, conn: Connection) -> None:
        while data := conn.recv():
            conn.send(data)


class Sink(Blocking):
    def handle(self, conn: Connection) -> None:
        while conn.recv():
            pass


class Slow(Blocking):
    def handle(self, conn: Connection) -> None:
        while data := conn.recv():
            if data[0] == common.SLOW_BYTE:
                gevent.sleep(common.SLOW_SECONDS)
            conn.send(data)


if __name__ == "__main__":
    run({"echo": Echo, "sink": Sink, "slow": Slow})
