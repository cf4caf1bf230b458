"""One measurement of one server that speaks TLS: start it, drive it, return numbers, end it.

``tls_load.c`` drives it, with OpenSSL; its own CPU does not count. Needs a C compiler, OpenSSL's headers (Debian:
``libssl-dev``) and the program ``openssl``, which makes the certificates.
"""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
import time
from pathlib import Path

from loadtests.generator import Failed
from loadtests.measure import Values
from loadtests.native import build
from loadtests.process import GENERATOR_CORES, LIBRARIES_OF_TLS, Peer

__all__ = ["certificates", "idle", "measured", "named_files"]

#: Seconds that idle connections are given to settle.
SETTLING = 0.3


@functools.cache
def certificates() -> tempfile.TemporaryDirectory[str]:
    """Make a certificate for each kind of key, once; they go when the process ends."""
    place = tempfile.TemporaryDirectory(prefix="greensock-tls-")
    kinds = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"]}
    for name, kind in kinds.items():
        command = ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        files = ["-keyout", f"{place.name}/{name}.key", "-out", f"{place.name}/{name}.pem"]
        subprocess.run([*command, *files], check=True, capture_output=True)
    return place


def named_files() -> dict[str, str]:
    """Return the variables by which peers that are told no files find the certificate and its key."""
    place = Path(certificates().name)
    return {"GREENSOCK_CERT": str(place / "ec.pem"), "GREENSOCK_KEY": str(place / "ec.key")}


def serving(name: str, key: str, *arguments: str) -> Peer:
    """Return a server that has the certificate of that kind of key."""
    place = Path(certificates().name)
    return Peer(name, *arguments, "--cert", str(place / f"{key}.pem"), "--key", str(place / f"{key}.key"))


def loading(peer: Peer, mode: str, connections: int, seconds: float) -> list[str]:
    """Return the command that drives it."""
    host, _, port = peer.address.rpartition(":")
    words = [host, port, mode, connections, seconds, seconds / 4, peer.pid]
    cores = ",".join(map(str, GENERATOR_CORES))
    return ["taskset", "-c", cores, str(build("tls_load.c", LIBRARIES_OF_TLS)), *map(str, words)]


def measured(name: str, *, mode: str, connections: int, seconds: float, key: str = "ec", size: int = 65536) -> Values:
    """What an echo, a handshake or a MB of a download costs the server."""
    serve = ("--mode", "download" if mode == "download" else "echo", "--size", str(size))
    with serving(name, key, *serve) as peer:
        done = subprocess.run(
            loading(peer, mode, connections, seconds), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    if done.returncode:
        raise Failed(f"{name}: {done.stderr.strip() or 'the load failed'}")
    found = json.loads(done.stdout)
    operations, took = found["operations"], found["seconds"]
    return {
        "messages": operations,
        "seconds": took,
        "rate": operations / took if took else 0.0,
        "server_us": found["server_seconds"] / operations * 1e6 if operations else None,
        "server_load": found["server_seconds"] / took if took else 0.0,
        "failed": int(not operations),
        "failures": {} if operations else {"none": 1},
        "last_error": "",
    }


def idle(name: str, *, connections: int) -> Values:
    """Resident memory of the server for each connection that has echoed once and is silent since."""
    with serving(name, "ec", "--mode", "echo") as peer:
        before = peer.memory()
        with subprocess.Popen(
            loading(peer, "idle", connections, 1.0), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            is_ready = process.stdout.readline() != ""
            time.sleep(SETTLING)
            after = peer.memory()
            process.stdin.close()
            process.wait()
    return {
        "kb": (after.rss - before.rss) / connections / 1024,
        "open": connections if is_ready else 0,
        "failed": 0 if is_ready else connections,
        "failures": {} if is_ready else {"not opened": connections},
        "last_error": "",
    }
