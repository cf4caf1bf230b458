"""``wsgi.websocket`` on greensock's WSGIServer; and the application that gevent-websocket serves, too."""

from gevent import monkey

monkey.patch_all()

from collections.abc import Iterable
from typing import Any

from greensock.http import WSGIServer
from loadtests.peers import common, http_common

__all__ = ["application"]


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Echo until the end."""
    websocket = environ["wsgi.websocket"]
    while (message := websocket.receive()) is not None:
        websocket.send(message)
    return []


if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    server = WSGIServer(sock, application, log=None)
    server.start()
    common.announce(sock)
    server.serve_forever()
