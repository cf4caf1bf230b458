"""A request and its answer as gunicorn's hooks and loggers are told of them: the attributes of gunicorn's own.

They are made only where a hook or a log wants them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from greensock.http.server.request import Request
from greensock.http.server.response import Response
from greensock.http.wire.writer import phrase_of

__all__ = ["ToldAnswer", "ToldRequest", "elapsed"]


class ToldRequest:
    """What ``pre_request``, ``post_request`` and ``logger.access`` get as the request; as ``gunicorn.http.message``."""

    def __init__(self, request: Request, scheme: str) -> None:
        target = request.target.decode("latin-1")
        path, _, query = target.partition("?")
        self.method = request.method
        #: The target as it came.
        self.uri = target
        self.path = request.raw_path.decode("latin-1") if target[:1] != "/" else path
        self.query = query
        self.fragment = ""
        self.version = (1, 0) if request.version == "1.0" else (1, 1)
        #: The fields, their names in upper case.
        self.headers = [
            (name.decode("latin-1").upper(), value.decode("latin-1")) for name, value in request.headers.raw
        ]
        self.trailers: list[tuple[str, str]] = []
        self.body = request.body
        self.scheme = scheme
        self.peer_addr = self.remote_addr = request.client_address
        self.req_number = getattr(request.connection, "requests", 1)
        #: What the PROXY header of the connection says, if there is one: ``proxy_protocol``.
        self.proxy_protocol_info: dict[str, Any] | None = getattr(request.connection, "introduction", None)

    def should_close(self) -> bool:
        """Whether the client asked for the end of its connection: the server says ``close`` by itself."""
        return dict(self.headers).get("CONNECTION", "").lower() == "close" or self.version == (1, 0)


class ToldAnswer:
    """What ``post_request`` and ``logger.access`` get as the answer; see ``gunicorn.http.wsgi.Response``."""

    def __init__(self, response: Response, sent: int, headers_sent: bool) -> None:
        self.status_code = response.status
        self.status = f"{response.status} {phrase_of(response.status).decode('latin-1')}"
        self.headers = [
            (name.decode("latin-1"), value.decode("latin-1").rstrip("\r\n")) for name, value in response.headers.raw
        ]
        #: Bytes of the body that went out.
        self.sent = sent
        self.response_length = sent
        self.headers_sent = headers_sent


def elapsed(seconds: float) -> timedelta:
    """Return a duration as gunicorn's loggers want it."""
    return timedelta(seconds=max(0.0, seconds))
