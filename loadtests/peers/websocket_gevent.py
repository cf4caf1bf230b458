"""gevent-websocket, of 2017, on gevent's pywsgi."""

from gevent import monkey

monkey.patch_all()

from typing import Any

from gevent import pywsgi
from gevent.socket import socket
from geventwebsocket.handler import WebSocketHandler

from loadtests.peers import common, http_common
from loadtests.peers.websocket_wsgi import application

if __name__ == "__main__":
    sock: Any = http_common.listener(http_common.options())
    wrapped = socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    server = pywsgi.WSGIServer(wrapped, application, log=None, handler_class=WebSocketHandler)
    server.start()
    common.announce(wrapped)
    server.serve_forever()
