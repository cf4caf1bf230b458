"""What the users of ``locustfile_http`` find behind the proxy. Every answer follows from its request.

``/page/...``      a text with the request's target in it
``/stream/N``      N blocks of 1 MiB, with their length
``/chunks/N``      the same in chunks
``POST /upload``   length and digest of what came
``/echo``          a WebSocket that sends back what it gets
"""

from gevent import monkey

monkey.patch_all()

import hashlib

from examples._main import run
from greensock import Connection
from greensock.http import HTTPError, HTTPServer, Request, Response
from loadtests.locust_pages import page, receipt
from loadtests.peers.http_common import BLOCK, blocks
from loadtests.websocket import CLOSE, accept_key, frame, read_frame


class Origin(HTTPServer):
    def handle_request(self, request: Request) -> Response:
        kind, _, rest = request.path.lstrip("/").partition("/")
        if request.method == "POST":
            return Response(count(request))
        if kind == "page":
            return Response(page(request.target.decode()))
        if kind in ("stream", "chunks"):
            length = {"Content-Length": str(int(rest) * len(BLOCK))} if kind == "stream" else {}
            return Response(blocks(int(rest)), headers=length)
        if kind == "echo":
            return echo(request)
        raise HTTPError(404)


def count(request: Request) -> bytes:
    length, digest = 0, hashlib.sha256()
    for piece in request.body:
        length += len(piece)
        digest.update(piece)
    return receipt(length, digest.hexdigest())


def echo(request: Request) -> Response:
    """Send frames back until one says close; then the connection ends, and with it HTTP on it."""
    key = request.headers.get("Sec-WebSocket-Key")
    if key is None or (request.headers.get("Upgrade") or "").lower() != "websocket":
        raise HTTPError(426, headers={"Upgrade": "websocket"})
    conn: Connection = request.connection
    head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    conn.send(f"{head}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
    kind = 0
    while kind != CLOSE:
        kind, data = read_frame(lambda count: conn.read_exactly(count) or b"")
        conn.send(frame(kind, data, mask=False))
    conn.close()
    return Response(status=204)  # to nobody


if __name__ == "__main__":
    run(Origin, __doc__)
