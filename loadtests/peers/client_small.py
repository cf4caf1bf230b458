"""An HTTP client that asks for a small answer again and again; what that took of CPU time, as JSON."""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import time
from collections.abc import Callable

import gevent

from loadtests.peers.http_common import SMALL

#: Requests before the time is taken.
WARMUP = 200


def greensock(address: str, connections: int) -> Callable[[], bytes]:
    from greensock.http import HTTPClient

    client, url = HTTPClient(max_connections=connections), f"http://{address}/small"

    def ask() -> bytes:
        with client.get(url) as answer:
            return answer.read_all()

    return ask


def geventhttpclient(address: str, connections: int) -> Callable[[], bytes]:
    from geventhttpclient import HTTPClient

    host, _, port = address.rpartition(":")
    client = HTTPClient(host, int(port), concurrency=connections)

    def ask() -> bytes:
        return bytes(client.get("/small").read())

    return ask


def useragent(address: str, connections: int) -> Callable[[], bytes]:
    from geventhttpclient.useragent import UserAgent

    client, url = UserAgent(concurrency=connections), f"http://{address}/small"

    def ask() -> bytes:
        return bytes(client.urlopen(url).content)

    return ask


def main() -> None:
    kinds = {"greensock": greensock, "geventhttpclient": geventhttpclient, "useragent": useragent}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=32, help="used at the same time, each by a greenlet")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    ask = kinds[options.kind](options.address, options.connections)
    wrong, asked = 0, 0
    for _ in range(WARMUP):
        wrong += ask() != SMALL
    until = time.monotonic() + options.seconds

    def go_on() -> None:
        nonlocal wrong, asked
        while time.monotonic() < until:
            wrong += ask() != SMALL
            asked += 1

    began, cpu = time.monotonic(), time.process_time()
    gevent.joinall([gevent.spawn(go_on) for _ in range(options.connections)], raise_error=True)
    spent, seconds = time.process_time() - cpu, time.monotonic() - began
    print(json.dumps({"asked": asked, "wrong": wrong, "cpu": spent, "seconds": seconds}))


if __name__ == "__main__":
    main()
