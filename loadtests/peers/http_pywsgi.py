"""gevent.pywsgi, without its log. Accepted sockets have TCP_NODELAY from the listener, which pywsgi does not set."""

from gevent import monkey

monkey.patch_all()

from loadtests.peers import http_common
from loadtests.peers.pywsgi_main import run

if __name__ == "__main__":
    run(http_common.wsgi_app, http_common.options())
