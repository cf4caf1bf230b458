"""aiohttp's server on uvloop, without its access log."""

import asyncio

import uvloop
from aiohttp import web

from loadtests.peers import common, http_common
from loadtests.peers.http_common import BLOCK, FIXED


async def handle(request: web.Request) -> web.StreamResponse:
    if request.method == "POST":
        count = 0
        async for piece in request.content.iter_any():
            count += len(piece)
        return web.Response(body=b"%d" % count)
    if request.path in FIXED:
        return web.Response(body=FIXED[request.path], content_type="text/plain")
    number = int(request.path.rpartition("/")[2])
    answer = web.StreamResponse()
    answer.content_length = number * len(BLOCK)
    await answer.prepare(request)
    for piece in http_common.blocks(number):
        await answer.write(piece)
    return answer


async def serve() -> None:
    app = web.Application(client_max_size=2**40)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=True)
    await runner.setup()
    sock = http_common.listener(http_common.options())
    await web.SockSite(runner, sock, backlog=common.BACKLOG).start()
    common.announce(sock)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    try:
        uvloop.run(serve())
    except web.GracefulExit:
        pass
