"""greensock.http: HTTP/1.1 on greensock's public names.

The layers, lowest first; each imports only what stands above it, and of greensock what it exports:

===============  ===================================================================================
errors           why a message was refused, and whose fault it is
limits           how much of a message is taken
syntax           the small grammar of fields, targets and chunks
headers          the fields of a head or of trailers
hopbyhop         which fields a proxy passes on
target           a request's target and its authority
events           what a parser tells
inbox            the bytes that were fed and not yet taken
lines            sections of lines: found whole, then lexed
plain            heads that are plain: lexed line by line, from memory where a line was seen before
framing          which body a head announces
body             bodies: by length, in chunks, until close
parser           bytes in, events out: what both parsers have in common
request_parser   what a server reads
response_parser  what a client or a gateway reads
writer           the reverse
origin           where a URL leads
pool             which connection a request of a client gets
request          a request as the program sees it
response         an answer as the program gives it
stats            what a server counted
head_watch       until when heads must be whole
answering        how an answer goes out
server           one request after the other, each answered
wsgi_input       what a WSGI application is given
wsgi_socket      what one is given that asks for an upgrade
wsgi_answer      one call of it, and the answer's way out
wsgi             takes the place of ``gevent.pywsgi.WSGIServer``
deadlines        how long the phases of a client's request may take
payload          what a client sends behind the head
links            the connections of a client: made, lent, taken back
exchange         one request on a connection, and the head of its answer
client           blocking calls over kept connections
proxy            the reverse proxy: a package with layers of its own
===============  ===================================================================================
"""

from greensock.http.client import ClientResponse, HTTPClient
from greensock.http.deadlines import Timeouts
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
    TotalTimeout,
)
from greensock.http.events import (
    END_OF_INPUT,
    NEED_DATA,
    SWITCHED,
    Data,
    EndOfMessage,
    RequestHead,
    ResponseHead,
    Signal,
)
from greensock.http.headers import Headers
from greensock.http.hopbyhop import end_to_end, end_to_end_trailers
from greensock.http.limits import Limits
from greensock.http.pool import PoolStatistics
from greensock.http.proxy import (
    MAX_PROXY_HEADER,
    AccessLog,
    BadProxyHeader,
    ConfigError,
    ConfigProblem,
    ErrorPage,
    ErrorPages,
    FieldEdits,
    Forwarding,
    Gateway,
    Guard,
    GuardOptions,
    GuardStatistics,
    HealthOptions,
    HealthStatistics,
    ListenOptions,
    LogOptions,
    ProxyConfig,
    ProxyHeader,
    ProxyTimeouts,
    Record,
    Redirect,
    Refusal,
    Relay,
    ReverseProxy,
    Route,
    ServerOptions,
    ServerStatus,
    Standing,
    StaticAnswer,
    StickyCookie,
    UpstreamOptions,
    check_listeners,
    combined_line,
    json_line,
    key_of,
    load_config,
    parse_config,
    parse_proxy_header,
    write_proxy_header,
)
from greensock.http.request import Request, RequestBody
from greensock.http.request_parser import RequestParser
from greensock.http.response import FileBody, HTTPError, Response
from greensock.http.response_parser import ResponseParser
from greensock.http.server import HTTPConnection, HTTPServer
from greensock.http.stats import HTTPStatistics
from greensock.http.writer import (
    LAST_CHUNK,
    format_date,
    phrase_of,
    write_chunk,
    write_last_chunk,
    write_request_head,
    write_response_head,
)
from greensock.http.wsgi import WSGIServer

__all__ = [
    "END_OF_INPUT",
    "LAST_CHUNK",
    "MAX_PROXY_HEADER",
    "NEED_DATA",
    "SWITCHED",
    "AccessLog",
    "BadMessage",
    "BadProxyHeader",
    "BadRequest",
    "BadResponse",
    "BodyTimeout",
    "ClientResponse",
    "ConfigError",
    "ConfigProblem",
    "ConnectTimeout",
    "Data",
    "EndOfMessage",
    "ErrorPage",
    "ErrorPages",
    "FieldEdits",
    "FileBody",
    "Forwarding",
    "Gateway",
    "Guard",
    "GuardOptions",
    "GuardStatistics",
    "HTTPClient",
    "HTTPConnection",
    "HTTPError",
    "HTTPServer",
    "HTTPStatistics",
    "HeadTimeout",
    "Headers",
    "HealthOptions",
    "HealthStatistics",
    "Limits",
    "ListenOptions",
    "LogOptions",
    "Phase",
    "PhaseTimeout",
    "PoolStatistics",
    "ProxyConfig",
    "ProxyHeader",
    "ProxyTimeouts",
    "QueueFull",
    "QueueTimeout",
    "Reason",
    "Record",
    "Redirect",
    "Refusal",
    "Relay",
    "Request",
    "RequestBody",
    "RequestHead",
    "RequestParser",
    "Response",
    "ResponseHead",
    "ResponseParser",
    "ReverseProxy",
    "Route",
    "SendTimeout",
    "ServerOptions",
    "ServerStatus",
    "Signal",
    "Standing",
    "StaticAnswer",
    "StickyCookie",
    "Timeouts",
    "TotalTimeout",
    "UpstreamOptions",
    "WSGIServer",
    "check_listeners",
    "combined_line",
    "end_to_end",
    "end_to_end_trailers",
    "format_date",
    "json_line",
    "key_of",
    "load_config",
    "parse_config",
    "parse_proxy_header",
    "phrase_of",
    "write_chunk",
    "write_last_chunk",
    "write_proxy_header",
    "write_request_head",
    "write_response_head",
]
