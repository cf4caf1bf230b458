"""``greensock proxy`` in many processes.

Fewer requests at a time than it would take on by default, so that fewer descriptors are kept back for their way to the
servers, and more are there for clients that rest.
"""

import tempfile
from pathlib import Path

from loadtests.peers import http_common, workers_main

CONFIGURATION = """
listen = ["{host}:{port}"]
[server]
max_workers = 500
[timeouts]
keep_alive = "1h"
[upstreams.origin]
servers = ["http://{upstream}"]
"""

if __name__ == "__main__":
    options = http_common.options()
    listener = http_common.listener(options)
    host, port = listener.getsockname()[:2]
    directory = tempfile.mkdtemp(prefix="greensock-proxy-")
    path = Path(directory) / "proxy.toml"
    path.write_text(CONFIGURATION.format(host=host, port=port, upstream=options.upstream))
    workers_main.inherit(listener, directory, "greensock", "proxy", "--config", str(path))
