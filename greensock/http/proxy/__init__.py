"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
networks        addresses as text, and networks that hold them
forwarded       who the client is, and which fields are passed on
proxy_protocol  what a proxy in front says before a connection's first byte
guard           limits for each client address, and bans
record          what is known of one request when it is over
==============  ====================================================================================
"""

from greensock.http.proxy.forwarded import Forwarder, Forwarding
from greensock.http.proxy.guard import Guard, GuardOptions, GuardStatistics, Refusal
from greensock.http.proxy.networks import Networks
from greensock.http.proxy.proxy_protocol import (
    MAX_PROXY_HEADER,
    BadProxyHeader,
    ProxyHeader,
    parse_proxy_header,
    write_proxy_header,
)
from greensock.http.proxy.record import Record

__all__ = [
    "MAX_PROXY_HEADER",
    "BadProxyHeader",
    "Forwarder",
    "Forwarding",
    "Guard",
    "GuardOptions",
    "GuardStatistics",
    "Networks",
    "ProxyHeader",
    "Record",
    "Refusal",
    "parse_proxy_header",
    "write_proxy_header",
]
