"""gevent's StreamServer over TLS: a greenlet and a blocking handler per connection."""

from gevent import monkey

monkey.patch_all()

import ssl

from gevent.server import StreamServer
from gevent.socket import socket

from loadtests.peers import common

OPTIONS = common.options()


def echo(sock: socket, address: object) -> None:
    while data := sock.recv(OPTIONS.recv):
        sock.sendall(data)


def download(sock: socket, address: object) -> None:
    piece = bytes(OPTIONS.size)
    if sock.recv(1):
        while True:
            sock.sendall(piece)


def main() -> None:
    sock = common.listener(OPTIONS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(OPTIONS.cert, OPTIONS.key)
    server = StreamServer(sock, {"echo": echo, "download": download}[OPTIONS.mode], ssl_context=context)
    server.start()
    common.announce(sock)
    server.serve_forever()


if __name__ == "__main__":
    main()
