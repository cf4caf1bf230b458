"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
networks        addresses as text, and networks that hold them
forwarded       who the client is, and which fields are passed on
balance         which server of a group a request goes to
keys            what requests are told apart by: the client, a field, a cookie
sticky          the signed cookie that keeps a client at its server
health          what is known of one server: from requests, and from checks
budget          how many requests may be sent a second time
rules           edits of fields, static answers, redirects, error pages
options         what a proxy is told of its upstreams, its timeouts and its log
routes          which route a request takes
proxy_protocol  what a proxy in front says before a connection's first byte
guard           limits for each client address, and bans
record          what is known of one request when it is over
log_lines       what a record looks like in the access log
access_log      the access log, written by a thread
failure         what can go wrong, what is answered then, and whether another server may be asked
checks          active health checks
servers         the servers of a group, and the connections to them
tunnel          bytes both ways, after 101
passing         the answer's way back
asking          the request's way to a server
relay           one request on its way
gateway         what the listeners of a proxy share
server          the reverse proxy
tables          tables of a configuration, each made into an object
config          a configuration: read, checked, and made into a gateway
==============  ============================================================================="""

from greensock.http.proxy.access_log import AccessLog
from greensock.http.proxy.config import ConfigError, ProxyConfig, check_listeners, load_config, parse_config
from greensock.http.proxy.forwarded import Forwarding
from greensock.http.proxy.gateway import Gateway
from greensock.http.proxy.guard import Guard, GuardOptions, GuardStatistics, Refusal
from greensock.http.proxy.health import HealthOptions, HealthStatistics, Standing
from greensock.http.proxy.keys import key_of
from greensock.http.proxy.log_lines import combined_line, json_line
from greensock.http.proxy.options import ListenOptions, LogOptions, ProxyTimeouts, ServerOptions, UpstreamOptions
from greensock.http.proxy.proxy_protocol import (
    MAX_PROXY_HEADER,
    BadProxyHeader,
    ProxyHeader,
    parse_proxy_header,
    write_proxy_header,
)
from greensock.http.proxy.record import Record
from greensock.http.proxy.relay import Relay
from greensock.http.proxy.routes import Route
from greensock.http.proxy.rules import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer
from greensock.http.proxy.server import ReverseProxy
from greensock.http.proxy.servers import ServerStatus
from greensock.http.proxy.sticky import StickyCookie
from greensock.http.proxy.tables import ConfigProblem

__all__ = [
    "MAX_PROXY_HEADER",
    "AccessLog",
    "BadProxyHeader",
    "ConfigError",
    "ConfigProblem",
    "ErrorPage",
    "ErrorPages",
    "FieldEdits",
    "Forwarding",
    "Gateway",
    "Guard",
    "GuardOptions",
    "GuardStatistics",
    "HealthOptions",
    "HealthStatistics",
    "ListenOptions",
    "LogOptions",
    "ProxyConfig",
    "ProxyHeader",
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
    "check_listeners",
    "combined_line",
    "json_line",
    "key_of",
    "load_config",
    "parse_config",
    "parse_proxy_header",
    "write_proxy_header",
]
