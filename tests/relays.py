"""A relay by itself: its client, its server and its proxy only write down what is done to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from greensock.http.wire.headers import Headers
from greensock.proxy.request_relay import RequestRelay

__all__ = ["Clock", "Noted", "relay_between"]


class Clock:
    """Time that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Noted:
    """Writes down what is called, with its arguments; has the fields that it was given."""

    def __init__(self, **fields: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


def relay_between(
    conn: Any = None,
    proxy: Any = None,
    *,
    method: str = "GET",
    target: bytes = b"/",
    version: str = "1.1",
    fields: Any = (),
    length: int | None = None,
    body: Any = None,
    kind: type[RequestRelay] = RequestRelay,
    **known: Any,
) -> Any:
    """Return a relay of a request, of which this is known."""
    headers = Headers(fields)
    head = SimpleNamespace(
        method=method, target=target, version=version, headers=headers, content_length=length, authority=b"a"
    )
    request: Any = Noted(
        connection=conn or Noted(drop_reason=None, bytes_sent=0),
        body=Noted(received=0, is_ended=False) if body is None else body,
        head=head,
        headers=headers,
        method=method,
        version=version,
        is_answered=False,
        stream=None,
    )
    relay = kind(proxy or Noted(), request, True, "192.0.2.1")
    relay.spell = 7
    for name, value in known.items():
        setattr(relay, name, value)
    return relay
