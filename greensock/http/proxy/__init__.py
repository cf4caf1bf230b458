"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
rules           edits of fields, static answers, redirects, error pages
options         what a proxy is told of its upstreams, its timeouts and its log
routes          which route a request takes
record          what is known of one request when it is over
log_lines       what a record looks like in the access log
access_log      the access log, written by a thread
==============  ====================================================================================
"""

from greensock.http.proxy.access_log import AccessLog
from greensock.http.proxy.log_lines import combined_line, json_line
from greensock.http.proxy.options import LogOptions, ProxyTimeouts, ServerOptions, UpstreamOptions
from greensock.http.proxy.record import Record
from greensock.http.proxy.routes import BadPath, Route, Routes
from greensock.http.proxy.rules import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer

__all__ = [
    "AccessLog",
    "BadPath",
    "ErrorPage",
    "ErrorPages",
    "FieldEdits",
    "LogOptions",
    "ProxyTimeouts",
    "Record",
    "Redirect",
    "Route",
    "Routes",
    "ServerOptions",
    "StaticAnswer",
    "UpstreamOptions",
    "combined_line",
    "json_line",
]
