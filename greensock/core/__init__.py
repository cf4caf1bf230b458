"""greensock.core: the engine. One unit: what begins with an underscore is private to this folder, not to its module.

The layers, lowest first; each imports only what stands above it, and of greensock's own modules those above ``core``:

=================  ===================================================================================================
syscalls           the system calls of the hot path
pipes              the pipes of one hub, for what goes from socket to socket
workers            the pool of parked greenlets in which upcalls run
poller             one epoll set per hub, wake-ups, deadlines
forks              what the child of a fork lets go of
fairness           others get their turn in the middle of what takes long
transport          what a connection reads from and writes to in the place of its descriptor
pace               how fast a peer takes what is sent to it
send_queue         what waits to be sent on a connection
lifecycle          a connection's fields and states, and how it closes
sending            the downcalls that write
receiving          the downcalls that read
connection         one connection: what needs both
sctp               connections of SCTP, as bytes or as messages
encrypted          TLS on a connection
handshakes         the TLS handshakes of a server
connector          ``connect``: connections of one's own
upcalls            what a server calls, and the verdicts
idle               the idle limit of a server
turns              what a server does with a connection that is ready
sampling           how late the hub is, how long turns and upcalls take: looked at a few times a second
limiter            what the clients of a server may do
acceptor           takes connections out of the kernel's queue
dialling           connections that a server makes
signals            what signals do while servers serve
server             start, drain, stop
datagram_calls     the system calls of datagrams
datagrams          a socket of datagrams, and who gets what came
datagram_server    the server of datagrams
datagram_client    ``connect_datagram``: a datagram socket with one peer
socket_connection  a connection with the methods of a socket
=================  ===================================================================================================

The modules that have a ``.pxd`` beside them run compiled where they could be (see ``greensock/choice.py``): all of them
or none, as they know each other's fields.
"""

import sys

from greensock.choice import look_for_compiled

look_for_compiled("greensock", sys.modules["greensock"].__path__)
look_for_compiled(__name__, __path__)
