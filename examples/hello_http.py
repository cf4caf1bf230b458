"""Says hello over HTTP, counts the bytes of an upload, and streams a countdown."""

from gevent import monkey

monkey.patch_all()

import sys
import time
from collections.abc import Iterator

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/hello_http.py` finds the others

from examples._main import run
from greensock.http import HTTPError, HTTPServer, Request, Response


class Hello(HTTPServer):
    def handle_request(self, request: Request) -> Response:
        match request.method, request.path:
            case "GET" | "HEAD", "/":
                return Response(f"hello, {request.client_address[0]}\n")
            case "POST", "/":
                size = sum(map(len, request.body))  # streams: the upload may be larger than memory
                return Response.json({"bytes": size})
            case "GET" | "HEAD", "/countdown":
                return Response(countdown(3), content_type="text/plain")
            case _, "/" | "/countdown":
                raise HTTPError(405, headers={"Allow": "GET, HEAD, POST" if request.path == "/" else "GET, HEAD"})
        raise HTTPError(404)


def countdown(start: int) -> Iterator[bytes]:
    for number in range(start, 0, -1):
        yield b"%d\n" % number
        time.sleep(0.1)  # patched: only this client waits


if __name__ == "__main__":
    run(Hello, __doc__)
