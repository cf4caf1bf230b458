"""greensock.http.wire: messages as bytes, without I/O: what comes is fed, events come out.

The modules, lowest first; each imports only what stands above it:

===============  =====================================================================================================
limits           how much of a message is taken
syntax           the small grammar of fields, targets and chunks
scan             where the parts of a head are
headers          the fields of a head or of trailers
hop_by_hop       which fields a proxy passes on
target           a request's target and its authority
events           what a parser tells
inbox            the bytes that were fed and not yet taken
lines            sections of lines: found whole, then lexed
plain_heads      heads that are plain: lexed line by line, from memory where a line was seen before
body_length      how long a body is, by its head (RFC 9112 section 6.3)
body_parser      bodies: by length, in chunks, until close
message_parser   bytes in, events out: what both parsers have in common
request_parser   what a server reads
response_parser  what a client or a gateway reads
writer           heads, chunks and trailers, as bytes
ordinary_heads   heads that are ordinary, read in one go
===============  =====================================================================================================

The two of heads that are read in one go run compiled where they could be (see ``greensock/choice.py``).
"""

from greensock.choice import look_for_compiled

look_for_compiled(__name__, __path__)
