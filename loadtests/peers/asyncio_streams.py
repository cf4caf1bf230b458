"""asyncio, its streams: a task and a coroutine per connection."""

import asyncio
from functools import partial

from loadtests.peers import common


async def echo(recv: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(recv):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def sink(recv: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(recv):
        pass
    writer.close()
    await writer.wait_closed()


async def slow(recv: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(recv):
        if data[0] == common.SLOW_BYTE:
            await asyncio.sleep(common.SLOW_SECONDS)
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def serve(options: common.Options) -> None:
    sock = common.listener(options)
    handler = partial({"echo": echo, "sink": sink, "slow": slow}[options.mode], options.recv)
    server = await asyncio.start_server(handler, sock=sock, backlog=common.BACKLOG)
    common.announce(sock)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(common.options()))
