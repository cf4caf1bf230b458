"""A proxy as a program of one process: its listeners start, its configuration is read anew in place, and it ends.

What a new configuration shares with the old one goes on: the sockets that listen, so that nothing in their backlog is
lost; what is known of clients and of servers (``Gateway.inherit``). The old listeners hand over: who is connected may
ask once more. A new configuration that is wrong, or that can't be listened for, changes nothing.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent

from greensock.limits.access_lists import BadNetworks
from greensock.operations.operations_server import OperationsServer
from greensock.operations.worker_watch import WorkerWatch
from greensock.proxy.config import ConfigError, ProxyConfig
from greensock.proxy.gateway import Gateway
from greensock.proxy.program_operators import ProgramOperators
from greensock.proxy.proxy_server import ReverseProxy, ReverseProxyKeywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CannotStart", "ProxyProgram"]

log = logging.getLogger("greensock.server")

_Address = tuple[str, int] | str


class CannotStart(Exception):
    """A proxy that cannot be started: the text says what keeps it from that. Nothing is left of it."""


class ProxyProgram:
    """A proxy that is told by a configuration: ``ProxyProgram(config, read).serve_forever()``.

    ``read`` returns the configuration anew for :meth:`reload`, and raises :class:`ConfigError` if it is wrong; None:
    there is nothing to be read. ``on_reload`` is called with a configuration that has taken the place of another, and
    ``on_reopen`` when logs are to be opened anew: they are for the program's own logs. ``options`` are those of
    :class:`ReverseProxy`, in place of the configuration's.
    """

    def __init__(
        self,
        config: ProxyConfig,
        read: Callable[[], ProxyConfig] | None = None,
        *,
        on_reload: Callable[[ProxyConfig], object] | None = None,
        on_reopen: Callable[[], object] | None = None,
        **options: Unpack[ReverseProxyKeywords],
    ) -> None:
        #: What it serves by.
        self.config = config
        #: The proxies, one for each address of ``config.listen``; empty before ``start`` and after ``stop``.
        self.proxies: list[ReverseProxy] = []
        self._read = read
        self._operators = ProgramOperators()
        self._on_reload = on_reload
        self._on_reopen = on_reopen
        self._options: dict[str, Any] = {**options}
        self._is_served = False
        self._serving: list[gevent.Greenlet[..., None]] = []
        self._leaving: list[gevent.Greenlet[..., None]] = []

    @property
    def gateway(self) -> Gateway | None:
        """The gateway of the proxies; None if it is not started."""
        return self.proxies[0].gateway if self.proxies else None

    def start(self) -> None:
        """Listen everywhere, and serve.

        Raises:
            CannotStart: the log or an address cannot be had. None of the addresses is held then.
        """
        if not self.proxies:
            self.proxies, prepared = self._begun(self.config, None, {})
            self._operators.take(self.config.operations, prepared, self.proxies)

    def reload(self) -> bool:
        """Read the configuration anew and go on with it; False if that can't be: then nothing has changed.

        What is wrong is logged, a line for each problem.
        """
        if self._read is None:
            log.warning("there is no file to be read anew")
            return False
        try:
            config = self._read()
            old_places = dict(zip(self.config.listen, self.proxies, strict=True))
            proxies, prepared = self._begun(config, self.gateway, old_places)
        except (ConfigError, CannotStart) as error:
            for line in str(error).splitlines():
                log.error("the configuration stays as it was: %s", line)
            return False
        old, self.proxies, self.config = self.proxies, proxies, config
        self._operators.take(config.operations, prepared, proxies)
        if self._is_served:
            # At once, and not when the old ones have handed over: a signal that comes meanwhile is meant for these, too
            # (test_one_process).
            self._serve(proxies)
        for proxy in old:
            proxy.close_listeners()  # at once: what comes now is for the new ones
        self._leaving = [each for each in self._leaving if not each.ready()]
        self._leaving.append(gevent.spawn(_hand_over, old))
        if self._on_reload is not None:
            self._on_reload(config)
        log.warning("the configuration was read anew")
        return True

    def _begun(
        self, config: ProxyConfig, before: Gateway | None, old: dict[_Address, ReverseProxy]
    ) -> tuple[list[ReverseProxy], OperationsServer | None]:
        """Return started proxies, and what listens at the operators' address where that is another one than now."""
        try:
            prepared = self._operators.prepared(config.operations)
        except (OSError, ValueError) as error:
            assert config.operations is not None
            raise CannotStart(f"operations: cannot listen on {config.operations.address}: {error}") from error
        watch = self._operators.watch if config.operations is not None else None
        try:
            return _started(config, before, old, self._options, watch), prepared
        except BaseException:
            if prepared is not None:
                prepared.abort()
            raise

    def reopen_log(self) -> None:
        """Open the logs anew: they were renamed."""
        if self._on_reopen is not None:
            self._on_reopen()
        if self.gateway is not None and self.gateway.log is not None:
            self.gateway.log.reopen()
        elif self._on_reopen is None:
            log.warning("there is no log to be opened anew")

    def serve_forever(self, on_started: Callable[[], object] | None = None) -> None:
        """Start, call ``on_started``, and block until a signal stops it: see :meth:`Server.serve_forever`.

        SIGHUP has the configuration read anew, SIGUSR1 the log opened anew, from before the start on.

        Raises:
            CannotStart: see :meth:`start`.
        """
        jobs = {signal.SIGHUP: self.reload, signal.SIGUSR1: self.reopen_log}
        watchers = [gevent.signal_handler(number, _heed, number.name, job) for number, job in jobs.items()]
        try:
            self.start()
            if on_started is not None:
                on_started()
            self._is_served = True
            self._serve(self.proxies[1:])
            # The main greenlet serves one of them, whichever is there, so that a signal ends this and not the program.
            # With those that have stopped by then it does not begin anew: they were told to.
            while self.proxies and self.proxies[0].started:
                self.proxies[0].serve_forever()
            gevent.joinall(self._serving)
        finally:
            self._is_served = False
            for watcher in watchers:
                watcher.cancel()
            self.stop()

    def _serve(self, proxies: list[ReverseProxy]) -> None:
        """Have a signal that ends the program stop these, too."""
        self._serving = [each for each in self._serving if not each.ready()]
        self._serving += [gevent.spawn(_serve_on, proxy) for proxy in proxies]

    def stop(self) -> None:
        """Drain, stop, and write what the log holds."""
        proxies, self.proxies = self.proxies, []
        gevent.joinall([gevent.spawn(proxy.stop) for proxy in proxies])
        gevent.joinall(self._leaving)
        self._operators.end()
        _close_log(proxies)


