"""A socket of datagrams as the engine sees it, and how what came is handed to the upcalls of a server.

An endpoint owns its socket. What came waits in the kernel, whose buffer is bounded and which counts what it drops; what
one read of it brought waits in ``_batch``, the last first, until it is handed out. Beside datagrams that list has what
is to be told of them: one was too long, one that was sent did not arrive.

A datagram has no turn of its own, and no connection whose upcalls must not overlap: every datagram may have its upcall
while those of others are blocked. So the endpoint stays in the ready queue while a worker drains it. If an upcall
blocks, the worker switches to the hub, which finds the queue as it is and gives it to the next one. All that workers
share of it is in the endpoint, and nothing is kept across an upcall.

Room to write is not watched for: the kernel tells of it behind every datagram that has left. Only who found none has it
told once.
"""

from __future__ import annotations

import errno
import os
import select
import socket as _socket
from collections import deque
from math import inf
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from greensock.core.datagram_calls import (
    MOST_BYTES,
    OF_THE_NETWORK,
    READS_AT_ONCE,
    can_segment,
    check_place,
    kernel_drops,
    receive_datagrams,
    send_datagram,
    send_segments,
    take_errors,
    tell_errors,
    unite,
)
from greensock.core.poller import Endpoint, Poller
from greensock.core.syscalls import BorrowedSocket
from greensock.core.workers import Turn, forget_context
from greensock.errors import ConnectionClosed, MessageTooLong, OperationTimeout, Undeliverable
from greensock.stats import DatagramStatistics

__all__ = ["DatagramSocket", "drain_datagrams"]

#: The greatest number of datagrams between two looks at the clock: a turn ends when the poller says so.
DATAGRAMS_PER_LOOK = 32
#: What a datagram counts for at least, in bytes, where they wait to be sent.
LEAST_BYTES = 64
#: Datagrams of which longer ones are taken are read one by one.
LONGEST_AT_ONCE = 65536
#: Seconds between two tries where no event tells of room: a Unix socket has none for each of its peers.
RETRY_SECONDS = 0.005
#: What waits to be sent is tried so often in one pass.
TRIES = 64

_IN: int = select.EPOLLIN | select.EPOLLET
_IN_AND_OUT: int = _IN | select.EPOLLOUT
_FULL = (errno.EAGAIN, errno.ENOBUFS)
#: Sends that are cut by us if the kernel won't: it would have to split a segment, or the device can't.
_NOT_CUT = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP)


