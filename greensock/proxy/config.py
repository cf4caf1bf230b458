"""A configuration: read from a mapping or a TOML file, checked whole, and made into a :class:`Gateway`.

The keys of a table are the fields of the class that it becomes, so that each checks itself; here is what classes can't
know: which tables there are, and what they say of each other. Every problem is found in one go.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from greensock.http.wire.limits import DEFAULT_LIMITS, Limits
from greensock.limits.access_lists import BadNetworks, read_networks
from greensock.limits.client_table import ClientTable
from greensock.limits.redis_share import has_redis
from greensock.operations.operations_options import OperationsOptions
from greensock.proxy.config_tables import ConfigProblem, Tables, guess
from greensock.proxy.environment import expanded, settled
from greensock.proxy.forwarded import Forwarding
from greensock.proxy.gateway import Gateway, scope_of
from greensock.proxy.guard import GuardOptions, SharedBlocks, table_name, table_of
from greensock.proxy.key_lines import KeyLines, name_of, path_of
from greensock.proxy.log.access_log import AccessLog
from greensock.proxy.log.targets import is_file
from greensock.proxy.options import (
    BasicAuth,
    Buffering,
    ForwardAuth,
    ListenOptions,
    ListenPlace,
    ListenTLS,
    LogOptions,
    ProxyTimeouts,
    ServerOptions,
    UpstreamOptions,
    UpstreamTLS,
)
from greensock.proxy.routes import Route
from greensock.proxy.rules import ErrorPage, ErrorPages, FieldEdits, Redirect, StaticAnswer
from greensock.proxy.upstream.health import HealthOptions
from greensock.proxy.upstream.sticky import StickyCookie

__all__ = ["ConfigError", "ProxyConfig", "check_listeners", "load_config", "locate", "may_listen", "parse_config"]

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

#: The tables and keys of the whole.
TABLES = (
    *("listen", "proxy_protocol", "abort_on_eof", "server", "log", "limits", "answer_limits", "timeouts"),
    *("forwarding", "guard", "operations", "error_pages", "upstreams", "routes", "buffer"),
)
#: Keys that people know from other proxies, and what they are told.
NOT_YET = {
    "tls": 'of a listener: listen = [{ address = ":443", tls = { certificate = ..., key = ... } }]',
    "metrics": 'at the operators\' address: [operations] address = "127.0.0.1:9180"',
    "cache": "not there yet",
    "compression": "not there yet: let the server do it, or what stands in front",
}

#: Keys of an upstream that are no options of its own.
GROUP_TABLES = ("servers", "health", "sticky", "tls")
#: What a route may lead to.
ACTIONS = ("upstream", "answer", "redirect")
#: Tables of a route, what they become, and what stands in for what is missing there.
OF_ROUTES: tuple[tuple[str, Any, Mapping[str, Any]], ...] = (
    ("auth", ForwardAuth, {"url": "http://localhost"}),
    ("basic_auth", BasicAuth, {}),
)
#: Timeouts that are none of a route's: they are the connection's, or all the proxy's.
OF_CONNECTIONS = ("request_header", "request_body", "min_body_rate", "keep_alive", "send", "linger", "drain")
#: What of a guard is none of a route's.
OF_ALL = ("connection_rate", "connection_burst", "max_connections", "hosts", "storage")

#: What stands in for what is wrong while the rest of its table is checked.
_SERVER = ServerOptions("http://localhost")
_URL = {"url": _SERVER.url}
_GROUP = {"name": "upstream", "servers": (_SERVER,)}
_COOKIE = {"name": "sticky", "secret": b"?" * 16}

#: How many tables and lists may be in each other.
MAX_DEPTH = 64

#: Hosts that stand for every address, of IPv4 and IPv6.
EVERY = frozenset({"", "::"})

#: The right to listen on low ports (capabilities(7)), and where the system says which ports are low.
CAP_NET_BIND_SERVICE = 10
_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")

#: What kind of text an error page is, by the end of its file's name; others are HTML.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}

_at_line = re.compile(r"\(at line ([0-9]+)").search
_port = re.compile(r"(?P<host>|[^:\[\]/]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})").fullmatch


class ConfigError(Exception):
    """A configuration that can't be used, with all that is wrong in it."""

    def __init__(self, errors: list[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, errors)))
        #: All that is wrong.
        self.errors = errors


