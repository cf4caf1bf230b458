"""greensock: servers as a class of upcalls that may block, on gevent's hub, at the cost of an epoll loop.

The layers, lowest first; each imports only what stands above it:

==============  ======================================================================================================
choice          whether modules run as they are, or compiled
errors          every exception, told apart by whose fault it is; why a connection ended
tls             what a server or a client is told of TLS, and what a connection tells of it
framing         framers: cut a stream into messages (no I/O)
address         how addresses are written, and sockets that listen
limits          what clients may do, in memory that processes share
server_options  what a server can be told
datagram_rules  what a datagram server can be told
stats           what servers and connections counted
log_limit       a bound on the log lines that peers can cause
descriptors     a bound on the descriptors that optional things may take
shared_pages    memory that the processes of one server share
core            the engine: connections, turns, the server
pool_state      which connection of a pool one gets, and who waits for one (no I/O)
pool_quota      the same, of slots that are shared with others (no I/O)
pool            connections that are kept for the next one who wants one
stream_server   takes the place of ``gevent.server.StreamServer``
http            HTTP/1.1: server, WSGI server, client
operations      what operators see of a server, and tell it
proxy           the reverse proxy
sources         what the command line serves
pid_files       the files that say which process serves
reloading       has a proxy that runs read its configuration anew
gunicorn        many processes, under gunicorn
locust          users for Locust
==============  ======================================================================================================

An underscore is private to its folder: each folder below is one unit.
"""

from greensock.address import PeerCredentials
from greensock.core.connection import Connection
from greensock.core.connector import connect, start_tls
from greensock.core.datagram_client import DatagramConnection, connect_datagram
from greensock.core.datagram_server import DatagramServer
from greensock.core.fairness import let_others_run
from greensock.core.lifecycle import State
from greensock.core.poller import compiled
from greensock.core.sctp import SCTPConnection, SCTPMessage, SCTPMessages
from greensock.core.server import Server
from greensock.core.socket_connection import SocketConnection
from greensock.core.transport import Transport
from greensock.core.upcalls import DROP, HALF_OPEN, OK, POSTPONE, ConnectionT, Verdict
from greensock.datagram_rules import DatagramKeywords
from greensock.descriptors import share_of_descriptors
from greensock.errors import (
    CertificateRefused,
    ConnectFailed,
    ConnectionBusy,
    ConnectionClosed,
    ConnectionLost,
    ConnectionTruncated,
    DropReason,
    GreensockError,
    HandshakeFailed,
    IncompleteMessage,
    LimitExceeded,
    MessageTooLong,
    OperationTimeout,
    ProtocolError,
    Undeliverable,
    WouldBlock,
)
from greensock.framing import Delimited, FixedSize, Framer, LengthPrefixed, Lines
from greensock.limits.client_limits import ClientLimits
from greensock.log_limit import LogLimit
from greensock.pool import ConnectionPool, Lease, Patient, PooledConnection, Waiter
from greensock.pool_state import PoolStatistics
from greensock.server_options import Rule, ServerKeywords, ServerSettings
from greensock.stats import ConnectionStatistics, DatagramStatistics, ServerStatistics
from greensock.stream_server import StreamServer
from greensock.tls import TLS, Certificate, TLSInfo
from greensock.version import __version__

__all__ = [
    "DROP",
    "HALF_OPEN",
    "OK",
    "POSTPONE",
    "TLS",
    "Certificate",
    "CertificateRefused",
    "ClientLimits",
    "ConnectFailed",
    "Connection",
    "ConnectionBusy",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionPool",
    "ConnectionStatistics",
    "ConnectionT",
    "ConnectionTruncated",
    "DatagramConnection",
    "DatagramKeywords",
    "DatagramServer",
    "DatagramStatistics",
    "Delimited",
    "DropReason",
    "FixedSize",
    "Framer",
    "GreensockError",
    "HandshakeFailed",
    "IncompleteMessage",
    "Lease",
    "LengthPrefixed",
    "LimitExceeded",
    "Lines",
    "LogLimit",
    "MessageTooLong",
    "OperationTimeout",
    "Patient",
    "PeerCredentials",
    "PoolStatistics",
    "PooledConnection",
    "ProtocolError",
    "Rule",
    "SCTPConnection",
    "SCTPMessage",
    "SCTPMessages",
    "Server",
    "ServerKeywords",
    "ServerSettings",
    "ServerStatistics",
    "SocketConnection",
    "State",
    "StreamServer",
    "TLSInfo",
    "Transport",
    "Undeliverable",
    "Verdict",
    "Waiter",
    "WouldBlock",
    "__version__",
    "compiled",
    "connect",
    "connect_datagram",
    "let_others_run",
    "share_of_descriptors",
    "start_tls",
]
