"""The suites that gevent ships for ``gevent.pywsgi``, run against ``greensock.http.WSGIServer``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

#: gevent 26.9 has so many that are not left out (the runner says which are, and why); a later one may have more.
AT_LEAST = 115


#: Why the suites themselves skip some: a long URL; there is no ``socket.ssl()`` in Python 3.
SKIPPED = {"Not sure", "Uses socket.ssl"}


def test_the_suites_pass() -> None:
    runner = Path(__file__).with_name("gevent_wsgi_suite_runner.py")
    done = subprocess.run([sys.executable, str(runner)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failed"] == {}
    assert report["unknown"] == []
    assert set(report["skipped"].values()) <= SKIPPED
    assert report["run"] >= AT_LEAST
    assert report["served"] >= report["run"] / 2  # it was ours that was asked
