"""The bytes that were fed to a parser and not yet taken out."""

from __future__ import annotations

__all__ = ["Inbox"]

#: Up to so many bytes a piece is copied: that costs less than a memoryview, and holds no large buffer.
COPIED = 4096


class Inbox:
    """``data[start:]`` is pending. While it is enough, ``data`` is the very object that was fed: nothing is copied."""

    __slots__ = ("data", "ended", "scanned", "start")

    def __init__(self) -> None:
        self.data = b""
        self.start = 0
        #: How many pending bytes were looked through in vain for the end of the lines being read.
        self.scanned = 0
        self.ended = False

    @property
    def pending(self) -> int:
        """How many bytes are held."""
        return len(self.data) - self.start

    def feed(self, data: bytes) -> None:
        """Add bytes that came."""
        if self.start == len(self.data):
            self.data, self.start = data, 0
        else:
            self.data = self.data[self.start :] + data
            self.start = 0

    def take(self, most: int) -> bytes | memoryview:
        """Give out at most so many bytes."""
        data, start = self.data, self.start
        end = min(len(data), start + most)
        self.start = end
        if start == 0 and end == len(data):
            return data
        return data[start:end] if end - start <= COPIED else memoryview(data)[start:end]

    def compact(self) -> None:
        """Let go of what was taken: a short rest must not hold a long buffer."""
        if self.start:
            self.data, self.start = self.data[self.start :], 0

    def release(self) -> None:
        """Let go of what was taken if that is all there is, which copies nothing."""
        if self.start == len(self.data):
            self.data, self.start = b"", 0
