"""greensock's HTTPServer in many processes: ``greensock run``."""

import tempfile

from loadtests.peers import http_common, workers_main

#: Seconds that a connection may rest: longer than any measurement.
REST = 3600

if __name__ == "__main__":
    listener = http_common.listener(http_common.options())
    words = ("greensock", "run", "loadtests.peers.workers_site:Site", "--option", f"idle_timeout={REST}")
    workers_main.inherit(listener, tempfile.mkdtemp(prefix="greensock-run-"), *words)
