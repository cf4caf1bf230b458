"""Regular expressions for paths, in time that grows with the path's length only. Pure.

They are RE2's (the package ``google-re2``): no look-around and no references back, and so no path that takes for ever.
Python's own would take minutes for ``(a+)+b`` and 40 bytes that a client is free to choose.
"""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import quote

__all__ = ["PathPattern"]

#: Bytes of memory that one may take while it is matched.
MAX_MEMORY = 1 << 21


class PathPattern:
    """A regular expression that a whole path is to match, and the names of its groups.

    Raises:
        ValueError: it is none, or the package is not installed.
    """

    __slots__ = ("_matcher", "groups")

    def __init__(self, text: str) -> None:
        try:
            re2: Any = importlib.import_module("re2")
        except ImportError:
            raise ValueError("the package google-re2 expected: pip install 'greensock[proxy]'") from None
        options = re2.Options()
        options.log_errors = False
        options.max_mem = MAX_MEMORY
        options.dot_nl = True  # a path may have a line feed, and must not get past a rule by that
        try:
            self._matcher: Any = re2.compile(text, options)
        except re2.error as error:
            said = error.args[0] if error.args else error
            said = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
            raise ValueError(f"a regular expression of RE2 expected: {said}") from None
        #: The names of its groups.
        self.groups = frozenset(str(name) for name in self._matcher.groupindex)

    def match(self, path: bytes) -> dict[str, str] | None:
        """Return what its named groups have of a path, percent-encoded; None if it does not match all of it.

        ``path`` is as routes compare it, where NUL stands for ``%2F``.
        """
        found = self._matcher.fullmatch(path.decode("utf-8", "replace"))
        if found is None:
            return None
        groups = found.groupdict()
        return {name: quote(groups[name] or "", safe="/!$&'()*+,;=:@~").replace("%00", "%2F") for name in self.groups}
