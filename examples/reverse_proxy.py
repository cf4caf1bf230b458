"""A reverse proxy in front of HTTP servers; without any, in front of a site of its own."""

from gevent import monkey

monkey.patch_all()

import argparse
import logging
import resource
import sys
from functools import partial
from typing import Any

sys.path.append(__file__.rpartition("examples")[0])  # so that `python examples/reverse_proxy.py` finds the others

from examples._self_signed import self_signed
from examples._site import Site, WebSocketEcho
from examples._tour import take_tour, url_of
from greensock import TLS, Server
from greensock.proxy import (
    CannotStart,
    ConfigError,
    ProxyConfig,
    ProxyProgram,
    ReverseProxy,
    check_listeners,
    load_config,
    parse_config,
)


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
    return serve(config, given.config, sites, given.once, tls)


def serve(config: ProxyConfig, file: str | None, sites: list[Site], once: bool, tls: TLS | None) -> int:
    options: dict[str, Any] = {} if tls is None else {"tls": tls}
    program = ProxyProgram(config, partial(load_config, file) if file else None, **options)
    passed = True

    def started() -> None:
        nonlocal passed
        for proxy in program.proxies:
            print(f"listening on {shown(proxy)}", flush=True)
        if sites:
            print(
                "No server was named: the proxy stands before a site of its own, two servers and an echo of WebSockets."
            )
            passed = take_tour(program.proxies[0], sites)
            if once:
                program.stop()
            else:
                print(f"It serves now: open {url_of(program.proxies[0])}/ in a browser. Ctrl-C ends it.", flush=True)

    try:
        program.serve_forever(started)
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 1
    for site in sites:
        site.stop()
    return int(not passed)


def shown(proxy: ReverseProxy) -> str:
    host, port = proxy.server_host, proxy.server_port
    if host is None:
        return str(proxy.address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
