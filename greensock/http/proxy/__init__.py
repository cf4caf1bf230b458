"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
record          what is known of one request when it is over
==============  ====================================================================================
"""

from greensock.http.proxy.record import Record

__all__ = ["Record"]
