"""``greensock top``: what the status page shows, live in a terminal.

One thread asks, the main one draws and reads keys: so ``q`` ends at once, whatever the server does. What the
terminal was like before is what it is like afterwards, also at SIGTERM.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from greensock.operations.operators_client import Away, OperatorsClient
from greensock.operations.status_reading import Change, StatusReading
from greensock.operations.top_report import Line, clock, harmless, report

__all__ = ["report_once", "watch"]

#: Seconds that rates are taken over at the least: workers write what they count once a second.
SPAN = 3.0
COLOURS = {"head": "\x1b[1m", "good": "\x1b[32m", "warn": "\x1b[33m", "bad": "\x1b[31m", "quiet": "\x1b[2m"}
#: The other screen, without a cursor, and lines that are not wrapped; and back.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"


def report_once(client: OperatorsClient, interval: float, output: TextIO | None = None) -> None:
    """Write one report, of what happens in ``interval`` seconds.

    Raises:
        Away: the server does not answer.
    """
    output = sys.stdout if output is None else output
    before = client.status()
    time.sleep(interval)
    lines = report(Change(client.status(), before), harmless(client.address))
    _write(output, "".join(f"{line.text}\n" for line in lines))


def watch(client: OperatorsClient, interval: float, keys: int, output: TextIO) -> None:
    """Show the server until ``q`` is typed: ``keys`` is the descriptor of a terminal, as ``output`` is one.

    A server that is away is asked again.
    """
    asked = _LastAnswers(client, interval)
    with ExitStack() as undone:
        awake = undone.enter_context(_woken_by_signals())
        undone.enter_context(_terminal(keys, output))
        asker = threading.Thread(target=asked.go_on, args=(awake,), name="asker", daemon=True)
        asker.start()
        undone.callback(asked.end)
        while True:
            _draw(output, asked)
            ready, _, _ = select.select([keys, awake.reads.fileno()], [], [])
            if awake.reads.fileno() in ready:
                awake.reads.recv(4096)
            if keys in ready:
                typed = os.read(keys, 4096)
                if not typed or set(typed) & set(b"qQ\x03\x04"):
                    return


class _LastAnswers:
    """The last two answers, and whether there are any. Written by the thread that asks, one attribute at a time."""

    def __init__(self, client: OperatorsClient, interval: float) -> None:
        self.client = client
        self.interval = interval
        #: The last two readings.
        self.change: Change | None = None
        #: What is wrong, and since when; None: nothing.
        self.trouble: tuple[float, str] | None = None
        self._ended = threading.Event()

    def go_on(self, awake: _Awake) -> None:
        """Ask until it is to end."""
        kept: deque[StatusReading] = deque()
        while not self._ended.is_set():
            try:
                now = self.client.status()
            except Away as error:
                since = self.trouble[0] if self.trouble is not None else time.time()
                self.trouble = since, str(error)
            else:
                while len(kept) > 1 and kept[1]["now"] <= now["now"] - SPAN:
                    kept.popleft()
                self.change = Change(now, kept[0] if kept else None)
                if self.change.before is None:
                    kept.clear()
                kept.append(now)
                self.trouble = None
            if not self._ended.is_set():
                awake.wake()
            self._ended.wait(self.interval)

    def end(self) -> None:
        """Ask no more. A question that is on its way is not waited for."""
        self._ended.set()


def _draw(output: TextIO, asked: _LastAnswers) -> None:
    width, height = os.get_terminal_size(output.fileno())
    last: list[Line] = [Line(f"q ends, every {asked.interval:g} s", "quiet")]
    if asked.trouble is not None:
        since, why = asked.trouble
        last = [Line(f"NO ANSWER since {clock(since)}: {harmless(why)}", "bad")]
    where = harmless(asked.client.address)
    lines = [Line(f"{where} is asked", "head")]
    if asked.change is not None:
        lines = report(asked.change, where, width, max(1, height - len(last)))
    coloured = [_coloured(Line(line.text[:width], line.style)) for line in [*lines, *last][-height:]]
    _write(output, "\x1b[H" + "\n".join(f"{line}\x1b[K" for line in coloured) + "\x1b[J")


def _coloured(line: Line) -> str:
    if not line.style or os.environ.get("NO_COLOR"):
        return line.text
    return f"{COLOURS[line.style]}{line.text}\x1b[0m"


def _write(output: TextIO, text: str) -> None:
    """Write a text as the terminal or file can take it: what it has no letters for is spelled out."""
    encoding = output.encoding or "utf-8"
    output.write(text.encode(encoding, "backslashreplace").decode(encoding))
    output.flush()


class _Awake:
    """A pair of sockets that ends a wait: written to by signals and by the thread that asks."""

    def __init__(self) -> None:
        self.reads, self.writes = socket.socketpair()
        for each in (self.reads, self.writes):
            each.setblocking(False)
        self._lock = threading.Lock()
        self._is_open = True

    def wake(self) -> None:
        """End the wait; nothing if there is nobody any more."""
        with self._lock:
            if self._is_open:
                try:
                    self.writes.send(b"x")
                except BlockingIOError:
                    pass  # it is full of what ends the wait as well

    def close(self) -> None:
        """Wake nobody any more."""
        with self._lock:
            self._is_open = False
            self.reads.close()
            self.writes.close()


@contextmanager
def _woken_by_signals() -> Iterator[_Awake]:
    """Have a window that changes its size end a wait, and SIGTERM and SIGHUP the program by way of what it undoes."""
    awake = _Awake()
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {
        signal.SIGWINCH: lambda number, frame: None,
        signal.SIGTERM: _end,
        signal.SIGHUP: _end,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    woken = signal.set_wakeup_fd(awake.writes.fileno(), warn_on_full_buffer=False)
    try:
        yield awake
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        awake.close()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _terminal(keys: int, output: TextIO) -> Iterator[None]:
    """Take the whole terminal, and give it back."""
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        _write(output, ENTER)
        yield
    finally:
        with suppress(termios.error, OSError):  # it may be gone
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
            _write(output, LEAVE)
