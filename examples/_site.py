"""What the reverse proxy has behind it when it is told of no server: a small site, and an echo over WebSocket."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

from greensock import Connection, Server
from greensock.http import HTTPError, HTTPServer, Request, Response

__all__ = ["Site", "WebSocketEcho"]

PAGE = """<!doctype html><title>greensock</title>
<h1>It works</h1>
<p>This page came through the proxy. <a href="/download/1048576">A download</a>, <a href="/headers">the request's
fields as they arrived</a>. Over a WebSocket the server says: <b id="answer">...</b></p>
<script>
const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/echo`);
socket.onopen = () => socket.send("hello through the proxy");
socket.onmessage = event => { document.getElementById("answer").textContent = event.data; };
</script>
"""
#: What a server of WebSockets appends to the client's key (RFC 6455 section 1.3).
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BLOCK = b"0123456789abcdef" * 4096


class Site(HTTPServer):
    """A page, a download, an upload, and what it was asked."""

    def handle_request(self, request: Request) -> Response:
        match request.method, request.path.split("/"):
            case "GET" | "HEAD", ["", ""]:
                return Response(PAGE, content_type="text/html; charset=utf-8")
            case "GET" | "HEAD", ["", "headers"]:
                return Response("".join(f"{name}: {value}\n" for name, value in request.headers))
            case "GET" | "HEAD", ["", "download", size] if size.isdigit() and len(size) < 13:
                return Response(blocks(int(size)), headers={"Content-Length": size})
            case "POST" | "PUT", ["", "upload"]:
                return Response.json({"bytes": sum(map(len, request.body))})
        raise HTTPError(404)


def blocks(size: int) -> Iterator[bytes]:
    for start in range(0, size, len(BLOCK)):
        yield BLOCK[: size - start]


class WebSocketEcho(Server):
    """Sends every short message back (RFC 6455)."""

    idle_timeout = 300.0

    def handle(self, conn: Connection) -> None:
        head = conn.read_until(b"\r\n\r\n", 16384) or b""
        fields = _fields_of(head)
        key = fields.get(b"sec-websocket-key")
        if key is None:
            conn.send(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", close=True)
            return
        accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
        conn.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        while frame := _read_frame(conn):
            opcode, data = frame
            conn.send(bytes([0x80 | (opcode if opcode != 9 else 10), len(data)]) + data, close=opcode == 8)
            if opcode == 8:
                return


def _fields_of(head: bytes) -> dict[bytes, bytes]:
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in pairs}


def _read_frame(conn: Connection) -> tuple[int, bytes] | None:
    """Return opcode and data of a masked frame of less than 126 bytes; None at the end, or if it is another."""
    start = conn.read_exactly(2)
    if not start or not start[1] & 0x80 or start[1] & 0x7F > 125:
        return None
    mask, data = conn.read_exactly(4), conn.read_exactly(start[1] & 0x7F)
    if mask is None or data is None:
        return None
    return start[0] & 0x0F, bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
