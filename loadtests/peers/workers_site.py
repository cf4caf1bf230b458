"""What ``greensock run`` serves in ``workers_http``."""

from greensock.http import HTTPServer, Request, Response
from loadtests.peers.http_common import SMALL


class Site(HTTPServer):
    """Answers 100 bytes."""

    def handle_request(self, request: Request) -> Response:
        return Response(SMALL)
