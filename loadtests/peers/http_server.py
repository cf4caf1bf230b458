"""greensock's HTTPServer."""

from gevent import monkey

monkey.patch_all()

from greensock.http import HTTPServer, Request, Response
from loadtests.peers import common, http_common
from loadtests.peers.http_common import BLOCK, FIXED


class Origin(HTTPServer):
    def handle_request(self, request: Request) -> Response:
        if request.method == "POST":
            verified = request.path == "/verify"
            return Response((http_common.verify if verified else http_common.count)(request.body))
        if request.path in FIXED:
            return Response(FIXED[request.path])
        number = int(request.path.rpartition("/")[2])
        return Response(http_common.blocks(number), headers={"Content-Length": str(number * len(BLOCK))})


if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    server = Origin(sock)
    server.start()
    common.announce(sock)
    server.serve_forever()
