"""granian with a WSGI application: one worker, HTTP/1.1 only. It is a server in Rust, and binds by itself."""

import socket
import threading
import time

from granian import Granian
from granian.constants import HTTPModes, Interfaces

from loadtests.peers import common, http_common

#: Seconds between two looks whether it listens.
PAUSE = 0.05


def announce(host: str, port: int) -> None:
    """Say where it listens, once it does."""
    while True:
        try:
            with socket.create_connection((host, port)) as sock:
                break
        except ConnectionRefusedError:
            time.sleep(PAUSE)
    print(f"listening on {host}:{port}", flush=True)
    del sock


if __name__ == "__main__":
    with http_common.listener(http_common.options()) as free:
        host, port = free.getsockname()[:2]
    threading.Thread(target=announce, args=(host, port), daemon=True).start()
    Granian(
        "loadtests.peers.http_common:wsgi_app",
        host,
        port,
        interface=Interfaces.WSGI,
        workers=1,
        http=HTTPModes.http1,
        backlog=common.BACKLOG,
        log_enabled=False,
    ).serve()