@dataclasses.dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A sound configuration."""

    #: Where to listen: ``(host, port)``, or the path of a Unix socket. An empty host is every address, IPv6 ones too.
    listen: tuple[tuple[str, int] | str, ...]
    #: The same, each with how it listens.
    listeners: tuple[ListenPlace, ...]
    #: Whether connections begin with a PROXY header.
    proxy_protocol: bool
    #: Whether a client that closes its sending half while a server works for it has left.
    abort_on_eof: bool
    #: How much the listeners take on.
    server: ListenOptions
    #: Groups of servers, each with its health and its cookie.
    upstreams: tuple[tuple[UpstreamOptions, HealthOptions, StickyCookie | None], ...]
    #: Which requests go where.
    routes: tuple[Route, ...]
    #: The log of requests.
    log: LogOptions
    #: How large the parts of a request may be.
    limits: Limits
    #: How large the parts of an answer may be.
    answer_limits: Limits
    #: How long its phases may take.
    timeouts: ProxyTimeouts
    #: What is believed, and told.
    forwarding: Forwarding
    #: What clients may do; None: whatever they want.
    guard: GuardOptions | None
    #: What is shown for errors.
    error_pages: ErrorPages
    #: Where operators ask; None: nowhere.
    operations: OperationsOptions | None = None
    #: How much of an answer is held for a client that is behind.
    buffer: Buffering = dataclasses.field(default_factory=Buffering)

    def proxy_options(self, listener: ListenPlace | None = None) -> dict[str, Any]:
        """Return what a :class:`ReverseProxy` is to be told beside the gateway, for one of ``listeners``."""
        options: dict[str, Any] = {"proxy_protocol": self.proxy_protocol, "abort_on_eof": self.abort_on_eof}
        if listener is not None and listener.tls is not None:
            options |= {"tls": listener.tls.made, "hsts": listener.tls.hsts_value}
        if listener is not None and listener.redirect_to is not None:
            options["redirect_to_https"] = listener.redirect_to
        return options

    def guard_tables(self, shared: SharedBlocks) -> dict[str, ClientTable]:
        """Return the tables of its guards that processes share, made before they are forked, by their memory's name."""
        found = {} if self.guard is None else {table_name(self.guard, ""): table_of(self.guard, "", shared)}
        for route in self.routes:
            if route.guard is not None:
                scope = scope_of(route)
                found[table_name(route.guard, scope)] = table_of(route.guard, scope, shared)
        return found

    def gateway(self, shared: SharedBlocks | None = None) -> Gateway:
        """Return the gateway, with what it shares with other processes. Its log is opened with its first line; close it
        when all is over.

        Raises:
            ValueError: the log is to go to standard output, and the program was started without one; or a file of
                networks is no longer right.
        """
        log = self.log
        return Gateway(
            self.upstreams,
            self.routes,
            forwarding=self.forwarding,
            timeouts=self.timeouts,
            limits=self.limits,
            answer_limits=self.answer_limits,
            guard=self.guard,
            error_pages=self.error_pages,
            log=None if log.path is None else AccessLog(log.path, log.format, log.max_pending, log.facility),
            listen=self.server,
            shared=shared,
            buffer=self.buffer,
        )


