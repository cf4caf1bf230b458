"""greensock.proxy: the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` and
``greensock.limits`` any module, and of greensock what it exports:

=================  =====================================================================================================
passwords          names and passwords in a file, checked in threads
path_patterns      regular expressions for paths
prefixes           answers of a server that does not know where it stands
answer_buffer      what came of an answer and its client has not taken yet
forwarded          who the client is, and which fields are passed on
rules              edits of fields, static answers, redirects, error pages
log                the access log, and the error log
options            what a proxy is told of its upstreams, its timeouts and its log
guard              limits for each client address, and bans
routes             which route a request takes
proxy_protocol     what a proxy in front says before a connection's first byte
failure            what can go wrong, what is answered then, and whether another server may be asked
upstream           the servers behind the proxy: chosen, watched, connected to
client_room        how many connections clients have, in all workers together
gateway            what the listeners of a proxy share
proxy_connection   a client's connection, and what is kept for that client
error_lines        lines of the error log about one request
relay              what is known of one request on its way, and what it holds
admission          whether a request may pass: by a password, by what another server says
tunnel             bytes both ways, after 101
response_relay     the answer's way back
upstream_request   the request as it goes to a server
request_relay      one request: which server answers it, and which one is tried next
ordinary_exchange  the ordinary request and its answer, in one function
proxy_server       the reverse proxy: listeners, upcalls, bodies that come slowly
proxy_figures      what operators are told of a proxy
program_operators  the operators' address of a proxy that is one process
environment        values from the environment in a configuration
units              sizes and times as people write them
key_lines          the lines of a TOML file, where each key stands
config_tables      tables of a configuration, each made into an object
config             a configuration: read, checked, and made into a gateway
server_names       servers whose names do not resolve
proxy_program      a proxy as a program of one process: started, read anew, ended
=================  =====================================================================================================
"""

from greensock.proxy.config import ConfigError, ProxyConfig, check_listeners, load_config, parse_config
from greensock.proxy.config_tables import ConfigProblem
from greensock.proxy.forwarded import Forwarding
from greensock.proxy.gateway import Gateway
from greensock.proxy.guard import Guard, GuardOptions, GuardStatistics, Refusal
from greensock.proxy.log.access_log import AccessLog
from greensock.proxy.log.error_log import ErrorLog
from greensock.proxy.log.log_lines import combined_line, json_line
from greensock.proxy.log.record import Record
from greensock.proxy.options import (
    BasicAuth,
    Buffering,
    ForwardAuth,
    ListenOptions,
    ListenPlace,
    ListenTLS,
    LogOptions,
    ProxyTimeouts,
    ServerOptions,
    UpstreamOptions,
    UpstreamTLS,
)
from greensock.proxy.proxy_program import CannotStart, ProxyProgram
from greensock.proxy.proxy_protocol import (
    MAX_PROXY_HEADER,
    BadProxyHeader,
    ProxyHeader,
    parse_proxy_header,
    write_proxy_header,
)
from greensock.proxy.proxy_server import ReverseProxy
from greensock.proxy.relay import Relay
from greensock.proxy.routes import Route
from greensock.proxy.rules import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer
from greensock.proxy.server_names import check_names
from greensock.proxy.upstream.health import HealthOptions, HealthStatistics, Standing
from greensock.proxy.upstream.request_keys import key_of
from greensock.proxy.upstream.servers import ServerStatus
from greensock.proxy.upstream.sticky import StickyCookie

__all__ = [
    "MAX_PROXY_HEADER",
    "AccessLog",
    "BadProxyHeader",
    "BasicAuth",
    "Buffering",
    "CannotStart",
    "ConfigError",
    "ConfigProblem",
    "ErrorLog",
    "ErrorPage",
    "ErrorPages",
    "FieldEdits",
    "ForwardAuth",
    "Forwarding",
    "Gateway",
    "Guard",
    "GuardOptions",
    "GuardStatistics",
    "HealthOptions",
    "HealthStatistics",
    "ListenOptions",
    "ListenPlace",
    "ListenTLS",
    "LogOptions",
    "ProxyConfig",
    "ProxyHeader",
    "ProxyProgram",
    "ProxyTimeouts",
    "Record",
    "Redirect",
    "Refusal",
    "Relay",
    "ReverseProxy",
    "Route",
    "ServerOptions",
    "ServerStatus",
    "Standing",
    "StaticAnswer",
    "StickyCookie",
    "UpstreamOptions",
    "UpstreamTLS",
    "check_listeners",
    "check_names",
    "combined_line",
    "json_line",
    "key_of",
    "load_config",
    "parse_config",
    "parse_proxy_header",
    "write_proxy_header",
]
