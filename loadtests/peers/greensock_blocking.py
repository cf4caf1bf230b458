"""greensock, in the blocking style: one function per connection."""

from gevent import monkey

monkey.patch_all()

import gevent

from greensock import Connection, Server
from loadtests.peers import common


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


def main() -> None:
    options = common.options()
    sock = common.listener(options)
    kinds: dict[str, type[Server]] = {"echo": Echo, "sink": Sink, "slow": Slow}
    server = kinds[options.mode](sock, recv_size=options.recv)
    server.start()
    common.announce(sock)
    server.serve_forever()


if __name__ == "__main__":
    main()
