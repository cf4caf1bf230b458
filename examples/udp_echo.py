"""Sends back each datagram that comes."""

from gevent import monkey

monkey.patch_all()

import sys
from typing import Any

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/udp_echo.py` finds the others

from examples._main import run
from greensock import DatagramServer


class UdpEcho(DatagramServer):
    def datagram_recv(self, data: bytes, address: Any) -> None:
        self.send_to(data, address)


if __name__ == "__main__":
    run(UdpEcho, __doc__)
