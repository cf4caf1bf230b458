"""The parts of the reverse proxy.

The layers, lowest first; each imports only what stands above it, of ``greensock.http`` what stands above the proxy
there, and of greensock what it exports:

==============  ====================================================================================
balance         which server of a group a request goes to
keys            what requests are told apart by: the client, a field, a cookie
sticky          the signed cookie that keeps a client at its server
health          what is known of one server: from requests, and from checks
budget          how many requests may be sent a second time
record          what is known of one request when it is over
checks          active health checks
==============  ====================================================================================
"""

from greensock.http.proxy.balance import Balancer, Candidate, balancer_of
from greensock.http.proxy.budget import RetryBudget
from greensock.http.proxy.checks import Checker
from greensock.http.proxy.health import Health, HealthOptions, HealthStatistics, Standing
from greensock.http.proxy.keys import key_of
from greensock.http.proxy.record import Record
from greensock.http.proxy.sticky import StickyCookie

__all__ = [
    "Balancer",
    "Candidate",
    "Checker",
    "Health",
    "HealthOptions",
    "HealthStatistics",
    "Record",
    "RetryBudget",
    "Standing",
    "StickyCookie",
    "balancer_of",
    "key_of",
]
