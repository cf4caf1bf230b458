"""A reverse proxy in front of HTTP servers; without any, in front of a site of its own."""

from gevent import monkey

monkey.patch_all()

import argparse
import logging
import resource
import signal
import sys
from typing import Any

import gevent

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/reverse_proxy.py` finds the others

from examples._self_signed import self_signed
from examples._site import Site, WebSocketEcho
from examples._tour import take_tour, url_of
from greensock import TLS, Server
from greensock.proxy import ConfigError, Gateway, ProxyConfig, ReverseProxy, check_listeners, load_config, parse_config

log = logging.getLogger("greensock.proxy")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.reverse_proxy", description=__doc__)
    parser.add_argument("--config", metavar="FILE", help="a configuration: see examples/reverse_proxy.toml")
    parser.add_argument("--check", action="store_true", help="say what is wrong with the configuration, and end")
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="[HOST]:PORT, or the path of a socket; 127.0.0.1:8080 if not given; may be repeated",
    )
    parser.add_argument(
        "--upstream", action="append", metavar="URL", help="http://HOST:PORT, or unix:PATH; may be repeated"
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="of requests; - is standard output, none is none; default: -, and none with a site of its own",
    )
    parser.add_argument(
        "--tls-self-signed",
        action="store_true",
        help="speak TLS, with a certificate for localhost that is made for this run: for a first try",
    )
    parser.add_argument("--once", action="store_true", help="with a site of its own: end after the tour")
    return parser


def configuration(given: argparse.Namespace, **tables: Any) -> ProxyConfig:
    if given.config:
        return load_config(given.config)
    path = given.log or ("-" if given.upstream else "none")  # the tour is not to be buried
    log = {} if path == "none" else {"log": {"path": path}}
    return parse_config({"listen": given.listen or ["127.0.0.1:8080"], **log, **tables}, "the command line")


def started_site() -> tuple[list[Site], dict[str, Any], list[dict[str, Any]]]:
    """Start the embedded origin; return its servers, and what the proxy is to be told."""
    sites = [Site(("127.0.0.1", 0)) for _ in range(2)]
    echo = WebSocketEcho(("127.0.0.1", 0))
    servers: list[Server[Any]] = [*sites, echo]
    for server in servers:
        server.start()
    upstreams = {
        "site": {"servers": [f"http://127.0.0.1:{site.server_port}" for site in sites]},
        "echo": {"servers": [f"http://127.0.0.1:{echo.server_port}"]},
    }
    return sites, upstreams, [{"path": "/echo", "upstream": "echo"}, {"upstream": "site"}]


def shown(address: Any) -> str:
    if isinstance(address, str):
        return address
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> int:
    parser = arguments()
    given = parser.parse_args()
    if given.config and (given.listen or given.upstream or given.log or given.tls_self_signed):
        parser.error("--config says it all: --listen, --upstream, --log and --tls-self-signed don't go with it")
    if given.check and not (given.config or given.upstream):
        parser.error("--check wants a --config, or an --upstream")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    sites: list[Site] = []
    try:
        if given.config or given.upstream:
            config = configuration(given, upstreams={"upstream": {"servers": given.upstream or []}})
        else:
            sites, upstreams, routes = started_site()
            config = configuration(given, upstreams=upstreams, routes=routes, timeouts={"drain": 1})
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if given.check:
        problems = check_listeners(config, given.config or "the command line")
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            print("the configuration is sound")
        return 2 if problems else 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tls = None
    if given.tls_self_signed:
        try:
            tls = self_signed()
        except ImportError:
            parser.error("--tls-self-signed needs the package cryptography: pip install cryptography")
    return serve(config, sites, given.once, tls)


def reopen(gateway: Gateway) -> None:
    """Open the log anew: it was renamed."""
    if gateway.log is not None:
        gateway.log.reopen()
    else:
        log.warning("SIGUSR1: there is no log to be opened anew")


def serve(config: ProxyConfig, sites: list[Site], once: bool, tls: TLS | None) -> int:
    try:
        gateway = config.gateway()
    except ValueError as error:
        print(f"the log: {error}", file=sys.stderr)
        return 1
    gevent.signal_handler(signal.SIGUSR1, reopen, gateway)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        gevent.signal_handler(number, log.warning, "%s is ignored: a new configuration needs a restart", number.name)
    proxies: list[ReverseProxy] = []
    for listener in config.listeners:
        try:
            options = {**config.proxy_options(listener), **({} if tls is None else {"tls": tls})}
            proxies.append(ReverseProxy(listener.address, gateway, **options))
            proxies[-1].start()
        except (OSError, ValueError) as error:
            print(f"cannot listen on {shown(listener.address)}: {error}", file=sys.stderr)
            return 1
        print(f"listening on {shown(proxies[-1].address)}", flush=True)
    if sites:
        print("No server was named: the proxy stands before a site of its own, two servers and an echo of WebSockets.")
    failed = bool(sites) and not take_tour(proxies[0], sites)
    if not once:
        if sites:
            print(f"It serves now: open {url_of(proxies[0])}/ in a browser. Ctrl-C ends it.", flush=True)
        others = [gevent.spawn(proxy.serve_forever) for proxy in proxies[1:]]
        proxies[0].serve_forever()
        gevent.joinall(others, timeout=1)
    servers: list[Server[Any]] = [*proxies, *sites]
    for server in servers:
        server.stop()
    if gateway.log is not None:
        gateway.log.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
