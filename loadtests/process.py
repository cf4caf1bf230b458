"""A server in a process of its own, pinned to one core; its CPU time and its memory."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from loadtests.native import build

__all__ = [
    "CORES",
    "GENERATOR_CORES",
    "LIBRARIES_OF_TLS",
    "PURE",
    "ROOT",
    "SERVER_CORES",
    "Group",
    "Memory",
    "Peer",
    "StartError",
    "environment",
    "peak_memory",
    "program_of",
]

Self = TypeVar("Self", bound="Peer")

#: The server has the last core to itself where there are two; the generator and the bench have the others.
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES = (CORES[-1],)
GENERATOR_CORES = tuple(CORES[:-1]) or SERVER_CORES

ROOT = Path(__file__).resolve().parent.parent


#: What programs in C that speak TLS are linked with.
LIBRARIES_OF_TLS = ("-lssl", "-lcrypto")
#: Servers that are programs in C, and what they are linked with.
NATIVE: dict[str, tuple[str, ...]] = {"epoll": (), "udp_epoll": (), "tls_epoll": LIBRARIES_OF_TLS}
#: A server whose name ends so runs without greensock's compiled engine.
PURE = "_pure"


def program_of(name: str) -> list[str]:
    """Return the command that starts a server."""
    if name in NATIVE:
        return [str(build(f"peers/{name}.c", NATIVE[name]))]
    return [sys.executable, "-m", f"loadtests.peers.{name.removesuffix(PURE)}"]


def environment(name: str) -> Mapping[str, str]:
    """Return the environment of a server's process."""
    return {**os.environ, "GREENSOCK_PURE": "1" if name.endswith(PURE) else os.environ.get("GREENSOCK_PURE", "0")}


class StartError(RuntimeError):
    """The server did not say that it listens; the message has what it wrote to stderr."""


class Memory:
    """Bytes of a process: resident, proportional (shared pages divided by their users), and private."""

    def __init__(self, pid: int) -> None:
        fields = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            fields[name] = int(value) * 1024
        self.rss = fields["Rss:"]
        self.pss = fields["Pss:"]
        self.private = fields["Private_Clean:"] + fields["Private_Dirty:"]


def peak_memory(pid: int | str) -> int:
    """Return the most bytes that were resident since the process began, or since its peak was forgotten."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # it has ended


def cpu_ns(pid: int) -> int:
    """CPU time of all threads, dead ones too, exact to the nanosecond.

    The process's CPU clock, and not ``/proc/PID/schedstat``, which is only brought up to date on a tick.
    """
    clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of a process: what clock_getcpuclockid(3) returns
    return time.clock_gettime_ns(clock)


class Peer:
    """A server from start to end, as a context manager: of ``loadtests/peers``, or what ``command`` starts.

    It is told ``--bind 127.0.0.1:0``, or another option in its place, and says ``listening on HOST:PORT`` once it is
    ready.

    Error handling: a server that does not listen within ``timeout`` seconds is ended, and :class:`StartError`
    raised.
    """

    def __init__(
        self,
        name: str,
        *arguments: str,
        cores: Sequence[int] = SERVER_CORES,
        timeout: float = 20.0,
        command: Sequence[str] | None = None,
        bind: str = "--bind",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.address = ""
        self._cores = cores
        self._timeout = timeout
        self._command = [*(command or program_of(name)), bind, "127.0.0.1:0", *arguments]
        self._environment = environment
        self._output: str | None = None

    #: In a session, and so in a group of processes, of its own.
    _has_session = False

    def __enter__(self: Self) -> Self:
        # A file and not a pipe: a server that writes a traceback per connection must not block on it.
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=self._has_session,
            env=self._environment or environment(self.name),
        )
        try:
            os.sched_setaffinity(self._process.pid, self._cores)
            line = self._first_line()
            if not line.startswith("listening on "):
                self.stop()
                raise StartError(f"{self.name} did not start: {self.errors() or line or 'no answer'}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.address = line.removeprefix("listening on ").strip()
        return self

    def _first_line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._timeout)
        return self._process.stdout.readline().decode() if ready else ""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._errors.close()

    def stop(self, timeout: float = 10.0) -> str:
        """End the process by its id (SIGTERM, then SIGKILL) and return what it printed after where it listens."""
        if self._output is None:
            if self._process.poll() is None:
                self._process.terminate()
            try:
                output, _ = self._process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                output, _ = self._process.communicate()
            self._output = output.decode()
        return self._output

    def errors(self, most: int = 2000) -> str:
        """Return the last ``most`` bytes of its stderr."""
        end = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), most, max(0, end - most)).decode(errors="replace").strip()

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_ns(self) -> int:
        """CPU time of all threads, dead ones too, exact to the nanosecond."""
        return cpu_ns(self.pid)

    def memory(self) -> Memory:
        """Return the memory of the process now."""
        return Memory(self.pid)

    def wait_until_idle(self, timeout: float = 10.0, interval: float = 0.05) -> None:
        """Wait until the server uses less than 2 % of a core, or the time is over."""
        until = time.monotonic() + timeout
        before = self.cpu_ns()
        while time.monotonic() < until:
            time.sleep(interval)
            after = self.cpu_ns()
            if after - before < interval * 0.02 * 1e9:
                return
            before = after


class Group(Peer):
    """A server of several processes, say a master and its workers: CPU time and peak of memory are those of all."""

    _has_session = True

    def pids(self) -> list[int]:
        """Return the processes of the group, its first one too."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and group_of(entry) == self.pid:
                found.append(int(entry.name))
        return found

    def cpu_ns(self) -> int:
        """CPU time of all processes of the group. What one took that has ended is not in it."""
        return sum(map(cpu_ns, self.pids()))

    def forget_peak(self) -> None:
        """Begin anew with the peak of memory."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the peaks of all processes together, in bytes."""
        return sum(map(peak_memory, self.pids()))

    def stop(self, timeout: float = 10.0) -> str:
        """End the server, and what it left behind."""
        if self._output is None:
            self._end_group(timeout)  # first, as one that is left would hold our end of the pipe open
        return super().stop(timeout)

    def _end_group(self, timeout: float) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass  # it is among those that are killed
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended


def group_of(entry: Path) -> int | None:
    """Return the group of the process with this directory in /proc; None if it has ended."""
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[2])
    except (FileNotFoundError, ProcessLookupError):
        return None
