"""The worker of ``greensock run`` and ``greensock proxy``: it serves what its source makes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import gevent

from greensock import Server
from greensock.gunicorn.base_worker import BaseWorker
from greensock.proxy.log.error_log import ErrorLog
from greensock.sources import Refused

__all__ = ["ServerWorker"]

#: The status of a worker that can't begin: gunicorn's for an application that can't be loaded.
CANNOT_BEGIN = 4


class ServerWorker(BaseWorker):
    """Serves what ``app.source`` makes."""

    def __init__(self, age: int, ppid: int, sockets: Any, app: Any, *rest: Any) -> None:
        super().__init__(age, ppid, sockets, app, *rest)
        #: Its row of the pages that all workers share, which the master takes back when it is gone.
        self.slot: int = app.pages.take()

    def init_process(self) -> None:
        """Say which row is this process's, and begin."""
        self.app.pages.enter(self.slot)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load nothing: there is no application, but a source."""

    def made_servers(self) -> Sequence[Server[Any]]:
        try:
            return self.app.source.made_servers(self.taken_sockets(), self.slot)  # type: ignore[no-any-return]
        except Refused as error:
            for line in str(error).splitlines():
                self.log.error("%s", line)
            sys.exit(CANNOT_BEGIN)

    def run(self) -> None:
        """Serve, and when that has ended write the last lines of the log."""
        try:
            super().run()
        finally:
            self.app.source.close_logs()

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """SIGUSR1: open all logs anew."""
        super().handle_usr1(sig, frame)
        gevent.spawn(self._reopen_logs)

    def _reopen_logs(self) -> None:
        for handler in self.log.error_log.handlers:
            if isinstance(handler, ErrorLog):
                handler.reopen()
        self.app.source.reopen_logs()
