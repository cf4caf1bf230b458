"""The commands that ask a running server: ``greensock top``, ``greensock proxy drain``, ``ready``, ``add`` and so on.

Exit status: 0, done; 1, the server does not answer or says no, or requests are still in hand when the wait is
over; 2, what was told is wrong.
"""

from __future__ import annotations

import argparse
import sys
from math import inf

from greensock.operations.operators_client import Away, OperatorsClient, RefusedThere
from greensock.operations.server_orders import TOKEN, NotNamed, give_order, list_servers, read_token, wait_until_idle
from greensock.operations.top import report_once, watch
from greensock.operations.top_report import harmless

__all__ = ["perform"]

REFUSED, WRONG = 1, 2
#: Seconds between two looks of ``greensock top``, and of one that looks but twice.
LIVE, ONCE = 1.0, 3.0
#: What was done, in words.
DONE = {"drain": "gets no new requests", "ready": "gets requests again"}
#: What may be said of a server that is added.
OF_SERVERS = ("weight", "max_connections", "max_waiting", "backup", "srv")


def perform(given: argparse.Namespace) -> int:
    """Do what the command line says; return the exit status."""
    address = given.address if given.command == "top" else given.operations
    try:
        client = OperatorsClient(address, read_token(given.token_file))
    except (ValueError, NotNamed) as error:
        return _fail(error, WRONG)
    try:
        if given.command == "top":
            return _top(client, given)
        if given.job == "servers":
            return _servers(client)
        if client.token is None:
            return _fail(f"--token-file, or {TOKEN} in the environment, expected", WRONG)
        return _order(client, given) if given.job in DONE else _change(client, given)
    except RefusedThere as error:
        return _fail(f"{address} refuses: {error}", WRONG if error.status in (400, 404) else REFUSED)
    except Away as error:
        return _fail(f"{address}: {error}", REFUSED)
    except BrokenPipeError:
        sys.stderr.close()  # who read has enough: and nothing more is to be said at the end
        return REFUSED
    except KeyboardInterrupt:
        return 0 if given.command == "top" else 130


def _top(client: OperatorsClient, given: argparse.Namespace) -> int:
    is_once = given.once or not (sys.stdin.isatty() and sys.stdout.isatty())
    interval = given.interval if given.interval is not None else ONCE if is_once else LIVE
    if not 0.1 <= interval < inf:
        return _fail(f"--interval={interval:g}: at least 0.1 seconds expected", WRONG)
    if is_once:
        report_once(client, interval)
    else:
        watch(client, interval, sys.stdin.fileno(), sys.stdout)
    return 0


def _order(client: OperatorsClient, given: argparse.Namespace) -> int:
    wait = getattr(given, "wait", 0.0)
    if not 0 <= wait < inf:
        return _fail(f"--wait={wait:g}: a number of seconds, at least 0, expected", WRONG)
    try:
        upstreams = give_order(client, given.job, given.server, given.upstream)
    except NotNamed as error:
        return _fail(error, WRONG)
    shown = f"{harmless(given.server)} of {', '.join(map(harmless, upstreams))}"
    left = wait_until_idle(client, given.server, upstreams, wait) if wait else 0
    if left:
        return _fail(f"{shown} {DONE[given.job]}, and has {left} in hand after {wait:g} s", REFUSED)
    sys.stdout.write(f"{shown} {DONE[given.job]}{', and has nothing in hand' if wait else ''}\n")
    return 0


def _change(client: OperatorsClient, given: argparse.Namespace) -> int:
    if given.job == "add":
        options = {name: getattr(given, name) for name in OF_SERVERS if getattr(given, name) is not None}
        server, done = client.add_server(given.upstream, given.server, **options), "is a server"
    else:
        client.remove_server(given.upstream, given.server)
        server, done = given.server, "is no server any more"
    sys.stdout.write(f"{harmless(server)} of {harmless(given.upstream)} {done}\n")
    return 0


def _servers(client: OperatorsClient) -> int:
    sys.stdout.write("".join(f"{harmless(line)}\n" for line in list_servers(client.status())))
    return 0


def _fail(error: object, status: int) -> int:
    sys.stderr.write("".join(f"{harmless(line)}\n" for line in str(error).splitlines()))
    return status
