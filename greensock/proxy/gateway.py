"""What all listeners of a proxy share: the routes, the upstreams, the limits, the log."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import random
import resource
import secrets
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any, Protocol

from greensock import LogLimit, share_of_descriptors
from greensock.http.client.deadlines import Deadlines, Timeouts
from greensock.http.client.http_client import HTTPClient
from greensock.http.wire.limits import Limits
from greensock.limits.redis_share import RedisShare, load_redis
from greensock.operations.worker_watch import WorkerWatch
from greensock.proxy.answer_buffer import BufferRoom
from greensock.proxy.client_room import ClientRoom
from greensock.proxy.forwarded import Forwarder, Forwarding
from greensock.proxy.guard import Guard, GuardOptions, SharedBlocks
from greensock.proxy.log.access_log import AccessLog
from greensock.proxy.options import (
    Buffering,
    ForwardAuth,
    ListenOptions,
    ProxyTimeouts,
    ServerOptions,
    UpstreamOptions,
    UpstreamTLS,
)
from greensock.proxy.passwords import PasswordFile
from greensock.proxy.proxy_protocol import write_proxy_header
from greensock.proxy.routes import Route, Routes
from greensock.proxy.rules import ErrorPages
from greensock.proxy.upstream.health import HealthOptions
from greensock.proxy.upstream.health_checks import CheckClient, Checker
from greensock.proxy.upstream.servers import Upstream, UpstreamServer, drop_oldest
from greensock.proxy.upstream.shared_servers import SharedServers
from greensock.proxy.upstream.steward import Steward
from greensock.proxy.upstream.sticky import StickyCookie

__all__ = ["AuthClient", "Gateway", "scope_of"]

log = logging.getLogger("greensock.server")

#: Descriptors that are kept back, whatever clients there are: for the log, the resolver, a program's own.
KEPT_BACK = 32
#: Descriptors that a client may need: its own, and that of a server while it has a request under way.
EACH = 2
#: Shares of the descriptors for optional things: pipes have two (see ``Pipes``), second descriptors one
#: (``ClientConnection.keep_spare``), files of answers one (``BufferRoom``).
SHARES = 4
#: Stands for "no limit" where a number is required, in seconds: 30 days.
FOREVER = 30 * 86400.0


class Listener(Protocol):
    """What a gateway asks of its listeners."""

    @property
    def connections_alive(self) -> int:
        """How many clients' connections it has."""

    def welcome_connections(self) -> None:
        """Look again how many connections are welcome."""


class AuthClient(HTTPClient):
    """Asks a server whether requests may pass."""

    #: When the next line may say that it can't be asked.
    warning_due = float("-inf")


