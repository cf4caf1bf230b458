"""greensock.locust: users for Locust, over greensock's connections (``pip install 'greensock[locust]'``).

The modules, lowest first; each imports only what stands above it:

===============  =====================================================================================================
paced_user       when a request should have gone out, and how it is reported
http_answer      what a request of an ``HTTPUser`` returns
http_user        takes the place of Locust's FastHttpUser
exchange_user    exchanges of messages, each timed, named and checked
connection_user  over TCP, TLS and Unix sockets
datagram_user    over UDP
websocket_user   over WebSockets
===============  =====================================================================================================

To import this imports Locust, which patches the standard library, as gevent does.
"""

from greensock.locust.connection_user import ConnectionUser
from greensock.locust.datagram_user import DatagramUser
from greensock.locust.exchange_user import ExchangeUser, MeasuredExchange
from greensock.locust.http_answer import BadStatusCode, HTTPAnswer
from greensock.locust.http_user import HTTPUser, HTTPUserClient
from greensock.locust.paced_user import PacedUser
from greensock.locust.websocket_user import WebSocketUser

__all__ = [
    "BadStatusCode",
    "ConnectionUser",
    "DatagramUser",
    "ExchangeUser",
    "HTTPAnswer",
    "HTTPUser",
    "HTTPUserClient",
    "MeasuredExchange",
    "PacedUser",
    "WebSocketUser",
]
