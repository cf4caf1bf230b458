"""The master process of ``greensock run`` and ``greensock proxy``: gunicorn's arbiter, mended where we need it other.

What gunicorn's does (read in 27.0), and what this one does instead:

- A configuration that is wrong ends the master at a reload. Here it is read and checked first; what is wrong is logged,
  and the old one goes on.
- A reload waits for the old workers, up to ``graceful_timeout``, and does nothing else: it reaps nobody, and takes no
  signal. Here it waits for nobody.
- A reload starts all workers at once, and for as long as that takes those that serve get little of the cores. Here half
  as many start at a time as there are cores.
- A worker that is told to end counts as one that serves, so that nobody takes its place before it is gone. Here the
  next one begins at once, also where the worker ends by itself and says so (``BaseWorker.recycle``).
- A worker that can't begin halts all, at any time. Here only until the first has begun; later it is tried again, with a
  pause that grows.
- A second SIGTERM hastens nothing. Here it does.
- A system without room for one more process ends the master. Here that is tried again, too.
- A signal that a worker is sent while it begins is lost, as it still has the master's handlers. Here signals are held
  back until it has its own.
- Of sd_notify it says READY. Here also RELOADING, STOPPING and WATCHDOG.

It never makes a hub: it is blocking code, and not patched.
"""

from __future__ import annotations

import os
import signal
import sys
from time import monotonic
from types import FrameType
from typing import Any

from gunicorn import sock
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.systemd import sd_notify

from greensock.gunicorn.base_worker import BEGUN, ENDING, HELD_BACK
from greensock.proxy.log.error_log import ErrorLog
from greensock.proxy.log.targets import STDERR
from greensock.proxy.options import LogOptions
from greensock.shared_pages import SharedPages
from greensock.sources import Refused, Source, in_order_of

__all__ = ["Master", "ServerApplication"]

