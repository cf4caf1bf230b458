"""greensock.http.client: the HTTP/1.1 client.

The modules, lowest first; each imports only what stands above it:

================  ====================================================================================================
origin            where a URL leads
authorization     who asks, and who may know
deadlines         how long the phases of a request may take
payload           what is sent behind the head
sent_forms        what programs give to be sent: parameters, forms, files, JSON
content_coding    undoes gzip, deflate, br and zstd (no I/O)
charset           in what an answer's text is written (no I/O)
cookie_store      what is kept of what servers set
proxy_choice      which proxy leads to a server
connection_pool   the connections: made, leased, taken back
tunnels           a pool of connections through proxies
exchange          one request on a connection, and the head of its answer
retries           when a request is made again (no I/O)
client_response   an answer, and its body as it comes
journey           a request on its way to its answer: redirections, cookies, retries
http_client       blocking calls over kept connections
websocket_client  a WebSocket to a server
requests_adapter  takes the place of what requests connects with
================  ====================================================================================================
"""
