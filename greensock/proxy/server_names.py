"""Which servers of a configuration have names that do not resolve: a warning, as they may when they are asked.

All names are asked for at once, each in a thread of its own, and not for long: who looks at a configuration waits.
"""

from __future__ import annotations

import socket
import threading
from time import monotonic

from greensock.proxy.config import ProxyConfig, locate
from greensock.proxy.config_tables import ConfigProblem, Tables

__all__ = ["check_names"]

#: Seconds that all names may take together.
PATIENCE = 5.0
#: Names that are looked at, at the most: each costs a thread.
MAX_NAMES = 200


def check_names(config: ProxyConfig, file: str = "", patience: float = PATIENCE) -> list[ConfigProblem]:
    """Return a warning for each server whose name does not resolve, or not in time; ``file`` is as they call it."""
    servers: dict[str, list[tuple[str, int, str]]] = {}
    for options, _, _ in config.upstreams:
        for place, server in enumerate(options.servers, 1):
            address = server.origin.address
            if isinstance(address, tuple):
                servers.setdefault(address[0], []).append((options.name, place, server.url))
    asked = [name for name in servers if not _is_number(name)][:MAX_NAMES]
    said: dict[str, str] = {}
    threads = [threading.Thread(target=_ask, args=(name, said), daemon=True) for name in asked]
    for thread in threads:
        thread.start()
    due = monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, due - monotonic()))
    reader = Tables(file)
    for name in asked:
        why = said.get(name, "no answer in time")
        for group, place, url in servers[name] if why else ():
            table = f"[upstreams.{group}] servers no. {place}"
            reader.note(table, "url", url, f"a name that resolves expected: {why}", is_warning=True)
    return locate(reader.problems, file)


def _is_number(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def _ask(name: str, said: dict[str, str]) -> None:
    try:
        socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        said[name] = ""
    except (OSError, UnicodeError) as error:
        said[name] = getattr(error, "strerror", None) or str(error)
