"""greensock.proxy.upstream: the servers behind the proxy.

The modules, lowest first; each imports only what stands above it:

==============  ======================================================================================================
balance         which server of a group a request goes to
request_keys    what requests are told apart by: the client, a field, a cookie
sticky          the signed cookie that keeps a client at its server
health          what is known of one server: from requests, and from checks
retry_budget    how many requests may be sent a second time
health_checks   active health checks
name_lookup     where names lead, asked again and again
shared_table    a document that all workers of a proxy have: what changes seldom
shared_servers  what workers share of the servers: numbers in rows, that table, and who of them leads
server_cap      how many requests a server gets at once, from all workers together
server_specs    which servers a group is to have
servers         the servers of a group, and the connections to them
steward         what a worker tells the others of the servers, and takes over
==============  ======================================================================================================
"""
