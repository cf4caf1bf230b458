"""The slowest and the failed of the last requests, of each worker in memory that all share.

A worker keeps them as objects, and writes them once a second, in records of a fixed size: text is cut. What others
read while it writes is read anew.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from greensock.shared_pages import SharedPages

__all__ = ["LastRequest", "LastRequests", "ToldRecord", "read_last_requests"]

#: How many of each kind a worker keeps.
MOST = 16
#: Seconds in which the slowest are looked for: those of the span before are told, too.
SPAN = 60.0
#: How often it is read anew because the worker writes.
MOST_READINGS = 10

#: When, how long, the status, and what it was: bytes are as in ``LastRequest``.
_record = struct.Struct("<ddH16s64s160s48s64s32s")
#: How often it was written, twice; then how many slowest and how many failed.
_head = struct.Struct("<qqHH")
_SIZE = _head.size + 2 * MOST * _record.size
_TEXTS = ("method", "host", "target", "client", "server", "reason")


class ToldRecord(Protocol):
    """What is looked at of a record of the proxy's."""

    @property
    def started(self) -> float: ...
    @property
    def duration(self) -> float: ...
    @property
    def status(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def host(self) -> bytes: ...
    @property
    def target(self) -> bytes: ...
    @property
    def client(self) -> str: ...
    @property
    def upstream(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class LastRequest:
    """One request, as operators are told of it. Texts are cut; nothing in them can be trusted."""

    #: When its head was there, in seconds since 1970.
    at: float
    #: From then to the last byte of the answer.
    seconds: float
    #: What was answered; 499: the client left; 0: nothing.
    status: int
    method: str
    host: str
    target: str
    client: str
    #: The servers that were asked.
    server: str
    #: Why the proxy answered itself, or cut the answer short; empty if it did not.
    reason: str

    @classmethod
    def of(cls, record: ToldRecord) -> LastRequest:
        """Return what is told of a record."""
        return cls(
            *(record.started, record.duration, record.status, record.method),
            *(record.host[:64].decode("latin-1"), record.target[:160].decode("latin-1")),
            *(record.client, record.upstream, record.reason),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``/status.json`` has it."""
        return asdict(self)

    def packed(self) -> bytes:
        """Return it as it is written."""
        texts = [getattr(self, name).encode("utf-8", "replace") for name in _TEXTS]
        return _record.pack(self.at, self.seconds, min(max(self.status, 0), 65535), *texts)

    @classmethod
    def unpacked(cls, data: bytes) -> LastRequest:
        """Return what was written."""
        at, seconds, status, *texts = _record.unpack(data)
        # What was cut may end within a character.
        method, host, target, client, server, reason = (each.rstrip(b"\0").decode("utf-8", "ignore") for each in texts)
        return cls(at, seconds, status, method, host, target, client, server, reason)


class LastRequests:
    """Those of one worker."""

    def __init__(self, pages: SharedPages, slot: int) -> None:
        self._block = pages.block("last requests", pages.slots * _SIZE)
        self._begin = slot * _SIZE
        #: Requests that take no longer are none of the slowest: who knows that needs to tell no more of them.
        self.floor = 0.0
        self._failed: deque[LastRequest] = deque(maxlen=MOST)
        # The smallest first; the serial number tells two apart that took as long.
        self._slowest: list[tuple[float, int, LastRequest]] = []
        self._before: list[tuple[float, int, LastRequest]] = []
        self._span_ends = 0.0
        self._serial = 0
        self._has_changed = True

    def note(self, record: ToldRecord) -> None:
        """Keep a request if it is one of the slowest, or failed: 5xx, or cut short."""
        has_failed = record.status >= 500 or (record.reason != "" and 200 <= record.status < 400)
        if not has_failed and record.duration <= self.floor:
            return
        told = LastRequest.of(record)
        self._has_changed = True
        if has_failed:
            self._failed.append(told)
        if told.seconds > self.floor:
            self._serial += 1
            entry = (told.seconds, self._serial, told)
            if len(self._slowest) < MOST:
                heapq.heappush(self._slowest, entry)
            else:
                heapq.heapreplace(self._slowest, entry)
            if len(self._slowest) == MOST:
                self.floor = self._slowest[0][0]

    def write(self, now: float) -> None:
        """Write what has changed; ``now`` is in seconds of a clock that never goes back."""
        if not self._span_ends:
            self._span_ends = now + SPAN
        elif now >= self._span_ends:
            self._span_ends = now + SPAN
            self._has_changed = self._has_changed or bool(self._before)
            self._before, self._slowest, self.floor = self._slowest, [], 0.0
        if not self._has_changed:
            return
        self._has_changed = False
        slowest = [told for _, _, told in heapq.nlargest(MOST, [*self._slowest, *self._before])]
        failed = list(self._failed)
        first, _, _, _ = _head.unpack_from(self._block, self._begin)
        _head.pack_into(self._block, self._begin, first + 1, first, len(slowest), len(failed))
        place = self._begin + _head.size
        for index, told in enumerate([*slowest, *failed]):
            begin = place + index * _record.size
            self._block[begin : begin + _record.size] = told.packed()
        _head.pack_into(self._block, self._begin, first + 1, first + 1, len(slowest), len(failed))

    def forget(self) -> None:
        """Forget what another worker wrote that had this row before."""
        _head.pack_into(self._block, self._begin, 0, 0, 0, 0)


def read_last_requests(pages: SharedPages, slots: Iterable[int]) -> tuple[list[LastRequest], list[LastRequest]]:
    """Return the slowest, and the failed of all these workers, the last of them first; ``MOST`` of each."""
    block = pages.block("last requests", pages.slots * _SIZE)
    slowest: list[LastRequest] = []
    failed: list[LastRequest] = []
    for slot in slots:
        begin = slot * _SIZE
        for _ in range(MOST_READINGS):
            data = block[begin : begin + _SIZE]
            before, after, slow_count, failed_count = _head.unpack_from(data)
            if before == after and _head.unpack_from(block, begin)[:2] == (before, after):
                break
        else:
            continue
        place = _head.size
        found = [
            LastRequest.unpacked(data[place + index * _record.size : place + (index + 1) * _record.size])
            for index in range(min(slow_count + failed_count, 2 * MOST))
        ]
        slowest += found[:slow_count]
        failed += found[slow_count:]
    slowest.sort(key=lambda told: -told.seconds)
    failed.sort(key=lambda told: -told.at)
    return slowest[:MOST], failed[:MOST]
