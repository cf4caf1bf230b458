"""greensock's HTTPServer with WebSockets, in the blocking style."""

from gevent import monkey

monkey.patch_all()

from greensock.http import HTTPServer, Request
from loadtests.peers import common, http_common


class Echo(HTTPServer):
    def handle_request(self, request: Request) -> None:
        with request.upgrade_websocket() as websocket:
            for message in websocket:
                websocket.send(message)


if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    server = Echo(sock)
    server.start()
    common.announce(sock)
    server.serve_forever()
