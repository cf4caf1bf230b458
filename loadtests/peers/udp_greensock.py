"""greensock's DatagramServer."""

from gevent import monkey

monkey.patch_all()

from typing import Any

from greensock import DatagramServer
from loadtests.peers import common
from loadtests.peers.udp_common import LONG, bound


class Echo(DatagramServer):
    def datagram_recv(self, data: bytes, address: Any) -> None:
        self.send_to(data, address)


class Sink(DatagramServer):
    count = 0

    def datagram_recv(self, data: bytes, address: Any) -> None:
        if len(data) >= LONG:
            self.count += 1
        else:
            self.send_to(b"%d" % self.count, address)


if __name__ == "__main__":
    options = common.options()
    sock = bound(options)
    server = {"echo": Echo, "sink": Sink}[options.mode](sock)
    server.start()
    common.announce(sock)
    server.serve_forever()
