"""What may be said of WebSockets: limits, pings, compression. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from greensock import Rule

__all__ = ["DEFAULT_WEBSOCKET", "WebSocketOptions"]

#: The longest payload of a frame that needs no further length (RFC 6455 section 5.2).
SHORT = 125

_rules = {
    "max_message": Rule.whole(0),
    "max_frame": Rule.whole(0).or_none(),
    "ping_interval": Rule.seconds(zero=False).or_none(),
    "ping_timeout": Rule.seconds(zero=False),
    "close_timeout": Rule.seconds(zero=False),
    "compress": Rule.flag(),
    "compress_from": Rule.whole(1),
    "context_takeover": Rule.flag(),
    "window_bits": Rule(lambda value: type(value) is int and 9 <= value <= 15, "9 to 15"),
    "origins": Rule(
        lambda value: isinstance(value, Collection) and not isinstance(value, str | bytes), "a collection of strings"
    ).or_none(),
}


@dataclasses.dataclass(frozen=True, slots=True)
class WebSocketOptions:
    """The limits of a WebSocket, its pings, and its compression. What is exactly at a limit passes.

    Raises:
        ValueError: a value that is not allowed; the text says which, and what is.
    """

    #: Bytes of a message that comes, all its frames together, and decompressed. A longer one ends the WebSocket (1009).
    max_message: int = 1 << 20
    #: Bytes of one frame, as it comes. None: as ``max_message``.
    max_frame: int | None = None
    #: Seconds without a byte from the peer after which it is pinged, up to a quarter late. None: never; then a peer
    #: that has vanished without a word is held until something is sent to it.
    ping_interval: float | None = 20.0
    #: Seconds that it may go on to say nothing then, before the connection is dropped.
    ping_timeout: float = 20.0
    #: Seconds that the peer may take to answer a close.
    close_timeout: float = 5.0
    #: Whether permessage-deflate is agreed to (as a server) or offered (as a client).
    compress: bool = True
    #: Bytes from which on a message is compressed on its way out.
    compress_from: int = 512
    #: Whether each message may refer to those before it, both ways. It compresses small messages that are alike much
    #: better, and holds 220 kB for each WebSocket that has sent and was sent such; 93 kB with 11 ``window_bits``.
    context_takeover: bool = False
    #: How far back a message may refer, as a power of 2.
    window_bits: int = 15
    #: What Origin may be where a browser says it; others get 403. None: anything. A page of any site can open a
    #: WebSocket with the cookies of its reader: whoever goes by cookies gives this, or looks at Origin.
    origins: Collection[str] | None = None
    #: The longest payload that needs no closer look: not given, but derived.
    short: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, rule in _rules.items():
            rule.check(name, getattr(self, name))
        object.__setattr__(self, "short", min(SHORT, self.max_message, self.longest_frame))

    @property
    def longest_frame(self) -> int:
        """What ``max_frame`` comes to, in bytes."""
        return self.max_message if self.max_frame is None else self.max_frame


#: Those of who was told nothing.
DEFAULT_WEBSOCKET = WebSocketOptions()
