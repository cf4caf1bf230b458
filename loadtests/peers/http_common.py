"""What the HTTP peers have in common: what they serve, their options, and the WSGI application.

GET ``/small`` is 100 bytes, ``/large`` a block of 1 MiB, ``/stream/N`` N such blocks. POST ``/upload`` is answered how
many bytes came, and ``/verify`` that too if they are the block again and again, else where they are not.
"""

from __future__ import annotations

import argparse
import random
import resource
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from loadtests.peers import common

__all__ = ["BLOCK", "FIXED", "HOP_BY_HOP", "SMALL", "blocks", "count", "listener", "options", "verify", "wsgi_app"]

SMALL = bytes(ord("a") + at % 26 for at in range(99)) + b"\n"
#: Random, so that a byte that is lost or doubled shifts everything.
BLOCK = random.Random(1).randbytes(2**20)
#: What is answered at once, by path.
FIXED = {"/small": SMALL, "/large": BLOCK}
#: The fields that a proxy does not pass on, in lower case.
HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
TWICE = memoryview(BLOCK + BLOCK)


def options() -> argparse.Namespace:
    """Parse the command line (``bind``, ``upstream``, ``long``) and raise the limit of descriptors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="127.0.0.1:0", help="HOST:PORT")
    parser.add_argument("--upstream", default="", help="HOST:PORT of what a proxy forwards to")
    parser.add_argument("--long", type=int, default=0, metavar="N", help="/stream/N of an origin that serves files")
    chosen = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return chosen


def listener(chosen: argparse.Namespace) -> socket.socket:
    """Return a listening socket like that of the other peers."""
    host, _, port = chosen.bind.rpartition(":")
    return common.listener(common.Options(host, int(port), "http", 0))


def blocks(number: int) -> Iterator[bytes]:
    """Give the block so many times."""
    for _ in range(number):
        yield BLOCK


def count(pieces: Iterable[bytes]) -> bytes:
    """Return how many bytes the pieces have."""
    return b"%d" % sum(map(len, pieces))


def verify(pieces: Iterable[bytes]) -> bytes:
    """Return how many bytes the pieces have if they are the block again and again."""
    at = 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            begin = at % len(BLOCK)
            part, rest = rest[: len(BLOCK)], rest[len(BLOCK) :]
            if bytes(part) != bytes(TWICE[begin : begin + len(part)]):
                return b"wrong within %d bytes from %d on" % (len(part), at)
            at += len(part)
    return b"%d" % at


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve all of it."""
    path, body = environ["PATH_INFO"], None
    if environ["REQUEST_METHOD"] == "POST":
        pieces = iter(partial(environ["wsgi.input"].read, 65536), b"")
        body = (verify if path == "/verify" else count)(pieces)
    elif path in FIXED:
        body = FIXED[path]
    length = int(path.rpartition("/")[2]) * len(BLOCK) if body is None else len(body)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(length))])
    return blocks(length // len(BLOCK)) if body is None else [body]
