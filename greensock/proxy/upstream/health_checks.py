"""Active health checks: each server is asked for a page now and then, by a greenlet of its own.

A check passes if the status is one of those wanted, the body ends well or is longer than 64 KiB, and the text wanted is
in what was read of it; all of that within ``timeout``. Every check is made on a fresh connection, so that it also finds
a server that takes no more of them. Invariants:

- Of a server there is never more than one check at a time.
- Whatever a server answers ends no more than that check, and none holds more than 64 KiB of an answer.
- The checks of several servers are spread: the first come at random within a second, so that a dead server is soon
  known; the second at random within the interval; the others an interval later, give or take a tenth of it.
- Each change is logged once, to ``greensock.upstream``.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

from greensock import TLS
from greensock.http.client.client_response import ClientResponse
from greensock.http.client.connection_pool import ClientLease
from greensock.http.client.deadlines import Deadlines
from greensock.http.client.exchange import Call
from greensock.http.client.http_client import HTTPClient
from greensock.proxy.failure import shortage_of
from greensock.proxy.upstream.health import Health, HealthOptions

__all__ = ["CheckClient", "Checker"]

log = logging.getLogger("greensock.upstream")

#: Bytes of a body that are read.
MAX_BODY = 65536
#: Seconds within which the first check is made, unless the interval is shorter.
FIRST_WITHIN = 1.0
#: What a pause may be more or less than the interval, as a part of it.
JITTER = 0.1
#: What is left of the interval as a pause after a check that took longer, as a part of it.
LEAST_PAUSE = 0.1
#: Characters of a reason that are logged.
MAX_REASON = 200


class _Shortage(Exception):
    """The server could not be asked, and that is not its fault."""


class CheckClient(HTTPClient):
    """Makes the requests of checks, each on a connection of its own that begins with ``preamble``, in front of TLS."""

    def __init__(self, preamble: bytes = b"", tls: TLS | bool = True) -> None:
        super().__init__(user_agent="greensock health check", max_idle=0, tls=tls)
        self._preamble = preamble
        self.begin_with(preamble)

    def perform(self, call: Call, lease: ClientLease, deadlines: Deadlines) -> ClientResponse:
        if lease.connection is not None and lease.connection.tls is not None:
            return super().perform(call, lease, deadlines)
        call.head = self._preamble + call.head
        if call.short:
            call.short = self._preamble + call.short
        return super().perform(call, lease, deadlines)


class Checker:
    """Checks one server, and tells its :class:`Health`, by the clock of ``time.monotonic``.

    ``address`` is as ``greensock.connect`` takes it; ``client`` makes the requests, is not closed here, and best does
    nothing else. ``name`` is what the log says, the address if empty. ``tls_name`` is the name that its certificate
    must be for; None: it speaks no TLS. ``on_change`` is called with True when the server came up and with False when
    it went down, by the greenlet of the checks; it must not block for long.

    ``start`` it and ``stop`` it, as often as need be, in the thread that uses the client.
    """

    def __init__(
        self,
        address: Any,
        options: HealthOptions,
        health: Health,
        client: HTTPClient,
        *,
        name: str = "",
        tls_name: str | None = None,
        on_change: Callable[[bool], object] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        authority = _authority(address)
        #: What the log calls the server.
        self.name = name or (authority if isinstance(address, tuple) else str(address))
        #: Why the last check failed; empty if it passed, or if there was none.
        self.reason = ""
        self._base = "http://localhost" if tls_name is None else f"https://{tls_name}"
        self._address = address
        self._options = options
        self._health = health
        self._client = client
        self._on_change = on_change
        self._random = random
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._wanted = None if options.body is None else options.body.encode()
        self._headers = [
            ("Host", options.host or authority),
            ("Connection", "close"),
            ("Accept-Encoding", "identity"),
        ]

    @property
    def is_started(self) -> bool:
        """Whether it checks."""
        return self._greenlet is not None

    def start(self) -> None:
        """Begin to check, if there is something to ask for (``path``); a second call does nothing."""
        if self._greenlet is None and self._options.path is not None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End checking, the check under way included; when it returns nothing is left of it.

        May be called at any time, by ``on_change`` too.
        """
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill()

    def check(self) -> bool:
        """Check once, now; return whether it passed. Health is told, and a change logged.

        What can't be asked for a shortage of ours says nothing of the server.
        """
        before = self.reason
        try:
            self.reason = self._ask()
        except _Shortage as shortage:
            self.reason = str(shortage)
            if self.reason != before:
                log.error("%s could not be checked: %s", self.name, self.reason)
            return False
        now = monotonic()
        if not self.reason:
            if self._health.check_passed(now):
                log.warning("%s is up: its checks pass", self.name)
                self._tell(True)
        elif self._health.check_failed(now):
            log.warning("%s is down: %s", self.name, self.reason)
            self._tell(False)
        elif self.reason != before:
            log.info("%s failed a check: %s", self.name, self.reason)
        return not self.reason

    def _run(self) -> None:
        count, took = 0, 0.0
        while True:
            gevent.sleep(pause_before(count, self._options.interval, took, self._random()))
            begun = monotonic()
            self.check()
            if self._greenlet is not gevent.getcurrent():  # stopped by on_change
                return
            count, took = count + 1, monotonic() - begun

    def _ask(self) -> str:
        """Make the request; return why it failed, and nothing if it passed."""
        try:
            with self._client.request(
                "GET",
                self._base + str(self._options.path),
                headers=self._headers,
                address=self._address,
                timeout=self._options.timeout,
            ) as answer:
                return self._judge(answer)
        except Exception as error:  # a check that ends the checks would be worse than any of these
            shown = _shown(str(error) or type(error).__name__)
            if shortage_of(error):
                raise _Shortage(shown) from None
            return shown

    def _judge(self, answer: ClientResponse) -> str:
        if not self._options.accepts(answer.status):
            return f"it answered {answer.status}"
        held = _first_of(answer)
        if self._wanted is not None and self._wanted not in held:
            return f"{self._options.body!r} is not in the {len(held)} bytes read of its body"
        return ""

    def _tell(self, is_up: bool) -> None:
        if self._on_change is not None:
            try:
                self._on_change(is_up)
            except Exception:
                log.exception("%s: on_change failed", self.name)


def pause_before(count: int, interval: float, took: float, number: float) -> float:
    """Return the seconds to wait before a check; ``count`` is how many were made, the last of which took so long.

    ``number`` is a random one, from 0 to below 1.
    """
    if not count:
        return number * min(interval, FIRST_WITHIN)
    part = number if count == 1 else 1.0 + JITTER * (2.0 * number - 1.0)
    return max(interval * part - took, interval * LEAST_PAUSE)


def _first_of(answer: ClientResponse) -> bytes:
    """Return the body, or the first 64 KiB of it."""
    held = bytearray()
    while len(held) < MAX_BODY and (piece := answer.read(MAX_BODY - len(held))):
        held += piece
    return bytes(held)


def _authority(address: Any) -> str:
    """Return what Host says to a server that was given no other name."""
    if not isinstance(address, tuple):
        text = str(address)
        return "localhost" if "/" in text or text.startswith("unix:") else text.removesuffix(":80")
    host, port = address[:2]
    shown = f"[{host}]" if ":" in host else host
    return shown if port == 80 else f"{shown}:{port}"


def _shown(text: str) -> str:
    """Return the text fit for one line of a log."""
    return (text if text.isprintable() else ascii(text))[:MAX_REASON]
