"""Whether anything is left of very many TLS handshakes: descriptors, greenlets, objects, memory, at either end.

    python tests/tls_soak.py --handshakes 100000      # what ``make soak-tls`` does, in three minutes

A server in a process of its own, and clients in this one: handshakes in full and resumed, of TLS 1.2 and 1.3, some
connections cut without close_notify, some handshakes left in the middle, and some bytes that are none. A tenth of them
goes before the first look, so that what is kept for good (sessions, workers, the allocator's arenas) is there by then.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import gc
import itertools
import json
import os
import random
import ssl
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from gevent.fileobject import FileObjectThread
from greenlet import greenlet

sys.path.insert(0, str(Path(__file__).resolve().parent))

import trustme

from greensock import TLS, Connection, Server, connect

#: Clients at the same time; how many of a hundred do what is unusual.
CLIENTS = 16
KINDS = {"full": 40, "resumed": 35, "cut": 10, "left": 10, "garbage": 5}
#: What may be more after than before: greenlets (workers), objects that the collector knows, and bytes, for each
#: handshake, for all, and for each session that OpenSSL keeps for clients of TLS 1.2 that take no tickets (20,480).
MORE_GREENLETS, MORE_OBJECTS, BYTES_EACH, BYTES_ALL, BYTES_SESSION = 3, 600, 30, 6 << 20, 1400
#: Seconds that a client may take, and until all is settled.
PATIENCE, SETTLING = 20.0, 10.0
#: Seconds between two looks.
LOOK = 0.05


class Echo(Server[Connection]):
    """Sends back what comes."""

    def connection_recv(self, conn: Connection, data: bytes) -> None:
        conn.send(data)


def seen() -> dict[str, int]:
    """Return what this process holds."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    greenlets = sum(isinstance(each, greenlet) and not each.dead for each in gc.get_objects())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "greenlets": greenlets,
        "objects": len(gc.get_objects()),
        "bytes": resident,
    }


def serve() -> None:
    """Serve until standard input ends; for each line there say what is held, once all connections have ended."""
    lines = FileObjectThread(sys.stdin)  # which does not stop the hub
    text = lines.readline().encode().decode("unicode_escape")
    server = Echo(("127.0.0.1", 0), tls=TLS(text), linger_timeout=1.0)
    server.start()
    print(server.server_port, flush=True)
    while lines.readline():
        due = time.monotonic() + SETTLING
        while server.connections_alive and time.monotonic() < due:
            gevent.sleep(LOOK)
        counted = server.statistics()
        kept = server.tls.server_context().session_stats()["number"]  # type: ignore[union-attr]
        told = {
            "sessions": kept,
            "made": counted.handshakes,
            "failed": counted.handshakes_failed,
            "alive": counted.active,
        }
        print(json.dumps({**seen(), **told}), flush=True)


class Load:
    """Clients that shake hands."""

    def __init__(self, address: tuple[str, int], authorities: bytes) -> None:
        self.address = address
        self.done: Counter[str] = Counter()
        options: dict[str, Any] = {"authorities": authorities}
        versions = [{"maximum_version": "1.2"}, {}]
        self._fresh = [TLS(session_tickets=False, **options, **each) for each in versions]
        self._resuming = [TLS(**options, **each) for each in versions]
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        try:
            context.wrap_bio(into, out, server_hostname="localhost").do_handshake()
        except ssl.SSLWantReadError:
            pass
        self._hello = out.read()

    def run(self, count: int) -> None:
        """Do that many."""
        numbers = itertools.count()
        jobs = [gevent.spawn(self._client, numbers, count) for _ in range(CLIENTS)]
        gevent.joinall(jobs, raise_error=True)

    def _client(self, numbers: itertools.count[int], count: int) -> None:
        kinds, weights = list(KINDS), list(KINDS.values())
        while next(numbers) < count:
            kind = random.choices(kinds, weights)[0]
            if kind in ("left", "garbage"):
                self._plain(kind)
            else:
                self._talk(kind)
            self.done[kind] += 1

    def _plain(self, kind: str) -> None:
        with connect(self.address, timeout=PATIENCE) as conn:
            conn.linger_timeout = 0.0
            conn.send(self._hello[: random.randrange(1, len(self._hello))] if kind == "left" else os.urandom(100))

    def _talk(self, kind: str) -> None:
        tls = random.choice(self._resuming if kind == "resumed" else self._fresh)
        with connect(self.address, tls=tls, server_hostname="localhost", timeout=PATIENCE) as conn:
            conn.linger_timeout = 0.0
            conn.send(b"hello")
            if conn.read_exactly(5, timeout=PATIENCE) != b"hello":
                raise AssertionError("another answer")
            if kind == "cut":
                conn.abort()


def play(handshakes: int) -> tuple[list[str], str]:
    """Do them; return what is left that should not be, and a line on all of it."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    pem = b"".join(part.bytes() for part in leaf.cert_chain_pems) + leaf.private_key_pem.bytes()
    command = [sys.executable, __file__, "--serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(line: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        try:
            port = int(ask(pem.decode().replace("\n", "\\n")))
            load = Load(("127.0.0.1", port), authority.cert_pem.bytes())
            load.run(max(100, handshakes // 10))
            before = json.loads(ask("look")), seen()
            began = time.monotonic()
            load.run(handshakes)
            took = time.monotonic() - began
            due = time.monotonic() + SETTLING
            while len(os.listdir("/proc/self/fd")) > before[1]["descriptors"] and time.monotonic() < due:
                gevent.sleep(LOOK)
            after = json.loads(ask("look")), seen()
        finally:
            process.kill()
    trouble = []
    more_sessions = after[0]["sessions"] - before[0]["sessions"]
    more_bytes = BYTES_ALL + BYTES_EACH * handshakes + BYTES_SESSION * more_sessions
    for who, first, last in (("server", before[0], after[0]), ("clients", before[1], after[1])):
        for what, most in (
            ("descriptors", 0),
            ("greenlets", MORE_GREENLETS),
            ("objects", MORE_OBJECTS),
            ("bytes", more_bytes),
        ):
            if last[what] - first[what] > most:
                trouble.append(f"{who}: {what}: {first[what]:,} before, {last[what]:,} after")
    if after[0]["alive"]:
        trouble.append(f"server: {after[0]['alive']} connections are alive")
    made = after[0]["made"] - before[0]["made"]
    grown = ", ".join(
        f"{who} {(last['bytes'] - first['bytes']) / 1024:+,.0f} kB and {last['objects'] - first['objects']:+} objects"
        for who, first, last in (("server", before[0], after[0]), ("clients", before[1], after[1]))
    )
    told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(load.done.items()))
    line = f"{made:,} handshakes in {took:.0f} s ({told}; failed {after[0]['failed']}): {grown}; "
    line += f"{after[0]['descriptors']} descriptors and {after[0]['greenlets']} greenlets at the server, as before"
    line += f"; {after[0]['sessions']:,} sessions kept there"
    return trouble, line if not trouble else line.replace(", as before", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handshakes", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    trouble, line = play(options.handshakes)
    print(line)
    for each in trouble:
        print("  left:", each)
    return int(bool(trouble))


if __name__ == "__main__":
    sys.exit(main())
