"""greensock's HTTPServer with WebSockets, in upcalls."""

from gevent import monkey

monkey.patch_all()

from typing import Any

from greensock.http import HTTPServer, WebSocket
from loadtests.peers import common, http_common


class Echo(HTTPServer):
    def websocket_message(self, websocket: WebSocket, message: Any) -> None:
        websocket.send(message)


if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    server = Echo(sock)
    server.start()
    common.announce(sock)
    server.serve_forever()
