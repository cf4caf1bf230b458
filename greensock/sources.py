"""What ``greensock run`` and ``greensock proxy`` serve: read and checked in the master, made into servers in a worker.

A source is read anew when the master is told to reload. It is first read whole, and only if all of it is right is it
what the next workers are made of.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from greensock.core.server import Server
from greensock.limits.client_limits import shared_place, table_of_clients
from greensock.limits.client_table import ClientTable
from greensock.operations.operations_options import OperationsOptions
from greensock.operations.operations_server import OperationsServer
from greensock.operations.worker_watch import Behind, WorkerWatch
from greensock.proxy.config import ConfigError, ProxyConfig
from greensock.proxy.guard import GUARDS, SharedBlocks
from greensock.proxy.options import ListenPlace, LogOptions
from greensock.proxy.proxy_figures import ProxyFigures
from greensock.proxy.proxy_server import ReverseProxy
from greensock.proxy.upstream.shared_servers import SharedServers
from greensock.shared_pages import SharedPages

__all__ = ["ClassSource", "ProxySource", "Refused", "Source", "in_order_of"]

Item = TypeVar("Item")

#: What the memory is called in which servers have what their clients use.
CLIENTS = "clients of servers"


class Refused(Exception):
    """What is to be served can't be: the text has a line for each problem."""

    def __init__(self, text: str, by_system: bool = False) -> None:
        super().__init__(text)
        #: Whether the system said no, and not a check of what was told.
        self.by_system = by_system


class Source(Protocol):
    """What workers serve."""

    #: What the process is called.
    name: str
    #: Seconds that requests have when a worker ends.
    drain_seconds: float

    @property
    def addresses(self) -> Sequence[Any]:
        """Where to listen."""

    @property
    def log_options(self) -> LogOptions | None:
        """Where the error log goes; None: that is not told here."""

    def read(self) -> Callable[[], Callable[[], None]]:
        """Read it anew. What is returned makes it what is served, and returns what takes that back.

        Raises :class:`Refused`, and changes nothing.
        """

    @property
    def operators_addresses(self) -> Sequence[Any]:
        """Which of these is for operators: one, or none."""

    def part(self, sockets: Sequence[Any]) -> tuple[list[Any], Any]:
        """Return the sockets without that of the operators, and that one; None: there is none."""

    def listen(self, address: Any) -> socket.socket:
        """Return a socket that listens there. Raises :class:`Refused`."""

    def share(self, pages: SharedPages) -> None:
        """Make what the workers share; called in the master before the first fork, and after each reading."""

    def made_servers(self, sockets: list[Any], slot: int = 0) -> Sequence[Server[Any]]:
        """Return the servers on these sockets; called in a worker, which is patched, and has that row of the pages."""

    def reopen_logs(self) -> None:
        """Open anew what this worker logs to: it was renamed."""

    def close_logs(self) -> None:
        """Write what this worker logged, and log no more: it ends."""


def listen(address: Any, **options: Any) -> socket.socket:
    """Return a socket that listens on an address, or raise :class:`Refused`."""
    try:
        server: Server[Any] = Server(address, **options)
        server.open_listeners()
    except (OSError, ValueError, OverflowError) as error:
        shown = address if isinstance(address, str) else ":".join(map(str, address))
        raise Refused(f"cannot listen on {shown}: {error}", isinstance(error, OSError)) from error
    (sock,) = server.pass_listeners()
    server.close_listeners()
    return sock


