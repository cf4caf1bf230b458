"""greensock, by upcalls, over TLS."""

from gevent import monkey

monkey.patch_all()

from greensock import TLS, Connection, Server
from loadtests.peers import common


class Echo(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> None:
        conn.send(data)


class Download(Server):
    def connection_recv(self, conn: Connection, data: bytes) -> None:
        piece = bytes(OPTIONS.size)
        while True:
            conn.send(piece)


OPTIONS = common.options()


def main() -> None:
    sock = common.listener(OPTIONS)
    kind = {"echo": Echo, "download": Download}[OPTIONS.mode]
    server = kind(sock, recv_size=OPTIONS.recv, tls=TLS(OPTIONS.cert, OPTIONS.key))
    server.start()
    common.announce(sock)
    server.serve_forever()


if __name__ == "__main__":
    main()