class DatagramSocket(Endpoint):
    """A bound or connected socket of datagrams, and what it counted."""

    __slots__ = (
        "_batch",
        "_bytes_received",
        "_bytes_sent",
        "_can_segment",
        "_coalesces",
        "_dropped_in_kernel",
        "_dropped_unsent",
        "_family",
        "_long_ones",
        "_peer",
        "_queue",
        "_queued",
        "_raw",
        "_reads_until",
        "_received",
        "_room",
        "_sent",
        "_size",
        "_sock",
        "_tells_errors",
        "_undeliverable_ones",
        "max_send_queue",
        "send_timeout",
    )

    def __init__(self, poller: Poller, sock: _socket.socket, size: int, coalesces: bool, peer: Any = None) -> None:
        super().__init__(poller, sock.fileno())
        sock.setblocking(False)
        self._sock = sock
        self._raw = BorrowedSocket(sock.family, sock.type, sock.proto, sock.fileno())
        self._family: int = sock.family
        self._size = size
        self._peer = peer
        is_udp = self._family != _socket.AF_UNIX
        self._coalesces = coalesces and is_udp and unite(self._raw)
        self._can_segment = is_udp and can_segment(self._raw)
        self._tells_errors = False
        self._batch: list[tuple[Any, Any]] = []
        #: When what came is no longer read.
        self._reads_until = inf
        #: What waits to be sent: the data, its address, and since when.
        self._queue: deque[tuple[bytes, Any, float]] = deque()
        self._queued = 0
        self._room: Event | None = None
        self.max_send_queue = 1 << 20
        self.send_timeout: float | None = None
        #: Datagrams that were handed out, and sent, and their bytes.
        self._received = 0
        self._bytes_received = 0
        self._sent = 0
        self._bytes_sent = 0
        #: Datagrams that were longer than they may be, that were not sent for want of room, and of which it was told
        #: that they did not arrive.
        self._long_ones = 0
        self._dropped_unsent = 0
        self._undeliverable_ones = 0
        #: Datagrams that the kernel dropped, once the socket is closed.
        self._dropped_in_kernel = 0

    def _watch(self) -> None:
        """Begin to be told of what comes."""
        self._poller.register(self, _IN)

    def _watch_errors(self) -> None:
        """Have what ICMP says of datagrams kept and told, each with its address."""
        self._tells_errors = self._family != _socket.AF_UNIX and tell_errors(self._raw)

    def close(self) -> None:
        """Close the socket. What waits to be sent is dropped, and who waits raises ``ConnectionClosed``."""
        if self._fd < 0:
            return
        self._dropped_in_kernel = kernel_drops(self._raw)
        self._poller.disarm(self)
        self._poller.forget(self)
        self._fd = -1
        self._idle = False
        self._raw.detach()
        self._sock.close()
        self._batch = []
        self._dropped_unsent += len(self._queue)
        self._queue.clear()
        self._queued = 0
        if self._room is not None:
            self._room.set()

    def _leave_to_parent(self) -> int:
        self._batch = []
        self._queue.clear()
        return Endpoint._leave_to_parent(self)

    def _counted(self, workers: int = 0, busy: int = 0, errors: int = 0) -> DatagramStatistics:
        """Return a snapshot of the counters."""
        return DatagramStatistics(
            received=self._received,
            sent=self._sent,
            bytes_received=self._bytes_received,
            bytes_sent=self._bytes_sent,
            dropped_by_kernel=kernel_drops(self._raw) if self._fd >= 0 else self._dropped_in_kernel,
            dropped_unsent=self._dropped_unsent,
            too_long=self._long_ones,
            undeliverable=self._undeliverable_ones,
            errors=errors,
            bytes_queued=self._queued,
            active=busy,
            workers=workers,
            workers_busy=busy,
        )

    # -- what comes

    def _fetch(self) -> bool:
        """Read into the empty batch; False: nothing is there. True with a batch that is still empty: look again."""
        if not self._readable:
            return False
        if self._reads_until != inf and monotonic() >= self._reads_until:
            self._readable = False
            return False
        try:
            found = receive_datagrams(self._raw, self._fd, self._size, self._coalesces)
        except OSError as error:
            self._not_received(error)
            return True
        if found is None:
            self._found_none()
            return False
        # Where many are read at once the kernel has said that there are no more, and will tell of the next one
        # (test_every_datagram_of_a_burst_comes_once).
        if len(found) < READS_AT_ONCE and self._size <= LONGEST_AT_ONCE:
            self._found_none()
        self._batch = found
        return True

    def _found_none(self) -> None:
        self._readable = False
        if self._reads_until != inf:
            self._reads_until = 0.0  # all is read that had come, and what comes now is no longer for us

    def _not_received(self, error: OSError) -> None:
        """Take what was told instead of a datagram: one that was sent did not arrive."""
        if error.errno not in OF_THE_NETWORK:
            self._readable = False
            raise error
        if self._tells_errors:
            self._take_errors()
        elif self._peer is not None:
            self._batch.insert(0, (self._lost(error, self._peer), self._peer))

    def _take_errors(self) -> bool:
        """Have told what the kernel kept, behind the datagrams that are read; False if it kept nothing."""
        found = [
            (self._lost(OSError(number, os.strerror(number)), address), address)
            for number, address in take_errors(self._raw)
        ]
        self._batch[:0] = found[::-1]
        if found and self._idle:
            self._poller.queue(self)
        return bool(found)

    def _lost(self, error: OSError, address: Any) -> Undeliverable:
        self._undeliverable_ones += 1
        lost = Undeliverable(f"a datagram to {address!r} did not arrive: {error.strerror or error}", self, address)
        lost.__cause__ = error
        return lost

    def _too_long(self) -> MessageTooLong:
        self._long_ones += 1
        text = f"a datagram came that is longer than recv_size={self._size}"
        return MessageTooLong(text, self, "recv_size", self._size)

    # -- what goes

    def _send_to(self, data: Any, address: Any, timeout: float | None) -> int:
        """Send one datagram, and wait for room if there is none; return how many bytes it has."""
        if type(data) is list:
            data = b"".join(data)
        if self._queue:
            return self._send_late(data, address, timeout, BlockingIOError(errno.EAGAIN, ""))
        try:
            count = send_datagram(self._raw, self._fd, self._family, data, address)
        except OSError as error:
            return self._send_late(data, address, timeout, error)
        self._sent += 1
        self._bytes_sent += count
        return count

    def _send_late(self, data: Any, address: Any, timeout: float | None, error: OSError) -> int:
        """Go on with a send that failed for now, or raise what it failed at."""
        deadline = inf if timeout is None else monotonic() + timeout
        while True:
            if self._is_for_now(error, data, address):
                self._await_room(address, timeout, deadline)
            try:
                count = send_datagram(self._raw, self._fd, self._family, data, address)
            except OSError as again:
                error = again
                continue
            self._sent += 1
            self._bytes_sent += count
            return count

    def _is_for_now(self, error: OSError, data: Any, address: Any) -> bool:
        """Whether there was no room; False: what was said is about an earlier datagram, and the next try may do.

        Raises:
            ConnectionClosed, Undeliverable, ValueError, OSError: whatever else it is.
        """
        if self._fd < 0:
            raise ConnectionClosed("the socket is closed", self) from None
        if error.errno in _FULL:
            return True
        if error.errno == errno.EMSGSIZE and (self._family == _socket.AF_UNIX or len(data) > MOST_BYTES):
            most = "the socket's send buffer" if self._family == _socket.AF_UNIX else f"{MOST_BYTES} bytes"
            raise ValueError(f"data of {len(data)} bytes: no more than {most} in a datagram") from error
        # Who sends from port 0 cannot be answered (RFC 768), and anybody can say so in a datagram.
        has_no_port = error.errno == errno.EINVAL and isinstance(address, tuple) and address[1] == 0
        if error.errno not in OF_THE_NETWORK and not has_no_port:
            raise error
        if self._tells_errors and self._take_errors():
            return False
        raise self._lost(error, self._peer if address is None else address) from error

    def _await_room(self, address: Any, timeout: float | None, deadline: float) -> None:
        left = None if deadline == inf else deadline - monotonic()
        if left is not None and left <= 0:
            raise OperationTimeout(f"no room to send within {timeout} s", self, "send", timeout or 0.0)
        if self._has_no_event(address):
            gevent.sleep(RETRY_SECONDS if left is None else min(left, RETRY_SECONDS))
            return
        self._want_room()
        if self._room is None:
            self._room = Event()
        self._room.clear()
        self._room.wait(left)

    def _has_no_event(self, address: Any) -> bool:
        """Whether it is the peer that has no room, which no event of this socket tells."""
        return self._family == _socket.AF_UNIX and address is not None

    def _want_room(self) -> None:
        if self._writable:
            self._writable = False
            # To change what is watched has the kernel tell at once if it is there already.
            self._poller._epoll.modify(self._fd, _IN_AND_OUT)

    def _on_writable(self) -> None:
        self._poller._epoll.modify(self._fd, _IN)
        self._flush()
        if not self._queue and self._room is not None:
            self._room.set()

    def _send_nowait(self, data: Any, address: Any) -> bool:
        """Send without waiting; what finds no room waits in the queue. False: the queue is full, and it was dropped."""
        if type(data) is list:
            data = b"".join(data)
        while not self._queue:
            try:
                count = send_datagram(self._raw, self._fd, self._family, data, address)
            except OSError as error:
                if self._is_for_now(error, data, address):
                    break
                continue
            self._sent += 1
            self._bytes_sent += count
            return True
        if self._queued + max(LEAST_BYTES, len(data)) > self.max_send_queue:
            self._dropped_unsent += 1
            return False
        self._queue.append((bytes(data), address, monotonic()))
        self._queued += max(LEAST_BYTES, len(data))
        self._look_for_room(address)
        return True

    def _look_for_room(self, address: Any) -> None:
        """See to it that what waits is tried again."""
        if self._has_no_event(address):
            when = monotonic() + RETRY_SECONDS
            if when < self._armed:
                self._poller.arm(self, when)
        else:
            self._want_room()

    def _on_deadline(self, now: float) -> float:
        self._flush()
        return inf

    def _flush(self) -> None:
        """Send what waits, as far as there is room. In the hub."""
        queue, now = self._queue, monotonic()
        for _ in range(min(TRIES, len(queue))):
            data, address, since = queue.popleft()
            self._queued -= max(LEAST_BYTES, len(data))
            try:
                self._bytes_sent += send_datagram(self._raw, self._fd, self._family, data, address)
            except OSError as error:
                if error.errno not in _FULL:
                    self._batch.insert(0, (self._lost(error, address), address))
                    if self._idle:
                        self._poller.queue(self)
                elif self.send_timeout is not None and now - since >= self.send_timeout:
                    self._dropped_unsent += 1
                elif self._has_no_event(address):
                    queue.append((data, address, since))  # the others' peers may have room
                    self._queued += max(LEAST_BYTES, len(data))
                else:
                    queue.appendleft((data, address, since))
                    self._queued += max(LEAST_BYTES, len(data))
                    break
            else:
                self._sent += 1
        if queue:
            self._writable = True
            self._look_for_room(queue[0][1])

    def _send_cut(self, data: Any, address: Any, size: int, timeout: float | None) -> int:
        """Send many datagrams, each ``size`` bytes long but the last one; return how many bytes."""
        if not isinstance(size, int) or not 1 <= size <= MOST_BYTES:
            raise ValueError(f"segment_size={size!r}: a whole number from 1 to {MOST_BYTES} expected")
        if type(data) is list:
            data = b"".join(data)
        if address is not None:
            check_place(self._family, address)
        view, at, is_cut = memoryview(data).cast("B"), 0, self._can_segment
        while at < len(view):
            if is_cut and len(view) - at > size and not self._queue:
                try:
                    took = send_segments(self._raw, view[at:], size, address)
                except OSError as error:
                    if error.errno in _NOT_CUT:
                        is_cut = False
                        continue
                    took = self._send_late(view[at : at + size], address, timeout, error)
                else:
                    self._sent += -(-took // size)
                    self._bytes_sent += took
            else:
                took = self._send_to(view[at : at + size], address, timeout)
            at += took
        return at


def drain_datagrams(server: Any, ready: deque[Any], turn: Turn) -> None:
    """Make the upcall of each datagram that came, until there are none or it is the turn of others."""
    worker, on_recv = turn.worker, server._on_recv
    served, look = 0, 1
    # Looked at after each upcall, which may have blocked: then others went on meanwhile, and took it out
    # (test_an_upcall_that_blocks_holds_up_no_other).
    while ready:
        endpoint, address = ready[0], None
        try:
            while ready:
                batch = endpoint._batch
                if not batch:
                    if not endpoint._fetch():
                        ready.clear()
                        endpoint._idle = True
                        if server._draining:
                            server._changed.set()
                    continue
                data, address = batch.pop()
                if type(data) is bytes:
                    endpoint._received += 1
                    endpoint._bytes_received += len(data)
                    on_recv(data, address)
                else:
                    server._tell_trouble(endpoint._too_long() if data is None else data, address)
                if worker.gr_context is not None:
                    forget_context(worker)
                served += 1
                if served == look:
                    look += min(look, DATAGRAMS_PER_LOOK)
                    if ready and monotonic() > endpoint._poller.until:
                        ready.clear()
                        endpoint._poller.requeue(endpoint)
        except BaseException as error:
            server._upcall_raised(error, address)
            forget_context(worker)