class Gateway:
    """The parts of a proxy behind its listeners."""

    def __init__(
        self,
        upstreams: Sequence[UpstreamOptions | tuple[UpstreamOptions, HealthOptions, StickyCookie | None]],
        routes: Sequence[Route],
        *,
        forwarding: Forwarding | None = None,
        timeouts: ProxyTimeouts | None = None,
        limits: Limits | None = None,
        answer_limits: Limits | None = None,
        guard: GuardOptions | None = None,
        error_pages: ErrorPages | None = None,
        log: AccessLog | None = None,
        listen: ListenOptions | None = None,
        shared: SharedBlocks | None = None,
        buffer: Buffering | None = None,
    ) -> None:
        """``upstreams`` are groups of servers, each alone or with what is known of its health and its cookie;
        ``shared`` is what several processes share. None: this one has all for itself.

        Raises:
            ValueError: two upstreams of one name, or a route to one that is not there; a file of networks that is not
                right, or a Redis asked for without the package that speaks to it.
        """
        forwarding = forwarding or Forwarding()
        #: How long the phases of a request may take, if its route does not say.
        self.timeouts = timeouts or ProxyTimeouts()
        #: How large the parts of a request may be.
        self.limits = limits or Limits()
        #: How large the parts of an answer may be; what is larger is 502, and the server is not blamed.
        self.answer_limits = answer_limits or Limits()
        #: By name.
        self.upstreams: Mapping[str, Upstream] = self._made(upstreams)
        for route in routes:
            if isinstance(route.action, str) and route.action not in self.upstreams:
                raise ValueError(
                    f"action={route.action!r}: one of {', '.join(self.upstreams) or 'no'} upstreams expected"
                )
        #: Which requests go where.
        self.routes = Routes(routes)
        #: Makes the fields that are passed on.
        self.forwarder = Forwarder(forwarding, instance=secrets.token_hex(4))
        #: Whether what a peer says of its own clients may be believed.
        self.trusts_somebody = bool(forwarding.trusted)
        #: What clients may do; None: whatever they want.
        self.guard = Guard(guard, "", shared) if guard is not None else None
        self._route_guards = {
            id(route): Guard(route.guard, scope_of(route), shared) for route in routes if route.guard is not None
        }
        #: Whether anything is guarded.
        self.is_guarded = self.guard is not None or bool(self._route_guards)
        self._shares: list[RedisShare] = []
        if any(each.options.storage is not None for each in self._guards()):
            load_redis()
        #: What is shown for errors of the proxy's own.
        self.error_pages = error_pages or ErrorPages()
        #: Where requests are logged; None: nowhere. It is the caller's to close.
        self.log = log
        #: What measures requests for the operators; None: nobody asks. It is set before a listener is started.
        self.watch: WorkerWatch | None = None
        #: How much the listeners take on.
        self.listen = listen or ListenOptions()
        #: How much of an answer is held for a client that is behind, if its route does not say.
        self.buffering = Buffering() if buffer is None else buffer
        #: What all answers together may hold.
        self.buffer_room = BufferRoom(self.listen.max_answer_memory, self.listen.max_answer_files, share_of_descriptors)
        #: How many clients' connections there may be, while a listener is started.
        self.most_clients: float = inf
        #: How many connections to servers there may be before idle ones give up theirs, while a listener is started.
        self.most_links: float = inf
        #: How many lines about single requests the error log gets.
        self.told = LogLimit()
        #: Bytes of bodies that are held while the rest of them is waited for.
        self.buffered = 0
        self._passwords: dict[str, PasswordFile] = {}
        self._auth_clients: dict[ForwardAuth, AuthClient] = {}
        self._listeners: set[Listener] = set()
        self._client_room: ClientRoom | None = None  # while a listener is started, if they are bounded
        self._checkers: dict[UpstreamServer, Checker] = {}
        self._steward = Steward(self.upstreams, self._arrange_checks)
        self._clients: dict[tuple[int, int], CheckClient] = {}  # by the PROXY protocol's version, and by TLS
        self._deadlines: dict[ProxyTimeouts, Deadlines] = {}
        self._usual = self._deadlines_for(self.timeouts)

    def _made(
        self, upstreams: Sequence[UpstreamOptions | tuple[UpstreamOptions, HealthOptions, StickyCookie | None]]
    ) -> dict[str, Upstream]:
        made: dict[str, Upstream] = {}
        for each in upstreams:
            options, health, sticky = (each, HealthOptions(), None) if isinstance(each, UpstreamOptions) else each
            if options.name in made:
                raise ValueError(f"name={options.name!r}: each upstream once expected")
            made[options.name] = Upstream(
                *(options, health, self.answer_limits, random.random, sticky),
                make_room=self._make_room,
                is_full=self._is_full,
            )
        return made

    def inherit(self, old: Gateway) -> None:
        """Take over what another gateway knows, before a listener is started: of servers, and of clients.

        It is what is known of the health of servers that are in both, under the same name, with the same rules; and the
        limits and bans of clients, if they are the same.
        """
        old.stop_checks()  # or each check would count twice
        self._steward.follow(old._steward)
        if self.guard is not None and old.guard is not None and self.guard.options == old.guard.options:
            self.guard = old.guard
        before = {(each.scope, each.options): each for each in old.route_guards()}
        for key, each in self._route_guards.items():
            self._route_guards[key] = before.get((each.scope, each.options), each)
        for name, upstream in self.upstreams.items():
            group = old.upstreams.get(name)
            known = {server.name: server for server in group.all} if group is not None else {}
            for server in upstream.all:
                same = known.get(server.name)
                if same is not None and same.health.options == server.health.options:
                    server.inherit(same)

    def join(self, shared: SharedServers, slot: int) -> None:
        """Be the gateway of one worker of several, which has that row of what they share; before it is started."""
        self._steward.join(shared, slot)

    # -- servers, at run time

    def set_server(self, upstream: str, server: str, state: str) -> None:
        """Take a server out, or put it back: in all workers of the proxy, within a second; here at once.

        ``state`` is ``"drain"``: it gets no further requests, but those of clients whose sticky cookie leads there;
        ``"down"``: none at all; or ``"ready"``. What it is asked now it answers. ``server`` is its name, as in
        :class:`ServerStatus`; the name under which it was given means all addresses that this one leads to. It holds
        until the proxy is restarted, also when a configuration is read anew.

        Raises:
            LookupError: there is no such upstream or server.
            ValueError: there is no such state.
        """
        self._steward.set_state(upstream, server, state)

    def add_server(self, upstream: str, server: ServerOptions | str) -> None:
        """Have a further server in an upstream, a URL or more: in all workers, within a second; here at once.

        It is there until it is removed, or the proxy restarted, also when a configuration is read anew.

        Raises:
            LookupError: there is no such upstream.
            ValueError: it has that server already; or the URL is not allowed.
            RuntimeError: too many were added, or there is no room for what is to be said.
            TimeoutError: the other workers can't be told now.
        """
        self._steward.add(upstream, ServerOptions(server) if isinstance(server, str) else server)

    def remove_server(self, upstream: str, server: str) -> None:
        """Have a server no more: in all workers, within a second; here at once. What it is asked now it answers.

        One of the configuration is back when the proxy is restarted. ``server`` is the name under which it was given:
        ``host:port``, or the path of a Unix socket.

        Raises:
            LookupError: there is no such upstream or server.
        """
        self._steward.remove(upstream, server)

    # -- listeners

    def enter(self, listener: Listener) -> None:
        """Begin to check the servers, if that is asked for: a listener has started."""
        if not self._listeners:
            self.most_clients = self._count_most_clients()
            self._steward.start()
            if self.listen.max_connections is not None:
                view = self._steward.view
                self._client_room = ClientRoom(self.listen.max_connections, view, self._count_clients, self._welcome)
            self._start_guards()
        self._listeners.add(listener)
        if len(self._listeners) > 1:
            self.most_clients = self._count_most_clients()  # each may have max_workers requests under way

    def room(self) -> float:
        """Return how many more clients' connections are welcome."""
        if self.most_clients == inf:
            return inf
        room = self.most_clients - self._count_clients()
        return room if self._client_room is None else min(room, self._client_room.permits())

    def connection_ended(self) -> None:
        """Tell the listeners that a client's connection has ended."""
        if self._client_room is not None:
            self._client_room.settle()
        if self.most_clients != inf:
            self._welcome()

    def _count_clients(self) -> int:
        return sum(listener.connections_alive for listener in self._listeners)

    def _welcome(self) -> None:
        for listener in self._listeners:
            listener.welcome_connections()

    def _count_most_clients(self) -> float:
        """Return how many clients' connections leave each request under way a descriptor for its way to a server.

        Otherwise new clients would take the descriptors that requests under way need, and servers would seem to fail.
        """
        wanted = self.listen.max_connections
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            return inf if wanted is None else wanted
        servers = sum(len(upstream.all) for upstream in self.upstreams.values())  # each may be checked
        there = len(os.listdir("/proc/self/fd")) - 1
        asked = {route.auth: route.auth.max_connections for route in self.routes.routes if route.auth is not None}
        others = KEPT_BACK + servers + sum(asked.values()) + SHARES * share_of_descriptors()
        # A request that is under way has a worker, and one connection to a server at the most: where there are to be
        # few, the rest is for clients, which mostly rest.
        spare = max(EACH, limit - there - others)
        self.most_links = min(spare // EACH, self.listen.max_workers * max(1, len(self._listeners)))
        possible = spare - self.most_links
        if wanted is not None and wanted > possible:
            log.warning("max_connections=%d: %d descriptors are enough for %d in a process", wanted, limit, possible)
        return possible if wanted is None else min(wanted, possible)

    def leave(self, listener: Listener) -> None:
        """End checking, and close idle connections to the servers, when the last listener has stopped."""
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        if self._listeners:
            return
        self.stop_checks()
        self._stop_guards()
        if self._client_room is not None:
            self._client_room.close()
            self._client_room = None
        for upstream in self.upstreams.values():
            upstream.drop_idle()
        for client in self._auth_clients.values():
            client.close_idle()

    # -- guards

    def guard_of(self, route: Route | None) -> Guard | None:
        """Return what guards a route besides all."""
        return None if route is None or route.guard is None else self._route_guards.get(id(route))

    def guards_for(self, route: Route | None) -> list[Guard]:
        """Return all that guards a route."""
        own = self.guard_of(route)
        return [guard for guard in (self.guard, own) if guard is not None]

    def route_guards(self) -> list[Guard]:
        """Return the guards of routes."""
        return list(self._route_guards.values())

    def _guards(self) -> list[Guard]:
        return [*([self.guard] if self.guard is not None else []), *self.route_guards()]

    def _start_guards(self) -> None:
        """Look at the files of guards, and share what clients use with other machines, if that is asked for."""
        by_storage: dict[str, list[Guard]] = {}
        for guard in self._guards():
            guard.lists.start()
            if guard.options.storage is not None:
                by_storage.setdefault(guard.options.storage, []).append(guard)
        self._shares = [RedisShare(url, guards) for url, guards in by_storage.items()]
        for share in self._shares:
            share.start()

    def _stop_guards(self) -> None:
        for guard in self._guards():
            guard.lists.stop()
        for share in self._shares:
            share.stop()
        self._shares.clear()

    def stop_checks(self) -> None:
        """Check the servers no more."""
        self._steward.stop()
        self._check_none_but(())
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _make_room(self) -> bool:
        """Close the kept connection that has been idle the longest, whatever server it leads to."""
        return drop_oldest(server for upstream in self.upstreams.values() for server in upstream.all)

    def _is_full(self) -> bool:
        """Return whether idle connections to servers would take descriptors that clients need, or are kept back."""
        if self.most_links == inf:
            return False
        held = sum(server.pool.state.slots for upstream in self.upstreams.values() for server in upstream.all)
        return held > self.most_links  # the new one has its slot

    def _arrange_checks(self) -> None:
        """Check the servers that there are, if that is this worker's to do."""
        wanted: list[UpstreamServer] = []
        if self._steward.leads:
            servers = [server for upstream in self.upstreams.values() for server in upstream.all]
            wanted = [server for server in servers if server.health.options.path is not None]
        self._check_none_but(wanted)
        for server in wanted:
            if server not in self._checkers:
                checker = self._checkers[server] = self._checker_of(server)
                checker.start()

    def _check_none_but(self, wanted: Collection[UpstreamServer]) -> None:
        for server in [each for each in self._checkers if each not in wanted]:
            self._checkers.pop(server).stop()

    def _checker_of(self, server: UpstreamServer) -> Checker:
        origin, options = server.origin, server.health.options
        tls = server.upstream.options.tls if origin.scheme == "https" else None
        tls_name = (tls and tls.server_name) or origin.name if origin.scheme == "https" else None
        if options.host is None and server.name != server.spec.given:  # it knows itself by its name, not its address
            options = dataclasses.replace(options, host=server.authority.decode("latin-1"))

        def note(is_up: bool) -> None:
            checker = self._checkers.get(server)
            server.on_check_changed(is_up, checker.reason if checker is not None else "")

        return Checker(
            *(origin.address, options, server.health, self._client_for(server.send_proxy_protocol, tls)),
            name=f"{server.upstream.name}: {server.name}",
            tls_name=tls_name,
            on_change=note,
        )

    def _client_for(self, version: int, tls: UpstreamTLS | None) -> CheckClient:
        """Return what checks servers that are spoken to by that version of the PROXY protocol, or so by TLS."""
        client = self._clients.get((version, id(tls)))
        if client is None:  # the proxy speaks for itself: UNKNOWN, or LOCAL
            header = write_proxy_header(version, None, None) if version else b""
            client = self._clients[version, id(tls)] = CheckClient(header, True if tls is None else tls.made)
        return client

    def server_options(self) -> dict[str, Any]:
        """Return what the listeners are to be told."""
        timeouts = self.timeouts
        return {
            "head_timeout": timeouts.request_header or FOREVER,
            "body_timeout": timeouts.request_body or FOREVER,
            "min_body_rate": timeouts.min_body_rate,
            "idle_timeout": timeouts.keep_alive,
            "send_timeout": timeouts.send,
            "linger_timeout": timeouts.linger,
            "stop_timeout": timeouts.drain,
            "limits": self.limits,
            "backlog": self.listen.backlog,
            "max_connections": None,  # ``room`` is for all listeners
            "max_workers": self.listen.max_workers,
        }

    # -- requests

    def passwords_in(self, path: str) -> PasswordFile:
        """Return the passwords in a file, which is the same for all who ask."""
        if path not in self._passwords:
            self._passwords[path] = PasswordFile(path)
        return self._passwords[path]

    def auth_client_of(self, options: ForwardAuth) -> AuthClient:
        """Return what asks a server whether requests may pass."""
        client = self._auth_clients.get(options)
        if client is None:
            most = options.max_connections
            client = AuthClient(max_connections=most, max_idle=most, max_idle_total=most, user_agent=None)
            self._auth_clients[options] = client
        return client

    def deadlines_of(self, route: Route | None) -> Deadlines:
        """Return how long the phases of a request may take that begins now."""
        timeouts = route.timeouts if route is not None else None
        if timeouts is None:
            if self._usual.total is None:
                return self._usual
            timeouts = self.timeouts
        return self._deadlines_for(timeouts)

    def _deadlines_for(self, timeouts: ProxyTimeouts) -> Deadlines:
        """Return them; those without a bound for all are the same for every request."""
        known = self._deadlines.get(timeouts)
        if known is not None:
            return known if known.total is None else Deadlines(known.timeouts, known.total)
        connect = timeouts.connect
        if timeouts.total is not None:  # else a silent server would use up all the time, and no other could be tried
            connect = min(inf if connect is None else connect, timeouts.total / 2)
        made = Deadlines(
            Timeouts(
                queue=timeouts.queue,
                connect=connect,
                send=timeouts.upstream_send,
                head=timeouts.upstream_head,
                body=timeouts.upstream_idle,
                total=timeouts.total,
            ),
            None,
        )
        self._deadlines[timeouts] = made
        return made

    def tunnel_timeout(self, route: Route | None) -> float | None:
        """Return the seconds that a tunnel may be silent."""
        timeouts = route.timeouts if route is not None and route.timeouts is not None else self.timeouts
        return timeouts.tunnel


def scope_of(route: Route) -> str:
    """Return what the guard of a route is called, here and on other machines: its name, and which requests take it."""
    fields = sorted(route.headers.items(), key=str)
    conditions = (route.hosts, route.path, route.exact, sorted(route.methods or ()), fields)
    return f"{route.name}/{hashlib.blake2b(repr(conditions).encode(), digest_size=6).hexdigest()}"
