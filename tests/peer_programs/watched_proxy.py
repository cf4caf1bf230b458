"""``greensock proxy --workers 2`` with a proxy that tells of its own worker, and does what it is told with the servers.

    python watched_proxy.py FILE

``/worker`` tells of the worker that answers; ``/set?UPSTREAM,SERVER,STATE`` has it call ``Gateway.set_server``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from unittest import mock

import greensock.sources
from greensock.gunicorn.master import ServerApplication
from greensock.http import Response
from greensock.proxy import ReverseProxy, load_config


class Watched(ReverseProxy):
    """Answers with JSON what concerns its worker; all else goes to the servers."""

    def choose_upstream(self, relay: Any) -> Any:
        path, _, query = relay.request.head.target.decode().partition("?")
        if path == "/set":
            self.gateway.set_server(*query.split(","))
        elif path != "/worker":
            return super().choose_upstream(relay)
        servers = {each.name: each for group in self.gateway.upstreams.values() for each in group.status()}
        told = {
            "pid": os.getpid(),
            "leads": self.gateway._steward.leads,
            "checks": sum(each.health.checks_passed for each in servers.values()),
            "requests": sum(each.requests for each in servers.values()),
            "states": {name: each.state for name, each in servers.items()},
        }
        return Response(json.dumps(told).encode())


if __name__ == "__main__":
    path = sys.argv[1]
    source = greensock.sources.ProxySource(load_config(path), lambda: load_config(path))
    with mock.patch.object(greensock.sources, "ReverseProxy", Watched):
        ServerApplication(source, {"workers": 2, "timeout": 30}).run()
