"""A proxy of aiohttp on uvloop: its server, its client with kept connections, bodies streamed both ways."""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import uvloop
from aiohttp import ClientConnectionResetError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy

from loadtests.peers import common, http_common
from loadtests.peers.http_common import HOP_BY_HOP


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


class Proxy:
    def __init__(self, upstream: str, session: ClientSession) -> None:
        self.upstream = upstream
        self.session = session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = end_to_end(request.headers)
        headers["X-Forwarded-For"] = request.remote or ""
        headers["X-Forwarded-Proto"] = request.scheme
        body = request.content.iter_any() if request.body_exists else None
        url = f"http://{self.upstream}{request.raw_path}"
        async with self.session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            out = web.StreamResponse(status=answer.status, reason=answer.reason, headers=end_to_end(answer.headers))
            with suppress(ClientConnectionResetError):  # the client has left
                await out.prepare(request)
                await self.pass_on(answer.content.iter_any(), out)
        return out

    async def pass_on(self, pieces: AsyncIterator[bytes], out: web.StreamResponse) -> None:
        async for piece in pieces:
            await out.write(piece)
        await out.write_eof()


async def serve(options: argparse.Namespace) -> None:
    connector = TCPConnector(limit=0)
    timeout = ClientTimeout(total=None)
    async with ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, skip_auto_headers=("Accept-Encoding", "User-Agent")
    ) as session:
        app = web.Application(client_max_size=2**40)
        app.router.add_route("*", "/{path:.*}", Proxy(options.upstream, session).handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=True)
        await runner.setup()
        sock = http_common.listener(options)
        await web.SockSite(runner, sock, backlog=common.BACKLOG).start()
        common.announce(sock)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    try:
        uvloop.run(serve(http_common.options()))
    except web.GracefulExit:
        pass
