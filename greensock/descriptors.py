"""How many descriptors optional things (pipes, duplicates) may take, so that some are left for what needs them."""

from __future__ import annotations

import resource

__all__ = ["share_of_descriptors"]

#: A share is the number of descriptors that the process may open, divided by this.
PART = 32


def share_of_descriptors() -> int:
    """Return how many descriptors a share is. The limit is asked each time (0.3 us): a program may raise it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (limit if limit != resource.RLIM_INFINITY else 1 << 30) // PART
