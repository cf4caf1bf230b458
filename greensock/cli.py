"""The command line: ``greensock run`` serves a server class, ``greensock proxy`` is the reverse proxy.

``greensock check`` looks at a configuration, ``greensock proxy reload`` has a proxy that runs read its own anew.
Both run in many processes under gunicorn (``pip install greensock[proxy]``), or with ``--single`` in this one. What
serves is patched: a worker after it was forked, a single process here, before anything that might be in the way is
imported. The master of many is not, and never has a hub.

``greensock top``, and ``proxy drain``, ``ready``, ``add``, ``remove`` and ``servers`` ask a server that runs, and serve
nobody.

Exit status: 0 when it was told to end, or has done what it was to do; 1 for what the system refused (an address, a log,
a process that is gone); 2 for what the command line or the configuration says wrong; 3 and 4 for a first worker that
could not begin.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import logging
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from greensock.version import __version__

if TYPE_CHECKING:
    from greensock.proxy.config import ProxyConfig

__all__ = ["main"]

REFUSED, WRONG = 1, 2
#: How a line of the log looks in a process of its own; under gunicorn it is gunicorn's.
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Seconds that requests have to end when a server class is stopped.
DRAIN = 30.0
#: Seconds that a worker may be silent.
TIMEOUT = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say, by default those of the program; return the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "top" or getattr(given, "job", None) not in (None, "reload"):
        from greensock.operations.commands import perform

        return perform(given)
    if given.command == "check":
        return _check(given.file)
    if getattr(given, "job", None) == "reload":
        return _reload(given)
    if given.workers is not None and given.single:
        parser.error("--workers, --single: one of both expected")
    if given.workers is not None and given.workers < 1:
        parser.error(f"--workers={given.workers}: at least 1 expected")
    for name in ("user", "group", "timeout") if given.single else ():
        if getattr(given, name) is not None:
            parser.error(f"--{name}, --single: one of both expected: one process is not watched, and stays whose it is")
    if given.timeout is None:
        given.timeout = TIMEOUT
    if given.timeout < 0:
        parser.error(f"--timeout={given.timeout}: at least 0 expected")
    if not 0 <= getattr(given, "drain", 0.0) < inf:
        parser.error(f"--drain={given.drain}: a finite number of seconds, at least 0, expected")
    if not given.single and not getattr(given, "check", False) and importlib.util.find_spec("gunicorn") is None:
        parser.error(
            "gunicorn is not installed, which many processes need: pip install 'greensock[proxy]', or --single"
        )
    if given.single:
        from gevent import monkey

        monkey.patch_all()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor; the usual 1,024 are few
    return _proxy(parser, given) if given.command == "proxy" else _run(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="greensock", description="Servers on greensock, in one process or many.")
    parser.add_argument("--version", action="version", version=f"greensock {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    proxy = commands.add_parser("proxy", help="the reverse proxy", description="The reverse proxy.")
    proxy.add_argument("--config", metavar="FILE", help="a configuration: see examples/reverse_proxy.toml")
    proxy.add_argument("--check", action="store_true", help="say what is wrong with the configuration, and end")
    proxy.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="[HOST]:PORT, or the path of a socket; 127.0.0.1:8080 if not given; may be repeated",
    )
    proxy.add_argument(
        "--upstream", action="append", metavar="URL", help="http://HOST:PORT, or unix:PATH; may be repeated"
    )
    proxy.add_argument("--log", metavar="FILE", help="of requests; - is standard output, the default; none is none")
    _add_jobs(proxy)
    check = commands.add_parser(
        "check", help="a configuration of the proxy", description="Say what is wrong with a configuration of the proxy."
    )
    check.add_argument("file", metavar="FILE", help="see examples/reverse_proxy.toml")
    run = commands.add_parser("run", help="a server class", description="Serve a class of your own.")
    run.add_argument("where", metavar="MODULE:CLASS", help="a subclass of greensock.Server")
    run.add_argument(
        "--bind",
        action="append",
        metavar="ADDRESS",
        help="[HOST]:PORT, or the path of a socket; 127.0.0.1:8000 if not given; may be repeated",
    )
    run.add_argument(
        "--option",
        "-o",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the class, its value as in Python: -o idle_timeout=60",
    )
    run.add_argument(
        "--drain", type=float, default=DRAIN, metavar="SECONDS", help="for what runs at the end; default: %(default)g"
    )
    for each, workers in (proxy, "the cores"), (run, "1"):
        each.add_argument("--workers", "-w", type=int, metavar="N", help=f"processes; default: {workers}")
        each.add_argument("--single", action="store_true", help="serve in this process itself, without gunicorn")
        each.add_argument(
            "--operations", metavar="ADDRESS",
            help="where operators ask, HOST:PORT or a path; their token is in GREENSOCK_OPERATIONS_TOKEN",
        )  # fmt: skip
        each.add_argument("--pid", metavar="FILE", help="where the master, or the single process, writes its number")
        each.add_argument("--user", metavar="USER", help="whose processes the workers are")
        each.add_argument("--group", metavar="GROUP")
        each.add_argument(
            "--timeout", type=int, metavar="SECONDS",
            help=f"a worker that is silent for longer is killed, and the log says where it hung; default: {TIMEOUT}",
        )  # fmt: skip
        each.add_argument(
            "--log-level",
            choices=["debug", "info", "warning", "error"],
            help="default: what the configuration says, or info",
        )
    _add_top(commands)
    return parser


def _add_top(commands: Any) -> None:
    top = commands.add_parser("top", help="what a running server does", description="Show what a running server does.")
    top.add_argument("address", metavar="ADDRESS", help="its operators' address: [HOST]:PORT, or the path of a socket")
    top.add_argument("--token-file", metavar="FILE", help="where the operators' token is, if reading needs it")
    top.add_argument("--once", action="store_true", help="write one report, and end; so without a terminal, too")
    top.add_argument("--interval", type=float, metavar="SECONDS", help="between two looks; default: 1, and 3 of --once")


def _add_jobs(proxy: argparse.ArgumentParser) -> None:
    jobs = proxy.add_subparsers(dest="job", metavar="JOB", title="jobs for a proxy that runs")
    _add_orders(jobs)


def _add_orders(jobs: Any) -> None:
    for name, words in ("drain", "give a server no new requests"), ("ready", "give it requests again"):
        job = jobs.add_parser(name, help=words, description=f"{words.capitalize()}, in all workers.")
        job.add_argument("server", metavar="SERVER", help="as the status page has it: HOST:PORT, or a path")
        job.add_argument("--upstream", metavar="NAME", help="in this one alone; default: in all that have it")
        _add_operators(job)
        if name == "drain":
            job.add_argument(
                "--wait", type=float, default=0.0, metavar="SECONDS",
                help="for what it has in hand; default: not at all",
            )  # fmt: skip
    for name, words in ("add", "have one more server"), ("remove", "have a server no more"):
        said = f"{words.capitalize()}, in all workers, until the proxy is restarted."
        job = jobs.add_parser(name, help=words, description=said)
        job.add_argument("upstream", metavar="UPSTREAM")
        if name == "remove":
            job.add_argument("server", metavar="SERVER", help="as it was given: HOST:PORT, a path, or its URL")
        else:
            job.add_argument("server", metavar="URL", help="http://HOST[:PORT], https://HOST[:PORT] or unix:PATH")
            counts = {"weight": "its share", "max-connections": "requests at once", "max-waiting": "that may wait"}
            for option, text in counts.items():
                job.add_argument(f"--{option}", type=int, metavar="N", help=text)
            job.add_argument("--backup", action="store_true", default=None, help="asked only when no other is up")
            job.add_argument("--srv", action="store_true", default=None, help="SRV records of its name are the servers")
        _add_operators(job)
    said = "List the servers, how they stand, and what they have in hand."
    _add_operators(jobs.add_parser("servers", help="list the servers", description=said))
    job = jobs.add_parser(
        "reload",
        help="have it read its configuration anew",
        description="Check the configuration of a proxy that runs, and have it read anew.",
    )
    job.add_argument("--pid", required=True, metavar="FILE", help="where the proxy wrote its number")
    job.add_argument("--config", metavar="FILE", help="its configuration, if that cannot be told from the process")
    job.add_argument(
        "--operations", metavar="ADDRESS", help="its operators' address, to wait there for what comes of it"
    )
    job.add_argument("--token-file", metavar="FILE", help="where the operators' token is, if reading needs it")


def _add_operators(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--operations", required=True, metavar="ADDRESS", help="the operators' address: [HOST]:PORT, or a path"
    )
    job.add_argument(
        "--token-file", metavar="FILE",
        help="where the operators' token is; default: what GREENSOCK_OPERATIONS_TOKEN says",
    )  # fmt: skip


def _fail(error: object, status: int) -> int:
    print(error, file=sys.stderr)
    return status


# -- the proxy


def _proxy(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    from greensock.proxy.config import ConfigError, load_config, parse_config

    if given.config and (given.listen or given.upstream or given.log or given.operations):
        parser.error("--config says it all: --listen, --upstream, --log and --operations don't go with it")
    if not given.config and not given.upstream:
        parser.error("--config, or an --upstream at least, expected")
    path = given.log or "-"
    try:
        if given.config:
            config = load_config(given.config)
        else:
            told = {
                "listen": given.listen or ["127.0.0.1:8080"],
                "upstreams": {"upstream": {"servers": given.upstream}},
                **({} if path == "none" else {"log": {"path": path}}),
                **({"operations": _operations(given)} if given.operations else {}),
            }
            config = parse_config(told, "the command line")
    except ConfigError as error:
        return _fail(error, WRONG)
    if given.check:
        return _look(config, given.config or "the command line")
    read = partial(load_config, os.path.abspath(given.config)) if given.config else None
    if given.single:
        return _single_proxy(config, read, given)
    from greensock.sources import ProxySource

    return _many(ProxySource(config, read), given, given.workers or len(os.sched_getaffinity(0)))


def _single_proxy(config: ProxyConfig, read: Any, given: argparse.Namespace) -> int:
    from greensock.pid_files import PidFile
    from greensock.proxy.log.error_log import ErrorLog
    from greensock.proxy.proxy_program import CannotStart, ProxyProgram
    from greensock.sources import Refused

    try:
        error_log = ErrorLog(config.log.error, config.log.facility)
    except OSError as error:
        return _fail(f"error log {config.log.error}: {error}", REFUSED)
    loggers = logging.getLogger()
    loggers.addHandler(error_log)

    def follow(config: ProxyConfig) -> None:
        loggers.setLevel((given.log_level or config.log.level).upper())
        try:
            error_log.follow(config.log.error, config.log.facility)
        except OSError as error:
            logging.getLogger("greensock.server").error("error log %s: %s", config.log.error, error)

    follow(config)
    pid_file = PidFile(given.pid) if given.pid is not None else None
    program = ProxyProgram(config, read, on_reload=follow, on_reopen=error_log.reopen)

    def started() -> None:
        if pid_file is not None:
            pid_file.take()
        _say_where(*program.proxies)

    try:
        program.serve_forever(started)
    except (CannotStart, Refused) as error:
        return _fail(error, REFUSED)
    finally:
        if pid_file is not None:
            pid_file.remove()
    return 0


def _look(config: ProxyConfig, file: str) -> int:
    """Say what keeps a sound configuration from starting, and what may be amiss; return the exit status."""
    from greensock.proxy.config import check_listeners
    from greensock.proxy.server_names import check_names

    problems, warnings = check_listeners(config, file), check_names(config, file)
    for each in (*problems, *warnings):
        print(each, file=sys.stderr)
    if problems:
        return WRONG
    print("the configuration is sound")
    return 0


def _check(file: str) -> int:
    from greensock.proxy.config import ConfigError, load_config

    try:
        return _look(load_config(file), file)
    except ConfigError as error:
        return _fail(error, WRONG)


def _reload(given: argparse.Namespace) -> int:
    from greensock.reloading import reload_proxy
    from greensock.sources import Refused

    try:
        print(reload_proxy(given.pid, given.config, given.operations, given.token_file))
    except Refused as error:
        return _fail(error, REFUSED if error.by_system else WRONG)
    return 0


# -- a server class


def _run(given: argparse.Namespace) -> int:
    from greensock.pid_files import PidFile
    from greensock.sources import ClassSource, Refused

    ended = ExitStack()
    addresses = given.bind or ["127.0.0.1:8000"]
    try:
        options = dict(map(_option, given.option))
        source = ClassSource(given.where, addresses, options, given.drain, _operations_options(given))
        if not given.single:
            return _many(source, given, given.workers or 1)
        _log_to_stderr(given)
        source.made_class()
        with ExitStack() as undone:
            sockets = [undone.enter_context(source.listen(address)) for address in source.addresses]
            server, *operators = source.made_servers(sockets)
            if given.pid is not None:
                pid_file = PidFile(given.pid)
                pid_file.take()
                ended.callback(pid_file.remove)
            undone.pop_all()
    except Refused as error:
        return _fail(error, REFUSED if error.by_system else WRONG)
    with ended:
        for each in (server, *operators):
            ended.callback(each.abort)
            each.start()
        _say_where(server)
        server.serve_forever()
    return 0


def _option(text: str) -> tuple[str, Any]:
    from greensock.sources import Refused

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise Refused(f"--option {text!r}: NAME=VALUE expected")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):  # {[]: 1}, say
        return name, value


def _operations(given: argparse.Namespace) -> dict[str, Any]:
    """Return what the operators' address is told: the token is not for all to read who list processes."""
    token = os.environ.get("GREENSOCK_OPERATIONS_TOKEN")
    return {"address": given.operations, **({"token": token} if token else {})}


def _operations_options(given: argparse.Namespace) -> Any:
    from greensock.operations.operations_options import OperationsOptions
    from greensock.sources import Refused

    if not given.operations:
        return None
    try:
        return OperationsOptions(**_operations(given))
    except ValueError as error:
        raise Refused(f"--operations: {error}") from error


# -- both


def _many(source: Any, given: argparse.Namespace, workers: int) -> int:
    from greensock.gunicorn.master import ServerApplication
    from greensock.sources import Refused

    settings = {"workers": workers, "timeout": given.timeout, "pidfile": given.pid}
    further = {"user": given.user, "group": given.group, "loglevel": given.log_level}
    settings.update({name: value for name, value in further.items() if value is not None})
    try:
        ServerApplication(source, settings).run()
    except Refused as error:
        return _fail(error, REFUSED if error.by_system else WRONG)
    return 0


def _log_to_stderr(given: argparse.Namespace) -> None:
    logging.basicConfig(format=LINE, level=(given.log_level or "info").upper())


def _say_where(*servers: Any) -> None:
    for address in [address for server in servers for address in server.addresses]:
        host, port = address[:2] if isinstance(address, tuple) else (address, None)
        shown = host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"listening on {shown}", flush=True)
