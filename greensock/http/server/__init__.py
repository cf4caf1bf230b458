"""greensock.http.server: the HTTP/1.1 server.

The modules, lowest first; each imports only what stands above it:

===============  =====================================================================================================
stream           where an answer goes that is not HTTP/1.1 on the connection itself
request          a request as the program sees it
response         an answer as the program gives it
filters          what changes the body of an answer on its way out
http_stats       what a server counted
head_watch       until when heads must be whole
response_writer  how an answer goes out
http_server      one request after the other, each answered
===============  =====================================================================================================
"""