class _Operated:
    """What both sources do for the operators, if they may ask: a listener more, and one more server in each worker."""

    name: str
    _pages: SharedPages | None = None
    _operators_at: Any = None  # where the socket is that was opened for them

    @property
    def operations(self) -> OperationsOptions | None:
        """Where operators ask; None: nowhere."""
        raise NotImplementedError

    @property
    def operators_addresses(self) -> list[Any]:
        """Where to listen for them: once, or not at all."""
        return [self.operations.place] if self.operations is not None else []

    def share(self, pages: SharedPages) -> None:
        """Make what the workers share; called in the master before the first fork, and after each reading."""
        self._pages = pages
        if self.operations is not None:
            WorkerWatch.share(pages)

    def listen_for_operators(self, address: Any) -> socket.socket | None:
        """Return a socket that listens there, if that is the operators' address."""
        if self.operations is None or address != self.operations.place:
            return None
        sock = listen(address, **self.operations.listen_options())
        self._operators_at = sock.getsockname()
        return sock

    def part(self, sockets: Sequence[Any]) -> tuple[list[Any], Any]:
        """Return the sockets without that of the operators, and that one; None: there is none."""
        options = self.operations
        if options is None:
            return list(sockets), None
        names = [sock.getsockname() for sock in sockets]
        for is_exact in (True, False):
            for index, name in enumerate(names):
                if name == self._operators_at or _is_same(options.place, name, is_exact):
                    return [*sockets[:index], *sockets[index + 1 :]], sockets[index]
        # A port that the system chose, in a master that took another one's place: it is the last.
        if isinstance(options.place, tuple) and not options.place[1] and len(sockets) > 1:
            return list(sockets[:-1]), sockets[-1]
        return list(sockets), None

    def made_watch(self, slot: int, sock: Any) -> WorkerWatch | None:
        """Return what watches the servers of a worker; None: nobody can ask."""
        if self.operations is None or sock is None:
            return None
        if self._pages is None:
            self._pages = SharedPages(1)
            self._pages.enter(self._pages.take())
            WorkerWatch.share(self._pages)
        return WorkerWatch(self._pages, slot, self.operations.max_hold)

    def made_operators(
        self, watch: WorkerWatch | None, sock: Any, servers: Sequence[Server[Any]], behind: Behind | None = None
    ) -> list[OperationsServer]:
        """Return the server at the operators' address, which watches these."""
        if watch is None or self.operations is None:
            return []
        watch.follow(servers, behind)
        return [OperationsServer(sock, self.operations, watch, self.name)]


class ProxySource(_Operated):
    """The reverse proxy, told by a configuration; ``read_config`` reads it anew."""

    name = "greensock proxy"

    def __init__(self, config: ProxyConfig, read_config: Callable[[], ProxyConfig] | None) -> None:
        self.config = config
        self._read_config = read_config
        self._pages: SharedPages | None = None
        self._proxies: list[ReverseProxy] = []
        self._shared: SharedServers | None = None

    @property
    def drain_seconds(self) -> float:
        """As ``timeouts.drain`` says."""
        return self.config.timeouts.drain

    @property
    def addresses(self) -> Sequence[Any]:
        """As ``listen`` says, and where operators ask."""
        return [*self.config.listen, *self.operators_addresses]

    @property
    def operations(self) -> OperationsOptions | None:
        """As ``[operations]`` says."""
        return self.config.operations

    @property
    def log_options(self) -> LogOptions | None:
        """As ``[log]`` says."""
        return self.config.log

    def read(self) -> Callable[[], Callable[[], None]]:
        """Read the file anew."""
        if self._read_config is None:
            raise Refused("there is no file to be read anew")
        try:
            config = self._read_config()
        except ConfigError as error:
            raise Refused(str(error)) from error
        if self._pages is not None:
            _guard_tables(config, self._pages)  # while all can stay as it is

        def take() -> Callable[[], None]:
            before, self.config = self.config, config

            def undo() -> None:
                self.config = before

            return undo

        return take

    def listen(self, address: Any) -> socket.socket:
        """Listen as ``[server]`` says."""
        return self.listen_for_operators(address) or listen(address, backlog=self.config.server.backlog)

    def share(self, pages: SharedPages) -> None:
        """Share what is known of the servers behind, too, and of clients; who leads goes by how new the workers are."""
        super().share(pages)
        tables = _guard_tables(self.config, pages)
        if self._shared is None:
            self._shared = SharedServers(pages)
        else:
            self._shared.edition += 1
        pages.forget(GUARDS, tables)
        for name, table in tables.items():
            pages.on_gone(name, table.clear_column)

    def made_servers(self, sockets: list[Any], slot: int = 0) -> Sequence[Server[Any]]:
        """Return a proxy for each socket, all with one gateway; and who answers the operators."""
        sockets, own = self.part(sockets)
        pages = self._pages
        gateway = self.config.gateway(None if pages is None else SharedBlocks(pages.block, pages.slots, slot))
        if self._shared is not None:
            gateway.join(self._shared, slot)
        gateway.watch = watch = self.made_watch(slot, own)
        places = in_order_of(sockets, self.config.listeners, _address_of)
        self._proxies = [
            ReverseProxy(sock, gateway, **self.config.proxy_options(place))
            for sock, place in zip(sockets, places, strict=True)
        ]
        operators = self.made_operators(watch, own, self._proxies, ProxyFigures(gateway, self._proxies))
        return [*self._proxies, *operators]

    def reopen_logs(self) -> None:
        """Open the access log anew."""
        for proxy in self._proxies[:1]:
            if proxy.gateway.log is not None:
                proxy.gateway.log.reopen()

    def close_logs(self) -> None:
        """Close the access log: its last lines wait to be written together."""
        for proxy in self._proxies[:1]:
            if proxy.gateway.log is not None:
                proxy.gateway.log.close()


