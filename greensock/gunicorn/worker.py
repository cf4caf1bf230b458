"""The worker that serves a WSGI application: ``gunicorn -k greensock.gunicorn.Worker module:application``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gunicorn
from gunicorn.http.wsgi import WSGIErrorsWrapper
from gunicorn.pidfile import Pidfile

from greensock import Server, __version__
from greensock.gunicorn.base_worker import BaseWorker
from greensock.gunicorn.settings import RefusedSettings, check, notes
from greensock.gunicorn.wsgi_site import WSGISite

__all__ = ["Worker"]

#: What applications are told of the server.
SOFTWARE = f"greensock/{__version__} gunicorn/{gunicorn.__version__}"
#: In the environment of a master that took its sockets over from somebody, who may still need their files.
INHERITED = ("GUNICORN_PID", "GUNICORN_FD", "LISTEN_FDS")


class Worker(BaseWorker):
    """Serves a WSGI application with :class:`greensock.http.WSGIServer`, under gunicorn's settings.

    Each of gunicorn's documented settings does what its documentation says, or is refused at the start with a line that
    says what is expected: see ``docs/deploy.md``.
    """

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by the master when it starts, before there are workers.

        Raises:
            RefusedSettings: the master ends with status 1, and leaves neither a pid file nor a Unix socket's.
        """
        try:
            check(cfg)
        except RefusedSettings:
            _tidy_up(cfg)
            raise
        for note in notes(cfg):
            log.warning(note)

    def init_process(self) -> None:
        """Look at the settings once more, as a reload may have changed them; then begin."""
        check(self.cfg)
        super().init_process()

    def made_servers(self) -> Sequence[Server[Any]]:
        site_class = WSGISite
        if self.cfg.proxy_protocol != "off":
            from greensock.gunicorn.introduced_site import IntroducedSite  # which brings greensock.proxy along

            site_class = IntroducedSite
        errors = WSGIErrorsWrapper(self.cfg)
        sites = [site_class(sock, self.wsgi, self, errors, SOFTWARE) for sock in self.taken_sockets()]
        for site in sites:
            site.siblings = sites
        return sites


def _tidy_up(cfg: Any) -> None:
    """Remove what the master has made by now: it ends without."""
    if cfg.pidfile is not None and "GUNICORN_PID" not in os.environ:
        pidfile = Pidfile(cfg.pidfile)
        pidfile.pid = os.getpid()
        pidfile.unlink()
    if not any(name in os.environ for name in INHERITED):
        for address in cfg.address:
            if isinstance(address, str):
                os.unlink(address)
