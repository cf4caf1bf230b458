"""A proxy of gevent's pywsgi and geventhttpclient: kept connections to the upstream, bodies streamed both ways."""

from gevent import monkey

monkey.patch_all()

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPSocketPoolResponse

from loadtests.peers import http_common
from loadtests.peers.http_common import HOP_BY_HOP
from loadtests.peers.pywsgi_main import run


def request_headers(environ: dict[str, Any]) -> dict[str, str]:
    headers = {name[5:].replace("_", "-").title(): value for name, value in environ.items() if name.startswith("HTTP_")}
    headers = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
    if environ.get("CONTENT_LENGTH"):
        headers["Content-Length"] = environ["CONTENT_LENGTH"]
    headers["X-Forwarded-For"] = environ["REMOTE_ADDR"]
    headers["X-Forwarded-Proto"] = environ["wsgi.url_scheme"]
    return headers


class Body:
    """The upstream's answer, piece by piece; given back to the pool at its end."""

    def __init__(self, answer: HTTPSocketPoolResponse) -> None:
        self.answer = answer

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.answer.read(65536):
            yield bytes(piece)

    def close(self) -> None:
        self.answer.release()


class Proxy:
    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self.client = HTTPClient(host, int(port), concurrency=128, connection_timeout=60, network_timeout=60)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        target = environ["PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else "")
        body = environ["wsgi.input"] if environ.get("CONTENT_LENGTH") else b""
        answer = self.client.request(environ["REQUEST_METHOD"], target, body=body, headers=request_headers(environ))
        fields = [(str(name), str(value)) for name, value in answer.headers if name.lower() not in HOP_BY_HOP]
        start_response(f"{answer.status_code} {answer.status_message}", fields)
        return Body(answer)


if __name__ == "__main__":
    options = http_common.options()
    run(Proxy(options.upstream), options)
