"""One measurement of one server of WebSockets: start it, drive it, return numbers, end it."""

from __future__ import annotations

from loadtests import websocket_load
from loadtests.measure import Values
from loadtests.process import GENERATOR_CORES, Peer

__all__ = ["echo", "memory"]


def echo(name: str, *, connections: int, seconds: float) -> Values:
    """Messages of 64 characters and their echo, closed loop."""
    with Peer(name) as server:
        before = [0]

        def opened() -> None:
            before[0] = server.cpu_ns()

        load = websocket_load.echo(
            server.address, cores=GENERATOR_CORES, connections=connections, seconds=seconds, on_open=opened
        )
        spent = server.cpu_ns() - before[0]
    return {
        "messages": load.messages,
        "seconds": load.seconds,
        "rate": load.messages / load.seconds if load.seconds else 0.0,
        "server_us": spent / load.messages / 1e3 if load.messages else None,
        "server_load": spent / 1e9 / load.seconds if load.seconds else 0.0,
        "generator_load": load.cpu_seconds / load.seconds if load.seconds else 0.0,
        "failed": load.failed,
        "failures": {"wrong or closed": load.failed} if load.failed else {},
        "last_error": "",
    }


def memory(name: str, *, connections: int) -> Values:
    """Resident memory of the server for each WebSocket that has echoed one message and is silent since."""
    with Peer(name) as server:
        server.wait_until_idle()
        before = server.memory()
        with websocket_load.idle(server.address, cores=GENERATOR_CORES, connections=connections) as ready:
            server.wait_until_idle()
            after = server.memory()
    return {
        "kb": (after.rss - before.rss) / connections / 1024,
        "private_kb": (after.private - before.private) / connections / 1024,
        "rss": after.rss,
        "rss_before": before.rss,
        "open": ready,
        "failed": connections - ready,
        "failures": {"not opened": connections - ready} if ready < connections else {},
        "last_error": "",
    }
