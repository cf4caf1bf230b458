"""What operators are told of a proxy beside what every server counts: its failures, and the servers behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import ceil
from time import monotonic, time
from typing import Any

from greensock.operations.worker_watch import Conflict
from greensock.proxy.gateway import Gateway
from greensock.proxy.options import ServerOptions
from greensock.proxy.proxy_server import ReverseProxy
from greensock.proxy.upstream.health import Standing
from greensock.proxy.upstream.servers import Upstream, UpstreamServer
from greensock.proxy.upstream.shared_table import TableFull
from greensock.proxy.upstream.steward import ServerIsThere

__all__ = ["ProxyFigures"]

#: How a server stands, in the operators' words.
_STATES = {Standing.UP: "up", Standing.EJECTED: "ejected", Standing.TRYING: "ejected", Standing.DOWN: "down"}


class ProxyFigures:
    """What the listeners of one gateway have counted, and how its servers stand. In one worker."""

    def __init__(self, gateway: Gateway, proxies: Sequence[ReverseProxy]) -> None:
        self._gateway = gateway
        self._proxies = proxies
        self._since: dict[tuple[str, str], tuple[str, float]] = {}  # as it was seen to change
        # What is known of a server's health goes over to the gateway that takes this one's place, counters and all.
        self._errors_before = self._errors()
        self._errors_left: dict[tuple[str, str], int] | None = None
        # A server that goes may come back, as another one of its name that counts anew.
        self._followed: dict[tuple[str, str], UpstreamServer] = {}
        self._gone: Counter[str] = Counter()

    def counters(self) -> Mapping[str, int]:
        """Return figures that only grow."""
        found: Counter[str] = Counter()
        for proxy in self._proxies:
            found["retries"] += proxy.retries
            found["tunnels"] += proxy.tunnels
            for reason, count in proxy.failures.items():
                found[f"failures|{reason}"] += count
        if self._gateway.log is not None:
            found["log_lines_dropped"] += self._gateway.log.dropped
        self._note_gone()
        found.update(self._gone)
        for upstream, server in self._servers():
            found[f"server_requests|{upstream.name}|{server.name}"] += server.requests
        errors = self._errors() if self._errors_left is None else self._errors_left
        for (name, address), count in errors.items():
            found[f"server_errors|{name}|{address}"] += count - self._errors_before.get((name, address), 0)
        return found

    def _note_gone(self) -> None:
        """Keep what was counted of servers that are no more; it changes no more."""
        there = {(upstream.name, server.name): server for upstream, server in self._servers()}
        for key, server in self._followed.items():
            now = there.get(key)
            if now is server:
                continue
            name, address = key
            self._gone[f"server_requests|{name}|{address}"] += server.requests
            # Another one that goes on with its health goes on with its errors.
            if (now is None or now.health is not server.health) and self._errors_left is None:
                failed = server.health.statistics().failed
                self._gone[f"server_errors|{name}|{address}"] += failed - self._errors_before.pop(key, 0)
        self._followed = there

    def leave(self) -> None:
        """Take note that another has taken its place."""
        self._errors_left = self._errors()

    def _errors(self) -> dict[tuple[str, str], int]:
        return {(upstream.name, server.name): server.health.statistics().failed for upstream, server in self._servers()}

    def gauges(self) -> Mapping[str, int]:
        """Return figures of now."""
        found: Counter[str] = Counter()
        for upstream, server in self._servers():
            waiting = server.pool.state.statistics(server.origin).waiting
            found[f"queued|{upstream.name}"] += waiting
            found[f"server_in_hand|{upstream.name}|{server.name}"] += server.used
            found[f"server_connections|{upstream.name}|{server.name}"] += server.pool.state.slots
            self._note_state(upstream, server)
        return found

    def upstreams(self) -> list[dict[str, Any]]:
        """Return each upstream and how its servers stand."""
        return [
            {"name": upstream.name, "servers": [self._standing_of(upstream, server) for server in upstream.all]}
            for upstream in self._gateway.upstreams.values()
        ]

    def set_server(self, upstream: str, server: str, what: str) -> None:
        """Have a server drained, or put back, in all workers.

        Raises:
            LookupError: there is none of that name.
            OSError: the other workers can't be told.
        """
        try:
            self._gateway.set_server(upstream, server, what)
        except TableFull as error:
            raise OSError(f"the table of servers is full: {error}") from None

    def add_server(self, upstream: str, url: str, options: Mapping[str, Any]) -> str:
        """Have a further server, in all workers; return what it is called.

        Raises:
            LookupError: there is no such upstream.
            ValueError: the URL or an option is not allowed; the URL is ``server`` there.
            Conflict: it is there already, or there is no room for one more.
            OSError: the other workers can't be told now.
        """
        allowed = [each.name for each in fields(ServerOptions) if each.name != "url"]
        for name in options:
            if name not in allowed:
                raise ValueError(f"{name}: no such option: {', '.join(allowed)} allowed")
        try:
            server = ServerOptions(url, **options)
        except ValueError as error:
            text = str(error)
            raise ValueError(f"server{text[3:]}" if text.startswith("url=") else text) from None
        try:
            self._gateway.add_server(upstream, server)
        except ServerIsThere as error:
            raise Conflict(str(error)) from None
        except TableFull as error:
            raise Conflict(f"the table of servers is full: {error}") from None
        return str(server.origin)

    def remove_server(self, upstream: str, server: str) -> None:
        """Have a server no more, in all workers: what it is asked now it answers. Its URL will do, too.

        Raises:
            LookupError: there is none of that name.
            Conflict: there is no room to say so.
            OSError: the other workers can't be told now.
        """
        try:
            self._gateway.remove_server(upstream, _name_of(server))
        except TableFull as error:
            raise Conflict(f"the table of servers is full: {error}") from None

    def _servers(self) -> list[tuple[Upstream, UpstreamServer]]:
        return [(upstream, server) for upstream in self._gateway.upstreams.values() for server in upstream.all]

    def _note_state(self, upstream: Upstream, server: UpstreamServer) -> tuple[str, float]:
        """Return how a server stands, and since when, in seconds since 1970: as of the look that found it so."""
        key, state = (upstream.name, server.name), _STATES[server.health.standing]
        known = self._since.get(key)
        if known is None or known[0] != state:
            known = self._since[key] = state, time()
        return known

    def _standing_of(self, upstream: Upstream, server: UpstreamServer) -> dict[str, Any]:
        state, since = self._note_state(upstream, server)
        why = _why(server)
        told: Any = server.status(upstream.name)
        if hasattr(told, "why"):  # it is known for all workers
            state, why, since = told.state, told.why, told.since or since
        return {"name": server.name, "state": state, "why": why, "since": since, "weight": server.weight}


def _name_of(server: str) -> str:
    """Return the name of a server that may be given by its URL."""
    if "://" not in server and not server.startswith("unix:"):
        return server
    try:
        return str(ServerOptions(server).origin)
    except ValueError:
        return server  # there is none of that name


def _why(server: UpstreamServer) -> str:
    """Return why a server gets no requests; empty if it does."""
    health = server.health
    if health.standing is Standing.DOWN:
        return "its checks fail"
    if health.standing is Standing.TRYING:
        return "requests failed; one is on trial"
    until = health.ejected_until
    if until is None:
        return ""
    return f"requests failed; tried again in {max(0, ceil(until - monotonic()))} s"
