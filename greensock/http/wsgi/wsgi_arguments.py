"""The arguments of ``gevent.pywsgi.WSGIServer``: what they mean here, or why they are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import gevent
from gevent.pywsgi import LoggingLogAdapter, WSGIHandler

from greensock import TLS

__all__ = ["TLS_OPTIONS", "NoLog", "as_log", "check_handler", "most_connections", "tls_of"]

#: What gevent's servers take for TLS.
TLS_OPTIONS = frozenset(
    {"keyfile", "certfile", "ssl_context", "ssl_version", "cert_reqs", "ca_certs", "server_side", "ciphers"}
    | {"do_handshake_on_connect", "suppress_ragged_eofs"}
)
#: Values of ``spawn`` that mean what is done here anyway.
SPAWNS = (None, "default", "raw", gevent.spawn, gevent.spawn_raw)
#: What takes the place of methods that handlers override.
INSTEAD = {
    "log_request": "log=, or a subclass of the server with format_request",
    "format_request": "a subclass of the server with format_request",
    "log_error": "error_log=",
    "handle_error": "a subclass of the server with application_failed",
    "get_environ": "environ=, or a middleware",
    "start_response": "a middleware",
    "run_application": "a middleware",
    "read_request": "limits=",
    "MAX_REQUEST_LINE": "limits=",
}


class NoLog:
    """Writes nothing; ``wsgiref.validate`` wants these methods."""

    def write(self, text: str) -> None:
        """Drop it."""

    def writelines(self, lines: Iterable[str]) -> None:
        """Drop them."""

    def flush(self) -> None:
        """There is nothing."""


def as_log(name: str, given: Any, level: int) -> Any:
    """Return what is written to where a log is given so."""
    if given is None:
        return NoLog()
    if isinstance(given, str):
        if given != "default":
            raise ValueError(f"{name}={given!r}: 'default', None, a logger or an object with write expected")
        return sys.stderr
    if not hasattr(given, "write") and hasattr(given, "log"):
        return LoggingLogAdapter(given, level)
    return given


def tls_of(given: Mapping[str, Any]) -> Any:
    """Return what gevent's arguments for TLS say."""
    for name in ("server_side", "do_handshake_on_connect"):
        if not given.get(name, True):
            raise ValueError(f"{name}={given[name]!r}: True expected")
    context = given.get("ssl_context")
    if context is not None:
        if beside := given.keys() & {"keyfile", "certfile", "cert_reqs", "ca_certs", "ciphers"}:
            raise ValueError(f"ssl_context, {', '.join(sorted(beside))}: ssl_context alone expected")
        return context
    if "certfile" not in given:
        raise ValueError("certfile=None: a certificate expected, for TLS")
    # ssl.CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED.
    wanted = {0: "none", 1: "optional", 2: "required"}.get(int(given.get("cert_reqs", 0)), "none")
    return TLS(
        given["certfile"],
        given.get("keyfile"),
        ciphers=given.get("ciphers"),
        authorities=given.get("ca_certs"),
        client_certificates=wanted,
    )


def most_connections(spawn: Any) -> int | None:
    """Return how many connections a ``spawn`` of gevent's servers allows; None for no bound."""
    if spawn in SPAWNS:
        return None
    if isinstance(spawn, int) and not isinstance(spawn, bool):
        return spawn
    if hasattr(spawn, "free_count") and hasattr(spawn, "size"):
        size: int | None = spawn.size
        return size
    raise ValueError(f"spawn={spawn!r}: 'default', 'raw', None, a number or a pool expected")


def check_handler(kind: Any) -> None:
    """Take a ``handler_class`` that asks for nothing but what is done here: pywsgi's own, or gevent-websocket's.

    Raises:
        ValueError: it does something of its own; the text says what takes the place of that.
    """
    if kind is None:
        return
    own: list[str] = []
    for base in getattr(kind, "__mro__", ()):
        if base is WSGIHandler:
            break
        if (base.__module__, base.__name__) == ("geventwebsocket.handler", "WebSocketHandler"):
            break  # applications find ``wsgi.websocket`` in any case
        own += [name for name in vars(base) if not name.startswith("__")]
    else:
        raise ValueError(f"handler_class={kind!r}: None or pywsgi.WSGIHandler expected")
    if own:
        instead = "; ".join(f"{name}: {INSTEAD.get(name, 'nothing takes its place')}" for name in sorted(own))
        raise ValueError(f"handler_class={kind!r}: there are no handlers here, and it overrides {instead}")
