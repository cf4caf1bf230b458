"""Where lines of a log can go, as a configuration names it; and a socket to a syslog daemon.

===========================  =============================================================================
``-``                        standard output
``stderr``                   standard error
``syslog``, ``syslog:PATH``  the syslog daemon of this machine, at ``/dev/log`` or another Unix socket
``udp://HOST[:PORT]``        a syslog daemon, by UDP; the port is 514 if none is said
anything else                the path of a file
===========================  =============================================================================

A daemon of this machine gets what syslog(3) sends, which all of them read; one at the other end of a network gets what
RFC 5424 says, over RFC 5426. A line is one datagram.
"""

from __future__ import annotations

import os
import re
import time
from datetime import datetime, timezone
from typing import Any

from gevent.monkey import get_original

__all__ = ["FACILITIES", "STDERR", "STDOUT", "SyslogSocket", "is_file", "is_target", "syslog_address"]

STDOUT, STDERR = "-", "stderr"
#: Which part of a system says it (RFC 5424 section 6.2.1).
FACILITIES = {
    name: number
    for number, name in enumerate(
        (
            *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
            *("ntp", "audit", "alert", "clock"),
            *(f"local{number}" for number in range(8)),
        )
    )
}
#: What a daemon takes of one line, in bytes: rsyslog's limit; RFC 5424 section 6.1 asks for 2,048 at least.
MAX_DATAGRAM = 8192
#: The name of the program.
TAG = "greensock"

_Address = str | tuple[str, int]

_udp = re.compile(r"udp://(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/\[\]]+))(?::(?P<port>[0-9]{1,5}))?").fullmatch
_socket = get_original("socket", "socket")
_getaddrinfo = get_original("socket", "getaddrinfo")
_poll = get_original("select", "poll")
_gethostname = get_original("socket", "gethostname")
_AF_UNIX, _SOCK_DGRAM, _POLLOUT = 1, 2, 4
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def syslog_address(target: str) -> _Address | None:
    """Return where a syslog daemon is; None: the target is none."""
    if target == "syslog":
        return "/dev/log"
    if target.startswith("syslog:"):
        return target.removeprefix("syslog:") or None
    match = _udp(target)
    return (match["v6"] or match["host"], int(match["port"] or 514)) if match is not None else None


def is_target(value: object) -> bool:
    """Return whether a value names a target."""
    if not isinstance(value, str) or value in ("", "none") or "\0" in value:
        return False
    if "://" in value or value.startswith("syslog:"):
        address = syslog_address(value)
        return address is not None and (isinstance(address, str) or 0 < address[1] < 65536)
    return True


def is_file(target: str) -> bool:
    """Return whether a target is the path of a file."""
    return target not in (STDOUT, STDERR) and syslog_address(target) is None


class SyslogSocket:
    """Sends lines to a syslog daemon. It never waits: what the daemon does not take at once is an error.

    The name of a host is resolved when the first line is sent, which may take its time; so who may not wait gives a
    number. Whoever made it closes it; a line that is sent later opens it anew.
    """

    def __init__(self, address: _Address, facility: str) -> None:
        self._address = address
        self._facility = FACILITIES[facility]
        self._socket: Any = None
        self._host = "".join(each if "!" <= each <= "~" else "?" for each in _gethostname())[:255] or "-"

    def send(self, severity: int, text: bytes, when: float | None = None) -> None:
        """Send a line, with no end of a line; ``when`` is in seconds since 1970, by default now.

        Raises:
            BlockingIOError: the daemon takes nothing at present.
            OSError: it is not there, or the line can't be sent.
        """
        line = self._written(severity, text, time.time() if when is None else when)
        if self._socket is not None:
            try:
                self._socket.send(line)
                return
            except BlockingIOError:
                raise
            except OSError:  # it has ended, and may be there again
                self.close()
        self._open().send(line)

    def wait(self, milliseconds: int) -> None:
        """Wait until the daemon takes more, or that long."""
        if self._socket is not None:
            poll = _poll()
            poll.register(self._socket, _POLLOUT)
            poll.poll(milliseconds)

    def close(self) -> None:
        """Close the socket."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _open(self) -> Any:
        if isinstance(self._address, str):
            family, address = _AF_UNIX, self._address
        else:
            family, _, _, _, address = _getaddrinfo(*self._address, 0, _SOCK_DGRAM)[0]
        sock = _socket(family, _SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        return sock

    def _written(self, severity: int, text: bytes, when: float) -> bytes:
        priority = self._facility * 8 + severity
        if isinstance(self._address, str):
            now = time.localtime(when)
            clock = time.strftime("%H:%M:%S", now)
            head = f"<{priority}>{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {clock} {TAG}[{os.getpid()}]: "
        else:
            clock = datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            head = f"<{priority}>1 {clock} {self._host} {TAG} {os.getpid()} - - "
        return (head.encode() + text)[:MAX_DATAGRAM]
