"""Run the suites that gevent ships for its ``pywsgi`` against greensock's; the last line printed says how it went.

A program of its own, as ``gevent_suite_runner.py`` is. The class that stands in differs from ours in what the suite
takes for granted: errors go through the hub, which is where it looks for them; a request without Host is given one
(half of the suite's have none, and are about something else); chunked uploads stream, as many of the suite's are never
whole; and ``handler_class`` is dropped.
"""

from __future__ import annotations

import json
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.pywsgi

from greensock.http import WSGIServer

#: What is left out, by class or by test, and why.
LEFT_OUT = {
    "TestConnectionUpgrades.test_connection_upgrade": "no 101 through WSGI",
    "TestConnectionUpgrades.test_upgrade_websocket": "no 101 through WSGI",
    "TestMultiLineHeader": "a folded field is refused (RFC 9112 section 5.2)",
    "TestHandlerSubclass": "there are no handlers",
    "TestInputRaw": "pywsgi's Input itself, not a server",
    "TestHTTPResponseSplitting": "the refusals are the same, but no answer at all is an error here",
    "TestContentLength304": "304 may have the length that 200 would have (RFC 9110 section 8.6)",
    "TestBody304": "the body of a 304 is dropped, which is no error",
    "TestWrite304": "the body of a 304 is dropped, which is no error",
    "Expect100ContinueTests": "an answer before the awaited body closes: it may come or not (RFC 9110 section 10.1.1)",
    "BadRequestTests.test_bad_request_line_with_percent": "a line is judged when its head is whole",
    "ChunkedInputTests.test_short_read_with_content_length": "two lengths are refused (RFC 9112 section 6.3)",
    "ChunkedInputTests.test_short_read_with_zero_content_length": "two lengths are refused (RFC 9112 section 6.3)",
    "ChunkedInputTests.test_chunked_readline": "two lengths are refused (RFC 9112 section 6.3)",
    "ChunkedInputTests.test_dirt": "a malformed chunk extension closes the connection (RFC 9112 section 7.1.1)",
    "ChunkedInputTests.test_close_before_finished": "a client's fault is no error of the server",
    # Of the suite that all of gevent's servers have to pass:
    "test_error_in_spawn": "nothing is spawned: there is no _spawn to replace",
    "test_server_repr_when_handle_is_instancemethod": "there are no handlers: set_handle is refused",
    "test_server_closes_client_sockets": "an application that forgets start_response gets 500 and a traceback",
    "TestSSLGetCertificate": "no TLS yet",
}

#: What is tried up to three times: the suite says itself that it measures time, and "tends to timeout".
FLAKY = "test_pool_full"

served = 0


class StandIn(WSGIServer):
    """Ours, as the suite wants it."""

    stop_timeout = 0.05
    stream_chunked = True

    def __init__(self, *arguments: Any, handler_class: Any = None, **options: Any) -> None:
        super().__init__(*arguments, **options)

    def connection_recv(self, conn: Any, data: bytes) -> None:
        global served
        served += 1
        line, _, rest = data.partition(b"\r\n")
        if line.endswith(b" HTTP/1.1") and b"host:" not in rest.lower().partition(b"\r\n\r\n")[0]:
            data = line + b"\r\nHost: localhost\r\n" + rest
        super().connection_recv(conn, data)

    def application_failed(self, request: Any, error: BaseException) -> None:
        context = gevent.pywsgi.WSGISecureEnviron()
        gevent.get_hub().handle_error(context, type(error), error, error.__traceback__)


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def main() -> None:
    gevent.pywsgi.WSGIServer = StandIn  # type: ignore[assignment, misc]
    from gevent.tests import test__pywsgi, test__server_pywsgi

    assert test__pywsgi.pywsgi.WSGIServer is test__server_pywsgi.Settings.ServerClass is StandIn
    chosen, left_out = unittest.TestSuite(), set()
    loaded = [unittest.defaultTestLoader.loadTestsFromModule(each) for each in (test__pywsgi, test__server_pywsgi)]
    for test in tests_of(unittest.TestSuite(loaded)):
        name = ".".join(test.id().split(".")[-2:])
        found = {name, *name.split(".")} & LEFT_OUT.keys()
        left_out |= found
        if not found and (len(sys.argv) < 2 or sys.argv[1] in name):
            chosen.addTest(test)
    count = chosen.countTestCases()  # not testsRun: CPython 3.12.1 does not count what was skipped
    result = unittest.TextTestRunner(verbosity=2).run(chosen)
    failed = {test.id(): text for test, text in [*result.failures, *result.errors]}
    for name in [name for name in failed if name.endswith(FLAKY)]:
        again = unittest.defaultTestLoader.loadTestsFromName(name)
        if any(unittest.TextTestRunner(verbosity=2).run(again).wasSuccessful() for _ in range(2)):
            del failed[name]
    report = {
        "run": count,
        "failed": failed,
        "skipped": {test.id(): why for test, why in result.skipped},
        "unknown": sorted(LEFT_OUT.keys() - left_out),
        "served": served,
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
