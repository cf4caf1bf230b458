"""What is known of one request when it is over: the source of the access log, and of metrics."""

from __future__ import annotations

import re

from greensock.http.wire.syntax import is_token

__all__ = ["MAX_DESCRIBED", "Record"]

#: So many bytes of a head that was refused are looked at for the log.
MAX_DESCRIBED = 8192

_field = re.compile(rb"\n(host|referer|user-agent):[ \t]*([^\r\n]*)", re.IGNORECASE).findall


class Record:
    """One request and what became of it. Bytes are as they came from the network: nothing in them can be trusted.

    Times are in seconds; None where that phase was not reached.
    """

    __slots__ = (
        "agent",
        "client",
        "connect_time",
        "duration",
        "head_time",
        "host",
        "method",
        "peer",
        "reason",
        "received",
        "referer",
        "request_id",
        "reused",
        "route",
        "sent",
        "started",
        "status",
        "target",
        "tries",
        "upstream",
        "upstream_status",
        "upstream_time",
        "user",
        "version",
    )

    def __init__(self, started: float, client: str, peer: str, method: str, target: bytes, version: str) -> None:
        #: When its head was there, in seconds since 1970.
        self.started = started
        #: The client's address, as far as it can be trusted; empty for a Unix socket.
        self.client = client
        #: The address that connected to the proxy.
        self.peer = peer
        #: The user name that the client gave; None if it gave none.
        self.user: str | None = None
        #: ``GET``, ``POST``, ...; empty if the request was refused before it was known.
        self.method = method
        #: What was asked for, byte for byte.
        self.target = target
        #: ``1.1`` or ``1.0``.
        self.version = version
        #: The authority it was for.
        self.host = b""
        #: Fields of the request.
        self.referer: bytes | None = None
        self.agent: bytes | None = None
        #: The status that was answered; 499 if the client left before it had all of it, 0 if nothing was answered.
        self.status = 0
        #: Bytes that went to the client, head included.
        self.sent = 0
        #: Bytes of the request's body that came.
        self.received = 0
        #: From the whole head of the request to the last byte of the answer.
        self.duration = 0.0
        #: The name of the route; empty if there was none.
        self.route = ""
        #: The servers that were tried, separated by ``, ``.
        self.upstream = ""
        #: The statuses they gave, in the same order; ``-`` for none.
        self.upstream_status = ""
        #: Of the last one tried, from when it was chosen: until connected (0.0 on a kept connection), until its head,
        #: until its end.
        self.connect_time: float | None = None
        self.head_time: float | None = None
        self.upstream_time: float | None = None
        #: How many servers were asked.
        self.tries = 0
        #: Whether the last one's connection had been used before.
        self.reused = False
        #: Why the proxy answered with an error of its own or cut the answer short, as one token; empty if it did not.
        self.reason = ""
        #: The request's id; empty if it was refused before it got one.
        self.request_id = ""

    def describe(self, head: bytes) -> None:
        """Note what can be read of a head that was refused, or that did not become whole in time.

        A first line that is no request line is the target, without a method.
        """
        line, _, rest = head[:MAX_DESCRIBED].lstrip(b"\r\n").partition(b"\n")
        line = line.removesuffix(b"\r")
        words = line.split(b" ")
        if len(words) == 3 and is_token(words[0]) and words[2].startswith(b"HTTP/"):
            self.method, self.target = words[0].decode(), words[1]
            self.version = words[2][5:8].decode("latin-1")
        else:
            self.target = line
        for name, value in _field(b"\n" + rest):
            match name.lower():
                case b"host":
                    self.host = self.host or value
                case b"referer":
                    self.referer = self.referer or value
                case _:
                    self.agent = self.agent or value
