"""What the workers of a proxy share of the servers behind it: numbers in rows, and a table of what changes seldom.

A server has the same *place* in all workers, found by its upstream and its name. At that place each worker has numbers
in a row of its own, which it alone writes, without a lock; the sums over all rows are what the whole proxy has. The
master clears the row of a worker that is gone, so that nothing stays counted.

The table (a document, see ``shared_table``) says the rest; a server's key there is ``UPSTREAM/SERVER``:

=========== =========================================================================================================
places      the place, and what had been counted there for whoever had it before: ``[place, requests, errors]``
turn        how many pieces of news of checks and ejections were told so far
admin       what an operator wants: ``["drain", "down" or, against what is said of its name, "ready", since]``
checks      what checks found: ``[turn, rules, is_down, since, why]``
ejections   what requests found: ``[turn, rules, until or null, seconds, penalty, since, why]``; null: it is up again
found       where a name leads: ``[[host, port, weight, is_backup], ...]``
added       servers that were added at run time, by their upstreams and names: the options of each
removed     servers of the file that were taken out at run time, by their upstreams: ``{name: true}``
=========== =========================================================================================================

``turn`` counts what was told of a server, so that each worker takes over each piece of news once; ``rules`` stands for
the options of its health, as what was found by other rules says nothing. Times called ``until`` are of the monotonic
clock, which is the same in all processes of a machine; ``since`` is in seconds since 1970.

Of all workers one *leads*: it checks the servers and looks up their names. That is the one with the lowest row of those
that show life, among those of the newest configuration: the others have servers that may be gone, or know new ones not
yet. All is by time as an argument, and without I/O.
"""

from __future__ import annotations

import zlib
from typing import Any

from greensock.proxy.upstream.shared_table import SharedTable
from greensock.shared_pages import SharedPages

__all__ = [
    "ASKED",
    "CONNECTIONS",
    "ERRORS",
    "REQUESTS",
    "SLOTS",
    "WAITING",
    "SharedServers",
    "WorkersView",
    "key_of_server",
    "rules_of",
]

#: The numbers at a place: requests in hand, with those that wait and with connections that are one client's alone;
#: of these the ones that have a connection; the ones that wait for one; connections, idle ones too.
#: At an upstream's own place: requests of the last seconds, and retries.
ASKED, SLOTS, WAITING, CONNECTIONS = range(4)
WIDTH = 4
#: What is counted for ever.
REQUESTS, ERRORS = range(2)
#: Places there are. Servers beyond that are each worker's own.
PLACES = 1024
#: Bytes of the table: two halves.
TABLE_SIZE = 1 << 20
#: Seconds without a beat after which a worker does not lead, and others do not wait for it.
SILENT = 2.0


def key_of_server(upstream: str, name: str) -> str:
    """Return what a server is called in the table. The name of an upstream has no ``/``."""
    return f"{upstream}/{name}"


def rules_of(options: object) -> int:
    """Return what stands for the options of a server's health: a frozen record, which is written alike everywhere."""
    return zlib.crc32(repr(options).encode("utf-8", "surrogateescape"))


class SharedServers:
    """All of it. Made in the master before the first fork; in a proxy of one process on pages for one worker."""

    def __init__(self, pages: SharedPages) -> None:
        self.slots = pages.slots
        #: What changes seldom.
        self.table = SharedTable(pages.block("servers", TABLE_SIZE), is_alone=pages.slots == 1)
        self.counts = pages.numbers("server-counts", PLACES * WIDTH)
        self.totals = pages.numbers("server-totals", PLACES * 2, is_kept=True)
        #: Of each worker: when it last showed life, and its configuration.
        self.beats = pages.numbers("server-beats", 2, "d")
        #: Of each worker: the connections that clients have there (``client_room``).
        self.clients = pages.numbers("clients", 1)
        #: How many rows anybody has had so far.
        self.top = memoryview(pages.block("server-rows", 8)).cast("q")
        #: Which configuration workers are made of from now on. In the master.
        self.edition = 1


