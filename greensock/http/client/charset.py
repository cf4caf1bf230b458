"""In which charset the text of an answer is written. Pure."""

from __future__ import annotations

import codecs
import re

__all__ = ["charset_of", "content_type_of"]

_parameter = re.compile(r';\s*charset\s*=\s*(?:"([^"]*)"|([^\s;"]+))', re.IGNORECASE).search
#: ``<meta charset=...>``, ``<meta http-equiv=... content="...charset=...">`` and ``<?xml encoding="..."?>``.
_in_markup = re.compile(
    rb"""<(?:meta\b[^>]*?\bcharset|\?xml\b[^>]*?\bencoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I
).search
#: Codecs of Python's that write text as text.
NO_CHARSETS = {
    "idna",
    "punycode",
    "undefined",
    "unicode_escape",
    "unicode-escape",
    "raw_unicode_escape",
    "raw-unicode-escape",
}
#: How much of a page is looked at for what it says of itself (HTML, section 13.2.3.2).
LOOKED_AT = 1024
#: Byte order marks; UTF-32's begins as UTF-16's does.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def content_type_of(value: str | None) -> str:
    """Return the type that a Content-Type says, ``text/html``, in lower case; empty if there is none."""
    return (value or "").partition(";")[0].strip().lower()


def charset_of(content_type: str | None, body: bytes) -> str:
    """Return the name of the charset, one that Python knows.

    The byte order mark decides, then ``charset`` in ``content_type``, then what a page of HTML or XML says of itself
    in its first 1,024 bytes; otherwise it is UTF-8.
    """
    for mark, name in MARKS:
        if body.startswith(mark):
            return name
    match = _parameter(content_type or "")
    if match is not None and (found := _known(match.group(1) or match.group(2))):
        return found
    kind = content_type_of(content_type)
    if kind.endswith(("html", "xml")):
        said = _in_markup(body, 0, LOOKED_AT)
        if said is not None and (found := _known(said.group(1).decode("latin-1"))):
            # It was read as ASCII, so it is none of two bytes a character, whatever it says.
            return "utf-8" if found.startswith(("utf-16", "utf-32")) else found
    return "utf-8"


def _known(name: str) -> str | None:
    """Return the name as Python spells it; None: it knows no such charset of text."""
    try:
        info = codecs.lookup(name.strip())
        "a".encode(info.name)  # base64 and its like are codecs, too, and no charsets
    except (LookupError, ValueError):
        return None
    return None if info.name in NO_CHARSETS else info.name
