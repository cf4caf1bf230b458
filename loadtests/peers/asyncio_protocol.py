"""asyncio, its low-level Protocol."""

import asyncio
from typing import cast

from loadtests.peers import common


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Framed(Echo):
    """Cut into messages of ``MESSAGE`` bytes."""

    rest = b""

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at, size, write = 0, common.MESSAGE, self.message_received
        end = len(data) - size
        while at <= end:
            write(data[at : at + size])
            at += size
        self.rest = data[at:]

    def message_received(self, message: bytes) -> None:
        self.transport.write(message)


class Sink(asyncio.BufferedProtocol):
    """A Protocol cannot say how much to read at a time; a BufferedProtocol brings a buffer of that size."""

    recv = 65536

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.buffer = bytearray(self.recv)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        pass


class Slow(Echo):
    """A Protocol's callback must not block: the answer is put off with a timer."""

    def data_received(self, data: bytes) -> None:
        if data[0] == common.SLOW_BYTE:
            asyncio.get_running_loop().call_later(common.SLOW_SECONDS, self.transport.write, data)
        else:
            self.transport.write(data)


KINDS: dict[str, type[asyncio.BaseProtocol]] = {"echo": Echo, "framed": Framed, "sink": Sink, "slow": Slow}


async def serve(options: common.Options) -> None:
    sock = common.listener(options)
    Sink.recv = options.recv
    factory: type[asyncio.BaseProtocol] = KINDS[options.mode]
    server = await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=common.BACKLOG)
    common.announce(sock)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(common.options()))
