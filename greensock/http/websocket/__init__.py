"""greensock.http.websocket: WebSocket (RFC 6455) on a connection, for servers and clients.

The modules, lowest first; each imports only what stands above it:

=================  ===================================================================================================
websocket_options  what may be said of WebSockets: limits, pings, compression
deflate            permessage-deflate (RFC 7692): what is agreed on, and both ways of it, with a bound
frames             frames and messages as bytes, without I/O
handshake          what a client asks and a server answers, without I/O
keep_alive         one timer pings all that are silent, and says which did not answer
websocket          the WebSocket itself: its downcalls, and what it does with what comes
=================  ===================================================================================================

Why the frames are greensock's own: on websockets' sans-I/O ``ServerProtocol`` an echo of 64 characters cost 0.6 x what
websockets' server on uvloop takes, and an idle one 3.5 kB; here it is below 0.3 x, and 0.3 kB. That protocol leaves to
its user what a server must be strict about, too: messages of several frames, UTF-8, and when to end. It is what the
tests compare with.
"""
