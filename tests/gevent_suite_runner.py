"""Run the suite that gevent ships for its ``StreamServer`` against greensock's; the last line printed says how it went.

A program of its own: the suite wants an unpatched interpreter, and the class has to be replaced before it is imported.
"""

from __future__ import annotations

import json
import unittest
from collections import Counter
from typing import Any

import gevent.server

from greensock import stream_server

made: Counter[str] = Counter()


class StreamServer(stream_server.StreamServer):
    """Ours, counting what its handlers get."""

    def do_read(self) -> Any:
        accepted = super().do_read()
        if accepted:
            made[type(accepted[0]).__name__] += 1
        return accepted


def main() -> None:
    gevent.server.StreamServer = StreamServer  # type: ignore[misc]
    from gevent import monkey
    from gevent.tests import test__server as suite

    assert not monkey.is_module_patched("socket")
    assert suite.StreamServer is suite.Settings.ServerClass is StreamServer
    assert issubclass(suite.SimpleStreamServer, StreamServer)
    assert suite.Settings.ServerSubClass is suite.SimpleStreamServer

    tests = unittest.defaultTestLoader.loadTestsFromModule(suite)
    chosen = tests.countTestCases()  # not testsRun: CPython 3.12.1 does not count what was skipped
    result = unittest.TextTestRunner(verbosity=2).run(tests)
    report = {
        "run": chosen,
        "passed": chosen - len(result.failures) - len(result.errors) - len(result.skipped),
        "failed": {test.id(): text for test, text in [*result.failures, *result.errors]},
        "skipped": {test.id(): why for test, why in result.skipped},
        "made": made,
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
