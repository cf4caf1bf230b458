"""The live display of a benchmark on stderr: which experiment, round, server, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Display"]


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class Display:
    """One line that is rewritten on a terminal; elsewhere a plain line whenever round or case changes."""

    def __init__(self, stream: TextIO = sys.stderr, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._began = now()
        self._tty = stream.isatty()
        self._last: object = None

    def step(self, experiment: str, rounds: tuple[int, int], case: str, server: str, left: float) -> None:
        """Say what is being measured now; ``rounds`` is (this one from 1, all), ``left`` seconds."""
        number, of = rounds
        head = f"{experiment}  round {number}/{of}  {case}"
        times = f"{clock(self._now() - self._began)} gone, {clock(left)} left"
        if self._tty:
            self._stream.write(f"\r\033[K{head}  {server}  {times}")
        elif self._last != (number, case):
            self._stream.write(f"{head}  {times}\n")
        self._last = (number, case)
        self._stream.flush()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._stream.write(f"\r\033[K{text}\n" if self._tty else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._tty:
            self._stream.write("\r\033[K")
            self._stream.flush()
