"""The error log: what the library's loggers say, written where the configuration says, without ever waiting.

It is a handler of the standard library's ``logging``, and no more: who has it hangs it onto loggers and sets levels. A
program that has handlers of its own needs none of this.

A record is one line, and what belongs to it (a traceback) stands behind it in lines that begin with a tab: so nothing
that a peer wrote can look like a record of its own. Control characters are ``\\xHH``.

What can't be written to a file or to a daemon goes to standard error. What nobody takes just now is lost, and counted;
the next line that goes through is preceded by one that says so.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat

from gevent.monkey import get_original

from greensock.proxy.log.targets import STDERR, STDOUT, SyslogSocket, syslog_address

__all__ = ["ErrorLog"]

#: How a line looks.
LINE = "%(asctime)s [%(process)d] %(levelname)s %(name)s: %(message)s"
#: The same for syslog, which has a time and a process of its own.
SYSLOG_LINE = "%(name)s: %(message)s"
#: Bytes that a pipe takes whole once it is writable (POSIX, PIPE_BUF on Linux).
PIPE_BUF = 4096

_write = get_original("os", "write")
_close = get_original("os", "close")
_poll = get_original("select", "poll")
_POLLOUT = 4
_controls = {code: f"\\x{code:02X}" for code in (*range(9), *range(11, 32), *range(127, 160))} | {10: "\n\t"}


class ErrorLog(logging.Handler):
    """Writes to a file, standard error, or syslog: see ``targets`` for how they are named.

    Raises:
        OSError: the name of a syslog daemon's host does not resolve.
    """

    def __init__(self, target: str = STDERR, facility: str = "daemon") -> None:
        super().__init__()
        #: How many lines were lost.
        self.lost = 0
        self._why = ""
        self._told = 0
        self._target = target
        self._fd = -1
        self._is_torn = False
        self._syslog: SyslogSocket | None = None
        self.follow(target, facility)

    def follow(self, target: str, facility: str = "daemon") -> None:
        """Write there from now on.

        Raises:
            OSError: the name of a host does not resolve. Then all stays as it was.
        """
        address = syslog_address(target)
        if isinstance(address, tuple):  # no line may wait for a resolver
            found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0][4]
            address = (str(found[0]), int(found[1]))
        self.reopen()
        self._target = target
        self._is_torn = False
        self._syslog = None if address is None else SyslogSocket(address, facility)
        self.formatter = logging.Formatter(LINE if address is None else SYSLOG_LINE)

    def reopen(self) -> None:
        """Open the file anew with the next line, as its name may lead to another now: for the rotation of logs."""
        if self._syslog is not None:
            self._syslog.close()
        fd, self._fd = self._fd, -1
        if fd > 2:
            _close(fd)

    def close(self) -> None:
        """Close the file."""
        self.reopen()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. It neither waits nor raises."""
        try:
            text = self.format(record).translate(_controls)
        except Exception:  # the program's: arguments that do not fit
            self.handleError(record)
            return
        if self.lost > self._told:
            notice = self._notice(record.name)
            if not self._put(self.format(notice), notice.levelno, notice.created):
                self.lost += 1
                return
            self._told = self.lost
        if not self._put(text, record.levelno, record.created):
            self.lost += 1

    def _notice(self, name: str) -> logging.LogRecord:
        text = f"{self.lost - self._told} lines of this log were lost: {self._why}"
        return logging.LogRecord(name, logging.WARNING, "", 0, text, None, None)

    def _put(self, text: str, level: int, when: float) -> bool:
        """Write a line; return whether it is out, or on standard error in its place."""
        data = text.encode("utf-8", "backslashreplace")
        try:
            if self._syslog is not None:
                self._syslog.send(_severity(level), data, when)
            else:
                self._write_all(data + b"\n")
        except BlockingIOError:
            self._why = "they were not taken at once"
            return False
        except OSError as error:
            self._why = error.strerror or str(error)
            if error.errno != errno.ENOSPC:
                self.reopen()
            return self._is_elsewhere(data)
        return True

    def _is_elsewhere(self, data: bytes) -> bool:
        """Write a line to standard error in the place of what failed; return whether that was possible."""
        if self._target == STDERR:
            return False
        try:
            _write(2, b"%b: %b: %b\n" % (self._target.encode("utf-8", "backslashreplace"), self._why.encode(), data))
        except OSError:
            return False
        return True

    def _write_all(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        if self._is_torn:
            data = b"\n" + data
        is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                if not is_file:
                    poll = _poll()
                    poll.register(self._fd, _POLLOUT)
                    if not poll.poll(0):
                        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                done += _write(self._fd, view[done:] if is_file else view[done : done + PIPE_BUF])
        finally:
            if done:
                self._is_torn = data[done - 1] != 10

    def _open(self) -> None:
        if self._target in (STDOUT, STDERR):
            self._fd = 2 if self._target == STDERR else 1
            return
        # Not blocking: a FIFO without a reader is an error here.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = os.open(self._target, flags, 0o644)


def _severity(level: int) -> int:
    """Return syslog's word for a level (RFC 5424 section 6.2.1)."""
    for least, severity in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return severity
    return 7
