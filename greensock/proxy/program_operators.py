"""The operators' address of a proxy that is one process: it outlives the configurations, and so do the figures."""

from __future__ import annotations

from collections.abc import Sequence

from greensock.operations.operations_options import OperationsOptions
from greensock.operations.operations_server import OperationsServer
from greensock.operations.worker_watch import WorkerWatch
from greensock.proxy.proxy_figures import ProxyFigures
from greensock.proxy.proxy_server import ReverseProxy
from greensock.shared_pages import SharedPages

__all__ = ["ProgramOperators"]

NAME = "greensock proxy"


class ProgramOperators:
    """First :meth:`prepared`, which may fail and changes nothing; then :meth:`take`; at the end :meth:`end`."""

    def __init__(self) -> None:
        #: What measures; None until a configuration wants it.
        self.watch: WorkerWatch | None = None
        #: What answers; None: nobody may ask.
        self.server: OperationsServer | None = None

    def prepared(self, options: OperationsOptions | None) -> OperationsServer | None:
        """Return a server that listens, where that is another address than now; None: there is nothing to be opened.

        Raises:
            OSError, ValueError: the address can't be had.
        """
        if options is None:
            return None
        if self.watch is None:
            pages = SharedPages(1)
            pages.enter(pages.take())
            WorkerWatch.share(pages)
            self.watch = WorkerWatch(pages, 0, options.max_hold)
        if self.server is not None and self.server.told.place == options.place:
            return None
        server = OperationsServer(options.place, options, self.watch, NAME, **options.listen_options())
        server.open_listeners()
        return server

    def take(
        self, options: OperationsOptions | None, prepared: OperationsServer | None, proxies: Sequence[ReverseProxy]
    ) -> None:
        """Answer as the options say, of these proxies."""
        if self.server is not None and (options is None or prepared is not None):
            self.server.abort()
            self.server = None
        if options is None or self.watch is None:
            return
        self.watch.max_hold = options.max_hold
        if proxies:
            self.watch.follow(proxies, ProxyFigures(proxies[0].gateway, proxies))
        if prepared is not None:
            self.server = prepared
            prepared.start()
        elif self.server is not None:
            self.server.change(options)

    def end(self) -> None:
        """Answer nobody any more."""
        server, self.server = self.server, None
        if server is not None:
            server.abort()
