"""uvicorn on uvloop and httptools, with a bare ASGI function."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn

from loadtests.peers import common, http_common
from loadtests.peers.http_common import BLOCK, FIXED

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def received(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    path, number = scope["path"], 0
    if scope["method"] == "POST":
        body = b"%d" % sum([len(piece) async for piece in received(receive)])
    elif path in FIXED:
        body = FIXED[path]
    else:
        body, number = b"", int(path.rpartition("/")[2])
    length = b"%d" % (len(body) + number * len(BLOCK))
    fields = [(b"content-type", b"text/plain"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    for piece in http_common.blocks(number):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    common.announce(sock)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", log_level="warning", access_log=False, backlog=4096
    )
    uvicorn.Server(config).run(sockets=[sock])
