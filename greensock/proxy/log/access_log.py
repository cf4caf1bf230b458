"""The access log: lines made in the hub, and written by a thread of the system, so that no disk can stop the proxy.

A line goes into a bounded queue, and many of them into one write. (Made in the thread, lines cost twice as much: it and
the hub wait for each other's hold of the interpreter.) The thread is a real one in a patched program, too; it shares
nothing with the hub but that queue, counters that one side writes and the other reads, and the flag ``abandoned``. It
calls nothing that gevent has patched and does not log: what went wrong is said by the hub, at most once a minute, and
at the end how many lines were lost if that was not said before.

Lines are lost, and counted, rather than waited for: if as many wait as may, if the disk is full, if a pipe has no
reader. A file is never left within a line: what follows a torn one begins anew.

The thread is started by the first record, and by the first one after a fork; what waited then is the parent's.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import sys
import time
import weakref
from collections.abc import Callable

from gevent import sleep
from gevent.monkey import get_original

from greensock.proxy.log.line_format import line_function
from greensock.proxy.log.log_lines import combined_line, json_line
from greensock.proxy.log.record import Record
from greensock.proxy.log.targets import FACILITIES, STDERR, STDOUT, SyslogSocket, syslog_address

__all__ = ["AccessLog"]

#: Seconds in which records gather before they are written: some 20 wake-ups of the thread a second, whatever comes.
GATHER = 0.05
#: Lines of one write: so many may wait besides those in the queue.
BATCH = 32
#: The same of a file, and bytes. Each write lets the hub have the interpreter, and has to wait for it afterwards: of 32
#: lines at a time a busy log never came to its end.
FILE_BATCH, FILE_BYTES = 512, 1 << 17
#: Bytes that a pipe takes whole once it is writable (POSIX, PIPE_BUF on Linux).
PIPE_BUF = 4096
#: So many bytes are kept of each thing that a client wrote: a line is made in the hub, a millisecond at the most.
MAX_FIELD = 4096
#: Once this part of the queue is full, only so many: 10,000 lines of what is longer would be 160 MB.
ROOMY, MAX_KEPT = 1 / 8, 256
#: Milliseconds between two looks whether the log was given up, while a pipe is full.
PATIENCE = 50
#: Seconds that the thread gets to end by itself once it was told to give up.
GRACE = 0.2
#: Seconds between two reports of trouble.
REPORT_EVERY = 60.0

log = logging.getLogger("greensock.access")

_write = get_original("os", "write")
_close = get_original("os", "close")
_sleep = get_original("time", "sleep")
_poll = get_original("select", "poll")
_start_thread = get_original("_thread", "start_new_thread")
_Queue = get_original("queue", "SimpleQueue")
_POLLOUT = 4
#: How important a line of the access log is to syslog (RFC 5424 section 6.2.1).
INFORMATIONAL = 6

_REOPEN, _END = object(), object()

_FORMATS: dict[str, Callable[[Record], bytes]] = {"combined": combined_line, "json": json_line}

# -- the thread's side


class _Writer:
    """What the thread runs. It owns the descriptor, unless that was given."""

    def __init__(self, target: str | int, facility: str) -> None:
        #: Lines, ``_REOPEN`` and ``_END``, from the hub.
        self.queue = _Queue()
        self.is_started = False
        #: Set by the hub: write nothing more, end as soon as you can.
        self.abandoned = False
        #: Read by the hub.
        self.is_done = False
        self.written = 0
        self.lost = 0
        self.trouble: str | None = None
        address = syslog_address(target) if isinstance(target, str) else None
        self._syslog = None if address is None else SyslogSocket(address, facility)
        self._path = None if isinstance(target, int) else target
        self._fd = target if isinstance(target, int) else -1
        self._is_file = False
        self._is_torn = False

    def run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._round()
            except Exception as error:  # a mistake here must not end the log
                self._lose(0, repr(error))
        self.close_file()
        self.is_done = True

    def _round(self) -> bool:
        """Wait for something, and do all that is there; return False at the end."""
        item = self.queue.get()
        if isinstance(item, bytes):
            _sleep(GATHER)
        lines: list[bytes] = []
        size = 0
        while item is not None and item is not _END:
            if item is _REOPEN:
                self._flush(lines)
                self.close_file()
                self._is_torn = self._is_torn and self._path is None
            else:
                lines.append(item)
                size += len(item)
                if len(lines) >= BATCH and (not self._is_file or len(lines) >= FILE_BATCH or size >= FILE_BYTES):
                    self._flush(lines)
                    size = 0
            item = self.queue.get_nowait() if self.queue.qsize() else None  # no other thread takes from it
        self._flush(lines)
        return item is not _END

    def _flush(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._syslog is not None:
            self._send(lines, self._syslog)
            return
        data = memoryview((b"\n" if self._is_torn else b"") + b"".join(lines))
        done, count = 0, len(lines)
        try:
            self._open()
            while done < len(data):
                done += self._write_some(data[done:])
            self._is_torn = False
        except OSError as error:
            lost = min(count, bytes(data[done:]).count(b"\n"))  # whose end is not out
            count -= lost
            self._is_torn = data[done - 1] != 10 if done else self._is_torn
            self._lose(lost, error.strerror or str(error))
            if error.errno != errno.ENOSPC:
                self.close_file()
        self.written += count
        lines.clear()

    def _send(self, lines: list[bytes], syslog: SyslogSocket) -> None:
        """Send lines to a daemon, each by itself; those behind one that it does not take are lost."""
        count = 0
        try:
            while count < len(lines):
                if self.abandoned:
                    raise OSError(errno.ECANCELED, "closed before all was written")
                try:
                    syslog.send(INFORMATIONAL, lines[count].rstrip(b"\n"))
                    count += 1
                except BlockingIOError:
                    syslog.wait(PATIENCE)
        except OSError as error:
            self._lose(len(lines) - count, error.strerror or str(error))
            syslog.close()
        self.written += count
        lines.clear()

    def _write_some(self, data: memoryview) -> int:
        if self.abandoned:
            raise OSError(errno.ECANCELED, "closed before all was written")
        if not self._is_file:
            poll = _poll()
            poll.register(self._fd, _POLLOUT)
            if not poll.poll(PATIENCE):
                return 0
            data = data[:PIPE_BUF]
        try:
            written: int = _write(self._fd, data)
        except BlockingIOError:
            return 0
        return written

    def _open(self) -> None:
        if self._fd < 0:
            # Not blocking: a FIFO without a reader is an error here, and a full one never holds the thread for long.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            self._fd = os.open(self._path or "", flags, 0o644)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def close_file(self) -> None:
        """Close the file; what is written next opens it anew."""
        if self._syslog is not None:
            self._syslog.close()
            return
        if self._path is not None and self._fd >= 0:
            fd, self._fd = self._fd, -1
            _close(fd)

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        self.trouble = why


# -- the hub's side

_logs: weakref.WeakSet[AccessLog] = weakref.WeakSet()


class AccessLog:
    """Writes a line for each request.

    ``target`` is a path, ``-`` for standard output, ``stderr``, ``syslog``, ``udp://HOST:PORT`` (see ``targets``), or a
    descriptor, which is left open. ``format`` is ``combined``, ``json``, a text with fields such as
    ``{client} {status}`` (see ``line_format``), or a function that makes a line of a record, as bytes, at once.
    ``max_pending`` lines may wait. ``facility`` is what syslog is told of where they come from.

    Raises:
        ValueError: a format or a facility that does not exist, less than one line that may wait, or standard output or
            error where the program was started without: descriptors 1 and 2 are then whatever was opened first.
    """

    __slots__ = (
        "__weakref__",
        "_facility",
        "_form",
        "_is_closed",
        "_max_pending",
        "_refused",
        "_reported",
        "_target",
        "_told",
        "_writer",
    )

    def __init__(
        self,
        target: str | int = "-",
        format: str | Callable[[Record], bytes] = "combined",
        max_pending: int = 10_000,
        facility: str = "daemon",
    ) -> None:
        form = _FORMATS.get(format) if isinstance(format, str) else format
        if form is None and isinstance(format, str) and "{" in format:
            try:
                form = line_function(format)
            except ValueError as error:
                raise ValueError(f"format={format!r}: {error}") from None
        if form is None:
            raise ValueError(f"format={format!r}: 'combined', 'json' or a function expected")
        if max_pending < 1:
            raise ValueError(f"max_pending={max_pending!r}: a whole number of at least 1 expected")
        if facility not in FACILITIES:
            raise ValueError(f"facility={facility!r}: one of {', '.join(FACILITIES)} expected")
        if target == STDOUT and sys.__stdout__ is None:
            raise ValueError("target='-': standard output is closed: a path expected")
        if target == STDERR and sys.__stderr__ is None:
            raise ValueError("target='stderr': standard error is closed: a path expected")
        self._form = form
        self._target = 1 if target == STDOUT else 2 if target == STDERR else target
        self._facility = facility
        self._max_pending = max_pending
        self._is_closed = False
        self._reported = float("-inf")
        self._refused = 0
        self._told = 0  # how many lost lines have been reported
        self._writer = _Writer(self._target, self._facility)
        _watch_forks()
        _logs.add(self)

    @property
    def written(self) -> int:
        """How many lines are out."""
        return self._writer.written

    @property
    def dropped(self) -> int:
        """How many lines were lost, for whatever reason."""
        return self._refused + self._writer.lost

    @property
    def pending(self) -> int:
        """How many lines wait."""
        count: int = self._writer.queue.qsize()
        return count

    def write(self, record: Record) -> None:
        """Have a line written. It neither waits nor raises."""
        writer = self._writer
        waiting = writer.queue.qsize()
        if self._is_closed:
            self._refused += 1
        elif waiting >= self._max_pending:
            self._refused += 1
            writer.trouble = writer.trouble or f"{waiting} lines wait to be written"
        else:
            _shorten(record, MAX_KEPT if waiting > self._max_pending * ROOMY else MAX_FIELD)
            try:
                line = self._form(record)
                if type(line) is not bytes:
                    if not isinstance(line, bytearray | memoryview):
                        raise TypeError(f"{line!r:.40} is no line: bytes expected")
                    line = bytes(line)
            except Exception as error:
                self._refused += 1
                writer.trouble = f"a line could not be made: {error!r}"
            else:
                writer.queue.put(line)
                if not writer.is_started:
                    self._start()
        if writer.trouble is not None:
            self._report()

    def reopen(self) -> None:
        """Open the file anew, as its name may lead to another now: for the rotation of logs. Lines keep their order."""
        if self._writer.is_started and not self._is_closed:
            self._writer.queue.put(_REOPEN)

    def close(self, timeout: float = 5.0) -> bool:
        """Write what waits, for at most ``timeout`` seconds, and close the file. Other greenlets run meanwhile.

        What is left then is given up and counted, which may take another 0.2 s. Return whether the thread has ended;
        it has not if the system holds it in a write to a file.
        """
        writer = self._writer
        if not self._is_closed:
            self._is_closed = True
            if writer.is_started:
                writer.queue.put(_END)
            else:
                writer.lost += writer.queue.qsize()
        is_done = self._wait_done(timeout)
        writer.abandoned = True
        is_done = is_done or self._wait_done(GRACE)
        if writer.trouble is not None or self.dropped > self._told:
            self._report(at_end=True)
        return is_done

    def _wait_done(self, seconds: float) -> bool:
        writer, deadline, pause = self._writer, time.monotonic() + seconds, 0.001
        while writer.is_started and not writer.is_done:
            if time.monotonic() >= deadline:
                return False
            sleep(pause)
            pause = min(pause * 2, 0.02)
        return True

    def _start(self) -> None:
        try:
            _start_thread(self._writer.run, ())
            self._writer.is_started = True
        except RuntimeError as error:  # no thread to be had: the next record tries again
            self._writer.trouble = str(error)

    def _report(self, *, at_end: bool = False) -> None:
        trouble, self._writer.trouble = self._writer.trouble, None
        now, dropped = time.monotonic(), self.dropped
        if now - self._reported >= REPORT_EVERY or (at_end and dropped > self._told):
            self._reported, self._told = now, dropped
            names: dict[str | int, str] = {1: "on standard output", 2: "on standard error"}
            where = names.get(self._target, self._target)
            log.warning("access log %s: %s; lines lost so far: %d", where, trouble or "closed", dropped)

    def _forked(self) -> None:
        self._writer.close_file()
        self._writer = _Writer(self._target, self._facility)
        self._refused = self._told = 0


def _shorten(record: Record, most: int) -> None:
    if len(record.target) > most:
        record.target = record.target[:most]
    if len(record.host) > most:
        record.host = record.host[:most]
    if record.referer is not None and len(record.referer) > most:
        record.referer = record.referer[:most]
    if record.agent is not None and len(record.agent) > most:
        record.agent = record.agent[:most]


@functools.lru_cache(maxsize=1)  # once a process, and not by importing
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for each in list(_logs):
        each._forked()