def load_config(path: str, environ: Mapping[str, str] = os.environ) -> ProxyConfig:
    """Read a TOML file; ${NAME} in its texts is a value of the environment, by default of this process.

    Raises:
        ConfigError: it can't be read, is no TOML, or says what may not be.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            [ConfigProblem(path, "", "", "", f"{error.strerror}: a file that can be read expected")]
        ) from None
    mapping, wrong = expanded(_parsed(data, path), environ)
    problems: list[ConfigProblem] = []
    config = None
    try:
        config = parse_config(mapping, path)
    except ConfigError as error:
        # What can not be filled in is told once, and not of what it is a part of, too.
        unknown = [way for way, _ in wrong]
        for problem in error.errors:
            place = path_of(mapping, problem.table, problem.key)
            if not any(place[: len(way)] == way or (place and way[: len(place)] == place) for way in unknown):
                problems.append(problem)
    if config is None or wrong:
        raise ConfigError(_located(problems, mapping, data.decode(), path, wrong))
    return config


def _parsed(data: bytes, path: str) -> dict[str, Any]:
    """Return what a file says, which is TOML; errors have the line."""
    try:
        found: dict[str, Any] = _toml.loads(data.decode())
    except UnicodeDecodeError as error:
        line, text = data.count(b"\n", 0, error.start) + 1, str(error)
    except _toml.TOMLDecodeError as error:
        said = _at_line(str(error))
        line, text = int(said[1]) if said else data.count(b"\n") + 1, str(error)
    except RecursionError:
        line, text = 0, "it is nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        line, text = 0, str(error).partition(":")[0]
    else:
        line, text = 0, _excess(found)
        if not text:
            return found
    raise ConfigError([ConfigProblem(path, "", "", "", f"no TOML: {text}", line)])


def _excess(found: Mapping[str, Any]) -> str:
    """Return what of a file is beyond bounds: whole numbers of which TOML promises no more than 64 bits, and depth."""
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        inner = [each.values() if isinstance(each, Mapping) else each for each in level]
        level = [each for some in inner for each in some if isinstance(each, int | list | Mapping)]
        if any(isinstance(each, int) and not -(1 << 63) <= each < 1 << 63 for each in level):
            return "a whole number of more than 64 bits"
        level = [each for each in level if not isinstance(each, int)]
        if not level:
            return ""
    return "it is nested too deeply"


def _located(
    problems: Iterable[ConfigProblem],
    mapping: Mapping[str, Any],
    text: str,
    path: str,
    wrong: Iterable[tuple[tuple[str | int, ...], str]] = (),
) -> list[ConfigProblem]:
    """Return problems with their lines, in the order of the file; ``wrong`` is what could not be filled in."""
    lines = KeyLines(text)
    found = [dataclasses.replace(each, line=lines.find(_way_to(each, mapping))) for each in problems]
    reader = _Reader(path)
    for way, expected in wrong:
        value: Any = mapping
        for step in way:
            value = value[step]
        reader.note(*name_of(way), value, expected)
        found.append(dataclasses.replace(reader.problems[-1], line=lines.find(way)))
    return sorted(found, key=lambda each: each.line)


def _way_to(problem: ConfigProblem, mapping: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return the way to what a problem is about: in a list to the item whose text is wrong, if it is one."""
    way = path_of(mapping, problem.table, problem.key)
    there: Any = mapping
    for step in way:
        try:
            there = there[step]
        except (LookupError, TypeError):  # it is missing
            return way
    for index, item in enumerate(there) if isinstance(there, list) else ():
        texts = item.values() if isinstance(item, Mapping) else [item]
        if any(isinstance(each, str) and json.dumps(each, ensure_ascii=False) == problem.value for each in texts):
            return (*way, index)
    return way


def locate(problems: list[ConfigProblem], file: str) -> list[ConfigProblem]:
    """Return what was found in a configuration that was read from this file, with lines; as it is, if it is none."""
    if not problems or not os.path.isfile(file):
        return problems
    try:
        data = Path(file).read_bytes()
        return _located(problems, _parsed(data, file), data.decode(), file)
    except (OSError, ConfigError):  # it has changed since
        return problems


def parse_config(mapping: Mapping[str, Any], file: str = "") -> ProxyConfig:
    """Check a configuration; ``file`` is what errors call it. Error pages are read from their files.

    Raises:
        ConfigError: with everything that is wrong.
    """
    reader = _Reader(file)
    config = reader.read(mapping)
    if reader.problems or config is None:
        raise ConfigError(reader.problems)
    return config


def check_listeners(config: ProxyConfig, file: str = "") -> list[ConfigProblem]:
    """Return what keeps the proxy from listening where it is told to: names are looked up, addresses tried.

    Nothing is listened on, and no port is taken: a program that listens there now is not disturbed.
    """
    reader = _Reader(file)
    places = [("", "listen", address) for address in config.listen]
    if config.operations is not None:
        places.append(("[operations]", "address", config.operations.place))
    for table, key, address in places:
        problem = _problem_of_path(address) if isinstance(address, str) else _problem_of_host(*address)
        if problem:
            shown = address if isinstance(address, str) else _written(*address)
            reader.note(table, key, shown, problem)
    return locate(reader.problems, file)


