"""bjoern, a WSGI server in C on libev."""

import bjoern

from loadtests.peers import common, http_common

if __name__ == "__main__":
    sock = http_common.listener(http_common.options())
    common.announce(sock)
    bjoern.server_run(sock, http_common.wsgi_app)
