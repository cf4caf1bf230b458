"""The servers compared: their names, what each needs, how tables and plots call it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

__all__ = ["NAMES", "SERVERS", "Server", "missing"]


@dataclass(frozen=True, slots=True)
class Server:
    """A program of ``loadtests/peers``."""

    #: How a reader of tables and plots knows it.
    title: str
    #: Modules besides the standard library.
    needs: tuple[str, ...] = ()


SERVERS: dict[str, Server] = {
    "greensock_upcalls": Server("greensock upcalls", ("gevent", "greensock")),
    "greensock_blocking": Server("greensock handle", ("gevent", "greensock")),
    "gevent_streamserver": Server("gevent StreamServer", ("gevent",)),
    "asyncio_protocol": Server("asyncio Protocol"),
    "asyncio_streams": Server("asyncio streams"),
    "uvloop_protocol": Server("uvloop Protocol", ("uvloop",)),
    "uvloop_streams": Server("uvloop streams", ("uvloop",)),
    "trio_streams": Server("trio", ("trio",)),
    "epoll": Server("C, bare epoll"),
}
NAMES = tuple(SERVERS)


def missing(name: str) -> str | None:
    """Return the module that a server needs and that is not installed, or None."""
    for module in SERVERS[name].needs:
        if importlib.util.find_spec(module) is None:
            return module
    return None
