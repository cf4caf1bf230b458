"""What every example does on the command line: take ``--bind``, say where it listens, serve until SIGTERM."""

from __future__ import annotations

import argparse
import resource
import sys
from typing import Any, TypeVar

from greensock import DatagramServer, Server

__all__ = ["run"]


Kind = TypeVar("Kind", bound="Server[Any] | DatagramServer")


def run(kind: type[Kind], description: str | None, **flags: str) -> Kind:
    """Serve until the program is told to end, and return the server that has stopped.

    ``flags`` are options of the server that can be given, each with what it says of itself.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bind", default="127.0.0.1:5000", metavar="HOST:PORT", help="default: %(default)s")
    for name, words in flags.items():
        parser.add_argument(f"--{name}", help=words)
    chosen = parser.parse_args()
    try:
        server = kind(chosen.bind, **{name: getattr(chosen, name) for name in flags})
    except ValueError as error:
        parser.error(str(error))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor; the usual 1,024 are few
    try:
        server.start()
    except OSError as error:
        sys.exit(f"cannot listen: {error}")
    except ValueError as error:
        parser.error(str(error))
    host = f"[{server.server_host}]" if ":" in str(server.server_host) else server.server_host
    print(f"listening on {host}:{server.server_port}", flush=True)
    server.serve_forever()
    return server
