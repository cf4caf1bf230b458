"""greensock: servers as a class of upcalls that may block, on gevent's hub, at the cost of an epoll loop.

The layers, lowest first; each imports only what stands above it:

=================  ===================================================================================
errors             every exception, told apart by whose fault it is; why a connection ended
framing            framers: cut a stream into messages (no I/O)
address            how addresses are written, and sockets that listen
options, stats     what a server can be told; what it counted
log_limit          a bound on the log lines that strangers can cause
syscalls           the system calls of the hot path
descriptors        how many of them may go to what can be done without
pipes              the pipes of one hub, for what goes from socket to socket
workers            the pool of parked greenlets in which upcalls run
poller             the engine: one epoll set per hub, wake-ups, deadlines
fairness           others get their turn in the middle of what takes long
transport          what a connection reads from and writes to in the place of its descriptor
pace               how fast a peer takes what is sent to it
outgoing           what waits to be sent on a connection
lifecycle          a connection's fields and states, and how it closes
sending            the downcalls that write
receiving          the downcalls that read
connection         one connection: what needs both
client             ``connect``: connections of one's own
upcalls            what a server calls, and the verdicts
idle               the idle limit of a server
turns              what a server does with a connection that is ready
acceptor           takes connections out of the kernel's queue
signals            what signals do while servers serve
server             options; start, drain, stop
socket_connection  a connection with the methods of a socket
stream_server      takes the place of ``gevent.server.StreamServer``
=================  ===================================================================================
"""

from greensock.client import connect
from greensock.connection import Connection
from greensock.descriptors import share_of_descriptors
from greensock.errors import (
    ConnectFailed,
    ConnectionBusy,
    ConnectionClosed,
    ConnectionLost,
    DropReason,
    GreensockError,
    IncompleteMessage,
    LimitExceeded,
    MessageTooLong,
    OperationTimeout,
    ProtocolError,
    WouldBlock,
)
from greensock.fairness import let_others_run
from greensock.framing import Delimited, FixedSize, Framer, LengthPrefixed, Lines
from greensock.lifecycle import State
from greensock.log_limit import LogLimit
from greensock.options import Rule, ServerKeywords, ServerSettings
from greensock.server import Server
from greensock.socket_connection import SocketConnection
from greensock.stats import ConnectionStatistics, ServerStatistics
from greensock.stream_server import StreamServer
from greensock.upcalls import DROP, HALF_OPEN, OK, POSTPONE, ConnectionT, Verdict
from greensock.version import __version__

__all__ = [
    "DROP",
    "HALF_OPEN",
    "OK",
    "POSTPONE",
    "ConnectFailed",
    "Connection",
    "ConnectionBusy",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionStatistics",
    "ConnectionT",
    "Delimited",
    "DropReason",
    "FixedSize",
    "Framer",
    "GreensockError",
    "IncompleteMessage",
    "LengthPrefixed",
    "LimitExceeded",
    "Lines",
    "LogLimit",
    "MessageTooLong",
    "OperationTimeout",
    "ProtocolError",
    "Rule",
    "Server",
    "ServerKeywords",
    "ServerSettings",
    "ServerStatistics",
    "SocketConnection",
    "State",
    "StreamServer",
    "Verdict",
    "WouldBlock",
    "__version__",
    "connect",
    "let_others_run",
    "share_of_descriptors",
]
