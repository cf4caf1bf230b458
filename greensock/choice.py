"""Whether the modules that have a ``.pxd`` beside them run as they are, or compiled (``setup.py``).

What was compiled lies in a folder ``_compiled`` of its package, under the same names: a package that has such modules
looks there first. ``GREENSOCK_PURE=1`` in the environment has the ``.py`` run all the same.
"""

from __future__ import annotations

import os

__all__ = ["look_for_compiled"]

_PURE = os.environ.get("GREENSOCK_PURE", "0")
if _PURE not in ("0", "1"):
    raise ImportError(f"GREENSOCK_PURE={_PURE!r} in the environment: 0 or 1 expected")


def look_for_compiled(path: list[str]) -> None:
    """Have a package look for its modules among the compiled ones first; ``path`` is its ``__path__``."""
    if _PURE == "0":
        path.insert(0, os.path.join(path[0], "_compiled"))
