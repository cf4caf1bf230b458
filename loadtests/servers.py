"""The servers compared: their names, what each needs, how tables and plots call it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loadtests.peers.programs import program
from loadtests.process import PURE

__all__ = [
    "CONNECTING",
    "GUNICORNS",
    "HERDS",
    "HTTP",
    "LOCUST",
    "NAMES",
    "PROXIES",
    "SERVERS",
    "TCP",
    "TLS",
    "TLS_PROXIES",
    "TLS_SITES",
    "UDP",
    "WEBSOCKETS",
    "WORKERS",
    "Server",
    "missing",
]

Kind = Literal[
    "tcp",
    "http",
    "proxy",
    "flat",
    "pure",
    "websocket",
    "udp",
    "locust",
    "tls",
    "tls proxy",
    "tls site",
    "connecting",
    "workers",
]

#: Without it what drives servers of TLS cannot be compiled (libssl-dev of Debian).
OPENSSL_HEADER = Path("/usr/include/openssl/ssl.h")


@dataclass(frozen=True, slots=True)
class Server:
    """A program of ``loadtests/peers``."""

    #: How a reader of tables and plots knows it.
    title: str
    #: Modules besides the standard library.
    needs: tuple[str, ...] = ()
    #: What it takes part in.
    kind: Kind = "tcp"
    #: Programs that are no modules.
    programs: tuple[str, ...] = ()


def http(title: str, *needs: str, kind: Kind = "http", programs: tuple[str, ...] = ()) -> Server:
    """Return a server that wrk drives."""
    return Server(title, needs, kind, ("wrk", *programs))


def websocket(title: str, *needs: str) -> Server:
    """Return a server of WebSockets."""
    return Server(title, needs, "websocket")


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
    "http_server": http("greensock HTTPServer", "gevent", "greensock"),
    "wsgi_server": http("greensock WSGIServer", "gevent", "greensock"),
    "http_client": http("greensock HTTPClient", "gevent", "greensock"),
    "http_pywsgi": http("gevent pywsgi", "gevent"),
    "http_gunicorn": http("gunicorn, gevent worker", "gunicorn", "gevent"),
    "http_uvicorn": http("uvicorn, bare ASGI", "uvicorn", "uvloop", "httptools"),
    "http_aiohttp": http("aiohttp on uvloop", "aiohttp", "uvloop"),
    "http_nginx": http("nginx", programs=("nginx",)),
    "http_haproxy": http("HAProxy", programs=("haproxy",)),
    "proxy_greensock": http("greensock reverse_proxy", "gevent", "greensock", "examples.reverse_proxy", kind="proxy"),
    "proxy_pywsgi": http("pywsgi + geventhttpclient", "gevent", "geventhttpclient", kind="proxy"),
    "proxy_aiohttp": http("aiohttp on uvloop", "aiohttp", "uvloop", kind="proxy"),
    "proxy_nginx": http("nginx", kind="proxy", programs=("nginx",)),
    "proxy_haproxy": http("HAProxy", kind="proxy", programs=("haproxy",)),
    "wsgi_granian": http("granian, WSGI", "granian", kind="flat"),
    "wsgi_bjoern": http("bjoern, WSGI", "bjoern", kind="flat"),
    "client_greensock": Server("greensock HTTPClient", ("gevent", "greensock"), "flat"),
    "client_geventhttpclient": Server("geventhttpclient HTTPClient", ("gevent", "geventhttpclient"), "flat"),
    "client_useragent": Server("geventhttpclient UserAgent", ("gevent", "geventhttpclient"), "flat"),
    "proxy_greensock_log": http("greensock reverse_proxy, logging", "gevent", "greensock", kind="flat"),
    "proxy_nginx_log": http("nginx, logging", kind="flat", programs=("nginx",)),
    "proxy_greensock_edit": http("greensock ReverseProxy, edit_request", "gevent", "greensock", kind="flat"),
    "proxy_nginx_lua": http("nginx, Lua", kind="flat", programs=("nginx",)),
    "websocket_upcalls": websocket("greensock, upcalls", "gevent", "greensock"),
    "websocket_blocking": websocket("greensock, for message in ws", "gevent", "greensock"),
    "websocket_wsgi": websocket("greensock, wsgi.websocket", "gevent", "greensock"),
    "websocket_websockets": websocket("websockets on uvloop", "websockets", "uvloop"),
    "websocket_picows": websocket("picows on uvloop", "picows", "uvloop"),
    "websocket_aiohttp": websocket("aiohttp on uvloop", "aiohttp", "uvloop"),
    "websocket_gevent": websocket("gevent-websocket", "gevent", "geventwebsocket"),
    "udp_greensock": Server("greensock DatagramServer", ("gevent", "greensock"), "udp"),
    "udp_gevent": Server("gevent DatagramServer", ("gevent",), "udp"),
    "udp_uvloop": Server("uvloop DatagramProtocol", ("uvloop",), "udp"),
    "udp_epoll": Server("C, epoll and recvmmsg", (), "udp"),
    "locust_greensock": Server("greensock HTTPUser", ("locust", "greensock"), "locust"),
    "locust_fasthttp": Server("Locust's FastHttpUser", ("locust",), "locust"),
    "locust_requests": Server("Locust's HttpUser", ("locust",), "locust"),
    "tls_greensock": Server("greensock, TLS", ("gevent", "greensock"), "tls", ("openssl",)),
    "tls_uvloop": Server("uvloop Protocol, TLS", ("uvloop",), "tls", ("openssl",)),
    "tls_gevent": Server("gevent StreamServer, TLS", ("gevent",), "tls", ("openssl",)),
    "tls_epoll": Server("C, OpenSSL, epoll", (), "tls", ("openssl",)),
    "proxy_greensock_tls": http(
        "greensock reverse_proxy, TLS",
        *("gevent", "greensock", "examples.reverse_proxy", "cryptography"),
        kind="tls proxy",
    ),
    "proxy_nginx_tls": http("nginx, TLS", kind="tls proxy", programs=("nginx", "openssl")),
    "connecting_greensock": Server("greensock connect", ("gevent", "greensock"), "connecting"),
    "connecting_gevent": Server("gevent create_connection", ("gevent",), "connecting"),
    "tls_site": Server("greensock HTTPServer, TLS", ("gevent", "greensock"), "tls site", ("openssl",)),
    "tls_nginx": Server("nginx, TLS", (), "tls site", ("openssl", "nginx")),
    "workers_http": http("greensock run, HTTPServer", "gevent", "greensock", "gunicorn", kind="workers"),
    "workers_proxy": Server("greensock proxy", ("gevent", "greensock", "gunicorn"), "workers"),
    "workers_proxy_nginx": Server("nginx, proxy", (), "workers", ("nginx",)),
    "workers_gunicorn": http("gunicorn, greensock's worker", "gunicorn", "gevent", "greensock", kind="flat"),
}
#: The same without greensock's compiled engine.
SERVERS |= {
    name + PURE: replace(SERVERS[name], title=SERVERS[name].title + ", in Python", kind="pure")
    for name in (
        "greensock_upcalls",
        "greensock_blocking",
        "http_server",
        "wsgi_server",
        "proxy_greensock",
        "client_greensock",
        "proxy_greensock_log",
        "proxy_greensock_edit",
        "udp_greensock",
    )
}
NAMES = tuple(SERVERS)


def of_kind(kind: Kind) -> tuple[str, ...]:
    return tuple(name for name, server in SERVERS.items() if server.kind == kind)


TCP = of_kind("tcp")
HTTP = of_kind("http")
PROXIES = of_kind("proxy")
WEBSOCKETS = of_kind("websocket")
UDP = (*of_kind("udp"), "udp_greensock" + PURE)
LOCUST = of_kind("locust")
TLS = of_kind("tls")
TLS_SITES = of_kind("tls site")
#: Each beside the same without TLS.
TLS_PROXIES = ("proxy_greensock", "proxy_greensock_tls", "proxy_nginx", "proxy_nginx_tls")
CONNECTING = of_kind("connecting")
WORKERS = of_kind("workers")
#: How the herd is measured, beside nginx as it comes.
HERDS = ("workers_http", "http_nginx")
#: One worker of either kind.
GUNICORNS = ("workers_gunicorn", "http_gunicorn")


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


def missing(name: str) -> str | None:
    """Return the module or program that a server needs and that is not installed, or None."""
    for module in SERVERS[name].needs:
        if not is_there(module):
            return module
    for needed in SERVERS[name].programs:
        if program(needed) is None:
            return needed
    if SERVERS[name].kind == "tls" and not OPENSSL_HEADER.exists():
        return "libssl-dev"
    return None
