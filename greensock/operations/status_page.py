"""The status page: three files, and what browsers are told of them.

The page asks the operators' address that it came from, and nobody else. It makes no HTML of what it is told, and the
fields here keep a browser from running anything that is not one of these files, whatever comes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["PAGE_FIELDS", "page_file"]

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

#: What goes with each of the files. They may be kept, but are asked for anew: a page of another version than its
#: server would misread what it is told.
PAGE_FIELDS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)


@cache
def page_file(path: str) -> tuple[str, bytes] | None:
    """Return type and content of the file at a path of the operators' address; None if there is none of the page's."""
    if path not in _FILES:
        return None
    name, kind = _FILES[path]
    return kind, (Path(__file__).parent / name).read_bytes()
