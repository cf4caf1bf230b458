"""trio: a task per connection, its SocketStream."""

from functools import partial

import trio

from loadtests.peers import common


async def echo(recv: int, stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(recv):
        await stream.send_all(data)


async def sink(recv: int, stream: trio.SocketStream) -> None:
    while await stream.receive_some(recv):
        pass


async def slow(recv: int, stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(recv):
        if data[0] == common.SLOW_BYTE:
            await trio.sleep(common.SLOW_SECONDS)
        await stream.send_all(data)


async def serve(options: common.Options) -> None:
    sock = common.listener(options)
    handler = partial({"echo": echo, "sink": sink, "slow": slow}[options.mode], options.recv)
    common.announce(sock)
    await trio.serve_listeners(handler, [trio.SocketListener(trio.socket.from_stdlib_socket(sock))])


if __name__ == "__main__":
    trio.run(serve, common.options())
