"""The commands that ask a running server: ``greensock top``, ``greensock proxy drain`` and ``ready``.

Exit status: 0, done; 1, the server does not answer or says no, or requests are still in hand when the wait is
over; 2, what was told is wrong.
"""

from __future__ import annotations

import argparse
import sys
from math import inf

from greensock.operations.operators_client import Away, OperatorsClient, RefusedThere
from greensock.operations.server_orders import TOKEN, NotNamed, give_order, read_token, wait_until_idle
from greensock.operations.top import report_once, watch
from greensock.operations.top_report import harmless

__all__ = ["perform"]

REFUSED, WRONG = 1, 2
#: Seconds between two looks of ``greensock top``, and of one that looks but twice.
LIVE, ONCE = 1.0, 3.0
#: What was done, in words.
DONE = {"drain": "gets no new requests", "ready": "gets requests again"}


def perform(given: argparse.Namespace) -> int:
    """Do what the command line says; return the exit status."""
    address = given.address if given.command == "top" else given.operations
    try:
        client = OperatorsClient(address, read_token(given.token_file))
    except (ValueError, NotNamed) as error:
        return _fail(error, WRONG)
    try:
        return _top(client, given) if given.command == "top" else _order(client, given)
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
    if client.token is None:
        return _fail(f"--token-file, or {TOKEN} in the environment, expected", WRONG)
    try:
        upstreams = give_order(client, given.job, given.server, given.upstream)
    except NotNamed as error:
        return _fail(error, WRONG)
    except RefusedThere as error:
        return _fail(f"{given.operations} refuses: {error}", REFUSED)
    shown = f"{harmless(given.server)} of {', '.join(map(harmless, upstreams))}"
    left = wait_until_idle(client, given.server, upstreams, wait) if wait else 0
    if left:
        return _fail(f"{shown} {DONE[given.job]}, and has {left} in hand after {wait:g} s", REFUSED)
    sys.stdout.write(f"{shown} {DONE[given.job]}{', and has nothing in hand' if wait else ''}\n")
    return 0


def _fail(error: object, status: int) -> int:
    sys.stderr.write("".join(f"{harmless(line)}\n" for line in str(error).splitlines()))
    return status