def _serve_on(proxy: ReverseProxy) -> None:
    if proxy.started:  # else it was stopped before this greenlet ran, and is not to begin anew
        proxy.serve_forever()


def _heed(name: str, job: Callable[[], Any]) -> None:
    log.warning("%s: %s", name, job.__name__)
    job()


def _started(
    config: ProxyConfig,
    before: Gateway | None,
    old: dict[_Address, ReverseProxy],
    options: dict[str, Any],
    watch: WorkerWatch | None,
) -> list[ReverseProxy]:
    """Return started proxies; one whose address is among the old ones takes the old one's listener over."""
    try:
        gateway = config.gateway()
    except BadNetworks as error:
        raise CannotStart(str(error)) from error
    except OSError as error:
        raise CannotStart(f"guard: memory for max_clients expected: {error.strerror}") from error
    except ValueError as error:
        raise CannotStart(f"the log: {error}") from error
    gateway.watch = watch
    made: dict[_Address, ReverseProxy] = {}
    try:
        # What may fail comes first: a listener that was passed on is no longer the old one's.
        for each in config.listeners:
            if each.address not in old:
                made[each.address] = _listening(
                    each.address, gateway, config.proxy_options(each) | options, each.address
                )
        for each in config.listeners:
            if each.address in old:
                listener = old[each.address].pass_listeners()[0]
                made[each.address] = _listening(listener, gateway, config.proxy_options(each) | options, each.address)
        if before is not None:
            gateway.inherit(before)
        for proxy in made.values():
            proxy.start()
    except BaseException:
        for proxy in made.values():
            proxy.abort()
        if gateway.log is not None:
            gateway.log.close()
        raise
    return [made[address] for address in config.listen]


def _listening(listener: Any, gateway: Gateway, options: dict[str, Any], address: _Address) -> ReverseProxy:
    try:
        proxy = ReverseProxy(listener, gateway, **options)
        proxy.open_listeners()
    except (OSError, ValueError) as error:
        raise CannotStart(f"cannot listen on {_shown(address)}: {error}") from error
    return proxy


def _shown(address: _Address) -> str:
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hand_over(proxies: list[ReverseProxy]) -> None:
    gevent.joinall([gevent.spawn(proxy.hand_over) for proxy in proxies])
    _close_log(proxies)


def _close_log(proxies: list[ReverseProxy]) -> None:
    if proxies and proxies[0].gateway.log is not None:
        proxies[0].gateway.log.close()
