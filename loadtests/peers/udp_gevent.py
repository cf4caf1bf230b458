"""gevent's DatagramServer: a greenlet for each datagram."""

from gevent import monkey

monkey.patch_all()

from typing import Any

from gevent.server import DatagramServer

from loadtests.peers import common
from loadtests.peers.udp_common import LONG, bound

count = 0


def echo(data: bytes, address: Any) -> None:
    server.sendto(data, address)


def sink(data: bytes, address: Any) -> None:
    global count
    if len(data) >= LONG:
        count += 1
    else:
        server.sendto(b"%d" % count, address)


if __name__ == "__main__":
    options = common.options()
    sock = bound(options)
    handle: Any = {"echo": echo, "sink": sink}[options.mode]
    server = DatagramServer(sock, handle)
    server.start()
    common.announce(sock)
    server.serve_forever()
