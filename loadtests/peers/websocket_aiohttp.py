"""aiohttp's WebSockets, on uvloop."""

import asyncio

import uvloop
from aiohttp import WSMsgType, web

from loadtests.peers import common, http_common


async def echo(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    async for message in websocket:
        if message.type == WSMsgType.TEXT:
            await websocket.send_str(message.data)
        else:
            await websocket.send_bytes(message.data)
    return websocket


async def main() -> None:
    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app, access_log=None, handle_signals=True)
    await runner.setup()
    sock = http_common.listener(http_common.options())
    await web.SockSite(runner, sock, backlog=common.BACKLOG).start()
    common.announce(sock)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        uvloop.run(main())
    except web.GracefulExit:
        pass
