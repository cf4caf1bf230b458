"""greensock.http.wsgi: the WSGI server.

The modules, lowest first; each imports only what stands above it:

==============  ========================================================================================================
wsgi_arguments  what pywsgi is given, and what that means here
wsgi_input      what an application is given
wsgi_socket     the socket of a request that asks for an upgrade
wsgi_websocket  the WebSocket of one that asks for that
wsgi_call       one call of it, and the answer's way out
wsgi_server     takes the place of ``gevent.pywsgi.WSGIServer``
==============  ========================================================================================================
"""
