"""Whether the modules that have a ``.pxd`` beside them run as they are, or compiled (``setup.py``).

What was compiled lies in a folder ``_compiled`` of its package, under the same names: a package that has such modules
looks there first. ``GREENSOCK_PURE=1`` in the environment has the ``.py`` run all the same.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import MutableSequence
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["look_for_compiled"]

_PURE = os.environ.get("GREENSOCK_PURE", "0")
if _PURE not in ("0", "1"):
    raise ImportError(f"GREENSOCK_PURE={_PURE!r} in the environment: 0 or 1 expected")


def look_for_compiled(package: str, path: MutableSequence[str]) -> None:
    """Have a package look for its modules among the compiled ones first; ``path`` is its ``__path__``."""
    place = Path(path[0])
    compiled = place / "_compiled"
    if _PURE == "1" or not compiled.is_dir():
        return
    path.insert(0, str(compiled))
    # Tracebacks of compiled modules name the files from the package on, and find them in the directory of the project
    # only. So they are told here where the lines are, to be read when they are asked for.
    lines: dict[str, Any] = linecache.cache  # an entry of one function is one to be read
    for made in compiled.iterdir():
        name = made.name.partition(".")[0] + ".py"
        lines[f"{package.replace('.', '/')}/{name}"] = (partial((place / name).read_text, "utf-8"),)
