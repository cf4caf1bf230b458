"""What the clients of one server may do (``ClientLimits``), kept at its seams: without it nothing here is called.

- Who comes is judged between accept and the connection: who is refused costs a descriptor for a moment, and no more.
- Who sends more than it may is *held back*: when it is ready for its next turn, it stays out of the ready queue, as if
  it were queued, until what it sent is paid for. No worker waits for it, and what it sends stays in the kernel. A timer
  looks at those that are held back, as long as there are any, and lets those go, too, that have ended meanwhile.
- A turn reads a quarter of what the rate allows in a second at the most, and that is also the most that is read beyond
  what it allows. Of messages up to 32 are given beyond it, which is how many a turn gives before it looks at the time.
- Who sends too slowly is found by a look at all connections a few times within ``receive_grace``, in slices.
"""

from __future__ import annotations

import heapq
import socket as _socket
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from time import monotonic
from typing import Any, cast

from greensock.core.lifecycle import OPEN
from greensock.core.syscalls import close, has_input, unpack_address
from greensock.core.upcalls import POSTPONE
from greensock.errors import DropReason
from greensock.limits.access_lists import AccessLists
from greensock.limits.client_limits import ClientLimits, table_of_clients
from greensock.limits.client_table import OwnCounts, Rate, Seat
from greensock.limits.networks import Networks, canonical_address, network_of

__all__ = ["Limiter"]

#: Seconds between two looks at those that are held back.
TICK = 0.02
#: Bytes that a turn may read where there is a rate: what comes in a part of a second, and at the least.
OF_A_SECOND, LEAST_TURN = 0.25, 1024
#: Looks at all connections within ``receive_grace``, and connections in one of them.
LOOKS, SLICE = 5, 512
#: Seconds at the least between two looks for those that rest.
LEAST_PERIOD = 1.0
#: Addresses that are remembered with what they are known by.
MAX_ADDRESSES = 32768
#: One connection of so many is looked for at once to be evicted next, and how many at the least and the most.
OF_ALL, FEWEST, MOST = 64, 8, 1024


class _Sent:
    """What one connection sent that was accepted."""

    __slots__ = ("byte_due", "is_free", "message_due", "part_bytes", "part_since", "resume_at", "seat", "seen")

    def __init__(self, seat: Seat | None, is_free: bool) -> None:
        #: By what it is counted; None: it is not.
        self.seat = seat
        #: Whether it may send as it wants.
        self.is_free = is_free
        #: How many bytes of it were looked at.
        self.seen = 0
        # When the next byte and the next message would be due if they came evenly, and until when it is held back.
        self.byte_due = self.message_due = self.resume_at = 0.0
        # Since when a message is there in part, and how many bytes had come then.
        self.part_since, self.part_bytes = 0.0, 0


