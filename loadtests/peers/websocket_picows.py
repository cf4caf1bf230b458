"""picows, a server in Cython, on uvloop."""

import asyncio
from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSTransport, ws_create_server

from loadtests.peers import common, http_common


class Echo(WSListener):  # type: ignore[misc, unused-ignore]  # picows need not be there
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_bytes())


async def main() -> None:
    sock = http_common.listener(http_common.options())

    def made(request: Any) -> WSListener:
        return Echo()

    await ws_create_server(made, sock=sock, backlog=common.BACKLOG)
    common.announce(sock)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
