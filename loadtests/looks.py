"""How servers look in charts: always the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["SEED_STYLES", "STYLES", "Style"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a server looks, in every chart."""

    colour: str
    marker: str
    line: Literal["-", "--"] = "-"
    width: float = 1.5


STYLES: dict[str, Style] = {
    "greensock_upcalls": Style("#15803d", "o", width=2.4),
    "greensock_blocking": Style("#84cc16", "s", width=2.4),
    "gevent_streamserver": Style("#ea580c", "^"),
    "asyncio_protocol": Style("#1d4ed8", "D"),
    "asyncio_streams": Style("#60a5fa", "d"),
    "uvloop_protocol": Style("#86198f", "v"),
    "uvloop_streams": Style("#d8a0e6", "<"),
    "trio_streams": Style("#dc2626", ">"),
    "epoll": Style("#111111", "X", "--"),
    "http_server": Style("#15803d", "o"),
    "wsgi_server": Style("#84cc16", "s"),
    "http_client": Style("#0d9488", "p"),
    "http_pywsgi": Style("#ea580c", "^"),
    "http_gunicorn": Style("#f59e0b", "P"),
    "http_uvicorn": Style("#86198f", "v"),
    "http_aiohttp": Style("#1d4ed8", "D"),
    "http_nginx": Style("#111111", "X"),
    "http_haproxy": Style("#6b7280", "*"),
    "proxy_greensock": Style("#15803d", "o"),
    "proxy_pywsgi": Style("#ea580c", "^"),
    "proxy_aiohttp": Style("#1d4ed8", "D"),
    "proxy_nginx": Style("#111111", "X"),
    "proxy_haproxy": Style("#6b7280", "*"),
    "websocket_upcalls": Style("#15803d", "o"),
    "websocket_blocking": Style("#84cc16", "s"),
    "websocket_wsgi": Style("#0d9488", "p"),
    "websocket_websockets": Style("#86198f", "v"),
    "websocket_picows": Style("#111111", "X"),
    "websocket_aiohttp": Style("#1d4ed8", "D"),
    "websocket_gevent": Style("#ea580c", "^"),
    "udp_greensock": Style("#15803d", "o"),
    "udp_gevent": Style("#ea580c", "^"),
    "udp_uvloop": Style("#86198f", "v"),
    "udp_epoll": Style("#111111", "X"),
    "locust_greensock": Style("#15803d", "o"),
    "locust_fasthttp": Style("#ea580c", "^"),
    "locust_requests": Style("#1d4ed8", "D"),
    "tls_greensock": Style("#15803d", "o"),
    "tls_uvloop": Style("#86198f", "v"),
    "tls_gevent": Style("#ea580c", "^"),
    "tls_epoll": Style("#111111", "X"),
    "proxy_greensock_tls": Style("#84cc16", "s"),
    "proxy_nginx_tls": Style("#6b7280", "*"),
    "connecting_greensock": Style("#15803d", "o"),
    "connecting_gevent": Style("#ea580c", "^"),
    "tls_site": Style("#15803d", "o"),
    "tls_nginx": Style("#111111", "X"),
    "workers_http": Style("#15803d", "o"),
    "workers_proxy": Style("#84cc16", "s"),
    "workers_proxy_nginx": Style("#111111", "X"),
}
#: The same without greensock's compiled engine.
STYLES |= {
    f"{name}_pure": replace(STYLES[name], line="--", width=1.2)
    for name in (
        "greensock_upcalls",
        "greensock_blocking",
        "http_server",
        "wsgi_server",
        "proxy_greensock",
        "udp_greensock",
    )
}
#: Of the seed's own three servers: none of ours, so none of our colours.
SEED_STYLES: dict[str, tuple[str, Style]] = {
    "synchronous_sockets": ("synchronous sockets (the seed)", Style("#a16207", "o")),
    "kernel_sockets": ("plain kernel sockets", Style("#64748b", "s")),
    "user_mode_epoll": ("user-mode epoll", Style("#94a3b8", "^", "--")),
}
