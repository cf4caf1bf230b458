"""The suite that gevent ships for ``gevent.server.StreamServer``, run against ``greensock.StreamServer``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

#: gevent 26.9 has so many; a later one may have more. Nothing of it is left out.
AT_LEAST = 39

#: What the suite itself skips: there is no ``socket.ssl()`` in Python 3.
SKIPPED = {"gevent.tests.test__server.TestSSLSocketNotAllowed.test": "Uses socket.ssl"}


def test_the_suite_passes() -> None:
    runner = Path(__file__).with_name("gevent_suite_runner.py")
    done = subprocess.run([sys.executable, str(runner)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failed"] == {}
    assert report["skipped"] == SKIPPED
    assert report["run"] >= AT_LEAST
    assert report["passed"] == report["run"] - len(SKIPPED)
    # What the handlers got: ours, but for the test of SSL.
    assert report["made"]["SocketConnection"] >= 40
    assert report["made"]["socket"] == 1
