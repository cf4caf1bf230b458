"""The small grammar that fields, targets, chunks and the writer share."""

from __future__ import annotations

import re

__all__ = ["TOKEN", "is_authority", "is_of_connection", "is_target", "is_token", "is_value"]

#: A token, as a regular expression (RFC 9110 section 5.6.2).
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

#: Whether the whole of it is a token.
is_token = re.compile(TOKEN).fullmatch
#: Whether the whole of it may be a field's value or a reason phrase (RFC 9110 section 5.5).
is_value = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch
#: Whether the whole of it may be a request's target: visible ASCII without ``#`` (RFC 9112 section 3.2).
is_target = re.compile(rb"[\x21\x22\x24-\x7e]+").fullmatch
#: Whether the whole of it is ``host[:port]``, groups 1 and 2 (RFC 9110 section 7.2).
#: Narrower than RFC 3986: no sub-delims (a comma in Host is two fields joined), no IPvFuture.
is_authority = re.compile(
    rb"((?:[0-9A-Za-z\-._~]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?"
).fullmatch

#: Whether a challenge, or credentials, are of a scheme that authenticates the connection and not the request: NTLM and
#: Negotiate (RFC 4559 section 6), under whatever name that begins so. Elements of a list are found, too.
is_of_connection = re.compile(rb"(?i)(?:.*,)?[ \t]*(?:ntlm|nego)", re.DOTALL).match
