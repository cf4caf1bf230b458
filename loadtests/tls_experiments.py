"""The experiments with TLS, as those of ``experiments``: what it costs, and what a flood of handshakes does.

What a client's connections cost that are made one after the other is here, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from loadtests import measure_http, measure_tls, tls_flood
from loadtests.measure_http import Proxied
from loadtests.plan import Case, Plan, Scale
from loadtests.servers import CONNECTING, TLS, TLS_PROXIES, TLS_SITES

__all__ = ["handshakes", "tls"]

#: Seconds that a server takes to start and end.
STARTING = 0.6
#: The same, of a proxy with what is behind it.
PROXY_STARTING = 1.4
#: Seconds of a measurement, and rounds: fewer than elsewhere, as all experiments are to end within half an hour.
SECONDS, FEW_ROUNDS = 0.3, 2
#: Seconds in which a busy machine ends a handshake, too.
SHORTEST = 0.2
#: Those that are measured where gevent is left out for the same reason: no figure asks for it there.
WITHOUT_GEVENT = tuple(name for name in TLS if name != "tls_gevent")
#: Connections whose memory is measured; that echo; whose handshakes are under way at the same time; that download.
IDLE, FEW, MANY, SHAKING, DOWNLOADING = 2000, 64, 1000, 16, 4
#: So many times as long is a proxy asked: the handshakes of its connections count, and are to be of no weight.
LONGER = 2
#: Greenlets that connect at the same time, in a client.
CONNECTED = 32
#: Of the flood: clients that connect and say nothing, and handshakes that begin and end in the middle, each second.
SILENT, BEGUN = 5000, 200


def tls(scale: Scale) -> Plan:
    """Echo, handshakes, memory, downloads: CPU of the server for each."""

    def case(label: str, mode: str, connections: int, servers: tuple[str, ...] = TLS, **options: Any) -> Case:
        seconds = min(scale.seconds, SECONDS)
        if connections == SHAKING:
            seconds = max(seconds, SHORTEST)
        count = scale.count(connections)
        call = partial(measure_tls.measured, mode=mode, connections=count, seconds=seconds, **options)
        return Case(
            label, {"mode": mode, "connections": count}, call, servers, STARTING + 1.25 * seconds, scale.few(FEW_ROUNDS)
        )

    def whole(label: str, mode: str, servers: tuple[str, ...], took: float, call: Any) -> Case:
        """A case that is measured as long as those of other experiments, or longer."""
        return Case(label, {"mode": mode, "connections": FEW}, call, servers, took, scale.few(1))

    idle = scale.count(IDLE)
    asking = LONGER * scale.seconds
    proxied = partial(Proxied(FEW, asking).requests, path="/small")
    connecting = partial(measure_http.connecting, connections=CONNECTED, seconds=scale.seconds)
    cases = (
        case(f"echo {FEW}", "echo", FEW),
        case(f"echo {MANY}", "echo", MANY),
        case("handshake P-256", "full", SHAKING, WITHOUT_GEVENT),
        case("handshake P-256 resumed", "resumed", SHAKING, WITHOUT_GEVENT),
        case("handshake RSA-2048", "full", SHAKING, WITHOUT_GEVENT, key="rsa"),
        case("download 16 KiB", "download", DOWNLOADING, WITHOUT_GEVENT, size=1 << 14),
        case("download 64 KiB", "download", DOWNLOADING, WITHOUT_GEVENT, size=1 << 16),
        Case(
            f"idle memory {IDLE}",
            {"mode": "idle", "connections": idle},
            partial(measure_tls.idle, connections=idle),
            TLS,
            STARTING + 1.5,
            scale.few(1),
        ),
        whole("proxied", "wrk", TLS_PROXIES, PROXY_STARTING + asking, proxied),
        whole("connecting", "client", CONNECTING, STARTING + scale.seconds, connecting),
    )
    return Plan("tls", "TLS", cases, scale.rounds, {"size": 64})


def handshakes(scale: Scale) -> Plan:
    """What others notice of clients that connect and say nothing, and of handshakes that are begun and left."""
    seconds = 0.5 if scale.quick else 5.0
    silent, begun = (50, 20) if scale.quick else (SILENT, BEGUN)

    def case(label: str, silent: int, begun: int) -> Case:
        call = partial(tls_flood.measured, silent=silent, begun=begun, seconds=seconds)
        parameters = {"mode": "handshakes", "silent": silent, "begun": begun}
        return Case(label, parameters, call, TLS_SITES, STARTING + seconds + silent / 2500)

    cases = (case("quiet", 0, 0), case("flooded", silent, begun))
    return Plan("handshakes", "A flood of handshakes", cases, scale.rounds, {"seconds": seconds})
