"""Rates that hold across machines, by a Redis that is told what clients have used, and tells what they used in all.

Who may come is decided here, by the table, and nobody waits for Redis. Ten times a second a greenlet tells it how much
each client has used since, in calls of up to 128 clients, and hears for each when its next one is due by what it used
everywhere: the same time that the table keeps (``Rate``), so that it can be taken over where it is later. As that is a
time and no count, nothing is counted twice, here or there.

So a client that turns to several machines may have, beyond what the rate allows, once a burst at each, and what is
under way for a tenth of a second; that it has to wait off again. In the long run the rate holds.

Each process has a greenlet, and a connection, of its own: what it has used is then known without asking others, and if
it dies, only its last tenth of a second is untold. While Redis is away that is said once, and limits hold for each
machine; what is used meanwhile is not told later: each machine has allowed it by itself, and what is more than one may
would have to be waited off now. It is tried again each time, later and later, up to two seconds.

In Redis each client is one key that goes when its time is over: a float of its clock's seconds. No clock of ours
counts.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol
from urllib.parse import urlsplit

import gevent

__all__ = ["RedisShare", "Sharer", "Used", "has_redis", "is_storage", "load_redis"]

log = logging.getLogger("greensock.server")

#: Seconds between two times that it is told.
PERIOD = 0.1
#: Clients in one call.
BATCH = 128
#: Seconds that Redis may take to answer.
TIMEOUT = 1.0
#: Seconds between two tries while it is away: the first time, and at the most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: What every key begins with.
PREFIX = "greensock:"

#: For each key: used, the seconds between two, and how many seconds ahead it may get; then since how many seconds they
#: may have been used. Answers how far ahead each is.
SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local since = now - tonumber(ARGV[3 * #KEYS + 1])
local found = {}
for i, key in ipairs(KEYS) do
  local used, interval, most = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local due = tonumber(redis.pcall('GET', key) or now)
  if not (due and due >= since and due <= now + most) then due = since end  -- nan, too
  due = math.min(due + used * interval, now + most)
  redis.call('SET', key, string.format('%.6f', due), 'PX', math.max(math.ceil((due - now) * 1000), 0) + 1000)
  found[i] = string.format('%.6f', due - now)
end
return found
"""


def is_storage(value: object) -> bool:
    """Whether an option is the URL of a Redis."""
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - which looks whether it is one
    except ValueError:
        return False
    if parts.scheme == "unix":
        return bool(parts.path)
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname)


def has_redis() -> bool:
    """Whether the package is installed that speaks to Redis."""
    return importlib.util.find_spec("redis") is not None


def load_redis() -> tuple[Any, Any, Any]:
    """Load that package: half a second in which nothing else happens, so do it before somebody is served.

    Raises:
        ValueError: it is not installed.
    """
    if not has_redis():
        raise ValueError("storage: the package redis expected: pip install greensock[redis]")
    redis, retry, backoff = map(importlib.import_module, ("redis", "redis.retry", "redis.backoff"))
    return redis, retry, backoff


@dataclass(frozen=True, slots=True)
class Used:
    """What one client has used of one rate since it was told last."""

    #: What it is called there.
    key: str
    #: How many.
    count: int
    #: Seconds between two, and how many seconds ahead the next one may be at the most.
    interval: float
    horizon: float
    #: Takes note of what was used in all: how many seconds ahead the next one is, and the time.
    raise_to: Callable[[float, float], None]


#: What is told while Redis is away. Not a ping: a replica, which answers that, and may not write, is not back.
NOTHING = Used("nothing", 0, 0.0, 0.0, lambda ahead, now: None)


class Sharer(Protocol):
    """Whose rates are shared: a guard."""

    def share_used(self) -> None:
        """Note from now on what clients use."""

    def take_used(self) -> list[Used]:
        """Return what they have used since it was asked last."""


class RedisShare:
    """Shares the rates of some guards with other machines while it is started.

    Raises:
        ValueError: the package ``redis`` is not installed.
    """

    def __init__(self, url: str, sharers: Iterable[Sharer], period: float = PERIOD) -> None:
        self._modules = load_redis()
        self._url = url
        self._sharers = list(sharers)
        self._period = period
        self._client: Any = None
        self._job: gevent.Greenlet[[], None] | None = None
        #: Whether Redis is away.
        self.is_away = False
        #: How often it was told something, and how often that failed.
        self.told = self.failed = 0

    def start(self) -> None:
        """Begin to tell and to hear."""
        if self._job is None:
            for sharer in self._sharers:
                sharer.share_used()
            self._job = gevent.spawn(self._run)

    def stop(self) -> None:
        """Tell no more."""
        job, self._job = self._job, None
        if job is not None:
            job.kill(block=False)

    def _run(self) -> None:
        pause, before = self._period, monotonic()
        try:
            while True:
                gevent.sleep(pause)
                now = monotonic()
                age, before = now - before, now
                used = [each for sharer in self._sharers for each in sharer.take_used()]
                if self.is_away:
                    used = [NOTHING]  # what was used meanwhile each machine has allowed by itself
                if not used:
                    continue
                try:
                    self._exchange(used, age)
                # Whatever it is, the proxy goes on: redis-py raises its own errors, and those of sockets and of ssl.
                except Exception as error:
                    pause = self._note_away(error, pause)
                else:
                    pause = self._period
                    if self.is_away:
                        self.is_away = False
                        log.warning("Redis at %s is back: limits hold for all machines again", self._shown)
        finally:
            self._close()

    def _exchange(self, used: Sequence[Used], age: float) -> None:
        """Tell what was used in so many seconds, and take note of what was used in all."""
        client = self._connected()
        for first in range(0, len(used), BATCH):
            batch = used[first : first + BATCH]
            numbers = [number for each in batch for number in (each.count, each.interval, each.horizon)]
            # Of when it was asked, not of when it has answered: else each answer would add its time to what was used.
            asked = monotonic()
            found = client.eval(SCRIPT, len(batch), *(PREFIX + each.key for each in batch), *numbers, age)
            for each, ahead in zip(batch, found, strict=True):
                each.raise_to(float(ahead), asked)
            self.told += 1

    def _connected(self) -> Any:
        if self._client is None:
            redis, retry, backoff = self._modules
            never = retry.Retry(backoff.NoBackoff(), 0)
            self._client = redis.Redis.from_url(
                self._url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=never
            )
        return self._client

    def _note_away(self, error: Exception, pause: float) -> float:
        """Say so once; return the seconds until it is tried again."""
        self.failed += 1
        if not self.is_away:
            self.is_away = True
            log.error("Redis at %s is away (%s): limits hold for this machine alone", self._shown, error)
            return SHORTEST_PAUSE
        return min(2 * pause, LONGEST_PAUSE)

    @property
    def _shown(self) -> str:
        """The URL without what may be secret."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
