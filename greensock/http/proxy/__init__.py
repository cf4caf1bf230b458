"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
networks        addresses as text, and networks that hold them
forwarded       who the client is, and which fields are passed on
balance         which server of a group a request goes to
health          what is known of one server: from requests, and from checks
budget          how many requests may be sent a second time
rules           edits of fields, static answers, redirects, error pages
options         what a proxy is told of its upstreams, its timeouts and its log
routes          which route a request takes
record          what is known of one request when it is over
==============  ====================================================================================
"""

from greensock.http.proxy.forwarded import Forwarder, Forwarding
from greensock.http.proxy.networks import Networks
from greensock.http.proxy.options import LogOptions, ProxyTimeouts, ServerOptions, UpstreamOptions
from greensock.http.proxy.record import Record
from greensock.http.proxy.routes import BadPath, Route, Routes
from greensock.http.proxy.rules import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer

__all__ = ["Forwarder", "Forwarding", "Networks", "Record"]
from greensock.http.proxy.balance import Balancer, Candidate, balancer_of
from greensock.http.proxy.budget import RetryBudget
from greensock.http.proxy.health import Health, HealthOptions, HealthStatistics, Standing
from greensock.http.proxy.record import Record

__all__ = [
    "Balancer",
    "Candidate",
    "Health",
    "HealthOptions",
    "HealthStatistics",
    "Record",
    "RetryBudget",
    "Standing",
    "balancer_of",
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
