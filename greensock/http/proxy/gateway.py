"""What all listeners of a proxy share: the routes, the upstreams, the limits, the log."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence

from greensock.http.deadlines import Deadlines, Timeouts
from greensock.http.limits import Limits
from greensock.http.proxy.forwarded import Forwarder, Forwarding
from greensock.http.proxy.health import HealthOptions
from greensock.http.proxy.options import ProxyTimeouts, UpstreamOptions
from greensock.http.proxy.routes import Route, Routes
from greensock.http.proxy.rules import ErrorPages
from greensock.http.proxy.servers import Upstream

__all__ = ["Gateway"]


class Gateway:
    """The parts of a proxy behind its listeners."""

    def __init__(
        self,
        upstreams: Sequence[tuple[UpstreamOptions, HealthOptions]],
        routes: Sequence[Route],
        *,
        forwarding: Forwarding = Forwarding(),
        timeouts: ProxyTimeouts = ProxyTimeouts(),
        limits: Limits = Limits(),
        error_pages: ErrorPages | None = None,
    ) -> None:
        #: How long the phases of a request may take, if its route does not say.
        self.timeouts = timeouts
        #: By name.
        self.upstreams: Mapping[str, Upstream] = {
            options.name: Upstream(options, health, limits, random.random) for options, health in upstreams
        }
        self.routes = Routes(routes)
        #: Makes the fields that are passed on.
        self.forwarder = Forwarder(forwarding, instance=secrets.token_hex(4))
        #: Whether what a peer says of its own clients may be believed.
        self.trusts_somebody = bool(forwarding.trusted)
        self.guard = None
        self.error_pages = error_pages or ErrorPages()
        self._deadlines: dict[ProxyTimeouts, Deadlines] = {}
        self._usual = self._deadlines_for(timeouts)

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
        made = Deadlines(
            Timeouts(
                queue=timeouts.queue,
                connect=timeouts.connect,
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
