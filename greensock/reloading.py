"""``greensock proxy reload``: the configuration of a proxy that runs is checked, and then it is told to read it anew.

It is read as that proxy will read it: the file that it was started with, from where it was started, with its
environment. What is wrong is told, and the proxy hears nothing of it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from greensock.pid_files import RunningProxy, running_proxy
from greensock.proxy.config import ConfigError, ProxyConfig, load_config
from greensock.sources import Refused

__all__ = ["reload_proxy"]

#: Seconds in which a proxy should have taken up a new configuration, and between two looks.
OUTCOME, LOOK_EVERY = 30.0, 0.2
#: Seconds that the operators' address may take for an answer.
ANSWER = 5.0


def reload_proxy(
    pid_file: str, config: str | None = None, operations: str | None = None, token_file: str | None = None
) -> str:
    """Check, send SIGHUP, and return what came of it; this process stands where the proxy was started from then on.

    ``config`` is its configuration, if that is another than it was started with; ``operations`` is its operators'
    address, and ``token_file`` has their token; its configuration may name both, too. If somebody answers there it
    waits until new processes serve.

    Raises:
        Refused: the configuration is wrong, there is no such proxy, it may not be told, or the old processes serve on.
    """
    given = os.path.abspath(config) if config else None
    token = _token_in(token_file) if token_file else None
    proxy = running_proxy(pid_file)
    before = _serving(operations, token) if operations else set()
    file = given or (os.path.join(proxy.folder, proxy.config) if proxy.config else None)
    if file is not None:
        told = getattr(_checked(proxy, file), "operations", None)
        if not operations and told is not None:
            place, token = _place_of(told.place), token or told.token
            try:
                before, operations = _serving(place, token), place
            except Refused:
                pass  # it has none so far, or tells that to nobody
    try:
        os.kill(proxy.pid, signal.SIGHUP)
    except OSError as error:
        raise Refused(f"process {proxy.pid}: {error.strerror}", by_system=True) from error
    checked = "" if file else "; which configuration it has can't be told, so it was not checked"
    if not operations or before == {proxy.pid}:
        return f"sent SIGHUP to process {proxy.pid}: its log says what comes of it{checked}"
    return _outcome(operations, token, before, proxy.pid)


def _token_in(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: {error}: the file of the operators' token expected", by_system=True) from error


def _place_of(place: Any) -> str:
    """Return an operators' address as it is written."""
    if not isinstance(place, tuple):
        return str(place)
    return f"[{place[0]}]:{place[1]}" if ":" in place[0] else f"{place[0]}:{place[1]}"


def _checked(proxy: RunningProxy, file: str) -> ProxyConfig:
    try:
        os.chdir(proxy.folder)
        return load_config(file, os.environ if proxy.environ is None else proxy.environ)
    except (ConfigError, OSError) as error:
        raise Refused(f"{error}\nnothing was sent: process {proxy.pid} goes on with what it has") from error


def _outcome(address: str, token: str | None, before: set[int], pid: int) -> str:
    """Wait until none of the processes serve that did before; return how many others do."""
    due = time.monotonic() + OUTCOME
    while time.monotonic() < due:
        try:
            now = _serving(address, token)
        except Refused:
            now = set()  # nobody answers there for the moment
        if now and not now & before:
            return f"the configuration was read anew: {len(now)} new processes serve"
        time.sleep(LOOK_EVERY)
    raise Refused(f"sent SIGHUP to process {pid}, and after {OUTCOME:g} s old processes serve on: see its log", True)


def _serving(address: str, token: str | None) -> set[int]:
    """Return the processes that serve, as the operators' address tells them."""
    connection = _connected(address)
    try:
        headers = {"Connection": "close"} | ({"Authorization": f"Bearer {token}"} if token else {})
        connection.request("GET", "/status.json", headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise Refused(f"{address}: it answered {answer.status}, and not what its workers do: a token expected?")
        workers = json.load(answer)["workers"]
        return {int(each["pid"]) for each in workers if each["state"] == "serving"}
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        said = f"{address}: {error}: an operators' address, with /status.json, expected"
        raise Refused(said, by_system=isinstance(error, OSError)) from error
    finally:
        connection.close()


def _connected(address: str) -> http.client.HTTPConnection:
    """Return what asks an address: ``HOST:PORT``, or the path of a Unix socket."""
    if "/" in address:
        connection = http.client.HTTPConnection("localhost", timeout=ANSWER)
        connection.sock = sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(ANSWER)
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError as error:
            sock.close()
            raise Refused(f"{address}: {error.strerror}: an operators' address expected", by_system=True) from error
        return connection
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise Refused(f"{address!r}: HOST:PORT, or the path of a socket, expected")
    return http.client.HTTPConnection(host.strip("[]") or "localhost", int(port), timeout=ANSWER)
