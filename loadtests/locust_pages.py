"""What the origin answers and the users expect: the same for both, as both make it here. No I/O."""

from __future__ import annotations

__all__ = ["page", "receipt"]


def page(target: str) -> bytes:
    """Return the page of a target: some hundreds of bytes that no other target has."""
    return f"the page of {target}\n".encode() * (len(target) % 7 + 3)


def receipt(length: int, digest: str) -> bytes:
    """Return the answer to an upload of so many bytes with this SHA-256."""
    return f"{length} bytes {digest}\n".encode()
