"""Which body a head announces (RFC 9112 sections 6.1 to 6.3)."""

from __future__ import annotations

from greensock.http.errors import BadMessage, Reason
from greensock.http.wire.headers import Headers

__all__ = ["MAX_LENGTH_DIGITS", "declared_length", "framing_of"]

#: Digits of a Content-Length: what surely fits into 64 bits.
MAX_LENGTH_DIGITS = 18


def framing_of(fields: list[tuple[bytes, bytes]], index: dict[bytes, bytes], version: str) -> tuple[int | None, bool]:
    """Return what Content-Length says, and whether the body is chunked.

    ``index`` maps each lower-case name to its last value.

    Raises:
        BadMessage: they contradict each other, or a recipient less strict might read them differently.
    """
    length, coding = index.get(b"content-length"), index.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadMessage(
                "Content-Length and Transfer-Encoding in one message", Reason.CONTENT_LENGTH_AND_TRANSFER_ENCODING
            )
        if version == "1.0":
            raise BadMessage("Transfer-Encoding in HTTP/1.0", Reason.TRANSFER_ENCODING_IN_1_0)
        if coding.lower() != b"chunked" or len(index) != len(fields):
            _check_codings([value for name, value in fields if name.lower() == b"transfer-encoding"])
        return None, True
    if length is None:
        return None, False
    if len(index) != len(fields) and sum(name.lower() == b"content-length" for name, _ in fields) > 1:
        raise BadMessage("Content-Length more than once", Reason.CONTENT_LENGTH_REPEATED)
    if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise BadMessage(f"Content-Length {length[:40]!r}", Reason.CONTENT_LENGTH)
    return int(length), False


def _check_codings(values: list[bytes]) -> None:
    codings = [coding.strip(b" \t").lower() for value in values for coding in value.split(b",")]
    if codings == [b"chunked"]:
        return
    said = b", ".join(codings)[:80]
    if b"" in codings or codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
        raise BadMessage(f"Transfer-Encoding {said!r}: one chunked at the end expected", Reason.TRANSFER_ENCODING)
    raise BadMessage(f"Transfer-Encoding {said!r}: only chunked is known", Reason.UNKNOWN_CODING)


def declared_length(headers: Headers) -> int | None:
    """Return the Content-Length that a program gave its own message; None if it gave none.

    Raises:
        ValueError: it is none.
    """
    value = headers.get_raw(b"content-length")
    if value is None:
        return None
    if not value.isdigit():
        raise ValueError(f"Content-Length: {value!r}: a number of bytes expected")
    return int(value)
