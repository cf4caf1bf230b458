"""uvloop, its Protocol, over TLS."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

import uvloop

from loadtests.peers import common

OPTIONS = common.options()


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not of that class over TLS

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Download(Echo):
    """Writes until it is told to pause, and again when it may go on."""

    is_paused = False

    def data_received(self, data: bytes) -> None:
        self.piece = bytes(OPTIONS.size)
        self.go_on()

    def go_on(self) -> None:
        while not self.is_paused and not self.transport.is_closing():
            self.transport.write(self.piece)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.go_on()


async def main() -> None:
    sock = common.listener(OPTIONS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(OPTIONS.cert, OPTIONS.key)
    kind = {"echo": Echo, "download": Download}[OPTIONS.mode]
    server = await asyncio.get_running_loop().create_server(kind, sock=sock, ssl=context, backlog=common.BACKLOG)
    common.announce(sock)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
