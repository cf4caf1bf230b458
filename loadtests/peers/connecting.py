"""A client that connects, exchanges 64 bytes and closes, again and again; what that took of CPU time, as JSON."""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import time
from collections.abc import Callable

import gevent
from gevent.socket import create_connection

#: Exchanges before the time is taken.
WARMUP = 200
#: What is sent, and comes back.
MESSAGE = bytes(range(64))
#: Seconds that each of them may take; both clients are told.
PATIENCE = 10.0


def greensock(address: tuple[str, int]) -> Callable[[], bytes]:
    from greensock import Connection, connect

    def exchange() -> bytes:
        conn: Connection = connect(address, timeout=PATIENCE)
        conn.send(MESSAGE)
        found = bytes(conn.recv(len(MESSAGE), timeout=PATIENCE))
        conn.close()
        return found

    return exchange


def with_gevent(address: tuple[str, int]) -> Callable[[], bytes]:
    def exchange() -> bytes:
        sock = create_connection(address, PATIENCE)
        sock.sendall(MESSAGE)
        found = bytes(sock.recv(len(MESSAGE)))
        sock.close()
        return found

    return exchange


def main() -> None:
    kinds = {"greensock": greensock, "gevent": with_gevent}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=32, help="made at the same time, each by a greenlet")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    exchange = kinds[options.kind]((host, int(port)))
    wrong, done = 0, 0
    for _ in range(WARMUP):
        wrong += exchange() != MESSAGE
    until = time.monotonic() + options.seconds

    def go_on() -> None:
        nonlocal wrong, done
        while time.monotonic() < until:
            wrong += exchange() != MESSAGE
            done += 1

    began, cpu = time.monotonic(), time.process_time()
    gevent.joinall([gevent.spawn(go_on) for _ in range(options.connections)], raise_error=True)
    spent, seconds = time.process_time() - cpu, time.monotonic() - began
    print(json.dumps({"asked": done, "wrong": wrong, "cpu": spent, "seconds": seconds}))


if __name__ == "__main__":
    main()
