"""greensock's WSGIServer."""

from gevent import monkey

monkey.patch_all()

from greensock.http import WSGIServer
from loadtests.peers import common, http_common

if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    server = WSGIServer(sock, http_common.wsgi_app, log=None)
    server.start()
    common.announce(sock)
    server.serve_forever()
