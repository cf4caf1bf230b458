"""greensock.limits: what clients may do, and how that is known to all processes of a server.

The layers, lowest first; each imports only what stands above it:

=============  =========================================================================================================
networks       addresses as text, and networks that hold them
access_lists   who may come, and who may not: networks, also from files that are read anew
client_table   a table of clients in memory that processes share
client_limits  what the clients of a server may do
redis_share    rates that hold across machines
=============  =========================================================================================================
"""
