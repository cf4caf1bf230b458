"""websockets' own server, on uvloop."""

import asyncio

import uvloop
from websockets.asyncio.server import ServerConnection, serve

from loadtests.peers import common, http_common


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def main() -> None:
    sock = http_common.listener(http_common.options())
    async with serve(echo, sock=sock, backlog=common.BACKLOG):
        common.announce(sock)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
