"""Lines of the error log about one request: which server failed it, why its tunnel ended, or what cut it off.

Each names the request by its id, as the access log does, and the upstream and the server. What clients can cause is
told at ``info``, and there are no more lines than ``Gateway.told`` allows.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

__all__ = ["tell_cut_off", "tell_failed", "tell_tunnel"]

log = logging.getLogger("greensock.upstream")

#: Bytes of a request's target that are shown.
MAX_SHOWN = 200


def tell_failed(relay: Any, failure: Any) -> None:
    """Tell that a server failed a request, which may be asked of another yet."""
    if not failure.is_untold:
        why = str(failure)
        shown = failure.reason if why == failure.reason else f"{failure.reason}, {why}"
        _tell(logging.INFO, relay, "failed: %s", shown)


def tell_tunnel(relay: Any, reason: str, seconds: float) -> None:
    """Tell that a tunnel has ended, and why: empty if both sides were done."""
    _tell(logging.INFO, relay, "was a tunnel for %.1f s, and ended: %s", seconds, reason or "both sides were done")


def tell_cut_off(relay: Any) -> None:
    """Tell that a request was cut off, as the proxy stopped and the time for what runs was over."""
    _tell(logging.WARNING, relay, "was cut off: the proxy stopped, and the time to drain was over")


def _tell(level: int, relay: Any, text: str, *about: object) -> None:
    if not log.isEnabledFor(level):
        return
    left_out = relay.proxy.gateway.told.left_out(monotonic())
    if left_out < 0:
        return
    head = relay.request.head
    request = f"{head.method} {_shown(head.authority)} {_shown(head.target)}"
    more = f" ({left_out} such lines were left out)" if left_out else ""
    upstream = relay.upstream.name if relay.upstream is not None else "-"
    server = relay.server.name if relay.server is not None else "-"
    log.log(level, f"%s: %s: request %s (%s) {text}%s", upstream, server, relay.request_id, request, *about, more)


def _shown(raw: bytes) -> str:
    cut = "..." if len(raw) > MAX_SHOWN else ""
    return raw[:MAX_SHOWN].decode("ascii", "backslashreplace") + cut