def _problem_of_path(path: str) -> str:
    place = Path(path)
    if len(os.fsencode(path)) > 107:
        return "a path of at most 107 bytes expected"
    try:
        if not stat.S_ISSOCK(place.stat().st_mode):
            return "a socket, or nothing, expected: something else is there"
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"a path that can be listened on expected: {error.strerror}"
    if not place.parent.is_dir():
        return "a path in a directory that is there expected"
    return "" if os.access(place.parent, os.W_OK) else "a path in a directory that may be written to expected"


def _problem_of_host(host: str, port: int) -> str:
    if not may_listen(port):
        return "a port from 1024 on expected, or the right to have a lower one (CAP_NET_BIND_SERVICE)"
    if not host:
        return ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"an address of this machine expected: {error.strerror}"
    for family, kind, protocol, _, sockaddr in found:
        with socket.socket(family, kind, protocol) as sock:
            try:
                sock.bind((sockaddr[0], 0, *sockaddr[2:]))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    return "an address of this machine expected"
                return str(error.strerror)
    return ""


def may_listen(port: int) -> bool:
    """Whether this process has the right to listen on a port, which not everybody has to the low ones."""
    try:
        first = int(_UNPRIVILEGED.read_text())
        rights = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return True
    return not 0 < port < first or rights is None or bool(int(rights[1], 16) >> CAP_NET_BIND_SERVICE & 1)


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Reader(Tables):
    """Reads all tables."""

    #: What the rates of all clients are shared by.
    storage: str | None = None

    # -- the whole

    def read(self, mapping: Mapping[str, Any]) -> ProxyConfig | None:
        for key in NOT_YET.keys() & mapping:
            self.note("", key, mapping[key], NOT_YET[key])
        self.check_keys("", mapping, [*TABLES, *NOT_YET], shown=TABLES)
        listen = self.listeners(mapping.get("listen", ["127.0.0.1:8080"]))
        protocol = self.flag(mapping, "proxy_protocol", False)
        abort_on_eof = self.flag(mapping, "abort_on_eof", True)
        server = self.made("[server]", mapping.get("server", {}), ListenOptions)
        upstreams = self.upstreams(mapping.get("upstreams", {}))
        named = mapping.get("upstreams")
        names = list(named) if isinstance(named, Mapping) else []  # the wrong ones, too
        log = self.log(mapping.get("log", {"path": None}))
        limits = self.made("[limits]", mapping.get("limits", {}), Limits, max_interim=DEFAULT_LIMITS.max_interim)
        given = mapping.get("answer_limits", {})
        of_requests: dict[str, Any] = {"max_target": DEFAULT_LIMITS.max_target, "max_field": None}
        answer_limits = self.made("[answer_limits]", given, Limits, **of_requests)
        timeouts = self.made("[timeouts]", mapping.get("timeouts", {}), ProxyTimeouts)
        guard = self.guard("[guard]", mapping["guard"]) if "guard" in mapping else None
        self.storage = None if guard is None else guard.storage
        routes = self.routes(mapping.get("routes", []), names, timeouts or ProxyTimeouts())
        forwarding = self.made("[forwarding]", mapping.get("forwarding", {}), Forwarding)
        pages = self.error_pages(mapping.get("error_pages", {}))
        operations = self.operations(mapping, listen)
        buffer = self.buffer("[buffer]", mapping.get("buffer", {}))
        self.check_loops(upstreams, [each.address for each in listen])
        if protocol and forwarding is not None and not forwarding.trusted:
            self.note("", "proxy_protocol", protocol, "forwarding.trusted to name who may send it expected")
        if not (server and log and limits and answer_limits and timeouts and forwarding and pages is not None):
            return None
        if self.problems or buffer is None:
            return None
        return ProxyConfig(
            listen=tuple(each.address for each in listen),
            listeners=tuple(listen),
            proxy_protocol=protocol,
            abort_on_eof=abort_on_eof,
            server=server,
            upstreams=tuple(upstreams),
            routes=tuple(routes),
            log=log,
            limits=limits,
            answer_limits=answer_limits,
            timeouts=timeouts,
            forwarding=forwarding,
            guard=guard,
            error_pages=pages,
            operations=operations,
            buffer=buffer,
        )

    def flag(self, mapping: Mapping[str, Any], key: str, default: bool) -> bool:
        value = settled(mapping.get(key, default), "bool")
        if not isinstance(value, bool):
            self.note("", key, value, "true or false expected")
            return default
        return value

    def operations(self, mapping: Mapping[str, Any], listen: list[ListenPlace]) -> OperationsOptions | None:
        if "operations" not in mapping:
            return None
        samples = {"address": "127.0.0.1:0"}
        found = self.made("[operations]", mapping["operations"], OperationsOptions, samples=samples)
        if found is not None and any(_overlap(found.place, each.address) for each in listen):
            self.note("[operations]", "address", found.address, "an address of its own expected: listen has it")
        return found

    def listeners(self, given: Any) -> list[ListenPlace]:
        texts = [given] if isinstance(given, str | Mapping) else given
        expected = "HOST:PORT, :PORT, [v6]:PORT or the path of a socket expected"
        if not isinstance(texts, list) or not texts:
            self.note("", "listen", given, f"a list of {expected}")
            return []
        found: list[ListenPlace] = []
        redirected: list[tuple[int, Any]] = []
        for place, entry in enumerate(texts, 1):
            table: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"address": entry}
            where = f"listen no. {place}"
            self.check_keys(where, table, ("address", "tls", "redirect"))
            text = settled(table.get("address"))
            address = _address(text)
            tls = (
                self.made(f"{where} tls", table["tls"], ListenTLS, samples={"certificate": None})
                if "tls" in table
                else None
            )
            if isinstance(text, str) and text.startswith("https://"):
                self.note("", "listen", text, f"tls is {NOT_YET['tls']}")
            elif address is None:
                self.note("", "listen", text if entry is text else entry, expected)
            elif any(_overlap(address, each.address) for each in found):
                self.note("", "listen", text, "each address once expected: one before takes it, too")
            elif "redirect" in table and (table["redirect"] != "https" or "tls" in table):
                self.note(where, "redirect", table["redirect"], '"https" expected, of a listener without tls')
            else:
                if "redirect" in table:
                    redirected.append((len(found), text))
                found.append(ListenPlace(address, tls))
        # To the port that browsers take for granted, or to the first there is.
        ports = [each.address[1] for each in found if each.tls is not None and isinstance(each.address, tuple)]
        for index, text in redirected:
            if not ports:
                self.note("", "listen", text, "a listener with tls beside it expected, to redirect to")
            else:
                found[index] = ListenPlace(found[index].address, None, 443 if 443 in ports else ports[0])
        return found

    # -- upstreams

    def upstreams(self, given: Any) -> list[tuple[UpstreamOptions, HealthOptions, StickyCookie | None]]:
        if not isinstance(given, Mapping) or not given:
            self.note("[upstreams]", "", given or None, "at least one [upstreams.NAME] expected")
            return []
        made = [self.upstream(name, table) for name, table in given.items()]
        return [each for each in made if each is not None]

    def upstream(self, name: str, given: Any) -> tuple[UpstreamOptions, HealthOptions, StickyCookie | None] | None:
        table = f"[upstreams.{name}]"
        if not isinstance(given, Mapping):
            self.note(table, "", given, "a table expected")
            return None
        rest = {key: value for key, value in given.items() if key not in GROUP_TABLES}
        health = self.made(f"[upstreams.{name}.health]", given.get("health", {}), HealthOptions)
        sticky = None
        if "sticky" in given:
            sticky = self.made(f"[upstreams.{name}.sticky]", given["sticky"], StickyCookie, samples=_COOKIE)
        tls = None
        if "tls" in given:
            tls = self.made(f"[upstreams.{name}.tls]", given["tls"], UpstreamTLS)
        servers = self.servers(table, given.get("servers"))
        known = {"name": name, "tls": tls, "servers": servers or (_SERVER,)}
        group = self.made(table, rest, UpstreamOptions, samples=_GROUP, others=GROUP_TABLES, **known)
        if group is None or health is None or not servers:
            return None
        return group, health, sticky

    def servers(self, table: str, given: Any) -> tuple[ServerOptions, ...]:
        if not isinstance(given, list) or not given:
            self.note(table, "servers", given, "a list of http://HOST:PORT, https://HOST:PORT or unix:PATH expected")
            return ()
        made = []
        for place, each in enumerate(given, 1):
            as_table = {"url": each} if isinstance(each, str) else each
            made.append(self.made(f"{table} servers no. {place}", as_table, ServerOptions, samples=_URL))
        return tuple(each for each in made if each is not None)

    def check_loops(self, upstreams: Iterable[Any], listen: list[tuple[str, int] | str]) -> None:
        """Note servers that are the proxy itself."""
        for group, _, _ in upstreams:
            for server in group.servers:
                if any(_is_same(server.origin.address, address) for address in listen):
                    self.note(f"[upstreams.{group.name}]", "servers", server.url, "the proxy listens there itself")

    # -- routes

    def routes(self, given: Any, names: list[str], timeouts: ProxyTimeouts) -> list[Route]:
        if not isinstance(given, list):
            self.note("[[routes]]", "", given, "tables, each with [[routes]] above it, expected")
            return []
        if not given:
            if len(names) > 1:
                self.note("[[routes]]", "", None, f"missing: there are {len(names)} upstreams, {', '.join(names)}")
            return [Route(names[0], name=names[0])] if names else []
        routes = [self.route(place, each, names, timeouts) for place, each in enumerate(given, 1)]
        found = [route for route in routes if route is not None]
        for place, route in enumerate(routes, 1):
            before = [each for each in routes[: place - 1] if each is not None and route is not None]
            if any(_takes_the_same(each, route) for each in before if route is not None):
                self.note(f"[[routes]] no. {place}", "", None, "the same as one before: never taken")
        for name in names if len(found) == len(routes) else ():
            if all(route.action != name for route in found):
                self.note(f"[upstreams.{name}]", "", None, "no route leads there")
        return found

    def route(self, place: int, given: Any, names: list[str], timeouts: ProxyTimeouts) -> Route | None:
        table = f"[[routes]] no. {place}"
        if not isinstance(given, Mapping):
            self.note(table, "", given, "a table expected")
            return None
        rest = dict(given)
        ready: dict[str, Any] = {}
        action = self.action(table, rest, names)
        for key in ("request_fields", "response_fields"):
            if key in rest and (edits := self.made(f"{table} {key}", rest.pop(key), FieldEdits)) is not None:
                ready[key] = edits
        for key, kind, sample in OF_ROUTES:
            if key in rest and (made := self.made(f"{table} {key}", rest.pop(key), kind, samples=sample)) is not None:
                ready[key] = made
        if "buffer" in rest and (held := self.buffer(f"{table} buffer", rest.pop("buffer"))) is not None:
            ready["buffer"] = held
        if "timeouts" in rest and (own := self.route_timeouts(table, rest.pop("timeouts"), timeouts)) is not None:
            ready["timeouts"] = own
        if "guard" in rest and (guard := self.route_guard(f"{table} guard", rest.pop("guard"))) is not None:
            ready["guard"] = guard
        for key in ("headers", "cookies", "query"):
            if isinstance(rest.get(key), Mapping):
                rest[key] = {name: None if value is True else value for name, value in rest[key].items()}
        if isinstance(action, str):
            rest.setdefault("name", action)
        route = self.made(table, rest, Route, others=ACTIONS, action=action or "?", **ready)
        return None if action is None else route

    def buffer(self, table: str, given: Any) -> Buffering | None:
        """Return how much is held; false: nothing."""
        return Buffering(0, 0) if given is False else self.made(table, given, Buffering)

    def route_timeouts(self, table: str, given: Any, timeouts: ProxyTimeouts) -> ProxyTimeouts | None:
        """Return the proxy's with those that the route has of its own."""
        the_same = {key: getattr(timeouts, key) for key in OF_CONNECTIONS}
        if isinstance(given, Mapping):
            for key in the_same.keys() & given:
                self.note(f"{table} timeouts", key, given[key], "only in [timeouts]: it is the same for all routes")
            given = {key: value for key, value in given.items() if key not in the_same}
        return self.made(f"{table} timeouts", given, ProxyTimeouts, base=timeouts, **the_same)

    def guard(self, table: str, given: Any, **ready: Any) -> GuardOptions | None:
        """Return what clients may do; the files that it names are looked at."""
        found = self.made(table, given, GuardOptions, **ready)
        if found is None:
            return None
        for key, path in (("allow_file", found.allow_file), ("deny_file", found.deny_file)):
            try:
                if path is not None:
                    read_networks(path)
            except BadNetworks as error:
                self.note(table, key, path, str(error).removeprefix(f"{path}: "))
        if found.storage is not None and not has_redis():
            self.note(table, "storage", found.storage, "the package redis expected: pip install greensock[redis]")
        return found

    def route_guard(self, table: str, given: Any) -> GuardOptions | None:
        """Return what clients may do on a route; what is no route's is the default, and the storage is that of all."""
        for key in OF_ALL:
            if isinstance(given, Mapping) and key in given:
                self.note(table, key, given[key], "only in [guard]: it is for all routes")
        ready = {key: getattr(GuardOptions(), key) for key in OF_ALL}
        if isinstance(given, Mapping):
            given = {key: value for key, value in given.items() if key not in OF_ALL}
        return self.guard(table, given, **{**ready, "storage": self.storage})

    def action(self, table: str, rest: dict[str, Any], names: list[str]) -> str | StaticAnswer | Redirect | None:
        chosen = [key for key in ACTIONS if key in rest]
        if len(chosen) != 1:
            self.note(table, "", None, "one of upstream, answer, redirect expected")
            for key in chosen:
                del rest[key]
            return None
        given = rest.pop(chosen[0])
        if chosen[0] == "answer":
            return self.made(f"{table} answer", given, StaticAnswer)
        if chosen[0] == "redirect":
            return self.made(f"{table} redirect", given, Redirect, samples={"location": "/"})
        if given not in names:
            near = guess(given, names) if isinstance(given, str) else ""
            hint = f": {near}?" if near else ""
            self.note(table, "upstream", given, f"one of {', '.join(names) or 'no upstreams'} expected{hint}")
            return None
        return str(given)

    # -- files

    def log(self, given: Any) -> LogOptions | None:
        log = self.made("[log]", given, LogOptions)
        if log is None:
            return None
        for key, target in (("path", log.path), ("error", log.error)):
            if target is not None and is_file(target):
                path = Path(target)
                if path.is_dir() or not path.parent.is_dir():
                    self.note("[log]", key, target, "a file in a directory that is there expected")
        return log

    def error_pages(self, given: Any) -> ErrorPages | None:
        if not isinstance(given, Mapping):
            self.note("[error_pages]", "", given, "a table expected")
            return None
        pages: dict[str, ErrorPage] = {}
        for key, path in given.items():
            try:
                ErrorPages({str(key): ErrorPage(b"")})
            except ValueError as error:
                self.note("[error_pages]", str(key), path, str(error).partition(": ")[2])
            if (page := self.error_page(str(key), path)) is not None:
                pages[str(key)] = page
        return None if self.problems else ErrorPages(pages)

    def error_page(self, key: str, path: Any) -> ErrorPage | None:
        try:
            file = Path(path)
            if file.exists() and not file.is_file():
                raise OSError("no regular file")
            return ErrorPage(file.read_bytes(), _TYPES.get(file.suffix.lower(), _TYPES[".html"]))
        except (OSError, TypeError, ValueError) as error:
            self.note("[error_pages]", key, path, f"a file that can be read expected ({error})")
            return None


