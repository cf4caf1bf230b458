"""asyncio's DatagramProtocol."""

import asyncio
from typing import Any, cast

from loadtests.peers import common
from loadtests.peers.udp_common import LONG, bound


class Echo(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)  # uvloop's are not subclasses

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


class Sink(Echo):
    count = 0

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(data) >= LONG:
            self.count += 1
        else:
            self.transport.sendto(b"%d" % self.count, addr)


async def serve(options: common.Options) -> None:
    sock = bound(options)
    kind = {"echo": Echo, "sink": Sink}[options.mode]
    await asyncio.get_running_loop().create_datagram_endpoint(kind, sock=sock)
    common.announce(sock)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(common.options()))
