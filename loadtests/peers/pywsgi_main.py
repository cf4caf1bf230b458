"""What the two peers on gevent's pywsgi have in common: told where to listen, without a log."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer

from loadtests.peers import common, http_common

__all__ = ["run"]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Closing:
    """pywsgi closes when it is told ``Connection: close``, but does not say so, which wrk takes for an error."""

    def __init__(self, application: Application) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_CONNECTION") != "close":
            return self.application(environ, start_response)

        def start(status: str, fields: list[tuple[str, str]]) -> Any:
            return start_response(status, [*fields, ("Connection", "close")])

        return self.application(environ, start)


def run(application: Application, options: argparse.Namespace) -> None:
    """Serve until SIGTERM. Accepted sockets have TCP_NODELAY from the listener, which pywsgi does not set."""
    sock = http_common.listener(options)
    server = WSGIServer(sock, Closing(application), log=None)
    server.start()
    gevent.signal_handler(signal.SIGTERM, server.stop, 0)
    common.announce(sock)
    server.serve_forever()