#: Seconds before a worker is tried again that could not begin: the first time, and at the most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: How many workers start at a time while others still serve in their place, and need the other cores.
AT_ONCE = max(1, len(os.sched_getaffinity(0)) // 2)


class ServerApplication(BaseApplication):  # type: ignore[misc]
    """What the master is told: a source, and gunicorn's settings."""

    def __init__(self, source: Source, settings: dict[str, Any]) -> None:
        self.source = source
        self.settings = settings
        #: What the workers share.
        self.pages = SharedPages()
        super().__init__()

    def load_config(self) -> None:
        """Take over the settings."""
        self.cfg.set("worker_class", "greensock.gunicorn.server_worker.ServerWorker")
        self.cfg.set("default_proc_name", self.source.name)
        self.cfg.set("graceful_timeout", max(1, round(self.source.drain_seconds)))
        if "control_socket_disable" in self.cfg.settings:
            self.cfg.set("control_socket_disable", True)
        if self.source.log_options is not None:
            self.cfg.set("loglevel", self.source.log_options.level)
        for name, value in self.settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return nothing: there is no application."""
        return None

    def run(self) -> None:
        """Run the master until it ends, with its status."""
        Master(self).run()


class Master(Arbiter):  # type: ignore[misc]
    """Starts, watches and replaces workers."""

    #: What writes the error log, if it ever went elsewhere than to standard error.
    _error_log: ErrorLog | None = None
    #: Whether the sockets were systemd's: gunicorn's word.
    systemd: bool

    def __init__(self, app: ServerApplication) -> None:
        super().__init__(app)
        # gunicorn's words for USR2 are those of a script; this is how the interpreter was really called.
        self.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]
        self._addresses: list[Any] = []
        self._is_given_all = True
        self._has_served = False
        self._is_stopping = False
        self._pause = 0.0
        self._spawn_at = 0.0
        self._failed_age = 0
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        self._watchdog = int(microseconds) / 2e6 if microseconds.isdigit() else 0.0
        self._watchdog_at = 0.0

    # -- life

    def start(self) -> None:
        """Listen, before anything else is there that would have to be undone; then start as gunicorn does."""
        self.app.source.share(self.app.pages)
        addresses = list(self.app.source.addresses)
        is_ours = not _is_given()
        if is_ours:
            self.LISTENERS = self._opened(addresses)
        told = os.environ.pop("NOTIFY_SOCKET", None)  # gunicorn would say READY before the operators' socket is there
        try:
            super().start()
        except (RuntimeError, OSError, ValueError) as error:  # the pid file is another's, or can't be written
            if is_ours:
                sock.close_sockets(self.LISTENERS)
            if self.pidfile is not None:
                self.pidfile.unlink()  # if it is this one's
            is_of_sockets = not is_ours and getattr(error, "filename", None) is None
            said = f"listening sockets expected, of those that LISTEN_FDS says are given: {error}"
            raise Refused(said if is_of_sockets else str(error), by_system=True) from error
        finally:
            if told is not None:
                os.environ["NOTIFY_SOCKET"] = told
        if not is_ours:
            self._open_for_operators()
        sd_notify("READY=1", self.log)
        self._addresses = addresses if len(addresses) == len(self.LISTENERS) else []
        if not is_ours and self._addresses:  # who gives sockets has an order of his own
            self._addresses = in_order_of([each.sock for each in self.LISTENERS], addresses)

    def _open_for_operators(self) -> None:
        """Listen for the operators, if no socket that was given is theirs: who gives them may know of none."""
        source = self.app.source
        _, theirs = source.part([each.sock for each in self.LISTENERS])
        if theirs is None:
            opened = self._opened(source.operators_addresses)
            self.LISTENERS = [*self.LISTENERS, *opened]
            self._is_given_all = not opened

    def reexec(self) -> None:
        """Start a second master. systemd's way to pass sockets on knows of no others than its own."""
        is_systemd = self.systemd
        self.systemd = is_systemd and self._is_given_all
        try:
            super().reexec()
        finally:
            self.systemd = is_systemd

    def _opened(self, addresses: list[Any]) -> list[Any]:
        """Return listeners on these addresses, all or none."""
        made: list[Any] = []
        try:
            for address in addresses:
                made.append(self.app.source.listen(address))
        except Refused:
            for each in made:
                path = each.getsockname()
                each.close()
                if isinstance(path, str):
                    os.unlink(path)
            raise
        # A configuration without addresses: gunicorn would listen on those as well.
        listeners: list[Any] = sock.create_sockets(self.cfg, self.log, [each.detach() for each in made]) if made else []
        return listeners

    def maybe_promote_master(self) -> None:
        """Called about once a second: tell the watchdog that all is well."""
        super().maybe_promote_master()
        now = monotonic()
        if self._watchdog and now >= self._watchdog_at:
            self._watchdog_at = now + self._watchdog
            sd_notify("WATCHDOG=1", self.log)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop all, and end."""
        self._is_stopping = True
        sd_notify("STOPPING=1", self.log)
        super().halt(reason, exit_status)

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Queue a signal. A SIGTERM while it stops means what SIGQUIT does: no more waiting."""
        super().signal(signal.SIGQUIT if self._is_stopping and sig == signal.SIGTERM else sig, frame)

    # -- the error log

    def setup(self, app: ServerApplication) -> None:
        """Take over the settings; called at the start, and with each reload."""
        super().setup(app)
        if app.source.log_options is not None:
            self._follow(app.source.log_options)

    def _follow(self, options: LogOptions) -> None:
        """Have what is logged go where the configuration says: the workers have what the master has at the fork."""
        if options.error == STDERR and self._error_log is None:
            return  # which is where gunicorn writes
        try:
            if self._error_log is None:
                self._error_log = ErrorLog(options.error, options.facility)
            else:
                self._error_log.follow(options.error, options.facility)
        except OSError as error:  # the name of a host that does not resolve
            self.log.error("error log %s: %s", options.error, error)
            return
        target = self.log.error_log
        for handler in list(target.handlers):  # a reload has gunicorn make one of its own again
            if handler is not self._error_log:
                target.removeHandler(handler)
        if not target.handlers:
            target.addHandler(self._error_log)
        target.setLevel(self.cfg.loglevel.upper())

    def handle_usr1(self) -> None:
        """SIGUSR1: open all logs anew, and have the workers do so."""
        if self._error_log is not None:
            self._error_log.reopen()
        super().handle_usr1()

    # -- a new configuration

    def reload(self) -> None:
        """Have new workers serve what is configured now, and the old ones end; or say what is wrong, and go on."""
        sd_notify(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}", self.log)
        try:
            self._reload()
        except Refused as error:
            for line in str(error).splitlines():
                self.log.error("the configuration stays as it was: %s", line)
        finally:
            sd_notify("READY=1", self.log)

    def _reload(self) -> None:
        take = self.app.source.read()
        before = self.app.source
        old = dict(zip(self._addresses, self.LISTENERS, strict=False))
        undo = take()
        addresses = list(before.addresses)
        if self._addresses and addresses != self._addresses:
            fresh = [address for address in addresses if address not in old]
            try:
                opened = dict(zip(fresh, self._opened(fresh), strict=True))
            except Refused:
                undo()  # whoever takes the place of a worker that dies is made of what is listened for
                raise
            self.LISTENERS = [old[each] if each in old else opened[each] for each in addresses]
            self._addresses = addresses
            sock.close_sockets([old[each] for each in old if each not in addresses])
        self.app.source.share(self.app.pages)
        self.app.load_default_config()
        self.app.load_config()
        self.setup(self.app)
        self.log.reopen_files()
        self.cfg.on_reload(self)
        self._pause = self._spawn_at = 0.0
        for worker in self.WORKERS.values():
            worker.is_to_end = True
        self.manage_workers()
        self.log.info("the configuration was read anew")

    # -- workers

    def manage_workers(self) -> None:
        """Have as many workers as there should be that serve; tell the others to end, once."""
        for worker in list(self.WORKERS.values()):
            state = _state_of(worker)
            self._has_served = self._has_served or state >= BEGUN
            if state >= BEGUN and worker.age > self._failed_age:
                self._pause = 0.0  # what kept one from beginning is over: the next time it is another thing
            if state >= ENDING:
                worker.is_leaving = True
        serving = [worker for worker in self.WORKERS.values() if not _is_leaving(worker) and not _is_to_end(worker)]
        if len(serving) < self.num_workers and monotonic() >= self._spawn_at:
            for _ in range(min(self.num_workers - len(serving), self._may_start(serving))):
                if self.spawn_worker() is None:
                    break
        begun = [worker for worker in self.WORKERS.values() if not _is_to_end(worker) and _state_of(worker) == BEGUN]
        serving.sort(key=lambda worker: worker.age)
        more = serving[: max(0, len(serving) - self.num_workers)]
        # The old ones serve until the new ones do: a new one that can't begin leaves things as they were.
        replaced = [worker for worker in self.WORKERS.values() if _is_to_end(worker) and not _is_leaving(worker)]
        replaced.sort(key=lambda worker: worker.age)
        spare = len(begun) + len(replaced) - self.num_workers
        for worker in [*more, *replaced[: max(0, spare)]]:
            worker.is_leaving = True
            self.kill_worker(worker.pid, signal.SIGTERM)

    def _may_start(self, serving: list[Any]) -> int:
        """How many workers may start now: each takes a second of CPU, which those that still serve may need."""
        if not any(_is_to_end(worker) and not _is_leaving(worker) for worker in self.WORKERS.values()):
            most: int = self.num_workers
            return most
        return AT_ONCE - sum(_state_of(worker) < BEGUN for worker in serving)

    def spawn_worker(self) -> Any:
        """Fork a worker, which gets no signal before it has handlers of its own for it. None: there can be none now."""
        if not self.app.pages.has_room:
            self.log.error("there are %d workers, and no room for one more", self.app.pages.slots)
            self._spawn_at = monotonic() + LONGEST_PAUSE
            return None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            return super().spawn_worker()
        except OSError as error:  # there are too many processes, say, or no descriptor: as it is today, not for ever
            if os.getpid() != self.pid:
                raise
            for slot in self.app.pages.held - {worker.slot for worker in self.WORKERS.values()}:
                self.app.pages.give_back(slot)
            self._put_off(f"A worker cannot be made: {error}.")
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def reap_workers(self) -> None:
        """Take note of workers that ended; one that could not begin halts all only if none has ever begun."""
        while True:
            there = dict(self.WORKERS)
            try:
                super().reap_workers()
            except HaltServer as halted:
                for pid in there.keys() - self.WORKERS.keys():
                    there[pid].tmp.close()
                    self.app.pages.give_back(there[pid].slot)
                if self._is_stopping:
                    continue  # several may fail alike, and the end has begun with the first
                if not self._has_served:
                    raise
                self._put_off(halted.reason)
                continue
            gone = there.keys() - self.WORKERS.keys()
            for pid in gone:
                self.app.pages.give_back(there[pid].slot)
            if gone:
                self.wakeup()  # to have them replaced at once
            return

    def _put_off(self, why: object) -> None:
        """Make no worker for a while, which is longer each time."""
        self._pause = min(max(SHORTEST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._spawn_at = monotonic() + self._pause
        self._failed_age = self.worker_age
        self.log.error("%s It is tried again in %g s.", why, self._pause)


def _is_given() -> bool:
    """Return whether the sockets are somebody else's first: of a master whose place this one takes, or of systemd.

    LISTEN_FDS alone says nothing: it may be meant for a parent (sd_listen_fds(3)).
    """
    return "GUNICORN_FD" in os.environ or os.environ.get("LISTEN_PID") == str(os.getpid())


def _state_of(worker: Any) -> int:
    """Return how far a worker is, which it writes as the length of its file; see ``BaseWorker``."""
    try:
        return os.fstat(worker.tmp.fileno()).st_size
    except (OSError, ValueError):
        return 0


def _is_leaving(worker: Any) -> bool:
    return getattr(worker, "is_leaving", False)


def _is_to_end(worker: Any) -> bool:
    return getattr(worker, "is_to_end", False)
