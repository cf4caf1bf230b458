"""Sends back what comes: the upcalls at their shortest."""

from gevent import monkey

monkey.patch_all()

import sys

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/echo.py` finds the others

from examples._main import run
from greensock import Connection, Server


class Echo(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> None:
        conn.send(data)  # blocks while this peer is slow; the others go on


if __name__ == "__main__":
    run(Echo, __doc__)
