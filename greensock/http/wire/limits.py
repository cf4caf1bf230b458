"""How much of a message is taken before it is refused."""

from __future__ import annotations

import dataclasses

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a parser, in bytes or counts. What is exactly at a limit passes.

    Raises:
        ValueError: not a whole number, or too small.
    """

    #: Bytes of a request's target (RFC 9112 section 3 wants at least 8,000 for the whole line).
    max_target: int = 8192
    #: Bytes of a head, from its first line to the empty line, both included.
    max_head: int = 16384
    #: Fields of a head, and of the trailers.
    max_fields: int = 100
    #: Bytes of a body without its chunk framing; None for no limit.
    max_body: int | None = None
    #: Bytes of the trailers with the empty line that ends them; the empty line alone always passes.
    max_trailers: int = 8192
    #: Bytes of one chunk's extensions.
    max_chunk_extension: int = 256
    #: Bytes by which the chunk extensions of a body may outweigh its data.
    max_chunk_excess: int = 16384
    #: Answers 1xx before the final one.
    max_interim: int = 10
    #: Bytes of one field of a request's head, from its name to its CRLF; None: as many as the head may have.
    max_field: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in ("max_field", "max_body"):
                continue
            least = 1 if field.name in ("max_target", "max_head") else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{field.name}={value!r}: a whole number of at least {least} expected")


#: What a parser takes that was told nothing.
DEFAULT_LIMITS = Limits()
