"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
rules           edits of fields, static answers, redirects, error pages
options         what a proxy is told of its upstreams, its timeouts and its log
routes          which route a request takes
record          what is known of one request when it is over
==============  ====================================================================================
"""

from greensock.http.proxy.options import LogOptions, ProxyTimeouts, ServerOptions, UpstreamOptions
from greensock.http.proxy.record import Record
from greensock.http.proxy.routes import BadPath, Route, Routes
from greensock.http.proxy.rules import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer

__all__ = [
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
]
