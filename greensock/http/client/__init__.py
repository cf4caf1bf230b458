"""greensock.http.client: the HTTP/1.1 client.

The modules, lowest first; each imports only what stands above it:

================  ====================================================================================================
origin            where a URL leads
deadlines         how long the phases of a request may take
payload           what is sent behind the head
connection_pool   the connections: made, leased, taken back
exchange          one request on a connection, and the head of its answer
http_client       blocking calls over kept connections
websocket_client  a WebSocket to a server
================  ====================================================================================================
"""
