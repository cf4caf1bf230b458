"""greensock.proxy.upstream: the servers behind the proxy.

The modules, lowest first; each imports only what stands above it:

=============  =======================================================================================================
balance        which server of a group a request goes to
request_keys   what requests are told apart by: the client, a field, a cookie
sticky         the signed cookie that keeps a client at its server
health         what is known of one server: from requests, and from checks
retry_budget   how many requests may be sent a second time
health_checks  active health checks
servers        the servers of a group, and the connections to them
=============  =======================================================================================================
"""
