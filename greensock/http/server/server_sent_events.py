"""Server-Sent Events: an answer of events that a page hears as they come (``EventSource``; WHATWG HTML section 9.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from greensock.http.server.response import Response

__all__ = ["ServerSentEvent", "send_events"]


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. Lines of ``data`` may end with LF, CR or CRLF; they arrive with LF.

    Raises:
        ValueError: a line break in ``event`` or ``id``, NUL in ``id``, or a negative ``retry``.
    """

    #: What it says.
    data: str
    #: What kind it is: ``message``, if it is none.
    event: str | None = None
    #: What the page says it heard last when it connects again: the request's Last-Event-ID.
    id: str | None = None
    #: Seconds after which the page is to connect again, if the connection is lost.
    retry: float | None = None

    def __post_init__(self) -> None:
        for name in ("event", "id"):
            value = getattr(self, name)
            if value is not None and any(each in value for each in "\r\n\0"):
                raise ValueError(f"{name}={value!r}: one line without NUL expected")
        if self.retry is not None and not self.retry >= 0:
            raise ValueError(f"retry={self.retry!r}: seconds, 0 or more, expected")

    def encode(self) -> bytes:
        """Return it as it goes out."""
        lines = [] if self.event is None else [f"event: {self.event}"]
        lines += [] if self.id is None else [f"id: {self.id}"]
        lines += [] if self.retry is None else [f"retry: {int(self.retry * 1000)}"]
        text = self.data.replace("\r\n", "\n").replace("\r", "\n")
        lines += [f"data: {line}" for line in text.split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


def send_events(events: Iterable[ServerSentEvent | str | None]) -> Response:
    """Return an answer that sends each event as soon as ``events`` gives it: a ``str`` is its data alone.

    None sends a comment, which pages do not hear: where nothing happens for long it keeps proxies from closing, and
    finds out whether the page is still there. ``events`` is closed when the page has left, if it has a ``close``
    method, as generators do; it holds a greenlet for as long as it runs, and so a worker of the server.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(_Events(events), headers=headers, content_type="text/event-stream")


class _Events:
    """Events as bytes."""

    def __init__(self, events: Iterable[ServerSentEvent | str | None]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        yield b": events\n\n"  # at once, so that the page knows that it is connected
        for event in self._events:
            if event is None:
                yield b":\n\n"
            elif isinstance(event, str):
                yield ServerSentEvent(event).encode()
            else:
                yield event.encode()

    def close(self) -> None:
        """Close what gives the events."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
