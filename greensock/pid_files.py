"""Pid files: written by a process that serves, and read by who wants to tell it something.

A file that names a process which is gone, or is another program by now, is stale: who begins takes its place, and who
wants to signal is told so. What a process was started with is read from ``/proc``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from greensock.sources import Refused

__all__ = ["PidFile", "RunningProxy", "running_proxy"]

#: What is in the command line of each of our processes, or in what setproctitle puts in its place.
OURS = "greensock"


class PidFile:
    """The file that says which process this is: ``take`` it when all is there, ``remove`` it at the end."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._is_taken = False

    def take(self) -> None:
        """Write it.

        Raises:
            Refused: it is that of a process of ours that runs, or can't be written. It is as it was, then.
        """
        try:
            pid = int(self._path.read_text())
        except (OSError, ValueError):
            pid = 0
        if pid not in (0, os.getpid()) and _is_ours(pid):
            raise Refused(f"{self._path}: process {pid} runs, whose pid file it is", by_system=True)
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            fresh.write_text(f"{os.getpid()}\n")
            fresh.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise Refused(f"{self._path}: {error.strerror}: a pid file that can be written expected", True) from error
        self._is_taken = True

    def remove(self) -> None:
        """Remove it, if it is still this process's."""
        try:
            if self._is_taken and int(self._path.read_text()) == os.getpid():
                self._path.unlink()
        except (OSError, ValueError):
            pass  # somebody else's by now


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that runs, and what can be told of how it was started."""

    #: Its process, or the master of its processes.
    pid: int
    #: The file of its configuration; None: it was started without, or that can't be told.
    config: str | None
    #: Where it was started: where paths begin that do not begin with ``/``.
    folder: str
    #: Its environment; None: that can't be told.
    environ: Mapping[str, str] | None


def running_proxy(pid_file: str) -> RunningProxy:
    """Return the proxy whose pid file that is.

    Raises:
        Refused: there is no such file, it names no process of ours, or the process is gone.
    """
    try:
        text = Path(pid_file).read_text(errors="replace")
    except OSError as error:
        raise Refused(f"{pid_file}: {error.strerror}: the pid file of a proxy that runs expected", True) from error
    if not text.strip().isdecimal() or not 0 < int(text) < 1 << 31:
        raise Refused(f"{pid_file}: the number of a process expected, and not {text[:40].strip()!r}")
    pid = int(text)
    words = _words_of(pid)
    if words is None:
        raise Refused(f"{pid_file}: process {pid} is gone, and has left its pid file behind", by_system=True)
    if not _name_us(words):
        raise Refused(f"{pid_file}: process {pid} is no proxy of greensock, but {' '.join(words)[:80]!r}")
    try:
        folder = os.readlink(f"/proc/{pid}/cwd")
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        environ = dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)
    except OSError:  # another user's
        return RunningProxy(pid, _config_of(words), os.getcwd(), None)
    return RunningProxy(pid, _config_of(words), folder, environ)


def _words_of(pid: int) -> list[str] | None:
    """Return the command line of a process; None: there is none, or it has ended and was not waited for."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return [os.fsdecode(word) for word in raw.rstrip(b"\0").split(b"\0")] if raw else None


def _name_us(words: list[str]) -> bool:
    return any(OURS in word for word in words)


def _is_ours(pid: int) -> bool:
    words = _words_of(pid)
    return words is not None and _name_us(words)


def _config_of(words: list[str]) -> str | None:
    """Return what ``--config`` says in a command line, which may be abbreviated."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if len(name) > len("--c") and "--config".startswith(name):
            return value if equals else next(iter(words[place + 1 :]), None)
    return None
