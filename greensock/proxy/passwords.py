"""Names and passwords in a file, as ``htpasswd -B`` writes it (RFC 7617), checked without holding the hub.

Only bcrypt is understood. What else htpasswd writes is refused with its name: MD5 (``$apr1$``), SHA-1 and crypt are
guessed in no time once the file is known, and plain text is none at all.

- A check costs some 50 to 250 ms of a core, by bcrypt's design. It is made in gevent's threads, so that others go on,
  ``AT_ONCE`` at a time; a bounded number waits. Several checks of the same at the same time are one.
- What was right is remembered, under a keyed hash, while the line in the file is the same. What was wrong is not.
- A name that is not there costs as much as the dearest that is.
- The file is looked at once a second, when somebody asks, and read anew if it changed. One that is wrong then is
  logged, and the old one goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections import OrderedDict
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore

__all__ = ["BadPasswords", "PasswordFile", "TooManyChecks", "read_passwords"]

log = logging.getLogger("greensock.server")

#: Bytes that a file may have.
MAX_FILE = 1 << 22
#: Bytes of a password that bcrypt looks at; htpasswd cuts it there, too.
MAX_PASSWORD = 72
#: Seconds between two looks at the file.
LOOK_EVERY = 1.0
#: Checks that are made at a time, in gevent's threads, which look up names, too; and those that may wait.
AT_ONCE, MAX_WAITING = 2, 64
#: Good ones that are remembered.
MAX_KNOWN = 4096

_bcrypt_hash = re.compile(rb"\$2[aby]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}").fullmatch
#: What is refused, and what it is.
_KINDS = (
    (b"$apr1$", "MD5"),
    (b"$1$", "MD5"),
    (b"{SHA}", "SHA-1"),
    (b"{SSHA}", "SHA-1"),
    (b"$5$", "SHA-256 of crypt"),
    (b"$6$", "SHA-512 of crypt"),
    (b"$argon2", "Argon2"),
    (b"$y$", "yescrypt"),
)


class BadPasswords(ValueError):
    """A file that can't be read, or is none of these."""


class TooManyChecks(Exception):
    """More passwords wait to be checked than may."""


def read_passwords(path: str) -> dict[bytes, bytes]:
    """Return the hashes in a file by their names.

    Raises:
        BadPasswords: it can't be read, or there is a line that is not understood: the text says which, and why.
    """
    try:
        import bcrypt  # noqa: F401
    except ImportError:
        raise BadPasswords("the package bcrypt expected, which reads it: pip install 'greensock[proxy]'") from None
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise BadPasswords(f"a file that can be read expected ({said})") from None
    if len(data) > MAX_FILE:
        raise BadPasswords(f"a file of at most {MAX_FILE} bytes expected")
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line.strip() or line.startswith(b"#"):
            continue
        name, colon, hashed = line.partition(b":")
        hashed = hashed.partition(b":")[0].strip()
        if not colon or not name:
            raise BadPasswords(f"line {number}: name:hash expected")
        if name in found:
            raise BadPasswords(f"line {number}: {name.decode('utf-8', 'replace')!r}: each name once expected")
        if not _bcrypt_hash(hashed):
            kind = next((kind for start, kind in _KINDS if hashed.startswith(start)), "")
            is_what = f"is {kind}" if kind else "is no hash that is known"
            shown = name.decode("utf-8", "replace")
            wanted = "one of htpasswd -B expected (bcrypt)"
            raise BadPasswords(f"line {number}: the password of {shown!r} {is_what}: {wanted}")
        found[name] = hashed
    return found


class PasswordFile:
    """The passwords of one file. It belongs to the thread that uses it first."""

    __slots__ = (
        "_key",
        "_known",
        "_looked",
        "_mark",
        "_path",
        "_running",
        "_semaphore",
        "_spare",
        "_table",
        "_waiting",
    )

    def __init__(self, path: str) -> None:
        """``path`` was read before, so that what is wrong with it is known."""
        self._path = path
        self._table: dict[bytes, bytes] = {}
        self._mark: Any = None  # what the file was like when it was read
        self._looked = float("-inf")
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._running: dict[bytes, AsyncResult[bool]] = {}
        self._semaphore = BoundedSemaphore(AT_ONCE)
        self._waiting = 0
        self._spare = b""  # what a name that is not there is compared with

    def is_right(self, name: bytes, password: bytes) -> bool:
        """Return whether that is the password of that name. Blocks while it is looked at.

        Raises:
            TooManyChecks: too many wait already.
        """
        self._look()
        stored = self._table.get(name)
        hashed = stored or self._spare
        if not hashed:
            return False  # nobody is there: nothing can be told apart
        mark = hashlib.blake2b(b"\0".join((hashed, name, password)), key=self._key, digest_size=32).digest()
        if mark in self._known:
            self._known.move_to_end(mark)
            return True
        running = self._running.get(mark)
        if running is not None:
            return bool(running.get()) and stored is not None
        if self._waiting >= MAX_WAITING:
            raise TooManyChecks
        running = self._running[mark] = AsyncResult()
        self._waiting += 1
        try:
            is_right = self._check(password, hashed)
        except BaseException as error:
            running.set_exception(error if isinstance(error, Exception) else TooManyChecks())
            raise
        finally:
            self._waiting -= 1
            del self._running[mark]
        running.set(is_right)
        if is_right and stored is not None:
            self._known[mark] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return is_right and stored is not None

    def _check(self, password: bytes, hashed: bytes) -> bool:
        with self._semaphore:
            return bool(gevent.get_hub().threadpool.apply(_is_of, (password, hashed)))

    def _look(self) -> None:
        """Read the file if it changed."""
        now = monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        try:
            found = os.stat(self._path)
            mark = found.st_mtime_ns, found.st_size, found.st_ino
            if mark == self._mark:
                return
            table = read_passwords(self._path)
        except (OSError, BadPasswords) as error:
            if self._mark != "bad":
                log.error("%s: the passwords of before go on: %s", self._path, error)
            self._mark = "bad"
            return
        self._mark, self._table = mark, table
        # As dear as the dearest of them. Nothing has this hash.
        cost = max((hashed[4:6] for hashed in table.values()), default=b"")
        self._spare = b"$2b$%b$%b" % (cost, b"." * 53) if cost else b""


def _is_of(password: bytes, hashed: bytes) -> bool:
    """Compare, in a thread."""
    import bcrypt

    try:
        return bcrypt.checkpw(password[:MAX_PASSWORD], hashed)
    except ValueError:  # NUL in a password
        return False
