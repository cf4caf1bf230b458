"""A table of clients in memory that several processes may share, without a lock.

It owns rows, each of a client: times (floats, of ``time.monotonic``, which is one clock for all processes of a machine)
and counts (of what goes up and down, such as connections, a cell for each process). Where the row of a client is, is
told by a hash of its name with a secret of the table: nobody can choose addresses that get into each other's way.

A row is in one of 16 places next to each other; a table for up to 128 clients is all one such neighbourhood. So no look
takes long, however full it is. If there is no room, the row that is worth least goes: to the one who asks (``worth``),
and of those that are worth the same the one that was added first.

Invariants:

- Eight bytes are written at a time, and so is the tag that says whose a row is, after the row was cleared. A process
  looks at the tag each time, and never at a row that has another.
- A process writes counts in its own column alone, and always all of its own count, never a difference: what got lost
  comes right with the next connection that comes or goes. Who clears a row for another client clears all its columns.
- Two processes that take from one rate at the very same moment may both take the same: that is one more than the rate
  allows, not one more for ever. Two that add one client at once agree on the first row.
- What can't be true is not believed: a time further ahead than any that could have been written (``Rate.horizon``), NaN
  too, counts as none.

What a process leaves when it dies (SIGKILL included) is its column, which the master clears: ``clear_column``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from hashlib import blake2b

__all__ = ["COLUMNS", "WAYS", "ClientTable", "OwnCounts", "Rate", "Seat"]

#: How many places a row may be in; and up to how many clients all places are looked at.
WAYS, SMALL = 16, 128
#: Processes whose counts others see. Those beyond it count for themselves alone.
COLUMNS = 64
#: The largest count of a cell, which has two bytes.
MOST = 65535
#: Bytes at the beginning: the secret, and how many rows were added.
SECRET, HEADER = 32, 64
#: So much of a burst's spacing is forgiven: times are rounded.
ROUNDING = 0.001
#: How many times a whole burst, with the debt of other machines, may lie ahead.
HORIZON = 16


class Rate:
    """How often something may happen: the generic cell rate algorithm (ITU-T I.371), which keeps one time, when the
    next one would be due if they came evenly. What comes earlier than its burst allows is refused, and costs nothing.
    """

    __slots__ = ("horizon", "interval", "tolerance")

    def __init__(self, rate: float | None, burst: int) -> None:
        #: Seconds between two; 0 if there is no limit.
        self.interval = 1 / rate if rate else 0.0
        #: How many seconds it may come before it is due.
        self.tolerance = (burst - 1 + ROUNDING) * self.interval
        #: Seconds ahead that no due time is.
        self.horizon = HORIZON * (self.tolerance + self.interval)

    def take(self, dues: memoryview[float], place: int, now: float) -> float:
        """Take one, if there is one: 0. Else the seconds until there is; nothing is taken then."""
        due: float = dues[place]
        if due <= now:
            dues[place] = now + self.interval
            return 0.0
        early = due - now
        if early <= self.tolerance:
            dues[place] = due + self.interval
            return 0.0
        if early <= self.horizon:
            return early - self.tolerance
        dues[place] = now + self.interval  # nobody can have written that; NaN comes here, too
        return 0.0

    def raise_to(self, dues: memoryview[float], place: int, due: float, now: float) -> None:
        """Take note that the next one is not due before ``due``: others have taken some."""
        before: float = dues[place]
        if before < due or not before - now <= self.horizon:
            dues[place] = min(due, now + self.horizon)


class Seat:
    """Where a client has its row, as far as that is known. Made by :meth:`ClientTable.seat`."""

    __slots__ = ("first", "name", "place", "tag")

    def __init__(self, name: str, tag: int, first: int) -> None:
        #: The client.
        self.name = name
        #: What its row is told by; never 0.
        self.tag = tag
        #: The first of the places where its row may be, and the one where it was last.
        self.first = self.place = first


def private(size: int) -> mmap.mmap:
    """Return memory for this process, and for those that it forks."""
    return mmap.mmap(-1, size)


class ClientTable:
    """Rows for clients, in a block of memory.

    ``times`` is how many times a row has, ``counts`` how many counts; ``columns`` is how many processes may count, of
    which this one is ``column``. ``block`` returns memory of so many bytes: the same for all processes that share the
    table. What is not used of it costs nothing; a row has 16 bytes, 8 for each time, and 2 for each count and column.
    """

    def __init__(
        self,
        max_clients: int,
        times: int,
        counts: int = 0,
        columns: int = 1,
        column: int = 0,
        block: Callable[[int], mmap.mmap] = private,
    ) -> None:
        #: How many places a neighbourhood has.
        self.ways = max_clients if max_clients <= SMALL else WAYS
        # Twice as many as clients: so fewer than one in a hundred is forgotten before there are that many.
        self._groups = 1 if max_clients <= SMALL else -(-2 * max_clients // WAYS)
        #: How many rows there are.
        self.rows = rows = self._groups * self.ways
        #: For how many processes there is a column, and which is ours; -1: none.
        self.columns = min(columns, COLUMNS)
        self.column = column if column < self.columns else -1
        #: Clients that were forgotten by this process although something was known of them.
        self.forgotten = 0
        cells = rows * self.columns
        memory = block(HEADER + rows * 8 * (2 + times) + counts * 2 * cells)
        whole = memoryview(memory)
        if not any(whole[:SECRET]):  # made just now, by the process that forks the others
            whole[:SECRET] = os.urandom(SECRET)
        self._secret = bytes(whole[:SECRET])
        self._added = whole[SECRET:HEADER].cast("q")
        numbers = whole[HEADER : HEADER + rows * 8 * (2 + times)]
        parts = [numbers[at * rows * 8 : (at + 1) * rows * 8] for at in range(2 + times)]
        #: Whose each row is: 0 for nobody's.
        self.tags = parts[0].cast("q")
        #: When each was added, as a number that grows.
        self.ages = parts[1].cast("q")
        #: The times, one column for each kind, by the place of the row.
        self.times = [part.cast("d") for part in parts[2:]]
        rest = whole[HEADER + rows * 8 * (2 + times) :]
        #: The counts, one block for each kind, in which a row has ``columns`` cells.
        self.counts = [rest[at * 2 * cells : (at + 1) * 2 * cells].cast("H") for at in range(counts)]
        self._no_counts = memoryview(bytes(2 * self.columns)).cast("H")

    def seat(self, name: str) -> Seat:
        """Return where a client has its row, or would have it. Some microseconds: keep it."""
        found = blake2b(name.encode(), digest_size=16, key=self._secret).digest()
        tag = int.from_bytes(found[:8], "little", signed=True) or 1
        return Seat(name, tag, int.from_bytes(found[8:], "little") % self._groups * self.ways)

    def find(self, seat: Seat) -> int:
        """Return the place of a client's row; -1 if it has none."""
        if self.tags[seat.place] == seat.tag:
            return seat.place
        return self._look(seat)

    def _look(self, seat: Seat) -> int:
        first = seat.first
        try:
            seat.place = place = first + self.tags[first : first + self.ways].tolist().index(seat.tag)
        except ValueError:
            return -1
        return place

    def add(self, seat: Seat, worth: Callable[[int], tuple[int, float]]) -> int:
        """Make a row for a client that has none; return its place.

        ``worth`` returns of a place how much would be lost with its row, 0 if nothing, and until when that counts.
        """
        first = seat.first
        tags = self.tags[first : first + self.ways].tolist()
        place = first + tags.index(0) if 0 in tags else self._least(first, worth)
        self._added[0] = age = self._added[0] + 1
        for times in self.times:
            times[place] = 0.0
        self._clear_counts(place)
        self.ages[place] = age
        self.tags[place] = seat.tag  # last: whoever sees it sees a row that is clear
        seat.place = place
        # Another process may have added it, too, in another place: the first one is it, for both
        # (test_two_that_add_one_client_at_once_agree).
        tags = self.tags[first : first + self.ways].tolist()
        if tags.count(seat.tag) > 1:
            place = seat.place = first + tags.index(seat.tag)
            for at, tag in enumerate(tags, first):
                if tag == seat.tag and at != place:
                    self.tags[at] = 0
        return place

    def _least(self, first: int, worth: Callable[[int], tuple[int, float]]) -> int:
        """Return the place of the row that may go."""
        best, found = (0, 0.0, 0), -1
        for place in range(first, first + self.ways):
            value = worth(place)
            if not value[0]:
                return place
            mine = (*value, self.ages[place])
            if found < 0 or mine < best:
                best, found = mine, place
        self.forgotten += 1
        return found

    def _clear_counts(self, place: int) -> None:
        columns = self.columns
        for cells in self.counts:
            cells[place * columns : (place + 1) * columns] = self._no_counts

    def is_counted(self, place: int) -> bool:
        """Whether any count of a row is above 0."""
        columns = self.columns
        return any(any(cells[place * columns : (place + 1) * columns]) for cells in self.counts)

    def others(self, kind: int, place: int) -> int:
        """Return what all processes but this one count of a row."""
        columns, column = self.columns, self.column
        cells = self.counts[kind][place * columns : (place + 1) * columns]
        return sum(cells) - (cells[column] if column >= 0 else 0)

    def write_own(self, kind: int, place: int, number: int) -> None:
        """Say how much this process counts."""
        if self.column >= 0:
            self.counts[kind][place * self.columns + self.column] = min(number, MOST)

    def clear_column(self, column: int) -> None:
        """Count a process out that is gone. In the master; about 0.1 us for each row that there could be."""
        if column < self.columns and self.counts:
            for place, tag in enumerate(self.tags.tolist()):
                if tag:
                    for cells in self.counts:
                        cells[place * self.columns + column] = 0

    def places(self) -> list[int]:
        """Return where rows are that belong to somebody. It goes through the whole table."""
        return [place for place, tag in enumerate(self.tags.tolist()) if tag]


class OwnCounts:
    """What goes up and down of each client, such as its connections: this process's own, and all.

    Its own are known here, whatever becomes of the row: only what others count can get lost with it. Two processes that
    look at the same moment may both find room for the last one, so that there may be one more than the limit for each
    process beyond the first.
    """

    def __init__(self, table: ClientTable, kind: int) -> None:
        self._table = table
        self._kind = kind
        #: How many this process has, by the client's name; none with 0.
        self.own: dict[str, int] = {}

    def total(self, seat: Seat, place: int) -> int:
        """Return how many a client has in all processes."""
        own = self.own.get(seat.name, 0)
        return own if self._table.columns == 1 else own + self._table.others(self._kind, place)

    def add(self, seat: Seat, place: int) -> None:
        """Count one more."""
        self.own[seat.name] = number = self.own.get(seat.name, 0) + 1
        self._table.write_own(self._kind, place, number)

    def remove(self, seat: Seat) -> None:
        """Count one less; of a client that has none, nothing."""
        number = self.own.pop(seat.name, 0) - 1
        if number > 0:
            self.own[seat.name] = number
        place = self._table.find(seat)
        if number >= 0 and place >= 0:
            self._table.write_own(self._kind, place, number)
