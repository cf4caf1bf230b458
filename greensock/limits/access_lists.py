"""Who may come, and who may not: networks that are named, and those of files, which are read anew.

First it is looked who is allowed, then who is denied; whoever is in neither is welcome, as with TCP wrappers. To let in
those alone who are allowed, deny ``0.0.0.0/0``, ``::/0`` and ``unix``.

A file has a network a line; what follows ``#`` is a comment. It is looked at every two seconds, and read in a thread of
gevent's, as a disk may be slow. One that is broken is logged, once, and the old one kept; so is one that is gone. That
holds for a worker, too, that begins when it is broken: it has what the master read.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import gevent

from greensock.limits.networks import Networks

__all__ = ["AccessLists", "BadNetworks", "is_path", "read_networks"]

log = logging.getLogger("greensock.server")

#: Seconds between two looks at the files.
LOOK_EVERY = 2.0
#: Bytes of the longest file; some 60,000 networks.
MOST_BYTES = 1 << 20
#: How many addresses are remembered.
CACHED = 8192

#: What each file said when it was right the last time: who is forked goes on with that if it is not by then.
_last_good: dict[str, Networks] = {}


class BadNetworks(ValueError):
    """A file with networks that can't be used: the text says the file, the line, and what is wrong."""


def read_networks(path: str) -> Networks:
    """Return the networks that a file names: some 5 us each.

    Raises:
        BadNetworks: it can't be read, is too long, or a line is no network.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadNetworks(f"{path}: {error.strerror}: a file that can be read expected") from error
    if len(data) > MOST_BYTES:
        raise BadNetworks(f"{path}: at most {MOST_BYTES} bytes expected")
    lines = [line.partition("#")[0].strip() for line in data.decode("utf-8", "replace").splitlines()]
    try:
        found = _last_good[path] = Networks(filter(None, lines))
    except ValueError as wrong:
        for number, text in enumerate(lines, 1):
            try:
                Networks((text,) if text else ())
            except ValueError as error:
                raise BadNetworks(f"{path}: line {number}: {error}") from None
        raise BadNetworks(f"{path}: {wrong}") from None
    return found


def is_path(value: object) -> bool:
    """Whether an option is the path of a file, be it there or not."""
    return isinstance(value, str) and bool(value) and "\0" not in value


class _File:
    """A file of networks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.mark = _mark_of(path)
        try:
            self.networks = read_networks(path)
        except BadNetworks as error:
            if path not in _last_good:
                raise
            log.error("%s; what was there before goes on", error)
            self.networks = _last_good[path]


def _mark_of(path: str) -> tuple[int, ...]:
    """Return what changes with a file; empty if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


class AccessLists:
    """Says who may come. While it is started it looks at its files.

    Raises:
        ValueError: a network, or a file, that is not right.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        allow_file: str | None = None,
        deny_file: str | None = None,
    ) -> None:
        self._allow, self._deny = Networks(allow), Networks(deny)
        self._allow_file = _File(allow_file) if allow_file is not None else None
        self._deny_file = _File(deny_file) if deny_file is not None else None
        #: Whether there is anything to be looked up.
        self.is_empty = not (self._deny or deny_file)  # nobody needs to be allowed then
        self._job: gevent.Greenlet[[], None] | None = None
        self._started = 0
        self._forget()

    def _forget(self) -> None:
        """Look up every client anew."""
        self._found = functools.lru_cache(CACHED)(self._look_up)

    def denies(self, client: str) -> bool:
        """Whether a client, an address as text, may not come; the empty text is who comes by a Unix socket."""
        return self._found(client)

    def _look_up(self, client: str) -> bool:
        return not _holds(client, self._allow, self._allow_file) and _holds(client, self._deny, self._deny_file)

    def start(self) -> None:
        """Look at the files, if there are any, until ``stop`` was called as often."""
        self._started += 1
        if self._job is None and (self._allow_file or self._deny_file):
            self._job = gevent.spawn(self._watch)

    def stop(self) -> None:
        """Look at them no more, if nobody else has started it."""
        self._started = max(0, self._started - 1)
        if self._started:
            return
        job, self._job = self._job, None
        if job is not None:
            job.kill(block=False)

    def _watch(self) -> None:
        pool: Any = gevent.get_hub().threadpool
        while True:
            gevent.sleep(LOOK_EVERY)
            self.look(lambda path: pool.apply(read_networks, (path,)))

    def look(self, read: Callable[[str], Networks] = read_networks) -> None:
        """Look at the files now; one that is broken is logged."""
        for file in (self._allow_file, self._deny_file):
            if file is None or (mark := _mark_of(file.path)) == file.mark:
                continue
            file.mark = mark  # before it is read: what changes meanwhile is read once more
            try:
                file.networks = read(file.path)
            except BadNetworks as error:
                log.error("%s; what was there before goes on", error)
                continue
            self._forget()
            log.warning("%s was read anew: %d networks", file.path, len(file.networks))


def _holds(client: str, networks: Networks, file: _File | None) -> bool:
    return client in networks or (file is not None and client in file.networks)
