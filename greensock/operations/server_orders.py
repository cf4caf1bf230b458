"""``greensock proxy drain``, ``ready`` and ``servers``: a server gets no new requests, or gets them again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from greensock.operations.operators_client import OperatorsClient
from greensock.operations.status_reading import ServerReading, StatusReading

__all__ = ["TOKEN", "NotNamed", "give_order", "list_servers", "read_token", "wait_until_idle"]

#: Where the environment has the token: as for ``--operations``.
TOKEN = "GREENSOCK_OPERATIONS_TOKEN"
#: Seconds between two looks at what is still in hand.
LOOK_EVERY = 0.2


class NotNamed(Exception):
    """What was named is not there; the text says what there is."""


def read_token(path: str | None) -> str | None:
    """Return the token that a file holds, without the space around it; without a file what the environment says.

    None: neither says anything.

    Raises:
        NotNamed: it can't be read, or is none.
    """
    if path is None:
        where, token = TOKEN, os.environ.get(TOKEN, "")
        if not token:
            return None
    else:
        where = f"--token-file {path}"
        try:
            with open(path, encoding="ascii") as file:
                token = file.read(4096).strip()
        except UnicodeDecodeError as error:
            raise NotNamed(f"{where}: letters that a field can hold expected") from error
        except OSError as error:
            raise NotNamed(f"{where}: {error.strerror}") from error
    if not (token and token.isascii() and token.isprintable()) or " " in token:
        raise NotNamed(f"{where}: one token expected, without a space in it")
    return token


def give_order(client: OperatorsClient, what: str, server: str, upstream: str | None) -> list[str]:
    """Drain a server (``drain``) or put it back (``ready``) in every upstream that has it, or in that one alone.

    Returns the names of those upstreams.

    Raises:
        Away: the operators' address does not answer.
        NotNamed: there is no such server.
        RefusedThere: it was not done; in those before that one it was.
    """
    status = client.status()
    found = [each for each in _named(status, server) if upstream in (None, each[0])]
    if not found:
        there = [f"{group['name']}: {each['name']}" for group in status["upstreams"] for each in group["servers"]]
        of = "" if upstream is None else f" of {upstream}"
        raise NotNamed(f"there is no server {server}{of}; there is {', '.join(there) or 'none'}")
    for group, each in found:
        client.set_server(what, group, each["name"])
    return [group for group, _ in found]


def wait_until_idle(client: OperatorsClient, server: str, upstreams: list[str], seconds: float) -> int:
    """Wait until a server has nothing in hand any more; return how many requests it still has when time is over.

    Raises:
        Away: the operators' address does not answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        servers = [each for group, each in _named(client.status(), server) if group in upstreams]
        left = sum(each["in_hand"] for each in servers)
        is_known = all(each["state"] == "draining" for each in servers)  # to all workers, within a second
        if (is_known and not left) or time.monotonic() >= deadline:
            return left
        time.sleep(min(LOOK_EVERY, seconds))


def list_servers(status: StatusReading) -> list[str]:
    """Return a line for each server: its upstream and name, how it stands, its weight, what it has in hand, and why."""
    rows = [
        (upstream["name"], each["name"], each["state"], f"weight {each['weight']:g}", f"{each['in_hand']} in hand")
        for upstream in status["upstreams"]
        for each in upstream["servers"]
    ]
    why = [each["why"] or "" for upstream in status["upstreams"] for each in upstream["servers"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([*map(str.ljust, row, widths), reason]).rstrip() for row, reason in zip(rows, why, strict=True)]


def _named(status: StatusReading, server: str) -> Iterator[tuple[str, ServerReading]]:
    wanted = _bare(server)
    for upstream in status["upstreams"]:
        for each in upstream["servers"]:
            if _bare(each["name"]) == wanted:
                yield upstream["name"], each


def _bare(name: str) -> str:
    for scheme in ("http://", "https://", "unix:"):
        name = name.removeprefix(scheme)
    return name.rstrip("/") or name