class WorkersView:
    """What one worker sees of all, and its own row."""

    def __init__(self, shared: SharedServers, slot: int) -> None:
        self.shared = shared
        self.slot = slot
        self.table = shared.table
        self._edition = shared.edition
        self._top = shared.top
        self._counts: list[Any] = [shared.counts.row(each) for each in range(shared.slots)]
        self._mine: Any = shared.counts.row(slot)
        self._totals: list[Any] = [shared.totals.row(each) for each in range(shared.slots)]
        self._gone: Any = shared.totals.row(shared.slots)
        self._beats: list[Any] = [shared.beats.row(each) for each in range(shared.slots)]
        self._clients: list[Any] = [shared.clients.row(each) for each in range(shared.slots)]
        self._rows_there()

    def _rows_there(self) -> int:
        """Return how many rows anybody has had, this worker's among them."""
        if self._top[0] <= self.slot:  # again and again, as two may begin at the same moment
            self._top[0] = self.slot + 1
        return int(self._top[0])

    # -- life

    def beat(self, now: float) -> None:
        """Show life."""
        row = self._beats[self.slot]
        row[1] = self._edition
        row[0] = now
        self._rows_there()

    def end(self) -> None:
        """Show no life any more, so that another leads."""
        self._beats[self.slot][0] = 0.0

    def leads(self, now: float) -> bool:
        """Return whether this worker is the one that checks and looks up."""
        edition, leader = 0.0, -1
        for slot, (beat, its) in enumerate(self._beats[: self._top[0]]):
            if now - beat < SILENT and its > edition:
                edition, leader = its, slot
        return leader == self.slot

    @property
    def has_others(self) -> bool:
        """Whether there is, or was, another worker."""
        return self._top[0] > 1

    # -- numbers

    def add(self, place: int, column: int, more: int) -> None:
        """Count in this worker's row."""
        self._mine[place * WIDTH + column] += more

    def here(self, place: int, column: int) -> int:
        """Return what is counted in this worker's row, by whatever gateway of this process."""
        return int(self._mine[place * WIDTH + column])

    def of_all(self, place: int, column: int) -> int:
        """Return the sum over all workers."""
        at = place * WIDTH + column
        return int(sum([row[at] for row in self._counts[: self._rows_there()]]))

    def of_others(self, place: int, column: int) -> int:
        """Return the sum over the other workers."""
        return self.of_all(place, column) - self.here(place, column)

    def has_needier(self, place: int, slots: int, now: float) -> bool:
        """Return whether requests wait in another worker that has fewer than so many slots, and shows life."""
        first = place * WIDTH
        for slot, row in enumerate(self._counts[: self._top[0]]):
            if row[first + WAITING] > 0 and row[first + SLOTS] < slots and slot != self.slot:
                if now - self._beats[slot][0] < SILENT:
                    return True
        return False

    def add_total(self, place: int, column: int, more: int) -> None:
        """Count what is counted for ever."""
        self._totals[self.slot][place * 2 + column] += more

    def total(self, place: int, column: int) -> int:
        """Return the sum over all workers, those that are gone too."""
        at = place * 2 + column
        return int(sum([row[at] for row in self._totals[: self._top[0]]]) + self._gone[at])

    def add_clients(self, more: int) -> None:
        """Count connections of clients in this worker's row."""
        self._clients[self.slot][0] += more

    def clients(self) -> int:
        """Return how many connections clients have, in all workers."""
        return int(sum([row[0] for row in self._clients[: self._rows_there()]]))

    # -- places

    def give_places(self, document: dict[str, Any], keys: list[str]) -> bool:
        """Give places to those that have none, in the table, as far as there are any; return whether it has changed.

        A place of before is taken if nobody counts anything there.
        """
        places = document.setdefault("places", {})
        missing = [key for key in keys if key not in places]
        before = len(places)
        used = {each[0] for each in places.values()}
        free = (place for place in range(PLACES) if place not in used and self._is_free(place))
        for key, place in zip(missing, free, strict=False):
            places[key] = [place, self.total(place, REQUESTS), self.total(place, ERRORS)]
        return len(places) > before

    def _is_free(self, place: int) -> bool:
        first = place * WIDTH
        return not any(any(row[first : first + WIDTH]) for row in self._counts[: self._top[0]])
