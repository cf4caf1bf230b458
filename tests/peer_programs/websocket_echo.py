"""An echo over WebSocket, and a few other manners, by the path that is asked for. Of the library websockets."""

import http
import json
import signal
import socket
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

LARGEST = 4 << 20
#: How connections ended: what they asked for, and the code.
ended = []


def handle(conn):
    path = conn.request.path
    try:
        if path == "/ended":
            conn.send(json.dumps(ended))
        elif path == "/close-first":
            conn.close(4321, "enough")
        elif path == "/fragments":
            conn.send(iter(["one ", "two ", "three"]))
            conn.send(iter([b"\0" * 100_000, b"\1" * 100_000]))
        elif path == "/ping":
            conn.send("alive" if conn.ping().wait(10) else "dead")
        elif path == "/drop":
            # close() would send no FIN while the thread that receives is in recv().
            conn.socket.shutdown(socket.SHUT_RDWR)
        else:
            for message in conn:
                conn.send(message)
    except ConnectionClosed:
        pass
    finally:
        conn.close()
        ended.append([path, conn.protocol.close_code])


def refuse(conn, request):
    """Answer without switching."""
    if request.path == "/refused":
        return conn.respond(http.HTTPStatus.FORBIDDEN, "not you\n")
    return None


def choose(conn, offered):
    return next((name for name in ("chat.v2", "chat.v1") if name in offered), None)


with serve(
    handle, "127.0.0.1", 0, max_size=LARGEST, process_request=refuse, select_subprotocol=choose, subprotocols=[]
) as server:
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"port {server.socket.getsockname()[1]}", flush=True)
    server.serve_forever()
