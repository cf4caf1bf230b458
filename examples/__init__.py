"""Servers to read and to start from; each runs as ``python -m examples.NAME --bind HOST:PORT``.

echo    the upcalls at their shortest
lines   a key-value store over lines, in the blocking style
chat    one sends, all receive; who reads too slowly is dropped, and nobody waits for him
udp_echo  the same with datagrams
statsd    counts for statsd clients, over UDP, and says once in a while what
sink    takes messages of 64 bytes and says how many a second: the server of ``make run``

hello_http   a web server
live_chat    a chat in the browser over WebSockets, on one machine or on several
wsgi_app     a Flask application
"""
