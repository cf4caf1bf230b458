"""Where an answer goes: written on the connection as HTTP/1.1, or to a stream of another framing.

What is plain HTTP/1.1 has no stream object, so that it costs nothing: ``request.stream`` is None. A protocol that
carries several requests on one connection (HTTP/2) gives each request a stream, and the same programs answer them.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ResponseStream"]


class ResponseStream(Protocol):
    """One answer on its way, in another framing than HTTP/1.1's. Its methods may block while the client is slow.

    They are called in the order of their appearance here: ``begin``, ``write`` any number of times, then ``end``; or
    ``reset``, at any time after ``begin``, in place of the rest. What they raise ends the answer, not the connection.
    """

    def begin(self, status: int, fields: list[tuple[bytes, bytes]], length: int | None) -> None:
        """Send the head: a final status, and fields without those of HTTP/1.1's connection and framing.

        ``length`` is the body's in bytes; None if that is not known. Content-Length is among the fields if it is.
        """

    def write(self, piece: bytes) -> None:
        """Send a piece of the body, which is not empty."""

    def end(self) -> None:
        """Say that the answer is whole."""

    def reset(self) -> None:
        """Say that it is not, and that no more will come. Does not block."""
