"""gevent's StreamServer: a greenlet and a blocking handler per connection."""

from gevent import monkey

monkey.patch_all()

import gevent
from gevent.server import StreamServer
from gevent.socket import socket

from loadtests.peers import common

OPTIONS = common.options()


def echo(sock: socket, address: object) -> None:
    while data := sock.recv(OPTIONS.recv):
        sock.sendall(data)


def sink(sock: socket, address: object) -> None:
    while sock.recv(OPTIONS.recv):
        pass


def slow(sock: socket, address: object) -> None:
    while data := sock.recv(OPTIONS.recv):
        if data[0] == common.SLOW_BYTE:
            gevent.sleep(common.SLOW_SECONDS)
        sock.sendall(data)


def main() -> None:
    sock = common.listener(OPTIONS)
    server = StreamServer(sock, {"echo": echo, "sink": sink, "slow": slow}[OPTIONS.mode])
    server.start()
    common.announce(sock)
    server.serve_forever()


if __name__ == "__main__":
    main()