def _address(text: Any) -> tuple[str, int] | str | None:
    """Return an address to listen on; None if it is none."""
    if not isinstance(text, str) or not text:
        return None
    match = _port(text)
    if match is None:
        path = text.removeprefix("unix:")
        return path if "/" in path and "://" not in path else None
    port = int(match["port"])
    host = match["host"].strip("[]")
    return ("" if host == "*" else host, port) if port < 65536 else None


def _overlap(one: tuple[str, int] | str, other: tuple[str, int] | str) -> bool:
    """Whether only one of two addresses can be listened on, as far as can be told without a resolver."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    (host, port), (other_host, other_port) = one, other
    if port != other_port or not port:
        return False
    hosts = {host, other_host}
    return len(hosts) == 1 or not hosts.isdisjoint(EVERY) or ("0.0.0.0" in hosts and ":" not in host + other_host)


def _is_same(server: tuple[str, int] | str, listener: tuple[str, int] | str) -> bool:
    """Whether a server's address leads to a listener, as far as can be told without a resolver."""
    if isinstance(server, str) or isinstance(listener, str):
        return server == listener
    local = {"localhost", "127.0.0.1", "::1", "0.0.0.0", *EVERY}
    same_host = server[0] == listener[0] or (server[0] in local and listener[0] in local)
    return same_host and server[1] == listener[1] != 0


def _takes_the_same(one: Route, other: Route) -> bool:
    names = ("hosts", "path", "exact", "methods", "headers", "cookies", "query", "pattern")
    return all(getattr(one, name) == getattr(other, name) for name in names)
