"""``python -m loadtests.tls``: what TLS costs, in CPU of the server, beside uvloop, gevent and a bare loop in C.

Each server runs in a process of its own, on a core of its own where there are two; ``tls_load.c`` drives it, with
OpenSSL, from another. Rivals are interleaved: within a round a case is measured on every server before the next case
is. The medians of all rounds are printed, and with ``--output`` all numbers are written as JSON. Needs a C compiler,
OpenSSL's headers (Debian: ``libssl-dev``) and the program ``openssl``, which makes the certificates.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtests.native import build
from loadtests.process import GENERATOR_CORES, Peer, program_of

__all__ = ["CASES", "SERVERS", "main", "measured"]

LIBRARIES = ("-lssl", "-lcrypto")
SERVERS = ("tls_greensock", "tls_uvloop", "tls_gevent", "tls_epoll")
#: Seconds that idle connections are given to settle.
SETTLING = 0.3


@dataclass(frozen=True, slots=True)
class LoadCase:
    """What is measured: how ``tls_load`` is told, and in what unit that is."""

    mode: str
    connections: int
    unit: str = "us"
    key: str = "ec"
    size: int = 65536


CASES = {
    "echo, 64 connections": LoadCase("echo", 64),
    "echo, 1,000 connections": LoadCase("echo", 1000),
    "handshake, P-256": LoadCase("full", 16),
    "handshake, P-256, resumed": LoadCase("resumed", 16),
    "handshake, RSA-2048": LoadCase("full", 16, key="rsa"),
    "idle connection": LoadCase("idle", 2000, "kB"),
    "download, writes of 16 KiB": LoadCase("download", 4, "us/MB", size=16384),
    "download, writes of 64 KiB": LoadCase("download", 4, "us/MB"),
}


def certificates(place: Path) -> None:
    """Make a certificate for each kind of key."""
    kinds = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"]}
    for name, kind in kinds.items():
        command = ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        subprocess.run(
            [*command, "-keyout", place / f"{name}.key", "-out", place / f"{name}.pem"], check=True, capture_output=True
        )


def measured(name: str, case: LoadCase, place: Path, seconds: float) -> float:
    """Measure one case on one server."""
    command = program_of(name) if name != "tls_epoll" else [str(build("peers/tls_epoll.c", LIBRARIES))]
    serve = ("--mode", "download" if case.mode == "download" else "echo", "--size", str(case.size))
    files = ("--cert", str(place / f"{case.key}.pem"), "--key", str(place / f"{case.key}.key"))
    with Peer(name, *serve, *files, command=command) as peer:
        host, _, port = peer.address.rpartition(":")
        words = [host, port, case.mode, case.connections, seconds, seconds / 4, peer.pid]
        load = ["taskset", "-c", ",".join(map(str, GENERATOR_CORES)), str(build("tls_load.c", LIBRARIES))]
        before = peer.memory().rss
        with subprocess.Popen(
            [*load, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if case.mode == "idle":
                process.stdout.readline()
                time.sleep(SETTLING)
                held = (peer.memory().rss - before) / case.connections / 1024
                process.stdin.close()
                process.wait()
                return held
            process.stdin.close()
            said = process.stdout.read()
        if process.returncode:
            raise RuntimeError(f"{name}: the load ended with {process.returncode}")
    found = json.loads(said)
    return float(found["server_seconds"] / max(found["operations"], 1e-9) * 1e6)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.tls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--cases", default="", help="those whose names begin so, separated by semicolons")
    parser.add_argument("--output", help="a file for all numbers, as JSON")
    options = parser.parse_args(arguments)
    wanted = tuple(filter(None, options.cases.split(";"))) or ("",)
    cases = {name: case for name, case in CASES.items() if name.startswith(wanted)}
    found: dict[str, dict[str, list[float]]] = {name: {server: [] for server in SERVERS} for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        certificates(place)
        for turn in range(options.rounds):
            for name, case in cases.items():
                for step in range(len(SERVERS)):
                    server = SERVERS[(turn + step) % len(SERVERS)]
                    found[name][server].append(measured(server, case, place, options.seconds))
    print(f"{'':28}" + "".join(f"{server:>16}" for server in SERVERS))
    for name, values in found.items():
        shown = "".join(f"{median(values[server]):16.1f}" for server in SERVERS)
        print(f"{name:28}{shown} {cases[name].unit}", flush=True)
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
