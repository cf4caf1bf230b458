"""greensock.http: HTTP/1.1 on greensock's public names.

Its parts, lowest first; each imports only what stands above it, and of greensock what it exports:

=============  =======================================================================================================
errors         why a message was refused, and whose fault it is
wire           messages as bytes: parsers and writers, without I/O
incoming_body  a body that is read as it comes, of a request or of an answer
websocket      WebSocket, whichever side of it
server         one request after the other, each answered
client         blocking calls over kept connections
wsgi           takes the place of ``gevent.pywsgi.WSGIServer``
=============  =======================================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greensock import PoolStatistics
from greensock.http.client.authorization import Bearer
from greensock.http.client.client_response import ClientResponse
from greensock.http.client.deadlines import Timeouts
from greensock.http.client.http_client import HTTPClient, HTTPSession
from greensock.http.client.retries import Retries
from greensock.http.client.websocket_client import WebSocketRefused, connect_websocket
from greensock.http.errors import (
    BadMessage,
    BadRequest,
    BadResponse,
    BodyTimeout,
    ConnectTimeout,
    HeadTimeout,
    Phase,
    PhaseTimeout,
    QueueFull,
    QueueTimeout,
    Reason,
    SendTimeout,
    StatusError,
    TotalTimeout,
)
from greensock.http.server.compression import Compression
from greensock.http.server.filters import BodyFilter
from greensock.http.server.forms import Form, FormLimits, UploadedFile
from greensock.http.server.http_server import HTTPConnection, HTTPServer
from greensock.http.server.http_stats import HTTPStatistics
from greensock.http.server.query_fields import QueryFields
from greensock.http.server.request import Request, RequestBody
from greensock.http.server.response import FileBody, HTTPError, Response
from greensock.http.server.route_table import RouteTable
from greensock.http.server.server_sent_events import ServerSentEvent, send_events
from greensock.http.server.static_files import send_directory, send_file
from greensock.http.server.stream import ResponseStream
from greensock.http.websocket.websocket import WebSocket, WebSocketClosed, WebSocketState
from greensock.http.websocket.websocket_options import WebSocketOptions
from greensock.http.wire.events import (
    END_OF_INPUT,
    NEED_DATA,
    SWITCHED,
    Data,
    EndOfMessage,
    RequestHead,
    ResponseHead,
    Signal,
)
from greensock.http.wire.headers import Headers
from greensock.http.wire.hop_by_hop import end_to_end, end_to_end_trailers
from greensock.http.wire.limits import Limits
from greensock.http.wire.request_parser import RequestParser
from greensock.http.wire.response_parser import ResponseParser
from greensock.http.wire.writer import (
    LAST_CHUNK,
    format_date,
    phrase_of,
    write_chunk,
    write_last_chunk,
    write_request_head,
    write_response_head,
)
from greensock.http.wsgi.wsgi_server import WSGIServer

if TYPE_CHECKING:
    from greensock.http.client.requests_adapter import RequestsAdapter as RequestsAdapter

__all__ = [
    "END_OF_INPUT",
    "LAST_CHUNK",
    "NEED_DATA",
    "SWITCHED",
    "BadMessage",
    "BadRequest",
    "BadResponse",
    "Bearer",
    "BodyFilter",
    "BodyTimeout",
    "ClientResponse",
    "Compression",
    "ConnectTimeout",
    "Data",
    "EndOfMessage",
    "FileBody",
    "Form",
    "FormLimits",
    "HTTPClient",
    "HTTPConnection",
    "HTTPError",
    "HTTPServer",
    "HTTPSession",
    "HTTPStatistics",
    "HeadTimeout",
    "Headers",
    "Limits",
    "Phase",
    "PhaseTimeout",
    "PoolStatistics",
    "QueryFields",
    "QueueFull",
    "QueueTimeout",
    "Reason",
    "Request",
    "RequestBody",
    "RequestHead",
    "RequestParser",
    "Response",
    "ResponseHead",
    "ResponseParser",
    "ResponseStream",
    "Retries",
    "RouteTable",
    "SendTimeout",
    "ServerSentEvent",
    "Signal",
    "StatusError",
    "Timeouts",
    "TotalTimeout",
    "UploadedFile",
    "WSGIServer",
    "WebSocket",
    "WebSocketClosed",
    "WebSocketOptions",
    "WebSocketRefused",
    "WebSocketState",
    "connect_websocket",
    "end_to_end",
    "end_to_end_trailers",
    "format_date",
    "phrase_of",
    "send_directory",
    "send_events",
    "send_file",
    "write_chunk",
    "write_last_chunk",
    "write_request_head",
    "write_response_head",
]


def __getattr__(name: str) -> Any:
    """Load what needs requests when it is asked for: who has no use for it need not have it."""
    if name == "RequestsAdapter":
        from greensock.http.client.requests_adapter import RequestsAdapter

        return RequestsAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
