"""What gunicorn's settings mean here, and which are refused. It reads a configuration, and does nothing else.

What the master does itself (bind, backlog, workers, user, hooks of the master, daemon, pidfile, ...) is not looked at:
the worker is given the sockets. Of the rest each setting either does what gunicorn's documentation says, or is refused
before a worker is started. Those that are for gunicorn's other workers alone (``threads``, what begins with ``asgi_``,
``websocket_max_message_size``, ``root_path``) mean nothing here, as their documentation says.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from gunicorn.sock import ssl_context

from greensock.http.wire.limits import Limits

__all__ = ["RefusedSettings", "check", "is_given", "limits_of", "notes", "tls_context", "trusts", "wsgi_options"]

#: What stands for "no limit" in sizes of a head, in bytes: everything from the network is bounded.
NO_LIMIT = 1 << 20
#: gunicorn's own bounds of ``limit_request_line`` and ``limit_request_fields``.
MOST_LINE, MOST_FIELDS = 8190, 32768
#: Seconds that a client has for its first request where ``keepalive`` says nothing of it, being 0.
FIRST_REQUEST = 75.0


class RefusedSettings(RuntimeError):
    """Settings that the worker cannot serve with; one line for each. gunicorn shows it and ends with status 1."""


def check(cfg: Any) -> None:
    """Refuse what can't be done here.

    Raises:
        RefusedSettings: each line names a setting, its value, and what is expected.
    """
    refused = [f"{name}={getattr(cfg, name)!r}: {words}" for name, is_refused, words in RULES if is_refused(cfg)]
    tls = tls_refusal(cfg)
    if tls:
        refused.insert(0, tls)
    if refused:
        raise RefusedSettings("\n       ".join(["greensock.gunicorn.Worker cannot serve with", *refused]))


def tls_refusal(cfg: Any) -> str:
    """Return why TLS cannot be spoken; empty if it can, or is not asked for."""
    try:
        tls_context(cfg)
    except (OSError, TypeError, ValueError) as error:
        names = [name for name in ("certfile", "keyfile", "ca_certs", "ciphers") if getattr(cfg, name)]
        given = ", ".join(f"{name}={getattr(cfg, name)!r}" for name in names)
        return f"{given}: {error}: PEM files of a certificate and its key expected, and ciphers that OpenSSL knows"
    return ""


def tls_context(cfg: Any) -> ssl.SSLContext | None:
    """Return what ``certfile``, ``keyfile``, ``ca_certs``, ``cert_reqs``, ``ciphers`` and the hook ``ssl_context`` say.

    None: TLS is not asked for.

    Raises:
        OSError, ValueError: there is no such file, or not what it should be.
    """
    context: ssl.SSLContext | None = ssl_context(cfg) if cfg.is_ssl else None
    return context


def _given(cfg: Any, name: str, *allowed: Any) -> bool:
    return getattr(cfg, name, allowed[0]) not in allowed


#: Settings that are refused: name, whether, what is expected.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("protocol", lambda cfg: _given(cfg, "protocol", "http"), "'http' expected"),
    (
        "http_protocols",
        lambda cfg: "h2" in getattr(cfg, "http_protocols", ()),
        "HTTP/2 is not there yet; 'h1' expected",
    ),
    (
        "http_parser",
        lambda cfg: _given(cfg, "http_parser", "auto"),
        "'auto' expected: greensock has a parser of its own",
    ),
    ("permit_obsolete_folding", lambda cfg: _given(cfg, "permit_obsolete_folding", False), "False expected"),
    ("strip_header_spaces", lambda cfg: _given(cfg, "strip_header_spaces", False), "False expected"),
    ("casefold_http_method", lambda cfg: _given(cfg, "casefold_http_method", False), "False expected"),
    (
        "tmp_upload_dir",
        lambda cfg: cfg.tmp_upload_dir is not None and not os.path.isdir(cfg.tmp_upload_dir),
        "a folder expected",
    ),
    (
        "reload_engine",
        lambda cfg: cfg.reload and cfg.reload_engine == "inotify",
        "'auto' or 'poll' expected: inotify's reader would stop the server while it waits",
    ),
)


def notes(cfg: Any) -> list[str]:
    """Return what is worth a line in the log at the start: settings whose effect has a bound here."""
    return [
        f"{name}=0 means {NO_LIMIT} bytes here"
        for name in ("limit_request_line", "limit_request_field_size")
        if getattr(cfg, name) <= 0 and (name != "limit_request_line" or cfg.limit_request_line == 0)
    ]


def limits_of(cfg: Any) -> tuple[Limits, int]:
    """Return the limits of a request's head, and the most bytes of a request line."""
    line = cfg.limit_request_line
    line = NO_LIMIT if line == 0 else MOST_LINE if not 0 < line < MOST_LINE else line
    fields = cfg.limit_request_fields
    fields = MOST_FIELDS if not 0 < fields <= MOST_FIELDS else fields
    size = cfg.limit_request_field_size
    size = NO_LIMIT if size <= 0 else size
    head = min(line + 4 + fields * (size + 2), NO_LIMIT)
    return Limits(max_target=line, max_head=head, max_fields=fields, max_field=size), line


def wsgi_options(cfg: Any) -> dict[str, Any]:
    """Return the options of a ``WSGIServer``."""
    limits, _ = limits_of(cfg)
    keepalive = cfg.keepalive
    return {
        "max_connections": cfg.worker_connections,
        "idle_timeout": float(keepalive) if keepalive else FIRST_REQUEST,
        "max_requests": None if keepalive else 1,
        "limits": limits,
        "refused_methods": frozenset({"CONNECT"}),
        "stop_timeout": float(cfg.graceful_timeout),
        # So a worker that ends closes what rests no sooner than ``keepalive`` would have.
        "close_spread": 2.0 * keepalive,
        "spool_folder": cfg.tmp_upload_dir,
        "tls": tls_context(cfg),
    }


def is_given(cfg: Any, hook: str) -> bool:
    """Whether a hook was set: an empty one is not worth a call for each request."""
    setting = cfg.settings[hook]
    return setting.get() is not type(setting).__dict__["default"].__func__


def trusts(allowed: Sequence[str]) -> Callable[[str], bool]:
    """Return what tells whether an address is in ``forwarded_allow_ips``, or ``proxy_allow_ips``; ``*``: each is.

    An IPv4 address is the same where a socket of IPv6 tells it as ``::ffff:10.0.0.1``.
    """
    if "*" in allowed:
        return lambda address: True
    networks = [ipaddress.ip_network(each) for each in allowed]

    @functools.lru_cache(maxsize=4096)
    def is_trusted(address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network or mapped in network for network in networks)

    return is_trusted