class Limiter:
    """Keeps the limits of one server from its start to its end.

    Raises:
        ValueError: a limit that the server can't have, or a file that is not right.
    """

    def __init__(self, server: Any, limits: ClientLimits) -> None:
        if limits.message_rate is not None and server.framer is None:
            raise ValueError(f"message_rate={limits.message_rate}: a framer expected beside it, which says what one is")
        of_turns = limits.byte_rate or limits.message_rate or limits.min_receive_rate or limits.evict_idle is not None
        if of_turns and server.given_upcall("handle") is not None:
            names = "byte_rate, message_rate, min_receive_rate, evict_idle"
            raise ValueError(f"{names}: upcalls expected, for handle receives by itself in its one turn")
        if limits.evict_idle is not None and server.max_connections is None:
            raise ValueError(f"evict_idle={limits.evict_idle}: max_connections of the server expected beside it")
        self._server = server
        self._limits = limits
        self.lists = AccessLists(limits.allow, limits.deny, limits.allow_file, limits.deny_file)
        self._exempt = Networks(limits.exempt)
        self._rate = Rate(limits.connection_rate, limits.connection_burst)
        self._scope = f"{type(server).__module__}.{type(server).__qualname__} "
        self._table = table_of_clients()
        (self._dues,) = self._table.times
        self._counts = OwnCounts(self._table, 0)
        self._seat_of = lru_cache(MAX_ADDRESSES)(self._make_seat)
        self._byte_interval = 1 / limits.byte_rate if limits.byte_rate else 0.0
        self._byte_room = limits.byte_burst * self._byte_interval
        self._message_interval = 1 / limits.message_rate if limits.message_rate else 0.0
        self._message_room = limits.message_burst * self._message_interval
        self._paces = bool(limits.byte_rate or limits.message_rate)
        #: What was refused or held back, by reason.
        self.limited: Counter[str] = Counter()
        self._sent: dict[Any, _Sent] = {}
        self._held: dict[Any, _Sent] = {}
        self._timer: Any = None
        self._sweep_timer: Any = None
        self._rest: Iterator[Any] | None = None
        self._next_victims: list[tuple[Any, int]] = []
        self._is_started = False

    # -- its beginning and its end

    def start(self) -> None:
        """Take its place at the seams of the server, whose turns are prepared and which accepts nothing so far."""
        server, limits = self._server, self._limits
        self._ready = server._make_ready
        self._is_started = True
        if self._paces:
            server._make_ready = self.ready
            if limits.byte_rate:
                # A turn reads so much beyond what is paid for: so that nobody is held back for long at once.
                most = max(LEAST_TURN, min(limits.byte_burst, int(limits.byte_rate * OF_A_SECOND)))
                server.turn_budget = min(server.turn_budget, most)
                server.recv_size = min(server.recv_size, most)
        if self._message_interval or limits.min_receive_rate:
            self._on_recv = server._on_recv
            server._on_recv = self._count_message
        self._on_released = type(server)._released.__get__(server)
        server._released = self._released
        if limits.min_receive_rate or limits.evict_idle is not None:
            self._arm_sweep()
        self.lists.start()

    def stop(self) -> None:
        """Let all go that is held back."""
        if not self._is_started:
            return
        self._is_started = False
        self._rest = None
        for timer in (self._timer, self._sweep_timer):
            if timer is not None:
                timer.stop()
                timer.close()
        self._timer = self._sweep_timer = None
        self.lists.stop()
        self._let_go(list(self._held))

    # -- connections come and go

    def accepted(self, family: int, fd: int, address: Any) -> None:
        """Judge a connection that was accepted, and have it served or close it."""
        server = self._server
        client = ""
        if family != _socket.AF_UNIX:
            client = canonical_address(unpack_address(family, address)[0])
        if self.lists.denies(client):
            return self._refuse(fd, "denied")
        seat = self._seat_of(client)
        if seat is not None and (reason := self._refused(seat, monotonic())):
            return self._refuse(fd, reason)
        conn = server._on_accepted(family, fd, address)
        if conn is not None:
            self._sent[conn] = _Sent(seat, client in self._exempt)
        elif seat is not None and self._limits.max_connections is not None:
            self._counts.remove(seat)
        return None

    def _refuse(self, fd: int, reason: str) -> None:
        self.limited[reason] += 1
        close(fd)

    def _refused(self, seat: Seat, now: float) -> str:
        """Return why a client may have no more connections; empty, and it is counted, if it may."""
        most, table = self._limits.max_connections, self._table
        at = table.find(seat)
        if at < 0:
            at = table.add(seat, partial(self._worth, now))
        if most is not None and self._counts.total(seat, at) >= most:
            return "client-connections"
        if self._rate.interval and self._rate.take(self._dues, at, now) > 0:
            return "connection-rate"
        if most is not None:
            self._counts.add(seat, at)
        return ""

    def _worth(self, now: float, at: int) -> tuple[int, float]:
        due: float = self._dues[at]
        return (2, now) if self._table.is_counted(at) else (int(due > now), due)

    def _make_seat(self, client: str) -> Seat | None:
        """Return where a client is known; None if its connections are not counted."""
        limits = self._limits
        if (limits.max_connections is None and limits.connection_rate is None) or client in self._exempt:
            return None
        name = network_of(client, limits.ipv6_prefix)
        return self._table.seat(self._scope + name) if name else None

    def _released(self, conn: Any) -> None:
        """The descriptor of a connection is closed."""
        sent = self._sent.pop(conn, None)
        if sent is not None and sent.seat is not None and self._limits.max_connections is not None:
            self._counts.remove(sent.seat)
        self._on_released(conn)

    # -- those that send too much

    def ready(self, conn: Any) -> None:
        """Put a connection on the ready queue, or hold it back. Called by the poller."""
        sent = self._sent.get(conn)
        if sent is None or sent.is_free or conn._state is not OPEN:
            self._ready(conn)
            return
        now = monotonic()
        if self._byte_interval:
            fresh = conn.bytes_received - sent.seen
            if fresh > 0:
                sent.seen += fresh
                due = sent.byte_due = max(sent.byte_due, now) + fresh * self._byte_interval
                self._owe(sent, "bytes", due - self._byte_room, now)
        if sent.resume_at > now and self._is_started and not self._server.draining:
            self._held[conn] = sent
            if self._timer is None:
                self._timer = self._server._poller.hub.loop.timer(TICK, TICK, ref=False)
                self._timer.start(self._look_at_held)
            return
        self._ready(conn)

    def _owe(self, sent: _Sent, reason: str, until: float, now: float) -> None:
        if until > now:
            if sent.resume_at <= now:
                self.limited[reason] += 1
            sent.resume_at = max(sent.resume_at, until)

    def _count_message(self, conn: Any, data: Any) -> Any:
        """Stand in for ``connection_recv``."""
        sent = self._sent.get(conn)
        if sent is None or sent.is_free:
            return self._on_recv(conn, data)
        if self._message_interval:
            now = monotonic()
            due = sent.message_due = max(sent.message_due, now) + self._message_interval
            self._owe(sent, "messages", due - self._message_room, now)
            if sent.resume_at > now:
                self._server._poller.until = 0.0  # the turn ends soon: what else came in one read is given later
        verdict = self._on_recv(conn, data)
        if verdict is not POSTPONE:
            sent.part_since = 0.0  # the message was whole, and what is there in part is another
        return verdict

    def _look_at_held(self) -> None:
        """Let go those whose time has come, or who have ended. In the hub; must not raise."""
        now, draining = monotonic(), self._server.draining
        self._let_go(
            [conn for conn, sent in self._held.items() if sent.resume_at <= now or draining or conn._state is not OPEN]
        )
        if not self._held and self._timer is not None:
            timer, self._timer = self._timer, None
            timer.stop()
            timer.close()

    def _let_go(self, some: list[Any]) -> None:
        for conn in some:
            del self._held[conn]
            self._ready(conn)
        if some:
            self._server._poller.schedule()

    # -- those that send too slowly

    def _arm_sweep(self) -> None:
        # Keeps no program alive.
        limits, periods = self._limits, []
        if limits.min_receive_rate:
            periods.append(limits.receive_grace / LOOKS)
        if limits.evict_idle is not None:
            periods.append(max(LEAST_PERIOD, limits.evict_idle / LOOKS))
        self._sweep_timer = self._server._poller.hub.loop.timer(min(periods), ref=False)
        self._sweep_timer.start(self._begin_sweep, update=True)

    def _begin_sweep(self) -> None:
        """Take note of the connections that are there. In the hub; must not raise."""
        timer, self._sweep_timer = self._sweep_timer, None
        timer.stop()
        timer.close()
        self._rest = iter(list(self._sent))
        self._server._poller.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Look at the next slice. In the hub; must not raise."""
        if self._rest is None:
            return
        now, seen = monotonic(), 0
        for conn in islice(self._rest, SLICE):
            seen += 1
            if self._limits.min_receive_rate:
                self._look_at_part(conn, now)
            if self._rests(conn):
                self._rests_since(conn, now)  # so that it is known who has rested the longest
        if seen == SLICE:
            self._server._poller.call_soon(self._sweep)
        else:
            self._rest = None
            if self._is_started:
                self._arm_sweep()
                if self._limits.evict_idle is not None:
                    self._server.welcome_connections()  # by now somebody may have rested long enough

    def _look_at_part(self, conn: Any, now: float) -> None:
        sent = self._sent.get(conn)
        if sent is None or sent.is_free or conn._state is not OPEN or not conn._idle:
            return  # who is in its turn, or held back by us, is not to blame
        if not conn.held_bytes():
            sent.part_since = 0.0
        elif not sent.part_since:
            sent.part_since, sent.part_bytes = now, conn.bytes_received
        else:
            seconds = now - sent.part_since
            came = conn.bytes_received - sent.part_bytes
            if seconds >= self._limits.receive_grace and came < seconds * self._limits.min_receive_rate:
                self.limited["slow-sender"] += 1
                conn._abort(DropReason.SLOW_SENDER)

    # -- making room

    def permits(self) -> float:
        """Return how many more connections are welcome, after making room for one if somebody waits.

        Who comes in the very moment of that look is one more than ``max_connections``, until the next one comes.
        """
        server = self._server
        found: float = server.accept_permits()
        # Its class is asked, too: one that only lets other workers go first (``FairShare``) is not full.
        if found < 1 and self._limits.evict_idle is not None and type(server).accept_permits(server) < 1:
            # Asked of the kernel, as the listener may have been found readable before, and be empty by now. Then one is
            # welcome all the same: else the acceptor would wait for one to end, and not for one to come.
            if not any(has_input(listener.fileno()) for listener in server.listeners):
                return 1
            if self.make_room():
                return cast(float, server.accept_permits())
        return found

    def make_room(self) -> bool:
        """Drop the connection that has rested the longest; True if there was one that has rested long enough."""
        least = self._limits.evict_idle
        if least is None:
            return False
        now = monotonic()
        for is_fresh in (False, True):
            while self._next_victims:
                conn, moved = self._next_victims.pop()
                if self._rests(conn) and conn.bytes_received + conn.bytes_sent == moved:
                    self.limited["evicted"] += 1
                    conn._abort(DropReason.EVICTED)
                    return True
            if not is_fresh:
                self._look_for_victims(now, least)
        return False

    def _look_for_victims(self, now: float, least: float) -> None:
        """Find those that have rested the longest: not one, as a look at all costs 0.3 us each."""
        count = min(MOST, max(FEWEST, len(self._sent) // OF_ALL))
        resting = [
            (self._rests_since(conn, now), number, conn.bytes_received + conn.bytes_sent, conn)
            for number, conn in enumerate(self._sent)
            if self._rests(conn)
        ]
        found = heapq.nsmallest(count, [each for each in resting if now - each[0] >= least])
        self._next_victims = [(conn, moved) for _, _, moved, conn in reversed(found)]

    def _rests(self, conn: Any) -> bool:
        return conn._state is OPEN and bool(conn._idle) and bool(conn.is_at_rest()) and not conn._out

    def _rests_since(self, conn: Any, now: float) -> float:
        """Return since when nothing moved, as far as somebody looked; who was looked at for the first time: now."""
        moved = conn.bytes_received + conn.bytes_sent
        if conn._idle_moved != moved:
            conn._idle_moved, conn._idle_since = moved, now
        return cast(float, conn._idle_since)