def _guard_tables(config: ProxyConfig, pages: SharedPages) -> dict[str, ClientTable]:
    """Return the tables of guards that all workers share, by the names of their memory, or raise :class:`Refused`."""
    try:
        return config.guard_tables(SharedBlocks(pages.block, pages.slots))
    except OSError as error:
        raise Refused(f"guard: memory for max_clients expected: {error.strerror}", by_system=True) from error


def in_order_of(
    sockets: Sequence[Any], items: Sequence[Item], address_of: Callable[[Item], Any] = lambda each: each
) -> list[Item | None]:
    """Return what is said of each socket: by its port or path, and of the others in their order; None: nothing.

    Those that were inherited have an order of their own, and what is said of TLS must not go to another.
    """
    left = list(items)
    found: dict[int, Item] = {}
    for is_exact in (True, False):
        for index, sock in enumerate(sockets):
            name = sock.getsockname()
            for item in left:
                if index not in found and _is_same(address_of(item), name, is_exact):
                    found[index] = item
                    left.remove(item)
                    break
    rest = iter(left)
    return [found[index] if index in found else next(rest, None) for index in range(len(sockets))]


def _address_of(place: ListenPlace) -> Any:
    return place.address


def _is_same(address: Any, name: Any, is_exact: bool) -> bool:
    """Whether a socket of this name listens on the address; without ``is_exact`` the port is enough."""
    if isinstance(address, str) or isinstance(name, str):
        return bool(address == name)
    return bool(address[1] == name[1] and (not is_exact or address[0] == name[0]))


class ClassSource(_Operated):
    """A server class, ``package.module:Class``. It is imported in each worker, and so anew with each reload."""

    log_options: LogOptions | None = None

    def __init__(
        self,
        where: str,
        addresses: Sequence[str],
        options: Mapping[str, Any],
        drain_seconds: float,
        operations: OperationsOptions | None = None,
    ) -> None:
        module, colon, name = where.partition(":")
        if not (module and colon and name):
            raise Refused(f"{where!r}: MODULE:CLASS expected")
        self.name = f"greensock {where}"
        self.drain_seconds = drain_seconds
        self._addresses = addresses
        self._operations = operations
        self._module, self._class = module, name
        self._options = options

    def read(self) -> Callable[[], Callable[[], None]]:
        """There is nothing to be read here: the workers import it."""
        return lambda: lambda: None

    @property
    def addresses(self) -> Sequence[Any]:
        """Where to listen, for operators too."""
        return [*self._addresses, *self.operators_addresses]

    @property
    def operations(self) -> OperationsOptions | None:
        """Where operators ask."""
        return self._operations

    def listen(self, address: Any) -> socket.socket:
        """Listen with the options of the socket that were given."""
        of_sockets = ("backlog", "reuse_port", "unix_mode", "unix_owner")
        options = {name: value for name, value in self._options.items() if name in of_sockets}
        return self.listen_for_operators(address) or listen(address, **options)

    def made_class(self) -> type[Server[Any]]:
        """Import the class.

        Raises:
            Refused: there is no such module or class, or it is no server.
        """
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found = importlib.import_module(self._module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{self._module}.".startswith(f"{error.name}."):
                raise  # it is there, and imports what is not
            raise Refused(f"{self._module}:{self._class}: there is no module {error.name!r}") from error
        kind = getattr(found, self._class, None)
        if not (isinstance(kind, type) and issubclass(kind, Server)):
            raise Refused(f"{self._module}:{self._class}: a subclass of greensock.Server expected, not {kind!r}")
        return kind

    def made_server(self, listener: Any) -> Server[Any]:
        """Return a server.

        Raises:
            Refused: it can't be made so.
        """
        try:
            return self.made_class()(listener, **{"stop_timeout": self.drain_seconds, **self._options})
        except (TypeError, ValueError) as error:
            raise Refused(f"{self._module}:{self._class}: {error}") from error

    def share(self, pages: SharedPages) -> None:
        """Make the table of what clients use, too, which costs nothing where no server limits them."""
        super().share(pages)
        shared_place.block = partial(pages.block, CLIENTS)
        shared_place.columns, shared_place.column = pages.slots, -1
        pages.on_gone(CLIENTS, table_of_clients().clear_column)

    def made_servers(self, sockets: list[Any], slot: int = 0) -> Sequence[Server[Any]]:
        """Return one server on all sockets; and who answers the operators."""
        shared_place.column = slot
        sockets, own = self.part(sockets)
        server = self.made_server(sockets)
        return [server, *self.made_operators(self.made_watch(slot, own), own, [server])]

    def reopen_logs(self) -> None:
        """What the program logs to is its own."""

    def close_logs(self) -> None:
        """What the program logs to is its own."""
