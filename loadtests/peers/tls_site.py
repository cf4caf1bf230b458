"""greensock's HTTPServer over TLS: a small answer."""

from gevent import monkey

monkey.patch_all()

import os

from greensock import TLS
from greensock.http import HTTPServer, Request, Response
from loadtests.peers import common, http_common
from loadtests.peers.http_common import SMALL


class Origin(HTTPServer):
    def handle_request(self, request: Request) -> Response:
        return Response(SMALL)


if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    server = Origin(sock, tls=TLS(os.environ["GREENSOCK_CERT"], os.environ["GREENSOCK_KEY"]))
    server.start()
    common.announce(sock)
    server.serve_forever()
