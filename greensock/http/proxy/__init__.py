"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
networks        addresses as text, and networks that hold them
forwarded       who the client is, and which fields are passed on
guard           limits for each client address, and bans
record          what is known of one request when it is over
==============  ====================================================================================
"""

from greensock.http.proxy.forwarded import Forwarder, Forwarding
from greensock.http.proxy.guard import Guard, GuardOptions, GuardStatistics, Refusal
from greensock.http.proxy.networks import Networks
from greensock.http.proxy.record import Record

__all__ = ["Forwarder", "Forwarding", "Guard", "GuardOptions", "GuardStatistics", "Networks", "Record", "Refusal"]
