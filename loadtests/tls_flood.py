"""A flood of TLS handshakes at a server of HTTP, and what others notice of it.

    python -m loadtests.tls_flood HOST:PORT SILENT BEGUN SECONDS   # the flood, until standard input ends

``measured`` starts a server, has the flood begin in a process of its own, and meanwhile asks over kept connections and
over fresh ones, at fixed rates, and tells how long that took.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from statistics import median

from loadtests import measure_tls
from loadtests.measure import Values
from loadtests.peers.http_common import SMALL
from loadtests.process import GENERATOR_CORES, ROOT, Group
from loadtests.transfer import unverified

__all__ = ["measured"]

#: Connections that are kept and asked over, and those that are made anew, one after the other.
KEPT, FRESH = 8, 2
#: Seconds between two requests of one of them: of a kept one, and of a fresh one.
PAUSE, LONG_PAUSE = 0.01, 0.02
#: Seconds that an answer may take.
PATIENCE = 10.0
#: Seconds that a handshake is left in the middle before its client goes.
LEFT = 0.05
REQUEST = b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Asking:
    """Asks until it is told to end, and keeps how long each answer took."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, is_fresh: bool) -> None:
        self.took: list[float] = []
        self.failures: list[str] = []
        self.over = False
        self._address = address
        self._context = context
        self._thread = threading.Thread(target=self._ask_fresh if is_fresh else self._ask_kept)
        self._thread.start()

    def end(self) -> None:
        self.over = True
        self._thread.join()

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(self._address, PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(plain, server_hostname="localhost")

    def _ask(self, sock: ssl.SSLSocket) -> None:
        sock.sendall(REQUEST)
        data = b""
        while not data.endswith(SMALL):
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError("the connection ended")
            data += piece
        if not data.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"answered {data[:50]!r}")

    def _ask_kept(self) -> None:
        try:
            with self._connect() as sock:
                while not self.over:
                    began = time.perf_counter()
                    self._ask(sock)
                    self.took.append(time.perf_counter() - began)
                    time.sleep(PAUSE)
        except OSError as error:
            self.failures.append(repr(error))

    def _ask_fresh(self) -> None:
        while not self.over:
            began = time.perf_counter()
            try:
                with self._connect() as sock:
                    self._ask(sock)
            except OSError as error:
                self.failures.append(repr(error))
            else:
                self.took.append(time.perf_counter() - began)
            time.sleep(LONG_PAUSE)


def percentile(values: list[float], share: float) -> float | None:
    """Return the value, in microseconds, that so many of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e6 if values else None


def measured(name: str, *, silent: int, begun: int, seconds: float) -> Values:
    """What others wait for an answer while the flood goes on."""
    with Group(name, environment={**os.environ, **measure_tls.named_files()}) as server:
        host, _, port = server.address.rpartition(":")
        command = [sys.executable, "-m", "loadtests.tls_flood", server.address, str(silent), str(begun)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
            assert flood.stdin is not None
            assert flood.stdout is not None
            os.sched_setaffinity(flood.pid, GENERATOR_CORES)
            try:
                flood.stdout.readline()  # the silent ones are connected
                before, context = server.cpu_ns(), unverified()
                asking = [
                    *(Asking((host, int(port)), context, False) for _ in range(KEPT)),
                    *(Asking((host, int(port)), context, True) for _ in range(FRESH)),
                ]
                time.sleep(seconds)
                for each in asking:
                    each.end()
                spent = server.cpu_ns() - before
            finally:
                flood.stdin.close()
                flood.wait()
    kept = [took for each in asking[:KEPT] for took in each.took]
    fresh = [took for each in asking[KEPT:] for took in each.took]
    failures = [failure for each in asking for failure in each.failures]
    return {
        "messages": len(kept) + len(fresh),
        "seconds": seconds,
        "rate": (len(kept) + len(fresh)) / seconds,
        "server_load": spent / 1e9 / seconds,
        "p50_us": median(kept) * 1e6 if kept else None,
        "p99_us": percentile(kept, 0.99),
        "max_us": percentile(kept, 1.0),
        "fresh_p50_us": median(fresh) * 1e6 if fresh else None,
        "fresh_p99_us": percentile(fresh, 0.99),
        "failed": len(failures),
        "failures": {"wrong or closed": len(failures)} if failures else {},
        "last_error": failures[-1] if failures else "",
    }


def hello() -> bytes:
    """Return how a handshake begins."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        unverified().wrap_bio(into, out, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def main(host: str, port: int, silent: int, begun: int) -> None:
    """Flood until standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    quiet = [socket.create_connection((host, port), PATIENCE) for _ in range(silent)]
    print("connected", len(quiet), flush=True)
    flight, left = hello(), []
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()) if begun else None)[0]:
        now = time.monotonic()
        due += 1 / begun
        sock = socket.create_connection((host, port), PATIENCE)
        sock.sendall(flight)
        left.append((now + LEFT, sock))
        while left and left[0][0] <= now:
            left.pop(0)[1].close()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    main(host, int(port), int(sys.argv[2]), int(sys.argv[3]))
