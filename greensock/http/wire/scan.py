"""Where the parts of a head are. Pure, and what ``_scan.pxd`` does in C for the modules that are compiled."""

from __future__ import annotations

import re

__all__ = ["cut_lines", "cut_request"]

#: Whether the whole of it is a path, with or without a query, of the characters of RFC 3986 section 3.3.
plain_target = re.compile(rb"/[0-9A-Za-z\-._~%!$&'()*+,;=:@/?]*").fullmatch


def cut_lines(data: bytes, end: int) -> list[bytes]:
    """Return the lines before ``end``, without their ends: the last one has none."""
    return data[:end].split(b"\r\n")


def cut_request(data: bytes, end: int, max_target: int) -> tuple[bytes, bytes, list[bytes]] | None:
    """Return the method, the target and the lines of the fields of a request's head that ends there.

    None if its first line is not of HTTP/1.1, or the target is not plain, or longer than ``max_target``. What the
    method and the fields are is not looked at.
    """
    lines = data[:end].split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3 or words[2] != b"HTTP/1.1" or len(words[1]) > max_target or not plain_target(words[1]):
        return None
    del lines[0]
    return words[0], words[1], lines
